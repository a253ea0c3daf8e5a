//! Bytes in, consent records and replies out, through the whole of stage 1 but Kafka.

use super::*;
use crate::domain::consent::{Act, Position};
use crate::domain::reply::ReplyKind;
use crate::domain::suppression::PrintKey;
use crate::domain::view::ConsentView;
use crate::wire::inbound::Format;
use crate::wire::lexicon;
use std::sync::LazyLock;

mod conversation;

static LEXICON: LazyLock<Arc<Lexicon>> = LazyLock::new(|| Arc::new(lexicon::builtin()));

/// One worker of stage 1 and the topic it writes to: each answer is applied to the view as the broker would hand it back.
struct World {
    detector: Detector,
    view: ConsentView,
    overlay: Overlay,
    next_inbound: u64,
    log: Vec<Consent>,
}

const RECORDED_MS: i64 = 1_793_527_200_000;

impl World {
    fn new() -> Self {
        Self::with(|_| {})
    }

    fn with(change: impl FnOnce(&mut Policy)) -> Self {
        let mut policy = Policy {
            cross_channel: false,
            confirmations: true,
            review_suppresses: true,
            excerpt: Excerpt::Around,
            review_deadline_ms: 1000,
            texts: Default::default(),
            feedback: None,
            clarification_ms: None,
            programs: Vec::new(),
        };
        change(&mut policy);
        let format = InboundFormat { format: Format::Auto, default_channel: Channel::Whatsapp };
        let rules = DetectRules {
            hashed: None,
            lexicon: LEXICON.clone(),
            lexicons: BTreeMap::new(),
            businesses: Arc::new(Businesses::default()),
            book: Arc::new(crate::wire::rules::built_in()),
            formats: vec![("inbound".into(), format)],
            policy,
            policies: BTreeMap::new(),
            rules_version: "r1".to_owned(),
        };
        let view = ConsentView::new(PrintKey::new(1, 2), 1);
        Self { detector: Detector::new(rules), view, overlay: Overlay::default(), next_inbound: 0, log: Vec::new() }
    }

    /// Reads a message at the next offset, without applying what follows.
    fn read(&mut self, body: &str) -> Vec<Answer> {
        self.next_inbound += 1;
        self.read_at(body, self.next_inbound)
    }

    fn read_at(&mut self, body: &str, offset: u64) -> Vec<Answer> {
        let topic: TopicName = "inbound".into();
        let record = Record {
            topic: &topic,
            partition: 0,
            offset,
            timestamp_ms: Some(RECORDED_MS + offset as i64 * 1000),
            key: None,
            value: Some(body.as_bytes()),
            headers: &[],
        };
        let read = self.detector.read(&record);
        let mut ledger = Ledger { view: &self.view, overlay: &mut self.overlay };
        read.findings.iter().map(|finding| ledger.answer(finding, self.detector.rules())).collect()
    }

    /// The broker acknowledges records and the view applies them.
    fn apply(&mut self, answers: &[Answer]) {
        for consent in answers.iter().flat_map(|answer| &answer.consents) {
            let position = Position { partition: 0, offset: self.log.len() as u64 };
            self.log.push(consent.clone());
            self.overlay.acknowledged(consent.number, position);
            let id = consent.record.evidence.as_ref().map(|evidence| evidence.provider_message_id.as_str()).unwrap_or_default();
            self.view.apply(&consent.key, Act { cause: position, ..consent.act }, id);
            self.view.advance(0, position.offset + 1);
        }
    }

    fn receive(&mut self, body: &str) -> Vec<Answer> {
        let answers = self.read(body);
        self.apply(&answers);
        answers
    }

    fn crash(&mut self) {
        self.overlay.clear();
    }
}

fn message(from: &str, text: &str) -> String {
    format!(r#"{{"id":"m-{text}","business":"acme","from":{from},"text":"{text}"}}"#)
}

const ADA: &str = r#""+12025550143""#;

fn keys(answers: &[Answer]) -> Vec<String> {
    let consents = answers.iter().flat_map(|answer| &answer.consents);
    consents.map(|consent| consent::encode_key(&consent.key).as_str().to_owned()).collect()
}

fn replies(answers: &[Answer]) -> Vec<ReplyKind> {
    answers.iter().flat_map(|answer| answer.replies.iter().map(|(kind, _)| *kind)).collect()
}

#[test]
fn a_stop_is_one_record_with_its_evidence_and_one_confirmation() {
    let mut world = World::new();
    let answers = world.receive(&message(ADA, "STOP"));
    assert_eq!(keys(&answers), ["acme|whatsapp|phone:+12025550143|marketing"]);
    let record = &answers[0].consents[0].record;
    let evidence = record.evidence.as_ref().expect("evidence");
    assert_eq!(record.state(), proto::ConsentState::OptedOut);
    assert_eq!(record.cause(), proto::ConsentCause::Keyword);
    assert_eq!(evidence.rule, "en.keyword.stop");
    assert_eq!((evidence.span_start, evidence.span_end, evidence.excerpt.as_str()), (0, 4, "STOP"));
    assert!(record.changed_state);
    let (kind, reply) = answers[0].replies.first().expect("a reply");
    assert_eq!(*kind, ReplyKind::OptOutConfirmation);
    assert_eq!(reply.expires_at_ms, RECORDED_MS + 1000 + 5 * 60 * 1000);
    assert_eq!((reply.to.as_str(), reply.in_reply_to.as_str()), ("phone:+12025550143", "m-STOP"));
}

#[test]
fn a_second_stop_is_recorded_and_not_confirmed() {
    let mut world = World::new();
    world.receive(&message(ADA, "STOP"));
    let again = world.receive(&message(ADA, "STOP"));
    assert_eq!(keys(&again).len(), 1);
    assert!(!again[0].consents[0].record.changed_state);
    assert!(replies(&again).is_empty());
}

#[test]
fn two_stops_within_one_batch_are_confirmed_once() {
    let mut world = World::new();
    let first = world.read(&message(ADA, "STOP"));
    let second = world.read(&message(ADA, "STOP"));
    assert_eq!((replies(&first).len(), replies(&second).len()), (1, 0));
}

#[test]
fn leaving_and_coming_back_are_confirmed_each_time_under_ids_of_their_own() {
    let mut world = World::new();
    let mut ids = Vec::new();
    for (text, kind) in [
        ("STOP", ReplyKind::OptOutConfirmation),
        ("START", ReplyKind::OptInConfirmation),
        ("stop please", ReplyKind::OptOutConfirmation),
        ("unstop", ReplyKind::OptInConfirmation),
    ] {
        let answers = world.receive(&message(ADA, text));
        assert_eq!(replies(&answers), [kind], "{text}");
        ids.extend(answers[0].replies.first().map(|(_, reply)| reply.id.clone()));
    }
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 4);
}

#[test]
fn a_bare_start_writes_all_and_covers_every_earlier_stop() {
    let mut world = World::new();
    world.receive(&message(ADA, "STOP"));
    let answers = world.receive(&message(ADA, "START"));
    assert_eq!(keys(&answers), ["acme|whatsapp|phone:+12025550143|all"]);
}

#[test]
fn every_identity_that_is_named_is_opted_out_and_one_reply_is_written() {
    let mut world = World::new();
    let answers = world.receive(&message(r#"["bsuid:US.7001","+12025550143"]"#, "STOP"));
    assert_eq!(keys(&answers), ["acme|whatsapp|phone:+12025550143|marketing", "acme|whatsapp|bsuid:US.7001|marketing"]);
    assert_eq!(replies(&answers).len(), 1);
    assert_eq!(answers[0].replies.first().map(|(_, reply)| reply.to.as_str()), Some("phone:+12025550143"));
}

#[test]
fn after_a_crash_an_own_earlier_write_is_not_repeated_and_its_reply_is_still_due() {
    let mut world = World::new();
    let answers = world.read_at(&message(ADA, "STOP"), 5);
    world.apply(&answers);
    world.crash();
    let again = world.read_at(&message(ADA, "STOP"), 5);
    assert!(keys(&again).is_empty());
    assert_eq!(replies(&again), [ReplyKind::OptOutConfirmation]);
}

#[test]
fn after_a_crash_in_between_only_the_missing_record_is_written() {
    let mut world = World::new();
    let both = r#"["bsuid:US.7001","+12025550143"]"#;
    let mut answers = world.read_at(&message(both, "STOP"), 5);
    answers[0].consents.truncate(1);
    world.apply(&answers);
    world.crash();
    let again = world.read_at(&message(both, "STOP"), 5);
    assert_eq!(keys(&again), ["acme|whatsapp|bsuid:US.7001|marketing"]);
    assert!(again[0].consents[0].record.changed_state);
    assert_eq!(replies(&again).len(), 1);
}

#[test]
fn after_a_crash_a_stop_that_changed_nothing_is_not_confirmed() {
    let mut world = World::new();
    world.receive(&message(ADA, "STOP"));
    let answers = world.read_at(&message(ADA, "STOP"), 9);
    world.apply(&answers);
    world.crash();
    assert!(replies(&world.read_at(&message(ADA, "STOP"), 9)).is_empty());
}

#[test]
fn an_act_older_than_the_one_that_stands_is_not_written() {
    let mut world = World::new();
    world.receive(&message(ADA, "STOP"));
    let seconds = RECORDED_MS / 1000 - 3600;
    let late = format!(r#"{{"id":"x","business":"acme","from":{ADA},"text":"STOP","received_at":{seconds}}}"#);
    let answers = world.receive(&late);
    assert!(keys(&answers).is_empty());
    assert!(replies(&answers).is_empty());
}

/// A message whose person wrote it so many seconds before the first record of these worlds.
fn earlier(text: &str, seconds: i64) -> String {
    let at = RECORDED_MS / 1000 - seconds;
    format!(r#"{{"id":"m-{text}-{seconds}","business":"acme","from":{ADA},"text":"{text}","received_at":{at}}}"#)
}

#[test]
fn an_act_that_comes_late_behind_the_one_that_ended_it_is_written_and_not_confirmed() {
    for (first, late) in [("START", "STOP"), ("STOP", "START")] {
        let mut world = World::new();
        world.receive(&message(ADA, first));
        let answers = world.receive(&earlier(late, 3600));
        assert_eq!(keys(&answers).len(), 1, "{late}: the fold decides, never the writer");
        assert!(!answers[0].consents[0].record.changed_state, "{late}");
        assert!(replies(&answers).is_empty(), "{late} was confirmed, and {first} stands");
    }
}

#[test]
fn a_stop_that_is_delivered_again_after_the_person_came_back_is_not_confirmed_again() {
    let mut world = World::new();
    let stop = earlier("STOP", 60);
    assert_eq!(replies(&world.receive(&stop)), [ReplyKind::OptOutConfirmation]);
    assert_eq!(replies(&world.receive(&message(ADA, "START"))), [ReplyKind::OptInConfirmation]);
    let again = world.receive(&stop);
    assert!(replies(&again).is_empty());
    world.crash();
    let offset = world.next_inbound;
    assert!(replies(&world.read_at(&stop, offset)).is_empty(), "nor after a crash");
}

#[test]
fn a_redelivered_opt_in_does_nothing_after_the_opt_out_that_ended_it() {
    let mut world = World::new();
    let start = message(ADA, "START");
    world.receive(&start);
    world.receive(&message(ADA, "STOP"));
    let again = world.receive(&start);
    assert!(keys(&again).is_empty());
    assert!(replies(&again).is_empty());
    let before_it_is_applied = World::new();
    let mut world = before_it_is_applied;
    world.read(&start);
    assert!(keys(&world.read(&start)).is_empty());
}

#[test]
fn a_start_of_which_a_crash_left_one_record_is_finished_though_a_later_stop_stands() {
    let both = |text: &str| {
        format!(
            r#"{{"object":"whatsapp_business_account","entry":[{{"id":"acme","changes":[{{"field":"messages","value":{{
            "metadata":{{"display_phone_number":"12025550100"}},"contacts":[{{"wa_id":"12025550143","user_id":"US.1"}}],
            "messages":[{{"from":"12025550143","from_user_id":"US.1","id":"w","timestamp":"1793527200","type":"text","text":{{"body":"{text}"}}}}]}}}}]}}]}}"#
        )
    };
    let mut world = World::new();
    let start = both("START");
    let mut written = world.read(&start);
    let all = keys(&written);
    assert_eq!(all.len(), 2);
    let lost = written[0].consents.pop();
    world.apply(&written);
    let read_at = world.next_inbound;
    // Somebody else ends what had landed, before the record is read again.
    let stands = written[0].consents[0].clone();
    let stop = Act { state: ConsentState::OptedOut, occurred_at: Timestamp::from_millis(RECORDED_MS + 60_000).expect("in range"), ..stands.act };
    world.view.apply(&stands.key, Act { source: Source::default(), ..stop }, "");
    world.overlay.clear();
    let again = world.read_at(&start, read_at);
    assert_eq!(keys(&again), [consent::encode_key(&lost.expect("two records").key).as_str()]);
    // What the provider delivers once more does nothing.
    world.apply(&again);
    assert!(keys(&world.read(&start)).is_empty());
}

#[test]
fn help_is_answered_and_changes_nothing() {
    let mut world = World::new();
    let answers = world.receive(&message(ADA, "HELP"));
    assert!(keys(&answers).is_empty());
    assert_eq!(replies(&answers), [ReplyKind::Help]);
}

#[test]
fn what_the_provider_has_answered_is_not_answered_again() {
    let mut world = World::new();
    let form = "MessageSid=SM1&AccountSid=acme&From=whatsapp%3A%2B12025550143&To=whatsapp%3A%2B12025550100&Body=STOP&OptOutType=STOP";
    let answers = world.receive(form);
    assert_eq!(keys(&answers), ["acme|whatsapp|phone:+12025550143|marketing"]);
    assert!(replies(&answers).is_empty());
}

#[test]
fn an_edit_may_stop_and_never_opts_in() {
    let edit = |text: &str| {
        format!(
            r#"{{"object":"whatsapp_business_account","entry":[{{"id":"acme","changes":[{{"field":"messages","value":{{
            "metadata":{{"display_phone_number":"12025550100"}},"messages":[{{"from":"12025550143","id":"w","timestamp":"1793527200",
            "type":"edit","edit":{{"original_message_id":"o","message":{{"type":"text","text":{{"body":"{text}"}}}}}}}}]}}}}]}}]}}"#
        )
    };
    let mut world = World::new();
    assert_eq!(keys(&world.receive(&edit("stop"))), ["acme|whatsapp|phone:+12025550143|marketing"]);
    assert!(keys(&world.receive(&edit("START"))).is_empty());
    assert!(keys(&world.receive(&edit("hello"))).is_empty());
}

#[test]
fn an_ambiguous_message_suppresses_until_it_is_judged() {
    let mut world = World::new();
    let answers = world.receive(&message(ADA, "🚫"));
    assert_eq!(keys(&answers), ["acme|whatsapp|phone:+12025550143|review"]);
    assert_eq!(answers[0].consents[0].record.cause(), proto::ConsentCause::Review);
    let review = answers[0].review.as_ref().expect("a review");
    assert_eq!((review.text.as_str(), review.deadline_ms), ("🚫", RECORDED_MS + 1000 + 1000));
    assert!(replies(&answers).is_empty());
    let mut lenient = World::with(|policy| policy.review_suppresses = false);
    let answers = lenient.receive(&message(ADA, "🚫"));
    assert!(keys(&answers).is_empty());
    assert!(answers[0].review.is_some());
}

#[test]
fn a_cross_channel_policy_writes_every_channel_and_answers_on_the_one_it_came_from() {
    let mut world = World::with(|policy| policy.cross_channel = true);
    let answers = world.receive(&message(ADA, "STOP"));
    assert_eq!(keys(&answers), ["acme|*|phone:+12025550143|marketing"]);
    assert_eq!(answers[0].replies.first().map(|(_, reply)| reply.channel.as_str()), Some("whatsapp"));
}

fn number_change(from: &str, to: &str) -> String {
    format!(
        r#"{{"object":"whatsapp_business_account","entry":[{{"id":"acme","changes":[{{"field":"messages","value":{{
        "metadata":{{"display_phone_number":"12025550100"}},"messages":[{{"from":"{from}","id":"w","timestamp":"1793527300",
        "type":"system","system":{{"body":"…","wa_id":"{to}","type":"user_changed_number"}}}}]}}}}]}}]}}"#
    )
}

#[test]
fn an_opt_out_follows_the_person_to_a_new_number_programmes_included() {
    let mut world = World::new();
    world.receive(&message(ADA, "STOP"));
    world.receive(&message(ADA, "STOP PROMOTIONS"));
    let answers = world.receive(&number_change("12025550143", "12025550177"));
    assert_eq!(keys(&answers), ["acme|whatsapp|phone:+12025550177|marketing"], "marketing covers what the programme's own record would say");
    assert_eq!(answers[0].consents[0].record.cause(), proto::ConsentCause::IdentityChange);
    assert!(replies(&answers).is_empty());
    assert!(keys(&world.receive(&number_change("12025550143", "12025550177"))).is_empty());
}

#[test]
fn a_programme_opt_out_alone_follows_too_and_so_does_one_of_the_new_number() {
    let mut world = World::new();
    world.receive(&message(ADA, "STOP PROMOTIONS"));
    world.receive(&message(r#""+12025550177""#, "STOP ALL"));
    let mut carried = keys(&world.receive(&number_change("12025550143", "12025550177")));
    carried.sort();
    assert_eq!(carried, ["acme|whatsapp|phone:+12025550143|all"]);
}

#[test]
fn a_person_who_never_opted_out_carries_nothing_over() {
    let mut world = World::new();
    world.receive(&message(ADA, "STOP"));
    world.receive(&message(ADA, "START"));
    assert!(keys(&world.receive(&number_change("12025550143", "12025550177"))).is_empty());
}

#[test]
fn the_excerpt_policy_bounds_what_the_evidence_keeps() {
    let long = format!("{} STOP", "lorem ipsum ".repeat(3));
    assert_eq!(excerpt(&long, 37, 41, Excerpt::None), "");
    assert_eq!(excerpt(&long, 37, 41, Excerpt::Full), long);
    let around = excerpt(&format!("{}STOP{}", "é".repeat(100), "ü".repeat(100)), 200, 204, Excerpt::Around);
    assert_eq!(around, format!("{}STOP{}", "é".repeat(30), "ü".repeat(30)));
}

#[test]
fn the_same_bytes_and_rules_yield_the_same_records() {
    let body = message(r#"["bsuid:US.7001","+12025550143"]"#, "STOP");
    let (first, second) = (World::new().read_at(&body, 3), World::new().read_at(&body, 3));
    assert_eq!(first, second);
}
