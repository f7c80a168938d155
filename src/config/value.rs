//! Values of the plain kinds, read and checked.

use std::time::Duration;

use figment::value::Value;

use super::ByteSize;

pub(super) const LIST: &str = "must be a list of strings: [\"a\", \"b\"], or \"a,b\"";

pub(super) fn integer_rule(from: i64, to: i64) -> String {
    format!("must be an integer from {from} to {to}")
}

pub(super) fn integer(value: &toml::Value, from: i64, to: i64) -> Result<Value, String> {
    let number = value.as_integer().filter(|number| (from..=to).contains(number));
    number.map(Value::from).ok_or_else(|| integer_rule(from, to))
}

pub(super) fn text(value: &toml::Value) -> Result<String, String> {
    match value.as_str() {
        Some(text) if text.contains('\0') => Err("must not contain a NUL character".to_owned()),
        Some(text) => Ok(text.to_owned()),
        None => Err("must be a string (in quotation marks)".to_owned()),
    }
}

pub(super) fn size(value: &toml::Value, from: u64, to: u64) -> Result<Value, String> {
    let text = match value {
        toml::Value::String(text) => text.clone(),
        toml::Value::Integer(bytes) => bytes.to_string(),
        _ => String::new(),
    };
    match text.parse::<bytesize::ByteSize>() {
        Ok(size) if (from..=to).contains(&size.as_u64()) => Ok(Value::from(text)),
        Ok(_) => Err(format!("must be a size from {} to {}", ByteSize(from), ByteSize(to))),
        Err(_) => Err("must be a size such as \"64KiB\" or \"16MiB\"".to_owned()),
    }
}

pub(super) fn duration(value: &toml::Value, from: Duration, to: Duration) -> Result<Value, String> {
    let example = || "must be a duration with its unit, such as \"200ms\", \"1m\" or \"30d\"".to_owned();
    let text = value.as_str().ok_or_else(example)?;
    let parsed = humantime::parse_duration(text).map_err(|_| example())?;
    if (from..=to).contains(&parsed) {
        return Ok(Value::from(text));
    }
    let (from, to) = (humantime::format_duration(from), humantime::format_duration(to));
    Err(format!("must be a duration from {from} to {to}"))
}

pub(super) fn list(value: &toml::Value) -> Result<Value, String> {
    let items: Vec<String> = match value {
        toml::Value::String(text) if text.trim().is_empty() => Vec::new(),
        toml::Value::String(text) => text.split(',').map(|item| item.trim().to_owned()).collect(),
        toml::Value::Array(items) => items.iter().map(text).collect::<Result<_, _>>().map_err(|_| LIST.to_owned())?,
        _ => return Err(LIST.to_owned()),
    };
    Ok(Value::from(items))
}
