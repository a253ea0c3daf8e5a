//! What was known at earlier positions of the opt-outs topic: every act of every person, with its place.
//!
//! A decision can be made again at the positions at which it was made, in any order and from any number of threads: what
//! stands at a vector of positions is the fold of the acts that lie before it. About a hundred bytes for each record of
//! the topic; a look-up of somebody unknown, the usual case, is one look into a hash table.
//!
//! What compaction took away cannot be folded: [`History::may_lack`] says where that could matter.

use super::consent::{Act, Position};
use super::key::ConsentKey;
use super::suppression::{PersonPrint, PrintKey, SlotPrint};
use super::view::ConsentView;
use hashbrown::HashTable;

/// What a decision looks up: the view as it is, or as it was.
pub trait Lookup {
    /// Whether any act of this person may stand.
    fn knows(&self, person: PersonPrint) -> bool;
    /// The act that stands for a person in a slot.
    fn standing(&self, person: PersonPrint, slot: SlotPrint) -> Option<Act>;
}

impl Lookup for ConsentView {
    fn knows(&self, person: PersonPrint) -> bool {
        self.knows(person)
    }

    fn standing(&self, person: PersonPrint, slot: SlotPrint) -> Option<Act> {
        self.standing(person, slot)
    }
}

/// One record of the topic: an act, or the erasure of its key.
#[derive(Clone, Copy)]
struct Entry {
    person: u64,
    slot: u64,
    at: Position,
    act: Option<Act>,
}

/// Gathers records of the topic, those of one partition in order.
pub struct HistoryBuilder {
    print_key: PrintKey,
    entries: Vec<Entry>,
    partitions: Vec<Seen>,
}

#[derive(Clone, Copy, Default)]
struct Seen {
    /// The offset that comes next where nothing is missing.
    next: u64,
    /// The first offset without a record: compaction, or a transaction's marker.
    hole: Option<u64>,
}

impl HistoryBuilder {
    /// For a topic of that many partitions.
    pub fn new(print_key: PrintKey, partitions: u32) -> Self {
        Self { print_key, entries: Vec::new(), partitions: vec![Seen::default(); partitions as usize] }
    }

    /// Notes that there is a record at this place, whatever it says.
    pub fn see(&mut self, at: Position) {
        if let Some(seen) = self.partitions.get_mut(at.partition as usize) {
            if at.offset > seen.next {
                seen.hole.get_or_insert(seen.next);
            }
            seen.next = at.offset + 1;
        }
    }

    /// Adds the act of a record, or the erasure of its key (`None`).
    pub fn add(&mut self, key: &ConsentKey, at: Position, act: Option<Act>) {
        let (person, slot) = self.print_key.of_key(key);
        let (person, slot) = (person.bits(), slot.bits());
        self.entries.push(Entry { person, slot, at, act });
    }

    /// The history of what was gathered.
    pub fn finish(mut self) -> History {
        self.entries.sort_unstable_by_key(|entry| (entry.person, entry.slot, entry.at));
        let mut persons = HashTable::new();
        let mut first = 0;
        for of_person in self.entries.chunk_by(|one, other| one.person == other.person) {
            persons.insert_unique(of_person[0].person, (of_person[0].person, first, of_person.len()), |(person, ..)| *person);
            first += of_person.len();
        }
        History { print_key: self.print_key, entries: self.entries, persons, holes: self.partitions.iter().map(|seen| seen.hole).collect() }
    }
}

/// Every act, by person and slot, in order of its place.
pub struct History {
    print_key: PrintKey,
    entries: Vec<Entry>,
    /// Person, first entry, how many.
    persons: HashTable<(u64, usize, usize)>,
    /// The first offset of each partition that has no record.
    holes: Vec<Option<u64>>,
}

impl History {
    /// The key under which fingerprints are made.
    pub fn print_key(&self) -> PrintKey {
        self.print_key
    }

    /// The view as it was when exactly the records before these positions (by partition) were applied.
    pub fn at<'h>(&'h self, positions: &'h [u64]) -> AsOf<'h> {
        AsOf { history: self, positions }
    }

    /// Whether an act of this person that stood at these positions may be missing: a later one of theirs lies behind a
    /// hole, which is how compaction leaves a key.
    pub fn may_lack(&self, person: PersonPrint, positions: &[u64]) -> bool {
        let position = |partition: u32| positions.get(partition as usize).copied().unwrap_or(u64::MAX);
        self.of(person).iter().any(|entry| {
            let before = position(entry.at.partition);
            entry.at.offset >= before && self.hole(entry.at.partition).is_some_and(|hole| hole < before)
        })
    }

    /// Whether the record at this place is gone from the log: nothing of this person lies there, behind a hole.
    pub fn lacks(&self, person: PersonPrint, at: Position) -> bool {
        self.hole(at.partition).is_some_and(|hole| hole <= at.offset) && !self.of(person).iter().any(|entry| entry.at == at)
    }

    /// Whether an act on this key stands over this one, or is this one: then a writer that knew of it had nothing to write.
    pub fn outranks(&self, key: &ConsentKey, act: &Act) -> bool {
        let (person, slot) = self.print_key.of_key(key);
        self.of(person).iter().filter(|entry| entry.slot == slot.bits()).any(|entry| entry.act.is_none_or(|other| other.rank() >= act.rank()))
    }

    /// Whether a record is missing anywhere: by compaction, or because a transaction's marker stands there.
    pub fn has_hole(&self) -> bool {
        self.holes.iter().any(Option::is_some)
    }

    /// How many records it holds.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn hole(&self, partition: u32) -> Option<u64> {
        self.holes.get(partition as usize).copied().flatten()
    }

    fn of(&self, person: PersonPrint) -> &[Entry] {
        let found = self.persons.find(person.bits(), |(known, ..)| *known == person.bits());
        found.and_then(|(_, first, len)| self.entries.get(*first..first + len)).unwrap_or_default()
    }
}

/// The view as it was at some positions.
#[derive(Clone, Copy)]
pub struct AsOf<'h> {
    history: &'h History,
    positions: &'h [u64],
}

impl Lookup for AsOf<'_> {
    fn knows(&self, person: PersonPrint) -> bool {
        !self.history.of(person).is_empty()
    }

    fn standing(&self, person: PersonPrint, slot: SlotPrint) -> Option<Act> {
        let before = |at: Position| self.positions.get(at.partition as usize).is_some_and(|position| at.offset < *position);
        let entries = self.history.of(person).iter().filter(|entry| entry.slot == slot.bits() && before(entry.at));
        // An erasure ends what lies before it in its partition.
        let mut standing: Option<Act> = None;
        for entry in entries {
            match entry.act {
                Some(act) if standing.is_none_or(|standing| act.supersedes(&standing)) => standing = Some(act),
                Some(_) => {}
                None => standing = standing.filter(|standing| standing.cause.partition != entry.at.partition),
            }
        }
        standing
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::consent::{ConsentState, Source};
    use crate::domain::identity::Identity;
    use crate::domain::key::{Channel, Subject};
    use crate::domain::time::Timestamp;
    use proptest::prelude::*;

    const PRINTS: PrintKey = PrintKey::new(3, 4);

    fn key(person: u8) -> ConsentKey {
        ConsentKey {
            business: "acme".into(),
            channel: Channel::Whatsapp,
            identity: Identity::parse(&format!("ext:{person}")).expect("an identity"),
            subject: Subject::Marketing,
        }
    }

    fn act(out: bool, time: i64, at: Position) -> Act {
        Act {
            state: if out { ConsentState::OptedOut } else { ConsentState::OptedIn },
            occurred_at: Timestamp::from_millis(time).expect("in range"),
            source: Source::default(),
            cause: at,
            changed_state: true,
        }
    }

    fn prints(person: u8) -> (PersonPrint, SlotPrint) {
        (PRINTS.person("acme", &key(person).identity), PRINTS.slot(&Channel::Whatsapp, &Subject::Marketing))
    }

    #[test]
    fn a_compacted_act_may_be_missing_before_a_later_one_and_nowhere_else() {
        let mut builder = HistoryBuilder::new(PRINTS, 1);
        let at = |offset| Position { partition: 0, offset };
        for (person, offset) in [(1, 0), (2, 2), (3, 3)] {
            builder.see(at(offset));
            builder.add(&key(person), at(offset), Some(act(true, 1, at(offset))));
        }
        let history = builder.finish();
        assert!(history.may_lack(prints(2).0, &[2]));
        assert!(!history.may_lack(prints(2).0, &[3]), "what stands there is its own act");
        assert!(!history.may_lack(prints(1).0, &[2]), "no later act could have taken an earlier one away");
        assert!(!history.may_lack(prints(3).0, &[1]), "before the hole nothing is gone");
        assert!(history.lacks(prints(2).0, at(1)) && !history.lacks(prints(2).0, at(2)));
    }

    proptest! {
        /// The view that was fed up to some positions, and the history looked up at them, say the same.
        #[test]
        fn the_past_is_what_the_view_was(
            records in prop::collection::vec((0..3_u8, prop::option::weighted(0.9, any::<bool>()), 0..6_i64), 0..30),
            position in 0..30_u64,
        ) {
            let mut builder = HistoryBuilder::new(PRINTS, 1);
            let mut view = ConsentView::new(PRINTS, 1);
            for (offset, (person, out, time)) in (0..).zip(&records) {
                let at = Position { partition: 0, offset };
                let act = out.map(|out| act(out, *time, at));
                builder.see(at);
                builder.add(&key(*person), at, act);
                match act {
                    _ if offset >= position => {}
                    Some(act) => drop(view.apply(&key(*person), act, "")),
                    None => view.erase(&key(*person)),
                }
            }
            let history = builder.finish();
            for person in 0..3 {
                let (person, slot) = prints(person);
                let (then, now) = (history.at(&[position]).standing(person, slot), view.standing(person, slot));
                prop_assert_eq!(then.map(|act| act.rank()), now.map(|act| act.rank()));
            }
        }
    }
}
