//! Queries, each on a connection of its own, beside the writer.

use std::{path::Path, sync::Arc};

use parking_lot::Mutex;
use rusqlite::{Connection, InterruptHandle, OpenFlags, OptionalExtension, params};

use crate::{
    position::Timestamp,
    store::{
        Counted, StoreError, StoreOptions, Versions,
        query::{Bucket, Merger, Query, Rows, Wanted},
    },
};

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

/// The answer.
pub fn query(
    path: &Path,
    options: &StoreOptions,
    versions: &Versions<i64>,
    query: Query,
    cancel: &Cancel,
) -> Result<Rows, StoreError> {
    let (index, Counted { aggregate, plan, .. }) = versions.asked(&query)?;
    let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    cancel.watch(&connection);
    connection.busy_timeout(options.timeout)?;
    let id: Option<i64> = match versions.places.get(index) {
        Some(id) => Some(*id),
        // One is refused.
        None => connection
            .query_row("SELECT id FROM aggregate WHERE name = ?", [&query.aggregate], |row| row.get(0))
            .optional()?,
    };
    let mut merger = Merger::new(query, aggregate, plan);
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
