//! Under load for long, with brokers that take their time, with far more to read than fits into memory: the service goes on,
//! and its memory stays within its budget.
//!
//! A minute of churn; `STOPGATE_LONG=1` makes it thirty. A lag of 300,000 sends; `STOPGATE_LONG=1` makes it 10 million.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::kafka_exactly_once::EndOnDrop;
use super::kafka_network::behind_a_proxy;
use super::kafka_torture::is_long;
use crate::support::broker::Broker;
use crate::support::service::Service;
use crate::support::wait::wait_for;
use crate::support::world::{Layout, World, message, now_ms, phone, send};

/// What the process may take beside its set, with two workers: 150 MB at rest, 32 MB fetched, 128 MB that wait to be written, and what
/// is being decided.
const BUDGET_BYTES: u64 = 512 << 20;
/// No outcome for so long is a stall.
const STALL: Duration = Duration::from_secs(10);
const PEOPLE: usize = 20_000;

fn count(service: &Service, outcome: &str) -> f64 {
    service.metric("stopgate_records_total", &["stage=\"filter\"", &format!("outcome=\"{outcome}\"")])
}

fn outcomes(service: &Service) -> f64 {
    count(service, "allowed") + count(service, "suppressed")
}

fn transactions(service: &Service, result: &str) -> f64 {
    service.metric("stopgate_transactions_total", &["stage=\"filter\"", &format!("result=\"{result}\"")])
}

/// People leave and come back, and each is written to all the time.
fn churn(world: &World, ended: &AtomicBool) -> usize {
    let producer = world.kafka.producer();
    let mut sent = 0;
    for round in 0_usize.. {
        if ended.load(Ordering::Relaxed) {
            break;
        }
        let began = Instant::now();
        let words = (0..100).map(|n| {
            let person = (round * 100 + n) * 7919 % PEOPLE;
            message(&phone(person), if (round / 200).is_multiple_of(2) { "STOP" } else { "START" }, now_ms())
        });
        producer.send_all(&world.names.inbound, words);
        let sends = (0..1_000).map(|n| send(&format!("s{}", sent + n), &phone((sent + n) * 31 % PEOPLE), "marketing"));
        producer.send_all(&world.names.sends, sends);
        sent += 1_000;
        std::thread::sleep(Duration::from_millis(200).saturating_sub(began.elapsed()));
    }
    sent
}

#[test]
fn under_churn_memory_stays_flat_and_nothing_stalls() {
    let Some(broker) = Broker::shared() else { return };
    let world = World::new(broker, "soak");
    let time = Duration::from_secs(if is_long() { 1_800 } else { 60 });
    let mut service = world.serving("run", "a").arg("--fence", "inbound").spawn();
    service.ready();
    let ended = AtomicBool::new(false);
    let sent = std::thread::scope(|scope| {
        let under_way = EndOnDrop(&ended);
        let churning = scope.spawn(|| churn(&world, &ended));
        let began = Instant::now();
        let (mut memory, mut last, mut moved) = (Vec::new(), 0.0, Instant::now());
        while began.elapsed() < time {
            std::thread::sleep(Duration::from_secs(1));
            let now = outcomes(&service);
            if now > last {
                (last, moved) = (now, Instant::now());
            }
            assert!(moved.elapsed() < STALL, "no outcome for {STALL:?} after {last}");
            memory.push(service.resident_bytes().0);
        }
        drop(under_way);
        let sent = churning.join().expect("the churn");
        // The first third warms up: buffers, the set, the client's queues.
        let median = |part: &[u64]| {
            let mut part = part.to_vec();
            part.sort_unstable();
            part[part.len() / 2]
        };
        let (middle, end) = (median(&memory[memory.len() / 3..memory.len() * 2 / 3]), median(&memory[memory.len() * 2 / 3..]));
        println!("{sent} sends in {time:?}: {} MB in the middle third, {} MB in the last", middle >> 20, end >> 20);
        assert!(end <= middle + middle / 8 + (8 << 20), "memory grows: {middle} bytes, then {end}");
        sent
    });
    // What was decided in a transaction that was aborted, as where a worker joins the group behind the other, counts again.
    wait_for("an outcome of every send", Duration::from_secs(60), || {
        let committed = world.kafka.committed(&world.names.filter_group, &world.names.sends);
        let ends: Vec<Option<i64>> = world.kafka.ends(&world.names.sends).into_iter().map(Some).collect();
        if committed == ends { Ok(()) } else { Err((committed, ends)) }
    });
    let counted = outcomes(&service) as usize;
    let is_anew = ["aborted", "renewed"].iter().any(|result| transactions(&service, result) > 0.0);
    assert!(counted == sent || is_anew && counted > sent, "{counted} outcomes of {sent} sends");
    assert!(service.resident_bytes().1 <= BUDGET_BYTES, "{:?}", service.resident_bytes());
    service.ready();
    service.terminate();
    // Millions of them would not fit into the test's own memory.
    if !is_long() {
        world.assert_every_send_has_one_outcome();
    }
}

#[test]
fn a_hundred_partitions_of_lag_pass_a_full_queue_and_a_slow_broker_within_the_budget_of_memory() {
    let Some((broker, proxy)) = behind_a_proxy() else { return };
    let layout = Layout { sends: 100, ..Layout::default() };
    let small_queue = "[kafka]\n\"queue.buffering.max.messages\" = \"5000\"\n";
    let world = World::with(&broker, "lag", layout).tables(small_queue).through(&proxy.address());
    let lag: usize = if is_long() { 10_000_000 } else { 300_000 };
    let producer = world.kafka.producer();
    for first in (0..lag).step_by(50_000) {
        let sends = (first..first + 50_000).map(|n| send(&format!("s{n}"), &phone(n % PEOPLE), "marketing").to((n % 100) as i32));
        producer.send_all(&world.names.sends, sends);
    }
    proxy.delay(Duration::from_millis(5));
    let mut service = world.serving("filter", "a").spawn();
    service.ready();
    let (mut last, mut moved) = (0.0, Instant::now());
    while outcomes(&service) < lag as f64 {
        std::thread::sleep(Duration::from_millis(500));
        let now = outcomes(&service);
        if now > last {
            (last, moved) = (now, Instant::now());
        }
        assert!(moved.elapsed() < Duration::from_secs(30), "no outcome for 30 s after {last}");
    }
    let (now, most) = service.resident_bytes();
    println!("{lag} sends of lag: {} MB at most, {} MB at the end", most >> 20, now >> 20);
    assert!(most <= BUDGET_BYTES, "{most} bytes were resident");
    service.terminate();
    // As above.
    if !is_long() {
        world.assert_every_send_has_one_outcome();
    }
}
