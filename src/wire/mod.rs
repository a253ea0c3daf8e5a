//! Bytes ↔ domain: each function here is a function of its bytes alone.
//!
//! What is absent: Kafka, clocks, configuration files, logs. An error names a kind, never a content.

pub mod consent;
pub mod consent_fields;
pub mod fields;
mod flat;
pub mod guidance;
pub mod inbound;
pub mod lexicon;
pub mod list;
pub mod partition;
pub mod rules;
pub mod send;
pub mod snapshot;
pub mod when;

/// The protobuf types of `proto/stopgate/v1`, generated when the crate is built.
#[allow(missing_docs, clippy::all, unreachable_pub)]
pub mod proto {
    include!(concat!(env!("OUT_DIR"), "/stopgate.v1.rs"));
}

/// Why a record cannot be read. The words are the `stopgate-reason` of dead letters and a metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DecodeError {
    /// No value, or an empty one.
    EmptyValue,
    /// The bytes are not of the format that was announced or recognised: broken JSON, protobuf, form or framing.
    Malformed,
    /// The value ends within its schema-registry frame.
    TruncatedFrame,
    /// Well-formed, but of no shape that an adapter knows.
    UnknownShape,
    /// A message that names no sender.
    NoSender,
    /// A message or send whose business cannot be told.
    NoBusiness,
    /// A send of a business that the operator's list does not hold.
    UnlistedBusiness,
    /// A send without a recipient that could be looked up.
    NoRecipient,
    /// A send that is not exempt, on a topic for exempt sends only.
    NotExempt,
    /// A message without text, button or anything else that could be read.
    NoContent,
    /// Larger, with what has to be added, than its output topic takes.
    TooLarge,
}

impl DecodeError {
    /// The word in headers, metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::EmptyValue => "empty-value",
            Self::Malformed => "malformed",
            Self::TruncatedFrame => "truncated-frame",
            Self::UnknownShape => "unknown-shape",
            Self::NoSender => "no-sender",
            Self::NoBusiness => "no-business",
            Self::UnlistedBusiness => "unlisted-business",
            Self::NoRecipient => "no-recipient",
            Self::NotExempt => "not-exempt",
            Self::NoContent => "no-content",
            Self::TooLarge => "too-large",
        }
    }
}
