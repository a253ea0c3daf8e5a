//! Which outcome belongs to which send, where the outcome does not say: sends.allowed holds the sends as they came in.
//!
//! Both are sequences in one order, so the next outcome is that of the next send that waits for one. Where it is not,
//! a window of what follows on either side tells whether an outcome is missing, is one too many, or was changed.

use crate::record::Header;
use siphasher::sip::SipHasher13;
use std::collections::VecDeque;
use std::hash::Hasher;

/// How far to look for what a record could belong to.
const WINDOW: usize = 512;

/// Keyed hashes of the parts of a record. The key is random in each process, so nobody can prepare two records that
/// look the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Digest {
    key: u64,
    value: u64,
    headers: u64,
    timestamp: Option<i64>,
}

/// What digests are made under.
#[derive(Clone, Copy)]
pub(super) struct DigestKey(pub(super) u64, pub(super) u64);

impl DigestKey {
    /// The digest of a record with these headers, and more of them behind.
    pub(super) fn of(
        self,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: &[Header<'_>],
        more: &[(&'static str, String)],
        timestamp: Option<i64>,
    ) -> Digest {
        let part = |bytes: Option<&[u8]>| {
            let mut hasher = SipHasher13::new_with_keys(self.0, self.1);
            put(&mut hasher, bytes);
            hasher.finish()
        };
        let headers = if headers.is_empty() && more.is_empty() {
            0
        } else {
            let mut hasher = SipHasher13::new_with_keys(self.0, self.1);
            for header in headers {
                put(&mut hasher, Some(header.name));
                put(&mut hasher, header.value);
            }
            for (name, value) in more {
                put(&mut hasher, Some(name.as_bytes()));
                put(&mut hasher, Some(value.as_bytes()));
            }
            hasher.finish()
        };
        Digest { key: part(key), value: part(value), headers, timestamp }
    }
}

/// The length stands before the bytes: parts cannot run into one another, and none is not empty.
fn put(hasher: &mut SipHasher13, bytes: Option<&[u8]>) {
    hasher.write_u64(bytes.map_or(u64::MAX, |bytes| bytes.len() as u64));
    hasher.write(bytes.unwrap_or_default());
}

impl Digest {
    /// The digest of a record on a topic whose brokers set the time.
    pub(super) fn with_any_time(self) -> Self {
        Self { timestamp: None, ..self }
    }

    /// The parts in which an outcome differs from what it should be.
    pub(super) fn differing(&self, outcome: &Self) -> Vec<&'static str> {
        let parts = [
            ("key", self.key != outcome.key),
            ("value", self.value != outcome.value),
            ("headers", self.headers != outcome.headers),
            ("timestamp", outcome.timestamp.is_some() && self.timestamp != outcome.timestamp),
        ];
        parts.into_iter().filter(|(_, differs)| *differs).map(|(name, _)| name).collect()
    }

    /// Whether an outcome is what it should be.
    pub(super) fn fits(&self, outcome: &Self) -> bool {
        let in_time = outcome.timestamp.is_none() || self.timestamp == outcome.timestamp;
        in_time && (self.key, self.value, self.headers) == (outcome.key, outcome.value, outcome.headers)
    }
}

/// What was found out about the head of either sequence.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Aligned<W, F> {
    Same(W, F),
    /// They stand in each other's place and differ.
    Changed(W, F),
    Missing(W),
    Extra(F),
}

/// What knows its digest.
pub(super) trait HasDigest {
    fn digest(&self) -> &Digest;
}

/// The sends that wait for an outcome, and the outcomes that were found.
pub(super) struct Aligner<W, F> {
    waiting: VecDeque<W>,
    found: VecDeque<F>,
    /// Nothing has met its outcome yet, and the outcomes begin before the sends.
    begins_early: bool,
    /// Nothing has met its outcome yet, and the first outcomes are gone from the log.
    begins_late: bool,
}

impl<W: HasDigest, F: HasDigest> Aligner<W, F> {
    /// Two empty sequences. `begins_early`: outcomes of earlier sends come first; `begins_late`: outcomes of the first
    /// sends may be gone.
    pub(super) fn new(begins_early: bool, begins_late: bool) -> Self {
        Self { waiting: VecDeque::new(), found: VecDeque::new(), begins_early, begins_late }
    }

    pub(super) fn wait(&mut self, send: W) {
        self.waiting.push_back(send);
    }

    pub(super) fn find(&mut self, outcome: F) {
        self.found.push_back(outcome);
    }

    /// Whether no outcome is at hand for a send that waits, or more of them must be seen to go on.
    pub(super) fn wants_outcomes(&self) -> bool {
        !self.waiting.is_empty() && self.found.len() <= WINDOW
    }

    /// The send that has waited longest.
    pub(super) fn oldest(&self) -> Option<&W> {
        self.waiting.front()
    }

    /// What becomes of the heads; `None` where more must be seen first. `last`: no more sends, no more outcomes.
    pub(super) fn step(&mut self, last_send: bool, last_outcome: bool) -> Option<Aligned<W, F>> {
        loop {
            let (Some(send), Some(outcome)) = (self.waiting.front(), self.found.front()) else {
                return match (self.waiting.is_empty(), self.found.is_empty()) {
                    (false, true) if last_outcome => self.waiting.pop_front().map(Aligned::Missing),
                    (true, false) if last_send => self.found.pop_front().map(Aligned::Extra),
                    _ => None,
                };
            };
            if send.digest().fits(outcome.digest()) {
                (self.begins_early, self.begins_late) = (false, false);
                return self.waiting.pop_front().zip(self.found.pop_front()).map(|(send, outcome)| Aligned::Same(send, outcome));
            }
            if (self.waiting.len() <= WINDOW && !last_send) || (self.found.len() <= WINDOW && !last_outcome) {
                return None;
            }
            let later_send = self.waiting.iter().take(WINDOW).position(|send| send.digest().fits(outcome.digest()));
            // Where both may be, times tell which of the two is the earlier one.
            let is_early = !self.begins_late || outcome.digest().timestamp <= send.digest().timestamp;
            if self.begins_early && later_send.is_none() && is_early {
                self.found.pop_front();
                continue;
            }
            if self.begins_late {
                return self.waiting.pop_front().map(Aligned::Missing);
            }
            let later_outcome = self.found.iter().take(WINDOW).position(|outcome| send.digest().fits(outcome.digest()));
            return match (later_send, later_outcome) {
                (Some(sends), Some(outcomes)) if outcomes < sends => self.found.pop_front().map(Aligned::Extra),
                (Some(_), _) => self.waiting.pop_front().map(Aligned::Missing),
                (None, Some(_)) => self.found.pop_front().map(Aligned::Extra),
                (None, None) => self.waiting.pop_front().zip(self.found.pop_front()).map(|(send, outcome)| Aligned::Changed(send, outcome)),
            };
        }
    }

    /// Whether nothing has met its outcome yet and the first outcomes are gone from the log.
    pub(super) fn begins_late(&self) -> bool {
        self.begins_late
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Eq)]
    struct Item(char, Digest);

    impl HasDigest for Item {
        fn digest(&self) -> &Digest {
            &self.1
        }
    }

    fn items(text: &str) -> impl Iterator<Item = Item> {
        text.chars().map(|name| {
            let value = name.to_string();
            Item(name, DigestKey(1, 2).of(None, Some(value.as_bytes()), &[], &[], Some(5)))
        })
    }

    /// `=a` same, `-a` missing, `+a` one too many, `~ab` changed.
    #[track_caller]
    fn check(sends: &str, outcomes: &str, early: bool, expected: &str) {
        let mut aligner = Aligner::new(early, false);
        items(sends).for_each(|item| aligner.wait(item));
        items(outcomes).for_each(|item| aligner.find(item));
        let mut told = Vec::new();
        while let Some(aligned) = aligner.step(true, true) {
            told.push(match aligned {
                Aligned::Same(send, _) => format!("={}", send.0),
                Aligned::Missing(send) => format!("-{}", send.0),
                Aligned::Extra(outcome) => format!("+{}", outcome.0),
                Aligned::Changed(send, outcome) => format!("~{}{}", send.0, outcome.0),
            });
        }
        assert_eq!(told.join(" "), expected);
    }

    #[test]
    fn every_kind_of_fault_is_told_apart() {
        check("abc", "abc", false, "=a =b =c");
        check("abc", "ac", false, "=a -b =c");
        check("abc", "abbc", false, "=a =b +b =c");
        check("abc", "axc", false, "=a ~bx =c");
        check("abc", "bac", false, "-a =b +a =c");
        check("ab", "", false, "-a -b");
        check("", "ab", false, "+a +b");
        check("abc", "abcabc", false, "=a =b =c +a +b +c");
    }

    #[test]
    fn outcomes_of_earlier_sends_are_no_faults() {
        check("cde", "abcde", true, "=c =d =e");
        check("cde", "abde", true, "-c =d =e");
    }

    #[test]
    fn what_differs_is_named() {
        let of = |key: &[u8], timestamp| DigestKey(1, 2).of(Some(key), None, &[], &[], timestamp);
        assert_eq!(of(b"k", Some(1)).differing(&of(b"x", Some(2))), ["key", "timestamp"]);
        assert!(of(b"k", Some(1)).fits(&of(b"k", None)), "a time that brokers set says nothing");
        let header = |value| DigestKey(1, 2).of(None, None, &[Header { name: b"a", value }], &[], None);
        assert_eq!(header(None).differing(&header(Some(b""))), ["headers"]);
        let more = DigestKey(1, 2).of(None, None, &[], &[("a", "b".to_owned())], None);
        assert!(header(Some(b"b")).fits(&more), "added headers are headers");
    }
}
