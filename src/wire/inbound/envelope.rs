//! What stands around a message: schema-registry framing, CloudEvents, and what headers announce.
//!
//! # Invariants
//!
//! - A frame begins with a zero byte, which no JSON, form or protobuf message begins with.
//! - Of a CloudEvent, only id and time are used, and only where the message within says none.
//!
//! Source of the shapes: the Confluent wire format, with the message indexes as several libraries write them; the Kafka
//! binding of CloudEvents 1.0.

use super::json::{self, Field};
use super::{Decoded, Format, twilio};
use crate::domain::time::Timestamp;
use crate::record::Record;
use crate::wire::{DecodeError, when};
use serde::Deserialize;

/// What the frame tells about its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// No frame.
    None,
    /// Framed, and JSON or anything that is told by its shape.
    Other,
    /// Framed, and protobuf.
    Protobuf,
}

/// Takes a schema-registry frame off: a zero, four bytes of schema id, and for protobuf the message's indexes.
pub(super) fn unframe(value: &[u8]) -> Result<(&[u8], Framing), DecodeError> {
    let Some(framed) = value.strip_prefix(&[0]) else {
        return Ok((value, Framing::None));
    };
    let payload = framed.get(4..).filter(|payload| !payload.is_empty()).ok_or(DecodeError::TruncatedFrame)?;
    // Bytes below 8 begin no protobuf field and no text: they begin a list of indexes.
    if payload.first().is_some_and(|&byte| byte < 8) {
        return Ok((skip_indexes(payload).ok_or(DecodeError::TruncatedFrame)?, Framing::Protobuf));
    }
    let framing = if json::may_be_json(payload) { Framing::Other } else { Framing::Protobuf };
    Ok((payload, framing))
}

/// Skips the path of a message type within its schema: a count and as many indexes, as zig-zag numbers (`02 00`), with
/// the short form `00` for the first type, or with a plain count (`01 00`). Which type is meant matters to nobody:
/// topics hold one.
fn skip_indexes(bytes: &[u8]) -> Option<&[u8]> {
    let (&count, mut rest) = bytes.split_first()?;
    // An odd number would be a negative zig-zag count, so it is a plain one.
    let count = if count % 2 == 0 { count / 2 } else { count };
    for _ in 0..count {
        let length = rest.iter().position(|byte| byte & 0x80 == 0)? + 1;
        rest = rest.get(length..)?;
    }
    Some(rest)
}

/// What frame and headers tell of a record whose format is `auto`, and of the event around it.
#[derive(Debug)]
pub(super) struct Announced {
    pub(super) format: Format,
    /// The value is a CloudEvent in structured mode.
    pub(super) is_event: bool,
    /// The CloudEvent in binary mode that the headers describe.
    pub(super) event: Event,
}

/// A CloudEvent's own attributes, and what it says about its data.
#[derive(Debug, Default)]
pub(super) struct Event {
    id: Option<String>,
    kind: Option<String>,
    time: Option<Timestamp>,
    pub(super) data_format: Option<Format>,
}

impl Event {
    /// Whether the data is Twilio's inbound message.
    pub(super) fn is_twilio(&self) -> bool {
        self.kind.as_deref() == Some(twilio::INBOUND_EVENT)
    }

    /// Gives messages that say no time the event's, and the only message the event's id if it has none.
    pub(super) fn complete(&self, decoded: &mut Decoded) {
        for message in &mut decoded.messages {
            message.occurred_at = message.occurred_at.or(self.time);
        }
        if let ([message], []) = (decoded.messages.as_mut_slice(), decoded.failures.as_slice())
            && message.provider_message_id.is_none()
        {
            message.provider_message_id.clone_from(&self.id);
        }
    }
}

/// Reads the headers. Those that nobody here knows, and those that are not UTF-8, say nothing.
pub(super) fn announced(record: &Record<'_>, framing: Framing) -> Announced {
    let mut format = None;
    let mut content_type = None;
    let mut event = Event::default();
    for header in record.headers {
        let Some(value) = header.value.and_then(|value| std::str::from_utf8(value).ok()) else {
            continue;
        };
        match header.name {
            b"ce_type" => event.kind = Some(value.to_owned()),
            b"ce_id" => event.id = Some(value.to_owned()),
            b"ce_time" => event.time = when::from_text(value),
            b"stopgate-format" => format = Format::parse(value.trim()),
            name if name.eq_ignore_ascii_case(b"content-type") => content_type = Some(media_type(value)),
            _ => {}
        }
    }
    let is_event = content_type.as_deref().is_some_and(|name| name.starts_with("application/cloudevents"));
    let format = match framing {
        Framing::Protobuf => Some(Format::Protobuf),
        Framing::None | Framing::Other => format.or_else(|| format_of(&content_type?)),
    };
    Announced { format: format.unwrap_or(Format::Auto), is_event, event }
}

/// A content type without its parameters.
fn media_type(content_type: &str) -> String {
    content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// The format that a media type means. JSON means none: its shape tells more.
fn format_of(media_type: &str) -> Option<Format> {
    match media_type {
        "application/x-protobuf" | "application/protobuf" | "application/vnd.google.protobuf" => Some(Format::Protobuf),
        "application/x-www-form-urlencoded" => Some(Format::TwilioForm),
        _ => None,
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Attributes<'a> {
    #[serde(borrow)]
    id: Field<'a>,
    #[serde(borrow, rename = "type")]
    kind: Field<'a>,
    #[serde(borrow)]
    time: Field<'a>,
    #[serde(borrow)]
    datacontenttype: Field<'a>,
    #[serde(borrow)]
    data_base64: Field<'a>,
    data: serde_json::Value,
}

/// Opens a CloudEvent in structured mode: its attributes and the bytes of its data.
pub(super) fn open_event(bytes: &[u8]) -> Result<(Event, Vec<u8>), DecodeError> {
    let attributes: Attributes<'_> = serde_json::from_slice(bytes).map_err(|_| DecodeError::Malformed)?;
    let data = match (&attributes.data, attributes.data_base64.text()) {
        (serde_json::Value::Null, None) => return Err(DecodeError::EmptyValue),
        (serde_json::Value::Null, Some(base64)) => from_base64(&base64).ok_or(DecodeError::Malformed)?,
        (serde_json::Value::String(text), _) => text.clone().into_bytes(),
        (data, _) => serde_json::to_vec(data).map_err(|_| DecodeError::Malformed)?,
    };
    let event = Event {
        id: attributes.id.owned(),
        kind: attributes.kind.owned(),
        time: attributes.time.time(),
        data_format: attributes.datacontenttype.text().and_then(|content_type| format_of(&media_type(&content_type))),
    };
    Ok((event, data))
}

/// Standard or URL-safe base64, padded or not.
fn from_base64(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let (mut buffer, mut bits) = (0_u32, 0);
    for symbol in text.trim_end_matches('=').bytes() {
        let value = match symbol {
            b'A'..=b'Z' => symbol - b'A',
            b'a'..=b'z' => symbol - b'a' + 26,
            b'0'..=b'9' => symbol - b'0' + 52,
            b'+' | b'-' => 62,
            b'/' | b'_' => 63,
            _ => return None,
        };
        buffer = buffer << 6 | u32::from(value);
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            bytes.push((buffer >> bits) as u8);
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(value: &[u8], expected: Result<(&[u8], Framing), DecodeError>) {
        assert_eq!(unframe(value), expected);
    }

    #[test]
    fn frames_come_off_with_every_spelling_of_the_message_indexes() {
        for indexes in [&b"\0"[..], b"\x02\0", b"\x01\0", b"\x04\x02\x02", b"\x02\x80\x01", b""] {
            let value = [&b"\0\0\0\0\x07"[..], indexes, b"\x0a\x03SM1"].concat();
            check(&value, Ok((b"\x0a\x03SM1", Framing::Protobuf)));
        }
        check(b"\0\0\0\0\x07 {\"id\":1}", Ok((b" {\"id\":1}", Framing::Other)));
        check(b"{}", Ok((b"{}", Framing::None)));
    }

    #[test]
    fn a_value_that_ends_within_its_frame_is_truncated() {
        for value in [&b"\0"[..], b"\0\0\0\0", b"\0\0\0\0\x07", b"\0\0\0\0\x07\x02", b"\0\0\0\0\x07\x06\0\0", b"\0\0\0\0\x07\x02\x80"] {
            check(value, Err(DecodeError::TruncatedFrame));
        }
    }

    #[test]
    fn base64_is_read_in_both_alphabets() {
        assert_eq!(from_base64("CgNTTTE="), Some(b"\x0a\x03SM1".to_vec()));
        assert_eq!(from_base64("-_8"), from_base64("+/8="));
        assert_eq!(from_base64(""), Some(vec![]));
        assert_eq!(from_base64("no base64"), None);
    }
}
