//! Times as operators write them: in requests, and on the command line.

use chrono::{DateTime, TimeDelta, Utc};

/// How a duration is written, as a regular expression of ECMA 262. (Fractions are taken as well, where what they say is whole.)
pub const DURATION: &str = "([0-9]{1,9} ?(nanos|nsec|ns|usec|us|µs|millis|msec|ms|seconds?|secs?|s|minutes?|mins?|m|hours?|hrs?|h|days?|d|\
                            weeks?|wks?|w|months?|M|years?|yrs?|y) ?)+";

/// How a time is written, in the same way: some days of RFC 3339 there are not in each month.
pub fn pattern() -> String {
    let (date, time) = ("[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])", "([01][0-9]|2[0-3]):[0-5][0-9]");
    format!("^(now|(now-|-)?{DURATION}|{date}[Tt ]{time}:([0-5][0-9]|60)(\\.[0-9]+)?([Zz]|[+-]{time}))$")
}

/// A moment that was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    pub at: DateTime<Utc>,
    /// It was said by how far it is from the present.
    pub is_relative: bool,
}

/// An RFC 3339 time, `now`, or so long before it: `-1h`, `now-1h` or `1h`.
///
/// # Errors
/// What it must be, to stand behind what was given.
pub fn parse(text: &str, now: DateTime<Utc>) -> Result<Moment, String> {
    if text == "now" {
        return Ok(Moment { at: now, is_relative: true });
    }
    let ago = text.strip_prefix("now-").or_else(|| text.strip_prefix('-'));
    let written = ago.unwrap_or(text);
    // A number alone could be a time in seconds as well, and has no unit.
    let is_number = written.bytes().all(|it| it.is_ascii_digit());
    let duration = humantime::parse_duration(written).ok().filter(|_| !is_number);
    if ago.is_some() || duration.is_some() {
        let ago = duration.and_then(|ago| TimeDelta::from_std(ago).ok());
        let at = ago.and_then(|ago| now.checked_sub_signed(ago)).filter(|at| *at >= FIRST);
        let at = at.ok_or("is no time so long ago, such as -90s, -1h or -7d")?;
        return Ok(Moment { at, is_relative: true });
    }
    let at = DateTime::parse_from_rfc3339(text).map_err(|error| {
        let hint = if text.contains(' ') { " (in a URL, + is written %2B)" } else { "" };
        let why = match error.to_string() {
            why if why == "premature end of input" => String::new(),
            why => format!(": {why}"),
        };
        format!("is not an RFC 3339 time such as 2026-11-23T08:00:00Z, nor -1h or now{why}{hint}")
    })?;
    Ok(Moment { at: at.with_timezone(&Utc), is_relative: false })
}

/// The same as an option's value.
///
/// # Errors
/// What it must be.
pub fn option(text: &str) -> Result<DateTime<Utc>, String> {
    parse(text, Utc::now()).map(|moment| moment.at)
}

/// The first moment that RFC 3339 can write: 0000-01-01T00:00:00Z.
const FIRST: DateTime<Utc> = match DateTime::from_timestamp(-62_167_219_200, 0) {
    Some(first) => first,
    None => DateTime::UNIX_EPOCH,
};

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_described_as_a_time_is_one() {
        let described = jsonschema::validator_for(&json!({ "pattern": pattern() })).unwrap();
        let units = &DURATION[DURATION.find(" ?(").unwrap() + 3..DURATION.find(") ?").unwrap()];
        for unit in units.split('|') {
            let one = unit.trim_end_matches('?');
            for unit in [one, &one[..one.len() - usize::from(one != unit)]] {
                for text in
                    [format!("now-7{unit}"), format!("-007 {unit} 1s"), format!("12{unit}3h "), format!("0{unit}")]
                {
                    let moment = parse(&text, Utc::now());
                    assert!(moment.is_ok_and(|moment| moment.is_relative), "{text}");
                    assert!(described.is_valid(&json!(text)), "{text}");
                }
            }
        }
        // What the daemon writes is taken back.
        for seconds in [1, 60, 90, 3600, 5400, 86_400, 604_800, 40_000_000] {
            let text = humantime::format_duration(std::time::Duration::from_secs(seconds)).to_string();
            assert!(described.is_valid(&json!(text)) && parse(&text, Utc::now()).is_ok(), "{text}");
        }
        for (text, is_one) in [
            ("2026-11-23T08:00:00Z", true),
            ("2026-11-23t08:00:00.123456789z", true),
            ("2026-11-23 23:59:60-12:30", true),
            ("0000-01-01T00:00:00Z", true),
            ("2026-13-23T08:00:00Z", false),
            ("2026-11-32T08:00:00Z", false),
            ("2026-11-23T24:00:00Z", false),
            ("2026-11-23T08:00Z", false),
            ("2026-11-23T08:00:00", false),
            ("2026-11-23", false),
            ("+1h", false),
            ("1795420800", false),
            ("", false),
        ] {
            assert_eq!((described.is_valid(&json!(text)), parse(text, Utc::now()).is_ok()), (is_one, is_one), "{text}");
        }
    }

    #[test]
    fn times_are_absolute_or_so_long_ago() {
        let now: DateTime<Utc> = "2026-11-23T08:30:15Z".parse().unwrap();
        for (text, at, is_relative) in [
            ("now", "2026-11-23T08:30:15Z", true),
            ("-1h", "2026-11-23T07:30:15Z", true),
            ("-1h 30m", "2026-11-23T07:00:15Z", true),
            ("now-7d", "2026-11-16T08:30:15Z", true),
            ("1h", "2026-11-23T07:30:15Z", true),
            ("0s", "2026-11-23T08:30:15Z", true),
            ("2026-11-23T09:00:00+01:00", "2026-11-23T08:00:00Z", false),
        ] {
            assert_eq!(parse(text, now), Ok(Moment { at: at.parse().unwrap(), is_relative }), "{text}");
        }
        for (text, part) in [
            ("-1x", "such as -90s"),
            ("-300000y", "such as -90s"),
            ("-3000y", "such as -90s"),
            ("3000y", "such as -90s"),
            ("--1h", "such as -90s"),
            ("+1h", "nor -1h or now"),
            ("0", "nor -1h or now"),
            ("-0", "such as -90s"),
            ("1795420800", "nor -1h or now"),
            ("2026-11-23", "nor -1h or now"),
            ("2026-11-23T08:00:00 01:00", "%2B"),
            ("", "RFC 3339"),
        ] {
            let error = parse(text, now).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
