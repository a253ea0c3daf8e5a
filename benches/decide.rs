//! What a decision costs beside a set of 1, 10 and 50 million keys: sends that are read already, to their outcome, in the portions
//! that the filter decides in. One of ten recipients has opted out.
//!
//! `cargo bench --bench decide -- '50 M'` measures one size alone; the largest takes a gigabyte.

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::Arc;
use stopgate::domain::business::Businesses;
use stopgate::domain::consent::{Act, ConsentState, Position, Source};
use stopgate::domain::identity::Identity;
use stopgate::domain::key::{Channel, Subject};
use stopgate::domain::send::Categories;
use stopgate::domain::suppression::{PrintKey, SHARDS};
use stopgate::domain::time::Timestamp;
use stopgate::domain::view::ConsentView;
use stopgate::record::{Record, TopicName};
use stopgate::stage::filter::{Filter, FilterRules, Prepared, SendsTopic};
use stopgate::wire::send::{SendDecoder, SendFormat, SendPointers};

/// As the program has it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const PRINTS: PrintKey = PrintKey::new(1, 2);
/// Decided with their memory fetched at once, as the filter does.
const NEAR: usize = 32;
const SENDS: u64 = 32 * 1024;

fn phone(number: u64) -> String {
    format!("+551{:010}", 1_100_000_000 + number)
}

fn filled(entries: u64) -> ConsentView {
    let mut view = ConsentView::new(PRINTS, 1);
    view.meet("acme", &Subject::Marketing);
    let slot = PRINTS.slot(&Channel::Whatsapp, &Subject::Marketing);
    view.expect_many(Some(entries as usize));
    for number in 0..entries {
        let identity = Identity::parse(&phone(number * 10)).expect("a phone");
        let act = Act {
            state: ConsentState::OptedOut,
            occurred_at: Timestamp::EPOCH.plus_millis(1_793_500_000_000 + number as i64 * 600),
            source: Source { topic: 1, partition: 0, offset: number * 17, index: 0 },
            cause: Position { partition: 0, offset: number },
            changed_state: true,
        };
        view.apply_to(PRINTS.person("acme", &identity), slot, act, None);
    }
    view.expect_many(None);
    let mut tight = view.set().tightened(0..SHARDS);
    view.relieve(&mut tight);
    view
}

fn prepared(entries: u64) -> Vec<Prepared> {
    let decoder = SendDecoder::new(SendFormat::Auto, &SendPointers::default()).expect("pointers");
    let rules = FilterRules {
        topics: vec![SendsTopic { name: "sends".into(), decoder, exempt_only: false }],
        businesses: Arc::new(Businesses::default()),
        categories: Categories::new(["utility", "authentication", "service"].map(str::to_owned), BTreeMap::new()),
        default_channel: Channel::Whatsapp,
        book: Arc::default(),
        guidance: None,
    };
    let (mut filter, topic) = (Filter::new(rules, PRINTS), TopicName::from("sends"));
    let send = |n: u64| {
        let to = phone(n.wrapping_mul(0x9e37_79b9_7f4a_7c15) % (entries * 10));
        let value = format!(r#"{{"id":"s{n}","business":"acme","channel":"whatsapp","to":"{to}","category":"marketing"}}"#);
        let record =
            Record { topic: &topic, partition: 0, offset: n, timestamp_ms: None, key: None, value: Some(value.as_bytes()), headers: &[] };
        filter.prepare(&record)
    };
    (0..SENDS).map(send).collect()
}

fn decide(criterion: &mut Criterion) {
    let chosen = std::env::args().nth(1).filter(|argument| argument.ends_with(" M"));
    for millions in [1, 10, 50] {
        let name = format!("{millions} M");
        if chosen.as_ref().is_some_and(|chosen| *chosen != name) {
            continue; // filling takes longer than measuring
        }
        let view = filled(millions * 1_000_000);
        let sends = prepared(millions * 1_000_000);
        let mut group = criterion.benchmark_group("decide");
        group.throughput(Throughput::Elements(SENDS)).sample_size(20);
        group.bench_function(name, |bencher| {
            let all = || {
                for near in sends.chunks(NEAR) {
                    view.prefetch(near.iter().flat_map(Prepared::persons).copied());
                    near.iter().for_each(|send| {
                        black_box(send.decide(&view, None));
                    });
                }
            };
            bencher.iter_batched(|| (), |()| all(), BatchSize::PerIteration);
        });
        group.finish();
    }
}

criterion_group!(benches, decide);
criterion_main!(benches);
