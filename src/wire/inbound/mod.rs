//! Inbound record bytes → messages.

use super::DecodeError;
use crate::domain::key::Channel;
use crate::domain::message::InboundMessage;
use crate::record::Record;

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
}

/// What the adapters need to know beside the bytes.
#[derive(Clone, Debug)]
pub struct InboundFormat {
    pub format: Format,
    /// The channel of messages that name none and whose identities do not tell it.
    pub default_channel: Channel,
}

/// All that one record held: the messages that could be read and the indices of those that could not.
#[derive(Debug, Default, PartialEq)]
pub struct Decoded {
    pub messages: Vec<InboundMessage>,
    /// Unreadable messages of a body that holds several, by index. The record goes to dead-letters once for each.
    pub failures: Vec<(u32, DecodeError)>,
}

/// Reads a record. `Err` where nothing in it can be read.
pub fn decode(_record: &Record<'_>, _format: &InboundFormat) -> Result<Decoded, DecodeError> {
    Err(DecodeError::UnknownShape)
}
