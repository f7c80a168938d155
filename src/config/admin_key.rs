//! `[[admin.auth.keys]]`: who may look at the admin listener, and who may have it do something.

use std::{collections::BTreeSet, sync::Arc};

use figment::value::{Dict, Value};
use serde::{Deserialize, Serialize};

use super::{Credential, Expiry, KeyHash, check_name, http_key::read_common, keys::nearest, tables::read_tables};
use crate::{names::words, position::Timestamp};

words! {
    /// What a key of the admin listener opens: all that is asked by GET; or that, and reloads, replays and purges.
    #[derive(Default)]
    Access { #[default] Read = "read", Operate = "operate" }
}

/// One of the `[[admin.auth.keys]]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdminKey {
    /// Of whoever asks with it: in the log.
    pub name: String,
    pub hash: KeyHash,
    #[serde(default)]
    pub access: Access,
    /// From then on it is refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires: Option<Expiry>,
}

impl Credential for Arc<AdminKey> {
    fn name(&self) -> &str {
        &self.name
    }

    fn expires(&self) -> Option<&Expiry> {
        self.expires.as_ref()
    }
}

/// All of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct AdminKeys(Vec<Arc<AdminKey>>);

impl AdminKeys {
    /// Then everybody who reaches the listener is an operator.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The key of this hash. All are looked at, in constant time: they are few.
    pub fn find(&self, hash: KeyHash) -> Option<&Arc<AdminKey>> {
        self.0.iter().fold(None, |found, key| if key.hash.is(hash) { Some(key) } else { found })
    }

    /// What an operator should know of them, a sentence each.
    pub fn warnings(&self, now: Timestamp) -> Vec<String> {
        let expired = self.0.iter().filter_map(|key| Some((key, key.expires.as_ref().filter(|end| end.at <= now)?)));
        let mut warnings: Vec<String> = expired
            .map(|(key, end)| {
                format!(
                    "admin.auth.keys: {:?} expired at {end}: requests with it are refused; remove it or give its holder a new one",
                    key.name
                )
            })
            .collect();
        if !self.is_empty() && !self.0.iter().any(|key| key.access == Access::Operate) {
            warnings.push(
                "admin.auth.keys: none has access = \"operate\": nobody can replay or purge dead letters of the running daemon, \
                 and only SIGHUP reloads it"
                    .to_owned(),
            );
        }
        warnings
    }
}

pub(super) const KEYS: &str =
    "must be a list of tables: [{ name = \"ops\", hash = \"sha256:…\", access = \"operate\" }]";
const FIELDS: [&str; 4] = ["name", "hash", "access", "expires"];

/// The list as it is given. Rules between the entries are [`broken_rules`].
pub(super) fn read(value: &toml::Value) -> Result<Value, String> {
    read_tables(value, KEYS, read_entry)
}

fn read_entry(entry: &toml::Table) -> Result<Dict, String> {
    let mut dict = Dict::new();
    for (field, value) in entry {
        let value = match field.as_str() {
            "name" | "hash" | "expires" => read_common(field, value)?,
            "access" => {
                let word = value.as_str().filter(|word| Access::WORDS.contains(word));
                Value::from(word.ok_or_else(|| format!("access must be one of {}", Access::WORDS.join(", ")))?)
            }
            _ => {
                return Err(match nearest(field, FIELDS.into_iter()) {
                    Some(meant) => format!("{field} is unknown; did you mean {meant}?"),
                    None => format!("{field} is unknown; a key has {}", FIELDS.join(", ")),
                });
            }
        };
        dict.insert(field.clone(), value);
    }
    match ["name", "hash"].into_iter().find(|field| !dict.contains_key(*field)) {
        Some(field) => Err(format!("has no {field}; `ingestd key new NAME --admin` prints the lines")),
        None => Ok(dict),
    }
}

/// Each request looks at all of them.
const MOST: usize = 100;

/// What is wrong with these keys, in words.
pub(super) fn broken_rules(keys: &AdminKeys) -> Vec<String> {
    let (mut rules, mut names, mut hashes) = (Vec::new(), BTreeSet::new(), BTreeSet::new());
    if keys.0.len() > MOST {
        rules.push(format!("there are {} keys, and {MOST} may be: remove those that nobody asks with", keys.0.len()));
    }
    for (index, key) in keys.0.iter().enumerate() {
        let mut fault = |rule: String| rules.push(format!("entry {index} (from 0): {rule}"));
        let name = &key.name;
        if let Err(rule) = check_name(name) {
            fault(rule);
            continue;
        }
        if !names.insert(name) {
            fault(format!("the name {name:?} is used twice: give each key one of its own"));
        }
        if !hashes.insert(key.hash) {
            fault(format!(
                "{name:?} has the hash of another key: make one for each with `ingestd key new NAME --admin`"
            ));
        }
    }
    rules
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(key: &str) -> String {
        KeyHash::of(key.as_bytes()).to_string()
    }

    fn read_text(text: &str) -> Result<AdminKeys, String> {
        let table: toml::Table = format!("value = {text}").parse().unwrap();
        read(&table["value"]).map(|value| value.deserialize().unwrap())
    }

    #[test]
    fn a_key_reads_and_operates_where_it_says_so() {
        let keys = read_text(&format!(
            r#"[{{ name = "scraper", hash = "{}" }}, {{ name = "ops", hash = "{}", access = "operate", expires = 2027-01-31T00:00:00Z }}]"#,
            hash("a"),
            hash("b")
        ))
        .unwrap();
        assert_eq!(broken_rules(&keys), [""; 0]);
        let found = |key: &str| keys.find(KeyHash::of(key.as_bytes())).map(|key| (key.name.as_str(), key.access));
        assert_eq!(found("a"), Some(("scraper", Access::Read)));
        assert_eq!(found("b"), Some(("ops", Access::Operate)));
        assert_eq!((found("c"), AdminKeys::default().find(KeyHash::of(b"a"))), (None, None));
        let again: AdminKeys = serde_json::from_value(serde_json::to_value(&keys).unwrap()).unwrap();
        assert_eq!(again, keys);
        assert_eq!(keys.warnings(Timestamp(1_801_353_599_999)), [""; 0]);
        let warnings = keys.warnings(Timestamp(1_801_353_600_000));
        assert!(warnings.len() == 1 && warnings[0].contains("\"ops\" expired at 2027-01-31T00:00:00Z"), "{warnings:?}");
        let reads = read_text(&format!("[{{ name = \"a\", hash = {:?} }}]", hash("a"))).unwrap();
        assert!(reads.warnings(Timestamp(0))[0].contains("none has access = \"operate\""));
    }

    #[test]
    fn what_is_wrong_with_a_key_is_said_with_its_place_and_never_with_what_may_be_the_key() {
        let good = hash("a");
        for (entry, words) in [
            ("7".to_owned(), "must be a list of tables"),
            (format!("{{ hash = {good:?} }}"), "entry 0 (from 0): has no name; `ingestd key new NAME --admin`"),
            ("{ name = \"a\", hash = \"hunter2\" }".to_owned(), "hash must be \"sha256:\" and 64 hexadecimal digits"),
            (format!("{{ name = \"a\", hash = {good:?}, access = \"write\" }}"), "access must be one of read, operate"),
            (
                format!("{{ name = \"a\", hash = {good:?}, acces = \"read\" }}"),
                "acces is unknown; did you mean access?",
            ),
            (
                format!("{{ name = \"a\", hash = {good:?}, types = [] }}"),
                "types is unknown; a key has name, hash, access",
            ),
            (format!("{{ name = \"a\", hash = {good:?}, expires = \"soon\" }}"), "expires must be a time by RFC 3339"),
        ] {
            let error = read_text(&format!("[{entry}]")).unwrap_err();
            assert!(error.contains(words) && !error.contains("hunter2"), "{entry}: {error}");
        }
        let b = hash("b");
        for (text, words) in [
            (format!("[{{ name = \"\", hash = {good:?} }}]"), "1 to 64 of A-Z"),
            (format!("[{{ name = \"n\", hash = {good:?} }}, {{ name = \"n\", hash = {b:?} }}]"), "\"n\" is used twice"),
            (
                format!("[{{ name = \"n\", hash = {good:?} }}, {{ name = \"m\", hash = {good:?} }}]"),
                "entry 1 (from 0): \"m\" has the hash of another key",
            ),
        ] {
            let rules = broken_rules(&read_text(&text).unwrap());
            assert!(rules.len() == 1 && rules[0].contains(words), "{text}: {rules:?}");
        }
    }
}
