//! Nothing lost, nothing doubled: through ends in order, kills and rebalances every input has one committed outcome.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::kafka_replay::assert_replays_the_same;
use crate::support::broker::Broker;
use crate::support::kafka::Record;
use crate::support::records::{ReplyRequest, decode};
use crate::support::service::Service;
use crate::support::wait::{DEADLINE, wait_for};
use crate::support::world::{Layout, World, id_of, message, now_ms, phone, send};

/// Produces sends to a thousand people until told to end, and a STOP of every person below `stoppers`, each followed,
/// once it is acknowledged, by a send `after-stop-N` to that person.
fn campaign(world: &World, end: &AtomicBool, sent: &AtomicUsize, stoppers: usize) {
    let producer = world.kafka.producer();
    let mut stopped = 0;
    while !end.load(Ordering::Relaxed) || stopped < stoppers {
        let first = sent.load(Ordering::Relaxed); // a number that no send has had
        let records: Vec<Record> = (first..first + 200).map(|n| send(&format!("s{n}"), &phone(n % 1000), "marketing")).collect();
        sent.fetch_add(producer.send_all(&world.names.sends, records).len(), Ordering::Relaxed);
        let until = (stopped + 5).min(stoppers);
        producer.send_all(&world.names.inbound, (stopped..until).map(|n| message(&phone(n), "STOP", now_ms())));
        let after = (stopped..until).map(|n| send(&format!("after-stop-{n}"), &phone(n), "marketing"));
        sent.fetch_add(producer.send_all(&world.names.sends, after).len(), Ordering::Relaxed);
        stopped = until;
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Ends what goes on beside a check, also when that fails: otherwise the test would wait for it for ever.
pub struct EndOnDrop<'a>(pub &'a AtomicBool);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Runs `disturb` while a campaign is under way, and the service that it leaves for the rest; waits until every send has
/// had an outcome, and every STOP an answer.
pub fn survives(world: &World, stoppers: usize, disturb: impl FnOnce(&dyn Fn(usize)) -> Service) {
    let (end, sent) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let under_way = EndOnDrop(&end);
        let campaign = scope.spawn(|| campaign(world, &end, &sent, stoppers));
        let outcomes = world.outcomes();
        // Waits until so many outcomes are committed.
        let reach = |target: usize| {
            let started = Instant::now();
            while outcomes.count() < target {
                if started.elapsed() > DEADLINE {
                    panic!("{} of {target} outcomes within {DEADLINE:?}; {}", outcomes.count(), world.progress());
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        };
        let _service = disturb(&|more| reach(outcomes.count() + more));
        drop(under_way);
        campaign.join().expect("the campaign");
        reach(sent.load(Ordering::Relaxed));
        wait_for("an answer to every STOP", DEADLINE, || {
            let answers = world.kafka.read_committed(&world.names.replies).len();
            if answers >= stoppers { Ok(()) } else { Err((answers, world.progress())) }
        });
    });
}

#[track_caller]
pub fn assert_one_confirmation_each(world: &World, stoppers: usize) {
    let mut answered: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for record in world.kafka.read_committed(&world.names.replies) {
        let reply: ReplyRequest = decode(&record);
        let told =
            format!("{} at {:?}: id {} for {}, before {:?}", record.position(), record.timestamp, reply.id, reply.source, reply.superseded);
        answered.entry(reply.to).or_default().push(told);
    }
    let doubled: Vec<_> = answered.iter().filter(|(_, replies)| replies.len() > 1).collect();
    assert!(doubled.is_empty(), "confirmed twice: {doubled:#?}");
    let expected: Vec<String> = (0..stoppers).map(|n| format!("phone:{}", phone(n))).collect();
    assert_eq!(answered.into_keys().collect::<Vec<_>>(), expected, "who was answered");
}

/// For services that ran with `--fence inbound`: the STOP was acknowledged before the send was produced.
#[track_caller]
pub fn assert_no_leak_after_a_stop(world: &World, stoppers: usize) {
    let allowed = world.kafka.read_committed(&world.names.allowed);
    let leaked: Vec<String> = allowed.iter().filter_map(id_of).filter(|id| id.starts_with("after-stop-")).collect();
    assert_eq!(leaked, [""; 0], "sends that were allowed after the STOP of their recipient");
    let suppressed = world.kafka.read_committed(&world.names.suppressed);
    let ids = suppressed.iter().filter_map(id_of).filter(|id| id.starts_with("after-stop-"));
    assert_eq!(ids.count(), stoppers);
}

#[test]
fn restarts_in_order_and_by_force_lose_and_double_nothing() {
    let Some(broker) = Broker::shared() else { return };
    let world = World::new(broker, "restarts");
    let start = world.serving("run", "a").arg("--fence", "inbound");
    survives(&world, 300, |more| {
        let mut service = start.spawn();
        service.ready();
        more(500);
        service.terminate();
        for _ in 0..3 {
            let mut service = start.spawn();
            service.ready();
            more(700);
            drop(service.kill());
        }
        // As soon as it has begun to work, ready or not.
        let service = start.spawn();
        std::thread::sleep(Duration::from_millis(700));
        drop(service.kill());
        let mut service = start.spawn();
        service.ready();
        more(500);
        service
    });
    world.assert_every_send_has_one_outcome();
    assert_replays_the_same(&world);
    assert_one_confirmation_each(&world, 300);
    assert_no_leak_after_a_stop(&world, 300);
}

#[test]
fn members_may_join_and_leave_a_working_group() {
    let Some(broker) = Broker::shared() else { return };
    let layout = Layout { inbound: 4, sends: 4, ..Layout::default() };
    let world = World::with(broker, "rebalance", layout);
    let serving = |instance| world.serving("run", instance).arg("--fence", "inbound");
    let (first, second) = (serving("a"), serving("b"));
    survives(&world, 200, |more| {
        let mut a = first.spawn();
        a.ready();
        more(500);
        let mut b = second.spawn();
        b.ready();
        more(2_000);
        a.terminate();
        more(2_000);
        let mut a = first.spawn();
        a.ready();
        more(1_000);
        drop(b.kill());
        more(1_000);
        a
    });
    world.assert_every_send_has_one_outcome();
    assert_replays_the_same(&world);
    assert_one_confirmation_each(&world, 200);
    assert_no_leak_after_a_stop(&world, 200);
}

#[test]
fn several_workers_share_the_partitions_of_one_process() {
    let Some(broker) = Broker::shared() else { return };
    let layout = Layout { inbound: 4, sends: 4, ..Layout::default() };
    let world = World::with(broker, "workers", layout);
    let start = world.serving("run", "a").arg("--workers", "2");
    survives(&world, 200, |more| {
        let mut service = start.spawn();
        service.ready();
        more(2_000);
        drop(service.kill());
        let mut service = start.spawn();
        service.ready();
        more(1_000);
        service
    });
    world.assert_every_send_has_one_outcome();
    assert_one_confirmation_each(&world, 200);
}

#[test]
fn decision_blocks_tile_inputs_that_have_markers_and_aborted_records_among_them() {
    let Some(broker) = Broker::shared() else { return };
    let world = World::new(broker, "tiles");
    world.opts_out(&phone(3));
    let mut service = world.serving("filter", "a").spawn();
    service.ready();
    let outcomes = world.outcomes();
    let batch = |from: usize| (from..from + 50).map(|n| send(&format!("s{n}"), &phone(n % 10), "marketing"));
    let mut expected = 0;
    for round in 0..4 {
        world.kafka.produce_committed(&world.names.sends, batch(round * 100));
        world.kafka.produce_aborted(&world.names.sends, batch(10_000 + round * 100));
        world.kafka.produce_all(&world.names.sends, batch(round * 100 + 50));
        world.kafka.produce(&world.names.sends, Record::new("k", "not a send").to(1));
        expected += 101;
        wait_for("the outcomes of a round", DEADLINE, || match outcomes.count() {
            count if count == expected => Ok(()),
            count => Err(count),
        });
    }
    world.assert_every_send_has_one_outcome();
    service.terminate();
}

#[test]
fn the_end_in_order_takes_less_than_ten_seconds_under_load() {
    let Some(broker) = Broker::shared() else { return };
    let world = World::new(broker, "drain");
    for verb in ["run", "detect", "filter"] {
        world.kafka.produce_all(&world.names.sends, (0..20_000).map(|n| send(&format!("{verb}{n}"), &phone(n % 100), "marketing")));
        world.kafka.produce_all(&world.names.inbound, (0..500).map(|n| message(&phone(n), "hello", now_ms())));
        let mut service = world.serving(verb, "a").spawn();
        service.ready();
        service.terminate();
    }
}
