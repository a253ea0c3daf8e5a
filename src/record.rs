//! The types that the Kafka edge and the stages share: what was read, what is to be written, and where.

use std::fmt;
use std::sync::Arc;

/// A topic's name, shared by all records of the topic.
pub type TopicName = Arc<str>;

/// Whether two names are the same. A topic's name is one that all share, as a rule, and then no letter is looked at.
#[inline]
pub fn is_same_topic(one: &TopicName, other: &TopicName) -> bool {
    Arc::ptr_eq(one, other) || one == other
}

/// One partition of one topic.
pub type TopicPartition = (TopicName, u32);

/// What a consumer group asks of a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rebalance {
    /// These partitions are to be taken.
    Take(Vec<TopicPartition>),
    /// These partitions are to be given back: the group has assigned them anew, and somebody else may own them already.
    Give(Vec<TopicPartition>),
}

/// Where a record lies.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Coordinates {
    pub topic: TopicName,
    pub partition: u32,
    pub offset: u64,
}

impl fmt::Display for Coordinates {
    /// `topic-P@O`: the form of the `stopgate-source` header.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}@{}", self.topic, self.partition, self.offset)
    }
}

/// One header as Kafka holds it: names are bytes, may repeat, and need not be UTF-8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header<'a> {
    pub name: &'a [u8],
    pub value: Option<&'a [u8]>,
}

/// A record as read, borrowed from the client.
#[derive(Clone, Copy)]
pub struct Record<'a> {
    pub topic: &'a TopicName,
    pub partition: u32,
    pub offset: u64,
    /// Kafka's timestamp of the record, milliseconds since the Unix epoch; `None` where the record has none.
    pub timestamp_ms: Option<i64>,
    pub key: Option<&'a [u8]>,
    pub value: Option<&'a [u8]>,
    pub headers: &'a [Header<'a>],
}

impl Record<'_> {
    /// Where this record lies.
    pub fn coordinates(&self) -> Coordinates {
        Coordinates { topic: self.topic.clone(), partition: self.partition, offset: self.offset }
    }

    /// Bytes of key, value and headers.
    pub fn size(&self) -> u64 {
        let of_headers: usize = self.headers.iter().map(|header| header.name.len() + header.value.map_or(0, <[u8]>::len) + 4).sum();
        (self.key.map_or(0, <[u8]>::len) + self.value.map_or(0, <[u8]>::len) + of_headers) as u64
    }

    /// The value of the last header of that name: the last one written is the one that counts.
    pub fn header(&self, name: &str) -> Option<&[u8]> {
        self.headers.iter().rev().find(|header| header.name == name.as_bytes()).and_then(|header| header.value)
    }
}

/// A record to be written, owned: what a stage makes itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Produce {
    pub topic: TopicName,
    /// Always computed, never left to the client.
    pub partition: u32,
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub headers: Vec<(&'static str, String)>,
}
