//! What a start costs without a broker: records of the opt-outs topic read and applied, a snapshot written and loaded.

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use prost::Message;
use std::hint::black_box;
use stopgate::domain::business::Businesses;
use stopgate::domain::consent::Position;
use stopgate::domain::suppression::{PrintKey, SHARDS};
use stopgate::domain::view::ConsentView;
use stopgate::stage::apply::{Change, Reader, Written};
use stopgate::wire::proto;
use stopgate::wire::snapshot::{Head, SnapshotReader, SnapshotWriter};

/// As the program has it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const PRINTS: PrintKey = PrintKey::new(1, 2);
const RECORDS: u64 = 1_000_000;
const SLICE: usize = 512;

/// Records as detect writes them, evidence apart.
fn records() -> Vec<(Vec<u8>, Vec<u8>)> {
    let record = |n: u64| {
        let value = proto::ConsentRecord {
            state: proto::ConsentState::OptedOut.into(),
            occurred_at_ms: 1_793_500_000_000 + n as i64 * 600,
            changed_state: true,
            ..Default::default()
        };
        (format!("acme|whatsapp|phone:+55119{:08}|marketing", n * 10).into_bytes(), value.encode_to_vec())
    };
    (0..RECORDS).map(record).collect()
}

fn read(reader: &mut Reader<'_>, records: &[(Vec<u8>, Vec<u8>)]) -> Vec<Change> {
    let read = |(offset, (key, value)): (u64, &(Vec<u8>, Vec<u8>))| {
        reader.read(&Written { at: Position { partition: 0, offset }, timestamp_ms: Some(5), key: Some(key), value: Some(value) })
    };
    (0..).zip(records).map(read).collect()
}

fn filled(changes: &[Change]) -> ConsentView {
    let mut view = ConsentView::new(PRINTS, 1);
    view.expect_many(Some(changes.len()));
    for slice in changes.chunks(SLICE) {
        view.prefetch_rows(slice.iter().filter_map(Change::person));
        slice.iter().for_each(|change| {
            black_box(change.apply(&mut view));
        });
    }
    view.expect_many(None);
    let mut tight = view.set().tightened(0..SHARDS);
    view.relieve(&mut tight);
    view
}

fn written(view: &ConsentView) -> Vec<u8> {
    let head = Head {
        secret: PRINTS.secret(),
        reading: [0; 32],
        topic_id: String::new(),
        taken_at_ms: 0,
        partitions: Vec::new(),
        unreadable: Vec::new(),
    };
    let mut writer = SnapshotWriter::new(Vec::new(), &head).expect("memory");
    (0..SHARDS).for_each(|shard| writer.shard(shard, &view.set().shard_image(shard)).expect("memory"));
    writer.finish(&view.set().side_tables(), &view.seen()).expect("memory").0
}

fn restore(criterion: &mut Criterion) {
    let businesses = Businesses::default();
    let records = records();
    let mut group = criterion.benchmark_group("restore");
    group.throughput(Throughput::Elements(RECORDS)).sample_size(10);
    group.bench_function("read records", |bencher| bencher.iter(|| read(&mut Reader::new(PRINTS, &businesses), &records)));
    let changes = read(&mut Reader::new(PRINTS, &businesses), &records);
    group.bench_function("apply them", |bencher| bencher.iter_batched(|| (), |()| filled(&changes), BatchSize::PerIteration));
    let view = filled(&changes);
    group.bench_function("write a snapshot", |bencher| bencher.iter(|| written(&view)));
    let bytes = written(&view);
    println!("a snapshot takes {:.1} bytes a key", bytes.len() as f64 / RECORDS as f64);
    let load = || SnapshotReader::new(bytes.as_slice()).and_then(|(_, rest)| rest.view(PRINTS, vec![0])).expect("a snapshot");
    group.bench_function("load a snapshot", |bencher| bencher.iter_batched(|| (), |()| load(), BatchSize::PerIteration));
    group.finish();
}

criterion_group!(benches, restore);
criterion_main!(benches);
