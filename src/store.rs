//! The store seam: aggregates (and processed events) in MongoDB or in an embedded SQLite database.
//!
//! **The fence.** Invariant of each bucket: `count` = number of matching records of its partition with offset ≤
//! `last_offset`. A flush adds to a bucket only where `last_offset < first offset folded since the last flush`, so the
//! same records are never added twice, whoever tries.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use futures::future::BoxFuture;
use serde_json::{Map, Value};
use thiserror::Error;

use crate::position::{Offset, Partition, Timestamp};

/// What identifies a bucket within its aggregate and partition.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BucketKey {
    pub window_start: Timestamp,
    /// The group's values as a JSON array in the order of `group_by`, as the event wrote them: `["client-1","login"]`.
    pub group: Arc<str>,
}

/// What was folded into one bucket since the last flush.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BucketDelta {
    pub key: BucketKey,
    pub partition: Partition,
    /// Index into the list of aggregates that the store was opened with.
    pub aggregate: usize,
    pub first: Offset,
    pub last: Offset,
    pub count: u64,
}

/// The `last_offset` of a bucket that may hold records at or after the committed offset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fence {
    pub aggregate: usize,
    pub key: BucketKey,
    pub last_offset: Offset,
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
    /// The event's bytes: valid JSON.
    pub json: Vec<u8>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Query {
    pub aggregate: String,
    /// Inclusive.
    pub from: DateTime<Utc>,
    /// Exclusive.
    pub to: DateTime<Utc>,
    pub limit: usize,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    pub window_start: DateTime<Utc>,
    /// Field to value, in the order of `group_by`; a field that the events did not have is null.
    pub group: Map<String, Value>,
    /// Summed over partitions and generations.
    pub count: u64,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Rows {
    /// Sorted by window, then group.
    pub rows: Vec<Row>,
    /// There were more than the limit.
    pub truncated: bool,
}

#[derive(Debug, Error)]
pub enum StoreError {
    /// Passing: the identical statements may be sent again.
    #[error("{0}")]
    Unavailable(String),
    /// The configuration and the store contradict each other; says what to do.
    #[error("{0}")]
    Refused(String),
}

/// The partitions whose flush found a bucket that another writer had advanced (E11000): their folds must be dropped.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Flushed {
    pub fenced: Vec<Partition>,
}

/// A store. All calls may be cancelled by dropping them; a flush may then have taken effect or not, which is what the
/// fences are for.
pub trait Store: Send + Sync {
    /// Creates what is missing (indexes, tables) and compares the aggregates' definitions with those it knows.
    fn prepare(&self) -> BoxFuture<'_, Result<(), StoreError>>;

    /// The buckets of a partition with `last_offset >= committed`, over all aggregates.
    fn fences(&self, partition: Partition, committed: Offset) -> BoxFuture<'_, Result<Vec<Fence>, StoreError>>;

    /// Makes the deltas and events durable. An error says nothing about what took effect: send the identical ones again.
    fn flush<'a>(
        &'a self,
        deltas: &'a [BucketDelta],
        events: &'a [ProcessedEvent],
    ) -> BoxFuture<'a, Result<Flushed, StoreError>>;

    fn query(&self, query: Query) -> BoxFuture<'_, Result<Rows, StoreError>>;
}
