//! Lines of country rules as they are written, in the built-in file and in a configuration → [`RuleBook`].
//!
//! Unknown fields are refused, and what is no country, no day or no scope is told with the line it stands in.

use crate::domain::reply::{ReplyKind, ReplyTexts};
use crate::domain::rules::{Rule, RuleBook, Says, StopScope};
use crate::domain::time::Timestamp;
use crate::wire::when;
use serde::{Deserialize, Serialize};

/// The lines that the program carries.
pub const BUILT_IN: &str = include_str!("../rules.toml");

/// The words of one reply in one language, as written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawReply {
    /// `opt-out-confirmation`, `opt-in-confirmation`, `help`, `feedback-question`, `clarification`, `narrowed-confirmation`.
    pub kind: String,
    /// A language tag: `pt`, `pt-BR`.
    pub language: String,
    /// The words; `{business}` stands for the name of the business.
    pub text: String,
}

/// Longer than any message of any channel.
const MAX_REPLY_BYTES: usize = 4096;

impl RawReply {
    /// Puts it among other words, or tells what is wrong with it.
    pub fn set(&self, texts: &mut ReplyTexts) -> Result<(), String> {
        let Self { kind, language, text } = self;
        let Some(known) = ReplyKind::ALL.into_iter().find(|known| known.as_str() == kind) else {
            return Err(format!("kind {kind:?}: expected one of {}", ReplyKind::ALL.map(ReplyKind::as_str).join(", ")));
        };
        if language.trim().is_empty() {
            return Err("without a language".to_owned());
        }
        if text.trim().is_empty() {
            return Err(format!("{kind} in {language}: the text is empty"));
        }
        if text.len() > MAX_REPLY_BYTES {
            return Err(format!("{kind} in {language}: longer than {MAX_REPLY_BYTES} bytes"));
        }
        texts.set(known, language.trim(), text.trim());
        Ok(())
    }
}

/// One line as written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RawRule {
    /// Two letters; absent: everywhere.
    pub country: Option<String>,
    /// The day from which it holds, `2027-01-31`; absent: always.
    pub from: Option<String>,
    /// Where it comes from. Shown to nobody but its readers.
    pub source: String,
    pub confirmation_required: Option<bool>,
    pub one_text: Option<bool>,
    pub feedback: Option<bool>,
    pub clarification: Option<bool>,
    /// `business`, `program` or `cross-channel`.
    pub stop_scope: Option<String>,
    /// Days after an opt-out before which nobody may be asked to come back, by sends of the category `re-permission`.
    pub repermission_days: Option<u32>,
    /// Required words of replies.
    pub reply: Vec<RawReply>,
    pub languages: Option<Vec<String>>,
    pub words: Option<Vec<String>>,
}

impl RawRule {
    /// What is meant; `owner` is the first word of the line's name in the evidence, where it is nobody's law.
    pub fn meant(&self, owner: Option<&str>) -> Result<Rule, String> {
        let country = self.country.as_deref().map(country).transpose()?;
        let day = self.from.as_deref().unwrap_or_default();
        let from = match self.from.as_deref() {
            None => Timestamp::EPOCH,
            Some(day) => when::from_text(&format!("{day}T00:00:00Z")).ok_or_else(|| format!("from {day:?} is no day, such as 2027-01-31"))?,
        };
        let stop_scope = match self.stop_scope.as_deref() {
            None => None,
            Some(word) => {
                let known = StopScope::ALL.into_iter().find(|scope| scope.as_str() == word);
                Some(known.ok_or_else(|| format!("stop_scope {word:?}: expected business, program or cross-channel"))?)
            }
        };
        let place = country.as_deref().unwrap_or("general");
        let at = if day.is_empty() { String::new() } else { format!("@{day}") };
        let name = owner.map_or_else(|| format!("{place}{at}"), |owner| format!("{owner}:{place}{at}"));
        let mut wording = ReplyTexts::default();
        self.reply.iter().try_for_each(|reply| reply.set(&mut wording).map_err(|why| format!("reply {why}")))?;
        let lower = |words: &Vec<String>| words.iter().map(|word| word.trim().to_lowercase()).collect();
        let says = Says {
            confirmation_required: self.confirmation_required,
            one_text: self.one_text,
            feedback: self.feedback,
            clarification: self.clarification,
            stop_scope,
            repermission_days: self.repermission_days,
            wording,
            languages: self.languages.as_ref().map(lower),
            words: self.words.as_ref().map(lower),
        };
        Ok(Rule { country, from, name, says })
    }
}

/// A country's two letters, in any case.
pub fn country(code: &str) -> Result<String, String> {
    let is_code = code.len() == 2 && code.bytes().all(|byte| byte.is_ascii_alphabetic());
    if is_code { Ok(code.to_uppercase()) } else { Err(format!("{code:?} is no country: two letters, such as BR")) }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    country: Vec<Country>,
    rule: Vec<RawRule>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Country {
    code: String,
    calling_codes: Vec<String>,
}

/// The book that the program carries.
pub fn built_in() -> RuleBook {
    match read(BUILT_IN) {
        Ok(book) => book,
        // The file is part of the program and a test reads it: there is nothing to go on with.
        Err(reason) => panic!("embedded rules: {reason}"),
    }
}

fn read(text: &str) -> Result<RuleBook, String> {
    let file: File = toml::from_str(text).map_err(|error| error.to_string())?;
    if let Some(unfounded) = file.rule.iter().find(|rule| rule.source.trim().is_empty()) {
        return Err(format!("a rule of {:?} without a source", unfounded.country));
    }
    let rules = file.rule.iter().map(|rule| rule.meant(None)).collect::<Result<_, _>>()?;
    let codes =
        file.country.into_iter().flat_map(|Country { code, calling_codes }| calling_codes.into_iter().map(move |digits| (digits, code.clone())));
    Ok(RuleBook::new(rules, codes.collect()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::identity::Identity;

    fn held(person: &str, day: &str) -> crate::domain::rules::InForce {
        let at = when::from_text(&format!("{day}T12:00:00Z")).expect("a time");
        built_in().in_force("acme", [Identity::recognise(person).expect("an identity")].iter(), at)
    }

    #[test]
    fn the_built_in_lines_hold_by_country_and_day() {
        let us = held("+12025550100", "2026-11-01");
        assert_eq!((us.version.as_str(), us.one_text, us.feedback), ("general@2020-01-01,US@2024-04-04", true, false));
        assert_eq!(us.stop_scope, StopScope::Business);
        assert_eq!(held("+12025550100", "2027-02-01").stop_scope, StopScope::CrossChannel);
        let canada = held("+14165550100", "2026-11-01");
        assert_eq!((canada.one_text, canada.languages), (false, vec!["en".to_owned(), "fr".to_owned()]));
        assert!(held("+84912345678", "2026-11-01").confirmation_required);
        assert_eq!(held("+8613800138000", "2026-11-01").words, ["t", "td", "n", "r"]);
        assert_eq!(held("ext:1", "2026-11-01").version, "general@2020-01-01");
    }

    #[test]
    fn a_line_that_means_nothing_is_refused_with_its_reason() {
        let refused = |rule: RawRule| rule.meant(None).expect_err("refused");
        assert!(refused(RawRule { country: Some("Brazil".into()), ..RawRule::default() }).contains("two letters"));
        assert!(refused(RawRule { from: Some("tomorrow".into()), ..RawRule::default() }).contains("no day"));
        assert!(refused(RawRule { stop_scope: Some("everyone".into()), ..RawRule::default() }).contains("cross-channel"));
        assert!(read("[[rule]]\nfeedback = true").expect_err("refused").contains("source"));
        assert!(read("[[rule]]\nsource = 's'\nfeedbak = true").is_err());
    }
}
