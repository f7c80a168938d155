//! The formats of objects: how an object is named, made of a sealed segment, and read.
//!
//! A segment holds compressed lines in any case ([`ndjson_zst`]), because it is written piece by piece. What it becomes when it
//! is put is the object's format. A format that is added has a file below `format/`, and a variant with its arms here; everything
//! else asks [`ObjectFormat`].
//!
//! All writers of a chain must write one format: of two at one chain offset only one wins because both write one name.

mod ndjson_zst;
#[cfg(test)]
mod tests;

use std::{
    cmp::Ordering,
    io::{self, BufRead, Read},
};

use anyhow::{Context, Result, bail};
use bytes::Bytes;

use super::{line::RecordLine, spool::segment::SealedSegment};
use crate::position::Offset;

/// A format of objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ObjectFormat {
    /// Lines, compressed by zstd: the segment itself.
    NdjsonZst,
}

impl ObjectFormat {
    /// The format that chains have. It is decided here and nowhere else.
    pub const OF_CHAINS: Self = Self::NdjsonZst;

    const ALL: [Self; 1] = [Self::NdjsonZst];

    /// What the names of its objects end in.
    pub fn suffix(self) -> &'static str {
        match self {
            Self::NdjsonZst => ".ndjson.zst",
        }
    }

    /// Whether an object is its segment's file, byte by byte, so that the file can be linked, or put as it is.
    pub fn is_the_segment(self) -> bool {
        match self {
            Self::NdjsonZst => true,
        }
    }

    /// Makes a segment's data an object; the same data always give the same one. Blocks.
    pub fn encode(self, data: Bytes) -> io::Result<Bytes> {
        match self {
            Self::NdjsonZst => Ok(data),
        }
    }

    /// The lines of an object, each with its end. Errors of `object` must come through as they are.
    pub fn lines<'a>(self, object: impl Read + 'a) -> io::Result<Box<dyn BufRead + 'a>> {
        match self {
            Self::NdjsonZst => Ok(Box::new(ndjson_zst::lines(object)?)),
        }
    }

    /// The format of an object of this name, and the name without its end.
    pub fn of_name(name: &str) -> Option<(Self, &str)> {
        Self::ALL.into_iter().find_map(|format| Some((format, name.strip_suffix(format.suffix())?)))
    }

    /// The object of a segment whose data match its header. Blocks.
    pub fn object_of(self, segment: &SealedSegment) -> io::Result<Bytes> {
        self.encode(segment.read()?.into())
    }

    /// The end (last offset + 1) of an object. Blocks for its decompression.
    ///
    /// # Errors
    /// When it cannot be read to its end, or holds no record.
    pub fn end(self, object: &[u8]) -> Result<Offset> {
        self.each_record(object, |_| Ok(()))
    }

    /// Compares the object that stands with `ours`, which was to go there, and gives its end. Blocks.
    ///
    /// # Errors
    /// When the object cannot be read, or both hold the same offset and the records differ: says where.
    pub fn compare(self, object: &[u8], ours: &[u8]) -> Result<Offset> {
        let mut ours = self.lines(ours)?.lines();
        let mut our_line = ours.next().transpose()?;
        self.each_record(object, |theirs| {
            while let Some(text) = &our_line {
                let our_record = RecordLine::parse(text.as_bytes())?;
                match our_record.offset.cmp(&theirs.offset) {
                    Ordering::Less => our_line = ours.next().transpose()?,
                    Ordering::Equal if our_record.same_record(theirs) => break,
                    Ordering::Equal => bail!("offset {} holds another record than the log", theirs.offset),
                    Ordering::Greater => break,
                }
            }
            Ok(())
        })
    }

    fn each_record(self, object: &[u8], mut each: impl FnMut(&RecordLine<'_>) -> Result<()>) -> Result<Offset> {
        let mut end = None;
        for line in self.lines(object)?.lines() {
            let line = line?;
            let record = RecordLine::parse(line.as_bytes())?;
            each(&record)?;
            end = Some(record.offset + 1);
        }
        end.map(Offset).context("it holds no record")
    }
}

/// The lines of a segment's data, each with its end.
pub fn segment_lines(data: &[u8]) -> io::Result<impl BufRead> {
    ndjson_zst::lines(data)
}
