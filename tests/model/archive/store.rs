//! What the workers share: the log, the object store, and a network that is late.

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use ingestd::internals::{
    archive::{
        partition::PutAnswer,
        upload::opening::{Head, HeadError, Heads},
    },
    log::Assignment,
    position::{Offset, Partition, TopicIdentity},
};

use super::{File, PARTITION, Without, lock};
use crate::schedule::Violation;

/// What takes effect later, or never.
pub enum Late {
    Put(File),
    Head(Head),
    Commit { generation: u64, position: Offset },
}

#[derive(Default)]
pub struct Shared {
    /// The hour of each offset's record; `None` where the log has an offset without a record.
    log: Vec<Option<u8>>,
    pub log_start: Offset,
    /// By key, which depends on the chain offset and on the hour of the first record.
    pub objects: BTreeMap<(Offset, u8), File>,
    /// Where each archived record stands.
    pub place: BTreeMap<Offset, (Offset, u8)>,
    pub head: Option<Head>,
    pub network: Vec<Late>,
}

impl Shared {
    pub fn log_end(&self) -> Offset {
        Offset(self.log.len() as u64)
    }

    /// Hours need not ascend, and some offsets have no record.
    pub fn produce(&mut self, choice: u32) {
        let hours = (0..1 + choice % 3).map(|n| (choice >> (3 * n + 2)) % 8);
        self.log.extend(hours.map(|hour| (hour < 7).then_some(hour as u8 % 3)));
    }

    pub fn records(&self, from: Offset, to: Offset) -> Vec<Offset> {
        let from = from.max(self.log_start);
        (from.0..to.0).filter(|offset| self.log[*offset as usize].is_some()).map(Offset).collect()
    }

    pub fn assignment(&self, committed: Option<Offset>) -> Assignment {
        Assignment {
            partition: PARTITION,
            committed,
            log_start: self.log_start,
            log_end: self.log_end(),
            identity: TopicIdentity("id".into()),
            holds_all: true,
        }
    }

    /// A create-only PUT, and the comparison with what stands there.
    pub fn create(&mut self, file: &File, without: Without) -> Result<PutAnswer, Violation> {
        let first = file.records[0];
        let hour = self.log[first.0 as usize].expect("a record");
        let key = match without {
            Without::ListingWithPositionAsKey => (file.segment.chain_offset(), 0),
            Without::ListingAndPositionInKey => (first, hour),
            _ => (file.segment.chain_offset(), hour),
        };
        if let Some(there) = self.objects.get(&key) {
            match without {
                Without::CreateOnlyPuts => {
                    for offset in &there.records {
                        self.place.remove(offset);
                    }
                }
                Without::Following => return Ok(PutAnswer::Created),
                _ => return Ok(PutAnswer::Exists { end: there.segment.end() }),
            }
        }
        for offset in &file.records {
            if let Some(other) = self.place.insert(*offset, key) {
                return Err(Violation(format!("archived twice: offset {offset} stands in {other:?} and {key:?}")));
            }
        }
        self.objects.insert(key, file.clone());
        Ok(PutAnswer::Created)
    }
}

/// The store as a worker asks it: each question waits once, so that anything may happen before it is answered.
pub struct Questions {
    pub shared: Arc<Mutex<Shared>>,
    pub without: Without,
}

impl Questions {
    fn never_lists(&self) -> bool {
        matches!(
            self.without,
            Without::ListingAtGaps | Without::ListingWithPositionAsKey | Without::ListingAndPositionInKey
        )
    }
}

impl Heads for Questions {
    async fn head(&self, _: Partition) -> Result<Option<Head>, HeadError> {
        Wait::default().await;
        Ok(lock(&self.shared).head.clone())
    }

    async fn pin(&self, _: Partition, head: &Head) -> object_store::Result<bool> {
        Wait::default().await;
        let mut shared = lock(&self.shared);
        let free = shared.head.is_none();
        if free && self.without != Without::PinnedStart {
            shared.head = Some(head.clone());
        }
        Ok(free)
    }

    async fn look_ahead(&self, _: Partition, head: &Head) -> Result<Option<Offset>, HeadError> {
        Wait::default().await;
        let shared = lock(&self.shared);
        // In production of an hour, which may not be the last: here of the one in which the next object stands.
        let next = shared.objects.keys().filter(|(x, _)| *x >= head.end).min();
        let same_hour = |(x, hour): &(Offset, _)| *x >= head.end && next.is_some_and(|(_, next)| hour == next);
        let seen = shared.objects.iter().filter(|(key, _)| !self.never_lists() && same_hour(key));
        Ok(seen.map(|(_, file)| file.segment.end()).max())
    }

    async fn find_end(&self, _: Partition) -> Result<Option<(Offset, String)>, HeadError> {
        Wait::default().await;
        let shared = lock(&self.shared);
        if self.never_lists() && shared.head.is_some() {
            return Ok(None);
        }
        // As production finds it: the last object by its position, and that object's end.
        let last = shared.objects.values().max_by_key(|file| file.segment.chain_offset());
        Ok(last.map(|file| (file.segment.end(), "key".to_owned())))
    }
}

#[derive(Default)]
struct Wait(bool);

impl Future for Wait {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        if std::mem::replace(&mut self.0, true) { Poll::Ready(()) } else { Poll::Pending }
    }
}
