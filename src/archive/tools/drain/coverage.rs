//! Whether the archive has a segment's records: each of them, equal.

use std::io::BufRead as _;

use super::Stays;
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

/// Reads the objects that can hold the segment's offsets, line by line beside it. Of the segment's records, gives the first that
/// no object holds, and the offset after the last; none where all are there.
///
/// # Errors
/// When an offset holds another record there, or something cannot be read: says what.
pub(super) fn missing(
    reader: &ArchiveReader,
    objects: &[ListedObject],
    segment: &SealedSegment,
    data: &[u8],
) -> Result<Option<(Offset, Offset)>, Stays> {
    let unreadable = |error: anyhow::Error| Stays::Because(format!("{}: {error:#}", segment.path.display()));
    let mut ours = segment_lines(data).map_err(|error| unreadable(error.into()))?.lines();
    let mut next = move || ours.next().transpose().map_err(|error| unreadable(error.into()));
    let mut our_line = next()?;
    let mut missing: Option<(Offset, Offset)> = None;
    let mut miss = |offset: Offset| missing = Some((missing.map_or(offset, |(first, _)| first), offset.next()));
    for (at, object) in objects.iter().enumerate() {
        let ends_before = objects.get(at + 1).is_some_and(|next| next.name.chain_offset <= segment.chain_offset());
        if object.name.chain_offset >= segment.end() || ends_before {
            continue;
        }
        records(reader, object, |theirs| {
            while let Some(line) = &our_line {
                let our_record = RecordLine::parse(line.as_bytes()).map_err(unreadable)?;
                let offset = our_record.offset;
                if offset > theirs.offset {
                    break;
                }
                let is_there = offset == theirs.offset;
                if is_there && !our_record.same_record(&theirs) {
                    let key = reader.key(object);
                    return Err(Stays::Because(format!("{key}: offset {offset} holds another record than it")));
                }
                our_line = next()?;
                if is_there {
                    break;
                }
                miss(Offset(offset));
            }
            Ok(())
        })?;
    }
    while let Some(line) = our_line {
        miss(Offset(RecordLine::parse(line.as_bytes()).map_err(unreadable)?.offset));
        our_line = next()?;
    }
    Ok(missing)
}

/// The end of an object.
pub(super) fn end_of(reader: &ArchiveReader, object: &ListedObject) -> Result<Offset, Stays> {
    let mut end = None;
    records(reader, object, |record| {
        end = Some(Offset(record.offset).next());
        Ok(())
    })?;
    end.ok_or_else(|| Stays::Because(format!("{}: it holds no record", reader.key(object))))
}

fn records(
    reader: &ArchiveReader,
    object: &ListedObject,
    mut each: impl FnMut(RecordLine<'_>) -> Result<(), Stays>,
) -> Result<(), Stays> {
    let unreadable = |error: anyhow::Error| Stays::Because(format!("{}: {error:#}", reader.key(object)));
    match reader.each_line(object, |line| each(RecordLine::parse(line).map_err(unreadable)?))? {
        Ok(()) => Ok(()),
        Err(ReadError::Store(error)) => Err(reader.sentence(&error).into()),
        Err(error) => Err(unreadable(error.into())),
    }
}
