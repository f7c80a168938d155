//! The windows that time is cut into: of one length, from 1970-01-01T00:00:00Z on; or the days of a time zone.

use std::{cell::Cell, time::Duration};

use chrono::{DateTime, Utc};

use crate::{
    config::{AggregateConfig, TimeZone},
    position::Timestamp,
};

/// The windows of an aggregate, or some of them together.
#[derive(Debug, Clone)]
pub struct Windows {
    /// In milliseconds; of days, those of 24 hours.
    length: i64,
    /// So many of them are one.
    step: i64,
    /// Whose days they are.
    zone: Option<TimeZone>,
    /// The one that was found last, from its start to its end: events are of the same day, mostly.
    last: Cell<(i64, i64)>,
}

impl Windows {
    pub fn new(window: Duration, zone: Option<TimeZone>) -> Self {
        let length = i64::try_from(window.as_millis()).unwrap_or(i64::MAX).max(1);
        Self { length, step: 1, zone, last: Cell::new((0, 0)) }
    }

    pub fn of(aggregate: &AggregateConfig) -> Self {
        Self::new(aggregate.window, aggregate.time_zone.clone())
    }

    /// So many windows as one. `None` where the duration is no multiple of them.
    pub fn steps_of(&self, step: Duration) -> Option<Self> {
        let step = i64::try_from(step.as_millis()).ok()?;
        let is_multiple = step > 0 && step % self.length == 0;
        is_multiple.then(|| Self { step: step / self.length, last: Cell::new((0, 0)), ..self.clone() })
    }

    /// The start of the one that a moment is in.
    #[inline]
    pub fn start_of(&self, time: Timestamp) -> Timestamp {
        match &self.zone {
            None => {
                let length = self.length.saturating_mul(self.step);
                Timestamp(time.0.saturating_sub(time.0.rem_euclid(length)))
            }
            Some(zone) => Timestamp(self.day(zone, time).0),
        }
    }

    /// The end of the one that a moment is in: the start of the next.
    pub fn end_of(&self, time: Timestamp) -> Timestamp {
        match &self.zone {
            None => Timestamp(self.start_of(time).0.saturating_add(self.length.saturating_mul(self.step))),
            Some(zone) => Timestamp(self.day(zone, time).1),
        }
    }

    fn day(&self, zone: &TimeZone, time: Timestamp) -> (i64, i64) {
        let (start, end) = self.last.get();
        if (start..end).contains(&time.0) {
            return (start, end);
        }
        let found = zone.days(time.to_datetime(), self.step);
        let found = found.map_or((time.0, time.0.saturating_add(1)), |(start, end)| (millis(start), millis(end)));
        self.last.set(found);
        found
    }
}

fn millis(time: DateTime<Utc>) -> i64 {
    time.timestamp_millis()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        Timestamp(text.parse::<DateTime<Utc>>().unwrap().timestamp_millis())
    }

    fn minutes(minutes: u64) -> Duration {
        Duration::from_secs(60 * minutes)
    }

    #[test]
    fn windows_before_1970_are_aligned_too() {
        let windows = Windows::new(minutes(1), None);
        assert_eq!(
            (windows.start_of(Timestamp(-1)), windows.end_of(Timestamp(-1))),
            (Timestamp(-60_000), Timestamp(0))
        );
        assert_eq!(windows.start_of(Timestamp(60_000)), Timestamp(60_000));
    }

    #[test]
    fn several_windows_are_one_where_the_step_is_a_multiple() {
        let windows = Windows::new(minutes(5), None);
        let hours = windows.steps_of(minutes(60)).unwrap();
        assert_eq!(hours.start_of(at("2026-11-23T08:59:59.999Z")), at("2026-11-23T08:00:00Z"));
        assert_eq!(hours.end_of(at("2026-11-23T08:00:00Z")), at("2026-11-23T09:00:00Z"));
        assert!([minutes(0), minutes(1), minutes(7)].iter().all(|step| windows.steps_of(*step).is_none()));
    }

    #[test]
    fn days_are_those_of_the_zone_however_long_they_are() {
        let days = Windows::new(minutes(24 * 60), Some("Europe/Berlin".parse().unwrap()));
        let day = |time: &str| (days.start_of(at(time)), days.end_of(at(time)));
        let short = (at("2026-03-28T23:00:00Z"), at("2026-03-29T22:00:00Z"));
        assert_eq!((day("2026-03-28T23:00:00Z"), day("2026-03-29T21:59:59.999Z")), (short, short));
        let long = (at("2026-10-24T22:00:00Z"), at("2026-10-25T23:00:00Z"));
        assert_eq!((day("2026-10-24T22:00:00Z"), day("2026-10-25T22:59:59Z")), (long, long));
        let weeks = days.steps_of(minutes(7 * 24 * 60)).unwrap();
        let (start, end) = (weeks.start_of(at("2026-03-29T12:00:00Z")), weeks.end_of(at("2026-03-29T12:00:00Z")));
        assert_eq!(
            (start, end),
            (at("2026-03-25T23:00:00Z"), at("2026-04-01T22:00:00Z")),
            "from a Thursday on, as 1970"
        );
    }

    #[test]
    fn a_moment_is_in_one_day_whatever_was_asked_before() {
        // Clocks there went back from 00:01 to 23:01 of the day before.
        let days = || Windows::new(minutes(24 * 60), Some("America/St_Johns".parse().unwrap()));
        let (asked, again) = (days(), at("2006-10-29T02:45:00Z"));
        let fresh = asked.start_of(again);
        asked.start_of(at("2006-10-29T12:00:00Z"));
        assert_eq!((asked.start_of(again), days().start_of(again)), (fresh, fresh));
        for end in [Timestamp(i64::MIN), Timestamp(i64::MAX)] {
            days().start_of(end);
        }
    }
}
