//! What a person sent, or a provider told about them, as the adapters understand it.

use super::business::BusinessHints;
use super::identity::Identities;
use super::key::Channel;
use super::time::Timestamp;

/// One message of one person to one business.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InboundMessage {
    /// Its place within a body that holds several; 0 where the body is one message.
    pub index: u32,
    pub business: OwnedBusinessHints,
    pub channel: Channel,
    /// Everybody this message names as its sender: phone, business-scoped ids.
    pub sender: Identities,
    /// The provider's id of the message: equal for redeliveries.
    pub provider_message_id: Option<String>,
    /// When the person acted, as the message says it; `None` where it says nothing or nonsense.
    pub occurred_at: Option<Timestamp>,
    pub content: Content,
    /// The provider has consumed the keyword and answered already: no confirmation is due.
    pub confirmed_by_provider: bool,
}

/// [`BusinessHints`] that own their texts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnedBusinessHints {
    /// The number or sender id the person wrote to.
    pub number: Option<String>,
    /// The provider's id of that number.
    pub number_id: Option<String>,
    /// The provider account that received the message.
    pub account: Option<String>,
    /// The business as the record itself names it.
    pub named: Option<String>,
}

impl OwnedBusinessHints {
    /// A borrowed view of the hints.
    pub fn as_hints(&self) -> BusinessHints<'_> {
        BusinessHints {
            number: self.number.as_deref(),
            number_id: self.number_id.as_deref(),
            account: self.account.as_deref(),
            named: self.named.as_deref(),
        }
    }
}

/// What the message holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// Words that the person wrote: a text, a caption, the new text of an edit.
    Text {
        text: String,
        /// An edit may ask to stop; it never opts in.
        edited: bool,
        /// Passed on from another chat: not the person's own words.
        forwarded: bool,
    },
    /// A choice that the person tapped: template quick reply, interactive button, list row.
    Button { payload: Option<String>, title: Option<String> },
    /// The channel's or the provider's own control says so: WhatsApp's marketing preference, a flow's answer, a
    /// provider's opt-out label.
    Preference(Preference),
    /// The provider refused a send because this person has opted out there (WhatsApp 131050).
    ProviderOptOut,
    /// The person is known under other identities now. `sender` holds the old ones.
    IdentityChange { now: Identities },
    /// Readable, and nothing that asks for anything: an image, a reaction, a delivery receipt, an echo of the
    /// business's own words, imported history.
    Nothing,
}

/// A choice made in a control rather than in words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preference {
    /// Stop marketing.
    Stop,
    /// Resume marketing.
    Resume,
    /// The provider recognised a request for help and answered it.
    Help,
}
