//! What stands, row by row: the topic is read twice, first to know which act stands on each key, then to tell those acts with
//! their evidence. So the memory it takes is the set's, not the list's.

use super::{Source, up_to, written};
use crate::config::Config;
use crate::domain::consent::{Act, ConsentState, Position};
use crate::domain::identity::Identity;
use crate::domain::key::{Channel, ConsentKey, Subject};
use crate::domain::time::Timestamp;
use crate::domain::view::ConsentView;
use crate::kafka::range::Span;
use crate::record::Record;
use crate::run::history::{self, Event, Scope};
use crate::run::readers::{Extent, Trouble};
use crate::stage::apply::apply;
use crate::stage::entry::standing as standing_act;
use crate::wire::consent::{ConsentChange, decode_key, decode_value, partitions_of};
use crate::wire::list::{ListFormat, ListWriter, Row};
use crate::wire::{proto, when};
use parking_lot::Mutex;
use prost::Message;
use std::collections::BTreeSet;
use std::io::Write;

/// Which rows.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// By its resolved name.
    pub business: Option<String>,
    /// This channel, and what concerns all channels.
    pub channel: Option<Channel>,
    /// Any of these; empty: all.
    pub identities: Vec<Identity>,
    pub subject: Option<Subject>,
    pub state: Option<ConsentState>,
}

impl Filter {
    fn takes_key(&self, key: &ConsentKey) -> bool {
        self.business.as_deref().is_none_or(|business| *business == *key.business)
            && self.channel.as_ref().is_none_or(|channel| key.channel.covers(channel))
            && (self.identities.is_empty() || self.identities.contains(&key.identity))
            && self.subject.as_ref().is_none_or(|subject| *subject == key.subject)
    }

    fn takes(&self, key: &ConsentKey, state: ConsentState) -> bool {
        self.state.is_none_or(|sought| sought == state) && self.takes_key(key)
    }
}

/// As of when.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum AsOf {
    #[default]
    Now,
    /// What was known at these positions, as `stopgate-as-of` names them: one for each partition.
    Positions(Vec<Position>),
    /// What was known at this time of the brokers.
    Time(Timestamp),
}

/// An act that stands, with its row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    pub row: Row,
    pub position: Position,
}

/// Hands every row that stands to `each`, those of one partition in order of their places; `false` ends it. Returns the
/// positions as of which it was told, and where compaction or retention has taken something away before them.
pub fn standing(
    config: &Config,
    as_of: &AsOf,
    filter: &Filter,
    mut each: impl FnMut(Standing) -> std::io::Result<bool>,
) -> Result<Told, Trouble> {
    let source = Source::new(config)?;
    let extent = source.extent()?;
    let before = positions(&source, &extent, as_of)?;
    let folded = source.fold(extent, &before)?;
    let mut gone: Vec<Option<u64>> = vec![None; before.len()];
    let mut next: Vec<u64> = folded.extent.beginnings.clone();
    let mut reader = source.readers.read(&folded.extent.topic, &up_to(&folded.extent, &before))?;
    let mut cursor = reader.cursor()?;
    while let Some(received) = cursor.next()? {
        let record = received.record(&[]);
        if let Some(next) = next.get_mut(record.partition as usize) {
            if let Some(gone) = gone.get_mut(record.partition as usize).filter(|gone| gone.is_none() && record.offset > *next) {
                *gone = Some(*next);
            }
            *next = record.offset + 1;
        }
        let Some((key, act)) = read(config, &record) else { continue };
        if !filter.takes(&key, act.state) || standing_act(&folded.view, &key).is_none_or(|standing| standing.cause != act.cause) {
            continue;
        }
        if !each(Standing { row: row(&key, &act, &record), position: act.cause })? {
            break;
        }
    }
    // Of what stands now compaction takes nothing away; of the past it may.
    let gone = if *as_of == AsOf::Now { Vec::new() } else { gone };
    let gone = (0..).zip(gone).filter_map(|(partition, first)| Some(Position { partition, offset: first? })).collect();
    Ok(Told { as_of: before, gone, unreadable: folded.unreadable })
}

/// What a list was told from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// Next offset that did not count, by partition.
    pub as_of: Vec<u64>,
    /// The first place of each partition at which a record is missing: by compaction, or because a transaction's marker
    /// stands there. States of that time that ended since may be missing too.
    pub gone: Vec<Position>,
    /// Records of which nobody knows whom they concern.
    pub unreadable: Vec<Position>,
}

/// Writes every row that stands. Returns how many.
pub fn export(config: &Config, as_of: &AsOf, filter: &Filter, format: ListFormat, out: impl Write) -> Result<(u64, Told), Trouble> {
    let mut writer = ListWriter::new(format, out)?;
    let mut rows = 0;
    let told = standing(config, as_of, filter, |standing| {
        rows += 1;
        writer.write(&standing.row).map(|()| true)
    })?;
    writer.finish()?;
    Ok((rows, told))
}

/// What is known of one person.
#[derive(Clone, Debug)]
pub struct Known {
    pub standing: Vec<Standing>,
    /// Everything that their records tell, in order of time.
    pub history: Vec<Event>,
}

/// Reads the partitions in which records of this person may lie, and `besides`.
pub fn person(
    config: &Config,
    business: &str,
    channel: Option<Channel>,
    identity: &Identity,
    besides: &BTreeSet<u32>,
) -> Result<Known, Trouble> {
    let source = Source::new(config)?;
    let extent = source.extent()?;
    let identities = config.identities_of(identity);
    let partitions: BTreeSet<u32> =
        identities.iter().flat_map(|identity| partitions_of(&config.businesses, business, identity, extent.partitions())).collect();
    let spans: Vec<Span> =
        extent.spans().into_iter().filter(|span| partitions.contains(&span.partition) || besides.contains(&span.partition)).collect();
    let filter = Filter {
        business: Some(business.to_owned()),
        channel: channel.clone(),
        identities: config.identities_of(identity),
        ..Filter::default()
    };
    let scope = Scope { business: Some(business.to_owned()), channel };
    let view = ConsentView::new(crate::run::service::random_print_key(config.identity_key), extent.partitions());
    let found = Mutex::new((view, Vec::new(), Vec::new()));
    source.scan("reading opt-outs", &spans, &|record| {
        let Ok(key) = decode_key(record.key.unwrap_or_default(), &config.businesses) else { return };
        if !filter.takes_key(&key) {
            return;
        }
        let (view, acts, history) = &mut *found.lock();
        apply(view, &written(record), &config.businesses);
        history.extend(history::consents(config, identity, &scope, record));
        if let Some((key, act)) = read(config, record) {
            acts.push((key.clone(), Standing { row: row(&key, &act, record), position: act.cause }));
        }
    })?;
    let (view, acts, mut history) = found.into_inner();
    let stands = |(key, standing): &(ConsentKey, Standing)| standing_act(&view, key).is_some_and(|act| act.cause == standing.position);
    let mut standing: Vec<Standing> = acts.into_iter().filter(stands).map(|(_, standing)| standing).collect();
    standing.sort_unstable_by_key(|standing| standing.position);
    history::sort(&mut history);
    Ok(Known { standing, history })
}

/// What was asked for last, the latest first: of each partition its last records are read.
pub fn recent(config: &Config, limit: usize) -> Result<Vec<Event>, Trouble> {
    let source = Source::new(config)?;
    let extent = source.extent()?;
    let last = |span: Span| Span { from: span.from.max(span.to.saturating_sub(limit as u64)), ..span };
    let spans: Vec<Span> = extent.spans().into_iter().map(last).collect();
    let events = Mutex::new(Vec::new());
    source.scan("reading opt-outs", &spans, &|record| events.lock().extend(history::asked(config, record)))?;
    let mut events = events.into_inner();
    history::sort(&mut events);
    events.reverse();
    events.truncate(limit);
    Ok(events)
}

/// Most records that are read for one page.
const PAGE_RECORDS: u64 = 200_000;

/// Some of what stands, and where the rest begins.
#[derive(Clone, Debug)]
pub struct Page {
    pub rows: Vec<Standing>,
    pub next: Option<Position>,
}

/// The rows that stand by `on_key`, from one place on: at most `limit`, and perhaps fewer although more follow.
pub fn page(
    config: &Config,
    filter: &Filter,
    from: Position,
    limit: usize,
    on_key: impl Fn(&ConsentKey) -> Option<Act>,
) -> Result<Page, Trouble> {
    let source = Source::new(config)?;
    let extent = source.extent()?;
    let mut rows = Vec::new();
    let mut records = 0;
    for span in extent.spans().into_iter().filter(|span| span.partition >= from.partition) {
        let begin = if span.partition == from.partition { span.from.max(from.offset) } else { span.from };
        let mut reader = source.readers.read(&extent.topic, &[Span { from: begin, ..span }])?;
        let mut cursor = reader.cursor()?;
        while let Some(received) = cursor.next()? {
            let record = received.record(&[]);
            let at = Position { partition: record.partition, offset: record.offset };
            if rows.len() >= limit || records >= PAGE_RECORDS {
                return Ok(Page { rows, next: Some(at) });
            }
            records += 1;
            let Some((key, act)) = read(config, &record) else { continue };
            // By rank, not by place: what was healed lies in two.
            if filter.takes(&key, act.state) && on_key(&key).is_some_and(|standing| standing.rank() == act.rank()) {
                rows.push(Standing { row: row(&key, &act, &record), position: act.cause });
            }
        }
    }
    Ok(Page { rows, next: None })
}

fn positions(source: &Source<'_>, extent: &Extent, as_of: &AsOf) -> Result<Vec<u64>, Trouble> {
    let before = match as_of {
        AsOf::Now => return Ok(extent.ends.clone()),
        AsOf::Time(time) => source.readers.at_time(extent, time.millis().saturating_add(1))?,
        AsOf::Positions(positions) => {
            let mut before = vec![None; extent.ends.len()];
            for position in positions {
                let Some(place) = before.get_mut(position.partition as usize) else {
                    return Err(Trouble::Asked(format!(
                        "{} has {} partitions, none of number {}",
                        extent.topic,
                        before.len(),
                        position.partition
                    )));
                };
                if place.replace(position.offset).is_some() {
                    return Err(Trouble::Asked(format!("partition {} is named twice", position.partition)));
                }
            }
            let missing = before.iter().position(Option::is_none);
            if let Some(missing) = missing {
                return Err(Trouble::Asked(format!("no position of partition {missing} is given: name all, as stopgate-as-of does")));
            }
            before.into_iter().flatten().collect()
        }
    };
    for (partition, (before, (beginning, end))) in before.iter().zip(extent.beginnings.iter().zip(&extent.ends)).enumerate() {
        if before > end {
            return Err(Trouble::Asked(format!(
                "{} partition {partition} ends at {end}, before {before}: was the topic created again since?",
                extent.topic
            )));
        }
        if before < beginning {
            return Err(Trouble::Asked(format!("{} partition {partition} begins at {beginning}: what lay before is gone", extent.topic)));
        }
    }
    Ok(before)
}

/// The key and the act of a record that is an act.
fn read(config: &Config, record: &Record<'_>) -> Option<(ConsentKey, Act)> {
    let written = written(record);
    let key = decode_key(record.key.unwrap_or_default(), &config.businesses).ok()?;
    match decode_value(record.value, record.timestamp_ms, written.at) {
        ConsentChange::Act { act, .. } | ConsentChange::Unreadable(act) => Some((key, act)),
        ConsentChange::Erasure => None,
    }
}

/// An act as a list tells it: `reason` in the words of whoever entered it, else the cause; `source` is where an imported list
/// says it came from, or the message, or who entered it.
fn row(key: &ConsentKey, act: &Act, record: &Record<'_>) -> Row {
    let consent = proto::ConsentRecord::decode(record.value.unwrap_or_default()).unwrap_or_default();
    let cause = consent.cause().as_str_name().to_lowercase().replace('_', "-");
    let evidence = consent.evidence.unwrap_or_default();
    let first = |texts: [String; 2]| texts.into_iter().find(|text| !text.is_empty()).unwrap_or_default();
    let place = match &evidence.source {
        Some(source) => format!("{}-{}@{}", source.topic, source.partition, source.offset),
        None if evidence.list_line > 0 => {
            format!("list {} line {}", evidence.list_sha256.get(..12).unwrap_or_default(), evidence.list_line)
        }
        None => evidence.actor,
    };
    Row {
        business: key.business.to_string(),
        channel: key.channel.as_str().to_owned(),
        identity: key.identity.to_text(),
        subject: key.subject.to_string(),
        state: act.state.as_str(),
        occurred_at: when::to_text(act.occurred_at),
        reason: first([evidence.reason, cause]),
        source: first([evidence.provenance, place]),
    }
}
