//! From a STOP until no send passes.
//!
//! While people stop, one after the other, each of them is sent to once a millisecond: together these sends are the
//! steady load. A person's figure is the time at which the first suppressed of these sends was produced, less the time
//! at which the STOP was.

use super::{BenchError, PATIENCE, QUERY_TIMEOUT, Report, Service, fill, sends_topic};
use crate::config::{Config, Verb};
use crate::kafka::follower::Follower;
use crate::kafka::offsets::OffsetsClient;
use crate::kafka::producer::{IdempotentProducer, Limits};
use crate::record::{Produce, TopicName};
use crate::run::bench::usage::{Stretch, Taken};
use crate::wire::partition::partition_for;
use std::collections::HashMap;
use std::thread;
use std::time::{Duration, Instant};

/// People who stop, unless fewer are asked for.
const PEOPLE: u64 = 200;
/// So many people are sent to at a time: 5,000 sends a second.
const AT_A_TIME: u64 = 5;
/// So many sends go out before anyone stops.
const WARM_UP: u64 = 5000;
/// How long a person is sent to, half of it before the STOP.
const EACH_MS: u64 = 400;
/// The stages are warm once they keep up with the load: no more sends than this are on their way.
const ON_THEIR_WAY: u64 = 100;
/// Where they never do, so many sends are warmth enough: a machine that is slower than the load is told by its figures.
const WARM_AT_LAST: u64 = 30_000;

/// Measures as many people as there are opt-outs asked for, at most [`PEOPLE`].
pub(super) fn measure(config: &Config, opt_outs: u64) -> Result<Report, BenchError> {
    let people = opt_outs.clamp(1, PEOPLE);
    let service = Service::start(config, Verb::Run);
    let sent = service.wait("starting", 1, || u64::from(service.metrics.restored.get() > 0)).and_then(|()| send(config, &service, people));
    // It commits what it decided before it ends.
    service.end()?;
    let sent = sent?;
    let first = first_suppressed(config, &sent)?;
    let times = sent.stopped.iter().map(|(person, at)| first.get(person).map_or(PATIENCE, |first| first.saturating_duration_since(*at)));
    Ok(Report::new("latency", sent.sends.len() as u64, sent.taken).with_percentiles(times.collect()))
}

/// What went out.
struct Sent {
    /// By its number: whom a send went to, and when.
    sends: Vec<(u64, Instant)>,
    /// When a person's STOP did.
    stopped: HashMap<u64, Instant>,
    taken: Taken,
}

/// Sends to people while they stop, and waits until all of it is decided.
fn send(config: &Config, service: &Service, people: u64) -> Result<Sent, BenchError> {
    let (inbound, sends) = (&config.inbound[0].0, sends_topic(config));
    let partitions = config.topics.partitions;
    let producer = IdempotentProducer::new(&config.connection, Limits::DEFAULT)?;
    let produce = |topic: &TopicName, to: &str, value: Vec<u8>| {
        let partition = partition_for(to.as_bytes(), partitions);
        producer.send(&Produce { topic: topic.clone(), partition, key: Some(to.into()), value: Some(value), headers: Vec::new() }, 0)
    };
    // A message and sends to somebody who never stops, until both stages have joined their groups and keep up.
    let nobody = fill::phone(people);
    produce(inbound, &nobody, fill::message(people, &nobody, "what time do you open?"))?;
    let (mut before, began) = (0_u64, Instant::now());
    let keeps_up = |before: u64| before.saturating_sub(service.decided("filter")) <= ON_THEIR_WAY;
    while service.decided("detect") == 0 || before < WARM_UP || (!keeps_up(before) && before < WARM_AT_LAST) {
        if began.elapsed() > PATIENCE {
            return Err(BenchError::Stalled);
        }
        // Until the first is decided one is enough.
        if before == 0 || service.decided("filter") > 0 {
            produce(sends, &nobody, fill::send(before, &nobody, "marketing"))?;
            before += 1;
        }
        producer.acks(Duration::ZERO)?;
        thread::sleep(Duration::from_micros(200));
    }
    let bar = crate::run::progress::bar("people", Some(people));
    let mut outgoing: Vec<(u64, Instant)> = Vec::new();
    let mut stopped: HashMap<u64, Instant> = HashMap::new();
    let stretch = Stretch::begin();
    let began = Instant::now();
    // Person n is sent to from the nth slot on; a new slot begins each time a fifth of a person's time has passed.
    let slot = EACH_MS / AT_A_TIME;
    let last = (people + AT_A_TIME) * slot;
    for tick in 0..last {
        while began.elapsed() < Duration::from_millis(tick) {
            producer.acks(Duration::ZERO)?;
            thread::sleep(Duration::from_micros(100));
        }
        let newest = tick / slot;
        for person in (newest.saturating_sub(AT_A_TIME - 1)..=newest).filter(|person| *person < people) {
            let phone = fill::phone(person);
            let since = tick.saturating_sub(person * slot);
            if since >= EACH_MS / 2 && !stopped.contains_key(&person) {
                stopped.insert(person, Instant::now());
                produce(inbound, &phone, fill::message(person, &phone, "STOP"))?;
                bar.set_position(stopped.len() as u64);
            }
            let number = outgoing.len() as u64;
            outgoing.push((person, Instant::now()));
            produce(sends, &phone, fill::send(number, &phone, "marketing"))?;
        }
    }
    while !producer.is_idle() {
        producer.acks(Duration::from_millis(1))?;
    }
    let taken = stretch.taken();
    let total = before + outgoing.len() as u64;
    service.wait("deciding", total, || service.decided("filter"))?;
    Ok(Sent { sends: outgoing, stopped, taken })
}

/// When the first suppressed send to each person was produced. A send that was allowed after one that was suppressed
/// would be a leak, and is what the test suites look for; here each person's first counts.
fn first_suppressed(config: &Config, sent: &Sent) -> Result<HashMap<u64, Instant>, BenchError> {
    let (topic, partitions) = (&config.sends[0].suppressed, config.topics.partitions);
    let ends = OffsetsClient::new(&config.connection, "stopgate-bench")?.ends(topic, partitions, QUERY_TIMEOUT)?;
    let mut first: HashMap<u64, Instant> = HashMap::new();
    let mut reader = Follower::new(&config.connection, "stopgate-bench", topic, &vec![0; partitions as usize])?;
    let began = Instant::now();
    while reader.positions().iter().zip(ends.as_slice()).any(|(position, end)| position < end) {
        if began.elapsed() > PATIENCE {
            return Err(BenchError::Stalled);
        }
        reader.turn(Duration::from_millis(20), |records| {
            for record in records {
                let value: serde_json::Value = serde_json::from_slice(record.value.unwrap_or_default()).unwrap_or_default();
                let number = value["id"].as_str().and_then(|id| id.strip_prefix('s')?.parse::<usize>().ok());
                if let Some((person, at)) = number.and_then(|number| sent.sends.get(number)) {
                    first.entry(*person).and_modify(|first| *first = (*first).min(*at)).or_insert(*at);
                }
            }
        })?;
    }
    Ok(first)
}
