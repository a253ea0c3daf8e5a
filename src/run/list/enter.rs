//! Acts of one person, entered by hand: judged by what stands, written, acknowledged, read back.

use super::write::Writer;
use super::{Source, up_to, written};
use crate::config::Config;
use crate::domain::consent::{Act, ConsentState, Position};
use crate::domain::decide::{Decision, Question};
use crate::domain::key::Subject;
use crate::domain::time::Timestamp;
use crate::domain::view::ConsentView;
use crate::kafka::EdgeError;
use crate::kafka::range::Span;
use crate::run::readers::Trouble;
use crate::stage::apply::apply;
use crate::stage::entry::{Entry, EntryError, Verdict, standing};
use crate::wire::consent::{encode_key, encode_value};
use parking_lot::Mutex;

/// What came of an entry.
#[derive(Clone, Debug, PartialEq)]
pub struct Entered {
    pub outcome: Outcome,
    /// What a marketing send to this identity, on this channel, of this program if the subject is one, meets now.
    pub sends: Decision,
}

/// Whether it was written.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// It lies here, acknowledged and read back, and changed what stood or did not.
    Written { position: Position, changed: bool },
    /// It does not stand: this act does, or is it.
    Stood(Act),
}

impl Outcome {
    /// Whether what was asked for is what stands on the key now.
    pub fn is_as_asked(&self, asked: ConsentState) -> bool {
        match self {
            Self::Written { .. } => true,
            Self::Stood(act) => act.state == asked,
        }
    }
}

/// An entry on its way.
pub(in crate::run) enum Sent {
    Stands(Act),
    Written { position: Position, changed: bool },
}

/// Writes an entry if that is its verdict, and waits until the brokers have it.
pub(in crate::run) fn send(writer: &mut Writer, entry: &Entry, verdict: Verdict) -> Result<Sent, EdgeError> {
    Ok(match verdict {
        Verdict::Stands(act) => Sent::Stands(act),
        Verdict::Write(record) => {
            let position = writer.write(&encode_key(&entry.key), encode_value(&record))?;
            Sent::Written { position, changed: record.changed_state }
        }
    })
}

/// What came of an entry, by a view that holds it.
pub(in crate::run) fn entered(entry: &Entry, sent: &Sent, view: &ConsentView) -> Entered {
    let outcome = match *sent {
        Sent::Stands(act) => Outcome::Stood(act),
        Sent::Written { position, changed } => match standing(view, &entry.key) {
            // Somebody else entered a later act meanwhile: that one stands, and this one lies where it lies.
            Some(act) if act.cause != position && act.occurred_at > entry.occurred_at => Outcome::Stood(act),
            Some(_) | None => Outcome::Written { position, changed },
        },
    };
    Entered { outcome, sends: sends(view, entry) }
}

/// Enters acts, in this order. The inner error says why one is refused; those before it are entered.
pub fn enter(config: &Config, entries: &[Entry], now: Timestamp) -> Result<Result<Vec<Entered>, EntryError>, Trouble> {
    let source = Source::new(config)?;
    let extent = source.extent()?;
    let ends = extent.ends.clone();
    let mut folded = source.fold(extent, &ends)?;
    let mut writer = Writer::new(config, folded.extent.partitions())?;
    let mut sent = Vec::new();
    for entry in entries {
        match entry.verdict(&folded.view, now) {
            Ok(verdict) => sent.push(send(&mut writer, entry, verdict)?),
            Err(error) => return Ok(Err(error)),
        }
    }
    // Behind the fence: ends that are asked for now lie behind the acknowledged records, and behind what others wrote.
    source.readers.extend(&mut folded.extent)?;
    let mut rest: Vec<Span> = up_to(&folded.extent, &folded.extent.ends);
    rest.iter_mut().zip(&ends).for_each(|(span, read)| span.from = *read);
    let view = Mutex::new(folded.view);
    source.scan("reading back", &rest, &|record| {
        apply(&mut view.lock(), &written(record), &config.businesses);
    })?;
    let view = view.into_inner();
    Ok(Ok(entries.iter().zip(&sent).map(|(entry, sent)| entered(entry, sent, &view)).collect()))
}

fn sends(view: &ConsentView, entry: &Entry) -> Decision {
    let program = match &entry.key.subject {
        Subject::Program(id) => Some(&**id),
        Subject::Marketing | Subject::All | Subject::Review => None,
    };
    let person = view.print_key().person(&entry.key.business, &entry.key.identity);
    Question::marketing(view.print_key(), &entry.key.channel, program).judge(|slot| view.standing(person, slot)).decision(false)
}
