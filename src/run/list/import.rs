//! A list of opt-outs, entered row by row: what does not stand over what is known is not written, so that a list may be
//! imported twice, or again after an interruption, and its own export changes nothing.

use super::Source;
use super::write::Writer;
use crate::config::Config;
use crate::domain::consent::{Act, ConsentState, Position};
use crate::domain::time::Timestamp;
use crate::run::lines::{Read, read_line};
use crate::run::progress;
use crate::run::readers::Trouble;
use crate::run::stop::Stop;
use crate::stage::entry::{Defaults, Entry, EntryError, Grounds, ListPlace, Verdict, standing};
use crate::wire::consent::{encode_key, encode_value};
use crate::wire::list::{Given, HeaderError, LineError, Lines, ListFormat};
use std::io::{self, BufRead};

/// How a list is imported.
pub struct Import<'a> {
    pub defaults: Defaults<'a>,
    pub grounds: Grounds,
    pub format: Option<ListFormat>,
    /// SHA-256 of the file, in hexadecimal digits.
    pub sha256: String,
    /// Judge every row and write nothing.
    pub dry_run: bool,
    pub now: Timestamp,
}

/// Why a row was left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RowProblem {
    #[error(transparent)]
    Line(#[from] LineError),
    #[error(transparent)]
    Entry(#[from] EntryError),
}

/// What came of a list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Imported {
    /// Rows that were read, blank lines and the names of columns apart.
    pub rows: u64,
    /// Written and acknowledged; with a dry run those that would be.
    pub written: u64,
    /// Of these, rows that changed what stood.
    pub changed: u64,
    /// Known already, or superseded by a later act.
    pub stood: u64,
    /// Left out, each told.
    pub refused: u64,
    /// Stopped before the end: import it again, what was written is found.
    pub interrupted: bool,
}

/// Imports a list; `told` hears of each row that is left out, by its line.
pub fn import(
    config: &Config,
    how: &Import<'_>,
    mut list: impl BufRead,
    stop: &Stop,
    mut told: impl FnMut(u64, RowProblem),
) -> Result<Result<Imported, HeaderError>, Trouble> {
    let mut line = Vec::new();
    let first = read_line(&mut list, &mut line)?;
    let lines = match first {
        Read::TooLong => Err(HeaderError::Line(LineError::TooLong)),
        Read::Line | Read::End => Lines::from_first(&line, how.format),
    };
    let mut lines = match lines {
        Ok(lines) => lines,
        Err(error) => return Ok(Err(error)),
    };
    let source = Source::new(config)?;
    let extent = source.extent()?;
    let ends = extent.ends.clone();
    let mut folded = source.fold(extent, &ends)?;
    folded.view.expect_many(Some(0));
    let mut writer = Writer::new(config, folded.extent.partitions())?;
    let mut imported = Imported::default();
    let bar = progress::bar("importing", None);
    let mut number = 1;
    let mut held = if lines.first_is_row() { Some(Read::Line) } else { None };
    loop {
        let read = match held.take() {
            Some(first) => first,
            None => {
                line.clear();
                number += 1;
                read_line(&mut list, &mut line)?
            }
        };
        let given = match read {
            Read::End => break,
            Read::TooLong => Err(LineError::TooLong),
            Read::Line => lines.read(&line),
        };
        if stop.is_asked() {
            imported.interrupted = true;
            break;
        }
        let given = match given {
            Ok(None) => continue,
            Ok(Some(given)) => Ok(given),
            Err(error) => Err(RowProblem::Line(error)),
        };
        imported.rows += 1;
        bar.inc(1);
        match given.and_then(|given| judge(how, &folded.view, given, number)) {
            Err(problem) => {
                imported.refused += 1;
                told(number, problem);
            }
            Ok((_, Verdict::Stands(_))) => imported.stood += 1,
            Ok((entry, Verdict::Write(record))) => {
                imported.written += 1;
                imported.changed += u64::from(record.changed_state);
                // The next row of the same key sees this one.
                let cause = Position { partition: 0, offset: 0 };
                let act = Act {
                    state: entry.state,
                    occurred_at: entry.occurred_at,
                    source: Default::default(),
                    cause,
                    changed_state: record.changed_state,
                };
                folded.view.apply(&entry.key, act, "");
                if !how.dry_run {
                    writer.send(&encode_key(&entry.key), Some(encode_value(&record)))?;
                }
            }
        }
    }
    writer.settle()?;
    bar.finish_and_clear();
    Ok(Ok(imported))
}

fn judge(how: &Import<'_>, view: &crate::domain::view::ConsentView, given: Given, line: u64) -> Result<(Entry, Verdict), RowProblem> {
    let provenance = given.source.clone().unwrap_or_default();
    let reason = given.reason.clone().unwrap_or_else(|| how.grounds.reason.clone());
    let list = Some(ListPlace { sha256: how.sha256.clone(), line, provenance });
    let entry = Entry::of(&given, &how.defaults, Grounds { reason, list, ..how.grounds.clone() })?;
    // A row without a time says that the person is out, not when: where that stands already there is nothing to add.
    if given.occurred_at.is_none()
        && entry.state == ConsentState::OptedOut
        && let Some(act) = standing(view, &entry.key).filter(|act| act.state == ConsentState::OptedOut)
    {
        return Ok((entry, Verdict::Stands(act)));
    }
    let verdict = entry.verdict(view, how.now)?;
    Ok((entry, verdict))
}

/// The hash of a list, in hexadecimal digits.
pub fn sha256(mut list: impl BufRead) -> io::Result<String> {
    use sha2::{Digest, Sha256};
    let mut hash = Sha256::new();
    loop {
        let buffer = list.fill_buf()?;
        if buffer.is_empty() {
            break;
        }
        hash.update(buffer);
        let read = buffer.len();
        list.consume(read);
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}
