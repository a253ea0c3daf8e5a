//! Explain: one person's story, from the topics alone.

use serde_json::Value;

use crate::support::broker::Broker;
use crate::support::world::{World, phone};

#[test]
fn a_story_is_told_in_order_and_without_the_inbound_topic() {
    let Some(broker) = Broker::shared() else { return };
    let world = World::new(broker, "explain");
    let mut service = world.serving("run", "a").spawn();
    service.ready();
    let ada = phone(1);
    let outcomes = world.outcomes();
    world.asks("before", &ada);
    outcomes.await_allowed("before");
    let (partition, offset) = world.says(&ada, "please STOP");
    let opt_outs = world.kafka.reader(&world.names.opt_outs, crate::support::kafka::Isolation::Committed);
    let act = opt_outs.find("the opt-out", |record| record.key_text().contains(&ada));
    world.asks("after", &ada);
    outcomes.await_suppressed("after");
    world.asks("somebody else's", &phone(2));
    outcomes.await_allowed("somebody else's");
    world.kafka.reader(&world.names.replies, crate::support::kafka::Isolation::Committed).at_least(1);
    service.terminate();
    // The message itself is past its retention.
    world.kafka.delete_before(&world.names.inbound, partition, offset + 1);

    let position = act.position();
    for (name, value) in [("--recipient", ada.as_str()), ("--send", "after"), ("--opt-out", &position)] {
        let told = world.verb("explain").arg(name, value).finish().expect_code(0).stdout;
        let places: Vec<_> =
            ["send allowed", "asked", "recorded", "send suppressed"].iter().map(|words| told.find(&format!("  {words}"))).collect();
        assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{places:?} by {name}:\n{told}");
        for part in ["please STOP", "matched: STOP", "opt-out-confirmation", "send: before", &format!("cause: {position}")] {
            assert!(told.contains(part), "{part} is missing by {name}:\n{told}");
        }
        assert!(!told.contains("somebody else"), "{told}");
    }
    let directory = tempfile::tempdir().expect("a directory");
    let page = directory.path().join("story.html");
    world.verb("explain").arg("--recipient", &ada).arg("--report", &page.display().to_string()).finish().expect_code(0);
    let page = std::fs::read_to_string(page).expect("a page");
    assert!(page.contains("please <mark>STOP</mark>") && page.ends_with("</html>\n"), "{page}");

    let unknown = world.verb("explain").arg("--recipient", &phone(9)).finish().expect_code(1);
    assert!(unknown.stderr.contains("nothing is known") && !unknown.text().contains(&phone(9)), "{}", unknown.text());
    let malformed = world.verb("explain").arg("--recipient", "12ab").finish().expect_code(2);
    assert!(malformed.stderr.contains("no identity") && !malformed.text().contains("12ab"), "{}", malformed.text());
    world.verb("explain").arg("--send", "nobody's").finish().expect_code(1);
    world.verb("explain").arg("--opt-out", "0@9999").finish().expect_code(2);
    world.verb("explain").arg("--recipient", &ada).arg("--business", "globex").finish().expect_code(1);
}

#[test]
fn the_story_is_json_where_that_is_asked_for() {
    let Some(broker) = Broker::shared() else { return };
    let world = World::new(broker, "explain-json");
    world.opts_out(&phone(1));
    let told = world.verb("explain").word("--json").arg("--recipient", &phone(1)).finish();
    let story: Value = serde_json::from_str(&told.expect_code(0).stdout).expect("JSON");
    assert_eq!(story["person"][0], format!("phone:{}", phone(1)));
    let events: Vec<&str> = story["events"].as_array().expect("events").iter().filter_map(|event| event["event"].as_str()).collect();
    assert_eq!(events, ["asked", "recorded"]);
}
