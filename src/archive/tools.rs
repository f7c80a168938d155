//! The archive as its operators meet it: what stands there, its lines, whether its chains are whole, its records in a
//! topic again, and the two things that only an operator can decide or do: to leave a gap, and to send what a retired
//! machine kept.
//!
//! Nothing here takes part in the daemon. All of it is safe beside running ones: reading changes nothing, and what is
//! written goes through the same create-only PUTs under the same rules (section 4 of the design).

pub mod conform;
pub mod drain;
pub mod reader;
pub mod replay;
pub mod verify;

#[cfg(test)]
mod tests;

use std::io::{self, Write};

use anyhow::{anyhow, bail};
use chrono::{DateTime, Utc};
use tokio::runtime::{Builder, Runtime};

pub use self::reader::ArchiveReader;
use self::reader::ReadError;
use crate::{
    archive::{
        line::Line,
        upload::{
            Archive, HeadError, Skip,
            objects::{ListedObject, ObjectName},
            opening::Heads as _,
            place,
        },
    },
    config::Config,
    position::{Offset, Partition, Timestamp},
};

/// Which records are asked for. Empty: all.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    pub partitions: Vec<Partition>,
    /// By the time of receipt: from this one on.
    pub from: Option<DateTime<Utc>>,
    /// And before this one.
    pub to: Option<DateTime<Utc>>,
    /// By offset, in each partition.
    pub offsets: Offsets,
}

/// `[from, to)`; without an end, all to the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Offsets {
    pub from: Offset,
    pub to: Option<Offset>,
}

impl Selection {
    pub fn has_partition(&self, partition: Partition) -> bool {
        self.partitions.is_empty() || self.partitions.contains(&partition)
    }

    /// Whether the hour in the key, which is that of the object's first record alone, meets the times asked for.
    pub fn meets_hour(&self, name: &ObjectName) -> bool {
        let start = name.hour_start();
        let end = start + chrono::TimeDelta::hours(1);
        self.to.is_none_or(|to| start < to) && self.from.is_none_or(|from| end > from)
    }

    fn has_record(&self, offset: Offset, received: DateTime<Utc>) -> bool {
        self.offsets.from <= offset
            && self.offsets.to.is_none_or(|to| offset < to)
            && self.from.is_none_or(|from| from <= received)
            && self.to.is_none_or(|to| received < to)
    }

    /// Whether each record is asked for, so that none has to be looked at.
    fn is_everything(&self) -> bool {
        self.from.is_none() && self.to.is_none() && self.offsets == Offsets::default()
    }

    /// Whether the object can hold a record that is asked for. By its place in the chain alone: the times in keys are
    /// those of first records, and times need not ascend, so they rule nothing out.
    fn may_hold(&self, object: &ListedObject, next: Option<&ListedObject>) -> bool {
        let ends_before = |next: &ListedObject| {
            next.name.partition == object.name.partition && next.name.chain_offset <= self.offsets.from
        };
        self.has_partition(object.name.partition)
            && self.offsets.to.is_none_or(|to| object.name.chain_offset < to)
            && !next.is_some_and(ends_before)
    }
}

/// The runtime on which a command talks to the store.
pub fn runtime() -> anyhow::Result<Runtime> {
    Ok(Builder::new_multi_thread().worker_threads(2).thread_name("io").enable_all().build()?)
}

/// Opens the archive that the configuration names, for its topic or another one.
pub fn open(config: Config, topic: Option<String>, runtime: &Runtime) -> anyhow::Result<ArchiveReader> {
    let topic = topic.unwrap_or_else(|| config.queue.name().to_string());
    let archive = Archive::open_existing(&config, topic)?;
    Ok(ArchiveReader::new(archive, config, runtime.handle().clone()))
}

/// What stands in the archive, in the order of the chains.
pub fn list(reader: &ArchiveReader, selection: &Selection) -> anyhow::Result<Vec<ListedObject>> {
    let mut objects = reader.ask(|| reader.archive.list_objects())?.objects;
    objects.retain(|object| selection.has_partition(object.name.partition) && selection.meets_hour(&object.name));
    Ok(objects)
}

/// Why [`cat`] ended before its end.
#[derive(Debug, thiserror::Error)]
pub enum CatError {
    #[error("stdout cannot be written: {0}")]
    Output(#[from] io::Error),
    #[error(transparent)]
    Store(#[from] anyhow::Error),
}

/// Writes the selected lines as they stand, in the order of the chains, and goes on behind what is damaged. Gives a sentence for
/// each object that could not be read whole. Blocks.
///
/// # Errors
/// When the store does not answer, or `out` takes no more (a reader that has gone is `BrokenPipe`).
pub fn cat(reader: &ArchiveReader, selection: &Selection, out: &mut impl Write) -> Result<Vec<String>, CatError> {
    let objects = reader.ask(|| reader.archive.list_objects())?.objects;
    let mut damaged = Vec::new();
    for (at, object) in objects.iter().enumerate() {
        if !selection.may_hold(object, objects.get(at + 1)) {
            continue;
        }
        let key = reader.key(object);
        let mut unreadable = 0;
        let read = reader.each_line(object, |text| {
            if selection.is_everything() || is_selected(selection, text, &mut unreadable) {
                out.write_all(text)?;
                out.write_all(b"\n")?;
            }
            Ok::<_, io::Error>(())
        });
        match read? {
            // One that is gone has expired since it was listed: as if we had come later.
            Ok(()) | Err(ReadError::Gone) => {}
            Err(ReadError::Damaged(why)) => damaged.push(format!("{key}: {why}")),
            Err(ReadError::Store(error)) => return Err(reader.sentence(&error).into()),
        }
        if unreadable > 0 {
            damaged.push(format!("{key}: {unreadable} lines cannot be read, so nobody knows whether they belong"));
        }
    }
    out.flush()?;
    Ok(damaged)
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

/// A marker that was put.
#[derive(Debug)]
pub struct Marked {
    pub key: String,
    /// Where the partition's chain ends: from here to the marker's offset records may be missing.
    pub end: Offset,
}

/// Puts the operator's marker beside the partition's head: records below `to`, which retention removed, may be missing from
/// the archive (4.4). Whichever worker holds the partition finds it. Blocks.
///
/// # Errors
/// When there is no such chain, when it reaches that far already, or when the store does not answer.
pub fn skip(reader: &ArchiveReader, partition: Partition, to: Offset) -> anyhow::Result<Marked> {
    let archive = &reader.archive;
    let unreadable = |what: String| anyhow!("the archive's chain cannot be read: {what}: restore it first");
    let head = reader.ask(|| readable(archive.head(partition)))?.map_err(unreadable)?;
    let last = reader.ask(|| readable(archive.find_end(partition)))?.map_err(unreadable)?;
    let Some(end) = head.map(|head| head.end).max(last.map(|(end, _)| end)) else {
        bail!(
            "topic {} has no partition {partition} in {}: name one that `ingestd archive verify` shows",
            archive.topic,
            place(&reader.config)
        );
    };
    if to <= end {
        bail!("--to {to}: the archive of partition {partition} reaches offset {end} already: name one beyond it");
    }
    let marker = Skip { version: Skip::VERSION, to, time: Timestamp::now().to_rfc3339() };
    let key = reader.ask(|| archive.write_skip(partition, &marker))?.to_string();
    Ok(Marked { key, end })
}

/// Separates what the store failed at, which may pass, from what it gave and cannot be read.
async fn readable<T>(request: impl Future<Output = Result<T, HeadError>>) -> object_store::Result<Result<T, String>> {
    match request.await {
        Ok(found) => Ok(Ok(found)),
        Err(HeadError::Unreadable(what)) => Ok(Err(what)),
        Err(HeadError::Store(error)) => Err(error),
    }
}
