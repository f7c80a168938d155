//! The answer to a query. Rows are written as JSON while they are read: as values they would take many times their text.

use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Serialize, Serializer};
use serde_json::{Map, Value};

/// The bytes of rows in one answer; what goes beyond is left out, and the answer says so.
pub const MAX_BYTES: usize = 32 << 20;

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    #[serde(serialize_with = "rfc3339")]
    pub window_start: DateTime<Utc>,
    /// Field to value; a field that the events did not have is null.
    pub group: Map<String, Value>,
    /// Of records, over all partitions and generations.
    pub count: u64,
}

fn rfc3339<S: Serializer>(time: &DateTime<Utc>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&time.to_rfc3339_opts(SecondsFormat::AutoSi, true))
}

/// Rows, sorted by window, then group.
#[derive(Debug, Default, PartialEq)]
pub struct Rows {
    json: Vec<u8>,
    count: usize,
    truncated: bool,
}

impl Rows {
    /// Adds a row, unless there are `limit` of them or `MAX_BYTES` are reached. `false`: no more are wanted.
    pub fn push(&mut self, row: &Row, limit: usize) -> bool {
        let before = self.json.len();
        if before > 0 {
            self.json.push(b',');
        }
        // Strings, numbers and maps with string keys always serialise.
        let written = self.count < limit && serde_json::to_writer(&mut self.json, row).is_ok();
        if written && self.json.len() <= MAX_BYTES {
            self.count += 1;
        } else {
            self.json.truncate(before);
            self.truncated = true;
        }
        !self.truncated
    }

    /// There were more than the limit, or than an answer takes.
    pub fn truncated(&self) -> bool {
        self.truncated
    }

    /// The elements of a JSON array, with commas in between.
    pub fn into_json(self) -> Vec<u8> {
        self.json
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(text: &str) -> Row {
        let group = serde_json::json!({ "a": text }).as_object().cloned().unwrap_or_default();
        Row { window_start: DateTime::default(), group, count: 1 }
    }

    #[test]
    fn an_answer_ends_at_the_limit_of_rows_or_bytes() {
        let mut rows = Rows::default();
        assert!(rows.push(&row("x"), 1) && !rows.truncated());
        assert!(!rows.push(&row("y"), 1) && rows.truncated());
        assert_eq!(rows.into_json(), br#"{"window_start":"1970-01-01T00:00:00Z","group":{"a":"x"},"count":1}"#);

        let (mut rows, large) = (Rows::default(), row(&"x".repeat(1 << 20)));
        while rows.push(&large, usize::MAX) {}
        let json = [b"[", &*rows.into_json(), b"]"].concat();
        assert!((31 << 20..=MAX_BYTES + 2).contains(&json.len()), "{}", json.len());
        assert_eq!(serde_json::from_slice::<Vec<Value>>(&json).unwrap().len(), 31);
    }
}
