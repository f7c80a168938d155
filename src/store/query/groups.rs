//! The groups of a query's buckets, each made once of its JSON text: whether it is meant, what is left of it when it is cut to
//! the fields that are asked for, its place among others, and how it is written.

use std::{cmp::Ordering, sync::Arc};

use hashbrown::HashMap;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use super::{Condition, rows::Columns};
use crate::{event, measure, store::group};

/// What names a group within a step. One with a long text goes by its hash, so that a cursor fits into a URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GroupName {
    Text(String),
    /// SHA-256, in hex.
    Hash(String),
}

impl GroupName {
    const LONGEST: usize = 1024;

    fn of(text: &str) -> Self {
        if text.len() <= Self::LONGEST { Self::Text(text.to_owned()) } else { Self::Hash(hash(text)) }
    }
}

fn hash(text: &str) -> String {
    hex::encode(Sha256::digest(text.as_bytes()))
}

/// A group of an answer.
#[derive(Debug)]
pub struct Group {
    /// Its values as a JSON array.
    text: Box<str>,
    values: Box<[Value]>,
    /// As the answer has it.
    pub written: Vec<u8>,
}

impl Group {
    fn new(text: &str, columns: &Columns) -> Self {
        let raw = values_of(text);
        let shown: Vec<_> = raw.iter().map(|raw| group::value(raw)).collect();
        Self {
            text: text.into(),
            values: raw.iter().map(|raw| Value::of(raw)).collect(),
            written: columns.group(&shown),
        }
    }

    pub fn text(&self) -> &str {
        &self.text
    }

    pub fn name(&self) -> GroupName {
        GroupName::of(&self.text)
    }

    pub fn is_called(&self, name: &GroupName) -> bool {
        match name {
            GroupName::Text(text) => *self.text == **text,
            GroupName::Hash(known) => self.text.len() > GroupName::LONGEST && hash(&self.text) == *known,
        }
    }

    /// About the memory that it takes.
    fn size(&self) -> usize {
        // The text stands up to three times in the values and in what is written.
        256 + 3 * self.text.len() + self.written.len() + self.values.len() * size_of::<Value>()
    }
}

/// The place of a group that has no row here.
pub fn place_of(text: &str) -> Group {
    let values = values_of(text).iter().map(|raw| Value::of(raw)).collect();
    Group { text: text.into(), values, written: Vec::new() }
}

impl PartialEq for Group {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Group {}

impl PartialOrd for Group {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Group {
    /// Field by field: null, booleans, numbers by their size, then texts. The text decides between values that are written
    /// differently.
    fn cmp(&self, other: &Self) -> Ordering {
        self.values.cmp(&other.values).then_with(|| self.text.cmp(&other.text))
    }
}

/// A value among others. Numbers are equal that are written differently.
#[derive(Debug)]
enum Value {
    Null,
    Bool(bool),
    Number(Box<str>),
    Text(Box<str>),
}

impl Value {
    fn of(json: &str) -> Self {
        match json.as_bytes().first() {
            Some(b'n') | None => Self::Null,
            Some(b't') => Self::Bool(true),
            Some(b'f') => Self::Bool(false),
            Some(b'-' | b'0'..=b'9') => Self::Number(json.into()),
            Some(_) => Self::Text(characters(json).into()),
        }
    }

    fn kind(&self) -> u8 {
        match self {
            Self::Null => 0,
            Self::Bool(_) => 1,
            Self::Number(_) => 2,
            Self::Text(_) => 3,
        }
    }
}

impl PartialEq for Value {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Value {}

impl PartialOrd for Value {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Value {
    fn cmp(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Bool(a), Self::Bool(b)) => a.cmp(b),
            (Self::Number(a), Self::Number(b)) => measure::compare(a, b),
            (Self::Text(a), Self::Text(b)) => a.cmp(b),
            (a, b) => a.kind().cmp(&b.kind()),
        }
    }
}

/// The JSON texts of a group's values.
fn values_of(text: &str) -> Vec<&str> {
    let raw: Vec<&RawValue> = serde_json::from_str(text).unwrap_or_default();
    raw.into_iter().map(RawValue::get).collect()
}

/// A string's characters, and any other value's JSON text; also a string's that is no Unicode.
fn characters(json: &str) -> String {
    match json.starts_with('"').then(|| event::unescape(json)) {
        Some(Ok(text)) => text.into_owned(),
        _ => json.to_owned(),
    }
}

/// Whether it is one of these, as it was written or as it is shown (1.50 is shown as 1.5).
fn is_one_of(json: &str, values: &[String]) -> bool {
    let is_number = matches!(json.as_bytes().first(), Some(b'-' | b'0'..=b'9'));
    values.contains(&characters(json)) || is_number && values.contains(&group::value(json).to_string())
}

/// Those that were met.
pub struct Groups {
    /// How many fields the aggregate has.
    fields: usize,
    /// Those that are asked for.
    kept: Vec<usize>,
    conditions: Vec<Condition>,
    columns: Arc<Columns>,
    /// By the text of a bucket: which of `all` it belongs to, if it is meant.
    by_text: HashMap<Box<str>, Option<usize>>,
    /// By the text after the cut, where there is one.
    by_cut: HashMap<Box<str>, usize>,
    all: Vec<Arc<Group>>,
    bytes: usize,
    /// What those of `by_text` take that are not meant.
    unmeant: usize,
}

impl Groups {
    /// Groups that are not meant are remembered up to here: what is not asked for must not cost what an answer may.
    const UNMEANT: usize = 8 << 20;

    pub fn new(fields: usize, kept: Vec<usize>, conditions: Vec<Condition>, columns: Arc<Columns>) -> Self {
        let (by_text, by_cut, all) = (HashMap::new(), HashMap::new(), Vec::new());
        Self { fields, kept, conditions, columns, by_text, by_cut, all, bytes: 0, unmeant: 0 }
    }

    /// Which group a bucket's belongs to; `None` where it is not meant.
    pub fn find(&mut self, text: &str) -> Option<usize> {
        if let Some(known) = self.by_text.get(text) {
            return *known;
        }
        let found = self.add(text);
        let size = 64 + text.len();
        if found.is_none() && self.unmeant + size > Self::UNMEANT {
            self.by_text.retain(|_, found| found.is_some());
            self.bytes -= std::mem::take(&mut self.unmeant);
        }
        self.unmeant += if found.is_none() { size } else { 0 };
        self.bytes += size;
        self.by_text.insert(text.into(), found);
        found
    }

    fn add(&mut self, text: &str) -> Option<usize> {
        let is_whole = self.kept.iter().copied().eq(0..self.fields);
        if is_whole && self.conditions.is_empty() {
            return Some(self.push(text));
        }
        let values = values_of(text);
        let value = |field: usize| values.get(field).copied().unwrap_or("null");
        let is_met = |condition: &Condition| is_one_of(value(condition.field), &condition.values);
        if !self.conditions.iter().all(is_met) {
            return None;
        }
        if is_whole {
            return Some(self.push(text));
        }
        let kept: Vec<_> = self.kept.iter().map(|field| value(*field)).collect();
        let cut = format!("[{}]", kept.join(","));
        if let Some(known) = self.by_cut.get(&*cut) {
            return Some(*known);
        }
        let found = self.push(&cut);
        self.bytes += 64 + cut.len();
        self.by_cut.insert(cut.into(), found);
        Some(found)
    }

    fn push(&mut self, text: &str) -> usize {
        let group = Group::new(text, &self.columns);
        self.bytes += group.size();
        self.all.push(Arc::new(group));
        self.all.len() - 1
    }

    pub fn get(&self, found: usize) -> &Arc<Group> {
        &self.all[found]
    }

    /// About the memory that they take.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Forgets them: those that come again are made again.
    pub fn clear(&mut self) {
        self.by_text.clear();
        self.by_cut.clear();
        self.all.clear();
        self.bytes = 0;
        self.unmeant = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_stand_by_their_values() {
        let ascending = [
            "[null,1]",
            "[false,1]",
            "[true,1]",
            "[-1e400,1]",
            "[9,1]",
            "[9,2]",
            "[10,1]",
            // By its text.
            "[1e1,1]",
            "[10,\"1\"]",
            "[123456789012345678901,1]",
            "[\"\",1]",
            // As its text.
            "[[1],1]",
            "[\"a\",null]",
            "[\"a\",{\"x\": 1}]",
            "[\"a!\",1]",
        ];
        let groups: Vec<_> = ascending.iter().map(|text| place_of(text)).collect();
        for pair in groups.windows(2) {
            assert!(pair[0] < pair[1], "{} {}", pair[0].text, pair[1].text);
        }
        assert_ne!(place_of("[1e1]"), place_of("[10]"));
    }

    fn groups(fields: usize, conditions: Vec<Condition>) -> Groups {
        let columns = Columns::new(super::super::Format::Json, vec!["a".to_owned(); fields], &measure::Plan::default());
        Groups::new(fields, (0..fields).collect(), conditions, Arc::new(columns))
    }

    #[test]
    fn what_is_not_meant_takes_no_room_from_what_is() {
        let mut groups = groups(1, vec![Condition { field: 0, values: vec!["meant".to_owned()] }]);
        assert_eq!(groups.find("[\"meant\"]"), Some(0));
        for number in 0..3000 {
            let other = format!("[\"{number}{}\"]", "x".repeat(10_000));
            assert_eq!(groups.find(&other), None);
            assert!(groups.bytes() <= Groups::UNMEANT + 10_000, "{}", groups.bytes());
        }
        assert_eq!(groups.find("[\"meant\"]"), Some(0));
        groups.clear();
        assert_eq!((groups.bytes(), groups.unmeant), (0, 0));
    }

    #[test]
    fn a_value_is_meant_by_what_was_written_and_by_what_is_shown() {
        for (json, met, unmet) in [
            ("1.50", &["1.50", "1.5"][..], &["1.500", "15"][..]),
            ("1e2", &["1e2", "100.0"], &["100"]),
            ("0.10000000000000000001", &["0.10000000000000000001"], &["0.1"]),
            ("\"1.50\"", &["1.50"], &["1.5", "\"1.50\""]),
            ("null", &["null"], &[""]),
        ] {
            for value in met {
                assert!(is_one_of(json, &[(*value).to_owned()]), "{json} {value}");
            }
            for value in unmet {
                assert!(!is_one_of(json, &[(*value).to_owned()]), "{json} {value}");
            }
        }
    }

    #[test]
    fn a_long_group_goes_by_its_hash() {
        let long = format!("[\"{}\"]", "x".repeat(2000));
        for text in ["[\"a\"]", &long] {
            let group = place_of(text);
            assert!(group.is_called(&group.name()) && !place_of("[1]").is_called(&group.name()));
        }
        assert!(matches!(GroupName::of(&long), GroupName::Hash(hash) if hash.len() == 64));
    }
}
