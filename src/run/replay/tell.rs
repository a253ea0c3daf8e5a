//! How replay tells what it finds: differences as they are met, a summary at the end; JSON Lines, or lines for people.

use serde::Serialize;
use std::collections::BTreeMap;
use std::io::Write;
use std::sync::{Mutex, PoisonError};

/// What can differ. The words are those of the `difference` field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The record has no outcome.
    Missing,
    /// The record has more than one outcome.
    Doubled,
    /// The outcome is there, and not in its place.
    OutOfOrder,
    /// The outcome is there, and not as it must be: `detail` names the parts.
    Changed,
    /// Another outcome than the one that follows from the rules and the recorded positions.
    Decision,
    /// An outcome that belongs to no record of the range.
    Unexpected,
    /// Records that no decision block covers.
    Gap,
    /// A decision block that begins before the one ahead of it ended.
    Overlap,
    /// A decision block whose counts are not those of its outcomes.
    Counts,
    /// An id that was asked for, and no send has it.
    NotFound,
    /// What-if: another decision under the other rules.
    WhatIf,
}

/// One difference. Coordinates are `topic-partition@offset`; nothing of a record's content is told.
#[derive(Debug, Serialize)]
pub struct Difference {
    #[serde(rename = "difference")]
    pub kind: Kind,
    /// The input record; for blocks the partition.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Where the outcome or block lies.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expected: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub actual: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

impl Difference {
    pub fn of(kind: Kind) -> Self {
        Self { kind, source: None, at: None, expected: None, actual: None, detail: None }
    }

    pub fn source(mut self, source: String) -> Self {
        self.source = Some(source);
        self
    }

    pub fn at(mut self, at: String) -> Self {
        self.at = Some(at);
        self
    }

    pub fn expected(mut self, expected: String) -> Self {
        self.expected = Some(expected);
        self
    }

    pub fn actual(mut self, actual: String) -> Self {
        self.actual = Some(actual);
        self
    }

    pub fn detail(mut self, detail: String) -> Self {
        self.detail = Some(detail);
        self
    }
}

/// What was looked at, and what came of it.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Summary {
    pub stage: &'static str,
    /// Input records of the range.
    pub records: u64,
    /// Records whose outcomes are what they must be.
    pub same: u64,
    /// Differences, by kind.
    pub differences: BTreeMap<Kind, u64>,
    pub blocks: u64,
    /// Records of opt-outs that were read.
    pub opt_outs: u64,
    /// Records behind the last decision: not decided yet.
    pub undecided: u64,
    /// Decisions that cannot be made again, because compaction took the acts that stood then; nothing contradicts them.
    pub unprovable: u64,
    /// What retention took: how many records, and what of them.
    pub gone: BTreeMap<&'static str, u64>,
    /// Records that were decided under other rules than those at hand, by their version.
    pub other_rules: BTreeMap<String, u64>,
    /// What-if: how many would change, from what to what.
    pub changes: BTreeMap<String, u64>,
    pub seconds: f64,
    pub records_per_second: u64,
    /// Where to go on: arguments for --offsets. Empty where all was looked at.
    pub resume: Vec<String>,
}

impl Summary {
    pub fn differences(&self) -> u64 {
        self.differences.values().sum()
    }

    pub(super) fn add(&mut self, other: Self) {
        self.records += other.records;
        self.same += other.same;
        self.blocks += other.blocks;
        self.opt_outs += other.opt_outs;
        self.undecided += other.undecided;
        self.unprovable += other.unprovable;
        self.resume.extend(other.resume);
        for (kind, count) in other.differences {
            *self.differences.entry(kind).or_default() += count;
        }
        for (what, count) in other.gone {
            *self.gone.entry(what).or_default() += count;
        }
        for (version, count) in other.other_rules {
            *self.other_rules.entry(version).or_default() += count;
        }
        for (change, count) in other.changes {
            *self.changes.entry(change).or_default() += count;
        }
    }
}

/// Differences that are shown to people one by one; JSON Lines hold all.
const SHOWN: u64 = 50;

/// Where it is told; shared by the threads that compare.
pub(super) struct Teller<'o> {
    out: Mutex<(&'o mut (dyn Write + Send), u64)>,
    json: bool,
}

impl<'o> Teller<'o> {
    pub(super) fn new(out: &'o mut (dyn Write + Send), json: bool) -> Self {
        Self { out: Mutex::new((out, 0)), json }
    }

    /// Tells one difference, and counts it.
    pub(super) fn tell(&self, summary: &mut Summary, difference: &Difference) -> std::io::Result<()> {
        *summary.differences.entry(difference.kind).or_default() += 1;
        let mut held = self.out.lock().unwrap_or_else(PoisonError::into_inner);
        let (out, told) = &mut *held;
        *told += 1;
        if self.json {
            serde_json::to_writer(&mut **out, difference)?;
            return writeln!(out);
        }
        match *told {
            number if number <= SHOWN => writeln!(out, "{}", line(difference)),
            number if number == SHOWN + 1 => writeln!(out, "… more differences: all of them with --json"),
            _ => Ok(()),
        }
    }

    pub(super) fn summarize(&self, summary: &Summary) -> std::io::Result<()> {
        let mut held = self.out.lock().unwrap_or_else(PoisonError::into_inner);
        let out = &mut held.0;
        if self.json {
            serde_json::to_writer(&mut **out, &serde_json::json!({ "summary": summary }))?;
            writeln!(out)?;
            return out.flush();
        }
        writeln!(
            out,
            "{} records of {}: {} as they must be, {} differences",
            summary.records,
            summary.stage,
            summary.same,
            summary.differences()
        )?;
        for (kind, count) in &summary.differences {
            writeln!(out, "  {count} {}", word(*kind))?;
        }
        for (change, count) in &summary.changes {
            writeln!(out, "  {count} would change: {change}")?;
        }
        let told = [
            (summary.undecided, "not decided yet"),
            (summary.unprovable, "cannot be decided again: compaction took the acts that stood then; nothing contradicts them"),
        ];
        for (count, what) in told.iter().filter(|(count, _)| *count > 0) {
            writeln!(out, "  {count} {what}")?;
        }
        for (what, count) in &summary.gone {
            writeln!(out, "  {count} {what} are gone by retention")?;
        }
        for (version, count) in &summary.other_rules {
            writeln!(out, "  {count} were decided under other rules, {version}: give that configuration with --config")?;
        }
        if !summary.resume.is_empty() {
            writeln!(
                out,
                "stopped early; go on with {}",
                summary.resume.iter().map(|part| format!("--offsets {part}")).collect::<Vec<_>>().join(" ")
            )?;
        }
        writeln!(
            out,
            "{} blocks, {} opt-outs, {:.1} s, {} records/s",
            summary.blocks, summary.opt_outs, summary.seconds, summary.records_per_second
        )?;
        out.flush()
    }
}

fn word(kind: Kind) -> &'static str {
    match kind {
        Kind::Missing => "missing",
        Kind::Doubled => "doubled",
        Kind::OutOfOrder => "out of order",
        Kind::Changed => "changed",
        Kind::Decision => "decided otherwise",
        Kind::Unexpected => "unexpected",
        Kind::Gap => "without a decision block",
        Kind::Overlap => "overlapping blocks",
        Kind::Counts => "wrong counts",
        Kind::NotFound => "not found",
        Kind::WhatIf => "samples of what would change",
    }
}

fn line(difference: &Difference) -> String {
    let mut line = format!("{}: {}", word(difference.kind), difference.source.as_deref().unwrap_or("-"));
    let parts = [(" expected ", &difference.expected), (" found ", &difference.actual), (" at ", &difference.at), (", ", &difference.detail)];
    for (name, part) in parts {
        if let Some(part) = part {
            line.push_str(name);
            line.push_str(part);
        }
    }
    line
}
