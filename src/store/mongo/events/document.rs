//! One event as a document: exactly what the client sent, or its bytes as a string.

use std::fmt;

use mongodb::bson::{Bson, DateTime, Document, RawDocumentBuf, rawdoc};
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::store::{ProcessedEvent, group::exact_number, mongo::bson_number};

/// What an event is kept as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// As a document, where BSON can hold it exactly.
    Document,
    /// As a string.
    Raw,
    /// Only the fields beside it.
    Omitted,
}

/// The server refuses documents nested deeper than this below their top; the event is one level down.
const DEPTH: usize = 90;
/// The largest document that the server takes is 16 MiB.
const LARGEST: usize = 15 << 20;

/// The document of an event, in `form` or in the next plainer one that can hold it.
pub fn of(event: &ProcessedEvent, id: String, form: Form) -> RawDocumentBuf {
    let mut document = rawdoc! {
        "_id": id,
        "time": DateTime::from_millis(event.time.timestamp_millis()),
        "received": DateTime::from_millis(event.received.0),
        "type": event.event_type.as_str(),
    };
    if let Some(client) = &event.client {
        document.append(mongodb::bson::cstr!("client_id"), client.as_str());
    }
    if let Some(id) = &event.id {
        document.append(mongodb::bson::cstr!("event_id"), id.as_str());
    }
    let whole = (form == Form::Document).then(|| exactly(&event.json)).flatten();
    let whole = whole.and_then(|whole| RawDocumentBuf::try_from(&whole).ok());
    match whole.filter(|whole| whole.as_bytes().len() <= LARGEST) {
        Some(whole) => document.append(mongodb::bson::cstr!("event"), whole),
        None if form != Form::Omitted && event.json.len() <= LARGEST => {
            document.append(mongodb::bson::cstr!("raw"), &*String::from_utf8_lossy(&event.json));
        }
        None => document.append(mongodb::bson::cstr!("omitted"), true),
    }
    document
}

/// The event as BSON, unless that would change it: numbers beyond 64 bits or more precise than a double, keys that
/// occur twice or hold a NUL, deep nesting.
pub fn exactly(json: &[u8]) -> Option<Document> {
    match value(serde_json::from_slice(json).ok()?, 0)? {
        Bson::Document(document) => Some(document),
        _ => None,
    }
}

/// A value within `depth` others.
fn value(json: &RawValue, depth: usize) -> Option<Bson> {
    let json = json.get();
    Some(match json.as_bytes().first()? {
        b'n' => Bson::Null,
        first @ (b't' | b'f') => Bson::Boolean(*first == b't'),
        b'"' => Bson::String(serde_json::from_str(json).ok()?),
        b'[' | b'{' if depth >= DEPTH => return None,
        b'[' => {
            let elements: Vec<&RawValue> = serde_json::from_str(json).ok()?;
            Bson::Array(elements.into_iter().map(|element| value(element, depth + 1)).collect::<Option<_>>()?)
        }
        b'{' => {
            let Fields(fields) = serde_json::from_str(json).ok()?;
            let mut document = Document::new();
            for (key, field) in fields {
                if key.contains('\0') || document.contains_key(&key) {
                    return None;
                }
                document.insert(key, value(field, depth + 1)?);
            }
            Bson::Document(document)
        }
        // Once parsed, what was lost of a number cannot be seen any more: its text is looked at.
        _ => bson_number(&exact_number(json)?),
    })
}

/// The fields of an object in their order, each as often as it stands there.
struct Fields<'a>(Vec<(String, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Fields<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;

        impl<'de> Visitor<'de> for Object {
            type Value = Fields<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields<'de>, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(Fields(fields))
            }
        }

        deserializer.deserialize_map(Object)
    }
}

#[cfg(test)]
mod tests {
    use chrono::DateTime as Calendar;
    use mongodb::bson::doc;
    use proptest::prelude::*;

    use super::*;
    use crate::position::{Offset, Partition, Timestamp};

    fn kept(json: &str, form: Form) -> Document {
        let event = ProcessedEvent {
            partition: Partition(0),
            offset: Offset(0),
            time: Calendar::default(),
            received: Timestamp(0),
            event_type: "t".to_owned(),
            client: None,
            id: None,
            json: json.as_bytes().to_vec(),
        };
        Document::try_from(of(&event, "events/0/0".to_owned(), form)).unwrap()
    }

    #[test]
    fn an_event_is_a_document_with_the_same_values() {
        let kept = kept(r#"{"type":"t","n":1,"f":2.50,"a":[null,true,"9e999"],"o":{"a.b":"\"1e999"}}"#, Form::Document);
        let expected =
            doc! { "type": "t", "n": 1_i64, "f": 2.5, "a": [Bson::Null, true, "9e999"], "o": { "a.b": "\"1e999" } };
        assert_eq!(kept.get_document("event").unwrap(), &expected);
        assert!(!kept.contains_key("raw"));
    }

    #[test]
    fn an_event_that_bson_would_change_stays_a_string() {
        let deep = format!(r#"{{"a":{}{}}}"#, "[".repeat(100), "]".repeat(100));
        for json in [r#"{"a":18446744073709551615}"#, r#"{"a":1e999}"#, r#"{"a":1,"a":1}"#, r#"{"a\u0000":1}"#, &deep] {
            let kept = kept(json, Form::Document);
            assert_eq!(kept.get_str("raw").unwrap(), json);
            assert!(!kept.contains_key("event"));
        }
    }

    proptest! {
        #[test]
        fn a_fraction_is_the_double_that_it_was(number in proptest::num::f64::NORMAL | proptest::num::f64::SUBNORMAL) {
            let document = exactly(format!(r#"{{"number":{number:e}}}"#).as_bytes()).unwrap();
            prop_assert_eq!(document.get_f64("number").unwrap().to_bits(), number.to_bits());
        }
    }

    #[test]
    fn the_plainer_forms_can_be_asked_for() {
        assert_eq!(kept("{}", Form::Raw).get_str("raw").unwrap(), "{}");
        assert!(kept("{}", Form::Omitted).get_bool("omitted").unwrap());
    }
}
