//! The tables of `log.db`, and how its connections are opened.

use std::{os::unix::fs::PermissionsExt, path::Path, time::Duration};

use anyhow::{Context, bail};
use rusqlite::{Connection, OpenFlags, OptionalExtension};

use super::segments::Segment;
use crate::{
    position::{Offset, Timestamp, TopicIdentity},
    sqlite,
};

/// Raised when the tables change; an older file is upgraded, a newer one refused.
const VERSION: i64 = 3;

/// Records are read and written in chunks of up to a mebibyte: large pages keep the overflow chains short.
const PAGE_SIZE: u32 = 16 * 1024;

/// Pages that a connection keeps: those of the tree, and some of a commit; what is more of that goes to the WAL before its end.
/// A reader goes from page to page, and the kernel has what was written just now.
const CACHE: u32 = 64;

/// Since version 3: records stand in segments. Those of `chunks` are what an earlier release has written, and replayed letters.
const SEGMENTS: &str = "
    CREATE TABLE segments (
        base INTEGER PRIMARY KEY,
        id INTEGER NOT NULL,
        number INTEGER NOT NULL,
        length INTEGER, -- and what follows: of one that is closed
        next INTEGER,
        received INTEGER
    );
    CREATE TABLE abandoned (id INTEGER PRIMARY KEY);
";

const TABLES: &str = "
    CREATE TABLE chunks (
        base INTEGER PRIMARY KEY,
        count INTEGER NOT NULL,
        received INTEGER NOT NULL,
        records BLOB NOT NULL
    );
    CREATE TABLE cursors (sink TEXT PRIMARY KEY, position INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TABLE meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
    CREATE TABLE dead_letters (
        id TEXT PRIMARY KEY,
        topic TEXT NOT NULL,
        generation INTEGER NOT NULL,
        partition INTEGER NOT NULL,
        offset INTEGER NOT NULL, -- negative of what was no record
        received INTEGER NOT NULL,
        reason TEXT NOT NULL,
        message TEXT NOT NULL,
        time INTEGER NOT NULL,
        key BLOB,
        value BLOB,
        headers TEXT NOT NULL,
        state TEXT NOT NULL DEFAULT 'open'
    ) WITHOUT ROWID;
    CREATE INDEX dead_letters_by_time ON dead_letters (time, id);
    CREATE INDEX dead_letters_by_record ON dead_letters (topic, generation, partition, offset);
    INSERT INTO meta VALUES ('trimmed', 0);
";

/// From version 1: letters have a state, and a header is an object, which holds bytes that are no text as base64.
const FROM_1: &str = "
    ALTER TABLE dead_letters ADD COLUMN state TEXT NOT NULL DEFAULT 'open';
    CREATE INDEX dead_letters_by_time ON dead_letters (time, id);
    CREATE INDEX dead_letters_by_record ON dead_letters (topic, generation, partition, offset);
    UPDATE dead_letters SET headers = (
        SELECT coalesce(json_group_array(
            json_object('name', json_extract(header.value, '$[0]'), 'value', json_extract(header.value, '$[1]'))
        ), '[]') FROM json_each(headers) AS header
    );
";

pub(super) fn open_writer(path: &Path) -> anyhow::Result<Connection> {
    let mut database = Connection::open(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    let version: i64 = database.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    if version > VERSION {
        bail!(
            "it has format {version}, this release reads up to {VERSION}: use the release that wrote it, or a newer one"
        );
    }
    if version == 0 {
        // Both must be set before the first table.
        database.pragma_update(None, "page_size", PAGE_SIZE)?;
        database.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
    }
    sqlite::set_up_writer(&database, path)?;
    // Without a limit the WAL file keeps its largest size for ever.
    database.pragma_update(None, "journal_size_limit", 64 * 1024 * 1024)?;
    database.pragma_update(None, "cache_size", CACHE)?;
    database.busy_timeout(Duration::from_secs(5))?;
    if version < VERSION {
        let transaction = database.transaction()?;
        match version {
            0 => {
                transaction.execute_batch(TABLES)?;
                let identity = uuid::Uuid::now_v7().to_string();
                transaction.execute("INSERT INTO meta VALUES ('identity', ?1)", [identity])?;
            }
            1 => transaction.execute_batch(FROM_1)?,
            _ => {}
        }
        transaction.execute_batch(SEGMENTS)?;
        transaction.pragma_update(None, "user_version", VERSION)?;
        transaction.commit()?;
    }
    Ok(database)
}

pub fn open_reader(path: &Path) -> anyhow::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let database =
        Connection::open_with_flags(path, flags).with_context(|| format!("cannot open {}", path.display()))?;
    database.pragma_update(None, "cache_size", CACHE)?;
    database.busy_timeout(Duration::from_secs(5))?;
    Ok(database)
}

pub(super) fn identity(database: &Connection) -> rusqlite::Result<TopicIdentity> {
    let identity: String =
        database.query_row("SELECT value FROM meta WHERE name = 'identity'", [], |row| row.get(0))?;
    Ok(TopicIdentity(identity.into()))
}

/// The segments that are listed, oldest first, and whether each is closed: only the last one may be open.
pub(super) fn segments(database: &Connection) -> rusqlite::Result<Vec<(Segment, bool)>> {
    let is_older = "SELECT NOT EXISTS (SELECT 1 FROM sqlite_schema WHERE name = 'segments')";
    if database.query_row(is_older, [], |row| row.get(0))? {
        return Ok(Vec::new());
    }
    let mut rows = database.prepare("SELECT base, id, number, length, next, received FROM segments ORDER BY base")?;
    let segments = rows.query_map([], |row| {
        let base = Offset(row.get::<_, i64>(0)?.cast_unsigned());
        let length: Option<i64> = row.get(3)?;
        let next = row.get::<_, Option<i64>>(4)?.map_or(base, |next| Offset(next.cast_unsigned()));
        let segment = Segment {
            id: row.get::<_, i64>(1)?.cast_unsigned(),
            number: row.get(2)?,
            base,
            length: length.unwrap_or(0).cast_unsigned(),
            end: next,
            received: Timestamp(row.get::<_, Option<i64>>(5)?.unwrap_or(0)),
        };
        Ok((segment, length.is_some()))
    });
    segments?.collect()
}

/// The latest time of receipt of the records in rows that begin there.
pub(super) fn received_in(database: &Connection, from: Offset, to: Offset) -> rusqlite::Result<Timestamp> {
    let latest = "SELECT coalesce(max(received), 0) FROM chunks WHERE base >= ?1 AND base < ?2";
    database.query_row(latest, [from.as_i64(), to.as_i64()], |row| row.get(0)).map(Timestamp)
}

/// Ids of segments that hold nothing that counts.
pub(super) fn abandoned(database: &Connection) -> rusqlite::Result<Vec<u64>> {
    let mut ids = database.prepare("SELECT id FROM abandoned")?;
    let ids = ids.query_map([], |row| row.get::<_, i64>(0).map(i64::cast_unsigned));
    ids?.collect()
}

/// The offset of the next record, as far as the database knows; see the invariants of the log.
pub(super) fn next_offset(database: &Connection) -> rusqlite::Result<Offset> {
    let one = |query| database.query_row(query, [], |row| row.get::<_, i64>(0)).optional();
    let last = one("SELECT base + count FROM chunks ORDER BY base DESC LIMIT 1")?;
    let durable = one("SELECT value FROM meta WHERE name = 'durable'")?;
    let known = last.max(durable).map_or(Offset(0), |known| Offset(known.cast_unsigned()));
    Ok(known.max(trimmed(database)?))
}

/// The first offset that the log still holds, or the next one when it holds none.
pub(super) fn log_start(database: &Connection) -> rusqlite::Result<Offset> {
    let first: Option<i64> = database.query_row(
        "SELECT min(base) FROM (SELECT min(base) AS base FROM chunks UNION ALL SELECT min(base) FROM segments)",
        [],
        |row| row.get(0),
    )?;
    first.map_or_else(|| trimmed(database), |first| Ok(Offset(first.cast_unsigned())))
}

/// Bytes of the records that stand in the database.
pub(super) fn stored(database: &Connection) -> rusqlite::Result<u64> {
    let stored: i64 =
        database.query_row("SELECT coalesce(sum(length(records)), 0) FROM chunks", [], |row| row.get(0))?;
    Ok(stored.cast_unsigned())
}

/// The end of what was removed.
pub(super) fn trimmed(database: &Connection) -> rusqlite::Result<Offset> {
    let trimmed: i64 = database.query_row("SELECT value FROM meta WHERE name = 'trimmed'", [], |row| row.get(0))?;
    Ok(Offset(trimmed.cast_unsigned()))
}

pub fn cursor(database: &Connection, sink: &str) -> rusqlite::Result<Option<Offset>> {
    database
        .query_row("SELECT position FROM cursors WHERE sink = ?1", [sink], |row| row.get::<_, i64>(0))
        .optional()
        .map(|position| position.map(|position| Offset(position.cast_unsigned())))
}

/// A row of `meta` that holds text.
pub fn meta(database: &Connection, name: &str) -> rusqlite::Result<Option<String>> {
    database.query_row("SELECT value FROM meta WHERE name = ?1", [name], |row| row.get(0)).optional()
}
