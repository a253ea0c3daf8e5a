//! Every word and phrase of a lexicon in one trie, walked byte by byte along the folded text.
//!
//! Invariants: a walk costs at most one step a byte of the longest entry; an entry is found only where it starts and ends
//! with a token. Entries hold folded text with single spaces.
//!
//! Absent: what an entry means; the trie hands out numbers.

use smallvec::SmallVec;

/// Where a walk stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place(u32);

#[derive(Debug, Default)]
struct Draft {
    /// By label. Most nodes have one.
    next: SmallVec<[(u8, u32); 2]>,
    whole: Option<u32>,
    stem: Option<u32>,
}

/// The trie under construction: numbers are handed out in order of first insertion.
#[derive(Debug)]
pub(super) struct WordsBuilder {
    drafts: Vec<Draft>,
    numbers: u32,
}

impl WordsBuilder {
    pub(super) fn new() -> Self {
        Self { drafts: vec![Draft::default()], numbers: 0 }
    }

    /// The number of this entry; `stem` entries match every word that starts with them.
    pub(super) fn number(&mut self, text: &str, stem: bool) -> u32 {
        let mut at = 0usize;
        for byte in text.bytes() {
            let fresh = self.drafts.len();
            let next = &mut self.drafts[at].next;
            at = match next.binary_search_by_key(&byte, |(label, _)| *label) {
                Ok(place) => next[place].1 as usize,
                Err(place) => {
                    next.insert(place, (byte, fresh as u32));
                    self.drafts.push(Draft::default());
                    fresh
                }
            };
        }
        let draft = &mut self.drafts[at];
        let slot = if stem { &mut draft.stem } else { &mut draft.whole };
        *slot.get_or_insert_with(|| {
            self.numbers += 1;
            self.numbers - 1
        })
    }

    pub(super) fn build(self) -> Words {
        let mut nodes = Vec::with_capacity(self.drafts.len());
        let (mut labels, mut targets, mut forks) = (Vec::new(), Vec::new(), Vec::new());
        let mut root = [NOWHERE; 256];
        for (index, draft) in self.drafts.iter().enumerate() {
            let is_fork = draft.next.len() > MOST_COMPARED;
            if is_fork {
                forks.push(Fork::of(draft.next.iter().map(|(label, _)| *label)));
            }
            nodes.push(Node {
                first: labels.len() as u32,
                edges: draft.next.len() as u16,
                fork: if is_fork { forks.len() as u32 } else { 0 },
                whole: draft.whole.map_or(0, |number| number + 1),
                stem: draft.stem.map_or(0, |number| number + 1),
            });
            for &(label, target) in &draft.next {
                labels.push(label);
                targets.push(target);
                if index == 0 {
                    root[usize::from(label)] = target;
                }
            }
        }
        Words { nodes, labels, targets, forks, root: Box::new(root) }
    }
}

const NOWHERE: u32 = u32::MAX;

#[derive(Clone, Debug)]
struct Node {
    first: u32,
    edges: u16,
    /// Number + 1, 0 for none.
    fork: u32,
    /// Number + 1, 0 for none; the same for `stem`.
    whole: u32,
    stem: u32,
}

/// A node with so many edges or fewer has its labels compared one by one.
const MOST_COMPARED: usize = 4;

/// The labels of a node that has many.
#[derive(Clone, Debug)]
struct Fork {
    labels: [u64; 4],
    /// How many labels are less than those of each word of `labels`.
    less: [u8; 4],
}

impl Fork {
    fn of(labels: impl Iterator<Item = u8>) -> Self {
        let mut fork = Self { labels: [0; 4], less: [0; 4] };
        for label in labels {
            let word = usize::from(label >> 6);
            fork.labels[word] |= 1 << (label & 63);
            fork.less[word + 1..].iter_mut().for_each(|less| *less += 1);
        }
        fork
    }

    /// Which of the labels this one is, if it is one.
    #[inline]
    fn position(&self, label: u8) -> Option<usize> {
        let word = usize::from(label >> 6);
        let (labels, bit) = (self.labels[word], 1 << (label & 63));
        (labels & bit != 0).then(|| usize::from(self.less[word]) + (labels & (bit - 1)).count_ones() as usize)
    }
}

#[derive(Clone, Debug)]
pub(super) struct Words {
    nodes: Vec<Node>,
    labels: Vec<u8>,
    targets: Vec<u32>,
    forks: Vec<Fork>,
    root: Box<[u32; 256]>,
}

impl Words {
    pub(super) const START: Place = Place(0);

    #[inline]
    pub(super) fn step(&self, place: Place, byte: u8) -> Option<Place> {
        if place.0 == 0 {
            let target = self.root[usize::from(byte)];
            return (target != NOWHERE).then_some(Place(target));
        }
        let node = &self.nodes[place.0 as usize];
        let first = node.first as usize;
        let edge = match node.fork.checked_sub(1) {
            Some(fork) => self.forks[fork as usize].position(byte),
            None => self.labels[first..first + usize::from(node.edges)].iter().position(|label| *label == byte),
        };
        edge.map(|edge| Place(self.targets[first + edge]))
    }

    #[inline]
    pub(super) fn whole(&self, place: Place) -> Option<u32> {
        self.nodes[place.0 as usize].whole.checked_sub(1)
    }

    #[inline]
    pub(super) fn stem(&self, place: Place) -> Option<u32> {
        self.nodes[place.0 as usize].stem.checked_sub(1)
    }

    /// The entry that is exactly this text.
    pub(super) fn find(&self, text: &[u8]) -> Option<u32> {
        let mut place = Self::START;
        for &byte in text {
            place = self.step(place, byte)?;
        }
        self.whole(place)
    }

    /// Whether a word is an entry, or starts with a stem.
    pub(super) fn knows(&self, word: &[u8]) -> bool {
        let mut place = Self::START;
        for &byte in word {
            match self.step(place, byte) {
                Some(next) => place = next,
                None => return false,
            }
            if self.stem(place).is_some() {
                return true;
            }
        }
        self.whole(place).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_whole_entries_and_stems_and_nothing_between() {
        let mut builder = WordsBuilder::new();
        let stop = builder.number("stop", false);
        assert_eq!(builder.number("stop", false), stop);
        let stop_all = builder.number("stop all", false);
        builder.number("mesaj", true);
        let words = builder.build();
        assert_eq!(words.find(b"stop"), Some(stop));
        assert_eq!(words.find(b"stop all"), Some(stop_all));
        assert_eq!(words.find(b"sto"), None);
        assert!(words.knows("mesajlar".as_bytes()));
        assert!(!words.knows(b"mesa"));
    }

    #[test]
    fn a_letter_of_many_is_found_where_there_are_few_and_where_there_are_many() {
        for step in [1, 2, 3, 7, 40, 63, 64, 100, 255] {
            let mut builder = WordsBuilder::new();
            let letters: Vec<u8> = (0..=255).step_by(step).collect();
            let texts: Vec<String> = letters.iter().map(|letter| format!("a{}", char::from(*letter))).collect();
            let numbers: Vec<u32> = texts.iter().map(|text| builder.number(text, false)).collect();
            let words = builder.build();
            for letter in 0..=255 {
                let text = format!("a{}", char::from(letter));
                let known = letters.iter().position(|known| *known == letter).map(|place| numbers[place]);
                assert_eq!(words.find(text.as_bytes()), known, "{letter} of every {step}");
            }
        }
    }
}
