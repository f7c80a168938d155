//! Time zones by their names in the IANA database, which the program holds.

use std::{fmt, str::FromStr};

use chrono::{DateTime, Datelike, NaiveDate, TimeDelta, Utc};
use jiff::{
    Timestamp,
    civil::{Date, Time},
    tz::{self, AmbiguousOffset, TimeZoneDatabase},
};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

/// Whose days windows are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimeZone(tz::TimeZone);

impl TimeZone {
    /// The day there that a moment is in. `None` outside of the calendar, whose years are -9999 to 9999.
    fn day_of(&self, time: DateTime<Utc>) -> Option<NaiveDate> {
        let moment = Timestamp::new(time.timestamp(), 0).ok()?;
        let day = self.0.to_datetime(moment).date();
        NaiveDate::from_ymd_opt(day.year().into(), day.month().unsigned_abs().into(), day.day().unsigned_abs().into())
    }

    /// When a day begins there: where clocks leave midnight out, at its first moment; where they have it twice, at the first; one that
    /// is left out whole when the next one does. `None` outside of the calendar.
    fn start_of(&self, day: NaiveDate) -> Option<DateTime<Utc>> {
        let [year, month, of_month] = [day.year(), day.month().cast_signed(), day.day().cast_signed()];
        let midnight = Date::new(year.try_into().ok()?, month.try_into().ok()?, of_month.try_into().ok()?).ok()?;
        let midnight = midnight.to_datetime(Time::midnight());
        let start = match self.0.to_ambiguous_timestamp(midnight).offset() {
            AmbiguousOffset::Unambiguous { offset } | AmbiguousOffset::Fold { before: offset, .. } => {
                offset.to_timestamp(midnight).ok()?
            }
            // The clocks before would be beyond the jump here, and those behind it not yet there.
            AmbiguousOffset::Gap { after, .. } => {
                let before_it = after.to_timestamp(midnight).ok()?;
                self.0.following(before_it).next()?.timestamp()
            }
        };
        DateTime::from_timestamp(start.as_second(), 0)
    }

    fn name(&self) -> &str {
        self.0.iana_name().unwrap_or("UTC")
    }

    /// From when to when the days are there that a moment is in, so many as one, counted from 1970-01-01 on. `None` outside of
    /// the calendar.
    pub fn days(&self, time: DateTime<Utc>, together: i64) -> Option<(DateTime<Utc>, DateTime<Utc>)> {
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
        // The same wherever it runs, whatever the machine has.
        let known = TimeZoneDatabase::bundled().get(name).ok().filter(|zone| !zone.is_unknown());
        known.map(Self).ok_or(
            "must be a name of the IANA time zone database, such as \"Europe/Berlin\", \"America/New_York\" or \"UTC\"",
        )
    }
}

impl fmt::Display for TimeZone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Serialize for TimeZone {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for TimeZone {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use chrono::{NaiveTime, Offset as _};

    use super::*;

    /// 1990 to 2024: what was long ago is still found out, and what comes is still decided.
    const SETTLED: std::ops::Range<i64> = 631_152_000..1_735_689_600;

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
        // A day that is left out: the date line moved.
        let samoa: TimeZone = "Pacific/Apia".parse().unwrap();
        let of = |day: &str| samoa.start_of(day.parse().unwrap());
        assert_eq!(of("2011-12-30"), of("2011-12-31"));
        assert_eq!(start("Pacific/Apia", "2011-12-31"), "2011-12-30T10:00:00+00:00");
    }

    #[test]
    fn names_are_those_of_the_database() {
        for zone in chrono_tz::TZ_VARIANTS {
            assert_eq!(zone.name().parse::<TimeZone>().map(|it| it.to_string()).as_deref(), Ok(zone.name()));
        }
        assert_eq!("europe/berlin".parse::<TimeZone>().unwrap().to_string(), "Europe/Berlin");
        for name in
            ["Europe/berlin!", "Etc/Unknown", "", "local", "EST5EDT,M3.2.0,M11.1.0", "+02:00", "../zoneinfo/UTC"]
        {
            assert!(name.parse::<TimeZone>().is_err(), "{name}");
        }
    }

    /// As chrono-tz has them, by another reading of the same database.
    #[test]
    fn days_begin_and_end_as_another_library_says() {
        let moment = |seconds| DateTime::<Utc>::from_timestamp(seconds, 0).unwrap();
        for zone in chrono_tz::TZ_VARIANTS {
            let ours: TimeZone = zone.name().parse().unwrap();
            let (mut at, mut offset) = (SETTLED.start, None);
            while at < SETTLED.end {
                let there = moment(at).with_timezone(&zone);
                let is_new = offset.replace(there.offset().fix()) != offset;
                // Around each change of the clocks, and now and then.
                let days = if is_new { -2..=2 } else { 0..=0 };
                for day in days.map(|day| there.date_naive() + TimeDelta::days(day)) {
                    let first = day.and_time(NaiveTime::MIN).and_local_timezone(zone).earliest();
                    if let Some(first) = first {
                        assert_eq!(ours.start_of(day), Some(first.to_utc()), "{zone} {day}");
                    }
                }
                for seconds in [0, 3599, 43_210] {
                    let time = moment(at + seconds);
                    assert_eq!(ours.day_of(time), Some(time.with_timezone(&zone).date_naive()), "{zone} {time}");
                }
                at += 86_400;
            }
        }
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
