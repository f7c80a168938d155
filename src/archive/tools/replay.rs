//! `archive replay`: sends archived records to a topic, each once.
//!
//! Chain by chain, in order, and an object only after it was read to its end, because its checksum stands there: what is
//! damaged is never sent. Where a chain is not whole the replay stops, because what is behind would come before what is
//! missing; the operator may ask for what is behind by its offsets. Which records are sent is decided by the target's word
//! about what was replayed (`log::replays`), not by how often or with which selection this runs.

use std::{collections::VecDeque, mem};

use anyhow::{anyhow, bail};
use indicatif::ProgressBar;
use serde::Serialize;

use super::{ArchiveReader, Selection, readable, reader::ReadError};
use crate::{
    archive::{
        line::Line,
        upload::{objects::ListedObject, opening::Heads as _},
    },
    event::FieldNames,
    log::{
        record::RecordBuffer,
        replays::{BATCH_BYTES, BATCH_RECORDS, REPLAYED_FROM_HEADER, ReplayTarget, Replayed, SourcePartition},
    },
    position::{Offset, Partition, Timestamp},
};

/// What was replayed by this run.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    pub replayed: u64,
    pub partitions: Vec<PartitionReport>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct PartitionReport {
    pub partition: Partition,
    pub replayed: u64,
    /// The first record's, and the one behind the last; none where nothing was to be replayed.
    pub from: Option<Offset>,
    pub to: Option<Offset>,
}

/// Sends the selected records of the reader's topic that were not replayed to the target yet. Blocks.
///
/// # Errors
/// One sentence. What `report` names was replayed all the same.
pub fn replay(
    reader: &ArchiveReader,
    selection: &Selection,
    target: &impl ReplayTarget,
    progress: &ProgressBar,
    report: &mut Report,
) -> anyhow::Result<()> {
    let mut objects: VecDeque<ListedObject> = reader.ask(|| reader.archive.list_objects())?.objects.into();
    objects.retain(|object| selection.has_partition(object.name.partition));
    progress.inc_length(objects.iter().map(|object| object.size).sum());
    while let Some(first) = objects.front() {
        let partition = first.name.partition;
        let behind = objects.iter().position(|object| object.name.partition != partition).unwrap_or(objects.len());
        let rest = objects.split_off(behind);
        let chain = mem::replace(&mut objects, rest);
        let head = reader.ask(|| readable(reader.archive.head(partition)))?;
        let head = head.map_err(|what| anyhow!("the archive's chain cannot be read: {what}: restore it first"))?;
        let source = SourcePartition { partition, identity: head.map(|head| head.identity) };
        let mut replaying = Replaying {
            reader,
            selection,
            target,
            progress,
            key_field: FieldNames::of(reader.config.event.key_field()),
            replayed: target.replayed(partition, source.identity.as_ref()),
            source,
            run: None,
            end: None,
            batch: RecordBuffer::default(),
            report: PartitionReport { partition, replayed: 0, from: None, to: None },
        };
        let read = replaying.chain(chain);
        // What came before it is better sent.
        let sent = replaying.send();
        report.replayed += replaying.report.replayed;
        report.partitions.push(replaying.report);
        read.and(sent)?;
    }
    Ok(())
}

/// One partition.
struct Replaying<'r, T> {
    reader: &'r ArchiveReader,
    selection: &'r Selection,
    target: &'r T,
    progress: &'r ProgressBar,
    key_field: FieldNames,
    source: SourcePartition,
    /// With what is in the batch.
    replayed: Replayed,
    /// Where the records began that were all replayed, up to the present one: offsets between them hold no records.
    run: Option<Offset>,
    /// Of the object before.
    end: Option<Offset>,
    batch: RecordBuffer,
    report: PartitionReport,
}

impl<T: ReplayTarget> Replaying<'_, T> {
    fn chain(&mut self, mut chain: VecDeque<ListedObject>) -> anyhow::Result<()> {
        let mut listed_at = None;
        while let Some(object) = chain.pop_front() {
            let (x, next) = (object.name.chain_offset, chain.front());
            let ends = next.map(|next| next.name.chain_offset);
            if !self.selection.may_hold(&object, next) {
                (self.run, self.end) = (None, None);
            } else if let Some(ends) = ends.filter(|ends| self.replayed.has_all(x, *ends)) {
                self.run = self.run.or(Some(x));
                self.end = Some(ends);
            } else if let Some(end) = self.end.filter(|end| *end < x) {
                if listed_at == Some(end) {
                    bail!(
                        "offsets {end} to {x} of partition {} stand in no object (ingestd archive verify shows more): \
                         restore them, or replay what is behind with --offset {x}..",
                        self.source.partition
                    );
                }
                // A LIST is no moment in time: an object may have come to stand in a folder that was passed already.
                listed_at = Some(end);
                chain = self.reader.ask(|| self.reader.archive.list_objects())?.objects.into();
                chain
                    .retain(|object| object.name.partition == self.source.partition && object.name.chain_offset >= end);
                continue;
            } else {
                self.object(&object, ends)?;
            }
            self.progress.inc(object.size);
        }
        Ok(())
    }

    fn object(&mut self, object: &ListedObject, ends: Option<Offset>) -> anyhow::Result<()> {
        let reader = self.reader;
        let key = reader.key(object);
        let damaged = |why: String| {
            let behind = ends.map(|ends| format!(", or replay what is behind with --offset {ends}.."));
            anyhow!("{key}: {why}: restore it (ingestd archive verify shows more){}", behind.unwrap_or_default())
        };
        let floor = self.end;
        let mut read = reader.each_line(object, |_| Ok::<_, anyhow::Error>(()))?;
        if read.is_ok() {
            read = reader.each_line(object, |text| self.line(text, floor, &damaged))?;
        }
        match read {
            Ok(()) => Ok(()),
            // It expired since it was listed: as if we had come later.
            Err(ReadError::Gone) => {
                (self.run, self.end) = (None, None);
                Ok(())
            }
            Err(ReadError::Damaged(why)) => Err(damaged(why)),
            Err(ReadError::Store(error)) => Err(reader.sentence(&error)),
        }
    }

    /// `floor` is where the object before ends.
    fn line(
        &mut self,
        text: &[u8],
        floor: Option<Offset>,
        damaged: &impl Fn(String) -> anyhow::Error,
    ) -> anyhow::Result<()> {
        let unreadable = |why| damaged(format!("a line of it cannot be read: {why}"));
        let line = Line::parse(text).map_err(unreadable)?;
        let offset = line.offset;
        // A record that stands in two objects is one.
        if floor.is_some_and(|floor| offset < floor) {
            return Ok(());
        }
        if let Some(end) = self.end.filter(|end| offset < *end) {
            return Err(damaged(format!("offset {offset} stands behind {end}")));
        }
        self.end = Some(offset.next());
        if !self.selection.has_record(offset, line.received) {
            self.run = None;
            return Ok(());
        }
        let run = *self.run.get_or_insert(offset);
        if self.replayed.has(offset) {
            self.replayed.insert(run, offset.next());
            return Ok(());
        }
        let received = Timestamp(line.received.timestamp_millis());
        let key = line.key(&self.key_field).map_err(unreadable)?;
        let headers = line.all_headers().ok_or_else(|| unreadable("one of its headers".to_owned()))?;
        let name = self.name(offset);
        // Of a record that was a replay already the header names the latest one.
        let own = headers.iter().filter(|(name, _)| name != REPLAYED_FROM_HEADER);
        let own = own.map(|(name, value)| (name.as_str(), value.as_deref()));
        let headers = own.chain([(REPLAYED_FROM_HEADER, Some(name.as_bytes()))]);
        self.batch.push(offset, received, key.as_deref(), line.value().as_deref(), headers);
        self.replayed.insert(run, offset.next());
        if self.replayed.len() > Replayed::MOST {
            bail!(
                "partition {} would have been replayed in more than {} pieces, with records between them that were not \
                 asked for: name offsets (--offset) rather than times",
                self.source.partition,
                Replayed::MOST
            );
        }
        if self.batch.len() >= BATCH_RECORDS || self.batch.size() >= BATCH_BYTES { self.send() } else { Ok(()) }
    }

    /// `topic/partition/offset`
    fn name(&self, offset: Offset) -> String {
        format!("{}/{}/{offset}", self.reader.archive.topic, self.source.partition)
    }

    /// What is in the batch. After a failure it is empty, too: nothing more is sent.
    fn send(&mut self) -> anyhow::Result<()> {
        let batch = mem::take(&mut self.batch);
        let (Some(first), Some(last)) = (batch.iter().next(), batch.iter().last()) else { return Ok(()) };
        self.target.append(&self.source, &batch, &self.replayed)?;
        self.report.replayed += batch.len() as u64;
        self.report.from.get_or_insert(first.offset);
        self.report.to = Some(last.offset.next());
        Ok(())
    }
}

#[cfg(test)]
mod tests;
