//! Send record bytes → sends: JSON by pointers, protobuf, or headers alone for payloads that are nobody's business.

use super::fields::{BadPointer, FieldSet, FieldValue};
use super::{DecodeError, proto, when};
use crate::domain::identity::{Identities, Identity};
use crate::domain::key::Channel;
use crate::domain::send::OutboundSend;
use crate::domain::time::Timestamp;
use crate::record::Record;
use prost::Message;
use smallvec::SmallVec;
use std::borrow::Cow;

/// How the records of a sends topic are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendFormat {
    /// Headers if there is a `stopgate-to`, protobuf if the content type says so, else JSON.
    Auto,
    Json,
    Protobuf,
    Headers,
}

/// Where the fields of a JSON send stand, as JSON Pointers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SendPointers {
    pub business: String,
    pub channel: String,
    pub to: String,
    /// A second place for the recipient: WhatsApp's business-scoped ids go there.
    pub recipient: String,
    pub from: String,
    pub category: String,
    pub program: String,
    pub template: String,
    pub expires_at: String,
    /// Read by people and reports, decided by nothing.
    pub id: String,
    pub campaign: String,
}

impl Default for SendPointers {
    fn default() -> Self {
        Self {
            business: "/business".into(),
            channel: "/channel".into(),
            to: "/to".into(),
            recipient: "/recipient".into(),
            from: "/from".into(),
            category: "/category".into(),
            program: "/program".into(),
            template: "/template".into(),
            expires_at: "/expires_at".into(),
            id: "/id".into(),
            campaign: "/campaign".into(),
        }
    }
}

/// Fields that a send is read for.
const FIELDS: usize = 9;

/// Reads the sends of one topic.
#[derive(Clone, Debug)]
pub struct SendDecoder {
    format: SendFormat,
    fields: FieldSet,
    labels: FieldSet,
}

/// What a campaign system calls a send: for people and reports, decided by nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SendLabels<'a> {
    pub id: Option<Cow<'a, str>>,
    pub campaign: Option<Cow<'a, str>>,
}

impl SendDecoder {
    /// Compiles the pointers once.
    pub fn new(format: SendFormat, at: &SendPointers) -> Result<Self, BadPointer> {
        let pointers = [&at.business, &at.channel, &at.to, &at.recipient, &at.from, &at.category, &at.program, &at.template, &at.expires_at];
        let labels = FieldSet::compile(&[&at.id, &at.campaign])?;
        Ok(Self { format, fields: FieldSet::compile(&pointers)?.strict(), labels })
    }

    /// Reads what a send is called; what cannot be read has no name.
    pub fn labels<'a>(&self, record: &Record<'a>) -> SendLabels<'a> {
        let named = |text: String| (!text.is_empty()).then_some(Cow::Owned(text));
        match self.format_of(record) {
            SendFormat::Headers => SendLabels { id: header_field(record, "stopgate-id"), campaign: header_field(record, "stopgate-campaign") },
            SendFormat::Protobuf => match proto::SendRequest::decode(record.value.unwrap_or_default()) {
                Ok(request) => SendLabels { id: named(request.id), campaign: named(request.campaign) },
                Err(_) => SendLabels::default(),
            },
            SendFormat::Auto | SendFormat::Json => {
                let mut values = Vec::new();
                if self.labels.extract(record.value.unwrap_or_default(), &mut values).is_err() {
                    return SendLabels::default();
                }
                let mut values = values.into_iter().map(|value| text(value).ok().flatten());
                SendLabels { id: values.next().flatten(), campaign: values.next().flatten() }
            }
        }
    }

    fn format_of(&self, record: &Record<'_>) -> SendFormat {
        match self.format {
            SendFormat::Auto if record.header("stopgate-to").is_some() => SendFormat::Headers,
            SendFormat::Auto if says_protobuf(record) => SendFormat::Protobuf,
            SendFormat::Auto | SendFormat::Json => SendFormat::Json,
            SendFormat::Protobuf => SendFormat::Protobuf,
            SendFormat::Headers => SendFormat::Headers,
        }
    }

    /// Reads one send.
    pub fn decode<'a>(&self, record: &Record<'a>) -> Result<OutboundSend<'a>, DecodeError> {
        let value = record.value.filter(|value| !value.is_empty()).ok_or(DecodeError::EmptyValue);
        match self.format_of(record) {
            SendFormat::Auto | SendFormat::Json => self.decode_json(value?),
            SendFormat::Protobuf => from_protobuf(value?),
            SendFormat::Headers => from_headers(record),
        }
    }

    fn decode_json<'a>(&self, value: &'a [u8]) -> Result<OutboundSend<'a>, DecodeError> {
        match self.fields.texts(value) {
            Some(texts) => Self::of_texts(texts),
            None => self.of_values(value),
        }
    }

    /// What [`Self::of_values`] makes of fields that are all text.
    fn of_texts(texts: [Option<&str>; FIELDS]) -> Result<OutboundSend<'_>, DecodeError> {
        let [business, channel, to, recipient, from, category, program, template, expires_at] = texts;
        let named = match (to, recipient) {
            // One name is the rule, and needs no list.
            (Some(one), None) | (None, Some(one)) => Identity::recognise(one).ok().map(Identities::from),
            (Some(to), Some(recipient)) => {
                let named: Result<SmallVec<[Identity; 2]>, _> = [to, recipient].into_iter().map(Identity::recognise).collect();
                named.ok().and_then(Identities::new)
            }
            (None, None) => None,
        };
        Ok(OutboundSend {
            business: plain(business),
            from: plain(from),
            channel: channel_of(channel)?,
            to: named.ok_or(DecodeError::NoRecipient)?,
            category: plain(category),
            template: plain(template),
            program: plain(program),
            expires_at: expires_at.and_then(when::from_text),
        })
    }

    fn of_values<'a>(&self, value: &'a [u8]) -> Result<OutboundSend<'a>, DecodeError> {
        let fields = self.fields.take(value).map_err(|_| DecodeError::Malformed)?;
        let [business, channel, to, recipient, from, category, program, template, expires_at]: [_; FIELDS] = fields;
        let mut named: SmallVec<[Identity; 1]> = SmallVec::new();
        for field in [to, recipient].iter().flatten() {
            for scalar in field.scalars() {
                let text = scalar.to_text().ok_or(DecodeError::NoRecipient)?;
                // An identity that cannot be read cannot be looked up: the send must not pass on the others alone.
                named.push(Identity::recognise(&text).map_err(|_| DecodeError::NoRecipient)?);
            }
        }
        Ok(OutboundSend {
            business: text(business)?,
            from: text(from)?,
            channel: channel_of(text(channel)?.as_deref())?,
            to: Identities::new(named).ok_or(DecodeError::NoRecipient)?,
            category: text(category)?,
            template: text(template)?,
            program: text(program)?,
            expires_at: expires_at.as_ref().and_then(when::parse_time),
        })
    }
}

/// A field as text, trimmed; an empty one says nothing. One that cannot be read might name what the person stopped: the
/// send must not be decided without it.
fn text(field: Option<FieldValue<'_>>) -> Result<Option<Cow<'_, str>>, DecodeError> {
    match field {
        None => Ok(None),
        Some(FieldValue::Text(Cow::Borrowed(text))) => Ok(plain(Some(text))),
        Some(other) => {
            let text = other.to_text().ok_or(DecodeError::Malformed)?.trim().to_owned();
            Ok((!text.is_empty()).then_some(Cow::Owned(text)))
        }
    }
}

/// A text, trimmed; an empty one says nothing.
#[inline]
fn plain(text: Option<&str>) -> Option<Cow<'_, str>> {
    let text = text?;
    let ends = text.as_bytes().first().zip(text.as_bytes().last());
    // Nothing to trim is the rule, and seen at the ends.
    let trimmed = if ends.is_some_and(|(first, last)| first.is_ascii_graphic() && last.is_ascii_graphic()) { text } else { text.trim() };
    (!trimmed.is_empty()).then_some(Cow::Borrowed(trimmed))
}

/// The channel of that name. A send goes out on one: `*` names none.
fn channel_of(name: Option<&str>) -> Result<Option<Channel>, DecodeError> {
    match name.and_then(Channel::parse) {
        Some(Channel::Any) => Err(DecodeError::Malformed),
        channel => Ok(channel),
    }
}

fn says_protobuf(record: &Record<'_>) -> bool {
    let content_type = record.header("content-type").unwrap_or_default();
    record.header("stopgate-format") == Some(b"protobuf")
        || [&b"application/x-protobuf"[..], b"application/protobuf"].iter().any(|known| content_type.starts_with(known))
}

fn from_protobuf<'a>(value: &[u8]) -> Result<OutboundSend<'a>, DecodeError> {
    let request = proto::SendRequest::decode(value).map_err(|_| DecodeError::Malformed)?;
    let named: Result<Vec<_>, _> = request.to.iter().map(|text| Identity::recognise(text)).collect();
    let some = |text: String| (!text.trim().is_empty()).then(|| Cow::Owned(text.trim().to_owned()));
    Ok(OutboundSend {
        business: some(request.business),
        from: some(request.from),
        channel: channel_of(Some(&request.channel))?,
        to: named.ok().and_then(Identities::new).ok_or(DecodeError::NoRecipient)?,
        category: some(request.category),
        template: some(request.template),
        program: some(request.program),
        expires_at: Some(request.expires_at_ms).filter(|&millis| millis != 0).and_then(Timestamp::from_millis),
    })
}

/// `stopgate-to` (may repeat, or list identities with commas), `stopgate-business`, `-channel`, `-from`, `-category`,
/// `-program`, `-template`, `-expires-at`. The value is not looked at.
fn from_headers<'a>(record: &Record<'a>) -> Result<OutboundSend<'a>, DecodeError> {
    let mut named = Vec::new();
    for header in record.headers.iter().filter(|header| header.name == b"stopgate-to") {
        let text = header.value.and_then(|value| std::str::from_utf8(value).ok()).ok_or(DecodeError::NoRecipient)?;
        for part in text.split(',') {
            named.push(Identity::recognise(part).map_err(|_| DecodeError::NoRecipient)?);
        }
    }
    let field = |name: &str| header_field(record, name);
    Ok(OutboundSend {
        business: field("stopgate-business"),
        from: field("stopgate-from"),
        channel: channel_of(field("stopgate-channel").as_deref())?,
        to: Identities::new(named).ok_or(DecodeError::NoRecipient)?,
        category: field("stopgate-category"),
        template: field("stopgate-template"),
        program: field("stopgate-program"),
        expires_at: field("stopgate-expires-at").and_then(|text| when::from_text(&text)),
    })
}

/// The text of the last header of that name; an empty one says nothing.
fn header_field<'a>(record: &Record<'a>, name: &str) -> Option<Cow<'a, str>> {
    let last = record.headers.iter().rev().find(|header| header.name == name.as_bytes())?;
    let text = std::str::from_utf8(last.value?).ok()?;
    (!text.trim().is_empty()).then_some(Cow::Borrowed(text.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Header, TopicName};
    use proptest::prelude::*;

    fn decode(value: Option<&[u8]>, headers: &[(&str, &[u8])]) -> Result<String, DecodeError> {
        let topic: TopicName = "sends".into();
        let headers: Vec<Header<'_>> = headers.iter().map(|(name, value)| Header { name: name.as_bytes(), value: Some(value) }).collect();
        let record = Record { topic: &topic, partition: 0, offset: 0, timestamp_ms: None, key: None, value, headers: &headers };
        let decoder = SendDecoder::new(SendFormat::Auto, &SendPointers::default()).expect("pointers");
        let send = decoder.decode(&record)?;
        let to: Vec<String> = send.to.iter().map(Identity::to_text).collect();
        let channel = send.channel.as_ref().map(Channel::as_str).unwrap_or("-");
        let shown = |text: &Option<Cow<'_, str>>| text.as_deref().unwrap_or("-").to_owned();
        let expires = send.expires_at.map_or("-".to_owned(), |at| at.to_string());
        Ok([
            shown(&send.business),
            shown(&send.from),
            channel.to_owned(),
            to.join(","),
            shown(&send.category),
            shown(&send.program),
            shown(&send.template),
            expires,
        ]
        .join(" "))
    }

    #[track_caller]
    fn check_json(json: &str, expected: Result<&str, DecodeError>) {
        assert_eq!(decode(Some(json.as_bytes()), &[]), expected.map(str::to_owned), "{json}");
    }

    #[test]
    fn json_sends_are_read_at_the_default_pointers() {
        check_json(
            r#"{"id":"s1","business":"acme","channel":"WhatsApp","to":"+5511912345678","from":"+12025550100","category":"MARKETING","program":"news","expires_at":"2026-11-01T10:00:00Z"}"#,
            Ok("acme +12025550100 whatsapp phone:+5511912345678 MARKETING news - 1793527200000ms"),
        );
        check_json(
            r#"{"business":"acme","to":5511912345678,"template":"order_update"}"#,
            Ok("acme - - phone:+5511912345678 - - order_update -"),
        );
        check_json(r#"{"business":"acme","recipient":"US.7001"}"#, Ok("acme - - bsuid:US.7001 - - - -"));
        check_json(r#"{"business":"acme","recipient":"US.7001","to":null}"#, Ok("acme - - bsuid:US.7001 - - - -"));
        check_json(r#"{"business":"acme","recipient":"US.7001","to":"12025550143"}"#, Ok("acme - - phone:+12025550143,bsuid:US.7001 - - - -"));
        check_json(
            r#"{"business":"acme","to":["+12025550143","email:Ada@example.com"]}"#,
            Ok("acme - - phone:+12025550143,email:ada@example.com - - - -"),
        );
    }

    #[test]
    fn a_send_that_names_nobody_who_could_be_looked_up_is_an_error() {
        check_json(r#"{"business":"acme"}"#, Err(DecodeError::NoRecipient));
        check_json(r#"{"business":"acme","to":""}"#, Err(DecodeError::NoRecipient));
        check_json(r#"{"business":"acme","to":["+12025550143","somebody"]}"#, Err(DecodeError::NoRecipient));
        check_json(r#"{"business":"acme","to":true}"#, Err(DecodeError::NoRecipient));
    }

    #[test]
    fn a_field_that_cannot_be_read_is_an_error_and_not_an_absent_field() {
        check_json(r#"{"business":"acme","to":["bsuid:US.1",{"wa_id":"12025550143"}]}"#, Err(DecodeError::NoRecipient));
        check_json(r#"{"business":"acme","to":{"wa_id":"1"},"recipient":"US.1"}"#, Err(DecodeError::NoRecipient));
        check_json(r#"{"business":"acme","to":"+12025550143","program":["news","x"]}"#, Err(DecodeError::Malformed));
        check_json(r#"{"business":"acme","to":"+12025550143","channel":{}}"#, Err(DecodeError::Malformed));
        check_json(r#"{"business":"acme","to":"+12025550143","channel":"*"}"#, Err(DecodeError::Malformed));
        check_json(r#"{"business":" acme ","to":"+12025550143","channel":""}"#, Ok("acme - - phone:+12025550143 - - - -"));
    }

    #[test]
    fn what_is_no_send_at_all_is_an_error() {
        check_json("{", Err(DecodeError::Malformed));
        check_json("\u{0}", Err(DecodeError::Malformed));
        check_json("", Err(DecodeError::EmptyValue));
        assert_eq!(decode(None, &[]), Err(DecodeError::EmptyValue));
        check_json(&"[".repeat(10_000), Err(DecodeError::Malformed));
        assert_eq!(decode(Some(b"\xff\xfe{}"), &[]), Err(DecodeError::Malformed));
    }

    #[test]
    fn protobuf_sends_say_so_in_a_header() {
        let request =
            proto::SendRequest { business: "acme".into(), to: vec!["+12025550143".into()], category: "utility".into(), ..Default::default() };
        let shown = decode(Some(&request.encode_to_vec()), &[("content-type", b"application/x-protobuf")]);
        assert_eq!(shown.as_deref(), Ok("acme - - phone:+12025550143 utility - - -"));
    }

    #[test]
    fn opaque_payloads_are_read_by_their_headers_alone() {
        let headers: &[(&str, &[u8])] =
            &[("stopgate-to", b"+12025550143,bsuid:US.1"), ("stopgate-business", b"acme"), ("stopgate-category", b"utility")];
        let shown = "acme - - phone:+12025550143,bsuid:US.1 utility - - -";
        assert_eq!(decode(Some(b"\xff\x00opaque"), headers).as_deref(), Ok(shown));
        assert_eq!(decode(None, headers).as_deref(), Ok(shown));
    }

    proptest! {
        #[test]
        fn fields_that_are_all_text_are_read_like_any_others(
            fields in prop::collection::vec((0..9_usize, prop::option::of(r#"[ a-zA-Z0-9+:.@é-]{0,12}"#)), 0..12),
        ) {
            let keys = ["business", "channel", "to", "recipient", "from", "category", "program", "template", "expires_at"];
            let field = |(key, value): &(usize, Option<String>)| match value {
                Some(text) => format!("\"{}\":\"{text}\"", keys[*key]),
                None => format!("\"{}\":null", keys[*key]),
            };
            let json = format!("{{{}}}", fields.iter().map(field).collect::<Vec<_>>().join(","));
            let decoder = SendDecoder::new(SendFormat::Json, &SendPointers::default()).expect("pointers");
            let texts = decoder.fields.texts(json.as_bytes()).expect("a plain body");
            prop_assert_eq!(SendDecoder::of_texts(texts), decoder.of_values(json.as_bytes()));
        }

        #[test]
        fn no_bytes_panic(value in prop::collection::vec(any::<u8>(), 0..128), header in prop::collection::vec(any::<u8>(), 0..32)) {
            drop(decode(Some(&value), &[]));
            drop(decode(Some(&value), &[("stopgate-to", &header)]));
            drop(decode(Some(&value), &[("stopgate-format", b"protobuf")]));
        }
    }
}
