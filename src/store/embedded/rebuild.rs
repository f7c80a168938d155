//! Rebuilds in the embedded store. A shadow is an aggregate with a row of its own, by the name `NAME@rebuild`; what it replaced,
//! or what was cancelled, has the name `@id` until its buckets are removed.

use rusqlite::{Connection, OptionalExtension, Transaction, params};
use serde_json::Value;

use super::database::{Database, EXPIRE_AT_ONCE, read_known, write};
use crate::{
    position::{Offset, Partition, Timestamp},
    sqlite,
    store::{
        Definition, Known, StoreError, StoreOptions,
        rebuild::{Kept, NewRebuild, Progress, Range, Reached, Rebuild, RebuildId, Swapped},
    },
};

/// Buckets that are kept at once, and what else is in the last of their windows: some milliseconds of work.
const KEPT_AT_ONCE: i64 = 1000;

impl Database {
    pub fn find_rebuilds(&mut self, aggregates: &[String]) -> Result<Vec<Rebuild>, StoreError> {
        let options = self.options.clone();
        // In one transaction, so that it is of one moment.
        let transaction = write(&mut self.connection)?;
        let found = aggregates.iter().filter_map(|aggregate| find(&transaction, &options, aggregate).transpose());
        Ok(found.collect::<rusqlite::Result<_>>()?)
    }

    pub fn begin_rebuild(&mut self, wanted: &NewRebuild) -> Result<Rebuild, StoreError> {
        let options = self.options.clone();
        let aggregate = options.aggregate(&wanted.aggregate)?;
        let definition = Definition::of(aggregate);
        let transaction = write(&mut self.connection)?;
        match shadow(&transaction, &aggregate.name)? {
            Some(shadow) if shadow.definition == definition => {}
            shadow => {
                if let Some(shadow) = shadow {
                    retire(&transaction, shadow.place)?;
                }
                begin(&transaction, &options, wanted, &definition)?;
            }
        }
        let begun = find(&transaction, &options, &aggregate.name)?;
        transaction.commit()?;
        begun.ok_or_else(|| StoreError::Unavailable("the rebuild that was just begun is not there".to_owned()))
    }

    pub fn kept(&mut self, aggregate: &str) -> Result<Kept, StoreError> {
        let wanted = Definition::of(self.options.aggregate(aggregate)?);
        let active = self
            .connection
            .query_row(
                "SELECT id, window_ms, group_by, definition FROM aggregate WHERE name = ?",
                [aggregate],
                read_known,
            )
            .optional()?;
        let fits = active.is_none_or(|active| active.definition.has_windows_and_groups_of(&wanted));
        Ok(Kept { fits, of_others: has_others(&self.connection, &self.options)? })
    }

    pub fn rebuild_reached(
        &mut self,
        id: &RebuildId,
        partition: Partition,
        reached: Reached,
    ) -> Result<bool, StoreError> {
        let options = self.options.clone();
        let transaction = write(&mut self.connection)?;
        let Some(shadow) = under_way(&transaction, id)? else { return Ok(false) };
        note(&transaction, &options, shadow.place, partition, reached)?;
        transaction.commit()?;
        Ok(true)
    }

    pub fn leave_out(&mut self, partition: Partition, at: Offset) -> Result<(), StoreError> {
        let (versions, options) = (self.rows()?, self.options.clone());
        let transaction = write(&mut self.connection)?;
        let ids = {
            let mut shadows = transaction
                .prepare_cached("SELECT shadow FROM rebuild WHERE shadow IS NOT NULL AND finished IS NULL")?;
            shadows.query_map([], |row| row.get::<_, i64>(0))?.collect::<rusqlite::Result<Vec<_>>>()?
        };
        for shadow in ids.into_iter().filter(|shadow| !versions.places.contains(shadow)) {
            // One that is behind has less.
            transaction.execute(
                "UPDATE rebuild_partition SET state = 'history', position = ?1
                 WHERE (aggregate, topic, generation, partition) = (?2, ?3, ?4, ?5) AND state = 'live'",
                params![at.as_i64(), shadow, options.topic, options.generation, partition.0],
            )?;
            transaction.execute(
                "UPDATE rebuild_partition SET state = 'history'
                 WHERE (aggregate, topic, generation, partition) = (?1, ?2, ?3, ?4) AND state = 'catching'",
                params![shadow, options.topic, options.generation, partition.0],
            )?;
            // It was not there when the rebuild began.
            transaction.execute(
                "INSERT OR IGNORE INTO rebuild_partition VALUES (?, ?, ?, ?, 'history', 0, 0)",
                params![shadow, options.topic, options.generation, partition.0],
            )?;
        }
        transaction.commit()?;
        Ok(())
    }

    /// After the swap this partition was counted again.
    pub fn rebuild_settled(&mut self, id: &RebuildId, partition: Partition) -> Result<(), StoreError> {
        let options = self.options.clone();
        let transaction = write(&mut self.connection)?;
        let last = find(&transaction, &options, &id.aggregate)?.filter(|last| last.id == *id);
        if last.is_some_and(|last| last.finished.is_some()) {
            transaction.execute(
                "UPDATE rebuild_partition SET state = 'live'
                 WHERE (topic, generation, partition) = (?, ?, ?)
                   AND aggregate = (SELECT shadow FROM rebuild WHERE name = ?)",
                params![options.topic, options.generation, partition.0, id.aggregate],
            )?;
            transaction.commit()?;
        }
        Ok(())
    }

    pub fn keep(&mut self, id: &RebuildId, from: Timestamp) -> Result<Option<Timestamp>, StoreError> {
        let options = self.options.clone();
        let transaction = write(&mut self.connection)?;
        let Some((active, shadow)) = both(&transaction, id)? else { return Ok(None) };
        if !active.definition.has_windows_and_groups_of(&shadow.definition) {
            return Ok(None);
        }
        let (range, of_others) = (range(&transaction, &id.aggregate)?, has_others(&transaction, &options)?);
        let Some((from, end)) = range.kept_from(from, of_others) else { return Ok(None) };
        let last: Option<i64> = transaction
            .query_row(
                "SELECT window_start FROM bucket WHERE aggregate = ? AND window_start >= ? AND window_start < ?
                 ORDER BY window_start LIMIT 1 OFFSET ?",
                params![active.place, from.0, end.0, KEPT_AT_ONCE],
                |row| row.get(0),
            )
            .optional()?;
        // Whole windows: those of the last one, too.
        let to = last.map_or(end, |last| Timestamp(last + 1));
        // What was measured otherwise is not known of them.
        let same_measures = active.definition.more.get("measures") == shadow.definition.more.get("measures");
        transaction.execute(
            "INSERT INTO bucket (aggregate, window_start, grp, topic, generation, partition, count, last_offset, measures)
             SELECT ?1, window_start, grp, topic, generation, partition, count, last_offset, iif(?2, measures, NULL)
             FROM bucket WHERE aggregate = ?3 AND window_start >= ?4 AND window_start < ?5
               AND (window_start < ?6 OR window_start >= ?7 OR (topic, generation) != (?8, ?9))
             ON CONFLICT DO UPDATE SET count = excluded.count, last_offset = excluded.last_offset,
               measures = excluded.measures WHERE excluded.last_offset > last_offset",
            params![
                shadow.place,
                same_measures,
                active.place,
                from.0,
                to.0,
                range.from.map_or(i64::MIN, |from| from.0),
                range.to.map_or(i64::MAX, |to| to.0),
                options.topic,
                options.generation
            ],
        )?;
        transaction.commit()?;
        Ok(range.kept_from(to, of_others).map(|(from, _)| from))
    }

    pub fn swap_rebuild(&mut self, id: &RebuildId, noted: &Rebuild, now: Timestamp) -> Result<Swapped, StoreError> {
        let options = self.options.clone();
        let transaction = write(&mut self.connection)?;
        let Some((active, shadow)) = both(&transaction, id)? else { return Ok(Swapped::Over) };
        let Some(rebuild) = find(&transaction, &options, &id.aggregate)? else { return Ok(Swapped::Over) };
        let Some(again) = rebuild.counted_again(noted) else { return Ok(Swapped::NotYet) };
        for (partition, reached) in again {
            note(&transaction, &options, shadow.place, partition, reached)?;
        }
        transaction.execute(
            "INSERT INTO removed (aggregate, topic, generation, partition, before)
             SELECT ?1, topic, generation, partition, before FROM removed WHERE aggregate = ?2
             ON CONFLICT DO UPDATE SET before = max(before, excluded.before)",
            params![shadow.place, active.place],
        )?;
        retire(&transaction, active.place)?;
        transaction.execute("UPDATE aggregate SET name = ? WHERE id = ?", params![id.aggregate, shadow.place])?;
        transaction.execute("UPDATE rebuild SET finished = ? WHERE name = ?", params![now.0, id.aggregate])?;
        transaction.commit()?;
        Ok(Swapped::Yes)
    }

    pub fn cancel_rebuild(&mut self, aggregate: &str) -> Result<bool, StoreError> {
        let transaction = write(&mut self.connection)?;
        let Some(shadow) = shadow(&transaction, aggregate)? else { return Ok(false) };
        retire(&transaction, shadow.place)?;
        transaction.execute("DELETE FROM rebuild WHERE name = ?", [aggregate])?;
        transaction.commit()?;
        Ok(true)
    }

    pub fn tidy_rebuilds(&mut self) -> Result<bool, StoreError> {
        let transaction = write(&mut self.connection)?;
        let retired: Option<i64> = transaction
            .query_row("SELECT id FROM aggregate WHERE name GLOB '@*' LIMIT 1", [], |row| row.get(0))
            .optional()?;
        let Some(retired) = retired else { return Ok(false) };
        let removed = transaction.execute(
            "DELETE FROM bucket WHERE (aggregate, window_start, grp, topic, generation, partition) IN (
                 SELECT aggregate, window_start, grp, topic, generation, partition FROM bucket WHERE aggregate = ? LIMIT ?)",
            params![retired, EXPIRE_AT_ONCE],
        )?;
        if removed == 0 {
            for statement in [
                "DELETE FROM removed WHERE aggregate = ?",
                "DELETE FROM rebuild_partition WHERE aggregate = ?",
                "DELETE FROM aggregate WHERE id = ?",
            ] {
                transaction.execute(statement, [retired])?;
            }
        }
        transaction.commit()?;
        if removed > 0 {
            sqlite::give_back_pages(&self.connection, 1000)?;
        }
        Ok(true)
    }
}

/// The shadow of an aggregate, while its rebuild is under way.
pub fn shadow(connection: &Connection, aggregate: &str) -> rusqlite::Result<Option<Known<i64>>> {
    let mut statement = connection.prepare_cached(
        "SELECT id, window_ms, group_by, definition FROM rebuild JOIN aggregate ON shadow = id
         WHERE rebuild.name = ? AND finished IS NULL",
    )?;
    statement.query_row([aggregate], read_known).optional()
}

/// The windows that the shadow of an aggregate is counted for.
pub fn range(connection: &Connection, aggregate: &str) -> rusqlite::Result<Range> {
    let mut statement = connection.prepare_cached("SELECT first_window, end_window FROM rebuild WHERE name = ?")?;
    statement.query_row([aggregate], |row| {
        Ok(Range {
            from: row.get::<_, Option<i64>>(0)?.map(Timestamp),
            to: row.get::<_, Option<i64>>(1)?.map(Timestamp),
        })
    })
}

/// How far the shadow with this row is with a partition; nothing where it is counted live from its start.
pub fn progress(
    connection: &Connection,
    options: &StoreOptions,
    shadow: i64,
    partition: Partition,
) -> rusqlite::Result<Option<Progress>> {
    let mut statement = connection.prepare_cached(
        "SELECT state, position FROM rebuild_partition
         WHERE (aggregate, topic, generation, partition) = (?, ?, ?, ?)",
    )?;
    let of = params![shadow, options.topic, options.generation, partition.0];
    statement.query_row(of, |row| Ok(Progress::of_parts(row.get_ref(0)?.as_str()?, row.get(1)?))).optional()
}

fn under_way(connection: &Connection, id: &RebuildId) -> rusqlite::Result<Option<Known<i64>>> {
    let Some(shadow) = shadow(connection, &id.aggregate)? else { return Ok(None) };
    let started =
        connection.query_row("SELECT started FROM rebuild WHERE name = ?", [&id.aggregate], |row| row.get(0))?;
    Ok((place(shadow.place, started) == id.shadow).then_some(shadow))
}

/// A row's id is given again when the row is removed.
fn place(shadow: i64, started: i64) -> String {
    format!("{shadow} of {started}")
}

fn find(connection: &Connection, options: &StoreOptions, aggregate: &str) -> rusqlite::Result<Option<Rebuild>> {
    let found = connection
        .query_row("SELECT shadow, started, finished FROM rebuild WHERE name = ?", [aggregate], |row| {
            Ok((row.get::<_, i64>(0)?, Timestamp(row.get(1)?), row.get::<_, Option<i64>>(2)?.map(Timestamp)))
        })
        .optional()?;
    let Some((shadow, started, finished)) = found else { return Ok(None) };
    let mut statement = connection.prepare_cached(
        "SELECT partition, state, position, records FROM rebuild_partition
         WHERE (aggregate, topic, generation) = (?, ?, ?)",
    )?;
    let partitions = statement.query_map(params![shadow, options.topic, options.generation], |row| {
        let progress = Progress::of_parts(row.get_ref(1)?.as_str()?, row.get(2)?);
        Ok((Partition(row.get(0)?), Reached { progress, records: row.get::<_, i64>(3)?.unsigned_abs() }))
    })?;
    let partitions = partitions.collect::<rusqlite::Result<_>>()?;
    let id = RebuildId { aggregate: aggregate.to_owned(), shadow: place(shadow, started.0) };
    Ok(Some(Rebuild { id, range: range(connection, aggregate)?, started, finished, partitions }))
}

fn begin(
    transaction: &Transaction<'_>,
    options: &StoreOptions,
    wanted: &NewRebuild,
    definition: &Definition,
) -> rusqlite::Result<()> {
    transaction.execute(
        "INSERT INTO aggregate (name, window_ms, group_by, definition) VALUES (? || '@rebuild', ?, ?, ?)",
        params![
            wanted.aggregate,
            definition.window_ms,
            definition.group_by,
            Value::Object(definition.more.clone()).to_string()
        ],
    )?;
    let shadow = transaction.last_insert_rowid();
    let (from, to) = (wanted.range.from.map(|from| from.0), wanted.range.to.map(|to| to.0));
    transaction.execute(
        "INSERT OR REPLACE INTO rebuild (name, shadow, first_window, end_window, started) VALUES (?, ?, ?, ?, ?)",
        params![wanted.aggregate, shadow, from, to, wanted.now.0],
    )?;
    transaction.execute(
        "INSERT INTO rebuild_partition
         SELECT ?1, topic, generation, partition, 'history', 0, 0 FROM source WHERE (topic, generation) = (?2, ?3)",
        params![shadow, options.topic, options.generation],
    )?;
    for partition in &wanted.partitions {
        transaction.execute(
            "INSERT OR IGNORE INTO rebuild_partition VALUES (?, ?, ?, ?, 'history', 0, 0)",
            params![shadow, options.topic, options.generation, partition.0],
        )?;
    }
    Ok(())
}

/// The two versions of a rebuild that is under way.
fn both(transaction: &Transaction<'_>, id: &RebuildId) -> rusqlite::Result<Option<(Known<i64>, Known<i64>)>> {
    let Some(shadow) = under_way(transaction, id)? else { return Ok(None) };
    let active = transaction.query_row(
        "SELECT id, window_ms, group_by, definition FROM aggregate WHERE name = ?",
        [&id.aggregate],
        read_known,
    )?;
    Ok(Some((active, shadow)))
}

/// Whether other topics, or other generations of this one, have been counted.
fn has_others(connection: &Connection, options: &StoreOptions) -> rusqlite::Result<bool> {
    connection
        .prepare_cached("SELECT 1 FROM source WHERE (topic, generation) != (?, ?)")?
        .exists(params![options.topic, options.generation])
}

fn note(
    transaction: &Transaction<'_>,
    options: &StoreOptions,
    shadow: i64,
    partition: Partition,
    Reached { progress, records }: Reached,
) -> rusqlite::Result<()> {
    let (state, position) = progress.parts();
    let records = i64::try_from(records).unwrap_or(i64::MAX);
    transaction.execute(
        "INSERT OR REPLACE INTO rebuild_partition
             (aggregate, topic, generation, partition, state, position, records) VALUES (?, ?, ?, ?, ?, ?, ?)",
        params![shadow, options.topic, options.generation, partition.0, state, position.as_i64(), records],
    )?;
    Ok(())
}

/// Its buckets are removed by and by.
fn retire(transaction: &Transaction<'_>, id: i64) -> rusqlite::Result<()> {
    transaction.execute("UPDATE aggregate SET name = '@' || id WHERE id = ?", [id])?;
    Ok(())
}
