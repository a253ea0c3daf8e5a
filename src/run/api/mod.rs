//! The HTTP API: the sender's last check at the door, the unsubscribe list, the reviews. `openapi.json` describes it.
//!
//! Answers are JSON, errors `application/problem+json` (RFC 9457). What is looked up is looked up behind a fence that was asked
//! after the request came; what is entered is acknowledged by the brokers and read back through a fence before it is answered.
//! Handlers run on the HTTP thread and do no more than parse; questions go to threads of their own, and
//! what reads topics to threads of which there are only a few.

mod access;
mod check;
mod consent;
mod console;
mod enter;
mod problem;
mod reviews;

use super::now;
use super::stop::Stop;
use super::view::SharedView;
use crate::config::Config;
use crate::domain::classify::Lexicon;
use crate::kafka::EdgeError;
use crate::metrics::Metrics;
use access::Access;
use axum::Router;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use problem::Problem;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;

/// Largest body that is read.
const MAX_BODY_BYTES: usize = 1 << 20;
/// Requests that read topics at once: each has a client and a thread.
const READERS: usize = 2;
/// Requests that wait for their turn to read topics; more are told to come again.
const WAITING_READERS: usize = 16;
/// How long a request waits for its answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the handlers share.
#[derive(Clone)]
pub struct Api {
    config: Arc<Config>,
    view: Arc<SharedView>,
    metrics: Arc<Metrics>,
    access: Arc<Access>,
    checks: check::Checks,
    entries: enter::Entries,
    readers: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
    words: Arc<Words>,
}

/// The words that messages are tried with.
pub struct Words {
    pub common: Arc<Lexicon>,
    pub of_business: BTreeMap<String, Arc<Lexicon>>,
}

impl Api {
    /// Starts the threads behind the API. They end when it is dropped.
    pub fn start(config: Arc<Config>, words: Words, view: Arc<SharedView>, metrics: Arc<Metrics>, stop: &Stop) -> Result<Self, EdgeError> {
        Ok(Self {
            access: Arc::new(Access::new(&config)),
            checks: check::Checks::start(config.clone(), view.clone(), metrics.clone(), stop.clone())?,
            entries: enter::Entries::start(config.clone(), view.clone(), metrics.clone(), stop.clone())?,
            readers: Arc::new(Semaphore::new(READERS)),
            waiting: Arc::new(Semaphore::new(WAITING_READERS)),
            words: Arc::new(words),
            config,
            view,
            metrics,
        })
    }

    /// The console, the routes under `/v1`, and the description of them.
    pub fn router(self) -> Router {
        Router::new()
            .route("/", get(console::page))
            .route("/v1/classify", post(console::classify))
            .route("/v1/story", get(consent::story))
            .route("/v1/opt-outs/recent", get(consent::recent))
            .route("/v1/check", post(check::check))
            .route("/v1/opt-outs", get(consent::list).post(consent::add))
            .route("/v1/opt-outs/{business}/{channel}/{identity}", get(consent::show).delete(consent::remove))
            .route("/v1/reviews", get(reviews::list))
            .route("/v1/reviews/{id}", post(reviews::judge))
            .route("/v1/openapi.json", get(description))
            .fallback(|| async { Problem::of(StatusCode::NOT_FOUND, "there is nothing here: see /v1/openapi.json") })
            .method_not_allowed_fallback(|| async {
                Problem::of(StatusCode::METHOD_NOT_ALLOWED, "this cannot be done here: see /v1/openapi.json")
            })
            .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
            .with_state(self)
    }

    /// Does what reads topics on a thread of its own, in turn, unless too much of it is under way.
    async fn aside<T: Send + 'static>(&self, work: impl FnOnce(&Config) -> Result<T, Problem> + Send + 'static) -> Result<T, Problem> {
        let Ok(place) = self.waiting.clone().try_acquire_owned() else { return Err(Problem::busy()) };
        let turn = tokio::time::timeout(PATIENCE, self.readers.clone().acquire_owned()).await;
        let Ok(Ok(permit)) = turn else { return Err(Problem::busy()) };
        drop(place);
        let config = self.config.clone();
        let work = tokio::task::spawn_blocking(move || {
            let done = work(&config);
            drop(permit);
            done
        });
        // A panic is a broken invariant: it ends the request here, and is in the log.
        work.await.unwrap_or_else(|_| Err(Problem::of(StatusCode::INTERNAL_SERVER_ERROR, "this failed: see the log of stopgate")))
    }
}

async fn description(State(_): State<Api>) -> Response {
    ([(CONTENT_TYPE, "application/json")], include_str!("openapi.json")).into_response()
}

/// An answer with a JSON body.
fn answer(status: StatusCode, body: &impl Serialize) -> Result<Response, Problem> {
    // Plain data: nothing in it can fail.
    let body = serde_json::to_vec(body).map_err(|_| Problem::of(StatusCode::INTERNAL_SERVER_ERROR, "the answer could not be written"))?;
    Ok((status, [(CONTENT_TYPE, "application/json")], body).into_response())
}

/// The JSON of a request.
fn body<T: DeserializeOwned>(headers: &HeaderMap, body: Result<Bytes, BytesRejection>) -> Result<T, Problem> {
    let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    // Browsers send JSON to another site only after asking it, and are not answered.
    if !kind.trim().to_ascii_lowercase().starts_with("application/json") {
        return Err(Problem::of(StatusCode::UNSUPPORTED_MEDIA_TYPE, "content-type must be application/json"));
    }
    let bytes = body.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => Problem::of(StatusCode::PAYLOAD_TOO_LARGE, &format!("a body has at most {MAX_BODY_BYTES} bytes")),
        _ => Problem::of(StatusCode::BAD_REQUEST, "the body could not be read"),
    })?;
    serde_json::from_slice(&bytes).map_err(|error| {
        // The parser's own words may quote what it read: its place is told, and what was expected of which field.
        let text = error.to_string();
        let told = ["missing field", "unknown field"].iter().any(|known| text.starts_with(known));
        let what = if told { text.split(" at line").next().unwrap_or_default() } else { "not the JSON that is expected here" };
        let what = what.split(", expected").next().unwrap_or_default();
        Problem::of(StatusCode::BAD_REQUEST, &format!("line {} column {}: {what}", error.line(), error.column()))
    })
}
