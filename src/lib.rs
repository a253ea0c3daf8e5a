pub mod domain;
pub mod kafka;
pub mod record;
pub mod stage;
pub mod wire;
