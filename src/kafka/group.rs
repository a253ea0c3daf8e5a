//! A member of a consumer group: records, and rebalances as requests to its owner.
//!
//! The client's rebalance callback only notes what is asked; the worker ends its transaction first and then takes or
//! gives partitions itself, at offsets that it has looked up itself: a missing position is the beginning of the log, a
//! position that the log no longer holds is a hold. Nothing is ever skipped by a reset policy.
//!
//! What a member may commit is not left to the client either, which tells the brokers the id and the generation that it has at
//! that moment. Where its session ends while it waits to join again (librdkafka 2.12.1, `rd_kafka_cgrp_handle_JoinGroup`), it
//! joins as another member and keeps its partitions, which others have had meanwhile. So a position is committed only under the
//! member id under which its partition was taken, and in the generation of which the member's owner has heard.

use super::ffi::consume::{Consumed, MemberConsumer};
use super::ffi::membership::{Membership, membership};
use super::offsets::OffsetsClient;
use super::{Connection, EdgeError};
use crate::record::{Header, Rebalance, Record, TopicName, TopicPartition};
use rdkafka::Offset;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext, ConsumerGroupMetadata};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::topic_partition_list::TopicPartitionList;
use rdkafka::types::RDKafkaRespErr;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How long an answer of the coordinator is waited for at first, and how long nothing is asked after none.
const ASK_AGAIN: Duration = Duration::from_millis(5);

struct GroupContext {
    topics: Vec<TopicName>,
    asked: Mutex<VecDeque<Rebalance>>,
    /// The membership when the group asked last.
    heard: Mutex<Option<Membership>>,
    /// The member leaves: nobody will carry requests out any more, so the callback does.
    leaving: AtomicBool,
}

impl GroupContext {
    fn heard(&self) -> MutexGuard<'_, Option<Membership>> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn partitions(&self, list: &TopicPartitionList) -> Vec<TopicPartition> {
        let elements = list.elements();
        let named = elements.iter().filter_map(|element| {
            let topic = self.topics.iter().find(|topic| ***topic == *element.topic())?;
            Some((topic.clone(), u32::try_from(element.partition()).ok()?))
        });
        named.collect()
    }
}

super::logs_through_tracing!(GroupContext);

impl ConsumerContext for GroupContext {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, error: RDKafkaRespErr, list: &mut TopicPartitionList) {
        let takes = error == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS;
        if self.leaving.load(Ordering::Relaxed) {
            answer(consumer, takes, list);
            return;
        }
        let partitions = self.partitions(list);
        let asked = if takes { Rebalance::Take(partitions) } else { Rebalance::Give(partitions) };
        *self.heard() = membership(consumer);
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).push_back(asked);
    }
}

/// The answer of a member that leaves: it gives what it is asked for, and takes nothing.
fn answer(consumer: &BaseConsumer<GroupContext>, takes: bool, asked: &TopicPartitionList) {
    let answered = if takes { consumer.incremental_assign(&TopicPartitionList::new()) } else { consumer.incremental_unassign(asked) };
    if let Err(error) = answered {
        tracing::debug!(target: "stopgate::kafka", %error, "leaving the group");
    }
}

/// One received record, borrowed from the client.
pub struct Received<'a> {
    consumed: Consumed<'a>,
    topic: &'a TopicName,
    /// It was looked through for headers and has none: the client would decode their absence each time anew.
    bare: Cell<bool>,
}

impl<'a> Received<'a> {
    pub(super) fn of(consumed: Consumed<'a>, topic: &'a TopicName) -> Self {
        Self { consumed, topic, bare: Cell::new(false) }
    }

    /// Whether its timestamp is the broker's, from when the record was appended.
    pub fn has_append_time(&self) -> bool {
        self.consumed.has_append_time()
    }

    /// The topic it was read from.
    pub fn topic(&self) -> &'a TopicName {
        self.topic
    }

    /// Its partition.
    pub fn partition(&self) -> u32 {
        self.consumed.partition().unwrap_or_default() // the client hands over no negative partition
    }

    /// Its offset.
    pub fn offset(&self) -> u64 {
        self.consumed.offset().unwrap_or_default() // nor a negative offset
    }

    /// Appends its headers; most records have none, and then nothing is allocated.
    pub fn headers<'h>(&'h self, out: &mut Vec<Header<'h>>) {
        let before = out.len();
        self.consumed.headers(out);
        self.bare.set(out.len() == before);
    }

    /// The record with the headers that [`Received::headers`] found.
    pub fn record<'r>(&'r self, headers: &'r [Header<'r>]) -> Record<'r> {
        Record {
            topic: self.topic,
            partition: self.partition(),
            offset: self.offset(),
            timestamp_ms: self.consumed.timestamp_ms(),
            key: self.consumed.key(),
            value: self.consumed.value(),
            headers,
        }
    }

    pub(super) fn consumed(&self) -> &Consumed<'a> {
        &self.consumed
    }

    /// The record as the holder of headers; `None` where it is known to have none.
    pub(super) fn with_headers(&self) -> Option<&Consumed<'a>> {
        (!self.bare.get()).then_some(&self.consumed)
    }
}

/// What receiving met beside records.
#[derive(Debug, PartialEq, Eq)]
pub enum Met {
    /// Nothing.
    Nothing,
    /// The client has stopped reading some partition, because its position lies outside of its log, or has stepped over
    /// a batch that it cannot read. It does not say which: everything is read again, after a look at the [`bounds`].
    Broken,
}

/// How a partition is to be read from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// From the group's committed position.
    Committed(u64),
    /// From the beginning of its log: the group never committed a position.
    Beginning(u64),
    /// Not at all: the committed position lies outside of what the log holds.
    OutOfRange { committed: u64, beginning: u64, end: u64 },
}

/// A member of a consumer group. For one thread.
///
/// The client takes any call that gives or takes partitions for the answer to what the group asked last, also where it was
/// not heard yet: the group then hands the partitions on while this member goes on with them. So each such call is followed
/// by a look at what was asked, before anything more is received or decided.
pub struct GroupConsumer {
    member: MemberConsumer<GroupContext>,
    topics: Vec<TopicName>,
    /// The member id under which each partition was taken; absent where it was under none that would hold.
    taken_as: RefCell<BTreeMap<TopicPartition, Arc<str>>>,
    /// Something was met that makes everything be read again.
    broken: Cell<bool>,
}

impl GroupConsumer {
    /// A member that has not joined yet, with a stable id: a restart within the session time-out keeps its partitions.
    pub fn new(connection: &Connection, group: &str, member: &str, topics: &[TopicName]) -> Result<Self, EdgeError> {
        let mut config = connection.consumer(group);
        config.set("group.instance.id", member);
        config.set("isolation.level", "read_committed");
        config.set("auto.offset.reset", "error");
        config.set("partition.assignment.strategy", "cooperative-sticky");
        let defaults = [
            ("session.timeout.ms", "10000"),
            // What a cooperative group takes away from one member, the next gets once all have heard of it.
            ("heartbeat.interval.ms", "500"),
            ("max.poll.interval.ms", "300000"),
            // Bounded memory under lag, and no one-second stall each time a bound is met.
            ("queued.min.messages", "50000"),
            ("queued.max.messages.kbytes", "16384"),
            ("fetch.queue.backoff.ms", "2"),
            ("fetch.wait.max.ms", "100"),
        ];
        connection.set_defaults(&mut config, &defaults);
        let context =
            GroupContext { topics: topics.to_vec(), asked: Mutex::default(), heard: Mutex::default(), leaving: AtomicBool::new(false) };
        let consumer: BaseConsumer<GroupContext> = config.create_with_context(context).map_err(EdgeError::from_kafka)?;
        let member = MemberConsumer::new(consumer).ok_or_else(|| EdgeError::Stop(KafkaError::ClientCreation("no queue".to_owned())))?;
        Ok(Self { member, topics: topics.to_vec(), taken_as: RefCell::default(), broken: Cell::new(false) })
    }

    /// Attends to all that is not a record: rebalances, which the context notes, and errors of the member. Whoever waits
    /// for something else than records must do so again and again: a member that was fenced learns it here alone, and
    /// gets no answer to anything.
    pub fn attend(&self) -> Result<(), EdgeError> {
        loop {
            match self.consumer().poll(Duration::ZERO) {
                // Partitions are led past this queue before they are taken, so nothing comes this way; should a record
                // do so all the same, it is not lost: everything is read again.
                Some(Ok(_)) => self.broken.set(true),
                Some(Err(error)) => match error.rdkafka_error_code() {
                    Some(code) if meets(code)? == Met::Broken => self.broken.set(true),
                    Some(_) | None => tracing::debug!(target: "stopgate::kafka", %error, "receiving continues"),
                },
                None if self.member.has_events() => {}
                None => return Ok(()),
            }
        }
    }

    /// Appends up to `max` records to `out`; waits at most `wait` for the first. Returns at once when the group asks for
    /// something.
    pub fn receive<'a>(&'a self, wait: Duration, max: usize, out: &mut Vec<Received<'a>>) -> Result<Met, EdgeError> {
        self.attend()?;
        if self.broken.take() {
            return Ok(Met::Broken);
        }
        if self.is_asked() {
            return Ok(Met::Nothing);
        }
        let mut consumed = Vec::new();
        self.member.consume(wait, max, &mut consumed);
        out.reserve(consumed.len());
        for consumed in consumed {
            match consumed.error() {
                Some(code) if meets(code)? == Met::Broken => return Ok(Met::Broken),
                Some(error) => tracing::debug!(target: "stopgate::kafka", %error, "receiving continues"),
                None => {
                    let Some(topic) = self.topic_of(&consumed, out.last()) else { continue };
                    out.push(Received::of(consumed, topic));
                }
            }
        }
        Ok(Met::Nothing)
    }

    /// Runs of one topic are the rule: the name is shared with the record before.
    fn topic_of<'a>(&'a self, consumed: &Consumed<'_>, before: Option<&Received<'a>>) -> Option<&'a TopicName> {
        if let Some(before) = before
            && before.consumed.topic_number() == consumed.topic_number()
        {
            return Some(before.topic);
        }
        let name = consumed.topic()?;
        self.topics.iter().find(|topic| ***topic == *name)
    }

    fn consumer(&self) -> &BaseConsumer<GroupContext> {
        self.member.consumer()
    }

    fn is_asked(&self) -> bool {
        !self.consumer().context().asked.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// What the group asks next, if anything. Must be carried out before the next record is received.
    pub fn asked(&self) -> Option<Rebalance> {
        self.consumer().context().asked.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }

    /// Where each partition is to be read from: its committed position, else the beginning of its log.
    pub fn starts(
        &self,
        partitions: &[TopicPartition],
        offsets: &OffsetsClient,
        timeout: Duration,
    ) -> Result<Vec<(TopicPartition, Start)>, super::offsets::Unknown> {
        let committed = self.committed(partitions, timeout)?;
        let bounds = bounds(offsets, partitions, timeout)?;
        let start = |(partition, committed): (&TopicPartition, Option<u64>)| {
            let (beginning, end) = bounds.get(partition).copied().unwrap_or((0, 0)); // asked for above
            let start = match committed {
                None => Start::Beginning(beginning),
                Some(committed) if (beginning..=end).contains(&committed) => Start::Committed(committed),
                Some(committed) => Start::OutOfRange { committed, beginning, end },
            };
            (partition.clone(), start)
        };
        Ok(partitions.iter().zip(committed).map(start).collect())
    }

    /// The group's committed position of each partition.
    pub fn committed(&self, partitions: &[TopicPartition], timeout: Duration) -> Result<Vec<Option<u64>>, super::offsets::Unknown> {
        let failed = |error| super::offsets::Unknown::Query(EdgeError::from_kafka(error));
        let asked = list(partitions.iter().map(|partition| (partition, Offset::Invalid))).map_err(failed)?;
        let answer = self.consumer().committed_offsets(asked, timeout).map_err(failed)?;
        partitions
            .iter()
            .map(|(topic, partition)| {
                let unknown = || super::offsets::Unknown::Partition(*partition);
                let element = answer.find_partition(topic, *partition as i32).ok_or_else(unknown)?;
                element.error().map_err(|_| unknown())?;
                Ok(match element.offset() {
                    Offset::Offset(offset) => u64::try_from(offset).ok(),
                    Offset::Beginning | Offset::End | Offset::Stored | Offset::Invalid | Offset::OffsetTail(_) => None,
                })
            })
            .collect()
    }

    /// Takes partitions, each at its offset. Partitions in `paused` are taken and not read.
    pub fn take(&self, starts: &[(TopicPartition, u64)], paused: &[TopicPartition]) -> Result<(), EdgeError> {
        let member = self.consumer().context().heard().as_ref().map(|heard| heard.member.clone());
        for (partition, _) in starts {
            match &member {
                Some(member) => self.taken_as.borrow_mut().insert(partition.clone(), member.clone()),
                None => self.taken_as.borrow_mut().remove(partition),
            };
        }
        self.assign(starts, paused)
    }

    fn assign(&self, starts: &[(TopicPartition, u64)], paused: &[TopicPartition]) -> Result<(), EdgeError> {
        let at = |offset: u64| Offset::Offset(i64::try_from(offset).unwrap_or(i64::MAX));
        let list = list(starts.iter().map(|(partition, offset)| (partition, at(*offset)))).map_err(EdgeError::from_kafka)?;
        for ((topic, partition), _) in starts {
            self.member.lead(topic, *partition);
        }
        self.consumer().incremental_assign(&list).map_err(EdgeError::from_kafka)?;
        if !paused.is_empty() {
            self.pause(paused)?;
        }
        self.attend()
    }

    /// Gives partitions back.
    pub fn give(&self, partitions: &[TopicPartition]) -> Result<(), EdgeError> {
        self.taken_as.borrow_mut().retain(|partition, _| !partitions.contains(partition));
        self.unassign(partitions)
    }

    fn unassign(&self, partitions: &[TopicPartition]) -> Result<(), EdgeError> {
        let list = invalid(partitions)?;
        // A pause stays with the client's partition through giving and taking: it ends here.
        self.consumer().resume(&list).map_err(EdgeError::from_kafka)?;
        self.consumer().incremental_unassign(&list).map_err(EdgeError::from_kafka)?;
        for (topic, partition) in partitions {
            self.member.leave(topic, *partition);
        }
        self.attend()
    }

    /// Goes back to these positions: what was fetched beyond them is read again. Taking the partitions anew is used
    /// instead of seeking, which fails for a partition whose fetching has not begun.
    pub fn rewind(&self, positions: &[(TopicPartition, u64)]) -> Result<(), EdgeError> {
        let partitions: Vec<TopicPartition> = positions.iter().map(|(partition, _)| partition.clone()).collect();
        self.unassign(&partitions)?;
        self.assign(positions, &[])
    }

    /// Stops reading these partitions; the member goes on polling.
    pub fn pause(&self, partitions: &[TopicPartition]) -> Result<(), EdgeError> {
        self.consumer().pause(&invalid(partitions)?).map_err(EdgeError::from_kafka)
    }

    /// Reads these partitions again.
    pub fn resume(&self, partitions: &[TopicPartition]) -> Result<(), EdgeError> {
        self.consumer().resume(&invalid(partitions)?).map_err(EdgeError::from_kafka)
    }

    /// Waits until the group's coordinator has answered a question and the topics are known, or until the deadline: to join takes one
    /// request from then on.
    pub fn prepare_to_join(&self, deadline: Instant) {
        for topic in &self.topics {
            // That it is not known is met, and told, by whoever reads it.
            drop(self.consumer().fetch_metadata(Some(topic), deadline.saturating_duration_since(Instant::now())));
        }
        let any: Vec<TopicPartition> = self.topics.iter().take(1).map(|topic| (topic.clone(), 0)).collect();
        let mut patience = ASK_AGAIN;
        // The client may overlook that the coordinator was found, until it is asked again.
        while self.committed(&any, patience).is_err() && Instant::now() < deadline {
            thread::sleep(ASK_AGAIN);
            patience *= 2;
        }
    }

    /// Leaves the group and joins it again, which makes it assign anew.
    pub fn rejoin(&self) -> Result<(), EdgeError> {
        self.consumer().unsubscribe();
        self.join()
    }

    /// Joins the group.
    pub fn join(&self) -> Result<(), EdgeError> {
        let names: Vec<&str> = self.topics.iter().map(|topic| &**topic).collect();
        self.consumer().subscribe(&names).map_err(EdgeError::from_kafka)
    }

    /// How far each partition was handed over: past records, and past markers and aborted records too. Partitions of
    /// which nothing was handed over yet are left out.
    pub fn positions(&self) -> Result<BTreeMap<TopicPartition, u64>, EdgeError> {
        let positions = self.consumer().position().map_err(EdgeError::from_kafka)?;
        let context = self.consumer().context();
        let known = positions.elements().into_iter().filter_map(|element| {
            let topic = context.topics.iter().find(|topic| ***topic == *element.topic())?;
            match element.offset() {
                Offset::Offset(offset) => Some(((topic.clone(), u32::try_from(element.partition()).ok()?), u64::try_from(offset).ok()?)),
                Offset::Beginning | Offset::End | Offset::Stored | Offset::Invalid | Offset::OffsetTail(_) => None,
            }
        });
        Ok(known.collect())
    }

    /// The membership under which positions of these partitions may be committed.
    pub(super) fn commits<'p>(&self, mut partitions: impl Iterator<Item = &'p TopicPartition>) -> Result<ConsumerGroupMetadata, EdgeError> {
        let is_unheard = || EdgeError::Abort(KafkaError::Global(RDKafkaErrorCode::IllegalGeneration));
        // In this order: what was heard and still holds afterwards is what the metadata say.
        let metadata = self.consumer().group_metadata().ok_or_else(is_unheard)?;
        let now = membership(self.consumer());
        let Some(now) = now.filter(|now| self.consumer().context().heard().as_ref() == Some(now)) else { return Err(is_unheard()) };
        let taken_as = self.taken_as.borrow();
        if partitions.any(|partition| taken_as.get(partition) != Some(&now.member)) {
            return Err(EdgeError::Expelled(KafkaError::Global(RDKafkaErrorCode::UnknownMemberId)));
        }
        Ok(metadata)
    }
}

impl Drop for GroupConsumer {
    fn drop(&mut self) {
        // Closing asks for all partitions back, and waits until that was carried out, and for the answer to what was asked before.
        self.consumer().context().leaving.store(true, Ordering::Relaxed);
        for takes in [true, false] {
            answer(self.consumer(), takes, &TopicPartitionList::new());
        }
    }
}

/// What an error that came in place of a record means. All codes that are treated apart stand here.
fn meets(code: RDKafkaErrorCode) -> Result<Met, EdgeError> {
    match code {
        RDKafkaErrorCode::AutoOffsetReset
        | RDKafkaErrorCode::OffsetOutOfRange
        | RDKafkaErrorCode::BadMessage
        | RDKafkaErrorCode::BadCompression
        | RDKafkaErrorCode::InvalidMessage => Ok(Met::Broken),
        RDKafkaErrorCode::TopicAuthorizationFailed | RDKafkaErrorCode::GroupAuthorizationFailed => {
            Err(EdgeError::Stop(KafkaError::MessageConsumption(code)))
        }
        RDKafkaErrorCode::Fatal | RDKafkaErrorCode::FencedInstanceId => Err(EdgeError::Renew(KafkaError::MessageConsumption(code))),
        // Brokers restart, leaders move, topics appear late: the client goes on by itself.
        _ => Ok(Met::Nothing),
    }
}

/// First and end offset that each partition's log holds.
pub fn bounds(
    offsets: &OffsetsClient,
    partitions: &[TopicPartition],
    timeout: Duration,
) -> Result<BTreeMap<TopicPartition, (u64, u64)>, super::offsets::Unknown> {
    let mut counts: BTreeMap<&TopicName, u32> = BTreeMap::new();
    for (topic, partition) in partitions {
        let count = counts.entry(topic).or_default();
        *count = (*count).max(partition + 1);
    }
    let mut bounds = BTreeMap::new();
    for (topic, count) in counts {
        let beginnings = offsets.beginnings(topic, count, timeout)?;
        let ends = offsets.ends(topic, count, timeout)?;
        for (partition, bound) in (0..).zip(beginnings.as_slice().iter().copied().zip(ends.as_slice().iter().copied())) {
            bounds.insert((topic.clone(), partition), bound);
        }
    }
    Ok(bounds)
}

pub(super) fn list<'a>(offsets: impl Iterator<Item = (&'a TopicPartition, Offset)>) -> Result<TopicPartitionList, KafkaError> {
    let mut list = TopicPartitionList::new();
    for ((topic, partition), offset) in offsets {
        list.add_partition_offset(topic, *partition as i32, offset)?;
    }
    Ok(list)
}

fn invalid(partitions: &[TopicPartition]) -> Result<TopicPartitionList, EdgeError> {
    list(partitions.iter().map(|partition| (partition, Offset::Invalid))).map_err(EdgeError::from_kafka)
}
