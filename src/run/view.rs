//! The view, shared between the thread that applies and the threads that look up; and the wait for a position.

use crate::domain::suppression::{self, PersonPrint, PrintKey, SHARDS};
use crate::domain::view::ConsentView;
use crate::kafka::offsets::Offsets;
use parking_lot::{Condvar, Mutex, RwLock, RwLockReadGuard, RwLockUpgradableReadGuard, RwLockWriteGuard};
use std::num::NonZero;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

/// Why the fence does not open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Closed {
    /// The view has not reached the end of this partition in time.
    Behind { partition: u32, applied: u64, end: u64 },
    /// The log ends before what was applied: it is not the log that was read.
    WentBack { partition: u32, applied: u64, end: u64 },
    /// The view says of itself that it must not be used.
    View(&'static str),
}

struct Gate {
    applied: Vec<u64>,
    /// Counts views: positions of one say nothing about another.
    epoch: u64,
    /// Why nobody may look up, however far the view has come.
    closed: Option<&'static str>,
    /// A fence found that the log went back: the applying thread starts again.
    went_back: bool,
    /// The broker's id of the topic that was read; empty where it does not tell.
    topic_id: String,
}

/// Shards tightened between two turns at the view's lock: to hand it from thread to thread takes as long as a small one of them.
const TIGHTENED_AT_ONCE: usize = 32;

/// The view and how far it has come. Where both locks are held, the view's is taken first.
pub struct SharedView {
    view: RwLock<ConsentView>,
    gate: Mutex<Gate>,
    moved: Condvar,
    /// Fingerprints are made under one key for the life of the process: a view that is restored again keeps it.
    print_key: PrintKey,
}

impl SharedView {
    /// An empty view, closed until the first restore is done.
    pub fn new(print_key: PrintKey) -> Self {
        Self {
            view: RwLock::new(ConsentView::new(print_key, 0)),
            gate: Mutex::new(Gate {
                applied: Vec::new(),
                epoch: 0,
                closed: Some("not restored yet"),
                went_back: false,
                topic_id: String::new(),
            }),
            moved: Condvar::new(),
            print_key,
        }
    }

    /// The key under which fingerprints are made.
    pub fn print_key(&self) -> PrintKey {
        self.print_key
    }

    /// The view as it is, for figures and for what no consent concerns.
    pub fn read(&self) -> RwLockReadGuard<'_, ConsentView> {
        self.view.read()
    }

    /// The view for look-ups after a fence; nothing is applied while it is held. `None` where the view was made anew or
    /// closed since the fence opened: what it holds now was not what the fence waited for.
    pub fn read_after(&self, passed: Passed) -> Option<RwLockReadGuard<'_, ConsentView>> {
        let view = self.view.read();
        let gate = self.gate.lock();
        (gate.epoch == passed.epoch && gate.closed.is_none()).then_some(view)
    }

    /// The view that is of this epoch; `None` where it was made anew since.
    pub fn read_of(&self, epoch: u64) -> Option<RwLockReadGuard<'_, ConsentView>> {
        let view = self.view.read();
        let is_this = self.gate.lock().epoch == epoch;
        is_this.then_some(view)
    }

    /// Starts over with an empty view of a topic of that many partitions.
    pub fn restart(&self, partitions: u32, why: &'static str) {
        self.restart_with(ConsentView::new(self.print_key, partitions), why);
    }

    /// Starts over with this view, made under the same key.
    pub fn restart_with(&self, new: ConsentView, why: &'static str) {
        let applied = new.applied().to_vec();
        let mut view = self.view.write();
        let mut gate = self.gate.lock();
        let before = std::mem::replace(&mut *view, new);
        gate.applied = applied;
        gate.epoch += 1;
        gate.closed = Some(why);
        gate.went_back = false;
        self.moved.notify_all();
        drop((gate, view));
        // Millions of entries are given back while nobody waits.
        drop(before);
        suppression::trim();
    }

    /// The topic that is read from now on.
    pub fn identify(&self, topic_id: &str) {
        self.gate.lock().topic_id = topic_id.to_owned();
    }

    /// The broker's id of the topic that the view was read from.
    pub fn topic_id(&self) -> String {
        self.gate.lock().topic_id.clone()
    }

    /// Applies to the view. Positions of what is applied are advanced within the same lock, so that a look-up never
    /// sees a state without its position.
    ///
    /// To be kept short: look-ups wait meanwhile. Those that do come next, also where the caller applies on and on.
    pub fn apply<T>(&self, change: impl FnOnce(&mut ConsentView) -> T) -> T {
        self.apply_for(std::iter::empty(), change)
    }

    /// Applies acts of these persons to the view. What takes long is done before, while others look up: what the acts
    /// will touch is brought near, shards of the set that have no room are made larger. Nothing else is applied between.
    pub fn apply_for<T>(&self, persons: impl Iterator<Item = PersonPrint> + Clone, change: impl FnOnce(&mut ConsentView) -> T) -> T {
        let view = self.view.upgradable_read();
        let mut relief = view.relief(persons.clone());
        view.prefetch_rows(persons);
        let mut view = RwLockUpgradableReadGuard::upgrade(view);
        view.relieve(&mut relief);
        let done = change(&mut view);
        RwLockWriteGuard::unlock_fair(view);
        done
    }

    /// Gives back what all shards of the set have unused, on all processors. For whoever applies, and applies nothing meanwhile.
    pub fn tighten(&self) {
        let threads = thread::available_parallelism().map_or(1, NonZero::get);
        let shards = AtomicUsize::new(0);
        let some = || {
            while let first @ ..SHARDS = shards.fetch_add(TIGHTENED_AT_ONCE, Ordering::Relaxed) {
                let mut tight = self.read().set().tightened(first..SHARDS.min(first + TIGHTENED_AT_ONCE));
                self.apply(|view| view.relieve(&mut tight));
            }
        };
        thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(some))));
    }

    /// Closes the gaps that growth left between the set's tables, and gives back what no table needs. Look-ups pass between
    /// one table and the next.
    pub fn pack(&self) {
        let tables = self.read().set().tables();
        tables.into_iter().for_each(|table| self.apply(|view| view.slide(table)));
        suppression::trim();
    }

    /// Publishes positions: everything before them is in the view.
    pub fn publish(&self, positions: &[u64]) {
        {
            let mut view = self.view.write();
            for (partition, position) in (0..).zip(positions) {
                view.advance(partition, *position);
            }
        }
        let mut gate = self.gate.lock();
        if gate.applied != positions {
            gate.applied.clear();
            gate.applied.extend_from_slice(positions);
            self.moved.notify_all();
        }
    }

    /// Closes the view for a reason, or opens it.
    pub fn close(&self, why: Option<&'static str>) {
        let mut gate = self.gate.lock();
        if gate.closed != why {
            gate.closed = why;
            self.moved.notify_all();
        }
    }

    /// Whether a fence found that the log went back.
    pub fn went_back(&self) -> bool {
        self.gate.lock().went_back
    }

    /// How far the view has come, by partition: to be taken before the ends are asked for.
    pub fn applied(&self) -> Applied {
        let gate = self.gate.lock();
        Applied { epoch: gate.epoch, positions: gate.applied.clone() }
    }

    /// Waits until everything before `ends` is in the view. `ends` must have been asked for after whatever is to be
    /// decided was received, and `before` taken before they were asked for: a log whose end lies below what had been
    /// applied already is another log than the one that was read.
    pub fn wait(&self, ends: &Offsets, before: &Applied, deadline: Instant) -> Result<Passed, Closed> {
        let ends = ends.as_slice();
        let mut gate = self.gate.lock();
        if gate.epoch == before.epoch
            && let Some((partition, end, applied)) = behind(ends, &before.positions)
        {
            gate.went_back = true;
            return Err(Closed::WentBack { partition, applied, end });
        }
        loop {
            let late = match gate.closed {
                Some(why) => Closed::View(why),
                None if gate.epoch != before.epoch || gate.applied.len() != ends.len() => return Err(Closed::View("the view was made anew")),
                None => match behind(&gate.applied, ends) {
                    None => return Ok(Passed { epoch: gate.epoch }),
                    Some((partition, applied, end)) => Closed::Behind { partition, applied, end },
                },
            };
            if self.moved.wait_until(&mut gate, deadline).timed_out() {
                return Err(late);
            }
        }
    }
}

/// The proof that a fence opened on one view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Passed {
    epoch: u64,
}

/// Positions of one view.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    epoch: u64,
    positions: Vec<u64>,
}

impl Applied {
    /// The view that they are positions of.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Number of partitions.
    pub fn partitions(&self) -> u32 {
        self.positions.len() as u32
    }

    /// Records before these ends that were not applied yet.
    pub fn lag(&self, ends: &Offsets) -> u64 {
        self.positions.iter().zip(ends.as_slice()).map(|(applied, end)| end.saturating_sub(*applied)).sum()
    }
}

/// The first partition in which the first offset is below the second.
fn behind(applied: &[u64], ends: &[u64]) -> Option<(u32, u64, u64)> {
    (0..).zip(applied.iter().zip(ends)).find(|(_, (applied, end))| applied < end).map(|(partition, (&applied, &end))| (partition, applied, end))
}

impl std::fmt::Display for Closed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Behind { partition, applied, end } => write!(f, "opt-outs partition {partition} is applied up to {applied} of {end}"),
            Self::WentBack { partition, applied, end } => {
                write!(f, "opt-outs partition {partition} ends at {end}, below {applied} that was applied: it is read again")
            }
            Self::View(why) => f.write_str(why),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::consent::{Act, ConsentState, Position, Source};
    use crate::domain::key::{Channel, Subject};
    use crate::domain::suppression::SlotPrint;
    use crate::domain::time::Timestamp;
    use std::time::Duration;

    fn shared(positions: &[u64]) -> SharedView {
        let shared = SharedView::new(PrintKey::new(1, 2));
        shared.restart(positions.len() as u32, "restoring");
        shared.publish(positions);
        shared.close(None);
        shared
    }

    const PERSONS: u64 = 60_000;

    fn slot(shared: &SharedView) -> SlotPrint {
        shared.print_key().slot(&Channel::Whatsapp, &Subject::Marketing)
    }

    fn person(shared: &SharedView, number: u64) -> PersonPrint {
        shared.print_key().person_of("acme", "phone", &number.to_le_bytes())
    }

    fn act(number: u64) -> Act {
        Act {
            state: ConsentState::OptedOut,
            occurred_at: Timestamp::EPOCH.plus_millis(number as i64),
            source: Source::default(),
            cause: Position { partition: 0, offset: number },
            changed_state: true,
        }
    }

    fn apply(shared: &SharedView, number: u64) {
        shared.apply(|view| view.apply_to(person(shared, number), slot(shared), act(number), None));
    }

    fn is_known(shared: &SharedView, number: u64) -> bool {
        shared.read().standing(person(shared, number), slot(shared)) == Some(act(number))
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_millis(20)
    }

    #[test]
    fn the_fence_opens_once_the_view_has_reached_the_ends() {
        let shared = shared(&[5, 7]);
        let before = shared.applied();
        assert!(shared.wait(&Offsets::new(vec![5, 7]), &before, soon()).is_ok());
        let behind = Closed::Behind { partition: 1, applied: 7, end: 8 };
        assert_eq!(shared.wait(&Offsets::new(vec![5, 8]), &before, soon()), Err(behind));
    }

    #[test]
    fn a_waiter_is_woken_by_the_applier() {
        let shared = shared(&[5]);
        let before = shared.applied();
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| shared.wait(&Offsets::new(vec![6]), &before, Instant::now() + Duration::from_secs(10)));
            shared.publish(&[6]);
            assert!(waiter.join().expect("no panic").is_ok());
        });
    }

    #[test]
    fn look_ups_between_two_tables_that_are_packed_find_everybody() {
        let shared = shared(&[0]);
        std::thread::scope(|scope| {
            let packing = scope.spawn(|| (0..20).for_each(|_| shared.pack()));
            for number in 0..PERSONS {
                apply(&shared, number);
                assert!(is_known(&shared, number / 2));
            }
            packing.join().expect("no panic");
        });
        shared.pack();
        assert!((0..PERSONS).all(|number| is_known(&shared, number)));
    }

    #[test]
    fn shards_that_are_tightened_on_all_processors_hold_everybody_in_less() {
        let shared = shared(&[0]);
        shared.apply(|view| view.expect_many(Some(10 * PERSONS as usize)));
        (0..PERSONS).for_each(|number| apply(&shared, number));
        shared.apply(|view| view.expect_many(None));
        let before = shared.read().allocated_bytes();
        shared.tighten();
        assert!((0..PERSONS).all(|number| is_known(&shared, number)));
        let after = shared.read().allocated_bytes();
        assert!(after < before * 9 / 10, "{after} of {before}");
    }

    #[test]
    fn a_log_that_is_shorter_than_what_was_applied_is_another_log() {
        let shared = shared(&[5]);
        let before = shared.applied();
        assert_eq!(shared.wait(&Offsets::new(vec![4]), &before, soon()), Err(Closed::WentBack { partition: 0, applied: 5, end: 4 }));
        assert!(shared.went_back());
    }

    #[test]
    fn more_applied_than_asked_for_is_no_other_log() {
        let shared = shared(&[5]);
        let before = shared.applied();
        shared.publish(&[9]);
        assert!(shared.wait(&Offsets::new(vec![6]), &before, soon()).is_ok());
    }

    #[test]
    fn a_view_that_was_made_anew_after_the_fence_is_not_looked_up() {
        let shared = shared(&[5]);
        let passed = shared.wait(&Offsets::new(vec![5]), &shared.applied(), soon()).expect("open");
        assert!(shared.read_after(passed).is_some());
        shared.close(Some("poison"));
        assert!(shared.read_after(passed).is_none());
        shared.restart(1, "restoring again");
        shared.close(None);
        assert!(shared.read_after(passed).is_none());
    }

    #[test]
    fn a_closed_view_and_a_view_of_other_partitions_open_no_fence() {
        let shared = shared(&[5]);
        let before = shared.applied();
        assert!(shared.wait(&Offsets::new(vec![5, 0]), &before, soon()).is_err());
        shared.close(Some("poison"));
        assert_eq!(shared.wait(&Offsets::new(vec![5]), &before, soon()), Err(Closed::View("poison")));
        shared.restart(1, "restoring again");
        shared.close(None);
        assert!(shared.wait(&Offsets::new(vec![0]), &before, soon()).is_err());
    }
}
