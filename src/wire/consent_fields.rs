//! The few fields of a consent record that the view needs, read without an allocation.
//!
//! Only what stopgate itself writes is read here. Whatever else protobuf allows (groups, fields of later versions, a
//! message in two parts) is declined, and the whole record is decoded instead: the two never differ.

use crate::wire::proto;

/// What the view needs of a record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConsentFields<'a> {
    pub state: i32,
    pub occurred_at_ms: i64,
    pub changed_state: bool,
    pub source: Option<SourceFields<'a>>,
    pub provider_message_id: &'a str,
}

/// Where its message lies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SourceFields<'a> {
    pub topic: &'a str,
    pub partition: u32,
    pub offset: u64,
    pub index: u32,
}

impl<'a> ConsentFields<'a> {
    /// The fields of a decoded record.
    pub fn of(record: &'a proto::ConsentRecord) -> Self {
        let evidence = record.evidence.as_ref();
        let source = evidence.and_then(|evidence| evidence.source.as_ref());
        Self {
            state: record.state,
            occurred_at_ms: record.occurred_at_ms,
            changed_state: record.changed_state,
            source: source.map(|at| SourceFields { topic: &at.topic, partition: at.partition, offset: at.offset, index: at.index }),
            provider_message_id: evidence.map_or("", |evidence| &evidence.provider_message_id),
        }
    }

    /// The fields of an encoded record; `None` where it must be decoded.
    pub fn read(bytes: &'a [u8]) -> Option<Self> {
        let (mut fields, mut evidence) = (Self::default(), None);
        each_field(bytes, |number, field| match (number, field) {
            (1, Field::Number(state)) => set(&mut fields.state, state as i32),
            (2, Field::Number(millis)) => set(&mut fields.occurred_at_ms, millis as i64),
            (3, Field::Number(_)) => Some(()),
            (4, Field::Bytes(bytes)) => evidence.replace(bytes).is_none().then_some(()),
            (5, Field::Number(changed)) => set(&mut fields.changed_state, changed != 0),
            (6, Field::Bytes(text)) => is_text(text).then_some(()),
            _ => None,
        })?;
        let mut source = None;
        each_field(evidence.unwrap_or_default(), |number, field| match (number, field) {
            (1, Field::Bytes(bytes)) => source.replace(bytes).is_none().then_some(()),
            (2, Field::Bytes(text)) => set(&mut fields.provider_message_id, std::str::from_utf8(text).ok()?),
            (3 | 4 | 7..=13 | 15..=18, Field::Bytes(text)) => is_text(text).then_some(()),
            (5 | 6 | 14 | 19, Field::Number(_)) => Some(()),
            _ => None,
        })?;
        if let Some(bytes) = source {
            fields.source = Some(SourceFields::read(bytes)?);
        }
        Some(fields)
    }
}

impl<'a> SourceFields<'a> {
    fn read(bytes: &'a [u8]) -> Option<Self> {
        let mut source = Self::default();
        each_field(bytes, |number, field| match (number, field) {
            (1, Field::Bytes(topic)) => set(&mut source.topic, std::str::from_utf8(topic).ok()?),
            (2, Field::Number(partition)) => set(&mut source.partition, partition as u32),
            (3, Field::Number(offset)) => set(&mut source.offset, offset),
            (4, Field::Number(index)) => set(&mut source.index, index as u32),
            _ => None,
        })?;
        Some(source)
    }
}

/// Of a field that is there twice the last counts.
fn set<T>(place: &mut T, value: T) -> Option<()> {
    *place = value;
    Some(())
}

/// Whether decoding would take this for a text. Nearly all are short and ASCII, which is seen faster.
#[inline]
fn is_text(bytes: &[u8]) -> bool {
    bytes.is_ascii() || std::str::from_utf8(bytes).is_ok()
}

enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// Hands over every field of a message, until one is declined.
#[inline]
fn each_field<'a>(mut bytes: &'a [u8], mut each: impl FnMut(u64, Field<'a>) -> Option<()>) -> Option<()> {
    while !bytes.is_empty() {
        let key = take_number(&mut bytes)?;
        let field = match key & 7 {
            0 => Field::Number(take_number(&mut bytes)?),
            2 => {
                let length = usize::try_from(take_number(&mut bytes)?).ok()?;
                let (taken, rest) = bytes.split_at_checked(length)?;
                bytes = rest;
                Field::Bytes(taken)
            }
            _ => return None,
        };
        each(key >> 3, field)?;
    }
    Some(())
}

/// Takes a number of at most nine bytes: longer ones are negative, and rare.
#[inline]
fn take_number(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for (place, byte) in bytes.iter().take(9).enumerate() {
        number |= u64::from(byte & 0x7f) << (7 * place);
        if byte & 0x80 == 0 {
            *bytes = bytes.get(place + 1..)?;
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use prost::Message;

    fn any_record() -> impl Strategy<Value = proto::ConsentRecord> {
        let source = (".{0,9}", any::<u32>(), any::<u64>(), any::<u32>());
        let source =
            prop::option::of(source.prop_map(|(topic, partition, offset, index)| proto::SourceCoordinates { topic, partition, offset, index }));
        let evidence = (source, ".{0,9}", ".{0,9}", any::<u32>(), any::<i64>()).prop_map(|(source, id, rule, span_end, recorded_at_ms)| {
            proto::Evidence { source, provider_message_id: id, rule, span_end, recorded_at_ms, ..Default::default() }
        });
        (any::<i32>(), any::<i64>(), 0..12_i32, prop::option::of(evidence), any::<bool>(), ".{0,9}").prop_map(
            |(state, occurred_at_ms, cause, evidence, changed_state, feedback_reason)| proto::ConsentRecord {
                state,
                occurred_at_ms,
                cause,
                evidence,
                changed_state,
                feedback_reason,
            },
        )
    }

    #[track_caller]
    fn check(bytes: &[u8]) -> Result<bool, TestCaseError> {
        let Some(fields) = ConsentFields::read(bytes) else { return Ok(false) };
        let decoded = proto::ConsentRecord::decode(bytes);
        prop_assert_eq!(decoded.as_ref().ok().map(ConsentFields::of), Some(fields));
        Ok(true)
    }

    proptest! {
        #[test]
        fn what_is_read_is_what_decoding_finds(record in any_record(), cuts in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4)) {
            let mut bytes = record.encode_to_vec();
            let small = |number: i64| (0..1 << 62).contains(&number);
            let evidence = record.evidence.as_ref();
            if record.state >= 0 && small(record.occurred_at_ms) && evidence.is_none_or(|evidence| small(evidence.recorded_at_ms) && evidence.source.as_ref().is_none_or(|source| source.offset >> 62 == 0)) {
                prop_assert!(check(&bytes)?, "a record as detection writes it is read without decoding");
            }
            for (place, byte) in cuts.iter().filter(|_| !record.encode_to_vec().is_empty()) {
                let place = place.index(bytes.len());
                bytes[place] = *byte;
                check(&bytes)?;
            }
            check(&bytes[..bytes.len() / 2])?;
        }

        #[test]
        fn arbitrary_bytes_are_read_as_they_are_decoded(bytes in prop::collection::vec(prop_oneof![any::<u8>(), 0..48_u8], 0..40)) {
            check(&bytes)?;
        }
    }

    #[test]
    fn a_message_in_two_parts_and_a_field_of_a_later_version_are_declined() {
        assert_eq!(ConsentFields::read(b"\x22\x00\x22\x00"), None);
        assert_eq!(ConsentFields::read(b"\x08\x01\x78\x01"), None);
    }
}
