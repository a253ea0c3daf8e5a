pub mod config;
pub mod domain;
pub mod kafka;
pub mod metrics;
pub mod record;
pub mod run;
pub mod stage;
pub mod wire;
