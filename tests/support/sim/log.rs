//! Topics as a broker keeps them: offsets, transactions with their markers, what each kind of reader sees, compaction.

use super::person::Note;
use std::collections::BTreeMap;

/// A record, and what the simulation notes about it beside what the program under test sees.
#[derive(Clone, Debug)]
pub struct Record {
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub headers: Vec<(String, String)>,
    /// Milliseconds since the Unix epoch: `LogAppendTime`.
    pub timestamp_ms: i64,
    pub note: Note,
}

#[derive(Clone, Debug)]
pub struct Entry {
    pub offset: u64,
    /// When it was appended, in ticks of the world: no two events share one.
    pub tick: u64,
    pub transaction: Option<usize>,
    /// `None`: a transaction marker.
    pub record: Option<Record>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    Open,
    Committed,
    Aborted,
}

#[derive(Clone, Debug, Default)]
pub struct Partition {
    /// What the log holds, by offset.
    entries: Vec<Entry>,
    /// All that was ever appended: what compaction takes away stays here, for the checks.
    pub history: Vec<Entry>,
    pub end: u64,
}

#[derive(Clone, Debug, Default)]
pub struct Topic {
    /// Another one for a topic that was deleted and created again.
    pub id: u64,
    pub partitions: Vec<Partition>,
}

/// All topics and all transactions.
#[derive(Debug, Default)]
pub struct Log {
    topics: BTreeMap<String, Topic>,
    pub endings: Vec<Ending>,
    /// Topics that were deleted, by id.
    pub deleted: BTreeMap<u64, Topic>,
    written: BTreeMap<usize, Vec<(String, u32, u64)>>,
}

impl Log {
    pub fn create(&mut self, name: &str, partitions: usize) {
        let id = 1 + (self.topics.len() + self.deleted.len()) as u64;
        let topic = Topic { id, partitions: vec![Partition::default(); partitions] };
        if let Some(old) = self.topics.insert(name.to_owned(), topic) {
            self.deleted.insert(old.id, old);
        }
    }

    pub fn topic(&self, name: &str) -> &Topic {
        &self.topics[name]
    }

    pub fn partitions(&self, name: &str) -> u32 {
        self.topics[name].partitions.len() as u32
    }

    pub fn add_partition(&mut self, name: &str) {
        self.topics.get_mut(name).expect("a topic").partitions.push(Partition::default());
    }

    pub fn append(&mut self, topic: &str, number: u32, record: Option<Record>, transaction: Option<usize>, tick: u64) -> u64 {
        let partition = &mut self.topics.get_mut(topic).expect("a topic").partitions[number as usize];
        let offset = partition.end;
        if let (Some(transaction), Some(_)) = (transaction, &record) {
            self.written.entry(transaction).or_default().push((topic.to_owned(), number, offset));
        }
        let entry = Entry { offset, tick, transaction, record };
        partition.history.push(entry.clone());
        partition.entries.push(entry);
        partition.end += 1;
        offset
    }

    /// The first offset of an open transaction, else the end: as far as `read_committed` readers see.
    pub fn stable_end(&self, topic: &str, partition: u32) -> u64 {
        let partition = &self.topics[topic].partitions[partition as usize];
        let open = partition.entries.iter().find(|entry| entry.transaction.is_some_and(|at| self.endings[at] == Ending::Open));
        open.map_or(partition.end, |entry| entry.offset)
    }

    /// Up to `max` committed records from an offset on, and the position after what was passed for them: past markers,
    /// aborted records and gaps too.
    pub fn read(&self, topic: &str, partition: u32, from: u64, max: usize) -> (Vec<(u64, Record)>, u64) {
        let stable = self.stable_end(topic, partition);
        let entries = &self.topics[topic].partitions[partition as usize].entries;
        let mut records = Vec::new();
        for entry in &entries[entries.partition_point(|entry| entry.offset < from)..] {
            if entry.offset >= stable {
                break;
            }
            if let Some(record) = entry.record.as_ref().filter(|_| self.is_visible(entry)) {
                if records.len() == max {
                    return (records, entry.offset);
                }
                records.push((entry.offset, record.clone()));
            }
        }
        (records, stable.max(from))
    }

    pub fn is_visible(&self, entry: &Entry) -> bool {
        entry.record.is_some() && entry.transaction.is_none_or(|at| self.endings[at] == Ending::Committed)
    }

    /// The records of a transaction and their topics, in order of writing.
    pub fn written_in(&self, transaction: usize) -> impl Iterator<Item = (String, Record)> {
        let written = self.written.get(&transaction).into_iter().flatten();
        written.filter_map(|(topic, partition, offset)| Some((topic.clone(), self.at(topic, *partition, *offset)?.clone())))
    }

    /// The record at an offset, where the log still holds it.
    pub fn at(&self, topic: &str, partition: u32, offset: u64) -> Option<&Record> {
        let history = &self.topics.get(topic)?.partitions.get(partition as usize)?.history;
        history.get(offset as usize)?.record.as_ref()
    }

    /// What `read_committed` readers have seen of a partition so far.
    pub fn committed<'a>(&'a self, topic: &'a str, partition: u32) -> impl Iterator<Item = (u64, &'a Record)> {
        let history = &self.topics[topic].partitions[partition as usize].history;
        history.iter().filter(|entry| self.is_visible(entry)).filter_map(|entry| Some((entry.offset, entry.record.as_ref()?)))
    }

    /// The last record of each key stays, among what lies before the first open transaction and was appended before a
    /// tick. What was appended later (`min.compaction.lag.ms`) is neither taken away nor a reason to take away.
    pub fn compact(&mut self, topic: &str, before_tick: u64) {
        for number in 0..self.partitions(topic) {
            let stable = self.stable_end(topic, number);
            let mut last: BTreeMap<Vec<u8>, u64> = BTreeMap::new();
            for entry in &self.topics[topic].partitions[number as usize].entries {
                if entry.offset < stable && entry.tick < before_tick && self.is_visible(entry) {
                    last.insert(entry.record.as_ref().and_then(|record| record.key.clone()).unwrap_or_default(), entry.offset);
                }
            }
            let endings = &self.endings;
            let partition = &mut self.topics.get_mut(topic).expect("a topic").partitions[number as usize];
            partition.entries.retain(|entry| {
                let key = entry.record.as_ref().and_then(|record| record.key.clone()).unwrap_or_default();
                let visible = entry.record.is_some() && entry.transaction.is_none_or(|at| endings[at] == Ending::Committed);
                entry.offset >= stable || entry.tick >= before_tick || (visible && last.get(&key) == Some(&entry.offset))
            });
        }
    }
}
