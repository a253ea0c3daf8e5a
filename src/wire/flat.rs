//! JSON as most systems write it, read without a parser: one flat object of strings without escapes, whole numbers,
//! `true`, `false` and `null`.
//!
//! A send is read for a handful of its fields, and reading it is the largest single cost of deciding it. What is not of
//! this plain form is not refused but declined, and goes to the parser; what is, yields the very values that the parser
//! would (measured: a quarter of the time).
//!
//! # Invariants
//!
//! - Whatever is accepted here is JSON, and its fields are what the parser makes of them: a property of `fields`.
//! - Nothing panics, whatever the bytes; each byte is looked at a constant number of times.

/// A value of a flat object.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Plain<'a> {
    Text(&'a str),
    Integer(i64),
    Bool(bool),
    Null,
}

/// More digits may not fit into 64 bits.
const MOST_DIGITS: usize = 18;

/// A key to be found, in a form that compares without a call.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Key {
    len: usize,
    /// The first eight bytes; zeros where it is shorter.
    head: u64,
    tail: Box<[u8]>,
}

impl Key {
    pub(super) fn new(key: &[u8]) -> Self {
        let (head, tail) = key.split_at(key.len().min(8));
        Self { len: key.len(), head: head.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte)), tail: tail.into() }
    }

    /// Whether this is the key that stands in the body.
    #[inline]
    pub(super) fn is(&self, found: &Found<'_>) -> bool {
        self.head == found.head && self.len == found.len && (self.len <= 8 || *self.tail == *found.tail)
    }
}

/// A key of a body, taken apart like [`Key`].
pub(super) struct Found<'a> {
    len: usize,
    head: u64,
    tail: &'a [u8],
}

/// Hands every field of a flat object to `each`, in order. `None`: not of the plain form; what was handed over by then
/// counts for nothing.
#[inline]
pub(super) fn read<'a>(json: &'a [u8], mut each: impl FnMut(Found<'a>, Plain<'a>)) -> Option<()> {
    // Control characters must not stand in strings; between values they are rare. Without any, strings need no check.
    // A minimum, and not a search, since that is computed for many bytes at a time.
    let least = json.iter().copied().fold(u8::MAX, u8::min);
    let text = std::str::from_utf8(json).ok().filter(|_| least >= b' ')?;
    let mut reader = Reader { text, bytes: json, at: 0 };
    reader.skip_spaces();
    reader.take(b'{')?;
    reader.skip_spaces();
    if reader.take(b'}').is_none() {
        loop {
            let key = reader.key()?;
            reader.skip_spaces();
            reader.take(b':')?;
            reader.skip_spaces();
            let value = reader.value()?;
            each(key, value);
            reader.skip_spaces();
            if reader.take(b',').is_none() {
                break;
            }
            reader.skip_spaces();
        }
        reader.take(b'}')?;
    }
    reader.skip_spaces();
    (reader.at == json.len()).then_some(())
}

struct Reader<'a> {
    text: &'a str,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    #[inline]
    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    #[inline]
    fn take(&mut self, wanted: u8) -> Option<()> {
        if self.peek()? == wanted {
            self.at += 1;
            Some(())
        } else {
            None
        }
    }

    #[inline]
    fn skip_spaces(&mut self) {
        while self.peek() == Some(b' ') {
            self.at += 1;
        }
    }

    #[inline]
    fn key(&mut self) -> Option<Found<'a>> {
        self.take(b'"')?;
        let rest = self.bytes.get(self.at..)?;
        let len = string_len(rest)?;
        self.at += len + 1;
        let (head, tail) = rest[..len].split_at(len.min(8));
        let head = match rest.first_chunk::<8>() {
            Some(eight) if len < 8 => u64::from_le_bytes(*eight) & ((1 << (8 * len)) - 1),
            Some(eight) => u64::from_le_bytes(*eight),
            None => head.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte)),
        };
        Some(Found { len, head, tail })
    }

    #[inline]
    fn string(&mut self) -> Option<&'a str> {
        self.take(b'"')?;
        let len = string_len(self.bytes.get(self.at..)?)?;
        let string = self.text.get(self.at..self.at + len)?;
        self.at += len + 1;
        Some(string)
    }

    #[inline]
    fn value(&mut self) -> Option<Plain<'a>> {
        match self.peek()? {
            b'"' => self.string().map(Plain::Text),
            b't' => self.word(b"true", Plain::Bool(true)),
            b'f' => self.word(b"false", Plain::Bool(false)),
            b'n' => self.word(b"null", Plain::Null),
            b'-' | b'0'..=b'9' => self.integer(),
            _ => None,
        }
    }

    fn word(&mut self, word: &[u8], value: Plain<'a>) -> Option<Plain<'a>> {
        let rest = self.bytes.get(self.at..)?;
        self.at += word.len();
        rest.starts_with(word).then_some(value)
    }

    fn integer(&mut self) -> Option<Plain<'a>> {
        let negative = self.take(b'-').is_some();
        let begin = self.at;
        let mut number: i64 = 0;
        while let Some(digit @ b'0'..=b'9') = self.peek() {
            self.at += 1;
            if self.at - begin > MOST_DIGITS {
                return None;
            }
            number = number * 10 + i64::from(digit - b'0');
        }
        let digits = self.bytes.get(begin..self.at)?;
        // A leading zero is no JSON; a fraction or an exponent, and a negative zero, are the parser's.
        let plain = !digits.is_empty() && (digits.len() == 1 || digits[0] != b'0') && !(negative && number == 0);
        let ends = !matches!(self.peek(), Some(b'.' | b'e' | b'E'));
        (plain && ends).then_some(Plain::Integer(if negative { -number } else { number }))
    }
}

/// Bytes before the closing quote; `None` where there is none, or an escape before it.
///
/// Strings of a send are short: they are searched eight bytes at a time, in line, without a call for each.
#[inline]
fn string_len(rest: &[u8]) -> Option<usize> {
    let mut at = 0;
    while let Some(eight) = rest.get(at..).and_then(<[u8]>::first_chunk::<8>) {
        let word = u64::from_le_bytes(*eight);
        let found = zeros(word ^ QUOTES) | zeros(word ^ BACKSLASHES);
        if found != 0 {
            let len = at + found.trailing_zeros() as usize / 8;
            return (rest[len] == b'"').then_some(len);
        }
        at += 8;
    }
    let len = at + rest.get(at..)?.iter().position(|byte| matches!(byte, b'"' | b'\\'))?;
    (rest[len] == b'"').then_some(len)
}

const ONES: u64 = u64::MAX / 255;
const QUOTES: u64 = ONES * b'"' as u64;
const BACKSLASHES: u64 = ONES * b'\\' as u64;

/// The high bit of every zero byte; above the lowest of them, bits of other bytes may be set too.
#[inline]
fn zeros(word: u64) -> u64 {
    word.wrapping_sub(ONES) & !word & (ONES << 7)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(json: &str) -> Option<Vec<(&str, Plain<'_>)>> {
        let mut fields = Vec::new();
        let keys = ["a", "b", "c", "d", "ã", "", "business", "recipient"];
        read(json.as_bytes(), |found, value| {
            let key = keys.into_iter().find(|key| Key::new(key.as_bytes()).is(&found));
            fields.push((key.unwrap_or("another"), value));
        })?;
        Some(fields)
    }

    #[test]
    fn keys_are_told_apart_by_length_and_by_every_byte() {
        let json = r#"{"business":1,"busines":2,"businesss":3,"recipient":4,"recipienr":5,"a":6}"#;
        let keys: Vec<&str> = fields(json).expect("plain").into_iter().map(|(key, _)| key).collect();
        assert_eq!(keys, ["business", "another", "another", "recipient", "another", "a"]);
    }

    #[test]
    fn a_plain_object_yields_its_fields_in_order() {
        let json = r#" { "a" : "x", "b":-12,"c":true , "d":null, "ã":"né", "":0 } "#;
        let expected = [
            ("a", Plain::Text("x")),
            ("b", Plain::Integer(-12)),
            ("c", Plain::Bool(true)),
            ("d", Plain::Null),
            ("ã", Plain::Text("né")),
            ("", Plain::Integer(0)),
        ];
        assert_eq!(fields(json), Some(expected.to_vec()));
        assert_eq!(fields("{}"), Some(Vec::new()));
    }

    #[test]
    fn what_is_not_plain_is_declined() {
        for json in [
            "", "[]", "7", r#"{"a":1.5}"#, r#"{"a":1e3}"#, r#"{"a":01}"#, r#"{"a":-0}"#, r#"{"a":-}"#, r#"{"a":1234567890123456789}"#,
            r#"{"a":"\n"}"#, r#"{"a\u0062":1}"#, r#"{"a":{}}"#, r#"{"a":[1]}"#, r#"{"a":1,}"#, r#"{"a":1} x"#, r#"{"a":tru}"#, r#"{"a":nullx}"#,
            r#"{"a" 1}"#, r#"{"a":"x}"#, r#"{"a":1"#, "{\"a\":\t1}", "{\"a\":\"\u{1}\"}",
        ] {
            assert_eq!(fields(json), None, "{json}");
        }
    }
}
