//! Records of the guidance topic. Keys are those of opt-outs, of the subject `marketing`.

use crate::domain::business::Businesses;
use crate::domain::guidance::{RecipientPrint, Seen};
use crate::domain::suppression::PrintKey;
use crate::record::Coordinates;
use crate::wire::consent::decode_key;
use crate::wire::proto;
use prost::Message;

/// A record: whose it is, what is known of them now (`None`: a tombstone), and which send said so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guidance {
    pub print: RecipientPrint,
    pub seen: Option<Seen>,
    pub send: Option<(String, u32, u64)>,
}

/// Reads a record; `None` where it cannot be read: nobody is known by it, and guidance is given once more.
pub fn decode(key: Option<&[u8]>, value: Option<&[u8]>, prints: PrintKey, businesses: &Businesses) -> Option<Guidance> {
    let key = decode_key(key?, businesses).ok()?;
    let print = RecipientPrint::new(prints, prints.person(&key.business, &key.identity), &key.channel);
    let Some(value) = value else { return Some(Guidance { print, seen: None, send: None }) };
    let record = proto::GuidanceRecord::decode(value).ok()?;
    let seen = Seen { day: u16::try_from(record.day).ok()?, opt_in: u8::try_from(record.opt_in_mark).ok()? };
    Some(Guidance { print, seen: Some(seen), send: Some((record.topic, record.partition, record.offset)) })
}

/// The value that says what is known, by which send.
pub fn encode_value(seen: Seen, send: &Coordinates) -> Vec<u8> {
    let record = proto::GuidanceRecord {
        day: seen.day.into(),
        opt_in_mark: seen.opt_in.into(),
        topic: send.topic.to_string(),
        partition: send.partition,
        offset: send.offset,
    };
    record.encode_to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_reads_back_and_what_is_no_record_is_nobodys() {
        let (prints, businesses) = (PrintKey::new(1, 2), Businesses::default());
        let send = Coordinates { topic: "sends".into(), partition: 3, offset: 9 };
        let seen = Seen { day: 20_600, opt_in: 255 };
        let bytes = encode_value(seen, &send);
        let key: Option<&[u8]> = Some(b"acme|sms|phone:+5511912345678|marketing");
        let read = decode(key, Some(&bytes), prints, &businesses).expect("readable");
        assert_eq!((read.seen, read.send), (Some(seen), Some(("sends".to_owned(), 3, 9))));
        let other: Option<&[u8]> = Some(b"acme|whatsapp|phone:+5511912345678|marketing");
        assert_ne!(decode(other, None, prints, &businesses).expect("a tombstone").print, read.print, "channels are apart");
        assert_eq!(decode(key, Some(b"\xff"), prints, &businesses), None);
        assert_eq!(decode(Some(b"nonsense"), Some(&bytes), prints, &businesses), None);
        assert_eq!(decode(None, None, prints, &businesses), None);
    }

    #[test]
    fn the_bytes_of_a_record_are_these() {
        let send = Coordinates { topic: "s".into(), partition: 1, offset: 2 };
        let bytes = encode_value(Seen { day: 3, opt_in: 4 }, &send);
        assert_eq!(bytes, [0x08, 3, 0x10, 4, 0x1a, 1, b's', 0x20, 1, 0x28, 2]);
    }
}
