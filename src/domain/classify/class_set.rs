//! A set of word classes of one language.

use std::ops::{BitOr, BitOrAssign};

const WORDS: usize = 16;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ClassSet([u64; WORDS]);

impl ClassSet {
    /// The classes that one language may have, groups of words in patterns included.
    pub(super) const MOST: usize = 64 * WORDS;
    pub(super) const EMPTY: Self = Self([0; WORDS]);

    pub(super) fn only(class: usize) -> Self {
        let mut set = Self::EMPTY;
        if let Some(word) = set.0.get_mut(class / 64) {
            *word = 1 << (class % 64);
        }
        set
    }

    pub(super) fn is_empty(self) -> bool {
        self == Self::EMPTY
    }

    #[inline]
    pub(super) fn meets(&self, other: &Self) -> bool {
        self.0.iter().zip(&other.0).fold(0, |met, (word, other)| met | (word & other)) != 0
    }

    /// The classes that are in both sets, in order.
    #[inline]
    pub(super) fn common(self, other: Self) -> impl Iterator<Item = usize> {
        (0..WORDS).flat_map(move |word| {
            let mut left = self.0[word] & other.0[word];
            std::iter::from_fn(move || {
                let lowest = left.trailing_zeros() as usize;
                left &= left.wrapping_sub(1);
                (lowest < 64).then_some(64 * word + lowest)
            })
        })
    }
}

impl BitOr for ClassSet {
    type Output = Self;

    fn bitor(mut self, other: Self) -> Self {
        self |= other;
        self
    }
}

impl BitOrAssign for ClassSet {
    fn bitor_assign(&mut self, other: Self) {
        self.0.iter_mut().zip(other.0).for_each(|(word, more)| *word |= more);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn common_lists_what_is_in_both() {
        let set = ClassSet::only(3) | ClassSet::only(64) | ClassSet::only(255);
        assert_eq!(set.common(ClassSet::only(64) | ClassSet::only(255) | ClassSet::only(7)).collect::<Vec<_>>(), [64, 255]);
        assert!(!set.meets(&ClassSet::only(4)));
    }
}
