//! One partition of sends, walked in lockstep with its decision blocks and its outcomes.

use super::SAMPLES;
use super::align::{Aligned, Aligner, Digest, DigestKey, HasDigest};
use super::parts::Part;
use super::tell::{Difference, Kind, Summary, Teller};
use super::{Dead, Plan, Progress};
use crate::config::SendsOutput;
use crate::domain::consent::Position;
use crate::domain::decide::{AllowReason, Decision, SuppressReason};
use crate::domain::guidance::Occasion;
use crate::domain::history::History;
use crate::domain::time::Timestamp;
use crate::kafka::group::Received;
use crate::kafka::range::{Cursor, RangeReader, Span};
use crate::record::{Coordinates, Header, Record, TopicPartition};
use crate::run::readers::{Extent, Readers, Trouble};
use crate::stage::filter::{Filter, FilterRules, GUIDANCE_HEADER, Outcome, Prepared, Tally, allowed_header, as_of_text, suppressed_headers};
use crate::wire::partition::partition_for;
use crate::wire::{DecodeError, proto};
use prost::Message;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

/// Outcomes of sends that lie out of the order of time by no more than this are found where a range begins.
const SLACK_MS: i64 = 60 * 60 * 1000;
/// Sends whose digests are remembered, to tell whose the doubled outcome is.
const REMEMBERED: usize = 4096;

/// A decision block as replay needs it.
pub(super) struct Block {
    first: u64,
    end: u64,
    as_of: Vec<u64>,
    as_of_text: String,
    guidance_as_of: Vec<u64>,
    rules_version: String,
    held_until: Option<Timestamp>,
    counts: Vec<(&'static str, String, u64)>,
    position: Coordinates,
}

/// The blocks of one partition of sends, in order.
struct Blocks<'r> {
    cursor: Option<Cursor<'r>>,
    key: Vec<u8>,
    opt_outs: &'r Extent,
    /// Decided without the view: the positions say nothing.
    exempt_only: bool,
}

impl Blocks<'_> {
    fn next(&mut self) -> Result<Option<Block>, Trouble> {
        let Some(cursor) = &mut self.cursor else { return Ok(None) };
        while let Some(received) = cursor.next()? {
            let record = received.record(&[]);
            if record.key != Some(&self.key) {
                continue;
            }
            let position = record.coordinates();
            let block = proto::DecisionBlock::decode(record.value.unwrap_or_default())
                .map_err(|_| Trouble::Asked(format!("{position} is no decision block")))?;
            return self.checked(block, position).map(Some);
        }
        Ok(None)
    }

    /// Positions mean something in the topic that they were taken from, and in no other.
    fn checked(&self, block: proto::DecisionBlock, position: Coordinates) -> Result<Block, Trouble> {
        let topic = &self.opt_outs.topic;
        if let Some(id) = self.opt_outs.id.as_deref().filter(|id| !block.opt_outs_topic_id.is_empty() && *id != block.opt_outs_topic_id) {
            return Err(Trouble::Asked(format!(
                "the decision block {position} was decided on topic {} (id), and {topic} is topic {id} now: it was deleted and created again, \
                 so the recorded positions mean nothing in it",
                block.opt_outs_topic_id
            )));
        }
        if block.as_of.len() != self.opt_outs.ends.len() && !self.exempt_only {
            return Err(Trouble::Asked(format!(
                "the decision block {position} knows {} partitions of {topic}, which has {} now: its positions cannot be looked up",
                block.as_of.len(),
                self.opt_outs.ends.len()
            )));
        }
        let beyond = (0..).zip(block.as_of.iter().zip(&self.opt_outs.ends)).find(|(_, (at, end))| at > end);
        if let Some((partition, (at, end))) = beyond {
            return Err(Trouble::Asked(format!(
                "the decision block {position} was decided at {topic}-{partition}@{at}, and that log ends at {end}: it was truncated or created again"
            )));
        }
        let columns = [("allowed", block.allowed), ("suppressed", block.suppressed), ("dead-letter", block.dead_letters)];
        let mut counts: Vec<_> = columns
            .into_iter()
            .flat_map(|(column, counts)| counts.into_iter().map(move |counted| (column, counted.reason, counted.count)))
            .collect();
        counts.sort();
        Ok(Block {
            first: block.first_offset,
            end: block.end_offset,
            as_of_text: as_of_text(&block.as_of),
            as_of: block.as_of,
            guidance_as_of: block.guidance_as_of,
            rules_version: block.rules_version,
            held_until: Some(block.expired_as_of_ms).filter(|&millis| millis != 0).and_then(Timestamp::from_millis),
            counts,
            position,
        })
    }
}

/// A send that waits for its outcome on the allowed topic.
struct Waiting {
    offset: u64,
    digest: Digest,
    /// What it was decided, and under which block; `None` where no block covers it.
    decided: Option<(Outcome, Rc<Block>)>,
    /// What was decided cannot be held against what is found.
    unprovable: bool,
    /// Where it was decided with guidance: which.
    guidance: Option<Option<Occasion>>,
    selected: bool,
}

impl HasDigest for Waiting {
    fn digest(&self) -> &Digest {
        &self.digest
    }
}

/// A record of the allowed topic.
struct FoundAllowed {
    offset: u64,
    digest: Digest,
    evidence: Option<String>,
    guidance: Option<String>,
}

impl HasDigest for FoundAllowed {
    fn digest(&self) -> &Digest {
        &self.digest
    }
}

/// A record of the suppressed topic.
struct FoundSuppressed {
    offset: u64,
    /// The send's offset, by its own account.
    source: Option<u64>,
    digest: Digest,
    /// Reason and cause, for people.
    shown: String,
    cause: Option<Position>,
}

/// Walks one part. What is found is told as it is met.
pub(super) struct Walk<'a> {
    plan: &'a Plan,
    part: Part,
    sends: &'a SendsOutput,
    input: &'a Extent,
    allowed: &'a Extent,
    suppressed: &'a Extent,
    teller: &'a Teller<'a>,
    filter: Filter,
    history: &'a History,
    /// The same under other rules.
    what_if: Option<(Filter, &'a History)>,
    summary: Summary,
    dead: BTreeMap<u64, Vec<Dead>>,
    /// Digests of the last sends as they came in.
    recent: VecDeque<(u64, Digest)>,
    /// Sends that lack an outcome: told at the end, unless it turns up out of its place.
    missing: Vec<(u64, Digest, Option<String>)>,
    /// Something in the current block differs, or cannot be told: its counts would only say so again.
    unclean: bool,
}

/// An outcome without what it rests on.
fn word(outcome: Outcome) -> String {
    match outcome {
        Outcome::Decided(Decision::Allowed(reason)) => format!("allowed ({})", reason.as_str()),
        Outcome::Decided(Decision::Suppressed { reason, .. }) => format!("suppressed ({})", reason.as_str()),
        Outcome::DeadLetter(error) => format!("dead letter ({})", error.as_str()),
    }
}

/// The readers of one walk.
struct Streams {
    input: RangeReader,
    blocks: Option<RangeReader>,
}

impl<'a> Walk<'a> {
    pub(super) fn new(
        plan: &'a Plan,
        part: Part,
        history: &'a History,
        what_if: Option<&'a (FilterRules, History)>,
        teller: &'a Teller<'a>,
        dead: BTreeMap<u64, Vec<Dead>>,
    ) -> Self {
        let topics = &plan.topics[part.topic];
        Self {
            plan,
            part,
            sends: &plan.config.sends[part.topic],
            input: &topics.input,
            allowed: &topics.allowed,
            suppressed: &topics.suppressed,
            teller,
            filter: Filter::new(plan.rules.clone(), history.print_key()),
            history,
            what_if: what_if.map(|(rules, history)| (Filter::new(rules.clone(), history.print_key()), history)),
            summary: Summary::default(),
            dead,
            recent: VecDeque::new(),
            missing: Vec::new(),
            unclean: false,
        }
    }

    /// To the end of the part, or until the process is asked to stop; then the summary says where to go on.
    pub(super) fn run(mut self, readers: &Readers, progress: &Progress<'_>) -> Result<Summary, Trouble> {
        let Part { partition, from, to, .. } = self.part;
        let key = format!("{}-{partition}", self.input.topic).into_bytes();
        let decisions = &self.plan.decisions;
        let of_blocks = partition_for(&key, decisions.partitions());
        let blocks_span = Span { partition: of_blocks, from: decisions.beginning(of_blocks), to: decisions.end(of_blocks) };
        let mut streams = Streams {
            input: readers.read(&self.input.topic, &[Span { partition, from, to }])?,
            blocks: Some(readers.read(&decisions.topic, &[blocks_span])?),
        };
        let cursor = streams.blocks.as_mut().map(RangeReader::cursor).transpose()?;
        let mut blocks = Blocks { cursor, key, opt_outs: &self.plan.opt_outs, exempt_only: self.sends.input.exempt_only };
        let mut input = streams.input.cursor()?;
        let Some(first) = input.next()? else { return Ok(self.summary) };
        let starts = self.starts(readers, first.record(&[]).timestamp_ms)?;
        let span = |extent: &Extent, from: u64| Span { partition, from, to: extent.end(partition) };
        let mut allowed_reader = readers.read(&self.allowed.topic, &[span(self.allowed, starts.0)])?;
        let mut suppressed_reader = readers.read(&self.suppressed.topic, &[span(self.suppressed, starts.1)])?;
        let mut allowed = allowed_reader.cursor()?;
        let mut suppressed = suppressed_reader.cursor()?;
        let begins_late = self.allowed.beginning(partition) > 0 && from == self.input.beginning(partition);
        let mut aligner = Aligner::new(from > 0, begins_late);
        let mut head = self.next_suppressed(&mut suppressed)?;
        // Outcomes of sends before the range, and those of the first sends where the log does not reach back.
        while head.as_ref().is_some_and(|found| found.source.is_some_and(|source| source < from)) {
            head = self.next_suppressed(&mut suppressed)?;
        }
        let suppressed_from = match self.suppressed.beginning(partition) {
            0 => 0,
            _ => head.as_ref().map_or(u64::MAX, |found| found.source.unwrap_or_default()),
        };
        let mut current: Option<Rc<Block>> = None;
        let mut tally = Tally::default();
        let mut decided_up_to: Option<u64> = None;
        let mut next_input = Some(first);
        let mut stopped = false;
        let mut allowed_ended = false;
        while let Some(received) = next_input {
            let offset = received.offset();
            if offset.is_multiple_of(1024) && self.plan.stop.is_asked() {
                stopped = true;
                break;
            }
            // The block of this send.
            let mut ahead = false;
            while current.as_ref().is_none_or(|block| block.end <= offset) {
                if let Some(ended) = current.take() {
                    self.check_counts(&ended, &std::mem::take(&mut tally))?;
                }
                let Some(block) = blocks.next()? else { break };
                self.check_tile(&block, &mut decided_up_to)?;
                self.unclean = block.first < from;
                current = Some(Rc::new(block));
            }
            if current.as_ref().is_some_and(|block| block.first > offset) {
                ahead = true;
            }
            if current.is_none() {
                let committed = self.plan.topics[self.part.topic].committed.get(partition as usize).copied().flatten();
                if committed.is_none_or(|committed| offset >= committed) {
                    self.summary.undecided += to - offset;
                    break;
                }
            }
            self.summary.records += 1;
            let block = current.clone().filter(|_| !ahead);
            let mut headers = Vec::new();
            received.headers(&mut headers);
            let record = received.record(&headers);
            let digest = self.plan.digests.of(record.key, record.value, record.headers, &[], record.timestamp_ms);
            if self.recent.len() == REMEMBERED {
                self.recent.pop_front();
            }
            self.recent.push_back((offset, digest));
            let selected = self.plan.selects(self.sends, &record);
            // Outcomes that lie behind: their sends had one already, or do not exist.
            while head.as_ref().is_some_and(|found| found.source.is_none_or(|source| source < offset)) {
                if let Some(found) = head.take() {
                    self.misplaced_suppressed(&found)?;
                }
                head = self.next_suppressed(&mut suppressed)?;
            }
            let found = match head.take_if(|found| found.source == Some(offset)) {
                Some(found) => {
                    head = self.next_suppressed(&mut suppressed)?;
                    Some(found)
                }
                None => None,
            };
            let dead = self.dead.remove(&offset);
            match block {
                Some(block) => {
                    let prepared = self.filter.prepare(&record);
                    let outcome = prepared.decide(&self.history.at(&block.as_of), block.held_until);
                    if block.rules_version != self.plan.rules_version {
                        *self.summary.other_rules.entry(block.rules_version.clone()).or_default() += 1;
                    }
                    if selected {
                        self.compare_what_if(&record, &block, outcome)?;
                    }
                    let seen = Seen { record: &record, digest, prepared: &prepared, outcome, selected };
                    let ended = match (found, dead) {
                        (Some(found), dead) => {
                            self.compare_suppressed(&seen, &block, &found)?;
                            for dead in dead.into_iter().flatten() {
                                self.doubled(offset, dead.at)?;
                            }
                            outcome
                        }
                        (None, Some(dead)) => self.compare_dead(&seen, dead)?,
                        (None, None) => {
                            let lost = suppressed_from > offset && matches!(outcome, Outcome::Decided(Decision::Suppressed { .. }));
                            if lost {
                                *self.summary.gone.entry("suppressed sends").or_default() += 1;
                                self.unclean = true;
                            } else {
                                let expected_allowed = matches!(outcome, Outcome::Decided(Decision::Allowed(_)));
                                let unprovable = !expected_allowed && self.unprovable(&prepared, &block, None);
                                let guidance = self.guidance(&prepared, outcome, &record, &block);
                                aligner.wait(Waiting { offset, digest, decided: Some((outcome, block)), unprovable, guidance, selected });
                            }
                            outcome
                        }
                    };
                    tally.count(ended);
                }
                None => {
                    *self.summary.gone.entry("decision blocks").or_default() += u64::from(self.blocks_are_gone(offset, decided_up_to));
                    if !self.blocks_are_gone(offset, decided_up_to) && selected {
                        let gap = Difference::of(Kind::Gap).source(self.source(offset));
                        self.tell(&gap)?;
                    }
                    if found.is_none() && dead.is_none() {
                        aligner.wait(Waiting { offset, digest, decided: None, unprovable: true, guidance: None, selected });
                    }
                }
            }
            while !allowed_ended && aligner.wants_outcomes() {
                allowed_ended = !self.find_allowed(&mut allowed, &mut aligner)?;
            }
            while let Some(aligned) = aligner.step(false, allowed_ended) {
                self.take_aligned(aligned, aligner.begins_late())?;
            }
            if offset.is_multiple_of(1024) {
                progress.at(self.part, offset);
            }
            next_input = input.next()?;
        }
        if stopped {
            let at = aligner.oldest().map(|waiting| waiting.offset).or_else(|| decided_up_to.filter(|_| current.is_none()));
            let at = at.unwrap_or_else(|| current.as_ref().map_or(from, |block| block.first.max(from)));
            self.summary.resume.push(self.plan.name_of(Part { from: at, ..self.part }));
            self.tell_missing()?;
            return Ok(self.summary);
        }
        self.finish(aligner, allowed, allowed_ended, &mut suppressed, head)?;
        while self.part.to >= self.input.end(partition) {
            let Some(block) = blocks.next()? else { break };
            self.check_tile(&block, &mut decided_up_to)?;
        }
        if let Some(block) = current.filter(|block| block.end <= to) {
            self.check_counts(&block, &tally)?;
        }
        progress.at(self.part, to);
        Ok(self.summary)
    }

    /// What an allowed send should say of guidance; `None` where it was decided without.
    fn guidance(&self, prepared: &Prepared, outcome: Outcome, record: &Record<'_>, block: &Block) -> Option<Option<Occasion>> {
        let (history, gap_days) = self.plan.guidance.as_ref().filter(|_| !block.guidance_as_of.is_empty())?;
        let Outcome::Decided(Decision::Allowed(reason)) = outcome else { return None };
        let opted_in = prepared.opted_in_at(outcome, &self.history.at(&block.as_of));
        let (send, sent_at) = (record.coordinates(), record.timestamp_ms.and_then(Timestamp::from_millis));
        let guided = prepared.guide(reason, sent_at, opted_in, *gap_days, |print| history.at(print, &send, &block.guidance_as_of));
        Some(guided.and_then(|guided| guided.occasion))
    }

    /// What the other rules would have decided at the same position.
    fn compare_what_if(&mut self, record: &Record<'_>, block: &Block, outcome: Outcome) -> Result<(), Trouble> {
        let Some((filter, history)) = &mut self.what_if else { return Ok(()) };
        let then = filter.prepare(record).decide(&history.at(&block.as_of), block.held_until);
        let (now, then) = (word(outcome), word(then));
        if now == then {
            return Ok(());
        }
        let change = format!("{now} → {then}");
        let count = self.summary.changes.entry(change.clone()).or_default();
        *count += 1;
        if *count <= SAMPLES {
            let sample = Difference::of(Kind::WhatIf).source(self.source(record.offset)).detail(change);
            self.teller.tell(&mut self.summary, &sample)?;
        }
        Ok(())
    }

    /// Everything that is left once the last send was seen.
    fn finish(
        &mut self,
        mut aligner: Aligner<Waiting, FoundAllowed>,
        mut allowed: Cursor<'_>,
        mut allowed_ended: bool,
        suppressed: &mut Cursor<'_>,
        mut head: Option<FoundSuppressed>,
    ) -> Result<(), Trouble> {
        let partition = self.part.partition;
        // A range that ends before the log does says nothing about what follows it.
        let whole = self.part.to >= self.input.end(partition);
        loop {
            match aligner.step(true, allowed_ended) {
                // Nobody waits any more: what lies behind the range, or is not final, says nothing.
                Some(Aligned::Extra(found)) if aligner.oldest().is_none() && (!whole || found.offset >= self.stable(self.allowed)) => {}
                Some(aligned) => self.take_aligned(aligned, aligner.begins_late())?,
                None if !allowed_ended && aligner.oldest().is_some() => allowed_ended = !self.find_allowed(&mut allowed, &mut aligner)?,
                None => break,
            }
        }
        if whole && !allowed_ended {
            // What lies above the stable end may be the outcome of a send whose block was not read.
            while let Some(found) = self.next_allowed(&mut allowed)?.filter(|found| found.offset < self.stable(self.allowed)) {
                self.misplaced_allowed(&found)?;
            }
        }
        while let Some(found) = head.take() {
            let behind = found.source.is_none_or(|source| source < self.part.to);
            if behind && found.offset < self.stable(self.suppressed) {
                self.misplaced_suppressed(&found)?;
            }
            if !behind {
                break;
            }
            head = self.next_suppressed(suppressed)?;
        }
        let (from, to) = (self.part.from, self.part.to);
        for (offset, dead) in std::mem::take(&mut self.dead) {
            for dead in dead.into_iter().filter(|_| (from..to).contains(&offset)) {
                self.tell(&Difference::of(Kind::Unexpected).source(self.source(offset)).at(dead.at))?;
            }
        }
        self.tell_missing()
    }

    fn tell_missing(&mut self) -> Result<(), Trouble> {
        for (offset, _, expected) in std::mem::take(&mut self.missing) {
            let mut missing = Difference::of(Kind::Missing).source(self.source(offset));
            missing.expected = expected;
            self.tell(&missing)?;
        }
        Ok(())
    }

    /// Where the outcomes of the first send can lie at the earliest.
    fn starts(&self, readers: &Readers, first_ms: Option<i64>) -> Result<(u64, u64), Trouble> {
        let partition = self.part.partition;
        let beginnings = (self.allowed.beginning(partition), self.suppressed.beginning(partition));
        let Some(time) = first_ms.filter(|_| self.part.from > self.input.beginning(partition)) else { return Ok(beginnings) };
        let at = |extent: &Extent, beginning: u64| {
            let offsets = readers.at_time(extent, time - SLACK_MS)?;
            Ok::<u64, Trouble>(offsets.get(partition as usize).copied().unwrap_or(beginning).max(beginning))
        };
        Ok((at(self.allowed, beginnings.0)?, at(self.suppressed, beginnings.1)?))
    }

    fn stable(&self, extent: &Extent) -> u64 {
        extent.stable.get(self.part.partition as usize).copied().unwrap_or_default()
    }

    fn source(&self, offset: u64) -> String {
        Coordinates { topic: self.input.topic.clone(), partition: self.part.partition, offset }.to_string()
    }

    fn place(&self, extent: &Extent, offset: u64) -> String {
        Coordinates { topic: extent.topic.clone(), partition: self.part.partition, offset }.to_string()
    }

    fn tell(&mut self, difference: &Difference) -> Result<(), Trouble> {
        self.unclean = true;
        Ok(self.teller.tell(&mut self.summary, difference)?)
    }

    /// Before the first block that the log still holds, blocks may have been.
    fn blocks_are_gone(&self, offset: u64, decided_up_to: Option<u64>) -> bool {
        let key: TopicPartition = (self.input.topic.clone(), self.part.partition);
        let of_blocks = partition_for(format!("{}-{}", key.0, key.1).as_bytes(), self.plan.decisions.partitions());
        self.plan.decisions.beginning(of_blocks) > 0 && decided_up_to.is_none_or(|up_to| offset < up_to)
    }

    fn check_tile(&mut self, block: &Block, decided_up_to: &mut Option<u64>) -> Result<(), Trouble> {
        self.summary.blocks += u64::from(block.end > self.part.from);
        if block.end > self.input.end(self.part.partition) {
            return Err(Trouble::Asked(format!(
                "the decision block {} ends at {}-{}@{}, and that log ends at {}: the topic was deleted and created again, or its log was truncated",
                block.position,
                self.input.topic,
                self.part.partition,
                block.end,
                self.input.end(self.part.partition)
            )));
        }
        if let Some(up_to) = *decided_up_to
            && block.first < up_to
            && block.end > self.part.from
        {
            let overlap = Difference::of(Kind::Overlap).source(self.source(block.first)).at(block.position.to_string());
            self.tell(&overlap.detail(format!("the block before it ends at {up_to}")))?;
        }
        *decided_up_to = Some(decided_up_to.map_or(block.end, |up_to| up_to.max(block.end)));
        Ok(())
    }

    fn check_counts(&mut self, block: &Block, tally: &Tally) -> Result<(), Trouble> {
        if self.unclean || block.first < self.input.beginning(self.part.partition) || self.plan.ids.is_some() {
            return Ok(());
        }
        let mut counted: Vec<(&'static str, String, u64)> =
            tally.entries().map(|(column, reason, count)| (column, reason.to_owned(), count)).collect();
        counted.sort();
        if counted != block.counts {
            let counts = Difference::of(Kind::Counts).source(self.source(block.first)).at(block.position.to_string());
            self.tell(&counts.expected(shown_counts(&counted)).actual(shown_counts(&block.counts)))?;
        }
        Ok(())
    }

    /// Whether what is known of the recipient is not all that was known then.
    fn unprovable(&self, prepared: &Prepared, block: &Block, cause: Option<Position>) -> bool {
        match prepared {
            Prepared::Send { persons, .. } => {
                let persons = persons.as_slice();
                let cause_is_gone = cause.is_some_and(|cause| persons.iter().all(|person| self.history.lacks(*person, cause)));
                cause_is_gone || persons.iter().any(|person| self.history.may_lack(*person, &block.as_of))
            }
            Prepared::ExemptOnly | Prepared::DeadLetter(_) => false,
        }
    }

    fn compare_suppressed(&mut self, seen: &Seen<'_>, block: &Block, found: &FoundSuppressed) -> Result<(), Trouble> {
        let offset = seen.record.offset;
        if let Outcome::Decided(Decision::Suppressed { reason, cause }) = seen.outcome {
            let headers = suppressed_headers(reason, cause, &seen.record.coordinates(), &block.as_of_text, &block.rules_version);
            let record = seen.record;
            let expected = self.plan.digests.of(record.key, record.value, record.headers, &headers, record.timestamp_ms);
            if expected.fits(&found.digest) {
                self.summary.same += u64::from(seen.selected);
                return Ok(());
            }
            if found.shown == shown_suppressed(reason, cause) {
                let parts = expected.differing(&found.digest).join(", ");
                let changed = Difference::of(Kind::Changed).source(self.source(offset)).at(self.place(self.suppressed, found.offset));
                return if seen.selected { self.tell(&changed.detail(parts)) } else { Ok(()) };
            }
        }
        if self.unprovable(seen.prepared, block, found.cause) {
            self.summary.unprovable += u64::from(seen.selected);
            self.unclean = true;
            return Ok(());
        }
        let at = self.place(self.suppressed, found.offset);
        self.decided_otherwise(offset, seen.outcome, format!("suppressed {}", found.shown), at, seen.selected)
    }

    /// Dead letters of a send; returns how the send ended.
    fn compare_dead(&mut self, seen: &Seen<'_>, dead: Vec<Dead>) -> Result<Outcome, Trouble> {
        let offset = seen.record.offset;
        let mut dead = dead.into_iter();
        let Some(first) = dead.next() else { return Ok(seen.outcome) };
        for more in dead {
            self.doubled(offset, more.at)?;
        }
        // Whether it fitted its topic then cannot be told now.
        let too_large = first.reason == DecodeError::TooLarge.as_str();
        let expected = match seen.outcome {
            Outcome::DeadLetter(error) => error.as_str() == first.reason,
            Outcome::Decided(_) => too_large,
        };
        if !expected {
            self.decided_otherwise(offset, seen.outcome, format!("dead letter {}", first.reason), first.at, seen.selected)?;
        } else if first.digest.is_some_and(|found| !seen.digest.fits(&found)) {
            let parts = first.digest.map(|found| seen.digest.differing(&found).join(", ")).unwrap_or_default();
            if seen.selected {
                self.tell(&Difference::of(Kind::Changed).source(self.source(offset)).at(first.at).detail(parts))?;
            }
        } else {
            self.summary.same += u64::from(seen.selected);
        }
        Ok(if too_large { Outcome::DeadLetter(DecodeError::TooLarge) } else { seen.outcome })
    }

    fn take_aligned(&mut self, aligned: Aligned<Waiting, FoundAllowed>, begins_late: bool) -> Result<(), Trouble> {
        match aligned {
            Aligned::Same(waiting, found) => self.compare_allowed(&waiting, &found),
            Aligned::Changed(waiting, found) => {
                let parts = waiting.digest.differing(&found.digest).join(", ");
                let changed = Difference::of(Kind::Changed).source(self.source(waiting.offset)).at(self.place(self.allowed, found.offset));
                if waiting.selected { self.tell(&changed.detail(parts)) } else { Ok(()) }
            }
            Aligned::Missing(_) if begins_late => {
                *self.summary.gone.entry("allowed sends").or_default() += 1;
                Ok(())
            }
            Aligned::Missing(waiting) => {
                if waiting.selected && waiting.decided.is_some() {
                    self.unclean = true;
                    let expected = waiting.decided.as_ref().map(|(outcome, _)| shown(*outcome));
                    self.missing.push((waiting.offset, waiting.digest, expected));
                }
                Ok(())
            }
            Aligned::Extra(found) => self.misplaced_allowed(&found),
        }
    }

    fn compare_allowed(&mut self, waiting: &Waiting, found: &FoundAllowed) -> Result<(), Trouble> {
        let Some((outcome, block)) = &waiting.decided else { return Ok(()) };
        let reason = match outcome {
            Outcome::Decided(Decision::Allowed(reason)) => *reason,
            Outcome::Decided(Decision::Suppressed { .. }) | Outcome::DeadLetter(_) if waiting.unprovable => {
                self.summary.unprovable += u64::from(waiting.selected);
                self.unclean = true;
                return Ok(());
            }
            Outcome::Decided(Decision::Suppressed { .. }) | Outcome::DeadLetter(_) => {
                let at = self.place(self.allowed, found.offset);
                return self.decided_otherwise(waiting.offset, *outcome, "allowed".to_owned(), at, waiting.selected);
            }
        };
        if let Some(evidence) = &found.evidence {
            let source = Coordinates { topic: self.input.topic.clone(), partition: self.part.partition, offset: waiting.offset };
            let (_, expected) = allowed_header(reason, &source, &block.as_of_text, &block.rules_version);
            if *evidence != expected && waiting.selected {
                let changed = Difference::of(Kind::Changed).source(source.to_string()).at(self.place(self.allowed, found.offset));
                return self.tell(&changed.detail("headers".to_owned()));
            }
        }
        if let Some(expected) = waiting.guidance {
            let expected = expected.map(Occasion::as_str);
            if expected != found.guidance.as_deref() && waiting.selected {
                let changed = Difference::of(Kind::Changed).source(self.source(waiting.offset)).at(self.place(self.allowed, found.offset));
                let shown = |occasion: Option<&str>| occasion.unwrap_or("none").to_owned();
                let changed = changed.expected(shown(expected)).actual(shown(found.guidance.as_deref()));
                return self.tell(&changed.detail("guidance".to_owned()));
            }
        }
        self.summary.same += u64::from(waiting.selected);
        Ok(())
    }

    fn decided_otherwise(&mut self, offset: u64, outcome: Outcome, actual: String, at: String, selected: bool) -> Result<(), Trouble> {
        if !selected {
            return Ok(());
        }
        self.tell(&Difference::of(Kind::Decision).source(self.source(offset)).expected(shown(outcome)).actual(actual).at(at))
    }

    fn doubled(&mut self, offset: u64, at: String) -> Result<(), Trouble> {
        self.tell(&Difference::of(Kind::Doubled).source(self.source(offset)).at(at))
    }

    /// An outcome on the allowed topic that is nobody's next one.
    fn misplaced_allowed(&mut self, found: &FoundAllowed) -> Result<(), Trouble> {
        if self.plan.ids.is_some() {
            return Ok(());
        }
        let at = self.place(self.allowed, found.offset);
        if let Some(place) = self.missing.iter().position(|(_, digest, _)| digest.fits(&found.digest)) {
            let (offset, ..) = self.missing.remove(place);
            return self.tell(&Difference::of(Kind::OutOfOrder).source(self.source(offset)).at(at));
        }
        match self.recent.iter().rev().find(|(_, digest)| digest.fits(&found.digest)) {
            Some((offset, _)) => self.doubled(*offset, at),
            None => self.tell(&Difference::of(Kind::Unexpected).at(at)),
        }
    }

    /// An outcome on the suppressed topic whose send has passed.
    fn misplaced_suppressed(&mut self, found: &FoundSuppressed) -> Result<(), Trouble> {
        if self.plan.ids.is_some() {
            return Ok(());
        }
        let at = self.place(self.suppressed, found.offset);
        let Some(source) = found.source.filter(|source| (self.part.from..self.part.to).contains(source)) else {
            return self.tell(&Difference::of(Kind::Unexpected).at(at));
        };
        match self.missing.iter().position(|(offset, ..)| *offset == source) {
            Some(place) => {
                self.missing.remove(place);
                self.tell(&Difference::of(Kind::OutOfOrder).source(self.source(source)).at(at))
            }
            None => self.doubled(source, at),
        }
    }

    fn find_allowed(&mut self, cursor: &mut Cursor<'_>, aligner: &mut Aligner<Waiting, FoundAllowed>) -> Result<bool, Trouble> {
        let found = self.next_allowed(cursor)?;
        let any = found.is_some();
        found.into_iter().for_each(|found| aligner.find(found));
        Ok(any)
    }

    fn next_allowed(&self, cursor: &mut Cursor<'_>) -> Result<Option<FoundAllowed>, Trouble> {
        let Some(received) = cursor.next()? else { return Ok(None) };
        let mut headers = Vec::new();
        received.headers(&mut headers);
        let text = |header: &Header<'_>| header.value.map(|value| String::from_utf8_lossy(value).into_owned());
        let is_guidance = |header: &&Header<'_>| self.plan.guidance.is_some() && header.name == GUIDANCE_HEADER.as_bytes();
        let guidance = headers.last().filter(is_guidance).and_then(text);
        if guidance.is_some() {
            headers.pop();
        }
        // The evidence that some configurations add is looked at apart: the send itself is unchanged with and without.
        let is_ours = |header: &&Header<'_>| header.name == b"stopgate" && header.value.is_some_and(|value| value.starts_with(b"reason="));
        let evidence = headers.last().filter(is_ours).and_then(text);
        if evidence.is_some() {
            headers.pop();
        }
        Ok(Some(FoundAllowed { offset: received.offset(), digest: self.digest_of(&received, &headers), evidence, guidance }))
    }

    fn next_suppressed(&self, cursor: &mut Cursor<'_>) -> Result<Option<FoundSuppressed>, Trouble> {
        let Some(received) = cursor.next()? else { return Ok(None) };
        let mut headers = Vec::new();
        received.headers(&mut headers);
        let record = received.record(&headers);
        let text = |name| record.header(name).and_then(|value| std::str::from_utf8(value).ok());
        let prefix = format!("{}-{}@", self.input.topic, self.part.partition);
        let cause = text("stopgate-cause").and_then(|text| text.parse().ok());
        Ok(Some(FoundSuppressed {
            offset: record.offset,
            source: text("stopgate-source").and_then(|source| source.strip_prefix(&prefix)?.parse().ok()),
            digest: self.digest_of(&received, &headers),
            shown: shown_cause(text("stopgate-reason").unwrap_or("without a reason"), cause),
            cause,
        }))
    }

    fn digest_of(&self, received: &Received<'_>, headers: &[Header<'_>]) -> Digest {
        let record = received.record(headers);
        let digest = self.plan.digests.of(record.key, record.value, headers, &[], record.timestamp_ms);
        if received.has_append_time() { digest.with_any_time() } else { digest }
    }
}

/// A send and what was decided about it again.
struct Seen<'s> {
    record: &'s Record<'s>,
    digest: Digest,
    prepared: &'s Prepared,
    outcome: Outcome,
    selected: bool,
}

fn shown_counts(counts: &[(&'static str, String, u64)]) -> String {
    counts.iter().map(|(column, reason, count)| format!("{count} {column} {reason}")).collect::<Vec<_>>().join(", ")
}

fn shown_cause(reason: &str, cause: Option<Position>) -> String {
    cause.map_or_else(|| reason.to_owned(), |cause| format!("{reason} {cause}"))
}

fn shown_suppressed(reason: SuppressReason, cause: Option<Position>) -> String {
    shown_cause(reason.as_str(), cause)
}

/// An outcome in words.
pub(super) fn shown(outcome: Outcome) -> String {
    match outcome {
        Outcome::Decided(Decision::Allowed(reason)) => shown_allowed(reason),
        Outcome::Decided(Decision::Suppressed { reason, cause }) => format!("suppressed {}", shown_suppressed(reason, cause)),
        Outcome::DeadLetter(error) => format!("dead letter {}", error.as_str()),
    }
}

fn shown_allowed(reason: AllowReason) -> String {
    format!("allowed {}", reason.as_str())
}

impl DigestKey {
    /// The digest of a dead letter's original: without what was added when it was set aside. `None` where the original
    /// was too large to be kept.
    pub(super) fn of_dead(self, record: &Record<'_>, any_time: bool) -> Option<Digest> {
        if record.header("stopgate-sha256").is_some() {
            return None;
        }
        let added = record.headers.iter().rposition(|header| header.name == b"stopgate-stage").unwrap_or(record.headers.len());
        let headers = record.headers.get(..added).unwrap_or_default();
        let digest = self.of(record.key, record.value, headers, &[], record.timestamp_ms);
        Some(if any_time { digest.with_any_time() } else { digest })
    }
}
