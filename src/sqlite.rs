//! What the embedded log and the embedded store share of SQLite.

use std::path::Path;

use rusqlite::Connection;

/// Gives up to `pages` free pages back to the file system; whether there are more. For databases with
/// `auto_vacuum = INCREMENTAL`.
pub fn give_back_pages(database: &Connection, pages: u32) -> rusqlite::Result<bool> {
    let free = |database: &Connection| database.query_row("PRAGMA freelist_count", [], |row| row.get::<_, i64>(0));
    if free(database)? == 0 {
        return Ok(false);
    }
    // The statement frees a page a step, so it has to be run to its end.
    let mut vacuum = database.prepare(&format!("PRAGMA incremental_vacuum({pages})"))?;
    let mut steps = vacuum.query([])?;
    while steps.next()?.is_some() {}
    // The file shrinks with the checkpoint, which may be far off when nothing else is written.
    database.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))?;
    Ok(free(database)? > 0)
}

/// Bytes that SQLite takes in this process before it gives up what it could read again. As it is built here it has one pool
/// of pages for all connections, bounded by the sum of their limits as a number of pages, whatever their sizes: a busy
/// connection with large pages takes what an idle one with small pages leaves, some 17 MiB in the first seconds of load.
const MEMORY: i64 = 6 << 20;

/// Sets up the connection that writes the database `path`: a commit is durable when it returns (the write-ahead log is
/// fsynced). Bounds the memory of all connections in this process, and has the files that SQLite makes for moments (the
/// journal of a statement, a sort) made in the folder of `path`: a service may have no other that it can write to.
pub fn set_up_writer(database: &Connection, path: &Path) -> rusqlite::Result<()> {
    database.pragma_update(None, "journal_mode", "WAL")?;
    database.pragma_update(None, "synchronous", "FULL")?;
    database.query_row(&format!("PRAGMA soft_heap_limit = {MEMORY}"), [], |_| Ok(()))?;
    match path.parent().and_then(Path::to_str).filter(|folder| !folder.is_empty()) {
        Some(folder) => database.pragma_update(None, "temp_store_directory", folder),
        // Then they are made where SQLite looks by itself, the present folder among others.
        None => Ok(()),
    }
}
