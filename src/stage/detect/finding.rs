//! A finding as records, replies and reviews: what is written of it.

use super::{DetectRules, Excerpt, Finding, Policy, Wish, excerpt};
use crate::domain::consent::{Act, ConsentState, Position};
use crate::domain::identity::Identity;
use crate::domain::key::{Channel, ConsentKey, Subject};
use crate::domain::reply::ReplyKind;
use crate::stage::detect::Consent;
use crate::wire::proto;
use sha2::{Digest, Sha256};
use std::borrow::Cow;

/// Senders may answer a message for five minutes: later answers need a justification (47 CFR 64.1200(a)(12)).
const REPLY_EXPIRY_MS: i64 = 5 * 60 * 1000;

impl Finding {
    pub(super) fn key(&self, identity: &Identity, channel: &Channel, subject: &Subject) -> ConsentKey {
        let identity = self.hashed.map_or_else(|| identity.clone(), |key| key.hash(identity));
        ConsentKey { business: self.business.clone(), channel: channel.clone(), identity, subject: subject.clone() }
    }

    /// The record of an act on a key.
    pub(super) fn record(&self, key: &ConsentKey, act: &Act) -> proto::ConsentRecord {
        let mut evidence = proto::Evidence { provider_message_id: self.written_message_id().into_owned(), ..self.evidence.clone() };
        if let Identity::Phone(phone) = &key.identity
            && phone.as_spelt() != phone.as_str()
        {
            evidence.raw_identity = phone.as_spelt().to_owned();
        }
        let state = proto::ConsentState::from(act.state);
        proto::ConsentRecord {
            state: state.into(),
            occurred_at_ms: act.occurred_at.millis(),
            cause: self.cause.into(),
            evidence: Some(evidence),
            changed_state: act.changed_state,
            feedback_reason: String::new(),
        }
    }

    /// The same finding as the evidence of what an answer narrowed.
    pub(super) fn narrowed(&self) -> Self {
        let mut narrowed = self.clone();
        super::conversation::NARROWED_RULE.clone_into(&mut narrowed.evidence.rule);
        crate::domain::classify::Confidence::Exact.as_str().clone_into(&mut narrowed.evidence.confidence);
        narrowed
    }

    /// Where in its body the message lies.
    pub fn index(&self) -> u32 {
        self.source.index
    }

    /// The records that are written unless something outranks them, by the message and the rules alone; all but their
    /// `changed_state`. `None` where they depend on what stands: a change of identity, and what may be an answer.
    pub fn expected(&self, rules: &DetectRules) -> Option<Vec<Consent>> {
        let policy = rules.policy(&self.business);
        // What may be an answer depends on what was asked.
        if self.answers.is_some() {
            return None;
        }
        let (state, subject) = match &self.wish {
            Wish::OptOut(subject) => (ConsentState::OptedOut, subject),
            Wish::OptIn(subject) => (ConsentState::OptedIn, subject),
            Wish::Review if policy.review_suppresses => (ConsentState::OptedOut, &Subject::Review),
            Wish::Review | Wish::Help => return Some(Vec::new()),
            Wish::Moved(_) | Wish::Answer => return None,
        };
        let consent = |identity| {
            let key = self.key(identity, &self.channel, subject);
            let cause = Position { partition: 0, offset: 0 };
            let act = Act { state, occurred_at: self.occurred_at, source: self.source, cause, changed_state: false };
            Consent { number: 0, record: self.record(&key, &act), key, act }
        };
        Some(self.sender.iter().map(consent).collect())
    }

    /// The message's id as the evidence holds it: providers make ids of addresses.
    pub(super) fn written_message_id(&self) -> Cow<'_, str> {
        let id = self.evidence.provider_message_id.as_str();
        match self.hashed.filter(|_| !id.is_empty()) {
            Some(key) => Cow::Owned(String::from_utf8_lossy(&key.digest_of(id)).into_owned()),
            None => Cow::Borrowed(id),
        }
    }

    /// An id that whoever computes it from the same act computes the same.
    pub(super) fn id(&self, parts: &[&str]) -> String {
        id_of(&[&[&*self.business, &self.sender.first().to_text()], parts].concat())
    }

    pub(super) fn reply(&self, kind: ReplyKind, id: String, superseded: String, policy: &Policy) -> proto::ReplyRequest {
        let own = Some(self.evidence.language.as_str()).filter(|language| !language.is_empty());
        let languages = || own.into_iter().chain(self.rules.languages.iter().map(String::as_str));
        let required = self.rules.wording.own(kind, languages());
        let (locale, text) = required.unwrap_or_else(|| policy.texts.of(kind, languages()));
        let text = text.replace("{business}", &self.business);
        let kind = match kind {
            ReplyKind::OptOutConfirmation => proto::ReplyKind::OptOutConfirmation,
            ReplyKind::OptInConfirmation => proto::ReplyKind::OptInConfirmation,
            ReplyKind::Help => proto::ReplyKind::Help,
            ReplyKind::FeedbackQuestion => proto::ReplyKind::FeedbackQuestion,
            ReplyKind::Clarification => proto::ReplyKind::Clarification,
            ReplyKind::NarrowedConfirmation => proto::ReplyKind::NarrowedConfirmation,
        };
        let to_as_received = match self.sender.first() {
            Identity::Phone(phone) if phone.as_spelt() != phone.as_str() => format!("+{}", phone.as_spelt()),
            Identity::Phone(_) | Identity::Bsuid(_) | Identity::Email(_) | Identity::Ext(_) | Identity::Hash(_) => String::new(),
        };
        proto::ReplyRequest {
            id,
            kind: kind.into(),
            business: self.business.to_string(),
            channel: self.arrived_on.as_str().to_owned(),
            to: self.sender.first().to_text(),
            from: self.evidence.receiving_number.clone(),
            locale,
            text,
            in_reply_to: self.evidence.provider_message_id.clone(),
            // From the person's act, not from our reading of it: a confirmation that comes an hour late is not sent.
            expires_at_ms: self.occurred_at.plus_millis(REPLY_EXPIRY_MS).millis(),
            superseded,
            source: self.coordinates.to_string(),
            to_as_received,
            choices: Vec::new(),
        }
    }

    pub(super) fn review(&self, policy: &Policy) -> proto::ReviewRequest {
        let text = match policy.excerpt {
            Excerpt::None => String::new(),
            Excerpt::Full | Excerpt::Around => excerpt(&self.text, 0, 0, Excerpt::Full),
        };
        proto::ReviewRequest {
            id: self.id(&["review", &self.coordinates.to_string(), &self.source.index.to_string()]),
            business: self.business.to_string(),
            channel: self.arrived_on.as_str().to_owned(),
            from: self.sender.iter().map(Identity::to_text).collect(),
            text,
            rule: self.evidence.rule.clone(),
            deadline_ms: self.occurred_at.plus_millis(policy.review_deadline_ms).millis(),
            source: self.coordinates.to_string(),
            provider_message_id: self.evidence.provider_message_id.clone(),
            lexicon_version: self.evidence.lexicon_version.clone(),
            occurred_at_ms: self.occurred_at.millis(),
        }
    }
}

/// The id that these parts give, always the same.
pub(super) fn id_of(parts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part.as_bytes());
        hash.update([0xff]); // no UTF-8 text holds this byte
    }
    hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}
