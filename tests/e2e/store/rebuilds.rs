//! What each store knows of rebuilds, behind its seam: whatever is cut off in between, either the old buckets answer or the
//! new ones.

use std::sync::Arc;

use ingestd::internals::{
    config::AggregateConfig,
    measure::{Measures, Plan},
    position::{Offset, Partition, Timestamp},
    store::{
        BucketDelta, Flushed, Query, Store, StoreError, StoreOptions, Version,
        rebuild::{NewRebuild, Progress, Range, Reached, Rebuild, RebuildId, Swapped},
    },
};
use serde_json::{Value, json};

use super::conformance::{Backend, delta, identity, options, read};

const NOW: Timestamp = Timestamp(1_795_939_200_000);
/// When what was swapped out may be removed.
const LATER: Timestamp = Timestamp(NOW.0 + 61_000);

fn defined(more: &str) -> StoreOptions {
    let text = format!("name = \"by_type\"\nwindow = \"1m\"\n{more}");
    StoreOptions { aggregates: vec![toml::from_str(&text).unwrap()], ..options() }
}

/// By fewer fields.
fn changed() -> StoreOptions {
    defined("group_by = [\"type\"]")
}

fn wanted(range: Range) -> NewRebuild {
    NewRebuild { aggregate: "by_type".to_owned(), range, partitions: vec![Partition(1)], now: NOW }
}

fn at(aggregate: usize, window: i64, delta: BucketDelta) -> BucketDelta {
    let mut delta = BucketDelta { aggregate, ..delta };
    delta.key.window_start = Timestamp(window);
    delta
}

/// Window, group and count of all rows.
async fn rows(store: &Arc<dyn Store>, aggregate: &AggregateConfig) -> Vec<(Value, Value, Value)> {
    let all = Query::of(aggregate, Timestamp(0), Timestamp(600_000));
    let rows = read(store.query(all).await.unwrap());
    rows.iter().map(|row| (row["window_start"].clone(), row["group"].clone(), row["count"].clone())).collect()
}

/// What the old definition has, of two groups in partition 0, and nothing else.
async fn counted_before(backend: &impl Backend) -> Arc<dyn Store> {
    let store = backend.open(options()).await;
    store.prepare().await.unwrap();
    store.fences(Partition(0), Offset(0), &identity("t")).await.unwrap();
    let flush = [delta(0, "[\"a\",1]", 0, 9, 10), delta(0, "[\"a\",2]", 3, 8, 3)];
    assert_eq!(store.flush(&store.counted(), &flush, &[]).await.unwrap(), Flushed::default());
    store
}

async fn is_live(store: &Arc<dyn Store>, rebuild: &Rebuild) {
    for partition in [Partition(0), Partition(1)] {
        let reached = Reached { progress: Progress::Live(Offset(0)), records: 7 };
        assert!(store.rebuilds().reached(&rebuild.id, partition, reached).await.unwrap());
    }
}

pub async fn the_old_buckets_answer_until_the_swap_which_is_one_write(backend: &impl Backend) {
    drop(counted_before(backend).await);
    let store = backend.open(changed()).await;
    assert!(matches!(store.prepare().await, Err(StoreError::Refused(_))));
    assert_eq!(store.rebuilds().find("by_type").await.unwrap(), None);
    let rebuild = store.rebuilds().begin(&wanted(Range::default())).await.unwrap();
    let start = Reached { progress: Progress::History(Offset(0)), records: 0 };
    // What was counted, and what the archive has.
    let expected = [(Partition(0), start), (Partition(1), start)];
    assert_eq!(rebuild.partitions.clone().into_iter().collect::<Vec<_>>(), expected);
    assert_eq!((rebuild.started, rebuild.finished, rebuild.range), (NOW, None, Range::default()));
    let later = NewRebuild { now: LATER, ..wanted(Range::default()) };
    assert_eq!(store.rebuilds().begin(&later).await.unwrap(), rebuild, "it is under way");
    let counted = store.prepare().await.unwrap().counted;
    assert_eq!(counted.iter().map(|it| it.version).collect::<Vec<_>>(), [Version::Active, Version::Shadow]);
    assert_eq!(counted[0].aggregate.group_by, options().aggregates[0].group_by);
    assert_eq!(counted[1].aggregate, changed().aggregates[0]);
    let bounds = ingestd::internals::event::TimeBounds { max_past: 1, max_future: 1 };
    let history = store.history(Partition(0), Offset(10), bounds).await.unwrap();
    assert_eq!(history.progress, [Progress::Live(Offset(0)), Progress::History(Offset(0))]);
    // Both are counted, each behind its own fences.
    let flush = [at(0, 60_000, delta(0, "[\"b\",1]", 10, 10, 1)), at(1, 60_000, delta(0, "[\"a\"]", 0, 9, 13))];
    assert_eq!(store.flush(&store.counted(), &flush, &[]).await.unwrap(), Flushed::default());
    let fences = store.fences(Partition(0), Offset(0), &identity("t")).await.unwrap();
    assert_eq!(fences.iter().filter(|fence| fence.aggregate == 1).count(), 1);
    let reached = Reached { progress: Progress::Catching(Offset(10)), records: 13 };
    assert!(store.rebuilds().reached(&rebuild.id, Partition(0), reached).await.unwrap());
    // Each open is a start after a kill.
    drop(store);
    let store = backend.open(changed()).await;
    store.prepare().await.unwrap();
    let history = store.history(Partition(0), Offset(10), bounds).await.unwrap();
    assert_eq!(history.progress, [Progress::Live(Offset(0)), Progress::Catching(Offset(10))]);
    assert_eq!(swap(&store, &rebuild.id, NOW).await, Swapped::NotYet);
    is_live(&store, &rebuild).await;
    let group = |a: &str, b: u64| json!({ "type": a, "$dollar.dot": b });
    let minute = json!("1970-01-01T00:01:00Z");
    let before = [(group("a", 1), 10), (group("a", 2), 3), (group("b", 1), 1)];
    let before = before.map(|(group, count)| (minute.clone(), group, json!(count)));
    let mut found = rows(&store, &options().aggregates[0]).await;
    found.sort_by_key(|(_, group, _)| group.to_string());
    assert_eq!(found.len(), 3);
    assert!(before.iter().all(|row| found.contains(row)), "{found:?}");
    assert_eq!(swap(&store, &rebuild.id, LATER).await, Swapped::Yes);
    assert_eq!(swap(&store, &rebuild.id, LATER).await, Swapped::Over);
    drop(store);
    let store = backend.open(changed()).await;
    let counted = store.prepare().await.unwrap().counted;
    assert_eq!(counted.iter().map(|it| it.version).collect::<Vec<_>>(), [Version::Active]);
    let after = [(minute, json!({ "type": "a" }), json!(13))];
    assert_eq!(rows(&store, &changed().aggregates[0]).await, after);
    // Nothing that is said of it changes anything now.
    let reached = Reached { progress: Progress::History(Offset(0)), records: 0 };
    assert!(!store.rebuilds().reached(&rebuild.id, Partition(0), reached).await.unwrap());
    assert!(!store.rebuilds().cancel("by_type", LATER).await.unwrap());
    assert_eq!(store.rebuilds().find("by_type").await.unwrap().unwrap().finished, Some(LATER));
    while store.rebuilds().tidy(Timestamp(LATER.0 + 61_000)).await.unwrap() {}
    assert_eq!(backend.buckets().await, 1, "the old ones are removed");
    assert_eq!(rows(&store, &changed().aggregates[0]).await, after);
    // The fence holds in its new place.
    let late = [delta(0, "[\"a\"]", 9, 9, 1)];
    assert_eq!(store.flush(&store.counted(), &late, &[]).await.unwrap().fenced, [Partition(0)]);
}

pub async fn windows_that_were_not_rebuilt_keep_their_buckets_where_they_can(backend: &impl Backend) {
    let old = defined("group_by = [\"type\"]");
    let earlier = backend.open(StoreOptions { generation: 1, ..old.clone() }).await;
    earlier.prepare().await.unwrap();
    earlier.flush(&earlier.counted(), &[at(0, 180_000, delta(0, "[\"e\"]", 0, 4, 5))], &[]).await.unwrap();
    drop(earlier);
    let store = backend.open(old).await;
    store.prepare().await.unwrap();
    store.fences(Partition(0), Offset(0), &identity("t")).await.unwrap();
    let windows = [60_000, 120_000, 180_000].map(|window| at(0, window, delta(0, "[\"a\"]", 0, 9, 10)));
    store.flush(&store.counted(), &windows, &[]).await.unwrap();
    drop(store);
    let measured = defined("group_by = [\"type\"]\nmeasures = [{ sum = \"n\" }]");
    let store = backend.open(measured.clone()).await;
    let range = Range { from: Some(Timestamp(120_000)), to: Some(Timestamp(180_000)) };
    let rebuild = store.rebuilds().begin(&wanted(range)).await.unwrap();
    assert_eq!(rebuild.range, range);
    assert_eq!(store.prepare().await.unwrap().counted[1].range, range);
    let plan = Plan::new(&measured.aggregates[0]);
    let seven = |first, last| {
        let mut measures = Measures::default();
        measures.add(&plan, |_| Some("7"));
        BucketDelta { measures: measures.into(), ..delta(0, "[\"a\"]", first, last, 0) }
    };
    store.flush(&store.counted(), &[at(1, 120_000, seven(0, 9))], &[]).await.unwrap();
    is_live(&store, &rebuild).await;
    assert_eq!(swap(&store, &rebuild.id, NOW).await, Swapped::Yes);
    store.prepare().await.unwrap();
    // A kept bucket goes on behind its fence.
    assert_eq!(store.flush(&store.counted(), &[at(0, 60_000, seven(9, 9))], &[]).await.unwrap().fenced, [Partition(0)]);
    assert_eq!(store.flush(&store.counted(), &[at(0, 60_000, seven(10, 10))], &[]).await.unwrap(), Flushed::default());
    let all = Query::of(&measured.aggregates[0], Timestamp(0), Timestamp(600_000));
    let rows = read(store.query(all).await.unwrap());
    let rows: Vec<_> = rows
        .iter()
        .map(|row| (row["window_start"].as_str().unwrap(), row["count"].clone(), row["measures"]["sum(n)"].clone()))
        .collect();
    let (one, two, three) = ("1970-01-01T00:01:00Z", "1970-01-01T00:02:00Z", "1970-01-01T00:03:00Z");
    let expected = [
        (one, json!(11), json!(7)),
        (two, json!(1), json!(7)),
        (three, json!(10), json!(null)),
        (three, json!(5), json!(null)),
    ];
    assert_eq!(rows, expected);
}

pub async fn a_rebuild_that_is_cancelled_leaves_nothing(backend: &impl Backend) {
    drop(counted_before(backend).await);
    let store = backend.open(changed()).await;
    assert!(!store.rebuilds().cancel("by_type", NOW).await.unwrap());
    let rebuild = store.rebuilds().begin(&wanted(Range::default())).await.unwrap();
    store.prepare().await.unwrap();
    store.flush(&store.counted(), &[at(1, 60_000, delta(0, "[\"a\"]", 0, 9, 13))], &[]).await.unwrap();
    assert!(store.rebuilds().cancel("by_type", NOW).await.unwrap());
    assert_eq!(store.rebuilds().find("by_type").await.unwrap(), None);
    assert_eq!(swap(&store, &rebuild.id, NOW).await, Swapped::Over);
    while store.rebuilds().tidy(LATER).await.unwrap() {}
    assert_eq!(backend.buckets().await, 2, "the old ones");
    assert!(matches!(store.prepare().await, Err(StoreError::Refused(_))));
    // One that begins now has nothing of it, and is another one.
    let again = store.rebuilds().begin(&NewRebuild { now: LATER, ..wanted(Range::default()) }).await.unwrap();
    assert_ne!(again.id, rebuild.id);
    let reached = Reached { progress: Progress::Live(Offset(0)), records: 0 };
    assert!(!store.rebuilds().reached(&rebuild.id, Partition(0), reached).await.unwrap());
    store.prepare().await.unwrap();
    let fences = store.fences(Partition(0), Offset(0), &identity("t")).await.unwrap();
    assert!(fences.iter().all(|fence| fence.aggregate == 0), "{fences:?}");
    drop(store);
    // The old definition is restored, and changed to a third one: the second one's rebuild is over.
    let store = backend.open(options()).await;
    assert_eq!(store.prepare().await.unwrap().counted.len(), 1);
    drop(store);
    let store = backend.open(defined("group_by = []")).await;
    assert!(matches!(store.prepare().await, Err(StoreError::Refused(_))));
    let third = store.rebuilds().begin(&wanted(Range::default())).await.unwrap();
    assert_ne!(third.id, again.id);
    assert!(!store.rebuilds().reached(&again.id, Partition(0), reached).await.unwrap());
    assert_eq!(store.prepare().await.unwrap().counted[1].aggregate.group_by, [""; 0]);
}

pub async fn a_partition_that_is_counted_without_the_shadow_is_put_back(backend: &impl Backend) {
    drop(counted_before(backend).await);
    let store = backend.open(changed()).await;
    let rebuild = store.rebuilds().begin(&wanted(Range::default())).await.unwrap();
    store.prepare().await.unwrap();
    is_live(&store, &rebuild).await;
    store.rebuilds().leave_out(Partition(0), Offset(10)).await.unwrap();
    assert!(store.rebuilds().find("by_type").await.unwrap().unwrap().is_complete(), "it counts the shadow");
    drop(store);
    let without = backend.open(options()).await;
    without.prepare().await.unwrap();
    without.rebuilds().leave_out(Partition(0), Offset(10)).await.unwrap();
    without.rebuilds().leave_out(Partition(0), Offset(20)).await.unwrap();
    let found = without.rebuilds().find("by_type").await.unwrap().unwrap();
    let progress: Vec<_> = found.partitions.values().map(|reached| reached.progress).collect();
    assert_eq!(progress, [Progress::History(Offset(10)), Progress::Live(Offset(0))]);
    assert_eq!(swap(&without, &rebuild.id, NOW).await, Swapped::NotYet);
}

/// As the aggregator does it.
async fn swap(store: &Arc<dyn Store>, id: &RebuildId, now: Timestamp) -> Swapped {
    let Some(noted) = store.rebuilds().find(&id.aggregate).await.unwrap() else { return Swapped::Over };
    let mut from = Some(Timestamp(i64::MIN));
    while let Some(at) = from {
        from = store.rebuilds().keep(id, at).await.unwrap();
        assert!(from.is_none_or(|from| from > at), "it goes on");
    }
    store.rebuilds().swap(id, &noted, now).await.unwrap()
}
