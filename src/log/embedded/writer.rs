//! The thread that writes the embedded log: group commits, cursors, dead letters, trimming.

use std::{
    collections::BTreeMap,
    fmt::Display,
    sync::Arc,
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use rusqlite::{Connection, Transaction, params};
use tokio::sync::oneshot;

use super::{
    LetterChange, LogEnd, Purpose, Reply, Write, dead_letters,
    reader::PARTITION,
    schema,
    segments::{self, NotWritten, Segments},
};
use crate::{
    config::LiveConfig,
    health::Health,
    log::{
        Publish,
        append::Gathering,
        dead_letters::{DeadLetter, State, replay::Admitted},
        record::{ID_HEADER, RecordBuffer},
    },
    names::SinkName,
    position::{Offset, Position, Timestamp},
    sqlite,
};

/// A frame is what a reader takes at once: never more than a default batch.
const FRAME_RECORDS: usize = 1000;
const FRAME_BYTES: usize = 1024 * 1024;
/// The memory for a frame is kept for the next one, unless it held a larger record.
const KEPT_BYTES: usize = 2 * FRAME_BYTES;
/// The most that one commit takes, so that the first request of a large group does not wait for too much of the rest.
const COMMIT_BYTES: usize = 8 * 1024 * 1024;
/// How often cursors are written and what is behind them is trimmed.
const HOUSEKEEPING: Duration = Duration::from_secs(1);
/// Pages given back to the disk at once, a mebibyte: each is written to the WAL before, and a request may come meanwhile.
const GIVEN_BACK: u32 = 64;
/// How long the log has to be idle before pages are given back. While appends flow they take free pages anyway.
const IDLE: Duration = Duration::from_millis(20);
/// A log that reached its quota takes events again below this share of it. At the bound itself it would be ready and
/// unready in turns, with every trim.
const ROOM: f64 = 0.9;

pub(super) struct Writer {
    pub(super) database: Connection,
    pub(super) segments: Segments,
    pub(super) end: Arc<LogEnd>,
    pub(super) purpose: Purpose,
    pub(super) config: LiveConfig,
    health: Health,
    pub(super) cursors: BTreeMap<&'static str, Offset>,
    pub(super) cursors_changed: bool,
    /// The end of the log as the database has it: what is missing before it was lost.
    pub(super) noted_end: Offset,
    /// The frame that is filled.
    frame: RecordBuffer,
    housekeeping_at: Instant,
    /// Why the last attempt to write failed; a write that succeeds takes it away.
    pub(super) failing: Option<String>,
    /// `queue.embedded.quota` was reached, and [`ROOM`] is not free again.
    full: bool,
    /// What letters in quarantine take.
    quarantined: u64,
    /// There are pages to give back to the disk, as far as is known.
    pub(super) free_pages: bool,
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
        segments: Segments,
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
            noted_end: schema::next_offset(&database)?,
            frame: RecordBuffer::default(),
            database,
            segments,
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
                let pause = if self.keep_house(group.stop.is_some()) { HOUSEKEEPING } else { 10 * HOUSEKEEPING };
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

    /// One fsync for the events of the whole group, and a transaction for what stands in the database; all are answered after
    /// theirs.
    fn commit(&mut self, group: &mut Group) {
        let answered = group.publishes.len() + group.refused;
        let mut at = self.end.get();
        let events = if group.publishes.is_empty() { Ok(()) } else { self.append(group) };
        let rows = if group.letters.is_empty() && group.meta.is_empty() { Ok(()) } else { self.write_rows(group) };
        let events = events.map_err(|error| (self.cannot_be_written(&error), error.may_be_stored()));
        let rows = rows.map_err(|error| self.cannot_be_written(&error));
        self.tell_answered(answered);
        if !group.publishes.is_empty() || !group.letters.is_empty() || !group.meta.is_empty() {
            self.failing = events.as_ref().err().map(|(why, _)| why).or(rows.as_ref().err()).cloned();
        }
        // A wake-up for each would take longer than the fsync.
        let gathering = Gathering::begin();
        for publish in group.publishes.drain(..) {
            let all = 0..publish.events.len();
            match &events {
                Ok(()) => {
                    at = Offset(at.0 + all.len() as u64);
                    let last = || Some(Position { partition: PARTITION, offset: Offset(at.0.checked_sub(1)?) });
                    publish.ticket.durable_at(all, last);
                }
                Err((why, true)) => publish.ticket.unavailable(all, why),
                Err((why, false)) => publish.ticket.refused(all, why),
            }
        }
        drop(gathering);
        // Those that asked may have given up; what was written stands.
        for (_, reply) in group.letters.drain(..) {
            let _ = reply.send(rows.clone().map_err(anyhow::Error::msg));
        }
        for (_, _, done) in group.meta.drain(..) {
            let _ = done.send(rows.clone());
        }
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

    /// Makes the events of a group durable.
    fn append(&mut self, group: &Group) -> Result<(), NotWritten> {
        let size = segments::size_of(self.config.load().queue.embedded.quota.0);
        let durable = self.end.get();
        self.segments.make_room(&mut self.database, durable, group.bytes as u64, size)?;
        let mut frames = Frames::new(&mut self.segments, &mut self.frame, durable);
        for publish in &group.publishes {
            for record in &publish.events {
                let mut id_text = uuid::Uuid::encode_buffer();
                let id = record.assigned_id.map(|id| &*id.hyphenated().encode_lower(&mut id_text));
                let id = id.map(|id| (ID_HEADER, Some(id.as_bytes())));
                let headers = id.into_iter().chain(publish.headers(record).iter());
                frames.push(publish.received, publish.key(record), publish.value(record), headers)?;
            }
        }
        frames.close()?;
        let (next, bytes) = (frames.next, frames.bytes);
        self.segments.sync()?;
        self.end.append(next, bytes);
        self.purpose.counts.inc_by(next.since(durable));
        Ok(())
    }

    /// One transaction for the letters and the rows of `meta` of a group.
    fn write_rows(&mut self, group: &Group) -> rusqlite::Result<()> {
        let transaction = self.database.transaction()?;
        for letter in group.letters.iter().flat_map(|(letters, _)| letters) {
            dead_letters::insert(&transaction, letter)?;
        }
        for (name, value, _) in &group.meta {
            transaction
                .prepare_cached("INSERT INTO meta VALUES (?1, ?2) ON CONFLICT DO UPDATE SET value = ?2")?
                .execute(params![name, value])?;
        }
        transaction.commit()?;
        self.quarantined += group.quarantined;
        Ok(())
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

    /// Appends the records of the letters that are open, and closes these: in one transaction, so their records stand in the
    /// database, between those of the segments.
    fn replay(&mut self, records: &[Admitted]) -> rusqlite::Result<Vec<bool>> {
        self.segments.settle(&mut self.database)?;
        let transaction = self.database.transaction()?;
        let mut rows = Rows::new(&transaction, self.end.get());
        let mut replayed = Vec::with_capacity(records.len());
        for record in records {
            let open = dead_letters::close(&transaction, &record.id, State::Replayed)?;
            if open {
                let headers = record.headers.iter().map(|(name, value)| (name.as_str(), value.as_deref()));
                rows.push(record.received, record.key.as_deref(), &record.value, headers)?;
            }
            replayed.push(open);
        }
        rows.close()?;
        let Rows { next, bytes, latest, .. } = rows;
        // One that fails may stand nevertheless, and with it the offsets, until the next one is durable.
        transaction.commit().inspect_err(|_| self.segments.distrust())?;
        self.segments.received(latest);
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

    pub(super) fn cannot_be_written(&self, error: &impl Display) -> String {
        format!("{} cannot be written: {error}; is the disk full, or read-only?", self.purpose.full)
    }

    fn give_back_pages(&mut self) {
        self.free_pages = sqlite::give_back_pages(&self.database, GIVEN_BACK).unwrap_or_else(|error| {
            tracing::debug!(%error, "pages of the embedded log could not be given back; tried again after the next trim");
            false
        });
    }
}

/// The frames of one commit as they fill.
struct Frames<'w> {
    segments: &'w mut Segments,
    open: &'w mut RecordBuffer,
    /// The offset before which all is durable.
    durable: Offset,
    base: Offset,
    next: Offset,
    latest: Timestamp,
    bytes: u64,
}

impl<'w> Frames<'w> {
    fn new(segments: &'w mut Segments, open: &'w mut RecordBuffer, next: Offset) -> Self {
        open.reuse(KEPT_BYTES);
        Self { segments, open, durable: next, base: next, next, latest: Timestamp(0), bytes: 0 }
    }

    fn push<'h>(
        &mut self,
        received: Timestamp,
        key: Option<&[u8]>,
        value: &[u8],
        headers: impl IntoIterator<Item = (&'h str, Option<&'h [u8]>), IntoIter: Clone>,
    ) -> Result<(), NotWritten> {
        self.open.push(self.next, received, key, Some(value), headers);
        self.latest = self.latest.max(received);
        self.next = self.next.next();
        if self.open.len() >= FRAME_RECORDS || self.open.size() >= FRAME_BYTES {
            self.close()?;
        }
        Ok(())
    }

    fn close(&mut self) -> Result<(), NotWritten> {
        if self.open.is_empty() {
            return Ok(());
        }
        let count = self.open.len() as u32;
        let records = self.open.checksummed();
        self.bytes += self.segments.write(self.durable, self.base, count, self.latest, records)?;
        self.base = self.next;
        self.open.clear();
        Ok(())
    }
}

/// The records of one replay, in rows that are no larger than a frame.
struct Rows<'t> {
    transaction: &'t Transaction<'t>,
    base: Offset,
    next: Offset,
    latest: Timestamp,
    open: RecordBuffer,
    bytes: u64,
}

impl<'t> Rows<'t> {
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
        if self.open.len() >= FRAME_RECORDS || self.open.size() >= FRAME_BYTES {
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
