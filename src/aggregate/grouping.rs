//! From an event to its buckets: the window of its time, the text of its group, and what is measured of it.

use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::{
    config::AggregateConfig,
    event::Found,
    position::Timestamp,
    store::{Measures, window_start},
};

/// How the configured aggregates group events.
#[derive(Debug)]
pub struct Grouping {
    /// The fields of all aggregates, each once, so that an event is searched once.
    fields: Vec<String>,
    aggregates: Vec<Aggregate>,
}

#[derive(Debug)]
struct Aggregate {
    window: Duration,
    /// Indexes into `fields`, in the order of `group_by`.
    group_by: Vec<usize>,
    /// And of what is measured.
    measured: Vec<usize>,
}

impl Grouping {
    pub fn new(aggregates: &[AggregateConfig]) -> Self {
        let mut fields: Vec<String> = Vec::new();
        let aggregates = aggregates
            .iter()
            .map(|aggregate| {
                let mut index_of = |field: &str| {
                    fields.iter().position(|known| known == field).unwrap_or_else(|| {
                        fields.push(field.to_owned());
                        fields.len() - 1
                    })
                };
                Aggregate {
                    window: aggregate.window,
                    group_by: aggregate.group_by.iter().map(|field| index_of(field)).collect(),
                    measured: Measures::fields(aggregate).map(index_of).collect(),
                }
            })
            .collect();
        Self { fields, aggregates }
    }

    /// The number of aggregates.
    pub fn aggregates(&self) -> usize {
        self.aggregates.len()
    }

    /// The fields that an event has to be read with ([`EventFields::selecting`](crate::event::EventFields::selecting)).
    pub fn fields(&self) -> &[String] {
        &self.fields
    }

    /// Calls `bucket` with each aggregate's index, window, group text and measures. `text` is scratch space.
    pub fn buckets(
        &self,
        found: &Found<'_, '_>,
        time: Timestamp,
        text: &mut String,
        mut bucket: impl FnMut(usize, Timestamp, &str, Measures),
    ) {
        for (index, aggregate) in self.aggregates.iter().enumerate() {
            text.clear();
            let longest = LONGEST_VALUE.min(LONGEST_GROUP / aggregate.group_by.len().max(1));
            write_group(text, longest, aggregate.group_by.iter().map(|field| found.selected(*field)));
            let measures = Measures::of_record(aggregate.measured.iter().map(|field| found.selected(*field)));
            bucket(index, window_start(time, aggregate.window), text, measures);
        }
    }
}

/// A longer value, in bytes, is replaced by the string `sha256:<hex>` of its text: groups are kept in memory, and a
/// store may refuse what an event may hold.
const LONGEST_VALUE: usize = 64 << 10;
/// A group of more values has shorter ones, so that its bucket, which holds them up to three times, is a document that
/// MongoDB takes.
const LONGEST_GROUP: usize = 4 << 20;

/// The group's values as a JSON array. The same string is the same text however it was escaped; a missing field is
/// null.
fn write_group<'a>(text: &mut String, longest: usize, values: impl Iterator<Item = Option<&'a str>>) {
    text.push('[');
    for (index, value) in values.enumerate() {
        if index > 0 {
            text.push(',');
        }
        let raw = value.unwrap_or("null");
        let unescaped = (raw.starts_with('"') && raw.contains('\\'))
            .then(|| serde_json::from_str::<String>(raw).ok())
            .flatten()
            .and_then(|string| serde_json::to_string(&string).ok());
        let value = unescaped.as_deref().unwrap_or(raw);
        if value.len() <= longest {
            text.push_str(value);
        } else {
            text.push_str(&format!("\"sha256:{}\"", hex::encode(Sha256::digest(value))));
        }
    }
    text.push(']');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::EventConfig,
        event::{self, EventFields},
    };

    #[test]
    fn an_event_falls_into_one_bucket_of_each_aggregate() {
        let aggregate = |name: &str, window, group_by: &[&str]| AggregateConfig {
            name: name.to_owned(),
            window: Duration::from_secs(window),
            group_by: group_by.iter().map(|field| (*field).to_owned()).collect(),
        };
        let grouping = Grouping::new(&[aggregate("a", 60, &["b", "a"]), aggregate("b", 1, &["missing", "a"])]);
        let fields = EventFields::from(&EventConfig::default()).selecting(grouping.fields());
        let mut buckets = Vec::new();
        let value = br#"{"a":"\u0061\"","b":{"x": 1},"type":"t"}"#;
        let (_, found) = event::read(value, [], &fields, Timestamp(0)).unwrap();
        grouping.buckets(&found, Timestamp(61_500), &mut String::new(), |index, window, group, _| {
            buckets.push((index, window.0, group.to_owned()));
        });
        assert_eq!(buckets, [(0, 60_000, r#"[{"x": 1},"a\""]"#.to_owned()), (1, 61_000, r#"[null,"a\""]"#.to_owned())]);
    }

    #[test]
    fn a_group_of_however_many_values_is_bounded() {
        let fields: Vec<String> = (0..1000).map(|n| format!("f{n}")).collect();
        let event: Vec<_> = fields.iter().map(|field| format!("\"{field}\":\"{}\"", "x".repeat(16_000))).collect();
        let aggregate = AggregateConfig { name: "a".to_owned(), window: Duration::from_secs(60), group_by: fields };
        let grouping = Grouping::new(&[aggregate]);
        let mut size = 0;
        let event = format!("{{\"type\":\"t\",{}}}", event.join(","));
        let fields = EventFields::from(&EventConfig::default()).selecting(grouping.fields());
        let (_, found) = event::read(event.as_bytes(), [], &fields, Timestamp(0)).unwrap();
        grouping.buckets(&found, Timestamp(0), &mut String::new(), |_, _, group, _| size = group.len());
        assert!(size <= LONGEST_GROUP, "{size}");
    }

    #[test]
    fn windows_before_1970_are_aligned_too() {
        assert_eq!(window_start(Timestamp(-1), Duration::from_secs(60)), Timestamp(-60_000));
    }
}
