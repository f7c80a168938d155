//! A log record as the JSON event that it becomes, with its resource and its scope.
//!
//! Fields are flat as far as an aggregate can group by them: `severity_text`, `scope_name` … are at the top, attributes are
//! objects by their own names. What is not set is left out. docs/sources.md has the list.

use std::io::Write as _;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use chrono::{DateTime, SecondsFormat, Utc};
use opentelemetry_proto::tonic::{
    common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value::Value},
    logs::v1::LogRecord,
    resource::v1::Resource,
};

/// The fields of each event of a resource, each behind a comma, and its `service.name`.
pub fn of_resource(resource: &Resource, schema_url: &str) -> (Vec<u8>, Option<String>) {
    let mut fields = Vec::new();
    if !resource.attributes.is_empty() {
        name(&mut fields, "resource_attributes");
        object(&mut fields, &resource.attributes);
    }
    count(&mut fields, "resource_dropped_attributes_count", resource.dropped_attributes_count);
    text(&mut fields, "resource_schema_url", schema_url);
    let service = resource.attributes.iter().rev().find(|attribute| attribute.key == "service.name");
    let service = match service.and_then(|service| service.value.as_ref()?.value.as_ref()) {
        Some(Value::StringValue(service)) if !service.is_empty() => Some(service.clone()),
        _ => None,
    };
    (fields, service)
}

/// The fields of each event of a scope.
pub fn of_scope(scope: &InstrumentationScope, schema_url: &str) -> Vec<u8> {
    let mut fields = Vec::new();
    text(&mut fields, "scope_name", &scope.name);
    text(&mut fields, "scope_version", &scope.version);
    if !scope.attributes.is_empty() {
        name(&mut fields, "scope_attributes");
        object(&mut fields, &scope.attributes);
    }
    count(&mut fields, "scope_dropped_attributes_count", scope.dropped_attributes_count);
    text(&mut fields, "scope_schema_url", schema_url);
    fields
}

/// Writes the fields of a record into the empty `json`.
pub fn write(json: &mut Vec<u8>, record: &LogRecord) {
    if let Some(time) = time(record.time_unix_nano) {
        text(json, "timestamp", &time);
    }
    if let Some(time) = time(record.observed_time_unix_nano) {
        text(json, "observed_timestamp", &time);
    }
    if record.severity_number != 0 {
        name(json, "severity_number");
        // Writing to a Vec does not fail, here and below.
        let _ = write!(json, "{}", record.severity_number);
    }
    text(json, "severity_text", &record.severity_text);
    text(json, "event_name", &record.event_name);
    if let Some(body) = &record.body {
        name(json, "body");
        any_value(json, Some(body));
    }
    if !record.attributes.is_empty() {
        name(json, "attributes");
        object(json, &record.attributes);
    }
    count(json, "dropped_attributes_count", record.dropped_attributes_count);
    text(json, "trace_id", &hex::encode(&record.trace_id));
    text(json, "span_id", &hex::encode(&record.span_id));
    count(json, "flags", record.flags);
}

/// Makes the object of its fields: the comma before the first one is where it opens.
pub fn close(json: &mut Vec<u8>) {
    match json.first_mut() {
        Some(comma) => *comma = b'{',
        None => json.push(b'{'),
    }
    json.push(b'}');
}

/// The type of the event: its name, where it has one that can be a type.
pub fn event_type(record: &LogRecord) -> &str {
    let is_type = !record.event_name.is_empty() && record.event_name.chars().nth(LONGEST_TYPE).is_none();
    if is_type { &record.event_name } else { NO_NAME }
}

/// The type of what has no name.
pub const NO_NAME: &str = "log";

/// Characters of a type.
const LONGEST_TYPE: usize = 128;

/// When the event was: its own time, or when it was observed.
pub fn event_time(record: &LogRecord) -> Option<String> {
    time(record.time_unix_nano).or_else(|| time(record.observed_time_unix_nano))
}

/// Nanoseconds since 1970 as RFC 3339, with all their digits; 0 is no time.
fn time(nanoseconds: u64) -> Option<String> {
    const SECOND: u64 = 1_000_000_000;
    let (seconds, nanoseconds) = (nanoseconds / SECOND, nanoseconds % SECOND);
    if (seconds, nanoseconds) == (0, 0) {
        return None;
    }
    // The last one is in 2554.
    let time: DateTime<Utc> = DateTime::from_timestamp(seconds as i64, nanoseconds as u32)?;
    Some(time.to_rfc3339_opts(SecondsFormat::Nanos, true))
}

fn name(json: &mut Vec<u8>, name: &str) {
    let _ = write!(json, ",\"{name}\":");
}

fn text(json: &mut Vec<u8>, field: &str, text: &str) {
    if !text.is_empty() {
        name(json, field);
        string(json, text);
    }
}

fn count(json: &mut Vec<u8>, field: &str, count: u32) {
    if count != 0 {
        name(json, field);
        let _ = write!(json, "{count}");
    }
}

fn string(json: &mut Vec<u8>, text: &str) {
    // A string always serialises.
    let _ = serde_json::to_writer(json, text);
}

/// Attributes by their keys. The specification forbids that a key stands twice, and some senders do it: then all its values
/// stand there, in a list, since an object that names one twice is none for many readers, and none is to be lost.
fn object(json: &mut Vec<u8>, attributes: &[KeyValue]) {
    let mut order: Vec<usize> = (0..attributes.len()).collect();
    order.sort_by(|a, b| attributes[*a].key.cmp(&attributes[*b].key));
    let same = |pair: &[usize]| attributes[pair[0]].key == attributes[pair[1]].key;
    if !order.windows(2).any(same) {
        order.sort_unstable();
    }
    json.push(b'{');
    for (at, values) in order.chunk_by(|a, b| attributes[*a].key == attributes[*b].key).enumerate() {
        if at > 0 {
            json.push(b',');
        }
        string(json, &attributes[values[0]].key);
        json.push(b':');
        match values {
            [one] => any_value(json, attributes[*one].value.as_ref()),
            several => list(json, several.iter().map(|index| attributes[*index].value.as_ref())),
        }
    }
    json.push(b'}');
}

fn list<'v>(json: &mut Vec<u8>, values: impl Iterator<Item = Option<&'v AnyValue>>) {
    json.push(b'[');
    for (at, value) in values.enumerate() {
        if at > 0 {
            json.push(b',');
        }
        any_value(json, value);
    }
    json.push(b']');
}

/// Nested as deep as what was decoded, which has its limit.
fn any_value(json: &mut Vec<u8>, value: Option<&AnyValue>) {
    match value.and_then(|value| value.value.as_ref()) {
        Some(Value::StringValue(text)) => string(json, text),
        Some(Value::BoolValue(value)) => json.extend_from_slice(if *value { b"true" } else { b"false" }),
        Some(Value::IntValue(integer)) => _ = write!(json, "{integer}"),
        Some(Value::DoubleValue(number)) if number.is_finite() => _ = serde_json::to_writer(json, number),
        Some(Value::DoubleValue(number)) if number.is_nan() => json.extend_from_slice(b"\"NaN\""),
        Some(Value::DoubleValue(number)) => {
            json.extend_from_slice(if *number > 0.0 { b"\"Infinity\"" } else { b"\"-Infinity\"" });
        }
        Some(Value::BytesValue(bytes)) => string(json, &STANDARD.encode(bytes)),
        Some(Value::ArrayValue(array)) => list(json, array.values.iter().map(Some)),
        Some(Value::KvlistValue(pairs)) => object(json, &pairs.values),
        // The second is a reference into a dictionary that only profiles have.
        None | Some(Value::StringValueStrindex(_)) => json.extend_from_slice(b"null"),
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::common::v1::{ArrayValue, KeyValueList};
    use serde_json::{Value as Json, json};

    use super::*;

    fn any(value: Value) -> AnyValue {
        AnyValue { value: Some(value) }
    }

    fn attribute(key: &str, value: Value) -> KeyValue {
        KeyValue { key: key.to_owned(), value: Some(any(value)), ..KeyValue::default() }
    }

    fn event(record: &LogRecord, shared: &[u8]) -> Json {
        let mut json = Vec::new();
        write(&mut json, record);
        json.extend_from_slice(shared);
        close(&mut json);
        serde_json::from_slice(&json).expect("JSON")
    }

    #[test]
    fn a_record_stands_with_its_resource_and_its_scope() {
        let service = Value::StringValue("shop".to_owned());
        let resource = Resource {
            attributes: vec![attribute("service.name", service), attribute("host.cpus", Value::IntValue(i64::MAX))],
            ..Resource::default()
        };
        let (mut shared, service) = of_resource(&resource, "https://example.com/schema");
        let scope = InstrumentationScope { name: "lib".to_owned(), version: "1.2".to_owned(), ..Default::default() };
        shared.extend(of_scope(&scope, ""));
        assert_eq!(service.as_deref(), Some("shop"));
        let record = LogRecord {
            time_unix_nano: 1_544_712_660_300_000_001,
            observed_time_unix_nano: 1_544_712_661_000_000_000,
            severity_number: 9,
            severity_text: "INFO".to_owned(),
            body: Some(any(Value::StringValue("a \"quoted\"\nline".to_owned()))),
            attributes: vec![attribute("http.status_code", Value::IntValue(200))],
            dropped_attributes_count: 1,
            flags: 1,
            trace_id: vec![0xab; 16],
            span_id: vec![0xcd; 8],
            event_name: "click".to_owned(),
        };
        let expected = json!({
            "timestamp": "2018-12-13T14:51:00.300000001Z",
            "observed_timestamp": "2018-12-13T14:51:01.000000000Z",
            "severity_number": 9,
            "severity_text": "INFO",
            "event_name": "click",
            "body": "a \"quoted\"\nline",
            "attributes": {"http.status_code": 200},
            "dropped_attributes_count": 1,
            "trace_id": "ab".repeat(16),
            "span_id": "cd".repeat(8),
            "flags": 1,
            "resource_attributes": {"service.name": "shop", "host.cpus": i64::MAX},
            "resource_schema_url": "https://example.com/schema",
            "scope_name": "lib",
            "scope_version": "1.2",
        });
        assert_eq!(event(&record, &shared), expected);
        assert_eq!(event_time(&record).as_deref(), Some("2018-12-13T14:51:00.300000001Z"));
        let observed = LogRecord { time_unix_nano: 0, ..record };
        assert_eq!(event_time(&observed).as_deref(), Some("2018-12-13T14:51:01.000000000Z"));
    }

    #[test]
    fn what_is_not_set_is_left_out() {
        assert_eq!(event(&LogRecord::default(), b""), json!({}));
        assert_eq!(event_time(&LogRecord::default()), None);
        assert_eq!(of_resource(&Resource::default(), ""), (Vec::new(), None));
        assert_eq!(event(&LogRecord::default(), b",\"a\":1"), json!({"a": 1}));
        let latest = LogRecord { time_unix_nano: u64::MAX, ..LogRecord::default() };
        assert_eq!(event(&latest, b""), json!({"timestamp": "2554-07-21T23:34:33.709551615Z"}));
    }

    #[test]
    fn every_kind_of_value_has_its_json_and_nothing_of_it_is_lost() {
        let list =
            ArrayValue { values: vec![any(Value::IntValue(-1)), AnyValue::default(), any(Value::BoolValue(true))] };
        let pairs = KeyValueList { values: vec![attribute("a", Value::ArrayValue(list))] };
        let attributes = vec![
            attribute("double", Value::DoubleValue(0.1)),
            attribute("whole", Value::DoubleValue(7.0)),
            attribute("nan", Value::DoubleValue(f64::NAN)),
            attribute("most", Value::DoubleValue(f64::INFINITY)),
            attribute("least", Value::DoubleValue(f64::NEG_INFINITY)),
            attribute("bytes", Value::BytesValue(vec![0, 255])),
            attribute("nested", Value::KvlistValue(pairs)),
            attribute("", Value::StringValue(String::new())),
            attribute("twice", Value::IntValue(2)),
            KeyValue { key: "none".to_owned(), ..KeyValue::default() },
            attribute("twice", Value::StringValue("b".to_owned())),
        ];
        let record = LogRecord { attributes, ..LogRecord::default() };
        let expected = json!({"attributes": {
            "double": 0.1, "whole": 7.0, "nan": "NaN", "most": "Infinity", "least": "-Infinity", "bytes": "AP8=",
            "nested": {"a": [-1, null, true]}, "": "", "twice": [2, "b"], "none": null,
        }});
        assert_eq!(event(&record, b""), expected);
    }
}
