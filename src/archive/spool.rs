//! The spooler: the archive's sink. Appends batches to the partitions' open segments, seals them, hands sealed ones to
//! the uploader in order, and confirms to the consumer only what the uploader knows to be archived.
//!
//! An open segment is disposable, because the log has its records; a sealed one is not. What follows from each message
//! is decided by the [`protocol`], without I/O; files and compression are the business of a thread of its own
//! (`writer`); this actor does what the one says with the other.

pub mod line;
pub mod open;
pub mod protocol;
pub mod recover;
pub mod segment;
mod writer;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
    time::Duration,
};

use actix::{Actor, ActorContext, AsyncContext, Context, Handler, Message, ResponseFuture};
use tokio::sync::oneshot;

use self::{
    protocol::{Effect, Protocol, Rules, Taken},
    writer::{SegmentOrigin, SpoolCommand, SpoolEvent, SpoolThread, SpoolWriter},
};
use crate::{
    archive::{
        messages::{
            Archived, AskAboutGap, ChainHalted, ChainOpened, Damaged, Followed, GapAnswered, OpenChain, Upload,
            UploaderStarted,
        },
        upload::Uploader,
    },
    config::{LiveConfig, OnGap, QueueKind},
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

#[derive(Debug, Message)]
#[rtype(result = "()")]
struct FromWriter(SpoolEvent);

/// The spooler actor.
pub struct Spooler {
    writer: Option<SpoolThread>,
    uploader: Slot<Uploader>,
    replies: Replies,
    protocol: Protocol,
    config: LiveConfig,
    topic: String,
    queue_kind: QueueKind,
    disk_full: bool,
    held: BTreeMap<Hold, bool>,
    /// Partitions whose last segment could not be written.
    failing: BTreeSet<Partition>,
    /// So many segments wait that none is sealed for its age.
    behind: bool,
    draining: bool,
    ticks: u32,
    health: Health,
    metrics: Arc<Metrics>,
}

impl Spooler {
    /// Segments that wait for the archive, above which none is sealed for its age: an outage of a week would leave
    /// hundreds of thousands of small ones.
    const BEHIND: usize = 256;
    /// By then the group has given each partition to somebody.
    const SETTLED_TICKS: u32 = 30;
    /// How soon a partition begins again after its segment could not be written.
    const RETRY: Duration = Duration::from_secs(1);
    /// How often the archive is asked about a hole, in ticks.
    const ASK_TICKS: u32 = 3;
    /// How often holes, and reloaded `archive.on_gap` and `spool.quota`, are looked at.
    const TICK: Duration = Duration::from_secs(1);

    /// Starts the spool's thread.
    ///
    /// # Errors
    /// When the thread cannot be started.
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
        let origin = SegmentOrigin {
            topic: now.queue.topic.clone(),
            generation: now.queue.generation,
            archive: now.archive.url.clone(),
        };
        let shared_queue = now.queue.kind == QueueKind::Kafka;
        let rules = Rules {
            topic_folder: now.queue.name().to_string(),
            archive: now.archive.url.clone(),
            sole_member_of: (now.archive.is_local() && shared_queue)
                .then(|| format!("{}-archive", now.queue.kafka.group)),
        };
        let addr = ctx.address();
        // A handful of events a segment: the mailbox's capacity must not drop them.
        let events = Box::new(move |event| addr.do_send(FromWriter(event)));
        let writer = SpoolWriter::spawn(data_dir, origin, config.clone(), events)?;
        Ok(Self {
            writer: Some(writer),
            uploader,
            replies,
            protocol: Protocol::new(rules),
            topic: now.queue.topic.clone(),
            queue_kind: now.queue.kind,
            config,
            disk_full: false,
            held: BTreeMap::new(),
            failing: BTreeSet::new(),
            behind: false,
            draining: false,
            ticks: 0,
            health,
            metrics,
        })
    }

    fn command(&self, command: SpoolCommand) {
        if let Some(writer) = &self.writer {
            // An error says that the thread has died, which it has said itself.
            let _ = writer.commands.send(command);
        }
    }

    fn on_gap(&self) -> OnGap {
        self.config.load().archive.on_gap
    }

    /// Does what the protocol says, in its order.
    fn perform(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Scan { partition, epoch } => self.command(SpoolCommand::Scan { partition, epoch }),
                Effect::BeginSegments { partition, epoch, x, identity } => {
                    self.command(SpoolCommand::Begin { partition, epoch, x, identity });
                }
                Effect::EndSegments(partition) => self.command(SpoolCommand::End(partition)),
                Effect::CloseSegments(partition) => self.command(SpoolCommand::Close(partition)),
                Effect::Remove(segment) => self.command(SpoolCommand::Remove(segment)),
                Effect::Orphan { segment, why } => self.command(SpoolCommand::Orphan { segment, why }),
                Effect::OpenChain { epoch, assignment } => self.uploader.tell(OpenChain { epoch, assignment }),
                Effect::Upload { epoch, segment } => self.uploader.tell(Upload { epoch, segment }),
                Effect::Begin(begin) => self.replies.begin(begin),
                Effect::Confirm(confirm) => self.replies.confirm(confirm),
                Effect::Reassign(reassign) => self.replies.reassign(reassign),
                Effect::Halt(halt) => self.replies.halt(halt),
                Effect::Lost { partition, from, to } => {
                    let lost = to.since(from);
                    self.metrics.lost(SinkName::Archive, &self.topic, partition, lost);
                    tracing::error!(%partition, %from, %to, lost, "records were removed from the log before they were archived");
                }
                Effect::Skipped { partition, from, to } => {
                    self.health.release(SinkName::Archive, partition);
                    tracing::warn!(%partition, %from, %to, "going on without them, as the operator said");
                }
                Effect::AskAboutGap { partition, epoch } => self.uploader.tell(AskAboutGap { partition, epoch }),
            }
        }
        self.show_spool();
    }

    /// The partition is written again, or no longer ours.
    fn works(&mut self, partition: Partition) {
        if self.failing.remove(&partition) && self.failing.is_empty() {
            self.health.actor(ActorName::Spooler, ActorState::Running, None);
        }
    }

    /// Fetching is held while sealed segments fill the quota or a full disk.
    fn show_spool(&mut self) {
        let bytes = self.protocol.sealed_bytes();
        let behind = self.protocol.sealed_segments() >= Self::BEHIND;
        if std::mem::replace(&mut self.behind, behind) != behind {
            self.command(SpoolCommand::SealByAge(!behind));
        }
        self.metrics.spool_bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
        self.hold(Hold::SpoolQuota, bytes >= self.config.load().spool.quota.0);
        // The embedded log is freed only by archiving it: one segment at a time goes on, and frees more than it takes.
        self.hold(Hold::DiskFull, self.disk_full && (self.queue_kind == QueueKind::Kafka || bytes > 0));
    }

    fn hold(&mut self, hold: Hold, on: bool) {
        if self.held.insert(hold, on).unwrap_or(false) != on {
            self.replies.hold(SetHold { hold, on });
        }
    }

    fn tick(&mut self) {
        self.ticks += 1;
        if self.ticks == Self::SETTLED_TICKS {
            self.command(SpoolCommand::NameOthers(self.protocol.partitions()));
        }
        self.show_spool();
        // Said again, in case the consumer was rebuilt and does not know.
        for (hold, _) in self.held.iter().filter(|(_, on)| **on) {
            self.replies.hold(SetHold { hold: *hold, on: true });
        }
        let effects = match self.on_gap() {
            OnGap::Skip => self.protocol.skip_gaps(),
            OnGap::Halt if self.ticks.is_multiple_of(Self::ASK_TICKS) => self.protocol.ask_about_gaps(),
            OnGap::Halt => Vec::new(),
        };
        self.perform(effects);
    }
}

impl Actor for Spooler {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.health.actor(ActorName::Spooler, ActorState::Running, None);
        self.replies.started();
        ctx.run_interval(Self::TICK, |spooler, _| spooler.tick());
    }
}

impl Drop for Spooler {
    fn drop(&mut self) {
        if let Some(SpoolThread { commands, thread }) = self.writer.take() {
            let _ = commands.send(SpoolCommand::Stop);
            // What it still does takes milliseconds, and the next incarnation must find its files at rest.
            let _ = thread.join();
        }
    }
}

impl Handler<Assign> for Spooler {
    type Result = ();

    fn handle(&mut self, Assign { epoch, assignment }: Assign, _: &mut Self::Context) {
        let effects = self.protocol.assigned(epoch, assignment);
        self.perform(effects);
    }
}

impl Handler<Unassign> for Spooler {
    type Result = ();

    fn handle(&mut self, Unassign { partition, epoch }: Unassign, _: &mut Self::Context) {
        let effects = self.protocol.unassigned(partition, epoch);
        if !effects.is_empty() {
            self.works(partition);
        }
        self.perform(effects);
    }
}

impl Handler<Batch> for Spooler {
    type Result = ();

    fn handle(&mut self, batch: Batch, _: &mut Self::Context) {
        if self.draining {
            return;
        }
        match self.protocol.batch(batch.partition, batch.epoch, batch.from, batch.to) {
            Taken::From(from) => self.command(SpoolCommand::Append { batch, from }),
            Taken::Refused(begin) => self.replies.begin(begin),
            Taken::Ignored => {}
        }
    }
}

impl Handler<FromWriter> for Spooler {
    type Result = ();

    fn handle(&mut self, FromWriter(event): FromWriter, ctx: &mut Self::Context) {
        match event {
            SpoolEvent::Died(reason) => {
                tracing::error!(reason, "the spool failed");
                ctx.stop();
            }
            SpoolEvent::Scanned { partition, epoch, segments: Ok(segments) } => {
                let effects = self.protocol.scanned(partition, epoch, segments, self.on_gap());
                self.perform(effects);
            }
            SpoolEvent::Sealed { epoch, segment } => {
                let partition = segment.header.partition;
                let effects = self.protocol.sealed(epoch, segment);
                if !effects.is_empty() {
                    self.works(partition);
                }
                self.perform(effects);
            }
            SpoolEvent::Scanned { partition, epoch, segments: Err(error) }
            | SpoolEvent::Failed { partition, epoch, error } => {
                if !self.protocol.is_current(partition, epoch) {
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
                ctx.run_later(Self::RETRY, move |spooler, _| {
                    spooler.replies.reassign(Reassign { partition, epoch });
                });
            }
        }
    }
}

impl Handler<ChainOpened> for Spooler {
    type Result = ();

    fn handle(&mut self, ChainOpened { partition, epoch, end }: ChainOpened, _: &mut Self::Context) {
        let effects = self.protocol.chain_opened(partition, epoch, end, self.on_gap());
        self.perform(effects);
    }
}

impl Handler<Archived> for Spooler {
    type Result = ();

    fn handle(&mut self, Archived { epoch, segment }: Archived, _: &mut Self::Context) {
        self.metrics.events_archived.inc_by(segment.header.records);
        let effects = self.protocol.archived(epoch, segment);
        self.perform(effects);
    }
}

impl Handler<Followed> for Spooler {
    type Result = ();

    fn handle(&mut self, Followed { partition, epoch, end }: Followed, _: &mut Self::Context) {
        let effects = self.protocol.followed(partition, epoch, end);
        self.perform(effects);
    }
}

impl Handler<Damaged> for Spooler {
    type Result = ();

    fn handle(&mut self, Damaged { epoch, segment, why }: Damaged, ctx: &mut Self::Context) {
        let partition = segment.header.partition;
        let effects = self.protocol.damaged(segment, why);
        self.perform(effects);
        // A disk that cannot even move it would be asked in a loop.
        ctx.run_later(Self::RETRY, move |spooler, _| spooler.replies.reassign(Reassign { partition, epoch }));
    }
}

impl Handler<ChainHalted> for Spooler {
    type Result = ();

    fn handle(&mut self, ChainHalted { partition, epoch, reason, action }: ChainHalted, _: &mut Self::Context) {
        let effects = self.protocol.chain_halted(partition, epoch, reason, action);
        self.perform(effects);
    }
}

impl Handler<GapAnswered> for Spooler {
    type Result = ();

    fn handle(&mut self, GapAnswered { partition, epoch, news }: GapAnswered, _: &mut Self::Context) {
        let effects = self.protocol.gap_news(partition, epoch, news);
        self.perform(effects);
    }
}

impl Handler<UploaderStarted> for Spooler {
    type Result = ();

    /// The uploader lost its queues: every partition begins anew.
    fn handle(&mut self, _: UploaderStarted, _: &mut Self::Context) {
        self.protocol.uploads_lost();
        self.replies.started();
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
