//! `stopgate bench`: its figures have their names, its topics go, and what it fills is what it says.

use serde_json::Value;

use crate::support::broker::Broker;
use crate::support::service::{Finished, Start};
use crate::support::world::{Layout, World};

fn bench(broker: &Broker, what: &str, sizes: &[(&str, &str)]) -> Finished {
    let start = Start::verb("bench").word(what).arg("--bootstrap", broker.bootstrap()).word("--json");
    sizes.iter().fold(start, |start, (name, value)| start.arg(name, value)).finish().expect_code(0)
}

fn reports(finished: &Finished) -> Vec<Value> {
    finished.stdout.lines().map(|line| serde_json::from_str(line).expect("a report a line")).collect()
}

#[test]
fn each_measurement_reports_beside_the_copy_of_its_own_run_and_leaves_no_topic() {
    let Some(broker) = Broker::shared() else { return };
    for (what, count) in [("filter", 3000), ("detect", 3000), ("restore", 500)] {
        let finished = bench(broker, what, &[("--opt-outs", "500"), ("--sends", "3000"), ("--partitions", "2")]);
        let reports = reports(&finished);
        assert_eq!(reports.iter().map(|report| report["bench"].as_str()).collect::<Vec<_>>(), [Some("copy"), Some(what)]);
        let report = &reports[1];
        assert_eq!(report["count"], count, "{what}");
        for field in ["rate", "cpu_us", "rss_bytes", "ratio_to_copy"] {
            assert!(report[field].as_f64().is_some_and(|figure| figure > 0.0), "{what}: {field} in {report}");
        }
        assert!(report.get("p50_ms").is_some_and(Value::is_null) && report.get("p99_ms").is_some_and(Value::is_null));
    }
    let reports = reports(&bench(broker, "latency", &[("--opt-outs", "5"), ("--partitions", "2")]));
    let (p50, p99) = (reports[0]["p50_ms"].as_f64().expect("a figure"), reports[0]["p99_ms"].as_f64().expect("a figure"));
    assert!(0.0 <= p50 && p50 <= p99);
    let topics = broker.kafka().topics();
    assert!(!topics.iter().any(|topic| topic.starts_with("stopgate-bench-")), "{topics:?}");
}

#[test]
fn the_topics_of_the_configuration_are_filled_for_the_service_to_be_timed() {
    let Some(broker) = Broker::shared() else { return };
    let world = World::empty(broker, "fill", Layout::default());
    let fill = world.verb("bench").word("fill").word("--default-topics").word("--json");
    let finished = fill.arg("--opt-outs", "20").arg("--sends", "50").arg("--partitions", "2").finish().expect_code(0);
    assert_eq!(reports(&finished)[0]["count"], 70);
    let keys: Vec<String> = world.kafka.read_committed(&world.names.opt_outs).iter().map(|record| record.key_text()).collect();
    assert_eq!(keys.len(), 20);
    for number in 0..20 {
        let key = format!("acme|whatsapp|phone:+55119{:08}|marketing", number * 10);
        assert!(keys.contains(&key), "{key}");
    }
    let sends: Vec<Value> =
        world.kafka.read_committed(&world.names.sends).iter().map(|record| serde_json::from_str(&record.value_text()).expect("JSON")).collect();
    assert_eq!(sends.len(), 50);
    assert_eq!(sends.iter().filter(|send| send["category"] == "marketing").count(), 40);
    assert!(sends.iter().all(|send| send["to"].as_str().is_some_and(|to| to.starts_with("+551190000"))));
    // Every other measurement has topics of its own.
    let refused = world.verb("bench").word("filter").word("--default-topics").finish().expect_code(2);
    assert!(refused.text().contains("bench fill"), "{}", refused.text());
}
