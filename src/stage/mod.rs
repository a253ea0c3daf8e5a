//! Record → one total outcome: decode, look up, decide, say what is to be written. Synchronous, without clock or logs.

pub mod apply;
pub mod detect;
pub mod entry;
pub mod filter;
pub mod heal;
pub mod worker;
