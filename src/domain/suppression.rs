//! The suppression set: for every consent key, the act that stands.
//!
//! Keyed by 64-bit fingerprints under a random key, so that nobody can craft an address that collides with another.
//! A fingerprint is a pair of keyed hashes: one of business and person, one of channel and subject. A send asks for
//! several slots of one person: the person is hashed once, and all entries of a person lie together, so that the usual
//! answer, that nothing is known of them, costs one look into memory.
//!
//! The odds: among 100 million persons the chance that any two share a fingerprint at all is about 3 in 10,000
//! (n²/2⁶⁵); that one given send meets a stranger's entry, about 5 in 10¹². A collision silences a stranger, or lets
//! the stranger's later opt-in speak for the person: the reason why the width is not smaller.
//!
//! What is absent: bytes, topics, clocks, locks. Whoever shares a set guards it.

use super::consent::Act;
use super::identity::Identity;
use super::key::{Channel, ConsentKey, Subject};
use hashbrown::HashTable;
use hashbrown::hash_table::Entry as TableEntry;
use siphasher::sip::SipHasher13;
use std::hash::Hasher;

/// The secret under which fingerprints are made. Random per process; a fixed one makes tests repeatable.
#[derive(Clone, Copy)]
pub struct PrintKey(pub u64, pub u64);

/// Fingerprint of a business and one of a person's identities.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PersonPrint(u64);

/// Fingerprint of a channel and a subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotPrint(u64);

impl PersonPrint {
    /// The fingerprint as a number, for side tables.
    pub fn bits(self) -> u64 {
        self.0
    }
}

impl SlotPrint {
    /// The fingerprint as a number, for side tables.
    pub fn bits(self) -> u64 {
        self.0
    }
}

impl PrintKey {
    /// The fingerprint of one person at one business.
    pub fn person(&self, business: &str, identity: &Identity) -> PersonPrint {
        let mut hasher = self.hasher();
        hasher.write(b"p");
        hasher.write(business.as_bytes());
        hasher.write(&[0xff]); // no UTF-8 text holds this byte: parts cannot run into one another
        hasher.write(identity.kind().as_bytes());
        hasher.write(&[0xff]);
        match identity {
            Identity::Phone(phone) => hasher.write(phone.digits()),
            Identity::Bsuid(value) | Identity::Email(value) | Identity::Ext(value) | Identity::Hash(value) => {
                hasher.write(value.as_bytes());
            }
        }
        PersonPrint(hasher.finish())
    }

    /// The fingerprint of what an act or a send is about.
    pub fn slot(&self, channel: &Channel, subject: &Subject) -> SlotPrint {
        let mut hasher = self.hasher();
        hasher.write(b"s");
        hasher.write(channel.as_str().as_bytes());
        hasher.write(&[0xff]);
        match subject {
            Subject::Marketing => hasher.write(b"marketing"),
            Subject::All => hasher.write(b"all"),
            Subject::Review => hasher.write(b"review"),
            Subject::Program(id) => {
                hasher.write(b"program");
                hasher.write(&[0xff]);
                hasher.write(id.as_bytes());
            }
        }
        SlotPrint(hasher.finish())
    }

    fn hasher(&self) -> SipHasher13 {
        SipHasher13::new_with_keys(self.0, self.1)
    }
}

/// What applying an act did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    /// The first act on its key.
    First,
    /// It stands over the act that stood, which is returned.
    Superseded(Act),
    /// The very act that stands already, written again.
    Repeat,
    /// An older act behind a newer one. The set is right; the log's compaction would keep this one, so the key needs
    /// healing.
    Older,
}

struct Entry {
    person: u64,
    slot: u64,
    act: Act,
}

/// Number of tables: one table's growth moves a 256th of the entries.
const SHARDS: usize = 256;

/// For every consent key, the act that stands.
pub struct SuppressionSet {
    shards: Vec<HashTable<Entry>>,
    print_key: PrintKey,
}

impl SuppressionSet {
    /// An empty set whose fingerprints are made under `print_key`.
    pub fn new(print_key: PrintKey) -> Self {
        Self { shards: (0..SHARDS).map(|_| HashTable::new()).collect(), print_key }
    }

    /// The key under which this set's fingerprints are made.
    pub fn print_key(&self) -> PrintKey {
        self.print_key
    }

    /// The act that stands for a person in a slot.
    pub fn standing(&self, person: PersonPrint, slot: SlotPrint) -> Option<&Act> {
        let found = self.shards[shard_of(person)].find(person.0, |entry| entry.person == person.0 && entry.slot == slot.0);
        found.map(|entry| &entry.act)
    }

    /// Whether any act of this person stands.
    pub fn knows(&self, person: PersonPrint) -> bool {
        self.shards[shard_of(person)].find(person.0, |entry| entry.person == person.0).is_some()
    }

    /// Lets an act count on its key.
    pub fn apply(&mut self, key: &ConsentKey, act: Act) -> Applied {
        let (person, slot) = self.prints(key);
        let shard = &mut self.shards[shard_of(person)];
        match shard.entry(person.0, |entry| entry.person == person.0 && entry.slot == slot.0, |entry| entry.person) {
            TableEntry::Vacant(vacant) => {
                vacant.insert(Entry { person: person.0, slot: slot.0, act });
                Applied::First
            }
            TableEntry::Occupied(mut occupied) => {
                let standing = occupied.get().act;
                if act.supersedes(&standing) {
                    occupied.get_mut().act = act;
                    Applied::Superseded(standing)
                } else if act.rank() == standing.rank() {
                    Applied::Repeat
                } else {
                    Applied::Older
                }
            }
        }
    }

    /// Forgets a key: the erasure that a tombstone asks for.
    pub fn erase(&mut self, key: &ConsentKey) {
        let (person, slot) = self.prints(key);
        let shard = &mut self.shards[shard_of(person)];
        if let Ok(entry) = shard.find_entry(person.0, |entry| entry.person == person.0 && entry.slot == slot.0) {
            entry.remove();
        }
    }

    /// Number of keys with a standing act.
    pub fn len(&self) -> usize {
        self.shards.iter().map(HashTable::len).sum()
    }

    /// Whether no key has a standing act.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes that the tables occupy, free places included.
    pub fn allocated_bytes(&self) -> usize {
        self.shards.iter().map(HashTable::allocation_size).sum()
    }

    fn prints(&self, key: &ConsentKey) -> (PersonPrint, SlotPrint) {
        (self.print_key.person(&key.business, &key.identity), self.print_key.slot(&key.channel, &key.subject))
    }
}

/// The shard by bits that the table inside does not use for its buckets first.
fn shard_of(person: PersonPrint) -> usize {
    (person.0 >> 40) as usize % SHARDS
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::consent::{ConsentState, Position, Source};
    use crate::domain::time::Timestamp;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn key(person: u32) -> ConsentKey {
        ConsentKey {
            business: "acme".into(),
            channel: Channel::Whatsapp,
            identity: Identity::parse(&format!("ext:{person}")).expect("an identity"),
            subject: Subject::Marketing,
        }
    }

    fn act(out: bool, at: i64, offset: u64) -> Act {
        Act {
            state: if out { ConsentState::OptedOut } else { ConsentState::OptedIn },
            occurred_at: Timestamp::from_millis(at).expect("in range"),
            source: Source { topic: 0, partition: 0, offset, index: 0 },
            cause: Position { partition: 0, offset },
            changed_state: true,
        }
    }

    fn standing(set: &SuppressionSet, key: &ConsentKey) -> Option<Act> {
        let prints = set.print_key();
        set.standing(prints.person(&key.business, &key.identity), prints.slot(&key.channel, &key.subject)).copied()
    }

    #[test]
    fn an_older_act_behind_a_newer_one_changes_nothing_and_is_told() {
        let mut set = SuppressionSet::new(PrintKey(1, 2));
        let (first, second) = (act(true, 10, 0), act(false, 20, 1));
        assert_eq!(set.apply(&key(1), second), Applied::First);
        assert_eq!(set.apply(&key(1), first), Applied::Older);
        assert_eq!(set.apply(&key(1), second), Applied::Repeat);
        assert_eq!(standing(&set, &key(1)), Some(second));
        let third = act(true, 30, 2);
        assert_eq!(set.apply(&key(1), third), Applied::Superseded(second));
    }

    #[test]
    fn an_erased_key_is_forgotten_and_its_neighbours_are_not() {
        let mut set = SuppressionSet::new(PrintKey(1, 2));
        set.apply(&key(1), act(true, 10, 0));
        set.apply(&key(2), act(true, 10, 1));
        set.erase(&key(1));
        assert_eq!(standing(&set, &key(1)), None);
        assert!(standing(&set, &key(2)).is_some());
    }

    proptest! {
        #[test]
        fn the_set_agrees_with_an_ordered_map(acts in prop::collection::vec((0..6_u32, any::<bool>(), 0..6_i64, 0..4_u64), 0..60)) {
            let mut set = SuppressionSet::new(PrintKey(3, 4));
            let mut model: BTreeMap<u32, Act> = BTreeMap::new();
            for (person, out, at, offset) in acts {
                let act = act(out, at, offset);
                set.apply(&key(person), act);
                let entry = model.entry(person).or_insert(act);
                if act.supersedes(entry) {
                    *entry = act;
                }
            }
            prop_assert_eq!(set.len(), model.len());
            for (person, act) in model {
                prop_assert_eq!(standing(&set, &key(person)).map(|found| found.rank()), Some(act.rank()));
            }
        }
    }
}
