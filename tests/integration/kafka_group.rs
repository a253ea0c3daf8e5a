//! A member of a group, at the client itself: what it is handed after it went back, while the group wants partitions of it.

use std::time::Duration;

use stopgate::kafka::Connection;
use stopgate::kafka::group::{GroupConsumer, Received};
use stopgate::kafka::offsets::OffsetsClient;
use stopgate::record::{Rebalance, TopicName, TopicPartition};

use crate::support::broker::Broker;
use crate::support::kafka::Record;
use crate::support::wait::{DEADLINE, wait_for};

const PARTITIONS: u32 = 4;

/// What the group asks of a member first.
fn asked(member: &GroupConsumer) -> Rebalance {
    wait_for("the group to ask", DEADLINE, || {
        member.attend().expect("attended");
        member.asked().ok_or(())
    })
}

#[test]
fn a_member_that_goes_back_before_it_hears_what_the_group_asks_hears_it_before_any_record() {
    let Some(broker) = Broker::shared() else { return };
    let kafka = broker.kafka();
    let topic = broker.unique("group");
    kafka.create(&topic, PARTITIONS as i32);
    for partition in 0..PARTITIONS {
        kafka.produce_all(&topic, (0..50).map(|n| Record::new("k", format!("{n}")).to(partition as i32)));
    }
    // Other events stand in the member's queue before what the group asks, as errors do while brokers come and go.
    let settings = [("statistics.interval.ms".to_owned(), "50".to_owned())].into();
    let connection = Connection { bootstrap: broker.bootstrap().to_owned(), settings };
    let name: TopicName = topic.as_str().into();
    let group = broker.unique("members");
    let join = |member: &str| GroupConsumer::new(&connection, &group, member, std::slice::from_ref(&name)).expect("a member");
    let partitions: Vec<TopicPartition> = (0..PARTITIONS).map(|partition| (name.clone(), partition)).collect();
    let start: Vec<(TopicPartition, u64)> = partitions.iter().cloned().map(|partition| (partition, 0)).collect();

    let first = join("first");
    let taken = asked(&first);
    let Rebalance::Take(mut all) = taken else { panic!("{taken:?}") };
    all.sort();
    assert_eq!(all, partitions);
    first.take(&start, &[]).expect("taken");
    let mut received: Vec<Received<'_>> = Vec::new();
    wait_for("the records", DEADLINE, || {
        first.receive(Duration::from_millis(50), 1000, &mut received).expect("received");
        if received.len() == 200 { Ok(()) } else { Err(received.len()) }
    });
    received.clear();

    // A second member joins, and half of the partitions is to be given. The first one is busy and hears nothing.
    let second = join("second");
    let none = asked(&second);
    second.take(&[], &[]).expect("answered");
    assert!(matches!(&none, Rebalance::Take(partitions) if partitions.is_empty()), "{none:?}");
    let offsets = OffsetsClient::new(&connection, &group).expect("a client");
    wait_for("partitions that the group has taken away", DEADLINE, || {
        let unowned = offsets.unowned(&group, std::slice::from_ref(&name), Duration::from_secs(1));
        if unowned.is_empty() { Err(()) } else { Ok(()) }
    });
    std::thread::sleep(Duration::from_secs(1));

    first.rewind(&start).expect("gone back");
    first.receive(Duration::from_secs(2), 1000, &mut received).expect("received");
    let asked = first.asked();
    // What is not answered would keep a member from leaving.
    if let Some(Rebalance::Give { partitions, .. }) = &asked {
        first.give(partitions).expect("given");
    }
    assert!(matches!(&asked, Some(Rebalance::Give { partitions, lost: false }) if partitions.len() == 2), "{asked:?}");
    let handed: Vec<String> = received.iter().map(|received| format!("{}@{}", received.partition(), received.offset())).collect();
    assert_eq!(handed, [""; 0], "records of partitions that another member may have by now");
}
