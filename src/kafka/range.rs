//! Reads stretches of a topic's partitions, from given offsets to ends that were captured before, and stops there:
//! what looks back (replay, reports, one person's history) reads with it. For a reader that goes on for ever see
//! [`super::follower`].
//!
//! A stretch ends when the client's *position* has passed its end, not when a record at its end was seen: transaction
//! markers, aborted records and what compaction took away leave gaps, at the end of a log too. Ends are captured as the
//! brokers' high watermarks; what lies above an open transaction is waited for.

use super::ffi::consume::{BatchConsumer, Consumed};
use super::group::Received;
use super::{Connection, EdgeError, LogOnly};
use crate::record::{Record, TopicName};
use rdkafka::Offset;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::topic_partition_list::TopicPartitionList;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Most records taken from the client at once.
const BATCH: usize = 4096;
const WAIT: Duration = Duration::from_millis(20);
/// How long nothing may arrive before the read is given up. A transaction whose producer died is ended by the brokers
/// after its own time-out: 10 s for those of the stages, a minute by Kafka's default.
const PATIENCE: Duration = Duration::from_secs(90);

/// A stretch of one partition: `from` inclusive, `to` exclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    pub partition: u32,
    pub from: u64,
    pub to: u64,
}

/// Why a stretch could not be read to its end.
#[derive(Debug, thiserror::Error)]
pub enum RangeError {
    #[error(transparent)]
    Edge(#[from] EdgeError),
    /// The log no longer holds what was to be read.
    #[error("{topic}-{partition}: offset {offset} is gone from the log, by retention or because the topic was created again")]
    Gone { topic: TopicName, partition: u32, offset: u64 },
    /// Nothing came, although the stretch goes on.
    #[error("{topic}-{partition}: nothing came at offset {at} of {to} for {} s: is a transaction left open, or a broker away?", PATIENCE.as_secs())]
    Stalled { topic: TopicName, partition: u32, at: u64, to: u64 },
}

/// A reader of stretches of one topic, `read_committed`. One client: for more threads make more readers, of other
/// partitions each.
pub struct RangeReader {
    batch: BatchConsumer<LogOnly>,
    topic: TopicName,
    spans: Vec<Span>,
}

impl RangeReader {
    /// A reader of these stretches; empty ones are left out. Nothing is committed, `group` is a name that the client
    /// wants to have and never joins.
    pub fn new(connection: &Connection, group: &str, topic: &TopicName, spans: &[Span]) -> Result<Self, EdgeError> {
        let mut config = connection.consumer(group);
        config.set("isolation.level", "read_committed");
        config.set("auto.offset.reset", "error");
        config.set("check.crcs", "true");
        let defaults = [
            ("queued.min.messages", "50000"),
            ("queued.max.messages.kbytes", "16384"),
            ("fetch.queue.backoff.ms", "2"),
            ("fetch.wait.max.ms", "20"),
        ];
        connection.set_defaults(&mut config, &defaults);
        let consumer: BaseConsumer<LogOnly> = config.create_with_context(LogOnly).map_err(EdgeError::from_kafka)?;
        let batch = BatchConsumer::new(consumer).ok_or_else(|| EdgeError::Stop(KafkaError::ClientCreation("no consumer queue".to_owned())))?;
        let spans = spans.iter().copied().filter(|span| span.from < span.to).collect();
        Ok(Self { batch, topic: topic.clone(), spans })
    }

    /// Starts reading. One cursor at a time: a second one would take the first one's records.
    pub fn cursor(&mut self) -> Result<Cursor<'_>, RangeError> {
        let open = self.spans.iter().map(|span| (span.partition, Open { at: span.from, to: span.to })).collect();
        let cursor = Cursor { reader: self, taken: Vec::new().into_iter(), open, moved: Instant::now() };
        cursor.assign()?;
        Ok(cursor)
    }

    /// Hands every record of the stretches to `each`, in order of its partition.
    pub fn for_each(&mut self, mut each: impl FnMut(&Record<'_>)) -> Result<(), RangeError> {
        let mut cursor = self.cursor()?;
        while let Some(received) = cursor.next()? {
            let mut headers = Vec::new();
            received.headers(&mut headers);
            each(&received.record(&headers));
        }
        Ok(())
    }
}

/// What is left of a stretch: the next offset to be handed over, and the end.
#[derive(Clone, Copy)]
struct Open {
    at: u64,
    to: u64,
}

/// A place within the stretches of a reader.
pub struct Cursor<'r> {
    reader: &'r RangeReader,
    taken: std::vec::IntoIter<Consumed<'r>>,
    /// Stretches that are not taken to their end, by partition.
    open: BTreeMap<u32, Open>,
    /// When a position last moved.
    moved: Instant,
}

impl<'r> Cursor<'r> {
    /// The next record, or `None` at the end of all stretches.
    #[allow(clippy::should_implement_trait)] // it may fail, and lends from its reader
    pub fn next(&mut self) -> Result<Option<Received<'r>>, RangeError> {
        loop {
            for consumed in self.taken.by_ref() {
                if consumed.error().is_none() {
                    return Ok(Some(Received::of(consumed, &self.reader.topic)));
                }
            }
            if self.open.is_empty() {
                return Ok(None);
            }
            self.take()?;
        }
    }

    /// Takes what has arrived, and closes the stretches whose end was passed.
    fn take(&mut self) -> Result<(), RangeError> {
        let mut taken = Vec::new();
        self.reader.batch.consume(WAIT, BATCH, &mut taken);
        // An error of a partition moves the client's position past what was not handed over: nothing of this turn
        // counts, and reading starts again where the last one ended.
        let broken = taken.iter().find_map(|consumed| Some((consumed.partition()?, consumed.error()?)));
        if let Some((partition, error)) = broken {
            drop(taken);
            return self.start_again(partition, error);
        }
        taken.retain(|consumed| {
            let place = consumed.partition().zip(consumed.offset());
            place.is_some_and(|(partition, offset)| self.open.get(&partition).is_some_and(|open| (open.at..open.to).contains(&offset)))
        });
        let consumer = self.reader.batch.consumer();
        let positions = consumer.position().map_err(EdgeError::from_kafka)?;
        let mut passed = TopicPartitionList::new();
        for element in positions.elements_for_topic(&self.reader.topic) {
            let (Offset::Offset(offset), Ok(partition)) = (element.offset(), u32::try_from(element.partition())) else { continue };
            let (Some(open), Ok(offset)) = (self.open.get_mut(&partition), u64::try_from(offset)) else { continue };
            if offset > open.at {
                open.at = offset;
                self.moved = Instant::now();
            }
            if open.at >= open.to {
                self.open.remove(&partition);
                passed.add_partition(&self.reader.topic, element.partition());
            }
        }
        if passed.count() > 0 && !self.open.is_empty() {
            // What lies behind the end need not be fetched. Where that fails it is only fetched in vain.
            if let Err(error) = consumer.pause(&passed) {
                tracing::debug!(target: "stopgate::kafka", %error, "a partition that was read is fetched on");
            }
        }
        self.taken = taken.into_iter();
        match self.open.first_key_value() {
            Some((partition, open)) if self.moved.elapsed() > PATIENCE => {
                Err(RangeError::Stalled { topic: self.reader.topic.clone(), partition: *partition, at: open.at, to: open.to })
            }
            Some(_) | None => Ok(()),
        }
    }

    fn start_again(&self, partition: u32, error: RDKafkaErrorCode) -> Result<(), RangeError> {
        match error {
            RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange => {
                let offset = self.open.get(&partition).map_or(0, |open| open.at);
                Err(RangeError::Gone { topic: self.reader.topic.clone(), partition, offset })
            }
            RDKafkaErrorCode::TopicAuthorizationFailed | RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic => {
                Err(EdgeError::Stop(KafkaError::MessageConsumption(error)).into())
            }
            _ if self.moved.elapsed() > PATIENCE => Err(EdgeError::Stop(KafkaError::MessageConsumption(error)).into()),
            _ => {
                tracing::warn!(target: "stopgate::kafka", topic = %self.reader.topic, partition, %error, "reading starts again");
                self.assign()
            }
        }
    }

    fn assign(&self) -> Result<(), RangeError> {
        let mut assignment = TopicPartitionList::with_capacity(self.open.len());
        for (partition, open) in &self.open {
            let offset = Offset::Offset(i64::try_from(open.at).unwrap_or(i64::MAX));
            assignment.add_partition_offset(&self.reader.topic, *partition as i32, offset).map_err(EdgeError::from_kafka)?;
        }
        Ok(self.reader.batch.consumer().assign(&assignment).map_err(EdgeError::from_kafka)?)
    }
}

/// Hands every record of the stretches to `each`, from up to `threads` threads at once; one partition's records come in
/// order and from one thread.
pub fn read_in_parallel(
    connection: &Connection,
    group: &str,
    topic: &TopicName,
    spans: &[Span],
    threads: usize,
    each: impl Fn(&Record<'_>) + Sync,
) -> Result<(), RangeError> {
    let spans: Vec<Span> = spans.iter().copied().filter(|span| span.from < span.to).collect();
    let threads = threads.clamp(1, spans.len().max(1));
    let shares = (0..threads).map(|number| spans.iter().copied().skip(number).step_by(threads).collect::<Vec<Span>>());
    std::thread::scope(|scope| {
        let readers: Vec<_> = shares
            .map(|share| {
                let each = &each;
                scope.spawn(move || RangeReader::new(connection, group, topic, &share)?.for_each(each))
            })
            .collect();
        readers.into_iter().try_for_each(|reader| match reader.join() {
            Ok(read) => read,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    })
}
