//! What the suites share. Each file stands alone; a suite takes what it needs.
#![allow(dead_code, reason = "helpers of suites that are not compiled into every test binary")]

pub mod broker;
pub mod kafka;
pub mod murmur2;
pub mod process;
pub mod proxy;
pub mod random;
pub mod records;
pub mod service;
pub mod sim;
pub mod wait;
pub mod wire;
pub mod world;
