//! Golden bodies: the bytes under `tests/golden/inbound` read as the text beside them says, for ever.
//!
//! A case is a body `NAME.json`, `.form` or `.bin`, what it reads as in `NAME.txt`, and where needed the record's
//! headers in `NAME.headers` (a name, a colon and a value a line). Each is read as `auto`, and again by the format that
//! its folder is named after. Expected texts are written where `STOPGATE_WRITE_GOLDEN` is set; then read the diff.

use super::mapping::{Mapping, MappingError, Pointers};
use super::*;
use crate::domain::message::Preference;
use crate::record::{Header, TopicName};
use crate::wire::proto;
use proptest::prelude::*;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

fn format(format: Format) -> InboundFormat {
    InboundFormat { format, default_channel: Channel::Whatsapp }
}

fn read_record(value: Option<&[u8]>, headers: &[(&str, &str)], with: Format) -> Result<Decoded, DecodeError> {
    let headers: Vec<_> = headers.iter().map(|(name, value)| Header { name: name.as_bytes(), value: Some(value.as_bytes()) }).collect();
    let topic: TopicName = "inbound".into();
    let record = Record { topic: &topic, partition: 0, offset: 0, timestamp_ms: None, key: None, value, headers: &headers };
    decode(&record, &format(with))
}

fn read_value(value: &[u8]) -> Result<Decoded, DecodeError> {
    read_record(Some(value), &[], Format::Auto)
}

/// Reads a body as `auto` and compares the readable form of what it holds.
#[track_caller]
fn check(body: &str, expected: &str) {
    assert_eq!(render(&read_value(body.as_bytes())).trim(), expected.trim(), "{body}");
}

/// The texts of all messages in a body.
#[track_caller]
fn texts(value: &[u8]) -> Vec<String> {
    let messages = read_value(value).expect("readable").messages;
    messages
        .into_iter()
        .filter_map(|message| match message.content {
            Content::Text { text, .. } => Some(text),
            _other => None,
        })
        .collect()
}

fn render(decoded: &Result<Decoded, DecodeError>) -> String {
    let decoded = match decoded {
        Ok(decoded) => decoded,
        Err(error) => return format!("error {}\n", error.as_str()),
    };
    let mut text = String::new();
    for message in &decoded.messages {
        writeln!(text, "message {}", message.index).expect("memory");
        let mut line = |name: &str, value: &str| writeln!(text, "  {name:<9}{value}").expect("memory");
        line("channel", message.channel.as_str());
        line("sender", &identities(&message.sender));
        let business = &message.business;
        for (name, hint) in
            [("number", &business.number), ("number-id", &business.number_id), ("account", &business.account), ("named", &business.named)]
        {
            if let Some(hint) = hint {
                line("business", &format!("{name} {hint}"));
            }
        }
        if let Some(id) = &message.provider_message_id {
            line("id", id);
        }
        if let Some(time) = message.occurred_at {
            line("at", &jiff::Timestamp::from_millisecond(time.millis()).expect("in range").to_string());
        }
        line("says", &content(&message.content));
        if message.confirmed_by_provider {
            line("provider", "has answered");
        }
    }
    for (index, error) in &decoded.failures {
        writeln!(text, "failure {index} {}", error.as_str()).expect("memory");
    }
    if text.is_empty() { "nothing\n".to_owned() } else { text }
}

fn content(content: &Content) -> String {
    match content {
        Content::Text { text, edited, forwarded } => {
            let edited = if *edited { " (edited)" } else { "" };
            let forwarded = if *forwarded { " (forwarded)" } else { "" };
            format!("text {text:?}{edited}{forwarded}")
        }
        Content::Button { payload, title } => {
            let shown = |text: &Option<String>| text.as_ref().map_or("none".to_owned(), |text| format!("{text:?}"));
            format!("button payload {} title {}", shown(payload), shown(title))
        }
        Content::Preference(Preference::Stop) => "preference stop".to_owned(),
        Content::Preference(Preference::Resume) => "preference resume".to_owned(),
        Content::Preference(Preference::Help) => "preference help".to_owned(),
        Content::ProviderOptOut => "provider opt-out".to_owned(),
        Content::IdentityChange { now } => format!("identity change to {}", identities(now)),
        Content::Nothing => "nothing".to_owned(),
    }
}

fn identities(identities: &Identities) -> String {
    identities.iter().map(Identity::to_text).collect::<Vec<_>>().join(" ")
}

/// One golden body.
struct Case {
    path: PathBuf,
    body: Vec<u8>,
    headers: Vec<(String, String)>,
    /// What its folder is named after.
    format: Format,
}

impl Case {
    fn read(&self, format: Format) -> Result<Decoded, DecodeError> {
        let headers: Vec<_> = self.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        read_record(Some(&self.body), &headers, format)
    }
}

fn golden() -> Vec<Case> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/inbound");
    let list = |path: &Path| {
        let entries = std::fs::read_dir(path).expect("a folder").map(|entry| entry.expect("an entry").path());
        let mut entries: Vec<_> = entries.collect();
        entries.sort();
        entries
    };
    let mut cases = Vec::new();
    for folder in list(&root) {
        let name = folder.file_name().and_then(|name| name.to_str()).expect("a name");
        let format = match name {
            "envelope" | "bad" => Format::Auto,
            "mapping" => Format::Mapping(Box::new(gupshup())),
            name => Format::parse(name).expect("the name of a format"),
        };
        for path in list(&folder) {
            if !["json", "form", "bin"].iter().any(|kind| path.extension().is_some_and(|extension| extension == *kind)) {
                continue;
            }
            let headers = std::fs::read_to_string(path.with_extension("headers")).unwrap_or_default();
            let headers = headers.lines().filter_map(|line| line.split_once(':'));
            let headers = headers.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect();
            let mut body = std::fs::read(&path).expect("a file");
            if path.extension().is_some_and(|extension| extension == "form") && body.ends_with(b"\n") {
                body.pop();
            }
            cases.push(Case { path, body, headers, format: format.clone() });
        }
    }
    assert!(cases.len() > 50, "golden bodies are missing");
    cases
}

/// A mapping of a provider that has no adapter.
fn gupshup() -> Mapping {
    let list = |pointers: &[&str]| pointers.iter().map(|&pointer| pointer.to_owned()).collect::<Vec<_>>();
    Mapping::compile(&Pointers {
        id: list(&["/payload/id"]),
        account: list(&["/app"]),
        from: list(&["/payload/source", "/payload/sender/phone", "bsuid:/payload/sender/userId"]),
        text: list(&["/payload/payload/text"]),
        button_payload: list(&["/payload/payload/postbackText", "/payload/payload/id"]),
        button_title: list(&["/payload/payload/title"]),
        received_at: list(&["/timestamp"]),
        autoresponse: list(&["/autoresponse_type"]),
        ..Pointers::default()
    })
    .expect("a mapping")
}

#[test]
fn golden_bodies_read_as_the_text_beside_them_says() {
    let write = std::env::var_os("STOPGATE_WRITE_GOLDEN").is_some();
    let mut differing = Vec::new();
    for case in golden() {
        let is_mapped = matches!(case.format, Format::Mapping(_));
        let read = case.read(if is_mapped { case.format.clone() } else { Format::Auto });
        let expected_path = case.path.with_extension("txt");
        let rendered = render(&read);
        if write {
            std::fs::write(&expected_path, &rendered).expect("written");
        }
        let expected = std::fs::read_to_string(&expected_path).unwrap_or_default();
        if rendered != expected {
            differing.push(format!("{}\n{rendered}expected\n{expected}", case.path.display()));
        }
        if read.is_ok() {
            assert!(case.read(case.format.clone()) == read, "{}: differs by its own format", case.path.display());
        }
    }
    assert!(differing.is_empty(), "{}", differing.join("\n"));
}

#[test]
fn every_golden_event_has_one_id_however_often_it_is_delivered() {
    for case in golden() {
        assert!(case.read(Format::Auto) == case.read(Format::Auto), "{}", case.path.display());
    }
}

#[test]
fn no_value_and_an_empty_value_are_dead_letters() {
    assert_eq!(read_record(None, &[], Format::Auto), Err(DecodeError::EmptyValue));
    assert_eq!(read_value(b""), Err(DecodeError::EmptyValue));
}

#[test]
fn one_byte_is_a_dead_letter_whichever_it_is() {
    for byte in 0..=u8::MAX {
        let error = read_value(&[byte]).expect_err("unreadable");
        let expected = match byte {
            0 => DecodeError::TruncatedFrame,
            b'{' | b'[' => DecodeError::Malformed,
            _ => DecodeError::UnknownShape,
        };
        assert_eq!(error, expected, "{byte}");
    }
}

#[test]
fn json_nested_ten_thousand_deep_is_malformed_and_costs_no_stack() {
    for (open, close) in [("[", "]"), (r#"{"a":"#, "}"), (r#"{"object":"#, "}")] {
        let json = format!("{}1{}", open.repeat(10_000), close.repeat(10_000));
        assert_eq!(read_value(json.as_bytes()), Err(DecodeError::Malformed));
        let unfinished = open.repeat(10_000);
        assert_eq!(read_value(unfinished.as_bytes()), Err(DecodeError::Malformed));
    }
    let deep = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
    for body in [
        format!(r#"{{"x":{deep},"from":"+12025550143","to":"+12025550100","text":"stop"}}"#),
        format!(r#"{{"from":["+12025550143",{deep}],"to":"+12025550100","text":"stop"}}"#),
        format!(
            r#"{{"entry":[{{"id":"9","changes":[{{"value":{{"metadata":{deep},"messages":[{{"from":"12025550143","image":{deep},"text":{{"body":"stop"}}}}]}}}}]}}]}}"#
        ),
    ] {
        assert_eq!(texts(body.as_bytes()), ["stop"], "depth where nobody looks costs nothing");
    }
}

#[test]
fn a_body_of_no_known_shape_is_a_dead_letter() {
    for body in [r#"{"hello":"world"}"#, "[]", "{}", r#"[{"from":"+12025550143","text":"stop"}]"#, "hello", "a=b", "STOP", "<xml/>"] {
        check(body, "error unknown-shape");
    }
    assert_eq!(read_value(b"\xff\xfe\xfd\x80"), Err(DecodeError::UnknownShape));
    assert_eq!(read_value(b"{\xff"), Err(DecodeError::Malformed));
    assert_eq!(read_record(Some(b"\xff\xfe"), &[], Format::Json), Err(DecodeError::Malformed));
}

#[test]
fn a_broken_character_costs_no_more_than_itself() {
    let body = b"{\"id\":\"1\",\"from\":\"+12025550143\",\"to\":\"+12025550100\",\"text\":\"stop \xff\xf0\"}";
    assert_eq!(texts(body), ["stop \u{fffd}\u{fffd}"]);
    let body = br#"{"entry":[{"id":"9","changes":[{"value":{"messages":[{"from":"12025550143","text":{"body":"stop \ud83d"}}]}}]}]}"#;
    assert_eq!(texts(body), ["stop \u{fffd}"]);
    let body = b"From=%2B12025550143&To=%2B12025550100&MessageSid=SM1&Body=stop+%FF\xff";
    assert_eq!(texts(body), ["stop \u{fffd}\u{fffd}"]);
}

#[test]
fn of_repeated_keys_the_last_counts() {
    assert_eq!(texts(br#"{"from":"+12025550143","to":"+12025550100","text":"hello","text":"stop"}"#), ["stop"]);
    let body =
        br#"{"entry":[{"id":"9","id":"9","changes":[{"value":{"messages":[{"from":"12025550143","text":{"body":"a","body":"stop"}}]}}]}]}"#;
    assert_eq!(texts(body), ["stop"]);
}

#[test]
fn a_text_of_900_kilobytes_is_read_whole() {
    let text = format!("{} stop", "x ".repeat(450_000));
    let native = serde_json::json!({"from": "+12025550143", "to": "+12025550100", "text": text}).to_string();
    assert_eq!(texts(native.as_bytes()), std::slice::from_ref(&text));
    let form = format!("From=%2B12025550143&To=%2B12025550100&MessageSid=SM1&Body={}", text.replace(' ', "+"));
    assert_eq!(texts(form.as_bytes()), [text]);
}

#[test]
fn absurd_times_are_missing_times() {
    for time in ["\"yesterday\"", "1e300", "-1", "0", "\"\"", "null", "[]", "{}", "true", "99999999999999999", "\"2026-02-30T10:00:00Z\""] {
        let body = format!(r#"{{"from":"+12025550143","to":"+12025550100","text":"stop","received_at":{time}}}"#);
        let decoded = read_value(body.as_bytes()).expect("readable");
        assert_eq!(decoded.messages[0].occurred_at, None, "{time}");
        let body = format!(
            r#"{{"entry":[{{"changes":[{{"value":{{"messages":[{{"from":"12025550143","timestamp":{time},"text":{{"body":"stop"}}}}]}}}}]}}]}}"#
        );
        let decoded = read_value(body.as_bytes()).expect("readable");
        assert_eq!(decoded.messages[0].occurred_at, None, "{time}");
    }
}

#[test]
fn headers_that_nobody_can_read_change_nothing() {
    let body = br#"{"from":"+12025550143","to":"+12025550100","text":"stop"}"#;
    let headers = [
        Header { name: b"\xff", value: Some(b"\xff") },
        Header { name: b"content-type", value: Some(b"\xff") },
        Header { name: b"content-type", value: None },
        Header { name: b"x", value: Some(b"1") },
        Header { name: b"x", value: Some(b"2") },
    ];
    let topic: TopicName = "inbound".into();
    let record = Record { topic: &topic, partition: 0, offset: 0, timestamp_ms: None, key: None, value: Some(body), headers: &headers };
    assert_eq!(decode(&record, &format(Format::Auto)), read_value(body));
}

fn protobuf() -> Vec<u8> {
    let message = proto::InboundMessage {
        id: "SM1".into(),
        business: "acme".into(),
        channel: "SMS".into(),
        from: vec!["+12025550143".into(), "nobody".into(), "ext:42".into()],
        to: "+12025550100".into(),
        text: "stop".into(),
        button: None,
        received_at_ms: 1_793_527_200_000,
        account: String::new(),
    };
    prost::Message::encode_to_vec(&message)
}

#[test]
fn protobuf_is_read_by_header_by_frame_and_by_configuration() {
    let plain = protobuf();
    let expected = read_record(Some(&plain), &[], Format::Protobuf);
    assert_eq!(
        render(&expected),
        "message 0\n  channel  sms\n  sender   phone:+12025550143 ext:42\n  business number +12025550100\n  business named acme\n  \
         id       SM1\n  at       2026-11-01T10:00:00Z\n  says     text \"stop\"\n"
    );
    for header in [
        ("content-type", "application/x-protobuf"),
        ("Content-Type", "application/protobuf; messageType=InboundMessage"),
        ("stopgate-format", "protobuf"),
    ] {
        assert_eq!(read_record(Some(&plain), &[header], Format::Auto), expected, "{header:?}");
    }
    for indexes in [&b"\0"[..], b"\x02\0", b"\x01\0"] {
        let framed = [&b"\0\0\0\0\x07"[..], indexes, &plain].concat();
        assert_eq!(read_record(Some(&framed), &[], Format::Auto), expected);
        assert_eq!(read_record(Some(&framed), &[], Format::Protobuf), expected);
    }
    assert_eq!(read_record(Some(b"\x0a\x7f"), &[], Format::Protobuf), Err(DecodeError::Malformed));
}

#[test]
fn a_configured_format_opens_envelopes_and_refuses_other_shapes() {
    let meta = br#"{"entry":[{"id":"9","changes":[{"value":{"messages":[{"from":"12025550143","text":{"body":"stop"}}]}}]}]}"#;
    let framed = [b"\0\0\0\0\x07", &meta[..]].concat();
    assert_eq!(read_record(Some(&framed), &[], Format::Meta), read_value(meta));
    assert_eq!(read_record(Some(b"From=x"), &[], Format::Meta), Err(DecodeError::Malformed));
    assert_eq!(read_record(Some(b"{}"), &[], Format::Meta), Err(DecodeError::UnknownShape));
    assert_eq!(read_record(Some(b"{}"), &[], Format::Ycloud), Err(DecodeError::UnknownShape));
    assert_eq!(read_record(Some(b"{}"), &[], Format::Json), Err(DecodeError::NoSender));
    assert_eq!(read_record(Some(b"{}"), &[], Format::TwilioForm), Err(DecodeError::Malformed));
}

#[test]
fn a_mapping_without_what_a_message_needs_is_refused() {
    let one = || vec!["/x".to_owned()];
    let pointers = Pointers::default();
    assert_eq!(Mapping::compile(&pointers), Err(MappingError::NoSender));
    let pointers = Pointers { from: one(), ..pointers };
    assert_eq!(Mapping::compile(&pointers), Err(MappingError::NoBusiness));
    let pointers = Pointers { to: one(), ..pointers };
    assert_eq!(Mapping::compile(&pointers), Err(MappingError::NoContent));
    let pointers = Pointers { text: vec!["x".to_owned()], ..pointers };
    assert!(matches!(Mapping::compile(&pointers), Err(MappingError::Pointer(_))));
    let pointers = Pointers { text: one(), ..pointers };
    assert!(Mapping::compile(&pointers).is_ok());
}

#[test]
fn an_address_is_never_in_an_id_that_was_made_up() {
    let body =
        br#"{"entry":[{"id":"9","changes":[{"value":{"user_preferences":[{"wa_id":"12025550143","value":"stop","timestamp":1793527200}]}}]}]}"#;
    let decoded = read_value(body).expect("readable");
    let id = decoded.messages[0].provider_message_id.as_deref().expect("an id");
    assert!(!id.contains("2025550143"), "{id}");
    let later = String::from_utf8_lossy(body).replace("1793527200", "1793527201");
    assert_ne!(read_value(later.as_bytes()).expect("readable").messages[0].provider_message_id.as_deref(), Some(id));
}

#[test]
fn formats_have_names() {
    for name in ["auto", "meta", "ycloud", "twilio-form", "twilio-events", "json", "protobuf"] {
        assert_eq!(Format::parse(name).expect("a format").as_str(), name);
    }
    assert_eq!(Format::parse("mapping"), None);
}

/// Reads bytes by every format; the only claim is that it returns.
fn survive(value: &[u8]) {
    for name in ["auto", "meta", "ycloud", "twilio-form", "twilio-events", "json", "protobuf"] {
        drop(read_record(Some(value), &[], Format::parse(name).expect("a format")));
    }
    drop(read_record(Some(value), &[], Format::Mapping(Box::new(gupshup()))));
    drop(read_record(Some(value), &[("content-type", "application/cloudevents+json")], Format::Auto));
    drop(read_record(Some(value), &[("ce_type", super::twilio::INBOUND_EVENT)], Format::Auto));
}

#[test]
fn thousands_of_messages_and_contacts_in_a_body_take_no_more_than_their_share_of_time() {
    let many = |one: fn(usize) -> serde_json::Value| (0..6000).map(one).collect::<Vec<_>>();
    let contacts = many(|at| serde_json::json!({"wa_id": format!("1202555{at:04}"), "user_id": "US.1"}));
    let messages = many(|at| serde_json::json!({"from": format!("1202555{at:04}"), "text": {"body": "stop"}}));
    let value = serde_json::json!({"contacts": contacts, "messages": messages});
    let body = serde_json::json!({"entry": [{"id": "9", "changes": [{"value": value}]}]}).to_string();
    let decoded = read_value(body.as_bytes()).expect("readable");
    assert_eq!(decoded.messages.len(), 6000);
    assert!(decoded.messages.iter().all(|message| message.sender.iter().count() == 2));
}

proptest! {
    #[test]
    fn any_bytes_are_survived(value in prop::collection::vec(any::<u8>(), 0..200)) {
        survive(&value);
    }

    #[test]
    fn any_framed_bytes_are_survived(value in prop::collection::vec(any::<u8>(), 0..50)) {
        survive(&[&[0, 0, 0, 0, 1][..], &value].concat());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn golden_bodies_with_anything_changed_are_survived(
        case in any::<prop::sample::Index>(),
        at in any::<prop::sample::Index>(),
        cut in 0..20_usize,
        insert in prop::collection::vec(any::<u8>(), 0..6),
    ) {
        thread_local! {
            static BODIES: Vec<Vec<u8>> = golden().into_iter().map(|case| case.body).collect();
        }
        BODIES.with(|bodies| {
            let mut body = bodies[case.index(bodies.len())].clone();
            let at = at.index(body.len() + 1);
            let end = body.len().min(at + cut);
            body.splice(at..end, insert.iter().copied());
            survive(&body);
        });
    }

    #[test]
    fn values_of_any_type_in_a_webhook_cost_only_themselves(value in any_json(), field in 0..9_usize) {
        let field = ["id", "timestamp", "type", "context", "button", "interactive", "image", "edit", "from_user_id"][field];
        let mut message = serde_json::json!({"from": "12025550143", "id": "w", "timestamp": "1793527200", "text": {"body": "stop"}});
        message[field] = value;
        // An object under `edit` is an edit, and what it holds counts.
        if field == "edit" && message[field].is_object() {
            return Ok(());
        }
        let body = serde_json::json!({"entry": [{"id": "9", "changes": [{"field": "messages", "value": {"messages": [message]}}]}]});
        prop_assert_eq!(texts(body.to_string().as_bytes()), ["stop"]);
    }
}

fn any_json() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        any::<f64>().prop_map(Into::into),
        any::<String>().prop_map(Into::into),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Into::into),
            prop::collection::hash_map(any::<String>(), inner, 0..4)
                .prop_map(|members| members.into_iter().collect::<serde_json::Map<_, _>>().into()),
        ]
    })
}
