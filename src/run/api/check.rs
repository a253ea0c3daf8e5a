//! `POST /v1/check`: a sender's last check at the door. Requests that come while the fence is asked wait for the next one,
//! which then answers all of them.

use super::access::Actor;
use super::problem::{Problem, Wrong};
use super::{Api, PATIENCE, answer, body};
use crate::config::{Config, FenceLevel, TokenRole};
use crate::domain::decide::{Decision, Question, Standing};
use crate::domain::history::Lookup;
use crate::domain::identity::{Identities, Identity};
use crate::domain::key::Channel;
use crate::domain::suppression::PersonPrint;
use crate::kafka::EdgeError;
use crate::metrics::{DecisionReason, Metrics};
use crate::run::fence::Fence;
use crate::run::stop::Stop;
use crate::run::view::SharedView;
use crate::stage::filter::as_of_text;
use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::sync::{Arc, mpsc};
use std::time::Duration;
use tokio::sync::oneshot;

/// Most recipients of one request.
const MAX_RECIPIENTS: usize = 1000;
/// Requests that wait for a fence; more are sent away.
const MAX_WAITING: usize = 1024;
/// How long a fence may take.
const FENCE_PATIENCE: Duration = Duration::from_secs(2);
/// How often a thread without requests looks whether the process stops.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// What is asked of the thread.
struct Asked {
    level: FenceLevel,
    /// Nothing is looked up where there is none: only whether the fence opens is asked.
    question: Option<(Question, bool)>,
    persons: Vec<Vec<PersonPrint>>,
    answer: oneshot::Sender<Result<Checked, String>>,
}

/// What stood at one position of the view.
pub(super) struct Checked {
    as_of: Vec<u64>,
    decisions: Vec<Decision>,
}

/// The way to the thread that asks the fence.
#[derive(Clone)]
pub(super) struct Checks {
    queue: mpsc::SyncSender<Asked>,
}

impl Checks {
    pub(super) fn start(config: Arc<Config>, view: Arc<SharedView>, metrics: Arc<Metrics>, stop: Stop) -> Result<Self, EdgeError> {
        let (queue, asked) = mpsc::sync_channel(MAX_WAITING);
        let mut opt_outs = Fence::new(&config, FenceLevel::OptOuts, view.clone(), metrics.clone())?;
        let mut inbound = Fence::new(&config, FenceLevel::Inbound, view.clone(), metrics)?;
        let work = move || {
            while !stop.is_asked() {
                let first: Asked = match asked.recv_timeout(LOOK_EVERY) {
                    Ok(first) => first,
                    Err(mpsc::RecvTimeoutError::Timeout) => continue,
                    Err(mpsc::RecvTimeoutError::Disconnected) => return,
                };
                // All of these came before the fence is asked.
                let (at_inbound, at_opt_outs): (Vec<Asked>, Vec<Asked>) =
                    std::iter::once(first).chain(asked.try_iter().take(MAX_WAITING)).partition(|asked| asked.level == FenceLevel::Inbound);
                for (fence, asked) in [(&mut opt_outs, at_opt_outs), (&mut inbound, at_inbound)] {
                    if !asked.is_empty() {
                        decide(fence, &view, asked);
                    }
                }
            }
        };
        std::thread::Builder::new().name("check".into()).spawn(work).map_err(|_| EdgeError::timed_out("no thread for checks"))?;
        Ok(Self { queue })
    }

    async fn ask(&self, level: FenceLevel, question: Option<(Question, bool)>, persons: Vec<Vec<PersonPrint>>) -> Result<Checked, Problem> {
        let (answer, answered) = oneshot::channel();
        self.queue.try_send(Asked { level, question, persons, answer }).map_err(|_| Problem::busy())?;
        match tokio::time::timeout(PATIENCE, answered).await {
            Ok(Ok(checked)) => checked.map_err(|why| Problem::unavailable(&why)),
            Ok(Err(_)) => Err(Problem::unavailable("stopgate is stopping")),
            Err(_) => Err(Problem::unavailable("the fence has not opened in time")),
        }
    }

    /// Waits until the view holds all that was acknowledged before this call.
    pub(super) async fn fence(&self) -> Result<(), Problem> {
        self.ask(FenceLevel::OptOuts, None, Vec::new()).await.map(drop)
    }
}

fn decide(fence: &mut Fence, view: &SharedView, asked: Vec<Asked>) {
    let passed = fence.pass(FENCE_PATIENCE).map_err(|waiting| waiting.to_string());
    let view = match &passed {
        Ok(passed) => view.read_after(*passed).ok_or("the view was made anew meanwhile"),
        Err(why) => Err(why.as_str()),
    };
    for asked in asked {
        let checked = match &view {
            Err(why) => Err((*why).to_owned()),
            Ok(view) => {
                let decisions = asked.question.iter().flat_map(|(question, exempt)| {
                    asked.persons.iter().map(|persons| {
                        let known = persons.iter().filter(|person| Lookup::knows(&**view, **person));
                        let standing = known.fold(Standing::Silent, |all, person| all.and(question.judge(|slot| view.standing(*person, slot))));
                        standing.decision(*exempt)
                    })
                });
                Ok(Checked { as_of: view.applied().to_vec(), decisions: decisions.collect() })
            }
        };
        drop(asked.answer.send(checked)); // whoever asked may have gone
    }
}

/// The body of a request.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Request {
    business: String,
    channel: Option<String>,
    to: Vec<Recipient>,
    category: Option<String>,
    program: Option<String>,
    template: Option<String>,
    fence: Option<FenceLevel>,
}

/// One identity of a person, or several.
#[derive(Deserialize, Serialize)]
#[serde(untagged)]
enum Recipient {
    One(String),
    Several(Vec<String>),
}

impl Recipient {
    fn identities(&self) -> Option<Identities> {
        let texts = match self {
            Self::One(text) => std::slice::from_ref(text),
            Self::Several(texts) => texts,
        };
        Identities::new(texts.iter().map(|text| Identity::recognise(text)).collect::<Result<Vec<_>, _>>().ok()?)
    }
}

#[derive(Serialize)]
struct Answer<'a> {
    as_of: String,
    results: Vec<OneResult<'a>>,
}

#[derive(Serialize)]
struct OneResult<'a> {
    to: &'a Recipient,
    decision: &'static str,
    reason: &'static str,
    cause: Option<Cow<'static, str>>,
}

pub(super) async fn check(State(api): State<Api>, headers: HeaderMap, bytes: Result<Bytes, BytesRejection>) -> Result<Response, Problem> {
    let Actor(_) = api.access.check(&headers, TokenRole::Read)?;
    let request: Request = body(&headers, bytes)?;
    let wrong = |pointer: &str, detail: &str| {
        let wrong = Wrong { pointer: pointer.to_owned(), detail: detail.to_owned() };
        Problem::of(StatusCode::BAD_REQUEST, detail).with(vec![wrong])
    };
    if request.to.len() > MAX_RECIPIENTS {
        return Err(wrong("/to", &format!("at most {MAX_RECIPIENTS} recipients at once")));
    }
    let businesses = &api.config.businesses;
    let business = match businesses.listed(&request.business) {
        Some(listed) => listed,
        None if businesses.is_empty() && !request.business.trim().is_empty() => &request.business,
        None if businesses.is_empty() => return Err(wrong("/business", "the business is empty")),
        None => return Err(wrong("/business", "a business that no [[business]] of the configuration names")),
    };
    let channel = match request.channel.as_deref().map(Channel::parse) {
        None => api.config.default_channel.clone(),
        Some(Some(channel)) => channel,
        Some(None) => return Err(wrong("/channel", "the channel is empty")),
    };
    let prints = api.view.print_key();
    let mut persons = Vec::with_capacity(request.to.len());
    let mut unreadable = Vec::new();
    for (index, recipient) in request.to.iter().enumerate() {
        match recipient.identities() {
            Some(identities) => persons.push(identities.iter().map(|identity| prints.person(business, identity)).collect()),
            None => {
                let detail = "no identity: expected a number with + and country code, or bsuid:, email: or ext: and a value";
                unreadable.push(Wrong { pointer: format!("/to/{index}"), detail: detail.to_owned() });
            }
        }
    }
    if !unreadable.is_empty() {
        return Err(Problem::of(StatusCode::BAD_REQUEST, "some recipients cannot be looked up").with(unreadable));
    }
    let exempt = api.config.categories.exempts(request.category.as_deref(), request.template.as_deref());
    let question = match exempt {
        true => Question::exempt(prints, &channel),
        false => Question::marketing(prints, &channel, request.program.as_deref()),
    };
    let level = request.fence.unwrap_or(api.config.fence);
    let checked = api.checks.ask(level, Some((question, exempt)), persons).await?;
    let results = request.to.iter().zip(checked.decisions).map(|(to, decision)| {
        let (decision, reason, cause) = match decision {
            Decision::Allowed(reason) => ("allowed", reason.as_str(), None),
            Decision::Suppressed { reason, cause } => ("suppressed", reason.as_str(), cause),
        };
        api.metrics.checks.get_or_create(&DecisionReason { decision, reason }).inc();
        OneResult { to, decision, reason, cause: cause.map(|cause| cause.to_string().into()) }
    });
    let results = results.collect();
    answer(StatusCode::OK, &Answer { as_of: as_of_text(&checked.as_of), results })
}
