//! P6: addresses and texts reach neither logs, nor probes, nor metrics, whatever is read and whatever goes wrong.

use serde_json::json;

use crate::support::broker::Broker;
use crate::support::kafka::{Isolation, Record};
use crate::support::service::request;
use crate::support::wait::{DEADLINE, wait_for};
use crate::support::world::{World, now_ms};

/// What nobody but readers of the topics may see.
const PHONE: &str = "+12025550177";
const TEXT: &str = "zanzibar";

#[test]
fn no_address_and_no_text_reaches_a_log_a_probe_or_a_metric() {
    let Some(broker) = Broker::shared() else { return };
    let world = World::new(broker, "privacy");
    let mut service = world.serving("run", "a").variable("STOPGATE_LOG", "trace").spawn();
    service.ready();
    let inbound = |value: String| world.kafka.produce(&world.names.inbound, Record::new(PHONE, value));
    // What is understood, what is ambiguous, what is not readable, and what is nothing.
    for text in ["please STOP, ", "too many messages, ", "START ", "help ", "hello "] {
        world.says(PHONE, &format!("{text}{TEXT}"));
        world.says(PHONE, text.trim());
    }
    inbound(format!("{{\"from\":\"{PHONE}\",\"text\":\"{TEXT}\""));
    inbound(json!({ "from": PHONE, "text": TEXT }).to_string());
    inbound(json!({ "object": "whatsapp_business_account", "entry": [{ "changes": [{ "value": { "messages": [{ "from": PHONE, "text": TEXT }] } }] }] }).to_string());
    inbound(json!({ "business": "acme", "from": format!("{PHONE}{}", "9".repeat(700)), "text": TEXT }).to_string());
    world.kafka.produce(&world.names.sends, Record::new(PHONE, format!("{{\"to\":\"{PHONE}\",\"text\":\"{TEXT}\"")));
    world.kafka.produce(&world.names.sends, Record::new(PHONE, json!({ "to": TEXT, "business": "acme" }).to_string()));
    world.asks(TEXT, PHONE);
    // A value that cannot be read, a key that cannot, and a foreign act of the future.
    let key = format!("acme|whatsapp|phone:{PHONE}|marketing");
    world.kafka.produce(&world.names.opt_outs, Record::new(&key, TEXT).to(0));
    world.consent(&format!("phone:{PHONE}"), "marketing", 1, now_ms() + 1_000_000);
    world.outcomes().dead.at_least(4);
    world.kafka.produce(&world.names.opt_outs, Record::new(format!("{PHONE}|{TEXT}"), TEXT).to(0));
    service.unready(|reasons| reasons.contains("unreadable key"));
    // Questions that fail.
    for (method, path, body) in [
        ("POST", "/v1/check", json!({ "business": "acme", "to": [PHONE, TEXT] }).to_string()),
        ("POST", "/v1/check", json!({ "business": "acme", "to": [PHONE], TEXT: 1 }).to_string()),
        ("POST", "/v1/opt-outs", json!({ "business": "acme", "identity": format!("{PHONE}x"), "reason": TEXT }).to_string()),
        ("GET", &format!("/v1/opt-outs/acme/whatsapp/{TEXT}"), String::new()),
        ("GET", &format!("/v1/opt-outs?{TEXT}={TEXT}"), String::new()),
    ] {
        let (status, answer) = request(service.address(), method, path, &[("Content-Type", "application/json")], &body).expect("an answer");
        assert!(status >= 400 && !answer.contains("0177"), "{answer}");
    }
    let (_, reasons) = service.get("/readyz").expect("an answer");
    let (_, metrics) = service.get("/metrics").expect("an answer");
    wait_for("the reviews", DEADLINE, || {
        let found = world.kafka.reader(&world.names.reviews, Isolation::Committed).at_least(1).len();
        if found > 0 { Ok(()) } else { Err(found) }
    });
    let log = service.terminate();
    assert!(log.contains("TRACE") || log.contains("DEBUG"), "the log is not as talkative as it can be");
    for (what, text) in [("readyz", &reasons), ("metrics", &metrics), ("log", &log)] {
        for private in [PHONE.trim_start_matches('+'), TEXT] {
            let line = text.lines().find(|line| line.contains(private));
            assert_eq!(line, None, "{what} tells what it must not");
        }
    }
}
