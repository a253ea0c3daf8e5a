//! `/v1/reviews`: messages that a person must judge, and verdicts.

use super::access::Actor;
use super::consent::told;
use super::problem::Problem;
use super::{Api, answer, body, now};
use crate::config::TokenRole;
use crate::run::list::reviews::{self, Judgement};
use crate::stage::entry::{Grounds, standing};
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use serde::Deserialize;

/// A verdict.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Verdict {
    verdict: Judgement,
    #[serde(default)]
    reason: String,
}

pub(super) async fn list(State(api): State<Api>, headers: HeaderMap) -> Result<Response, Problem> {
    let Actor(_) = api.access.check(&headers, TokenRole::Read)?;
    let waiting = waiting(&api).await?;
    let reviews: Vec<_> = waiting.iter().map(|request| reviews::shown(request, now())).collect();
    answer(StatusCode::OK, &serde_json::json!({ "reviews": reviews }))
}

pub(super) async fn judge(
    State(api): State<Api>,
    headers: HeaderMap,
    Path(id): Path<String>,
    bytes: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    let Actor(actor) = api.access.check(&headers, TokenRole::Write)?;
    let Verdict { verdict, reason } = body(&headers, bytes)?;
    let waiting = waiting(&api).await?;
    let request = waiting.iter().find(|request| request.id == id);
    let request = request.ok_or_else(|| {
        Problem::of(
            StatusCode::NOT_FOUND,
            "no review of this id waits: it was judged, or the person has spoken since, or it is past its retention",
        )
    })?;
    let grounds = Grounds { actor, reason, ..Grounds::default() };
    let entries = {
        let view = api.view.read();
        reviews::entries(&api.config, request, verdict, &grounds, &|key| standing(&view, key))
    };
    let entered = api.entries.enter(entries.clone()).await?;
    let told: Vec<_> = entries.iter().zip(&entered).map(|(entry, entered)| told(entry, entered)).collect();
    answer(StatusCode::OK, &serde_json::json!({ "entered": told }))
}

async fn waiting(api: &Api) -> Result<Vec<crate::wire::proto::ReviewRequest>, Problem> {
    api.checks.fence().await?;
    let view = api.view.clone();
    api.aside(move |config| Ok(reviews::by(config, &|key| standing(&view.read(), key))?)).await
}
