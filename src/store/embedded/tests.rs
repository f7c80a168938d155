//! What the embedded store alone does; what every store does is in `tests/e2e/store/conformance.rs`.

use std::os::unix::fs::PermissionsExt;

use rusqlite::Connection;
use serde_json::json;
use tempfile::TempDir;

use super::*;
use crate::{config::AggregateConfig, measure::Measures, store::BucketKey};

fn options() -> StoreOptions {
    StoreOptions {
        topic: "events".to_owned(),
        generation: 0,
        aggregates: vec![AggregateConfig::counting("by_type", Duration::from_secs(60), vec!["type".to_owned()])],
        events: false,
        events_ttl: Duration::from_secs(3600),
        timeout: Duration::from_secs(30),
    }
}

fn open(dir: &TempDir, options: StoreOptions) -> EmbeddedStore {
    EmbeddedStore::open(&dir.path().join("store.db"), options, Handle::current()).unwrap()
}

fn delta(partition: i32, group: &str, first: u64, last: u64, count: u64) -> BucketDelta {
    let key = BucketKey { window_start: Timestamp(60_000), group: group.into() };
    let (partition, first, last) = (Partition(partition), Offset(first), Offset(last));
    BucketDelta { key, partition, aggregate: 0, first, last, measures: Measures::of_count(count).into() }
}

/// The rows of an answer, read back.
fn read(rows: Rows) -> Vec<serde_json::Value> {
    serde_json::from_slice(&[b"[", &*rows.into_written(), b"]"].concat()).unwrap()
}

async fn counts(store: &EmbeddedStore) -> Vec<(serde_json::Value, u64)> {
    let rows = store.query(Query::of(&options().aggregates[0], Timestamp(0), Timestamp::now())).await.unwrap();
    read(rows).iter().map(|row| (row["group"]["type"].clone(), row["count"].as_u64().unwrap())).collect()
}

#[tokio::test]
async fn of_a_fenced_partition_nothing_is_applied_and_the_others_are() {
    let dir = TempDir::new().unwrap();
    let store = open(&dir, options());
    store.prepare().await.unwrap();
    store.flush(&store.counted(), &[delta(0, r#"["a"]"#, 0, 9, 10)], &[]).await.unwrap();
    let flush = [delta(0, r#"["new"]"#, 3, 3, 1), delta(0, r#"["a"]"#, 4, 4, 1), delta(1, r#"["a"]"#, 0, 0, 1)];
    assert_eq!(store.flush(&store.counted(), &flush, &[]).await.unwrap().fenced, [Partition(0)]);
    assert_eq!(counts(&store).await, [(json!("a"), 11)]);
}

#[tokio::test]
async fn a_newer_format_is_refused_and_the_files_are_private() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("store.db");
    let store = open(&dir, options());
    store.prepare().await.unwrap();
    for entry in dir.path().read_dir().unwrap() {
        let entry = entry.unwrap();
        assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{:?}", entry.path());
    }
    drop(store);
    Connection::open(&path).unwrap().pragma_update(None, "user_version", 99).unwrap();
    let refused = EmbeddedStore::open(&path, options(), Handle::current());
    assert!(refused.is_err_and(|error| error.to_string().contains("format 99")));
}

#[tokio::test]
async fn a_query_that_is_given_up_ends() {
    let dir = TempDir::new().unwrap();
    let store = open(&dir, options());
    store.prepare().await.unwrap();
    store.flush(&store.counted(), &[delta(0, "[1]", 0, 0, 1)], &[]).await.unwrap();
    let query = Query::of(&options().aggregates[0], Timestamp(0), Timestamp::now());
    let (path, options) = (dir.path().join("store.db"), options());
    let cancel = Cancel::default();
    cancel.cancel();
    let versions = Versions::configured(&options, |_| None);
    let given_up = reading::query(&path, &options, &versions.load(), query, &cancel);
    assert!(matches!(given_up, Err(StoreError::Unavailable(_))), "{given_up:?}");
    // Also while a statement runs: this one has no end of its own.
    let (connection, cancel) = (Connection::open_in_memory().unwrap(), Cancel::default());
    cancel.watch(&connection);
    let endless = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT count(*) FROM n";
    let running = std::thread::spawn(move || connection.query_row(endless, [], |row| row.get::<_, i64>(0)));
    let deadline = Instant::now() + Duration::from_secs(30);
    while !running.is_finished() {
        assert!(Instant::now() < deadline, "it goes on");
        // An interruption before it runs is lost.
        cancel.cancel();
        std::thread::yield_now();
    }
    assert!(running.join().unwrap().unwrap_err().to_string().contains("interrupted"));
}

#[tokio::test]
async fn events_are_kept_once_and_removed_by_their_time_of_receipt() {
    let dir = TempDir::new().unwrap();
    let store = open(&dir, StoreOptions { events: true, events_ttl: Duration::from_secs(60), ..options() });
    store.prepare().await.unwrap();
    let event = |offset, received| ProcessedEvent {
        partition: Partition(0),
        offset: Offset(offset),
        time: Timestamp(0).to_datetime(),
        received: Timestamp(received),
        event_type: "t".to_owned(),
        client: None,
        id: None,
        attributes: Vec::new(),
        data: b"{}".to_vec(),
    };
    let now = Timestamp::now();
    let events = [event(0, now.0 - 100_000), event(1, now.0 - 10_000)];
    for _ in 0..2 {
        store.flush(&store.counted(), &[], &events).await.unwrap();
    }
    drop(store);
    // Also when they are kept no more.
    let store = open(&dir, StoreOptions { events: false, events_ttl: Duration::from_secs(60), ..options() });
    assert!(!store.run(move |database| database.expire_events(now)).await.unwrap());
    let connection = Connection::open(dir.path().join("store.db")).unwrap();
    let left: Vec<i64> = connection
        .prepare("SELECT offset FROM event")
        .unwrap()
        .query_map([], |row| row.get(0))
        .unwrap()
        .map(Result::unwrap)
        .collect();
    assert_eq!(left, [1]);
}

#[tokio::test]
async fn an_index_serves_a_query_in_the_order_of_its_windows() {
    let dir = TempDir::new().unwrap();
    let store = open(&dir, options());
    store.prepare().await.unwrap();
    let connection = Connection::open(dir.path().join("store.db")).unwrap();
    for with_state in [false, true] {
        let explain = format!("EXPLAIN QUERY PLAN {}", reading::buckets(with_state));
        let mut statement = connection.prepare(&explain).unwrap();
        let plan = statement.query_map([0, 0, 1], |row| row.get::<_, String>(3)).unwrap();
        let plan: Vec<String> = plan.map(Result::unwrap).collect();
        // No scan, and no temporary tree for a sort.
        assert_eq!(plan, ["SEARCH bucket USING PRIMARY KEY (aggregate=? AND window_start>? AND window_start<?)"]);
    }
}
