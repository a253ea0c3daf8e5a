//! The program's protobuf records as the tests read and write them: by field number, apart from the generated types,
//! so that a renumbered field is noticed. Only the fields that the tests need; others are skipped on reading.

use super::kafka::Received;

#[derive(Clone, PartialEq, prost::Message)]
pub struct ConsentRecord {
    /// 1 opted out, 2 opted in.
    #[prost(int32, tag = "1")]
    pub state: i32,
    #[prost(int64, tag = "2")]
    pub occurred_at_ms: i64,
    #[prost(int32, tag = "3")]
    pub cause: i32,
    #[prost(message, optional, tag = "4")]
    pub evidence: Option<Evidence>,
    #[prost(bool, tag = "5")]
    pub changed_state: bool,
}

pub const OPTED_OUT: i32 = 1;
pub const OPTED_IN: i32 = 2;

#[derive(Clone, PartialEq, prost::Message)]
pub struct Evidence {
    #[prost(message, optional, tag = "1")]
    pub source: Option<SourceCoordinates>,
    #[prost(string, tag = "2")]
    pub provider_message_id: String,
    #[prost(string, tag = "3")]
    pub receiving_number: String,
    #[prost(string, tag = "4")]
    pub rule: String,
    #[prost(string, tag = "7")]
    pub lexicon_version: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct SourceCoordinates {
    #[prost(string, tag = "1")]
    pub topic: String,
    #[prost(uint32, tag = "2")]
    pub partition: u32,
    #[prost(uint64, tag = "3")]
    pub offset: u64,
    #[prost(uint32, tag = "4")]
    pub index: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct FeedbackRecord {
    #[prost(string, tag = "4")]
    pub from: String,
    #[prost(string, tag = "5")]
    pub reason: String,
    #[prost(string, tag = "6")]
    pub text: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct DecisionBlock {
    #[prost(string, tag = "1")]
    pub topic: String,
    #[prost(uint32, tag = "2")]
    pub partition: u32,
    #[prost(uint64, tag = "3")]
    pub first_offset: u64,
    #[prost(uint64, tag = "4")]
    pub end_offset: u64,
    #[prost(uint64, repeated, tag = "5")]
    pub as_of: Vec<u64>,
    #[prost(string, tag = "6")]
    pub rules_version: String,
    #[prost(message, repeated, tag = "7")]
    pub allowed: Vec<ReasonCount>,
    #[prost(message, repeated, tag = "8")]
    pub suppressed: Vec<ReasonCount>,
    #[prost(message, repeated, tag = "9")]
    pub dead_letters: Vec<ReasonCount>,
    #[prost(int64, tag = "10")]
    pub expired_as_of_ms: i64,
    #[prost(string, tag = "11")]
    pub opt_outs_topic_id: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ReasonCount {
    #[prost(string, tag = "1")]
    pub reason: String,
    #[prost(uint64, tag = "2")]
    pub count: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ReplyRequest {
    #[prost(string, tag = "1")]
    pub id: String,
    /// 1 opt-out confirmed, 2 opt-in confirmed, 3 help.
    #[prost(int32, tag = "2")]
    pub kind: i32,
    #[prost(string, tag = "3")]
    pub business: String,
    #[prost(string, tag = "5")]
    pub to: String,
    #[prost(string, tag = "7")]
    pub locale: String,
    #[prost(string, tag = "8")]
    pub text: String,
    #[prost(string, tag = "9")]
    pub in_reply_to: String,
    #[prost(int64, tag = "10")]
    pub expires_at_ms: i64,
    #[prost(string, tag = "11")]
    pub superseded: String,
    #[prost(string, tag = "12")]
    pub source: String,
}

pub const OPT_OUT_CONFIRMATION: i32 = 1;
pub const OPT_IN_CONFIRMATION: i32 = 2;

/// Reads the value of a record.
#[track_caller]
pub fn decode<M: prost::Message + Default>(record: &Received) -> M {
    M::decode(record.value.as_deref().unwrap_or_default())
        .unwrap_or_else(|error| panic!("an unreadable value at {} {}: {error}", record.topic, record.position()))
}
