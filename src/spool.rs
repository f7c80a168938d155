//! The spooler: the archive's sink. Appends batches to the partitions' open segments, seals them, hands sealed ones to
//! the uploader in order, and confirms to the consumer only what the uploader knows to be archived.
//!
//! An open segment is disposable, because the log has its records; a sealed one is not. Files and compression are the
//! business of a thread of its own (`writer`); this actor holds the cursors and the order of things.

mod gap;
pub mod line;
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

pub use self::gap::{GapNews, News, Word};
use self::{
    gap::Gaps,
    recover::{Fetch, Plan, Situation},
    segment::SealedSegment,
    writer::{SegmentOrigin, SpoolCommand, SpoolEvent, SpoolThread, SpoolWriter},
};
use crate::{
    config::{LiveConfig, QueueKind},
    consume::{Assign, Begin, Confirm, Drain, Halt, Hold, Reassign, Replies, SetHold, Unassign},
    health::{ActorName, ActorState, Health},
    metrics::Metrics,
    position::{Offset, Partition},
    queue::{Assignment, Batch, Epoch},
    supervise::Slot,
    upload::{OpenChain, Upload, Uploader},
};

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

/// From the uploader: it was started and knows of no chain.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "()")]
pub struct UploaderStarted;

/// From the watchdog: the disk is (no longer) too full.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "()")]
pub struct DiskPressure(pub bool);

#[derive(Debug, Message)]
#[rtype(result = "()")]
struct FromWriter(SpoolEvent);

/// A partition that is assigned to us.
struct Spooled {
    epoch: Epoch,
    assignment: Assignment,
    phase: Phase,
    /// The next offset to spool: the one cursor of the rule.
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
    /// Halted at a gap that the operator may allow to be skipped.
    Gap {
        log_start: Offset,
        /// What the operator has said, as last heard.
        word: Word,
    },
    Halted,
}

/// The spooler actor.
pub struct Spooler {
    writer: Option<SpoolThread>,
    uploader: Slot<Uploader>,
    replies: Replies,
    partitions: BTreeMap<Partition, Spooled>,
    /// Sealed segments of partitions that were revoked: they go on uploading.
    leaving: BTreeMap<(Partition, Offset), SealedSegment>,
    config: LiveConfig,
    topic: String,
    queue_kind: QueueKind,
    /// `archive.url`, as segment headers name it.
    archive: String,
    /// The archive is a folder of this machine, and the queue is shared.
    needs_all_partitions: bool,
    group: String,
    /// Partitions whose chain was seen beyond the log's end, until that is over.
    rechecked: BTreeSet<Partition>,
    gaps: Gaps,
    disk_full: bool,
    held: BTreeMap<Hold, bool>,
    draining: bool,
    ticks: u32,
    health: Health,
    metrics: Arc<Metrics>,
}

impl Spooler {
    /// By then the group has given each partition to somebody.
    const SETTLED_TICKS: u32 = 30;
    /// How soon a partition begins again after its segment could not be written.
    const RETRY: Duration = Duration::from_secs(1);
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
        let addr = ctx.address();
        // A handful of events a segment: the mailbox's capacity must not drop them.
        let events = Box::new(move |event| addr.do_send(FromWriter(event)));
        let writer = SpoolWriter::spawn(data_dir, origin, config.clone(), events)?;
        Ok(Self {
            writer: Some(writer),
            uploader,
            replies,
            partitions: BTreeMap::new(),
            leaving: BTreeMap::new(),
            topic: now.queue.topic.clone(),
            queue_kind: now.queue.kind,
            archive: now.archive.url.clone(),
            needs_all_partitions: now.archive.is_local() && now.queue.kind == QueueKind::Kafka,
            group: format!("{}-archive", now.queue.kafka.group),
            config,
            rechecked: BTreeSet::new(),
            gaps: Gaps::default(),
            disk_full: false,
            held: BTreeMap::new(),
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

    fn current(&mut self, partition: Partition, epoch: Epoch) -> Option<&mut Spooled> {
        self.partitions.get_mut(&partition).filter(|spooled| spooled.epoch == epoch)
    }

    /// Goes on when both the archive's chain and the disk's segments are known.
    fn open_when_known(&mut self, partition: Partition) {
        let Some(spooled) = self.partitions.get_mut(&partition) else { return };
        let Phase::Opening { chain_end: Some(chain_end), found } = &mut spooled.phase else { return };
        let Some(segments) = found.take() else { return };
        let situation = Situation {
            chain_end: *chain_end,
            log_start: spooled.assignment.log_start,
            log_end: spooled.assignment.log_end,
            identity: &spooled.assignment.identity,
            archive: &self.archive,
        };
        let Plan { keep, remove, orphan, x, fetch } = recover::plan(segments, &situation);
        let (epoch, confirmed, log_end) = (spooled.epoch, *chain_end, spooled.assignment.log_end);
        spooled.sealed = keep.iter().map(|segment| (segment.x(), segment.clone())).collect();
        for segment in remove {
            self.command(SpoolCommand::Remove(segment));
        }
        for (segment, why) in orphan {
            self.command(SpoolCommand::Orphan { segment, why });
        }
        if !keep.is_empty() {
            tracing::info!(%partition, segments = keep.len(), "uploading the sealed segments found on disk");
        }
        for segment in keep {
            self.uploader.tell(Upload { epoch, segment });
        }
        self.replies.confirm(Confirm { partition, epoch, position: confirmed });
        match fetch {
            Fetch::FromChain => self.begin(partition, x, x),
            Fetch::Gap { log_start } => self.gap(partition, x, log_start),
            // The log's end may have been asked long ago, before the store could be reached: asked once more.
            Fetch::BeyondLog if self.rechecked.insert(partition) => {
                self.replies.reassign(Reassign { partition, epoch });
            }
            Fetch::BeyondLog => self.halt(
                partition,
                format!("the archive reaches offset {x}, but the log ends at {log_end}: this is not the log that was archived"),
                "if the topic was created anew, raise queue.generation and restart".to_owned(),
            ),
        }
        self.show_spool();
    }

    /// Spools records from `at` on into a segment at chain position `x`.
    fn begin(&mut self, partition: Partition, x: Offset, at: Offset) {
        let Some(spooled) = self.partitions.get_mut(&partition) else { return };
        spooled.phase = Phase::Spooling;
        spooled.cursor = at;
        self.rechecked.remove(&partition);
        let (epoch, identity) = (spooled.epoch, spooled.assignment.identity.clone());
        self.command(SpoolCommand::Begin { partition, epoch, x, identity });
        self.replies.begin(Begin { partition, epoch, at });
    }

    fn halt(&mut self, partition: Partition, reason: String, action: String) {
        let Some(spooled) = self.partitions.get_mut(&partition) else { return };
        spooled.phase = Phase::Halted;
        let epoch = spooled.epoch;
        self.command(SpoolCommand::End(partition));
        self.replies.halt(Halt { partition, epoch, reason, action });
    }

    /// Uploads no more of a revoked partition. Its files stay for the next assignment to this machine, and count no more.
    fn stop_leaving(&mut self, partition: Partition) -> Vec<SealedSegment> {
        let (stopped, rest) =
            std::mem::take(&mut self.leaving).into_iter().partition(|((each, _), _)| *each == partition);
        self.leaving = rest;
        let stopped: BTreeMap<_, _> = stopped;
        stopped.into_values().collect()
    }

    /// Fetching is held while sealed segments fill the quota or a full disk.
    fn show_spool(&mut self) {
        // What a halted partition keeps must not hold the others up.
        let going = self.partitions.values().filter(|spooled| !matches!(spooled.phase, Phase::Halted));
        let sealed = going.flat_map(|spooled| spooled.sealed.values()).chain(self.leaving.values());
        let bytes: u64 = sealed.map(|segment| segment.header.bytes).sum();
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
            self.command(SpoolCommand::NameOthers(self.partitions.keys().copied().collect()));
        }
        self.show_spool();
        // Said again, in case the consumer was rebuilt and does not know.
        for (hold, _) in self.held.iter().filter(|(_, on)| **on) {
            self.replies.hold(SetHold { hold: *hold, on: true });
        }
        self.look_at_gaps();
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
        let partition = assignment.partition;
        self.leaving.retain(|(leaving, _), _| *leaving != partition);
        let spooled = Spooled {
            epoch,
            assignment: assignment.clone(),
            phase: Phase::Opening { chain_end: None, found: None },
            cursor: Offset(0),
            sealed: BTreeMap::new(),
        };
        let holds_all = assignment.holds_all;
        self.partitions.insert(partition, spooled);
        if self.needs_all_partitions && !holds_all {
            let reason = format!("another worker is in group {}: use a shared store", self.group);
            let action = "set archive.url to a shared store (s3://, gs://, az://), or run one worker".to_owned();
            return self.halt(partition, reason, action);
        }
        self.command(SpoolCommand::Scan { partition, epoch });
        self.uploader.tell(OpenChain { epoch, assignment });
    }
}

impl Handler<Unassign> for Spooler {
    type Result = ();

    fn handle(&mut self, Unassign { partition, epoch }: Unassign, _: &mut Self::Context) {
        if self.current(partition, epoch).is_none() {
            return;
        }
        self.command(SpoolCommand::End(partition));
        if let Some(spooled) = self.partitions.remove(&partition) {
            self.leaving.extend(spooled.sealed.into_iter().map(|(x, segment)| ((partition, x), segment)));
        }
        self.show_spool();
    }
}

impl Handler<Batch> for Spooler {
    type Result = ();

    fn handle(&mut self, batch: Batch, _: &mut Self::Context) {
        let (partition, epoch, draining) = (batch.partition, batch.epoch, self.draining);
        let Some(spooled) = self.current(partition, epoch) else { return };
        if !matches!(spooled.phase, Phase::Spooling) || draining || batch.to <= spooled.cursor {
            return;
        }
        if batch.from > spooled.cursor {
            let at = spooled.cursor;
            return self.replies.begin(Begin { partition, epoch, at });
        }
        let from = spooled.cursor;
        spooled.cursor = batch.to;
        self.command(SpoolCommand::Append { batch, from });
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
                let Some(spooled) = self.current(partition, epoch) else { return };
                if let Phase::Opening { found, .. } = &mut spooled.phase {
                    *found = Some(segments);
                    self.open_when_known(partition);
                }
            }
            SpoolEvent::Sealed { epoch, segment } => {
                let Some(spooled) = self.current(segment.header.partition, epoch) else { return };
                spooled.sealed.insert(segment.x(), segment.clone());
                self.uploader.tell(Upload { epoch, segment });
                self.show_spool();
                self.health.actor(ActorName::Spooler, ActorState::Running, None);
            }
            SpoolEvent::Scanned { partition, epoch, segments: Err(error) }
            | SpoolEvent::Failed { partition, epoch, error } => {
                if self.current(partition, epoch).is_none() {
                    return;
                }
                let reason = format!("partition {partition} cannot be spooled: {error}");
                tracing::warn!(reason, "spool failed, beginning again");
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
        let Some(spooled) = self.current(partition, epoch) else { return };
        if let Phase::Opening { chain_end, .. } = &mut spooled.phase {
            *chain_end = Some(end);
            self.open_when_known(partition);
        }
    }
}

impl Handler<Archived> for Spooler {
    type Result = ();

    fn handle(&mut self, Archived { epoch, segment }: Archived, _: &mut Self::Context) {
        let (partition, x, end) = (segment.header.partition, segment.x(), segment.end());
        self.metrics.events_archived.inc_by(segment.header.records);
        self.leaving.remove(&(partition, x));
        if let Some(spooled) = self.current(partition, epoch) {
            spooled.sealed.remove(&x);
            self.replies.confirm(Confirm { partition, epoch, position: end });
        }
        // Confirmed before it is removed; a crash in between finds it again and drops it then.
        self.command(SpoolCommand::Remove(segment));
        self.show_spool();
    }
}

impl Handler<Followed> for Spooler {
    type Result = ();

    fn handle(&mut self, Followed { partition, epoch, end }: Followed, _: &mut Self::Context) {
        let Some(spooled) = self.current(partition, epoch) else {
            // Revoked: the partition's next owner goes on from there.
            for segment in self.stop_leaving(partition).into_iter().filter(|segment| segment.end() <= end) {
                self.command(SpoolCommand::Remove(segment));
            }
            return self.show_spool();
        };
        let rest = spooled.sealed.split_off(&end);
        let before = std::mem::replace(&mut spooled.sealed, rest);
        let chaining = matches!(spooled.phase, Phase::Spooling) && spooled.sealed.contains_key(&end);
        let resent: Vec<SealedSegment> = spooled.sealed.values().filter(|_| chaining).cloned().collect();
        for segment in before.into_values().filter(|segment| segment.end() <= end) {
            self.command(SpoolCommand::Remove(segment));
        }
        self.replies.confirm(Confirm { partition, epoch, position: end });
        if chaining {
            // What was sealed while the uploader looked at the other object goes on from its end.
            for segment in resent {
                self.uploader.tell(Upload { epoch, segment });
            }
        } else {
            // The log may have been trimmed meanwhile: what is on disk is judged by where the log stands now.
            self.replies.reassign(Reassign { partition, epoch });
        }
        self.show_spool();
    }
}

impl Handler<Damaged> for Spooler {
    type Result = ();

    fn handle(&mut self, Damaged { epoch, segment, why }: Damaged, _: &mut Self::Context) {
        let partition = segment.header.partition;
        self.stop_leaving(partition);
        self.command(SpoolCommand::Orphan { segment, why });
        // Assigned anew, the partition begins at the archive's end; the log still has the records, or says that not.
        self.replies.reassign(Reassign { partition, epoch });
    }
}

impl Handler<ChainHalted> for Spooler {
    type Result = ();

    fn handle(&mut self, ChainHalted { partition, epoch, reason, action }: ChainHalted, _: &mut Self::Context) {
        self.stop_leaving(partition);
        if self.current(partition, epoch).is_some() {
            self.halt(partition, reason, action);
        }
        self.show_spool();
    }
}

impl Handler<UploaderStarted> for Spooler {
    type Result = ();

    /// The uploader lost its queues: every partition begins anew. What belonged to revoked ones stays on disk, for
    /// their next assignment to this machine.
    fn handle(&mut self, _: UploaderStarted, _: &mut Self::Context) {
        self.leaving.clear();
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
