//! `stopgate topics` and the broker half of `stopgate check`: which topics there must be, and how they differ.

use crate::config::Config;
use crate::kafka::EdgeError;
use crate::kafka::admin::{Admin, WantedTopic};
use std::collections::BTreeMap;
use std::io::Write;
use std::time::Duration;

const QUERY_TIMEOUT: Duration = Duration::from_secs(10);
const DAY_MS: u64 = 24 * 60 * 60 * 1000;
/// A record at Kafka's default limit still fits with the headers that stopgate adds.
const OUTPUT_MAX_BYTES: u64 = 1_048_588 + 65_536;

/// How a topic stands to what is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// It does not exist.
    Missing,
    /// It exists as wanted.
    Same,
    /// It exists and differs; each difference says what it is and what it should be.
    Differs(Vec<String>),
}

/// All topics of a configuration on a cluster of so many brokers. Topics that exist keep their partition counts, and
/// the outputs of an existing sends topic take its count.
pub fn wanted(config: &Config, brokers: usize, existing: &BTreeMap<String, u32>) -> Vec<WantedTopic> {
    let topics = &config.topics;
    let replication = topics.replication.unwrap_or_else(|| u16::try_from(brokers.clamp(1, 3)).unwrap_or(1));
    let durable: &[(&'static str, String)] = &if replication >= 3 { vec![("min.insync.replicas", "2".to_owned())] } else { Vec::new() };
    let topic = |name: &str, partitions: u32, settings: Vec<(&'static str, String)>| WantedTopic {
        name: name.to_owned(),
        partitions,
        replication,
        settings: settings.into_iter().chain(durable.iter().cloned()).collect(),
    };
    let deleted = |days: u64| vec![("cleanup.policy", "delete".to_owned()), ("retention.ms", (days * DAY_MS).to_string())];
    let opt_outs = vec![
        ("cleanup.policy", "compact".to_owned()),
        ("min.compaction.lag.ms", (topics.audit_days * DAY_MS).to_string()),
        ("message.timestamp.type", "LogAppendTime".to_owned()),
    ];
    let larger = ("max.message.bytes", OUTPUT_MAX_BYTES.to_string());
    let mut wanted: Vec<WantedTopic> = config.inbound.iter().map(|(name, _)| topic(name, topics.partitions, Vec::new())).collect();
    wanted.push(topic(&topics.opt_outs, topics.partitions, opt_outs));
    wanted.push(topic(&topics.replies, topics.partitions, deleted(1)));
    wanted.push(topic(&topics.reviews, topics.partitions, deleted(30)));
    wanted.push(topic(&topics.decisions, topics.partitions, deleted(topics.audit_days)));
    if config.guidance.is_some() {
        let compacted = vec![("cleanup.policy", "compact".to_owned()), ("min.compaction.lag.ms", (topics.audit_days * DAY_MS).to_string())];
        wanted.push(topic(&topics.guidance, topics.partitions, compacted));
    }
    if config.asks_why() {
        wanted.push(topic(&topics.feedback, topics.partitions, deleted(topics.audit_days)));
    }
    wanted.push(topic(&topics.dead_letters, topics.partitions, [deleted(30), vec![larger.clone()]].concat()));
    for sends in &config.sends {
        let partitions = existing.get(&*sends.input.name).copied().unwrap_or(topics.partitions);
        wanted.push(topic(&sends.input.name, partitions, Vec::new()));
        for output in [&sends.allowed, &sends.suppressed] {
            wanted.push(topic(output, partitions, vec![("cleanup.policy", "delete".to_owned()), larger.clone()]));
        }
    }
    wanted
}

/// Compares every wanted topic with the cluster.
pub async fn compare(config: &Config, admin: &Admin) -> Result<Vec<(WantedTopic, Finding)>, EdgeError> {
    let (brokers, existing) = admin.cluster()?;
    let outputs: Vec<&str> = config.sends.iter().flat_map(|sends| [&*sends.allowed, &*sends.suppressed]).collect();
    let all = wanted(config, brokers, &existing);
    let present: Vec<&str> = all.iter().map(|wanted| wanted.name.as_str()).filter(|name| existing.contains_key(*name)).collect();
    let mut settings = if present.is_empty() { BTreeMap::new() } else { admin.settings(&present).await? };
    let mut findings = Vec::new();
    for wanted in all {
        let finding = match existing.get(&wanted.name) {
            None => Finding::Missing,
            Some(&partitions) => {
                let settings = settings.remove(&wanted.name).unwrap_or_default();
                let fixed = outputs.contains(&wanted.name.as_str()).then_some(wanted.partitions);
                differences(&wanted, partitions, fixed, &settings)
            }
        };
        findings.push((wanted, finding));
    }
    Ok(findings)
}

fn differences(wanted: &WantedTopic, partitions: u32, must_have: Option<u32>, settings: &BTreeMap<String, String>) -> Finding {
    let mut differences = Vec::new();
    if let Some(must_have) = must_have.filter(|&must_have| must_have != partitions) {
        differences.push(format!("partitions is {partitions}, must be {must_have}, as its sends topic has"));
    }
    for (name, value) in &wanted.settings {
        match settings.get(*name) {
            Some(is) if is == value || keeps_more(name, is, value) => {}
            Some(is) => differences.push(format!("{name} is {is}, should be {value}")),
            None => differences.push(format!("{name} is not known, should be {value}")),
        }
    }
    if differences.is_empty() { Finding::Same } else { Finding::Differs(differences) }
}

/// Whether a topic keeps longer, or takes more, than it must.
fn keeps_more(name: &str, is: &str, should: &str) -> bool {
    let (Ok(is), Ok(should)) = (is.parse::<i64>(), should.parse::<i64>()) else { return false };
    let unlimited = name == "retention.ms" && is == -1;
    unlimited || is >= should
}

/// Creates what is missing, prints what differs, changes nothing that exists. `true` where everything is as wanted.
pub fn create(config: &Config, out: &mut impl Write) -> Result<bool, TopicsError> {
    let admin = Admin::new(&config.connection, QUERY_TIMEOUT)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut as_wanted = true;
        for (wanted, finding) in compare(config, &admin).await? {
            let name = &wanted.name;
            match finding {
                Finding::Same => writeln!(out, "ok       {name}")?,
                Finding::Differs(differences) => {
                    as_wanted = false;
                    writeln!(out, "differs  {name}: {}", differences.join("; "))?;
                }
                Finding::Missing => {
                    if !admin.create(&wanted).await? {
                        writeln!(out, "ok       {name}")?;
                        continue;
                    }
                    let settings: Vec<String> = wanted.settings.iter().map(|(name, value)| format!("{name}={value}")).collect();
                    writeln!(
                        out,
                        "created  {name} ({} partitions, {} replicas{}{})",
                        wanted.partitions,
                        wanted.replication,
                        if settings.is_empty() { "" } else { ", " },
                        settings.join(", ")
                    )?;
                }
            }
        }
        writeln!(
            out,
            "\nConsumers of sends.allowed and replies must set isolation.level=read_committed; it is not the default of Java's client."
        )?;
        Ok(as_wanted)
    })
}

/// Prints how the cluster differs from the configuration. `true` where everything is as wanted.
pub fn check(config: &Config, out: &mut impl Write) -> Result<bool, TopicsError> {
    let admin = Admin::new(&config.connection, QUERY_TIMEOUT)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut as_wanted = true;
    for (wanted, finding) in runtime.block_on(compare(config, &admin))? {
        match finding {
            Finding::Same => {}
            Finding::Missing => {
                as_wanted = false;
                writeln!(out, "topic {} is missing: create it with `stopgate topics --bootstrap {}`", wanted.name, config.connection.bootstrap)?;
            }
            Finding::Differs(differences) => {
                as_wanted = false;
                writeln!(out, "topic {}: {}", wanted.name, differences.join("; "))?;
            }
        }
    }
    Ok(as_wanted)
}

/// Why topics could not be looked at or made.
#[derive(Debug, thiserror::Error)]
pub enum TopicsError {
    #[error(transparent)]
    Edge(#[from] EdgeError),
    #[error(transparent)]
    Output(#[from] std::io::Error),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Verb, parse};

    #[test]
    fn outputs_take_the_partition_count_of_an_existing_sends_topic() {
        let config = parse("bootstrap = 'b:1'", "t").expect("toml").check(Verb::Run, "h").expect("fine");
        let wanted = wanted(&config, 5, &[("sends".to_owned(), 12)].into());
        let partitions = |name: &str| wanted.iter().find(|topic| topic.name == name).map(|topic| (topic.partitions, topic.replication));
        assert_eq!(partitions("sends.allowed"), Some((12, 3)));
        assert_eq!(partitions("sends.suppressed"), Some((12, 3)));
        assert_eq!(partitions("opt-outs"), Some((8, 3)));
        assert_eq!(wanted.len(), 9);
    }

    #[test]
    fn what_keeps_longer_than_it_must_is_no_difference() {
        assert!(keeps_more("retention.ms", "-1", "86400000"));
        assert!(keeps_more("min.compaction.lag.ms", "200", "100"));
        assert!(!keeps_more("min.compaction.lag.ms", "0", "100"));
        assert!(!keeps_more("cleanup.policy", "delete", "compact"));
    }

    #[test]
    fn differences_are_told_by_name_and_value() {
        let wanted = WantedTopic { name: "t".into(), partitions: 8, replication: 1, settings: vec![("cleanup.policy", "compact".into())] };
        let settings = [("cleanup.policy".to_owned(), "delete".to_owned())].into();
        assert_eq!(
            differences(&wanted, 8, Some(4), &settings),
            Finding::Differs(vec![
                "partitions is 8, must be 4, as its sends topic has".into(),
                "cleanup.policy is delete, should be compact".into()
            ])
        );
    }
}
