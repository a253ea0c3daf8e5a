//! A period in figures, and the proof that nothing leaked in it.

use serde_json::{Value, json};

use crate::support::broker::Broker;
use crate::support::kafka::{Isolation, Record};
use crate::support::wait::{DEADLINE, wait_for};
use crate::support::world::{World, now_ms, phone};

#[test]
fn a_period_is_told_in_figures_and_proved() {
    let Some(broker) = Broker::shared() else { return };
    let world = World::new(broker, "report");
    let mut service = world.serving("run", "a").spawn();
    service.ready();
    let outcomes = world.outcomes();
    // Before the period.
    world.says(&phone(9), "STOP");
    let opt_outs = world.kafka.reader(&world.names.opt_outs, Isolation::Committed);
    opt_outs.find("an opt-out", |record| record.key_text().contains(&phone(9)));
    let since = later();
    let asks = |id: &str, to: &str, campaign: &str| {
        let body = json!({ "id": id, "business": "acme", "channel": "whatsapp", "to": to, "category": "marketing", "campaign": campaign });
        world.kafka.produce(&world.names.sends, Record::new(to, body.to_string()));
    };
    for (id, to, campaign) in [("1", phone(1), "spring"), ("2", phone(1), "autumn"), ("3", phone(2), "autumn")] {
        asks(id, &to, campaign);
        outcomes.await_allowed(id);
    }
    world.says(&phone(1), "please STOP");
    world.says(&phone(2), "quiero darme de baja");
    world.says(&phone(3), "STOP");
    world.says(&phone(3), "START");
    world.says(&phone(4), "too many messages");
    world.kafka.produce(&world.names.sends, Record::new("x", "no send"));
    world.kafka.reader(&world.names.replies, Isolation::Committed).at_least(5);
    world.kafka.reader(&world.names.reviews, Isolation::Committed).at_least(1);
    asks("4", &phone(1), "winter");
    outcomes.await_suppressed("4");
    outcomes.dead.at_least(1);
    let until = later();
    world.says(&phone(5), "STOP");
    opt_outs.find("a later opt-out", |record| record.key_text().contains(&phone(5)));

    let report = |format: &str| {
        let told = world.verb("report").arg("--since", &since.to_string()).arg("--until", &until.to_string()).arg("--format", format).finish();
        told.expect_code(0).stdout
    };
    let told: Value = serde_json::from_str(&report("json")).expect("JSON");
    assert_eq!((&told["opt_outs"]["people"], &told["opt_ins"]), (&json!(3), &json!(1)), "{told}");
    assert_eq!(told["opt_outs"]["by_language"]["es"], json!(1));
    let campaigns = told["opt_outs"]["by_campaign"].as_array().expect("campaigns");
    let of = |name: Value| campaigns.iter().find(|campaign| campaign["campaign"] == name).unwrap_or_else(|| panic!("{name}: {told}"));
    assert_eq!((&of(json!("autumn"))["opt_outs"], &of(json!("autumn"))["sends"]), (&json!(2), &json!(2)));
    assert_eq!((&of(json!("spring"))["opt_outs"], &of(Value::Null)["opt_outs"]), (&json!(0), &json!(1)));
    let proof = &told["marketing_allowed_after_opt_out"];
    assert_eq!((&proof["count"], &proof["decided_again"], &proof["differences"]), (&json!(0), &json!(5), &json!(0)), "{told}");
    assert_eq!((&told["sends"]["allowed"]["no-opt-out"], &told["sends"]["suppressed"]["opted-out"]), (&json!(3), &json!(1)));
    assert_eq!((&told["reviews"]["waiting"], &told["reviews"]["overdue"]), (&json!(1), &json!(0)));
    assert_eq!(told["dead_letters"].as_object().map(|counts| counts.len()), Some(1));
    assert!(told["time_to_effective_seconds"]["max"].as_f64().is_some_and(|seconds| seconds < 60.0));

    let (text, csv, html) = (report("text"), report("csv"), report("html"));
    assert!(text.contains("2 of 2 sends (100.00 %)") && text.contains("allowed although an opt-out stood"), "{text}");
    assert!(csv.starts_with("section,name,value\n") && csv.contains("Opt-outs by campaign,autumn,"), "{csv}");
    assert!(html.starts_with("<!doctype html>") && html.trim_end().ends_with("</html>") && !html.contains("src="), "{html}");
    for text in [&text, &csv, &html] {
        assert!(!text.contains("+1202"), "no person is named: {text}");
    }

    // An outcome that nobody may have written is found.
    let sent = outcomes.await_suppressed("4");
    world.kafka.produce(&world.names.allowed, Record::new(sent.key_text(), sent.value_text()).to(sent.partition));
    let told: Value = serde_json::from_str(&report("json")).expect("JSON");
    assert_ne!(told["marketing_allowed_after_opt_out"]["differences"], json!(0), "{told}");
    world.verb("report").arg("--since", "2026-02-30T00:00:00Z").finish().expect_code(2);
    world.verb("report").arg("--since", &until.to_string()).arg("--until", &since.to_string()).finish().expect_code(2);
}

/// A time after all that was acknowledged, and before all that follows.
fn later() -> i64 {
    let at = now_ms() + 5;
    wait_for("a later moment", DEADLINE, || if now_ms() > at { Ok(()) } else { Err(at) });
    at
}
