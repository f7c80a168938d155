//! What each store does, behind its seam: one suite, run on every backend.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use ingestd::internals::{
    config::AggregateConfig,
    event::TimeBounds,
    measure::{Measures, Plan},
    position::{Offset, Partition, Timestamp, TopicIdentity},
    store::{
        BucketDelta, BucketKey, EventsQuery, Fence, Flushed, GroupsFound, GroupsOf, ProcessedEvent, Query, Removal,
        Rows, Store, StoreError, StoreOptions,
        query::{Condition, Order, Ordered, Step},
    },
};
use serde_json::{Value, json};

/// A place for one test's data, and the stores that are opened on it.
pub trait Backend {
    /// A store on this place, not prepared. What another one has written is there.
    async fn open(&self, options: StoreOptions) -> Arc<dyn Store>;

    /// The number of processed events that are kept.
    async fn events(&self) -> u64;

    /// The number of buckets of the one aggregate, of all its versions.
    async fn buckets(&self) -> u64;

    /// The count and what else was measured, of all buckets of the one aggregate.
    async fn measured(&self) -> Vec<(u64, Vec<u8>)>;
    /// Makes an aggregate's definition one of a release that knew only windows and fields.
    async fn forget_what_is_new(&self, aggregate: &str);
}

pub fn options() -> StoreOptions {
    StoreOptions {
        topic: "events".to_owned(),
        generation: 0,
        aggregates: vec![AggregateConfig::counting(
            "by_type",
            Duration::from_secs(60),
            vec!["type".to_owned(), "$dollar.dot".to_owned()],
        )],
        events: false,
        events_ttl: Duration::from_secs(3600),
        timeout: Duration::from_secs(30),
    }
}

pub fn delta(partition: i32, group: &str, first: u64, last: u64, count: u64) -> BucketDelta {
    let key = BucketKey { window_start: Timestamp(60_000), group: group.into() };
    let (partition, first, last) = (Partition(partition), Offset(first), Offset(last));
    BucketDelta { key, partition, aggregate: 0, first, last, measures: Measures::of_count(count).into() }
}

pub fn event(offset: u64, client: &str, json: &str) -> ProcessedEvent {
    ProcessedEvent {
        partition: Partition(0),
        offset: Offset(offset),
        time: Timestamp(0).to_datetime(),
        received: Timestamp::now(),
        event_type: "t".to_owned(),
        client: Some(client.to_owned()),
        id: Some("i".to_owned()),
        attributes: Vec::new(),
        data: json.as_bytes().to_vec(),
    }
}

pub fn identity(name: &str) -> TopicIdentity {
    TopicIdentity(name.into())
}

/// All of the window that all deltas are of.
fn query() -> Query {
    Query::of(&options().aggregates[0], Timestamp(60_000), Timestamp(60_001))
}

/// Its rows.
pub async fn rows(store: &Arc<dyn Store>, limit: usize) -> Rows {
    store.query(Query { limit, ..query() }).await.unwrap()
}

/// The rows of an answer, read back.
pub fn read(rows: Rows) -> Vec<Value> {
    serde_json::from_slice(&[b"[", &*rows.into_written(), b"]"].concat()).unwrap()
}

/// The groups' values in the order of `group_by`, with their counts.
pub async fn counts(store: &Arc<dyn Store>) -> Vec<(Value, u64)> {
    let rows = read(rows(store, 100).await).into_iter();
    let values = |row: &Value| json!([row["group"]["type"], row["group"]["$dollar.dot"]]);
    rows.map(|row| (values(&row), row["count"].as_u64().expect("a count"))).collect()
}

pub async fn prepared(backend: &impl Backend, options: StoreOptions) -> Arc<dyn Store> {
    let store = backend.open(options).await;
    assert_eq!(store.prepare().await.unwrap().remarks, [""; 0]);
    store
}

pub async fn a_flush_that_is_repeated_is_fenced_and_changes_nothing(backend: &impl Backend) {
    let store = prepared(backend, options()).await;
    // More than one statement of a server takes.
    let flush: Vec<_> = (0..2500).map(|n| delta(n % 2, &format!("[{n},null]"), 0, 9, 10)).collect();
    assert_eq!(store.flush(&store.counted(), &flush, &[]).await.unwrap(), Flushed::default());
    assert_eq!(store.flush(&store.counted(), &flush, &[]).await.unwrap().fenced, [Partition(0), Partition(1)]);
    assert_eq!(
        store.flush(&store.counted(), &[delta(0, "[0,null]", 10, 10, 1)], &[]).await.unwrap(),
        Flushed::default()
    );
    let rows = rows(&store, 10_000).await;
    assert_eq!(rows.next(), None);
    let rows = read(rows);
    assert_eq!((rows.len(), rows.iter().filter_map(|row| row["count"].as_u64()).sum::<u64>()), (2500, 25_001));
}

/// What a fence keeps out is not lost: what was folded again behind the fences completes the counts.
pub async fn a_fenced_partition_is_folded_again_behind_its_fences_and_the_others_go_on(backend: &impl Backend) {
    let store = prepared(backend, options()).await;
    store.flush(&store.counted(), &[delta(0, r#"["a",1]"#, 0, 9, 10)], &[]).await.unwrap();
    // A worker that did not know of these ten: record 3 is of another group, and 4 of the one that was counted.
    let late = [delta(0, r#"["new",1]"#, 3, 3, 1), delta(0, r#"["a",1]"#, 4, 4, 1), delta(1, r#"["a",1]"#, 0, 0, 1)];
    assert_eq!(store.flush(&store.counted(), &late, &[]).await.unwrap().fenced, [Partition(0)]);
    let fences = store.fences(Partition(0), Offset(0), &identity("x")).await.unwrap();
    let fences: BTreeMap<_, _> = fences.into_iter().map(|fence| (fence.key.group, fence.last_offset)).collect();
    let again: Vec<_> =
        late[..2].iter().filter(|delta| fences.get(&delta.key.group) < Some(&delta.first)).cloned().collect();
    assert_eq!(store.flush(&store.counted(), &again, &[]).await.unwrap(), Flushed::default());
    assert_eq!(counts(&store).await, [(json!(["a", 1]), 11), (json!(["new", 1]), 1)]);
}

pub async fn of_two_writers_at_once_one_is_fenced(backend: &impl Backend) {
    let one = prepared(backend, options()).await;
    let other = backend.open(options()).await;
    for round in 0..20 {
        let flush = [delta(0, r#"["a",null]"#, round, round, 1)];
        let lists = (one.counted(), other.counted());
        let (one, other) = tokio::join!(one.flush(&lists.0, &flush, &[]), other.flush(&lists.1, &flush, &[]));
        assert_eq!(one.unwrap().fenced.len() + other.unwrap().fenced.len(), 1, "round {round}");
    }
    assert_eq!(counts(&one).await, [(json!(["a", null]), 20)]);
}

pub async fn fences_are_the_buckets_at_or_beyond_the_committed_offset_with_the_keys_that_were_written(
    backend: &impl Backend,
) {
    let store = prepared(backend, StoreOptions { generation: 3, ..options() }).await;
    let long = format!("[\"{}\",{{\"a\": 1}}]", "x".repeat(2000));
    let groups = ["[\"a/\\\"b\\\"\",1.50]", "[123456789012345678901,true]", &long];
    let flush = groups.map(|group| delta(0, group, 5, 5, 1));
    store.flush(&store.counted(), &flush, &[]).await.unwrap();
    store.flush(&store.counted(), &[delta(0, "[1,1]", 0, 4, 1), delta(1, "[1,1]", 9, 9, 1)], &[]).await.unwrap();
    let mut fences = store.fences(Partition(0), Offset(5), &identity("x")).await.unwrap();
    fences.sort_by(|a, b| a.key.cmp(&b.key));
    let mut expected = flush.map(|delta| Fence { aggregate: 0, key: delta.key, last_offset: Offset(5) });
    expected.sort_by(|a, b| a.key.cmp(&b.key));
    assert_eq!(fences, expected);
}

pub async fn buckets_of_another_topic_of_the_same_name_are_refused(backend: &impl Backend) {
    let store = prepared(backend, options()).await;
    store.flush(&store.counted(), &[delta(0, "[1,1]", 0, 4, 1)], &[]).await.unwrap();
    for _ in 0..2 {
        assert_eq!(store.fences(Partition(0), Offset(0), &identity("x")).await.unwrap().len(), 1);
    }
    let refused = store.fences(Partition(0), Offset(0), &identity("y")).await;
    assert!(matches!(refused, Err(StoreError::Refused(_))), "{refused:?}");
    // A new generation is counted for itself.
    let next = backend.open(StoreOptions { generation: 1, ..options() }).await;
    assert_eq!(next.fences(Partition(0), Offset(0), &identity("y")).await.unwrap(), []);
}

pub async fn rows_are_summed_over_partitions_sorted_and_cut_at_the_limit(backend: &impl Backend) {
    let store = prepared(backend, options()).await;
    let next = backend.open(StoreOptions { generation: 1, ..options() }).await;
    let groups = ["[\"a!\",1]", "[\"a\",{\"x\": 1}]", "[10,1]", "[9,1]", "[null,1]"];
    store.flush(&store.counted(), &groups.map(|group| delta(0, group, 0, 0, 1)), &[]).await.unwrap();
    store.flush(&store.counted(), &[delta(1, "[9,1]", 0, 4, 5)], &[]).await.unwrap();
    next.flush(&next.counted(), &[delta(1, "[9,1]", 0, 6, 7)], &[]).await.unwrap();
    let expected = [
        (json!([null, 1]), 1),
        (json!([9, 1]), 13),
        (json!([10, 1]), 1),
        (json!(["a", "{\"x\": 1}"]), 1),
        (json!(["a!", 1]), 1),
    ];
    assert_eq!(counts(&store).await, expected);
    let first = rows(&store, 4).await;
    let next = first.next().cloned();
    assert_eq!((read(first).len(), next.is_some()), (4, true));
    let last = store.query(Query { after: next, ..query() }).await.unwrap();
    assert_eq!(last.next(), None);
    assert_eq!(read(last)[0]["group"]["type"], "a!");
    // Both ends of the range are exact.
    for (from, to) in [(60_001, 120_000), (0, 60_000)] {
        let beside = Query { from: Timestamp(from), to: Timestamp(to), ..query() };
        assert!(read(store.query(beside).await.unwrap()).is_empty());
    }
}

/// An aggregate with each kind of measure, by type and another field.
fn measuring() -> StoreOptions {
    let text = "name = \"measured\"\nwindow = \"1m\"\ngroup_by = [\"type\", \"f\"]\n\
                measures = [{ sum = \"n\" }, { min = \"n\" }, { max = \"n\" }, { avg = \"n\" }, { unique = \"u\" }, { top = \"u\", k = 2 }]";
    let aggregate: AggregateConfig = toml::from_str(text).unwrap();
    StoreOptions { aggregates: vec![aggregate], ..options() }
}

/// What was folded of records with these numbers, all of one user.
fn measured(partition: i32, window: i64, group: &str, first: u64, user: &str, numbers: &[&str]) -> BucketDelta {
    let plan = &Plan::new(&measuring().aggregates[0]);
    let mut measures = Measures::default();
    for number in numbers {
        measures.add(plan, |field| Some(if plan.fields()[field] == "n" { number } else { user }));
    }
    let key = BucketKey { window_start: Timestamp(window * 60_000), group: group.into() };
    let last = Offset(first + numbers.len() as u64 - 1);
    BucketDelta {
        key,
        partition: Partition(partition),
        aggregate: 0,
        first: Offset(first),
        last,
        measures: measures.into(),
    }
}

pub async fn what_is_measured_is_merged_over_flushes_partitions_windows_and_groups(backend: &impl Backend) {
    let store = prepared(backend, measuring()).await;
    let flushes = [
        vec![measured(0, 1, r#"["a",1]"#, 0, "\"x\"", &["0.1", "1e40", "-5"])],
        vec![
            measured(0, 1, r#"["a",1]"#, 3, "\"y\"", &["999999999999999.25"]),
            measured(1, 1, r#"["a",1]"#, 0, "\"y\"", &["0.2", "0.2"]),
            measured(1, 1, r#"["a",2]"#, 2, "\"x\"", &["7"]),
            measured(1, 2, r#"["b",1]"#, 3, "\"z\"", &["\"no number\""]),
        ],
    ];
    for flush in &flushes {
        assert_eq!(store.flush(&store.counted(), flush, &[]).await.unwrap(), Flushed::default());
        let fenced: BTreeSet<_> = flush.iter().map(|delta| delta.partition).collect();
        assert_eq!(
            store.flush(&store.counted(), flush, &[]).await.unwrap().fenced,
            Vec::from_iter(fenced),
            "a second time"
        );
    }
    let whole = Query::of(&measuring().aggregates[0], Timestamp(0), Timestamp(600_000));
    let ask = async |query: Query| read(store.query(query).await.unwrap());
    let frequent = |value: &str, count: u64| json!({ "value": value, "count": count });
    let row = |minute: u8, group: Value, count: u64, numbers: [&str; 4], unique: u64, top: Value, inexact: u64| {
        let [sum, min, max, avg] = numbers.map(|text| serde_json::from_str::<Value>(text).unwrap());
        json!({
            "window_start": format!("1970-01-01T00:{minute:02}:00Z"), "group": group, "count": count, "inexact": inexact,
            "measures": { "sum(n)": sum, "min(n)": min, "max(n)": max, "avg(n)": avg, "unique(u)": unique, "top(u)": top },
        })
    };
    let top = json!([frequent("x", 3), frequent("y", 3)]);
    let nothing = ["null"; 4];
    let b = row(2, json!({ "type": "b", "f": 1 }), 1, nothing, 1, json!([frequent("z", 1)]), 0);
    let sevens = ["7"; 4];
    let numbers = ["999999999999994.75", "-5", "999999999999999.25", "199999999999998.95"];
    assert_eq!(
        ask(whole.clone()).await,
        [
            row(1, json!({ "type": "a", "f": 1 }), 6, numbers, 2, top, 1),
            row(1, json!({ "type": "a", "f": 2 }), 1, sevens, 1, json!([frequent("x", 1)]), 0),
            b.clone(),
        ]
    );
    // Both as one, and the largest first.
    let by_type = Query {
        group_by: vec![0],
        step: Step::Whole,
        order: Order::By { number: Ordered::Measure(0), descending: true },
        ..whole.clone()
    };
    let numbers = ["1000000000000001.75", "-5", "999999999999999.25", "166666666666666.95833333333333333"];
    let top = json!([frequent("x", 4), frequent("y", 3)]);
    let a = row(0, json!({ "type": "a" }), 7, numbers, 2, top, 1);
    let mut b = b;
    (b["window_start"], b["group"]) = ("1970-01-01T00:00:00Z".into(), json!({ "type": "b" }));
    assert_eq!(ask(by_type.clone()).await, [a.clone(), b]);
    let condition = Condition { field: 1, values: vec!["2".to_owned(), "x".to_owned()] };
    let of_two = ask(Query { conditions: vec![condition], ..by_type }).await;
    assert_eq!((of_two.len(), &of_two[0]["count"]), (1, &json!(1)));
}

pub async fn the_groups_of_a_window_are_those_of_its_partition_and_generation(backend: &impl Backend) {
    let store = prepared(backend, measuring()).await;
    let next = backend.open(StoreOptions { generation: 1, ..measuring() }).await;
    let long = format!("[\"{}\",1]", "x".repeat(2000));
    let flush = [
        measured(0, 1, r#"["a",1.50]"#, 0, "1", &["1"]),
        measured(0, 1, &long, 1, "1", &["1"]),
        measured(0, 2, r#"["b",1]"#, 2, "1", &["1"]),
        measured(1, 1, r#"["c",1]"#, 0, "1", &["1"]),
    ];
    store.flush(&store.counted(), &flush, &[]).await.unwrap();
    next.flush(&next.counted(), &[measured(0, 1, r#"["d",1]"#, 0, "1", &["1"])], &[]).await.unwrap();
    let of = |partition, window: i64, groups: &[&str], other: &str| GroupsOf {
        aggregate: 0,
        partition: Partition(partition),
        window_start: Timestamp(window * 60_000),
        groups: groups.iter().map(|group| (*group).into()).collect(),
        other: other.into(),
        limit: 9,
    };
    let asked = [
        of(0, 1, &[&long, "[\"d\",1]", r#"["a",1.50]"#, "[\"a\",1.5]"], "[]"),
        of(1, 1, &["[\"none\",1]"], "[]"),
        of(0, 2, &["[\"none\",1]"], "[\"b\",1]"),
        of(0, 3, &["[\"none\",1]"], "[]"),
    ];
    let found = |present: &[bool], buckets| GroupsFound { present: present.to_vec(), buckets };
    let expected = [found(&[true, false, true, false], 2), found(&[false], 1), found(&[false], 0), found(&[false], 0)];
    assert_eq!(store.groups(&store.counted(), &asked).await.unwrap(), expected);
    assert_eq!(store.groups(&store.counted(), &[of(0, 1, &[&long], "[]")]).await.unwrap()[0].present, [true]);
}

pub async fn a_definition_of_before_that_has_a_name_with_a_slash_goes_on_as_it_was(backend: &impl Backend) {
    let aggregate = |text: &str| -> StoreOptions {
        let aggregate: AggregateConfig = toml::from_str(text).unwrap();
        StoreOptions { aggregates: vec![aggregate], ..options() }
    };
    const DAY: &str = "window = \"1d\"\ngroup_by = [\"/geo\"]\n";
    let named = |name: &str, more: &str| aggregate(&format!("name = \"{name}\"\n{DAY}{more}"));
    // One that this release began has pointers.
    let store = prepared(backend, named("new", "")).await;
    assert!(!store.prepare().await.unwrap().counted[0].names_only);
    backend.forget_what_is_new("new").await;
    let again = backend.open(named("new", "")).await;
    assert!(again.prepare().await.unwrap().counted[0].names_only);
    // What decides how it is counted may not change; names in answers, retention and the order of measures may.
    prepared(backend, named("changed", "measures = [{ sum = \"n\" }, { max = \"n\" }]")).await;
    let same = "retention = \"30d\"\nmeasures = [\"count\", { max = \"n\", as = \"largest\" }, { sum = \"n\" }]";
    prepared(backend, named("changed", same)).await;
    for other in [
        "",
        "measures = [{ sum = \"n\" }]",
        "measures = [{ sum = \"n\" }, { max = \"n\" }]\nfilter = { type = \"a\" }",
        "measures = [{ sum = \"n\" }, { max = \"n\" }]\ntime_zone = \"Europe/Berlin\"",
        "measures = [{ sum = \"n\" }, { max = \"n\" }]\nmax_groups = 5",
    ] {
        let refused = backend.open(named("changed", other)).await.prepare().await;
        assert!(
            matches!(&refused, Err(StoreError::Refused(why)) if why.contains("\"changed\"")),
            "{other}: {refused:?}"
        );
    }
}

pub async fn an_aggregate_that_is_not_configured_is_refused(backend: &impl Backend) {
    let store = prepared(backend, options()).await;
    let refused = store.query(Query { aggregate: "by_tpye".to_owned(), ..query() }).await;
    assert!(matches!(&refused, Err(StoreError::Refused(why)) if why.contains("by_tpye")), "it is not refused by name");
}

pub async fn a_changed_definition_is_refused(backend: &impl Backend) {
    prepared(backend, options()).await;
    let (mut shorter, mut coarser) = (options(), options());
    shorter.aggregates[0].window = Duration::from_secs(1);
    coarser.aggregates[0].group_by.pop();
    for changed in [shorter, coarser] {
        let refused = backend.open(changed).await.prepare().await;
        assert!(matches!(&refused, Err(StoreError::Refused(why)) if why.contains("new name")), "{refused:?}");
    }
    prepared(backend, options()).await;
}

pub async fn bounds_of_times_hold_from_the_offset_on_that_nobody_has_counted(backend: &impl Backend) {
    let store = prepared(backend, options()).await;
    store.fences(Partition(0), Offset(0), &identity("x")).await.unwrap();
    let (day, hour) = (TimeBounds { max_past: 9, max_future: 24 }, TimeBounds { max_past: 9, max_future: 1 });
    let bounds = |from, bounds| {
        let store = store.clone();
        async move { store.history(Partition(0), Offset(from), bounds).await.unwrap().bounds }
    };
    // What a release before has counted knew no bound of the past.
    let first = (Offset(0), TimeBounds { max_past: i64::MAX, max_future: 24 });
    assert_eq!(bounds(17, day).await, [first, (Offset(17), day)]);
    assert_eq!(bounds(20, day).await, [first, (Offset(17), day)]);
    assert_eq!(bounds(30, hour).await, [first, (Offset(17), day), (Offset(30), hour)]);
    assert_eq!(bounds(30, hour).await, [first, (Offset(17), day), (Offset(30), hour)]);
    let again = backend.open(options()).await.history(Partition(0), Offset(40), day).await.unwrap();
    assert_eq!(again.bounds, [first, (Offset(17), day), (Offset(30), hour), (Offset(40), day)]);
    // A partition has its own.
    store.fences(Partition(1), Offset(0), &identity("x")).await.unwrap();
    let other = store.history(Partition(1), Offset(0), hour).await.unwrap();
    assert_eq!((other.bounds, other.removed), (vec![(Offset(0), hour)], vec![None]));
}

pub async fn windows_that_were_removed_are_remembered_and_fences_that_may_be_asked_for_stay(backend: &impl Backend) {
    let earlier = prepared(backend, options()).await;
    earlier.flush(&earlier.counted(), &[delta(0, "[0,null]", 0, 99, 1)], &[]).await.unwrap();
    let neighbour = backend.open(StoreOptions { topic: "neighbour".to_owned(), ..options() }).await;
    neighbour.flush(&neighbour.counted(), &[delta(0, "[\"neighbour\",null]", 0, 99, 1)], &[]).await.unwrap();
    let store = backend.open(StoreOptions { generation: 1, ..options() }).await;
    store.fences(Partition(0), Offset(0), &identity("x")).await.unwrap();
    let later = |group: &str, first, last| {
        let mut delta = delta(0, group, first, last, 1);
        delta.key.window_start = Timestamp(120_000);
        delta
    };
    let many = (0..1500).map(|n| delta(0, &format!("[{n},null]"), 0, 9, 1));
    let flush: Vec<_> = many.chain([delta(0, "[\"late\",null]", 10, 10, 1), later("[1,null]", 0, 5)]).collect();
    store.flush(&store.counted(), &flush, &[]).await.unwrap();
    store.flush(&store.counted(), &[delta(1, "[\"other\",null]", 0, 3, 1)], &[]).await.unwrap();
    let removal = Removal { aggregate: 0, partition: Partition(0), before: Timestamp(120_000), committed: Offset(10) };
    assert!(store.remove(&removal).await.unwrap(), "there are more than are removed at once");
    while store.remove(&removal).await.unwrap() {}
    // What an earlier generation counted has gone as well; another partition's buckets are its own worker's, and another topic's
    // its own daemon's.
    let kept = ["late", "neighbour", "other"].map(|group| (json!([group, null]), 1));
    assert_eq!(counts(&store).await, kept);
    let fences = store.fences(Partition(0), Offset(0), &identity("x")).await.unwrap();
    assert_eq!(fences.len(), 2, "{fences:?}");
    let present = TimeBounds { max_past: 1, max_future: 1 };
    let removed = |partition| {
        let store = store.clone();
        async move { store.history(Partition(partition), Offset(0), present).await.unwrap().removed }
    };
    assert_eq!(removed(0).await, [Some(Timestamp(120_000))]);
    store.remove(&Removal { before: Timestamp(60_000), ..removal }).await.unwrap();
    assert_eq!(removed(0).await, [Some(Timestamp(120_000))], "it never goes back");
    store.fences(Partition(1), Offset(0), &identity("x")).await.unwrap();
    assert_eq!(removed(1).await, [None]);
}

pub async fn events_are_kept_once_whatever_they_hold(backend: &impl Backend) {
    let store = prepared(backend, StoreOptions { events: true, ..options() }).await;
    let deep = format!("{{\"a\":{}{}}}", "[".repeat(89), "]".repeat(89));
    let wide = format!("{{\"a\":[{}1]}}", "1,".repeat(500_000));
    let jsons = [
        "{\"n\":1,\"f\":0.1}",
        "{\"a.b\":{\"$set\":1},\"\":2}",
        "{\"$x\":1}",
        &deep,
        &wide,
        "{\"a\":1,\"a\":2}",
        "{\"big\":123456789012345678901}",
    ];
    let events: Vec<_> = (0..).zip(jsons).map(|(offset, json)| event(offset, "c", json)).collect();
    for _ in 0..2 {
        assert_eq!(store.flush(&store.counted(), &[], &events).await.unwrap(), Flushed::default());
    }
    assert_eq!(backend.events().await, 7);
}

/// Each combination of filters, in pages of each size, finds what looking at all finds.
pub async fn events_are_found_by_what_they_are_and_paged_newest_first(backend: &impl Backend) {
    let store = prepared(backend, StoreOptions { events: true, ..options() }).await;
    let kept: Vec<ProcessedEvent> = (0..60)
        .map(|offset| ProcessedEvent {
            partition: Partition(offset % 2),
            // Many share a millisecond; offsets of two lengths.
            time: Timestamp(i64::from(offset / 7)).to_datetime(),
            event_type: format!("t{}", offset % 3),
            client: (offset % 5 != 0).then(|| format!("c{}", offset % 4)),
            id: (offset % 6 != 0).then(|| format!("i{}", offset % 20)),
            attributes: if offset % 9 == 0 { vec![("source".to_owned(), "/s".to_owned())] } else { Vec::new() },
            ..event(offset as u64, "", &format!("{{\"n\": {offset}}}"))
        })
        .collect();
    for flush in kept.chunks(13) {
        store.flush(&store.counted(), &[], flush).await.unwrap();
    }
    let word = |word: &str| Some(word.to_owned());
    let at = |millis| Some(Timestamp(millis).to_datetime());
    for combination in 0..32_u32 {
        let has = |bit: u32| combination & (1 << bit) != 0;
        for limit in [1, 4, 1000] {
            let mut query = EventsQuery {
                id: has(0).then(|| word("i7")).flatten(),
                client: has(1).then(|| word("c3")).flatten(),
                event_type: has(2).then(|| word("t1")).flatten(),
                from: has(3).then(|| at(1)).flatten(),
                to: has(4).then(|| at(6)).flatten(),
                limit,
                after: None,
            };
            let selected = |event: &&ProcessedEvent| {
                query.id.as_ref().is_none_or(|id| event.id.as_ref() == Some(id))
                    && query.client.as_ref().is_none_or(|client| event.client.as_ref() == Some(client))
                    && query.event_type.as_ref().is_none_or(|event_type| event.event_type == *event_type)
                    && query.from.is_none_or(|from| event.time >= from)
                    && query.to.is_none_or(|to| event.time < to)
            };
            let expected: Vec<(i64, u64)> =
                kept.iter().filter(selected).map(|event| (event.time.timestamp_millis(), event.offset.0)).collect();
            let mut found = Vec::new();
            loop {
                let page = store.events(query.clone()).await.unwrap();
                let next = page.next().cloned();
                let rows: Vec<Value> = serde_json::from_slice(&[b"[", &*page.into_json(), b"]"].concat()).unwrap();
                assert!(rows.len() == limit || next.is_none(), "{query:?}");
                found.extend(rows);
                let Some(next) = next else { break };
                query.after = Some(next);
            }
            let place = |row: &Value| {
                let time: chrono::DateTime<chrono::Utc> = row["time"].as_str().unwrap().parse().unwrap();
                (time.timestamp_millis(), row["offset"].as_u64().unwrap())
            };
            let mut places: Vec<_> = found.iter().map(place).collect();
            assert!(places.is_sorted_by(|one, other| one.0 >= other.0), "{query:?}: {places:?}");
            // Of one partition, those of a millisecond are in the order of the log, too.
            for partition in 0..2 {
                let of = found.iter().filter(|row| row["partition"] == partition).map(place);
                assert!(of.is_sorted_by(|one, other| one > other), "{query:?}");
            }
            places.sort_unstable();
            assert_eq!(places, expected, "{query:?}");
            for row in &found {
                let offset = row["offset"].as_u64().unwrap();
                let event = &kept[offset as usize];
                let own = json!({
                    "id": event.id, "type": event.event_type, "client": event.client, "topic": "events", "generation": 0,
                    "partition": event.partition, "event": { "n": offset },
                });
                assert!(own.as_object().unwrap().iter().all(|(name, value)| &row[name] == value), "{row} is not {own}");
                assert_eq!(row.get("attributes").is_some(), !event.attributes.is_empty(), "{row}");
            }
        }
    }
    // What is no object, and what BSON cannot hold, comes back as it was sent.
    let odd = ["[1,{}]", "no JSON", "", "\"text\"", "{\"big\":123456789012345678901}", "{\"a\":1,\"a\":2}"];
    let events = (100..)
        .zip(odd)
        .map(|(offset, data)| ProcessedEvent { event_type: "odd".to_owned(), ..event(offset, "c", data) });
    let mut events: Vec<_> = events.collect();
    events.push(ProcessedEvent { event_type: "odd".to_owned(), data: vec![0xff, 0], ..event(106, "c", "") });
    store.flush(&store.counted(), &[], &events).await.unwrap();
    let query = EventsQuery { event_type: word("odd"), limit: 10, ..EventsQuery::default() };
    let json = String::from_utf8(store.events(query).await.unwrap().into_json()).unwrap();
    for part in [
        r#""offset":106,"raw_base64":"/wA="}"#,
        r#""offset":105,"event":{"a":1,"a":2}}"#,
        r#""offset":104,"event":{"big":123456789012345678901}}"#,
        r#""offset":103,"event":"text"}"#,
        r#""offset":102,"raw":""}"#,
        r#""offset":101,"raw":"no JSON"}"#,
        r#""offset":100,"event":[1,{}]}"#,
    ] {
        assert!(json.contains(part), "{part} is not in {json}");
    }
}

pub async fn a_rehearsal_leaves_nothing(backend: &impl Backend) {
    let store = prepared(backend, StoreOptions { events: true, ..options() }).await;
    store.rehearse().await.unwrap();
    assert_eq!((counts(&store).await, backend.events().await), (vec![], 0));
    assert_eq!(store.fences(Partition(0), Offset(0), &identity("x")).await.unwrap(), []);
}
