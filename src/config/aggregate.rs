//! `[[aggregate]]`: what is counted and measured, of which events, in which windows and groups.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use figment::value::{Dict, Value};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Number, json};

use super::{
    EventConfig, Pointer, duration,
    keys::nearest,
    measure::{self, Measure},
    tables::read_tables,
    time_zone::TimeZone,
    value::{duration as read_duration, integer, list, text},
};

/// One of the `[[aggregate]]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AggregateConfig {
    pub name: String,
    #[serde(with = "duration")]
    pub window: Duration,
    /// Whose days the windows are, where they are days.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time_zone: Option<TimeZone>,
    /// Fields: names at the top of an event, or JSON pointers.
    pub group_by: Vec<String>,
    /// Which events are counted.
    #[serde(default, skip_serializing_if = "Filter::is_empty")]
    pub filter: Filter,
    #[serde(default = "measure::only_count", skip_serializing_if = "measure::is_only_count")]
    pub measures: Vec<Measure>,
    /// Of a window; the events of further ones are those of one group, "…other".
    #[serde(default = "default_max_groups", skip_serializing_if = "is_default_max_groups")]
    pub max_groups: u32,
    /// Windows that ended longer ago are removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention: Option<Retention>,
}

/// A duration, as it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Retention(#[serde(with = "duration")] pub Duration);

/// What an event has to meet: each condition, by field.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Filter(BTreeMap<String, Condition>);

impl Filter {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The fields, and what each has to be.
    pub fn conditions(&self) -> impl Iterator<Item = (&str, &Condition)> {
        self.0.iter().map(|(field, condition)| (field.as_str(), condition))
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Condition {
    Is(Scalar),
    OneOf(Vec<Scalar>),
    Has(Bounds),
}

/// What a field may be compared with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Scalar {
    Bool(bool),
    Number(Number),
    Text(String),
}

/// All that is given has to hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bounds {
    /// That it is there, and not null; or that it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exists: Option<bool>,
    /// It is a number from this one on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<Number>,
    /// It is a number up to this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<Number>,
    /// It is a string that begins so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
}

/// Where a field of an event is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Field {
    /// At its top; the names of `[event]` mean what the event has in their place, wherever it was found.
    Name(String),
    /// In its value.
    Pointer(Pointer),
}

impl Field {
    /// What begins with a slash is a JSON pointer, if it is one.
    pub fn of(text: &str) -> Self {
        match Pointer::try_from(text.to_owned()) {
            Ok(pointer) if !text.is_empty() => Self::Pointer(pointer),
            _ => Self::Name(text.to_owned()),
        }
    }
}

impl AggregateConfig {
    /// One that counts all events.
    pub fn counting(name: impl Into<String>, window: Duration, group_by: Vec<String>) -> Self {
        Self {
            name: name.into(),
            window,
            time_zone: None,
            group_by,
            filter: Filter::default(),
            measures: measure::only_count(),
            max_groups: DEFAULT_MAX_GROUPS,
            retention: None,
        }
    }

    /// Whether it measures something besides counting.
    pub fn measures_more(&self) -> bool {
        self.measures.iter().any(|measure| *measure != Measure::Count)
    }

    /// What decides, beside window and `group_by`, in which buckets an event counts and how: what is not at its default. Two
    /// definitions are the same where these are.
    pub fn definition(&self) -> Map<String, serde_json::Value> {
        let mut definition = Map::new();
        let mut insert = |key: &str, value| _ = definition.insert(key.to_owned(), value);
        if let Some(zone) = &self.time_zone {
            insert("time_zone", json!(zone));
        }
        if !self.filter.is_empty() {
            insert("filter", json!(self.filter));
        }
        if self.measures_more() {
            // Their names are those of answers alone, and their order, too.
            let mut measured: Vec<_> =
                self.measures.iter().filter(|it| **it != Measure::Count).map(Measure::unnamed).collect();
            measured.sort_by_key(Measure::identity);
            measured.dedup_by_key(|measure| measure.identity());
            insert("measures", json!(measured));
        }
        if self.max_groups != DEFAULT_MAX_GROUPS {
            insert("max_groups", json!(self.max_groups));
        }
        if self.has_pointers() {
            insert("pointers", true.into());
        }
        definition
    }

    /// Whether groups are formed by what a name of an earlier release could be, too.
    pub fn has_pointers(&self) -> bool {
        self.group_by.iter().any(|field| matches!(Field::of(field), Field::Pointer(_)))
    }
}

/// Without `[[aggregate]]`: events per minute by client and type, whatever these fields are called.
pub(super) fn default_aggregates(event: &EventConfig) -> Vec<AggregateConfig> {
    let group_by = vec![event.client_field.clone(), event.type_field.clone()];
    vec![AggregateConfig::counting("events_by_type", Duration::from_secs(60), group_by)]
}

const DEFAULT_MAX_GROUPS: u32 = 10_000;
const MOST_GROUPS: i64 = 1_000_000;
const MOST_CONDITIONS: usize = 32;
const MOST_VALUES: usize = 1000;
const MOST_MEASURES: usize = 32;
const LONGEST_WINDOW: Duration = Duration::from_secs(366 * 24 * 3600);
const LONGEST_RETENTION: Duration = Duration::from_secs(100 * 366 * 24 * 3600);

fn default_max_groups() -> u32 {
    DEFAULT_MAX_GROUPS
}

fn is_default_max_groups(max_groups: &u32) -> bool {
    *max_groups == DEFAULT_MAX_GROUPS
}

pub(super) const AGGREGATES: &str =
    "must be a list of tables: [{ name = \"logins\", window = \"1m\", group_by = [\"client_id\"] }]";
const FIELDS: [&str; 8] = ["name", "window", "group_by", "time_zone", "filter", "measures", "max_groups", "retention"];
const FILTER: &str = "filter must be a table of fields: { type = \"login_failed\", country = [\"DE\", \"AT\"], \
                      amount = { min = 10, max = 99.5 }, user_id = { exists = true }, ip = { prefix = \"10.\" } }";

/// The list as it is given. Rules between the entries are [`broken_rules`].
pub(super) fn read(value: &toml::Value) -> Result<Value, String> {
    read_tables(value, AGGREGATES, read_entry)
}

fn read_entry(entry: &toml::Table) -> Result<Dict, String> {
    let mut dict = Dict::new();
    for (key, value) in entry {
        let fault = |rule: String| format!("{key} {rule}");
        let value = match key.as_str() {
            "name" => text(value).map(Value::from).map_err(fault)?,
            "window" => read_duration(value, Duration::from_secs(1), LONGEST_WINDOW).map_err(fault)?,
            "group_by" => list(value).map_err(fault)?,
            "time_zone" => {
                let name = text(value).map_err(fault)?;
                name.parse::<TimeZone>().map_err(|rule| format!("time_zone {rule}"))?;
                Value::from(name)
            }
            "max_groups" => integer(value, 1, MOST_GROUPS).map_err(fault)?,
            "retention" => read_duration(value, Duration::from_secs(1), LONGEST_RETENTION).map_err(fault)?,
            "filter" => read_filter(value)?,
            "measures" => measure::read(value)?,
            _ => {
                return Err(match nearest(key, FIELDS.into_iter()) {
                    Some(meant) => format!("{key} is unknown; did you mean {meant}?"),
                    None => format!("{key} is unknown; an aggregate has {}", FIELDS.join(", ")),
                });
            }
        };
        dict.insert(key.clone(), value);
    }
    match ["name", "window", "group_by"].into_iter().find(|key| !dict.contains_key(*key)) {
        Some(key) => Err(format!("has no {key}")),
        None => Ok(dict),
    }
}

fn read_filter(value: &toml::Value) -> Result<Value, String> {
    let mut dict = Dict::new();
    for (field, condition) in value.as_table().ok_or(FILTER)? {
        let condition = match condition {
            toml::Value::Table(bounds) => Value::from(read_bounds(field, bounds)?),
            toml::Value::Array(values) if values.is_empty() => {
                return Err(format!("filter: {field:?} has an empty list, which no event meets"));
            }
            toml::Value::Array(values) => {
                Value::from(values.iter().map(|value| scalar(field, value)).collect::<Result<Vec<_>, _>>()?)
            }
            one => scalar(field, one)?,
        };
        dict.insert(field.clone(), condition);
    }
    Ok(Value::from(dict))
}

fn read_bounds(field: &str, bounds: &toml::Table) -> Result<Dict, String> {
    let mut dict = Dict::new();
    for (key, value) in bounds {
        let fault = |rule: &str| format!("filter: {key} of {field:?} {rule}");
        let value = match key.as_str() {
            "exists" => value.as_bool().map(Value::from).ok_or_else(|| fault("must be true or false"))?,
            "min" | "max" => number(value).ok_or_else(|| fault("must be a number"))?,
            "prefix" => match value.as_str() {
                Some(prefix) if !prefix.is_empty() => Value::from(prefix),
                _ => return Err(fault("must be a string that is not empty")),
            },
            _ => return Err(format!("filter: {field:?} has {key}; there are exists, min, max and prefix")),
        };
        dict.insert(key.clone(), value);
    }
    let is_absent = bounds.get("exists").and_then(toml::Value::as_bool) == Some(false);
    if dict.is_empty() {
        return Err(format!("filter: {field:?} has an empty table; there are exists, min, max and prefix"));
    }
    let of = |key| {
        bounds.get(key).and_then(|value: &toml::Value| value.as_float().or(value.as_integer().map(|it| it as f64)))
    };
    if let (Some(min), Some(max)) = (of("min"), of("max"))
        && min > max
    {
        return Err(format!("filter: min of {field:?} is above its max: no event meets that"));
    }
    if dict.contains_key("prefix") && (dict.contains_key("min") || dict.contains_key("max")) {
        return Err(format!("filter: {field:?} cannot be a number and begin with a prefix: leave one of them out"));
    }
    if is_absent && dict.len() > 1 {
        return Err(format!("filter: {field:?} cannot have a value that is not there: leave exists = false alone"));
    }
    Ok(dict)
}

fn scalar(field: &str, value: &toml::Value) -> Result<Value, String> {
    let rule = || format!("filter: {field:?} can be compared with strings, numbers, true and false");
    match value {
        toml::Value::String(text) => Ok(Value::from(text.as_str())),
        toml::Value::Boolean(is) => Ok(Value::from(*is)),
        other => number(other).ok_or_else(rule),
    }
}

/// JSON has no infinite numbers.
fn number(value: &toml::Value) -> Option<Value> {
    match value {
        toml::Value::Integer(number) => Some(Value::from(*number)),
        toml::Value::Float(number) if number.is_finite() => Some(Value::from(*number)),
        _ => None,
    }
}

/// What is wrong with these aggregates, in words. `check_name` is the rule for a field at the top of an event.
pub(super) fn broken_rules(
    aggregates: &[AggregateConfig],
    check_name: impl Fn(&str) -> Result<(), String>,
) -> Vec<String> {
    let mut all = Vec::new();
    let mut names = BTreeSet::new();
    for aggregate in aggregates {
        let name = &aggregate.name;
        let mut fault = |rule: String| all.push(format!("{name:?}: {rule}"));
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        if name.is_empty() || name.len() > 64 || !name.chars().all(plain) {
            fault("a name must be 1 to 64 of a-z, 0-9 and _ (it names a collection and a path)".to_owned());
        }
        if !names.insert(name) {
            fault("the name is used twice".to_owned());
        }
        if aggregate.window.subsec_nanos() != 0 || aggregate.window.is_zero() {
            fault("window must be whole seconds, at least one".to_owned());
        }
        if aggregate.time_zone.is_some() && aggregate.window != DAY {
            fault("time_zone says when a day begins, so it needs window = \"1d\"".to_owned());
        }
        if let Some(Retention(retention)) = aggregate.retention.filter(|kept| kept.0 < aggregate.window) {
            let (kept, window) = (humantime::format_duration(retention), humantime::format_duration(aggregate.window));
            fault(format!(
                "retention ({kept}) is below the window ({window}): it would be removed while it is counted"
            ));
        }
        let check = |what: &str, field: &str| match Field::of(field) {
            Field::Pointer(_) => Ok(()),
            // In `group_by` it may be a name of a release that knew no pointers.
            Field::Name(name) if name.starts_with('/') && !what.starts_with("group_by") => Err(format!(
                "{what} {field:?} begins as a JSON pointer and is none (RFC 6901): in a name ~1 is written for a /, ~0 for a ~"
            )),
            Field::Name(name) => check_name(&name).map_err(|rule| format!("{what} {field:?}: {rule}")),
        };
        let mut fields = BTreeSet::new();
        for field in &aggregate.group_by {
            if let Err(rule) = check("group_by field", field) {
                fault(rule);
            }
            if !fields.insert(field) {
                fault(format!("group_by names {field:?} twice"));
            }
        }
        if aggregate.filter.0.len() > MOST_CONDITIONS {
            fault(format!("filter has {} fields: at most {MOST_CONDITIONS}", aggregate.filter.0.len()));
        }
        for (field, condition) in aggregate.filter.conditions() {
            if let Err(rule) = check("filter field", field) {
                fault(rule);
            }
            if let Condition::OneOf(values) = condition
                && values.len() > MOST_VALUES
            {
                fault(format!("filter: {field:?} has {} values: at most {MOST_VALUES}", values.len()));
            }
        }
        if aggregate.measures.len() > MOST_MEASURES {
            fault(format!("there are {} measures: at most {MOST_MEASURES}", aggregate.measures.len()));
        }
        let mut labels = BTreeSet::new();
        for measure in &aggregate.measures {
            if let Some(Err(rule)) = measure.field().map(|field| check("measured field", field)) {
                fault(rule);
            }
            if !labels.insert(measure.to_string()) {
                fault(format!("measures has {:?} twice: name one by as = \"…\"", measure.to_string()));
            }
        }
    }
    all
}

const DAY: Duration = Duration::from_secs(24 * 3600);

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(text: &str) -> Result<Vec<AggregateConfig>, String> {
        let table: toml::Table = format!("value = {text}").parse().unwrap();
        read(&table["value"]).map(|value| value.deserialize().unwrap())
    }

    fn one(more: &str) -> Result<AggregateConfig, String> {
        read_text(&format!("[{{ name = \"a\", window = \"1d\", group_by = [\"client_id\"], {more} }}]"))
            .map(|mut all| all.remove(0))
    }

    fn rules(aggregate: AggregateConfig) -> Vec<String> {
        broken_rules(&[aggregate], |name| if name.contains('.') { Err("has a dot".to_owned()) } else { Ok(()) })
    }

    #[test]
    fn a_definition_is_read_and_printed_as_it_was() {
        let aggregate = one(
            "time_zone = \"Europe/Berlin\", filter = { type = \"login_failed\", \"/geo/country\" = [\"DE\", 1, true, 1.5], \
             amount = { min = 10, max = 99.5 }, ip = { prefix = \"10.\" }, user_id = { exists = true } }, measures = \
             [\"count\", { sum = \"/amount\" }, { avg = \"/amount\", as = \"mean\" }, { unique = \"user_id\" }, \
             { top = \"ip\", k = 3 }], max_groups = 7, retention = \"90d\"",
        )
        .unwrap();
        assert_eq!(rules(aggregate.clone()), [""; 0]);
        let labels: Vec<_> = aggregate.measures.iter().map(ToString::to_string).collect();
        assert_eq!(labels, ["count", "sum(/amount)", "mean", "unique(user_id)", "top(ip)"]);
        let printed = toml::to_string(&aggregate).unwrap();
        let again: AggregateConfig = toml::from_str(&printed).unwrap();
        assert_eq!(again, aggregate, "{printed}");
        let read_again = read(&toml::Value::Array(vec![toml::Value::Table(printed.parse().unwrap())])).unwrap();
        assert_eq!(read_again.deserialize::<Vec<AggregateConfig>>().unwrap(), [aggregate]);
    }

    #[test]
    fn what_is_at_its_default_is_no_part_of_the_definition() {
        let plain = one("").unwrap();
        assert_eq!(
            (plain.definition().len(), plain.clone()),
            (0, one("measures = [\"count\"], max_groups = 10000").unwrap())
        );
        assert_eq!(one("retention = \"2d\"").unwrap().definition().len(), 0, "it changes no bucket that stays");
        let measured = |measures: &str| one(&format!("measures = {measures}")).unwrap().definition();
        assert_eq!(
            measured("[{ sum = \"a\", as = \"x\" }, { min = \"b\" }]"),
            measured("[{ min = \"b\" }, \"count\", { sum = \"a\" }]")
        );
        assert_ne!(measured("[{ top = \"a\", k = 3 }]"), measured("[{ top = \"a\", k = 30 }]"));
        let two = "[{ top = \"a\", k = 3 }, { top = \"a\", k = 30, as = \"more\" }]";
        assert_ne!(measured(two), measured("[{ top = \"a\", k = 3 }]"));
        assert_eq!(measured(two), measured("[{ top = \"a\", k = 30 }, { top = \"a\", k = 3, as = \"less\" }]"));
        let pointer = read_text("[{ name = \"a\", window = \"1m\", group_by = [\"/x\"] }]").unwrap();
        assert_eq!(pointer[0].definition().keys().collect::<Vec<_>>(), ["pointers"]);
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place() {
        for (more, words) in [
            ("windows = 1", "entry 0 (from 0): windows is unknown; did you mean window?"),
            ("time_zone = \"Mars/Olympus\"", "time_zone must be a name of the IANA time zone database"),
            ("max_groups = 0", "max_groups must be an integer from 1 to 1000000"),
            ("retention = \"soon\"", "retention must be a duration with its unit"),
            ("filter = 7", "filter must be a table of fields"),
            ("filter = { a = [] }", "filter: \"a\" has an empty list, which no event meets"),
            ("filter = { a = {} }", "filter: \"a\" has an empty table; there are exists, min, max and prefix"),
            ("filter = { a = { mim = 1 } }", "filter: \"a\" has mim; there are exists, min, max and prefix"),
            ("filter = { a = { min = \"1\" } }", "filter: min of \"a\" must be a number"),
            ("filter = { a = { prefix = \"\" } }", "filter: prefix of \"a\" must be a string that is not empty"),
            ("filter = { a = { exists = false, min = 1 } }", "leave exists = false alone"),
            ("filter = { a = 2026-11-23 }", "filter: \"a\" can be compared with strings, numbers, true and false"),
            ("filter = { a = inf }", "filter: \"a\" can be compared with strings, numbers, true and false"),
            ("measures = \"count\"", "measures must be a list"),
            ("measures = [\"sum\"]", "measures: \"sum\" is none; there are \"count\""),
            ("measures = [{ sum = \"a\", min = \"a\" }]", "measures: one of them has sum and min: write two"),
            ("measures = [{ as = \"x\" }]", "measures: one of them says nothing; there are"),
            ("measures = [{ sum = \"a\", k = 3 }]", "measures: k belongs to top"),
            ("measures = [{ top = \"a\", k = 0 }]", "measures: k must be an integer from 1 to 100"),
            ("measures = [{ sum = \"\" }]", "measures: sum must name a field"),
            ("measures = [{ sum = \"a\", as = \"\" }]", "measures: as must be 1 to 128 characters"),
            ("measures = [{ sum = \"a\", as = \"x\\u0000\" }]", "without control characters"),
            ("measures = [{ sum = \"a\", as = \"inexact\" }]", "neither \"count\" nor \"inexact\""),
            ("filter = { a = { min = 10, max = 5 } }", "filter: min of \"a\" is above its max: no event meets that"),
            (
                "filter = { a = { min = 10, prefix = \"x\" } }",
                "filter: \"a\" cannot be a number and begin with a prefix",
            ),
            ("measures = [{ median = \"a\" }]", "measures: median is unknown"),
        ] {
            let error = one(more).unwrap_err();
            assert!(error.starts_with("entry 0 (from 0): ") && error.contains(words), "{more}: {error}");
        }
        for (more, words) in [
            ("measures = [{ sum = \"a\" }, { sum = \"a\" }]", "measures has \"sum(a)\" twice"),
            ("measures = [{ sum = \"a.b\" }]", "measured field \"a.b\": has a dot"),
            ("measures = [{ sum = \"/a~b\" }]", "measured field \"/a~b\" begins as a JSON pointer and is none"),
            ("filter = { \"a.b\" = 1 }", "filter field \"a.b\": has a dot"),
            ("retention = \"1h\"", "retention (1h) is below the window (1day)"),
        ] {
            let found = rules(one(more).unwrap());
            assert!(found.len() == 1 && found[0].contains(words), "{more}: {found:?}");
        }
        let hours = "[{ name = \"a\", window = \"1h\", group_by = [], time_zone = \"UTC\" }]";
        let found = rules(read_text(hours).unwrap().remove(0));
        assert_eq!(found, ["\"a\": time_zone says when a day begins, so it needs window = \"1d\""]);
    }
}
