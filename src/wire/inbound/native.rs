//! stopgate's own shapes, JSON and protobuf, and what they share with any JSON that a mapping reads.
//!
//! `{"id","business","channel","from","to","text","button","received_at"}`, and `account` and `autoresponse_type`.
//!
//! # Invariants
//!
//! - A message needs a sender, something that tells its business, and a text or a button.
//! - Of several identities the readable ones count; one that nobody can read does not silence the others.
//!
//! Source of the shape: `proto/stopgate/v1/inbound.proto`; `autoresponse_type` is Telnyx's label of a keyword that it
//! has answered.

use super::mapping::{Mapping, Pointers};
use super::{Decoded, InboundFormat, single};
use crate::domain::identity::Identity;
use crate::domain::key::Channel;
use crate::domain::message::{Content, InboundMessage, OwnedBusinessHints, Preference};
use crate::domain::time::Timestamp;
use crate::wire::{DecodeError, proto};
use prost::Message as _;
use std::sync::LazyLock;

/// What a message says of itself, before it is known whether that is enough.
#[derive(Default)]
pub(super) struct Parts {
    pub(super) id: Option<String>,
    pub(super) business: Option<String>,
    pub(super) account: Option<String>,
    pub(super) channel: Option<Channel>,
    pub(super) from: Vec<Identity>,
    pub(super) to: Option<String>,
    pub(super) text: Option<String>,
    pub(super) button_payload: Option<String>,
    pub(super) button_title: Option<String>,
    pub(super) received_at: Option<Timestamp>,
    /// The provider's label of a keyword that it has answered itself.
    pub(super) autoresponse: Option<String>,
}

impl Parts {
    /// The message, if its parts are enough for one.
    pub(super) fn assemble(self, default_channel: &Channel) -> Result<Decoded, DecodeError> {
        let sender = super::sender(self.from)?;
        if self.to.is_none() && self.business.is_none() && self.account.is_none() {
            return Err(DecodeError::NoBusiness);
        }
        let content = match (self.button_payload, self.button_title, self.text) {
            (None, None, Some(text)) => super::said(text, false, false),
            (None, None, None) => {
                let label = self.autoresponse.as_deref().and_then(label).ok_or(DecodeError::NoContent)?;
                Content::Preference(label)
            }
            // Beside a button, the text is the words on it.
            (payload, title, text) => Content::Button { payload, title: title.or(text) },
        };
        let channel = self.channel.unwrap_or_else(|| match sender.first() {
            Identity::Email(_) => Channel::Email,
            Identity::Phone(_) | Identity::Bsuid(_) | Identity::Ext(_) | Identity::Hash(_) => default_channel.clone(),
        });
        Ok(single(InboundMessage {
            index: 0,
            business: OwnedBusinessHints { number: self.to, number_id: None, account: self.account, named: self.business },
            channel,
            sender,
            provider_message_id: self.id,
            occurred_at: self.received_at,
            content,
            confirmed_by_provider: self.autoresponse.is_some(),
        }))
    }
}

/// What the provider understood, where it passes on no words.
fn label(autoresponse: &str) -> Option<Preference> {
    let is = |known: [&str; 3]| known.iter().any(|known| autoresponse.eq_ignore_ascii_case(known));
    if is(["opt_out", "optout", "stop"]) {
        Some(Preference::Stop)
    } else if is(["opt_in", "optin", "start"]) {
        Some(Preference::Resume)
    } else if is(["help", "info", "help_info"]) {
        Some(Preference::Help)
    } else {
        None
    }
}

/// The receiving number or address without the kind that typed identities begin with.
pub(super) fn untyped(address: &str) -> Option<String> {
    let address = address.trim();
    let kinds = ["phone:", "email:", "ext:", "bsuid:"];
    let address = kinds.iter().find_map(|kind| address.strip_prefix(kind)).unwrap_or(address);
    (!address.is_empty()).then(|| address.to_owned())
}

/// The pointers of the native JSON.
static NATIVE: LazyLock<Mapping> = LazyLock::new(|| {
    let one = |pointer: &str| vec![pointer.to_owned()];
    let pointers = Pointers {
        id: one("/id"),
        business: one("/business"),
        account: one("/account"),
        channel: one("/channel"),
        from: one("/from"),
        to: one("/to"),
        text: one("/text"),
        // A button that is a string is both: nobody can tell whether it is the value or the words.
        button_payload: vec!["/button/payload".to_owned(), "/button".to_owned()],
        button_title: vec!["/button/title".to_owned(), "/button".to_owned()],
        received_at: one("/received_at"),
        autoresponse: one("/autoresponse_type"),
    };
    Mapping::compile(&pointers).expect("constant pointers") // each begins with a slash and none holds a tilde
});

/// Reads native JSON.
pub(super) fn from_json(json: &[u8], format: &InboundFormat) -> Result<Decoded, DecodeError> {
    NATIVE.read(json, format)
}

/// Reads a `stopgate.v1.InboundMessage`.
pub(super) fn from_protobuf(bytes: &[u8], format: &InboundFormat) -> Result<Decoded, DecodeError> {
    let message = proto::InboundMessage::decode(bytes).map_err(|_| DecodeError::Malformed)?;
    let given = |text: String| (!text.is_empty()).then_some(text);
    let (button_payload, button_title) = match message.button {
        Some(button) => (given(button.payload), given(button.title)),
        None => (None, None),
    };
    let parts = Parts {
        id: given(message.id),
        business: given(message.business),
        account: given(message.account),
        channel: Channel::parse(&message.channel),
        from: message.from.iter().filter_map(|from| Identity::recognise(from).ok()).collect(),
        to: untyped(&message.to),
        text: given(message.text),
        button_payload,
        button_title,
        received_at: Some(message.received_at_ms).filter(|&millis| millis > 0).and_then(Timestamp::from_millis),
        autoresponse: None,
    };
    parts.assemble(&format.default_channel)
}
