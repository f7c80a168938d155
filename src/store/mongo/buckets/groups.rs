//! Which groups of a window have buckets, and how many have.

use std::collections::{HashMap, HashSet};

use futures::TryStreamExt;
use mongodb::bson::{DateTime, Document, doc};

use super::{Buckets, Failure, StoreDatabase};
use crate::{
    position::{Partition, Timestamp},
    store::{BucketKey, GroupsFound, GroupsOf},
};

/// Documents that are asked for by their ids with one command.
const IDS_AT_ONCE: usize = 1000;

pub async fn find(store: &StoreDatabase, asked: &[GroupsOf]) -> Result<Vec<GroupsFound>, Failure> {
    let ids: Vec<Vec<String>> = asked.iter().map(|of| ids(store, of)).collect();
    let mut present: HashSet<String> = HashSet::new();
    for aggregate in 0..store.versions.len() {
        let of_aggregate = asked.iter().zip(&ids).filter(|(of, _)| of.aggregate == aggregate);
        let wanted: Vec<&String> = of_aggregate.flat_map(|(_, ids)| ids).collect();
        let collection = store.majority(&Buckets::of(store, aggregate).collection());
        for some in wanted.chunks(IDS_AT_ONCE) {
            let find = collection.find(doc! { "_id": { "$in": some.to_vec() } }).projection(doc! { "_id": 1 });
            let found: Vec<Document> = find.await?.try_collect().await?;
            present.extend(found.iter().filter_map(|found| found.get_str("_id").ok()).map(str::to_owned));
        }
    }
    let of = |ids: &Vec<String>| ids.iter().map(|id| present.contains(id)).collect::<Vec<_>>();
    let mut found: Vec<GroupsFound> = ids.iter().map(|ids| GroupsFound { present: of(ids), buckets: 0 }).collect();
    count(store, asked, &mut found).await?;
    Ok(found)
}

fn ids(store: &StoreDatabase, of: &GroupsOf) -> Vec<String> {
    let buckets = Buckets::of(store, of.aggregate);
    let key = |group: &std::sync::Arc<str>| BucketKey { window_start: of.window_start, group: group.clone() };
    of.groups.iter().map(|group| buckets.id_of(of.partition, &key(group))).collect()
}

/// How many buckets there are in the windows with a group that has none: only these ask.
async fn count(store: &StoreDatabase, asked: &[GroupsOf], found: &mut [GroupsFound]) -> Result<(), Failure> {
    let mut by_partition: HashMap<(usize, Partition), Vec<usize>> = HashMap::new();
    for (index, (of, found)) in asked.iter().zip(&mut *found).enumerate() {
        if found.present.iter().all(|present| *present) {
            // There are more, or not.
            found.buckets = of.limit;
        } else {
            by_partition.entry((of.aggregate, of.partition)).or_default().push(index);
        }
    }
    for ((aggregate, partition), indexes) in by_partition {
        let buckets = Buckets::of(store, aggregate);
        let windows: Vec<Timestamp> = indexes.iter().map(|index| asked[*index].window_start).collect();
        let other = |index: &usize| {
            let of = &asked[*index];
            buckets.id_of(partition, &BucketKey { window_start: of.window_start, group: of.other.clone() })
        };
        let others: Vec<String> = indexes.iter().map(other).collect();
        let pipeline = [
            doc! { "$match": buckets.windows_filter(partition, &windows) },
            doc! { "$match": { "_id": { "$nin": others } } },
            doc! { "$group": { "_id": "$window_start", "buckets": { "$sum": 1 } } },
        ];
        let counts = store.majority(&buckets.collection()).aggregate(pipeline).max_time(store.options.timeout).await?;
        let counts: Vec<Document> = counts.try_collect().await?;
        let of_window = |window: Timestamp| {
            let is =
                |count: &&Document| count.get_datetime("_id").is_ok_and(|it| *it == DateTime::from_millis(window.0));
            let buckets = counts.iter().find(is).and_then(|count| count.get_i32("buckets").ok());
            buckets.and_then(|buckets| usize::try_from(buckets).ok()).unwrap_or_default()
        };
        for index in indexes {
            found[index].buckets = of_window(asked[index].window_start);
        }
    }
    Ok(())
}
