//! The guidance topic, materialized: read at the start, followed for ever, and written by the workers' own transactions.
//!
//! What a worker has committed counts at once, before it is read back. A record that is read back and tells what this process knows
//! already is passed over: its send lies before what was committed of its partition here.
//!
//! After partitions were taken, a worker waits once until all that was written before is here: another may have served them.

use super::fence::Waiting;
use super::status::{Status, Unready};
use super::stop::Stop;
use crate::config::Config;
use crate::domain::guidance::{GuidanceSet, RecipientPrint, Seen};
use crate::domain::suppression::PrintKey;
use crate::kafka::EdgeError;
use crate::kafka::follower::{Followed, Follower, Turn};
use crate::kafka::offsets::OffsetsClient;
use crate::metrics::Metrics;
use crate::record::TopicPartition;
use crate::wire::guidance::decode;
use parking_lot::{RwLock, RwLockReadGuard};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// The name of this part in `/readyz`.
pub const PART: &str = "guidance";
const WAIT: Duration = Duration::from_millis(5);
const LOOK_EVERY: Duration = Duration::from_secs(1);
const QUERY_TIMEOUT: Duration = Duration::from_secs(5);
const RETRY_AFTER: Duration = Duration::from_millis(500);
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(2);

/// What is known, and up to where.
#[derive(Default)]
pub struct Known {
    pub set: GuidanceSet,
    /// Next offset to apply, by partition.
    pub applied: Vec<u64>,
    /// Of each partition of sends: the offset before which everything is known here without being read back.
    own: HashMap<TopicPartition, u64>,
}

/// What is known, shared between the thread that reads and the workers.
#[derive(Default)]
pub struct SharedGuidance {
    known: RwLock<Known>,
    restored: AtomicBool,
}

impl SharedGuidance {
    /// What is known now.
    pub fn read(&self) -> RwLockReadGuard<'_, Known> {
        self.known.read()
    }

    /// Whether the topic was read to its end once.
    pub fn is_restored(&self) -> bool {
        self.restored.load(Ordering::Acquire)
    }

    /// A worker has committed this of its sends, up to these offsets.
    pub fn committed(&self, seen: impl Iterator<Item = (RecipientPrint, Seen)>, up_to: impl Iterator<Item = (TopicPartition, u64)>) {
        let mut known = self.known.write();
        seen.for_each(|(print, seen)| known.set.set(print, seen));
        known.own.extend(up_to);
    }

    /// A worker has taken partitions: what others wrote of them meanwhile counts again.
    pub fn forget_own(&self, of: impl Fn(&TopicPartition) -> bool) {
        self.known.write().own.retain(|partition, _| !of(partition));
    }
}

/// A worker's question whether all that was written is known.
pub struct GuidanceFence {
    offsets: OffsetsClient,
    config: Arc<Config>,
    shared: Arc<SharedGuidance>,
}

impl GuidanceFence {
    /// A question with a client of its own.
    pub fn new(config: Arc<Config>, shared: Arc<SharedGuidance>) -> Result<Self, EdgeError> {
        Ok(Self { offsets: OffsetsClient::new(&config.connection, &config.filter_group)?, config, shared })
    }

    /// What is known.
    pub fn shared(&self) -> &Arc<SharedGuidance> {
        &self.shared
    }

    /// Waits until everything written before this call is known, at most so long.
    pub fn pass(&self, patience: Duration) -> Result<(), Waiting> {
        let deadline = Instant::now() + patience;
        let topic = &*self.config.topics.guidance;
        let partitions = self.shared.read().applied.len() as u32;
        let is = self.offsets.partitions(topic, QUERY_TIMEOUT).ok().flatten().ok_or(Waiting::Guidance("the topic is not known"))?;
        if is != partitions {
            return Err(Waiting::Guidance("its partition count changed, or it was not read yet"));
        }
        let ends = self.offsets.ends(topic, partitions, QUERY_TIMEOUT).map_err(Waiting::Unknown)?;
        loop {
            let is_there = {
                let known = self.shared.read();
                known.applied.len() == ends.as_slice().len() && known.applied.iter().zip(ends.as_slice()).all(|(at, end)| at >= end)
            };
            if is_there && self.shared.is_restored() {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(Waiting::Guidance("what was written before is still being read"));
            }
            std::thread::sleep(ASK_AGAIN_AFTER);
        }
    }
}

/// The reading thread.
pub struct FollowGuidance {
    pub config: Arc<Config>,
    pub shared: Arc<SharedGuidance>,
    pub prints: PrintKey,
    pub status: Arc<Status>,
    pub metrics: Arc<Metrics>,
    pub stop: Stop,
}

impl FollowGuidance {
    /// Runs until the process stops.
    pub fn run(self) -> Result<(), EdgeError> {
        let offsets = OffsetsClient::new(&self.config.connection, &self.config.filter_group)?;
        while !self.stop.is_asked() {
            let topic = &*self.config.topics.guidance;
            let bounds = offsets.partitions(topic, QUERY_TIMEOUT).ok().flatten().and_then(|partitions| {
                let beginnings = offsets.beginnings(topic, partitions, QUERY_TIMEOUT).ok()?;
                Some((beginnings, offsets.ends(topic, partitions, QUERY_TIMEOUT).ok()?))
            });
            let Some((beginnings, ends)) = bounds else {
                self.stop.sleep(RETRY_AFTER);
                continue;
            };
            self.follow(beginnings.as_slice(), ends.as_slice())?;
            // The log does not hold what was to be read: it is another one.
            self.shared.restored.store(false, Ordering::Release);
            tracing::warn!("guidance is restored again");
        }
        Ok(())
    }

    fn follow(&self, beginnings: &[u64], ends: &[u64]) -> Result<(), EdgeError> {
        let new = |from: &[u64]| Follower::new(&self.config.connection, &self.config.filter_group, &self.config.topics.guidance, from);
        *self.shared.known.write() = Known { applied: beginnings.to_vec(), ..Known::default() };
        let mut follower = new(beginnings)?;
        let total: u64 = ends.iter().zip(beginnings).map(|(end, from)| end.saturating_sub(*from)).sum();
        let mut counted = Instant::now();
        while !self.stop.is_asked() {
            match follower.turn(WAIT, |records| self.apply(records))? {
                Turn::Read => {}
                Turn::OutOfRange => return Ok(()),
                Turn::Broken => {
                    self.stop.sleep(RETRY_AFTER);
                    let reached = follower.positions().to_vec();
                    follower = new(&reached)?;
                    continue;
                }
            }
            let positions = follower.positions();
            self.shared.known.write().applied.copy_from_slice(positions);
            if !self.shared.is_restored() {
                if positions.iter().zip(ends).all(|(at, end)| at >= end) {
                    self.shared.restored.store(true, Ordering::Release);
                    self.status.ready(PART);
                    self.count();
                } else {
                    let read = positions.iter().zip(beginnings).map(|(at, from)| at.saturating_sub(*from)).sum();
                    self.status.unready(PART, Unready::Restoring { read, of: total });
                }
            }
            if counted.elapsed() >= LOOK_EVERY {
                counted = Instant::now();
                self.count();
            }
        }
        Ok(())
    }

    fn apply(&self, records: &[Followed<'_>]) {
        let read = records.iter().filter_map(|record| decode(record.key, record.value, self.prints, &self.config.businesses));
        let read: Vec<_> = read.collect();
        let mut known = self.shared.known.write();
        for guidance in read {
            let Some(seen) = guidance.seen else {
                known.set.remove(guidance.print);
                continue;
            };
            let is_own = guidance.send.is_some_and(|(topic, partition, offset)| {
                known.own.get(&(topic.as_str().into(), partition)).is_some_and(|up_to| offset < *up_to)
            });
            if !is_own {
                known.set.set(guidance.print, seen);
            }
        }
    }

    fn count(&self) {
        let known = self.shared.read();
        self.metrics.guidance_entries.set(known.set.len() as i64);
        self.metrics.guidance_bytes.set(known.set.allocated_bytes() as i64);
    }
}
