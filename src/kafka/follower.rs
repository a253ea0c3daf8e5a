//! Reads all partitions of one topic from given offsets and goes on for ever: what fills and keeps the view.

use super::ffi::consume::{BatchConsumer, Consumed};
use super::{Connection, EdgeError, LogOnly};
use rdkafka::Offset;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::topic_partition_list::TopicPartitionList;
use std::time::Duration;

/// Most records handed over at once.
const BATCH: usize = 4096;

/// One record as the follower hands it over.
pub struct Followed<'a> {
    pub partition: u32,
    pub offset: u64,
    /// Kafka's timestamp of the record, milliseconds since the Unix epoch.
    pub timestamp_ms: Option<i64>,
    pub key: Option<&'a [u8]>,
    pub value: Option<&'a [u8]>,
    consumed: &'a Consumed<'a>,
}

impl Followed<'_> {
    /// The value of the last header of that name.
    pub fn header(&self, name: &str) -> Option<&[u8]> {
        let mut headers = Vec::new();
        self.consumed.headers(&mut headers);
        headers.iter().rev().find(|header| header.name == name.as_bytes()).and_then(|header| header.value)
    }
}

/// What one turn of the follower brought.
#[derive(Debug, PartialEq, Eq)]
pub enum Turn {
    /// Records (perhaps none) were handed over, and positions are up to date.
    Read,
    /// The log no longer holds the offset that was to be read: start again from its beginning.
    OutOfRange,
    /// A partition could not be read: start again, with a new follower, at the positions reached.
    Broken,
}

/// A reader of all partitions of one topic, `read_committed`.
pub struct Follower {
    batch: BatchConsumer<LogOnly>,
    topic: String,
    /// Next offset to be handed over, by partition: past transaction markers and aborted records.
    positions: Vec<u64>,
}

impl Follower {
    /// Starts reading every partition at `from`.
    pub fn new(connection: &Connection, group: &str, topic: &str, from: &[u64]) -> Result<Self, EdgeError> {
        let mut config = connection.consumer(group);
        config.set("isolation.level", "read_committed");
        config.set("auto.offset.reset", "error");
        config.set("check.crcs", "true");
        let defaults = [
            // Bounded memory under lag, and no one-second stall each time a bound is met.
            ("queued.min.messages", "100000"),
            ("queued.max.messages.kbytes", "32768"),
            ("fetch.queue.backoff.ms", "2"),
            ("fetch.wait.max.ms", "100"),
        ];
        connection.set_defaults(&mut config, &defaults);
        let consumer: BaseConsumer<LogOnly> = config.create_with_context(LogOnly).map_err(EdgeError::from_kafka)?;
        let mut assignment = TopicPartitionList::with_capacity(from.len());
        for (partition, offset) in from.iter().enumerate() {
            let offset = Offset::Offset(i64::try_from(*offset).unwrap_or(i64::MAX));
            assignment.add_partition_offset(topic, partition as i32, offset).map_err(EdgeError::from_kafka)?;
        }
        consumer.assign(&assignment).map_err(EdgeError::from_kafka)?;
        let batch = BatchConsumer::new(consumer)
            .ok_or_else(|| EdgeError::Stop(rdkafka::error::KafkaError::ClientCreation("no consumer queue".to_owned())))?;
        Ok(Self { batch, topic: topic.to_owned(), positions: from.to_vec() })
    }

    /// Hands over what has arrived, waiting at most `wait` for the first record. `each` gets every record once, in order
    /// of its partition; afterwards [`Follower::positions`] has passed exactly these.
    pub fn turn(&mut self, wait: Duration, mut each: impl FnMut(&[Followed<'_>])) -> Result<Turn, EdgeError> {
        let mut consumed = Vec::new();
        self.batch.consume(wait, BATCH, &mut consumed);
        // An error of a partition moves the client's position past what was not handed over, or means that a batch was
        // stepped over: nothing of this turn counts, and reading starts again where the last one ended.
        if let Some(error) = consumed.iter().filter(|consumed| consumed.partition().is_some()).find_map(Consumed::error) {
            return match error {
                RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange => Ok(Turn::OutOfRange),
                RDKafkaErrorCode::TopicAuthorizationFailed => Err(EdgeError::Stop(rdkafka::error::KafkaError::MessageConsumption(error))),
                _ => {
                    tracing::warn!(target: "stopgate::kafka", topic = %self.topic, %error, "reading starts again");
                    Ok(Turn::Broken)
                }
            };
        }
        let records: Vec<Followed<'_>> = consumed
            .iter()
            .filter(|consumed| consumed.error().is_none())
            .filter_map(|consumed| {
                Some(Followed {
                    partition: consumed.partition()?,
                    offset: consumed.offset()?,
                    timestamp_ms: consumed.timestamp_ms(),
                    key: consumed.key(),
                    value: consumed.value(),
                    consumed,
                })
            })
            .collect();
        each(&records);
        // Read after the records were applied. The client's position has passed what it handed over and the markers
        // served in between, no more (end-of-partition events, which break this in 2.12, are off).
        let positions = self.batch.consumer().position().map_err(EdgeError::from_kafka)?;
        for element in positions.elements_for_topic(&self.topic) {
            if let (Offset::Offset(offset), Ok(partition)) = (element.offset(), usize::try_from(element.partition()))
                && let (Some(position), Ok(offset)) = (self.positions.get_mut(partition), u64::try_from(offset))
            {
                *position = offset.max(*position);
            }
        }
        Ok(Turn::Read)
    }

    /// Next offset to be handed over, by partition.
    pub fn positions(&self) -> &[u64] {
        &self.positions
    }
}
