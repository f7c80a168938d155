//! Where a record stands: offsets, partitions, and the moments at which records were received.

use std::{fmt, str::FromStr, sync::Arc};

use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Deserialize, Serialize};

/// The position of a record in its partition. As a *position* it names the next record to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Offset(pub u64);

impl Offset {
    /// The position after the record at this offset.
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// Records between `start` and this position; 0 where `start` is beyond it.
    pub fn since(self, start: Self) -> u64 {
        self.0.saturating_sub(start.0)
    }

    /// Kafka counts offsets as signed 64-bit numbers and uses the negative ones for itself.
    pub fn from_kafka(offset: i64) -> Option<Self> {
        u64::try_from(offset).ok().map(Self)
    }

    /// As Kafka and SQLite hold it. Offsets beyond `i64::MAX` do not occur.
    pub fn as_i64(self) -> i64 {
        i64::try_from(self.0).unwrap_or(i64::MAX)
    }
}

/// A partition of the topic that this daemon serves. The embedded log has one: 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Partition(pub i32);

/// Where one record stands, as clients are told and give it back: `0:17` is offset 17 of partition 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    pub partition: Partition,
    pub offset: Offset,
}

impl Position {
    /// The longest text of one.
    pub const LONGEST: usize = "2147483647:9223372036854775807".len();
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.partition, self.offset)
    }
}

impl FromStr for Position {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        let read = || {
            let (partition, offset) = text.split_once(':').filter(|(one, other)| is_number(one) && is_number(other))?;
            let offset = Offset::from_kafka(offset.parse().ok()?)?;
            Some(Self { partition: Partition(partition.parse().ok()?), offset })
        };
        read().ok_or_else(|| {
            format!("{text:?} is no position: write PARTITION:OFFSET, such as 0:17, as the answer to a request has it")
        })
    }
}

/// A topic with its generation, as paths and ids write it: `events`, or `events@2` for a generation above 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TopicName<'a> {
    pub topic: &'a str,
    pub generation: u32,
}

impl fmt::Display for TopicName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.generation {
            0 => f.write_str(self.topic),
            generation => write!(f, "{}@{generation}", self.topic),
        }
    }
}

/// Milliseconds since 1970-01-01T00:00:00Z, as Kafka's record timestamps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// The machine's wall clock.
    pub fn now() -> Self {
        Self(Utc::now().timestamp_millis())
    }

    /// As a calendar time; timestamps that no calendar holds become 1970.
    pub fn to_datetime(self) -> DateTime<Utc> {
        DateTime::from_timestamp_millis(self.0).unwrap_or_default()
    }

    /// RFC 3339 with milliseconds, in UTC: `2026-11-23T08:00:00.123Z`.
    pub fn to_rfc3339(self) -> String {
        self.to_datetime().to_rfc3339_opts(SecondsFormat::Millis, true)
    }
}

/// What a topic *is*, beyond its name: Kafka's topic id, or the id that the embedded log was created with.
/// A topic that was deleted and created anew has another one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TopicIdentity(pub Arc<str>);

impl TopicIdentity {
    /// What stands for the identity where the brokers give topics no ids.
    pub const UNAVAILABLE: &str = "unavailable";

    /// Whether the other one is known to be another topic's.
    pub fn contradicts(&self, other: &str) -> bool {
        *self.0 != *other && *self.0 != *Self::UNAVAILABLE && other != Self::UNAVAILABLE
    }
}

macro_rules! display_as_what_they_hold {
    ($($name:ident),*) => {
        $(impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        })*
    };
}

display_as_what_they_hold!(Offset, Partition, TopicIdentity);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_is_a_partition_and_an_offset() {
        let position = Position { partition: Partition(3), offset: Offset(17) };
        assert_eq!(("3:17".parse(), position.to_string().as_str()), (Ok(position), "3:17"));
        let largest = Position { partition: Partition(i32::MAX), offset: Offset(i64::MAX as u64) };
        assert_eq!((largest.to_string().parse(), largest.to_string().len()), (Ok(largest), Position::LONGEST));
        for text in [
            "",
            "17",
            ":",
            "0:",
            ":0",
            "-1:0",
            "0:-1",
            "+1:0",
            "0:+1",
            "0:1:2",
            "a:1",
            "2147483648:0",
            "0:9223372036854775808",
        ] {
            let error = text.parse::<Position>().unwrap_err();
            assert!(error.contains("PARTITION:OFFSET") && error.contains(text), "{error}");
        }
    }
}
