//! The view's stage: a record of the opt-outs topic → what it changes.

use crate::domain::business::Businesses;
use crate::domain::consent::{Act, Position};
use crate::domain::suppression::Applied;
use crate::domain::view::ConsentView;
use crate::wire::consent::{ConsentChange, decode_key, decode_value, encode_key};

/// A record of the opt-outs topic, borrowed.
#[derive(Clone, Copy)]
pub struct Written<'a> {
    pub at: Position,
    /// Kafka's timestamp of the record, milliseconds since the Unix epoch.
    pub timestamp_ms: Option<i64>,
    pub key: Option<&'a [u8]>,
    pub value: Option<&'a [u8]>,
}

/// What a record did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// An act counts, or counted already. One whose value could not be read (`readable: false`) is an opt-out.
    Applied { act: Act, applied: Applied, readable: bool },
    /// A tombstone: its key is forgotten.
    Erased,
    /// Nobody knows whom it concerns: nothing may be decided past it.
    UnreadableKey,
}

/// Lets a record count. The position is not advanced: that is for whoever knows that nothing lies in between.
pub fn apply(view: &mut ConsentView, record: &Written<'_>, businesses: &Businesses) -> Effect {
    let key_bytes = record.key.unwrap_or_default();
    let Ok(key) = decode_key(key_bytes, businesses) else { return Effect::UnreadableKey };
    match decode_value(record.value, record.timestamp_ms, record.at) {
        ConsentChange::Erasure => {
            // The tombstone of an alias of a key erases that alias alone: what stands under the canonical key is on the
            // topic still.
            if encode_key(&key).as_bytes() == key_bytes {
                view.erase(&key);
            }
            Effect::Erased
        }
        ConsentChange::Unreadable(act) => Effect::Applied { act, applied: view.apply(&key, act, ""), readable: false },
        ConsentChange::Act { act, provider_message_id } => {
            Effect::Applied { act, applied: view.apply(&key, act, &provider_message_id), readable: true }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::consent::ConsentState;
    use crate::domain::suppression::PrintKey;
    use crate::wire::{consent::encode_value, proto};

    fn written<'a>(key: &'a [u8], value: Option<&'a [u8]>) -> Written<'a> {
        Written { at: Position { partition: 0, offset: 7 }, timestamp_ms: Some(1000), key: Some(key), value }
    }

    #[test]
    fn what_cannot_be_read_is_an_opt_out_or_stops_everything() {
        let mut view = ConsentView::new(PrintKey(1, 2), 1);
        let effect = apply(&mut view, &written(b"acme|whatsapp|ext:1|marketing", Some(b"\xff")), &Businesses::default());
        let Effect::Applied { act, applied: Applied::First, readable: false } = effect else { panic!("{effect:?}") };
        assert_eq!((act.state, act.cause.offset), (ConsentState::OptedOut, 7));
        assert_eq!(apply(&mut view, &written(b"nonsense", Some(b"\xff")), &Businesses::default()), Effect::UnreadableKey);
    }

    #[test]
    fn the_tombstone_of_an_alias_leaves_the_canonical_key() {
        let mut view = ConsentView::new(PrintKey(1, 2), 1);
        let record = proto::ConsentRecord { state: proto::ConsentState::OptedOut.into(), occurred_at_ms: 5, ..Default::default() };
        let (canonical, alias) = (b"acme|whatsapp|phone:+5511912345678|marketing", b"acme|whatsapp|phone:+551112345678|marketing");
        apply(&mut view, &written(canonical, Some(&encode_value(&record))), &Businesses::default());
        assert_eq!(apply(&mut view, &written(alias, None), &Businesses::default()), Effect::Erased);
        assert_eq!(view.set().len(), 1);
        apply(&mut view, &written(canonical, None), &Businesses::default());
        assert!(view.set().is_empty());
    }
}
