//! One assignment of a partition: what follows from each input.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use super::{Effect, News, PutAnswer, SegmentCommand, SkipMarker, Step, Tracked, Transfer};
use crate::{
    archive::{
        spool::{
            recover::{self, Fetch, Plan},
            segment::SealedSegment,
        },
        upload::opening::{Head, Unusable},
    },
    consume::{Begin, Confirm, Halt, Reassign},
    log::{Assignment, Epoch},
    position::{Offset, Partition},
};

/// Heads are rewritten at most this often; an older one costs the next start a LIST of what came after it.
const HEAD_INTERVAL: Duration = Duration::from_secs(5);

/// What is known of an assignment.
pub(super) struct Held {
    pub(super) epoch: Epoch,
    pub(super) assignment: Assignment,
    pub(super) phase: Phase,
    /// The next offset to spool.
    pub(super) cursor: Offset,
    /// Segments that are sealed and not known to be archived, by chain offset.
    pub(super) sealed: BTreeMap<Offset, SealedSegment>,
    /// Where the archive's chain is known to end: only there a segment is put. `None` before it is known, and when it is
    /// not to go on.
    pub(super) chain_end: Option<Offset>,
    /// The chain offset of the segment that is on its way.
    pub(super) putting: Option<Offset>,
    /// The key of the last object, while the head does not name it yet.
    unwritten_key: Option<String>,
    head_written: Instant,
}

pub(super) enum Phase {
    /// Waiting for the archive's chain and the disk's segments.
    Opening { found: Option<Vec<SealedSegment>> },
    /// Begun.
    Spooling,
    /// Halted at a gap that the operator may allow to be left.
    Gap { log_start: Offset, marker: SkipMarker },
    /// Until somebody does something, and it is assigned anew.
    Halted,
    /// Revoked: nothing is spooled, and what is sealed goes on.
    Leaving,
}

impl Held {
    fn new(epoch: Epoch, assignment: Assignment, at: Instant) -> Self {
        Self {
            epoch,
            assignment,
            phase: Phase::Opening { found: None },
            cursor: Offset(0),
            sealed: BTreeMap::new(),
            chain_end: None,
            putting: None,
            unwritten_key: None,
            head_written: at,
        }
    }

    pub(super) fn is_ours(&self) -> bool {
        !matches!(self.phase, Phase::Leaving)
    }

    fn partition(&self) -> Partition {
        self.assignment.partition
    }

    pub(super) fn reassign(&self) -> Reassign {
        Reassign { partition: self.partition(), epoch: self.epoch }
    }

    /// Puts the segment that the chain goes on with, unless one is on its way.
    fn put_next(&mut self, step: &mut Step<'_>) {
        if self.putting.is_some() {
            return;
        }
        if let Some(segment) = self.chain_end.and_then(|end| self.sealed.get(&end)) {
            self.putting = Some(segment.chain_offset());
            step.transfer(Transfer::Put { epoch: self.epoch, segment: segment.clone() });
        }
    }

    /// Of a revoked partition: what the chain does not go on with stays on disk until the next assignment here, and must not
    /// count as waiting until then.
    fn leave_what_does_not_go_on(&mut self) {
        if !self.is_ours()
            && self.putting.is_none()
            && !self.chain_end.is_some_and(|end| self.sealed.contains_key(&end))
        {
            self.sealed.clear();
        }
    }

    /// The head, if it is older than the chain, and (where it `may_wait`) old enough to be rewritten.
    pub(super) fn head_to_write(&mut self, at: Instant, may_wait: bool) -> Option<Head> {
        let (end, key) = (self.chain_end?, self.unwritten_key.as_ref()?);
        if may_wait && at.saturating_duration_since(self.head_written) < HEAD_INTERVAL {
            return None;
        }
        let key = Some(key.clone());
        (self.head_written, self.unwritten_key) = (at, None);
        Some(Head { version: Head::VERSION, end, key, identity: self.assignment.identity.clone() })
    }

    pub(super) fn write_head(&mut self, step: &mut Step<'_>) {
        let partition = self.partition();
        if let Some(head) = self.head_to_write(step.moment.at, true) {
            step.transfer(Transfer::WriteHead { partition, head });
        }
    }

    fn confirm(&self, position: Offset, step: &mut Step<'_>) {
        if self.is_ours() {
            step.then(Effect::Confirm(Confirm { partition: self.partition(), epoch: self.epoch, position }));
        }
    }

    fn halt(&mut self, reason: String, action: String, step: &mut Step<'_>) {
        self.phase = Phase::Halted;
        let (partition, epoch) = (self.partition(), self.epoch);
        step.segments(SegmentCommand::Close(partition));
        step.then(Effect::Halt(Halt { partition, epoch, reason, action }));
    }
}

impl Tracked {
    pub(super) fn on(&mut self, news: News, step: &mut Step<'_>) {
        match news {
            News::Unassigned => self.unassigned(step),
            News::Scanned(segments) => self.scanned(segments, step),
            News::Sealed(segment) => self.sealed(segment, step),
            News::Opened(outcome) => self.opened(outcome, step),
            News::Put { key, answer } => self.put(key, answer, step),
            News::GapAnswered(answer) => self.gap_answered(answer, step),
            News::Replaced(key) => self.replaced(&key, step),
        }
    }

    /// Where does the archive end, and what does the disk hold?
    pub(super) fn assigned(&mut self, epoch: Epoch, assignment: Assignment, step: &mut Step<'_>) {
        let held = self.held.insert(Held::new(epoch, assignment.clone(), step.moment.at));
        if let Some(group) = &step.rules.sole_member_of
            && !assignment.holds_all
        {
            let reason = format!("another worker is in group {group}: use a shared store");
            let action = "set archive.url to a shared store (s3://, gs://, az://), or run one worker".to_owned();
            return held.halt(reason, action, step);
        }
        step.segments(SegmentCommand::Scan { partition: self.partition, epoch });
        step.transfer(Transfer::OpenChain { epoch, assignment, known: self.known });
    }

    /// What is open is dropped, what is sealed goes on, where its chain does.
    fn unassigned(&mut self, step: &mut Step<'_>) {
        // What the log said was for this assignment.
        self.rechecked = false;
        let Some(held) = self.held.as_mut().filter(|held| held.is_ours()) else { return };
        held.phase = Phase::Leaving;
        if held.chain_end.is_none() {
            self.held = None;
        } else {
            held.leave_what_does_not_go_on();
        }
        step.segments(SegmentCommand::End(self.partition));
    }

    /// What was told to the uploader is lost, and every partition begins anew. What belonged to revoked ones stays on
    /// disk, for their next assignment to this machine.
    pub(super) fn uploader_started(&mut self) {
        match &mut self.held {
            Some(held) if held.is_ours() => (held.chain_end, held.putting) = (None, None),
            held => *held = None,
        }
    }

    fn scanned(&mut self, segments: Vec<SealedSegment>, step: &mut Step<'_>) {
        if let Some(Held { phase: Phase::Opening { found }, .. }) = &mut self.held {
            *found = Some(segments);
            self.open_when_known(step);
        }
    }

    fn opened(&mut self, outcome: Result<Offset, Unusable>, step: &mut Step<'_>) {
        let Some(held) = self.held.as_mut().filter(|held| matches!(held.phase, Phase::Opening { .. })) else { return };
        match outcome {
            Ok(end) => {
                held.chain_end = Some(end);
                self.open_when_known(step);
            }
            Err(Unusable { reason, action }) => self.stop_chain(reason, action, step),
        }
    }

    /// Goes on when both the archive's chain and the disk's segments are known.
    fn open_when_known(&mut self, step: &mut Step<'_>) {
        let Some(held) = &mut self.held else { return };
        let (Some(chain_end), Phase::Opening { found }) = (held.chain_end, &mut held.phase) else { return };
        let Some(segments) = found.take() else { return };
        let Plan { keep, remove, trusts_log, orphan, chain_offset, fetch } =
            recover::plan(segments, chain_end, &held.assignment, &step.rules.archive);
        // The log may have been asked long ago, before the store could be reached: asked once more.
        let unsure = trusts_log || fetch == Fetch::BeyondLog;
        if unsure && !std::mem::replace(&mut self.rechecked, true) {
            step.then(Effect::Reassign(held.reassign()));
            return;
        }
        // The answer holds for this assignment alone: it may end without having begun.
        self.rechecked = false;
        held.sealed = keep.into_iter().map(|segment| (segment.chain_offset(), segment)).collect();
        remove.into_iter().for_each(|segment| step.segments(SegmentCommand::Remove(segment)));
        orphan.into_iter().for_each(|(segment, why)| step.segments(SegmentCommand::Orphan { segment, why }));
        held.put_next(step);
        held.confirm(chain_end, step);
        match fetch {
            Fetch::FromChain => self.begin(chain_offset, chain_offset, step),
            Fetch::Gap { log_start } => self.gap(chain_offset, log_start, step),
            Fetch::BeyondLog => {
                let log_end = held.assignment.log_end;
                let reason = format!(
                    "the archive reaches offset {chain_offset}, but the log ends at {log_end}: this is not the log that was archived"
                );
                let action = "if the topic was created anew, raise queue.generation and restart".to_owned();
                held.halt(reason, action, step);
            }
        }
    }

    /// Spools records from `at` on into a segment at `chain_offset`.
    pub(super) fn begin(&mut self, chain_offset: Offset, at: Offset, step: &mut Step<'_>) {
        let Some(held) = &mut self.held else { return };
        (held.phase, held.cursor) = (Phase::Spooling, at);
        let (partition, epoch, identity) = (self.partition, held.epoch, held.assignment.identity.clone());
        step.segments(SegmentCommand::Begin { partition, epoch, chain_offset, identity });
        step.then(Effect::Begin(Begin { partition, epoch, at }));
    }

    fn sealed(&mut self, segment: SealedSegment, step: &mut Step<'_>) {
        let Some(held) = self.held.as_mut().filter(|held| held.is_ours()) else { return };
        held.sealed.insert(segment.chain_offset(), segment);
        held.put_next(step);
    }

    fn put(&mut self, key: String, answer: PutAnswer, step: &mut Step<'_>) {
        let Some(held) = &mut self.held else { return };
        // One whose chain was stopped meanwhile is looked at in the next assignment, as all that is on disk.
        let under_way = held.putting.take().filter(|_| held.chain_end.is_some());
        let Some(segment) = under_way.and_then(|at| held.sealed.remove(&at)) else { return };
        match answer {
            PutAnswer::Created => self.archived(segment, key, step),
            // Our own object: the answer to an earlier attempt was lost.
            PutAnswer::Exists { end } if end == segment.end() => self.archived(segment, key, step),
            PutAnswer::Exists { end } => {
                held.sealed.insert(segment.chain_offset(), segment);
                self.followed(end, step);
            }
            PutAnswer::Conflict { reason } => {
                held.sealed.insert(segment.chain_offset(), segment);
                let action = "compare that object with the log; to archive from here on beside it, raise queue.generation and restart";
                self.stop_chain(reason, action.to_owned(), step);
            }
            PutAnswer::Damaged { why } => self.damaged(segment, why, step),
        }
        if let Some(held) = &mut self.held {
            held.put_next(step);
            held.leave_what_does_not_go_on();
        }
    }

    /// The segment's object stands.
    fn archived(&mut self, segment: SealedSegment, key: String, step: &mut Step<'_>) {
        let Some(held) = &mut self.held else { return };
        self.known.archived(segment.end());
        (held.chain_end, held.unwritten_key) = (Some(segment.end()), Some(key));
        step.then(Effect::Archived { records: segment.header.records });
        // Confirmed before it is removed; a crash in between finds it again and drops it then.
        held.confirm(segment.end(), step);
        step.segments(SegmentCommand::Remove(segment));
        held.write_head(step);
    }

    /// Another object stands where a segment of ours would go; the chain goes on at its end.
    fn followed(&mut self, end: Offset, step: &mut Step<'_>) {
        let Some(held) = &mut self.held else { return };
        self.known.met(end);
        step.then(Effect::Followed { partition: self.partition, end });
        held.chain_end = Some(end);
        let rest = held.sealed.split_off(&end);
        let before = std::mem::replace(&mut held.sealed, rest);
        for segment in before.into_values().filter(|segment| segment.end() <= end) {
            step.segments(SegmentCommand::Remove(segment));
        }
        if !held.is_ours() {
            // The partition's next owner goes on from there.
            self.held = None;
            return;
        }
        held.confirm(end, step);
        // What was sealed while the PUT was under way may go on from there.
        if !(matches!(held.phase, Phase::Spooling) && held.sealed.contains_key(&end)) {
            // The log may have been trimmed meanwhile: what becomes of the disk's segments depends on where the log stands now.
            step.then(Effect::Reassign(held.reassign()));
        }
    }

    /// A segment's file cannot be read as it was sealed. The partition is assigned anew: it begins at the archive's end,
    /// and the log still has the records, or says that not.
    fn damaged(&mut self, segment: SealedSegment, why: String, step: &mut Step<'_>) {
        step.segments(SegmentCommand::Orphan { segment, why });
        match &mut self.held {
            Some(held) if held.is_ours() => step.then(Effect::ReassignSoon(held.reassign())),
            held => *held = None,
        }
    }

    fn replaced(&mut self, key: &str, step: &mut Step<'_>) {
        let reason = format!(
            "{key} is not the object that was put: another writer has overwritten it, so the store does not honour create-only PUTs"
        );
        let action = "find what is missing by `ingestd archive verify`, move the archive to a store that honours them (`ingestd check --connect --thorough`), and restart";
        self.stop_chain(reason, action.to_owned(), step);
    }

    /// The chain cannot go on until the operator does something.
    fn stop_chain(&mut self, reason: String, action: String, step: &mut Step<'_>) {
        match &mut self.held {
            Some(held) if held.is_ours() => {
                held.chain_end = None;
                held.halt(reason, action, step);
            }
            held => *held = None,
        }
    }

    pub(super) fn tick(&mut self, ask: bool, step: &mut Step<'_>) {
        self.gap_tick(ask, step);
        if let Some(held) = &mut self.held {
            held.write_head(step);
        }
    }
}
