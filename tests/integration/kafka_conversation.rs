//! Questions after an opt-out and what their answers do; sends that must say how to opt out, once each, whatever happens.

use serde_json::json;

use super::kafka_replay::assert_replays_the_same;
use crate::support::broker::Broker;
use crate::support::kafka::{Isolation, Received, Record};
use crate::support::records::{FeedbackRecord, ReplyRequest, decode};
use crate::support::service::Service;
use crate::support::wait::{DEADLINE, wait_for};
use crate::support::world::{BUSINESS, World, consent_key, now_ms, send};

const FEEDBACK_QUESTION: i32 = 4;
const CLARIFICATION: i32 = 5;

const ANA: &str = "+5511912345678";

const ASKING: &str = r#"
[feedback]
enabled = true
[clarification]
enabled = true
[[business]]
name = "acme"
numbers = ["+12025550100"]
[[business.program]]
id = "news"
name = "Newsletter"
"#;

fn asking(broker: &Broker, name: &str) -> World {
    let world = World::new(broker, name).tables(ASKING);
    world.kafka.create(&world.names.feedback, 2);
    world
}

fn tapped(from: &str, payload: &str, at: i64) -> Record {
    let body = json!({ "id": format!("b-{at}"), "from": from, "to": "+12025550100", "channel": "whatsapp", "received_at": at,
        "button": { "payload": payload, "text": "…" } });
    Record::new(from, body.to_string())
}

#[test]
fn an_answer_says_why_and_another_one_narrows_what_was_stopped() {
    let Some(broker) = Broker::shared() else { return };
    let world = asking(broker, "answers");
    let mut service = world.serving("run", "a").spawn();
    service.ready();
    let replies = world.kafka.reader(&world.names.replies, Isolation::Committed);
    let kinds = |count: usize| replies.at_least(count).iter().map(|record| decode::<ReplyRequest>(record).kind).collect::<Vec<i32>>();
    world.says(ANA, "STOP MARKETING");
    assert!(kinds(2).contains(&FEEDBACK_QUESTION), "{:?}", kinds(2));
    world.kafka.produce(&world.names.inbound, tapped(ANA, "stopgate:feedback:too-many", now_ms()));
    let told = world.kafka.reader(&world.names.feedback, Isolation::Committed).at_least(1);
    let feedback: FeedbackRecord = decode(&told[0]);
    let key = consent_key(BUSINESS, "whatsapp", &format!("phone:{ANA}"), "marketing");
    assert_eq!((told[0].key_text(), feedback.reason.as_str()), (key, "too-many"));
    world.asks("stopped", ANA);
    let outcomes = world.outcomes();
    outcomes.await_suppressed("stopped");

    world.says(ANA, "START");
    world.says(ANA, "STOP");
    assert!(kinds(5).contains(&CLARIFICATION), "{:?}", kinds(5));
    world.kafka.produce(&world.names.inbound, tapped(ANA, "stopgate:only:news", now_ms()));
    kinds(6);
    let of = |id: &str, program: &str| {
        let body = json!({ "id": id, "business": BUSINESS, "channel": "whatsapp", "to": ANA, "category": "marketing", "program": program });
        world.kafka.produce(&world.names.sends, Record::new(ANA, body.to_string()));
    };
    of("news", "news");
    of("shoes", "shoes");
    outcomes.await_suppressed("news");
    outcomes.await_allowed("shoes");
    assert!(service.metric("stopgate_feedback_total", &["reason=\"too-many\""]) >= 1.0);

    // The whole of it can be told again and decided again.
    assert_replays_the_same(&world);
    world.verb("replay").arg("--stage", "detect").finish().expect_code(0);
    let story = world.verb("explain").arg("--recipient", ANA).word("--json").finish().expect_code(0).stdout;
    assert!(story.contains("too-many") && story.contains("answer.only"), "{story}");
    let report = world.verb("report").arg("--since", "2020-01-01T00:00:00Z").arg("--until", "2100-01-01T00:00:00Z");
    let report = report.arg("--format", "json").finish().expect_code(0).stdout;
    let report: serde_json::Value = serde_json::from_str(&report).expect("a report");
    assert_eq!(report["opt_outs"]["by_feedback"]["too-many"], json!(1), "{report}");
    service.terminate();
}

const GUIDING: &str = "[guidance]\nenabled = true\ngap_days = 30\n";
const DAY_MS: i64 = 86_400_000;

fn guided(broker: &Broker, name: &str) -> World {
    let world = World::new(broker, name).tables(GUIDING);
    world.kafka.create_with(&world.names.guidance, 3, &[("cleanup.policy", "compact"), ("min.compaction.lag.ms", "157784760000")]);
    world
}

/// What each allowed send says of guidance, by its id.
fn occasion(allowed: &Received) -> Option<String> {
    allowed.header("stopgate-guidance")
}

#[test]
fn sends_that_must_say_how_to_opt_out_are_marked_once_for_each_occasion() {
    let Some(broker) = Broker::shared() else { return };
    let world = guided(broker, "guidance").setting("identity_hash_key = \"0123456789abcdef0123456789abcdef\"");
    let mut service = world.serving("run", "a").spawn();
    service.ready();
    let outcomes = world.outcomes();
    let today = now_ms();
    let asks = |id: &str, at: i64| {
        world.kafka.produce(&world.names.sends, send(id, ANA, "marketing").at(at));
        occasion(&outcomes.await_allowed(id))
    };
    assert_eq!(asks("first", today - 40 * DAY_MS).as_deref(), Some("first"));
    assert_eq!(asks("second", today - 39 * DAY_MS), None);
    // Another process knows what this one has written.
    let directory = service.kill();
    drop(directory);
    let mut service = world.serving("run", "b").spawn();
    service.ready();
    assert_eq!(asks("third", today - 38 * DAY_MS), None);
    assert_eq!(asks("after-gap", today).as_deref(), Some("after-gap"));
    world.kafka.produce(&world.names.sends, send("utility", ANA, "utility"));
    assert_eq!(occasion(&outcomes.await_allowed("utility")), None);
    world.says(ANA, "STOP");
    world.kafka.reader(&world.names.replies, Isolation::Committed).at_least(1);
    world.says(ANA, "START");
    world.kafka.reader(&world.names.replies, Isolation::Committed).at_least(2);
    assert_eq!(asks("back", now_ms()).as_deref(), Some("after-opt-in"));
    assert_eq!(asks("again", now_ms()), None);
    let entries = || service.metric("stopgate_guidance_entries", &[]);
    wait_for("one recipient", DEADLINE, || if entries() >= 1.0 { Ok(()) } else { Err(entries()) });
    assert!(service.metric("stopgate_guidance_total", &["occasion=\"first\""]) < 1.0, "told by the process before");
    assert_replays_the_same(&world);
    // Who is forgotten is a stranger again.
    let erase = world.verb("opt-out erase").arg("--business", BUSINESS).arg("--to", ANA).word("--json");
    let erased = erase.finish().expect_code(0).stdout;
    assert!(erased.contains("\"guidance\":1"), "{erased}");
    wait_for("nobody", DEADLINE, || if entries() < 1.0 { Ok(()) } else { Err(entries()) });
    assert_eq!(asks("stranger", now_ms()).as_deref(), Some("first"));
    service.terminate();
}

#[test]
fn kills_and_moves_of_partitions_mark_nobody_twice_and_leave_nobody_out() {
    let Some(broker) = Broker::shared() else { return };
    let world = guided(broker, "guidancekills");
    let people = 300;
    let person = |n: usize| format!("+1202555{n:04}");
    let spawn = |name: &str| world.serving("run", name).spawn();
    let mut running: Vec<Service> = vec![spawn("a")];
    running[0].ready();
    for round in 0..4 {
        let sends = (0..people).map(|n| send(&format!("r{round}-{n}"), &person(n), "marketing"));
        world.kafka.produce_all(&world.names.sends, sends);
        match round {
            0 => running.push(spawn("b")),
            1 => drop(running.remove(0).kill()),
            2 => running.push(spawn("a")),
            _ => {}
        }
    }
    let allowed = world.kafka.reader(&world.names.allowed, Isolation::Committed).at_least_within(4 * people, DEADLINE * 2);
    assert_eq!(allowed.len(), 4 * people);
    let marked: Vec<String> = allowed.iter().filter(|record| occasion(record).is_some()).map(|record| record.key_text()).collect();
    let distinct: std::collections::BTreeSet<&String> = marked.iter().collect();
    assert_eq!((marked.len(), distinct.len()), (people, people), "each person once");
    let at_first = allowed.iter().filter(|record| record.value_text().contains("\"id\":\"r0-")).filter(|record| occasion(record).is_some());
    assert_eq!(at_first.count(), people);
    wait_for("the last positions", DEADLINE, || {
        let (committed, ends) = (world.kafka.committed(&world.names.filter_group, &world.names.sends), world.kafka.ends(&world.names.sends));
        let is_there = committed.iter().zip(&ends).all(|(committed, end)| committed.unwrap_or(0) >= *end);
        if is_there { Ok(()) } else { Err((committed, ends)) }
    });
    assert_replays_the_same(&world);
}
