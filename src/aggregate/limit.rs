//! `max_groups`: how many groups of a window have a bucket of their own, in each partition. The records of all further ones
//! are counted in one bucket, [`OTHER`].
//!
//! **Which groups are further ones** follows from the order of the offsets: of each window and partition, the first
//! `max_groups` have buckets. So it is the same however the records were cut into flushes, and when they are counted again.
//! The store is asked which of the groups of a flush have buckets, and how many there are in a window, until all of a window
//! are known; of a flush that came to nothing what was known is forgotten.

use std::{collections::BTreeMap, hash::BuildHasher, sync::Arc};

use hashbrown::{DefaultHashBuilder, HashMap, HashSet};

use super::fold::{GroupFold, Tally, merged};
use crate::{
    config::AggregateConfig,
    position::{Partition, Timestamp},
    store::{BucketDelta, BucketKey, Counted},
};

/// In the place of each value of the group.
pub const OTHER: &str = "…other";

/// The limit of each aggregate.
#[derive(Debug, Clone)]
pub struct Limit {
    pub max_groups: usize,
    /// The group of all that are beyond it, as JSON text. Where there is one group alone it is no group's.
    pub other: Arc<str>,
}

/// By the indexes of what is counted.
pub fn limits_of(counted: &[Counted]) -> Arc<[Limit]> {
    counted.iter().map(|counted| Limit::from(&counted.aggregate)).collect()
}

impl From<&AggregateConfig> for Limit {
    fn from(aggregate: &AggregateConfig) -> Self {
        let other = match aggregate.group_by.len() {
            0 => String::new(),
            fields => serde_json::Value::from(vec![OTHER; fields]).to_string(),
        };
        Self { max_groups: aggregate.max_groups as usize, other: other.into() }
    }
}

impl Limit {
    /// There is one group alone, so that it has a bucket.
    fn is_of_one(&self) -> bool {
        self.other.is_empty()
    }
}

/// A window of a partition, of an aggregate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WindowOf {
    pub aggregate: usize,
    pub partition: Partition,
    pub window_start: Timestamp,
}

impl From<&GroupFold> for WindowOf {
    fn from(group: &GroupFold) -> Self {
        Self { aggregate: group.aggregate, partition: group.partition, window_start: group.key.window_start }
    }
}

/// The groups that windows have buckets of.
#[derive(Debug, Default)]
pub struct KnownGroups {
    windows: HashMap<WindowOf, Known>,
    /// Over all windows.
    groups: usize,
    /// Counts flushes, to tell which windows were not used for long.
    turn: u64,
    /// How often what was known of a partition was forgotten.
    forgotten: HashMap<Partition, u64>,
    hasher: DefaultHashBuilder,
}

/// Of one window. Groups are known by 64 bits of their hash: two that share them would let one more in.
#[derive(Debug, Default)]
struct Known {
    /// That have buckets.
    members: HashSet<u64>,
    /// So many have.
    buckets: usize,
    used: u64,
}

impl Known {
    /// Each group with a bucket is known.
    fn is_complete(&self) -> bool {
        self.members.len() >= self.buckets
    }
}

/// What has to be asked about a window.
#[derive(Debug, Clone)]
pub struct Question {
    pub of: WindowOf,
    pub groups: Vec<Arc<str>>,
    /// Until the partition is assigned anew.
    version: u64,
}

/// What is to be written.
#[derive(Debug, Default)]
pub struct Routed {
    pub deltas: Vec<BucketDelta>,
    /// Records that were counted in the bucket of all further groups, by partition and aggregate.
    pub others: BTreeMap<(Partition, usize), u64>,
}

impl KnownGroups {
    /// Groups that are remembered over all windows: some megabytes.
    const MOST: usize = 1 << 18;

    /// What has to be known of these groups and is not.
    pub fn questions(&self, folded: &[GroupFold], limits: &[Limit]) -> Vec<Question> {
        let mut questions: BTreeMap<WindowOf, Vec<Arc<str>>> = BTreeMap::new();
        for group in folded.iter().filter(|group| !limits[group.aggregate].is_of_one()) {
            let of = WindowOf::from(group);
            let is_known = self.windows.get(&of).is_some_and(|known| {
                known.is_complete() || known.members.contains(&self.hasher.hash_one(&*group.key.group))
            });
            if !is_known {
                questions.entry(of).or_default().push(group.key.group.clone());
            }
        }
        let version = |of: &WindowOf| self.forgotten.get(&of.partition).copied().unwrap_or_default();
        questions.into_iter().map(|(of, groups)| Question { version: version(&of), of, groups }).collect()
    }

    /// Of the groups in question these have buckets in the store, and so many have in the whole window. `false` where the
    /// partition was assigned anew since it was asked: then the answer is as old.
    pub fn learn(&mut self, question: &Question, present: impl IntoIterator<Item = bool>, buckets: usize) -> bool {
        if self.forgotten.get(&question.of.partition).copied().unwrap_or_default() != question.version {
            return false;
        }
        let known = self.windows.entry(question.of).or_default();
        let before = known.members.len();
        let members = question.groups.iter().zip(present).filter(|(_, present)| *present);
        known.members.extend(members.map(|(group, _)| self.hasher.hash_one(&**group)));
        known.buckets = buckets.max(known.members.len());
        known.used = self.turn;
        self.groups += known.members.len() - before;
        true
    }

    /// Nothing is known of this partition any more.
    pub fn forget(&mut self, partition: Partition) {
        *self.forgotten.entry(partition).or_default() += 1;
        self.windows.retain(|of, _| of.partition != partition);
        self.groups = self.windows.values().map(|known| known.members.len()).sum();
    }

    /// Decides where the records of each group are counted. There is no question left about them.
    pub fn route(&mut self, folded: Vec<GroupFold>, limits: &[Limit]) -> Routed {
        self.turn += 1;
        let mut by_window: BTreeMap<WindowOf, Vec<GroupFold>> = BTreeMap::new();
        for group in folded {
            by_window.entry(WindowOf::from(&group)).or_default().push(group);
        }
        let mut routed = Routed::default();
        for (of, groups) in by_window {
            self.route_window(of, groups, &limits[of.aggregate], &mut routed);
        }
        self.forget_the_unused();
        routed
    }

    fn route_window(&mut self, of: WindowOf, mut groups: Vec<GroupFold>, limit: &Limit, routed: &mut Routed) {
        let delta = |key, Tally { first, last, measures }| BucketDelta {
            key,
            partition: of.partition,
            aggregate: of.aggregate,
            first,
            last,
            measures: measures.into(),
        };
        if limit.is_of_one() {
            for GroupFold { key, folded, .. } in groups {
                routed.deltas.extend(folded.all().map(|tally| delta(key, tally)));
            }
            return;
        }
        let known = self.windows.entry(of).or_default();
        known.used = self.turn;
        let before = known.members.len();
        if known.buckets + groups.len() > limit.max_groups {
            // The first ones have buckets.
            groups.sort_by_key(|group| group.folded.first());
        }
        let mut others: Option<Tally> = None;
        for GroupFold { key, folded, .. } in groups {
            let hash = self.hasher.hash_one(&*key.group);
            let is_member = known.members.contains(&hash);
            if key.group != limit.other && (is_member || known.buckets < limit.max_groups) {
                if !is_member {
                    known.members.insert(hash);
                    known.buckets += 1;
                }
                routed.deltas.extend(folded.all().map(|tally| delta(key, tally)));
            } else {
                others = merged(others.take(), folded.uncounted);
            }
        }
        if let Some(tally) = others {
            *routed.others.entry((of.partition, of.aggregate)).or_default() += tally.measures.count;
            routed.deltas.push(delta(BucketKey { window_start: of.window_start, group: limit.other.clone() }, tally));
        }
        self.groups += known.members.len() - before;
    }

    /// Those that were used longest ago go, those of this flush stay.
    fn forget_the_unused(&mut self) {
        // A window takes as much as some groups.
        if self.groups + self.windows.len() <= Self::MOST {
            return;
        }
        let mut by_use: Vec<_> = self.windows.iter().map(|(of, known)| (known.used, *of)).collect();
        by_use.sort_unstable();
        for (used, of) in by_use {
            if self.groups + self.windows.len() <= Self::MOST / 2 || used == self.turn {
                break;
            }
            self.groups -= self.windows.remove(&of).map_or(0, |known| known.members.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::{aggregate::fold::PartitionFold, position::Offset, store::Fence};

    const WINDOW: Timestamp = Timestamp(0);
    const OTHERS: &str = "others";

    fn limits(max_groups: usize) -> Vec<Limit> {
        vec![Limit { max_groups, other: OTHERS.into() }]
    }

    /// A store of one window: the count and fence of each group.
    #[derive(Debug, Default, Clone, PartialEq)]
    struct Kept(BTreeMap<String, (u64, Offset)>);

    impl Kept {
        /// Whether it was written.
        fn write(&mut self, delta: &BucketDelta) -> bool {
            let (count, last) = self.0.entry(delta.key.group.to_string()).or_default();
            if *count > 0 && *last >= delta.first {
                return false;
            }
            (*count, *last) = (*count + delta.measures.count, delta.last);
            true
        }

        fn fences(&self, committed: Offset) -> Vec<Fence> {
            let all = self.0.iter().filter(|(_, (_, last))| *last >= committed);
            all.map(|(group, (_, last))| Fence {
                aggregate: 0,
                key: BucketKey { window_start: WINDOW, group: group.as_str().into() },
                last_offset: *last,
            })
            .collect()
        }

        fn own(&self) -> impl Iterator<Item = &str> {
            self.0.keys().map(String::as_str).filter(|group| *group != OTHERS)
        }
    }

    /// What is counted of these records by one that never fails.
    fn expected(records: &[u8], max_groups: usize) -> BTreeMap<String, u64> {
        let mut counts: BTreeMap<String, u64> = BTreeMap::new();
        for record in records {
            let group = format!("g{record}");
            let own = counts.keys().filter(|group| *group != OTHERS).count();
            let group = if counts.contains_key(&group) || own < max_groups { group } else { OTHERS.to_owned() };
            *counts.entry(group).or_default() += 1;
        }
        counts
    }

    proptest! {
        /// Flushes of any length, some of which are written in part, in any order, before all is counted again from a position
        /// that was committed.
        #[test]
        fn each_record_is_counted_once_and_the_first_groups_have_the_buckets(
            records in vec(0_u8..12, 1..60),
            max_groups in 1_usize..8,
            flushes in vec((1_usize..12, prop::option::of(any::<u64>())), 1..20),
        ) {
            let mut kept = Kept::default();
            let (mut committed, mut positions) = (0, vec![0]);
            let mut flushes = flushes.into_iter();
            let mut known = KnownGroups::default();
            let assign = |kept: &Kept, committed: usize| {
                let at = Offset(committed as u64);
                PartitionFold::assign(Partition(0), at, &[OTHERS.into()], kept.fences(at))
            };
            let mut fold = assign(&kept, committed);
            while committed < records.len() {
                let (length, fails) = flushes.next().unwrap_or((60, None));
                let end = (committed + length).min(records.len());
                for (offset, record) in records.iter().enumerate().take(end).skip(committed) {
                    fold.add(0, Offset(offset as u64), WINDOW, &format!("g{record}"), |measures| {
                        measures.count += 1;
                        0
                    });
                }
                fold.advance(Offset(end as u64));
                let folded = fold.begin_flush();
                for question in known.questions(&folded, &limits(max_groups)) {
                    let present: Vec<_> =
                        question.groups.iter().map(|group| kept.own().any(|own| *own == **group)).collect();
                    prop_assert!(known.learn(&question, present, kept.own().count()));
                }
                // Those that have no bucket are asked about anew each time.
                let left = known.questions(&folded, &limits(max_groups));
                let all_are_new = left.iter().flat_map(|it| &it.groups).all(|group| kept.own().all(|own| *own != **group));
                prop_assert!(all_are_new);
                let mut routed = known.route(folded, &limits(max_groups)).deltas;
                if let Some(seed) = fails {
                    // Some take effect, and nobody knows which.
                    let mut random = fastrand::Rng::with_seed(seed);
                    random.shuffle(&mut routed);
                    routed.truncate(random.usize(..=routed.len()));
                    routed.iter().for_each(|delta| assert!(kept.write(delta)));
                    known.forget(Partition(0));
                    // The next one begins where any flush before ended: not each position was committed.
                    committed = positions[random.usize(..positions.len())];
                    fold = assign(&kept, committed);
                    continue;
                }
                for delta in &routed {
                    prop_assert!(kept.write(delta), "{delta:?} {kept:?}");
                }
                fold.flushed();
                committed = end;
                positions.push(end);
            }
            let counts: BTreeMap<_, _> = kept.0.into_iter().map(|(group, (count, _))| (group, count)).collect();
            prop_assert_eq!(counts, expected(&records, max_groups));
        }
    }

    #[test]
    fn windows_that_were_not_used_for_long_are_forgotten() {
        let mut known = KnownGroups::default();
        let window = |start| WindowOf { aggregate: 0, partition: Partition(0), window_start: Timestamp(start) };
        let names: Vec<String> = (0..100_000).map(|n| n.to_string()).collect();
        let question = |start| Question {
            of: window(start),
            groups: names.iter().map(|name| name.as_str().into()).collect(),
            version: 0,
        };
        for start in 0..3 {
            known.turn = start;
            assert!(known.learn(&question(start as i64), vec![true; names.len()], names.len()));
        }
        known.route(Vec::new(), &[]);
        assert!(known.groups <= KnownGroups::MOST && !known.windows.contains_key(&window(0)));
        assert!(known.windows.contains_key(&window(2)));
        known.forget(Partition(0));
        assert!(!known.learn(&question(2), [true], 1), "the answer is of an assignment before");
        assert_eq!((known.groups, known.windows.len()), (0, 0));
    }
}
