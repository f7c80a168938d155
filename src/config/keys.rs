//! Every key there is, what kind of value it takes, and the range of it that makes sense by itself. Rules between keys
//! are in `validate`.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use serde_json::Value;

use super::Config;

/// What a key's value is; it decides how text (`--set`, the environment) is read.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    /// Taken literally.
    Text,
    Flag,
    /// From, to (both included).
    Integer(i64, i64),
    /// Above 0, at most 100.
    Percent,
    /// In bytes, from, to.
    Size(u64, u64),
    Duration(Duration, Duration),
    OneOf(&'static [&'static str]),
    /// Of strings; as text also `a,b`.
    List,
    /// A table of names that are not ours (they may contain dots) and strings.
    Options,
    /// `[[aggregate]]`.
    Aggregates,
}

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
const GIB: u64 = 1024 * MIB;
const PIB: u64 = 1024 * 1024 * GIB;

const ZERO: Duration = Duration::ZERO;
const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
const TEN_YEARS: Duration = Duration::from_secs(3650 * 24 * 3600);

/// MongoDB's limit of `expireAfterSeconds` is 2³¹ − 1 seconds; ten years stay far below.
const LONGEST_TTL: Duration = TEN_YEARS;

/// The longest pause between two starts of an actor.
pub const LONGEST_RESTART: Duration = Duration::from_secs(30);

pub(super) const WINDOW: Kind = Kind::Duration(SECOND, Duration::from_secs(366 * 24 * 3600));

pub(super) const KEYS: &[(&str, Kind)] = &[
    ("roles", Kind::List),
    ("data.dir", Kind::Text),
    ("http.listen", Kind::Text),
    ("http.max_body", Kind::Size(1, GIB)),
    // A record is one message of Kafka (`message.max.bytes` ends at 10⁹) and one value of SQLite.
    ("http.max_event", Kind::Size(1, 256 * MIB)),
    ("http.max_events", Kind::Integer(1, 10_000_000)),
    ("http.request_timeout", Kind::Duration(Duration::from_millis(100), HOUR)),
    ("http.max_in_flight", Kind::Size(1, PIB)),
    ("admin.listen", Kind::Text),
    ("event.type_field", Kind::Text),
    ("event.id_field", Kind::Text),
    ("event.time_field", Kind::Text),
    ("event.client_field", Kind::Text),
    ("event.key_field", Kind::Text),
    ("event.on_unreadable", Kind::OneOf(&["reject", "accept"])),
    ("queue.kind", Kind::OneOf(&["embedded", "kafka"])),
    ("queue.on_unavailable", Kind::OneOf(&["reject", "buffer"])),
    ("queue.topic", Kind::Text),
    ("queue.generation", Kind::Integer(0, u32::MAX as i64)),
    ("queue.embedded.quota", Kind::Size(1, PIB)),
    ("queue.embedded.retention", Kind::Duration(ZERO, TEN_YEARS)),
    ("queue.kafka.brokers", Kind::Text),
    ("queue.kafka.group", Kind::Text),
    ("queue.kafka.create_topic", Kind::Flag),
    ("queue.kafka.partitions", Kind::Integer(1, 100_000)),
    // Kafka's field is an int16.
    ("queue.kafka.replication", Kind::Integer(1, i16::MAX as i64)),
    ("queue.kafka.properties", Kind::Options),
    ("batch.max_records", Kind::Integer(1, 10_000_000)),
    ("batch.max_bytes", Kind::Size(1, GIB)),
    ("batch.max_wait", Kind::Duration(MS, MINUTE)),
    ("spool.max_bytes", Kind::Size(1, 4 * GIB)),
    ("spool.max_records", Kind::Integer(1, i64::MAX)),
    ("spool.max_age", Kind::Duration(MS, DAY)),
    ("spool.quota", Kind::Size(1, PIB)),
    ("upload.max_parallel", Kind::Integer(1, 1024)),
    ("upload.max_in_flight", Kind::Size(1, PIB)),
    ("upload.timeout", Kind::Duration(Duration::from_millis(100), HOUR)),
    ("upload.backoff", Kind::Duration(MS, MINUTE)),
    ("upload.max_backoff", Kind::Duration(MS, HOUR)),
    ("archive.url", Kind::Text),
    ("archive.options", Kind::Options),
    ("archive.on_gap", Kind::OneOf(&["halt", "skip"])),
    ("store.kind", Kind::OneOf(&["embedded", "mongodb", "none"])),
    ("store.url", Kind::Text),
    ("store.database", Kind::Text),
    ("store.events", Kind::Flag),
    ("store.events_ttl", Kind::Duration(SECOND, LONGEST_TTL)),
    ("aggregator.flush_interval", Kind::Duration(MS, HOUR)),
    ("aggregator.flush_buckets", Kind::Integer(1, 10_000_000)),
    ("aggregator.timeout", Kind::Duration(Duration::from_millis(100), HOUR)),
    ("aggregate", Kind::Aggregates),
    ("disk.max_used_percent", Kind::Percent),
    ("disk.resume_percent", Kind::Percent),
    ("disk.check_interval", Kind::Duration(MS, HOUR)),
    ("supervision.max_restarts", Kind::Integer(0, 1_000_000)),
    ("supervision.window", Kind::Duration(MS, DAY)),
    ("supervision.backoff", Kind::Duration(MS, LONGEST_RESTART)),
    ("shutdown.timeout", Kind::Duration(Duration::from_millis(100), HOUR)),
    ("logging.level", Kind::Text),
    ("logging.format", Kind::OneOf(&["text", "json"])),
];

/// The two tables whose names are not ours.
pub const ARCHIVE_OPTIONS: &str = "archive.options";
pub const KAFKA_PROPERTIES: &str = "queue.kafka.properties";

/// What a dotted path means.
pub(super) enum Meaning<'a> {
    Key(Kind),
    /// A name below one of the two tables.
    Option {
        table: &'static str,
        name: &'a str,
    },
    Section,
    Unknown,
}

pub(super) fn meaning(path: &str) -> Meaning<'_> {
    if let Some((_, kind)) = KEYS.iter().find(|(key, _)| *key == path) {
        return Meaning::Key(*kind);
    }
    for table in [ARCHIVE_OPTIONS, KAFKA_PROPERTIES] {
        if let Some(name) = below(path, table).filter(|name| !name.is_empty()) {
            return Meaning::Option { table, name };
        }
    }
    match KEYS.iter().any(|(key, _)| below(key, path).is_some()) {
        true => Meaning::Section,
        false => Meaning::Unknown,
    }
}

/// The rest of the path below the section.
pub(super) fn below<'a>(path: &'a str, section: &str) -> Option<&'a str> {
    path.strip_prefix(section)?.strip_prefix('.')
}

/// Why an unknown key is refused, with the nearest known one, or what its section knows.
pub(super) fn unknown(path: &str) -> String {
    let keys = KEYS.iter().map(|(key, _)| *key).chain(["store.url_file"]);
    if let Some(key) = nearest(path, keys.clone()) {
        return format!("unknown key; did you mean {key}?");
    }
    // The right name in the wrong section.
    let name = |key: &str| key.rsplit('.').next().unwrap_or_default().to_owned();
    let same_name: Vec<&str> = keys.clone().filter(|key| name(key) == name(path)).collect();
    if !same_name.is_empty() {
        return format!("unknown key; did you mean {}?", same_name.join(" or "));
    }
    let mut section = path;
    while let Some((parent, _)) = section.rsplit_once('.') {
        let known: Vec<&str> = keys.clone().filter_map(|key| below(key, parent)).collect();
        if !known.is_empty() {
            return format!("unknown key; [{parent}] knows {}", known.join(", "));
        }
        section = parent;
    }
    let mut sections: Vec<&str> = keys.filter_map(|key| key.split('.').next()).collect();
    let mut seen = BTreeSet::new();
    sections.retain(|section| seen.insert(*section));
    format!("unknown key; the sections are {}", sections.join(", "))
}

/// The candidate that is a typing error away from `given`.
pub fn nearest<'a>(given: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let tolerated = (given.len() / 4).clamp(1, 4);
    candidates
        .map(|candidate| (strsim::damerau_levenshtein(given, candidate), candidate))
        .filter(|(distance, _)| *distance <= tolerated)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Each key with its value; lists are values.
pub(super) fn flatten(config: &Config) -> BTreeMap<String, Value> {
    let mut flat = BTreeMap::new();
    // A configuration is made of strings, numbers, lists and maps with string keys, which JSON all has.
    if let Ok(value) = serde_json::to_value(config) {
        descend(String::new(), value, &mut flat);
    }
    flat
}

fn descend(path: String, value: Value, flat: &mut BTreeMap<String, Value>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let path = if path.is_empty() { name } else { format!("{path}.{name}") };
                descend(path, value, flat);
            }
        }
        value => {
            flat.insert(path, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_keys_are_those_of_the_configuration() {
        let flat = flatten(&Config::default());
        let mut known: Vec<&str> = KEYS.iter().map(|(key, _)| *key).collect();
        known.retain(|key| ![ARCHIVE_OPTIONS, KAFKA_PROPERTIES].contains(key));
        known.sort_unstable();
        assert_eq!(flat.keys().map(String::as_str).collect::<Vec<_>>(), known);
    }

    #[test]
    fn an_unknown_key_is_answered_with_what_was_probably_meant() {
        assert!(unknown("http.lisen").ends_with("did you mean http.listen?"));
        assert!(unknown("spool.max_agee").ends_with("did you mean spool.max_age?"));
        assert!(unknown("queue.brokers").contains("queue.kafka.brokers"));
        assert!(unknown("http.auth").contains("[http] knows listen, max_body"));
        assert!(unknown("http.tls.cert").contains("[http] knows"));
        assert!(unknown("qqq").contains("data, http"));
    }
}
