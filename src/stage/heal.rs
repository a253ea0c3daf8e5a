//! What compaction would get wrong: it keeps the last record of a key, where the act that stands may lie before it.
//!
//! Whoever heals reads the topic once, from its beginning to its end while no transaction is open on it, then reads the
//! records that [`Healing::due`] names and appends each under its own key, with the value that [`again`] gives: the last
//! record of each key is then the one that stands, and `fold(compact(log)) == fold(log)`. The records so appended must be
//! older than any restore takes before the lag lets compaction come near what they stand for.

use super::apply::{Effect, Written, apply};
use crate::domain::business::Businesses;
use crate::domain::consent::Position;
use crate::domain::key::ConsentKey;
use crate::domain::suppression::{Applied, PrintKey};
use crate::domain::view::ConsentView;
use crate::wire::consent::{ConsentChange, decode_key, decode_value, encode_value};
use crate::wire::proto;
use prost::Message;
use std::collections::HashSet;

/// Reads a topic for what must be healed.
pub struct Healing {
    view: ConsentView,
    /// Keys whose last record is not the act that stands.
    behind: HashSet<ConsentKey>,
}

impl Healing {
    /// Before the first record.
    pub fn new(print_key: PrintKey, partitions: u32) -> Self {
        Self { view: ConsentView::new(print_key, partitions), behind: HashSet::new() }
    }

    /// The next record of its partition. Returns what it did, for whoever counts.
    pub fn read(&mut self, record: &Written<'_>, businesses: &Businesses) -> Effect {
        let effect = apply(&mut self.view, record, businesses);
        let Ok(key) = decode_key(record.key.unwrap_or_default(), businesses) else { return effect };
        match effect {
            Effect::Applied { applied: Applied::Older, .. } => {
                self.behind.insert(key);
            }
            Effect::Applied { applied: Applied::First | Applied::Superseded(_) | Applied::Repeat, .. } | Effect::Erased => {
                self.behind.remove(&key);
            }
            Effect::UnreadableKey => {}
        }
        effect
    }

    /// Where the records lie that must be appended again, in order.
    pub fn due(&self) -> Vec<Position> {
        let prints = self.view.print_key();
        let standing = |key: &ConsentKey| {
            let (person, slot) = prints.of_key(key);
            self.view.standing(person, slot)
        };
        let mut due: Vec<Position> = self.behind.iter().filter_map(standing).map(|act| act.cause).collect();
        due.sort_unstable();
        due
    }
}

/// The value under which a record counts, appended later, as it counts where it lies; `None` for a tombstone. Mostly its
/// own bytes: but a time that the record's Kafka timestamp stands in for, or bounds, must be written out, because the
/// copy will have a later one.
pub fn again(record: &Written<'_>) -> Option<Vec<u8>> {
    let value = record.value?;
    let (act, readable) = match decode_value(Some(value), record.timestamp_ms, record.at) {
        ConsentChange::Act { act, .. } => (act, proto::ConsentRecord::decode(value).ok()),
        ConsentChange::Unreadable(act) => (act, None),
        ConsentChange::Erasure => return None,
    };
    let at = act.occurred_at.millis();
    if readable.as_ref().is_some_and(|readable| readable.occurred_at_ms == at) {
        return Some(value.to_vec());
    }
    let state = proto::ConsentState::from(act.state);
    Some(encode_value(&proto::ConsentRecord { state: state.into(), occurred_at_ms: at, ..readable.unwrap_or_default() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &[u8] = b"acme|whatsapp|ext:1|marketing";

    fn value(state: proto::ConsentState, occurred_at_ms: i64) -> Vec<u8> {
        encode_value(&proto::ConsentRecord { state: state.into(), occurred_at_ms, ..Default::default() })
    }

    fn written(offset: u64, timestamp_ms: i64, value: &[u8]) -> Written<'_> {
        Written { at: Position { partition: 0, offset }, timestamp_ms: Some(timestamp_ms), key: Some(KEY), value: Some(value) }
    }

    fn due(acts: &[(proto::ConsentState, i64)]) -> Vec<u64> {
        let mut healing = Healing::new(PrintKey::new(1, 2), 1);
        for (offset, (state, at)) in (0..).zip(acts) {
            healing.read(&written(offset, 1000, &value(*state, *at)), &Businesses::default());
        }
        healing.due().iter().map(|at| at.offset).collect()
    }

    #[test]
    fn a_key_whose_last_record_does_not_stand_is_due_and_no_other() {
        let (out, back) = (proto::ConsentState::OptedOut, proto::ConsentState::OptedIn);
        assert_eq!(due(&[(out, 5), (back, 9)]), [0; 0]);
        assert_eq!(due(&[(out, 9), (back, 5)]), [0]);
        assert_eq!(due(&[(out, 9), (back, 5), (out, 11)]), [0; 0], "a later act came after all");
        assert_eq!(due(&[(out, 9), (back, 5), (out, 9)]), [0; 0], "it was healed already");
    }

    #[test]
    fn a_record_appended_again_counts_as_it_did() {
        let (out, back) = (proto::ConsentState::OptedOut, proto::ConsentState::OptedIn);
        for (value, timestamp_ms) in [
            (value(out, 700), 1000),
            // Its own time lies beyond its record, which bounds it.
            (value(back, 9000), 1000),
            (value(out, 9000), 1000),
            // Its record's time stands in for its own.
            (value(out, 0), 1000),
            (b"\xff\xff".to_vec(), 1000),
        ] {
            let counts = |record: &Written<'_>| match decode_value(record.value, record.timestamp_ms, record.at) {
                ConsentChange::Act { act, .. } | ConsentChange::Unreadable(act) => (act.state, act.occurred_at, act.source),
                ConsentChange::Erasure => panic!("no tombstone"),
            };
            let was = written(0, timestamp_ms, &value);
            let copied = again(&was).expect("a value");
            assert_eq!(counts(&written(7, 20_000, &copied)), counts(&was), "{value:?}");
        }
        assert_eq!(again(&Written { value: None, ..written(0, 1, b"") }), None);
    }
}
