//! What one partition's records add up to since the last flush: a state machine without I/O or clocks.
//!
//! Invariant of each bucket in the store: `count` = number of matching records with offset ≤ `last_offset`. A fold
//! therefore counts a record for a bucket only when it lies beyond that bucket's fence, and remembers the first offset
//! that it counted, so that the store can see whether another writer was there since.

use std::sync::Arc;

use hashbrown::{Equivalent, HashMap};

use crate::{
    measure::Measures,
    position::{Offset, Partition, Timestamp},
    store::{BucketKey, Fence},
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

/// Some records of one group.
#[derive(Debug, Clone, PartialEq)]
pub struct Tally {
    pub first: Offset,
    pub last: Offset,
    pub measures: Measures,
}

impl Tally {
    /// Adds others of the same bucket.
    pub fn merge(&mut self, other: Self) {
        self.first = self.first.min(other.first);
        self.last = self.last.max(other.last);
        self.measures.merge(other.measures);
    }
}

/// What was folded of one group since the last flush. Whether it has a bucket of its own, or is one of those beyond the
/// aggregate's `max_groups`, is decided when it is flushed.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Folded {
    /// Records that are counted in neither.
    pub uncounted: Option<Tally>,
    /// Records at or below the fence of the window's bucket for all further groups: they are counted there, unless this group
    /// has a bucket of its own.
    pub below: Option<Box<Tally>>,
}

impl Folded {
    /// All of it.
    pub fn all(self) -> Option<Tally> {
        merged(self.below.map(|below| *below), self.uncounted)
    }

    /// The first record's offset.
    pub fn first(&self) -> Option<Offset> {
        let below = self.below.as_ref().map(|tally| tally.first);
        below.into_iter().chain(self.uncounted.as_ref().map(|tally| tally.first)).min()
    }
}

/// Both, of the same bucket.
pub fn merged(one: Option<Tally>, other: Option<Tally>) -> Option<Tally> {
    match (one, other) {
        (Some(mut one), Some(other)) => {
            one.merge(other);
            Some(one)
        }
        (one, other) => one.or(other),
    }
}

/// What was folded into which group.
#[derive(Debug, Clone, PartialEq)]
pub struct GroupFold {
    pub partition: Partition,
    pub aggregate: usize,
    pub key: BucketKey,
    pub folded: Folded,
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
    /// By aggregate: of the windows' buckets for all further groups.
    fences_of_others: Vec<HashMap<Timestamp, Offset>>,
    /// No fence is at or beyond this.
    fences_end: Offset,
    /// By aggregate.
    buckets: Vec<HashMap<BucketKey, Folded>>,
    bytes: usize,
    /// Where the cursor stood when the flush in flight began.
    in_flight: Option<Offset>,
}

impl PartitionFold {
    /// What a touched bucket costs beside its group's text: key, tally, statement.
    const BUCKET_BYTES: usize = 232 + size_of::<Folded>();

    /// The partition was committed up to `at`; `fences` are its buckets with `last_offset >= at`. `others` has, by aggregate,
    /// the group of those beyond `max_groups`.
    pub fn assign(partition: Partition, at: Offset, others: &[Arc<str>], fences: Vec<Fence>) -> Self {
        let mut by_aggregate: Vec<HashMap<BucketKey, Offset>> = vec![HashMap::new(); others.len()];
        let mut fences_of_others: Vec<HashMap<Timestamp, Offset>> = vec![HashMap::new(); others.len()];
        let mut fences_end = at;
        for Fence { aggregate, key, last_offset } in fences {
            let Some(fences) = by_aggregate.get_mut(aggregate) else { continue };
            fences_end = fences_end.max(last_offset.next());
            if key.group == others[aggregate] {
                fences_of_others[aggregate].insert(key.window_start, last_offset);
            }
            fences.insert(key, last_offset);
        }
        Self {
            partition,
            cursor: at,
            confirmed: at,
            fences: by_aggregate,
            fences_of_others,
            fences_end,
            buckets: others.iter().map(|_| HashMap::new()).collect(),
            bytes: 0,
            in_flight: None,
        }
    }

    /// The next record to fold.
    pub fn cursor(&self) -> Offset {
        self.cursor
    }

    /// Records below it are durable.
    pub fn confirmed(&self) -> Offset {
        self.confirmed
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

    /// Adds the record at `offset` to one group, unless it is below the cursor or was added there already. Offsets
    /// ascend. `measure` adds to what was measured and returns by how many bytes that grew. Says whether it was added.
    #[inline]
    pub fn add(
        &mut self,
        aggregate: usize,
        offset: Offset,
        window_start: Timestamp,
        group: &str,
        measure: impl FnOnce(&mut Measures) -> isize,
    ) -> bool {
        let key = Borrowed { window_start, group };
        if offset < self.cursor || self.fences[aggregate].get(&key).is_some_and(|fence| offset <= *fence) {
            return false;
        }
        let is_below = self.fences_of_others[aggregate].get(&window_start).is_some_and(|fence| offset <= *fence);
        let folded = match self.buckets[aggregate].get_mut(&key) {
            Some(folded) => folded,
            None => {
                self.bytes += Self::BUCKET_BYTES + group.len();
                let key = BucketKey { window_start, group: group.into() };
                self.buckets[aggregate].entry(key).or_default()
            }
        };
        let new = || Tally { first: offset, last: offset, measures: Measures::default() };
        let tally = if is_below {
            &mut **folded.below.get_or_insert_with(|| Box::new(new()))
        } else {
            folded.uncounted.get_or_insert_with(new)
        };
        tally.last = offset;
        self.bytes = self.bytes.saturating_add_signed(measure(&mut tally.measures));
        true
    }

    /// Everything before `to` was folded.
    pub fn advance(&mut self, to: Offset) {
        self.cursor = self.cursor.max(to);
        if self.fences_end <= self.cursor {
            self.fences.iter_mut().for_each(|fences| *fences = HashMap::new());
            self.fences_of_others.iter_mut().for_each(|fences| *fences = HashMap::new());
        }
    }

    /// Something is not known to be durable, and no flush is in flight.
    pub fn is_dirty(&self) -> bool {
        self.in_flight.is_none() && self.cursor > self.confirmed
    }

    /// Hands out what was folded, to be made durable; further records go into the next fold. Nothing may be begun
    /// before [`Self::flushed`]: a bucket's statements must take effect in order.
    pub fn begin_flush(&mut self) -> Vec<GroupFold> {
        debug_assert!(self.in_flight.is_none(), "one flush at a time");
        self.in_flight = Some(self.cursor);
        let partition = self.partition;
        let mut groups = Vec::with_capacity(self.touched());
        for (aggregate, buckets) in self.buckets.iter_mut().enumerate() {
            groups.extend(buckets.drain().map(|(key, folded)| GroupFold { partition, aggregate, key, folded }));
        }
        self.bytes = 0;
        groups
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

    const OTHERS: &str = "others";

    fn fold_at(at: u64, fences: &[(&str, u64)]) -> PartitionFold {
        let fences = fences
            .iter()
            .map(|(group, last)| Fence {
                aggregate: 0,
                key: BucketKey { window_start: WINDOW, group: (*group).into() },
                last_offset: Offset(*last),
            })
            .collect();
        PartitionFold::assign(Partition(0), Offset(at), &[OTHERS.into()], fences)
    }

    fn count(measures: &mut Measures) -> isize {
        measures.count += 1;
        0
    }

    fn fold(fold: &mut PartitionFold, from: u64, groups: &[&str]) -> Vec<bool> {
        let mut add = |(offset, group): (u64, &&str)| fold.add(0, Offset(offset), WINDOW, group, count);
        let added = (from..).zip(groups).map(&mut add).collect();
        fold.advance(Offset(from + groups.len() as u64));
        added
    }

    fn flush(fold: &mut PartitionFold) -> Vec<(String, u64, u64, u64)> {
        let tallies = fold.begin_flush().into_iter().filter_map(|group| {
            let tally = group.folded.uncounted?;
            Some((group.key.group.to_string(), tally.first.0, tally.last.0, tally.measures.count))
        });
        let mut deltas: Vec<_> = tallies.collect();
        deltas.sort();
        deltas
    }

    #[test]
    fn what_the_bucket_of_all_further_groups_may_hold_is_kept_apart() {
        let mut f = fold_at(10, &[("a", 12), (OTHERS, 13)]);
        let added = fold(&mut f, 10, &["b", "a", "a", "b", "a", "b", OTHERS]);
        assert_eq!(added, [true, false, false, true, true, true, true]);
        let mut groups = f.begin_flush();
        groups.sort_by(|one, other| one.key.cmp(&other.key));
        let ends = |tally: &Tally| (tally.first.0, tally.last.0, tally.measures.count);
        let shown: Vec<_> = groups
            .iter()
            .map(|it| (&*it.key.group, it.folded.below.as_deref().map(ends), it.folded.uncounted.as_ref().map(ends)))
            .collect();
        assert_eq!(
            shown,
            [
                ("a", None, Some((14, 14, 1))),
                ("b", Some((10, 13, 2)), Some((15, 15, 1))),
                (OTHERS, None, Some((16, 16, 1)))
            ]
        );
        assert_eq!(groups[1].folded.first(), Some(Offset(10)));
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
