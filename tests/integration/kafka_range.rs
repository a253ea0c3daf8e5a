//! Reading stretches of a topic to a captured end: past markers, aborted records and what retention took.

use std::sync::Mutex;
use std::time::Duration;

use stopgate::kafka::Connection;
use stopgate::kafka::offsets::OffsetsClient;
use stopgate::kafka::range::{RangeError, RangeReader, Span, read_in_parallel};

use crate::support::broker::Broker;
use crate::support::kafka::Record;

fn connection(broker: &Broker) -> Connection {
    Connection { bootstrap: broker.bootstrap().to_owned(), settings: [].into() }
}

#[test]
fn a_stretch_ends_at_its_end_whatever_lies_there() {
    let Some(broker) = Broker::shared() else { return };
    let kafka = broker.kafka();
    let topic = broker.unique("range");
    kafka.create(&topic, 3);
    let record = |value: &str, partition| Record::new("k", value).to(partition);
    // Partition 0: two records, a marker, then an aborted record and its marker at the end. Partition 1: a plain one.
    kafka.produce_committed(&topic, [record("a", 0), record("b", 0)]);
    kafka.produce_aborted(&topic, [record("never", 0)]);
    kafka.produce(&topic, record("c", 1));
    let connection = connection(broker);
    let offsets = OffsetsClient::new(&connection, "range").expect("a client");
    let ends = offsets.ends(&topic, 3, Duration::from_secs(10)).expect("ends");
    assert_eq!(ends.as_slice(), [5, 1, 0]);
    let spans: Vec<Span> = (0..).zip(ends.as_slice()).map(|(partition, to)| Span { partition, from: 0, to: *to }).collect();
    let name = topic.as_str().into();
    let read = Mutex::new(Vec::new());
    let note = |record: &stopgate::record::Record<'_>| {
        let value = String::from_utf8_lossy(record.value.unwrap_or_default()).into_owned();
        read.lock().expect("not poisoned").push((record.partition, record.offset, value));
    };
    // Written after the ends were captured: not read.
    kafka.produce(&topic, record("later", 1));
    read_in_parallel(&connection, "range", &name, &spans, 2, note).expect("read");
    let mut found = std::mem::take(&mut *read.lock().expect("not poisoned"));
    found.sort();
    assert_eq!(found, [(0, 0, "a".to_owned()), (0, 1, "b".to_owned()), (1, 0, "c".to_owned())]);

    let mut middle = RangeReader::new(&connection, "range", &name, &[Span { partition: 0, from: 1, to: 4 }]).expect("a reader");
    middle.for_each(note).expect("read");
    assert_eq!(*read.lock().expect("not poisoned"), [(0, 1, "b".to_owned())]);

    kafka.delete_before(&topic, 0, 1);
    let mut gone = RangeReader::new(&connection, "range", &name, &[Span { partition: 0, from: 0, to: 4 }]).expect("a reader");
    let error = gone.for_each(|_| ()).expect_err("offset 0 is gone");
    assert!(matches!(error, RangeError::Gone { partition: 0, offset: 0, .. }), "{error}");
}
