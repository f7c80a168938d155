//! The consumer of one sink: reads batches from the queue, hands them to the sink, and commits what the sink confirms.
//!
//! **One cursor rule.** A batch says which offsets it covers, `[from, to)`. A sink has one cursor a partition: it skips
//! records below it, refuses a batch whose `from` is beyond it, and asks for a seek ([`Begin`]). So whatever was in
//! flight before a seek or a reassignment is harmless.
//!
//! **Life of an assignment.** The source assigns a partition, held → [`Assign`] to the sink with a fresh epoch → the
//! sink finds out where it stands (the archive's chain, the aggregates' fences) and answers [`Begin`] → batches flow →
//! the sink [`Confirm`]s durable positions, which are committed, never further. Messages of an older epoch are ignored
//! on both sides. When a sink lost its state (it was restarted), it says so ([`SinkStarted`]) and every partition is
//! assigned to it anew.

use actix::{Actor, Handler, Message};

use crate::{
    position::{Offset, Partition},
    queue::{Assignment, Batch, Epoch},
};

/// To the sink: this partition is yours. Answer with [`Begin`] (or [`Halt`]).
#[derive(Debug, Clone, Message)]
#[rtype(result = "()")]
pub struct Assign {
    pub epoch: Epoch,
    pub assignment: Assignment,
}

/// To the sink: this partition is no longer yours. What was confirmed so far is committed.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "()")]
pub struct Unassign {
    pub partition: Partition,
    pub epoch: Epoch,
}

impl Message for Batch {
    type Result = ();
}

/// To the sink, at the stop, after the last batch: make everything durable that can be, confirm it, then reply.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "()")]
pub struct Drain;

/// From the sink: deliver this partition from `at` on. The answer to [`Assign`], and later a seek.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "()")]
pub struct Begin {
    pub partition: Partition,
    pub epoch: Epoch,
    pub at: Offset,
}

/// From the sink: everything before `position` is durable.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "()")]
pub struct Confirm {
    pub partition: Partition,
    pub epoch: Epoch,
    pub position: Offset,
}

/// From the sink: this partition cannot go on until the operator does something; the others do.
#[derive(Debug, Clone, Message)]
#[rtype(result = "()")]
pub struct Halt {
    pub partition: Partition,
    pub epoch: Epoch,
    pub reason: String,
    /// What the operator can do.
    pub action: String,
}

/// From the sink: ask the queue again where this partition's group and log stand, and assign it anew (after a fence
/// said that another writer was here).
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "()")]
pub struct Reassign {
    pub partition: Partition,
    pub epoch: Epoch,
}

/// From the sink: it was started and knows of no partition.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "()")]
pub struct SinkStarted;

/// Why a consumer fetches nothing at present; several may hold at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hold {
    /// The file system of `data.dir` is too full.
    DiskFull,
    /// The spool reached `spool.quota`.
    SpoolQuota,
    /// The sink's store cannot be reached, so that reading on would only fill memory.
    SinkUnavailable,
}

/// To the consumer: fetch nothing for this reason, or (with `on` false) do not mind it any more.
#[derive(Debug, Clone, Message)]
#[rtype(result = "()")]
pub struct SetHold {
    pub hold: Hold,
    pub on: bool,
}

/// What a consumer feeds: the spooler, or the aggregator.
pub trait Sink: Actor + Handler<Assign> + Handler<Unassign> + Handler<Batch> + Handler<Drain> {}

/// What a sink says to its consumer. Lost messages (the consumer is being restarted) do no harm: a restarted consumer
/// assigns anew.
pub trait SinkReplies: Send + Sync {
    fn begin(&self, m: Begin);
    fn confirm(&self, m: Confirm);
    fn halt(&self, m: Halt);
    fn reassign(&self, m: Reassign);
    fn hold(&self, m: SetHold);
    fn started(&self);
}

pub type Replies = std::sync::Arc<dyn SinkReplies>;
