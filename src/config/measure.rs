//! `measures` of an `[[aggregate]]`.

use std::fmt;

use figment::value::{Dict, Value};
use serde::{Deserialize, Serialize};

/// What is measured of the events of a bucket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub enum Measure {
    /// How many they are; every row has it.
    Count,
    Of(MeasureOf),
}

/// A measure of a field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MeasureOf {
    pub function: Function,
    pub field: String,
    /// In answers, in the place of `sum(/amount)`.
    pub name: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Function {
    Sum,
    Min,
    Max,
    Avg,
    /// How many different values there are.
    Unique,
    /// So many of the most frequent values.
    Top(u32),
}

impl Function {
    pub fn name(self) -> &'static str {
        match self {
            Self::Sum => "sum",
            Self::Min => "min",
            Self::Max => "max",
            Self::Avg => "avg",
            Self::Unique => "unique",
            Self::Top(_) => "top",
        }
    }
}

impl Measure {
    /// Whose values are measured.
    pub fn field(&self) -> Option<&str> {
        match self {
            Self::Count => None,
            Self::Of(of) => Some(&of.field),
        }
    }

    /// What it measures, whatever it is called: measures with the same are one.
    pub fn identity(&self) -> String {
        match self {
            Self::Of(MeasureOf { function: Function::Top(k), field, .. }) => format!("top({field}) {k:03}"),
            other => other.unnamed().to_string(),
        }
    }

    /// The same, by the name that it has without another.
    pub fn unnamed(&self) -> Self {
        match self.clone() {
            Self::Count => Self::Count,
            Self::Of(of) => Self::Of(MeasureOf { name: None, ..of }),
        }
    }
}

/// Its name in answers.
impl fmt::Display for Measure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count => f.write_str(COUNT),
            Self::Of(of) => of.fmt(f),
        }
    }
}

impl fmt::Display for MeasureOf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => f.write_str(name),
            None => write!(f, "{}({})", self.function.name(), self.field),
        }
    }
}

pub(super) fn only_count() -> Vec<Measure> {
    vec![Measure::Count]
}

pub(super) fn is_only_count(measures: &[Measure]) -> bool {
    measures == [Measure::Count]
}

const COUNT: &str = "count";
/// What stands beside the measures.
const INEXACT: &str = "inexact";
const DEFAULT_K: u32 = 10;
const MOST_K: u32 = 100;
const MEASURES: &str = "measures must be a list: [\"count\", { sum = \"/amount\" }, { unique = \"user_id\" }, \
                        { top = \"ip\", k = 10 }]";
const KNOWN: &str = "there are \"count\", { sum | min | max | avg = \"/amount\" }, { unique = \"user_id\" } and \
                     { top = \"ip\", k = 10 }, each of these with as = \"…\" where it is to have another name";

/// As it stands in a configuration.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Written {
    Word(String),
    Table(Table),
}

#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    #[serde(skip_serializing_if = "Option::is_none")]
    sum: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    min: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    avg: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    unique: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    top: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    k: Option<u32>,
    #[serde(rename = "as", skip_serializing_if = "Option::is_none")]
    name: Option<String>,
}

impl From<Measure> for Written {
    fn from(measure: Measure) -> Self {
        let Measure::Of(MeasureOf { function, field, name }) = measure else { return Self::Word(COUNT.to_owned()) };
        let mut table = Table { name, ..Table::default() };
        match function {
            Function::Sum => table.sum = Some(field),
            Function::Min => table.min = Some(field),
            Function::Max => table.max = Some(field),
            Function::Avg => table.avg = Some(field),
            Function::Unique => table.unique = Some(field),
            Function::Top(k) => (table.top, table.k) = (Some(field), Some(k)),
        }
        Self::Table(table)
    }
}

impl TryFrom<Written> for Measure {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, String> {
        let table = match written {
            Written::Word(word) if word == COUNT => return Ok(Self::Count),
            Written::Word(word) => return Err(format!("measures: {word:?} is none; {KNOWN}")),
            Written::Table(table) => table,
        };
        let k = table.k.unwrap_or(DEFAULT_K);
        let functions = [
            (Function::Sum, table.sum),
            (Function::Min, table.min),
            (Function::Max, table.max),
            (Function::Avg, table.avg),
            (Function::Unique, table.unique),
            (Function::Top(k), table.top),
        ];
        let mut given = functions.into_iter().filter_map(|(function, field)| Some((function, field?)));
        let (function, field) = given.next().ok_or_else(|| format!("measures: one of them says nothing; {KNOWN}"))?;
        if let Some((other, _)) = given.next() {
            return Err(format!("measures: one of them has {} and {}: write two", function.name(), other.name()));
        }
        if table.k.is_some() && !matches!(function, Function::Top(_)) {
            return Err(format!("measures: k belongs to top, not to {}", function.name()));
        }
        if !(1..=MOST_K).contains(&k) {
            return Err(format!("measures: k must be an integer from 1 to {MOST_K}"));
        }
        if field.is_empty() {
            return Err(format!("measures: {} must name a field, or be a JSON pointer", function.name()));
        }
        if table.name.as_ref().is_some_and(|name| !is_name(name)) {
            return Err("measures: as must be 1 to 128 characters without control characters, and neither \"count\" nor \"inexact\"".to_owned());
        }
        Ok(Self::Of(MeasureOf { function, field, name: table.name }))
    }
}

fn is_name(name: &str) -> bool {
    let length = name.chars().count();
    (1..=128).contains(&length) && !name.contains(char::is_control) && name != COUNT && name != INEXACT
}

/// The list as it is given.
pub(super) fn read(value: &toml::Value) -> Result<Value, String> {
    let mut list = Vec::new();
    for entry in value.as_array().ok_or(MEASURES)? {
        list.push(match entry {
            toml::Value::String(word) => Value::from(word.as_str()),
            toml::Value::Table(table) => Value::from(read_table(table)?),
            _ => return Err(MEASURES.to_owned()),
        });
        let written = list.last().and_then(|entry| entry.deserialize::<Written>().ok()).ok_or(MEASURES)?;
        Measure::try_from(written)?;
    }
    Ok(Value::from(list))
}

fn read_table(table: &toml::Table) -> Result<Dict, String> {
    const FIELDS: [&str; 7] = ["sum", "min", "max", "avg", "unique", "top", "as"];
    let mut dict = Dict::new();
    for (key, value) in table {
        let value = match (key.as_str(), value) {
            ("k", toml::Value::Integer(k)) => {
                let k = u32::try_from(*k).map_err(|_| format!("measures: k must be an integer from 1 to {MOST_K}"))?;
                Value::from(k)
            }
            ("k", _) => return Err(format!("measures: k must be an integer from 1 to {MOST_K}")),
            (name, toml::Value::String(text)) if FIELDS.contains(&name) => Value::from(text.as_str()),
            (name, _) if FIELDS.contains(&name) => return Err(format!("measures: {name} must be a string")),
            (name, _) => return Err(format!("measures: {name} is unknown; {KNOWN}")),
        };
        dict.insert(key.clone(), value);
    }
    Ok(dict)
}
