//! Acts of consent, and which of two acts on one key stands.
//!
//! Arrival order decides nothing: [`Act::rank`] is a total order on acts, and the fold of any interleaving is its
//! maximum. Unsafe times are made safe when the act is read, always towards silence, without a clock.

use super::time::Timestamp;

/// What a person (or an administrator for them) asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ConsentState {
    OptedOut,
    OptedIn,
}

/// Where an act came from, to rank two acts of one instant and to recognise an own earlier write: the place of the
/// message on the inbound topic, and its index within a body that holds several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Source {
    /// A stable hash of the topic's name: topics of one deployment are few, and only equality and some order matter.
    pub topic: u32,
    pub partition: u32,
    pub offset: u64,
    pub index: u32,
}

impl Source {
    /// The place of message `index` of the record at `topic`, `partition`, `offset`.
    pub fn new(topic: &str, partition: u32, offset: u64, index: u32) -> Self {
        // FNV-1a: stable across releases and processes, which a std hasher is not.
        let hash = topic.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
        Self { topic: hash, partition, offset, index }
    }
}

/// The place of a record on the opt-outs topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    pub partition: u32,
    pub offset: u64,
}

impl std::str::FromStr for Position {
    type Err = ();

    /// What [`Display`](std::fmt::Display) writes.
    fn from_str(text: &str) -> Result<Self, ()> {
        let (partition, offset) = text.split_once('@').ok_or(())?;
        Ok(Self { partition: partition.parse().map_err(|_| ())?, offset: offset.parse().map_err(|_| ())? })
    }
}

impl std::fmt::Display for Position {
    /// `partition@offset`, the form of every header and report.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}@{}", self.partition, self.offset)
    }
}

/// One act as the set keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Act {
    pub state: ConsentState,
    pub occurred_at: Timestamp,
    pub source: Source,
    /// The record that says so.
    pub cause: Position,
    /// Whether its writer's view said that it changed the person's state: a confirmation is due for such an act.
    pub changed_state: bool,
}

impl Act {
    /// The order in which acts on one key stand: the later act; at equal times the opt-out; then the greater source.
    pub fn rank(&self) -> (Timestamp, bool, Source) {
        (self.occurred_at, self.state == ConsentState::OptedOut, self.source)
    }

    /// Whether this act stands over `other` on the same key.
    pub fn supersedes(&self, other: &Self) -> bool {
        self.rank() > other.rank()
    }
}

/// How far in the future of its record an opt-out's own time may lie before it is disbelieved.
pub const OPT_OUT_FUTURE_MS: i64 = 5 * 60 * 1000;
/// How far in the past of its record an opt-out's own time may lie: providers retry for seven days.
pub const OPT_OUT_PAST_MS: i64 = 8 * 24 * 60 * 60 * 1000;

/// The time at which an act counts: what the message says, made safe by its record's Kafka timestamp.
///
/// An opt-in counts no later than its record. An opt-out whose own time is missing, more than five minutes ahead of its
/// record or more than eight days behind it counts at the record's time.
pub fn safe_time(state: ConsentState, said: Option<Timestamp>, recorded: Option<Timestamp>) -> Timestamp {
    match (said, recorded) {
        (None, None) => Timestamp::EPOCH,
        (None, Some(recorded)) => recorded,
        (Some(said), None) => said,
        (Some(said), Some(recorded)) => match state {
            ConsentState::OptedIn => said.min(recorded),
            ConsentState::OptedOut => {
                let believable = recorded.plus_millis(-OPT_OUT_PAST_MS)..=recorded.plus_millis(OPT_OUT_FUTURE_MS);
                if believable.contains(&said) { said } else { recorded }
            }
        },
    }
}

impl ConsentState {
    /// The word in lists, answers, stories and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::OptedOut => "opted-out",
            Self::OptedIn => "opted-in",
        }
    }
}

/// Why a consent record was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cause {
    /// A whole message that is a keyword.
    Keyword,
    /// A quick-reply, list or flow button.
    Button,
    /// Words within a message that ask to stop.
    Phrase,
    /// The channel's own control, such as WhatsApp's marketing preference, or a provider's opt-out label.
    ChannelPreference,
    /// A provider refused a send because the person had opted out there.
    ProviderError,
    /// A person at the business, through a verb or the API.
    Admin,
    /// A list from elsewhere.
    Import,
    /// The person's number or id changed; the opt-out follows them.
    IdentityChange,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_millis(millis).expect("in range")
    }

    const RECORDED_MS: i64 = 1_793_500_000_000;

    #[track_caller]
    fn check(state: ConsentState, said: Option<i64>, recorded: Option<i64>, expected: i64) {
        assert_eq!(safe_time(state, said.map(at), recorded.map(at)), at(expected));
    }

    #[test]
    fn an_opt_in_never_counts_later_than_its_record() {
        check(ConsentState::OptedIn, Some(RECORDED_MS + 60_000), Some(RECORDED_MS), RECORDED_MS);
        check(ConsentState::OptedIn, Some(RECORDED_MS - 60_000), Some(RECORDED_MS), RECORDED_MS - 60_000);
    }

    #[test]
    fn an_opt_out_with_an_unbelievable_time_counts_at_its_record() {
        let recorded = Some(RECORDED_MS);
        check(ConsentState::OptedOut, None, recorded, RECORDED_MS);
        check(ConsentState::OptedOut, Some(RECORDED_MS + OPT_OUT_FUTURE_MS + 1), recorded, RECORDED_MS);
        check(ConsentState::OptedOut, Some(RECORDED_MS - OPT_OUT_PAST_MS - 1), recorded, RECORDED_MS);
        check(ConsentState::OptedOut, Some(RECORDED_MS - OPT_OUT_PAST_MS), recorded, RECORDED_MS - OPT_OUT_PAST_MS);
        check(ConsentState::OptedOut, Some(RECORDED_MS + OPT_OUT_FUTURE_MS), recorded, RECORDED_MS + OPT_OUT_FUTURE_MS);
    }

    fn any_act() -> impl Strategy<Value = Act> {
        (any::<bool>(), 0..5_i64, 0..3_u64, any::<bool>()).prop_map(|(out, time, offset, changed_state)| Act {
            state: if out { ConsentState::OptedOut } else { ConsentState::OptedIn },
            occurred_at: at(time),
            source: Source { topic: 1, partition: 0, offset, index: 0 },
            cause: Position { partition: 0, offset },
            changed_state,
        })
    }

    fn fold(acts: &[Act]) -> Option<(Timestamp, bool, Source)> {
        acts.iter()
            .fold(None, |standing: Option<Act>, act| match standing {
                Some(standing) if !act.supersedes(&standing) => Some(standing),
                Some(_) | None => Some(*act),
            })
            .map(|act| act.rank())
    }

    #[test]
    fn a_position_reads_back_and_nothing_else_is_one() {
        let position = Position { partition: 3, offset: 1017 };
        assert_eq!(position.to_string().parse(), Ok(position));
        for wrong in ["", "3", "3@", "@1", "3@1@2", "-3@1", "3@x"] {
            assert_eq!(wrong.parse::<Position>(), Err(()), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn the_fold_of_any_interleaving_is_one_state(acts in prop::collection::vec(any_act(), 1..8), seed in any::<u64>()) {
            let mut shuffled = acts.clone();
            let mut state = seed | 1;
            for index in (1..shuffled.len()).rev() {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                shuffled.swap(index, (state >> 33) as usize % (index + 1));
            }
            prop_assert_eq!(fold(&acts), fold(&shuffled));
        }

        #[test]
        fn at_one_instant_the_opt_out_stands(acts in prop::collection::vec(any_act(), 1..8)) {
            let latest = acts.iter().map(|act| act.occurred_at).max().expect("some");
            let any_out = acts.iter().any(|act| act.occurred_at == latest && act.state == ConsentState::OptedOut);
            prop_assert_eq!(fold(&acts).map(|rank| rank.1), Some(any_out));
        }
    }
}
