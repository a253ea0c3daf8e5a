//! Inbound record bytes → messages: one adapter for each shape, and `auto`, which recognises the shape.
//!
//! First the envelopes come off (`envelope`: schema-registry framing, CloudEvents), then the adapter of the topic, or
//! the one whose shape the bytes have (`sniff`), reads what is within.
//!
//! # Invariants
//!
//! - Nothing panics and nothing recurses deeper than a fixed bound, whatever the bytes.
//! - In doubt, act: a wrong type, an unknown field or a broken character costs no more than the field it stands in. A
//!   body that is not JSON as it stands is repaired once (`json::repair`) before it is given up.
//! - One unreadable message does not take the others of its body with it.
//! - The index of a message is its place in the body, counting everything that has a place: the same bytes give the
//!   same indices for ever, for they are part of an act's source.
//! - What the business itself wrote (echoes) and what is imported (history) never yields a message that acts.
//! - An error names a kind, never a content.
//!
//! # What is absent
//!
//! Signatures: whoever writes the topic has checked them. Names and profiles of people: nothing needs them.

use super::DecodeError;
use crate::domain::identity::{Identities, Identity};
use crate::domain::key::Channel;
use crate::domain::message::{Content, InboundMessage};
use crate::record::Record;
use envelope::Event;
use sniff::Shape;
use std::borrow::Cow;

mod envelope;
mod json;
pub mod mapping;
mod meta;
mod native;
mod sniff;
mod twilio;
mod whatsapp;
mod ycloud;

#[cfg(test)]
mod tests;

/// How the records of an inbound topic are written.
#[derive(Clone, Debug, PartialEq)]
pub enum Format {
    /// Recognise each record by its headers and shape.
    Auto,
    Meta,
    Ycloud,
    TwilioForm,
    TwilioEvents,
    Json,
    Protobuf,
    /// Any JSON, read at the pointers that the operator names.
    Mapping(Box<mapping::Mapping>),
}

impl Format {
    /// The format of that name, as in configuration and in the `stopgate-format` header. A mapping has no name: it is
    /// made of its pointers.
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "auto" => Self::Auto,
            "meta" => Self::Meta,
            "ycloud" => Self::Ycloud,
            "twilio-form" => Self::TwilioForm,
            "twilio-events" => Self::TwilioEvents,
            "json" => Self::Json,
            "protobuf" => Self::Protobuf,
            _ => return None,
        })
    }

    /// The name, as [`parse`](Self::parse) reads it.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Meta => "meta",
            Self::Ycloud => "ycloud",
            Self::TwilioForm => "twilio-form",
            Self::TwilioEvents => "twilio-events",
            Self::Json => "json",
            Self::Protobuf => "protobuf",
            Self::Mapping(_) => "mapping",
        }
    }
}

/// What the adapters need to know beside the bytes.
#[derive(Clone, Debug)]
pub struct InboundFormat {
    pub format: Format,
    /// The channel of messages that name none and whose identities do not tell it.
    pub default_channel: Channel,
}

impl InboundFormat {
    /// This format; where it is `auto`, what the record announces of itself.
    fn or(&self, announced: Format) -> Cow<'_, Self> {
        if self.format == Format::Auto && announced != Format::Auto {
            Cow::Owned(Self { format: announced, default_channel: self.default_channel.clone() })
        } else {
            Cow::Borrowed(self)
        }
    }
}

/// All that one record held: the messages that could be read and the indices of those that could not. Both are empty
/// for a readable body in which no person says anything, such as an echo or a notice about the account.
#[derive(Debug, Default, PartialEq)]
pub struct Decoded {
    pub messages: Vec<InboundMessage>,
    /// Unreadable messages of a body that holds several, by index. The record goes to dead-letters once for each.
    pub failures: Vec<(u32, DecodeError)>,
}

/// Reads a record. `Err` where nothing in it can be read.
pub fn decode(record: &Record<'_>, format: &InboundFormat) -> Result<Decoded, DecodeError> {
    let value = record.value.filter(|value| !value.is_empty()).ok_or(DecodeError::EmptyValue)?;
    let (payload, framing) = envelope::unframe(value)?;
    let announced = envelope::announced(record, framing);
    let mut decoded = read(payload, &format.or(announced.format), announced.is_event, &announced.event)?;
    announced.event.complete(&mut decoded);
    Ok(decoded)
}

/// Reads what is left when framing and headers are understood.
fn read(payload: &[u8], format: &InboundFormat, is_event: bool, event: &Event) -> Result<Decoded, DecodeError> {
    match &format.format {
        Format::Protobuf => native::from_protobuf(payload, format),
        Format::TwilioForm => twilio::from_form(payload),
        Format::Mapping(mapping) => with_repair(payload, |json| mapping.read(json, format)),
        Format::Auto | Format::Meta | Format::Ycloud | Format::TwilioEvents | Format::Json => {
            if json::may_be_json(payload) {
                with_repair(payload, |json| read_json(json, format, is_event, event))
            } else if format.format == Format::Auto && twilio::is_form(payload) {
                twilio::from_form(payload)
            } else if format.format == Format::Auto {
                Err(DecodeError::UnknownShape)
            } else {
                Err(DecodeError::Malformed)
            }
        }
    }
}

/// Reads, and where the bytes are no JSON reads what can be made of them.
fn with_repair<T>(payload: &[u8], read: impl Fn(&[u8]) -> Result<T, DecodeError>) -> Result<T, DecodeError> {
    match read(payload) {
        Err(DecodeError::Malformed) => read(&json::repair(payload).ok_or(DecodeError::Malformed)?),
        result => result,
    }
}

fn read_json(json: &[u8], format: &InboundFormat, is_event: bool, event: &Event) -> Result<Decoded, DecodeError> {
    let shape = sniff::shape(json);
    if shape == Shape::Event || is_event && shape == Shape::Unknown {
        return read_event(json, format);
    }
    match &format.format {
        Format::Meta => meta::read(json),
        Format::Ycloud => ycloud::read(json),
        Format::TwilioEvents => twilio::from_data(json),
        Format::Json => native::from_json(json, format),
        Format::Auto | Format::TwilioForm | Format::Protobuf | Format::Mapping(_) => match shape {
            Shape::Meta => meta::read(json),
            Shape::Ycloud => ycloud::read(json),
            Shape::TwilioData => twilio::from_data(json),
            Shape::Native | Shape::Event | Shape::Unknown if event.is_twilio() => twilio::from_data(json),
            Shape::Native => native::from_json(json, format),
            Shape::Event | Shape::Unknown if json::is_json(json) => Err(DecodeError::UnknownShape),
            Shape::Event | Shape::Unknown => Err(DecodeError::Malformed),
        },
    }
}

/// Reads a CloudEvent in structured mode: its data, once more by the topic's format, or by shape.
fn read_event(json: &[u8], format: &InboundFormat) -> Result<Decoded, DecodeError> {
    if let Some(decoded) = twilio::from_event(json) {
        return decoded;
    }
    let (event, data) = envelope::open_event(json)?;
    // An event within an event is nobody's shape; refusing it bounds the recursion.
    if sniff::shape(&data) == Shape::Event {
        return Err(DecodeError::UnknownShape);
    }
    let announced = event.data_format.clone().unwrap_or(Format::Auto);
    let mut decoded = read(&data, &format.or(announced), false, &event)?;
    event.complete(&mut decoded);
    Ok(decoded)
}

/// Collects what a body holds and numbers it.
#[derive(Default)]
struct Collector {
    decoded: Decoded,
    next: u32,
}

impl Collector {
    /// One place in the body: a message, nothing that anybody needs to see, or something unreadable.
    fn push(&mut self, read: Result<Option<InboundMessage>, DecodeError>) {
        let index = self.next;
        self.next = self.next.saturating_add(1);
        match read {
            Ok(Some(message)) => self.decoded.messages.push(InboundMessage { index, ..message }),
            Ok(None) => {}
            Err(error) => self.decoded.failures.push((index, error)),
        }
    }

    /// All of it. A body of one unreadable message is an unreadable record.
    fn finish(self) -> Result<Decoded, DecodeError> {
        match self.decoded.failures.as_slice() {
            [(_, error)] if self.next == 1 => Err(*error),
            _ => Ok(self.decoded),
        }
    }
}

/// What a body of exactly one message yields.
fn single(message: InboundMessage) -> Decoded {
    Decoded { messages: vec![message], failures: Vec::new() }
}

/// Words of a person.
fn said(text: String, edited: bool, forwarded: bool) -> Content {
    Content::Text { text, edited, forwarded }
}

/// The sender, or the reason why there is none.
fn sender(identities: Vec<Identity>) -> Result<Identities, DecodeError> {
    Identities::new(identities).ok_or(DecodeError::NoSender)
}

/// An id for an event that has none: a stable hash of what tells it from others, so that no address is in it in clear.
fn synthetic_id<'a>(kind: &str, parts: impl IntoIterator<Item = &'a str>) -> String {
    // FNV-1a, 64 bits, with a separator that no part holds.
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for part in parts {
        for byte in part.bytes().chain([0xff]) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    format!("{kind}-{hash:016x}")
}
