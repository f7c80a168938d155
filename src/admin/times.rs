//! Moments as queries write them: an RFC 3339 time, `now`, or so long before it (`-1h`).

use chrono::{DateTime, TimeDelta, Utc};

/// The moment that `text` means when it is `now`.
///
/// # Errors
/// One sentence on what it must be, which begins with the text.
pub fn parse(text: &str, now: DateTime<Utc>) -> Result<DateTime<Utc>, String> {
    if text == "now" {
        return Ok(now);
    }
    if let Some(ago) = text.strip_prefix('-') {
        let ago = humantime::parse_duration(ago)
            .map_err(|error| format!("{text:?} is no duration before now such as -1h, -90s or -7d: {error}"))?;
        let then = TimeDelta::from_std(ago).ok().and_then(|ago| now.checked_sub_signed(ago));
        return then
            .filter(|then| *then >= FIRST)
            .ok_or_else(|| format!("{text:?} is before the year 0, which no time is written in: ask for a later one"));
    }
    let time = DateTime::parse_from_rfc3339(text).map_err(|error| {
        let hint = if text.contains(' ') { " (in a URL, + is written %2B)" } else { "" };
        format!(
            "{text:?} is neither an RFC 3339 time such as 2026-11-23T08:00:00Z, nor now, nor a duration before it such as \
             -1h: {error}{hint}"
        )
    })?;
    Ok(time.with_timezone(&Utc))
}

/// The first moment that RFC 3339 can write: 0000-01-01T00:00:00Z.
const FIRST: DateTime<Utc> = match DateTime::from_timestamp(-62_167_219_200, 0) {
    Some(first) => first,
    None => DateTime::UNIX_EPOCH,
};

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> DateTime<Utc> {
        text.parse().unwrap()
    }

    #[test]
    fn a_moment_is_written_in_three_ways() {
        let now = at("2026-11-23T08:30:15.5Z");
        for (text, time) in [
            ("now", "2026-11-23T08:30:15.5Z"),
            ("-1h", "2026-11-23T07:30:15.5Z"),
            ("-7d", "2026-11-16T08:30:15.5Z"),
            ("-1h30m", "2026-11-23T07:00:15.5Z"),
            ("-0s", "2026-11-23T08:30:15.5Z"),
            ("2026-11-23T09:00:00.001+01:00", "2026-11-23T08:00:00.001Z"),
            ("0000-01-01T00:00:00Z", "0000-01-01T00:00:00Z"),
        ] {
            assert_eq!(parse(text, now), Ok(at(time)), "{text}");
        }
        assert_eq!(FIRST.to_rfc3339(), "0000-01-01T00:00:00+00:00");
    }

    #[test]
    fn what_is_no_moment_is_quoted_and_told_what_to_be() {
        for (text, parts) in [
            ("yesterday", ["yesterday", "RFC 3339"]),
            ("1h", ["1h", "-1h"]),
            ("", ["\"\"", "RFC 3339"]),
            ("-", ["\"-\"", "such as -1h"]),
            ("-1", ["\"-1\"", "such as -1h"]),
            ("--1h", ["--1h", "such as -1h"]),
            ("-3000y", ["-3000y", "before the year 0"]),
            ("-300000000000y", ["-300000000000y", "before the year 0"]),
            ("2026-11-23T09:00:00 01:00", ["2026", "%2B"]),
        ] {
            let error = parse(text, at("2026-11-23T08:30:15Z")).unwrap_err();
            assert!(parts.iter().all(|part| error.contains(part)), "{text}: {error}");
        }
    }
}
