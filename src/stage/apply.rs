//! The view's stage: a record of the opt-outs topic → what it changes.

use crate::domain::business::Businesses;
use crate::domain::consent::{Act, Position};
use crate::domain::identity::Identity;
use crate::domain::key::Subject;
use crate::domain::suppression::{Applied, PersonPrint, PrintKey, SlotPrint};
use crate::domain::view::{ConsentView, MessagePrint, message_print};
use crate::wire::consent::{ConsentChange, decode_key, decode_value, encode_key, read_value, split_key};

/// A record of the opt-outs topic, borrowed.
#[derive(Clone, Copy)]
pub struct Written<'a> {
    pub at: Position,
    /// Kafka's timestamp of the record, milliseconds since the Unix epoch.
    pub timestamp_ms: Option<i64>,
    pub key: Option<&'a [u8]>,
    pub value: Option<&'a [u8]>,
}

/// What a record did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// An act counts, or counted already. One whose value could not be read (`readable: false`) is an opt-out.
    Applied { act: Act, applied: Applied, readable: bool },
    /// A tombstone: its key is forgotten.
    Erased,
    /// Nobody knows whom it concerns: nothing may be decided past it.
    UnreadableKey,
}

/// A record that was read, ready to count. Its business is known to the [`Reader`] that read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    Act {
        person: PersonPrint,
        slot: SlotPrint,
        act: Act,
        message: Option<MessagePrint>,
        readable: bool,
    },
    Erasure {
        person: PersonPrint,
        slot: SlotPrint,
    },
    /// The tombstone of an alias of a key erases that alias alone: what stands under the canonical key is on the topic
    /// still.
    ErasureOfAlias,
    UnreadableKey,
}

/// Reads records of the opt-outs topic, as many as there are: without an allocation for most of them, and without the
/// view.
pub struct Reader<'a> {
    prints: PrintKey,
    businesses: &'a Businesses,
    kept: Vec<Kept>,
    unmet: Unmet,
}

/// Businesses and subjects that were read and that no view has met.
#[derive(Default)]
pub struct Unmet(Vec<(Box<str>, Subject)>);

impl Unmet {
    /// Makes them known.
    pub fn meet(&mut self, view: &mut ConsentView) {
        self.0.drain(..).for_each(|(business, subject)| view.meet(&business, &subject));
    }
}

/// What keys have in common, as written and as understood.
struct Kept {
    /// Business and channel, up to the identity.
    before: Box<str>,
    /// The subject, from the end of the identity on.
    after: Box<str>,
    business: Box<str>,
    slot: SlotPrint,
}

impl Kept {
    /// The identity of a key that is like this but for it, where that is written without escapes.
    fn identity_in<'k>(&self, key: &'k [u8]) -> Option<&'k str> {
        let identity = key.strip_prefix(self.before.as_bytes())?.strip_suffix(self.after.as_bytes())?;
        let is_plain = !identity.iter().any(|byte| matches!(byte, b'|' | b'%'));
        std::str::from_utf8(identity).ok().filter(|_| is_plain)
    }
}

/// So many are kept. More businesses than these take longer, each time one of them is not among the kept.
const MOST_KEPT: usize = 16;

impl<'a> Reader<'a> {
    /// A reader for a view of this key.
    pub fn new(prints: PrintKey, businesses: &'a Businesses) -> Self {
        Self { prints, businesses, kept: Vec::new(), unmet: Unmet::default() }
    }

    /// Reads a record.
    pub fn read(&mut self, record: &Written<'_>) -> Change {
        let key = record.key.unwrap_or_default();
        let Some(value) = record.value else { return self.read_tombstone(key) };
        let Some((person, slot)) = self.read_key(key) else { return Change::UnreadableKey };
        if let Some((act, message)) = read_value(value, record.timestamp_ms, record.at) {
            return Change::Act { person, slot, act, message: message_print(message), readable: true };
        }
        match decode_value(Some(value), record.timestamp_ms, record.at) {
            ConsentChange::Erasure => unreachable!("a record with a value is no tombstone"),
            ConsentChange::Unreadable(act) => Change::Act { person, slot, act, message: None, readable: false },
            ConsentChange::Act { act, provider_message_id } => {
                Change::Act { person, slot, act, message: message_print(&provider_message_id), readable: true }
            }
        }
    }

    fn read_tombstone(&self, bytes: &[u8]) -> Change {
        let Ok(key) = decode_key(bytes, self.businesses) else { return Change::UnreadableKey };
        if encode_key(&key).as_bytes() != bytes {
            return Change::ErasureOfAlias;
        }
        let (person, slot) = self.prints.of_key(&key);
        Change::Erasure { person, slot }
    }

    fn read_key(&mut self, bytes: &[u8]) -> Option<(PersonPrint, SlotPrint)> {
        if let Some((kept, identity)) = self.kept.iter().find_map(|kept| Some((kept, kept.identity_in(bytes)?))) {
            let identity = Identity::parse(identity).ok()?;
            let hashed = self.prints.hashed(kept.slot).filter(|_| matches!(identity, Identity::Hash(_)));
            return Some((self.prints.person(&kept.business, &identity), hashed.unwrap_or(kept.slot)));
        }
        let key = decode_key(bytes, self.businesses).ok()?;
        let (person, slot) = self.prints.of_key(&key);
        if let Some([business, channel, _, subject]) = split_key(bytes) {
            if self.kept.len() == MOST_KEPT {
                self.kept.remove(0);
            }
            // What is kept is the slot of plain identities.
            let slot = self.prints.slot(&key.channel, &key.subject);
            let (before, after) = (format!("{business}|{channel}|"), format!("|{subject}"));
            self.kept.push(Kept { before: before.into(), after: after.into(), business: key.business.clone(), slot });
        }
        self.unmet.0.push((key.business, key.subject));
        Some((person, slot))
    }

    /// The businesses of all that was read since: a view must meet them before it applies any of that.
    pub fn unmet(&mut self) -> Unmet {
        std::mem::take(&mut self.unmet)
    }
}

impl Change {
    /// Whom it concerns.
    pub fn person(&self) -> Option<PersonPrint> {
        match self {
            Self::Act { person, .. } | Self::Erasure { person, .. } => Some(*person),
            Self::ErasureOfAlias | Self::UnreadableKey => None,
        }
    }

    /// Lets it count. The position is not advanced: that is for whoever knows that nothing lies in between.
    pub fn apply(self, view: &mut ConsentView) -> Effect {
        match self {
            Self::UnreadableKey => Effect::UnreadableKey,
            Self::ErasureOfAlias => Effect::Erased,
            Self::Erasure { person, slot } => {
                view.erase_from(person, slot);
                Effect::Erased
            }
            Self::Act { person, slot, act, message, readable } => {
                Effect::Applied { act, applied: view.apply_to(person, slot, act, message), readable }
            }
        }
    }
}

/// Reads a record and lets it count.
pub fn apply(view: &mut ConsentView, record: &Written<'_>, businesses: &Businesses) -> Effect {
    let mut reader = Reader::new(view.print_key(), businesses);
    let change = reader.read(record);
    reader.unmet().meet(view);
    change.apply(view)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::business::Business;
    use crate::domain::consent::ConsentState;
    use crate::wire::{consent::encode_value, proto};
    use proptest::prelude::*;

    fn written<'a>(key: &'a [u8], value: Option<&'a [u8]>) -> Written<'a> {
        Written { at: Position { partition: 0, offset: 7 }, timestamp_ms: Some(1000), key: Some(key), value }
    }

    #[test]
    fn what_cannot_be_read_is_an_opt_out_or_stops_everything() {
        let mut view = ConsentView::new(PrintKey::new(1, 2), 1);
        let effect = apply(&mut view, &written(b"acme|whatsapp|ext:1|marketing", Some(b"\xff")), &Businesses::default());
        let Effect::Applied { act, applied: Applied::First, readable: false } = effect else { panic!("{effect:?}") };
        assert_eq!((act.state, act.cause.offset), (ConsentState::OptedOut, 7));
        assert_eq!(apply(&mut view, &written(b"nonsense", Some(b"\xff")), &Businesses::default()), Effect::UnreadableKey);
    }

    proptest! {
        #[test]
        fn a_reader_that_has_read_others_reads_as_one_that_has_not(
            keys in prop::collection::vec(("(acme|old|b%7C)?", "(sms|SMS|\\*|x)?", "(phone:\\+5511[0-9]{8,9}|ext:[a%]{0,3}|email:A@b.c)?", "(marketing|all|program:[ab%4]{1,3})?"), 1..40),
            value in prop::collection::vec(any::<u8>(), 0..6),
        ) {
            let acme = Business { name: "acme".into(), numbers: vec![], accounts: vec![], former_names: vec!["old".into()] };
            let businesses = Businesses::new(&[acme]).expect("no conflict");
            let prints = PrintKey::new(1, 2);
            let mut reader = Reader::new(prints, &businesses);
            for (business, channel, identity, subject) in keys {
                let key = format!("{business}|{channel}|{identity}|{subject}");
                let expected = decode_key(key.as_bytes(), &businesses).ok().map(|key| prints.of_key(&key));
                let found = match reader.read(&written(key.as_bytes(), Some(&value))) {
                    Change::Act { person, slot, .. } => Some((person, slot)),
                    Change::Erasure { .. } | Change::ErasureOfAlias | Change::UnreadableKey => None,
                };
                prop_assert_eq!(found, expected, "{}", key);
            }
        }
    }

    #[test]
    fn the_tombstone_of_an_alias_leaves_the_canonical_key() {
        let mut view = ConsentView::new(PrintKey::new(1, 2), 1);
        let record = proto::ConsentRecord { state: proto::ConsentState::OptedOut.into(), occurred_at_ms: 5, ..Default::default() };
        let (canonical, alias) = (b"acme|whatsapp|phone:+5511912345678|marketing", b"acme|whatsapp|phone:+551112345678|marketing");
        apply(&mut view, &written(canonical, Some(&encode_value(&record))), &Businesses::default());
        assert_eq!(apply(&mut view, &written(alias, None), &Businesses::default()), Effect::Erased);
        assert_eq!(view.set().len(), 1);
        apply(&mut view, &written(canonical, None), &Businesses::default());
        assert!(view.set().is_empty());
    }
}
