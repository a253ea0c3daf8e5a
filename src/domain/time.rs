//! Instants as the domain knows them: milliseconds since the Unix epoch, always given, never read from a clock.

use std::fmt;

/// Milliseconds since 1970-01-01T00:00:00Z.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

/// Instants outside of these bounds are absurd: they are treated as missing. (0001-01-01 to 9999-12-31.)
const EARLIEST_MS: i64 = -62_135_596_800_000;
const LATEST_MS: i64 = 253_402_300_799_999;

impl Timestamp {
    /// The instant, or `None` where it lies outside of the years 1 to 9999.
    pub fn from_millis(millis: i64) -> Option<Self> {
        (EARLIEST_MS..=LATEST_MS).contains(&millis).then_some(Self(millis))
    }

    /// The epoch itself: stands in where neither the message nor its Kafka record knows a time.
    pub const EPOCH: Self = Self(0);

    /// Milliseconds since the Unix epoch.
    pub fn millis(self) -> i64 {
        self.0
    }

    /// This instant and `millis` more, kept within the years 1 to 9999.
    pub fn plus_millis(self, millis: i64) -> Self {
        Self(self.0.saturating_add(millis).clamp(EARLIEST_MS, LATEST_MS))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}ms", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absurd_instants_are_missing_instants() {
        assert_eq!(Timestamp::from_millis(i64::MAX), None);
        assert_eq!(Timestamp::from_millis(i64::MIN), None);
        assert_eq!(Timestamp::from_millis(0), Some(Timestamp::EPOCH));
    }

    #[test]
    fn adding_never_leaves_the_calendar() {
        let last = Timestamp::from_millis(LATEST_MS).expect("in range");
        assert_eq!(last.plus_millis(1), last);
    }
}
