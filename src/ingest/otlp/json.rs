//! OTLP/JSON: the same messages as protobuf's, in the mapping that the OTLP specification gives for JSON.
//!
//! What it allows and what senders do: names in lowerCamelCase, unknown ones ignored, defaults left out or `null`, integers of
//! 64 bits as strings or numbers, doubles also as `"NaN"` and `"Infinity"`, ids in hexadecimal, bytes in base64, enumerations as
//! numbers.

use std::{borrow::Cow, fmt, str::FromStr};

use base64::{
    Engine as _, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
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

/// The elements of an array, at most one more than `most`.
///
/// # Errors
/// It is no array.
pub fn elements(array: &RawValue, most: usize) -> serde_json::Result<Vec<&RawValue>> {
    let mut elements = Vec::new();
    let mut json = serde_json::Deserializer::from_str(array.get());
    let read = json.deserialize_seq(Elements { elements: &mut elements, most });
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
    serde_json::from_str::<Record>(text).map(LogRecord::from)
}

pub fn resource(text: &str) -> serde_json::Result<Resource> {
    let read: Option<Attributed> = serde_json::from_str(text)?;
    let read = read.unwrap_or_default();
    Ok(Resource {
        attributes: pairs(read.attributes),
        dropped_attributes_count: number(read.dropped_attributes_count),
        ..Resource::default()
    })
}

pub fn scope(text: &str) -> serde_json::Result<InstrumentationScope> {
    let read: Option<Attributed> = serde_json::from_str(text)?;
    let read = read.unwrap_or_default();
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

/// A resource or a scope.
#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Attributed {
    name: Option<String>,
    version: Option<String>,
    attributes: Option<Vec<Pair>>,
    dropped_attributes_count: Option<Integer<u32>>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Record {
    time_unix_nano: Option<Integer<u64>>,
    observed_time_unix_nano: Option<Integer<u64>>,
    severity_number: Option<Integer<i32>>,
    severity_text: Option<String>,
    body: Option<Any>,
    attributes: Option<Vec<Pair>>,
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
    value: Option<Any>,
}

/// `AnyValue`: of its fields one is given, or none.
#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Any {
    string_value: Option<String>,
    bool_value: Option<bool>,
    int_value: Option<Integer<i64>>,
    double_value: Option<Double>,
    array_value: Option<Values<Any>>,
    kvlist_value: Option<Values<Pair>>,
    bytes_value: Option<Base64>,
}

#[derive(Deserialize)]
#[serde(default)]
struct Values<T> {
    values: Option<Vec<T>>,
}

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
            body: record.body.map(AnyValue::from),
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
            .or(any.bool_value.map(Value::BoolValue))
            .or(any.int_value.map(|integer| Value::IntValue(integer.0)))
            .or(any.double_value.map(|double| Value::DoubleValue(double.0)))
            .or(any.bytes_value.map(|bytes| Value::BytesValue(bytes.0)))
            .or_else(|| {
                let values = any.array_value?.values.unwrap_or_default();
                Some(Value::ArrayValue(ArrayValue { values: values.into_iter().map(Self::from).collect() }))
            })
            .or_else(|| Some(Value::KvlistValue(KeyValueList { values: pairs(any.kvlist_value?.values) })));
        Self { value }
    }
}

fn pairs(pairs: Option<Vec<Pair>>) -> Vec<KeyValue> {
    let pair = |Pair { key, value }| KeyValue {
        key: key.unwrap_or_default(),
        value: value.map(AnyValue::from),
        ..KeyValue::default()
    };
    pairs.unwrap_or_default().into_iter().map(pair).collect()
}

fn number<T: Default>(integer: Option<Integer<T>>) -> T {
    integer.map(|integer| integer.0).unwrap_or_default()
}

/// A JSON number, or a string with one.
#[derive(Deserialize)]
#[serde(untagged)]
enum NumberOrText<'a, T> {
    Number(T),
    #[serde(borrow)]
    Text(Cow<'a, str>),
}

struct Integer<T>(T);

impl<'de, T: Deserialize<'de> + FromStr> Deserialize<'de> for Integer<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match NumberOrText::deserialize(deserializer) {
            Ok(NumberOrText::Number(number)) => Ok(Self(number)),
            Ok(NumberOrText::Text(text)) => text.parse().map(Self).map_err(|_| D::Error::custom(INTEGER)),
            Err(_) => Err(D::Error::custom(INTEGER)),
        }
    }
}

const INTEGER: &str = "an integer in its range was expected, or a string with one";

struct Double(f64);

impl<'de> Deserialize<'de> for Double {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let number = match NumberOrText::deserialize(deserializer) {
            Ok(NumberOrText::Number(number)) => Some(number),
            Ok(NumberOrText::Text(text)) => match &*text {
                "NaN" => Some(f64::NAN),
                "Infinity" => Some(f64::INFINITY),
                "-Infinity" => Some(f64::NEG_INFINITY),
                // The standard library knows more names.
                text => text.parse().ok().filter(|number: &f64| number.is_finite()),
            },
            Err(_) => None,
        };
        number
            .map(Self)
            .ok_or_else(|| D::Error::custom("a number was expected, \"NaN\", \"Infinity\" or \"-Infinity\""))
    }
}

/// An id of a trace or a span.
struct Hexadecimal(Vec<u8>);

impl<'de> Deserialize<'de> for Hexadecimal {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<'de, str>::deserialize(deserializer)?;
        hex::decode(&*text).map(Self).map_err(|_| D::Error::custom("an id in hexadecimal was expected"))
    }
}

struct Base64(Vec<u8>);

impl<'de> Deserialize<'de> for Base64 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        const ANY_PADDING: GeneralPurposeConfig =
            GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
        const STANDARD: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, ANY_PADDING);
        const URL_SAFE: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, ANY_PADDING);
        let text = Cow::<'de, str>::deserialize(deserializer)?;
        let bytes = STANDARD.decode(&*text).or_else(|_| URL_SAFE.decode(&*text));
        bytes.map(Self).map_err(|_| D::Error::custom("bytes in base64 were expected"))
    }
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
            (r#"{"body":"text"}"#, "expected struct Any"),
            ("7", "expected struct Record"),
        ] {
            let error = record(bad).unwrap_err().to_string();
            assert!(error.contains(words), "{bad}: {error}");
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
