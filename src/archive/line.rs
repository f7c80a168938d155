//! Records as lines: one JSON object each. So a segment holds them, and so the tools show them.
//!
//! ```json
//! {"offset":42,"received":"2026-11-23T08:00:00.123Z","event":{…}}
//! ```
//! plus `"id"` where the server assigned it, `"key"` where the event does not hold the record's key itself, `"headers"`
//! (a list of `{"name","value"}`, or `"base64"` where a value is no text) when there are others. The event's bytes stand
//! as they came, but for CR and LF (in JSON only white space between tokens), which become one space each. A value that
//! is not JSON, or that not every reader of JSON can read ([`Unreadable`]), stands as
//! `"raw":"<base64>"`, a null value as `"raw":null`. Which of them it is follows from its bytes alone, never from the
//! configuration: writers that meet at one object write the same.
//!
//! Before that rule, all JSON stood as `"event"`. Objects and segments of that time go on to be read, so records are compared
//! by [`RecordLine::same_record`].

mod key;

use std::{borrow::Cow, io::Write};

use anyhow::Context;
use base64::{Engine, display::Base64Display, engine::general_purpose::STANDARD};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use crate::{
    event::{self, FieldNames, Unreadable},
    log::record::{Headers, ID_HEADER, Record},
    position::{Offset, Timestamp},
    vector,
};

/// Writes lines; keeps what consecutive records share.
pub struct LineEncoder {
    /// The event's field whose value is the record's key, alone.
    key_field: FieldNames,
    /// The text of a second and its first millisecond: most records share it with the one before.
    second: i64,
    second_text: String,
}

impl LineEncoder {
    pub fn new(key_field: String) -> Self {
        Self { key_field: FieldNames::of(&key_field), second: i64::MIN, second_text: String::new() }
    }

    /// Appends the record's line, with its line end.
    pub fn encode(&mut self, record: &Record<'_>, line: &mut Vec<u8>) {
        line.extend_from_slice(b"{\"offset\":");
        line.extend_from_slice(itoa::Buffer::new().format(record.offset.0).as_bytes());
        line.extend_from_slice(b",\"received\":\"");
        self.write_time(record.received, line);
        line.push(b'"');
        let id = record.headers.id();
        if let Some(id) = id {
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
        write_headers(record.headers, id.is_some(), line);
        match (json, record.value) {
            (Some(json), _) => {
                line.extend_from_slice(b",\"event\":");
                match json.has_control {
                    true => write_one_line(json.text.as_bytes(), line),
                    false => line.extend_from_slice(json.text.as_bytes()),
                }
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

/// A value that every reader can read, and what stands in it under the key's name.
struct Inspected<'a> {
    text: &'a str,
    has_control: bool,
    key: Option<Cow<'a, str>>,
}

/// `None` when the value is not one JSON value that every reader can read.
fn inspect<'a>(value: &'a [u8], key_field: &FieldNames) -> Option<Inspected<'a>> {
    let (text, has_control) = vector::survey(value).ok()?;
    let mut found = [None];
    event::find_readable(text, key_field, &mut found).ok()?;
    let key = found[0].and_then(|text| match text.as_bytes()[0] {
        b'"' => event::unescape(text).ok(),
        b'{' | b'[' | b'n' => None,
        _ => Some(text.into()),
    });
    Some(Inspected { text, has_control, key })
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

fn write_headers(headers: Headers<'_>, has_id: bool, line: &mut Vec<u8>) {
    // The one that was written as "id" is the first of that name, where it is text.
    let mut written = has_id;
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
    if let Ok(text) = vector::text(bytes) {
        write_json_string(text, line);
    } else {
        line.extend_from_slice(b"{\"base64\":");
        write_base64(bytes, line);
        line.push(b'}');
    }
}

fn write_json_string(text: &str, line: &mut Vec<u8>) {
    if vector::is_plain(text.as_bytes()) {
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

/// Whether `raw` holds the bytes that stand as this event's text.
fn is_same_value(event: &str, raw: &[u8]) -> bool {
    let mut text = Vec::with_capacity(raw.len());
    write_one_line(raw, &mut text);
    let is_space = |byte: &u8| matches!(byte, b' ' | b'\t');
    let start = text.iter().position(|byte| !is_space(byte)).unwrap_or(text.len());
    let end = text.iter().rposition(|byte| !is_space(byte)).map_or(start, |last| last + 1);
    &text[start..end] == event.as_bytes()
}

/// Reads a field that is there, also with the value `null`: the event `null` is another record than none at all.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

/// The bytes of a `"raw"` field.
fn decode_raw(text: &str) -> Option<Vec<u8>> {
    STANDARD.decode(text).ok()
}

/// The parts of a line that a record decides.
#[derive(Deserialize)]
pub struct RecordLine<'a> {
    pub offset: u64,
    #[serde(borrow, default, deserialize_with = "present")]
    event: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    raw: Option<&'a RawValue>,
}

impl<'a> RecordLine<'a> {
    pub fn parse(line: &'a [u8]) -> anyhow::Result<Self> {
        let line = std::str::from_utf8(line)?;
        serde_json::from_str(line).with_context(|| format!("a line of it is not readable: {line:.80}"))
    }

    /// Also where one writer let stand as `"event"` what another keeps as `"raw"`: these are a rule of the writer's
    /// release, and the bytes are the record.
    pub fn same_record(&self, other: &RecordLine<'_>) -> bool {
        fn text(value: Option<&RawValue>) -> Option<&str> {
            value.map(RawValue::get)
        }
        fn same_bytes(event: &RawValue, raw: &RawValue) -> bool {
            let raw: Option<Cow<'_, str>> = serde_json::from_str(raw.get()).ok();
            raw.and_then(|raw| decode_raw(&raw)).is_some_and(|raw| is_same_value(event.get(), &raw))
        }
        match (self.event, self.raw, other.event, other.raw) {
            (Some(event), None, None, Some(raw)) | (None, Some(raw), Some(event), None) => same_bytes(event, raw),
            _ => text(self.event) == text(other.event) && text(self.raw) == text(other.raw),
        }
    }
}

/// What every line holds.
#[derive(Debug)]
pub struct Line<'a> {
    pub offset: Offset,
    pub received: DateTime<Utc>,
    id: Option<Cow<'a, str>>,
    key: Option<&'a RawValue>,
    event: Option<&'a RawValue>,
    raw: Option<Vec<u8>>,
    headers: Option<&'a RawValue>,
}

impl<'a> Line<'a> {
    /// Reads a line; fields that are not known here may stand in it.
    pub fn parse(text: &'a [u8]) -> Result<Self, String> {
        let text = std::str::from_utf8(text).map_err(|_| "it is not UTF-8".to_owned())?;
        let line: AsWritten<'_> = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let raw = match (line.event, line.raw.map(RawValue::get)) {
            (Some(_), None) | (None, Some("null")) => None,
            (None, Some(raw)) => {
                let bytes = serde_json::from_str(raw).ok().and_then(|raw: String| decode_raw(&raw));
                Some(bytes.ok_or("\"raw\" is not base64")?)
            }
            (Some(_), Some(_)) => return Err("both \"event\" and \"raw\" stand in it".to_owned()),
            (None, None) => return Err("neither \"event\" nor \"raw\" stands in it".to_owned()),
        };
        // Not RFC 3339 alone: a timestamp beyond the year 9999 is written with a sign.
        let received = line.received.parse().map_err(|_| format!("\"received\" is no time: {:.40}", line.received))?;
        let AsWritten { id, key, event, headers, .. } = line;
        Ok(Self { offset: Offset(line.offset), received, id, key, event, raw, headers })
    }

    /// The record's value; `None` where it has none.
    pub fn value(&self) -> Option<Cow<'_, [u8]>> {
        let event = self.event.map(|event| Cow::Borrowed(event.get().as_bytes()));
        event.or_else(|| self.raw.as_deref().map(Cow::Borrowed))
    }

    /// The record's headers, but for its id; `None` where one of them cannot be read.
    pub fn headers(&self) -> Option<Vec<(String, Option<Vec<u8>>)>> {
        let written = self.headers.map(|headers| serde_json::from_str::<Vec<WrittenHeader>>(headers.get()));
        let headers = written.transpose().ok()?.unwrap_or_default().into_iter();
        let headers = headers.map(|WrittenHeader { name, value, base64 }| {
            let value = match base64 {
                Some(base64) => Some(decode_raw(&base64)?),
                None => value.map(String::into_bytes),
            };
            Some((name, value))
        });
        headers.collect()
    }

    /// The record's headers as they were counted, its id first; `None` where one of them cannot be read.
    pub fn all_headers(&self) -> Option<Vec<(String, Option<Vec<u8>>)>> {
        let id = self.id.as_ref().map(|id| (ID_HEADER.to_owned(), Some(id.as_bytes().to_vec())));
        Some(id.into_iter().chain(self.headers()?).collect())
    }

    /// Why not every reader of JSON can read the line, where it is so: an older release let such an event stand as it
    /// came.
    pub fn unreadable(&self) -> Option<Unreadable> {
        self.event.and_then(|event| event::check(event.get()).err())
    }
}

#[derive(Deserialize)]
struct AsWritten<'a> {
    offset: u64,
    #[serde(borrow)]
    received: Cow<'a, str>,
    #[serde(borrow, default)]
    id: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    key: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    event: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    raw: Option<&'a RawValue>,
    #[serde(borrow, default)]
    headers: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct WrittenHeader {
    name: String,
    value: Option<String>,
    base64: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::record::RecordBuffer;

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
        let event = b"{\"type\" : \"a\",\r\n \"n\":1.00, \"u\":\"\\u00e9\",\"big\":1e99}";
        let expected =
            format!("{HEAD},\"event\":{{\"type\" : \"a\",   \"n\":1.00, \"u\":\"\\u00e9\",\"big\":1e99}}}}\n");
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
    fn a_cloudevent_stands_with_its_attributes_and_with_the_key_that_its_data_does_not_hold() {
        let attributes = [("ce_source", Some(&b"/s"[..])), ("content-type", Some(&b"text/plain"[..]))];
        let named = r#""headers":[{"name":"ce_source","value":"/s"},{"name":"content-type","value":"text/plain"}]"#;
        for (data, key, written) in [
            (&br#"{"client_id":"/s"}"#[..], "", r#""event":{"client_id":"/s"}"#),
            (br#"{"client_id":"c"}"#, r#""key":"/s","#, r#""event":{"client_id":"c"}"#),
            (b"text", r#""key":"/s","#, r#""raw":"dGV4dA==""#),
            (b"null", r#""key":"/s","#, r#""event":null"#),
            (b"", r#""key":"/s","#, r#""raw":"""#),
        ] {
            let expected = format!("{HEAD},{key}{named},{written}}}\n");
            assert_eq!(line_of(Some(b"/s"), Some(data), &attributes), expected);
        }
    }

    #[test]
    fn what_is_not_json_or_not_every_reader_can_read_stands_as_base64() {
        let deep = [b"[".repeat(127), b"]".repeat(127)].concat();
        let long = b"9".repeat(4301);
        let unreadable: [&[u8]; 6] =
            [&deep, &long, b"{\"a\":1,\"a\":2}", b"{\"\\u0061\":1,\"a\":2}", b"\"\\ud800\"", b"[1e400]"];
        for value in [b"{".as_slice(), b"\xff", b"{} {}", b"", b"{\"a\":\"\xff\"}"].into_iter().chain(unreadable) {
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

    #[test]
    fn headers_read_back_and_of_one_that_cannot_be_read_it_is_known() {
        let headers = |text: &str| {
            let line = format!("{{\"offset\":1,\"received\":\"2026-11-23T08:00:00Z\",\"headers\":{text},\"event\":5}}");
            Line::parse(line.as_bytes()).unwrap().headers()
        };
        let all = r#"[{"name":"a","value":"x"},{"name":"b","value":null},{"name":"c","base64":"/w=="}]"#;
        let read = [("a", Some(b"x".to_vec())), ("b", None), ("c", Some(vec![0xff]))];
        assert_eq!(headers(all), Some(read.map(|(name, value)| (name.to_owned(), value)).to_vec()));
        assert_eq!((headers("[]"), headers("null")), (Some(Vec::new()), Some(Vec::new())));
        for odd in [
            r#"[{"name":"a","value":"x"},7]"#,
            r#"[{"value":"x"}]"#,
            r#"[{"name":"a","base64":"?"}]"#,
            "{}",
            r#"[{"name":"a","value":7}]"#,
        ] {
            assert_eq!(headers(odd), None, "{odd}");
        }
    }

    #[test]
    fn every_line_that_is_written_reads_back() {
        let mut buffer = RecordBuffer::default();
        let times = [1_795_420_800_123, 0, -1, 1_795_420_800_123_000, i64::MAX];
        let values = [Some(b"{\"a\":1}".as_slice()), Some(b"null"), None, Some(b"\xff"), Some(b"")];
        for (offset, (time, value)) in times.into_iter().zip(values).enumerate() {
            buffer.push(Offset(offset as u64), Timestamp(time), Some(b"\xff"), value, [("h", None)]);
        }
        for record in buffer.iter() {
            let mut text = Vec::new();
            LineEncoder::new(String::new()).encode(&record, &mut text);
            let line =
                Line::parse(text.trim_ascii_end()).unwrap_or_else(|why| panic!("{why}: {}", text.escape_ascii()));
            // To the second: of a time that no calendar holds, the milliseconds alone are written.
            let seconds = record.received.to_datetime().timestamp();
            assert_eq!((line.offset, line.received.timestamp()), (record.offset, seconds));
        }
    }

    #[test]
    fn what_is_no_line_says_why() {
        let broken = [
            (r#"{"offset":1,"received":"2026-11-23T08:00:00.123Z"}"#, "neither"),
            (r#"{"offset":1,"received":"2026-11-23T08:00:00.123Z","event":1,"raw":null}"#, "both"),
            (r#"{"offset":1,"received":"2026-11-23T08:00:00.123Z","raw":"?"}"#, "base64"),
            (r#"{"offset":1,"received":"yesterday","event":1}"#, "no time"),
            (r#"{"offset":-1,"received":"2026-11-23T08:00:00.123Z","event":1}"#, "-1"),
            (r#"{"offset":1,"received":"2026-11-23T08:00:00.123Z","event":}"#, "expected value"),
            ("", "EOF"),
        ];
        for (text, word) in broken {
            let why = Line::parse(text.as_bytes()).unwrap_err();
            assert!(why.contains(word), "{text}: {why}");
        }
    }

    mod properties {
        use proptest::{collection::vec, prelude::*, sample::select};
        use serde::Deserialize;
        use serde_json::{Value, value::RawValue};

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
                let is_json = serde_json::from_slice::<serde::de::IgnoredAny>(value).is_ok();
                prop_assert!(!is_json || std::str::from_utf8(value).is_ok_and(|text| event::check(text).is_err()));
                prop_assert_eq!(decode_raw(&raw), Some(value.to_vec()));
            }
            if let Some(event) = read.event {
                let one_line = String::from_utf8(value.to_vec()).unwrap().replace(['\r', '\n'], " ");
                prop_assert_eq!(event.get(), one_line.trim_matches([' ', '\t']));
                prop_assert_eq!(&serde_json::from_str::<Value>(event.get()).unwrap(), &tree.unwrap());
                prop_assert!(is_same_value(event.get(), value) && !is_same_value(event.get(), &[value, b"1"].concat()));
                let written = match &read.key {
                    Some(Value::String(key)) => Some(key.clone().into_bytes()),
                    Some(key) => decode_raw(key["base64"].as_str().unwrap()),
                    None => None,
                };
                if let Some(written) = written {
                    prop_assert_eq!(Some(written.as_slice()), key);
                }
            }
            // What the door accepts stands as an event, and can be read as a tree with its line around it.
            let fields = EventFields::from(&EventConfig::default());
            if event::parse(value, &fields, Timestamp(0)).is_ok() {
                let whole: Value = serde_json::from_str(&line).unwrap();
                prop_assert_eq!(&whole["event"], &serde_json::from_slice::<Value>(value).unwrap());
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
            assert!(event::parse(event.as_bytes(), &EventFields::from(&EventConfig::default()), Timestamp(0)).is_ok());
            holds(None, event.as_bytes(), &[]).unwrap();
        }
    }
}
