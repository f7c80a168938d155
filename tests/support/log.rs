//! The log as it stands, and the sinks' own stores beside it: what the oracle holds against each other. Read past the
//! daemon, as an operator's tools would.

use std::{
    collections::BTreeMap,
    ops::Range,
    path::{Path, PathBuf},
};

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

/// All records of `log.db` and of its segments, with their checksums checked.
pub fn embedded_log(data: &Path) -> Vec<LogRecord> {
    let mut log = Vec::new();
    for (_, records) in chunks(data) {
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

/// The bytes of a frame's head, as 3.2 of the design has it.
const HEAD: usize = 44;

/// The records of rows and frames, by the offset that each begins with.
fn chunks(data: &Path) -> BTreeMap<u64, RecordBuffer> {
    let database = open(&data.join("log.db"));
    let mut chunks = BTreeMap::new();
    let mut rows = database.prepare("SELECT base, records FROM chunks").expect("the format is 3.2");
    let rows = rows.query_map([], |row| Ok((row.get(0)?, row.get::<_, Vec<u8>>(1)?))).expect("it can be read");
    for row in rows {
        let (base, records) = row.expect("it can be read");
        chunks.insert(base, RecordBuffer::from_bytes(records).expect("checksums match"));
    }
    for (path, id, length) in segments(data) {
        let file = std::fs::read(path).expect("a segment that is listed has a file");
        let mut rest = &file[..length.unwrap_or(file.len())];
        while let Some((head, behind)) = rest.split_first_chunk::<HEAD>() {
            let number = |at: usize| u64::from_le_bytes(head[at..at + 8].try_into().expect("eight bytes"));
            let size = u32::from_le_bytes(head[36..40].try_into().expect("four bytes")) as usize;
            let records = behind.get(..size).map(|records| RecordBuffer::from_bytes(records.to_vec()));
            match records {
                Some(Ok(records)) if number(0) == id => chunks.insert(number(8), records),
                // Of a segment that is written, this is what its file held before.
                _ if length.is_none() => break,
                records => panic!("a segment that is closed is whole: {records:?}"),
            };
            rest = &behind[size..];
        }
    }
    chunks
}

/// The files of the segments, their ids, and how long those are that are closed.
pub fn segments(data: &Path) -> Vec<(PathBuf, u64, Option<usize>)> {
    let database = open(&data.join("log.db"));
    let mut rows =
        database.prepare("SELECT number, id, length FROM segments ORDER BY base").expect("the format is 3.2");
    let segments = rows.query_map([], |row| {
        let path = data.join(format!("log.segments/{:08}.segment", row.get::<_, u32>(0)?));
        let length = row.get::<_, Option<i64>>(2)?.map(|length| usize::try_from(length).expect("it is not negative"));
        Ok((path, row.get::<_, i64>(1)?.cast_unsigned(), length))
    });
    segments.expect("it can be read").map(|segment| segment.expect("it can be read")).collect()
}

/// Where the frame stands that holds `offset`: its file, where its records begin and end there, and its first offset.
pub fn frame_at(data: &Path, offset: u64) -> (PathBuf, Range<usize>, u64) {
    for (path, id, length) in segments(data).into_iter().rev() {
        let file = std::fs::read(&path).expect("a segment that is listed has a file");
        let (mut at, until) = (0, length.unwrap_or(file.len()));
        while let Some(head) = file[..until].get(at..at + HEAD) {
            let number = |at: usize| u64::from_le_bytes(head[at..at + 8].try_into().expect("eight bytes"));
            let [count, size] = [32, 36].map(|at| u32::from_le_bytes(head[at..at + 4].try_into().expect("four bytes")));
            if number(0) != id {
                break;
            }
            let records = at + HEAD..at + HEAD + size as usize;
            if (number(8)..number(8) + u64::from(count)).contains(&offset) {
                return (path, records, number(8));
            }
            at = records.end;
        }
    }
    panic!("no frame holds {offset}");
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
