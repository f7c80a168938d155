//! Processed events as they are asked for: the newest first, page by page. A page begins behind the place where the one
//! before ended (a keyset), so that one far back costs what the first does, and none is there twice or missing because
//! others came meanwhile.
//!
//! The order is by time; those of one millisecond stand as the log has them, the last first. Rows are written as JSON
//! while they are read, as those of an aggregate are.

use base64::{Engine, prelude::BASE64_STANDARD, prelude::BASE64_URL_SAFE_NO_PAD};
use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::value::RawValue;

use crate::position::Timestamp;

/// The bytes of one page, but for an event that is larger alone; the rest is on the next.
const MAX_BYTES: usize = 32 << 20;

/// Which events are asked for: all that everything here selects.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EventsQuery {
    pub id: Option<String>,
    pub client: Option<String>,
    pub event_type: Option<String>,
    /// Inclusive.
    pub from: Option<DateTime<Utc>>,
    /// Exclusive.
    pub to: Option<DateTime<Utc>>,
    /// At least 1.
    pub limit: usize,
    /// Where the page before ended.
    pub after: Option<Cursor>,
}

/// What the index in use begins with; the time comes next in each. The others are looked at in what it finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By<'q> {
    Id(&'q str),
    Client(&'q str),
    Type(&'q str),
    Time,
}

/// The end of the times that are read, going back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End<'q> {
    Open,
    /// Milliseconds, exclusive.
    Before(i64),
    Behind(&'q Cursor),
}

impl EventsQuery {
    /// The index that leaves the fewest: an id is one event's, or a few's.
    pub fn by(&self) -> By<'_> {
        match (&self.id, &self.client, &self.event_type) {
            (Some(id), ..) => By::Id(id),
            (None, Some(client), _) => By::Client(client),
            (None, None, Some(event_type)) => By::Type(event_type),
            (None, None, None) => By::Time,
        }
    }

    /// Milliseconds, inclusive.
    pub fn start(&self) -> Option<i64> {
        self.from.map(ceil_millis)
    }

    pub fn end(&self) -> End<'_> {
        let to = self.to.map(ceil_millis);
        match (&self.after, to) {
            (Some(cursor), Some(to)) if cursor.time >= to => End::Before(to),
            (Some(cursor), _) => End::Behind(cursor),
            (None, Some(to)) => End::Before(to),
            (None, None) => End::Open,
        }
    }

    /// Whether no time is left to be looked at.
    pub fn is_empty(&self) -> bool {
        let start = self.start().unwrap_or(i64::MIN);
        match self.end() {
            End::Open => false,
            End::Before(end) => end <= start,
            End::Behind(cursor) => cursor.time < start,
        }
    }
}

/// The place of an event among all: its time, and what tells it from others of that millisecond, which each store has its
/// own words for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    pub time: i64,
    pub place: String,
}

impl Cursor {
    /// The longest text that is looked at.
    const LONGEST: usize = 2048;

    /// For a URL: of A–Z, a–z, 0–9, `-` and `_`.
    pub fn encode(&self) -> String {
        BASE64_URL_SAFE_NO_PAD.encode(format!("{} {}", self.time, self.place))
    }

    /// `None` where no page ended with this text.
    pub fn decode(text: &str) -> Option<Self> {
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(Some(text).filter(|text| text.len() <= Self::LONGEST)?).ok()?;
        let text = String::from_utf8(bytes).ok()?;
        let (time, place) = text.split_once(' ')?;
        Some(Self { time: time.parse().ok()?, place: place.to_owned() })
    }
}

/// An event as it is kept.
#[derive(Debug)]
pub struct KeptEvent<'e> {
    pub id: Option<&'e str>,
    pub event_type: &'e str,
    pub client: Option<&'e str>,
    pub time: Timestamp,
    pub received: Timestamp,
    pub topic: &'e str,
    pub generation: u32,
    pub partition: i32,
    pub offset: i64,
    pub data: Data<'e>,
    /// What stands beside the data: a JSON object.
    pub attributes: Option<&'e RawValue>,
}

/// What an event is kept with.
#[derive(Debug)]
pub enum Data<'e> {
    Text(&'e str),
    Binary(&'e [u8]),
    /// The archive alone has it.
    Omitted,
}

#[derive(Serialize)]
struct Row<'e> {
    id: Option<&'e str>,
    #[serde(rename = "type")]
    event_type: &'e str,
    client: Option<&'e str>,
    time: String,
    received: String,
    topic: &'e str,
    generation: u32,
    partition: i32,
    offset: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    event: Option<&'e RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    raw: Option<&'e str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    raw_base64: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    omitted: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    attributes: Option<&'e RawValue>,
}

impl<'e> From<&KeptEvent<'e>> for Row<'e> {
    fn from(kept: &KeptEvent<'e>) -> Self {
        let mut row = Self {
            id: kept.id,
            event_type: kept.event_type,
            client: kept.client,
            time: kept.time.to_rfc3339(),
            received: kept.received.to_rfc3339(),
            topic: kept.topic,
            generation: kept.generation,
            partition: kept.partition,
            offset: kept.offset,
            event: None,
            raw: None,
            raw_base64: None,
            omitted: None,
            attributes: kept.attributes,
        };
        match kept.data {
            // As it was sent, wherever that is one JSON text.
            Data::Text(text) => match serde_json::from_str::<&RawValue>(text) {
                Ok(json) => row.event = Some(json),
                Err(_) => row.raw = Some(text),
            },
            Data::Binary(bytes) => row.raw_base64 = Some(BASE64_STANDARD.encode(bytes)),
            Data::Omitted => row.omitted = Some(true),
        }
        row
    }
}

/// One page.
#[derive(Debug, Default, PartialEq)]
pub struct EventsPage {
    json: Vec<u8>,
    count: usize,
    last: Option<Cursor>,
    is_full: bool,
}

impl EventsPage {
    /// Adds an event, unless there are `limit` of them or the page is as large as one may be. `false`: no more are wanted.
    pub fn push(&mut self, event: &KeptEvent<'_>, place: Cursor, limit: usize) -> bool {
        let before = self.json.len();
        if before > 0 {
            self.json.push(b',');
        }
        // Strings, numbers and JSON texts always serialise.
        let written = self.count < limit && serde_json::to_writer(&mut self.json, &Row::from(event)).is_ok();
        if written && (self.json.len() <= MAX_BYTES || self.count == 0) {
            self.count += 1;
            self.last = Some(place);
        } else {
            self.json.truncate(before);
            self.is_full = true;
        }
        !self.is_full
    }

    /// There is more behind the last one. `false`: there is no last one.
    pub fn end_here(&mut self) -> bool {
        self.is_full = true;
        self.last.is_some()
    }

    /// Where the next page begins, where there is one.
    pub fn next(&self) -> Option<&Cursor> {
        self.last.as_ref().filter(|_| self.is_full)
    }

    /// The elements of a JSON array, with commas in between.
    pub fn into_json(self) -> Vec<u8> {
        self.json
    }
}

/// The first whole millisecond at or after `time`, since both ends of a range compare with `>=` or `<`.
fn ceil_millis(time: DateTime<Utc>) -> i64 {
    let millis = time.timestamp_millis();
    if time.timestamp_subsec_nanos().is_multiple_of(1_000_000) { millis } else { millis + 1 }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn kept(data: Data<'_>) -> KeptEvent<'_> {
        KeptEvent {
            id: Some("i"),
            event_type: "t",
            client: None,
            time: Timestamp(1_795_420_800_123),
            received: Timestamp(1_795_420_801_000),
            topic: "events",
            generation: 2,
            partition: 3,
            offset: 17,
            data,
            attributes: None,
        }
    }

    fn cursor(time: i64) -> Cursor {
        Cursor { time, place: "events/0/1".to_owned() }
    }

    #[test]
    fn a_row_has_the_event_as_it_was_sent_or_its_bytes() {
        let row = |event: &KeptEvent<'_>| {
            let mut page = EventsPage::default();
            assert!(page.push(event, cursor(0), 1) && page.next().is_none());
            String::from_utf8(page.into_json()).unwrap()
        };
        assert_eq!(
            row(&kept(Data::Text(r#"{"n": 1.50, "n":2}"#))),
            r#"{"id":"i","type":"t","client":null,"time":"2026-11-23T08:00:00.123Z","received":"2026-11-23T08:00:01.000Z","topic":"events","generation":2,"partition":3,"offset":17,"event":{"n": 1.50, "n":2}}"#
        );
        let attributes = RawValue::from_string(r#"{"source":"/shop"}"#.to_owned()).unwrap();
        for (data, key, value) in [
            (Data::Text("no JSON"), "raw", json!("no JSON")),
            (Data::Text(""), "raw", json!("")),
            (Data::Binary(b"\xff"), "raw_base64", json!("/w==")),
            (Data::Omitted, "omitted", json!(true)),
            (Data::Text("null"), "event", Value::Null),
        ] {
            let row: Value =
                serde_json::from_str(&row(&KeptEvent { attributes: Some(&attributes), ..kept(data) })).unwrap();
            let row = row.as_object().unwrap();
            assert_eq!((row.get(key), &row["attributes"]), (Some(&value), &json!({ "source": "/shop" })));
            assert_eq!(row.len(), 11, "{row:?}");
        }
    }

    #[test]
    fn a_page_ends_at_the_limit_of_events_or_bytes_and_says_where() {
        let mut page = EventsPage::default();
        assert!(page.push(&kept(Data::Text("1")), cursor(2), 1) && page.next().is_none());
        assert!(!page.push(&kept(Data::Text("2")), cursor(1), 1));
        assert_eq!(page.next(), Some(&cursor(2)));

        let large = format!("\"{}\"", "x".repeat(20 << 20));
        let mut page = EventsPage::default();
        assert!(page.push(&kept(Data::Text(&large)), cursor(9), 100));
        assert!(!page.push(&kept(Data::Text(&large)), cursor(8), 100));
        assert_eq!((page.count, page.next()), (1, Some(&cursor(9))));
        // One that is larger than a page is a page.
        let larger = format!("\"{}\"", "x".repeat(40 << 20));
        let mut page = EventsPage::default();
        assert!(page.push(&kept(Data::Text(&larger)), cursor(9), 100));
        assert!(serde_json::from_slice::<Value>(&page.into_json()).is_ok());
    }

    #[test]
    fn a_cursor_survives_its_way_and_no_other_text_is_one() {
        for place in ["events@2/0/17", "", "ä b"] {
            let cursor = Cursor { time: -5, place: place.to_owned() };
            let text = cursor.encode();
            assert!(text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)), "{text}");
            assert_eq!(Cursor::decode(&text), Some(cursor));
        }
        for text in ["", "x", "MQ", "=", "a b", "8J+", &"A".repeat(4000)] {
            assert_eq!(Cursor::decode(text), None, "{text}");
        }
    }

    #[test]
    fn the_nearer_end_is_read_from() {
        let at = |millis| Some(Timestamp(millis).to_datetime());
        let query = EventsQuery { from: at(10), to: at(20), limit: 1, ..EventsQuery::default() };
        assert_eq!((query.start(), query.end(), query.is_empty()), (Some(10), End::Before(20), false));
        let behind = |time| EventsQuery { after: Some(cursor(time)), ..query.clone() };
        assert_eq!(behind(20).end(), End::Before(20));
        assert_eq!(behind(19).end(), End::Behind(&cursor(19)));
        assert!(!behind(10).is_empty() && behind(9).is_empty());
        assert!(EventsQuery { to: at(10), ..query.clone() }.is_empty());
        assert!(!EventsQuery::default().is_empty());
    }
}
