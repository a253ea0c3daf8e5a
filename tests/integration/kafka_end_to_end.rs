//! The main job on a real broker: what people say stops the sends to them, and nothing else changes.

use serde_json::json;

use crate::support::broker::Broker;
use crate::support::kafka::{Isolation, Received, Record};
use crate::support::records::{ConsentRecord, OPT_IN_CONFIRMATION, OPT_OUT_CONFIRMATION, OPTED_IN, OPTED_OUT, ReplyRequest, decode};
use crate::support::world::{BUSINESS, World, consent_key, message, now_ms, phone, send};

/// The record of that key on the opt-outs topic, once it is there.
#[track_caller]
fn await_consent(world: &World, key: &str) -> (Received, ConsentRecord) {
    let reader = world.kafka.reader(&world.names.opt_outs, Isolation::Committed);
    let record = reader.find(key, |record| record.key_text() == key);
    let value = decode(&record);
    (record, value)
}

fn without_evidence(record: &Received) -> Vec<(String, Option<Vec<u8>>)> {
    let added = ["stopgate-reason", "stopgate-cause", "stopgate-as-of", "stopgate-source", "stopgate-rules"];
    record.headers.iter().filter(|(name, _)| !added.contains(&name.as_str())).cloned().collect()
}

#[test]
fn a_stop_suppresses_the_marketing_sends_that_follow_and_nothing_else() {
    let Some(broker) = Broker::shared() else { return };
    let world = World::new(broker, "stop");
    let mut service = world.serving("run", "a").spawn();
    service.ready();
    let (ada, bob) = (phone(143), phone(144));

    let before = now_ms();
    let (partition, offset) = world.kafka.produce(&world.names.inbound, message(&ada, " Stop! ", before));
    let key = consent_key(BUSINESS, "whatsapp", &format!("phone:{ada}"), "marketing");
    let (record, consent) = await_consent(&world, &key);
    assert_eq!(record.partition, world.partition_of(BUSINESS, &format!("phone:{ada}")), "the partition of {key}");
    assert_eq!((consent.state, consent.occurred_at_ms, consent.changed_state), (OPTED_OUT, before, true));
    let evidence = consent.evidence.expect("evidence");
    let source = evidence.source.clone().expect("coordinates");
    assert_eq!(
        (source.topic, source.partition, source.offset, source.index),
        (world.names.inbound.clone(), partition.cast_unsigned(), offset.cast_unsigned(), 0)
    );
    assert_eq!(evidence.provider_message_id, format!("m-{ada}-{before}"));
    assert_eq!(evidence.receiving_number, "+12025550100");
    assert!(!evidence.rule.is_empty() && !evidence.lexicon_version.is_empty(), "{evidence:?}");

    // Sends of every kind, with spaces, headers and times that a careless copy would lose.
    let odd = |id: &str, to: &str, category: &str| {
        let text = format!(
            "{{ \"id\":\"{id}\",\n \"business\" : \"acme\", \"channel\":\"whatsapp\", \"to\":\"{to}\", \"category\":\"{category}\", \"é\": 1.0e1 }}\n"
        );
        Record { key: Some(b"\xff\x00key".to_vec()), ..Record::without_key(text) }
            .to(2)
            .at(before - 5_000)
            .header("trace", b"\xfe\xff")
            .header("trace", "again")
            .null_header("empty")
    };
    let inputs = [
        odd("marketing-to-ada", &ada, "MARKETING"),
        odd("utility-to-ada", &ada, "utility"),
        odd("one-time-password-to-ada", &ada, "Authentication"),
        odd("marketing-to-bob", &bob, "marketing"),
    ];
    let positions = world.kafka.produce_all(&world.names.sends, inputs.clone());
    let outcomes = world.outcomes();

    let suppressed = outcomes.await_suppressed("marketing-to-ada");
    assert_eq!((&suppressed.key, &suppressed.value), (&inputs[0].key, &inputs[0].value));
    assert_eq!(without_evidence(&suppressed), inputs[0].headers, "its own headers, in order");
    assert_eq!((suppressed.partition, suppressed.timestamp), (2, inputs[0].timestamp));
    assert_eq!(suppressed.header("stopgate-reason").as_deref(), Some("opted-out"));
    assert_eq!(suppressed.header("stopgate-cause"), Some(record.position()));
    assert_eq!(suppressed.header("stopgate-source"), Some(format!("{}-2@{}", world.names.sends, positions[0].1)));
    assert!(suppressed.header("stopgate-rules").is_some_and(|rules| !rules.is_empty()));
    let as_of = suppressed.header("stopgate-as-of").expect("stopgate-as-of");
    let mut applied: Vec<(i32, i64)> = as_of
        .split(',')
        .map(|position| position.split_once('@').expect("P@O"))
        .map(|(partition, offset)| (partition.parse().expect("a partition"), offset.parse().expect("an offset")))
        .collect();
    applied.sort_unstable();
    assert_eq!(applied.iter().map(|(partition, _)| *partition).collect::<Vec<_>>(), [0, 1, 2], "{as_of}");
    assert!(applied.contains(&(record.partition, record.offset + 1)), "{as_of} is the next offset to apply");

    for (input, id) in inputs[1..].iter().zip(["utility-to-ada", "one-time-password-to-ada", "marketing-to-bob"]) {
        let allowed = outcomes.await_allowed(id);
        assert_eq!(
            (&allowed.key, &allowed.value, &allowed.headers, allowed.timestamp, allowed.partition),
            (&input.key, &input.value, &input.headers, input.timestamp, 2),
            "{id} is as it came in"
        );
    }
    world.assert_every_send_has_one_outcome();
    service.terminate();
}

#[test]
fn every_message_of_a_webhook_body_acts() {
    let Some(broker) = Broker::shared() else { return };
    let world = World::new(broker, "webhook");
    let mut service = world.serving("run", "a").spawn();
    service.ready();
    let seconds = (now_ms() / 1000).to_string();
    let text = |from: &str, id: &str, body: &str| json!({"from": from, "id": id, "timestamp": seconds, "type": "text", "text": {"body": body}});
    let change = |number: &str, messages: serde_json::Value| {
        json!({"field": "messages", "value": {
            "messaging_product": "whatsapp",
            "metadata": {"display_phone_number": number, "phone_number_id": "800700600500400"},
            "messages": messages,
        }})
    };
    let body = json!({"object": "whatsapp_business_account", "entry": [
        {"id": "900100200300400", "changes": [
            change("12025550100", json!([
                text("12025550201", "wamid.1", "Hello, when do you open?"),
                text("12025550202", "wamid.2", "STOP"),
                {"from": "12025550203", "id": "wamid.3", "timestamp": seconds, "type": "button",
                 "button": {"payload": "STOP", "text": "Stop promotions"}},
            ])),
            change("12025550101", json!([text("12025550204", "wamid.4", "parar")])),
        ]},
        {"id": "900100200300401", "changes": [change("12025550102", json!([text("12025550205", "wamid.5", "SALIR")]))]},
    ]});
    world.kafka.produce(&world.names.inbound, Record::new("12025550201", body.to_string()));

    for (business, person, id, index) in [
        ("900100200300400", "+12025550202", "wamid.2", 1),
        ("900100200300400", "+12025550203", "wamid.3", 2),
        ("900100200300400", "+12025550204", "wamid.4", 3),
        ("900100200300401", "+12025550205", "wamid.5", 4),
    ] {
        let reader = world.kafka.reader(&world.names.opt_outs, Isolation::Committed);
        let prefix = format!("{business}|whatsapp|phone:{person}|");
        let record = reader.find(&prefix, |record| record.key_text().starts_with(&prefix));
        assert_eq!(record.partition, world.partition_of(business, &format!("phone:{person}")), "{prefix}");
        let consent: ConsentRecord = decode(&record);
        let evidence = consent.evidence.expect("evidence");
        assert_eq!((consent.state, evidence.provider_message_id.as_str()), (OPTED_OUT, id));
        assert_eq!(evidence.source.map(|source| source.index), Some(index), "{id}");
    }
    let outcomes = world.outcomes();
    for (id, business, to) in [
        ("greeted", "900100200300400", "+12025550201"),
        ("stopped", "900100200300400", "+12025550202"),
        ("stopped-elsewhere", "900100200300401", "+12025550202"),
    ] {
        let body = json!({"id": id, "business": business, "channel": "whatsapp", "to": to, "category": "marketing"});
        world.kafka.produce(&world.names.sends, Record::new(to, body.to_string()));
    }
    outcomes.await_allowed("greeted");
    outcomes.await_suppressed("stopped");
    outcomes.await_allowed("stopped-elsewhere");
    service.terminate();
}

#[test]
fn an_opt_in_lets_marketing_pass_again_and_each_change_is_confirmed_once() {
    let Some(broker) = Broker::shared() else { return };
    let world = World::new(broker, "opt-in");
    let mut service = world.serving("run", "a").spawn();
    service.ready();
    let ada = phone(301);
    let outcomes = world.outcomes();
    let start = now_ms() - 60_000;
    let opt_outs = world.kafka.reader(&world.names.opt_outs, Isolation::Committed);
    let says = |text: &str, at: i64| {
        let before = opt_outs.seen().len();
        world.kafka.produce(&world.names.inbound, message(&ada, text, at));
        opt_outs.at_least(before + 1);
    };

    says("STOP", start);
    world.asks("after-stop", &ada);
    outcomes.await_suppressed("after-stop");
    // Said twice: the fold keeps it, nobody is told twice.
    says("STOP", start + 1_000);
    says("START", start + 2_000);
    world.asks("after-start", &ada);
    outcomes.await_allowed("after-start");
    says("STOP", start + 3_000);
    world.asks("after-second-stop", &ada);
    outcomes.await_suppressed("after-second-stop");

    let replies = world.kafka.reader(&world.names.replies, Isolation::Committed);
    replies.at_least(3);
    assert_eq!(service.metric("stopgate_replies_expired_total", &[]), 0.0);
    // A message that was written long ago is answered, and counted: its sender drops the answer.
    world.kafka.produce(&world.names.inbound, message(&phone(302), "STOP", now_ms() - 600_000));
    replies.at_least(4);
    assert_eq!(service.metric("stopgate_replies_expired_total", &[]), 1.0);
    service.terminate();
    // Keyed by the recipient: in one partition, in order.
    let replies = world.kafka.read_committed(&world.names.replies);
    let replies: Vec<ReplyRequest> = replies.iter().map(decode).filter(|reply: &ReplyRequest| reply.to.ends_with(&ada)).collect();
    let kinds: Vec<i32> = replies.iter().map(|reply| reply.kind).collect();
    assert_eq!(kinds, [OPT_OUT_CONFIRMATION, OPT_IN_CONFIRMATION, OPT_OUT_CONFIRMATION], "{replies:?}");
    for (reply, at) in replies.iter().zip([start, start + 2_000, start + 3_000]) {
        assert_eq!((reply.to.as_str(), reply.business.as_str()), (format!("phone:{ada}").as_str(), BUSINESS));
        assert_eq!(reply.in_reply_to, format!("m-{ada}-{at}"));
        let received = reply.expires_at_ms - 300_000;
        assert!((at..=now_ms()).contains(&received), "five minutes after it was received: {received}");
        assert!(!reply.text.is_empty() && !reply.id.is_empty());
    }
    let ids: std::collections::BTreeSet<&str> = replies.iter().map(|reply| reply.id.as_str()).collect();
    assert_eq!(ids.len(), 3, "every act has its own confirmation id");
}

#[test]
fn an_older_opt_in_that_arrives_late_changes_nothing() {
    let Some(broker) = Broker::shared() else { return };
    let world = World::new(broker, "late");
    let mut service = world.serving("filter", "a").spawn();
    service.ready();
    let outcomes = world.outcomes();
    let (ada, bob) = (format!("phone:{}", phone(311)), format!("phone:{}", phone(312)));
    let now = now_ms();
    world.consent(&ada, "marketing", OPTED_OUT, now);
    world.consent(&ada, "marketing", OPTED_IN, now - 1);
    // At equal times the opt-out stands, whichever came first.
    world.consent(&bob, "marketing", OPTED_OUT, now);
    world.consent(&bob, "marketing", OPTED_IN, now);
    world.asks("to-ada", &phone(311));
    world.asks("to-bob", &phone(312));
    outcomes.await_suppressed("to-ada");
    outcomes.await_suppressed("to-bob");
    world.consent(&ada, "marketing", OPTED_IN, now + 1);
    world.asks("to-ada-again", &phone(311));
    outcomes.await_allowed("to-ada-again");
}

#[test]
fn subjects_and_channels_reach_as_far_as_they_say() {
    let Some(broker) = Broker::shared() else { return };
    let world = World::new(broker, "subjects");
    let now = now_ms();
    let identity = |n| format!("phone:{}", phone(n));
    world.consent(&identity(1), "all", OPTED_OUT, now);
    world.consent(&identity(2), "program:news", OPTED_OUT, now);
    world.consent(&identity(3), "review", OPTED_OUT, now);
    world.consent(&identity(4), "marketing", OPTED_OUT, now);
    // A later opt-in on `all` covers the opt-out on `marketing`.
    world.consent(&identity(4), "all", OPTED_IN, now + 1);
    let cross = world.consent_record(&identity(5), "marketing", OPTED_OUT, now);
    let key = consent_key(BUSINESS, "*", &identity(5), "marketing");
    world.kafka.produce(&world.names.opt_outs, Record { key: Some(key.into_bytes()), ..cross });

    let mut service = world.serving("filter", "a").spawn();
    service.ready();
    let outcomes = world.outcomes();
    let ask = |id: &str, n: usize, more: serde_json::Value| {
        let mut body = json!({"id": id, "business": BUSINESS, "channel": "whatsapp", "to": phone(n), "category": "marketing"});
        body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        world.kafka.produce(&world.names.sends, Record::new(phone(n), body.to_string()));
    };
    ask("all-stops-utility", 1, json!({"category": "utility"}));
    ask("program-stops-its-own", 2, json!({"program": "news"}));
    ask("program-leaves-others", 2, json!({"program": "offers"}));
    ask("review-stops-marketing", 3, json!({}));
    ask("review-leaves-utility", 3, json!({"category": "utility"}));
    ask("covered-opt-in", 4, json!({}));
    ask("every-channel", 5, json!({"channel": "sms"}));
    ask("any-of-several", 6, json!({"to": [phone(6), phone(5)]}));
    ask("no-category-is-marketing", 5, json!({"category": null}));
    assert_eq!(outcomes.await_suppressed("all-stops-utility").header("stopgate-reason").as_deref(), Some("opted-out"));
    outcomes.await_suppressed("program-stops-its-own");
    outcomes.await_allowed("program-leaves-others");
    let review = outcomes.await_suppressed("review-stops-marketing");
    assert_eq!(review.header("stopgate-reason").as_deref(), Some("under-review"));
    outcomes.await_allowed("review-leaves-utility");
    outcomes.await_allowed("covered-opt-in");
    outcomes.await_suppressed("every-channel");
    outcomes.await_suppressed("any-of-several");
    outcomes.await_suppressed("no-category-is-marketing");
    world.assert_every_send_has_one_outcome();
}

#[test]
fn without_a_list_of_businesses_a_send_of_another_name_is_counted() {
    let Some(broker) = Broker::shared() else { return };
    let world = World::new(broker, "unknown-business");
    world.opts_out(&phone(1));
    let mut service = world.serving("filter", "a").spawn();
    service.ready();
    let outcomes = world.outcomes();
    let body = json!({"id": "elsewhere", "business": "other", "channel": "whatsapp", "to": phone(1), "category": "marketing"});
    world.kafka.produce(&world.names.sends, Record::new("k", body.to_string()));
    world.kafka.produce(&world.names.sends, send("here", &phone(2), "marketing"));
    outcomes.await_allowed("elsewhere");
    outcomes.await_allowed("here");
    let counted = service.metric("stopgate_sends_unknown_business_total", &[]);
    assert!((counted - 1.0).abs() < f64::EPSILON, "one send of a business without consent records, counted {counted}");
}

#[test]
fn a_tombstone_on_opt_outs_erases_its_key() {
    let Some(broker) = Broker::shared() else { return };
    let world = World::new(broker, "tombstone");
    let identity = format!("phone:{}", phone(1));
    let (key, (partition, _)) = world.consent(&identity, "marketing", OPTED_OUT, now_ms());
    let mut service = world.serving("filter", "a").spawn();
    service.ready();
    let outcomes = world.outcomes();
    world.asks("before", &phone(1));
    outcomes.await_suppressed("before");
    world.kafka.produce(&world.names.opt_outs, Record::tombstone(key).to(partition));
    world.asks("after", &phone(1));
    outcomes.await_allowed("after");
    service.terminate();
}

#[test]
fn evidence_in_headers_adds_one_header_to_allowed_sends() {
    let Some(broker) = Broker::shared() else { return };
    let world = World::new(broker, "evidence").setting("evidence = \"headers\"");
    let mut service = world.serving("filter", "a").spawn();
    service.ready();
    let outcomes = world.outcomes();
    let record = send("s1", &phone(1), "marketing").header("own", "1").to(1);
    world.kafka.produce(&world.names.sends, record.clone());
    let allowed = outcomes.await_allowed("s1");
    assert_eq!((&allowed.key, &allowed.value, allowed.partition), (&record.key, &record.value, 1));
    let (own, added): (Vec<_>, Vec<_>) = allowed.headers.iter().cloned().partition(|(name, _)| name == "own");
    assert_eq!(own, record.headers);
    let names: Vec<&str> = added.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["stopgate"]);
    service.terminate();
}
