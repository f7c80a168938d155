//! The log: partitions that the producer appends to, and that one consumer for each sink reads.
//!
//! Two backends stand behind it: Kafka (`kafka`), if wanted with a buffer in front (`buffer`), and the embedded log
//! (`embedded`). Both run on named threads of their own, never on an arbiter: librdkafka's polling and SQLite's fsync
//! block. `dead_letters` is what both keep of records that cannot be counted.
//!
//! - Writing: an [`Appender`] takes whole requests ([`Publish`]) and answers each through its ticket.
//! - Reading: a source thread, controlled by [`SourceCommand`]s, hands [`SourceEvent`]s to its consumer. It delivers a
//!   partition only after [`SourceCommand::Begin`], because only the sink knows where to begin.
//!
//! Invariant: for one `(partition, epoch)`, batches are contiguous: each one's `from` is the `to` of the one before, or
//! the `at` of the latest `Begin`.

mod append;
pub mod buffer;
pub mod dead_letters;
pub mod embedded;
mod ingress;
pub mod kafka;
mod producer;
pub mod record;
pub mod replays;
pub mod validate;

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering},
    },
    thread::JoinHandle,
};

use crossbeam_channel::Sender;
use prometheus_client::metrics::gauge::Gauge;

pub use self::{
    append::{Appender, Delivery, Failed, Full, NewHeaders, NewRecord, Part, Publish, Span, Ticket},
    ingress::{Ingress, NotTaken},
    producer::{Flush, Producer},
};
use crate::{
    config::{Config, QueueKind},
    log::record::RecordBuffer,
    position::{Offset, Partition, TopicIdentity},
};

/// The largest record ([`NewRecord::size`]) that the queue takes, as far as its own client says; `None` where it says nothing. A
/// topic whose `max.message.bytes` was lowered since the start is asked by nobody before it refuses one.
pub fn largest_record(config: &Config) -> Option<usize> {
    /// What Kafka's format adds to it at most, and to the batch that it is alone in.
    const FRAME: u64 = 128;
    let limit = match config.queue.kind {
        QueueKind::Embedded => return None,
        QueueKind::Kafka => kafka::settings::record_limit(config) - FRAME,
    };
    usize::try_from(limit).ok()
}

/// One assignment of one partition to one sink. Each new assignment (also a repeated one) has a higher epoch, so that
/// what was said about an earlier one can be told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(u64);

impl Epoch {
    /// An epoch that no other assignment of this process has.
    pub fn fresh() -> Self {
        static LAST: AtomicU64 = AtomicU64::new(0);
        Self(LAST.fetch_add(1, Ordering::Relaxed) + 1)
    }
}

/// What a source knows of a partition when it is assigned.
#[derive(Debug, Clone)]
pub struct Assignment {
    pub partition: Partition,
    /// The sink's group position (the next offset to read), where it has one.
    pub committed: Option<Offset>,
    /// The first offset that the log still holds.
    pub log_start: Offset,
    /// The offset that the next record will get.
    pub log_end: Offset,
    pub identity: TopicIdentity,
    /// This process holds every partition of the topic in the sink's group: required for stores that are not shared.
    pub holds_all: bool,
}

impl Assignment {
    /// The first record that the group has not done and the log still has.
    pub fn first_undone(&self) -> Offset {
        self.committed.map_or(self.log_start, |committed| committed.max(self.log_start))
    }
}

/// From a source to its consumer.
#[derive(Debug)]
pub enum SourceEvent {
    /// These partitions are ours now; nothing is delivered before [`SourceCommand::Begin`]. Sent again for a partition
    /// that is already assigned when its position turned out to be out of the log's range.
    Assigned(Vec<Assignment>),
    /// These partitions are no longer ours.
    Revoked(Vec<Partition>),
    Batch(Batch),
    /// The log's end as it was known last, for the lag.
    LogEnd(Partition, Offset),
    /// For the lag, too: up to its end the log holds no records, only what takes offsets beside them.
    EmptyTail {
        partition: Partition,
        from: Offset,
        to: Offset,
    },
    /// The queue cannot be reached, with the reason; it goes on trying.
    Unavailable(String),
    /// The queue can be reached (again).
    Available,
    /// Another process has this one's group membership: the process must end with status 3.
    Fenced(String),
    /// Nothing that a retry mends; the consumer fails with it and is restarted or escalated by its guardian.
    Failed(String),
}

/// From a consumer to its source.
#[derive(Debug)]
pub enum SourceCommand {
    /// Deliver this partition from `at` on, in batches of this epoch. Also a seek, when it is delivered already.
    Begin {
        partition: Partition,
        epoch: Epoch,
        at: Offset,
    },
    /// Deliver nothing more of this partition until the next `Begin`.
    Hold(Partition),
    /// Deliver nothing more until `Resume`; group membership is kept and polled for.
    Pause,
    Resume,
    /// The sink has made everything before these positions durable. Sources commit at their own pace, the latest wins.
    Commit(Vec<(Partition, Offset)>),
    /// Ask for the assignments to be sent again (the sink lost its state). Each is held until its `Begin`.
    Reassign,
    /// The same for one partition (a fence said that another writer was here).
    ReassignPartition(Partition),
    /// Commit these positions synchronously, leave, end the thread.
    Close(Vec<(Partition, Offset)>),
}

/// A running source: its commands, and the thread to be joined after [`SourceCommand::Close`].
pub struct SourceHandle {
    /// Bounded by the rules of the protocol: a handful of commands a partition and second, so the channel has no bound
    /// of its own and a command never blocks an arbiter.
    pub commands: Sender<SourceCommand>,
    /// Ends with why the last positions are not committed, as far as the source answers for that: the embedded log
    /// answers for its own when it is closed.
    pub thread: JoinHandle<Result<(), String>>,
}

/// How a consumer is passed events: by its source, and by another one that reads for both. Must not block.
pub type SourceEvents = Arc<dyn Fn(SourceEvent) + Send + Sync>;

/// Consecutive records of one partition: one contiguous buffer, and the range of offsets that it covers, also where
/// the log has no records.
#[derive(Debug)]
pub struct Batch {
    pub partition: Partition,
    pub epoch: Epoch,
    /// Covers `[from, to)`.
    pub from: Offset,
    pub to: Offset,
    /// Records below `from` may stand among them.
    pub records: Arc<RecordBuffer>,
    /// Given back to the source's budget when the sink is done with the batch.
    pub permit: Permit,
}

impl Batch {
    /// Those from `from` on.
    pub fn new_records(&self) -> u64 {
        let below = self.records.iter().take_while(|record| record.offset < self.from).count();
        (self.records.len() - below) as u64
    }
}

/// A budget of bytes in flight between a source and its sink, taken without blocking.
#[derive(Debug, Clone)]
pub struct ByteBudget {
    taken: Arc<Taken>,
    bytes: i64,
    /// Shows how many permits are out: batches that the sink is not done with.
    depth: Gauge,
}

#[derive(Debug, Default)]
struct Taken {
    bytes: AtomicI64,
    permits: AtomicUsize,
}

impl ByteBudget {
    /// Permits that are there whatever the budget: what the sink is taking, and the next.
    const PERMITS: usize = 2;

    /// `depth` shows how many permits are out, those of the source before among them.
    pub fn new(bytes: u64, depth: Gauge) -> Self {
        Self { taken: Arc::default(), bytes: i64::try_from(bytes).unwrap_or(i64::MAX), depth }
    }

    /// Takes `bytes` (at least [`Permit::LEAST`]) when there is room.
    pub fn try_take(&self, bytes: usize) -> Option<Permit> {
        self.has_room().then(|| self.take(bytes))
    }

    /// Takes `bytes` even beyond the budget, so that a batch larger than all of it still passes. The source that owns the
    /// budget asks [`Self::has_room`] before, and so does one that reads for it: the bound is the budget and one batch of each,
    /// or two batches.
    pub fn take(&self, bytes: usize) -> Permit {
        let bytes = i64::try_from(bytes.max(Permit::LEAST)).unwrap_or(i64::MAX);
        self.taken.bytes.fetch_add(bytes, Ordering::AcqRel);
        self.taken.permits.fetch_add(1, Ordering::AcqRel);
        self.depth.inc();
        Permit { budget: self.clone(), bytes }
    }

    /// Whether [`Self::try_take`] would succeed now.
    pub fn has_room(&self) -> bool {
        self.taken.bytes.load(Ordering::Acquire) < self.bytes
            || self.taken.permits.load(Ordering::Acquire) < Self::PERMITS
    }
}

/// Bytes taken from a [`ByteBudget`], given back on drop.
#[derive(Debug)]
pub struct Permit {
    budget: ByteBudget,
    bytes: i64,
}

impl Permit {
    /// What a small batch counts as, so that the budget bounds the number of batches too.
    pub const LEAST: usize = 64 * 1024;
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.budget.taken.bytes.fetch_sub(self.bytes, Ordering::AcqRel);
        self.budget.taken.permits.fetch_sub(1, Ordering::AcqRel);
        self.budget.depth.dec();
    }
}
