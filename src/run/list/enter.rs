//! One act, entered by hand: judged by what stands, written, acknowledged, read back.

use super::write::Writer;
use super::{Source, up_to, written};
use crate::config::Config;
use crate::domain::consent::{Act, ConsentState, Position};
use crate::domain::decide::{Decision, Question};
use crate::domain::key::Subject;
use crate::domain::time::Timestamp;
use crate::domain::view::ConsentView;
use crate::kafka::range::Span;
use crate::run::readers::Trouble;
use crate::stage::apply::apply;
use crate::stage::entry::{Entry, EntryError, Verdict, standing};
use crate::wire::consent::{encode_key, encode_value};

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
    /// Nothing was written: this act stands over it, or is it.
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

/// Enters an act. The inner error says why it is refused.
pub fn enter(config: &Config, entry: &Entry, now: Timestamp) -> Result<Result<Entered, EntryError>, Trouble> {
    let source = Source::new(config)?;
    let extent = source.extent()?;
    let ends = extent.ends.clone();
    let mut folded = source.fold(extent, &ends)?;
    let record = match entry.verdict(&folded.view, now) {
        Err(error) => return Ok(Err(error)),
        Ok(Verdict::Stands(act)) => return Ok(Ok(Entered { outcome: Outcome::Stood(act), sends: sends(&folded.view, entry) })),
        Ok(Verdict::Write(record)) => record,
    };
    let mut writer = Writer::new(config, folded.extent.partitions())?;
    writer.send(&encode_key(&entry.key), encode_value(&record))?;
    let position = writer.settle()?.ok_or_else(|| Trouble::Asked("the brokers acknowledged nothing".to_owned()))?;
    // Behind the fence: ends that are asked for now lie behind the acknowledged record, and behind what others wrote.
    source.readers.extend(&mut folded.extent)?;
    let mut rest: Vec<Span> = up_to(&folded.extent, &folded.extent.ends);
    rest.iter_mut().zip(&ends).for_each(|(span, read)| span.from = *read);
    let view = parking_lot::Mutex::new(folded.view);
    source.scan("reading back", &rest, &|record| {
        apply(&mut view.lock(), &written(record), &config.businesses);
    })?;
    let view = view.into_inner();
    // Somebody else may have entered a later act meanwhile: that one stands, and this one lies where it lies.
    let outcome = match standing(&view, &entry.key) {
        Some(act) if act.cause != position && act.rank() > (entry.occurred_at, entry.state == ConsentState::OptedOut, act.source) => {
            Outcome::Stood(act)
        }
        Some(_) | None => Outcome::Written { position, changed: record.changed_state },
    };
    Ok(Ok(Entered { outcome, sends: sends(&view, entry) }))
}

fn sends(view: &ConsentView, entry: &Entry) -> Decision {
    let program = match &entry.key.subject {
        Subject::Program(id) => Some(&**id),
        Subject::Marketing | Subject::All | Subject::Review => None,
    };
    let person = view.print_key().person(&entry.key.business, &entry.key.identity);
    Question::marketing(view.print_key(), &entry.key.channel, program).judge(|slot| view.standing(person, slot)).decision(false)
}
