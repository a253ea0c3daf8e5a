//! What a language file says, as data: the form between its parser and the lexicon.
//!
//! Invariants: none yet; `Lexicon::build` checks everything and names the line of what it refuses.
//!
//! Absent: the file format, which is `wire::lexicon`'s.

use super::Class;

/// A value and the line of its file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Located<T> {
    pub line: u32,
    pub value: T,
}

/// One language.
#[derive(Clone, Debug, Default)]
pub struct LanguageData {
    pub file: String,
    /// BCP 47, as `pt` or `zh`.
    pub code: String,
    /// Letters written together with the following word, as Arabic and Hebrew "and", "the", "in".
    pub clitics: Vec<String>,
    pub keywords: Vec<KeywordGroup>,
    pub classes: Vec<WordClass>,
    pub rules: Vec<RuleData>,
    pub guards: Vec<GuardData>,
    /// Real words that are one slip away from a keyword.
    pub not_typos: Vec<Located<String>>,
    /// Names of the classes whose words are recognised with a slip inside a sentence.
    pub mended: Vec<Located<String>>,
    pub tap_backs: Vec<String>,
    pub signatures: Vec<String>,
    pub reply_headers: Vec<String>,
}

/// Words that decide when they are the whole message.
#[derive(Clone, Debug)]
pub struct KeywordGroup {
    pub line: u32,
    pub class: Class,
    /// `all`, `marketing` or `program:ID`; empty for none.
    pub scope: String,
    pub when: When,
    pub follow: Follow,
    /// Whether a slip still counts.
    pub typos: bool,
    pub words: Vec<Located<String>>,
}

/// Under what condition a keyword acts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum When {
    #[default]
    Always,
    /// Only for a message known to be in this language; otherwise a person looks at it.
    Hinted,
    /// Written with its marks, as HỦY; without them, as HUY, like `Hinted`.
    Marked,
}

/// What may follow a keyword in a message of two words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Follow {
    #[default]
    Nothing,
    /// The number or the name of a programme: "STOP 36111", "STOP NEWS".
    Program,
    /// Any name: "RET BRAND", "UNREG TONES".
    AnyName,
}

#[derive(Clone, Debug)]
pub struct WordClass {
    pub line: u32,
    pub name: String,
    /// Words, phrases, stems (`mesaj*`), or the words of another language's class (`@en.message`).
    pub words: Vec<Located<String>>,
}

#[derive(Clone, Debug)]
pub struct RuleData {
    pub line: u32,
    pub name: String,
    pub class: Class,
    pub patterns: Vec<Located<String>>,
}

/// Patterns that take a match back.
#[derive(Clone, Debug)]
pub struct GuardData {
    pub line: u32,
    pub name: String,
    pub reach: Reach,
    pub verdict: Verdict,
    pub patterns: Vec<Located<String>>,
}

/// Which matches a guard takes back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reach {
    /// Those that share a word with it.
    #[default]
    Overlap,
    /// Those in its clause.
    Clause,
    /// All in the message.
    Message,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Verdict {
    #[default]
    None,
    Review,
}

/// A change that one business makes to the keywords.
#[derive(Clone, Debug)]
pub struct Override {
    pub change: Change,
    pub class: Class,
    /// The language that the words are in, as a language file's code.
    pub language: String,
    pub words: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    Add,
    Remove,
    /// These words instead of all keywords of the class in the language.
    Replace,
}

/// A model of words, as its file says it: see `learned`.
#[derive(Clone, Debug, Default)]
pub struct LearnedData {
    pub file: String,
    /// Added to every score; like all scores and weights in thousandths.
    pub constant: i32,
    /// The least score of an opt-out.
    pub opt_out: i32,
    /// The least score that a person looks at.
    pub review: i32,
    /// The greatest score at which a rule's opt-out is doubted.
    pub doubt: i32,
    pub weights: Vec<Located<FeatureWeight>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FeatureWeight {
    /// Words, or a piece of one, as `learned` writes them.
    pub feature: String,
    pub thousandths: i32,
    /// The code of the language in which it was mostly seen.
    pub language: String,
}
