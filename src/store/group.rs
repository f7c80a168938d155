//! The values of a group, between its JSON text (which is its identity) and what the stores hold and readers see.
//!
//! Strings, booleans, integers within 64 bits and numbers that a double holds exactly stand as themselves; a missing
//! field is null. All else (larger or more precise numbers, objects, arrays) stands as a string: its JSON text.

use serde_json::{Value, value::RawValue};

#[derive(Debug, Clone, PartialEq)]
pub enum GroupValue {
    Null,
    Bool(bool),
    Integer(i64),
    Float(f64),
    Text(String),
}

impl GroupValue {
    fn of(json: &str) -> Self {
        match json.as_bytes().first() {
            Some(b'n') => Self::Null,
            Some(b't') => Self::Bool(true),
            Some(b'f') => Self::Bool(false),
            // A string that is no Unicode (a lone surrogate) stays as it was written.
            Some(b'"') => Self::Text(serde_json::from_str(json).unwrap_or_else(|_| json.to_owned())),
            Some(b'{' | b'[') | None => Self::Text(json.to_owned()),
            Some(_) => match Number::exactly(json) {
                Some(Number::Integer(integer)) => Self::Integer(integer),
                Some(Number::Float(float)) => Self::Float(float),
                None => Self::Text(json.to_owned()),
            },
        }
    }
}

impl From<GroupValue> for Value {
    fn from(value: GroupValue) -> Self {
        match value {
            GroupValue::Null => Self::Null,
            GroupValue::Bool(bool) => Self::Bool(bool),
            GroupValue::Integer(integer) => integer.into(),
            GroupValue::Float(float) => float.into(),
            GroupValue::Text(text) => Self::String(text),
        }
    }
}

/// The values of a group's JSON text, as many as `fields`.
pub fn values(group: &str, fields: usize) -> Vec<GroupValue> {
    let raw: Vec<&RawValue> = serde_json::from_str(group).unwrap_or_default();
    let mut values: Vec<GroupValue> = raw.into_iter().map(|raw| GroupValue::of(raw.get())).collect();
    values.resize(fields, GroupValue::Null);
    values
}

/// A JSON number that can be held without changing it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Number {
    Integer(i64),
    Float(f64),
}

impl Number {
    /// `None` for an integer beyond 64 bits, and for a fraction that a double does not print back as the same number.
    pub fn exactly(text: &str) -> Option<Self> {
        if text != "-0" && !text.contains(['.', 'e', 'E']) {
            return text.parse().ok().map(Self::Integer);
        }
        let float: f64 = text.parse().ok()?;
        let same = float.is_finite() && Decimal::of(text)? == Decimal::of(&float.to_string())?;
        same.then_some(Self::Float(float))
    }
}

/// `±0.digits × 10^exponent`, without zeros at either end of the digits.
#[derive(Debug, PartialEq, Eq)]
struct Decimal {
    negative: bool,
    digits: String,
    exponent: i64,
}

impl Decimal {
    fn of(text: &str) -> Option<Self> {
        let (negative, text) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
        let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let all = format!("{whole}{fraction}");
        let digits = all.trim_start_matches('0');
        let point = i64::try_from(whole.len()).ok()? - i64::try_from(all.len() - digits.len()).ok()?;
        let digits = digits.trim_end_matches('0').to_owned();
        let exponent =
            if digits.is_empty() { 0 } else { exponent.parse::<i64>().ok().and_then(|e| e.checked_add(point))? };
        Some(Self { negative, digits, exponent })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_that_would_change_stays_text() {
        assert_eq!(Number::exactly("9223372036854775807"), Some(Number::Integer(i64::MAX)));
        assert_eq!(Number::exactly("9223372036854775808"), None);
        assert_eq!(Number::exactly("1.50"), Some(Number::Float(1.5)));
        assert_eq!(Number::exactly("1.5E+3"), Some(Number::Float(1500.0)));
        assert_eq!(Number::exactly("0.1"), Some(Number::Float(0.1)));
        assert_eq!(Number::exactly("0.10000000000000000001"), None);
        assert_eq!(Number::exactly("1e400"), None);
        assert_eq!(Number::exactly("1e-400"), None);
        assert!(matches!(Number::exactly("-0"), Some(Number::Float(zero)) if zero.is_sign_negative()));
    }

    #[test]
    fn what_no_value_can_hold_is_its_json_text() {
        let values: Vec<Value> =
            values(r#"["a\"b",null,true,7,2.5,1e999,{"x":[1]},{},[]]"#, 10).into_iter().map(Value::from).collect();
        assert_eq!(
            serde_json::json!(values).to_string(),
            r#"["a\"b",null,true,7,2.5,"1e999","{\"x\":[1]}","{}","[]",null]"#
        );
    }
}
