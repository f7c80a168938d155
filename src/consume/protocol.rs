//! What a consumer and its sink say to each other.

use std::sync::Arc;

use actix::{Actor, Context, Handler, Message};

use super::Consumer;
use crate::{
    log::{Assignment, Batch, Epoch},
    position::{Offset, Partition},
    supervise::Slot,
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

impl Hold {
    /// As readiness gives it.
    pub fn reason(self) -> &'static str {
        match self {
            Self::DiskFull => "the disk is too full (disk.max_used_percent)",
            Self::SpoolQuota => "sealed segments fill spool.quota; they wait for the object store",
            Self::SinkUnavailable => "the store is behind; what is read waits for it",
        }
    }
}

/// What a sink says to its consumer. A message that finds none (it is being restarted) is dropped without harm: a
/// restarted consumer assigns everything anew.
pub trait SinkReplies: Send + Sync {
    fn begin(&self, begin: Begin);
    fn confirm(&self, confirm: Confirm);
    fn halt(&self, halt: Halt);
    fn reassign(&self, reassign: Reassign);
    fn hold(&self, hold: SetHold);
    fn started(&self);
}

pub type Replies = Arc<dyn SinkReplies>;

impl<S: Sink> SinkReplies for Slot<Consumer<S>> {
    fn begin(&self, begin: Begin) {
        self.tell(begin);
    }

    fn confirm(&self, confirm: Confirm) {
        self.tell(confirm);
    }

    fn halt(&self, halt: Halt) {
        self.tell(halt);
    }

    fn reassign(&self, reassign: Reassign) {
        self.tell(reassign);
    }

    fn hold(&self, hold: SetHold) {
        self.tell(hold);
    }

    fn started(&self) {
        self.tell(SinkStarted);
    }
}

/// What a consumer feeds: the spooler, or the aggregator.
pub trait Sink:
    Actor<Context = Context<Self>> + Handler<Assign> + Handler<Unassign> + Handler<Batch> + Handler<Drain>
{
}

impl<S> Sink for S where
    S: Actor<Context = Context<S>> + Handler<Assign> + Handler<Unassign> + Handler<Batch> + Handler<Drain>
{
}
