//! A set taken apart into plain values, and put together again: what a snapshot is made of.
//!
//! Shards are taken one by one while others are written to, so an image is of no single moment: what was applied while
//! it was taken is in some shards and not in others. Whoever reads the log again from a position that was reached before
//! the first shard was taken gets the set as it should be, because acts fold to the same end from any state in between.
//!
//! Absent: bytes of a file. What comes from one is not trusted: parts that do not fit one another are refused, so that no
//! look-up leaves its shard.

use super::shape::Cells;
use super::shard::Shard;
use super::stretches::Stretches;
use super::{Numbered, PrintKey, SHARDS, SlotPrint, SuppressionSet};
use std::hash::Hash;

/// One shard as plain values.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShardImage {
    /// Of every lane; 0 where it is empty.
    pub tags: Vec<u16>,
    /// The rows of all lanes, packed to the bit.
    pub rows: Vec<u8>,
    /// Where the values of each column begin, and how many bits they take.
    pub columns: [(i64, u8); CELLS],
    /// Rows whose values do not fit their columns.
    pub wide: Vec<WholeRow>,
    /// Rows that found no lane near their own.
    pub far: Vec<WholeRow>,
    pub notes: Vec<NoteRow>,
    /// Wide rows when the columns were last fitted.
    pub wide_at_fit: usize,
}

/// Columns of a row.
pub const CELLS: usize = size_of::<Cells>() / size_of::<i64>();

/// A row that lies whole: a person's print within the shard, and the values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WholeRow {
    pub print: u64,
    pub cells: [i64; CELLS],
}

/// What a person's last message in a slot was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoteRow {
    pub print: u64,
    pub slot: u32,
    pub note: u64,
}

/// What rows refer to by number, in order of the numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SideTables {
    pub slots: Vec<u64>,
    pub sources: Vec<(u32, u32)>,
    /// Partition, number of the stretch, and the time to which times in it are kept as a distance.
    pub stretches: Vec<(u32, u64, i64)>,
    pub strange_partitions: u64,
}

/// Parts that are not those of one set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Misfit(pub &'static str);

impl SuppressionSet {
    /// One shard, taken apart.
    pub fn shard_image(&self, shard: usize) -> ShardImage {
        self.shards[shard].image()
    }

    /// What the rows of all shards refer to: to be taken after the last of them.
    pub fn side_tables(&self) -> SideTables {
        SideTables {
            slots: self.slots.values.iter().map(|slot| slot.0).collect(),
            sources: self.sources.values.clone(),
            stretches: self.stretches.iter().collect(),
            strange_partitions: self.strange_partitions,
        }
    }
}

/// A set that is put together.
pub struct Assembly {
    print_key: PrintKey,
    shards: Vec<Shard>,
    len: usize,
}

impl Assembly {
    /// Nothing yet, of a set whose fingerprints are made under this key.
    pub fn new(print_key: PrintKey) -> Self {
        Self { print_key, shards: Vec::with_capacity(SHARDS), len: 0 }
    }

    /// Adds the next shard.
    pub fn add(&mut self, image: ShardImage) -> Result<(), Misfit> {
        let shard = Shard::of_image(image)?;
        self.len += shard.len();
        self.shards.push(shard);
        Ok(())
    }

    /// The set, once all shards were added.
    pub fn finish(self, tables: SideTables) -> Result<SuppressionSet, Misfit> {
        if self.shards.len() != SHARDS {
            return Err(Misfit("the number of shards"));
        }
        Ok(SuppressionSet {
            shards: self.shards.into(),
            len: self.len,
            slots: numbered(tables.slots.into_iter().map(SlotPrint))?,
            sources: numbered(tables.sources)?,
            stretches: Stretches::of(tables.stretches).ok_or(Misfit("a stretch that no topic has"))?,
            strange_partitions: tables.strange_partitions,
            ..SuppressionSet::new(self.print_key)
        })
    }
}

/// Values with the numbers that they had.
fn numbered<T: Copy + Eq + Hash>(values: impl IntoIterator<Item = T>) -> Result<Numbered<T>, Misfit> {
    let mut numbered = Numbered::new();
    for (number, value) in values.into_iter().enumerate() {
        if numbered.number_or_add(value) as usize != number {
            return Err(Misfit("a value with two numbers"));
        }
    }
    Ok(numbered)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::consent::{Act, ConsentState, Position, Source};
    use crate::domain::suppression::PersonPrint;
    use crate::domain::time::Timestamp;
    use proptest::prelude::*;

    const PRINTS: PrintKey = PrintKey::new(3, 4);

    /// Few persons in few shards, so that rows are wide, far and removed.
    fn person(number: u64) -> PersonPrint {
        PersonPrint((number % 3) << 52 | (number / 3).wrapping_mul(0x9e37_79b9) & ((1 << 52) - 1))
    }

    fn act(number: u64, wild: i64) -> Act {
        Act {
            state: if number.is_multiple_of(3) { ConsentState::OptedIn } else { ConsentState::OptedOut },
            occurred_at: Timestamp::EPOCH.plus_millis(1_793_500_000_000 + wild),
            source: Source { topic: number as u32 % 2, partition: 1, offset: number, index: 0 },
            cause: Position { partition: 0, offset: number * 9 },
            changed_state: number.is_multiple_of(5),
        }
    }

    fn again(set: &SuppressionSet) -> SuppressionSet {
        let mut assembly = Assembly::new(PRINTS);
        for shard in 0..SHARDS {
            assembly.add(set.shard_image(shard)).expect("a shard");
        }
        assembly.finish(set.side_tables()).expect("a set")
    }

    proptest! {
        #[test]
        fn a_set_that_was_taken_apart_and_put_together_answers_and_goes_on_as_before(
            changes in prop::collection::vec((0..600_u64, 0..4_u64, prop_oneof![0..1000_i64, Just(1 << 50)], 0..10_u8), 0..900),
        ) {
            let mut set = SuppressionSet::new(PRINTS);
            let (before, after) = changes.split_at(changes.len() / 2);
            let change = |set: &mut SuppressionSet, (number, slot, wild, kind): &(u64, u64, i64, u8)| match kind {
                0 => set.erase_from(person(*number), SlotPrint(*slot)),
                1 => set.note_opt_in(person(*number), SlotPrint(*slot), *number),
                _ => {
                    set.apply_to(person(*number), SlotPrint(*slot), act(*number, *wild));
                }
            };
            before.iter().for_each(|one| change(&mut set, one));
            let mut other = again(&set);
            for part in [&[][..], after] {
                part.iter().for_each(|one| { change(&mut set, one); change(&mut other, one); });
                prop_assert_eq!(set.len(), other.len());
                for (number, slot) in (0..600).flat_map(|number| (0..4).map(move |slot| (number, SlotPrint(slot)))) {
                    prop_assert_eq!(set.standing(person(number), slot), other.standing(person(number), slot));
                    prop_assert_eq!(set.opt_in_note(person(number), slot), other.opt_in_note(person(number), slot));
                    prop_assert_eq!(set.knows(person(number)), other.knows(person(number)));
                }
            }
        }

        #[test]
        fn parts_that_fit_nothing_are_refused_or_answer_something_without_a_panic(
            tags in prop::collection::vec(any::<u16>(), 0..130),
            rows in prop::collection::vec(any::<u8>(), 0..2000),
            widths in prop::array::uniform8(0..70_u8),
            print in any::<u64>(),
        ) {
            let row = WholeRow { print, cells: [1; CELLS] };
            let image = ShardImage { tags, rows, columns: widths.map(|width| (7, width)), wide: vec![row], far: vec![row], notes: vec![], wide_at_fit: 3 };
            if let Ok(mut shard) = Shard::of_image(image) {
                shard.add(5, [0; CELLS], crate::domain::suppression::shard::Growth::Tight);
                shard = shard.tightened(3);
                assert!(shard.get(5, 0).is_some());
            }
        }
    }

    #[test]
    fn tags_that_say_what_cannot_be_are_refused() {
        let mut set = SuppressionSet::new(PRINTS);
        for number in 0..90 {
            set.apply_to(PersonPrint((number * 0x9e37_79b9_7f4a) >> 12), SlotPrint(1), act(number, 0));
        }
        let good = set.shard_image(0);
        assert!(Shard::of_image(good.clone()).is_ok());
        let damaged = |damage: &dyn Fn(&mut ShardImage)| {
            let mut image = good.clone();
            damage(&mut image);
            Shard::of_image(image).err()
        };
        let lane = good.tags.iter().position(|tag| *tag != 0).expect("a row");
        assert_eq!(damaged(&|image| image.tags[lane] = 1), Some(Misfit("a tag without a distance")));
        assert_eq!(damaged(&|image| image.tags[lane] = 7 << 13), Some(Misfit("a tag from outside of its shard")));
        assert_eq!(damaged(&|image| image.tags.truncate(30)), Some(Misfit("part of a bucket")));
        assert_eq!(damaged(&|image| image.rows.truncate(9)), Some(Misfit("the bytes of the rows")));
        assert_eq!(damaged(&|image| image.columns[3].1 = 57), Some(Misfit("a column that is too wide")));
        assert_eq!(damaged(&|image| image.wide.push(WholeRow { print: 1, cells: [0; CELLS] })), Some(Misfit("wide rows that no lane tells of")));
        assert_eq!(damaged(&|image| image.far.push(WholeRow { print: 1 << 52, cells: [0; CELLS] })), Some(Misfit("a print of another shard")));
    }
}
