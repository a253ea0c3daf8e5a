//! The words and rules of all languages, checked and compiled.
//!
//! Invariants: a lexicon that exists is whole: every class a pattern names exists, every pattern can begin somewhere, no
//! rule opts anybody in. The version changes with the engine and with every character of the data.
//!
//! Absent: files (`wire::lexicon`), and the decision itself (`super::classify`).

use super::cut::Marks;
use super::data::{Change, Follow, KeywordGroup, LanguageData, Located, Override, Reach, Verdict, When};
use super::pattern::{self, ClassSet, Element, MOST_CLASSES, Names};
use super::text::Text;
use super::typo::Slips;
use super::words::{Words, WordsBuilder};
use super::{Class, LanguageCode, RuleId, Scope};
use std::collections::HashMap;
use std::sync::Arc;

/// Raised with every change to the engine that can change a decision.
const ENGINE_VERSION: u32 = 1;

/// Why a lexicon is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{line}: {reason}")]
pub struct LexiconFault {
    pub file: String,
    pub line: u32,
    pub reason: String,
}

/// A language's grammar, compiled.
#[derive(Clone, Debug)]
pub(super) struct Grammar {
    pub(super) rules: Patterns,
    pub(super) guards: Patterns,
    pub(super) rule_names: Vec<(RuleId, Class)>,
    pub(super) guard_effects: Vec<(Reach, Verdict)>,
    pub(super) promotions: ClassSet,
    pub(super) marketing: ClassSet,
    pub(super) everything: ClassSet,
}

/// Patterns by the class they begin with.
#[derive(Clone, Debug, Default)]
pub(super) struct Patterns {
    pub(super) elements: Vec<(Vec<Element>, u32)>,
    /// For each class, the patterns that can begin with it.
    pub(super) starts: Vec<Vec<u32>>,
    pub(super) anchors: ClassSet,
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
    pub(super) classes: Vec<(u8, ClassSet)>,
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
    version: Arc<str>,
    data: Arc<[LanguageData]>,
    pub(super) languages: Vec<LanguageCode>,
    pub(super) words: Words,
    pub(super) entries: Vec<Entry>,
    pub(super) keywords: Vec<Keyword>,
    pub(super) grammars: Vec<Grammar>,
    pub(super) clitics: Vec<(u8, String)>,
    pub(super) marks: Marks,
    pub(super) keyword_slips: Slips,
    pub(super) word_slips: Slips,
}

impl Lexicon {
    /// Compiles languages. `text_hash` stands for the exact data, see [`fingerprint`].
    pub fn build(data: Vec<LanguageData>, text_hash: u64) -> Result<Self, LexiconFault> {
        Builder::default().build(data.into(), text_hash)
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
        Self::build(data, hash.value())
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

/// The folded form of a lexicon word, and whether it is a stem.
fn fold_entry(word: &str) -> (String, bool) {
    let (word, stem) = word.trim().strip_suffix('*').map_or((word.trim(), false), |stem| (stem, true));
    let nothing = WordsBuilder::new().build();
    let mut text = Text::default();
    text.clear();
    text.read(word, 0..word.len(), &nothing);
    (text.slice(0..text.tokens.len()).to_owned(), stem)
}

#[derive(Default)]
struct Builder {
    entries: Vec<Entry>,
    keywords: Vec<Keyword>,
    keyword_slips: Slips,
    word_slips: Slips,
}

impl Builder {
    fn build(mut self, data: Arc<[LanguageData]>, text_hash: u64) -> Result<Lexicon, LexiconFault> {
        let mut words = WordsBuilder::new();
        let mut grammars = Vec::new();
        let mut languages = Vec::new();
        let mut clitics = Vec::new();
        let mut marks = Marks::default();
        for (index, language) in data.iter().enumerate() {
            let number = u8::try_from(index).map_err(|_| fault(language, 1, "more than 255 languages"))?;
            if languages.iter().any(|code: &LanguageCode| code.as_str() == language.code) {
                return Err(fault(language, 1, "a second file for this language"));
            }
            languages.push(LanguageCode::new(&language.code));
            clitics.extend(language.clitics.iter().map(|clitic| (number, fold_entry(clitic).0)));
            marks.tap_backs.extend(language.tap_backs.iter().map(|mark| mark.to_lowercase()));
            marks.signatures.extend(language.signatures.iter().map(|mark| mark.to_lowercase()));
            marks.reply_headers.extend(language.reply_headers.iter().map(|mark| mark.to_lowercase()));
            for group in &language.keywords {
                self.add_keywords(language, number, group, &mut words)?;
            }
            grammars.push(self.add_grammar(&data, language, number, &mut words)?);
            for word in &language.not_typos {
                let (folded, stem) = fold_entry(&word.value);
                self.entry(&mut words, &folded, stem);
            }
        }
        let version = format!("{ENGINE_VERSION}-{text_hash:016x}").into();
        let words = words.build();
        let Self { entries, keywords, keyword_slips, word_slips } = self;
        Ok(Lexicon { version, data, languages, words, entries, keywords, grammars, clitics, marks, keyword_slips, word_slips })
    }

    fn entry(&mut self, words: &mut WordsBuilder, folded: &str, stem: bool) -> (u32, &mut Entry) {
        let number = words.number(folded, stem);
        if self.entries.len() <= number as usize {
            self.entries.resize_with(number as usize + 1, Entry::default);
        }
        (number, &mut self.entries[number as usize])
    }

    fn add_keywords(&mut self, language: &LanguageData, number: u8, group: &KeywordGroup, words: &mut WordsBuilder) -> Result<(), LexiconFault> {
        let scope = Scope::parse(&group.scope).map_err(|reason| fault(language, group.line, &reason))?;
        if group.class == Class::None {
            return Err(fault(language, group.line, "a keyword of class \"none\" says nothing"));
        }
        if group.class == Class::OptIn && (group.typos || group.follow != Follow::Nothing) {
            return Err(fault(language, group.line, "an opt-in keyword is exact: no typos, no follow"));
        }
        for word in &group.words {
            let (folded, stem) = fold_entry(&word.value);
            if folded.is_empty() && group.class != Class::OptIn && word.value.chars().count() <= 2 {
                self.add_sign(&word.value, number, group, &language.code, words);
                continue;
            }
            if folded.is_empty() || stem {
                return Err(fault(language, word.line, "a keyword is whole words"));
            }
            let rule = RuleId::new(format!("{}.keyword.{}", language.code, folded.replace(' ', "-")));
            let keyword = Keyword { class: group.class, scope: scope.clone(), language: number, when: group.when, follow: group.follow, rule };
            let place = self.keywords.len() as u32;
            self.keywords.push(keyword);
            let (entry_number, entry) = self.entry(words, &folded, false);
            entry.keywords.push(place);
            if group.typos {
                self.keyword_slips.add(&folded, entry_number);
            }
        }
        Ok(())
    }

    /// A sign such as 🛑 is an entry under its own character, which no folded text contains.
    fn add_sign(&mut self, sign: &str, number: u8, group: &KeywordGroup, code: &str, words: &mut WordsBuilder) {
        let Some(character) = sign.chars().next() else { return };
        let rule = RuleId::new(format!("{code}.sign.u{:x}", u32::from(character)));
        let place = self.keywords.len() as u32;
        self.keywords.push(Keyword { class: group.class, scope: None, language: number, when: group.when, follow: Follow::Nothing, rule });
        self.entry(words, character.encode_utf8(&mut [0; 4]), false).1.keywords.push(place);
    }

    fn add_grammar(
        &mut self,
        all: &[LanguageData],
        language: &LanguageData,
        number: u8,
        words: &mut WordsBuilder,
    ) -> Result<Grammar, LexiconFault> {
        let mut classes = Classes::default();
        for class in &language.classes {
            let set = classes.new_class(&class.name).map_err(|reason| fault(language, class.line, &reason))?;
            let follows = match class.name.as_str() {
                "business" => Some(Followed::Business),
                "program" => Some(Followed::Program),
                "everything" => Some(Followed::Everything),
                "marketing" => Some(Followed::Marketing),
                "promotions" => Some(Followed::Promotions),
                _ => None,
            };
            let mended = language.mended.iter().any(|name| name.value == class.name);
            for word in borrow(all, language, &class.words)? {
                let (folded, stem) = fold_entry(&word.value);
                if folded.is_empty() {
                    return Err(fault(language, word.line, &format!("\"{}\" holds no word", word.value)));
                }
                let (entry_number, entry) = self.entry(words, &folded, stem);
                entry.courtesy |= class.name == "courtesy";
                entry.follows = entry.follows.max(follows);
                add_class(entry, number, set);
                if mended && !stem {
                    self.word_slips.add(&folded, entry_number);
                }
            }
        }
        if let Some(unknown) = language.mended.iter().find(|name| !classes.named.contains_key(&name.value)) {
            return Err(fault(language, unknown.line, &format!("no class \"{}\"", unknown.value)));
        }
        let (mut rules, mut guards) = (Patterns::default(), Patterns::default());
        let (mut rule_names, mut guard_effects) = (Vec::new(), Vec::new());
        for rule in &language.rules {
            if !matches!(rule.class, Class::OptOut | Class::Review | Class::Help) {
                return Err(fault(language, rule.line, "a rule decides opt_out, review or help: opt-in takes a keyword"));
            }
            rules.add(language, &rule.patterns, rule_names.len() as u32, &mut classes)?;
            rule_names.push((RuleId::new(format!("{}.grammar.{}", language.code, rule.name)), rule.class));
        }
        for guard in &language.guards {
            guards.add(language, &guard.patterns, guard_effects.len() as u32, &mut classes)?;
            guard_effects.push((guard.reach, guard.verdict));
        }
        for (word, set) in &classes.literals {
            let (folded, stem) = fold_entry(word);
            add_class(self.entry(words, &folded, stem).1, number, *set);
        }
        let named = |name: &str| classes.named.get(name).copied().unwrap_or(0);
        let (promotions, marketing, everything) = (named("promotions"), named("marketing"), named("everything"));
        Ok(Grammar { rules, guards, rule_names, guard_effects, promotions, marketing, everything })
    }
}

fn add_class(entry: &mut Entry, language: u8, set: ClassSet) {
    match entry.classes.iter_mut().find(|(number, _)| *number == language) {
        Some((_, classes)) => *classes |= set,
        None => entry.classes.push((language, set)),
    }
}

/// Resolves `@en.message` to the words of that class.
fn borrow<'d>(all: &'d [LanguageData], language: &LanguageData, words: &'d [Located<String>]) -> Result<Vec<&'d Located<String>>, LexiconFault> {
    let mut out = Vec::with_capacity(words.len());
    for word in words {
        let Some(name) = word.value.strip_prefix('@') else {
            out.push(word);
            continue;
        };
        let lender = name.split_once('.').and_then(|(code, class)| {
            let lender = all.iter().find(|lender| lender.code == code)?;
            lender.classes.iter().find(|candidate| candidate.name == class)
        });
        let Some(lender) = lender else { return Err(fault(language, word.line, &format!("no class \"{name}\" to borrow from"))) };
        out.extend(lender.words.iter().filter(|word| !word.value.starts_with('@')));
    }
    Ok(out)
}

impl Patterns {
    fn add(&mut self, language: &LanguageData, patterns: &[Located<String>], owner: u32, classes: &mut Classes) -> Result<(), LexiconFault> {
        for written in patterns {
            let elements = pattern::parse(&written.value, classes).map_err(|reason| fault(language, written.line, &reason))?;
            let place = self.elements.len() as u32;
            let anchor = elements.iter().find_map(|element| match element {
                Element::Words { classes, .. } => Some(*classes),
                Element::Gap(_) | Element::Opening | Element::Closing => None,
            });
            let anchor = anchor.unwrap_or(0);
            self.starts.resize(MOST_CLASSES, Vec::new());
            for bit in (0..MOST_CLASSES).filter(|bit| anchor & (1 << bit) != 0) {
                self.starts[bit].push(place);
            }
            self.anchors |= anchor;
            self.elements.push((elements, owner));
        }
        Ok(())
    }
}

/// The classes of one language while it is compiled.
#[derive(Default)]
struct Classes {
    named: HashMap<String, ClassSet>,
    groups: HashMap<Vec<String>, ClassSet>,
    literals: Vec<(String, ClassSet)>,
    count: usize,
}

impl Classes {
    fn fresh(&mut self) -> Result<ClassSet, String> {
        if self.count == MOST_CLASSES {
            return Err(format!("more than {MOST_CLASSES} classes and groups of words: give shared groups a class"));
        }
        self.count += 1;
        Ok(1 << (self.count - 1))
    }

    fn new_class(&mut self, name: &str) -> Result<ClassSet, String> {
        let set = self.fresh()?;
        match self.named.insert(name.to_owned(), set) {
            None => Ok(set),
            Some(_) => Err(format!("class \"{name}\" is there twice")),
        }
    }
}

impl Names for Classes {
    fn class(&mut self, name: &str) -> Result<ClassSet, String> {
        self.named.get(name).copied().ok_or_else(|| format!("no class \"{name}\""))
    }

    fn literals(&mut self, words: &[&str]) -> Result<ClassSet, String> {
        let group: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        if let Some(set) = self.groups.get(&group) {
            return Ok(*set);
        }
        let set = self.fresh()?;
        if let Some(empty) = group.iter().find(|word| fold_entry(word).0.is_empty()) {
            return Err(format!("\"{empty}\" holds no word"));
        }
        self.literals.extend(group.iter().map(|word| (word.clone(), set)));
        self.groups.insert(group, set);
        Ok(set)
    }
}

fn fault(language: &LanguageData, line: u32, reason: &str) -> LexiconFault {
    LexiconFault { file: language.file.clone(), line, reason: reason.to_owned() }
}
