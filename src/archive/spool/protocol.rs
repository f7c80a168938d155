//! The archive sink's protocol, without I/O: what is known of each assigned partition, and what follows from what the
//! consumer, the spool's thread and the uploader say.
//!
//! Invariants:
//! - A partition has one cursor. Records below it are skipped, a batch that begins beyond it is refused, and a seek is
//!   asked for instead (the one cursor rule).
//! - Only what the uploader knows to be archived is confirmed to the consumer.
//! - A sealed segment is removed only when the archive or the log has its records.
//! - What is said about an earlier epoch changes nothing, except that sealed segments of revoked partitions go on
//!   uploading until their partition is assigned again or their chain stops.

mod gap;

use std::collections::{BTreeMap, BTreeSet};

use self::gap::Gaps;
use super::{
    recover::{self, Fetch, Plan, Situation},
    segment::SealedSegment,
};
use crate::{
    archive::messages::SkipMarker,
    config::OnGap,
    consume::{Begin, Confirm, Halt, Reassign},
    log::{Assignment, Epoch},
    position::{Offset, Partition, TopicIdentity},
};

/// What is to be done next, in this order.
#[derive(Debug)]
pub enum Effect {
    /// Spool's thread: seal what is open, then list the partition's sealed segments.
    Scan { partition: Partition, epoch: Epoch },
    /// Spool's thread: the next record begins a segment at chain position `x`; an open one is dropped.
    BeginSegments { partition: Partition, epoch: Epoch, x: Offset, identity: TopicIdentity },
    /// Spool's thread: drop the open segment.
    EndSegments(Partition),
    /// Spool's thread: seal the open segment, and begin none. Who knows how long the log keeps its records.
    CloseSegments(Partition),
    /// Spool's thread: the archive or the log has its records.
    Remove(SealedSegment),
    /// Spool's thread: it fits nowhere.
    Orphan { segment: SealedSegment, why: String },
    /// Uploader: find the chain's end.
    OpenChain { epoch: Epoch, assignment: Assignment },
    /// Uploader: put it when it is its turn.
    Upload { epoch: Epoch, segment: SealedSegment },
    /// Consumer.
    Begin(Begin),
    /// Consumer.
    Confirm(Confirm),
    /// Consumer.
    Reassign(Reassign),
    /// Consumer.
    Halt(Halt),
    /// Uploader: how do things stand with this partition's hole?
    AskAboutGap { partition: Partition, epoch: Epoch },
    /// Operator: the log removed records before they were archived.
    Lost { partition: Partition, from: Offset, to: Offset },
    /// Operator: going on without the records that are gone, as allowed.
    Skipped { partition: Partition, from: Offset, to: Offset },
}

/// What becomes of a batch.
#[derive(Debug, Clone, Copy)]
pub enum Taken {
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

/// A partition that is assigned to us.
struct Spooled {
    epoch: Epoch,
    assignment: Assignment,
    phase: Phase,
    /// The next offset to spool.
    cursor: Offset,
    /// Sealed and not known to be archived, by chain position.
    sealed: BTreeMap<Offset, SealedSegment>,
}

enum Phase {
    /// Waiting for the archive's chain and the disk's segments.
    Opening {
        chain_end: Option<Offset>,
        found: Option<Vec<SealedSegment>>,
    },
    Spooling,
    /// Halted at a hole that the operator may allow to be left.
    Gap {
        log_start: Offset,
        /// What the operator has said, as last heard.
        word: SkipMarker,
    },
    Halted,
}

/// The state of all partitions.
pub struct Protocol {
    rules: Rules,
    partitions: BTreeMap<Partition, Spooled>,
    /// Sealed segments of partitions that were revoked: they go on uploading.
    leaving: BTreeMap<(Partition, Offset), SealedSegment>,
    /// Partitions whose log was asked once more, because much hangs on its answer; until they begin.
    rechecked: BTreeSet<Partition>,
    gaps: Gaps,
}

impl Protocol {
    pub fn new(rules: Rules) -> Self {
        Self {
            rules,
            partitions: BTreeMap::new(),
            leaving: BTreeMap::new(),
            rechecked: BTreeSet::new(),
            gaps: Gaps::default(),
        }
    }

    /// The partitions that are assigned.
    pub fn partitions(&self) -> Vec<Partition> {
        self.partitions.keys().copied().collect()
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
        let going = self.partitions.values().filter(|spooled| !matches!(spooled.phase, Phase::Halted));
        going.flat_map(|spooled| spooled.sealed.values()).chain(self.leaving.values())
    }

    /// Whether this is the partition's present assignment.
    pub fn is_current(&self, partition: Partition, epoch: Epoch) -> bool {
        self.partitions.get(&partition).is_some_and(|spooled| spooled.epoch == epoch)
    }

    fn current(&mut self, partition: Partition, epoch: Epoch) -> Option<&mut Spooled> {
        self.partitions.get_mut(&partition).filter(|spooled| spooled.epoch == epoch)
    }

    /// The partition is ours: where does the archive end, and what does the disk hold?
    pub fn assigned(&mut self, epoch: Epoch, assignment: Assignment) -> Vec<Effect> {
        let partition = assignment.partition;
        self.leaving.retain(|(leaving, _), _| *leaving != partition);
        let spooled = Spooled {
            epoch,
            assignment: assignment.clone(),
            phase: Phase::Opening { chain_end: None, found: None },
            cursor: Offset(0),
            sealed: BTreeMap::new(),
        };
        self.partitions.insert(partition, spooled);
        if let Some(group) = &self.rules.sole_member_of
            && !assignment.holds_all
        {
            let reason = format!("another worker is in group {group}: use a shared store");
            let action = "set archive.url to a shared store (s3://, gs://, az://), or run one worker".to_owned();
            return self.halt(partition, reason, action);
        }
        vec![Effect::Scan { partition, epoch }, Effect::OpenChain { epoch, assignment }]
    }

    /// The partition is no longer ours: what is open is dropped, what is sealed goes on.
    pub fn unassigned(&mut self, partition: Partition, epoch: Epoch) -> Vec<Effect> {
        if !self.is_current(partition, epoch) {
            return Vec::new();
        }
        if let Some(spooled) = self.partitions.remove(&partition) {
            self.leaving.extend(spooled.sealed.into_iter().map(|(x, segment)| ((partition, x), segment)));
        }
        vec![Effect::EndSegments(partition)]
    }

    /// The disk's sealed segments of a partition that is opening.
    pub fn scanned(
        &mut self,
        partition: Partition,
        epoch: Epoch,
        segments: Vec<SealedSegment>,
        on_gap: OnGap,
    ) -> Vec<Effect> {
        let Some(Spooled { phase: Phase::Opening { found, .. }, .. }) = self.current(partition, epoch) else {
            return Vec::new();
        };
        *found = Some(segments);
        self.open_when_known(partition, on_gap)
    }

    /// The archive's chain of a partition that is opening reaches `end`.
    pub fn chain_opened(&mut self, partition: Partition, epoch: Epoch, end: Offset, on_gap: OnGap) -> Vec<Effect> {
        let Some(Spooled { phase: Phase::Opening { chain_end, .. }, .. }) = self.current(partition, epoch) else {
            return Vec::new();
        };
        *chain_end = Some(end);
        self.open_when_known(partition, on_gap)
    }

    /// Goes on when both the archive's chain and the disk's segments are known.
    fn open_when_known(&mut self, partition: Partition, on_gap: OnGap) -> Vec<Effect> {
        let Some(spooled) = self.partitions.get_mut(&partition) else { return Vec::new() };
        let Phase::Opening { chain_end: Some(chain_end), found } = &mut spooled.phase else { return Vec::new() };
        let Some(segments) = found.take() else { return Vec::new() };
        let situation = Situation {
            chain_end: *chain_end,
            log_start: spooled.assignment.log_start,
            log_end: spooled.assignment.log_end,
            identity: &spooled.assignment.identity,
            archive: &self.rules.archive,
        };
        let Plan { keep, remove, trusts_log, orphan, x, fetch } = recover::plan(segments, &situation);
        // The log may have been asked long ago, before the store could be reached: asked once more.
        let unsure = trusts_log || fetch == Fetch::BeyondLog;
        if unsure && self.rechecked.insert(partition) {
            let epoch = spooled.epoch;
            return vec![Effect::Reassign(Reassign { partition, epoch })];
        }
        let (epoch, position, log_end) = (spooled.epoch, *chain_end, spooled.assignment.log_end);
        spooled.sealed = keep.iter().map(|segment| (segment.x(), segment.clone())).collect();
        let mut effects: Vec<Effect> = remove.into_iter().map(Effect::Remove).collect();
        effects.extend(orphan.into_iter().map(|(segment, why)| Effect::Orphan { segment, why }));
        effects.extend(keep.into_iter().map(|segment| Effect::Upload { epoch, segment }));
        effects.push(Effect::Confirm(Confirm { partition, epoch, position }));
        effects.extend(match fetch {
            Fetch::FromChain => self.begin(partition, x, x),
            Fetch::Gap { log_start } => self.gap(partition, x, log_start, on_gap),
            Fetch::BeyondLog => self.halt(
                partition,
                format!("the archive reaches offset {x}, but the log ends at {log_end}: this is not the log that was archived"),
                "if the topic was created anew, raise queue.generation and restart".to_owned(),
            ),
        });
        effects
    }

    /// Spools records from `at` on into a segment at chain position `x`.
    fn begin(&mut self, partition: Partition, x: Offset, at: Offset) -> Vec<Effect> {
        let Some(spooled) = self.partitions.get_mut(&partition) else { return Vec::new() };
        spooled.phase = Phase::Spooling;
        spooled.cursor = at;
        self.rechecked.remove(&partition);
        let (epoch, identity) = (spooled.epoch, spooled.assignment.identity.clone());
        vec![Effect::BeginSegments { partition, epoch, x, identity }, Effect::Begin(Begin { partition, epoch, at })]
    }

    fn halt(&mut self, partition: Partition, reason: String, action: String) -> Vec<Effect> {
        let Some(spooled) = self.partitions.get_mut(&partition) else { return Vec::new() };
        spooled.phase = Phase::Halted;
        let epoch = spooled.epoch;
        vec![Effect::CloseSegments(partition), Effect::Halt(Halt { partition, epoch, reason, action })]
    }

    /// A batch that covers `[from, to)`.
    pub fn batch(&mut self, partition: Partition, epoch: Epoch, from: Offset, to: Offset) -> Taken {
        let Some(spooled) = self.current(partition, epoch) else { return Taken::Ignored };
        let cursor = spooled.cursor;
        if !matches!(spooled.phase, Phase::Spooling) || to <= cursor {
            return Taken::Ignored;
        }
        if from > cursor {
            return Taken::Refused(Begin { partition, epoch, at: cursor });
        }
        spooled.cursor = to;
        Taken::From(cursor)
    }

    /// A segment was sealed.
    pub fn sealed(&mut self, epoch: Epoch, segment: SealedSegment) -> Vec<Effect> {
        let Some(spooled) = self.current(segment.header.partition, epoch) else { return Vec::new() };
        spooled.sealed.insert(segment.x(), segment.clone());
        vec![Effect::Upload { epoch, segment }]
    }

    /// The segment's object stands.
    pub fn archived(&mut self, epoch: Epoch, segment: SealedSegment) -> Vec<Effect> {
        let (partition, x, position) = (segment.header.partition, segment.x(), segment.end());
        self.leaving.remove(&(partition, x));
        let mut effects = Vec::new();
        if let Some(spooled) = self.current(partition, epoch) {
            spooled.sealed.remove(&x);
            effects.push(Effect::Confirm(Confirm { partition, epoch, position }));
        }
        // Confirmed before it is removed; a crash in between finds it again and drops it then.
        effects.push(Effect::Remove(segment));
        effects
    }

    /// Another object stands at the position of a segment; the chain goes on at its end.
    pub fn followed(&mut self, partition: Partition, epoch: Epoch, end: Offset) -> Vec<Effect> {
        let Some(spooled) = self.current(partition, epoch) else {
            // Revoked: the partition's next owner goes on from there.
            let stopped = self.stop_leaving(partition).into_iter();
            return stopped.filter(|segment| segment.end() <= end).map(Effect::Remove).collect();
        };
        let rest = spooled.sealed.split_off(&end);
        let before = std::mem::replace(&mut spooled.sealed, rest);
        let chaining = matches!(spooled.phase, Phase::Spooling) && spooled.sealed.contains_key(&end);
        let resent: Vec<SealedSegment> = spooled.sealed.values().filter(|_| chaining).cloned().collect();
        let covered = before.into_values().filter(|segment| segment.end() <= end);
        let mut effects: Vec<Effect> = covered.map(Effect::Remove).collect();
        effects.push(Effect::Confirm(Confirm { partition, epoch, position: end }));
        if chaining {
            // What was sealed while the uploader looked at the other object goes on from its end.
            effects.extend(resent.into_iter().map(|segment| Effect::Upload { epoch, segment }));
        } else {
            // The log may have been trimmed meanwhile: what is on disk is judged by where the log stands now.
            effects.push(Effect::Reassign(Reassign { partition, epoch }));
        }
        effects
    }

    /// A segment's file cannot be read as it was sealed. The partition is then to be assigned anew: it begins at the
    /// archive's end, and the log still has the records, or says that not.
    pub fn damaged(&mut self, segment: SealedSegment, why: String) -> Vec<Effect> {
        self.stop_leaving(segment.header.partition);
        vec![Effect::Orphan { segment, why }]
    }

    /// The chain cannot go on until the operator does something.
    pub fn chain_halted(&mut self, partition: Partition, epoch: Epoch, reason: String, action: String) -> Vec<Effect> {
        self.stop_leaving(partition);
        if self.is_current(partition, epoch) { self.halt(partition, reason, action) } else { Vec::new() }
    }

    /// The uploader lost its queues, and every partition begins anew. What belonged to revoked ones stays on disk, for
    /// their next assignment to this machine.
    pub fn uploads_lost(&mut self) {
        self.leaving.clear();
    }

    /// Uploads no more of a revoked partition. Its files stay for the next assignment to this machine, and count no more.
    fn stop_leaving(&mut self, partition: Partition) -> Vec<SealedSegment> {
        let (stopped, rest) =
            std::mem::take(&mut self.leaving).into_iter().partition(|((each, _), _)| *each == partition);
        self.leaving = rest;
        let stopped: BTreeMap<_, _> = stopped;
        stopped.into_values().collect()
    }
}
