//! Writes consent records and waits for their acknowledgements.

use crate::config::Config;
use crate::domain::consent::Position;
use crate::kafka::EdgeError;
use crate::kafka::producer::{IdempotentProducer, Limits};
use crate::record::{Produce, TopicName};
use crate::wire::consent::EncodedKey;
use std::time::{Duration, Instant};

/// How long one wait for acknowledgements takes.
const ACK_POLL: Duration = Duration::from_millis(1);
/// Nothing acknowledged for so long: the brokers are away.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often acknowledgements are taken while records are handed over.
const SERVE_EVERY: usize = 1024;

/// A producer of consent records, as detection has one.
pub(in crate::run) struct Writer {
    producer: IdempotentProducer,
    topic: TopicName,
    partitions: u32,
    sent: usize,
    acknowledged: usize,
    /// Where the record that was acknowledged last lies.
    last: Option<Position>,
}

impl Writer {
    pub(in crate::run) fn new(config: &Config, partitions: u32) -> Result<Self, EdgeError> {
        let producer = IdempotentProducer::new(&config.connection, Limits::DEFAULT)?;
        Ok(Self { producer, topic: config.topics.opt_outs.clone(), partitions, sent: 0, acknowledged: 0, last: None })
    }

    /// The same for another topic of the same keys.
    pub(super) fn of_topic(config: &Config, topic: &TopicName, partitions: u32) -> Result<Self, EdgeError> {
        Ok(Self { topic: topic.clone(), ..Self::new(config, partitions)? })
    }

    /// Hands a record over; without a value it erases the key.
    pub(super) fn send(&mut self, key: &EncodedKey, value: Option<Vec<u8>>) -> Result<(), EdgeError> {
        self.send_bytes(key.partition(self.partitions), key.as_bytes().to_vec(), value)
    }

    /// The same under a key as it stands on the topic.
    pub(super) fn send_bytes(&mut self, partition: u32, key: Vec<u8>, value: Option<Vec<u8>>) -> Result<(), EdgeError> {
        let produce = Produce { topic: self.topic.clone(), partition, key: Some(key), value, headers: Vec::new() };
        self.producer.send(&produce, self.sent)?;
        self.sent += 1;
        if self.sent.is_multiple_of(SERVE_EVERY) {
            self.take(Duration::ZERO)?;
        }
        Ok(())
    }

    fn take(&mut self, wait: Duration) -> Result<usize, EdgeError> {
        let acks = self.producer.acks(wait)?;
        self.acknowledged += acks.len();
        if let Some(ack) = acks.last() {
            self.last = Some(Position { partition: ack.partition, offset: ack.offset });
        }
        Ok(acks.len())
    }

    /// Hands one record over and waits until all brokers in sync have it. Returns where it lies.
    pub(in crate::run) fn write(&mut self, key: &EncodedKey, value: Vec<u8>) -> Result<Position, EdgeError> {
        self.send(key, Some(value))?;
        self.settle()?;
        self.last.ok_or_else(|| EdgeError::timed_out("the brokers acknowledged nothing"))
    }

    /// Waits until all brokers in sync have everything.
    pub(super) fn settle(&mut self) -> Result<(), EdgeError> {
        let mut since = Instant::now();
        while self.acknowledged < self.sent {
            if self.take(ACK_POLL)? > 0 {
                since = Instant::now();
            } else if since.elapsed() > PATIENCE {
                return Err(EdgeError::timed_out("the brokers do not acknowledge: some of what was handed over may be written, enter it again"));
            }
        }
        Ok(())
    }
}
