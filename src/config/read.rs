//! One value, read and checked as its key's kind says. Errors are rules: what the value has to be.

use figment::value::Value;

use super::{
    admin_key, aggregate, event_type, http_key, http_source,
    keys::Kind,
    rate,
    value::{LIST, duration, integer, integer_rule, list, size, text},
};

/// From `--set` or the environment.
pub(super) fn from_text(kind: Kind, text: &str) -> Result<Value, String> {
    let value = match kind {
        Kind::Text | Kind::OneOf(_) | Kind::Size(..) | Kind::Duration(..) => toml::Value::String(text.to_owned()),
        Kind::Rate if text.trim_start().starts_with('{') => toml_value(text).ok_or(rate::RULE)?,
        Kind::Rate => toml::Value::String(text.to_owned()),
        Kind::Flag => toml::Value::Boolean(text.parse().map_err(|_| FLAG.to_owned())?),
        Kind::Integer(from, to) => toml::Value::Integer(text.parse().map_err(|_| integer_rule(from, to))?),
        Kind::Percent => toml::Value::Float(text.parse().map_err(|_| PERCENT.to_owned())?),
        Kind::List if !text.trim_start().starts_with('[') => toml::Value::String(text.to_owned()),
        Kind::List => toml_value(text).ok_or(LIST)?,
        Kind::Aggregates => toml_value(text).ok_or(aggregate::AGGREGATES)?,
        Kind::Sources(_) => toml_value(text).ok_or(http_source::SOURCES)?,
        Kind::Types(_) => toml_value(text).ok_or(event_type::TYPES)?,
        Kind::Senders(_) => toml_value(text).ok_or(http_key::KEYS)?,
        Kind::Operators(_) => toml_value(text).ok_or(admin_key::KEYS)?,
        Kind::Options(_) => return Err(OPTIONS.to_owned()),
    };
    from_toml(kind, &value)
}

const FLAG: &str = "must be true or false";
const PERCENT: &str = "must be a number above 0, at most 100";
const OPTIONS: &str = "is a table: set a name below it";

/// A value by itself, as it would stand behind `key = `.
fn toml_value(text: &str) -> Option<toml::Value> {
    toml::from_str::<toml::Table>(&format!("value = {text}")).ok()?.remove("value")
}

/// From the file.
pub(super) fn from_toml(kind: Kind, value: &toml::Value) -> Result<Value, String> {
    match kind {
        Kind::Text => text(value).map(Value::from),
        Kind::Flag => value.as_bool().map(Value::from).ok_or(FLAG.to_owned()),
        Kind::Integer(from, to) => integer(value, from, to),
        Kind::Percent => {
            let number = value.as_float().or(value.as_integer().map(|number| number as f64));
            number.filter(|number| *number > 0.0 && *number <= 100.0).map(Value::from).ok_or(PERCENT.to_owned())
        }
        Kind::Size(from, to) => size(value, from, to),
        Kind::Duration(from, to) => duration(value, from, to),
        Kind::OneOf(choices) => match text(value) {
            Ok(text) if choices.contains(&text.as_str()) => Ok(Value::from(text)),
            _ => Err(format!("must be one of {}", choices.join(", "))),
        },
        Kind::List => list(value),
        Kind::Rate => rate::read(value),
        Kind::Aggregates => aggregate::read(value),
        Kind::Sources(_) => http_source::read(value),
        Kind::Types(_) => event_type::read(value),
        Kind::Senders(_) => http_key::read(value),
        Kind::Operators(_) => admin_key::read(value),
        Kind::Options(_) => Err(OPTIONS.to_owned()),
    }
}

/// The value of a name below an options table: any scalar is a string there.
pub(super) fn option(value: &toml::Value) -> Result<String, String> {
    match value {
        toml::Value::String(text) => Ok(text.clone()),
        toml::Value::Array(_) | toml::Value::Table(_) => Err("must be a string".to_owned()),
        scalar => Ok(scalar.to_string()),
    }
}
