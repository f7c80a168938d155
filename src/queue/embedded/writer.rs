//! The thread that writes the embedded log: group commits, cursors, dead letters, trimming.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use rusqlite::{Connection, Transaction, params};
use tokio::sync::oneshot;

use super::{ChangeReply, DEPENDENCY, LetterChange, LogEnd, Write, letters, schema};
use crate::{
    config::LiveConfig,
    dlq::{DeadLetter, State, door::Admitted},
    health::{Health, SinkName},
    metrics::Metrics,
    position::{Offset, Timestamp},
    produce::Publish,
    queue::record::{ID_HEADER, RecordBuffer},
    sqlite,
};

/// A row of `chunks` is what a reader takes at once: never more than a default batch.
const CHUNK_RECORDS: usize = 1000;
const CHUNK_BYTES: usize = 1024 * 1024;
/// The most that one commit takes, so that the first request of a large group does not wait for too much of the rest.
const COMMIT_BYTES: usize = 8 * 1024 * 1024;
/// How often cursors are written and what is behind them is trimmed.
const HOUSEKEEPING: Duration = Duration::from_secs(1);
/// Rows deleted and pages given back to the disk in one housekeeping, so that appends wait for milliseconds only.
const TRIM_ROWS: usize = 2000;
const TRIM_PAGES: u32 = 4096;

pub(super) struct Writer {
    database: Connection,
    next: Offset,
    end: Arc<LogEnd>,
    sinks: Vec<SinkName>,
    config: LiveConfig,
    health: Health,
    metrics: Arc<Metrics>,
    /// Bytes in `chunks`, for the quota.
    stored: u64,
    cursors: BTreeMap<SinkName, Offset>,
    cursors_changed: bool,
    housekeeping_at: Instant,
    failing: bool,
}

/// What a commit holds, to be answered after it.
#[derive(Default)]
struct Group {
    publishes: Vec<Publish>,
    letters: Vec<(Vec<DeadLetter>, oneshot::Sender<anyhow::Result<()>>)>,
    written: Vec<Sender<()>>,
    changes: Vec<(LetterChange, ChangeReply)>,
    bytes: usize,
    stop: bool,
}

impl Writer {
    pub(super) fn new(
        database: Connection,
        next: Offset,
        end: Arc<LogEnd>,
        sinks: Vec<SinkName>,
        config: LiveConfig,
        health: Health,
        metrics: Arc<Metrics>,
    ) -> anyhow::Result<Self> {
        let stored: i64 =
            database.query_row("SELECT coalesce(sum(length(records)), 0) FROM chunks", [], |row| row.get(0))?;
        let mut cursors = BTreeMap::new();
        for sink in &sinks {
            if let Some(position) = schema::cursor(&database, sink.as_str())? {
                cursors.insert(*sink, position);
            }
        }
        health.dependency(DEPENDENCY, Ok(()));
        Ok(Self {
            database,
            next,
            end,
            sinks,
            config,
            health,
            metrics,
            stored: stored.cast_unsigned(),
            cursors,
            cursors_changed: false,
            housekeeping_at: Instant::now() + HOUSEKEEPING,
            failing: false,
        })
    }

    pub(super) fn run(&mut self, writes: &Receiver<Write>) {
        loop {
            let first = match writes.recv_deadline(self.housekeeping_at.max(Instant::now())) {
                Ok(write) => Some(write),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let mut group = Group::default();
            let mut next = first;
            while let Some(write) = next {
                self.take(write, &mut group);
                if group.bytes >= COMMIT_BYTES || group.stop {
                    break;
                }
                next = writes.try_recv().ok();
            }
            self.commit(&mut group);
            for (change, reply) in std::mem::take(&mut group.changes) {
                // Whoever asked may have given up; what was done stands.
                let _ = reply.send(self.change_letters(&change));
            }
            if self.housekeeping_at <= Instant::now() || group.stop || !group.written.is_empty() {
                // Without changed cursors nothing becomes trimmable but by age, which can wait.
                let pause = if self.keep_house() { HOUSEKEEPING } else { 10 * HOUSEKEEPING };
                self.housekeeping_at = Instant::now() + pause;
            }
            for written in group.written {
                // Whoever waited has given up; nothing is owed.
                let _ = written.send(());
            }
            if group.stop {
                return;
            }
        }
    }

    fn take(&mut self, write: Write, group: &mut Group) {
        match write {
            Write::Append(publish) => {
                let quota = self.config.load().queue.embedded.quota.0;
                if self.stored + (group.bytes as u64) >= quota {
                    let why = "the embedded log has reached queue.embedded.quota; the sinks have to catch up";
                    publish.ticket.unavailable(publish.events.len(), why);
                    return;
                }
                group.bytes += publish.body.len();
                group.publishes.push(publish);
            }
            Write::Cursor(sink, position) => self.move_cursor(sink, position),
            Write::LastCursor(sink, position, done) => {
                if let Some(position) = position {
                    self.move_cursor(sink, position);
                }
                group.written.push(done);
            }
            Write::DeadLetters(letters, reply) => group.letters.push((letters, reply)),
            Write::Letters(change, reply) => group.changes.push((change, reply)),
            Write::Flush(done) => group.written.push(done),
            Write::Stop => group.stop = true,
        }
    }

    fn move_cursor(&mut self, sink: SinkName, position: Offset) {
        if self.cursors.insert(sink, position) != Some(position) && !self.cursors_changed {
            self.cursors_changed = true;
            self.housekeeping_at = self.housekeeping_at.min(Instant::now() + HOUSEKEEPING);
        }
    }

    /// One transaction for the whole group; the tickets hear of it after the fsync.
    fn commit(&mut self, group: &mut Group) {
        if group.publishes.is_empty() && group.letters.is_empty() {
            return;
        }
        let publishes = std::mem::take(&mut group.publishes);
        let letters = std::mem::take(&mut group.letters);
        match self.write(&publishes, &letters) {
            Ok((next, bytes)) => {
                self.next = next;
                self.stored += bytes;
                self.end.set(next);
                let events: usize = publishes.iter().map(|publish| publish.events.len()).sum();
                self.metrics.events_produced.inc_by(events as u64);
                for publish in publishes {
                    publish.ticket.durable(publish.events.len());
                }
                for (_, reply) in letters {
                    // The aggregator that asked is gone; the letters stand.
                    let _ = reply.send(Ok(()));
                }
                self.note_outcome(Ok(()));
            }
            Err(error) => {
                let why = format!("the embedded log cannot be written: {error}");
                for publish in publishes {
                    publish.ticket.unavailable(publish.events.len(), &why);
                }
                for (_, reply) in letters {
                    let _ = reply.send(Err(anyhow::anyhow!(why.clone())));
                }
                self.note_outcome(Err(why));
            }
        }
    }

    fn note_outcome(&mut self, outcome: Result<(), String>) {
        if outcome.is_err() || self.failing {
            self.failing = outcome.is_err();
            self.health.dependency(DEPENDENCY, outcome);
        }
    }

    fn write(
        &mut self,
        publishes: &[Publish],
        letters: &[(Vec<DeadLetter>, oneshot::Sender<anyhow::Result<()>>)],
    ) -> rusqlite::Result<(Offset, u64)> {
        let transaction = self.database.transaction()?;
        let mut chunks = Chunks::new(&transaction, self.next);
        for publish in publishes {
            for record in &publish.events {
                let mut id_text = uuid::Uuid::encode_buffer();
                let id = record.assigned_id.map(|id| &*id.hyphenated().encode_lower(&mut id_text));
                let headers = id.map(|id| (ID_HEADER, Some(id.as_bytes())));
                chunks.push(publish.received, publish.key(record), publish.value(record), headers)?;
            }
        }
        chunks.close()?;
        let (next, bytes) = (chunks.next, chunks.bytes);
        for letter in letters.iter().flat_map(|(letters, _)| letters) {
            letters::insert(&transaction, letter)?;
        }
        transaction.commit()?;
        Ok((next, bytes))
    }

    /// One transaction; says of each letter whether it was open.
    fn change_letters(&mut self, change: &LetterChange) -> Result<Vec<bool>, String> {
        let changed = match change {
            LetterChange::Replay(records) => {
                let quota = self.config.load().queue.embedded.quota.0;
                if self.stored >= quota {
                    return Err(
                        "the embedded log has reached queue.embedded.quota; the sinks have to catch up".to_owned()
                    );
                }
                self.replay(records)
            }
            LetterChange::Purge(ids) => self.purge(ids),
        };
        changed.map_err(|error| format!("the embedded log cannot be written: {error}"))
    }

    /// Appends the records of the letters that are open, and closes these.
    fn replay(&mut self, records: &[Admitted]) -> rusqlite::Result<Vec<bool>> {
        let transaction = self.database.transaction()?;
        let mut chunks = Chunks::new(&transaction, self.next);
        let mut replayed = Vec::with_capacity(records.len());
        for record in records {
            let open = letters::close(&transaction, &record.id, State::Replayed)?;
            if open {
                let headers = record.headers.iter().map(|(name, value)| (name.as_str(), value.as_deref()));
                chunks.push(record.received, record.key.as_deref(), &record.value, headers)?;
            }
            replayed.push(open);
        }
        chunks.close()?;
        let (next, bytes) = (chunks.next, chunks.bytes);
        transaction.commit()?;
        (self.next, self.stored) = (next, self.stored + bytes);
        self.end.set(next);
        self.metrics.events_produced.inc_by(replayed.iter().filter(|open| **open).count() as u64);
        Ok(replayed)
    }

    fn purge(&mut self, ids: &[String]) -> rusqlite::Result<Vec<bool>> {
        let transaction = self.database.transaction()?;
        let counted = schema::cursor(&transaction, SinkName::Aggregate.as_str())?.unwrap_or_default();
        let purged = ids.iter().map(|id| letters::purge(&transaction, id, counted)).collect::<rusqlite::Result<_>>()?;
        transaction.commit()?;
        // Their pages go back to the disk.
        self.housekeeping_at = self.housekeeping_at.min(Instant::now() + HOUSEKEEPING);
        Ok(purged)
    }

    /// Writes the cursors, trims behind the slowest, gives free pages back to the disk.
    /// Whether there is more to do soon.
    fn keep_house(&mut self) -> bool {
        self.try_keep_house().unwrap_or_else(|error| {
            tracing::warn!(%error, "the embedded log could not be trimmed; tried again in a moment");
            true
        })
    }

    fn try_keep_house(&mut self) -> rusqlite::Result<bool> {
        let retention = self.config.load().queue.embedded.retention;
        let oldest_kept = Timestamp::now().0.saturating_sub(i64::try_from(retention.as_millis()).unwrap_or(i64::MAX));
        let transaction = self.database.transaction()?;
        if self.cursors_changed {
            for (sink, position) in &self.cursors {
                transaction
                    .prepare_cached("INSERT INTO cursors VALUES (?1, ?2) ON CONFLICT DO UPDATE SET position = ?2")?
                    .execute(params![sink.as_str(), position.as_i64()])?;
            }
        }
        let slowest = self.sinks.iter().map(|sink| self.cursors.get(sink).copied().unwrap_or_default()).min();
        let (mut freed, mut trimmed) = (0, 0);
        if let Some(slowest) = slowest {
            let behind = "SELECT base, base + count, length(records) FROM chunks WHERE base + count <= ?1 AND received <= ?2 ORDER BY base LIMIT ?3";
            let rows: Vec<(i64, i64, i64)> = transaction
                .prepare_cached(behind)?
                .query_map(params![slowest.as_i64(), oldest_kept, TRIM_ROWS as i64], |row| {
                    Ok((row.get(0)?, row.get(1)?, row.get(2)?))
                })?
                .collect::<rusqlite::Result<_>>()?;
            trimmed = rows.len();
            if let Some((_, end, _)) = rows.last() {
                transaction.execute("DELETE FROM chunks WHERE base < ?1", [end])?;
                transaction.execute("UPDATE meta SET value = max(value, ?1) WHERE name = 'trimmed'", [end])?;
                freed = rows.iter().map(|(_, _, bytes)| bytes.cast_unsigned()).sum();
            }
        }
        transaction.commit()?;
        self.cursors_changed = false;
        self.stored = self.stored.saturating_sub(freed);
        // Also when nothing was trimmed now: what an earlier trim left over goes back step by step.
        let more_pages = sqlite::give_back_pages(&self.database, TRIM_PAGES)?;
        Ok(more_pages || trimmed == TRIM_ROWS)
    }
}

/// The rows of one commit as they fill.
struct Chunks<'t> {
    transaction: &'t Transaction<'t>,
    base: Offset,
    next: Offset,
    latest: Timestamp,
    open: RecordBuffer,
    bytes: u64,
}

impl<'t> Chunks<'t> {
    fn new(transaction: &'t Transaction<'t>, next: Offset) -> Self {
        Self { transaction, base: next, next, latest: Timestamp(0), open: RecordBuffer::default(), bytes: 0 }
    }

    fn push<'h>(
        &mut self,
        received: Timestamp,
        key: Option<&[u8]>,
        value: &[u8],
        headers: impl IntoIterator<Item = (&'h str, Option<&'h [u8]>)>,
    ) -> rusqlite::Result<()> {
        self.open.push(self.next, received, key, Some(value), headers);
        self.latest = self.latest.max(received);
        self.next = self.next.next();
        if self.open.len() >= CHUNK_RECORDS || self.open.size() >= CHUNK_BYTES {
            self.close()?;
        }
        Ok(())
    }

    fn close(&mut self) -> rusqlite::Result<()> {
        if self.open.is_empty() {
            return Ok(());
        }
        self.transaction.prepare_cached("INSERT INTO chunks VALUES (?1, ?2, ?3, ?4)")?.execute(params![
            self.base.as_i64(),
            self.open.len() as i64,
            self.latest.0,
            self.open.as_bytes()
        ])?;
        self.bytes += self.open.size() as u64;
        self.base = self.next;
        self.open.clear();
        Ok(())
    }
}
