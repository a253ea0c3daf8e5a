//! Consent keys and records ↔ bytes.
//!
//! Key: `business|channel|identity|subject`, readable with any Kafka tool; `|`, `%` and control characters within a
//! part are percent-encoded. Value: protobuf [`proto::ConsentRecord`]. A readable key with an unreadable value counts
//! as an opt-out of that key; an unreadable key is an error that its reader must not step over.

use super::consent_fields::ConsentFields;
use super::partition::partition_for;
use super::proto;
use crate::domain::business::Businesses;
use crate::domain::consent::{Act, ConsentState, Position, Source};
use crate::domain::identity::Identity;
use crate::domain::key::{Channel, ConsentKey, Subject};
use crate::domain::time::Timestamp;
use percent_encoding::{percent_decode_str, percent_encode_byte};
use prost::Message;
use std::collections::BTreeSet;

/// A key on the opt-outs topic that names nobody we could protect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unreadable consent key: expected business|channel|identity|subject")]
pub struct UnreadableKey;

/// A key as bytes, and the prefix that chooses its partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodedKey {
    bytes: String,
    person: String,
}

impl EncodedKey {
    /// The record's key.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.as_bytes()
    }

    /// The key as text.
    pub fn as_str(&self) -> &str {
        &self.bytes
    }

    /// The partition of the record on a topic of that many partitions.
    pub fn partition(&self, partitions: u32) -> u32 {
        partition_for(self.person.as_bytes(), partitions)
    }
}

/// Writes a key.
pub fn encode_key(key: &ConsentKey) -> EncodedKey {
    let (business, channel) = (encode_part(&key.business), encode_part(key.channel.as_str()));
    let (identity, subject) = (encode_part(&key.identity.to_text()), encode_part(&key.subject.to_string()));
    EncodedKey { bytes: format!("{business}|{channel}|{identity}|{subject}"), person: format!("{business}|{identity}") }
}

/// The partitions in which keys of this person may lie, on a topic of that many: under every name of the business and
/// every spelling of the identity.
pub fn partitions_of(businesses: &Businesses, business: &str, identity: &Identity, partitions: u32) -> BTreeSet<u32> {
    let identities = match identity {
        Identity::Phone(phone) => phone.spellings().iter().map(|digits| format!("phone:+{digits}")).collect(),
        Identity::Bsuid(_) | Identity::Email(_) | Identity::Ext(_) | Identity::Hash(_) => vec![encode_part(&identity.to_text())],
    };
    let names = businesses.names_of(business);
    let persons = names.iter().flat_map(|name| identities.iter().map(move |identity| format!("{}|{identity}", encode_part(name))));
    persons.map(|person| partition_for(person.as_bytes(), partitions)).collect()
}

/// Only what would break the key or a terminal is encoded: other alphabets stay readable.
fn encode_part(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for character in text.chars() {
        if matches!(character, '|' | '%') || character.is_control() {
            let mut bytes = [0; 4];
            encoded.extend(character.encode_utf8(&mut bytes).bytes().map(percent_encode_byte));
        } else {
            encoded.push(character);
        }
    }
    encoded
}

/// The four parts of a key as written.
pub fn split_key(bytes: &[u8]) -> Option<[&str; 4]> {
    let mut parts = std::str::from_utf8(bytes).ok()?.split('|');
    let four = [parts.next()?, parts.next()?, parts.next()?, parts.next()?];
    parts.next().is_none().then_some(four)
}

/// Reads a key, resolving the business and the identity as today's lists and tables do: a change of either reaches
/// records written before it.
pub fn decode_key(bytes: &[u8], businesses: &Businesses) -> Result<ConsentKey, UnreadableKey> {
    let [business, channel, identity, subject] = split_key(bytes).ok_or(UnreadableKey)?;
    let part = |text| percent_decode_str(text).decode_utf8().map_err(|_| UnreadableKey);
    let business = part(business)?;
    if business.is_empty() {
        return Err(UnreadableKey);
    }
    Ok(ConsentKey {
        business: businesses.resolve(&business).into(),
        channel: Channel::parse(&part(channel)?).ok_or(UnreadableKey)?,
        identity: Identity::parse(&part(identity)?).map_err(|_| UnreadableKey)?,
        subject: Subject::parse(&part(subject)?).ok_or(UnreadableKey)?,
    })
}

impl From<ConsentState> for proto::ConsentState {
    fn from(state: ConsentState) -> Self {
        match state {
            ConsentState::OptedOut => Self::OptedOut,
            ConsentState::OptedIn => Self::OptedIn,
        }
    }
}

/// A record of the opt-outs topic as the view applies it.
#[derive(Clone, Debug, PartialEq)]
pub enum ConsentChange {
    /// An act, and the provider's id of the message behind it (empty where there was none).
    Act { act: Act, provider_message_id: String },
    /// The value could not be read: an opt-out of its key, at its record's time. Raise an alarm.
    Unreadable(Act),
    /// No value: the key is erased.
    Erasure,
}

/// Reads a value. `recorded_ms` is the record's Kafka timestamp.
pub fn decode_value(value: Option<&[u8]>, recorded_ms: Option<i64>, cause: Position) -> ConsentChange {
    let Some(value) = value else { return ConsentChange::Erasure };
    let Ok(record) = proto::ConsentRecord::decode(value) else { return ConsentChange::Unreadable(unreadable(recorded_ms, cause)) };
    match act_of(&ConsentFields::of(&record), recorded_ms, cause) {
        None => ConsentChange::Unreadable(unreadable(recorded_ms, cause)),
        Some(act) => ConsentChange::Act { act, provider_message_id: record.evidence.unwrap_or_default().provider_message_id },
    }
}

/// The act of a value and the id of its message, without an allocation; `None` where [`decode_value`] is to be asked.
pub fn read_value(value: &[u8], recorded_ms: Option<i64>, cause: Position) -> Option<(Act, &str)> {
    let fields = ConsentFields::read(value)?;
    Some((act_of(&fields, recorded_ms, cause)?, fields.provider_message_id))
}

/// What counts where a value cannot be read: an opt-out at its record's time.
fn unreadable(recorded_ms: Option<i64>, cause: Position) -> Act {
    Act {
        state: ConsentState::OptedOut,
        occurred_at: recorded_ms.and_then(Timestamp::from_millis).unwrap_or(Timestamp::EPOCH),
        source: Source::default(),
        cause,
        changed_state: false,
    }
}

/// The act that the fields tell; `None` where they tell none.
fn act_of(fields: &ConsentFields<'_>, recorded_ms: Option<i64>, cause: Position) -> Option<Act> {
    let state = match proto::ConsentState::try_from(fields.state) {
        Ok(proto::ConsentState::OptedOut) => ConsentState::OptedOut,
        Ok(proto::ConsentState::OptedIn) => ConsentState::OptedIn,
        Ok(proto::ConsentState::Unspecified) | Err(_) => return None,
    };
    let recorded = recorded_ms.and_then(Timestamp::from_millis);
    let said = Some(fields.occurred_at_ms).filter(|&millis| millis != 0);
    let occurred_at = said.map_or(recorded, Timestamp::from_millis)?;
    let occurred_at = match (state, recorded) {
        // Whoever wrote it: an opt-in never counts later than its record.
        (ConsentState::OptedIn, Some(recorded)) => occurred_at.min(recorded),
        (ConsentState::OptedIn, None) | (ConsentState::OptedOut, _) => occurred_at,
    };
    let source = fields.source.map_or_else(Source::default, |at| Source::new(at.topic, at.partition, at.offset, at.index));
    Some(Act { state, occurred_at, source, cause, changed_state: fields.changed_state })
}

/// Writes a value.
pub fn encode_value(record: &proto::ConsentRecord) -> Vec<u8> {
    record.encode_to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::business::Business;
    use proptest::prelude::*;

    fn key(business: &str, channel: &str, identity: &str, subject: &str) -> ConsentKey {
        ConsentKey {
            business: business.into(),
            channel: Channel::parse(channel).expect("a channel"),
            identity: Identity::parse(identity).expect("an identity"),
            subject: Subject::parse(subject).expect("a subject"),
        }
    }

    const HERE: Position = Position { partition: 3, offset: 17 };

    #[test]
    fn keys_are_readable_with_any_tool() {
        let encoded = encode_key(&key("acme", "whatsapp", "+5511912345678", "marketing"));
        assert_eq!(encoded.as_str(), "acme|whatsapp|phone:+5511912345678|marketing");
        assert_eq!(encoded.partition(8), partition_for(b"acme|phone:+5511912345678", 8));
    }

    #[test]
    fn separators_and_controls_within_a_part_are_encoded() {
        let encoded = encode_key(&key("a|b%c\n", "whatsapp", "ext:x|y", "program:é"));
        assert_eq!(encoded.as_str(), "a%7Cb%25c%0A|whatsapp|ext:x%7Cy|program:é");
    }

    #[test]
    fn the_golden_record_keeps_its_bytes() {
        let record = proto::ConsentRecord {
            state: proto::ConsentState::OptedOut.into(),
            occurred_at_ms: 1_793_500_000_000,
            cause: proto::ConsentCause::Keyword.into(),
            evidence: Some(proto::Evidence {
                source: Some(proto::SourceCoordinates { topic: "inbound-messages".into(), partition: 2, offset: 9, index: 1 }),
                provider_message_id: "wamid.EXAMPLE0001".into(),
                rule: "en.keyword.stop".into(),
                ..Default::default()
            }),
            changed_state: true,
            feedback_reason: String::new(),
        };
        let hex: String = encode_value(&record).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(
            hex,
            "08011080deb8a799341801223e0a180a10696e626f756e642d6d657373616765731002180920011211\
             77616d69642e4558414d504c4530303031220f656e2e6b6579776f72642e73746f702801"
        );
    }

    #[test]
    fn an_unreadable_value_counts_as_an_opt_out_at_its_records_time() {
        for value in [&[0xff_u8, 0xff, 0xff][..], &[], &[0x08, 0x63], &[0x08, 0x02, 0x10, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]]
        {
            let ConsentChange::Unreadable(act) = decode_value(Some(value), Some(5), HERE) else { panic!("{value:?} was read") };
            assert_eq!((act.state, act.occurred_at.millis(), act.cause), (ConsentState::OptedOut, 5, HERE));
        }
        assert_eq!(decode_value(None, Some(5), HERE), ConsentChange::Erasure);
    }

    #[test]
    fn times_of_foreign_records_are_made_safe_too() {
        let read = |state: proto::ConsentState, occurred_at_ms| {
            let record = proto::ConsentRecord { state: state.into(), occurred_at_ms, ..Default::default() };
            match decode_value(Some(&encode_value(&record)), Some(5000), HERE) {
                ConsentChange::Act { act, .. } => act.occurred_at.millis(),
                ConsentChange::Unreadable(_) | ConsentChange::Erasure => panic!("not read"),
            }
        };
        assert_eq!(read(proto::ConsentState::OptedIn, 9000), 5000);
        assert_eq!(read(proto::ConsentState::OptedIn, 3000), 3000);
        assert_eq!(read(proto::ConsentState::OptedOut, 9000), 9000);
        assert_eq!(read(proto::ConsentState::OptedOut, 0), 5000);
    }

    #[test]
    fn an_unreadable_key_is_an_error() {
        let none = Businesses::default();
        for bytes in [
            &b""[..],
            b"garbage",
            b"a|b|c",
            b"a|whatsapp|phone:+5511912345678|marketing|x",
            b"\xff|whatsapp|ext:1|all",
            b"|whatsapp|ext:1|all",
            b"a|whatsapp|lid:1|all",
            b"a|whatsapp|ext:1|everything",
        ] {
            assert_eq!(decode_key(bytes, &none), Err(UnreadableKey), "{}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn a_persons_partitions_are_those_of_every_name_and_spelling() {
        let list = [Business { name: "acme".into(), numbers: vec![], accounts: vec![], former_names: vec!["old".into()] }];
        let businesses = Businesses::new(&list).expect("no conflict");
        let identity = Identity::parse("+5511912345678").expect("an identity");
        let found = partitions_of(&businesses, "acme", &identity, 64);
        for key in ["acme|phone:+5511912345678", "acme|phone:+551112345678", "old|phone:+551112345678"] {
            assert!(found.contains(&partition_for(key.as_bytes(), 64)), "{key}");
        }
        let other = key("globex", "sms", "ext:a|b", "all");
        assert!(partitions_of(&businesses, "globex", &other.identity, 64).contains(&encode_key(&other).partition(64)));
    }

    #[test]
    fn old_keys_follow_todays_businesses_and_phone_forms() {
        let list =
            [Business { name: "acme".into(), numbers: vec![], accounts: vec!["900100200300400".into()], former_names: vec!["old".into()] }];
        let businesses = Businesses::new(&list).expect("no conflict");
        for bytes in ["900100200300400|whatsapp|phone:+551112345678|marketing", "old|whatsapp|phone:+5511912345678|marketing"] {
            assert_eq!(decode_key(bytes.as_bytes(), &businesses), Ok(key("acme", "whatsapp", "+5511912345678", "marketing")));
        }
    }

    proptest! {
        #[test]
        fn keys_read_back_as_written(business in "\\PC{1,12}[|%\\n]?\\PC{0,4}", value in "[^\\s]\\PC{0,20}[|%]?x", program in "[a-z|%]{1,8}") {
            for (identity, subject) in [(format!("ext:{value}"), "marketing".to_owned()), ("+12025550143".to_owned(), format!("program:{program}"))] {
                let Ok(identity) = Identity::parse(&identity) else { continue };
                let key = ConsentKey { business: business.as_str().into(), channel: Channel::Whatsapp, identity, subject: Subject::parse(&subject).expect("a subject") };
                prop_assert_eq!(decode_key(encode_key(&key).as_bytes(), &Businesses::default()), Ok(key));
            }
        }

        #[test]
        fn no_bytes_panic(key in prop::collection::vec(any::<u8>(), 0..64), value in prop::collection::vec(any::<u8>(), 0..64)) {
            drop(decode_key(&key, &Businesses::default()));
            drop(decode_value(Some(&value), None, HERE));
        }
    }
}
