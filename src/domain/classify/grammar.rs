//! Sentences: rules that find a wish in a clause, and guards that take it back.
//!
//! Every token is tagged with the classes its word is in, in every language that has it; the rules of a language are tried
//! where a word stands that one of them begins with. A rule's match counts unless a guard of its language reaches it.
//!
//! Invariants: an opt-out beats help, help beats review, and of equals the first in the text, then the longest; the work
//! is bounded by `STEPS_A_TOKEN` times the text.
//!
//! Absent: the words and the patterns, which are the language files'.

use super::class_set::ClassSet;
use super::data::{Reach, Verdict};
use super::fold;
use super::keyword::Courtesies;
use super::lexicon::{Grammar, Lexicon, Part, Patterns, RuleSaid};
use super::pattern::{Edge, Effort, Element, Lattice, Reader};
use super::text::Text;
use super::words::Words;
use super::{Class, Classification, Confidence, Scope};
use std::cmp::Reverse;
use std::ops::Range;

/// A pattern can be written that tries very many ways; no message pays for it.
const STEPS_A_TOKEN: u32 = 600;

#[derive(Clone, Debug)]
struct Match {
    language: u8,
    owner: u32,
    tokens: Range<usize>,
}

/// Buffers of one decision.
#[derive(Debug, Default)]
pub(super) struct Found {
    rules: Vec<Match>,
    guards: Vec<Match>,
    /// The classes of a language that the text has words of, by its number.
    present: Vec<ClassSet>,
    /// An opt-out was taken back: by a guard, or because it is about business.
    pub(super) took_back: bool,
}

/// Finds every word and phrase of every language in the text, and its courtesies.
pub(super) fn tag(lexicon: &Lexicon, text: &Text, lattice: &mut Lattice, courtesies: &mut Courtesies) {
    lattice.clear();
    courtesies.clear();
    for start in 0..text.tokens.len() {
        lattice.starts.push(lattice.edges.len() as u32);
        courtesies.push(tag_from(lexicon, text, lattice, start, 0, None));
        tag_after_clitics(lexicon, text, lattice, start);
    }
    lattice.starts.push(lattice.edges.len() as u32);
}

/// Arabic and Hebrew write "and", "the", "in" together with the next word.
fn tag_after_clitics(lexicon: &Lexicon, text: &Text, lattice: &mut Lattice, start: usize) {
    let bytes = token_bytes(text, start);
    if !bytes.first().is_some_and(|first| matches!(first, 0xd6..=0xdb)) {
        return;
    }
    for (language, clitic) in &lexicon.clitics {
        if bytes.starts_with(clitic.as_bytes()) && bytes.len() > clitic.len() + 2 {
            tag_from(lexicon, text, lattice, start, clitic.len(), Some(*language));
        }
    }
}

fn token_bytes(text: &Text, at: usize) -> &[u8] {
    text.tokens.get(at).map_or(&[], |token| &text.folded.as_bytes()[token.folded.start as usize..token.folded.end as usize])
}

/// Finds the words and phrases that begin at a token, and returns one past the last token of the longest courtesy; 0 for
/// none. Courtesies go on from clause to clause, words of rules do not.
fn tag_from(lexicon: &Lexicon, text: &Text, lattice: &mut Lattice, start: usize, skip: usize, only: Option<u8>) -> u32 {
    let words = &lexicon.words;
    let mut place = Words::START;
    let (mut courtesy, mut in_clause) = (0, true);
    for (at, token) in text.tokens.iter().enumerate().skip(start) {
        let mut found = |number: u32, in_clause: bool| {
            if in_clause {
                push_edge(lexicon, lattice, number, at + 1, only);
            }
            if lexicon.entries[number as usize].courtesy {
                courtesy = at as u32 + 1;
            }
        };
        if at > start {
            in_clause &= !token.opens;
            if !token.glued {
                match words.step(place, b' ') {
                    Some(next) => place = next,
                    None => return courtesy,
                }
            }
        }
        let bytes = token_bytes(text, at);
        let bytes = if at == start { &bytes[skip..] } else { bytes };
        for &byte in bytes {
            match words.step(place, byte) {
                Some(next) => place = next,
                None => return courtesy,
            }
            if let Some(number) = words.stem(place) {
                found(number, in_clause);
            }
        }
        if let Some(number) = words.whole(place) {
            found(number, in_clause);
        }
    }
    courtesy
}

/// Clitics are one language's: what another one means by the rest of the word does not count.
fn push_edge(lexicon: &Lexicon, lattice: &mut Lattice, entry: u32, end: usize, only: Option<u8>) {
    let known = &lexicon.entries[entry as usize];
    if known.classes.languages() != 0 && only.is_none_or(|only| known.classes.get(only).is_some()) {
        lattice.edges.push(Edge { end: end as u32, entry });
    }
}

/// Decides by the rules of every language.
pub(super) fn decide(lexicon: &Lexicon, text: &Text, lattice: &Lattice, found: &mut Found) -> Option<Classification> {
    let languages = at_work(lexicon, text, lattice);
    find_present(lexicon, lattice, languages, &mut found.present);
    search(lexicon, text, lattice, languages, &found.present, |grammar| &grammar.rules, &mut found.rules);
    found.rules.retain(|rule| !is_borrowed(lexicon, text, lattice, rule));
    if found.rules.is_empty() {
        return None;
    }
    let matched = found.rules.iter().fold(1 << FIRST_LANGUAGE, |languages, rule| languages | 1 << rule.language);
    search(lexicon, text, lattice, matched, &found.present, |grammar| &grammar.guards, &mut found.guards);
    let mut best: Option<(Class, &Match)> = None;
    let mut halves = Vec::new();
    for rule in &found.rules {
        let said = said(lexicon, rule);
        let Some(class) = guarded(lexicon, text, rule, said.class, &found.guards) else {
            found.took_back |= said.class == Class::OptOut;
            continue;
        };
        if class == Class::OptOut && is_about_business(lexicon, text, lattice, rule) {
            found.took_back = true;
            continue;
        }
        if said.part != Part::Whole || class == Class::Review {
            halves.push((said.part, rule));
        }
        if said.part == Part::Whole && best.is_none_or(|best| order(class, rule) < order(best.0, best.1)) {
            best = Some((class, rule));
        }
    }
    if best.is_none_or(|(class, _)| class == Class::Review) {
        let command = halves.iter().find(|(part, command)| *part == Part::Command && has_a_reason(lexicon, text, lattice, command, &halves));
        best = command.map(|(_, command)| (Class::OptOut, *command)).or(best);
    }
    let (class, rule) = best?;
    let grammar = &lexicon.grammars[usize::from(rule.language)];
    let confidence = if class == Class::Review { Confidence::Low } else { Confidence::High };
    Some(Classification {
        class,
        scope: scope(lexicon, text, lattice, rule, grammar),
        rule: said(lexicon, rule).id.clone(),
        span: text.original(rule.tokens.clone()),
        language: lexicon.languages.get(usize::from(rule.language)).cloned(),
        confidence,
    })
}

fn said<'l>(lexicon: &'l Lexicon, rule: &Match) -> &'l RuleSaid {
    &lexicon.grammars[usize::from(rule.language)].rules_said[rule.owner as usize]
}

/// The least wins.
fn order(class: Class, rule: &Match) -> (u8, usize, Reverse<usize>, u8, u32) {
    (rank(class), rule.tokens.start, Reverse(rule.tokens.end), rule.language, rule.owner)
}

/// Whether a complaint stands beside the command, or another clause speaks of messages.
fn has_a_reason(lexicon: &Lexicon, text: &Text, lattice: &Lattice, command: &Match, halves: &[(Part, &Match)]) -> bool {
    let meet = |one: &Match, other: &Match| one.tokens.start < other.tokens.end && other.tokens.start < one.tokens.end;
    let commands = halves.iter().filter(|(part, _)| *part == Part::Command);
    halves
        .iter()
        .filter(|(part, _)| *part != Part::Command)
        .any(|(_, reason)| !meet(command, reason) && commands.clone().all(|(_, other)| !meet(other, reason)))
        || speaks_of_messages(lexicon, text, lattice, &command.tokens)
}

/// Whether a word for messages stands outside these tokens, and none for an order of the same language.
pub(super) fn speaks_of_messages(lexicon: &Lexicon, text: &Text, lattice: &Lattice, except: &Range<usize>) -> bool {
    let (mut messages, mut business) = (0_u64, 0_u64);
    for edge in (0..text.tokens.len()).filter(|at| !except.contains(at)).flat_map(|at| lattice.at(at)) {
        for (language, classes) in lexicon.entries[edge.entry as usize].classes.iter() {
            let grammar = &lexicon.grammars[usize::from(language)];
            messages |= u64::from(classes.meets(&grammar.messages)) << language;
            business |= u64::from(classes.meets(&grammar.business)) << language;
        }
    }
    messages & !business != 0
}

/// Words behind a match that still belong to it.
const OBJECT: usize = 3;

/// Whether a match, with what follows it in its clause, speaks of an order, an address, a queue, and not of messages:
/// "take me off the waiting list". The first language has guards that see closer.
fn is_about_business(lexicon: &Lexicon, text: &Text, lattice: &Lattice, rule: &Match) -> bool {
    let said = rule.tokens.start..text.end_of_clause(rule.tokens.start).min(rule.tokens.end + OBJECT);
    let grammar = &lexicon.grammars[usize::from(rule.language)];
    let has = |classes: &ClassSet| {
        let is_of = |edge: &Edge| lexicon.entries[edge.entry as usize].classes.get(rule.language).is_some_and(|found| found.meets(classes));
        said.clone().any(|at| lattice.at(at).iter().any(is_of))
    };
    rule.language != FIRST_LANGUAGE && has(&grammar.business) && !has(&grammar.messages)
}

/// Decides once more with unknown words read as the words that they are a slip away from.
pub(super) fn decide_mended(lexicon: &Lexicon, text: &Text, lattice: &mut Lattice, found: &mut Found) -> Option<Classification> {
    if !mend(lexicon, text, lattice) {
        return None;
    }
    let answer = decide(lexicon, text, lattice, found)?;
    Some(Classification { confidence: Confidence::Low, ..answer })
}

/// Messages with more words than this are not mended.
const LONGEST_MENDED: usize = 32;

/// Tags unknown words; false if none was mended, or no other word is known.
fn mend(lexicon: &Lexicon, text: &Text, lattice: &mut Lattice) -> bool {
    if text.tokens.len() > LONGEST_MENDED || lattice.edges.is_empty() {
        return false;
    }
    let mut mended = false;
    for at in 0..text.tokens.len() {
        if let Some((entry, end)) = spelled_out(lexicon, text, at).or_else(|| misspelled(lexicon, text, lattice, at)) {
            let before = lattice.edges.len();
            push_edge(lexicon, lattice, entry, end, None);
            let added = lattice.edges.len() - before;
            // The new edge goes where the token's edges are.
            let place = lattice.starts[at] as usize;
            lattice.edges[place..].rotate_right(added);
            lattice.starts.iter_mut().skip(at + 1).for_each(|start| *start += added as u32);
            mended |= added > 0;
        }
    }
    mended
}

/// "s t o p" inside a sentence: the entry, and one past its last token.
fn spelled_out(lexicon: &Lexicon, text: &Text, at: usize) -> Option<(u32, usize)> {
    let single = |at: &usize| !text.tokens[*at].solo && text.slice(*at..*at + 1).chars().count() == 1;
    let continues = at > 0 && single(&(at - 1));
    let end = (at..text.tokens.len()).take_while(single).last()? + 1;
    if continues || end - at < 3 {
        return None;
    }
    let word: String = text.slice(at..end).chars().filter(|c| *c != ' ').collect();
    lexicon.words.find(word.as_bytes()).map(|entry| (entry, end))
}

/// "st0p", "mesages": a word that no file knows, as the word it was meant to be.
fn misspelled(lexicon: &Lexicon, text: &Text, lattice: &Lattice, at: usize) -> Option<(u32, usize)> {
    let word = text.slice(at..at + 1);
    if !lattice.at(at).is_empty() || text.tokens[at].solo || lexicon.words.knows(word.as_bytes()) {
        return None;
    }
    let digits = word.contains(|c: char| c.is_ascii_digit()) && word.contains(char::is_alphabetic);
    let entry = if digits {
        let plain: String = word.chars().map(fold::leet_letter).collect();
        lexicon.words.find(plain.as_bytes())
    } else if word.len() > 4 {
        lexicon.word_slips.find(word)
    } else {
        None
    };
    entry.map(|entry| (entry, at + 1))
}

/// The languages that have words of their own in the text, as bits.
fn at_work(lexicon: &Lexicon, text: &Text, lattice: &Lattice) -> u64 {
    let mut languages = 1 << FIRST_LANGUAGE;
    for at in 0..text.tokens.len() {
        let edges = lattice.at(at);
        if !edges.is_empty() && !is_first(lexicon, text, lattice, at) {
            languages |= edges.iter().fold(0, |languages, edge| languages | lexicon.entries[edge.entry as usize].classes.languages());
        }
    }
    languages
}

/// Fills `present` for these languages.
fn find_present(lexicon: &Lexicon, lattice: &Lattice, languages: u64, present: &mut Vec<ClassSet>) {
    present.clear();
    present.resize(lexicon.grammars.len(), ClassSet::EMPTY);
    for (language, classes) in lattice.edges.iter().flat_map(|edge| lexicon.entries[edge.entry as usize].classes.iter()) {
        if languages & (1 << language) != 0 {
            present[usize::from(language)] |= *classes;
        }
    }
}

fn search<'l>(
    lexicon: &'l Lexicon,
    text: &Text,
    lattice: &Lattice,
    languages: u64,
    present: &[ClassSet],
    patterns: impl Fn(&'l Grammar) -> &'l Patterns,
    found: &mut Vec<Match>,
) {
    found.clear();
    let mut effort = Effort(STEPS_A_TOKEN.saturating_mul(text.tokens.len() as u32));
    for language in (0..lexicon.grammars.len() as u8).filter(|language| languages & (1 << language) != 0) {
        let patterns = patterns(&lexicon.grammars[usize::from(language)]);
        let present = &present[usize::from(language)];
        let reader = Reader { tokens: &text.tokens, lattice, entries: &lexicon.entries, language };
        for key in present.common(patterns.keys) {
            for &place in &patterns.keyed[key] {
                let pattern = &patterns.patterns[place as usize];
                if !pattern.elements.iter().filter_map(Element::needed).all(|needed| needed.meets(present)) {
                    continue;
                }
                for start in (0..text.tokens.len()).filter(|start| reader.can_begin(&pattern.anchor, *start)) {
                    if let Some(tokens) = reader.matches(&pattern.elements, start, &mut effort) {
                        found.push(Match { language, owner: pattern.owner, tokens });
                    }
                }
            }
        }
    }
}

/// The language of the first file, whose words all other languages borrow.
const FIRST_LANGUAGE: u8 = 0;

/// Whether a match of another language is made of borrowed words only: then the first language's own rules and guards
/// have the say.
fn is_borrowed(lexicon: &Lexicon, text: &Text, lattice: &Lattice, rule: &Match) -> bool {
    let own = |at: usize| {
        let knows = |edge: &Edge| lexicon.entries[edge.entry as usize].classes.get(rule.language).is_some();
        !is_first(lexicon, text, lattice, at) && lattice.at(at).iter().any(knows)
    };
    rule.language != FIRST_LANGUAGE && !rule.tokens.clone().any(own)
}

/// Whether a token begins a word or phrase of the first language.
fn is_first(lexicon: &Lexicon, text: &Text, lattice: &Lattice, at: usize) -> bool {
    let knows = |edge: &Edge| lexicon.entries[edge.entry as usize].classes.get(FIRST_LANGUAGE).is_some();
    !text.tokens[at].solo && lattice.at(at).iter().any(knows)
}

/// The class that guards leave a match, if any.
fn guarded(lexicon: &Lexicon, text: &Text, rule: &Match, class: Class, guards: &[Match]) -> Option<Class> {
    let mut class = class;
    for guard in guards {
        let (reach, verdict) = lexicon.grammars[usize::from(guard.language)].guard_effects[guard.owner as usize];
        // "pls dont stop ang promos": borrowed words bring their negation along.
        let is_borrowed = guard.language == FIRST_LANGUAGE && reach == Reach::Overlap;
        if guard.language != rule.language && !is_borrowed {
            continue;
        }
        let overlaps = guard.tokens.start < rule.tokens.end && rule.tokens.start < guard.tokens.end;
        let reaches = match reach {
            Reach::Overlap => overlaps,
            Reach::Clause => overlaps || same_clause(text, &guard.tokens, &rule.tokens),
            Reach::Message => true,
        };
        match verdict {
            _ if !reaches => {}
            Verdict::None => return None,
            Verdict::Review => class = Class::Review,
        }
    }
    Some(class)
}

fn same_clause(text: &Text, one: &Range<usize>, other: &Range<usize>) -> bool {
    let (from, to) = (one.start.min(other.start), one.start.max(other.start));
    text.tokens.get(from + 1..=to).is_none_or(|between| between.iter().all(|token| !token.opens))
}

fn rank(class: Class) -> u8 {
    match class {
        Class::OptOut => 0,
        Class::Help => 1,
        Class::Review => 2,
        Class::OptIn | Class::None => 3,
    }
}

/// The scope that words of the match, or of the rest of its clause, give it.
fn scope(lexicon: &Lexicon, text: &Text, lattice: &Lattice, rule: &Match, grammar: &Grammar) -> Option<Scope> {
    let clause_end = text.end_of_clause(rule.tokens.start);
    let mut said = ClassSet::EMPTY;
    for edge in (rule.tokens.start..clause_end).flat_map(|at| lattice.at(at)) {
        if let Some(classes) = lexicon.entries[edge.entry as usize].classes.get(rule.language) {
            said |= *classes;
        }
    }
    let says = |classes: ClassSet| said.meets(&classes);
    if says(grammar.promotions) {
        Some(Scope::promotions())
    } else if says(grammar.marketing) {
        Some(Scope::Marketing)
    } else if says(grammar.everything) {
        Some(Scope::All)
    } else {
        None
    }
}
