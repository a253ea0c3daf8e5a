//! YCloud's webhook events: one event a body.
//!
//! # Invariants
//!
//! - Only payloads whose shape is documented act: inbound WhatsApp and SMS messages, marketing preferences, and sends
//!   that WhatsApp refused. Every other event (echoes, history, contacts, templates) is readable and says nothing.
//! - `contact.unsubscribe.*` says nothing either: it names no account, number or channel, so nobody can tell whose
//!   messages the person does not want.
//!
//! Source of the shape: YCloud's webhook reference.

use super::json::{Field, List, Object};
use super::whatsapp::{self, ErrorCode, phone_or_user_id, user_id};
use super::{Decoded, single};
use crate::domain::identity::{Identities, Identity};
use crate::domain::key::Channel;
use crate::domain::message::{Content, InboundMessage, OwnedBusinessHints};
use crate::wire::DecodeError;
use serde::Deserialize;

#[derive(Debug, Deserialize)]
struct Event<'a> {
    #[serde(borrow, default)]
    id: Field<'a>,
    #[serde(borrow, default, rename = "type")]
    kind: Field<'a>,
    #[serde(borrow, default, rename = "createTime")]
    create_time: Field<'a>,
    #[serde(borrow, default, rename = "whatsappInboundMessage")]
    inbound: Object<whatsapp::Message<'a>>,
    #[serde(borrow, default, rename = "whatsappUserPreference")]
    preference: Object<UserPreference<'a>>,
    #[serde(borrow, default, rename = "whatsappMessage")]
    outbound: Object<OutboundMessage<'a>>,
    #[serde(borrow, default, rename = "smsInbound")]
    sms: Object<Sms<'a>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct UserPreference<'a> {
    #[serde(borrow, default)]
    waba_id: Field<'a>,
    #[serde(borrow, default)]
    business_phone_number: Field<'a>,
    #[serde(borrow, default)]
    business_phone_id: Field<'a>,
    #[serde(borrow, default)]
    contact_phone_number: Field<'a>,
    #[serde(borrow, default)]
    user_id: Field<'a>,
    #[serde(borrow, default)]
    parent_user_id: Field<'a>,
    #[serde(borrow, default)]
    category: Field<'a>,
    #[serde(borrow, default)]
    value: Field<'a>,
    #[serde(borrow, default)]
    timestamp: Field<'a>,
}

/// What became of a send.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct OutboundMessage<'a> {
    #[serde(borrow, default)]
    id: Field<'a>,
    #[serde(borrow, default)]
    waba_id: Field<'a>,
    #[serde(borrow, default)]
    from: Field<'a>,
    #[serde(borrow, default)]
    to: Field<'a>,
    #[serde(borrow, default)]
    recipient_user_id: Field<'a>,
    #[serde(borrow, default)]
    parent_recipient_user_id: Field<'a>,
    #[serde(borrow, default)]
    error_code: Field<'a>,
    #[serde(borrow, default)]
    errors: List<ErrorCode<'a>>,
    #[serde(borrow, default)]
    whatsapp_api_error: Object<ErrorCode<'a>>,
    #[serde(borrow, default)]
    update_time: Field<'a>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Sms<'a> {
    #[serde(borrow, default)]
    id: Field<'a>,
    #[serde(borrow, default)]
    from: Field<'a>,
    #[serde(borrow, default)]
    to: Field<'a>,
    #[serde(borrow, default)]
    text: Field<'a>,
    #[serde(borrow, default)]
    send_time: Field<'a>,
}

/// Reads an event.
pub(super) fn read(json: &[u8]) -> Result<Decoded, DecodeError> {
    let event: Event<'_> = super::json::read(json)?;
    let message = if let Object(Some(message)) = &event.inbound {
        from_whatsapp(message)?
    } else if let Object(Some(preference)) = &event.preference {
        Some(from_preference(preference, &event)?)
    } else if let Object(Some(sms)) = &event.sms {
        Some(from_sms(sms)?)
    } else if let Object(Some(outbound)) = &event.outbound {
        from_outbound(outbound)?
    } else if event.kind.is("whatsapp.inbound_message.received") || event.kind.is("sms.inbound.received") {
        return Err(DecodeError::NoContent);
    } else if event.kind.text().is_some() {
        None
    } else {
        return Err(DecodeError::UnknownShape);
    };
    Ok(message.map(single).unwrap_or_default())
}

fn from_whatsapp(message: &whatsapp::Message<'_>) -> Result<Option<InboundMessage>, DecodeError> {
    let senders = message.senders();
    let content = match message.content()? {
        Content::Nothing if senders.is_empty() && message.is_system() => return Ok(None),
        content => content,
    };
    let business =
        OwnedBusinessHints { number: message.ycloud_to.owned(), number_id: None, account: message.ycloud_account.owned(), named: None };
    Ok(Some(InboundMessage {
        // WhatsApp's own id, which other tools know too.
        provider_message_id: message.ycloud_wamid.owned().or_else(|| message.id.owned()),
        occurred_at: message.ycloud_send_time.time().or_else(|| message.timestamp.time()),
        ..event(Channel::Whatsapp, business, super::sender(senders)?, content)
    }))
}

fn from_preference(preference: &UserPreference<'_>, envelope: &Event<'_>) -> Result<InboundMessage, DecodeError> {
    let mut person: Vec<Identity> = phone_or_user_id(&preference.contact_phone_number).into_iter().collect();
    person.extend(user_id(&preference.user_id));
    person.extend(user_id(&preference.parent_user_id));
    let sender = super::sender(person)?;
    let business = OwnedBusinessHints {
        number: preference.business_phone_number.owned(),
        number_id: preference.business_phone_id.owned(),
        account: preference.waba_id.owned(),
        named: None,
    };
    Ok(InboundMessage {
        provider_message_id: envelope.id.owned(),
        occurred_at: preference.timestamp.time().or_else(|| envelope.create_time.time()),
        ..event(Channel::Whatsapp, business, sender, whatsapp::preference(&preference.category, &preference.value))
    })
}

fn from_sms(sms: &Sms<'_>) -> Result<InboundMessage, DecodeError> {
    let sender = super::sender(phone_or_user_id(&sms.from).into_iter().collect())?;
    let text = sms.text.words().ok_or(DecodeError::NoContent)?;
    let business = OwnedBusinessHints { number: sms.to.owned(), ..OwnedBusinessHints::default() };
    Ok(InboundMessage {
        provider_message_id: sms.id.owned(),
        occurred_at: sms.send_time.time(),
        ..event(Channel::Sms, business, sender, super::said(text, false, false))
    })
}

fn from_outbound(message: &OutboundMessage<'_>) -> Result<Option<InboundMessage>, DecodeError> {
    let has_code = |code: &Field<'_>| code.text().is_some_and(|code| code.parse() == Ok(whatsapp::OPTED_OUT_CODE));
    let refused = has_code(&message.error_code)
        || message.whatsapp_api_error.0.as_ref().is_some_and(|error| has_code(&error.code))
        || whatsapp::is_opted_out(&message.errors);
    let mut recipient: Vec<Identity> = phone_or_user_id(&message.to).into_iter().collect();
    recipient.extend(user_id(&message.recipient_user_id));
    recipient.extend(user_id(&message.parent_recipient_user_id));
    let Some(sender) = Identities::new(recipient) else {
        return if refused { Err(DecodeError::NoSender) } else { Ok(None) };
    };
    let content = if refused { Content::ProviderOptOut } else { Content::Nothing };
    let business = OwnedBusinessHints { number: message.from.owned(), account: message.waba_id.owned(), ..Default::default() };
    Ok(Some(InboundMessage {
        provider_message_id: message.id.owned().map(|id| super::synthetic_id("status", [&*id])).filter(|_| refused),
        occurred_at: message.update_time.time(),
        ..event(Channel::Whatsapp, business, sender, content)
    }))
}

fn event(channel: Channel, business: OwnedBusinessHints, sender: Identities, content: Content) -> InboundMessage {
    InboundMessage { index: 0, business, channel, sender, provider_message_id: None, occurred_at: None, content, confirmed_by_provider: false }
}
