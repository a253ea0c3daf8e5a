use crate::support::sim::{self, Mutation};
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// Worlds of a short run and of a long one.
const WORLDS: u64 = 200;
const LONG_WORLDS: u64 = 20_000;

fn worlds() -> std::ops::Range<u64> {
    if let Some(seed) = std::env::var("STOPGATE_SIM_SEED").ok().and_then(|seed| seed.parse().ok()) {
        return seed..seed + 1;
    }
    0..if std::env::var_os("STOPGATE_LONG").is_some() { LONG_WORLDS } else { WORLDS }
}

#[test]
fn no_promise_breaks_in_any_world() {
    let worlds = worlds();
    let next = AtomicU64::new(worlds.start);
    let totals: Mutex<BTreeMap<&'static str, u64>> = Mutex::default();
    let failed = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while failed.lock().expect("no panic").is_none() {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= worlds.end {
                        return;
                    }
                    match sim::run(seed, None) {
                        Ok(counts) => {
                            let mut totals = totals.lock().expect("no panic");
                            counts.into_iter().for_each(|(what, count)| *totals.entry(what).or_default() += count);
                        }
                        Err(failure) => *failed.lock().expect("no panic") = Some(failure.told()),
                    }
                }
            });
        }
    });
    if let Some(told) = failed.into_inner().expect("no panic") {
        panic!("{told}");
    }
    println!("{:?}", totals.into_inner().expect("no panic"));
}

/// Tries worlds until the mutation is caught, as one of these.
#[track_caller]
fn is_caught(mutation: Mutation, as_one_of: &[&str]) {
    for seed in 0..WORLDS {
        if let Err(failure) = sim::run_with(seed, Some(mutation), sim::Faults::all()) {
            let caught = failure.violation.invariant;
            assert!(as_one_of.contains(&caught), "caught as {caught}: {}", failure.told());
            println!("{mutation:?}: caught in world {seed} as {caught}");
            return;
        }
    }
    panic!("{mutation:?} breaks nothing in {WORLDS} worlds");
}

#[test]
fn an_end_that_was_asked_for_before_the_batch_is_caught() {
    is_caught(Mutation::EndsBeforeBatch, &["I1", "I2"]);
}

#[test]
fn records_decided_by_a_question_older_than_they_are_caught() {
    is_caught(Mutation::ReceivedAfterQuestion, &["I1", "I2"]);
}

#[test]
fn a_position_published_before_its_records_are_in_the_set_is_caught() {
    // P3 where what was not inserted yet was poison.
    is_caught(Mutation::PublishedBeforeInsert, &["I1", "I5", "I6", "P2", "P3"]);
}

#[test]
fn a_dropped_overlay_is_caught() {
    is_caught(Mutation::OverlayDropped, &["P2"]);
}

#[test]
fn records_applied_within_a_batchs_look_ups_are_caught() {
    is_caught(Mutation::AppliedWithinLookUps, &["I1", "I5"]);
}

#[test]
fn offsets_committed_outside_of_the_transaction_are_caught() {
    is_caught(Mutation::OffsetsOutside, &["I3", "P2"]);
}

#[test]
fn a_transaction_committed_before_its_consent_records_are_acknowledged_is_caught() {
    is_caught(Mutation::CommittedBeforeAcks, &["I2", "P2"]);
}

#[test]
fn an_own_earlier_write_that_is_not_recognised_is_caught() {
    is_caught(Mutation::OwnWriteNotRecognised, &["P2"]);
}

#[test]
fn a_zombie_that_is_not_fenced_is_caught() {
    is_caught(Mutation::ZombieNotFenced, &["I3", "I4", "P2"]);
}

#[test]
fn a_skipped_heal_is_caught() {
    is_caught(Mutation::HealSkipped, &["I1", "I6"]);
}

#[test]
fn a_world_comes_out_the_same_each_time() {
    let run = || sim::run(7, None).map_err(|failure| failure.told());
    assert_eq!(run(), run());
}
