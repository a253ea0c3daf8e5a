//! Stage 2 in a worker's hands: fence, look up, pass on.

use super::fence::{FenceAside, Waiting};
use super::layout::Layout;
use super::outcome::{DeadLetters, headers_size};
use super::view::{Passed, SharedView};
use super::worker::{Batch, Stage};
use crate::config::{Config, Evidence};
use crate::domain::decide::Decision;
use crate::domain::time::Timestamp;
use crate::kafka::EdgeError;
use crate::kafka::group::Received;
use crate::kafka::producer::TransactionalProducer;
use crate::metrics::{DecisionReason, Metrics, StageOutcome, StageReason};
use crate::record::{Header, Produce, TopicName, TopicPartition};
use crate::stage::filter::{DecidedAt, Filter, FilterRules, Outcome, Prepared, Tally, allowed_header, as_of_text, block, suppressed_headers};
use crate::wire::DecodeError;
use prost::Message;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The filter of one worker.
pub struct FilterStage {
    filter: Filter,
    /// Absent on workers of topics for exempt sends: no consent concerns them.
    fence: Option<FenceAside>,
    /// The last fence that opened.
    passed: Option<Passed>,
    /// What was read while the fence was asked.
    ready: Vec<Ready>,
    view: Arc<SharedView>,
    layout: Arc<Layout>,
    config: Arc<Config>,
    rules_version: String,
    metrics: Arc<Metrics>,
}

impl FilterStage {
    /// A filter for the sends topics of the configuration.
    pub fn new(
        config: Arc<Config>,
        layout: Arc<Layout>,
        view: Arc<SharedView>,
        fence: Option<FenceAside>,
        rules_version: String,
        metrics: Arc<Metrics>,
    ) -> Self {
        let rules = FilterRules {
            topics: config.sends.iter().map(|sends| sends.input.clone()).collect(),
            businesses: config.businesses.clone(),
            categories: config.categories.clone(),
            default_channel: config.default_channel.clone(),
        };
        let filter = Filter::new(rules, view.print_key());
        Self { filter, fence, passed: None, ready: Vec::new(), view, layout, config, rules_version, metrics }
    }

    /// What was read of these very records while their fence was asked, or what is read of them now.
    fn take_prepared(&mut self, records: &[Received<'_>]) -> Vec<Ready> {
        match std::mem::take(&mut self.ready) {
            ready if is_of(&ready, records) => ready,
            _ => prepare(&mut self.filter, records),
        }
    }

    fn count(&self, runs: &[Run], unknown_business: u64) {
        for (column, reason, count) in runs.iter().flat_map(|run| run.tally.entries()) {
            self.metrics.records.get_or_create(&StageOutcome { stage: Self::NAME, outcome: column }).inc_by(count);
            if column == "dead-letter" {
                self.metrics.dead_letters.get_or_create(&StageReason { stage: Self::NAME, reason }).inc_by(count);
            } else {
                self.metrics.decisions.get_or_create(&DecisionReason { decision: column, reason }).inc_by(count);
            }
        }
        if unknown_business > 0 {
            self.metrics.sends_unknown_business.inc_by(unknown_business);
        }
    }
}

/// A record that was read and waits for the view.
struct Ready {
    topic: TopicName,
    partition: u32,
    offset: u64,
    prepared: Prepared,
    /// Bytes that passing it on takes.
    size: u64,
}

/// Reads all records of a batch.
fn prepare(filter: &mut Filter, records: &[Received<'_>]) -> Vec<Ready> {
    filter.begin_batch();
    let headers: Vec<Vec<Header<'_>>> = records
        .iter()
        .map(|received| {
            let mut headers = Vec::new();
            received.headers(&mut headers);
            headers
        })
        .collect();
    let mut scratch = Vec::new();
    let ready = records.iter().zip(&headers).map(|(received, headers)| {
        let record = received.record(headers);
        Ready {
            topic: received.topic().clone(),
            partition: record.partition,
            offset: record.offset,
            prepared: filter.prepare(&record, &mut scratch),
            size: record.size(),
        }
    });
    ready.collect()
}

/// Whether these were read of exactly these records.
fn is_of(ready: &[Ready], records: &[Received<'_>]) -> bool {
    let same = |(ready, received): (&Ready, &Received<'_>)| {
        ready.offset == received.offset() && ready.partition == received.partition() && ready.topic == *received.topic()
    };
    ready.len() == records.len() && ready.iter().zip(records).all(same)
}

/// One partition's part of a batch.
struct Run {
    partition: TopicPartition,
    tally: Tally,
    end: u64,
    expired: bool,
}

impl Stage for FilterStage {
    const NAME: &'static str = "filter";

    /// The brokers' answer and the reading of the records do not need each other. Beside a busy broker an answer takes
    /// milliseconds, in which a large batch is read.
    fn fence(&mut self, patience: Duration, records: &[Received<'_>]) -> Result<(), Waiting> {
        let Some(fence) = &self.fence else { return Ok(()) };
        fence.ask(patience);
        if !is_of(&self.ready, records) {
            self.ready = prepare(&mut self.filter, records);
        }
        self.passed = Some(fence.answer()?);
        Ok(())
    }

    fn decide(&mut self, batch: &Batch<'_>, transaction: &TransactionalProducer) -> Result<(), EdgeError> {
        let prepared = self.take_prepared(batch.records);
        let view = self.view.clone();
        let (outcomes, as_of, topic_id, unknown_business) = {
            // Without a fence nothing is looked up: exempt sends, and what leaves a hold by itself.
            let looked_up = self.passed.filter(|_| batch.fenced && self.fence.is_some());
            let view = match looked_up {
                Some(passed) => view.read_after(passed).ok_or_else(|| EdgeError::timed_out("the view was closed after the fence had opened"))?,
                None => view.read(),
            };
            self.filter.meet(&view);
            let unknown = prepared.iter().filter(|ready| !self.filter.knows_business_of(&ready.prepared)).count();
            let outcomes: Vec<Outcome> = prepared.iter().map(|ready| self.filter.decide(&ready.prepared, &*view, batch.held_until)).collect();
            // Before the view is let go: one that is made anew is of another topic.
            (outcomes, view.applied().to_vec(), self.view.topic_id(), unknown as u64)
        };
        let as_of_shown = as_of_text(&as_of);
        let mut runs: Vec<Run> = Vec::new();
        let dead_letters = DeadLetters { layout: &self.layout, topic: &self.config.topics.dead_letters, stage: Self::NAME };
        for (number, (received, (outcome, Ready { size, .. }))) in batch.records.iter().zip(outcomes.iter().zip(&prepared)).enumerate() {
            let Some(outputs) = self.config.sends.iter().find(|sends| sends.input.name == *received.topic()) else {
                unreachable!("a worker receives only the topics it subscribed to");
            };
            let source = || received.record(&[]).coordinates();
            let (topic, headers) = match outcome {
                Outcome::Decided(Decision::Allowed(reason)) => {
                    let wanted = self.config.evidence == Evidence::Headers;
                    let header = wanted.then(|| allowed_header(*reason, &source(), &as_of_shown, &self.rules_version));
                    (Some(&outputs.allowed), header.into_iter().collect())
                }
                Outcome::Decided(Decision::Suppressed { reason, cause }) => {
                    (Some(&outputs.suppressed), suppressed_headers(*reason, *cause, &source(), &as_of_shown, &self.rules_version))
                }
                Outcome::DeadLetter(_) => (None, Vec::new()),
            };
            let fits = |topic| self.layout.fits(topic, size + headers_size(&headers));
            let ended = match (topic, outcome) {
                (Some(topic), _) if fits(topic) => {
                    transaction.forward(received, topic, received.partition(), &headers)?;
                    *outcome
                }
                (Some(_), _) => Outcome::DeadLetter(DecodeError::TooLarge),
                (None, outcome) => *outcome,
            };
            if let Outcome::DeadLetter(reason) = ended {
                dead_letters.write(transaction, received, None, reason)?;
            }
            let is_of = |run: &Run| run.partition.1 == received.partition() && run.partition.0 == *received.topic();
            let place = runs.iter().rposition(is_of).unwrap_or_else(|| {
                let partition = (received.topic().clone(), received.partition());
                runs.push(Run { partition, tally: Tally::default(), end: 0, expired: false });
                runs.len() - 1
            });
            let run = &mut runs[place];
            run.tally.count(ended);
            run.end = run.end.max(received.offset() + 1);
            run.expired |= batch.held_until.is_some() && matches!(ended, Outcome::Decided(Decision::Suppressed { cause: None, .. }));
            if number % 256 == 255 {
                transaction.serve();
            }
        }
        self.count(&runs, unknown_business);
        for run in &runs {
            let partition = &run.partition;
            let first = batch.first.get(partition).copied().unwrap_or(run.end);
            let at = DecidedAt {
                as_of: &as_of,
                rules_version: &self.rules_version,
                opt_outs_topic_id: &topic_id,
                held_until: batch.held_until.filter(|_| run.expired),
            };
            let key = format!("{}-{}", partition.0, partition.1);
            let topic = &self.config.topics.decisions;
            transaction.produce(&Produce {
                topic: topic.clone(),
                partition: self.layout.partition_of(topic, key.as_bytes()),
                key: Some(key.into_bytes()),
                value: Some(block(partition, first, run.end, &run.tally, &at).encode_to_vec()),
                headers: Vec::new(),
            })?;
        }
        Ok(())
    }

    fn settle(&mut self, _deadline: Instant) -> Result<(), EdgeError> {
        Ok(())
    }

    fn start_again(&mut self) -> Result<(), EdgeError> {
        Ok(())
    }

    fn may_leave_hold(&mut self, received: &Received<'_>, now: Timestamp) -> bool {
        let mut headers = Vec::new();
        received.headers(&mut headers);
        let prepared = self.filter.prepare(&received.record(&headers), &mut Vec::new());
        Filter::may_leave_hold(&prepared, now)
    }
}
