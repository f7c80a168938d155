//! The segments of the embedded log: which there are, the one that is written, and what becomes of files.
//!
//! A segment is listed in the database before its first frame is written, and closed there, with its length, before the next
//! one is listed: so only the last one may be open, and what a crash or a failed fsync left behind the length of any other is
//! never read. A life of the daemon writes segments of its own: those of earlier lives are closed as they were found.

use std::{
    collections::VecDeque,
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Context;
use parking_lot::Mutex;
use rusqlite::{Connection, Transaction, params};

use super::{
    frame::Frame,
    recovery::{recover, unlisted},
    schema,
    step::{Step, step},
};
use crate::position::{Offset, Timestamp};

/// Where the next segment begins, unless the quota is small: large enough that the commit for each is not felt, small enough
/// that what the sinks have done is soon room again.
const LARGEST: u64 = 32 << 20;
const SMALLEST: u64 = 64 << 10;
/// Of the quota.
const SHARE: u64 = 16;
/// Files that are kept for the next segments, at most: writing over blocks that a file has takes the kernel half of the time
/// that it takes to give it new ones.
const KEPT_FREE: u64 = 256 << 20;
/// A sync of a file that did not grow, in blocks that it has, waits for its data alone, and half as long: so small commits find so many
/// bytes of zeros there, written by one of many. Large ones are not worth writing their bytes twice.
const AHEAD: usize = 256 << 10;
const SMALL: u64 = AHEAD as u64 / 4;
static ZEROS: [u8; AHEAD] = [0; AHEAD];
/// The share of a segment's size from which on one whose records all were read is removed before it is full.
const WORTH: u64 = 32;

/// Bytes from which on a new segment is begun.
pub(super) fn size_of(quota: u64) -> u64 {
    (quota / SHARE).clamp(SMALLEST, LARGEST)
}

/// A segment, as far as it is durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segment {
    pub id: u64,
    /// Of its file.
    pub number: u32,
    pub base: Offset,
    /// Where its frames end in the file.
    pub length: u64,
    /// The offset behind its last record.
    pub end: Offset,
    /// The latest of its records.
    pub received: Timestamp,
}

impl Segment {
    pub fn path(self, folder: &Path) -> PathBuf {
        path_of(folder, self.number)
    }
}

fn path_of(folder: &Path, number: u32) -> PathBuf {
    folder.join(format!("{number:08}.segment"))
}

/// The segments that the log holds, oldest first: the writer changes it, readers look.
#[derive(Debug, Default)]
pub(super) struct Catalog(Mutex<VecDeque<Segment>>);

impl Catalog {
    /// The last one that does not begin behind `offset`.
    pub fn at(&self, offset: Offset) -> Option<Segment> {
        let segments = self.0.lock();
        let behind = segments.partition_point(|segment| segment.base <= offset);
        segments.get(behind.checked_sub(1)?).copied()
    }

    /// The one that so many are older than.
    pub fn nth(&self, index: usize) -> Option<Segment> {
        self.0.lock().get(index).copied()
    }

    /// Whether its file is still this segment's.
    pub fn holds(&self, id: u64) -> bool {
        self.0.lock().iter().any(|segment| segment.id == id)
    }

    fn last(&self) -> Option<Segment> {
        self.0.lock().back().copied()
    }
}

/// What the writer has of the segments.
pub(super) struct Segments {
    folder: PathBuf,
    pub catalog: Arc<Catalog>,
    /// The file of the last one, while it takes frames: not before the first append, and not after a failure.
    active: Option<File>,
    /// How long that file is at least.
    file_length: u64,
    /// Of the last one, written and not durable.
    written: Written,
    /// The last one stands in the database as open.
    open: bool,
    /// Files that are no segment's.
    free: Vec<u32>,
    next_number: u32,
    /// Bytes that were appended since files became free, and since the house was kept.
    appended: u64,
    appended_lately: u64,
}

/// The frames of the commit under way.
#[derive(Debug, Clone, Copy, Default)]
struct Written {
    bytes: u64,
    end: Offset,
    received: Timestamp,
}

/// Why a commit is not durable.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotWritten {
    #[error(transparent)]
    Database(#[from] rusqlite::Error),
    #[error("{0}")]
    File(#[from] io::Error),
    /// It may be durable all the same.
    #[error("{0}")]
    Unknown(io::Error),
}

impl NotWritten {
    pub fn may_be_stored(&self) -> bool {
        matches!(self, Self::Unknown(_))
    }
}

impl Segments {
    /// Those of the database in its folder; returns with them the offset behind the last. What a crash left open is closed.
    ///
    /// # Errors
    /// When files cannot be read, or hold what the database does not know.
    pub fn open(database: &mut Connection, folder: PathBuf) -> anyhow::Result<(Self, Offset)> {
        let mut listed = schema::segments(database)?;
        let mut open = false;
        if let Some((last, false)) = listed.last_mut().map(|(segment, is_closed)| (segment, *is_closed)) {
            recover(last, &folder).with_context(|| format!("cannot read {}", last.path(&folder).display()))?;
            // Those of rows between its frames.
            last.received = last.received.max(schema::received_in(database, last.base, last.end)?);
            open = true;
        }
        let catalog: VecDeque<_> = listed.into_iter().map(|(segment, _)| segment).collect();
        let end = catalog.back().map_or(Offset(0), |last| last.end);
        let next = end.max(schema::next_offset(database)?);
        let abandoned = schema::abandoned(database)?;
        let (free, next_number) = unlisted(&folder, &catalog, next, &abandoned)?;
        let mut segments = Self {
            folder,
            catalog: Arc::new(Catalog(Mutex::new(catalog))),
            active: None,
            file_length: 0,
            written: Written::default(),
            open,
            free,
            next_number,
            appended: 0,
            appended_lately: 0,
        };
        let are_removed = segments.remove_free(0);
        if are_removed && !abandoned.is_empty() {
            sync_folder(&segments.folder)?;
        }
        if let Err(error) = segments.tidy_up(database, are_removed) {
            // On a full disk: it is closed with the next segment, and found again until then.
            tracing::debug!(%error, "the last segment could not be closed");
        }
        Ok((segments, next))
    }

    /// What the last life left open is closed.
    fn tidy_up(&mut self, database: &mut Connection, are_removed: bool) -> rusqlite::Result<()> {
        if are_removed && database.query_row("SELECT EXISTS (SELECT 1 FROM abandoned)", [], |row| row.get(0))? {
            database.execute("DELETE FROM abandoned", [])?;
        }
        self.close(database)
    }

    /// Has a segment take a commit of about so many bytes, whose first offset is `base`.
    ///
    /// # Errors
    /// When it takes a new one, and that cannot be had.
    pub fn make_room(
        &mut self,
        database: &mut Connection,
        base: Offset,
        bytes: u64,
        size: u64,
    ) -> Result<(), NotWritten> {
        let length = self.catalog.last().map_or(0, |last| last.length);
        if self.active.is_some() && (length == 0 || length + bytes <= size) {
            return Ok(());
        }
        self.begin(database, base)
    }

    /// Closes the last segment and begins another one.
    fn begin(&mut self, database: &mut Connection, base: Offset) -> Result<(), NotWritten> {
        let (number, file) = self.take_file()?;
        let file_length = file.metadata()?.len();
        let id = uuid::Uuid::new_v4().as_u64_pair().1;
        let segment = Segment { id, number, base, length: 0, end: base, received: Timestamp(0) };
        // A listing that fails may stand nevertheless, and with it the length of the one before.
        self.distrust();
        let listed = self.list(database, segment);
        if listed.is_err() {
            // Nothing of it is written.
            self.free.push(number);
        }
        let emptied = listed?;
        {
            let mut catalog = self.catalog.0.lock();
            if emptied {
                self.free.extend(catalog.pop_back().map(|empty| empty.number));
            }
            catalog.push_back(segment);
        }
        (self.active, self.file_length, self.open) = (Some(file), file_length, true);
        self.written = Written { end: base, ..Written::default() };
        step(&self.folder, Step::Listed)?;
        Ok(())
    }

    /// Whether the last one was empty, and is none any more.
    fn list(&self, database: &mut Connection, segment: Segment) -> Result<bool, NotWritten> {
        let transaction = database.transaction()?;
        let emptied = self.close_in(&transaction)?;
        transaction
            .prepare_cached("INSERT OR REPLACE INTO segments (base, id, number) VALUES (?1, ?2, ?3)")?
            .execute(params![segment.base.as_i64(), segment.id.cast_signed(), segment.number])?;
        transaction.commit()?;
        Ok(emptied)
    }

    /// Writes down how long the last segment is, if it is open; whether it was empty, and was taken from the list.
    fn close_in(&self, transaction: &Transaction<'_>) -> rusqlite::Result<bool> {
        let Some(last) = self.catalog.last().filter(|_| self.open) else { return Ok(false) };
        let is_empty = last.length == 0;
        if is_empty {
            transaction.execute("DELETE FROM segments WHERE base = ?1", [last.base.as_i64()])?;
            // Its file may hold frames of which nobody was told that they are durable.
            transaction.execute("INSERT OR IGNORE INTO abandoned VALUES (?1)", [last.id.cast_signed()])?;
        } else {
            transaction
                .prepare_cached("UPDATE segments SET length = ?2, next = ?3, received = ?4 WHERE base = ?1")?
                .execute(params![last.base.as_i64(), last.length.cast_signed(), last.end.as_i64(), last.received.0])?;
        }
        Ok(is_empty)
    }

    /// Closes the last segment, so that the next start has nothing to look for.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn close(&mut self, database: &mut Connection) -> rusqlite::Result<()> {
        if !self.open {
            return Ok(());
        }
        self.distrust();
        let transaction = database.transaction()?;
        let emptied = self.close_in(&transaction)?;
        transaction.commit()?;
        self.open = false;
        if emptied {
            let empty = self.catalog.0.lock().pop_back();
            self.free.extend(empty.map(|empty| empty.number));
        }
        Ok(())
    }

    /// Closes the last segment where a commit failed that may be found in it by the next start: before its offsets are given to
    /// rows of the database.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn settle(&mut self, database: &mut Connection) -> rusqlite::Result<()> {
        if self.active.is_some() { Ok(()) } else { self.close(database) }
    }

    /// A file that is no segment's: a free one, or a new one, whose name is durable.
    fn take_file(&mut self) -> io::Result<(u32, File)> {
        while let Some(number) = self.free.pop() {
            match OpenOptions::new().write(true).open(path_of(&self.folder, number)) {
                Ok(file) => return Ok((number, file)),
                // Somebody took it away.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    self.free.push(number);
                    return Err(error);
                }
            }
        }
        let number = self.next_number;
        let path = path_of(&self.folder, number);
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path)?;
        self.next_number += 1;
        step(&self.folder, Step::Created).and_then(|()| sync_folder(&self.folder)).inspect_err(|_| {
            // Its name may not be durable: it is none of the free ones.
            let _ = fs::remove_file(&path);
        })?;
        Ok((number, file))
    }

    /// Writes a frame of these records behind the others of the commit, whose first offset is `durable`; returns its bytes.
    ///
    /// # Errors
    /// When it cannot be written; the commit is over then.
    pub fn write(
        &mut self,
        durable: Offset,
        base: Offset,
        count: u32,
        received: Timestamp,
        records: &[u8],
    ) -> Result<u64, NotWritten> {
        let Some((segment, file)) = self.catalog.last().zip(self.active.as_ref()) else {
            return Err(io::Error::other("there is no segment").into());
        };
        let frame = Frame { id: segment.id, base, durable, received, count, length: records.len() as u32 };
        let at = segment.length + self.written.bytes;
        let behind = at + Frame::SIZE as u64;
        let written = step(&self.folder, Step::Write)
            .and_then(|()| file.write_all_at(&frame.to_bytes(), at))
            .and_then(|()| file.write_all_at(records, behind));
        if let Err(error) = written {
            return Err(self.take_back(error));
        }
        self.written.bytes += frame.size();
        self.written.end = frame.end();
        self.written.received = self.written.received.max(received);
        Ok(frame.size())
    }

    /// Makes the commit durable.
    ///
    /// # Errors
    /// When it is not known to be; the segment takes no more then, since a second fsync says nothing of what the first lost.
    pub fn sync(&mut self) -> Result<(), NotWritten> {
        let Some((segment, file)) = self.catalog.last().zip(self.active.as_ref()) else { return Ok(()) };
        if self.written.bytes == 0 {
            return Ok(());
        }
        let end = segment.length + self.written.bytes;
        if end > self.file_length {
            self.file_length = end;
            // Without room for them, the commit itself may have had some.
            if self.written.bytes <= SMALL && file.write_all_at(&ZEROS, end).is_ok() {
                self.file_length += AHEAD as u64;
            }
        }
        let synced = step(&self.folder, Step::Sync).and_then(|()| file.sync_data());
        if let Err(error) = synced {
            self.active = None;
            return Err(NotWritten::Unknown(error));
        }
        let written = std::mem::take(&mut self.written);
        self.appended += written.bytes;
        self.appended_lately += written.bytes;
        if let Some(last) = self.catalog.0.lock().back_mut() {
            last.length += written.bytes;
            last.end = written.end;
            last.received = last.received.max(written.received);
        }
        step(&self.folder, Step::Synced).map_err(NotWritten::Unknown)?;
        Ok(())
    }

    /// Removes what a commit has written that failed before its fsync.
    fn take_back(&mut self, error: io::Error) -> NotWritten {
        let length = self.catalog.last().map_or(0, |last| last.length);
        self.written = Written::default();
        self.file_length = length;
        let is_taken_back = self.active.as_ref().is_some_and(|file| {
            // Where it is as long as before, and that is durable, nothing of the commit can come back.
            file.set_len(length).and_then(|()| file.sync_data()).is_ok()
        });
        if is_taken_back {
            return NotWritten::File(error);
        }
        self.active = None;
        NotWritten::Unknown(error)
    }

    /// Whether frames can be written again, after they could not.
    ///
    /// # Errors
    /// When they cannot.
    pub fn probe(&mut self, database: &mut Connection, next: Offset) -> Result<(), NotWritten> {
        const PROBE: [u8; 4096] = [0; 4096];
        let Some((segment, file)) = self.catalog.last().zip(self.active.as_ref()) else {
            return self.begin(database, next);
        };
        // No frame begins with this; the next one is written over it.
        let probed = step(&self.folder, Step::Write).and_then(|()| file.write_all_at(&PROBE, segment.length));
        probed.and_then(|()| file.sync_data()).map_err(|error| self.take_back(error))
    }

    /// A record of the database's that stands among those of the last segment, or behind them, was received then: the
    /// segment is kept as long.
    pub fn received(&mut self, received: Timestamp) {
        if let Some(last) = self.catalog.0.lock().back_mut() {
            last.received = last.received.max(received);
        }
    }

    /// Whether all of the segment was read before `slowest` and is older than what is kept. The one that takes frames has to be
    /// worth a new one.
    pub fn is_done_with(&self, segment: Segment, slowest: Offset, oldest_kept: Option<i64>, size: u64) -> bool {
        let is_read = segment.end <= slowest && oldest_kept.is_none_or(|oldest| segment.received.0 <= oldest);
        let is_last = self.open && self.catalog.last().is_some_and(|last| last.id == segment.id);
        is_read && (!is_last || segment.length >= size / WORTH)
    }

    /// The last segment takes no more: the database may have it as closed.
    pub fn distrust(&mut self) {
        self.active = None;
    }

    /// The oldest ones are no longer listed, which is durable: their files are free.
    pub fn remove(&mut self, count: usize) {
        if count == 0 {
            return;
        }
        let is_last_gone = {
            let mut catalog = self.catalog.0.lock();
            self.free.extend(catalog.drain(..count).map(|segment| segment.number));
            catalog.is_empty()
        };
        if is_last_gone {
            (self.active, self.open) = (None, false);
        }
        // A failure is a test's.
        let _ = step(&self.folder, Step::Removed);
        let keep = std::mem::take(&mut self.appended).min(KEPT_FREE);
        self.remove_free(keep);
    }

    /// Nothing keeps free files where nothing is appended, or will be; whether there are more to remove later.
    pub fn tidy(&mut self, is_stop: bool) -> bool {
        if std::mem::take(&mut self.appended_lately) == 0 || is_stop {
            self.remove_free(0);
        }
        !self.free.is_empty()
    }

    /// Removes free files beyond so many bytes; whether all went.
    fn remove_free(&mut self, keep: u64) -> bool {
        let files = keep.div_ceil(LARGEST) as usize;
        let mut all = true;
        while self.free.len() > files {
            let Some(number) = self.free.pop() else { break };
            let path = path_of(&self.folder, number);
            if let Err(error) = fs::remove_file(&path)
                && error.kind() != io::ErrorKind::NotFound
            {
                tracing::debug!(%error, file = %path.display(), "could not be removed; the next start tries again");
                all = false;
            }
        }
        all
    }

    /// Bytes of all.
    pub fn stored(&self) -> u64 {
        self.catalog.0.lock().iter().map(|segment| segment.length).sum()
    }
}

/// Makes the names in a folder durable.
///
/// # Errors
/// When that fails.
pub(super) fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}
