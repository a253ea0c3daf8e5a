//! What must hold after each step, judged from the log alone.

use super::log::{Entry, Record};
use super::person::{self, Act, Folded, Key, Note, OWN};
use super::world::{ALLOWED, DEAD_LETTERS, DECISIONS, DETECT_GROUP, INBOUND, OPT_OUTS, REPLIES, SENDS, SUPPRESSED, World};
use prost::Message as _;
use std::collections::{BTreeMap, BTreeSet};
use stopgate::domain::consent::ConsentState;
use stopgate::domain::identity::Identity;
use stopgate::domain::key::{Channel, Subject};
use stopgate::domain::view::ConsentView;
use stopgate::wire::proto;

/// A broken promise.
#[derive(Clone, Debug)]
pub struct Violation {
    pub invariant: &'static str,
    pub what: String,
    /// Whom it concerns, where it concerns one.
    pub person: Option<usize>,
}

/// What was judged so far.
#[derive(Debug, Default)]
pub struct Judge {
    /// By sends partition: up to where blocks have come, and the last source in each output.
    decided: BTreeMap<u32, u64>,
    last: BTreeMap<(String, u32), u64>,
    /// Where inbound messages were answered.
    answered: BTreeSet<(u32, u64)>,
    dead_inbound: BTreeSet<String>,
    /// When the opt-outs topic was made anew, by its id.
    pub made_at: BTreeMap<u64, u64>,
    /// Whether the fence waits for detect.
    pub inbound_level: bool,
    views: u64,
}

/// Most records a worker may hold undecided.
const MOST_PENDING: usize = 64;

impl World {
    /// I8: what a worker holds is bounded.
    pub fn judge_memory(&mut self, pending: usize) {
        if pending > MOST_PENDING {
            self.violate("I8", format!("a worker holds {pending} records"), None);
        }
    }

    /// I6: the view holds what its position says.
    pub fn judge_view(&mut self, view: &ConsentView, topic_id: u64, skip: bool) {
        self.judge.views += 1;
        if skip || !self.judge.views.is_multiple_of(5) {
            return;
        }
        let folded = self.fold(topic_id, view.applied());
        let prints = view.print_key();
        for ((channel, identity, subject), act) in &folded.0 {
            let identity = Identity::parse(identity).expect("an identity");
            let (channel, subject) = (Channel::parse(channel).expect("a channel"), Subject::parse(subject).expect("a subject"));
            let standing = view.standing(prints.person("acme", &identity), prints.slot(&channel, &subject));
            let same = standing.is_some_and(|found| (found.occurred_at.millis(), found.state == ConsentState::OptedOut) == (act.at_ms, act.out));
            if !same {
                let what = format!(
                    "a view applied up to {:?} holds {standing:?} about {subject} on {} of {} where the log says {act:?}",
                    view.applied(),
                    channel.as_str(),
                    identity.to_text()
                );
                return self.violate("I6", what, None);
            }
        }
    }

    fn history(&self, topic_id: u64) -> Vec<&Vec<Entry>> {
        let current = self.log.topic(OPT_OUTS);
        let topic = if current.id == topic_id { Some(current) } else { self.log.deleted.get(&topic_id) };
        topic.map(|topic| topic.partitions.iter().map(|partition| &partition.history).collect()).unwrap_or_default()
    }

    /// What the opt-outs topic says up to a position.
    fn fold(&self, topic_id: u64, as_of: &[u64]) -> Folded {
        let mut folded = Folded::default();
        for (history, end) in self.history(topic_id).into_iter().zip(as_of) {
            for entry in history.iter().take(*end as usize).filter(|entry| self.log.is_visible(entry)) {
                if let Some((key, act)) = entry.record.as_ref().and_then(person::read) {
                    folded.apply(key, act);
                }
            }
        }
        folded
    }

    /// All acts of inbound messages before a tick.
    fn inbound_acts(&self, before: u64) -> impl Iterator<Item = (Key, Act)> {
        let all = self.log.topic(INBOUND).partitions.iter().flat_map(|partition| &partition.history);
        let acts =
            all.filter(move |entry| entry.tick < before && self.log.is_visible(entry)).filter_map(|entry| match &entry.record.as_ref()?.note {
                Note::Message { acts, .. } => Some(acts.clone()),
                _ => None,
            });
        acts.flatten()
    }

    /// What a transaction made visible.
    pub fn judge_commit(&mut self, transaction: usize) {
        let written: Vec<(String, Record)> = self.log.written_in(transaction).collect();
        let blocks: Vec<(proto::DecisionBlock, u64)> = written
            .iter()
            .filter(|(topic, _)| topic == DECISIONS)
            .filter_map(|(_, record)| match record.note {
                Note::Block { received } => Some((proto::DecisionBlock::decode(record.value.as_deref()?).ok()?, received)),
                _ => None,
            })
            .collect();
        for (block, received) in &blocks {
            self.judge_block(block, *received, &written);
        }
        for (topic, record) in &written {
            if topic == REPLIES
                && let Note::Reply { partition, offset } = record.note
                && !self.judge.answered.insert((partition, offset))
            {
                self.violate("P2", format!("message {partition}@{offset} is answered twice"), None);
            }
            let source = source_of(record);
            if topic == DEAD_LETTERS && source.starts_with(INBOUND) && !self.judge.dead_inbound.insert(source.to_owned()) {
                self.violate("I3", format!("{source} is set aside twice"), None);
            }
        }
    }

    fn judge_block(&mut self, block: &proto::DecisionBlock, received: u64, written: &[(String, Record)]) {
        let partition = block.partition;
        let decided = self.judge.decided.get(&partition).copied().unwrap_or_default();
        if decided != block.first_offset {
            let what = format!("{SENDS}-{partition}: a block {}..{} follows upon {decided}", block.first_offset, block.end_offset);
            return self.violate("I3", what, None);
        }
        self.judge.decided.insert(partition, block.end_offset);
        let topic_id: u64 = block.opt_outs_topic_id.parse().unwrap_or_default();
        let mut folded = self.fold(topic_id, &block.as_of);
        if received > 0 {
            self.judge_coverage(block, received, topic_id);
        }
        let at_as_of = folded.clone();
        if self.judge.inbound_level {
            self.inbound_acts(received).for_each(|(key, act)| folded.apply(key, act));
        }
        let mut outcomes = BTreeMap::new();
        for (topic, record) in written {
            let Some(offset) = source_of(record).strip_prefix(&format!("{SENDS}-{partition}@")).and_then(|offset| offset.parse::<u64>().ok())
            else {
                continue;
            };
            if !(block.first_offset..block.end_offset).contains(&offset) {
                continue;
            }
            if outcomes.insert(offset, topic.as_str()).is_some() {
                return self.violate("I3", format!("send {partition}@{offset} has two outcomes"), None);
            }
            let last = self.judge.last.insert((topic.clone(), partition), offset);
            if last.is_some_and(|last| last >= offset) {
                return self.violate("I4", format!("send {partition}@{offset} comes after {last:?} in {topic}"), None);
            }
        }
        for offset in block.first_offset..block.end_offset {
            let Some(input) = self.log.at(SENDS, partition, offset).cloned() else { continue };
            let Some(topic) = outcomes.get(&offset).copied() else {
                return self.violate("I3", format!("send {partition}@{offset} has no outcome"), None);
            };
            let Note::Send { person, exempt, expires_at_ms } = input.note else {
                if topic != DEAD_LETTERS {
                    self.violate("I3", format!("send {partition}@{offset} cannot be read and went to {topic}"), None);
                }
                continue;
            };
            let output =
                written.iter().find(|(_, record)| source_of(record) == format!("{SENDS}-{partition}@{offset}")).map(|(_, record)| record);
            let unchanged = output.is_some_and(|output| output.key == input.key && output.value == input.value);
            let reason = output.map(|output| header(output, "stopgate-reason").to_owned()).unwrap_or_default();
            let expired = expires_at_ms.is_some_and(|at| at <= block.expired_as_of_ms);
            let wrong = match topic {
                ALLOWED if at_as_of.suppresses(person, exempt) => Some(("I1", "allowed where an opt-out stands in what was looked up")),
                ALLOWED if folded.suppresses(person, exempt) => Some(("I2", "allowed where an inbound message before it says stop")),
                ALLOWED if received == 0 => Some(("I2", "allowed without a fence")),
                SUPPRESSED if reason == "expired-while-held" && !expired => Some(("P3", "suppressed as expired before it was")),
                SUPPRESSED if reason != "expired-while-held" && !at_as_of.suppresses(person, exempt) => {
                    Some(("I5", "suppressed where nothing stands in what was looked up"))
                }
                ALLOWED | SUPPRESSED if !unchanged => Some(("I3", "passed on with other bytes")),
                ALLOWED | SUPPRESSED => None,
                _ => Some(("I3", "can be read and was set aside")),
            };
            if let Some((invariant, what)) = wrong {
                return self.violate(invariant, format!("send {partition}@{offset} as of {:?}: {what}", block.as_of), Some(person));
            }
            self.count(if topic == ALLOWED { "allowed" } else { "suppressed" });
        }
    }

    /// I2: all that the opt-outs topic held when the batch was received was looked up.
    fn judge_coverage(&mut self, block: &proto::DecisionBlock, received: u64, topic_id: u64) {
        let current = self.log.topic(OPT_OUTS).id;
        let is_old = topic_id != current && self.judge.made_at.get(&current).is_some_and(|made| *made < received);
        if is_old {
            return self.violate("I2", format!("{SENDS}-{} was decided at positions of a topic that is gone", block.partition), None);
        }
        let history = self.history(topic_id);
        let missed = history.iter().enumerate().find_map(|(partition, history)| {
            let held = history.partition_point(|entry| entry.tick < received) as u64;
            let as_of = block.as_of.get(partition).copied().unwrap_or_default();
            (as_of < held).then_some((partition, as_of, held))
        });
        if let Some((partition, as_of, held)) = missed {
            let what = format!("{SENDS}-{}: decided at {as_of} of opt-outs {partition}, which held {held} before the batch", block.partition);
            self.violate("I2", what, None);
        }
    }

    /// What has come in and not to its end, in words; empty where nothing has.
    pub fn unfinished(&mut self) -> String {
        let mut left = String::new();
        let ends = |world: &Self, topic: &str| world.log.topic(topic).partitions.iter().map(|partition| partition.end).collect::<Vec<u64>>();
        for (partition, end) in (0..).zip(ends(self, SENDS)) {
            let decided = self.judge.decided.get(&partition).copied().unwrap_or_default();
            if decided != end {
                left.push_str(&format!("{SENDS}-{partition} is decided up to {decided} of {end}; "));
            }
        }
        for (partition, end) in (0..).zip(ends(self, INBOUND)) {
            let committed = self.group(DETECT_GROUP).committed(&(INBOUND.into(), partition)).unwrap_or_default();
            if committed != end {
                left.push_str(&format!("{INBOUND}-{partition} is committed up to {committed} of {end}; "));
            }
        }
        left
    }

    /// What must hold once everything has come to its end.
    pub fn judge_end(&mut self) {
        let current = self.log.topic(OPT_OUTS).id;
        let ends: Vec<u64> = self.log.topic(OPT_OUTS).partitions.iter().map(|partition| partition.end).collect();
        let folded = self.fold(current, &ends);
        for partition in 0..self.log.partitions(INBOUND) {
            let messages: Vec<(u64, Note)> =
                self.log.committed(INBOUND, partition).map(|(offset, record)| (offset, record.note.clone())).collect();
            let mut standing = Folded::default();
            for (offset, note) in &messages {
                let dead = self.judge.dead_inbound.contains(&format!("{INBOUND}-{partition}@{offset}"));
                let Note::Message { person, acts, .. } = note else {
                    if !dead {
                        self.violate("I3", format!("message {partition}@{offset} cannot be read and is no dead letter"), None);
                    }
                    continue;
                };
                if dead {
                    self.violate("I3", format!("message {partition}@{offset} can be read and is a dead letter"), Some(*person));
                }
                for (key, act) in acts {
                    if folded.0.get(key).is_none_or(|found| (found.at_ms, found.out) < (act.at_ms, act.out)) {
                        self.violate("P2", format!("message {partition}@{offset}: its act was lost"), Some(*person));
                    }
                }
                if *person < OWN {
                    self.judge_reply(partition, *offset, *person, acts, &mut standing, &messages);
                }
            }
        }
    }

    /// Of persons whose consent nobody else changes it is known which message changes something.
    fn judge_reply(&mut self, partition: u32, offset: u64, person: usize, acts: &[(Key, Act)], standing: &mut Folded, messages: &[(u64, Note)]) {
        let answered = self.judge.answered.contains(&(partition, offset));
        let Some((key, act)) = acts.first() else {
            if answered {
                self.violate("P2", format!("message {partition}@{offset} asks for nothing and is answered"), Some(person));
            }
            return;
        };
        let before = standing.suppresses(person, false);
        let is_first = standing.0.keys().all(|(_, identity, _)| *identity != key.1);
        standing.apply(key.clone(), *act);
        let after = standing.suppresses(person, false);
        let due = after == act.out && (before != after || (is_first && !act.out));
        let superseded = messages.iter().any(|(later, note)| match note {
            Note::Message { person: other, acts, .. } => later > &offset && *other == person && !acts.is_empty(),
            _ => false,
        });
        match (due, answered) {
            (true, false) if !superseded => {
                self.violate("P2", format!("message {partition}@{offset} changed something and was not answered"), Some(person))
            }
            (false, true) => self.violate("P2", format!("message {partition}@{offset} changed nothing and was answered"), Some(person)),
            (true | false, true | false) => {}
        }
    }
}

fn header<'a>(record: &'a Record, name: &str) -> &'a str {
    record.headers.iter().rev().find(|(found, _)| found == name).map_or("", |(_, value)| value)
}

/// `topic-partition@offset` of the record that this one came of.
fn source_of(record: &Record) -> &str {
    header(record, "source")
}
