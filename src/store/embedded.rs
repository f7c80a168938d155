//! The embedded store: one SQLite database on a thread of its own. A flush is one transaction; queries read beside it
//! (write-ahead log), on connections of their own.

mod database;
mod events;
mod reading;
mod rebuild;

use std::{
    fs::OpenOptions,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::Context;
use arc_swap::ArcSwap;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use tokio::{runtime::Handle, sync::oneshot};

use crate::{
    event::TimeBounds,
    files::create_private_dir,
    position::{Offset, Partition, Timestamp, TopicIdentity},
    store::{
        Answer, BucketDelta, CountedList, EventsPage, EventsQuery, Fence, Flushed, GroupsFound, GroupsOf, History,
        Prepared, ProcessedEvent, Query, Rebuilds, Removal, Rows, Store, StoreError, StoreOptions, Versions,
        rebuild::{Kept, NewRebuild, Reached, Rebuild, RebuildId, Swapped},
    },
};

use database::Database;
use reading::Cancel;

type Request = Box<dyn FnOnce(&mut Database) + Send>;

/// Aggregates in `data/store.db`.
pub struct EmbeddedStore {
    path: PathBuf,
    options: Arc<StoreOptions>,
    versions: Arc<ArcSwap<Versions<i64>>>,
    /// `None` only while it is dropped.
    requests: Option<Sender<Request>>,
    thread: Option<JoinHandle<()>>,
    io: Handle,
}

impl EmbeddedStore {
    /// The aggregator has one request under way, and one more for each partition that it is assigned (the embedded log
    /// has one). A full channel means that the disk hangs: callers get an error and try again.
    const REQUESTS: usize = 64;
    /// How often events past their time are looked for.
    const EXPIRY: Duration = Duration::from_secs(10);

    /// Opens the database, creating or upgrading it. Blocks.
    ///
    /// # Errors
    /// The file cannot be used; the message says why.
    pub fn open(path: &Path, options: StoreOptions, io: Handle) -> anyhow::Result<Self> {
        if let Some(dir) = path.parent() {
            create_private_dir(dir).with_context(|| format!("cannot create {dir:?}"))?;
        }
        // SQLite gives its other files the mode of this one.
        OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(path)
            .with_context(|| format!("cannot open the embedded store {path:?}"))?;
        let options = Arc::new(options);
        let database = Database::open(path, options.clone())?;
        let versions = database.versions();
        let (requests, receiver) = bounded(Self::REQUESTS);
        let thread = thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || serve(database, &receiver))
            .context("cannot start the store's thread")?;
        Ok(Self { path: path.to_owned(), options, versions, requests: Some(requests), thread: Some(thread), io })
    }

    /// Runs `work` on the store's thread.
    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Database) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        let request: Request = Box::new(move |database| {
            // A caller that has given up sends the same again: what it left behind is skipped.
            if !reply.is_closed() {
                let _ = reply.send(work(database));
            }
        });
        let sent = self.requests.as_ref().is_some_and(|requests| requests.try_send(request).is_ok());
        if !sent {
            return Err(self.unavailable("its disk does not keep up"));
        }
        match tokio::time::timeout(self.options.timeout, answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(self.unavailable("its thread has ended")),
            Err(_) => Err(self.unavailable("its disk does not answer")),
        }
    }

    fn unavailable(&self, why: &str) -> StoreError {
        StoreError::Unavailable(format!("the embedded store {:?} cannot be used: {why}", self.path))
    }
}

impl Drop for EmbeddedStore {
    fn drop(&mut self) {
        drop(self.requests.take());
        if let Some(thread) = self.thread.take() {
            // A panic of that thread was reported by the calls that it failed.
            let _ = thread.join();
        }
    }
}

impl Store for EmbeddedStore {
    fn prepare(&self) -> Answer<'_, Prepared> {
        Box::pin(self.run(Database::prepare))
    }

    fn counted(&self) -> CountedList {
        self.versions.load().counted.clone()
    }

    fn history(&self, partition: Partition, from: Offset, bounds: TimeBounds) -> Answer<'_, History> {
        Box::pin(self.run(move |database| database.history(partition, from, bounds)))
    }

    fn remove<'a>(&'a self, removal: &'a Removal) -> Answer<'a, bool> {
        let removal = removal.clone();
        Box::pin(self.run(move |database| database.remove(&removal)))
    }

    fn groups<'a>(&'a self, counted: &'a CountedList, asked: &'a [GroupsOf]) -> Answer<'a, Vec<GroupsFound>> {
        let (counted, asked) = (counted.clone(), asked.to_vec());
        Box::pin(self.run(move |database| database.ensure_is(&counted).and_then(|()| database.groups(&asked))))
    }

    fn fences<'a>(
        &'a self,
        partition: Partition,
        committed: Offset,
        identity: &'a TopicIdentity,
    ) -> Answer<'a, Vec<Fence>> {
        let identity = identity.clone();
        Box::pin(self.run(move |database| database.fences(partition, committed, &identity)))
    }

    fn fences_of<'a>(
        &'a self,
        counted: &'a CountedList,
        aggregate: usize,
        partition: Partition,
        from: Offset,
        _: &'a TopicIdentity,
    ) -> Answer<'a, Vec<Fence>> {
        let counted = counted.clone();
        Box::pin(self.run(move |database| {
            database.ensure_is(&counted)?;
            database.fences_of(aggregate, partition, from)
        }))
    }

    fn flush<'a>(
        &'a self,
        counted: &'a CountedList,
        deltas: &'a [BucketDelta],
        events: &'a [ProcessedEvent],
    ) -> Answer<'a, Flushed> {
        let (counted, deltas, events) = (counted.clone(), deltas.to_vec(), events.to_vec());
        Box::pin(self.run(move |database| {
            database.ensure_is(&counted)?;
            database.flush(&deltas, &events)
        }))
    }

    fn rebuilds(&self) -> &dyn Rebuilds {
        self
    }

    fn query(&self, query: Query) -> Answer<'_, Rows> {
        Box::pin(async move {
            if !self.versions.load().is_known() {
                // What is refused can be asked nevertheless.
                let prepared = self.run(|database| database.rows().map(drop)).await;
                prepared.or_else(|error| if self.versions.load().is_known() { Ok(()) } else { Err(error) })?;
            }
            let (path, options, versions) = (self.path.clone(), self.options.clone(), self.versions.load_full());
            let cancel = Cancel::default();
            let _cancel = CancelOnDrop(cancel.clone());
            // SQLite blocks; a query has a connection of its own, so that it delays no flush.
            let rows = self.io.spawn_blocking(move || reading::query(&path, &options, &versions, query, &cancel));
            rows.await.unwrap_or_else(|_| Err(self.unavailable("a query failed")))
        })
    }

    fn events(&self, query: EventsQuery) -> Answer<'_, EventsPage> {
        Box::pin(async move {
            let (path, options) = (self.path.clone(), self.options.clone());
            let cancel = Cancel::default();
            let _cancel = CancelOnDrop(cancel.clone());
            let page = self.io.spawn_blocking(move || events::page(&path, &options, &query, &cancel));
            page.await.unwrap_or_else(|_| Err(self.unavailable("a query failed")))
        })
    }
}

impl Rebuilds for EmbeddedStore {
    fn find_all<'a>(&'a self, aggregates: &'a [String]) -> Answer<'a, Vec<Rebuild>> {
        let aggregates = aggregates.to_vec();
        Box::pin(self.run(move |database| database.find_rebuilds(&aggregates)))
    }

    fn begin<'a>(&'a self, wanted: &'a NewRebuild) -> Answer<'a, Rebuild> {
        let wanted = wanted.clone();
        Box::pin(self.run(move |database| database.begin_rebuild(&wanted)))
    }

    fn kept<'a>(&'a self, aggregate: &'a str) -> Answer<'a, Kept> {
        let aggregate = aggregate.to_owned();
        Box::pin(self.run(move |database| database.kept(&aggregate)))
    }

    fn reached<'a>(&'a self, id: &'a RebuildId, partition: Partition, reached: Reached) -> Answer<'a, bool> {
        let id = id.clone();
        Box::pin(self.run(move |database| database.rebuild_reached(&id, partition, reached)))
    }

    fn settled<'a>(&'a self, id: &'a RebuildId, partition: Partition) -> Answer<'a, ()> {
        let id = id.clone();
        Box::pin(self.run(move |database| database.rebuild_settled(&id, partition)))
    }

    fn leave_out(&self, partition: Partition, at: Offset) -> Answer<'_, ()> {
        Box::pin(self.run(move |database| database.leave_out(partition, at)))
    }

    fn keep<'a>(&'a self, id: &'a RebuildId, from: Timestamp) -> Answer<'a, Option<Timestamp>> {
        let id = id.clone();
        Box::pin(self.run(move |database| database.keep(&id, from)))
    }

    fn swap<'a>(&'a self, id: &'a RebuildId, noted: &'a Rebuild, now: Timestamp) -> Answer<'a, Swapped> {
        let (id, noted) = (id.clone(), noted.clone());
        Box::pin(self.run(move |database| database.swap_rebuild(&id, &noted, now)))
    }

    fn cancel<'a>(&'a self, aggregate: &'a str, _: Timestamp) -> Answer<'a, bool> {
        let aggregate = aggregate.to_owned();
        Box::pin(self.run(move |database| database.cancel_rebuild(&aggregate)))
    }

    fn tidy(&self, _: Timestamp) -> Answer<'_, bool> {
        Box::pin(self.run(Database::tidy_rebuilds))
    }
}

struct CancelOnDrop(Cancel);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// The store's thread: one request after the other, and the removal of expired events in between. Ends when the store is
/// dropped.
fn serve(mut database: Database, requests: &Receiver<Request>) {
    let mut expire_at = Instant::now();
    loop {
        match requests.recv_deadline(expire_at) {
            Ok(request) => request(&mut database),
            Err(RecvTimeoutError::Disconnected) => return,
            Err(RecvTimeoutError::Timeout) => {
                let more = database.expire_events(Timestamp::now()).unwrap_or_else(|error| {
                    tracing::warn!(%error, "expired events cannot be removed, trying again");
                    false
                });
                // A bounded number at a time, so that flushes get their turn.
                let pause = if more { Duration::from_millis(50) } else { EmbeddedStore::EXPIRY };
                expire_at = Instant::now() + pause;
            }
        }
    }
}

#[cfg(test)]
mod tests;
