//! The points of a line: a range in steps that people know, some sixty of them.

use std::time::Duration;

use chrono::{DateTime, SecondsFormat, Utc};

use crate::{moment, position::Timestamp, window::Windows};

/// Points that are aimed at.
const POINTS: i64 = 60;
/// And the most: they are drawn as fewer where there is no room.
const MOST: usize = 10_000;

const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

/// In seconds.
const STEPS: [u64; 23] = [
    1,
    2,
    5,
    10,
    15,
    30,
    MINUTE,
    2 * MINUTE,
    5 * MINUTE,
    10 * MINUTE,
    15 * MINUTE,
    30 * MINUTE,
    HOUR,
    2 * HOUR,
    3 * HOUR,
    6 * HOUR,
    12 * HOUR,
    DAY,
    2 * DAY,
    7 * DAY,
    14 * DAY,
    28 * DAY,
    364 * DAY,
];

#[derive(Debug)]
pub struct Steps {
    step: Duration,
    /// When each begins.
    pub starts: Vec<Timestamp>,
    /// When the last one ends.
    pub end: Timestamp,
}

impl Steps {
    /// # Errors
    /// What is wrong with the range or the step.
    pub fn choose(
        windows: &Windows,
        window: Duration,
        from: &str,
        to: &str,
        step: Option<&str>,
        now: DateTime<Utc>,
    ) -> Result<Self, String> {
        let moment = |name: &str, text: &str| {
            let moment = moment::parse(text, now).map_err(|why| format!("--{name}: {text:?} {why}"))?;
            Ok::<_, String>(Timestamp(moment.at.timestamp_millis()))
        };
        let (from, to) = (moment("from", from)?, moment("to", to)?);
        if from >= to {
            return Err(format!("--from: {} is not before --to, {}", from.to_rfc3339(), to.to_rfc3339()));
        }
        let length = humantime::format_duration(window);
        let step = match step {
            Some(text) => {
                let wrong = |_| format!("--step: {text:?} is no multiple of the window, {length}");
                humantime::parse_duration(text).map_err(wrong)?
            }
            None => fitting(window, to.0 - from.0),
        };
        let steps = windows.steps_of(step).ok_or_else(|| {
            format!("--step: {} is no multiple of the window, {length}", humantime::format_duration(step))
        })?;
        let mut starts = vec![steps.start_of(from)];
        loop {
            let last = starts.last().copied().unwrap_or(from);
            let end = steps.end_of(last);
            if end >= to || end <= last {
                return Ok(Self { step, starts, end });
            }
            if starts.len() == MOST {
                return Err(format!(
                    "--step: more than {MOST} of them are between --from and --to: a longer one is needed"
                ));
            }
            starts.push(end);
        }
    }

    pub fn text(&self) -> String {
        humantime::format_duration(self.step).to_string()
    }

    /// As parameters of a query.
    pub fn range(&self) -> [(&'static str, String); 2] {
        let from = self.starts.first().copied().unwrap_or_default();
        [("from", from), ("to", self.end)]
            .map(|(name, time)| (name, time.to_datetime().to_rfc3339_opts(SecondsFormat::AutoSi, true)))
    }

    /// Which one begins there.
    pub fn index_of(&self, start: Timestamp) -> Option<usize> {
        self.starts.binary_search(&start).ok()
    }
}

/// The shortest one that people know with which there are not too many points, or else that many windows.
fn fitting(window: Duration, range: i64) -> Duration {
    let (window, range) = (window.as_secs().max(1), range.unsigned_abs().div_ceil(1000));
    // A few more are taken for a rounder step: those of an hour are its minutes.
    let shortest = range.div_ceil(POINTS.unsigned_abs() + 5);
    let own = shortest.div_ceil(window).max(1) * window;
    // A much longer one is no help, however round.
    let known = STEPS.into_iter().find(|step| step.is_multiple_of(window) && (own..4 * own).contains(step));
    Duration::from_secs(known.unwrap_or(own))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choose(window: u64, from: &str, step: Option<&str>) -> Result<Steps, String> {
        let window = Duration::from_secs(window);
        let now = "2026-11-23T08:30:15Z".parse().unwrap();
        Steps::choose(&Windows::new(window, None), window, from, "now", step, now)
    }

    #[test]
    fn a_range_is_cut_into_some_sixty_steps_that_people_know() {
        for (window, from, step, points) in [
            (60, "-1h", "1m", 61),
            (60, "-1d", "30m", 49),
            (60, "-7d", "3h", 57),
            (1, "-5m", "5s", 60),
            (86400, "-30d", "1day", 31),
            (86400, "-1h", "1day", 1),
            (420, "-1h", "7m", 9),
            (420, "-1d", "28m", 52),
            (60, "2026-11-23T08:29:40Z", "1m", 2),
        ] {
            let steps = choose(window, from, None).unwrap();
            assert_eq!((steps.text().as_str(), steps.starts.len()), (step, points), "{window} {from}");
            let [(_, from), (_, to)] = steps.range();
            assert!(from.as_str() <= "2026-11-23T08:30:15Z" && to.as_str() >= "2026-11-23T08:30:15Z", "{from} {to}");
        }
    }

    #[test]
    fn what_is_no_step_or_no_range_is_said() {
        for (from, step, part) in [
            ("tomorrow", None, "--from"),
            ("2026-11-24T00:00:00Z", None, "not before"),
            ("-1h", Some("90s"), "multiple of the window, 1m"),
            ("-1h", Some("x"), "multiple of the window"),
            ("-365d", Some("1m"), "more than 10000"),
        ] {
            let error = choose(60, from, step).unwrap_err();
            assert!(error.contains(part), "{from} {step:?}: {error}");
        }
    }
}
