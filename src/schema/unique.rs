//! `uniqueItems`, by sorting: whoever knows how values are hashed could make a hundred thousand of them alike, and each would be
//! compared with each.

use std::cmp::Ordering;

use jsonschema::{Keyword, ValidationError, paths::Location};
use serde_json::{Map, Number, Value};

struct Unique;

/// What the library calls for the keyword.
pub(super) fn keyword<'s>(
    _: &'s Map<String, Value>,
    is_on: &'s Value,
    _: Location,
) -> Result<Box<dyn Keyword>, ValidationError<'s>> {
    Ok(if is_on.as_bool() == Some(true) { Box::new(Unique) } else { Box::new(Anything) })
}

/// Where it is off.
struct Anything;

impl Keyword for Anything {
    fn validate<'i>(&self, _: &'i Value) -> Result<(), ValidationError<'i>> {
        Ok(())
    }

    fn is_valid(&self, _: &Value) -> bool {
        true
    }
}

impl Keyword for Unique {
    fn validate<'i>(&self, value: &'i Value) -> Result<(), ValidationError<'i>> {
        if self.is_valid(value) { Ok(()) } else { Err(ValidationError::custom("must have no two elements alike")) }
    }

    fn is_valid(&self, value: &Value) -> bool {
        let Some(elements) = value.as_array() else { return true };
        let mut sorted: Vec<&Value> = elements.iter().collect();
        sorted.sort_unstable_by(|a, b| compare(a, b));
        sorted.windows(2).all(|pair| compare(pair[0], pair[1]) != Ordering::Equal)
    }
}

/// A total order in which those are equal that JSON Schema has for equal: numbers by their value, objects whatever the order of
/// their members.
fn compare(a: &Value, b: &Value) -> Ordering {
    match (a, b) {
        (Value::Bool(a), Value::Bool(b)) => a.cmp(b),
        (Value::Number(a), Value::Number(b)) => compare_numbers(a, b),
        (Value::String(a), Value::String(b)) => a.cmp(b),
        (Value::Array(a), Value::Array(b)) => {
            let each = a.iter().zip(b).map(|(a, b)| compare(a, b));
            a.len().cmp(&b.len()).then_with(|| first_difference(each))
        }
        (Value::Object(a), Value::Object(b)) => a.len().cmp(&b.len()).then_with(|| {
            let (a, b) = (members(a), members(b));
            first_difference(a.iter().zip(&b).map(|(a, b)| a.0.cmp(b.0).then_with(|| compare(a.1, b.1))))
        }),
        _ => rank(a).cmp(&rank(b)),
    }
}

fn first_difference(mut each: impl Iterator<Item = Ordering>) -> Ordering {
    each.find(|ordering| ordering.is_ne()).unwrap_or(Ordering::Equal)
}

fn rank(value: &Value) -> u8 {
    match value {
        Value::Null => 0,
        Value::Bool(_) => 1,
        Value::Number(_) => 2,
        Value::String(_) => 3,
        Value::Array(_) => 4,
        Value::Object(_) => 5,
    }
}

/// By their names. (Whether a map is sorted is a feature of the library that any other dependency may turn off.)
fn members(object: &Map<String, Value>) -> Vec<(&String, &Value)> {
    let mut members: Vec<_> = object.iter().collect();
    members.sort_unstable_by_key(|(name, _)| *name);
    members
}

/// Exactly: integers of 64 bits are not rounded, and a float that is a whole number is an integer.
fn compare_numbers(a: &Number, b: &Number) -> Ordering {
    /// Below it a whole float is an `i128`.
    const WHOLE: f64 = 1e38;
    let whole = |number: &Number| {
        let float = || number.as_f64().filter(|float| float.fract() == 0.0 && float.abs() < WHOLE);
        number.as_i128().or_else(|| float().map(|float| float as i128))
    };
    match (whole(a), whole(b)) {
        (Some(a), Some(b)) => a.cmp(&b),
        _ => a.as_f64().unwrap_or_default().total_cmp(&b.as_f64().unwrap_or_default()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_are_alike_by_what_they_mean() {
        let big = u64::MAX;
        for (elements, is_unique) in [
            (json!([]), true),
            (json!([1, 1.0]), false),
            (json!([0, -0.0]), false),
            (json!([big, big - 1]), true),
            (json!([9_007_199_254_740_993_u64, 9_007_199_254_740_992.0, 9_007_199_254_740_992_u64]), false),
            (json!([9_007_199_254_740_993_u64, 9_007_199_254_740_992.0]), true),
            (json!([1e300, 1e300]), false),
            (json!([1.5, "1.5", true, null, [], {}, 1]), true),
            (json!([{"a": 1, "b": [2]}, {"b": [2.0], "a": 1}]), false),
            (json!([{"a": 1}, {"b": 1}, {"a": 1, "b": 1}]), true),
            (json!([["a"], ["a", "b"], ["b"]]), true),
            (json!("no list"), true),
        ] {
            assert_eq!(Unique.is_valid(&elements), is_unique, "{elements}");
            assert_eq!(Unique.validate(&elements).is_ok(), is_unique, "{elements}");
        }
    }
}
