//! One person's story, read back from the topics: what was asked for, on what evidence, what was answered, which sends
//! went and which did not. Plain data, for whoever shows it.
//!
//! The opt-outs topic is read whole, because former names of a business and other spellings of a number lie in other
//! partitions; sends are found by reading their outcomes. The inbound topic is not needed: the evidence is in the record.

use super::readers::{Readers, Trouble};
use crate::config::Config;
use crate::domain::consent::Position;
use crate::domain::identity::Identity;
use crate::domain::key::Channel;
use crate::kafka::range::Span;
use crate::record::{Record, TopicName};
use crate::stage::detect::Excerpt;
use crate::wire::consent::{ConsentChange, decode_key, decode_value};
use crate::wire::proto;
use parking_lot::Mutex;
use prost::Message;
use serde::Serialize;

/// Whose story.
#[derive(Clone, Debug)]
pub enum Whose {
    Person(Identity),
    /// The recipient of the send with this id.
    Send(String),
    /// The person of the consent record at this position.
    Act(Position),
}

/// What is told of it: all businesses and channels where these are `None`.
#[derive(Clone, Debug, Default)]
pub struct Scope {
    pub business: Option<String>,
    pub channel: Option<Channel>,
}

/// What happened. The words are those of the `event` field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Happened {
    /// The person wrote, tapped, or was entered by somebody.
    Asked,
    /// The act was written to opt-outs: from here on it counts.
    Recorded,
    /// The key was erased.
    Erased,
    /// An answer was handed to the senders.
    Answered,
    /// The person said why they left.
    Feedback,
    /// A send went on to the senders.
    Allowed,
    /// A send was kept back.
    Suppressed,
}

/// One event, with what is known of it as pairs of a name and a text.
#[derive(Clone, Debug, Serialize)]
pub struct Event {
    /// Milliseconds since the Unix epoch; absent where nothing tells.
    pub at_ms: Option<i64>,
    pub event: Happened,
    /// `topic-partition@offset` of the record that says so.
    pub position: String,
    pub business: String,
    pub channel: String,
    #[serde(flatten)]
    pub facts: serde_json::Map<String, serde_json::Value>,
}

/// All events of one person, in order of time.
#[derive(Clone, Debug, Serialize)]
pub struct Story {
    pub person: Vec<String>,
    pub events: Vec<Event>,
}

/// Who is looked for: the identities, and the narrowed scope.
struct Sought {
    persons: Vec<Identity>,
    scope: Scope,
}

impl Sought {
    fn fits(&self, business: &str, channel: &Channel, identity: &Identity) -> bool {
        let of_business = self.scope.business.as_deref().is_none_or(|sought| sought == business);
        let on_channel = self.scope.channel.as_ref().is_none_or(|sought| channel.covers(sought));
        of_business && on_channel && self.persons.contains(identity)
    }
}

/// Reads the story. `None` where nothing at all is known of the one asked for.
pub fn read(config: &Config, whose: &Whose, scope: &Scope, threads: usize) -> Result<Option<Story>, Trouble> {
    let readers = Readers::new(config)?;
    let scope = Scope { business: scope.business.as_deref().map(|name| config.businesses.resolve(name).to_owned()), ..scope.clone() };
    let persons = match whose {
        Whose::Person(identity) => vec![identity.clone()],
        Whose::Act(position) => match person_of_act(config, &readers, *position)? {
            Some(identity) => vec![identity],
            None => return Ok(None),
        },
        Whose::Send(id) => persons_of_send(config, &readers, id, threads)?,
    };
    if persons.is_empty() {
        return Ok(None);
    }
    let mut known: Vec<Identity> = Vec::new();
    for identity in persons.iter().flat_map(|identity| config.identities_of(identity)) {
        if !known.contains(&identity) {
            known.push(identity);
        }
    }
    let sought = Sought { persons: known, scope };
    let events = Mutex::new(Vec::new());
    scan(&readers, &config.topics.opt_outs, threads, &|record| events.lock().extend(consent_events(config, &sought, record)))?;
    scan(&readers, &config.topics.replies, threads, &|record| events.lock().extend(answer(config, &sought, record)))?;
    if config.asks_why() {
        scan(&readers, &config.topics.feedback, threads, &|record| events.lock().extend(feedback(config, &sought, record)))?;
    }
    for sends in &config.sends {
        for (topic, happened) in [(&sends.allowed, Happened::Allowed), (&sends.suppressed, Happened::Suppressed)] {
            scan(&readers, topic, threads, &|record| events.lock().extend(outcome(config, &sends.input, &sought, record, happened)))?;
        }
    }
    let mut events = events.into_inner();
    if events.is_empty() {
        return Ok(None);
    }
    sort(&mut events);
    join_campaigns(&mut events);
    Ok(Some(Story { person: sought.persons.iter().map(Identity::to_text).collect(), events }))
}

/// What the records of one person on opt-outs tell of them, where `record` is one of theirs.
pub fn consents(config: &Config, identity: &Identity, scope: &Scope, record: &Record<'_>) -> Vec<Event> {
    consent_events(config, &Sought { persons: config.identities_of(identity), scope: scope.clone() }, record)
}

/// What one record of opt-outs tells that a person asked for.
pub fn asked(config: &Config, record: &Record<'_>) -> Option<Event> {
    let identity = decode_key(record.key.unwrap_or_default(), &config.businesses).ok()?.identity;
    let events = consent_events(config, &Sought { persons: vec![identity], scope: Scope::default() }, record);
    events.into_iter().find(|event| event.event == Happened::Asked)
}

/// In order of time.
pub fn sort(events: &mut [Event]) {
    events.sort_by(|one, other| (one.at_ms, one.event, &one.position).cmp(&(other.at_ms, other.event, &other.position)));
}

/// Reads a topic in parallel.
fn scan(readers: &Readers, topic: &TopicName, threads: usize, each: &(impl Fn(&Record<'_>) + Sync)) -> Result<(), Trouble> {
    readers.scan("reading", topic, &readers.extent(topic)?.spans(), threads, each)
}

fn person_of_act(config: &Config, readers: &Readers, at: Position) -> Result<Option<Identity>, Trouble> {
    let topic = &config.topics.opt_outs;
    let extent = readers.extent(topic)?;
    if at.partition >= extent.partitions() || at.offset >= extent.end(at.partition) {
        return Err(Trouble::Asked(format!("{topic} holds no record {at}: was the topic created again since?")));
    }
    if at.offset < extent.beginning(at.partition) {
        return Err(Trouble::Asked(format!("{topic}-{at} is gone by retention: the log begins at {}", extent.beginning(at.partition))));
    }
    let mut found = None;
    readers.read(topic, &[Span { partition: at.partition, from: at.offset, to: at.offset + 1 }])?.for_each(|record| {
        found = decode_key(record.key.unwrap_or_default(), &config.businesses).ok().map(|key| key.identity);
    })?;
    Ok(found)
}

fn persons_of_send(config: &Config, readers: &Readers, id: &str, threads: usize) -> Result<Vec<Identity>, Trouble> {
    let found = Mutex::new(Vec::new());
    for sends in &config.sends {
        // The outcomes hold every send, and often longer than the input does.
        for topic in [&sends.input.name, &sends.allowed, &sends.suppressed] {
            scan(readers, topic, threads, &|record| {
                if sends.input.decoder.labels(record).id.as_deref() == Some(id)
                    && let Ok(send) = sends.input.decoder.decode(record)
                {
                    let mut found = found.lock();
                    for identity in send.to.iter() {
                        if !found.contains(identity) {
                            found.push(identity.clone());
                        }
                    }
                }
            })?;
            if !found.lock().is_empty() {
                return Ok(found.into_inner());
            }
        }
    }
    Ok(found.into_inner())
}

type Facts = serde_json::Map<String, serde_json::Value>;

/// Keeps what says something.
fn fact(facts: &mut Facts, name: &str, value: &str) {
    if !value.is_empty() {
        facts.insert(name.to_owned(), value.into());
    }
}

fn consent_events(config: &Config, sought: &Sought, record: &Record<'_>) -> Vec<Event> {
    let Ok(key) = decode_key(record.key.unwrap_or_default(), &config.businesses) else { return Vec::new() };
    if !sought.fits(&key.business, &key.channel, &key.identity) {
        return Vec::new();
    }
    let at = Position { partition: record.partition, offset: record.offset };
    let event = |at_ms, event, facts| Event {
        at_ms,
        event,
        position: record.coordinates().to_string(),
        business: key.business.to_string(),
        channel: key.channel.as_str().to_owned(),
        facts,
    };
    let mut facts = Facts::new();
    fact(&mut facts, "subject", &key.subject.to_string());
    let act = match decode_value(record.value, record.timestamp_ms, at) {
        ConsentChange::Erasure => return vec![event(record.timestamp_ms, Happened::Erased, facts)],
        ConsentChange::Unreadable(act) => {
            fact(&mut facts, "note", "the value cannot be read and counts as an opt-out");
            act
        }
        ConsentChange::Act { act, .. } => act,
    };
    let consent = proto::ConsentRecord::decode(record.value.unwrap_or_default()).unwrap_or_default();
    fact(&mut facts, "state", act.state.as_str());
    fact(&mut facts, "identity", &key.identity.to_text());
    let recorded = event(record.timestamp_ms, Happened::Recorded, facts.clone());
    let evidence = consent.evidence.clone().unwrap_or_default();
    fact(&mut facts, "cause", &consent.cause().as_str_name().to_lowercase().replace('_', "-"));
    fact(&mut facts, "rule", &evidence.rule);
    fact(&mut facts, "confidence", &evidence.confidence);
    fact(&mut facts, "language", &evidence.language);
    fact(&mut facts, "lexicon", &evidence.lexicon_version);
    fact(&mut facts, "rules", &evidence.rules_version);
    fact(&mut facts, "country_rules", &evidence.country_rules);
    fact(&mut facts, "message_id", &evidence.provider_message_id);
    fact(&mut facts, "receiving_number", &evidence.receiving_number);
    fact(&mut facts, "actor", &evidence.actor);
    fact(&mut facts, "reason", &evidence.reason);
    fact(&mut facts, "proof", &evidence.proof);
    fact(&mut facts, "provenance", &evidence.provenance);
    if evidence.list_line > 0 {
        fact(&mut facts, "list", &format!("sha256 {} line {}", evidence.list_sha256, evidence.list_line));
    }
    fact(&mut facts, "feedback", &consent.feedback_reason);
    if let Some(source) = &evidence.source {
        fact(&mut facts, "source", &format!("{}-{}@{}", source.topic, source.partition, source.offset));
    }
    fact(&mut facts, "text", &evidence.excerpt);
    let policy = config.policies.get(&*key.business).unwrap_or(&config.policy);
    fact(&mut facts, "matched", matched(&evidence, policy.excerpt).unwrap_or_default());
    vec![event(Some(act.occurred_at.millis()), Happened::Asked, facts), recorded]
}

/// The matched words within the excerpt.
fn matched(evidence: &proto::Evidence, policy: Excerpt) -> Option<&str> {
    let (start, end) = (evidence.span_start as usize, evidence.span_end as usize);
    // A short excerpt begins a little before the words, at the beginning of a character.
    let begin = match policy {
        Excerpt::Full => 0,
        Excerpt::Around => start.saturating_sub(crate::stage::detect::AROUND_BYTES),
        Excerpt::None => return None,
    };
    let backs = 0..4.min(begin + 1);
    backs.filter_map(|back| evidence.excerpt.get(start - (begin - back)..end - (begin - back))).find(|words| !words.is_empty())
}

fn answer(config: &Config, sought: &Sought, record: &Record<'_>) -> Option<Event> {
    let reply = proto::ReplyRequest::decode(record.value?).ok()?;
    let business = config.businesses.resolve(&reply.business).to_owned();
    let channel = Channel::parse(&reply.channel)?;
    if !sought.fits(&business, &channel, &Identity::parse(&reply.to).ok()?) {
        return None;
    }
    let mut facts = Facts::new();
    fact(&mut facts, "kind", &reply.kind().as_str_name().to_lowercase().replace('_', "-"));
    fact(&mut facts, "text", &reply.text);
    fact(&mut facts, "answers", &reply.source);
    let position = record.coordinates().to_string();
    Some(Event { at_ms: record.timestamp_ms, event: Happened::Answered, position, business, channel: channel.as_str().to_owned(), facts })
}

fn feedback(config: &Config, sought: &Sought, record: &Record<'_>) -> Option<Event> {
    let key = decode_key(record.key.unwrap_or_default(), &config.businesses).ok()?;
    let said = proto::FeedbackRecord::decode(record.value?).ok()?;
    if !sought.fits(&key.business, &key.channel, &key.identity) {
        return None;
    }
    let mut facts = Facts::new();
    fact(&mut facts, "feedback", &said.reason);
    fact(&mut facts, "subject", &key.subject.to_string());
    fact(&mut facts, "text", &said.text);
    fact(&mut facts, "source", &said.source);
    let (business, channel) = (key.business.to_string(), key.channel.as_str().to_owned());
    let position = record.coordinates().to_string();
    Some(Event { at_ms: Some(said.occurred_at_ms), event: Happened::Feedback, position, business, channel, facts })
}

/// Each reason to leave gets the campaign of the last marketing that had gone to the person.
fn join_campaigns(events: &mut [Event]) {
    let mut last: Option<serde_json::Value> = None;
    for event in events {
        let is_marketing = event.facts.get("category").is_some_and(|category| category == "marketing");
        if event.event == Happened::Allowed && is_marketing {
            last = event.facts.get("campaign").cloned();
        }
        if let Some(campaign) = last.as_ref().filter(|_| event.event == Happened::Feedback) {
            event.facts.insert("campaign".to_owned(), campaign.clone());
        }
    }
}

fn outcome(config: &Config, input: &crate::stage::filter::SendsTopic, sought: &Sought, record: &Record<'_>, event: Happened) -> Option<Event> {
    let send = input.decoder.decode(record).ok()?;
    let business = config.businesses.of_send(&send.hints()).ok()?;
    let channel = send.channel.as_ref().unwrap_or(&config.default_channel);
    if !send.to.iter().any(|identity| sought.fits(business, channel, identity)) {
        return None;
    }
    let labels = input.decoder.labels(record);
    let mut facts = Facts::new();
    fact(&mut facts, "send", labels.id.as_deref().unwrap_or_default());
    fact(&mut facts, "campaign", labels.campaign.as_deref().unwrap_or_default());
    fact(&mut facts, "category", if config.categories.is_exempt(&send) { "exempt" } else { "marketing" });
    let headers = [
        ("reason", "stopgate-reason"),
        ("cause", "stopgate-cause"),
        ("as_of", "stopgate-as-of"),
        ("source", "stopgate-source"),
        ("guidance", "stopgate-guidance"),
    ];
    for (name, header) in headers {
        fact(&mut facts, name, record.header(header).and_then(|value| std::str::from_utf8(value).ok()).unwrap_or_default());
    }
    let position = record.coordinates().to_string();
    let (business, channel) = (business.to_owned(), channel.as_str().to_owned());
    Some(Event { at_ms: record.timestamp_ms, event, position, business, channel, facts })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_matched_words_are_found_in_a_short_excerpt_too() {
        let text = format!("{}é please STOP now", "x".repeat(90));
        let start = text.find("STOP").expect("there");
        let evidence = |excerpt: &str| proto::Evidence {
            span_start: start as u32,
            span_end: start as u32 + 4,
            excerpt: excerpt.to_owned(),
            ..proto::Evidence::default()
        };
        assert_eq!(matched(&evidence(&text), Excerpt::Full), Some("STOP"));
        let short = text.get(start - crate::stage::detect::AROUND_BYTES..).expect("a boundary");
        assert_eq!(matched(&evidence(short), Excerpt::Around), Some("STOP"));
        assert_eq!(matched(&evidence(""), Excerpt::None), None);
    }
}
