//! Topics as the brokers hold them: which exist, with how many partitions and which policies; and making new ones.

use super::offsets::OffsetsClient;
use super::{Connection, EdgeError, LogOnly};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, OwnedResourceSpecifier, ResourceSpecifier, TopicReplication};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use std::collections::BTreeMap;
use std::thread;
use std::time::Duration;

/// A topic to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WantedTopic {
    pub name: String,
    pub partitions: u32,
    pub replication: u16,
    pub settings: Vec<(&'static str, String)>,
}

/// The administrative client. Its calls are awaited: run them on a runtime of the caller's.
pub struct Admin {
    client: AdminClient<LogOnly>,
    /// Asks what has no administrative call of its own, and tells why nobody answered: nobody polls the log of the other.
    questions: OffsetsClient,
    options: AdminOptions,
    timeout: Duration,
}

impl Admin {
    /// A client whose calls take at most `timeout` each.
    pub fn new(connection: &Connection, timeout: Duration) -> Result<Self, EdgeError> {
        let client = connection.client().create_with_context(LogOnly).map_err(EdgeError::from_kafka)?;
        let options = AdminOptions::new().request_timeout(Some(timeout)).operation_timeout(Some(timeout));
        // A consumer must name a group; nothing is asked about this one.
        let questions = OffsetsClient::new(connection, "stopgate-admin")?;
        Ok(Self { client, questions, options, timeout })
    }

    /// Takes leave of the brokers on a thread of its own: the clients' threads look every tenth of a second whether they
    /// are to end, one after the other.
    pub fn close_aside(self) {
        // Without a thread it is closed here.
        drop(thread::Builder::new().name("close".into()).spawn(move || drop(self)));
    }

    /// Number of brokers, and the partition counts of the topics that exist.
    pub fn cluster(&self) -> Result<(usize, BTreeMap<String, u32>), EdgeError> {
        self.questions.cluster(self.timeout)
    }

    /// The settings of topics, asked for at once; topics that the broker tells nothing about are left out.
    pub async fn settings(&self, topics: &[&str]) -> Result<BTreeMap<String, BTreeMap<String, String>>, EdgeError> {
        let asked: Vec<ResourceSpecifier<'_>> = topics.iter().map(|topic| ResourceSpecifier::Topic(topic)).collect();
        let answers = self.client.describe_configs(&asked, &self.options).await.map_err(EdgeError::from_kafka)?;
        let mut settings = BTreeMap::new();
        for resource in answers.into_iter().flatten() {
            let OwnedResourceSpecifier::Topic(topic) = resource.specifier else { continue };
            let entries = resource.entries.into_iter().filter_map(|entry| Some((entry.name, entry.value?)));
            settings.insert(topic, entries.collect());
        }
        Ok(settings)
    }

    /// Makes a topic; `false` where it exists already.
    pub async fn create(&self, wanted: &WantedTopic) -> Result<bool, EdgeError> {
        let mut topic = NewTopic::new(&wanted.name, wanted.partitions as i32, TopicReplication::Fixed(i32::from(wanted.replication)));
        for (name, value) in &wanted.settings {
            topic = topic.set(name, value);
        }
        let answers = self.client.create_topics([&topic], &self.options).await.map_err(EdgeError::from_kafka)?;
        for answer in answers {
            match answer {
                Ok(_) => {}
                Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => return Ok(false),
                Err((_, code)) => return Err(EdgeError::from_kafka(KafkaError::AdminOp(code))),
            }
        }
        Ok(true)
    }

    /// Deletes topics. One that is gone already is no failure. Positions that groups have committed in them go too.
    pub async fn delete(&self, topics: &[&str]) -> Result<(), EdgeError> {
        for answer in self.client.delete_topics(topics, &self.options).await.map_err(EdgeError::from_kafka)? {
            match answer {
                Ok(_) | Err((_, RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic)) => {}
                Err((_, code)) => return Err(EdgeError::from_kafka(KafkaError::AdminOp(code))),
            }
        }
        Ok(())
    }
}
