//! An event: a JSON object with a few fields that the daemon reads. Everything else is the user's.

use std::{borrow::Cow, fmt};

use chrono::DateTime;
use serde::{
    Deserializer,
    de::{self, IgnoredAny, MapAccess, Visitor},
};
use serde_json::value::RawValue;

use crate::{config::EventConfig, position::Timestamp};

/// The names of the fields that the daemon reads.
#[derive(Debug, Clone)]
pub struct EventFields {
    pub type_field: String,
    pub id_field: String,
    pub time_field: String,
    pub client_field: String,
    pub key_field: String,
}

impl From<&EventConfig> for EventFields {
    fn from(config: &EventConfig) -> Self {
        Self {
            type_field: config.type_field.clone(),
            id_field: config.id_field.clone(),
            time_field: config.time_field.clone(),
            client_field: config.client_field.clone(),
            key_field: config.key_field().to_owned(),
        }
    }
}

/// What the daemon reads of an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event<'a> {
    pub event_type: Cow<'a, str>,
    pub id: Option<Cow<'a, str>>,
    pub time: Option<Timestamp>,
    pub client: Option<Cow<'a, str>>,
    pub key: Option<Cow<'a, str>>,
}

/// Why a value is not an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    InvalidJson,
    NotAnObject,
    MissingType,
    InvalidType,
    InvalidId,
    InvalidTimestamp,
}

impl Code {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InvalidJson => "invalid_json",
            Self::NotAnObject => "not_an_object",
            Self::MissingType => "missing_type",
            Self::InvalidType => "invalid_type",
            Self::InvalidId => "invalid_id",
            Self::InvalidTimestamp => "invalid_timestamp",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invalid {
    pub code: Code,
    pub message: String,
}

fn invalid(code: Code, message: impl Into<String>) -> Invalid {
    Invalid { code, message: message.into() }
}

/// Reads the fields of an event.
///
/// # Errors
/// [`Invalid`] when the value is no event.
pub fn parse<'a>(value: &'a [u8], fields: &EventFields) -> Result<Event<'a>, Invalid> {
    let names = [&fields.type_field, &fields.id_field, &fields.time_field, &fields.client_field, &fields.key_field];
    let found = fields_of(value, &names.map(String::as_str))?;
    let text = |index: usize| found[index].and_then(string);
    let event_type = match (found[0], text(0)) {
        (None, _) => return Err(invalid(Code::MissingType, format!("the field {:?} is missing", fields.type_field))),
        (Some(_), Some(name)) if (1..=128).contains(&name.chars().count()) => name,
        (Some(_), _) => {
            return Err(invalid(
                Code::InvalidType,
                format!("the field {:?} is not a string of 1 to 128 characters", fields.type_field),
            ));
        }
    };
    let time = match (found[2], text(2)) {
        (None, _) => None,
        (Some(_), Some(text)) => Some(DateTime::parse_from_rfc3339(&text).map_err(|error| {
            invalid(Code::InvalidTimestamp, format!("the field {:?} is not RFC 3339: {error}", fields.time_field))
        })?),
        (Some(_), None) => return Err(invalid(Code::InvalidTimestamp, "the time is not a string")),
    };
    if found[1].is_some() && text(1).is_none() {
        return Err(invalid(Code::InvalidId, format!("the field {:?} is not a string", fields.id_field)));
    }
    Ok(Event {
        event_type,
        id: text(1),
        time: time.map(|time| Timestamp(time.timestamp_millis())),
        client: text(3),
        key: text(4),
    })
}

/// The raw JSON texts of the named top-level fields, the last duplicate wins; `None` where missing.
///
/// # Errors
/// [`Invalid`] when the value is not a JSON object.
pub fn select<'a>(value: &'a [u8], names: &[String]) -> Result<Vec<Option<&'a RawValue>>, Invalid> {
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    fields_of(value, &names)
}

fn string(raw: &RawValue) -> Option<Cow<'_, str>> {
    let text = raw.get();
    match text.strip_prefix('"').and_then(|text| text.strip_suffix('"')) {
        Some(plain) if !plain.contains('\\') => Some(Cow::Borrowed(plain)),
        _ => serde_json::from_str(text).ok().map(Cow::Owned),
    }
}

fn fields_of<'a>(value: &'a [u8], names: &[&str]) -> Result<Vec<Option<&'a RawValue>>, Invalid> {
    let mut deserializer = serde_json::Deserializer::from_slice(value);
    let found = deserializer.deserialize_any(Fields(names)).map_err(|error| {
        let code = if error.is_data() { Code::NotAnObject } else { Code::InvalidJson };
        invalid(code, error.to_string())
    })?;
    deserializer.end().map_err(|error| invalid(Code::InvalidJson, error.to_string()))?;
    Ok(found)
}

struct Fields<'n>(&'n [&'n str]);

impl<'de> Visitor<'de> for Fields<'_> {
    type Value = Vec<Option<&'de RawValue>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = vec![None; self.0.len()];
        while let Some(key) = map.next_key::<Cow<'de, str>>()? {
            if !self.0.contains(&key.as_ref()) {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            let value: &'de RawValue = map.next_value()?;
            for (index, _) in self.0.iter().enumerate().filter(|(_, name)| **name == key) {
                found[index] = Some(value);
            }
        }
        Ok(found)
    }

    fn visit_unit<E: de::Error>(self) -> Result<Self::Value, E> {
        Err(E::invalid_type(de::Unexpected::Unit, &self))
    }
}
