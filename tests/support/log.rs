//! The log as it stands, and the sinks' own stores beside it: what the oracle holds against each other. Read past the
//! daemon, as an operator's tools would.

use std::{collections::BTreeMap, path::Path};

use chrono::{DateTime, Utc};
use ingestd::internals::log::record::RecordBuffer;
use mongodb::bson::Document;
use rusqlite::{Connection, OpenFlags};

use super::services::Services;

/// One record of the log, or of the dead letters.
#[derive(Debug, Clone)]
pub struct LogRecord {
    pub partition: i32,
    pub offset: u64,
    /// Milliseconds since 1970.
    pub received: i64,
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub headers: Vec<(String, Option<Vec<u8>>)>,
}

impl LogRecord {
    /// The text of the first header of this name.
    pub fn header(&self, name: &str) -> Option<&str> {
        let (_, value) = self.headers.iter().find(|(header, _)| header == name)?;
        std::str::from_utf8(value.as_deref()?).ok()
    }
}

/// Window, `client_id`, `type`.
pub type Bucket = (DateTime<Utc>, Option<String>, Option<String>);

/// A bucket of one partition, as it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    pub count: u64,
    pub last_offset: u64,
}

#[derive(Debug, Clone)]
pub struct Letter {
    /// `topic/partition/offset`
    pub id: String,
    pub reason: String,
    /// `None` for a null value, and for one that was too large to be kept.
    pub value: Option<Vec<u8>>,
    pub omitted: bool,
}

/// Everything that a daemon's promises are about, read at one time while no daemon writes.
pub struct Evidence {
    pub topic: String,
    pub log: Vec<LogRecord>,
    pub buckets: BTreeMap<(i32, Bucket), Stored>,
    /// In the order in which a reader finds them; the same id may come again.
    pub letters: Vec<Letter>,
    /// The ids of the processed events, where they are kept.
    pub events: Option<Vec<String>>,
}

impl Evidence {
    /// Of daemons on the services: `name` is topic, group and database.
    pub fn on_services(services: &Services, name: &str) -> Self {
        let letters = services.read_topic(&format!("{name}.dlq")).into_iter().map(|letter| Letter {
            id: String::from_utf8_lossy(letter.key.as_deref().unwrap_or_default()).into_owned(),
            reason: letter.header("ingestd-reason").unwrap_or_default().to_owned(),
            omitted: letter.header("ingestd-value-omitted").is_some(),
            value: letter.value,
        });
        let events = services.documents(name, "events");
        Self {
            topic: name.to_owned(),
            log: services.read_topic(name),
            buckets: services.documents(name, "aggregate_events_by_type").iter().map(bucket).collect(),
            letters: letters.collect(),
            events: Some(events.iter().map(event_id).collect()),
        }
    }

    /// Of a daemon with everything embedded, which keeps its log (`queue.embedded.retention`).
    pub fn embedded(data: &Path) -> Self {
        Self {
            topic: "events".to_owned(),
            log: embedded_log(data),
            buckets: embedded_buckets(data),
            letters: embedded_letters(data),
            events: None,
        }
    }

    /// Of a daemon whose log is embedded and whose store is MongoDB.
    pub fn embedded_log(data: &Path, buckets: &[Document], events: &[Document]) -> Self {
        Self {
            topic: "events".to_owned(),
            log: embedded_log(data),
            buckets: buckets.iter().map(bucket).collect(),
            letters: embedded_letters(data),
            events: Some(events.iter().map(event_id).collect()),
        }
    }
}

fn event_id(event: &Document) -> String {
    event.get_str("_id").expect("the id of a processed event is text").to_owned()
}

fn open(path: &Path) -> Connection {
    Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).expect("it can be read beside the daemon")
}

/// All records of `log.db`, with their checksums checked.
pub fn embedded_log(data: &Path) -> Vec<LogRecord> {
    let database = open(&data.join("log.db"));
    let mut chunks = database.prepare("SELECT records FROM chunks ORDER BY base").expect("the format is 3.2");
    let chunks = chunks.query_map([], |row| row.get::<_, Vec<u8>>(0)).expect("it can be read");
    let mut log = Vec::new();
    for chunk in chunks {
        let records = RecordBuffer::from_bytes(chunk.expect("it can be read")).expect("checksums match");
        log.extend(records.iter().map(|record| LogRecord {
            partition: 0,
            offset: record.offset.0,
            received: record.received.0,
            key: record.key.map(<[u8]>::to_vec),
            value: record.value.map(<[u8]>::to_vec),
            headers: record.headers.iter().map(|(name, value)| (name.to_owned(), value.map(<[u8]>::to_vec))).collect(),
        }));
    }
    log
}

fn embedded_letters(data: &Path) -> Vec<Letter> {
    let database = open(&data.join("log.db"));
    let mut rows = database.prepare("SELECT id, reason, value FROM dead_letters").expect("the format is 3.2");
    let letters = rows
        .query_map([], |row| Ok(Letter { id: row.get(0)?, reason: row.get(1)?, value: row.get(2)?, omitted: false }));
    letters.expect("it can be read").map(|letter| letter.expect("it can be read")).collect()
}

fn embedded_buckets(data: &Path) -> BTreeMap<(i32, Bucket), Stored> {
    let database = open(&data.join("store.db"));
    let mut rows = database
        .prepare("SELECT partition, window_start, grp, count, last_offset FROM bucket")
        .expect("the format is 3.5");
    let buckets = rows.query_map([], |row| {
        let (window, group): (i64, String) = (row.get(1)?, row.get(2)?);
        let [client, event_type]: [Option<String>; 2] = serde_json::from_str(&group).expect("two values");
        let window = DateTime::from_timestamp_millis(window).expect("a time of today");
        let stored = Stored { count: row.get(3)?, last_offset: row.get(4)? };
        Ok(((row.get(0)?, (window, client, event_type)), stored))
    });
    buckets.expect("it can be read").map(|bucket| bucket.expect("it can be read")).collect()
}

/// A document of `aggregate_events_by_type`.
pub fn bucket(document: &Document) -> ((i32, Bucket), Stored) {
    let window = document.get_datetime("window_start").expect("window_start").timestamp_millis();
    let window = DateTime::from_timestamp_millis(window).expect("a time of today");
    let group = document.get_document("group").expect("group");
    let text = |name: &str| group.get_str(name).ok().map(str::to_owned);
    let number = |name: &str| u64::try_from(document.get_i64(name).expect("a long")).expect("it is not negative");
    let stored = Stored { count: number("count"), last_offset: number("last_offset") };
    let partition = document.get_i32("partition").expect("partition");
    ((partition, (window, text("client_id"), text("type"))), stored)
}
