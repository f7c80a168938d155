//! Segments on disk: a run of records of one partition, stored as the archive object's final bytes.
//!
//! ```text
//! <data.dir>/spool/<topic>/<partition>/<x>.open   being written; disposable, the log has its records
//! <data.dir>/spool/<topic>/<partition>/<x>.zst    sealed: zstd-compressed NDJSON
//! <data.dir>/spool/<topic>/<partition>/<x>.json   its header; a segment is sealed when this file exists
//! ```
//! `x` (20 digits) is the chain position: the end of the object before. Sealing is: fsync the data, rename it, fsync and
//! rename the header, fsync the folder. So a header is never seen without its whole data.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::position::{Offset, Partition, Timestamp, TopicIdentity};

/// Raised when the header or the data change their meaning.
pub const VERSION: u32 = 1;

/// What the header file of a sealed segment says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentHeader {
    pub version: u32,
    pub topic: String,
    pub generation: u32,
    pub identity: TopicIdentity,
    /// `archive.url`: a segment goes to the archive that it was made for.
    pub archive: String,
    pub partition: Partition,
    /// The chain position: the end of the object before.
    pub x: Offset,
    /// The last record's offset + 1.
    pub end: Offset,
    pub first_offset: Offset,
    /// The first record's log timestamp: decides date and hour of the object's key.
    pub first_received: Timestamp,
    pub records: u64,
    /// Size of the data, compressed.
    pub bytes: u64,
    /// CRC32C of the data.
    pub crc32c: u32,
}

/// A segment that only a confirmed PUT may remove.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedSegment {
    pub header: SegmentHeader,
    /// The data; the header stands beside it.
    pub path: PathBuf,
}

impl SealedSegment {
    pub fn x(&self) -> Offset {
        self.header.x
    }

    pub fn end(&self) -> Offset {
        self.header.end
    }

    /// The whole data, compared with the header's size and checksum. Blocks.
    ///
    /// # Errors
    /// `InvalidData` when they differ, else the file system's.
    pub fn read(&self) -> io::Result<Vec<u8>> {
        let data = fs::read(&self.path)?;
        if data.len() as u64 != self.header.bytes || crc32c::crc32c(&data) != self.header.crc32c {
            let what = format!("{} does not match the checksum in its header", self.path.display());
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        Ok(data)
    }

    /// Removes header and data, the header first: data without a header is no segment. Blocks.
    pub fn remove(&self) -> io::Result<()> {
        ignore_missing(fs::remove_file(header_path(&self.path)))?;
        ignore_missing(fs::remove_file(&self.path))
    }

    /// Moves both files to `folder`, keeping their place in it recognisable. Blocks.
    pub fn move_to(&self, folder: &Path) -> io::Result<PathBuf> {
        let header = &self.header;
        let folder = folder.join(topic_folder(&header.topic, header.generation)).join(header.partition.to_string());
        create_private_dir(&folder)?;
        let target = folder.join(self.path.file_name().unwrap_or_default());
        ignore_missing(fs::rename(&self.path, &target))?;
        ignore_missing(fs::rename(header_path(&self.path), header_path(&target)))?;
        sync_dir(&folder)?;
        Ok(target)
    }
}

/// The folder of a topic in the spool: the topic with its generation, as in the archive.
pub fn topic_folder(topic: &str, generation: u32) -> String {
    match generation {
        0 => topic.to_owned(),
        generation => format!("{topic}@{generation}"),
    }
}

pub(super) fn open_path(folder: &Path, x: Offset) -> PathBuf {
    folder.join(format!("{:020}.open", x.0))
}

pub(super) fn sealed_path(folder: &Path, x: Offset) -> PathBuf {
    folder.join(format!("{:020}.zst", x.0))
}

pub(super) fn header_path(data: &Path) -> PathBuf {
    data.with_extension("json")
}

/// Makes a written and closed `.open` file a sealed segment. Blocks for its fsyncs.
pub(super) fn seal(folder: &Path, header: SegmentHeader, data: &File) -> io::Result<SealedSegment> {
    data.sync_all()?;
    let path = sealed_path(folder, header.x);
    fs::rename(open_path(folder, header.x), &path)?;
    let staged = path.with_extension("tmp");
    let mut file = create_private(&staged)?;
    file.write_all(&serde_json::to_vec_pretty(&header)?)?;
    file.sync_all()?;
    fs::rename(&staged, header_path(&path))?;
    sync_dir(folder)?;
    Ok(SealedSegment { header, path })
}

/// What a partition's folder holds: the sealed segments in the order of their positions. Leftovers of an interrupted
/// write or seal are removed, since the log has their records. Blocks.
pub fn scan(folder: &Path) -> io::Result<Vec<SealedSegment>> {
    let mut segments = Vec::new();
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(segments),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let path = entry?.path();
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("json") => match read_header(&path) {
                Ok(header) => segments.push(SealedSegment { header, path: path.with_extension("zst") }),
                Err(error) => {
                    tracing::error!(path = %path.display(), %error, "segment header unreadable, setting the segment aside");
                    set_aside(&path)?;
                }
            },
            Some("zst") if header_path(&path).exists() => {}
            // Set aside with its header a moment ago, it is missing.
            Some("zst" | "open" | "tmp") => ignore_missing(fs::remove_file(&path))?,
            _ => {}
        }
    }
    segments.sort_by_key(SealedSegment::x);
    Ok(segments)
}

/// Takes an unreadable header, and its data, out of the scan's sight without deleting anything.
fn set_aside(header: &Path) -> io::Result<()> {
    let data = header.with_extension("zst");
    ignore_missing(fs::rename(&data, data.with_extension("zst-damaged")))?;
    fs::rename(header, header.with_extension("json-damaged"))
}

fn read_header(path: &Path) -> anyhow::Result<SegmentHeader> {
    let header: SegmentHeader = serde_json::from_slice(&fs::read(path)?)?;
    anyhow::ensure!(header.version <= VERSION, "it has format {}, this release reads up to {VERSION}", header.version);
    Ok(header)
}

fn ignore_missing(outcome: io::Result<()>) -> io::Result<()> {
    match outcome {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        outcome => outcome,
    }
}

/// A new file that only its owner reads.
pub(super) fn create_private(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)
}

/// A folder, and those above it, that only their owner enters.
pub fn create_private_dir(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

fn sync_dir(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// A sealed segment that covers `[x, end)`, without files.
#[cfg(test)]
pub fn sealed_for_tests(x: u64, end: u64) -> SealedSegment {
    let header = SegmentHeader {
        version: VERSION,
        topic: "t".into(),
        generation: 0,
        identity: TopicIdentity("id".into()),
        archive: "file:".into(),
        partition: Partition(0),
        x: Offset(x),
        end: Offset(end),
        first_offset: Offset(x),
        first_received: Timestamp(0),
        records: end - x,
        bytes: 1,
        crc32c: 0,
    };
    SealedSegment { header, path: format!("{x:020}.zst").into() }
}
