pub mod domain;
pub mod kafka;
pub mod record;
pub mod wire;
