//! `/v1/opt-outs`: what stands, for one person or page by page, and acts entered.

use super::access::Actor;
use super::problem::{Problem, Wrong};
use super::{Api, answer, body, now};
use crate::config::TokenRole;
use crate::domain::consent::{ConsentState, Position};
use crate::domain::decide::Decision;
use crate::domain::identity::Identity;
use crate::domain::key::{Channel, ConsentKey, Subject};
use crate::run::history::{self, Scope, Whose};
use crate::run::list::{self, Entered, Filter, Outcome, Standing};
use crate::stage::entry::{Defaults, Entry, Grounds, standing};
use crate::wire::consent::encode_key;
use crate::wire::list::{Given, Row};
use crate::wire::when;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Rows of a page, unless `limit` says otherwise, and at most.
const PAGE_ROWS: usize = 100;
const MAX_PAGE_ROWS: usize = 1000;

/// One row, and the record that says so.
#[derive(Serialize)]
struct Shown<'a> {
    #[serde(flatten)]
    row: &'a Row,
    position: String,
}

fn shown(standing: &Standing) -> Shown<'_> {
    Shown { row: &standing.row, position: standing.position.to_string() }
}

fn wrong(pointer: &str, detail: &str) -> Problem {
    Problem::of(StatusCode::BAD_REQUEST, detail).with(vec![Wrong { pointer: pointer.to_owned(), detail: detail.to_owned() }])
}

/// The parameters of a query; an unknown one is a mistake.
fn query(text: Option<String>, known: &[&str]) -> Result<BTreeMap<String, String>, Problem> {
    let pairs = form_urlencoded::parse(text.as_deref().unwrap_or_default().as_bytes());
    let parameters: BTreeMap<String, String> = pairs.into_owned().collect();
    match parameters.keys().find(|name| !known.contains(&name.as_str())) {
        Some(_) => Err(Problem::of(StatusCode::BAD_REQUEST, &format!("a query parameter is not known: there are {}", known.join(", ")))),
        None => Ok(parameters),
    }
}

pub(super) async fn list(State(api): State<Api>, headers: HeaderMap, RawQuery(text): RawQuery) -> Result<Response, Problem> {
    let Actor(_) = api.access.check(&headers, TokenRole::Read)?;
    let parameters = query(text, &["business", "channel", "subject", "state", "limit", "after"])?;
    let get = |name: &str| parameters.get(name).map(String::as_str);
    let filter = Filter {
        business: get("business").map(|name| api.config.businesses.resolve(name).to_owned()),
        channel: get("channel").map(|name| Channel::parse(name).ok_or_else(|| wrong("/channel", "the channel is empty"))).transpose()?,
        identities: Vec::new(),
        subject: get("subject")
            .map(|name| Subject::parse(name).ok_or_else(|| wrong("/subject", "no subject: marketing, all, review or program:ID")))
            .transpose()?,
        state: match get("state") {
            None => None,
            Some("opted-out") => Some(ConsentState::OptedOut),
            Some("opted-in") => Some(ConsentState::OptedIn),
            Some(_) => return Err(wrong("/state", "no state: opted-out or opted-in")),
        },
    };
    let limit = get("limit").map_or(Some(PAGE_ROWS), |limit| limit.parse().ok().filter(|limit| (1..=MAX_PAGE_ROWS).contains(limit)));
    let limit = limit.ok_or_else(|| wrong("/limit", &format!("limit is 1 to {MAX_PAGE_ROWS}")))?;
    let from = get("after").map_or(Some(Position { partition: 0, offset: 0 }), |text| text.parse().ok());
    let from = from.ok_or_else(|| wrong("/after", "after is what `next` of the page before said"))?;
    api.checks.fence().await?;
    let view = api.view.clone();
    let page = api.aside(move |config| Ok(list::page(config, &filter, from, limit, |key| standing(&view.read(), key))?)).await?;
    #[derive(Serialize)]
    struct Answer<'a> {
        rows: Vec<Shown<'a>>,
        next: Option<String>,
    }
    answer(StatusCode::OK, &Answer { rows: page.rows.iter().map(shown).collect(), next: page.next.map(|next| next.to_string()) })
}

/// Business, channel and identity of a path; what is wrong is a mistake in its text.
fn path(api: &Api, (business, channel, identity): (String, String, String)) -> Result<(String, Channel, Identity), Problem> {
    let business = api.config.businesses.resolve(&business).to_owned();
    let channel = Channel::parse(&channel).ok_or_else(|| wrong("/channel", "the channel is empty"))?;
    let identity = Identity::recognise(&identity).map_err(|_| {
        wrong("/identity", "no identity: expected a number with + (%2B) and country code, or bsuid:, email: or ext: and a value")
    })?;
    Ok((business, channel, identity))
}

pub(super) async fn show(State(api): State<Api>, headers: HeaderMap, Path(parts): Path<(String, String, String)>) -> Result<Response, Problem> {
    let Actor(_) = api.access.check(&headers, TokenRole::Read)?;
    let (business, channel, identity) = path(&api, parts)?;
    api.checks.fence().await?;
    let besides = causes(&api, &business, &channel, &identity);
    let known = api.aside(move |config| Ok(list::person(config, &business, Some(channel), &identity, &besides)?)).await?;
    if known.history.is_empty() {
        return Err(Problem::of(StatusCode::NOT_FOUND, "nothing is known of this person"));
    }
    #[derive(Serialize)]
    struct Answer<'a> {
        standing: Vec<Shown<'a>>,
        history: &'a [history::Event],
    }
    answer(StatusCode::OK, &Answer { standing: known.standing.iter().map(shown).collect(), history: &known.history })
}

/// Acts of a page of recent ones, unless `limit` says otherwise, and at most.
const RECENT: usize = 20;
const MAX_RECENT: usize = 200;

pub(super) async fn recent(State(api): State<Api>, headers: HeaderMap, RawQuery(text): RawQuery) -> Result<Response, Problem> {
    let Actor(_) = api.access.check(&headers, TokenRole::Read)?;
    let parameters = query(text, &["limit"])?;
    let limit = parameters.get("limit").map_or(Some(RECENT), |limit| limit.parse().ok().filter(|limit| (1..=MAX_RECENT).contains(limit)));
    let limit = limit.ok_or_else(|| wrong("/limit", &format!("limit is 1 to {MAX_RECENT}")))?;
    let events = api.aside(move |config| Ok(list::recent(config, limit)?)).await?;
    answer(StatusCode::OK, &serde_json::json!({ "events": events }))
}

pub(super) async fn story(State(api): State<Api>, headers: HeaderMap, RawQuery(text): RawQuery) -> Result<Response, Problem> {
    let Actor(_) = api.access.check(&headers, TokenRole::Read)?;
    let parameters = query(text, &["business", "channel", "to"])?;
    let get = |name: &str| parameters.get(name).cloned();
    let to = get("to").ok_or_else(|| wrong("/to", "to is missing: whose story?"))?;
    let identity = Identity::recognise(&to)
        .map_err(|_| wrong("/to", "no identity: expected a number with + (%2B) and country code, or bsuid:, email: or ext: and a value"))?;
    let channel = get("channel").map(|name| Channel::parse(&name).ok_or_else(|| wrong("/channel", "the channel is empty"))).transpose()?;
    let scope = Scope { business: get("business"), channel };
    let story = api.aside(move |config| Ok(history::read(config, &Whose::Person(identity), &scope, 1)?)).await?;
    answer(StatusCode::OK, &story.ok_or_else(|| Problem::of(StatusCode::NOT_FOUND, "nothing is known of this person"))?)
}

/// The partitions that hold what stands for a person.
fn causes(api: &Api, business: &str, channel: &Channel, identity: &Identity) -> BTreeSet<u32> {
    let view = api.view.read();
    let subjects = [Subject::Marketing, Subject::All, Subject::Review].into_iter().chain(view.programs(business).filter_map(Subject::program));
    let identities = api.config.identities_of(identity);
    let keys = subjects.flat_map(|subject| {
        let on = |channel: &Channel, identity: &Identity| ConsentKey {
            business: business.into(),
            channel: channel.clone(),
            identity: identity.clone(),
            subject: subject.clone(),
        };
        identities.iter().flat_map(|identity| [on(channel, identity), on(&Channel::Any, identity)]).collect::<Vec<_>>()
    });
    keys.filter_map(|key| standing(&view, &key)).map(|act| act.cause.partition).collect()
}

/// An act to be entered.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Add {
    business: String,
    channel: Option<String>,
    identity: String,
    subject: Option<String>,
    occurred_at: Option<serde_json::Value>,
    #[serde(default)]
    reason: String,
    #[serde(default)]
    proof: String,
}

pub(super) async fn add(State(api): State<Api>, headers: HeaderMap, bytes: Result<Bytes, BytesRejection>) -> Result<Response, Problem> {
    let Actor(actor) = api.access.check(&headers, TokenRole::Write)?;
    let Add { business, channel, identity, subject, occurred_at, reason, proof } = body(&headers, bytes)?;
    let given = Given {
        business: Some(business),
        channel,
        identity: Some(identity),
        subject,
        state: None,
        occurred_at: occurred_at.map(|time| time.as_str().map_or_else(|| time.to_string(), str::to_owned)),
        ..Given::default()
    };
    enter(&api, &headers, &given, Grounds { actor, reason, proof, list: None }).await
}

/// On what grounds an opt-in is entered: in the query, or in a body.
const GROUNDS: [&str; 4] = ["subject", "occurred_at", "reason", "proof"];

pub(super) async fn remove(
    State(api): State<Api>,
    headers: HeaderMap,
    Path(parts): Path<(String, String, String)>,
    RawQuery(text): RawQuery,
    bytes: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    let Actor(actor) = api.access.check(&headers, TokenRole::Write)?;
    let mut parameters = query(text, &GROUNDS)?;
    if !bytes.as_ref().is_ok_and(Bytes::is_empty) {
        let given: BTreeMap<String, String> = body(&headers, bytes)?;
        if given.keys().any(|name| !GROUNDS.contains(&name.as_str())) {
            return Err(Problem::of(StatusCode::BAD_REQUEST, &format!("a field is not known: there are {}", GROUNDS.join(", "))));
        }
        parameters.extend(given);
    }
    let get = |name: &str| parameters.get(name).cloned();
    let (business, channel, identity) = path(&api, parts)?;
    let given = Given {
        business: Some(business),
        channel: Some(channel.as_str().to_owned()),
        identity: Some(identity.to_text()),
        subject: get("subject"),
        state: Some(ConsentState::OptedIn.as_str().to_owned()),
        occurred_at: get("occurred_at"),
        ..Given::default()
    };
    let grounds = Grounds { actor, reason: get("reason").unwrap_or_default(), proof: get("proof").unwrap_or_default(), list: None };
    enter(&api, &headers, &given, grounds).await
}

async fn enter(api: &Api, headers: &HeaderMap, given: &Given, grounds: Grounds) -> Result<Response, Problem> {
    let defaults = Defaults {
        businesses: &api.config.businesses,
        business: None,
        channel: &api.config.default_channel,
        subject: &Subject::Marketing,
        occurred_at: now(),
        hashed: api.config.hashed,
    };
    let entry = Entry::of(given, &defaults, grounds)?;
    // A request that is repeated under its key has been asked once: it gets the answer of then.
    if let Some((entry, entered)) = api.entries.repeated(headers, &entry, given.occurred_at.is_some())? {
        return tell(&entry, &entered);
    }
    let entered = api.entries.enter(vec![entry.clone()]).await?.into_iter().next();
    let entered = entered.ok_or_else(|| Problem::unavailable("nothing was entered"))?;
    api.entries.remember(headers, &entry, &entered);
    tell(&entry, &entered)
}

/// What came of an entry: 201 where it was written, 200 where it stood already, 409 where something else stands.
fn tell(entry: &Entry, entered: &Entered) -> Result<Response, Problem> {
    let body = told(entry, entered);
    match &entered.outcome {
        Outcome::Written { .. } => answer(StatusCode::CREATED, &body),
        Outcome::Stood(act) if act.state == entry.state => answer(StatusCode::OK, &body),
        Outcome::Stood(act) => Err(Problem::of(
            StatusCode::CONFLICT,
            &format!("a later act stands: {} since {}, opt-outs record {}", act.state.as_str(), when::to_text(act.occurred_at), act.cause),
        )),
    }
}

/// An entry as answers tell it.
#[derive(Serialize)]
pub(super) struct Told {
    key: String,
    state: &'static str,
    occurred_at: String,
    /// The record that says so.
    position: String,
    written: bool,
    changed: bool,
    /// What a marketing send meets now, and by which record.
    marketing: &'static str,
    cause: Option<String>,
}

pub(super) fn told(entry: &Entry, entered: &Entered) -> Told {
    let (position, occurred_at, state, written, changed) = match entered.outcome {
        Outcome::Written { position, changed } => (position, entry.occurred_at, entry.state, true, changed),
        Outcome::Stood(act) => (act.cause, act.occurred_at, act.state, false, false),
    };
    let (marketing, cause) = match entered.sends {
        Decision::Allowed(_) => ("allowed", None),
        Decision::Suppressed { cause, .. } => ("suppressed", cause),
    };
    Told {
        key: encode_key(&entry.key).as_str().to_owned(),
        state: state.as_str(),
        occurred_at: when::to_text(occurred_at),
        position: position.to_string(),
        written,
        changed,
        marketing,
        cause: cause.map(|cause| cause.to_string()),
    }
}
