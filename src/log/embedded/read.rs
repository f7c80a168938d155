//! Reading the log, by whoever: from the segments, and from the database's rows between them.

use std::{
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use rusqlite::{Connection, blob::Blob};

use super::{
    EmbeddedLog, frame, schema,
    segments::{Catalog, Segment},
};
use crate::{log::record::RecordBuffer, position::Offset};

/// Reads an open log; each thread that does has one of its own.
pub(in crate::log) struct LogReader {
    pub database: Connection,
    path: Arc<PathBuf>,
    folder: PathBuf,
    catalog: Arc<Catalog>,
    /// Where the last read came to.
    place: Option<Place>,
}

/// Between two frames of a segment.
struct Place {
    id: u64,
    file: File,
    at: u64,
    /// The end of the frame before, or the segment's beginning.
    offset: Offset,
}

/// Records do not match their checksums, or are missing.
#[derive(Debug, thiserror::Error)]
#[error("{path} is damaged between offsets {from} and {to}: {why}")]
pub(super) struct Damaged {
    path: String,
    from: Offset,
    to: Offset,
    why: String,
}

/// What a segment has at a position.
enum Found {
    Records(RecordBuffer, Offset),
    /// It is not there; the next that is whole begins here.
    Nothing(RecordBuffer, Offset),
}

/// How much is read at once.
#[derive(Clone, Copy)]
pub(in crate::log) struct Bounds {
    pub records: usize,
    pub bytes: usize,
}

impl Bounds {
    fn allow(self, records: usize, bytes: usize) -> bool {
        records <= self.records && bytes <= self.bytes
    }
}

impl EmbeddedLog {
    /// # Errors
    /// When the log cannot be opened for reading.
    pub(in crate::log) fn reader(&self) -> anyhow::Result<LogReader> {
        Ok(LogReader {
            database: schema::open_reader(&self.path)?,
            path: self.path.clone(),
            folder: super::folder_of(&self.path),
            catalog: self.catalog.clone(),
            place: None,
        })
    }
}

impl LogReader {
    /// Whole frames from the one that holds `from` on, and where they end; records below `from` are the caller's to skip.
    /// The first frame comes whatever its size. `None` when the log does not hold `from` any more. They are put into
    /// `records`, which is empty. `from` is below the log's end.
    ///
    /// # Errors
    /// When a file cannot be read, or what stands there is damaged.
    pub fn read(
        &mut self,
        from: Offset,
        bounds: Bounds,
        mut records: RecordBuffer,
    ) -> anyhow::Result<Option<(RecordBuffer, Offset)>> {
        let mut missing = None;
        if let Some(segment) = self.catalog.at(from).filter(|segment| from < segment.end) {
            match self.read_segment(segment, from, bounds, records) {
                Ok(Found::Records(records, to)) => return Ok(Some((records, to))),
                Ok(Found::Nothing(empty, next)) => (records, missing) = (empty, Some(next)),
                Err(error) => {
                    // Its file may be another's by now.
                    self.place = None;
                    return if self.catalog.holds(segment.id) { Err(error) } else { Ok(None) };
                }
            }
        }
        if let Some(read) = self.read_rows(from, bounds, records)? {
            return Ok(Some(read));
        }
        if from < schema::trimmed(&self.database)? {
            return Ok(None);
        }
        let to = missing.or_else(|| self.catalog.nth(0).map(|first| first.base)).unwrap_or(from);
        Err(self.damaged(from, to.max(from), "its records are missing or unreadable".to_owned()).into())
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    fn damaged(&self, from: Offset, to: Offset, why: String) -> Damaged {
        Damaged { path: self.path.display().to_string(), from, to, why }
    }

    fn read_segment(
        &mut self,
        segment: Segment,
        from: Offset,
        bounds: Bounds,
        mut records: RecordBuffer,
    ) -> anyhow::Result<Found> {
        let Some(mut place) = self.place_at(segment, from)? else { return Ok(Found::Nothing(records, segment.end)) };
        let mut to = from;
        let next = loop {
            if place.at >= segment.length {
                break segment.end;
            }
            let Some(frame) = frame::head(&place.file, place.at, segment.id)? else {
                let found = frame::find(&place.file, place.at, segment.length, segment.id, |frame| frame.base >= to)?;
                break found.map_or(segment.end, |(_, frame)| frame.base);
            };
            let (count, bytes) = (records.len() + frame.count as usize, records.size() + frame.length as usize);
            // Between them stand rows of the database.
            let is_next = if records.is_empty() { frame.base <= from } else { frame.base == to };
            if !is_next
                || place.at + frame.size() > segment.length
                || !(records.is_empty() || bounds.allow(count, bytes))
            {
                break frame.base;
            }
            if let Err(corrupt) = frame.read(&place.file, place.at, &mut records)? {
                if records.is_empty() {
                    return Err(self.damaged(frame.base, frame.end(), corrupt.to_string()).into());
                }
                break frame.base;
            }
            (to, place.at, place.offset) = (frame.end(), place.at + frame.size(), frame.end());
        };
        self.place = Some(place);
        Ok(if records.is_empty() { Found::Nothing(records, next) } else { Found::Records(records, to) })
    }

    /// Where the frame stands that holds `from`, or the first one behind it; from where the last read came to, or from the
    /// segment's beginning. `None` where it has no file.
    fn place_at(&mut self, segment: Segment, from: Offset) -> io::Result<Option<Place>> {
        let place = self.place.take().filter(|place| place.id == segment.id && place.offset <= from);
        let mut place = match place {
            Some(place) => place,
            None => match File::open(segment.path(&self.folder)) {
                Ok(file) => Place { id: segment.id, file, at: 0, offset: segment.base },
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(error),
            },
        };
        while place.offset < from && place.at < segment.length {
            let found = match frame::head(&place.file, place.at, segment.id)? {
                Some(frame) => Some((place.at, frame)),
                // What is damaged before it is no matter here.
                None => frame::find(&place.file, place.at, segment.length, segment.id, |frame| frame.end() > from)?,
            };
            let Some((at, frame)) = found else { break };
            if frame.end() > from {
                place.at = at;
                break;
            }
            (place.at, place.offset) = (at + frame.size(), frame.end());
        }
        Ok(Some(place))
    }

    /// The same from the database's rows; `None` where none holds `from`.
    fn read_rows(
        &self,
        from: Offset,
        bounds: Bounds,
        mut records: RecordBuffer,
    ) -> anyhow::Result<Option<(RecordBuffer, Offset)>> {
        let mut chunks = self.database.prepare_cached(
            "SELECT base, count, length(records) FROM chunks
             WHERE base >= coalesce((SELECT max(base) FROM chunks WHERE base <= ?1), 0) ORDER BY base",
        )?;
        let mut rows = chunks.query([from.as_i64()])?;
        let mut to = from;
        // Read in the snapshot of the query, without copies on the way.
        let mut chunk: Option<Blob<'_>> = None;
        while let Some(row) = rows.next()? {
            let (row_id, count, length): (i64, i64, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
            let (base, end) = (Offset(row_id.cast_unsigned()), Offset((row_id + count).cast_unsigned()));
            let (count, length) = (count.cast_unsigned() as usize, length.cast_unsigned() as usize);
            if end <= from {
                continue;
            }
            let fits = records.is_empty() || bounds.allow(records.len() + count, records.size() + length);
            // Before the next one stand frames, or what retention removed.
            if base > to || !fits {
                break;
            }
            let chunk = match &mut chunk {
                Some(chunk) => {
                    chunk.reopen(row_id)?;
                    chunk
                }
                None => chunk.insert(self.database.blob_open("main", "chunks", "records", row_id, true)?),
            };
            let corrupt = match records.extend(base..end, length, |bytes| chunk.read_exact(bytes))? {
                Ok(()) => {
                    to = end;
                    continue;
                }
                Err(corrupt) => corrupt,
            };
            if records.is_empty() {
                return Err(self.damaged(base, end, corrupt.to_string()).into());
            }
            break;
        }
        Ok((to > from).then_some((records, to)))
    }
}
