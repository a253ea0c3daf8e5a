//! Before the work: topics that are missing or wrong, the verb that makes them, and refusals that name the remedy.

use std::fs;
use std::net::TcpListener;
use std::process::Command;
use std::time::Duration;

use crate::support::broker::Broker;
use crate::support::service::{Start, free_address};
use crate::support::wait::{DEADLINE, holds_for, wait_until};
use crate::support::world::{Layout, World, phone};

#[test]
fn missing_topics_are_named_with_the_command_that_makes_them_and_then_the_service_heals() {
    let Some(broker) = Broker::shared() else { return };
    let world = World::empty(broker, "missing", Layout { inbound: 8, opt_outs: 8, sends: 8, ..Layout::default() });
    let mut service = world.serving("run", "a").spawn();
    service.unready(|body| body.contains("stopgate topics") && body.contains(&world.names.opt_outs));
    assert_eq!(service.get("/livez").expect("an answer").0, 200, "it lives, it is not ready");
    service.still_runs();
    world.verb("topics").finish().expect_code(0);
    service.ready();
    world.says(&phone(1), "STOP");
    let outcomes = world.outcomes();
    wait_until("the opt-out", DEADLINE, || !world.kafka.read_committed(&world.names.opt_outs).is_empty());
    world.asks("s1", &phone(1));
    outcomes.await_suppressed("s1");
    service.terminate();
}

#[test]
fn without_a_broker_the_service_waits_and_says_so() {
    let Some(broker) = Broker::shared() else { return };
    let world = World::empty(broker, "no-broker", Layout::default());
    let nowhere = free_address();
    let mut service = world.serving("run", "a").arg("--bootstrap", &nowhere).spawn();
    service.unready(|body| !body.is_empty());
    holds_for("it keeps trying", Duration::from_secs(3), || match service.get("/readyz") {
        Ok((503, _)) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    service.still_runs();
    service.terminate();
}

#[test]
fn a_service_that_is_asked_to_end_before_it_has_read_its_configuration_ends_as_one_that_serves_does() {
    let directory = tempfile::tempdir().expect("a directory");
    let pipe = directory.path().join("stopgate.toml");
    assert!(Command::new("mkfifo").arg(&pipe).status().expect("mkfifo").success());
    let start = Start::serving("run").arg("--config", &pipe.display().to_string()).arg("--bootstrap", &free_address());
    let mut service = start.spawn();
    // Opens once somebody reads, who gets no further before it is closed.
    let writer = fs::OpenOptions::new().write(true).open(&pipe).expect("a reader");
    service.signal("TERM");
    drop(writer);
    let (code, log) = service.ended();
    assert_eq!(code, 0, "{log}");
}

#[test]
fn words_that_cannot_be_read_end_a_start_at_once_where_no_broker_answers() {
    let Some(broker) = Broker::shared() else { return };
    let world = World::empty(broker, "no-words", Layout::default()).setting("lexicon_dir = \"/dev/null/no-such-directory\"");
    let said = world.serving("run", "a").arg("--bootstrap", &free_address()).finish().expect_code(2);
    assert!(said.stderr.contains("no-such-directory"), "{}", said.stderr);
}

#[test]
fn the_verb_topics_creates_everything_with_the_right_policies_and_changes_nothing_that_exists() {
    let Some(broker) = Broker::shared() else { return };
    let world = World::empty(broker, "topics", Layout::default());
    let (kafka, names) = (&world.kafka, &world.names);
    // The outputs take the partition count of an existing sends topic.
    kafka.create_with(&names.sends, 5, &[("retention.ms", "3600000")]);
    world.verb("topics").finish().expect_code(0);
    let has = |topic: &str, partitions| {
        // A busy broker hears a little later of topics that its controller has made.
        wait_until("the broker tells of a topic that was made", DEADLINE, || kafka.partitions(topic).is_some());
        assert_eq!(kafka.partitions(topic), Some(partitions), "{topic}");
    };
    for topic in [&names.inbound, &names.opt_outs, &names.replies, &names.reviews, &names.decisions, &names.dead_letters] {
        has(topic, 8);
    }
    for topic in [&names.sends, &names.allowed, &names.suppressed] {
        has(topic, 5);
    }
    let opt_outs = kafka.settings(&names.opt_outs);
    assert_eq!(opt_outs["cleanup.policy"], "compact");
    assert_eq!(opt_outs["message.timestamp.type"], "LogAppendTime");
    let lag: i64 = opt_outs["min.compaction.lag.ms"].parse().expect("milliseconds");
    assert!((5 * 365..=5 * 366).contains(&(lag / 86_400_000)), "five years, not {lag} ms");
    for (topic, days) in [(&names.replies, 1), (&names.reviews, 30), (&names.dead_letters, 30)] {
        let settings = kafka.settings(topic);
        assert_eq!(settings["cleanup.policy"], "delete", "{topic}");
        assert_eq!(settings["retention.ms"], (days * 86_400_000i64).to_string(), "{topic}");
    }
    let decisions = kafka.settings(&names.decisions);
    assert_eq!(decisions["cleanup.policy"], "delete");
    let kept: i64 = decisions["retention.ms"].parse().expect("milliseconds");
    assert!((5 * 365..=5 * 366).contains(&(kept / 86_400_000)), "the audit window, not {kept} ms");
    assert_eq!(kafka.settings(&names.sends)["retention.ms"], "3600000", "what exists stays as it is");

    // Again: nothing to do. With a difference: it is printed, and left.
    let before = kafka.settings(&names.replies);
    world.verb("topics").finish().expect_code(0);
    assert_eq!(kafka.settings(&names.replies), before);
    kafka.alter(&names.dead_letters, &[("retention.ms", "1000")]);
    let said = world.verb("topics").finish();
    assert!(said.text().contains(&names.dead_letters) && said.text().contains("retention.ms"), "{}", said.text());
    assert_eq!(kafka.settings(&names.dead_letters)["retention.ms"], "1000");
}

#[test]
fn an_opt_outs_topic_that_is_not_compacted_is_refused_with_the_remedy() {
    let Some(broker) = Broker::shared() else { return };
    let settings = vec![("cleanup.policy", "delete")];
    let world = World::with(broker, "not-compacted", Layout { opt_outs_settings: settings, ..Layout::default() });
    for verb in ["run", "detect", "filter"] {
        let mut service = world.serving(verb, "a").spawn();
        let (code, log) = service.ended();
        assert!(matches!(code, 1 | 2), "exit code {code} of {verb}");
        assert!(log.contains(&world.names.opt_outs) && log.contains("compact"), "{verb} names the fault:\n{log}");
        assert!(log.contains("stopgate ") || log.contains("kafka-configs"), "{verb} names the command:\n{log}");
    }
}

#[test]
fn outputs_with_other_partition_counts_are_refused() {
    let Some(broker) = Broker::shared() else { return };
    let world = World::new(broker, "other-counts");
    world.kafka.grow(&world.names.allowed, 4);
    let mut service = world.serving("filter", "a").spawn();
    let (code, log) = service.ended();
    assert!(matches!(code, 1 | 2), "exit code {code}");
    assert!(log.contains(&world.names.allowed), "it names the topic:\n{log}");
}

#[test]
fn a_port_that_is_taken_and_a_wrong_configuration_exit_with_two() {
    let Some(broker) = Broker::shared() else { return };
    let world = World::new(broker, "refusals");
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    let mut service = world.serving("run", "a").arg("--http", &address).spawn();
    let (code, log) = service.ended();
    assert_eq!(code, 2, "{log}");
    assert!(log.contains(&address), "{log}");

    // All problems in one message.
    let world = world.setting("no_such_field = 1\nworkers = 0\nacknowledged_poison = [\"1-2\"]");
    let said = world.serving("run", "a").finish().expect_code(2);
    for problem in ["no_such_field", "workers", "1-2"] {
        assert!(said.stderr.contains(problem), "{problem} is missing in:\n{}", said.stderr);
    }
    let said = world.serving("run", "a").arg("--fence", "sometimes").finish().expect_code(2);
    assert!(said.stderr.contains("sometimes"), "{}", said.stderr);
}

#[test]
fn check_prints_the_effective_configuration_and_every_problem() {
    let Some(broker) = Broker::shared() else { return };
    let world = World::empty(broker, "check", Layout::default());
    world.verb("topics").finish().expect_code(0);
    wait_until("the new topics", DEADLINE, || world.kafka.partitions(&world.names.suppressed).is_some());
    let said = world.verb("check").finish().expect_code(0);
    for topic in [&world.names.opt_outs, &world.names.sends, &world.names.dead_letters] {
        assert!(said.stdout.contains(topic.as_str()), "{topic}:\n{}", said.stdout);
    }
    world.kafka.delete(&world.names.replies);
    world.kafka.grow(&world.names.suppressed, 9);
    let said = world.verb("check").finish();
    assert_ne!(said.code, 0, "{}", said.text());
    for topic in [&world.names.replies, &world.names.suppressed] {
        assert!(said.text().contains(topic.as_str()), "{topic}:\n{}", said.text());
    }
}
