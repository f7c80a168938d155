//! The log as it stands, and the sinks' own stores beside it: what the oracle holds against each other. Read past the
//! daemon, as an operator's tools would.

use std::{collections::BTreeMap, path::Path};

use chrono::{DateTime, Utc};
use ingestd::internals::log::record::RecordBuffer;
use mongodb::bson::Document;
use rusqlite::{Connection, OpenFlags};

use super::{measured, services::Services};

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

const BUCKETS: &str = "aggregate_events_by_type";

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
    /// Of the aggregates that measure more.
    pub measured: BTreeMap<measured::Key, measured::Bucket>,
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
            buckets: services.documents(name, BUCKETS).iter().map(bucket).collect(),
            measured: measured_documents(|collection| services.documents(name, collection)),
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
            measured: embedded_measured(data),
            letters: embedded_letters(data),
            events: None,
        }
    }

    /// Of a daemon whose log is embedded and whose store is MongoDB, whose collections `documents` reads.
    pub fn embedded_log(data: &Path, documents: impl Fn(&str) -> Vec<Document>) -> Self {
        Self {
            topic: "events".to_owned(),
            log: embedded_log(data),
            buckets: documents(BUCKETS).iter().map(bucket).collect(),
            letters: embedded_letters(data),
            events: Some(documents("events").iter().map(event_id).collect()),
            measured: measured_documents(documents),
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
        .prepare(
            "SELECT partition, window_start, grp, count, last_offset FROM bucket
             JOIN aggregate ON aggregate = aggregate.id WHERE name = 'events_by_type'",
        )
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

fn embedded_measured(data: &Path) -> BTreeMap<measured::Key, measured::Bucket> {
    let database = open(&data.join("store.db"));
    let mut rows = database
        .prepare(
            "SELECT partition, window_start, grp, count, last_offset, measures FROM bucket
             JOIN aggregate ON aggregate = aggregate.id WHERE name = ?",
        )
        .expect("the format is 3.5");
    let mut buckets = BTreeMap::new();
    for name in measured::NAMES {
        let found = rows.query_map([name], |row| {
            let bucket = measured::Bucket { count: row.get(3)?, last_offset: row.get(4)?, state: row.get(5)? };
            Ok(((name, row.get(0)?, row.get(1)?, row.get(2)?), bucket))
        });
        buckets.extend(found.expect("it can be read").map(|bucket| bucket.expect("it can be read")));
    }
    buckets
}

fn measured_documents(documents: impl Fn(&str) -> Vec<Document>) -> BTreeMap<measured::Key, measured::Bucket> {
    let mut buckets = BTreeMap::new();
    let definitions = documents("ingestd_aggregates");
    for name in measured::NAMES {
        // One that was rebuilt stands in another collection.
        let definition = definitions.iter().find(|definition| definition.get_str("_id").is_ok_and(|id| id == name));
        let collection = definition.and_then(|definition| definition.get_str("collection").ok()).unwrap_or(name);
        buckets.extend(documents(&format!("aggregate_{collection}")).iter().map(|document| {
            let ((partition, window), Stored { count, last_offset }) = place_of(document);
            let id = document.get_str("_id").expect("text");
            // Behind the topic, the partition and the window.
            let group = document.get_str("key").ok().or_else(|| id.splitn(4, '/').nth(3)).expect("a group");
            let state = document.get_binary_generic("state").expect("what is measured").clone();
            let key = (name, partition, window.timestamp_millis(), group.to_owned());
            (key, measured::Bucket { count, last_offset, state })
        }));
    }
    buckets
}

/// A document of `aggregate_events_by_type`.
pub fn bucket(document: &Document) -> ((i32, Bucket), Stored) {
    let ((partition, window), stored) = place_of(document);
    let group = document.get_document("group").expect("group");
    let text = |name: &str| group.get_str(name).ok().map(str::to_owned);
    ((partition, (window, text("client_id"), text("type"))), stored)
}

fn place_of(document: &Document) -> ((i32, DateTime<Utc>), Stored) {
    let window = document.get_datetime("window_start").expect("window_start").timestamp_millis();
    let window = DateTime::from_timestamp_millis(window).expect("a time of today");
    let number = |name: &str| u64::try_from(document.get_i64(name).expect("a long")).expect("it is not negative");
    let stored = Stored { count: number("count"), last_offset: number("last_offset") };
    ((document.get_i32("partition").expect("partition"), window), stored)
}
