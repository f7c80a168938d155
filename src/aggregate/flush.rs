//! A flush: the statements of all partitions that had something to make durable, tried again until they are.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    backoff::Backoff,
    log::{
        Epoch,
        dead_letters::{DeadLetter, DeadLetterWriter},
    },
    position::Partition,
    store::{BucketDelta, Flushed, ProcessedEvent, Store, StoreError},
};

/// What has to be durable before positions move. An attempt that is repeated sends the identical ones.
#[derive(Debug, Default, Clone)]
pub struct Statements {
    pub letters: Vec<DeadLetter>,
    pub deltas: Vec<BucketDelta>,
    pub events: Vec<ProcessedEvent>,
}

impl Statements {
    pub fn is_empty(&self) -> bool {
        self.letters.is_empty() && self.deltas.is_empty() && self.events.is_empty()
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
    pub statements: Arc<Statements>,
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
        let mut statements = (*self.statements).clone();
        statements.letters.retain(|letter| kept(letter.partition));
        statements.deltas.retain(|delta| kept(delta.partition));
        statements.events.retain(|event| kept(event.partition));
        self.statements = Arc::new(statements);
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

/// Makes dead letters durable, then the rest.
pub async fn attempt(
    store: Arc<dyn Store>,
    writer: Arc<dyn DeadLetterWriter>,
    statements: Arc<Statements>,
    letters_written: bool,
    timeout: Duration,
) -> Result<Flushed, Failure> {
    if !letters_written && !statements.letters.is_empty() {
        let failed = |why| Failure::DeadLetters(format!("dead letters cannot be written: {why}"));
        let write = tokio::time::timeout(timeout, writer.write(statements.letters.clone()));
        let written = write.await.map_err(|_| failed(format!("no answer within {timeout:?}")))?;
        written.map_err(|error| failed(format!("{error:#}")))?;
    }
    if statements.deltas.is_empty() && statements.events.is_empty() {
        return Ok(Flushed::default());
    }
    store.flush(&statements.deltas, &statements.events).await.map_err(Failure::Store)
}

/// Between two attempts on a store that is away.
pub const BACKOFF: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(10));
