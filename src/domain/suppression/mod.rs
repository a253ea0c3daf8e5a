//! The suppression set: for every consent key, the act that stands.
//!
//! Persons are kept as 64-bit fingerprints under a random key (`print`), and the entries of a person lie together: that
//! nothing is known of them, the usual answer, costs one look into memory. The fingerprint's first bits choose one of
//! 4096 shards (`shard`), small tables that grow one by one, so that nobody waits for the growth of all. Channel and
//! subject are few: each pair has a number, as has each partition that acts came from. Times are kept as the distance to
//! the first act in the same stretch of the opt-outs partition. What remains fits columns of a few bits (`shape`).
//!
//! The odds: of n persons, n²/2⁶⁵ pairs share a fingerprint: at 50 million the chance that there is any such pair is 7 in
//! 100,000, at 100 million 3 in 10,000. That one given send meets a stranger's entry has the odds n/2⁶⁴: at 100 million 5
//! in 10¹². A collision silences a stranger, or lets the stranger's later opt-in speak for the person: the reason why the
//! width is not smaller. What can be seen of one is seen: records of one person lie in one partition, so an act that
//! meets an act from another partition is counted ([`SuppressionSet::strange_partitions`]). It is a collision, or an
//! alias of the key (a former name of the business, another spelling of the number). Channels and subjects are too few to
//! collide.
//!
//! What is absent: the bytes of records, topics, clocks, and locks but the one of the memory that all sets' tables lie in
//! (`memory`). Whoever shares a set guards it.

pub mod image;
mod memory;
mod print;
mod shape;
mod shard;
mod stretches;

pub use print::{BusinessPrints, PersonPrint, PrintKey, SlotPrint};

use super::consent::{Act, ConsentState, Position, Source};
use super::key::ConsentKey;
use super::time::Timestamp;
use hashbrown::HashMap;
use shard::{Growth, MOST_LANES, Next, PRINT_BITS, RowLines, Shard, Table};
use smallvec::SmallVec;
use std::hash::Hash;
use stretches::Stretches;

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

/// Number of shards: the first bits of a fingerprint.
pub const SHARDS: usize = 1 << (u64::BITS - PRINT_BITS);

/// Buckets that are fetched ahead for one person. Of a shard that is about to grow, 95 of 100 rows lie in their own, and
/// nearly all others in the next two.
const BUCKETS_FETCHED: usize = 3;

/// So many values are looked for one by one, which is faster than to look a hash up.
const FREQUENT: usize = 8;

/// Values that recur, by number. A value keeps its number for the life of the set.
#[derive(Clone, Debug)]
struct Numbered<T> {
    values: Vec<T>,
    numbers: HashMap<T, u32>,
}

impl<T: Copy + Eq + Hash> Numbered<T> {
    fn new() -> Self {
        Self { values: Vec::new(), numbers: HashMap::new() }
    }

    fn number(&self, value: T) -> Option<u32> {
        match self.values.iter().take(FREQUENT).zip(0..).find(|(known, _)| **known == value) {
            Some((_, number)) => Some(number),
            None if self.values.len() <= FREQUENT => None,
            None => self.numbers.get(&value).copied(),
        }
    }

    fn number_or_add(&mut self, value: T) -> u32 {
        self.number(value).unwrap_or_else(|| {
            let number = self.values.len() as u32;
            self.values.push(value);
            self.numbers.insert(value, number);
            number
        })
    }

    fn get(&self, number: i64) -> Option<T> {
        self.values.get(usize::try_from(number).ok()?).copied()
    }

    fn allocated_bytes(&self) -> usize {
        self.values.capacity() * size_of::<T>() + self.numbers.allocation_size()
    }
}

/// For every consent key, the act that stands.
pub struct SuppressionSet {
    shards: Box<[Shard]>,
    len: usize,
    print_key: PrintKey,
    growth: Growth,
    slots: Numbered<SlotPrint>,
    /// Topic and partition of acts' sources.
    sources: Numbered<(u32, u32)>,
    stretches: Stretches,
    strange_partitions: u64,
}

/// One of a set's tables.
#[derive(Clone, Copy, Debug)]
pub struct TableOf {
    shard: usize,
    table: Table,
}

/// Bytes of gaps between the tables of all sets.
pub fn gaps() -> usize {
    memory::gaps()
}

/// Gives memory that no table needs back to the system.
pub fn trim() {
    memory::trim();
}

/// Shards that were made anew beside their set; once they are in it, what they replaced.
pub struct Relief(Vec<(usize, Shard)>);

/// What a row's second cell tells, bit by bit.
const OPTED_OUT: i64 = 1;
const CHANGED_STATE: i64 = 2;
const NO_STRETCH: i64 = 4;

impl SuppressionSet {
    /// An empty set whose fingerprints are made under `print_key`.
    pub fn new(print_key: PrintKey) -> Self {
        Self {
            shards: vec![Shard::default(); SHARDS].into(),
            len: 0,
            print_key,
            growth: Growth::Tight,
            slots: Numbered::new(),
            sources: Numbered::new(),
            stretches: Stretches::default(),
            strange_partitions: 0,
        }
    }

    /// The key under which this set's fingerprints are made.
    pub fn print_key(&self) -> PrintKey {
        self.print_key
    }

    /// Brings what look-ups of these persons will read near, all at once: while one is fetched from memory, so are the
    /// others.
    pub fn prefetch(&self, persons: impl Iterator<Item = PersonPrint>) {
        self.fetch_rows(persons, Shard::next_to_read, RowLines::fetch);
    }

    /// The same for persons to whom acts are about to be applied.
    pub fn prefetch_rows(&self, persons: impl Iterator<Item = PersonPrint>) {
        self.fetch_rows(persons, Shard::next_to_write, RowLines::fetch_to_write);
    }

    /// Fetches the buckets of these persons, then the rows that are found there, and goes on with those that lie in the bucket
    /// behind. Rows are found first, to be fetched one right behind the other: where a page is not at hand, the processor
    /// looks for it, and goes on meanwhile with no more than some hundred instructions.
    #[inline]
    fn fetch_rows<'a>(
        &'a self,
        persons: impl Iterator<Item = PersonPrint>,
        next: impl Fn(&'a Shard, u64, usize) -> Next<'a>,
        fetch: impl Fn(RowLines<'a>),
    ) {
        let mut sought: SmallVec<[(&'a Shard, u64); 64]> = persons.map(split).map(|(shard, print)| (&self.shards[shard], print)).collect();
        sought.iter().for_each(|(shard, print)| shard.fetch(*print));
        let mut rows: SmallVec<[RowLines<'a>; 64]> = SmallVec::new();
        for distance in 0..BUCKETS_FETCHED {
            sought.retain(|(shard, print)| match next(shard, *print, distance) {
                Next::Row(row) => {
                    rows.push(row);
                    false
                }
                Next::Bucket => true,
                Next::Nothing => false,
            });
            rows.drain(..).for_each(&fetch);
            if sought.is_empty() {
                return;
            }
        }
    }

    /// The act that stands for a person in a slot.
    pub fn standing(&self, person: PersonPrint, slot: SlotPrint) -> Option<Act> {
        let (shard, print) = split(person);
        let slot = self.slots.number(slot)?;
        self.shards[shard].get(print, i64::from(slot)).map(|cells| self.act(&cells))
    }

    /// Whether any act of this person stands.
    #[inline]
    pub fn knows(&self, person: PersonPrint) -> bool {
        let (shard, print) = split(person);
        self.shards[shard].knows(print)
    }

    /// Lets an act count on its key.
    pub fn apply(&mut self, key: &ConsentKey, act: Act) -> Applied {
        let (person, slot) = self.prints(key);
        self.apply_to(person, slot, act)
    }

    /// Lets an act count for a person in a slot.
    pub fn apply_to(&mut self, person: PersonPrint, slot: SlotPrint, act: Act) -> Applied {
        let (shard, print) = split(person);
        let slot = self.slots.number_or_add(slot);
        let standing = self.shards[shard].get(print, i64::from(slot)).map(|cells| self.act(&cells));
        let applied = match standing {
            None => {
                self.len += 1;
                Applied::First
            }
            Some(standing) if act.supersedes(&standing) => Applied::Superseded(standing),
            Some(standing) if act.rank() == standing.rank() => Applied::Repeat,
            Some(_) => Applied::Older,
        };
        if standing.is_some_and(|standing| standing.cause.partition != act.cause.partition) {
            self.strange_partitions += 1;
        }
        match applied {
            Applied::First => {
                let cells = self.cells(slot, &act);
                self.shards[shard].add(print, cells, self.growth);
            }
            Applied::Superseded(_) => {
                let cells = self.cells(slot, &act);
                self.shards[shard].replace(print, cells);
            }
            Applied::Repeat | Applied::Older => {}
        }
        applied
    }

    /// Forgets a person in a slot: the erasure that a tombstone asks for.
    pub fn erase(&mut self, key: &ConsentKey) {
        let (person, slot) = self.prints(key);
        self.erase_from(person, slot);
    }

    /// Forgets a person in a slot.
    pub fn erase_from(&mut self, person: PersonPrint, slot: SlotPrint) {
        let (shard, print) = split(person);
        if let Some(slot) = self.slots.number(slot) {
            self.len -= usize::from(self.shards[shard].remove(print, i64::from(slot)));
            self.shards[shard].set_note(print, slot, None);
        }
    }

    /// Keeps a fingerprint of the message that last opted this key in.
    pub fn note_opt_in(&mut self, person: PersonPrint, slot: SlotPrint, message: u64) {
        let (shard, print) = split(person);
        let slot = self.slots.number_or_add(slot);
        self.shards[shard].set_note(print, slot, Some(message));
    }

    /// The fingerprint of the message that last opted this key in.
    pub fn opt_in_note(&self, person: PersonPrint, slot: SlotPrint) -> Option<u64> {
        let (shard, print) = split(person);
        self.shards[shard].note(print, self.slots.number(slot)?)
    }

    /// Whether very many acts follow at once, and nobody looks up meanwhile; with their number, where it is known, at most.
    /// Afterwards every shard is to be [tightened](SuppressionSet::tightened).
    pub fn expect_many(&mut self, more: Option<usize>) {
        // Shards are filled alike, but not the same: a tenth more than the mean.
        let buckets = |more: usize| (self.len + more) / SHARDS * 11 / (10 * MOST_LANES) + 1;
        self.growth = more.map_or(Growth::Tight, |more| Growth::Bulk(buckets(more)));
    }

    /// Makes those shards larger, beside the set, that would have to grow while acts of these persons are applied: to be
    /// [put into place](SuppressionSet::relieve) before anything else changes the set. While many acts are expected nobody
    /// looks up, and shards grow where they are.
    pub fn relief(&self, persons: impl Iterator<Item = PersonPrint>) -> Relief {
        if self.growth != Growth::Tight {
            return Relief(Vec::new());
        }
        memory::touch_ahead();
        let mut rows: Vec<(usize, u64)> = persons.map(split).collect();
        rows.sort_unstable();
        // Of a person who changes their mind again and again there is one row.
        rows.dedup();
        let larger = rows.chunk_by(|one, other| one.0 == other.0).filter_map(|rows| {
            let (shard, _) = *rows.first()?;
            Some((shard, self.shards[shard].relieved(rows.len())?))
        });
        Relief(larger.collect())
    }

    /// Puts shards into place. What they replaced is in `relief` then, to be given back while nobody waits.
    pub fn relieve(&mut self, relief: &mut Relief) {
        for (shard, anew) in &mut relief.0 {
            std::mem::swap(&mut self.shards[*shard], anew);
        }
    }

    /// Shards with nothing unused, made beside the set: to be [put into place](SuppressionSet::relieve) before these shards change.
    pub fn tightened(&self, shards: impl Iterator<Item = usize>) -> Relief {
        // Neighbours differ, and every spare recurs.
        Relief(shards.map(|shard| (shard, self.shards[shard].tightened((shard as u8).reverse_bits()))).collect())
    }

    /// The tables of all shards in the order in which they are to [slide](SuppressionSet::slide).
    pub fn tables(&self) -> Vec<TableOf> {
        let of = |(shard, tables): (usize, &Shard)| tables.places().map(|(place, table)| (place, TableOf { shard, table }));
        let mut tables: Vec<(usize, TableOf)> = self.shards.iter().enumerate().flat_map(of).collect();
        tables.sort_unstable_by_key(|(place, _)| *place);
        tables.into_iter().map(|(_, table)| table).collect()
    }

    /// Closes the gap that growth left before a table.
    pub fn slide(&mut self, table: TableOf) {
        self.shards[table.shard].slide(table.table);
    }

    /// Number of keys with a standing act.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no key has a standing act.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Acts that met an act of their key from another partition. Each is an alias of its key or a collision.
    pub fn strange_partitions(&self) -> u64 {
        self.strange_partitions
    }

    /// Bytes that the set has allocated, free places and side tables included.
    pub fn allocated_bytes(&self) -> usize {
        let shards: usize = self.shards.iter().map(Shard::allocated_bytes).sum();
        let numbered = self.slots.allocated_bytes() + self.sources.allocated_bytes();
        shards + size_of_val(&*self.shards) + numbered + self.stretches.allocated_bytes()
    }

    fn prints(&self, key: &ConsentKey) -> (PersonPrint, SlotPrint) {
        self.print_key.of_key(key)
    }

    /// An act as a row. Numbers without a sign keep their bits.
    fn cells(&mut self, slot: u32, act: &Act) -> shape::Cells {
        let time = act.occurred_at.millis();
        // A topic of which little is left has many stretches of few acts each: they are not worth a place.
        let from = self.stretches.get_or_keep(act.cause, time, 65 + self.len / 256);
        let told = [(act.state == ConsentState::OptedOut, OPTED_OUT), (act.changed_state, CHANGED_STATE), (from.is_none(), NO_STRETCH)];
        let flags = told.iter().filter(|(is, _)| *is).map(|(_, flag)| flag).sum();
        let source = self.sources.number_or_add((act.source.topic, act.source.partition));
        [
            i64::from(slot),
            flags,
            time - from.unwrap_or(0),
            i64::from(act.cause.partition),
            act.cause.offset as i64,
            i64::from(source),
            act.source.offset as i64,
            i64::from(act.source.index),
        ]
    }

    /// The act in a row.
    fn act(&self, cells: &shape::Cells) -> Act {
        let [_, flags, time, partition, offset, source, source_offset, index] = *cells;
        let cause = Position { partition: partition as u32, offset: offset as u64 };
        let from = match flags & NO_STRETCH {
            0 => self.stretches.get(cause).unwrap_or_default(),
            _ => 0,
        };
        let (topic, partition) = self.sources.get(source).unwrap_or_default();
        Act {
            state: if flags & OPTED_OUT != 0 { ConsentState::OptedOut } else { ConsentState::OptedIn },
            occurred_at: Timestamp::EPOCH.plus_millis(time.saturating_add(from)),
            source: Source { topic, partition, offset: source_offset as u64, index: index as u32 },
            cause,
            changed_state: flags & CHANGED_STATE != 0,
        }
    }
}

/// The shard of a person, and the rest of their fingerprint.
#[inline]
fn split(person: PersonPrint) -> (usize, u64) {
    ((person.0 >> PRINT_BITS) as usize, person.0 & ((1 << PRINT_BITS) - 1))
}

#[cfg(test)]
mod tests;
