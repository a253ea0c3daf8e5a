//! The console: one page, embedded, that needs nothing from elsewhere. What it shows it asks of the API and of `/metrics`.

use super::access::Actor;
use super::problem::Problem;
use super::{Api, answer, body};
use crate::config::TokenRole;
use crate::run::classify;
use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use std::hash::{BuildHasher, RandomState};

/// The page. Its script and its style are allowed by a number that each answer has anew, and nothing else is.
pub(super) async fn page() -> Response {
    // Each `RandomState` holds keys from the system's random source.
    let random = || RandomState::new().hash_one(0_u64);
    let nonce = format!("{:016x}{:016x}", random(), random());
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; base-uri 'none'; form-action 'none'; \
         frame-ancestors 'none'"
    );
    let headers = [
        (CONTENT_TYPE, "text/html; charset=utf-8".to_owned()),
        (CONTENT_SECURITY_POLICY, policy),
        (CACHE_CONTROL, "no-store".to_owned()),
        (REFERRER_POLICY, "no-referrer".to_owned()),
        (X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
    ];
    (headers, include_str!("console.html").replace("NONCE", &nonce)).into_response()
}

/// A message to be tried.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Try {
    text: String,
    /// With the words of this business.
    business: Option<String>,
    lang: Option<String>,
}

/// `POST /v1/classify`: what a message would be taken for. Nothing is written.
pub(super) async fn classify(State(api): State<Api>, headers: HeaderMap, bytes: Result<Bytes, BytesRejection>) -> Result<Response, Problem> {
    let Actor(_) = api.access.check(&headers, TokenRole::Read)?;
    let Try { text, business, lang } = body(&headers, bytes)?;
    let business = business.as_deref().map(|name| api.config.businesses.resolve(name));
    let lexicon = business.and_then(|name| api.words.of_business.get(name)).unwrap_or(&api.words.common);
    answer(StatusCode::OK, &classify::answer_to(lexicon, &text, lang.as_deref()))
}
