//! Poison is survivable: what cannot be read goes to dead-letters as it was, with coordinates and reason, and the
//! stages go on; what only looks bad acts.

use serde_json::{Value, json};

use crate::support::broker::Broker;
use crate::support::kafka::{Isolation, Received, Record};
use crate::support::records::{ConsentRecord, OPTED_OUT, decode};
use crate::support::wait::{DEADLINE, wait_for};
use crate::support::wire::{self, RawRecord};
use crate::support::world::{BUSINESS, World, consent_key, message, now_ms, phone, send};

/// Produces `bad` to `topic`, and checks that it is dead-lettered as it was; returns the dead letter.
#[track_caller]
fn assert_dead_letter(world: &World, stage: &str, topic: &str, name: &str, bad: Record) -> Received {
    let (partition, offset) = world.kafka.produce(topic, bad.clone());
    let source = format!("{topic}-{partition}@{offset}");
    let reader = world.kafka.reader(&world.names.dead_letters, Isolation::Committed);
    let dead = reader.find(&format!("the dead letter of {name}"), |record| record.header("stopgate-source").as_deref() == Some(source.as_str()));
    assert_eq!(dead.header("stopgate-stage").as_deref(), Some(stage), "{name}");
    assert!(dead.header("stopgate-reason").is_some_and(|reason| !reason.is_empty()), "{name}: {:?}", dead.headers);
    assert_eq!((&dead.key, &dead.value), (&bad.key, &bad.value), "{name}: key and value as they were");
    for header in &bad.headers {
        assert!(dead.headers.contains(header), "{name}: its own headers stay");
    }
    dead
}

/// A person's opt-out arrives, so the stage works.
#[track_caller]
fn assert_opted_out(world: &World, identity: &str) {
    let key = consent_key(BUSINESS, "whatsapp", identity, "marketing");
    let reader = world.kafka.reader(&world.names.opt_outs, Isolation::Committed);
    let record = reader.find(&format!("the opt-out of {identity}"), |record| record.key_text() == key);
    assert_eq!(decode::<ConsentRecord>(&record).state, OPTED_OUT, "{identity}");
}

fn nested(depth: usize) -> String {
    "[".repeat(depth) + &"]".repeat(depth)
}

#[test]
fn inbound_records_that_cannot_be_read_are_dead_letters_and_detect_goes_on() {
    let Some(broker) = Broker::shared() else { return };
    let world = World::new(broker, "bad-inbound");
    let mut service = world.serving("detect", "a").spawn();
    service.ready();
    let inbound = &world.names.inbound;
    let deep_object = "{\"a\":".repeat(10_000) + "1" + &"}".repeat(10_000);
    let nobody = json!({"id": "m", "business": BUSINESS, "channel": "whatsapp", "to": "+12025550100", "text": "STOP"});
    let nobody_meta = json!({"object": "whatsapp_business_account", "entry": [{"id": "1", "changes": [{"field": "messages", "value": {
        "messaging_product": "whatsapp", "metadata": {"display_phone_number": "12025550100"},
        "messages": [{"id": "wamid.1", "timestamp": "1793500000", "type": "text", "text": {"body": "STOP"}}]}}]}]});
    for (name, record) in [
        ("an empty value", Record::new("k", "")),
        ("a null value", Record::tombstone("k")),
        ("one byte", Record::new("k", "x")),
        ("one zero byte", Record::new("k", b"\0")),
        ("a truncated registry frame", Record::new("k", b"\0\0\0")),
        ("a registry frame of nothing", Record::new("k", b"\0\0\0\0\x2a")),
        ("a body that is not UTF-8", Record::new("k", b"\xff\xfe{\0\"\0f\0r\0o\0m\0\"\0")),
        ("JSON nested 10,000 deep", Record::new("k", nested(10_000))),
        ("objects nested 10,000 deep", Record::new("k", deep_object)),
        ("a body of no known shape", Record::new("k", "{\"hello\":\"world\"}")),
        ("a number", Record::new("k", "17")),
        ("JSON that ends early", Record::new("k", "{\"from\":\"+12025550143\",\"text\":\"STOP\"")),
        ("a message of nobody", Record::new("k", nobody.to_string())),
        ("a webhook message of nobody", Record::new("k", nobody_meta.to_string())),
        ("no key and headers", Record::without_key("?").header("h", b"\xff").null_header("n")),
    ] {
        assert_dead_letter(&world, "detect", inbound, name, record);
    }
    world.says(&phone(1), "STOP");
    assert_opted_out(&world, &format!("phone:{}", phone(1)));
    assert!(world.kafka.read_committed(&world.names.opt_outs).len() == 1, "and nothing else was written");
    service.ready();
    service.terminate();
}

#[test]
fn one_unreadable_message_of_a_body_does_not_silence_the_others() {
    let Some(broker) = Broker::shared() else { return };
    let world = World::new(broker, "bad-one-of-three");
    let mut service = world.serving("detect", "a").spawn();
    service.ready();
    let seconds = (now_ms() / 1000).to_string();
    let text = |from: &str, id: &str| json!({"from": from, "id": id, "timestamp": seconds, "type": "text", "text": {"body": "STOP"}});
    let body = json!({"object": "whatsapp_business_account", "entry": [{"id": BUSINESS, "changes": [{"field": "messages", "value": {
        "messaging_product": "whatsapp",
        "metadata": {"display_phone_number": "12025550100", "phone_number_id": "800700600500400"},
        "messages": [text("12025550401", "wamid.1"), {"id": "wamid.2", "timestamp": seconds, "type": "text", "text": {"body": "STOP"}}, text("12025550403", "wamid.3")],
    }}]}]});
    let record = Record::new("12025550401", body.to_string());
    let dead = assert_dead_letter(&world, "detect", &world.names.inbound, "the second message", record);
    assert_eq!(dead.header("stopgate-index").as_deref(), Some("1"));
    assert_opted_out(&world, "phone:+12025550401");
    assert_opted_out(&world, "phone:+12025550403");
    service.terminate();
}

#[test]
fn messages_that_only_look_bad_act() {
    let Some(broker) = Broker::shared() else { return };
    let world = World::new(broker, "odd-inbound");
    let mut service = world.serving("detect", "a").spawn();
    service.ready();
    let native = |n: usize, received_at: Value| {
        let mut body = json!({"id": format!("odd{n}"), "business": BUSINESS, "channel": "whatsapp", "from": phone(n), "text": "STOP"});
        if !received_at.is_null() {
            body["received_at"] = received_at;
        }
        Record::new(phone(n), body.to_string())
    };
    let now = now_ms();
    // Times in every form, missing and absurd ones too.
    let times = [
        json!(now),
        json!(now / 1000),
        json!((now / 1000).to_string()),
        json!(now.to_string()),
        json!("2026-11-01T10:00:00.000Z"),
        Value::Null,
        json!(""),
        json!("yesterday"),
        json!(-1),
        json!(i64::MAX),
        json!(1e300),
        json!("9".repeat(100)),
        json!({"at": 1}),
        json!([true]),
    ];
    let count = times.len();
    world.kafka.produce_all(&world.names.inbound, times.into_iter().enumerate().map(|(n, time)| native(n, time)));
    for n in 0..count {
        assert_opted_out(&world, &format!("phone:{}", phone(n)));
    }
    for record in world.kafka.read_committed(&world.names.opt_outs) {
        let at = decode::<ConsentRecord>(&record).occurred_at_ms;
        assert!(at > now - 8 * 86_400_000 - 60_000 && at < now + 300_000 + 60_000, "{} at {at}", record.key_text());
    }

    // No phone number, but the business-scoped user id.
    let seconds = (now / 1000).to_string();
    let body = json!({"object": "whatsapp_business_account", "entry": [{"id": BUSINESS, "changes": [{"field": "messages", "value": {
        "messaging_product": "whatsapp", "metadata": {"display_phone_number": "12025550100", "phone_number_id": "1"},
        "messages": [{"from_user_id": "US.70011223344556677", "id": "wamid.b", "timestamp": seconds, "type": "text", "text": {"body": "Stop"}}],
    }}]}]});
    world.kafka.produce(&world.names.inbound, Record::new("k", body.to_string()));
    assert_opted_out(&world, "bsuid:US.70011223344556677");

    // Headers that repeat, and whose names are no text.
    let message_of = |n: usize| message(&phone(n), "STOP", now).value;
    let headers = vec![(b"\xff\xfe".to_vec(), Some(b"1".to_vec())), (b"a".to_vec(), None), (b"a".to_vec(), Some(b"\xff".to_vec()))];
    wire::produce(world.bootstrap(), &world.names.inbound, 0, &RawRecord { key: None, value: message_of(50), headers, timestamp: now });
    assert_opted_out(&world, &format!("phone:{}", phone(50)));

    // Texts of 900 KB, looked at from both ends.
    let spaces = " ".repeat(900_000);
    for (n, text) in [(60, format!("STOP{spaces}")), (61, format!("{spaces}STOP"))] {
        world.kafka.produce(&world.names.inbound, message(&phone(n), &text, now));
        assert_opted_out(&world, &format!("phone:{}", phone(n)));
    }
    let prose = "I would like to know more. ".repeat(33_000);
    world.kafka.produce(&world.names.inbound, message(&phone(62), &prose, now));
    world.says(&phone(63), "STOP");
    assert_opted_out(&world, &format!("phone:{}", phone(63)));

    // Unknown kinds of messages say nothing.
    let body = json!({"object": "whatsapp_business_account", "entry": [{"id": BUSINESS, "changes": [{"field": "messages", "value": {
        "messaging_product": "whatsapp", "metadata": {"display_phone_number": "12025550100", "phone_number_id": "1"},
        "messages": [{"from": "12025550464", "id": "wamid.u", "timestamp": seconds, "type": "hologram", "hologram": {"x": 1}}],
    }}]}]});
    world.kafka.produce(&world.names.inbound, Record::new("k", body.to_string()));
    world.says(&phone(65), "STOP");
    assert_opted_out(&world, &format!("phone:{}", phone(65)));

    assert!(world.kafka.read_committed(&world.names.dead_letters).is_empty(), "nothing of this is a dead letter");
    assert!(service.metric("stopgate_messages_total", &["class=\"none\""]) >= 2.0, "the unknown kind is counted");
    service.terminate();
}

#[test]
fn a_registry_frame_is_taken_off() {
    let Some(broker) = Broker::shared() else { return };
    let world = World::new(broker, "registry");
    let mut service = world.serving("detect", "a").spawn();
    service.ready();
    let mut framed = b"\0\0\0\0\x2a".to_vec();
    framed.extend(message(&phone(1), "STOP", now_ms()).value.unwrap_or_default());
    world.kafka.produce(&world.names.inbound, Record::new("k", framed));
    assert_opted_out(&world, &format!("phone:{}", phone(1)));
    service.terminate();
}

#[test]
fn sends_that_cannot_be_read_are_dead_letters_and_the_filter_goes_on() {
    let Some(broker) = Broker::shared() else { return };
    let world = World::new(broker, "bad-sends");
    world.opts_out(&phone(1));
    let mut service = world.serving("filter", "a").spawn();
    service.ready();
    let sends = &world.names.sends;
    let without = |field: &str| {
        let mut body = json!({"id": "s", "business": BUSINESS, "channel": "whatsapp", "to": phone(1), "category": "marketing"});
        body.as_object_mut().expect("an object").remove(field);
        Record::new("k", body.to_string())
    };
    for (name, record) in [
        ("an empty value", Record::new("k", "")),
        ("a null value", Record::tombstone("k")),
        ("one byte", Record::new("k", "x")),
        ("a body that is not UTF-8", Record::new("k", b"{\"to\":\"\xff\"}")),
        ("JSON nested 10,000 deep", Record::new("k", nested(10_000))),
        ("a body of no known shape", Record::new("k", "{\"hello\":\"world\"}")),
        ("a truncated registry frame", Record::new("k", b"\0\0\0")),
        ("a send to nobody", without("to")),
        ("a send of no business", without("business")),
        (
            "a recipient that is no identity",
            Record::new("k", json!({"id": "s", "business": BUSINESS, "channel": "whatsapp", "to": 17.5, "category": "marketing"}).to_string()),
        ),
        ("no key and headers", Record::without_key("?").header("h", b"\xff").null_header("n")),
    ] {
        assert_dead_letter(&world, "filter", sends, name, record);
    }
    let outcomes = world.outcomes();
    world.asks("good", &phone(1));
    outcomes.await_suppressed("good");
    assert_eq!(outcomes.allowed.seen().len(), 0, "nothing unreadable is allowed");
    world.assert_every_send_has_one_outcome();
    service.ready();
    service.terminate();
}

#[test]
fn headers_of_sends_that_are_no_text_are_carried_unchanged() {
    let Some(broker) = Broker::shared() else { return };
    let world = World::new(broker, "raw-headers");
    world.opts_out(&phone(1));
    let mut service = world.serving("filter", "a").spawn();
    service.ready();
    let headers = vec![
        (b"\xff\xfe".to_vec(), Some(b"1".to_vec())),
        (b"\xff\xfe".to_vec(), None),
        (b"trace".to_vec(), Some(b"\xc3\x28".to_vec())),
        (Vec::new(), Some(Vec::new())),
        (b"trace".to_vec(), Some(b"again".to_vec())),
    ];
    let put = |id: &str, to: usize| {
        let value = send(id, &phone(to), "marketing").value;
        let record = RawRecord { key: Some(b"k".to_vec()), value, headers: headers.clone(), timestamp: 1_700_000_000_123 };
        wire::produce(world.bootstrap(), &world.names.sends, 2, &record);
        record
    };
    let (allowed, suppressed) = (put("allowed", 2), put("suppressed", 1));
    let read = |topic: &str| wait_for(topic, DEADLINE, || wire::read(world.bootstrap(), topic, 2).into_iter().next().ok_or("empty")).1;
    assert_eq!(read(&world.names.allowed), allowed);
    let found = read(&world.names.suppressed);
    assert_eq!((&found.key, &found.value, found.timestamp), (&suppressed.key, &suppressed.value, suppressed.timestamp));
    let own: Vec<_> = found.headers.into_iter().filter(|(name, _)| !name.starts_with(b"stopgate-")).collect();
    assert_eq!(own, headers);
    service.terminate();
}
