//! The uploader: puts sealed segments into the archive, each partition's strictly in order, as create-only objects.
//!
//! What may go next and what follows from an answer is decided by the [`chain`], without I/O. The requests themselves
//! run on the I/O runtime, which outlives the actors: a bounded number of partitions in parallel, each with its segment
//! in memory. What may pass is tried again without end, with back-off and jitter; what will not (a missing bucket, no
//! permission) is shown, and tried again at the longest pause, so that it heals when the operator mends it.

mod archive;
pub mod chain;
mod compare;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use actix::{Actor, Addr, AsyncContext, Context, Handler, Message, ResponseFuture};
use tokio::{
    runtime::Handle,
    sync::{OnceCell, Semaphore, oneshot},
    task::JoinHandle,
};

pub use self::archive::{Archive, ProbeError};
use self::{
    archive::{Head, HeadError},
    chain::{Chain, Put, Step},
};
use crate::{
    config::{Config, LiveConfig},
    consume::Drain,
    health::{ActorName, ActorState, Health},
    metrics::Metrics,
    position::{Offset, Partition, TopicIdentity},
    queue::{Assignment, Epoch},
    spool::{Archived, ChainHalted, ChainOpened, Damaged, Followed, Spooler, UploaderStarted, segment::SealedSegment},
    supervise::Slot,
};

/// The name of this dependency in readiness.
pub const DEPENDENCY: &str = "object_store";

/// From the spooler: find out how far this partition's chain reaches, and answer `ChainOpened`.
#[derive(Debug, Clone, Message)]
#[rtype(result = "()")]
pub struct OpenChain {
    pub epoch: Epoch,
    pub assignment: Assignment,
}

/// From the spooler: put this segment, when it is its turn.
#[derive(Debug, Clone, Message)]
#[rtype(result = "()")]
pub struct Upload {
    pub epoch: Epoch,
    pub segment: SealedSegment,
}

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

#[derive(Debug)]
enum Answer {
    Put(Put),
    /// The segment's file does not match its header.
    Damaged(String),
}

/// Why a chain cannot be opened until the operator does something.
#[derive(Debug)]
struct Unusable {
    reason: String,
    action: String,
}

/// A partition's chain, and its request that is under way.
struct Partitioned {
    chain: Chain,
    identity: TopicIdentity,
    request: Option<JoinHandle<()>>,
    head_written: Instant,
    /// The key of the last object, while the head does not name it yet.
    unwritten_key: Option<String>,
}

/// What the requests share.
struct Requests {
    archive: Archive,
    config: LiveConfig,
    health: Health,
    metrics: Arc<Metrics>,
    /// The store was seen to refuse a second create-only PUT.
    probed: OnceCell<()>,
    /// Each upload in flight, bounded by `upload.max_parallel`.
    uploads: Semaphore,
    /// KiB of segments in memory, bounded by `upload.max_in_flight`.
    memory: Semaphore,
    memory_kib: u32,
    /// Failing now, so that the first success says that it is over.
    failing: AtomicBool,
}

/// The uploader actor.
pub struct Uploader {
    requests: Arc<Requests>,
    io: Handle,
    spooler: Slot<Spooler>,
    partitions: BTreeMap<Partition, Partitioned>,
    /// Ends of chains that were seen in this process: a head may be older.
    known_ends: BTreeMap<Partition, Offset>,
    /// Whoever waits for all queues to be empty.
    drained: Vec<oneshot::Sender<()>>,
}

impl Uploader {
    /// Heads are rewritten at most this often; an older one costs the next start one refetched segment.
    const HEAD_INTERVAL: Duration = Duration::from_secs(5);

    /// # Errors
    /// When `archive.url` and its options make no store.
    pub fn new(
        archive: Archive,
        io: Handle,
        spooler: Slot<Spooler>,
        config: LiveConfig,
        health: Health,
        metrics: Arc<Metrics>,
    ) -> Self {
        let upload = config.load().upload.clone();
        let memory_kib = u32::try_from(upload.max_in_flight.0 / 1024).unwrap_or(u32::MAX / 2).max(1);
        let requests = Requests {
            archive,
            config,
            health,
            metrics,
            probed: OnceCell::new(),
            uploads: Semaphore::new(upload.max_parallel),
            memory: Semaphore::new(memory_kib as usize),
            memory_kib,
            failing: AtomicBool::new(false),
        };
        Self {
            requests: Arc::new(requests),
            io,
            spooler,
            partitions: BTreeMap::new(),
            known_ends: BTreeMap::new(),
            drained: Vec::new(),
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
                let answer = requests.upload(&segment).await;
                addr.do_send(Answered { partition, epoch, answer });
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
        self.io.spawn(async move {
            if let Err(error) = requests.archive.write_head(partition, &head).await {
                tracing::debug!(%partition, %error, "head not rewritten; the older one stands");
            }
        });
    }

    /// While nothing waits, heads are brought up to date, so that a quiet end of the day is found at once.
    fn write_stale_heads(&mut self) {
        let partitions: Vec<Partition> = self.partitions.keys().copied().collect();
        for partition in partitions {
            let pause = if self.drained.is_empty() { Self::HEAD_INTERVAL } else { Duration::ZERO };
            self.write_head(partition, pause);
        }
    }

    fn advanced(&mut self, partition: Partition, end: Offset, key: Option<String>) {
        self.known_ends.insert(partition, end);
        if let Some(partitioned) = self.partitions.get_mut(&partition)
            && key.is_some()
        {
            partitioned.unwritten_key = key;
        }
        self.write_head(partition, Self::HEAD_INTERVAL);
    }
}

impl Requests {
    fn failing(&self, reason: String) {
        self.failing.store(true, Ordering::Release);
        self.health.dependency(DEPENDENCY, Err(reason.clone()));
        self.health.actor(ActorName::Uploader, ActorState::Failing, reason);
    }

    fn working(&self) {
        self.health.dependency(DEPENDENCY, Ok(()));
        if self.failing.swap(false, Ordering::AcqRel) {
            self.health.actor(ActorName::Uploader, ActorState::Running, None);
        }
    }

    /// Shows what failed and waits: longer each time, and at once the longest for what a retry alone will not mend.
    async fn pause(&self, attempt: u32, error: &object_store::Error) {
        let (max, config) = (is_lasting(error), self.config.load_full());
        self.failing(explain(error, &config));
        self.metrics.upload_retries.inc();
        let upload = &config.upload;
        let pause = if max {
            upload.max_backoff
        } else {
            upload.backoff.saturating_mul(1 << attempt.min(16)).min(upload.max_backoff)
        };
        tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
    }

    /// Finds the end of a partition's chain; returns only when it is known, or cannot be used at all.
    async fn open(&self, assignment: &Assignment, known_end: Option<Offset>) -> Result<Offset, Unusable> {
        let mut attempt = 0;
        loop {
            match self.try_open(assignment, known_end).await {
                Ok(outcome) => {
                    self.working();
                    return outcome;
                }
                Err(error) => self.pause(attempt, &error).await,
            }
            attempt += 1;
        }
    }

    async fn try_open(
        &self,
        assignment: &Assignment,
        known_end: Option<Offset>,
    ) -> object_store::Result<Result<Offset, Unusable>> {
        let probe = self.probed.get_or_try_init(|| self.archive.probe()).await;
        match probe {
            Ok(()) => {}
            Err(ProbeError::Store(error)) => return Err(error),
            Err(error @ ProbeError::Overwrites) => {
                return Ok(Err(Unusable {
                    reason: error.to_string(),
                    action: "set archive.url to a store that honours create-only PUTs, and restart".to_owned(),
                }));
            }
        }
        let partition = assignment.partition;
        let unreadable = |what: String| Unusable {
            reason: format!("the archive's chain cannot be read: {what}"),
            action: "restore that object (the daemon overwrites and deletes nothing), and restart".to_owned(),
        };
        let mut head = match self.archive.head(partition).await {
            Ok(Some(head)) => head,
            Ok(None) => match self.archive.find_end(partition, None).await {
                Ok(found) => {
                    let (end, key) = match found {
                        Some((end, key)) => (end, Some(key)),
                        None => (assignment.committed.unwrap_or(assignment.log_start), None),
                    };
                    let head = Head { version: Head::VERSION, end, key, identity: assignment.identity.clone() };
                    if !self.archive.pin(partition, &head).await? {
                        // Another writer pinned it in between: theirs counts, read in the next attempt.
                        return Box::pin(self.try_open(assignment, known_end)).await;
                    }
                    head
                }
                Err(HeadError::Store(error)) => return Err(error),
                Err(HeadError::Unreadable(what)) => return Ok(Err(unreadable(what))),
            },
            Err(HeadError::Store(error)) => return Err(error),
            Err(HeadError::Unreadable(what)) => return Ok(Err(unreadable(what))),
        };
        if head.identity.contradicts(&assignment.identity.0) {
            return Ok(Err(Unusable {
                reason: format!(
                    "the archive was made from another topic of this name (identity {}, now {})",
                    head.identity, assignment.identity
                ),
                action: "raise queue.generation to archive the new topic beside the old one, and restart".to_owned(),
            }));
        }
        head.end = head.end.max(known_end.unwrap_or_default());
        if assignment.log_start > head.end {
            match self.archive.find_end(partition, Some(&head)).await {
                Ok(Some((end, _))) => head.end = head.end.max(end),
                Ok(None) => {}
                Err(HeadError::Store(error)) => return Err(error),
                Err(HeadError::Unreadable(what)) => return Ok(Err(unreadable(what))),
            }
        }
        Ok(Ok(head.end))
    }

    /// Puts a segment; returns only when an answer is known.
    async fn upload(&self, segment: &SealedSegment) -> Answer {
        // The semaphores are never closed.
        let _turn = self.uploads.acquire().await;
        let kib = u32::try_from(segment.header.bytes / 1024 + 1).unwrap_or(u32::MAX).min(self.memory_kib);
        let _memory = self.memory.acquire_many(kib).await;
        let key = self.archive.key(&segment.header);
        let mut attempt = 0;
        loop {
            let started = Instant::now();
            let file = segment.clone();
            // A file of up to spool.max_bytes, read and checksummed.
            let data = match tokio::task::spawn_blocking(move || file.read()).await {
                Ok(Ok(data)) => bytes::Bytes::from(data),
                Ok(Err(error)) => return Answer::Damaged(error.to_string()),
                Err(error) => return Answer::Damaged(error.to_string()),
            };
            let error = match self.archive.create(&key, data.clone()).await {
                Ok(()) => {
                    self.working();
                    self.metrics.upload_duration.observe(started.elapsed().as_secs_f64());
                    return Answer::Put(Put::Created);
                }
                Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) => {
                    match self.archive.get(&key).await {
                        Ok(object) => {
                            self.working();
                            return Answer::Put(compare_blocking(key.to_string(), object, data).await);
                        }
                        // A conflict with a request that failed: nothing stands there, PUT again.
                        Err(object_store::Error::NotFound { source, .. }) => {
                            object_store::Error::Generic { store: "archive", source }
                        }
                        Err(error) => error,
                    }
                }
                Err(error) => error,
            };
            self.pause(attempt, &error).await;
            attempt += 1;
        }
    }
}

async fn compare_blocking(key: String, object: bytes::Bytes, ours: bytes::Bytes) -> Put {
    let compared = tokio::task::spawn_blocking(move || compare::compare(&object, &ours)).await;
    match compared {
        Ok(Ok(end)) => Put::Exists { end },
        Ok(Err(error)) => {
            Put::Conflict { reason: format!("the object {key} stands where the next one would go: {error:#}") }
        }
        Err(error) => Put::Conflict { reason: format!("the object {key} cannot be compared: {error}") },
    }
}

/// What waiting alone does not mend.
fn is_lasting(error: &object_store::Error) -> bool {
    use object_store::Error as E;
    matches!(
        error,
        E::PermissionDenied { .. }
            | E::Unauthenticated { .. }
            | E::NotFound { .. }
            | E::NotSupported { .. }
            | E::NotImplemented { .. }
    )
}

/// One sentence for the operator.
fn explain(error: &object_store::Error, config: &Config) -> String {
    use object_store::Error as E;
    let url = &config.archive.url;
    match error {
        E::NotFound { .. } => {
            format!("the bucket or folder of {url} does not exist: create it, or correct archive.url")
        }
        E::PermissionDenied { .. } | E::Unauthenticated { .. } => {
            format!(
                "{url} refuses our credentials: check archive.options and the bucket's policy ({})",
                one_line(&error.to_string())
            )
        }
        error => format!("{url} cannot be reached: {}", one_line(&error.to_string())),
    }
}

/// Stores answer with pages; their first words say enough.
fn one_line(text: &str) -> String {
    const LONGEST: usize = 300;
    let mut line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if let Some((end, _)) = line.char_indices().nth(LONGEST) {
        line.truncate(end);
        line.push('…');
    }
    line
}

/// One sentence for the operator on why a store cannot be used as an archive.
pub fn explain_probe(error: &ProbeError, config: &Config) -> String {
    match error {
        ProbeError::Store(error) => explain(error, config),
        error @ ProbeError::Overwrites => format!("{}: {error}", config.archive.url),
    }
}

impl Actor for Uploader {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.requests.health.actor(ActorName::Uploader, ActorState::Running, None);
        self.spooler.tell(UploaderStarted);
        ctx.run_interval(Self::HEAD_INTERVAL, |uploader, _| uploader.write_stale_heads());
    }
}

impl Drop for Uploader {
    fn drop(&mut self) {
        // A PUT that is cut off may have taken effect: that is the case of a lost reply.
        self.partitions.values().filter_map(|partitioned| partitioned.request.as_ref()).for_each(JoinHandle::abort);
    }
}

impl Handler<OpenChain> for Uploader {
    type Result = ();

    fn handle(&mut self, OpenChain { epoch, assignment }: OpenChain, ctx: &mut Self::Context) {
        let partition = assignment.partition;
        let known_end = self.known_ends.get(&partition).copied();
        let (requests, addr): (_, Addr<Self>) = (self.requests.clone(), ctx.address());
        let identity = assignment.identity.clone();
        let request = self.io.spawn(async move {
            let outcome = requests.open(&assignment, known_end).await;
            addr.do_send(Opened { partition, epoch, outcome });
        });
        let partitioned = Partitioned {
            chain: Chain::new(epoch),
            identity,
            request: Some(request),
            head_written: Instant::now(),
            unwritten_key: None,
        };
        if let Some(Partitioned { request: Some(request), .. }) = self.partitions.insert(partition, partitioned) {
            request.abort();
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
        let put = match answer {
            Answer::Put(put) => put,
            Answer::Damaged(why) => {
                if let Some(segment) = partitioned.chain.damaged() {
                    self.spooler.tell(Damaged { epoch, segment, why });
                }
                return self.proceed(partition, ctx);
            }
        };
        match partitioned.chain.answered(put) {
            Some(Step::Archived(segment)) => {
                let key = self.requests.archive.key(&segment.header).to_string();
                self.advanced(partition, segment.end(), Some(key));
                self.spooler.tell(Archived { epoch, segment });
            }
            Some(Step::Follow { end }) => {
                tracing::info!(%partition, %end, "another writer's object stands at our position; following it");
                self.advanced(partition, end, None);
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

impl Handler<Drain> for Uploader {
    type Result = ResponseFuture<()>;

    /// Replies when every queue is empty; the caller has the deadline. What is left stays sealed on disk.
    fn handle(&mut self, _: Drain, _: &mut Self::Context) -> Self::Result {
        let (done, drained) = oneshot::channel();
        self.drained.push(done);
        if self.is_idle() {
            self.write_stale_heads();
            self.drained.drain(..).for_each(|drained| {
                let _ = drained.send(());
            });
        }
        Box::pin(async move {
            // An error says that the actor has died.
            let _ = drained.await;
        })
    }
}
