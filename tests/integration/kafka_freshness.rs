//! The worst moment: an opt-out is acknowledged, and at once a send to that person is produced. Under load, many at a time.
//!
//! 2,000 pairs at each level; `STOPGATE_LONG=1` makes it 100,000. That the checks can fail is shown by the simulation,
//! where ends that are asked for before the batch leak (`an_end_that_was_asked_for_before_the_batch_is_caught`).

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::support::broker::Broker;
use crate::support::kafka::{Producer, Received};
use crate::support::records::OPTED_OUT;
use crate::support::wait::wait_until;
use crate::support::world::{World, id_of, message, now_ms, phone, send};
use std::time::Duration;

const PAIRS: usize = 2_000;
const LONG_PAIRS: usize = 100_000;
const IN_FLIGHT: usize = 64;
const PRODUCERS: usize = 16;
/// Persons of the load, who never opt out.
const OTHERS: usize = 5_000_000;

/// Makes pairs while other sends keep the filter busy. `stop` returns once the opt-out of person `n` is acknowledged.
fn leaks(world: &World, stop: impl Fn(&Producer, usize) + Sync) {
    let pairs = if std::env::var_os("STOPGATE_LONG").is_some() { LONG_PAIRS } else { PAIRS };
    let producers: Vec<Producer> = (0..PRODUCERS).map(|_| world.kafka.producer()).collect();
    let outcomes = world.outcomes();
    let (next, done) = (AtomicUsize::new(0), AtomicBool::new(false));
    let load = std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            let producer = world.kafka.producer();
            let mut sent = 0;
            while !done.load(Ordering::Relaxed) {
                let sends = (sent..sent + 500).map(|n| send(&format!("load-{n}"), &phone(OTHERS + n), "marketing"));
                producer.send_all(&world.names.sends, sends);
                sent += 500;
            }
            sent
        });
        let workers: Vec<_> = (0..IN_FLIGHT)
            .map(|worker| {
                let (producer, next, stop) = (&producers[worker % PRODUCERS], &next, &stop);
                scope.spawn(move || {
                    loop {
                        let n = next.fetch_add(1, Ordering::Relaxed);
                        if n >= pairs {
                            return;
                        }
                        stop(producer, n);
                        producer.send(&world.names.sends, send(&format!("pair-{n}"), &phone(n), "marketing"));
                    }
                })
            })
            .collect();
        for worker in workers {
            worker.join().expect("a pair was made");
        }
        done.store(true, Ordering::Relaxed);
        load.join().expect("the load went on")
    });
    let patience = Duration::from_secs(60 + pairs as u64 / 100);
    wait_until("every send has its outcome", patience, || outcomes.count() >= pairs + load);
    let (allowed, suppressed) = (outcomes.allowed.seen(), outcomes.suppressed.seen());
    let of_pairs =
        |records: &[Received]| -> BTreeSet<String> { records.iter().filter_map(id_of).filter(|id| id.starts_with("pair-")).collect() };
    let leaked = of_pairs(&allowed);
    println!("{pairs} pairs among {load} other sends: {} leaked", leaked.len());
    assert!(leaked.is_empty(), "{} of {pairs} leaked, among them {:?}", leaked.len(), leaked.first());
    assert_eq!(of_pairs(&suppressed).len(), pairs, "every send of a pair is suppressed, once");
}

#[test]
fn no_send_produced_right_after_an_acknowledged_opt_out_passes() {
    let Some(broker) = Broker::shared() else { return };
    let world = World::new(broker, "fresh-opt-outs");
    let mut service = world.serving("filter", "a").arg("--fence", "opt-outs").spawn();
    service.ready();
    leaks(&world, |producer, n| {
        producer.send(&world.names.opt_outs, world.consent_record(&format!("phone:{}", phone(n)), "marketing", OPTED_OUT, now_ms()));
    });
}

#[test]
fn no_send_produced_right_after_an_acknowledged_stop_passes_at_level_inbound() {
    let Some(broker) = Broker::shared() else { return };
    let world = World::new(broker, "fresh-inbound");
    let mut service = world.serving("run", "a").arg("--fence", "inbound").spawn();
    service.ready();
    leaks(&world, |producer, n| {
        producer.send(&world.names.inbound, message(&phone(n), "STOP", now_ms()));
    });
}
