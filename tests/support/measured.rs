//! Three aggregates of all measures beside the default one, and what their buckets have to hold: computed from the log anew, by
//! other means than the daemon's.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, DurationRound, TimeDelta, Utc};
use ingestd::internals::{
    config::AggregateConfig,
    measure::{More, Plan, Shown},
};
use serde::Deserialize;
use serde_json::value::RawValue;

/// The content of a `config.toml`. The first one is what stands there by default.
pub const DEFINITIONS: &str = r#"
[[aggregate]]
name = "events_by_type"
window = "1m"
group_by = ["client_id", "type"]

[[aggregate]]
name = "costs"
window = "1m"
group_by = ["client_id", "/place/country"]
measures = ["count", { sum = "cost" }, { min = "cost" }, { max = "cost" }, { avg = "cost" }, { sum = "/amount" },
            { unique = "n" }, { unique = "client_id" }, { top = "/place/country", k = 3 }, { top = "n", k = 5 }]

[[aggregate]]
name = "costs_by_day"
window = "1d"
time_zone = "Europe/Berlin"
group_by = ["/place/country"]
filter = { cost = { min = -500000 } }
measures = ["count", { sum = "cost" }, { min = "cost" }, { max = "cost" }, { avg = "cost" }, { sum = "/amount" },
            { unique = "n" }, { unique = "client_id" }, { top = "/place/country", k = 3 }, { top = "n", k = 5 }]

[[aggregate]]
name = "first_ones"
window = "1h"
group_by = ["n"]
max_groups = 20
measures = ["count", { sum = "cost" }, { min = "cost" }, { max = "cost" }, { avg = "cost" }, { sum = "/amount" },
            { unique = "n" }, { unique = "client_id" }, { top = "/place/country", k = 3 }, { top = "n", k = 5 }]
"#;

pub const NAMES: [&str; 3] = ["costs", "costs_by_day", "first_ones"];
const OTHER: &str = r#"["…other"]"#;
const MOST_GROUPS: usize = 20;
/// 17 places behind the point.
const ONE: i128 = 100_000_000_000_000_000;
/// Different values of which each has a place of its own in `top`.
const PLACES: usize = 192;
/// The relative standard error of `unique`, and how many times that an estimate may be off.
const UNIQUE_ERROR: f64 = 0.017;
const SIGMAS: f64 = 4.5;
/// The largest error of a count of `top`, as a share of all.
const TOP_ERROR: f64 = 0.014;

/// A bucket: of an aggregate, a partition, a window (milliseconds since 1970), a group (JSON text).
pub type Key = (&'static str, i32, i64, String);

/// As it stands in a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bucket {
    pub count: u64,
    pub last_offset: u64,
    /// What is measured beside the count (design, 3.5).
    pub state: Vec<u8>,
}

/// What is measured of an event.
#[derive(Deserialize)]
struct Fields<'a> {
    #[serde(borrow)]
    cost: Option<&'a RawValue>,
    #[serde(borrow)]
    amount: Option<&'a RawValue>,
    #[serde(borrow)]
    n: Option<&'a RawValue>,
    client_id: Option<String>,
    place: Option<Place>,
}

#[derive(Deserialize)]
struct Place {
    country: Option<String>,
}

/// A record that is an event.
pub struct Event<'a> {
    pub partition: i32,
    pub offset: u64,
    pub value: &'a [u8],
    /// That of its minute is enough.
    pub time: DateTime<Utc>,
    /// As a group has it.
    pub client: Option<&'a str>,
}

/// What the records of a bucket come to.
#[derive(Debug, Default)]
pub struct Expected {
    pub count: u64,
    pub last_offset: u64,
    costs: Vec<i128>,
    amounts: Vec<i128>,
    inexact: u64,
    numbers: BTreeMap<String, u64>,
    clients: BTreeSet<String>,
    countries: BTreeMap<String, u64>,
}

/// What the buckets have to hold. The events of each partition come in the order of their offsets.
pub fn expected<'a>(events: impl IntoIterator<Item = Event<'a>>) -> BTreeMap<Key, Expected> {
    let mut buckets: BTreeMap<Key, Expected> = BTreeMap::new();
    let mut first_ones: BTreeMap<(i32, i64), BTreeSet<String>> = BTreeMap::new();
    for event in events {
        let Ok(fields) = serde_json::from_slice::<Fields<'_>>(event.value) else { continue };
        let json = |text: Option<&str>| serde_json::to_string(&text).expect("text");
        let country = json(fields.place.as_ref().and_then(|place| place.country.as_deref()));
        let number = fields.n.map_or("null", RawValue::get).to_owned();
        let cost = number_of(fields.cost);
        let partition = event.partition;
        let mut add = |name: &'static str, window: DateTime<Utc>, group: String| {
            let bucket = buckets.entry((name, partition, window.timestamp_millis(), group)).or_default();
            bucket.add(&event, &fields, &country, &number);
        };
        add("costs", event.time, format!("[{},{country}]", json(event.client)));
        if cost.is_some_and(|cost| cost.is_none_or(|cost| cost >= -500_000 * ONE)) {
            let day = event.time.with_timezone(&chrono_tz::Europe::Berlin).date_naive();
            let midnight =
                day.and_hms_opt(0, 0, 0).and_then(|it| it.and_local_timezone(chrono_tz::Europe::Berlin).single());
            add("costs_by_day", midnight.expect("Berlin's clocks change at two").to_utc(), format!("[{country}]"));
        }
        let hour = event.time.duration_trunc(TimeDelta::hours(1)).expect("a time of today");
        let first = first_ones.entry((partition, hour.timestamp_millis())).or_default();
        if first.len() < MOST_GROUPS {
            first.insert(number.clone());
        }
        let group = if first.contains(&number) { format!("[{number}]") } else { OTHER.to_owned() };
        add("first_ones", hour, group);
    }
    buckets
}

impl Expected {
    fn add(&mut self, event: &Event<'_>, fields: &Fields<'_>, country: &str, number: &str) {
        self.count += 1;
        self.last_offset = event.offset;
        for (numbers, field) in [(&mut self.costs, fields.cost), (&mut self.amounts, fields.amount)] {
            match number_of(field) {
                Some(Some(units)) => numbers.push(units),
                Some(None) => self.inexact += 1,
                None => {}
            }
        }
        if number != "null" {
            *self.numbers.entry(number.to_owned()).or_default() += 1;
        }
        self.clients.extend(fields.client_id.clone());
        if country != "null" {
            *self.countries.entry(country.to_owned()).or_default() += 1;
        }
    }

    /// How what stands in the store differs from it, beside the count and the fence.
    pub fn difference(&self, name: &str, state: &[u8]) -> Option<String> {
        let plan = plan(name);
        let more = match More::from_bytes(&plan, state) {
            Ok(more) => more,
            Err(damaged) => return Some(damaged.to_string()),
        };
        if more.inexact != self.inexact {
            return Some(format!("{} inexact numbers instead of {}", more.inexact, self.inexact));
        }
        plan.outputs().iter().find_map(|output| self.differs(&output.name, &more.show(output)))
    }

    fn differs(&self, name: &str, shown: &Shown) -> Option<String> {
        let sum = |of: &[i128]| (!of.is_empty()).then(|| of.iter().sum::<i128>());
        let is_right = match (name, shown) {
            ("unique(n)", Shown::Count(count)) => is_estimate(*count, self.numbers.len()),
            ("unique(client_id)", Shown::Count(count)) => is_estimate(*count, self.clients.len()),
            ("top(/place/country)", Shown::Top { values, error }) => is_top(&self.countries, 3, values.iter(), *error),
            ("top(n)", Shown::Top { values, error }) => is_top(&self.numbers, 5, values.iter(), *error),
            (name, shown) => {
                let wanted = match name {
                    "sum(cost)" => sum(&self.costs),
                    "min(cost)" => self.costs.iter().min().copied(),
                    "max(cost)" => self.costs.iter().max().copied(),
                    // Rounded to 17 places, halves upwards.
                    "avg(cost)" => sum(&self.costs).map(|sum| {
                        let count = self.costs.len() as i128;
                        (2 * sum + count).div_euclid(2 * count)
                    }),
                    "sum(/amount)" => sum(&self.amounts),
                    other => return Some(format!("{other} was not asked for: {shown:?}")),
                };
                match (wanted, shown) {
                    (None, Shown::Nothing) => true,
                    (Some(wanted), Shown::Number(number)) => number.to_string() == text(wanted),
                    _ => false,
                }
            }
        };
        (!is_right).then(|| format!("{name} is {shown:?}"))
    }
}

/// Of one of the definitions.
pub fn plan(name: &str) -> Plan {
    #[derive(Deserialize)]
    struct Definitions {
        aggregate: Vec<AggregateConfig>,
    }
    let Definitions { aggregate } = toml::from_str(DEFINITIONS).expect("a configuration");
    Plan::new(aggregate.iter().find(|aggregate| aggregate.name == name).expect("one of the definitions"))
}

/// `None` of what is no number; of a number its units, or `None` where it is not exact.
fn number_of(value: Option<&RawValue>) -> Option<Option<i128>> {
    let text = value?.get();
    text.starts_with(|first: char| first == '-' || first.is_ascii_digit()).then(|| units(text))
}

/// In units of 10^-17.
fn units(text: &str) -> Option<i128> {
    let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let (whole, places) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits: i128 = format!("{whole}{places}").parse().ok()?;
    let shift = 17 + exponent.parse::<i32>().ok()? - i32::try_from(places.len()).ok()?;
    let units = digits.checked_mul(10_i128.checked_pow(u32::try_from(shift).ok()?)?)?;
    (units.abs() < ONE * 1_000_000_000_000_000).then_some(units)
}

fn text(units: i128) -> String {
    let (sign, units) = (if units < 0 { "-" } else { "" }, units.abs());
    let text = format!("{sign}{}.{:017}", units / ONE, units % ONE);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Few are counted, many estimated.
fn is_estimate(found: u64, exact: usize) -> bool {
    let off = found.abs_diff(exact as u64) as f64;
    off == 0.0 || (exact > 100 && off <= SIGMAS * UNIQUE_ERROR * exact as f64)
}

fn is_top<'v>(
    exact: &BTreeMap<String, u64>,
    k: usize,
    found: impl ExactSizeIterator<Item = &'v ingestd::internals::measure::Frequent>,
    error: u64,
) -> bool {
    let found: Vec<_> = found.map(|it| (it.value.as_str(), it.count)).collect();
    if exact.len() < PLACES {
        let mut wanted: Vec<_> = exact.iter().map(|(value, count)| (value.as_str(), *count)).collect();
        wanted.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        wanted.truncate(k);
        return error == 0 && found == wanted;
    }
    let all: u64 = exact.values().sum();
    let is_near = |(value, count): &(&str, u64)| exact.get(*value).is_some_and(|it| it.abs_diff(*count) <= error);
    // What is missing occurs no more often than the error, or than that beyond the last one.
    let last = if found.len() < k { 0 } else { found[k - 1].1 };
    let is_listed = |value: &str| found.iter().any(|(listed, _)| *listed == value);
    let none_is_missing = exact.iter().all(|(value, count)| *count <= last + error || is_listed(value));
    found.len() <= k && found.iter().all(is_near) && none_is_missing && error as f64 <= TOP_ERROR * all as f64
}

mod tests {
    use super::*;

    #[test]
    fn units_are_exact_and_print_as_numbers_do() {
        for (number, printed) in [
            ("-12.50", Some("-12.5")),
            ("1.5e3", Some("1500")),
            ("0.00000000000000001", Some("0.00000000000000001")),
            ("-0.0", Some("0")),
            ("1e15", None),
            ("1e-18", None),
        ] {
            assert_eq!(units(number).map(text).as_deref(), printed, "{number}");
        }
    }
}
