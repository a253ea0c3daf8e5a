//! librdkafka's in-process broker, for the demo and for tests of client errors.
//!
//! It knows no isolation, compaction, timestamps or transactional positions: it shows what the program does, and
//! proves nothing about its promises.

use super::EdgeError;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;

/// A broker that lives as long as this value.
pub struct EmbeddedBroker {
    cluster: MockCluster<'static, DefaultProducerContext>,
}

impl EmbeddedBroker {
    /// Starts one broker on a free port of this machine.
    pub fn start() -> Result<Self, EdgeError> {
        MockCluster::new(1).map(|cluster| Self { cluster }).map_err(EdgeError::from_kafka)
    }

    /// Where it listens.
    pub fn bootstrap(&self) -> String {
        self.cluster.bootstrap_servers()
    }

    /// Makes a topic.
    pub fn create_topic(&self, name: &str, partitions: u32) -> Result<(), EdgeError> {
        self.cluster.create_topic(name, partitions as i32, 1).map_err(EdgeError::from_kafka)
    }
}
