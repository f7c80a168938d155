//! Which events an aggregate counts.

use std::cmp::Ordering;

use crate::{
    config::{self, Bounds, Condition, Scalar},
    event,
    measure::compare,
};

/// Conditions, all of which an event has to meet.
#[derive(Debug)]
pub struct Filter(Vec<(usize, Condition)>);

impl Filter {
    /// `index_of` gives the place of a field among those that are selected of an event.
    pub fn new(filter: &config::Filter, mut index_of: impl FnMut(&str) -> usize) -> Self {
        Self(filter.conditions().map(|(field, condition)| (index_of(field), condition.clone())).collect())
    }

    /// `value` gives the JSON text of a selected field.
    #[inline]
    pub fn takes<'v>(&self, value: impl Fn(usize) -> Option<&'v str>) -> bool {
        self.0.iter().all(|(field, condition)| condition_holds(condition, value(*field)))
    }
}

fn condition_holds(condition: &Condition, json: Option<&str>) -> bool {
    // null is as good as absent.
    let json = json.filter(|json| *json != "null");
    match (condition, json) {
        (Condition::Has(Bounds { exists: Some(false), .. }), json) => json.is_none(),
        (_, None) => false,
        (Condition::Is(scalar), Some(json)) => equals(scalar, json),
        (Condition::OneOf(scalars), Some(json)) => scalars.iter().any(|scalar| equals(scalar, json)),
        (Condition::Has(bounds), Some(json)) => is_within(bounds, json),
    }
}

fn equals(scalar: &Scalar, json: &str) -> bool {
    match scalar {
        Scalar::Bool(is) => json == if *is { "true" } else { "false" },
        Scalar::Number(number) => is_number(json) && compare(json, &number.to_string()) == Ordering::Equal,
        Scalar::Text(text) => {
            json.starts_with('"') && event::unescape(json).is_ok_and(|characters| characters == text.as_str())
        }
    }
}

fn is_within(Bounds { min, max, prefix, .. }: &Bounds, json: &str) -> bool {
    let is_from = |least: &serde_json::Number| is_number(json) && compare(json, &least.to_string()) != Ordering::Less;
    let is_to = |most: &serde_json::Number| is_number(json) && compare(json, &most.to_string()) != Ordering::Greater;
    let begins = |prefix: &String| {
        json.starts_with('"') && event::unescape(json).is_ok_and(|characters| characters.starts_with(prefix.as_str()))
    };
    min.as_ref().is_none_or(is_from) && max.as_ref().is_none_or(is_to) && prefix.as_ref().is_none_or(begins)
}

fn is_number(json: &str) -> bool {
    json.starts_with(|first: char| first == '-' || first.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_condition_takes_what_it_says() {
        #[derive(serde::Deserialize)]
        struct Of {
            filter: config::Filter,
        }
        for (condition, takes, refuses) in [
            ("\"DE\"", &["\"DE\"", "\"\\u0044E\""][..], &["\"de\"", "null", "DE", "[\"DE\"]"][..]),
            ("[\"DE\", 7, true]", &["\"DE\"", "7", "7.0", "70e-1", "true"], &["\"7\"", "false", "8", "null"]),
            ("1.5", &["1.5", "1.50", "15e-1"], &["1.51", "\"1.5\"", "1"]),
            ("false", &["false"], &["true", "\"false\"", "0"]),
            (
                "{ min = 10 }",
                &["10", "10.0", "1e400", "99999999999999999999999"],
                &["9.99999999999999999999", "-10", "\"10\""],
            ),
            ("{ min = -1.5, max = 2 }", &["-1.5", "0", "2", "-0"], &["-1.50001", "2.1", "true"]),
            ("{ prefix = \"10.\" }", &["\"10.\"", "\"10.0.0.1\""], &["\"1\"", "10.5", "\"210.\""]),
            ("{ exists = true }", &["0", "\"\"", "false", "{}"], &["null"]),
            ("{ exists = true, max = 3 }", &["3"], &["4", "null"]),
            ("{ exists = false }", &["null"], &["0", "\"\"", "false"]),
        ] {
            let Of { filter } = toml::from_str(&format!("filter = {{ a = {condition} }}")).unwrap();
            let filter = Filter::new(&filter, |_| 0);
            let takes_it = |json| filter.takes(|_| Some(json));
            takes.iter().for_each(|json| assert!(takes_it(json), "{condition}: {json}"));
            refuses.iter().for_each(|json| assert!(!takes_it(json), "{condition}: {json}"));
            assert_eq!(filter.takes(|_| None), condition == "{ exists = false }", "{condition}");
        }
    }
}
