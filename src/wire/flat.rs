//! JSON as most systems write it, read without a parser: one flat object of strings without escapes, whole numbers,
//! `true`, `false` and `null`.
//!
//! A send is read for a handful of its fields, and reading it is the largest single cost of deciding it. What is not of
//! this plain form is not refused but declined, and goes to the parser; what is, yields the very values that the parser
//! would (measured: an eighth of the time).
//!
//! # How it is read
//!
//! Where no backslash stands in a body, its quotes open and close strings in turn, and nothing else needs to be looked for.
//! They are found sixteen bytes at a time; a string then ends where the next quote stands, however long it is.
//!
//! # Invariants
//!
//! - Whatever is accepted here is JSON, and its fields are what the parser makes of them: a property of `fields`.
//! - Nothing panics, whatever the bytes; each byte is looked at a constant number of times.

use wide::u8x16;

/// A value of a flat object, its text as `T`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Plain<T> {
    Text(T),
    Integer(i64),
    Bool(bool),
    Null,
}

/// More digits may not fit into 64 bits.
const MOST_DIGITS: usize = 18;

/// The keys that bodies are read for, each with its slot.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Keys {
    /// By length: most keys of a body are of a length of which few are wanted, or none.
    of_len: Vec<Vec<Key>>,
}

/// A key to be found, in a form that compares without a call.
#[derive(Clone, Debug, PartialEq)]
struct Key {
    /// The first eight bytes; zeros where it is shorter.
    head: u64,
    tail: Box<[u8]>,
    slot: usize,
}

impl Keys {
    /// Keys and their slots, each key once.
    pub(super) fn new<'k>(keys: impl IntoIterator<Item = (&'k [u8], usize)>) -> Self {
        let mut of_len: Vec<Vec<Key>> = Vec::new();
        for (key, slot) in keys {
            if of_len.len() <= key.len() {
                of_len.resize_with(key.len() + 1, Vec::new);
            }
            let (head, tail) = key.split_at(key.len().min(8));
            of_len[key.len()].push(Key { head: word(head), tail: tail.into(), slot });
        }
        Self { of_len }
    }

    /// Hands every wanted field of a flat object to `each` by its slot, in order. `None`: not of the plain form; what was
    /// handed over by then counts for nothing.
    #[inline]
    pub(super) fn read<'a>(&self, json: &'a [u8], mut each: impl FnMut(usize, Plain<&'a str>)) -> Option<()> {
        let mut reader = Reader { text: std::str::from_utf8(json).ok()?, bytes: json, at: 0, quotes: Quotes::new(json)? };
        reader.skip_spaces();
        reader.take(b'{')?;
        reader.skip_spaces();
        if reader.take(b'}').is_none() {
            loop {
                let slot = self.slot_of(json, reader.string()?);
                reader.between(b':')?;
                let value = reader.value()?;
                if let Some(slot) = slot {
                    each(slot, value.of(reader.text)?);
                }
                if reader.between(b',').is_none() {
                    break;
                }
            }
            reader.take(b'}')?;
        }
        reader.skip_spaces();
        (reader.at == json.len()).then_some(())
    }

    /// The slot of the key that stands there.
    #[inline]
    fn slot_of(&self, json: &[u8], Span { from, to }: Span) -> Option<usize> {
        let len = to - from;
        let alike = self.of_len.get(len).filter(|alike| !alike.is_empty())?;
        let found = json.get(from..to)?;
        let head = match json.get(from..).and_then(<[u8]>::first_chunk) {
            // What follows a short key in the body is read with it, and left out.
            Some(eight) if len < 8 => u64::from_le_bytes(*eight) & ((1 << (8 * len)) - 1),
            Some(eight) => u64::from_le_bytes(*eight),
            None => word(found),
        };
        alike.iter().find(|key| key.head == head && (len <= 8 || *key.tail == found[8..])).map(|key| key.slot)
    }
}

/// At most eight bytes as a number.
fn word(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte))
}

/// Where a string stands, without its quotes.
struct Span {
    from: usize,
    to: usize,
}

impl Plain<Span> {
    /// The same with its text. Most values are not wanted, and need none.
    #[inline]
    fn of(self, text: &str) -> Option<Plain<&str>> {
        Some(match self {
            Self::Text(Span { from, to }) => Plain::Text(text.get(from..to)?),
            Self::Integer(number) => Plain::Integer(number),
            Self::Bool(value) => Plain::Bool(value),
            Self::Null => Plain::Null,
        })
    }
}

struct Reader<'a> {
    text: &'a str,
    bytes: &'a [u8],
    at: usize,
    /// Those from `at` on.
    quotes: Quotes<'a>,
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

    /// What stands between two strings, with its spaces if it has any. Where it is something else, spaces are skipped alone.
    #[inline]
    fn between(&mut self, wanted: u8) -> Option<()> {
        if self.bytes.get(self.at..)?.starts_with(&[wanted, b'"']) {
            self.at += 1;
            return Some(());
        }
        self.skip_spaces();
        self.take(wanted)?;
        self.skip_spaces();
        Some(())
    }

    #[inline]
    fn string(&mut self) -> Option<Span> {
        let begin = self.quotes.next()?;
        if begin != self.at {
            return None;
        }
        let end = self.quotes.next()?;
        self.at = end + 1;
        Some(Span { from: begin + 1, to: end })
    }

    #[inline]
    fn value(&mut self) -> Option<Plain<Span>> {
        match self.peek()? {
            b'"' => self.string().map(Plain::Text),
            b't' => self.word(b"true", Plain::Bool(true)),
            b'f' => self.word(b"false", Plain::Bool(false)),
            b'n' => self.word(b"null", Plain::Null),
            b'-' | b'0'..=b'9' => self.integer().map(Plain::Integer),
            _ => None,
        }
    }

    fn word(&mut self, word: &[u8], value: Plain<Span>) -> Option<Plain<Span>> {
        let rest = self.bytes.get(self.at..)?;
        self.at += word.len();
        rest.starts_with(word).then_some(value)
    }

    fn integer(&mut self) -> Option<i64> {
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
        (plain && ends).then_some(if negative { -number } else { number })
    }
}

/// Where the quotes of a body stand, in order, as long as no byte is met that a plain body does not hold.
struct Quotes<'a> {
    bytes: &'a [u8],
    /// Where the block begins that is looked at.
    block: usize,
    /// The quotes of the block that were not told yet, the first in the lowest bit.
    left: u64,
}

/// Bytes of a block: as many as a word has bits.
const BLOCK: usize = 64;

impl<'a> Quotes<'a> {
    #[inline]
    fn new(bytes: &'a [u8]) -> Option<Self> {
        Some(Self { bytes, block: 0, left: Self::of_block(bytes)? })
    }

    /// The next one; `None` where there is none before the end, or before a backslash or a control character.
    #[inline]
    fn next(&mut self) -> Option<usize> {
        while self.left == 0 {
            self.next_block()?;
        }
        let at = self.block + self.left.trailing_zeros() as usize;
        self.left &= self.left - 1;
        Some(at)
    }

    #[inline(never)]
    fn next_block(&mut self) -> Option<()> {
        self.block += BLOCK;
        self.left = Self::of_block(self.bytes.get(self.block..)?)?;
        Some(())
    }

    /// The quotes of the first block of `rest`.
    fn of_block(rest: &[u8]) -> Option<u64> {
        match rest.first_chunk::<BLOCK>() {
            Some(block) => Self::among(block),
            None => {
                let mut block = [b' '; BLOCK];
                block[..rest.len()].copy_from_slice(rest);
                Self::among(&block)
            }
        }
    }

    #[inline]
    fn among(block: &[u8; BLOCK]) -> Option<u64> {
        let (quote, backslash, space) = (u8x16::splat(b'"'), u8x16::splat(b'\\'), u8x16::splat(b' '));
        let mut quotes = 0;
        let mut odd = u8x16::splat(0);
        let (parts, _) = block.as_chunks::<16>();
        for (at, part) in parts.iter().enumerate() {
            let part = u8x16::new(*part);
            quotes |= u64::from(part.simd_eq(quote).to_bitmask()) << (16 * at);
            odd |= part.simd_eq(backslash) | part.simd_lt(space);
        }
        (!odd.any()).then_some(quotes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(json: &str) -> Option<Vec<(&str, Plain<&str>)>> {
        let mut fields = Vec::new();
        let names = ["a", "b", "c", "d", "ã", "", "business", "recipient"];
        let keys = Keys::new(names.iter().enumerate().map(|(slot, name)| (name.as_bytes(), slot)));
        keys.read(json.as_bytes(), |slot, value| fields.push((names[slot], value)))?;
        Some(fields)
    }

    #[test]
    fn keys_are_told_apart_by_length_and_by_every_byte() {
        let json = r#"{"business":1,"busines":2,"businesss":3,"recipient":4,"recipienr":5,"a":6}"#;
        let keys: Vec<&str> = fields(json).expect("plain").into_iter().map(|(key, _)| key).collect();
        assert_eq!(keys, ["business", "recipient", "a"]);
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
    fn strings_end_where_they_end_wherever_that_lies() {
        // Ends of strings, of blocks and of bodies meet in every way.
        for len in 0..2 * BLOCK + 2 {
            let long = "x".repeat(len);
            let json = format!(r#"{{"a":"{long}","b":"é","another {long}":"","c":"{long}"}}"#);
            let expected = vec![("a", Plain::Text(&*long)), ("b", Plain::Text("é")), ("c", Plain::Text(&*long))];
            assert_eq!(fields(&json), Some(expected), "{len}");
        }
    }

    #[test]
    fn escapes_and_control_characters_are_seen_wherever_they_stand() {
        let plain = format!(r#"{{"a":"{}","b":"{}"}}"#, "x".repeat(BLOCK), "y".repeat(BLOCK));
        assert!(fields(&plain).is_some());
        for (at, _) in plain.match_indices(['x', 'y']) {
            for odd in ["\\\\", "\\u0041", "\0", "\u{1f}", "\n", "\\\"", "\""] {
                let mut json = plain.clone();
                json.replace_range(at..=at, odd);
                assert_eq!(fields(&json), None, "{odd:?} at {at}");
            }
        }
        // What is no control character is text.
        assert_eq!(fields("{\"a\":\"\u{7f} \u{80}\"}"), Some(vec![("a", Plain::Text("\u{7f} \u{80}"))]));
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
