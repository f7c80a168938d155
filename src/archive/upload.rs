//! The uploader: puts sealed segments into the archive, each partition's strictly in order, as create-only objects.
//!
//! What may go next and what follows from an answer is decided by the [`chain`], without I/O. The requests themselves
//! run on the I/O runtime, which outlives the actors: a bounded number of partitions in parallel, each with its segment
//! in memory unless the archive takes its file (`local`). What may pass is tried again without end, with back-off and
//! jitter; what will not (a missing bucket, no permission) is shown, and tried again at the longest pause, so that it heals
//! when the operator mends it.

mod archive;
pub mod chain;
mod client;
mod compare;
mod errors;
mod local;
pub mod objects;
pub mod opening;
mod race;
mod requests;
pub mod settings;
mod skip;
mod store;
pub mod validate;
mod watch;
mod window;

use std::{
    collections::BTreeMap,
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, Instant},
};

use actix::{
    Actor, ActorContext, ActorFutureExt, Addr, AsyncContext, Context, Handler, Message, ResponseActFuture, WrapFuture,
};
use futures::FutureExt as _;
use object_store::path::Path;
use tokio::{runtime::Handle, sync::oneshot, task::JoinHandle};

pub(crate) use self::store::{build, prefixes};
pub use self::{
    archive::Archive,
    compare::{RecordLine, segment_lines},
    errors::{ProbeError, explain, explain_probe, is_lasting, place},
    local::sweep,
    opening::{Head, HeadError},
    race::Race,
    skip::Skip,
};
use self::{
    chain::{Chain, Put, Step},
    opening::{Known, Unusable},
    requests::{Answer, Requests},
    watch::{Watch, Watched},
};
use crate::{
    archive::{
        messages::{
            Archived, AskAboutGap, ChainHalted, ChainOpened, Damaged, Followed, GapAnswered, OpenChain, Upload,
            UploaderStarted,
        },
        spool::{Spooler, segment::SegmentHeader},
    },
    config::LiveConfig,
    consume::Drain,
    health::{ActorState, Health},
    log::Epoch,
    metrics::Metrics,
    names::ActorName,
    panics::panic_message,
    position::{Offset, Partition, TopicIdentity},
    supervise::Slot,
};

/// From the I/O runtime: the chain's end was found.
#[derive(Debug, Message)]
#[rtype(result = "()")]
struct Opened {
    partition: Partition,
    epoch: Epoch,
    outcome: Result<Offset, Unusable>,
}

/// From the I/O runtime: the answer to a PUT.
#[derive(Debug, Message)]
#[rtype(result = "()")]
struct Answered {
    partition: Partition,
    epoch: Epoch,
    answer: Answer,
}

/// From the I/O runtime: this object is not what was put.
#[derive(Debug, Message)]
#[rtype(result = "()")]
struct Replaced {
    partition: Partition,
    key: Path,
}

/// From the I/O runtime: a request ended without an answer. The guardian builds the actor anew.
#[derive(Debug, Message)]
#[rtype(result = "()")]
struct RequestPanicked(String);

/// A partition's chain, and its request that is under way.
struct Partitioned {
    chain: Chain,
    identity: TopicIdentity,
    request: Option<JoinHandle<()>>,
    /// The question about its hole, while it is under way: one at a time, however often it is asked.
    asked: Option<JoinHandle<()>>,
    head_written: Instant,
    /// The key of the last object, while the head does not name it yet.
    unwritten_key: Option<String>,
    /// Objects of ours that are looked at again.
    watch: Watch,
    /// The look that is under way.
    looking: Option<JoinHandle<()>>,
}

/// The uploader actor.
pub struct Uploader {
    requests: Arc<Requests>,
    io: Handle,
    spooler: Slot<Spooler>,
    partitions: BTreeMap<Partition, Partitioned>,
    /// What this process has seen of the chains: a head may be older.
    known: BTreeMap<Partition, Known>,
    /// Whoever waits for all queues to be empty.
    drained: Vec<oneshot::Sender<()>>,
    /// Heads on their way, at most a few a partition.
    head_writes: Vec<JoinHandle<()>>,
}

impl Uploader {
    /// Heads are rewritten at most this often; an older one costs the next start a LIST of what came after it.
    const HEAD_INTERVAL: Duration = Duration::from_secs(5);

    pub fn new(
        archive: Archive,
        io: Handle,
        spooler: Slot<Spooler>,
        config: LiveConfig,
        health: Health,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            requests: Arc::new(Requests::new(archive, config, health, metrics)),
            io,
            spooler,
            partitions: BTreeMap::new(),
            known: BTreeMap::new(),
            drained: Vec::new(),
            head_writes: Vec::new(),
        }
    }

    fn current(&mut self, partition: Partition, epoch: Epoch) -> Option<&mut Partitioned> {
        self.partitions.get_mut(&partition).filter(|partitioned| partitioned.chain.epoch == epoch)
    }

    /// Starts the next PUT of a partition when one is due.
    fn proceed(&mut self, partition: Partition, ctx: &Context<Self>) {
        let Some(partitioned) = self.partitions.get_mut(&partition) else { return };
        if let Some(segment) = partitioned.chain.due() {
            let (requests, addr, epoch) = (self.requests.clone(), ctx.address(), partitioned.chain.epoch);
            partitioned.request = Some(self.io.spawn(async move {
                match AssertUnwindSafe(requests.upload(&segment)).catch_unwind().await {
                    Ok(answer) => addr.do_send(Answered { partition, epoch, answer }),
                    Err(panic) => addr.do_send(RequestPanicked(panic_message(panic.as_ref()).to_owned())),
                }
            }));
        }
        self.show_depth();
        if self.is_idle() {
            self.write_stale_heads();
            self.drained.drain(..).for_each(|drained| {
                let _ = drained.send(());
            });
        }
    }

    /// Shows how many segments wait or are on their way.
    fn show_depth(&self) {
        let waiting: usize = self.partitions.values().map(|partitioned| partitioned.chain.waiting()).sum();
        self.requests.metrics.depth(ActorName::Uploader).set(i64::try_from(waiting).unwrap_or(i64::MAX));
    }

    fn is_idle(&self) -> bool {
        self.partitions.values().all(|partitioned| partitioned.chain.is_idle())
    }

    /// Rewrites the head in the background; a failure leaves an older one, which is allowed.
    fn write_head(&mut self, partition: Partition, only_after: Duration) {
        let Some(partitioned) = self.partitions.get_mut(&partition) else { return };
        let Some(end) = partitioned.chain.end() else { return };
        if partitioned.unwritten_key.is_none() || partitioned.head_written.elapsed() < only_after {
            return;
        }
        partitioned.head_written = Instant::now();
        let key = partitioned.unwritten_key.take();
        let head = Head { version: Head::VERSION, end, key, identity: partitioned.identity.clone() };
        let requests = self.requests.clone();
        self.head_writes.retain(|write| !write.is_finished());
        self.head_writes.push(self.io.spawn(async move {
            if let Err(error) = requests.archive.write_head(partition, &head).await {
                tracing::warn!(%partition, %error, "the chain's head cannot be rewritten; the older one stands, and the next start looks for the end by LIST");
            }
        }));
    }

    /// While nothing waits, heads are brought up to date, so that a quiet end of the day is found at once.
    fn write_stale_heads(&mut self) {
        let partitions: Vec<Partition> = self.partitions.keys().copied().collect();
        for partition in partitions {
            let pause = if self.drained.is_empty() { Self::HEAD_INTERVAL } else { Duration::ZERO };
            self.write_head(partition, pause);
        }
    }

    /// Asks for the recent objects of each partition whether they still are what was put.
    fn look_again(&mut self, ctx: &Context<Self>) {
        for (partition, partitioned) in &mut self.partitions {
            if partitioned.looking.as_ref().is_some_and(|looking| !looking.is_finished()) {
                continue;
            }
            let due = partitioned.watch.due(Instant::now());
            if due.is_empty() {
                continue;
            }
            let (partition, requests, addr) = (*partition, self.requests.clone(), ctx.address());
            partitioned.looking = Some(self.io.spawn(async move {
                for object in due {
                    if requests.is_replaced(&object).await {
                        return addr.do_send(Replaced { partition, key: object.key });
                    }
                }
            }));
        }
    }

    /// An object of our own ends there.
    fn archived(&mut self, partition: Partition, end: Offset, key: String) {
        self.known.entry(partition).or_default().archived(end);
        if let Some(partitioned) = self.partitions.get_mut(&partition) {
            partitioned.unwritten_key = Some(key);
        }
        self.write_head(partition, Self::HEAD_INTERVAL);
    }
}

impl Actor for Uploader {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.requests.health.actor(ActorName::Uploader, ActorState::Running, None);
        self.show_depth();
        self.spooler.tell(UploaderStarted);
        ctx.run_interval(Self::HEAD_INTERVAL, |uploader, ctx| {
            uploader.write_stale_heads();
            uploader.look_again(ctx);
        });
    }
}

impl Drop for Uploader {
    fn drop(&mut self) {
        // A PUT that is cut off may have taken effect: that is the case of a lost reply.
        let requests = self.partitions.values().flat_map(|it| [&it.request, &it.asked, &it.looking]);
        requests.flatten().for_each(JoinHandle::abort);
    }
}

impl Handler<OpenChain> for Uploader {
    type Result = ();

    fn handle(&mut self, OpenChain { epoch, assignment }: OpenChain, ctx: &mut Self::Context) {
        let partition = assignment.partition;
        let known = self.known.get(&partition).copied().unwrap_or_default();
        let (requests, addr): (_, Addr<Self>) = (self.requests.clone(), ctx.address());
        let identity = assignment.identity.clone();
        let request = self.io.spawn(async move {
            match AssertUnwindSafe(requests.open(&assignment, known)).catch_unwind().await {
                Ok(outcome) => addr.do_send(Opened { partition, epoch, outcome }),
                Err(panic) => addr.do_send(RequestPanicked(panic_message(panic.as_ref()).to_owned())),
            }
        });
        let partitioned = Partitioned {
            chain: Chain::new(epoch),
            identity,
            request: Some(request),
            asked: None,
            head_written: Instant::now(),
            unwritten_key: None,
            watch: Watch::default(),
            looking: None,
        };
        if let Some(Partitioned { request, asked, looking, .. }) = self.partitions.insert(partition, partitioned) {
            [request, asked, looking].iter().flatten().for_each(JoinHandle::abort);
        }
    }
}

impl Handler<Opened> for Uploader {
    type Result = ();

    fn handle(&mut self, Opened { partition, epoch, outcome }: Opened, _: &mut Self::Context) {
        let Some(partitioned) = self.current(partition, epoch) else { return };
        match outcome {
            Ok(end) => {
                partitioned.chain.opened(end);
                self.spooler.tell(ChainOpened { partition, epoch, end });
            }
            Err(Unusable { reason, action }) => {
                self.spooler.tell(ChainHalted { partition, epoch, reason, action });
            }
        }
    }
}

impl Handler<AskAboutGap> for Uploader {
    type Result = ();

    fn handle(&mut self, AskAboutGap { partition, epoch }: AskAboutGap, _: &mut Self::Context) {
        let (requests, spooler, io) = (self.requests.clone(), self.spooler.clone(), self.io.clone());
        let Some(partitioned) = self.current(partition, epoch) else { return };
        // While segments of ours are on their way, the chain grows by them.
        let Some(end) = partitioned.chain.end().filter(|_| partitioned.chain.is_idle()) else { return };
        if partitioned.asked.as_ref().is_none_or(JoinHandle::is_finished) {
            partitioned.asked = Some(io.spawn(async move {
                // Without an answer it is asked again in a few seconds.
                if let Some(news) = requests.about_gap(partition, end).await {
                    spooler.tell(GapAnswered { partition, epoch, news });
                }
            }));
        }
    }
}

impl Handler<Upload> for Uploader {
    type Result = ();

    fn handle(&mut self, Upload { epoch, segment }: Upload, ctx: &mut Self::Context) {
        let partition = segment.header.partition;
        if let Some(partitioned) = self.current(partition, epoch)
            && partitioned.chain.enqueue(segment)
        {
            self.proceed(partition, ctx);
        }
    }
}

impl Handler<Answered> for Uploader {
    type Result = ();

    fn handle(&mut self, Answered { partition, epoch, answer }: Answered, ctx: &mut Self::Context) {
        let Some(partitioned) = self.partitions.get_mut(&partition).filter(|each| each.chain.epoch == epoch) else {
            return;
        };
        let (put, tag) = match answer {
            Answer::Created { tag } => (Put::Created, tag),
            Answer::Found { put, tag } => (put, tag),
            Answer::Damaged(why) => {
                if let Some(segment) = partitioned.chain.damaged() {
                    self.spooler.tell(Damaged { epoch, segment, why });
                }
                return self.proceed(partition, ctx);
            }
        };
        match partitioned.chain.answered(put) {
            Some(Step::Archived(segment)) => {
                let key = self.requests.archive.key(&segment.header);
                let SegmentHeader { bytes, crc32c, .. } = segment.header;
                partitioned.watch.put(Watched { key: key.clone(), tag, bytes, crc32c, at: Instant::now() });
                self.archived(partition, segment.end(), key.to_string());
                self.spooler.tell(Archived { epoch, segment });
            }
            Some(Step::Follow { end }) => {
                tracing::info!(%partition, %end, "another writer's object stands at our position; following it");
                self.known.entry(partition).or_default().met(end);
                self.spooler.tell(Followed { partition, epoch, end });
            }
            Some(Step::Halt { reason }) => {
                let action = "compare that object with the log; to archive from here on beside it, raise queue.generation and restart";
                self.spooler.tell(ChainHalted { partition, epoch, reason, action: action.to_owned() });
            }
            None => {}
        }
        self.proceed(partition, ctx);
    }
}

impl Handler<Replaced> for Uploader {
    type Result = ();

    fn handle(&mut self, Replaced { partition, key }: Replaced, _: &mut Self::Context) {
        let Some(partitioned) = self.partitions.get_mut(&partition) else { return };
        partitioned.chain.halt();
        let reason = format!(
            "{key} is not the object that was put: another writer has overwritten it, so the store does not honour create-only PUTs"
        );
        let action = "find what is missing by `ingestd archive verify`, move the archive to a store that honours them (`ingestd check --connect --thorough`), and restart";
        self.spooler.tell(ChainHalted { partition, epoch: partitioned.chain.epoch, reason, action: action.to_owned() });
    }
}

impl Handler<RequestPanicked> for Uploader {
    type Result = ();

    fn handle(&mut self, RequestPanicked(reason): RequestPanicked, ctx: &mut Self::Context) {
        tracing::error!(reason, "a request to the object store panicked");
        ctx.stop();
    }
}

impl Handler<Drain> for Uploader {
    type Result = ResponseActFuture<Self, ()>;

    /// Replies when every queue is empty and the heads are written; the caller has the deadline. What is left stays sealed on disk.
    fn handle(&mut self, _: Drain, _: &mut Self::Context) -> Self::Result {
        let (done, drained) = oneshot::channel();
        self.drained.push(done);
        if self.is_idle() {
            self.write_stale_heads();
            self.drained.drain(..).for_each(|drained| {
                let _ = drained.send(());
            });
        }
        // An error says that the actor has died.
        let drained = async move { drop(drained.await) };
        Box::pin(drained.into_actor(self).then(|(), uploader, _| {
            let writes = std::mem::take(&mut uploader.head_writes);
            // What was cut off leaves an older head, which is allowed.
            async move { drop(futures::future::join_all(writes).await) }.into_actor(uploader)
        }))
    }
}
