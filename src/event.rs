//! What the daemon reads of an event: its type, id, time, client and key. Everything else is the user's and is carried
//! as it came.
//!
//! The rules, for the ingestor ([`parse`]) and for every reader of the log ([`read`]) alike:
//!
//! - the whole value is valid JSON in valid UTF-8, an object, and nested no deeper than [`MAX_DEPTH`];
//! - of duplicate fields the last one counts, where they are taken;
//! - `null` is as good as absent;
//! - the type is a required string of 1 to 128 characters, the id an optional one of 1 to 256, the timestamp an optional
//!   RFC 3339 time between 1970 and 9999;
//! - the client and the key are a string's characters or another scalar's JSON text; an object or an array is neither. A
//!   string that says "nobody" (empty, blank, a nil UUID) is no key, and a long one stands for itself by its hash.
//!
//! What stands beside the value, in headers (`ce_type`, `ce_id`, `ce_time`, `ce_source`) or in an envelope around it, wins over
//! the value's field with the same role, each on its own. With a type of that kind the value may be anything ([`stated`]).
//!
//! The ingestor refuses more than a reader does: what stands in the log is read and counted by the rules that it was
//! accepted under. What not every reader of JSON can read ([`Unreadable`]) is refused unless the configuration says
//! otherwise; times have a second 60 at 23:59:60 UTC alone, and a hyphen as their offset's minus.

mod envelope;
mod fields;
mod json;
mod readable;
mod stated;

use std::borrow::Cow;

use chrono::{DateTime, FixedOffset, Timelike};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::{
    config::{ByteSize, EventConfig, OnUnreadable},
    position::Timestamp,
};

pub use envelope::{Envelope, is_attribute_name};
pub use fields::{MAX_DEPTH, find_readable};
pub use json::{Texts, array};
pub use readable::{Unreadable, check};
use stated::Stated;
pub use stated::{Carried, admit_with, header_of};

/// Which top-level fields are read: those of the head, and further ones that an aggregate groups by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventFields {
    /// Each name once, so that a field of an event is compared with as few as possible.
    names: Vec<String>,
    /// Indexes into `names`: type, id, time, client, key.
    head: [usize; 5],
    selected: Vec<usize>,
    /// What the ingestor does; readers of the log do not ask.
    on_unreadable: OnUnreadable,
}

impl From<&EventConfig> for EventFields {
    fn from(config: &EventConfig) -> Self {
        let mut names = Vec::new();
        let head = [
            config.type_field.as_str(),
            &config.id_field,
            &config.time_field,
            &config.client_field,
            config.key_field(),
        ];
        let head = head.map(|name| index_of(&mut names, name));
        Self { names, head, selected: Vec::new(), on_unreadable: config.on_unreadable }
    }
}

impl EventFields {
    pub fn on_unreadable(&self) -> OnUnreadable {
        self.on_unreadable
    }

    /// The same head, and these fields for [`Found::selected`].
    pub fn selecting(mut self, fields: &[String]) -> Self {
        self.selected = fields.iter().map(|field| index_of(&mut self.names, field)).collect();
        self
    }
}

fn index_of(names: &mut Vec<String>, name: &str) -> usize {
    names.iter().position(|known| known == name).unwrap_or_else(|| {
        names.push(name.to_owned());
        names.len() - 1
    })
}

/// The raw JSON texts of an event's fields, the last of duplicates.
#[derive(Debug)]
pub struct Found<'f, 'a> {
    fields: &'f EventFields,
    /// In the order of the names.
    values: Texts<'a>,
    /// What stands beside the value in the place of selected fields: the name's index, and a JSON string.
    stated: Vec<(usize, String)>,
}

impl<'a> Found<'_, 'a> {
    /// The value of the field that was given to [`EventFields::selecting`] at this place; `None` where it is missing.
    pub fn selected(&self, index: usize) -> Option<&str> {
        let name = self.fields.selected[index];
        let stated = self.stated.iter().find(|(stated, _)| *stated == name);
        stated.map(|(_, json)| json.as_str()).or(self.values[name])
    }

    fn head(&self, index: usize) -> Result<Field<'a>, Invalid> {
        let name = self.fields.head[index];
        Field::read(self.values[name], &self.fields.names[name])
    }
}

/// What was read of an event. Text is borrowed from it, unless it was escaped there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event<'a> {
    pub event_type: Cow<'a, str>,
    pub id: Option<Cow<'a, str>>,
    pub time: Option<Timestamp>,
    pub client: Option<Cow<'a, str>>,
    /// The log record's key.
    pub key: Option<Cow<'a, str>>,
}

/// Why an event is refused, as clients, dead letters and metrics name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Code {
    InvalidJson,
    NotAnObject,
    MissingType,
    InvalidType,
    InvalidId,
    InvalidTimestamp,
    InvalidCloudevent,
    TooLarge,
}

impl Code {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InvalidJson => "invalid_json",
            Self::NotAnObject => "not_an_object",
            Self::MissingType => "missing_type",
            Self::InvalidType => "invalid_type",
            Self::InvalidId => "invalid_id",
            Self::InvalidTimestamp => "invalid_timestamp",
            Self::InvalidCloudevent => "invalid_cloudevent",
            Self::TooLarge => "too_large",
        }
    }
}

/// Why an event cannot be accepted, or why a record of the log is no event.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {message}", code.as_str())]
pub struct Invalid {
    pub code: Code,
    pub message: String,
}

impl Invalid {
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

const MAX_TYPE_CHARS: usize = 128;
const MAX_ID_CHARS: usize = 256;
/// 9999-12-31T23:59:59.999Z: the last year that RFC 3339 can write.
const LATEST: i64 = 253_402_300_799_999;

/// Whose rules an event is read by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rules {
    /// The ingestor's and a replay's, which may still refuse it.
    Acceptance,
    /// Those of the log's readers, which find it there.
    Log,
}

impl Rules {
    /// Checks the whole of an object, and finds the fields called `names`.
    fn scan<'a, N: AsRef<str>>(
        self,
        on_unreadable: OnUnreadable,
        value: &'a [u8],
        names: &[N],
    ) -> Result<Texts<'a>, Invalid> {
        match (self, on_unreadable) {
            (Self::Acceptance, OnUnreadable::Reject) => fields::scan_readable(value, names),
            (Self::Acceptance, OnUnreadable::Accept) | (Self::Log, _) => fields::scan(value, names),
        }
    }
}

/// Checks a whole event that is to be accepted, and reads its head.
pub fn parse<'a>(value: &'a [u8], fields: &EventFields) -> Result<Event<'a>, Invalid> {
    read_by(Rules::Acceptance, value, fields).map(|(event, _)| event)
}

/// Checks a whole record of the log and reads its head, with the fields that were found on the way.
pub fn read<'f, 'a>(
    value: &'a [u8],
    headers: impl IntoIterator<Item = (&'a str, Option<&'a [u8]>)>,
    fields: &'f EventFields,
) -> Result<(Event<'a>, Found<'f, 'a>), Invalid> {
    match Stated::in_headers(headers) {
        None => read_by(Rules::Log, value, fields),
        Some(stated) => stated.read(Rules::Log, value, fields),
    }
}

fn read_by<'f, 'a>(
    rules: Rules,
    value: &'a [u8],
    fields: &'f EventFields,
) -> Result<(Event<'a>, Found<'f, 'a>), Invalid> {
    let values = rules.scan(fields.on_unreadable, value, &fields.names)?;
    let found = Found { fields, values, stated: Vec::new() };
    let [event_type, id, time, ..] = fields.head.map(|index| fields.names[index].as_str());
    let event = Event {
        event_type: event_type_of(found.head(0)?, event_type)?,
        id: id_of(found.head(1)?, id)?,
        time: time_of(&found.head(2)?, time, rules)?,
        client: found.head(3)?.scalar(),
        key: found.head(4)?.scalar().and_then(key_of),
    };
    Ok((event, found))
}

/// A field's value, as far as the head of an event is concerned.
#[derive(Debug, Default, Clone)]
enum Field<'a> {
    #[default]
    Absent,
    Text(Cow<'a, str>),
    /// A number or boolean, as it is written.
    Literal(&'a str),
    Nested,
}

impl<'a> Field<'a> {
    fn read(json: Option<&'a str>, name: &str) -> Result<Self, Invalid> {
        let Some(json) = json else { return Ok(Self::Absent) };
        Ok(match json.as_bytes().first() {
            Some(b'"') => Self::Text(unescape(json).map_err(|error| {
                Invalid::new(Code::InvalidJson, format!("the string in field {name:?} cannot be read: {error}"))
            })?),
            Some(b'{' | b'[') => Self::Nested,
            Some(b'n') => Self::Absent,
            _ => Self::Literal(json),
        })
    }

    fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Absent | Self::Literal(_) | Self::Nested => None,
        }
    }

    fn scalar(self) -> Option<Cow<'a, str>> {
        match self {
            Self::Text(text) => Some(text),
            Self::Literal(json) => Some(Cow::Borrowed(json)),
            Self::Absent | Self::Nested => None,
        }
    }
}

/// The characters of a valid JSON string.
pub fn unescape(json: &str) -> Result<Cow<'_, str>, serde_json::Error> {
    match json.get(1..json.len() - 1) {
        Some(inner) if memchr::memchr(b'\\', inner.as_bytes()).is_none() => Ok(Cow::Borrowed(inner)),
        _ => serde_json::from_str(json).map(Cow::Owned),
    }
}

/// Bytes of the longest key that stands as it is; a longer one is replaced by `sha256:<hex>`. The record is written with its
/// key beside its value, and the topic's bound has this much room beside an event.
const LONGEST_KEY: usize = 8 << 10;

/// The key that this text is. A text that stands for an unknown client is no key: the events of all of them would have one
/// partition.
fn key_of(text: Cow<'_, str>) -> Option<Cow<'_, str>> {
    if is_nil(&text) || text.trim().is_empty() {
        return None;
    }
    if text.len() > LONGEST_KEY {
        return Some(format!("sha256:{}", hex::encode(Sha256::digest(text.as_bytes()))).into());
    }
    Some(text)
}

/// Whether it is the UUID of zeros, with its hyphens or without.
fn is_nil(text: &str) -> bool {
    matches!(text.len(), 32 | 36) && text.starts_with('0') && Uuid::try_parse(text).is_ok_and(|uuid| uuid.is_nil())
}

fn event_type_of<'a>(field: Field<'a>, name: &str) -> Result<Cow<'a, str>, Invalid> {
    match field {
        Field::Text(text) if has_length(&text, MAX_TYPE_CHARS) => Ok(text),
        Field::Absent => {
            let rule = format!("field {name:?} is missing: it must be a string of 1 to {MAX_TYPE_CHARS} characters");
            Err(Invalid::new(Code::MissingType, rule))
        }
        _ => {
            let rule = format!("field {name:?} must be a string of 1 to {MAX_TYPE_CHARS} characters");
            Err(Invalid::new(Code::InvalidType, rule))
        }
    }
}

fn id_of<'a>(field: Field<'a>, name: &str) -> Result<Option<Cow<'a, str>>, Invalid> {
    match field {
        Field::Absent => Ok(None),
        Field::Text(text) if has_length(&text, MAX_ID_CHARS) => Ok(Some(text)),
        _ => {
            let rule = format!("field {name:?} must be a string of 1 to {MAX_ID_CHARS} characters, or absent");
            Err(Invalid::new(Code::InvalidId, rule))
        }
    }
}

fn time_of(field: &Field<'_>, name: &str, rules: Rules) -> Result<Option<Timestamp>, Invalid> {
    let time = match field {
        Field::Absent => return Ok(None),
        Field::Text(text) => DateTime::parse_from_rfc3339(text)
            .ok()
            .filter(|time| rules == Rules::Log || is_read_by_others(text, time))
            .map(|time| time.timestamp_millis()),
        Field::Literal(_) | Field::Nested => None,
    };
    match time {
        Some(millis @ 0..=LATEST) => Ok(Some(Timestamp(millis))),
        _ => {
            let rule = format!(
                "field {name:?} must be an RFC 3339 time between 1970 and 9999 such as \"2026-11-23T08:00:00.123Z\" \
                 (with a second 60 at 23:59:60 UTC alone), or absent"
            );
            Err(Invalid::new(Code::InvalidTimestamp, rule))
        }
    }
}

/// Whether what chrono took is RFC 3339's grammar with a leap second where there are some (5.6 and 5.7): readers of the
/// archive know no others, nor U+2212 for a minus.
fn is_read_by_others(text: &str, time: &DateTime<FixedOffset>) -> bool {
    let utc = time.naive_utc();
    let is_second_60 = utc.nanosecond() >= 1_000_000_000;
    text.is_ascii() && (!is_second_60 || (utc.hour(), utc.minute()) == (23, 59))
}

/// 1 to `most` characters.
fn has_length(text: &str, most: usize) -> bool {
    !text.is_empty() && (text.len() <= most || text.chars().nth(most).is_none())
}

/// Checks one event, and reads what is read of it.
///
/// # Errors
/// Why it is not accepted.
pub fn admit<'e>(event: &'e [u8], max_event: ByteSize, fields: &EventFields) -> Result<Event<'e>, Invalid> {
    if event.len() > max_event.as_usize() {
        return Err(too_large(event.len(), "bytes", max_event));
    }
    parse(event, fields)
}

/// An event of this size is larger than one may be.
pub fn too_large(size: usize, of_what: &str, max_event: ByteSize) -> Invalid {
    let message = format!("{size} {of_what} are more than an event may have: {max_event} (http.max_event)");
    Invalid::new(Code::TooLarge, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields() -> EventFields {
        EventFields::from(&EventConfig::default())
    }

    fn read(json: &str) -> Result<Event<'_>, Code> {
        parse(json.as_bytes(), &fields()).map_err(|invalid| invalid.code)
    }

    fn codes(cases: &[(&str, Code)]) {
        for (json, code) in cases {
            assert_eq!(read(json).err(), Some(*code), "{json}");
        }
    }

    #[test]
    fn an_ordinary_event_is_read_without_copying() {
        let json = r#" {"type":"login","event_id":"e1","timestamp":"2026-11-23T09:00:00.123+01:00","client_id":"c1","n":[1,{}]} "#;
        let event = read(json).unwrap();
        assert_eq!(event.time.map(Timestamp::to_rfc3339).as_deref(), Some("2026-11-23T08:00:00.123Z"));
        for (text, expected) in
            [(Some(event.event_type), "login"), (event.id, "e1"), (event.client, "c1"), (event.key, "c1")]
        {
            assert!(matches!(text, Some(Cow::Borrowed(text)) if text == expected), "{expected}");
        }
    }

    #[test]
    fn the_type_is_a_required_string_of_1_to_128_characters() {
        let longest = format!(r#"{{"type":"{}"}}"#, "ü".repeat(128));
        assert!(read(&longest).is_ok());
        let longer = format!(r#"{{"type":"{}"}}"#, "ü".repeat(129));
        codes(&[
            ("{}", Code::MissingType),
            (r#"{"type":null}"#, Code::MissingType),
            (r#"{"type":""}"#, Code::InvalidType),
            (r#"{"type":1}"#, Code::InvalidType),
            (r#"{"type":["a"]}"#, Code::InvalidType),
            (&longer, Code::InvalidType),
        ]);
    }

    #[test]
    fn the_id_is_an_optional_string_of_1_to_256_characters() {
        assert_eq!(read(r#"{"type":"a"}"#).unwrap().id, None);
        assert_eq!(read(r#"{"type":"a","event_id":null}"#).unwrap().id, None);
        let longer = format!(r#"{{"type":"a","event_id":"{}"}}"#, "x".repeat(257));
        codes(&[
            (r#"{"type":"a","event_id":""}"#, Code::InvalidId),
            (r#"{"type":"a","event_id":7}"#, Code::InvalidId),
            (&longer, Code::InvalidId),
        ]);
    }

    #[test]
    fn the_timestamp_is_rfc_3339_between_1970_and_9999() {
        assert_eq!(read(r#"{"type":"a","timestamp":null}"#).unwrap().time, None);
        let last = read(r#"{"type":"a","timestamp":"9999-12-31T23:59:59.999Z"}"#).unwrap();
        assert_eq!(last.time, Some(Timestamp(LATEST)));
        for time in [
            r#""yesterday""#,
            r#""2026-11-23""#,
            r#""2026-11-23T08:00:00""#,
            "1732348800",
            "{}",
            r#""1969-12-31T23:59:59Z""#,
            r#""9999-12-31T23:59:59-01:00""#,
        ] {
            codes(&[(&format!(r#"{{"type":"a","timestamp":{time}}}"#), Code::InvalidTimestamp)]);
        }
    }

    #[test]
    fn a_time_that_readers_of_the_archive_do_not_know_is_refused_at_the_door_and_counted_where_it_is_in_the_log() {
        for (time, is_accepted) in [
            ("2026-12-31T23:59:60Z", true),
            ("2027-01-01T05:29:60.5+05:30", true),
            ("2026-12-31t23:59:59z", true),
            ("2026-12-31T23:58:60Z", false),
            ("2026-12-31T22:59:60Z", false),
            ("2026-12-31T23:59:60+01:00", false),
            ("2026-12-31T23:59:59\u{2212}01:00", false),
        ] {
            let json = format!(r#"{{"type":"a","timestamp":"{time}"}}"#);
            let refused = super::parse(json.as_bytes(), &fields()).err().map(|invalid| invalid.code);
            assert_eq!(refused, (!is_accepted).then_some(Code::InvalidTimestamp), "{time}");
            let fields = fields();
            let (event, _) = super::read(json.as_bytes(), [], &fields).unwrap();
            let expected = DateTime::parse_from_rfc3339(time).unwrap().timestamp_millis();
            assert_eq!(event.time, Some(Timestamp(expected)), "{time}: as it always was");
        }
    }

    #[test]
    fn the_key_is_a_strings_characters_or_another_scalars_text() {
        for (value, key) in [
            (r#""a b""#, Some("a b")),
            (r#""\u0061\n""#, Some("a\n")),
            ("1.50", Some("1.50")),
            ("true", Some("true")),
            ("0", Some("0")),
            ("null", None),
            ("{}", None),
            ("[1]", None),
        ] {
            let json = format!(r#"{{"type":"a","client_id":{value}}}"#);
            let event = read(&json).unwrap();
            assert_eq!((event.key.as_deref(), event.client.as_deref()), (key, key), "{value}");
        }
    }

    #[test]
    fn a_client_that_is_not_known_is_no_key_and_a_long_one_is_a_short_key() {
        let (nil, digits) = ("00000000-0000-0000-0000-000000000000", "0".repeat(32));
        for client in ["", " ", "\u{a0}\u{2003}", nil, &digits] {
            let json = format!(r#"{{"type":"a","client_id":"{client}"}}"#);
            let event = read(&json).unwrap();
            assert_eq!((event.client.as_deref(), event.key), (Some(client), None));
        }
        for client in
            ["00000000-0000-0000-0000-000000000001", "0", "-", &digits[1..], &"0".repeat(36), &"x".repeat(LONGEST_KEY)]
        {
            let json = format!(r#"{{"type":"a","client_id":"{client}"}}"#);
            assert_eq!(read(&json).unwrap().key.as_deref(), Some(client));
        }
        let long = "x".repeat(LONGEST_KEY + 1);
        let json = format!(r#"{{"type":"a","client_id":"{long}"}}"#);
        let event = read(&json).unwrap();
        let key = event.key.unwrap();
        assert!(key.starts_with("sha256:") && key.len() == 71, "{key}");
        assert_eq!(event.client.as_deref(), Some(&*long));
    }

    #[test]
    fn the_key_may_be_any_field() {
        let config = EventConfig { key_field: "type".to_owned(), ..EventConfig::default() };
        let event = parse(br#"{"type":"a","client_id":"c"}"#, &EventFields::from(&config)).unwrap();
        assert_eq!((event.key.as_deref(), event.client.as_deref()), (Some("a"), Some("c")));
    }

    #[test]
    fn of_duplicate_fields_the_last_counts_however_it_is_written() {
        let json = r#"{"type":"a","client_id":"c","t\u0079pe":"b","client_id":null,"x":7}"#;
        let fields = fields().selecting(&["x", "type", "y", "type"].map(str::to_owned));
        let (event, found) = super::read(json.as_bytes(), [], &fields).unwrap();
        assert_eq!((event.event_type.as_ref(), event.client), ("b", None));
        let selected: Vec<_> = (0..4).map(|index| found.selected(index)).collect();
        assert_eq!(selected, [Some("7"), Some(r#""b""#), None, Some(r#""b""#)]);
    }

    #[test]
    fn what_not_every_reader_can_read_is_refused_at_the_door_alone_and_only_where_the_configuration_says_so() {
        let accepting = EventConfig { on_unreadable: OnUnreadable::Accept, ..EventConfig::default() };
        let accepting = EventFields::from(&accepting);
        let digits = format!(r#"{{"type":"a","n":{}}}"#, "7".repeat(4301));
        for (json, word) in [
            (r#"{"type":"a","x":[{"n":1e400}]}"#, "1e400"),
            (r#"{"type":"a","x":"\ud800"}"#, "\\ud800"),
            (r#"{"type":"a","t\u0079pe":"a"}"#, "\"type\" stands twice"),
            (r#"{"type":"a","x":{"y":1,"y":1}}"#, "\"y\" stands twice"),
            (&digits, "longer than"),
        ] {
            let fields = fields();
            let refused = parse(json.as_bytes(), &fields).unwrap_err();
            assert!(refused.code == Code::InvalidJson && refused.message.contains(word), "{refused}");
            assert!(refused.message.contains("event.on_unreadable") && refused.message.len() < 200, "{refused}");
            assert!(parse(json.as_bytes(), &accepting).is_ok(), "{json}");
            assert!(super::read(json.as_bytes(), [], &fields).is_ok(), "{json}");
        }
    }

    #[test]
    fn the_whole_value_must_be_json_in_utf_8() {
        codes(&[
            ("", Code::InvalidJson),
            (r#"{"type":"a""#, Code::InvalidJson),
            (r#"{"type":"a"} x"#, Code::InvalidJson),
            (r#"{"type":"a","x":01}"#, Code::InvalidJson),
            ("{\"type\":\"a\",\"x\":\"\u{1}\"}", Code::InvalidJson),
            (r#"{"type":"a","client_id":"\ud800"}"#, Code::InvalidJson),
            ("[1", Code::InvalidJson),
            ("[1]", Code::NotAnObject),
            ("7", Code::NotAnObject),
            ("null", Code::NotAnObject),
        ]);
        assert_eq!(parse(b"{\"type\":\"a\",\"x\":\"\xff\"}", &fields()).unwrap_err().code, Code::InvalidJson);
    }

    #[test]
    fn nesting_is_bounded_and_brackets_in_strings_do_not_count() {
        let nested =
            |levels: usize| format!(r#"{{"type":"a","x":{}{}}}"#, "[".repeat(levels - 1), "]".repeat(levels - 1));
        assert!(read(&nested(MAX_DEPTH)).is_ok());
        let deeper = nested(MAX_DEPTH + 1);
        let invalid = parse(deeper.as_bytes(), &fields()).unwrap_err();
        assert!(invalid.code == Code::InvalidJson && invalid.message.contains("nested"), "{invalid}");
        assert!(read(&format!(r#"{{"type":"a","x":"\"{}"}}"#, "[".repeat(500))).is_ok());
        assert!(read(&format!(r#"{{"type":"a","x":[{}1]}}"#, "[],".repeat(500))).is_ok());
    }
}
