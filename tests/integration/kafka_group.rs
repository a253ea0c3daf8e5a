//! A member of a group, at the client itself: what it is handed after it went back, while the group wants partitions of it; and what
//! it may still commit once the group has gone on without it.

use std::time::Duration;

use stopgate::kafka::group::{GroupConsumer, Received};
use stopgate::kafka::offsets::OffsetsClient;
use stopgate::kafka::producer::{Limits, TransactionalProducer};
use stopgate::kafka::{Connection, EdgeError};
use stopgate::record::{Rebalance, TopicName, TopicPartition};

use super::kafka_network::behind_a_proxy;
use crate::support::broker::Broker;
use crate::support::kafka::Record;
use crate::support::proxy::Kind;
use crate::support::wait::{DEADLINE, wait_for};

const PARTITIONS: u32 = 4;

/// A member that joins at once.
fn joined(connection: &Connection, group: &str, member: &str, topic: &TopicName) -> GroupConsumer {
    let member = GroupConsumer::new(connection, group, member, std::slice::from_ref(topic)).expect("a member");
    member.join().expect("joining");
    member
}

/// What the group asks of a member next.
fn asked(member: &GroupConsumer) -> Rebalance {
    wait_for("the group to ask", DEADLINE, || {
        member.attend().expect("attended");
        member.asked().ok_or(())
    })
}

/// Sessions that a test can outwait, for members and a topic of four partitions with fifty records each.
struct Short {
    name: TopicName,
    group: String,
}

impl Short {
    fn new(broker: &Broker) -> Self {
        let (topic, group) = (broker.unique("short"), broker.unique("members"));
        broker.kafka().create(&topic, PARTITIONS as i32);
        for partition in 0..PARTITIONS {
            broker.kafka().produce_all(&topic, (0..50).map(|n| Record::new("k", format!("{n}")).to(partition as i32)));
        }
        Self { name: topic.as_str().into(), group }
    }

    fn join(&self, bootstrap: &str, member: &str) -> GroupConsumer {
        let settings = [("session.timeout.ms", "3000"), ("heartbeat.interval.ms", "300")];
        let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let connection = Connection { bootstrap: bootstrap.to_owned(), settings };
        joined(&connection, &self.group, member, &self.name)
    }

    /// All partitions at this offset.
    fn at(&self, offset: u64) -> Vec<(TopicPartition, u64)> {
        (0..PARTITIONS).map(|partition| ((self.name.clone(), partition), offset)).collect()
    }

    /// A member's transaction that has these positions and nothing else.
    fn commit(&self, broker: &Broker, member: &GroupConsumer, id: &str, positions: Vec<(TopicPartition, u64)>) -> Result<(), EdgeError> {
        let connection = Connection { bootstrap: broker.bootstrap().to_owned(), settings: Default::default() };
        let id = format!("{}-{id}", self.group);
        let producer = wait_for("a producer", DEADLINE, || {
            TransactionalProducer::new(&connection, &id, Limits::DEFAULT, Duration::from_secs(5)).map_err(|error| error.to_string())
        });
        producer.begin().expect("begun");
        producer.commit(&positions.into_iter().collect(), member, Duration::from_secs(10))
    }

    fn committed(&self, broker: &Broker) -> Vec<Option<i64>> {
        broker.kafka().committed(&self.group, &self.name)
    }
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
    let join = |member: &str| joined(&connection, &group, member, &name);
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
    assert!(matches!(&asked, Some(Rebalance::Give(partitions)) if partitions.len() == 2), "{asked:?}");
    let handed: Vec<String> = received.iter().map(|received| format!("{}@{}", received.partition(), received.offset())).collect();
    assert_eq!(handed, [""; 0], "records of partitions that another member may have by now");
}

/// The client joins its group again on its own account. Where its session ends while it waits to join, it comes back as another
/// member and keeps its partitions, which others have had meanwhile, without a word.
#[test]
fn a_member_that_the_group_forgot_while_it_joined_again_commits_nothing_more() {
    let Some((broker, proxy)) = behind_a_proxy() else { return };
    let short = Short::new(&broker);
    let first = short.join(&proxy.address(), "first");
    assert!(matches!(asked(&first), Rebalance::Take(all) if all.len() == 4));
    first.take(&short.at(0), &[]).expect("taken");
    short.commit(&broker, &first, "first", short.at(10)).expect("a member commits");

    // A second member comes. The first hears of it and asks to join again, but the question takes longer than its session.
    proxy.hold(&[Kind::JoinGroup]);
    let second = short.join(broker.bootstrap(), "second");
    let mut taken = Vec::new();
    wait_for("all partitions to be the second's", DEADLINE, || {
        first.attend().expect("attended");
        second.attend().expect("attended");
        if let Some(Rebalance::Take(partitions)) = second.asked() {
            let starts: Vec<(TopicPartition, u64)> = partitions.into_iter().map(|partition| (partition, 10)).collect();
            second.take(&starts, &[]).expect("taken");
            taken.extend(starts);
        }
        if taken.len() == 4 { Ok(()) } else { Err(taken.clone()) }
    });
    assert_eq!(first.asked(), None, "the first has heard of nothing");
    short.commit(&broker, &second, "second", short.at(30)).expect("a member commits");

    // The question arrives, and the client joins as another member.
    proxy.hold(&[]);
    wait_for("the group to ask", DEADLINE, || {
        first.attend().expect("attended");
        second.attend().expect("attended");
        if let Some(Rebalance::Give(partitions)) = second.asked() {
            second.give(&partitions).expect("given");
        }
        first.asked().map(drop).ok_or(())
    });
    let late = short.commit(&broker, &first, "first", short.at(20));
    // Where a slow machine made it lose its place once more meanwhile, the transaction alone is lost.
    assert!(matches!(late, Err(EdgeError::Expelled(_) | EdgeError::Abort(_))), "{late:?}");
    assert_eq!(short.committed(&broker), [Some(30); 4]);
    // Both leave without an answer to what they were asked last, which does not hold them up.
}
