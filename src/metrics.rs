//! Every series, in one struct. Label values come from enums and topic-independent words alone: never a text, an
//! address or an error message. Each series says what to alert on.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use std::sync::atomic::AtomicU64;

/// `stage` and how a record ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct StageOutcome {
    pub stage: &'static str,
    pub outcome: &'static str,
}

/// `stage` and why a record was set aside.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct StageReason {
    pub stage: &'static str,
    pub reason: &'static str,
}

/// What was decided, and why.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct DecisionReason {
    pub decision: &'static str,
    pub reason: &'static str,
}

/// `stage` and how a transaction ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct StageResult {
    pub stage: &'static str,
    pub result: &'static str,
}

/// One word.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Class {
    pub class: &'static str,
}

/// One word.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct State {
    pub state: &'static str,
}

/// One word.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Kind {
    pub kind: &'static str,
}

/// One word.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Reason {
    pub reason: &'static str,
}

/// Why a send says how to opt out.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Due {
    pub occasion: &'static str,
}

/// A reason to leave, by its id: one of the built-in ones or of the configuration's, never a person's words.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct LeftBecause {
    pub reason: String,
}

/// One word.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Part {
    pub part: &'static str,
}

/// How the writing of a snapshot ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct SnapshotResult {
    pub result: &'static str,
}

/// One stage.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Stage {
    pub stage: &'static str,
}

/// All series.
pub struct Metrics {
    registry: Registry,
    /// Alert on: no increase while the input grows.
    pub records: Family<StageOutcome, Counter>,
    pub messages: Family<Class, Counter>,
    /// Alert on: opt-outs at a rate far above the usual one.
    pub consent_records: Family<State, Counter>,
    pub replies: Family<Kind, Counter>,
    /// Alert on: a steady increase. Detect is far behind, or the times of messages are wrong: nobody is answered.
    pub replies_expired: Counter,
    /// Why people leave.
    pub feedback: Family<LeftBecause, Counter>,
    /// Alert on: more than reviewers can judge within their deadline.
    pub reviews: Counter,
    /// Messages that wait for a verdict, counted every half minute.
    pub reviews_waiting: Gauge,
    /// Alert on: above 0. Their deadline has passed.
    pub reviews_overdue: Gauge,
    /// Since the oldest of them was written. Alert on: above a day.
    pub review_oldest_seconds: Gauge,
    pub decisions: Family<DecisionReason, Counter>,
    /// Sends that must say how to opt out, by occasion.
    pub guidance: Family<Due, Counter>,
    pub guidance_entries: Gauge,
    pub guidance_bytes: Gauge,
    /// Alert on: any increase of stage detect (a message that could not be read may be an opt-out).
    pub dead_letters: Family<StageReason, Counter>,
    /// Alert on: any increase. Sends of a business that no consent record names are not protected by anything.
    pub sends_unknown_business: Counter,
    /// Recipients that senders asked about over HTTP.
    pub checks: Family<DecisionReason, Counter>,
    /// Alert on: p99 above half a second.
    pub fence_wait_seconds: Histogram,
    /// Alert on: any increase.
    pub holds: Family<Reason, Counter>,
    /// Alert on: above 0 for more than a minute.
    pub holding_workers: Gauge,
    /// Alert on: results other than committed, in numbers.
    pub transactions: Family<StageResult, Counter>,
    pub transaction_seconds: Family<Stage, Histogram>,
    pub set_entries: Gauge,
    pub set_bytes: Gauge,
    /// Alert on: an increase without a change of the businesses or of the phone rules.
    pub set_strange_partitions: Gauge,
    /// Records of opt-outs that the last fence found not yet applied. Alert on: above 10,000 for more than a minute.
    pub applied_lag_records: Gauge,
    pub restore_seconds: Gauge<f64, AtomicU64>,
    /// 1 once the view holds the opt-outs topic. Alert on: 0 for longer than a restore takes.
    pub restored: Gauge,
    /// Alert on: an increase of `failed`. Nothing is lost, and a restart takes longer.
    pub snapshots: Family<SnapshotResult, Counter>,
    /// When the last snapshot was taken, seconds since the Unix epoch.
    pub snapshot_timestamp_seconds: Gauge,
    pub snapshot_bytes: Gauge,
    /// Keys that the last start took over from a snapshot.
    pub snapshot_entries: Gauge,
    /// Alert on: any increase; `stopgate opt-out heal` mends it long before compaction may touch the keys.
    pub consent_older_acts: Counter,
    /// Alert on: any increase. `part`: an unreadable value counts as an opt-out, an unreadable key closes the fence.
    pub consent_unreadable: Family<Part, Counter>,
    /// From a person's act to the moment from which no send passes.
    pub opt_out_effective_seconds: Histogram,
    /// Kafka timestamp of the newest inbound record, seconds since the Unix epoch.
    pub inbound_newest_timestamp_seconds: Gauge,
    /// 1 while no inbound record has come for longer than `silence_alarm_minutes`. Alert on: 1.
    pub silence_alarm: Gauge,
    /// Input partitions whose position lies outside of their log. Alert on: above 0.
    pub stuck_partitions: Gauge,
}

fn seconds(from: f64, buckets: u16) -> Histogram {
    Histogram::new(exponential_buckets(from, 2.0, buckets))
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// All series at zero.
    pub fn new() -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix("stopgate"),
            records: Family::default(),
            messages: Family::default(),
            consent_records: Family::default(),
            replies: Family::default(),
            replies_expired: Counter::default(),
            feedback: Family::default(),
            reviews: Counter::default(),
            reviews_waiting: Gauge::default(),
            reviews_overdue: Gauge::default(),
            review_oldest_seconds: Gauge::default(),
            decisions: Family::default(),
            guidance: Family::default(),
            guidance_entries: Gauge::default(),
            guidance_bytes: Gauge::default(),
            dead_letters: Family::default(),
            sends_unknown_business: Counter::default(),
            checks: Family::default(),
            fence_wait_seconds: seconds(0.0001, 16),
            holds: Family::default(),
            holding_workers: Gauge::default(),
            transactions: Family::default(),
            transaction_seconds: Family::new_with_constructor(|| seconds(0.001, 14)),
            set_entries: Gauge::default(),
            set_bytes: Gauge::default(),
            set_strange_partitions: Gauge::default(),
            applied_lag_records: Gauge::default(),
            restore_seconds: Gauge::default(),
            restored: Gauge::default(),
            snapshots: Family::default(),
            snapshot_timestamp_seconds: Gauge::default(),
            snapshot_bytes: Gauge::default(),
            snapshot_entries: Gauge::default(),
            consent_older_acts: Counter::default(),
            consent_unreadable: Family::default(),
            opt_out_effective_seconds: seconds(0.001, 22),
            inbound_newest_timestamp_seconds: Gauge::default(),
            silence_alarm: Gauge::default(),
            stuck_partitions: Gauge::default(),
        };
        metrics.register();
        metrics
    }

    fn register(&mut self) {
        let registry = &mut self.registry;
        // The text format adds `_total` to counters.
        registry.register("records", "Input records by how they ended", self.records.clone());
        registry.register("messages", "Readable inbound messages by class", self.messages.clone());
        registry.register("consent_records", "Consent records written, by state", self.consent_records.clone());
        registry.register("replies", "Reply requests written, by kind", self.replies.clone());
        registry.register("replies_expired", "Replies that had expired when they were written: senders drop them", self.replies_expired.clone());
        registry.register("feedback", "Answers to feedback questions, by reason", self.feedback.clone());
        registry.register("reviews", "Review requests written", self.reviews.clone());
        registry.register("reviews_waiting", "Messages that wait for a verdict", self.reviews_waiting.clone());
        registry.register("reviews_overdue", "Messages that wait for a verdict after their deadline", self.reviews_overdue.clone());
        registry.register("review_oldest_seconds", "Age of the oldest message that waits for a verdict", self.review_oldest_seconds.clone());
        registry.register("decisions", "Sends decided, by decision and reason", self.decisions.clone());
        registry.register("guidance", "Sends that must say how to opt out, by occasion", self.guidance.clone());
        registry.register("guidance_entries", "Recipients of whom the last marketing send is known", self.guidance_entries.clone());
        registry.register("guidance_bytes", "Bytes that these occupy", self.guidance_bytes.clone());
        registry.register("dead_letters", "Records set aside, by reason", self.dead_letters.clone());
        registry.register(
            "sends_unknown_business",
            "Sends of a business that no consent record names: nobody is protected against them",
            self.sends_unknown_business.clone(),
        );
        registry.register("checks", "Recipients asked about over HTTP, by decision and reason", self.checks.clone());
        registry.register("fence_wait_seconds", "Time in which a worker did nothing but wait for its fence", self.fence_wait_seconds.clone());
        registry.register("holds", "Times a worker began to hold, by reason", self.holds.clone());
        registry.register("holding_workers", "Workers that hold their sends now", self.holding_workers.clone());
        registry.register("transactions", "Transactions by result", self.transactions.clone());
        registry.register("transaction_seconds", "Time to commit a transaction", self.transaction_seconds.clone());
        registry.register("set_entries", "Consent keys in the suppression set", self.set_entries.clone());
        registry.register("set_bytes", "Bytes that the suppression set occupies", self.set_bytes.clone());
        let help = "Acts that met an act of their key from another partition: an alias of the key, or two persons of one fingerprint";
        registry.register("set_strange_partitions", help, self.set_strange_partitions.clone());
        registry.register("applied_lag_records", "Opt-outs records not yet applied at the last fence", self.applied_lag_records.clone());
        registry.register("restore_seconds", "Time the last restore took", self.restore_seconds.clone());
        registry.register("restored", "1 once the view holds the opt-outs topic", self.restored.clone());
        registry.register("snapshots", "Snapshots by result", self.snapshots.clone());
        let help = "When the last snapshot was taken";
        registry.register("snapshot_timestamp_seconds", help, self.snapshot_timestamp_seconds.clone());
        registry.register("snapshot_bytes", "Bytes of the last snapshot", self.snapshot_bytes.clone());
        registry.register("snapshot_entries", "Consent keys that the last start took over from a snapshot", self.snapshot_entries.clone());
        registry.register("consent_older_acts", "Acts that lie behind a newer act of their key: heal them", self.consent_older_acts.clone());
        registry.register("consent_unreadable", "Unreadable records on opt-outs, by part", self.consent_unreadable.clone());
        registry.register("opt_out_effective_seconds", "Time from a person's act until it was applied", self.opt_out_effective_seconds.clone());
        registry.register(
            "inbound_newest_timestamp_seconds",
            "Kafka timestamp of the newest inbound record",
            self.inbound_newest_timestamp_seconds.clone(),
        );
        registry.register("silence_alarm", "1 while inbound records have been missing for too long", self.silence_alarm.clone());
        registry.register("stuck_partitions", "Input partitions whose position lies outside of their log", self.stuck_partitions.clone());
    }

    /// The exposition in the OpenMetrics text format.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail, and nothing else in the encoder does.
        if encode(&mut text, &self.registry).is_err() {
            text.clear();
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_are_named_as_prometheus_users_expect() {
        let metrics = Metrics::new();
        metrics.decisions.get_or_create(&DecisionReason { decision: "suppressed", reason: "opted-out" }).inc();
        metrics.sends_unknown_business.inc();
        metrics.fence_wait_seconds.observe(0.001);
        let text = metrics.to_text();
        for line in [
            "stopgate_decisions_total{decision=\"suppressed\",reason=\"opted-out\"} 1",
            "stopgate_sends_unknown_business_total 1",
            "stopgate_set_entries 0",
            "stopgate_fence_wait_seconds_count 1",
        ] {
            assert!(text.contains(line), "{line} is missing in:\n{text}");
        }
    }
}
