//! `archive verify`: reads every object of a topic, and says where the promises of section 4 do not hold.
//!
//! Heads are read before the objects are listed, because a head may be old and never beyond the end: so a chain that
//! grows meanwhile shows no fault. A LIST is no moment in time either (an object may come to stand in a folder that was
//! passed already), so a gap is believed only when another LIST has nothing to fill it with.

mod object;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::atomic::{AtomicBool, Ordering},
};

use futures::{StreamExt, stream};
use indicatif::ProgressBar;
use serde::Serialize;

use self::object::Checked;
use super::{ArchiveReader, readable};
use crate::{
    archive::upload::{
        failed as store_error,
        objects::{ListedObject, Listing, ObjectName},
        opening::Heads as _,
    },
    position::{Offset, Partition},
};

/// How often a gap is looked at again.
const ROUNDS: usize = 3;

/// What is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultKind {
    /// Offsets between two objects that stand in none.
    Gap,
    /// An object begins before the end of the one before: records stand twice, or it belongs to no chain.
    Overlap,
    /// It cannot be decompressed to its end, its checksum does not match, or it holds nothing.
    Damaged,
    /// A line that is no line.
    UnreadableLine,
    /// An offset that is not above the one before.
    Order,
    /// An offset below the object's chain offset.
    Outside,
    /// Date and hour in the key are not those of the first record.
    Name,
    /// A key that no daemon writes: it stands in no chain.
    Stray,
    /// A head, or a marker of the operator, that cannot be true or cannot be read.
    Head,
}

/// As JSON and tables write it.
impl fmt::Display for FaultKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(formatter)
    }
}

/// One fault; several lines of an object with the same kind of fault are one, described by the first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Fault {
    pub kind: FaultKind,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Lines of the object with this fault.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lines: Option<u64>,
    pub message: String,
}

/// Offsets from an object's chain offset to its first record. Retention tore it, or no record was ever there (the
/// markers of transactions): the archive alone cannot tell which.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Hole {
    pub from: Offset,
    pub to: Offset,
    pub key: String,
}

/// Lines of one object whose event not every reader of JSON can read. They are whole and no faults: an older release let
/// such events stand as they came.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct UnreadableEvents {
    pub key: String,
    pub lines: u64,
    /// The first one's, and what is the matter with it.
    pub offset: Offset,
    pub message: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PartitionReport {
    pub partition: Partition,
    pub objects: u64,
    pub records: u64,
    /// Compressed.
    pub bytes: u64,
    /// The first offset that is present: what stood before may have been expired.
    pub first_offset: Option<Offset>,
    /// Where the chain ends; none where that is not known.
    pub end: Option<Offset>,
    pub head_end: Option<Offset>,
    /// The first [`Report::MOST`] of them.
    pub holes: Vec<Hole>,
    pub holes_in_all: u64,
    /// Of the first [`Report::MOST`] objects with such lines.
    pub unreadable_events: Vec<UnreadableEvents>,
    /// Lines.
    pub unreadable_events_in_all: u64,
    /// The first [`Report::MOST`] of them.
    pub faults: Vec<Fault>,
    pub faults_in_all: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    pub topic: String,
    pub ok: bool,
    pub partitions: Vec<PartitionReport>,
    /// What belongs to no partition.
    pub faults: Vec<Fault>,
}

impl Report {
    /// Holes and faults that are listed for each partition; all are counted.
    pub const MOST: usize = 1000;

    pub fn objects(&self) -> u64 {
        self.partitions.iter().map(|partition| partition.objects).sum()
    }

    pub fn records(&self) -> u64 {
        self.partitions.iter().map(|partition| partition.records).sum()
    }

    pub fn faults_in_all(&self) -> u64 {
        self.faults.len() as u64 + self.partitions.iter().map(|partition| partition.faults_in_all).sum::<u64>()
    }
}

/// Reads all objects of the selected partitions (none: of all).
pub fn verify(reader: &ArchiveReader, partitions: &[Partition], progress: &ProgressBar) -> anyhow::Result<Report> {
    reader
        .block_on(Verification::run(reader, partitions, progress, async || reader.list().await))
        .map_err(|error| reader.sentence(&error))
}

struct Verification {
    heads: BTreeMap<Partition, Head>,
    objects: BTreeMap<Partition, BTreeMap<ObjectName, Checked>>,
    strays: BTreeSet<String>,
}

/// The end that the chain's head names, and what is wrong with the files beside it.
#[derive(Default)]
struct Head {
    end: Option<Offset>,
    faults: Vec<Fault>,
}

impl Verification {
    async fn run(
        reader: &ArchiveReader,
        partitions: &[Partition],
        progress: &ProgressBar,
        mut list: impl AsyncFnMut() -> object_store::Result<Listing>,
    ) -> object_store::Result<Report> {
        let wanted = |partition| partitions.is_empty() || partitions.contains(&partition);
        let mut verification = Self { heads: BTreeMap::new(), objects: BTreeMap::new(), strays: BTreeSet::new() };
        verification.read_heads(reader, &wanted).await?;
        for round in 0..ROUNDS {
            let Listing { mut objects, strays, .. } = list().await?;
            if partitions.is_empty() {
                verification.strays.extend(strays);
            }
            objects.retain(|object| wanted(object.name.partition) && !verification.has(&object.name));
            if round > 0 {
                // What has come to stand at the end is for the next run.
                objects.retain(|object| verification.is_within(&object.name));
                if objects.is_empty() {
                    break;
                }
            }
            verification.check(reader, objects, progress).await?;
            if !verification.has_gap() {
                break;
            }
        }
        Ok(verification.report(&reader.archive.topic))
    }

    async fn read_heads(
        &mut self,
        reader: &ArchiveReader,
        wanted: &impl Fn(Partition) -> bool,
    ) -> object_store::Result<()> {
        let archive = &reader.archive;
        let files = reader.retry(|| archive.list_chain_files()).await?;
        self.strays.extend(files.strays);
        for partition in files.heads.into_iter().filter(|partition| wanted(*partition)) {
            match reader.retry(|| readable(archive.head(partition))).await? {
                Ok(head) => self.heads.entry(partition).or_default().end = head.map(|head| head.end),
                Err(what) => self.heads.entry(partition).or_default().faults.push(head_fault(what)),
            }
        }
        for partition in files.skips.into_iter().filter(|partition| wanted(*partition)) {
            if let Err(what) = reader.retry(|| readable(archive.skip(partition))).await? {
                self.heads.entry(partition).or_default().faults.push(head_fault(what));
            }
        }
        Ok(())
    }

    /// Reads the objects, a bounded number at once, each piece by piece.
    async fn check(
        &mut self,
        reader: &ArchiveReader,
        objects: Vec<ListedObject>,
        progress: &ProgressBar,
    ) -> object_store::Result<()> {
        progress.inc_length(objects.iter().map(|object| object.size).sum());
        // After a failure, those under way come to their end: the runtime that they read on would go from under them.
        let failed = AtomicBool::new(false);
        let check = |object: ListedObject| {
            let (reader, over) = (reader.clone(), failed.load(Ordering::Relaxed));
            async move {
                if over {
                    return Ok(None);
                }
                let checked = tokio::task::spawn_blocking(move || object::check(&reader, &object)).await;
                Ok::<_, object_store::Error>(Some((object, checked.map_err(store_error)??)))
            }
        };
        let parallel = reader.config.upload.max_parallel;
        let mut checking = stream::iter(objects.into_iter().map(check)).buffer_unordered(parallel);
        let mut outcome = Ok(());
        while let Some(checked) = checking.next().await {
            match checked {
                Ok(Some((object, checked))) => {
                    progress.inc(object.size);
                    self.objects.entry(object.name.partition).or_default().insert(object.name, checked);
                }
                Ok(None) => {}
                Err(error) => {
                    failed.store(true, Ordering::Relaxed);
                    outcome = Err(error);
                }
            }
        }
        outcome
    }

    fn has(&self, name: &ObjectName) -> bool {
        self.objects.get(&name.partition).is_some_and(|objects| objects.contains_key(name))
    }

    fn is_within(&self, name: &ObjectName) -> bool {
        let last = self.objects.get(&name.partition).and_then(BTreeMap::last_key_value);
        last.is_some_and(|(last, _)| name.chain_offset < last.chain_offset)
    }

    fn has_gap(&self) -> bool {
        let is_gap = |(_, kind, _): &(_, FaultKind, _)| *kind == FaultKind::Gap;
        self.objects.values().any(|objects| walk(objects).1.iter().any(is_gap))
    }

    fn report(mut self, topic: &str) -> Report {
        let faults: Vec<Fault> = self.strays.into_iter().map(stray).collect();
        for partition in self.heads.keys() {
            self.objects.entry(*partition).or_default();
        }
        let report = |(partition, objects): (Partition, BTreeMap<_, _>)| {
            let head = self.heads.remove(&partition).unwrap_or_default();
            report_of(topic, partition, objects, head)
        };
        let partitions: Vec<_> = self.objects.into_iter().map(report).collect();
        let ok = faults.is_empty() && partitions.iter().all(|partition| partition.faults_in_all == 0);
        Report { topic: topic.to_owned(), ok, partitions, faults }
    }
}

fn head_fault(message: String) -> Fault {
    Fault { kind: FaultKind::Head, key: None, lines: None, message: format!("cannot be read: {message}") }
}

fn stray(key: String) -> Fault {
    let message = "no daemon writes this key: it stands in no chain".to_owned();
    Fault { kind: FaultKind::Stray, key: Some(key), lines: None, message }
}

/// How a partition's objects follow each other: where the chain ends (none where the last object's end cannot be read), and each
/// fault with the object that it is found at.
fn walk(objects: &BTreeMap<ObjectName, Checked>) -> (Option<Offset>, Vec<(ObjectName, FaultKind, String)>) {
    let (mut end, mut faults) = (None, Vec::new());
    // What was expired at the front is no fault, so the first one may begin anywhere.
    for (name, checked) in objects.iter().filter(|(_, checked)| !checked.gone) {
        let x = name.chain_offset;
        match end {
            Some(end) if end < x => {
                let what = format!("offsets {end} to {x} stand in no object: the one before ends at {end}");
                faults.push((*name, FaultKind::Gap, what));
            }
            Some(end) if end > x => {
                let what = format!("no object ends at {x}, where it begins: the one before ends at {end}");
                faults.push((*name, FaultKind::Overlap, what));
            }
            _ => {}
        }
        // An end that cannot be read may be anywhere; that object's damage is the fault then.
        end = checked.end.map(|its_end: Offset| its_end.max(end.unwrap_or_default()));
    }
    (end, faults)
}

fn report_of(
    topic: &str,
    partition: Partition,
    mut objects: BTreeMap<ObjectName, Checked>,
    head: Head,
) -> PartitionReport {
    objects.retain(|_, checked| !checked.gone);
    let (end, of_chain) = walk(&objects);
    let mut report = PartitionReport {
        partition,
        objects: objects.len() as u64,
        records: objects.values().map(|checked| checked.records).sum(),
        bytes: objects.values().map(|checked| checked.size).sum(),
        first_offset: objects.values().find_map(|checked| checked.first),
        end,
        head_end: head.end,
        holes: Vec::new(),
        holes_in_all: 0,
        unreadable_events: Vec::new(),
        unreadable_events_in_all: 0,
        faults: Vec::new(),
        faults_in_all: 0,
    };
    let mut of_chain = of_chain.into_iter().peekable();
    for (name, checked) in objects {
        while let Some((name, kind, message)) = of_chain.next_if(|(at, ..)| *at == name) {
            report.fault(Fault { kind, key: Some(name.key(topic).to_string()), lines: None, message });
        }
        checked.faults.into_iter().for_each(|fault| report.fault(fault));
        if let Some(events) = checked.unreadable {
            list(&mut report.unreadable_events, &mut report.unreadable_events_in_all, events.lines, events);
        }
        if let Some(first) = checked.first.filter(|first| *first > name.chain_offset) {
            let hole = Hole { from: name.chain_offset, to: first, key: name.key(topic).to_string() };
            list(&mut report.holes, &mut report.holes_in_all, 1, hole);
        }
    }
    head.faults.into_iter().for_each(|fault| report.fault(fault));
    if let (Some(head_end), Some(end)) = (head.end, report.end)
        && head_end > end
    {
        let message = format!("the head says that the chain reaches {head_end}, but its last object ends at {end}");
        report.fault(Fault { kind: FaultKind::Head, key: None, lines: None, message });
    }
    report
}

impl PartitionReport {
    fn fault(&mut self, fault: Fault) {
        list(&mut self.faults, &mut self.faults_in_all, 1, fault);
    }
}

/// Counts all, and lists the first [`Report::MOST`].
fn list<T>(listed: &mut Vec<T>, in_all: &mut u64, count: u64, one: T) {
    *in_all += count;
    if listed.len() < Report::MOST {
        listed.push(one);
    }
}
