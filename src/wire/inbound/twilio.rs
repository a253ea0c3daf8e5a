//! Twilio: the form of its messaging webhook, and the CloudEvents of its event streams.
//!
//! # Invariants
//!
//! - The prefix of an address (`whatsapp:`, `rcs:`, `messenger:`) tells the channel; without one it is SMS.
//! - A label that Twilio puts on a keyword (`OptOutType`) counts before the text: Twilio has acted and answered.
//! - In a delivery receipt `From` is the business: only the recipient is ever taken for a person, and nothing acts but
//!   error 21610, with which Twilio refuses a send to somebody who has opted out there.
//!
//! Source of the shape: Twilio's messaging webhook parameters, and
//! `com.twilio.messaging.inbound-message.received`.

use super::{Decoded, single};
use crate::domain::identity::Identity;
use crate::domain::key::Channel;
use crate::domain::message::{Content, InboundMessage, OwnedBusinessHints, Preference};
use crate::domain::phone::Phone;
use crate::domain::time::Timestamp;
use crate::wire::DecodeError;
use crate::wire::fields::{FieldSet, FieldValue};
use crate::wire::when;
use std::borrow::Cow;
use std::sync::LazyLock;

/// The type of the event that holds an inbound message.
pub(super) const INBOUND_EVENT: &str = "com.twilio.messaging.inbound-message.received";

/// The error code of a send to somebody who has opted out at Twilio.
const OPTED_OUT_CODE: &str = "21610";

/// One message, or what became of one, under the names of the form.
#[derive(Default)]
struct Sms<'a> {
    sid: Option<Cow<'a, str>>,
    account: Option<Cow<'a, str>>,
    service: Option<Cow<'a, str>>,
    from: Option<Cow<'a, str>>,
    to: Option<Cow<'a, str>>,
    body: Option<Cow<'a, str>>,
    wa_id: Option<Cow<'a, str>>,
    user_id: Option<Cow<'a, str>>,
    opt_out_type: Option<Cow<'a, str>>,
    button_text: Option<Cow<'a, str>>,
    button_payload: Option<Cow<'a, str>>,
    forwarded: bool,
    /// Of a delivery receipt; inbound messages have none, or `received`.
    status: Option<Cow<'a, str>>,
    error_code: Option<Cow<'a, str>>,
    time: Option<Timestamp>,
}

/// Whether the bytes are a form with a name that only Twilio's messages have.
pub(super) fn is_form(bytes: &[u8]) -> bool {
    form_urlencoded::parse(bytes)
        .any(|(name, value)| !value.is_empty() && matches!(&*name, "MessageSid" | "SmsMessageSid" | "SmsSid" | "AccountSid" | "From" | "Body"))
}

/// Reads a form. Bytes that are not UTF-8 read as replacement characters.
pub(super) fn from_form(bytes: &[u8]) -> Result<Decoded, DecodeError> {
    if !bytes.contains(&b'=') {
        return Err(DecodeError::Malformed);
    }
    let mut sms = Sms::default();
    for (name, value) in form_urlencoded::parse(bytes).filter(|(_, value)| !value.is_empty()) {
        match &*name {
            "MessageSid" => sms.sid = Some(value),
            // Older names of the same id.
            "SmsMessageSid" | "SmsSid" => sms.sid = sms.sid.or(Some(value)),
            "AccountSid" => sms.account = Some(value),
            "MessagingServiceSid" => sms.service = Some(value),
            "From" => sms.from = Some(value),
            "To" => sms.to = Some(value),
            "Body" => sms.body = Some(value),
            "WaId" => sms.wa_id = Some(value),
            "ExternalUserId" => sms.user_id = Some(value),
            "OptOutType" => sms.opt_out_type = Some(value),
            "ButtonText" => sms.button_text = Some(value),
            "ButtonPayload" => sms.button_payload = Some(value),
            "Forwarded" | "FrequentlyForwarded" => sms.forwarded |= value.eq_ignore_ascii_case("true"),
            "MessageStatus" => sms.status = Some(value),
            "SmsStatus" => sms.status = sms.status.or(Some(value)),
            "ErrorCode" => sms.error_code = Some(value),
            _ => {}
        }
    }
    sms.read()
}

/// The members of the event's data, in the order in which [`from_values`] takes them.
const DATA: [&str; 13] = [
    "messageSid", "accountSid", "messagingServiceSid", "from", "to", "body", "waId", "externalUserId", "optOutType", "buttonText",
    "buttonPayload", "forwarded", "timestamp",
];

/// The data at the top level.
static DATA_FIELDS: LazyLock<FieldSet> = LazyLock::new(|| fields("", &[]));

/// The data within its event, and the event's own type and time.
static EVENT_FIELDS: LazyLock<FieldSet> = LazyLock::new(|| fields("/data", &["/type", "/time"]));

fn fields(prefix: &str, more: &[&str]) -> FieldSet {
    let data = DATA.iter().map(|name| format!("{prefix}/{name}"));
    let pointers: Vec<String> = data.chain(more.iter().map(|&pointer| pointer.to_owned())).collect();
    FieldSet::compile(&pointers).expect("constant pointers") // each begins with a slash and none holds a tilde
}

/// Reads the event's data on its own, as a CloudEvent in binary mode holds it.
pub(super) fn from_data(json: &[u8]) -> Result<Decoded, DecodeError> {
    let mut values = Vec::new();
    DATA_FIELDS.extract(json, &mut values).map_err(|_| DecodeError::Malformed)?;
    from_values(values, None)
}

/// Reads a whole event; `None` where it is not Twilio's, or no JSON.
pub(super) fn from_event(json: &[u8]) -> Option<Result<Decoded, DecodeError>> {
    let mut values = Vec::new();
    EVENT_FIELDS.extract(json, &mut values).ok()?;
    let time = values.pop()?;
    let kind = values.pop()??;
    (kind.as_text() == Some(INBOUND_EVENT)).then(|| from_values(values, time))
}

fn from_values(values: Vec<Option<FieldValue<'_>>>, event_time: Option<FieldValue<'_>>) -> Result<Decoded, DecodeError> {
    let mut values = values.into_iter();
    let mut next = || values.next().flatten();
    let text = |value: Option<FieldValue<'_>>| value?.to_text().filter(|text| !text.is_empty()).map(|text| text.into_owned().into());
    let sms = Sms {
        sid: text(next()),
        account: text(next()),
        service: text(next()),
        from: text(next()),
        to: text(next()),
        body: text(next()),
        wa_id: text(next()),
        user_id: text(next()),
        opt_out_type: text(next()),
        button_text: text(next()),
        button_payload: text(next()),
        forwarded: matches!(next(), Some(FieldValue::Bool(true))),
        status: None,
        error_code: None,
        time: next().as_ref().or(event_time.as_ref()).and_then(when::parse_time),
    };
    sms.read()
}

impl Sms<'_> {
    fn read(self) -> Result<Decoded, DecodeError> {
        let is_receipt = self.body.is_none() && self.status.as_deref().is_some_and(|status| !status.starts_with("receiv"));
        let (person, own) = if is_receipt { (&self.to, &self.from) } else { (&self.from, &self.to) };
        let (channel, person) = address(person.as_deref().unwrap_or_default());
        let mut identities = Vec::with_capacity(3);
        identities.extend(identity(&channel, person));
        if !is_receipt {
            identities.extend(self.wa_id.as_deref().and_then(Phone::parse).map(Identity::Phone));
            identities.extend(self.user_id.as_deref().and_then(Identity::bsuid));
        }
        let is_refused = is_receipt && self.error_code.as_deref() == Some(OPTED_OUT_CODE);
        if is_receipt && !is_refused && identities.is_empty() {
            return Ok(Decoded::default());
        }
        let sender = super::sender(identities)?;
        let business = OwnedBusinessHints {
            number: own.as_deref().map(|own| address(own).1.to_owned()).filter(|number| !number.is_empty()),
            number_id: self.service.as_deref().map(str::to_owned),
            account: self.account.as_deref().map(str::to_owned),
            named: None,
        };
        let label = self.opt_out_type.as_deref().and_then(label);
        let content = if is_refused {
            Content::ProviderOptOut
        } else if is_receipt {
            Content::Nothing
        } else if let Some(label) = label {
            Content::Preference(label)
        } else if self.button_payload.is_some() || self.button_text.is_some() {
            Content::Button { payload: self.button_payload.map(Cow::into_owned), title: self.button_text.map(Cow::into_owned) }
        } else if let Some(text) = self.body {
            super::said(text.into_owned(), false, self.forwarded)
        } else {
            Content::Nothing
        };
        let provider_message_id = if is_refused {
            // The id of the send is not the id of what the person did.
            self.sid.map(|sid| super::synthetic_id("status", [&*sid]))
        } else {
            self.sid.map(Cow::into_owned)
        };
        Ok(single(InboundMessage {
            index: 0,
            business,
            channel,
            sender,
            provider_message_id,
            occurred_at: self.time,
            content,
            confirmed_by_provider: label.is_some() && !is_receipt,
        }))
    }
}

/// What Twilio understood and answered.
fn label(opt_out_type: &str) -> Option<Preference> {
    let is = |known: &str| opt_out_type.eq_ignore_ascii_case(known);
    if is("STOP") {
        Some(Preference::Stop)
    } else if is("START") {
        Some(Preference::Resume)
    } else if is("HELP") {
        Some(Preference::Help)
    } else {
        None
    }
}

/// The channel that an address tells, and the address without its prefix.
fn address(address: &str) -> (Channel, &str) {
    let address = address.trim();
    match address.split_once(':') {
        Some((prefix, rest)) => (Channel::parse(prefix).unwrap_or(Channel::Sms), rest.trim()),
        None => (Channel::Sms, address),
    }
}

/// Who an address names: a phone, on WhatsApp perhaps a business-scoped id, on channels of their own an id of theirs,
/// which may be all digits and yet no number.
fn identity(channel: &Channel, address: &str) -> Option<Identity> {
    match channel {
        Channel::Whatsapp => Phone::parse(address).map(Identity::Phone).or_else(|| Identity::bsuid(address)),
        Channel::Sms | Channel::Voice | Channel::Any => Phone::parse(address).map(Identity::Phone),
        Channel::Email => Identity::email(address),
        Channel::Other(_) => Identity::parse(&format!("ext:{address}")).ok(),
    }
}
