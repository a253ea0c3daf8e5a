//! What is asked of a person who left, and what follows from the answers.
//!
//! Nothing is remembered of a question: it is open while the opt-out that it was about stands and its time has not passed, by the
//! times of messages. So an answer is understood alike after a crash, by another worker, and on replay.
//!
//! Nobody gets marketing by silence. All of it stops at the first word; a clarification that is answered writes what still stops
//! before what may go on, so that no moment lies between.

use super::finding::id_of;
use super::{Answer, Excerpt, Finding, Ledger, Policy, Wish, excerpt};
use crate::domain::consent::{Act, ConsentState, Position, Source};
use crate::domain::identity::Identity;
use crate::domain::key::{Channel, ConsentKey, Subject};
use crate::domain::question::{self, Meant};
use crate::domain::reply::ReplyKind;
use crate::wire::{consent, proto};

/// For so long after an opt-out an answer says why.
const FEEDBACK_MS: i64 = 24 * 60 * 60 * 1000;

/// The rule of what an answer narrowed.
pub const NARROWED_RULE: &str = "answer.only";

impl Finding {
    /// The confirmation of a transition, and the question that goes with it. Where one text must do, it holds both.
    pub(super) fn replies_to_transition(
        &self,
        state: ConsentState,
        subject: &Subject,
        policy: &Policy,
        reply: impl Fn(ReplyKind) -> proto::ReplyRequest,
    ) -> Vec<(ReplyKind, proto::ReplyRequest)> {
        let (kind, question) = match state {
            ConsentState::OptedOut => (ReplyKind::OptOutConfirmation, self.question(subject, policy)),
            ConsentState::OptedIn => (ReplyKind::OptInConfirmation, None),
        };
        let is_required = state == ConsentState::OptedOut && self.rules.confirmation_required;
        let confirmation = (policy.confirmations || is_required).then(|| reply(kind));
        let question = question.map(|kind| (kind, self.asking(kind, policy, reply(kind))));
        match (confirmation, question) {
            (Some(mut confirmation), Some((_, question))) if self.rules.one_text => {
                confirmation.text = format!("{} {}", confirmation.text, question.text);
                confirmation.choices = question.choices;
                vec![(kind, confirmation)]
            }
            (confirmation, question) => confirmation.map(|confirmation| (kind, confirmation)).into_iter().chain(question).collect(),
        }
    }

    /// The keys of marketing of everybody whom the message names.
    fn marketing_keys(&self) -> impl Iterator<Item = ConsentKey> {
        self.sender.iter().map(|identity| self.key(identity, &self.channel, &Subject::Marketing))
    }

    /// At most one thing is asked: what was meant, where that is open; else why.
    fn question(&self, subject: &Subject, policy: &Policy) -> Option<ReplyKind> {
        let is_open = self.bare && *subject == Subject::Marketing && !policy.programs.is_empty();
        if policy.clarification_ms.is_some() && self.rules.clarification && is_open {
            return Some(ReplyKind::Clarification);
        }
        let may_ask = policy.feedback.is_some() && self.rules.feedback && *subject != Subject::Review;
        may_ask.then_some(ReplyKind::FeedbackQuestion)
    }

    fn asking(&self, kind: ReplyKind, policy: &Policy, mut reply: proto::ReplyRequest) -> proto::ReplyRequest {
        let language = reply.locale.split('-').next().unwrap_or_default();
        let choices = match kind {
            ReplyKind::FeedbackQuestion => question::feedback_choices(policy.feedback.as_deref().unwrap_or_default(), language),
            ReplyKind::Clarification => question::clarification_choices(&policy.programs, language),
            ReplyKind::OptOutConfirmation | ReplyKind::OptInConfirmation | ReplyKind::Help | ReplyKind::NarrowedConfirmation => Vec::new(),
        };
        if self.arrived_on != Channel::Whatsapp {
            reply.text = format!("{} {}", reply.text, question::spelt_out(kind, &choices));
        }
        reply.choices = choices.into_iter().map(|choice| proto::ReplyChoice { payload: choice.payload, title: choice.title }).collect();
        reply
    }
}

impl Ledger<'_> {
    /// What follows where the message answers a question that is open; `None` where it does not.
    pub(super) fn converse(&mut self, finding: &Finding, policy: &Policy) -> Option<Answer> {
        let answers = finding.answers.as_ref()?;
        if let (Some(meant), Some(window_ms)) = (&answers.meant, policy.clarification_ms.filter(|_| finding.rules.clarification)) {
            let done = self.narrowed_before(finding);
            if done.is_some() || self.may_narrow(finding, window_ms) {
                return Some(match meant {
                    Meant::Everything => Answer::default(),
                    Meant::Only(program) => self.narrow(finding, program, done, policy),
                });
            }
        }
        let reason = answers.reason.as_deref().filter(|_| policy.feedback.is_some() && finding.rules.feedback)?;
        let (key, act) = self.left(finding)?;
        // Words that may ask for more than what has ended already are for a reviewer.
        let asks_for_more = finding.wish == Wish::Review && matches!(key.subject, Subject::Program(_) | Subject::Review);
        if asks_for_more {
            return None;
        }
        let kept = if finding.hashed.is_some() { Excerpt::None } else { policy.excerpt };
        let record = proto::FeedbackRecord {
            // Of the key as it is written: where identities are hashed, the id must not tell them either.
            id: id_of(&[consent::encode_key(&key).as_str(), "feedback", &finding.coordinates.to_string(), &finding.source.index.to_string()]),
            business: finding.business.to_string(),
            channel: finding.arrived_on.as_str().to_owned(),
            from: key.identity.to_text(),
            reason: reason.to_owned(),
            text: excerpt(&finding.text, finding.evidence.span_start, finding.evidence.span_end, kept),
            occurred_at_ms: finding.occurred_at.millis(),
            opted_out_at_ms: act.occurred_at.millis(),
            source: finding.coordinates.to_string(),
            provider_message_id: finding.written_message_id().into_owned(),
        };
        Some(Answer { feedback: Some((key, record)), ..Answer::default() })
    }

    /// The opt-out that this person may be asked about: the latest that stands, changed something, was a message, and is not older
    /// than answers may be.
    fn left(&self, finding: &Finding) -> Option<(ConsentKey, Act)> {
        let programs = self.view.programs(&finding.business).filter_map(Subject::program);
        let subjects: Vec<Subject> = [Subject::Marketing, Subject::All].into_iter().chain(programs).collect();
        let channels = [&finding.channel, &Channel::Any];
        let keys = finding.sender.iter().flat_map(|identity| {
            let subjects = &subjects;
            channels.into_iter().flat_map(move |channel| subjects.iter().map(move |subject| finding.key(identity, channel, subject)))
        });
        let standing = keys.filter_map(|key| self.on_key(&key).map(|act| (key, act)));
        let open = standing.filter(|(_, act)| is_open(act, finding, FEEDBACK_MS));
        open.max_by_key(|(_, act)| act.occurred_at)
    }

    /// Whether the clarification is open: some identity's opt-out of marketing is, and no other identity's would be lifted with it.
    fn may_narrow(&self, finding: &Finding, window_ms: i64) -> bool {
        let keys = finding.marketing_keys();
        let standing: Vec<Act> = keys.filter_map(|key| self.on_key(&key)).filter(|act| act.state == ConsentState::OptedOut).collect();
        !standing.is_empty() && standing.iter().all(|act| is_open(act, finding, window_ms))
    }

    /// What this very message opened before a crash.
    fn narrowed_before(&self, finding: &Finding) -> Option<Act> {
        finding
            .marketing_keys()
            .find_map(|key| self.on_key(&key).filter(|act| act.state == ConsentState::OptedIn && act.source == finding.source))
    }

    /// Only a program stops: what still stops is written again, since the opt-in would speak for it; then marketing is opened.
    fn narrow(&mut self, finding: &Finding, program: &str, done: Option<Act>, policy: &Policy) -> Answer {
        let Some(stopped) = Subject::program(program) else { return Answer::default() };
        let marketing: Vec<ConsentKey> = finding.marketing_keys().collect();
        if done.is_none() && marketing.iter().any(|key| self.is_redelivered(key, finding)) {
            return Answer::default();
        }
        let mut answer = Answer::default();
        let act = |state, changed_state| Act {
            state,
            occurred_at: finding.occurred_at,
            source: finding.source,
            cause: Position { partition: 0, offset: 0 },
            changed_state,
        };
        let narrowed = finding.narrowed();
        for key in finding.sender.iter().flat_map(|identity| self.still_stopped(finding, identity, &stopped)).collect::<Vec<_>>() {
            let act = act(ConsentState::OptedOut, false);
            if self.on_key(&key).is_none_or(|standing| act.supersedes(&standing)) {
                answer.consents.push(self.write(key, act, &narrowed));
            }
        }
        for key in &marketing {
            let act = act(ConsentState::OptedIn, true);
            if self.on_key(key).is_none_or(|standing| act.supersedes(&standing)) {
                answer.consents.push(self.write(key.clone(), act, &narrowed));
            }
        }
        let changed = done.is_some() || answer.consents.iter().any(|consent| consent.act.state == ConsentState::OptedIn);
        // Where one text answers an opt-out, there is no second one.
        if changed && finding.answerable && policy.confirmations && !finding.rules.one_text {
            let kind = ReplyKind::NarrowedConfirmation;
            let first = marketing.first().map(|key| consent::encode_key(key).as_str().to_owned()).unwrap_or_default();
            let id = finding.id(&[kind.as_str(), &first, &finding.coordinates.to_string()]);
            let mut reply = finding.reply(kind, id, String::new(), policy);
            let language = reply.locale.split('-').next().unwrap_or_default();
            let name = policy.programs.iter().find(|known| known.id == program).map_or(program, |known| known.name(language));
            reply.text = format!("{name}: {}", reply.text);
            answer.replies.push((kind, reply));
        }
        answer
    }

    /// What stands against an identity and would be lifted by an opt-in of marketing, and the program that was chosen.
    fn still_stopped(&self, finding: &Finding, identity: &Identity, chosen: &Subject) -> Vec<ConsentKey> {
        let programs = self.view.programs(&finding.business).filter_map(Subject::program).filter(|program| program != chosen);
        let mut keys: Vec<ConsentKey> = programs.map(|program| finding.key(identity, &finding.channel, &program)).collect();
        if finding.channel == Channel::Any {
            // An opt-in on all channels speaks for each of them.
            let channels = [Channel::Whatsapp, Channel::Sms, Channel::Email, Channel::Voice];
            let others = channels.iter().filter(|channel| **channel != finding.arrived_on).chain([&finding.arrived_on]);
            let subjects: Vec<Subject> =
                self.view.programs(&finding.business).filter_map(Subject::program).chain([Subject::Marketing]).collect();
            keys.extend(others.flat_map(|channel| subjects.iter().map(|subject| finding.key(identity, channel, subject)).collect::<Vec<_>>()));
        }
        keys.retain(|key| self.on_key(key).is_some_and(|act| act.state == ConsentState::OptedOut));
        keys.insert(0, finding.key(identity, &finding.channel, chosen));
        keys
    }
}

/// Whether an opt-out may be asked about by this message: a person's own, with a change, and not too long ago.
fn is_open(act: &Act, finding: &Finding, window_ms: i64) -> bool {
    let is_persons = act.state == ConsentState::OptedOut && act.changed_state && act.source != Source::default() && act.source != finding.source;
    is_persons && act.occurred_at <= finding.occurred_at && finding.occurred_at <= act.occurred_at.plus_millis(window_ms)
}
