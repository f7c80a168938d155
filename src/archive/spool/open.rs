//! A segment that is being written: lines are compressed and checksummed on their way into its file.

use std::{
    fs::File,
    io::{self, BufWriter, Write},
    path::Path,
    time::Instant,
};

use super::segment;
use crate::{
    files,
    position::{Offset, Timestamp},
};

/// zstd's fastest regular level: the archive's lines compress about tenfold with any, and the spool must keep up with
/// the log on a shared core.
const COMPRESSION_LEVEL: i32 = 1;

/// 128 KiB instead of the level's 512, which each partition's open segment holds in memory: lines that are alike stand near
/// to each other, and compress as well.
const WINDOW_LOG: u32 = 17;

/// An open segment. It is disposable: the log has its records.
pub struct OpenSegment {
    data: zstd::Encoder<'static, Checksummed>,
    pub first_offset: Offset,
    pub first_received: Timestamp,
    /// The last record; the writer keeps it, and what follows.
    pub last: Offset,
    pub records: u64,
    pub opened: Instant,
}

/// What is known of the data when they are whole.
pub struct Finished {
    /// Everything is written to it; it is not fsynced.
    pub file: File,
    /// Compressed.
    pub bytes: u64,
    pub crc32c: u32,
}

impl OpenSegment {
    /// Begins the file in the partition's `folder`, which is created when it is missing.
    pub fn create(
        folder: &Path,
        chain_offset: Offset,
        first_offset: Offset,
        first_received: Timestamp,
    ) -> io::Result<Self> {
        files::create_private_dir(folder)?;
        let file = files::create_private(&segment::open_path(folder, chain_offset))?;
        let sink = Checksummed { file: BufWriter::new(file), crc32c: 0, bytes: 0 };
        let mut data = zstd::Encoder::new(sink, COMPRESSION_LEVEL)?;
        data.window_log(WINDOW_LOG)?;
        // Four bytes in the frame by which every reader of the object notices a damage that still decompresses.
        data.include_checksum(true)?;
        Ok(Self { data, first_offset, first_received, last: first_offset, records: 0, opened: Instant::now() })
    }

    /// Appends whole lines.
    ///
    /// # Errors
    /// The file system's; nothing of the segment can be trusted afterwards.
    pub fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        self.data.write_all(lines)
    }

    /// What came out so far, compressed; what zstd still holds is not in it.
    pub fn bytes(&self) -> u64 {
        self.data.get_ref().bytes
    }

    /// Writes what is still held.
    pub fn finish(self) -> io::Result<Finished> {
        let Checksummed { file, crc32c, bytes } = self.data.finish()?;
        Ok(Finished { file: file.into_inner().map_err(io::IntoInnerError::into_error)?, bytes, crc32c })
    }
}

/// Counts and checksums what is written.
struct Checksummed {
    file: BufWriter<File>,
    crc32c: u32,
    bytes: u64,
}

impl Write for Checksummed {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let written = self.file.write(data)?;
        self.crc32c = crc32c::crc32c_append(self.crc32c, &data[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
