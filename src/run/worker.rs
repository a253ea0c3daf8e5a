//! The thread that carries out what the worker's state machine says: it owns a member, a producer and a transaction.

use super::fence::Waiting;
use super::status::{Status, Unready};
use super::stop::Stop;
use crate::domain::time::Timestamp;
use crate::kafka::group::{GroupConsumer, Met, Received, Start, bounds};
use crate::kafka::offsets::OffsetsClient;
use crate::kafka::producer::{Limits, TransactionalProducer};
use crate::kafka::{Connection, EdgeError};
use crate::metrics::{self, Metrics};
use crate::record::{TopicName, TopicPartition};
use crate::stage::worker::{Pace, Step, Trouble, Worker};
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

    /// Asks the fence for all that was received before, to be answered within so long.
    fn ask_fence(&mut self, patience: Duration);

    /// The fence's answer, to be taken once for each question.
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
    pub pace: Pace,
    pub limits: Limits,
    pub status: Arc<Status>,
    pub metrics: Arc<Metrics>,
    pub stop: Stop,
}

/// Most records received before they are decided: a fence costs as much as some hundred records.
const BATCH: usize = 8192;
/// Records taken from the client at a time, and read while the processor still has them at hand.
const CHUNK: usize = 512;
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
/// From the wish to stop to the end: what cannot be committed by then is left to the successor.
const DRAIN: Duration = Duration::from_secs(8);

impl Setup {
    /// Runs a stage until the process stops. An error means that nothing but a new process can help.
    pub fn run<S: Stage>(&self, mut stage: S) -> Result<(), EdgeError> {
        let offsets = OffsetsClient::new(&self.connection, &self.group)?;
        let mut fenced: Vec<Instant> = Vec::new();
        loop {
            let result = self.run_member(&offsets, &mut stage);
            let Err(EdgeError::Renew(error)) = result else { return result };
            // The member was fenced. A broker that stood still for longer than a session fences a member by its own
            // later join: a new member goes on. A second process of the same name does so again and again.
            fenced.retain(|at| at.elapsed() < FENCED_WITHIN);
            fenced.push(Instant::now());
            if fenced.len() > FENCED_TIMES {
                tracing::error!(part = %self.part(), "fenced again and again: does another process run under this --instance name?");
                return Err(EdgeError::Stop(error));
            }
            tracing::warn!(part = %self.part(), %error, "the member was fenced: a new one joins");
            self.stop.sleep(RETRY_AFTER);
            stage.start_again()?;
        }
    }

    /// Runs until the process stops, or the member or the client is of no use any more.
    fn run_member<S: Stage>(&self, offsets: &OffsetsClient, stage: &mut S) -> Result<(), EdgeError> {
        let Some(producer) = self.new_producer()? else { return Ok(()) };
        let group = GroupConsumer::new(&self.connection, &self.group, &self.member, &self.topics)?;
        let mut thread: Thread<'_, S> = Thread {
            setup: self,
            group: &group,
            offsets,
            producer,
            machine: Worker::new(self.pace),
            pending: Vec::new(),
            ahead: Vec::new(),
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
        let result = thread.turn_until_stopped(stage);
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
                Err(error @ (EdgeError::Retriable(_) | EdgeError::Abort(_) | EdgeError::Renew(_))) => {
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
    group: &'g GroupConsumer,
    offsets: &'g OffsetsClient,
    producer: TransactionalProducer,
    machine: Worker,
    /// Received and not decided.
    pending: Vec<Incoming<'g, S::Read>>,
    /// Received while the fence was asked for `pending`: of the next batch.
    ahead: Vec<Incoming<'g, S::Read>>,
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
    fn turn_until_stopped(&mut self, stage: &mut S) -> Result<(), EdgeError> {
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
                Step::Receive { wait_ms } => self.receive(stage, Duration::from_millis(wait_ms))?,
                Step::Fence { patience_ms } => self.fence(stage, Duration::from_millis(patience_ms))?,
                Step::Decide => self.decide(stage)?,
                Step::Expire => self.expire(stage)?,
                Step::Commit => self.commit(stage)?,
                Step::Abort => self.abort(stage)?,
                Step::Renew => self.renew(stage)?,
                Step::Take(partitions) => {
                    stage.taken(&partitions);
                    self.take(&partitions)?;
                }
                Step::Give(partitions) => {
                    let stays = |received: &Received<'_>| !partitions.contains(&(received.topic().clone(), received.partition()));
                    self.pending.retain(|incoming| stays(&incoming.received));
                    self.ahead.retain(|incoming| stays(&incoming.received));
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

    fn receive(&mut self, stage: &mut S, wait: Duration) -> Result<(), EdgeError> {
        let before = self.pending.len();
        self.producer.serve();
        self.pending.append(&mut self.ahead);
        let wait = if self.pending.len() > before { Duration::ZERO } else { wait };
        let met = read_more(self.group, stage, wait, before + BATCH, &mut self.pending)?;
        if std::mem::take(&mut self.is_broken) || met == Met::Broken {
            self.find_stuck();
        }
        let received = self.pending.len() - before;
        self.machine.received(received > 0, received == BATCH);
        if self.pending.is_empty() && self.setup.pace.commits_idle_positions {
            self.machine.read_up_to(&self.group.positions()?);
        }
        Ok(())
    }

    /// Asks the fence for what is pending. While the brokers answer, which takes milliseconds where they are busy, more is
    /// received and read; it belongs to the next batch, whose fence is asked after this.
    fn fence(&mut self, stage: &mut S, patience: Duration) -> Result<(), EdgeError> {
        let was_holding = self.machine.is_holding();
        stage.ask_fence(patience);
        let met = if was_holding { Ok(Met::Nothing) } else { read_more(self.group, stage, Duration::ZERO, BATCH, &mut self.ahead) };
        let answer = stage.fence_answer();
        self.is_broken |= met? == Met::Broken;
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

    fn decide(&mut self, stage: &mut S) -> Result<(), EdgeError> {
        let pending = std::mem::take(&mut self.pending);
        let held_until = std::mem::take(&mut self.held).then(now);
        let decided = self.decide_records(stage, pending, held_until, true)?;
        if let Some(next) = decided {
            self.machine.decided(&next, self.now_ms());
        }
        Ok(())
    }

    /// Decides records within a transaction; `None` where that went wrong and the machine knows.
    fn decide_records(
        &mut self,
        stage: &mut S,
        records: Vec<Incoming<'g, S::Read>>,
        held_until: Option<Timestamp>,
        fenced: bool,
    ) -> Result<Option<BTreeMap<TopicPartition, u64>>, EdgeError> {
        let mut ends: Vec<(&TopicName, u32, u64)> = Vec::new();
        for Incoming { received, .. } in &records {
            let after = received.offset() + 1;
            match ends.iter_mut().rev().find(|(topic, partition, _)| *partition == received.partition() && *topic == received.topic()) {
                Some((_, _, end)) => *end = after.max(*end),
                None => ends.push((received.topic(), received.partition(), after)),
            }
        }
        let next: BTreeMap<TopicPartition, u64> = ends.into_iter().map(|(topic, partition, end)| ((topic.clone(), partition), end)).collect();
        let first = next.keys().filter_map(|partition| Some((partition.clone(), self.machine.decided_up_to(partition)?))).collect();
        let result = self.begin_if_needed().and_then(|()| stage.decide(Batch { records, first, held_until, fenced }, &self.producer));
        match result {
            Ok(()) => Ok(Some(next)),
            Err(error) => self.trouble(error).map(|()| None),
        }
    }

    fn begin_if_needed(&mut self) -> Result<(), EdgeError> {
        if !self.begun {
            self.producer.begin()?;
            self.begun = true;
        }
        Ok(())
    }

    /// While holding: the longest head of each partition's records that may leave does.
    fn expire(&mut self, stage: &mut S) -> Result<(), EdgeError> {
        let now = now();
        let mut stays: BTreeSet<TopicPartition> = BTreeSet::new();
        let (mut leaving, mut left) = (Vec::new(), Vec::new());
        for incoming in std::mem::take(&mut self.pending) {
            let partition = (incoming.received.topic().clone(), incoming.received.partition());
            if !stays.contains(&partition) && stage.may_leave_hold(&incoming.read, now) {
                leaving.push(incoming);
            } else {
                stays.insert(partition);
                left.push(incoming);
            }
        }
        self.pending = left;
        if leaving.is_empty() {
            self.machine.expired(&BTreeMap::new(), !self.pending.is_empty(), self.now_ms());
            return Ok(());
        }
        if let Some(next) = self.decide_records(stage, leaving, Some(now), false)? {
            self.machine.expired(&next, !self.pending.is_empty(), self.now_ms());
        }
        Ok(())
    }

    fn commit(&mut self, stage: &mut S) -> Result<(), EdgeError> {
        let began = Instant::now();
        let positions = self.machine.uncommitted();
        let result = self
            .begin_if_needed()
            .and_then(|()| stage.settle(began + COMMIT_TIMEOUT))
            .and_then(|()| self.producer.commit(&positions, self.group, COMMIT_TIMEOUT));
        self.count_transaction(if result.is_ok() { "committed" } else { "failed" });
        match result {
            Ok(()) => {
                self.machine.committed();
                stage.committed();
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

    fn abort(&mut self, stage: &mut S) -> Result<(), EdgeError> {
        self.count_transaction("aborted");
        if self.begun
            && let Err(error) = self.producer.abort(COMMIT_TIMEOUT)
        {
            tracing::warn!(part = %self.part, %error, "the transaction could not be aborted: its producer is replaced");
            self.machine.failed(Trouble::Renew);
            return Ok(());
        }
        self.begun = false;
        self.start_again(stage)?;
        self.group.rewind(&self.machine.rewind_positions())?;
        self.machine.aborted();
        self.pause_again()
    }

    fn renew(&mut self, stage: &mut S) -> Result<(), EdgeError> {
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
        self.start_again(stage)?;
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

    fn start_again(&mut self, stage: &mut S) -> Result<(), EdgeError> {
        self.pending.clear();
        self.ahead.clear();
        self.held = false;
        stage.start_again()
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
            EdgeError::Stop(_) => return Err(error),
        }
        Ok(())
    }

    fn count_transaction(&self, result: &'static str) {
        self.setup.metrics.transactions.get_or_create(&metrics::StageResult { stage: S::NAME, result }).inc();
    }
}

/// Receives and reads until `into` holds `max` records or none is at hand; waits at most `wait` for the first.
fn read_more<'g, S: Stage>(
    group: &'g GroupConsumer,
    stage: &mut S,
    wait: Duration,
    max: usize,
    into: &mut Vec<Incoming<'g, S::Read>>,
) -> Result<Met, EdgeError> {
    let mut received = Vec::new();
    let mut wait = wait;
    while into.len() < max {
        let wanted = CHUNK.min(max - into.len());
        let met = group.receive(wait, wanted, &mut received)?;
        let got = received.len();
        into.extend(received.drain(..).map(|received| Incoming { read: stage.read(&received), received }));
        if met == Met::Broken || got < wanted {
            return Ok(met);
        }
        wait = Duration::ZERO;
    }
    Ok(Met::Nothing)
}

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).ok().and_then(Timestamp::from_millis).unwrap_or(Timestamp::EPOCH)
}
