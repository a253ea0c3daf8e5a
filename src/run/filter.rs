//! Stage 2 in a worker's hands: fence, look up, pass on.

use super::fence::{FenceAside, Waiting};
use super::guidance::{GuidanceFence, Known};
use super::layout::Layout;
use super::outcome::{DeadLetters, headers_size};
use super::view::{Passed, SharedView};
use super::worker::{Batch, Incoming, Stage};
use crate::config::{Config, Evidence, SendsOutput};
use crate::domain::decide::Decision;
use crate::domain::guidance::{RecipientPrint, Seen};
use crate::domain::time::Timestamp;
use crate::domain::view::ConsentView;
use crate::kafka::EdgeError;
use crate::kafka::group::Received;
use crate::kafka::producer::TransactionalProducer;
use crate::metrics::{DecisionReason, Due, Metrics, StageOutcome, StageReason};
use crate::record::{Produce, TopicName, TopicPartition, is_same_topic};
use crate::stage::filter::{
    DecidedAt, Filter, FilterRules, GUIDANCE_HEADER, Outcome, Prepared, Tally, allowed_header, as_of_text, block, suppressed_headers,
};
use crate::wire::DecodeError;
use crate::wire::consent::encode_key;
use crate::wire::guidance::encode_value;
use prost::Message;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The rules by which a configuration filters.
pub(super) fn rules(config: &Config) -> FilterRules {
    FilterRules {
        topics: config.sends.iter().map(|sends| sends.input.clone()).collect(),
        businesses: config.businesses.clone(),
        categories: config.categories.clone(),
        default_channel: config.default_channel.clone(),
        book: config.book.clone(),
        guidance: config.guidance,
    }
}

/// The filter of one worker.
pub struct FilterStage {
    filter: Filter,
    /// Absent on workers of topics for exempt sends: no consent concerns them.
    fence: Option<FenceAside>,
    /// The last fence that opened.
    passed: Option<Passed>,
    view: Arc<SharedView>,
    layout: Arc<Layout>,
    config: Arc<Config>,
    /// One for each sends topic.
    routes: Vec<Route>,
    rules_version: String,
    metrics: Arc<Metrics>,
    guidance: Option<Guidance>,
}

/// Where the sends of a topic go.
struct Route {
    input: TopicName,
    allowed: Outlet,
    suppressed: Outlet,
}

/// A topic that sends are passed on to.
struct Outlet {
    topic: TopicName,
    /// The most bytes of a record that fits it.
    room: u64,
}

/// What a worker needs to tell which sends must say how to opt out.
struct Guidance {
    fence: GuidanceFence,
    gap_days: u16,
    /// All that was written of the partitions before they were taken is known.
    fenced: bool,
    /// What was decided and is not committed yet.
    seen: HashMap<RecipientPrint, Seen>,
    up_to: HashMap<TopicPartition, u64>,
}

impl Guidance {
    fn lookup(&self, known: &Known, print: RecipientPrint) -> Option<Seen> {
        self.seen.get(&print).copied().or_else(|| known.set.get(print))
    }

    /// What was not committed did not happen.
    fn drop_uncommitted(&mut self) {
        self.seen.clear();
        self.up_to.clear();
    }
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
        guidance: Option<GuidanceFence>,
    ) -> Self {
        let filter = Filter::new(rules(&config), view.print_key());
        let guidance = guidance.zip(config.guidance).map(|(fence, rules)| Guidance {
            fence,
            gap_days: rules.gap_days,
            fenced: false,
            seen: HashMap::new(),
            up_to: HashMap::new(),
        });
        let outlet = |topic: &TopicName| Outlet { topic: topic.clone(), room: layout.room(topic) };
        let route = |sends: &SendsOutput| Route {
            input: sends.input.name.clone(),
            allowed: outlet(&sends.allowed),
            suppressed: outlet(&sends.suppressed),
        };
        let routes = config.sends.iter().map(route).collect();
        Self { filter, fence, passed: None, view, layout, config, routes, rules_version, metrics, guidance }
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
pub struct Ready {
    prepared: Prepared,
    /// Bytes that passing it on takes.
    size: u64,
}

/// How long one wait for guidance lasts, after partitions were taken.
const GUIDANCE_PATIENCE: Duration = Duration::from_secs(2);

/// Look-ups whose memory is fetched at once.
const NEAR: usize = 32;

/// Decides all records at one position of the view.
fn look_up(view: &ConsentView, records: &[Incoming<'_, Ready>], held_until: Option<Timestamp>) -> Vec<Outcome> {
    let mut outcomes = Vec::with_capacity(records.len());
    for near in records.chunks(NEAR) {
        view.prefetch(near.iter().flat_map(|incoming| incoming.read.prepared.persons()).copied());
        outcomes.extend(near.iter().map(|incoming| incoming.read.prepared.decide(view, held_until)));
    }
    outcomes
}

/// When the recipients of those sends last came back that are allowed because of it.
fn opted_in(view: &ConsentView, records: &[Incoming<'_, Ready>], outcomes: &[Outcome]) -> Vec<Option<Timestamp>> {
    let at = |(incoming, outcome): (&Incoming<'_, Ready>, &Outcome)| incoming.read.prepared.opted_in_at(*outcome, view);
    records.iter().zip(outcomes).map(at).collect()
}

/// How many sends are of businesses that no key names.
fn of_unknown_businesses(view: &ConsentView, records: &[Incoming<'_, Ready>]) -> u64 {
    let mut last: Option<(&str, bool)> = None;
    let businesses = records.iter().filter_map(|incoming| incoming.read.prepared.business());
    let unknown = businesses.filter(|business| match last {
        // Campaigns come in runs.
        Some((known, unknown)) if known == *business => unknown,
        Some(_) | None => {
            let unknown = !view.knows_business(business);
            last = Some((business, unknown));
            unknown
        }
    });
    unknown.count() as u64
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

    type Read = Ready;

    fn read(&mut self, received: &Received<'_>) -> Ready {
        let mut headers = Vec::new();
        received.headers(&mut headers);
        let record = received.record(&headers);
        Ready { prepared: self.filter.prepare(&record), size: record.size() }
    }

    fn ask_fence(&mut self, patience: Duration) {
        if let Some(fence) = &mut self.fence {
            fence.ask(patience);
        }
    }

    fn fence_answer(&mut self) -> Result<(), Waiting> {
        if let Some(fence) = &mut self.fence {
            self.passed = Some(fence.answer()?);
        }
        if let Some(guidance) = self.guidance.as_mut().filter(|guidance| !guidance.fenced) {
            guidance.fence.pass(GUIDANCE_PATIENCE)?;
            guidance.fenced = true;
        }
        Ok(())
    }

    fn decide(&mut self, batch: Batch<'_, Ready>, transaction: &TransactionalProducer) -> Result<(), EdgeError> {
        let (outcomes, opted_in, as_of, topic_id, unknown_business) = {
            // Without a fence nothing is looked up: exempt sends, and what leaves a hold by itself.
            let looked_up = self.passed.filter(|_| batch.fenced && self.fence.is_some());
            let view = match looked_up {
                Some(passed) => self.view.read_after(passed),
                None => Some(self.view.read()),
            };
            let view = view.ok_or_else(|| EdgeError::timed_out("the view was closed after the fence had opened"))?;
            let outcomes = look_up(&view, &batch.records, batch.held_until);
            let opted_in = self.guidance.as_ref().map(|_| opted_in(&view, &batch.records, &outcomes)).unwrap_or_default();
            // Before the view is let go: one that is made anew is of another topic.
            (outcomes, opted_in, view.applied().to_vec(), self.view.topic_id(), of_unknown_businesses(&view, &batch.records))
        };
        let as_of_shown = as_of_text(&as_of);
        let shared = self.guidance.as_ref().map(|guidance| guidance.fence.shared().clone());
        let known = shared.as_ref().map(|shared| shared.read());
        let guidance_as_of = known.as_ref().map(|known| known.applied.clone()).unwrap_or_default();
        let mut runs: Vec<Run> = Vec::new();
        let dead_letters = DeadLetters { layout: &self.layout, topic: &self.config.topics.dead_letters, stage: Self::NAME };
        for (number, (incoming, outcome)) in batch.records.into_iter().zip(outcomes).enumerate() {
            let Incoming { received, read: Ready { size, prepared } } = &incoming;
            let Some(route) = self.routes.iter().find(|route| is_same_topic(&route.input, received.topic())) else {
                unreachable!("a worker receives only the topics it subscribed to");
            };
            let source = || received.record(&[]).coordinates();
            let guided = if let (Some(guidance), Some(known)) = (&self.guidance, &known)
                && let Outcome::Decided(Decision::Allowed(reason)) = outcome
            {
                let sent_at = received.record(&[]).timestamp_ms.and_then(Timestamp::from_millis);
                let opted_in = opted_in.get(number).copied().flatten();
                prepared.guide(reason, sent_at, opted_in, guidance.gap_days, |print| guidance.lookup(known, print))
            } else {
                None
            };
            let occasion = guided.as_ref().and_then(|guided| guided.occasion);
            let (outlet, headers) = match outcome {
                Outcome::Decided(Decision::Allowed(reason)) => {
                    let wanted = self.config.evidence == Evidence::Headers;
                    let header = wanted.then(|| allowed_header(reason, &source(), &as_of_shown, &self.rules_version));
                    let guidance = occasion.map(|occasion| (GUIDANCE_HEADER, occasion.as_str().to_owned()));
                    (Some(&route.allowed), header.into_iter().chain(guidance).collect())
                }
                Outcome::Decided(Decision::Suppressed { reason, cause }) => {
                    (Some(&route.suppressed), suppressed_headers(reason, cause, &source(), &as_of_shown, &self.rules_version))
                }
                Outcome::DeadLetter(_) => (None, Vec::new()),
            };
            let ended = match (outlet, outcome) {
                (Some(outlet), _) if size + headers_size(&headers) <= outlet.room => {
                    transaction.forward(received, &outlet.topic, received.partition(), &headers)?;
                    outcome
                }
                (Some(_), _) => Outcome::DeadLetter(DecodeError::TooLarge),
                (None, outcome) => outcome,
            };
            if let Outcome::DeadLetter(reason) = ended {
                dead_letters.write(transaction, received, None, reason)?;
            } else if let (Some(guidance), Some(guided)) = (&mut self.guidance, guided) {
                occasion.iter().for_each(|occasion| {
                    self.metrics.guidance.get_or_create(&Due { occasion: occasion.as_str() }).inc();
                });
                for recipient in &guided.changed {
                    let (topic, key) = (&self.config.topics.guidance, encode_key(&recipient.key));
                    transaction.produce(&Produce {
                        topic: topic.clone(),
                        partition: key.partition(self.layout.partitions(topic)),
                        key: Some(key.as_bytes().to_vec()),
                        value: Some(encode_value(guided.after, &source())),
                        headers: Vec::new(),
                    })?;
                    guidance.seen.insert(recipient.print, guided.after);
                }
            }
            let is_of = |run: &Run| run.partition.1 == received.partition() && is_same_topic(&run.partition.0, received.topic());
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
        drop(known);
        self.count(&runs, unknown_business);
        if let Some(guidance) = &mut self.guidance {
            guidance.up_to.extend(runs.iter().map(|run| (run.partition.clone(), run.end)));
        }
        for run in &runs {
            let partition = &run.partition;
            let first = batch.first.get(partition).copied().unwrap_or(run.end);
            let at = DecidedAt {
                as_of: &as_of,
                rules_version: &self.rules_version,
                opt_outs_topic_id: &topic_id,
                held_until: batch.held_until.filter(|_| run.expired),
                guidance_as_of: &guidance_as_of,
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
        if let Some(guidance) = &mut self.guidance {
            // A commit whose result is not known may have happened: what was written is waited for once more.
            guidance.drop_uncommitted();
            guidance.fenced = false;
        }
        Ok(())
    }

    fn committed(&mut self) {
        if let Some(guidance) = &mut self.guidance {
            guidance.fence.shared().committed(guidance.seen.drain(), guidance.up_to.drain());
        }
    }

    fn taken(&mut self, partitions: &[TopicPartition]) {
        if let Some(guidance) = &mut self.guidance {
            guidance.fenced = false;
            guidance.fence.shared().forget_own(|partition| partitions.contains(partition));
        }
    }

    fn may_leave_hold(&self, read: &Ready, now: Timestamp) -> bool {
        read.prepared.may_leave_hold(now)
    }
}
