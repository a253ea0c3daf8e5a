//! For each stretch of the opt-outs topic, the time to which its acts' times are kept as a distance.
//!
//! A partition's times stand in a row, so that one is found by its place: to hash partition and stretch was a seventh of a
//! look-up of somebody known. A time stays as it is, since rows refer to it.

use crate::domain::consent::Position;
use std::iter::repeat_n;

/// Records of a partition that are one stretch.
const STRETCH: u64 = 4096;
/// Stands where no time is kept.
const NONE: i64 = i64::MIN;
/// No topic has more partitions, or more stretches of one: 2³⁶ records. No record lies in a later one than the last.
const MOST_PARTITIONS: usize = 1 << 16;
const MOST_PLACES: usize = 1 << 24;
const LAST: u64 = u64::MAX / STRETCH;

/// The times of all stretches.
#[derive(Clone, Debug, Default)]
pub(super) struct Stretches {
    /// By partition.
    times: Vec<Times>,
    /// Of all partitions.
    places: usize,
}

/// The times of one partition.
#[derive(Clone, Debug, Default)]
struct Times {
    /// The stretch in the first place.
    first: u64,
    times: Vec<i64>,
}

/// The stretch in which a record lies.
fn stretch_of(at: Position) -> u64 {
    at.offset / STRETCH
}

impl Stretches {
    /// The time that is kept for the stretch of this record.
    #[inline]
    pub(super) fn get(&self, at: Position) -> Option<i64> {
        let times = self.times.get(at.partition as usize)?;
        let place = usize::try_from(stretch_of(at).checked_sub(times.first)?).ok()?;
        times.times.get(place).copied().filter(|time| *time != NONE)
    }

    /// The time that is kept for the stretch of this record: this one, where there was none and it takes no more than so
    /// many places.
    pub(super) fn get_or_keep(&mut self, at: Position, time: i64, most: usize) -> Option<i64> {
        self.get(at).or_else(|| self.keep(at.partition, stretch_of(at), time, most).then_some(time))
    }

    /// Keeps a time, if there is room for it and for the places between it and the next; whether there was.
    fn keep(&mut self, partition: u32, stretch: u64, time: i64, most: usize) -> bool {
        let partition = partition as usize;
        if partition >= MOST_PARTITIONS || stretch > LAST || time == NONE {
            return false;
        }
        // The row from the first stretch to one past the last, once this one has its place.
        let known = self.times.get(partition).filter(|known| !known.times.is_empty());
        let (first, end) = known.map_or((stretch, stretch), |known| (known.first, known.first + known.times.len() as u64));
        let (from, to) = (first.min(stretch), end.max(stretch + 1));
        let more = (to - from) - (end - first);
        if to - from > MOST_PLACES as u64 || self.places as u64 + more > most.max(self.places) as u64 {
            return false;
        }
        if self.times.len() <= partition {
            self.times.resize_with(partition + 1, Times::default);
        }
        let known = &mut self.times[partition];
        known.first = from;
        drop(known.times.splice(..0, repeat_n(NONE, (first - from) as usize)));
        known.times.resize((to - from) as usize, NONE);
        known.times[(stretch - from) as usize] = time;
        self.places += more as usize;
        true
    }

    /// Partition, number of the stretch and time, in that order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, u64, i64)> + '_ {
        (0..).zip(&self.times).flat_map(|(partition, known)| {
            let kept = (known.first..).zip(&known.times).filter(|(_, time)| **time != NONE);
            kept.map(move |(stretch, time)| (partition, stretch, *time))
        })
    }

    /// Puts together what [`Stretches::iter`] told; `None` where there cannot be such stretches.
    pub(super) fn of(told: impl IntoIterator<Item = (u32, u64, i64)>) -> Option<Self> {
        let mut stretches = Self::default();
        let all = told.into_iter().all(|(partition, stretch, time)| stretches.keep(partition, stretch, time, usize::MAX));
        all.then_some(stretches)
    }

    pub(super) fn allocated_bytes(&self) -> usize {
        let times: usize = self.times.iter().map(|known| known.times.capacity() * size_of::<i64>()).sum();
        times + self.times.capacity() * size_of::<Times>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn at(partition: u32, stretch: u64) -> Position {
        Position { partition, offset: stretch * STRETCH + 7 }
    }

    proptest! {
        #[test]
        fn the_first_time_of_a_stretch_is_kept(acts in prop::collection::vec((0..4_u32, 1000..1060_u64, -9..9_i64), 0..200)) {
            let mut known: BTreeMap<(u32, u64), i64> = BTreeMap::new();
            let mut stretches = Stretches::default();
            for (partition, stretch, time) in acts {
                let kept = *known.entry((partition, stretch)).or_insert(time);
                prop_assert_eq!(stretches.get_or_keep(at(partition, stretch), time, usize::MAX), Some(kept));
            }
            let told: Vec<(u32, u64, i64)> = known.iter().map(|((partition, stretch), time)| (*partition, *stretch, *time)).collect();
            prop_assert_eq!(stretches.iter().collect::<Vec<_>>(), told.clone());
            let again = Stretches::of(told.iter().rev().copied()).expect("such stretches");
            prop_assert_eq!(again.places, stretches.places);
            prop_assert_eq!(again.iter().collect::<Vec<_>>(), told);
        }
    }

    #[test]
    fn a_stretch_that_takes_too_many_places_is_not_kept() {
        let mut stretches = Stretches::default();
        assert_eq!(stretches.get_or_keep(at(0, 500), 1, 10), Some(1));
        assert_eq!(stretches.get_or_keep(at(0, 509), 2, 10), Some(2));
        assert_eq!(stretches.get_or_keep(at(0, 510), 3, 10), None);
        assert_eq!(stretches.get_or_keep(at(0, 499), 3, 10), None);
        assert_eq!(stretches.get_or_keep(at(1, 0), 3, 10), None);
        // One that has its place already is.
        assert_eq!(stretches.get_or_keep(at(0, 505), 3, 10), Some(3));
        assert_eq!((stretches.get(at(0, 509)), stretches.get(at(0, 510)), stretches.get(at(3, 0))), (Some(2), None, None));
    }

    #[test]
    fn what_no_topic_can_hold_is_refused() {
        for stretch in [1 << 24, LAST, LAST + 1] {
            assert!(Stretches::of([(0, 0, 1), (0, stretch, 1)]).is_none());
        }
        assert!(Stretches::of([(u32::MAX, 0, 1)]).is_none());
        assert_eq!(Stretches::of([(0, LAST, 1), (0, LAST - 1, 2)]).map(|stretches| stretches.places), Some(2));
    }
}
