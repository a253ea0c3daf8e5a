//! Carries out the steps of the production state machine, as `run::worker` does, on the simulation's clients.

use super::client::{Member, Producer, Received};
use super::context::Context;
use super::{Fault, Mutation};
use std::collections::{BTreeMap, BTreeSet};
use stopgate::domain::time::Timestamp;
use stopgate::kafka::EdgeError;
use stopgate::record::TopicPartition;
use stopgate::run::fence::Waiting;
use stopgate::stage::worker::{Fencing, Pace, Step, Trouble, Worker};

/// What a stage does with records, in a worker's hands.
pub trait Stage {
    /// Before records are asked for: the mutation that asks too early does so here.
    fn before_receiving(&mut self);
    fn fence(&mut self) -> Result<(), Waiting>;
    fn decide(&mut self, batch: &Batch<'_>, transaction: &Producer) -> Result<(), EdgeError>;
    fn settle(&mut self) -> Result<(), EdgeError>;
    fn start_again(&mut self);
    fn may_leave_hold(&mut self, received: &Received, now: Timestamp) -> bool;
}

pub struct Batch<'a> {
    pub records: &'a [Received],
    pub first: BTreeMap<TopicPartition, u64>,
    pub held_until: Option<Timestamp>,
    pub fenced: bool,
}

const DAY_MS: u64 = 86_400_000;
/// Most records received at once.
const BATCH: usize = 6;
/// Of them decided at one position of the view.
const CHUNK: usize = 4;

pub struct Driver<S> {
    context: Context,
    stage: S,
    pace: Pace,
    member: Member,
    producer: Producer,
    machine: Worker,
    pending: Vec<Received>,
    /// Received before `pending` was decided: the next batch.
    ahead: Vec<Received>,
    /// The fence's answer to a question that was asked after the last of `ahead`, or of what is `pending` by now, was received.
    answer_ahead: Option<Result<(), Waiting>>,
    held: bool,
    begun: bool,
    /// How far its wall clock is from the world's.
    skew_ms: i64,
    id: String,
}

impl<S: Stage> Driver<S> {
    /// Runs a stage until the process dies or another one takes its name.
    pub fn run(context: Context, group: &'static str, name: &str, pace: Pace, stage: S) {
        let id = format!("{group}-{name}");
        let producer = new_producer(&context, &id);
        let member = Member::join(context.clone(), group, name);
        let machine = Worker::new(pace);
        let mut driver = Self {
            context,
            stage,
            pace,
            member,
            producer,
            machine,
            pending: Vec::new(),
            ahead: Vec::new(),
            answer_ahead: None,
            held: false,
            begun: false,
            skew_ms: 0,
            id,
        };
        if let Err(error) = driver.turn_until_fenced() {
            driver.context.tell(format!("ends: {error}"), None);
        }
    }

    fn turn_until_fenced(&mut self) -> Result<(), EdgeError> {
        loop {
            while let Some(asked) = self.member.asked() {
                self.context.tell(format!("is asked: {asked:?}"), None);
                self.machine.asked(asked);
            }
            let now = self.now();
            match self.machine.next(now) {
                Step::Receive { .. } => self.receive()?,
                Step::Fence { patience_ms } => self.fence(patience_ms),
                Step::Decide => self.decide()?,
                Step::Expire => self.expire()?,
                Step::Commit => self.commit()?,
                Step::Abort => self.abort(),
                Step::Renew => self.renew(),
                Step::Take(partitions) => self.take(&partitions),
                Step::Give(partitions) => {
                    self.pending.retain(|received| !partitions.contains(&received.place()));
                    self.ahead.retain(|received| !partitions.contains(&received.place()));
                    self.member.give(&partitions);
                    self.machine.given(!self.pending.is_empty());
                }
                Step::Pause => {
                    self.context.tell("holds".to_owned(), None);
                    self.member.pause(true);
                    self.held = true;
                    self.machine.paused();
                }
                Step::Resume => {
                    self.member.pause(false);
                    self.machine.resumed();
                    self.held &= !self.pending.is_empty();
                }
                Step::Stop => return Ok(()),
            }
        }
    }

    fn now(&self) -> u64 {
        self.context.peek(|world| world.step)
    }

    /// The wall clock. Clocks are set: by hand, by a machine that wakes up, by a time server that was wrong.
    fn timestamp(&mut self) -> Timestamp {
        let (jumped, now_ms) = self.context.peek(|world| {
            let to = world.random.below(2 * DAY_MS) as i64 - DAY_MS as i64;
            (world.strikes(Fault::ClockJumps, 4).then_some(to), world.now_ms())
        });
        if let Some(skew_ms) = jumped {
            self.context.tell(format!("its clock jumps to {skew_ms} ms beside the world's"), None);
            self.skew_ms = skew_ms;
        }
        Timestamp::from_millis(now_ms + self.skew_ms).expect("in range")
    }

    fn receive(&mut self) -> Result<(), EdgeError> {
        let is_of_ahead = self.pending.is_empty() && !self.ahead.is_empty();
        self.answer_ahead = self.answer_ahead.take().filter(|_| is_of_ahead);
        let mut received = std::mem::take(&mut self.ahead);
        // What came after the question needs another one.
        let is_late = self.context.peek(|world| world.is(Mutation::ReceivedAfterQuestion));
        if (self.answer_ahead.is_none() || is_late) && received.len() < BATCH {
            self.stage.before_receiving();
            received.extend(self.member.receive(BATCH - received.len())?);
        }
        let (count, full) = (received.len(), received.len() == BATCH);
        self.pending.extend(received);
        if count > 0 {
            let places: Vec<String> = self.pending.iter().map(|received| format!("{}@{}", received.partition, received.offset)).collect();
            self.context.tell(format!("received, now pending: {}", places.join(" ")), None);
        }
        self.context.peek(|world| world.judge_memory(self.pending.len()));
        self.machine.received(count > 0, full);
        if self.pending.is_empty() && self.pace.commits_idle_positions {
            self.machine.read_up_to(&self.member.positions());
        }
        Ok(())
    }

    /// One question after the other until the patience is over; each is asked anew, which proves no less.
    fn fence(&mut self, patience: u64) {
        let until = self.now() + patience;
        let ahead = self.answer_ahead.take().filter(Result::is_ok);
        let answer = ahead.unwrap_or_else(|| {
            loop {
                match self.stage.fence() {
                    Err(_) if self.now() < until => {}
                    answer => break answer,
                }
            }
        });
        self.context
            .tell(answer.as_ref().map_or_else(|waiting| format!("the fence stays closed: {waiting}"), |()| "the fence opens".to_owned()), None);
        self.machine.fenced(answer.is_ok(), self.now());
    }

    /// Receives the next batch and asks the fence for it, before this batch is decided. The answer is at hand at once here.
    fn ask_ahead(&mut self) -> Result<(), EdgeError> {
        if self.pace.fencing == Fencing::EveryBatch && self.ahead.is_empty() {
            self.stage.before_receiving();
            self.ahead = self.member.receive(BATCH)?;
            if !self.ahead.is_empty() {
                self.answer_ahead = Some(self.stage.fence());
            }
        }
        Ok(())
    }

    fn decide(&mut self) -> Result<(), EdgeError> {
        self.ask_ahead()?;
        let pending = std::mem::take(&mut self.pending);
        let held_until = std::mem::take(&mut self.held).then(|| self.timestamp());
        if let Some(next) = self.decide_all(&pending, held_until, true)? {
            self.machine.decided(&next, self.now());
        }
        Ok(())
    }

    /// Decides records a few at a time, each few at a position of the view of their own.
    fn decide_all(
        &mut self,
        records: &[Received],
        held_until: Option<Timestamp>,
        fenced: bool,
    ) -> Result<Option<BTreeMap<TopicPartition, u64>>, EdgeError> {
        let mut decided = BTreeMap::new();
        for some in records.chunks(CHUNK) {
            match self.decide_some(some, &decided, held_until, fenced)? {
                Some(next) => decided.extend(next),
                None => return Ok(None),
            }
        }
        Ok(Some(decided))
    }

    fn decide_some(
        &mut self,
        records: &[Received],
        decided: &BTreeMap<TopicPartition, u64>,
        held_until: Option<Timestamp>,
        fenced: bool,
    ) -> Result<Option<BTreeMap<TopicPartition, u64>>, EdgeError> {
        let mut next: BTreeMap<TopicPartition, u64> = BTreeMap::new();
        for received in records {
            let end = next.entry(received.place()).or_default();
            *end = (*end).max(received.offset + 1);
        }
        let first_of = |partition: &TopicPartition| decided.get(partition).copied().or_else(|| self.machine.decided_up_to(partition));
        let first = next.keys().filter_map(|partition| Some((partition.clone(), first_of(partition)?))).collect();
        self.begin_if_needed();
        match self.stage.decide(&Batch { records, first, held_until, fenced }, &self.producer) {
            Ok(()) => Ok(Some(next)),
            Err(error) => self.trouble(error).map(|()| None),
        }
    }

    fn begin_if_needed(&mut self) {
        if !self.begun {
            self.producer.begin();
            self.begun = true;
        }
    }

    fn expire(&mut self) -> Result<(), EdgeError> {
        let now = self.timestamp();
        let mut stays: BTreeSet<TopicPartition> = BTreeSet::new();
        let (mut leaving, mut left) = (Vec::new(), Vec::new());
        for received in std::mem::take(&mut self.pending) {
            if !stays.contains(&received.place()) && self.stage.may_leave_hold(&received, now) {
                leaving.push(received);
            } else {
                stays.insert(received.place());
                left.push(received);
            }
        }
        self.pending = left;
        if leaving.is_empty() {
            self.machine.expired(&BTreeMap::new(), !self.pending.is_empty(), self.now());
        } else if let Some(next) = self.decide_all(&leaving, Some(now), false)? {
            self.machine.expired(&next, !self.pending.is_empty(), self.now());
        }
        Ok(())
    }

    fn commit(&mut self) -> Result<(), EdgeError> {
        let positions = self.machine.uncommitted();
        self.begin_if_needed();
        match self.stage.settle().and_then(|()| self.producer.commit(&self.member.membership, &positions)) {
            Ok(()) => {
                let shown: Vec<String> = positions.iter().map(|((_, partition), position)| format!("{partition}@{position}")).collect();
                self.context.tell(format!("committed {}", shown.join(" ")), None);
                self.machine.committed();
                self.begun = false;
                Ok(())
            }
            Err(error) => self.trouble(error),
        }
    }

    fn abort(&mut self) {
        if self.begun && self.producer.abort().is_err() {
            return self.machine.failed(Trouble::Renew);
        }
        self.context.tell("aborted".to_owned(), None);
        self.begun = false;
        self.start_again();
        self.member.rewind(&self.machine.rewind_positions());
        self.machine.aborted();
        self.pause_again();
    }

    fn renew(&mut self) {
        self.producer = new_producer(&self.context, &self.id);
        self.begun = false;
        let partitions: Vec<TopicPartition> = self.machine.partitions().cloned().collect();
        let Ok(committed) = self.member.committed(&partitions) else { return };
        self.context.tell("has a new producer".to_owned(), None);
        self.start_again();
        self.machine.renewed(&partitions.into_iter().zip(committed).collect());
        self.member.rewind(&self.machine.rewind_positions());
        self.pause_again();
    }

    fn start_again(&mut self) {
        self.pending.clear();
        self.ahead.clear();
        self.answer_ahead = None;
        self.held = false;
        self.stage.start_again();
    }

    fn pause_again(&mut self) {
        if self.machine.is_holding() {
            self.member.pause(true);
        }
    }

    fn take(&mut self, partitions: &[TopicPartition]) {
        let Ok(committed) = self.member.committed(partitions) else { return };
        let starts = partitions.iter().cloned().zip(committed);
        let known: Vec<_> = starts.map(|(partition, committed)| (partition, committed.unwrap_or(0), committed)).collect();
        let at: Vec<(TopicPartition, u64)> = known.iter().map(|(partition, position, _)| (partition.clone(), *position)).collect();
        self.member.take(&at, self.machine.is_holding());
        self.machine.taken(&known);
    }

    fn trouble(&mut self, error: EdgeError) -> Result<(), EdgeError> {
        self.context.tell(format!("meets: {error}"), None);
        match error {
            EdgeError::Retriable(_) | EdgeError::Abort(_) => self.machine.failed(Trouble::Abort),
            EdgeError::Renew(_) => self.machine.failed(Trouble::Renew),
            EdgeError::Expelled(_) | EdgeError::Stop(_) => return Err(error),
        }
        Ok(())
    }
}

fn new_producer(context: &Context, id: &str) -> Producer {
    loop {
        if let Ok(producer) = Producer::new(context.clone(), id) {
            return producer;
        }
    }
}
