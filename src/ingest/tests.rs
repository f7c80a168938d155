//! What the door promises for any bytes: never a panic, events are exactly the values that were sent, in order and byte
//! for byte, and every refusal is one that a second reading of the same bytes gives, too.
//!
//! The second reading is a grammar of its own (RFC 8259, below), and serde_json's trees where it makes them.

use bytes::Bytes;
use proptest::{collection::vec, prelude::*, sample::select};
use serde_json::Value;

use super::{
    check::{Checked, EventId, check},
    format::Format,
    in_flight::{InFlight, Reservation},
    replies::{longest_answer, summary_json},
};
use crate::{
    config::{ByteSize, EventConfig, HttpConfig},
    event::{self, Code, EventFields, MAX_DEPTH},
    http::Problem,
    log::Part,
    position::Timestamp,
};

/// A body's events as the grammar finds them.
#[derive(Debug, PartialEq)]
enum Expected<'a> {
    Refused,
    Events(Vec<&'a [u8]>),
}

fn expected(body: &[u8], format: Format) -> Expected<'_> {
    // UTF-16 and UTF-32, in both orders.
    if [&b"\xfe\xff"[..], b"\xff\xfe", b"\0\0\xfe\xff"].iter().any(|mark| body.starts_with(mark)) {
        return Expected::Refused;
    }
    let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
    match (format, grammar::trim(body)) {
        (_, []) => Expected::Refused,
        (Format::Ndjson, _) => {
            let lines = body.split(|byte| *byte == b'\n').map(grammar::trim).filter(|line| !line.is_empty());
            Expected::Events(lines.collect())
        }
        (Format::Json, object @ [b'{', ..]) if grammar::is_text(object) => Expected::Events(vec![object]),
        (Format::Json, array @ [b'[', ..]) if grammar::parts(array).is_some() => {
            let parts = grammar::parts(array).unwrap_or_default();
            if let Some(elements) = grammar::elements(array) {
                assert_eq!(elements, parts, "of an array that is right both ways of reading it find the same");
            }
            Expected::Events(parts)
        }
        (Format::Json, value) => {
            let (mut events, rest) = grammar::texts(value);
            // Where the only text cannot be an event nothing is taken.
            let needed = if value[0] == b'{' { 1 } else { 2 };
            if events.len() < needed || events.len() + rest.iter().len() < 2 {
                return Expected::Refused;
            }
            events.extend(rest);
            Expected::Events(events)
        }
        // Tried in `cloudevents`.
        (Format::CloudEvent | Format::CloudEvents | Format::Data, _) => panic!("{format:?} holds no plain events"),
    }
}

/// What the grammar and the tree say of one event. Where only a reader of trees fails (a number beyond floats, a lone
/// surrogate), or takes one of two (a repeated name), not every reader takes it.
fn verdict(event: &[u8]) -> Result<(), Code> {
    if std::str::from_utf8(event).is_err() || grammar::depth(event) > MAX_DEPTH || !grammar::is_value(event) {
        return Err(Code::InvalidJson);
    }
    if event[0] != b'{' {
        return Err(Code::NotAnObject);
    }
    let tree: Value = match serde_json::from_slice(event) {
        Ok(tree) => tree,
        Err(error) => {
            let only_trees = ["number out of range", "surrogate", "unexpected end of hex escape"];
            assert!(only_trees.iter().any(|known| error.to_string().contains(known)), "{error}");
            return Err(Code::InvalidJson);
        }
    };
    if std::str::from_utf8(event).is_ok_and(|text| event::check(text).is_err()) {
        return Err(Code::InvalidJson);
    }
    match (&tree["type"], &tree["event_id"]) {
        (Value::Null, _) => Err(Code::MissingType),
        (Value::String(text), id) if (1..=128).contains(&text.chars().count()) => match id {
            Value::Null => Ok(()),
            Value::String(id) if (1..=256).contains(&id.chars().count()) => Ok(()),
            _ => Err(Code::InvalidId),
        },
        _ => Err(Code::InvalidType),
    }
}

fn checked(body: &[u8], format: Format) -> Result<Checked, Problem> {
    let http = HttpConfig { max_events: usize::MAX, max_event: ByteSize(u64::MAX), ..HttpConfig::default() };
    let mut share = Reservation::new(&InFlight::default(), ByteSize(u64::MAX));
    check(
        Bytes::copy_from_slice(body),
        format,
        None,
        &http,
        &EventFields::from(&EventConfig::default()),
        Timestamp(0).into(),
        &mut share,
    )
}

/// All that must hold for one body.
fn holds(body: &[u8], format: Format) {
    let (checked, events) = match (checked(body, format), expected(body, format)) {
        (Ok(checked), Expected::Events(events)) => (checked, events),
        (Err(problem), Expected::Refused) => return assert_eq!(problem.status, 400),
        // A single object that only the rules for events refuse, such as its depth.
        (Err(problem), Expected::Events(events)) => {
            assert_eq!((format, events.len(), problem.code), (Format::Json, 1, Some(Code::InvalidJson)));
            return assert_eq!(verdict(events[0]), Err(Code::InvalidJson));
        }
        (Ok(checked), Expected::Refused) => panic!("accepted what is no JSON: {checked:?}"),
    };
    assert_eq!(checked.accepted.len() + checked.errors.len(), events.len());
    assert_eq!(checked.accepted.len(), checked.records.len());
    let mut accepted = checked.accepted.iter().zip(&checked.records).peekable();
    let mut errors = checked.errors.iter().peekable();
    let mut ids = Vec::new();
    for (index, event) in events.into_iter().enumerate() {
        if let Some(error) = errors.next_if(|error| error.index == index) {
            let code = error.invalid.code;
            assert_eq!(verdict(event), Err(code), "{event:?}");
            continue;
        }
        let (accepted, record) = accepted.next().expect("each event is accepted or refused");
        assert_eq!(accepted.index, index);
        assert_eq!(place(body, record.value), place_of(body, event), "the very bytes, where they stood");
        assert_eq!(verdict(event), Ok(()), "{event:?}");
        assert_eq!(record.assigned_id.is_some(), matches!(accepted.id, EventId::Assigned(_)));
        let id = match &accepted.id {
            EventId::Assigned(id) => id.to_string(),
            EventId::InBody(id) => std::str::from_utf8(id.of(body)).unwrap().to_owned(),
            EventId::Unescaped(id) => id.clone(),
        };
        if let Ok(tree) = serde_json::from_slice::<Value>(event) {
            let key = record.key.map(|key| key.of(body, &checked.aside));
            match &tree["client_id"] {
                // A nil UUID, or one above 8 KiB, is none of these.
                Value::String(client) if client.trim().is_empty() => assert_eq!(key, None),
                Value::String(client) => assert_eq!(key, Some(client.as_bytes())),
                Value::Null | Value::Array(_) | Value::Object(_) => assert_eq!(key, None),
                Value::Bool(_) | Value::Number(_) => assert!(key.is_some()),
            }
            assert!(record.assigned_id.is_some() || tree["event_id"] == id.as_str());
        }
        ids.push(id);
    }
    let reply = summary_json(&checked);
    assert!(
        reply.len() <= longest_answer(&checked),
        "{} bytes, {} were reserved",
        reply.len(),
        longest_answer(&checked)
    );
    let reply: Value = serde_json::from_slice(&reply).expect("the answer is JSON");
    assert_eq!(reply["ids"], Value::from(ids));
    assert_eq!(reply["rejected"], checked.errors.len());
    for (name, remarks) in [("errors", checked.errors.len()), ("warnings", checked.warnings.len())] {
        assert_eq!(reply[name].as_array().map(Vec::len), (remarks > 0).then_some(remarks), "{name}");
    }
}

fn place(body: &[u8], value: Part) -> (usize, &[u8]) {
    match value {
        Part::InBody(span) => (span.start as usize, span.of(body)),
        Part::Aside(_) => panic!("it does not stand in the body"),
    }
}

fn place_of<'a>(body: &[u8], event: &'a [u8]) -> (usize, &'a [u8]) {
    (event.as_ptr().addr() - body.as_ptr().addr(), event)
}

/// JSON by the letter of RFC 8259, on bytes.
mod grammar {
    pub fn trim(bytes: &[u8]) -> &[u8] {
        let is_space = |byte: &u8| b" \t\r\n".contains(byte);
        let start = bytes.iter().position(|byte| !is_space(byte)).unwrap_or(bytes.len());
        let end = bytes.iter().rposition(|byte| !is_space(byte)).map_or(start, |last| last + 1);
        &bytes[start..end]
    }

    /// Whether these bytes, without white space around them, are one value.
    pub fn is_value(bytes: &[u8]) -> bool {
        Cursor { bytes, at: 0 }.value() == Some(bytes.len())
    }

    /// The same in UTF-8, as JSON is.
    pub fn is_text(bytes: &[u8]) -> bool {
        is_value(bytes) && std::str::from_utf8(bytes).is_ok()
    }

    /// The texts that stand one behind the other, and what begins with none. Numbers and words reach up to a character that
    /// begins something else.
    pub fn texts(bytes: &[u8]) -> (Vec<&[u8]>, Option<&[u8]>) {
        let (mut texts, mut cursor) = (Vec::new(), Cursor { bytes, at: 0 });
        loop {
            cursor.space();
            let start = cursor.at;
            if start == bytes.len() {
                return (texts, None);
            }
            let is_word = !b"{[\"".contains(&bytes[start]);
            match cursor.value() {
                Some(end)
                    if is_text(&bytes[start..end])
                        && !(is_word && cursor.peek().is_some_and(|next| !b" \t\r\n{[\"".contains(&next))) =>
                {
                    texts.push(&bytes[start..end]);
                }
                _ => return (texts, Some(&bytes[start..])),
            }
        }
    }

    /// What stands between the commas of an array that is all there is, whatever it is, as long as strings end and each
    /// bracket is closed by its own kind.
    pub fn parts(array: &[u8]) -> Option<Vec<&[u8]>> {
        let (mut parts, mut closers, mut start, mut at) = (Vec::new(), Vec::new(), 1, 0);
        let mut is_quoted = false;
        while let Some(byte) = array.get(at) {
            match byte {
                b'\\' if is_quoted => at += 1,
                b'"' => is_quoted = !is_quoted,
                _ if is_quoted => {}
                b'[' => closers.push(b']'),
                b'{' => closers.push(b'}'),
                b',' if closers.len() == 1 => {
                    parts.push(trim(&array[start..at]));
                    start = at + 1;
                }
                b']' | b'}' => {
                    if closers.pop() != Some(*byte) {
                        return None;
                    }
                    if closers.is_empty() {
                        let last = trim(&array[start..at]);
                        if !(parts.is_empty() && last.is_empty()) {
                            parts.push(last);
                        }
                        return (at + 1 == array.len()).then_some(parts);
                    }
                }
                _ => {}
            }
            at += 1;
        }
        None
    }

    /// The elements of an array that is all there is.
    pub fn elements(array: &[u8]) -> Option<Vec<&[u8]>> {
        let mut cursor = Cursor { bytes: array, at: 0 };
        let mut elements = Vec::new();
        cursor.sequence(b'[', b']', |cursor| {
            let start = cursor.at;
            let end = cursor.value()?;
            elements.push(&array[start..end]);
            Some(())
        })?;
        (cursor.at == array.len()).then_some(elements)
    }

    /// The most brackets that are open at once.
    pub fn depth(bytes: &[u8]) -> usize {
        let (mut open, mut most, mut cursor) = (0usize, 0, Cursor { bytes, at: 0 });
        while let Some(byte) = cursor.peek() {
            match byte {
                b'"' if cursor.string().is_some() => continue,
                // A string without its end: the rest is in it.
                b'"' => break,
                b'{' | b'[' => open += 1,
                b'}' | b']' => open = open.saturating_sub(1),
                _ => {}
            }
            most = most.max(open);
            cursor.at += 1;
        }
        most
    }

    struct Cursor<'a> {
        bytes: &'a [u8],
        at: usize,
    }

    impl Cursor<'_> {
        fn peek(&self) -> Option<u8> {
            self.bytes.get(self.at).copied()
        }

        fn take(&mut self, wanted: impl Fn(u8) -> bool) -> Option<()> {
            wanted(self.peek()?).then(|| self.at += 1)
        }

        fn space(&mut self) {
            while self.take(|byte| b" \t\r\n".contains(&byte)).is_some() {}
        }

        fn literal(&mut self, text: &[u8]) -> Option<()> {
            self.bytes[self.at..].starts_with(text).then(|| self.at += text.len())
        }

        /// Reads a value; where it ends.
        fn value(&mut self) -> Option<usize> {
            match self.peek()? {
                b'{' => self.sequence(b'{', b'}', |cursor| {
                    cursor.string()?;
                    cursor.space();
                    cursor.literal(b":")?;
                    cursor.space();
                    cursor.value().map(drop)
                }),
                b'[' => self.sequence(b'[', b']', |cursor| cursor.value().map(drop)),
                b'"' => self.string(),
                b't' => self.literal(b"true"),
                b'f' => self.literal(b"false"),
                b'n' => self.literal(b"null"),
                _ => self.number(),
            }?;
            Some(self.at)
        }

        fn sequence(&mut self, open: u8, close: u8, mut item: impl FnMut(&mut Self) -> Option<()>) -> Option<()> {
            self.take(|byte| byte == open)?;
            self.space();
            if self.take(|byte| byte == close).is_some() {
                return Some(());
            }
            loop {
                item(self)?;
                self.space();
                if self.take(|byte| byte == close).is_some() {
                    return Some(());
                }
                self.literal(b",")?;
                self.space();
            }
        }

        fn string(&mut self) -> Option<()> {
            self.literal(b"\"")?;
            loop {
                let byte = self.peek()?;
                self.at += 1;
                match byte {
                    b'"' => return Some(()),
                    b'\\' if self.literal(b"u").is_some() => {
                        for _ in 0..4 {
                            self.take(|byte| byte.is_ascii_hexdigit())?;
                        }
                    }
                    b'\\' => self.take(|byte| br#""\/bfnrt"#.contains(&byte))?,
                    0..0x20 => return None,
                    _ => {}
                }
            }
        }

        fn digits(&mut self) -> Option<()> {
            self.take(|byte| byte.is_ascii_digit())?;
            while self.take(|byte| byte.is_ascii_digit()).is_some() {}
            Some(())
        }

        fn number(&mut self) -> Option<()> {
            let _ = self.literal(b"-");
            if self.literal(b"0").is_none() {
                self.digits()?;
            }
            if self.literal(b".").is_some() {
                self.digits()?;
            }
            if self.take(|byte| byte == b'e' || byte == b'E').is_some() {
                let _ = self.take(|byte| byte == b'+' || byte == b'-');
                self.digits()?;
            }
            Some(())
        }
    }
}

/// Texts of values that readers stumble over.
const ODD: [&str; 31] = [
    "1e999999",
    "-0",
    "-0.0e-0",
    "123456789012345678901234567890.123456789012345678901234567890",
    "\"\\ud800\"",
    "\"\\udc00\\ud800\"",
    "\"\\ud83d\\ude00\"",
    "\"\\u0000\"",
    "\"\u{7f}\u{2028}\u{feff}\"",
    "\"\\\"\\\\]}\"",
    "\"[{\"",
    "null",
    "true",
    "[]",
    "{}",
    "[ 1 ,\r\n2 ]",
    "{\"type\":\"inner\",\"type\":1}",
    // And what is no value.
    "01",
    "+1",
    "NaN",
    "'a'",
    "\"\u{1}\"",
    "\"\\x\"",
    "tru",
    "Infinity",
    "-Infinity",
    "",
    "{]",
    "}",
    "\"]",
    "'}'",
];

fn value() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => select(ODD.to_vec()).prop_map(str::to_owned),
        2 => any::<String>().prop_map(|text| Value::from(text).to_string()),
        1 => any::<f64>().prop_map(|number| Value::from(number).to_string()),
        // Around the deepest that an event may nest.
        1 => (MAX_DEPTH - 2..MAX_DEPTH + 2).prop_map(|depth| format!("{}{}", "[".repeat(depth), "]".repeat(depth))),
    ]
}

fn event() -> impl Strategy<Value = String> {
    let name = prop_oneof![
        3 => select(vec!["type", "client_id", "event_id", "timestamp", "t\\u0079pe", "x", "", "\\ud800"]).prop_map(str::to_owned),
        1 => "[a-zA-Zäß ]{0,3}",
    ];
    let field = (name, value(), "[ \t]{0,1}").prop_map(|(name, value, space)| format!("\"{name}\"{space}:{value}"));
    let object = (any::<bool>(), vec(field, 0..4)).prop_map(|(typed, mut fields)| {
        if typed {
            fields.push("\"type\":\"a\"".to_owned());
        }
        format!("{{{}}}", fields.join(","))
    });
    prop_oneof![8 => object, 1 => value()]
}

/// A body, nearly right.
fn body() -> impl Strategy<Value = Vec<u8>> {
    let separator = select(vec![",", " ,\r\n", "\n", "\r\n", "\n\n \t\r\n", "\r", "", ",,", " "]);
    let whole = (vec(event(), 0..5), separator, 0..6u8).prop_map(|(events, separator, shape)| match shape {
        0 => events.concat().into_bytes(),
        1 => format!("{}\n", events.join(separator)).into_bytes(),
        2 => format!("[{}]{separator}", events.join(separator)).into_bytes(),
        _ => format!(" [{}]\r\n", events.join(if separator.contains(',') { separator } else { "," })).into_bytes(),
    });
    let change =
        (any::<prop::sample::Index>(), 0..5u8, any::<u8>(), select(b"[]{},:\"\\ \n\r\0u0-.e\xef\xff\xc3".to_vec()));
    (whole, prop_oneof![2 => Just(0), 1 => 1..4usize], vec(change, 4)).prop_map(|(mut body, changes, drawn)| {
        for (at, what, byte, special) in drawn.into_iter().take(changes) {
            if body.is_empty() {
                break;
            }
            let at = at.index(body.len());
            match what {
                0 => drop(body.remove(at)),
                1 => body.insert(at, special),
                2 => body[at] = byte,
                3 => body.truncate(at),
                _ => body.splice(0..0, b"\xef\xbb\xbf".iter().copied().take(1 + at % 3)).for_each(drop),
            }
        }
        body
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn nearly_right_bodies_are_taken_exactly_where_a_second_grammar_takes_them(body in body()) {
        holds(&body, Format::Json);
        holds(&body, Format::Ndjson);
    }

    #[test]
    fn any_bytes_are_answered(
        body in vec(prop_oneof![1 => any::<u8>(), 4 => select(b"[]{},:\"\\ \n\r1e-utrfalsn".to_vec())], 0..48),
    ) {
        holds(&body, Format::Json);
        holds(&body, Format::Ndjson);
    }
}

#[test]
fn the_table_of_odd_bodies_holds() {
    let typed = |rest: &str| format!("{{\"type\":\"a\",{rest}}}");
    let deep = |depth: usize| typed(&format!("\"x\":{}{}", "[".repeat(depth - 1), "]".repeat(depth - 1)));
    let open = "[".repeat(2_000);
    let digits = typed(&format!("\"n\":{}", "9".repeat(100_000)));
    for (name, body) in [
        ("2,000 open brackets", open.as_str()),
        ("100,000 digits", &digits),
        ("1e999999", &typed("\"n\":1e999999")),
        ("the deepest", &deep(MAX_DEPTH)),
        ("one level deeper", &deep(MAX_DEPTH + 1)),
        ("lone surrogates", &typed(r#""x":"\ud800","y":"\udc00""#)),
        ("a lone surrogate in a name", &typed(r#""\ud800":1"#)),
        ("NUL in a string", "{\"type\":\"a\",\"x\":\"\0\"}"),
        ("NUL between tokens", "{\"type\":\"a\"\0}"),
        ("NUL after the end", "{\"type\":\"a\"}\0"),
        ("duplicate keys", &typed(r#""type":"b","client_id":1,"client_id":"c""#)),
        ("a byte order mark in the middle", "[{\"type\":\"a\"},\u{feff}{\"type\":\"b\"}]"),
        ("other white space", "\u{b}{\"type\":\"a\"}\u{a0}"),
        ("a byte order mark at the beginning", "\u{feff}[{\"type\":\"a\"}]"),
        ("two byte order marks", "\u{feff}\u{feff}{\"type\":\"a\"}"),
        ("a byte order mark alone", "\u{feff}"),
        ("several texts", "{\"type\":\"a\"}{\"type\":\"b\"}\r\n[{\"type\":\"c\"}] 7 \"x\"null{\"type\":\"d\"}"),
        ("several texts, and then none", "{\"type\":\"a\"}{\"type\":\"b\"},{\"type\":\"c\"}"),
        ("an array and other texts", "[{\"type\":\"a\"}] {\"type\":\"b\"} [x"),
        ("an array and what is none", "[{\"type\":\"a\"}] x"),
        ("numbers that are not two", "{\"type\":\"a\"} 01 {\"type\":\"b\"}"),
        ("what is a number elsewhere", "[{\"type\":\"a\",\"x\":NaN},{\"type\":\"b\"},-Infinity]"),
        ("commas too many, and too few", "[,{\"type\":\"a\"},,{\"type\":\"b\"}{\"type\":\"c\"},]"),
        ("a bracket in a broken string", "[{\"type\":\"\\x]\"},{\"type\":\"b\"}]"),
        ("a string without its end", "[{\"type\":\"a\"},{\"type\":\"b},{\"type\":\"c\"}]"),
        ("brackets that do not match", "[{\"type\":\"a\"},{\"x\":[1},2]},{\"type\":\"b\"}]"),
        ("CR alone between lines", "{\"type\":\"a\"}\r{\"type\":\"b\"}"),
        (
            "CRLF, blank lines and a last line without an end",
            "\r\n\r\n{\"type\":\"a\"}\r\n \t\r\n7\r\n{\"type\":\"b\"}",
        ),
        ("a line in the middle of a string", "{\"type\":\"a\nb\"}"),
        ("arrays as lines", "[{\"type\":\"a\"}]\n[]\n"),
    ] {
        eprintln!("{name}");
        holds(body.as_bytes(), Format::Json);
        holds(body.as_bytes(), Format::Ndjson);
    }
    for bytes in [&b"\xff"[..], b"{\"type\":\"\xc3\"}", b"[{\"type\":\"a\"},\"\xed\xa0\x80\"]", b"\xfe\xff\0{", b"\0"] {
        holds(bytes, Format::Json);
        holds(bytes, Format::Ndjson);
    }
}

#[test]
fn the_deepest_nesting_that_a_body_holds_is_refused_and_costs_no_stack() {
    let small_stack = std::thread::Builder::new().stack_size(256 << 10);
    let checking = || {
        let open = "[".repeat(16 << 20);
        let in_event = format!("[{{\"type\":\"a\",\"x\":{}}}]", "{\"a\":".repeat(3 << 20));
        let closed = format!("{{\"type\":\"a\",\"x\":{}{}}}", "[".repeat(8 << 20), "]".repeat(8 << 20));
        for body in [open, in_event, closed] {
            for format in [Format::Json, Format::Ndjson] {
                // As a whole or as the one line that it is.
                assert!(checked(body.as_bytes(), format).map_or(true, |checked| checked.accepted.is_empty()));
            }
        }
    };
    small_stack.spawn(checking).unwrap().join().unwrap();
}
