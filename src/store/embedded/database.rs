//! The database behind the embedded store: its format, and the statements that keep the fence.
//!
//! `PRAGMA user_version` is the format's version. `bucket.grp` is the group's JSON text, which is its identity.

use std::{collections::BTreeSet, path::Path, sync::Arc};

use anyhow::{Context, bail};
use arc_swap::ArcSwap;
use rusqlite::{
    Connection, OptionalExtension, Row, Transaction, TransactionBehavior, params,
    types::{ToSqlOutput, ValueRef},
};
use sd_notify::NotifyState;
use serde_json::Value;

use super::rebuild;
use crate::{
    event::TimeBounds,
    measure::More,
    position::{Offset, Partition, Timestamp, TopicIdentity},
    sqlite,
    store::{
        BucketDelta, BucketKey, Counted, CountedList, Definition, Fence, Flushed, GroupsFound, GroupsOf, History,
        Known, Prepared, ProcessedEvent, Removal, StoreError, StoreOptions, Version, Versions, counted::Found,
        rebuild::Progress, topic_recreated,
    },
};

/// Each entry upgrades the format from the version that is its index.
const UPGRADES: [&str; 5] = [
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
    // An aggregate that is rebuilt has another one beside it, its shadow, until that takes its place; the old one's name is
    // then `@` and its id, until its buckets are removed. `first_window` and `end_window` are what was asked for.
    "
    CREATE TABLE rebuild (
        name TEXT PRIMARY KEY,
        shadow INTEGER REFERENCES aggregate,
        first_window INTEGER, end_window INTEGER,
        started INTEGER NOT NULL, finished INTEGER
    ) WITHOUT ROWID;
    CREATE TABLE rebuild_partition (
        aggregate INTEGER NOT NULL REFERENCES aggregate,
        topic TEXT NOT NULL, generation INTEGER NOT NULL, partition INTEGER NOT NULL,
        state TEXT NOT NULL, position INTEGER NOT NULL, records INTEGER NOT NULL,
        PRIMARY KEY (aggregate, topic, generation, partition)
    ) WITHOUT ROWID;
    ",
];

/// Adds a delta to its bucket, unless another writer has advanced that bucket to `first` or further. What is measured beside
/// the number of records was merged before, within the transaction.
const UPSERT: &str = "
    INSERT INTO bucket (aggregate, window_start, grp, topic, generation, partition, last_offset, count, measures)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?9, ?10)
    ON CONFLICT DO UPDATE SET last_offset = excluded.last_offset, count = count + excluded.count,
        measures = excluded.measures
    WHERE last_offset < ?8";

/// Rows removed at once: some milliseconds of work.
pub(super) const EXPIRE_AT_ONCE: i64 = 1000;

pub struct Database {
    pub(super) connection: Connection,
    pub(super) options: Arc<StoreOptions>,
    /// With their row ids; without these before [`Database::prepare`].
    versions: Arc<ArcSwap<Versions<i64>>>,
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Unavailable(format!("the embedded store failed: {error}"))
    }
}

impl Database {
    /// Opens and upgrades the file.
    pub fn open(path: &Path, options: Arc<StoreOptions>) -> anyhow::Result<Self> {
        let versions = Versions::configured(&options, |_| None);
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
        Ok(Self { connection, options, versions })
    }

    /// Compares the aggregates' definitions with those that buckets were counted by.
    pub fn prepare(&mut self) -> Result<Prepared, StoreError> {
        let transaction = write(&mut self.connection)?;
        let mut known = Vec::with_capacity(self.options.aggregates.len());
        for aggregate in &self.options.aggregates {
            let wanted = Definition::of(aggregate);
            transaction.execute(
                "INSERT OR IGNORE INTO aggregate (name, window_ms, group_by, definition) VALUES (?, ?, ?, ?)",
                params![aggregate.name, wanted.window_ms, wanted.group_by, Value::Object(wanted.more).to_string()],
            )?;
            let active = transaction.query_row(
                "SELECT id, window_ms, group_by, definition FROM aggregate WHERE name = ?",
                [&aggregate.name],
                read_known,
            )?;
            let shadow = match rebuild::shadow(&transaction, &aggregate.name)? {
                Some(shadow) => Some((shadow, rebuild::range(&transaction, &aggregate.name)?)),
                None => None,
            };
            known.push(Found { configured: aggregate, active, shadow });
        }
        let versions = Versions::of(known);
        if let Err(refused) = versions.ensure_same() {
            // Their rows are looked up: those of new aggregates are not kept.
            self.versions.store(Arc::new(versions.without_places()));
            return Err(refused);
        }
        transaction.commit()?;
        let counted = versions.counted.clone();
        self.versions.store(Arc::new(versions));
        Ok(Prepared { remarks: Vec::new(), counted })
    }

    /// The row id of each aggregate that is counted.
    pub(super) fn rows(&mut self) -> Result<Arc<Versions<i64>>, StoreError> {
        let versions = self.versions.load_full();
        if versions.places.len() == versions.len() {
            return Ok(versions);
        }
        self.prepare()?;
        Ok(self.versions.load_full())
    }

    pub fn ensure_is(&self, counted: &CountedList) -> Result<(), StoreError> {
        self.versions.load().ensure_is(counted)
    }

    /// What is counted, as it is at the time.
    pub fn versions(&self) -> Arc<ArcSwap<Versions<i64>>> {
        self.versions.clone()
    }

    pub fn fences(
        &mut self,
        partition: Partition,
        committed: Offset,
        identity: &TopicIdentity,
    ) -> Result<Vec<Fence>, StoreError> {
        let versions = self.rows()?;
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
            let Some(aggregate) = versions.places.iter().position(|known| *known == id) else { continue };
            let group: String = row.get(2)?;
            let key = BucketKey { window_start: Timestamp(row.get(1)?), group: group.into() };
            let last_offset: i64 = row.get(3)?;
            fences.push(Fence { aggregate, key, last_offset: Offset(last_offset.unsigned_abs()) });
        }
        Ok(fences)
    }

    /// Of one aggregate, by its own buckets: of a shadow that has just begun there are few.
    pub fn fences_of(
        &mut self,
        aggregate: usize,
        partition: Partition,
        from: Offset,
    ) -> Result<Vec<Fence>, StoreError> {
        let place = self.rows()?.places[aggregate];
        let mut statement = self.connection.prepare_cached(
            "SELECT window_start, grp, last_offset FROM bucket
             WHERE aggregate = ? AND (+topic, generation, partition) = (?, ?, ?) AND +last_offset >= ?",
        )?;
        let of = params![place, self.options.topic, self.options.generation, partition.0, from.as_i64()];
        let fences = statement.query_map(of, |row| {
            let group: String = row.get(1)?;
            let key = BucketKey { window_start: Timestamp(row.get(0)?), group: group.into() };
            Ok(Fence { aggregate, key, last_offset: Offset(row.get::<_, i64>(2)?.unsigned_abs()) })
        })?;
        Ok(fences.collect::<rusqlite::Result<_>>()?)
    }

    pub fn history(&mut self, partition: Partition, from: Offset, present: TimeBounds) -> Result<History, StoreError> {
        let versions = self.rows()?;
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
        let removed = versions.places.iter().map(&mut removed).collect::<rusqlite::Result<_>>()?;
        let progress = versions.counted.iter().zip(&versions.places).map(|(counted, place)| match counted.version {
            Version::Active => Ok(Progress::default()),
            Version::Shadow => {
                let known = rebuild::progress(&self.connection, &options, *place, partition);
                known.map(Option::unwrap_or_default)
            }
        });
        Ok(History { bounds, removed, progress: progress.collect::<rusqlite::Result<_>>()? })
    }

    pub fn remove(&mut self, removal: &Removal) -> Result<bool, StoreError> {
        let (aggregate, options) = (self.rows()?.places[removal.aggregate], self.options.clone());
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
        let versions = self.rows()?;
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
            let (aggregate, window, partition) = (versions.places[of.aggregate], of.window_start.0, of.partition.0);
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
        let versions = self.rows()?;
        let partitions: BTreeSet<Partition> = deltas.iter().map(|delta| delta.partition).collect();
        let mut flushed = Flushed::default();
        let mut transaction = write(&mut self.connection)?;
        for partition in partitions {
            let savepoint = transaction.savepoint()?;
            let mut outcome = Applied::Yes;
            for delta in deltas.iter().filter(|delta| delta.partition == partition) {
                outcome = apply(&savepoint, &self.options, &versions, delta)?;
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

/// An aggregate's row, and its definition.
pub(super) fn read_known(row: &Row<'_>) -> rusqlite::Result<Known<i64>> {
    let more: String = row.get(3)?;
    let more = serde_json::from_str(&more).unwrap_or_default();
    Ok(Known { definition: Definition { window_ms: row.get(1)?, group_by: row.get(2)?, more }, place: row.get(0)? })
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
    versions: &Versions<i64>,
    delta: &BucketDelta,
) -> Result<Applied, StoreError> {
    let aggregate = versions.places[delta.aggregate];
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
            // One that a rebuild kept may have been measured otherwise: of what it had nothing is known.
            None | Some((_, None)) => Ok(more.to_bytes()),
            Some((_, Some(known))) => merged(&versions.counted[delta.aggregate], delta, more, &known),
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
fn merged(counted: &Counted, delta: &BucketDelta, more: &More, known: &[u8]) -> Result<Vec<u8>, String> {
    let mut merged = More::from_bytes(&counted.plan, known).map_err(|damaged| {
        format!(
            "{damaged} of the bucket {} at {} of aggregate {:?} in store.db: a newer release wrote it, or it is damaged",
            delta.key.group,
            delta.key.window_start.to_rfc3339(),
            counted.aggregate.name,
        )
    })?;
    merged.merge(more);
    Ok(merged.to_bytes())
}

/// Takes the write lock at once, so that no transaction fails half-way for want of it.
pub(super) fn write(connection: &mut Connection) -> rusqlite::Result<Transaction<'_>> {
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
