//! How far the time of an event may lie from that of its receipt.

use std::{ops::RangeInclusive, time::Duration};

use super::time::LATEST;
use crate::{config::EventConfig, position::Timestamp};

/// How far an event's time may lie from that of its receipt, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimeBounds {
    pub max_past: i64,
    pub max_future: i64,
}

impl From<&EventConfig> for TimeBounds {
    fn from(config: &EventConfig) -> Self {
        let millis = |duration: Duration| i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
        Self { max_past: millis(config.max_past), max_future: millis(config.max_future) }
    }
}

impl TimeBounds {
    /// The times that are believed of a record that was received then, both inclusive.
    ///
    /// A record of another program may have no time of receipt: Kafka says −1 or 0. Then only the calendar bounds it.
    pub fn around(self, received: Timestamp) -> RangeInclusive<i64> {
        if received.0 <= 0 {
            return 0..=LATEST;
        }
        received.0.saturating_sub(self.max_past).max(0)..=received.0.saturating_add(self.max_future).min(LATEST)
    }
}
