//! The store seam: aggregates (and processed events) in MongoDB or in an embedded SQLite database.
//!
//! **The fence.** Invariant of each bucket: `count` = number of matching records of its partition with offset ≤
//! `last_offset`. A flush adds to a bucket only where `last_offset < first offset folded since the last flush`, so the
//! same records are never added twice, by whatever writer.

mod counted;
pub mod embedded;
mod events;
mod group;
pub mod mongo;
pub mod query;
pub mod rebuild;
pub mod validate;

use std::{sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use futures::future::BoxFuture;
use thiserror::Error;

pub use counted::{Counted, Definition, Version};
use counted::{Known, Versions};
pub use events::{Cursor, EventsPage, EventsQuery};
pub use query::{Query, Rows};
use rebuild::Progress;
pub use rebuild::Rebuilds;

use crate::{
    config::{AggregateConfig, Config, StoreKind},
    event::TimeBounds,
    measure::Measures,
    position::{Offset, Partition, Timestamp, TopicIdentity},
};

/// What identifies a bucket within its aggregate and partition.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BucketKey {
    pub window_start: Timestamp,
    /// The group's values as a JSON array in the order of `group_by`: `["client-1","login"]`. Strings are escaped in one
    /// way, all else is as the event wrote it: the text is the group's identity.
    pub group: Arc<str>,
}

/// What was folded into one bucket since the last flush.
#[derive(Debug, Clone, PartialEq)]
pub struct BucketDelta {
    pub key: BucketKey,
    pub partition: Partition,
    /// Index into [`Prepared::counted`].
    pub aggregate: usize,
    pub first: Offset,
    pub last: Offset,
    /// Shared, since sketches are large and a store may work on them behind the call's back.
    pub measures: Arc<Measures>,
}

/// The `last_offset` of a bucket that may hold records at or after the committed offset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fence {
    pub aggregate: usize,
    pub key: BucketKey,
    pub last_offset: Offset,
}

/// Groups of a window of a partition, of which it is asked whether they have buckets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupsOf {
    /// Index into [`Prepared::counted`].
    pub aggregate: usize,
    pub partition: Partition,
    pub window_start: Timestamp,
    /// JSON texts.
    pub groups: Vec<Arc<str>>,
    /// One that does not count as any.
    pub other: Arc<str>,
    /// Whether there are more is nobody's question.
    pub limit: usize,
}

/// Which of them have buckets, in their order, and how many groups of the window have some: exact below the limit, and where
/// one of the groups in question has none.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct GroupsFound {
    pub present: Vec<bool>,
    pub buckets: usize,
}

/// What was decided of a partition.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct History {
    /// The bounds of times, and the offset from which on they hold, ascending.
    pub bounds: Vec<(Offset, TimeBounds)>,
    /// By aggregate: windows that began before were removed.
    pub removed: Vec<Option<Timestamp>>,
    /// By aggregate: which records are counted live. Of an active version they are all.
    pub progress: Vec<Progress>,
}

impl History {
    /// What is to be stored where the bounds change at `from`. Where none were, records below were counted by a release that
    /// knew no bound of the past.
    fn new_bounds(are_first: bool, from: Offset, present: TimeBounds) -> Vec<(Offset, TimeBounds)> {
        let mut bounds = vec![(from, present)];
        if are_first && from > Offset(0) {
            bounds.insert(0, (Offset(0), TimeBounds { max_past: i64::MAX, ..present }));
        }
        bounds
    }
}

/// Windows to be removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removal {
    /// Index into [`Prepared::counted`].
    pub aggregate: usize,
    pub partition: Partition,
    /// Those that began before.
    pub before: Timestamp,
    /// Buckets that were last counted in at or beyond this position stay, for their fences.
    pub committed: Offset,
}

/// What was found when the store was prepared.
#[derive(Debug, Clone)]
pub struct Prepared {
    /// What is not as it should be though counting goes on, each with what to do.
    pub remarks: Vec<String>,
    /// What is counted from here on; indexes of aggregates mean this list.
    pub counted: CountedList,
}

/// An event to be kept as a document, with what is indexed.
#[derive(Debug, Clone, PartialEq)]
pub struct ProcessedEvent {
    pub partition: Partition,
    pub offset: Offset,
    pub time: DateTime<Utc>,
    pub received: Timestamp,
    pub event_type: String,
    pub client: Option<String>,
    pub id: Option<String>,
    /// What stands beside its data, by name.
    pub attributes: Vec<(String, String)>,
    /// The event's bytes: a JSON object, or where it has attributes, anything.
    pub data: Vec<u8>,
}

#[derive(Debug, Error)]
pub enum StoreError {
    /// Passing: the identical statements may be sent again.
    #[error("{0}")]
    Unavailable(String),
    /// The configuration and the store contradict each other; says what to do.
    #[error("{0}")]
    Refused(String),
    /// A query costs more than one may; says how to ask for less.
    #[error("{0}")]
    TooMuch(String),
}

/// What came of a flush.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Flushed {
    /// The partitions in which a bucket was found that another writer had advanced (E11000): their folds must be dropped.
    pub fenced: Vec<Partition>,
    /// Events whose documents are refused for good. No bucket of their partitions was written: these folds must be
    /// dropped, too, and folded again without those records.
    pub refused: Vec<RefusedEvent>,
    /// Partitions with a bucket that cannot be written until an operator acts. Their folds must be dropped, and nothing
    /// of them counted before.
    pub blocked: Vec<Blocked>,
}

impl Flushed {
    /// One reason a partition is enough.
    fn block(&mut self, partition: Partition, reason: String) {
        if self.blocked.iter().all(|blocked| blocked.partition != partition) {
            self.blocked.push(Blocked { partition, reason });
        }
    }
}

/// A bucket whose key is taken by something that no writer of ours has made, so that no fence ever explains it, or that
/// an index or a rule of an operator keeps out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blocked {
    pub partition: Partition,
    /// What is in the way, and where.
    pub reason: String,
}

/// A record that the store does not take, whatever is tried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedEvent {
    pub partition: Partition,
    pub offset: Offset,
    pub message: String,
}

/// What is counted; indexes of aggregates mean one such list, and a store takes them for no other.
pub type CountedList = Arc<[Counted]>;

/// What a store answers.
pub type Answer<'a, T> = BoxFuture<'a, Result<T, StoreError>>;

/// A store. All calls may be cancelled by dropping them; a flush may then have taken effect or not, which is what the
/// fences are for.
pub trait Store: Send + Sync {
    /// Creates what is missing (indexes, tables) and compares the aggregates' definitions with those it knows. Nothing may be
    /// under way that has an index of an aggregate in it.
    fn prepare(&self) -> Answer<'_, Prepared>;

    /// What is counted since [`Store::prepare`]; before that, what is configured.
    fn counted(&self) -> CountedList;

    /// For a check, after [`Store::prepare`]: flushes, reads and queries something of its own, and removes it. The error
    /// says what the store does otherwise.
    fn rehearse(&self) -> Answer<'_, ()> {
        Box::pin(std::future::ready(Ok(())))
    }

    /// The buckets of a partition with `last_offset >= committed`, over all aggregates, once they are durable: records
    /// that are skipped for a fence must not be missing after a crash of the store.
    ///
    /// # Errors
    /// [`StoreError::Refused`] when the buckets were counted from another topic of the same name and generation.
    fn fences<'a>(
        &'a self,
        partition: Partition,
        committed: Offset,
        identity: &'a TopicIdentity,
    ) -> Answer<'a, Vec<Fence>>;

    /// Those of one aggregate alone.
    fn fences_of<'a>(
        &'a self,
        counted: &'a CountedList,
        aggregate: usize,
        partition: Partition,
        from: Offset,
        identity: &'a TopicIdentity,
    ) -> Answer<'a, Vec<Fence>>;

    /// What was decided of a partition for good, once it is durable: by which bounds the times of its records are believed, from
    /// which offset on; and up to where windows were removed. Where `bounds` are not the last ones they hold from `from` on,
    /// beyond which nothing was counted.
    fn history(&self, partition: Partition, from: Offset, bounds: TimeBounds) -> Answer<'_, History>;

    /// Makes it durable that these windows are removed, then removes some of their buckets. Says whether there may be more.
    fn remove<'a>(&'a self, removal: &'a Removal) -> Answer<'a, bool>;

    /// What there is of these groups, of the configured topic and generation.
    fn groups<'a>(&'a self, counted: &'a CountedList, asked: &'a [GroupsOf]) -> Answer<'a, Vec<GroupsFound>>;

    /// Makes the deltas and events durable. An error says nothing about what took effect: send the identical ones again.
    /// Nothing takes effect where the list is another one than that which `counted` is.
    fn flush<'a>(
        &'a self,
        counted: &'a CountedList,
        deltas: &'a [BucketDelta],
        events: &'a [ProcessedEvent],
    ) -> Answer<'a, Flushed>;

    /// The rows of one aggregate. Dropping the call ends the query. An aggregate that the store does not know is [`StoreError::Refused`].
    fn query(&self, query: Query) -> Answer<'_, Rows>;

    /// A page of the processed events that are kept. Dropping the call ends the query.
    fn events(&self, query: EventsQuery) -> Answer<'_, EventsPage>;

    /// The rebuilds of aggregates.
    fn rebuilds(&self) -> &dyn Rebuilds;

    /// At the end of the process: closes connections in order, within moments. Nothing may be asked afterwards.
    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }
}

/// What a store needs to know of the configuration.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    pub topic: String,
    pub generation: u32,
    pub aggregates: Vec<AggregateConfig>,
    /// Keep processed events.
    pub events: bool,
    /// How long processed events stay after their receipt; also those that were kept before that was turned off.
    pub events_ttl: Duration,
    /// Of one call.
    pub timeout: Duration,
}

impl From<&Config> for StoreOptions {
    fn from(config: &Config) -> Self {
        Self {
            topic: config.queue.topic.clone(),
            generation: config.queue.generation,
            aggregates: config.aggregate.clone(),
            events: config.store.events,
            events_ttl: config.store.events_ttl,
            timeout: config.aggregator.timeout,
        }
    }
}

impl StoreOptions {
    fn aggregate(&self, name: &str) -> Result<&AggregateConfig, StoreError> {
        self.aggregates.iter().find(|aggregate| aggregate.name == name).ok_or_else(|| not_configured(name))
    }
}

fn not_configured(name: &str) -> StoreError {
    StoreError::Refused(format!("there is no aggregate {name:?} in the configuration"))
}

/// Opens the store that is configured; `None` for `store.kind = "none"`. An embedded one is created where it is missing,
/// a MongoDB needs not be in reach yet. `io` is a multi-thread runtime that outlives the store's users.
///
/// # Errors
/// The store cannot be used with this configuration.
pub fn open(config: &Config, io: tokio::runtime::Handle) -> anyhow::Result<Option<Arc<dyn Store>>> {
    let options = StoreOptions::from(config);
    Ok(match config.store.kind {
        StoreKind::None => None,
        StoreKind::Embedded => {
            Some(Arc::new(embedded::EmbeddedStore::open(&config.data.dir.join("store.db"), options, io)?))
        }
        StoreKind::Mongodb => Some(Arc::new(mongo::MongoStore::new(&config.store, options, io)?)),
    })
}

/// Why buckets that were counted from another topic are refused.
fn topic_recreated(options: &StoreOptions, partition: Partition) -> StoreError {
    StoreError::Refused(format!(
        "the aggregates of topic {:?}, partition {partition}, generation {} were counted from another topic of that name: \
         it was created anew, and its offsets mean other records",
        options.topic, options.generation,
    ))
}
