//! Whether the archive has a segment's records: each of them, equal.

use std::io::BufRead as _;

use crate::{
    archive::{
        format::segment_lines,
        line::RecordLine,
        spool::segment::SealedSegment,
        tools::{ArchiveReader, reader::ReadError},
        upload::objects::ListedObject,
    },
    position::Offset,
};

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Coverage {
    Whole,
    /// Of the segment's records, the first that no object holds, and the offset after the last.
    Missing {
        first: Offset,
        end: Offset,
    },
    /// An offset holds another record there, or an object cannot be read.
    Differs(String),
}

/// Reads the objects that can hold the segment's offsets, line by line beside it.
///
/// # Errors
/// When the store does not answer.
pub(super) fn coverage(
    reader: &ArchiveReader,
    objects: &[ListedObject],
    segment: &SealedSegment,
    data: &[u8],
) -> anyhow::Result<Coverage> {
    let mut ours = match segment_lines(data) {
        Ok(lines) => lines.lines().peekable(),
        Err(error) => return Ok(Coverage::Differs(format!("{}: {error}", segment.path.display()))),
    };
    let mut missing: Option<(Offset, Offset)> = None;
    let mut miss = |offset: Offset| missing = Some((missing.map_or(offset, |(first, _)| first), offset.next()));
    for (at, object) in objects.iter().enumerate() {
        let ends_before = objects.get(at + 1).is_some_and(|next| next.name.chain_offset <= segment.chain_offset());
        if object.name.chain_offset >= segment.end() || ends_before {
            continue;
        }
        let key = object.name.key(reader.archive().topic());
        let mut theirs = reader.lines(object)?;
        loop {
            let line = match theirs.next_line() {
                Ok(Some(line)) => line,
                Ok(None) => break,
                Err(ReadError::Store(error)) => return Err(reader.sentence(&error)),
                Err(error) => return Ok(Coverage::Differs(format!("{key}: {error}"))),
            };
            let theirs = match RecordLine::parse(line) {
                Ok(theirs) => theirs,
                Err(error) => return Ok(Coverage::Differs(format!("{key}: {error:#}"))),
            };
            loop {
                let our_line = match ours.peek() {
                    None => break,
                    Some(Ok(line)) => line,
                    Some(Err(error)) => return Ok(Coverage::Differs(format!("{}: {error}", segment.path.display()))),
                };
                let our_record = match RecordLine::parse(our_line.as_bytes()) {
                    Ok(record) => record,
                    Err(error) => return Ok(Coverage::Differs(format!("{}: {error:#}", segment.path.display()))),
                };
                let offset = our_record.offset;
                if offset > theirs.offset {
                    break;
                }
                if offset == theirs.offset {
                    if !our_record.same_record(&theirs) {
                        return Ok(Coverage::Differs(format!("{key}: offset {offset} holds another record than it")));
                    }
                    ours.next();
                    break;
                }
                miss(Offset(offset));
                ours.next();
            }
        }
    }
    for line in ours {
        match line.map_err(anyhow::Error::from).and_then(|line| Ok(RecordLine::parse(line.as_bytes())?.offset)) {
            Ok(offset) => miss(Offset(offset)),
            Err(error) => return Ok(Coverage::Differs(format!("{}: {error:#}", segment.path.display()))),
        }
    }
    Ok(missing.map_or(Coverage::Whole, |(first, end)| Coverage::Missing { first, end }))
}

/// The end of an object, or why it cannot be told.
///
/// # Errors
/// When the store does not answer.
pub(super) fn end_of(reader: &ArchiveReader, object: &ListedObject) -> anyhow::Result<Result<Offset, String>> {
    let key = object.name.key(reader.archive().topic());
    let mut lines = reader.lines(object)?;
    let mut end = None;
    loop {
        match lines.next_line() {
            Ok(Some(line)) => match RecordLine::parse(line) {
                Ok(line) => end = Some(Offset(line.offset).next()),
                Err(error) => return Ok(Err(format!("{key}: {error:#}"))),
            },
            Ok(None) => return Ok(end.ok_or_else(|| format!("{key}: it holds no record"))),
            Err(ReadError::Store(error)) => return Err(reader.sentence(&error)),
            Err(error) => return Ok(Err(format!("{key}: {error}"))),
        }
    }
}
