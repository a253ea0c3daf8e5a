//! Two processes of both stages on a real broker, killed at random moments, and one that stands still for longer than its
//! session: whatever happens, each input has one outcome, each opt-out one confirmation, and nothing leaks.
//!
//! `STOPGATE_LONG=1`: 100 kills instead of 5.

use std::time::{Duration, Instant};

use super::kafka_exactly_once::{assert_no_leak_after_a_stop, assert_one_confirmation_each, survives};
use super::kafka_replay::assert_replays_the_same;
use crate::support::broker::Broker;
use crate::support::world::{Layout, World};

/// A session so short that a test can outwait it.
const SHORT_SESSIONS: &str = "[kafka]\n\"session.timeout.ms\" = \"3000\"\n\"heartbeat.interval.ms\" = \"500\"\n";

/// Whether there is time for more than every run can take.
pub fn is_long() -> bool {
    std::env::var_os("STOPGATE_LONG").is_some()
}

fn kills() -> usize {
    if is_long() { 100 } else { 5 }
}

#[track_caller]
pub fn assert_kept(world: &World, stoppers: usize) {
    world.assert_every_send_has_one_outcome();
    assert_replays_the_same(world);
    assert_one_confirmation_each(world, stoppers);
    assert_no_leak_after_a_stop(world, stoppers);
}

#[test]
fn kills_at_random_moments_lose_double_and_leak_nothing() {
    let Some(broker) = Broker::shared() else { return };
    let layout = Layout { inbound: 4, sends: 4, ..Layout::default() };
    let world = World::with(broker, "torture", layout).tables(SHORT_SESSIONS);
    let serving = |instance| world.serving("run", instance).arg("--fence", "inbound");
    let starts = [serving("a"), serving("b")];
    let stoppers = 200 + 20 * kills();
    let mut recoveries = Vec::new();
    survives(&world, stoppers, |more| {
        let mut running = starts.each_ref().map(|start| Some(start.spawn()));
        running.iter_mut().flatten().for_each(|service| {
            service.ready();
        });
        more(500);
        // SplitMix64's increment: moments that differ and are the same in each run.
        let mut moment = 7_u64;
        for kill in 0..kills() {
            moment = moment.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(1);
            std::thread::sleep(Duration::from_millis((moment >> 33) % 1500));
            let which = (moment >> 20) as usize % 2;
            if let Some(service) = running[which].take() {
                drop(service.kill());
            }
            // Both at once, every now and then.
            if kill % 4 == 3
                && let Some(other) = running[1 - which].take()
            {
                drop(other.kill());
            }
            let killed = Instant::now();
            for (service, start) in running.iter_mut().zip(&starts) {
                if service.is_none() {
                    *service = Some(start.spawn());
                }
            }
            more(200);
            recoveries.push(killed.elapsed().as_secs_f64());
        }
        running[0].take().expect("it runs").terminate();
        let mut last = running[1].take().expect("it runs");
        last.ready();
        last
    });
    recoveries.sort_by(f64::total_cmp);
    // Shown with --nocapture: figures are for people, not for assertions.
    println!(
        "{} kills; 200 further outcomes after a kill within {:.1} s in the median, {:.1} s at most",
        recoveries.len(),
        recoveries[recoveries.len() / 2],
        recoveries[recoveries.len() - 1]
    );
    assert_kept(&world, stoppers);
}

#[test]
fn a_member_that_stood_still_for_longer_than_its_session_writes_nothing_that_another_has_written() {
    let Some(broker) = Broker::shared() else { return };
    let layout = Layout { inbound: 4, sends: 4, ..Layout::default() };
    let world = World::with(broker, "zombie", layout).tables(SHORT_SESSIONS);
    let serving = |instance| world.serving("run", instance).arg("--fence", "inbound");
    survives(&world, 200, |more| {
        let (mut a, mut b) = (serving("a").spawn(), serving("b").spawn());
        a.ready();
        b.ready();
        more(1_000);
        for _ in 0..2 {
            a.signal("STOP");
            // Its session ends, and its open transaction with its time-out; the other takes its partitions meanwhile.
            std::thread::sleep(Duration::from_secs(5));
            more(1_000);
            a.signal("CONT");
            more(1_000);
        }
        a.terminate();
        b
    });
    assert_kept(&world, 200);
}
