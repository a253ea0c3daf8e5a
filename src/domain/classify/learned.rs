//! What no rule understands: a weighing of words, learned from the labelled set.
//!
//! A linear model. A text's features are its words, two and three of them in a row, and pieces of four letters of longer
//! words, which are alike where spellings are not; a break between clauses counts as a word. The score is the sum of the
//! features' weights over the square root of their number, plus a constant, in thousandths. From one threshold on it is an
//! opt-out, from a lower one on a person looks at it; and at a very low one a rule's opt-out is doubted. The weights are lines that a reader can judge, in a file beside the
//! language files; `examples/learn.rs` writes it from `tests/labelled/dev`.
//!
//! Invariants: rules come first, what a keyword decides is not weighed and what a rule decides is at most doubted; a score opts
//! nobody in; sums are of whole numbers, so that every machine gets the same. Two features share a weight if what is kept of their
//! hashes is the same: of a text's other features fewer than one in a thousand million meets one of the model's.
//!
//! Absent: the file's format (`wire::lexicon`), and learning.

use super::compile::MOST_LANGUAGES;
use super::data::LearnedData;
use super::lexicon::LexiconFault;
use super::text::Text;
use super::{Class, LanguageCode, RuleId};
use hashbrown::HashTable;

/// A text of fewer words is the business of keywords and rules: two or three words are as often the half of a sentence.
const FEWEST: usize = 4;
/// A text of more words is a letter, in which what is a wish weighs little beside the rest.
const MOST: usize = 120;
/// Words in a row.
const LONGEST_ROW: usize = 3;
/// Letters of a piece, `<` and `>` at the ends of a word included.
const PIECE: usize = 4;
/// A word of fewer letters has no pieces.
const LONG_WORD: usize = 5;

/// What stands for the beginning, the end, and a break between clauses.
const BREAK: &str = ".";
/// Tells a piece from a word.
const IS_PIECE: char = '*';

/// A feature's weight.
#[derive(Clone, Copy, Debug)]
struct Weight {
    /// What is kept of the feature's hash; the whole says where to look.
    check: u32,
    thousandths: i16,
    /// The language in which it was mostly seen, by number.
    language: u8,
}

/// The model.
#[derive(Clone, Debug)]
pub(super) struct Learned {
    weights: HashTable<Weight>,
    languages: Vec<LanguageCode>,
    constant: i32,
    opt_out: i32,
    review: i32,
    doubt: i32,
    /// The names under which it decides.
    opts_out: RuleId,
    asks: RuleId,
    doubts: RuleId,
}

/// Buffers of one weighing.
#[derive(Debug, Default)]
pub(super) struct Sequence {
    /// Hashes of words and breaks, and each word's token.
    marks: Vec<(u64, Option<usize>)>,
    padded: String,
}

/// A text's score, and what it means.
#[derive(Clone, Debug)]
pub(super) struct Weighed {
    pub(super) class: Class,
    pub(super) rule: RuleId,
    pub(super) language: Option<LanguageCode>,
    pub(super) thousandths: i32,
}

impl Learned {
    /// Checks and compiles a model.
    pub(super) fn build(data: &LearnedData) -> Result<Self, LexiconFault> {
        let fault = |line, reason: &str| LexiconFault { file: data.file.clone(), line, reason: reason.to_owned() };
        if i16::try_from(data.constant).is_err() {
            return Err(fault(1, "a constant beyond 32,767"));
        }
        if data.review > data.opt_out {
            return Err(fault(1, "the threshold of review lies above that of opt_out"));
        }
        if data.doubt >= data.constant.min(data.review) {
            return Err(fault(1, "doubt lies above constant or review: a rule would be doubted of whose words nothing is known"));
        }
        let mut languages: Vec<LanguageCode> = Vec::new();
        let mut weights = HashTable::with_capacity(data.weights.len());
        for located in &data.weights {
            let (line, weight) = (located.line, &located.value);
            let known = languages.iter().position(|code| code.as_str() == weight.language);
            let language = known.unwrap_or_else(|| {
                languages.push(LanguageCode::new(&weight.language));
                languages.len() - 1
            });
            if language >= MOST_LANGUAGES {
                return Err(fault(line, "more than 64 languages"));
            }
            let thousandths = i16::try_from(weight.thousandths).map_err(|_| fault(line, "a weight beyond 32,767"))?;
            let hash = named(&weight.feature).ok_or_else(|| fault(line, "not a feature: one to three words, or * and a piece of one"))?;
            if find(&weights, hash).is_some() {
                return Err(fault(line, "this feature has a weight already"));
            }
            // There is room: nothing is moved, so nothing is hashed again.
            weights.insert_unique(hash, Weight { check: check(hash), thousandths, language: language as u8 }, |weight| u64::from(weight.check));
        }
        let LearnedData { constant, opt_out, review, doubt, .. } = *data;
        let [opts_out, asks, doubts] = ["opt-out", "review", "doubt"].map(|name| RuleId::new(format!("learned.{name}")));
        Ok(Self { weights, languages, constant, opt_out, review, doubt, opts_out, asks, doubts })
    }

    /// Weighs a text; nothing where it is not for this model to say.
    pub(super) fn weigh(&self, text: &Text, sequence: &mut Sequence) -> Option<Weighed> {
        let (mut sum, mut number) = (0_i64, 0_i64);
        let mut by_language = [0_i64; MOST_LANGUAGES];
        each(text, sequence, |hash, _| {
            number += 1;
            if let Some(weight) = find(&self.weights, hash) {
                sum += i64::from(weight.thousandths);
                by_language[usize::from(weight.language)] += i64::from(weight.thousandths.max(0));
            }
        })?;
        let thousandths = (sum * 1000 / root_of_thousand_squared(number)) as i32 + self.constant;
        let (class, rule) = match thousandths {
            score if score >= self.opt_out => (Class::OptOut, self.opts_out.clone()),
            score if score >= self.review => (Class::Review, self.asks.clone()),
            _ => (Class::None, RuleId::NONE),
        };
        let most = by_language.iter().take(self.languages.len()).enumerate().max_by_key(|(number, sum)| (**sum, std::cmp::Reverse(*number)));
        let language = most.and_then(|(number, _)| self.languages.get(number)).cloned();
        Some(Weighed { class, rule, language, thousandths })
    }

    /// Under which rule a rule's opt-out is doubted, if its words speak against it.
    pub(super) fn doubt(&self, text: &Text, sequence: &mut Sequence) -> Option<RuleId> {
        let weighed = self.weigh(text, sequence)?;
        (weighed.thousandths <= self.doubt).then(|| self.doubts.clone())
    }

    /// The features of a text that count most, with what each counts for, in thousandths.
    pub(super) fn strongest(&self, text: &Text, sequence: &mut Sequence, most: usize) -> Vec<(String, i32)> {
        let mut counted: Vec<(String, i32)> = Vec::new();
        each(text, sequence, |hash, feature| {
            if let Some(weight) = find(&self.weights, hash) {
                counted.push((feature.name(text), i32::from(weight.thousandths)));
            }
        });
        counted.sort_by_key(|(_, thousandths)| std::cmp::Reverse(thousandths.abs()));
        counted.dedup();
        counted.truncate(most);
        counted
    }
}

/// The names of a text's features; none where it is not weighed.
pub(super) fn names(text: &Text, sequence: &mut Sequence) -> Vec<String> {
    let mut names = Vec::new();
    each(text, sequence, |_, feature| names.push(feature.name(text)));
    names
}

/// A feature, by what it is made of.
enum Feature<'s> {
    Row(&'s [(u64, Option<usize>)]),
    Piece(&'s str),
}

impl Feature<'_> {
    fn name(&self, text: &Text) -> String {
        match self {
            Self::Row(marks) => {
                let words = marks.iter().map(|(_, token)| token.map_or(BREAK, |token| text.slice(token..token + 1)));
                words.collect::<Vec<_>>().join(" ")
            }
            Self::Piece(letters) => format!("{IS_PIECE}{letters}"),
        }
    }
}

/// Visits the features of a text, each as often as it is there; nothing where the text is not weighed.
fn each(text: &Text, sequence: &mut Sequence, mut visit: impl FnMut(u64, Feature<'_>)) -> Option<()> {
    if !(FEWEST..=MOST).contains(&text.tokens.len()) {
        return None;
    }
    let Sequence { marks, padded } = sequence;
    let pause = (hash_of_word(BREAK), None);
    marks.clear();
    for (at, token) in text.tokens.iter().enumerate() {
        if token.opens {
            marks.push(pause);
        }
        marks.push((hash_of_word(text.slice(at..at + 1)), Some(at)));
    }
    marks.push(pause);
    for start in 0..marks.len() {
        let mut hash = START_OF_ROW;
        for (words, mark) in marks[start..].iter().take(LONGEST_ROW).enumerate() {
            hash = join(hash, mark.0);
            // A break alone says nothing.
            if words > 0 || mark.1.is_some() {
                visit(hash, Feature::Row(&marks[start..=start + words]));
            }
        }
    }
    for at in 0..text.tokens.len() {
        let word = text.slice(at..at + 1);
        if word.chars().count() >= LONG_WORD {
            pieces(word, padded, |letters| visit(hash_of_piece(letters), Feature::Piece(letters)));
        }
    }
    Some(())
}

/// The pieces of a word of [`LONG_WORD`] letters or more.
fn pieces(word: &str, padded: &mut String, mut visit: impl FnMut(&str)) {
    padded.clear();
    padded.push('<');
    padded.push_str(word);
    padded.push('>');
    let starts = padded.char_indices().map(|(at, _)| at);
    let ends = starts.clone().chain([padded.len()]).skip(PIECE);
    starts.zip(ends).filter_map(|(start, end)| padded.get(start..end)).for_each(&mut visit);
}

/// The hash of the feature that has this name.
fn named(name: &str) -> Option<u64> {
    if let Some(letters) = name.strip_prefix(IS_PIECE) {
        return (letters.chars().count() == PIECE).then(|| hash_of_piece(letters));
    }
    let words = name.split(' ');
    let fits = !name.is_empty() && words.clone().count() <= LONGEST_ROW && words.clone().all(|word| !word.is_empty());
    fits.then(|| words.fold(START_OF_ROW, |hash, word| join(hash, hash_of_word(word))))
}

fn find(weights: &HashTable<Weight>, hash: u64) -> Option<&Weight> {
    weights.find(hash, |weight| weight.check == check(hash))
}

/// What is kept of a hash.
fn check(hash: u64) -> u32 {
    hash as u32 ^ (hash >> 32) as u32
}

const START_OF_ROW: u64 = 0x9e37_79b9_7f4a_7c15;
const START_OF_PIECE: u64 = 0xc2b2_ae3d_27d4_eb4f;
const FACTOR: u64 = 0xff51_afd7_ed55_8ccd;

fn hash_of_word(word: &str) -> u64 {
    hash_of(word, START_OF_ROW)
}

fn hash_of_piece(letters: &str) -> u64 {
    hash_of(letters, START_OF_PIECE)
}

/// Eight bytes at a time: words are short.
fn hash_of(text: &str, start: u64) -> u64 {
    let (eights, rest) = text.as_bytes().as_chunks::<8>();
    let hash = eights.iter().fold(start ^ text.len() as u64, |hash, eight| join(hash, u64::from_le_bytes(*eight)));
    join(hash, rest.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte)))
}

/// The finaliser of MurmurHash3, of one value after another.
fn join(hash: u64, value: u64) -> u64 {
    let mixed = (hash.rotate_left(23) ^ value).wrapping_mul(FACTOR);
    mixed ^ (mixed >> 33)
}

/// The square root of a number, times 1000, rounded down.
fn root_of_thousand_squared(number: i64) -> i64 {
    (number * 1_000_000).isqrt().max(1)
}

#[cfg(test)]
mod tests {
    use super::super::data::{FeatureWeight, Located};
    use super::super::words::WordsBuilder;
    use super::*;
    use proptest::prelude::*;

    fn text(written: &str) -> Text {
        let mut text = Text::default();
        text.clear();
        text.read(written, 0..written.len(), &WordsBuilder::new().build());
        text
    }

    fn model(weights: &[(&str, i32, &str)]) -> Learned {
        let weights = (1..).zip(weights).map(|(line, (feature, thousandths, language))| Located {
            line,
            value: FeatureWeight { feature: (*feature).to_owned(), thousandths: *thousandths, language: (*language).to_owned() },
        });
        let data = LearnedData { file: "m".into(), constant: -500, opt_out: 300, review: 0, doubt: -800, weights: weights.collect() };
        Learned::build(&data).expect("a model")
    }

    fn weigh(model: &Learned, written: &str) -> Option<Weighed> {
        model.weigh(&text(written), &mut Sequence::default())
    }

    #[test]
    fn features_are_words_their_rows_and_pieces_of_long_words() {
        let mut found = names(&text("No more mails, ok"), &mut Sequence::default());
        found.sort();
        let expected = [
            "*<mai", "*ails", "*ils>", "*mail", ". no", ". no more", ". ok", ". ok .", "mails", "mails .", "mails . ok", "more", "more mails",
            "more mails .", "no", "no more", "no more mails", "ok", "ok .",
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn a_text_of_three_words_or_of_very_many_is_not_weighed() {
        let model = model(&[("no", 30_000, "en")]);
        assert!(weigh(&model, "no no no").is_none());
        assert_eq!(weigh(&model, "no no no no").map(|weighed| weighed.class), Some(Class::OptOut));
        assert!(weigh(&model, &"no ".repeat(MOST + 1)).is_none());
    }

    #[test]
    fn the_score_is_the_weights_over_the_root_of_the_number_of_features_plus_the_constant() {
        let model = model(&[("lose my", 2_000, "en"), ("*<num", 1_000, "en"), ("numer", -9_000, "xx")]);
        let weighed = weigh(&model, "lose my number now").expect("weighed");
        let features = names(&text("lose my number now"), &mut Sequence::default()).len() as f64;
        assert_eq!(weighed.thousandths, (3_000.0 / features.sqrt()) as i32 - 500);
        assert_eq!((weighed.class, weighed.language.as_ref().map(LanguageCode::as_str)), (Class::Review, Some("en")));
        assert_eq!(weighed.rule.as_str(), Some("learned.review"));
    }

    #[test]
    fn only_words_that_speak_against_it_make_a_rule_doubted() {
        let model = model(&[("rang at the", -4_000, "en"), ("song", -4_000, "en")]);
        let doubted = |written: &str| model.doubt(&text(written), &mut Sequence::default()).is_some();
        assert!(doubted("song song song song"));
        assert!(!doubted("nothing known of these"));
    }

    #[test]
    fn what_counts_most_is_told_first() {
        let model = model(&[("never", 100, "en"), ("again", 900, "en"), ("write", -1_200, "en")]);
        let strongest = model.strongest(&text("never write me again"), &mut Sequence::default(), 2);
        assert_eq!(strongest, [("write".to_owned(), -1_200), ("again".to_owned(), 900)]);
    }

    proptest! {
        #[test]
        fn a_name_leads_to_the_feature_that_has_it(written in "([a-zа-яñü]{1,9}[ ,.]{1,2}|[退订不要]){3,20}") {
            let text = text(&written);
            let mut wrong = Vec::new();
            each(&text, &mut Sequence::default(), |hash, feature| {
                let name = feature.name(&text);
                if named(&name) != Some(hash) {
                    wrong.push(name);
                }
            });
            prop_assert!(wrong.is_empty(), "{wrong:?}");
        }
    }
}
