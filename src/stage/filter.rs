//! Stage 2: send record → allowed, suppressed or dead letter.
//!
//! In two halves, so that the view is locked for look-ups alone: [`Filter::prepare`] reads bytes and makes
//! fingerprints, [`Prepared::decide`] looks them up. A batch is decided at one position of the view, and a [`Tally`] of
//! each partition's run becomes its decision block.

use crate::domain::business::{Businesses, UnknownBusiness};
use crate::domain::decide::{AllowReason, Decision, Question, Standing, SuppressReason};
use crate::domain::guidance::{Occasion, RecipientPrint, Seen, day_of, due};
use crate::domain::history::Lookup;
use crate::domain::identity::{Identity, IdentityKey};
use crate::domain::key::{Channel, ConsentKey, Subject};
use crate::domain::rules::RuleBook;
use crate::domain::send::Categories;
use crate::domain::suppression::{BusinessPrints, PersonPrint, PrintKey};
use crate::domain::time::Timestamp;
use crate::record::{Coordinates, Record, TopicName, TopicPartition, is_same_topic};
use crate::wire::DecodeError;
use crate::wire::proto;
use crate::wire::send::SendDecoder;
use hashbrown::{DefaultHashBuilder, HashTable};
use std::collections::BTreeMap;
use std::hash::BuildHasher;
use std::sync::Arc;

/// Every way in which a record of a sends topic can end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Decided(Decision),
    /// Set aside: it cannot be read, or not be passed on.
    DeadLetter(DecodeError),
}

/// A sends topic and how its sends are read.
#[derive(Clone, Debug)]
pub struct SendsTopic {
    pub name: TopicName,
    pub decoder: SendDecoder,
    /// Sends of this topic are decided by category alone, without the view.
    pub exempt_only: bool,
}

/// What decides beside the view: the same rules, the same decisions.
#[derive(Clone, Debug)]
pub struct FilterRules {
    pub topics: Vec<SendsTopic>,
    pub businesses: Arc<Businesses>,
    pub categories: Categories,
    pub default_channel: Channel,
    /// What holds by country.
    pub book: Arc<RuleBook>,
    /// Whether and when sends say how to opt out.
    pub guidance: Option<GuidanceRules>,
}

/// When sends say how to opt out.
#[derive(Clone, Copy, Debug)]
pub struct GuidanceRules {
    /// Days without marketing after which it is due again.
    pub gap_days: u16,
    /// Where identities are written hashed: the key.
    pub hashed: Option<IdentityKey>,
}

/// One name of the recipient of a marketing send, for what is kept of guidance.
#[derive(Clone, Debug)]
pub struct Recipient {
    pub print: RecipientPrint,
    /// Under which it is written.
    pub key: ConsentKey,
}

/// Whether a send must say how to opt out, and what is known of its recipient afterwards.
#[derive(Clone, Debug)]
pub struct Guided<'a> {
    pub occasion: Option<Occasion>,
    pub after: Seen,
    /// Names under which something else is known, or nothing.
    pub changed: Vec<&'a Recipient>,
}

/// A record that was read and waits for the view.
#[derive(Clone, Debug)]
pub enum Prepared {
    Send {
        /// Fingerprints of everything that identifies the recipient.
        persons: Persons,
        asked: Arc<Asked>,
        expires_at: Option<Timestamp>,
        /// Where guidance is on, and the send is marketing.
        recipients: Box<[Recipient]>,
        /// It asks the person to come back: opt-outs up to then may be asked about.
        asks_again: Option<Timestamp>,
    },
    /// On a topic for exempt sends: allowed without a look-up.
    ExemptOnly,
    DeadLetter(DecodeError),
}

/// Fingerprints of one recipient: one identity is the rule and needs no allocation.
#[derive(Clone, Debug)]
pub enum Persons {
    One(PersonPrint),
    Several(Box<[PersonPrint]>),
}

impl Persons {
    /// All of them.
    pub fn as_slice(&self) -> &[PersonPrint] {
        match self {
            Self::One(person) => std::slice::from_ref(person),
            Self::Several(persons) => persons,
        }
    }
}

/// What is asked of the view for all sends that are alike in this.
#[derive(Debug)]
pub struct Asked {
    business: Box<str>,
    /// Fingerprints of its recipients.
    persons: BusinessPrints,
    channel: Channel,
    program: Option<Box<str>>,
    exempt: bool,
    question: Question,
}

/// The category of sends that ask people who left whether they want to come back.
const RE_PERMISSION: &str = "re-permission";
const DAY_MS: i64 = 24 * 60 * 60 * 1000;

/// Questions kept at hand; beyond this many they are made anew.
const MAX_KEPT: usize = 4096;

/// Reads and decides sends. One for each worker: it keeps what recurs.
pub struct Filter {
    rules: FilterRules,
    prints: PrintKey,
    hasher: DefaultHashBuilder,
    kept: HashTable<Arc<Asked>>,
    /// What was asked last: campaigns come in runs.
    last: Option<Arc<Asked>>,
}

impl Filter {
    /// A filter whose fingerprints fit a view made with the same key.
    pub fn new(rules: FilterRules, prints: PrintKey) -> Self {
        Self { rules, prints, hasher: DefaultHashBuilder::default(), kept: HashTable::new(), last: None }
    }

    /// Reads a record.
    pub fn prepare(&mut self, record: &Record<'_>) -> Prepared {
        let Some(topic) = self.rules.topics.iter().find(|topic| is_same_topic(&topic.name, record.topic)) else {
            return Prepared::DeadLetter(DecodeError::UnknownShape);
        };
        let send = match topic.decoder.decode(record) {
            Ok(send) => send,
            Err(error) => return Prepared::DeadLetter(error),
        };
        let exempt = self.rules.categories.is_exempt(&send);
        if topic.exempt_only {
            return if exempt { Prepared::ExemptOnly } else { Prepared::DeadLetter(DecodeError::NotExempt) };
        }
        let business = match self.rules.businesses.of_send(&send.hints()) {
            Ok(business) => business,
            Err(UnknownBusiness::NotNamed) => return Prepared::DeadLetter(DecodeError::NoBusiness),
            Err(UnknownBusiness::NotListed) => return Prepared::DeadLetter(DecodeError::UnlistedBusiness),
        };
        let channel = send.channel.as_ref().unwrap_or(&self.rules.default_channel);
        let program = send.program.as_deref().filter(|_| !exempt);
        let is_same = |asked: &Asked| {
            asked.exempt == exempt && *asked.business == *business && asked.channel == *channel && asked.program.as_deref() == program
        };
        let asked = match &self.last {
            Some(last) if is_same(last) => last.clone(),
            Some(_) | None => {
                let hash = self.hasher.hash_one((business, channel, program, exempt));
                let asked = match self.kept.find(hash, |asked| is_same(asked)) {
                    Some(asked) => asked.clone(),
                    None => {
                        let question = match exempt {
                            true => Question::exempt(self.prints, channel),
                            false => Question::marketing(self.prints, channel, program),
                        };
                        let persons = self.prints.of_business(business);
                        let (channel, program) = (channel.clone(), program.map(Into::into));
                        let asked = Arc::new(Asked { business: business.into(), persons, channel, program, exempt, question });
                        self.keep(hash, asked.clone());
                        asked
                    }
                };
                self.last = Some(asked.clone());
                asked
            }
        };
        let mut persons = send.to.iter().map(|identity| asked.persons.person(identity));
        let persons = match (persons.next(), persons.len()) {
            (Some(one), 0) => Persons::One(one),
            (first, _) => Persons::Several(first.into_iter().chain(persons).collect()),
        };
        let recipients = match self.rules.guidance.filter(|_| !exempt) {
            None => Box::default(),
            Some(rules) => send.to.iter().map(|identity| self.recipient(rules, &asked, identity)).collect(),
        };
        let is_request = send.category.as_deref().is_some_and(|category| category.trim().eq_ignore_ascii_case(RE_PERMISSION)) && !exempt;
        let sent_at = record.timestamp_ms.and_then(Timestamp::from_millis).filter(|_| is_request);
        let asks_again = sent_at.and_then(|at| {
            let days = self.rules.book.in_force(&asked.business, send.to.iter(), at).repermission_days?;
            Some(at.plus_millis(-i64::from(days) * DAY_MS))
        });
        Prepared::Send { persons, asked, expires_at: send.expires_at, recipients, asks_again }
    }

    fn recipient(&self, rules: GuidanceRules, asked: &Asked, identity: &Identity) -> Recipient {
        let print = RecipientPrint::new(self.prints, asked.persons.person(identity), &asked.channel);
        let identity = rules.hashed.map_or_else(|| identity.clone(), |key| key.hash(identity));
        let key = ConsentKey { business: asked.business.clone(), channel: asked.channel.clone(), identity, subject: Subject::Marketing };
        Recipient { print, key }
    }

    fn keep(&mut self, hash: u64, asked: Arc<Asked>) {
        if self.kept.len() >= MAX_KEPT {
            self.kept.clear();
        }
        let rehash = |asked: &Arc<Asked>| self.hasher.hash_one((&*asked.business, &asked.channel, asked.program.as_deref(), asked.exempt));
        self.kept.insert_unique(hash, asked, rehash);
    }
}

impl Prepared {
    /// Fingerprints of everyone who will be looked up.
    pub fn persons(&self) -> &[PersonPrint] {
        match self {
            Self::Send { persons, .. } => persons.as_slice(),
            Self::ExemptOnly | Self::DeadLetter(_) => &[],
        }
    }

    /// The business whose consent will be asked, if anybody's will.
    pub fn business(&self) -> Option<&str> {
        match self {
            Self::Send { asked, .. } => Some(&asked.business),
            Self::ExemptOnly | Self::DeadLetter(_) => None,
        }
    }

    /// Decides. `held_until` is the time, for sends that were held: those that expired by then are
    /// suppressed, whatever the view says. It is the only clock that any decision reads, and the block records it.
    pub fn decide(&self, view: &impl Lookup, held_until: Option<Timestamp>) -> Outcome {
        match self {
            Self::DeadLetter(error) => Outcome::DeadLetter(*error),
            Self::ExemptOnly => Outcome::Decided(Decision::Allowed(AllowReason::ExemptCategory)),
            Self::Send { expires_at: Some(expires_at), .. } if held_until.is_some_and(|until| *expires_at <= until) => {
                Outcome::Decided(Decision::Suppressed { reason: SuppressReason::ExpiredWhileHeld, cause: None })
            }
            Self::Send { persons, asked, asks_again, .. } => {
                let known = persons.as_slice().iter().filter(|person| view.knows(**person));
                let standing =
                    known.fold(Standing::Silent, |standing, person| standing.and(asked.question.judge(|slot| view.standing(*person, slot))));
                let may_ask = |up_to: Timestamp| {
                    let of = |person: &PersonPrint| asked.question.may_be_asked_again(up_to, |slot| view.standing(*person, slot));
                    persons.as_slice().iter().all(of)
                };
                match (standing, asks_again) {
                    (Standing::OptedOut(_), Some(up_to)) if may_ask(*up_to) => Outcome::Decided(Decision::Allowed(AllowReason::RePermission)),
                    (standing, _) => Outcome::Decided(standing.decision(asked.exempt)),
                }
            }
        }
    }

    /// When the recipient last came back, where that is why the send is allowed.
    pub fn opted_in_at(&self, outcome: Outcome, view: &impl Lookup) -> Option<Timestamp> {
        let Self::Send { persons, asked, .. } = self else { return None };
        if outcome != Outcome::Decided(Decision::Allowed(AllowReason::OptedInAgain)) {
            return None;
        }
        let at = |person: &PersonPrint| asked.question.opted_in_at(|slot| view.standing(*person, slot));
        persons.as_slice().iter().filter_map(at).max()
    }

    /// Whether an allowed send must say how to opt out. `sent_at`: Kafka's time of the send; `lookup`: what is known of a recipient.
    /// `None` where guidance is off or the send is no marketing.
    pub fn guide(
        &self,
        reason: AllowReason,
        sent_at: Option<Timestamp>,
        opted_in: Option<Timestamp>,
        gap_days: u16,
        lookup: impl Fn(RecipientPrint) -> Option<Seen>,
    ) -> Option<Guided<'_>> {
        let is_marketing = match reason {
            AllowReason::ExemptCategory => false,
            AllowReason::NoOptOut | AllowReason::OptedInAgain | AllowReason::RePermission => true,
        };
        let Self::Send { recipients, .. } = self else { return None };
        if recipients.is_empty() || !is_marketing {
            return None;
        }
        let seen = recipients.iter().filter_map(|recipient| lookup(recipient.print)).max_by_key(|seen| seen.day);
        let (occasion, after) = due(seen, day_of(sent_at?), opted_in, gap_days);
        let changed = recipients.iter().filter(|recipient| lookup(recipient.print) != Some(after)).collect();
        Some(Guided { occasion, after, changed })
    }

    /// Whether a held record may leave before the fence opens: what is no send, and sends whose expiry has passed.
    pub fn may_leave_hold(&self, now: Timestamp) -> bool {
        match self {
            Self::DeadLetter(_) | Self::ExemptOnly => true,
            Self::Send { expires_at, .. } => expires_at.is_some_and(|expires_at| expires_at <= now),
        }
    }
}

/// How one run of a partition was decided, counted by reason.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    allowed: [u64; AllowReason::ALL.len()],
    suppressed: [u64; SuppressReason::ALL.len()],
    dead_letters: BTreeMap<&'static str, u64>,
}

impl Tally {
    /// Counts one outcome.
    pub fn count(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Decided(Decision::Allowed(reason)) => self.allowed[reason as usize] += 1,
            Outcome::Decided(Decision::Suppressed { reason, .. }) => self.suppressed[reason as usize] += 1,
            Outcome::DeadLetter(error) => *self.dead_letters.entry(error.as_str()).or_default() += 1,
        }
    }

    /// Every `(column, reason)` that was counted; the column is `allowed`, `suppressed` or `dead-letter`.
    pub fn entries(&self) -> impl Iterator<Item = (&'static str, &'static str, u64)> {
        let allowed = self.allowed().map(|(reason, count)| ("allowed", reason, count));
        let suppressed = self.suppressed().map(|(reason, count)| ("suppressed", reason, count));
        let dead_letters = self.dead_letters.iter().map(|(reason, count)| ("dead-letter", *reason, *count));
        allowed.chain(suppressed).chain(dead_letters)
    }

    fn allowed(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let counted = AllowReason::ALL.iter().zip(self.allowed).filter(|(_, count)| *count > 0);
        counted.map(|(reason, count)| (reason.as_str(), count))
    }

    fn suppressed(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let counted = SuppressReason::ALL.iter().zip(self.suppressed).filter(|(_, count)| *count > 0);
        counted.map(|(reason, count)| (reason.as_str(), count))
    }
}

fn reason_counts(counts: impl Iterator<Item = (&'static str, u64)>) -> Vec<proto::ReasonCount> {
    counts.map(|(reason, count)| proto::ReasonCount { reason: reason.to_owned(), count }).collect()
}

/// At what a run was decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecidedAt<'a> {
    /// Applied position of every opt-outs partition.
    pub as_of: &'a [u64],
    pub rules_version: &'a str,
    pub opt_outs_topic_id: &'a str,
    /// The time that was compared with the expiry of held sends.
    pub held_until: Option<Timestamp>,
    /// Applied position of every guidance partition; empty where guidance is off.
    pub guidance_as_of: &'a [u64],
}

/// The decision block of one run: `first` inclusive, `end` exclusive.
pub fn block(run: &TopicPartition, first: u64, end: u64, tally: &Tally, at: &DecidedAt<'_>) -> proto::DecisionBlock {
    proto::DecisionBlock {
        topic: run.0.to_string(),
        partition: run.1,
        first_offset: first,
        end_offset: end,
        as_of: at.as_of.to_vec(),
        rules_version: at.rules_version.to_owned(),
        allowed: reason_counts(tally.allowed()),
        suppressed: reason_counts(tally.suppressed()),
        dead_letters: reason_counts(tally.dead_letters.iter().map(|(reason, count)| (*reason, *count))),
        expired_as_of_ms: at.held_until.map_or(0, Timestamp::millis),
        opt_outs_topic_id: at.opt_outs_topic_id.to_owned(),
        guidance_as_of: at.guidance_as_of.to_vec(),
    }
}

/// The headers that a suppressed send carries.
pub fn suppressed_headers(
    reason: SuppressReason,
    cause: Option<crate::domain::consent::Position>,
    source: &Coordinates,
    as_of: &str,
    rules_version: &str,
) -> Vec<(&'static str, String)> {
    let mut headers = vec![("stopgate-reason", reason.as_str().to_owned())];
    headers.extend(cause.map(|cause| ("stopgate-cause", cause.to_string())));
    headers.push(("stopgate-as-of", as_of.to_owned()));
    headers.push(("stopgate-source", source.to_string()));
    headers.push(("stopgate-rules", rules_version.to_owned()));
    headers
}

/// The one header that an allowed send carries where the configuration asks for evidence in headers.
pub fn allowed_header(reason: AllowReason, source: &Coordinates, as_of: &str, rules_version: &str) -> (&'static str, String) {
    ("stopgate", format!("reason={};source={source};as-of={as_of};rules={rules_version}", reason.as_str()))
}

/// The header of an allowed send that must say how to opt out.
pub const GUIDANCE_HEADER: &str = "stopgate-guidance";

/// `0@12,1@9,…`: partition and applied position.
pub fn as_of_text(as_of: &[u64]) -> String {
    let mut text = String::new();
    for (partition, position) in as_of.iter().enumerate() {
        let comma = if partition == 0 { "" } else { "," };
        text.push_str(&format!("{comma}{partition}@{position}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::consent::{Act, ConsentState, Position, Source};
    use crate::domain::identity::Identity;
    use crate::domain::key::{ConsentKey, Subject};
    use crate::domain::view::ConsentView;
    use crate::wire::send::{SendFormat, SendPointers};

    fn filter() -> Filter {
        let decoder = SendDecoder::new(SendFormat::Auto, &SendPointers::default()).expect("pointers");
        let topic = |name: &str, exempt_only| SendsTopic { name: name.into(), decoder: decoder.clone(), exempt_only };
        let rules = FilterRules {
            topics: vec![topic("sends", false), topic("otp", true)],
            businesses: Arc::new(Businesses::default()),
            categories: Categories::new(["utility".to_owned(), "authentication".to_owned()], BTreeMap::new()),
            default_channel: Channel::Whatsapp,
            book: Arc::default(),
            guidance: None,
        };
        Filter::new(rules, PrintKey::new(1, 2))
    }

    fn view() -> ConsentView {
        let mut view = ConsentView::new(PrintKey::new(1, 2), 2);
        let key = ConsentKey {
            business: "acme".into(),
            channel: Channel::Whatsapp,
            identity: Identity::parse("+5511912345678").expect("an identity"),
            subject: Subject::Marketing,
        };
        let act = Act {
            state: ConsentState::OptedOut,
            occurred_at: Timestamp::from_millis(1).expect("in range"),
            source: Source::default(),
            cause: Position { partition: 1, offset: 7 },
            changed_state: true,
        };
        view.apply(&key, act, "");
        view.advance(1, 8);
        view
    }

    fn outcome(topic: &str, json: &str, held_until: Option<i64>) -> Outcome {
        let mut filter = filter();
        let topic: TopicName = topic.into();
        let record =
            Record { topic: &topic, partition: 0, offset: 3, timestamp_ms: None, key: None, value: Some(json.as_bytes()), headers: &[] };
        let prepared = filter.prepare(&record);
        prepared.decide(&view(), held_until.and_then(Timestamp::from_millis))
    }

    const OPTED_OUT: Outcome =
        Outcome::Decided(Decision::Suppressed { reason: SuppressReason::OptedOut, cause: Some(Position { partition: 1, offset: 7 }) });

    #[test]
    fn a_marketing_send_to_an_opted_out_person_is_suppressed_however_the_number_is_spelt() {
        for to in [r#""+5511912345678""#, r#""551112345678""#, "5511912345678", r#"["bsuid:BR.1","+55 11 91234-5678"]"#] {
            assert_eq!(outcome("sends", &format!(r#"{{"business":"acme","to":{to}}}"#), None), OPTED_OUT, "{to}");
        }
    }

    #[test]
    fn others_and_other_categories_pass() {
        let allowed = |reason| Outcome::Decided(Decision::Allowed(reason));
        assert_eq!(outcome("sends", r#"{"business":"acme","to":"+5511912345679"}"#, None), allowed(AllowReason::NoOptOut));
        assert_eq!(outcome("sends", r#"{"business":"globex","to":"+5511912345678"}"#, None), allowed(AllowReason::NoOptOut));
        let utility = r#"{"business":"acme","to":"+5511912345678","category":"utility"}"#;
        assert_eq!(outcome("sends", utility, None), allowed(AllowReason::ExemptCategory));
    }

    #[test]
    fn a_topic_for_exempt_sends_needs_no_view_and_takes_no_marketing() {
        let code = r#"{"business":"acme","to":"+5511912345678","category":"authentication"}"#;
        assert_eq!(outcome("otp", code, None), Outcome::Decided(Decision::Allowed(AllowReason::ExemptCategory)));
        assert_eq!(outcome("otp", r#"{"business":"acme","to":"+55119"}"#, None), Outcome::DeadLetter(DecodeError::NoRecipient));
        assert_eq!(outcome("otp", r#"{"business":"acme","to":"+5511912345678"}"#, None), Outcome::DeadLetter(DecodeError::NotExempt));
    }

    #[test]
    fn a_held_send_that_expired_is_suppressed_and_one_that_was_not_held_is_not() {
        let send = r#"{"business":"acme","to":"+5511912345679","expires_at":1793500000}"#;
        let expired = Outcome::Decided(Decision::Suppressed { reason: SuppressReason::ExpiredWhileHeld, cause: None });
        assert_eq!(outcome("sends", send, Some(1_793_500_000_000)), expired);
        assert_eq!(outcome("sends", send, Some(1_793_499_999_999)), Outcome::Decided(Decision::Allowed(AllowReason::NoOptOut)));
        assert_eq!(outcome("sends", send, None), Outcome::Decided(Decision::Allowed(AllowReason::NoOptOut)));
    }

    #[test]
    fn the_golden_headers_keep_their_form() {
        let source = Coordinates { topic: "sends".into(), partition: 3, offset: 42 };
        let cause = Some(Position { partition: 1, offset: 7 });
        let as_of = as_of_text(&[12, 9]);
        let headers = suppressed_headers(SuppressReason::OptedOut, cause, &source, &as_of, "r1");
        let shown: Vec<String> = headers.iter().map(|(name, value)| format!("{name}: {value}")).collect();
        assert_eq!(
            shown,
            [
                "stopgate-reason: opted-out", "stopgate-cause: 1@7", "stopgate-as-of: 0@12,1@9", "stopgate-source: sends-3@42",
                "stopgate-rules: r1"
            ]
        );
        let (name, value) = allowed_header(AllowReason::NoOptOut, &source, &as_of, "r1");
        assert_eq!((name, value.as_str()), ("stopgate", "reason=no-opt-out;source=sends-3@42;as-of=0@12,1@9;rules=r1"));
    }

    #[test]
    fn a_block_counts_by_reason() {
        let mut tally = Tally::default();
        tally.count(OPTED_OUT);
        tally.count(OPTED_OUT);
        tally.count(Outcome::Decided(Decision::Allowed(AllowReason::NoOptOut)));
        tally.count(Outcome::DeadLetter(DecodeError::NoRecipient));
        let at = DecidedAt { as_of: &[12, 9], rules_version: "r1", opt_outs_topic_id: "", held_until: None, guidance_as_of: &[] };
        let block = block(&("sends".into(), 3), 40, 46, &tally, &at);
        let reasons = |counts: &[proto::ReasonCount]| counts.iter().map(|count| format!("{} {}", count.reason, count.count)).collect::<Vec<_>>();
        assert_eq!(reasons(&block.allowed), ["no-opt-out 1"]);
        assert_eq!(reasons(&block.suppressed), ["opted-out 2"]);
        assert_eq!(reasons(&block.dead_letters), ["no-recipient 1"]);
        assert_eq!((block.first_offset, block.end_offset, block.expired_as_of_ms), (40, 46, 0));
    }
}
