//! What buckets have beside their counts as we wrote it last, so that the next flush need not read it.
//!
//! **It is never believed by itself.** What a bucket has follows from its fence: it is measured of the records up to there. The
//! statement that adds to what is remembered asks for the fence that it was written with, so that it takes effect only where no
//! other writer was there since; else it changes nothing, and what is there is read. Only what was confirmed as durable is
//! remembered, and of a partition that is assigned anew nothing.

use std::collections::HashMap;

use crate::position::{Offset, Partition};

#[derive(Debug, Default)]
pub struct Remembered {
    /// By the collection's name, and the bucket's id.
    collections: HashMap<String, HashMap<String, Known>>,
    bytes: usize,
    /// Counts flushes, to tell which buckets were not written for long.
    turn: u64,
}

#[derive(Debug)]
struct Known {
    partition: Partition,
    fence: Offset,
    state: Vec<u8>,
    turn: u64,
}

impl Known {
    /// About the memory that it takes.
    fn size(&self, id: &str) -> usize {
        size_of::<Self>() + size_of::<String>() + id.len() + self.state.len()
    }
}

impl Remembered {
    /// Some thousands of buckets.
    const MOST: usize = 8 << 20;
    /// For so many flushes without a record for it: windows that have passed are not written any more.
    const TURNS: u64 = 8;

    /// A flush begins.
    pub fn begin(&mut self) {
        self.turn += 1;
        let turn = self.turn;
        self.retain(|known| known.turn + Self::TURNS >= turn);
    }

    /// Its fence and its state. It is not remembered any more: whoever has written it says so anew.
    pub fn take(&mut self, collection: &str, id: &str) -> Option<(Offset, Vec<u8>)> {
        let known = self.collections.get_mut(collection)?.remove(id)?;
        self.bytes -= known.size(id);
        Some((known.fence, known.state))
    }

    /// The bucket has this, durably.
    pub fn keep(&mut self, collection: &str, id: String, partition: Partition, fence: Offset, state: Vec<u8>) {
        let known = Known { partition, fence, state, turn: self.turn };
        let size = known.size(&id);
        if self.bytes + size > Self::MOST {
            return;
        }
        if !self.collections.contains_key(collection) {
            self.collections.insert(collection.to_owned(), HashMap::new());
        }
        let Some(buckets) = self.collections.get_mut(collection) else { return };
        self.bytes += size;
        self.bytes -= buckets.get(&id).map_or(0, |before| before.size(&id));
        buckets.insert(id, known);
    }

    /// Others may have written its buckets.
    pub fn forget(&mut self, partition: Partition) {
        self.retain(|known| known.partition != partition);
    }

    fn retain(&mut self, keep: impl Fn(&Known) -> bool) {
        for buckets in self.collections.values_mut() {
            buckets.retain(|id, known| {
                let stays = keep(known);
                self.bytes -= if stays { 0 } else { known.size(id) };
                stays
            });
        }
        self.collections.retain(|_, buckets| !buckets.is_empty());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keep(remembered: &mut Remembered, id: &str, partition: i32, fence: u64, size: usize) {
        remembered.keep("c", id.to_owned(), Partition(partition), Offset(fence), vec![7; size]);
    }

    #[test]
    fn what_was_kept_last_is_given_once() {
        let mut remembered = Remembered::default();
        keep(&mut remembered, "a", 0, 1, 10);
        keep(&mut remembered, "a", 0, 2, 20);
        assert_eq!(remembered.take("other", "a"), None);
        assert_eq!(remembered.take("c", "a"), Some((Offset(2), vec![7; 20])));
        assert_eq!((remembered.take("c", "a"), remembered.bytes), (None, 0));
    }

    #[test]
    fn it_is_bounded_and_forgets_what_is_not_written_any_more() {
        let mut remembered = Remembered::default();
        (0..10).for_each(|id| keep(&mut remembered, &id.to_string(), 0, 1, Remembered::MOST / 8));
        assert!(remembered.bytes <= Remembered::MOST && remembered.collections["c"].len() == 7);
        for turn in 0..Remembered::TURNS {
            remembered.begin();
            assert_eq!(remembered.collections["c"].len(), 7, "{turn}");
        }
        keep(&mut remembered, "new", 0, 1, 10);
        remembered.begin();
        assert_eq!(remembered.collections["c"].keys().collect::<Vec<_>>(), ["new"]);
        remembered.take("c", "new");
        assert_eq!(remembered.bytes, 0);
    }

    #[test]
    fn of_a_partition_that_is_assigned_anew_nothing_is_remembered() {
        let mut remembered = Remembered::default();
        keep(&mut remembered, "a", 0, 1, 10);
        keep(&mut remembered, "b", 1, 1, 10);
        remembered.forget(Partition(0));
        assert_eq!(remembered.take("c", "a"), None);
        assert!(remembered.take("c", "b").is_some());
    }
}
