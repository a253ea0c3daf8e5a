//! Messages that are a keyword, give or take courtesy, spacing, disguise or one slip.
//!
//! Invariants: an opt-in is found only by `decide_whole`, on words as the lexicon has them; every other way here finds
//! opt-outs and what a person should look at. Disguises and slips count only if the result is the whole message.
//!
//! Absent: sentences (`grammar`).

use super::data::{Follow, When};
use super::fold;
use super::lexicon::{Followed, Keyword, Lexicon};
use super::text::{self, Text};
use super::words::Words;
use super::{Class, Classification, Confidence, Scope};
use std::ops::Range;

/// What decides whether a short form acts.
#[derive(Clone, Copy, Debug)]
pub(super) struct About {
    /// The language the message is known to be in.
    pub(super) hint: Option<u8>,
    /// Written with letters outside ASCII.
    pub(super) marked: bool,
}

/// No courtesy is longer, in tokens.
const LONGEST_COURTESY: usize = 12;

/// A message of nothing but emoji.
pub(super) fn decide_signs(lexicon: &Lexicon, text: &Text, about: About) -> Option<Classification> {
    let answers = text.signs.iter().filter_map(|(sign, place)| {
        let number = lexicon.words.find(sign.encode_utf8(&mut [0; 4]).as_bytes())?;
        let place = *place as usize;
        answer(lexicon, number, about, Some(place..place + sign.len_utf8()), Confidence::Exact)
    });
    answers.reduce(|first, next| if next.class == Class::OptOut && first.class != Class::OptOut { next } else { first })
}

/// The tokens are a keyword as they stand.
pub(super) fn decide_whole(lexicon: &Lexicon, text: &Text, tokens: Range<usize>, about: About) -> Option<Classification> {
    let number = lexicon.words.find(text.slice(tokens.clone()).as_bytes())?;
    answer(lexicon, number, about, text.original(tokens), Confidence::Exact)
}

/// Where "hi", "please" and "thank you" stand in a text.
#[derive(Debug, Default)]
pub(super) struct Courtesies {
    /// One past the last token of the longest courtesy that begins at each token; 0 where none does.
    ends: Vec<u32>,
}

impl Courtesies {
    pub(super) fn clear(&mut self) {
        self.ends.clear();
    }

    /// The next token's: one past the last token of the longest courtesy that begins there, 0 where none does.
    pub(super) fn push(&mut self, end: u32) {
        self.ends.push(end);
    }

    fn end(&self, start: usize) -> Option<usize> {
        self.ends.get(start).map(|end| *end as usize).filter(|end| *end > 0)
    }

    /// Where the courtesy begins that the tokens end with.
    fn start(&self, tokens: &Range<usize>) -> Option<usize> {
        let earliest = (tokens.start + 1).max(tokens.end.saturating_sub(LONGEST_COURTESY));
        (earliest..tokens.end).find(|first| self.end(*first) == Some(tokens.end))
    }

    /// The tokens between courtesies.
    pub(super) fn within(&self, tokens: Range<usize>) -> Range<usize> {
        let mut core = tokens;
        while let Some(next) = self.end(core.start).filter(|next| *next < core.end) {
            core.start = next;
        }
        while let Some(first) = self.start(&core) {
            core.end = first;
        }
        core
    }
}

/// The tokens are a keyword and then courtesy; a keyword may itself begin or end like a courtesy ("ช่วยเหลือค่ะ").
pub(super) fn decide_before_courtesy(lexicon: &Lexicon, text: &Text, courtesies: &Courtesies, about: About) -> Option<Classification> {
    let mut left = 0..text.tokens.len();
    while let Some(first) = courtesies.start(&left) {
        left.end = first;
        let found = decide_whole(lexicon, text, left.clone(), about);
        if found.is_some() {
            return found;
        }
    }
    None
}

/// The end of the longest entry from `start` on that passes.
fn walk(lexicon: &Lexicon, text: &Text, start: usize, mut passes: impl FnMut(u32, usize) -> bool) -> Option<usize> {
    let mut place = Words::START;
    let mut longest = None;
    for (at, token) in text.tokens.iter().enumerate().skip(start) {
        if at > start && !token.glued {
            place = match lexicon.words.step(place, b' ') {
                Some(next) => next,
                None => return longest,
            };
        }
        for &byte in &text.folded.as_bytes()[token.folded.start as usize..token.folded.end as usize] {
            place = match lexicon.words.step(place, byte) {
                Some(next) => next,
                None => return longest,
            };
            if lexicon.words.stem(place).is_some_and(|number| passes(number, at + 1)) {
                longest = Some(at + 1);
            }
        }
        if lexicon.words.whole(place).is_some_and(|number| passes(number, at + 1)) {
            longest = Some(at + 1);
        }
    }
    longest
}

/// The keyword that a clause of a longer message consists of, courtesy aside: "Too many messages. Please stop."
pub(super) fn decide_clause(lexicon: &Lexicon, text: &Text, courtesies: &Courtesies, about: About) -> Option<(Classification, Range<usize>)> {
    let mut start = 0;
    while start < text.tokens.len() {
        let end = text.end_of_clause(start);
        let core = courtesies.within(start..end);
        let found = decide_whole(lexicon, text, core.clone(), about).filter(|found| found.class == Class::OptOut);
        let found = found.filter(|found| !is_negated(lexicon, text, core.start, found));
        if let Some(found) = found {
            return Some((found, start..end));
        }
        start = end;
    }
    None
}

/// What is left of the message between courtesies is a keyword, several, one with its programme, or one in disguise.
///
/// Nothing if the courtesy before it negates it: "no" is courtesy in "no, stop", and turns "no quiero dejar de recibir"
/// round.
pub(super) fn decide(lexicon: &Lexicon, text: &Text, courtesies: &Courtesies, core: Range<usize>, about: About) -> Option<Classification> {
    decide_whole(lexicon, text, core.clone(), about)
        .or_else(|| decide_repeated(lexicon, text, courtesies, core.clone(), about))
        .or_else(|| decide_followed(lexicon, text, core.clone(), about))
        .or_else(|| decide_disguised(lexicon, text, core.clone(), about))
        .filter(|found| !is_negated(lexicon, text, core.start, found))
}

/// Whether a word before `start`, in its clause, says "not" in the language of what was found there.
fn is_negated(lexicon: &Lexicon, text: &Text, start: usize, found: &Classification) -> bool {
    let language = lexicon.languages.iter().position(|language| Some(language) == found.language.as_ref());
    let Some(language) = language.and_then(|at| u8::try_from(at).ok()) else {
        return false;
    };
    let negation = &lexicon.grammars[usize::from(language)].negation;
    let opening = (0..=start).rev().find(|at| text.tokens.get(*at).is_some_and(|token| token.opens)).unwrap_or(0);
    (opening..start).any(|at| {
        let end = walk(lexicon, text, at, |number, end| {
            end <= start && lexicon.entries[number as usize].classes.get(language).is_some_and(|classes| classes.meets(negation))
        });
        end.is_some()
    })
}

/// "STOP STOP STOP", "stop. unsubscribe. cancel!"
fn decide_repeated(lexicon: &Lexicon, text: &Text, courtesies: &Courtesies, core: Range<usize>, about: About) -> Option<Classification> {
    let mut at = core.start;
    let mut first: Option<Classification> = None;
    let mut review = None;
    while at < core.end {
        let opt_out = |number: u32| {
            keyword_for(lexicon, number, about).filter(|(keyword, _)| keyword.class == Class::OptOut && keyword.when != When::Marked)
        };
        let end = walk(lexicon, text, at, |number, end| end <= core.end && opt_out(number).is_some());
        match end {
            Some(end) => {
                let found = decide_whole(lexicon, text, at..end, about)?;
                match found.class {
                    Class::OptOut => first = first.or(Some(found)),
                    Class::Review | Class::OptIn | Class::Help | Class::None => review = review.or(Some(found)),
                }
                at = end;
            }
            None => at = courtesies.end(at).filter(|end| *end <= core.end)?,
        }
    }
    first.or(review)
}

/// "STOP 36111", "stop news", "RET BRAND".
fn decide_followed(lexicon: &Lexicon, text: &Text, core: Range<usize>, about: About) -> Option<Classification> {
    if !(2..=12).contains(&core.len()) {
        return None;
    }
    let mut leading = None;
    walk(lexicon, text, core.start, |number, end| {
        let follows = end < core.end && keyword_for(lexicon, number, about).is_some_and(|(keyword, _)| keyword.follow != Follow::Nothing);
        leading = if follows { Some((number, end)) } else { leading };
        follows
    });
    let (number, end) = leading?;
    let (keyword, acts) = keyword_for(lexicon, number, about)?;
    let name = text.slice(end..core.end);
    let known = lexicon.words.find(name.as_bytes()).and_then(|number| lexicon.entries[number as usize].follows);
    let is_one_word = core.end - end == 1;
    let is_number = is_one_word && (2..=6).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_digit());
    let scope = match known {
        Some(Followed::Everything) => Scope::All,
        Some(Followed::Marketing) => Scope::Marketing,
        Some(Followed::Promotions) => Scope::promotions(),
        Some(Followed::Program) => Scope::Program(name.to_owned()),
        Some(Followed::Business) => return None,
        None if is_number => Scope::Program(name.to_owned()),
        None if is_one_word && keyword.follow == Follow::AnyName && name.len() > 1 => Scope::Program(name.to_owned()),
        None => return None,
    };
    let class = if acts { keyword.class } else { Class::Review };
    let confidence = if acts { Confidence::Exact } else { Confidence::Low };
    let language = lexicon.languages.get(usize::from(keyword.language)).cloned();
    Some(Classification { class, scope: Some(scope), rule: keyword.rule.clone(), span: text.original(core), language, confidence })
}

/// "S T O P", "s.t.o.p", "st op", "5T0P", "$top", СТОР.
fn decide_disguised(lexicon: &Lexicon, text: &Text, core: Range<usize>, about: About) -> Option<Classification> {
    const LONGEST: usize = 24;
    let slice = text.slice(core.clone());
    if slice.len() > 2 * LONGEST || text.tokens.get(core.start).is_none_or(|token| token.solo) {
        return None;
    }
    let squeezed: String = slice.chars().filter(|c| *c != ' ').collect();
    let span = text.original(core.clone());
    let act = |word: &str, least: usize| {
        let number = lexicon.words.find(word.as_bytes()).filter(|_| word.chars().count() >= least)?;
        answer(lexicon, number, about, span.clone(), Confidence::Low).filter(|found| matches!(found.class, Class::OptOut | Class::Review))
    };
    if core.len() > 1 {
        let letters_apart = core.clone().all(|at| text.slice(at..at + 1).chars().count() == 1);
        let joined = act(&squeezed, if letters_apart { 3 } else { 4 });
        let without_runs = || {
            if letters_apart { act(&text::without_runs(&squeezed, 1), 3) } else { None }
        };
        if let Some(found) = joined.or_else(without_runs) {
            return Some(found);
        }
    }
    if core.len() <= 2 && slice.contains(|c: char| c.is_ascii_digit() || matches!(c, '@' | '$')) && slice.contains(|c: char| c.is_alphabetic()) {
        let plain: String = slice.chars().map(fold::leet_letter).collect();
        let with_l = || slice.chars().map(|c| if c == '1' { 'l' } else { fold::leet_letter(c) }).collect::<String>();
        return act(&plain, 4).or_else(|| act(&with_l(), 4));
    }
    if !slice.is_ascii() {
        let latin: Option<String> = slice.chars().map(|c| if c.is_ascii() { Some(c) } else { fold::latin_look_alike(c) }).collect();
        return latin.and_then(|latin| act(&latin, 3));
    }
    None
}

/// "stpo", "unsuscribe": the message is one slip away from a keyword and no word of any language file.
pub(super) fn decide_slip(lexicon: &Lexicon, text: &Text, core: Range<usize>, about: About) -> Option<Classification> {
    if core.is_empty() || core.len() > 3 || text.tokens.get(core.start).is_none_or(|token| token.solo) {
        return None;
    }
    let whole = text.slice(core.clone());
    if lexicon.words.find(whole.as_bytes()).is_some() {
        return None;
    }
    let squeezed: String = whole.chars().filter(|c| *c != ' ').collect();
    let slip = |word: &str| {
        let number = lexicon.keyword_slips.find(word)?;
        answer(lexicon, number, about, text.original(core.clone()), Confidence::Low)
    };
    let all_known = core.clone().all(|at| lexicon.words.knows(text.slice(at..at + 1).as_bytes()));
    let found = slip(whole).or_else(|| if core.len() == 2 && !all_known && squeezed.len() > 8 { slip(&squeezed) } else { None });
    found.filter(|found| !is_negated(lexicon, text, core.start, found))
}

/// The keyword that an entry stands for, and whether it acts: if not, a person looks at it.
fn keyword_for(lexicon: &Lexicon, number: u32, about: About) -> Option<(&Keyword, bool)> {
    let places = &lexicon.entries[number as usize].keywords;
    let keywords = || places.iter().map(|place| &lexicon.keywords[*place as usize]);
    let hinted = keywords().find(|keyword| Some(keyword.language) == about.hint).map(|keyword| (keyword, true));
    let acts = |keyword: &&Keyword| match keyword.when {
        When::Always => true,
        When::Marked => about.marked,
        When::Hinted => false,
    };
    let always = || keywords().find(acts).map(|keyword| (keyword, true));
    hinted.or_else(always).or_else(|| keywords().next().map(|keyword| (keyword, false)))
}

fn answer(lexicon: &Lexicon, number: u32, about: About, span: Option<Range<usize>>, confidence: Confidence) -> Option<Classification> {
    let (keyword, acts) = keyword_for(lexicon, number, about)?;
    let (class, confidence) = match (acts, keyword.class) {
        (false, Class::OptIn | Class::Help | Class::None) => return None,
        (false, Class::OptOut | Class::Review) | (true, Class::Review) => (Class::Review, Confidence::Low),
        (true, class) => (class, confidence),
    };
    let language = lexicon.languages.get(usize::from(keyword.language)).cloned();
    Some(Classification { class, scope: keyword.scope.clone(), rule: keyword.rule.clone(), span, language, confidence })
}
