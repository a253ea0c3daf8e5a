//! Findings compared with what stands: consent records in safe order, and what follows from a transition.

use super::{DetectRules, Finding, Policy, Wish};
use crate::domain::consent::{Act, ConsentState, Position, Source};
use crate::domain::decide::{Question, Standing};
use crate::domain::identity::Identities;
use crate::domain::key::{Channel, ConsentKey, Subject};
use crate::domain::reply::ReplyKind;
use crate::domain::suppression::{PersonPrint, SlotPrint};
use crate::domain::view::{Again, ConsentView};
use crate::wire::{consent, proto};
use std::collections::HashMap;

/// Names an act whoever looks at it: when it occurred, and the place of its message on the inbound topic.
fn act_name(act: &Act) -> String {
    let Source { partition, offset, index, .. } = act.source;
    format!("{}/{partition}@{offset}/{index}", act.occurred_at.millis())
}

/// A consent record to be written, and the number by which its acknowledgement is known.
#[derive(Clone, Debug, PartialEq)]
pub struct Consent {
    pub number: usize,
    pub key: ConsentKey,
    pub act: Act,
    pub record: proto::ConsentRecord,
}

/// What follows from one finding.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    pub consents: Vec<Consent>,
    pub replies: Vec<(ReplyKind, proto::ReplyRequest)>,
    pub review: Option<proto::ReviewRequest>,
    /// Why a person left: the key of the opt-out, and the record.
    pub feedback: Option<(ConsentKey, proto::FeedbackRecord)>,
}

struct Written {
    act: Act,
    number: usize,
    /// Where it lies, once acknowledged.
    position: Option<Position>,
    opted_in_by: Option<String>,
}

/// The acts that a worker has written and its view has not applied yet.
#[derive(Default)]
pub struct Overlay {
    written: HashMap<(u64, u64), Written>,
    next_number: usize,
}

impl Overlay {
    /// A record was acknowledged.
    pub fn acknowledged(&mut self, number: usize, position: Position) {
        if let Some(written) = self.written.values_mut().find(|written| written.number == number) {
            written.position = Some(position);
            written.act.cause = position;
        }
    }

    /// Forgets what the view has applied meanwhile.
    pub fn prune(&mut self, view: &ConsentView) {
        let applied = view.applied();
        self.written.retain(|_, written| match written.position {
            Some(position) => applied.get(position.partition as usize).is_none_or(|&next| next <= position.offset),
            None => true,
        });
    }

    /// Forgets everything: the view holds all that was written, or it will be written again.
    pub fn clear(&mut self) {
        self.written.clear();
    }
}

/// The view and the overlay, as one.
pub struct Ledger<'a> {
    pub view: &'a ConsentView,
    pub overlay: &'a mut Overlay,
}

impl Ledger<'_> {
    fn standing(&self, person: PersonPrint, slot: SlotPrint) -> Option<Act> {
        let applied = self.view.standing(person, slot);
        let written = self.overlay.written.get(&(person.bits(), slot.bits())).map(|written| written.act);
        match (applied, written) {
            (Some(applied), Some(written)) if applied.supersedes(&written) => Some(applied),
            (_, Some(written)) => Some(written),
            (applied, None) => applied,
        }
    }

    pub(super) fn on_key(&self, key: &ConsentKey) -> Option<Act> {
        let (person, slot) = self.view.print_key().of_key(key);
        self.standing(person, slot)
    }

    /// What stands for any of these identities about this subject.
    fn about(&self, business: &str, channel: &Channel, subject: &Subject, identities: &Identities) -> Standing {
        let prints = self.view.print_key();
        let question = Question::about(prints, channel, subject);
        identities.iter().fold(Standing::Silent, |standing, identity| {
            let person = prints.person(business, identity);
            standing.and(question.judge(|slot| self.standing(person, slot)))
        })
    }

    /// Whether the message comes from the provider a second time. A record that is read a second time, after a crash, is no
    /// redelivery: part of what follows from it may not have been written.
    pub(super) fn is_redelivered(&self, key: &ConsentKey, finding: &Finding) -> bool {
        let (id, as_written) = (finding.evidence.provider_message_id.as_str(), finding.written_message_id());
        let written = self.overlay.written.get(&self.place(key)).filter(|written| written.act.source != finding.source);
        let by_own = written.and_then(|written| written.opted_in_by.as_deref()).is_some_and(|by| by == id && !by.is_empty());
        by_own || self.view.opted_in_by(key, &as_written, &finding.source) == Some(Again::Redelivered)
    }

    /// What follows from a finding. Records are put on the overlay at once, so that the next message sees them.
    pub fn answer(&mut self, finding: &Finding, rules: &DetectRules) -> Answer {
        let policy = rules.policy(&finding.business);
        if let Some(answer) = self.converse(finding, policy) {
            return answer;
        }
        match &finding.wish {
            Wish::OptOut(subject) => self.act(finding, ConsentState::OptedOut, subject, policy),
            Wish::OptIn(subject) => self.act(finding, ConsentState::OptedIn, subject, policy),
            Wish::Help => {
                let due = finding.answerable && policy.confirmations;
                let id = finding.id(&["help", &finding.evidence.provider_message_id]);
                let reply = due.then(|| (ReplyKind::Help, finding.reply(ReplyKind::Help, id, String::new(), policy)));
                Answer { replies: reply.into_iter().collect(), ..Answer::default() }
            }
            Wish::Review => {
                let mut answer = match policy.review_suppresses {
                    true => self.act(finding, ConsentState::OptedOut, &Subject::Review, policy),
                    false => Answer::default(),
                };
                answer.replies.clear();
                answer.review = Some(finding.review(policy));
                answer
            }
            Wish::Answer => Answer::default(),
            Wish::Moved(now) => self.carry_over(finding, now),
        }
    }

    /// What stands about the subject of an act, and for an opt-in about every subject that it covers.
    fn standings(&self, finding: &Finding, state: ConsentState, subject: &Subject) -> Vec<Standing> {
        let about = |subject: &Subject| self.about(&finding.business, &finding.channel, subject, &finding.sender);
        let mut standings = vec![about(subject)];
        if state == ConsentState::OptedIn {
            let programs = self.view.programs(&finding.business).filter_map(Subject::program);
            let covered = programs.chain([Subject::Marketing]).filter(|other| subject.covers(other));
            standings.extend(covered.map(|covered| about(&covered)));
        }
        standings
    }

    /// One record for each identity named; a reply on a transition.
    fn act(&mut self, finding: &Finding, state: ConsentState, subject: &Subject, policy: &Policy) -> Answer {
        let keys: Vec<ConsentKey> = finding.sender.iter().map(|identity| finding.key(identity, &finding.channel, subject)).collect();
        let standing: Vec<Option<Act>> = keys.iter().map(|key| self.on_key(key)).collect();
        // After a crash the message is read again: what it wrote then says whether it changed anything.
        let own_earlier = standing.iter().flatten().find(|act| act.source == finding.source);
        if state == ConsentState::OptedIn && own_earlier.is_none() && keys.iter().any(|key| self.is_redelivered(key, finding)) {
            return Answer::default();
        }
        let before = self.standings(finding, state, subject);
        let mut answer = Answer::default();
        for (key, standing) in keys.iter().zip(&standing) {
            let act = Act {
                state,
                occurred_at: finding.occurred_at,
                source: finding.source,
                cause: Position { partition: 0, offset: 0 },
                changed_state: false,
            };
            if standing.is_none_or(|standing| act.supersedes(&standing)) {
                answer.consents.push(self.write(key.clone(), act, finding));
            }
        }
        let changed_state = match own_earlier {
            Some(own) => own.changed_state,
            None => changes(state, &before, &self.standings(finding, state, subject)),
        };
        for consent in &mut answer.consents {
            consent.act.changed_state = changed_state;
            consent.record.changed_state = changed_state;
            if let Some(written) = self.overlay.written.get_mut(&self.place(&consent.key)) {
                written.act.changed_state = changed_state;
            }
        }
        if changed_state && finding.answerable {
            let first = keys.first().map(|key| consent::encode_key(key).as_str().to_owned()).unwrap_or_default();
            let before = standing.first().copied().flatten().filter(|act| act.source != finding.source);
            let superseded = before.map(|act| act_name(&act)).unwrap_or_default();
            // Read again after a crash the superseded act is not known any more: the own act names the reply. The reply
            // that was computed first was never seen, its transaction having been aborted.
            let own = own_earlier.map(|act| format!("own {}", act_name(act))).unwrap_or_default();
            let reply =
                |kind: ReplyKind| finding.reply(kind, finding.id(&[kind.as_str(), &first, &superseded, &own]), superseded.clone(), policy);
            answer.replies = finding.replies_to_transition(state, subject, policy, reply);
        }
        answer
    }

    /// The most restrictive wins: what either the old or the new identities opted out of, both have.
    fn carry_over(&mut self, finding: &Finding, now: &Identities) -> Answer {
        let mut subjects = vec![Subject::All, Subject::Marketing, Subject::Review];
        subjects.extend(self.view.programs(&finding.business).filter_map(Subject::program));
        let mut answer = Answer::default();
        for channel in [&Channel::Any, &finding.channel] {
            for subject in &subjects {
                for (from, to) in [(&finding.sender, now), (now, &finding.sender)] {
                    let is_out = |standing: Standing| matches!(standing, Standing::OptedOut(_) | Standing::UnderReview(_));
                    if !is_out(self.about(&finding.business, channel, subject, from)) {
                        continue;
                    }
                    for identity in to.iter() {
                        let alone = Identities::new(vec![identity.clone()]);
                        if alone.is_some_and(|alone| is_out(self.about(&finding.business, channel, subject, &alone))) {
                            continue;
                        }
                        let key = finding.key(identity, channel, subject);
                        let act = Act {
                            state: ConsentState::OptedOut,
                            occurred_at: finding.occurred_at,
                            source: finding.source,
                            cause: Position { partition: 0, offset: 0 },
                            changed_state: true,
                        };
                        if self.on_key(&key).is_none_or(|standing| act.supersedes(&standing)) {
                            answer.consents.push(self.write(key, act, finding));
                        }
                    }
                }
            }
        }
        answer
    }

    /// Where the overlay keeps a key.
    fn place(&self, key: &ConsentKey) -> (u64, u64) {
        let (person, slot) = self.view.print_key().of_key(key);
        (person.bits(), slot.bits())
    }

    pub(super) fn write(&mut self, key: ConsentKey, act: Act, finding: &Finding) -> Consent {
        let number = self.overlay.next_number;
        self.overlay.next_number += 1;
        let place = self.place(&key);
        let opted_in_by = (act.state == ConsentState::OptedIn).then(|| finding.evidence.provider_message_id.clone());
        self.overlay.written.insert(place, Written { act, number, position: None, opted_in_by });
        let record = finding.record(&key, &act);
        Consent { number, key, act, record }
    }
}

/// Whether an act changed what stands: an act that came late, behind one that ended it already, did not, although it is
/// written. `before` and `after` are [`Ledger::standings`], the act's own subject first.
pub(in crate::stage) fn changes(state: ConsentState, before: &[Standing], after: &[Standing]) -> bool {
    let is_out = |standing: &Standing| matches!(standing, Standing::OptedOut(_) | Standing::UnderReview(_));
    match state {
        ConsentState::OptedOut => !matches!(before.first(), Some(Standing::OptedOut(_))) && after.first().is_some_and(is_out),
        ConsentState::OptedIn => {
            let ended = before.iter().zip(after).any(|(before, after)| is_out(before) && *after == Standing::OptedIn);
            let is_first = before.iter().all(|before| *before == Standing::Silent) && after.first() == Some(&Standing::OptedIn);
            ended || is_first
        }
    }
}
