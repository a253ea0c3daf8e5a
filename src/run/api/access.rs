//! Who may do what: named bearer tokens with a role. Without any, whoever reaches a loopback address may do all.

use super::problem::Problem;
use crate::config::{Config, Token, TokenRole};
use axum::http::header::{AUTHORIZATION, HOST};
use axum::http::{HeaderMap, StatusCode};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// Who asks: the name that stands in the evidence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Actor(pub String);

/// The tokens, and where the server listens.
pub(super) struct Access {
    tokens: Vec<Token>,
    loopback: bool,
}

impl Access {
    pub(super) fn new(config: &Config) -> Self {
        Self { tokens: config.tokens.clone(), loopback: config.http.is_some_and(|address| address.ip().is_loopback()) }
    }

    /// Who it is, if they may.
    pub(super) fn check(&self, headers: &HeaderMap, needed: TokenRole) -> Result<Actor, Problem> {
        if self.tokens.is_empty() {
            return self.without_tokens(headers);
        }
        let presented = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        let presented = presented.and_then(|value| value.split_once(' ')).filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
        let Some((_, token)) = presented else {
            return Err(Problem::of(StatusCode::UNAUTHORIZED, "a token is needed: Authorization: Bearer TOKEN"));
        };
        let digest: [u8; 32] = Sha256::digest(token.trim()).into();
        // All are compared, each in constant time.
        let mut found = None;
        for known in &self.tokens {
            if bool::from(known.sha256.ct_eq(&digest)) {
                found = Some(known);
            }
        }
        match found {
            None => Err(Problem::of(StatusCode::UNAUTHORIZED, "the token is not known")),
            Some(known) if known.role < needed => Err(Problem::of(StatusCode::FORBIDDEN, "the token's role is read: this needs write")),
            Some(known) => Ok(Actor(known.name.clone())),
        }
    }

    fn without_tokens(&self, headers: &HeaderMap) -> Result<Actor, Problem> {
        if !self.loopback {
            return Err(Problem::of(StatusCode::FORBIDDEN, "no [[token]] is configured, and the address is no loopback address"));
        }
        // A page of another site may name this address by a name of its own: that name is in the request.
        let host = headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
        let name = host.strip_prefix('[').and_then(|rest| rest.split(']').next()).unwrap_or_else(|| host.split(':').next().unwrap_or_default());
        match matches!(name, "localhost" | "127.0.0.1" | "::1") {
            true => Ok(Actor("local".to_owned())),
            false => Err(Problem::of(StatusCode::FORBIDDEN, "without a [[token]] the host must be localhost")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(tokens: &[(&str, TokenRole)], loopback: bool) -> Access {
        let tokens = tokens.iter().map(|(name, role)| Token {
            name: (*name).to_owned(),
            role: *role,
            sha256: Sha256::digest(format!("{name}'s secret")).into(),
        });
        Access { tokens: tokens.collect(), loopback }
    }

    fn asks(access: &Access, header: Option<(axum::http::HeaderName, &str)>, needed: TokenRole) -> Result<Actor, u16> {
        let mut headers = HeaderMap::new();
        if let Some((name, value)) = header {
            headers.insert(name, value.parse().expect("a header"));
        }
        access.check(&headers, needed).map_err(|problem| problem.into_response_status())
    }

    impl Problem {
        fn into_response_status(self) -> u16 {
            axum::response::IntoResponse::into_response(self).status().as_u16()
        }
    }

    #[test]
    fn a_token_has_a_name_and_a_role() {
        let access = access(&[("crm", TokenRole::Read), ("desk", TokenRole::Write)], false);
        let bearer = |token: &'static str| Some((AUTHORIZATION, token));
        assert_eq!(asks(&access, bearer("Bearer crm's secret"), TokenRole::Read), Ok(Actor("crm".into())));
        assert_eq!(asks(&access, bearer("bearer desk's secret"), TokenRole::Write), Ok(Actor("desk".into())));
        assert_eq!(asks(&access, bearer("Bearer crm's secret"), TokenRole::Write), Err(403));
        for wrong in ["Bearer nobody's", "Basic crm's secret", "crm's secret", "Bearer"] {
            assert_eq!(asks(&access, bearer(wrong), TokenRole::Read), Err(401), "{wrong}");
        }
        assert_eq!(asks(&access, None, TokenRole::Read), Err(401));
    }

    #[test]
    fn without_tokens_only_this_machine_is_served_and_under_its_own_name() {
        let host = |name: &'static str| Some((HOST, name));
        for name in ["localhost:9470", "127.0.0.1:9470", "[::1]:9470", "localhost"] {
            assert!(asks(&access(&[], true), host(name), TokenRole::Write).is_ok(), "{name}");
        }
        assert_eq!(asks(&access(&[], true), host("evil.example:9470"), TokenRole::Read), Err(403));
        assert_eq!(asks(&access(&[], true), None, TokenRole::Read), Err(403));
        assert_eq!(asks(&access(&[], false), host("localhost"), TokenRole::Read), Err(403));
    }
}
