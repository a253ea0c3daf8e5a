//! The broker harness itself: that its broker is a real one (isolation, compaction, timestamps), and that its client
//! sees what is there.

use std::panic::AssertUnwindSafe;

use prost::Message as _;

use crate::support::broker::Broker;
use crate::support::kafka::{CLEANED_AT_ONCE, Isolation, Record};
use crate::support::records::{DecisionBlock, ReasonCount};
use crate::support::wait::{DEADLINE, wait_for};
use crate::support::wire::{self, RawRecord};
use crate::support::world::{World, phone, send};

#[test]
fn a_record_is_read_as_it_was_written() {
    let Some(broker) = Broker::shared() else { return };
    let kafka = broker.kafka();
    let topic = broker.unique("harness-plain");
    kafka.create(&topic, 3);
    let record = Record::new("key", b"\xff\x00value").to(2).at(1_700_000_000_123).header("a", "1").header("a", b"\xfe").null_header("b");
    assert_eq!(kafka.produce(&topic, record.clone()), (2, 0));
    let read = kafka.read_committed(&topic);
    assert_eq!(read.len(), 1);
    assert_eq!((&read[0].key, &read[0].value, &read[0].headers), (&record.key, &record.value, &record.headers));
    assert_eq!((read[0].partition, read[0].offset, read[0].timestamp), (2, 0, record.timestamp));
    assert_eq!(kafka.ends(&topic), [0, 0, 1]);
}

#[test]
fn aborted_records_are_hidden_from_committed_readers_alone() {
    let Some(broker) = Broker::shared() else { return };
    let kafka = broker.kafka();
    let topic = broker.unique("harness-transactions");
    kafka.create(&topic, 1);
    kafka.produce_aborted(&topic, [Record::new("k", "aborted")]);
    kafka.produce_committed(&topic, [Record::new("k", "committed")]);
    let open = kafka.transactional(&broker.unique("open"));
    open.begin();
    open.send(&topic, Record::new("k", "open"));
    kafka.produce(&topic, Record::new("k", "above the open transaction"));

    let values = |isolation| kafka.read(&topic, isolation).iter().map(|record| record.value_text()).collect::<Vec<_>>();
    assert_eq!(values(Isolation::Committed), ["committed"]);
    assert_eq!(values(Isolation::Uncommitted), ["aborted", "committed", "open", "above the open transaction"]);
    // 0 aborted, 1 marker, 2 committed, 3 marker, 4 open, 5 plain: the readers' ends differ too.
    assert_eq!(kafka.bounds(&topic, Isolation::Uncommitted), [(0, 6)]);
    assert_eq!(kafka.bounds(&topic, Isolation::Committed), [(0, 4)]);
    open.commit();
    assert_eq!(values(Isolation::Committed), ["committed", "open", "above the open transaction"]);
}

#[test]
fn a_compacted_topic_is_compacted_within_seconds() {
    let Some(broker) = Broker::shared() else { return };
    let kafka = broker.kafka();
    let topic = broker.unique("harness-compaction");
    kafka.create_with(&topic, 1, CLEANED_AT_ONCE);
    for version in 0..50 {
        kafka.produce(&topic, Record::new("same", format!("{version}")));
    }
    let values = wait_for("compaction", DEADLINE, || {
        kafka.produce(&topic, Record::new("roll", ""));
        let values: Vec<String> =
            kafka.read_committed(&topic).iter().filter(|record| record.key_text() == "same").map(|record| record.value_text()).collect();
        if values.len() == 1 { Ok(values) } else { Err(values.len()) }
    });
    assert_eq!(values, ["49"]);
}

#[test]
fn header_names_that_are_not_text_survive_the_raw_client() {
    let Some(broker) = Broker::shared() else { return };
    let kafka = broker.kafka();
    let topic = broker.unique("harness-wire");
    kafka.create_with(&topic, 2, &[("compression.type", "uncompressed")]);
    let record = RawRecord {
        key: Some(b"k".to_vec()),
        value: None,
        headers: vec![(b"\xff\xfe".to_vec(), Some(b"1".to_vec())), (b"\xff\xfe".to_vec(), None), (Vec::new(), None)],
        timestamp: 1_700_000_000_000,
    };
    assert_eq!(wire::produce(broker.bootstrap(), &topic, 1, &record), 0);
    kafka.produce_committed(&topic, [Record::new("k", "v").to(1).at(5)]);
    let read = wire::read(broker.bootstrap(), &topic, 1);
    let plain = RawRecord { key: Some(b"k".to_vec()), value: Some(b"v".to_vec()), headers: Vec::new(), timestamp: 5 };
    assert_eq!(read, [(0, record), (1, plain)]);
    assert!(wire::read(broker.bootstrap(), &topic, 0).is_empty());
}

#[test]
fn records_can_be_deleted_and_offsets_committed() {
    let Some(broker) = Broker::shared() else { return };
    let kafka = broker.kafka();
    let topic = broker.unique("harness-offsets");
    let group = broker.unique("harness-group");
    kafka.create(&topic, 2);
    kafka.produce_all(&topic, (0..10).map(|n| Record::new("k", format!("{n}")).to(0)));
    kafka.delete_before(&topic, 0, 7);
    assert_eq!(kafka.bounds(&topic, Isolation::Uncommitted), [(7, 10), (0, 0)]);
    assert_eq!(kafka.read_committed(&topic).len(), 3);
    kafka.commit(&group, &topic, &[(0, 3)]);
    assert_eq!(kafka.committed(&group, &topic), [Some(3), None]);
}

#[test]
fn a_broker_of_ones_own_survives_a_kill_with_its_records() {
    let Some(broker) = Broker::start(&crate::support::broker::Options::default()) else { return };
    let kafka = broker.kafka();
    kafka.create("t", 1);
    kafka.produce("t", Record::new("k", "before"));
    broker.kill();
    broker.restart();
    kafka.produce("t", Record::new("k", "after"));
    let values: Vec<String> = kafka.read_committed("t").iter().map(|record| record.value_text()).collect();
    assert_eq!(values, ["before", "after"]);
}

/// Plays the filter by hand for two sends, the first of them suppressed; `spoil` may change what is written.
fn played(broker: &Broker, spoil: impl FnOnce(&mut Vec<Record>, &mut Vec<Record>, &mut DecisionBlock)) -> World {
    let world = World::new(broker, "harness-checker");
    let inputs = ["a", "b", "c"].map(|id| send(id, &phone(1), "marketing").to(1).at(1_700_000_000_000));
    world.kafka.produce_all(&world.names.sends, inputs.clone());
    let suppressed = inputs[0].clone().header("stopgate-source", format!("{}-1@0", world.names.sends));
    let count = |count| vec![ReasonCount { reason: "r".into(), count }];
    let mut block = DecisionBlock {
        topic: world.names.sends.clone(),
        partition: 1,
        first_offset: 0,
        end_offset: 3,
        as_of: vec![0; 3],
        rules_version: "1".into(),
        allowed: count(2),
        suppressed: count(1),
        ..DecisionBlock::default()
    };
    let (mut allowed, mut suppressed) = (inputs[1..].to_vec(), vec![suppressed]);
    spoil(&mut allowed, &mut suppressed, &mut block);
    world.kafka.produce_all(&world.names.allowed, allowed);
    world.kafka.produce_all(&world.names.suppressed, suppressed);
    let key = format!("{}-1", world.names.sends);
    world.kafka.produce(&world.names.decisions, Record::new(key, block.encode_to_vec()));
    world
}

#[test]
fn the_checker_of_outcomes_notices_every_kind_of_fault() {
    let Some(broker) = Broker::shared() else { return };
    played(broker, |_, _, _| ()).assert_every_send_has_one_outcome();
    type Fault = fn(&mut Vec<Record>, &mut Vec<Record>, &mut DecisionBlock);
    let faults: [(&str, Fault); 9] = [
        ("lost", |allowed, _, _| drop(allowed.pop())),
        ("doubled", |allowed, _, _| allowed.push(allowed[0].clone())),
        ("allowed and suppressed", |allowed, suppressed, _| allowed.insert(0, suppressed[0].clone())),
        ("out of order", |allowed, _, _| allowed.reverse()),
        ("another value", |allowed, _, _| allowed[0].value = Some(b"{}".to_vec())),
        ("another header", |allowed, _, _| allowed[0].headers.push(("x".into(), None))),
        ("another partition", |allowed, _, _| allowed[0].partition = Some(0)),
        ("a gap between blocks", |_, _, block| block.first_offset = 1),
        ("a wrong count", |_, _, block| block.allowed[0].count = 1),
    ];
    for (name, fault) in faults {
        let world = played(broker, fault);
        let checked = std::panic::catch_unwind(AssertUnwindSafe(|| world.assert_every_send_has_one_outcome()));
        assert!(checked.is_err(), "{name} was not noticed");
    }
}
