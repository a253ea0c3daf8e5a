//! Sentences: rules that find a wish in a clause, and guards that take it back.
//!
//! Every token is tagged with the classes its word is in, in every language that has it; the rules of a language are tried
//! where a word stands that one of them begins with. A rule's match counts unless a guard of its language reaches it.
//!
//! Invariants: an opt-out beats help, help beats review, and of equals the first in the text, then in the file; the work
//! is bounded by `STEPS_A_TOKEN` times the text.
//!
//! Absent: the words and the patterns, which are the language files'.

use super::data::{Reach, Verdict};
use super::lexicon::{Grammar, Lexicon, Patterns};
use super::pattern::{ClassSet, Edge, Effort, Lattice, Reader};
use super::text::Text;
use super::words::Words;
use super::{Class, Classification, Confidence, Scope};
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
}

/// Finds every word and phrase of every language in the text.
pub(super) fn tag(lexicon: &Lexicon, text: &Text, lattice: &mut Lattice) {
    lattice.clear();
    for start in 0..text.tokens.len() {
        lattice.starts.push(lattice.edges.len() as u32);
        tag_from(lexicon, text, lattice, start, 0, None);
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

fn tag_from(lexicon: &Lexicon, text: &Text, lattice: &mut Lattice, start: usize, skip: usize, only: Option<u8>) {
    let words = &lexicon.words;
    let mut place = Words::START;
    for (at, token) in text.tokens.iter().enumerate().skip(start) {
        if at > start {
            if token.opens {
                return;
            }
            if !token.glued {
                match words.step(place, b' ') {
                    Some(next) => place = next,
                    None => return,
                }
            }
        }
        let bytes = token_bytes(text, at);
        let bytes = if at == start { &bytes[skip..] } else { bytes };
        for &byte in bytes {
            match words.step(place, byte) {
                Some(next) => place = next,
                None => return,
            }
            if let Some(number) = words.stem(place) {
                push_edges(lexicon, lattice, number, at + 1, only);
            }
        }
        if let Some(number) = words.whole(place) {
            push_edges(lexicon, lattice, number, at + 1, only);
        }
    }
}

fn push_edges(lexicon: &Lexicon, lattice: &mut Lattice, number: u32, end: usize, only: Option<u8>) {
    for &(language, classes) in &lexicon.entries[number as usize].classes {
        if only.is_none_or(|only| only == language) {
            lattice.edges.push(Edge { end: end as u32, language, classes });
        }
    }
}

/// Decides by the rules of every language.
pub(super) fn decide(lexicon: &Lexicon, text: &Text, lattice: &Lattice, found: &mut Found) -> Option<Classification> {
    let mut effort = Effort(STEPS_A_TOKEN.saturating_mul(text.tokens.len() as u32));
    search(lexicon, text, lattice, |grammar| &grammar.rules, &mut found.rules, &mut effort);
    if found.rules.is_empty() {
        return None;
    }
    let mut effort = Effort(STEPS_A_TOKEN.saturating_mul(text.tokens.len() as u32));
    search(lexicon, text, lattice, |grammar| &grammar.guards, &mut found.guards, &mut effort);
    let judged = found.rules.iter().filter_map(|rule| {
        let grammar = &lexicon.grammars[usize::from(rule.language)];
        let class = guarded(lexicon, text, rule, grammar.rule_names[rule.owner as usize].1, &found.guards)?;
        Some((class, rule))
    });
    let (class, rule) = judged.min_by_key(|(class, rule)| (rank(*class), rule.tokens.start, rule.language, rule.owner))?;
    let grammar = &lexicon.grammars[usize::from(rule.language)];
    let confidence = if class == Class::Review { Confidence::Low } else { Confidence::High };
    Some(Classification {
        class,
        scope: scope(text, lattice, rule, grammar),
        rule: grammar.rule_names[rule.owner as usize].0.clone(),
        span: text.original(rule.tokens.clone()),
        language: lexicon.languages.get(usize::from(rule.language)).cloned(),
        confidence,
    })
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

/// Tags unknown words; false if none was mended or nothing else in the text could be part of a wish.
fn mend(lexicon: &Lexicon, text: &Text, lattice: &mut Lattice) -> bool {
    let begins = |edge: &Edge| edge.classes & lexicon.grammars[usize::from(edge.language)].rules.anchors != 0;
    if text.tokens.len() > LONGEST_MENDED || !lattice.edges.iter().any(begins) {
        return false;
    }
    let mut mended = false;
    for at in 0..text.tokens.len() {
        let word = text.slice(at..at + 1);
        let unknown = lattice.at(at).is_empty() && word.len() > 4 && !text.tokens[at].solo && !lexicon.words.knows(word.as_bytes());
        let Some(number) = (if unknown { lexicon.word_slips.find(word) } else { None }) else { continue };
        let before = lattice.edges.len();
        push_edges(lexicon, lattice, number, at + 1, None);
        let added = lattice.edges.len() - before;
        // The new edges go where the token's edges are.
        let place = lattice.starts[at] as usize;
        lattice.edges[place..].rotate_right(added);
        lattice.starts.iter_mut().skip(at + 1).for_each(|start| *start += added as u32);
        mended = true;
    }
    mended
}

fn search<'l>(
    lexicon: &'l Lexicon,
    text: &Text,
    lattice: &Lattice,
    patterns: impl Fn(&'l Grammar) -> &'l Patterns,
    found: &mut Vec<Match>,
    effort: &mut Effort,
) {
    found.clear();
    for start in 0..text.tokens.len() {
        for edge in lattice.at(start) {
            let patterns = patterns(&lexicon.grammars[usize::from(edge.language)]);
            let mut anchors = edge.classes & patterns.anchors;
            while anchors != 0 {
                let class = anchors.trailing_zeros() as usize;
                anchors &= anchors - 1;
                let reader = Reader { tokens: &text.tokens, lattice, language: edge.language };
                for &place in &patterns.starts[class] {
                    let (elements, owner) = &patterns.elements[place as usize];
                    if let Some(tokens) = reader.matches(elements, start, effort) {
                        found.push(Match { language: edge.language, owner: *owner, tokens });
                    }
                }
            }
        }
    }
}

/// The class that guards leave a match, if any.
fn guarded(lexicon: &Lexicon, text: &Text, rule: &Match, class: Class, guards: &[Match]) -> Option<Class> {
    let mut class = class;
    for guard in guards.iter().filter(|guard| guard.language == rule.language) {
        let (reach, verdict) = lexicon.grammars[usize::from(guard.language)].guard_effects[guard.owner as usize];
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
fn scope(text: &Text, lattice: &Lattice, rule: &Match, grammar: &Grammar) -> Option<Scope> {
    let clause_end = (rule.tokens.start + 1..text.tokens.len()).find(|at| text.tokens[*at].opens).unwrap_or(text.tokens.len());
    let mut said: ClassSet = 0;
    for at in rule.tokens.start..clause_end {
        lattice.at(at).iter().filter(|edge| edge.language == rule.language).for_each(|edge| said |= edge.classes);
    }
    let says = |classes: ClassSet| said & classes != 0;
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
