//! The thread that writes the embedded log: group commits, cursors, dead letters, trimming.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use rusqlite::{Connection, Transaction, params};
use tokio::sync::oneshot;

use super::{LogEnd, Purpose, Write, schema};
use crate::{
    config::LiveConfig,
    dlq::DeadLetter,
    health::Health,
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
    purpose: Purpose,
    config: LiveConfig,
    health: Health,
    /// Bytes in `chunks`, for the quota.
    stored: u64,
    cursors: BTreeMap<&'static str, Offset>,
    cursors_changed: bool,
    housekeeping_at: Instant,
    failing: bool,
}

/// A row's name and value, and who waits for it.
type MetaRow = (&'static str, String, Sender<Result<(), String>>);

/// What a commit holds, to be answered after it.
#[derive(Default)]
struct Group {
    publishes: Vec<Publish>,
    letters: Vec<(Vec<DeadLetter>, oneshot::Sender<anyhow::Result<()>>)>,
    meta: Vec<MetaRow>,
    written: Vec<Sender<()>>,
    /// Requests that were refused before the commit.
    refused: usize,
    bytes: usize,
    stop: bool,
}

impl Writer {
    pub(super) fn new(
        database: Connection,
        next: Offset,
        end: Arc<LogEnd>,
        purpose: Purpose,
        config: LiveConfig,
        health: Health,
    ) -> anyhow::Result<Self> {
        let stored: i64 =
            database.query_row("SELECT coalesce(sum(length(records)), 0) FROM chunks", [], |row| row.get(0))?;
        let mut cursors = BTreeMap::new();
        for reader in &purpose.readers {
            if let Some(position) = schema::cursor(&database, reader)? {
                cursors.insert(*reader, position);
            }
        }
        health.dependency(purpose.dependency, Ok(()));
        let stored = stored.cast_unsigned();
        end.stored.store(stored, Ordering::Release);
        Ok(Self {
            database,
            next,
            end,
            purpose,
            config,
            health,
            stored,
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
                    publish.ticket.unavailable(publish.events.len(), self.purpose.full);
                    group.refused += 1;
                    return;
                }
                group.bytes += publish.body.len();
                group.publishes.push(publish);
            }
            Write::Cursor(reader, position) => self.move_cursor(reader, position),
            Write::LastCursor(reader, position, done) => {
                if let Some(position) = position {
                    self.move_cursor(reader, position);
                }
                group.written.push(done);
            }
            Write::DeadLetters(letters, reply) => group.letters.push((letters, reply)),
            Write::Meta(name, value, done) => group.meta.push((name, value, done)),
            Write::Flush(done) => group.written.push(done),
            Write::Stop => group.stop = true,
        }
    }

    fn move_cursor(&mut self, reader: &'static str, position: Offset) {
        if self.cursors.insert(reader, position) != Some(position) && !self.cursors_changed {
            self.cursors_changed = true;
            self.housekeeping_at = self.housekeeping_at.min(Instant::now() + HOUSEKEEPING);
        }
    }

    /// One transaction for the whole group; the tickets hear of it after the fsync.
    fn commit(&mut self, group: &mut Group) {
        let answered = group.publishes.len() + group.refused;
        if group.publishes.is_empty() && group.letters.is_empty() && group.meta.is_empty() {
            self.tell_answered(answered);
            return;
        }
        let publishes = std::mem::take(&mut group.publishes);
        let letters = std::mem::take(&mut group.letters);
        let meta = std::mem::take(&mut group.meta);
        match self.write(&publishes, &letters, &meta) {
            Ok((next, bytes)) => {
                self.next = next;
                self.set_stored(self.stored + bytes);
                self.end.set(next);
                self.tell_answered(answered);
                let events: usize = publishes.iter().map(|publish| publish.events.len()).sum();
                self.purpose.counts.inc_by(events as u64);
                for publish in publishes {
                    publish.ticket.durable(publish.events.len());
                }
                for (_, reply) in letters {
                    // The aggregator that asked is gone; the letters stand.
                    let _ = reply.send(Ok(()));
                }
                for (_, _, done) in meta {
                    // Whoever waited has given up; the row stands.
                    let _ = done.send(Ok(()));
                }
                self.note_outcome(Ok(()));
            }
            Err(error) => {
                self.tell_answered(answered);
                let why = format!("{} cannot be written: {error}", self.purpose.file);
                for publish in publishes {
                    publish.ticket.unavailable(publish.events.len(), &why);
                }
                for (_, reply) in letters {
                    let _ = reply.send(Err(anyhow::anyhow!(why.clone())));
                }
                for (_, _, done) in meta {
                    let _ = done.send(Err(why.clone()));
                }
                self.note_outcome(Err(why));
            }
        }
    }

    /// Before the tickets, so that whoever has an answer finds it counted.
    fn tell_answered(&self, requests: usize) {
        if let Some(on_answered) = self.purpose.on_answered.as_ref().filter(|_| requests > 0) {
            on_answered(requests, self.next);
        }
    }

    fn note_outcome(&mut self, outcome: Result<(), String>) {
        if outcome.is_err() || self.failing {
            self.failing = outcome.is_err();
            self.health.dependency(self.purpose.dependency, outcome);
        }
    }

    fn set_stored(&mut self, stored: u64) {
        self.stored = stored;
        self.end.stored.store(stored, Ordering::Release);
    }

    fn write(
        &mut self,
        publishes: &[Publish],
        letters: &[(Vec<DeadLetter>, oneshot::Sender<anyhow::Result<()>>)],
        meta: &[MetaRow],
    ) -> rusqlite::Result<(Offset, u64)> {
        let transaction = self.database.transaction()?;
        let mut chunks = Chunks {
            transaction: &transaction,
            base: self.next,
            next: self.next,
            latest: Timestamp(0),
            open: RecordBuffer::default(),
            bytes: 0,
        };
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
            insert_letter(&transaction, letter)?;
        }
        for (name, value, _) in meta {
            transaction
                .prepare_cached("INSERT INTO meta VALUES (?1, ?2) ON CONFLICT DO UPDATE SET value = ?2")?
                .execute(params![name, value])?;
        }
        transaction.commit()?;
        Ok((next, bytes))
    }

    /// Writes the cursors, trims behind the slowest, gives free pages back to the disk.
    /// Whether there is more to do soon.
    fn keep_house(&mut self) -> bool {
        self.try_keep_house().unwrap_or_else(|error| {
            tracing::warn!(%error, "{} could not be trimmed; tried again in a moment", self.purpose.file);
            true
        })
    }

    fn try_keep_house(&mut self) -> rusqlite::Result<bool> {
        let retention = if self.purpose.retains { self.config.load().queue.embedded.retention } else { Duration::ZERO };
        let oldest_kept = Timestamp::now().0.saturating_sub(i64::try_from(retention.as_millis()).unwrap_or(i64::MAX));
        let transaction = self.database.transaction()?;
        if self.cursors_changed {
            for (reader, position) in &self.cursors {
                transaction
                    .prepare_cached("INSERT INTO cursors VALUES (?1, ?2) ON CONFLICT DO UPDATE SET position = ?2")?
                    .execute(params![reader, position.as_i64()])?;
            }
        }
        let slowest =
            self.purpose.readers.iter().map(|reader| self.cursors.get(reader).copied().unwrap_or_default()).min();
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
        self.set_stored(self.stored.saturating_sub(freed));
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

impl Chunks<'_> {
    fn push(
        &mut self,
        received: Timestamp,
        key: Option<&[u8]>,
        value: &[u8],
        header: Option<(&str, Option<&[u8]>)>,
    ) -> rusqlite::Result<()> {
        self.open.push(self.next, received, key, Some(value), header);
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

fn insert_letter(transaction: &Transaction<'_>, letter: &DeadLetter) -> rusqlite::Result<()> {
    let headers: Vec<(&str, Option<String>)> = letter
        .headers
        .iter()
        .map(|(name, value)| {
            let text = value.as_ref().map(|value| String::from_utf8_lossy(value).into_owned());
            (name.as_str(), text)
        })
        .collect();
    let headers =
        serde_json::to_string(&headers).map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))?;
    transaction
        .prepare_cached(
            "INSERT OR IGNORE INTO dead_letters VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
        )?
        .execute(params![
            letter.id(),
            letter.topic,
            letter.generation,
            letter.partition.0,
            letter.offset.as_i64(),
            letter.received.0,
            letter.reason,
            letter.message,
            letter.time.0,
            letter.key,
            letter.value,
            headers
        ])?;
    Ok(())
}
