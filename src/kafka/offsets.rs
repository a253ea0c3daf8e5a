//! Where logs begin and end, and how far a group has come: asked on a client that never fetches.

use super::{Connection, EdgeError, LogOnly};
use crate::record::{TopicName, TopicPartition};
use rdkafka::Offset;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::metadata::Metadata;
use rdkafka::topic_partition_list::TopicPartitionList;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Why offsets are not known. Not knowing is no number: whoever waits for them holds.
#[derive(Debug, thiserror::Error)]
pub enum Unknown {
    /// The query itself failed.
    #[error("the brokers did not answer: {0}")]
    Query(#[from] EdgeError),
    /// One partition failed or was missing in the answer.
    #[error("no offset is known of partition {0}")]
    Partition(u32),
    /// The brokers do not know the topic.
    #[error("the brokers do not know the topic")]
    Topic,
}

/// A topic as the brokers describe it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Described {
    /// Given when it was created: a topic that was deleted and created again has another.
    pub id: String,
    pub partitions: u32,
}

/// One offset for each partition of a topic, all known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offsets(Vec<u64>);

impl Offsets {
    /// Offsets in order of partition.
    pub fn new(offsets: Vec<u64>) -> Self {
        Self(offsets)
    }

    /// In order of partition.
    pub fn as_slice(&self) -> &[u64] {
        &self.0
    }
}

/// So much of a client's log is told with a failure.
const MOST_LOGGED: usize = 32;

/// A client for queries: never subscribed, never assigned, so that no long poll is in the way.
pub struct OffsetsClient {
    consumer: BaseConsumer<LogOnly>,
}

impl OffsetsClient {
    /// A client that sees all that is acknowledged, in open transactions too (`read_uncommitted`). Its group is the one
    /// whose committed positions [`OffsetsClient::committed`] reads.
    pub fn new(connection: &Connection, group: &str) -> Result<Self, EdgeError> {
        Self::isolated(connection, group, "read_uncommitted")
    }

    /// A client whose ends are those of `read_committed` readers: what lies before them is committed or aborted.
    pub fn of_committed(connection: &Connection, group: &str) -> Result<Self, EdgeError> {
        Self::isolated(connection, group, "read_committed")
    }

    fn isolated(connection: &Connection, group: &str, isolation: &str) -> Result<Self, EdgeError> {
        let mut config = connection.consumer(group);
        config.set("isolation.level", isolation);
        // A moved leader is found soon: a deposed one could answer with an old end.
        config.set("topic.metadata.refresh.interval.ms", "5000");
        let consumer = config.create_with_context(LogOnly).map_err(EdgeError::from_kafka)?;
        Ok(Self { consumer })
    }

    /// The end (next offset to be written) of every partition.
    pub fn ends(&self, topic: &str, partitions: u32, timeout: Duration) -> Result<Offsets, Unknown> {
        self.query(topic, partitions, Offset::End, timeout)
    }

    /// The first offset that every partition still holds.
    pub fn beginnings(&self, topic: &str, partitions: u32, timeout: Duration) -> Result<Offsets, Unknown> {
        self.query(topic, partitions, Offset::Beginning, timeout)
    }

    /// The first offset of every partition whose record is of that time or later, in milliseconds since the Unix epoch;
    /// its end where there is none. A record of an earlier time may lie behind it where producers set the times.
    pub fn at_time(&self, topic: &str, partitions: u32, time_ms: i64, timeout: Duration) -> Result<Offsets, Unknown> {
        let failed = |error| Unknown::Query(EdgeError::from_kafka(error));
        let ends = self.ends(topic, partitions, timeout)?;
        let asked = list(topic, 0..partitions, Offset::Offset(time_ms.max(0))).map_err(failed)?;
        let answer = self.consumer.offsets_for_times(asked, timeout).map_err(failed)?;
        let offsets = (0..).zip(ends.as_slice()).map(|(partition, end)| {
            let element = answer.find_partition(topic, partition as i32).ok_or(Unknown::Partition(partition))?;
            match (element.error(), element.offset()) {
                (Ok(()), Offset::Offset(offset)) if offset >= 0 => Ok(offset as u64),
                (Ok(()), Offset::End) => Ok(*end),
                (Ok(()) | Err(_), _) => Err(Unknown::Partition(partition)),
            }
        });
        Ok(Offsets(offsets.collect::<Result<_, _>>()?))
    }

    fn query(&self, topic: &str, partitions: u32, what: Offset, timeout: Duration) -> Result<Offsets, Unknown> {
        let failed = |error| Unknown::Query(EdgeError::from_kafka(error));
        let asked = list(topic, 0..partitions, what).map_err(failed)?;
        // One ListOffsets request for each leader.
        let answer = self.consumer.offsets_for_times(asked, timeout).map_err(failed)?;
        known(&answer, topic, partitions)
    }

    /// The committed position of the client's group in every partition; `None` where it never committed. Positions
    /// within a transaction that is not decided yet do not count.
    pub fn committed(&self, topic: &str, partitions: u32, timeout: Duration) -> Result<Vec<Option<u64>>, Unknown> {
        let failed = |error| Unknown::Query(EdgeError::from_kafka(error));
        let asked = list(topic, 0..partitions, Offset::Invalid).map_err(failed)?;
        let answer = self.consumer.committed_offsets(asked, timeout).map_err(failed)?;
        (0..partitions)
            .map(|partition| {
                let element = answer.find_partition(topic, partition as i32).ok_or(Unknown::Partition(partition))?;
                element.error().map_err(|_| Unknown::Partition(partition))?;
                Ok(match element.offset() {
                    Offset::Offset(offset) => u64::try_from(offset).ok(),
                    Offset::Beginning | Offset::End | Offset::Stored | Offset::Invalid | Offset::OffsetTail(_) => None,
                })
            })
            .collect()
    }

    /// Number of partitions of a topic as the brokers tell it now; `None` where it does not exist.
    pub fn partitions(&self, topic: &str, timeout: Duration) -> Result<Option<u32>, EdgeError> {
        let metadata = self.metadata(Some(topic), timeout)?;
        let found = metadata.topics().iter().find(|found| found.name() == topic && found.error().is_none());
        Ok(found.map(|found| found.partitions().len() as u32).filter(|&count| count > 0))
    }

    /// Number of brokers, and the partition counts of the topics that exist.
    pub(super) fn cluster(&self, timeout: Duration) -> Result<(usize, BTreeMap<String, u32>), EdgeError> {
        let metadata = self.metadata(None, timeout)?;
        let topics = metadata.topics().iter().filter(|topic| topic.error().is_none());
        let counts = topics.map(|topic| (topic.name().to_owned(), topic.partitions().len() as u32)).collect();
        Ok((metadata.brokers().len(), counts))
    }

    fn metadata(&self, topic: Option<&str>, timeout: Duration) -> Result<Metadata, EdgeError> {
        self.consumer.fetch_metadata(topic, timeout).map_err(|error| {
            self.tell_log();
            EdgeError::from_kafka(error)
        })
    }

    /// Has told what the client logged: why no broker could be reached, a certificate that is not trusted for example. It waits
    /// for a poll, and an error alone says less.
    fn tell_log(&self) {
        (0..MOST_LOGGED).for_each(|_| drop(self.consumer.poll(Duration::ZERO)));
    }

    /// The partitions of these topics that no member of the group owns, where the group is stable; empty where it is not,
    /// or where that cannot be told.
    ///
    /// A stable group that owns less than all is not supposed to be. It happens when members are killed between the two
    /// halves of a cooperative rebalance and come back under their static ids before their session ends: the broker
    /// hands each its old assignment, and the second half never comes.
    pub fn unowned(&self, group: &str, topics: &[TopicName], timeout: Duration) -> Vec<TopicPartition> {
        let Ok(groups) = self.consumer.fetch_group_list(Some(group), timeout) else { return Vec::new() };
        let Some(described) = groups.groups().iter().find(|described| described.name() == group && described.state() == "Stable") else {
            return Vec::new();
        };
        let mut owned = BTreeSet::new();
        for member in described.members() {
            match member.assignment().map(assigned) {
                Some(Some(partitions)) => owned.extend(partitions),
                // An assignment that cannot be read may hold anything.
                Some(None) | None => return Vec::new(),
            }
        }
        let mut unowned = Vec::new();
        for topic in topics {
            let Ok(Some(count)) = self.partitions(topic, timeout) else { return Vec::new() };
            let all = (0..count).map(|partition| (topic.to_string(), partition));
            unowned.extend(all.filter(|partition| !owned.contains(partition)).map(|(_, partition)| (topic.clone(), partition)));
        }
        unowned
    }

    /// Which topic it is, and how many partitions it has; `None` where no broker answers, or none knows such a topic.
    pub fn describe(&self, topic: &str, timeout: Duration) -> Option<Described> {
        super::ffi::describe::describe_topic(&self.consumer, topic, timeout)
    }
}

/// The partitions of an assignment as members of the `consumer` protocol exchange it: a version, then topics with their
/// partitions, all big-endian. Source: Kafka's ConsumerProtocolAssignment.json.
fn assigned(bytes: &[u8]) -> Option<Vec<(String, u32)>> {
    if bytes.is_empty() {
        return Some(Vec::new());
    }
    let mut rest = bytes.get(2..)?;
    let mut take = |count: usize| {
        let (taken, left) = rest.split_at_checked(count)?;
        rest = left;
        Some(taken)
    };
    let topics = u32::from_be_bytes(take(4)?.try_into().ok()?);
    let mut partitions = Vec::new();
    for _ in 0..topics {
        let length = u16::from_be_bytes(take(2)?.try_into().ok()?);
        let topic = std::str::from_utf8(take(usize::from(length))?).ok()?.to_owned();
        for _ in 0..u32::from_be_bytes(take(4)?.try_into().ok()?) {
            partitions.push((topic.clone(), u32::from_be_bytes(take(4)?.try_into().ok()?)));
        }
    }
    Some(partitions)
}

fn list(topic: &str, partitions: std::ops::Range<u32>, offset: Offset) -> Result<TopicPartitionList, KafkaError> {
    let mut list = TopicPartitionList::with_capacity(partitions.len());
    for partition in partitions {
        list.add_partition_offset(topic, partition as i32, offset)?;
    }
    Ok(list)
}

/// Every partition's offset, or the first partition whose offset is not known. `Ok` answers may hold failed entries
/// with the offset -1, which would compare as "before everything".
fn known(answer: &TopicPartitionList, topic: &str, partitions: u32) -> Result<Offsets, Unknown> {
    let mut offsets = Vec::with_capacity(partitions as usize);
    for partition in 0..partitions {
        let element = answer.find_partition(topic, partition as i32).ok_or(Unknown::Partition(partition))?;
        match (element.error(), element.offset()) {
            (Ok(()), Offset::Offset(offset)) if offset >= 0 => offsets.push(offset as u64),
            (Ok(()) | Err(_), _) => return Err(Unknown::Partition(partition)),
        }
    }
    Ok(Offsets(offsets))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_assignment_is_read_as_kafka_writes_it() {
        let bytes = [&[0, 1, 0, 0, 0, 1, 0, 5][..], b"sends", &[0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 3, 255, 255, 255, 255]].concat();
        assert_eq!(assigned(&bytes), Some(vec![("sends".to_owned(), 0), ("sends".to_owned(), 3)]));
        assert_eq!(assigned(&[]), Some(Vec::new()));
        assert_eq!(assigned(&bytes[..12]), None);
    }

    #[test]
    fn a_failed_partition_in_an_answer_is_not_a_number() {
        let mut answer = list("t", 0..2, Offset::Offset(5)).expect("a list");
        assert_eq!(known(&answer, "t", 2).expect("known"), Offsets(vec![5, 5]));
        answer.set_partition_offset("t", 1, Offset::End).expect("set");
        assert!(matches!(known(&answer, "t", 2), Err(Unknown::Partition(1))));
    }

    #[test]
    fn a_missing_partition_in_an_answer_is_not_a_number() {
        let answer = list("t", 0..2, Offset::Offset(5)).expect("a list");
        assert!(matches!(known(&answer, "t", 3), Err(Unknown::Partition(2))));
    }
}
