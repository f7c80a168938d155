//! A flush: the statements of all partitions that had something to make durable, tried again until they are.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use super::{
    fold::GroupFold,
    limit::{KnownGroups, Limit, Question, Routed, WindowOf},
    open::Reported,
};
use crate::{
    backoff::Backoff,
    log::{
        Epoch,
        dead_letters::{DeadLetter, DeadLetterWriter},
    },
    position::Partition,
    store::{BucketDelta, CountedList, Flushed, GroupsFound, GroupsOf, ProcessedEvent, Store, StoreError},
};

/// What has to be durable before positions move. An attempt that is repeated sends the identical ones.
#[derive(Debug, Default, Clone)]
pub struct Statements {
    pub letters: Vec<DeadLetter>,
    /// What is not routed yet.
    pub folded: Vec<GroupFold>,
    pub deltas: Vec<BucketDelta>,
    pub events: Vec<ProcessedEvent>,
    /// Records in the buckets of all further groups, by partition and aggregate.
    pub others: BTreeMap<(Partition, usize), u64>,
    pub reported: BTreeMap<Partition, Reported>,
}

impl Statements {
    pub fn is_empty(&self) -> bool {
        self.letters.is_empty() && self.folded.is_empty() && self.deltas.is_empty() && self.events.is_empty()
    }
}

/// One partition's part of a flush.
#[derive(Debug, Clone, Copy)]
pub struct Part {
    pub partition: Partition,
    pub epoch: Epoch,
    /// Records that it counts.
    pub records: u64,
    pub letters: u64,
}

/// The flush in flight; an aggregator has at most one.
#[derive(Debug)]
pub struct Flush {
    pub parts: Vec<Part>,
    /// Nothing while an attempt has them.
    pub statements: Statements,
    /// Dead letters that are durable need not be written again.
    pub letters_written: bool,
    pub attempts: u32,
    pub began: Instant,
}

impl Flush {
    /// Leaves out the partitions that were taken away: their next owner counts what is not durable. (Were they sent, the
    /// fence would see to it that nothing is counted twice.)
    pub fn keep_only(&mut self, held: impl Fn(&Part) -> bool) {
        if self.parts.iter().all(&held) {
            return;
        }
        self.parts.retain(held);
        let kept = |partition: Partition| self.parts.iter().any(|part| part.partition == partition);
        let statements = &mut self.statements;
        statements.letters.retain(|letter| kept(letter.partition));
        statements.folded.retain(|group| kept(group.partition));
        statements.deltas.retain(|delta| kept(delta.partition));
        statements.events.retain(|event| kept(event.partition));
        statements.others.retain(|(partition, _), _| kept(*partition));
        statements.reported.retain(|partition, _| kept(*partition));
    }
}

/// Why an attempt failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Dead letters are not durable, and nothing else was sent.
    #[error("{0}")]
    DeadLetters(String),
    /// Dead letters are durable.
    #[error(transparent)]
    Store(StoreError),
}

/// What an attempt needs.
#[derive(Clone)]
pub struct Attempt {
    pub store: Arc<dyn Store>,
    pub writer: Arc<dyn DeadLetterWriter>,
    /// What the statements are of.
    pub counted: CountedList,
    /// By aggregate.
    pub limits: Arc<[Limit]>,
    /// Of the one flush in flight.
    pub groups: Arc<Mutex<KnownGroups>>,
    pub letters_written: bool,
    pub timeout: Duration,
}

/// What came of it, and the statements as the next attempt has to send them.
pub struct Attempted {
    pub outcome: Result<Flushed, Failure>,
    pub statements: Statements,
}

impl Attempt {
    /// Makes dead letters durable, then decides which groups have buckets, then makes the rest durable.
    pub async fn make(self, mut statements: Statements) -> Attempted {
        let outcome = self.try_to_make(&mut statements).await;
        Attempted { outcome, statements }
    }

    async fn try_to_make(&self, statements: &mut Statements) -> Result<Flushed, Failure> {
        if !self.letters_written && !statements.letters.is_empty() {
            let failed = |why| Failure::DeadLetters(format!("dead letters cannot be written: {why}"));
            let write = tokio::time::timeout(self.timeout, self.writer.write(statements.letters.clone()));
            let written = write.await.map_err(|_| failed(format!("no answer within {:?}", self.timeout)))?;
            written.map_err(|error| failed(format!("{error:#}")))?;
        }
        if !statements.folded.is_empty() {
            self.route(statements).await?;
        }
        if statements.deltas.is_empty() && statements.events.is_empty() {
            return Ok(Flushed::default());
        }
        self.store.flush(&self.counted, &statements.deltas, &statements.events).await.map_err(Failure::Store)
    }

    /// Asks the store what is not known of the groups, some windows at a time, so that an attempt that comes to nothing was not
    /// in vain; then decides which of them have buckets.
    async fn route(&self, statements: &mut Statements) -> Result<(), Failure> {
        let questions = self.groups.lock().questions(&statements.folded, &self.limits);
        for some in questions.chunks(WINDOWS_AT_ONCE) {
            let asked: Vec<_> = some.iter().map(|question| self.asked(question)).collect();
            let answers = self.store.groups(&self.counted, &asked).await.map_err(Failure::Store)?;
            let mut known = self.groups.lock();
            for (question, GroupsFound { present, buckets }) in some.iter().zip(answers) {
                if !known.learn(question, present, buckets) {
                    let why = "a partition was assigned anew in the middle of a flush";
                    return Err(Failure::Store(StoreError::Unavailable(why.to_owned())));
                }
            }
        }
        let Routed { deltas, others } = self.groups.lock().route(std::mem::take(&mut statements.folded), &self.limits);
        (statements.deltas, statements.others) = (deltas, others);
        Ok(())
    }

    fn asked(&self, question: &Question) -> GroupsOf {
        let WindowOf { aggregate, partition, window_start } = question.of;
        let Limit { max_groups, other } = &self.limits[aggregate];
        let (groups, other, limit) = (question.groups.clone(), other.clone(), *max_groups);
        GroupsOf { aggregate, partition, window_start, groups, other, limit }
    }
}

/// Windows that the store is asked about at once.
const WINDOWS_AT_ONCE: usize = 64;

/// Between two attempts on a store that is away.
pub const BACKOFF: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(10));
