//! What a consumer and its sink say to each other.

use std::sync::Arc;

use actix::{Actor, Context, Handler, Message};

use crate::{
    log::{Assignment, Batch, Epoch},
    position::{Offset, Partition},
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

/// Deliver this partition from `at` on. The answer to [`Assign`], and later a seek.
#[derive(Debug, Clone, Copy)]
pub struct Begin {
    pub partition: Partition,
    pub epoch: Epoch,
    pub at: Offset,
}

/// Everything before `position` is durable.
#[derive(Debug, Clone, Copy)]
pub struct Confirm {
    pub partition: Partition,
    pub epoch: Epoch,
    pub position: Offset,
}

/// This partition cannot go on until the operator does something; the others do.
#[derive(Debug, Clone)]
pub struct Halt {
    pub partition: Partition,
    pub epoch: Epoch,
    pub reason: String,
    /// What the operator can do.
    pub action: String,
}

/// Ask the queue again where this partition's group and log stand, and assign it anew (after a fence said that another
/// writer was here).
#[derive(Debug, Clone, Copy)]
pub struct Reassign {
    pub partition: Partition,
    pub epoch: Epoch,
}

/// Fetch nothing for this reason, or (with `on` false) do not mind it any more.
#[derive(Debug, Clone)]
pub struct SetHold {
    pub hold: Hold,
    pub on: bool,
}

/// From the sink.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub enum FromSink {
    Begin(Begin),
    Confirm(Confirm),
    Halt(Halt),
    Reassign(Reassign),
    Hold(SetHold),
    /// It was started and knows of no partition.
    Started,
}

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

/// Carries what a sink says to its consumer. A message that finds none (it is being restarted) is dropped without harm:
/// a restarted consumer assigns everything anew.
#[derive(Clone)]
pub struct Replies(Arc<dyn Fn(FromSink) + Send + Sync>);

impl Replies {
    pub fn new(deliver: impl Fn(FromSink) + Send + Sync + 'static) -> Self {
        Self(Arc::new(deliver))
    }

    pub fn begin(&self, begin: Begin) {
        self.0(FromSink::Begin(begin));
    }

    pub fn confirm(&self, confirm: Confirm) {
        self.0(FromSink::Confirm(confirm));
    }

    pub fn halt(&self, halt: Halt) {
        self.0(FromSink::Halt(halt));
    }

    pub fn reassign(&self, reassign: Reassign) {
        self.0(FromSink::Reassign(reassign));
    }

    pub fn hold(&self, hold: SetHold) {
        self.0(FromSink::Hold(hold));
    }

    pub fn started(&self) {
        self.0(FromSink::Started);
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
