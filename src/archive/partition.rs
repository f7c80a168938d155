//! What the archive's sink decides, in one machine without I/O: which records are spooled, which sealed segment goes into
//! the archive next, how far each partition's chain is known to reach, when its head is written, and what becomes of a gap.
//! The spooler feeds it and performs its effects; the model tests drive it under three workers.
//!
//! Objects form a chain: each covers `[chain offset, end)`, and the next one begins at that end. Invariants:
//! - A segment is put only where the chain is known to end, one at a time, by a create-only PUT; so two writers can never
//!   both extend the chain at one offset, and neither overwrites the other.
//! - A partition has one cursor. Records below it are skipped, a batch that begins beyond it is refused, and a seek is
//!   asked for instead (the one cursor rule).
//! - Only what is known to be archived is confirmed to the consumer.
//! - A sealed segment is removed only when the archive or the log has its records.
//! - What is said about an earlier epoch changes nothing, except that sealed segments of a revoked partition go on
//!   uploading until it is assigned again or its chain stops.

mod gap;
mod held;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, time::Instant};

use self::held::{Held, Phase};
use super::{
    spool::segment::SealedSegment,
    upload::opening::{Head, Known, Unusable},
};
use crate::{
    config::OnGap,
    consume::{Begin, Confirm, Halt, Reassign},
    log::{Assignment, Epoch},
    position::{Offset, Partition, TopicIdentity},
};

/// What happened.
#[derive(Debug)]
pub enum Input {
    /// The consumer: the partition is ours.
    Assigned { epoch: Epoch, assignment: Assignment },
    /// Something about this assignment; about an earlier one it changes nothing.
    About { partition: Partition, epoch: Epoch, news: News },
    /// The uploader was started, and knows of nothing that it was told before.
    UploaderStarted,
    /// A second passed.
    Tick,
}

/// What happened to an assigned partition.
#[derive(Debug)]
pub enum News {
    /// The consumer: it is ours no longer.
    Unassigned,
    /// The spool's thread: the partition's sealed segments on disk, in the order of their chain offsets.
    Scanned(Vec<SealedSegment>),
    /// The spool's thread: a segment was sealed.
    Sealed(SealedSegment),
    /// The uploader: where the chain ends, or why it cannot be used.
    Opened(Result<Offset, Unusable>),
    /// The uploader: what the PUT under way found, and the key of the object.
    Put { key: String, answer: PutAnswer },
    /// The uploader: how things stand with the partition's gap.
    GapAnswered(GapAnswer),
    /// The uploader: the object of ours with this key is not what was put.
    Replaced(String),
}

/// What a create-only PUT of a segment found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PutAnswer {
    /// It is the object now.
    Created,
    /// An object stands there whose records agree with ours where both have them.
    Exists { end: Offset },
    /// An object stands there whose records differ from ours, or that cannot be read.
    Conflict { reason: String },
    /// The segment's file cannot be read as it was sealed; nothing was put.
    Damaged { why: String },
}

/// What the operator has said of a gap: records below the offset may be missing; or why the marker cannot be read.
pub type SkipMarker = Result<Option<Offset>, String>;

/// What the archive was found to say about a gap.
#[derive(Debug, Clone)]
pub enum GapAnswer {
    /// The chain reaches further than when it was opened: the gap is smaller, or none any more.
    Grown,
    /// What the operator has said.
    Skip(SkipMarker),
}

/// What the spool's thread does with a partition's segments.
#[derive(Debug)]
pub enum SegmentCommand {
    /// Seal what is open, then list the partition's sealed segments.
    Scan { partition: Partition, epoch: Epoch },
    /// The next record begins a segment at this chain offset; an open one is dropped.
    Begin { partition: Partition, epoch: Epoch, chain_offset: Offset, identity: TopicIdentity },
    /// Drop the open segment.
    End(Partition),
    /// Seal the open segment, and begin none: nobody knows how long the log keeps its records.
    Close(Partition),
    /// The archive or the log has its records.
    Remove(SealedSegment),
    /// It fits nowhere.
    Orphan { segment: SealedSegment, why: String },
}

/// What the uploader asks of the store.
#[derive(Debug, Clone)]
pub enum Transfer {
    /// Where does the chain end? Requests of an earlier assignment of the partition are cut off.
    OpenChain { epoch: Epoch, assignment: Assignment, known: Known },
    /// By a create-only PUT.
    Put { epoch: Epoch, segment: SealedSegment },
    /// How do things stand with the gap behind the chain's `end`?
    AskAboutGap { partition: Partition, epoch: Epoch, end: Offset },
    /// Rewrite the head. A failure leaves an older one, which is allowed.
    WriteHead { partition: Partition, head: Head },
}

/// What is to be done next, in this order.
#[derive(Debug)]
pub enum Effect {
    /// Spool's thread.
    Segments(SegmentCommand),
    /// Uploader.
    Transfer(Transfer),
    /// Consumer.
    Begin(Begin),
    /// Consumer.
    Confirm(Confirm),
    /// Consumer.
    Reassign(Reassign),
    /// Consumer, after a pause: a disk that cannot even move a file would be asked in a loop.
    ReassignSoon(Reassign),
    /// Consumer.
    Halt(Halt),
    /// Operator: records were archived.
    Archived { records: u64 },
    /// Operator: another writer's object stands at our chain offset, and the chain goes on at its end.
    Followed { partition: Partition, end: Offset },
    /// Operator: the log removed records before they were archived.
    Lost { partition: Partition, from: Offset, to: Offset },
    /// Operator: going on without the records that are gone, as allowed.
    Skipped { partition: Partition, from: Offset, to: Offset },
}

/// What becomes of a batch.
#[derive(Debug, Clone, Copy)]
pub enum BatchVerdict {
    /// Spool its records from here on.
    From(Offset),
    /// It begins beyond the cursor: a batch before it did not arrive.
    Refused(Begin),
    /// It is of an earlier assignment, or was spooled already.
    Ignored,
}

/// Which partitions may be spooled here, and into which archive.
#[derive(Debug, Clone)]
pub struct Rules {
    /// The topic with its generation, as the archive's paths name it.
    pub topic_folder: String,
    /// `archive.url`, as segment headers name it.
    pub archive: String,
    /// The archive is a folder of this machine: only the process that holds every partition of this group may use it.
    pub sole_member_of: Option<String>,
}

/// What holds at the moment of an input.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    pub at: Instant,
    /// `archive.on_gap`.
    pub on_gap: OnGap,
}

/// How often the archive is asked about a gap, in ticks.
const ASK_TICKS: u32 = 3;

/// One input on its way: what holds meanwhile, and what follows from it.
struct Step<'a> {
    rules: &'a Rules,
    moment: Moment,
    effects: Vec<Effect>,
}

impl Step<'_> {
    fn then(&mut self, effect: Effect) {
        self.effects.push(effect);
    }

    fn segments(&mut self, command: SegmentCommand) {
        self.then(Effect::Segments(command));
    }

    fn transfer(&mut self, transfer: Transfer) {
        self.then(Effect::Transfer(transfer));
    }
}

/// A partition, and what this process has learned of it in all its assignments.
struct Tracked {
    partition: Partition,
    /// How far the chain was seen to reach: a head may be older.
    known: Known,
    /// The log is asked once more, because much hangs on its answer; the next assignment takes it.
    rechecked: bool,
    /// Where the operator's marker reaches, while the partition is opened anew because of it.
    skip_allowed: Option<Offset>,
    /// Up to here the lost records were counted: a gap is met again at each assignment.
    counted: Offset,
    held: Option<Held>,
}

impl Tracked {
    fn new(partition: Partition) -> Self {
        let (known, counted) = (Known::default(), Offset(0));
        Self { partition, known, rechecked: false, skip_allowed: None, counted, held: None }
    }
}

/// The state of all partitions.
pub struct Partitions {
    rules: Rules,
    tracked: BTreeMap<Partition, Tracked>,
    ticks: u32,
}

impl Partitions {
    pub fn new(rules: Rules) -> Self {
        Self { rules, tracked: BTreeMap::new(), ticks: 0 }
    }

    /// The partitions that are assigned.
    pub fn assigned(&self) -> Vec<Partition> {
        self.held().filter(|(_, held)| held.is_ours()).map(|(partition, _)| partition).collect()
    }

    /// Bytes of sealed segments that wait for the archive. What a halted partition keeps must not hold the others up,
    /// and is not counted.
    pub fn sealed_bytes(&self) -> u64 {
        self.waiting().map(|segment| segment.header.bytes).sum()
    }

    /// How many these are.
    pub fn sealed_segments(&self) -> usize {
        self.waiting().count()
    }

    fn waiting(&self) -> impl Iterator<Item = &SealedSegment> {
        let going = self.held().filter(|(_, held)| !matches!(held.phase, Phase::Halted));
        going.flat_map(|(_, held)| held.sealed.values())
    }

    /// How many segments are put, or wait to be.
    pub fn uploads(&self) -> usize {
        self.held().filter(|(_, held)| held.chain_end.is_some()).map(|(_, held)| held.sealed.len()).sum()
    }

    /// Whether no segment is on its way, and so none can go.
    pub fn is_idle(&self) -> bool {
        self.held().all(|(_, held)| held.putting.is_none())
    }

    /// The heads that are older than their chain, however young they are: for the stop.
    pub fn last_heads(&mut self, at: Instant) -> Vec<(Partition, Head)> {
        let tracked = self.tracked.values_mut();
        tracked.filter_map(|each| Some((each.partition, each.held.as_mut()?.head_to_write(at, false)?))).collect()
    }

    /// Whether this is the partition's present assignment.
    pub fn is_current(&self, partition: Partition, epoch: Epoch) -> bool {
        self.held().any(|(each, held)| each == partition && held.epoch == epoch && held.is_ours())
    }

    fn held(&self) -> impl Iterator<Item = (Partition, &Held)> {
        self.tracked.values().filter_map(|tracked| Some((tracked.partition, tracked.held.as_ref()?)))
    }

    /// What follows from `input`.
    pub fn on(&mut self, input: Input, moment: Moment) -> Vec<Effect> {
        let Self { rules, tracked, ticks } = self;
        let mut step = Step { rules, moment, effects: Vec::new() };
        match input {
            Input::Assigned { epoch, assignment } => {
                let partition = assignment.partition;
                let tracked = tracked.entry(partition).or_insert_with(|| Tracked::new(partition));
                tracked.assigned(epoch, assignment, &mut step);
            }
            Input::UploaderStarted => tracked.values_mut().for_each(Tracked::uploader_started),
            Input::Tick => {
                *ticks = ticks.wrapping_add(1);
                let ask = ticks.is_multiple_of(ASK_TICKS);
                tracked.values_mut().for_each(|tracked| tracked.tick(ask, &mut step));
            }
            Input::About { partition, epoch, news } => {
                let tracked = tracked.get_mut(&partition);
                let tracked = tracked.filter(|it| it.held.as_ref().is_some_and(|held| held.epoch == epoch));
                if let Some(tracked) = tracked {
                    tracked.on(news, &mut step);
                }
            }
        }
        step.effects
    }

    /// A batch that covers `[from, to)`.
    pub fn batch(&mut self, partition: Partition, epoch: Epoch, from: Offset, to: Offset) -> BatchVerdict {
        let held = self.tracked.get_mut(&partition).and_then(|tracked| tracked.held.as_mut());
        let held = held.filter(|held| held.epoch == epoch);
        let Some(held) = held.filter(|held| matches!(held.phase, Phase::Spooling) && to > held.cursor) else {
            return BatchVerdict::Ignored;
        };
        if from > held.cursor {
            return BatchVerdict::Refused(Begin { partition, epoch, at: held.cursor });
        }
        BatchVerdict::From(std::mem::replace(&mut held.cursor, to))
    }
}
