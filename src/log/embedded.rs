//! The embedded log: one partition in files beside an SQLite database, for running alone. The [`buffer`](super::buffer) in front of
//! Kafka is one, too, in a file of its own (`Purpose`).
//!
//! **Format** (`log.db`, `user_version` 3, and the files of `log.segments/`). Records stand in frames, one commit's behind the other's, in
//! the files of [`segments`]; [`frame`] has their form. The database says which segments there are, and holds each sink's position
//! (`cursors`), the dead letters, and the log's identity and the end of what was trimmed (`meta`). Rows of `chunks` hold records that
//! have to be atomic with the database, those of replayed letters, and those of the releases before. docs/design.md 3.2 has
//! what a crash leaves at each step, and why nothing is lost.
//!
//! **Invariants.**
//! - A ticket is answered `durable` only after the `fdatasync` of the file that holds its events returned, a file whose name
//!   is durable and whose segment is listed in the database, durably.
//! - After an fsync that failed, a file takes no more.
//! - Offsets never repeat, also after everything was trimmed: the next offset is the largest of `trimmed` and the ends of what
//!   there is, and trimming moves `trimmed` in the transaction that takes from the tables.
//! - Nothing at or beyond a cursor of a sink that is on is ever trimmed.
//!
//! **Group commit.** One thread writes. While it fsyncs, requests queue up; it takes all of them for its next commit, so
//! the group grows with the load and an idle log commits at once.

mod dead_letters;
mod frame;
mod housekeeping;
mod read;
mod reader;
mod recovery;
pub(super) mod schema;
mod segments;
mod step;
mod writer;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::Context;
use crossbeam_channel::{Sender, TrySendError, bounded};
use futures::future::BoxFuture;
use parking_lot::{Condvar, Mutex};
use prometheus_client::metrics::counter::Counter;
use rusqlite::Connection;
use tokio::sync::oneshot;

pub(super) use self::read::{Bounds, LogReader};
use self::segments::{Catalog, Segments};

use crate::{
    config::LiveConfig,
    health::Health,
    log::{
        Appender, Full, Publish,
        dead_letters::{DeadLetter, DeadLetterWriter, Quarantine, Source, replay::Admitted},
    },
    metrics::Metrics,
    names::{ActorName, SinkName, dependency},
    position::{Offset, TopicIdentity},
    supervise::{self, Escalation, Escalations},
};

/// A quarantined body may be as long as `http.max_body`, and a value of SQLite not.
const LARGEST_LETTER: usize = 256 << 20;

/// Requests that wait for the writer. A group commit takes them all; the producer's mailbox waits behind this.
const WRITER_QUEUE: usize = 4096;

pub use dead_letters::EmbeddedLetters;

/// To the writer's thread.
enum Write {
    Append(Publish),
    /// A reader's position. Not answered: losing the latest ones in a crash repeats work, which the readers recognise.
    Cursor(&'static str, Offset),
    DeadLetters(Vec<DeadLetter>, oneshot::Sender<anyhow::Result<()>>),
    /// The same, of requests; refused where there is no room for them.
    Quarantine(Vec<DeadLetter>, oneshot::Sender<anyhow::Result<()>>),
    /// What an operator does with letters; answered for each, when durable, with whether it was open.
    Letters(LetterChange, Reply<Vec<bool>>),
    /// A row of `meta`; answered when durable.
    Meta(&'static str, String, Reply<()>),
    /// Answered when everything sent before it is durable or refused; it was tried to make positions durable, too.
    Flush(Sender<()>),
    /// The last one; tries that once more, and is answered with whether the sinks' last positions are durable.
    Stop(Reply<()>),
}

/// Takes what came of a request, or why it was not done.
type Reply<T> = Sender<Result<T, String>>;

enum LetterChange {
    Replay(Vec<Admitted>),
    Purge(Vec<String>),
}

/// What a log is for: the queue itself, or a buffer in front of another one.
pub(super) struct Purpose {
    /// In `data.dir`.
    pub file: &'static str,
    /// As readiness names it.
    pub dependency: &'static str,
    /// Nothing at or beyond the cursor of one of these is trimmed.
    pub readers: Vec<&'static str>,
    /// Counts events when they are durable here.
    pub counts: Counter,
    /// `queue.embedded.retention` holds; otherwise records go as soon as all readers have them.
    pub retains: bool,
    /// As it is called in the message that requests get when it is full.
    pub full: &'static str,
    /// When there is room again.
    pub room_when: &'static str,
    /// Called with the number of requests that the writer has answered at once, and the end of what is durable. Must not
    /// block.
    pub on_answered: Option<Box<dyn Fn(usize, Offset) + Send>>,
}

/// An open embedded log. Dropping it does not stop its thread: [`EmbeddedLog::close`] does.
#[derive(Clone)]
pub struct EmbeddedLog {
    pub(super) path: Arc<PathBuf>,
    pub(super) identity: TopicIdentity,
    pub(super) end: Arc<LogEnd>,
    catalog: Arc<Catalog>,
    writer: Sender<Write>,
    thread: Arc<Mutex<Option<JoinHandle<()>>>>,
}

/// Where the log ends; readers wait for that to move.
pub(super) struct LogEnd {
    end: Mutex<Offset>,
    moved: Condvar,
    stored: AtomicU64,
}

impl LogEnd {
    /// The offset that the next record will get.
    pub fn get(&self) -> Offset {
        *self.end.lock()
    }

    /// Bytes of the records that the log holds: what the quota is compared with.
    pub fn stored(&self) -> u64 {
        self.stored.load(Ordering::Acquire)
    }

    /// Records of `bytes` bytes more are durable, up to `end`. Only the writer calls this and `trim`.
    fn append(&self, end: Offset, bytes: u64) {
        self.stored.store(self.stored() + bytes, Ordering::Release);
        *self.end.lock() = end;
        self.moved.notify_all();
    }

    fn trim(&self, bytes: u64) {
        self.stored.store(self.stored().saturating_sub(bytes), Ordering::Release);
    }

    /// Returns when the end is beyond `position`, or after `timeout`.
    fn wait_beyond(&self, position: Offset, timeout: Duration) {
        let _ = self.moved.wait_while_for(&mut self.end.lock(), |end| *end <= position, timeout);
    }
}

impl EmbeddedLog {
    /// Opens or creates `log.db` in `data_dir` and starts its writer, whose panic ends the process: requests would get
    /// 503 for ever. `sinks` are those whose cursors hold records back.
    ///
    /// # Errors
    /// When the file cannot be opened or was written by a newer release.
    pub fn open(
        data_dir: &Path,
        sinks: Vec<SinkName>,
        config: LiveConfig,
        health: Health,
        metrics: Arc<Metrics>,
        escalations: Escalations,
    ) -> anyhow::Result<Self> {
        let purpose = Purpose {
            file: "log.db",
            dependency: dependency::EMBEDDED_LOG,
            readers: sinks.into_iter().map(SinkName::as_str).collect(),
            counts: metrics.events_produced.clone(),
            retains: true,
            full: "the embedded log",
            room_when: "when the sinks have caught up",
            on_answered: None,
        };
        Self::open_for(purpose, data_dir, config, health, escalations)
    }

    /// The same for any purpose.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub(super) fn open_for(
        purpose: Purpose,
        data_dir: &Path,
        config: LiveConfig,
        health: Health,
        escalations: Escalations,
    ) -> anyhow::Result<Self> {
        let path = data_dir.join(purpose.file);
        let cannot_read = || format!("cannot read {}", path.display());
        let mut database =
            schema::open_writer(&path).with_context(|| format!("cannot open the embedded log {}", path.display()))?;
        let identity = schema::identity(&database).with_context(cannot_read)?;
        let (segments, next) = Segments::open(&mut database, folder_of(&path)).with_context(cannot_read)?;
        let stored = AtomicU64::new(schema::stored(&database)? + segments.stored());
        let end = Arc::new(LogEnd { end: Mutex::new(next), moved: Condvar::new(), stored });
        let catalog = segments.catalog.clone();
        let (sender, receiver) = bounded(WRITER_QUEUE);
        let name = format!("{}-writer", purpose.file.trim_end_matches(".db"));
        let writer =
            writer::Writer::new(database, segments, end.clone(), purpose, config, health).with_context(cannot_read)?;
        let thread = std::thread::Builder::new()
            .name(name)
            .spawn(move || {
                let died = |_: &writer::Writer, reason| {
                    // The receiver is gone only when the process ends already.
                    let _ = escalations.send(Escalation::Failed { actor: ActorName::Producer, reason });
                };
                supervise::watched(writer, |writer| writer.run(&receiver), died);
            })
            .context("cannot start the embedded log's thread")?;
        let thread = Arc::new(Mutex::new(Some(thread)));
        Ok(Self { path: Arc::new(path), identity, end, catalog, writer: sender, thread })
    }

    /// Moves a reader's cursor; it becomes durable within seconds. Blocks for the writer's queue only.
    pub(super) fn move_cursor(&self, reader: &'static str, position: Offset) {
        // An error says that the log is closed.
        let _ = self.writer.send(Write::Cursor(reader, position));
    }

    /// Moves a reader's cursor and waits until it is durable, at most `timeout`.
    pub(super) fn settle_cursor(&self, reader: &'static str, position: Offset, timeout: Duration) {
        let (done, written) = bounded(1);
        let deadline = Instant::now() + timeout;
        let sent = |write| self.writer.send_deadline(write, deadline).is_ok();
        if sent(Write::Cursor(reader, position)) && sent(Write::Flush(done)) {
            // An error says that the writer has ended, or that it takes too long: the position is found again.
            let _ = written.recv_timeout(timeout);
        }
    }

    /// Writes a row of `meta` and waits until it is durable. Blocks.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn write_meta(&self, name: &'static str, value: String) -> anyhow::Result<()> {
        let (done, written) = bounded(1);
        let ended = || anyhow::anyhow!("the thread that writes {} has ended", self.path.display());
        self.writer.send(Write::Meta(name, value, done)).map_err(|_| ended())?;
        written.recv().map_err(|_| ended())?.map_err(anyhow::Error::msg)
    }

    /// Ends the writer after what was sent to it, and joins its thread. Blocks.
    ///
    /// # Errors
    /// Why the sinks' last positions are not durable: what is behind the ones before is read again.
    pub fn close(&self) -> Result<(), String> {
        let (done, outcome) = bounded(1);
        // An error says that the thread has ended already, here and below.
        let _ = self.writer.send(Write::Stop(done));
        let outcome = outcome.recv().unwrap_or_else(|_| Err("the embedded log's thread had ended before".to_owned()));
        let thread = self.thread.lock().take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!("the embedded log's thread had panicked");
        }
        outcome
    }
}

/// Where the segments of a log are, beside its database.
fn folder_of(path: &Path) -> PathBuf {
    path.with_extension("segments")
}

/// The offset behind the last record of a log that nobody writes.
///
/// # Errors
/// When it cannot be read.
pub(super) fn end_at_rest(database: &Connection, path: &Path) -> anyhow::Result<Offset> {
    Ok(schema::next_offset(database)?.max(recovery::end_at_rest(database, &folder_of(path))?))
}

/// Resolves when the writer has answered.
fn written(
    sent: Result<(), TrySendError<Write>>,
    answer: oneshot::Receiver<anyhow::Result<()>>,
) -> impl Future<Output = anyhow::Result<()>> {
    let sent = sent.map_err(|_| anyhow::anyhow!("the embedded log's queue is full or its thread has ended"));
    async move {
        sent?;
        answer.await.context("the embedded log's thread has ended")?
    }
}

impl Quarantine for EmbeddedLog {
    fn keep(&self, mut letters: Vec<DeadLetter>) -> BoxFuture<'static, anyhow::Result<Vec<usize>>> {
        let is_too_large =
            |letter: &DeadLetter| letter.value.as_ref().is_some_and(|value| value.len() > LARGEST_LETTER);
        let each = letters.iter().enumerate();
        let too_large: Vec<usize> = each.filter(|(_, letter)| is_too_large(letter)).map(|(index, _)| index).collect();
        letters.retain(|letter| !is_too_large(letter));
        if letters.is_empty() {
            return Box::pin(async { Ok(too_large) });
        }
        let (reply, answer) = oneshot::channel();
        let written = written(self.writer.try_send(Write::Quarantine(letters, reply)), answer);
        Box::pin(async move { written.await.map(|()| too_large) })
    }
}

impl DeadLetterWriter for EmbeddedLog {
    fn write(&self, letters: Vec<DeadLetter>) -> BoxFuture<'static, anyhow::Result<()>> {
        let (reply, answer) = oneshot::channel();
        Box::pin(written(self.writer.try_send(Write::DeadLetters(letters, reply)), answer))
    }

    fn known(&self, source: Source, from: Offset) -> BoxFuture<'static, anyhow::Result<BTreeSet<Offset>>> {
        let path = self.path.clone();
        // SQLite blocks.
        let known =
            tokio::task::spawn_blocking(move || dead_letters::known(&schema::open_reader(&path)?, &source, from));
        Box::pin(async move { known.await.context("the letters could not be read")? })
    }
}

impl Appender for EmbeddedLog {
    fn append(&self, publish: Publish, from: usize) -> Result<(), Full> {
        match self.writer.try_send(Write::Append(publish)) {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(Write::Append(publish))) => Err(Full { publish, next: from }),
            Err(TrySendError::Disconnected(Write::Append(publish))) => {
                publish.ticket.refused(from..publish.events.len(), "the embedded log has ended");
                Ok(())
            }
            Err(_) => Ok(()),
        }
    }

    fn flush(&self, timeout: Duration) -> Result<(), usize> {
        let (done, flushed) = bounded(1);
        let waiting = self.writer.len();
        let deadline = Instant::now() + timeout;
        self.writer.send_deadline(Write::Flush(done), deadline).map_err(|_| waiting)?;
        flushed.recv_deadline(deadline).map_err(|_| waiting.max(1))
    }
}

#[cfg(test)]
mod tests;
