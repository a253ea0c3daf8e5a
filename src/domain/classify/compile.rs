//! Language data → the lexicon's tables: folds the words, resolves borrowed classes, reads the patterns, chooses their keys.
//!
//! Invariants: whatever is refused is refused with its file and line; the result depends on the data alone.
//!
//! Absent: what the tables are, which is `lexicon`'s, and how they are used.

use super::class_set::ClassSet;
use super::cut::Marks;
use super::data::{Follow, KeywordGroup, LanguageData, Located};
use super::learned::Learned;
use super::lexicon::{ENGINE_VERSION, Entry, Followed, Grammar, Keyword, Lexicon, LexiconFault, Part, Pattern, Patterns, RuleSaid};
use super::pattern::{self, Element, Names};
use super::text::Text;
use super::typo::Slips;
use super::words::{Words, WordsBuilder};
use super::{Class, LanguageCode, RuleId, Scope};
use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

/// Shorter words of a sentence have too many neighbours to be mended.
const SHORTEST_MENDED: usize = 6;

/// Languages at work in a message are bits of a word.
pub(super) const MOST_LANGUAGES: usize = 64;

/// The folded form of a lexicon word, and whether it is a stem.
pub(super) fn fold_entry(word: &str) -> (String, bool) {
    let (word, stem) = word.trim().strip_suffix('*').map_or((word.trim(), false), |stem| (stem, true));
    static NOTHING: LazyLock<Words> = LazyLock::new(|| WordsBuilder::new().build());
    let mut text = Text::default();
    text.clear();
    text.read(word, 0..word.len(), &NOTHING);
    (text.slice(0..text.tokens.len()).to_owned(), stem)
}

#[derive(Default)]
pub(super) struct Builder {
    entries: Vec<Entry>,
    keywords: Vec<Keyword>,
    keyword_slips: Slips,
    word_slips: Slips,
}

impl Builder {
    pub(super) fn build(mut self, data: Arc<[LanguageData]>, learned: Option<Arc<Learned>>, text_hash: u64) -> Result<Lexicon, LexiconFault> {
        let mut words = WordsBuilder::new();
        let mut grammars = Vec::new();
        let mut languages = Vec::new();
        let mut clitics = Vec::new();
        let (mut tap_backs, mut signatures, mut reply_headers) = (Vec::new(), Vec::new(), Vec::new());
        for (index, language) in data.iter().enumerate() {
            if index == MOST_LANGUAGES {
                return Err(fault(language, 1, "more than 64 languages"));
            }
            let number = index as u8;
            if languages.iter().any(|code: &LanguageCode| code.as_str() == language.code) {
                return Err(fault(language, 1, "a second file for this language"));
            }
            languages.push(LanguageCode::new(&language.code));
            clitics.extend(language.clitics.iter().map(|clitic| (number, fold_entry(clitic).0)));
            tap_backs.extend(language.tap_backs.iter().map(|mark| mark.to_lowercase()));
            signatures.extend(language.signatures.iter().map(|mark| mark.to_lowercase()));
            reply_headers.extend(language.reply_headers.iter().map(|mark| mark.to_lowercase()));
            for group in &language.keywords {
                self.add_keywords(language, number, group, &mut words)?;
            }
            grammars.push(self.add_grammar(&data, language, number, &mut words)?);
            for word in &language.not_typos {
                let (folded, stem) = fold_entry(&word.value);
                self.entry(&mut words, &folded, stem);
            }
        }
        let marks = Marks::new(tap_backs, signatures, reply_headers).map_err(|error| {
            let file = data.last().map(|language| language.file.clone()).unwrap_or_default();
            LexiconFault { file, line: 1, reason: format!("signatures: {error}") }
        })?;
        let version = format!("{ENGINE_VERSION}-{text_hash:016x}").into();
        let words = words.build();
        let Self { entries, keywords, keyword_slips, word_slips } = self;
        Ok(Lexicon { version, data, languages, words, entries, keywords, grammars, clitics, marks, keyword_slips, word_slips, learned })
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
        let Some(character) = sign.chars().next() else {
            return;
        };
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
        let mut sizes = vec![0; ClassSet::MOST];
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
                entry.classes.add(number, set);
                set.common(set).for_each(|class| sizes[class] += 1);
                if mended && !stem && folded.chars().count() >= SHORTEST_MENDED {
                    self.word_slips.add(&folded, entry_number);
                }
            }
        }
        if let Some(unknown) = language.mended.iter().find(|name| !classes.named.contains_key(name.value.as_str())) {
            return Err(fault(language, unknown.line, &format!("no class \"{}\"", unknown.value)));
        }
        let (mut rules, mut guards) = (Patterns::default(), Patterns::default());
        let (mut rules_said, mut guard_effects) = (Vec::new(), Vec::new());
        for rule in &language.rules {
            if !matches!(rule.class, Class::OptOut | Class::Review | Class::Help) {
                return Err(fault(language, rule.line, "a rule decides opt_out, review or help: opt-in takes a keyword"));
            }
            rules.add(language, &rule.patterns, rules_said.len() as u32, &mut classes)?;
            rules_said.push(RuleSaid {
                id: RuleId::new(format!("{}.grammar.{}", language.code, rule.name)),
                class: rule.class,
                part: Part::of(&rule.name),
            });
        }
        for guard in &language.guards {
            guards.add(language, &guard.patterns, guard_effects.len() as u32, &mut classes)?;
            guard_effects.push((guard.reach, guard.verdict));
        }
        for (word, class) in &classes.literals {
            sizes[*class] += 1;
            let (folded, stem) = fold_entry(word);
            self.entry(words, &folded, stem).1.classes.add(number, ClassSet::only(*class));
        }
        rules.index(&sizes);
        guards.index(&sizes);
        let named = |name: &str| classes.named.get(name).copied().unwrap_or_default();
        let (promotions, marketing, everything) = (named("promotions"), named("marketing"), named("everything"));
        let (negation, messages, business) = (named("negation"), named("message"), named("business"));
        Ok(Grammar { negation, messages, business, rules, guards, rules_said, guard_effects, promotions, marketing, everything })
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
        let Some(lender) = lender else {
            return Err(fault(language, word.line, &format!("no class \"{name}\" to borrow from")));
        };
        out.extend(lender.words.iter().filter(|word| !word.value.starts_with('@')));
    }
    Ok(out)
}

impl Patterns {
    fn add<'d>(
        &mut self,
        language: &LanguageData,
        patterns: &'d [Located<String>],
        owner: u32,
        classes: &mut Classes<'d>,
    ) -> Result<(), LexiconFault> {
        for written in patterns {
            let elements = pattern::parse(&written.value, classes).map_err(|reason| fault(language, written.line, &reason))?;
            let anchor = pattern::anchor(&elements);
            self.patterns.push(Pattern { elements, anchor, owner });
        }
        Ok(())
    }

    /// Chooses every pattern's key, once the number of words in each class is known.
    fn index(&mut self, sizes: &[u32]) {
        self.keyed = vec![Vec::new(); ClassSet::MOST];
        for (place, pattern) in self.patterns.iter().enumerate() {
            let size = |set: &ClassSet| set.common(*set).map(|class| sizes[class]).sum::<u32>();
            let needed = pattern.elements.iter().filter_map(Element::needed);
            let Some(key) = needed.min_by_key(|set| size(set)) else {
                continue;
            };
            for class in key.common(*key) {
                self.keyed[class].push(place as u32);
            }
            self.keys |= *key;
        }
    }
}

/// The classes of one language while it is compiled.
#[derive(Default)]
struct Classes<'d> {
    named: HashMap<&'d str, ClassSet>,
    /// Groups of words that patterns name: the same words are the same class.
    groups: HashMap<Vec<&'d str>, usize>,
    /// Each word of a group, with its class.
    literals: Vec<(&'d str, usize)>,
    count: usize,
}

impl<'d> Classes<'d> {
    fn fresh(&mut self) -> Result<usize, String> {
        if self.count == ClassSet::MOST {
            return Err(format!("more than {} classes and groups of words: give shared groups a class", ClassSet::MOST));
        }
        self.count += 1;
        Ok(self.count - 1)
    }

    fn new_class(&mut self, name: &'d str) -> Result<ClassSet, String> {
        let set = ClassSet::only(self.fresh()?);
        match self.named.insert(name, set) {
            None => Ok(set),
            Some(_) => Err(format!("class \"{name}\" is there twice")),
        }
    }
}

impl<'d> Names<'d> for Classes<'d> {
    fn class(&mut self, name: &str) -> Result<ClassSet, String> {
        self.named.get(name).copied().ok_or_else(|| format!("no class \"{name}\""))
    }

    fn literals(&mut self, words: Vec<&'d str>) -> Result<ClassSet, String> {
        if let Some(class) = self.groups.get(&words) {
            return Ok(ClassSet::only(*class));
        }
        let class = self.fresh()?;
        if let Some(empty) = words.iter().find(|word| fold_entry(word).0.is_empty()) {
            return Err(format!("\"{empty}\" holds no word"));
        }
        self.literals.extend(words.iter().map(|word| (*word, class)));
        self.groups.insert(words, class);
        Ok(ClassSet::only(class))
    }
}

fn fault(language: &LanguageData, line: u32, reason: &str) -> LexiconFault {
    LexiconFault { file: language.file.clone(), line, reason: reason.to_owned() }
}
