//! What the measurements read: opt-outs, sends and messages, made from a counter and a seed, so that two runs of the
//! same size measure the same work.

use crate::domain::identity::Identity;
use crate::domain::key::{Channel, ConsentKey, Subject};
use crate::kafka::producer::{IdempotentProducer, Limits};
use crate::kafka::{Connection, EdgeError};
use crate::record::{Produce, TopicName};
use crate::wire::consent::{encode_key, encode_value};
use crate::wire::partition::partition_for;
use crate::wire::proto;
use std::time::Duration;

/// The business of everything that is filled.
pub(super) const BUSINESS: &str = "acme";
/// One number in so many is opted out.
const OPTED_OUT_EVERY: u64 = 10;
/// Numbers of one area code: eight digits.
const NUMBERS_OF_AN_AREA: u64 = 100_000_000;
/// When everything that is filled happened: 2026-11-01T10:00:00Z.
const HAPPENED_AT_MS: i64 = 1_793_527_200_000;
/// A send of this size is what campaign systems commonly write.
const SEND_BYTES: usize = 280;
/// How often acknowledgements are taken, in records.
const SERVE_EVERY: u64 = 1024;

/// The phone of a number: `+55119` and eight digits; beyond an area's last number, of the next area.
pub(super) fn phone(number: u64) -> String {
    format!("+55{}9{:08}", 11 + number / NUMBERS_OF_AN_AREA, number % NUMBERS_OF_AN_AREA)
}

/// The numbers among which so many opt-outs are one in ten.
pub(super) fn range_of(opt_outs: u64) -> u64 {
    opt_outs.max(1) * OPTED_OUT_EVERY
}

/// Numbers that look random and are the same each time (SplitMix64).
pub(super) struct Numbers(u64);

impl Numbers {
    /// Begins at a seed.
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next one below `bound`.
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound.max(1)
    }
}

/// Writes many records and waits for the last acknowledgement.
struct Filler<'p> {
    producer: IdempotentProducer,
    sent: u64,
    progress: &'p dyn Fn(u64),
}

impl<'p> Filler<'p> {
    fn new(connection: &Connection, progress: &'p dyn Fn(u64)) -> Result<Self, EdgeError> {
        Ok(Self { producer: IdempotentProducer::new(connection, Limits::DEFAULT)?, sent: 0, progress })
    }

    fn send(&mut self, topic: &TopicName, partition: u32, key: &[u8], value: Vec<u8>) -> Result<(), EdgeError> {
        let produce = Produce { topic: topic.clone(), partition, key: Some(key.to_vec()), value: Some(value), headers: Vec::new() };
        self.producer.send(&produce, 0)?;
        self.sent += 1;
        if self.sent.is_multiple_of(SERVE_EVERY) {
            self.producer.acks(Duration::ZERO)?;
            (self.progress)(self.sent);
        }
        Ok(())
    }

    fn finish(self) -> Result<(), EdgeError> {
        while !self.producer.is_idle() {
            self.producer.acks(Duration::from_millis(1))?;
        }
        (self.progress)(self.sent);
        Ok(())
    }
}

/// Writes so many opt-outs: every tenth number, channel `whatsapp`, subject `marketing`.
pub(super) fn opt_outs(
    connection: &Connection,
    topic: &TopicName,
    partitions: u32,
    count: u64,
    progress: &dyn Fn(u64),
) -> Result<(), EdgeError> {
    let mut filler = Filler::new(connection, progress)?;
    for index in 0..count {
        let Ok(identity) = Identity::parse(&phone(index * OPTED_OUT_EVERY)) else { unreachable!("a phone number of our own making") };
        let key = encode_key(&ConsentKey { business: BUSINESS.into(), channel: Channel::Whatsapp, identity, subject: Subject::Marketing });
        let record = proto::ConsentRecord {
            state: proto::ConsentState::OptedOut.into(),
            occurred_at_ms: HAPPENED_AT_MS + index as i64,
            cause: proto::ConsentCause::Keyword.into(),
            evidence: Some(proto::Evidence {
                source: Some(proto::SourceCoordinates { topic: "inbound-messages".into(), partition: 0, offset: index, index: 0 }),
                provider_message_id: format!("wamid.{index:016}"),
                rule: "en.keyword.stop".into(),
                excerpt: "STOP".into(),
                ..proto::Evidence::default()
            }),
            changed_state: true,
            ..proto::ConsentRecord::default()
        };
        filler.send(topic, key.partition(partitions), key.as_bytes(), encode_value(&record))?;
    }
    filler.finish()
}

/// Writes so many sends to random numbers of the range, four of five marketing, as JSON of 280 bytes.
pub(super) fn sends(
    connection: &Connection,
    topic: &TopicName,
    partitions: u32,
    count: u64,
    range: u64,
    progress: &dyn Fn(u64),
) -> Result<(), EdgeError> {
    let mut filler = Filler::new(connection, progress)?;
    let mut numbers = Numbers::new(1);
    for index in 0..count {
        let to = phone(numbers.below(range));
        let value = send(index, &to, if index % 5 == 4 { "utility" } else { "marketing" });
        filler.send(topic, partition_for(to.as_bytes(), partitions), to.as_bytes(), value)?;
    }
    filler.finish()
}

/// One send, filled up to its usual size.
pub(super) fn send(index: u64, to: &str, category: &str) -> Vec<u8> {
    let mut value = format!(
        r#"{{"id":"s{index:012}","business":"{BUSINESS}","channel":"whatsapp","to":"{to}","category":"{category}","campaign":"autumn-2026","template":"offer_30","text":""#
    );
    while value.len() < SEND_BYTES - 2 {
        value.push_str(["Thirty percent off until Sunday. ", "Free delivery on every order. "][value.len() % 2]);
    }
    value.truncate(SEND_BYTES - 2);
    value.push_str(r#""}"#);
    value.into_bytes()
}

/// What people write to a shop; one message in fifty is a STOP.
const ORDINARY: &[&str] = &[
    "ok thanks, see you on monday",
    "What time do you open tomorrow?",
    "please cancel my order 1182",
    "Bom dia, qual o valor do frete?",
    "has my parcel been sent yet? it was due last week",
    "👍",
    "Can I change the delivery address to my office?",
    "¿Tienen esta camisa en talla M?",
];

/// Writes so many messages of people to the business as native JSON.
pub(super) fn messages(
    connection: &Connection,
    topic: &TopicName,
    partitions: u32,
    count: u64,
    progress: &dyn Fn(u64),
) -> Result<(), EdgeError> {
    let mut filler = Filler::new(connection, progress)?;
    for index in 0..count {
        let from = phone(index);
        let text = if index % 50 == 0 { "STOP" } else { ORDINARY[index as usize % ORDINARY.len()] };
        filler.send(topic, partition_for(from.as_bytes(), partitions), from.as_bytes(), message(index, &from, text))?;
    }
    filler.finish()
}

/// One message.
pub(super) fn message(index: u64, from: &str, text: &str) -> Vec<u8> {
    let value = serde_json::json!({
        "id": format!("m{index:012}"), "business": BUSINESS, "channel": "whatsapp", "from": from, "to": "+551130000000", "text": text
    });
    value.to_string().into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tenth_number_is_opted_out_and_numbers_beyond_an_area_stay_phone_numbers() {
        assert_eq!(phone(0), "+5511900000000");
        assert_eq!(phone(9_999_990), "+5511909999990");
        assert_eq!(phone(NUMBERS_OF_AN_AREA), "+5512900000000");
        assert!(Identity::parse(&phone(NUMBERS_OF_AN_AREA * 3 + 7)).is_ok());
        assert_eq!(range_of(1_000_000), 10_000_000);
    }

    #[test]
    fn a_send_is_json_of_the_size_that_is_promised() {
        let value = send(7, &phone(30), "marketing");
        assert_eq!(value.len(), SEND_BYTES);
        let json: serde_json::Value = serde_json::from_slice(&value).expect("JSON");
        assert_eq!((json["business"].as_str(), json["to"].as_str()), (Some(BUSINESS), Some("+5511900000030")));
    }

    #[test]
    fn the_same_seed_gives_the_same_numbers() {
        let (mut one, mut other) = (Numbers::new(1), Numbers::new(1));
        let numbers: Vec<u64> = (0..100).map(|_| one.below(10)).collect();
        assert!((0..100).all(|index| other.below(10) == numbers[index]));
        assert!((0..10).all(|number| numbers.contains(&number)));
    }
}
