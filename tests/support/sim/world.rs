//! The brokers as clients meet them: logs, transactions, groups, errors. One call is one event.

use super::check::Violation;
use super::group::{Group, Standing};
use super::log::{Ending, Log, Record};
use super::person::Note;
use super::{Fault, Faults, Mutation};
use crate::support::random::Random;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use stopgate::kafka::EdgeError;
use stopgate::kafka::offsets::{Offsets, Unknown};
use stopgate::record::TopicPartition;

pub const INBOUND: &str = "inbound-messages";
pub const OPT_OUTS: &str = "opt-outs";
pub const SENDS: &str = "sends";
pub const ALLOWED: &str = "sends.allowed";
pub const SUPPRESSED: &str = "sends.suppressed";
pub const DECISIONS: &str = "decisions";
pub const REPLIES: &str = "replies";
pub const DEAD_LETTERS: &str = "dead-letters";
pub const DETECT_GROUP: &str = "detect";
pub const FILTER_GROUP: &str = "filter";

/// The world's clock: one step of the scheduler is a second on records and a millisecond to workers.
pub const BEGAN_MS: i64 = 1_793_500_000_000;
/// `transaction.timeout.ms`, in steps.
const TRANSACTION_STEPS: u64 = 300;

/// One consent record on its way to the brokers.
pub struct InFlight {
    pub number: usize,
    pub partition: u32,
    pub record: Record,
}

/// One acknowledgement: number, partition, offset.
pub type Ack = (usize, u32, u64);

struct Open {
    id: String,
    since: u64,
    written: BTreeSet<(String, u32)>,
}

/// Who claims to be a member of a group.
#[derive(Clone, Debug)]
pub struct Membership {
    pub group: &'static str,
    pub name: String,
    pub incarnation: u64,
}

pub struct World {
    pub seed: u64,
    pub random: Random,
    pub step: u64,
    tick: u64,
    pub log: Log,
    pub groups: BTreeMap<&'static str, Group>,
    pub mutation: Option<Mutation>,
    pub faults: Faults,
    /// The brokers answer nothing until this step.
    pub down_until: u64,
    /// Views that have not noticed yet that the opt-outs topic was made anew. Until they have, nobody is told its end:
    /// appliers look every second, and nothing grows back beyond what they had read within one.
    pub unaware: BTreeSet<usize>,
    epochs: BTreeMap<String, u64>,
    open: BTreeMap<usize, Open>,
    /// By consent producer.
    pub in_flight: BTreeMap<u64, VecDeque<InFlight>>,
    acks: BTreeMap<u64, Vec<Ack>>,
    next_producer: u64,
    pub history: Vec<(u64, String, Option<usize>)>,
    pub violation: Option<Violation>,
    pub judge: super::check::Judge,
    pub counts: BTreeMap<&'static str, u64>,
}

impl World {
    pub fn new(seed: u64, mutation: Option<Mutation>, faults: Faults) -> Self {
        let mut world = Self {
            seed,
            random: Random::new(seed),
            step: 0,
            tick: 0,
            log: Log::default(),
            groups: [(DETECT_GROUP, Group::default()), (FILTER_GROUP, Group::default())].into(),
            mutation,
            faults,
            down_until: 0,
            unaware: BTreeSet::new(),
            epochs: BTreeMap::new(),
            open: BTreeMap::new(),
            in_flight: BTreeMap::new(),
            acks: BTreeMap::new(),
            next_producer: 0,
            history: Vec::new(),
            violation: None,
            judge: super::check::Judge::default(),
            counts: BTreeMap::new(),
        };
        let opt_outs = 1 + world.random.below(3) as usize;
        for (topic, partitions) in
            [(INBOUND, 2), (OPT_OUTS, opt_outs), (SENDS, 2), (ALLOWED, 2), (SUPPRESSED, 2), (DECISIONS, 1), (REPLIES, 1), (DEAD_LETTERS, 1)]
        {
            world.log.create(topic, partitions);
        }
        world.share_out(INBOUND, DETECT_GROUP);
        world.share_out(SENDS, FILTER_GROUP);
        world
    }

    /// Tells a group of all partitions of its topic.
    pub fn share_out(&mut self, topic: &str, group: &'static str) {
        let partitions = (0..self.log.partitions(topic)).map(|partition| (topic.into(), partition)).collect();
        self.group(group).set_partitions(partitions);
    }

    pub fn group(&mut self, group: &'static str) -> &mut Group {
        self.groups.get_mut(group).expect("a group")
    }

    pub fn tick(&mut self) -> u64 {
        self.tick += 1;
        self.tick
    }

    pub fn now_ms(&self) -> i64 {
        BEGAN_MS + self.step as i64 * 1000
    }

    pub fn is(&self, mutation: Mutation) -> bool {
        self.mutation == Some(mutation)
    }

    /// Whether a fault strikes, once in so many times. Draws the same whether it is switched on or not.
    pub fn strikes(&mut self, fault: Fault, one_in: u64) -> bool {
        let drawn = self.random.one_in(one_in);
        drawn && self.faults.has(fault)
    }

    pub fn tell(&mut self, who: &str, what: String, person: Option<usize>) {
        self.history.push((self.step, format!("{who}: {what}"), person));
    }

    pub fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    pub fn violate(&mut self, invariant: &'static str, what: String, person: Option<usize>) {
        if self.violation.is_none() {
            self.violation = Some(Violation { invariant, what, person });
        }
    }

    fn is_up(&self) -> Result<(), EdgeError> {
        if self.step < self.down_until { Err(EdgeError::Retriable(away())) } else { Ok(()) }
    }

    /// Appends outside of transactions.
    pub fn append(&mut self, topic: &str, partition: u32, key: Option<Vec<u8>>, value: Option<Vec<u8>>, note: Note) -> u64 {
        self.append_in(topic, partition, key, value, note, None)
    }

    pub fn append_in(
        &mut self,
        topic: &str,
        partition: u32,
        key: Option<Vec<u8>>,
        value: Option<Vec<u8>>,
        note: Note,
        transaction: Option<usize>,
    ) -> u64 {
        let record = Record { key, value, headers: Vec::new(), timestamp_ms: self.now_ms(), note };
        self.append_record(topic, partition, record, transaction)
    }

    fn append_record(&mut self, topic: &str, partition: u32, mut record: Record, transaction: Option<usize>) -> u64 {
        record.timestamp_ms = self.now_ms();
        let tick = self.tick();
        self.log.append(topic, partition, Some(record), transaction, tick)
    }

    // --- queries ---

    pub fn partitions(&mut self, topic: &str) -> Result<Option<u32>, EdgeError> {
        self.is_up()?;
        if self.strikes(Fault::LostAnswers, 60) {
            return Err(EdgeError::Retriable(away()));
        }
        Ok(Some(self.log.partitions(topic)))
    }

    pub fn ends(&mut self, topic: &str, partitions: u32) -> Result<Offsets, Unknown> {
        self.is_up()?;
        if self.strikes(Fault::LostAnswers, 20) {
            return Err(Unknown::Partition(0));
        }
        if topic == OPT_OUTS && !self.unaware.is_empty() {
            return Err(Unknown::Partition(0));
        }
        let known = &self.log.topic(topic).partitions;
        (0..partitions)
            .map(|at| known.get(at as usize).map(|partition| partition.end).ok_or(Unknown::Partition(at)))
            .collect::<Result<_, _>>()
            .map(Offsets::new)
    }

    pub fn committed(&mut self, group: &'static str, topic: &str, partitions: u32) -> Result<Vec<Option<u64>>, Unknown> {
        self.is_up()?;
        if self.strikes(Fault::LostAnswers, 60) {
            return Err(Unknown::Partition(0));
        }
        let group = self.group(group);
        Ok((0..partitions).map(|partition| group.committed(&(topic.into(), partition))).collect())
    }

    // --- transactions ---

    /// A producer of that id: its predecessor is fenced and what it left open is aborted.
    pub fn init_producer(&mut self, id: &str) -> Result<u64, EdgeError> {
        self.is_up()?;
        let epoch = self.epochs.get(id).copied().unwrap_or_default() + 1;
        self.epochs.insert(id.to_owned(), epoch);
        if !self.is(Mutation::ZombieNotFenced) {
            let left: Vec<usize> = self.open.iter().filter(|(_, open)| open.id == id).map(|(transaction, _)| *transaction).collect();
            left.into_iter().for_each(|transaction| self.end(transaction, Ending::Aborted));
        }
        Ok(epoch)
    }

    fn is_current(&self, id: &str, epoch: u64) -> Result<(), EdgeError> {
        match self.epochs.get(id) == Some(&epoch) || self.is(Mutation::ZombieNotFenced) {
            true => Ok(()),
            false => Err(EdgeError::Renew(KafkaError::Global(RDKafkaErrorCode::ProducerFenced))),
        }
    }

    /// Opens a transaction.
    pub fn begin(&mut self, id: &str) -> usize {
        self.log.endings.push(Ending::Open);
        let transaction = self.log.endings.len() - 1;
        self.open.insert(transaction, Open { id: id.to_owned(), since: self.step, written: BTreeSet::new() });
        transaction
    }

    pub fn write(&mut self, id: &str, epoch: u64, transaction: usize, topic: &str, partition: u32, record: Record) -> Result<(), EdgeError> {
        self.is_up()?;
        self.is_current(id, epoch)?;
        if self.strikes(Fault::Refusals, 150) {
            return Err(EdgeError::Abort(away()));
        }
        let Some(open) = self.open.get_mut(&transaction) else { return Err(EdgeError::Renew(away())) };
        open.written.insert((topic.to_owned(), partition));
        self.append_record(topic, partition, record, Some(transaction));
        Ok(())
    }

    /// Commits, with the positions of a member. Whether an error means that nothing was committed is for the caller to
    /// find out.
    pub fn commit(
        &mut self,
        id: &str,
        epoch: u64,
        transaction: usize,
        member: &Membership,
        positions: &BTreeMap<TopicPartition, u64>,
    ) -> Result<(), EdgeError> {
        if self.is_up().is_err() {
            return Err(EdgeError::Renew(away()));
        }
        self.is_current(id, epoch)?;
        if self.group(member.group).standing(&member.name, member.incarnation) != Standing::Member && !self.is(Mutation::ZombieNotFenced) {
            return Err(EdgeError::Abort(KafkaError::Global(RDKafkaErrorCode::IllegalGeneration)));
        }
        if self.strikes(Fault::Refusals, 60) {
            return Err(EdgeError::Abort(away()));
        }
        if !self.open.contains_key(&transaction) {
            return Err(EdgeError::Renew(away()));
        }
        let unknown = self.strikes(Fault::UnknownCommits, 30);
        if unknown && self.random.one_in(2) {
            return Err(EdgeError::Renew(away()));
        }
        self.end(transaction, Ending::Committed);
        self.group(member.group).commit(positions);
        self.count("commits");
        self.judge_commit(transaction);
        if unknown { Err(EdgeError::Renew(away())) } else { Ok(()) }
    }

    pub fn abort(&mut self, id: &str, epoch: u64, transaction: usize) -> Result<(), EdgeError> {
        self.is_up()?;
        self.is_current(id, epoch)?;
        if self.open.contains_key(&transaction) {
            self.end(transaction, Ending::Aborted);
        }
        Ok(())
    }

    pub fn end(&mut self, transaction: usize, ending: Ending) {
        let Some(open) = self.open.remove(&transaction) else { return };
        self.log.endings[transaction] = ending;
        for (topic, partition) in open.written {
            let tick = self.tick();
            self.log.append(&topic, partition, None, Some(transaction), tick);
        }
    }

    /// Notes that a transaction of a third party wrote here.
    pub fn wrote(&mut self, transaction: usize, topic: &str, partition: u32) {
        if let Some(open) = self.open.get_mut(&transaction) {
            open.written.insert((topic.to_owned(), partition));
        }
    }

    /// Transactions that were open too long are aborted, and their producers fenced.
    pub fn time_out(&mut self) {
        let late: Vec<(usize, String)> = self
            .open
            .iter()
            .filter(|(_, open)| self.step > open.since + TRANSACTION_STEPS)
            .map(|(transaction, open)| (*transaction, open.id.clone()))
            .collect();
        for (transaction, id) in late {
            *self.epochs.entry(id.clone()).or_default() += 1;
            self.end(transaction, Ending::Aborted);
            self.tell("broker", format!("the transaction of {id} timed out"), None);
        }
    }

    // --- the producer of consent records ---

    pub fn new_consent_producer(&mut self) -> u64 {
        self.next_producer += 1;
        self.in_flight.insert(self.next_producer, VecDeque::new());
        self.next_producer
    }

    pub fn send(&mut self, producer: u64, in_flight: InFlight) {
        self.in_flight.entry(producer).or_default().push_back(in_flight);
    }

    /// The brokers take the oldest record of a producer.
    pub fn deliver(&mut self, producer: u64) {
        if self.is_up().is_err() {
            return;
        }
        let Some(InFlight { number, partition, record }) = self.in_flight.get_mut(&producer).and_then(VecDeque::pop_front) else { return };
        let offset = self.append_record(OPT_OUTS, partition, record, None);
        self.acks.entry(producer).or_default().push((number, partition, offset));
    }

    pub fn acks(&mut self, producer: u64) -> Vec<Ack> {
        for _ in 0..self.random.below(3) {
            self.deliver(producer);
        }
        self.acks.remove(&producer).unwrap_or_default()
    }

    /// A producer is gone: some of what was in flight still lands.
    pub fn abandon(&mut self, producer: u64) {
        for _ in 0..self.random.below(3) {
            self.deliver(producer);
        }
        self.in_flight.remove(&producer);
        self.acks.remove(&producer);
    }
}

pub fn away() -> KafkaError {
    KafkaError::Global(RDKafkaErrorCode::AllBrokersDown)
}
