//! Where a partition's chain ends, when the partition is assigned: a decision over a few questions to the store.
//!
//! The archive starts at the head's end, which may be old but is never beyond a real end; the uploads walk forward from
//! there. The group's committed offset only says where to pin the first head. What was written since the head mostly
//! stands in its hour, soon after it, or in the present hour, where a few short LISTs find it. Without a head, where the log's start or the
//! committed offset still lies beyond, or where object after object of another writer stands, all objects are listed for
//! the true end.

use std::future::Future;

use serde::{Deserialize, Serialize};

use super::errors::failed;
use crate::{
    log::Assignment,
    position::{Offset, Partition, TopicIdentity},
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

/// What this process knows of a chain.
#[derive(Debug, Default, Clone, Copy)]
pub struct Known {
    /// It may be older than the head, or newer.
    end: Offset,
    /// Objects of another writer that were met since there was one of our own.
    met: u32,
    /// There was one of our own.
    writes: bool,
}

impl Known {
    /// An object of our own ends there.
    pub fn archived(&mut self, end: Offset) {
        *self = Self { end, met: 0, writes: true };
    }

    /// One of another writer's does.
    pub fn met(&mut self, end: Offset) {
        *self = Self { end, met: self.met + 1, ..*self };
    }

    /// The head is old: a process was killed, say, which wrote object after object since its last head. A new process says
    /// so when the first object that it meets is another's. One that has written meets one where two writers race, too.
    fn finds_an_old_head(self) -> bool {
        self.met > u32::from(self.writes)
    }
}

/// Why a file or an object of a chain is not read.
#[derive(Debug, thiserror::Error)]
pub enum HeadError {
    #[error("{0}")]
    Unreadable(String),
    #[error(transparent)]
    Store(#[from] object_store::Error),
}

/// Why a chain cannot be opened until the operator does something.
#[derive(Debug)]
pub struct Unusable {
    pub reason: String,
    pub action: String,
}

/// Why a chain is not open.
#[derive(Debug)]
pub enum OpenError {
    Unusable(Unusable),
    /// The store's, which may pass: ask again.
    Store(object_store::Error),
}

impl From<object_store::Error> for OpenError {
    fn from(error: object_store::Error) -> Self {
        Self::Store(error)
    }
}

impl From<HeadError> for OpenError {
    fn from(error: HeadError) -> Self {
        match error {
            HeadError::Store(error) => Self::Store(error),
            HeadError::Unreadable(what) => Self::Unusable(Unusable {
                reason: format!("the archive's chain cannot be read: {what}"),
                action: "restore that object (the daemon overwrites and deletes nothing), and restart".to_owned(),
            }),
        }
    }
}

/// What the store is asked.
pub trait Heads: Sync {
    fn head(&self, partition: Partition) -> impl Future<Output = Result<Option<Head>, HeadError>> + Send;

    /// Pins the chain's first position by a create-only PUT; `false` when another writer has.
    fn pin(&self, partition: Partition, head: &Head) -> impl Future<Output = object_store::Result<bool>> + Send;

    /// An end of the chain beyond the head's, by short LISTs: cheap however many objects there are, but not always the true
    /// end. `None` where they show none.
    fn look_ahead(
        &self,
        partition: Partition,
        head: &Head,
    ) -> impl Future<Output = Result<Option<Offset>, HeadError>> + Send;

    /// The true end of the chain, by LIST of all objects, and the key of the object that ends there; `None` without objects.
    fn find_end(
        &self,
        partition: Partition,
    ) -> impl Future<Output = Result<Option<(Offset, String)>, HeadError>> + Send;
}

/// The chain's end.
pub async fn end_of_chain(heads: &impl Heads, assignment: &Assignment, known: Known) -> Result<Offset, OpenError> {
    let partition = assignment.partition;
    let head = match heads.head(partition).await? {
        Some(head) => head,
        None => {
            let (end, key) = match heads.find_end(partition).await? {
                Some((end, key)) => (end, Some(key)),
                None => (assignment.committed.unwrap_or(assignment.log_start), None),
            };
            let head = Head { version: Head::VERSION, end, key, identity: assignment.identity.clone() };
            if heads.pin(partition, &head).await? {
                head
            } else {
                // Another writer pinned it in between: theirs counts.
                let theirs = heads.head(partition).await?;
                // Some stores answer 409 to requests that fail otherwise.
                theirs
                    .ok_or_else(|| failed("the store refuses to create the chain's head, although none stands there"))?
            }
        }
    };
    if head.identity.contradicts(&assignment.identity.0) {
        return Err(OpenError::Unusable(Unusable {
            reason: format!(
                "the archive was made from another topic of this name (identity {}, now {})",
                head.identity, assignment.identity
            ),
            action: "raise queue.generation to archive the new topic beside the old one, and restart".to_owned(),
        }));
    }
    // Without a look, each object behind an old head would have to be met by a PUT of our own.
    let seen = heads.look_ahead(partition, &head).await?.map_or(head.end, |seen| seen.max(head.end));
    let end = seen.max(known.end);
    let sees_too_little = known.finds_an_old_head() && seen <= known.end;
    if sees_too_little || assignment.committed.is_some_and(|committed| committed > end) || assignment.log_start > end {
        let found = heads.find_end(partition).await?;
        return Ok(found.map_or(end, |(found, _)| end.max(found)));
    }
    Ok(end)
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;

    use futures::FutureExt;

    use super::*;

    /// A store that answers what the test says.
    #[derive(Default)]
    struct Fake {
        head: Mutex<Option<Head>>,
        ahead: Option<Offset>,
        found: Option<Offset>,
        refuses: bool,
        listed: Mutex<u32>,
    }

    impl Heads for Fake {
        async fn head(&self, _: Partition) -> Result<Option<Head>, HeadError> {
            Ok(self.head.lock().clone())
        }

        async fn pin(&self, _: Partition, head: &Head) -> object_store::Result<bool> {
            if !self.refuses {
                *self.head.lock() = Some(head.clone());
            }
            Ok(!self.refuses)
        }

        async fn look_ahead(&self, _: Partition, _: &Head) -> Result<Option<Offset>, HeadError> {
            Ok(self.ahead)
        }

        async fn find_end(&self, _: Partition) -> Result<Option<(Offset, String)>, HeadError> {
            *self.listed.lock() += 1;
            Ok(self.found.map(|end| (end, "key".to_owned())))
        }
    }

    fn head(end: u64, identity: &str) -> Mutex<Option<Head>> {
        let identity = TopicIdentity(identity.into());
        Mutex::new(Some(Head { version: Head::VERSION, end: Offset(end), key: None, identity }))
    }

    fn open_knowing(fake: &Fake, committed: Option<u64>, log_start: u64, known: Known) -> Result<Offset, OpenError> {
        let assignment = Assignment {
            partition: Partition(0),
            committed: committed.map(Offset),
            log_start: Offset(log_start),
            log_end: Offset(100),
            identity: TopicIdentity("id".into()),
            holds_all: true,
        };
        // The fake answers at once.
        end_of_chain(fake, &assignment, known).now_or_never().unwrap()
    }

    fn open(fake: &Fake, committed: Option<u64>, log_start: u64) -> Result<Offset, OpenError> {
        open_knowing(fake, committed, log_start, Known::default())
    }

    #[test]
    fn the_chain_begins_at_the_head_and_the_committed_offset_only_pins_the_first() {
        let fake = Fake { head: head(7, "id"), ..Fake::default() };
        assert_eq!(open(&fake, Some(3), 0).unwrap(), Offset(7));
        assert_eq!(*fake.listed.lock(), 0);
        let fake = Fake::default();
        assert_eq!(open(&fake, Some(3), 0).unwrap(), Offset(3));
        assert_eq!(fake.head.lock().as_ref().unwrap().end, Offset(3));
    }

    #[test]
    fn behind_an_old_head_the_objects_are_listed() {
        for (committed, log_start) in [(Some(20), 0), (Some(3), 9)] {
            let fake = Fake { head: head(7, "id"), found: Some(Offset(20)), ..Fake::default() };
            assert_eq!(open(&fake, committed, log_start).unwrap(), Offset(20));
        }
    }

    #[test]
    fn what_was_written_since_the_head_is_found_in_the_hours_after_it() {
        let fake = Fake { head: head(7, "id"), ahead: Some(Offset(20)), found: Some(Offset(30)), ..Fake::default() };
        assert_eq!(open(&fake, Some(12), 9).unwrap(), Offset(20));
        let mut known = Known::default();
        known.met(Offset(9));
        assert_eq!(open_knowing(&fake, Some(12), 0, known).unwrap(), Offset(20));
        assert_eq!(*fake.listed.lock(), 0);
        known.met(Offset(20));
        assert_eq!(open_knowing(&fake, Some(12), 0, known).unwrap(), Offset(30), "it shows no more");
        assert_eq!(open(&fake, Some(21), 0).unwrap(), Offset(30), "it shows less than is committed");
    }

    #[test]
    fn when_another_writers_objects_are_met_one_after_the_other_the_rest_are_listed() {
        let fake = Fake { head: head(7, "id"), found: Some(Offset(20)), ..Fake::default() };
        let mut known = Known::default();
        let open = |known| open_knowing(&fake, Some(3), 0, known).unwrap();
        known.archived(Offset(8));
        known.met(Offset(9));
        assert_eq!((open(known), *fake.listed.lock()), (Offset(9), 0), "a race");
        known.met(Offset(10));
        assert_eq!(open(known), Offset(20));
        known = Known::default();
        known.met(Offset(9));
        assert_eq!(open(known), Offset(20), "a new process");
    }

    #[test]
    fn a_committed_offset_beyond_all_objects_moves_no_chain() {
        let fake = Fake { head: head(7, "id"), found: Some(Offset(7)), ..Fake::default() };
        assert_eq!(open(&fake, Some(20), 0).unwrap(), Offset(7));
    }

    #[test]
    fn a_store_that_refuses_the_head_and_has_none_fails_instead_of_being_asked_for_ever() {
        let fake = Fake { refuses: true, ..Fake::default() };
        assert!(matches!(open(&fake, None, 0), Err(OpenError::Store(_))));
    }

    #[test]
    fn an_archive_of_another_topic_of_this_name_is_not_continued() {
        let fake = Fake { head: head(7, "other"), ..Fake::default() };
        let outcome = open(&fake, None, 0);
        let Err(OpenError::Unusable(Unusable { action, .. })) = outcome else { panic!("{outcome:?}") };
        assert!(action.contains("queue.generation"));
    }
}
