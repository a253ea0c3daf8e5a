//! Two producers: one within transactions, for outcomes and positions; one outside of them, for consent records.
//!
//! An open transaction hides all that was written above it from `read_committed` readers, so consent records are never
//! written in one: the fence would have to wait for it.

use super::ffi::produce::{HandleProducer, NewHeaders as HeaderList, NewRecord, ask_for_brokers};
use super::group::{GroupConsumer, Received, list};
use super::{Connection, EdgeError};
use crate::record::{Produce, TopicName, TopicPartition};
use rdkafka::Offset;
use rdkafka::config::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header as NewHeader, Message, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer, ProducerContext};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How long a producer that is waited for is left alone before it is served again. The wrapper's own poll does not wait through
/// its last millisecond, as it rounds what is left of its time-out down to none and asks again at once: three threads that
/// poll for a millisecond take two processors from the broker beside them.
const SERVE_AGAIN: Duration = Duration::from_micros(200);
/// The same while a call is waited for that seldom needs it.
const SERVE_ASIDE: Duration = Duration::from_millis(1);
/// How long a draining producer has its client flush at a time, how long nothing must be acknowledged before it does so
/// again, at first, and after how long it does so anyway. In between the client sends full batches alone. A client that
/// flushes, or that has records which lingered long enough, does not sleep while a partition has something to send and a
/// request on its way: two workers on two processors took so much from the broker beside them that they came to a fifth of
/// the rate of one.
const FLUSH: Duration = Duration::from_millis(1);
const QUIET: Duration = Duration::from_millis(2);
const MOST_QUIET: Duration = Duration::from_millis(8);
/// How long a new producer waits to hear of the brokers before it looks for its coordinator.
const BROKERS_KNOWN: Duration = Duration::from_millis(500);
/// How long room in a full queue is waited for before it is tried again.
const FULL_STEP: Duration = Duration::from_secs(1);

/// How much longer than it may take a call is waited for.
const GRACE: Duration = Duration::from_secs(1);

/// The largest batch that is put together. A broker takes a request in as one array of bytes, and its collector treats arrays
/// of half a region and more apart: at Kafka's own heap of a gigabyte a region is a megabyte. With batches of a megabyte
/// brokers collected three times as often, and stood still for it three times as long.
const MOST_BATCH_BYTES: u64 = 480_000;

/// How large records and batches may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The largest record that any topic takes.
    pub record_bytes: u64,
    /// The largest batch that every topic takes: brokers refuse a batch as a whole.
    pub batch_bytes: u64,
}

impl Limits {
    /// Kafka's own defaults.
    pub const DEFAULT: Self = Self { record_bytes: 1_000_000, batch_bytes: 1_000_000 };

    fn set(self, config: &mut ClientConfig) {
        config.set("message.max.bytes", self.record_bytes.max(1000).to_string());
        config.set("batch.size", self.batch_bytes.clamp(1, MOST_BATCH_BYTES).to_string());
    }
}

/// A header to be added to a record.
pub type NewHeaders<'a> = &'a [(&'static str, String)];

fn owned_headers(new: NewHeaders<'_>) -> Option<OwnedHeaders> {
    if new.is_empty() {
        return None;
    }
    let mut headers = OwnedHeaders::new_with_capacity(new.len());
    for (name, value) in new {
        headers = headers.insert(NewHeader { key: name, value: Some(value.as_bytes()) });
    }
    Some(headers)
}

/// The transactional producer of one worker.
pub struct TransactionalProducer {
    writer: HandleProducer<TransactionContext>,
}

struct TransactionContext;

super::logs_through_tracing!(TransactionContext);

impl ProducerContext for TransactionContext {
    type DeliveryOpaque = ();

    /// Only failures are reported, and each of them makes the commit fail: there is nothing to do here.
    fn delivery(&self, _result: &DeliveryResult<'_>, (): ()) {}
}

impl TransactionalProducer {
    /// A producer under a stable id: `init_transactions` ends what a predecessor left open and fences it. May be called
    /// again after a [`EdgeError::Retriable`].
    pub fn new(connection: &Connection, transactional_id: &str, limits: Limits, timeout: Duration) -> Result<Self, EdgeError> {
        let mut config = connection.producer();
        config.set("transactional.id", transactional_id);
        config.set("transaction.timeout.ms", "10000");
        config.set("delivery.report.only.error", "true");
        limits.set(&mut config);
        // Full batches under load: brokers count requests, not records. A commit, which follows at once where the input is
        // drained, waits for nobody; and records that have lingered keep the client from sleeping (see `FLUSH`).
        // What is written ahead of the brokers is waited for by the commit, and is cold when it is acknowledged.
        let defaults = [("linger.ms", "5000"), ("queue.buffering.max.messages", "100000"), ("queue.buffering.max.kbytes", "65536")];
        connection.set_defaults(&mut config, &defaults);
        let producer: BaseProducer<TransactionContext> = config.create_with_context(TransactionContext).map_err(EdgeError::from_kafka)?;
        // The client asks for its coordinator and for the brokers at once. Where it hears of the coordinator first, it does not know that
        // broker yet (`rd_kafka_txn_handle_FindCoordinator` of librdkafka 2.12.1) and asks again half a second later.
        ask_for_brokers(&producer, timeout.min(BROKERS_KNOWN));
        producer.init_transactions(timeout).map_err(EdgeError::from_kafka)?;
        Ok(Self { writer: HandleProducer::new(producer) })
    }

    /// Begins a transaction.
    pub fn begin(&self) -> Result<(), EdgeError> {
        self.client().begin_transaction().map_err(EdgeError::from_kafka)
    }

    /// Passes a received record on: key, value, timestamp and headers as they are, with headers added.
    pub fn forward(&self, received: &Received<'_>, topic: &TopicName, partition: u32, new: NewHeaders<'_>) -> Result<(), EdgeError> {
        let consumed = received.consumed();
        let record = NewRecord { partition, key: consumed.key(), value: consumed.value(), timestamp_ms: consumed.timestamp_ms() };
        self.send(topic, &record, HeaderList::of(received.with_headers(), new))
    }

    /// Passes a received record on without its value: for what no topic can hold.
    pub fn forward_without_value(
        &self,
        received: &Received<'_>,
        topic: &TopicName,
        partition: u32,
        new: NewHeaders<'_>,
    ) -> Result<(), EdgeError> {
        let record = NewRecord { partition, key: None, value: None, timestamp_ms: received.consumed().timestamp_ms() };
        self.send(topic, &record, HeaderList::of(None, new))
    }

    /// Writes a record of the stage's own making.
    pub fn produce(&self, produce: &Produce) -> Result<(), EdgeError> {
        let record =
            NewRecord { partition: produce.partition, key: produce.key.as_deref(), value: produce.value.as_deref(), timestamp_ms: None };
        self.send(&produce.topic, &record, HeaderList::of(None, &produce.headers))
    }

    fn send(&self, topic: &TopicName, record: &NewRecord<'_>, headers: Option<HeaderList>) -> Result<(), EdgeError> {
        let mut headers = headers;
        loop {
            match self.writer.produce(topic, record, &mut headers) {
                Ok(()) => return Ok(()),
                // The client's own queue is full: the brokers set the pace. It may be full of batches that are not.
                Err(RDKafkaErrorCode::QueueFull) => {
                    self.drain(self.unacknowledged() / 2, Instant::now() + FULL_STEP);
                }
                Err(code) => return Err(EdgeError::Abort(KafkaError::MessageProduction(code))),
            }
        }
    }

    /// Records that are on their way or wait for it.
    fn unacknowledged(&self) -> usize {
        usize::try_from(self.client().in_flight_count()).unwrap_or_default()
    }

    fn client(&self) -> &Arc<BaseProducer<TransactionContext>> {
        self.writer.producer()
    }

    /// Serves the client's queue: failures are handled, buffers freed.
    pub fn serve(&self) {
        self.client().poll(Duration::ZERO);
    }

    /// Waits until everything is acknowledged, adds the positions and commits.
    pub fn commit(&self, positions: &BTreeMap<TopicPartition, u64>, consumer: &GroupConsumer, timeout: Duration) -> Result<(), EdgeError> {
        let deadline = Instant::now() + timeout;
        if !self.drain(0, deadline) {
            return Err(EdgeError::Abort(KafkaError::Flush(RDKafkaErrorCode::OperationTimedOut)));
        }
        let at = |offset: u64| Offset::Offset(i64::try_from(offset).unwrap_or(i64::MAX));
        let offsets = list(positions.iter().map(|(partition, offset)| (partition, at(*offset)))).map_err(EdgeError::from_kafka)?;
        let membership = consumer.commits(positions.keys())?;
        self.aside(deadline, move |client| {
            retry(deadline, |remaining| client.send_offsets_to_transaction(&offsets, &membership, remaining))?;
            // Past this point a time-out leaves the result unknown: only a new producer finds out.
            retry(deadline, |remaining| client.commit_transaction(remaining)).map_err(|error| match error {
                EdgeError::Retriable(error) => EdgeError::Renew(error),
                EdgeError::Abort(_) | EdgeError::Renew(_) | EdgeError::Expelled(_) | EdgeError::Stop(_) => error,
            })
        })
    }

    /// Waits until no more than `most` records are not acknowledged, or until the deadline; whether they are.
    fn drain(&self, most: usize, deadline: Instant) -> bool {
        let mut left = self.unacknowledged();
        let mut patience = QUIET;
        while left > most && Instant::now() < deadline {
            let before = left;
            self.writer.flush(FLUSH);
            let flushed = Instant::now();
            let mut moved = flushed;
            loop {
                self.serve();
                let now = self.unacknowledged();
                if now < left {
                    (left, moved) = (now, Instant::now());
                }
                if left <= most || moved.elapsed() >= patience || flushed.elapsed() >= MOST_QUIET {
                    break;
                }
                thread::sleep(SERVE_AGAIN);
            }
            patience = if left < before { QUIET } else { (patience * 2).min(MOST_QUIET) };
        }
        left <= most
    }

    /// Has a call made on a thread of its own, serves the client meanwhile, and gives the call up where it does not return. The
    /// client's `send_offsets_to_transaction` ignores its time-out while a group's coordinator is away, and may wait for it for
    /// ever (librdkafka issues 5456 and 5511). The client that hangs is left to its thread; a new producer of the same id fences it.
    fn aside(
        &self,
        deadline: Instant,
        call: impl FnOnce(&BaseProducer<TransactionContext>) -> Result<(), EdgeError> + Send + 'static,
    ) -> Result<(), EdgeError> {
        let (tell, told) = mpsc::channel();
        let client = self.client().clone();
        let body = move || {
            let result = call(&client);
            drop(client);
            // Who asked may have given up.
            drop(tell.send(result));
        };
        let given_up = || EdgeError::Renew(KafkaError::Flush(RDKafkaErrorCode::OperationTimedOut));
        thread::Builder::new().name("transaction".into()).spawn(body).map_err(|_| given_up())?;
        loop {
            match told.recv_timeout(SERVE_ASIDE) {
                Ok(result) => return result,
                Err(RecvTimeoutError::Timeout) if Instant::now() < deadline + GRACE => self.serve(),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return Err(given_up()),
            }
        }
    }

    /// Aborts the transaction: what it wrote is never seen by `read_committed` readers. The call drops what was not sent and
    /// then waits until somebody has taken in that it failed: without being served meanwhile it takes its whole time.
    pub fn abort(&self, timeout: Duration) -> Result<(), EdgeError> {
        let deadline = Instant::now() + timeout;
        self.aside(deadline, move |client| retry(deadline, |remaining| client.abort_transaction(remaining)))
    }
}

/// Repeats a call while it says that repeating helps and there is time.
fn retry(deadline: Instant, mut call: impl FnMut(Duration) -> Result<(), KafkaError>) -> Result<(), EdgeError> {
    loop {
        let remaining = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        match call(remaining).map_err(EdgeError::from_kafka) {
            Ok(()) => return Ok(()),
            Err(EdgeError::Retriable(error)) if Instant::now() >= deadline => return Err(EdgeError::Retriable(error)),
            Err(EdgeError::Retriable(_)) => {}
            Err(error @ (EdgeError::Abort(_) | EdgeError::Renew(_) | EdgeError::Expelled(_) | EdgeError::Stop(_))) => return Err(error),
        }
    }
}

/// An idempotent producer outside of transactions that never gives a record up: the one of consent records.
pub struct IdempotentProducer {
    producer: BaseProducer<AckContext>,
    /// A record was refused: whatever else is in flight, nothing more is expected of this producer.
    broken: Cell<bool>,
}

/// A record that its brokers have: the number it was sent under, and where it lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ack {
    pub number: usize,
    pub partition: u32,
    pub offset: u64,
}

/// Acknowledgements in order of arrival: the number a record was sent under, and where it lies, or what went wrong.
struct AckContext {
    acks: Mutex<Vec<Result<Ack, RDKafkaErrorCode>>>,
}

super::logs_through_tracing!(AckContext);

impl ProducerContext for AckContext {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, number: usize) {
        let ack = match result {
            Ok(message) => Ok(Ack {
                number,
                partition: u32::try_from(message.partition()).unwrap_or_default(),
                offset: u64::try_from(message.offset()).unwrap_or_default(),
            }),
            Err((error, _)) => Err(error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail)),
        };
        self.acks.lock().unwrap_or_else(PoisonError::into_inner).push(ack);
    }
}

impl IdempotentProducer {
    /// A producer that waits for its brokers as long as it takes.
    pub fn new(connection: &Connection, limits: Limits) -> Result<Self, EdgeError> {
        let mut config = connection.producer();
        config.set("message.timeout.ms", "0");
        config.set("linger.ms", "0");
        limits.set(&mut config);
        let context = AckContext { acks: Mutex::new(Vec::new()) };
        let producer = config.create_with_context(context).map_err(EdgeError::from_kafka)?;
        Ok(Self { producer, broken: Cell::new(false) })
    }

    /// Whether a record was refused, so that a new producer is needed.
    pub fn is_broken(&self) -> bool {
        self.broken.get()
    }

    /// Hands a record to the client under a number that its acknowledgement will carry.
    pub fn send(&self, produce: &Produce, number: usize) -> Result<(), EdgeError> {
        let mut record = BaseRecord::<[u8], [u8], usize> {
            topic: &produce.topic,
            partition: Some(produce.partition as i32),
            payload: produce.value.as_deref(),
            key: produce.key.as_deref(),
            timestamp: None,
            headers: owned_headers(&produce.headers),
            delivery_opaque: number,
        };
        loop {
            match self.producer.send(record) {
                Ok(()) => return Ok(()),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                    thread::sleep(SERVE_AGAIN);
                    self.serve();
                    record = back;
                }
                Err((error, _)) => {
                    self.broken.set(true);
                    return Err(EdgeError::Renew(error));
                }
            }
        }
    }

    /// The acknowledgements that have arrived; waits at most `wait` for the first.
    pub fn acks(&self, wait: Duration) -> Result<Vec<Ack>, EdgeError> {
        let began = Instant::now();
        while self.serve() == 0 && began.elapsed() < wait {
            thread::sleep(SERVE_AGAIN);
        }
        let acks = std::mem::take(&mut *self.arrived());
        acks.into_iter()
            .map(|ack| {
                ack.map_err(|code| {
                    self.broken.set(true);
                    EdgeError::Renew(KafkaError::MessageProduction(code))
                })
            })
            .collect()
    }

    /// Takes in everything that was answered, and returns how much is at hand. A poll takes in one answer, of one request:
    /// where they are not taken in as fast as they come, they keep the client's queue full of records that the brokers have
    /// long since, and each makes room for a request of its own size.
    fn serve(&self) -> usize {
        let mut before = self.arrived().len();
        loop {
            self.producer.poll(Duration::ZERO);
            let now = self.arrived().len();
            if now == before {
                return now;
            }
            before = now;
        }
    }

    fn arrived(&self) -> MutexGuard<'_, Vec<Result<Ack, RDKafkaErrorCode>>> {
        self.producer.client().context().acks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether nothing waits for acknowledgement.
    pub fn is_idle(&self) -> bool {
        self.producer.in_flight_count() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::time::{ClockId, clock_gettime};

    fn processor_of_this_thread() -> Duration {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
    }

    #[test]
    fn who_waits_for_acknowledgements_leaves_the_processor_to_the_brokers() {
        // Port 9 answers nobody.
        let connection = Connection { bootstrap: "127.0.0.1:9".to_owned(), settings: BTreeMap::default() };
        let producer = IdempotentProducer::new(&connection, Limits::DEFAULT).expect("a client");
        let record = Produce { topic: "t".into(), partition: 0, key: None, value: None, headers: Vec::new() };
        producer.send(&record, 0).expect("taken");
        let (began, before) = (Instant::now(), processor_of_this_thread());
        for _ in 0..200 {
            assert_eq!(producer.acks(Duration::from_millis(1)).expect("no answer is no error"), []);
        }
        let (waited, used) = (began.elapsed(), processor_of_this_thread() - before);
        assert!(used < waited / 4, "{used:?} of {waited:?}");
    }
}
