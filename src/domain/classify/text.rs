//! A message → folded tokens that remember where they came from.
//!
//! Invariants: tokens are in order and do not overlap; `folded` holds them with one space between two words that are
//! written apart and none around characters of scripts without word breaks; every token knows the bytes of the original
//! it was made of. One pass, linear in the text.
//!
//! Absent: meaning. A stretched word ("stoppp") is shortened to whatever the lexicon knows, by asking `Words`.

use super::fold::{self, Role};
use super::words::Words;
use std::ops::Range;

#[derive(Clone, Debug)]
pub(super) struct Token {
    /// Bytes of `Text::folded`.
    pub(super) folded: Range<u32>,
    /// Bytes of the original.
    pub(super) original: Range<u32>,
    /// Written without a space before it.
    pub(super) glued: bool,
    /// First of a clause.
    pub(super) opens: bool,
    /// Of a script without word breaks.
    pub(super) solo: bool,
}

/// The scratch buffer of one classification.
#[derive(Debug, Default)]
pub(super) struct Text {
    pub(super) folded: String,
    pub(super) tokens: Vec<Token>,
    /// Emoji and other signs, with their place in the original.
    pub(super) signs: Vec<(char, u32)>,
    /// Some letter was written outside ASCII.
    pub(super) marked: bool,
    open: Option<Open>,
    /// A clause ended since the last token.
    ended: bool,
}

/// The word being read.
#[derive(Debug)]
struct Open {
    folded: u32,
    original: u32,
    last: char,
    repeats: u32,
    stretched: bool,
    latin: bool,
    foreign: bool,
}

impl Text {
    pub(super) fn clear(&mut self) {
        self.folded.clear();
        self.tokens.clear();
        self.signs.clear();
        self.open = None;
        self.marked = false;
        self.ended = true;
    }

    /// Reads one stretch of the original; a stretch is never joined to the one before.
    pub(super) fn read(&mut self, original: &str, stretch: Range<usize>, words: &Words) {
        self.ended = true;
        let base = stretch.start;
        let Some(text) = original.get(stretch) else {
            return;
        };
        let mut characters = text.char_indices();
        while let Some((at, c)) = characters.next() {
            let place = (base + at) as u32;
            match fold::role(c) {
                Role::Letter => {
                    if is_flag_letter(c) {
                        self.read_flag_or_letter(c, place, characters.as_str());
                    } else {
                        self.push_letter(c, place);
                    }
                }
                Role::Solo => self.push_solo(c, place, words),
                Role::Vanish => {}
                Role::Space => {
                    if c == '&' && self.skip_entity(&mut characters) {
                        continue;
                    }
                    self.close(place, words);
                    if c == '-' && is_dash(characters.as_str(), text, at) {
                        self.ended = true;
                    }
                }
                Role::Dot => {
                    self.close(place, words);
                    self.ended |= !characters.as_str().starts_with(|next: char| next.is_alphanumeric());
                }
                Role::Break => {
                    let inside_number = matches!(c, ',' | ':') && characters.as_str().starts_with(|next: char| next.is_ascii_digit());
                    self.close(place, words);
                    self.ended |= !inside_number;
                }
                Role::Apostrophe => {
                    if !joins(characters.as_str()) {
                        self.close(place, words);
                    }
                }
                Role::Sign => {
                    self.close(place, words);
                    self.ended = true;
                    self.signs.push((c, place));
                }
            }
        }
        let end = (base + text.len()) as u32;
        self.close(end, words);
    }

    pub(super) fn slice(&self, tokens: Range<usize>) -> &str {
        match (self.tokens.get(tokens.start), self.tokens.get(..tokens.end).and_then(<[Token]>::last)) {
            (Some(first), Some(last)) => self.folded.get(first.folded.start as usize..last.folded.end as usize).unwrap_or(""),
            _ => "",
        }
    }

    /// One past the last token of the clause that `start` is in.
    pub(super) fn end_of_clause(&self, start: usize) -> usize {
        (start + 1..self.tokens.len()).find(|at| self.tokens[*at].opens).unwrap_or(self.tokens.len())
    }

    pub(super) fn original(&self, tokens: Range<usize>) -> Option<Range<usize>> {
        let first = self.tokens.get(tokens.start)?;
        let last = self.tokens.get(..tokens.end)?.last()?;
        Some(first.original.start as usize..last.original.end as usize)
    }

    fn push_letter(&mut self, c: char, place: u32) {
        if self.open.is_none() {
            if self.tokens.last().is_some_and(|last| !last.solo) {
                self.folded.push(' ');
            }
            self.open = Some(Open {
                folded: self.folded.len() as u32,
                original: place,
                last: '\0',
                repeats: 0,
                stretched: false,
                latin: false,
                foreign: false,
            });
        }
        let before = self.folded.len();
        self.marked |= !c.is_ascii();
        fold::push_folded(c, &mut self.folded);
        let Some(open) = &mut self.open else { return };
        let last = match self.folded.as_bytes().last() {
            Some(byte) if byte.is_ascii() => char::from(*byte),
            _ => self.folded.chars().next_back().unwrap_or('\0'),
        };
        if self.folded.len() > before {
            open.repeats = if last == open.last { open.repeats + 1 } else { 1 };
            open.stretched |= open.repeats > 2 && !last.is_ascii_digit();
            open.last = last;
            match last {
                'a'..='z' => open.latin = true,
                '\u{370}'..='\u{52f}' => open.foreign = true,
                _ => {}
            }
        }
    }

    fn push_solo(&mut self, c: char, place: u32, words: &Words) {
        self.close(place, words);
        let start = self.folded.len();
        fold::push_folded(c, &mut self.folded);
        let end = place + c.len_utf8() as u32;
        let joins = self.folded.len() <= start || matches!(c, '\u{3099}' | '\u{309a}' | 'ﾞ' | 'ﾟ') || joins_syllable(c);
        if let Some(last) = self.tokens.last_mut().filter(|_| joins) {
            last.folded.end = self.folded.len() as u32;
            last.original.end = end;
            return;
        }
        self.tokens.push(Token {
            folded: start as u32..self.folded.len() as u32,
            original: place..end,
            glued: true,
            opens: self.ended,
            solo: true,
        });
        self.ended = false;
    }

    /// Ends the word that is open, if one is.
    fn close(&mut self, place: u32, words: &Words) {
        let Some(open) = self.open.take() else { return };
        let start = open.folded as usize;
        if self.folded.len() == start {
            // Nothing but marks: there is no word.
            if self.folded.ends_with(' ') {
                self.folded.pop();
            }
            return;
        }
        if open.latin && open.foreign {
            self.unmix(start);
        }
        if open.stretched {
            self.shorten(start, words);
        }
        self.tokens.push(Token {
            folded: open.folded..self.folded.len() as u32,
            original: open.original..place,
            glued: self.tokens.last().is_some_and(|last| last.solo),
            opens: self.ended,
            solo: false,
        });
        self.ended = false;
    }

    /// A word of two alphabets is read in the one that all its letters have a look in.
    fn unmix(&mut self, start: usize) {
        let word: String = self.folded.get(start..).unwrap_or("").to_owned();
        let as_latin: Option<String> = word.chars().map(|c| if c.is_ascii() { Some(c) } else { fold::latin_look_alike(c) }).collect();
        let as_cyrillic: Option<String> =
            word.chars().map(|c| if c.is_ascii_alphabetic() { fold::cyrillic_look_alike(c) } else { Some(c) }).collect();
        if let Some(pure) = as_latin.or(as_cyrillic) {
            self.folded.truncate(start);
            self.folded.push_str(&pure);
        }
    }

    /// "stoppp" is "stop" and "helllo" is "hello": runs become one letter, or two where only that is a word.
    fn shorten(&mut self, start: usize, words: &Words) {
        let word: String = self.folded.get(start..).unwrap_or("").to_owned();
        self.folded.truncate(start);
        let once = without_runs(&word, 1);
        let twice = without_runs(&word, 2);
        let known_twice = !words.knows(once.as_bytes()) && words.knows(twice.as_bytes());
        self.folded.push_str(if known_twice { &twice } else { &once });
    }

    /// Flags are two regional letters; a longer run of them is writing.
    fn read_flag_or_letter(&mut self, c: char, place: u32, rest: &str) {
        let follows = rest.chars().take_while(|next| is_flag_letter(*next)).count();
        if self.open.is_some() || follows >= 2 {
            self.push_letter(c, place);
        }
    }

    /// `&amp;`, `&#39;`, `&quot;`: what some gateways leave of a sign. True if it was one.
    fn skip_entity(&mut self, characters: &mut std::str::CharIndices<'_>) -> bool {
        const ENTITIES: [&str; 9] = ["amp;", "quot;", "apos;", "nbsp;", "lt;", "gt;", "#39;", "#34;", "#x27;"];
        let rest = characters.as_str();
        let Some(entity) = ENTITIES.iter().find(|entity| rest.starts_with(**entity)) else {
            return false;
        };
        let joining = matches!(*entity, "apos;" | "#39;" | "#x27;") && rest.get(entity.len()..).is_some_and(joins);
        for _ in 0..entity.len() {
            characters.next();
        }
        joining
    }
}

fn is_flag_letter(c: char) -> bool {
    matches!(c, '\u{1f1e6}'..='\u{1f1ff}')
}

fn joins_syllable(c: char) -> bool {
    matches!(c, '\u{1161}'..='\u{1175}' | '\u{11a8}'..='\u{11c2}' | '\u{ffc2}'..='\u{ffdc}')
}

/// Whether what follows an apostrophe is an English ending: don't, I'm, we've, they'll.
fn joins(rest: &str) -> bool {
    let mut letters = rest.chars();
    let ending = match (letters.next().map(|c| c.to_ascii_lowercase()), letters.next().map(|c| c.to_ascii_lowercase())) {
        (Some('t' | 's' | 'm' | 'd'), next) => return next.is_none_or(|c| !c.is_alphabetic()),
        (Some('r' | 'v'), Some('e')) | (Some('l'), Some('l')) => letters.next(),
        // A Cyrillic apostrophe is spelling.
        (Some('а'..='я' | 'А'..='Я' | 'є' | 'Є' | 'ї' | 'Ї' | 'і' | 'І'), _) => {
            return true;
        }
        _ => return false,
    };
    ending.is_none_or(|c| !c.is_alphabetic())
}

/// A hyphen with a space on either side is a dash.
fn is_dash(rest: &str, text: &str, at: usize) -> bool {
    rest.starts_with([' ', '-']) || text.get(..at).is_some_and(|before| before.ends_with(' '))
}

pub(super) fn without_runs(word: &str, keep: usize) -> String {
    let mut out = String::with_capacity(word.len());
    let (mut last, mut count) = ('\0', 0);
    for c in word.chars() {
        count = if c == last { count + 1 } else { 1 };
        last = c;
        if count <= keep {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::words::WordsBuilder;
    use super::*;

    fn tokens(text: &str) -> Vec<String> {
        let mut builder = WordsBuilder::new();
        for word in ["stop", "hello", "no"] {
            builder.number(word, false);
        }
        let mut out = Text::default();
        out.clear();
        out.read(text, 0..text.len(), &builder.build());
        (0..out.tokens.len()).map(|at| format!("{}{}", if out.tokens[at].opens { "|" } else { "" }, out.slice(at..at + 1))).collect()
    }

    #[test]
    fn clauses_end_at_punctuation_but_not_inside_numbers() {
        assert_eq!(tokens("Stop. Now, 1,000 at 10:30!"), ["|stop", "|now", "|1", "000", "at", "10", "30"]);
    }

    #[test]
    fn apostrophes_glue_english_endings_and_part_elisions() {
        assert_eq!(tokens("don’t m'envoyez we've"), ["|dont", "m", "envoyez", "weve"]);
    }

    #[test]
    fn stretched_words_become_words_the_lexicon_knows() {
        assert_eq!(tokens("stoppppp helllllo nooooo"), ["|stop", "hello", "no"]);
    }

    #[test]
    fn invisible_marks_and_mixed_alphabets_leave_the_word() {
        assert_eq!(tokens("s\u{200b}t\u{200d}op sт\u{43e}p"), ["|stop", "stop"]);
    }

    #[test]
    fn scripts_without_word_breaks_give_a_token_a_character() {
        assert_eq!(tokens("수신 거부"), ["|수", "신", "거", "부"]);
        assert_eq!(tokens("退订TD"), ["|退", "订", "td"]);
    }

    #[test]
    fn flags_are_no_words() {
        assert_eq!(tokens("stop 🇺🇸"), ["|stop"]);
        assert_eq!(tokens("🇸🇹🇴🇵"), ["|stop"]);
    }
}
