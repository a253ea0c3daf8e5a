//! Sets of word classes: of one language, and of each language that has a word.

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
        (0..WORDS).flat_map(move |word| ones(self.0[word] & other.0[word]).map(move |bit| 64 * word + usize::from(bit)))
    }
}

/// The numbers of the bits that are set, from the lowest on.
#[inline]
fn ones(mut left: u64) -> impl Iterator<Item = u8> {
    std::iter::from_fn(move || {
        let lowest = left.trailing_zeros() as u8;
        left &= left.wrapping_sub(1);
        (lowest < 64).then_some(lowest)
    })
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

/// The classes of a word in each language that has it, by the language's number, which is below 64. Asking for a language that
/// does not have the word, which is the rule, reads no set.
#[derive(Clone, Debug, Default)]
pub(super) struct ByLanguage {
    /// A bit for each language.
    languages: u64,
    /// In the order of the bits.
    sets: Vec<ClassSet>,
}

impl ByLanguage {
    pub(super) fn add(&mut self, language: u8, classes: ClassSet) {
        let place = self.place(language);
        if self.has(language) {
            self.sets[place] |= classes;
        } else {
            self.languages |= 1 << language;
            self.sets.insert(place, classes);
        }
    }

    /// The languages that have the word, a bit for each.
    pub(super) fn languages(&self) -> u64 {
        self.languages
    }

    #[inline]
    pub(super) fn get(&self, language: u8) -> Option<&ClassSet> {
        if self.has(language) { self.sets.get(self.place(language)) } else { None }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u8, &ClassSet)> {
        ones(self.languages).zip(&self.sets)
    }

    fn has(&self, language: u8) -> bool {
        self.languages & (1 << language) != 0
    }

    /// How many sets stand before that of a language.
    fn place(&self, language: u8) -> usize {
        (self.languages & ((1 << language) - 1)).count_ones() as usize
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

    #[test]
    fn each_language_has_the_classes_that_were_added_for_it() {
        let mut sets = ByLanguage::default();
        for (language, class) in [(9, 1), (0, 2), (63, 3), (9, 4), (5, 5)] {
            sets.add(language, ClassSet::only(class));
        }
        let expected = [(0, ClassSet::only(2)), (5, ClassSet::only(5)), (9, ClassSet::only(1) | ClassSet::only(4)), (63, ClassSet::only(3))];
        assert!(sets.iter().eq(expected.iter().map(|(language, classes)| (*language, classes))));
        assert_eq!(sets.languages(), 1 | 1 << 5 | 1 << 9 | 1 << 63);
        for language in 0..64 {
            let known = expected.iter().find(|(number, _)| *number == language).map(|(_, classes)| classes);
            assert_eq!(sets.get(language), known, "{language}");
        }
    }
}
