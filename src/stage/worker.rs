//! What a worker does next: begin, send, commit, abort, hold, rewind, as a state machine without I/O.
//!
//! A driver owns the clients, asks [`Worker::next`] for a step, carries it out and tells the outcome. The machine owns
//! the order of things, on which the promises rest:
//!
//! * a batch is decided only after a fence that was asked for *after* it was received;
//! * what a transaction holds is committed before partitions are taken, and before a hold; it is aborted before any are given: when
//!   a group asks for partitions it has assigned them anew already, and a member that comes back from the dead may have some of
//!   them by then, as of the positions that were committed before;
//! * a position is committed only with the outcomes of everything before it;
//! * after an abort, an unknown result or a lost producer everything starts again at the committed positions;
//! * a hold ends by the fence, and by nothing else (expired sends leave it as suppressed).
//!
//! What is absent: clients, threads, clocks. Time is milliseconds of any monotonic clock, as an argument.

use crate::record::{Rebalance, TopicPartition};
use std::collections::{BTreeMap, VecDeque};

/// When a worker must wait for the view before it decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fencing {
    /// Once for every received batch: the filter.
    EveryBatch,
    /// Once after partitions were taken, a transaction was aborted or a producer was renewed: detect, whose own writes
    /// are an overlay on the view.
    AfterChange,
    /// Never: sends that no consent concerns.
    Never,
}

/// How a worker goes about its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    pub fencing: Fencing,
    /// Whether positions are committed for partitions that had no records too, past transaction markers. Detect does,
    /// because the fence at level `inbound` waits for them; the filter does not, because its blocks tile the input.
    pub commits_idle_positions: bool,
    /// A transaction ends after this time even if there is more to do.
    pub transaction_ms: u64,
    /// How long a fence is waited for before the worker holds.
    pub fence_patience_ms: u64,
    /// While holding: how long between two fences.
    pub hold_retry_ms: u64,
    /// How long an idle worker waits for records.
    pub idle_wait_ms: u64,
}

/// What the driver must do now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Receive records, waiting at most so long for the first; then [`Worker::received`].
    Receive { wait_ms: u64 },
    /// Ask for the ends now, and wait at most so long until the view has reached them; then [`Worker::fenced`].
    Fence { patience_ms: u64 },
    /// Decide all received records at one position of the view, within a transaction that is begun if there is none;
    /// then [`Worker::decided`].
    Decide,
    /// While holding: let sends that have expired leave, in order; then [`Worker::expired`].
    Expire,
    /// Wait until all that must be durable first is, then commit the transaction (begun if there is none) with
    /// [`Worker::uncommitted`]; then [`Worker::committed`].
    Commit,
    /// Abort the transaction, drop received records, read again from [`Worker::rewind_positions`]; then
    /// [`Worker::aborted`].
    Abort,
    /// Make a new producer, drop received records, read the committed positions; then [`Worker::renewed`].
    Renew,
    /// Take these partitions; then [`Worker::taken`].
    Take(Vec<TopicPartition>),
    /// Give these partitions back and drop what was received of them; then [`Worker::given`].
    Give(Vec<TopicPartition>),
    /// Stop reading all partitions; then [`Worker::paused`].
    Pause,
    /// Read all partitions again; then [`Worker::resumed`].
    Resume,
    /// Leave. Nothing is open.
    Stop,
}

/// How a commit, or anything within a transaction, ended badly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// The transaction is lost; its producer is not.
    Abort,
    /// The producer is lost, or the result is unknown.
    Renew,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Progress {
    /// Everything before this offset has its outcome, in a committed or in the open transaction.
    decided: u64,
    /// The group's committed position, where it has one.
    committed: Option<u64>,
    /// Where reading began, should there be no committed position.
    began: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Hold {
    paused: bool,
    /// The fence opened: resume, then decide.
    over: bool,
    retry_at_ms: u64,
    /// Expired sends were let go since the last fence.
    expired: bool,
}

/// The state machine of one worker.
#[derive(Debug)]
pub struct Worker {
    pace: Pace,
    partitions: BTreeMap<TopicPartition, Progress>,
    open_since_ms: Option<u64>,
    pending: bool,
    /// So many records were received that more are at hand.
    more: bool,
    fenced: bool,
    /// Nothing was received since everything started again. The client tells what the group asks only while it receives:
    /// a member that the group has forgotten must hear of it before it commits once more, or it never would.
    deaf: bool,
    hold: Option<Hold>,
    asked: VecDeque<Rebalance>,
    trouble: Option<Trouble>,
    stopping: bool,
}

impl Worker {
    /// A worker that owns no partitions yet.
    pub fn new(pace: Pace) -> Self {
        Self {
            pace,
            partitions: BTreeMap::new(),
            open_since_ms: None,
            pending: false,
            more: false,
            fenced: pace.fencing == Fencing::Never,
            deaf: false,
            hold: None,
            asked: VecDeque::new(),
            trouble: None,
            stopping: false,
        }
    }

    /// What to do now.
    pub fn next(&mut self, now_ms: u64) -> Step {
        match self.trouble {
            Some(Trouble::Renew) => return Step::Renew,
            Some(Trouble::Abort) if self.open_since_ms.is_some() => return Step::Abort,
            Some(Trouble::Abort) | None => {}
        }
        if let Some(asked) = self.asked.front() {
            return match (asked, self.open_since_ms) {
                (Rebalance::Give(_), Some(_)) => Step::Abort,
                (Rebalance::Take(_), Some(_)) => Step::Commit,
                (Rebalance::Take(partitions), None) => Step::Take(partitions.clone()),
                (Rebalance::Give(partitions), None) => Step::Give(partitions.clone()),
            };
        }
        if self.stopping {
            return if self.open_since_ms.is_some() { Step::Commit } else { Step::Stop };
        }
        if let Some(hold) = self.hold {
            return self.next_in_hold(hold, now_ms);
        }
        if self.pending {
            return match self.open_since_ms {
                _ if self.fenced => Step::Decide,
                Some(since) if self.is_due(since, now_ms) => Step::Commit,
                // A fence that opens at once lets the transaction go on; none stays open over a hold.
                Some(since) => Step::Fence { patience_ms: (since + self.pace.transaction_ms).saturating_sub(now_ms) },
                None => Step::Fence { patience_ms: self.pace.fence_patience_ms },
            };
        }
        match self.open_since_ms {
            Some(since) if !self.more || self.is_due(since, now_ms) => Step::Commit,
            Some(_) => Step::Receive { wait_ms: 0 },
            None if self.pace.commits_idle_positions && !self.deaf && !self.uncommitted().is_empty() => Step::Commit,
            None => Step::Receive { wait_ms: self.pace.idle_wait_ms },
        }
    }

    fn next_in_hold(&mut self, hold: Hold, now_ms: u64) -> Step {
        if self.open_since_ms.is_some() {
            return Step::Commit;
        }
        if hold.over {
            return Step::Resume;
        }
        if !hold.paused {
            return Step::Pause;
        }
        if now_ms < hold.retry_at_ms {
            return Step::Receive { wait_ms: (hold.retry_at_ms - now_ms).min(self.pace.idle_wait_ms) };
        }
        if !hold.expired {
            return Step::Expire;
        }
        Step::Fence { patience_ms: self.pace.fence_patience_ms }
    }

    fn is_due(&self, since_ms: u64, now_ms: u64) -> bool {
        now_ms >= since_ms + self.pace.transaction_ms
    }

    /// Records were received (`any`), perhaps so many that there are more (`more`).
    pub fn received(&mut self, any: bool, more: bool) {
        self.more = more;
        self.deaf = false;
        if any {
            self.pending = true;
            if self.pace.fencing == Fencing::EveryBatch {
                self.fenced = false;
            }
        }
    }

    /// The group asks for something.
    pub fn asked(&mut self, rebalance: Rebalance) {
        self.asked.push_back(rebalance);
    }

    /// The fence opened (`true`), or it did not within the patience given.
    pub fn fenced(&mut self, open: bool, now_ms: u64) {
        match (open, &mut self.hold) {
            (true, None) => self.fenced = true,
            (true, Some(hold)) => {
                self.fenced = true;
                hold.over = true;
            }
            // A transaction was in the way of full patience: commit it first, then ask again.
            (false, None) if self.open_since_ms.is_some() => {}
            (false, None) => {
                self.hold = Some(Hold { paused: false, over: false, retry_at_ms: now_ms, expired: false });
            }
            (false, Some(hold)) => {
                hold.retry_at_ms = now_ms + self.pace.hold_retry_ms;
                hold.expired = false;
            }
        }
    }

    /// All received records were decided; `next` is the offset after the last one of each partition.
    pub fn decided(&mut self, next: &BTreeMap<TopicPartition, u64>, now_ms: u64) {
        self.pending = false;
        self.advance(next);
        self.open_since_ms.get_or_insert(now_ms);
    }

    /// The expired sends at the head of their partitions were decided; `left`: records that go on waiting.
    pub fn expired(&mut self, next: &BTreeMap<TopicPartition, u64>, left: bool, now_ms: u64) {
        self.pending = left;
        if let Some(hold) = &mut self.hold {
            hold.expired = true;
            hold.over |= !left;
        }
        if !next.is_empty() {
            self.advance(next);
            self.open_since_ms.get_or_insert(now_ms);
        }
    }

    fn advance(&mut self, next: &BTreeMap<TopicPartition, u64>) {
        for (partition, next) in next {
            if let Some(progress) = self.partitions.get_mut(partition) {
                progress.decided = progress.decided.max(*next);
            }
        }
    }

    /// How far the client has read, past markers. Counts only while nothing received waits for its outcome.
    pub fn read_up_to(&mut self, positions: &BTreeMap<TopicPartition, u64>) {
        if self.pace.commits_idle_positions && !self.pending {
            self.advance(positions);
        }
    }

    /// The transaction was committed, with the positions of [`Worker::uncommitted`].
    pub fn committed(&mut self) {
        self.open_since_ms = None;
        for progress in self.partitions.values_mut() {
            if progress.decided != progress.began || self.pace.commits_idle_positions {
                progress.committed = Some(progress.decided);
            }
        }
    }

    /// Something went wrong with the transaction or its producer.
    pub fn failed(&mut self, trouble: Trouble) {
        // A transaction that could not even begin is treated as open: aborting what is not open does no harm.
        self.open_since_ms.get_or_insert(0);
        self.trouble = Some(match (self.trouble, trouble) {
            (Some(Trouble::Renew), _) | (_, Trouble::Renew) => Trouble::Renew,
            (Some(Trouble::Abort) | None, Trouble::Abort) => Trouble::Abort,
        });
    }

    /// The transaction was aborted and reading starts again at [`Worker::rewind_positions`].
    pub fn aborted(&mut self) {
        for progress in self.partitions.values_mut() {
            progress.decided = progress.committed.unwrap_or(progress.began);
        }
        self.start_again();
    }

    /// A new producer stands, and these are the group's committed positions.
    pub fn renewed(&mut self, committed: &BTreeMap<TopicPartition, Option<u64>>) {
        for (partition, committed) in committed {
            if let Some(progress) = self.partitions.get_mut(partition) {
                progress.committed = *committed;
                progress.decided = committed.unwrap_or(progress.began);
            }
        }
        self.start_again();
    }

    fn start_again(&mut self) {
        self.trouble = None;
        self.open_since_ms = None;
        self.pending = false;
        self.more = true;
        self.deaf = true;
        self.must_fence();
    }

    fn must_fence(&mut self) {
        self.fenced = self.pace.fencing == Fencing::Never;
    }

    /// The partitions of the first request were taken, each at an offset that is its committed position or not.
    /// Partitions left out are stuck: never read, never committed.
    pub fn taken(&mut self, starts: &[(TopicPartition, u64, Option<u64>)]) {
        self.asked.pop_front();
        for (partition, began, committed) in starts {
            self.partitions.insert(partition.clone(), Progress { decided: *began, committed: *committed, began: *began });
        }
        self.must_fence();
    }

    /// The partitions of the first request were given back; `left`: received records of other partitions still wait.
    pub fn given(&mut self, left: bool) {
        if let Some(Rebalance::Give(partitions)) = self.asked.pop_front() {
            for partition in &partitions {
                self.partitions.remove(partition);
            }
        }
        self.pending = left;
    }

    /// A partition cannot be read on: its position lies outside of its log. It is neither read nor committed any more.
    pub fn stuck(&mut self, partition: &TopicPartition) {
        self.partitions.remove(partition);
    }

    /// All partitions are paused.
    pub fn paused(&mut self) {
        if let Some(hold) = &mut self.hold {
            hold.paused = true;
        }
    }

    /// All partitions are read again: the hold is over.
    pub fn resumed(&mut self) {
        self.hold = None;
    }

    /// Commit what is decided, then leave.
    pub fn stop(&mut self) {
        self.stopping = true;
    }

    /// Whether the worker waits for the fence with its partitions paused.
    pub fn is_holding(&self) -> bool {
        self.hold.is_some_and(|hold| !hold.over)
    }

    /// Whether something went wrong that was not mended yet.
    pub fn is_in_trouble(&self) -> bool {
        self.trouble.is_some()
    }

    /// Whether a transaction is open.
    pub fn is_open(&self) -> bool {
        self.open_since_ms.is_some()
    }

    /// The partitions that are read.
    pub fn partitions(&self) -> impl Iterator<Item = &TopicPartition> {
        self.partitions.keys()
    }

    /// The offset after the last decided record: where the next block of a partition begins.
    pub fn decided_up_to(&self, partition: &TopicPartition) -> Option<u64> {
        self.partitions.get(partition).map(|progress| progress.decided)
    }

    /// The positions that the next commit must carry.
    pub fn uncommitted(&self) -> BTreeMap<TopicPartition, u64> {
        let idle_too = self.pace.commits_idle_positions;
        let changed = self.partitions.iter().filter(|(_, progress)| match progress.committed {
            Some(committed) => progress.decided != committed,
            None => idle_too || progress.decided != progress.began,
        });
        changed.map(|(partition, progress)| (partition.clone(), progress.decided)).collect()
    }

    /// Where to read from after an abort or with a new producer.
    pub fn rewind_positions(&self) -> Vec<(TopicPartition, u64)> {
        let from = |progress: &Progress| progress.committed.unwrap_or(progress.began);
        self.partitions.iter().map(|(partition, progress)| (partition.clone(), from(progress))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACE: Pace = Pace {
        fencing: Fencing::EveryBatch,
        commits_idle_positions: false,
        transaction_ms: 100,
        fence_patience_ms: 2000,
        hold_retry_ms: 200,
        idle_wait_ms: 100,
    };

    fn partition(number: u32) -> TopicPartition {
        ("sends".into(), number)
    }

    fn at(offset: u64) -> BTreeMap<TopicPartition, u64> {
        [(partition(0), offset)].into()
    }

    /// A worker that owns partition 0 from offset 10.
    fn owner(pace: Pace) -> Worker {
        let mut worker = Worker::new(pace);
        worker.asked(Rebalance::Take(vec![partition(0)]));
        assert_eq!(worker.next(0), Step::Take(vec![partition(0)]));
        worker.taken(&[(partition(0), 10, Some(10))]);
        worker
    }

    #[test]
    fn a_batch_is_fenced_after_it_was_received_and_committed_once_the_input_is_drained() {
        let mut worker = owner(PACE);
        assert_eq!(worker.next(0), Step::Receive { wait_ms: 100 });
        worker.received(true, false);
        assert_eq!(worker.next(0), Step::Fence { patience_ms: 2000 });
        worker.fenced(true, 1);
        assert_eq!(worker.next(1), Step::Decide);
        worker.decided(&at(15), 1);
        assert_eq!(worker.uncommitted(), at(15));
        assert_eq!(worker.next(2), Step::Commit);
        worker.committed();
        assert!(worker.uncommitted().is_empty());
        assert_eq!(worker.next(3), Step::Receive { wait_ms: 100 });
    }

    #[test]
    fn every_batch_needs_a_fence_of_its_own() {
        let mut worker = owner(PACE);
        worker.received(true, true);
        worker.fenced(true, 0);
        worker.decided(&at(15), 0);
        assert_eq!(worker.next(1), Step::Receive { wait_ms: 0 });
        worker.received(true, true);
        assert_eq!(worker.next(10), Step::Fence { patience_ms: 90 });
    }

    #[test]
    fn a_transaction_ends_after_its_time_although_there_is_more_to_do() {
        let mut worker = owner(PACE);
        worker.received(true, true);
        worker.fenced(true, 0);
        worker.decided(&at(15), 0);
        worker.received(true, true);
        assert_eq!(worker.next(100), Step::Commit);
    }

    #[test]
    fn no_transaction_stays_open_over_a_hold() {
        let mut worker = owner(PACE);
        worker.received(true, true);
        worker.fenced(true, 0);
        worker.decided(&at(15), 0);
        worker.received(true, true);
        assert_eq!(worker.next(1), Step::Fence { patience_ms: 99 });
        worker.fenced(false, 100);
        assert_eq!(worker.next(100), Step::Commit);
        worker.committed();
        assert_eq!(worker.next(101), Step::Fence { patience_ms: 2000 });
        worker.fenced(false, 2101);
        assert_eq!(worker.next(2101), Step::Pause);
        assert!(worker.is_holding());
    }

    #[test]
    fn a_hold_polls_retries_and_ends_by_the_fence_alone() {
        let mut worker = owner(PACE);
        worker.received(true, false);
        worker.fenced(false, 0);
        assert_eq!(worker.next(0), Step::Pause);
        worker.paused();
        assert_eq!(worker.next(0), Step::Expire);
        worker.expired(&BTreeMap::new(), true, 0);
        assert_eq!(worker.next(0), Step::Fence { patience_ms: 2000 });
        worker.fenced(false, 2000);
        assert_eq!(worker.next(2000), Step::Receive { wait_ms: 100 });
        worker.received(false, false);
        assert_eq!(worker.next(2200), Step::Expire);
        worker.expired(&BTreeMap::new(), true, 2200);
        assert_eq!(worker.next(2200), Step::Fence { patience_ms: 2000 });
        worker.fenced(true, 2300);
        assert_eq!(worker.next(2300), Step::Resume);
        worker.resumed();
        assert_eq!(worker.next(2300), Step::Decide);
    }

    #[test]
    fn expired_sends_leave_a_hold_in_a_transaction_of_their_own() {
        let mut worker = owner(PACE);
        worker.received(true, false);
        worker.fenced(false, 0);
        worker.paused();
        worker.expired(&at(11), true, 5);
        assert_eq!(worker.next(5), Step::Commit);
        assert_eq!(worker.uncommitted(), at(11));
        worker.committed();
        assert_eq!(worker.next(6), Step::Fence { patience_ms: 2000 });
    }

    #[test]
    fn an_abort_goes_back_to_the_committed_position() {
        let mut worker = owner(PACE);
        worker.received(true, true);
        worker.fenced(true, 0);
        worker.decided(&at(15), 0);
        worker.failed(Trouble::Abort);
        assert_eq!(worker.next(1), Step::Abort);
        assert_eq!(worker.rewind_positions(), [(partition(0), 10)]);
        worker.aborted();
        assert_eq!(worker.decided_up_to(&partition(0)), Some(10));
        assert_eq!(worker.next(2), Step::Receive { wait_ms: 100 });
    }

    #[test]
    fn an_unknown_commit_result_asks_the_group_where_it_stands() {
        let mut worker = owner(PACE);
        worker.received(true, false);
        worker.fenced(true, 0);
        worker.decided(&at(15), 0);
        worker.failed(Trouble::Renew);
        assert_eq!(worker.next(1), Step::Renew);
        worker.renewed(&[(partition(0), Some(15))].into());
        assert_eq!(worker.decided_up_to(&partition(0)), Some(15));
        assert!(worker.uncommitted().is_empty());
    }

    #[test]
    fn partitions_are_taken_after_the_commit_and_given_after_an_abort() {
        let mut worker = owner(PACE);
        let decide = |worker: &mut Worker| {
            worker.received(true, true);
            worker.fenced(true, 0);
            worker.decided(&at(15), 0);
        };
        decide(&mut worker);
        worker.asked(Rebalance::Take(vec![partition(1)]));
        assert_eq!(worker.next(1), Step::Commit);
        worker.committed();
        assert_eq!(worker.next(1), Step::Take(vec![partition(1)]));
        worker.taken(&[(partition(1), 0, None)]);

        decide(&mut worker);
        worker.asked(Rebalance::Give(vec![partition(0)]));
        assert_eq!(worker.next(1), Step::Abort);
        worker.aborted();
        assert_eq!(worker.next(1), Step::Give(vec![partition(0)]));
        worker.given(false);
        assert!(worker.partitions().eq([&partition(1)]));
        assert_eq!(worker.next(1), Step::Receive { wait_ms: 100 });
    }

    #[test]
    fn detect_fences_once_after_each_change_and_commits_idle_positions() {
        let mut worker = owner(Pace { fencing: Fencing::AfterChange, commits_idle_positions: true, ..PACE });
        worker.read_up_to(&at(12));
        assert_eq!(worker.next(0), Step::Commit);
        assert_eq!(worker.uncommitted(), at(12));
        worker.committed();
        worker.received(true, true);
        assert_eq!(worker.next(0), Step::Fence { patience_ms: 2000 });
        worker.fenced(true, 0);
        worker.decided(&at(15), 0);
        worker.received(true, true);
        assert_eq!(worker.next(1), Step::Decide);
        worker.failed(Trouble::Abort);
        worker.aborted();
        worker.received(true, true);
        assert_eq!(worker.next(2), Step::Fence { patience_ms: 2000 });
    }

    #[test]
    fn detect_commits_the_beginning_of_an_empty_partition() {
        let mut worker = Worker::new(Pace { fencing: Fencing::AfterChange, commits_idle_positions: true, ..PACE });
        worker.asked(Rebalance::Take(vec![partition(0)]));
        worker.taken(&[(partition(0), 0, None)]);
        assert_eq!(worker.next(0), Step::Commit);
        assert_eq!(worker.uncommitted(), at(0));
        worker.committed();
        assert_eq!(worker.next(0), Step::Receive { wait_ms: 100 });
    }

    #[test]
    fn detect_hears_what_the_group_asks_between_two_commits_that_fail() {
        let mut worker = Worker::new(Pace { fencing: Fencing::AfterChange, commits_idle_positions: true, ..PACE });
        worker.asked(Rebalance::Take(vec![partition(0)]));
        worker.taken(&[(partition(0), 0, None)]);
        assert_eq!(worker.next(0), Step::Commit);
        worker.failed(Trouble::Abort);
        assert_eq!(worker.next(0), Step::Abort);
        worker.aborted();
        assert_eq!(worker.next(0), Step::Receive { wait_ms: 100 });
        worker.received(false, false);
        assert_eq!(worker.next(0), Step::Commit);
    }

    #[test]
    fn positions_do_not_pass_records_that_wait_for_their_outcome() {
        let mut worker = owner(Pace { fencing: Fencing::AfterChange, commits_idle_positions: true, ..PACE });
        worker.received(true, false);
        worker.read_up_to(&at(15));
        assert_eq!(worker.decided_up_to(&partition(0)), Some(10));
    }

    #[test]
    fn stopping_commits_what_is_decided_and_leaves_the_rest() {
        let mut worker = owner(PACE);
        worker.received(true, true);
        worker.fenced(true, 0);
        worker.decided(&at(15), 0);
        worker.received(true, true);
        worker.stop();
        assert_eq!(worker.next(1), Step::Commit);
        worker.committed();
        assert_eq!(worker.next(1), Step::Stop);
    }
}
