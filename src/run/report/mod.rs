//! `stopgate report`: a period in figures, read back from the topics.
//!
//! Times are Kafka's: an opt-out belongs to the period in which it was written to opt-outs. That no marketing was allowed after
//! an opt-out is not counted from times, which clocks could bend: every send of the period is decided again at the position
//! of opt-outs at which it was decided, as `stopgate replay` does.

mod show;

pub use show::{Format, write};

use super::list::reviews;
use super::readers::{Readers, Trouble};
use super::replay;
use super::stop::Stop;
use crate::config::Config;
use crate::domain::consent::{ConsentState, Position};
use crate::domain::key::Subject;
use crate::domain::question::OWN_WORDS;
use crate::domain::time::Timestamp;
use crate::kafka::range::Span;
use crate::record::{Record, TopicName};
use crate::wire::consent::{ConsentChange, decode_key, decode_value};
use crate::wire::{proto, when};
use parking_lot::Mutex;
use prost::Message;
use serde::Serialize;
use std::collections::{BTreeMap, HashMap};

/// Counts by a word.
type Counts = BTreeMap<String, u64>;

/// The period, and the moment at which it is told.
#[derive(Clone, Copy, Debug)]
pub struct Period {
    pub since: Timestamp,
    pub until: Timestamp,
    pub now: Timestamp,
}

/// A period in figures.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    pub since: String,
    pub until: String,
    pub opt_outs: OptOuts,
    pub opt_ins: u64,
    pub time_to_effective_seconds: Spread,
    pub marketing_allowed_after_opt_out: AllowedAfter,
    pub sends: Sends,
    pub reviews: Reviews,
    /// By stage and reason.
    pub dead_letters: Counts,
}

/// Opt-outs of marketing, of programs and of everything; reviews apart.
#[derive(Clone, Debug, Default, Serialize)]
pub struct OptOuts {
    pub records: u64,
    /// Those that changed what stood for the person.
    pub people: u64,
    pub by_cause: Counts,
    pub by_language: Counts,
    pub by_campaign: Vec<Campaign>,
    /// Why people left, where they were asked and said so: of each opt-out the last reason, one in their own words last of all.
    pub by_feedback: Counts,
}

/// The opt-outs before which this campaign was the last marketing that went to the person.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Campaign {
    /// Empty: the send named none. Absent: no marketing send to the person is known.
    pub campaign: Option<String>,
    pub opt_outs: u64,
    /// Marketing sends of the campaign that were allowed in the period.
    pub sends: u64,
    /// Why these people left.
    pub by_feedback: Counts,
}

/// From the person's act to the moment from which no send passes: when its record was on opt-outs.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Spread {
    pub count: u64,
    pub p50: f64,
    pub p95: f64,
    pub max: f64,
}

/// Marketing that was allowed although an opt-out stood when it was decided.
#[derive(Clone, Debug, Default, Serialize)]
pub struct AllowedAfter {
    pub count: u64,
    /// Sends of the period that were decided again, at their recorded positions.
    pub decided_again: u64,
    /// Of these, decisions that cannot be made again, because compaction or retention took what they rest on.
    pub unprovable: u64,
    /// Outcomes that are not as they must be, of whatever kind.
    pub differences: u64,
    pub method: &'static str,
}

const METHOD: &str = "Each send was decided only after a fence: all that was acknowledged on opt-outs when it was received was applied. \
     The positions of opt-outs at which it was decided stand in its decision block. Here every send of the period was decided again at these \
     positions from the records themselves, and compared with what was written.";

/// What was decided in the period, by reason.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Sends {
    pub allowed: Counts,
    pub suppressed: Counts,
}

/// Messages that wait for a verdict.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Reviews {
    pub waiting: u64,
    pub overdue: u64,
}

/// An opt-out of the period that changed what stood, and the last marketing before it.
struct Left {
    occurred_at_ms: i64,
    last: Option<(i64, String)>,
    feedback: Option<String>,
}

#[derive(Default)]
struct Consents {
    report: OptOuts,
    opt_ins: u64,
    seconds: Vec<f64>,
    left: Vec<Left>,
    /// Business and identity → places in `left`.
    of_person: HashMap<(String, String), Vec<usize>>,
}

/// Reads a period.
pub fn read(config: &Config, period: Period, stop: &Stop) -> Result<Report, Trouble> {
    let readers = Readers::new(config)?;
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    let reading = Reading { config, readers: &readers, threads, period };
    let consents = Mutex::new(Consents::default());
    reading.in_period(&config.topics.opt_outs, "opt-outs", &|record| consents.lock().add(config, record))?;
    let mut consents = consents.into_inner();
    if config.asks_why() {
        let said = Mutex::new(Vec::new());
        reading.in_period(&config.topics.feedback, "feedback", &|record| said.lock().extend(Said::read(config, record)))?;
        consents.hear(said.into_inner());
    }
    let campaigns = reading.campaigns(&mut consents)?;
    let sends = Mutex::new(Sends::default());
    reading.in_period(&config.topics.decisions, "decisions", &|record| sends.lock().add(record))?;
    let dead_letters = Mutex::new(Counts::new());
    reading.in_period(&config.topics.dead_letters, "dead letters", &|record| {
        let header = |name| record.header(name).map_or("unknown".into(), String::from_utf8_lossy);
        *dead_letters.lock().entry(format!("{}: {}", header("stopgate-stage"), header("stopgate-reason"))).or_default() += 1;
    })?;
    let waiting = reviews::waiting(config)?;
    Ok(Report {
        since: when::to_text(period.since),
        until: when::to_text(period.until),
        opt_outs: OptOuts { by_campaign: campaigns, ..consents.report },
        opt_ins: consents.opt_ins,
        time_to_effective_seconds: Spread::of(consents.seconds),
        marketing_allowed_after_opt_out: decided_again(config, period, stop)?,
        sends: sends.into_inner(),
        reviews: Reviews {
            waiting: waiting.len() as u64,
            overdue: waiting.iter().filter(|request| request.deadline_ms < period.now.millis()).count() as u64,
        },
        dead_letters: dead_letters.into_inner(),
    })
}

struct Reading<'r> {
    config: &'r Config,
    readers: &'r Readers,
    threads: usize,
    period: Period,
}

impl Reading<'_> {
    /// Hands over the records of a topic that were written in the period.
    fn in_period(&self, topic: &TopicName, what: &'static str, each: &(impl Fn(&Record<'_>) + Sync)) -> Result<(), Trouble> {
        let extent = self.readers.extent(topic)?;
        let from = self.readers.at_time(&extent, self.period.since.millis())?;
        let to = self.readers.at_time(&extent, self.period.until.millis())?;
        let spans = extent.spans().into_iter().zip(from.iter().zip(&to));
        let spans: Vec<Span> = spans.map(|(span, (from, to))| Span { from: span.from.max(*from), to: span.to.min(*to), ..span }).collect();
        self.readers.scan(what, &extent.topic, &spans, self.threads, each)
    }

    /// Finds for each opt-out the last marketing that went to the person before it, and counts by campaign.
    fn campaigns(&self, consents: &mut Consents) -> Result<Vec<Campaign>, Trouble> {
        let (since, until) = (self.period.since.millis(), self.period.until.millis());
        let found = Mutex::new((std::mem::take(&mut consents.left), HashMap::<String, u64>::new()));
        for sends in &self.config.sends {
            let extent = self.readers.extent(&sends.allowed)?;
            self.readers.scan("allowed sends", &extent.topic, &extent.spans(), self.threads, &|record| {
                let Some(at) = record.timestamp_ms.filter(|at| *at < until) else { return };
                let Ok(send) = sends.input.decoder.decode(record) else { return };
                if self.config.categories.is_exempt(&send) {
                    return;
                }
                let Ok(business) = self.config.businesses.of_send(&send.hints()) else { return };
                let identities = send.to.iter().flat_map(|identity| self.config.identities_of(identity));
                let places: Vec<usize> = identities
                    .filter_map(|identity| consents.of_person.get(&(business.to_owned(), identity.to_text())))
                    .flatten()
                    .copied()
                    .collect();
                if places.is_empty() && at < since {
                    return;
                }
                let campaign = sends.input.decoder.labels(record).campaign.unwrap_or_default().into_owned();
                let (left, allowed) = &mut *found.lock();
                for place in places {
                    let Some(left) = left.get_mut(place) else { continue };
                    if at <= left.occurred_at_ms && left.last.as_ref().is_none_or(|(last, _)| *last <= at) {
                        left.last = Some((at, campaign.clone()));
                    }
                }
                if at >= since {
                    *allowed.entry(campaign).or_default() += 1;
                }
            })?;
        }
        let (left, allowed) = found.into_inner();
        let mut campaigns: BTreeMap<Option<String>, Campaign> = BTreeMap::new();
        for left in left {
            let campaign = left.last.map(|(_, campaign)| campaign);
            let counted = campaigns.entry(campaign.clone()).or_insert(Campaign { campaign, ..Campaign::default() });
            counted.opt_outs += 1;
            left.feedback.into_iter().for_each(|reason| *counted.by_feedback.entry(reason).or_default() += 1);
        }
        for (campaign, sends) in allowed {
            let campaign = Some(campaign);
            campaigns.entry(campaign.clone()).or_insert(Campaign { campaign, ..Campaign::default() }).sends = sends;
        }
        let mut campaigns: Vec<Campaign> = campaigns.into_values().collect();
        campaigns.sort_by_key(|campaign| std::cmp::Reverse(campaign.opt_outs));
        Ok(campaigns)
    }
}

/// One answer to a feedback question.
struct Said {
    person: (String, String),
    opted_out_at_ms: i64,
    occurred_at_ms: i64,
    reason: String,
}

impl Said {
    fn read(config: &Config, record: &Record<'_>) -> Option<Self> {
        let key = decode_key(record.key.unwrap_or_default(), &config.businesses).ok()?;
        let said = proto::FeedbackRecord::decode(record.value?).ok()?;
        let person = (key.business.to_string(), key.identity.to_text());
        Some(Self { person, opted_out_at_ms: said.opted_out_at_ms, occurred_at_ms: said.occurred_at_ms, reason: said.reason })
    }
}

impl Consents {
    /// Joins answers to their opt-outs.
    fn hear(&mut self, mut said: Vec<Said>) {
        said.sort_by_key(|said| (said.reason != OWN_WORDS, said.occurred_at_ms));
        for Said { person, opted_out_at_ms, reason, .. } in said {
            for place in self.of_person.get(&person).into_iter().flatten() {
                if let Some(left) = self.left.get_mut(*place).filter(|left| left.occurred_at_ms == opted_out_at_ms) {
                    left.feedback = Some(reason.clone());
                }
            }
        }
        for reason in self.left.iter().filter_map(|left| left.feedback.clone()) {
            *self.report.by_feedback.entry(reason).or_default() += 1;
        }
    }

    fn add(&mut self, config: &Config, record: &Record<'_>) {
        let at = Position { partition: record.partition, offset: record.offset };
        let Ok(key) = decode_key(record.key.unwrap_or_default(), &config.businesses) else { return };
        let act = match decode_value(record.value, record.timestamp_ms, at) {
            ConsentChange::Erasure => return,
            ConsentChange::Unreadable(act) | ConsentChange::Act { act, .. } => act,
        };
        match (act.state, &key.subject) {
            (_, Subject::Review) => return,
            (ConsentState::OptedIn, _) => {
                self.opt_ins += 1;
                return;
            }
            (ConsentState::OptedOut, Subject::Marketing | Subject::All | Subject::Program(_)) => {}
        }
        let consent = proto::ConsentRecord::decode(record.value.unwrap_or_default()).unwrap_or_default();
        let evidence = consent.evidence.clone().unwrap_or_default();
        self.report.records += 1;
        *self.report.by_cause.entry(consent.cause().as_str_name().to_lowercase().replace('_', "-")).or_default() += 1;
        let language = if evidence.language.is_empty() { "none".to_owned() } else { evidence.language };
        *self.report.by_language.entry(language).or_default() += 1;
        if evidence.source.is_some()
            && let Some(written) = record.timestamp_ms
        {
            self.seconds.push((written - act.occurred_at.millis()).max(0) as f64 / 1000.0);
        }
        if act.changed_state {
            self.report.people += 1;
            let place = self.left.len();
            self.left.push(Left { occurred_at_ms: act.occurred_at.millis(), last: None, feedback: None });
            self.of_person.entry((key.business.to_string(), key.identity.to_text())).or_default().push(place);
        }
    }
}

impl Sends {
    fn add(&mut self, record: &Record<'_>) {
        let Some(block) = record.value.and_then(|value| proto::DecisionBlock::decode(value).ok()) else { return };
        for (counts, counted) in [(&mut self.allowed, block.allowed), (&mut self.suppressed, block.suppressed)] {
            for proto::ReasonCount { reason, count } in counted {
                *counts.entry(reason).or_default() += count;
            }
        }
    }
}

impl Spread {
    fn of(mut seconds: Vec<f64>) -> Self {
        seconds.sort_by(f64::total_cmp);
        let at = |share: f64| seconds.get(((seconds.len() as f64 * share) as usize).min(seconds.len().saturating_sub(1))).copied();
        Self { count: seconds.len() as u64, p50: at(0.5).unwrap_or(0.0), p95: at(0.95).unwrap_or(0.0), max: at(1.0).unwrap_or(0.0) }
    }
}

/// Decides the sends of the period again.
fn decided_again(config: &Config, period: Period, stop: &Stop) -> Result<AllowedAfter, Trouble> {
    let options = replay::Options { since: Some(period.since), until: Some(period.until), json: true, ..replay::Options::default() };
    let mut told = Vec::new();
    let summary = replay::filter(config.clone(), None, &options, &mut told, stop)?;
    let allowed = told.split(|byte| *byte == b'\n').filter(|line| {
        let difference: Option<serde_json::Value> = serde_json::from_slice(line).ok();
        difference.is_some_and(|difference| {
            let starts = |field: &str, word: &str| difference[field].as_str().is_some_and(|text| text.starts_with(word));
            difference["difference"] == "decision" && starts("expected", "suppressed") && starts("actual", "allowed")
        })
    });
    Ok(AllowedAfter {
        count: allowed.count() as u64,
        decided_again: summary.records.saturating_sub(summary.undecided),
        unprovable: summary.unprovable + summary.gone.values().sum::<u64>(),
        differences: summary.differences(),
        method: METHOD,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_of_nothing_is_zero_and_of_many_is_theirs() {
        assert_eq!(Spread::of(Vec::new()).max, 0.0);
        let spread = Spread::of((0..100).rev().map(f64::from).collect());
        assert_eq!((spread.count, spread.p50, spread.p95, spread.max), (100, 50.0, 95.0, 99.0));
    }
}
