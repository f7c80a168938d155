//! A date with its time as text: RFC 3339, and what programs make of ISO 8601, as [`super::time`] says.

use std::iter;

/// An instant, as it was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// Since 1970, cut off; also of what lies before that, or beyond any calendar.
    pub millis: i64,
    /// RFC 3339 does not allow it, though it is plain what is meant: a second 60 at another time than 23:59:60 UTC (5.7), or
    /// U+2212 as an offset's minus.
    pub is_odd: bool,
}

/// Reads the whole of a text.
#[inline]
pub fn date_and_time(text: &[u8]) -> Option<Written> {
    text.try_into().ok().and_then(canonical).or_else(|| any_date_and_time(text))
}

/// As most write it: `2026-11-23T08:00:00.123Z`, with no second 60. Eight bytes are compared and made numbers of together.
#[inline]
fn canonical(text: &[u8; 24]) -> Option<Written> {
    let (words, _) = text.as_chunks::<8>();
    let [date, minute, second] = words else { return None };
    let (date, minute, second) =
        (digits(date, b"0000-00-")?, digits(minute, b"00T00:00")?, digits(second, b":00.000Z")?);
    // The number that this digit is the first of two of.
    let two = |word: u64, at: u32| u32::from((word >> (8 * at)) as u8) * 10 + u32::from((word >> (8 * at + 8)) as u8);
    let days = days(100 * two(date, 0) + two(date, 2), two(date, 5), two(minute, 0))?;
    let (hour, minute, millis) =
        (two(minute, 3), two(minute, 6), 100 * u32::from((second >> 32) as u8) + two(second, 5));
    let second = two(second, 1);
    let seconds = days * 86_400 + i64::from(hour * 3600 + minute * 60 + second);
    let is_time = hour < 24 && minute < 60 && second < 60;
    is_time.then_some(Written { millis: seconds * 1000 + i64::from(millis), is_odd: false })
}

/// The digits where the form has zeros, each in its byte, if all else is as there.
#[inline]
fn digits(text: &[u8; 8], form: &[u8; 8]) -> Option<u64> {
    const HIGH: u64 = u64::from_ne_bytes([0x80; 8]);
    // What makes a nine, or where no digit is meant a zero, the highest number below 0x80.
    let most = u64::from_le_bytes(form.map(|byte| if byte == b'0' { 0x7f - 9 } else { 0x7f }));
    let digits = u64::from_le_bytes(*text) ^ u64::from_le_bytes(*form);
    ((digits.wrapping_add(most) | digits) & HIGH == 0).then_some(digits)
}

fn any_date_and_time(text: &[u8]) -> Option<Written> {
    let (head, rest) = text.split_first_chunk::<16>()?;
    let &[y1, y2, y3, y4, b'-', mo1, mo2, b'-', d1, d2, b'T' | b't' | b' ', h1, h2, b':', m1, m2] = head else {
        return None;
    };
    let year = 100 * two(y1, y2)? + two(y3, y4)?;
    let days = days(year, two(mo1, mo2)?, two(d1, d2)?)?;
    let (hour, minute) = (two(h1, h2)?, two(m1, m2)?);
    let (second, millis, rest) = match rest {
        [b':', s1, s2, b'.' | b',', decimals @ ..] => {
            let (millis, rest) = thousandths(decimals)?;
            (two(*s1, *s2)?, millis, rest)
        }
        [b':', s1, s2, rest @ ..] => (two(*s1, *s2)?, 0, rest),
        _ => (0, 0, rest),
    };
    if hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let (offset, is_plain) = if rest == b"Z" { (0, true) } else { offset(rest)? };
    let seconds = days * 86_400 + i64::from(hour * 3600 + minute * 60 + second.min(59)) - offset;
    let is_leap = second == 60;
    let is_odd = !is_plain || (is_leap && seconds.rem_euclid(86_400) != 86_399);
    Some(Written { millis: (seconds + i64::from(is_leap)) * 1000 + millis, is_odd })
}

/// The days from 1970-01-01 to this one, where the Gregorian calendar has it (Hinnant, "chrono-Compatible Low-Level Date
/// Algorithms": a year begins in March there, so that the day which not all have is its last).
#[inline]
fn days(year: u32, month: u32, day: u32) -> Option<i64> {
    /// Of 400 years, after which the calendar repeats itself, and one of March as the first day.
    const CYCLE: i64 = 146_097;
    /// 0000-03-01 to 1970-01-01.
    const EPOCH: i64 = 719_468;
    const LENGTHS: [u8; 12] = [31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let length = u32::from(*LENGTHS.get(month.wrapping_sub(1) as usize)?);
    let is_leap_day =
        || month == 2 && day == 29 && year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    if day == 0 || (day > length && !is_leap_day()) {
        return None;
    }
    let (year, month) = if month > 2 { (year + 400, month - 3) } else { (year + 399, month + 9) };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1;
    Some(i64::from(days) - CYCLE - EPOCH)
}

fn two(tens: u8, ones: u8) -> Option<u32> {
    let (tens, ones) = (tens.wrapping_sub(b'0'), ones.wrapping_sub(b'0'));
    (tens < 10 && ones < 10).then(|| u32::from(tens * 10 + ones))
}

/// The first three of one or more decimals, and what is behind them all.
#[inline]
fn thousandths(decimals: &[u8]) -> Option<(i64, &[u8])> {
    if let [a, b, c, rest @ ..] = decimals
        && let (Some(tens), ones @ 0..10) = (two(*a, *b), c.wrapping_sub(b'0'))
        && !rest.first().is_some_and(u8::is_ascii_digit)
    {
        return Some((i64::from(tens * 10 + u32::from(ones)), rest));
    }
    let end = decimals.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(decimals.len());
    let (digits, rest) = decimals.split_at(end);
    let padded = digits.iter().copied().chain(iter::repeat(b'0')).take(3);
    (!digits.is_empty()).then(|| (padded.fold(0, |value, digit| 10 * value + i64::from(digit - b'0')), rest))
}

/// The seconds that are ahead of UTC, and whether a minus is the one of RFC 3339, where this and tags are all there is.
fn offset(text: &[u8]) -> Option<(i64, bool)> {
    let (sign, is_plain, digits) = match text.strip_prefix(b" ").unwrap_or(text) {
        [b'Z' | b'z', tags @ ..] | [b'U', b'T', b'C', tags @ ..] => return are_tags(tags).then_some((0, true)),
        [b'+', digits @ ..] => (1, true, digits),
        [b'-', digits @ ..] => (-1, true, digits),
        // U+2212
        [0xe2, 0x88, 0x92, digits @ ..] => (-1, false, digits),
        _ => return None,
    };
    let (hours, minutes, tags) = match digits {
        [h1, h2, b':', m1, m2, tags @ ..] => (two(*h1, *h2)?, two(*m1, *m2)?, tags),
        [h1, h2, m1, m2, tags @ ..] if m1.is_ascii_digit() => (two(*h1, *h2)?, two(*m1, *m2)?, tags),
        [h1, h2, tags @ ..] => (two(*h1, *h2)?, 0, tags),
        _ => return None,
    };
    let is_offset = hours < 24 && minutes < 60 && are_tags(tags);
    is_offset.then(|| (sign * i64::from(hours * 3600 + minutes * 60), is_plain))
}

/// Whether it is any number of tags, none of which has to be understood (`[!…]`: RFC 9557, 3.3).
fn are_tags(mut text: &[u8]) -> bool {
    while let [b'[', rest @ ..] = text {
        let Some(end) = memchr::memchr(b']', rest) else { return false };
        let is_tag = |byte: &u8| byte.is_ascii_alphanumeric() || b"_.+-:/=".contains(byte);
        if end == 0 || !rest[..end].iter().all(is_tag) {
            return false;
        }
        text = &rest[end + 1..];
    }
    text.is_empty()
}

#[cfg(test)]
mod tests {
    use chrono::{Datelike, NaiveDate};

    use super::*;

    #[test]
    fn days_are_those_of_the_calendar_and_no_others() {
        let epoch = NaiveDate::from_ymd_opt(1970, 1, 1).unwrap().num_days_from_ce();
        for year in 0..10_000 {
            for month in 0..14 {
                for day in [0, 1, 15, 28, 29, 30, 31, 32, 99] {
                    let date = NaiveDate::from_ymd_opt(year, month, day);
                    let expected = date.map(|date| i64::from(date.num_days_from_ce() - epoch));
                    assert_eq!(days(year as u32, month, day), expected, "{year}-{month}-{day}");
                }
            }
        }
    }

    #[test]
    fn what_most_write_is_read_as_all_else_is() {
        let text = b"2026-11-23T08:59:30.123Z";
        for at in 0..text.len() {
            for byte in 0..=u8::MAX {
                let mut changed = *text;
                changed[at] = byte;
                if let Some(written) = canonical(&changed) {
                    assert_eq!(Some(written), any_date_and_time(&changed), "{}", changed.escape_ascii());
                }
            }
        }
        assert!(canonical(text).is_some());
    }
}
