//! Times as messages and sends write them: RFC 3339, Unix seconds or Unix milliseconds, as a number or a string.
//!
//! # Invariants
//!
//! - Never an error: what is no time, or an absurd one, is `None`, and the record's own timestamp counts instead.
//! - No clock is read: the unit of a number follows from its size alone.

use super::fields::FieldValue;
use crate::domain::time::Timestamp;

/// Numbers from here on are milliseconds: as seconds they would lie after the year 5138, as milliseconds they lie after
/// March 1973.
const FIRST_MILLIS: i64 = 100_000_000_000;

/// The time that a field holds.
pub fn parse_time(value: &FieldValue<'_>) -> Option<Timestamp> {
    match value {
        FieldValue::Text(text) => from_text(text),
        FieldValue::Integer(number) => from_integer(*number),
        FieldValue::Float(number) => from_float(*number),
        FieldValue::Bool(_) | FieldValue::Nested => None,
        FieldValue::List(values) => match values.as_slice() {
            [one] => parse_time(one),
            _ => None,
        },
    }
}

/// `2026-11-01T10:00:00.5+01:00`, `1793500000`, `1793500000.5` or `1793500000123`. A date and time without an offset
/// could mean any of 27 hours and is `None`.
pub fn from_text(text: &str) -> Option<Timestamp> {
    let text = text.trim();
    if let Ok(number) = text.parse() {
        return from_integer(number);
    }
    if text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') {
        return from_float(text.parse().ok()?);
    }
    let time: jiff::Timestamp = text.parse().ok()?;
    positive_millis(time.as_millisecond())
}

/// RFC 3339 in UTC, with milliseconds where there are any: what [`from_text`] reads back.
pub fn to_text(time: Timestamp) -> String {
    // A timestamp lies within the years that the calendar has.
    jiff::Timestamp::from_millisecond(time.millis()).map_or_else(|_| time.millis().to_string(), |time| time.to_string())
}

/// Unix seconds or milliseconds.
pub fn from_integer(number: i64) -> Option<Timestamp> {
    positive_millis(if number < FIRST_MILLIS { number.checked_mul(1000)? } else { number })
}

/// Unix seconds or milliseconds with a fraction.
pub fn from_float(number: f64) -> Option<Timestamp> {
    let millis = if number < FIRST_MILLIS as f64 { number * 1000.0 } else { number };
    // `as` saturates, and takes what is no number for 0: both are out of bounds.
    positive_millis(millis.round() as i64)
}

/// Nobody wrote a message in 1970: zero and less mean that the time is not known.
fn positive_millis(millis: i64) -> Option<Timestamp> {
    if millis > 0 { Timestamp::from_millis(millis) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[track_caller]
    fn check(text: &str, millis: Option<i64>) {
        assert_eq!(from_text(text).map(Timestamp::millis), millis, "{text}");
    }

    #[test]
    fn every_spelling_of_one_instant_is_that_instant() {
        for text in [
            "2026-11-01T10:00:00Z", "2026-11-01T10:00:00.000Z", "2026-11-01t11:00:00+01:00", " 2026-11-01 10:00:00Z ", "1793527200",
            "1793527200.0", "1793527200000",
        ] {
            check(text, Some(1_793_527_200_000));
        }
    }

    #[test]
    fn fractions_are_kept_to_the_millisecond() {
        check("2026-11-01T10:00:00.123456Z", Some(1_793_527_200_123));
        check("1793527200.1235", Some(1_793_527_200_124));
        check("1793527200123.4", Some(1_793_527_200_123));
    }

    #[test]
    fn what_is_no_time_or_absurd_is_missing() {
        for text in [
            "", "yesterday", "0", "-5", ".", "1.2.3", "nan", "inf", "1e9", "99999999999999999999", "9223372036854775807", "2026-11-01T10:00:00",
            "2026-13-01T10:00:00Z", "0000-01-01T00:00:00Z",
        ] {
            check(text, None);
        }
        for number in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, f64::MAX, 0.0, -1.0] {
            assert_eq!(from_float(number), None);
        }
        assert_eq!(from_integer(i64::MIN), None);
    }

    #[test]
    fn fields_of_any_kind_are_read() {
        let expected = Timestamp::from_millis(1_793_527_200_000);
        assert_eq!(parse_time(&FieldValue::Integer(1_793_527_200)), expected);
        assert_eq!(parse_time(&FieldValue::Float(1_793_527_200.0)), expected);
        assert_eq!(parse_time(&FieldValue::Text("1793527200000".into())), expected);
        assert_eq!(parse_time(&FieldValue::List(vec![FieldValue::Integer(1_793_527_200)])), expected);
        assert_eq!(parse_time(&FieldValue::Bool(true)), None);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(millis in 1_i64..253_402_300_799_999) {
            let time = Timestamp::from_millis(millis).expect("in range");
            prop_assert_eq!(from_text(&to_text(time)), Some(time));
        }

        #[test]
        fn any_text_is_survived(text in any::<String>()) {
            let _ = from_text(&text);
        }
    }
}
