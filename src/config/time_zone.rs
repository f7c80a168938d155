//! Time zones by their names in the IANA database, which the program holds.

use std::{fmt, str::FromStr};

use chrono::{DateTime, NaiveDate, NaiveTime, Offset as _, TimeDelta, TimeZone as _, Utc};
use chrono_tz::Tz;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

/// In seconds.
const TWO_DAYS: i64 = 2 * 24 * 3600;

/// Whose days windows are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimeZone(Tz);

impl TimeZone {
    /// The day there that a moment is in. `None` outside of the calendar.
    fn day_of(self, time: DateTime<Utc>) -> Option<NaiveDate> {
        let offset = self.0.offset_from_utc_datetime(&time.naive_utc()).fix();
        Some(time.naive_utc().checked_add_offset(offset)?.date())
    }

    /// When a day begins there: where clocks leave midnight out, at its first moment; where they have it twice, at the first.
    /// `None` outside of the calendar.
    fn start_of(self, day: NaiveDate) -> Option<DateTime<Utc>> {
        let midnight = day.and_time(NaiveTime::MIN);
        if let Some(start) = self.0.from_local_datetime(&midnight).earliest() {
            return Some(start.to_utc());
        }
        // Clocks jump over it, by less than a day; days that are left out whole begin when the next one does.
        let around = midnight.and_utc().timestamp();
        let (mut before, mut behind) = (around - TWO_DAYS, around + TWO_DAYS);
        let moment = |seconds| DateTime::from_timestamp(seconds, 0);
        while behind - before > 1 {
            let middle = i64::midpoint(before, behind);
            if self.day_of(moment(middle)?)? < day { before = middle } else { behind = middle }
        }
        moment(behind)
    }

    /// From when to when the days are there that a moment is in, so many as one, counted from 1970-01-01 on. `None` outside of
    /// the calendar.
    pub fn days(self, time: DateTime<Utc>, together: i64) -> Option<(DateTime<Utc>, DateTime<Utc>)> {
        let first_of_all = DateTime::UNIX_EPOCH.date_naive();
        let day = self.day_of(time)?.signed_duration_since(first_of_all).num_days();
        let first = first_of_all.checked_add_signed(TimeDelta::try_days(day - day.rem_euclid(together))?)?;
        let after = |date: NaiveDate| date.checked_add_signed(TimeDelta::try_days(together)?);
        let next = after(first)?;
        let (start, end) = (self.start_of(first)?, self.start_of(next)?);
        // Where clocks go back over midnight the day before comes again for a while: it belongs to the one that has begun.
        Some(if time >= end { (end, self.start_of(after(next)?)?) } else { (start, end) })
    }
}

impl FromStr for TimeZone {
    type Err = &'static str;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        name.parse().map(Self).map_err(|_| {
            "must be a name of the IANA time zone database, such as \"Europe/Berlin\", \"America/New_York\" or \"UTC\""
        })
    }
}

impl fmt::Display for TimeZone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.name())
    }
}

impl Serialize for TimeZone {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0.name())
    }
}

impl<'de> Deserialize<'de> for TimeZone {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(zone: &str, day: &str) -> String {
        let zone: TimeZone = zone.parse().unwrap();
        let start = zone.start_of(day.parse().unwrap()).unwrap();
        assert_eq!(zone.day_of(start).unwrap().to_string(), day);
        assert!(zone.day_of(start - TimeDelta::milliseconds(1)).unwrap().to_string().as_str() < day);
        start.to_rfc3339()
    }

    #[test]
    fn days_begin_when_clocks_there_say_so() {
        assert_eq!(start("Europe/Berlin", "2026-03-29"), "2026-03-28T23:00:00+00:00");
        assert_eq!(start("Europe/Berlin", "2026-03-30"), "2026-03-29T22:00:00+00:00", "a day of 23 hours");
        assert_eq!(start("Europe/Berlin", "2026-10-26"), "2026-10-25T23:00:00+00:00", "one of 25");
        assert_eq!(start("Asia/Kathmandu", "2026-01-01"), "2025-12-31T18:15:00+00:00");
        // No midnight: clocks go from 23:59:59 to 01:00.
        assert_eq!(start("America/Sao_Paulo", "2018-11-04"), "2018-11-04T03:00:00+00:00");
        assert_eq!(start("Africa/Cairo", "2026-04-24"), "2026-04-23T22:00:00+00:00");
        // Midnight twice: clocks go back from 01:00 to 00:00.
        assert_eq!(start("America/Havana", "2026-11-01"), "2026-11-01T04:00:00+00:00");
        assert!("Europe/berlin!".parse::<TimeZone>().is_err());
    }

    #[test]
    fn no_moment_is_outside_of_what_days_can_be_asked_of() {
        for zone in ["UTC", "Asia/Tokyo", "Pacific/Kiritimati", "America/Los_Angeles", "Pacific/Niue", "Africa/Cairo"] {
            let zone: TimeZone = zone.parse().unwrap();
            for end in [DateTime::<Utc>::MIN_UTC, DateTime::<Utc>::MAX_UTC] {
                let sign = if end == DateTime::<Utc>::MIN_UTC { 1 } else { -1 };
                for hours in 0..72 {
                    let moment = end + TimeDelta::hours(sign * hours);
                    for together in [1, 7, i64::MAX] {
                        if let Some((from, to)) = zone.days(moment, together) {
                            assert!(from <= moment && moment < to, "{from} {moment} {to}");
                        }
                    }
                }
            }
        }
    }
}
