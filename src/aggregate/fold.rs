//! What one partition's records add up to since the last flush: a state machine without I/O or clocks.
//!
//! Invariant of each bucket in the store: `count` = number of matching records with offset ≤ `last_offset`. A fold
//! therefore counts a record for a bucket only when it lies beyond that bucket's fence, and remembers the first offset
//! that it counted, so that the store can see whether another writer was there since.

use hashbrown::{Equivalent, HashMap};

use crate::{
    position::{Offset, Partition, Timestamp},
    store::{BucketDelta, BucketKey, Fence, Measures},
};

/// What a batch means to a fold, by the cursor rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coverage {
    /// All of it was seen before.
    Stale,
    /// Records are missing in between: the partition must be delivered from `cursor` on.
    Beyond { cursor: Offset },
    /// To be folded, from the cursor on.
    Continues,
}

#[derive(Debug)]
struct Tally {
    first: Offset,
    last: Offset,
    measures: Measures,
}

/// A bucket's key, borrowed, so that a hit allocates nothing. Its hash must be that of [`BucketKey`]: same fields, same
/// order.
#[derive(Hash)]
struct Borrowed<'a> {
    window_start: Timestamp,
    group: &'a str,
}

impl Equivalent<BucketKey> for Borrowed<'_> {
    fn equivalent(&self, key: &BucketKey) -> bool {
        self.window_start == key.window_start && *self.group == *key.group
    }
}

/// The fold of one assignment of one partition. When the partition is fenced or taken away it is dropped as a whole.
#[derive(Debug)]
pub struct PartitionFold {
    partition: Partition,
    /// Records below it were folded.
    cursor: Offset,
    /// Records below it are durable.
    confirmed: Offset,
    /// By aggregate. Emptied when the cursor has passed them all.
    fences: Vec<HashMap<BucketKey, Offset>>,
    /// No fence is at or beyond this.
    fences_end: Offset,
    /// By aggregate.
    buckets: Vec<HashMap<BucketKey, Tally>>,
    bytes: usize,
    /// Where the cursor stood when the flush in flight began.
    in_flight: Option<Offset>,
}

impl PartitionFold {
    /// What a touched bucket costs beside its group's text: key, tally, statement.
    const BUCKET_BYTES: usize = 248 + size_of::<Measures>();

    /// The partition was committed up to `at`; `fences` are its buckets with `last_offset >= at`.
    pub fn assign(partition: Partition, at: Offset, aggregates: usize, fences: Vec<Fence>) -> Self {
        let mut by_aggregate: Vec<HashMap<BucketKey, Offset>> = vec![HashMap::new(); aggregates];
        let mut fences_end = at;
        for fence in fences {
            if let Some(fences) = by_aggregate.get_mut(fence.aggregate) {
                fences_end = fences_end.max(fence.last_offset.next());
                fences.insert(fence.key, fence.last_offset);
            }
        }
        Self {
            partition,
            cursor: at,
            confirmed: at,
            fences: by_aggregate,
            fences_end,
            buckets: (0..aggregates).map(|_| HashMap::new()).collect(),
            bytes: 0,
            in_flight: None,
        }
    }

    /// The next record to fold.
    pub fn cursor(&self) -> Offset {
        self.cursor
    }

    /// Buckets touched since the last flush began.
    pub fn touched(&self) -> usize {
        self.buckets.iter().map(HashMap::len).sum()
    }

    /// About the memory that these buckets take.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn coverage(&self, from: Offset, to: Offset) -> Coverage {
        if from > self.cursor {
            Coverage::Beyond { cursor: self.cursor }
        } else if to <= self.cursor {
            Coverage::Stale
        } else {
            Coverage::Continues
        }
    }

    /// Adds the record at `offset` to one bucket, unless it is below the cursor or was added there already. Offsets
    /// ascend. Says whether it was added.
    #[inline]
    pub fn add(
        &mut self,
        aggregate: usize,
        offset: Offset,
        window_start: Timestamp,
        group: &str,
        measures: Measures,
    ) -> bool {
        let key = Borrowed { window_start, group };
        if offset < self.cursor || self.fences[aggregate].get(&key).is_some_and(|fence| offset <= *fence) {
            return false;
        }
        if let Some(tally) = self.buckets[aggregate].get_mut(&key) {
            tally.last = offset;
            tally.measures.merge(measures);
        } else {
            let key = BucketKey { window_start, group: group.into() };
            self.buckets[aggregate].insert(key, Tally { first: offset, last: offset, measures });
            self.bytes += Self::BUCKET_BYTES + group.len();
        }
        true
    }

    /// Everything before `to` was folded.
    pub fn advance(&mut self, to: Offset) {
        self.cursor = self.cursor.max(to);
        if self.fences_end <= self.cursor {
            self.fences.iter_mut().for_each(|fences| *fences = HashMap::new());
        }
    }

    /// Something is not known to be durable, and no flush is in flight.
    pub fn is_dirty(&self) -> bool {
        self.in_flight.is_none() && self.cursor > self.confirmed
    }

    /// Hands out what was folded, to be made durable; further records go into the next fold. Nothing may be begun
    /// before [`Self::flushed`]: a bucket's statements must take effect in order.
    pub fn begin_flush(&mut self) -> Vec<BucketDelta> {
        debug_assert!(self.in_flight.is_none(), "one flush at a time");
        self.in_flight = Some(self.cursor);
        let partition = self.partition;
        let mut deltas = Vec::with_capacity(self.touched());
        for (aggregate, buckets) in self.buckets.iter_mut().enumerate() {
            deltas.extend(buckets.drain().map(|(key, tally)| BucketDelta {
                key,
                partition,
                aggregate,
                first: tally.first,
                last: tally.last,
                measures: tally.measures,
            }));
        }
        self.bytes = 0;
        deltas
    }

    /// The flush in flight is durable; everything before the position returned may be committed.
    pub fn flushed(&mut self) -> Offset {
        if let Some(position) = self.in_flight.take() {
            self.confirmed = position;
        }
        self.confirmed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Timestamp = Timestamp(0);

    fn fold_at(at: u64, fences: &[(&str, u64)]) -> PartitionFold {
        let fences = fences
            .iter()
            .map(|(group, last)| Fence {
                aggregate: 0,
                key: BucketKey { window_start: WINDOW, group: (*group).into() },
                last_offset: Offset(*last),
            })
            .collect();
        PartitionFold::assign(Partition(0), Offset(at), 1, fences)
    }

    fn fold(fold: &mut PartitionFold, from: u64, groups: &[&str]) -> Vec<bool> {
        let one = Measures { count: 1 };
        let added =
            (from..).zip(groups).map(|(offset, group)| fold.add(0, Offset(offset), WINDOW, group, one)).collect();
        fold.advance(Offset(from + groups.len() as u64));
        added
    }

    fn flush(fold: &mut PartitionFold) -> Vec<(String, u64, u64, u64)> {
        let deltas = fold.begin_flush().into_iter();
        let mut deltas: Vec<_> =
            deltas.map(|d| (d.key.group.to_string(), d.first.0, d.last.0, d.measures.count)).collect();
        deltas.sort();
        deltas
    }

    #[test]
    fn a_record_at_or_below_its_buckets_fence_is_skipped() {
        let mut f = fold_at(10, &[("a", 12), ("b", 10)]);
        assert_eq!(fold(&mut f, 10, &["b", "a", "a", "a", "c", "b"]), [false, false, false, true, true, true]);
        let expected = [("a".to_owned(), 13, 13, 1), ("b".to_owned(), 15, 15, 1), ("c".to_owned(), 14, 14, 1)];
        assert_eq!(flush(&mut f), expected);
    }

    #[test]
    fn a_batch_beyond_the_cursor_is_refused_and_one_below_is_stale() {
        let f = fold_at(10, &[]);
        assert_eq!(f.coverage(Offset(11), Offset(12)), Coverage::Beyond { cursor: Offset(10) });
        assert_eq!(f.coverage(Offset(5), Offset(10)), Coverage::Stale);
        assert_eq!(f.coverage(Offset(5), Offset(11)), Coverage::Continues);
    }

    #[test]
    fn records_below_the_cursor_are_skipped() {
        let mut f = fold_at(10, &[]);
        assert_eq!(fold(&mut f, 8, &["a", "a", "a"]), [false, false, true]);
        assert_eq!(flush(&mut f), [("a".to_owned(), 10, 10, 1)]);
    }

    #[test]
    fn what_is_folded_during_a_flush_waits_for_the_next_one() {
        let mut f = fold_at(0, &[]);
        fold(&mut f, 0, &["a", "a"]);
        assert_eq!(flush(&mut f), [("a".to_owned(), 0, 1, 2)]);
        fold(&mut f, 2, &["a"]);
        assert!(!f.is_dirty(), "a flush is in flight");
        assert_eq!(f.flushed(), Offset(2), "the record at 2 is not durable yet");
        assert!(f.is_dirty());
        assert_eq!(flush(&mut f), [("a".to_owned(), 2, 2, 1)]);
        assert_eq!(f.flushed(), Offset(3));
        assert!(!f.is_dirty());
    }

    #[test]
    fn offsets_without_records_are_confirmed_too() {
        let mut f = fold_at(0, &[]);
        f.advance(Offset(5));
        assert!(f.is_dirty());
        assert_eq!(flush(&mut f), []);
        assert_eq!(f.flushed(), Offset(5));
    }
}
