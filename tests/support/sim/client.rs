//! A worker's clients: the member of a group, and the producer of its transactions.

use super::Mutation;
use super::context::Context;
use super::group::Standing;
use super::log::Record;
use super::world::{Membership, World, away};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use stopgate::kafka::EdgeError;
use stopgate::record::{Rebalance, TopicName, TopicPartition};

/// One received record.
#[derive(Clone, Debug)]
pub struct Received {
    pub topic: TopicName,
    pub partition: u32,
    pub offset: u64,
    /// When the batch that it came with was received.
    pub tick: u64,
    pub record: Record,
}

impl Received {
    pub fn place(&self) -> TopicPartition {
        (self.topic.clone(), self.partition)
    }

    /// As the stages read it.
    pub fn as_record(&self) -> stopgate::record::Record<'_> {
        stopgate::record::Record {
            topic: &self.topic,
            partition: self.partition,
            offset: self.offset,
            timestamp_ms: Some(self.record.timestamp_ms),
            key: self.record.key.as_deref(),
            value: self.record.value.as_deref(),
            headers: &[],
        }
    }
}

struct Assigned {
    position: u64,
    paused: bool,
}

pub struct Member {
    context: Context,
    pub membership: Membership,
    assigned: BTreeMap<TopicPartition, Assigned>,
    asks: VecDeque<Rebalance>,
    /// Partitions that were lost and not given back yet: the coordinator knows already.
    lost: BTreeSet<TopicPartition>,
}

impl Member {
    pub fn join(context: Context, group: &'static str, name: &str) -> Self {
        let incarnation = context.call(|world| world.group(group).join(name));
        let membership = Membership { group, name: name.to_owned(), incarnation };
        Self { context, membership, assigned: BTreeMap::new(), asks: VecDeque::new(), lost: BTreeSet::new() }
    }

    /// What the group asks next.
    pub fn asked(&mut self) -> Option<Rebalance> {
        self.asks.pop_front()
    }

    /// Up to `max` records; none where the group asks for something. An error means that another process has this name.
    pub fn receive(&mut self, max: usize) -> Result<Vec<Received>, EdgeError> {
        let Membership { group, ref name, incarnation } = self.membership;
        let (assigned, asks, lost) = (&mut self.assigned, &mut self.asks, &mut self.lost);
        let mut rejoined = None;
        let received = self.context.call(|world| {
            match world.group(group).standing(name, incarnation) {
                Standing::Member => {}
                Standing::Replaced => return Err(EdgeError::Renew(away())),
                Standing::Expelled => {
                    let partitions: Vec<TopicPartition> = assigned.keys().cloned().collect();
                    asks.clear();
                    lost.extend(partitions.iter().cloned());
                    if !partitions.is_empty() {
                        asks.push_back(Rebalance::Give(partitions));
                    }
                    rejoined = Some(world.group(group).join(name));
                }
            }
            asks.extend(world.group(group).asks(name));
            if !asks.is_empty() || world.step < world.down_until {
                return Ok(Vec::new());
            }
            Ok(fetch(world, assigned, max))
        });
        if let Some(incarnation) = rejoined {
            self.membership.incarnation = incarnation;
        }
        received
    }

    /// Where partitions are to be read from: the committed position, if there is one.
    pub fn committed(&self, partitions: &[TopicPartition]) -> Result<Vec<Option<u64>>, EdgeError> {
        self.context.call(|world| {
            if world.step < world.down_until {
                return Err(EdgeError::Retriable(away()));
            }
            let group = world.group(self.membership.group);
            Ok(partitions.iter().map(|partition| group.committed(partition)).collect())
        })
    }

    pub fn take(&mut self, starts: &[(TopicPartition, u64)], paused: bool) {
        self.lost.retain(|lost| starts.iter().all(|(partition, _)| partition != lost));
        self.assigned.extend(starts.iter().map(|(partition, position)| (partition.clone(), Assigned { position: *position, paused })));
    }

    pub fn give(&mut self, partitions: &[TopicPartition]) {
        for partition in partitions {
            self.assigned.remove(partition);
        }
        let kept: Vec<TopicPartition> = partitions.iter().filter(|partition| !self.lost.contains(*partition)).cloned().collect();
        let Membership { group, ref name, incarnation } = self.membership;
        self.context.call(|world| {
            if world.group(group).standing(name, incarnation) == Standing::Member {
                world.group(group).gave(name, &kept);
            }
        });
    }

    pub fn rewind(&mut self, positions: &[(TopicPartition, u64)]) {
        self.assigned.extend(positions.iter().map(|(partition, position)| (partition.clone(), Assigned { position: *position, paused: false })));
    }

    pub fn pause(&mut self, paused: bool) {
        self.assigned.values_mut().for_each(|assigned| assigned.paused = paused);
    }

    pub fn positions(&self) -> BTreeMap<TopicPartition, u64> {
        self.assigned.iter().map(|(partition, assigned)| (partition.clone(), assigned.position)).collect()
    }
}

fn fetch(world: &mut World, assigned: &mut BTreeMap<TopicPartition, Assigned>, max: usize) -> Vec<Received> {
    let mut all = Vec::new();
    let tick = world.tick();
    for ((topic, partition), assigned) in assigned.iter_mut().filter(|(_, assigned)| !assigned.paused) {
        if world.random.one_in(3) {
            continue;
        }
        let room = (1 + world.random.below(max as u64) as usize).min(max - all.len());
        if room == 0 {
            break;
        }
        let (records, position) = world.log.read(topic, *partition, assigned.position, room);
        assigned.position = position;
        let received = |(offset, record)| Received { topic: topic.clone(), partition: *partition, offset, tick, record };
        all.extend(records.into_iter().map(received));
    }
    all
}

/// A transactional producer and its transaction.
pub struct Producer {
    context: Context,
    id: String,
    epoch: u64,
    transaction: Option<usize>,
}

impl Producer {
    pub fn new(context: Context, id: &str) -> Result<Self, EdgeError> {
        let epoch = context.call(|world| world.init_producer(id))?;
        Ok(Self { context, id: id.to_owned(), epoch, transaction: None })
    }

    pub fn begin(&mut self) {
        self.transaction = Some(self.context.peek(|world| world.begin(&self.id)));
    }

    pub fn write(&self, topic: &str, partition: u32, record: Record) -> Result<(), EdgeError> {
        if self.context.peek(|world| world.random.one_in(4)) {
            self.context.turn.wait();
        }
        let Some(transaction) = self.transaction else { unreachable!("the driver begins before it decides") };
        self.context.peek(|world| world.write(&self.id, self.epoch, transaction, topic, partition, record))
    }

    pub fn commit(&mut self, member: &Membership, positions: &BTreeMap<TopicPartition, u64>) -> Result<(), EdgeError> {
        let Some(transaction) = self.transaction else { unreachable!("the driver begins before it commits") };
        let mut within = positions.clone();
        if self.context.peek(|world| world.is(Mutation::OffsetsOutside)) {
            self.context.call(|world| world.group(member.group).commit(positions));
            self.context.turn.wait();
            within.clear();
        }
        self.context.call(|world| world.commit(&self.id, self.epoch, transaction, member, &within))?;
        self.transaction = None;
        Ok(())
    }

    pub fn abort(&mut self) -> Result<(), EdgeError> {
        if let Some(transaction) = self.transaction {
            self.context.call(|world| world.abort(&self.id, self.epoch, transaction))?;
            self.transaction = None;
        }
        Ok(())
    }
}
