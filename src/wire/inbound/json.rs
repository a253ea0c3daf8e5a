//! Types for derived readers of JSON that forgive everything but broken syntax, and the repair of the latter.
//!
//! # Invariants
//!
//! - A value of the wrong type reads as absent: it never fails the body that it stands in.
//! - Repair changes nothing but what keeps the bytes from being JSON: characters that are not UTF-8 or not in order,
//!   control characters within strings, a byte order mark, repeated keys (the last one counts).

use crate::domain::time::Timestamp;
use crate::wire::fields::{FieldValue, Scalar, as_ascii};
use crate::wire::{DecodeError, when};
use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

/// A scalar or a list of scalars; absent where it is neither.
#[derive(Debug, Default)]
pub(super) struct Field<'a>(pub(super) Option<FieldValue<'a>>);

impl Field<'_> {
    /// The text of a string or number, trimmed, unless it is empty.
    pub(super) fn text(&self) -> Option<Cow<'_, str>> {
        let text = match self.0.as_ref()?.to_text()? {
            Cow::Borrowed(text) => Cow::Borrowed(text.trim()),
            Cow::Owned(text) => Cow::Owned(text),
        };
        (!text.is_empty()).then_some(text)
    }

    /// The same, owned.
    pub(super) fn owned(&self) -> Option<String> {
        self.text().map(Cow::into_owned)
    }

    /// The words of a person, as they are.
    pub(super) fn words(&self) -> Option<String> {
        self.0.as_ref()?.to_text().map(Cow::into_owned)
    }

    pub(super) fn is(&self, word: &str) -> bool {
        self.0.as_ref().and_then(FieldValue::as_text) == Some(word)
    }

    pub(super) fn is_true(&self) -> bool {
        matches!(self.0, Some(FieldValue::Bool(true))) || self.is("true")
    }

    pub(super) fn time(&self) -> Option<Timestamp> {
        self.0.as_ref().and_then(when::parse_time)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Field<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(FieldVisitor).map(Self)
    }
}

struct FieldVisitor;

impl<'de> Visitor<'de> for FieldVisitor {
    type Value = Option<FieldValue<'de>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    #[inline]
    fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Self::Value, E> {
        Scalar.visit_borrowed_str(text)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        Scalar.visit_str(text)
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Self::Value, E> {
        Scalar.visit_i64(number)
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Self::Value, E> {
        Scalar.visit_u64(number)
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<Self::Value, E> {
        Scalar.visit_f64(number)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Self::Value, E> {
        Scalar.visit_bool(value)
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut list = Vec::new();
        while let Some(element) = seq.next_element_seed(Scalar)? {
            list.extend(element);
        }
        Ok(Some(FieldValue::List(list)))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        Scalar.visit_map(map)
    }
}

/// An object; absent where the value is none.
#[derive(Debug)]
pub(super) struct Object<T>(pub(super) Option<T>);

impl<T> Default for Object<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ObjectVisitor(PhantomData)).map(Self)
    }
}

struct ObjectVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for ObjectVisitor<T> {
    type Value = Option<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        T::deserialize(MapAccessDeserializer::new(map)).map(Some)
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Self::Value, A::Error> {
        IgnoredAny.visit_seq(seq).map(|IgnoredAny| None)
    }
}

/// The elements of an array, `None` for those that are no objects; empty where the value is no array.
#[derive(Debug)]
pub(super) struct List<T>(pub(super) Vec<Option<T>>);

impl<T> List<T> {
    /// The elements that are objects.
    pub(super) fn objects(&self) -> impl Iterator<Item = &T> {
        self.0.iter().flatten()
    }
}

impl<T> Default for List<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for List<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ListVisitor(PhantomData)).map(Self)
    }
}

struct ListVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for ListVisitor<T> {
    type Value = Vec<Option<T>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut list = Vec::new();
        while let Some(Object(element)) = seq.next_element()? {
            if list.is_empty() {
                // Most lists hold one, and four at once are more than the allocator keeps at hand.
                list.reserve_exact(1);
            }
            list.push(element);
        }
        Ok(list)
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<Self::Value, E> {
        Ok(Vec::new())
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<Self::Value, E> {
        Ok(Vec::new())
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<Self::Value, E> {
        Ok(Vec::new())
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<Self::Value, E> {
        Ok(Vec::new())
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<Self::Value, E> {
        Ok(Vec::new())
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(Vec::new())
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        IgnoredAny.visit_map(map).map(|IgnoredAny| Vec::new())
    }
}

/// Reads a whole body.
pub(super) fn read<'a, T: Deserialize<'a>>(json: &'a [u8]) -> Result<T, DecodeError> {
    let read = match as_ascii(json) {
        Some(json) => serde_json::from_str(json),
        None => serde_json::from_slice(json),
    };
    read.map_err(|_| DecodeError::Malformed)
}

/// Whether the bytes begin as a JSON object or array does.
pub(super) fn may_be_json(bytes: &[u8]) -> bool {
    let bytes = bytes.strip_prefix(BYTE_ORDER_MARK).unwrap_or(bytes).trim_ascii_start();
    matches!(bytes.first(), Some(b'{' | b'['))
}

/// Whether the bytes are JSON of a depth that anybody means. Slow: asked only about what is of no known shape.
pub(super) fn is_json(bytes: &[u8]) -> bool {
    serde_json::from_slice::<serde_json::Value>(bytes).is_ok()
}

const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

/// The same body as JSON that every reader takes; `None` where it is no JSON beyond its characters. Slow: tried only
/// where reading the bytes as they are has failed.
pub(super) fn repair(bytes: &[u8]) -> Option<Vec<u8>> {
    let text = String::from_utf8_lossy(bytes.strip_prefix(BYTE_ORDER_MARK).unwrap_or(bytes));
    let mut repaired = String::with_capacity(text.len());
    let mut within_string = false;
    let mut rest = text.chars();
    while let Some(character) = rest.next() {
        match character {
            '"' => {
                within_string = !within_string;
                repaired.push('"');
            }
            '\\' if within_string => {
                let escape = rest.as_str();
                let (first, second) = (unicode_escape(escape), escape.get(5..).and_then(|text| text.strip_prefix('\\')));
                match (first, second.and_then(unicode_escape)) {
                    // A surrogate counts only as the first half of a pair with its second half behind it.
                    (Some(0xd800..0xdc00), Some(0xdc00..0xe000)) => push_and_skip(&mut repaired, &mut rest, 11),
                    (Some(0xd800..0xe000), _) => {
                        repaired.push(char::REPLACEMENT_CHARACTER);
                        rest.by_ref().nth(4);
                    }
                    (Some(_) | None, _) => push_and_skip(&mut repaired, &mut rest, 1),
                }
            }
            '\0'..' ' if within_string => repaired.push(' '),
            _ => repaired.push(character),
        }
    }
    let value: serde_json::Value = serde_json::from_str(&repaired).ok()?;
    serde_json::to_vec(&value).ok()
}

/// The code of an escape, given what follows its backslash.
fn unicode_escape(text: &str) -> Option<u32> {
    let digits = text.strip_prefix('u')?.get(..4)?;
    u32::from_str_radix(digits, 16).ok()
}

/// Copies a backslash and the `count` characters behind it.
fn push_and_skip(repaired: &mut String, rest: &mut std::str::Chars<'_>, count: usize) {
    repaired.push('\\');
    repaired.extend(rest.by_ref().take(count));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(bytes: &[u8], repaired: Option<&str>) {
        assert_eq!(repair(bytes).map(|bytes| String::from_utf8(bytes).expect("UTF-8")).as_deref(), repaired);
    }

    #[test]
    fn characters_that_are_none_are_replaced() {
        check(b"{\"t\":\"st\xffop\"}", Some("{\"t\":\"st\u{fffd}op\"}"));
        check(b"\xef\xbb\xbf{\"t\":1}", Some(r#"{"t":1}"#));
        check(b"{\"t\":\"a\nb\"}", Some(r#"{"t":"a b"}"#));
    }

    #[test]
    fn halves_of_surrogate_pairs_are_replaced_and_pairs_are_kept() {
        check(br#"{"t":"stop \ud83d"}"#, Some("{\"t\":\"stop \u{fffd}\"}"));
        check(br#"{"t":"\udc00\ud83d\ud83d\ude00 \u0041"}"#, Some("{\"t\":\"\u{fffd}\u{fffd}\u{1f600} A\"}"));
        check(br#"{"t":"a\\ud83d \" b"}"#, Some(r#"{"t":"a\\ud83d \" b"}"#));
    }

    #[test]
    fn of_repeated_keys_the_last_counts() {
        check(br#"{"t":1,"t":2}"#, Some(r#"{"t":2}"#));
    }

    #[test]
    fn what_is_no_json_beyond_its_characters_is_not_repaired() {
        for bytes in [&b""[..], b"{", b"{\"t\":\"\\", b"{\"t\":\"\\u", b"{\"t\":\"\\ud8\xff\"}", b"stop", b"{\"t\":\"a\"b\"}"] {
            check(bytes, None);
        }
        check("[".repeat(10_000).as_bytes(), None);
    }
}
