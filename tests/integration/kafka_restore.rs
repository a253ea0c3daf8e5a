//! What a start finds on the broker: a compacted topic, positions out of range, a broker that comes and goes.

use std::time::Duration;

use crate::support::broker::{Broker, Options};
use crate::support::kafka::CLEANED_AT_ONCE;
use crate::support::records::{OPTED_IN, OPTED_OUT};
use crate::support::wait::{DEADLINE, holds_for, wait_for};
use crate::support::world::{Layout, World, message, now_ms, phone, send};

#[test]
fn a_compacted_topic_restores_to_the_same_decisions() {
    let Some(broker) = Broker::shared() else { return };
    let mut settings = CLEANED_AT_ONCE.to_vec();
    settings.push(("message.timestamp.type", "LogAppendTime"));
    let world = World::with(broker, "compaction", Layout { opt_outs_settings: settings, ..Layout::default() });
    let start = now_ms() - 3_600_000;
    let identity = |n: usize| format!("phone:{}", phone(n));
    // A hundred people change their minds ten times; the last word of each depends on the number.
    let producer = world.kafka.producer();
    for round in 0..10 {
        producer.send_all(
            &world.names.opt_outs,
            (0..100).map(|n| {
                let state = if (n + round) % 2 == 0 { OPTED_OUT } else { OPTED_IN };
                world.consent_record(&identity(n), "marketing", state, start + i64::from(round as i32) * 1_000)
            }),
        );
    }
    let left = wait_for("compaction of the opt-outs topic", DEADLINE, || {
        // Closed segments are what is compacted: a later record closes one.
        std::thread::sleep(Duration::from_millis(150));
        for partition in 0..world.layout.opt_outs {
            world.kafka.produce(&world.names.opt_outs, world.consent_record("ext:nobody", "marketing", OPTED_OUT, start).to(partition));
        }
        let left = world.kafka.read_committed(&world.names.opt_outs);
        let acts = left.iter().filter(|record| record.key_text().contains("|phone:")).count();
        if acts == 100 { Ok(acts) } else { Err(acts) }
    });
    assert_eq!(left, 100, "one record each is left");
    // A marker as the last thing, and holes everywhere else.
    world.kafka.produce_aborted(&world.names.opt_outs, [world.consent_record(&identity(500), "marketing", OPTED_OUT, start)]);

    let mut service = world.serving("filter", "a").spawn();
    service.ready();
    let outcomes = world.outcomes();
    world.kafka.produce_all(&world.names.sends, (0..100).map(|n| send(&format!("s{n}"), &phone(n), "marketing")));
    for n in 0..100 {
        // In the last round, 9, the odd ones opted out.
        let id = format!("s{n}");
        if n % 2 == 1 {
            outcomes.await_suppressed(&id)
        } else {
            outcomes.await_allowed(&id)
        };
    }
    world.assert_every_send_has_one_outcome();
}

/// Starts `verb` with a committed position outside of its input: it must hold and say so, and skip nothing.
fn holds_out_of_range(broker: &Broker, verb: &str, offset: i64) {
    let world = World::new(broker, "out-of-range");
    let (topic, group) = match verb {
        "filter" => (&world.names.sends, &world.names.filter_group),
        _ => (&world.names.inbound, &world.names.detect_group),
    };
    let record = |n: usize| match verb {
        "filter" => send(&format!("s{n}"), &phone(n), "marketing").to(0),
        _ => message(&phone(n), "STOP", now_ms()).to(0),
    };
    world.kafka.produce_all(topic, (0..10).map(record));
    world.kafka.delete_before(topic, 0, 7);
    world.kafka.commit(group, topic, &[(0, offset), (1, 0)]);
    let mut service = world.serving(verb, "a").spawn();
    service.unready(|body| body.contains(topic.as_str()));
    let written = || {
        let topics = [&world.names.allowed, &world.names.suppressed, &world.names.dead_letters, &world.names.opt_outs];
        let count: usize = topics.iter().map(|topic| world.kafka.read_committed(topic).len()).sum();
        if count == 0 { Ok(()) } else { Err(count) }
    };
    holds_for("nothing is decided", Duration::from_secs(4), written);
    assert_eq!(world.kafka.committed(group, topic)[0], Some(offset), "the position is left as it was");
    service.still_runs();
    service.terminate();
    // The operator decides where to go on.
    world.kafka.commit(group, topic, &[(0, 7)]);
    let mut service = world.serving(verb, "a").spawn();
    service.ready();
    wait_for("the three records that are left", DEADLINE, || match verb {
        "filter" => match world.kafka.read_committed(&world.names.allowed).len() {
            3 => Ok(()),
            count => Err(count),
        },
        _ => match world.kafka.read_committed(&world.names.opt_outs).len() {
            3 => Ok(()),
            count => Err(count),
        },
    });
    service.terminate();
}

#[test]
fn a_committed_position_below_the_first_record_holds_the_filter() {
    let Some(broker) = Broker::shared() else { return };
    holds_out_of_range(broker, "filter", 3);
}

#[test]
fn a_committed_position_beyond_the_end_holds_the_filter() {
    let Some(broker) = Broker::shared() else { return };
    holds_out_of_range(broker, "filter", 30);
}

#[test]
fn a_committed_position_out_of_range_holds_detect() {
    let Some(broker) = Broker::shared() else { return };
    holds_out_of_range(broker, "detect", 3);
    holds_out_of_range(broker, "detect", 30);
}

#[test]
fn records_from_before_the_first_start_are_read() {
    let Some(broker) = Broker::shared() else { return };
    let world = World::new(broker, "earliest");
    world.says(&phone(1), "STOP");
    let outcomes = world.outcomes();
    let mut detect = world.serving("detect", "d").spawn();
    detect.ready();
    wait_for("the opt-out", DEADLINE, || match world.kafka.read_committed(&world.names.opt_outs).len() {
        1 => Ok(()),
        count => Err(count),
    });
    detect.terminate();
    world.asks("early", &phone(1));
    let mut filter = world.serving("filter", "f").spawn();
    filter.ready();
    outcomes.await_suppressed("early");
    filter.terminate();
}

#[test]
fn the_service_outlives_a_broker_that_restarts() {
    let Some(broker) = Broker::start(&Options::default()) else { return };
    let world = World::new(&broker, "broker-restart");
    let mut service = world.serving("run", "a").spawn();
    service.ready();
    let feed = |round: usize| {
        let people = round * 100..round * 100 + 100;
        world.kafka.produce_all(&world.names.inbound, people.clone().step_by(2).map(|n| message(&phone(n), "STOP", now_ms())));
        world.kafka.produce_all(&world.names.sends, people.map(|n| send(&format!("s{n}"), &phone(n), "marketing")));
    };
    for round in 0..3 {
        feed(round);
        if round == 1 {
            broker.shut_down();
        } else {
            broker.kill();
        }
        std::thread::sleep(Duration::from_secs(2));
        service.still_runs();
        broker.restart();
    }
    feed(3);
    let outcomes = world.outcomes();
    wait_for("an outcome of every send", DEADLINE * 2, || match outcomes.count() {
        400 => Ok(()),
        count => Err(count),
    });
    service.ready();
    // After the outage, a STOP works as before.
    world.kafka.produce(&world.names.inbound, message(&phone(1001), "STOP", now_ms()));
    wait_for("the opt-out of the last person", DEADLINE, || {
        let found = world.kafka.read_committed(&world.names.opt_outs);
        if found.iter().any(|record| record.key_text().contains(&phone(1001))) { Ok(()) } else { Err(found.len()) }
    });
    world.asks("last", &phone(1001));
    outcomes.await_suppressed("last");
    world.assert_every_send_has_one_outcome();
    let replies = world.kafka.read_committed(&world.names.replies);
    let answered: std::collections::BTreeSet<Vec<u8>> = replies.iter().filter_map(|record| record.key.clone()).collect();
    assert_eq!((replies.len(), answered.len()), (201, 201), "one confirmation each");
    service.terminate();
}

#[test]
fn a_frozen_broker_holds_and_a_thawed_one_goes_on() {
    let Some(broker) = Broker::start(&Options::default()) else { return };
    let world = World::new(&broker, "broker-frozen");
    let mut service = world.serving("filter", "a").spawn();
    service.ready();
    let outcomes = world.outcomes();
    world.asks("before", &phone(1));
    outcomes.await_allowed("before");
    broker.freeze();
    std::thread::sleep(Duration::from_secs(12));
    service.still_runs();
    broker.thaw();
    world.kafka.produce(&world.names.sends, send("after", &phone(1), "marketing"));
    outcomes.await_allowed("after");
    world.assert_every_send_has_one_outcome();
    service.terminate();
}
