//! Replays of archived records to a topic: what marks them, and how each is replayed once.
//!
//! A record that is replayed is appended to the topic together with a *word*, in one transaction: which offsets of its
//! partition were replayed there. So whatever is killed, what stands in the topic is what the word says, and the next replay
//! goes on behind it. Taking the transactional id fences whoever replays to the topic, and waits for the end of their
//! transaction; only then the words are read. Words stand in a topic of their own (`kafka::replays`).

use serde::{Deserialize, Serialize};

use crate::{
    log::record::RecordBuffer,
    position::{Offset, Partition, TopicIdentity},
};

/// The header of a record that was replayed from the archive: `topic/partition/offset`, as ids of dead letters are written.
pub const REPLAYED_FROM_HEADER: &str = "ingestd-replayed-from";
/// Records and bytes of one transaction: a moment's work, and one commit does not cost much beside it.
pub const BATCH_RECORDS: usize = 5000;
pub const BATCH_BYTES: usize = 4 << 20;

/// Where archived records are replayed to. All calls block.
pub trait ReplayTarget {
    /// What was replayed there of this partition; `identity` is that of the topic which its chain was made from.
    fn replayed(&self, partition: Partition, identity: Option<&TopicIdentity>) -> Replayed;

    /// Appends the records, and says with them that all of `replayed` now is; or does nothing.
    ///
    /// # Errors
    /// One sentence: why, and what to do.
    fn append(&self, partition: &SourcePartition, records: &RecordBuffer, replayed: &Replayed) -> anyhow::Result<()>;
}

/// A chain of the archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourcePartition {
    pub partition: Partition,
    /// Of the topic that it was made from; `None` where its head is not there.
    pub identity: Option<TopicIdentity>,
}

/// Offsets of one partition: ascending ranges `[from, to)` that do not touch.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Replayed(Vec<(Offset, Offset)>);

impl Replayed {
    /// Ranges that a word can hold: some 300 KB.
    pub const MOST: usize = 10_000;

    /// The range that the offset is in.
    fn range_of(&self, offset: Offset) -> Option<(Offset, Offset)> {
        let behind = self.0.partition_point(|(from, _)| *from <= offset);
        let range = *self.0.get(behind.checked_sub(1)?)?;
        (offset < range.1).then_some(range)
    }

    pub fn has(&self, offset: Offset) -> bool {
        self.range_of(offset).is_some()
    }

    /// Whether all of `[from, to)` was replayed.
    pub fn has_all(&self, from: Offset, to: Offset) -> bool {
        self.range_of(from).is_some_and(|(_, end)| to <= end)
    }

    pub fn insert(&mut self, from: Offset, to: Offset) {
        let first = self.0.partition_point(|(_, end)| *end < from);
        let behind = first + self.0[first..].partition_point(|(start, _)| *start <= to);
        let merged =
            self.0[first..behind].iter().fold((from, to), |(from, to), range| (from.min(range.0), to.max(range.1)));
        self.0.splice(first..behind, [merged]);
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// As a word may be written by anything: whether it is what this type promises.
    pub fn is_sound(&self) -> bool {
        self.0.iter().all(|(from, to)| from < to) && self.0.windows(2).all(|pair| pair[0].1 < pair[1].0)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn ranges_hold_what_was_inserted_and_do_not_touch(inserted in prop::collection::vec((0_u64..60, 1_u64..9), 0..20)) {
            let (mut replayed, mut all) = (Replayed::default(), BTreeSet::new());
            for (from, length) in inserted {
                replayed.insert(Offset(from), Offset(from + length));
                all.extend(from..from + length);
                prop_assert!(replayed.is_sound(), "{replayed:?}");
                for offset in 0..80 {
                    prop_assert_eq!(replayed.has(Offset(offset)), all.contains(&offset));
                    let end = (offset..90).find(|next| !all.contains(next)).unwrap_or(offset);
                    prop_assert!(end == offset || replayed.has_all(Offset(offset), Offset(end)));
                    prop_assert!(!replayed.has_all(Offset(offset), Offset(end + 1)));
                }
            }
        }
    }

    #[test]
    fn a_word_of_another_make_is_not_taken() {
        let read = |text: &str| serde_json::from_str::<Replayed>(text).unwrap().is_sound();
        assert!(read("[]") && read("[[0,5],[6,7]]"));
        for wrong in ["[[5,5]]", "[[5,4]]", "[[0,5],[5,6]]", "[[6,7],[0,5]]"] {
            assert!(!read(wrong), "{wrong}");
        }
    }
}
