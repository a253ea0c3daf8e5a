//! `stopgate replay`: decide again what was decided, and compare.
//!
//! The stages' own functions run over old records, at the positions that the decision blocks name, and a reader stands
//! where they have a producer: nothing here can write. For each partition of sends, in parallel, the input, its decision
//! blocks and its outcomes are walked in lockstep, so replay is the check of completeness too: what is missing, doubled,
//! out of order or changed is a difference.
//!
//! Memory: about a hundred bytes for each record of opt-outs ([`crate::domain::history`]), the dead letters, and a window
//! of each partition that is being walked.
//!
//! Order of the questions, by which a running stage is replayed without false alarms: first the ends up to which the
//! outcomes are final, then the end of the decision blocks, then the ends of the outcomes. So whatever is final has its
//! block among those that are read, and whatever has a block has its outcomes.

mod align;
mod detect;
mod guided;
mod imagined;
mod parts;
mod tell;
mod walk;

pub use detect::detect;
pub use parts::OffsetRange;
pub use tell::{Difference, Kind, Summary};

use super::readers::{Extent, Readers, Trouble};
use super::stop::Stop;
use super::words;
use super::{filter as filter_stage, progress};
use crate::config::{Config, SendsOutput};
use crate::domain::consent::Position;
use crate::domain::history::{History, HistoryBuilder};
use crate::domain::suppression::PrintKey;
use crate::domain::time::Timestamp;
use crate::record::{Record, TopicName};
use crate::stage::filter::FilterRules;
use crate::wire::consent::{ConsentChange, decode_key, decode_value, encode_key};
use align::{Digest, DigestKey};
use guided::GuidanceHistory;
use indicatif::ProgressBar;
use parking_lot::Mutex;
use parts::Part;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::io::Write;
use std::thread;
use std::time::Instant;
use tell::Teller;
use walk::Walk;

/// A walk reads four logs in turn and mostly waits for one of them: more of them than cores keep the cores at work.
const WALKERS_A_CORE: usize = 4;

/// Samples that are told of each change of a what-if, by part of the input.
const SAMPLES: u64 = 20;

/// What is to be replayed.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Empty: everything.
    pub offsets: Vec<OffsetRange>,
    /// Records of this Kafka time or later.
    pub since: Option<Timestamp>,
    /// Records before this Kafka time.
    pub until: Option<Timestamp>,
    /// Only sends with these ids.
    pub ids: Option<BTreeSet<String>>,
    pub json: bool,
}

impl Options {
    fn is_part(&self) -> bool {
        !self.offsets.is_empty() || self.since.is_some() || self.until.is_some()
    }
}

/// A sends topic, its outcomes, and how far its filter has come.
struct SendsTopics {
    input: Extent,
    allowed: Extent,
    suppressed: Extent,
    committed: Vec<Option<u64>>,
}

/// What is replayed, against what.
struct Plan {
    config: Config,
    rules: FilterRules,
    rules_version: String,
    opt_outs: Extent,
    decisions: Extent,
    topics: Vec<SendsTopics>,
    digests: DigestKey,
    ids: Option<BTreeSet<String>>,
    ids_found: Mutex<BTreeSet<String>>,
    /// Where guidance is on: what was known of recipients.
    guidance: Option<(GuidanceHistory, u16)>,
    stop: Stop,
}

impl Plan {
    /// Whether this send is one of those that were asked for.
    fn selects(&self, sends: &SendsOutput, record: &Record<'_>) -> bool {
        let Some(ids) = &self.ids else { return true };
        let found = sends.input.decoder.labels(record).id.filter(|id| ids.contains(&**id));
        found.is_some_and(|id| {
            self.ids_found.lock().insert(id.into_owned());
            true
        })
    }

    /// A part as `--offsets` takes it.
    fn name_of(&self, part: Part) -> String {
        part.name(&self.topics[part.topic].input.topic, self.topics.len())
    }
}

/// A dead letter of the filter.
struct Dead {
    at: String,
    reason: String,
    /// The original's; `None` where the original was too large to be kept.
    digest: Option<Digest>,
}

type DeadLetters = BTreeMap<(TopicName, u32), BTreeMap<u64, Vec<Dead>>>;

/// How far the walks have come.
struct Progress<'b> {
    bar: &'b ProgressBar,
    at: Mutex<BTreeMap<(usize, u32, u64), u64>>,
}

impl Progress<'_> {
    fn at(&self, part: Part, offset: u64) {
        let mut at = self.at.lock();
        let before = at.insert((part.topic, part.partition, part.from), offset).unwrap_or(part.from);
        self.bar.inc(offset.saturating_sub(before));
    }
}

/// Replays the filter. What differs is told to `out` as it is met, and a summary at the end. `what_if`: every send is also
/// decided under these rules, and what would change is counted and sampled.
pub fn filter(
    config: Config,
    what_if: Option<&Config>,
    options: &Options,
    out: &mut (dyn Write + Send),
    stop: &Stop,
) -> Result<Summary, Trouble> {
    let began = Instant::now();
    let readers = Readers::new(&config)?;
    let mut plan = plan(config, options, &readers, stop)?;
    let inputs: Vec<&Extent> = plan.topics.iter().map(|topics| &topics.input).collect();
    let parts = parts::asked_for(&inputs, options, &readers)?;
    let threads = thread::available_parallelism().map_or(2, usize::from);
    let history = history(&plan.config, &plan.opt_outs, &readers, threads)?;
    if let Some(rules) = plan.config.guidance {
        let extent = readers.extent(&plan.config.topics.guidance)?;
        plan.guidance = Some((GuidanceHistory::read(&plan.config, &extent, history.print_key(), &readers, threads)?, rules.gap_days));
    }
    let plan = plan;
    // Another list of businesses is another reading of the same records; other words or policies would have written others.
    let what_if = match what_if {
        None => None,
        Some(then) if imagined::differs(&plan.config, then)? => {
            Some((filter_stage::rules(then), imagined::history(then, &plan.opt_outs, &readers, threads)?))
        }
        Some(then) => Some((filter_stage::rules(then), self::history(then, &plan.opt_outs, &readers, threads)?)),
    };
    let mut dead = dead_letters(&plan, &readers)?;
    let teller = Teller::new(out, options.json);
    let bar = progress::bar("sends", Some(parts.iter().map(|part| part.to - part.from).sum()));
    let progress = Progress { bar: &bar, at: Mutex::default() };
    let mut summary = Summary { stage: "filter", opt_outs: history.len() as u64, ..Summary::default() };
    let work: Mutex<VecDeque<_>> = Mutex::new(
        parts
            .iter()
            .map(|part| {
                let key = (plan.topics[part.topic].input.topic.clone(), part.partition);
                let dead = dead.get_mut(&key).map(|dead| take_range(dead, part.from, part.to)).unwrap_or_default();
                (*part, dead)
            })
            .collect(),
    );
    let total = Mutex::new(Summary::default());
    thread::scope(|scope| {
        let walkers: Vec<_> = (0..(threads * WALKERS_A_CORE).min(parts.len()))
            .map(|_| {
                scope.spawn(|| {
                    loop {
                        let Some((part, dead)) = work.lock().pop_front() else { return Ok(()) };
                        let walked = match stop.is_asked() {
                            true => Summary { resume: vec![plan.name_of(part)], ..Summary::default() },
                            false => Walk::new(&plan, part, &history, what_if.as_ref(), &teller, dead).run(&readers, &progress)?,
                        };
                        total.lock().add(walked);
                    }
                })
            })
            .collect();
        walkers.into_iter().try_for_each(joined)
    })?;
    summary.add(total.into_inner());
    if let Some(ids) = &plan.ids {
        let found = plan.ids_found.lock();
        for id in ids.difference(&found) {
            let number = ids.iter().position(|known| known == id).unwrap_or_default() + 1;
            teller.tell(&mut summary, &Difference::of(Kind::NotFound).detail(format!("id {number} of the sorted list")))?;
        }
    }
    drop(progress);
    bar.finish_and_clear();
    summary.seconds = began.elapsed().as_secs_f64();
    summary.records_per_second = (summary.records as f64 / summary.seconds.max(1e-9)) as u64;
    teller.summarize(&summary)?;
    Ok(summary)
}

fn joined(walker: thread::ScopedJoinHandle<'_, Result<(), Trouble>>) -> Result<(), Trouble> {
    match walker.join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

fn take_range(dead: &mut BTreeMap<u64, Vec<Dead>>, from: u64, to: u64) -> BTreeMap<u64, Vec<Dead>> {
    let mut taken = dead.split_off(&from);
    dead.append(&mut taken.split_off(&to));
    taken
}

fn plan(config: Config, options: &Options, readers: &Readers, stop: &Stop) -> Result<Plan, Trouble> {
    let lexicon = words::load(config.lexicon_dir.as_deref()).map_err(|error| Trouble::Asked(error.to_string()))?;
    let rules = filter_stage::rules(&config);
    // First the outcomes' stable ends, then the blocks' end, then everything else (see the head of this file).
    let outcomes: Vec<(Extent, Extent)> = config
        .sends
        .iter()
        .map(|sends| Ok((readers.extent(&sends.allowed)?, readers.extent(&sends.suppressed)?)))
        .collect::<Result<_, Trouble>>()?;
    let decisions = readers.extent(&config.topics.decisions)?;
    let mut topics = Vec::new();
    for (sends, (mut allowed, mut suppressed)) in config.sends.iter().zip(outcomes) {
        readers.extend(&mut allowed)?;
        readers.extend(&mut suppressed)?;
        let input = readers.extent(&sends.input.name)?;
        for output in [&allowed, &suppressed] {
            if output.partitions() != input.partitions() {
                return Err(Trouble::Asked(format!(
                    "{} has {} partitions and {} has {}: outcomes cannot be walked beside their sends",
                    output.topic,
                    output.partitions(),
                    input.topic,
                    input.partitions()
                )));
            }
        }
        let committed = readers.committed(&input);
        topics.push(SendsTopics { input, allowed, suppressed, committed });
    }
    let mut opt_outs = readers.extent(&config.topics.opt_outs)?;
    readers.identify(&mut opt_outs);
    let random = RandomState::new();
    Ok(Plan {
        rules,
        rules_version: config.rules_version(lexicon.version()),
        opt_outs,
        decisions,
        topics,
        digests: DigestKey(random.hash_one("digest"), random.hash_one("key")),
        ids: options.ids.clone(),
        ids_found: Mutex::default(),
        guidance: None,
        stop: stop.clone(),
        config,
    })
}

/// A history to be filled.
fn open_history(config: &Config, opt_outs: &Extent) -> HistoryBuilder {
    let random = RandomState::new();
    let print_key = PrintKey::new(random.hash_one("print"), random.hash_one("key")).with_identities(config.identity_key);
    HistoryBuilder::new(print_key, opt_outs.partitions())
}

/// Every act of the opt-outs topic.
fn history(config: &Config, opt_outs: &Extent, readers: &Readers, threads: usize) -> Result<History, Trouble> {
    let builder = Mutex::new(open_history(config, opt_outs));
    let bar = progress::bar("opt-outs", Some(opt_outs.spans().iter().map(|span| span.to - span.from).sum()));
    readers.for_each(opt_outs, threads, &|record| {
        bar.inc(1);
        let at = Position { partition: record.partition, offset: record.offset };
        let key_bytes = record.key.unwrap_or_default();
        let read = decode_key(key_bytes, &config.businesses).ok().map(|key| (decode_value(record.value, record.timestamp_ms, at), key));
        let mut builder = builder.lock();
        builder.see(at);
        match read {
            // Nobody can be looked up under it: no filter decided past it before an operator had acknowledged it.
            None => {}
            Some((ConsentChange::Act { act, .. } | ConsentChange::Unreadable(act), key)) => builder.add(&key, at, Some(act)),
            // The tombstone of an alias erases that alias alone.
            Some((ConsentChange::Erasure, key)) if encode_key(&key).as_bytes() == key_bytes => builder.add(&key, at, None),
            Some((ConsentChange::Erasure, _)) => {}
        }
    })?;
    bar.finish_and_clear();
    Ok(builder.into_inner().finish())
}

/// The filter's dead letters, by the record that each was.
fn dead_letters(plan: &Plan, readers: &Readers) -> Result<DeadLetters, Trouble> {
    let extent = readers.extent(&plan.config.topics.dead_letters)?;
    let mut dead = DeadLetters::new();
    let mut reader = readers.read(&extent.topic, &extent.spans())?;
    let mut cursor = reader.cursor()?;
    while let Some(received) = cursor.next()? {
        let mut headers = Vec::new();
        received.headers(&mut headers);
        let record = received.record(&headers);
        if record.header("stopgate-stage") != Some(b"filter") {
            continue;
        }
        let text = |name| record.header(name).and_then(|value| std::str::from_utf8(value).ok());
        let source = text("stopgate-source").and_then(|source| source.rsplit_once('@')).and_then(|(place, offset)| {
            let (topic, partition) = place.rsplit_once('-')?;
            Some((topic, partition.parse().ok()?, offset.parse().ok()?))
        });
        let Some((topic, partition, offset)) = source else { continue };
        let letter = Dead {
            at: record.coordinates().to_string(),
            reason: text("stopgate-reason").unwrap_or_default().to_owned(),
            digest: plan.digests.of_dead(&record, received.has_append_time()),
        };
        dead.entry((topic.into(), partition)).or_default().entry(offset).or_default().push(letter);
    }
    Ok(dead)
}

/// Whether part of what was asked for could not be looked at, and what is gone.
pub fn gone(options: &Options, summary: &Summary) -> Option<String> {
    if !options.is_part() || summary.gone.is_empty() {
        return None;
    }
    let gone = summary.gone.iter().map(|(what, count)| format!("{count} {what}"));
    Some(format!("of the range that was asked for, {} are gone by retention", gone.collect::<Vec<_>>().join(" and ")))
}

#[cfg(test)]
mod tests {
    /// It cannot write: nothing under this directory knows how.
    #[test]
    fn no_part_of_replay_knows_a_producer() {
        let own = include_str!("mod.rs").split("#[cfg(test)]").next().unwrap_or_default();
        for source in [
            own,
            include_str!("walk.rs"),
            include_str!("detect.rs"),
            include_str!("imagined.rs"),
            include_str!("parts.rs"),
            include_str!("align.rs"),
            include_str!("tell.rs"),
            include_str!("../readers.rs"),
        ] {
            assert!(!source.contains("::producer") && !source.contains("Producer"), "a producer is named");
        }
    }
}
