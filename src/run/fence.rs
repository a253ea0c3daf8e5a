//! The fence as the workers use it: ask where the logs end *now*, wait until the view is there.

use super::view::{Applied, Closed, Passed, SharedView};
use crate::config::{Config, FenceLevel};
use crate::kafka::EdgeError;
use crate::kafka::offsets::{Offsets, OffsetsClient, Unknown};
use crate::metrics::Metrics;
use crate::record::TopicName;
use std::fmt;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

/// Why a send cannot be decided yet.
#[derive(Debug)]
pub enum Waiting {
    /// Where a log ends is not known.
    Unknown(Unknown),
    /// The view is not there yet.
    View(Closed),
    /// Stage 1 has not read an inbound partition to its end.
    Detect { topic: TopicName, partition: u32, committed: Option<u64>, end: u64 },
    /// What is known of guidance is not there yet: after partitions were taken, once.
    Guidance(&'static str),
    /// Stage 1's position lies beyond the end of an inbound partition: it is a position in another log.
    DetectBeyond { topic: TopicName, partition: u32, committed: u64, end: u64 },
}

impl Waiting {
    /// The metric's label.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Unknown(_) => "offsets-unknown",
            Self::View(Closed::Behind { .. }) => "view-behind",
            Self::View(Closed::WentBack { .. }) => "log-went-back",
            Self::View(Closed::View(_)) => "view-closed",
            Self::Detect { .. } => "detect-behind",
            Self::Guidance(_) => "guidance-behind",
            Self::DetectBeyond { .. } => "detect-beyond-end",
        }
    }
}

impl fmt::Display for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(unknown) => unknown.fmt(f),
            Self::View(closed) => closed.fmt(f),
            Self::Guidance(why) => write!(f, "guidance: {why}"),
            Self::Detect { topic, partition, committed, end } => {
                let committed = committed.unwrap_or_default();
                write!(f, "stage 1 has read {topic} partition {partition} up to {committed} of {end}: is `stopgate detect` running?")
            }
            Self::DetectBeyond { topic, partition, committed, end } => write!(
                f,
                "stage 1 has committed position {committed} of {topic} partition {partition}, which ends at {end}: it says nothing \
                 about what lies there now; see the readiness of `stopgate detect`"
            ),
        }
    }
}

/// Whom the fence asks, as one group: the brokers, or whatever stands in for them.
pub trait Logs {
    /// How many partitions a topic has; `None` where the brokers do not know it.
    fn partitions(&self, topic: &str) -> Result<Option<u32>, EdgeError>;

    /// The end (next offset to be written) of every partition, records of open transactions included.
    fn ends(&self, topic: &str, partitions: u32) -> Result<Offsets, Unknown>;

    /// The group's committed position in every partition; `None` where it never committed.
    fn committed(&self, topic: &str, partitions: u32) -> Result<Vec<Option<u64>>, Unknown>;
}

/// How long one question may take, and how soon stage 1's positions are asked for again.
const QUERY_TIMEOUT: Duration = Duration::from_secs(2);
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(2);

impl Logs for OffsetsClient {
    fn partitions(&self, topic: &str) -> Result<Option<u32>, EdgeError> {
        self.partitions(topic, QUERY_TIMEOUT)
    }

    fn ends(&self, topic: &str, partitions: u32) -> Result<Offsets, Unknown> {
        self.ends(topic, partitions, QUERY_TIMEOUT)
    }

    fn committed(&self, topic: &str, partitions: u32) -> Result<Vec<Option<u64>>, Unknown> {
        self.committed(topic, partitions, QUERY_TIMEOUT)
    }
}

/// One worker's way of asking.
pub struct Fence<L = OffsetsClient> {
    view: Arc<SharedView>,
    metrics: Arc<Metrics>,
    logs: L,
    opt_outs: TopicName,
    /// At level `inbound`: the inbound topics, asked as stage 1's group.
    inbound: Option<(L, Vec<TopicName>)>,
}

impl Fence {
    /// A fence of the given level, with clients of its own.
    pub fn new(config: &Config, level: FenceLevel, view: Arc<SharedView>, metrics: Arc<Metrics>) -> Result<Self, EdgeError> {
        let logs = OffsetsClient::new(&config.connection, &config.filter_group)?;
        let inbound = match level {
            FenceLevel::OptOuts => None,
            FenceLevel::Inbound => {
                let client = OffsetsClient::new(&config.connection, &config.detect_group)?;
                Some((client, config.inbound.iter().map(|(topic, _)| topic.clone()).collect()))
            }
        };
        Ok(Self::over(logs, config.topics.opt_outs.clone(), inbound, view, metrics))
    }
}

impl<L: Logs> Fence<L> {
    /// A fence that asks these logs; with inbound topics, and whom to ask about them as stage 1, of level `inbound`.
    pub fn over(logs: L, opt_outs: TopicName, inbound: Option<(L, Vec<TopicName>)>, view: Arc<SharedView>, metrics: Arc<Metrics>) -> Self {
        Self { view, metrics, logs, opt_outs, inbound }
    }

    /// Asks the ends now and waits for them, at most so long. What was received before this call may be decided after
    /// an `Ok`.
    pub fn pass(&mut self, patience: Duration) -> Result<Passed, Waiting> {
        let began = Instant::now();
        let deadline = began + patience;
        let passed = self.pass_until(deadline);
        self.metrics.fence_wait_seconds.observe(began.elapsed().as_secs_f64());
        passed
    }

    fn pass_until(&self, deadline: Instant) -> Result<Passed, Waiting> {
        if let Some((logs, topics)) = &self.inbound {
            topics.iter().try_for_each(|topic| wait_for_detect(logs, topic, deadline))?;
        }
        let before = self.view.applied();
        // A partition that was added may hold an opt-out that no known partition's end tells of.
        self.has_the_partitions_of_the_view(&before)?;
        let ends = self.logs.ends(&self.opt_outs, before.partitions()).map_err(Waiting::Unknown)?;
        self.metrics.applied_lag_records.set(before.lag(&ends) as i64);
        self.view.wait(&ends, &before, deadline).map_err(Waiting::View)
    }

    /// Whether the topic still has the partitions that were read. (A topic that was made anew is found by its id, which
    /// takes ten times as long to ask for: the applying thread does, every second; here its lower end shows.)
    fn has_the_partitions_of_the_view(&self, before: &Applied) -> Result<(), Waiting> {
        match self.logs.partitions(&self.opt_outs).map_err(|error| Waiting::Unknown(Unknown::Query(error)))? {
            None => Err(Waiting::Unknown(Unknown::Topic)),
            Some(count) if count == before.partitions() => Ok(()),
            Some(_) => Err(Waiting::View(Closed::View("the partition count of opt-outs changed"))),
        }
    }
}

/// A fence that is asked on a thread of its own: whoever asks can decide other records until the answer is there.
pub struct FenceAside {
    /// A question is out whose answer was not taken.
    is_asked: bool,
    questions: mpsc::Sender<Duration>,
    answers: mpsc::Receiver<Result<Passed, Waiting>>,
    metrics: Arc<Metrics>,
}

impl FenceAside {
    /// Takes a fence to its thread, which ends when this is dropped.
    pub fn new(fence: Fence) -> std::io::Result<Self> {
        let (questions, asked) = mpsc::channel::<Duration>();
        let (answer, answers) = mpsc::channel();
        let metrics = fence.metrics.clone();
        std::thread::Builder::new().name("fence".into()).spawn(move || {
            while let Ok(patience) = asked.recv() {
                if answer.send(fence.pass_until(Instant::now() + patience)).is_err() {
                    return; // nobody waits any more
                }
            }
        })?;
        Ok(Self { is_asked: false, questions, answers, metrics })
    }

    /// Asks the ends now. What was received before this call may be decided after an `Ok` of [`FenceAside::answer`]. The
    /// answer to a question that is out already is waited for and dropped.
    pub fn ask(&mut self, patience: Duration) {
        if self.is_asked {
            drop(self.answer());
        }
        // The thread ends by a panic alone, which the answer tells.
        let _told_by_the_answer = self.questions.send(patience);
        self.is_asked = true;
    }

    /// The answer to the question that is out. There must be one.
    ///
    /// # Panics
    /// Where the fence's thread has panicked: a broken invariant stops the process.
    pub fn answer(&mut self) -> Result<Passed, Waiting> {
        self.is_asked = false;
        let began = Instant::now();
        let Ok(answer) = self.answers.recv() else { panic!("the fence's thread has ended") };
        self.metrics.fence_wait_seconds.observe(began.elapsed().as_secs_f64());
        answer
    }
}

/// Waits until stage 1 has committed positions up to where the inbound topic ends now.
fn wait_for_detect(logs: &impl Logs, topic: &TopicName, deadline: Instant) -> Result<(), Waiting> {
    // A topic may gain partitions at any time, and the newest may hold the message that matters: count anew each time.
    let unknown = |error| Waiting::Unknown(Unknown::Query(error));
    let partitions = logs.partitions(topic).map_err(unknown)?.ok_or(Waiting::Unknown(Unknown::Topic))?;
    let ends: Offsets = logs.ends(topic, partitions).map_err(Waiting::Unknown)?;
    loop {
        let committed = logs.committed(topic, partitions).map_err(Waiting::Unknown)?;
        let late = (0..).zip(committed.iter().zip(ends.as_slice())).find(|(_, (committed, end))| committed.unwrap_or(0) < **end);
        let Some((partition, (&committed_there, &end))) = late else {
            return if exceeds(&committed, &ends) { wait_out_beyond(logs, topic, &committed) } else { Ok(()) };
        };
        if Instant::now() >= deadline {
            return Err(Waiting::Detect { topic: topic.clone(), partition, committed: committed_there, end });
        }
        std::thread::sleep(ASK_AGAIN_AFTER);
    }
}

fn exceeds(committed: &[Option<u64>], ends: &Offsets) -> bool {
    committed.iter().zip(ends.as_slice()).any(|(committed, end)| committed.is_some_and(|committed| committed > *end))
}

/// A position beyond the end that was asked for first may be honest: more was written and read since. Beyond an end
/// that was asked for after it, it belongs to a log that was deleted or cut.
fn wait_out_beyond(logs: &impl Logs, topic: &TopicName, committed: &[Option<u64>]) -> Result<(), Waiting> {
    let ends = logs.ends(topic, committed.len() as u32).map_err(Waiting::Unknown)?;
    let beyond = (0..)
        .zip(committed.iter().zip(ends.as_slice()))
        .find_map(|(partition, (committed, end))| committed.filter(|committed| committed > end).map(|committed| (partition, committed, *end)));
    match beyond {
        None => Ok(()),
        Some((partition, committed, end)) => Err(Waiting::DetectBeyond { topic: topic.clone(), partition, committed, end }),
    }
}
