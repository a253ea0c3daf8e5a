//! `stopgate classify`: messages on standard input, decisions on standard output, one line each, in order.
//!
//! A line that starts with `{` is JSON `{"id","text","button"?,"lang"?}`, where `button` is a payload or
//! `{"payload","title"}`; any other line is a text, and its number is its id. An answer has every field, null where empty:
//!
//! ```json
//! {"id":"7","decision":"OPT_OUT","rule":"en.keyword.stop","span":[0,4],"lang":"en","scope":null}
//! ```
//!
//! `span` is bytes of the text (or of the button's title), first and one past the last; `scope` is `"all"`, `"marketing"`
//! or `"program:ID"`; with `explain`, `"explanation"` says it in a line. A line that cannot be read is answered by
//! `{"line":N,"error":"…"}`.
//!
//! Invariants: memory does not grow with the input: a line longer than `LONGEST_LINE_BYTES` is an error and is skipped.
//!
//! Absent: Kafka, and the decision itself.

use super::lines::{LONGEST_LINE_BYTES, Read, read_line};
use crate::domain::classify::{Button, Class, Classification, Lexicon, Message, classify, reasons};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::io::{self, BufRead, Write};

/// Whether every line could be read: the exit code is 0 or 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    AllRead,
    SomeUnreadable,
}

pub fn run(lexicon: &Lexicon, explain: bool, mut input: impl BufRead, mut output: impl Write) -> io::Result<Outcome> {
    let mut line = Vec::new();
    let mut outcome = Outcome::AllRead;
    for number in 1_u64.. {
        line.clear();
        let answered = match read_line(&mut input, &mut line)? {
            Read::End => break,
            Read::Line => answer(lexicon, explain, number, &line, &mut output)?,
            Read::TooLong => Err(format!("longer than {LONGEST_LINE_BYTES} bytes")),
        };
        if let Err(error) = answered {
            serde_json::to_writer(&mut output, &Unreadable { line: number, error: &error })?;
            outcome = Outcome::SomeUnreadable;
        }
        output.write_all(b"\n")?;
    }
    output.flush()?;
    Ok(outcome)
}

#[derive(Serialize)]
struct Unreadable<'a> {
    line: u64,
    error: &'a str,
}

#[derive(Deserialize)]
struct Request<'a> {
    #[serde(default)]
    id: serde_json::Value,
    #[serde(borrow, default)]
    text: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    button: Option<Pressed<'a>>,
    #[serde(borrow, default)]
    lang: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Pressed<'a> {
    Payload(#[serde(borrow)] Cow<'a, str>),
    Both {
        #[serde(borrow, default)]
        payload: Option<Cow<'a, str>>,
        #[serde(borrow, default, alias = "text")]
        title: Option<Cow<'a, str>>,
    },
}

#[derive(Serialize)]
struct Answer<'a> {
    id: serde_json::Value,
    decision: &'static str,
    rule: Option<&'a str>,
    span: Option<[usize; 2]>,
    lang: Option<&'a str>,
    scope: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    explanation: Option<String>,
}

/// Writes one answer without its newline; the inner error is the line's.
fn answer(lexicon: &Lexicon, explain: bool, number: u64, line: &[u8], output: &mut impl Write) -> io::Result<Result<(), String>> {
    if line.first() != Some(&b'{') {
        let text = String::from_utf8_lossy(line);
        let found = classify(lexicon, &Message { text: Some(&text), button: None, language: None });
        write_answer(lexicon, explain, serde_json::Value::from(number), &text, &found, output)?;
        return Ok(Ok(()));
    }
    let request: Request<'_> = match serde_json::from_slice(line) {
        Ok(request) => request,
        Err(error) => return Ok(Err(error.to_string())),
    };
    let button = request.button.as_ref().map(|pressed| match pressed {
        // A bare string may be an identifier or the words on the button: it is tried as both.
        Pressed::Payload(payload) => Button { payload: Some(payload), title: Some(payload) },
        Pressed::Both { payload, title } => Button { payload: payload.as_deref(), title: title.as_deref() },
    });
    let text = request.text.as_deref();
    let found = classify(lexicon, &Message { text, button, language: request.lang.as_deref() });
    let source = button.and_then(|pressed| pressed.title).or(text).unwrap_or("");
    write_answer(lexicon, explain, request.id, source, &found, output)?;
    Ok(Ok(()))
}

fn write_answer(
    lexicon: &Lexicon,
    explain: bool,
    id: serde_json::Value,
    text: &str,
    found: &Classification,
    output: &mut impl Write,
) -> io::Result<()> {
    serde_json::to_writer(output, &shown(lexicon, explain, id, text, found)).map_err(io::Error::from)
}

fn shown<'f>(lexicon: &Lexicon, explain: bool, id: serde_json::Value, text: &str, found: &'f Classification) -> Answer<'f> {
    Answer {
        id,
        decision: decision(found.class),
        rule: found.rule.as_str(),
        span: found.span.as_ref().map(|span| [span.start, span.end]),
        lang: found.language.as_ref().map(|language| language.as_str()),
        scope: found.scope.as_ref().map(ToString::to_string),
        explanation: explain.then(|| explanation(lexicon, text, found)),
    }
}

/// The answer to one text, explained, as JSON.
pub fn answer_to(lexicon: &Lexicon, text: &str, language: Option<&str>) -> serde_json::Value {
    let found = classify(lexicon, &Message { text: Some(text), button: None, language });
    // Plain data: nothing in it can fail.
    serde_json::to_value(shown(lexicon, true, serde_json::Value::Null, text, &found)).unwrap_or_default()
}

fn decision(class: Class) -> &'static str {
    match class {
        Class::OptOut => "OPT_OUT",
        Class::OptIn => "OPT_IN",
        Class::Help => "HELP",
        Class::Review => "REVIEW",
        Class::None => "NONE",
    }
}

/// One line for a person: what was found, where, by which rule, how sure.
fn explanation(lexicon: &Lexicon, text: &str, found: &Classification) -> String {
    let words = found.span.clone().and_then(|span| text.get(span));
    let place = words.map_or(String::new(), |words| format!("\"{words}\" "));
    let language = found.language.as_ref().map_or(String::new(), |language| format!(" in {language}"));
    let scope = found.scope.as_ref().map_or(String::new(), |scope| format!(", about {scope}"));
    match found.class {
        Class::None => format!("nothing asks to stop, to start or for help; lexicon {}", lexicon.version()),
        Class::OptOut | Class::OptIn | Class::Help | Class::Review => {
            let class = found.class.as_str();
            let weights = if found.rule.is_learned() { weights(lexicon, text) } else { String::new() };
            format!(
                "{place}is {class} by {}{language}{scope}{weights}; confidence {}; lexicon {}",
                found.rule,
                found.confidence.as_str(),
                lexicon.version()
            )
        }
    }
}

/// Words and pieces of words that are told of a text that was weighed.
const STRONGEST: usize = 5;

fn weights(lexicon: &Lexicon, text: &str) -> String {
    let thousandths = |number: i32| format!("{:+.3}", f64::from(number) / 1000.0);
    let Some(reasons) = reasons(lexicon, text, STRONGEST) else { return String::new() };
    let words: Vec<String> = reasons.strongest.iter().map(|(words, weight)| format!("\"{words}\" {}", thousandths(*weight))).collect();
    format!(", which weighs {}: {}", thousandths(reasons.thousandths), words.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::lexicon::builtin;

    fn answers(input: &str, explain: bool) -> (Vec<String>, Outcome) {
        let mut output = Vec::new();
        let outcome = run(&builtin(), explain, input.as_bytes(), &mut output).unwrap();
        (String::from_utf8(output).unwrap().lines().map(str::to_owned).collect(), outcome)
    }

    #[test]
    fn plain_lines_and_json_lines_are_answered_in_order_with_every_field() {
        let (lines, outcome) = answers("STOP\n{\"id\":\"a\",\"text\":\"hello\"}\n{\"id\":7,\"button\":\"optout:marketing:v1\"}\n", false);
        assert_eq!(lines[0], r#"{"id":1,"decision":"OPT_OUT","rule":"en.keyword.stop","span":[0,4],"lang":"en","scope":null}"#);
        assert_eq!(lines[1], r#"{"id":"a","decision":"NONE","rule":null,"span":null,"lang":null,"scope":null}"#);
        assert_eq!(lines[2], r#"{"id":7,"decision":"OPT_OUT","rule":"button.opt-out","span":null,"lang":null,"scope":"marketing"}"#);
        assert_eq!(outcome, Outcome::AllRead);
    }

    #[test]
    fn a_bad_line_is_answered_in_its_place_and_the_rest_goes_on() {
        let (lines, outcome) = answers("{\"id\":\n\nSTOP\r\n", false);
        assert!(lines[0].starts_with(r#"{"line":1,"error":""#), "{}", lines[0]);
        assert!(lines[1].contains(r#""id":2,"decision":"NONE""#));
        assert!(lines[2].contains(r#""id":3,"decision":"OPT_OUT""#));
        assert_eq!(outcome, Outcome::SomeUnreadable);
    }

    #[test]
    fn an_explanation_is_one_line() {
        let (lines, _) = answers("please STOP", true);
        assert!(lines[0].contains(r#""explanation":"\"STOP\" is opt_out by en.keyword.stop in en; confidence exact; lexicon "#), "{}", lines[0]);
        let (lines, _) = answers("kindly strike our office from every address book you bought for these offers", true);
        assert!(lines[0].contains(r#"is opt_out by learned.opt-out in en, which weighs +0."#), "{}", lines[0]);
        assert!(lines[0].contains(r#"\"these\" +"#), "{}", lines[0]);
    }
}
