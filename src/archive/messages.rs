//! What the spooler and the uploader say to each other. Each message is about one assignment of a partition: what an
//! earlier one was told is told apart by its epoch.

use actix::Message;

use super::spool::segment::SealedSegment;
use crate::{
    log::{Assignment, Epoch},
    position::{Offset, Partition},
};

/// From the spooler: find out how far this partition's chain reaches, and answer `ChainOpened`.
#[derive(Debug, Clone, Message)]
#[rtype(result = "()")]
pub struct OpenChain {
    pub epoch: Epoch,
    pub assignment: Assignment,
}

/// From the spooler: put this segment, when it is its turn.
#[derive(Debug, Clone, Message)]
#[rtype(result = "()")]
pub struct Upload {
    pub epoch: Epoch,
    pub segment: SealedSegment,
}

/// From the spooler: see how things stand with this partition's hole, and answer `GapAnswered`.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "()")]
pub struct AskAboutGap {
    pub partition: Partition,
    pub epoch: Epoch,
}

/// From the uploader: the archive's chain of this partition is known to reach `end`.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "()")]
pub struct ChainOpened {
    pub partition: Partition,
    pub epoch: Epoch,
    pub end: Offset,
}

/// From the uploader: this segment's object stands.
#[derive(Debug, Clone, Message)]
#[rtype(result = "()")]
pub struct Archived {
    pub epoch: Epoch,
    pub segment: SealedSegment,
}

/// From the uploader: another object stands at the segment's position; the chain goes on at its end.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "()")]
pub struct Followed {
    pub partition: Partition,
    pub epoch: Epoch,
    pub end: Offset,
}

/// From the uploader: the segment's file cannot be read as it was sealed.
#[derive(Debug, Clone, Message)]
#[rtype(result = "()")]
pub struct Damaged {
    pub epoch: Epoch,
    pub segment: SealedSegment,
    pub why: String,
}

/// From the uploader: this partition's chain cannot go on.
#[derive(Debug, Clone, Message)]
#[rtype(result = "()")]
pub struct ChainHalted {
    pub partition: Partition,
    pub epoch: Epoch,
    pub reason: String,
    pub action: String,
}

/// From the uploader: how things stand with this partition's hole.
#[derive(Debug, Clone, Message)]
#[rtype(result = "()")]
pub struct GapAnswered {
    pub partition: Partition,
    pub epoch: Epoch,
    pub news: GapAnswer,
}

/// From the uploader: it was started and knows of no chain.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "()")]
pub struct UploaderStarted;

/// What the operator has said of a hole: records below the offset may be missing; or why the word cannot be read.
pub type SkipMarker = Result<Option<Offset>, String>;

/// What the archive was found to say about a hole.
#[derive(Debug, Clone)]
pub enum GapAnswer {
    /// The chain reaches further than when it was opened: the hole is smaller, or none any more.
    Grown,
    /// What the operator has said.
    Skip(SkipMarker),
}
