//! Where things happen: threads are started, time is read, outcomes are counted and logged.

#![allow(clippy::disallowed_methods)] // time is read here, and nowhere below

use crate::domain::time::Timestamp;
use std::time::{SystemTime, UNIX_EPOCH};

/// What the clock of this machine says; the epoch where that is no time. Whoever decides takes it as an argument.
pub fn now() -> Timestamp {
    let millis = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64);
    Timestamp::from_millis(millis).unwrap_or(Timestamp::EPOCH)
}

/// Asks for no huge pages. One is cleared when it is first touched, which took up to 10 ms on a virtual machine, and whoever
/// looks up may wait for that; look-ups gained nothing by them. Where it cannot be had the process is as correct.
pub fn refuse_huge_pages() {
    #[cfg(target_os = "linux")]
    rustix::thread::disable_transparent_huge_pages(true).unwrap_or_default();
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
