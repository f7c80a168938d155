//! `archive skip`: the operator's marker that records which retention removed may be missing from the archive (4.4).

use anyhow::bail;

use super::{ArchiveReader, readable};
use crate::{
    archive::upload::{Skip, opening::Heads as _, place},
    position::{Offset, Partition, Timestamp},
};

/// What was said, and where.
#[derive(Debug)]
pub struct Said {
    pub key: String,
    /// Where the partition's chain ends: from here to the marker's offset records may be missing.
    pub end: Offset,
}

/// Puts the marker beside the partition's head, for whichever worker holds the partition.
///
/// # Errors
/// When there is no such chain, when it reaches that far already, or when the store does not answer.
pub fn skip(reader: &ArchiveReader, partition: Partition, to: Offset) -> anyhow::Result<Said> {
    reader.block_on(async {
        let archive = reader.archive();
        let unreadable = |what: String| anyhow::anyhow!("the archive's chain cannot be read: {what}: restore it first");
        let head = reader.retry(|| readable(archive.head(partition))).await;
        let head = head.map_err(|error| reader.sentence(&error))?.map_err(unreadable)?;
        let last = reader.retry(|| readable(archive.find_end(partition))).await;
        let last = last.map_err(|error| reader.sentence(&error))?.map_err(unreadable)?;
        let end = head.map(|head| head.end).max(last.map(|(end, _)| end));
        let Some(end) = end else {
            bail!(
                "topic {} has no partition {partition} in {}: name one that `ingestd archive verify` shows",
                archive.topic(),
                place(reader.config())
            );
        };
        if to <= end {
            bail!("--to {to}: the archive of partition {partition} reaches offset {end} already: name one beyond it");
        }
        let word = Skip { version: Skip::VERSION, to, time: Timestamp::now().to_rfc3339() };
        let key = reader.retry(|| archive.write_skip(partition, &word)).await;
        let key = key.map_err(|error| reader.sentence(&error))?;
        Ok(Said { key: key.to_string(), end })
    })
}
