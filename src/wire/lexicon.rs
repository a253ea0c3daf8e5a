//! Language files, and the file of what was learned beside them → the engine's lexicon.
//!
//! A language is one TOML file; the built-in ones are embedded. Unknown fields are refused, and so is whatever the engine
//! refuses, each with file, line and reason.
//!
//! What was learned is a file of lines: `NAME<tab>THOUSANDTHS` for the settings `constant`, `opt_out`, `review` and `doubt`, then
//! `FEATURE<tab>THOUSANDTHS<tab>LANGUAGE`; empty lines and lines that begin with `#` say nothing.
//!
//! Absent: what the words mean, and reading directories.

use crate::domain::classify::{
    Class, FeatureWeight, Fingerprint, Follow, GuardData, KeywordGroup, LanguageData, LearnedData, Lexicon, LexiconFault, Located, Reach,
    RuleData, Verdict, When, WordClass,
};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::ops::Range;
use toml::Spanned;

/// The embedded languages, in the order in which they are asked where two share a word.
macro_rules! embedded {
    ($($code:literal)*) => {
        pub const EMBEDDED: &[(&str, &str)] = &[$((concat!($code, ".toml"), include_str!(concat!("../lexicon/", $code, ".toml")))),*];
    };
}

embedded! {
    "en" "es" "pt" "fr" "de" "it" "nl" "pl" "ro" "tr" "ru" "uk" "ar" "he" "fa" "hi" "ur" "bn" "ta" "id" "ms" "vi" "th" "tl" "zh" "ja" "ko" "sw"
}

/// The name of the file of what was learned.
pub const LEARNED: &str = "learned.tsv";

/// The embedded one.
pub const EMBEDDED_LEARNED: &str = include_str!("../lexicon/learned.tsv");

pub type LexiconError = LexiconFault;

/// The lexicon that the program carries.
pub fn builtin() -> Lexicon {
    match load(EMBEDDED, Some((LEARNED, EMBEDDED_LEARNED))) {
        Ok(lexicon) => lexicon,
        // The files are part of the program and a test loads them: there is nothing to go on with.
        Err(fault) => panic!("embedded lexicon: {fault}"),
    }
}

/// Where a language file of this name is asked among others: the built-in order, which begins with the language that is always
/// asked; files of other names come last.
pub fn place_of(name: &str) -> usize {
    EMBEDDED.iter().position(|(known, _)| *known == name).unwrap_or(EMBEDDED.len())
}

/// Compiles language files, and what was learned if anything was, given as names and contents.
pub fn load(files: &[(&str, &str)], learned: Option<(&str, &str)>) -> Result<Lexicon, LexiconError> {
    let mut hash = Fingerprint::new();
    for (name, contents) in files.iter().chain(&learned) {
        hash.add(name.as_bytes());
        hash.add(contents.as_bytes());
    }
    let languages = files.iter().map(|(name, contents)| parse(name, contents)).collect::<Result<_, _>>()?;
    let learned = learned.map(|(name, contents)| parse_learned(name, contents)).transpose()?;
    Lexicon::build(languages, learned.as_ref(), hash.value())
}

fn parse_learned(name: &str, contents: &str) -> Result<LearnedData, LexiconError> {
    let mut data = LearnedData { file: name.to_owned(), ..LearnedData::default() };
    let mut settings = [
        ("constant", &mut data.constant, false),
        ("opt_out", &mut data.opt_out, false),
        ("review", &mut data.review, false),
        ("doubt", &mut data.doubt, false),
    ];
    for (line, written) in (1..).zip(contents.lines()).filter(|(_, written)| !written.is_empty() && !written.starts_with('#')) {
        let fault = |reason: String| LexiconError { file: name.to_owned(), line, reason };
        let number = |written: &str| written.parse().map_err(|_| fault(format!("\"{written}\" is not a whole number of thousandths")));
        let mut fields = written.split('\t');
        match (fields.next(), fields.next(), fields.next(), fields.next()) {
            (Some(setting), Some(value), None, None) => {
                let known = settings.iter_mut().find(|(name, _, told)| *name == setting && !told);
                let (_, place, told) =
                    known.ok_or_else(|| fault(format!("\"{setting}\" is no setting, or is set twice: constant, opt_out, review, doubt")))?;
                (**place, *told) = (number(value)?, true);
            }
            (Some(feature), Some(value), Some(language), None) => {
                let value = FeatureWeight { feature: feature.to_owned(), thousandths: number(value)?, language: language.to_owned() };
                data.weights.push(Located { line, value });
            }
            _ => return Err(fault("not FEATURE<tab>THOUSANDTHS<tab>LANGUAGE".to_owned())),
        }
    }
    match settings.iter().find(|(_, _, told)| !told) {
        Some((missing, _, _)) => Err(LexiconError { file: name.to_owned(), line: 1, reason: format!("{missing} is not set") }),
        None => Ok(data),
    }
}

fn parse(name: &str, contents: &str) -> Result<LanguageData, LexiconError> {
    let file: File = toml::from_str(contents).map_err(|error| {
        let line = error.span().map_or(1, |span| Lines::of(contents).number(&span));
        LexiconError { file: name.to_owned(), line, reason: error.message().to_owned() }
    })?;
    Ok(file.meant(name, contents))
}

/// Where the lines of a file end. A file has as many words as lines, and each word tells its line: counted anew for each,
/// lines took longer than all else that is done with a file.
struct Lines(Vec<usize>);

impl Lines {
    fn of(contents: &str) -> Self {
        Self(contents.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at).collect())
    }

    /// The line in which something begins; the first is 1.
    fn number(&self, span: &Range<usize>) -> u32 {
        self.0.partition_point(|&end| end < span.start) as u32 + 1
    }
}

type Words = Vec<Spanned<String>>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    code: String,
    /// For the reader of the file.
    #[serde(rename = "name")]
    _name: String,
    #[serde(default)]
    clitics: Vec<String>,
    #[serde(default)]
    not_typos: Words,
    #[serde(default)]
    mended: Words,
    #[serde(default)]
    tap_backs: Vec<String>,
    #[serde(default)]
    signatures: Vec<String>,
    #[serde(default)]
    reply_headers: Vec<String>,
    #[serde(default)]
    keyword: Vec<Spanned<RawKeywords>>,
    #[serde(default)]
    words: BTreeMap<String, Spanned<Words>>,
    #[serde(default)]
    rule: Vec<Spanned<RawRule>>,
    #[serde(default)]
    guard: Vec<Spanned<RawGuard>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawKeywords {
    class: RawClass,
    /// Where the words are from, for the reader: R regulator, V vendor, C code, A author.
    #[serde(rename = "source")]
    _source: RawSource,
    #[serde(default)]
    scope: String,
    #[serde(default)]
    when: RawWhen,
    #[serde(default)]
    follow: RawFollow,
    #[serde(default)]
    typos: bool,
    words: Words,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRule {
    name: String,
    class: RawClass,
    patterns: Words,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawGuard {
    name: String,
    #[serde(default)]
    reach: RawReach,
    #[serde(default)]
    verdict: RawVerdict,
    patterns: Words,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum RawClass {
    OptOut,
    OptIn,
    Help,
    Review,
}

#[derive(Deserialize)]
enum RawSource {
    R,
    V,
    C,
    A,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum RawWhen {
    #[default]
    Always,
    Hinted,
    Marked,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum RawFollow {
    #[default]
    Nothing,
    Program,
    AnyName,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum RawReach {
    #[default]
    Overlap,
    Clause,
    Message,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum RawVerdict {
    #[default]
    None,
    Review,
}

impl File {
    fn meant(self, name: &str, contents: &str) -> LanguageData {
        let lines = Lines::of(contents);
        let line = |span: Range<usize>| lines.number(&span);
        let located = |words: Words| -> Vec<Located<String>> {
            words.into_iter().map(|word| Located { line: line(word.span()), value: word.into_inner() }).collect()
        };
        LanguageData {
            file: name.to_owned(),
            code: self.code,
            clitics: self.clitics,
            keywords: (self.keyword.into_iter())
                .map(|group| {
                    let line = line(group.span());
                    let RawKeywords { class, _source, scope, when, follow, typos, words } = group.into_inner();
                    KeywordGroup { line, class: class.meant(), scope, when: when.meant(), follow: follow.meant(), typos, words: located(words) }
                })
                .collect(),
            classes: (self.words.into_iter())
                .map(|(name, words)| WordClass { line: line(words.span()), name, words: located(words.into_inner()) })
                .collect(),
            rules: (self.rule.into_iter())
                .map(|rule| {
                    let line = line(rule.span());
                    let RawRule { name, class, patterns } = rule.into_inner();
                    RuleData { line, name, class: class.meant(), patterns: located(patterns) }
                })
                .collect(),
            guards: (self.guard.into_iter())
                .map(|guard| {
                    let line = line(guard.span());
                    let RawGuard { name, reach, verdict, patterns } = guard.into_inner();
                    GuardData { line, name, reach: reach.meant(), verdict: verdict.meant(), patterns: located(patterns) }
                })
                .collect(),
            not_typos: located(self.not_typos),
            mended: located(self.mended),
            tap_backs: self.tap_backs,
            signatures: self.signatures,
            reply_headers: self.reply_headers,
        }
    }
}

impl RawClass {
    fn meant(self) -> Class {
        match self {
            Self::OptOut => Class::OptOut,
            Self::OptIn => Class::OptIn,
            Self::Help => Class::Help,
            Self::Review => Class::Review,
        }
    }
}

impl RawWhen {
    fn meant(self) -> When {
        match self {
            Self::Always => When::Always,
            Self::Hinted => When::Hinted,
            Self::Marked => When::Marked,
        }
    }
}

impl RawFollow {
    fn meant(self) -> Follow {
        match self {
            Self::Nothing => Follow::Nothing,
            Self::Program => Follow::Program,
            Self::AnyName => Follow::AnyName,
        }
    }
}

impl RawReach {
    fn meant(self) -> Reach {
        match self {
            Self::Overlap => Reach::Overlap,
            Self::Clause => Reach::Clause,
            Self::Message => Reach::Message,
        }
    }
}

impl RawVerdict {
    fn meant(self) -> Verdict {
        match self {
            Self::None => Verdict::None,
            Self::Review => Verdict::Review,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_embedded_files_load_and_their_version_is_stable() {
        assert_eq!(builtin().version(), builtin().version());
    }

    #[test]
    fn a_bad_file_is_refused_with_its_line() {
        let refusal = |contents: &str| load(&[("xx.toml", contents)], None).map_err(|error| error.to_string()).err();
        assert!(refusal("code = \"xx\"\nname = \"X\"\nwrong = 1\n").is_some_and(|text| text.starts_with("xx.toml:3: unknown field")));
        let no_class = "code = \"xx\"\nname = \"X\"\n[[rule]]\nname = \"r\"\nclass = \"opt_out\"\npatterns = [\n\"stop <send>\",\n]\n";
        assert_eq!(refusal(no_class), Some("xx.toml:7: no class \"send\"".to_owned()));
        let opts_in = "code = \"xx\"\nname = \"X\"\n[[rule]]\nname = \"r\"\nclass = \"opt_in\"\npatterns = [\"yes\"]\n";
        assert!(refusal(opts_in).is_some_and(|text| text.contains("opt-in takes a keyword")));
    }

    #[test]
    fn a_bad_line_of_what_was_learned_is_refused() {
        let head = "# a model\nconstant\t-300\nopt_out\t500\nreview\t100\ndoubt\t-400\n";
        let refusal = |lines: &str| load(EMBEDDED, Some((LEARNED, lines))).map_err(|error| error.to_string()).err();
        assert_eq!(refusal(&format!("{head}no more of\t700\ten\n*<mes\t12\ten\n")), None);
        for (lines, why) in [
            ("\nopt_out\t1\nreview\t1\ndoubt\t0\n".to_owned(), "learned.tsv:1: constant is not set"),
            (format!("{head}stop\tmuch\ten"), "learned.tsv:6: \"much\" is not a whole number of thousandths"),
            (format!("{head}stop\t1\ten\nstop\t2\ten"), "learned.tsv:7: this feature has a weight already"),
            (format!("{head}one two three four\t1\ten"), "learned.tsv:6: not a feature: one to three words, or * and a piece of one"),
            (format!("{head}stop"), "learned.tsv:6: not FEATURE<tab>THOUSANDTHS<tab>LANGUAGE"),
            (format!("{head}review\t7"), "learned.tsv:6: \"review\" is no setting, or is set twice: constant, opt_out, review, doubt"),
            (
                head.replace("-400", "-200"),
                "learned.tsv:1: doubt lies above constant or review: a rule would be doubted of whose words nothing is known",
            ),
            (head.replace("-300", "-99999"), "learned.tsv:1: a constant beyond 32,767"),
            (head.replace("100", "501"), "learned.tsv:1: the threshold of review lies above that of opt_out"),
        ] {
            assert_eq!(refusal(&lines).as_deref(), Some(why));
        }
    }
}
