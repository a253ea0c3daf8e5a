//! Stage 1 in a worker's hands: understand, compare with the view, write.

use super::fence::{FenceAside, Waiting};
use super::layout::Layout;
use super::outcome::DeadLetters;
use super::view::{Passed, SharedView};
use super::words::{self, WordsError};
use super::worker::{Batch, Incoming, Stage};
use crate::config::Config;
use crate::domain::classify::Lexicon;
use crate::domain::consent::Position;
use crate::domain::time::Timestamp;
use crate::kafka::EdgeError;
use crate::kafka::group::Received;
use crate::kafka::producer::{IdempotentProducer, TransactionalProducer};
use crate::metrics::{Class, Kind, LeftBecause, Metrics, StageOutcome, StageReason, State};
use crate::record::{Header, Produce, TopicName};
use crate::stage::detect::{Answer, DetectRules, Detector, Ledger, Overlay, Read};
use crate::wire::{consent, proto};
use prost::Message;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long one poll for acknowledgements waits: about half of what a broker on the same network needs.
const ACK_POLL: Duration = Duration::from_micros(500);

/// The rules by which a configuration detects, its words read.
pub(super) fn rules(config: &Config) -> Result<DetectRules, WordsError> {
    let lexicon = Arc::new(words::load(config.lexicon_dir.as_deref())?);
    let lexicons = words::of_businesses(&lexicon, &config.words)?;
    Ok(rules_of(config, lexicon, lexicons))
}

/// The same with words that were read already.
pub(super) fn rules_of(config: &Config, lexicon: Arc<Lexicon>, lexicons: BTreeMap<String, Arc<Lexicon>>) -> DetectRules {
    DetectRules {
        rules_version: config.rules_version(lexicon.version()),
        lexicon,
        lexicons,
        businesses: config.businesses.clone(),
        book: config.book.clone(),
        formats: config.inbound.clone(),
        policy: config.policy.clone(),
        policies: config.policies.clone(),
        hashed: config.hashed,
    }
}

/// The detection of one worker.
pub struct DetectStage {
    detector: Detector,
    fence: FenceAside,
    /// The last fence that opened.
    passed: Option<Passed>,
    view: Arc<SharedView>,
    overlay: Overlay,
    consents: IdempotentProducer,
    /// Consent records that wait for acknowledgement.
    outstanding: usize,
    layout: Arc<Layout>,
    config: Arc<Config>,
    metrics: Arc<Metrics>,
}

impl DetectStage {
    /// A detection under these rules.
    pub fn new(
        config: Arc<Config>,
        layout: Arc<Layout>,
        view: Arc<SharedView>,
        fence: FenceAside,
        rules: DetectRules,
        metrics: Arc<Metrics>,
    ) -> Result<Self, EdgeError> {
        let consents = IdempotentProducer::new(&config.connection, layout.limits())?;
        let overlay = Overlay::default();
        Ok(Self { detector: Detector::new(rules), fence, passed: None, view, overlay, consents, outstanding: 0, layout, config, metrics })
    }

    fn write(&mut self, answer: Answer, transaction: &TransactionalProducer) -> Result<(), EdgeError> {
        for consent in answer.consents {
            let key = consent::encode_key(&consent.key);
            let topic = &self.config.topics.opt_outs;
            let produce = Produce {
                topic: topic.clone(),
                partition: key.partition(self.layout.partitions(topic)),
                key: Some(key.as_bytes().to_vec()),
                value: Some(consent::encode_value(&consent.record)),
                headers: Vec::new(),
            };
            self.consents.send(&produce, consent.number)?;
            self.outstanding += 1;
            let state = consent.act.state.as_str();
            self.metrics.consent_records.get_or_create(&State { state }).inc();
        }
        for (kind, reply) in answer.replies {
            self.metrics.replies.get_or_create(&Kind { kind: kind.as_str() }).inc();
            // Written all the same: whoever sends it drops it by its own rule, and a reading of old messages is not silent.
            if super::now().millis() > reply.expires_at_ms {
                self.metrics.replies_expired.inc();
            }
            self.write_keyed(&self.config.topics.replies, &reply.to, reply.encode_to_vec(), transaction)?;
        }
        if let Some((key, feedback)) = answer.feedback {
            self.metrics.feedback.get_or_create(&LeftBecause { reason: feedback.reason.clone() }).inc();
            self.write_keyed(&self.config.topics.feedback, consent::encode_key(&key).as_str(), feedback.encode_to_vec(), transaction)?;
        }
        if let Some(review) = answer.review {
            self.metrics.reviews.inc();
            let recipient = review.from.first().cloned().unwrap_or_default();
            self.write_keyed(&self.config.topics.reviews, &recipient, proto::ReviewRequest::encode_to_vec(&review), transaction)?;
        }
        Ok(())
    }

    fn write_keyed(&self, topic: &TopicName, key: &str, value: Vec<u8>, transaction: &TransactionalProducer) -> Result<(), EdgeError> {
        transaction.produce(&Produce {
            topic: topic.clone(),
            partition: self.layout.partition_of(topic, key.as_bytes()),
            key: Some(key.as_bytes().to_vec()),
            value: Some(value),
            headers: Vec::new(),
        })
    }

    fn take_acks(&mut self) -> Result<(), EdgeError> {
        for ack in self.consents.acks(ACK_POLL)? {
            self.outstanding = self.outstanding.saturating_sub(1);
            self.overlay.acknowledged(ack.number, Position { partition: ack.partition, offset: ack.offset });
        }
        Ok(())
    }

    fn count(&self, read: &Read) {
        for class in &read.classes {
            self.metrics.messages.get_or_create(&Class { class: class.as_str() }).inc();
        }
        for (_, reason) in &read.failures {
            self.metrics.dead_letters.get_or_create(&StageReason { stage: Self::NAME, reason: reason.as_str() }).inc();
        }
        let outcome = match (read.failures.is_empty(), read.findings.is_empty()) {
            (false, _) => "dead-letter",
            (true, false) => "acted",
            (true, true) => "ignored",
        };
        self.metrics.records.get_or_create(&StageOutcome { stage: Self::NAME, outcome }).inc();
    }
}

impl Stage for DetectStage {
    const NAME: &'static str = "detect";

    type Read = Read;

    fn read(&mut self, received: &Received<'_>) -> Read {
        let mut headers: Vec<Header<'_>> = Vec::new();
        received.headers(&mut headers);
        let record = received.record(&headers);
        if let Some(millis) = record.timestamp_ms {
            let newest = self.metrics.inbound_newest_timestamp_seconds.get().max(millis / 1000);
            self.metrics.inbound_newest_timestamp_seconds.set(newest);
        }
        self.detector.read(&record)
    }

    fn ask_fence(&mut self, patience: Duration) {
        self.fence.ask(patience);
    }

    fn fence_answer(&mut self) -> Result<(), Waiting> {
        self.passed = Some(self.fence.answer()?);
        Ok(())
    }

    fn decide(&mut self, batch: Batch<'_, Read>, transaction: &TransactionalProducer) -> Result<(), EdgeError> {
        let answers: Vec<Answer> = {
            let view = self.passed.and_then(|passed| self.view.read_after(passed));
            let view = view.ok_or_else(|| EdgeError::timed_out("the view was closed after the fence had opened"))?;
            self.overlay.prune(&view);
            let mut ledger = Ledger { view: &view, overlay: &mut self.overlay };
            let findings = batch.records.iter().flat_map(|incoming| &incoming.read.findings);
            findings.map(|finding| ledger.answer(finding, self.detector.rules())).collect()
        };
        for Incoming { received, read } in &batch.records {
            self.count(read);
            let dead_letters = DeadLetters { layout: &self.layout, topic: &self.config.topics.dead_letters, stage: Self::NAME };
            for (index, reason) in &read.failures {
                dead_letters.write(transaction, received, *index, *reason)?;
            }
        }
        answers.into_iter().try_for_each(|answer| self.write(answer, transaction))
    }

    /// Consent records are acknowledged before the transaction is committed: what a reply confirms is true.
    fn settle(&mut self, deadline: Instant) -> Result<(), EdgeError> {
        while self.outstanding > 0 {
            self.take_acks()?;
            if Instant::now() >= deadline {
                return Err(EdgeError::timed_out("consent records were not acknowledged in time"));
            }
        }
        Ok(())
    }

    fn start_again(&mut self) -> Result<(), EdgeError> {
        // What is in flight must have landed, or never will, before the fence is asked: with a new producer it never
        // will, because the old one is purged.
        if self.consents.is_broken() || self.settle(Instant::now() + Duration::from_secs(5)).is_err() {
            self.consents = IdempotentProducer::new(&self.config.connection, self.layout.limits())?;
            self.outstanding = 0;
        }
        self.overlay.clear();
        Ok(())
    }

    fn may_leave_hold(&self, _read: &Read, _now: Timestamp) -> bool {
        false
    }
}
