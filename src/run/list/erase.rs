//! Erases what the topic says of a person. Somebody who is opted out stays so, under a keyed hash of the identity: that is
//! written and acknowledged before the first key is erased.
//!
//! A tombstone takes a key out of every view at once. The bytes leave the log when compaction may take them, which is the
//! audit window later; what replies, reviews, inbound and sends topics hold leaves them by their own retention.

use super::write::Writer;
use super::{Source, up_to, written};
use crate::config::Config;
use crate::domain::consent::{Act, ConsentState};
use crate::domain::identity::Identity;
use crate::domain::key::{Channel, ConsentKey};
use crate::domain::view::ConsentView;
use crate::run::readers::Trouble;
use crate::stage::apply::apply;
use crate::stage::entry::{Grounds, standing};
use crate::wire::consent::{decode_key, encode_key, encode_value};
use crate::wire::proto;
use parking_lot::Mutex;
use prost::Message;
use std::collections::{BTreeMap, BTreeSet};

/// What was erased, or would be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Erased {
    /// Keys, as they stood on the topic.
    pub keys: u64,
    /// Acts that go on standing under the hash.
    pub protected: u64,
    /// `hash:…`, where something goes on standing.
    pub hash: Option<String>,
    /// Keys on the guidance topic.
    pub guidance: u64,
}

/// What the topic holds of a person.
struct Held {
    view: ConsentView,
    /// Keys as they are written, by partition, that are not erased yet.
    written: BTreeSet<(u32, Vec<u8>)>,
    /// What they mean, and why the latest record of each was written.
    keys: BTreeMap<ConsentKey, i32>,
}

/// Erases a person at one business, on one channel or on all. Nothing is known of them where no keys are erased.
pub fn erase(
    config: &Config,
    business: &str,
    channel: Option<&Channel>,
    identity: &Identity,
    grounds: &Grounds,
    dry_run: bool,
) -> Result<Erased, Trouble> {
    let source = Source::new(config)?;
    let extent = source.extent()?;
    let partitions = extent.partitions();
    let view = ConsentView::new(crate::run::service::random_print_key(config.identity_key), partitions);
    let held = Mutex::new(Held { view, written: BTreeSet::new(), keys: BTreeMap::new() });
    source.scan("reading opt-outs", &up_to(&extent, &extent.ends), &|record| {
        let bytes = record.key.unwrap_or_default();
        let Ok(key) = decode_key(bytes, &config.businesses) else { return };
        if *key.business != *business || key.identity != *identity || channel.is_some_and(|channel| *channel != key.channel) {
            return;
        }
        let mut held = held.lock();
        apply(&mut held.view, &written(record), &config.businesses);
        match record.value {
            None => {
                held.written.remove(&(record.partition, bytes.to_vec()));
            }
            Some(value) => {
                held.written.insert((record.partition, bytes.to_vec()));
                held.keys.insert(key, proto::ConsentRecord::decode(value).map_or(0, |consent| consent.cause));
            }
        }
    })?;
    let Held { view, written, keys } = held.into_inner();
    let acts: Vec<(&ConsentKey, Act, i32)> = keys.iter().filter_map(|(key, cause)| Some((key, standing(&view, key)?, *cause))).collect();
    // Who is opted out of nothing needs no protection; who is keeps what ends a part of it, too.
    let is_out = acts.iter().any(|(_, act, _)| act.state == ConsentState::OptedOut);
    let mut erased = Erased { keys: written.len() as u64, ..Erased::default() };
    let protect = match (is_out, config.identity_key) {
        (false, _) => None,
        (true, Some(key)) => Some(key.hash(identity)),
        (true, None) => {
            return Err(Trouble::Asked(
                "the person is opted out, and only a keyed hash can keep them so: set identity_hash_key, better as STOPGATE_IDENTITY_HASH_KEY"
                    .to_owned(),
            ));
        }
    };
    erased.protected = if protect.is_some() { acts.len() as u64 } else { 0 };
    erased.hash = protect.as_ref().map(Identity::to_text);
    let guidance = guidance_keys(config, &source, business, channel, identity)?;
    erased.guidance = guidance.len() as u64;
    if dry_run {
        return Ok(erased);
    }
    if let Some((partition, _)) = guidance.iter().next_back() {
        // The number of partitions is not asked for: each key goes back to where it lies.
        let mut writer = Writer::of_topic(config, &config.topics.guidance, partition + 1)?;
        guidance.into_iter().try_for_each(|(partition, key)| writer.send_bytes(partition, key, None))?;
        writer.settle()?;
    }
    let mut writer = Writer::new(config, partitions)?;
    if let Some(hash) = protect {
        for (key, act, cause) in acts {
            let key = ConsentKey { identity: hash.clone(), ..key.clone() };
            writer.send(&encode_key(&key), Some(encode_value(&protecting(&act, cause, grounds))))?;
        }
        writer.settle()?;
    }
    // A view knows canonical keys: their tombstones make it forget what was written under aliases.
    let canonical = keys.keys().map(encode_key).map(|key| (key.partition(partitions), key.as_bytes().to_vec()));
    let all: BTreeSet<(u32, Vec<u8>)> = if written.is_empty() { BTreeSet::new() } else { written.into_iter().chain(canonical).collect() };
    for (partition, key) in all {
        writer.send_bytes(partition, key, None)?;
    }
    writer.settle()?;
    Ok(erased)
}

/// The keys under which the guidance topic knows a person, as they are written, by partition.
fn guidance_keys(
    config: &Config,
    source: &Source<'_>,
    business: &str,
    channel: Option<&Channel>,
    identity: &Identity,
) -> Result<BTreeSet<(u32, Vec<u8>)>, Trouble> {
    if config.guidance.is_none() {
        return Ok(BTreeSet::new());
    }
    let names = config.identities_of(identity);
    let found = Mutex::new(BTreeSet::new());
    source.readers.for_each(&source.readers.extent(&config.topics.guidance)?, source.threads, &|record| {
        let bytes = record.key.unwrap_or_default();
        let Ok(key) = decode_key(bytes, &config.businesses) else { return };
        let is_theirs = *key.business == *business && names.contains(&key.identity) && channel.is_none_or(|channel| *channel == key.channel);
        if is_theirs {
            let place = (record.partition, bytes.to_vec());
            let mut found = found.lock();
            let _known = if record.value.is_some() { found.insert(place) } else { found.remove(&place) };
        }
    })?;
    Ok(found.into_inner())
}

/// An act without what it rests on: when, what, and who erased the rest.
fn protecting(act: &Act, cause: i32, grounds: &Grounds) -> proto::ConsentRecord {
    let state = proto::ConsentState::from(act.state);
    let reason = if grounds.reason.is_empty() { "erasure".to_owned() } else { format!("erasure: {}", grounds.reason) };
    proto::ConsentRecord {
        state: state.into(),
        occurred_at_ms: act.occurred_at.millis(),
        cause,
        evidence: Some(proto::Evidence { actor: grounds.actor.clone(), reason, ..proto::Evidence::default() }),
        changed_state: false,
        feedback_reason: String::new(),
    }
}
