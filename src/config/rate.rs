//! `http.rate`, and `rate` of a key: how many events may come in a time, and how many of them at once.

use std::{fmt, num::NonZeroU32, time::Duration};

use figment::value::Value;
use serde::{Deserialize, Serialize};

use super::keys::nearest;

/// So many events in a time, and so many at once. A bucket of tokens has room for `burst`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    events: NonZeroU32,
    per: Per,
    pub burst: NonZeroU32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Per {
    Second,
    Minute,
}

impl Per {
    fn seconds(self) -> u32 {
        match self {
            Self::Second => 1,
            Self::Minute => 60,
        }
    }
}

impl Rate {
    /// Until there is room for one event more: never nothing, as [`MOST`] is far below 10⁹.
    pub fn per_event(&self) -> Duration {
        Duration::from_secs(self.per.seconds().into()) / self.events.get()
    }

    /// Without a burst: what one second brings, and at least one event.
    fn of(events: NonZeroU32, per: Per) -> Self {
        let burst = NonZeroU32::new(events.get() / per.seconds()).unwrap_or(NonZeroU32::MIN);
        Self { events, per, burst }
    }

    /// What a day brings: a burst of more would be no bound, and its bucket would be kept for days.
    fn longest_burst(&self) -> u64 {
        u64::from(self.events.get()) * DAY / u64::from(self.per.seconds())
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = if self.per == Per::Second { "s" } else { "m" };
        write!(f, "{}/{unit}", self.events)?;
        if self.burst == Self::of(self.events, self.per).burst { Ok(()) } else { write!(f, " burst {}", self.burst) }
    }
}

/// A rate, or that there is none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RateLimit(pub Option<Rate>);

const NONE: &str = "none";
const DAY: u64 = 24 * 3600;
/// Of events in a time, and at once.
const MOST: u32 = 10_000_000;

pub(super) const RULE: &str = "must be the events of a second (or a minute, \"60/m\") and how many may come at once, such as \"1000/s burst 5000\" \
                    or { events_per_second = 1000, burst = 5000 }, or \"none\"";

impl From<RateLimit> for String {
    fn from(limit: RateLimit) -> Self {
        limit.0.map_or_else(|| NONE.to_owned(), |rate| rate.to_string())
    }
}

impl TryFrom<String> for RateLimit {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if text.trim() == NONE {
            return Ok(Self(None));
        }
        let mut words = text.split_ascii_whitespace();
        let (events, unit) = words.next().unwrap_or_default().split_once('/').ok_or(RULE)?;
        let per = match unit {
            "s" => Per::Second,
            "m" => Per::Minute,
            _ => return Err(RULE.to_owned()),
        };
        let burst = match (words.next(), words.next(), words.next()) {
            (None, ..) => None,
            (Some("burst"), Some(burst), None) => Some(burst),
            // As nginx writes it.
            (Some(both), None, _) => Some(both.strip_prefix("burst=").ok_or(RULE)?),
            _ => return Err(RULE.to_owned()),
        };
        let burst = burst.map(str::parse).transpose().map_err(|_| RULE)?;
        limited(events.parse().map_err(|_| RULE)?, per, burst)
    }
}

fn limited(events: i64, per: Per, burst: Option<i64>) -> Result<RateLimit, String> {
    let number = |name: &str, value: i64| {
        let within = u32::try_from(value).ok().filter(|value| *value <= MOST).and_then(NonZeroU32::new);
        within.ok_or_else(|| format!("{name} must be from 1 to {MOST}; \"none\" is no limit"))
    };
    let mut rate = Rate::of(number("its events", events)?, per);
    if let Some(burst) = burst {
        rate.burst = number("its burst", burst)?;
    }
    let most = rate.longest_burst();
    if u64::from(rate.burst.get()) > most {
        return Err(format!("its burst must be at most {most}: what the rate brings in a day"));
    }
    Ok(RateLimit(Some(rate)))
}

/// The value as it is given: text, a number of events a second, or a table.
pub(super) fn read(value: &toml::Value) -> Result<Value, String> {
    const FIELDS: [&str; 2] = ["events_per_second", "burst"];
    let limit = match value {
        toml::Value::String(text) => match text.trim().parse() {
            // A number, from the environment or the command line.
            Ok(events) => limited(events, Per::Second, None)?,
            Err(_) => RateLimit::try_from(text.clone())?,
        },
        toml::Value::Integer(events) => limited(*events, Per::Second, None)?,
        toml::Value::Table(table) => {
            if let Some(unknown) = table.keys().find(|key| !FIELDS.contains(&key.as_str())) {
                return Err(match nearest(unknown, FIELDS.into_iter()) {
                    Some(meant) => format!("{unknown} is unknown; did you mean {meant}?"),
                    None => format!("{unknown} is unknown; a rate has {}", FIELDS.join(", ")),
                });
            }
            let number = |field: &str| table.get(field).map(|value| value.as_integer().ok_or(RULE)).transpose();
            let events = number("events_per_second")?
                .ok_or("has no events_per_second: write { events_per_second = 1000, burst = 5000 }")?;
            limited(events, Per::Second, number("burst")?)?
        }
        _ => return Err(RULE.to_owned()),
    };
    Ok(Value::from(String::from(limit)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(text: &str) -> Result<String, String> {
        let table: toml::Table = format!("value = {text}").parse().unwrap();
        read(&table["value"]).map(|value| value.into_string().unwrap())
    }

    #[test]
    fn a_rate_is_read_in_each_of_its_forms() {
        for (given, read) in [
            (r#""none""#, "none"),
            (r#""1000/s""#, "1000/s"),
            ("1000", "1000/s"),
            (r#""1000""#, "1000/s"),
            (r#""1000/s burst 1000""#, "1000/s"),
            (r#""1000/s  burst 5000""#, "1000/s burst 5000"),
            (r#""1000/s burst=5000""#, "1000/s burst 5000"),
            ("{ events_per_second = 1000, burst = 5000 }", "1000/s burst 5000"),
            ("{ events_per_second = 7 }", "7/s"),
            (r#""30/m""#, "30/m"),
            (r#""30/m burst 20""#, "30/m burst 20"),
        ] {
            assert_eq!(read_text(given).as_deref(), Ok(read), "{given}");
            assert_eq!(String::from(RateLimit::try_from(read.to_owned()).unwrap()), read, "it is read again");
        }
    }

    #[test]
    fn without_a_burst_it_is_what_a_second_brings_and_at_least_one_event() {
        for (text, burst, micros) in
            [("1000/s", 1000, 1000), ("90/m", 1, 666_666), ("120/m", 2, 500_000), ("1/s", 1, 1_000_000)]
        {
            let rate = RateLimit::try_from(text.to_owned()).unwrap().0.unwrap();
            assert_eq!((rate.burst.get(), rate.per_event().as_micros()), (burst, micros), "{text}");
        }
    }

    #[test]
    fn what_is_no_rate_is_told_what_one_is() {
        let (numbers, day) = ("must be from 1 to 10000000", "at most 1440: what the rate brings in a day");
        for (given, told) in [
            (r#""""#, "must be the events of a second"),
            (r#""fast""#, "\"1000/s burst 5000\""),
            (r#""10/h""#, "(or a minute, \"60/m\")"),
            (r#""10/s burst""#, "must be the events of a second"),
            (r#""10/s burst 5 5""#, "must be the events of a second"),
            (r#""10/s 5""#, "must be the events of a second"),
            (r#""-1/s""#, numbers),
            (r#""0/s""#, numbers),
            ("0", numbers),
            ("10.5", "must be the events of a second"),
            ("true", "or \"none\""),
            (r#""1/s burst 0""#, "its burst must be from 1"),
            (r#""99999999/s""#, numbers),
            (r#""1/m burst 1441""#, day),
            ("{ burst = 5 }", "has no events_per_second"),
            ("{ events_per_secnd = 5 }", "events_per_secnd is unknown; did you mean events_per_second?"),
            ("{ limit = 5 }", "limit is unknown; a rate has events_per_second, burst"),
            (r#"{ events_per_second = "5" }"#, "must be the events of a second"),
        ] {
            let error = read_text(given).unwrap_err();
            assert!(error.contains(told), "{given}: {error}");
        }
    }
}
