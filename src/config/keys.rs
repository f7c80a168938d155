//! What a key is, and what a dotted path means. The keys are declared in `sections`.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use serde_json::Value;

use super::{Config, sections::SECTIONS};

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
    /// A table of names that are not ours (they may contain dots) and strings; `config.toml` has these as examples.
    Options(#[cfg_attr(not(test), expect(dead_code, reason = "for config.toml"))] &'static [&'static str]),
    /// Events in a time, with a burst.
    Rate,
    /// `[[aggregate]]`.
    Aggregates,
    /// `[[http.source]]`; `config.toml` has these lines of one as an example.
    Sources(#[cfg_attr(not(test), expect(dead_code, reason = "for config.toml"))] &'static [&'static str]),
    /// `[[admin.auth.keys]]`; the same.
    Operators(#[cfg_attr(not(test), expect(dead_code, reason = "for config.toml"))] &'static [&'static str]),
    /// `[[event.types]]`; the same.
    Types(#[cfg_attr(not(test), expect(dead_code, reason = "for config.toml"))] &'static [&'static str]),
    /// `[[http.auth.keys]]`; the same.
    Senders(#[cfg_attr(not(test), expect(dead_code, reason = "for config.toml"))] &'static [&'static str]),
}

/// When a changed value is in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// At a reload: it is read at each use.
    Live,
    /// So with the embedded queue; on Kafka, librdkafka's `message.max.bytes` and `message.timeout.ms` follow from it when the
    /// producer is made, or the topic of the dead letters is looked at, and made, at the start.
    LiveWithoutKafka,
    /// At a reload, where TLS is on before and after it: the sockets of a listener speak TLS, or they do not.
    LiveOnceOn,
    /// After a restart.
    Restart,
}

/// A declared key.
#[derive(Debug, Clone, Copy)]
pub(super) struct Key {
    pub name: &'static str,
    pub kind: Kind,
    pub change: Change,
    /// What `config.toml` says of it, and of the keys below it that say nothing.
    #[cfg(test)]
    pub about: &'static [&'static str],
}

/// A declared section.
#[derive(Debug, Clone, Copy)]
pub(super) struct Section {
    /// Its name and a dot; nothing for the keys outside of sections.
    #[cfg_attr(not(test), expect(dead_code, reason = "for config.toml"))]
    pub prefix: &'static str,
    pub keys: &'static [Key],
    #[cfg(test)]
    pub about: &'static [&'static str],
}

pub(super) fn keys() -> impl Iterator<Item = &'static Key> + Clone {
    SECTIONS.iter().flat_map(|section| section.keys)
}

/// The longest pause between two starts of an actor.
pub const LONGEST_RESTART: Duration = Duration::from_secs(30);

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
    if let Some(key) = keys().find(|key| key.name == path) {
        return Meaning::Key(key.kind);
    }
    for table in [ARCHIVE_OPTIONS, KAFKA_PROPERTIES] {
        if let Some(name) = below(path, table).filter(|name| !name.is_empty()) {
            return Meaning::Option { table, name };
        }
    }
    match keys().any(|key| below(key.name, path).is_some()) {
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
    let keys = keys().map(|key| key.name).chain(["store.url_file"]);
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
    let mut left = vec![(String::new(), serde_json::to_value(config).unwrap_or_default())];
    while let Some((path, value)) = left.pop() {
        match value {
            Value::Object(fields) => left.extend(fields.into_iter().map(|(name, value)| {
                let path = if path.is_empty() { name } else { format!("{path}.{name}") };
                (path, value)
            })),
            value => _ = flat.insert(path, value),
        }
    }
    flat
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_keys_are_those_of_the_configuration() {
        let flat = flatten(&Config::default());
        let mut known: Vec<&str> = keys().map(|key| key.name).collect();
        known.retain(|key| ![ARCHIVE_OPTIONS, KAFKA_PROPERTIES].contains(key));
        known.sort_unstable();
        assert_eq!(flat.keys().map(String::as_str).collect::<Vec<_>>(), known);
    }

    #[test]
    fn an_unknown_key_is_answered_with_what_was_probably_meant() {
        assert!(unknown("http.lisen").ends_with("did you mean http.listen?"));
        assert!(unknown("spool.max_agee").ends_with("did you mean spool.max_age?"));
        assert!(unknown("queue.brokers").contains("queue.kafka.brokers"));
        assert!(unknown("http.qqqqqqqq").contains("[http] knows listen, max_body"));
        assert!(unknown("http.auth.secret").contains("[http.auth] knows keys"));
        assert!(unknown("http.tls.ca").contains("[http.tls] knows cert, key, client_ca"), "{}", unknown("http.tls.ca"));
        assert!(unknown("qqq").contains("data, http"));
    }
}
