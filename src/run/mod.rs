//! Where things happen: threads are started, time is read, outcomes are counted and logged.

#![allow(clippy::disallowed_methods)] // time is read here, and nowhere below

use crate::domain::time::Timestamp;
use std::time::{SystemTime, UNIX_EPOCH};

/// What the clock of this machine says; the epoch where that is no time. Whoever decides takes it as an argument.
pub fn now() -> Timestamp {
    let millis = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64);
    Timestamp::from_millis(millis).unwrap_or(Timestamp::EPOCH)
}

pub mod api;
pub mod bench;
pub mod classify;
pub mod demo;
pub mod detect;
pub mod explain;
pub mod fence;
pub mod filter;
pub mod follow;
pub mod gathering;
pub mod guidance;
pub mod history;
pub mod http;
pub mod layout;
mod lines;
pub mod list;
mod outcome;
mod overdue;
pub mod progress;
pub mod readers;
pub mod replay;
pub mod report;
pub mod scenario;
pub mod service;
pub mod snapshot;
pub mod status;
pub mod stop;
pub mod topics;
pub mod view;
pub mod words;
pub mod worker;
