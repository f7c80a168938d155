//! `[[event.types]]`: which types of events there are, and the JSON Schema that each has to match.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use figment::value::{Dict, Value};
use serde::{Deserialize, Serialize};

use super::{keys::nearest, tables::read_tables};
use crate::{names::words, schema::Schema};

words! {
    /// What the ingestor does with an event whose type is none of `[[event.types]]`.
    UnknownType {
        /// It is taken, whatever it is.
        Accept = "accept",
        /// It is refused as `unknown_type`.
        Reject = "reject",
    }
}

/// One of the `[[event.types]]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EventType {
    pub name: String,
    /// The file of its schema, as it is written; without one its events may be anything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schema: Option<PathBuf>,
}

/// All of them, as they are written, and what stands in their files ([`EventTypes::read`]).
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(from = "Vec<EventType>", into = "Vec<EventType>")]
pub struct EventTypes {
    written: Vec<EventType>,
    by_name: Arc<BTreeMap<String, Option<Arc<Schema>>>>,
}

impl From<Vec<EventType>> for EventTypes {
    fn from(written: Vec<EventType>) -> Self {
        Self { written, by_name: Arc::default() }
    }
}

impl From<EventTypes> for Vec<EventType> {
    fn from(types: EventTypes) -> Self {
        types.written
    }
}

impl PartialEq for EventTypes {
    fn eq(&self, other: &Self) -> bool {
        self.written == other.written && self.has_same_files(other)
    }
}

/// What is known of the type of an event.
#[derive(Debug, Clone, Copy)]
pub enum Known<'t> {
    /// It has to match this.
    Schema(&'t Schema),
    /// It may be anything.
    Anything,
    /// It is none of them.
    No,
}

impl EventTypes {
    pub fn is_empty(&self) -> bool {
        self.written.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = &EventType> {
        self.written.iter()
    }

    /// Whether there are events that have to match a schema.
    pub fn has_schemas(&self) -> bool {
        self.written.iter().any(|of| of.schema.is_some())
    }

    pub fn find(&self, name: &str) -> Known<'_> {
        match self.by_name.get(name) {
            Some(Some(schema)) => Known::Schema(schema),
            Some(None) => Known::Anything,
            None => Known::No,
        }
    }

    /// Reads and compiles the schemas. Paths are relative to the folder.
    ///
    /// # Errors
    /// What is wrong with them, a sentence each.
    pub(super) fn read(&mut self, folder: &Path) -> Vec<String> {
        let mut rules = Vec::new();
        let mut by_name = BTreeMap::new();
        for EventType { name, schema } in &self.written {
            // An empty path is what `broken_rules` says.
            let schema = schema.as_ref().filter(|path| !path.as_os_str().is_empty());
            let compiled = schema.map(|path| Schema::compile(&folder.join(path)).map(Arc::new)).transpose();
            match compiled {
                Ok(schema) => _ = by_name.insert(name.clone(), schema),
                Err(unusable) => rules.push(format!("{name:?}: {unusable}")),
            }
        }
        self.by_name = Arc::new(by_name);
        rules
    }

    /// Whether the same stands in the files of these and those, as far as both have one of a name.
    pub(super) fn has_same_files(&self, other: &Self) -> bool {
        self.by_name.iter().all(|(name, schema)| match (schema, other.by_name.get(name)) {
            (Some(schema), Some(Some(other))) => schema.is_same(other),
            _ => true,
        })
    }
}

/// The files that are read for a type, as far as they can be.
pub(super) fn files(path: &Path) -> Vec<PathBuf> {
    let mut files = match Schema::compile(path) {
        Ok(schema) => schema.files().to_vec(),
        Err(unusable) => unusable.files,
    };
    if !files.iter().any(|file| file == path) {
        files.push(path.to_owned());
    }
    files
}

pub(super) const TYPES: &str =
    "must be a list of tables: [{ name = \"login_success\", schema = \"schemas/login_success.json\" }]";
const FIELDS: [&str; 2] = ["name", "schema"];

/// The list as it is given. Rules between the entries are [`broken_rules`].
pub(super) fn read(value: &toml::Value) -> Result<Value, String> {
    read_tables(value, TYPES, read_entry)
}

fn read_entry(entry: &toml::Table) -> Result<Dict, String> {
    let mut dict = Dict::new();
    for (field, value) in entry {
        if !FIELDS.contains(&field.as_str()) {
            return Err(match nearest(field, FIELDS.into_iter()) {
                Some(meant) => format!("{field} is unknown; did you mean {meant}?"),
                None => format!("{field} is unknown; a type has {}", FIELDS.join(", ")),
            });
        }
        let text = value.as_str().ok_or_else(|| match field.as_str() {
            "schema" => "schema must be the path of a file with a JSON Schema".to_owned(),
            _ => format!("{field} must be a string (in quotation marks)"),
        })?;
        dict.insert(field.clone(), Value::from(text));
    }
    if dict.contains_key("name") { Ok(dict) } else { Err("has no name: the type as events write it".to_owned()) }
}

/// As an event's may be.
const LONGEST_NAME: usize = 128;
/// Each has a schema in memory.
const MOST: usize = 1000;

/// What is wrong with these types, in words.
pub(super) fn broken_rules(types: &EventTypes, unknown: UnknownType) -> Vec<(&'static str, String)> {
    let mut rules = Vec::new();
    let mut fault = |rule: String| rules.push(("event.types", rule));
    if types.written.len() > MOST {
        fault(format!("there are {} types, and {MOST} may be: remove those that nobody sends", types.written.len()));
    }
    let mut names = std::collections::BTreeSet::new();
    for EventType { name, schema } in &types.written {
        if name.is_empty() || name.chars().count() > LONGEST_NAME {
            fault(format!("{name:?}: a name must have 1 to {LONGEST_NAME} characters, as types of events do"));
        } else if !names.insert(name) {
            fault(format!("{name:?} is there twice: a type has one schema"));
        }
        if schema.as_ref().is_some_and(|path| path.as_os_str().is_empty()) {
            fault(format!("{name:?}: schema must be the path of a file; without one its events may be anything"));
        }
    }
    if unknown == UnknownType::Reject && types.is_empty() {
        let rule = "needs a type in [[event.types]]: without one all events would be refused";
        rules.push(("event.unknown_type", rule.to_owned()));
    }
    rules
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(text: &str) -> Result<EventTypes, String> {
        let table: toml::Table = format!("value = {text}").parse().unwrap();
        read(&table["value"]).map(|value| value.deserialize().unwrap())
    }

    #[test]
    fn a_type_is_read_as_it_is_written_and_found_by_its_name() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("login.json"), r#"{"required": ["user"]}"#).unwrap();
        let mut types =
            read_text(r#"[{ name = "login", schema = "login.json" }, { name = "any" }, { name = "LOGIN" }]"#).unwrap();
        assert!(types.has_schemas() && broken_rules(&types, UnknownType::Reject).is_empty());
        assert_eq!(types.read(folder.path()), [""; 0]);
        assert!(matches!(types.find("login"), Known::Schema(schema) if schema.check(b"{}").is_err()));
        assert!(matches!((types.find("any"), types.find("Login")), (Known::Anything, Known::No)));
        let again: EventTypes = serde_json::from_value(serde_json::to_value(&types).unwrap()).unwrap();
        assert_eq!(again.iter().collect::<Vec<_>>(), types.iter().collect::<Vec<_>>());

        let mut changed = again.clone();
        std::fs::write(folder.path().join("login.json"), r#"{"required": ["user_id"]}"#).unwrap();
        assert_eq!(changed.read(folder.path()), [""; 0]);
        assert!(!types.has_same_files(&changed) && types != changed && types == types.clone());
        std::fs::write(folder.path().join("login.json"), "{").unwrap();
        let rules = changed.read(folder.path());
        assert!(
            rules.len() == 1 && rules[0].starts_with("\"login\": ") && rules[0].contains("is no JSON"),
            "{rules:?}"
        );
        assert_eq!(files(&folder.path().join("login.json")), [folder.path().join("login.json")]);
    }

    #[test]
    fn what_is_wrong_with_a_type_is_said_with_its_place() {
        for (text, words) in [
            ("7", "must be a list of tables"),
            ("[7]", "must be a list of tables"),
            (r#"[{ schema = "a" }]"#, "entry 0 (from 0): has no name: the type as events write it"),
            (r#"[{ name = 7 }]"#, "name must be a string"),
            (r#"[{ name = "a", schema = {} }]"#, "schema must be the path of a file with a JSON Schema"),
            (r#"[{ name = "a", shema = "b" }]"#, "shema is unknown; did you mean schema?"),
            (r#"[{ name = "a", required = [] }]"#, "required is unknown; a type has name, schema"),
        ] {
            let error = read_text(text).unwrap_err();
            assert!(error.contains(words), "{text}: {error}");
        }
        let long = format!("[{{ name = \"{}\" }}]", "x".repeat(129));
        for (text, unknown, key, words) in [
            (r#"[{ name = "" }]"#, UnknownType::Accept, "event.types", "1 to 128 characters"),
            (&*long, UnknownType::Accept, "event.types", "1 to 128 characters"),
            (r#"[{ name = "a" }, { name = "a" }]"#, UnknownType::Accept, "event.types", "\"a\" is there twice"),
            (r#"[{ name = "a", schema = "" }]"#, UnknownType::Accept, "event.types", "\"a\": schema must be the path"),
            ("[]", UnknownType::Reject, "event.unknown_type", "needs a type in [[event.types]]"),
        ] {
            let rules = broken_rules(&read_text(text).unwrap(), unknown);
            assert!(rules.len() == 1 && rules[0].0 == key && rules[0].1.contains(words), "{text}: {rules:?}");
        }
    }
}
