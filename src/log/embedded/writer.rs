//! The thread that writes the embedded log: group commits, cursors, dead letters, trimming.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use rusqlite::{Connection, Transaction, params};
use tokio::sync::oneshot;

use super::{LetterChange, LogEnd, Purpose, Reply, Write, dead_letters, reader::PARTITION, schema};
use crate::{
    config::LiveConfig,
    health::Health,
    log::{
        Publish,
        dead_letters::{DeadLetter, State, replay::Admitted},
        record::{ID_HEADER, RecordBuffer},
    },
    names::SinkName,
    position::{Offset, Position, Timestamp},
    sqlite,
};

/// A row of `chunks` is what a reader takes at once: never more than a default batch.
const CHUNK_RECORDS: usize = 1000;
const CHUNK_BYTES: usize = 1024 * 1024;
/// The most that one commit takes, so that the first request of a large group does not wait for too much of the rest.
const COMMIT_BYTES: usize = 8 * 1024 * 1024;
/// How often cursors are written and what is behind them is trimmed.
const HOUSEKEEPING: Duration = Duration::from_secs(1);
/// Rows deleted in one housekeeping, so that appends wait for milliseconds only.
const TRIM_ROWS: usize = 2000;
/// Pages given back to the disk at once, a mebibyte: each is written to the WAL before, and a request may come meanwhile.
const GIVEN_BACK: u32 = 64;
/// How long the log has to be idle before pages are given back. While appends flow they take free pages anyway.
const IDLE: Duration = Duration::from_millis(20);
/// A log that reached its quota takes events again below this share of it. At the bound itself it would be ready and
/// unready in turns, with every trim.
const ROOM: f64 = 0.9;

pub(super) struct Writer {
    database: Connection,
    end: Arc<LogEnd>,
    purpose: Purpose,
    config: LiveConfig,
    health: Health,
    cursors: BTreeMap<&'static str, Offset>,
    cursors_changed: bool,
    housekeeping_at: Instant,
    /// Why the last attempt to write failed; a write that succeeds takes it away.
    failing: Option<String>,
    /// `queue.embedded.quota` was reached, and [`ROOM`] is not free again.
    full: bool,
    /// What letters in quarantine take.
    quarantined: u64,
    /// There are pages to give back to the disk, as far as is known.
    free_pages: bool,
    /// The state of the dependency as it was last reported, and that of the quarantine.
    told: Option<String>,
    told_of_quarantine: Option<String>,
}

/// What a commit holds, to be answered after it.
#[derive(Default)]
struct Group {
    publishes: Vec<Publish>,
    letters: Vec<(Vec<DeadLetter>, oneshot::Sender<anyhow::Result<()>>)>,
    meta: Vec<(&'static str, String, Reply<()>)>,
    written: Vec<Sender<()>>,
    changes: Vec<(LetterChange, Reply<Vec<bool>>)>,
    /// Requests that were refused before the commit.
    refused: usize,
    /// Of the requests' bodies, and of the letters in quarantine.
    bytes: usize,
    quarantined: u64,
    stop: Option<Reply<()>>,
}

impl Writer {
    pub(super) fn new(
        database: Connection,
        end: Arc<LogEnd>,
        purpose: Purpose,
        config: LiveConfig,
        health: Health,
    ) -> anyhow::Result<Self> {
        let mut cursors = BTreeMap::new();
        for reader in &purpose.readers {
            if let Some(position) = schema::cursor(&database, reader)? {
                cursors.insert(*reader, position);
            }
        }
        let quarantined = dead_letters::quarantined(&database)?;
        health.dependency(purpose.dependency, Ok(()));
        Ok(Self {
            database,
            end,
            purpose,
            config,
            health,
            cursors,
            cursors_changed: false,
            housekeeping_at: Instant::now() + HOUSEKEEPING,
            failing: None,
            full: false,
            quarantined,
            free_pages: true,
            told: None,
            told_of_quarantine: None,
        })
    }

    pub(super) fn run(&mut self, writes: &Receiver<Write>) {
        loop {
            let idle_at = Instant::now() + IDLE;
            let wake_at = if self.free_pages { idle_at.min(self.housekeeping_at) } else { self.housekeeping_at };
            let first = match writes.recv_deadline(wake_at.max(Instant::now())) {
                Ok(write) => Some(write),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            if first.is_none() && self.free_pages && idle_at <= Instant::now() {
                self.give_back_pages();
            }
            let mut group = Group::default();
            let mut next = first;
            while let Some(write) = next {
                self.take(write, &mut group);
                if group.bytes + group.quarantined as usize >= COMMIT_BYTES || group.stop.is_some() {
                    break;
                }
                next = writes.try_recv().ok();
            }
            self.commit(&mut group);
            for (change, reply) in std::mem::take(&mut group.changes) {
                // Whoever asked may have given up; what was done stands.
                let _ = reply.send(self.change_letters(&change));
            }
            if self.housekeeping_at <= Instant::now() || group.stop.is_some() || !group.written.is_empty() {
                // Without changed cursors nothing becomes trimmable but by age, which can wait.
                let pause = if self.keep_house() { HOUSEKEEPING } else { 10 * HOUSEKEEPING };
                self.housekeeping_at = Instant::now() + pause;
            }
            self.tell();
            for written in group.written {
                // Whoever waited has given up; nothing is owed.
                let _ = written.send(());
            }
            if let Some(done) = group.stop {
                let uncommitted = self.failing.take().filter(|_| self.cursors_changed);
                let _ = done.send(uncommitted.map_or(Ok(()), Err));
                return;
            }
        }
    }

    fn take(&mut self, write: Write, group: &mut Group) {
        match write {
            Write::Append(publish) => {
                if let Some(why) = self.no_room(group.bytes as u64) {
                    publish.ticket.refused(0..publish.events.len(), &why);
                    group.refused += 1;
                    return;
                }
                group.bytes += publish.body.len() + publish.aside.len();
                group.publishes.push(publish);
            }
            Write::Cursor(reader, position) => self.move_cursor(reader, position),
            Write::DeadLetters(letters, reply) => group.letters.push((letters, reply)),
            Write::Quarantine(letters, reply) => {
                if let Some(why) = self.no_room_for_letters(group) {
                    // Whoever asked may have given up.
                    let _ = reply.send(Err(anyhow::Error::msg(why)));
                    return;
                }
                group.quarantined += letters.iter().map(dead_letters::size).sum::<u64>();
                group.letters.push((letters, reply));
            }
            Write::Meta(name, value, done) => group.meta.push((name, value, done)),
            Write::Letters(change, reply) => group.changes.push((change, reply)),
            Write::Flush(done) => group.written.push(done),
            Write::Stop(done) => group.stop = Some(done),
        }
    }

    fn move_cursor(&mut self, reader: &'static str, position: Offset) {
        if self.cursors.insert(reader, position) != Some(position) && !self.cursors_changed {
            self.cursors_changed = true;
            self.housekeep_soon();
        }
    }

    /// One transaction for the whole group; the tickets are answered after the fsync.
    fn commit(&mut self, group: &mut Group) {
        let answered = group.publishes.len() + group.refused;
        if group.publishes.is_empty() && group.letters.is_empty() && group.meta.is_empty() {
            return self.tell_answered(answered);
        }
        let mut at = self.end.get();
        let outcome = match self.write(group) {
            Ok((next, bytes)) => {
                self.end.append(next, bytes);
                let events: usize = group.publishes.iter().map(|publish| publish.events.len()).sum();
                self.purpose.counts.inc_by(events as u64);
                self.quarantined += group.quarantined;
                Ok(())
            }
            Err(NotWritten { error, unknown }) => Err((self.cannot_be_written(&error), unknown)),
        };
        self.tell_answered(answered);
        for publish in group.publishes.drain(..) {
            let events = publish.events.len();
            match &outcome {
                Ok(()) => {
                    at = Offset(at.0 + events as u64);
                    let last = || Some(Position { partition: PARTITION, offset: Offset(at.0.checked_sub(1)?) });
                    publish.ticket.durable_at(0..events, last);
                }
                Err((why, true)) => publish.ticket.unavailable(0..events, why),
                Err((why, false)) => publish.ticket.refused(0..events, why),
            }
        }
        let outcome = outcome.map_err(|(why, _)| why);
        // Those that asked may have given up; what was written stands.
        for (_, reply) in group.letters.drain(..) {
            let _ = reply.send(outcome.clone().map_err(anyhow::Error::msg));
        }
        for (_, _, done) in group.meta.drain(..) {
            let _ = done.send(outcome.clone());
        }
        self.failing = outcome.err();
        if self.failing.is_some() {
            self.housekeep_soon();
        }
    }

    fn housekeep_soon(&mut self) {
        self.housekeeping_at = self.housekeeping_at.min(Instant::now() + HOUSEKEEPING);
    }

    /// Before the tickets, so that a request that has its answer is counted.
    fn tell_answered(&self, requests: usize) {
        if let Some(on_answered) = self.purpose.on_answered.as_ref().filter(|_| requests > 0) {
            on_answered(requests, self.end.get());
        }
    }

    /// Why the log takes no events, with `group` bytes about to be committed.
    fn no_room(&mut self, group: u64) -> Option<String> {
        let quota = self.config.load().queue.embedded.quota;
        let stored = self.end.stored() + group;
        let bound = if self.full { (quota.0 as f64 * ROOM) as u64 } else { quota.0 };
        self.full = stored >= bound;
        self.full.then(|| {
            let percent = ROOM * 100.0;
            let (full, until) = (self.purpose.full, self.purpose.room_when);
            format!("{full} has reached queue.embedded.quota ({quota}); it takes events again below {percent} % of that, {until}")
        })
    }

    /// Why no more letters of requests are kept: they have what the quota leaves them beside the records, whose own share of it
    /// they never take.
    fn no_room_for_letters(&mut self, group: &Group) -> Option<String> {
        let why = self.no_room(group.bytes as u64);
        why.or_else(|| self.quarantine_is_full(group.bytes as u64 + group.quarantined))
    }

    fn quarantine_is_full(&self, more: u64) -> Option<String> {
        let quota = self.config.load().queue.embedded.quota;
        let is_full = self.quarantined > 0 && self.end.stored() + self.quarantined + more >= quota.0;
        is_full.then(|| {
            format!(
                "what is in quarantine has reached queue.embedded.quota ({quota}), with the records that wait: see what it is \
                 (`ingestd dlq list --all`), and purge what is done with"
            )
        })
    }

    /// Lets readiness know whether events can be written, and wrong ones kept.
    fn tell(&mut self) {
        let quarantine = self.quarantine_is_full(0);
        if quarantine != self.told_of_quarantine {
            self.health.remark(self.purpose.dependency, quarantine.clone());
            self.told_of_quarantine = quarantine;
        }
        let full = self.no_room(0);
        let state = self.failing.clone().or(full);
        if state != self.told {
            self.health.dependency(self.purpose.dependency, state.clone().map_or(Ok(()), Err));
            self.told = state;
        }
    }

    /// The end of the log after it, and the bytes that were appended.
    fn write(&mut self, group: &Group) -> Result<(Offset, u64), NotWritten> {
        let transaction = self.database.transaction()?;
        let mut chunks = Chunks::new(&transaction, self.end.get());
        for publish in &group.publishes {
            for record in &publish.events {
                let mut id_text = uuid::Uuid::encode_buffer();
                let id = record.assigned_id.map(|id| &*id.hyphenated().encode_lower(&mut id_text));
                let id = id.map(|id| (ID_HEADER, Some(id.as_bytes())));
                let headers = id.into_iter().chain(publish.headers(record).iter());
                chunks.push(publish.received, publish.key(record), publish.value(record), headers)?;
            }
        }
        chunks.close()?;
        let (next, bytes) = (chunks.next, chunks.bytes);
        for letter in group.letters.iter().flat_map(|(letters, _)| letters) {
            dead_letters::insert(&transaction, letter)?;
        }
        for (name, value, _) in &group.meta {
            transaction
                .prepare_cached("INSERT INTO meta VALUES (?1, ?2) ON CONFLICT DO UPDATE SET value = ?2")?
                .execute(params![name, value])?;
        }
        // A commit that fails may stand in the file nevertheless; all before it is undone.
        transaction.commit().map_err(|error| NotWritten { error, unknown: true })?;
        Ok((next, bytes))
    }

    /// One transaction; says of each letter whether it was open.
    fn change_letters(&mut self, change: &LetterChange) -> Result<Vec<bool>, String> {
        let changed = match change {
            LetterChange::Replay(records) => {
                if self.end.stored() >= self.config.load().queue.embedded.quota.0 {
                    let why = "the embedded log has reached queue.embedded.quota; the sinks have to catch up";
                    return Err(why.to_owned());
                }
                self.replay(records)
            }
            LetterChange::Purge(ids) => self.purge(ids),
        };
        changed.map_err(|error| self.cannot_be_written(&error))
    }

    /// Appends the records of the letters that are open, and closes these.
    fn replay(&mut self, records: &[Admitted]) -> rusqlite::Result<Vec<bool>> {
        let transaction = self.database.transaction()?;
        let mut chunks = Chunks::new(&transaction, self.end.get());
        let mut replayed = Vec::with_capacity(records.len());
        for record in records {
            let open = dead_letters::close(&transaction, &record.id, State::Replayed)?;
            if open {
                let headers = record.headers.iter().map(|(name, value)| (name.as_str(), value.as_deref()));
                chunks.push(record.received, record.key.as_deref(), &record.value, headers)?;
            }
            replayed.push(open);
        }
        chunks.close()?;
        let (next, bytes) = (chunks.next, chunks.bytes);
        transaction.commit()?;
        self.end.append(next, bytes);
        self.purpose.counts.inc_by(replayed.iter().filter(|open| **open).count() as u64);
        Ok(replayed)
    }

    fn purge(&mut self, ids: &[String]) -> rusqlite::Result<Vec<bool>> {
        let transaction = self.database.transaction()?;
        let counted = schema::cursor(&transaction, SinkName::Aggregate.as_str())?.unwrap_or_default();
        let mut room = 0;
        let mut purge = |id: &String| dead_letters::purge(&transaction, id, counted, &mut room);
        let purged = ids.iter().map(&mut purge).collect::<rusqlite::Result<_>>()?;
        transaction.commit()?;
        self.quarantined = self.quarantined.saturating_sub(room);
        // Their pages go back to the disk.
        self.free_pages = true;
        Ok(purged)
    }

    fn cannot_be_written(&self, error: &rusqlite::Error) -> String {
        format!("{} cannot be written: {error}; is the disk full, or read-only?", self.purpose.full)
    }

    fn give_back_pages(&mut self) {
        self.free_pages = sqlite::give_back_pages(&self.database, GIVEN_BACK).unwrap_or_else(|error| {
            tracing::debug!(%error, "pages of the embedded log could not be given back; tried again after the next trim");
            false
        });
    }

    /// Writes the cursors and trims behind the slowest. Whether there is more to do soon. While writing fails it tries
    /// whether it works again: an unready process may be sent no request that would.
    fn keep_house(&mut self) -> bool {
        match self.try_keep_house() {
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

    fn try_keep_house(&mut self) -> rusqlite::Result<bool> {
        let retention = if self.purpose.retains { self.config.load().queue.embedded.retention } else { Duration::ZERO };
        let age = i64::try_from(retention.as_millis()).unwrap_or(i64::MAX);
        // Without retention no clock is asked: after a step back, records seem to come from the future.
        let oldest_kept = (!retention.is_zero()).then(|| Timestamp::now().0.saturating_sub(age));
        let transaction = self.database.transaction()?;
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
        let readers = self.purpose.readers.iter();
        let slowest = readers.map(|reader| self.cursors.get(reader).copied().unwrap_or_default()).min();
        let (mut freed, mut trimmed) = (0, 0);
        if let Some(slowest) = slowest {
            // In the order of the key, from the first on, so that nothing is read but what goes and the first that stays.
            let behind =
                "SELECT base + count, received, length(records) FROM chunks WHERE base < ?1 ORDER BY base LIMIT ?2";
            let mut chunks = transaction.prepare_cached(behind)?;
            let mut rows = chunks.query(params![slowest.as_i64(), TRIM_ROWS as i64])?;
            let mut end = None;
            while let Some(row) = rows.next()? {
                let (chunk_end, received, bytes): (i64, i64, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
                if chunk_end > slowest.as_i64() || oldest_kept.is_some_and(|oldest| received > oldest) {
                    break;
                }
                end = Some(chunk_end);
                freed += bytes.cast_unsigned();
                trimmed += 1;
            }
            drop(rows);
            drop(chunks);
            if let Some(end) = end {
                transaction.execute("DELETE FROM chunks WHERE base < ?1", [end])?;
                transaction.execute("UPDATE meta SET value = max(value, ?1) WHERE name = 'trimmed'", [end])?;
            }
        }
        transaction.commit()?;
        self.cursors_changed = false;
        self.end.trim(freed);
        self.free_pages |= trimmed > 0;
        Ok(trimmed == TRIM_ROWS)
    }
}

/// Why a group was not committed.
struct NotWritten {
    error: rusqlite::Error,
    /// It may have been, all the same.
    unknown: bool,
}

impl From<rusqlite::Error> for NotWritten {
    fn from(error: rusqlite::Error) -> Self {
        Self { error, unknown: false }
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
        headers: impl IntoIterator<Item = (&'h str, Option<&'h [u8]>), IntoIter: Clone>,
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
        let (base, records, latest) = (self.base.as_i64(), self.open.len() as i64, self.latest.0);
        let bytes = self.open.checksummed();
        self.transaction
            .prepare_cached("INSERT INTO chunks VALUES (?1, ?2, ?3, ?4)")?
            .execute(params![base, records, latest, bytes])?;
        self.bytes += self.open.size() as u64;
        self.base = self.next;
        self.open.clear();
        Ok(())
    }
}
