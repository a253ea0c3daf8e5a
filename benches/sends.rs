//! Sends read and made ready for the look-up, bytes to fingerprints, without a broker: JSON and protobuf.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use prost::Message;
use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::Arc;
use stopgate::domain::business::Businesses;
use stopgate::domain::key::Channel;
use stopgate::domain::send::Categories;
use stopgate::domain::suppression::PrintKey;
use stopgate::record::{Header, Record, TopicName};
use stopgate::stage::filter::{Filter, FilterRules, SendsTopic};
use stopgate::wire::proto;
use stopgate::wire::send::{SendDecoder, SendFormat, SendPointers};

fn filter() -> Filter {
    let decoder = SendDecoder::new(SendFormat::Auto, &SendPointers::default()).expect("pointers");
    let rules = FilterRules {
        topics: vec![SendsTopic { name: "sends".into(), decoder, exempt_only: false }],
        businesses: Arc::new(Businesses::default()),
        categories: Categories::new(["utility", "authentication", "service"].map(str::to_owned), BTreeMap::new()),
        default_channel: Channel::Whatsapp,
        book: Arc::default(),
        guidance: None,
    };
    Filter::new(rules, PrintKey::new(1, 2))
}

fn prepare(criterion: &mut Criterion) {
    let topic: TopicName = "sends".into();
    let text = "Thirty percent off until Sunday. Free delivery on every order. Thirty percent off";
    let compact = format!(
        r#"{{"id":"s000000000007","business":"acme","channel":"whatsapp","to":"+5511900000030","category":"marketing","campaign":"autumn-2026","template":"offer_30","text":"{text}"}}"#
    );
    let nested = compact.replace(r#""text":"#, r#""meta":{"a":[1,2.5]},"text":"#);
    let request = proto::SendRequest {
        business: "acme".into(),
        channel: "whatsapp".into(),
        to: vec!["+5511900000030".into()],
        category: "marketing".into(),
        ..proto::SendRequest::default()
    };
    let announced = [Header { name: b"content-type", value: Some(b"application/x-protobuf") }];
    let mut group = criterion.benchmark_group("sends");
    group.throughput(Throughput::Elements(1));
    let none: &[Header<'_>] = &[];
    for (name, value, headers) in
        [("json", compact.into_bytes(), none), ("json, nested", nested.into_bytes(), none), ("protobuf", request.encode_to_vec(), &announced)]
    {
        let mut filter = filter();
        let record = Record { topic: &topic, partition: 0, offset: 0, timestamp_ms: None, key: None, value: Some(&value), headers };
        group.bench_function(name, |bencher| bencher.iter(|| black_box(filter.prepare(black_box(&record)))));
    }
    group.finish();
}

criterion_group!(benches, prepare);
criterion_main!(benches);
