//! Any JSON, read at the pointers that the operator names.
//!
//! # Invariants
//!
//! - The pointers address the record's JSON as it stands behind a schema-registry frame. A CloudEvent is not opened
//!   first: whoever writes pointers has looked at the whole record.
//! - Every field may have several pointers. The first at which something stands counts; of the sender, all count.
//! - Identities are typed: a phone number as such, anything else with its kind. Where the JSON does not write the kind,
//!   the pointer does: `bsuid:/sender/userId`.

use super::native::{Parts, untyped};
use super::{Decoded, InboundFormat};
use crate::domain::identity::Identity;
use crate::domain::key::Channel;
use crate::wire::DecodeError;
use crate::wire::fields::{BadPointer, FieldSet, FieldValue};
use crate::wire::when;
use std::borrow::Cow;

/// The pointers of each field, as configured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pointers {
    /// The provider's id of the message.
    pub id: Vec<String>,
    /// The business by its configured name.
    pub business: Vec<String>,
    /// The provider account.
    pub account: Vec<String>,
    /// The channel's name.
    pub channel: Vec<String>,
    /// Identities of the sender; each may begin with the kind of identity that stands there: `bsuid:/user/id`.
    pub from: Vec<String>,
    /// The receiving number or address.
    pub to: Vec<String>,
    /// What the person wrote.
    pub text: Vec<String>,
    /// The value behind a tapped button.
    pub button_payload: Vec<String>,
    /// The words on a tapped button.
    pub button_title: Vec<String>,
    /// When the person wrote it.
    pub received_at: Vec<String>,
    /// Whatever stands there means that the provider has consumed a keyword and answered it.
    pub autoresponse: Vec<String>,
}

/// Why pointers make no mapping.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MappingError {
    #[error(transparent)]
    Pointer(#[from] BadPointer),
    #[error("a mapping needs a pointer for `from`: without a sender no message can be read")]
    NoSender,
    #[error("a mapping needs a pointer for `to`, `business` or `account`: without one no business can be told")]
    NoBusiness,
    #[error("a mapping needs a pointer for `text`, `button_payload` or `button_title`: without one no message says anything")]
    NoContent,
}

/// Compiled [`Pointers`].
#[derive(Clone, Debug, PartialEq)]
pub struct Mapping {
    fields: FieldSet,
    id: Slots,
    business: Slots,
    account: Slots,
    channel: Slots,
    from: Slots,
    /// The kind that each pointer of `from` says, with its colon; empty where the value says it.
    from_kinds: Vec<&'static str>,
    to: Slots,
    text: Slots,
    button_payload: Slots,
    button_title: Slots,
    received_at: Slots,
    autoresponse: Slots,
}

/// Which of the extracted values belong to a field.
type Slots = std::ops::Range<usize>;

impl Mapping {
    /// Checks and compiles the pointers.
    pub fn compile(pointers: &Pointers) -> Result<Self, MappingError> {
        if pointers.from.is_empty() {
            return Err(MappingError::NoSender);
        }
        if pointers.to.is_empty() && pointers.business.is_empty() && pointers.account.is_empty() {
            return Err(MappingError::NoBusiness);
        }
        if pointers.text.is_empty() && pointers.button_payload.is_empty() && pointers.button_title.is_empty() {
            return Err(MappingError::NoContent);
        }
        let mut all = Vec::new();
        let (from_kinds, from): (Vec<_>, Vec<_>) = pointers.from.iter().map(|pointer| split_kind(pointer)).unzip();
        let from = append(&mut all, &from);
        let mut slots = |pointers: &[String]| append(&mut all, pointers);
        Ok(Self {
            id: slots(&pointers.id),
            business: slots(&pointers.business),
            account: slots(&pointers.account),
            channel: slots(&pointers.channel),
            from,
            from_kinds,
            to: slots(&pointers.to),
            text: slots(&pointers.text),
            button_payload: slots(&pointers.button_payload),
            button_title: slots(&pointers.button_title),
            received_at: slots(&pointers.received_at),
            autoresponse: slots(&pointers.autoresponse),
            fields: FieldSet::compile(&all)?,
        })
    }

    /// Reads a body.
    pub(super) fn read(&self, json: &[u8], format: &InboundFormat) -> Result<Decoded, DecodeError> {
        let mut values = Vec::new();
        self.fields.extract(json, &mut values).map_err(|_| DecodeError::Malformed)?;
        let values = Values(&values);
        let mut from = Vec::with_capacity(2);
        for (kind, value) in self.from_kinds.iter().zip(values.all(&self.from)) {
            let scalars = value.iter().flat_map(|value| value.scalars());
            from.extend(scalars.filter_map(|scalar| identity(kind, &scalar.to_text()?)));
        }
        let parts = Parts {
            id: values.text(&self.id),
            business: values.text(&self.business),
            account: values.text(&self.account),
            channel: values.text(&self.channel).and_then(|name| Channel::parse(&name)),
            from,
            to: values.any(&self.to, |to| to.scalars().iter().find_map(|to| untyped(&to.to_text()?))),
            text: values.any(&self.text, |text| text.to_text().map(Cow::into_owned)),
            button_payload: values.text(&self.button_payload),
            button_title: values.text(&self.button_title),
            received_at: values.any(&self.received_at, when::parse_time),
            autoresponse: values.text(&self.autoresponse),
        };
        parts.assemble(&format.default_channel)
    }
}

/// The kind of identity that a pointer of `from` says, with its colon, and the pointer itself.
fn split_kind(pointer: &str) -> (&'static str, String) {
    let kinds = ["bsuid:", "email:", "ext:", "phone:"];
    match kinds.into_iter().find_map(|kind| Some((kind, pointer.strip_prefix(kind)?))) {
        Some((kind, pointer)) => (kind, pointer.to_owned()),
        None => ("", pointer.to_owned()),
    }
}

fn append(all: &mut Vec<String>, pointers: &[String]) -> Slots {
    let start = all.len();
    all.extend_from_slice(pointers);
    start..all.len()
}

/// An identity, typed by its pointer or by itself.
fn identity(kind: &str, text: &str) -> Option<Identity> {
    let text = text.trim();
    if kind.is_empty() || text.starts_with(kind) {
        Identity::recognise(text).ok()
    } else if text.is_empty() {
        None
    } else {
        Identity::parse(&format!("{kind}{text}")).ok()
    }
}

/// The values of one body.
struct Values<'v, 'a>(&'v [Option<FieldValue<'a>>]);

impl<'v, 'a> Values<'v, 'a> {
    fn all(&self, slots: &Slots) -> &'v [Option<FieldValue<'a>>] {
        self.0.get(slots.clone()).unwrap_or_default()
    }

    /// What `read` makes of the first value that it can make anything of.
    fn any<T>(&self, slots: &Slots, read: impl Fn(&FieldValue<'a>) -> Option<T>) -> Option<T> {
        self.all(slots).iter().flatten().find_map(read)
    }

    /// The first text or number that is not empty.
    fn text(&self, slots: &Slots) -> Option<String> {
        self.any(slots, |value| Some(value.to_text()?.trim().to_owned()).filter(|text| !text.is_empty()))
    }
}
