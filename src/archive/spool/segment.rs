//! Segments on disk: a run of records of one partition, stored as the archive object's final bytes.
//!
//! ```text
//! <data.dir>/spool/<topic>/<partition>/<chain offset>.open   being written; disposable, the log has its records
//! <data.dir>/spool/<topic>/<partition>/<chain offset>.zst    sealed: zstd-compressed NDJSON
//! <data.dir>/spool/<topic>/<partition>/<chain offset>.json   its header; a segment is sealed when this file exists
//! ```
//! The chain offset (20 digits) is the end of the object before. Sealing is: fsync the data, rename it, fsync and
//! rename the header, fsync the folder. So a header is never seen without its whole data.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::{
    files::{create_private, create_private_dir, sync_dir},
    position::{Offset, Partition, Timestamp, TopicIdentity, TopicName},
};

/// Raised when the header or the data change their meaning.
pub const VERSION: u32 = 1;
/// Bytes of a file that are checked at once.
const CHECK_PIECE: usize = 256 << 10;

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
    /// The end of the object before.
    #[serde(rename = "x")]
    pub chain_offset: Offset,
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

impl SegmentHeader {
    /// The topic's folder in the spool and in the archive.
    pub fn topic_name(&self) -> TopicName<'_> {
        TopicName { topic: &self.topic, generation: self.generation }
    }
}

/// A segment that only a confirmed PUT may remove.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedSegment {
    pub header: SegmentHeader,
    /// The data; the header stands beside it.
    pub path: PathBuf,
}

impl SealedSegment {
    pub fn chain_offset(&self) -> Offset {
        self.header.chain_offset
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
        self.compare(data.len() as u64, crc32c::crc32c(&data))?;
        Ok(data)
    }

    /// Compares the data with the header's size and checksum as [`Self::read`] does, a piece at a time, and makes them durable:
    /// they were where they were sealed, but may have been copied here. Blocks.
    pub fn check(&self) -> io::Result<()> {
        let mut file = File::open(&self.path)?;
        let (mut bytes, mut crc32c) = (0, 0);
        let mut piece = vec![0; CHECK_PIECE];
        loop {
            match file.read(&mut piece) {
                Ok(0) => break,
                Ok(read) => {
                    bytes += read as u64;
                    crc32c = crc32c::crc32c_append(crc32c, &piece[..read]);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.compare(bytes, crc32c)?;
        file.sync_all()
    }

    fn compare(&self, bytes: u64, crc32c: u32) -> io::Result<()> {
        if bytes == self.header.bytes && crc32c == self.header.crc32c {
            return Ok(());
        }
        let what = format!("{} does not match the checksum in its header", self.path.display());
        Err(io::Error::new(io::ErrorKind::InvalidData, what))
    }

    /// Removes header and data, the header first: data without a header is no segment. Blocks.
    pub fn remove(&self) -> io::Result<()> {
        ignore_missing(fs::remove_file(header_path(&self.path)))?;
        ignore_missing(fs::remove_file(&self.path))
    }
}

/// Moves a segment's data and header into `folder`, under a name that is free there. Blocks.
pub fn set_aside(data: &Path, folder: &Path) -> io::Result<PathBuf> {
    create_private_dir(folder)?;
    let stem = data.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let names = std::iter::once(stem.clone()).chain((1u32..).map(|n| format!("{stem}-{n}")));
    let target = names
        .map(|name| folder.join(format!("{name}.zst")))
        .find(|target| !target.exists() && !header_path(target).exists())
        .ok_or(io::ErrorKind::AlreadyExists)?;
    ignore_missing(fs::rename(data, &target))?;
    ignore_missing(fs::rename(header_path(data), header_path(&target)))?;
    sync_dir(folder)?;
    Ok(target)
}

pub(super) fn open_path(folder: &Path, chain_offset: Offset) -> PathBuf {
    folder.join(format!("{:020}.open", chain_offset.0))
}

pub(super) fn sealed_path(folder: &Path, chain_offset: Offset) -> PathBuf {
    folder.join(format!("{:020}.zst", chain_offset.0))
}

pub(super) fn header_path(data: &Path) -> PathBuf {
    data.with_extension("json")
}

/// Makes a written and closed `.open` file a sealed segment. Blocks for its fsyncs.
pub(super) fn seal(folder: &Path, header: SegmentHeader, data: &File) -> io::Result<SealedSegment> {
    data.sync_all()?;
    let path = sealed_path(folder, header.chain_offset);
    fs::rename(open_path(folder, header.chain_offset), &path)?;
    let staged = path.with_extension("tmp");
    let mut file = create_private(&staged)?;
    file.write_all(&encode_header(&header)?)?;
    file.sync_all()?;
    fs::rename(&staged, header_path(&path))?;
    sync_dir(folder)?;
    Ok(SealedSegment { header, path })
}

/// What a partition's folder holds.
#[derive(Debug, Default)]
pub struct Scan {
    /// In the order of their positions.
    pub segments: Vec<SealedSegment>,
    /// To be set aside: what stands in a file whose header cannot be read is not known.
    pub unreadable: Vec<UnreadableHeader>,
}

#[derive(Debug)]
pub struct UnreadableHeader {
    /// The data.
    pub path: PathBuf,
    pub why: String,
    /// It is not damaged, but of a newer release.
    pub newer: bool,
}

/// Looks through a partition's folder. Leftovers of an interrupted write or seal are removed, since the log has their
/// records. Blocks.
///
/// # Errors
/// The file system's, and for a header of a newer release, whose segment must wait for that.
pub fn scan(folder: &Path) -> io::Result<Scan> {
    if !folder.try_exists()? {
        return Ok(Scan::default());
    }
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("zst") if header_path(&path).exists() => {}
            // Set aside with its header a moment ago, it is missing.
            Some("zst" | "open" | "tmp") => ignore_missing(fs::remove_file(&path))?,
            _ => {}
        }
    }
    let found = sealed_in(folder)?;
    match found.unreadable.iter().find(|unreadable| unreadable.newer) {
        Some(newer) => Err(io::Error::other(format!("{}: {}", newer.path.display(), newer.why))),
        None => Ok(found),
    }
}

/// The same, and changes nothing. Blocks.
pub fn sealed_in(folder: &Path) -> io::Result<Scan> {
    let mut found = Scan::default();
    for entry in fs::read_dir(folder)? {
        let header = entry?.path();
        if header.extension().is_some_and(|extension| extension == "json") {
            let path = header.with_extension("zst");
            match read_header(&header) {
                Ok(header) => found.segments.push(SealedSegment { header, path }),
                Err(error) => {
                    let newer = matches!(error, HeaderError::Newer(_));
                    found.unreadable.push(UnreadableHeader { path, why: error.to_string(), newer });
                }
            }
        }
    }
    found.segments.sort_by_key(SealedSegment::chain_offset);
    Ok(found)
}

/// Why a header cannot be used.
#[derive(Debug, thiserror::Error)]
enum HeaderError {
    #[error("its header has format {0}, and this release reads up to {VERSION}: use the release that wrote it")]
    Newer(u32),
    #[error("its header does not match its checksum")]
    Checksum,
    #[error("its header is of {0}, which is not where it stands")]
    Misplaced(String),
    #[error("its header cannot be read: {0}")]
    Unreadable(#[from] serde_json::Error),
    #[error("its header cannot be read: {0}")]
    Io(#[from] io::Error),
}

/// `{"crc32c":…,"header":{…}}`, the checksum being that of the header's bytes as they stand.
#[derive(Serialize, Deserialize)]
struct HeaderFile {
    crc32c: u32,
    header: Box<RawValue>,
}

pub(crate) fn encode_header(header: &SegmentHeader) -> serde_json::Result<Vec<u8>> {
    let header = serde_json::value::to_raw_value(header)?;
    serde_json::to_vec(&HeaderFile { crc32c: crc32c::crc32c(header.get().as_bytes()), header })
}

fn read_header(path: &Path) -> Result<SegmentHeader, HeaderError> {
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    let HeaderFile { crc32c, header } = serde_json::from_slice(&fs::read(path)?)?;
    if crc32c::crc32c(header.get().as_bytes()) != crc32c {
        return Err(HeaderError::Checksum);
    }
    let Version { version } = serde_json::from_str(header.get())?;
    if version > VERSION {
        return Err(HeaderError::Newer(version));
    }
    let header: SegmentHeader = serde_json::from_str(header.get())?;
    // A file that was moved by hand would go into another partition's chain.
    let folder = format!("{}/{}", header.topic_name(), header.partition);
    let stands_there = path.parent().is_some_and(|parent| parent.ends_with(&folder))
        && path.file_stem().is_some_and(|stem| *stem == *format!("{:020}", header.chain_offset.0));
    if !stands_there {
        return Err(HeaderError::Misplaced(format!("{folder}/{:020}", header.chain_offset.0)));
    }
    Ok(header)
}

fn ignore_missing(outcome: io::Result<()>) -> io::Result<()> {
    match outcome {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        outcome => outcome,
    }
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
        chain_offset: Offset(x),
        end: Offset(end),
        first_offset: Offset(x),
        first_received: Timestamp(0),
        records: end - x,
        bytes: 1,
        crc32c: 0,
    };
    SealedSegment { header, path: format!("{x:020}.zst").into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `<dir>/t/0`, with a sealed segment `[x, x + 2)` whose header is changed on its way.
    fn folder_with(dir: &Path, x: u64, change: impl Fn(Vec<u8>) -> Vec<u8>) -> PathBuf {
        let folder = dir.join("t/0");
        create_private_dir(&folder).unwrap();
        let mut header = sealed_for_tests(x, x + 2).header;
        (header.bytes, header.crc32c) = (4, crc32c::crc32c(b"data"));
        let path = sealed_path(&folder, header.chain_offset);
        fs::write(&path, b"data").unwrap();
        fs::write(header_path(&path), change(encode_header(&header).unwrap())).unwrap();
        folder
    }

    fn replace(header: Vec<u8>, from: &str, to: &str) -> Vec<u8> {
        let text = String::from_utf8(header).unwrap();
        assert!(text.contains(from), "{text}");
        text.replace(from, to).into_bytes()
    }

    #[test]
    fn a_sealed_segment_is_found_as_it_was_written_and_leftovers_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let folder = folder_with(dir.path(), 10, |header| header);
        for leftover in ["00000000000000000012.open", "00000000000000000012.zst", "00000000000000000012.tmp"] {
            fs::write(folder.join(leftover), b"half").unwrap();
        }
        let Scan { segments, unreadable } = scan(&folder).unwrap();
        assert_eq!((segments.len(), unreadable.len()), (1, 0));
        assert_eq!((segments[0].chain_offset(), segments[0].read().unwrap()), (Offset(10), b"data".to_vec()));
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 2);
    }

    #[test]
    fn a_byte_that_changed_or_is_missing_in_the_data_is_noticed_however_it_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let folder = folder_with(dir.path(), 10, |header| header);
        let mut segment = scan(&folder).unwrap().segments.remove(0);
        let long: Vec<u8> = (0..CHECK_PIECE * 2 + 1).map(|n| n as u8).collect();
        (segment.header.bytes, segment.header.crc32c) = (long.len() as u64, crc32c::crc32c(&long));
        let mut last_changed = long.clone();
        *last_changed.last_mut().unwrap() ^= 1;
        for (data, whole) in [(&long[..], true), (&last_changed, false), (&long[1..], false), (b"", false)] {
            fs::write(&segment.path, data).unwrap();
            assert_eq!(segment.check().is_ok(), whole);
            assert_eq!(segment.read().is_ok(), whole);
        }
        fs::write(&segment.path, &long).unwrap();
        segment.header.bytes -= 1;
        assert!(segment.check().is_err() && segment.read().is_err());
    }

    #[test]
    fn a_digit_that_changed_in_a_header_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let folder = folder_with(dir.path(), 10, |header| replace(header, "\"end\":12", "\"end\":13"));
        let found = scan(&folder).unwrap();
        assert!(found.segments.is_empty());
        assert!(found.unreadable[0].why.contains("checksum"), "{found:?}");
    }

    #[test]
    fn a_segment_that_was_moved_to_another_partition_is_not_taken_for_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let folder = folder_with(dir.path(), 10, |header| header);
        let other = dir.path().join("t/1");
        fs::rename(folder, &other).unwrap();
        assert!(scan(&other).unwrap().unreadable[0].why.contains("of t/0/"));
    }

    #[test]
    fn a_header_of_a_newer_release_waits_for_that_release() {
        let dir = tempfile::tempdir().unwrap();
        let folder = folder_with(dir.path(), 10, |_| {
            let header = RawValue::from_string("{\"version\":2,\"unknown\":true}".to_owned()).unwrap();
            serde_json::to_vec(&HeaderFile { crc32c: crc32c::crc32c(header.get().as_bytes()), header }).unwrap()
        });
        assert!(scan(&folder).unwrap_err().to_string().contains("format 2"));
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 2);
    }

    #[test]
    fn what_is_set_aside_replaces_nothing_that_was_set_aside_before() {
        let dir = tempfile::tempdir().unwrap();
        let orphaned = dir.path().join("orphaned");
        for _ in 0..2 {
            let folder = folder_with(dir.path(), 10, |header| header);
            set_aside(&sealed_path(&folder, Offset(10)), &orphaned).unwrap();
        }
        let mut names: Vec<_> =
            fs::read_dir(&orphaned).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        let x = "00000000000000000010";
        assert_eq!(names, [format!("{x}-1.json"), format!("{x}-1.zst"), format!("{x}.json"), format!("{x}.zst")]);
    }
}
