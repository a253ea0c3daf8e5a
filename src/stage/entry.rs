//! What somebody enters for a person, by hand or from a list → a consent record, or why none is written.
//!
//! Nothing here weakens a state on a mere say-so: an opt-in needs proof. An act of the future is refused, and one that
//! would not stand over what stands already is not written.

use super::detect::changes;
use crate::domain::business::Businesses;
use crate::domain::consent::{Act, ConsentState, Position, Source};
use crate::domain::decide::{Question, Standing};
use crate::domain::identity::{Identity, IdentityKey};
use crate::domain::key::{Channel, ConsentKey, Subject};
use crate::domain::time::Timestamp;
use crate::domain::view::ConsentView;
use crate::wire::list::Given;
use crate::wire::{proto, when};

/// Who enters it, and on what grounds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grounds {
    pub actor: String,
    pub reason: String,
    /// What shows that the person wished it; empty: nothing does.
    pub proof: String,
    /// The list it stands in.
    pub list: Option<ListPlace>,
}

/// A line of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListPlace {
    /// In hexadecimal digits.
    pub sha256: String,
    /// From 1.
    pub line: u64,
    /// Where the list itself says that the act came from.
    pub provenance: String,
}

/// One act to be entered.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    pub key: ConsentKey,
    pub state: ConsentState,
    pub occurred_at: Timestamp,
    pub grounds: Grounds,
}

/// What a row takes from elsewhere where it does not say.
#[derive(Clone, Debug)]
pub struct Defaults<'a> {
    pub businesses: &'a Businesses,
    pub business: Option<&'a str>,
    pub channel: &'a Channel,
    pub subject: &'a Subject,
    pub occurred_at: Timestamp,
    /// Where identities are written hashed: the key.
    pub hashed: Option<IdentityKey>,
}

/// Why an entry is refused. The texts name no content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    #[error("no identity")]
    NoIdentity,
    #[error("no identity that could be looked up: expected a number with + and country code, or bsuid:, email: or ext: and a value")]
    NotAnIdentity,
    #[error("no business: name one, or give --business")]
    NoBusiness,
    #[error("a business that no [[business]] of the configuration names")]
    UnlistedBusiness,
    #[error("no channel")]
    NotAChannel,
    #[error("no subject: expected marketing, all, review or program:ID")]
    NotASubject,
    #[error("no state: expected opted-out or opted-in")]
    NotAState,
    #[error("no time: expected RFC 3339 with an offset, such as 2026-11-01T10:00:00Z, or Unix seconds")]
    NotATime,
    #[error("its time lies in the future")]
    Future,
    #[error("an opt-in needs proof that the person wished it: give --proof")]
    NeedsProof,
}

/// What is to be done about an entry.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// It is to be written.
    Write(Box<proto::ConsentRecord>),
    /// Nothing is: this act stands over it, or is it.
    Stands(Act),
}

/// Longest text that evidence keeps of what was entered, in bytes.
const MAX_TEXT_BYTES: usize = 1024;

impl Entry {
    /// The entry that a row means.
    pub fn of(given: &Given, defaults: &Defaults<'_>, grounds: Grounds) -> Result<Self, EntryError> {
        let identity = given.identity.as_deref().ok_or(EntryError::NoIdentity)?;
        let identity = Identity::recognise(identity).map_err(|_| EntryError::NotAnIdentity)?;
        let identity = defaults.hashed.map_or_else(|| identity.clone(), |key| key.hash(&identity));
        let named = given.business.as_deref().or(defaults.business).ok_or(EntryError::NoBusiness)?;
        let business = match defaults.businesses.listed(named) {
            Some(listed) => listed,
            None if defaults.businesses.is_empty() => named,
            None => return Err(EntryError::UnlistedBusiness),
        };
        let channel = given.channel.as_deref().map(|name| Channel::parse(name).ok_or(EntryError::NotAChannel)).transpose()?;
        let subject = given.subject.as_deref().map(|name| Subject::parse(name).ok_or(EntryError::NotASubject)).transpose()?;
        let occurred_at = given.occurred_at.as_deref().map(|time| when::from_text(time).ok_or(EntryError::NotATime)).transpose()?;
        Ok(Self {
            key: ConsentKey {
                business: business.into(),
                channel: channel.unwrap_or_else(|| defaults.channel.clone()),
                identity,
                subject: subject.unwrap_or_else(|| defaults.subject.clone()),
            },
            state: given.state.as_deref().map_or(Ok(ConsentState::OptedOut), state)?,
            occurred_at: occurred_at.unwrap_or(defaults.occurred_at),
            grounds,
        })
    }

    /// What is to be done, as far as this view knows. It must know all that stands for this person.
    pub fn verdict(&self, view: &ConsentView, now: Timestamp) -> Result<Verdict, EntryError> {
        if self.occurred_at > now {
            return Err(EntryError::Future);
        }
        let act = Act {
            state: self.state,
            occurred_at: self.occurred_at,
            source: Source::default(),
            cause: Position { partition: 0, offset: 0 },
            changed_state: false,
        };
        if let Some(standing) = standing(view, &self.key).filter(|standing| !act.supersedes(standing)) {
            return Ok(Verdict::Stands(standing));
        }
        if self.state == ConsentState::OptedIn && self.grounds.proof.is_empty() {
            return Err(EntryError::NeedsProof);
        }
        let changed = changes(self.state, &self.standings(view, None), &self.standings(view, Some(act)));
        Ok(Verdict::Write(Box::new(self.record(changed))))
    }

    /// What stands about the subject, and for an opt-in about every subject that it covers; with one more act or without.
    fn standings(&self, view: &ConsentView, with: Option<Act>) -> Vec<Standing> {
        let prints = view.print_key();
        let (person, own) = prints.of_key(&self.key);
        let about = |subject: &Subject| {
            let question = Question::about(prints, &self.key.channel, subject);
            question.judge(|slot| with.filter(|_| slot == own).or_else(|| view.standing(person, slot)))
        };
        let mut standings = vec![about(&self.key.subject)];
        if self.state == ConsentState::OptedIn {
            let programs = view.programs(&self.key.business).filter_map(Subject::program);
            standings.extend(programs.chain([Subject::Marketing]).filter(|other| self.key.subject.covers(other)).map(|other| about(&other)));
        }
        standings
    }

    fn record(&self, changed_state: bool) -> proto::ConsentRecord {
        let list = self.grounds.list.as_ref();
        let spelt = match &self.key.identity {
            Identity::Phone(phone) if phone.as_spelt() != phone.as_str() => phone.as_spelt().to_owned(),
            Identity::Phone(_) | Identity::Bsuid(_) | Identity::Email(_) | Identity::Ext(_) | Identity::Hash(_) => String::new(),
        };
        proto::ConsentRecord {
            state: proto::ConsentState::from(self.state).into(),
            occurred_at_ms: self.occurred_at.millis(),
            cause: if list.is_some() { proto::ConsentCause::Import } else { proto::ConsentCause::Admin }.into(),
            evidence: Some(proto::Evidence {
                actor: cut(&self.grounds.actor),
                reason: cut(&self.grounds.reason),
                proof: cut(&self.grounds.proof),
                raw_identity: spelt,
                provenance: list.map(|list| cut(&list.provenance)).unwrap_or_default(),
                list_sha256: list.map(|list| list.sha256.clone()).unwrap_or_default(),
                list_line: list.map(|list| list.line).unwrap_or_default(),
                ..proto::Evidence::default()
            }),
            changed_state,
            feedback_reason: String::new(),
        }
    }
}

/// The act that stands on exactly this key.
pub fn standing(view: &ConsentView, key: &ConsentKey) -> Option<Act> {
    let (person, slot) = view.print_key().of_key(key);
    view.standing(person, slot)
}

fn state(word: &str) -> Result<ConsentState, EntryError> {
    match word.to_lowercase().replace(['_', ' '], "-").as_str() {
        "opted-out" | "opt-out" | "out" | "unsubscribed" => Ok(ConsentState::OptedOut),
        "opted-in" | "opt-in" | "in" | "subscribed" => Ok(ConsentState::OptedIn),
        _ => Err(EntryError::NotAState),
    }
}

fn cut(text: &str) -> String {
    let end = (0..=text.len().min(MAX_TEXT_BYTES)).rev().find(|end| text.is_char_boundary(*end)).unwrap_or_default();
    text.get(..end).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::suppression::PrintKey;

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_millis(millis).expect("in range")
    }

    fn entry(state: ConsentState, subject: Subject, occurred_at: i64, proof: &str) -> Entry {
        Entry {
            key: ConsentKey {
                business: "acme".into(),
                channel: Channel::Whatsapp,
                identity: Identity::parse("+551112345678").expect("an identity"),
                subject,
            },
            state,
            occurred_at: at(occurred_at),
            grounds: Grounds { actor: "ada".into(), proof: proof.into(), ..Grounds::default() },
        }
    }

    fn apply(view: &mut ConsentView, entry: &Entry) -> bool {
        let Ok(Verdict::Write(record)) = entry.verdict(view, at(1000)) else { panic!("nothing to write") };
        let act = Act {
            state: entry.state,
            occurred_at: entry.occurred_at,
            source: Source::default(),
            cause: Position { partition: 0, offset: 1 },
            changed_state: record.changed_state,
        };
        view.apply(&entry.key, act, "");
        record.changed_state
    }

    use ConsentState::{OptedIn, OptedOut};

    #[test]
    fn nothing_is_written_that_would_not_stand() {
        let mut view = ConsentView::new(PrintKey::new(1, 2), 1);
        let out = entry(OptedOut, Subject::Marketing, 500, "");
        assert!(apply(&mut view, &out));
        assert!(matches!(out.verdict(&view, at(1000)), Ok(Verdict::Stands(act)) if act.state == OptedOut));
        let late = entry(OptedIn, Subject::Marketing, 400, "letter");
        assert!(matches!(late.verdict(&view, at(1000)), Ok(Verdict::Stands(act)) if act.state == OptedOut));
        assert!(!apply(&mut view, &entry(OptedOut, Subject::Marketing, 600, "")), "a later act is written, and changes nothing");
    }

    #[test]
    fn an_opt_in_needs_proof_unless_it_stands_already() {
        let mut view = ConsentView::new(PrintKey::new(1, 2), 1);
        assert_eq!(entry(OptedIn, Subject::Marketing, 500, "").verdict(&view, at(1000)), Err(EntryError::NeedsProof));
        assert!(apply(&mut view, &entry(OptedOut, Subject::Program("x".into()), 400, "")));
        assert!(apply(&mut view, &entry(OptedIn, Subject::Marketing, 500, "letter")), "it ends what it covers");
        assert!(matches!(entry(OptedIn, Subject::Marketing, 500, "").verdict(&view, at(1000)), Ok(Verdict::Stands(_))));
    }

    #[test]
    fn the_future_is_refused_and_the_evidence_says_who_and_where() {
        let view = ConsentView::new(PrintKey::new(1, 2), 1);
        assert_eq!(entry(OptedOut, Subject::All, 1001, "").verdict(&view, at(1000)), Err(EntryError::Future));
        let mut listed = entry(OptedOut, Subject::All, 900, "");
        let place = ListPlace { sha256: "ab".into(), line: 7, provenance: "é".repeat(2000) };
        listed.grounds.list = Some(place);
        let Ok(Verdict::Write(record)) = listed.verdict(&view, at(1000)) else { panic!("nothing to write") };
        let evidence = record.evidence.clone().expect("evidence");
        assert_eq!((record.cause(), evidence.actor.as_str(), evidence.list_line), (proto::ConsentCause::Import, "ada", 7));
        assert_eq!((evidence.raw_identity.as_str(), evidence.provenance.len()), ("551112345678", MAX_TEXT_BYTES));
    }

    #[test]
    fn rows_say_what_they_say_and_take_the_rest_from_the_defaults() {
        let businesses = Businesses::default();
        let defaults = Defaults {
            businesses: &businesses,
            business: Some("acme"),
            channel: &Channel::Sms,
            subject: &Subject::Marketing,
            occurred_at: at(77),
            hashed: None,
        };
        let read = |change: &dyn Fn(&mut Given)| {
            let mut given = Given { identity: Some("+12025550143".into()), ..Given::default() };
            change(&mut given);
            Entry::of(&given, &defaults, Grounds::default())
        };
        let plain = read(&|_| ()).expect("read");
        assert_eq!((&*plain.key.business, &plain.key.channel, plain.state, plain.occurred_at), ("acme", &Channel::Sms, OptedOut, at(77)));
        let told = read(&|given| {
            given.state = Some("OPTED_IN".into());
            given.subject = Some("program:x".into());
            given.occurred_at = Some("2026-11-01T10:00:00Z".into());
        });
        let told = told.expect("read");
        assert_eq!((told.state, told.key.subject, told.occurred_at), (OptedIn, Subject::Program("x".into()), at(1_793_527_200_000)));
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(read(&|given| given.identity = None), Err(EntryError::NoIdentity));
        assert_eq!(read(&|given| given.identity = some("12ab")), Err(EntryError::NotAnIdentity));
        assert_eq!(read(&|given| given.state = some("maybe")), Err(EntryError::NotAState));
        assert_eq!(read(&|given| given.subject = some("everything")), Err(EntryError::NotASubject));
        assert_eq!(read(&|given| given.occurred_at = some("yesterday")), Err(EntryError::NotATime));
    }
}
