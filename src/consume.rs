//! The consumer of one sink: reads batches from the queue, hands them to the sink, and commits what the sink confirms.
//!
//! **One cursor rule.** A batch says which offsets it covers, `[from, to)`. A sink has one cursor a partition: it skips
//! records below it, refuses a batch whose `from` is beyond it, and asks for a seek ([`Begin`]). So whatever was in
//! flight before a seek or a reassignment is harmless.
//!
//! **Life of an assignment.** The source assigns a partition, held → [`Assign`] to the sink with a fresh epoch → the
//! sink finds out where it stands (the archive's chain, the aggregates' fences) and answers [`Begin`] → batches flow →
//! the sink [`Confirm`]s durable positions, which are committed, never further. Messages of an older epoch are ignored
//! on both sides. When a sink lost its state (it was restarted), it says so ([`FromSink::Started`]) and every partition is
//! assigned to it anew.

pub mod assignments;
mod protocol;

use std::{collections::BTreeSet, sync::Arc, time::Instant};

use actix::{Actor, ActorContext, AsyncContext, Context, Handler, Message, ResponseFuture};

use self::assignments::Assignments;
pub use self::protocol::{
    Assign, Begin, Confirm, Drain, FromSink, Halt, Hold, Reassign, Replies, SetHold, Sink, Unassign,
};
use crate::{
    health::{ActorState, Halted},
    log::{Assignment, Batch, SourceCommand, SourceEvent, SourceEvents, SourceHandle},
    metrics::SinkLabel,
    names::SinkName,
    panics::panic_message,
    position::Partition,
    supervise::{Env, Escalation, Fences, Slot},
};

/// From the source's thread.
#[derive(Debug, Message)]
#[rtype(result = "()")]
struct FromSource(SourceEvent);

/// At the stop: fetch nothing more, then have the sink make everything durable that it holds.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "()")]
pub struct StopFetching;

/// At the stop, after the sink is drained: commit what it confirmed and leave the group.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "Left")]
pub struct Leave;

/// The answer to [`Leave`].
#[derive(Debug)]
pub struct Left {
    /// Records that were not read yet, as far as the consumer knows.
    pub unread: u64,
    /// Or why the last positions are not.
    pub committed: Result<(), String>,
}

/// The consumer actor of one sink.
pub struct Consumer<S: Sink> {
    parts: Arc<ConsumerParts<S>>,
    source: Option<SourceHandle>,
    assignments: Assignments,
    holds: BTreeSet<Hold>,
    /// Why the source cannot read, as it said last.
    unavailable: Option<String>,
    stopping: bool,
}

/// What outlives the incarnations of a consumer.
pub struct ConsumerParts<S: Sink> {
    pub name: SinkName,
    pub topic: String,
    /// The queue that it reads, as readiness names it.
    pub queue: &'static str,
    pub sink: Slot<S>,
    pub env: Env,
    pub fences: Fences,
}

impl<S: Sink> Consumer<S> {
    /// Starts the source, which sends its events to this actor.
    ///
    /// # Errors
    /// Those of `start_source`: settings that the queue refuses.
    pub fn new(
        parts: Arc<ConsumerParts<S>>,
        ctx: &Context<Self>,
        start_source: impl FnOnce(SourceEvents) -> anyhow::Result<SourceHandle>,
    ) -> anyhow::Result<Self> {
        let addr = ctx.address();
        // Batches are bounded by the source's byte budget, everything else is rare: capacity must not drop either.
        let source = start_source(Arc::new(move |event| addr.do_send(FromSource(event))))?;
        Ok(Self {
            parts,
            source: Some(source),
            assignments: Assignments::default(),
            holds: BTreeSet::new(),
            unavailable: None,
            stopping: false,
        })
    }

    fn command(&self, command: SourceCommand) {
        if let Some(source) = &self.source {
            // An error says that the thread has ended; its last event says why.
            let _ = source.commands.send(command);
        }
    }

    fn assigned(&mut self, assignment: Assignment) {
        let (partition, epoch) = (assignment.partition, self.assignments.assigned(&assignment));
        self.release(partition);
        self.show_lag(partition);
        tracing::info!(sink = self.parts.name.as_str(), %partition, committed = ?assignment.committed.map(|o| o.0),
            log_start = %assignment.log_start, log_end = %assignment.log_end, "partition assigned");
        self.parts.sink.tell(Assign { epoch, assignment });
    }

    fn revoked(&mut self, partition: Partition) {
        let Some(epoch) = self.assignments.revoked(partition) else { return };
        tracing::info!(sink = self.parts.name.as_str(), %partition, "partition revoked");
        self.release(partition);
        self.parts.env.metrics.forget_lag(self.parts.name, &self.parts.topic, partition);
        self.parts.sink.tell(Unassign { partition, epoch });
    }

    fn release(&self, partition: Partition) {
        self.parts.env.health.release(self.parts.name, partition);
    }

    fn batch(&mut self, batch: Batch) {
        let (partition, epoch) = (batch.partition, batch.epoch);
        if !self.assignments.delivers(partition, epoch, batch.to) {
            return;
        }
        let Some(sink) = self.parts.sink.get() else {
            // It is being restarted, and will be assigned everything anew: reading on would be for nothing.
            self.assignments.reassign(partition, epoch);
            return self.command(SourceCommand::Hold(partition));
        };
        let consumed = &self.parts.env.metrics.events_consumed;
        consumed.get_or_create(&SinkLabel { sink: self.parts.name.as_str() }).inc_by(batch.new_records());
        // Past the mailbox's capacity: the source's byte budget bounds them.
        sink.do_send(batch);
        self.show_lag(partition);
    }

    fn halt(&mut self, Halt { partition, epoch, reason, action }: Halt) {
        if self.assignments.halt(partition, epoch) {
            self.command(SourceCommand::Hold(partition));
            let (sink, topic) = (self.parts.name, self.parts.topic.clone());
            self.parts.env.health.halt(Halted { sink, topic, partition, reason, action });
        }
    }

    fn hold(&mut self, SetHold { hold, on }: SetHold) {
        let held_before = !self.holds.is_empty();
        let changed = if on { self.holds.insert(hold) } else { self.holds.remove(&hold) };
        let held = !self.holds.is_empty();
        if held != held_before && !self.stopping {
            self.command(if held { SourceCommand::Pause } else { SourceCommand::Resume });
        }
        if changed {
            tracing::info!(sink = self.parts.name.as_str(), reason = hold.reason(), on, "fetching held");
            self.show_state();
        }
    }

    fn sink_started(&mut self) {
        // The reasons of the last incarnation ended with it; the new one says what holds it.
        self.holds.clear();
        if !self.stopping {
            self.command(SourceCommand::Resume);
        }
        self.show_state();
        self.command(SourceCommand::Reassign);
    }

    /// Notes whether the source can read, and if not, why.
    fn available(&mut self, outcome: Result<(), String>) {
        self.unavailable = outcome.clone().err();
        let user = self.parts.name.consumer().as_str();
        self.parts.env.health.dependency_of(self.parts.queue, user, outcome);
        self.show_state();
    }

    fn show_lag(&self, partition: Partition) {
        if let Some(lag) = self.assignments.lag(partition) {
            self.parts.env.metrics.set_lag(self.parts.name, &self.parts.topic, partition, lag);
        }
    }

    fn show_state(&self) {
        let (state, reason) = match (&self.unavailable, self.holds.first()) {
            (Some(reason), _) => (ActorState::Failing, Some(reason.clone())),
            (None, Some(hold)) => (ActorState::Paused, Some(hold.reason().to_owned())),
            (None, None) => (ActorState::Running, None),
        };
        self.parts.env.health.actor(self.parts.name.consumer(), state, reason);
    }
}

impl<S: Sink> Actor for Consumer<S> {
    type Context = Context<Self>;

    fn started(&mut self, _: &mut Self::Context) {
        self.show_state();
    }
}

impl<S: Sink> Drop for Consumer<S> {
    /// After a panic too: the source leaves, and the next incarnation's takes its place. That one knows of no
    /// partition, and may be given others: what the sink, readiness and metrics have of ours ends here.
    fn drop(&mut self) {
        if self.source.is_none() {
            // At the stop, where what is halted stays to be read.
            return;
        }
        self.command(SourceCommand::Close(Vec::new()));
        for partition in self.assignments.partitions() {
            self.revoked(partition);
        }
    }
}

impl<S: Sink> Handler<FromSource> for Consumer<S> {
    type Result = ();

    fn handle(&mut self, FromSource(event): FromSource, ctx: &mut Self::Context) {
        match event {
            SourceEvent::Assigned(assignments) => assignments.into_iter().for_each(|each| self.assigned(each)),
            SourceEvent::Revoked(partitions) => partitions.into_iter().for_each(|each| self.revoked(each)),
            SourceEvent::Batch(batch) => self.batch(batch),
            SourceEvent::LogEnd(partition, end) => {
                self.assignments.log_end(partition, end);
                self.show_lag(partition);
            }
            SourceEvent::EmptyTail { partition, from, to } => {
                self.assignments.empty_tail(partition, from, to);
                self.show_lag(partition);
            }
            SourceEvent::Unavailable(reason) => {
                self.parts.fences.brokers_away();
                self.available(Err(reason));
            }
            SourceEvent::Available => self.available(Ok(())),
            SourceEvent::Fenced(reason) if self.parts.fences.are_another_process(Instant::now()) => {
                self.parts.env.escalate(Escalation::Fenced { reason });
            }
            SourceEvent::Fenced(reason) => {
                tracing::warn!(sink = self.parts.name.as_str(), reason, "membership lost; joining once more");
                ctx.stop();
            }
            SourceEvent::Failed(reason) => {
                tracing::error!(sink = self.parts.name.as_str(), reason, "the source failed");
                ctx.stop();
            }
        }
    }
}

impl<S: Sink> Handler<FromSink> for Consumer<S> {
    type Result = ();

    fn handle(&mut self, message: FromSink, _: &mut Self::Context) {
        match message {
            FromSink::Begin(Begin { partition, epoch, at }) => {
                if self.assignments.begin(partition, epoch) && !self.stopping {
                    self.command(SourceCommand::Begin { partition, epoch, at });
                }
            }
            FromSink::Confirm(Confirm { partition, epoch, position }) => {
                if self.assignments.confirm(partition, epoch, position) {
                    self.command(SourceCommand::Commit(vec![(partition, position)]));
                    self.show_lag(partition);
                }
            }
            FromSink::Halt(halt) => self.halt(halt),
            FromSink::Reassign(Reassign { partition, epoch }) => {
                if self.assignments.reassign(partition, epoch) {
                    self.command(SourceCommand::ReassignPartition(partition));
                }
            }
            FromSink::Hold(hold) => self.hold(hold),
            FromSink::Started => self.sink_started(),
        }
    }
}

impl<S: Sink> Handler<StopFetching> for Consumer<S> {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, _: StopFetching, _: &mut Self::Context) -> Self::Result {
        self.stopping = true;
        self.command(SourceCommand::Pause);
        // Behind all batches that it was given.
        let drained = self.parts.sink.get().map(|sink| sink.send(Drain));
        Box::pin(async move {
            if let Some(drained) = drained {
                // An error says that the sink has died: it has nothing left to make durable.
                let _ = drained.await;
            }
        })
    }
}

impl<S: Sink> Handler<Leave> for Consumer<S> {
    type Result = ResponseFuture<Left>;

    fn handle(&mut self, _: Leave, _: &mut Self::Context) -> Self::Result {
        let unread = self.assignments.total_lag();
        self.command(SourceCommand::Close(self.assignments.positions()));
        let thread = self.source.take().map(|source| source.thread);
        let joined = tokio::task::spawn_blocking(move || match thread.map(std::thread::JoinHandle::join) {
            None => Ok(()),
            Some(Ok(committed)) => committed,
            Some(Err(panic)) => Err(format!("the thread that reads panicked: {}", panic_message(panic.as_ref()))),
        });
        Box::pin(async move {
            let committed = joined.await.unwrap_or_else(|error| Err(error.to_string()));
            Left { unread, committed }
        })
    }
}

#[cfg(test)]
mod tests;
