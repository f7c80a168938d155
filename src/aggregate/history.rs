//! The history of a partition, for the shadow of an aggregate: records of the archive, folded and flushed as live ones are,
//! behind fences of their own.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::ControlFlow,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use prometheus_client::metrics::gauge::Gauge;
use tokio::runtime::Handle;

use super::{
    flush::{Attempt, Statements},
    fold::PartitionFold,
    limit::{KnownGroups, Limit},
    open::{OpenPartition, Reader},
};
use crate::{
    config::Config,
    event::TimeBounds,
    log::{
        Batch, ByteBudget, Epoch,
        dead_letters::{DeadLetterWriter, Source},
        record::RecordBuffer,
    },
    position::{Offset, Partition, Timestamp, TopicIdentity},
    store::{
        Counted, Flushed, Store, StoreError,
        rebuild::{Progress, Reached, RebuildId},
    },
};

/// Consecutive records, which cover `[from, to)`.
pub struct Piece {
    pub from: Offset,
    pub to: Offset,
    pub records: RecordBuffer,
}

/// A partition in the archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chain {
    pub partition: Partition,
    /// When its first record was received, where that is not the log's first: what was counted before is not in the archive.
    pub begins_late: Option<Timestamp>,
}

/// The records that are archived.
pub trait Archived: Send + Sync {
    /// The partitions that it has. Blocks.
    fn chains(&self) -> anyhow::Result<Vec<Chain>>;

    /// Hands out a partition's records from an offset on, in pieces of some megabytes, until there are no more. Blocks.
    fn each(
        &self,
        partition: Partition,
        from: Offset,
        take: &mut dyn FnMut(Piece) -> ControlFlow<()>,
    ) -> anyhow::Result<()>;
}

/// What one partition's history needs.
pub struct Reading {
    pub archived: Arc<dyn Archived>,
    pub store: Arc<dyn Store>,
    pub letters: Arc<dyn DeadLetterWriter>,
    pub config: Arc<Config>,
    pub counted: Arc<[Counted]>,
    pub limits: Arc<[Limit]>,
    /// Index of the shadow.
    pub shadow: usize,
    pub id: RebuildId,
    pub partition: Partition,
    pub identity: TopicIdentity,
    /// Those that live counting has stored.
    pub bounds: TimeBounds,
    pub io: Handle,
    /// The partition was taken away, or the list is made anew.
    pub cancelled: Arc<AtomicBool>,
}

/// Why it ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Ended {
    /// The archive has nothing beyond: live counting goes on there.
    CaughtUp(Offset),
    /// The rebuild is over, or this reading was cancelled.
    Over,
    /// Another writer was there: to be begun again, from what is durable.
    Fenced,
    /// To be tried again, with the reason.
    Failed(String),
}

impl Reading {
    /// What is held before it is flushed.
    const FLUSH_BYTES: usize = 8 << 20;
    /// What is read again after a kill, at most, and how often the progress moves.
    const FLUSH_EVERY: Duration = Duration::from_secs(1);

    /// Reads from `cursor` on, after so many records. Blocks: for a thread of its own.
    pub fn run(self, Reached { progress, records }: Reached) -> Ended {
        let Progress::History(cursor) = progress else { return Ended::Over };
        self.read(cursor, records).unwrap_or_else(Ended::Failed)
    }

    fn read(&self, cursor: Offset, records: u64) -> Result<Ended, String> {
        let mut reader = Reader::new(&self.config, &self.counted);
        reader.keep_events = false;
        let mut open = self.open(cursor, &reader)?;
        let (groups, mut records) = (Arc::new(Mutex::new(KnownGroups::default())), records);
        let (mut ended, mut flushed) = (None, Instant::now());
        let budget = ByteBudget::new(1, Gauge::default());
        let read = self.archived.each(self.partition, cursor, &mut |Piece { from, to, records: piece }| {
            if self.cancelled.load(Ordering::Acquire) {
                ended = Some(Ok(Ended::Over));
                return ControlFlow::Break(());
            }
            records += piece.len() as u64;
            let permit = budget.take(piece.size());
            let batch = Batch { partition: self.partition, epoch: Epoch::fresh(), from, to, records: piece, permit };
            open.take(&batch, &mut reader);
            if open.bytes() >= Self::FLUSH_BYTES
                || open.fold.touched() >= self.config.aggregator.flush_buckets
                || flushed.elapsed() >= Self::FLUSH_EVERY
            {
                let outcome = self.flush(&mut open, &groups, records);
                flushed = Instant::now();
                match outcome {
                    Ok(None) => {}
                    other => {
                        ended = Some(other.map(|ended| ended.unwrap_or(Ended::Over)));
                        return ControlFlow::Break(());
                    }
                }
            }
            ControlFlow::Continue(())
        });
        if let Some(ended) = ended {
            return ended;
        }
        read.map_err(|error| format!("{error:#}"))?;
        if let Some(ended) = self.flush(&mut open, &groups, records)? {
            return Ok(ended);
        }
        let end = open.fold.cursor();
        let reached = Reached { progress: Progress::Catching(end), records };
        match self.reached(reached)? {
            true => Ok(Ended::CaughtUp(end)),
            false => Ok(Ended::Over),
        }
    }

    /// The partition as only the shadow counts it.
    fn open(&self, cursor: Offset, reader: &Reader) -> Result<OpenPartition, String> {
        let wait = |error: StoreError| error.to_string();
        let fences = self.io.block_on(self.store.fences(self.partition, cursor, &self.identity)).map_err(wait)?;
        let fences: Vec<_> = fences.into_iter().filter(|fence| fence.aggregate == self.shadow).collect();
        let history = self.store.history(self.partition, cursor, self.bounds);
        let mut history = self.io.block_on(history).map_err(wait)?;
        history.progress = (0..self.counted.len())
            .map(|index| if index == self.shadow { Progress::default() } else { Progress::History(Offset(0)) })
            .collect();
        // Windows that are kept no longer are not rebuilt.
        let kept_from = reader.grouping.kept_from(Timestamp::now()).nth(self.shadow).flatten();
        if let Some(removed) = history.removed.get_mut(self.shadow) {
            *removed = (*removed).max(kept_from);
        }
        let source = Source { topic: reader.topic.clone(), generation: reader.generation, partition: self.partition };
        let letters: BTreeSet<Offset> = self
            .io
            .block_on(self.letters.known(source, Offset(0)))
            .map_err(|why| format!("dead letters cannot be read: {why:#}"))?;
        let others: Vec<_> = self.limits.iter().map(|limit| limit.other.clone()).collect();
        let fold = PartitionFold::assign(self.partition, cursor, &others, fences);
        Ok(OpenPartition::new(fold, letters, BTreeMap::new(), history, &reader.fields))
    }

    /// Makes what was folded durable, then how far that is.
    fn flush(
        &self,
        open: &mut OpenPartition,
        groups: &Arc<Mutex<KnownGroups>>,
        records: u64,
    ) -> Result<Option<Ended>, String> {
        if !open.fold.is_dirty() {
            return Ok(None);
        }
        if !Arc::ptr_eq(&self.store.counted(), &self.counted) {
            // The shadow may have another index.
            return Ok(Some(Ended::Over));
        }
        let mut statements = Statements::default();
        open.begin_flush(self.partition, Epoch::fresh(), &mut statements);
        // What cannot be read became a letter when it was read live.
        statements.letters.clear();
        let attempt = Attempt {
            store: self.store.clone(),
            writer: self.letters.clone(),
            limits: self.limits.clone(),
            groups: groups.clone(),
            letters_written: true,
            timeout: self.config.aggregator.timeout,
        };
        let made = self.io.block_on(attempt.make(statements));
        let Flushed { fenced, blocked, .. } = made.outcome.map_err(|failure| failure.to_string())?;
        if let Some(blocked) = blocked.first() {
            return Err(blocked.reason.clone());
        }
        if !fenced.is_empty() {
            return Ok(Some(Ended::Fenced));
        }
        let cursor = open.fold.flushed();
        let reached = Reached { progress: Progress::History(cursor), records };
        Ok(if self.reached(reached)? { None } else { Some(Ended::Over) })
    }

    fn reached(&self, reached: Reached) -> Result<bool, String> {
        let noted = self.store.rebuilds().reached(&self.id, self.partition, reached);
        self.io.block_on(noted).map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests;
