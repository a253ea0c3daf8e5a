//! Words that are a slip away from a word of the lexicon.
//!
//! A slip is one letter too many, too few, wrong, or two letters in the wrong order; words of nine letters and more may
//! have two. Found by deletion: both sides drop letters, and what coincides is measured.
//!
//! Invariants: a lookup is linear in the word and in the few candidates; words shorter than four letters have no slips.
//!
//! Absent: which words must not be corrected; the caller asks only about words that no language file knows.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

const SHORTEST: usize = 4;
const SHORTEST_FOR_TWO: usize = 9;
const LONGEST: usize = 24;

/// The keys are hashes already.
#[derive(Clone, Default, Debug)]
pub(super) struct Identity(u64);

impl Hasher for Identity {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 << 8) | u64::from(*byte);
        }
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }
}

#[derive(Clone, Debug, Default)]
pub(super) struct Slips {
    by_deletion: HashMap<u64, Vec<u32>, BuildHasherDefault<Identity>>,
    words: Vec<(Box<[char]>, u32)>,
}

impl Slips {
    /// Makes a word findable; `number` is what a lookup returns.
    pub(super) fn add(&mut self, word: &str, number: u32) {
        let letters: Box<[char]> = word.chars().collect();
        if !(SHORTEST..=LONGEST).contains(&letters.len()) || self.words.iter().any(|(known, _)| *known == letters) {
            return;
        }
        let place = self.words.len() as u32;
        let mut insert = |key: u64| {
            let places = self.by_deletion.entry(key).or_default();
            if !places.contains(&place) {
                places.push(place);
            }
        };
        insert(hash(&letters, usize::MAX, usize::MAX));
        for first in 0..letters.len() {
            insert(hash(&letters, first, usize::MAX));
            if letters.len() >= SHORTEST_FOR_TWO {
                (first + 1..letters.len()).for_each(|second| insert(hash(&letters, first, second)));
            }
        }
        self.words.push((letters, number));
    }

    /// The number of the word that this one was meant to be.
    pub(super) fn find(&self, word: &str) -> Option<u32> {
        let mut letters = ['\0'; LONGEST + 2];
        let mut length = 0;
        for c in word.chars() {
            *letters.get_mut(length)? = c;
            length += 1;
        }
        let letters = &letters[..length];
        if length < SHORTEST {
            return None;
        }
        let whole = self.measure(hash(letters, usize::MAX, usize::MAX), letters);
        let once = || (0..length).find_map(|first| self.measure(hash(letters, first, usize::MAX), letters));
        let twice = || {
            let mut pairs = (0..length).flat_map(|first| (first + 1..length).map(move |second| (first, second)));
            pairs.find_map(|(first, second)| self.measure(hash(letters, first, second), letters))
        };
        whole.or_else(once).or_else(|| if length >= SHORTEST_FOR_TWO { twice() } else { None })
    }

    fn measure(&self, key: u64, letters: &[char]) -> Option<u32> {
        let places = self.by_deletion.get(&key)?;
        places.iter().map(|place| &self.words[*place as usize]).find(|(word, _)| are_near(word, letters)).map(|(_, number)| *number)
    }
}

fn are_near(word: &[char], letters: &[char]) -> bool {
    let allowed = if word.len() >= SHORTEST_FOR_TWO { 2 } else { 1 };
    distance(word, letters) <= allowed
}

/// FNV-1a of the letters without those at two places.
fn hash(letters: &[char], first: usize, second: usize) -> u64 {
    let mut value = 0xcbf2_9ce4_8422_2325_u64;
    for (at, letter) in letters.iter().enumerate() {
        if at != first && at != second {
            value = (value ^ u64::from(u32::from(*letter))).wrapping_mul(0x0100_0000_01b3);
        }
    }
    value
}

/// Insertions, deletions, replacements and swaps of neighbours from one word to the other.
fn distance(left: &[char], right: &[char]) -> usize {
    const WIDTH: usize = LONGEST + 3;
    let (mut before, mut above, mut row) = ([0; WIDTH], [0; WIDTH], [0; WIDTH]);
    for (at, cell) in above.iter_mut().enumerate() {
        *cell = at;
    }
    for (i, a) in left.iter().enumerate() {
        row[0] = i + 1;
        for (j, b) in right.iter().enumerate() {
            let mut best = (above[j] + usize::from(a != b)).min(above[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && *a == right[j - 1] && left[i - 1] == *b {
                best = best.min(before[j - 1] + 1);
            }
            row[j + 1] = best;
        }
        (before, above) = (above, row);
    }
    above[right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_slip_is_forgiven_in_a_short_word_and_two_in_a_long_one() {
        let mut slips = Slips::default();
        slips.add("stop", 1);
        slips.add("unsubscribe", 2);
        for (word, expected) in [("stpo", Some(1)), ("stopp", Some(1)), ("sop", None), ("dtop", Some(1)), ("shpo", None)] {
            assert_eq!(slips.find(word), expected, "{word}");
        }
        for word in ["unsubcribe", "unsuscibe", "unsubsrcibe", "unsubscribed"] {
            assert_eq!(slips.find(word), Some(2), "{word}");
        }
    }
}
