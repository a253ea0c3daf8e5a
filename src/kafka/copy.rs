//! The bare loop: read records of one topic and write them to another, by the client's plain calls, idempotent, without
//! transactions, looking at nothing. What a filter does beside it is what a filter costs: the yardstick of `bench`.

use super::{Connection, EdgeError, LogOnly};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{Offset, TopicPartitionList};
use std::time::Duration;

/// How often the producer's reports are served, in records.
const SERVE_EVERY: u64 = 256;
const PATIENCE: Duration = Duration::from_secs(30);

/// Copies every partition of `from` up to `ends` to the same partition of `to`; `copied` is told how many records have
/// been read so far. Returns once everything is acknowledged.
pub fn copy(connection: &Connection, from: &str, to: &str, ends: &[u64], mut copied: impl FnMut(u64)) -> Result<u64, EdgeError> {
    let mut config = connection.consumer("stopgate-bench-copy");
    config.set("auto.offset.reset", "error");
    connection.set_defaults(&mut config, &[("fetch.queue.backoff.ms", "2")]);
    let consumer: BaseConsumer<LogOnly> = config.create_with_context(LogOnly).map_err(EdgeError::from_kafka)?;
    let mut config = connection.producer();
    connection.set_defaults(&mut config, &[("queue.buffering.max.messages", "500000"), ("linger.ms", "5")]);
    let producer: BaseProducer = config.create().map_err(EdgeError::from_kafka)?;
    let mut assignment = TopicPartitionList::with_capacity(ends.len());
    for partition in 0..ends.len() {
        assignment.add_partition_offset(from, partition as i32, Offset::Offset(0)).map_err(EdgeError::from_kafka)?;
    }
    consumer.assign(&assignment).map_err(EdgeError::from_kafka)?;
    let wanted: u64 = ends.iter().sum();
    let mut read = 0;
    while read < wanted {
        let message = match consumer.poll(PATIENCE) {
            None => return Err(EdgeError::timed_out("the topic to be copied ends before its end")),
            Some(Err(error)) => return Err(EdgeError::from_kafka(error)),
            Some(Ok(message)) => message,
        };
        let mut record = BaseRecord::<[u8], [u8]> {
            topic: to,
            partition: Some(message.partition()),
            payload: message.payload(),
            key: message.key(),
            timestamp: message.timestamp().to_millis(),
            headers: None,
            delivery_opaque: (),
        };
        loop {
            match producer.send(record) {
                Ok(()) => break,
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                    producer.poll(Duration::from_micros(500));
                    record = back;
                }
                Err((error, _)) => return Err(EdgeError::from_kafka(error)),
            }
        }
        read += 1;
        if read.is_multiple_of(SERVE_EVERY) {
            producer.poll(Duration::ZERO);
            copied(read);
        }
    }
    producer.flush(PATIENCE).map_err(EdgeError::from_kafka)?;
    copied(read);
    Ok(read)
}
