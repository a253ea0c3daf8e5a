//! Decisions, a table a family. The labelled set measures; these explain.

use super::*;
use crate::wire::lexicon::builtin;
use std::sync::LazyLock;

static LEXICON: LazyLock<Lexicon> = LazyLock::new(builtin);

fn decide(text: &str) -> Classification {
    classify(&LEXICON, &Message { text: Some(text), ..Message::default() })
}

fn check_all(class: Class, texts: &[&str]) {
    for text in texts {
        let found = decide(text);
        assert_eq!(found.class, class, "{text:?} by {}", found.rule);
    }
}

fn check_scope(text: &str, scope: Option<Scope>) {
    let found = decide(text);
    assert_eq!((found.class, found.scope), (Class::OptOut, scope), "{text}");
}

#[test]
fn keywords_survive_case_punctuation_courtesy_and_disguise() {
    check_all(
        Class::OptOut,
        &[
            "STOP", "Stop.", " stop!! ", "ＳＴＯＰ", "s\u{200c}top", "Stop. Thank you", "please stop", "stop pls", "Parar, por favor",
            "opt out", "opt-out", "OptOut", "REVOKE", "S T O P", "s.t.o.p.", "st op", "5T0P", "$top", "stopppp", "SSSTTTOOOPPP",
            "STOP STOP STOP", "stop. unsubscribe. cancel!", "ЅТОР", "sтop", "🆂🆃🅾🅿", "🛑", "🛑🛑", "İPTAL", "iptal", "ıptal", "&quot;STOP&quot;",
            "\"stop\"", "Hi, stop please. Thanks!", "STOP\nSent from my iPhone", "退订。", "수신 거부",
        ],
    );
}

#[test]
fn slips_count_when_they_are_no_words() {
    check_all(Class::OptOut, &["STPO", "sotp", "stopp", "Dtop", "unsuscribe", "unsubcribe", "unsubscrbe"]);
    check_all(Class::None, &["shop", "top", "step", "spot", "stoop", "send", "quite", "cable", "cancer"]);
}

#[test]
fn scope_is_what_the_words_say() {
    check_scope("STOP", None);
    check_scope("STOP ALL", Some(Scope::All));
    check_scope("stop everything", Some(Scope::All));
    check_scope("stop marketing", Some(Scope::Marketing));
    check_scope("Stop promotions", Some(Scope::promotions()));
    check_scope("Detener promociones", Some(Scope::promotions()));
    check_scope("STOP 36111", Some(Scope::Program("36111".to_owned())));
    check_scope("RET MARKA", Some(Scope::Program("marka".to_owned())));
    check_scope("UNREG XYZ", Some(Scope::Program("xyz".to_owned())));
    check_scope("BATAL XYZ", Some(Scope::Program("xyz".to_owned())));
}

#[test]
fn opt_in_takes_exact_words() {
    check_all(Class::OptIn, &["START", "start.", "#start", "Unstop please", "Start. Thank... you", "#volver", "开始", "СТАРТ"]);
    check_all(Class::None, &["yes", "y", "strat", "starts", "sta rt", "s t a r t", "let's start", "start over tomorrow"]);
}

#[test]
fn what_others_wrote_decides_nothing() {
    check_all(
        Class::None,
        &[
            "Liked \"Sale ends today. Reply STOP to opt out\"",
            "> Reply STOP\nwhat does this mean?",
            "A aimé « Soldes. STOP au 36111 »",
            "👍 to “Reply STOP to opt out”",
        ],
    );
}

#[test]
fn signs_that_are_only_signs_go_to_a_person() {
    check_all(Class::Review, &["✋", "🚫", "🚫🚫"]);
    check_all(Class::None, &["👍", "😂😂", ""]);
}

#[test]
fn short_forms_of_one_language_act_only_where_it_is_spoken() {
    check_all(Class::Review, &["TC", "huy", "acha"]);
    let hinted = |text, language| classify(&LEXICON, &Message { text: Some(text), button: None, language: Some(language) }).class;
    assert_eq!(hinted("TC", "vi-VN"), Class::OptOut);
    check_all(Class::OptOut, &["TD"]);
    assert_eq!(hinted("acha", "sw"), Class::OptOut);
}

#[test]
fn titles_act_as_texts_and_payloads_go_first() {
    let press = |payload, title| classify(&LEXICON, &Message { button: Some(Button { payload, title }), ..Message::default() });
    for title in [
        "Stop promotions", "Parar promoções", "Detener promociones", "Arrêter les promotions", "Werbung stoppen", "Promosyonları durdur",
        "停止推广",
    ] {
        let found = press(None, Some(title));
        assert_eq!((found.class, found.scope), (Class::OptOut, Some(Scope::promotions())), "{title}");
    }
    assert_eq!(press(Some("PARAR_PROMOCOES"), None).class, Class::OptOut);
    assert_eq!(press(Some("menu:help"), Some("Stop promotions")).class, Class::Help);
    assert_eq!(press(Some("x91"), Some("Resume promotions")).class, Class::OptIn);
}

#[test]
fn a_business_can_add_remove_and_replace_words() {
    let change = |change, class, words: &[&str]| Override {
        change,
        class,
        language: "en".to_owned(),
        words: words.iter().map(|word| (*word).to_owned()).collect(),
    };
    let decide = |changes: &[Override], text| {
        classify(&LEXICON.with_overrides(changes).unwrap(), &Message { text: Some(text), ..Message::default() }).class
    };
    assert_eq!(decide(&[change(Change::Add, Class::OptOut, &["adios amigos"])], "Adios, amigos"), Class::OptOut);
    assert_eq!(decide(&[change(Change::Remove, Class::OptOut, &["end"])], "END"), Class::None);
    assert_eq!(decide(&[change(Change::Replace, Class::Help, &["sos"])], "SOS"), Class::Help);
    assert_ne!(LEXICON.with_overrides(&[change(Change::Add, Class::Help, &["sos"])]).unwrap().version(), LEXICON.version());
}

#[test]
fn a_hint_never_costs_more_than_a_word() {
    for hint in ["", "xx", "pt-BR", "zh_Hant", "fil", "\u{1f600}"] {
        assert_eq!(classify(&LEXICON, &Message { text: Some("STOP"), button: None, language: Some(hint) }).class, Class::OptOut, "{hint}");
    }
}

#[test]
fn a_wish_to_stop_is_understood_in_the_customers_words() {
    check_all(
        Class::OptOut,
        &[
            "please stop sending me these messages",
            "Don't text me, stop",
            "I no longer wish to receive your offers",
            "take my number off your list",
            "STOP SPAMMING ME",
            "stop or I will report you",
            "cancel my order and never text me again",
            "Deja de enviarme mensajes",
            "não quero mais receber propaganda de vocês",
            "désinscrivez-moi de votre liste",
            "meldet mich vom Newsletter ab",
            "toglietemi dalla vostra lista",
            "mujhe ye promotional msg mat bhejo",
            "msh 3ayez rasayel",
            "stop sending me mensajes",
            "もう広告送ってこないで",
            "不要再发广告给我了",
            "광고 문자 그만 보내세요",
            "อย่าส่งข้อความมาอีก",
        ],
    );
}

#[test]
fn business_and_its_opposite_are_not_a_wish_to_stop() {
    check_all(
        Class::None,
        &[
            "please cancel my order",
            "cancel my appointment tomorrow",
            "at the end of the week",
            "I want to quit smoking",
            "don't stop",
            "never stop sending these",
            "please don't remove me from the list",
            "can you stop the delivery and send it tomorrow",
            "quiero cancelar mi pedido",
            "Pode parar de chover que eu vou",
            "Wo ist die nächste Bushaltestelle?",
            "バス停はどこですか",
            "what does \"reply STOP to end\" mean?",
        ],
    );
}

#[test]
fn a_complaint_with_a_keyword_for_a_sentence_is_a_wish() {
    check_all(Class::OptOut, &["Too many messages. Please stop.", "Wer hat euch meine Nummer gegeben? Newsletter nervt. Abmelden!"]);
    check_all(Class::Review, &["not interested", "too many messages", "wrong number"]);
}

#[test]
fn a_command_without_an_object_needs_a_reason() {
    check_all(
        Class::OptOut,
        &[
            "Wrong number. Delete it.",
            "Who gave you my number? Delete it",
            "من أعطاكم رقمي؟ احذفوه",
            "谁给你们我的号码?删掉",
            "je ne suis plus cliente, effacez le",
            "kitne message bhejte ho yaar band karo",
        ],
    );
    check_all(Class::None, &["Delete it.", "Wrong size. Delete it.", "who gave you my number"]);
}

#[test]
fn nothing_makes_the_engine_fail_or_stall() {
    let texts = [
        "s".repeat(1 << 16),
        "stop ".repeat(10_000),
        "\"stop ".repeat(10_000),
        "> stop\n".repeat(10_000),
        "please do not never stop ".repeat(3_000),
        "\u{301}".repeat(1_000),
        "ﾞ".repeat(1_000),
        "\u{1161}\u{11a8}&#39;&amp;".repeat(500),
        "🇸".repeat(999),
        "退".repeat(30_000),
    ];
    for text in &texts {
        let found = decide(text);
        assert!(found.span.is_none_or(|span| text.get(span).is_some()));
    }
}

#[test]
fn a_negation_that_is_also_a_courtesy_turns_a_keyword_round() {
    check_all(Class::None, &["no quiero dejar de recibir ofertas", "nu opriți mesajele", "لا إلغاء"]);
    check_all(Class::OptOut, &["no, stop", "nu stop", "hola, no, baja por favor"]);
}

#[test]
fn a_borrowed_word_brings_its_negation_along() {
    check_all(Class::None, &["pls dont stop ang promos nyo"]);
}

#[test]
fn what_is_to_be_left_may_be_another_list_than_ours() {
    check_all(Class::None, &["toglietemi dalla lista d'attesa", "nehmt mich von der Warteliste", "keluarkan saya dari daftar tunggu"]);
    check_all(Class::OptOut, &["toglietemi dalla lista", "nehmt mich aus dem Verteiler", "cancelen mi pedido y no me escriban nunca más"]);
}

#[test]
fn words_are_weighed_where_no_rule_has_an_answer() {
    let found = decide("kindly strike our office from every address book you bought for these offers");
    assert_eq!((found.class, found.rule.as_str(), found.confidence), (Class::OptOut, Some("learned.opt-out"), Confidence::Low));
    assert_eq!(found.language.as_ref().map(LanguageCode::as_str), Some("en"));
    assert_eq!(decide("no mushrooms on my half please").class, Class::None);
}

#[test]
fn what_a_guard_took_back_is_not_weighed() {
    // Its words alone would make it an opt-out.
    check_all(Class::None, &["pls dont stop ang promos nyo"]);
}

#[test]
fn a_rule_is_doubted_where_all_other_words_speak_against_it() {
    let found = decide("I told the other company to stop emailing, where is my order and when will it be delivered");
    assert_eq!((found.class, found.rule.as_str(), found.confidence), (Class::Review, Some("learned.doubt"), Confidence::Low));
}

#[test]
fn reasons_are_the_words_that_count_most_and_the_score() {
    let told = reasons(&LEXICON, "i have no use for these voucher mails, save the postage", 3).expect("weighed");
    assert_eq!(told.strongest.len(), 3);
    assert!(told.strongest.is_sorted_by_key(|(_, weight)| std::cmp::Reverse(weight.abs())), "{told:?}");
    assert_eq!(reasons(&LEXICON, "stop it please", 3), None, "three words are not weighed");
}
