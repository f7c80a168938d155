//! The spooler: the archive's sink. Appends batches to the partitions' open segments, seals them, hands sealed ones to
//! the uploader in order, and confirms to the consumer only what is known to be archived.
//!
//! An open segment is disposable, because the log has its records; a sealed one is not. What follows from each message
//! is decided by the machine in [`partition`](super::partition), without I/O; files and compression are the business of a
//! thread of its own (`writer`), and requests to the object store that of the uploader; this actor does what the machine
//! says with both.

pub mod open;
pub mod recover;
pub mod segment;
mod writer;

use std::{
    collections::BTreeSet,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use actix::{Actor, ActorContext, AsyncContext, Context, Handler, Message, ResponseFuture};
use tokio::sync::oneshot;

use self::writer::{SpoolCommand, SpoolEvent, SpoolThread, SpoolWriter};
use crate::{
    archive::{
        partition::{BatchVerdict, Effect, Input, Moment, News, Partitions, Rules},
        upload::{Uploader, opening::Head},
    },
    config::{LiveConfig, QueueKind},
    consume::{Assign, Drain, Hold, Reassign, Replies, SetHold, Unassign},
    health::{ActorState, Health},
    log::Batch,
    metrics::Metrics,
    names::{ActorName, SinkName},
    position::Partition,
    supervise::Slot,
};

/// From the watchdog: the disk is (no longer) too full.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "()")]
pub struct DiskPressure(pub bool);

/// From the uploader: what was found. It is about one assignment of a partition: what an earlier one found is told apart by
/// its epoch.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Found(pub Input);

/// From the uploader, at the stop: answered when nothing more can be put, with the heads that are older than their chains.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "Vec<(Partition, Head)>")]
pub struct WhenUploaded;

/// The spooler actor.
pub struct Spooler {
    writer: SpoolThread,
    uploader: Slot<Uploader>,
    replies: Replies,
    partitions: Partitions,
    config: LiveConfig,
    disk_full: bool,
    holds: BTreeSet<Hold>,
    /// Partitions whose last segment could not be written.
    failing: BTreeSet<Partition>,
    /// [`Self::BEHIND`] segments wait, and none is sealed for its age.
    behind: bool,
    draining: bool,
    /// Those who wait for all uploads to end.
    when_uploaded: Vec<oneshot::Sender<Vec<(Partition, Head)>>>,
    ticks: u32,
    health: Health,
    metrics: Arc<Metrics>,
}

impl Spooler {
    /// Segments that wait for the archive, above which none is sealed for its age: an outage of a week would leave
    /// hundreds of thousands of small ones.
    const BEHIND: usize = 256;
    /// After these ticks the group has given each partition to a worker.
    const SETTLED_TICKS: u32 = 30;
    /// How soon a partition begins again after its segment could not be written.
    const RETRY: Duration = Duration::from_secs(1);
    /// How often gaps and heads, and reloaded `archive.on_gap` and `spool.quota`, are looked at.
    const TICK: Duration = Duration::from_secs(1);

    /// Starts the spool's thread.
    pub fn new(
        data_dir: &Path,
        uploader: Slot<Uploader>,
        replies: Replies,
        config: LiveConfig,
        health: Health,
        metrics: Arc<Metrics>,
        ctx: &Context<Self>,
    ) -> anyhow::Result<Self> {
        let now = config.load_full();
        let shared_queue = now.queue.kind == QueueKind::Kafka;
        let rules = Rules {
            topic_folder: now.queue.name().to_string(),
            archive: now.archive.url.clone(),
            sole_member_of: (now.archive.is_local() && shared_queue)
                .then(|| format!("{}-archive", now.queue.kafka.group)),
        };
        let addr = ctx.address();
        // A handful of events a segment: the mailbox's capacity must not drop them.
        let events = Box::new(move |event| addr.do_send(event));
        let writer = SpoolWriter::spawn(data_dir, config.clone(), events)?;
        Ok(Self {
            writer,
            uploader,
            replies,
            partitions: Partitions::new(rules),
            config,
            disk_full: false,
            holds: BTreeSet::new(),
            failing: BTreeSet::new(),
            behind: false,
            draining: false,
            when_uploaded: Vec::new(),
            ticks: 0,
            health,
            metrics,
        })
    }

    fn command(&self, command: SpoolCommand) {
        // An error says that the thread has died, which it has said itself.
        let _ = self.writer.commands.send(command);
    }

    /// Does what follows from it.
    fn on(&mut self, input: Input, ctx: &mut Context<Self>) {
        let moment = Moment { at: Instant::now(), on_gap: self.config.load().archive.on_gap };
        for effect in self.partitions.on(input, moment) {
            self.perform(effect, ctx);
        }
        self.show_spool();
        self.answer_when_uploaded();
    }

    fn answer_when_uploaded(&mut self) {
        if self.partitions.is_idle() {
            for waiting in self.when_uploaded.drain(..) {
                // An error says that nobody waits any more.
                let _ = waiting.send(self.partitions.last_heads(Instant::now()));
            }
        }
    }

    fn perform(&mut self, effect: Effect, ctx: &mut Context<Self>) {
        match effect {
            Effect::Segments(command) => self.command(SpoolCommand::Segments(command)),
            Effect::Transfer(transfer) => self.uploader.tell(transfer),
            Effect::Begin(begin) => self.replies.begin(begin),
            Effect::Confirm(confirm) => self.replies.confirm(confirm),
            Effect::Reassign(reassign) => self.replies.reassign(reassign),
            Effect::ReassignSoon(reassign) => Self::reassign_soon(reassign, ctx),
            Effect::Halt(halt) => self.replies.halt(halt),
            Effect::Archived { records } => {
                self.metrics.events_archived.inc_by(records);
            }
            Effect::Followed { partition, end } => {
                tracing::info!(%partition, %end, "another writer's object stands at our position; following it");
            }
            Effect::Lost { partition, from, to } => {
                let lost = to.since(from);
                self.metrics.lost(SinkName::Archive, &self.config.load().queue.topic, partition, lost);
                tracing::error!(%partition, %from, %to, lost, "records were removed from the log before they were archived");
            }
            Effect::Skipped { partition, from, to } => {
                self.health.release(SinkName::Archive, partition);
                tracing::warn!(%partition, %from, %to, "going on without them, as the operator said");
            }
        }
    }

    fn reassign_soon(reassign: Reassign, ctx: &mut Context<Self>) {
        ctx.run_later(Self::RETRY, move |spooler, _| spooler.replies.reassign(reassign));
    }

    /// The partition is written again, or no longer ours.
    fn works(&mut self, partition: Partition) {
        if self.failing.remove(&partition) && self.failing.is_empty() {
            self.health.actor(ActorName::Spooler, ActorState::Running, None);
        }
    }

    /// Fetching is held while sealed segments fill the quota or a full disk.
    fn show_spool(&mut self) {
        let (bytes, config) = (self.partitions.sealed_bytes(), self.config.load_full());
        let behind = self.partitions.sealed_segments() >= Self::BEHIND;
        if std::mem::replace(&mut self.behind, behind) != behind {
            self.command(SpoolCommand::SealByAge(!behind));
        }
        self.metrics.spool_bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
        let uploads = self.partitions.uploads();
        self.metrics.depth(ActorName::Uploader).set(i64::try_from(uploads).unwrap_or(i64::MAX));
        self.hold(Hold::SpoolQuota, bytes >= config.spool.quota.0);
        // The embedded log is freed only by archiving it: one segment at a time goes on, and frees more than it takes.
        self.hold(Hold::DiskFull, self.disk_full && (config.queue.kind == QueueKind::Kafka || bytes > 0));
    }

    fn hold(&mut self, hold: Hold, on: bool) {
        let changed = if on { self.holds.insert(hold) } else { self.holds.remove(&hold) };
        if changed {
            self.replies.hold(SetHold { hold, on });
        }
    }

    fn tick(&mut self, ctx: &mut Context<Self>) {
        self.ticks += 1;
        if self.ticks == Self::SETTLED_TICKS {
            self.command(SpoolCommand::NameOthers(self.partitions.assigned()));
        }
        // Said again, in case the consumer was rebuilt and does not know.
        for hold in &self.holds {
            self.replies.hold(SetHold { hold: *hold, on: true });
        }
        self.on(Input::Tick, ctx);
    }
}

impl Actor for Spooler {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.health.actor(ActorName::Spooler, ActorState::Running, None);
        self.replies.started();
        ctx.run_interval(Self::TICK, |spooler, ctx| spooler.tick(ctx));
    }
}

impl Handler<Assign> for Spooler {
    type Result = ();

    fn handle(&mut self, Assign { epoch, assignment }: Assign, ctx: &mut Self::Context) {
        self.on(Input::Assigned { epoch, assignment }, ctx);
    }
}

impl Handler<Unassign> for Spooler {
    type Result = ();

    fn handle(&mut self, Unassign { partition, epoch }: Unassign, ctx: &mut Self::Context) {
        if self.partitions.is_current(partition, epoch) {
            self.works(partition);
        }
        self.on(Input::About { partition, epoch, news: News::Unassigned }, ctx);
    }
}

impl Handler<Batch> for Spooler {
    type Result = ();

    fn handle(&mut self, batch: Batch, _: &mut Self::Context) {
        if self.draining {
            return;
        }
        match self.partitions.batch(batch.partition, batch.epoch, batch.from, batch.to) {
            BatchVerdict::From(from) => self.command(SpoolCommand::Append { batch, from }),
            BatchVerdict::Refused(begin) => self.replies.begin(begin),
            BatchVerdict::Ignored => {}
        }
    }
}

impl Handler<SpoolEvent> for Spooler {
    type Result = ();

    fn handle(&mut self, event: SpoolEvent, ctx: &mut Self::Context) {
        match event {
            SpoolEvent::Died(reason) => {
                tracing::error!(reason, "the spool failed");
                ctx.stop();
            }
            SpoolEvent::Done { partition, epoch, outcome: Ok(news) } => {
                if matches!(news, News::Sealed(_)) && self.partitions.is_current(partition, epoch) {
                    self.works(partition);
                }
                self.on(Input::About { partition, epoch, news }, ctx);
            }
            SpoolEvent::Done { partition, epoch, outcome: Err(error) } => {
                if !self.partitions.is_current(partition, epoch) {
                    return;
                }
                let reason = format!("partition {partition} cannot be spooled: {error}");
                // Once, and not each second for as long as a disk is full.
                if self.failing.insert(partition) {
                    tracing::warn!(reason, "spool failed, beginning again until it works");
                } else {
                    tracing::debug!(reason, "spool failed again");
                }
                self.health.actor(ActorName::Spooler, ActorState::Failing, reason);
                Self::reassign_soon(Reassign { partition, epoch }, ctx);
            }
        }
    }
}

impl Handler<Found> for Spooler {
    type Result = ();

    fn handle(&mut self, Found(input): Found, ctx: &mut Self::Context) {
        let begins_anew = matches!(input, Input::UploaderStarted);
        self.on(input, ctx);
        if begins_anew {
            self.replies.started();
        }
    }
}

impl Handler<WhenUploaded> for Spooler {
    type Result = ResponseFuture<Vec<(Partition, Head)>>;

    fn handle(&mut self, _: WhenUploaded, _: &mut Self::Context) -> Self::Result {
        let (done, uploaded) = oneshot::channel();
        self.when_uploaded.push(done);
        self.answer_when_uploaded();
        // An error says that the actor has died.
        Box::pin(async move { uploaded.await.unwrap_or_default() })
    }
}

impl Handler<DiskPressure> for Spooler {
    type Result = ();

    fn handle(&mut self, DiskPressure(full): DiskPressure, _: &mut Self::Context) {
        self.disk_full = full;
        if full {
            // Uploads free the disk, so what is open should go too.
            self.command(SpoolCommand::SealAll);
        }
        self.show_spool();
    }
}

impl Handler<Drain> for Spooler {
    type Result = ResponseFuture<()>;

    /// Seals what is open and hands it to the uploader, which is drained after this.
    fn handle(&mut self, _: Drain, ctx: &mut Self::Context) -> Self::Result {
        self.draining = true;
        self.command(SpoolCommand::SealAll);
        let (done, sealed) = oneshot::channel();
        self.command(SpoolCommand::Barrier(done));
        let addr = ctx.address();
        Box::pin(async move {
            // Errors say that the thread or the actor has died: nothing is left to seal.
            if sealed.await.is_ok() {
                let _ = addr.send(Settled).await;
            }
        })
    }
}

/// Comes back when everything that the writer and the uploader said before was handled.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "()")]
pub struct Settled;

impl Handler<Settled> for Spooler {
    type Result = ();

    fn handle(&mut self, _: Settled, _: &mut Self::Context) {}
}
