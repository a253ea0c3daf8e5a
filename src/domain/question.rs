//! What a person who left may be asked, and which answers are understood: why they left, and what they meant to stop.
//!
//! Questions come with choices. A choice has a payload, for channels with buttons, and a title, which is an answer as well where
//! people type it; reasons also have numbers. Titles fit WhatsApp's quick replies: three of them, 20 characters each.
//!
//! Absent: whether a question is open. That follows from what stands for the person.

use super::key::DEFAULT_PROGRAM;
use super::reply::ReplyKind;
use std::collections::BTreeMap;

/// Why people leave, as a business wants to know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    pub id: String,
    /// Titles by language.
    pub titles: BTreeMap<String, String>,
}

/// A program of a business that people may stop by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// Lower-cased, as in `program:ID`.
    pub id: String,
    /// As people know it; `None`: [`DEFAULT_PROGRAM`], by its word in their language.
    pub name: Option<String>,
    /// Numbers that send nothing else.
    pub numbers: Vec<String>,
}

/// One choice of a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    pub payload: String,
    pub title: String,
}

/// What an answer to a clarification says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Meant {
    /// Only this program is to stop.
    Only(String),
    Everything,
}

/// The reason of an answer in a person's own words.
pub const OWN_WORDS: &str = "other";

const FEEDBACK_PAYLOAD: &str = "stopgate:feedback:";
const ONLY_PAYLOAD: &str = "stopgate:only:";
const EVERYTHING_PAYLOAD: &str = "stopgate:everything";

struct Titles {
    language: &'static str,
    everything: &'static str,
    /// Before the name of a program.
    only: &'static str,
    /// The program that a business has which names none.
    promotions: &'static str,
    too_many: &'static str,
    not_relevant: &'static str,
    never_asked: &'static str,
}

const FALLBACK: &str = "en";

#[rustfmt::skip]
const TITLES: &[Titles] = &[
    Titles { language: "en", everything: "Everything",   only: "Only", promotions: "promotions", too_many: "Too many messages",   not_relevant: "Not relevant",      never_asked: "Never signed up" },
    Titles { language: "es", everything: "Todo",         only: "Solo", promotions: "promociones", too_many: "Demasiados",          not_relevant: "No me interesa",    never_asked: "No me suscribí" },
    Titles { language: "pt", everything: "Tudo",         only: "Só", promotions: "promoções", too_many: "Mensagens demais",    not_relevant: "Não me interessa",  never_asked: "Não me inscrevi" },
    Titles { language: "fr", everything: "Tout",         only: "Seulement", promotions: "promotions", too_many: "Trop de messages",    not_relevant: "Pas intéressant",   never_asked: "Jamais inscrit" },
    Titles { language: "de", everything: "Alles",        only: "Nur", promotions: "Werbung", too_many: "Zu viele",            not_relevant: "Nicht relevant",    never_asked: "Nie angemeldet" },
    Titles { language: "it", everything: "Tutto",        only: "Solo", promotions: "promozioni", too_many: "Troppi messaggi",     not_relevant: "Non mi interessa",  never_asked: "Mai iscritto" },
    Titles { language: "nl", everything: "Alles",        only: "Alleen", promotions: "promoties", too_many: "Te veel berichten",   not_relevant: "Niet relevant",     never_asked: "Nooit aangemeld" },
    Titles { language: "pl", everything: "Wszystko",     only: "Tylko", promotions: "promocje", too_many: "Za dużo wiadomości",  not_relevant: "Nie interesuje",    never_asked: "Brak mojej zgody" },
    Titles { language: "ro", everything: "Tot",          only: "Doar", promotions: "promoții", too_many: "Prea multe mesaje",   not_relevant: "Nu mă interesează", never_asked: "Nu m-am abonat" },
    Titles { language: "tr", everything: "Hepsi",        only: "Yalnızca", promotions: "kampanyalar", too_many: "Çok fazla mesaj",     not_relevant: "İlgimi çekmiyor",   never_asked: "Hiç üye olmadım" },
    Titles { language: "ru", everything: "Всё",          only: "Только", promotions: "акции", too_many: "Слишком много",       not_relevant: "Неинтересно",       never_asked: "Не подписывался" },
    Titles { language: "uk", everything: "Усе",          only: "Тільки", promotions: "акції", too_many: "Забагато",            not_relevant: "Нецікаво",          never_asked: "Не підписувався" },
    Titles { language: "ar", everything: "الكل",         only: "فقط", promotions: "العروض", too_many: "رسائل كثيرة",         not_relevant: "لا تهمني",          never_asked: "لم أشترك" },
    Titles { language: "he", everything: "הכול",         only: "רק", promotions: "מבצעים", too_many: "הודעות רבות מדי",     not_relevant: "לא רלוונטי",        never_asked: "לא נרשמתי" },
    Titles { language: "fa", everything: "همه",          only: "فقط", promotions: "تبلیغات", too_many: "پیام‌های زیاد",        not_relevant: "به دردم نمی‌خورد",   never_asked: "ثبت‌نام نکردم" },
    Titles { language: "hi", everything: "सब कुछ",        only: "केवल", promotions: "ऑफ़र", too_many: "बहुत ज़्यादा",           not_relevant: "काम के नहीं",         never_asked: "मैंने नहीं माँगे" },
    Titles { language: "ur", everything: "سب کچھ",       only: "صرف", promotions: "آفرز", too_many: "بہت زیادہ پیغامات",   not_relevant: "میرے کام کے نہیں",  never_asked: "میں نے نہیں مانگے" },
    Titles { language: "bn", everything: "সব",            only: "শুধু", promotions: "অফার", too_many: "অনেক বেশি",            not_relevant: "প্রাসঙ্গিক নয়",       never_asked: "আমি চাইনি" },
    Titles { language: "ta", everything: "எல்லாம்",       only: "மட்டும்", promotions: "சலுகைகள்", too_many: "மிக அதிகம்",          not_relevant: "பொருத்தமில்லை",      never_asked: "நான் கேட்கவில்லை" },
    Titles { language: "id", everything: "Semua",        only: "Hanya", promotions: "promo", too_many: "Terlalu banyak",      not_relevant: "Tidak relevan",     never_asked: "Tidak mendaftar" },
    Titles { language: "ms", everything: "Semuanya",     only: "Hanya", promotions: "promosi", too_many: "Terlalu banyak",      not_relevant: "Tidak berkaitan",   never_asked: "Tidak mendaftar" },
    Titles { language: "vi", everything: "Tất cả",       only: "Chỉ", promotions: "khuyến mãi", too_many: "Quá nhiều tin",       not_relevant: "Không phù hợp",     never_asked: "Chưa từng đăng ký" },
    Titles { language: "th", everything: "ทั้งหมด",        only: "เฉพาะ", promotions: "โปรโมชั่น", too_many: "ข้อความเยอะเกินไป",     not_relevant: "ไม่เกี่ยวกับฉัน",       never_asked: "ไม่เคยสมัคร" },
    Titles { language: "tl", everything: "Lahat",        only: "Tanging", promotions: "mga promo", too_many: "Masyadong marami",    not_relevant: "Walang kinalaman",  never_asked: "Hindi ako nag-sign" },
    Titles { language: "zh", everything: "全部",          only: "仅", promotions: "促销", too_many: "消息太多",             not_relevant: "不感兴趣",           never_asked: "从未订阅" },
    Titles { language: "ja", everything: "すべて",        only: "これだけ:", promotions: "キャンペーン", too_many: "多すぎる",             not_relevant: "興味がない",          never_asked: "登録していない" },
    Titles { language: "ko", everything: "전부",          only: "이것만:", promotions: "프로모션", too_many: "너무 많음",            not_relevant: "관심 없음",          never_asked: "신청한 적 없음" },
    Titles { language: "sw", everything: "Yote",         only: "Tu", promotions: "matangazo", too_many: "Ujumbe mwingi mno",   not_relevant: "Haunihusu",         never_asked: "Sikujiandikisha" },
];

fn titles(language: &str) -> &'static Titles {
    let of = |wanted: &str| TITLES.iter().find(|titles| titles.language == wanted);
    let Some(titles) = of(language).or_else(|| of(FALLBACK)) else { unreachable!("the table holds the fallback language: see the test") };
    titles
}

/// The reasons that are offered where a business names none of its own.
pub fn built_in_reasons() -> Vec<Reason> {
    let reason = |id: &str, title: fn(&Titles) -> &'static str| Reason {
        id: id.to_owned(),
        titles: TITLES.iter().map(|titles| (titles.language.to_owned(), title(titles).to_owned())).collect(),
    };
    vec![
        reason("too-many", |titles| titles.too_many),
        reason("not-relevant", |titles| titles.not_relevant),
        reason("never-asked", |titles| titles.never_asked),
    ]
}

impl Program {
    /// The program of a business that names none: what sends without a program are part of.
    pub fn promotions() -> Self {
        Self { id: DEFAULT_PROGRAM.to_owned(), name: None, numbers: Vec::new() }
    }

    /// Its name in a language.
    pub fn name(&self, language: &str) -> &str {
        self.name.as_deref().unwrap_or_else(|| titles(language).promotions)
    }

    /// Whether a folded text is its id or a name of it.
    fn is_named(&self, said: &str) -> bool {
        let by_name = match &self.name {
            Some(name) => folded(name) == said,
            None => TITLES.iter().any(|titles| folded(titles.promotions) == said),
        };
        by_name || self.id == said
    }
}

impl Reason {
    /// The title in a language, else in English, else the first there is, else the id.
    fn title(&self, language: &str) -> &str {
        let known = self.titles.get(language).or_else(|| self.titles.get(FALLBACK)).or_else(|| self.titles.values().next());
        known.map_or(self.id.as_str(), String::as_str)
    }
}

/// The choices of a question of feedback.
pub fn feedback_choices(reasons: &[Reason], language: &str) -> Vec<Choice> {
    let choice = |reason: &Reason| Choice { payload: format!("{FEEDBACK_PAYLOAD}{}", reason.id), title: reason.title(language).to_owned() };
    reasons.iter().map(choice).collect()
}

/// The choices of a clarification.
pub fn clarification_choices(programs: &[Program], language: &str) -> Vec<Choice> {
    let titles = titles(language);
    let only = |program: &Program| Choice {
        payload: format!("{ONLY_PAYLOAD}{}", program.id),
        title: format!("{} {}", titles.only, program.name(language)),
    };
    let everything = Choice { payload: EVERYTHING_PAYLOAD.to_owned(), title: titles.everything.to_owned() };
    programs.iter().map(only).chain([everything]).collect()
}

/// A question's choices as a text tells them, on channels without buttons: reasons by number, programs by their titles.
pub fn spelt_out(kind: ReplyKind, choices: &[Choice]) -> String {
    let lines = choices.iter().enumerate().map(|(at, choice)| match kind {
        ReplyKind::FeedbackQuestion => format!("{} {}", at + 1, choice.title),
        ReplyKind::Clarification
        | ReplyKind::OptOutConfirmation
        | ReplyKind::OptInConfirmation
        | ReplyKind::Help
        | ReplyKind::NarrowedConfirmation => format!("“{}”", choice.title),
    });
    lines.collect::<Vec<_>>().join(if kind == ReplyKind::FeedbackQuestion { ", " } else { " / " })
}

/// As people type it: case, space and punctuation around it do not matter.
fn folded(text: &str) -> String {
    let words: Vec<String> = text.split_whitespace().map(str::to_lowercase).collect();
    words.join(" ").trim_matches(|sign: char| sign.is_ascii_punctuation() || "“”«»„。！، ".contains(sign)).to_owned()
}

/// The reason that a payload or a text chooses: by payload, id, number, or title in any language.
pub fn chosen_reason<'r>(reasons: &'r [Reason], answer: &str) -> Option<&'r str> {
    let said = folded(answer);
    let by_payload = said.strip_prefix(FEEDBACK_PAYLOAD).unwrap_or(&said);
    let numbered = said.parse::<usize>().ok().and_then(|number| reasons.get(number.checked_sub(1)?));
    let fits = |reason: &&Reason| reason.id == by_payload || reason.titles.values().any(|title| folded(title) == said);
    numbered.or_else(|| reasons.iter().find(fits)).map(|reason| reason.id.as_str())
}

/// What a payload or a text says to a clarification: by payload or by the words of a choice, in any language. A number says
/// nothing here: it might answer another question, and what it would open stays shut.
pub fn chosen_meaning(programs: &[Program], answer: &str) -> Option<Meant> {
    let said = folded(answer);
    let is_everything = said == EVERYTHING_PAYLOAD || TITLES.iter().any(|titles| folded(titles.everything) == said);
    if is_everything {
        return Some(Meant::Everything);
    }
    let is_only = |program: &&Program| {
        let by_payload = said.strip_prefix(ONLY_PAYLOAD) == Some(program.id.as_str());
        let named = |said: &str| program.is_named(said);
        let only = || TITLES.iter().filter_map(|titles| said.strip_prefix(titles.only.to_lowercase().as_str())).any(|rest| named(&folded(rest)));
        by_payload || named(&said) || only()
    };
    programs.iter().find(is_only).map(|program| Meant::Only(program.id.clone()))
}

/// Whether a payload is one of a question's choices: never anything else.
pub fn is_choice(payload: &str) -> bool {
    let payload = payload.trim().to_lowercase();
    payload.starts_with(FEEDBACK_PAYLOAD) || payload.starts_with(ONLY_PAYLOAD) || payload == EVERYTHING_PAYLOAD
}

/// Whether a text can be a reason in a person's own words: more than a word of courtesy, and no question of theirs.
pub fn is_own_words(text: &str) -> bool {
    let asks = text.chars().any(|sign| matches!(sign, '?' | '？' | '؟' | ';' | '՞'));
    let letters = text.chars().filter(|sign| sign.is_alphabetic()).count();
    let is_long_enough = text.split_whitespace().count() >= 2 || (!text.is_ascii() && letters >= 5);
    !asks && is_long_enough
}

#[cfg(test)]
mod tests {
    use super::*;

    fn programs() -> Vec<Program> {
        let program = |id: &str, name: &str| Program { id: id.to_owned(), name: Some(name.to_owned()), numbers: Vec::new() };
        vec![Program::promotions(), program("news", "Newsletter")]
    }

    #[test]
    fn every_title_fits_a_quick_reply_and_is_understood() {
        let reasons = built_in_reasons();
        assert_eq!(TITLES.len(), 28);
        for Titles { language, .. } in TITLES {
            for (choice, reason) in feedback_choices(&reasons, language).iter().zip(&reasons) {
                assert!(choice.title.chars().count() <= 20, "{}", choice.title);
                assert_eq!(chosen_reason(&reasons, &choice.title), Some(reason.id.as_str()), "{}", choice.title);
                assert_eq!(chosen_reason(&reasons, &choice.payload.to_uppercase()), Some(reason.id.as_str()));
            }
            let meant = [Meant::Only("promotions".into()), Meant::Only("news".into()), Meant::Everything];
            for (choice, meant) in clarification_choices(&programs(), language).iter().zip(meant) {
                assert_eq!(chosen_meaning(&programs(), &choice.title), Some(meant.clone()), "{}", choice.title);
                assert_eq!(chosen_meaning(&programs(), &choice.payload), Some(meant));
                assert!(is_choice(&choice.payload));
                let is_built_in = !choice.title.contains("Newsletter");
                assert!(choice.title.chars().count() <= 20 || !is_built_in, "{}", choice.title);
            }
        }
    }

    #[test]
    fn a_number_chooses_a_reason_and_never_a_program() {
        assert_eq!(chosen_reason(&built_in_reasons(), " 2. "), Some("not-relevant"));
        assert_eq!(chosen_reason(&built_in_reasons(), "0"), None);
        assert_eq!(chosen_reason(&built_in_reasons(), "4"), None);
        assert_eq!(chosen_meaning(&programs(), "1"), None);
        assert_eq!(chosen_meaning(&programs(), "newsletter!"), Some(Meant::Only("news".into())));
        assert_eq!(chosen_meaning(&programs(), "promotions are fine"), None);
    }

    #[test]
    fn own_words_are_more_than_thanks_and_ask_nothing() {
        assert!(is_own_words("too expensive for me") && is_own_words("太贵了我不想看"));
        assert!(!is_own_words("ok") && !is_own_words("where is my parcel?") && !is_own_words("👍"));
    }
}
