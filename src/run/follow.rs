//! The applying thread: restores the view from the opt-outs topic, then follows it for ever.

use super::layout::{Brokers, Layout};
use super::progress;
use super::snapshot::{Marks, Opened, Point, Points, Snapshots, mark, now_ms};
use super::status::{Status, Unready};
use super::stop::Stop;
use super::view::SharedView;
use crate::config::Config;
use crate::domain::consent::{ConsentState, Position};
use crate::domain::suppression::{self, Applied};
use crate::domain::time::Timestamp;
use crate::domain::view::ConsentView;
use crate::kafka::EdgeError;
use crate::kafka::follower::{Followed, Follower, Turn};
use crate::kafka::offsets::OffsetsClient;
use crate::kafka::range::{RangeError, RangeReader, Span};
use crate::metrics::{Metrics, Part};
use crate::record::Record;
use crate::stage::apply::{Change, Effect, Reader, Unmet, Written};
use crate::wire::snapshot::{Head, Reached};
use std::collections::BTreeSet;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The name of this part in `/readyz`.
pub const PART: &str = "view";
/// How long one read waits for a first record; markers are passed at the latest after it.
const WAIT: Duration = Duration::from_millis(5);
/// Records applied in one go while others look up: they wait for a tenth of a millisecond, and for the growth of a shard.
const SLICE: usize = 128;
/// The same while a view is restored and nobody looks up: as many as the processor keeps at hand.
const RESTORE_SLICE: usize = 512;
/// How often the log says how far a restore has come.
const TELL_EVERY: Duration = Duration::from_secs(5);
/// How often the topic's identity is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Tables are packed when the gaps between them come to more than one byte for so many of theirs.
const BYTES_A_GAP: usize = 16;
const QUERY_TIMEOUT: Duration = Duration::from_secs(5);
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// Why the fence is closed while a key on opt-outs cannot be read.
const POISONED: &str = "an unreadable key lies on opt-outs";
const WENT_BACK: &str = "the opt-outs topic ends before what was read of it";

/// After a start that read so many records a snapshot is written at once: the next restart shall not read them again.
const WORTH_A_SNAPSHOT: u64 = 1_000;

/// What the applying thread works with.
pub struct Follow {
    pub config: Arc<Config>,
    pub brokers: Brokers,
    pub layout: Arc<Layout>,
    /// The snapshot that was found, and who writes new ones; absent where none is kept.
    pub kept: Option<Kept>,
    pub view: Arc<SharedView>,
    pub status: Arc<Status>,
    pub metrics: Arc<Metrics>,
    pub stop: Stop,
}

/// Snapshots as the applying thread knows them.
pub struct Kept {
    pub snapshots: Arc<Snapshots>,
    /// The one that was found at the start, until it was used.
    pub opened: Option<Opened>,
    pub points: Points,
}

/// Where reading the topic begins, and what is known of what lies before.
struct From {
    positions: Vec<u64>,
    marks: Marks,
    /// Records whose key cannot be read.
    unreadable: BTreeSet<Position>,
}

/// Records that were read and are to be applied.
struct Portion {
    changes: Vec<(Position, Change)>,
    unmet: Unmet,
    /// Everything before these is in the view once they are.
    positions: Vec<u64>,
}

/// So many portions wait at most while a view is restored: memory is bounded, and neither thread waits for each turn.
const PORTIONS: usize = 4;

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
    pub fn run(mut self) -> Result<(), EdgeError> {
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

    fn restore_and_follow(
        &mut self,
        offsets: &OffsetsClient,
        known: &mut Option<Identity>,
        why: &'static str,
    ) -> Result<Option<Again>, EdgeError> {
        let topic = self.config.topics.opt_outs.clone();
        let Some(partitions) = self.retried(|| offsets.partitions(&topic, QUERY_TIMEOUT).ok().flatten()) else { return Ok(None) };
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
            let beginnings = offsets.beginnings(&topic, partitions, QUERY_TIMEOUT).ok()?;
            Some((beginnings, offsets.ends(&topic, partitions, QUERY_TIMEOUT).ok()?))
        });
        let Some((beginnings, ends)) = bounds else { return Ok(None) };
        let mut from = self.resume(beginnings.as_slice(), ends.as_slice(), why);
        let total: u64 = ends.as_slice().iter().zip(&from.positions).map(|(end, from)| end.saturating_sub(*from)).sum();
        let mut follower = Follower::new(&self.config.connection, &self.config.filter_group, &topic, &from.positions)?;
        let mut reader = Reader::new(self.view.print_key(), &self.config.businesses);
        self.view.publish(&from.positions);
        // A shard that is filled by a snapshot would grow to twice its size for a few records.
        let many = total > self.view.read().set().len() as u64 / 4;
        self.view.apply(|view| view.expect_many(many.then_some(total as usize)));
        let looked = || self.look(offsets, known.as_ref());
        if let Some(again) = self.restore(&mut follower, &mut reader, &mut from, ends.as_slice(), many, looked)? {
            return Ok(Some(again));
        }
        let From { mut marks, mut unreadable, .. } = from;
        if self.stop.is_asked() {
            return Ok(None);
        }
        self.end_restore(many, total, began);
        let mut snapshot = SnapshotDue::new(self.config.snapshot_minutes, total);
        let mut looked = Instant::now();
        while !self.stop.is_asked() {
            let turn = self.turn(&mut follower, |records| {
                marks.pass(records);
                self.apply(read(&mut reader, records), reader.unmet(), SLICE, Some(SystemTime::now()), &mut unreadable);
            })?;
            if turn.is_some() {
                return Ok(turn);
            }
            let poison: Vec<Position> = unreadable.difference(&self.config.acknowledged_poison).copied().collect();
            // Before anybody who waits for this position is let through.
            self.view.close((!poison.is_empty()).then_some(POISONED));
            self.view.publish(follower.positions());
            if poison.is_empty() {
                self.status.ready(PART);
                if snapshot.is_due(follower.positions()) {
                    self.take_snapshot(&marks, follower.positions(), &unreadable);
                }
            } else {
                self.status.unready(PART, Unready::Poison { positions: poison.iter().map(ToString::to_string).collect() });
            }
            if self.view.went_back() {
                return Ok(Some(Again::Restore(WENT_BACK)));
            }
            if looked.elapsed() >= LOOK_EVERY {
                looked = Instant::now();
                if suppression::gaps() > self.view.read().allocated_bytes() / BYTES_A_GAP {
                    self.view.pack();
                }
                self.count_entries();
                if let Some(again) = self.look(offsets, known.as_ref()) {
                    return Ok(Some(again));
                }
            }
        }
        Ok(None)
    }

    /// Reads up to `ends` while a second thread applies what was read: each takes about half of the time. Where there are
    /// `many`, the set is told how many entries are still to come, as well as that is known by then: compaction has taken
    /// records, and others are of people who are known already. `look` tells whether the topic is another one by now: its end
    /// might never be reached then.
    fn restore(
        &self,
        follower: &mut Follower,
        reader: &mut Reader<'_>,
        from: &mut From,
        ends: &[u64],
        many: bool,
        look: impl Fn() -> Option<Again>,
    ) -> Result<Option<Again>, EdgeError> {
        let From { marks, unreadable, .. } = from;
        let left = |positions: &[u64]| -> u64 { ends.iter().zip(positions).map(|(end, at)| end.saturating_sub(*at)).sum() };
        let total = left(follower.positions());
        let bar = progress::bar("restoring", Some(total));
        let (mut told, mut looked) = (Instant::now(), Instant::now());
        thread::scope(|scope| {
            let (portions, read_before) = mpsc::sync_channel::<Portion>(PORTIONS);
            let applying = scope.spawn(move || {
                let entries = || self.view.read().set().len();
                let before = entries();
                for Portion { changes, unmet, positions } in read_before {
                    self.apply(changes, unmet, RESTORE_SLICE, None, unreadable);
                    self.view.publish(&positions);
                    if many {
                        let left = left(&positions);
                        let of_one = entries().saturating_sub(before) as f64 / (total - left).max(1) as f64;
                        self.view.apply(|view| view.expect_many(Some((of_one * left as f64) as usize)));
                    }
                }
            });
            while left(follower.positions()) > 0 && !self.stop.is_asked() {
                let mut changes = Vec::new();
                let turn = self.turn(follower, |records| {
                    marks.pass(records);
                    changes = read(reader, records);
                })?;
                if turn.is_some() || self.view.went_back() {
                    return Ok(turn.or(Some(Again::Restore(WENT_BACK))));
                }
                if looked.elapsed() >= LOOK_EVERY {
                    looked = Instant::now();
                    if let Some(again) = look() {
                        return Ok(Some(again));
                    }
                }
                let portion = Portion { changes, unmet: reader.unmet(), positions: follower.positions().to_vec() };
                if portions.send(portion).is_err() {
                    break; // it panicked, and the scope will
                }
                let read = total - left(follower.positions());
                bar.set_position(read);
                if told.elapsed() >= TELL_EVERY {
                    told = Instant::now();
                    tracing::info!(read, of = total, "restoring");
                }
                self.status.unready(PART, Unready::Restoring { read, of: total });
            }
            drop(portions);
            drop(applying);
            Ok(None)
        })
    }

    /// One turn of the follower; what makes everything start again, if anything does.
    fn turn(&self, follower: &mut Follower, each: impl FnMut(&[Followed<'_>])) -> Result<Option<Again>, EdgeError> {
        match follower.turn(WAIT, each)? {
            Turn::Read => Ok(None),
            Turn::OutOfRange => Ok(Some(Again::Restore("the log no longer holds the position that was to be read"))),
            Turn::Broken => {
                self.stop.sleep(RETRY_AFTER);
                let reached = follower.positions().to_vec();
                *follower = Follower::new(&self.config.connection, &self.config.filter_group, &self.config.topics.opt_outs, &reached)?;
                Ok(None)
            }
        }
    }

    fn end_restore(&self, many: bool, records: u64, began: Instant) {
        if many {
            self.view.apply(|view| view.expect_many(None));
            self.view.tighten();
            self.view.pack();
        }
        let seconds = began.elapsed().as_secs_f64();
        self.metrics.restore_seconds.set(seconds);
        self.metrics.restored.set(1);
        self.count_entries();
        tracing::info!(records, seconds, "view restored");
    }

    /// Where reading begins: where the snapshot ends, if there is one and it is of this topic as it stands.
    fn resume(&mut self, beginnings: &[u64], ends: &[u64], why: &'static str) -> From {
        let opened = self.kept.as_mut().and_then(|kept| Some((kept.snapshots.clone(), kept.opened.take()?)));
        if let Some((snapshots, opened)) = opened {
            match self.fit(opened, beginnings, ends) {
                Ok((view, head)) => {
                    let entries = view.set().len();
                    tracing::info!(entries, "snapshot loaded");
                    self.metrics.snapshot_entries.set(entries as i64);
                    self.view.restart_with(view, why);
                    return From {
                        positions: head.partitions.iter().map(|reached| reached.position).collect(),
                        marks: Marks::new(&head.partitions),
                        unreadable: head.unreadable.into_iter().collect(),
                    };
                }
                Err(why) => snapshots.leave_aside(&why),
            }
        }
        let none = vec![Reached::default(); beginnings.len()];
        From { positions: beginnings.to_vec(), marks: Marks::new(&none), unreadable: BTreeSet::new() }
    }

    /// The view in a snapshot, or why it is not one of this topic as it stands.
    fn fit(&self, opened: Opened, beginnings: &[u64], ends: &[u64]) -> Result<(ConsentView, Head), String> {
        if let Some(why) = opened.unfit(&self.view.topic_id(), self.layout.tombstones_ms(), now_ms()) {
            return Err(why.to_owned());
        }
        let head = opened.head.clone();
        let positions: Vec<u64> = head.partitions.iter().map(|reached| reached.position).collect();
        let within = |(at, (beginning, end)): (&u64, (&u64, &u64))| (beginning..=end).contains(&at);
        if positions.len() != beginnings.len() || !positions.iter().zip(beginnings.iter().zip(ends)).all(within) {
            return Err("its positions lie outside of the topic".to_owned());
        }
        if !head.unreadable.iter().all(|at| self.config.acknowledged_poison.contains(at)) {
            return Err("it was taken with records whose key cannot be read, and that are not acknowledged any more".to_owned());
        }
        self.recognise(&head.partitions)?;
        let view = opened.view().map_err(|error| error.to_string())?;
        Ok((view, head))
    }

    /// Whether the last records before the snapshot's positions are those that the topic holds there: a log that was cut and
    /// written anew has others. Compaction may have taken some of them.
    fn recognise(&self, partitions: &[Reached]) -> Result<(), String> {
        let marked = (0..)
            .zip(partitions)
            .filter_map(|(partition, reached)| Some(Span { partition, from: reached.marks.first()?.offset, to: reached.position }));
        let marked: Vec<Span> = marked.collect();
        let mut found = vec![0_usize; partitions.len()];
        let mut others = 0_usize;
        let mut look = |record: &Record<'_>| {
            let partition = record.partition as usize;
            let known = partitions.get(partition).and_then(|reached| reached.marks.iter().find(|mark| mark.offset == record.offset));
            match known {
                Some(known) if *known == mark(record.offset, record.key, record.value) => found[partition] += 1,
                Some(_) => others += 1,
                None => {}
            }
        };
        RangeReader::new(&self.config.connection, &self.config.filter_group, &self.config.topics.opt_outs, &marked)
            .map_err(RangeError::from)
            .and_then(|mut reader| reader.for_each(&mut look))
            .map_err(|error| error.to_string())?;
        if others > 0 || marked.iter().any(|span| found[span.partition as usize] == 0) {
            return Err("the topic holds other records before its positions".to_owned());
        }
        Ok(())
    }

    /// Asks for a snapshot of what is applied now. While one is being written there is no other.
    fn take_snapshot(&self, marks: &Marks, positions: &[u64], unreadable: &BTreeSet<Position>) {
        let Some(kept) = &self.kept else { return };
        let point = Point {
            epoch: self.view.applied().epoch(),
            topic_id: self.view.topic_id(),
            partitions: marks.reached(positions),
            unreadable: unreadable.iter().copied().collect(),
        };
        if kept.points.try_send(point).is_err() {
            tracing::debug!("the last snapshot is still being written");
        }
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

    /// Applies changes, so many at a time while others look up. `now`: where the time that they took is to be told.
    fn apply(
        &self,
        changes: Vec<(Position, Change)>,
        mut unmet: Unmet,
        slice: usize,
        now: Option<SystemTime>,
        unreadable: &mut BTreeSet<Position>,
    ) {
        for slice in changes.chunks(slice) {
            self.view.apply_for(slice.iter().filter_map(|(_, change)| change.person()), |view| {
                unmet.meet(view);
                for (at, change) in slice {
                    self.count(*at, change.apply(view), now, unreadable);
                    view.advance(at.partition, at.offset + 1);
                }
            });
        }
    }

    fn count(&self, at: Position, effect: Effect, now: Option<SystemTime>, unreadable: &mut BTreeSet<Position>) {
        match effect {
            Effect::UnreadableKey => {
                self.metrics.consent_unreadable.get_or_create(&Part { part: "key" }).inc();
                unreadable.insert(at);
                if !self.config.acknowledged_poison.contains(&at) {
                    tracing::error!(position = %at, "unreadable key on opt-outs: the fence is closed");
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

/// What records say, before anything is applied.
fn read(reader: &mut Reader<'_>, records: &[Followed<'_>]) -> Vec<(Position, Change)> {
    let read = |record: &Followed<'_>| {
        let at = Position { partition: record.partition, offset: record.offset };
        (at, reader.read(&Written { at, timestamp_ms: record.timestamp_ms, key: record.key, value: record.value }))
    };
    records.iter().map(read).collect()
}

/// When the next snapshot is to be taken.
struct SnapshotDue {
    every: Option<Duration>,
    at: Option<Instant>,
    /// Positions of the last one.
    taken: Vec<u64>,
}

impl SnapshotDue {
    /// After a restore of so many records.
    fn new(minutes: u64, records: u64) -> Self {
        let every = (minutes > 0).then(|| Duration::from_secs(minutes.saturating_mul(60)));
        let wait = every.map(|every| if records >= WORTH_A_SNAPSHOT { Duration::ZERO } else { every });
        Self { every, at: wait.and_then(|wait| Instant::now().checked_add(wait)), taken: Vec::new() }
    }

    /// Whether it is time for one, and something new to put into it.
    fn is_due(&mut self, positions: &[u64]) -> bool {
        let (Some(every), Some(at)) = (self.every, self.at) else { return false };
        if Instant::now() < at {
            return false;
        }
        self.at = Instant::now().checked_add(every);
        let is_new = self.taken != positions;
        self.taken.clear();
        self.taken.extend_from_slice(positions);
        is_new
    }
}

fn seconds_since(at: Timestamp, now: SystemTime) -> f64 {
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as f64;
    ((now - at.millis() as f64) / 1000.0).max(0.0)
}
