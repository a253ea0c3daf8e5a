//! Which stretches of the input are looked at: what the command line asks for, as far as the log holds it.

use super::Options;
use crate::record::TopicName;
use crate::run::readers::{Extent, Readers, Trouble};
use std::str::FromStr;

/// A stretch of one partition as it is given on the command line: `P:FROM-TO`, or `TOPIC:P:FROM-TO` where several topics
/// are configured. TO is exclusive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OffsetRange {
    pub topic: Option<String>,
    pub partition: u32,
    pub from: u64,
    pub to: u64,
}

impl FromStr for OffsetRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = || {
            let (place, range) = text.rsplit_once(':')?;
            let (topic, partition) = place.rsplit_once(':').map_or((None, place), |(topic, partition)| (Some(topic.to_owned()), partition));
            let (from, to) = range.split_once('-')?;
            Some(Self { topic, partition: partition.parse().ok()?, from: from.parse().ok()?, to: to.parse().ok()? })
        };
        let range = parsed().ok_or_else(|| format!("{text:?} is not P:FROM-TO, such as 0:1000-2000"))?;
        if range.from >= range.to {
            return Err(format!("{text:?} is empty: TO is exclusive and must be greater than FROM"));
        }
        Ok(range)
    }
}

/// A stretch of one partition of the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    /// Which topic of those that the stage reads.
    pub(super) topic: usize,
    pub(super) partition: u32,
    pub(super) from: u64,
    pub(super) to: u64,
}

impl Part {
    /// As `--offsets` takes it, where there are so many topics.
    pub(super) fn name(&self, topic: &TopicName, topics: usize) -> String {
        let prefix = if topics > 1 { format!("{topic}:") } else { String::new() };
        format!("{prefix}{}:{}-{}", self.partition, self.from, self.to)
    }
}

/// The stretches that were asked for; all of every partition where none were.
pub(super) fn asked_for(inputs: &[&Extent], options: &Options, readers: &Readers) -> Result<Vec<Part>, Trouble> {
    let known = |range: &&OffsetRange| {
        let of = |input: &&&Extent| range.topic.as_deref().is_none_or(|topic| topic == &*input.topic) && range.partition < input.partitions();
        inputs.iter().any(|input| of(&input))
    };
    if let Some(unknown) = options.offsets.iter().find(|range| !known(range)) {
        return Err(Trouble::Asked(format!("there is no partition {} of such a topic", unknown.partition)));
    }
    if inputs.len() > 1 && options.offsets.iter().any(|range| range.topic.is_none()) {
        return Err(Trouble::Asked("several topics are configured: give --offsets TOPIC:P:FROM-TO".to_owned()));
    }
    let mut parts = Vec::new();
    for (topic, input) in inputs.iter().enumerate() {
        let since = options.since.map(|since| readers.at_time(input, since.millis())).transpose()?;
        let until = options.until.map(|until| readers.at_time(input, until.millis())).transpose()?;
        for span in input.spans() {
            let partition = span.partition;
            let at =
                |offsets: &Option<Vec<u64>>, other: u64| offsets.as_ref().and_then(|at| at.get(partition as usize).copied()).unwrap_or(other);
            let whole = Part { topic, partition, from: at(&since, span.from), to: at(&until, span.to) };
            if options.since.is_some() && span.from > 0 && whole.from == span.from {
                return Err(Trouble::Asked(format!(
                    "{}-{partition}: everything before offset {} is gone by retention, and it may have been of the time asked for; give --offsets for what is left",
                    input.topic, span.from
                )));
            }
            if options.offsets.is_empty() {
                parts.push(whole);
                continue;
            }
            let named = |range: &&OffsetRange| range.partition == partition && range.topic.as_deref().is_none_or(|topic| topic == &*input.topic);
            for range in options.offsets.iter().filter(named) {
                if range.from < span.from {
                    return Err(Trouble::Asked(format!(
                        "{}-{partition}: offsets {} to {} are gone by retention: the log begins at {}",
                        input.topic,
                        range.from,
                        span.from.min(range.to) - 1,
                        span.from
                    )));
                }
                parts.push(Part { from: range.from.max(whole.from), to: range.to.min(whole.to), ..whole });
            }
        }
    }
    parts.retain(|part| part.from < part.to);
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_they_are_printed() {
        let range = |topic: Option<&str>, partition, from, to| Ok(OffsetRange { topic: topic.map(str::to_owned), partition, from, to });
        assert_eq!("3:10-20".parse(), range(None, 3, 10, 20));
        assert_eq!("sends.eu:0:0-1".parse(), range(Some("sends.eu"), 0, 0, 1));
        for wrong in ["", "3", "3:10", "3:10-10", "3:20-10", "x:1-2", "0:-1-5"] {
            assert!(wrong.parse::<OffsetRange>().is_err(), "{wrong}");
        }
    }
}
