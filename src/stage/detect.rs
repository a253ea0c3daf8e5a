//! Stage 1: inbound record → consent records, replies, reviews, dead letters.
//!
//! In two halves. [`Detector::read`] (here) follows from the record and the rules alone: what each message asks for, and the
//! evidence. [`Ledger::answer`] (`ledger`, `conversation`) compares that with the view and with what this worker has written and the view has not
//! applied yet; only `changed_state`, replies and reviews depend on it.

pub mod conversation;
mod finding;
mod ledger;

pub(in crate::stage) use ledger::changes;
pub use ledger::{Answer, Consent, Ledger, Overlay};

use crate::domain::business::Businesses;
use crate::domain::classify::{self, Button, Class, Confidence, Lexicon, Scope};
use crate::domain::consent::{ConsentState, Source, safe_time};
use crate::domain::identity::{Identities, Identity, IdentityKey};
use crate::domain::key::{Channel, ConsentKey, Subject};
use crate::domain::message::{Content, InboundMessage, Preference};
use crate::domain::phone::Phone;
use crate::domain::question::{self, Meant, Program, Reason};
use crate::domain::reply::ReplyTexts;
use crate::domain::rules::{InForce, RuleBook, StopScope};
use crate::domain::time::Timestamp;
use crate::record::{Coordinates, Record, TopicName};
use crate::wire::inbound::{self, InboundFormat};
use crate::wire::{DecodeError, consent, proto};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
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
    /// People who left are asked why: the reasons to choose from.
    pub feedback: Option<Vec<Reason>>,
    /// People who left are asked what they meant, where there are programs: for so many milliseconds an answer counts.
    pub clarification_ms: Option<i64>,
    /// What can be stopped by itself.
    pub programs: Vec<Program>,
}

impl Policy {
    /// Whether people are asked anything.
    fn asks(&self) -> bool {
        self.feedback.is_some() || (self.clarification_ms.is_some() && !self.programs.is_empty())
    }

    fn answers_of_choice(&self, payload: &str) -> Answers {
        let reason = self.feedback.as_deref().and_then(|reasons| question::chosen_reason(reasons, payload)).map(str::to_owned);
        Answers { reason, meant: question::chosen_meaning(&self.programs, payload) }
    }

    /// A choice in words, or a reason in the person's own; what may be a wish to stop is no answer to what was meant.
    fn answers_of_text(&self, text: &str, class: Class) -> Option<Answers> {
        let chosen = self.answers_of_choice(text);
        let own_words = self.feedback.is_some() && question::is_own_words(text);
        let reason = chosen.reason.or_else(|| own_words.then(|| question::OWN_WORDS.to_owned()));
        let meant = chosen.meant.filter(|_| class == Class::None);
        (reason.is_some() || meant.is_some()).then_some(Answers { reason, meant })
    }

    /// The program whose own number was written to.
    fn program_of(&self, number: Option<&str>) -> Option<&str> {
        let number = Phone::parse(number?)?;
        let is_of = |program: &&Program| program.numbers.iter().any(|own| Phone::parse(own).is_some_and(|own| own == number));
        self.programs.iter().find(is_of).map(|program| program.id.as_str())
    }
}

impl Answers {
    fn is_own_words(&self) -> bool {
        self.reason.as_deref() == Some(question::OWN_WORDS) && self.meant.is_none()
    }
}

/// What detection rests on beside the view.
#[derive(Clone)]
pub struct DetectRules {
    pub lexicon: Arc<Lexicon>,
    /// Lexicons of businesses that changed words, by resolved name.
    pub lexicons: BTreeMap<String, Arc<Lexicon>>,
    pub businesses: Arc<Businesses>,
    /// What holds by country.
    pub book: Arc<RuleBook>,
    pub formats: Vec<(TopicName, InboundFormat)>,
    pub policy: Policy,
    /// Policies of businesses that differ, by resolved name.
    pub policies: BTreeMap<String, Policy>,
    pub rules_version: String,
    /// Where identities are written hashed: the key.
    pub hashed: Option<IdentityKey>,
}

impl DetectRules {
    /// What a business wants done.
    pub fn policy(&self, business: &str) -> &Policy {
        self.policies.get(business).unwrap_or(&self.policy)
    }
}

/// What a message asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Wish {
    OptOut(Subject),
    OptIn(Subject),
    Help,
    Review,
    /// Nothing by itself: it may answer what the sender was asked.
    Answer,
    /// The sender is known under these identities now.
    Moved(Identities),
}

/// What a message may answer, if it was asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Answers {
    /// Why the person left, by the id of the reason.
    reason: Option<String>,
    /// What the person meant to stop.
    meant: Option<Meant>,
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
    /// An opt-out that does not say how far it reaches.
    bare: bool,
    answers: Option<Answers>,
    rules: InForce,
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
    /// Words that opt out in some country.
    country_words: BTreeSet<String>,
}

impl Detector {
    /// A detector under these rules.
    pub fn new(rules: DetectRules) -> Self {
        Self { country_words: rules.book.words().map(str::to_owned).collect(), rules }
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
        let asking = business.as_deref().map(|name| self.policy(name)).filter(|policy| policy.asks());
        let mut evidence = proto::Evidence::default();
        let Some(mut heard) = hear(lexicon, asking, message.content, &mut evidence) else { return Ok((Class::None, None)) };
        let word = heard.is_open().then(|| heard.text.trim().to_lowercase()).filter(|word| self.country_words.contains(word));
        if heard.wish.is_none() && heard.answers.is_none() && word.is_none() {
            return Ok((heard.class, None));
        }
        let recorded = record.timestamp_ms.and_then(Timestamp::from_millis);
        let at = |state| safe_time(state, message.occurred_at, recorded);
        let name = business.as_deref().unwrap_or_default();
        let rules = self.rules.book.in_force(name, message.sender.iter(), at(ConsentState::OptedOut));
        if word.is_some_and(|word| rules.words.contains(&word)) {
            heard.take_word(&mut evidence);
        }
        let Some(wish) = heard.wish.or(heard.answers.is_some().then_some(Wish::Answer)) else { return Ok((heard.class, None)) };
        let state = match wish {
            // An answer may open what is shut, and so counts no later than an opt-in would.
            Wish::OptIn(_) | Wish::Answer => ConsentState::OptedIn,
            Wish::OptOut(_) | Wish::Help | Wish::Review | Wish::Moved(_) => ConsentState::OptedOut,
        };
        let occurred_at = at(state);
        let Heard { class, cause, text, bare, answers, answerable, .. } = heard;
        let business = match business.ok_or(DecodeError::NoBusiness).and_then(|business| self.check(business, &message.channel, &message.sender))
        {
            Ok(business) => business,
            // What may answer something and cannot be written of answers nothing.
            Err(_) if wish == Wish::Answer => return Ok((class, None)),
            Err(error) => return Err(error),
        };
        let policy = self.policy(&business);
        let wish = match wish {
            Wish::OptOut(Subject::Marketing) if bare && rules.stop_scope == StopScope::Program => {
                let program = policy.program_of(message.business.number.as_deref()).and_then(Subject::program);
                Wish::OptOut(program.unwrap_or(Subject::Marketing))
            }
            wish => wish,
        };
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
        evidence.country_rules.clone_from(&rules.version);
        evidence.recorded_at_ms = recorded.map_or(0, Timestamp::millis);
        let kept = if self.rules.hashed.is_some() { Excerpt::None } else { policy.excerpt };
        evidence.excerpt = excerpt(&text, evidence.span_start, evidence.span_end, kept);
        let finding = Finding {
            wish,
            channel: if policy.cross_channel || rules.stop_scope == StopScope::CrossChannel { Channel::Any } else { message.channel.clone() },
            arrived_on: message.channel,
            business,
            sender: message.sender,
            hashed: self.rules.hashed,
            occurred_at,
            source: Source::new(record.topic, record.partition, record.offset, message.index),
            coordinates: record.coordinates(),
            cause,
            evidence,
            text,
            answerable: answerable && !message.confirmed_by_provider,
            bare,
            answers,
            rules,
        };
        Ok((class, Some(finding)))
    }

    /// The business, if what is written of the message can be written and read back. A key that could not would close the fence of
    /// every filter: such a message goes to a person.
    fn check(&self, business: Box<str>, channel: &Channel, sender: &Identities) -> Result<Box<str>, DecodeError> {
        let fits = business.len() <= MAX_NAME_BYTES && sender.iter().count() <= MAX_IDENTITIES && channel.as_str().len() <= MAX_NAME_BYTES;
        if !fits {
            return Err(DecodeError::TooLarge);
        }
        let reads_back = sender.iter().all(|identity| self.reads_back(&business, channel, identity));
        if reads_back { Ok(business) } else { Err(DecodeError::NoSender) }
    }

    fn reads_back(&self, business: &str, channel: &Channel, identity: &Identity) -> bool {
        let key = ConsentKey { business: business.into(), channel: channel.clone(), identity: identity.clone(), subject: Subject::Marketing };
        consent::decode_key(consent::encode_key(&key).as_bytes(), &self.rules.businesses) == Ok(key)
    }

    fn policy(&self, business: &str) -> &Policy {
        self.rules.policy(business)
    }
}

/// What a message says by itself, before it is known what rules it meets.
struct Heard {
    class: Class,
    wish: Option<Wish>,
    cause: proto::ConsentCause,
    text: String,
    /// A person wrote: replies may be due.
    answerable: bool,
    bare: bool,
    answers: Option<Answers>,
}

impl Heard {
    /// Whether a word of a country may still decide.
    fn is_open(&self) -> bool {
        self.answerable && matches!(self.wish, None | Some(Wish::Review)) && self.text.len() <= MAX_WORD_BYTES
    }

    /// The whole text is a word by which people of this country leave.
    fn take_word(&mut self, evidence: &mut proto::Evidence) {
        *evidence = proto::Evidence {
            rule: "country.word".to_owned(),
            confidence: Confidence::Exact.as_str().to_owned(),
            span_end: u32::try_from(self.text.len()).unwrap_or_default(),
            ..proto::Evidence::default()
        };
        (self.class, self.wish, self.cause) = (Class::OptOut, Some(Wish::OptOut(Subject::Marketing)), proto::ConsentCause::Keyword);
        (self.bare, self.answers) = (true, None);
    }
}

/// What a message's content says by itself; `asking`: the policy, where people are asked something. `None`: nothing.
fn hear(lexicon: &Lexicon, asking: Option<&Policy>, content: Content, evidence: &mut proto::Evidence) -> Option<Heard> {
    let told = |class, wish, cause| Heard { class, wish, cause, text: String::new(), answerable: false, bare: false, answers: None };
    Some(match content {
        Content::Nothing => return None,
        Content::Text { text, edited, forwarded } => {
            let mut bare = false;
            let (class, wish, cause) = classify_with(lexicon, Some(&text), None, evidence, &mut bare);
            let asking = asking.filter(|_| !edited && !forwarded && matches!(class, Class::None | Class::Review));
            let answers = asking.and_then(|policy| policy.answers_of_text(&text, class));
            // An edit may ask to stop; it never undoes a stop.
            let wish = wish.filter(|wish| !(edited && matches!(wish, Wish::OptIn(_))));
            // What somebody else wrote and the person passed on is not their own wish, but may be meant as one.
            let (class, wish, cause) = match (forwarded, wish) {
                (true, Some(Wish::OptOut(_) | Wish::Review)) => (Class::Review, Some(Wish::Review), proto::ConsentCause::Review),
                (true, Some(Wish::OptIn(_) | Wish::Help | Wish::Answer | Wish::Moved(_)) | None) => (Class::None, None, cause),
                (false, wish) => (class, wish, cause),
            };
            Heard { text, answerable: true, bare, answers, ..told(class, wish, cause) }
        }
        Content::Button { payload: Some(payload), title } if question::is_choice(&payload) => {
            // Our own question's: it is never read as anything else.
            let answers = asking.map(|policy| policy.answers_of_choice(&payload));
            let text = title.unwrap_or_default();
            Heard { text, answerable: true, answers, ..told(Class::None, None, proto::ConsentCause::Button) }
        }
        Content::Button { payload, title } => {
            let mut bare = false;
            let button = Button { payload: payload.as_deref(), title: title.as_deref() };
            let (class, wish, _) = classify_with(lexicon, None, Some(button), evidence, &mut bare);
            // Some providers hand on the title alone.
            let asking = asking.filter(|_| matches!(class, Class::None | Class::Review));
            let answers = asking.and_then(|policy| policy.answers_of_text(title.as_deref()?, class)).filter(|answers| !answers.is_own_words());
            let text = title.or(payload).unwrap_or_default();
            Heard { text, answerable: true, bare, answers, ..told(class, wish, proto::ConsentCause::Button) }
        }
        Content::Preference(preference) => {
            let (class, wish) = match preference {
                Preference::Stop => (Class::OptOut, Some(Wish::OptOut(Subject::Marketing))),
                Preference::Resume => (Class::OptIn, Some(Wish::OptIn(Subject::Marketing))),
                Preference::Help => (Class::Help, None),
            };
            "preference".clone_into(&mut evidence.rule);
            told(class, wish, proto::ConsentCause::ChannelPreference)
        }
        Content::ProviderOptOut => {
            "provider-error".clone_into(&mut evidence.rule);
            told(Class::OptOut, Some(Wish::OptOut(Subject::Marketing)), proto::ConsentCause::ProviderError)
        }
        Content::IdentityChange { now } => told(Class::None, Some(Wish::Moved(now)), proto::ConsentCause::IdentityChange),
    })
}

/// The class of a message, what it asks for, and what kind of cause that is; the evidence is filled in.
fn classify_with(
    lexicon: &Lexicon,
    text: Option<&str>,
    button: Option<Button<'_>>,
    evidence: &mut proto::Evidence,
    bare: &mut bool,
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
    *bare = found.scope.is_none();
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

/// Longest id or name that evidence keeps, and most identities of one sender: what is written must fit its topic, and
/// no provider comes near.
const MAX_NAME_BYTES: usize = 512;
const MAX_IDENTITIES: usize = 100;
/// Longest word that a country may have of its own.
const MAX_WORD_BYTES: usize = 32;

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

#[cfg(test)]
mod tests;
