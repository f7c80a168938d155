use std::os::unix::fs::PermissionsExt;

use chrono::Utc;
use rusqlite::Connection;
use serde_json::json;
use tempfile::TempDir;

use super::*;
use crate::{config::AggregateConfig, store::BucketKey};

fn options() -> StoreOptions {
    StoreOptions {
        topic: "events".to_owned(),
        generation: 0,
        aggregates: vec![AggregateConfig {
            name: "by_type".to_owned(),
            window: Duration::from_secs(60),
            group_by: vec!["type".to_owned()],
        }],
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
    BucketDelta { key, partition, aggregate: 0, first, last, count }
}

fn identity(name: &str) -> TopicIdentity {
    TopicIdentity(name.into())
}

/// The rows of an answer, read back.
fn read(rows: Rows) -> Vec<serde_json::Value> {
    serde_json::from_slice(&[b"[", &*rows.into_json(), b"]"].concat()).unwrap()
}

async fn counts(store: &EmbeddedStore) -> Vec<(serde_json::Value, u64)> {
    let (from, to) = (Timestamp(0).to_datetime(), Utc::now());
    let rows = store.query(Query { aggregate: "by_type".to_owned(), from, to, limit: 10 }).await.unwrap();
    read(rows).iter().map(|row| (row["group"]["type"].clone(), row["count"].as_u64().unwrap())).collect()
}

#[tokio::test]
async fn a_flush_that_is_repeated_is_fenced_and_changes_nothing() {
    let dir = TempDir::new().unwrap();
    let store = open(&dir, options());
    store.prepare().await.unwrap();
    let flush = [delta(0, r#"["a"]"#, 0, 4, 5), delta(0, r#"["b"]"#, 5, 5, 1)];
    assert_eq!(store.flush(&flush, &[]).await.unwrap(), Flushed::default());
    assert_eq!(store.flush(&flush, &[]).await.unwrap().fenced, [Partition(0)]);
    assert_eq!(counts(&store).await, [(json!("a"), 5), (json!("b"), 1)]);
    assert_eq!(store.flush(&[delta(0, r#"["a"]"#, 6, 6, 1)], &[]).await.unwrap(), Flushed::default());
    assert_eq!(counts(&store).await, [(json!("a"), 6), (json!("b"), 1)]);
}

#[tokio::test]
async fn of_a_fenced_partition_nothing_is_applied_and_the_others_are() {
    let dir = TempDir::new().unwrap();
    let store = open(&dir, options());
    store.prepare().await.unwrap();
    store.flush(&[delta(0, r#"["a"]"#, 0, 9, 10)], &[]).await.unwrap();
    let flush = [delta(0, r#"["new"]"#, 3, 3, 1), delta(0, r#"["a"]"#, 4, 4, 1), delta(1, r#"["a"]"#, 0, 0, 1)];
    assert_eq!(store.flush(&flush, &[]).await.unwrap().fenced, [Partition(0)]);
    assert_eq!(counts(&store).await, [(json!("a"), 11)]);
}

#[tokio::test]
async fn fences_are_the_buckets_at_or_beyond_the_committed_offset() {
    let dir = TempDir::new().unwrap();
    let store = open(&dir, options());
    store.prepare().await.unwrap();
    let flush = [delta(0, r#"["a"]"#, 0, 4, 5), delta(0, r#"["b"]"#, 5, 5, 1), delta(1, r#"["b"]"#, 7, 9, 1)];
    store.flush(&flush, &[]).await.unwrap();
    let fences = store.fences(Partition(0), Offset(5), &identity("x")).await.unwrap();
    assert_eq!(fences, [Fence { aggregate: 0, key: flush[1].key.clone(), last_offset: Offset(5) }]);
}

#[tokio::test]
async fn buckets_of_another_topic_of_the_same_name_are_refused() {
    let dir = TempDir::new().unwrap();
    let store = open(&dir, options());
    store.prepare().await.unwrap();
    store.fences(Partition(0), Offset(0), &identity("x")).await.unwrap();
    let refused = store.fences(Partition(0), Offset(0), &identity("y")).await;
    assert!(matches!(refused, Err(StoreError::Refused(_))), "{refused:?}");
}

#[tokio::test]
async fn a_changed_definition_is_refused() {
    let dir = TempDir::new().unwrap();
    open(&dir, options()).prepare().await.unwrap();
    let mut changed = options();
    changed.aggregates[0].window = Duration::from_secs(1);
    let refused = open(&dir, changed).prepare().await;
    assert!(matches!(&refused, Err(StoreError::Refused(why)) if why.contains("new name")), "{refused:?}");
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
async fn rows_are_sorted_by_value_and_cut_at_the_limit() {
    let dir = TempDir::new().unwrap();
    let store = open(&dir, options());
    store.prepare().await.unwrap();
    let flush = [r#"["a!"]"#, r#"["a"]"#, "[10]", "[9]", "[null]"].map(|group| delta(0, group, 0, 0, 1));
    store.flush(&flush, &[]).await.unwrap();
    let (from, to) = (Timestamp(60_000).to_datetime(), Timestamp(60_001).to_datetime());
    let query = |limit, from| Query { aggregate: "by_type".to_owned(), from, to, limit };
    let rows = store.query(query(4, from)).await.unwrap();
    let truncated = rows.truncated();
    let groups: Vec<_> = read(rows).iter().map(|row| row["group"]["type"].clone()).collect();
    assert_eq!((groups, truncated), (vec![json!(null), json!(9), json!(10), json!("a")], true));
    let later = from + chrono::TimeDelta::microseconds(1);
    assert!(read(store.query(query(10, later)).await.unwrap()).is_empty());
}

#[tokio::test]
async fn a_query_that_is_given_up_ends() {
    let dir = TempDir::new().unwrap();
    let store = open(&dir, options());
    store.prepare().await.unwrap();
    store.flush(&[delta(0, "[1]", 0, 0, 1)], &[]).await.unwrap();
    let (from, to) = (Timestamp(0).to_datetime(), Utc::now());
    let query = Query { aggregate: "by_type".to_owned(), from, to, limit: 1_000_000 };
    let (path, options) = (dir.path().join("store.db"), options());
    let cancel = Cancel::default();
    cancel.cancel();
    let given_up = database::query(&path, &options, &query, &cancel);
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
        json: b"{}".to_vec(),
    };
    let now = Timestamp::now();
    let events = [event(0, now.0 - 100_000), event(1, now.0 - 10_000)];
    for _ in 0..2 {
        store.flush(&[], &events).await.unwrap();
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
