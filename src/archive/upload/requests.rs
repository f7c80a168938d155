//! The uploader's requests to the object store. They run on the I/O runtime and return only when an answer is known:
//! what may pass is tried again without end, with back-off and jitter.

use std::{
    collections::BTreeMap,
    io::{self, ErrorKind},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use object_store::{Error, path::Path};
use parking_lot::Mutex;
use rustix::io::Errno;
use tokio::sync::{OnceCell, Semaphore, SemaphorePermit};

use super::{
    archive::Archive,
    errors::{ProbeError, explain, failed, is_lasting, place, without_right},
    opening::{self, HeadError, Heads as _, Known, OpenError, Unusable},
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

/// How long a question about a gap counts as failed. It is asked every few seconds while the partition is ours.
const GAP_FAILURE: Duration = Duration::from_secs(15);

/// Why the store cannot be used for a partition.
struct Failing {
    reason: String,
    until: Option<Instant>,
}

/// Why an attempt to put a segment gave no answer.
#[derive(Debug, thiserror::Error)]
enum Failed {
    /// The segment's file cannot be read.
    #[error(transparent)]
    Segment(#[from] io::Error),
    #[error(transparent)]
    Store(#[from] Error),
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

    /// `until` is when it is forgotten unless it is said again: a partition may be another worker's by then.
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
            let outcome = match self.try_open(assignment, known).await {
                Err(OpenError::Store(error)) => {
                    self.pause(assignment.partition, attempt, &error).await;
                    attempt += 1;
                    continue;
                }
                Err(OpenError::Unusable(unusable)) => Err(unusable),
                Ok(end) => Ok(end),
            };
            self.working(assignment.partition);
            return outcome;
        }
    }

    async fn try_open(&self, assignment: &Assignment, known: Known) -> Result<Offset, OpenError> {
        let unusable = |error| match error {
            ProbeError::Store(error) => OpenError::Store(error),
            ProbeError::Right { to, error } => OpenError::Store(without_right(&to, error)),
            ProbeError::Overwrites | ProbeError::Race { .. } => OpenError::Unusable(Unusable {
                reason: error.to_string(),
                action: "set archive.url to a store that honours create-only PUTs, and restart".to_owned(),
            }),
        };
        self.probed.get_or_try_init(|| self.archive.probe()).await.map_err(unusable)?;
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

    /// Puts a segment; returns only when an answer is known. With it comes the object to be looked at again, where the store
    /// gave a tag and the object is ours, byte by byte (the answer to an earlier PUT of it may have been lost).
    pub(super) async fn upload(&self, segment: &SealedSegment) -> (PutAnswer, Option<Watched>) {
        let mut attempt = 0;
        loop {
            // Given back for the pause, so that what fails holds up no other.
            let turn = self.uploads.turn().await;
            let error = match self.try_upload(segment).await {
                Ok(answer) => {
                    self.uploads.answered();
                    self.working(segment.header.partition);
                    return answer;
                }
                Err(Failed::Segment(error)) => match unreadable(segment, error, attempt) {
                    Ok(damaged) => return (damaged, None),
                    Err(error) => error,
                },
                Err(Failed::Store(error)) => error,
            };
            self.uploads.failed();
            drop(turn);
            self.pause(segment.header.partition, attempt, &error).await;
            attempt += 1;
        }
    }

    /// One attempt.
    async fn try_upload(&self, segment: &SealedSegment) -> Result<(PutAnswer, Option<Watched>), Failed> {
        let key = self.archive.key(&segment.header);
        match self.create(segment, &key).await {
            Ok(watched) => return Ok((PutAnswer::Created, watched)),
            Err(Failed::Store(Error::AlreadyExists { .. } | Error::Precondition { .. })) => {}
            Err(error) => return Err(error),
        }
        let _memory = self.room(segment.header.bytes).await;
        // Before the bytes: what is overwritten in between is found by them, or has another tag later.
        let tag = if self.archive.local.is_some() { None } else { self.archive.tag(&key).await.ok().flatten() };
        let object = match self.archive.get(&key).await {
            // A conflict with a request that failed: nothing stands there, PUT again.
            Err(Error::NotFound { source, .. }) => return Err(failed(source).into()),
            object => object?,
        };
        self.archive.settle(&key).await?;
        let ours = self.object_of(segment).await?;
        let tag = tag.filter(|_| object == ours);
        let answer = self.compare(&key, object, ours.clone()).await;
        let is_ours = answer == PutAnswer::Exists { end: segment.end() };
        Ok((answer, self.watched(segment, key, tag.filter(|_| is_ours), &ours)))
    }

    /// Makes the object, of data that match the segment's header.
    async fn create(&self, segment: &SealedSegment, key: &Path) -> Result<Option<Watched>, Failed> {
        let local = self.archive.local.as_ref().filter(|local| local.takes_links());
        if let Some(local) = local.filter(|_| self.archive.format.is_the_segment()) {
            let started = Instant::now();
            blocking(segment, SealedSegment::check).await?;
            if self.archive.within(local.link(&segment.path, key)).await? {
                self.archive.settle(key).await?;
                self.took(started);
                return Ok(None);
            }
        }
        let _memory = self.room(segment.header.bytes).await;
        let started = Instant::now();
        let object = self.object_of(segment).await?;
        let tag = self.archive.create(key, object.clone()).await?;
        self.took(started);
        Ok(self.watched(segment, key.clone(), tag, &object))
    }

    async fn object_of(&self, segment: &SealedSegment) -> io::Result<Bytes> {
        let format = self.archive.format;
        blocking(segment, move |segment| format.object_of(segment)).await
    }

    /// Without a tag there is nothing to ask for.
    fn watched(&self, segment: &SealedSegment, key: Path, tag: Option<String>, object: &Bytes) -> Option<Watched> {
        let is_the_segment = self.archive.format.is_the_segment();
        let crc32c = if is_the_segment { segment.header.crc32c } else { crc32c::crc32c(object) };
        Some(Watched { key, tag: tag?, bytes: object.len() as u64, crc32c, at: Instant::now() })
    }

    async fn compare(&self, key: &Path, object: Bytes, ours: Bytes) -> PutAnswer {
        let format = self.archive.format;
        let reason = match tokio::task::spawn_blocking(move || format.compare(&object, &ours)).await {
            Ok(Ok(end)) => return PutAnswer::Exists { end },
            Ok(Err(error)) => format!("the object {key} stands where the next one would go: {error:#}"),
            Err(error) => format!("the object {key} cannot be compared: {error}"),
        };
        PutAnswer::Conflict { reason }
    }

    /// Whether an object of ours is still what was put. A store that does not answer is asked again later; one that is gone
    /// was deleted, which no store does by itself.
    pub(super) async fn is_replaced(&self, object: &Watched) -> bool {
        match self.archive.tag(&object.key).await {
            Ok(tag) if tag.as_ref() != Some(&object.tag) => {}
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

    /// Waits for these bytes' part of `upload.max_in_flight`.
    async fn room(&self, bytes: u64) -> Option<SemaphorePermit<'_>> {
        let kib = u32::try_from(bytes / 1024 + 1).unwrap_or(u32::MAX).min(self.memory_kib);
        // `None` would say that the semaphore was closed, which it never is.
        self.memory.acquire_many(kib).await.ok()
    }
}

/// A file of up to `spool.max_bytes`, read and checksummed.
async fn blocking<T: Send + 'static>(
    segment: &SealedSegment,
    work: impl FnOnce(&SealedSegment) -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let segment = segment.clone();
    tokio::task::spawn_blocking(move || work(&segment)).await.unwrap_or_else(|error| Err(error.into()))
}

/// What a segment is whose file cannot be read; or why it cannot be read now, which may pass.
fn unreadable(segment: &SealedSegment, error: io::Error, attempt: u32) -> object_store::Result<PutAnswer> {
    if matches!(error.kind(), ErrorKind::InvalidData | ErrorKind::NotFound) {
        return Ok(PutAnswer::Damaged { why: error.to_string() });
    }
    if error.raw_os_error() == Some(Errno::IO.raw_os_error()) && attempt >= UNREADABLE_AFTER {
        return Ok(PutAnswer::Damaged { why: format!("the disk cannot read it: {error}") });
    }
    // Too many open files, a disk that is away.
    let what = format!("the segment {} cannot be read: {error}", segment.path.display());
    Err(Error::Generic { store: "spool", source: what.into() })
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
