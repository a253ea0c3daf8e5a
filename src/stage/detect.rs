//! Stage 1: inbound record → consent records, replies, reviews, dead letters.
//!
//! In two halves. [`Detector::read`] follows from the record and the rules alone: what each message asks for, and the
//! evidence. [`Ledger::answer`] compares that with the view and with what this worker has written and the view has not
//! applied yet; only `changed_state`, replies and reviews depend on it.

use crate::domain::business::Businesses;
use crate::domain::classify::{self, Button, Class, Confidence, Lexicon, Scope};
use crate::domain::consent::{Act, ConsentState, Position, Source, safe_time};
use crate::domain::decide::{Question, Standing};
use crate::domain::identity::{Identities, Identity, IdentityKey};
use crate::domain::key::{Channel, ConsentKey, Subject};
use crate::domain::message::{Content, InboundMessage, Preference};
use crate::domain::reply::{ReplyKind, ReplyTexts};
use crate::domain::suppression::{PersonPrint, SlotPrint};
use crate::domain::time::Timestamp;
use crate::domain::view::{Again, ConsentView};
use crate::record::{Coordinates, Record, TopicName};
use crate::wire::inbound::{self, InboundFormat};
use crate::wire::{DecodeError, consent, proto};
use sha2::{Digest, Sha256};
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// How much of a message the evidence keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Excerpt {
    /// All of it, up to a bound.
    Full,
    /// The matched words and a little around them.
    Around,
    /// Nothing: the rule and the span must do.
    None,
}

/// What a business wants done with what is detected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// An opt-out on one channel counts on all.
    pub cross_channel: bool,
    /// Transitions are confirmed and help is given.
    pub confirmations: bool,
    /// An ambiguous message suppresses until a person has judged it.
    pub review_suppresses: bool,
    pub excerpt: Excerpt,
    /// How long reviewers have.
    pub review_deadline_ms: i64,
    /// The words of replies.
    pub texts: ReplyTexts,
}

/// What detection rests on beside the view.
#[derive(Clone)]
pub struct DetectRules {
    pub lexicon: Arc<Lexicon>,
    /// Lexicons of businesses that changed words, by resolved name.
    pub lexicons: BTreeMap<String, Arc<Lexicon>>,
    pub businesses: Arc<Businesses>,
    pub formats: Vec<(TopicName, InboundFormat)>,
    pub policy: Policy,
    /// Policies of businesses that differ, by resolved name.
    pub policies: BTreeMap<String, Policy>,
    pub rules_version: String,
    /// Where identities are written hashed: the key.
    pub hashed: Option<IdentityKey>,
}

/// What a message asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Wish {
    OptOut(Subject),
    OptIn(Subject),
    Help,
    Review,
    /// The sender is known under these identities now.
    Moved(Identities),
}

/// One message that asks for something, and all that can be said of it without the view.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    wish: Wish,
    business: Box<str>,
    /// The channel on which it counts: the message's own, or all.
    channel: Channel,
    /// The channel on which it came, and on which it is answered.
    arrived_on: Channel,
    sender: Identities,
    /// Where identities are written hashed: the key.
    hashed: Option<IdentityKey>,
    occurred_at: Timestamp,
    source: Source,
    coordinates: Coordinates,
    cause: proto::ConsentCause,
    evidence: proto::Evidence,
    /// The words themselves, for reviewers.
    text: String,
    /// A person wrote and the provider has not answered: replies are due.
    answerable: bool,
}

/// Everything that one record held.
#[derive(Debug, Default, PartialEq)]
pub struct Read {
    pub findings: Vec<Finding>,
    /// The class of every readable message, findings included.
    pub classes: Vec<Class>,
    /// What could not be read: `None` for the whole record, else the index within its body.
    pub failures: Vec<(Option<u32>, DecodeError)>,
}

/// Reads messages: the half of detection that follows from the bytes and the rules alone.
pub struct Detector {
    rules: DetectRules,
}

impl Detector {
    /// A detector under these rules.
    pub fn new(rules: DetectRules) -> Self {
        Self { rules }
    }

    /// The rules.
    pub fn rules(&self) -> &DetectRules {
        &self.rules
    }

    /// Reads a record.
    pub fn read(&self, record: &Record<'_>) -> Read {
        let mut read = Read::default();
        let Some((_, format)) = self.rules.formats.iter().find(|(topic, _)| topic == record.topic) else {
            read.failures.push((None, DecodeError::UnknownShape));
            return read;
        };
        let decoded = match inbound::decode(record, format) {
            Ok(decoded) => decoded,
            Err(error) => {
                read.failures.push((None, error));
                return read;
            }
        };
        read.failures = decoded.failures.into_iter().map(|(index, error)| (Some(index), error)).collect();
        for message in decoded.messages {
            let index = message.index;
            match self.understand(record, message) {
                Ok((class, finding)) => {
                    read.classes.push(class);
                    read.findings.extend(finding);
                }
                Err(error) => read.failures.push((Some(index), error)),
            }
        }
        read
    }

    fn understand(&self, record: &Record<'_>, message: InboundMessage) -> Result<(Class, Option<Finding>), DecodeError> {
        let business = self.rules.businesses.of_message(&message.business.as_hints());
        let lexicon = business.as_deref().and_then(|name| self.rules.lexicons.get(name)).unwrap_or(&self.rules.lexicon);
        let mut answerable = !message.confirmed_by_provider;
        let mut evidence = proto::Evidence::default();
        let (class, wish, cause, text) = match message.content {
            Content::Nothing => return Ok((Class::None, None)),
            Content::Text { text, edited, forwarded } => {
                let (class, wish, cause) = classify_with(lexicon, Some(&text), None, &mut evidence);
                // An edit may ask to stop; it never undoes a stop.
                let wish = wish.filter(|wish| !(edited && matches!(wish, Wish::OptIn(_))));
                // What somebody else wrote and the person passed on is not their own wish, but may be meant as one.
                match (forwarded, wish) {
                    (true, Some(Wish::OptOut(_) | Wish::Review)) => (Class::Review, Some(Wish::Review), proto::ConsentCause::Review, text),
                    (true, Some(Wish::OptIn(_) | Wish::Help | Wish::Moved(_)) | None) => (Class::None, None, cause, text),
                    (false, wish) => (class, wish, cause, text),
                }
            }
            Content::Button { payload, title } => {
                let button = Button { payload: payload.as_deref(), title: title.as_deref() };
                let (class, wish, _) = classify_with(lexicon, None, Some(button), &mut evidence);
                (class, wish, proto::ConsentCause::Button, title.or(payload).unwrap_or_default())
            }
            Content::Preference(preference) => {
                answerable = false;
                let (class, wish) = match preference {
                    Preference::Stop => (Class::OptOut, Some(Wish::OptOut(Subject::Marketing))),
                    Preference::Resume => (Class::OptIn, Some(Wish::OptIn(Subject::Marketing))),
                    Preference::Help => (Class::Help, None),
                };
                "preference".clone_into(&mut evidence.rule);
                (class, wish, proto::ConsentCause::ChannelPreference, String::new())
            }
            Content::ProviderOptOut => {
                answerable = false;
                "provider-error".clone_into(&mut evidence.rule);
                (Class::OptOut, Some(Wish::OptOut(Subject::Marketing)), proto::ConsentCause::ProviderError, String::new())
            }
            Content::IdentityChange { now } => {
                answerable = false;
                (Class::None, Some(Wish::Moved(now)), proto::ConsentCause::IdentityChange, String::new())
            }
        };
        let Some(wish) = wish else { return Ok((class, None)) };
        let business = business.ok_or(DecodeError::NoBusiness)?;
        let sender_fits = message.sender.iter().count() <= MAX_IDENTITIES && message.channel.as_str().len() <= MAX_NAME_BYTES;
        if business.len() > MAX_NAME_BYTES || !sender_fits {
            return Err(DecodeError::TooLarge);
        }
        // A key that could not be read back would close the fence of every filter: such a message goes to a person.
        if !message.sender.iter().all(|identity| self.reads_back(&business, &message.channel, identity)) {
            return Err(DecodeError::NoSender);
        }
        let policy = self.policy(&business);
        let state = match wish {
            Wish::OptIn(_) => ConsentState::OptedIn,
            Wish::OptOut(_) | Wish::Help | Wish::Review | Wish::Moved(_) => ConsentState::OptedOut,
        };
        let recorded = record.timestamp_ms.and_then(Timestamp::from_millis);
        evidence.source = Some(proto::SourceCoordinates {
            topic: record.topic.to_string(),
            partition: record.partition,
            offset: record.offset,
            index: message.index,
        });
        evidence.provider_message_id = bounded(message.provider_message_id.unwrap_or_default());
        evidence.receiving_number = bounded(message.business.number.unwrap_or_default());
        evidence.lexicon_version = lexicon.version().to_owned();
        evidence.rules_version.clone_from(&self.rules.rules_version);
        evidence.recorded_at_ms = recorded.map_or(0, Timestamp::millis);
        let kept = if self.rules.hashed.is_some() { Excerpt::None } else { policy.excerpt };
        evidence.excerpt = excerpt(&text, evidence.span_start, evidence.span_end, kept);
        let finding = Finding {
            wish,
            channel: if policy.cross_channel { Channel::Any } else { message.channel.clone() },
            arrived_on: message.channel,
            business,
            sender: message.sender,
            hashed: self.rules.hashed,
            occurred_at: safe_time(state, message.occurred_at, recorded),
            source: Source::new(record.topic, record.partition, record.offset, message.index),
            coordinates: record.coordinates(),
            cause,
            evidence,
            text,
            answerable,
        };
        Ok((class, Some(finding)))
    }

    fn reads_back(&self, business: &str, channel: &Channel, identity: &Identity) -> bool {
        let key = ConsentKey { business: business.into(), channel: channel.clone(), identity: identity.clone(), subject: Subject::Marketing };
        consent::decode_key(consent::encode_key(&key).as_bytes(), &self.rules.businesses) == Ok(key)
    }

    fn policy(&self, business: &str) -> &Policy {
        self.rules.policies.get(business).unwrap_or(&self.rules.policy)
    }
}

/// The class of a message, what it asks for, and what kind of cause that is; the evidence is filled in.
fn classify_with(
    lexicon: &Lexicon,
    text: Option<&str>,
    button: Option<Button<'_>>,
    evidence: &mut proto::Evidence,
) -> (Class, Option<Wish>, proto::ConsentCause) {
    let found = classify::classify(lexicon, &classify::Message { text, button, language: None });
    let cause = match (found.class, found.confidence) {
        (Class::Review, _) => proto::ConsentCause::Review,
        (_, Confidence::Exact) => proto::ConsentCause::Keyword,
        (_, Confidence::High | Confidence::Low) => proto::ConsentCause::Phrase,
    };
    evidence.rule = found.rule.to_string();
    evidence.confidence = found.confidence.as_str().to_owned();
    evidence.language = found.language.as_ref().map(ToString::to_string).unwrap_or_default();
    if let Some(span) = found.span {
        evidence.span_start = u32::try_from(span.start).unwrap_or(u32::MAX);
        evidence.span_end = u32::try_from(span.end).unwrap_or(u32::MAX);
    }
    let subject = |unless_said: Subject| match found.scope {
        None => unless_said,
        Some(Scope::Marketing) => Subject::Marketing,
        Some(Scope::All) => Subject::All,
        Some(Scope::Program(ref id)) => Subject::program(id).unwrap_or(Subject::Marketing),
    };
    let wish = match found.class {
        Class::OptOut => Some(Wish::OptOut(subject(Subject::Marketing))),
        // A bare START brings everything back.
        Class::OptIn => Some(Wish::OptIn(subject(Subject::All))),
        Class::Help => Some(Wish::Help),
        Class::Review => Some(Wish::Review),
        Class::None => None,
    };
    (found.class, wish, cause)
}

/// Names an act whoever looks at it: when it occurred, and the place of its message on the inbound topic.
fn act_name(act: &Act) -> String {
    let Source { partition, offset, index, .. } = act.source;
    format!("{}/{partition}@{offset}/{index}", act.occurred_at.millis())
}

/// Longest id or name that evidence keeps, and most identities of one sender: what is written must fit its topic, and
/// no provider comes near.
const MAX_NAME_BYTES: usize = 512;
const MAX_IDENTITIES: usize = 100;

/// An id as it is, or its hash where it is longer than any real one.
fn bounded(id: String) -> String {
    if id.len() <= MAX_NAME_BYTES {
        return id;
    }
    Sha256::digest(id).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Longest excerpt, in bytes, and how much of the text around the matched words a short one keeps.
const FULL_EXCERPT_BYTES: usize = 4096;
pub const AROUND_BYTES: usize = 60;

fn excerpt(text: &str, start: u32, end: u32, policy: Excerpt) -> String {
    let (start, end) = (start as usize, end as usize);
    let (from, to) = match policy {
        Excerpt::None => return String::new(),
        Excerpt::Full => (0, FULL_EXCERPT_BYTES),
        Excerpt::Around if end > start => (start.saturating_sub(AROUND_BYTES), end.saturating_add(AROUND_BYTES).min(start + FULL_EXCERPT_BYTES)),
        Excerpt::Around => (0, 2 * AROUND_BYTES),
    };
    let floor = |at: usize| (0..=at.min(text.len())).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
    text.get(floor(from)..floor(to)).unwrap_or_default().to_owned()
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
    pub reply: Option<(ReplyKind, proto::ReplyRequest)>,
    pub review: Option<proto::ReviewRequest>,
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

    fn on_key(&self, key: &ConsentKey) -> Option<Act> {
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
    fn is_redelivered(&self, key: &ConsentKey, finding: &Finding) -> bool {
        let (id, as_written) = (finding.evidence.provider_message_id.as_str(), finding.written_message_id());
        let written = self.overlay.written.get(&self.place(key)).filter(|written| written.act.source != finding.source);
        let by_own = written.and_then(|written| written.opted_in_by.as_deref()).is_some_and(|by| by == id && !by.is_empty());
        by_own || self.view.opted_in_by(key, &as_written, &finding.source) == Some(Again::Redelivered)
    }

    /// What follows from a finding. Records are put on the overlay at once, so that the next message sees them.
    pub fn answer(&mut self, finding: &Finding, rules: &DetectRules) -> Answer {
        let policy = rules.policies.get(&*finding.business).unwrap_or(&rules.policy);
        match &finding.wish {
            Wish::OptOut(subject) => self.act(finding, ConsentState::OptedOut, subject, policy),
            Wish::OptIn(subject) => self.act(finding, ConsentState::OptedIn, subject, policy),
            Wish::Help => {
                let due = finding.answerable && policy.confirmations;
                let id = finding.id(&["help", &finding.evidence.provider_message_id]);
                let reply = due.then(|| (ReplyKind::Help, finding.reply(ReplyKind::Help, id, String::new(), policy)));
                Answer { reply, ..Answer::default() }
            }
            Wish::Review => {
                let mut answer = match policy.review_suppresses {
                    true => self.act(finding, ConsentState::OptedOut, &Subject::Review, policy),
                    false => Answer::default(),
                };
                answer.reply = None;
                answer.review = Some(finding.review(policy));
                answer
            }
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
        if changed_state && finding.answerable && policy.confirmations {
            let kind = match state {
                ConsentState::OptedOut => ReplyKind::OptOutConfirmation,
                ConsentState::OptedIn => ReplyKind::OptInConfirmation,
            };
            let first = keys.first().map(|key| consent::encode_key(key).as_str().to_owned()).unwrap_or_default();
            let before = standing.first().copied().flatten().filter(|act| act.source != finding.source);
            let superseded = before.map(|act| act_name(&act)).unwrap_or_default();
            // Read again after a crash the superseded act is not known any more: the own act names the reply. The reply
            // that was computed first was never seen, its transaction having been aborted.
            let own = own_earlier.map(|act| format!("own {}", act_name(act))).unwrap_or_default();
            let id = finding.id(&[kind.as_str(), &first, &superseded, &own]);
            answer.reply = Some((kind, finding.reply(kind, id, superseded, policy)));
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

    fn write(&mut self, key: ConsentKey, act: Act, finding: &Finding) -> Consent {
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
pub(super) fn changes(state: ConsentState, before: &[Standing], after: &[Standing]) -> bool {
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

/// Senders may answer a message for five minutes: later answers need a justification (47 CFR 64.1200(a)(12)).
const REPLY_EXPIRY_MS: i64 = 5 * 60 * 1000;

impl Finding {
    fn key(&self, identity: &Identity, channel: &Channel, subject: &Subject) -> ConsentKey {
        let identity = self.hashed.map_or_else(|| identity.clone(), |key| key.hash(identity));
        ConsentKey { business: self.business.clone(), channel: channel.clone(), identity, subject: subject.clone() }
    }

    /// The record of an act on a key.
    fn record(&self, key: &ConsentKey, act: &Act) -> proto::ConsentRecord {
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

    /// Where in its body the message lies.
    pub fn index(&self) -> u32 {
        self.source.index
    }

    /// The records that are written unless something outranks them, by the message and the rules alone; all but their
    /// `changed_state`. `None` where they depend on what stands: a change of identity.
    pub fn expected(&self, rules: &DetectRules) -> Option<Vec<Consent>> {
        let policy = rules.policies.get(&*self.business).unwrap_or(&rules.policy);
        let (state, subject) = match &self.wish {
            Wish::OptOut(subject) => (ConsentState::OptedOut, subject),
            Wish::OptIn(subject) => (ConsentState::OptedIn, subject),
            Wish::Review if policy.review_suppresses => (ConsentState::OptedOut, &Subject::Review),
            Wish::Review | Wish::Help => return Some(Vec::new()),
            Wish::Moved(_) => return None,
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
    fn written_message_id(&self) -> Cow<'_, str> {
        let id = self.evidence.provider_message_id.as_str();
        match self.hashed.filter(|_| !id.is_empty()) {
            Some(key) => Cow::Owned(String::from_utf8_lossy(&key.digest_of(id)).into_owned()),
            None => Cow::Borrowed(id),
        }
    }

    /// An id that whoever computes it from the same act computes the same.
    fn id(&self, parts: &[&str]) -> String {
        let mut hash = Sha256::new();
        for part in [&*self.business, &self.sender.first().to_text()].iter().chain(parts) {
            hash.update(part.as_bytes());
            hash.update([0xff]); // no UTF-8 text holds this byte
        }
        hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
    }

    fn reply(&self, kind: ReplyKind, id: String, superseded: String, policy: &Policy) -> proto::ReplyRequest {
        let (locale, text) = policy.texts.of(kind, Some(self.evidence.language.as_str()).filter(|language| !language.is_empty()));
        let kind = match kind {
            ReplyKind::OptOutConfirmation => proto::ReplyKind::OptOutConfirmation,
            ReplyKind::OptInConfirmation => proto::ReplyKind::OptInConfirmation,
            ReplyKind::Help => proto::ReplyKind::Help,
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
        }
    }

    fn review(&self, policy: &Policy) -> proto::ReviewRequest {
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

#[cfg(test)]
mod tests;
