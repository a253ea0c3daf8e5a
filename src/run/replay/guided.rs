//! What was known of recipients when their sends were decided, from the guidance topic itself.

use crate::config::Config;
use crate::domain::guidance::{RecipientPrint, Seen};
use crate::domain::suppression::PrintKey;
use crate::record::Coordinates;
use crate::run::readers::{Extent, Readers, Trouble};
use crate::wire::guidance::{Guidance, decode};
use parking_lot::Mutex;
use std::collections::HashMap;

struct Entry {
    partition: u32,
    at: u64,
    send: Option<(String, u32, u64)>,
    seen: Option<Seen>,
}

/// Every record of the guidance topic, by recipient, in order of its place.
pub(super) struct GuidanceHistory {
    of: HashMap<RecipientPrint, Vec<Entry>>,
}

impl GuidanceHistory {
    /// Reads the topic, whose records nobody has compacted within the audit window.
    pub(super) fn read(config: &Config, extent: &Extent, prints: PrintKey, readers: &Readers, threads: usize) -> Result<Self, Trouble> {
        let of = Mutex::new(HashMap::<RecipientPrint, Vec<Entry>>::new());
        readers.for_each(extent, threads, &|record| {
            if let Some(Guidance { print, seen, send }) = decode(record.key, record.value, prints, &config.businesses) {
                let entry = Entry { partition: record.partition, at: record.offset, send, seen };
                of.lock().entry(print).or_default().push(entry);
            }
        })?;
        let mut of = of.into_inner();
        of.values_mut().for_each(|entries| entries.sort_by_key(|entry| (entry.partition, entry.at)));
        Ok(Self { of })
    }

    /// What was known when a send was decided: what earlier sends of its partition had told, and what others had, as far as it had been
    /// read by then.
    pub(super) fn at(&self, print: RecipientPrint, send: &Coordinates, as_of: &[u64]) -> Option<Seen> {
        let counts = |entry: &&Entry| match &entry.send {
            Some((topic, partition, offset)) if **topic == *send.topic && *partition == send.partition => *offset < send.offset,
            Some(_) | None => as_of.get(entry.partition as usize).is_some_and(|applied| entry.at < *applied),
        };
        self.of.get(&print)?.iter().rev().find(counts).and_then(|entry| entry.seen)
    }
}
