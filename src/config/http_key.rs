//! `[[http.auth.keys]]`: who may send. A key itself stands nowhere, its SHA-256 does: it is 256 random bits, which no dictionary
//! has, so one round of a fast hash is enough, and a request with a wrong key costs no more than that.

use std::{collections::BTreeSet, fmt, sync::Arc};

use chrono::DateTime;
use figment::value::{Dict, Value};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::{OnInvalid, RateLimit, keys::nearest, rate, tables::read_tables};
use crate::position::Timestamp;

/// What each key that is made here begins with, so that people and scanners for leaked secrets know one when they see it.
pub const KEY_PREFIX: &str = "ingestd_";

/// One of the `[[http.auth.keys]]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HttpKey {
    /// Of whoever sends with it: in records' headers and in metrics.
    pub name: String,
    pub hash: KeyHash,
    /// The types of events that it may send; without it, all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub types: Option<Vec<String>>,
    /// From then on it is refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires: Option<Expiry>,
    /// In the place of `event.on_invalid`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_invalid: Option<OnInvalid>,
    /// In the place of `http.rate`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<RateLimit>,
}

impl HttpKey {
    /// When it expired, where it has by then.
    pub fn expired(&self, now: Timestamp) -> Option<&Expiry> {
        self.expires.as_ref().filter(|expires| expires.at <= now)
    }

    pub fn may_send(&self, event_type: &str) -> bool {
        self.types.as_ref().is_none_or(|types| types.iter().any(|allowed| allowed == event_type))
    }
}

/// What is the same of a key, whatever it opens.
pub trait Credential {
    fn name(&self) -> &str;
    fn expires(&self) -> Option<&Expiry>;
}

impl Credential for Arc<HttpKey> {
    fn name(&self) -> &str {
        &self.name
    }

    fn expires(&self) -> Option<&Expiry> {
        self.expires.as_ref()
    }
}

/// SHA-256 of a key's whole text.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct KeyHash([u8; 32]);

impl KeyHash {
    const SCHEME: &str = "sha256:";

    pub fn of(key: &[u8]) -> Self {
        Self(Sha256::digest(key).into())
    }

    /// In constant time.
    pub fn is(self, other: Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }

    /// What [`HttpKeys`] are sorted by.
    fn beginning(self) -> u64 {
        let [a, b, c, d, e, f, g, h, ..] = self.0;
        u64::from_be_bytes([a, b, c, d, e, f, g, h])
    }
}

impl fmt::Display for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", Self::SCHEME, hex::encode(self.0))
    }
}

impl fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<KeyHash> for String {
    fn from(hash: KeyHash) -> Self {
        hash.to_string()
    }
}

/// It does not say what was given: that may be the key itself.
const HASH: &str =
    "must be \"sha256:\" and 64 hexadecimal digits, never the key itself: `ingestd key new NAME` prints the line";

impl TryFrom<String> for KeyHash {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let mut bytes = [0; 32];
        let digits = text.strip_prefix(Self::SCHEME).ok_or(HASH)?;
        hex::decode_to_slice(digits, &mut bytes).map_err(|_| HASH)?;
        Ok(Self(bytes))
    }
}

/// When a key ends, as it is written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Expiry {
    text: String,
    pub at: Timestamp,
}

impl fmt::Display for Expiry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl From<Expiry> for String {
    fn from(expiry: Expiry) -> Self {
        expiry.text
    }
}

const EXPIRES: &str = "must be a time by RFC 3339 with its offset, such as \"2027-01-31T00:00:00Z\"";

impl TryFrom<String> for Expiry {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let at = DateTime::parse_from_rfc3339(&text).map_err(|_| EXPIRES)?;
        Ok(Self { text, at: Timestamp(at.timestamp_millis()) })
    }
}

/// All of them, as they are written and as they are looked for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<Arc<HttpKey>>", into = "Vec<Arc<HttpKey>>")]
pub struct HttpKeys {
    written: Vec<Arc<HttpKey>>,
    by_hash: Vec<Arc<HttpKey>>,
    /// Whether one of them has a rate, which nobody else's request is to be asked for.
    has_rates: bool,
    /// Whether one of them has another than that of addresses, be it none.
    have_own_rates: bool,
}

impl From<Vec<Arc<HttpKey>>> for HttpKeys {
    fn from(written: Vec<Arc<HttpKey>>) -> Self {
        let mut by_hash = written.clone();
        by_hash.sort_by_key(|key| key.hash);
        let has_rates = written.iter().any(|key| key.rate.is_some_and(|limit| limit.0.is_some()));
        let have_own_rates = written.iter().any(|key| key.rate.is_some());
        Self { written, by_hash, has_rates, have_own_rates }
    }
}

impl From<HttpKeys> for Vec<Arc<HttpKey>> {
    fn from(keys: HttpKeys) -> Self {
        keys.written
    }
}

impl HttpKeys {
    /// Then nobody has to say who they are.
    pub fn is_empty(&self) -> bool {
        self.written.is_empty()
    }

    pub fn has_rates(&self) -> bool {
        self.has_rates
    }

    pub fn have_own_rates(&self) -> bool {
        self.have_own_rates
    }

    pub fn iter(&self) -> impl Iterator<Item = &HttpKey> {
        self.written.iter().map(|key| &**key)
    }

    /// The key of this hash, however many there are. The search goes by eight bytes, and how long it takes tells something of
    /// the hash of what was sent, which its sender knows, and can steer nowhere; the whole of a hash is compared in constant time.
    pub fn find(&self, hash: KeyHash) -> Option<&Arc<HttpKey>> {
        let from = self.by_hash.partition_point(|key| key.hash.beginning() < hash.beginning());
        let alike = self.by_hash[from..].iter().take_while(|key| key.hash.beginning() == hash.beginning());
        alike.fold(None, |found, key| if key.hash.is(hash) { Some(key) } else { found })
    }

    /// What an operator should know of them, a sentence each: keys that have expired.
    pub fn warnings(&self, now: Timestamp) -> Vec<String> {
        let expired = self.iter().filter_map(|key| Some((&key.name, key.expired(now)?)));
        let warning = |(name, expiry): (&String, &Expiry)| {
            format!(
                "http.auth.keys: {name:?} expired at {expiry}: requests with it are refused; remove it or give its sender a new one"
            )
        };
        expired.map(warning).collect()
    }
}

pub(super) const KEYS: &str = "must be a list of tables: [{ name = \"shop\", hash = \"sha256:…\" }]";
const FIELDS: [&str; 6] = ["name", "hash", "types", "expires", "on_invalid", "rate"];

/// The list as it is given. Rules between the entries are [`broken_rules`].
pub(super) fn read(value: &toml::Value) -> Result<Value, String> {
    read_tables(value, KEYS, read_entry)
}

fn read_entry(entry: &toml::Table) -> Result<Dict, String> {
    let mut dict = Dict::new();
    for (field, value) in entry {
        let value = match field.as_str() {
            "name" | "hash" | "expires" => read_common(field, value)?,
            "types" => types(value).ok_or("types must be a list of strings: [\"login_success\", \"login_failed\"]")?,
            "on_invalid" => {
                let word = value.as_str().filter(|word| OnInvalid::WORDS.contains(word));
                let rule = || format!("on_invalid must be one of {}", OnInvalid::WORDS.join(", "));
                Value::from(word.ok_or_else(rule)?)
            }
            "rate" => rate::read(value).map_err(|rule| format!("rate {rule}"))?,
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
        Some(field) => Err(format!("has no {field}; `ingestd key new NAME` prints the lines")),
        None => Ok(dict),
    }
}

/// A field that each key has, whatever it opens.
pub(super) fn read_common(field: &str, value: &toml::Value) -> Result<Value, String> {
    Ok(match field {
        "name" => Value::from(value.as_str().ok_or("name must be a string (in quotation marks)")?),
        "hash" => {
            let text = value.as_str().ok_or_else(|| format!("hash {HASH}"))?;
            Value::from(String::from(KeyHash::try_from(text.to_owned()).map_err(|rule| format!("hash {rule}"))?))
        }
        _ => {
            // TOML has such times without quotes, too.
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            Value::from(Expiry::try_from(text).map_err(|rule| format!("expires {rule}"))?.text)
        }
    })
}

fn types(value: &toml::Value) -> Option<Value> {
    let types: Option<Vec<&str>> = value.as_array()?.iter().map(toml::Value::as_str).collect();
    types.map(Value::from)
}

/// It stands in each record, and in a metric.
const LONGEST_NAME: usize = 64;
/// As an event's may be.
const LONGEST_TYPE: usize = 128;
/// Each has a series of a metric.
const MOST: usize = 10_000;

/// What a key may be called.
///
/// # Errors
/// What is wrong with it, in words.
pub fn check_name(name: &str) -> Result<(), String> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if name.starts_with(KEY_PREFIX) && name.len() > 32 {
        return Err("a name must not be the key itself: say who sends with it, such as \"shop\"".to_owned());
    }
    if name.is_empty() || name.len() > LONGEST_NAME || !name.chars().all(is_plain) {
        return Err(format!(
            "a name must be 1 to {LONGEST_NAME} of A-Z, a-z, 0-9, \".\", \"_\" and \"-\" (it stands in records and metrics)"
        ));
    }
    Ok(())
}

/// What is wrong with these keys, in words.
pub(super) fn broken_rules(keys: &HttpKeys) -> Vec<String> {
    let (mut rules, mut names, mut hashes) = (Vec::new(), BTreeSet::new(), BTreeSet::new());
    if keys.written.len() > MOST {
        rules.push(format!(
            "there are {} keys, and {MOST} may be, as each has a series of a metric: remove those that nobody sends with",
            keys.written.len()
        ));
    }
    for (index, key) in keys.iter().enumerate() {
        let mut fault = |rule: String| rules.push(format!("entry {index} (from 0): {rule}"));
        if let Err(rule) = check_name(&key.name) {
            fault(rule);
            continue;
        }
        let name = &key.name;
        if !names.insert(name) {
            fault(format!("the name {name:?} is used twice: give each key one of its own"));
        }
        if !hashes.insert(key.hash) {
            fault(format!("{name:?} has the hash of another key: make one for each with `ingestd key new NAME`"));
        }
        let Some(types) = &key.types else { continue };
        if types.is_empty() {
            fault(format!("{name:?}: types must name a type; without types the key may send all"));
        }
        if types.iter().any(|of| of.is_empty() || of.chars().count() > LONGEST_TYPE) {
            fault(format!("{name:?}: each of types must have 1 to {LONGEST_TYPE} characters, as types of events do"));
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

    fn read_text(text: &str) -> Result<HttpKeys, String> {
        let table: toml::Table = format!("value = {text}").parse().unwrap();
        read(&table["value"]).map(|value| value.deserialize().unwrap())
    }

    #[test]
    fn a_key_is_read_as_it_is_written() {
        let (a, b) = (hash("a"), hash("b").to_uppercase().replace("SHA256", "sha256"));
        let read = read_text(&format!(
            r#"[{{ name = "shop", hash = "{a}", types = ["t"], expires = "2027-01-31T00:00:00+01:00", on_invalid = "quarantine" }},
                {{ name = "b.2_-", hash = "{b}", expires = 2027-01-31T00:00:00Z }}]"#
        ))
        .unwrap();
        let keys: Vec<_> = read.iter().collect();
        assert_eq!(
            (keys[0].expires.as_ref().unwrap().at, keys[0].on_invalid),
            (Timestamp(1_801_350_000_000), Some(OnInvalid::Quarantine))
        );
        assert!(keys[0].may_send("t") && !keys[0].may_send("T") && keys[1].may_send("anything"));
        assert_eq!(keys[1].expired(Timestamp(1_801_353_599_999)), None);
        assert_eq!(keys[1].expired(Timestamp(1_801_353_600_000)).unwrap().to_string(), "2027-01-31T00:00:00Z");
        assert_eq!(String::from(keys[1].hash), hash("b"), "in small letters");
        assert_eq!(broken_rules(&read), [""; 0]);
        let again: HttpKeys = serde_json::from_value(serde_json::to_value(&read).unwrap()).unwrap();
        assert_eq!(again, read);
        let warnings = read.warnings(Timestamp(1_801_353_000_000));
        assert!(
            warnings.len() == 1 && warnings[0].contains("\"shop\" expired at 2027-01-31T00:00:00+01:00"),
            "{warnings:?}"
        );
    }

    #[test]
    fn a_key_is_found_by_its_whole_hash_alone() {
        let key = |name: &str, hash: [u8; 32]| {
            let (types, expires, on_invalid, rate) = (None, None, None, None);
            Arc::new(HttpKey { name: name.to_owned(), hash: KeyHash(hash), types, expires, on_invalid, rate })
        };
        let with = |last: u8| {
            let mut hash = [7; 32];
            hash[31] = last;
            hash
        };
        let many: Vec<_> =
            (0..100).map(|index: usize| key(&index.to_string(), KeyHash::of(&index.to_le_bytes()).0)).collect();
        let alike = [key("a", with(1)), key("b", with(2)), key("c", with(3))];
        let keys = HttpKeys::from([many, alike.to_vec()].concat());
        let found = |hash| keys.find(hash).map(|key| key.name.as_str());
        for index in 0..100_usize {
            assert_eq!(found(KeyHash::of(&index.to_le_bytes())), Some(&*index.to_string()));
        }
        assert_eq!([1, 2, 3, 4].map(|last| found(KeyHash(with(last)))), [Some("a"), Some("b"), Some("c"), None]);
        assert_eq!((found(KeyHash([0; 32])), found(KeyHash([255; 32]))), (None, None));
        assert_eq!(HttpKeys::default().find(KeyHash::of(b"")), None);
    }

    #[test]
    fn what_is_wrong_with_a_key_is_said_with_its_place_and_never_with_what_may_be_the_key() {
        let good = hash("a");
        for (entry, words) in [
            ("7".to_owned(), "must be a list of tables"),
            (format!("{{ hash = {good:?} }}"), "entry 0 (from 0): has no name"),
            ("{ name = \"a\" }".to_owned(), "entry 0 (from 0): has no hash; `ingestd key new NAME`"),
            (format!("{{ name = 7, hash = {good:?} }}"), "name must be a string"),
            (
                "{ name = \"a\", hash = \"ingestd_hunter2\" }".to_owned(),
                "hash must be \"sha256:\" and 64 hexadecimal digits",
            ),
            (format!("{{ name = \"a\", hash = \"{}\" }}", &good[..60]), "64 hexadecimal digits, never the key itself"),
            (format!("{{ name = \"a\", hash = \"{good}00\" }}"), "64 hexadecimal digits"),
            (format!("{{ name = \"a\", hash = \"{}\" }}", good.replace("sha256", "md5")), "must be \"sha256:\""),
            ("{ name = \"a\", hash = 7 }".to_owned(), "hash must be"),
            (format!("{{ name = \"a\", hash = {good:?}, type = \"t\" }}"), "type is unknown; did you mean types?"),
            (
                format!("{{ name = \"a\", hash = {good:?}, key = \"ingestd_hunter2\" }}"),
                "key is unknown; a key has name, hash",
            ),
            (
                format!("{{ name = \"a\", hash = {good:?}, secret = 7 }}"),
                "secret is unknown; a key has name, hash, types, expires, on_invalid, rate",
            ),
            (
                format!("{{ name = \"a\", hash = {good:?}, rate = \"fast\" }}"),
                "entry 0 (from 0): rate must be the events of a second",
            ),
            (format!("{{ name = \"a\", hash = {good:?}, types = \"t\" }}"), "types must be a list of strings"),
            (
                format!("{{ name = \"a\", hash = {good:?}, expires = \"tomorrow\" }}"),
                "expires must be a time by RFC 3339",
            ),
            (
                format!("{{ name = \"a\", hash = {good:?}, expires = 2027-01-31 }}"),
                "expires must be a time by RFC 3339",
            ),
            (
                format!("{{ name = \"a\", hash = {good:?}, on_invalid = \"drop\" }}"),
                "on_invalid must be one of reject, quarantine",
            ),
        ] {
            let error = read_text(&format!("[{entry}]")).unwrap_err();
            assert!(error.contains(words) && !error.contains("hunter2"), "{entry}: {error}");
        }
        let rules = |text: &str| broken_rules(&read_text(text).unwrap());
        let (a, b) = (hash("a"), hash("b"));
        for (text, words) in [
            (format!("[{{ name = \"\", hash = {a:?} }}]"), "1 to 64 of A-Z"),
            (format!("[{{ name = \"{}\", hash = {a:?} }}]", "x".repeat(65)), "1 to 64 of A-Z"),
            (format!("[{{ name = \"a b\", hash = {a:?} }}]"), "1 to 64 of A-Z"),
            (format!("[{{ name = \"{KEY_PREFIX}{}\", hash = {a:?} }}]", "h".repeat(43)), "must not be the key itself"),
            (
                format!("[{{ name = \"n\", hash = {a:?} }}, {{ name = \"n\", hash = {b:?} }}]"),
                "entry 1 (from 0): the name \"n\" is used twice",
            ),
            (
                format!("[{{ name = \"n\", hash = {a:?} }}, {{ name = \"m\", hash = {a:?} }}]"),
                "entry 1 (from 0): \"m\" has the hash of another key",
            ),
            (format!("[{{ name = \"n\", hash = {a:?}, types = [] }}]"), "types must name a type"),
            (format!("[{{ name = \"n\", hash = {a:?}, types = [\"\"] }}]"), "1 to 128 characters"),
        ] {
            let rules = rules(&text);
            assert!(rules.len() == 1 && rules[0].contains(words) && !rules[0].contains("hhh"), "{text}: {rules:?}");
        }
    }
}
