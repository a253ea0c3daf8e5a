//! When a marketing send must say how to opt out: the first one, the first after a long silence, the first after the person came back.
//!
//! Kept for each recipient: the day of the last marketing send that was allowed, and which opt-in was told of. Eight bytes and the
//! room between them: at most twelve an entry.
//!
//! An entry is found by 52 bits of its fingerprint. At 100 million recipients a new one has a chance of 1 in 45 million to be taken for
//! another, and then no guidance; the set of opt-outs is not concerned.

use super::key::{Channel, Subject};
use super::suppression::{PersonPrint, PrintKey};
use super::time::Timestamp;

/// Why a send must say how to opt out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Occasion {
    First,
    AfterGap,
    AfterOptIn,
}

impl Occasion {
    /// The word in the header.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::AfterGap => "after-gap",
            Self::AfterOptIn => "after-opt-in",
        }
    }
}

/// What is known of one recipient.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Day of the last allowed marketing send, days since the Unix epoch.
    pub day: u16,
    /// A mark of the opt-in that a send has told of; 0: none.
    pub opt_in: u8,
}

const DAY_MS: i64 = 24 * 60 * 60 * 1000;
/// Days beyond 2149 are that day.
const LAST_DAY: i64 = u16::MAX as i64 - 1;

/// The day of an instant, in UTC.
pub fn day_of(at: Timestamp) -> u16 {
    u16::try_from(at.millis().div_euclid(DAY_MS).clamp(0, LAST_DAY)).unwrap_or_default()
}

/// A mark of an opt-in by its time. Two opt-ins in a row have one mark once in 255 times.
pub fn mark_of(opt_in: Timestamp) -> u8 {
    let mixed = (opt_in.millis() as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    u8::try_from(mixed % 255).unwrap_or_default() + 1
}

/// Whether guidance is due in a marketing send of this day, and what is known afterwards. `opted_in`: when the person last came back,
/// where that is why the send is allowed.
pub fn due(seen: Option<Seen>, day: u16, opted_in: Option<Timestamp>, gap_days: u16) -> (Option<Occasion>, Seen) {
    let mark = opted_in.map(mark_of);
    match seen {
        None => (Some(Occasion::First), Seen { day, opt_in: mark.unwrap_or_default() }),
        Some(before) => {
            let after = Seen { day: day.max(before.day), opt_in: mark.unwrap_or(before.opt_in) };
            let occasion = match (after.opt_in == before.opt_in, day.saturating_sub(before.day) >= gap_days) {
                (false, _) => Some(Occasion::AfterOptIn),
                (true, true) => Some(Occasion::AfterGap),
                (true, false) => None,
            };
            (occasion, after)
        }
    }
}

/// Fingerprint of a recipient on a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecipientPrint(u64);

impl RecipientPrint {
    /// The fingerprint of this person on this channel.
    pub fn new(prints: PrintKey, person: PersonPrint, channel: &Channel) -> Self {
        let channel = prints.slot(channel, &Subject::Marketing).bits();
        let mixed = (person.bits() ^ channel.rotate_left(29)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Self(mixed ^ (mixed >> 32))
    }
}

const SHARD_BITS: u32 = 12;
const TAG_BITS: u32 = 40;
const TAG_MASK: u64 = (1 << TAG_BITS) - 1;
/// Fullest a shard gets, in 256ths, and how much it grows then, in eighths of its size.
const FULLEST: usize = 218;
const GROWTH_EIGHTHS: usize = 2;
const SMALLEST: usize = 4;

/// What is known of all recipients.
///
/// Open addressing with linear probing, in shards that grow by a quarter one at a time: a slot is a tag of 40 bits, the day and one
/// (16 bits, 0 where the slot is empty) and the mark.
pub struct GuidanceSet {
    shards: Vec<Shard>,
}

#[derive(Default)]
struct Shard {
    slots: Vec<u64>,
    taken: usize,
}

impl Default for GuidanceSet {
    fn default() -> Self {
        Self { shards: (0..1 << SHARD_BITS).map(|_| Shard::default()).collect() }
    }
}

impl GuidanceSet {
    /// What is known of a recipient.
    pub fn get(&self, print: RecipientPrint) -> Option<Seen> {
        let (shard, tag) = self.place(print);
        let shard = self.shards.get(shard)?;
        let at = shard.find(tag)?;
        shard.slots.get(at).copied().filter(|slot| *slot != 0).map(seen_of)
    }

    /// Keeps what is known of a recipient.
    pub fn set(&mut self, print: RecipientPrint, seen: Seen) {
        let (shard, tag) = self.place(print);
        if let Some(shard) = self.shards.get_mut(shard) {
            shard.set(tag, seen);
        }
    }

    /// Forgets a recipient.
    pub fn remove(&mut self, print: RecipientPrint) {
        let (shard, tag) = self.place(print);
        if let Some(shard) = self.shards.get_mut(shard) {
            shard.remove(tag);
        }
    }

    /// Number of recipients.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.taken).sum()
    }

    /// Whether nobody is known.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes that it has allocated.
    pub fn allocated_bytes(&self) -> usize {
        let slots: usize = self.shards.iter().map(|shard| shard.slots.capacity() * size_of::<u64>()).sum();
        slots + self.shards.capacity() * size_of::<Shard>()
    }

    fn place(&self, print: RecipientPrint) -> (usize, u64) {
        ((print.0 >> (64 - SHARD_BITS)) as usize, print.0 & TAG_MASK)
    }
}

fn slot_of(tag: u64, seen: Seen) -> u64 {
    (tag << 24) | ((u64::from(seen.day) + 1) << 8) | u64::from(seen.opt_in)
}

fn seen_of(slot: u64) -> Seen {
    Seen { day: ((slot >> 8) as u16).saturating_sub(1), opt_in: slot as u8 }
}

impl Shard {
    /// Where a tag begins to be looked for: tags spread evenly over the slots.
    fn home(&self, tag: u64) -> usize {
        ((tag * self.slots.len() as u64) >> TAG_BITS) as usize
    }

    /// The slot of a tag, or the empty one where it would stand; `None` where there are no slots.
    fn find(&self, tag: u64) -> Option<usize> {
        let count = self.slots.len();
        let home = self.home(tag);
        (0..count).map(|step| (home + step) % count).find(|at| self.slots.get(*at).is_none_or(|slot| *slot == 0 || slot >> 24 == tag))
    }

    fn set(&mut self, tag: u64, seen: Seen) {
        if (self.taken + 1) * 256 > self.slots.len() * FULLEST {
            self.grow();
        }
        if let Some(slot) = self.find(tag).and_then(|at| self.slots.get_mut(at)) {
            self.taken += usize::from(*slot == 0);
            *slot = slot_of(tag, seen);
        }
    }

    fn grow(&mut self) {
        let count = (self.slots.len() + (self.slots.len() * GROWTH_EIGHTHS).div_ceil(8)).max(SMALLEST);
        let before = std::mem::take(&mut self.slots);
        self.slots = Vec::with_capacity(count);
        self.slots.resize(count, 0);
        for slot in before.into_iter().filter(|slot| *slot != 0) {
            if let Some(place) = self.find(slot >> 24).and_then(|at| self.slots.get_mut(at)) {
                *place = slot;
            }
        }
    }

    /// Takes a tag out, and moves back what stands behind it only because of it.
    fn remove(&mut self, tag: u64) {
        let Some(at) = self.find(tag).filter(|at| self.slots.get(*at).is_some_and(|slot| *slot != 0)) else { return };
        self.taken -= 1;
        let count = self.slots.len();
        let mut hole = at;
        let mut next = (at + 1) % count;
        while let Some(slot) = self.slots.get(next).copied().filter(|slot| *slot != 0) {
            let home = self.home(slot >> 24);
            // It may move where the hole lies on its way, from its home to where it stands.
            if (next + count - home) % count >= (next + count - hole) % count {
                self.slots.swap(hole, next);
                hole = next;
            }
            next = (next + 1) % count;
        }
        if let Some(slot) = self.slots.get_mut(hole) {
            *slot = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    fn at(day: i64) -> Timestamp {
        Timestamp::from_millis(day * DAY_MS + 7).expect("in range")
    }

    #[test]
    fn guidance_is_due_first_after_a_gap_and_after_an_opt_in_and_once_each() {
        let (first, seen) = due(None, 100, None, 90);
        assert_eq!(first, Some(Occasion::First));
        let (none, seen) = due(Some(seen), 100, None, 90);
        assert_eq!((none, seen.day), (None, 100));
        assert_eq!(due(Some(seen), 189, None, 90).0, None);
        let (gap, seen) = due(Some(seen), 190, None, 90);
        assert_eq!((gap, seen.day), (Some(Occasion::AfterGap), 190));
        let (back, seen) = due(Some(seen), 190, Some(at(190)), 90);
        assert_eq!(back, Some(Occasion::AfterOptIn));
        assert_eq!(due(Some(seen), 190, Some(at(190)), 90), (None, seen));
        // A send that comes late moves no day back.
        assert_eq!(due(Some(seen), 3, Some(at(190)), 90), (None, seen));
        assert_eq!(due(None, 5, Some(at(4)), 90).0, Some(Occasion::First));
    }

    #[test]
    fn days_are_bounded() {
        assert_eq!(day_of(at(20_000)), 20_000);
        assert_eq!(day_of(Timestamp::from_millis(-5).expect("in range")), 0);
        assert_eq!(day_of(at(2_900_000)), u16::MAX - 1);
    }

    #[test]
    fn an_entry_takes_at_most_twelve_bytes() {
        let mut set = GuidanceSet::default();
        let mut worst = 0.0_f64;
        for number in 0..2_000_000_u64 {
            set.set(RecipientPrint(number.wrapping_mul(0x9e37_79b9_7f4a_7c15)), Seen { day: 1, opt_in: 0 });
            if number > 500_000 && number.is_multiple_of(20_000) {
                worst = worst.max(set.allocated_bytes() as f64 / set.len() as f64);
            }
        }
        assert!(worst <= 12.0, "{worst}");
    }

    proptest! {
        #[test]
        fn the_set_keeps_what_a_map_keeps(steps in prop::collection::vec((0_u64..60, 0_u16..9, 0_u8..3, any::<bool>()), 0..400)) {
            let (mut set, mut map) = (GuidanceSet::default(), HashMap::new());
            for (number, day, opt_in, removes) in steps {
                // Few shards and few homes: tags meet.
                let print = RecipientPrint(((number % 2) << 63) | ((number * 0x00d1_b544_4f21) & TAG_MASK));
                if removes && opt_in == 0 {
                    set.remove(print);
                    map.remove(&print);
                } else {
                    set.set(print, Seen { day, opt_in });
                    map.insert(print, Seen { day, opt_in });
                }
                for (print, seen) in &map {
                    prop_assert_eq!(set.get(*print), Some(*seen));
                }
                prop_assert_eq!(set.len(), map.len());
            }
        }
    }
}
