//! The applying thread: restores the view from the opt-outs topic, then follows it for ever.

use super::layout::Brokers;
use super::status::{Status, Unready};
use super::stop::Stop;
use super::view::SharedView;
use crate::config::Config;
use crate::domain::consent::{ConsentState, Position};
use crate::domain::suppression::{Applied, SHARDS};
use crate::domain::time::Timestamp;
use crate::kafka::EdgeError;
use crate::kafka::follower::{Followed, Follower, Turn};
use crate::kafka::offsets::OffsetsClient;
use crate::metrics::{Metrics, Part};
use crate::stage::apply::{Change, Effect, Reader, Written};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The name of this part in `/readyz`.
pub const PART: &str = "view";
/// How long one read waits for a first record; markers are passed at the latest after it.
const WAIT: Duration = Duration::from_millis(5);
/// Records applied in one go while others look up: they wait for a tenth of a millisecond, and for the growth of a shard.
const SLICE: usize = 128;
/// How often the topic's identity is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
const QUERY_TIMEOUT: Duration = Duration::from_secs(5);
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// Why the fence is closed while a key on opt-outs cannot be read.
const POISONED: &str = "an unreadable key lies on opt-outs";

/// What the applying thread works with.
pub struct Follow {
    pub config: Arc<Config>,
    pub brokers: Brokers,
    pub view: Arc<SharedView>,
    pub status: Arc<Status>,
    pub metrics: Arc<Metrics>,
    pub stop: Stop,
}

/// Why a view cannot be used any more and is made anew.
enum Again {
    Restore(&'static str),
    /// The number of partitions changed: nothing can be done here.
    Changed {
        was: u32,
        is: u32,
    },
}

/// A topic as it was when it was restored.
struct Identity {
    partitions: u32,
    id: Option<String>,
}

impl Follow {
    /// Runs until the process stops.
    pub fn run(self) -> Result<(), EdgeError> {
        let offsets = OffsetsClient::new(&self.config.connection, &self.config.filter_group)?;
        let mut known: Option<Identity> = None;
        let mut why = "not restored yet";
        while !self.stop.is_asked() {
            match self.restore_and_follow(&offsets, &mut known, why)? {
                None => {}
                Some(Again::Restore(again)) => {
                    self.view.close(Some(again));
                    tracing::warn!(reason = again, "the view is restored again");
                    self.status.unready(PART, Unready::RestoringAgain { why: again });
                    why = again;
                }
                Some(Again::Changed { was, is }) => {
                    self.view.close(Some("the partition count of opt-outs changed"));
                    self.status.unready(PART, Unready::PartitionsChanged { was, is });
                    self.stop.sleep(LOOK_EVERY);
                }
            }
        }
        Ok(())
    }

    fn restore_and_follow(&self, offsets: &OffsetsClient, known: &mut Option<Identity>, why: &'static str) -> Result<Option<Again>, EdgeError> {
        let topic = &*self.config.topics.opt_outs;
        let Some(partitions) = self.retried(|| offsets.partitions(topic, QUERY_TIMEOUT).ok().flatten()) else { return Ok(None) };
        if let Some(known) = known.as_ref().filter(|known| known.partitions != partitions) {
            return Ok(Some(Again::Changed { was: known.partitions, is: partitions }));
        }
        let began = Instant::now();
        let id = match self.brokers {
            Brokers::Embedded => None,
            Brokers::Real => match self.retried(|| self.topic_id(offsets)) {
                Some(id) => Some(id),
                None => return Ok(None),
            },
        };
        self.metrics.restored.set(0);
        self.view.restart(partitions, why);
        self.view.identify(id.as_deref().unwrap_or_default());
        *known = Some(Identity { partitions, id });
        let bounds = self.retried(|| {
            let beginnings = offsets.beginnings(topic, partitions, QUERY_TIMEOUT).ok()?;
            Some((beginnings, offsets.ends(topic, partitions, QUERY_TIMEOUT).ok()?))
        });
        let Some((beginnings, ends)) = bounds else { return Ok(None) };
        let total: u64 = ends.as_slice().iter().zip(beginnings.as_slice()).map(|(end, beginning)| end.saturating_sub(*beginning)).sum();
        let mut follower = Follower::new(&self.config.connection, &self.config.filter_group, topic, beginnings.as_slice())?;
        self.view.publish(beginnings.as_slice());
        self.view.apply(|view| view.expect_many(true));
        let mut reader = Reader::new(self.view.print_key(), &self.config.businesses);
        let mut restoring = true;
        let mut poison = BTreeSet::new();
        let mut looked = Instant::now();
        let mut counted = Instant::now();
        while !self.stop.is_asked() {
            let turn = follower.turn(WAIT, |records| self.apply(&mut reader, records, !restoring, &mut poison))?;
            match turn {
                Turn::Read => {}
                Turn::OutOfRange => return Ok(Some(Again::Restore("the log no longer holds the position that was to be read"))),
                Turn::Broken => {
                    self.stop.sleep(RETRY_AFTER);
                    let reached = follower.positions().to_vec();
                    follower = Follower::new(&self.config.connection, &self.config.filter_group, topic, &reached)?;
                    continue;
                }
            }
            if !poison.is_empty() {
                // Before anybody who waits for this position is let through.
                self.view.close(Some(POISONED));
            }
            self.view.publish(follower.positions());
            let read: u64 = follower.positions().iter().zip(beginnings.as_slice()).map(|(at, from)| at.saturating_sub(*from)).sum();
            if restoring && follower.positions().iter().zip(ends.as_slice()).all(|(at, end)| at >= end) {
                restoring = false;
                self.view.apply(|view| view.expect_many(false));
                (0..SHARDS).for_each(|shard| self.view.apply(|view| view.tighten(shard)));
                let seconds = began.elapsed().as_secs_f64();
                self.metrics.restore_seconds.set(seconds);
                self.metrics.restored.set(1);
                self.count_entries();
                tracing::info!(records = total, seconds, "view restored");
            }
            if counted.elapsed() >= LOOK_EVERY {
                counted = Instant::now();
                self.count_entries();
            }
            match (restoring, poison.is_empty()) {
                (true, _) => self.status.unready(PART, Unready::Restoring { read: read.min(total), of: total }),
                (false, true) => {
                    self.view.close(None);
                    self.status.ready(PART);
                }
                (false, false) => {
                    self.status.unready(PART, Unready::Poison { positions: poison.iter().map(ToString::to_string).collect() });
                }
            }
            if self.view.went_back() {
                return Ok(Some(Again::Restore("the opt-outs topic ends before what was read of it")));
            }
            if !restoring && looked.elapsed() >= LOOK_EVERY {
                looked = Instant::now();
                if let Some(again) = self.look(offsets, known.as_ref()) {
                    return Ok(Some(again));
                }
            }
        }
        Ok(None)
    }

    /// Whether the topic is still the one that was restored.
    fn look(&self, offsets: &OffsetsClient, known: Option<&Identity>) -> Option<Again> {
        let known = known?;
        let topic = &*self.config.topics.opt_outs;
        // No answer is no news: the fence itself notices brokers that do not answer.
        let is = offsets.partitions(topic, QUERY_TIMEOUT).ok().flatten()?;
        if is != known.partitions {
            return Some(Again::Changed { was: known.partitions, is });
        }
        let id = self.topic_id(offsets);
        (id.is_some() && known.id.is_some() && id != known.id).then_some(Again::Restore("the opt-outs topic was deleted and created again"))
    }

    fn topic_id(&self, offsets: &OffsetsClient) -> Option<String> {
        match self.brokers {
            Brokers::Real => offsets.describe(&self.config.topics.opt_outs, QUERY_TIMEOUT).map(|described| described.id),
            Brokers::Embedded => None,
        }
    }

    fn apply(&self, reader: &mut Reader<'_>, records: &[Followed<'_>], live: bool, poison: &mut BTreeSet<Position>) {
        let now = live.then(SystemTime::now);
        let changes = records.iter().map(|record| {
            let at = Position { partition: record.partition, offset: record.offset };
            (at, reader.read(&Written { at, timestamp_ms: record.timestamp_ms, key: record.key, value: record.value }))
        });
        let changes: Vec<(Position, Change)> = changes.collect();
        // Nobody looks up while a view is restored.
        for slice in changes.chunks(if live { SLICE } else { changes.len().max(1) }) {
            self.view.apply(|view| {
                reader.introduce(view);
                view.prefetch_rows(slice.iter().filter_map(|(_, change)| change.person()));
                for (at, change) in slice {
                    self.count(*at, change.apply(view), now, poison);
                    view.advance(at.partition, at.offset + 1);
                }
            });
        }
    }

    fn count(&self, at: Position, effect: Effect, now: Option<SystemTime>, poison: &mut BTreeSet<Position>) {
        match effect {
            Effect::UnreadableKey => {
                self.metrics.consent_unreadable.get_or_create(&Part { part: "key" }).inc();
                if !self.config.acknowledged_poison.contains(&at) {
                    tracing::error!(position = %at, "unreadable key on opt-outs: the fence is closed");
                    poison.insert(at);
                }
            }
            Effect::Erased => {}
            Effect::Applied { act, applied, readable } => {
                if !readable {
                    self.metrics.consent_unreadable.get_or_create(&Part { part: "value" }).inc();
                    tracing::error!(position = %at, "unreadable value on opt-outs: it counts as an opt-out of its key");
                } else if let Some(now) = now.filter(|_| act.state == ConsentState::OptedOut) {
                    self.metrics.opt_out_effective_seconds.observe(seconds_since(act.occurred_at, now));
                }
                if applied == Applied::Older {
                    self.metrics.consent_older_acts.inc();
                }
            }
        }
    }

    fn count_entries(&self) {
        let view = self.view.read();
        self.metrics.set_entries.set(view.set().len() as i64);
        self.metrics.set_bytes.set(view.allocated_bytes() as i64);
        self.metrics.set_strange_partitions.set(view.set().strange_partitions() as i64);
    }

    /// Asks until there is an answer or the process stops. Who says what is missing is the start of the process.
    fn retried<T>(&self, mut ask: impl FnMut() -> Option<T>) -> Option<T> {
        while !self.stop.is_asked() {
            if let Some(answer) = ask() {
                return Some(answer);
            }
            self.stop.sleep(RETRY_AFTER);
        }
        None
    }
}

fn seconds_since(at: Timestamp, now: SystemTime) -> f64 {
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as f64;
    ((now - at.millis() as f64) / 1000.0).max(0.0)
}
