//! The opt-outs topic, materialized: the suppression set, how far it has come, and what was seen beside it.

use super::consent::{Act, ConsentState, Source};
use super::key::{ConsentKey, Subject};
use super::suppression::{Applied, PersonPrint, PrintKey, Relief, SlotPrint, SuppressionSet, TableOf};
use hashbrown::HashMap;
use std::collections::BTreeSet;

/// The state of all consent at one position of the opt-outs topic.
pub struct ConsentView {
    set: SuppressionSet,
    /// Next offset to apply, by partition.
    applied: Vec<u64>,
    /// Every business that a key names, with the programmes seen in its keys.
    businesses: HashMap<Box<str>, BTreeSet<Box<str>>>,
    older_acts: u64,
}

/// What a view has seen beside the acts that stand.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Every business that a key names, with the programmes seen in its keys.
    pub businesses: Vec<(Box<str>, Vec<Box<str>>)>,
    pub older_acts: u64,
}

impl ConsentView {
    /// An empty view of a topic of that many partitions, before its first record.
    pub fn new(print_key: PrintKey, partitions: u32) -> Self {
        Self { set: SuppressionSet::new(print_key), applied: vec![0; partitions as usize], businesses: HashMap::new(), older_acts: 0 }
    }

    /// A view put together from its parts, every position of `applied` reached before the first of them was taken.
    pub fn assemble(set: SuppressionSet, applied: Vec<u64>, seen: Seen) -> Self {
        let businesses = seen.businesses.into_iter().map(|(name, programs)| (name, programs.into_iter().collect()));
        Self { set, applied, businesses: businesses.collect(), older_acts: seen.older_acts }
    }

    /// What was seen beside the set.
    pub fn seen(&self) -> Seen {
        let businesses = self.businesses.iter().map(|(name, programs)| (name.clone(), programs.iter().cloned().collect()));
        Seen { businesses: businesses.collect(), older_acts: self.older_acts }
    }

    /// Lets an act count. `provider_message_id` may be empty.
    pub fn apply(&mut self, key: &ConsentKey, act: Act, provider_message_id: &str) -> Applied {
        self.meet(&key.business, &key.subject);
        let (person, slot) = self.prints(key);
        self.apply_to(person, slot, act, message_print(provider_message_id))
    }

    /// Lets an act count whose key was read already, and its business met. `message` is the fingerprint of the message
    /// behind it, if there is one.
    pub fn apply_to(&mut self, person: PersonPrint, slot: SlotPrint, act: Act, message: Option<MessagePrint>) -> Applied {
        let applied = self.set.apply_to(person, slot, act);
        if let (ConsentState::OptedIn, Some(message)) = (act.state, message) {
            self.set.note_opt_in(person, slot, note(message, &act.source));
        }
        if applied == Applied::Older {
            self.older_acts += 1;
        }
        applied
    }

    /// A key names this business and subject.
    pub fn meet(&mut self, business: &str, subject: &Subject) {
        let programs = match self.businesses.get_mut(business) {
            Some(programs) => programs,
            None => self.businesses.entry(business.into()).or_default(),
        };
        if let Subject::Program(id) = subject
            && !programs.contains(id)
        {
            programs.insert(id.clone());
        }
    }

    /// Whether very many acts follow at once, and how many, where that is known; afterwards every shard is to be tightened.
    pub fn expect_many(&mut self, more: Option<usize>) {
        self.set.expect_many(more);
    }

    /// What the set needs more of before acts of these persons are applied: see [`SuppressionSet::relief`].
    pub fn relief(&self, persons: impl Iterator<Item = PersonPrint>) -> Relief {
        self.set.relief(persons)
    }

    /// Gives it to the set.
    pub fn relieve(&mut self, relief: &mut Relief) {
        self.set.relieve(relief);
    }

    /// Closes the gap before one of the set's tables: see [`SuppressionSet::slide`].
    pub fn slide(&mut self, table: TableOf) {
        self.set.slide(table);
    }

    /// Forgets a key.
    pub fn erase(&mut self, key: &ConsentKey) {
        self.set.erase(key);
    }

    /// Forgets a key by its fingerprints.
    pub fn erase_from(&mut self, person: PersonPrint, slot: SlotPrint) {
        self.set.erase_from(person, slot);
    }

    /// Everything of a partition before `next` is in the view. Positions never go back: a log that does is restored
    /// into a new view.
    pub fn advance(&mut self, partition: u32, next: u64) {
        if let Some(applied) = self.applied.get_mut(partition as usize) {
            *applied = next.max(*applied);
        }
    }

    /// Next offset to apply, by partition: the position at which a look-up is made.
    pub fn applied(&self) -> &[u64] {
        &self.applied
    }

    /// The act that stands for a person in a slot.
    pub fn standing(&self, person: PersonPrint, slot: SlotPrint) -> Option<Act> {
        self.set.standing(person, slot)
    }

    /// Brings what look-ups of these persons will read near, all at once. To be called before a batch is looked up.
    pub fn prefetch(&self, persons: impl Iterator<Item = PersonPrint>) {
        self.set.prefetch(persons);
    }

    /// The same for persons to whom acts are about to be applied.
    pub fn prefetch_rows(&self, persons: impl Iterator<Item = PersonPrint>) {
        self.set.prefetch_rows(persons);
    }

    /// Whether any act of this person stands.
    pub fn knows(&self, person: PersonPrint) -> bool {
        self.set.knows(person)
    }

    /// Whether this message is the one that last opted the key in, and whether it lay in the same place then.
    pub fn opted_in_by(&self, key: &ConsentKey, provider_message_id: &str, source: &Source) -> Option<Again> {
        let now = note(message_print(provider_message_id)?, source);
        let (person, slot) = self.prints(key);
        let then = self.set.opt_in_note(person, slot)?;
        match (then == now, then >> 32 == now >> 32) {
            (true, _) => Some(Again::Reread),
            (false, true) => Some(Again::Redelivered),
            (false, false) => None,
        }
    }

    /// Whether any key names this business.
    pub fn knows_business(&self, business: &str) -> bool {
        self.businesses.contains_key(business)
    }

    /// The programmes seen in the keys of a business.
    pub fn programs(&self, business: &str) -> impl Iterator<Item = &str> {
        self.businesses.get(business).into_iter().flatten().map(|id| &**id)
    }

    /// The set itself, for figures.
    pub fn set(&self) -> &SuppressionSet {
        &self.set
    }

    /// How often an older act lay behind a newer one: keys that need healing before compaction may touch them.
    pub fn older_acts(&self) -> u64 {
        self.older_acts
    }

    /// The key under which fingerprints are made.
    pub fn print_key(&self) -> PrintKey {
        self.set.print_key()
    }

    /// Bytes that the view has allocated, side tables included.
    pub fn allocated_bytes(&self) -> usize {
        let names = self.businesses.iter().flat_map(|(business, programs)| std::iter::once(business).chain(programs));
        // Sets of names are few and small: a node's share of 24 bytes for each name.
        let names: usize = names.map(|name| name.len() + size_of::<Box<str>>() + 24).sum();
        self.set.allocated_bytes() + names + self.businesses.allocation_size()
    }

    fn prints(&self, key: &ConsentKey) -> (PersonPrint, SlotPrint) {
        self.set.print_key().of_key(key)
    }
}

/// How a message comes that was seen before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Again {
    /// The record was read before a crash, and part of what follows from it may not have been written.
    Reread,
    /// The provider delivered it once more. It must not count again, with a later time, over an opt-out in between.
    Redelivered,
}

/// A message and the place that it was read from, 32 bits each: a collision ignores an opt-in, on the silent side.
fn note(message: MessagePrint, source: &Source) -> u64 {
    let place = [u64::from(source.topic), u64::from(source.partition), source.offset, u64::from(source.index)];
    let hash = place.into_iter().fold(0xcbf2_9ce4_8422_2325, |hash, part| (hash ^ part).wrapping_mul(0x0100_0000_01b3));
    (message.0 << 32) | (hash >> 32)
}

/// Fingerprint of a provider's message id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MessagePrint(u64);

/// FNV-1a of a message id, if there is one: only equality matters, and ids of one person's messages are few.
pub fn message_print(id: &str) -> Option<MessagePrint> {
    let hash = id.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    (!id.is_empty()).then_some(MessagePrint(hash))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::consent::Position;
    use crate::domain::identity::Identity;
    use crate::domain::key::Channel;
    use crate::domain::time::Timestamp;

    fn key(subject: &str) -> ConsentKey {
        ConsentKey {
            business: "acme".into(),
            channel: Channel::Whatsapp,
            identity: Identity::parse("ext:1").expect("an identity"),
            subject: Subject::parse(subject).expect("a subject"),
        }
    }

    fn act(state: ConsentState, at: i64) -> Act {
        Act {
            state,
            occurred_at: Timestamp::from_millis(at).expect("in range"),
            source: Source::default(),
            cause: Position { partition: 0, offset: 0 },
            changed_state: true,
        }
    }

    #[test]
    fn a_redelivered_opt_in_is_recognised_after_the_opt_out_that_ended_it() {
        let mut view = ConsentView::new(PrintKey::new(1, 2), 1);
        view.apply(&key("marketing"), act(ConsentState::OptedIn, 1), "wamid.A");
        view.apply(&key("marketing"), act(ConsentState::OptedOut, 2), "wamid.B");
        let (same, other) = (Source::default(), Source { offset: 7, ..Source::default() });
        assert_eq!(view.opted_in_by(&key("marketing"), "wamid.A", &same), Some(Again::Reread));
        assert_eq!(view.opted_in_by(&key("marketing"), "wamid.A", &other), Some(Again::Redelivered));
        assert_eq!(view.opted_in_by(&key("marketing"), "wamid.B", &other), None);
        assert_eq!(view.opted_in_by(&key("all"), "wamid.A", &other), None);
        assert_eq!(view.opted_in_by(&key("marketing"), "", &other), None);
    }

    #[test]
    fn businesses_and_their_programmes_are_known_from_keys() {
        let mut view = ConsentView::new(PrintKey::new(1, 2), 1);
        view.apply(&key("program:news"), act(ConsentState::OptedOut, 1), "");
        assert!(view.knows_business("acme"));
        assert!(!view.knows_business("globex"));
        assert_eq!(view.programs("acme").collect::<Vec<_>>(), ["news"]);
    }

    #[test]
    fn positions_never_go_back() {
        let mut view = ConsentView::new(PrintKey::new(1, 2), 2);
        view.advance(1, 5);
        view.advance(1, 3);
        view.advance(7, 9);
        assert_eq!(view.applied(), [0, 5]);
    }
}
