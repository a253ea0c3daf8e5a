//! The replay of detection: messages are understood again, and what follows from them is held against opt-outs.
//!
//! A record follows from its message and the rules alone, but for `changed_state`. Whether it was written depends on what
//! stood then: nothing is written that something outranks. So a record that is there must be as it follows; one that is
//! not there must be outranked; and one that names a message from which it does not follow is a difference.

use super::parts::{Part, asked_for};
use super::tell::{Difference, Kind, Summary, Teller};
use super::{Options, SAMPLES, history, joined};
use crate::config::Config;
use crate::domain::consent::{ConsentState, Position};
use crate::domain::history::History;
use crate::domain::key::ConsentKey;
use crate::record::Record;
use crate::run::progress;
use crate::run::readers::{Extent, Readers, Trouble};
use crate::run::stop::Stop;
use crate::stage::detect::conversation::NARROWED_RULE;
use crate::stage::detect::{Consent, DetectRules, Detector};
use crate::wire::consent::decode_key;
use crate::wire::proto;
use parking_lot::Mutex;
use prost::Message;
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::io::Write;

use std::thread;
use std::time::Instant;

/// Where a message lies: topic, partition, offset, index within its body.
type Place = (usize, u32, u64, u32);

/// A record of opt-outs that names a message of the range.
struct Written {
    key: ConsentKey,
    position: Position,
    value: Box<[u8]>,
}

/// What opt-outs says.
struct OptOuts {
    history: History,
    written: Mutex<HashMap<Place, Vec<Written>>>,
    /// Opt-ins by key and message: a provider delivers one twice, and the second does nothing.
    opted_in_by: HashSet<(ConsentKey, String)>,
}

/// What is looked at.
struct Plan {
    config: Config,
    inputs: Vec<Extent>,
    committed: Vec<Vec<Option<u64>>>,
    detector: Detector,
    what_if: Option<Detector>,
    opt_outs: OptOuts,
    stop: Stop,
}

/// The rules of detection that a configuration means.
pub(super) fn rules(config: &Config) -> Result<DetectRules, Trouble> {
    crate::run::detect::rules(config).map_err(|error| Trouble::Asked(error.to_string()))
}

/// Replays detection. `what_if`: also under these rules, telling what would change.
pub fn detect(
    config: Config,
    what_if: Option<&Config>,
    options: &Options,
    out: &mut (dyn Write + Send),
    stop: &Stop,
) -> Result<Summary, Trouble> {
    let began = Instant::now();
    if options.ids.is_some() {
        return Err(Trouble::Asked("--ids names sends: messages are found by --offsets, --since and --until".to_owned()));
    }
    let readers = Readers::new(&config)?;
    // First how far detection has come, then what it wrote: what it has committed has its records.
    let mut inputs = Vec::new();
    let mut committed = Vec::new();
    for (topic, _) in &config.inbound {
        let extent = readers.extent(topic)?;
        committed.push(readers.committed_of(&config.detect_group, &extent)?);
        inputs.push(extent);
    }
    let parts = asked_for(&inputs.iter().collect::<Vec<_>>(), options, &readers)?;
    let threads = thread::available_parallelism().map_or(2, usize::from);
    let extent = readers.extent(&config.topics.opt_outs)?;
    let opt_outs = OptOuts::read(&config, &extent, &parts, &readers, threads)?;
    let what_if = what_if.map(rules).transpose()?.map(Detector::new);
    let plan = Plan { detector: Detector::new(rules(&config)?), what_if, config, inputs, committed, opt_outs, stop: stop.clone() };
    let mut summary = Summary { stage: "detect", opt_outs: plan.opt_outs.history.len() as u64, ..Summary::default() };
    let teller = Teller::new(out, options.json);
    let bar = progress::bar("messages", Some(parts.iter().map(|part| part.to - part.from).sum()));
    let work: Mutex<VecDeque<Part>> = Mutex::new(parts.iter().copied().collect());
    let total = Mutex::new(Summary::default());
    thread::scope(|scope| {
        let walkers: Vec<_> = (0..threads.min(parts.len()))
            .map(|_| {
                scope.spawn(|| {
                    loop {
                        let Some(part) = work.lock().pop_front() else { return Ok(()) };
                        let walked = Walk { plan: &plan, part, teller: &teller, summary: Summary::default() }.run(&readers, &bar)?;
                        total.lock().add(walked);
                    }
                })
            })
            .collect();
        walkers.into_iter().try_for_each(joined)
    })?;
    summary.add(total.into_inner());
    // What names a message of the range from which nothing follows.
    let mut left: Vec<_> = std::mem::take(&mut *plan.opt_outs.written.lock()).into_iter().collect();
    left.sort_unstable_by_key(|(place, _)| *place);
    for (place, written) in left {
        let is_undecided = plan.is_undecided(place.0, place.1, place.2);
        for written in written.into_iter().filter(|written| !is_undecided && !written.rests_on_what_stood()) {
            teller.tell(&mut summary, &Difference::of(Kind::Unexpected).source(plan.source(place)).at(plan.at(written.position)))?;
        }
    }
    bar.finish_and_clear();
    summary.seconds = began.elapsed().as_secs_f64();
    summary.records_per_second = (summary.records as f64 / summary.seconds.max(1e-9)) as u64;
    teller.summarize(&summary)?;
    Ok(summary)
}

impl OptOuts {
    fn read(config: &Config, extent: &Extent, parts: &[Part], readers: &Readers, threads: usize) -> Result<Self, Trouble> {
        let history = history(config, extent, readers, threads)?;
        let topics: BTreeMap<&str, usize> = (0..).zip(&config.inbound).map(|(number, (topic, _))| (&**topic, number)).collect();
        let found = Mutex::new((HashMap::<Place, Vec<Written>>::new(), HashSet::new()));
        readers.for_each(extent, threads, &|record| {
            let Some(value) = record.value else { return };
            let Ok(key) = decode_key(record.key.unwrap_or_default(), &config.businesses) else { return };
            let Ok(consent) = proto::ConsentRecord::decode(value) else { return };
            let Some(evidence) = &consent.evidence else { return };
            let Some(source) = &evidence.source else { return };
            let (written, opted_in_by) = &mut *found.lock();
            if consent.state() == proto::ConsentState::OptedIn && !evidence.provider_message_id.is_empty() {
                opted_in_by.insert((key.clone(), evidence.provider_message_id.clone()));
            }
            let Some(topic) = topics.get(source.topic.as_str()).copied() else { return };
            let asked = |part: &Part| part.topic == topic && part.partition == source.partition && (part.from..part.to).contains(&source.offset);
            if parts.iter().any(asked) {
                let position = Position { partition: record.partition, offset: record.offset };
                let place = (topic, source.partition, source.offset, source.index);
                written.entry(place).or_default().push(Written { key, position, value: value.into() });
            }
        })?;
        let (written, opted_in_by) = found.into_inner();
        Ok(Self { history, written: Mutex::new(written), opted_in_by })
    }

    /// Why nothing was written for an act, if there is a reason.
    fn excuses(&self, consent: &Consent) -> bool {
        let id = consent.record.evidence.as_ref().map(|evidence| evidence.provider_message_id.clone()).unwrap_or_default();
        let again = consent.act.state == ConsentState::OptedIn && self.opted_in_by.contains(&(consent.key.clone(), id));
        again || self.history.outranks(&consent.key, &consent.act)
    }
}

impl Written {
    /// It follows from a change of identity or from an answer, and so from what stood then.
    fn rests_on_what_stood(&self) -> bool {
        let Ok(consent) = proto::ConsentRecord::decode(&*self.value) else { return false };
        let narrowed = consent.evidence.as_ref().is_some_and(|evidence| evidence.rule == NARROWED_RULE);
        narrowed || consent.cause() == proto::ConsentCause::IdentityChange
    }
}

impl Plan {
    fn is_undecided(&self, topic: usize, partition: u32, offset: u64) -> bool {
        let committed = self.committed.get(topic).and_then(|committed| committed.get(partition as usize)).copied().flatten();
        committed.is_none_or(|committed| offset >= committed)
    }

    fn source(&self, (topic, partition, offset, index): Place) -> String {
        let body = if index > 0 { format!(" message {index}") } else { String::new() };
        format!("{}-{partition}@{offset}{body}", self.inputs[topic].topic)
    }

    fn at(&self, position: Position) -> String {
        format!("{}-{position}", self.config.topics.opt_outs)
    }
}

/// One part of the input.
struct Walk<'p> {
    plan: &'p Plan,
    part: Part,
    teller: &'p Teller<'p>,
    summary: Summary,
}

impl Walk<'_> {
    fn run(mut self, readers: &Readers, bar: &indicatif::ProgressBar) -> Result<Summary, Trouble> {
        let Part { topic, partition, from, to } = self.part;
        let input = &self.plan.inputs[topic];
        let mut reader = readers.read(&input.topic, &[crate::kafka::range::Span { partition, from, to }])?;
        let mut cursor = reader.cursor()?;
        while let Some(received) = cursor.next()? {
            let offset = received.offset();
            if offset.is_multiple_of(1024) && self.plan.stop.is_asked() {
                let resume = Part { from: offset, ..self.part }.name(&input.topic, self.plan.inputs.len());
                self.summary.resume.push(resume);
                return Ok(self.summary);
            }
            if self.plan.is_undecided(topic, partition, offset) {
                self.summary.undecided += to - offset;
                break;
            }
            let mut headers = Vec::new();
            received.headers(&mut headers);
            self.message(&received.record(&headers))?;
            bar.inc(1);
        }
        Ok(self.summary)
    }

    fn message(&mut self, record: &Record<'_>) -> Result<(), Trouble> {
        self.summary.records += 1;
        let before = self.summary.differences();
        let read = self.plan.detector.read(record);
        for finding in &read.findings {
            let place = (self.part.topic, record.partition, record.offset, finding.index());
            let mut written = self.plan.opt_outs.written.lock().remove(&place).unwrap_or_default();
            // What rests on what stood then is left alone.
            let Some(expected) = finding.expected(self.plan.detector.rules()) else { continue };
            for consent in expected {
                let (of_key, others) = written.into_iter().partition(|written| written.key == consent.key);
                written = others;
                self.compare(place, &consent, of_key)?;
            }
            for written in written.into_iter().filter(|written| !written.rests_on_what_stood()) {
                self.tell(Difference::of(Kind::Unexpected).source(self.plan.source(place)).at(self.plan.at(written.position)))?;
            }
        }
        self.summary.same += u64::from(self.summary.differences() == before);
        if let Some(other) = &self.plan.what_if {
            let then = other.read(record);
            let changes = changes(&asked(&read.findings, self.plan.detector.rules()), &asked(&then.findings, other.rules()));
            for (index, change) in changes {
                let place = (self.part.topic, record.partition, record.offset, index);
                let count = self.summary.changes.entry(change.clone()).or_default();
                *count += 1;
                if *count <= SAMPLES {
                    self.tell(Difference::of(Kind::WhatIf).source(self.plan.source(place)).detail(change))?;
                }
            }
        }
        Ok(())
    }

    fn compare(&mut self, place: Place, consent: &Consent, written: Vec<Written>) -> Result<(), Trouble> {
        if written.is_empty() {
            if self.plan.opt_outs.excuses(consent) {
                return Ok(());
            }
            // Compaction keeps the last record of a key: an earlier one may have been there.
            if self.plan.opt_outs.history.has_hole() {
                self.summary.unprovable += 1;
                return Ok(());
            }
            return self.tell(Difference::of(Kind::Missing).source(self.plan.source(place)).expected(shown(consent)));
        }
        // One that recurs after a crash is the same again.
        for written in written {
            let record = proto::ConsentRecord::decode(&*written.value).unwrap_or_default();
            let version = record.evidence.as_ref().map(|evidence| evidence.rules_version.clone()).unwrap_or_default();
            let ours = self.plan.detector.rules().rules_version.clone();
            let differing = fields(&consent.record, &record, version == ours);
            if version != ours {
                *self.summary.other_rules.entry(version).or_default() += 1;
            }
            if !differing.is_empty() {
                let changed = Difference::of(Kind::Changed).source(self.plan.source(place)).at(self.plan.at(written.position));
                self.tell(changed.detail(differing.join(", ")))?;
            }
        }
        Ok(())
    }

    fn tell(&mut self, difference: Difference) -> Result<(), Trouble> {
        Ok(self.teller.tell(&mut self.summary, &difference)?)
    }
}

fn shown(consent: &Consent) -> String {
    let rule = consent.record.evidence.as_ref().map(|evidence| evidence.rule.as_str()).unwrap_or_default();
    format!("{} by {rule}", consent.act.state.as_str())
}

/// Which parts of a record are not as they follow from its message. Under other rules only what they cannot change counts.
fn fields(expected: &proto::ConsentRecord, found: &proto::ConsentRecord, same_rules: bool) -> Vec<&'static str> {
    let (theirs, ours) = (found.evidence.clone().unwrap_or_default(), expected.evidence.clone().unwrap_or_default());
    let always = [
        ("occurred_at", expected.occurred_at_ms == found.occurred_at_ms),
        ("message_id", ours.provider_message_id == theirs.provider_message_id),
        ("receiving_number", ours.receiving_number == theirs.receiving_number),
        ("recorded_at", ours.recorded_at_ms == theirs.recorded_at_ms),
    ];
    let by_rules = [
        ("state", expected.state == found.state),
        ("cause", expected.cause == found.cause),
        ("rule", ours.rule == theirs.rule),
        ("span", (ours.span_start, ours.span_end) == (theirs.span_start, theirs.span_end)),
        ("lexicon_version", ours.lexicon_version == theirs.lexicon_version),
        ("excerpt", ours.excerpt == theirs.excerpt),
        ("identity", ours.raw_identity == theirs.raw_identity),
        ("language", ours.language == theirs.language),
        ("confidence", ours.confidence == theirs.confidence),
    ];
    let by_rules = by_rules.into_iter().filter(|_| same_rules);
    always.into_iter().chain(by_rules).filter(|(_, same)| !same).map(|(name, _)| name).collect()
}

/// What each message of a body asks for, by its index: state and subject, and the rule that says so.
fn asked(findings: &[crate::stage::detect::Finding], rules: &DetectRules) -> BTreeMap<u32, (String, String)> {
    let of = |finding: &crate::stage::detect::Finding| {
        let consents = finding.expected(rules)?;
        let first = consents.first()?;
        let rule = first.record.evidence.as_ref().map(|evidence| evidence.rule.clone()).unwrap_or_default();
        Some((finding.index(), (format!("{} of {}", first.act.state.as_str(), first.key.subject), rule)))
    };
    findings.iter().filter_map(of).collect()
}

fn changes(now: &BTreeMap<u32, (String, String)>, then: &BTreeMap<u32, (String, String)>) -> Vec<(u32, String)> {
    let indices: std::collections::BTreeSet<u32> = now.keys().chain(then.keys()).copied().collect();
    let shown = |asked: Option<&(String, String)>| asked.map_or("nothing".to_owned(), |(what, rule)| format!("{what} by {rule}"));
    let differ = |index: &u32| now.get(index).map(|(what, _)| what) != then.get(index).map(|(what, _)| what);
    indices.into_iter().filter(differ).map(|index| (index, format!("{} → {}", shown(now.get(&index)), shown(then.get(&index))))).collect()
}
