//! The database behind the embedded store: its format, and the statements that keep the fence.
//!
//! `PRAGMA user_version` is the format's version. `bucket.grp` is the group's JSON text, which is its identity.

use std::{collections::BTreeSet, path::Path, sync::Arc};

use anyhow::{Context, bail};
use parking_lot::Mutex;
use rusqlite::{
    Connection, InterruptHandle, OpenFlags, OptionalExtension, Transaction, TransactionBehavior, params,
    types::{ToSqlOutput, ValueRef},
};
use sd_notify::NotifyState;
use serde_json::Value;

use crate::{
    event::TimeBounds,
    measure::More,
    position::{Offset, Partition, Timestamp, TopicIdentity},
    sqlite,
    store::{
        BucketDelta, BucketKey, Definition, Fence, Flushed, GroupsFound, GroupsOf, History, Prepared, ProcessedEvent,
        Removal, StoreError, StoreOptions,
        query::{Bucket, Merger, Query, Rows, Wanted},
        topic_recreated,
    },
};

/// Each entry upgrades the format from the version that is its index.
const UPGRADES: [&str; 4] = [
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
    // What an aggregate's definition has beside window and fields, as JSON, and what is measured beside the number of records.
    "
    ALTER TABLE aggregate ADD COLUMN definition TEXT NOT NULL DEFAULT '{}';
    ALTER TABLE bucket ADD COLUMN measures BLOB;
    CREATE TABLE time_bounds (
        topic TEXT NOT NULL, generation INTEGER NOT NULL, partition INTEGER NOT NULL, first_offset INTEGER NOT NULL,
        max_past INTEGER NOT NULL, max_future INTEGER NOT NULL,
        PRIMARY KEY (topic, generation, partition, first_offset)
    ) WITHOUT ROWID;
    CREATE TABLE removed (
        aggregate INTEGER NOT NULL REFERENCES aggregate,
        topic TEXT NOT NULL, generation INTEGER NOT NULL, partition INTEGER NOT NULL,
        before INTEGER NOT NULL,
        PRIMARY KEY (aggregate, topic, generation, partition)
    ) WITHOUT ROWID;
    ",
    // Events are asked for by their ids.
    "CREATE INDEX event_id ON event (event_id, time)",
];

/// Adds a delta to its bucket, unless another writer has advanced that bucket to `first` or further. What is measured beside
/// the number of records was merged before, within the transaction.
const UPSERT: &str = "
    INSERT INTO bucket (aggregate, window_start, grp, topic, generation, partition, last_offset, count, measures)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?9, ?10)
    ON CONFLICT DO UPDATE SET last_offset = excluded.last_offset, count = count + excluded.count,
        measures = excluded.measures
    WHERE last_offset < ?8";

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
            if version > 0 {
                // systemd waits for it, as long as that can be asked for: some 70 minutes. Without it there is nobody to ask.
                let _ = sd_notify::notify(&[NotifyState::ExtendTimeoutUsec(u32::MAX)]);
                tracing::warn!(
                    ?path,
                    from = version,
                    to = newest,
                    "upgrading the embedded store, which may take minutes \
                    where it keeps many millions of events (store.events): the daemon starts after it, and a stop meanwhile \
                    changes nothing"
                );
            }
            upgrade().with_context(|| format!("cannot upgrade the embedded store {path:?} from format {version}"))?;
        }
        Ok(Self { connection, options, aggregates: Vec::new() })
    }

    /// Compares the aggregates' definitions with those that buckets were counted by.
    pub fn prepare(&mut self) -> Result<Prepared, StoreError> {
        let transaction = write(&mut self.connection)?;
        let (mut ids, mut names_only) = (Vec::new(), Vec::new());
        for aggregate in &self.options.aggregates {
            let wanted = Definition::of(aggregate);
            transaction.execute(
                "INSERT OR IGNORE INTO aggregate (name, window_ms, group_by, definition) VALUES (?, ?, ?, ?)",
                params![aggregate.name, wanted.window_ms, wanted.group_by, Value::Object(wanted.more).to_string()],
            )?;
            let (id, window_ms, group_by, more): (i64, i64, String, String) = transaction.query_row(
                "SELECT id, window_ms, group_by, definition FROM aggregate WHERE name = ?",
                [&aggregate.name],
                |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)),
            )?;
            let more = serde_json::from_str(&more).unwrap_or_default();
            names_only.push(Definition::judge(aggregate, &Definition { window_ms, group_by, more })?);
            ids.push(id);
        }
        transaction.commit()?;
        self.aggregates = ids;
        Ok(Prepared { remarks: Vec::new(), names_only })
    }

    fn ensure_prepared(&mut self) -> Result<(), StoreError> {
        if self.aggregates.len() == self.options.aggregates.len() { Ok(()) } else { self.prepare().map(drop) }
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

    pub fn history(&mut self, partition: Partition, from: Offset, present: TimeBounds) -> Result<History, StoreError> {
        self.ensure_prepared()?;
        let options = self.options.clone();
        let source = (&options.topic, options.generation, partition.0);
        let transaction = write(&mut self.connection)?;
        let mut bounds = time_bounds(&transaction, source)?;
        if bounds.last().is_none_or(|(_, last)| *last != present) {
            for (from, of) in History::new_bounds(bounds.is_empty(), from, present) {
                transaction.execute(
                    "INSERT OR REPLACE INTO time_bounds (topic, generation, partition, first_offset, max_past, max_future)
                     VALUES (?, ?, ?, ?, ?, ?)",
                    params![source.0, source.1, source.2, from.as_i64(), of.max_past, of.max_future],
                )?;
            }
            bounds = time_bounds(&transaction, source)?;
        }
        transaction.commit()?;
        let mut statement = self.connection.prepare_cached(
            "SELECT before FROM removed WHERE (aggregate, topic, generation, partition) = (?, ?, ?, ?)",
        )?;
        let mut removed = |aggregate: &i64| {
            let before = statement.query_row(params![aggregate, source.0, source.1, source.2], |row| row.get(0));
            before.optional().map(|before| before.map(Timestamp))
        };
        let removed = self.aggregates.iter().map(&mut removed).collect::<rusqlite::Result<_>>()?;
        Ok(History { bounds, removed })
    }

    pub fn remove(&mut self, removal: &Removal) -> Result<bool, StoreError> {
        self.ensure_prepared()?;
        let (aggregate, options) = (self.aggregates[removal.aggregate], self.options.clone());
        let (topic, generation, partition) = (&options.topic, options.generation, removal.partition.0);
        let transaction = write(&mut self.connection)?;
        transaction.execute(
            "INSERT INTO removed (aggregate, topic, generation, partition, before) VALUES (?, ?, ?, ?, ?)
             ON CONFLICT DO UPDATE SET before = max(before, excluded.before)",
            params![aggregate, topic, generation, partition, removal.before.0],
        )?;
        // Buckets of earlier generations have no fence that anybody asks for.
        let removed = transaction.execute(
            "DELETE FROM bucket WHERE (aggregate, window_start, grp, topic, generation, partition) IN (
                 SELECT aggregate, window_start, grp, topic, generation, partition FROM bucket
                 WHERE aggregate = ?1 AND window_start < ?2
                     AND topic = ?3 AND (generation = ?4 AND partition = ?5 AND last_offset < ?6 OR generation < ?4)
                 LIMIT ?7)",
            params![
                aggregate,
                removal.before.0,
                topic,
                generation,
                partition,
                removal.committed.as_i64(),
                EXPIRE_AT_ONCE
            ],
        )?;
        transaction.commit()?;
        if removed > 0 {
            sqlite::give_back_pages(&self.connection, 1000)?;
        }
        Ok(i64::try_from(removed).is_ok_and(|removed| removed >= EXPIRE_AT_ONCE))
    }

    /// Which of these groups have buckets, and how many groups have.
    pub fn groups(&mut self, asked: &[GroupsOf]) -> Result<Vec<GroupsFound>, StoreError> {
        self.ensure_prepared()?;
        let mut one = self.connection.prepare_cached(
            "SELECT 1 FROM bucket
             WHERE (aggregate, window_start, grp, topic, generation, partition) = (?, ?, ?, ?, ?, ?)",
        )?;
        let mut all = self.connection.prepare_cached(
            "SELECT count(*) FROM (SELECT 1 FROM bucket
             WHERE (aggregate, window_start, topic, generation, partition) = (?, ?, ?, ?, ?) AND grp != ? LIMIT ?)",
        )?;
        let (topic, generation) = (&self.options.topic, self.options.generation);
        let mut found = Vec::with_capacity(asked.len());
        for of in asked {
            let (aggregate, window, partition) = (self.aggregates[of.aggregate], of.window_start.0, of.partition.0);
            let mut has =
                |group: &Arc<str>| one.exists(params![aggregate, window, &**group, topic, generation, partition]);
            let present = of.groups.iter().map(&mut has).collect::<rusqlite::Result<Vec<bool>>>()?;
            let limit = i64::try_from(of.limit).unwrap_or(i64::MAX);
            let buckets: i64 = all
                .query_row(params![aggregate, window, topic, generation, partition, &*of.other, limit], |row| {
                    row.get(0)
                })?;
            found.push(GroupsFound { present, buckets: usize::try_from(buckets).unwrap_or_default() });
        }
        Ok(found)
    }

    /// One transaction. Of a partition with a bucket that is fenced, nothing is applied.
    pub fn flush(&mut self, deltas: &[BucketDelta], events: &[ProcessedEvent]) -> Result<Flushed, StoreError> {
        self.ensure_prepared()?;
        let partitions: BTreeSet<Partition> = deltas.iter().map(|delta| delta.partition).collect();
        let mut flushed = Flushed::default();
        let mut transaction = write(&mut self.connection)?;
        for partition in partitions {
            let savepoint = transaction.savepoint()?;
            let mut outcome = Applied::Yes;
            for delta in deltas.iter().filter(|delta| delta.partition == partition) {
                outcome = apply(&savepoint, &self.options, self.aggregates[delta.aggregate], delta)?;
                if outcome != Applied::Yes {
                    break;
                }
            }
            match outcome {
                Applied::Yes => savepoint.commit()?,
                // A savepoint that is dropped is rolled back.
                Applied::Fenced => {
                    savepoint.finish()?;
                    flushed.fenced.push(partition);
                }
                Applied::Unreadable(reason) => {
                    savepoint.finish()?;
                    flushed.block(partition, reason);
                }
            }
        }
        insert_events(&transaction, &self.options, events)?;
        transaction.commit()?;
        Ok(flushed)
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

/// By which bounds the times of a partition's records are believed, from which offset on.
fn time_bounds(
    connection: &Connection,
    (topic, generation, partition): (&String, u32, i32),
) -> rusqlite::Result<Vec<(Offset, TimeBounds)>> {
    let mut statement = connection.prepare_cached(
        "SELECT first_offset, max_past, max_future FROM time_bounds
         WHERE (topic, generation, partition) = (?, ?, ?) ORDER BY first_offset",
    )?;
    let bounds = statement.query_map(params![topic, generation, partition], |row| {
        let bounds = TimeBounds { max_past: row.get(1)?, max_future: row.get(2)? };
        Ok((Offset(row.get::<_, i64>(0)?.unsigned_abs()), bounds))
    })?;
    bounds.collect()
}

/// What became of a delta.
#[derive(Debug, PartialEq, Eq)]
enum Applied {
    Yes,
    /// Another writer was there.
    Fenced,
    /// What its bucket has was not written by this release.
    Unreadable(String),
}

/// Adds a delta to its bucket.
fn apply(
    connection: &Connection,
    options: &StoreOptions,
    aggregate: i64,
    delta: &BucketDelta,
) -> Result<Applied, StoreError> {
    let BucketKey { window_start, group } = &delta.key;
    let (partition, first) = (delta.partition.0, delta.first.as_i64());
    let mut measures = None;
    if let Some(more) = &delta.measures.more {
        let known = connection
            .prepare_cached(
                "SELECT last_offset, measures FROM bucket
                 WHERE (aggregate, window_start, grp, topic, generation, partition) = (?, ?, ?, ?, ?, ?)",
            )?
            .query_row(
                params![aggregate, window_start.0, &**group, options.topic, options.generation, partition],
                |row| Ok((row.get::<_, i64>(0)?, row.get::<_, Option<Vec<u8>>>(1)?)),
            )
            .optional()?;
        let merged = match known {
            Some((last_offset, _)) if last_offset >= first => return Ok(Applied::Fenced),
            Some((_, known)) => merged(options, delta, more, &known.unwrap_or_default()),
            None => Ok(more.to_bytes()),
        };
        match merged {
            Ok(bytes) => measures = Some(bytes),
            Err(reason) => return Ok(Applied::Unreadable(reason)),
        }
    }
    let changed = connection.prepare_cached(UPSERT)?.execute(params![
        aggregate,
        window_start.0,
        &**group,
        options.topic,
        options.generation,
        partition,
        delta.last.as_i64(),
        first,
        i64::try_from(delta.measures.count).unwrap_or(i64::MAX),
        measures,
    ])?;
    Ok(if changed == 0 { Applied::Fenced } else { Applied::Yes })
}

/// What a bucket has after a delta, beside its count.
fn merged(options: &StoreOptions, delta: &BucketDelta, more: &More, known: &[u8]) -> Result<Vec<u8>, String> {
    let mut merged = More::from_bytes(&options.plans[delta.aggregate], known).map_err(|damaged| {
        format!(
            "{damaged} of the bucket {} at {} of aggregate {:?} in store.db: a newer release wrote it, or it is damaged",
            delta.key.group,
            delta.key.window_start.to_rfc3339(),
            options.aggregates[delta.aggregate].name,
        )
    })?;
    merged.merge(more);
    Ok(merged.to_bytes())
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

/// The buckets of a query, in the order of their windows.
pub fn buckets(with_state: bool) -> String {
    let state = if with_state { "measures" } else { "NULL" };
    format!(
        "SELECT window_start, grp, count, {state} FROM bucket
         WHERE aggregate = ? AND window_start >= ? AND window_start < ? ORDER BY window_start"
    )
}

/// Reads on a connection of its own, beside the writer.
pub fn query(path: &Path, options: &StoreOptions, query: Query, cancel: &Cancel) -> Result<Rows, StoreError> {
    let (index, aggregate) = options.aggregate(&query.aggregate)?;
    let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    cancel.watch(&connection);
    connection.busy_timeout(options.timeout)?;
    let id: Option<i64> = connection
        .query_row("SELECT id FROM aggregate WHERE name = ?", [&query.aggregate], |row| row.get(0))
        .optional()?;
    let mut merger = Merger::new(query, aggregate, &options.plans[index]);
    let Some(id) = id else { return merger.finish() };
    let mut statement = connection.prepare(&buckets(merger.needs_state()))?;
    cancel.check()?;
    let (from, to) = merger.range();
    let mut rows = statement.query(params![id, from.0, to.0])?;
    while let Some(row) = rows.next()? {
        cancel.check()?;
        let bucket = Bucket {
            window_start: Timestamp(row.get(0)?),
            group: row.get_ref(1)?.as_str().map_err(rusqlite::Error::from)?,
            count: row.get::<_, i64>(2)?.unsigned_abs(),
            state: row.get_ref(3)?.as_blob_or_null().map_err(rusqlite::Error::from)?,
        };
        if merger.take(bucket)? == Wanted::Nothing {
            break;
        }
    }
    merger.finish()
}
