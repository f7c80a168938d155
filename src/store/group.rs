//! The values of a group, between its JSON text (which is its identity) and what the stores hold and readers see.
//!
//! Strings, booleans, integers within 64 bits and numbers that a double holds exactly stand as themselves; a missing
//! field is null. All else (larger or more precise numbers, objects, arrays) stands as a string: its JSON text.

use serde_json::{Number, Value, value::RawValue};

/// The values of a group's JSON text, as many as `fields`: each is null, a boolean, a number or a string.
pub fn values(group: &str, fields: usize) -> Vec<Value> {
    let raw: Vec<&RawValue> = serde_json::from_str(group).unwrap_or_default();
    let mut values: Vec<Value> = raw.into_iter().map(|raw| value(raw.get())).collect();
    values.resize(fields, Value::Null);
    values
}

/// The value of one JSON text.
pub fn value(json: &str) -> Value {
    let value = match json.as_bytes().first() {
        // A string that is no Unicode (a lone surrogate) stays as it was written.
        Some(b'n' | b't' | b'f' | b'"') => serde_json::from_str(json).ok(),
        Some(b'{' | b'[') | None => None,
        Some(_) => exact_number(json).map(Value::Number),
    };
    value.unwrap_or_else(|| json.into())
}

/// A JSON number that can be held without changing it, in 64 bits or as a double. `None` for an integer beyond 64 bits,
/// and for a fraction that a double does not print back as the same number.
pub fn exact_number(text: &str) -> Option<Number> {
    if text != "-0" && !text.contains(['.', 'e', 'E']) {
        return text.parse::<i64>().ok().map(Number::from);
    }
    let float: f64 = text.parse().ok()?;
    // JSON has no infinite numbers.
    let number = Number::from_f64(float)?;
    (decimal(text)? == decimal(&float.to_string())?).then_some(number)
}

/// A number as `±0.digits × 10^exponent`, without zeros at either end of the digits: whether it is negative, the digits,
/// and the exponent.
fn decimal(text: &str) -> Option<(bool, String, i64)> {
    let (negative, text) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
    let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let all = format!("{whole}{fraction}");
    let digits = all.trim_start_matches('0');
    let point = i64::try_from(whole.len()).ok()? - i64::try_from(all.len() - digits.len()).ok()?;
    let digits = digits.trim_end_matches('0').to_owned();
    let exponent =
        if digits.is_empty() { 0 } else { exponent.parse::<i64>().ok().and_then(|e| e.checked_add(point))? };
    Some((negative, digits, exponent))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_that_would_change_stays_text() {
        assert_eq!(exact_number("9223372036854775807"), Some(i64::MAX.into()));
        assert_eq!(exact_number("9223372036854775808"), None);
        assert_eq!(exact_number("1.50"), Number::from_f64(1.5));
        assert_eq!(exact_number("1.5E+3"), Number::from_f64(1500.0));
        assert_eq!(exact_number("0.1"), Number::from_f64(0.1));
        assert_eq!(exact_number("0.10000000000000000001"), None);
        assert_eq!(exact_number("1e400"), None);
        assert_eq!(exact_number("1e-400"), None);
        assert_eq!(exact_number("-0").map(|zero| zero.to_string()), Some("-0.0".to_owned()));
    }

    #[test]
    fn what_no_value_can_hold_is_its_json_text() {
        let values = values(r#"["a\"b",null,true,7,2.5,1e999,{"x":[1]},{},[]]"#, 10);
        assert_eq!(
            serde_json::json!(values).to_string(),
            r#"["a\"b",null,true,7,2.5,"1e999","{\"x\":[1]}","{}","[]",null]"#
        );
    }
}
