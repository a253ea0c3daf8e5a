//! A scenario as people write it: who says what when, and what should follow.
//!
//! ```text
//! # A person leaves and says why.
//! config
//!     [feedback]
//!     enabled = true
//!
//! Ana is +5511912345678
//!
//! 2026-03-02 09:00 Ana says "SAIR"
//!     reply opt-out-confirmation in pt
//!     reply feedback-question
//! 09:01 marketing to Ana
//!     suppressed opted-out
//! ```
//!
//! A line that begins at the margin is something that happens; indented lines below it are all that should follow from it. A day
//! counts until another is named.

use crate::domain::time::Timestamp;
use crate::wire::when;
use std::collections::BTreeMap;

/// What happens, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Script {
    /// Lines of the configuration.
    pub(super) config: String,
    pub(super) steps: Vec<Step>,
}

/// One thing that happens, and what should follow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Step {
    /// The line as written.
    pub(super) shown: String,
    pub(super) line: usize,
    pub(super) at: Timestamp,
    pub(super) happens: Happens,
    pub(super) expected: Vec<String>,
}

/// What happens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Happens {
    /// A person writes, or taps a button that sends back a payload.
    Message { from: String, text: String, is_tapped: bool, to: Option<String>, channel: Option<String> },
    /// The business sends.
    Send { to: String, category: String, program: Option<String>, from: Option<String>, channel: Option<String> },
}

/// The day on which a scenario begins that names none.
const FIRST_DAY: &str = "2026-01-05";

impl Script {
    /// Reads a scenario, or tells the first line that is none and why.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let mut script = Self::default();
        let mut people = BTreeMap::new();
        let mut day = FIRST_DAY.to_owned();
        let mut in_config = false;
        for (number, line) in (1..).zip(text.lines()) {
            let told = |why: &str| format!("line {number}: {why}");
            let trimmed = line.trim();
            let is_indented = line.starts_with([' ', '\t']);
            if trimmed.is_empty() || (trimmed.starts_with('#') && !(in_config && is_indented)) {
                continue;
            }
            if is_indented && in_config {
                script.config.push_str(trimmed);
                script.config.push('\n');
                continue;
            }
            if is_indented {
                let step = script.steps.last_mut().ok_or_else(|| told("nothing has happened yet from which this could follow"))?;
                step.expected.push(words(trimmed).join(" "));
                continue;
            }
            in_config = trimmed == "config";
            if in_config {
                continue;
            }
            if let Some((name, identity)) = trimmed.split_once(" is ").filter(|(name, _)| !name.contains(char::is_whitespace)) {
                people.insert(name.to_owned(), identity.trim().to_owned());
                continue;
            }
            let (at, rest) =
                time(trimmed, &mut day).ok_or_else(|| told("expected a time, such as 09:00 or 2026-03-02 09:00, or `Ana is +55…`"))?;
            let happens = happens(&words(rest), &people).ok_or_else(|| {
                told("expected `Ana says \"…\"`, `Ana taps \"…\"` or `marketing to Ana`, and then `to NUMBER`, `from NUMBER`, `on CHANNEL` or `of PROGRAM`")
            })?;
            script.steps.push(Step { shown: trimmed.to_owned(), line: number, at, happens, expected: Vec::new() });
        }
        if script.steps.is_empty() {
            return Err("nothing happens in it".to_owned());
        }
        Ok(script)
    }
}

/// The words of a line; what stands in quotes is one.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    for (place, part) in line.split('"').enumerate() {
        if place % 2 == 1 {
            words.push(part.to_owned());
        } else {
            words.extend(part.split_whitespace().map(str::to_owned));
        }
    }
    words
}

fn time<'l>(line: &'l str, day: &mut String) -> Option<(Timestamp, &'l str)> {
    let (first, rest) = line.split_once(' ')?;
    let (clock, rest) = match first.contains(':') {
        true => (first, rest),
        false => {
            first.clone_into(day);
            rest.trim_start().split_once(' ')?
        }
    };
    let seconds = if clock.matches(':').count() == 1 { ":00" } else { "" };
    Some((when::from_text(&format!("{day}T{clock}{seconds}Z"))?, rest))
}

fn happens(words: &[String], people: &BTreeMap<String, String>) -> Option<Happens> {
    let person = |name: &String| people.get(name).cloned().unwrap_or_else(|| name.clone());
    let [first, verb, object, rest @ ..] = words else { return None };
    let after = |word: &str| rest.chunks_exact(2).find(|pair| pair[0] == word).map(|pair| person(&pair[1]));
    let only = |known: &[&str]| rest.len().is_multiple_of(2) && rest.chunks_exact(2).all(|pair| known.contains(&pair[0].as_str()));
    match verb.as_str() {
        "says" | "taps" => only(&["to", "on"]).then(|| Happens::Message {
            from: person(first),
            text: object.clone(),
            is_tapped: verb == "taps",
            to: after("to"),
            channel: after("on"),
        }),
        "to" => only(&["of", "from", "on"]).then(|| Happens::Send {
            to: person(object),
            category: first.clone(),
            program: after("of"),
            from: after("from"),
            channel: after("on"),
        }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_is_what_happens_and_what_should_follow() {
        let text = "# about\nconfig\n    [feedback]\n    enabled = true\n\nAna is +5511912345678\n\n2026-03-02 09:00 Ana says \"SAIR, por favor\" on sms\n    \
                    reply opt-out-confirmation  in pt\n09:01:30 marketing to Ana of news\n    suppressed opted-out\n";
        let script = Script::parse(text).expect("a script");
        assert_eq!(script.config, "[feedback]\nenabled = true\n");
        let [said, sent] = script.steps.as_slice() else { panic!("{script:?}") };
        assert_eq!((said.line, when::to_text(said.at).as_str()), (8, "2026-03-02T09:00:00Z"));
        let Happens::Message { from, text, is_tapped: false, to: None, channel } = &said.happens else { panic!("{said:?}") };
        assert_eq!((from.as_str(), text.as_str(), channel.as_deref()), ("+5511912345678", "SAIR, por favor", Some("sms")));
        assert_eq!(said.expected, ["reply opt-out-confirmation in pt"]);
        let Happens::Send { category, program, .. } = &sent.happens else { panic!("{sent:?}") };
        assert_eq!((category.as_str(), program.as_deref()), ("marketing", Some("news")));
        assert_eq!(when::to_text(sent.at), "2026-03-02T09:01:30Z");
    }

    #[test]
    fn a_line_that_is_none_is_told_with_its_number() {
        for (text, part) in [
            ("", "nothing happens"),
            ("    reply", "line 1"),
            ("\nAna says \"x\"", "line 2"),
            ("09:00 Ana shouts \"x\"", "line 1: expected `Ana says"),
            ("09:00 Ana says \"x\" with force", "line 1"),
            ("tomorrow 09:00 Ana says \"x\"", "line 1: expected a time"),
        ] {
            let why = Script::parse(text).expect_err(text);
            assert!(why.contains(part), "{text:?}: {why}");
        }
    }
}
