//! The values at a fixed set of JSON Pointers, taken from a body in one pass and without a copy where JSON allows it.
//!
//! The pointers of a topic are compiled once into a [`FieldSet`]: a trie whose edges are object keys and array indices.
//! [`FieldSet::extract`] walks a body along it and skips whatever no pointer asks for, unparsed beyond its syntax.
//!
//! # Invariants
//!
//! - The same bytes yield the same values; nothing panics, whatever the bytes.
//! - Recursion is as deep as the deepest pointer, never as deep as the body.
//! - A field that is absent, `null` or an object is `None`. Only a body that is not JSON is an error.
//! - Where a key is repeated in an object the last one counts, as in most readers of JSON.
//!
//! Shape: pointers as in RFC 6901.

use super::flat::{self, Plain};
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use std::borrow::Cow;
use std::fmt;

/// A scalar, or an array of scalars, as it stands in the body.
#[derive(Clone, PartialEq)]
pub enum FieldValue<'a> {
    /// A string, borrowed unless it holds escapes.
    Text(Cow<'a, str>),
    Integer(i64),
    /// A number with a fraction or an exponent, or an integer beyond `i64`.
    Float(f64),
    Bool(bool),
    /// The scalars of an array, in order; what it holds beside scalars is left out, or `Nested` in a strict set.
    List(Vec<FieldValue<'a>>),
    /// Only from a strict set: something stands here, and it is no scalar.
    Nested,
}

impl<'a> FieldValue<'a> {
    /// The text of a string; `None` for anything else.
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Integer(_) | Self::Float(_) | Self::Bool(_) | Self::List(_) | Self::Nested => None,
        }
    }

    /// A string, or a number as it would be written: ids and phone numbers are often given as numbers. A list of one
    /// counts as that one. `None` for everything else.
    pub fn to_text(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::Text(text) => Some(Cow::Borrowed(text)),
            Self::Integer(number) => Some(Cow::Owned(number.to_string())),
            Self::Float(number) => Some(Cow::Owned(number.to_string())),
            Self::Bool(_) | Self::Nested => None,
            Self::List(values) => match values.as_slice() {
                [one] => one.to_text(),
                _ => None,
            },
        }
    }

    /// The scalars: those of a list, or the value itself.
    pub fn scalars(&self) -> &[FieldValue<'a>] {
        match self {
            Self::List(values) => values,
            Self::Text(_) | Self::Integer(_) | Self::Float(_) | Self::Bool(_) | Self::Nested => std::slice::from_ref(self),
        }
    }
}

impl fmt::Debug for FieldValue<'_> {
    /// Contents never reach logs or panics: kinds and sizes are shown.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => write!(f, "Text({} bytes)", text.len()),
            Self::Integer(_) => f.write_str("Integer(…)"),
            Self::Float(_) => f.write_str("Float(…)"),
            Self::Bool(_) => f.write_str("Bool(…)"),
            Self::Nested => f.write_str("Nested"),
            Self::List(values) => f.debug_list().entries(values).finish(),
        }
    }
}

/// A text that is no usable JSON Pointer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a JSON Pointer: expected / and a key, for example /data/from, with ~1 for / and ~0 for ~ within keys")]
pub struct BadPointer(pub String);

/// The bytes are not JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not JSON")]
pub struct NotJson;

/// Compiled pointers. Values come out in the order in which the pointers were given.
#[derive(Clone, Debug, PartialEq)]
pub struct FieldSet {
    /// The trie; the root is first.
    nodes: Vec<Node>,
    /// How many pointers were given.
    len: usize,
    /// Pointers given more than once: the value of the first slot is copied to the second.
    copies: Vec<(usize, usize)>,
    /// Whether what is no scalar is told instead of left out.
    strict: bool,
    /// Where all pointers are keys of the body itself: those keys. A plain body need not be parsed then.
    flat: Option<flat::Keys>,
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Node {
    /// The slot of the pointer that ends here.
    slot: Option<usize>,
    edges: Vec<Edge>,
}

#[derive(Clone, Debug, PartialEq)]
struct Edge {
    key: Box<[u8]>,
    /// The key as an array index, where it is one.
    index: Option<usize>,
    node: usize,
}

impl FieldSet {
    /// Compiles pointers such as `/data/from` or `/contacts/0/wa_id`. The same pointer may be given twice, and one may
    /// be the beginning of another.
    pub fn compile<P: AsRef<str>>(pointers: &[P]) -> Result<Self, BadPointer> {
        let mut set = Self { nodes: vec![Node::default()], len: pointers.len(), copies: Vec::new(), strict: false, flat: None };
        for (slot, pointer) in pointers.iter().enumerate() {
            let pointer = pointer.as_ref();
            let bad = || BadPointer(pointer.to_owned());
            let mut node = 0;
            for token in pointer.strip_prefix('/').ok_or_else(bad)?.split('/') {
                node = set.edge(node, &unescape(token).ok_or_else(bad)?);
            }
            match set.nodes[node].slot {
                Some(first) => set.copies.push((first, slot)),
                None => set.nodes[node].slot = Some(slot),
            }
        }
        set.flat = set.flat_keys();
        Ok(set)
    }

    fn flat_keys(&self) -> Option<flat::Keys> {
        let (root, others) = self.nodes.split_first()?;
        if others.iter().any(|node| !node.edges.is_empty()) {
            return None;
        }
        let slots: Option<Vec<_>> = root.edges.iter().map(|edge| Some((&*edge.key, self.nodes.get(edge.node)?.slot?))).collect();
        Some(flat::Keys::new(slots?))
    }

    /// Tells what is no scalar as [`FieldValue::Nested`], instead of leaving it out: for readers to whom a field that
    /// they cannot read is not the same as no field.
    pub fn strict(mut self) -> Self {
        self.strict = true;
        self
    }

    /// How many values [`extract`](Self::extract) yields: one for each pointer.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no pointer was given.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Fills `values` with what stands at each pointer, `None` where there is nothing. `values` is cleared first, so
    /// that one vector serves all bodies of a batch.
    pub fn extract<'a>(&self, json: &'a [u8], values: &mut Vec<Option<FieldValue<'a>>>) -> Result<(), NotJson> {
        values.clear();
        values.resize_with(self.len, || None);
        self.fill(json, values)
    }

    /// What stands at each of `N` pointers, `None` where there is nothing.
    ///
    /// # Panics
    /// Where the set was not compiled from `N` pointers.
    #[inline]
    pub fn take<'a, const N: usize>(&self, json: &'a [u8]) -> Result<[Option<FieldValue<'a>>; N], NotJson> {
        assert_eq!(self.len, N, "a set of as many pointers as are asked for");
        let mut values = [const { None }; N];
        self.fill(json, &mut values)?;
        Ok(values)
    }

    /// What stands at each of `N` pointers, where the body is plain and all that is asked for is text: `None` in all other
    /// cases, for which [`FieldSet::take`] is there. Most sends are like this.
    ///
    /// # Panics
    /// Where the set was not compiled from `N` pointers.
    #[inline]
    pub fn texts<'a, const N: usize>(&self, json: &'a [u8]) -> Option<[Option<&'a str>; N]> {
        assert_eq!(self.len, N, "a set of as many pointers as are asked for");
        let keys = self.flat.as_ref().filter(|_| self.copies.is_empty())?;
        let mut texts = [None; N];
        let mut others = false;
        keys.read(json, |slot, value| {
            texts[slot] = match value {
                Plain::Text(text) => Some(text),
                Plain::Null => None,
                Plain::Integer(_) | Plain::Bool(_) => {
                    others = true;
                    None
                }
            };
        })?;
        (!others).then_some(texts)
    }

    /// `values` are as many as pointers, and nothing.
    fn fill<'a>(&self, json: &'a [u8], values: &mut [Option<FieldValue<'a>>]) -> Result<(), NotJson> {
        if let Some(keys) = &self.flat {
            if self.fill_flat(keys, json, values).is_some() {
                return Ok(());
            }
            // What a declined body had handed over by then counts for nothing.
            values.fill(None);
        }
        let walk = Walk { set: self, node: &self.nodes[0], values: &mut *values };
        match as_ascii(json) {
            Some(json) => walk.read(serde_json::Deserializer::from_str(json)),
            None => walk.read(serde_json::Deserializer::from_slice(json)),
        }
        .map_err(|_| NotJson)?;
        self.copy(values);
        Ok(())
    }

    /// A plain body is read without the parser; `None` where it is not plain.
    fn fill_flat<'a>(&self, keys: &flat::Keys, json: &'a [u8], values: &mut [Option<FieldValue<'a>>]) -> Option<()> {
        keys.read(json, |slot, value| {
            values[slot] = match value {
                Plain::Text(text) => Some(FieldValue::Text(Cow::Borrowed(text))),
                Plain::Integer(number) => Some(FieldValue::Integer(number)),
                Plain::Bool(value) => Some(FieldValue::Bool(value)),
                Plain::Null => None,
            };
        })?;
        self.copy(values);
        Some(())
    }

    fn copy(&self, values: &mut [Option<FieldValue<'_>>]) {
        for &(first, copy) in &self.copies {
            values[copy] = values[first].clone();
        }
    }

    /// The node that `key` leads to from `node`, made where it is missing.
    fn edge(&mut self, node: usize, key: &str) -> usize {
        if let Some(edge) = self.nodes[node].edges.iter().find(|edge| *edge.key == *key.as_bytes()) {
            return edge.node;
        }
        let new = self.nodes.len();
        let is_index = key == "0" || !key.starts_with('0') && key.bytes().all(|byte| byte.is_ascii_digit());
        let index = if is_index { key.parse().ok() } else { None };
        self.nodes.push(Node::default());
        self.nodes[node].edges.push(Edge { key: key.as_bytes().into(), index, node: new });
        new
    }
}

/// The bytes as text if they are ASCII, which most bodies are: then their strings need no check one by one, a tenth of
/// the time that reading them takes.
pub(super) fn as_ascii(bytes: &[u8]) -> Option<&str> {
    if bytes.is_ascii() { std::str::from_utf8(bytes).ok() } else { None }
}

/// A token of a pointer without its escapes; `None` where a `~` escapes nothing.
fn unescape(token: &str) -> Option<Cow<'_, str>> {
    if !token.contains('~') {
        return Some(Cow::Borrowed(token));
    }
    let mut parts = token.split('~');
    let mut plain = parts.next()?.to_owned();
    for part in parts {
        let (escaped, rest) = match part.strip_prefix('0') {
            Some(rest) => ('~', rest),
            None => ('/', part.strip_prefix('1')?),
        };
        plain.push(escaped);
        plain.push_str(rest);
    }
    Some(Cow::Owned(plain))
}

/// Walks the value at `node` and stores what the pointers ask for.
struct Walk<'s, 'v, 'a> {
    set: &'s FieldSet,
    node: &'s Node,
    values: &'v mut [Option<FieldValue<'a>>],
}

impl<'a> Walk<'_, '_, 'a> {
    fn read<R: serde_json::de::Read<'a>>(self, mut deserializer: serde_json::Deserializer<R>) -> serde_json::Result<()> {
        self.deserialize(&mut deserializer)?;
        deserializer.end()
    }

    #[inline]
    fn store(self, value: Option<FieldValue<'a>>) {
        if let Some(slot) = self.node.slot {
            self.values[slot] = value;
        }
    }
}

impl<'de> DeserializeSeed<'de> for Walk<'_, '_, 'de> {
    type Value = ();

    #[inline]
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Walk<'_, '_, 'de> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    #[inline]
    fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<(), E> {
        Scalar.visit_borrowed_str(text).map(|value| self.store(value))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<(), E> {
        Scalar.visit_str(text).map(|value| self.store(value))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<(), E> {
        Scalar.visit_i64(number).map(|value| self.store(value))
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<(), E> {
        Scalar.visit_u64(number).map(|value| self.store(value))
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<(), E> {
        Scalar.visit_f64(number).map(|value| self.store(value))
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<(), E> {
        Scalar.visit_bool(value).map(|value| self.store(value))
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        Scalar.visit_unit().map(|value| self.store(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let mut list = self.node.slot.map(|_| Vec::new());
        for index in 0.. {
            let element = if let Some(edge) = self.node.edges.iter().find(|edge| edge.index == Some(index)) {
                // A pointer leads into this element; the list, if one is asked for, has its share of it too.
                let node = &self.set.nodes[edge.node];
                let walk = Walk { set: self.set, node, values: &mut *self.values };
                seq.next_element_seed(walk)?.map(|()| match node.slot {
                    Some(slot) if list.is_some() => self.values[slot].clone(),
                    Some(_) | None => None,
                })
            } else if list.is_some() {
                seq.next_element_seed(Scalar)?
            } else {
                seq.next_element::<IgnoredAny>()?.map(|IgnoredAny| None)
            };
            match (element, &mut list) {
                (None, _) => break,
                (Some(Some(FieldValue::List(_)) | None), Some(list)) if self.set.strict => list.push(FieldValue::Nested),
                (Some(Some(FieldValue::List(_)) | None), _) | (Some(Some(_)), None) => {}
                (Some(Some(scalar)), Some(list)) => list.push(scalar),
            }
        }
        self.store(list.map(FieldValue::List));
        Ok(())
    }

    #[inline]
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(edge) = map.next_key_seed(Key(self.node))? {
            match edge {
                Some(node) => {
                    let node = &self.set.nodes[node];
                    map.next_value_seed(Walk { set: self.set, node, values: &mut *self.values })?;
                }
                None => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        let nested = self.set.strict.then_some(FieldValue::Nested);
        self.store(nested);
        Ok(())
    }
}

/// Reads an object's key and looks up where it leads.
struct Key<'s>(&'s Node);

impl<'de> DeserializeSeed<'de> for Key<'_> {
    type Value = Option<usize>;

    #[inline]
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Option<usize>, D::Error> {
        // As bytes: keys are only compared, so that nobody need check their UTF-8.
        deserializer.deserialize_bytes(self)
    }
}

impl Visitor<'_> for Key<'_> {
    type Value = Option<usize>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    #[inline]
    fn visit_bytes<E: Error>(self, key: &[u8]) -> Result<Option<usize>, E> {
        Ok(self.0.edges.iter().find(|edge| *edge.key == *key).map(|edge| edge.node))
    }

    #[inline]
    fn visit_str<E: Error>(self, key: &str) -> Result<Option<usize>, E> {
        self.visit_bytes(key.as_bytes())
    }
}

/// Reads a value on its own, without what lies within it; `None` for what is no scalar.
pub(super) struct Scalar;

impl<'de> DeserializeSeed<'de> for Scalar {
    type Value = Option<FieldValue<'de>>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Scalar {
    type Value = Option<FieldValue<'de>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    #[inline]
    fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Some(FieldValue::Text(Cow::Borrowed(text))))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Some(FieldValue::Text(Cow::Owned(text.to_owned()))))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Self::Value, E> {
        Ok(Some(FieldValue::Integer(number)))
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Self::Value, E> {
        Ok(Some(i64::try_from(number).map_or(FieldValue::Float(number as f64), FieldValue::Integer)))
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<Self::Value, E> {
        Ok(Some(FieldValue::Float(number)))
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Self::Value, E> {
        Ok(Some(FieldValue::Bool(value)))
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Self::Value, A::Error> {
        IgnoredAny.visit_seq(seq).map(|IgnoredAny| None)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        IgnoredAny.visit_map(map).map(|IgnoredAny| None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text(text: &str) -> Option<FieldValue<'_>> {
        Some(FieldValue::Text(Cow::Borrowed(text)))
    }

    #[track_caller]
    fn check(pointers: &[&str], json: &str, expected: &[Option<FieldValue<'_>>]) {
        let mut values = Vec::new();
        FieldSet::compile(pointers).expect("pointers").extract(json.as_bytes(), &mut values).expect("JSON");
        assert!(values == expected, "{json}: {values:?}, expected {expected:?}");
    }

    #[test]
    fn values_come_out_in_the_order_of_the_pointers_whatever_the_order_of_the_body() {
        check(&["/to", "/id"], r#"{"id":"s-1","x":{"to":"no"},"to":"+12025550143"}"#, &[text("+12025550143"), text("s-1")]);
    }

    #[test]
    fn a_strict_set_tells_what_is_no_scalar() {
        let set = FieldSet::compile(&["/a", "/b", "/c"]).expect("pointers").strict();
        let mut values = Vec::new();
        set.extract(br#"{"a":{"x":1},"b":["y",{"z":1}],"c":null}"#, &mut values).expect("JSON");
        let list = FieldValue::List(vec![FieldValue::Text("y".into()), FieldValue::Nested]);
        assert!(values == [Some(FieldValue::Nested), Some(list), None], "{values:?}");
    }

    #[test]
    fn what_is_absent_or_null_or_an_object_is_nothing() {
        check(&["/a", "/b", "/c", "/d/e"], r#"{"b":null,"c":{"x":1},"d":"flat"}"#, &[None, None, None, None]);
        check(&["/a"], "[1,2]", &[None]);
        check(&["/a"], "\"a\"", &[None]);
    }

    #[test]
    fn numbers_and_booleans_keep_their_kind() {
        check(
            &["/i", "/n", "/f", "/u", "/t"],
            r#"{"i":12025550143,"n":-1,"f":1.5,"u":18446744073709551615,"t":true}"#,
            &[
                Some(FieldValue::Integer(12_025_550_143)),
                Some(FieldValue::Integer(-1)),
                Some(FieldValue::Float(1.5)),
                Some(FieldValue::Float(18_446_744_073_709_551_615.0)),
                Some(FieldValue::Bool(true)),
            ],
        );
    }

    #[test]
    fn arrays_yield_their_scalars() {
        let expected = FieldValue::List(vec![FieldValue::Text("a".into()), FieldValue::Integer(2), FieldValue::Bool(false)]);
        check(&["/to"], r#"{"to":["a",2,{"deep":[1]},["deeper"],null,false]}"#, &[Some(expected)]);
        check(&["/to"], r#"{"to":[]}"#, &[Some(FieldValue::List(vec![]))]);
    }

    #[test]
    fn pointers_lead_into_objects_and_arrays() {
        check(&["/data/0/from", "/data/1/from"], r#"{"data":[{"from":"a"},{"from":"b"},{"from":"c"}]}"#, &[text("a"), text("b")]);
        check(&["/data/0"], r#"{"data":{"0":"a key, not an index"}}"#, &[text("a key, not an index")]);
    }

    #[test]
    fn one_pointer_may_begin_another_and_one_may_be_given_twice() {
        let pointers = ["/from", "/from/id", "/from/0", "/from"];
        check(&pointers, r#"{"from":"a"}"#, &[text("a"), None, None, text("a")]);
        check(&pointers, r#"{"from":{"id":"b"}}"#, &[None, text("b"), None, None]);
        let list = || Some(FieldValue::List(vec![FieldValue::Text("c".into()), FieldValue::Text("d".into())]));
        check(&pointers, r#"{"from":["c","d"]}"#, &[list(), None, text("c"), list()]);
    }

    #[test]
    fn keys_with_slashes_and_tildes_are_escaped_in_pointers() {
        check(&["/a~1b", "/c~0d", "/ü"], r#"{"a/b":"1","c~d":"2","\u00fc":"3"}"#, &[text("1"), text("2"), text("3")]);
        for pointer in ["", "to", "/a~", "/a~2"] {
            assert_eq!(FieldSet::compile(&[pointer]), Err(BadPointer(pointer.into())));
        }
    }

    #[test]
    fn the_last_of_repeated_keys_counts() {
        check(&["/to"], r#"{"to":"a","to":"b"}"#, &[text("b")]);
        check(&["/to"], r#"{"to":"a","to":null}"#, &[None]);
    }

    #[test]
    fn texts_are_borrowed_unless_they_hold_escapes() {
        let mut values = Vec::new();
        let set = FieldSet::compile(&["/a", "/b"]).expect("pointers");
        set.extract(br#"{"a":"plain","b":"two\nlines"}"#, &mut values).expect("JSON");
        assert!(matches!(values[0], Some(FieldValue::Text(Cow::Borrowed("plain")))));
        assert!(matches!(&values[1], Some(FieldValue::Text(Cow::Owned(text))) if text == "two\nlines"));
    }

    #[test]
    fn depth_costs_no_stack() {
        let set = FieldSet::compile(&["/to", "/deep/0"]).expect("pointers");
        for (open, close) in [("[", "]"), (r#"{"a":"#, "}")] {
            let json = format!(r#"{{"deep":{}1{},"to":"a"}}"#, open.repeat(10_000), close.repeat(10_000));
            let mut values = Vec::new();
            set.extract(json.as_bytes(), &mut values).expect("JSON");
            assert!(values[0] == text("a"));
        }
        assert_eq!(set.extract("[".repeat(10_000).as_bytes(), &mut Vec::new()), Err(NotJson));
    }

    #[test]
    fn what_is_not_json_is_an_error() {
        let set = FieldSet::compile(&["/to"]).expect("pointers");
        for bytes in [&b""[..], b"{", b"to=1", b"{\"to\":\"\xff\"}", b"{\"to\":1}}"] {
            assert_eq!(set.extract(bytes, &mut Vec::new()), Err(NotJson));
        }
    }

    #[test]
    fn debug_output_shows_no_contents() {
        let shown = format!("{:?}", [FieldValue::Text("secret".into()), FieldValue::Integer(12_025_550_143)]);
        assert!(!shown.contains("secret") && !shown.contains("2025550143"), "{shown}");
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let set = FieldSet::compile(&["/a", "/a/0/b"]).expect("pointers");
            assert!(matches!(set.extract(&bytes, &mut Vec::new()), Ok(()) | Err(NotJson)));
        }

        #[test]
        fn strings_read_as_serde_json_reads_them(value in any::<String>()) {
            let json = serde_json::json!({"x": [value], "a": value, "z": {"a": 1}}).to_string();
            let mut values = Vec::new();
            FieldSet::compile(&["/a"]).expect("pointers").extract(json.as_bytes(), &mut values).expect("JSON");
            prop_assert!(values[0].as_ref().and_then(FieldValue::as_text) == Some(value.as_str()));
        }

        #[test]
        fn a_body_read_without_the_parser_says_what_the_parser_says(
            fields in prop::collection::vec((prop::sample::select(vec!["a", "b", "é", "c"]), any_value()), 0..5),
            is_compact: bool,
            damage in prop::option::of((any::<prop::sample::Index>(), prop::sample::select(b" \t\"\\{}[]:,0-1.eE\x01\xc3tn".to_vec()), any::<bool>())),
        ) {
            let space = if is_compact { "" } else { " " };
            let fields: Vec<String> = fields.iter().map(|(key, value)| format!("\"{key}\":{space}{value}")).collect();
            let mut json = format!("{{{}}}", fields.join(&format!(",{space}"))).into_bytes();
            if let Some((place, byte, inserts)) = damage {
                let place = place.index(json.len());
                if inserts { json.insert(place, byte) } else { json[place] = byte }
            }
            let plain = FieldSet::compile(&["/a", "/b", "/é", "/a"]).expect("pointers").strict();
            let parsed = FieldSet { flat: None, ..plain.clone() };
            let (mut one, mut other) = (Vec::new(), Vec::new());
            prop_assert_eq!(plain.extract(&json, &mut one), parsed.extract(&json, &mut other));
            if parsed.extract(&json, &mut other).is_ok() {
                prop_assert!(one == other);
            }
        }
    }

    fn any_value() -> impl Strategy<Value = String> {
        prop_oneof![
            any::<i64>().prop_map(|number| number.to_string()),
            "-?[0-9]{1,3}",
            any::<f64>().prop_filter("JSON has no such number", |number| number.is_finite()).prop_map(|number| number.to_string()),
            any::<String>().prop_map(|text| serde_json::json!(text).to_string()),
            "[a-zé ]{0,8}|[a-zé ]{56,72}".prop_map(|text| format!("\"{text}\"")),
            prop::sample::select(vec!["true", "false", "null", "{}", "[1]", "{\"a\":2}"]).prop_map(str::to_owned),
        ]
    }
}
