//! Phone numbers: many spellings, one person, one canonical form.
//!
//! A number is kept as its E.164 digits. Numbering plans that give one subscriber two spellings (Brazil's ninth digit,
//! Mexico's and Argentina's mobile prefix) are folded into one form, whether the second spelling came from a contact
//! book or from a WhatsApp id. The rules are a table with a version: a record written under an older table is folded
//! again when it is applied. Where a rule cannot know which of two subscribers is meant it chooses the form that
//! silences both: a wrong silence is repaired by a START, a leak by nothing.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};

/// Version of `CANONICAL_RULES`; part of the rules version that decisions and snapshots name.
pub const PHONE_RULES_VERSION: u32 = 1;

/// Most digits of an E.164 number.
const MAX_DIGITS: usize = 15;
/// Fewest digits of an international number (country code and subscriber).
const MIN_DIGITS: usize = 7;

/// A phone number in its canonical international form, and the digits as they were spelt. Two numbers are equal when
/// their canonical forms are.
#[derive(Clone, Copy)]
pub struct Phone {
    digits: Digits,
    spelt: Digits,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Digits {
    digits: [u8; MAX_DIGITS],
    len: u8,
}

/// One numbering plan with two spellings of one subscriber.
struct CanonicalRule {
    country_code: [u8; 2],
    fold: fn(&mut Digits),
}

const CANONICAL_RULES: &[CanonicalRule] = &[
    // Brazil put a 9 before mobile numbers (2012 to 2016); WhatsApp ids of some area codes still lack it.
    CanonicalRule { country_code: *b"55", fold: add_brazilian_ninth_digit },
    // Mexico dropped the 1 between country code and mobile number in 2019; WhatsApp ids may keep it.
    CanonicalRule { country_code: *b"52", fold: drop_mexican_mobile_one },
    // Argentina writes mobiles with a 9 after the country code, or with a 15 after the area code.
    CanonicalRule { country_code: *b"54", fold: drop_argentinian_mobile_prefix },
];

impl Phone {
    /// Reads a number as people and providers write it: `+55 11 91234-5678`, `0055…`, `whatsapp:+1…`,
    /// `15550100@s.whatsapp.net`, `15550100:7@s.whatsapp.net`. Only international numbers: without a country code no
    /// number can be told from another country's. `None` where it is not such a number.
    pub fn parse(text: &str) -> Option<Self> {
        // `+` and digits: what campaign systems write, and all that most sends ask for.
        if let Some(digits) = text.strip_prefix('+')
            && digits.bytes().all(|byte| byte.is_ascii_digit())
        {
            return Self::of_spelt(Digits::new(digits)?);
        }
        let text = text.trim();
        let text = text.strip_prefix("whatsapp:").or_else(|| text.strip_prefix("tel:")).unwrap_or(text).trim_start();
        let text = match text.split_once('@') {
            None => text,
            // A linked device writes `number:device@server`.
            Some((user, "s.whatsapp.net" | "c.us")) => user.split_once(':').map_or(user, |(number, _device)| number),
            Some(_) => return None,
        };
        let (text, plus) = match text.strip_prefix('+') {
            Some(rest) => (rest, true),
            None => (text, false),
        };
        let mut spelt = Digits { digits: [0; MAX_DIGITS], len: 0 };
        let mut zeros_to_skip = if plus || !text.starts_with("00") { 0 } else { 2 };
        for byte in text.bytes() {
            match byte {
                b'0'..=b'9' if zeros_to_skip > 0 => zeros_to_skip -= 1,
                b'0'..=b'9' => spelt.push(byte)?,
                b' ' | b'-' | b'.' | b'(' | b')' | b'/' => {}
                _ => return None,
            }
        }
        Self::of_spelt(spelt)
    }

    fn of_spelt(spelt: Digits) -> Option<Self> {
        if spelt.as_bytes().len() < MIN_DIGITS || spelt.as_bytes().starts_with(b"0") {
            return None;
        }
        let mut digits = spelt;
        for rule in CANONICAL_RULES {
            if spelt.as_bytes().starts_with(&rule.country_code) {
                (rule.fold)(&mut digits);
            }
        }
        Some(Self { digits, spelt })
    }

    /// Every spelling that is folded into this number, digits alone, the canonical one first.
    pub fn spellings(&self) -> Vec<String> {
        let canonical = self.as_str();
        // The rules differ by one digit behind country or area code, and Argentina's by two.
        let mut candidates = vec![canonical.to_owned()];
        for at in 2..=6.min(canonical.len()) {
            let (head, tail) = (canonical.get(..at).unwrap_or_default(), canonical.get(at..).unwrap_or_default());
            candidates.extend(["1", "9", "15"].map(|digits| format!("{head}{digits}{tail}")));
            candidates.push(format!("{head}{}", tail.get(1..).unwrap_or_default()));
        }
        candidates.retain(|candidate| Self::parse(&format!("+{candidate}")).is_some_and(|phone| phone == *self));
        let mut seen = std::collections::HashSet::new();
        candidates.retain(|candidate| seen.insert(candidate.clone()));
        candidates
    }

    /// The canonical digits, country code first, without `+`.
    pub fn digits(&self) -> &[u8] {
        self.digits.as_bytes()
    }

    /// The canonical digits as text.
    pub fn as_str(&self) -> &str {
        self.digits.as_str()
    }

    /// The digits as they were spelt: what a provider that gave them understands.
    pub fn as_spelt(&self) -> &str {
        self.spelt.as_str()
    }
}

impl PartialEq for Phone {
    fn eq(&self, other: &Self) -> bool {
        self.digits == other.digits
    }
}

impl Eq for Phone {}

impl PartialOrd for Phone {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Phone {
    fn cmp(&self, other: &Self) -> Ordering {
        self.digits.cmp(&other.digits)
    }
}

impl Hash for Phone {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.digits.hash(state);
    }
}

impl Digits {
    /// `None` where there are too many.
    fn new(digits: &str) -> Option<Self> {
        let mut new = Self { digits: [0; MAX_DIGITS], len: digits.len() as u8 };
        new.digits.get_mut(..digits.len())?.copy_from_slice(digits.as_bytes());
        Some(new)
    }

    fn as_bytes(&self) -> &[u8] {
        self.digits.get(..usize::from(self.len)).unwrap_or_default()
    }

    fn as_str(&self) -> &str {
        std::str::from_utf8(self.as_bytes()).unwrap_or_default()
    }

    fn push(&mut self, digit: u8) -> Option<()> {
        *self.digits.get_mut(usize::from(self.len))? = digit;
        self.len += 1;
        Some(())
    }

    fn remove(&mut self, at: usize, count: usize) {
        let len = usize::from(self.len);
        self.digits.copy_within(at + count..len, at);
        self.digits[len - count..].fill(0);
        self.len = (len - count) as u8;
    }

    fn insert(&mut self, at: usize, digit: u8) {
        let len = usize::from(self.len);
        self.digits.copy_within(at..len, at + 1);
        self.digits[at] = digit;
        self.len += 1;
    }
}

/// `55` + two digits of area + eight of subscriber gains the 9. Landlines have eight digits too and fall together with
/// the mobile of the same ending: see the module head.
fn add_brazilian_ninth_digit(number: &mut Digits) {
    if number.as_bytes().len() == 12 {
        number.insert(4, b'9');
    }
}

fn drop_mexican_mobile_one(number: &mut Digits) {
    if number.as_bytes().len() == 13 && number.as_bytes().get(2) == Some(&b'1') {
        number.remove(2, 1);
    }
}

fn drop_argentinian_mobile_prefix(number: &mut Digits) {
    if number.as_bytes().get(2) == Some(&b'9') && number.as_bytes().len() == 13 {
        number.remove(2, 1);
    }
    // 54 + area (2 to 4 digits) + 15 + subscriber: ten national digits and the 15.
    if number.as_bytes().len() == 14 {
        for area_digits in 2..=4 {
            if number.as_bytes().get(2 + area_digits..4 + area_digits) == Some(b"15") {
                number.remove(2 + area_digits, 2);
                return;
            }
        }
    }
}

impl fmt::Debug for Phone {
    /// Addresses never reach logs or panics: only the country's first digit and the length are shown.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let first = self.digits().first().copied().unwrap_or(b'?');
        write!(f, "Phone(+{}…{} digits)", char::from(first), self.digits().len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn all_spellings_of_a_number_are_folded_into_it() {
        for (number, others) in [("+5511912345678", vec!["551112345678"]), ("+525512345678", vec!["5215512345678"]), ("+12025550143", vec![])] {
            let phone = Phone::parse(number).expect("a number");
            let spellings = phone.spellings();
            assert_eq!(spellings[0], phone.as_str());
            assert!(others.iter().all(|other| spellings.iter().any(|spelling| spelling == other)), "{spellings:?}");
            assert!(spellings.iter().all(|spelling| Phone::parse(spelling) == Some(phone)), "{spellings:?}");
        }
    }

    proptest! {
        #[test]
        fn plus_and_digits_read_as_any_other_spelling_of_them(digits in "[0-9]{0,18}") {
            let shown = |text: String| Phone::parse(&text).map(|phone| (phone.as_str().to_owned(), phone.as_spelt().to_owned()));
            prop_assert_eq!(shown(format!("+{digits}")), shown(format!(" +{digits}")));
        }
    }

    #[track_caller]
    fn check(spelling: &str, canonical: Option<&str>) {
        let phone = Phone::parse(spelling);
        assert_eq!(phone.as_ref().map(Phone::as_str), canonical, "{spelling}");
    }

    #[test]
    fn one_person_has_one_form_however_the_number_is_spelt() {
        for spelling in [
            "+12025550143",
            "12025550143",
            "0012025550143",
            "whatsapp:+12025550143",
            "+1 (202) 555-0143",
            "12025550143@s.whatsapp.net",
            "12025550143:12@s.whatsapp.net",
            "  +1.202.555.0143 ",
        ] {
            check(spelling, Some("12025550143"));
        }
    }

    #[test]
    fn plans_with_two_spellings_have_one_canonical_form() {
        check("5511912345678", Some("5511912345678"));
        check("551112345678", Some("5511912345678"));
        check("5215512345678", Some("525512345678"));
        check("525512345678", Some("525512345678"));
        check("5491123456789", Some("541123456789"));
        check("541123456789", Some("541123456789"));
        check("+54 11 15 2345 6789", Some("541123456789"));
        check("+54 223 15 456 7890", Some("542234567890"));
    }

    #[test]
    fn the_spelling_is_kept_and_decides_nothing() {
        let (short, long) = (Phone::parse("551112345678").expect("a number"), Phone::parse("5511912345678").expect("a number"));
        assert_eq!(short, long);
        assert_eq!((short.as_spelt(), long.as_spelt()), ("551112345678", "5511912345678"));
    }

    #[test]
    fn canonical_forms_are_fixed_points() {
        for spelling in ["551112345678", "5215512345678", "5491123456789", "+54 223 15 456 7890", "+4915112345678"] {
            let once = Phone::parse(spelling).expect("a number");
            let twice = Phone::parse(once.as_str()).expect("a number");
            assert_eq!(once, twice);
        }
    }

    #[test]
    fn what_is_no_international_number_is_refused() {
        for text in ["", "+", "12345", "0171 5551234", "US.70011223344556677", "ada@example.com", "1234567890123456", "+1202CALLME"] {
            check(text, None);
        }
        check("120363043211234567@lid", None);
    }

    #[test]
    fn debug_output_hides_the_number() {
        let shown = format!("{:?}", Phone::parse("+12025550143").expect("a number"));
        assert!(!shown.contains("2025550143"), "{shown}");
    }
}
