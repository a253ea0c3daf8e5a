//! A restart from a snapshot decides as one that has read the whole topic does; a snapshot that cannot be trusted is told and
//! left aside.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::kafka_torture::is_long;
use crate::support::broker::Broker;
use crate::support::kafka::Record;
use crate::support::records::{OPTED_IN, OPTED_OUT};
use crate::support::service::Service;
use crate::support::wait::{DEADLINE, wait_for};
use crate::support::world::{World, consent_key, now_ms, phone, send};

/// So many that a snapshot takes a while to write.
const PEOPLE: usize = 110_000;

fn identity(n: usize) -> String {
    format!("phone:{}", phone(n))
}

fn fill(world: &World) {
    fill_with(world, PEOPLE);
}

fn fill_with(world: &World, people: usize) {
    let start = now_ms() - 3_600_000;
    let producer = world.kafka.producer();
    for first in (0..people).step_by(PEOPLE) {
        let people = first..people.min(first + PEOPLE);
        producer.send_all(&world.names.opt_outs, people.map(|n| world.consent_record(&identity(n), "marketing", OPTED_OUT, start)));
    }
}

fn filter(world: &World) -> Service {
    world.serving("filter", "snap/shot").spawn()
}

/// The only file in a state directory.
fn kept_in(directory: &Path) -> PathBuf {
    let entries = fs::read_dir(directory.join("state")).expect("a state directory");
    let files: Vec<PathBuf> = entries.map(|entry| entry.expect("read").path()).collect();
    let [file] = &files[..] else { panic!("not one file: {files:?}") };
    assert!(file.to_string_lossy().ends_with("snap%2Fshot.snapshot"), "{file:?}");
    file.clone()
}

fn await_written(service: &Service, count: f64) {
    wait_for("a snapshot", DEADLINE, || match service.metric("stopgate_snapshots_total", &["result=\"written\""]) {
        written if written >= count => Ok(()),
        written => Err(written),
    });
}

/// Started once with a snapshot as the result, then killed.
fn killed_with_a_snapshot(world: &World) -> tempfile::TempDir {
    let mut service = filter(world);
    service.ready();
    await_written(&service, 1.0);
    service.kill()
}

fn taken_over(service: &Service) -> f64 {
    service.metric("stopgate_snapshot_entries", &[])
}

/// People that a decision after a restart is asked about: whether marketing may go to them.
fn assert_decisions(world: &World, round: &str, expected: &[(usize, bool)]) {
    let outcomes = world.outcomes();
    for (n, allowed) in expected {
        let id = format!("{round}-{n}");
        world.asks(&id, &phone(*n));
        if *allowed {
            outcomes.await_allowed(&id)
        } else {
            outcomes.await_suppressed(&id)
        };
    }
}

#[test]
fn a_restart_reads_what_came_since_the_snapshot_and_decides_by_all_of_it() {
    let Some(broker) = Broker::shared() else { return };
    let world = World::new(broker, "snapshot");
    fill(&world);
    let directory = killed_with_a_snapshot(&world);
    let file = kept_in(directory.path());
    let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
    assert_eq!((mode(&file), mode(&directory.path().join("state"))), (0o600, 0o700));

    // While nobody runs: one comes back, one is erased, one more leaves, one leaves and is erased.
    let now = now_ms();
    world.kafka.produce(&world.names.opt_outs, world.consent_record(&identity(1), "marketing", OPTED_IN, now));
    let erased =
        |n: usize| Record::tombstone(consent_key("acme", "whatsapp", &identity(n), "marketing")).to(world.partition_of("acme", &identity(n)));
    world.kafka.produce(&world.names.opt_outs, erased(2));
    world.kafka.produce(&world.names.opt_outs, world.consent_record(&identity(PEOPLE), "marketing", OPTED_OUT, now));
    world.kafka.produce(&world.names.opt_outs, world.consent_record(&identity(PEOPLE + 1), "marketing", OPTED_OUT, now));
    world.kafka.produce(&world.names.opt_outs, erased(PEOPLE + 1));

    let expected = [(0, false), (1, true), (2, true), (3, false), (PEOPLE - 1, false), (PEOPLE, false), (PEOPLE + 1, true), (PEOPLE + 2, true)];
    let mut service = world.serving("filter", "snap/shot").spawn_in(directory);
    service.ready();
    assert_eq!(taken_over(&service), PEOPLE as f64);
    assert!(service.stderr().contains("records=5 "), "only these are read:\n{}", service.stderr());
    assert_decisions(&world, "again", &expected);
    // Without it all is read, to the same end.
    let mut bare = filter(&world);
    bare.ready();
    assert_eq!(taken_over(&bare), 0.0);
    world.assert_every_send_has_one_outcome();
}

#[test]
fn a_process_that_is_killed_at_any_moment_of_writing_leaves_a_whole_snapshot_or_none() {
    let Some(broker) = Broker::shared() else { return };
    let world = World::new(broker, "snapshot-killed");
    fill(&world);
    let mut directory = tempfile::tempdir().expect("a directory");
    for round in 0..5_u64 {
        let started = std::time::SystemTime::now();
        let mut service = world.serving("filter", "snap/shot").spawn_in(directory);
        // Beside the start: as soon as something of a snapshot is there, and a little later each time.
        wait_for("the beginning of a snapshot", DEADLINE, || {
            let files = fs::read_dir(service.directory().join("state")).into_iter().flatten().filter_map(Result::ok);
            // What the last round left does not count.
            let begun = files.filter(|entry| entry.metadata().is_ok_and(|of| of.modified().is_ok_and(|at| at > started))).count();
            if begun > 0 { Ok(()) } else { Err(begun) }
        });
        std::thread::sleep(std::time::Duration::from_millis(7 * round));
        service.still_runs();
        directory = service.kill();
        // Where it was whole, the next one is begun at once too.
        for entry in fs::read_dir(directory.path().join("state")).expect("there") {
            let path = entry.expect("read").path();
            if path.extension().is_some_and(|extension| extension == "snapshot") {
                fs::remove_file(path).expect("removed");
            }
        }
    }
    let mut service = world.serving("filter", "snap/shot").spawn_in(directory);
    service.ready();
    await_written(&service, 1.0);
    kept_in(service.directory());
    let mut service = world.serving("filter", "snap/shot").spawn_in(service.kill());
    service.ready();
    assert_eq!(taken_over(&service), PEOPLE as f64);
    assert_decisions(&world, "last", &[(5, false), (PEOPLE, true)]);
}

#[test]
fn the_only_filter_goes_on_after_each_kill_with_what_it_had_not_committed() {
    let Some(broker) = Broker::shared() else { return };
    let world = World::new(broker, "snapshot-recovery");
    let (people, kills) = if is_long() { (1_000_000, 20) } else { (PEOPLE, 3) };
    fill_with(&world, people);
    let outcomes = world.outcomes();
    let (mut asked, mut recoveries) = (0, Vec::new());
    let mut ask = || {
        let sends = (asked..asked + 200).map(|n| send(&format!("s{n}"), &phone(n * 7919 % (people + people / 10)), "marketing"));
        world.kafka.produce_all(&world.names.sends, sends);
        asked += 200;
        asked
    };
    let mut directory = killed_with_a_snapshot(&world);
    for _ in 0..kills {
        let killed = Instant::now();
        let service = world.serving("filter", "snap/shot").spawn_in(directory);
        let all = ask();
        wait_for("outcomes after a kill", DEADLINE, || if outcomes.count() >= all { Ok(()) } else { Err(outcomes.count()) });
        recoveries.push(killed.elapsed().as_secs_f64());
        assert_eq!(taken_over(&service), people as f64);
        ask();
        directory = service.kill();
    }
    recoveries.sort_by(f64::total_cmp);
    // Shown with --nocapture: figures are for people, not for assertions.
    let (median, most) = (recoveries[recoveries.len() / 2], recoveries[recoveries.len() - 1]);
    println!(
        "{people} keys, {kills} kills: from the start of a process to the last of 200 outcomes {median:.1} s in the median, {most:.1} s at most"
    );
    let mut service = world.serving("filter", "snap/shot").spawn_in(directory);
    service.ready();
    wait_for("every outcome", DEADLINE, || if outcomes.count() == asked { Ok(()) } else { Err(outcomes.count()) });
    world.assert_every_send_has_one_outcome();
}

#[test]
fn a_snapshot_of_another_topic_or_log_or_that_is_damaged_is_left_aside() {
    let Some(broker) = Broker::shared() else { return };
    let world = World::new(broker, "snapshot-unfit");
    fill(&world);
    let directory = killed_with_a_snapshot(&world);
    let file = kept_in(directory.path());
    let good = fs::read(&file).expect("a snapshot");

    let mut damaged = good.clone();
    damaged[good.len() / 2] ^= 1;
    fs::write(&file, damaged).expect("written");
    let mut service = world.serving("filter", "snap/shot").spawn_in(directory);
    service.ready();
    assert_eq!(taken_over(&service), 0.0);
    assert!(service.stderr().contains("it is damaged: a checksum"), "{}", service.stderr());
    assert_decisions(&world, "damaged", &[(5, false), (PEOPLE, true)]);
    let directory = service.kill();

    // A topic that was made anew under the same name, with as many records.
    fs::write(&file, &good).expect("written");
    world.kafka.delete(&world.names.opt_outs);
    wait_for("the end of the topic", DEADLINE, || if world.kafka.topics().contains(&world.names.opt_outs) { Err(()) } else { Ok(()) });
    world.kafka.create_with(&world.names.opt_outs, world.layout.opt_outs, &[("cleanup.policy", "compact")]);
    let start = now_ms() - 3_600_000;
    let producer = world.kafka.producer();
    producer.send_all(&world.names.opt_outs, (1..=PEOPLE).map(|n| world.consent_record(&identity(n), "marketing", OPTED_OUT, start)));
    let mut service = world.serving("filter", "snap/shot").spawn_in(directory);
    service.ready();
    assert_eq!(taken_over(&service), 0.0);
    assert!(service.stderr().contains("it is of another topic"), "{}", service.stderr());
    assert_decisions(&world, "other", &[(0, true), (PEOPLE, false)]);
}

#[test]
fn a_start_that_read_little_more_than_a_thousand_records_writes_a_snapshot_at_once() {
    let Some(broker) = Broker::shared() else { return };
    let world = World::new(broker, "snapshot-little");
    fill_with(&world, 1_100);
    let mut service = filter(&world);
    service.ready();
    await_written(&service, 1.0);
    service.terminate();
}

#[test]
fn a_disk_that_is_full_is_told_and_stops_nothing() {
    let Some(broker) = Broker::shared() else { return };
    let world = World::new(broker, "snapshot-full");
    fill(&world);
    let directory = tempfile::tempdir().expect("a directory");
    fs::create_dir(directory.path().join("state")).expect("made");
    let start = world.serving("filter", "snap/shot");
    let name = start.value("--instance").replace('/', "%2F");
    symlink("/dev/full", directory.path().join(format!("state/{name}.snapshot.new"))).expect("linked");
    let mut service = start.spawn_in(directory);
    service.ready();
    wait_for("a snapshot that fails", DEADLINE, || match service.metric("stopgate_snapshots_total", &["result=\"failed\""]) {
        failed if failed >= 1.0 => Ok(()),
        failed => Err(failed),
    });
    assert!(service.stderr().contains("No space left on device"), "{}", service.stderr());
    assert_eq!(fs::read_dir(service.directory().join("state")).expect("there").count(), 0);
    assert_decisions(&world, "full", &[(5, false), (PEOPLE, true)]);
    service.ready();
    service.terminate();
}
