//! The thread that enters acts for the API: one producer for all of them, one fence before they are judged and one after
//! they are acknowledged.

use super::problem::Problem;
use super::{PATIENCE, now};
use crate::config::{Config, FenceLevel};
use crate::kafka::EdgeError;
use crate::metrics::Metrics;
use crate::run::fence::Fence;
use crate::run::list::{Entered, Sent, Writer, entered, send};
use crate::run::stop::Stop;
use crate::run::view::SharedView;
use crate::stage::entry::{Entry, EntryError};
use axum::http::{HeaderMap, StatusCode};
use parking_lot::Mutex;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, mpsc};
use std::time::Duration;
use tokio::sync::oneshot;

/// Entries that wait; more are sent away.
const MAX_WAITING: usize = 256;
const FENCE_PATIENCE: Duration = Duration::from_secs(2);
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Why nothing was entered, or nobody knows whether it was.
enum Failure {
    Refused(EntryError),
    Unavailable(String),
}

struct Wanted {
    entries: Vec<Entry>,
    answer: oneshot::Sender<Result<Vec<Entered>, Failure>>,
}

/// The way to the thread, and the answers that were given under keys.
#[derive(Clone)]
pub(super) struct Entries {
    queue: mpsc::SyncSender<Wanted>,
    answered: Arc<Mutex<Answered>>,
}

/// Requests that were answered under an `Idempotency-Key`, the latest of this process.
#[derive(Default)]
struct Answered {
    answers: HashMap<Repeated, (Entry, Entered)>,
    order: VecDeque<Repeated>,
}

/// Who asked, under which key.
type Repeated = (String, Vec<u8>);

/// So many answers are remembered.
const REMEMBERED: usize = 4096;
/// Longest key that is taken, in bytes.
const MAX_KEY_BYTES: usize = 255;

fn repeated_key(headers: &HeaderMap, entry: &Entry) -> Option<Repeated> {
    headers.get("idempotency-key").map(|key| (entry.grounds.actor.clone(), key.as_bytes().to_vec()))
}

/// Whether two requests ask for the same. Where none gives a time, both mean the moment at which they came.
fn is_same(one: &Entry, other: &Entry, timed: bool) -> bool {
    let one = if timed { one.clone() } else { Entry { occurred_at: other.occurred_at, ..one.clone() } };
    one == *other
}

impl Entries {
    pub(super) fn start(config: Arc<Config>, view: Arc<SharedView>, metrics: Arc<Metrics>, stop: Stop) -> Result<Self, EdgeError> {
        let (queue, wanted) = mpsc::sync_channel::<Wanted>(MAX_WAITING);
        let mut desk = Desk { fence: Fence::new(&config, FenceLevel::OptOuts, view.clone(), metrics)?, config, view, writer: None };
        let work = move || {
            while !stop.is_asked() {
                match wanted.recv_timeout(LOOK_EVERY) {
                    Ok(wanted) => {
                        let done = desk.enter(&wanted.entries);
                        drop(wanted.answer.send(done)); // whoever asked may have gone
                    }
                    Err(mpsc::RecvTimeoutError::Timeout) => {}
                    Err(mpsc::RecvTimeoutError::Disconnected) => return,
                }
            }
        };
        std::thread::Builder::new().name("enter".into()).spawn(work).map_err(|_| EdgeError::timed_out("no thread for entries"))?;
        Ok(Self { queue, answered: Arc::default() })
    }

    /// The answer that was given to this request before, under the same `Idempotency-Key`.
    pub(super) fn repeated(&self, headers: &HeaderMap, entry: &Entry, timed: bool) -> Result<Option<(Entry, Entered)>, Problem> {
        let Some(key) = repeated_key(headers, entry) else { return Ok(None) };
        if key.1.is_empty() || key.1.len() > MAX_KEY_BYTES {
            return Err(Problem::of(StatusCode::BAD_REQUEST, &format!("an idempotency key has 1 to {MAX_KEY_BYTES} bytes")));
        }
        match self.answered.lock().answers.get(&key) {
            None => Ok(None),
            Some(answer) if is_same(&answer.0, entry, timed) => Ok(Some(answer.clone())),
            Some(_) => Err(Problem::of(StatusCode::UNPROCESSABLE_ENTITY, "this idempotency key was used for another request")),
        }
    }

    /// Keeps an answer for whoever repeats the request.
    pub(super) fn remember(&self, headers: &HeaderMap, entry: &Entry, entered: &Entered) {
        let Some(key) = repeated_key(headers, entry) else { return };
        let mut answered = self.answered.lock();
        if answered.answers.insert(key.clone(), (entry.clone(), entered.clone())).is_none() {
            answered.order.push_back(key);
        }
        if answered.order.len() > REMEMBERED
            && let Some(oldest) = answered.order.pop_front()
        {
            answered.answers.remove(&oldest);
        }
    }

    /// Enters acts of one person, in this order, and waits until they count.
    pub(super) async fn enter(&self, entries: Vec<Entry>) -> Result<Vec<Entered>, Problem> {
        let (answer, answered) = oneshot::channel();
        self.queue.try_send(Wanted { entries, answer }).map_err(|_| Problem::busy())?;
        match tokio::time::timeout(PATIENCE, answered).await {
            Ok(Ok(Ok(entered))) => Ok(entered),
            Ok(Ok(Err(Failure::Refused(error)))) => Err(error.into()),
            Ok(Ok(Err(Failure::Unavailable(why)))) => Err(Problem::unavailable(&why)),
            Ok(Err(_)) => Err(Problem::unavailable("stopgate is stopping")),
            Err(_) => {
                Err(Problem::of(StatusCode::GATEWAY_TIMEOUT, "not acknowledged in time: it may have been written, and may be entered again"))
            }
        }
    }
}

struct Desk {
    config: Arc<Config>,
    view: Arc<SharedView>,
    fence: Fence,
    writer: Option<Writer>,
}

impl Desk {
    fn enter(&mut self, entries: &[Entry]) -> Result<Vec<Entered>, Failure> {
        let unavailable = |error: EdgeError| Failure::Unavailable(error.to_string());
        let passed = self.fence.pass(FENCE_PATIENCE).map_err(|waiting| Failure::Unavailable(waiting.to_string()))?;
        let mut writer = match self.writer.take() {
            Some(writer) => writer,
            None => Writer::new(&self.config, self.view.applied().partitions()).map_err(unavailable)?,
        };
        let mut sent: Vec<Sent> = Vec::new();
        for entry in entries {
            let verdict = {
                let view = self.view.read_after(passed).ok_or_else(|| Failure::Unavailable("the view was made anew meanwhile".into()))?;
                entry.verdict(&view, now()).map_err(Failure::Refused)
            };
            let verdict = match verdict {
                Ok(verdict) => verdict,
                Err(refused) => {
                    self.writer = Some(writer);
                    return Err(refused);
                }
            };
            // A producer that fails is not used again.
            sent.push(send(&mut writer, entry, verdict).map_err(unavailable)?);
        }
        self.writer = Some(writer);
        let passed = self
            .fence
            .pass(FENCE_PATIENCE)
            .map_err(|waiting| Failure::Unavailable(format!("it is written, and counts as soon as it is applied: {waiting}")))?;
        let view = self.view.read_after(passed).ok_or_else(|| Failure::Unavailable("it is written; the view was made anew meanwhile".into()))?;
        Ok(entries.iter().zip(&sent).map(|(entry, sent)| entered(entry, sent, &view)).collect())
    }
}
