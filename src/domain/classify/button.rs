//! A pressed button: its payload if that says something, else its title.
//!
//! Payloads are identifiers that programmers write: `optout:marketing:v1`, `STOP_PROMOTIONS`, `prefsStopAll`. They are
//! split into words; an unmistakable word decides, an ordinary one (`stop`, `cancel`) decides if everything beside it is a
//! scope or filling. Titles are texts, and a payload that is not understood is read as one: `PARAR_PROMOCOES`.
//!
//! Invariants: the span of an answer is in the title, so an answer of the payload has none.
//!
//! Absent: words of people; those are the lexicon's.

use super::lexicon::Lexicon;
use super::{Button, Class, Classification, Confidence, RuleId, Scope, Scratch};

/// Decides by themselves.
const OPT_OUT: [&str; 12] = [
    "optout", "unsubscribe", "unsub", "unsubscribed", "stopall", "stoppromotions", "stopmarketing", "donotcontact", "dnc", "revoke", "optedout",
    "nomore",
];
const OPT_IN: [&str; 8] = ["optin", "resubscribe", "unstop", "optedin", "resume", "subscribe", "start", "restart"];
/// Decide if nothing unknown stands beside them.
const WEAK_OPT_OUT: [&str; 8] = ["stop", "end", "quit", "cancel", "remove", "block", "pause", "mute"];
const HELP: [&str; 3] = ["help", "info", "support"];
const UNDO: [&str; 9] = ["keep", "undo", "dont", "not", "back", "no", "abort", "stay", "later"];
const ALL: [&str; 4] = ["all", "everything", "any", "global"];
const MARKETING: [&str; 2] = ["marketing", "mkt"];
const PROMOTIONS: [&str; 12] =
    ["promotions", "promotion", "promotional", "promo", "promos", "offers", "offer", "ads", "ad", "deals", "campaigns", "advertising"];
const FILLING: [&str; 34] = [
    "prefs", "pref", "preferences", "preference", "button", "btn", "action", "reply", "quick", "qr", "payload", "id", "cta", "menu", "consent",
    "whatsapp", "wa", "sms", "rcs", "message", "messages", "msg", "msgs", "notifications", "notification", "please", "now", "yes", "confirm",
    "me", "from", "receiving", "list", "user",
];

pub(super) fn decide(lexicon: &Lexicon, button: Button<'_>, hint: Option<u8>, scratch: &mut Scratch) -> Option<Classification> {
    let payload = button.payload.map(str::trim).filter(|payload| !payload.is_empty());
    let by_words = payload.and_then(decide_words);
    let as_text = |scratch: &mut Scratch| {
        let words = split(payload?).join(" ");
        super::read(lexicon, &words, hint, scratch).map(|answer| Classification { span: None, ..answer })
    };
    by_words
        .or_else(|| as_text(scratch).filter(|answer| answer.class != Class::Review))
        .or_else(|| button.title.and_then(|title| super::read(lexicon, title, hint, scratch)))
        .map(|answer| Classification { confidence: Confidence::Exact, ..answer })
}

fn decide_words(payload: &str) -> Option<Classification> {
    let words = join_opt(split(payload));
    let has = |list: &[&str]| words.iter().any(|word| list.contains(&word.as_str()));
    let only_filling = |list: &[&str]| {
        words.iter().all(|word| {
            let known = [list, &ALL[..], &MARKETING, &PROMOTIONS, &FILLING].iter().any(|known| known.contains(&word.as_str()));
            known || is_number_or_version(word)
        })
    };
    let (class, rule) = if has(&OPT_OUT) && has(&UNDO) {
        (Class::Review, "button.undo")
    } else if has(&OPT_OUT) {
        (Class::OptOut, "button.opt-out")
    } else if has(&WEAK_OPT_OUT) && only_filling(&WEAK_OPT_OUT) {
        (Class::OptOut, "button.stop")
    } else if has(&OPT_IN) && only_filling(&OPT_IN) {
        (Class::OptIn, "button.opt-in")
    } else if has(&HELP) && only_filling(&HELP) {
        (Class::Help, "button.help")
    } else {
        return None;
    };
    let scope = if has(&ALL) || has(&["stopall"]) {
        Some(Scope::All)
    } else if has(&MARKETING) || has(&["stopmarketing"]) {
        Some(Scope::Marketing)
    } else if has(&PROMOTIONS) || has(&["stoppromotions"]) {
        Some(Scope::promotions())
    } else {
        None
    };
    Some(Classification { class, scope, rule: RuleId::new(rule.to_owned()), span: None, language: None, confidence: Confidence::Exact })
}

fn is_number_or_version(word: &str) -> bool {
    let digits = word.strip_prefix('v').unwrap_or(word);
    !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
}

/// `opt_out`, `opt-in` and `OptOut` are one word each.
fn join_opt(words: Vec<String>) -> Vec<String> {
    let mut out: Vec<String> = Vec::with_capacity(words.len());
    for word in words {
        match out.last_mut() {
            Some(last) if last == "opt" && matches!(word.as_str(), "out" | "in") => last.push_str(&word),
            Some(last) if last == "no" && word == "more" => last.push_str(&word),
            _ => out.push(word),
        }
    }
    out
}

/// Words of an identifier, in lower case: parted by anything that is no letter or digit, and where case rises.
fn split(payload: &str) -> Vec<String> {
    let mut out = Vec::new();
    let mut word = String::new();
    let mut last = ' ';
    for c in payload.chars().take(128) {
        let parts = !c.is_alphanumeric() || (c.is_uppercase() && last.is_lowercase());
        if parts && !word.is_empty() {
            out.push(std::mem::take(&mut word));
        }
        if c.is_alphanumeric() {
            word.extend(c.to_lowercase());
        }
        last = c;
    }
    if !word.is_empty() {
        out.push(word);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(payload: &str, class: Class, scope: Option<Scope>) {
        let answer = decide_words(payload);
        let (found, found_scope) = answer.map_or((Class::None, None), |answer| (answer.class, answer.scope));
        assert_eq!((found, found_scope), (class, scope), "{payload}");
    }

    #[test]
    fn payloads_are_understood_by_their_words() {
        check("optout:marketing:v1", Class::OptOut, Some(Scope::Marketing));
        check("prefs:stop:all", Class::OptOut, Some(Scope::All));
        check("prefs:stop:offers", Class::OptOut, Some(Scope::promotions()));
        check("STOP_PROMOTIONS", Class::OptOut, Some(Scope::promotions()));
        check("OptOut", Class::OptOut, None);
        check("acme.opt-out.btn", Class::OptOut, None);
        check("opt_in", Class::OptIn, None);
        check("unsubscribe", Class::OptOut, None);
    }

    #[test]
    fn orders_and_second_thoughts_are_not_opt_outs() {
        check("cancel_order", Class::None, None);
        check("STOP_DELIVERY", Class::None, None);
        check("start_checkout", Class::None, None);
        check("optout_undo", Class::Review, None);
    }
}
