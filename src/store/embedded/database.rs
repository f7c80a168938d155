//! The database behind the embedded store: its format, and the statements that keep the fence.
//!
//! `PRAGMA user_version` is the format's version. `bucket.grp` is the group's JSON text, which is its identity.

use std::{collections::BTreeSet, path::Path, sync::Arc};

use anyhow::{Context, bail};
use chrono::DateTime;
use parking_lot::Mutex;
use rusqlite::{
    Connection, InterruptHandle, OpenFlags, OptionalExtension, Transaction, TransactionBehavior, params,
    types::{ToSqlOutput, ValueRef},
};
use serde_json::Value;

use crate::{
    position::{Offset, Partition, Timestamp, TopicIdentity},
    sqlite,
    store::{
        BucketDelta, BucketKey, Fence, Flushed, Measures, ProcessedEvent, Query, Row, Rows, StoreError, StoreOptions,
        ceil_millis, definition_changed, group, topic_recreated,
    },
};

/// Each entry upgrades the format from the version that is its index.
const UPGRADES: [&str; 3] = [
    "
    CREATE TABLE aggregate (
        id INTEGER PRIMARY KEY,
        name TEXT NOT NULL UNIQUE,
        window_ms INTEGER NOT NULL,
        group_by TEXT NOT NULL
    );
    CREATE TABLE source (
        topic TEXT NOT NULL, generation INTEGER NOT NULL, partition INTEGER NOT NULL,
        identity TEXT NOT NULL,
        PRIMARY KEY (topic, generation, partition)
    ) WITHOUT ROWID;
    CREATE TABLE bucket (
        aggregate INTEGER NOT NULL REFERENCES aggregate,
        window_start INTEGER NOT NULL, grp TEXT NOT NULL,
        topic TEXT NOT NULL, generation INTEGER NOT NULL, partition INTEGER NOT NULL,
        count INTEGER NOT NULL, last_offset INTEGER NOT NULL,
        PRIMARY KEY (aggregate, window_start, grp, topic, generation, partition)
    ) WITHOUT ROWID;
    CREATE INDEX bucket_fence ON bucket (topic, generation, partition, last_offset);
    CREATE TABLE event (
        topic TEXT NOT NULL, generation INTEGER NOT NULL, partition INTEGER NOT NULL, offset INTEGER NOT NULL,
        time INTEGER NOT NULL, received INTEGER NOT NULL,
        type TEXT NOT NULL, client_id TEXT, event_id TEXT,
        event TEXT NOT NULL,
        PRIMARY KEY (topic, generation, partition, offset)
    );
    CREATE INDEX event_time ON event (time);
    CREATE INDEX event_type ON event (type, time);
    CREATE INDEX event_client ON event (client_id, time);
    CREATE INDEX event_received ON event (received);
    ",
    // What stands beside an event's data, as a JSON object; null where nothing does.
    "ALTER TABLE event ADD COLUMN attributes TEXT",
    // Events are asked for by their ids.
    "CREATE INDEX event_id ON event (event_id, time)",
];

/// Adds a delta to its bucket, each measure in its way, unless another writer has advanced that bucket to `first` or further.
const UPSERT: &str = "
    INSERT INTO bucket (aggregate, window_start, grp, topic, generation, partition, last_offset, count)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?9)
    ON CONFLICT DO UPDATE SET last_offset = excluded.last_offset, count = count + excluded.count
    WHERE last_offset < ?8";

/// The measures of several buckets, for [`totals`].
const TOTALS: &str = "sum(count)";

fn totals(row: &rusqlite::Row<'_>, first: usize) -> rusqlite::Result<Measures> {
    Ok(Measures { count: row.get::<_, i64>(first)?.unsigned_abs() })
}

/// Events removed at once: some milliseconds of work.
const EXPIRE_AT_ONCE: i64 = 1000;

pub struct Database {
    connection: Connection,
    options: Arc<StoreOptions>,
    /// The row ids of the configured aggregates, in their order; empty before [`Database::prepare`].
    aggregates: Vec<i64>,
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Unavailable(format!("the embedded store failed: {error}"))
    }
}

impl Database {
    /// Opens and upgrades the file.
    pub fn open(path: &Path, options: Arc<StoreOptions>) -> anyhow::Result<Self> {
        let open = || -> rusqlite::Result<(Connection, i64)> {
            let connection = Connection::open(path)?;
            // Takes effect only before the first table exists; freed pages can then be given back to the disk.
            connection.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
            sqlite::set_up_writer(&connection, path)?;
            let version = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
            Ok((connection, version))
        };
        let (mut connection, version) = open().with_context(|| format!("cannot open the embedded store {path:?}"))?;
        let newest = UPGRADES.len();
        let Some(upgrades) = usize::try_from(version).ok().and_then(|version| UPGRADES.get(version..)) else {
            bail!(
                "the embedded store {path:?} has format {version}, this release knows formats up to {newest}: \
                 use the release that wrote it, or a newer one"
            );
        };
        let mut upgrade = || -> rusqlite::Result<()> {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            for statements in upgrades {
                transaction.execute_batch(statements)?;
            }
            transaction.pragma_update(None, "user_version", newest)?;
            transaction.commit()
        };
        if !upgrades.is_empty() {
            upgrade().with_context(|| format!("cannot upgrade the embedded store {path:?} from format {version}"))?;
        }
        Ok(Self { connection, options, aggregates: Vec::new() })
    }

    /// Compares the aggregates' definitions with those that buckets were counted by.
    pub fn prepare(&mut self) -> Result<(), StoreError> {
        let transaction = write(&mut self.connection)?;
        let mut ids = Vec::new();
        for aggregate in &self.options.aggregates {
            let window_ms = i64::try_from(aggregate.window.as_millis()).unwrap_or(i64::MAX);
            let group_by = Value::from(aggregate.group_by.clone()).to_string();
            transaction.execute(
                "INSERT OR IGNORE INTO aggregate (name, window_ms, group_by) VALUES (?, ?, ?)",
                params![aggregate.name, window_ms, group_by],
            )?;
            let (id, known_window, known_group_by): (i64, i64, String) = transaction.query_row(
                "SELECT id, window_ms, group_by FROM aggregate WHERE name = ?",
                [&aggregate.name],
                |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
            )?;
            if (known_window, &known_group_by) != (window_ms, &group_by) {
                return Err(definition_changed(aggregate, known_window, &known_group_by));
            }
            ids.push(id);
        }
        transaction.commit()?;
        self.aggregates = ids;
        Ok(())
    }

    fn ensure_prepared(&mut self) -> Result<(), StoreError> {
        if self.aggregates.len() == self.options.aggregates.len() { Ok(()) } else { self.prepare() }
    }

    pub fn fences(
        &mut self,
        partition: Partition,
        committed: Offset,
        identity: &TopicIdentity,
    ) -> Result<Vec<Fence>, StoreError> {
        self.ensure_prepared()?;
        let options = self.options.clone();
        let source = (&options.topic, options.generation, partition.0);
        let transaction = write(&mut self.connection)?;
        transaction.execute(
            "INSERT OR IGNORE INTO source (topic, generation, partition, identity) VALUES (?, ?, ?, ?)",
            params![source.0, source.1, source.2, &*identity.0],
        )?;
        let known: String = transaction.query_row(
            "SELECT identity FROM source WHERE (topic, generation, partition) = (?, ?, ?)",
            source,
            |row| row.get(0),
        )?;
        if identity.contradicts(&known) {
            return Err(topic_recreated(&options, partition));
        }
        transaction.commit()?;
        let mut statement = self.connection.prepare_cached(
            "SELECT aggregate, window_start, grp, last_offset FROM bucket
             WHERE (topic, generation, partition) = (?, ?, ?) AND last_offset >= ?",
        )?;
        let mut rows = statement.query(params![source.0, source.1, source.2, committed.as_i64()])?;
        let mut fences = Vec::new();
        while let Some(row) = rows.next()? {
            let id: i64 = row.get(0)?;
            // Aggregates that are configured no more have buckets, too.
            let Some(aggregate) = self.aggregates.iter().position(|known| *known == id) else { continue };
            let group: String = row.get(2)?;
            let key = BucketKey { window_start: Timestamp(row.get(1)?), group: group.into() };
            let last_offset: i64 = row.get(3)?;
            fences.push(Fence { aggregate, key, last_offset: Offset(last_offset.unsigned_abs()) });
        }
        Ok(fences)
    }

    /// One transaction. Of a partition with a bucket that is fenced, nothing is applied.
    pub fn flush(&mut self, deltas: &[BucketDelta], events: &[ProcessedEvent]) -> Result<Flushed, StoreError> {
        self.ensure_prepared()?;
        let partitions: BTreeSet<Partition> = deltas.iter().map(|delta| delta.partition).collect();
        let mut fenced = Vec::new();
        let mut transaction = write(&mut self.connection)?;
        for partition in partitions {
            let savepoint = transaction.savepoint()?;
            let mut applied = true;
            {
                let mut upsert = savepoint.prepare_cached(UPSERT)?;
                for delta in deltas.iter().filter(|delta| delta.partition == partition) {
                    let changed = upsert.execute(params![
                        self.aggregates[delta.aggregate],
                        delta.key.window_start.0,
                        &*delta.key.group,
                        self.options.topic,
                        self.options.generation,
                        partition.0,
                        delta.last.as_i64(),
                        delta.first.as_i64(),
                        i64::try_from(delta.measures.count).unwrap_or(i64::MAX),
                    ])?;
                    if changed == 0 {
                        applied = false;
                        break;
                    }
                }
            }
            if applied {
                savepoint.commit()?;
            } else {
                // A savepoint that is dropped is rolled back.
                savepoint.finish()?;
                fenced.push(partition);
            }
        }
        insert_events(&transaction, &self.options, events)?;
        transaction.commit()?;
        Ok(Flushed { fenced, ..Flushed::default() })
    }

    /// Removes some of the events that were received too long before `now`. Says whether there may be more.
    pub fn expire_events(&mut self, now: Timestamp) -> Result<bool, StoreError> {
        let before = now.0.saturating_sub(i64::try_from(self.options.events_ttl.as_millis()).unwrap_or(i64::MAX));
        let removed = self.connection.execute(
            "DELETE FROM event WHERE rowid IN (SELECT rowid FROM event WHERE received < ? ORDER BY received LIMIT ?)",
            params![before, EXPIRE_AT_ONCE],
        )?;
        if removed > 0 {
            sqlite::give_back_pages(&self.connection, 1000)?;
        }
        Ok(i64::try_from(removed).is_ok_and(|removed| removed >= EXPIRE_AT_ONCE))
    }
}

/// Takes the write lock at once, so that no transaction fails half-way for want of it.
fn write(connection: &mut Connection) -> rusqlite::Result<Transaction<'_>> {
    connection.transaction_with_behavior(TransactionBehavior::Immediate)
}

fn insert_events(
    transaction: &Transaction<'_>,
    options: &StoreOptions,
    events: &[ProcessedEvent],
) -> rusqlite::Result<()> {
    let mut insert = transaction.prepare_cached(
        "INSERT OR IGNORE INTO event
             (topic, generation, partition, offset, time, received, type, client_id, event_id, event, attributes)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )?;
    for event in events {
        let attributes = event.attributes.iter().map(|(name, value)| (name.clone(), Value::from(value.as_str())));
        let attributes = (!event.attributes.is_empty()).then(|| Value::Object(attributes.collect()).to_string());
        // What is no text is a blob, which SQLite keeps in any column.
        let data = match std::str::from_utf8(&event.data) {
            Ok(text) => ValueRef::from(text),
            Err(_) => ValueRef::from(event.data.as_slice()),
        };
        insert.execute(params![
            options.topic,
            options.generation,
            event.partition.0,
            event.offset.as_i64(),
            event.time.timestamp_millis(),
            event.received.0,
            event.event_type,
            event.client,
            event.id,
            ToSqlOutput::Borrowed(data),
            attributes,
        ])?;
    }
    Ok(())
}

/// Ends a query whose caller is gone.
#[derive(Clone, Default)]
pub struct Cancel(Arc<Mutex<Cancelled>>);

#[derive(Default)]
struct Cancelled {
    yes: bool,
    running: Option<InterruptHandle>,
}

impl Cancel {
    pub fn cancel(&self) {
        let mut cancelled = self.0.lock();
        cancelled.yes = true;
        if let Some(running) = &cancelled.running {
            running.interrupt();
        }
    }

    /// Interrupts what runs on this connection.
    pub fn watch(&self, connection: &Connection) {
        let running = connection.get_interrupt_handle();
        self.0.lock().running = Some(running);
    }

    /// An interruption that comes before a statement runs is lost, so that it has to be asked for.
    pub fn check(&self) -> Result<(), StoreError> {
        match self.0.lock().yes {
            true => Err(StoreError::Unavailable("the query was given up".to_owned())),
            false => Ok(()),
        }
    }
}

/// Reads on a connection of its own, beside the writer.
pub fn query(path: &Path, options: &StoreOptions, query: &Query, cancel: &Cancel) -> Result<Rows, StoreError> {
    let (_, definition) = options.aggregate(&query.aggregate)?;
    let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    cancel.watch(&connection);
    connection.busy_timeout(options.timeout)?;
    let id: Option<i64> = connection
        .query_row("SELECT id FROM aggregate WHERE name = ?", [&query.aggregate], |row| row.get(0))
        .optional()?;
    let mut found = Rows::default();
    let Some(id) = id else { return Ok(found) };
    // Field by field, as values: null, numbers, strings. The text decides between values that are written differently.
    let by_field: String =
        (0..definition.group_by.len()).map(|field| format!("json_extract(grp, '$[{field}]'), ")).collect();
    let mut statement = connection.prepare(&format!(
        "SELECT window_start, grp, {TOTALS} FROM bucket
         WHERE aggregate = ? AND window_start >= ? AND window_start < ?
         GROUP BY window_start, grp ORDER BY window_start, {by_field} grp LIMIT ?",
    ))?;
    let limit = i64::try_from(query.limit).unwrap_or(i64::MAX);
    let range = params![id, ceil_millis(query.from), ceil_millis(query.to), limit.saturating_add(1)];
    cancel.check()?;
    let mut rows = statement.query(range)?;
    while let Some(row) = rows.next()? {
        cancel.check()?;
        let (window_start, group): (i64, String) = (row.get(0)?, row.get(1)?);
        let values = group::values(&group, definition.group_by.len());
        let row = Row {
            window_start: DateTime::from_timestamp_millis(window_start).unwrap_or_default(),
            group: definition.group_by.iter().cloned().zip(values).collect(),
            measures: totals(row, 2)?,
        };
        if !found.push(&row, query.limit) {
            break;
        }
    }
    Ok(found)
}
