//! `[[http.source]]`: a path on which bodies of another shape than ours arrive, and what stands where in them.

use std::{borrow::Cow, fmt};

use figment::value::{Dict, Value};
use percent_encoding::percent_decode_str;
use serde::{Deserialize, Serialize};

use super::{Signature, keys::nearest, signature, tables::read_tables};

/// One of the `[[http.source]]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HttpSource {
    /// As it stands in a request, without a query.
    pub path: String,
    /// Where the array of events is in a body; without it a body is one event.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub records: Option<Pointer>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub r#type: Option<Lookup>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<Lookup>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time: Option<Lookup>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client: Option<Lookup>,
    /// How its sender signs; then it needs no key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signature: Option<Signature>,
    /// Where in the body the sender's key is, where its head has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<Pointer>,
    /// The body of each success, in the place of ours.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answer: Option<String>,
}

/// Where a source has something from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Lookup {
    /// From each event.
    At(Pointer),
    /// It is always this.
    Fixed { fixed: String },
}

/// A JSON pointer (RFC 6901).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Pointer {
    text: String,
    names: Vec<String>,
}

impl Pointer {
    /// The names and indexes on the way, unescaped; none for the whole.
    pub fn names(&self) -> &[String] {
        &self.names
    }
}

impl fmt::Display for Pointer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl From<Pointer> for String {
    fn from(pointer: Pointer) -> Self {
        pointer.text
    }
}

const POINTER: &str = "must be a JSON pointer (RFC 6901): \"/batch\", \"/properties/id\", \"/items/0\", or \"\" for the \
                       whole, with ~1 for a / in a name and ~0 for a ~";

impl TryFrom<String> for Pointer {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let Some(below) = text.strip_prefix('/') else {
            return if text.is_empty() { Ok(Self { text, names: Vec::new() }) } else { Err(POINTER) };
        };
        // A tilde is the beginning of an escape, always.
        let is_escaped = |name: &str| name.split('~').skip(1).all(|rest| rest.starts_with(['0', '1']));
        if !below.split('/').all(is_escaped) || below.contains(char::is_control) {
            return Err(POINTER);
        }
        let names = below.split('/').map(|name| name.replace("~1", "/").replace("~0", "~")).collect();
        Ok(Self { text, names })
    }
}

pub(super) const SOURCES: &str =
    "must be a list of tables: [{ path = \"/v1/batch\", records = \"/batch\", type = \"/type\" }]";
const KEYS: [&str; 9] = ["path", "records", "type", "id", "time", "client", "signature", "key", "answer"];
const LOOKUP: &str = "must be a JSON pointer into an event, such as \"/type\", or { fixed = \"alert\" }";

/// The list as it is given. Rules between the entries and other keys are [`broken_rules`].
pub(super) fn read(value: &toml::Value) -> Result<Value, String> {
    read_tables(value, SOURCES, read_entry)
}

fn read_entry(entry: &toml::Table) -> Result<Dict, String> {
    let mut dict = Dict::new();
    for (key, value) in entry {
        let value = match key.as_str() {
            "path" | "answer" => {
                Value::from(value.as_str().ok_or(format!("{key} must be a string (in quotation marks)"))?)
            }
            "signature" => signature::read(value)?,
            "records" | "key" => pointer(value).map_err(|rule| format!("{key} {rule}"))?,
            "type" | "id" | "time" | "client" => lookup(value).map_err(|rule| format!("{key} {rule}"))?,
            _ => {
                let meant = match nearest(key, KEYS.into_iter()) {
                    Some(key) => format!("did you mean {key}?"),
                    None => format!("a source has {}", KEYS.join(", ")),
                };
                return Err(format!("{key} is unknown; {meant}"));
            }
        };
        dict.insert(key.clone(), value);
    }
    if dict.contains_key("path") {
        Ok(dict)
    } else {
        Err("has no path: the one that its sender posts to, such as \"/v1/batch\"".to_owned())
    }
}

fn pointer(value: &toml::Value) -> Result<Value, String> {
    let text = value.as_str().ok_or(POINTER)?;
    Pointer::try_from(text.to_owned())?;
    Ok(Value::from(text))
}

fn lookup(value: &toml::Value) -> Result<Value, String> {
    let toml::Value::Table(table) = value else {
        return if value.is_str() { pointer(value) } else { Err(LOOKUP.to_owned()) };
    };
    match (table.get("fixed").and_then(toml::Value::as_str), table.len()) {
        (Some(fixed), 1) => Ok(Value::from(Dict::from([("fixed".to_owned(), Value::from(fixed))]))),
        _ => Err(LOOKUP.to_owned()),
    }
}

/// Characters of a type, which is the shortest of all.
const LONGEST_FIXED: usize = 128;

/// Paths of the ingest listener that are the daemon's own.
const OUR_PATHS: [&str; 4] = ["/v1/events", "/v1/logs", "/health", "/openapi.json"];

/// What is wrong with these sources, in words.
pub(super) fn broken_rules(sources: &[HttpSource]) -> Vec<String> {
    let mut rules = Vec::new();
    for (index, source) in sources.iter().enumerate() {
        let path = &source.path;
        let mut fault = |rule: String| rules.push(format!("{path:?}: {rule}"));
        let as_sent = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'?' | b'#' | b'{' | b'}' | b'"' | b'\\');
        if !path.starts_with('/') || !path.bytes().all(as_sent) {
            let rule = "a path must begin with / and be as it stands in a request: ASCII, other characters \
                        percent-encoded, without a query, no placeholders in braces";
            fault(rule.to_owned());
        } else if OUR_PATHS.contains(&meant(path).as_str()) {
            fault("the path is the daemon's own, or as good as that: take another".to_owned());
        } else if sources[..index].iter().any(|other| decoded(&other.path) == decoded(path)) {
            fault("the path is used twice: one source has all that arrives there".to_owned());
        }
        if source.key.as_ref().is_some_and(|key| key.names().is_empty()) {
            fault("key must lead to a part of the body, such as \"/api_key\": the whole of it is no key".to_owned());
        }
        if source.key.is_some() && source.signature.is_some() {
            fault("has a signature, which needs no key: leave out key".to_owned());
        }
        for (key, lookup) in
            [("type", &source.r#type), ("id", &source.id), ("time", &source.time), ("client", &source.client)]
        {
            let Some(Lookup::Fixed { fixed }) = lookup else { continue };
            if fixed.is_empty() || fixed.chars().count() > LONGEST_FIXED || fixed.contains(char::is_control) {
                fault(format!("{key} is {fixed:?}: it must have 1 to {LONGEST_FIXED} characters, none for control"));
            }
        }
    }
    rules
}

fn decoded(path: &str) -> Cow<'_, [u8]> {
    percent_decode_str(path).into()
}

/// The path that proxies and people may take this one for: decoded, in small letters, without empty parts, `.` and `..`.
fn meant(path: &str) -> String {
    let decoded = String::from_utf8_lossy(&decoded(path)).to_ascii_lowercase();
    let mut parts = Vec::new();
    // What follows a semicolon are a part's parameters (RFC 3986, 3.3).
    for part in decoded.split('/').map(|part| part.split([';', '?', '#']).next().unwrap_or_default()) {
        match part {
            "" | "." => {}
            ".." => _ = parts.pop(),
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Option<Vec<String>> {
        Pointer::try_from(text.to_owned()).ok().map(|pointer| pointer.names)
    }

    #[test]
    fn pointers_are_those_of_rfc_6901() {
        for (text, expected) in [
            ("", &[][..]),
            ("/", &[""]),
            ("/foo/0", &["foo", "0"]),
            ("/a~1b", &["a/b"]),
            ("/m~0n", &["m~n"]),
            ("/~01", &["~1"]),
            ("/ /k\"l", &[" ", "k\"l"]),
            ("/@timestamp", &["@timestamp"]),
        ] {
            assert_eq!(names(text).unwrap(), expected, "{text}");
        }
        for bad in ["foo", "#/foo", "/~", "/a~2", "/a~", "$.a", "/a\n"] {
            assert_eq!(names(bad), None, "{bad}");
        }
    }

    fn read_text(text: &str) -> Result<Vec<HttpSource>, String> {
        let table: toml::Table = format!("value = {text}").parse().unwrap();
        read(&table["value"]).map(|value| value.deserialize().unwrap())
    }

    #[test]
    fn a_source_is_read_as_it_is_written() {
        let read = read_text(
            r#"[{ path = "/v1/batch", records = "/batch", type = "/type", id = "/messageId" },
                { path = "/hook", type = { fixed = "alert" }, answer = "ok" }]"#,
        )
        .unwrap();
        let pointer = |text: &str| Pointer::try_from(text.to_owned()).unwrap();
        assert_eq!((read[0].records.clone(), read[1].records.clone()), (Some(pointer("/batch")), None));
        assert_eq!(read[0].id, Some(Lookup::At(pointer("/messageId"))));
        assert_eq!(read[1].r#type, Some(Lookup::Fixed { fixed: "alert".to_owned() }));
        assert_eq!(read[1].answer.as_deref(), Some("ok"));
        let again: Vec<HttpSource> = serde_json::from_value(serde_json::to_value(&read).unwrap()).unwrap();
        assert_eq!(again, read);
    }

    #[test]
    fn what_is_wrong_with_a_source_is_said_with_its_place_and_what_was_probably_meant() {
        for (text, words) in [
            ("7", "list of tables"),
            ("[7]", "list of tables"),
            ("[{ type = \"/t\" }]", "entry 0 (from 0): has no path"),
            (
                "[{ path = \"/a\" }, { path = \"/b\", tpye = \"/t\" }]",
                "entry 1 (from 0): tpye is unknown; did you mean type?",
            ),
            ("[{ path = \"/a\", token = \"/t\" }]", "a source has path, records, type"),
            ("[{ path = \"/a\", key = \"t\" }]", "key must be a JSON pointer"),
            ("[{ path = \"/a\", signature = \"github\" }]", "signature must be { scheme = "),
            (
                "[{ path = \"/a\", signature = { scheme = \"sha1\" } }]",
                "signature.scheme must be one of standard-webhooks, github, stripe",
            ),
            (
                "[{ path = \"/a\", signature = { scheme = \"github\" } }]",
                "signature has no secret_file: signature must be",
            ),
            (
                "[{ path = \"/a\", signature = { secret_file = 7 } }]",
                "signature.secret_file must be the path of a file",
            ),
            (
                "[{ path = \"/a\", signature = { secret = \"hunter2\" } }]",
                "signature.secret is unknown: the secret stands in a file",
            ),
            (
                "[{ path = \"/a\", signature = { tolerance = 5 } }]",
                "signature.tolerance is unknown; a signature has scheme",
            ),
            ("[{ path = 7 }]", "path must be a string"),
            ("[{ path = \"/a\", records = \"batch\" }]", "records must be a JSON pointer"),
            ("[{ path = \"/a\", records = { fixed = \"x\" } }]", "records must be a JSON pointer"),
            ("[{ path = \"/a\", type = \"type\" }]", "type must be a JSON pointer (RFC 6901)"),
            ("[{ path = \"/a\", type = 7 }]", "or { fixed = "),
            ("[{ path = \"/a\", type = { fixd = \"x\" } }]", "or { fixed = "),
            ("[{ path = \"/a\", type = { fixed = 7 } }]", "or { fixed = "),
        ] {
            let error = read_text(text).unwrap_err();
            assert!(error.contains(words), "{text}: {error}");
        }
    }

    #[test]
    fn paths_are_their_own_and_fixed_values_can_be_what_they_stand_for() {
        let rules = |text: &str| broken_rules(&read_text(text).unwrap());
        assert_eq!(
            rules(r#"[{ path = "/a" }, { path = "/a/" }, { path = "/%C3%A9", type = { fixed = "a b" } }]"#),
            [""; 0]
        );
        for path in ["", "a", "/a?b=1", "/a#b", "/{id}", "/é", "/a b"] {
            let rules = rules(&format!("[{{ path = {path:?} }}]"));
            assert!(rules.len() == 1 && rules[0].contains("must begin with /"), "{rules:?}");
        }
        for path in OUR_PATHS {
            assert!(rules(&format!("[{{ path = {path:?} }}]"))[0].contains("the daemon's own"), "{path}");
        }
        for path in [
            "/v1/events/",
            "/V1/Events",
            "/v1/%65vents",
            "//v1//logs",
            "/v1/./logs",
            "/x/../health",
            "/Health",
            "/openapi%2ejson",
            "/v1%2Fevents",
            "/health;x",
            "/v1/events%3fx",
        ] {
            let rules = rules(&format!("[{{ path = {path:?} }}]"));
            assert!(rules.len() == 1 && rules[0].contains("the daemon's own"), "{path}: {rules:?}");
        }
        assert_eq!(
            rules(r#"[{ path = "/v1/event" }, { path = "/v1" }, { path = "/healthz" }, { path = "/v1/events/x" }]"#),
            [""; 0]
        );
        assert!(rules(r#"[{ path = "/a" }, { path = "/a" }]"#)[0].contains("used twice"));
        assert!(rules(r#"[{ path = "/%C3%A9" }, { path = "/%c3%a9" }]"#)[0].contains("used twice"));
        assert!(rules(r#"[{ path = "/a", key = "" }]"#)[0].contains("key must lead to a part of the body"));
        let both = r#"[{ path = "/a", key = "/k", signature = { scheme = "github", secret_file = "/s" } }]"#;
        assert!(rules(both)[0].contains("leave out key"));
        for fixed in ["", "a\\n", &"x".repeat(LONGEST_FIXED + 1)] {
            let rules = rules(&format!("[{{ path = \"/a\", type = {{ fixed = \"{fixed}\" }} }}]"));
            assert!(rules.len() == 1 && rules[0].contains("1 to 128 characters"), "{rules:?}");
        }
    }
}
