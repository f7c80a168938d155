//! What stands in a segment's file: frames, one behind the other, and how much of a file can be trusted after a crash.
//!
//! ```text
//! frame  = id u64 · base u64 · durable u64 · received i64 · count u32 · length u32 · crc32c u32 · record*
//! ```
//! Little endian. The checksum is that of what stands before it; each record has its own. `id` is the segment's, by chance:
//! what a file held before it was this segment's has another one, and no client can write a frame into its event. `base` is
//! the offset of the first of `count` records, which are `length` bytes; `received` is the latest of theirs. Everything
//! before the offset `durable` was durable before this frame was written.

use std::{fs::File, io, os::unix::fs::FileExt};

use crate::{
    log::record::{Corrupt, RecordBuffer},
    position::{Offset, Timestamp},
};

/// What is read at once where a file is searched.
const WINDOW: usize = 1 << 20;

/// A frame's head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Frame {
    pub id: u64,
    pub base: Offset,
    pub durable: Offset,
    pub received: Timestamp,
    pub count: u32,
    pub length: u32,
}

impl Frame {
    pub const SIZE: usize = 44;

    pub fn to_bytes(self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        bytes[..8].copy_from_slice(&self.id.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.base.0.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.durable.0.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.received.0.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.count.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.length.to_le_bytes());
        let checksum = crc32c::crc32c(&bytes[..40]);
        bytes[40..].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// `None` where these bytes are none of the segment `id`.
    pub fn of(bytes: &[u8; Self::SIZE], id: u64) -> Option<Self> {
        Self::of_any(bytes).filter(|frame| frame.id == id)
    }

    /// The same of whatever segment.
    pub fn of_any(bytes: &[u8; Self::SIZE]) -> Option<Self> {
        let (head, checksum) = bytes.split_at(40);
        if crc32c::crc32c(head).to_le_bytes() != *checksum {
            return None;
        }
        let eight = |at: usize| head[at..].first_chunk::<8>().copied().map(u64::from_le_bytes);
        let four = |at: usize| head[at..].first_chunk::<4>().copied().map(u32::from_le_bytes);
        Some(Self {
            id: eight(0)?,
            base: Offset(eight(8)?),
            durable: Offset(eight(16)?),
            received: Timestamp(eight(24)?.cast_signed()),
            count: four(32)?,
            length: four(36)?,
        })
    }

    /// The offset behind its records.
    pub fn end(self) -> Offset {
        Offset(self.base.0 + u64::from(self.count))
    }

    /// With its head.
    pub fn size(self) -> u64 {
        Self::SIZE as u64 + u64::from(self.length)
    }

    /// Adds its records to others, if they are those that were written; the frame stands at `at`.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn read(self, file: &File, at: u64, records: &mut RecordBuffer) -> io::Result<Result<(), Corrupt>> {
        let fill = |bytes: &mut [u8]| file.read_exact_at(bytes, at + Self::SIZE as u64);
        records.extend(self.base..self.end(), self.length as usize, fill)
    }
}

/// The head that stands at this place of a segment's file.
///
/// # Errors
/// When the file cannot be read.
pub(super) fn head(file: &File, at: u64, id: u64) -> io::Result<Option<Frame>> {
    Ok(read_head(file, at)?.and_then(|bytes| Frame::of(&bytes, id)))
}

fn read_head(file: &File, at: u64) -> io::Result<Option<[u8; Frame::SIZE]>> {
    let mut bytes = [0; Frame::SIZE];
    match file.read_exact_at(&mut bytes, at) {
        Ok(()) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
    }
}

/// The head that a file begins with, of whatever segment.
///
/// # Errors
/// When the file cannot be read.
pub(super) fn first(file: &File) -> io::Result<Option<Frame>> {
    Ok(read_head(file, 0)?.and_then(|bytes| Frame::of_any(&bytes)))
}

/// The first head of the segment `id` that begins in `from..until` and is as wanted, and where.
///
/// # Errors
/// When the file cannot be read.
pub(super) fn find(
    file: &File,
    from: u64,
    until: u64,
    id: u64,
    wanted: impl Fn(Frame) -> bool,
) -> io::Result<Option<(u64, Frame)>> {
    let needle = id.to_le_bytes();
    let finder = memchr::memmem::Finder::new(&needle);
    let mut window = vec![0; WINDOW];
    let mut at = from;
    while at < until {
        let read = read_some(file, &mut window[..WINDOW.min((until - at) as usize)], at)?;
        for found in finder.find_iter(&window[..read]) {
            let place = at + found as u64;
            if let Some(frame) = head(file, place, id)?.filter(|frame| wanted(*frame)) {
                return Ok(Some((place, frame)));
            }
        }
        // An id that begins at the end of this window begins the next one.
        let Some(step) = read.checked_sub(needle.len() - 1).filter(|step| *step > 0) else { break };
        at += step as u64;
    }
    Ok(None)
}

fn read_some(file: &File, buffer: &mut [u8], at: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], at + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// What a file holds of a segment that was not closed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Scanned {
    /// Where its frames end.
    pub length: u64,
    /// The offset behind them.
    pub end: Offset,
    pub received: Timestamp,
    /// Where the last commit's frames begin, whose fsync may not have returned.
    pub last_commit: u64,
    /// Frames before others are damaged that were durable: no crash leaves that.
    pub damaged: bool,
}

/// Reads the frames of the segment `id`, which begins with the offset `base`, up to where a crash may have torn it. What is
/// not whole is passed over only where a later commit stands behind it, for which it had to be durable: it is damaged then.
///
/// # Errors
/// When the file cannot be read.
pub(super) fn scan(file: &File, id: u64, base: Offset) -> io::Result<Scanned> {
    let size = file.metadata()?.len();
    let mut scanned = Scanned { length: 0, end: base, received: Timestamp(0), last_commit: 0, damaged: false };
    let mut durable = None;
    let mut records = RecordBuffer::default();
    let mut at = 0;
    while at < size {
        let whole = match head(file, at, id)? {
            Some(frame) if frame.base >= scanned.end && at + frame.size() <= size => {
                records.clear();
                frame.read(file, at, &mut records)?.is_ok().then_some(frame)
            }
            _ => None,
        };
        let Some(frame) = whole else {
            let end = scanned.end;
            match find(file, at + 1, size, id, |frame| frame.durable > end && frame.base > end)? {
                Some((place, _)) => {
                    scanned.damaged = true;
                    at = place;
                    continue;
                }
                None => break,
            }
        };
        if durable != Some(frame.durable) {
            durable = Some(frame.durable);
            scanned.last_commit = at;
        }
        at += frame.size();
        scanned.length = at;
        scanned.end = frame.end();
        scanned.received = scanned.received.max(frame.received);
    }
    Ok(scanned)
}
