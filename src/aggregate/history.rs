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

/// Which records are asked for.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    pub partition: Partition,
    pub from: Offset,
    /// The first one that is not.
    pub until: Offset,
    /// What came before may be missing.
    pub complete_from: Option<Timestamp>,
}

/// The records that are archived.
pub trait Archived: Send + Sync {
    /// The partitions that it has. Blocks.
    fn chains(&self) -> anyhow::Result<Vec<Chain>>;

    /// Hands out a partition's records, in pieces of some megabytes, as far as there are any. Blocks.
    ///
    /// # Errors
    /// Also where records are missing between others that windows from `wanted.complete_from` on need.
    fn each(&self, wanted: Wanted, take: &mut dyn FnMut(Piece) -> ControlFlow<()>) -> anyhow::Result<()>;
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
    /// How far the partition is counted live.
    pub position: Box<dyn Fn() -> Option<Offset> + Send>,
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
    /// So many records are rather read from the archive than once more from the log.
    const WORTH_MORE: u64 = 100_000;
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
        loop {
            // No further than live counting: what that makes a letter of is not counted.
            let Some(until) = (self.position)() else { return Ok(Ended::Over) };
            let before = open.fold.cursor();
            if let Some(ended) = self.read_until(until, &mut open, &mut reader, &groups, &mut records)? {
                return Ok(ended);
            }
            let end = open.fold.cursor();
            let (read, left) = (end.since(before), (self.position)().unwrap_or(end).since(end));
            if read > Self::WORTH_MORE && left > Self::WORTH_MORE {
                // Much was archived, and counted, meanwhile.
                continue;
            }
            if self.cancelled.load(Ordering::Acquire) {
                return Ok(Ended::Over);
            }
            let reached = Reached { progress: Progress::Catching(end), records };
            return Ok(if self.reached(reached)? { Ended::CaughtUp(end) } else { Ended::Over });
        }
    }

    /// Adds what the archive has before `until`, as far as it goes.
    fn read_until(
        &self,
        until: Offset,
        open: &mut OpenPartition,
        reader: &mut Reader,
        groups: &Arc<Mutex<KnownGroups>>,
        records: &mut u64,
    ) -> Result<Option<Ended>, String> {
        let (mut ended, mut flushed) = (None, Instant::now());
        let budget = ByteBudget::new(1, Gauge::default());
        let complete_from = self.counted[self.shadow].range.from;
        let wanted = Wanted { partition: self.partition, from: open.fold.cursor(), until, complete_from };
        let read = self.archived.each(wanted, &mut |Piece { from, to, records: piece }| {
            if self.cancelled.load(Ordering::Acquire) {
                ended = Some(Ok(Ended::Over));
                return ControlFlow::Break(());
            }
            *records += piece.len() as u64;
            let permit = budget.take(piece.size());
            let (epoch, piece) = (Epoch::fresh(), Arc::new(piece));
            let batch = Batch { partition: self.partition, epoch, from, to, records: piece, permit };
            open.take(&batch, reader);
            if open.bytes() >= Self::FLUSH_BYTES
                || open.fold.touched() >= self.config.aggregator.flush_buckets
                || flushed.elapsed() >= Self::FLUSH_EVERY
            {
                let outcome = self.flush(open, groups, *records);
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
            return ended.map(Some);
        }
        read.map_err(|error| format!("{error:#}"))?;
        self.flush(open, groups, *records)
    }

    /// The partition as only the shadow counts it.
    fn open(&self, cursor: Offset, reader: &Reader) -> Result<OpenPartition, String> {
        let wait = |error: StoreError| error.to_string();
        let fences = self.store.fences_of(&self.counted, self.shadow, self.partition, cursor, &self.identity);
        let fences = self.io.block_on(fences).map_err(wait)?;
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
        let mut statements = Statements::default();
        open.begin_flush(self.partition, Epoch::fresh(), &mut statements);
        // What cannot be read became a letter when it was read live.
        statements.letters.clear();
        let attempt = Attempt {
            store: self.store.clone(),
            writer: self.letters.clone(),
            counted: self.counted.clone(),
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
