//! What a customer's message asks for: to be left alone, to be written to again, help, or nothing of the kind.
//!
//! In order: a button's payload, its title, then the text. Of a text: what others wrote is cut away (`cut`), the rest is
//! folded into tokens (`text`, `fold`), and the first of these that has an answer decides:
//!
//! 1. `keyword`: the whole message is a keyword, give or take courtesy;
//! 2. `grammar`: a clause says it in words: verbs, objects and negation, and guards that take matches back;
//! 3. `keyword` again: the whole message is a slip away from a keyword;
//! 4. `learned`: of a sentence that says nothing to the rules, or too little, the words are weighed.
//!
//! Invariants: the same lexicon and message give the same answer for ever; nobody is opted in by anything but a whole
//! message or a button; time is linear in the text, of which both ends are read (`BOTH_ENDS_BYTES`); nothing panics.
//!
//! Absent: files (`wire::lexicon`), what to do with the answer, and who the customer is.

mod button;
mod class_set;
mod compile;
mod cut;
mod data;
mod fold;
mod grammar;
mod keyword;
mod learned;
mod lexicon;
mod pattern;
mod text;
mod typo;
mod words;

pub use cut::BOTH_ENDS_BYTES;
pub use data::{
    Change, FeatureWeight, Follow, GuardData, KeywordGroup, LanguageData, LearnedData, Located, Override, Reach, RuleData, Verdict, When,
    WordClass,
};
pub use lexicon::{Fingerprint, Lexicon, LexiconFault};

use keyword::{About, Courtesies};
use pattern::Lattice;
use std::cell::RefCell;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use text::Text;

/// What the customer wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    OptOut,
    OptIn,
    Help,
    /// A person should look at it.
    Review,
    None,
}

impl Class {
    pub const ALL: [Self; 5] = [Self::OptOut, Self::OptIn, Self::Help, Self::Review, Self::None];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::OptOut => "opt_out",
            Self::OptIn => "opt_in",
            Self::Help => "help",
            Self::Review => "review",
            Self::None => "none",
        }
    }
}

/// How far the wish reaches, where the text says so.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    Marketing,
    Program(String),
    All,
}

impl Scope {
    /// Reads `all`, `marketing`, `program:ID`, and nothing from nothing.
    pub fn parse(written: &str) -> Result<Option<Self>, String> {
        Ok(Some(match written {
            "" => return Ok(None),
            "all" => Self::All,
            "marketing" => Self::Marketing,
            _ => match written.strip_prefix("program:") {
                Some(id) if !id.is_empty() => Self::Program(id.to_owned()),
                Some(_) | None => {
                    return Err(format!("\"{written}\" is not a scope: all, marketing or program:ID"));
                }
            },
        }))
    }

    fn promotions() -> Self {
        Self::Program("promotions".to_owned())
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Marketing => out.write_str("marketing"),
            Self::Program(id) => write!(out, "program:{id}"),
            Self::All => out.write_str("all"),
        }
    }
}

/// How sure the rule is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Confidence {
    /// A keyword, a button.
    Exact,
    /// A sentence that the grammar understands.
    High,
    /// A slip was mended, words were weighed, or a person is asked.
    Low,
}

impl Confidence {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::High => "high",
            Self::Low => "low",
        }
    }
}

/// Which rule decided, such as `en.keyword.stop` or `pt.grammar.want-not-receive`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RuleId(Option<Arc<str>>);

impl RuleId {
    /// No rule: nothing was asked for.
    pub const NONE: Self = Self(None);

    fn new(name: String) -> Self {
        Self(Some(name.into()))
    }

    pub fn as_str(&self) -> Option<&str> {
        self.0.as_deref()
    }

    /// Whether words were weighed.
    pub fn is_learned(&self) -> bool {
        self.as_str().is_some_and(|name| name.starts_with("learned."))
    }
}

impl fmt::Display for RuleId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.as_str().unwrap_or("none"))
    }
}

/// A language, as the code of its file.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LanguageCode(Arc<str>);

impl LanguageCode {
    fn new(code: &str) -> Self {
        Self(code.into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for LanguageCode {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

/// Bytes of the original text or button title.
pub type Span = Range<usize>;

/// The answer, with what is needed to explain it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Classification {
    pub class: Class,
    pub scope: Option<Scope>,
    pub rule: RuleId,
    pub span: Option<Span>,
    pub language: Option<LanguageCode>,
    pub confidence: Confidence,
}

impl Classification {
    fn none() -> Self {
        Self { class: Class::None, scope: None, rule: RuleId::NONE, span: None, language: None, confidence: Confidence::High }
    }
}

/// What arrived.
#[derive(Clone, Copy, Debug, Default)]
pub struct Message<'a> {
    pub text: Option<&'a str>,
    pub button: Option<Button<'a>>,
    /// The customer's language, if something outside the message says it; BCP 47.
    pub language: Option<&'a str>,
}

/// A quick reply or list entry that the customer pressed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Button<'a> {
    pub payload: Option<&'a str>,
    pub title: Option<&'a str>,
}

/// Decides one message.
pub fn classify(lexicon: &Lexicon, message: &Message<'_>) -> Classification {
    thread_local! {
        // Buffers only: every call begins by emptying them.
        static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch::default());
    }
    SCRATCH.with_borrow_mut(|scratch| {
        let hint = lexicon.language(message.language);
        let pressed = message.button.and_then(|pressed| button::decide(lexicon, pressed, hint, scratch));
        let written = || message.text.and_then(|text| read(lexicon, text, hint, scratch));
        pressed.or_else(written).unwrap_or_else(Classification::none)
    })
}

/// Buffers that live from message to message.
#[derive(Debug, Default)]
struct Scratch {
    text: Text,
    courtesies: Courtesies,
    lattice: Lattice,
    stretches: Vec<Range<usize>>,
    found: grammar::Found,
    sequence: learned::Sequence,
}

/// Decides a text; nothing means that no rule had an answer.
fn read(lexicon: &Lexicon, original: &str, hint: Option<u8>, scratch: &mut Scratch) -> Option<Classification> {
    let Scratch { text, courtesies, lattice, stretches, found, sequence } = scratch;
    own_words(lexicon, original, stretches, text);
    let about = About { hint, marked: text.marked };
    if text.tokens.is_empty() {
        return keyword::decide_signs(lexicon, text, about);
    }
    let all = 0..text.tokens.len();
    if let Some(answer) = keyword::decide_whole(lexicon, text, all.clone(), about) {
        return Some(answer);
    }
    grammar::tag(lexicon, text, lattice, courtesies);
    if let Some(answer) = keyword::decide_before_courtesy(lexicon, text, courtesies, about) {
        return Some(answer);
    }
    let core = courtesies.within(all);
    if let Some(answer) = keyword::decide(lexicon, text, courtesies, core.clone(), about) {
        return Some(answer);
    }
    found.took_back = false;
    let said = grammar::decide(lexicon, text, lattice, found)
        .map(|ruled| or_doubted(lexicon, text, sequence, ruled))
        .or_else(|| keyword::decide_slip(lexicon, text, core, about))
        .or_else(|| grammar::decide_mended(lexicon, text, lattice, found));
    if said.as_ref().is_some_and(|said| said.class != Class::Review) {
        return said;
    }
    // A complaint, or talk of messages, with a keyword for a sentence: the keyword is meant.
    let clause = keyword::decide_clause(lexicon, text, courtesies, about);
    let complains_elsewhere = |clause: &Range<usize>| {
        let place = said.as_ref().and_then(|said| said.span.clone());
        place.zip(text.original(clause.clone())).is_some_and(|(said, clause)| said.end <= clause.start || clause.end <= said.start)
    };
    let meant = clause.filter(|(_, clause)| complains_elsewhere(clause) || grammar::speaks_of_messages(lexicon, text, lattice, clause));
    meant
        .map(|(keyword, _)| Classification { confidence: Confidence::High, ..keyword })
        .or_else(|| if found.took_back { said } else { by_weight(lexicon, text, sequence, said) })
}

/// Reads what the customer wrote, without what others wrote.
fn own_words(lexicon: &Lexicon, original: &str, stretches: &mut Vec<Range<usize>>, text: &mut Text) {
    cut::cut(original, &lexicon.marks, stretches);
    text.clear();
    for stretch in stretches.iter() {
        text.read(original, stretch.clone(), &lexicon.words);
    }
}

/// What a rule found, unless all other words speak against it: then a person looks at it.
fn or_doubted(lexicon: &Lexicon, text: &Text, sequence: &mut learned::Sequence, ruled: Classification) -> Classification {
    let doubt = lexicon.learned.as_ref().filter(|_| ruled.class == Class::OptOut).and_then(|learned| learned.doubt(text, sequence));
    match doubt {
        Some(rule) => Classification { class: Class::Review, confidence: Confidence::Low, rule, ..ruled },
        None => ruled,
    }
}

/// What the words of a text weigh, where that says more than the rules said.
fn by_weight(lexicon: &Lexicon, text: &Text, sequence: &mut learned::Sequence, said: Option<Classification>) -> Option<Classification> {
    let weighed = lexicon.learned.as_ref().and_then(|learned| learned.weigh(text, sequence));
    let says_more = |class| class == Class::OptOut || class == Class::Review && said.is_none();
    let Some(weighed) = weighed.filter(|weighed| says_more(weighed.class)) else { return said };
    Some(Classification {
        class: weighed.class,
        scope: said.and_then(|said| said.scope),
        rule: weighed.rule,
        span: text.original(0..text.tokens.len()),
        language: weighed.language,
        confidence: Confidence::Low,
    })
}

/// Why a text weighs what it weighs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reasons {
    /// Its score, in thousandths.
    pub thousandths: i32,
    /// Words that count most, for it or against it, and how much.
    pub strongest: Vec<(String, i32)>,
}

/// Why a text weighs what it weighs; nothing where it is not weighed.
pub fn reasons(lexicon: &Lexicon, text: &str, most: usize) -> Option<Reasons> {
    let learned = lexicon.learned.as_ref()?;
    let Scratch { text, mut sequence, .. } = read_only(lexicon, text);
    let thousandths = learned.weigh(&text, &mut sequence)?.thousandths;
    let strongest = learned.strongest(&text, &mut sequence, most);
    Some(Reasons { thousandths, strongest })
}

/// The features of a text that a model may have learned a weight for, each as often as it is there; none of a text that is not
/// weighed.
pub fn features(lexicon: &Lexicon, text: &str) -> Vec<String> {
    let Scratch { text, mut sequence, .. } = read_only(lexicon, text);
    learned::names(&text, &mut sequence)
}

fn read_only(lexicon: &Lexicon, original: &str) -> Scratch {
    let mut scratch = Scratch::default();
    own_words(lexicon, original, &mut scratch.stretches, &mut scratch.text);
    scratch
}

#[cfg(test)]
mod tests;
