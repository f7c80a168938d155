//! What the writer does beside appending: it writes the cursors down, and removes what all sinks have read.

use std::time::Duration;

use rusqlite::{Transaction, params};

use super::{
    segments::{self, NotWritten},
    writer::Writer,
};
use crate::position::{Offset, Timestamp};

/// Rows deleted in one housekeeping, so that appends wait for milliseconds only.
const TRIM_ROWS: usize = 2000;
/// Segments in one, for their files are removed.
const TRIM_SEGMENTS: usize = 64;

/// What a transaction has removed.
#[derive(Default)]
struct Trimmed {
    rows: usize,
    segments: usize,
    bytes: u64,
    end: Option<Offset>,
    /// There is more.
    more: bool,
}

impl Writer {
    /// Writes the cursors and trims behind the slowest. Whether there is more to do soon. While writing fails it tries
    /// whether it works again: an unready process may be sent no request that would. At the stop the last segment is closed.
    pub(super) fn keep_house(&mut self, is_stop: bool) -> bool {
        match self.try_keep_house(is_stop) {
            Ok(more) => {
                self.failing = None;
                more
            }
            Err(error) => {
                tracing::debug!(%error, file = self.purpose.file, "could not be trimmed; tried again in a moment");
                self.failing = Some(self.cannot_be_written(&error));
                true
            }
        }
    }

    fn try_keep_house(&mut self, is_stop: bool) -> Result<bool, NotWritten> {
        let end = self.end.get();
        if self.failing.is_some() {
            self.segments.probe(&mut self.database, end)?;
        }
        if is_stop {
            self.segments.close(&mut self.database)?;
        }
        // It is the only one: this thread alone has the connection.
        let transaction = self.database.unchecked_transaction()?;
        if self.failing.is_some() {
            transaction.execute("UPDATE meta SET value = value WHERE name = 'trimmed'", [])?;
        }
        if self.cursors_changed {
            for (reader, position) in &self.cursors {
                transaction
                    .prepare_cached("INSERT INTO cursors VALUES (?1, ?2) ON CONFLICT DO UPDATE SET position = ?2")?
                    .execute(params![reader, position.as_i64()])?;
            }
        }
        if self.noted_end < end {
            transaction
                .prepare_cached("INSERT INTO meta VALUES ('durable', ?1) ON CONFLICT DO UPDATE SET value = ?1")?
                .execute([end.as_i64()])?;
        }
        let trimmed = self.trim(&transaction)?;
        // One that fails may stand nevertheless: a segment that it removed takes no more then.
        transaction.commit().inspect_err(|_| self.segments.distrust())?;
        (self.cursors_changed, self.noted_end) = (false, end);
        self.segments.remove(trimmed.segments);
        self.end.trim(trimmed.bytes);
        self.free_pages |= trimmed.rows > 0;
        let has_free_files = self.segments.tidy(is_stop);
        Ok(trimmed.more || has_free_files)
    }

    /// In the order of the offsets: segments, and the rows between them.
    fn trim(&self, transaction: &Transaction<'_>) -> rusqlite::Result<Trimmed> {
        let queue = &self.config.load().queue.embedded;
        let retention = if self.purpose.retains { queue.retention } else { Duration::ZERO };
        let age = i64::try_from(retention.as_millis()).unwrap_or(i64::MAX);
        // Without retention no clock is asked: after a step back, records seem to come from the future.
        let oldest_kept = (!retention.is_zero()).then(|| Timestamp::now().0.saturating_sub(age));
        let size = segments::size_of(queue.quota.0);
        let mut trimmed = Trimmed::default();
        let readers = self.purpose.readers.iter();
        let slowest = readers.map(|reader| self.cursors.get(reader).copied().unwrap_or_default()).min();
        let Some(slowest) = slowest else { return Ok(trimmed) };
        loop {
            let next = self.segments.catalog.nth(trimmed.segments);
            let until = next.map_or(slowest, |segment| segment.base.min(slowest));
            let are_gone = trim_rows(transaction, until, slowest, oldest_kept, &mut trimmed)?;
            let Some(segment) = next.filter(|_| are_gone && trimmed.segments < TRIM_SEGMENTS) else { break };
            if !self.segments.is_done_with(segment, slowest, oldest_kept, size) {
                break;
            }
            transaction.prepare_cached("DELETE FROM segments WHERE base = ?1")?.execute([segment.base.as_i64()])?;
            // Those between its frames were received no later than it says.
            remove_rows(transaction, segment.end, &mut trimmed)?;
            trimmed.segments += 1;
            trimmed.bytes += segment.length;
            trimmed.end = Some(segment.end);
        }
        trimmed.more = trimmed.rows >= TRIM_ROWS || trimmed.segments == TRIM_SEGMENTS;
        if let Some(end) = trimmed.end {
            transaction.execute("UPDATE meta SET value = max(value, ?1) WHERE name = 'trimmed'", [end.as_i64()])?;
        }
        Ok(trimmed)
    }
}

/// Removes the rows below `until` that were read and are old enough; whether none is left there.
fn trim_rows(
    transaction: &Transaction<'_>,
    until: Offset,
    slowest: Offset,
    oldest_kept: Option<i64>,
    trimmed: &mut Trimmed,
) -> rusqlite::Result<bool> {
    // In the order of the key, from the first on, so that nothing is read but what goes and the first that stays.
    let behind = "SELECT base + count, received FROM chunks WHERE base < ?1 ORDER BY base LIMIT ?2";
    let mut chunks = transaction.prepare_cached(behind)?;
    let limit = TRIM_ROWS.saturating_sub(trimmed.rows);
    let mut rows = chunks.query(params![until.as_i64(), limit as i64])?;
    let (mut end, mut stays, mut seen) = (None, false, 0);
    while let Some(row) = rows.next()? {
        let (chunk_end, received): (i64, i64) = (row.get(0)?, row.get(1)?);
        if chunk_end > slowest.as_i64() || oldest_kept.is_some_and(|oldest| received > oldest) {
            stays = true;
            break;
        }
        end = Some(Offset(chunk_end.cast_unsigned()));
        seen += 1;
    }
    drop(rows);
    drop(chunks);
    if let Some(end) = end {
        remove_rows(transaction, end, trimmed)?;
        trimmed.end = Some(end);
    }
    Ok(!stays && seen < limit)
}

/// Removes the rows that begin before `end`.
fn remove_rows(transaction: &Transaction<'_>, end: Offset, trimmed: &mut Trimmed) -> rusqlite::Result<()> {
    let bytes = "SELECT count(*), coalesce(sum(length(records)), 0) FROM chunks WHERE base < ?1";
    let (rows, bytes): (i64, i64) =
        transaction.prepare_cached(bytes)?.query_row([end.as_i64()], |row| Ok((row.get(0)?, row.get(1)?)))?;
    if rows > 0 {
        transaction.prepare_cached("DELETE FROM chunks WHERE base < ?1")?.execute([end.as_i64()])?;
    }
    trimmed.rows += rows.cast_unsigned() as usize;
    trimmed.bytes += bytes.cast_unsigned();
    Ok(())
}
