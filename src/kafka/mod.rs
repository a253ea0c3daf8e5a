//! The Kafka edge: the only user of rdkafka. It knows records and brokers, and nothing of opt-outs.
//!
//! Traps of the client that this layer keeps from everybody else, each measured:
//! * `BaseProducer::poll(t)` and `flush` wait their whole time: producers drain with short polls, then commit;
//! * the automatic murmur2 partitioner halves a producer: partitions are always explicit;
//! * a query on a client that fetches waits behind the long poll (464 ms): [`offsets`] has a client of its own;
//! * `offsets_for_times` answers `Ok` with failed partitions inside: [`offsets::Offsets`] cannot hold one;
//! * the batch-consume call never on a subscribed consumer's own queue: [`follower`] and [`range`] assign by hand, and
//!   [`group`] leads its partitions' records past that queue.

#![allow(clippy::disallowed_methods)] // clients wait and measure; decisions never ask for the time

/// Makes a client context say in the log what the client says: its texts name brokers and topics, never contents.
macro_rules! logs_through_tracing {
    ($context:ty) => {
        impl rdkafka::client::ClientContext for $context {
            fn log(&self, level: rdkafka::config::RDKafkaLogLevel, facility: &str, message: &str) {
                $crate::kafka::log(level, facility, message);
            }

            fn error(&self, error: rdkafka::error::KafkaError, reason: &str) {
                tracing::info!(target: "stopgate::kafka", %error, "{reason}");
            }
        }
    };
}
use logs_through_tracing;

pub mod admin;
pub mod copy;
pub mod embedded;
pub(crate) mod ffi;
pub mod follower;
pub mod group;
pub mod offsets;
pub mod producer;
pub mod range;

pub use ffi::memory::keep_free_pages;

use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use std::collections::BTreeMap;

/// How to reach the brokers: what every client starts from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    pub bootstrap: String,
    /// librdkafka settings passed through, none that is [`owned`].
    pub settings: BTreeMap<String, String>,
}

/// Settings that stopgate's promises rest on, and why each is not for passing through.
const OWNED_SETTINGS: &[(&str, &str)] = &[
    ("bootstrap.servers", "set `bootstrap` instead"),
    ("group.id", "set `[groups]` instead"),
    ("group.instance.id", "made of `instance` and the worker's number, so that a restart keeps its partitions"),
    ("transactional.id", "made of the group, `instance` and the worker's number, so that a successor fences a zombie"),
    ("transaction.timeout.ms", "bounds how long a crashed worker can hold readers up"),
    ("isolation.level", "read_committed for records, read_uncommitted for the fence: the promise of no leak"),
    ("enable.auto.commit", "positions are committed within the transaction that holds their outcomes"),
    ("enable.auto.offset.store", "positions are committed within the transaction that holds their outcomes"),
    ("auto.offset.reset", "a lost position is a hold, never a skip"),
    ("enable.idempotence", "exactly-once is the only mode"),
    ("acks", "an opt-out counts once all in-sync replicas have it"),
    ("partitioner", "partitions are computed as Java does"),
    ("partition.assignment.strategy", "eager and cooperative assignors must not mix in a group"),
    ("group.protocol", "the classic protocol; the new one stalls with this client version"),
    ("enable.partition.eof", "the applied position is read from the client"),
    ("message.timeout.ms", "a consent record is never given up"),
    ("delivery.timeout.ms", "a consent record is never given up"),
    ("allow.auto.create.topics", "a misspelt topic must fail"),
];

/// Second names of settings that this layer sets, and the first: where both are set, which one counts is chance.
const SECOND_NAMES: &[(&str, &str)] =
    &[("metadata.broker.list", "bootstrap.servers"), ("queue.buffering.max.ms", "linger.ms"), ("request.required.acks", "acks")];

fn first_name(name: &str) -> &str {
    SECOND_NAMES.iter().find(|(second, _)| *second == name).map_or(name, |(_, first)| first)
}

/// Why a setting is not for passing through, if it is not.
pub fn owned(name: &str) -> Option<&'static str> {
    OWNED_SETTINGS.iter().find(|(owned, _)| *owned == first_name(name)).map(|(_, why)| *why)
}

impl Connection {
    /// Settings common to all clients.
    fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        for (name, value) in &self.settings {
            config.set(name, value);
        }
        config.set("bootstrap.servers", &self.bootstrap);
        config.set("allow.auto.create.topics", "false");
        config.set_log_level(RDKafkaLogLevel::Info);
        config
    }

    /// Settings that an operator's own win over, under either of their names.
    fn set_defaults(&self, config: &mut ClientConfig, defaults: &[(&str, &str)]) {
        for (name, value) in defaults {
            if !self.settings.keys().any(|set| first_name(set) == *name) {
                config.set(*name, *value);
            }
        }
    }

    /// Settings common to all consumers: nothing is committed, stored or reset on its own.
    fn consumer(&self, group: &str) -> ClientConfig {
        let mut config = self.client();
        config.set("group.id", group);
        config.set("enable.auto.commit", "false");
        config.set("enable.auto.offset.store", "false");
        config
    }

    /// Settings common to all producers.
    fn producer(&self) -> ClientConfig {
        let mut config = self.client();
        config.set("enable.idempotence", "true");
        config.set("acks", "all");
        config
    }
}

/// A failure at the Kafka edge, sorted by what the caller must do.
#[derive(Debug, thiserror::Error)]
pub enum EdgeError {
    /// Heals by itself: try again.
    #[error("kafka: {0}")]
    Retriable(#[source] KafkaError),
    /// The transaction is lost: abort, go back to the committed positions, go on.
    #[error("kafka transaction aborted: {0}")]
    Abort(#[source] KafkaError),
    /// The producer is of no use any more, or nobody knows whether the transaction was committed: make a new one.
    #[error("kafka producer lost: {0}")]
    Renew(#[source] KafkaError),
    /// The group has gone on without this member, and others may have had its partitions: a new member must join.
    #[error("kafka membership lost: {0}")]
    Expelled(#[source] KafkaError),
    /// Nothing that time or a new client could mend: wrong credentials, missing rights, wrong settings.
    #[error("kafka: {0}")]
    Stop(#[source] KafkaError),
}

impl EdgeError {
    /// Something did not happen in time; the transaction that waited for it is aborted.
    pub(crate) fn timed_out(what: &str) -> Self {
        tracing::info!(target: "stopgate::kafka", "{what}");
        Self::Abort(KafkaError::Global(RDKafkaErrorCode::OperationTimedOut))
    }

    /// Sorts an error. All codes that are treated apart stand here.
    fn from_kafka(error: KafkaError) -> Self {
        if let KafkaError::Transaction(inner) = &error {
            return if is_refused(inner.code()) {
                Self::Stop(error)
            } else if inner.is_fatal() {
                Self::Renew(error)
            } else if inner.txn_requires_abort() {
                Self::Abort(error)
            } else if inner.is_retriable() {
                Self::Retriable(error)
            } else {
                Self::Abort(error)
            };
        }
        let error = match error {
            // The error holds the setting's value, which may be a secret.
            KafkaError::ClientConfig(result, reason, name, _value) => {
                return Self::Stop(KafkaError::ClientConfig(result, reason, name, "(its value is not shown)".to_owned()));
            }
            KafkaError::ClientCreation(_) => return Self::Stop(error),
            other => other,
        };
        match error.rdkafka_error_code() {
            Some(code) if is_refused(code) || code == RDKafkaErrorCode::InvalidArgument => Self::Stop(error),
            Some(
                RDKafkaErrorCode::Fatal
                | RDKafkaErrorCode::Fenced
                | RDKafkaErrorCode::ProducerFenced
                | RDKafkaErrorCode::InvalidProducerEpoch
                | RDKafkaErrorCode::FencedInstanceId,
            ) => Self::Renew(error),
            Some(_) | None => Self::Retriable(error),
        }
    }
}

/// Whether the brokers refuse this principal: neither time nor a new client helps.
fn is_refused(code: RDKafkaErrorCode) -> bool {
    matches!(
        code,
        RDKafkaErrorCode::SaslAuthenticationFailed
            | RDKafkaErrorCode::TopicAuthorizationFailed
            | RDKafkaErrorCode::GroupAuthorizationFailed
            | RDKafkaErrorCode::ClusterAuthorizationFailed
            | RDKafkaErrorCode::TransactionalIdAuthorizationFailed
    )
}

/// Forwards librdkafka's log to `tracing`. Its texts name brokers, topics and partitions, never contents.
fn log(level: RDKafkaLogLevel, facility: &str, message: &str) {
    if facility == "CONFWARN" {
        // One set of passed-through settings serves consumers and producers: each warns of what is the other's.
        return;
    }
    match level {
        RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical | RDKafkaLogLevel::Error => {
            tracing::warn!(target: "stopgate::kafka", facility, "{message}");
        }
        RDKafkaLogLevel::Warning | RDKafkaLogLevel::Notice => {
            tracing::info!(target: "stopgate::kafka", facility, "{message}");
        }
        RDKafkaLogLevel::Info | RDKafkaLogLevel::Debug => {
            tracing::debug!(target: "stopgate::kafka", facility, "{message}");
        }
    }
}

/// A client context that only logs.
#[derive(Clone, Copy, Debug, Default)]
pub struct LogOnly;

logs_through_tracing!(LogOnly);

impl rdkafka::consumer::ConsumerContext for LogOnly {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_that_promises_rest_on_is_owned_by_either_name() {
        for name in ["acks", "request.required.acks", "bootstrap.servers", "metadata.broker.list", "isolation.level"] {
            assert!(owned(name).is_some(), "{name}");
        }
        assert_eq!(owned("queue.buffering.max.ms"), None);
    }

    #[test]
    fn what_an_operator_sets_wins_over_a_default_by_either_name() {
        let settings = [("queue.buffering.max.ms".to_owned(), "9".to_owned()), ("fetch.wait.max.ms".to_owned(), "8".to_owned())].into();
        let connection = Connection { bootstrap: "localhost:9092".to_owned(), settings };
        let mut config = connection.producer();
        connection.set_defaults(&mut config, &[("linger.ms", "50"), ("fetch.wait.max.ms", "100"), ("queued.min.messages", "50000")]);
        assert_eq!((config.get("linger.ms"), config.get("queue.buffering.max.ms")), (None, Some("9")));
        assert_eq!((config.get("fetch.wait.max.ms"), config.get("queued.min.messages")), (Some("8"), Some("50000")));
    }

    #[test]
    fn a_setting_that_the_client_refuses_is_named_without_its_value() {
        let settings = [("sasl.passwrd".to_owned(), "geheim".to_owned())].into();
        let connection = Connection { bootstrap: "localhost:9092".to_owned(), settings };
        let Err(error) = admin::Admin::new(&connection, std::time::Duration::from_secs(1)) else { panic!("accepted") };
        let shown = error.to_string();
        assert!(shown.contains("sasl.passwrd") && !shown.contains("geheim"), "{shown}");
        assert!(matches!(error, EdgeError::Stop(_)));
    }
}
