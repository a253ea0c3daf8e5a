//! Appends again what compaction would take away: the act that stands on a key, where an older act was written behind it.

use super::write::Writer;
use super::{Source, up_to, written};
use crate::config::Config;
use crate::domain::consent::Position;
use crate::run::readers::Trouble;
use crate::stage::heal::{Healing, again};
use parking_lot::Mutex;
use std::collections::BTreeSet;

/// What was healed, or would be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Healed {
    /// Where the records lie that were appended again.
    pub due: Vec<Position>,
    pub records: u64,
}

/// Heals the topic; with `dry_run` says what is due.
pub fn heal(config: &Config, dry_run: bool) -> Result<Healed, Trouble> {
    let source = Source::new(config)?;
    let extent = source.extent()?;
    let spans = up_to(&extent, &extent.ends);
    let healing = Mutex::new((Healing::new(crate::run::service::random_print_key(config.identity_key), extent.partitions()), 0));
    source.scan("reading opt-outs", &spans, &|record| {
        let (healing, records) = &mut *healing.lock();
        healing.read(&written(record), &config.businesses);
        *records += 1;
    })?;
    let (healing, records) = healing.into_inner();
    let due = healing.due();
    if due.is_empty() || dry_run {
        return Ok(Healed { due, records });
    }
    let wanted: BTreeSet<Position> = due.iter().copied().collect();
    let found = Mutex::new(Vec::new());
    source.scan("reading again", &spans, &|record| {
        let written = written(record);
        if wanted.contains(&written.at)
            && let Some((key, value)) = written.key.zip(again(&written))
        {
            found.lock().push((written.at, key.to_vec(), value));
        }
    })?;
    let mut found = found.into_inner();
    found.sort_unstable_by_key(|(at, ..)| *at);
    let mut writer = Writer::new(config, extent.partitions())?;
    for (at, key, value) in found {
        writer.send_bytes(at.partition, key, Some(value))?;
    }
    writer.settle()?;
    Ok(Healed { due, records })
}
