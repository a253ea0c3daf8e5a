//! The tests' own client of a broker: topics, records, transactions, reading to the end.
//!
//! It shares no code with the program under test, so that a fault in one does not hide in the other. Every function
//! blocks, and panics with a text that names topic and operation where the broker refuses: in a test, that is the end.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, NewPartitions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::{ClientContext, DefaultClientContext};
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, DeliveryResult, Header, Headers, Message, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer as _, ProducerContext, ThreadedProducer};
use rdkafka::{Offset, TopicPartitionList};

use super::wait::{DEADLINE, wait_for};

/// One request to the broker; generous, since a shared build machine may stand still for seconds.
const REQUEST: Duration = Duration::from_secs(30);

/// Settings with which a compacted topic is cleaned within a second or so; to be given to [`Kafka::create_with`].
/// A segment closes with the first record that comes 100 ms after its first one.
pub const CLEANED_AT_ONCE: &[(&str, &str)] = &[
    ("cleanup.policy", "compact"),
    ("min.compaction.lag.ms", "0"),
    ("max.compaction.lag.ms", "100"),
    ("min.cleanable.dirty.ratio", "0.001"),
    ("segment.ms", "100"),
    ("delete.retention.ms", "100"),
];

/// A topic to create: name, partitions, settings.
pub type Wanted<'a> = (&'a str, i32, &'a [(&'a str, &'a str)]);

/// A client of one broker. Clones share the connection that [`Kafka::produce`] uses.
#[derive(Clone)]
pub struct Kafka {
    bootstrap: String,
    /// A new idempotent producer needs half a second until it has its number.
    shared: Arc<OnceLock<Producer>>,
}

/// What a reader sees of transactions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isolation {
    /// Only what was committed, and nothing above the first open transaction.
    Committed,
    /// Everything, aborted records too.
    Uncommitted,
}

/// A record to produce. Without a partition, Java's partitioner chooses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub headers: Vec<(String, Option<Vec<u8>>)>,
    pub timestamp: Option<i64>,
    pub partition: Option<i32>,
}

impl Record {
    pub fn new(key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Record {
        Record { key: Some(key.as_ref().to_vec()), value: Some(value.as_ref().to_vec()), ..Record::default() }
    }

    pub fn tombstone(key: impl AsRef<[u8]>) -> Record {
        Record { key: Some(key.as_ref().to_vec()), ..Record::default() }
    }

    pub fn without_key(value: impl AsRef<[u8]>) -> Record {
        Record { value: Some(value.as_ref().to_vec()), ..Record::default() }
    }

    pub fn to(mut self, partition: i32) -> Record {
        self.partition = Some(partition);
        self
    }

    pub fn at(mut self, timestamp: i64) -> Record {
        self.timestamp = Some(timestamp);
        self
    }

    pub fn header(mut self, name: &str, value: impl AsRef<[u8]>) -> Record {
        self.headers.push((name.to_owned(), Some(value.as_ref().to_vec())));
        self
    }

    pub fn null_header(mut self, name: &str) -> Record {
        self.headers.push((name.to_owned(), None));
        self
    }
}

/// A record as read.
#[derive(Clone, PartialEq, Eq)]
pub struct Received {
    pub topic: String,
    pub partition: i32,
    pub offset: i64,
    pub timestamp: Option<i64>,
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub headers: Vec<(String, Option<Vec<u8>>)>,
}

impl fmt::Debug for Received {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (key, value) = (self.key_text(), self.value_text());
        write!(f, "{}-{} {key:?} {value:?}", self.topic, self.position())?;
        let text = |value: &Option<Vec<u8>>| value.as_deref().map(|value| String::from_utf8_lossy(value).into_owned());
        f.debug_map().entries(self.headers.iter().map(|(name, value)| (name, text(value)))).finish()
    }
}

impl Received {
    pub fn key_text(&self) -> String {
        String::from_utf8_lossy(self.key.as_deref().unwrap_or_default()).into_owned()
    }

    pub fn value_text(&self) -> String {
        String::from_utf8_lossy(self.value.as_deref().unwrap_or_default()).into_owned()
    }

    /// The only header of that name, as text; `None` if it is missing, null, or there are several.
    pub fn header(&self, name: &str) -> Option<String> {
        let mut found = self.headers.iter().filter(|(known, _)| known == name);
        match (found.next(), found.next()) {
            (Some((_, Some(value))), None) => Some(String::from_utf8_lossy(value).into_owned()),
            _ => None,
        }
    }

    /// `P@O`, as evidence names a record.
    pub fn position(&self) -> String {
        format!("{}@{}", self.partition, self.offset)
    }
}

impl Kafka {
    pub fn new(bootstrap: &str) -> Kafka {
        Kafka { bootstrap: bootstrap.to_owned(), shared: Arc::default() }
    }

    /// Whether a broker serves requests within the time.
    pub fn answers(&self, within: Duration) -> Result<(), KafkaError> {
        let client: BaseConsumer = self.config().create()?;
        let started = Instant::now();
        loop {
            match client.fetch_metadata(None, Duration::from_secs(2)) {
                Ok(metadata) if !metadata.brokers().is_empty() => return Ok(()),
                Ok(_) if started.elapsed() > within => {
                    return Err(KafkaError::MetadataFetch(RDKafkaErrorCode::BrokerNotAvailable));
                }
                Err(error) if started.elapsed() > within => return Err(error),
                _ => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    fn config(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", &self.bootstrap)
            // A broker that is not up yet, or restarts, must not be tried only once a second.
            .set("reconnect.backoff.ms", "20")
            .set("reconnect.backoff.max.ms", "200")
            .set("topic.metadata.refresh.sparse", "false")
            .set("log_level", "2")
            .set("allow.auto.create.topics", "false");
        config
    }

    fn consumer(&self, isolation: Isolation) -> BaseConsumer {
        let level = match isolation {
            Isolation::Committed => "read_committed",
            Isolation::Uncommitted => "read_uncommitted",
        };
        self.config()
            .set("group.id", "stopgate-tests-reader")
            .set("enable.auto.commit", "false")
            .set("enable.partition.eof", "true")
            .set("auto.offset.reset", "error")
            .set("isolation.level", level)
            .set("fetch.wait.max.ms", "20")
            .set("fetch.queue.backoff.ms", "2")
            .set("check.crcs", "true")
            .create()
            .unwrap_or_else(|error| panic!("cannot make a consumer: {error}"))
    }

    // --- topics ---

    /// Creates a topic with the broker's default settings.
    pub fn create(&self, topic: &str, partitions: i32) {
        self.create_with(topic, partitions, &[]);
    }

    /// Creates a topic with settings.
    pub fn create_with(&self, topic: &str, partitions: i32, settings: &[(&str, &str)]) {
        self.create_all(&[(topic, partitions, settings)]);
    }

    /// Creates topics in one request, and waits until every partition has a leader.
    pub fn create_all(&self, topics: &[Wanted<'_>]) {
        let new: Vec<NewTopic<'_>> = topics
            .iter()
            .map(|(topic, partitions, settings)| {
                // As many replicas as the broker says: one, and of a cluster all.
                let plain = NewTopic::new(topic, *partitions, TopicReplication::Fixed(-1));
                settings.iter().fold(plain, |new, (name, value)| new.set(name, value))
            })
            .collect();
        for result in self.admin(|admin, options| block_on(admin.create_topics(&new, options))) {
            result.unwrap_or_else(|(topic, code)| panic!("cannot create topic {topic}: {code}"));
        }
        wait_for("leaders of new topics", DEADLINE, || {
            let seen: Vec<Option<i32>> = topics.iter().map(|(topic, ..)| self.partitions(topic)).collect();
            if topics.iter().zip(&seen).all(|((_, partitions, _), seen)| *seen == Some(*partitions)) { Ok(()) } else { Err(seen) }
        });
    }

    pub fn delete(&self, topic: &str) {
        for result in self.admin(|admin, options| block_on(admin.delete_topics(&[topic], options))) {
            result.unwrap_or_else(|(topic, code)| panic!("cannot delete topic {topic}: {code}"));
        }
        wait_for("the end of a deleted topic", DEADLINE, || self.partitions(topic).map_or(Ok(()), Err));
    }

    /// Adds partitions, up to `count`.
    pub fn grow(&self, topic: &str, count: i32) {
        let new = NewPartitions::new(topic, usize::try_from(count).unwrap_or_default());
        for result in self.admin(|admin, options| block_on(admin.create_partitions([&new], options))) {
            result.unwrap_or_else(|(topic, code)| panic!("cannot add partitions to {topic}: {code}"));
        }
        wait_for("leaders of new partitions", DEADLINE, || match self.partitions(topic) {
            Some(found) if found == count => Ok(()),
            seen => Err(seen),
        });
    }

    /// Sets settings of a topic; settings not named return to their defaults.
    pub fn alter(&self, topic: &str, settings: &[(&str, &str)]) {
        let change = settings.iter().fold(AlterConfig::new(ResourceSpecifier::Topic(topic)), |change, (name, value)| change.set(name, value));
        for result in self.admin(|admin, options| block_on(admin.alter_configs([&change], options))) {
            result.unwrap_or_else(|(resource, code)| panic!("cannot alter {resource:?}: {code}"));
        }
    }

    /// The settings of a topic.
    pub fn settings(&self, topic: &str) -> BTreeMap<String, String> {
        let resource = ResourceSpecifier::Topic(topic);
        let results = self.admin(|admin, options| block_on(admin.describe_configs([&resource], options)));
        let mut settings = BTreeMap::new();
        for result in results {
            let resource = result.unwrap_or_else(|code| panic!("cannot describe {topic}: {code}"));
            settings.extend(resource.entries.into_iter().filter_map(|entry| Some((entry.name, entry.value?))));
        }
        settings
    }

    /// The names of all topics.
    pub fn topics(&self) -> Vec<String> {
        let client: BaseConsumer = self.config().create().unwrap_or_else(|error| panic!("no client: {error}"));
        let metadata = client.fetch_metadata(None, REQUEST).unwrap_or_else(|error| panic!("cannot list topics: {error}"));
        metadata.topics().iter().map(|topic| topic.name().to_owned()).collect()
    }

    /// How many partitions a topic has that have a leader; `None` without the topic.
    pub fn partitions(&self, topic: &str) -> Option<i32> {
        let client: BaseConsumer = self.config().create().ok()?;
        let metadata = client.fetch_metadata(Some(topic), REQUEST).ok()?;
        let found = metadata.topics().iter().find(|found| found.name() == topic && found.error().is_none())?;
        let led = found.partitions().iter().filter(|partition| partition.leader() >= 0 && partition.error().is_none());
        i32::try_from(led.count()).ok().filter(|count| *count > 0)
    }

    /// Removes all records of a partition below `offset`, as retention would.
    pub fn delete_before(&self, topic: &str, partition: i32, offset: i64) {
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(topic, partition, Offset::Offset(offset)).unwrap_or_else(|error| panic!("no such offset: {error}"));
        let left = self.admin(|admin, options| block_on(admin.delete_records(&list, options)));
        for element in left.elements() {
            element.error().unwrap_or_else(|error| panic!("cannot delete records of {topic}: {error}"));
        }
    }

    fn admin<T>(&self, ask: impl FnOnce(&AdminClient<DefaultClientContext>, &AdminOptions) -> Result<T, KafkaError>) -> T {
        let admin: AdminClient<DefaultClientContext> =
            self.config().create().unwrap_or_else(|error| panic!("cannot make an admin client: {error}"));
        let options = AdminOptions::new().request_timeout(Some(REQUEST)).operation_timeout(Some(REQUEST));
        ask(&admin, &options).unwrap_or_else(|error| panic!("the broker refuses an admin request: {error}"))
    }

    // --- positions ---

    /// End offset of every partition, markers and aborted records counted.
    pub fn ends(&self, topic: &str) -> Vec<i64> {
        self.bounds(topic, Isolation::Uncommitted).into_iter().map(|(_, end)| end).collect()
    }

    /// First and end offset of every partition, as a reader of that isolation may reach them.
    pub fn bounds(&self, topic: &str, isolation: Isolation) -> Vec<(i64, i64)> {
        let consumer = self.consumer(isolation);
        let partitions = self.partitions(topic).unwrap_or_else(|| panic!("no topic {topic}"));
        (0..partitions).map(|partition| watermarks(&consumer, topic, partition)).collect()
    }

    /// The committed offset of every partition.
    pub fn committed(&self, group: &str, topic: &str) -> Vec<Option<i64>> {
        let consumer: BaseConsumer =
            self.config().set("group.id", group).create().unwrap_or_else(|error| panic!("cannot make a consumer: {error}"));
        let partitions = self.partitions(topic).unwrap_or_else(|| panic!("no topic {topic}"));
        let mut list = TopicPartitionList::new();
        list.add_partition_range(topic, 0, partitions - 1);
        let found = consumer.committed_offsets(list, REQUEST).unwrap_or_else(|error| panic!("no committed offsets of {group}: {error}"));
        found
            .elements()
            .iter()
            .map(|element| match element.offset() {
                Offset::Offset(offset) => Some(offset),
                _ => None,
            })
            .collect()
    }

    /// Commits offsets for a group without members. Static members leave with their session only: they are waited for.
    pub fn commit(&self, group: &str, topic: &str, offsets: &[(i32, i64)]) {
        let consumer: BaseConsumer =
            self.config().set("group.id", group).create().unwrap_or_else(|error| panic!("cannot make a consumer: {error}"));
        let mut list = TopicPartitionList::new();
        for (partition, offset) in offsets {
            list.add_partition_offset(topic, *partition, Offset::Offset(*offset)).unwrap_or_else(|error| panic!("no such offset: {error}"));
        }
        wait_for(&format!("committed offsets of {group}"), DEADLINE, || consumer.commit(&list, CommitMode::Sync));
    }

    // --- writing ---

    /// A producer that waits for every acknowledgement.
    pub fn producer(&self) -> Producer {
        Producer::new(self.config().set("enable.idempotence", "true"))
    }

    /// A producer of one transaction after the other.
    pub fn transactional(&self, id: &str) -> Producer {
        let producer = Producer::new(self.config().set("transactional.id", id).set("transaction.timeout.ms", "60000"));
        producer.check("init_transactions", |inner| inner.init_transactions(REQUEST));
        producer
    }

    /// Produces one record; its partition and offset.
    pub fn produce(&self, topic: &str, record: Record) -> (i32, i64) {
        self.shared.get_or_init(|| self.producer()).send(topic, record)
    }

    /// Produces records in order; the partition and offset of each.
    pub fn produce_all(&self, topic: &str, records: impl IntoIterator<Item = Record>) -> Vec<(i32, i64)> {
        self.shared.get_or_init(|| self.producer()).send_all(topic, records)
    }

    /// Produces records in one transaction, which leaves a commit marker behind them.
    pub fn produce_committed(&self, topic: &str, records: impl IntoIterator<Item = Record>) -> Vec<(i32, i64)> {
        let producer = self.transactional(&unique_id());
        producer.begin();
        let positions = producer.send_all(topic, records);
        producer.commit();
        positions
    }

    /// Produces records and aborts them; they and the abort marker stay in the log.
    pub fn produce_aborted(&self, topic: &str, records: impl IntoIterator<Item = Record>) -> Vec<(i32, i64)> {
        let producer = self.transactional(&unique_id());
        producer.begin();
        let positions = producer.send_all(topic, records);
        producer.abort();
        positions
    }

    // --- reading ---

    /// All records of a topic, by partition and offset, up to the ends at the time of asking.
    pub fn read(&self, topic: &str, isolation: Isolation) -> Vec<Received> {
        let reader = self.reader(topic, isolation);
        reader.to_end();
        let mut records = reader.records.into_inner();
        records.sort_by_key(|record| (record.partition, record.offset));
        records
    }

    /// All committed records of a topic.
    pub fn read_committed(&self, topic: &str) -> Vec<Received> {
        self.read(topic, Isolation::Committed)
    }

    /// A reader that follows a topic from its beginning.
    pub fn reader(&self, topic: &str, isolation: Isolation) -> Reader {
        let consumer = self.consumer(isolation);
        let partitions = self.partitions(topic).unwrap_or_else(|| panic!("no topic {topic}"));
        let mut list = TopicPartitionList::new();
        // To be asked for `Beginning`, a client that is not connected yet takes half a second.
        for partition in 0..partitions {
            let (first, _) = watermarks(&consumer, topic, partition);
            list.add_partition_offset(topic, partition, Offset::Offset(first))
                .unwrap_or_else(|error| panic!("cannot read {topic}-{partition}: {error}"));
        }
        consumer.assign(&list).unwrap_or_else(|error| panic!("cannot read {topic}: {error}"));
        Reader { consumer, topic: topic.to_owned(), partitions, records: RefCell::default(), ended: RefCell::default() }
    }
}

/// First and end offset of a partition; tried again where a topic is so new that its leader does not know it yet.
#[track_caller]
fn watermarks(consumer: &BaseConsumer, topic: &str, partition: i32) -> (i64, i64) {
    wait_for(&format!("offsets of {topic}-{partition}"), DEADLINE, || consumer.fetch_watermarks(topic, partition, REQUEST))
}

/// Follows one topic from its beginning and keeps what it has seen.
pub struct Reader {
    consumer: BaseConsumer,
    topic: String,
    partitions: i32,
    records: RefCell<Vec<Received>>,
    /// Partitions whose end was met since the last record of theirs.
    ended: RefCell<HashMap<i32, ()>>,
}

impl Reader {
    /// Takes what has come, waiting at most `wait` for the first.
    fn poll(&self, wait: Duration) -> bool {
        match self.consumer.poll(wait) {
            None => false,
            Some(Ok(message)) => {
                self.ended.borrow_mut().remove(&message.partition());
                self.records.borrow_mut().push(received(&message));
                true
            }
            Some(Err(KafkaError::PartitionEOF(partition))) => {
                self.ended.borrow_mut().insert(partition, ());
                true
            }
            Some(Err(KafkaError::MessageConsumption(
                RDKafkaErrorCode::BrokerTransportFailure | RDKafkaErrorCode::AllBrokersDown | RDKafkaErrorCode::OperationTimedOut,
            ))) => true,
            Some(Err(error)) => panic!("reading {} failed: {error}", self.topic),
        }
    }

    /// Reads until every partition has no more.
    fn to_end(&self) {
        self.ended.borrow_mut().clear();
        let started = Instant::now();
        while self.ended.borrow().len() < usize::try_from(self.partitions).unwrap_or_default() {
            self.poll(Duration::from_millis(20));
            assert!(started.elapsed() < DEADLINE * 4, "the end of {} did not come within {:?}", self.topic, DEADLINE * 4);
        }
    }

    /// What was seen up to now, in order of arrival: within a partition, in order of offsets.
    pub fn seen(&self) -> Vec<Received> {
        while self.poll(Duration::ZERO) {}
        self.records.borrow().clone()
    }

    /// How many records were seen up to now.
    pub fn count(&self) -> usize {
        while self.poll(Duration::ZERO) {}
        self.records.borrow().len()
    }

    /// The first record seen up to now that fits.
    pub fn look(&self, fits: impl Fn(&Received) -> bool) -> Option<Received> {
        while self.poll(Duration::ZERO) {}
        self.records.borrow().iter().find(|record| fits(record)).cloned()
    }

    /// Waits until `count` records, or more, were seen.
    #[track_caller]
    pub fn at_least(&self, count: usize) -> Vec<Received> {
        self.at_least_within(count, DEADLINE)
    }

    #[track_caller]
    pub fn at_least_within(&self, count: usize, deadline: Duration) -> Vec<Received> {
        let started = Instant::now();
        while self.records.borrow().len() < count {
            self.poll(Duration::from_millis(20));
            if started.elapsed() > deadline {
                let seen = self.records.borrow();
                let shown: Vec<String> = seen.iter().map(|record| format!("{} {}", record.position(), record.key_text())).take(20).collect();
                panic!("waited {deadline:?} for {count} records of {}, saw {}: {shown:?}", self.topic, seen.len());
            }
        }
        self.seen()
    }

    /// Waits for the first record, seen already or to come, that fits.
    #[track_caller]
    pub fn find(&self, what: &str, fits: impl Fn(&Received) -> bool) -> Received {
        let started = Instant::now();
        let mut checked = 0;
        loop {
            {
                let records = self.records.borrow();
                if let Some(found) = records[checked..].iter().find(|record| fits(record)) {
                    return found.clone();
                }
                checked = records.len();
            }
            self.poll(Duration::from_millis(20));
            assert!(started.elapsed() < DEADLINE, "waited {DEADLINE:?} for {what} on {}; saw {checked} other records", self.topic);
        }
    }
}

fn received(message: &BorrowedMessage<'_>) -> Received {
    // Header names that are not UTF-8 panic in this client: tests that need them read through `wire`.
    let headers = message
        .headers()
        .map_or_else(Vec::new, |headers| headers.iter().map(|header| (header.key.to_owned(), header.value.map(<[u8]>::to_vec))).collect());
    Received {
        topic: message.topic().to_owned(),
        partition: message.partition(),
        offset: message.offset(),
        timestamp: message.timestamp().to_millis(),
        key: message.key().map(<[u8]>::to_vec),
        value: message.payload().map(<[u8]>::to_vec),
        headers,
    }
}

/// Where the acknowledgements of one [`Producer`] arrive: by the number of the record, position or refusal.
#[derive(Clone, Default)]
struct Acknowledgements {
    outcomes: Arc<(Mutex<HashMap<usize, Outcome>>, Condvar)>,
}

type Outcome = Result<(i32, i64), KafkaError>;

impl ClientContext for Acknowledgements {}

impl ProducerContext for Acknowledgements {
    type DeliveryOpaque = Box<usize>;

    fn delivery(&self, result: &DeliveryResult<'_>, number: Self::DeliveryOpaque) {
        let outcome = match result {
            Ok(message) => Ok((message.partition(), message.offset())),
            Err((error, _)) => Err(error.clone()),
        };
        let (outcomes, came) = &*self.outcomes;
        outcomes.lock().unwrap_or_else(PoisonError::into_inner).insert(*number, outcome);
        came.notify_all();
    }
}

/// A producer that returns only with the acknowledgement. A thread of the client waits for these, so that dozens who wait cost
/// nothing: those who polled themselves took the processors from the broker.
pub struct Producer {
    inner: ThreadedProducer<Acknowledgements>,
    acknowledgements: Acknowledgements,
    count: AtomicUsize,
}

impl Producer {
    fn new(config: &mut ClientConfig) -> Producer {
        let acknowledgements = Acknowledgements::default();
        let inner = config
            .set("acks", "all")
            .set("linger.ms", "0")
            .set("partitioner", "murmur2_random")
            .set("message.max.bytes", "10000000")
            .set("queue.buffering.max.messages", "1000000")
            .create_with_context(acknowledgements.clone())
            .unwrap_or_else(|error| panic!("cannot make a producer: {error}"));
        Producer { inner, acknowledgements, count: AtomicUsize::new(0) }
    }

    /// Produces one record; its partition and offset, once acknowledged.
    #[track_caller]
    pub fn send(&self, topic: &str, record: Record) -> (i32, i64) {
        self.send_all(topic, [record])[0]
    }

    /// Produces records in order; the partition and offset of each, once all are acknowledged.
    #[track_caller]
    pub fn send_all(&self, topic: &str, records: impl IntoIterator<Item = Record>) -> Vec<(i32, i64)> {
        let mut numbers = Vec::new();
        for record in records {
            let number = self.count.fetch_add(1, Ordering::Relaxed);
            numbers.push(number);
            self.enqueue(topic, &record, number);
        }
        let (outcomes, came) = &*self.acknowledgements.outcomes;
        let waiting = |outcomes: &mut HashMap<usize, Outcome>| !numbers.iter().rev().all(|number| outcomes.contains_key(number));
        let guard = outcomes.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut outcomes, waited) = came.wait_timeout_while(guard, DEADLINE * 2, waiting).unwrap_or_else(PoisonError::into_inner);
        assert!(!waited.timed_out(), "{topic} did not acknowledge within {:?}", DEADLINE * 2);
        let taken: Vec<Outcome> = numbers.iter().filter_map(|number| outcomes.remove(number)).collect();
        drop(outcomes);
        taken.into_iter().map(|outcome| outcome.unwrap_or_else(|error| panic!("{topic} refused a record: {error}"))).collect()
    }

    fn enqueue(&self, topic: &str, record: &Record, number: usize) {
        loop {
            let mut message = BaseRecord::with_opaque_to(topic, Box::new(number));
            message.key = record.key.as_deref();
            message.payload = record.value.as_deref();
            message.partition = record.partition;
            message.timestamp = record.timestamp;
            if !record.headers.is_empty() {
                let headers = record
                    .headers
                    .iter()
                    .fold(OwnedHeaders::new(), |headers, (name, value)| headers.insert(Header { key: name, value: value.as_deref() }));
                message = message.headers(headers);
            }
            match self.inner.send::<[u8], [u8]>(message) {
                Ok(()) => return,
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), _)) => std::thread::sleep(Duration::from_millis(1)),
                Err((error, _)) => panic!("cannot produce to {topic}: {error}"),
            }
        }
    }

    pub fn begin(&self) {
        self.check("begin_transaction", |inner| inner.begin_transaction());
    }

    pub fn commit(&self) {
        self.check("commit_transaction", |inner| inner.commit_transaction(REQUEST));
    }

    pub fn abort(&self) {
        self.check("abort_transaction", |inner| inner.abort_transaction(REQUEST));
    }

    fn check(&self, name: &str, call: impl Fn(&ThreadedProducer<Acknowledgements>) -> Result<(), KafkaError>) {
        wait_for(name, DEADLINE, || match call(&self.inner) {
            Ok(()) => Ok(()),
            Err(KafkaError::Transaction(error)) if error.is_retriable() => Err(error.to_string()),
            Err(error) => panic!("{name} failed: {error}"),
        });
    }
}

/// A transactional id that nobody else uses.
fn unique_id() -> String {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    format!("stopgate-tests-{:x}-{}", since.as_micros(), COUNT.fetch_add(1, Ordering::Relaxed))
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap_or_else(|error| panic!("cannot make a runtime: {error}"));
    runtime.block_on(future)
}
