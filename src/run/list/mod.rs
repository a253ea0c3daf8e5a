//! The unsubscribe list: the opt-outs topic as administrators see and change it.
//!
//! What stands is found by reading the topic; what is entered is written with the idempotent producer of consent records
//! and acknowledged before anybody is told so: from then on every fence waits for it. The topic is read whole, because
//! former names of a business and other spellings of a number lie in other partitions.

mod enter;
mod erase;
mod heal;
mod import;
pub mod reviews;
mod rows;
mod write;

pub use enter::{Entered, Outcome, enter};
pub(super) use enter::{Sent, entered, send};
pub use erase::{Erased, erase};
pub use heal::{Healed, heal};
pub use import::{Import, Imported, RowProblem, import, sha256};
pub use rows::{AsOf, Filter, Known, Page, Standing, Told, export, page, person, recent, standing};

pub(super) use write::Writer;

use super::readers::{Extent, Readers, Trouble};
use crate::config::Config;
use crate::domain::consent::Position;
use crate::domain::suppression::PrintKey;
use crate::domain::view::ConsentView;
use crate::kafka::range::Span;
use crate::record::Record;
use crate::stage::apply::{Effect, Reader, Written};
use parking_lot::Mutex;

/// The topic at some positions, materialized.
pub(super) struct Folded {
    pub view: ConsentView,
    pub extent: Extent,
    /// Records of which nobody knows whom they concern.
    pub unreadable: Vec<Position>,
}

/// What reading needs.
pub(super) struct Source<'c> {
    pub config: &'c Config,
    pub readers: Readers,
    pub threads: usize,
}

impl<'c> Source<'c> {
    pub(super) fn new(config: &'c Config) -> Result<Self, Trouble> {
        let threads = std::thread::available_parallelism().map_or(2, usize::from);
        Ok(Self { config, readers: Readers::new(config)?, threads })
    }

    pub(super) fn extent(&self) -> Result<Extent, Trouble> {
        self.readers.extent(&self.config.topics.opt_outs)
    }

    /// Hands every record of these stretches to `each`, from several threads.
    pub(super) fn scan(&self, what: &'static str, spans: &[Span], each: &(impl Fn(&Record<'_>) + Sync)) -> Result<(), Trouble> {
        self.readers.scan(what, &self.config.topics.opt_outs, spans, self.threads, each)
    }

    /// What stands when everything before these positions counts.
    pub(super) fn fold(&self, extent: Extent, before: &[u64]) -> Result<Folded, Trouble> {
        let prints = super::service::random_print_key(self.config.identity_key);
        let fold = Mutex::new((Reader::new(prints, &self.config.businesses), empty(prints, extent.partitions()), Vec::new()));
        self.scan("reading opt-outs", &up_to(&extent, before), &|record| {
            let (reader, view, unreadable) = &mut *fold.lock();
            let written = written(record);
            match reader.read(&written).apply(view) {
                Effect::UnreadableKey => unreadable.push(written.at),
                Effect::Erased | Effect::Applied { .. } => {}
            }
            reader.unmet().meet(view);
        })?;
        let (_, mut view, unreadable) = fold.into_inner();
        view.expect_many(None);
        Ok(Folded { view, extent, unreadable })
    }
}

fn empty(prints: PrintKey, partitions: u32) -> ConsentView {
    let mut view = ConsentView::new(prints, partitions);
    view.expect_many(Some(0));
    view
}

/// Everything that the topic holds before these positions.
fn up_to(extent: &Extent, before: &[u64]) -> Vec<Span> {
    let spans = extent.spans().into_iter().zip(before);
    spans.map(|(span, before)| Span { to: span.to.min(*before), ..span }).collect()
}

pub(super) fn written<'a>(record: &Record<'a>) -> Written<'a> {
    let at = Position { partition: record.partition, offset: record.offset };
    Written { at, timestamp_ms: record.timestamp_ms, key: record.key, value: record.value }
}
