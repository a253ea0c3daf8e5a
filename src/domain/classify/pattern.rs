//! Patterns of the grammar: how they are written, and how they match a lattice of tagged tokens.
//!
//! A pattern is elements with spaces between them:
//!
//! | written | means |
//! |---|---|
//! | `<send>` | a word or phrase of the class `send` |
//! | `anymore` | this word |
//! | `(stop \| no more \| <quit>)` | one of these |
//! | `<please>?` `<please>*` | may be missing; up to four times |
//! | `..3` | up to three tokens of any kind (characters, in scripts without word breaks) |
//! | `^` `$` | beginning and end of a clause |
//!
//! Invariants: a match stays inside one clause; a pattern begins with words and not with a gap, so that the grammar finds
//! its candidates by the words of the text; the work for one start is bounded by the pattern, and the
//! work for one message by `Effort`.
//!
//! Absent: what a match means.

use super::class_set::ClassSet;
use super::lexicon::Entry;
use super::text::Token;
use std::ops::Range;

const MOST_REPEATS: u8 = 4;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Element {
    Words { classes: ClassSet, least: u8, most: u8 },
    Gap(u8),
    Opening,
    Closing,
}

impl Element {
    /// The classes of which one must stand in every text that the pattern matches.
    pub(super) fn needed(&self) -> Option<&ClassSet> {
        match self {
            Self::Words { classes, least: 1.., .. } => Some(classes),
            Self::Words { .. } | Self::Gap(_) | Self::Opening | Self::Closing => None,
        }
    }
}

/// Gives out the classes of a language while its patterns are read.
pub(super) trait Names<'p> {
    fn class(&mut self, name: &str) -> Result<ClassSet, String>;
    fn literals(&mut self, words: Vec<&'p str>) -> Result<ClassSet, String>;
}

/// One reading of a stretch of tokens: the lexicon's entry for a word or phrase, and one past its last token.
#[derive(Clone, Copy, Debug)]
pub(super) struct Edge {
    pub(super) end: u32,
    pub(super) entry: u32,
}

/// All readings of all tokens.
#[derive(Debug, Default)]
pub(super) struct Lattice {
    pub(super) edges: Vec<Edge>,
    /// Edges of token `i` are `edges[starts[i]..starts[i + 1]]`.
    pub(super) starts: Vec<u32>,
}

impl Lattice {
    pub(super) fn clear(&mut self) {
        self.edges.clear();
        self.starts.clear();
    }

    pub(super) fn at(&self, token: usize) -> &[Edge] {
        match (self.starts.get(token), self.starts.get(token + 1)) {
            (Some(&from), Some(&to)) => &self.edges[from as usize..to as usize],
            _ => &[],
        }
    }
}

/// Steps left for one message: what makes the worst text cost a constant times its length.
#[derive(Debug)]
pub(super) struct Effort(pub(super) u32);

pub(super) struct Reader<'a> {
    pub(super) tokens: &'a [Token],
    pub(super) lattice: &'a Lattice,
    pub(super) entries: &'a [Entry],
    pub(super) language: u8,
}

impl Reader<'_> {
    /// The tokens that the elements match from `start` on.
    pub(super) fn matches(&self, elements: &[Element], start: usize, effort: &mut Effort) -> Option<Range<usize>> {
        self.end(elements, 0, start, start, effort).map(|end| start..end)
    }

    /// Whether a match of a pattern with this anchor can begin at `start`.
    pub(super) fn can_begin(&self, anchor: &ClassSet, start: usize) -> bool {
        self.lattice.at(start).iter().any(|edge| self.is_in(edge, anchor))
    }

    fn is_in(&self, edge: &Edge, classes: &ClassSet) -> bool {
        self.entries[edge.entry as usize].classes.get(self.language).is_some_and(|set| set.meets(classes))
    }

    /// The end of the match, if the elements match at `at`; `used` words of the first one are matched already.
    fn end(&self, elements: &[Element], used: u8, start: usize, at: usize, effort: &mut Effort) -> Option<usize> {
        effort.0 = effort.0.checked_sub(1)?;
        let Some((element, rest)) = elements.split_first() else {
            return Some(at);
        };
        let clause_ended = self.tokens.get(at).is_none_or(|token| token.opens && at != start);
        match element {
            Element::Opening if self.tokens.get(at).is_some_and(|token| token.opens) => self.end(rest, 0, start, at, effort),
            Element::Closing if clause_ended => self.end(rest, 0, start, at, effort),
            Element::Opening | Element::Closing => None,
            Element::Gap(most) => {
                if let Some(end) = self.end(rest, 0, start, at, effort) {
                    return Some(end);
                }
                if used < *most && !clause_ended { self.end(elements, used + 1, start, at + 1, effort) } else { None }
            }
            Element::Words { classes, least, most } => {
                if used < *most && !clause_ended {
                    for edge in self.lattice.at(at) {
                        if self.is_in(edge, classes)
                            && let Some(end) = self.end(elements, used + 1, start, edge.end as usize, effort)
                        {
                            return Some(end);
                        }
                    }
                }
                if used >= *least { self.end(rest, 0, start, at, effort) } else { None }
            }
        }
    }
}

/// Reads a pattern; the error says what is wrong with it.
pub(super) fn parse<'p>(pattern: &'p str, names: &mut dyn Names<'p>) -> Result<Vec<Element>, String> {
    let mut elements = Vec::new();
    let mut rest = pattern.trim();
    while !rest.is_empty() {
        let (element, remaining) = parse_element(rest, names)?;
        elements.push(element);
        rest = remaining.trim_start();
    }
    if anchor(&elements).is_empty() { Err("a pattern begins with words, at least one of which must be there".to_owned()) } else { Ok(elements) }
}

/// The classes of which one must stand where a match begins; none if the pattern does not say.
pub(super) fn anchor(elements: &[Element]) -> ClassSet {
    let mut anchor = ClassSet::EMPTY;
    for element in elements {
        match element {
            Element::Opening => {}
            Element::Words { classes, least: 0, .. } => anchor |= *classes,
            Element::Words { classes, .. } => return anchor | *classes,
            Element::Gap(_) | Element::Closing => return ClassSet::EMPTY,
        }
    }
    ClassSet::EMPTY
}

fn parse_element<'p>(text: &'p str, names: &mut dyn Names<'p>) -> Result<(Element, &'p str), String> {
    if let Some(rest) = text.strip_prefix('^') {
        return Ok((Element::Opening, rest));
    }
    if let Some(rest) = text.strip_prefix('$') {
        return Ok((Element::Closing, rest));
    }
    if let Some(rest) = text.strip_prefix("..") {
        let (digits, rest) = split_at(rest, rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len()));
        let most = digits.parse().map_err(|_| format!("\"..{digits}\" needs a number from 1 to 20"))?;
        return if (1..=20).contains(&most) { Ok((Element::Gap(most), rest)) } else { Err(format!("a gap of {most} is not from 1 to 20")) };
    }
    let (classes, rest) = if let Some(inside) = text.strip_prefix('(') {
        let (group, rest) = split_at(inside, inside.find(')').ok_or("\"(\" without \")\"")?);
        (parse_group(group, names)?, rest.strip_prefix(')').unwrap_or(rest))
    } else {
        let length = text.find(|c: char| c.is_whitespace() || matches!(c, '?' | '*')).unwrap_or(text.len());
        let (word, rest) = split_at(text, length);
        (parse_group(word, names)?, rest)
    };
    let (least, most, rest) = if let Some(rest) = rest.strip_prefix('?') {
        (0, 1, rest)
    } else if let Some(rest) = rest.strip_prefix('*') {
        (0, MOST_REPEATS, rest)
    } else {
        (1, 1, rest)
    };
    Ok((Element::Words { classes, least, most }, rest))
}

fn parse_group<'p>(group: &'p str, names: &mut dyn Names<'p>) -> Result<ClassSet, String> {
    let mut classes = ClassSet::EMPTY;
    let mut literals = Vec::new();
    for choice in group.split('|').map(str::trim) {
        match choice.strip_prefix('<').and_then(|name| name.strip_suffix('>')) {
            Some(name) => classes |= names.class(name)?,
            None if choice.is_empty() || choice.contains(['<', '>']) => {
                return Err(format!("\"{choice}\" is neither a word nor a <class>"));
            }
            None => literals.push(choice),
        }
    }
    if !literals.is_empty() {
        classes |= names.literals(literals)?;
    }
    Ok(classes)
}

fn split_at(text: &str, at: usize) -> (&str, &str) {
    text.split_at_checked(at).unwrap_or((text, ""))
}
