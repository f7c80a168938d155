//! The uploader: performs what the spooler's machine ([`partition`](super::partition)) asks of the object store: where a
//! chain ends, create-only PUTs of sealed segments, heads, and what is said of a gap. It decides nothing.
//!
//! The requests run on the I/O runtime, which outlives the actors: a bounded number of partitions in parallel, each with its
//! segment in memory unless the archive takes its file (`local`). What may pass is tried again without end, with back-off and
//! jitter; what will not (a missing bucket, no permission) is shown, and tried again at the longest pause, so that it heals
//! when the operator mends it.

mod archive;
mod chain_files;
mod client;
mod errors;
mod local;
pub mod objects;
pub mod opening;
mod race;
mod requests;
pub mod settings;
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
use parking_lot::Mutex;
use tokio::{runtime::Handle, task::JoinHandle};
use tokio_util::task::AbortOnDropHandle;

pub(crate) use self::store::{build, prefixes};
pub use self::{
    archive::Archive,
    chain_files::Skip,
    errors::{ProbeError, explain, explain_probe, failed, is_lasting, place},
    local::sweep,
    opening::{Head, HeadError},
    race::Race,
};
use self::{requests::Requests, watch::Watch};
use crate::{
    archive::{
        partition::{Input, News, Transfer},
        spool::{Found, Spooler, WhenUploaded, segment::SealedSegment},
    },
    config::LiveConfig,
    consume::Drain,
    health::{ActorState, Health},
    log::Epoch,
    metrics::Metrics,
    names::ActorName,
    panics::panic_message,
    position::Partition,
    supervise::Slot,
};

/// From the spooler. It is about one assignment of a partition: what an earlier one was told is told apart by its epoch.
impl Message for Transfer {
    type Result = ();
}

/// From the I/O runtime: a request ended without an answer. The guardian builds the actor anew.
#[derive(Debug, Message)]
#[rtype(result = "()")]
struct RequestPanicked(String);

/// What is under way for a partition's present assignment; cut off with it. A PUT that is cut off may have taken effect: that is
/// the case of a lost reply.
struct Tasks {
    epoch: Epoch,
    /// The question for the chain's end, or a PUT.
    request: AbortOnDropHandle<()>,
    /// The question about its gap: one at a time, however often it is asked.
    asking: Option<AbortOnDropHandle<()>>,
    /// Objects of ours that are looked at again.
    watch: Arc<Mutex<Watch>>,
    /// The look that is under way.
    looking: Option<AbortOnDropHandle<()>>,
}

/// The uploader actor.
pub struct Uploader {
    requests: Arc<Requests>,
    io: Handle,
    spooler: Slot<Spooler>,
    tasks: BTreeMap<Partition, Tasks>,
    /// Heads on their way, at most a few a partition.
    head_writes: Vec<JoinHandle<()>>,
}

impl Uploader {
    /// How often objects are looked at again.
    const LOOK_INTERVAL: Duration = Duration::from_secs(5);

    pub fn new(
        archive: Archive,
        io: Handle,
        spooler: Slot<Spooler>,
        config: LiveConfig,
        health: Health,
        metrics: Arc<Metrics>,
    ) -> Self {
        let requests = Arc::new(Requests::new(archive, config, health, metrics));
        Self { requests, io, spooler, tasks: BTreeMap::new(), head_writes: Vec::new() }
    }

    fn of(&mut self, partition: Partition, epoch: Epoch) -> Option<&mut Tasks> {
        self.tasks.get_mut(&partition).filter(|tasks| tasks.epoch == epoch)
    }

    /// Runs a request whose answer is told to the spooler.
    fn request(
        &self,
        partition: Partition,
        epoch: Epoch,
        answer: impl Future<Output = News> + Send + 'static,
        ctx: &Context<Self>,
    ) -> AbortOnDropHandle<()> {
        let (spooler, addr): (_, Addr<Self>) = (self.spooler.clone(), ctx.address());
        AbortOnDropHandle::new(self.io.spawn(async move {
            match AssertUnwindSafe(answer).catch_unwind().await {
                Ok(news) => spooler.tell(Found(Input::About { partition, epoch, news })),
                Err(panic) => addr.do_send(RequestPanicked(panic_message(panic.as_ref()).to_owned())),
            }
        }))
    }

    /// Rewrites the head in the background; a failure leaves an older one, which is allowed.
    fn write_head(&mut self, partition: Partition, head: Head) {
        let requests = self.requests.clone();
        self.head_writes.retain(|write| !write.is_finished());
        self.head_writes.push(self.io.spawn(async move {
            if let Err(error) = requests.archive.write_head(partition, &head).await {
                tracing::warn!(%partition, %error, "the chain's head cannot be rewritten; the older one stands, and the next start looks for the end by LIST");
            }
        }));
    }

    /// Asks for the recent objects of each partition whether they still are what was put.
    fn look_again(&mut self) {
        for (partition, tasks) in &mut self.tasks {
            if tasks.looking.as_ref().is_some_and(|looking| !looking.is_finished()) {
                continue;
            }
            let due = tasks.watch.lock().due(Instant::now());
            if due.is_empty() {
                continue;
            }
            let (partition, epoch) = (*partition, tasks.epoch);
            let (requests, spooler) = (self.requests.clone(), self.spooler.clone());
            tasks.looking = Some(AbortOnDropHandle::new(self.io.spawn(async move {
                for object in due {
                    if requests.is_replaced(&object).await {
                        let news = News::Replaced(object.key.to_string());
                        return spooler.tell(Found(Input::About { partition, epoch, news }));
                    }
                }
            })));
        }
    }
}

/// Puts a segment, and has its object looked at again if it is ours.
async fn put(requests: Arc<Requests>, segment: SealedSegment, watch: Arc<Mutex<Watch>>) -> News {
    let key = requests.archive.key(&segment.header).to_string();
    let (answer, object) = requests.upload(&segment).await;
    if let Some(object) = object {
        watch.lock().put(object);
    }
    News::Put { key, answer }
}

impl Actor for Uploader {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.requests.health.actor(ActorName::Uploader, ActorState::Running, None);
        self.spooler.tell(Found(Input::UploaderStarted));
        ctx.run_interval(Self::LOOK_INTERVAL, |uploader, _| uploader.look_again());
    }
}

impl Handler<Transfer> for Uploader {
    type Result = ();

    fn handle(&mut self, transfer: Transfer, ctx: &mut Self::Context) {
        let requests = self.requests.clone();
        match transfer {
            Transfer::OpenChain { epoch, assignment, known } => {
                let partition = assignment.partition;
                let open = async move { News::Opened(requests.open(&assignment, known).await) };
                let request = self.request(partition, epoch, open, ctx);
                let tasks = Tasks { epoch, request, asking: None, watch: Arc::default(), looking: None };
                self.tasks.insert(partition, tasks);
            }
            Transfer::Put { epoch, segment } => {
                let partition = segment.header.partition;
                // What was told to an earlier incarnation is told to this one anew.
                let Some(watch) = self.of(partition, epoch).map(|tasks| tasks.watch.clone()) else { return };
                let request = self.request(partition, epoch, put(requests, segment, watch), ctx);
                if let Some(tasks) = self.of(partition, epoch) {
                    tasks.request = request;
                }
            }
            Transfer::AskAboutGap { partition, epoch, end } => {
                let (io, spooler) = (self.io.clone(), self.spooler.clone());
                let Some(tasks) = self.of(partition, epoch) else { return };
                if tasks.asking.as_ref().is_none_or(AbortOnDropHandle::is_finished) {
                    tasks.asking = Some(AbortOnDropHandle::new(io.spawn(async move {
                        // Without an answer it is asked again in a few seconds.
                        if let Some(answer) = requests.about_gap(partition, end).await {
                            let news = News::GapAnswered(answer);
                            spooler.tell(Found(Input::About { partition, epoch, news }));
                        }
                    })));
                }
            }
            Transfer::WriteHead { partition, head } => self.write_head(partition, head),
        }
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

    /// Replies when nothing more can be put and the heads are written; the caller has the deadline. What is left stays sealed
    /// on disk.
    fn handle(&mut self, _: Drain, _: &mut Self::Context) -> Self::Result {
        let spooler = self.spooler.get();
        let uploaded = async move {
            match spooler {
                // An error says that the actor has died.
                Some(spooler) => spooler.send(WhenUploaded).await.unwrap_or_default(),
                None => Vec::new(),
            }
        };
        Box::pin(uploaded.into_actor(self).then(|heads, uploader, _| {
            heads.into_iter().for_each(|(partition, head)| uploader.write_head(partition, head));
            let writes = std::mem::take(&mut uploader.head_writes);
            // What was cut off leaves an older head, which is allowed.
            async move { drop(futures::future::join_all(writes).await) }.into_actor(uploader)
        }))
    }
}
