//! Send × consent → decision: which acts concern a send, and what they say together.
//!
//! The rules of coverage stand here and nowhere else: an opt-out stands unless a later opt-in is on its key or on one
//! that covers it (`*` covers a channel; `all` covers `marketing`, which covers programmes and `review`). At equal
//! times the opt-out stands. Any standing opt-out of any identity suppresses.

use super::consent::{Act, ConsentState, Position};
use super::key::{Channel, DEFAULT_PROGRAM, Subject};
use super::suppression::{PrintKey, SlotPrint};
use super::time::Timestamp;

/// Why a send may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AllowReason {
    /// Its category is exempt, and the person has not stopped everything.
    ExemptCategory,
    /// No act of this person concerns it.
    NoOptOut,
    /// The person came back: an explicit opt-in stands.
    OptedInAgain,
    /// It asks whether the person wants to come back, and rules of the operator's own allow that after so long.
    RePermission,
}

/// Why a send may not go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SuppressReason {
    /// A standing opt-out.
    OptedOut,
    /// A message of this person waits for a reviewer's verdict.
    UnderReview,
    /// The send was held, and its own expiry passed meanwhile.
    ExpiredWhileHeld,
}

/// What becomes of a send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    Allowed(AllowReason),
    /// `cause` is the record that stands against the send; an expired send has none.
    Suppressed {
        reason: SuppressReason,
        cause: Option<Position>,
    },
}

/// What the acts of one person say about a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Nothing was ever said.
    Silent,
    /// An opt-in stands and no opt-out.
    OptedIn,
    /// Only a review stands against it.
    UnderReview(Position),
    /// An opt-out stands.
    OptedOut(Position),
}

/// One place where an act could concern the question.
#[derive(Clone, Debug)]
struct Slot {
    print: SlotPrint,
    /// Of what was said under a hashed identity.
    hashed: Option<SlotPrint>,
    any_channel: bool,
    subject: Subject,
}

/// Where to look for acts that concern a send or an act: channels × subjects, their fingerprints made once.
#[derive(Clone, Debug)]
pub struct Question {
    slots: Vec<Slot>,
}

/// Most slots of a question: two channels, four subjects.
const MAX_SLOTS: usize = 8;

impl Question {
    /// What must be looked up for a marketing send: every subject that could stop it.
    pub fn marketing(prints: PrintKey, channel: &Channel, program: Option<&str>) -> Self {
        let program = program.and_then(Subject::program).unwrap_or_else(|| Subject::Program(DEFAULT_PROGRAM.into()));
        Self::new(prints, channel, &[Subject::Marketing, program, Subject::All, Subject::Review])
    }

    /// What must be looked up for a send of an exempt category: only `all` stops it.
    pub fn exempt(prints: PrintKey, channel: &Channel) -> Self {
        Self::new(prints, channel, &[Subject::All])
    }

    /// What must be looked up to tell whether an act on `subject` changes anything. Reviews are no acts of the person
    /// and are left out, unless the act is one.
    pub fn about(prints: PrintKey, channel: &Channel, subject: &Subject) -> Self {
        let own = subject.clone();
        match subject {
            Subject::All => Self::new(prints, channel, &[own]),
            Subject::Marketing => Self::new(prints, channel, &[own, Subject::All]),
            Subject::Program(_) | Subject::Review => Self::new(prints, channel, &[own, Subject::Marketing, Subject::All]),
        }
    }

    fn new(prints: PrintKey, channel: &Channel, subjects: &[Subject]) -> Self {
        let channels: &[&Channel] = if *channel == Channel::Any { &[&Channel::Any] } else { &[channel, &Channel::Any] };
        let slots = channels.iter().flat_map(|channel| {
            subjects.iter().map(|subject| {
                let print = prints.slot(channel, subject);
                Slot { print, hashed: prints.hashed(print), any_channel: **channel == Channel::Any, subject: subject.clone() }
            })
        });
        Self { slots: slots.collect() }
    }

    /// What the acts that `lookup` finds say together.
    pub fn judge(&self, mut lookup: impl FnMut(SlotPrint) -> Option<Act>) -> Standing {
        let mut found: [Option<Act>; MAX_SLOTS] = [None; MAX_SLOTS];
        let mut any = false;
        for (slot, found) in self.slots.iter().zip(&mut found) {
            *found = later(lookup(slot.print), slot.hashed.and_then(&mut lookup));
            any |= found.is_some();
        }
        if !any {
            return Standing::Silent;
        }
        let mut standing = Standing::OptedIn;
        let mut latest = None;
        for (slot, act) in self.slots.iter().zip(&found) {
            let Some(act) = act.filter(|act| act.state == ConsentState::OptedOut) else { continue };
            let revoked = self.slots.iter().zip(&found).any(|(other, opt_in)| {
                let covers = (other.any_channel || !slot.any_channel) && other.subject.covers(&slot.subject);
                let later = |opt_in: Act| opt_in.state == ConsentState::OptedIn && opt_in.occurred_at > act.occurred_at;
                covers && opt_in.is_some_and(later)
            });
            if revoked {
                continue;
            }
            match (&slot.subject, standing) {
                (Subject::Review, Standing::OptedOut(_)) => {}
                (Subject::Review, Standing::Silent | Standing::OptedIn | Standing::UnderReview(_)) => {
                    standing = Standing::UnderReview(act.cause);
                }
                (Subject::Marketing | Subject::Program(_) | Subject::All, _) => {
                    if latest < Some(act.rank()) {
                        latest = Some(act.rank());
                        standing = Standing::OptedOut(act.cause);
                    }
                }
            }
        }
        standing
    }
}

impl Question {
    /// Whether all that stands against it was said up to then, of marketing alone: who wants nothing at all, or is under review, is
    /// not asked again.
    pub fn may_be_asked_again(&self, up_to: Timestamp, mut lookup: impl FnMut(SlotPrint) -> Option<Act>) -> bool {
        self.slots.iter().all(|slot| {
            let act = later(lookup(slot.print), slot.hashed.and_then(&mut lookup));
            let is_silent = act.is_none_or(|act| act.state == ConsentState::OptedIn || act.occurred_at <= up_to);
            match slot.subject {
                Subject::Marketing | Subject::Program(_) => is_silent,
                Subject::All | Subject::Review => act.is_none_or(|act| act.state == ConsentState::OptedIn),
            }
        })
    }

    /// When the person last opted in, of all that concerns the question.
    pub fn opted_in_at(&self, mut lookup: impl FnMut(SlotPrint) -> Option<Act>) -> Option<Timestamp> {
        let acts = self.slots.iter().filter_map(|slot| later(lookup(slot.print), slot.hashed.and_then(&mut lookup)));
        acts.filter(|act| act.state == ConsentState::OptedIn).map(|act| act.occurred_at).max()
    }
}

/// Of two acts about the same the one that stands.
fn later(one: Option<Act>, other: Option<Act>) -> Option<Act> {
    match (one, other) {
        (Some(one), Some(other)) if other.supersedes(&one) => Some(other),
        (Some(one), Some(_) | None) => Some(one),
        (None, other) => other,
    }
}

impl Standing {
    /// What several identities of one person say together: any standing opt-out suppresses.
    pub fn and(self, other: Self) -> Self {
        let weight = |standing: &Self| match standing {
            Self::Silent => 0,
            Self::OptedIn => 1,
            Self::UnderReview(_) => 2,
            Self::OptedOut(_) => 3,
        };
        if weight(&other) > weight(&self) { other } else { self }
    }

    /// The decision for a send about which this was found.
    pub fn decision(self, exempt: bool) -> Decision {
        match self {
            Self::OptedOut(cause) => Decision::Suppressed { reason: SuppressReason::OptedOut, cause: Some(cause) },
            Self::UnderReview(cause) => Decision::Suppressed { reason: SuppressReason::UnderReview, cause: Some(cause) },
            Self::Silent | Self::OptedIn if exempt => Decision::Allowed(AllowReason::ExemptCategory),
            Self::OptedIn => Decision::Allowed(AllowReason::OptedInAgain),
            Self::Silent => Decision::Allowed(AllowReason::NoOptOut),
        }
    }
}

impl AllowReason {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 4] = [Self::ExemptCategory, Self::NoOptOut, Self::OptedInAgain, Self::RePermission];

    /// The word in headers, blocks, metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ExemptCategory => "exempt-category",
            Self::NoOptOut => "no-opt-out",
            Self::OptedInAgain => "opted-in-again",
            Self::RePermission => "re-permission",
        }
    }
}

impl SuppressReason {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 3] = [Self::OptedOut, Self::UnderReview, Self::ExpiredWhileHeld];

    /// The word in headers, blocks, metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::OptedOut => "opted-out",
            Self::UnderReview => "under-review",
            Self::ExpiredWhileHeld => "expired-while-held",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::consent::Source;
    use crate::domain::identity::Identity;
    use crate::domain::key::ConsentKey;
    use crate::domain::suppression::SuppressionSet;

    const PRINTS: PrintKey = PrintKey::new(5, 6);

    /// `("whatsapp", "marketing", out?, time)` acts of one person, then the decision for a send.
    #[track_caller]
    fn check(acts: &[(&str, &str, bool, i64)], program: Option<&str>, exempt: bool, expected: &str) {
        let person = Identity::parse("ext:1").expect("an identity");
        let mut set = SuppressionSet::new(PRINTS);
        for (offset, (channel, subject, out, at)) in acts.iter().enumerate() {
            let key = ConsentKey {
                business: "acme".into(),
                channel: Channel::parse(channel).expect("a channel"),
                identity: person.clone(),
                subject: Subject::parse(subject).expect("a subject"),
            };
            let act = Act {
                state: if *out { ConsentState::OptedOut } else { ConsentState::OptedIn },
                occurred_at: Timestamp::from_millis(*at).expect("in range"),
                source: Source { offset: offset as u64, ..Source::default() },
                cause: Position { partition: 0, offset: offset as u64 },
                changed_state: true,
            };
            set.apply(&key, act);
        }
        let question = match exempt {
            true => Question::exempt(PRINTS, &Channel::Whatsapp),
            false => Question::marketing(PRINTS, &Channel::Whatsapp, program),
        };
        let print = PRINTS.person("acme", &person);
        let decision = question.judge(|slot| set.standing(print, slot)).decision(exempt);
        let shown = match decision {
            Decision::Allowed(reason) => reason.as_str().to_owned(),
            Decision::Suppressed { reason, cause: Some(cause) } => format!("{} {cause}", reason.as_str()),
            Decision::Suppressed { reason, cause: None } => reason.as_str().to_owned(),
        };
        assert_eq!(shown, expected, "{acts:?} {program:?}");
    }

    #[test]
    fn silence_is_no_opt_out() {
        check(&[], None, false, "no-opt-out");
        check(&[("sms", "marketing", true, 1)], None, false, "no-opt-out");
    }

    #[test]
    fn a_stop_suppresses_marketing_and_leaves_utility() {
        check(&[("whatsapp", "marketing", true, 1)], None, false, "opted-out 0@0");
        check(&[("whatsapp", "marketing", true, 1)], Some("news"), false, "opted-out 0@0");
        check(&[("whatsapp", "marketing", true, 1)], None, true, "exempt-category");
    }

    #[test]
    fn stop_all_suppresses_utility_too() {
        check(&[("whatsapp", "all", true, 1)], None, true, "opted-out 0@0");
        check(&[("*", "all", true, 1)], None, true, "opted-out 0@0");
    }

    #[test]
    fn a_programme_is_stopped_alone() {
        check(&[("whatsapp", "program:news", true, 1)], Some("news"), false, "opted-out 0@0");
        check(&[("whatsapp", "program:news", true, 1)], Some("deals"), false, "no-opt-out");
        check(&[("whatsapp", "program:promotions", true, 1)], None, false, "opted-out 0@0");
    }

    #[test]
    fn a_later_opt_in_on_the_key_or_a_covering_one_lets_sends_pass_again() {
        check(&[("whatsapp", "marketing", true, 1), ("whatsapp", "marketing", false, 2)], None, false, "opted-in-again");
        check(&[("whatsapp", "marketing", true, 1), ("whatsapp", "all", false, 2)], None, false, "opted-in-again");
        check(&[("whatsapp", "marketing", true, 1), ("*", "all", false, 2)], None, false, "opted-in-again");
        check(&[("whatsapp", "program:news", true, 1), ("whatsapp", "marketing", false, 2)], Some("news"), false, "opted-in-again");
    }

    #[test]
    fn an_opt_in_that_does_not_cover_or_is_not_later_changes_nothing() {
        check(&[("*", "marketing", true, 1), ("whatsapp", "all", false, 2)], None, false, "opted-out 0@0");
        check(&[("whatsapp", "all", true, 1), ("whatsapp", "marketing", false, 2)], None, false, "opted-out 0@0");
        check(&[("whatsapp", "marketing", true, 2), ("whatsapp", "all", false, 2)], None, false, "opted-out 0@0");
        check(&[("whatsapp", "marketing", true, 3), ("whatsapp", "all", false, 2)], None, false, "opted-out 0@0");
    }

    #[test]
    fn a_review_suppresses_until_it_is_lifted_or_the_person_opts_in() {
        check(&[("whatsapp", "review", true, 1)], None, false, "under-review 0@0");
        check(&[("whatsapp", "review", true, 1), ("whatsapp", "review", false, 2)], None, false, "opted-in-again");
        check(&[("whatsapp", "review", true, 1), ("whatsapp", "all", false, 2)], None, false, "opted-in-again");
        check(&[("whatsapp", "review", true, 2), ("whatsapp", "marketing", true, 1)], None, false, "opted-out 0@1");
    }

    #[test]
    fn the_latest_standing_opt_out_is_the_cause() {
        check(&[("whatsapp", "marketing", true, 5), ("*", "all", true, 3)], None, false, "opted-out 0@0");
        check(&[("whatsapp", "marketing", true, 3), ("*", "all", true, 5)], None, false, "opted-out 0@1");
    }

    #[test]
    fn any_identity_that_opted_out_suppresses() {
        let cause = Position { partition: 0, offset: 7 };
        assert_eq!(Standing::OptedIn.and(Standing::OptedOut(cause)), Standing::OptedOut(cause));
        assert_eq!(Standing::UnderReview(cause).and(Standing::Silent), Standing::UnderReview(cause));
    }
}
