//! What a start finds of the segments: where the last one ends, and files that are none's.

use std::{
    collections::VecDeque,
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, FileExt},
    path::Path,
};

use anyhow::{Context, bail};
use rusqlite::Connection;

use super::{
    frame, schema,
    segments::{Segment, sync_folder},
};
use crate::position::Offset;

/// Finds how far a segment goes that was not closed, and makes that durable: what a killed process has written stands in
/// the kernel's memory, and may never have come to the disk.
pub(super) fn recover(segment: &mut Segment, folder: &Path) -> io::Result<()> {
    let file = match OpenOptions::new().read(true).write(true).open(segment.path(folder)) {
        Ok(file) => file,
        // Whether records are missing, the database says.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let scanned = frame::scan(&file, segment.id, segment.base)?;
    if scanned.damaged {
        tracing::error!(file = %segment.path(folder).display(), "records of the embedded log are damaged");
    }
    let mut bytes = vec![0; (scanned.length - scanned.last_commit) as usize];
    file.read_exact_at(&mut bytes, scanned.last_commit)?;
    // An fsync that failed before has told the one who asked then; what is written again is told of again.
    file.write_all_at(&bytes, scanned.last_commit)?;
    file.sync_all()?;
    sync_folder(folder)?;
    (segment.length, segment.end, segment.received) = (scanned.length, scanned.end, scanned.received);
    Ok(())
}

/// How far the segments go, of a log that nobody writes.
///
/// # Errors
/// When they cannot be read.
pub(super) fn end_at_rest(database: &Connection, folder: &Path) -> anyhow::Result<Offset> {
    let Some((last, is_closed)) = schema::segments(database)?.pop() else { return Ok(Offset(0)) };
    if is_closed {
        return Ok(last.end);
    }
    match File::open(last.path(folder)) {
        Ok(file) => Ok(frame::scan(&file, last.id, last.base)?.end),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(last.base),
        Err(error) => Err(error.into()),
    }
}

/// Files of the folder that are no segment's, and the number that none has. Makes the folder.
pub(super) fn unlisted(
    folder: &Path,
    listed: &VecDeque<Segment>,
    next: Offset,
    abandoned: &[u64],
) -> anyhow::Result<(Vec<u32>, u32)> {
    match fs::DirBuilder::new().mode(0o700).create(folder) {
        Ok(()) => folder.parent().map_or(Ok(()), sync_folder)?,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error).with_context(|| format!("cannot make {}", folder.display())),
    }
    let (mut free, mut highest) = (Vec::new(), 0);
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        let Some(number) = number_of(&path) else { continue };
        highest = highest.max(number);
        if listed.iter().any(|segment| segment.number == number) {
            continue;
        }
        let first = File::open(&path).and_then(|file| frame::first(&file));
        let first = first.with_context(|| format!("cannot read {}", path.display()))?;
        if first.is_some_and(|frame| frame.base >= next && !abandoned.contains(&frame.id)) {
            bail!(
                "{} holds records from offset {} on, and the log's database ends at {next}: it is an older copy or a new one, so \
                 put the one back that belongs to the folder, or move the folder away",
                path.display(),
                first.map_or(next, |frame| frame.base)
            );
        }
        free.push(number);
    }
    Ok((free, listed.iter().map(|segment| segment.number).fold(highest, u32::max) + 1))
}

/// The number of a segment's file.
fn number_of(path: &Path) -> Option<u32> {
    path.file_name()?.to_str()?.strip_suffix(".segment")?.parse().ok()
}
