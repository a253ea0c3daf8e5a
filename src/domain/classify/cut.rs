//! What of a message its sender did not write now: quoted lines, forwarded mail, tap-backs, signatures.
//!
//! Invariants: the stretches that stay are in order, do not overlap, and end on character boundaries; a message of nothing
//! but quotes leaves none, except that a message which is one pair of quotation marks is what it quotes. Linear.
//!
//! Absent: the words ("sent from my", "wrote:") are the language files'.

use aho_corasick::{AhoCorasick, BuildError, MatchKind};
use std::ops::Range;

/// Texts longer than twice this are read at both ends, this much each: the request may be the last line of a long letter.
pub const BOTH_ENDS_BYTES: usize = 2048;

/// How mail programs and phones mark what they add, in every language of the lexicon; lower case.
#[derive(Clone, Debug)]
pub(super) struct Marks {
    tap_backs: Vec<String>,
    signatures: Vec<String>,
    /// Those of the signatures that are long enough to be told from other words in the middle of a line.
    inside: AhoCorasick,
    reply_headers: Vec<String>,
}

impl Marks {
    /// An error where there are more signatures than can be looked for.
    pub(super) fn new(tap_backs: Vec<String>, signatures: Vec<String>, reply_headers: Vec<String>) -> Result<Self, BuildError> {
        let long = signatures.iter().filter(|signature| signature.len() > SHORT_SIGNATURE);
        let inside = AhoCorasick::builder().match_kind(MatchKind::LeftmostFirst).ascii_case_insensitive(true).build(long)?;
        Ok(Self { tap_backs, signatures, inside, reply_headers })
    }
}

/// The longest signature, in bytes, that counts at the beginning of a line alone.
const SHORT_SIGNATURE: usize = 8;

/// A quotation of at least this many words, or this many characters without spaces, is somebody else's text.
const QUOTED_WORDS: usize = 4;
const QUOTED_CHARACTERS: usize = 16;

/// Fills `stretches` with what remains to be read.
pub(super) fn cut(text: &str, marks: &Marks, stretches: &mut Vec<Range<usize>>) {
    stretches.clear();
    for window in windows(text) {
        cut_window(text, window, marks, stretches);
    }
}

fn windows(text: &str) -> impl Iterator<Item = Range<usize>> {
    let (head, tail) = if text.len() <= 2 * BOTH_ENDS_BYTES {
        (0..text.len(), None)
    } else {
        let head = text.floor_char_boundary(BOTH_ENDS_BYTES);
        let tail = text.ceil_char_boundary(text.len() - BOTH_ENDS_BYTES);
        (0..head, Some(tail..text.len()))
    };
    std::iter::once(head).chain(tail)
}

fn cut_window(text: &str, window: Range<usize>, marks: &Marks, stretches: &mut Vec<Range<usize>>) {
    let bytes = &text.as_bytes()[window.clone()];
    let plain = !bytes.iter().any(|byte| matches!(byte, b'\n' | b'"' | b'>' | b'-' | 0xc2 | 0xe2 | 0xe3));
    if plain && !mentions_signature(text.get(window.clone()).unwrap_or("")) {
        stretches.push(window);
        return;
    }
    let mut at = window.start;
    let first = stretches.len();
    while at < window.end {
        let rest = text.get(at..window.end).unwrap_or("");
        let length = rest.find('\n').map_or(rest.len(), |newline| newline + 1);
        let line = rest.get(..length).unwrap_or("").trim();
        let next = rest.get(length..).map(str::trim_start).unwrap_or("");
        match judge(line, marks) {
            Line::Written => push_line(text, at..at + length, marks, stretches),
            Line::Quoted => {}
            // The answer stands under what it quotes.
            Line::HeadsAReply if is_quoted(next) => {}
            Line::HeadsAReply | Line::EndsTheMessage => break,
        }
        at += length;
    }
    drop_closing_name(text, first, stretches);
}

/// Signatures may stand in the only line.
fn mentions_signature(text: &str) -> bool {
    text.as_bytes().windows(5).any(|five| five.eq_ignore_ascii_case(b"from "))
}

enum Line {
    Written,
    Quoted,
    HeadsAReply,
    EndsTheMessage,
}

fn is_quoted(line: &str) -> bool {
    line.starts_with('>') || line.starts_with("&gt;") || line.starts_with('＞')
}

fn judge(line: &str, marks: &Marks) -> Line {
    if is_quoted(line) {
        return Line::Quoted;
    }
    if line == "--" || line.starts_with("---") || line.starts_with("___") {
        return Line::EndsTheMessage;
    }
    let lower = line.to_lowercase();
    if marks.signatures.iter().any(|signature| lower.starts_with(signature.as_str())) {
        return Line::EndsTheMessage;
    }
    let heads_a_reply = line.ends_with([':', '：']) && marks.reply_headers.iter().any(|header| lower.contains(header.as_str()));
    if heads_a_reply {
        return Line::HeadsAReply;
    }
    if marks.tap_backs.iter().any(|tap_back| is_tap_back(&lower, tap_back)) { Line::Quoted } else { Line::Written }
}

/// `Liked "…"`: the words, at once an opening mark, and a closing mark at the end.
fn is_tap_back(lower: &str, opening: &str) -> bool {
    let Some(rest) = lower.strip_prefix(opening) else {
        return false;
    };
    let rest = rest.trim_start_matches([' ', ':', '\u{a0}', '\u{202f}']);
    rest.starts_with(is_quote) && rest.trim_end().len() > 1
}

fn is_quote(c: char) -> bool {
    matches!(c, '"' | '“' | '”' | '„' | '«' | '»' | '‟' | '「' | '『' | '‹')
}

fn closing(opening: char) -> Option<&'static [char]> {
    Some(match opening {
        '"' => &['"'],
        '“' => &['”', '“', '"'],
        '„' => &['“', '”', '"'],
        '«' => &['»'],
        '»' => &['«'],
        '”' => &['”'],
        '「' => &['」'],
        '『' => &['』'],
        _ => return None,
    })
}

/// Keeps a line without its signature and without its long quotations.
fn push_line(text: &str, line: Range<usize>, marks: &Marks, stretches: &mut Vec<Range<usize>>) {
    // Gateways that join lines leave a signature in the middle of one.
    let signature = text.get(line.clone()).and_then(|line| marks.inside.find(line));
    let end = signature.map_or(line.end, |signature| line.start + signature.start());
    let written = text.get(line.start..end).unwrap_or("");
    let whole = written.trim();
    let mut kept = line.start;
    let mut characters = written.char_indices();
    while let Some((at, c)) = characters.next() {
        let Some(closers) = closing(c) else { continue };
        let inside = characters.as_str();
        let Some(length) = inside.find(closers) else {
            continue;
        };
        let quoted = inside.get(..length).unwrap_or("");
        let after = inside.get(length..).and_then(|rest| rest.chars().next()).map_or(0, char::len_utf8);
        let is_everything = c.len_utf8() + length + after >= whole.len();
        if !is_everything && is_long(quoted) {
            push_stretch(text, kept..line.start + at, stretches);
            kept = line.start + at + c.len_utf8() + length + after;
        }
        characters = written.get(at + c.len_utf8() + length + after..).map_or("".char_indices(), |rest| rest.char_indices());
        if !characters.as_str().is_empty() {
            // The iterator counts from its own beginning: read on as a line of its own.
            let next = line.start + at + c.len_utf8() + length + after;
            push_stretch(text, kept..next.max(kept), stretches);
            push_rest(text, next..end, stretches);
            return;
        }
    }
    push_stretch(text, kept..end, stretches);
}

/// What follows the first quotation of a line: later quotations in it are cut too, without recursion.
fn push_rest(text: &str, rest: Range<usize>, stretches: &mut Vec<Range<usize>>) {
    let mut kept = rest.start;
    let mut at = rest.start;
    while at < rest.end {
        let Some(remaining) = text.get(at..rest.end) else {
            break;
        };
        let Some((offset, opening)) = remaining.char_indices().find(|(_, c)| closing(*c).is_some()) else {
            break;
        };
        let start = at + offset;
        let inside_start = start + opening.len_utf8();
        let Some(inside) = text.get(inside_start..rest.end) else {
            break;
        };
        let Some(length) = closing(opening).and_then(|closers| inside.find(closers)) else {
            break;
        };
        let after = inside.get(length..).and_then(|tail| tail.chars().next()).map_or(0, char::len_utf8);
        at = inside_start + length + after;
        if inside.get(..length).is_some_and(is_long) {
            push_stretch(text, kept..start, stretches);
            kept = at;
        }
    }
    push_stretch(text, kept..rest.end, stretches);
}

fn is_long(quoted: &str) -> bool {
    quoted.split_whitespace().count() >= QUOTED_WORDS || (!quoted.is_ascii() && quoted.chars().count() >= QUOTED_CHARACTERS)
}

fn push_stretch(text: &str, stretch: Range<usize>, stretches: &mut Vec<Range<usize>>) {
    if text.get(stretch.clone()).is_some_and(|kept| !kept.trim().is_empty()) {
        stretches.push(stretch);
    }
}

/// "STOP\n- Maria Lopez" and "STOP - Maria": a dash and a name at the very end.
fn drop_closing_name(text: &str, first: usize, stretches: &mut Vec<Range<usize>>) {
    let Some(last) = stretches.get(first..).and_then(<[_]>::last).cloned() else {
        return;
    };
    let Some(line) = text.get(last.clone()) else {
        return;
    };
    let Some((at, dash)) = line.char_indices().rfind(|(_, c)| matches!(c, '-' | '–' | '—' | '~')) else {
        return;
    };
    let before = line.get(..at).unwrap_or("");
    let name = line.get(at + dash.len_utf8()..).unwrap_or("").trim();
    let stands_apart = before.is_empty() || before.ends_with(char::is_whitespace);
    let words = name.split_whitespace().count();
    let is_name = (1..=3).contains(&words)
        && name.split_whitespace().all(|word| word.starts_with(char::is_uppercase) && word.chars().all(|c| c.is_alphabetic() || c == '.'))
        && name.contains(char::is_lowercase);
    if stands_apart && is_name && stretches.len() > first {
        stretches.pop();
        push_stretch(text, last.start..last.start + at, stretches);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(text: &str) -> String {
        let signatures = vec!["sent from my".into(), "meinem iphone".into(), "von meinem iphone gesendet".into()];
        let marks = Marks::new(vec!["liked".into(), "a aimé".into()], signatures, vec!["wrote".into()]).expect("few");
        let mut stretches = Vec::new();
        cut(text, &marks, &mut stretches);
        stretches.into_iter().map(|stretch| text.get(stretch).unwrap().trim().to_owned()).collect::<Vec<_>>().join(" / ")
    }

    #[test]
    fn quoted_lines_and_reply_headers_are_not_the_senders_words() {
        assert_eq!(kept("> Reply STOP\nwhat does this mean?"), "what does this mean?");
        assert_eq!(kept("thanks\nOn Monday Acme wrote:\nReply STOP to end"), "thanks");
        assert_eq!(kept("On Monday Acme wrote:\n> Reply STOP to end\n\nwhat is this?"), "what is this?");
    }

    #[test]
    fn tap_backs_leave_nothing() {
        assert_eq!(kept("Liked “Sale ends today. Reply STOP to opt out”"), "");
        assert_eq!(kept("A aimé « Soldes ! STOP au 36111 »"), "");
    }

    #[test]
    fn long_quotations_go_and_short_ones_stay() {
        assert_eq!(kept("what is \"reply stop to opt out\" for? and \"stop\"?"), "what is / for? and \"stop\"?");
        assert_eq!(kept("\"please stop sending me messages\""), "\"please stop sending me messages\"");
    }

    #[test]
    fn signatures_and_closing_names_go() {
        assert_eq!(kept("Stop\nSent from my iPhone"), "Stop");
        assert_eq!(kept("Stop Sent from my Galaxy"), "Stop");
        assert_eq!(kept("Stopp - Von meinem iPhone gesendet von mir"), "Stopp -");
        assert_eq!(kept("STOP\n- Maria Lopez"), "STOP");
        assert_eq!(kept("NO MORE - STOP"), "NO MORE - STOP");
    }

    #[test]
    fn both_ends_of_a_long_letter_are_read() {
        let letter = format!("hello {} stop texting me", "word ".repeat(4000));
        assert!(kept(&letter).starts_with("hello"));
        assert!(kept(&letter).ends_with("stop texting me"));
    }
}
