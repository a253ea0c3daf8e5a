//! `stopgate bench`: every speed claim, measured on the user's own broker.
//!
//! Each measurement makes topics of its own, fills them, copies them with the client's bare loop (the
//! yardstick), does its work beside that, and removes all again. Machines are noisy: what counts is the ratio to the
//! copy of the same run, and the processor time of a record.

mod fill;
mod latency;
mod report;
mod usage;

pub use report::Report;

use super::layout::Brokers;
use super::progress;
use super::service::{self, Failure};
use super::stop::Stop;
use super::topics::{self, TopicsError};
use crate::config::{Config, Overrides, RawConfig, RawInbound, RawSends, Verb};
use crate::kafka::admin::Admin;
use crate::kafka::copy::copy;
use crate::kafka::offsets::{OffsetsClient, Unknown};
use crate::kafka::{Connection, EdgeError};
use crate::metrics::{Metrics, StageOutcome};
use crate::record::TopicName;
use std::io::Write;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use usage::Stretch;

/// What is measured. What stands beside each is its help on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Measured {
    /// Write opt-outs and sends
    Fill,
    /// Stage 2, exactly-once and fenced, beside the bare copy of the same sends
    Filter,
    /// Stage 1 on JSON messages, beside their bare copy
    Detect,
    /// Read the opt-outs topic into the set
    Restore,
    /// From a STOP until no send passes, at 5,000 sends a second, both stages in this process
    Latency,
    /// The client's bare loop, read and write: what everything else is compared with
    Copy,
}

/// How much of it.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    pub opt_outs: u64,
    /// Sends, or messages for detect.
    pub sends: u64,
    pub partitions: u32,
}

/// Where and how.
#[derive(Clone, Debug)]
pub struct Options {
    pub size: Size,
    /// Absent: as many as the service has unless told.
    pub workers: Option<u32>,
    /// Topics stay.
    pub keep: bool,
    pub json: bool,
}

/// Why nothing was measured.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    #[error(transparent)]
    Edge(#[from] EdgeError),
    #[error(transparent)]
    Offsets(#[from] Unknown),
    #[error(transparent)]
    Topics(#[from] TopicsError),
    #[error(transparent)]
    Output(#[from] std::io::Error),
    #[error("the measurement's own configuration: {0}")]
    Config(#[from] crate::config::Problems),
    #[error("the service ended: {0}")]
    Service(#[from] Failure),
    #[error("nothing more was decided for {} s", PATIENCE.as_secs())]
    Stalled,
}

const QUERY_TIMEOUT: Duration = Duration::from_secs(30);
/// How long nothing may happen.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often the counters are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Fills the topics that the configuration names, for others to measure the service with.
pub fn fill_default_topics(config: &Config, options: &Options, out: &mut impl Write) -> Result<(), BenchError> {
    topics::create(config, &mut std::io::sink())?;
    fill(config, options, out)
}

/// Measures on topics of its own, and removes them again unless they are to be kept. `raw` says how to reach the
/// brokers; everything else of it is replaced.
pub fn run(raw: &RawConfig, bootstrap: &str, measured: Measured, options: &Options, out: &mut impl Write) -> Result<(), BenchError> {
    let config = own(raw, bootstrap, options)?;
    topics::create(&config, &mut std::io::sink())?;
    let result = match measured {
        Measured::Fill => fill(&config, options, out),
        Measured::Filter => filter(&config, options, out),
        Measured::Detect => detect(&config, options, out),
        Measured::Restore => restore(&config, options, out),
        Measured::Latency => latency::measure(&config, options.size.opt_outs).and_then(|report| tell(&report, options, out)),
        Measured::Copy => fill_sends(&config, options).and_then(|()| tell(&copied(&config, sends_topic(&config))?, options, out)),
    };
    if options.keep {
        // Asked for: who keeps topics wants their names, and JSON on standard output stays JSON.
        writeln!(std::io::stderr(), "kept: topics that begin with {}", config.filter_group)?;
    } else {
        remove(&config)?;
    }
    result
}

/// A configuration whose topics, groups and instance are this run's alone.
fn own(raw: &RawConfig, bootstrap: &str, options: &Options) -> Result<Config, BenchError> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let prefix = format!("stopgate-bench-{:x}", since.as_millis());
    let mut own = RawConfig::default();
    own.kafka.clone_from(&raw.kafka);
    let topic = |name: &str| format!("{prefix}.{name}");
    (own.topics.opt_outs, own.topics.replies, own.topics.reviews) = (topic("opt-outs"), topic("replies"), topic("reviews"));
    (own.topics.decisions, own.topics.dead_letters) = (topic("decisions"), topic("dead-letters"));
    own.topics.partitions = options.size.partitions;
    // Nothing is left where it was started, and nothing is read from there.
    own.snapshot_minutes = Some(0);
    own.topics.replication = raw.topics.replication;
    (own.groups.detect, own.groups.filter) = (format!("{prefix}-detect"), prefix.clone());
    own.inbound = vec![RawInbound::json(topic("inbound"))];
    own.sends = vec![RawSends::named(topic("sends"))];
    let overrides = Overrides {
        bootstrap: Some(bootstrap.to_owned()),
        instance: Some("bench".to_owned()),
        workers: options.workers,
        http: Some("off".to_owned()),
        ..Overrides::default()
    };
    Ok(own.overridden(overrides).check(Verb::Run, "bench")?)
}

fn remove(config: &Config) -> Result<(), BenchError> {
    let admin = Admin::new(&config.connection, QUERY_TIMEOUT)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let topics: Vec<&str> = config.all_topics().into_iter().map(|topic| &**topic).collect();
    runtime.block_on(admin.delete(&topics))?;
    Ok(())
}

fn tell(report: &Report, options: &Options, out: &mut impl Write) -> Result<(), BenchError> {
    report.write(options.json, out)?;
    out.flush()?;
    Ok(())
}

/// Shows how far a piece of work has come while it is done.
fn shown<T>(what: &'static str, length: u64, work: impl FnOnce(&dyn Fn(u64)) -> Result<T, EdgeError>) -> Result<T, BenchError> {
    let bar = progress::bar(what, Some(length));
    Ok(work(&|done| bar.set_position(done))?)
}

fn sends_topic(config: &Config) -> &TopicName {
    &config.sends[0].input.name
}

/// Number of partitions of a topic that exists. A broker knows of one that was just created a moment later.
fn partitions(connection: &Connection, topic: &str) -> Result<u32, BenchError> {
    let offsets = OffsetsClient::new(connection, "stopgate-bench")?;
    let until = Instant::now() + QUERY_TIMEOUT;
    loop {
        match offsets.partitions(topic, QUERY_TIMEOUT)? {
            Some(count) => return Ok(count),
            None if Instant::now() < until => thread::sleep(LOOK_EVERY),
            None => return Err(Unknown::Topic.into()),
        }
    }
}

fn fill_opt_outs(config: &Config, options: &Options) -> Result<(), BenchError> {
    let topic = &config.topics.opt_outs;
    let (connection, count) = (&config.connection, options.size.opt_outs);
    let partitions = partitions(connection, topic)?;
    shown("writing opt-outs", count, |progress| fill::opt_outs(connection, topic, partitions, count, progress))
}

fn fill_sends(config: &Config, options: &Options) -> Result<(), BenchError> {
    let topic = sends_topic(config);
    let (connection, Size { opt_outs, sends, .. }) = (&config.connection, options.size);
    let (partitions, range) = (partitions(connection, topic)?, fill::range_of(opt_outs));
    shown("writing sends", sends, |progress| fill::sends(connection, topic, partitions, sends, range, progress))
}

fn fill(config: &Config, options: &Options, out: &mut impl Write) -> Result<(), BenchError> {
    let stretch = Stretch::begin();
    fill_opt_outs(config, options)?;
    fill_sends(config, options)?;
    tell(&Report::new("fill", options.size.opt_outs + options.size.sends, stretch.taken()), options, out)
}

/// Measures something beside the bare copy of a topic: one copy before it and one after, together the yardstick. Machines
/// get slower and faster by the second; and on a virtual one, memory that was free a while ago is given to the broker's
/// file cache at a price that the first to write pays least of.
fn beside_copies(
    config: &Config,
    topic: &TopicName,
    options: &Options,
    out: &mut impl Write,
    measure: impl FnOnce() -> Result<Report, BenchError>,
) -> Result<(), BenchError> {
    let before = copied(config, topic)?;
    let report = measure()?;
    let copies = before.and(&copied(config, topic)?);
    tell(&copies, options, out)?;
    tell(&report.beside(&copies), options, out)
}

/// A topic of this run, copied by the bare loop.
fn copied(config: &Config, topic: &TopicName) -> Result<Report, BenchError> {
    let connection = &config.connection;
    let offsets = OffsetsClient::new(connection, "stopgate-bench")?;
    let count = partitions(connection, topic)?;
    let ends = offsets.ends(topic, count, QUERY_TIMEOUT)?;
    // A topic of the same partition count, for nothing else.
    let copies: TopicName = format!("{topic}.copy").into();
    let admin = Admin::new(connection, QUERY_TIMEOUT)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (brokers, existing) = admin.cluster()?;
    let Some(mut wanted) = topics::wanted(config, brokers, &existing).into_iter().find(|wanted| *wanted.name == **topic) else {
        unreachable!("the topic is one of the configuration's own");
    };
    wanted.name = copies.to_string();
    runtime.block_on(admin.create(&wanted))?;
    let wanted: u64 = ends.as_slice().iter().sum();
    let stretch = Stretch::begin();
    let copied = shown("copying", wanted, |progress| copy(connection, topic, &copies, ends.as_slice(), progress));
    let report = copied.map(|records| Report::new("copy", records, stretch.taken()));
    runtime.block_on(admin.delete(&[&copies]))?;
    report
}

/// The service under measurement, as users run it.
struct Service {
    metrics: Arc<Metrics>,
    stop: Stop,
    thread: JoinHandle<Result<(), Failure>>,
}

impl Service {
    fn start(config: &Config, verb: Verb) -> Self {
        let (metrics, stop) = (Arc::new(Metrics::new()), Stop::default());
        let thread = {
            let (config, metrics, stop) = (config.clone(), metrics.clone(), stop.clone());
            thread::spawn(move || service::run(config, verb, Brokers::Real, metrics, &stop))
        };
        Self { metrics, stop, thread }
    }

    /// Records of a stage that have their outcome.
    fn decided(&self, stage: &'static str) -> u64 {
        let outcomes = ["allowed", "suppressed", "acted", "ignored", "dead-letter"];
        outcomes.iter().map(|outcome| self.metrics.records.get_or_create(&StageOutcome { stage, outcome }).get()).sum()
    }

    /// Seconds that workers have waited for the fence so far.
    fn fence_wait_seconds(&self) -> f64 {
        // The client library tells a histogram's sum in its exposition alone.
        let text = self.metrics.to_text();
        let sum = text.lines().find_map(|line| line.strip_prefix("stopgate_fence_wait_seconds_sum "));
        sum.and_then(|sum| sum.parse().ok()).unwrap_or_default()
    }

    /// Waits until a measure grows to `wanted`.
    fn wait(&self, what: &'static str, wanted: u64, reached: impl Fn() -> u64) -> Result<(), BenchError> {
        let bar = progress::bar(what, Some(wanted));
        let (mut last, mut moved) = (0, Instant::now());
        loop {
            let now = reached();
            bar.set_position(now);
            if now >= wanted {
                return Ok(());
            }
            if now != last {
                (last, moved) = (now, Instant::now());
            }
            if moved.elapsed() > PATIENCE || self.thread.is_finished() {
                return Err(BenchError::Stalled);
            }
            thread::sleep(LOOK_EVERY);
        }
    }

    fn end(self) -> Result<(), BenchError> {
        self.stop.ask();
        Ok(self.thread.join().unwrap_or_else(|_| Err(Failure::Failed("a thread panicked".to_owned())))?)
    }
}

/// Runs a stage over a whole topic; from its first outcome to the commit of its last.
fn stage(config: &Config, verb: Verb, stage: &'static str, group: &str, topic: &TopicName) -> Result<Report, BenchError> {
    let offsets = OffsetsClient::new(&config.connection, group)?;
    let count = partitions(&config.connection, topic)?;
    let ends = offsets.ends(topic, count, QUERY_TIMEOUT)?;
    let wanted: u64 = ends.as_slice().iter().sum();
    let service = Service::start(config, verb);
    let waited = || -> Result<Report, BenchError> {
        service.wait("starting", 1, || u64::from(service.decided(stage) > 0))?;
        let (stretch, fenced_before) = (Stretch::begin(), service.fence_wait_seconds());
        service.wait(stage, wanted, || service.decided(stage))?;
        while !offsets.committed(topic, count, QUERY_TIMEOUT)?.iter().zip(ends.as_slice()).all(|(committed, end)| committed.unwrap_or(0) >= *end)
        {
            thread::sleep(LOOK_EVERY);
        }
        let taken = stretch.taken();
        let mut report = Report::new(stage, wanted, taken);
        let workers = match verb {
            Verb::Detect => config.workers.detect,
            Verb::Filter | Verb::Run => config.workers.filter,
        };
        let waited = service.fence_wait_seconds() - fenced_before;
        report.fence_wait_share = Some(waited / (taken.elapsed.as_secs_f64() * f64::from(workers)));
        Ok(report)
    };
    let report = waited();
    service.end()?;
    report
}

fn filter(config: &Config, options: &Options, out: &mut impl Write) -> Result<(), BenchError> {
    fill_opt_outs(config, options)?;
    fill_sends(config, options)?;
    let topic = sends_topic(config);
    beside_copies(config, topic, options, out, || stage(config, Verb::Filter, "filter", &config.filter_group, topic))
}

fn detect(config: &Config, options: &Options, out: &mut impl Write) -> Result<(), BenchError> {
    let topic = &config.inbound[0].0;
    let (connection, count) = (&config.connection, options.size.sends);
    let partitions = partitions(connection, topic)?;
    shown("writing messages", count, |progress| fill::messages(connection, topic, partitions, count, progress))?;
    beside_copies(config, topic, options, out, || stage(config, Verb::Detect, "detect", &config.detect_group, topic))
}

fn restore(config: &Config, options: &Options, out: &mut impl Write) -> Result<(), BenchError> {
    fill_opt_outs(config, options)?;
    beside_copies(config, &config.topics.opt_outs, options, out, || restored(config, options.size.opt_outs))
}

fn restored(config: &Config, count: u64) -> Result<Report, BenchError> {
    let service = Service::start(config, Verb::Filter);
    let stretch = Stretch::begin();
    let waited = service.wait("restoring", 1, || u64::from(service.metrics.restored.get() > 0));
    let mut taken = stretch.taken();
    taken.elapsed = Duration::from_secs_f64(service.metrics.restore_seconds.get());
    let report = Report::new("restore", count, taken);
    service.end()?;
    waited?;
    Ok(report)
}
