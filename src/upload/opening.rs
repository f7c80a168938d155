//! Where a partition's chain ends, when the partition is assigned: a decision over three questions to the store.
//!
//! The archive starts at the head's end, which may be old but is never beyond a real end; the uploads walk forward from
//! there. The group's committed offset only says where to pin the first head. Without a head, or where the log starts
//! beyond it, the objects are listed for the true end.

use std::future::Future;

use serde::{Deserialize, Serialize};

use crate::{
    position::{Offset, Partition, TopicIdentity},
    queue::Assignment,
};

/// How far a partition's chain is known to reach. It may be old, but is never beyond a real end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    pub version: u32,
    pub end: Offset,
    /// The key of the object that ends there; none when the head was pinned before the first object.
    pub key: Option<String>,
    pub identity: TopicIdentity,
}

impl Head {
    pub const VERSION: u32 = 1;
}

/// Why a chain's end cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum HeadError {
    #[error("{0}")]
    Unreadable(String),
    #[error(transparent)]
    Store(object_store::Error),
}

/// Why a chain cannot be opened until the operator does something.
#[derive(Debug)]
pub struct Unusable {
    pub reason: String,
    pub action: String,
}

/// What the store is asked.
pub trait Heads: Sync {
    fn head(&self, partition: Partition) -> impl Future<Output = Result<Option<Head>, HeadError>> + Send;

    /// Pins the chain's first position by a create-only PUT; `false` when another writer has.
    fn pin(&self, partition: Partition, head: &Head) -> impl Future<Output = object_store::Result<bool>> + Send;

    /// The true end of the chain, by LIST, and the key of the object that ends there; `None` without objects.
    fn find_end(
        &self,
        partition: Partition,
    ) -> impl Future<Output = Result<Option<(Offset, String)>, HeadError>> + Send;
}

/// The chain's end, or why it cannot be used. `known_end` is an end that this process has seen before.
///
/// # Errors
/// The store's, which may pass: ask again.
pub async fn end_of_chain(
    heads: &impl Heads,
    assignment: &Assignment,
    known_end: Option<Offset>,
) -> object_store::Result<Result<Offset, Unusable>> {
    let partition = assignment.partition;
    let head = loop {
        match heads.head(partition).await {
            Ok(Some(head)) => break head,
            Ok(None) => {}
            Err(error) => return unreadable(error),
        }
        let (end, key) = match heads.find_end(partition).await {
            Ok(Some((end, key))) => (end, Some(key)),
            Ok(None) => (assignment.committed.unwrap_or(assignment.log_start), None),
            Err(error) => return unreadable(error),
        };
        let head = Head { version: Head::VERSION, end, key, identity: assignment.identity.clone() };
        if heads.pin(partition, &head).await? {
            break head;
        }
        // Another writer pinned it in between: theirs counts.
    };
    if head.identity.contradicts(&assignment.identity.0) {
        return Ok(Err(Unusable {
            reason: format!(
                "the archive was made from another topic of this name (identity {}, now {})",
                head.identity, assignment.identity
            ),
            action: "raise queue.generation to archive the new topic beside the old one, and restart".to_owned(),
        }));
    }
    let mut end = head.end.max(known_end.unwrap_or_default());
    if assignment.log_start > end {
        match heads.find_end(partition).await {
            Ok(found) => end = end.max(found.map_or(end, |(found, _)| found)),
            Err(error) => return unreadable(error),
        }
    }
    Ok(Ok(end))
}

fn unreadable(error: HeadError) -> object_store::Result<Result<Offset, Unusable>> {
    match error {
        HeadError::Store(error) => Err(error),
        HeadError::Unreadable(what) => Ok(Err(Unusable {
            reason: format!("the archive's chain cannot be read: {what}"),
            action: "restore that object (the daemon overwrites and deletes nothing), and restart".to_owned(),
        })),
    }
}
