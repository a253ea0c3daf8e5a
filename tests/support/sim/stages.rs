//! The two stages in the driver's hands: production's decisions, the simulation's clients.

use super::Mutation;
use super::client::{Producer, Received};
use super::context::{Asker, Context};
use super::driver::{Batch, Stage};
use super::log::Record;
use super::person::Note;
use super::world::{ALLOWED, DEAD_LETTERS, DECISIONS, InFlight, OPT_OUTS, REPLIES, SENDS, SUPPRESSED, away};
use prost::Message as _;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use stopgate::domain::consent::Position;
use stopgate::domain::decide::Decision;
use stopgate::domain::time::Timestamp;
use stopgate::kafka::EdgeError;
use stopgate::kafka::offsets::Offsets;
use stopgate::record::TopicPartition;
use stopgate::run::fence::{Fence, Waiting};
use stopgate::run::view::{Passed, SharedView};
use stopgate::stage::detect::{Answer, Detector, Ledger, Overlay, Read};
use stopgate::stage::filter::{DecidedAt, Filter, Outcome, Tally, as_of_text, block, suppressed_headers};
use stopgate::wire::consent;

/// Versions of rules are told in blocks; here there is one.
const RULES: &str = "r1";

/// What both stages know of the view.
pub struct Sight {
    pub context: Context,
    pub fence: Fence<Asker>,
    pub view: Arc<SharedView>,
    pub asked_early: Rc<RefCell<Option<Offsets>>>,
    pub passed: Option<Passed>,
}

impl Sight {
    fn before_receiving(&mut self) {
        if self.context.peek(|world| world.is(Mutation::EndsBeforeBatch)) {
            let ends = self.context.peek(|world| world.ends(OPT_OUTS, world.log.partitions(OPT_OUTS)));
            *self.asked_early.borrow_mut() = ends.ok();
        }
    }

    fn pass(&mut self) -> Result<(), Waiting> {
        self.passed = Some(self.fence.pass(Duration::ZERO)?);
        Ok(())
    }
}

pub struct FilterStage {
    pub sight: Sight,
    pub filter: Filter,
}

impl FilterStage {
    /// Outcomes, the position of the view at which they were found, and of which topic it is a position.
    fn look_up(&mut self, batch: &Batch<'_>) -> Result<(Vec<Outcome>, Vec<u64>, String), EdgeError> {
        let records: Vec<stopgate::record::Record<'_>> = batch.records.iter().map(Received::as_record).collect();
        let prepared: Vec<_> = records.iter().map(|record| self.filter.prepare(record)).collect();
        let shared = self.sight.view.clone();
        let lock = |passed: Option<Passed>| match passed {
            Some(passed) => shared.read_after(passed).ok_or(EdgeError::Abort(away())),
            None => Ok(shared.read()),
        };
        let passed = self.sight.passed.filter(|_| batch.fenced);
        let mut view = lock(passed)?;
        let mut outcomes = Vec::new();
        for (number, prepared) in prepared.iter().enumerate() {
            if number > 0 && self.sight.context.peek(|world| world.is(Mutation::AppliedWithinLookUps)) {
                drop(view);
                self.sight.context.turn.wait();
                view = lock(passed)?;
            }
            outcomes.push(prepared.decide(&*view, batch.held_until));
        }
        Ok((outcomes, view.applied().to_vec(), shared.topic_id()))
    }
}

impl Stage for FilterStage {
    fn before_receiving(&mut self) {
        self.sight.before_receiving();
    }

    fn fence(&mut self) -> Result<(), Waiting> {
        self.sight.pass()
    }

    fn decide(&mut self, batch: &Batch<'_>, transaction: &Producer) -> Result<(), EdgeError> {
        let (outcomes, as_of, topic_id) = self.look_up(batch)?;
        let shown = as_of_text(&as_of);
        let mut runs: BTreeMap<TopicPartition, (Tally, u64, bool, u64)> = BTreeMap::new();
        for (received, outcome) in batch.records.iter().zip(outcomes) {
            let mut record = received.record.clone();
            record.note = Note::Outcome { source: received.offset, received: received.tick };
            let source = received.as_record().coordinates();
            let topic = match outcome {
                Outcome::Decided(Decision::Allowed(_)) => ALLOWED,
                Outcome::Decided(Decision::Suppressed { reason, cause }) => {
                    let headers = suppressed_headers(reason, cause, &source, &shown, RULES);
                    record.headers.extend(headers.into_iter().map(|(name, value)| (name.to_owned(), value)));
                    SUPPRESSED
                }
                Outcome::DeadLetter(_) => DEAD_LETTERS,
            };
            record.headers.push(("source".to_owned(), source.to_string()));
            transaction.write(topic, if topic == DEAD_LETTERS { 0 } else { received.partition }, record)?;
            let run = runs.entry(received.place()).or_default();
            run.0.count(outcome);
            run.1 = run.1.max(received.offset + 1);
            run.2 |= batch.held_until.is_some() && matches!(outcome, Outcome::Decided(Decision::Suppressed { cause: None, .. }));
            // The last batch of a run is the one that the fence must have been asked after.
            run.3 = run.3.max(received.tick);
        }
        for (partition, (tally, end, expired, received)) in runs {
            let first = batch.first.get(&partition).copied().unwrap_or(end);
            let at = DecidedAt {
                as_of: &as_of,
                rules_version: RULES,
                opt_outs_topic_id: &topic_id,
                guidance_as_of: &[],
                held_until: batch.held_until.filter(|_| expired),
            };
            let value = block(&partition, first, end, &tally, &at).encode_to_vec();
            let note = Note::Block { received: if batch.fenced { received } else { 0 } };
            transaction.write(DECISIONS, 0, Record { key: None, value: Some(value), headers: Vec::new(), timestamp_ms: 0, note })?;
        }
        Ok(())
    }

    fn settle(&mut self) -> Result<(), EdgeError> {
        Ok(())
    }

    fn start_again(&mut self) {}

    fn may_leave_hold(&mut self, received: &Received, now: Timestamp) -> bool {
        self.filter.prepare(&received.as_record()).may_leave_hold(now)
    }
}

pub struct DetectStage {
    pub sight: Sight,
    pub detector: Detector,
    pub overlay: Overlay,
    pub consents: u64,
    pub outstanding: usize,
}

/// How long acknowledgements are waited for, in polls.
const ACK_POLLS: usize = 40;

impl DetectStage {
    fn write(&mut self, answer: Answer, received: &Received, transaction: &Producer) -> Result<(), EdgeError> {
        for written in answer.consents {
            let key = consent::encode_key(&written.key);
            let what = format!("writes {:?} of {} for {}@{}", written.act, written.key.subject, received.partition, received.offset);
            self.sight.context.tell(what, person_of(received));
            let value = Some(consent::encode_value(&written.record));
            let record = Record { key: Some(key.as_bytes().to_vec()), value, headers: Vec::new(), timestamp_ms: 0, note: Note::Nothing };
            self.sight.context.call(|world| {
                let partition = key.partition(world.log.partitions(OPT_OUTS));
                world.send(self.consents, InFlight { number: written.number, partition, record });
            });
            self.outstanding += 1;
        }
        for (_, reply) in answer.replies {
            self.sight.context.tell(format!("answers {}@{}", received.partition, received.offset), person_of(received));
            let note = Note::Reply { partition: received.partition, offset: received.offset };
            let record = Record {
                key: Some(reply.to.clone().into_bytes()),
                value: Some(reply.encode_to_vec()),
                headers: Vec::new(),
                timestamp_ms: 0,
                note,
            };
            transaction.write(REPLIES, 0, record)?;
        }
        Ok(())
    }

    fn take_acks(&mut self) {
        for (number, partition, offset) in self.sight.context.call(|world| world.acks(self.consents)) {
            self.outstanding = self.outstanding.saturating_sub(1);
            self.overlay.acknowledged(number, Position { partition, offset });
        }
    }
}

impl Stage for DetectStage {
    fn before_receiving(&mut self) {
        self.sight.before_receiving();
    }

    fn fence(&mut self) -> Result<(), Waiting> {
        self.sight.pass()
    }

    fn decide(&mut self, batch: &Batch<'_>, transaction: &Producer) -> Result<(), EdgeError> {
        if self.sight.context.peek(|world| world.is(Mutation::OverlayDropped)) {
            self.overlay.clear();
        }
        let reads: Vec<Read> = batch.records.iter().map(|received| self.detector.read(&received.as_record())).collect();
        let answers: Vec<Vec<Answer>> = {
            let view = self.sight.passed.and_then(|passed| self.sight.view.read_after(passed));
            let view = view.ok_or(EdgeError::Abort(away()))?;
            self.overlay.prune(&view);
            let mut ledger = Ledger { view: &view, overlay: &mut self.overlay };
            let rules = self.detector.rules();
            reads.iter().map(|read| read.findings.iter().map(|finding| ledger.answer(finding, rules)).collect()).collect()
        };
        for ((received, read), answers) in batch.records.iter().zip(&reads).zip(answers) {
            if !read.failures.is_empty() {
                let mut record = received.record.clone();
                record.headers.push(("source".to_owned(), received.as_record().coordinates().to_string()));
                transaction.write(DEAD_LETTERS, 0, record)?;
            }
            answers.into_iter().try_for_each(|answer| self.write(answer, received, transaction))?;
        }
        Ok(())
    }

    fn settle(&mut self) -> Result<(), EdgeError> {
        if self.sight.context.peek(|world| world.is(Mutation::CommittedBeforeAcks)) {
            return Ok(());
        }
        for _ in 0..ACK_POLLS {
            if self.outstanding == 0 {
                return Ok(());
            }
            self.take_acks();
        }
        if self.outstanding == 0 { Ok(()) } else { Err(EdgeError::Abort(away())) }
    }

    fn start_again(&mut self) {
        if self.settle().is_err() {
            let old = std::mem::replace(&mut self.consents, self.sight.context.peek(super::world::World::new_consent_producer));
            self.sight.context.call(|world| world.abandon(old));
            self.outstanding = 0;
        }
        self.overlay.clear();
    }

    fn may_leave_hold(&mut self, _received: &Received, _now: Timestamp) -> bool {
        false
    }
}

fn person_of(received: &Received) -> Option<usize> {
    match received.record.note {
        Note::Message { person, .. } => Some(person),
        Note::Nothing | Note::Send { .. } | Note::Outcome { .. } | Note::Block { .. } | Note::Reply { .. } => None,
    }
}

/// A filter of the one sends topic.
pub fn sends_topics() -> Vec<stopgate::stage::filter::SendsTopic> {
    let decoder = stopgate::wire::send::SendDecoder::new(stopgate::wire::send::SendFormat::Auto, &Default::default()).expect("pointers");
    vec![stopgate::stage::filter::SendsTopic { name: SENDS.into(), decoder, exempt_only: false }]
}
