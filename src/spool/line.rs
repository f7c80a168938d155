//! The lines of an archive object: one JSON object a record.
//!
//! ```json
//! {"offset":42,"received":"2026-11-23T08:00:00.123Z","event":{…}}
//! ```
//! plus `"id"` where the server assigned it, `"key"` where the event does not hold the record's key itself, `"headers"`
//! (a list of `{"name","value"}`, or `"base64"` where a value is no text) when there are others. The event's bytes stand
//! as they came, but for CR and LF (in JSON only white space between tokens), which become one space each. A value that
//! is not JSON stands as `"raw":"<base64>"`, a null value as `"raw":null`.

use std::io::Write;

use base64::{Engine, display::Base64Display, engine::general_purpose::STANDARD};
use serde::{
    Deserializer,
    de::{IgnoredAny, MapAccess, Visitor},
};
use serde_json::value::RawValue;

use crate::{
    event,
    position::Timestamp,
    queue::record::{Headers, ID_HEADER, Record},
};

/// Writes lines; keeps what consecutive records share.
pub struct LineEncoder {
    /// The event's field whose value is the record's key, alone.
    key_field: [String; 1],
    /// The text of a second and its first millisecond: most records share it with the one before.
    second: i64,
    second_text: String,
}

impl LineEncoder {
    pub fn new(key_field: String) -> Self {
        Self { key_field: [key_field], second: i64::MIN, second_text: String::new() }
    }

    /// Appends the record's line, with its line end.
    pub fn encode(&mut self, record: &Record<'_>, line: &mut Vec<u8>) {
        line.extend_from_slice(b"{\"offset\":");
        line.extend_from_slice(itoa::Buffer::new().format(record.offset.0).as_bytes());
        line.extend_from_slice(b",\"received\":\"");
        self.write_time(record.received, line);
        line.push(b'"');
        if let Some(id) = record.headers.id() {
            line.extend_from_slice(b",\"id\":");
            write_json_string(id, line);
        }
        let json = record.value.and_then(|value| inspect(value, &self.key_field));
        if let Some(key) = record.key
            && json.as_ref().and_then(|json| json.key.as_deref()).map(str::as_bytes) != Some(key)
        {
            line.extend_from_slice(b",\"key\":");
            write_text_or_base64(key, line);
        }
        write_headers(record.headers, line);
        match (json, record.value) {
            (Some(json), _) => {
                line.extend_from_slice(b",\"event\":");
                write_one_line(json.text.as_bytes(), line);
            }
            (None, Some(value)) => {
                line.extend_from_slice(b",\"raw\":");
                write_base64(value, line);
            }
            (None, None) => line.extend_from_slice(b",\"raw\":null"),
        }
        line.extend_from_slice(b"}\n");
    }

    fn write_time(&mut self, time: Timestamp, line: &mut Vec<u8>) {
        let (second, millisecond) = (time.0.div_euclid(1000), time.0.rem_euclid(1000));
        if second != self.second {
            self.second = second;
            self.second_text = Timestamp(second * 1000).to_datetime().format("%Y-%m-%dT%H:%M:%S").to_string();
        }
        line.extend_from_slice(self.second_text.as_bytes());
        let digit = |place: i64| b'0' + (millisecond / place % 10) as u8;
        line.extend_from_slice(&[b'.', digit(100), digit(10), digit(1), b'Z']);
    }
}

/// A value that is JSON, and what stands in it under the key's name.
struct Inspected<'a> {
    text: &'a str,
    key: Option<std::borrow::Cow<'a, str>>,
}

/// `None` when the value is not one JSON value in valid UTF-8.
fn inspect<'a>(value: &'a [u8], key_field: &[String; 1]) -> Option<Inspected<'a>> {
    let text = std::str::from_utf8(value).ok()?;
    let key = match event::object(text, key_field) {
        Some(found) => found[0],
        None => judge(text, &key_field[0])?,
    };
    let key = key.and_then(|text| match text.as_bytes()[0] {
        b'"' => event::unescape(text).ok(),
        b'{' | b'[' | b'n' => None,
        _ => Some(text.into()),
    });
    Some(Inspected { text, key })
}

/// The key's text by serde_json, for what may not be an object, or not be JSON.
fn judge<'a>(text: &'a str, key_field: &str) -> Option<Option<&'a str>> {
    let mut json = serde_json::Deserializer::from_str(text);
    let is_object = text.trim_start_matches([' ', '\t', '\r', '\n']).starts_with('{');
    let key = if is_object {
        json.deserialize_map(KeyVisitor { key_field }).ok()?
    } else {
        json.deserialize_ignored_any(IgnoredAny).ok()?;
        None
    };
    json.end().ok()?;
    Some(key.map(RawValue::get))
}

struct KeyVisitor<'f> {
    key_field: &'f str,
}

impl<'de> Visitor<'de> for KeyVisitor<'_> {
    type Value = Option<&'de RawValue>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut key = None;
        while let Some(name) = map.next_key_seed(Name(self.key_field))? {
            if name {
                key = Some(map.next_value()?);
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(key)
    }
}

/// Whether a field's name is this one, without an allocation for any.
struct Name<'f>(&'f str);

impl<'de> serde::de::DeserializeSeed<'de> for Name<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Name<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a field name")
    }

    fn visit_str<E>(self, name: &str) -> Result<bool, E> {
        Ok(name == self.0)
    }
}

/// CR and LF become one space each; in valid JSON they stand between tokens only.
fn write_one_line(json: &[u8], line: &mut Vec<u8>) {
    let start = line.len();
    line.extend_from_slice(json);
    let written = &mut line[start..];
    let mut from = 0;
    while let Some(at) = memchr::memchr2(b'\r', b'\n', &written[from..]) {
        written[from + at] = b' ';
        from += at + 1;
    }
}

fn write_headers(headers: Headers<'_>, line: &mut Vec<u8>) {
    // The one that was written as "id" is the first of that name, where it is text.
    let mut written = headers.id().is_some();
    let is_other = |header: &(&str, _)| header.0 != ID_HEADER || !std::mem::take(&mut written);
    let mut others = headers.iter().filter(is_other).peekable();
    if others.peek().is_none() {
        return;
    }
    line.extend_from_slice(b",\"headers\":[");
    for (index, (name, value)) in others.enumerate() {
        if index > 0 {
            line.push(b',');
        }
        line.extend_from_slice(b"{\"name\":");
        write_json_string(name, line);
        match value.map(std::str::from_utf8) {
            None => line.extend_from_slice(b",\"value\":null"),
            Some(Ok(text)) => {
                line.extend_from_slice(b",\"value\":");
                write_json_string(text, line);
            }
            Some(Err(_)) => {
                line.extend_from_slice(b",\"base64\":");
                write_base64(value.unwrap_or_default(), line);
            }
        }
        line.push(b'}');
    }
    line.push(b']');
}

/// Text as a JSON string, other bytes as `{"base64":"…"}`.
fn write_text_or_base64(bytes: &[u8], line: &mut Vec<u8>) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        write_json_string(text, line);
    } else {
        line.extend_from_slice(b"{\"base64\":");
        write_base64(bytes, line);
        line.push(b'}');
    }
}

fn write_json_string(text: &str, line: &mut Vec<u8>) {
    if text.bytes().all(|byte| byte >= b' ' && byte != b'"' && byte != b'\\') {
        line.push(b'"');
        line.extend_from_slice(text.as_bytes());
        return line.push(b'"');
    }
    // A string always serialises, and a Vec takes it.
    let _ = serde_json::to_writer(line, text);
}

fn write_base64(bytes: &[u8], line: &mut Vec<u8>) {
    let _ = write!(line, "\"{}\"", Base64Display::new(bytes, &STANDARD));
}

/// The bytes of a `"raw"` field.
pub fn decode_raw(text: &str) -> Option<Vec<u8>> {
    STANDARD.decode(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{position::Offset, queue::record::RecordBuffer};

    fn line_of(key: Option<&[u8]>, value: Option<&[u8]>, headers: &[(&str, Option<&[u8]>)]) -> String {
        let mut buffer = RecordBuffer::default();
        buffer.push(Offset(42), Timestamp(1_795_420_800_123), key, value, headers.iter().copied());
        let mut line = Vec::new();
        for record in buffer.iter() {
            LineEncoder::new("client_id".to_owned()).encode(&record, &mut line);
        }
        String::from_utf8(line).unwrap()
    }

    const HEAD: &str = r#"{"offset":42,"received":"2026-11-23T08:00:00.123Z""#;

    #[test]
    fn the_events_bytes_stand_as_they_came_but_for_line_ends() {
        let event = b"{\"type\" : \"a\",\r\n \"n\":1.00, \"u\":\"\\u00e9\",\"big\":1e999}";
        let expected =
            format!("{HEAD},\"event\":{{\"type\" : \"a\",   \"n\":1.00, \"u\":\"\\u00e9\",\"big\":1e999}}}}\n");
        assert_eq!(line_of(None, Some(event), &[]), expected);
    }

    #[test]
    fn a_key_is_written_only_where_the_event_does_not_hold_it() {
        assert_eq!(
            line_of(Some(b"c"), Some(br#"{"client_id":"c"}"#), &[]),
            format!("{HEAD},\"event\":{{\"client_id\":\"c\"}}}}\n")
        );
        assert_eq!(
            line_of(Some(b"7"), Some(br#"{"client_id":7}"#), &[]),
            format!("{HEAD},\"event\":{{\"client_id\":7}}}}\n")
        );
        assert_eq!(line_of(Some(b"d"), Some(b"{}"), &[]), format!("{HEAD},\"key\":\"d\",\"event\":{{}}}}\n"));
        assert_eq!(
            line_of(Some(b"\xff"), Some(b"{}"), &[]),
            format!("{HEAD},\"key\":{{\"base64\":\"/w==\"}},\"event\":{{}}}}\n")
        );
    }

    #[test]
    fn what_is_not_json_stands_as_base64() {
        for value in [b"{".as_slice(), b"\xff", b"{} {}", b"", b"{\"a\":\"\xff\"}"] {
            let expected = format!("{HEAD},\"raw\":\"{}\"}}\n", STANDARD.encode(value));
            assert_eq!(line_of(None, Some(value), &[]), expected);
        }
        assert_eq!(line_of(None, None, &[]), format!("{HEAD},\"raw\":null}}\n"));
    }

    #[test]
    fn headers_stand_in_their_order_and_the_id_has_a_field_of_its_own() {
        let headers =
            [("id", Some(b"u".as_slice())), ("a", Some(b"x".as_slice())), ("a", None), ("b", Some(b"\xff".as_slice()))];
        let expected = format!(
            "{HEAD},\"id\":\"u\",\"headers\":[{{\"name\":\"a\",\"value\":\"x\"}},{{\"name\":\"a\",\"value\":null}},{{\"name\":\"b\",\"base64\":\"/w==\"}}],\"event\":5}}\n"
        );
        assert_eq!(line_of(None, Some(b"5"), &headers), expected);
    }

    #[test]
    fn only_the_one_id_that_stands_for_itself_is_left_out_of_the_headers() {
        let twice = [("id", Some(b"u".as_slice())), ("id", Some(b"v".as_slice()))];
        let expected = format!("{HEAD},\"id\":\"u\",\"headers\":[{{\"name\":\"id\",\"value\":\"v\"}}],\"event\":5}}\n");
        assert_eq!(line_of(None, Some(b"5"), &twice), expected);
        let expected = format!("{HEAD},\"headers\":[{{\"name\":\"id\",\"base64\":\"/w==\"}}],\"event\":5}}\n");
        assert_eq!(line_of(None, Some(b"5"), &[("id", Some(b"\xff"))]), expected);
        let expected = format!("{HEAD},\"headers\":[{{\"name\":\"id\",\"value\":null}}],\"event\":5}}\n");
        assert_eq!(line_of(None, Some(b"5"), &[("id", None)]), expected);
    }

    mod properties {
        use proptest::{collection::vec, prelude::*, sample::select};
        use serde::Deserialize;
        use serde_json::Value;

        use super::*;
        use crate::{
            config::EventConfig,
            event::{self, EventFields, MAX_DEPTH},
        };

        /// A line as its readers see it.
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Read<'a> {
            offset: u64,
            #[serde(rename = "received")]
            _received: &'a str,
            id: Option<String>,
            key: Option<Value>,
            headers: Option<Vec<Value>>,
            #[serde(borrow)]
            event: Option<&'a RawValue>,
            raw: Option<String>,
        }

        fn holds(key: Option<&[u8]>, value: &[u8], headers: &[(&str, Option<&[u8]>)]) -> Result<(), TestCaseError> {
            let line = line_of(key, Some(value), headers);
            prop_assert_eq!(line.find(['\n', '\r']), Some(line.len() - 1), "one line: {}", line);
            let read: Read<'_> = serde_json::from_str(&line).unwrap();
            prop_assert_eq!((read.offset, read.event.is_some()), (42, read.raw.is_none()));
            let has_id = headers.iter().any(|(name, _)| *name == ID_HEADER);
            prop_assert_eq!(read.id.is_some(), has_id);
            prop_assert_eq!(read.headers.map_or(0, |headers| headers.len()) + usize::from(has_id), headers.len());
            let tree = serde_json::from_slice::<Value>(value);
            if let Some(raw) = read.raw {
                prop_assert!(tree.is_err());
                prop_assert_eq!(decode_raw(&raw), Some(value.to_vec()));
            }
            if let Some(event) = read.event {
                let one_line = String::from_utf8(value.to_vec()).unwrap().replace(['\r', '\n'], " ");
                prop_assert_eq!(event.get(), one_line.trim_matches([' ', '\t']));
                if let Ok(tree) = &tree {
                    prop_assert_eq!(&serde_json::from_str::<Value>(event.get()).unwrap(), tree);
                }
                let written = match &read.key {
                    Some(Value::String(key)) => Some(key.clone().into_bytes()),
                    Some(key) => decode_raw(key["base64"].as_str().unwrap()),
                    None => None,
                };
                if let Some(written) = written {
                    prop_assert_eq!(Some(written.as_slice()), key);
                }
            }
            // What the door accepts can be read as a tree with its line around it, wherever it can be read alone.
            let fields = EventFields::from(&EventConfig::default());
            if event::parse(value, &fields).is_ok()
                && let Ok(tree) = tree
            {
                let whole: Value = serde_json::from_str(&line).unwrap();
                prop_assert_eq!(&whole["event"], &tree);
            }
            Ok(())
        }

        proptest! {
            #[test]
            fn a_line_gives_back_any_value_with_its_key_and_headers(
                value in prop_oneof![
                    vec(any::<u8>(), 0..24),
                    vec(select(b"[]{},:\"\\ \n\r1e-".to_vec()), 0..24),
                    (any::<String>(), select(vec!["1e999", "\"\\ud800\"", "{\"a\":[],\r\n\"a\":1}", "1.0"])).prop_map(|(text, odd)| {
                        format!("\r\n{{\"type\":\"a\",\"client_id\":\r{},\n\"x\":{odd}}} \n", Value::from(text)).into_bytes()
                    }),
                ],
                key in proptest::option::of(vec(any::<u8>(), 0..8)),
                headers in vec((select(vec!["id", "a", "\"\n"]), "\\PC{0,4}"), 0..3),
            ) {
                let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, Some(value.as_bytes()))).collect();
                holds(key.as_deref(), &value, &headers)?;
            }
        }

        #[test]
        fn the_deepest_event_that_is_accepted_can_be_read_with_its_line_around_it() {
            let nested = MAX_DEPTH - 1;
            let event = format!("{{\"type\":\"a\",\"x\":{}{}}}", "[".repeat(nested), "]".repeat(nested));
            assert!(event::parse(event.as_bytes(), &EventFields::from(&EventConfig::default())).is_ok());
            holds(None, event.as_bytes(), &[]).unwrap();
        }
    }
}
