//! No leak, and in doubt hold: the fence against a real broker's markers, aborted records and open transactions.

use std::time::Duration;

use serde_json::json;

use crate::support::broker::Broker;
use crate::support::kafka::{Isolation, Producer, Record};
use crate::support::records::{ConsentRecord, OPTED_OUT};
use crate::support::service::Service;
use crate::support::wait::{DEADLINE, holds_for, wait_until};
use crate::support::world::{BUSINESS, Outcome, Outcomes, World, consent_key, id_of, message, now_ms, phone, send};

/// How long a held send is watched.
const HELD: Duration = Duration::from_secs(4);

#[track_caller]
fn assert_held(outcomes: &Outcomes, id: &str) {
    holds_for(&format!("send {id} is held"), HELD, || outcomes.of(id).map_or(Ok(()), |found| Err(Box::new(found))));
}

/// Sends to other people all the while, so that batches overlap the moments that the test is about.
fn noise(world: &World, producer: &Producer, round: usize) {
    producer.send_all(&world.names.sends, (0..20).map(|n| send(&format!("noise{round}-{n}"), &phone(9000 + n), "marketing")));
}

#[test]
fn an_opt_out_acknowledged_before_the_send_is_always_honoured() {
    let Some(broker) = Broker::shared() else { return };
    let world = World::new(broker, "fence-opt-outs");
    let mut service = world.serving("filter", "a").arg("--fence", "opt-outs").spawn();
    service.ready();
    let outcomes = world.outcomes();
    let producer = world.kafka.producer();
    for n in 0..150 {
        noise(&world, &producer, n);
        producer.send(&world.names.opt_outs, world.consent_record(&format!("phone:{}", phone(n)), "marketing", OPTED_OUT, now_ms()));
        producer.send(&world.names.sends, send(&format!("s{n}"), &phone(n), "marketing"));
    }
    for n in 0..150 {
        outcomes.await_suppressed(&format!("s{n}"));
    }
}

#[test]
fn at_level_inbound_a_stop_acknowledged_before_the_send_is_always_honoured() {
    let Some(broker) = Broker::shared() else { return };
    let world = World::new(broker, "fence-inbound");
    let mut service = world.serving("run", "a").arg("--fence", "inbound").spawn();
    service.ready();
    let outcomes = world.outcomes();
    let producer = world.kafka.producer();
    for n in 0..100 {
        noise(&world, &producer, n);
        producer.send(&world.names.inbound, message(&phone(n), "STOP", now_ms()));
        producer.send(&world.names.sends, send(&format!("s{n}"), &phone(n), "marketing"));
    }
    for n in 0..100 {
        outcomes.await_suppressed(&format!("s{n}"));
    }
}

#[test]
fn at_level_inbound_two_processes_keep_the_same_promise() {
    let Some(broker) = Broker::shared() else { return };
    let world = World::new(broker, "fence-apart");
    let mut filter = world.serving("filter", "f").arg("--fence", "inbound").spawn();
    // The sends of a filter whose detect has never run wait for it.
    world.says(&phone(1), "STOP");
    world.asks("before-detect", &phone(1));
    let outcomes = world.outcomes();
    assert_held(&outcomes, "before-detect");
    let mut detect = world.serving("detect", "d").spawn();
    detect.ready();
    outcomes.await_suppressed("before-detect");
    filter.ready();
    let producer = world.kafka.producer();
    for n in 100..150 {
        producer.send(&world.names.inbound, message(&phone(n), "STOP", now_ms()));
        producer.send(&world.names.sends, send(&format!("s{n}"), &phone(n), "marketing"));
    }
    for n in 100..150 {
        outcomes.await_suppressed(&format!("s{n}"));
    }
    // Inbound messages that end in a marker, or say nothing, do not hold sends for ever.
    world.kafka.produce_committed(&world.names.inbound, [message(&phone(200), "hello", now_ms())]);
    world.kafka.produce_aborted(&world.names.inbound, [message(&phone(201), "STOP", now_ms())]);
    world.asks("behind-markers", &phone(201));
    outcomes.await_allowed("behind-markers");
    drop(detect.kill());
    world.says(&phone(202), "STOP");
    world.asks("after-detect", &phone(202));
    assert_held(&outcomes, "after-detect");
    let mut detect = world.serving("detect", "d").spawn();
    detect.ready();
    outcomes.await_suppressed("after-detect");
}

#[test]
fn at_level_inbound_a_position_of_detect_beyond_the_end_proves_nothing() {
    let Some(broker) = Broker::shared() else { return };
    let world = World::new(broker, "fence-beyond");
    // As it is after the inbound topic was deleted and created again: detect holds, and has read nothing of this.
    world.kafka.commit(&world.names.detect_group, &world.names.inbound, &[(0, 1000), (1, 1000)]);
    let mut service = world.serving("run", "a").arg("--fence", "inbound").spawn();
    service.unready(|body| body.contains(world.names.inbound.as_str()));
    world.says(&phone(1), "STOP");
    world.asks("unread-stop", &phone(1));
    assert_held(&world.outcomes(), "unread-stop");
}

/// Leaves a commit marker, an abort marker, or an aborted batch and its marker, as the last thing of every partition
/// of opt-outs; the aborted batches hold opt-outs of the person `n`.
fn leave_at_the_tails(world: &World, kind: &str, n: usize) {
    for partition in 0..world.layout.opt_outs {
        let record = |n: usize| {
            let identity = format!("phone:{}", phone(n));
            world.consent_record(&identity, "marketing", OPTED_OUT, now_ms()).to(partition)
        };
        match kind {
            "commit marker" => world.kafka.produce_committed(&world.names.opt_outs, [record(8000)]),
            "abort marker" => {
                world.kafka.produce_all(&world.names.opt_outs, [record(8000)]);
                world.kafka.produce_aborted(&world.names.opt_outs, [record(n)])
            }
            _ => world.kafka.produce_aborted(&world.names.opt_outs, (0..50).map(|_| record(n))),
        };
    }
}

#[test]
fn markers_and_aborted_batches_at_the_tail_neither_hold_nor_suppress() {
    let Some(broker) = Broker::shared() else { return };
    for kind in ["commit marker", "abort marker", "aborted batch"] {
        let world = World::new(broker, "fence-tail");
        leave_at_the_tails(&world, kind, 1);
        // Before the start: the restore must come to its end.
        let mut service = world.serving("filter", "a").spawn();
        service.ready();
        let outcomes = world.outcomes();
        world.asks("restored", &phone(1));
        outcomes.await_allowed("restored");
        // While it runs: the fence must come to its end.
        for round in 0..3 {
            leave_at_the_tails(&world, kind, 2);
            let id = format!("{kind} {round}");
            world.asks(&id, &phone(2));
            outcomes.await_allowed(&id);
        }
        service.terminate();
    }
}

#[test]
fn an_open_transaction_on_opt_outs_holds_the_sends_until_it_ends() {
    let Some(broker) = Broker::shared() else { return };
    let world = World::new(broker, "fence-open");
    let mut service = world.serving("filter", "a").spawn();
    service.ready();
    let outcomes = world.outcomes();
    let writer = world.kafka.transactional(&broker.unique("third-party"));
    let opt_out = |n: usize| world.consent_record(&format!("phone:{}", phone(n)), "marketing", OPTED_OUT, now_ms());

    writer.begin();
    writer.send(&world.names.opt_outs, opt_out(1));
    world.asks("while-open", &phone(1));
    assert_held(&outcomes, "while-open");
    service.unready(|body| !body.is_empty());
    writer.commit();
    outcomes.await_suppressed("while-open");
    service.ready();

    writer.begin();
    writer.send(&world.names.opt_outs, opt_out(2));
    world.asks("while-open-again", &phone(2));
    assert_held(&outcomes, "while-open-again");
    writer.abort();
    outcomes.await_allowed("while-open-again");
    service.ready();
    world.assert_every_send_has_one_outcome();
}

#[test]
fn a_send_that_expires_while_it_is_held_is_suppressed_for_that_and_says_when() {
    let Some(broker) = Broker::shared() else { return };
    let world = World::new(broker, "fence-expiry");
    let mut service = world.serving("filter", "a").spawn();
    service.ready();
    let outcomes = world.outcomes();
    let writer = world.kafka.transactional(&broker.unique("third-party"));
    writer.begin();
    writer.send(&world.names.opt_outs, world.consent_record(&format!("phone:{}", phone(1)), "marketing", OPTED_OUT, now_ms()));
    let expires_at = now_ms() + 3_000;
    let body = json!({"id": "short-lived", "business": BUSINESS, "channel": "whatsapp", "to": phone(2), "category": "marketing", "expires_at": expires_at});
    let (partition, _) = world.kafka.produce(&world.names.sends, Record::new("k", body.to_string()));
    world.kafka.produce(&world.names.sends, send("patient", &phone(2), "marketing").to(partition));
    let expired = outcomes.await_suppressed("short-lived");
    assert!(now_ms() >= expires_at, "it was held until it expired");
    assert_eq!(expired.header("stopgate-reason").as_deref(), Some("expired-while-held"));
    assert_held(&outcomes, "patient");
    writer.abort();
    outcomes.await_allowed("patient");
    let blocks = world.blocks();
    let block = blocks.values().flatten().find(|block| block.expired_as_of_ms != 0);
    assert!(block.is_some_and(|block| block.expired_as_of_ms >= expires_at), "the time of that decision: {blocks:?}");
    world.assert_every_send_has_one_outcome();
}

#[test]
fn a_value_that_cannot_be_read_is_an_opt_out_of_its_key() {
    use prost::Message as _;
    let Some(broker) = Broker::shared() else { return };
    let world = World::new(broker, "poison-value");
    let put = |n: usize, value: &[u8]| {
        let identity = format!("phone:{}", phone(n));
        let key = consent_key(BUSINESS, "whatsapp", &identity, "marketing");
        world.kafka.produce(&world.names.opt_outs, Record::new(key, value).to(world.partition_of(BUSINESS, &identity)));
    };
    let unknown = ConsentRecord { state: 99, occurred_at_ms: now_ms(), ..ConsentRecord::default() };
    put(1, b"\xff\xff\xff");
    put(2, &unknown.encode_to_vec());
    let mut service = world.serving("filter", "a").spawn();
    service.ready();
    // And while it runs.
    put(3, b"");
    put(4, b"{\"state\":\"OPTED_IN\"}");
    let outcomes = world.outcomes();
    for n in 1..=4 {
        world.asks(&format!("s{n}"), &phone(n));
        outcomes.await_suppressed(&format!("s{n}"));
    }
    world.asks("s5", &phone(5));
    outcomes.await_allowed("s5");
    service.ready();
    let alarmed = service.metric("stopgate_consent_unreadable_total", &[]);
    assert!(alarmed >= 4.0, "each is counted, for an alarm: {alarmed}");
}

#[test]
fn a_key_that_cannot_be_read_closes_the_fence_until_it_is_acknowledged() {
    let Some(broker) = Broker::shared() else { return };
    for restored in [false, true] {
        let world = World::new(broker, "poison-key");
        let poison = |service: Option<&mut Service>| {
            let (partition, offset) = world.kafka.produce(&world.names.opt_outs, Record::new(b"\xff|garbage", "x").to(1));
            let position = format!("{partition}@{offset}");
            if let Some(service) = service {
                service.unready(|body| body.contains(&position));
            }
            position
        };
        let (service, first) = if restored {
            let position = poison(None);
            let mut service = world.serving("filter", "a").spawn();
            service.unready(|body| body.contains(&position));
            (service, position)
        } else {
            let mut service = world.serving("filter", "a").spawn();
            service.ready();
            let position = poison(Some(&mut service));
            (service, position)
        };
        let outcomes = world.outcomes();
        world.asks("held", &phone(1));
        assert_held(&outcomes, "held");
        service.terminate();

        let world = world.setting(&format!("acknowledged_poison = [\"{first}\"]"));
        let mut service = world.serving("filter", "a").spawn();
        service.ready();
        outcomes.await_allowed("held");
        // Acknowledged is that record alone.
        let (partition, offset) = world.kafka.produce(&world.names.opt_outs, Record::new("another", "x").to(0));
        service.unready(|body| body.contains(&format!("{partition}@{offset}")));
        world.asks("held-again", &phone(2));
        assert_held(&outcomes, "held-again");
        service.terminate();
    }
}

#[test]
fn more_partitions_of_opt_outs_hold_the_sends() {
    let Some(broker) = Broker::shared() else { return };
    let world = World::new(broker, "fence-grown");
    let mut service = world.serving("filter", "a").spawn();
    service.ready();
    let outcomes = world.outcomes();
    world.asks("before", &phone(1));
    outcomes.await_allowed("before");
    world.kafka.grow(&world.names.opt_outs, 5);
    // The client learns of it within its metadata age at the latest.
    service.unready(|body| !body.is_empty());
    world.asks("after", &phone(1));
    holds_for("sends are held", HELD, || match outcomes.of("after") {
        None | Some(Outcome::Suppressed(_)) => Ok(()),
        Some(other) => Err(Box::new(other)),
    });
}

#[test]
fn a_recreated_opt_outs_topic_is_restored_again() {
    let Some(broker) = Broker::shared() else { return };
    let world = World::new(broker, "fence-recreated");
    for n in 0..30 {
        world.opts_out(&phone(n));
    }
    let mut service = world.serving("filter", "a").spawn();
    service.ready();
    let outcomes = world.outcomes();
    world.asks("before", &phone(1));
    outcomes.await_suppressed("before");
    world.kafka.delete(&world.names.opt_outs);
    world.kafka.create_with(&world.names.opt_outs, world.layout.opt_outs, &world.layout.opt_outs_settings);
    world.opts_out(&phone(100));
    world.asks("after", &phone(100));
    outcomes.await_suppressed("after");
    wait_until("the new topic to be all that counts", DEADLINE, || service.get("/readyz").is_ok_and(|(status, _)| status == 200));
    world.asks("forgotten", &phone(1));
    outcomes.await_allowed("forgotten");
}

#[test]
fn an_opt_outs_topic_that_is_recreated_while_it_is_restored_is_restored_again() {
    let Some(broker) = Broker::shared() else { return };
    let world = World::new(broker, "restore-recreated");
    // Nobody can read past an open transaction: the restore goes on for as long as it is open. It stands at the beginning of every
    // partition, where the log that follows begins too; that one ends long before.
    let writer = world.kafka.transactional(&broker.unique("third-party"));
    writer.begin();
    for partition in 0..world.layout.opt_outs {
        for _ in 0..50 {
            writer.send(&world.names.opt_outs, world.consent_record("ext:somebody", "marketing", OPTED_OUT, now_ms()).to(partition));
        }
    }
    let mut service = world.serving("filter", "a").spawn();
    service.unready(|body| body.contains("restoring"));
    world.kafka.delete(&world.names.opt_outs);
    world.kafka.create_with(&world.names.opt_outs, world.layout.opt_outs, &world.layout.opt_outs_settings);
    world.opts_out(&phone(100));
    service.ready();
    let outcomes = world.outcomes();
    world.asks("known", &phone(100));
    outcomes.await_suppressed("known");
}

#[test]
fn a_topic_of_exempt_sends_does_not_wait_for_a_closed_fence() {
    let Some(broker) = Broker::shared() else { return };
    let world = World::new(broker, "exempt-only");
    let codes = broker.unique("codes");
    let (allowed, suppressed) = (format!("{codes}.allowed"), format!("{codes}.suppressed"));
    for topic in [&codes, &allowed, &suppressed] {
        world.kafka.create(topic, 2);
    }
    let world = world.tables(&format!("[[sends]]\ntopic = \"{codes}\"\nexempt_only = true"));
    let mut service = world.serving("filter", "a").spawn();
    service.ready();
    // Somebody stopped everything; and nobody can know what else was written.
    world.consent(&format!("phone:{}", phone(1)), "all", OPTED_OUT, now_ms());
    let writer = world.kafka.transactional(&broker.unique("third-party"));
    writer.begin();
    writer.send(&world.names.opt_outs, world.consent_record("ext:somebody", "marketing", OPTED_OUT, now_ms()));
    world.asks("held", &phone(3));
    service.unready(|body| !body.is_empty());
    world.kafka.produce(&codes, send("code", &phone(1), "authentication"));
    world.kafka.produce(&codes, send("campaign", &phone(2), "marketing"));
    let passed = world.kafka.reader(&allowed, Isolation::Committed);
    passed.find("the one-time password", |record| id_of(record).as_deref() == Some("code"));
    let dead = world.kafka.reader(&world.names.dead_letters, Isolation::Committed);
    dead.find("the campaign, dead", |record| id_of(record).as_deref() == Some("campaign"));
    let outcomes = world.outcomes();
    assert_held(&outcomes, "held");
    writer.abort();
    service.ready();
    outcomes.await_allowed("held");
    assert_eq!(world.kafka.read_committed(&allowed).len(), 1);
}
