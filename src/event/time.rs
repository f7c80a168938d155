//! When an event happened, as its sender writes it: text, or a number. Only what is exact is read, nothing is guessed.
//!
//! **Text** is RFC 3339, and what programs make of ISO 8601:
//!
//! - `T`, `t` or a space between date and time, seconds that may be missing, and any number of decimals behind a point or a
//!   comma, cut to milliseconds;
//! - an offset as `+01:00`, `+0100` or `+01`, or `Z`, `z` or `UTC`, and a space in front of it; a time without one is none;
//! - zones and other tags in brackets behind it (RFC 9557), of which the offset says all that counts here;
//! - or a number, as JSON writes one, that cannot be a date ([`DATES`]).
//!
//! **A number** is seconds, milliseconds, microseconds or nanoseconds since 1970: the first of these in which it lies before
//! the year 10000. So seconds, with decimals, are every instant that an event may have, and each other unit those from
//! 1978-01-11T21:31:40.8Z on. Its text is read, never a float.
//!
//! **Which times are believed** follows from the record's bytes, the time of its receipt and `event.max_future` alone: no
//! reader looks at its own clock, so all come to the same answer.

use std::{borrow::Cow, iter, ops::RangeInclusive};

use super::{
    date::{Written, date_and_time},
    json,
};
use crate::position::Timestamp;

/// 9999-12-31T23:59:59.999Z: the last millisecond that RFC 3339 can write.
pub const LATEST: i64 = 253_402_300_799_999;
/// 10000-01-01T00:00:00Z in seconds.
const YEAR_10000: u128 = 253_402_300_800;
/// Digits of the largest number that is a time: nanoseconds before the year 10000.
const MOST_DIGITS: i64 = 21;
/// Text of so many digits is a date without a time (`20261128`, `2026.11`), or less: no number. Seconds have had more since
/// 1973. With a sign or an exponent it is no date.
const DATES: usize = 8;

/// What is wrong with an event's time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InvalidTime {
    Unreadable,
    BeforeEpoch,
    /// Longer before the receipt than `event.max_past`.
    TooEarly,
    /// Beyond `event.max_future` after the receipt, or 9999.
    TooLate,
    /// It is read all the same where it stands in the log, which has such times since doors took them.
    Odd,
}

impl InvalidTime {
    /// Why a field with it is refused: the sentence behind its name.
    pub fn rule(self) -> &'static str {
        match self {
            Self::Unreadable => {
                "is no time that can be read: write RFC 3339 with its offset, such as \"2026-11-23T08:00:00.123Z\", or a \
                 number of seconds since 1970, or leave it out"
            }
            Self::BeforeEpoch => "is a time before 1970, which no event has: correct it, or leave it out",
            Self::TooEarly => {
                "is a time further back from its receipt than an event may be (event.max_past): correct the clock that it is \
                 from, or leave it out"
            }
            Self::TooLate => {
                "is a time further ahead of its receipt than an event may be (event.max_future), or beyond 9999: correct \
                 the clock that it is from, or leave it out"
            }
            Self::Odd => {
                "is a time that few readers know: a second 60 is at 23:59:60 UTC alone, and an offset's minus is a hyphen"
            }
        }
    }

    /// Why an event is counted by the time of its receipt, as metrics name it; nothing where it is counted by its own.
    pub fn reason(self) -> Option<&'static str> {
        match self {
            Self::Unreadable => Some("unreadable"),
            Self::BeforeEpoch => Some("before_1970"),
            Self::TooEarly => Some("max_past"),
            Self::TooLate => Some("max_future"),
            Self::Odd => None,
        }
    }

    /// What is said of an event that was stored all the same.
    pub fn warning(self) -> &'static str {
        match self {
            Self::Unreadable => {
                "counted by the time of receipt, as its own cannot be read: write RFC 3339 with its offset, such as \
                 2026-11-23T08:00:00.123Z, or a number of seconds since 1970"
            }
            Self::BeforeEpoch => "counted by the time of receipt, as its own lies before 1970",
            Self::TooEarly => {
                "counted by the time of receipt, as its own lies further back than an event may be (event.max_past): correct \
                 the clock that it is from"
            }
            Self::TooLate => {
                "counted by the time of receipt, as its own lies further ahead than an event may be (event.max_future), \
                 or beyond 9999: correct the clock that it is from"
            }
            Self::Odd => {
                "counted by its own time, which few other readers know: a second 60 is at 23:59:60 UTC alone, and an \
                 offset's minus is a hyphen"
            }
        }
    }
}

/// The time that an event is counted by, where its own is believed, and what is wrong with it.
pub fn judge(written: Option<Written>, believed: &RangeInclusive<i64>) -> (Option<Timestamp>, Option<InvalidTime>) {
    match written {
        None => (None, Some(InvalidTime::Unreadable)),
        Some(Written { millis, .. }) if millis < 0 => (None, Some(InvalidTime::BeforeEpoch)),
        Some(Written { millis, .. }) if millis < *believed.start() => (None, Some(InvalidTime::TooEarly)),
        Some(Written { millis, .. }) if millis > *believed.end() => (None, Some(InvalidTime::TooLate)),
        Some(Written { millis, is_odd }) => (Some(Timestamp(millis)), is_odd.then_some(InvalidTime::Odd)),
    }
}

/// Reads the characters of a string.
pub fn of_text(text: &str) -> Option<Written> {
    let number = || (is_number(text) && !could_be_date(text)).then(|| of_number(text)).flatten();
    date_and_time(text.as_bytes()).or_else(number)
}

/// What stands in the place of a time as the text of an attribute, which [`of_text`] reads as [`of_number`] reads a number:
/// one that could be a date there has an exponent of 0. Other JSON is its own text.
pub fn text_of(json: &str) -> Cow<'_, str> {
    if is_number(json) && could_be_date(json) { format!("{json}e0").into() } else { json.into() }
}

/// Whether it is a number as JSON has them.
fn is_number(text: &str) -> bool {
    text.starts_with(|first: char| first == '-' || first.is_ascii_digit()) && json::is_value(text, &mut ())
}

fn could_be_date(number: &str) -> bool {
    let whole = number.find('.').unwrap_or(number.len());
    whole <= DATES && !number.contains(['-', 'e', 'E'])
}

/// Reads a JSON string, unless it has escapes or is no date with a time.
#[inline]
pub fn of_json(json: &str) -> Option<Written> {
    // What stands in a date with its time is never special in JSON.
    let [b'"', text @ .., b'"'] = json.as_bytes() else { return None };
    date_and_time(text)
}

/// Reads a JSON number; `None` where it is none.
pub fn of_number(json: &str) -> Option<Written> {
    whole_number(json.as_bytes()).or_else(|| any_number(json))
}

/// As most write one: digits alone, which are below 10¹⁸.
#[inline]
fn whole_number(digits: &[u8]) -> Option<Written> {
    if digits.is_empty() || digits.len() > 18 {
        return None;
    }
    let mut number = 0u64;
    for digit in digits.iter().map(|byte| byte.wrapping_sub(b'0')) {
        if digit > 9 {
            return None;
        }
        number = 10 * number + u64::from(digit);
    }
    let millis = match u128::from(number) {
        ..YEAR_10000 => number * 1000,
        millis if millis < 1000 * YEAR_10000 => number,
        micros if micros < 1_000_000 * YEAR_10000 => number / 1000,
        _ => number / 1_000_000,
    };
    i64::try_from(millis).ok().map(|millis| Written { millis, is_odd: false })
}

fn any_number(json: &str) -> Option<Written> {
    let (is_negative, text) = json.strip_prefix('-').map_or((false, json), |rest| (true, rest));
    let (mantissa, exponent) = match text.find(['e', 'E']) {
        Some(at) => (&text[..at], exponent(&text[at + 1..])?),
        None => (text, 0),
    };
    let (whole, decimals) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    if whole.is_empty() || !whole.bytes().chain(decimals.bytes()).all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let digits = || whole.bytes().chain(decimals.bytes());
    let zeros = digits().take_while(|digit| *digit == b'0').count();
    let is_zero = zeros == whole.len() + decimals.len();
    // How many of the digits from the first that is no zero stand before the point; below 0 zeros follow it.
    let point = (whole.len() as i64).saturating_add(exponent).saturating_sub(zeros as i64);
    let millis = match (is_zero, is_negative) {
        (true, _) => 0,
        (false, true) => -1,
        (false, false) if point > MOST_DIGITS => i64::MAX,
        (false, false) => {
            // The number that so many digits are, from the first that is no zero.
            let number = |count: i64| {
                let digits = digits().skip(zeros).chain(iter::repeat(b'0'));
                let digits = digits.take(usize::try_from(count).unwrap_or_default());
                digits.fold(0, |value: u128, digit| 10 * value + u128::from(digit - b'0'))
            };
            let millis = match number(point) {
                ..YEAR_10000 => number(point + 3),
                millis if millis < 1000 * YEAR_10000 => millis,
                micros if micros < 1_000_000 * YEAR_10000 => micros / 1000,
                nanos => nanos / 1_000_000,
            };
            // Nanoseconds of 21 digits are below 10¹⁵ milliseconds.
            i64::try_from(millis).unwrap_or(i64::MAX)
        }
    };
    Some(Written { millis, is_odd: false })
}

/// A number of digits with a sign or without; one that is beyond 64 bits is the last of them.
fn exponent(text: &str) -> Option<i64> {
    let (is_negative, digits) = match text.as_bytes() {
        [b'-', digits @ ..] => (true, digits),
        [b'+', digits @ ..] | digits => (false, digits),
    };
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let value =
        digits.iter().fold(0, |value: i64, digit| value.saturating_mul(10).saturating_add(i64::from(*digit - b'0')));
    Some(if is_negative { -value } else { value })
}

#[cfg(test)]
mod tests {
    use chrono::{DateTime, Datelike, FixedOffset, SecondsFormat, TimeDelta};
    use proptest::{collection::vec, prelude::*, sample::select};

    use super::*;
    use crate::event::TimeBounds;

    fn value(written: Option<Written>) -> Option<i64> {
        written.map(|written| written.millis)
    }

    fn rfc3339(text: &str) -> i64 {
        DateTime::parse_from_rfc3339(text).unwrap().timestamp_millis()
    }

    #[test]
    fn digits_alone_are_read_as_any_number_is() {
        for power in 0..22 {
            for factor in [1, 2, 9, 25, 253_402_300_799, 253_402_300_800, 253_402_300_801] {
                let number = (10u128.pow(power) * factor).to_string();
                let written = whole_number(number.as_bytes());
                assert_eq!(written.is_some(), number.len() <= 18, "{number}");
                assert!(written.is_none_or(|written| any_number(&number) == Some(written)), "{number}");
            }
        }
        assert_eq!([&b""[..], b"-1", b"1.5", b"1e3"].map(whole_number), [None; 4]);
    }

    #[test]
    fn what_is_exact_is_read_however_it_is_written() {
        for (text, instant) in [
            ("2026-11-28T08:00:00Z", "2026-11-28T08:00:00Z"),
            ("2026-11-28t08:00:00.5z", "2026-11-28T08:00:00.5Z"),
            ("2026-11-28 08:00:00Z", "2026-11-28T08:00:00Z"),
            ("2026-11-28 08:00:00,123999+01:00", "2026-11-28T07:00:00.123Z"),
            ("2026-11-28T08:00:00.123+0130", "2026-11-28T06:30:00.123Z"),
            ("2026-11-28 08:00:00-05", "2026-11-28T13:00:00Z"),
            ("2026-11-28T08:00Z", "2026-11-28T08:00:00Z"),
            ("2026-11-28T08:00+01:00[Europe/Berlin]", "2026-11-28T07:00:00Z"),
            ("2026-11-28T08:00:00.1-0000[+01:00][u-ca=gregory]", "2026-11-28T08:00:00.1Z"),
            ("2026-11-28 08:00:00 +0100", "2026-11-28T07:00:00Z"),
            ("2026-11-28 08:00:00.25 UTC", "2026-11-28T08:00:00.25Z"),
            ("2026-11-28T08:00:00UTC", "2026-11-28T08:00:00Z"),
            ("2026-12-31T23:59:60Z", "2026-12-31T23:59:60Z"),
            ("2027-01-01 05:29:60.5+0530", "2027-01-01T05:29:60.5+05:30"),
            ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00Z"),
            ("2024-02-29T23:59:59.999999999999Z", "2024-02-29T23:59:59.999Z"),
            ("1764316800", "2025-11-28T08:00:00Z"),
            ("1764316800.1239", "2025-11-28T08:00:00.123Z"),
            ("1764316800123", "2025-11-28T08:00:00.123Z"),
            ("1764316800123456789", "2025-11-28T08:00:00.123Z"),
            ("1.7643168e9", "2025-11-28T08:00:00Z"),
            ("17643168E+2", "2025-11-28T08:00:00Z"),
            ("86400e0", "1970-01-02T00:00:00Z"),
        ] {
            assert_eq!(of_text(text), Some(Written { millis: rfc3339(instant), is_odd: false }), "{text}");
        }
    }

    #[test]
    fn what_would_have_to_be_guessed_is_not_read() {
        for text in [
            "",
            "yesterday",
            "now",
            // no offset
            "2026-11-28",
            "2026-11-28T08:00:00",
            "2026-11-28 08:00:00.123456",
            "2026-11-28T08:00:00[Europe/Berlin]",
            // half of one
            "2026-11-28T08:00:00+",
            "2026-11-28T08:00:00+1",
            "2026-11-28T08:00:00+010",
            "2026-11-28T08:00:00+01:",
            "2026-11-28T08:00:00+01:0",
            "2026-11-28T08:00:00+24:00",
            "2026-11-28T08:00:00+01:60",
            "2026-11-28T08:00:00  +01:00",
            "2026-11-28T08:00:00 CET",
            "2026-11-28T08:00:00Z ",
            " 2026-11-28T08:00:00Z",
            // tags that are none, or have to be understood
            "2026-11-28T08:00:00Z[]",
            "2026-11-28T08:00:00Z[Europe",
            "2026-11-28T08:00:00Z[a]b",
            "2026-11-28T08:00:00Z[[a]]",
            "2026-11-28T08:00:00Z[!u-ca=hebrew]",
            // no such time
            "2026-02-29T08:00:00Z",
            "2026-13-01T08:00:00Z",
            "2026-11-31T08:00:00Z",
            "2026-11-28T24:00:00Z",
            "2026-11-28T08:60:00Z",
            "2026-11-28T08:00:61Z",
            "2026-11-28T08:00:00.Z",
            // decimals of a minute
            "2026-11-28T08:00.5Z",
            "2026-11-28T08Z",
            "20261128T080000Z",
            "12026-11-28T08:00:00Z",
            "+2026-11-28T08:00:00Z",
            "28 Nov 2026 08:00:00 +0000",
            // dates, and what is no time in digits
            "2026",
            "20261128",
            "2026.11",
            "28.112026",
            "000000000",
            "+1764316800",
            "1764316800.",
            "1764316800,5",
            "01e9",
            "1e",
            "true",
            "1764316800 ",
            "0x69296b80",
            "１７６４３１６８００",
        ] {
            assert_eq!(of_text(text), None, "{text}");
        }
        for json in ["true", "false", "-", "", ".5", "e9", "1e", "1e+", "1e1.5", "1_000", "NaN"] {
            assert_eq!(of_number(json), None, "{json}");
        }
    }

    #[test]
    fn a_number_is_of_the_first_unit_in_which_it_lies_before_the_year_10000() {
        for (json, expected) in [
            ("0", 0),
            ("-0", 0),
            ("-0.000e7", 0),
            ("0.0009", 0),
            ("0.001", 1),
            ("1", 1000),
            ("253402300799.999999", LATEST),
            ("253402300800", 253_402_300_800),
            ("253402300800.999", 253_402_300_800),
            ("253402300799999", LATEST),
            ("253402300799999.9", LATEST),
            ("253402300800000", 253_402_300_800),
            ("253402300799999999", LATEST),
            ("253402300800000000", 253_402_300_800),
            ("253402300799999999999", LATEST),
            ("253402300800000000000", LATEST + 1),
            ("1732780800.123456", 1_732_780_800_123),
            ("1732780800123.999", 1_732_780_800_123),
            ("1732780800123456", 1_732_780_800_123),
            ("1732780800123456789", 1_732_780_800_123),
            ("1.7e9", 1_700_000_000_000),
            ("1.7E+9", 1_700_000_000_000),
            ("17000000000e-1", 1_700_000_000_000),
            ("1.732780800123456789e18", 1_732_780_800_123),
            ("0.0000017e15", 1_700_000_000_000),
            // A double has 1732780800.1229999.
            ("1732780800.1230000000000000001", 1_732_780_800_123),
            ("1e20", 100_000_000_000_000),
            ("9e20", 900_000_000_000_000),
            ("1e21", i64::MAX),
            ("1e999999999999999999999", i64::MAX),
            ("1e-999999999999999999999", 0),
            ("0e999999999999999999999", 0),
            ("-1e-999999999999999999999", -1),
            ("-1", -1),
        ] {
            assert_eq!(value(of_number(json)), Some(expected), "{json}");
        }
        assert_eq!(value(of_text("-1764316800")), Some(-1));
        let digits = format!("1{}e-100000", "0".repeat(100_009));
        assert_eq!(value(of_number(&digits)), Some(1_000_000_000_000));
    }

    #[test]
    fn what_the_door_does_not_take_and_the_log_has_is_marked() {
        for text in [
            "2026-12-31T23:58:60Z",
            "2026-12-31T22:59:60Z",
            "2026-12-31T23:59:60+01:00",
            "2026-12-31 23:58:60+00",
            "2026-12-31T23:59:59\u{2212}01:00",
            "2026-12-31T22:59:60\u{2212}0100",
        ] {
            assert!(of_text(text).unwrap().is_odd, "{text}");
        }
    }

    #[test]
    fn a_time_is_believed_from_1970_on_and_so_far_around_the_receipt() {
        let judged = |millis, received, max_future| {
            let bounds = TimeBounds { max_past: 20, max_future };
            judge(Some(Written { millis, is_odd: false }), &bounds.around(Timestamp(received)))
        };
        let taken = |millis| (Some(Timestamp(millis)), None);
        assert_eq!(judged(0, 5, 10), taken(0));
        assert_eq!(judged(-1, 5, 10), (None, Some(InvalidTime::BeforeEpoch)));
        assert_eq!((judged(5, 25, 10), judged(4, 25, 10)), (taken(5), (None, Some(InvalidTime::TooEarly))));
        assert_eq!(judged(15, 5, 10), taken(15));
        assert_eq!(judged(16, 5, 10), (None, Some(InvalidTime::TooLate)));
        assert_eq!(judged(5, 5, 0), taken(5));
        assert_eq!(judged(LATEST, LATEST, i64::MAX), taken(LATEST));
        assert_eq!(judged(LATEST + 1, i64::MAX, i64::MAX).0, None);
        for unknown in [-1, 0] {
            assert_eq!(
                (judged(LATEST, unknown, 10), judged(0, unknown, 10)),
                (taken(LATEST), taken(0)),
                "no time of receipt"
            );
        }
        assert_eq!(judge(None, &(0..=LATEST)), (None, Some(InvalidTime::Unreadable)));
    }

    /// Texts in chrono's reach, and near it.
    fn text() -> impl Strategy<Value = String> {
        let time = (-62_167_219_200_000i64..=LATEST, -1439..1440i32).prop_map(|(millis, minutes)| {
            let offset = FixedOffset::east_opt(minutes * 60).unwrap();
            DateTime::from_timestamp_millis(millis).unwrap().with_timezone(&offset)
        });
        let year_has_four_digits = |time: &DateTime<FixedOffset>| (0..=9999).contains(&time.year());
        let separator = select(vec!['T', 't', ' ', '_']);
        let second = select(vec!["", "", "", ":60", ":61"]);
        let decimals = select(vec!["", ".0", ".5", ".123456789", ".9999999999999", ",25", "."]);
        let zone =
            select(vec!["", "Z", "z", "+0100", "-07", "\u{2212}01:00", " +02:00", " UTC", "[a/b]", "+01:00[a/b]"]);
        let parts = (time.prop_filter("a year of four digits", year_has_four_digits), separator, second, decimals);
        (parts, any::<bool>(), zone).prop_map(|((time, separator, second, decimals), own_zone, zone)| {
            let text = time.to_rfc3339_opts(SecondsFormat::Secs, false);
            let (clock, offset) = text.split_at(19);
            let clock = clock.replace('T', &separator.to_string());
            let clock = if second.is_empty() { clock } else { format!("{}{second}", &clock[..16]) };
            format!("{clock}{decimals}{}", if own_zone { offset } else { zone })
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(3_000))]

        #[test]
        fn what_chrono_reads_as_rfc_3339_is_read_as_chrono_reads_it(
            text in text(), at in any::<prop::sample::Index>(), byte in prop::option::of(select(b"0159-:+.,TtZz []eE\0".to_vec())),
        ) {
            let mut text = text;
            if let (Some(byte), true) = (byte, text.is_ascii()) {
                let at = at.index(text.len());
                text.replace_range(at..=at, std::str::from_utf8(&[byte]).unwrap());
            }
            let own = of_text(&text);
            if let Ok(expected) = DateTime::parse_from_rfc3339(&text) {
                prop_assert_eq!(value(own), Some(expected.timestamp_millis()), "{}", text);
            }
        }

        #[test]
        fn an_instant_is_the_same_in_each_form(millis in 253_402_300_800..=LATEST, nanos in 0..1_000_000i64, minutes in -1439..1440i32) {
            let offset = FixedOffset::east_opt(minutes * 60).unwrap();
            let time = DateTime::from_timestamp_millis(millis).unwrap() + TimeDelta::nanoseconds(nanos);
            let whole = millis / 1000;
            let decimals = format!("{:03}{nanos:06}", millis % 1000);
            let numbers = [
                format!("{whole}.{decimals}"),
                format!("{millis}.{nanos:06}"),
                format!("{millis}{:03}.{:03}", nanos / 1000, nanos % 1000),
                format!("{whole}{decimals}"),
            ];
            for number in &numbers {
                prop_assert_eq!(value(of_number(number)), Some(millis), "{}", number);
                prop_assert_eq!(value(of_text(number)), Some(millis), "{}", number);
            }
            for shift in -30..30i64 {
                // The same seconds, with the point elsewhere.
                let moved = match u32::try_from(shift) {
                    Ok(shift) => format!("0.{}{whole}{decimals}e{}", "0".repeat(shift as usize), whole.to_string().len() as i64 + i64::from(shift)),
                    Err(_) => format!("{whole}{decimals}{}e{}", "0".repeat(-shift as usize), shift - 9),
                };
                prop_assert_eq!(value(of_number(&moved)), Some(millis), "{}", moved);
                prop_assert_eq!(value(of_text(&moved)), Some(millis), "{}", moved);
            }
            let local = time.with_timezone(&offset);
            if (0..=9999).contains(&local.year()) {
                let rfc3339 = local.to_rfc3339_opts(SecondsFormat::Nanos, false);
                let basic = local.format("%Y-%m-%d %H:%M:%S,%f%z").to_string();
                let tagged = format!("{rfc3339}[Europe/Berlin]");
                for text in [rfc3339, basic, tagged] {
                    prop_assert_eq!(of_text(&text), Some(Written { millis, is_odd: false }), "{}", text);
                }
            }
        }

        #[test]
        fn a_number_is_what_arithmetic_makes_of_it(mantissa in 0..10i128.pow(15), exponent in -20..20i32) {
            let number = format!("{mantissa}e{exponent}");
            let power = 10i128.pow(exponent.unsigned_abs());
            let scaled = |by: i128| if exponent < 0 { mantissa * by / power } else { mantissa * power * by };
            let whole = scaled(1);
            let year = YEAR_10000 as i128;
            let units = [(1, scaled(1000)), (1000, whole), (1_000_000, whole / 1000), (1_000_000_000, whole / 1_000_000)];
            let unit = units.into_iter().find(|(factor, _)| whole < factor * year);
            let expected = unit.map_or(i128::from(LATEST + 1), |(_, millis)| millis);
            let own = i128::from(value(of_number(&number)).unwrap()).min(i128::from(LATEST + 1));
            prop_assert_eq!(own, expected, "{}", number);
        }

        #[test]
        fn a_number_is_the_same_time_as_an_attribute(
            sign in select(vec!["", "-"]), mantissa in 0..10u64.pow(15), digits in 0..16u32, exponent in prop::option::of(-20..20i32),
        ) {
            let exponent = exponent.map_or_else(String::new, |exponent| format!("e{exponent}"));
            let power = 10u64.pow(digits);
            let decimals = if digits == 0 { String::new() } else { format!(".{:0width$}", mantissa % power, width = digits as usize) };
            let number = format!("{sign}{}{decimals}{exponent}", mantissa / power);
            prop_assert_eq!(of_text(&text_of(&number)), of_number(&number), "{}", number);
        }

        #[test]
        fn no_text_makes_it_panic(
            any in any::<String>(), near in vec(select("0159-:+.,TtZz[]eE \u{2212}é".chars().collect::<Vec<_>>()), 0..40),
        ) {
            let near: String = near.into_iter().collect();
            for text in [any, near.clone(), format!("2026-11-28T08:00{near}"), format!("1{near}")] {
                let (written, number) = (of_text(&text), of_number(&text));
                prop_assert!([written, number].into_iter().flatten().all(|written| written.millis > -62_200_000_000_000));
            }
        }
    }
}
