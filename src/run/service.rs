//! `run`, `detect`, `filter`: builds a verb's parts, starts them, watches them, drains them.

use super::api::{Api, Words};
use super::detect::{self, DetectStage};
use super::fence::{Fence, FenceAside};
use super::filter::FilterStage;
use super::follow::{self, Follow, Kept};
use super::gathering::Gathering;
use super::guidance::{self, FollowGuidance, GuidanceFence, SharedGuidance};
use super::http;
use super::layout::{Brokers, Layout, Refusal};
use super::overdue;
use super::snapshot::{Keeper, Opened, Snapshots};
use super::status::{Status, Unready};
use super::stop::Stop;
use super::view::SharedView;
use super::words::{self, WordsError};
use super::worker::{Setup, Stage};
use crate::config::{Config, FenceLevel, Verb};
use crate::domain::classify::Lexicon;
use crate::domain::identity::IdentityKey;
use crate::domain::suppression::PrintKey;
use crate::kafka::EdgeError;
use crate::metrics::Metrics;
use crate::record::TopicName;
use crate::stage::worker::{Fencing, Pace};
use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How the service ended badly.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// It must not start like this: exit code 2.
    #[error("{0}")]
    Refused(String),
    /// It could not go on: exit code 1.
    #[error("{0}")]
    Failed(String),
}

impl From<EdgeError> for Failure {
    fn from(error: EdgeError) -> Self {
        Self::Failed(error.to_string())
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Topics(_) | Refusal::Settings(_) => Self::Refused(refusal.to_string()),
            Refusal::Edge(error) => error.into(),
        }
    }
}

/// A transaction ends when the input is drained; only a backlog, which waits anyway, makes one last so long. Each costs the
/// brokers as much as some ten thousand records, and the worker stands still until all is acknowledged: at 100 ms, a quarter of
/// what the machine of `bench` can do; at half a second, a tenth.
const PACE: Pace = Pace {
    fencing: Fencing::EveryBatch,
    commits_idle_positions: false,
    transaction_ms: 1000,
    fence_patience_ms: 2000,
    hold_retry_ms: 200,
    idle_wait_ms: 50,
};

/// Filters of level `inbound` wait for the positions that detection commits.
const DETECT_PACE: Pace = Pace { fencing: Fencing::AfterChange, commits_idle_positions: true, transaction_ms: 100, ..PACE };

/// Where the ends of threads arrive: the thread's name, and why it ended.
type Ends = mpsc::Receiver<(String, Result<(), EdgeError>)>;

/// The running threads.
struct Threads {
    ended: mpsc::Sender<(String, Result<(), EdgeError>)>,
    running: usize,
}

impl Threads {
    fn start(&mut self, name: String, work: impl FnOnce() -> Result<(), EdgeError> + Send + 'static) -> Result<(), Failure> {
        let ended = self.ended.clone();
        let told = name.clone();
        let body = move || {
            // A panic is a broken invariant. It is told like any other end, and the process stops.
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
            let result = result.unwrap_or_else(|_| Err(EdgeError::timed_out("a thread panicked")));
            drop(ended.send((told, result))); // nobody listens any more once the process ends
        };
        thread::Builder::new().name(name).spawn(body).map_err(|error| Failure::Failed(format!("no thread: {error}")))?;
        self.running += 1;
        Ok(())
    }
}

/// Everything that the parts share.
#[derive(Clone)]
struct Parts {
    config: Arc<Config>,
    view: Arc<SharedView>,
    status: Arc<Status>,
    metrics: Arc<Metrics>,
    lexicon: Arc<Lexicon>,
    lexicons: BTreeMap<String, Arc<Lexicon>>,
    rules_version: String,
    stop: Stop,
}

/// Runs a verb until `stop` is asked or something fails. What happens is counted in `metrics`.
pub fn run(config: Config, verb: Verb, brokers: Brokers, metrics: Arc<Metrics>, stop: &Stop) -> Result<(), Failure> {
    let result = serve(config, verb, brokers, metrics, stop);
    // However it ended: no thread is left that waits.
    stop.ask();
    result
}

fn serve(config: Config, verb: Verb, brokers: Brokers, metrics: Arc<Metrics>, stop: &Stop) -> Result<(), Failure> {
    let listener = match config.http {
        None => None,
        Some(address) => Some(http::bind(address).map_err(|error| {
            Failure::Refused(format!(
                "http: {address} cannot be taken: {error}; give another --http ADDR:PORT, or --http off and --instance NAME"
            ))
        })?),
    };
    for warning in config.warnings() {
        tracing::warn!("{warning}");
    }
    let (config, status) = (Arc::new(config), Arc::new(Status::new(&[follow::PART])));
    // The brokers are asked while the words are read: each takes a tenth of a second and more.
    let layout = {
        let (config, status, stop) = (config.clone(), status.clone(), stop.clone());
        let wait = move || Layout::wait(&config, verb, brokers, &status, &stop);
        thread::Builder::new().name("topics".into()).spawn(wait).map_err(|error| Failure::Failed(format!("no thread: {error}")))?
    };
    let refused = |error: WordsError| Failure::Refused(error.to_string());
    let lexicon = Arc::new(words::load(config.lexicon_dir.as_deref()).map_err(refused)?);
    let lexicons = words::of_businesses(&lexicon, &config.words).map_err(refused)?;
    let rules_version = config.rules_version(lexicon.version());
    let snapshots = (brokers == Brokers::Real && config.snapshot_minutes > 0).then(|| Arc::new(Snapshots::new(&config)));
    let opened = snapshots.as_ref().and_then(|snapshots| snapshots.open());
    let print_key = opened.as_ref().map_or_else(|| random_print_key(config.identity_key), Opened::print_key);
    let view = Arc::new(SharedView::new(print_key));
    let parts = Parts { config, view, status, metrics, lexicon, lexicons, rules_version, stop: stop.clone() };
    let (ended, ends) = mpsc::channel();
    let mut threads = Threads { ended, running: 0 };
    if let Some(listener) = listener {
        let (status, metrics, stop) = (parts.status.clone(), parts.metrics.clone(), parts.stop.clone());
        let words = Words { common: parts.lexicon.clone(), of_business: parts.lexicons.clone() };
        let api = Api::start(parts.config.clone(), words, parts.view.clone(), parts.metrics.clone(), &stop)?;
        thread::Builder::new()
            .name("http".into())
            .spawn(move || {
                if let Err(error) = http::serve(listener, status, metrics, api, &stop) {
                    tracing::error!(%error, "the HTTP server ended");
                }
            })
            .map_err(|error| Failure::Failed(format!("no thread: {error}")))?;
    }
    tracing::info!(instance = %parts.config.instance, rules = %parts.rules_version, "starting");
    let result = start(&parts, verb, brokers, layout, snapshots.map(|snapshots| (snapshots, opened)), &ends, &mut threads)
        .and_then(|()| watch(&parts, verb, &ends, &mut threads));
    parts.stop.ask();
    parts.status.unready("process", Unready::Stopping);
    drain(&ends, threads.running);
    result
}

/// Starts the parts in the order in which they need each other: topics, view, workers.
fn start(
    parts: &Parts,
    verb: Verb,
    brokers: Brokers,
    layout: JoinHandle<Result<Option<Layout>, Refusal>>,
    kept: Option<(Arc<Snapshots>, Option<Opened>)>,
    ends: &Ends,
    threads: &mut Threads,
) -> Result<(), Failure> {
    let layout = layout.join().map_err(|_| Failure::Failed("a thread panicked".to_owned()))??;
    let Some(layout) = layout.map(Arc::new) else { return Ok(()) };
    let kept = match kept {
        None => None,
        Some((snapshots, opened)) => {
            let (points, taken) = mpsc::sync_channel(1);
            let keeper = Keeper {
                snapshots: snapshots.clone(),
                view: parts.view.clone(),
                metrics: parts.metrics.clone(),
                stop: parts.stop.clone(),
                points: taken,
            };
            threads.start("snapshot".into(), move || {
                keeper.run();
                Ok(())
            })?;
            Some(Kept { snapshots, opened, points })
        }
    };
    let follow = Follow {
        config: parts.config.clone(),
        brokers,
        layout: layout.clone(),
        kept,
        view: parts.view.clone(),
        status: parts.status.clone(),
        metrics: parts.metrics.clone(),
        stop: parts.stop.clone(),
    };
    threads.start("view".into(), move || follow.run())?;
    let of_kind = |exempt_only: bool| -> Vec<TopicName> {
        let sends = parts.config.sends.iter().filter(|sends| sends.input.exempt_only == exempt_only);
        sends.map(|sends| sends.input.name.clone()).collect()
    };
    let guidance = parts.config.guidance.filter(|_| verb.filters()).map(|_| Arc::new(SharedGuidance::default()));
    if let Some(shared) = &guidance {
        parts.status.unready(guidance::PART, Unready::Starting);
        let follow = FollowGuidance {
            config: parts.config.clone(),
            shared: shared.clone(),
            prints: parts.view.print_key(),
            status: parts.status.clone(),
            metrics: parts.metrics.clone(),
            stop: parts.stop.clone(),
        };
        threads.start("guidance".into(), move || follow.run())?;
    }
    let filter = |fence, guidance| {
        let (config, view, metrics) = (parts.config.clone(), parts.view.clone(), parts.metrics.clone());
        FilterStage::new(config, layout.clone(), view, fence, parts.rules_version.clone(), metrics, guidance)
    };
    let group = &parts.config.filter_group;
    if verb.filters() && !of_kind(true).is_empty() {
        // One-time passwords wait for nothing: no consent concerns them, so no view is needed.
        let (team, pace) = (Team::new(parts.config.workers.filter, group), Pace { fencing: Fencing::Never, ..PACE });
        for worker in 0..team.workers {
            start_worker(parts, threads, &layout, &team, format!("exempt-{worker}"), of_kind(true), pace, filter(None, None))?;
        }
    }
    // No group is joined before the view holds the opt-outs topic: nothing would be decided, and partitions would move
    // to a member that cannot serve them.
    while parts.metrics.restored.get() == 0 || guidance.as_ref().is_some_and(|guidance| !guidance.is_restored()) {
        if parts.stop.is_asked() {
            return Ok(());
        }
        if let Ok(ended) = ends.try_recv() {
            threads.running -= 1;
            parts.status.dead();
            return Err(ended_early(ended));
        }
        parts.stop.sleep(Duration::from_millis(5));
    }
    if verb.detects() {
        overdue::start(parts.config.clone(), parts.view.clone(), parts.metrics.clone(), parts.stop.clone())
            .map_err(|error| Failure::Failed(format!("no thread: {error}")))?;
        let team = Team::new(parts.config.workers.detect, &parts.config.detect_group);
        for worker in 0..team.workers {
            let rules = detect::rules_of(&parts.config, parts.lexicon.clone(), parts.lexicons.clone());
            let fence = fence(parts, FenceLevel::OptOuts)?;
            let (config, metrics) = (parts.config.clone(), parts.metrics.clone());
            let stage = DetectStage::new(config, layout.clone(), parts.view.clone(), fence, rules, metrics)?;
            let pace = DETECT_PACE;
            let topics = parts.config.inbound.iter().map(|(topic, _)| topic.clone()).collect();
            start_worker(parts, threads, &layout, &team, worker.to_string(), topics, pace, stage)?;
        }
    }
    if verb.filters() && !of_kind(false).is_empty() {
        let team = Team::new(parts.config.workers.filter, group);
        for worker in 0..team.workers {
            let of_guidance = guidance.as_ref().map(|shared| GuidanceFence::new(parts.config.clone(), shared.clone())).transpose()?;
            let stage = filter(Some(fence(parts, parts.config.fence)?), of_guidance);
            start_worker(parts, threads, &layout, &team, worker.to_string(), of_kind(false), PACE, stage)?;
        }
    }
    Ok(())
}

/// Workers of a stage, who join its group together.
struct Team<'g> {
    workers: u32,
    group: &'g str,
    gathering: Arc<Gathering>,
}

impl<'g> Team<'g> {
    fn new(workers: u32, group: &'g str) -> Self {
        Self { workers, group, gathering: Arc::new(Gathering::of(workers)) }
    }
}

/// One worker's fence, on a thread of its own.
fn fence(parts: &Parts, level: FenceLevel) -> Result<FenceAside, Failure> {
    let fence = Fence::new(&parts.config, level, parts.view.clone(), parts.metrics.clone())?;
    FenceAside::new(fence).map_err(|error| Failure::Failed(format!("no thread: {error}")))
}

#[expect(clippy::too_many_arguments, reason = "one call for each part of a worker's identity reads better than a struct used once")]
fn start_worker<S: Stage + Send + 'static>(
    parts: &Parts,
    threads: &mut Threads,
    layout: &Layout,
    team: &Team<'_>,
    worker: String,
    topics: Vec<TopicName>,
    pace: Pace,
    stage: S,
) -> Result<(), Failure> {
    let setup = Setup {
        connection: parts.config.connection.clone(),
        group: team.group.to_owned(),
        member: format!("{}-{worker}", parts.config.instance),
        topics,
        gathering: team.gathering.clone(),
        pace,
        limits: layout.limits(),
        status: parts.status.clone(),
        metrics: parts.metrics.clone(),
        stop: parts.stop.clone(),
    };
    threads.start(format!("{}-{worker}", S::NAME), move || setup.run(stage))
}

/// Waits for the wish to stop, or for a thread that ends without it.
fn watch(parts: &Parts, verb: Verb, ends: &Ends, threads: &mut Threads) -> Result<(), Failure> {
    let began = unix_seconds();
    while !parts.stop.is_asked() {
        if verb.detects() {
            raise_silence_alarm(parts, began);
        }
        match ends.recv_timeout(Duration::from_millis(100)) {
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            Err(mpsc::RecvTimeoutError::Disconnected) => return Err(Failure::Failed("all threads have ended".to_owned())),
            Ok((name, result)) => {
                threads.running -= 1;
                if parts.stop.is_asked() {
                    continue;
                }
                parts.status.dead();
                return Err(ended_early((name, result)));
            }
        }
    }
    Ok(())
}

fn ended_early((name, result): (String, Result<(), EdgeError>)) -> Failure {
    let why = result.err().map_or_else(|| "it ended by itself".to_owned(), |error| error.to_string());
    Failure::Failed(format!("thread {name} ended: {why}"))
}

/// Where no inbound record has come for so long, opt-outs may be missing: ingestion is down, or a topic is misspelt.
fn raise_silence_alarm(parts: &Parts, began: i64) {
    let minutes = i64::try_from(parts.config.silence_alarm_minutes).unwrap_or(i64::MAX);
    if minutes == 0 {
        return;
    }
    let newest = parts.metrics.inbound_newest_timestamp_seconds.get().max(began);
    let silent = unix_seconds().saturating_sub(newest) > minutes.saturating_mul(60);
    if silent && parts.metrics.silence_alarm.get() == 0 {
        tracing::warn!(minutes, "no inbound record has come for longer than silence_alarm_minutes");
    }
    parts.metrics.silence_alarm.set(i64::from(silent));
}

fn unix_seconds() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64)
}

/// Waits for the threads, but not for ever: what hangs is left behind and nothing of it is committed.
fn drain(ends: &Ends, running: usize) {
    let deadline = Instant::now() + Duration::from_millis(9500);
    for _ in 0..running {
        let left = deadline.saturating_duration_since(Instant::now());
        match ends.recv_timeout(left) {
            Ok((name, Err(error))) => tracing::warn!(thread = %name, %error, "ended"),
            Ok((name, Ok(()))) => tracing::debug!(thread = %name, "ended"),
            Err(_) => {
                tracing::warn!("some threads did not end in time");
                return;
            }
        }
    }
    tracing::info!("stopped");
}

/// A key that nobody can guess: addresses that collide cannot be crafted.
pub(super) fn random_print_key(identities: Option<IdentityKey>) -> PrintKey {
    // Each `RandomState` holds keys from the system's random source.
    let random = || RandomState::new().hash_one(0_u64);
    PrintKey::new(random(), random()).with_identities(identities)
}
