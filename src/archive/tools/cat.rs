//! `archive cat`: the lines as they stand, in the order of the chains.

use std::io::{self, Write};

use super::{ArchiveReader, Selection, reader::ReadError};
use crate::archive::line::Line;

/// How it ended.
#[derive(Debug, Default)]
pub struct Printed {
    pub lines: u64,
    /// What could not be read, a sentence each object.
    pub damaged: Vec<String>,
}

/// Why it ended before its end.
#[derive(Debug, thiserror::Error)]
pub enum CatError {
    #[error("stdout cannot be written: {0}")]
    Output(#[from] io::Error),
    #[error(transparent)]
    Store(#[from] anyhow::Error),
}

/// Writes the selected lines, and goes on behind what is damaged. Blocks.
///
/// # Errors
/// When the store does not answer, or `out` takes no more (a reader that has gone is `BrokenPipe`).
pub fn cat(reader: &ArchiveReader, selection: &Selection, out: &mut impl Write) -> Result<Printed, CatError> {
    let objects = reader.ask(|| reader.archive.list_objects())?.objects;
    let mut printed = Printed::default();
    for (at, object) in objects.iter().enumerate() {
        if !selection.may_hold(object, objects.get(at + 1)) {
            continue;
        }
        let key = reader.key(object);
        let mut lines = reader.lines(object)?;
        let mut unreadable = 0;
        loop {
            match lines.next_line() {
                Ok(None) => break,
                Ok(Some(text)) => {
                    if selection.is_everything() || is_selected(selection, text, &mut unreadable) {
                        out.write_all(text)?;
                        out.write_all(b"\n")?;
                        printed.lines += 1;
                    }
                }
                // Expired since it was listed: as if we had come later.
                Err(ReadError::Gone) => break,
                Err(ReadError::Damaged(why)) => {
                    printed.damaged.push(format!("{key}: {why}"));
                    break;
                }
                Err(ReadError::Store(error)) => return Err(reader.sentence(&error).into()),
            }
        }
        if unreadable > 0 {
            printed
                .damaged
                .push(format!("{key}: {unreadable} lines cannot be read, so nobody knows whether they belong"));
        }
    }
    out.flush()?;
    Ok(printed)
}

fn is_selected(selection: &Selection, text: &[u8], unreadable: &mut u64) -> bool {
    match Line::parse(text) {
        Ok(line) => selection.has_record(line.offset, line.received),
        Err(_) => {
            *unreadable += 1;
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        archive::tools::{Offsets, tests::MadeArchive},
        position::Offset,
    };

    fn offsets(reader: &ArchiveReader, selection: &Selection) -> (Vec<u64>, Printed) {
        let mut out = Vec::new();
        let printed = cat(reader, selection, &mut out).unwrap();
        let lines = String::from_utf8(out).unwrap();
        let offset = |text: &str| Line::parse(text.as_bytes()).unwrap().offset.0;
        (lines.lines().map(offset).collect(), printed)
    }

    #[test]
    fn lines_come_in_the_order_of_the_chains_and_of_the_partitions_asked_for() {
        let archive = MadeArchive::new();
        // The later one of the chain has the earlier date.
        archive.object(0, 0, &[(0, "2026-11-24T00:00:00Z"), (1, "2026-11-24T00:00:00Z")]);
        archive.object(0, 2, &[(2, "2026-11-23T08:00:00Z")]);
        archive.object(1, 7, &[(7, "2026-11-23T08:00:00Z")]);
        assert_eq!(offsets(&archive.reader(), &Selection::default()).0, [0, 1, 2, 7]);
        let second = Selection { partitions: vec![crate::position::Partition(1)], ..Selection::default() };
        assert_eq!(offsets(&archive.reader(), &second).0, [7]);
    }

    #[test]
    fn times_select_records_and_not_objects() {
        let archive = MadeArchive::new();
        archive.object(0, 0, &[(0, "2026-11-23T08:00:00Z"), (1, "2026-11-23T11:30:00Z"), (2, "2026-11-23T07:00:00Z")]);
        archive.object(
            0,
            3,
            &[(3, "2026-11-23T09:00:00Z"), (4, "2026-11-23T11:59:59.999Z"), (5, "2026-11-23T12:00:00Z")],
        );
        let time = |text: &str| Some(text.parse().unwrap());
        let (from, to) = (time("2026-11-23T11:30:00Z"), time("2026-11-23T12:00:00Z"));
        assert_eq!(offsets(&archive.reader(), &Selection { from, to, ..Selection::default() }).0, [1, 4]);
        assert_eq!(offsets(&archive.reader(), &Selection { to: from, ..Selection::default() }).0, [0, 2, 3]);
        let part = Offsets { from: Offset(2), to: Some(Offset(5)) };
        assert_eq!(offsets(&archive.reader(), &Selection { offsets: part, ..Selection::default() }).0, [2, 3, 4]);
    }

    #[test]
    fn what_is_damaged_is_named_and_the_rest_is_printed() {
        let archive = MadeArchive::new();
        let cut = archive.object(0, 0, &[(0, "2026-11-23T08:00:00Z")]);
        archive.object(0, 1, &[(1, "2026-11-23T08:00:00Z")]);
        let bytes = std::fs::read(&cut).unwrap();
        std::fs::write(&cut, &bytes[..bytes.len() - 3]).unwrap();
        let (offsets, printed) = offsets(&archive.reader(), &Selection::default());
        assert_eq!(offsets.last(), Some(&1));
        assert!(printed.damaged.len() == 1 && printed.damaged[0].contains("0-00000000000000000000"), "{printed:?}");
    }

    #[test]
    fn an_object_of_many_pieces_is_read_whole() {
        let archive = MadeArchive::new();
        let lines: Vec<String> = (0..100)
            .map(|offset| {
                // Random, so that the object is larger than a piece.
                let raw: String = std::iter::repeat_with(fastrand::alphanumeric).take(120_000).collect();
                format!("{{\"offset\":{offset},\"received\":\"2026-11-23T08:00:00Z\",\"event\":\"{raw}\"}}")
            })
            .collect();
        let path = archive.write(0, 0, "2026-11-23T08", &(lines.join("\n") + "\n"));
        assert!(std::fs::metadata(path).unwrap().len() > 8 << 20);
        let mut out = Vec::new();
        cat(&archive.reader(), &Selection::default(), &mut out).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), lines.join("\n") + "\n");
    }
}
