//! Questions and answers: what narrows, what is recorded, and what a crash or a second delivery does to it.

use super::*;
use crate::domain::decide::{Decision, Question};

const ANA: &str = r#""+5511912345678""#;

fn program(id: &str) -> Program {
    Program { id: id.to_owned(), name: Some(id.to_owned()), numbers: vec![] }
}

/// A business that asks what was meant and why.
fn asking() -> World {
    World::with(|policy| {
        policy.feedback = Some(question::built_in_reasons());
        policy.clarification_ms = Some(3_600_000);
        policy.programs = vec![program("promotions"), program("news")];
    })
}

fn tapped(from: &str, payload: &str) -> String {
    format!(r#"{{"id":"b-{payload}","business":"acme","from":{from},"button":{{"payload":"{payload}","text":"…"}}}}"#)
}

/// Whether a marketing send of this program would go now.
fn goes(world: &World, person: &str, program: &str) -> bool {
    let prints = world.view.print_key();
    let question = Question::marketing(prints, &Channel::Whatsapp, Some(program));
    let person = prints.person("acme", &Identity::parse(person).expect("an identity"));
    matches!(question.judge(|slot| world.view.standing(person, slot)).decision(false), Decision::Allowed(_))
}

fn feedback(answers: &[Answer]) -> Vec<(String, String)> {
    let given = answers.iter().filter_map(|answer| answer.feedback.as_ref());
    given.map(|(key, record)| (consent::encode_key(key).as_str().to_owned(), record.reason.clone())).collect()
}

#[test]
fn a_clarification_stops_everything_until_it_is_answered_and_then_only_what_was_chosen() {
    let mut world = asking();
    world.receive(&message(ANA, "STOP NEWS"));
    let asked = world.receive(&message(ANA, "STOP"));
    assert_eq!(replies(&asked), [ReplyKind::OptOutConfirmation, ReplyKind::Clarification]);
    let payloads: Vec<&str> = asked[0].replies[1].1.choices.iter().map(|choice| choice.payload.as_str()).collect();
    assert_eq!(payloads, ["stopgate:only:promotions", "stopgate:only:news", "stopgate:everything"]);
    assert!(!goes(&world, "+5511912345678", "shoes"));
    let answers = world.receive(&tapped(ANA, "stopgate:only:promotions"));
    let whose = "acme|whatsapp|phone:+5511912345678";
    let expected = [format!("{whose}|program:promotions"), format!("{whose}|program:news"), format!("{whose}|marketing")];
    assert_eq!(keys(&answers), expected, "what still stops is written before what may go on");
    assert_eq!(replies(&answers), [ReplyKind::NarrowedConfirmation]);
    let of = |program| goes(&world, "+5511912345678", program);
    assert_eq!((of("promotions"), of("news"), of("shoes")), (false, false, true));
}

#[test]
fn no_answer_everything_a_number_and_a_late_answer_change_nothing() {
    for answer in [tapped(ANA, "stopgate:everything"), message(ANA, "1"), message(ANA, "EVERYTHING")] {
        let mut world = asking();
        world.receive(&message(ANA, "STOP"));
        assert!(keys(&world.receive(&answer)).is_empty());
        assert!(!goes(&world, "+5511912345678", "shoes"));
    }
    let mut world = asking();
    world.receive(&message(ANA, "STOP"));
    world.next_inbound += 3_601;
    assert!(keys(&world.receive(&tapped(ANA, "stopgate:only:news"))).is_empty());
    let mut world = asking();
    assert!(keys(&world.receive(&tapped(ANA, "stopgate:only:news"))).is_empty(), "nobody was asked");
}

#[test]
fn an_answer_that_is_read_again_after_a_crash_completes_itself_and_is_confirmed() {
    for written in 0..=2 {
        let mut world = asking();
        world.receive(&message(ANA, "STOP"));
        let lost = world.read(&tapped(ANA, "stopgate:only:news"));
        let partly = Answer { consents: lost[0].consents[..written].to_vec(), ..Answer::default() };
        world.apply(&[partly]);
        world.crash();
        let again = world.read_at(&tapped(ANA, "stopgate:only:news"), world.next_inbound);
        world.apply(&again);
        assert_eq!(keys(&again).len(), 2 - written);
        assert_eq!(replies(&again), [ReplyKind::NarrowedConfirmation], "{written} of 2 were written");
        assert_eq!(again[0].replies, lost[0].replies);
        let of = |program| goes(&world, "+5511912345678", program);
        assert_eq!((of("news"), of("shoes")), (false, true));
    }
}

#[test]
fn an_answer_that_is_delivered_again_after_another_stop_opens_nothing() {
    let mut world = asking();
    world.receive(&message(ANA, "STOP"));
    world.receive(&tapped(ANA, "stopgate:only:news"));
    world.receive(&message(ANA, "please stop"));
    assert!(keys(&world.receive(&tapped(ANA, "stopgate:only:news"))).is_empty());
    assert!(!goes(&world, "+5511912345678", "shoes"));
}

#[test]
fn an_answer_under_two_names_opens_neither_where_one_of_them_left_long_ago() {
    let both = r#"["+5511912345678","bsuid:BR.7001"]"#;
    let mut world = asking();
    world.receive(&message(r#""bsuid:BR.7001""#, "STOP"));
    world.next_inbound += 7_200;
    world.receive(&message(ANA, "STOP"));
    assert!(keys(&world.receive(&tapped(both, "stopgate:only:news"))).is_empty());
    let mut world = asking();
    world.receive(&message(both, "STOP"));
    assert_eq!(keys(&world.receive(&tapped(both, "stopgate:only:news"))).len(), 4);
    assert!(goes(&world, "bsuid:BR.7001", "shoes") && !goes(&world, "bsuid:BR.7001", "news"));
}

#[test]
fn a_reason_is_recorded_under_the_key_of_the_opt_out_and_changes_nothing() {
    let mut world = World::with(|policy| policy.feedback = Some(question::built_in_reasons()));
    let asked = world.receive(&message(ANA, "SAIR"));
    assert_eq!(replies(&asked), [ReplyKind::OptOutConfirmation, ReplyKind::FeedbackQuestion]);
    assert_eq!(asked[0].replies[1].1.choices.len(), 3);
    assert_ne!(asked[0].replies[0].1.id, asked[0].replies[1].1.id);
    let key = "acme|whatsapp|phone:+5511912345678|marketing";
    for (answer, reason) in [
        (tapped(ANA, "stopgate:feedback:too-many"), "too-many"),
        (message(ANA, "2"), "not-relevant"),
        (message(ANA, "Não me inscrevi"), "never-asked"),
        (message(ANA, "os preços subiram demais"), "other"),
        (message(ANA, "too many messages"), "too-many"),
    ] {
        let answers = world.receive(&answer);
        assert_eq!(feedback(&answers), [(key.to_owned(), reason.to_owned())], "{answer}");
        assert!(keys(&answers).is_empty() && answers[0].review.is_none());
    }
    for nothing in ["where is my order?", "ok"] {
        assert!(feedback(&world.receive(&message(ANA, nothing))).is_empty(), "{nothing}");
    }
    let more = world.receive(&message(ANA, "stop all"));
    assert_eq!((keys(&more).len(), feedback(&more).len()), (1, 0), "an answer that asks for more is what it asks for");
}

#[test]
fn every_title_that_is_typed_answers_and_asks_for_nothing() {
    let titles = |language: &str| {
        let reasons = question::feedback_choices(&question::built_in_reasons(), language);
        reasons.into_iter().chain(question::clarification_choices(&[program("news")], language)).map(|choice| choice.title)
    };
    let languages: Vec<String> = question::built_in_reasons()[0].titles.keys().cloned().collect();
    let mut acts = Vec::new();
    for title in languages.iter().flat_map(|language| titles(language)) {
        let mut world = asking();
        world.receive(&message(ANA, "STOP"));
        let answers = world.receive(&message(ANA, &title));
        let narrowed = keys(&answers).len() == 2;
        if !narrowed && (!keys(&answers).is_empty() || answers.iter().any(|answer| answer.review.is_some() || !answer.replies.is_empty())) {
            acts.push(title);
        }
    }
    assert!(acts.is_empty(), "{acts:?}");
}

#[test]
fn after_a_day_an_answer_is_a_message_like_any_other() {
    let mut world = World::with(|policy| policy.feedback = Some(question::built_in_reasons()));
    world.receive(&message(ANA, "SAIR"));
    world.next_inbound += 24 * 3600;
    assert!(feedback(&world.receive(&message(ANA, "too expensive for me"))).is_empty());
    let mut stranger = World::with(|policy| policy.feedback = Some(question::built_in_reasons()));
    assert!(feedback(&stranger.receive(&message(ANA, "too expensive for me"))).is_empty(), "who never left is not asked");
}

#[test]
fn where_the_law_allows_one_text_the_confirmation_asks_and_nobody_is_asked_why() {
    let mut world = asking();
    let asked = world.receive(&message(ADA, "STOP"));
    assert_eq!(replies(&asked), [ReplyKind::OptOutConfirmation]);
    assert_eq!(asked[0].replies[0].1.choices.len(), 3);
    assert!(asked[0].replies[0].1.text.contains("only some"));
    assert!(feedback(&world.receive(&message(ADA, "too expensive for me"))).is_empty());
    let evidence = asked[0].consents[0].record.evidence.clone().expect("evidence");
    assert_eq!(evidence.country_rules, "general@2020-01-01,US@2024-04-04");
    let narrowed = world.receive(&tapped(ADA, "stopgate:only:news"));
    assert_eq!((keys(&narrowed).len(), replies(&narrowed).len()), (2, 0));
}

#[test]
fn a_country_has_words_confirmations_and_a_reach_of_its_own() {
    let mut world = World::with(|policy| policy.confirmations = false);
    assert_eq!(keys(&world.receive(&message(r#""+8613800138000""#, "N"))), ["acme|whatsapp|phone:+8613800138000|marketing"]);
    assert!(keys(&world.receive(&message(ADA, "N"))).is_empty());
    assert_eq!(replies(&world.receive(&message(r#""+84912345678""#, "STOP"))), [ReplyKind::OptOutConfirmation]);
    assert!(replies(&world.receive(&message(ADA, "STOP"))).is_empty());
}

#[test]
fn on_channels_without_buttons_the_choices_are_spelt_out() {
    let mut world = asking();
    let body = r#"{"id":"s","business":"acme","channel":"sms","from":"+5511912345678","text":"STOP"}"#;
    let asked = world.receive(body);
    assert!(asked[0].replies[1].1.text.ends_with("“Only promotions” / “Only news” / “Everything”"), "{}", asked[0].replies[1].1.text);
}

/// What a person may do.
#[derive(Clone, Copy, Debug)]
enum Does {
    Stops,
    StopsNews,
    StopsAll,
    Starts,
    Only(&'static str),
    Everything,
    Explains,
    Waits,
}

proptest::proptest! {
    #[test]
    fn nothing_but_a_start_or_an_answer_opens_anything_and_no_answer_opens_what_was_stopped_by_itself(
        steps in proptest::collection::vec(proptest::sample::select(vec![
            Does::Stops, Does::Stops, Does::StopsNews, Does::StopsAll, Does::Starts, Does::Only("news"), Does::Only("promotions"),
            Does::Everything, Does::Explains, Does::Waits,
        ]), 1..14),
        crashes in proptest::collection::vec(proptest::bool::ANY, 14),
    ) {
        let mut world = asking();
        let programs = ["news", "promotions", "shoes"];
        let open = |world: &World| programs.map(|program| goes(world, "+5511912345678", program));
        // Stopped by name since the person last came back.
        let mut by_name: Vec<&str> = Vec::new();
        for (step, crashes) in steps.into_iter().zip(crashes) {
            let before = open(&world);
            let body = match step {
                Does::Stops => message(ANA, "STOP"),
                Does::StopsNews => message(ANA, "STOP NEWS"),
                Does::StopsAll => message(ANA, "STOP ALL"),
                Does::Starts => message(ANA, "START"),
                Does::Only(program) => tapped(ANA, &format!("stopgate:only:{program}")),
                Does::Everything => tapped(ANA, "stopgate:everything"),
                Does::Explains => message(ANA, "too expensive for me"),
                Does::Waits => {
                    world.next_inbound += 3_000;
                    continue;
                }
            };
            // A message of its own, not the same once more.
            let body = body.replacen("\"id\":\"", &format!("\"id\":\"{}-", world.next_inbound), 1);
            // Of what a crash interrupted one record is written, and the message is read again.
            if crashes {
                let lost = world.read(&body);
                let one = lost.iter().flat_map(|answer| answer.consents.first().cloned()).take(1).collect();
                world.apply(&[Answer { consents: one, ..Answer::default() }]);
                let between = open(&world);
                proptest::prop_assert!(matches!(step, Does::Starts) || before.iter().zip(between).all(|(before, now)| *before || !now));
                world.crash();
                let again = world.read_at(&body, world.next_inbound);
                world.apply(&again);
            } else {
                world.receive(&body);
            }
            let after = open(&world);
            for ((program, before), after) in programs.iter().zip(before).zip(after) {
                let opened = !before && after;
                match step {
                    Does::Starts => proptest::prop_assert!(after),
                    Does::Only(chosen) => {
                        proptest::prop_assert!(!opened || (*program != chosen && !by_name.contains(program)), "{program} by {step:?}");
                    }
                    Does::Stops | Does::StopsNews | Does::StopsAll | Does::Everything | Does::Explains | Does::Waits => {
                        proptest::prop_assert!(!opened, "{program} by {step:?}");
                    }
                }
            }
            match step {
                Does::StopsNews => by_name.push("news"),
                Does::Only(chosen) if before != after => by_name.push(chosen),
                Does::Starts => by_name.clear(),
                Does::Only(_) | Does::Stops | Does::StopsAll | Does::Everything | Does::Explains | Does::Waits => {}
            }
        }
    }
}
