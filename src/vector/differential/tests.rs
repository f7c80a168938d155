//! Whatever is made with vectors, on random texts, beside the same without them, the reader of before, and serde_json: what is
//! taken, and why not; the fields that are found; how a body is split; and each byte of a line.
//!
//! `INGESTD_FUZZ_CASES` of them, from `INGESTD_FUZZ_SEED` on.

#[path = "before.rs"]
mod before;

use std::collections::BTreeMap;

use base64::{Engine, engine::general_purpose::STANDARD};
use fastrand::Rng;
use serde_json::value::RawValue;

use super::tests::each;
use crate::{
    archive::line::LineEncoder,
    config::{EventConfig, Field, OnUnreadable},
    event::{self, Code, EventFields, FieldNames, MAX_DEPTH, Unreadable},
    ingest::format::{Events, Format, split},
    log::record::{ID_HEADER, RecordBuffer},
    position::{Offset, Timestamp},
};

const RECEIVED: Timestamp = Timestamp(1_795_500_000_000);
/// Some as the configuration has them, others of each length that is looked at in its own way, others again with escapes.
const NAMES: [&str; 24] = [
    "type",
    "client_id",
    "event_id",
    "timestamp",
    "x",
    "",
    "aa",
    "abc",
    "abcdefgh",
    "abcdefghi",
    "abcdefghijklmnop",
    "abcdefghijklmnopq",
    "a_rather_long_name_of_a_field_in_an_event",
    "a_rather_lOng_name_of_a_field_in_an_event",
    "t\\u0079pe",
    "\\u0061\\u0061",
    "é",
    "\\ud800",
    "na\\\"me",
    "data",
    "client_ie",
    "0",
    "1",
    "specversion",
];
const NUMBERS: [&str; 24] = [
    "0",
    "-0",
    "1",
    "42",
    "-17",
    "0.5",
    "1e5",
    "1E+40",
    "1e-99",
    "2.25e-7",
    "9007199254740993",
    "1e99",
    "1e100",
    "1e-400",
    "1e308",
    "1e309",
    "-1E+400",
    "01",
    "-",
    "1.",
    ".5",
    "1e",
    "1e+",
    "+1",
];
const WORDS: [&str; 12] = ["true", "false", "null", "{}", "[]", "\"\"", "{ }", "[ ]", "tru", "nul", "NaN", "-Infinity"];
const PIECES: [&str; 20] = [
    "a",
    "session granted by the ",
    "\\n",
    "\\\"",
    "\\\\",
    "\\/",
    "\\u00e9",
    "\\ud83d\\ude00",
    "\\ud800",
    "\\udc00",
    "\\u12",
    "\\x",
    "é",
    "日本",
    "\u{1f600}",
    "{",
    "]",
    ",",
    ":",
    "\u{7f}",
];
const SPACES: [&str; 8] = ["", "", "", " ", "\n", "\r\n", "\t", " \n  "];
const ODD: &[u8] = b"[]{},:\"\\ \n\r\t\0\x1f\x7f\xc3\xff\xed\xa0u0-+.e1tnfx";

/// Makes texts, most of them JSON.
struct Maker(Rng);

impl Maker {
    fn one_in(&mut self, times: u32) -> bool {
        self.0.u32(..times) == 0
    }

    fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[self.0.usize(..from.len())]
    }

    fn space(&mut self, style: u8, out: &mut Vec<u8>) {
        match style {
            0 => {}
            1 => out.push(b' '),
            _ => out.extend_from_slice(self.pick(&SPACES).as_bytes()),
        }
    }

    fn string(&mut self, out: &mut Vec<u8>) {
        out.push(b'"');
        let length = |random: &mut Rng| if random.bool() { random.usize(..24) } else { random.usize(..200) };
        let before = length(&mut self.0);
        match self.0.u8(..8) {
            0 => (0..self.0.usize(..5)).for_each(|_| out.extend_from_slice(self.pick(&PIECES).as_bytes())),
            1 => {
                out.resize(out.len() + before, b'y');
                out.extend_from_slice(self.pick(&PIECES).as_bytes());
                out.resize(out.len() + length(&mut self.0), b'z');
            }
            2 if self.one_in(4) => out.push(self.0.u8(..0x20)),
            _ => out.resize(out.len() + before, b'w'),
        }
        out.push(b'"');
    }

    fn value(&mut self, depth: u32, style: u8, out: &mut Vec<u8>) {
        match self.0.u8(..if depth == 0 { 7 } else { 13 }) {
            0..4 => self.string(out),
            4 => out.extend_from_slice(self.0.i64(..).to_string().as_bytes()),
            5 => {
                let few = if self.one_in(8) { NUMBERS.len() } else { 12 };
                out.extend_from_slice(self.pick(&NUMBERS[..few]).as_bytes());
            }
            6 => {
                let few = if self.one_in(8) { WORDS.len() } else { 8 };
                out.extend_from_slice(self.pick(&WORDS[..few]).as_bytes());
            }
            7..10 => self.object(depth - 1, style, out),
            10..12 => self.array(depth - 1, style, out),
            _ if self.one_in(4) => self.deep(out),
            _ => out.push(b'7'),
        }
    }

    /// Near the limit, or beyond; or a long number.
    fn deep(&mut self, out: &mut Vec<u8>) {
        let count = self.0.usize(..140);
        let (open, close) = [("[", "]"), ("{\"a\":", "}"), ("[1,", "]")][self.0.usize(..3)];
        match self.0.u8(..4) {
            0 => out.extend_from_slice("9".repeat(count * 8).as_bytes()),
            _ => out.extend_from_slice(format!("{}1{}", open.repeat(count), close.repeat(count)).as_bytes()),
        }
    }

    fn array(&mut self, depth: u32, style: u8, out: &mut Vec<u8>) {
        out.push(b'[');
        for at in 0..self.0.usize(..5) {
            if at > 0 {
                out.push(b',');
            }
            self.space(style, out);
            self.value(depth, style, out);
            self.space(style, out);
        }
        out.push(b']');
    }

    fn object(&mut self, depth: u32, style: u8, out: &mut Vec<u8>) {
        out.push(b'{');
        let most = if self.one_in(40) { 120 } else { 9 };
        for at in 0..self.0.usize(..most) {
            if at > 0 {
                out.push(b',');
            }
            self.space(style, out);
            match self.0.u8(..10) {
                0 | 1 => out.extend_from_slice(format!("\"{}\"", self.pick(&NAMES)).as_bytes()),
                2 if most < 10 && self.one_in(4) => self.string(out),
                _ if at == 0 => out.extend_from_slice(b"\"type\""),
                _ => out.extend_from_slice(format!("\"field_{}\"", self.0.u16(..3_000)).as_bytes()),
            }
            self.space(style, out);
            out.push(b':');
            self.space(style, out);
            if at == 0 && !self.one_in(8) {
                out.extend_from_slice(b"\"login\"")
            } else {
                self.value(depth, style, out)
            }
            self.space(style, out);
        }
        out.push(b'}');
    }

    fn change(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..1 + self.0.usize(..3) {
            if bytes.is_empty() {
                return;
            }
            let at = self.0.usize(..bytes.len());
            let to = (at + self.0.usize(..12)).min(bytes.len());
            let odd = ODD[self.0.usize(..ODD.len())];
            match self.0.u8(..6) {
                0 => bytes[at] = odd,
                1 => bytes.insert(at, odd),
                2 => bytes[at] = self.0.u8(..),
                3 => bytes.truncate(at),
                4 => drop(bytes.drain(at..to)),
                _ => {
                    let (part, place) = (bytes[at..to].to_vec(), self.0.usize(..bytes.len()));
                    bytes.splice(place..place, part);
                }
            }
        }
    }

    fn event(&mut self) -> Vec<u8> {
        let (style, depth, mut out) = (self.0.u8(..3), self.0.u32(..4), Vec::new());
        if style == 2 {
            self.space(style, &mut out);
        }
        match self.0.u8(..20) {
            0 => (0..self.0.usize(..90)).for_each(|_| out.push(ODD[self.0.usize(..ODD.len())])),
            1 => self.value(depth, style, &mut out),
            _ => self.object(depth, style, &mut out),
        }
        if self.one_in(3) {
            self.change(&mut out);
        }
        out
    }

    fn body(&mut self) -> Vec<u8> {
        let separator = [",", " ,\n", "\n", "", "\r\n \n"][self.0.usize(..5)];
        let events: Vec<Vec<u8>> = (0..self.0.usize(..6)).map(|_| self.event()).collect();
        let mut out = events.join(separator.as_bytes());
        if !self.one_in(3) {
            out = [b"[", &*out, b"]"].concat();
        }
        if self.one_in(3) {
            self.change(&mut out);
        }
        out
    }
}

fn names() -> Vec<String> {
    ["type", "client_id", "aa", "abcdefgh", "abcdefghijklmnopq", "", "é", "x"].map(str::to_owned).to_vec()
}

/// What is found in a value by the reader of before, as an object that stands in the log.
fn found_before(value: &[u8]) -> Option<Vec<Option<String>>> {
    let found = before::object(std::str::from_utf8(value).ok()?, &names(), &mut ())?;
    Some(found.into_iter().map(|text| text.map(str::to_owned)).collect())
}

/// The same by serde_json.
fn found_by_serde_json(value: &[u8]) -> Option<Vec<Option<String>>> {
    let fields: BTreeMap<String, &RawValue> = serde_json::from_slice(value).ok()?;
    let is_shallow = !before::is_deeper_than(value);
    is_shallow.then(|| names().iter().map(|name| fields.get(name).map(|value| value.get().to_owned())).collect())
}

fn compare_readers(value: &[u8]) {
    let expected = found_before(value);
    assert_eq!(expected, found_by_serde_json(value), "the reader of before is not serde_json's");
    let selected: Vec<Field> = names().iter().map(|name| Field::of(name)).collect();
    let accepting = EventFields::from(&EventConfig { on_unreadable: OnUnreadable::Accept, ..EventConfig::default() });
    let refusing = EventFields::from(&EventConfig::default());
    let selecting = accepting.clone().selecting(&selected);
    let by_name = names().iter().fold(FieldNames::default(), |mut all, name| {
        all.add(name);
        all
    });
    for [now, door] in each(|| [&accepting, &refusing].map(|fields| event::parse(value, fields, RECEIVED))) {
        let is_json = |parsed: &Result<_, event::Invalid>| {
            !parsed.as_ref().is_err_and(|invalid| matches!(invalid.code, Code::InvalidJson | Code::NotAnObject))
        };
        // A lone surrogate in a field that is read is no text, whoever accepts it.
        let is_text = now.as_ref().err().is_none_or(|invalid| !invalid.message.contains("cannot be read"));
        assert_eq!(is_json(&now) || !is_text, expected.is_some(), "{now:?}");
        let readable = std::str::from_utf8(value).map_err(|_| Unreadable::NotJson).and_then(before::check);
        assert_eq!(is_json(&door), expected.is_some() && readable.is_ok(), "{door:?}");
        if let (Some(_), Err(what)) = (&expected, readable) {
            assert!(door.unwrap_err().message.starts_with(&what.to_string()));
        }
    }
    let read = each(|| event::read(value, [], &selecting, RECEIVED).map(|(_, found)| found_of(&found)));
    for now in read.into_iter().flatten() {
        assert_eq!(Some(now), expected);
    }
    let Ok(text) = std::str::from_utf8(value) else { return };
    let expected = before::find_readable(text, &names());
    for now in each(|| {
        let mut found = vec![None; names().len()];
        event::find_readable(text, &by_name, &mut found).map(|()| found)
    }) {
        assert_eq!(now, expected);
    }
    assert_eq!(each(|| event::check(text)), [(); 3].map(|()| before::check(text)));
}

fn found_of(found: &event::Found<'_, '_>) -> Vec<Option<String>> {
    (0..names().len()).map(|index| found.selected(index).map(str::to_owned)).collect()
}

fn compare_splitters(body: &[u8]) {
    for format in [Format::Json, Format::Ndjson] {
        let [with, with_some, without] = each(|| split(body, format, 5));
        assert_eq!((&with, &with_some), (&without, &without));
        let trimmed = body.trim_ascii();
        if format == Format::Json
            && trimmed.starts_with(b"[")
            && let Some(expected) = std::str::from_utf8(body).ok().and_then(|text| before::array(text, 5))
        {
            assert_eq!(with, Ok(Events::Many(expected)));
        }
    }
}

fn compare_lines(random: &mut Rng, value: &[u8]) {
    let keys: [Option<&[u8]>; 5] =
        [None, Some(b"w"), Some(b"7"), Some(b"\xff\n"), Some(b"a \"quoted\" key that is long")];
    let key = keys[random.usize(..keys.len())];
    let mut headers: Vec<(&str, Option<&[u8]>)> = Vec::new();
    for header in
        [(ID_HEADER, Some(&b"01a20bd8-8e34"[..])), ("a\n", None), (ID_HEADER, Some(b"\xff")), ("b", Some(b"\"x"))]
    {
        if random.u8(..3) == 0 {
            headers.push(header);
        }
    }
    let mut buffer = RecordBuffer::default();
    buffer.push(Offset(42), RECEIVED, key, Some(value), headers.iter().copied());
    let expected = expected_line(key, value, &headers);
    for now in each(|| {
        let mut line = Vec::new();
        let mut encoder = LineEncoder::new("client_id".to_owned());
        buffer.iter().for_each(|record| encoder.encode(&record, &mut line));
        line
    }) {
        assert_eq!(now.escape_ascii().to_string(), expected.as_bytes().escape_ascii().to_string());
    }
}

/// A line as the documentation says that it is.
fn expected_line(key: Option<&[u8]>, value: &[u8], headers: &[(&str, Option<&[u8]>)]) -> String {
    let string = |text: &str| serde_json::to_string(text).expect("a string");
    let mut line = format!("{{\"offset\":42,\"received\":\"{}\"", RECEIVED.to_rfc3339());
    let first = headers.iter().position(|(name, _)| *name == ID_HEADER);
    let id = first.and_then(|first| std::str::from_utf8(headers[first].1?).ok());
    if let Some(id) = id {
        line += &format!(",\"id\":{}", string(id));
    }
    let text = std::str::from_utf8(value).ok().filter(|text| before::check(text).is_ok());
    let held = text.and_then(|text| {
        let json = *before::find_readable(text, &["client_id".to_owned()]).ok()?.first()?;
        match serde_json::from_str(json?).expect("JSON") {
            serde_json::Value::String(text) => Some(text),
            serde_json::Value::Number(_) | serde_json::Value::Bool(_) => json.map(str::to_owned),
            _ => None,
        }
    });
    if let Some(key) = key.filter(|key| held.as_deref().map(str::as_bytes) != Some(key)) {
        line += &match std::str::from_utf8(key) {
            Ok(key) => format!(",\"key\":{}", string(key)),
            Err(_) => format!(",\"key\":{{\"base64\":\"{}\"}}", STANDARD.encode(key)),
        };
    }
    let others = headers.iter().enumerate().filter(|(at, _)| id.is_none() || Some(*at) != first);
    let others: Vec<String> = others
        .map(|(_, (name, value))| {
            let value = match value.map(std::str::from_utf8) {
                None => "\"value\":null".to_owned(),
                Some(Ok(text)) => format!("\"value\":{}", string(text)),
                Some(Err(_)) => format!("\"base64\":\"{}\"", STANDARD.encode(value.unwrap_or_default())),
            };
            format!("{{\"name\":{},{value}}}", string(name))
        })
        .collect();
    if !others.is_empty() {
        line += &format!(",\"headers\":[{}]", others.join(","));
    }
    line + &match text {
        Some(text) => format!(",\"event\":{}}}\n", text.replace(['\r', '\n'], " ")),
        None => format!(",\"raw\":\"{}\"}}\n", STANDARD.encode(value)),
    }
}

fn from_environment(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

/// Says which case it is where the test ends in it.
struct Case<'a>(u64, &'a [u8]);

impl Drop for Case<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("INGESTD_FUZZ_SEED={} INGESTD_FUZZ_CASES=1: {}", self.0, self.1.escape_ascii());
        }
    }
}

#[test]
fn all_texts_are_read_split_and_written_as_they_were_without_vectors() {
    let seed = from_environment("INGESTD_FUZZ_SEED", 1);
    let (mut taken, mut refused) = (0, 0);
    for case in seed..seed + from_environment("INGESTD_FUZZ_CASES", 10_000) {
        let mut maker = Maker(Rng::with_seed(case));
        let value = maker.event();
        let shown = Case(case, &value);
        compare_readers(&value);
        compare_lines(&mut maker.0, &value);
        let body = maker.body();
        let shown_body = Case(case, &body);
        compare_splitters(&body);
        drop((shown, shown_body));
        if found_before(&value).is_some() { taken += 1 } else { refused += 1 }
    }
    println!("{taken} objects were taken, and {refused} refused");
    assert!(taken == 0 || refused == 0 || (taken > refused / 4 && refused > taken / 20), "{taken} and {refused}");
}
