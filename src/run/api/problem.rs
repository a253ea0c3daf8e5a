//! Errors as RFC 9457 has them. They name fields and places, never contents.

use crate::run::readers::Trouble;
use crate::stage::entry::EntryError;
use axum::http::StatusCode;
use axum::http::header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

/// Why a request is not answered as asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Problem {
    #[serde(rename = "type")]
    kind: &'static str,
    title: &'static str,
    #[serde(serialize_with = "as_number")]
    status: StatusCode,
    detail: String,
    /// Which parts of the body are wrong.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<Wrong>,
    #[serde(skip)]
    again_after: Option<u32>,
}

/// A part of the body that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Wrong {
    /// A JSON Pointer into the body.
    pub pointer: String,
    pub detail: String,
}

fn as_number<S: serde::Serializer>(status: &StatusCode, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u16(status.as_u16())
}

impl Problem {
    pub(super) fn of(status: StatusCode, detail: &str) -> Self {
        let title = status.canonical_reason().unwrap_or("Problem");
        Self { kind: "about:blank", title, status, detail: detail.to_owned(), errors: Vec::new(), again_after: None }
    }

    /// The same with the parts that are wrong.
    pub(super) fn with(mut self, errors: Vec<Wrong>) -> Self {
        self.errors = errors;
        self
    }

    /// Nobody can say now: in doubt nothing is said.
    pub(super) fn unavailable(why: &str) -> Self {
        Self { again_after: Some(1), ..Self::of(StatusCode::SERVICE_UNAVAILABLE, why) }
    }

    /// Too much is asked at once.
    pub(super) fn busy() -> Self {
        Self { again_after: Some(1), ..Self::of(StatusCode::TOO_MANY_REQUESTS, "too many such requests are under way") }
    }
}

impl From<EntryError> for Problem {
    fn from(error: EntryError) -> Self {
        let field = match error {
            EntryError::NoIdentity | EntryError::NotAnIdentity => "/identity",
            EntryError::NoBusiness | EntryError::UnlistedBusiness => "/business",
            EntryError::NotAChannel => "/channel",
            EntryError::NotASubject => "/subject",
            EntryError::NotAState => "/state",
            EntryError::NotATime | EntryError::Future => "/occurred_at",
            EntryError::NeedsProof => "/proof",
        };
        let detail =
            if error == EntryError::NeedsProof { "an opt-in needs proof that the person wished it".to_owned() } else { error.to_string() };
        let wrong = Wrong { pointer: field.to_owned(), detail: detail.clone() };
        Self::of(StatusCode::BAD_REQUEST, &detail).with(vec![wrong])
    }
}

impl From<Trouble> for Problem {
    fn from(trouble: Trouble) -> Self {
        match trouble {
            Trouble::Asked(why) => Self::of(StatusCode::BAD_REQUEST, &why),
            Trouble::Edge(_) | Trouble::Range(_) | Trouble::Unknown { .. } | Trouble::NoTopic(_) | Trouble::Output(_) => {
                Self::unavailable(&trouble.to_string())
            }
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        // Plain data: nothing in it can fail.
        let body = serde_json::to_vec(&self).unwrap_or_default();
        let mut response = (self.status, [(CONTENT_TYPE, "application/problem+json")], body).into_response();
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(WWW_AUTHENTICATE, axum::http::HeaderValue::from_static("Bearer"));
        }
        if let Some(seconds) = self.again_after {
            response.headers_mut().insert(RETRY_AFTER, seconds.into());
        }
        response
    }
}
