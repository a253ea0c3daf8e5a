//! Replay: what was decided is decided again, and whatever is not as it must be is found.

use std::collections::BTreeMap;

use prost::Message as _;
use serde_json::Value;

use crate::support::broker::Broker;
use crate::support::kafka::{CLEANED_AT_ONCE, Isolation, Record};
use crate::support::records::{ConsentRecord, DecisionBlock, Evidence, OPTED_OUT, ReasonCount, SourceCoordinates};
use crate::support::service::Finished;
use crate::support::wait::{DEADLINE, wait_for};
use crate::support::world::{Layout, World, consent_key, message, now_ms, phone, send};

/// The summary, and how often each kind of difference was told.
fn told(finished: &Finished) -> (Value, BTreeMap<String, usize>) {
    let lines: Vec<Value> = finished.stdout.lines().map(|line| serde_json::from_str(line).expect("JSON Lines")).collect();
    let mut kinds = BTreeMap::new();
    for kind in lines.iter().filter_map(|line| line.get("difference")?.as_str()) {
        *kinds.entry(kind.to_owned()).or_default() += 1;
    }
    let summary = lines.last().and_then(|line| line.get("summary")).cloned().unwrap_or_else(|| panic!("no summary:\n{}", finished.text()));
    (summary, kinds)
}

/// Replays all of a world that was decided without a fault; returns how many sends there were.
#[track_caller]
pub fn assert_replays_the_same(world: &World) -> u64 {
    let finished = world.verb("replay").finish().expect_code(0);
    let (summary, kinds) = told(&finished);
    assert!(kinds.is_empty(), "{}", finished.text());
    assert_eq!((summary["records"].clone(), summary["unprovable"].as_u64()), (summary["same"].clone(), Some(0)), "{summary}");
    summary["records"].as_u64().unwrap_or_default()
}

/// What the filter wrote, before it is spoilt.
struct Played {
    opt_out: (i32, i64),
    allowed: Vec<Record>,
    suppressed: Vec<Record>,
    blocks: Vec<DecisionBlock>,
}

/// Plays the filter by hand: three sends of one partition, the first to somebody who opted out.
fn played(broker: &Broker, spoil: impl FnOnce(&mut Played)) -> World {
    let world = World::new(broker, "replay");
    let opt_out = world.opts_out(&phone(1));
    let inputs = ["a", "b", "c"].map(|id| send(id, &phone(if id == "a" { 1 } else { 2 }), "marketing").to(1).at(1_700_000_000_000));
    world.kafka.produce_all(&world.names.sends, inputs.clone());
    let as_of: Vec<u64> = world.kafka.ends(&world.names.opt_outs).into_iter().map(i64::cast_unsigned).collect();
    let as_of_text: Vec<String> = (0..).zip(&as_of).map(|(partition, at): (u32, _)| format!("{partition}@{at}")).collect();
    let suppressed = inputs[0]
        .clone()
        .header("stopgate-reason", "opted-out")
        .header("stopgate-cause", format!("{}@{}", opt_out.0, opt_out.1))
        .header("stopgate-as-of", as_of_text.join(","))
        .header("stopgate-source", format!("{}-1@0", world.names.sends))
        .header("stopgate-rules", "1");
    let count = |reason: &str, count| vec![ReasonCount { reason: reason.into(), count }];
    let block = DecisionBlock {
        topic: world.names.sends.clone(),
        partition: 1,
        first_offset: 0,
        end_offset: 3,
        as_of,
        rules_version: "1".into(),
        allowed: count("no-opt-out", 2),
        suppressed: count("opted-out", 1),
        ..DecisionBlock::default()
    };
    let mut played = Played { opt_out, allowed: inputs[1..].to_vec(), suppressed: vec![suppressed], blocks: vec![block] };
    spoil(&mut played);
    world.kafka.produce_all(&world.names.allowed, played.allowed);
    world.kafka.produce_all(&world.names.suppressed, played.suppressed);
    let key = format!("{}-1", world.names.sends);
    let place = stopgate::wire::partition::partition_for(key.as_bytes(), 2).cast_signed();
    world.kafka.produce_all(&world.names.decisions, played.blocks.iter().map(|block| Record::new(&key, block.encode_to_vec()).to(place)));
    world
}

#[test]
fn every_kind_of_fault_is_found_by_its_kind() {
    let Some(broker) = Broker::shared() else { return };
    type Fault = fn(&mut Played);
    let faults: [(&str, Fault); 13] = [
        ("", |_| ()),
        ("missing", |played| drop(played.allowed.pop())),
        ("missing", |played| drop(played.suppressed.pop())),
        ("doubled", |played| played.allowed.push(played.allowed[1].clone())),
        ("doubled", |played| played.suppressed.push(played.suppressed[0].clone())),
        ("out-of-order", |played| played.allowed.reverse()),
        ("changed", |played| played.allowed[1].value = Some(b"{}".to_vec())),
        ("changed", |played| played.suppressed[0].headers.push(("x".into(), None))),
        ("unexpected", |played| played.allowed.push(Record::new("k", "never asked for").to(1))),
        // The opt-out did not count yet, by the block: the send should have passed.
        ("decision", |played| played.blocks[0].as_of = vec![0; 3]),
        ("gap", |played| played.blocks[0].first_offset = 1),
        ("overlap", |played| {
            let again = DecisionBlock { first_offset: 2, allowed: vec![], suppressed: vec![], ..played.blocks[0].clone() };
            played.blocks.push(again);
        }),
        ("counts", |played| played.blocks[0].allowed[0].count = 1),
    ];
    std::thread::scope(|scope| {
        for chunk in faults.chunks(4) {
            scope.spawn(move || {
                for (number, (kind, fault)) in chunk.iter().enumerate() {
                    let world = played(broker, fault);
                    let finished = world.verb("replay").finish();
                    let (summary, kinds) = told(&finished);
                    let expected: Vec<&str> = if kind.is_empty() { vec![] } else { vec![*kind] };
                    let found: Vec<&str> = kinds.keys().map(String::as_str).collect();
                    assert_eq!(found, expected, "fault {number}, {kind}: {summary}\n{}", finished.text());
                    finished.expect_code(i32::from(!kind.is_empty()));
                }
            });
        }
    });
}

#[test]
fn what_cannot_be_looked_at_is_trouble_and_says_why() {
    let Some(broker) = Broker::shared() else { return };
    // Positions of an opt-outs topic that was deleted and created again.
    let world = played(broker, |played| played.blocks[0].opt_outs_topic_id = "AAAAAAAAAAAAAAAAAAAAAA".into());
    let finished = world.verb("replay").finish().expect_code(2);
    assert!(finished.stderr.contains("deleted and created again"), "{}", finished.stderr);
    let world = played(broker, |played| played.blocks[0].as_of[played.opt_out.0 as usize] = 99);
    let finished = world.verb("replay").finish().expect_code(2);
    assert!(finished.stderr.contains("truncated or created again"), "{}", finished.stderr);

    // What retention took is named where it was asked for.
    let world = played(broker, |_| ());
    world.kafka.delete_before(&world.names.sends, 1, 2);
    let finished = world.verb("replay").arg("--offsets", "1:0-3").finish().expect_code(2);
    assert!(finished.stderr.contains("offsets 0 to 1 are gone by retention: the log begins at 2"), "{}", finished.stderr);
    let finished = world.verb("replay").arg("--offsets", "1:2-3").finish().expect_code(0);
    assert_eq!(told(&finished).0["same"], 1, "{}", finished.text());
    for (name, value) in [("--offsets", "1:3-2"), ("--offsets", "7:0-1"), ("--since", "yesterday"), ("--ids", "/nonexistent")] {
        world.verb("replay").arg(name, value).finish().expect_code(2);
    }
}

#[test]
fn a_part_is_replayed_as_the_whole_is() {
    let Some(broker) = Broker::shared() else { return };
    let world = World::new(broker, "replay-part");
    let mut service = world.serving("run", "a").spawn();
    service.ready();
    world.opts_out(&phone(3));
    let sends = (0..60).map(|n| send(&format!("s{n}"), &phone(n % 6), "marketing").to(0));
    world.kafka.produce_all(&world.names.sends, sends);
    // Unreadable ones, too.
    world.kafka.produce(&world.names.sends, Record::new("k", "no send").to(0).header("a", "b"));
    let outcomes = world.outcomes();
    wait_for("61 outcomes", DEADLINE, || if outcomes.count() == 61 { Ok(()) } else { Err(outcomes.count()) });
    service.terminate();
    assert_eq!(assert_replays_the_same(&world), 61);
    let finished = world.verb("replay").arg("--offsets", "0:13-37").finish().expect_code(0);
    assert_eq!(told(&finished).0["same"], 24, "{}", finished.text());
    let ids = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(ids.path(), "s3\ns17\n").expect("written");
    let finished = world.verb("replay").arg("--ids", &ids.path().display().to_string()).finish().expect_code(0);
    assert_eq!(told(&finished).0["same"], 2, "{}", finished.text());
    std::fs::write(ids.path(), "s3\nnobody\n").expect("written");
    world.verb("replay").arg("--ids", &ids.path().display().to_string()).finish().expect_code(1);
}

#[test]
fn what_compaction_took_is_not_held_against_the_filter() {
    let Some(broker) = Broker::shared() else { return };
    let layout = Layout { opt_outs_settings: CLEANED_AT_ONCE.to_vec(), ..Layout::default() };
    let world = World::with(broker, "replay-compacted", layout);
    let mut service = world.serving("filter", "a").spawn();
    service.ready();
    let identity = format!("phone:{}", phone(1));
    let (_, first) = world.consent(&identity, "marketing", OPTED_OUT, 1_000);
    world.asks("suppressed", &phone(1));
    world.asks("allowed", &phone(2));
    let outcomes = world.outcomes();
    outcomes.await_suppressed("suppressed");
    outcomes.await_allowed("allowed");
    assert_eq!(assert_replays_the_same(&world), 2);
    // Said again, until the act that suppressed is gone.
    wait_for("compaction", DEADLINE, || {
        world.consent(&identity, "marketing", OPTED_OUT, 2_000);
        let left = world.kafka.read_committed(&world.names.opt_outs);
        if left.iter().any(|record| (record.partition, record.offset) == first) { Err(left.len()) } else { Ok(()) }
    });
    service.terminate();
    let (summary, kinds) = told(&world.verb("replay").finish().expect_code(0));
    assert_eq!((summary["same"].as_u64(), summary["unprovable"].as_u64(), kinds.len()), (Some(1), Some(1), 0), "{summary}");
}

/// The summary of a replay of detection, and what it tells.
fn told_of_detect(world: &World, code: i32) -> (Value, BTreeMap<String, usize>) {
    told(&world.verb("replay").arg("--stage", "detect").word("--json").finish().expect_code(code))
}

#[test]
fn messages_are_understood_again_and_held_against_what_was_written() {
    let Some(broker) = Broker::shared() else { return };
    let mut world = World::new(broker, "replay-detect");
    let mut service = world.serving("run", "a").spawn();
    service.ready();
    let at = now_ms();
    let said = [
        (1, "STOP", at),
        (1, "START", at + 10),
        (1, "STOP", at + 20),
        (1, "START", at + 10),
        (1, "STOP", at + 5),
        (2, "help", at),
        (3, "too many messages", at),
        (4, "no thank you acme", at),
        (5, "please STOP", at),
    ];
    for (person, text, at) in said {
        world.kafka.produce(&world.names.inbound, message(&phone(person), text, at));
    }
    world.kafka.produce(&world.names.inbound, Record::new("x", "no message"));
    let opt_outs = world.kafka.reader(&world.names.opt_outs, Isolation::Committed);
    let of_five = opt_outs.find("the last opt-out", |record| record.key_text().contains(&phone(5)));
    wait_for("all read", DEADLINE, || {
        let committed: i64 = world.kafka.committed(&world.names.detect_group, &world.names.inbound).iter().flatten().sum();
        if committed == 10 { Ok(()) } else { Err(committed) }
    });
    service.terminate();
    let (summary, kinds) = told_of_detect(&world, 0);
    assert_eq!((summary["records"].as_u64(), summary["same"].as_u64(), kinds.len()), (Some(10), Some(10), 0), "{summary}");

    // Other words, and what they would change.
    let rules = tempfile::tempdir().expect("a directory");
    let directory = rules.path().display().to_string();
    world.verb("replay").arg("--rules", &directory).finish().expect_code(2);
    let words = "change = \"add\"\nclass = \"opt_out\"\nlanguage = \"en\"\nwords = [\"no thank you acme\"]\n";
    let text = format!("exempt_categories = []\n[[business]]\nname = \"acme\"\n[[business.words]]\n{words}");
    std::fs::write(rules.path().join("stopgate.toml"), text).expect("written");
    let what_if = world.verb("replay").arg("--stage", "detect").arg("--rules", &directory).word("--json").finish().expect_code(1);
    let (summary, kinds) = told(&what_if);
    assert_eq!(kinds, [("what-if".to_owned(), 1)].into(), "{summary}");
    let changes = summary["changes"].as_object().expect("changes");
    assert!(changes.keys().all(|change| change.starts_with("nothing → opted-out of marketing by ")) && changes.len() == 1, "{summary}");

    // Records that follow from nothing, and one that does not follow as it stands.
    let spoil = |source: (i32, i64)| {
        let coordinates = SourceCoordinates {
            topic: world.names.inbound.clone(),
            partition: source.0.cast_unsigned(),
            offset: source.1.cast_unsigned(),
            index: 0,
        };
        let evidence = Evidence { source: Some(coordinates), rule: "made.up".into(), ..Evidence::default() };
        let consent = ConsentRecord { state: OPTED_OUT, occurred_at_ms: at, cause: 1, evidence: Some(evidence), changed_state: true };
        consent.encode_to_vec()
    };
    let inbound = world.kafka.read_committed(&world.names.inbound);
    let place = |text: &str| {
        let found = inbound.iter().find(|record| record.value_text().contains(text)).expect("said");
        (found.partition, found.offset)
    };
    let of_help = Record::new(consent_key("acme", "whatsapp", &format!("phone:{}", phone(2)), "marketing"), spoil(place("help")));
    world.kafka.produce(&world.names.opt_outs, of_help.to(0));
    world.kafka.produce(&world.names.opt_outs, Record::new(of_five.key_text(), spoil(place("please STOP"))).to(of_five.partition));
    let (_, kinds) = told_of_detect(&world, 1);
    assert_eq!(kinds, [("changed".to_owned(), 1), ("unexpected".to_owned(), 1)].into());

    // A log in which nothing was written.
    let empty = World::new(broker, "replay-detect-empty");
    world.names.opt_outs = empty.names.opt_outs;
    let (summary, kinds) = told_of_detect(&world, 1);
    assert_eq!(kinds, [("missing".to_owned(), 7)].into(), "{summary}");
    world.verb("replay").arg("--stage", "detect").arg("--offsets", "9:0-1").finish().expect_code(2);
}

#[test]
fn sends_are_decided_under_other_rules_too() {
    let Some(broker) = Broker::shared() else { return };
    let world = World::new(broker, "replay-what-if");
    let mut service = world.serving("run", "a").spawn();
    service.ready();
    world.opts_out(&phone(1));
    let outcomes = world.outcomes();
    for (id, person) in [("u1", 1), ("u2", 2)] {
        world.kafka.produce(&world.names.sends, send(id, &phone(person), "utility"));
        outcomes.await_allowed(id);
    }
    service.terminate();
    let rules = tempfile::tempdir().expect("a directory");
    std::fs::write(rules.path().join("stopgate.toml"), "exempt_categories = []\n").expect("written");
    let finished = world.verb("replay").arg("--rules", &rules.path().display().to_string()).word("--json").finish().expect_code(1);
    let (summary, kinds) = told(&finished);
    assert_eq!((summary["same"].as_u64(), kinds), (Some(2), [("what-if".to_owned(), 2)].into()), "{summary}");
    assert_eq!(summary["changes"]["allowed (exempt-category) → suppressed (opted-out)"], 1, "{summary}");
    assert_eq!(summary["changes"]["allowed (exempt-category) → allowed (no-opt-out)"], 1, "{summary}");
    assert_eq!(assert_replays_the_same(&world), 2);
}

#[test]
fn sends_are_decided_on_the_opt_outs_that_other_words_would_have_written() {
    let Some(broker) = Broker::shared() else { return };
    let world = World::new(broker, "replay-other-words");
    let mut service = world.serving("run", "a").spawn();
    service.ready();
    let outcomes = world.outcomes();
    world.asks("before", &phone(1));
    outcomes.await_allowed("before");
    world.says(&phone(1), "no thank you acme");
    world.says(&phone(2), "STOP");
    let opt_outs = world.kafka.reader(&world.names.opt_outs, Isolation::Committed);
    opt_outs.find("the opt-out", |record| record.key_text().contains(&phone(2)));
    wait_for("all read", DEADLINE, || {
        let committed: i64 = world.kafka.committed(&world.names.detect_group, &world.names.inbound).iter().flatten().sum();
        if committed == 2 { Ok(()) } else { Err(committed) }
    });
    // (Without the keyword a bare "stop" is for a person to judge.) The log goes on behind the message, as it does where many people write.
    for person in 10..40 {
        world.opts_out(&phone(person));
    }
    world.asks("after", &phone(1));
    outcomes.await_allowed("after");
    world.asks("stopped", &phone(2));
    outcomes.await_suppressed("stopped");
    service.terminate();
    let rules = tempfile::tempdir().expect("a directory");
    let change = |change: &str, words: &str| {
        format!("[[business.words]]\nchange = \"{change}\"\nclass = \"opt_out\"\nlanguage = \"en\"\nwords = [\"{words}\"]\n")
    };
    let text = format!("[[business]]\nname = \"acme\"\n{}{}", change("add", "no thank you acme"), change("remove", "stop"));
    std::fs::write(rules.path().join("stopgate.toml"), text).expect("written");
    let finished = world.verb("replay").arg("--rules", &rules.path().display().to_string()).word("--json").finish().expect_code(1);
    let (summary, _) = told(&finished);
    let changes =
        serde_json::json!({ "allowed (no-opt-out) → suppressed (opted-out)": 1, "suppressed (opted-out) → suppressed (under-review)": 1 });
    assert_eq!((&summary["changes"], summary["same"].as_u64()), (&changes, Some(3)), "{summary}");
}
