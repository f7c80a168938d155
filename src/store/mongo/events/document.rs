//! One event as a document: exactly what the client sent, or its bytes, as a string where they are text.

use std::{borrow::Cow, fmt};

use mongodb::bson::{
    Bson, DateTime, Document, RawBinaryRef, RawBson, RawDocumentBuf, cstr, raw::CString, rawdoc, spec::BinarySubtype,
};
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use crate::store::{ProcessedEvent, group::exact_number};

/// What an event is kept as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// As a document (or what else its JSON is), where BSON can hold it exactly.
    Document,
    /// As a string, or as binary data where it is no text.
    Raw,
    /// Only the fields beside it, without its attributes.
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
        "partition": event.partition.0,
        "offset": event.offset.as_i64(),
    };
    if let Some(client) = &event.client {
        document.append(cstr!("client_id"), client.as_str());
    }
    if let Some(id) = &event.id {
        document.append(cstr!("event_id"), id.as_str());
    }
    if form != Form::Omitted && !event.attributes.is_empty() {
        // A name with a NUL, which no CloudEvent has, cannot stand in a document.
        let attributes = event.attributes.iter();
        let attributes = attributes.filter_map(|(name, value)| Some((CString::try_from(&**name).ok()?, &**value)));
        document.append(cstr!("attributes"), attributes.collect::<RawDocumentBuf>());
    }
    let whole = (form == Form::Document).then(|| exactly(&event.data)).flatten();
    let whole = whole.and_then(|whole| RawBson::try_from(whole).ok());
    match whole.filter(|whole| size(whole) <= LARGEST) {
        Some(whole) => document.append(cstr!("event"), whole),
        None if form != Form::Omitted && event.data.len() <= LARGEST => match std::str::from_utf8(&event.data) {
            Ok(text) => document.append(cstr!("raw"), text),
            Err(_) => {
                let data = RawBinaryRef { subtype: BinarySubtype::Generic, bytes: &event.data };
                document.append(cstr!("raw"), data);
            }
        },
        None => document.append(cstr!("omitted"), true),
    }
    document
}

/// Of what nests, which may be much larger than its JSON.
fn size(value: &RawBson) -> usize {
    match value {
        RawBson::Document(document) => document.as_bytes().len(),
        RawBson::Array(array) => array.as_bytes().len(),
        RawBson::String(text) => text.len(),
        _ => 0,
    }
}

/// JSON as BSON, unless that would change it: numbers beyond 64 bits or more precise than a double, keys that
/// occur twice or hold a NUL, deep nesting.
pub fn exactly(json: &[u8]) -> Option<Bson> {
    if !numbers_are_exact(json) {
        return None;
    }
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let value = (Exactly { depth: 0 }).deserialize(&mut deserializer).ok()?;
    deserializer.end().is_ok().then_some(value)
}

/// Looks at the text of each number: once parsed, what was lost cannot be seen any more. Says nothing where `json` is none.
/// (Each byte is read once here and once in the parser, however deep it stands.)
fn numbers_are_exact(json: &[u8]) -> bool {
    let mut at = 0;
    while let Some(byte) = json.get(at) {
        match byte {
            b'"' => {
                at += 1;
                while let Some(byte) = json.get(at).filter(|byte| **byte != b'"') {
                    at += if *byte == b'\\' { 2 } else { 1 };
                }
                at += 1;
            }
            b'-' | b'0'..=b'9' => {
                let number =
                    json[at..].iter().take_while(|byte| matches!(byte, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E'));
                let end = at + number.count();
                if std::str::from_utf8(&json[at..end]).ok().and_then(exact_number).is_none() {
                    return false;
                }
                at = end;
            }
            _ => at += 1,
        }
    }
    true
}

#[derive(Clone, Copy)]
struct Exactly {
    depth: usize,
}

impl Exactly {
    fn deeper<E: Error>(self) -> Result<Self, E> {
        if self.depth < DEPTH { Ok(Self { depth: self.depth + 1 }) } else { Err(E::custom("nested too deeply")) }
    }
}

impl<'de> DeserializeSeed<'de> for Exactly {
    type Value = Bson;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Bson, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Exactly {
    type Value = Bson;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E: Error>(self) -> Result<Bson, E> {
        Ok(Bson::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Bson, E> {
        Ok(Bson::Boolean(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Bson, E> {
        Ok(Bson::Int64(value))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Bson, E> {
        i64::try_from(value).map(Bson::Int64).map_err(E::custom)
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Bson, E> {
        Ok(Bson::Double(value))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Bson, E> {
        Ok(Bson::String(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Bson, A::Error> {
        let inner = self.deeper()?;
        let mut values = Vec::new();
        while let Some(value) = seq.next_element_seed(inner)? {
            values.push(value);
        }
        Ok(Bson::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Bson, A::Error> {
        let inner = self.deeper()?;
        let mut document = Document::new();
        while let Some(key) = map.next_key::<Cow<'de, str>>()? {
            if key.contains('\0') || document.contains_key(&key) {
                return Err(A::Error::custom("a key that BSON cannot hold"));
            }
            let value = map.next_value_seed(inner)?;
            document.insert(key, value);
        }
        Ok(Bson::Document(document))
    }
}

#[cfg(test)]
mod tests {
    use chrono::DateTime as Calendar;
    use mongodb::bson::{Binary, doc};
    use proptest::prelude::*;

    use super::*;
    use crate::position::{Offset, Partition, Timestamp};

    fn kept(data: impl AsRef<[u8]>, form: Form) -> Document {
        kept_with(Vec::new(), data.as_ref(), form)
    }

    fn kept_with(attributes: Vec<(String, String)>, data: &[u8], form: Form) -> Document {
        let event = ProcessedEvent {
            partition: Partition(0),
            offset: Offset(0),
            time: Calendar::default(),
            received: Timestamp(0),
            event_type: "t".to_owned(),
            client: None,
            id: None,
            attributes,
            data: data.to_vec(),
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
            let document = document.as_document().unwrap();
            prop_assert_eq!(document.get_f64("number").unwrap().to_bits(), number.to_bits());
        }
    }

    #[test]
    fn the_plainer_forms_can_be_asked_for() {
        assert_eq!(kept("{}", Form::Raw).get_str("raw").unwrap(), "{}");
        assert!(kept("{}", Form::Omitted).get_bool("omitted").unwrap());
    }

    #[test]
    fn an_event_with_attributes_may_be_anything_and_keeps_them() {
        let attributes = || ["source", "$shop", "a.b", "\0"].map(|name| (name.to_owned(), "x".to_owned())).to_vec();
        for (data, key, expected) in [
            (&b"[1,{}]"[..], "event", Bson::Array(vec![Bson::Int64(1), Bson::Document(doc! {})])),
            (b"\"text\"", "event", Bson::String("text".to_owned())),
            (b"null", "event", Bson::Null),
            (b"no JSON: \"", "raw", Bson::String("no JSON: \"".to_owned())),
            (b"-", "raw", Bson::String("-".to_owned())),
            (b"", "raw", Bson::String(String::new())),
            (b"\xff\0", "raw", Bson::Binary(Binary { subtype: BinarySubtype::Generic, bytes: vec![0xff, 0] })),
        ] {
            let kept = kept_with(attributes(), data, Form::Document);
            assert_eq!(kept.get(key), Some(&expected), "{kept}");
            assert_eq!(kept.get_document("attributes").unwrap(), &doc! { "source": "x", "$shop": "x", "a.b": "x" });
        }
        let omitted = kept_with(attributes(), b"{}", Form::Omitted);
        assert!(omitted.get_bool("omitted").unwrap() && !omitted.contains_key("attributes"));
    }
}
