//! The words and rules of all languages, checked and compiled.
//!
//! Invariants: a lexicon that exists is whole: every class a pattern names exists, every pattern can begin somewhere, no
//! rule opts anybody in. The version changes with the engine and with every character of the data.
//!
//! Absent: files (`wire::lexicon`), and the decision itself (`super::classify`).

use super::class_set::{ByLanguage, ClassSet};
use super::compile::{Builder, fold_entry};
use super::cut::Marks;
use super::data::{Change, Follow, KeywordGroup, LanguageData, LearnedData, Located, Override, Reach, Verdict, When};
use super::learned::Learned;
use super::pattern::Element;
use super::typo::Slips;
use super::words::Words;
use super::{Class, LanguageCode, RuleId, Scope};
use std::sync::Arc;

/// Raised with every change to the engine that can change a decision.
pub(super) const ENGINE_VERSION: u32 = 3;

/// Why a lexicon is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{line}: {reason}")]
pub struct LexiconFault {
    pub file: String,
    pub line: u32,
    pub reason: String,
}

/// What a rule's match means.
#[derive(Clone, Debug)]
pub(super) struct RuleSaid {
    pub(super) id: RuleId,
    pub(super) class: Class,
    pub(super) part: Part,
}

/// Rules by the names `command` and `complaint` are halves: "Wrong number. Delete it." is neither without the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Whole,
    /// "delete it", "stop already": words that want something gone, and do not say what.
    Command,
    /// "wrong number", "who gave you my number", "not a customer any more".
    Complaint,
}

impl Part {
    pub(super) fn of(rule: &str) -> Self {
        match rule {
            "command" => Self::Command,
            "complaint" => Self::Complaint,
            _ => Self::Whole,
        }
    }
}

/// A language's grammar, compiled.
#[derive(Clone, Debug)]
pub(super) struct Grammar {
    pub(super) rules: Patterns,
    pub(super) guards: Patterns,
    pub(super) rules_said: Vec<RuleSaid>,
    pub(super) guard_effects: Vec<(Reach, Verdict)>,
    pub(super) promotions: ClassSet,
    pub(super) marketing: ClassSet,
    pub(super) everything: ClassSet,
    /// Words that turn a keyword after them round.
    pub(super) negation: ClassSet,
    pub(super) messages: ClassSet,
    pub(super) business: ClassSet,
}

/// Patterns by a class without which they cannot match: of the words that must be there, the rarest.
#[derive(Clone, Debug, Default)]
pub(super) struct Patterns {
    pub(super) patterns: Vec<Pattern>,
    /// For each class, the patterns that have it for a key.
    pub(super) keyed: Vec<Vec<u32>>,
    pub(super) keys: ClassSet,
}

#[derive(Clone, Debug)]
pub(super) struct Pattern {
    pub(super) elements: Vec<Element>,
    pub(super) anchor: ClassSet,
    pub(super) owner: u32,
}

/// A word that decides when it is the whole message.
#[derive(Clone, Debug)]
pub(super) struct Keyword {
    pub(super) class: Class,
    pub(super) scope: Option<Scope>,
    pub(super) language: u8,
    pub(super) when: When,
    pub(super) follow: Follow,
    pub(super) rule: RuleId,
}

/// What the trie knows of one word or phrase.
#[derive(Clone, Debug, Default)]
pub(super) struct Entry {
    /// The classes it is in, by language.
    pub(super) classes: ByLanguage,
    pub(super) keywords: Vec<u32>,
    /// May stand before or after a keyword.
    pub(super) courtesy: bool,
    pub(super) follows: Option<Followed>,
}

/// What a word says when it follows a keyword such as STOP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Followed {
    Business,
    Program,
    Everything,
    Marketing,
    Promotions,
}

#[derive(Clone, Debug)]
pub struct Lexicon {
    pub(super) version: Arc<str>,
    pub(super) data: Arc<[LanguageData]>,
    pub(super) languages: Vec<LanguageCode>,
    pub(super) words: Words,
    pub(super) entries: Vec<Entry>,
    pub(super) keywords: Vec<Keyword>,
    pub(super) grammars: Vec<Grammar>,
    pub(super) clitics: Vec<(u8, String)>,
    pub(super) marks: Marks,
    pub(super) keyword_slips: Slips,
    pub(super) word_slips: Slips,
    pub(super) learned: Option<Arc<Learned>>,
}

impl Lexicon {
    /// Compiles languages, and what was learned beside their rules. `text_hash` stands for the exact data, see [`Fingerprint`].
    pub fn build(data: Vec<LanguageData>, learned: Option<&LearnedData>, text_hash: u64) -> Result<Self, LexiconFault> {
        let learned = learned.map(Learned::build).transpose()?.map(Arc::new);
        Builder::default().build(data.into(), learned, text_hash)
    }

    /// Engine version and hash of the data, such as `1-9f86d081884c7d65`.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// This lexicon with one business's changes.
    pub fn with_overrides(&self, overrides: &[Override]) -> Result<Self, LexiconFault> {
        let mut data = self.data.to_vec();
        let mut hash = Fingerprint::new();
        hash.add(self.version.as_bytes());
        for (index, change) in overrides.iter().enumerate() {
            hash.add(format!("{change:?}").as_bytes());
            let line = index as u32 + 1;
            let Some(language) = data.iter_mut().find(|language| language.code == change.language) else {
                let reason = format!("no language \"{}\" in the lexicon", change.language);
                return Err(LexiconFault { file: "overrides".to_owned(), line, reason });
            };
            apply(language, change, line);
        }
        Builder::default().build(data.into(), self.learned.clone(), hash.value())
    }

    pub(super) fn language(&self, hint: Option<&str>) -> Option<u8> {
        let primary = hint?.split(['-', '_']).next()?;
        let same = |code: &LanguageCode| code.as_str().eq_ignore_ascii_case(primary) || is_other_name(code.as_str(), primary);
        self.languages.iter().position(same).and_then(|at| u8::try_from(at).ok())
    }
}

/// Old and regional codes of languages that have a file under another one.
fn is_other_name(code: &str, primary: &str) -> bool {
    matches!(
        (code, primary.to_ascii_lowercase().as_str()),
        ("tl", "fil")
            | ("he", "iw")
            | ("id", "in")
            | ("zh", "yue" | "cmn")
            | ("ms", "zlm" | "zsm")
            | ("fa", "prs" | "pes")
            | ("sw", "swa" | "swh")
    )
}

fn apply(language: &mut LanguageData, change: &Override, line: u32) {
    let named: Vec<String> = change.words.iter().map(|word| fold_entry(word).0).collect();
    for group in language.keywords.iter_mut() {
        let same_class = group.class == change.class;
        group.words.retain(|word| match change.change {
            Change::Add => true,
            Change::Remove => !(same_class && named.contains(&fold_entry(&word.value).0)),
            Change::Replace => !same_class,
        });
    }
    if change.change != Change::Remove {
        let words = change.words.iter().map(|word| Located { line, value: word.clone() }).collect();
        let scope = String::new();
        let group = KeywordGroup { line, class: change.class, scope, when: When::Always, follow: Follow::Nothing, typos: false, words };
        language.keywords.insert(0, group);
    }
}

/// Stands for data: FNV-1a, which will give the same value for ever.
#[derive(Clone, Debug)]
pub struct Fingerprint(u64);

impl Fingerprint {
    pub fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    pub fn add(&mut self, bytes: &[u8]) {
        for byte in bytes.iter().chain(&[0xff]) {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    pub fn value(&self) -> u64 {
        self.0
    }
}

impl Default for Fingerprint {
    fn default() -> Self {
        Self::new()
    }
}
