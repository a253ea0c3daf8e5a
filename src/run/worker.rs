//! The thread that carries out what the worker's state machine says: it owns a member, a producer and a transaction.

use super::fence::Waiting;
use super::gathering::Gathering;
use super::status::{Status, Unready};
use super::stop::Stop;
use crate::domain::time::Timestamp;
use crate::kafka::group::{GroupConsumer, Met, Received, Start, bounds};
use crate::kafka::offsets::OffsetsClient;
use crate::kafka::producer::{Limits, TransactionalProducer};
use crate::kafka::{Connection, EdgeError};
use crate::metrics::{self, Metrics};
use crate::record::{TopicName, TopicPartition, is_same_topic};
use crate::stage::worker::{Fencing, Pace, Step, Trouble, Worker};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// What a stage does with records, in a worker's hands.
pub trait Stage {
    /// The word in metrics and headers.
    const NAME: &'static str;

    /// What the bytes of a record say, before anybody is asked.
    type Read;

    /// Reads a record.
    fn read(&mut self, received: &Received<'_>) -> Self::Read;

    /// Asks the fence for all that was received before, to be answered within so long. A question that is out already is
    /// given up.
    fn ask_fence(&mut self, patience: Duration);

    /// The fence's answer to the question that is out.
    fn fence_answer(&mut self) -> Result<(), Waiting>;

    /// Decides a batch at one position of the view and hands what follows to the producers, in an open transaction.
    fn decide(&mut self, batch: Batch<'_, Self::Read>, transaction: &TransactionalProducer) -> Result<(), EdgeError>;

    /// Waits until all that must be durable before the transaction is, or until the deadline.
    fn settle(&mut self, deadline: Instant) -> Result<(), EdgeError>;

    /// Forgets what was decided and not committed: it will be decided again.
    fn start_again(&mut self) -> Result<(), EdgeError>;

    /// What was decided is committed.
    fn committed(&mut self) {}

    /// Partitions were taken, which others may have served before.
    fn taken(&mut self, _partitions: &[TopicPartition]) {}

    /// Whether a held record may leave before the fence opens.
    fn may_leave_hold(&self, read: &Self::Read, now: Timestamp) -> bool;
}

/// A record and what was read of it.
pub struct Incoming<'a, R> {
    pub received: Received<'a>,
    pub read: R,
}

/// Records to be decided together.
pub struct Batch<'a, R> {
    /// To be let go one by one as they are dealt with, while the processor still has them at hand.
    pub records: Vec<Incoming<'a, R>>,
    /// Where each partition's run begins: the offset after the last decided one.
    pub first: BTreeMap<TopicPartition, u64>,
    /// The time, where the records were held.
    pub held_until: Option<Timestamp>,
    /// Whether the fence opened for them. Records that leave a hold by themselves are decided without it.
    pub fenced: bool,
}

/// How a worker presents itself to Kafka, and what it reports to.
pub struct Setup {
    pub connection: Connection,
    pub group: String,
    /// `group.instance.id`; with the group it makes the `transactional.id`.
    pub member: String,
    pub topics: Vec<TopicName>,
    /// Where the workers of a stage in this process wait for each other before they join the group.
    pub gathering: Arc<Gathering>,
    pub pace: Pace,
    pub limits: Limits,
    pub status: Arc<Status>,
    pub metrics: Arc<Metrics>,
    pub stop: Stop,
}

/// Most records received before they are decided. The brokers answer the fence of the next batch meanwhile, and now and then
/// stand still for longer than it takes to decide half as many.
const BATCH: usize = 32_768;
/// So many at once are a backlog: the transaction goes on. The client's queue may hold less than a batch when it is asked.
const BACKLOG: usize = BATCH / 8;
/// Records read, looked up and passed on together: so few that the processor's own cache holds them all the while.
const CHUNK: usize = 1024;
const QUERY_TIMEOUT: Duration = Duration::from_secs(5);
/// A commit that takes longer than the transaction may live is lost anyway.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(10);
const RETRY_AFTER: Duration = Duration::from_millis(200);
/// How often a worker looks for partitions that nobody owns. Seen twice in a row, they are not in passing.
const LOOK_EVERY: Duration = Duration::from_secs(3);
const LOOK_SELDOM: Duration = Duration::from_secs(60);
const LOOK_TIMEOUT: Duration = Duration::from_millis(500);
/// A member that is fenced more often than so many times within so long has a rival.
const FENCED_TIMES: usize = 3;
const FENCED_WITHIN: Duration = Duration::from_secs(60);
/// So many failures in a row are no passing fault.
const FAILURES_TOLD: u32 = 3;
/// How long a worker waits for others to join the group with: as long as they would wait for its next heartbeat otherwise.
const TOGETHER: Duration = Duration::from_millis(500);
/// From the wish to stop to the end: what cannot be committed by then is left to the successor.
const DRAIN: Duration = Duration::from_secs(8);

impl Setup {
    /// Runs a stage until the process stops. An error means that nothing but a new process can help.
    pub fn run<S: Stage>(&self, mut stage: S) -> Result<(), EdgeError> {
        let offsets = OffsetsClient::new(&self.connection, &self.group)?;
        let mut fenced: Vec<Instant> = Vec::new();
        loop {
            match self.run_member(&offsets, &mut stage) {
                // A broker that stood still for longer than a session fences a member by its own later join: a new member goes
                // on. A second process of the same name does so again and again.
                Err(EdgeError::Renew(error)) => {
                    fenced.retain(|at| at.elapsed() < FENCED_WITHIN);
                    fenced.push(Instant::now());
                    if fenced.len() > FENCED_TIMES {
                        tracing::error!(part = %self.part(), "fenced again and again: does another process run under this --instance name?");
                        return Err(EdgeError::Stop(error));
                    }
                    tracing::warn!(part = %self.part(), %error, "the member was fenced: a new one joins");
                }
                Err(EdgeError::Expelled(error)) => {
                    tracing::warn!(part = %self.part(), %error, "the group has gone on without the member: a new one joins");
                }
                result @ (Ok(()) | Err(EdgeError::Retriable(_) | EdgeError::Abort(_) | EdgeError::Stop(_))) => return result,
            }
            self.stop.sleep(RETRY_AFTER);
            stage.start_again()?;
        }
    }

    /// Runs until the process stops, or the member or the client is of no use any more.
    fn run_member<S: Stage>(&self, offsets: &OffsetsClient, stage: &mut S) -> Result<(), EdgeError> {
        let group = GroupConsumer::new(&self.connection, &self.group, &self.member, &self.topics)?;
        let Some(producer) = self.new_producer()? else { return Ok(()) };
        // Who joins alone gets all partitions, and gives half of them away at once: by brokers that wait for nobody else, a group
        // is made of those whose requests lie side by side.
        let deadline = Instant::now() + TOGETHER;
        group.prepare_to_join(deadline);
        self.gathering.come(deadline);
        group.join()?;
        let mut thread = Thread {
            setup: self,
            stage,
            group: &group,
            offsets,
            producer,
            machine: Worker::new(self.pace),
            pending: Vec::new(),
            ahead: Vec::new(),
            asked_ahead: false,
            is_broken: false,
            held: false,
            stuck: BTreeSet::new(),
            stuck_told: 0,
            begun: false,
            failures: 0,
            look_at: Instant::now() + LOOK_EVERY,
            unowned: Vec::new(),
            began: Instant::now(),
            part: self.part(),
        };
        let result = thread.turn_until_stopped();
        if thread.machine.is_holding() {
            self.metrics.holding_workers.dec();
        }
        thread.stuck.clear();
        thread.tell_stuck();
        result
    }

    /// The name of this worker in `/readyz`.
    fn part(&self) -> String {
        format!("worker {}-{}", self.group, self.member)
    }

    /// A producer whose predecessor is fenced; `None` where the process stops before the brokers answer.
    fn new_producer(&self) -> Result<Option<TransactionalProducer>, EdgeError> {
        let id = format!("{}-{}", self.group, self.member);
        while !self.stop.is_asked() {
            match TransactionalProducer::new(&self.connection, &id, self.limits, QUERY_TIMEOUT) {
                Ok(producer) => {
                    self.status.ready(&self.part());
                    return Ok(Some(producer));
                }
                Err(error @ EdgeError::Stop(_)) => return Err(error),
                Err(error @ (EdgeError::Retriable(_) | EdgeError::Abort(_) | EdgeError::Renew(_) | EdgeError::Expelled(_))) => {
                    self.status.unready(&self.part(), Unready::Waiting { what: "a transactional producer", why: error.to_string() });
                    self.stop.sleep(RETRY_AFTER);
                }
            }
        }
        Ok(None)
    }
}

struct Thread<'g, S: Stage> {
    setup: &'g Setup,
    stage: &'g mut S,
    group: &'g GroupConsumer,
    offsets: &'g OffsetsClient,
    producer: TransactionalProducer,
    machine: Worker,
    /// Received and not decided.
    pending: Vec<Received<'g>>,
    /// Received before `pending` was decided: the next batch.
    ahead: Vec<Received<'g>>,
    /// The fence was asked after the last of `ahead`, or of what is `pending` by now, had been received.
    asked_ahead: bool,
    /// The client stopped reading some partition meanwhile.
    is_broken: bool,
    /// What is pending was held: expired sends are told from others by the clock.
    held: bool,
    /// Partitions whose position lies outside of their log.
    stuck: BTreeSet<TopicPartition>,
    /// How many of them the metric knows of.
    stuck_told: i64,
    /// A transaction was begun with the client and has not ended.
    begun: bool,
    /// Transactions that failed in a row.
    failures: u32,
    /// When the group is looked at next, and which partitions nobody owned the last time.
    look_at: Instant,
    unowned: Vec<TopicPartition>,
    began: Instant,
    /// The name of this worker in `/readyz`.
    part: String,
}

impl<'g, S: Stage> Thread<'g, S> {
    fn turn_until_stopped(&mut self) -> Result<(), EdgeError> {
        let mut drain_until: Option<Instant> = None;
        loop {
            if self.setup.stop.is_asked() {
                let until = *drain_until.get_or_insert_with(|| Instant::now() + DRAIN);
                if Instant::now() >= until || self.machine.is_in_trouble() {
                    tracing::warn!(part = %self.part, "stopping without the last commit: the successor decides those records again");
                    return Ok(());
                }
                self.machine.stop();
            }
            while let Some(asked) = self.group.asked() {
                self.machine.asked(asked);
            }
            self.look_for_unowned()?;
            match self.machine.next(self.now_ms()) {
                Step::Receive { wait_ms } => self.receive(Duration::from_millis(wait_ms))?,
                Step::Fence { patience_ms } => self.fence(Duration::from_millis(patience_ms))?,
                Step::Decide => self.decide()?,
                Step::Expire => self.expire()?,
                Step::Commit => self.commit()?,
                Step::Abort => self.abort()?,
                Step::Renew => self.renew()?,
                Step::Take(partitions) => {
                    self.stage.taken(&partitions);
                    self.take(&partitions)?;
                }
                Step::Give(partitions) => {
                    let stays = |received: &Received<'_>| !partitions.contains(&(received.topic().clone(), received.partition()));
                    self.pending.retain(stays);
                    self.ahead.retain(stays);
                    self.stuck.retain(|partition| !partitions.contains(partition));
                    self.tell_stuck();
                    self.group.give(&partitions)?;
                    self.machine.given(!self.pending.is_empty());
                }
                Step::Pause => {
                    self.group.pause(&self.owned())?;
                    self.held = true;
                    self.machine.paused();
                    self.setup.metrics.holding_workers.inc();
                }
                Step::Resume => {
                    self.group.resume(&self.owned())?;
                    self.machine.resumed();
                    // Where nothing that was held is left, what comes now was not held.
                    self.held &= !self.pending.is_empty();
                    self.setup.metrics.holding_workers.dec();
                    self.setup.status.ready(&self.part);
                }
                Step::Stop => return Ok(()),
            }
        }
    }

    /// Partitions that nobody owns are nobody's delay to tell: each member looks for them, now and then.
    fn look_for_unowned(&mut self) -> Result<(), EdgeError> {
        if Instant::now() < self.look_at || self.machine.is_open() {
            return Ok(());
        }
        let began = Instant::now();
        let unowned = self.offsets.unowned(&self.setup.group, &self.setup.topics, LOOK_TIMEOUT);
        // The question goes to all brokers: while one of them is away each answer takes the whole time-out.
        let every = if began.elapsed() < LOOK_TIMEOUT / 2 { LOOK_EVERY } else { LOOK_SELDOM };
        self.look_at = Instant::now() + every;
        let still: Vec<TopicPartition> = unowned.iter().filter(|partition| self.unowned.contains(*partition)).cloned().collect();
        self.unowned = unowned;
        if let Some((topic, partition)) = still.first() {
            tracing::warn!(part = %self.part, %topic, partition, count = still.len(), "partitions that no member owns: the group assigns anew");
            self.unowned.clear();
            self.group.rejoin()?;
        }
        Ok(())
    }

    fn now_ms(&self) -> u64 {
        self.began.elapsed().as_millis() as u64
    }

    fn owned(&self) -> Vec<TopicPartition> {
        self.machine.partitions().cloned().collect()
    }

    fn receive(&mut self, wait: Duration) -> Result<(), EdgeError> {
        let before = self.pending.len();
        self.producer.serve();
        // A rebalance may have taken all of it away.
        self.asked_ahead &= self.pending.is_empty() && !self.ahead.is_empty();
        self.pending.append(&mut self.ahead);
        // What the fence was asked for already is a batch by itself: what came after the question needs another one.
        if !self.asked_ahead {
            let wait = if self.pending.len() > before { Duration::ZERO } else { wait };
            self.is_broken |= self.group.receive(wait, before + BATCH - self.pending.len(), &mut self.pending)? == Met::Broken;
        }
        if std::mem::take(&mut self.is_broken) {
            self.find_stuck();
        }
        let received = self.pending.len() - before;
        self.machine.received(received > 0, received >= BACKLOG);
        if self.pending.is_empty() && self.setup.pace.commits_idle_positions {
            self.machine.read_up_to(&self.group.positions()?);
        }
        Ok(())
    }

    /// Receives the next batch and asks the fence for it. The brokers answer, which takes milliseconds where they are
    /// busy, while this batch is decided.
    fn ask_ahead(&mut self) -> Result<(), EdgeError> {
        if self.setup.pace.fencing == Fencing::EveryBatch && self.ahead.is_empty() {
            self.is_broken |= self.group.receive(Duration::ZERO, BATCH, &mut self.ahead)? == Met::Broken;
            if !self.ahead.is_empty() {
                self.stage.ask_fence(Duration::from_millis(self.setup.pace.transaction_ms));
                self.asked_ahead = true;
            }
        }
        Ok(())
    }

    /// Waits for the fence of what is pending. A question that was asked ahead had the patience of a batch in between: if
    /// it was not enough, the fence is asked anew.
    fn fence(&mut self, patience: Duration) -> Result<(), EdgeError> {
        let was_holding = self.machine.is_holding();
        let opened_ahead = std::mem::take(&mut self.asked_ahead) && self.stage.fence_answer().is_ok();
        let answer = if opened_ahead {
            Ok(())
        } else {
            self.stage.ask_fence(patience);
            self.stage.fence_answer()
        };
        match answer {
            Ok(()) => self.machine.fenced(true, self.now_ms()),
            Err(waiting) => {
                self.machine.fenced(false, self.now_ms());
                if self.machine.is_holding() {
                    if !was_holding {
                        self.setup.metrics.holds.get_or_create(&metrics::Reason { reason: waiting.as_str() }).inc();
                    }
                    self.setup.status.unready(&self.part, Unready::Holding { why: waiting.to_string() });
                }
            }
        }
        Ok(())
    }

    fn decide(&mut self) -> Result<(), EdgeError> {
        self.ask_ahead()?;
        let pending = std::mem::take(&mut self.pending);
        let held_until = std::mem::take(&mut self.held).then(now);
        let decided = self.decide_records(pending, held_until, true)?;
        if let Some(next) = decided {
            self.machine.decided(&next, self.now_ms());
        }
        Ok(())
    }

    /// Decides records within a transaction; `None` where that went wrong and the machine knows.
    fn decide_records(
        &mut self,
        records: Vec<Received<'g>>,
        held_until: Option<Timestamp>,
        fenced: bool,
    ) -> Result<Option<BTreeMap<TopicPartition, u64>>, EdgeError> {
        let mut decided: BTreeMap<TopicPartition, u64> = BTreeMap::new();
        let mut left = records.into_iter();
        while left.len() > 0 {
            let read = |received| Incoming { read: self.stage.read(&received), received };
            let records: Vec<Incoming<'g, S::Read>> = left.by_ref().take(CHUNK).map(read).collect();
            let next = ends_of(&records);
            let first_of = |partition: &TopicPartition| decided.get(partition).copied().or_else(|| self.machine.decided_up_to(partition));
            let first = next.keys().filter_map(|partition| Some((partition.clone(), first_of(partition)?))).collect();
            let result = self.begin_if_needed().and_then(|()| self.stage.decide(Batch { records, first, held_until, fenced }, &self.producer));
            if let Err(error) = result {
                return self.trouble(error).map(|()| None);
            }
            decided.extend(next);
        }
        Ok(Some(decided))
    }

    fn begin_if_needed(&mut self) -> Result<(), EdgeError> {
        if !self.begun {
            self.producer.begin()?;
            self.begun = true;
        }
        Ok(())
    }

    /// While holding: the longest head of each partition's records that may leave does.
    fn expire(&mut self) -> Result<(), EdgeError> {
        let now = now();
        let mut stays: BTreeSet<TopicPartition> = BTreeSet::new();
        let (mut leaving, mut left) = (Vec::new(), Vec::new());
        for received in std::mem::take(&mut self.pending) {
            let partition = (received.topic().clone(), received.partition());
            let read = self.stage.read(&received);
            if !stays.contains(&partition) && self.stage.may_leave_hold(&read, now) {
                leaving.push(received);
            } else {
                stays.insert(partition);
                left.push(received);
            }
        }
        self.pending = left;
        if leaving.is_empty() {
            self.machine.expired(&BTreeMap::new(), !self.pending.is_empty(), self.now_ms());
            return Ok(());
        }
        if let Some(next) = self.decide_records(leaving, Some(now), false)? {
            self.machine.expired(&next, !self.pending.is_empty(), self.now_ms());
        }
        Ok(())
    }

    fn commit(&mut self) -> Result<(), EdgeError> {
        let began = Instant::now();
        let positions = self.machine.uncommitted();
        let result = self
            .begin_if_needed()
            .and_then(|()| self.stage.settle(began + COMMIT_TIMEOUT))
            .and_then(|()| self.producer.commit(&positions, self.group, COMMIT_TIMEOUT));
        self.count_transaction(if result.is_ok() { "committed" } else { "failed" });
        match result {
            Ok(()) => {
                self.machine.committed();
                self.stage.committed();
                self.begun = false;
                if std::mem::take(&mut self.failures) >= FAILURES_TOLD {
                    self.setup.status.ready(&self.part);
                }
                let seconds = began.elapsed().as_secs_f64();
                self.setup.metrics.transaction_seconds.get_or_create(&metrics::Stage { stage: S::NAME }).observe(seconds);
                Ok(())
            }
            Err(error) => self.trouble(error),
        }
    }

    fn abort(&mut self) -> Result<(), EdgeError> {
        self.count_transaction("aborted");
        if self.begun
            && let Err(error) = self.producer.abort(COMMIT_TIMEOUT)
        {
            tracing::warn!(part = %self.part, %error, "the transaction could not be aborted: its producer is replaced");
            self.machine.failed(Trouble::Renew);
            return Ok(());
        }
        self.begun = false;
        self.start_again()?;
        self.group.rewind(&self.machine.rewind_positions())?;
        self.machine.aborted();
        self.pause_again()
    }

    fn renew(&mut self) -> Result<(), EdgeError> {
        self.count_transaction("renewed");
        match self.setup.new_producer()? {
            Some(producer) => self.producer = producer,
            None => return Ok(()),
        }
        self.begun = false;
        let partitions = self.owned();
        // The new producer has fenced the old one: what the group says now is what was committed.
        let committed = match self.group.committed(&partitions, QUERY_TIMEOUT) {
            Ok(committed) => committed,
            Err(error) => return self.wait_for_positions(&error),
        };
        if !self.machine.is_holding() {
            self.setup.status.ready(&self.part);
        }
        self.start_again()?;
        self.machine.renewed(&partitions.into_iter().zip(committed).collect());
        self.group.rewind(&self.machine.rewind_positions())?;
        self.pause_again()
    }

    /// Between two questions to the group that it does not answer: it may have fenced this member meanwhile.
    fn wait_for_positions(&mut self, error: &impl std::fmt::Display) -> Result<(), EdgeError> {
        self.setup.status.unready(&self.part, Unready::Waiting { what: "committed positions", why: error.to_string() });
        self.group.attend()?;
        self.setup.stop.sleep(RETRY_AFTER);
        Ok(())
    }

    fn start_again(&mut self) -> Result<(), EdgeError> {
        self.pending.clear();
        self.ahead.clear();
        self.asked_ahead = false;
        self.held = false;
        self.stage.start_again()
    }

    fn pause_again(&self) -> Result<(), EdgeError> {
        if self.machine.is_holding() { self.group.pause(&self.owned()) } else { Ok(()) }
    }

    fn take(&mut self, partitions: &[TopicPartition]) -> Result<(), EdgeError> {
        let starts = match self.group.starts(partitions, self.offsets, QUERY_TIMEOUT) {
            Ok(starts) => starts,
            Err(error) => return self.wait_for_positions(&error),
        };
        if !self.machine.is_holding() {
            self.setup.status.ready(&self.part);
        }
        let (mut at, mut known) = (Vec::new(), Vec::new());
        for (partition, start) in starts {
            match start {
                Start::Committed(offset) => {
                    known.push((partition.clone(), offset, Some(offset)));
                    at.push((partition, offset));
                }
                Start::Beginning(offset) => {
                    known.push((partition.clone(), offset, None));
                    at.push((partition, offset));
                }
                Start::OutOfRange { committed, beginning, end } => {
                    let (topic, number) = &partition;
                    tracing::error!(%topic, partition = number, committed, beginning, end, "the committed position lies outside of the log");
                    self.stuck.insert(partition.clone());
                    at.push((partition, end));
                }
            }
        }
        let paused: Vec<TopicPartition> = match self.machine.is_holding() {
            true => partitions.to_vec(),
            false => partitions.iter().filter(|partition| self.stuck.contains(*partition)).cloned().collect(),
        };
        self.group.take(&at, &paused)?;
        self.machine.taken(&known);
        self.tell_stuck();
        Ok(())
    }

    /// The client has stopped reading some partition and does not say which. Those whose position lies outside of their
    /// log (retention overtook a reader that was too slow, or held too long) are told and left alone; everything else
    /// is read again from the committed positions.
    fn find_stuck(&mut self) {
        self.machine.failed(Trouble::Abort);
        let positions = self.machine.rewind_positions();
        let owned: Vec<TopicPartition> = positions.iter().map(|(partition, _)| partition.clone()).collect();
        // Without an answer all are read again, and the client will say once more what it cannot read.
        let bounds = bounds(self.offsets, &owned, QUERY_TIMEOUT).unwrap_or_default();
        for (partition, at) in positions {
            let Some(&(beginning, end)) = bounds.get(&partition) else { continue };
            if !(beginning..=end).contains(&at) {
                let (topic, number) = &partition;
                tracing::error!(%topic, partition = number, position = at, beginning, end, "the position lies outside of the log");
                self.machine.stuck(&partition);
                self.stuck.insert(partition);
            }
        }
        self.tell_stuck();
        self.setup.stop.sleep(RETRY_AFTER);
    }

    fn tell_stuck(&mut self) {
        let part = format!("{} input", self.part);
        let now = self.stuck.len() as i64;
        self.setup.metrics.stuck_partitions.inc_by(now - self.stuck_told);
        self.stuck_told = now;
        if self.stuck.is_empty() {
            self.setup.status.ready(&part);
        } else {
            let partitions = self.stuck.iter().map(|(topic, partition)| format!("{topic}-{partition}")).collect();
            self.setup.status.unready(&part, Unready::OutOfRange { partitions });
        }
    }

    /// Sorts an error by what must be done: the machine is told, or the process ends. What fails again and again is
    /// told to whoever asks for readiness.
    fn trouble(&mut self, error: EdgeError) -> Result<(), EdgeError> {
        self.failures = self.failures.saturating_add(1);
        if self.failures >= FAILURES_TOLD {
            self.setup.status.unready(&self.part, Unready::Waiting { what: "a transaction that can be committed", why: error.to_string() });
            self.setup.stop.sleep(RETRY_AFTER);
        }
        match error {
            EdgeError::Retriable(_) | EdgeError::Abort(_) => {
                tracing::warn!(part = %self.part, %error, "the transaction is aborted");
                self.machine.failed(Trouble::Abort);
            }
            EdgeError::Renew(_) => {
                tracing::warn!(part = %self.part, %error, "the producer is replaced");
                self.machine.failed(Trouble::Renew);
            }
            EdgeError::Expelled(_) | EdgeError::Stop(_) => return Err(error),
        }
        Ok(())
    }

    fn count_transaction(&self, result: &'static str) {
        self.setup.metrics.transactions.get_or_create(&metrics::StageResult { stage: S::NAME, result }).inc();
    }
}

/// The offset after the last record of each partition.
fn ends_of<R>(records: &[Incoming<'_, R>]) -> BTreeMap<TopicPartition, u64> {
    let mut ends: Vec<(&TopicName, u32, u64)> = Vec::new();
    for Incoming { received, .. } in records {
        let after = received.offset() + 1;
        match ends.iter_mut().rev().find(|(topic, partition, _)| *partition == received.partition() && is_same_topic(topic, received.topic())) {
            Some((_, _, end)) => *end = after.max(*end),
            None => ends.push((received.topic(), received.partition(), after)),
        }
    }
    ends.into_iter().map(|(topic, partition, end)| ((topic.clone(), partition), end)).collect()
}

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).ok().and_then(Timestamp::from_millis).unwrap_or(Timestamp::EPOCH)
}
