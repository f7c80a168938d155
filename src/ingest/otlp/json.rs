//! OTLP/JSON: the same messages as protobuf's, in the mapping that the OTLP specification gives for JSON.
//!
//! What it allows and what senders do: names in lowerCamelCase, unknown ones ignored, defaults left out or `null`, integers of
//! 64 bits as strings or numbers, doubles also as `"NaN"` and `"Infinity"`, ids in hexadecimal, bytes in base64, enumerations as
//! numbers.

use std::fmt;

use opentelemetry_proto::tonic::{
    common::v1::{AnyValue, ArrayValue, InstrumentationScope, KeyValue, KeyValueList, any_value},
    logs::v1::LogRecord,
    resource::v1::Resource,
};
use serde::{
    Deserialize, Deserializer,
    de::{Error, SeqAccess, Visitor},
};
use serde_json::value::RawValue;

use super::typed::{Base64, Boolean, Double, Hexadecimal, Integer, List, Object};

/// `ExportLogsServiceRequest`, whose parts stay texts until they are read one by one.
#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
pub struct Request<'a> {
    #[serde(borrow)]
    pub resource_logs: Option<&'a RawValue>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
pub struct ResourceLogs<'a> {
    #[serde(borrow)]
    pub resource: Option<&'a RawValue>,
    #[serde(borrow)]
    pub scope_logs: Option<&'a RawValue>,
    #[serde(borrow)]
    pub schema_url: Option<&'a RawValue>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
pub struct ScopeLogs<'a> {
    #[serde(borrow)]
    pub scope: Option<&'a RawValue>,
    #[serde(borrow)]
    pub log_records: Option<&'a RawValue>,
    #[serde(borrow)]
    pub schema_url: Option<&'a RawValue>,
}

pub fn request(body: &[u8]) -> serde_json::Result<Request<'_>> {
    serde_json::from_slice(body).map(|Object(request)| request)
}

pub fn resource_logs(text: &str) -> serde_json::Result<ResourceLogs<'_>> {
    serde_json::from_str(text).map(|Object(logs)| logs)
}

pub fn scope_logs(text: &str) -> serde_json::Result<ScopeLogs<'_>> {
    serde_json::from_str(text).map(|Object(logs)| logs)
}

/// The elements of an array, at most one more than `most`.
///
/// # Errors
/// It is no array.
pub fn elements(array: &RawValue, most: usize) -> serde_json::Result<Vec<&RawValue>> {
    let mut elements = Vec::new();
    let mut json = serde_json::Deserializer::from_str(array.get());
    let read = json.deserialize_any(Elements { elements: &mut elements, most });
    // The only one of its own: there are too many, which is for the caller to see.
    if elements.len() <= most {
        read?;
    }
    Ok(elements)
}

struct Elements<'e, 't> {
    elements: &'e mut Vec<&'t RawValue>,
    most: usize,
}

impl<'t> Visitor<'t> for Elements<'_, 't> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array")
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<(), E> {
        Err(E::custom("an array was expected, and this is a string"))
    }

    fn visit_seq<A: SeqAccess<'t>>(self, mut array: A) -> Result<(), A::Error> {
        while let Some(element) = array.next_element()? {
            self.elements.push(element);
            if self.elements.len() > self.most {
                return Err(A::Error::custom("too many"));
            }
        }
        Ok(())
    }
}

/// Bytes of memory that reading a message takes at most, and the JSON that is made of it, in which a byte may become six: what
/// opens outside of strings may be a message each.
pub fn weight(text: &str) -> usize {
    let (mut messages, mut rest) = (0, text.as_bytes());
    loop {
        let quote = memchr::memchr(b'"', rest).unwrap_or(rest.len());
        messages += memchr::memchr2_iter(b'{', b'[', &rest[..quote]).count();
        let mut at = quote + 1;
        while let Some(offset) = rest.get(at..).and_then(|string| memchr::memchr2(b'"', b'\\', string)) {
            at += offset;
            if rest[at] == b'"' {
                break;
            }
            at += 2;
        }
        match rest.get(at + 1..) {
            Some(behind) => rest = behind,
            None => break,
        }
    }
    size_of::<Record>() + 7 * text.len() + 2 * (size_of::<Pair>() + size_of::<KeyValue>()) * messages
}

pub fn record(text: &str) -> serde_json::Result<LogRecord> {
    serde_json::from_str(text).map(|Object(record): Object<Record>| record.into())
}

pub fn resource(text: &str) -> serde_json::Result<Resource> {
    let read = attributed(text)?;
    Ok(Resource {
        attributes: pairs(read.attributes),
        dropped_attributes_count: number(read.dropped_attributes_count),
        ..Resource::default()
    })
}

pub fn scope(text: &str) -> serde_json::Result<InstrumentationScope> {
    let read = attributed(text)?;
    Ok(InstrumentationScope {
        name: read.name.unwrap_or_default(),
        version: read.version.unwrap_or_default(),
        attributes: pairs(read.attributes),
        dropped_attributes_count: number(read.dropped_attributes_count),
    })
}

pub fn schema_url(text: &str) -> serde_json::Result<String> {
    serde_json::from_str(text).map(Option::unwrap_or_default)
}

fn attributed(text: &str) -> serde_json::Result<Attributed> {
    let read: Option<Object<Attributed>> = serde_json::from_str(text)?;
    Ok(read.map(|Object(read)| read).unwrap_or_default())
}

/// A resource or a scope.
#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Attributed {
    name: Option<String>,
    version: Option<String>,
    attributes: Pairs,
    dropped_attributes_count: Option<Integer<u32>>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Record {
    time_unix_nano: Option<Integer<u64>>,
    observed_time_unix_nano: Option<Integer<u64>>,
    severity_number: Option<Integer<i32>>,
    severity_text: Option<String>,
    body: Option<Object<Any>>,
    attributes: Pairs,
    dropped_attributes_count: Option<Integer<u32>>,
    flags: Option<Integer<u32>>,
    trace_id: Option<Hexadecimal>,
    span_id: Option<Hexadecimal>,
    event_name: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Pair {
    key: Option<String>,
    value: Option<Object<Any>>,
}

/// `AnyValue`: of its fields one is given, or none.
#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Any {
    string_value: Option<String>,
    bool_value: Option<Boolean>,
    int_value: Option<Integer<i64>>,
    double_value: Option<Double>,
    array_value: Option<Object<Values<Any>>>,
    kvlist_value: Option<Object<Values<Pair>>>,
    bytes_value: Option<Base64>,
}

#[derive(Deserialize)]
#[serde(default, bound = "T: Deserialize<'de>")]
struct Values<T> {
    values: Option<List<Object<T>>>,
}

type Pairs = Option<List<Object<Pair>>>;

impl<T> Default for Values<T> {
    fn default() -> Self {
        Self { values: None }
    }
}

impl From<Record> for LogRecord {
    fn from(record: Record) -> Self {
        Self {
            time_unix_nano: number(record.time_unix_nano),
            observed_time_unix_nano: number(record.observed_time_unix_nano),
            severity_number: number(record.severity_number),
            severity_text: record.severity_text.unwrap_or_default(),
            body: record.body.map(|Object(body)| body.into()),
            attributes: pairs(record.attributes),
            dropped_attributes_count: number(record.dropped_attributes_count),
            flags: number(record.flags),
            trace_id: record.trace_id.map(|id| id.0).unwrap_or_default(),
            span_id: record.span_id.map(|id| id.0).unwrap_or_default(),
            event_name: record.event_name.unwrap_or_default(),
        }
    }
}

impl From<Any> for AnyValue {
    fn from(any: Any) -> Self {
        use any_value::Value;
        let value = any
            .string_value
            .map(Value::StringValue)
            .or(any.bool_value.map(|value| Value::BoolValue(value.0)))
            .or(any.int_value.map(|integer| Value::IntValue(integer.0)))
            .or(any.double_value.map(|double| Value::DoubleValue(double.0)))
            .or(any.bytes_value.map(|bytes| Value::BytesValue(bytes.0)))
            .or_else(|| {
                let values = any.array_value?.0.values.map(|List(values)| values).unwrap_or_default();
                let values = values.into_iter().map(|Object(value)| value.into());
                Some(Value::ArrayValue(ArrayValue { values: values.collect() }))
            })
            .or_else(|| Some(Value::KvlistValue(KeyValueList { values: pairs(any.kvlist_value?.0.values) })));
        Self { value }
    }
}

fn pairs(pairs: Pairs) -> Vec<KeyValue> {
    let pair = |Object(Pair { key, value }): Object<Pair>| KeyValue {
        key: key.unwrap_or_default(),
        value: value.map(|Object(value)| value.into()),
        ..KeyValue::default()
    };
    pairs.map(|List(pairs)| pairs).unwrap_or_default().into_iter().map(pair).collect()
}

fn number<T: Default>(integer: Option<Integer<T>>) -> T {
    integer.map(|integer| integer.0).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use any_value::Value;

    use super::*;

    fn value(text: &str) -> Option<Value> {
        let record = record(&format!("{{\"body\":{text}}}")).expect(text);
        record.body.expect("a body").value
    }

    #[test]
    fn values_are_read_as_the_specification_and_senders_write_them() {
        for (text, expected) in [
            (r#"{"stringValue":"a\nb"}"#, Some(Value::StringValue("a\nb".to_owned()))),
            (r#"{"boolValue":false}"#, Some(Value::BoolValue(false))),
            (r#"{"intValue":"-9223372036854775808"}"#, Some(Value::IntValue(i64::MIN))),
            (r#"{"intValue":9223372036854775807}"#, Some(Value::IntValue(i64::MAX))),
            (r#"{"doubleValue":7}"#, Some(Value::DoubleValue(7.0))),
            (r#"{"doubleValue":"-Infinity"}"#, Some(Value::DoubleValue(f64::NEG_INFINITY))),
            (r#"{"bytesValue":"AP8="}"#, Some(Value::BytesValue(vec![0, 255]))),
            (r#"{"bytesValue":"_-8"}"#, Some(Value::BytesValue(vec![255, 239]))),
            // What Go's collector writes of what is empty.
            (r#"{"arrayValue":{}}"#, Some(Value::ArrayValue(ArrayValue::default()))),
            (r#"{"kvlistValue":{"values":null}}"#, Some(Value::KvlistValue(KeyValueList::default()))),
            ("{}", None),
            (r#"{"someDay":1,"stringValue":null}"#, None),
        ] {
            assert_eq!(value(text), expected, "{text}");
        }
        let nested =
            value(r#"{"arrayValue":{"values":[{"kvlistValue":{"values":[{"key":"a","value":{"intValue":1}},{}]}}]}}"#);
        let Some(Value::ArrayValue(array)) = nested else { panic!("{nested:?}") };
        let Some(Value::KvlistValue(list)) = &array.values[0].value else { panic!("{array:?}") };
        assert_eq!((list.values.len(), list.values[0].key.as_str()), (2, "a"));
    }

    #[test]
    fn a_record_has_defaults_for_what_is_left_out_and_nothing_else_is_guessed() {
        let read = record(
            r#"{"timeUnixNano":"1544712660300000000","observedTimeUnixNano":1544712660300000001,"severityNumber":10,
                "severityText":"Information","traceId":"5B8EFFF798038103D269B633813FC60C","spanId":"eee19b7ec3c1b174",
                "attributes":[{"key":"k","value":{"boolValue":true}}],"flags":1,"new":{"field":[1]}}"#,
        )
        .unwrap();
        assert_eq!(
            (read.time_unix_nano, read.observed_time_unix_nano),
            (1_544_712_660_300_000_000, 1_544_712_660_300_000_001)
        );
        assert_eq!((read.severity_number, read.flags, read.trace_id[0], read.span_id.len()), (10, 1, 0x5b, 8));
        assert_eq!((read.body, read.event_name.as_str(), read.attributes[0].key.as_str()), (None, "", "k"));
        assert_eq!(record("{}").unwrap(), LogRecord::default());
        assert_eq!(record(r#"{"attributes":null,"timeUnixNano":null,"body":null}"#).unwrap(), LogRecord::default());
        for (bad, words) in [
            (r#"{"timeUnixNano":"yesterday"}"#, "an integer"),
            (r#"{"timeUnixNano":-1}"#, "an integer"),
            (r#"{"traceId":"xyz"}"#, "hexadecimal"),
            (r#"{"body":{"bytesValue":"*"}}"#, "base64"),
            (r#"{"body":{"doubleValue":"inf"}}"#, "a number"),
            (r#"{"body":"text"}"#, "an object"),
            (r#"{"body":[]}"#, "expected an object"),
            (r#"{"body":{"boolValue":"true"}}"#, "a boolean"),
            (r#"{"timeUnixNano":1.5}"#, "an integer"),
            (r#"{"flags":4294967296}"#, "an integer"),
            ("7", "expected an object"),
        ] {
            let error = record(bad).unwrap_err().to_string();
            assert!(error.contains(words), "{bad}: {error}");
        }
    }

    #[test]
    fn what_is_of_the_wrong_type_is_refused_where_it_begins_and_is_not_quoted() {
        let long = "x".repeat(10_000);
        let strings = [
            format!("\"{long}\""),
            format!(r#"{{"body":"{long}"}}"#),
            format!(r#"{{"attributes":"{long}"}}"#),
            format!(r#"{{"attributes":["{long}"]}}"#),
            format!(r#"{{"timeUnixNano":"{long}"}}"#),
            format!(r#"{{"traceId":"{long}"}}"#),
            format!(r#"{{"body":{{"boolValue":"{long}"}}}}"#),
            format!(r#"{{"body":{{"doubleValue":"{long}"}}}}"#),
            format!(r#"{{"body":{{"bytesValue":"{long}*"}}}}"#),
            format!(r#"{{"body":{{"arrayValue":"{long}"}}}}"#),
            format!(r#"{{"body":{{"kvlistValue":{{"values":"{long}"}}}}}}"#),
        ];
        for text in strings {
            let error = record(&text).unwrap_err().to_string();
            assert!(error.len() < 200, "{error}");
        }
        let text = format!("\"{long}\"");
        let array: &RawValue = serde_json::from_str(&text).unwrap();
        for error in
            [elements(array, 3).err(), request(text.as_bytes()).err(), resource(&text).err(), scope(&text).err()]
        {
            let error = error.expect("it is refused").to_string();
            assert!(error.len() < 200, "{error}");
        }
        // No tree of it is made.
        for field in ["timeUnixNano", "severityNumber"] {
            let error = record(&format!(r#"{{"{field}":[{}1]}}"#, "1,".repeat(1000))).unwrap_err();
            assert!(error.column() < 30, "{error}");
        }
    }

    #[test]
    fn elements_are_found_up_to_a_bound_however_deep_they_are() {
        let deep = format!("[{}{},2,3]", "[".repeat(1000), "]".repeat(1000));
        let array: &RawValue = serde_json::from_str(&deep).unwrap();
        assert_eq!(
            elements(array, 3).unwrap().iter().map(|element| element.get().len()).collect::<Vec<_>>(),
            [2000, 1, 1]
        );
        assert_eq!(elements(array, 2).unwrap().len(), 3);
        assert_eq!(elements(array, 1).unwrap().len(), 2);
        assert!(elements(serde_json::from_str("{}").unwrap(), 2).is_err());
    }

    #[test]
    fn resources_and_scopes_are_read_with_their_attributes() {
        let text = r#"{"name":"lib","version":"1","attributes":[{"key":"a","value":{"stringValue":"b"}}],"droppedAttributesCount":2}"#;
        assert_eq!(resource(text).unwrap().attributes.len(), 1);
        let scope = scope(text).unwrap();
        assert_eq!((&*scope.name, &*scope.version, scope.dropped_attributes_count), ("lib", "1", 2));
        assert_eq!(resource("null").unwrap(), Resource::default());
    }

    #[test]
    fn what_becomes_large_in_memory_is_weighed_before_it_is_made() {
        let attributes = format!(r#"{{"attributes":[{}]}}"#, vec!["{}"; 100_000].join(","));
        assert!(weight(&attributes) >= 100_000 * (size_of::<Pair>() + size_of::<KeyValue>()));
        let text = format!(r#"{{"severityText":"{}"}}"#, "\\\"[{,".repeat(10_000));
        assert!(weight(&text) < 8 * text.len());
    }
}
