//! What a changed configuration changes: live keys at once, the others after a restart.

use std::collections::BTreeSet;

use serde::Serialize;

use super::{
    Config, ConfigError, ConfigErrors, QueueKind,
    keys::flatten,
    validate::{Origins, Rules, validate},
};

/// The keys in which two configurations differ, dotted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Diff {
    /// In force as soon as they are applied.
    pub live: Vec<String>,
    pub needs_restart: Vec<String>,
}

/// Read at each use. A name that ends in a dot stands for the section.
const LIVE: &[&str] = &[
    "http.max_body",
    "http.max_event",
    "http.max_events",
    "http.request_timeout",
    "http.max_in_flight",
    "batch.",
    "spool.",
    "upload.backoff",
    "upload.max_backoff",
    "archive.on_gap",
    "aggregator.flush_interval",
    "aggregator.flush_buckets",
    "queue.embedded.",
    "shutdown.timeout",
    "disk.",
    "logging.level",
];

/// On Kafka, librdkafka's `message.max.bytes` and `message.timeout.ms` follow from these when the producer is made.
const RESTART_ON_KAFKA: &[&str] = &["http.max_event", "http.request_timeout"];

fn is_live(key: &str, config: &Config) -> bool {
    let listed = LIVE.iter().any(|live| key == *live || live.ends_with('.') && key.starts_with(live));
    listed && !(config.queue.kind == QueueKind::Kafka && RESTART_ON_KAFKA.contains(&key))
}

/// Compares the configuration in force with a new one.
pub fn diff(old: &Config, new: &Config) -> Diff {
    let (before, after) = (flatten(old), flatten(new));
    let keys: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let changed = keys.into_iter().filter(|key| before.get(*key) != after.get(*key)).cloned();
    let (live, needs_restart) = changed.partition(|key| is_live(key, old));
    Diff { live, needs_restart }
}

/// The old configuration with the new one's live keys.
///
/// # Errors
/// When the two together break a rule that neither breaks alone: a restart would take the new one as a whole.
pub fn apply(old: &Config, new: &Config, backends: &[Rules]) -> Result<(Config, Diff), ConfigErrors> {
    let diff = diff(old, new);
    let failed = |error: serde_json::Error| {
        let origin = "reload".to_owned();
        ConfigErrors(vec![ConfigError { origin, key: String::new(), value: None, rule: error.to_string() }])
    };
    let mut mixture = serde_json::to_value(old).map_err(failed)?;
    let wanted = serde_json::to_value(new).map_err(failed)?;
    for key in &diff.live {
        let pointer = format!("/{}", key.replace('.', "/"));
        if let (Some(present), Some(value)) = (mixture.pointer_mut(&pointer), wanted.pointer(&pointer)) {
            *present = value.clone();
        }
    }
    let mixture: Config = serde_json::from_value(mixture).map_err(failed)?;
    let errors = validate(&mixture, &Origins::named("reload with the keys that need a restart as they are"), backends);
    if errors.is_empty() { Ok((mixture, diff)) } else { Err(ConfigErrors(errors)) }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::ByteSize;

    #[test]
    fn only_live_keys_take_effect_and_the_others_are_named() {
        let old = Config::default();
        let mut new = old.clone();
        new.spool.max_age = Duration::from_secs(5);
        new.logging.level = "debug".to_owned();
        new.http.listen = "127.0.0.1:9999".to_owned();
        new.archive.options.insert("region".to_owned(), "eu-west-1".to_owned());
        new.aggregate.clear();
        let (mixture, diff) = apply(&old, &new, &[]).unwrap();
        assert_eq!(diff.live, ["logging.level", "spool.max_age"]);
        assert_eq!(diff.needs_restart, ["aggregate", "archive.options.region", "http.listen"]);
        let mut expected = old.clone();
        expected.spool.max_age = Duration::from_secs(5);
        expected.logging.level = "debug".to_owned();
        assert_eq!(mixture, expected);
    }

    #[test]
    fn what_a_client_of_kafka_was_made_with_needs_a_restart_there() {
        let mut old = Config::default();
        let mut new = old.clone();
        new.http.max_event = ByteSize(2 << 20);
        assert_eq!(diff(&old, &new).live, ["http.max_event"]);
        old.queue.kind = QueueKind::Kafka;
        new.queue.kind = QueueKind::Kafka;
        assert_eq!(diff(&old, &new).needs_restart, ["http.max_event"]);
    }

    #[test]
    fn a_live_key_must_hold_beside_the_old_ones_too() {
        let old = Config::default();
        let mut new = old.clone();
        new.spool.max_bytes = ByteSize(64 << 20);
        new.upload.max_in_flight = ByteSize(64 << 20);
        let errors = apply(&old, &new, &[]).unwrap_err();
        assert!(errors.to_string().contains("upload.max_in_flight"), "{errors}");
    }

    /// A comment is that of the keys below it, up to the next; one above a section's head is that of the section.
    #[test]
    fn config_toml_marks_the_live_keys() {
        let (mut section, mut section_is_live, mut comment) = (String::new(), false, String::new());
        let (mut after_key, mut seen) = (false, 0);
        for line in include_str!("../../config.toml").lines() {
            if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
                (section, section_is_live) = (name.to_owned(), comment.contains("Live"));
                comment.clear();
            } else if let Some((name, _)) = line.strip_prefix('#').and_then(|rest| rest.split_once(" = "))
                && !name.starts_with(' ')
                && !section.is_empty()
            {
                let key = format!("{section}.{name}");
                let marked = section_is_live || comment.contains("Live");
                assert_eq!(marked, is_live(&key, &Config::default()), "{key}: {comment}");
                (after_key, seen) = (true, seen + 1);
            } else {
                if std::mem::take(&mut after_key) {
                    comment.clear();
                }
                comment.push_str(line);
            }
        }
        assert!(seen > 40, "{seen} keys");
    }

    #[test]
    fn every_live_key_exists() {
        let flat = flatten(&Config::default());
        for live in LIVE.iter().chain(RESTART_ON_KAFKA) {
            assert!(flat.keys().any(|key| key == live || live.ends_with('.') && key.starts_with(live)), "{live}");
        }
    }
}
