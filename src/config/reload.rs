//! What a changed configuration changes: live keys at once, the others after a restart.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::{
    Config, ConfigError, ConfigErrors, QueueKind,
    keys::{Change, flatten, keys},
    tls,
    validate::{Origins, Rules, validate},
};

/// What a reload changes: the keys in which two configurations differ, dotted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Reloaded {
    /// In force as soon as the new configuration is.
    pub applied: Vec<String>,
    /// Different in the file, in force after a restart.
    pub needs_restart: Vec<String>,
}

fn is_live(key: &str, old: &Config, new: &Config) -> bool {
    // Names below a table are no keys; they all need a restart.
    match keys().find(|known| known.name == key).map(|known| known.change) {
        Some(Change::Live) => true,
        Some(Change::LiveWithoutKafka) => old.queue.kind != QueueKind::Kafka,
        Some(Change::LiveOnceOn) => tls::is_on(old, key) && tls::is_on(new, key),
        Some(Change::Restart) | None => false,
    }
}

/// Compares the configuration in force with a new one.
fn diff(old: &Config, new: &Config) -> Reloaded {
    let (before, after) = (flatten(old), flatten(new));
    let keys: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let is_changed =
        |key: &String| before.get(key) != after.get(key) || changed_files(old, new).contains(&key.as_str());
    let changed = keys.into_iter().filter(|key| is_changed(key)).cloned();
    let (applied, needs_restart) = changed.partition(|key| is_live(key, old, new));
    Reloaded { applied, needs_restart }
}

/// The old configuration with the new one's live keys.
///
/// # Errors
/// When the two together break a rule that neither breaks alone: a restart would take the new one as a whole.
pub fn apply(old: &Config, new: &Config, backends: &[Rules]) -> Result<(Config, Reloaded), ConfigErrors> {
    let diff = diff(old, new);
    let mut mixture = mixture(old, new, &diff.applied).map_err(|error| {
        let origin = "reload".to_owned();
        ConfigErrors::new(vec![ConfigError { origin, key: String::new(), value: None, rule: error.to_string() }])
    })?;
    // What was read from files is no part of what is written.
    (mixture.event.types, mixture.http.source) = (new.event.types.clone(), new.http.source.clone());
    let otherwise = "reload with the keys that need a restart as they are";
    let mut errors = validate(&mixture, &Origins { given: BTreeMap::new(), otherwise }, backends);
    if mixture.writes_letters_to_kafka() && !old.writes_letters_to_kafka() {
        // Of what can make that so, this alone is live on Kafka.
        let rule = "on_invalid = \"quarantine\" of a key needs a restart here: the topic of the dead letters is looked at, and \
                    made, at the start";
        let (origin, key) = (otherwise.to_owned(), "http.auth.keys".to_owned());
        errors.push(ConfigError { origin, key, value: None, rule: rule.to_owned() });
    }
    if errors.is_empty() { Ok((mixture, diff)) } else { Err(ConfigErrors::new(errors)) }
}

/// Live keys that name files in which something else stands now.
fn changed_files(old: &Config, new: &Config) -> Vec<&'static str> {
    let types = (!old.event.types.has_same_files(&new.event.types)).then_some("event.types");
    let sources = (old.http.source != new.http.source).then_some("http.source");
    types.into_iter().chain(sources).collect()
}

fn mixture(old: &Config, new: &Config, live: &[String]) -> serde_json::Result<Config> {
    let (mut mixture, new) = (serde_json::to_value(old)?, serde_json::to_value(new)?);
    for key in live {
        let pointer = format!("/{}", key.replace('.', "/"));
        if let (Some(present), Some(value)) = (mixture.pointer_mut(&pointer), new.pointer(&pointer)) {
            *present = value.clone();
        }
    }
    serde_json::from_value(mixture)
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
        assert_eq!(diff.applied, ["logging.level", "spool.max_age"]);
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
        assert_eq!(diff(&old, &new).applied, ["http.max_event"]);
        old.queue.kind = QueueKind::Kafka;
        new.queue.kind = QueueKind::Kafka;
        assert_eq!(diff(&old, &new).needs_restart, ["http.max_event"]);
    }

    #[test]
    fn keys_are_live_and_one_that_quarantines_needs_its_topic_from_the_start() {
        let keys = |on_invalid: Option<&str>| -> crate::config::HttpKeys {
            let hash = crate::config::KeyHash::of(b"k").to_string();
            let mut key = serde_json::json!({ "name": "k", "hash": hash });
            on_invalid.iter().for_each(|word| key["on_invalid"] = (*word).into());
            serde_json::from_value(serde_json::json!([key])).unwrap()
        };
        let (mut old, mut new) = (Config::default(), Config::default());
        new.http.auth.keys = keys(Some("quarantine"));
        let (mixture, diff) = apply(&old, &new, &[]).unwrap();
        assert_eq!((diff.applied, &mixture), (vec!["http.auth.keys".to_owned()], &new));
        assert_eq!(apply(&new, &old, &[]).unwrap().0, old, "withdrawn");
        for config in [&mut old, &mut new] {
            config.queue.kind = QueueKind::Kafka;
            config.roles = vec!["ingest".to_owned()];
        }
        let errors = apply(&old, &new, &[]).unwrap_err().to_string();
        assert!(errors.contains("http.auth.keys: on_invalid = \"quarantine\" of a key needs a restart"), "{errors}");
        new.http.auth.keys = keys(None);
        assert_eq!(apply(&old, &new, &[]).unwrap().0.http.auth, new.http.auth);
    }

    #[test]
    fn certificates_are_live_and_whether_there_is_tls_at_all_needs_a_restart() {
        let off = Config::default();
        let mut on = off.clone();
        on.http.tls =
            crate::config::HttpTlsConfig { cert: "c".to_owned(), key: "k".to_owned(), client_ca: "a".to_owned() };
        let keys = ["http.tls.cert", "http.tls.client_ca", "http.tls.key"];
        for (old, new) in [(&off, &on), (&on, &off)] {
            let (mixture, diff) = apply(old, new, &[]).unwrap();
            assert_eq!((diff.needs_restart, &mixture), (keys.map(str::to_owned).to_vec(), old));
        }
        let mut other = on.clone();
        other.http.tls.cert = "other".to_owned();
        other.http.tls.client_ca.clear();
        other.admin.tls =
            crate::config::AdminTlsConfig { cert: "c".to_owned(), key: "k".to_owned(), ..Default::default() };
        let (mixture, diff) = apply(&on, &other, &[]).unwrap();
        assert_eq!(diff.applied, ["http.tls.cert", "http.tls.client_ca"]);
        assert_eq!(diff.needs_restart, ["admin.tls.cert", "admin.tls.key"]);
        assert_eq!((&mixture.http, &mixture.admin), (&other.http, &on.admin));
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
}
