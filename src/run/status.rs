//! What the probes say: one place where each part of the process leaves its state.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Why a part of the process cannot do its work now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unready {
    /// Not started yet.
    Starting,
    /// No broker answers.
    NoBroker { bootstrap: String },
    /// Topics do not exist.
    MissingTopics { topics: Vec<String> },
    /// The view is being read from the opt-outs topic.
    Restoring { read: u64, of: u64 },
    /// The opt-outs topic is not the one that was read: it is read again.
    RestoringAgain { why: &'static str },
    /// The number of partitions of opt-outs has changed: keys lie elsewhere now.
    PartitionsChanged { was: u32, is: u32 },
    /// Records on opt-outs whose key cannot be read.
    Poison { positions: BTreeSet<String> },
    /// Something that is needed first is not to be had yet.
    Waiting { what: &'static str, why: String },
    /// A worker holds its sends.
    Holding { why: String },
    /// Input partitions whose committed position the log does not hold.
    OutOfRange { partitions: Vec<String> },
    /// The process ends.
    Stopping,
}

impl fmt::Display for Unready {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Starting => f.write_str("starting"),
            Self::NoBroker { bootstrap } => {
                write!(f, "no broker answers at {bootstrap}: start it, or run `stopgate check --bootstrap {bootstrap}`")
            }
            Self::MissingTopics { topics } => {
                write!(
                    f,
                    "missing topics: {}: create them with `stopgate topics`, with the --bootstrap and --config of this process",
                    topics.join(", ")
                )
            }
            Self::Restoring { read, of } => write!(f, "restoring {read} of {of}"),
            Self::RestoringAgain { why } => write!(f, "restoring again: {why}"),
            Self::PartitionsChanged { was, is } => write!(
                f,
                "holding: opt-outs had {was} partitions and has {is} now; one person's records may lie in \
                 two of them now; restart every instance, so that all of them read and write the new layout"
            ),
            Self::Poison { positions } => {
                let positions: Vec<&str> = positions.iter().map(String::as_str).collect();
                write!(
                    f,
                    "holding: unreadable key on opt-outs at {}: find out whose it is, write their opt-out again, then list the \
                     position under acknowledged_poison",
                    positions.join(", ")
                )
            }
            Self::Waiting { what, why } => write!(f, "waiting for {what}: {why}"),
            Self::Holding { why } => write!(f, "holding: {why}"),
            Self::OutOfRange { partitions } => write!(
                f,
                "holding: the committed position lies outside of the log of {}: records were deleted before they were \
                 decided; stop, set the position with `kafka-consumer-groups --reset-offsets`, start again",
                partitions.join(", ")
            ),
            Self::Stopping => f.write_str("stopping"),
        }
    }
}

/// The state of all parts. A part without an entry is ready.
#[derive(Default)]
pub struct Status {
    unready: Mutex<BTreeMap<String, Unready>>,
    live: AtomicBool,
}

impl Status {
    /// A live process whose parts have yet to say that they are ready.
    pub fn new(parts: &[&str]) -> Self {
        let unready = parts.iter().map(|part| ((*part).to_owned(), Unready::Starting)).collect();
        Self { unready: Mutex::new(unready), live: AtomicBool::new(true) }
    }

    /// A part cannot work, for this reason.
    pub fn unready(&self, part: &str, why: Unready) {
        let before = self.lock().insert(part.to_owned(), why.clone());
        if before.as_ref().map(std::mem::discriminant) != Some(std::mem::discriminant(&why)) {
            tracing::warn!(part, reason = %why, "not ready");
        }
    }

    /// A part works.
    pub fn ready(&self, part: &str) {
        if self.lock().remove(part).is_some() {
            tracing::info!(part, "ready");
        }
    }

    /// The process is past saving: probes say so until it ends.
    pub fn dead(&self) {
        self.live.store(false, Ordering::Relaxed);
    }

    /// Whether every thread that must run does.
    pub fn is_live(&self) -> bool {
        self.live.load(Ordering::Relaxed)
    }

    /// Why the process is not ready; empty when it is.
    pub fn reasons(&self) -> Vec<String> {
        let unready = self.lock();
        let mut reasons: Vec<String> = unready.iter().map(|(part, why)| format!("{part}: {why}")).collect();
        reasons.dedup();
        reasons
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Unready>> {
        self.unready.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_name_the_command_that_mends_them() {
        let status = Status::new(&["view"]);
        assert_eq!(status.reasons(), ["view: starting"]);
        status.unready("view", Unready::MissingTopics { topics: vec!["opt-outs".into()] });
        assert!(status.reasons()[0].contains("stopgate topics"));
        status.ready("view");
        assert!(status.reasons().is_empty());
    }
}
