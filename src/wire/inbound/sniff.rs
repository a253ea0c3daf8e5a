//! Which shape a JSON body has, told by its top-level keys.
//!
//! Reading stops at the first key that settles it: in practice the first key of a Meta webhook. Nothing below the top
//! level is looked at, and nothing is checked: the adapter that is chosen reads the body and finds what is wrong with
//! it.

use super::json::Field;
use serde::de::{Deserialize, DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, Visitor};
use std::fmt;

/// The shapes that JSON bodies have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// `object` is `whatsapp_business_account`, or there are entries.
    Meta,
    /// One of YCloud's payload objects, or a `type` and an `apiVersion` as its events have them.
    Ycloud,
    /// A CloudEvent in structured mode: `specversion` and `type`.
    Event,
    /// The data of Twilio's inbound event.
    TwilioData,
    /// `from`, `text` or `button`.
    Native,
    Unknown,
}

/// The shape of a body. `Unknown` too where it is no JSON up to the key that would tell.
pub(super) fn shape(json: &[u8]) -> Shape {
    let mut seen = Seen::default();
    // An error means no more than that reading has stopped.
    drop((&mut seen).deserialize(&mut serde_json::Deserializer::from_slice(json)));
    seen.shape()
}

#[derive(Default)]
struct Seen {
    settled: Option<Shape>,
    type_: bool,
    ycloud_type: bool,
    api_version: bool,
    spec_version: bool,
    native: bool,
}

impl Seen {
    fn shape(&self) -> Shape {
        match self.settled {
            Some(shape) => shape,
            None if self.type_ && self.spec_version => Shape::Event,
            None if self.native => Shape::Native,
            None if self.ycloud_type && self.api_version => Shape::Ycloud,
            None => Shape::Unknown,
        }
    }
}

impl<'de> DeserializeSeed<'de> for &mut Seen {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for &mut Seen {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<Key>()? {
            match key {
                Key::Settles(shape) => self.settled = Some(shape),
                Key::Object => {
                    if map.next_value::<Field<'_>>()?.is("whatsapp_business_account") {
                        self.settled = Some(Shape::Meta);
                    }
                }
                Key::Type => {
                    let name = map.next_value::<Field<'_>>()?;
                    let name = name.text().unwrap_or_default();
                    self.type_ = true;
                    self.ycloud_type = ["whatsapp.", "sms.", "contact."].iter().any(|prefix| name.starts_with(prefix));
                }
                Key::SpecVersion => {
                    map.next_value::<IgnoredAny>()?;
                    self.spec_version = true;
                }
                Key::ApiVersion => {
                    map.next_value::<IgnoredAny>()?;
                    self.api_version = true;
                }
                Key::Native => {
                    map.next_value::<IgnoredAny>()?;
                    self.native = true;
                }
                Key::Other => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
            if self.type_ && self.spec_version {
                self.settled = Some(Shape::Event);
            }
            if self.settled.is_some() {
                return Err(A::Error::custom("settled"));
            }
        }
        Ok(())
    }
}

/// A top-level key, as far as it tells anything.
enum Key {
    Settles(Shape),
    Object,
    Type,
    SpecVersion,
    ApiVersion,
    Native,
    Other,
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_bytes(KeyVisitor)
    }
}

struct KeyVisitor;

impl Visitor<'_> for KeyVisitor {
    type Value = Key;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_bytes<E: Error>(self, key: &[u8]) -> Result<Key, E> {
        Ok(match key {
            b"object" => Key::Object,
            b"entry" => Key::Settles(Shape::Meta),
            b"type" => Key::Type,
            b"specversion" => Key::SpecVersion,
            b"apiVersion" => Key::ApiVersion,
            b"messageSid" => Key::Settles(Shape::TwilioData),
            b"whatsappInboundMessage" | b"whatsappUserPreference" | b"whatsappMessage" | b"smsInbound" => Key::Settles(Shape::Ycloud),
            b"from" | b"text" | b"button" => Key::Native,
            _ => Key::Other,
        })
    }

    fn visit_str<E: Error>(self, key: &str) -> Result<Key, E> {
        self.visit_bytes(key.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(json: &str, expected: Shape) {
        assert_eq!(shape(json.as_bytes()), expected, "{json}");
    }

    #[test]
    fn every_shape_is_known_by_its_keys_in_any_order() {
        check(r#"{"object":"whatsapp_business_account","entry":[]}"#, Shape::Meta);
        check(r#"{"entry":[{"changes":[]}]}"#, Shape::Meta);
        check(r#"{"id":"e","type":"whatsapp.inbound_message.received","whatsappInboundMessage":{}}"#, Shape::Ycloud);
        check(r#"{"id":"e","type":"whatsapp.smb.message.echoes","apiVersion":"v2"}"#, Shape::Ycloud);
        check(r#"{"type":"whatsapp.received","data":{},"specversion":"1.0"}"#, Shape::Event);
        check(r#"{"from":"+12025550143","body":"x","messageSid":"SM1"}"#, Shape::TwilioData);
        check(r#"{"id":"1","business":"acme","from":"+12025550143","text":"x"}"#, Shape::Native);
        check(r#"{"type":"sms.received","apiVersion":1,"text":"x"}"#, Shape::Native);
    }

    #[test]
    fn the_rest_is_unknown() {
        for json in [
            r#"{"hello":"world"}"#,
            "{}",
            "[]",
            "[{\"from\":1}]",
            "1",
            "",
            "{",
            r#"{"object":"page"}"#,
            r#"{"type":"sms.received","message":{}}"#,
            "{\"specversion\":1}",
        ] {
            check(json, Shape::Unknown);
        }
    }
}
