//! Why a partition may not be counted here, and what to do about it.

use crate::{
    config::{Config, QueueKind, StoreKind},
    log::Assignment,
    position::Offset,
    store::Fence,
};

/// A reason to halt, and what the operator can do.
pub type Refusal = (String, &'static str);

/// What speaks against an assignment by itself.
pub fn refuse(config: &Config, assignment: &Assignment) -> Option<Refusal> {
    let group = format!("{}-aggregate", config.queue.kafka.group);
    if config.queue.kind == QueueKind::Kafka && config.store.kind == StoreKind::Embedded && !assignment.holds_all {
        return Some((
            format!("another worker is in group {group:?}, and an embedded store cannot be shared: use a shared store"),
            "set store.kind = \"mongodb\" on all workers, or run one worker",
        ));
    }
    if let Some(committed) = assignment.committed.filter(|committed| *committed > assignment.log_end) {
        return Some((
            format!(
                "the group's position {committed} is beyond the log's end {}: records are gone, or the topic was created anew",
                assignment.log_end
            ),
            "give queue.generation a number that was not used before and restart: counting then starts at the log's start",
        ));
    }
    None
}

/// What fences beyond the log's end say. Records at and below a fence are skipped: where the log has yet to give their
/// offsets to others, those would be skipped without having been counted.
#[derive(Debug, PartialEq, Eq)]
pub enum Ahead {
    /// There are none.
    None,
    /// This one is: another writer may have gone on since the end was asked for, so that has to be asked again.
    AskAgain(Offset),
    Refused(Refusal),
}

/// `known` is the fence for which the log's end was asked again: an end that was read after it must be beyond it.
pub fn ahead(fences: &[Fence], log_end: Offset, known: Option<Offset>) -> Ahead {
    let beyond = fences.iter().map(|fence| fence.last_offset).filter(|fence| *fence >= log_end);
    match (beyond.min(), known) {
        (None, _) => Ahead::None,
        (Some(_), Some(known)) if known >= log_end => Ahead::Refused((
            format!(
                "the store has counted the record at {known}, and the log ends at {log_end}: the log was restored from \
                 an older copy, or has lost its end, and new records would be skipped as if they were counted"
            ),
            "bring back the log that was counted; if it is gone, give queue.generation a number that was not used \
             before and restart: counting then starts anew beside the old buckets",
        )),
        (Some(fence), _) => Ahead::AskAgain(fence),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{position::Timestamp, store::BucketKey};

    #[test]
    fn a_fence_beyond_an_end_that_was_asked_for_after_it_is_refused() {
        let fences = [4, 9, 12].map(|last| Fence {
            aggregate: 0,
            key: BucketKey { window_start: Timestamp(last), group: "[]".into() },
            last_offset: Offset(last.unsigned_abs()),
        });
        assert_eq!(ahead(&fences, Offset(13), None), Ahead::None);
        assert_eq!(ahead(&fences, Offset(9), None), Ahead::AskAgain(Offset(9)));
        let refused = |known| matches!(ahead(&fences, Offset(9), Some(Offset(known))), Ahead::Refused(_));
        assert!(refused(9));
        assert!(!refused(8), "another writer goes on: the end has grown beyond what was known");
    }
}
