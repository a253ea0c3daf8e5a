//! The topics as they are when the process starts: what must exist, how many partitions each has, what each takes.

use super::status::{Status, Unready};
use super::stop::Stop;
use crate::config::{Config, Verb};
use crate::kafka::EdgeError;
use crate::kafka::admin::Admin;
use crate::kafka::producer::Limits;
use crate::record::TopicName;
use crate::wire::partition::partition_for;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Partition counts and record limits of all topics in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    topics: BTreeMap<TopicName, TopicLayout>,
    tombstones_ms: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct TopicLayout {
    partitions: u32,
    max_record_bytes: u64,
}

/// Kafka's default of `max.message.bytes`: for brokers that do not tell.
const DEFAULT_MAX_RECORD_BYTES: u64 = 1_048_588;
/// What a record takes in its batch beside key, value and headers.
const RECORD_OVERHEAD_BYTES: u64 = 128;
/// Kafka's default of `delete.retention.ms`.
const DEFAULT_TOMBSTONES_MS: i64 = 86_400_000;
const QUERY_TIMEOUT: Duration = Duration::from_secs(5);
const RETRY_AFTER: Duration = Duration::from_millis(500);
/// The name of this part in `/readyz`.
pub const PART: &str = "topics";

/// What kind of brokers these are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Brokers {
    /// Kafka's own.
    Real,
    /// librdkafka's in-process broker, which tells no settings of topics.
    Embedded,
}

/// Why the process must not start on these topics.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    #[error("the topics are not as they must be:\n  - {}", .0.join("\n  - "))]
    Topics(Vec<String>),
    #[error("[kafka] holds a setting that the client refuses: {0}")]
    Settings(String),
    #[error(transparent)]
    Edge(#[from] EdgeError),
}

impl Layout {
    /// Waits until all topics of the verb exist, and looks at them. `None` where the process stops before.
    pub fn wait(config: &Config, verb: Verb, brokers: Brokers, status: &Status, stop: &Stop) -> Result<Option<Self>, Refusal> {
        // Nothing is asked of a broker here: a client that cannot be made has a setting that it does not know.
        let admin = Admin::new(&config.connection, QUERY_TIMEOUT).map_err(|error| Refusal::Settings(error.to_string()))?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Refusal::Topics(vec![format!("no runtime for administrative calls: {error}")]))?;
        while !stop.is_asked() {
            match admin.cluster() {
                Err(error @ EdgeError::Stop(_)) => return Err(error.into()),
                Err(_) => status.unready(PART, Unready::NoBroker { bootstrap: config.connection.bootstrap.clone() }),
                Ok((_, existing)) => {
                    let missing: BTreeSet<String> =
                        needed(config, verb).into_iter().filter(|topic| !existing.contains_key(&***topic)).map(ToString::to_string).collect();
                    if missing.is_empty() {
                        let layout = runtime.block_on(look(config, verb, brokers, &admin, &existing))?;
                        status.ready(PART);
                        admin.close_aside();
                        return Ok(Some(layout));
                    }
                    status.unready(PART, Unready::MissingTopics { topics: missing.into_iter().collect() });
                }
            }
            stop.sleep(RETRY_AFTER);
        }
        Ok(None)
    }

    /// For how long the opt-outs topic keeps tombstones, in milliseconds.
    pub fn tombstones_ms(&self) -> i64 {
        self.tombstones_ms
    }

    /// Number of partitions of a topic that was looked at.
    pub fn partitions(&self, topic: &TopicName) -> u32 {
        self.topics.get(topic).map_or(1, |layout| layout.partitions)
    }

    /// The partition of a key of stopgate's own making.
    pub fn partition_of(&self, topic: &TopicName, key: &[u8]) -> u32 {
        partition_for(key, self.partitions(topic))
    }

    /// The most bytes (key, value, headers) of a record that fits the topic.
    pub fn room(&self, topic: &TopicName) -> u64 {
        let max = self.topics.get(topic).map_or(DEFAULT_MAX_RECORD_BYTES, |layout| layout.max_record_bytes);
        max.saturating_sub(RECORD_OVERHEAD_BYTES)
    }

    /// What the clients must let through, and how much they may put together.
    pub fn limits(&self) -> Limits {
        let of_topics = || self.topics.values().map(|layout| layout.max_record_bytes);
        Limits {
            record_bytes: of_topics().max().unwrap_or(DEFAULT_MAX_RECORD_BYTES),
            batch_bytes: of_topics().min().unwrap_or(DEFAULT_MAX_RECORD_BYTES).saturating_sub(RECORD_OVERHEAD_BYTES),
        }
    }
}

/// The topics that a verb reads or writes.
fn needed(config: &Config, verb: Verb) -> Vec<&TopicName> {
    let topics = &config.topics;
    let mut needed = vec![&topics.opt_outs, &topics.dead_letters];
    if verb.detects() {
        needed.extend(config.inbound.iter().map(|(topic, _)| topic));
        needed.extend([&topics.replies, &topics.reviews]);
        needed.extend(config.asks_why().then_some(&topics.feedback));
    }
    if verb.filters() {
        needed.extend(config.sends.iter().flat_map(|sends| [&sends.input.name, &sends.allowed, &sends.suppressed]));
        needed.push(&topics.decisions);
        needed.extend(config.guidance.map(|_| &topics.guidance));
    }
    needed
}

async fn look(config: &Config, verb: Verb, brokers: Brokers, admin: &Admin, existing: &BTreeMap<String, u32>) -> Result<Layout, Refusal> {
    let mut layout = Layout { topics: BTreeMap::new(), tombstones_ms: DEFAULT_TOMBSTONES_MS };
    let mut problems = Vec::new();
    let topics = needed(config, verb);
    let names: Vec<&str> = topics.iter().map(|topic| &***topic).collect();
    let mut all_settings = match brokers {
        Brokers::Embedded => BTreeMap::new(),
        Brokers::Real => admin.settings(&names).await?,
    };
    for topic in topics {
        let settings = all_settings.remove(&**topic).unwrap_or_else(|| {
            // A principal without the right to ask (DescribeConfigs): the defaults are assumed.
            if brokers == Brokers::Real {
                tracing::warn!(%topic, "the settings of a topic are not known: is opt-outs compacted?");
            }
            BTreeMap::new()
        });
        if *topic == config.topics.opt_outs
            && let Some(policy) = settings.get("cleanup.policy").filter(|policy| *policy != "compact")
        {
            problems.push(format!(
                "{topic} has cleanup.policy={policy}: opt-outs would be deleted; run `kafka-configs --bootstrap-server {} --alter \
                 --entity-type topics --entity-name {topic} --add-config cleanup.policy=compact`",
                config.connection.bootstrap
            ));
        }
        if *topic == config.topics.opt_outs
            && let Some(kept) = settings.get("delete.retention.ms").and_then(|kept| kept.parse().ok())
        {
            layout.tombstones_ms = kept;
        }
        let max_record_bytes = settings.get("max.message.bytes").and_then(|bytes| bytes.parse().ok()).unwrap_or(DEFAULT_MAX_RECORD_BYTES);
        let partitions = existing.get(&**topic).copied().unwrap_or_default();
        layout.topics.insert(topic.clone(), TopicLayout { partitions, max_record_bytes });
    }
    if verb.filters() {
        for sends in &config.sends {
            let input = layout.partitions(&sends.input.name);
            for output in [&sends.allowed, &sends.suppressed] {
                let count = layout.partitions(output);
                if count != input {
                    problems.push(format!(
                        "{output} has {count} partitions and {} has {input}: they must be equal; run `kafka-topics --bootstrap-server {} \
                         --alter --topic {} --partitions {}`",
                        sends.input.name,
                        config.connection.bootstrap,
                        if count < input { output } else { &sends.input.name },
                        count.max(input)
                    ));
                }
            }
        }
    }
    if problems.is_empty() { Ok(layout) } else { Err(Refusal::Topics(problems)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_topic_takes_counts_the_overhead_of_a_record() {
        let topic: TopicName = "t".into();
        let topics = [(topic.clone(), TopicLayout { partitions: 3, max_record_bytes: 1000 })].into();
        let layout = Layout { topics, tombstones_ms: 0 };
        assert_eq!(layout.room(&topic), 872);
        assert_eq!(layout.partitions(&topic), 3);
    }
}
