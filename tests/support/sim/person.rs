//! Who takes part, what they ask for, and an account of it that shares no code with the program: the judge.

use prost::Message as _;
use std::collections::BTreeMap;
use stopgate::wire::proto;

use super::log::Record;

/// The simulation's own remark on a record. The program under test never sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    Nothing,
    /// An inbound message: which acts it must come to, and who sent it.
    Message {
        id: u64,
        person: usize,
        acts: Vec<(Key, Act)>,
    },
    /// A send: to whom, whether its category is exempt, and its expiry.
    Send {
        person: usize,
        exempt: bool,
        expires_at_ms: Option<i64>,
    },
    /// What the filter wrote for a send: its offset, and when its batch was received.
    Outcome {
        source: u64,
        received: u64,
    },
    /// A decision block, and when its batch was received.
    Block {
        received: u64,
    },
    /// A confirmation, and the place of the message that it answers.
    Reply {
        partition: u32,
        offset: u64,
    },
}

/// Persons whose consent only their own messages change; the others' is written by third parties too, and they are
/// known under two identities.
pub const OWN: usize = 4;
pub const PERSONS: usize = 7;

/// Under which identities a person is known, in canonical text.
pub fn identities(person: usize) -> Vec<String> {
    let phone = format!("phone:+1202555010{person}");
    if person < OWN { vec![phone] } else { vec![phone, format!("bsuid:US.100{person}")] }
}

/// A consent key, in the parts of its text: channel, identity, subject.
pub type Key = (String, String, String);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Act {
    pub at_ms: i64,
    pub out: bool,
    /// Where its message lies: whether it has one, partition and offset.
    pub source: (bool, u32, u64),
}

/// What a record of opt-outs says. `None` where its key cannot be read.
pub fn read(record: &Record) -> Option<(Key, Act)> {
    let key = String::from_utf8(record.key.clone()?).ok()?;
    let [_, channel, identity, subject] = key.split('|').collect::<Vec<_>>().try_into().ok()?;
    let key = (channel.to_owned(), identity.to_owned(), subject.to_owned());
    let silent = Act { at_ms: record.timestamp_ms, out: true, source: (false, 0, 0) };
    let Ok(value) = proto::ConsentRecord::decode(record.value.as_deref()?) else { return Some((key, silent)) };
    let out = value.state == i32::from(proto::ConsentState::OptedOut);
    let said = if value.occurred_at_ms == 0 { record.timestamp_ms } else { value.occurred_at_ms };
    let at_ms = if out { said } else { said.min(record.timestamp_ms) };
    let source = value.evidence.and_then(|evidence| evidence.source).map_or((false, 0, 0), |at| (true, at.partition, at.offset));
    Some((key, Act { at_ms, out, source }))
}

/// What stands for every key.
#[derive(Clone, Debug, Default)]
pub struct Folded(pub BTreeMap<Key, Act>);

impl Folded {
    /// The greater act stands.
    pub fn apply(&mut self, key: Key, act: Act) {
        let standing = self.0.entry(key).or_insert(act);
        *standing = act.max(*standing);
    }

    /// Whether anything stands against a send to a person.
    pub fn suppresses(&self, person: usize, exempt: bool) -> bool {
        let subjects: &[&str] = if exempt { &["all"] } else { &["all", "marketing", "program:promotions", "review"] };
        identities(person).iter().any(|identity| {
            let act = |channel: &str, subject: &str| self.0.get(&(channel.to_owned(), identity.clone(), subject.to_owned()));
            let slots = || ["whatsapp", "*"].into_iter().flat_map(|channel| subjects.iter().map(move |subject| (channel, *subject)));
            slots().any(|(channel, subject)| {
                let Some(stop) = act(channel, subject).filter(|act| act.out) else { return false };
                let ends = |(on, about): (&str, &str)| {
                    let covers =
                        (on == "*" || on == channel) && (about == subject || about == "all" || (about == "marketing" && subject != "all"));
                    covers && act(on, about).is_some_and(|start| !start.out && start.at_ms > stop.at_ms)
                };
                !slots().any(ends)
            })
        })
    }
}
