//! Bytes that nobody meant: seeded mutations of bodies, keys, records, files and texts, at every reader of such bytes. None may
//! panic. Short by default; `STOPGATE_LONG=1` makes each target a hundred times longer, `STOPGATE_FUZZ=N` sets its number of inputs.
//!
//! An input that once broke a reader goes to `tests/golden/fuzz`, whose files are tried whole and mutated by every target.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use prost::Message as _;
use stopgate::domain::classify::{Message, classify};
use stopgate::domain::consent::Position;
use stopgate::domain::identity::Identity;
use stopgate::domain::key::Channel;
use stopgate::domain::{
    business::Businesses,
    suppression::{PrintKey, SHARDS},
    view::ConsentView,
};
use stopgate::record::{Header, Record, TopicName};
use stopgate::stage::apply::{Written, apply};
use stopgate::wire::inbound::mapping::{Mapping, Pointers};
use stopgate::wire::inbound::{Format, InboundFormat, decode};
use stopgate::wire::list::Lines;
use stopgate::wire::send::{SendDecoder, SendFormat, SendPointers};
use stopgate::wire::snapshot::{Head, Mark, Reached, SnapshotReader, SnapshotWriter};
use stopgate::wire::{consent, lexicon, proto, when};

use crate::support::random::Random;

/// Inputs of each target in a run of all tests.
const INPUTS: u64 = 40_000;
const LONG: u64 = 100;

fn inputs() -> u64 {
    match std::env::var("STOPGATE_FUZZ").ok().and_then(|count| count.parse().ok()) {
        Some(count) => count,
        None if std::env::var_os("STOPGATE_LONG").is_some() => INPUTS * LONG,
        None => INPUTS,
    }
}

/// A run is the same each time.
struct Chance(Random);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0.bits()
    }

    fn below(&mut self, bound: usize) -> usize {
        self.0.below(bound.max(1) as u64) as usize
    }
}

/// Pieces that mean something to one reader or another.
const PIECES: &[&[u8]] = &[
    b"\"",
    b"\\u0000",
    b"\\ud800",
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b"null",
    b"1e999",
    b"-0",
    b"9223372036854775808",
    b"|",
    b"%7C",
    b"%",
    b"&",
    b"=",
    b"phone:",
    b"+",
    b"bsuid:",
    b"email:",
    b"hash:",
    b"program:",
    b"\xff",
    b"\xc3",
    b"\xed\xa0\x80",
    b"\xef\xbb\xbf",
    b"\0\0\0\0\x01",
    b"\r\n",
    b"\t",
    "\u{200b}".as_bytes(),
    "\u{202e}".as_bytes(),
    "İ".as_bytes(),
    "ﬀ".as_bytes(),
    "🛑".as_bytes(),
    "ｓｔｏｐ".as_bytes(),
    b"STOP",
    b"s t o p",
    b"> ",
    b"2026-02-30T25:61:00+99:00",
    b"\x08\x01",
    b"\x22\xff\xff\xff\xff\x0f",
    b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
    b"<any>",
    b"(a | b)*",
    b"..9",
];

/// One to eight changes to one of the seeds.
fn mutated(seeds: &[Vec<u8>], chance: &mut Chance) -> Vec<u8> {
    let mut bytes = seeds[chance.below(seeds.len())].clone();
    for _ in 0..=chance.below(8) {
        let at = chance.below(bytes.len() + 1);
        match chance.below(8) {
            0 if at < bytes.len() => bytes[at] = chance.next() as u8,
            1 if at < bytes.len() => bytes[at] ^= 1 << chance.below(8),
            2 => bytes.truncate(at),
            3 => drop(bytes.drain(..at.min(bytes.len() / 2))),
            4 => {
                let piece = PIECES[chance.below(PIECES.len())];
                bytes.splice(at..at, piece.iter().copied());
            }
            5 => {
                let piece = PIECES[chance.below(PIECES.len())];
                let end = (at + piece.len()).min(bytes.len());
                bytes.splice(at..end, piece.iter().copied());
            }
            6 => {
                let other = &seeds[chance.below(seeds.len())];
                let from = chance.below(other.len() + 1);
                bytes.splice(at.., other[from..].iter().copied());
            }
            _ => {
                let end = (at + chance.below(32)).min(bytes.len());
                let again = bytes[at..end].repeat(1 + chance.below(3));
                bytes.splice(at..at, again);
            }
        }
        bytes.truncate(16 * 1024);
    }
    bytes
}

/// All files below a directory of `tests/golden`; none where it does not exist.
fn golden(directory: &str) -> Vec<Vec<u8>> {
    fn below(directory: &Path, found: &mut Vec<Vec<u8>>) {
        let Ok(entries) = std::fs::read_dir(directory) else { return };
        let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
        paths.sort();
        for path in paths {
            match path.is_dir() {
                true => below(&path, found),
                false => found.push(std::fs::read(&path).expect("a file")),
            }
        }
    }
    let mut found = Vec::new();
    below(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(directory), &mut found);
    found
}

/// Tries a reader with every seed and with so many mutations of them.
#[track_caller]
fn fuzz(mut seeds: Vec<Vec<u8>>, each: usize, read: impl Fn(&[u8], &mut Chance)) {
    seeds.extend(golden("fuzz"));
    let mut chance = Chance(Random::new(seeds.len() as u64));
    let count = inputs() / each.max(1) as u64;
    for number in 0..count.max(seeds.len() as u64) {
        let input = seeds.get(number as usize).cloned().unwrap_or_else(|| mutated(&seeds, &mut chance));
        let state = chance.0.clone();
        if catch_unwind(AssertUnwindSafe(|| read(&input, &mut chance))).is_err() {
            let hex: String = input.iter().map(|byte| format!("{byte:02x}")).collect();
            panic!("input {number} ({state:x?}) broke a reader; keep it under tests/golden/fuzz: {hex}");
        }
    }
}

fn texts(texts: &[&str]) -> Vec<Vec<u8>> {
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

#[test]
fn inbound_bodies() {
    let channel = Channel::Whatsapp;
    let pointers =
        Pointers { from: vec!["/from".into()], to: vec!["/to".into()], text: vec!["/text".into(), "/a/0/b".into()], ..Pointers::default() };
    let mut formats = vec![Format::Mapping(Box::new(Mapping::compile(&pointers).expect("pointers")))];
    formats.extend([Format::Auto, Format::Meta, Format::Ycloud, Format::TwilioForm, Format::TwilioEvents, Format::Json, Format::Protobuf]);
    let formats: Vec<InboundFormat> = formats.into_iter().map(|format| InboundFormat { format, default_channel: channel.clone() }).collect();
    let topic: TopicName = "inbound".into();
    fuzz(golden("inbound"), 1, |bytes, chance| {
        let format = &formats[chance.below(formats.len())];
        let names: [&[u8]; 4] = [b"content-type", b"ce_type", b"stopgate-format", b"\xff"];
        let values: [&[u8]; 5] = [b"application/x-protobuf", b"application/cloudevents+json", b"meta", b"", bytes];
        let header = Header { name: names[chance.below(4)], value: Some(values[chance.below(5)]) };
        let headers = [header];
        let headers = if chance.below(3) == 0 { &headers[..] } else { &[] };
        let record = Record { topic: &topic, partition: 0, offset: 1, timestamp_ms: None, key: None, value: Some(bytes), headers };
        if let Ok(decoded) = decode(&record, format) {
            decoded.messages.iter().for_each(|message| assert!(message.sender.iter().count() > 0));
        }
    });
}

#[test]
fn sends() {
    let seeds = texts(&[
        r#"{"id":"s1","business":"acme","channel":"whatsapp","to":["+12025550143","bsuid:US.1"],"category":"marketing","expires_at":"2026-11-01T10:00:00Z"}"#,
        r#"{"business":"é\u00e9\n","to":"+55 11 91234-5678","nested":{"a":[1,2,{"b":null}]},"expires_at":1793527200123.5}"#,
    ]);
    let formats = [SendFormat::Auto, SendFormat::Json, SendFormat::Protobuf, SendFormat::Headers];
    let decoders: Vec<SendDecoder> =
        formats.into_iter().map(|format| SendDecoder::new(format, &SendPointers::default()).expect("pointers")).collect();
    let topic: TopicName = "sends".into();
    let protobuf = proto::SendRequest { id: "x".into(), business: "acme".into(), ..Default::default() }.encode_to_vec();
    fuzz([seeds, vec![protobuf]].concat(), 1, |bytes, chance| {
        let headers = [Header { name: b"stopgate-to", value: Some(bytes) }, Header { name: b"stopgate-business", value: Some(b"acme") }];
        let headers = if chance.below(3) == 0 { &headers[..] } else { &[] };
        let record = Record { topic: &topic, partition: 0, offset: 1, timestamp_ms: Some(-1), key: None, value: Some(bytes), headers };
        let decoder = &decoders[chance.below(decoders.len())];
        if let Ok(send) = decoder.decode(&record) {
            assert!(send.to.iter().count() > 0);
        }
        std::hint::black_box(decoder.labels(&record).id.is_some());
    });
}

#[test]
fn consent_keys_and_records() {
    let evidence = proto::Evidence { rule: "en.keyword.stop".into(), provider_message_id: "wamid.1".into(), ..Default::default() };
    let value = proto::ConsentRecord { state: 1, occurred_at_ms: 5, evidence: Some(evidence), ..Default::default() }.encode_to_vec();
    let mut seeds = texts(&["acme|whatsapp|phone:+5511912345678|marketing", "a%7Cb|*|hash:ab|program:x", "old|sms|email:a@b.c|all"]);
    seeds.push(value);
    let businesses = Businesses::default();
    fuzz(seeds, 1, |bytes, chance| {
        if let Ok(key) = consent::decode_key(bytes, &businesses) {
            // What is read reads back from what is written.
            assert_eq!(consent::decode_key(consent::encode_key(&key).as_bytes(), &businesses), Ok(key));
        }
        let at = Position { partition: 0, offset: 1 };
        let time = Some(chance.next() as i64);
        if let Some((act, id)) = consent::read_value(bytes, time, at) {
            let consent::ConsentChange::Act { act: decoded, provider_message_id } = consent::decode_value(Some(bytes), time, at) else {
                panic!("read, and not decoded")
            };
            assert_eq!((act, id), (decoded, provider_message_id.as_str()), "the short way and the long one differ");
        }
        let mut view = ConsentView::new(PrintKey::new(1, 2), 1);
        let cut = chance.below(bytes.len() + 1);
        apply(&mut view, &Written { at, timestamp_ms: time, key: Some(&bytes[..cut]), value: Some(&bytes[cut..]) }, &businesses);
        apply(&mut view, &Written { at, timestamp_ms: time, key: Some(bytes), value: None }, &businesses);
    });
}

#[test]
fn texts_of_messages() {
    let words = lexicon::builtin();
    let seeds = texts(&[
        "STOP",
        "please stop sending me these messages!!",
        "> On Monday you wrote:\n> STOP\nthanks",
        "ＳＴＯＰ 🛑",
        "s.t.o.p",
        "no me envíen más publicidad",
        "إيقاف",
        "退订",
        "配信停止",
        "หยุดส่ง",
        "msg mat bhejo yaar",
        "Liked “Reply STOP to opt out”",
        "st\u{200b}op",
        "İSTEMİYORUM",
        "para de me mandar isso pfv",
    ]);
    fuzz(seeds, 4, |bytes, _| {
        let text = String::from_utf8_lossy(bytes);
        let found = classify(&words, &Message { text: Some(&text), ..Message::default() });
        // A span is of the text, at characters.
        if let Some(span) = found.span {
            assert!(text.get(span.clone()).is_some(), "{span:?} of {} bytes", text.len());
        }
    });
}

#[test]
fn files_and_fields() {
    let config = "bootstrap = \"b:1\"\n[policy]\nexcerpt = \"none\"\n[[business]]\nname = \"a\"\nnumbers = [\"+1\"]\n[kafka]\n\"a.b\" = \"c\"\n[[token]]\nname = \"x\"\nsha256 = \"00\"\n";
    let words =
        lexicon::EMBEDDED.iter().find(|(name, _)| *name == "sw.toml").map(|(_, contents)| contents.as_bytes().to_vec()).expect("Swahili");
    let list = "identity,occurred_at,reason\n+12025550143,2026-01-01T00:00:00Z,\"said \"\"no\"\"\"\n{\"to\":1}\n";
    let mut seeds =
        texts(&[config, list, "+55 (11) 91234-5678", "2026-11-01T10:00:00.5+01:00", "whatsapp:+12025550143", "15550100:7@s.whatsapp.net"]);
    seeds.push(words[..4000.min(words.len())].to_vec());
    fuzz(seeds, 4, |bytes, _| {
        let text = String::from_utf8_lossy(bytes);
        if let Ok(raw) = stopgate::config::parse(&text, "fuzz.toml")
            && let Ok(config) = raw.check(stopgate::config::Verb::Run, "host")
        {
            assert!(!config.to_toml().is_empty());
        }
        if let Err(fault) = lexicon::load(&[("xx.toml", &text)], Some((lexicon::LEARNED, &text))) {
            assert!(!fault.to_string().is_empty());
        }
        let mut lines = bytes.split(|byte| *byte == b'\n');
        if let Ok(mut reader) = Lines::from_first(lines.next().unwrap_or_default(), None) {
            lines.for_each(|line| drop(reader.read(line)));
        }
        if let Ok(identity) = Identity::recognise(&text) {
            assert_eq!(Identity::parse(&identity.to_text()), Ok(identity), "an identity reads back");
        }
        std::hint::black_box(when::from_text(&text));
    });
}

#[test]
fn snapshots() {
    let mut view = ConsentView::new(PrintKey::new(1, 2), 1);
    for n in 0..200 {
        let key = format!("acme|sms|ext:{n}|marketing");
        let value = proto::ConsentRecord { state: 1, occurred_at_ms: 5 << (n % 40), ..Default::default() }.encode_to_vec();
        let at = Position { partition: 0, offset: n };
        apply(&mut view, &Written { at, timestamp_ms: Some(1), key: Some(key.as_bytes()), value: Some(&value) }, &Businesses::default());
    }
    let head = Head {
        secret: (1, 2),
        reading: [3; 32],
        topic_id: "id".to_owned(),
        taken_at_ms: 1,
        partitions: vec![Reached { position: 200, marks: vec![Mark { offset: 199, hash: 5 }] }],
        unreadable: vec![Position { partition: 0, offset: 7 }],
    };
    let whole = {
        let mut writer = SnapshotWriter::new(Vec::new(), &head).expect("memory");
        (0..SHARDS).for_each(|shard| writer.shard(shard, &view.set().shard_image(shard)).expect("memory"));
        writer.finish(&view.set().side_tables(), &view.seen()).expect("memory").0
    };
    let read = |file: &[u8]| SnapshotReader::new(file).and_then(|(_, rest)| rest.view(PrintKey::new(1, 2), vec![200]));
    assert!(read(&whole).is_ok());
    let (magic, mut rest) = whole.split_at(b"stopgate snapshot 2\n".len());
    let mut frames = Vec::new();
    while let Some((length, behind)) = rest.split_first_chunk::<4>() {
        let (frame, after) = behind[4..].split_at(u32::from_le_bytes(*length) as usize);
        frames.push(frame.to_vec());
        rest = after;
    }
    let first = frames[0].clone();
    // One frame of each kind, some of shards that hold something, with a checksum that is right: in place of the first shard.
    let (last, holding) = (frames.len() - 1, frames.iter().skip(1).max_by_key(|frame| frame.len()).cloned().expect("shards"));
    fuzz(vec![first.clone(), holding, frames[last].clone()], 2, |frame, _| {
        let mut file = magic.to_vec();
        for frame in [&first[..], frame] {
            file.extend((frame.len() as u32).to_le_bytes());
            file.extend(crc32fast::hash(frame).to_le_bytes());
            file.extend(frame);
        }
        assert!(read(&file).is_err(), "a snapshot of one shard");
    });
    fuzz(vec![whole[..2000].to_vec()], 2, |file, _| assert!(read(file).is_err(), "part of a snapshot"));
}
