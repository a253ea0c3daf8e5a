//! What looking back works with: questions to the brokers, and readers of stretches of topics. Nothing here can write:
//! no producer, no group that is joined, no position that is committed.

use super::progress;
use crate::config::Config;
use crate::kafka::offsets::{Offsets, OffsetsClient, Unknown};
use crate::kafka::range::{RangeError, RangeReader, Span, read_in_parallel};
use crate::kafka::{Connection, EdgeError};
use crate::record::{Record, TopicName};
use std::thread;
use std::time::{Duration, Instant};

const QUERY_TIMEOUT: Duration = Duration::from_secs(10);
const ASK_AGAIN: Duration = Duration::from_millis(100);

/// Why the past cannot be told: exit code 2.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    #[error(transparent)]
    Edge(#[from] EdgeError),
    #[error(transparent)]
    Range(#[from] RangeError),
    #[error("{topic}: {error}")]
    Unknown { topic: TopicName, error: Unknown },
    #[error("topic {0} does not exist, or no broker answers for it")]
    NoTopic(TopicName),
    /// What was asked for cannot be answered; the text says why.
    #[error("{0}")]
    Asked(String),
    #[error("writing the answer: {0}")]
    Output(#[from] std::io::Error),
}

/// A topic and what it holds at one moment, by partition.
#[derive(Clone, Debug)]
pub struct Extent {
    pub topic: TopicName,
    /// The brokers' id of the topic; absent where they were not asked, or do not tell.
    pub id: Option<String>,
    pub beginnings: Vec<u64>,
    /// Ends below which everything is committed or aborted.
    pub stable: Vec<u64>,
    /// Ends of everything that is acknowledged; asked for after `stable`.
    pub ends: Vec<u64>,
}

impl Extent {
    pub fn partitions(&self) -> u32 {
        self.ends.len() as u32
    }

    /// Beginning of one partition.
    pub fn beginning(&self, partition: u32) -> u64 {
        self.beginnings.get(partition as usize).copied().unwrap_or_default()
    }

    /// End of one partition.
    pub fn end(&self, partition: u32) -> u64 {
        self.ends.get(partition as usize).copied().unwrap_or_default()
    }

    /// Everything that the topic holds.
    pub fn spans(&self) -> Vec<Span> {
        (0..self.partitions()).map(|partition| Span { partition, from: self.beginning(partition), to: self.end(partition) }).collect()
    }
}

/// Asks again for a while where the brokers answer with what passes by itself: of a topic that was just created, or whose leader
/// moves, one may not know yet that it leads it.
fn ask(question: impl Fn() -> Result<Offsets, Unknown>) -> Result<Offsets, Unknown> {
    let until = Instant::now() + QUERY_TIMEOUT;
    loop {
        match question() {
            Err(Unknown::Query(EdgeError::Retriable(_)) | Unknown::Partition(_)) if Instant::now() < until => thread::sleep(ASK_AGAIN),
            answer => return answer,
        }
    }
}

/// Questions and readers.
pub struct Readers {
    connection: Connection,
    group: String,
    offsets: OffsetsClient,
    stable: OffsetsClient,
}

impl Readers {
    /// Readers of this configuration's brokers.
    pub fn new(config: &Config) -> Result<Self, EdgeError> {
        let (connection, group) = (&config.connection, &config.filter_group);
        Ok(Self {
            connection: connection.clone(),
            group: group.clone(),
            offsets: OffsetsClient::new(connection, group)?,
            stable: OffsetsClient::of_committed(connection, group)?,
        })
    }

    /// What a topic holds now.
    pub fn extent(&self, topic: &TopicName) -> Result<Extent, Trouble> {
        let known = |error| Trouble::Unknown { topic: topic.clone(), error };
        let partitions = self.offsets.partitions(topic, QUERY_TIMEOUT)?.ok_or_else(|| Trouble::NoTopic(topic.clone()))?;
        let beginnings = ask(|| self.offsets.beginnings(topic, partitions, QUERY_TIMEOUT)).map_err(known)?;
        let stable = ask(|| self.stable.ends(topic, partitions, QUERY_TIMEOUT)).map_err(known)?;
        let ends = ask(|| self.offsets.ends(topic, partitions, QUERY_TIMEOUT)).map_err(known)?;
        Ok(Extent {
            topic: topic.clone(),
            id: None,
            beginnings: beginnings.as_slice().to_vec(),
            stable: stable.as_slice().to_vec(),
            ends: ends.as_slice().to_vec(),
        })
    }

    /// Asks which topic it is.
    pub fn identify(&self, extent: &mut Extent) {
        extent.id = self.offsets.describe(&extent.topic, QUERY_TIMEOUT).map(|described| described.id);
    }

    /// Asks for the ends again.
    pub fn extend(&self, extent: &mut Extent) -> Result<(), Trouble> {
        let known = |error| Trouble::Unknown { topic: extent.topic.clone(), error };
        let ends = ask(|| self.offsets.ends(&extent.topic, extent.partitions(), QUERY_TIMEOUT)).map_err(known)?;
        extent.ends = ends.as_slice().to_vec();
        Ok(())
    }

    /// The first offset of each partition whose record is of that time or later.
    pub fn at_time(&self, extent: &Extent, time_ms: i64) -> Result<Vec<u64>, Trouble> {
        let known = |error| Trouble::Unknown { topic: extent.topic.clone(), error };
        let offsets = ask(|| self.offsets.at_time(&extent.topic, extent.partitions(), time_ms, QUERY_TIMEOUT)).map_err(known)?;
        Ok(offsets.as_slice().to_vec())
    }

    /// How far the filter's group has come in a topic; `None` for partitions without a position, and for all where the
    /// brokers do not tell.
    pub fn committed(&self, extent: &Extent) -> Vec<Option<u64>> {
        let nothing = |_| vec![None; extent.partitions() as usize];
        self.offsets.committed(&extent.topic, extent.partitions(), QUERY_TIMEOUT).unwrap_or_else(nothing)
    }

    /// The same of another group.
    pub fn committed_of(&self, group: &str, extent: &Extent) -> Result<Vec<Option<u64>>, EdgeError> {
        let offsets = OffsetsClient::new(&self.connection, group)?;
        let nothing = |_| vec![None; extent.partitions() as usize];
        Ok(offsets.committed(&extent.topic, extent.partitions(), QUERY_TIMEOUT).unwrap_or_else(nothing))
    }

    /// A reader of stretches of one topic.
    pub fn read(&self, topic: &TopicName, spans: &[Span]) -> Result<RangeReader, EdgeError> {
        RangeReader::new(&self.connection, &self.group, topic, spans)
    }

    /// Hands every record of these stretches of a topic to `each`, as [`Readers::for_each`] does, and shows the progress of it.
    pub fn scan(
        &self,
        what: &'static str,
        topic: &TopicName,
        spans: &[Span],
        threads: usize,
        each: &(impl Fn(&Record<'_>) + Sync),
    ) -> Result<(), Trouble> {
        let bar = progress::bar(what, Some(spans.iter().map(|span| span.to.saturating_sub(span.from)).sum()));
        read_in_parallel(&self.connection, &self.group, topic, spans, threads, |record| {
            bar.inc(1);
            each(record);
        })?;
        bar.finish_and_clear();
        Ok(())
    }

    /// Hands every record of a topic to `each`, from up to `threads` threads; one partition's records come in order and
    /// from one thread.
    pub fn for_each(&self, extent: &Extent, threads: usize, each: &(impl Fn(&Record<'_>) + Sync)) -> Result<(), Trouble> {
        Ok(read_in_parallel(&self.connection, &self.group, &extent.topic, &extent.spans(), threads, each)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[test]
    fn what_passes_by_itself_is_asked_again_and_nothing_else_is() {
        let asked = Cell::new(0);
        let answer = ask(|| {
            asked.set(asked.get() + 1);
            Err(if asked.get() < 3 { Unknown::Partition(0) } else { Unknown::Topic })
        });
        assert!(matches!(answer, Err(Unknown::Topic)), "{answer:?}");
        assert_eq!(asked.get(), 3);
        let answer = ask(|| {
            asked.set(asked.get() + 1);
            Err(EdgeError::timed_out("a test").into())
        });
        assert!(matches!(answer, Err(Unknown::Query(EdgeError::Abort(_)))), "{answer:?}");
        assert_eq!(asked.get(), 4);
    }
}
