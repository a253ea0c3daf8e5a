//! The opt-outs that other words or policies would have written: what a what-if decides sends on.
//!
//! Messages that the inbound topics still hold are understood under the other rules. An act that was written as well keeps its
//! place; one that was not takes the place that its person's partition had reached at the message's time. Records of
//! messages that are gone, and what no message wrote, stay as they are. So the answer is as good as those times are.

use super::detect::rules;
use super::open_history;
use crate::config::Config;
use crate::domain::consent::{Act, Position};
use crate::domain::history::{History, HistoryBuilder};
use crate::domain::key::ConsentKey;
use crate::run::readers::{Extent, Readers, Trouble};
use crate::stage::detect::Detector;
use crate::wire::consent::{ConsentChange, decode_key, decode_value, encode_key};
use crate::wire::proto;
use parking_lot::Mutex;
use prost::Message;
use std::collections::{BTreeMap, HashMap};

/// A message and a key.
type Cause = (usize, u32, u64, u32, ConsentKey);

struct Gathered {
    builder: HistoryBuilder,
    /// Where an act was written.
    written: HashMap<Cause, Position>,
    /// Of each partition of opt-outs, when its records were written.
    times: Vec<Vec<(i64, u64)>>,
}

/// Whether other rules understand messages otherwise.
pub(super) fn differs(now: &Config, then: &Config) -> Result<bool, Trouble> {
    let (now, then) = (rules(now)?, rules(then)?);
    Ok(now.lexicon.version() != then.lexicon.version()
        || now.policy != then.policy
        || now.policies != then.policies
        || now
            .lexicons
            .iter()
            .map(|(name, lexicon)| (name, lexicon.version()))
            .ne(then.lexicons.iter().map(|(name, lexicon)| (name, lexicon.version()))))
}

/// Every act that there would be.
pub(super) fn history(then: &Config, opt_outs: &Extent, readers: &Readers, threads: usize) -> Result<History, Trouble> {
    let detector = Detector::new(rules(then)?);
    let topics: BTreeMap<&str, usize> = (0..).zip(&then.inbound).map(|(number, (topic, _))| (&**topic, number)).collect();
    let inputs: Vec<Extent> = then.inbound.iter().map(|(topic, _)| readers.extent(topic)).collect::<Result<_, _>>()?;
    let gathered = Mutex::new(Gathered {
        builder: open_history(then, opt_outs),
        written: HashMap::new(),
        times: vec![Vec::new(); opt_outs.partitions() as usize],
    });
    readers.for_each(opt_outs, threads, &|record| {
        let at = Position { partition: record.partition, offset: record.offset };
        let bytes = record.key.unwrap_or_default();
        let source = record.value.and_then(|value| proto::ConsentRecord::decode(value).ok());
        let source = source.filter(|consent| consent.cause() != proto::ConsentCause::IdentityChange);
        let source = source.and_then(|consent| consent.evidence?.source).and_then(|source| {
            let topic = *topics.get(source.topic.as_str())?;
            let is_held = source.partition < inputs[topic].partitions() && source.offset >= inputs[topic].beginning(source.partition);
            is_held.then_some((topic, source.partition, source.offset, source.index))
        });
        let key = decode_key(bytes, &then.businesses).ok();
        let mut gathered = gathered.lock();
        gathered.builder.see(at);
        if let Some(times) = gathered.times.get_mut(record.partition as usize) {
            times.push((record.timestamp_ms.unwrap_or_default(), record.offset));
        }
        match (key, source) {
            (None, _) => {}
            (Some(key), Some((topic, partition, offset, index))) => {
                gathered.written.entry((topic, partition, offset, index, key)).or_insert(at);
            }
            (Some(key), None) => match decode_value(record.value, record.timestamp_ms, at) {
                ConsentChange::Act { act, .. } | ConsentChange::Unreadable(act) => gathered.builder.add(&key, at, Some(act)),
                ConsentChange::Erasure if encode_key(&key).as_bytes() == bytes => gathered.builder.add(&key, at, None),
                ConsentChange::Erasure => {}
            },
        }
    })?;
    for (topic, input) in inputs.iter().enumerate() {
        let committed = readers.committed_of(&then.detect_group, input)?;
        readers.for_each(input, threads, &|record| {
            let read_already = committed.get(record.partition as usize).copied().flatten().is_some_and(|committed| record.offset < committed);
            if !read_already {
                return;
            }
            for finding in detector.read(record).findings {
                for consent in finding.expected(detector.rules()).unwrap_or_default() {
                    let partition = encode_key(&consent.key).partition(opt_outs.partitions());
                    let mut gathered = gathered.lock();
                    let cause = (topic, record.partition, record.offset, finding.index(), consent.key.clone());
                    let place = gathered.written.get(&cause).copied();
                    let at = place.unwrap_or_else(|| {
                        let times = gathered.times.get(partition as usize).map(Vec::as_slice).unwrap_or_default();
                        let later = times.partition_point(|(time, _)| *time < record.timestamp_ms.unwrap_or_default());
                        let offset = times.get(later).map_or_else(|| opt_outs.end(partition), |(_, offset)| *offset);
                        Position { partition, offset }
                    });
                    gathered.builder.add(&consent.key, at, Some(Act { cause: at, ..consent.act }));
                }
            }
        })?;
    }
    Ok(gathered.into_inner().builder.finish())
}
