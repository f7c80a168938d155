//! The aggregator: counts events in buckets, and flushes the counts to the store.
//!
//! Batches are folded in memory as they come; a flush makes what was folded durable (dead letters and processed events
//! first), then the positions are confirmed. One flush is in flight at a time, and folding goes on beside it up to a
//! bound. A flush that fails is sent again, identically, for as long as it takes. A partition whose bucket another
//! writer has advanced is dropped as a whole and assigned anew: what its fences say is then skipped.

mod archived;
mod early;
mod expiry;
mod filter;
mod flush;
mod fold;
mod grouping;
mod history;
mod limit;
mod open;
mod rebuild;
mod refuse;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use actix::{Actor, ActorFutureExt, AsyncContext, Context, Handler, ResponseFuture, SpawnHandle, WrapFuture};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::{
    config::{LiveConfig, StoreKind},
    consume::{Assign, Begin, Confirm, Drain, Halt, Hold, Reassign, Replies, SetHold, Unassign},
    health::{ActorState, Health},
    log::{
        Assignment, Batch, Epoch,
        dead_letters::{DeadLetterWriter, Source},
    },
    metrics::Metrics,
    names::{ActorName, SinkName, dependency},
    position::{Offset, Partition, TopicIdentity},
    store::{Blocked, Flushed, RefusedEvent, Store, StoreError},
};

pub use archived::configured_archive;
use flush::{Attempt, Attempted, Failure, Flush, Part, Statements};
pub use fold::{Coverage, GroupFold, PartitionFold};
pub use history::{Archived, Chain};
pub use limit::{KnownGroups, Limit};
use open::{Loaded, OpenPartition, Reader};
pub use rebuild::Rebuilding;
use refuse::{Ahead, ahead, refuse};

/// A partition that is assigned to us.
enum State {
    /// Its fences are not known yet; nor will they be, for now, where there is a reason.
    Loading(Assignment, Option<String>),
    Open(Box<OpenPartition>),
}

struct Assigned {
    epoch: Epoch,
    identity: TopicIdentity,
    state: State,
}

/// The aggregator actor.
pub struct Aggregator {
    store: Arc<dyn Store>,
    dead_letters: Arc<dyn DeadLetterWriter>,
    replies: Replies,
    config: LiveConfig,
    health: Health,
    metrics: Arc<Metrics>,
    reader: Reader,
    /// By aggregate.
    limits: Arc<[Limit]>,
    /// What the windows have that were flushed to.
    groups: Arc<Mutex<KnownGroups>>,
    /// As readiness names the store.
    dependency: &'static str,
    /// The definitions were compared; only then are fences loaded.
    prepared: bool,
    /// What is not as it should be in the store, though counting goes on.
    remark: Option<String>,
    partitions: BTreeMap<Partition, Assigned>,
    flush: Option<Flush>,
    /// The next attempt of it, while it waits for that.
    retry: Option<SpawnHandle>,
    /// Records that the store refuses for good, and why, until the position is beyond them: they become letters when
    /// they are read again. A new aggregator finds them again.
    refused: BTreeMap<Partition, BTreeMap<Offset, String>>,
    /// Fences beyond the log's end, which has been asked for again since.
    ahead: BTreeMap<Partition, Offset>,
    rebuilding: Rebuilding,
    /// The consumer was asked to fetch nothing for a while.
    holding: bool,
    /// Answered when everything is durable, or cannot be made so now.
    drains: Vec<oneshot::Sender<()>>,
    /// Until when the stop waits for a store that fails.
    patience: Option<Instant>,
}

impl Aggregator {
    /// Batches are bounded in bytes by their source's budget, and the consumer never waits for room (`do_send`): this is
    /// only above what that budget lets through, so that a message is never refused.
    const MAILBOX: usize = 4096;
    /// How long the stop waits for a store that fails, or does not answer any more.
    const PATIENCE: Duration = Duration::from_secs(3);
    /// What a fold may hold before it is flushed, whatever the number of buckets: letters, events and long groups.
    /// Twice that much waits while a flush is in flight; then reading is held.
    const FLUSH_BYTES: usize = 8 << 20;

    pub fn new(
        store: Arc<dyn Store>,
        dead_letters: Arc<dyn DeadLetterWriter>,
        replies: Replies,
        rebuilding: Rebuilding,
        config: LiveConfig,
        health: Health,
        metrics: Arc<Metrics>,
    ) -> Self {
        let counted = store.counted();
        let reader = Reader::new(&config.load(), &counted);
        let limits = limit::limits_of(&counted);
        let dependency = match config.load().store.kind {
            StoreKind::Mongodb => dependency::MONGODB,
            StoreKind::Embedded | StoreKind::None => dependency::EMBEDDED_STORE,
        };
        Self {
            store,
            dead_letters,
            replies,
            config,
            health,
            metrics,
            reader,
            limits,
            groups: Arc::default(),
            dependency,
            prepared: false,
            remark: None,
            partitions: BTreeMap::new(),
            flush: None,
            retry: None,
            refused: BTreeMap::new(),
            ahead: BTreeMap::new(),
            rebuilding,
            holding: false,
            drains: Vec::new(),
            patience: None,
        }
    }

    /// The state of a partition, while this assignment of it lasts.
    fn state(&mut self, partition: Partition, epoch: Epoch) -> Option<&mut State> {
        let assigned = self.partitions.get_mut(&partition).filter(|assigned| assigned.epoch == epoch);
        assigned.map(|assigned| &mut assigned.state)
    }

    /// Loads the fences of an assigned partition, until that succeeds or the partition is taken away.
    fn load(&mut self, partition: Partition, epoch: Epoch, attempts: u32, ctx: &mut Context<Self>) {
        let Some(State::Loading(assignment, _)) = self.state(partition, epoch) else { return };
        let (assignment, log_end) = (assignment.clone(), assignment.log_end);
        let (store, letters) = (self.store.clone(), self.dead_letters.clone());
        let (topic, generation) = (self.reader.topic.clone(), self.reader.generation);
        let source = Source { topic, generation, partition };
        let bounds = self.reader.fields.bounds();
        let (names, counted) = (self.names(), self.reader.counted.clone());
        let load = async move {
            let known = rebuild::what_is_known(&*store, &names, &counted, &assignment, bounds).await;
            let (at, fences, history) = known.map_err(Failure::Store)?;
            // Where nothing is read again, nothing can be a letter already.
            let dead_lettered = if at < log_end { letters.known(source, at).await } else { Ok(BTreeSet::new()) };
            let dead_lettered =
                dead_lettered.map_err(|why| Failure::DeadLetters(format!("dead letters cannot be read: {why:#}")))?;
            Ok(Loaded { at, fences, history, dead_lettered })
        };
        ctx.spawn(load.into_actor(self).map(move |loaded, actor, ctx| match loaded {
            Ok(loaded) => {
                actor.begin(partition, epoch, loaded);
                actor.works();
            }
            Err(Failure::Store(StoreError::Refused(reason))) => {
                let action = "give queue.generation a number that was not used before and restart: counting then \
                              starts anew beside the old buckets";
                actor.halt(partition, epoch, reason, action);
            }
            Err(failure) => {
                if let Some(State::Loading(_, reason)) = actor.state(partition, epoch) {
                    *reason = Some(failure.to_string());
                }
                actor.failed(failure);
                ctx.run_later(flush::BACKOFF.pause(attempts + 1), move |actor, ctx| {
                    actor.load(partition, epoch, attempts + 1, ctx);
                });
            }
        }));
    }

    fn begin(&mut self, partition: Partition, epoch: Epoch, loaded: Loaded) {
        let Loaded { at, fences, history, dead_lettered } = loaded;
        let Some(State::Loading(assignment, _)) = self.state(partition, epoch) else { return };
        let (position, committed, log_end) = (assignment.first_undone(), assignment.committed, assignment.log_end);
        let identity = assignment.identity.clone();
        match ahead(&fences, log_end, self.ahead.remove(&partition)) {
            Ahead::None => {}
            Ahead::AskAgain(fence) => {
                self.ahead.insert(partition, fence);
                self.partitions.remove(&partition);
                return self.replies.reassign(Reassign { partition, epoch });
            }
            Ahead::Refused((reason, action)) => return self.halt(partition, epoch, reason, action),
        }
        let lost = committed.map_or(0, |committed| position.since(committed));
        let refused = self.refused.get(&partition).cloned().unwrap_or_default();
        // An earlier assignment may have known of buckets that were not written.
        self.groups.lock().forget(partition);
        let others: Vec<_> = self.limits.iter().map(|limit| limit.other.clone()).collect();
        let fold = PartitionFold::assign(partition, at, &others, fences);
        let mut open = OpenPartition::new(fold, dead_lettered, refused, history, &self.reader.fields);
        open.committed = position;
        self.partitions.insert(partition, Assigned { epoch, identity, state: State::Open(open.into()) });
        self.health.counted.reached(partition, position);
        if lost > 0 {
            tracing::error!(topic = self.reader.topic, %partition, from = ?committed, to = %position, records = lost,
                "the log removed records before they were counted, counting goes on behind them");
            self.metrics.lost(SinkName::Aggregate, &self.reader.topic, partition, lost);
            // So that a restart does not report them again.
            self.replies.confirm(Confirm { partition, epoch, position });
        }
        self.replies.begin(Begin { partition, epoch, at });
    }

    fn halt(&mut self, partition: Partition, epoch: Epoch, reason: String, action: &str) {
        if self.state(partition, epoch).is_some() {
            self.partitions.remove(&partition);
            if self.health.counted.position(partition).is_none() {
                // Nothing of it will be known here.
                self.health.counted.forget(partition);
            }
            self.replies.halt(Halt { partition, epoch, reason, action: action.to_owned() });
        }
    }

    fn open_partitions(&self) -> impl Iterator<Item = &OpenPartition> {
        self.partitions.values().filter_map(|assigned| match &assigned.state {
            State::Open(open) => Some(&**open),
            State::Loading(..) => None,
        })
    }

    /// What the folds hold, as a share of what a flush is made for: 1 asks for a flush.
    fn fullness(&self) -> f64 {
        let (mut touched, mut bytes) = (0, 0);
        for open in self.open_partitions() {
            touched += open.fold.touched();
            bytes += open.bytes();
        }
        let buckets = self.config.load().aggregator.flush_buckets.max(1);
        (touched as f64 / buckets as f64).max(bytes as f64 / Self::FLUSH_BYTES as f64)
    }

    /// Asks the consumer to fetch nothing while a flush does not get on and the folds have filled up.
    fn update_hold(&mut self) {
        let fullness = self.fullness();
        let on = if self.holding { fullness >= 1.0 } else { self.is_held_up() && fullness >= 2.0 };
        if on != self.holding {
            self.holding = on;
            self.replies.hold(SetHold { hold: Hold::SinkUnavailable, on });
        }
    }

    /// Begins a flush of everything that is not durable, unless one is in flight.
    fn begin_flush(&mut self, ctx: &mut Context<Self>) {
        if self.flush.is_some() {
            return;
        }
        if self.rebuilding.is_renewing() {
            self.update_hold();
            return self.answer_drains();
        }
        let mut statements = Statements::default();
        let mut parts = Vec::new();
        for (partition, assigned) in &mut self.partitions {
            if let State::Open(open) = &mut assigned.state
                && open.fold.is_dirty()
            {
                parts.push(open.begin_flush(*partition, assigned.epoch, &mut statements));
            }
        }
        if parts.is_empty() {
            self.answer_drains();
            return;
        }
        let nothing_to_write = statements.is_empty();
        let flush = Flush { parts, statements, letters_written: false, attempts: 0, began: Instant::now() };
        if nothing_to_write {
            self.finish(flush, &Flushed::default(), ctx);
        } else {
            self.flush = Some(flush);
            self.try_flush(ctx);
        }
    }

    /// Sends the statements of the flush in flight.
    fn try_flush(&mut self, ctx: &mut Context<Self>) {
        self.retry = None;
        let Some(mut flush) = self.flush.take() else { return };
        flush.keep_only(|part| self.partitions.get(&part.partition).is_some_and(|held| held.epoch == part.epoch));
        if flush.parts.is_empty() {
            self.finish(flush, &Flushed::default(), ctx);
            return;
        }
        flush.attempts += 1;
        let attempt = Attempt {
            store: self.store.clone(),
            writer: self.dead_letters.clone(),
            counted: self.reader.counted.clone(),
            limits: self.limits.clone(),
            groups: self.groups.clone(),
            letters_written: flush.letters_written,
            timeout: self.config.load().aggregator.timeout,
        };
        // Handed over, not shared: what is routed would be copied.
        let attempt = attempt.make(std::mem::take(&mut flush.statements));
        self.flush = Some(flush);
        ctx.spawn(attempt.into_actor(self).map(|attempted, actor, ctx| actor.attempted(attempted, ctx)));
    }

    fn attempted(&mut self, Attempted { outcome, statements }: Attempted, ctx: &mut Context<Self>) {
        let Some(mut flush) = self.flush.take() else { return };
        flush.statements = statements;
        flush.letters_written = !matches!(outcome, Err(Failure::DeadLetters(_)));
        match outcome {
            Ok(flushed) => {
                self.works();
                self.metrics.flush_duration.observe(flush.began.elapsed().as_secs_f64());
                self.finish(flush, &flushed, ctx);
            }
            Err(failure) => {
                self.failed(failure);
                self.metrics.flush_retries.inc();
                if self.rebuilding.is_renewing() {
                    // What it has is read again, and counted by the list that is then.
                    return self.renew_now(ctx);
                }
                let pause = flush::BACKOFF.pause(flush.attempts);
                self.flush = Some(flush);
                if self.patience.is_some_and(|until| Instant::now() + pause > until) {
                    self.give_up();
                } else {
                    self.retry = Some(ctx.run_later(pause, |actor, ctx| actor.try_flush(ctx)));
                }
            }
        }
    }

    /// At the stop: what the store does not take is left to the next start, which reads it again from the positions that
    /// are confirmed.
    fn give_up(&mut self) {
        let Some(flush) = self.flush.as_ref().filter(|_| !self.drains.is_empty()) else { return };
        let records = flush.parts.iter().map(|part| part.records + part.letters).sum::<u64>();
        tracing::warn!(
            records,
            attempts = flush.attempts,
            "the last counts cannot be flushed now: the records wait in \
            the log and are counted after the next start"
        );
        self.answer_drains();
    }

    /// The flush is over: confirms what is durable, has the fenced partitions assigned anew, and goes on with what was
    /// folded in the meantime.
    fn finish(&mut self, flush: Flush, flushed: &Flushed, ctx: &mut Context<Self>) {
        for RefusedEvent { partition, offset, message } in &flushed.refused {
            tracing::warn!(topic = self.reader.topic, %partition, %offset, message,
                "the store refuses a record for good: it becomes a dead letter");
            self.refused.entry(*partition).or_default().insert(*offset, message.clone());
        }
        let Flush { parts, statements, .. } = flush;
        for part in parts {
            self.metrics.events_dead_lettered.inc_by(part.letters);
            if flushed.refused.iter().any(|refused| refused.partition == part.partition) {
                // Nothing of this fold's counts was sent: it is folded again, without those records.
                self.drop_fold(part);
                continue;
            }
            if let Some(Blocked { partition, reason }) =
                flushed.blocked.iter().find(|blocked| blocked.partition == part.partition)
            {
                let action = "remove what is in the way (nothing of it was counted here) and restart: counting goes on \
                              where it stopped";
                self.halt(*partition, part.epoch, reason.clone(), action);
                continue;
            }
            if flushed.fenced.contains(&part.partition) {
                tracing::info!(topic = self.reader.topic, partition = %part.partition,
                    "another writer, or a lost answer, was ahead of a flush: reading the fences again");
                self.drop_fold(part);
                continue;
            }
            self.metrics.events_aggregated.inc_by(part.records);
            self.report(part.partition, &statements);
            if let Some(State::Open(open)) = self.state(part.partition, part.epoch) {
                let position = open.fold.flushed();
                if position < open.committed {
                    // For a shadow; the others have these records.
                    continue;
                }
                if let Some(refused) = self.refused.get_mut(&part.partition) {
                    refused.retain(|offset, _| *offset >= position);
                }
                self.health.counted.reached(part.partition, position);
                self.replies.confirm(Confirm { partition: part.partition, epoch: part.epoch, position });
            }
        }
        if self.rebuilding.is_renewing() {
            return self.renew_now(ctx);
        }
        if self.drains.is_empty() && self.fullness() < 1.0 {
            self.update_hold();
        } else {
            self.begin_flush(ctx);
            self.update_hold();
        }
    }

    fn drop_fold(&mut self, Part { partition, epoch, .. }: Part) {
        if matches!(self.state(partition, epoch), Some(State::Open(_))) {
            self.partitions.remove(&partition);
            self.replies.reassign(Reassign { partition, epoch });
        }
    }

    fn answer_drains(&mut self) {
        for drain in self.drains.drain(..) {
            // The one who asked may have reached its deadline.
            let _ = drain.send(());
        }
    }

    /// Flushes at `aggregator.flush_interval`, as it is at the time.
    fn tick(&mut self, ctx: &mut Context<Self>) {
        self.begin_flush(ctx);
        let interval = self.config.load().aggregator.flush_interval.max(Duration::from_millis(1));
        ctx.run_later(interval, Self::tick);
    }

    fn works(&self) {
        self.health.dependency(self.dependency, Ok(()));
        if self.remark.is_some() {
            self.health.remark(self.dependency, self.remark.clone());
        }
        // One that works says nothing of the others.
        match self.partitions.iter().find_map(|(partition, assigned)| match &assigned.state {
            State::Loading(_, Some(reason)) => Some(format!("partition {partition} is not counted: {reason}")),
            _ => None,
        }) {
            Some(reason) => self.fails(reason),
            None => self.health.actor(ActorName::Aggregator, ActorState::Running, None),
        }
    }

    fn failed(&self, failure: Failure) {
        match failure {
            Failure::Store(error) => self.store_failed(&error),
            Failure::DeadLetters(reason) => self.fails(reason),
        }
    }

    fn store_failed(&self, error: &StoreError) {
        self.health.dependency(self.dependency, Err(error.to_string()));
        self.fails(error.to_string());
    }

    fn fails(&self, reason: String) {
        tracing::debug!(reason, "the aggregator cannot make counts durable, trying again");
        self.health.actor(ActorName::Aggregator, ActorState::Failing, reason);
    }
}

impl Actor for Aggregator {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(Self::MAILBOX);
        self.prepare(0, ctx);
        self.tick(ctx);
        self.look(ctx);
        if self.config.load().aggregate.iter().any(|aggregate| aggregate.retention.is_some()) {
            ctx.run_later(Self::EXPIRY, Self::expire);
        }
        // What an earlier incarnation had counted is assigned anew.
        self.health.counted.forget_all();
        self.listen(ctx);
        self.replies.started();
        // An earlier incarnation may have asked for it.
        self.replies.hold(SetHold { hold: Hold::SinkUnavailable, on: false });
    }
}

impl Handler<Assign> for Aggregator {
    type Result = ();

    fn handle(&mut self, Assign { epoch, assignment }: Assign, ctx: &mut Self::Context) {
        let partition = assignment.partition;
        if self.partitions.get(&partition).is_some_and(|assigned| assigned.epoch >= epoch) {
            return;
        }
        self.health.counted.assigned(partition);
        let refused = refuse(&self.config.load(), &assignment);
        let identity = assignment.identity.clone();
        self.partitions.insert(partition, Assigned { epoch, identity, state: State::Loading(assignment, None) });
        match refused {
            Some((reason, action)) => self.halt(partition, epoch, reason, action),
            None if self.prepared => self.load(partition, epoch, 0, ctx),
            None => {}
        }
    }
}

impl Handler<Unassign> for Aggregator {
    type Result = ();

    fn handle(&mut self, Unassign { partition, epoch }: Unassign, _: &mut Self::Context) {
        let held = self.partitions.get(&partition).map(|assigned| assigned.epoch);
        if held.is_none_or(|held| held <= epoch) {
            // One that was halted or dropped stands on the board, too.
            self.health.counted.forget(partition);
        }
        if held.is_some_and(|held| held <= epoch) {
            self.partitions.remove(&partition);
            self.ahead.remove(&partition);
            self.update_hold();
            if self.partitions.is_empty() && self.prepared {
                // Nothing is left that could fail.
                self.health.actor(ActorName::Aggregator, ActorState::Running, None);
            }
        }
    }
}

impl Handler<Batch> for Aggregator {
    type Result = ();

    fn handle(&mut self, batch: Batch, ctx: &mut Self::Context) {
        let Some(Assigned { epoch, state: State::Open(open), .. }) = self.partitions.get_mut(&batch.partition) else {
            return;
        };
        if *epoch != batch.epoch {
            return;
        }
        match open.fold.coverage(batch.from, batch.to) {
            Coverage::Stale => {}
            Coverage::Beyond { cursor } => {
                if !std::mem::replace(&mut open.seeking, true) {
                    self.replies.begin(Begin { partition: batch.partition, epoch: batch.epoch, at: cursor });
                }
            }
            Coverage::Continues => {
                open.take(&batch, &mut self.reader);
                // What is kept was copied: the source may read on.
                drop(batch);
                if self.fullness() >= 1.0 {
                    self.begin_flush(ctx);
                }
                self.update_hold();
            }
        }
    }
}

impl Handler<Drain> for Aggregator {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, Drain: Drain, ctx: &mut Self::Context) -> Self::Result {
        let (drained, answer) = oneshot::channel();
        self.drains.push(drained);
        // One that fails is tried once more at once, and not waited for; one that works has its time, and the stop's deadline.
        let failing = self.retry.is_some() || self.flush.as_ref().is_some_and(|flush| flush.attempts > 1);
        let patience = if failing { Self::PATIENCE } else { self.config.load().shutdown.timeout / 2 };
        self.patience = Some(Instant::now() + if failing { Duration::ZERO } else { Self::PATIENCE });
        ctx.run_later(patience, |actor, _| actor.give_up());
        match self.retry.take() {
            Some(retry) => {
                ctx.cancel_future(retry);
                self.try_flush(ctx);
            }
            None => self.begin_flush(ctx),
        }
        Box::pin(async move {
            // An error says that the aggregator has ended; its mailbox says so as well.
            let _ = answer.await;
        })
    }
}

#[cfg(test)]
mod tests;
