//! Transactions at the client itself: how they end while much is on its way.

use std::time::Duration;

use stopgate::kafka::Connection;
use stopgate::kafka::producer::{Limits, TransactionalProducer};
use stopgate::record::Produce;

use crate::support::broker::Broker;
use crate::support::wait::{DEADLINE, wait_for};

/// More than any request holds.
const MANY: usize = 100_000;

#[test]
fn a_transaction_is_aborted_although_much_of_it_was_not_sent_yet() {
    let Some(broker) = Broker::shared() else { return };
    let topic = broker.unique("aborted");
    broker.kafka().create(&topic, 1);
    let connection = Connection { bootstrap: broker.bootstrap().to_owned(), settings: Default::default() };
    let producer = wait_for("a producer", DEADLINE, || {
        TransactionalProducer::new(&connection, &topic, Limits::DEFAULT, Duration::from_secs(5)).map_err(|error| error.to_string())
    });
    let record = Produce { topic: topic.as_str().into(), partition: 0, key: None, value: Some(vec![b'x'; 300]), headers: Vec::new() };
    // Twice: what was left of the first must not be in the way of the second.
    for _ in 0..2 {
        producer.begin().expect("begun");
        for _ in 0..MANY {
            producer.produce(&record).expect("taken");
        }
        producer.abort(Duration::from_secs(10)).expect("aborted in time");
    }
    assert_eq!(broker.kafka().read_committed(&topic).len(), 0);
}
