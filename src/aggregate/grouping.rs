//! From an event to its buckets: whether it is counted, the window of its time, the text of its group, and what is measured
//! of it.

use std::cell::{Cell, OnceCell};

use sha2::{Digest, Sha256};

use super::filter::Filter;
use crate::{
    config::{AggregateConfig, Field, Retention},
    event::Found,
    measure::{self, Hashed, Item, Numeric, Plan, Values},
    position::Timestamp,
    window::Windows,
};

/// How the configured aggregates group events.
#[derive(Debug)]
pub struct Grouping {
    /// The fields of all aggregates, each once, so that an event is searched once.
    fields: Vec<Field>,
    aggregates: Vec<Aggregate>,
    /// Whether any of them measures more than the number of events.
    measures: bool,
}

#[derive(Debug)]
struct Aggregate {
    windows: Windows,
    filter: Filter,
    /// Indexes into `fields`, in the order of `group_by`.
    group_by: Vec<usize>,
    /// And of what is measured, in the plan's order.
    measured: Vec<usize>,
    plan: Plan,
    /// In milliseconds.
    retention: Option<i64>,
}

impl Aggregate {
    /// Whether the window of this time was to be removed before a record was received.
    fn is_expired(&self, time: Timestamp, received: Timestamp) -> bool {
        self.retention.is_some_and(|kept| self.windows.end_of(time).0.saturating_add(kept) <= received.0)
    }
}

/// The bucket that a record falls into, and what is measured of it there.
pub struct Falls<'b, 'f, 'a> {
    /// Index into the aggregates.
    pub aggregate: usize,
    pub window_start: Timestamp,
    /// By the time of its receipt the record belongs to a window that is kept no longer.
    pub is_expired: bool,
    pub group: &'b str,
    pub plan: &'b Plan,
    found: &'b Found<'f, 'a>,
    measured: &'b [usize],
    read: &'b [Read],
}

impl<'b> Values<'b> for Falls<'b, '_, '_> {
    #[inline]
    fn json(&self, field: usize) -> Option<&'b str> {
        self.found.selected(self.measured[field])
    }

    fn number(&self, field: usize) -> Numeric {
        let Read { number, .. } = &self.read[self.measured[field]];
        number.get().unwrap_or_else(|| {
            let read = self.json(field).map_or(Numeric::No, Numeric::read);
            number.set(Some(read));
            read
        })
    }

    fn hashed(&self, field: usize) -> Option<Hashed> {
        let json = self.json(field).filter(|json| *json != "null")?;
        let Read { hashed, .. } = &self.read[self.measured[field]];
        Some(hashed.get().unwrap_or_else(|| {
            let value = Hashed::from(&*measure::normal(json));
            hashed.set(Some(value));
            value
        }))
    }

    fn item(&self, field: usize) -> Option<Item> {
        let json = self.json(field).filter(|json| *json != "null")?;
        Some(self.read[self.measured[field]].item.get_or_init(|| measure::item(json)).clone())
    }
}

/// Space that is used again for each event.
#[derive(Debug, Default)]
pub struct Scratch {
    /// Of a group.
    text: String,
    read: Vec<Read>,
}

/// What a field's value was found to be, so that several aggregates read it once.
#[derive(Debug, Default)]
struct Read {
    number: Cell<Option<Numeric>>,
    hashed: Cell<Option<Hashed>>,
    item: OnceCell<Item>,
}

impl Grouping {
    /// `names_only` says of each aggregate whether what looks like a pointer in its `group_by` is a name, as it was when it was
    /// first counted.
    pub fn new(aggregates: &[AggregateConfig], names_only: &[bool]) -> Self {
        let mut fields: Vec<Field> = Vec::new();
        let mut index_of = |field: Field| {
            fields.iter().position(|known| *known == field).unwrap_or_else(|| {
                fields.push(field);
                fields.len() - 1
            })
        };
        let aggregates = aggregates.iter().enumerate().map(|(index, aggregate)| {
            let is_name = names_only.get(index).copied().unwrap_or_default();
            let grouped = |field: &String| if is_name { Field::Name(field.clone()) } else { Field::of(field) };
            let plan = Plan::new(aggregate);
            Aggregate {
                windows: Windows::of(aggregate),
                filter: Filter::new(&aggregate.filter, |field| index_of(Field::of(field))),
                group_by: aggregate.group_by.iter().map(|field| index_of(grouped(field))).collect(),
                measured: plan.fields().iter().map(|field| index_of(Field::of(field))).collect(),
                plan,
                retention: aggregate
                    .retention
                    .map(|Retention(kept)| i64::try_from(kept.as_millis()).unwrap_or(i64::MAX)),
            }
        });
        let aggregates: Vec<Aggregate> = aggregates.collect();
        let measures = aggregates.iter().any(|aggregate| !aggregate.plan.is_empty());
        Self { fields, aggregates, measures }
    }

    /// The fields that an event has to be read with ([`EventFields::selecting`](crate::event::EventFields::selecting)).
    pub fn fields(&self) -> &[Field] {
        &self.fields
    }

    /// Of each aggregate, the start of the first window that is kept at this moment, where not all are.
    pub fn kept_from(&self, now: Timestamp) -> impl Iterator<Item = Option<Timestamp>> {
        self.aggregates.iter().map(move |aggregate| {
            let kept = aggregate.retention?;
            Some(aggregate.windows.start_of(Timestamp(now.0.saturating_sub(kept))))
        })
    }

    /// Calls `bucket` for each aggregate that counts this event, which is counted by `time`.
    pub fn buckets(
        &self,
        found: &Found<'_, '_>,
        time: Timestamp,
        received: Timestamp,
        Scratch { text, read }: &mut Scratch,
        mut bucket: impl FnMut(Falls<'_, '_, '_>),
    ) {
        if self.measures {
            read.clear();
            read.resize_with(self.fields.len(), Read::default);
        }
        for (index, aggregate) in self.aggregates.iter().enumerate() {
            if !aggregate.filter.takes(|field| found.selected(field)) {
                continue;
            }
            text.clear();
            let longest_group = if aggregate.plan.is_empty() { LONGEST_GROUP } else { LONGEST_MEASURED_GROUP };
            let longest = LONGEST_VALUE.min(longest_group / aggregate.group_by.len().max(1));
            write_group(text, longest, aggregate.group_by.iter().map(|field| found.selected(*field)));
            bucket(Falls {
                aggregate: index,
                window_start: aggregate.windows.start_of(time),
                is_expired: aggregate.is_expired(time, received),
                group: text,
                plan: &aggregate.plan,
                found,
                measured: &aggregate.measured,
                read,
            });
        }
    }
}

/// A longer value, in bytes, is replaced by the string `sha256:<hex>` of its text: groups are kept in memory, and a
/// store may refuse what an event may hold.
const LONGEST_VALUE: usize = 64 << 10;
/// A group of more values has shorter ones, so that its bucket, which holds them up to three times, is a document that
/// MongoDB takes.
const LONGEST_GROUP: usize = 4 << 20;
/// Beside which what is measured has to find room.
const LONGEST_MEASURED_GROUP: usize = 1 << 20;

/// The group's values as a JSON array. The same string is the same text however it was escaped; a missing field is
/// null.
fn write_group<'a>(text: &mut String, longest: usize, values: impl Iterator<Item = Option<&'a str>>) {
    text.push('[');
    for (index, value) in values.enumerate() {
        if index > 0 {
            text.push(',');
        }
        let value = measure::normal(value.unwrap_or("null"));
        if value.len() <= longest {
            text.push_str(&value);
        } else {
            text.push_str(&format!("\"sha256:{}\"", hex::encode(Sha256::digest(value.as_bytes()))));
        }
    }
    text.push(']');
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        config::EventConfig,
        event::{self, EventFields},
    };

    #[test]
    fn an_event_falls_into_one_bucket_of_each_aggregate() {
        let aggregate = |name: &str, window, group_by: &[&str]| {
            let group_by = group_by.iter().map(|field| (*field).to_owned()).collect();
            AggregateConfig::counting(name, Duration::from_secs(window), group_by)
        };
        let grouping = Grouping::new(&[aggregate("a", 60, &["b", "a"]), aggregate("b", 1, &["missing", "a"])], &[]);
        let fields = EventFields::from(&EventConfig::default()).selecting(grouping.fields());
        let mut buckets = Vec::new();
        let value = br#"{"a":"\u0061\"","b":{"x": 1},"type":"t"}"#;
        let (_, found) = event::read(value, [], &fields, Timestamp(0)).unwrap();
        grouping.buckets(&found, Timestamp(61_500), Timestamp(0), &mut Scratch::default(), |falls| {
            buckets.push((falls.aggregate, falls.window_start.0, falls.group.to_owned()));
        });
        assert_eq!(buckets, [(0, 60_000, r#"[{"x": 1},"a\""]"#.to_owned()), (1, 61_000, r#"[null,"a\""]"#.to_owned())]);
    }

    #[test]
    fn a_group_of_however_many_values_is_bounded() {
        let fields: Vec<String> = (0..1000).map(|n| format!("f{n}")).collect();
        let event: Vec<_> = fields.iter().map(|field| format!("\"{field}\":\"{}\"", "x".repeat(16_000))).collect();
        let grouping = Grouping::new(&[AggregateConfig::counting("a", Duration::from_secs(60), fields)], &[]);
        let mut size = 0;
        let event = format!("{{\"type\":\"t\",{}}}", event.join(","));
        let fields = EventFields::from(&EventConfig::default()).selecting(grouping.fields());
        let (_, found) = event::read(event.as_bytes(), [], &fields, Timestamp(0)).unwrap();
        grouping.buckets(&found, Timestamp(0), Timestamp(0), &mut Scratch::default(), |falls| size = falls.group.len());
        assert!(size <= LONGEST_GROUP, "{size}");
    }

    #[test]
    fn what_looks_like_a_pointer_is_one_unless_it_was_a_name_before() {
        let aggregate = AggregateConfig::counting("a", Duration::from_secs(60), vec!["/geo/country".to_owned()]);
        let event = br#"{"type":"t","geo":{"country":"DE"},"/geo/country":"FR"}"#;
        for (names_only, expected) in [(false, "[\"DE\"]"), (true, "[\"FR\"]")] {
            let grouping = Grouping::new(std::slice::from_ref(&aggregate), &[names_only]);
            let fields = EventFields::from(&EventConfig::default()).selecting(grouping.fields());
            let (_, found) = event::read(event, [], &fields, Timestamp(0)).unwrap();
            let mut groups = Vec::new();
            grouping.buckets(&found, Timestamp(0), Timestamp(0), &mut Scratch::default(), |falls| {
                groups.push(falls.group.to_owned())
            });
            assert_eq!(groups, [expected]);
        }
    }

    #[test]
    fn a_window_expires_when_it_has_ended_for_so_long() {
        let text = "name = \"a\"\nwindow = \"1m\"\ngroup_by = []\nretention = \"1h\"";
        let grouping = Grouping::new(&[toml::from_str(text).unwrap()], &[]);
        let fields = EventFields::from(&EventConfig::default());
        let (_, found) = event::read(br#"{"type":"t"}"#, [], &fields, Timestamp(0)).unwrap();
        let (minute, hour) = (60_000, 3_600_000);
        let expired = |received| {
            let mut expired = None;
            let bucket = |falls: Falls<'_, '_, '_>| expired = Some(falls.is_expired);
            grouping.buckets(&found, Timestamp(10 * minute + 1), Timestamp(received), &mut Scratch::default(), bucket);
            expired.unwrap()
        };
        assert_eq!((expired(11 * minute + hour - 1), expired(11 * minute + hour)), (false, true));
        let kept = |now| grouping.kept_from(Timestamp(now)).next().unwrap().unwrap().0;
        assert_eq!((kept(11 * minute + hour - 1), kept(11 * minute + hour)), (10 * minute, 11 * minute));
    }

    #[test]
    fn an_event_that_the_filter_does_not_take_falls_into_no_bucket() {
        let text = "name = \"a\"\nwindow = \"1m\"\ngroup_by = []\nfilter = { type = \"login_failed\", \"/geo/x\" = { min = 2 } }";
        let grouping = Grouping::new(&[toml::from_str(text).unwrap()], &[]);
        let fields = EventFields::from(&EventConfig::default()).selecting(grouping.fields());
        for (event, headers, expected) in [
            (&br#"{"type":"login_failed","geo":{"x":2}}"#[..], None, 1),
            (br#"{"type":"login_failed","geo":{"x":1.9}}"#, None, 0),
            (br#"{"type":"login","geo":{"x":2}}"#, None, 0),
            // The type is the event's, wherever it was found; pointers lead into its value alone.
            (br#"{"type":"login","geo":{"x":2}}"#, Some(("ce_type", Some(&b"login_failed"[..]))), 1),
        ] {
            let (_, found) = event::read(event, headers, &fields, Timestamp(0)).unwrap();
            let mut buckets = 0;
            grouping.buckets(&found, Timestamp(0), Timestamp(0), &mut Scratch::default(), |_| buckets += 1);
            assert_eq!(buckets, expected, "{}", event.escape_ascii());
        }
    }
}
