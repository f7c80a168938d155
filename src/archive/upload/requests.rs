//! The uploader's requests to the object store. They run on the I/O runtime and return only when an answer is known:
//! what may pass is tried again without end, with back-off and jitter.

use std::{
    collections::BTreeMap,
    io::ErrorKind,
    sync::Arc,
    time::{Duration, Instant},
};

use object_store::path::Path;
use parking_lot::Mutex;
use rustix::io::Errno;
use tokio::sync::{OnceCell, Semaphore, SemaphorePermit};

use super::{
    archive::Archive,
    compare,
    errors::{ProbeError, explain, is_lasting, place, without_right},
    opening::{self, HeadError, Heads as _, Known, Unusable},
    watch::Watched,
    window::Window,
};
use crate::{
    archive::{
        partition::{GapAnswer, PutAnswer},
        spool::segment::SealedSegment,
    },
    backoff::Backoff,
    config::LiveConfig,
    health::{ActorState, Health},
    log::Assignment,
    metrics::Metrics,
    names::{ActorName, dependency},
    position::{Offset, Partition},
};

/// So long a question about a gap counts as failed. It is asked every few seconds, for as long as the partition is ours.
const GAP_FAILURE: Duration = Duration::from_secs(15);

/// Why the store cannot be used for a partition.
struct Failing {
    reason: String,
    until: Option<Instant>,
}

/// Attempts after which a sector that the disk cannot read is given up.
const UNREADABLE_AFTER: u32 = 5;

/// What the requests share.
pub(super) struct Requests {
    pub(super) archive: Archive,
    config: LiveConfig,
    pub(super) health: Health,
    pub(super) metrics: Arc<Metrics>,
    /// Where requests go, for readiness; none where that is the cloud itself, or a folder.
    place: Option<String>,
    /// The store was seen to refuse a second create-only PUT.
    probed: OnceCell<()>,
    /// Uploads at the same time, bounded by `upload.max_parallel`.
    uploads: Window,
    /// KiB of segments in memory, bounded by `upload.max_in_flight`.
    memory: Semaphore,
    memory_kib: u32,
    /// The partitions whose requests fail now: one that works says nothing of the others.
    failing: Mutex<BTreeMap<Partition, Failing>>,
}

impl Requests {
    pub(super) fn new(archive: Archive, config: LiveConfig, health: Health, metrics: Arc<Metrics>) -> Self {
        let upload = config.load().upload.clone();
        let place = archive.endpoint.is_some().then(|| place(&config.load()));
        let memory_kib = u32::try_from(upload.max_in_flight.0 / 1024).unwrap_or(u32::MAX / 2).max(1);
        Self {
            archive,
            config,
            health,
            metrics,
            place,
            probed: OnceCell::new(),
            uploads: Window::new(upload.max_parallel),
            memory: Semaphore::new(memory_kib as usize),
            memory_kib,
            failing: Mutex::default(),
        }
    }

    /// `until` is when it is forgotten where nobody says it again: a partition may be another worker's by then.
    fn failing(&self, partition: Partition, reason: String, until: Option<Instant>) {
        let mut failing = self.failing.lock();
        failing.insert(partition, Failing { reason: reason.clone(), until });
        self.health.dependency(dependency::OBJECT_STORE, Err(reason.clone()));
        self.health.actor(ActorName::Uploader, ActorState::Failing, reason);
    }

    fn working(&self, partition: Partition) {
        let mut failing = self.failing.lock();
        let was_failing = !failing.is_empty();
        failing.remove(&partition);
        failing.retain(|_, it| it.until.is_none_or(|until| until > Instant::now()));
        if let Some(Failing { reason, .. }) = failing.values().next() {
            self.health.dependency(dependency::OBJECT_STORE, Err(reason.clone()));
            return;
        }
        self.health.dependency(dependency::OBJECT_STORE, Ok(()));
        self.health.remark(dependency::OBJECT_STORE, self.place.clone());
        if was_failing {
            self.health.actor(ActorName::Uploader, ActorState::Running, None);
        }
    }

    /// Shows what failed and waits: longer each time, and at once the longest for what a retry alone will not mend.
    async fn pause(&self, partition: Partition, attempt: u32, error: &object_store::Error) {
        let (max, config) = (is_lasting(error), self.config.load_full());
        self.failing(partition, explain(error, &config), None);
        self.metrics.upload_retries.inc();
        let upload = &config.upload;
        let backoff = Backoff::new(upload.backoff, upload.max_backoff);
        let pause = if max { backoff.longest() } else { backoff.pause(attempt + 1) };
        tokio::time::sleep(pause).await;
    }

    /// Finds the end of a partition's chain; returns only when it is known, or cannot be used at all.
    pub(super) async fn open(&self, assignment: &Assignment, known: Known) -> Result<Offset, Unusable> {
        let mut attempt = 0;
        loop {
            match self.try_open(assignment, known).await {
                Ok(outcome) => {
                    self.working(assignment.partition);
                    return outcome;
                }
                Err(error) => self.pause(assignment.partition, attempt, &error).await,
            }
            attempt += 1;
        }
    }

    async fn try_open(&self, assignment: &Assignment, known: Known) -> object_store::Result<Result<Offset, Unusable>> {
        let probe = self.probed.get_or_try_init(|| self.archive.probe()).await;
        match probe {
            Ok(()) => {}
            Err(ProbeError::Store(error)) => return Err(error),
            Err(ProbeError::Right { to, error }) => return Err(without_right(&to, error)),
            Err(error @ (ProbeError::Overwrites | ProbeError::Race(_))) => {
                return Ok(Err(Unusable {
                    reason: error.to_string(),
                    action: "set archive.url to a store that honours create-only PUTs, and restart".to_owned(),
                }));
            }
        }
        opening::end_of_chain(&self.archive, assignment, known).await
    }

    /// How things stand with a gap behind the chain's `end`, asked once; `None` when the store does not answer, which is
    /// shown.
    pub(super) async fn about_gap(&self, partition: Partition, end: Offset) -> Option<GapAnswer> {
        let news = async {
            // A head that cannot be read is found when the chain is opened.
            if matches!(self.archive.head(partition).await, Ok(Some(head)) if head.end > end) {
                return Ok(GapAnswer::Grown);
            }
            match self.archive.skip(partition).await {
                Ok(skip) => Ok(GapAnswer::Skip(Ok(skip.map(|skip| skip.to)))),
                Err(HeadError::Unreadable(what)) => Ok(GapAnswer::Skip(Err(what))),
                Err(HeadError::Store(error)) => Err(error),
            }
        };
        match news.await {
            Ok(news) => {
                self.working(partition);
                Some(news)
            }
            Err(error) => {
                let until = Instant::now() + GAP_FAILURE;
                self.failing(partition, explain(&error, &self.config.load()), Some(until));
                None
            }
        }
    }

    /// Puts a segment; returns only when an answer is known. With it comes the tag of the object, where the store gave one and
    /// the object is ours, byte by byte (the answer to an earlier PUT of it may have been lost).
    pub(super) async fn upload(&self, segment: &SealedSegment) -> (PutAnswer, Option<String>) {
        let mut attempt = 0;
        loop {
            // Given back for the pause, so that what fails holds up nobody.
            let turn = self.uploads.turn().await;
            let error = match self.try_upload(segment, attempt).await {
                Ok(answer) => {
                    if !matches!(answer, (PutAnswer::Damaged { .. }, _)) {
                        self.uploads.answered();
                        self.working(segment.header.partition);
                    }
                    return answer;
                }
                Err(error) => error,
            };
            self.uploads.failed();
            drop(turn);
            self.pause(segment.header.partition, attempt, &error).await;
            attempt += 1;
        }
    }

    /// One attempt; an error is passing.
    async fn try_upload(
        &self,
        segment: &SealedSegment,
        attempt: u32,
    ) -> object_store::Result<(PutAnswer, Option<String>)> {
        let key = self.archive.key(&segment.header);
        let created = match self.create(segment, &key).await {
            Ok(created) => created,
            Err(error) => return unreadable(segment, &error, attempt),
        };
        match created {
            Ok(tag) => Ok((PutAnswer::Created, tag)),
            Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) => {
                let _memory = self.room(segment.header.bytes).await;
                // Before the bytes: what is overwritten in between is found by them, or has another tag later.
                let tag = if self.archive.local.is_some() { None } else { self.archive.tag(&key).await.ok().flatten() };
                match self.archive.get(&key).await {
                    Ok(object) => {
                        self.archive.settle(&key).await?;
                        match blocking(segment, SealedSegment::read).await {
                            Ok(ours) => {
                                let tag = tag.filter(|_| object == ours);
                                Ok((compare_blocking(key.to_string(), object, ours).await, tag))
                            }
                            Err(error) => unreadable(segment, &error, attempt),
                        }
                    }
                    // A conflict with a request that failed: nothing stands there, PUT again.
                    Err(object_store::Error::NotFound { source, .. }) => {
                        Err(object_store::Error::Generic { store: "archive", source })
                    }
                    Err(error) => Err(error),
                }
            }
            Err(error) => Err(error),
        }
    }

    /// Makes the object, of data that match the segment's header.
    ///
    /// # Errors
    /// When the segment cannot be read.
    async fn create(
        &self,
        segment: &SealedSegment,
        key: &Path,
    ) -> std::io::Result<object_store::Result<Option<String>>> {
        if let Some(local) = self.archive.local.as_ref().filter(|local| local.takes_links()) {
            let started = Instant::now();
            blocking(segment, SealedSegment::check).await?;
            match self.archive.within(local.link(&segment.path, key)).await {
                Ok(true) => {
                    let settled = self.archive.settle(key).await.inspect(|()| self.took(started));
                    return Ok(settled.map(|()| None));
                }
                Ok(false) => {}
                Err(error) => return Ok(Err(error)),
            }
        }
        let _memory = self.room(segment.header.bytes).await;
        let started = Instant::now();
        let data = blocking(segment, SealedSegment::read).await?;
        Ok(self.archive.create(key, data.into()).await.inspect(|_| self.took(started)))
    }

    /// Whether an object of ours is still what was put. A store that does not answer is asked again later; one that is gone
    /// was deleted, which no store does by itself.
    pub(super) async fn is_replaced(&self, object: &Watched) -> bool {
        match self.archive.tag(&object.key).await {
            Ok(tag) if tag != object.tag => {}
            _ => return false,
        }
        // A tag may mean anything; bytes do not.
        let _memory = self.room(object.bytes).await;
        match self.archive.get(&object.key).await {
            Ok(bytes) => (bytes.len() as u64, crc32c::crc32c(&bytes)) != (object.bytes, object.crc32c),
            Err(_) => false,
        }
    }

    fn took(&self, started: Instant) {
        self.metrics.upload_duration.observe(started.elapsed().as_secs_f64());
    }

    /// Of `upload.max_in_flight`, for so many bytes.
    async fn room(&self, bytes: u64) -> Option<SemaphorePermit<'_>> {
        let kib = u32::try_from(bytes / 1024 + 1).unwrap_or(u32::MAX).min(self.memory_kib);
        // `None` would say that the semaphore was closed, which it never is.
        self.memory.acquire_many(kib).await.ok()
    }
}

/// A file of up to `spool.max_bytes`, read and checksummed.
async fn blocking<T: Send + 'static>(
    segment: &SealedSegment,
    work: impl FnOnce(&SealedSegment) -> std::io::Result<T> + Send + 'static,
) -> std::io::Result<T> {
    let segment = segment.clone();
    tokio::task::spawn_blocking(move || work(&segment)).await.unwrap_or_else(|error| Err(error.into()))
}

/// What a segment is whose file cannot be read.
fn unreadable(
    segment: &SealedSegment,
    error: &std::io::Error,
    attempt: u32,
) -> object_store::Result<(PutAnswer, Option<String>)> {
    match error {
        error if matches!(error.kind(), ErrorKind::InvalidData | ErrorKind::NotFound) => {
            Ok((PutAnswer::Damaged { why: error.to_string() }, None))
        }
        error if error.raw_os_error() == Some(Errno::IO.raw_os_error()) && attempt >= UNREADABLE_AFTER => {
            Ok((PutAnswer::Damaged { why: format!("the disk cannot read it: {error}") }, None))
        }
        // Passing: too many open files, a disk that is away.
        error => {
            let what = format!("the segment {} cannot be read: {error}", segment.path.display());
            Err(object_store::Error::Generic { store: "spool", source: what.into() })
        }
    }
}

async fn compare_blocking(key: String, object: bytes::Bytes, ours: Vec<u8>) -> PutAnswer {
    let compared = tokio::task::spawn_blocking(move || compare::compare(&object, &ours)).await;
    match compared {
        Ok(Ok(end)) => PutAnswer::Exists { end },
        Ok(Err(error)) => {
            PutAnswer::Conflict { reason: format!("the object {key} stands where the next one would go: {error:#}") }
        }
        Err(error) => PutAnswer::Conflict { reason: format!("the object {key} cannot be compared: {error}") },
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::MetadataExt as _};

    use super::*;
    use crate::{archive::spool::segment::sealed_for_tests, config::Config};

    /// A segment that holds what a segment does, as `file`, and what uploads it to `data.dir`'s archive.
    fn segment_and_requests(data_dir: &std::path::Path, file: &str) -> (SealedSegment, Requests) {
        let mut config = Config::default();
        config.data.dir = data_dir.to_owned();
        let mut segment = sealed_for_tests(1, 2);
        let data =
            zstd::encode_all(&b"{\"offset\":1,\"received\":\"2026-11-23T08:00:00Z\",\"event\":{}}\n"[..], 1).unwrap();
        (segment.header.bytes, segment.header.crc32c) = (data.len() as u64, crc32c::crc32c(&data));
        segment.path = data_dir.join(file);
        fs::create_dir_all(segment.path.parent().unwrap()).unwrap();
        fs::write(&segment.path, data).unwrap();
        let archive = Archive::open(&config).unwrap();
        let live = Arc::new(arc_swap::ArcSwap::from_pointee(config));
        (segment, Requests::new(archive, live, Health::default(), Arc::default()))
    }

    fn object(requests: &Requests, segment: &SealedSegment, data_dir: &std::path::Path) -> std::path::PathBuf {
        data_dir.join("archive").join(requests.archive.key(&segment.header).as_ref())
    }

    #[tokio::test]
    async fn a_segment_on_the_archives_disk_is_linked_once() {
        let dir = tempfile::tempdir().unwrap();
        let (segment, requests) = segment_and_requests(dir.path(), "spool/t/0/1.zst");
        assert!(matches!(requests.upload(&segment).await, (PutAnswer::Created, _)));
        let object = object(&requests, &segment, dir.path());
        assert_eq!(fs::metadata(object).unwrap().ino(), fs::metadata(&segment.path).unwrap().ino());
        // As after a crash before it was removed.
        let found = requests.upload(&segment).await;
        assert!(matches!(found, (PutAnswer::Exists { end: Offset(2) }, _)), "{found:?}");
    }

    #[tokio::test]
    async fn a_segment_that_cannot_be_linked_is_put() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (mut segment, requests) = segment_and_requests(dir.path(), "spool/t/0/1.zst");
        let path = other.path().join("1.zst");
        fs::rename(&segment.path, &path).unwrap();
        segment.path = path;
        assert!(matches!(requests.upload(&segment).await, (PutAnswer::Created, _)));
        let object = object(&requests, &segment, dir.path());
        assert_eq!(fs::read(&object).unwrap(), fs::read(&segment.path).unwrap());
        assert_ne!(fs::metadata(object).unwrap().ino(), fs::metadata(&segment.path).unwrap().ino());
    }

    #[tokio::test]
    async fn a_damaged_segment_makes_no_object() {
        let dir = tempfile::tempdir().unwrap();
        let (segment, requests) = segment_and_requests(dir.path(), "spool/t/0/1.zst");
        fs::write(&segment.path, "damaged").unwrap();
        assert!(matches!(requests.upload(&segment).await, (PutAnswer::Damaged { .. }, _)));
        assert!(!object(&requests, &segment, dir.path()).exists());
    }
}
