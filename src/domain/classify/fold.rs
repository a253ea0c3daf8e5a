//! One character of a message → what the lexicon compares.
//!
//! Invariant: the lexicon's own words go through the same fold, so whatever is lost here is lost on both sides. The fold
//! knows no language and no locale: the four Turkish i fold to one, everywhere.
//!
//! Absent: words, stretching, look-alike folding of whole words (`text`), and every decision.

use unicode_normalization::char::{canonical_combining_class, compose, decompose_compatible, is_combining_mark};

/// What a character does to the text around it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Part of a word that is written between spaces.
    Letter,
    /// A character of a script without word breaks: a token of its own.
    Solo,
    /// Leaves no trace: joiners, directional marks, skin tones, soft hyphens.
    Vanish,
    /// Ends a word.
    Space,
    /// Ends a word, and a clause if it stands at the end of the word.
    Dot,
    /// Ends a word and a clause.
    Break,
    /// `'` and its look-alikes: glue in "don't", a gap in "m'envoyez".
    Apostrophe,
    /// An emoji or another sign: ends a word and a clause, and may be a keyword by itself.
    Sign,
}

pub(super) fn role(c: char) -> Role {
    if c.is_ascii() {
        return match c {
            'a'..='z' | 'A'..='Z' | '0'..='9' | '@' | '$' => Role::Letter,
            '.' => Role::Dot,
            ',' | '!' | '?' | ';' | ':' | '\n' | '\r' | '(' | ')' | '[' | ']' | '{' | '}' => Role::Break,
            '\'' | '`' => Role::Apostrophe,
            _ => Role::Space,
        };
    }
    match c {
        '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' => Role::Vanish,
        '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fe00}'..='\u{fe0f}' | '\u{1f3fb}'..='\u{1f3ff}' => Role::Vanish,
        '\u{e0000}'..='\u{e01ef}' | '\u{640}' | '\u{115f}' | '\u{1160}' | '\u{3164}' => Role::Vanish,
        '’' | '‘' | 'ʼ' | '´' | '′' | '＇' => Role::Apostrophe,
        '¡' | '¿' | '·' | '…' | '—' | '–' | '،' | '؛' | '؟' | '۔' | '।' | '॥' => Role::Break,
        '、' | '。' | '，' | '！' | '？' | '；' | '：' | '（' | '）' | '「' | '」' | '『' | '』' | '【' | '】' => Role::Break,
        '\u{2028}' | '\u{2029}' | '｡' | '､' | '•' | '．' => Role::Break,
        '\u{1f130}'..='\u{1f149}' | '\u{1f150}'..='\u{1f169}' | '\u{1f170}'..='\u{1f189}' | '\u{1f1e6}'..='\u{1f1ff}' => Role::Letter,
        '\u{0e01}'..='\u{0e4e}' | '\u{0e80}'..='\u{0eff}' | '\u{1000}'..='\u{109f}' | '\u{1780}'..='\u{17ff}' => Role::Solo,
        '\u{1100}'..='\u{11ff}' | '\u{3041}'..='\u{3096}' | '\u{3099}' | '\u{309a}' | '\u{30a1}'..='\u{30fa}' | 'ー' => Role::Solo,
        '\u{3130}'..='\u{318f}' | '\u{3400}'..='\u{9fff}' | '\u{ac00}'..='\u{d7a3}' | '\u{f900}'..='\u{faff}' => Role::Solo,
        '\u{ff66}'..='\u{ff9f}' | '\u{ffa0}'..='\u{ffdc}' | '\u{20000}'..='\u{3ffff}' => Role::Solo,
        '“' | '”' | '„' | '«' | '»' | '‹' | '›' | '"' => Role::Space,
        _ if c.is_alphanumeric() || is_combining_mark(c) => Role::Letter,
        _ if c.is_whitespace() => Role::Space,
        '\u{2190}'..='\u{2bff}' | '\u{1f000}'..='\u{1faff}' | '〰' | '〽' => Role::Sign,
        _ => Role::Space,
    }
}

/// Appends the folded form of a letter.
pub(super) fn push_folded(c: char, out: &mut String) {
    if c.is_ascii() {
        out.push(c.to_ascii_lowercase());
        return;
    }
    if let Some(letter) = boxed_letter(c) {
        out.push(letter);
        return;
    }
    if matches!(c, '\u{ac00}'..='\u{d7a3}' | '\u{4e00}'..='\u{9fff}') {
        out.push(c);
        return;
    }
    decompose_compatible(c, |part| push_part(part, out));
}

/// 🆂 🅢 🇸 and small capitals: letters that compatibility decomposition does not reach.
fn boxed_letter(c: char) -> Option<char> {
    const SMALL_CAPITALS: [(char, char); 24] = [
        ('ᴀ', 'a'),
        ('ʙ', 'b'),
        ('ᴄ', 'c'),
        ('ᴅ', 'd'),
        ('ᴇ', 'e'),
        ('ꜰ', 'f'),
        ('ɢ', 'g'),
        ('ʜ', 'h'),
        ('ɪ', 'i'),
        ('ᴊ', 'j'),
        ('ᴋ', 'k'),
        ('ʟ', 'l'),
        ('ᴍ', 'm'),
        ('ɴ', 'n'),
        ('ᴏ', 'o'),
        ('ᴘ', 'p'),
        ('ʀ', 'r'),
        ('ꜱ', 's'),
        ('ᴛ', 't'),
        ('ᴜ', 'u'),
        ('ᴠ', 'v'),
        ('ᴡ', 'w'),
        ('ʏ', 'y'),
        ('ᴢ', 'z'),
    ];
    let code = u32::from(c);
    let place = match code {
        0x1f130..=0x1f149 => code - 0x1f130,
        0x1f150..=0x1f169 => code - 0x1f150,
        0x1f170..=0x1f189 => code - 0x1f170,
        0x1f1e6..=0x1f1ff => code - 0x1f1e6,
        _ => {
            return SMALL_CAPITALS.iter().find(|(from, _)| *from == c).map(|(_, to)| *to);
        }
    };
    char::from_u32(u32::from(b'a') + place)
}

fn push_part(c: char, out: &mut String) {
    match c {
        // Marks of the scripts in which they are spelling stay; elsewhere they are decoration.
        '\u{93c}' => {}
        '\u{901}' => out.push('\u{902}'),
        '\u{900}'..='\u{dff}' | '\u{e00}'..='\u{eff}' | '\u{1000}'..='\u{109f}' | '\u{1780}'..='\u{17ff}' => push_indic(c, out),
        '\u{3099}' | '\u{309a}' => push_composed(c, out),
        '\u{1161}'..='\u{1175}' | '\u{11a8}'..='\u{11c2}' => push_composed(c, out),
        '\u{640}' => {}
        'ى' | 'ی' | 'ې' => out.push('ي'),
        'ة' | 'ہ' | 'ھ' | 'ۃ' | 'ە' => out.push('ه'),
        'ک' => out.push('ك'),
        'ٱ' => out.push('ا'),
        '٠'..='٩' => push_digit(c, '٠', out),
        '۰'..='۹' => push_digit(c, '۰', out),
        'ı' | 'İ' => out.push('i'),
        'ß' | 'ẞ' => out.push_str("ss"),
        'ς' => out.push('σ'),
        'ł' | 'Ł' => out.push('l'),
        'đ' | 'Đ' | 'ð' | 'Ð' => out.push('d'),
        'ø' | 'Ø' => out.push('o'),
        'æ' | 'Æ' => out.push_str("ae"),
        'œ' | 'Œ' => out.push_str("oe"),
        'ґ' | 'Ґ' => out.push('г'),
        _ if is_combining_mark(c) || canonical_combining_class(c) != 0 => {}
        _ => out.extend(c.to_lowercase().filter(|part| !is_combining_mark(*part))),
    }
}

fn push_indic(c: char, out: &mut String) {
    match c {
        '०'..='९' => push_digit(c, '०', out),
        '০'..='৯' => push_digit(c, '০', out),
        '௦'..='௯' => push_digit(c, '௦', out),
        '๐'..='๙' => push_digit(c, '๐', out),
        _ => out.push(c),
    }
}

fn push_digit(c: char, zero: char, out: &mut String) {
    let value = u32::from(c) - u32::from(zero);
    out.extend(char::from_digit(value, 10));
}

/// Joins a voicing mark or a jamo to the character before it, so that both spellings of a syllable are one.
fn push_composed(c: char, out: &mut String) {
    match out.chars().next_back().and_then(|last| compose(last, c).map(|joined| (last, joined))) {
        Some((last, joined)) => {
            out.truncate(out.len() - last.len_utf8());
            out.push(joined);
        }
        None => out.push(c),
    }
}

/// The Latin letter that a Cyrillic or Greek one looks like, after folding.
pub(super) fn latin_look_alike(c: char) -> Option<char> {
    Some(match c {
        'а' | 'α' => 'a',
        'в' | 'β' => 'b',
        'с' => 'c',
        'ԁ' => 'd',
        'е' | 'ε' => 'e',
        'н' | 'η' => 'h',
        'і' | 'ι' => 'i',
        'ј' => 'j',
        'к' | 'κ' => 'k',
        'м' | 'μ' => 'm',
        'ν' => 'n',
        'о' | 'ο' | 'σ' => 'o',
        'р' | 'ρ' => 'p',
        'ѕ' => 's',
        'т' | 'τ' => 't',
        'у' | 'υ' => 'u',
        'х' | 'χ' => 'x',
        'ԛ' => 'q',
        'ѡ' | 'ω' | 'ԝ' => 'w',
        _ => return None,
    })
}

/// The Cyrillic letter that a Latin one looks like, after folding.
pub(super) fn cyrillic_look_alike(c: char) -> Option<char> {
    Some(match c {
        'a' => 'а',
        'b' => 'в',
        'c' => 'с',
        'e' => 'е',
        'h' => 'н',
        'i' => 'і',
        'k' => 'к',
        'm' => 'м',
        'o' => 'о',
        'p' => 'р',
        's' => 'ѕ',
        't' => 'т',
        'x' => 'х',
        'y' => 'у',
        _ => return None,
    })
}

/// The letter that a digit or sign stands for in "5t0p" and "un$ub".
pub(super) fn leet_letter(c: char) -> char {
    match c {
        '0' => 'o',
        '1' => 'i',
        '3' => 'e',
        '4' | '@' => 'a',
        '5' | '$' => 's',
        '7' => 't',
        '8' => 'b',
        _ => c,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folded(text: &str) -> String {
        let mut out = String::new();
        for c in text.chars() {
            push_folded(c, &mut out);
        }
        out
    }

    #[test]
    fn the_four_turkish_i_fold_to_one() {
        assert_eq!(folded("IİıiÎ"), "iiiii");
    }

    #[test]
    fn marks_go_where_they_decorate_and_stay_where_they_spell() {
        assert_eq!(folded("Arrêté"), "arrete");
        assert_eq!(folded("बंद"), "बंद");
        assert_eq!(folded("หยุด"), "หยุด");
        assert_eq!(folded("أَوْقِفْ"), "اوقف");
    }

    #[test]
    fn full_width_boxed_and_styled_letters_are_letters() {
        assert_eq!(folded("ＳＴＯＰ"), "stop");
        assert_eq!(folded("🆂🆃🅾🅿"), "stop");
        assert_eq!(folded("𝐒𝐓𝐎𝐏"), "stop");
        assert_eq!(folded("ꜱᴛᴏᴘ"), "stop");
    }

    #[test]
    fn both_spellings_of_a_syllable_are_one() {
        assert_eq!(folded("\u{1112}\u{1161}\u{11ab}"), "한");
        assert_eq!(folded("ｽﾄｯﾌﾟ"), folded("ストップ"));
    }
}
