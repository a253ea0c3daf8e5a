//! Bytes an entry, the longest stall of a look-up while entries are added, and what a look-up costs, at a size.
//!
//! `cargo bench --bench set_size -- [ENTRIES] [ADDED]`, 50 million and 10 million unless said.

#![expect(clippy::disallowed_methods, reason = "it measures")]

use std::iter;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use stopgate::domain::consent::{Act, ConsentState, Position, Source};
use stopgate::domain::key::{Channel, Subject};
use stopgate::domain::suppression::{PersonPrint, PrintKey, SHARDS};
use stopgate::domain::time::Timestamp;
use stopgate::run::view::SharedView;

/// As the program has it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const PRINTS: PrintKey = PrintKey::new(5, 6);
const PARTITIONS: u32 = 4;
/// Entries applied, and persons looked up, in one section.
const SLICE: u64 = 128;

/// Fingerprints that any order of numbers scatters.
fn person(number: u64) -> PersonPrint {
    PRINTS.person_of("acme", "phone", &number.to_le_bytes())
}

/// An opt-out as detection writes it: one message of a hundred is one, the times follow one another.
fn act(number: u64, with_source: bool) -> Act {
    Act {
        state: ConsentState::OptedOut,
        occurred_at: Timestamp::EPOCH.plus_millis(1_793_500_000_000 + (number * 600 + number * 7919 % 5000) as i64),
        source: match with_source {
            true => Source { topic: 1, partition: (number % 6) as u32, offset: number * 17 + number % 13, index: 0 },
            false => Source::default(),
        },
        cause: Position { partition: (number % u64::from(PARTITIONS)) as u32, offset: number / u64::from(PARTITIONS) },
        changed_state: true,
    }
}

fn resident_bytes() -> f64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).map_or(f64::NAN, |pages: f64| pages * 4096.0)
}

/// Time that this thread has run, for a machine that others use too; elapsed time where the system does not tell.
fn cpu_time(began: Instant) -> Duration {
    let told = std::fs::read_to_string("/proc/thread-self/schedstat").ok();
    let nanos = told.and_then(|told| told.split(' ').next().and_then(|nanos| nanos.parse().ok()));
    nanos.map_or_else(|| began.elapsed(), Duration::from_nanos)
}

fn main() {
    let numbers: Vec<u64> = std::env::args().filter_map(|argument| argument.parse().ok()).collect();
    let entries = numbers.first().copied().unwrap_or(50_000_000);
    let added = numbers.get(1).copied().unwrap_or(10_000_000);
    for with_source in [false, true] {
        println!("{}", if with_source { "opt-outs from messages, one of a hundred" } else { "opt-outs from a list, without a source" });
        measure(entries, added, with_source);
    }
}

fn measure(entries: u64, added: u64, with_source: bool) {
    let before = resident_bytes();
    let shared = SharedView::new(PRINTS);
    shared.restart(PARTITIONS, "filling");
    let slot = PRINTS.slot(&Channel::Whatsapp, &Subject::Marketing);
    let apply = |range: std::ops::Range<u64>| {
        let changes: Vec<(PersonPrint, Act)> = range.map(|number| (person(number), act(number, with_source))).collect();
        // Others cannot look up while the acts are applied; while shards are made larger before that, they can.
        shared.apply_for(changes.iter().map(|change| change.0), |view| {
            let began = Instant::now();
            for (person, act) in &changes {
                view.apply_to(*person, slot, *act, None);
            }
            began.elapsed()
        })
    };
    let started = Instant::now();
    let began = cpu_time(started);
    shared.apply(|view| view.expect_many(Some(entries as usize)));
    for slice in 0..entries / SLICE {
        apply(slice * SLICE..(slice + 1) * SLICE);
    }
    let filled = cpu_time(started) - began;
    let allocated = || shared.read().allocated_bytes() as f64 / shared.read().set().len() as f64;
    let loose = allocated();
    let longest = (0..SHARDS).map(|shard| {
        let began = Instant::now();
        let mut tight = shared.read().set().tightened(iter::once(shard));
        shared.apply(|view| view.relieve(&mut tight));
        began.elapsed()
    });
    let longest = longest.max().unwrap_or_default();
    shared.apply(|view| view.expect_many(None));
    let began = Instant::now();
    shared.pack();
    let packed = began.elapsed();
    println!("  filled at {:.2} M/s, CPU time of one thread, prints and acts made too", entries as f64 / filled.as_secs_f64() / 1e6);
    println!("  {:.2} bytes an entry, {loose:.2} before the shards were tightened (one takes {longest:?} at most)", allocated());
    println!("  all tables packed in {packed:?}");
    println!("  {:.2} bytes of resident memory an entry", (resident_bytes() - before) / entries as f64);
    look_up(&shared, entries);

    let done = AtomicBool::new(false);
    let (waits, sections, grown) = std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut waits = Vec::new();
            while !done.load(Ordering::Relaxed) {
                let began = Instant::now();
                let view = shared.read();
                waits.push(began.elapsed());
                drop(view);
                std::thread::sleep(Duration::from_micros(50));
            }
            waits
        });
        let started = Instant::now();
        let began = cpu_time(started);
        let sections: Vec<Duration> =
            (entries / SLICE..(entries + added) / SLICE).map(|slice| apply(slice * SLICE..(slice + 1) * SLICE)).collect();
        done.store(true, Ordering::Relaxed);
        (reader.join().unwrap_or_default(), sections, cpu_time(started) - began)
    });
    println!("  {added} more at {:.2} M/s: {:.2} bytes an entry", added as f64 / grown.as_secs_f64() / 1e6, allocated());
    let gaps = || stopgate::domain::suppression::gaps() as f64 / (entries + added) as f64;
    println!("  {:.2} bytes of resident memory an entry, {:.2} of them gaps", (resident_bytes() - before) / (entries + added) as f64, gaps());
    let show = |what, mut times: Vec<Duration>| {
        times.sort_unstable();
        let at = |share: f64| times.get((times.len() as f64 * share) as usize).copied().unwrap_or_default();
        println!("  {what}: p50 {:?}, p99.9 {:?}, longest {:?}", at(0.5), at(0.999), times.last().copied().unwrap_or_default());
    };
    show("write sections of 128 acts", sections);
    show("a look-up waited", waits);
}

/// What a key costs in batches, by the share of persons who have an entry.
fn look_up(shared: &SharedView, entries: u64) {
    let slot = PRINTS.slot(&Channel::Whatsapp, &Subject::Marketing);
    for (known, of) in [(0, 10), (1, 10), (10, 10)] {
        let keys = (0..2_000_000_u64).map(|number| {
            let chosen = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) % entries;
            person(if number % of < known { chosen } else { entries * 3 + chosen })
        });
        let keys: Vec<PersonPrint> = keys.collect();
        let view = shared.read();
        let started = Instant::now();
        let began = cpu_time(started);
        let mut found = 0_u64;
        for batch in keys.chunks(SLICE as usize) {
            view.prefetch(batch.iter().copied());
            found += batch.iter().filter(|person| view.knows(**person) && view.standing(**person, slot).is_some()).count() as u64;
        }
        let nanos = (cpu_time(started) - began).as_nanos() as f64 / keys.len() as f64;
        println!("  look-up, {}0 % known: {nanos:.1} ns a key ({found} found)", known);
    }
}
