//! What MongoDB alone does, on a real server. Each test has a database of its own.

use std::{sync::Arc, thread, time::Duration};

use futures::TryStreamExt;
use ingestd::internals::{
    config::StoreConfig,
    position::{Offset, Partition, Timestamp},
    store::{Cursor, EventsQuery, Flushed, ProcessedEvent, Store, StoreError, StoreOptions, mongo::MongoStore},
};
use mongodb::{
    Client, Database,
    bson::{Document, doc},
};
use serde_json::json;
use tokio::runtime::Handle;

use super::conformance::{Backend, counts, delta, event, identity, options};
use crate::support::services::{Exclusive, services};

/// The turn on the server, and its URL.
fn server() -> Option<(Exclusive, String)> {
    // Their first call starts the services and waits on a runtime of its own, which this test's thread cannot.
    thread::scope(|scope| scope.spawn(|| drop(services())).join()).expect("the services start");
    let services = services()?;
    let url = format!("mongodb://{}/?directConnection=true", services.mongodb.address());
    Some((services, url))
}

/// An empty database, and the URL.
async fn fresh(url: &str, name: &str) -> Database {
    let database = Client::with_uri_str(url).await.unwrap().database(&format!("ingestd_test_{name}"));
    database.drop().await.unwrap();
    database
}

async fn open(url: &str, database: &Database, options: StoreOptions) -> Arc<dyn Store> {
    let store = MongoStore::new(&config(url, database.name()), options, Handle::current()).unwrap();
    assert_eq!(store.prepare().await.unwrap().remarks, [""; 0]);
    Arc::new(store)
}

fn config(url: &str, database: &str) -> StoreConfig {
    StoreConfig { url: url.to_owned(), database: database.to_owned(), ..StoreConfig::default() }
}

/// A database, for the suite that every store passes.
pub struct Place {
    _turn: Exclusive,
    url: String,
    database: Database,
}

impl Place {
    pub async fn new(test: &str) -> Option<Self> {
        let (turn, url) = server()?;
        // MongoDB's names have 63 bytes at most.
        let database = fresh(&url, &test[..test.len().min(45)]).await;
        Some(Self { _turn: turn, url, database })
    }
}

impl Backend for Place {
    async fn open(&self, options: StoreOptions) -> Arc<dyn Store> {
        Arc::new(MongoStore::new(&config(&self.url, self.database.name()), options, Handle::current()).unwrap())
    }

    async fn events(&self) -> u64 {
        self.database.collection::<Document>("events").count_documents(doc! {}).await.unwrap()
    }

    async fn buckets(&self) -> u64 {
        let mut buckets = 0;
        // Not the view that shows a rebuilt aggregate under its name.
        let names = self.database.list_collection_names().filter(doc! { "type": "collection" });
        for name in names.await.unwrap() {
            if name.starts_with("aggregate_") {
                buckets += self.database.collection::<Document>(&name).count_documents(doc! {}).await.unwrap();
            }
        }
        buckets
    }

    async fn measured(&self) -> Vec<(u64, Vec<u8>)> {
        let buckets = self.database.collection::<Document>("aggregate_by_type").find(doc! {}).await.unwrap();
        let buckets: Vec<Document> = buckets.try_collect().await.unwrap();
        let count = |bucket: &Document| bucket.get_i64("count").unwrap().unsigned_abs();
        buckets.iter().map(|bucket| (count(bucket), bucket.get_binary_generic("state").unwrap().clone())).collect()
    }

    async fn forget_what_is_new(&self, aggregate: &str) {
        let definitions = self.database.collection::<Document>("ingestd_aggregates");
        let update = doc! { "$unset": { "definition": "" } };
        let updated = definitions.update_one(doc! { "_id": aggregate }, update).await.unwrap();
        assert_eq!(updated.modified_count, 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_whose_key_no_writer_of_ours_has_taken_blocks_its_partition_and_no_other() {
    let Some((_turn, url)) = server() else { return };
    let database = fresh(&url, "blocked").await;
    let store = open(&url, &database, options()).await;
    let buckets = database.collection::<Document>("aggregate_by_type");
    store.flush(&store.counted(), &[delta(0, "[\"a\",null]", 0, 4, 1)], &[]).await.unwrap();
    // As another program may leave it.
    let edited = doc! { "$set": { "last_offset": "4" } };
    buckets.update_one(doc! { "_id": "events/0/60000/[\"a\",null]" }, edited).await.unwrap();
    buckets.insert_one(doc! { "_id": "events/1/60000/[\"a\",null]" }).await.unwrap();
    let flush: Vec<_> = (0..4).map(|partition| delta(partition, "[\"a\",null]", 5, 9, 1)).collect();
    let flushed = store.flush(&store.counted(), &flush[..3], &[]).await.unwrap();
    let blocked: Vec<_> = flushed.blocked.iter().map(|blocked| blocked.partition).collect();
    assert_eq!((&blocked[..], &flushed.fenced[..]), (&[Partition(0), Partition(1)][..], &[][..]), "{flushed:?}");
    assert!(flushed.blocked[1].reason.contains("events/1/60000/"), "{flushed:?}");
    // The third was written: sent again it is fenced.
    assert_eq!(store.flush(&store.counted(), &flush[2..3], &[]).await.unwrap().fenced, [Partition(2)]);

    let unique = doc! { "key": { "group.type": 1 }, "name": "mine", "unique": true, "partialFilterExpression": { "partition": { "$gt": 1 } } };
    database.run_command(doc! { "createIndexes": "aggregate_by_type", "indexes": [unique] }).await.unwrap();
    let flushed = store.flush(&store.counted(), &flush[3..], &[]).await.unwrap();
    assert!(flushed.blocked.len() == 1 && flushed.blocked[0].reason.contains("index: mine"), "{flushed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_document_may_have_16_mib_and_not_a_byte_more() {
    const LARGEST: usize = 16 << 20;
    let Some((_turn, url)) = server() else { return };
    let database = fresh(&url, "largest").await;
    let store = open(&url, &database, StoreOptions { events: true, ..options() }).await;
    let json = format!("{{\"a\":\"{}\"}}", "x".repeat(14 << 20));
    store.flush(&store.counted(), &[], &[event(0, "", &json)]).await.unwrap();
    let collection = database.collection::<Document>("events");
    let size = async |id: &str| {
        let document = collection.find_one(doc! { "_id": id }).await.unwrap().unwrap();
        (mongodb::bson::serialize_to_vec(&document).unwrap().len(), document.contains_key("event"))
    };
    let (without_client, _) = size("events/0/0").await;
    let clients = [LARGEST - without_client, LARGEST - without_client + 1, LARGEST].map(|length| "c".repeat(length));
    let events: Vec<_> = (1..).zip(&clients).map(|(offset, client)| event(offset, client, &json)).collect();
    let flushed = store.flush(&store.counted(), &[], &events).await.unwrap();
    assert_eq!(size("events/0/1").await, (LARGEST, true));
    assert!(!size("events/0/2").await.1, "a byte more: without the event");
    let refused: Vec<_> = flushed.refused.iter().map(|refused| refused.offset).collect();
    assert_eq!(refused, [Offset(3)], "its client alone is too large");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_an_index_of_an_operator_refuses_is_refused_and_one_that_stands_already_is_not() {
    let Some((_turn, url)) = server() else { return };
    let database = fresh(&url, "unique").await;
    let store = open(&url, &database, StoreOptions { events: true, ..options() }).await;
    let unique = doc! { "key": { "event_id": 1 }, "name": "mine", "unique": true };
    database.run_command(doc! { "createIndexes": "events", "indexes": [unique] }).await.unwrap();
    let events = [event(0, "c", "{}"), event(1, "c", "{}")];
    for _ in 0..2 {
        let refused = store.flush(&store.counted(), &[], &events).await.unwrap().refused;
        assert!(refused.len() == 1 && refused[0].offset == Offset(1), "{refused:?}");
        assert!(refused[0].message.contains("index: mine"), "{refused:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_is_kept_as_a_document_where_it_can_be_one_and_the_index_follows_its_time_to_live() {
    let Some((_turn, url)) = server() else { return };
    let database = fresh(&url, "events").await;
    let store =
        open(&url, &database, StoreOptions { events: true, events_ttl: Duration::from_secs(3600), ..options() }).await;
    let deep = format!("{{\"a\":{}{}}}", "[".repeat(89), "]".repeat(89));
    let wide = format!("{{\"a\":[{}1]}}", "1,".repeat(500_000));
    let documents = ["{\"n\":1,\"f\":0.1}", "{\"a.b\":{\"$set\":1},\"\":2}", "{\"$x\":1}", &deep, &wide];
    let strings = ["{\"a\":1,\"a\":2}", "{\"big\":123456789012345678901}"];
    let events: Vec<_> =
        (0..).zip(documents.iter().chain(&strings)).map(|(offset, json)| event(offset, "c", json)).collect();
    store.flush(&store.counted(), &[], &events).await.unwrap();
    let collection = database.collection::<Document>("events");
    let of = |filter| collection.count_documents(filter);
    assert_eq!(of(doc! { "event": { "$exists": true }, "type": "t", "client_id": "c" }).await.unwrap(), 5);
    assert_eq!(of(doc! { "raw": { "$in": strings.to_vec() } }).await.unwrap(), 2);
    // A changed time to live changes the index.
    open(&url, &database, StoreOptions { events: true, events_ttl: Duration::from_secs(60), ..options() }).await;
    let indexes = database.run_command(doc! { "listIndexes": "events" }).await.unwrap();
    let indexes = indexes.get_document("cursor").unwrap().get_array("firstBatch").unwrap();
    let ttl =
        indexes.iter().filter_map(|index| index.as_document()?.get("expireAfterSeconds")?.as_i32()).collect::<Vec<_>>();
    assert_eq!(ttl, [60]);
}

/// Makes an index as an operator would.
async fn index(database: &Database, collection: &str, index: Document) {
    database.run_command(doc! { "createIndexes": collection, "indexes": [index] }).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_document_that_an_index_does_not_take_is_kept_plainer_or_refused_and_the_others_are_kept() {
    let Some((_turn, url)) = server() else { return };
    let database = fresh(&url, "plainer").await;
    // Of the codes of these indexes the store knows none.
    let language = doc! { "key": { "event.note": "text" }, "name": "text", "language_override": "type" };
    index(&database, "events", language).await;
    index(&database, "events", doc! { "key": { "event.tags": "hashed" }, "name": "hashed" }).await;
    index(&database, "events", doc! { "key": { "event.at": "2d" }, "name": "2d" }).await;
    let store = open(&url, &database, StoreOptions { events: true, ..options() }).await;
    let far = format!("{{\"at\":[500,500],\"padding\":\"{}\"}}", "x".repeat(5000));
    let jsons = ["{\"note\":\"x\",\"a\":{\"type\":\"klingon\"}}", "{\"tags\":[1,2]}", &far, "{\"n\":1}"];
    let mut events: Vec<_> = (0..).zip(jsons).map(|(offset, json)| event(offset, "c", json)).collect();
    for event in &mut events {
        event.event_type = "english".to_owned();
    }
    // In no form.
    events.push(ProcessedEvent { event_type: "klingon".to_owned(), ..event(4, "c", "{}") });
    for _ in 0..2 {
        let flushed = store.flush(&store.counted(), &[delta(1, "[1,1]", 0, 0, 1)], &events).await.unwrap();
        let refused: Vec<_> = flushed.refused.iter().map(|refused| refused.offset).collect();
        assert_eq!(refused, [Offset(4)], "{flushed:?}");
        assert!(flushed.refused[0].message.contains("language override unsupported"), "{flushed:?}");
    }
    let documents = database.collection::<Document>("events");
    assert_eq!(documents.count_documents(doc! {}).await.unwrap(), 4, "without the one that was tried");
    for (offset, held) in [(0, "event"), (1, "raw"), (2, "raw"), (3, "event")] {
        let document = documents.find_one(doc! { "_id": format!("events/0/{offset}") }).await.unwrap().unwrap();
        assert!(document.contains_key(held), "{offset}: {document}");
    }
    assert_eq!(counts(&store).await, [(json!([1, 1]), 1)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_that_an_index_does_not_take_is_kept_plainer_and_one_that_a_rule_refuses_blocks_its_partition_alone() {
    let Some((_turn, url)) = server() else { return };
    let database = fresh(&url, "plainer_buckets").await;
    let text = doc! { "key": { "group.type": "text" }, "name": "text", "language_override": "type" };
    index(&database, "aggregate_by_type", text).await;
    let store = open(&url, &database, options()).await;
    let long = format!("[\"{}\",1]", "x".repeat(2000));
    let flush = ["[\"klingon\",1.5]", "[\"english\",null]", &long].map(|group| delta(0, group, 0, 4, 2));
    assert_eq!(store.flush(&store.counted(), &flush, &[]).await.unwrap(), Flushed::default());
    assert_eq!(
        store.flush(&store.counted(), &flush, &[]).await.unwrap().fenced,
        [Partition(0)],
        "plainer ones are fenced, too"
    );
    assert_eq!(
        store.flush(&store.counted(), &[delta(0, "[\"klingon\",1.5]", 5, 5, 1)], &[]).await.unwrap(),
        Flushed::default()
    );
    let fences = store.fences(Partition(0), Offset(0), &identity("x")).await.unwrap();
    assert_eq!(fences.len(), 3);
    assert!(fences.iter().any(|fence| &*fence.key.group == "[\"klingon\",1.5]" && fence.last_offset == Offset(5)));
    let counts = counts(&store).await;
    assert!(counts.contains(&(json!(["klingon", 1.5]), 3)) && counts.contains(&(json!(["english", null]), 2)));

    let rule = doc! { "collMod": "aggregate_by_type", "validator": { "partition": { "$ne": 7 } } };
    database.run_command(rule).await.unwrap();
    let flush = [delta(6, "[1,1]", 0, 0, 1), delta(7, "[1,1]", 0, 0, 1)];
    let flushed = store.flush(&store.counted(), &flush, &[]).await.unwrap();
    assert!(flushed.blocked.len() == 1 && flushed.blocked[0].partition == Partition(7), "{flushed:?}");
    assert_eq!(
        store.flush(&store.counted(), &flush[..1], &[]).await.unwrap().fenced,
        [Partition(6)],
        "the other one is counted"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn indexes_of_an_operator_are_good_enough_or_named_and_never_stop_the_store() {
    let Some((_turn, url)) = server() else { return };
    let database = fresh(&url, "indexes").await;
    let by_time = doc! { "time": 1.0, "partition": 1, "offset": 1, "_id": 1 };
    index(&database, "events", doc! { "key": by_time, "name": "mine" }).await;
    index(&database, "events", doc! { "key": { "received": 1 }, "name": "received_1" }).await;
    index(&database, "events", doc! { "key": { "other": 1 }, "name": "by_client" }).await;
    index(&database, "aggregate_by_type", doc! { "key": { "window_start": 1.0 }, "name": "mine" }).await;
    let options = || StoreOptions { events: true, events_ttl: Duration::from_secs(60), ..options() };
    let store = MongoStore::new(&config(&url, database.name()), options(), Handle::current()).unwrap();
    let remarks = store.prepare().await.unwrap().remarks;
    assert!(
        remarks.len() == 1 && remarks[0].contains("\"by_client\"") && remarks[0].contains("drop or rename"),
        "{remarks:?}"
    );
    assert_eq!(
        store.flush(&store.counted(), &[delta(0, "[1,1]", 0, 0, 1)], &[event(0, "c", "{}")]).await.unwrap(),
        Flushed::default()
    );
    let names = async |collection: &str| database.collection::<Document>(collection).list_index_names().await.unwrap();
    assert_eq!(names("events").await, ["_id_", "mine", "received_1", "by_client", "by_type", "by_id"]);
    assert_eq!(names("aggregate_by_type").await, ["_id_", "mine", "fence"]);
    // Without its index a query is refused, and never a scan.
    let by_client = || EventsQuery { client: Some("c".to_owned()), limit: 1, ..EventsQuery::default() };
    let refused = store.events(by_client()).await;
    assert!(
        matches!(&refused, Err(StoreError::Unavailable(why)) if why.contains("has no index") && why.contains("createIndex({ \"client_id\": 1")),
        "{refused:?}"
    );
    let by_type = EventsQuery { event_type: Some("t".to_owned()), limit: 1, ..EventsQuery::default() };
    assert!(store.events(by_type).await.is_ok());
    let indexes = database.run_command(doc! { "listIndexes": "events" }).await.unwrap().to_string();
    assert!(indexes.contains("\"expireAfterSeconds\": 60"), "an index without a time is given one: {indexes}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_database_of_the_url_is_used_unless_the_default_one_holds_aggregates_already() {
    let Some((_turn, url)) = server() else { return };
    let client = Client::with_uri_str(&url).await.unwrap();
    let (default, shop) = (client.database("ingestd"), client.database("ingestd_test_shop"));
    let of_url = url.replace("/?", "/ingestd_test_shop?");
    let prepare = async |topic: &str| {
        let options = StoreOptions { topic: topic.to_owned(), ..options() };
        let store = MongoStore::new(&config(&of_url, ""), options, Handle::current()).unwrap();
        store.prepare().await.unwrap();
        let kept = async |database: &Database| {
            let names = database.list_collection_names().await.unwrap();
            names.iter().any(|name| name == "ingestd_aggregates")
        };
        (kept(&default).await, kept(&shop).await)
    };
    for database in [&default, &shop] {
        database.drop().await.unwrap();
    }
    assert_eq!(prepare("events").await, (false, true));
    // What an earlier release made and counted, which did not look at the URL's.
    shop.drop().await.unwrap();
    let earlier = StoreOptions { topic: "events".to_owned(), ..options() };
    let earlier = MongoStore::new(&config(&url, ""), earlier, Handle::current()).unwrap();
    earlier.prepare().await.unwrap();
    earlier.fences(Partition(0), Offset(0), &identity("x")).await.unwrap();
    assert_eq!(prepare("events").await, (true, false));
    // Of another topic it is a neighbour's.
    assert_eq!(prepare("event").await, (true, true));
    for database in [&default, &shop] {
        database.drop().await.unwrap();
    }
}

/// What the server says of each query, by its profiler.
#[tokio::test(flavor = "multi_thread")]
async fn each_combination_of_filters_is_served_by_an_index_in_its_order() {
    let Some((_turn, url)) = server() else { return };
    let database = fresh(&url, "explained").await;
    let store = open(&url, &database, StoreOptions { events: true, ..options() }).await;
    let events: Vec<_> = (0..2000)
        .map(|offset| ProcessedEvent {
            time: Timestamp(i64::try_from(offset / 100).unwrap()).to_datetime(),
            event_type: format!("t{}", offset % 2),
            id: Some(format!("i{offset}")),
            ..event(offset, &format!("c{}", offset % 4), "{}")
        })
        .collect();
    store.flush(&store.counted(), &[], &events).await.unwrap();
    database.run_command(doc! { "profile": 2 }).await.unwrap();
    let mut asked = 0;
    for combination in 0..64_u32 {
        let has = |bit: u32| combination & (1 << bit) != 0;
        let word = |bit, word: &str| has(bit).then(|| word.to_owned());
        let time = |bit, millis| has(bit).then(|| Timestamp(millis).to_datetime());
        let query = EventsQuery {
            id: word(0, "i1003"),
            client: word(1, "c3"),
            event_type: word(2, "t1"),
            from: time(3, 2),
            to: time(4, 15),
            limit: 10,
            after: has(5).then(|| Cursor { time: 12, place: "+events/0/1250".to_owned() }),
        };
        store.events(query).await.unwrap();
        asked += 1;
    }
    database.run_command(doc! { "profile": 0 }).await.unwrap();
    let ns = format!("{}.events", database.name());
    let profile = database.collection::<Document>("system.profile");
    let found = profile.find(doc! { "ns": ns, "op": "query" }).await.unwrap();
    let found: Vec<Document> = futures::TryStreamExt::try_collect(found).await.unwrap();
    assert_eq!(found.len(), asked);
    for query in found {
        let plan = query.get_str("planSummary").unwrap();
        assert!(plan.starts_with("IXSCAN {") && !query.contains_key("hasSortStage"), "{query}");
        let number = |name| query.get(name).and_then(|it| it.as_i64().or_else(|| it.as_i32().map(i64::from))).unwrap();
        // A page and the one behind it; of both client and type every second of the client's is the type's at the least.
        assert!(number("keysExamined") <= 24 && number("docsExamined") <= 24, "{query}");
    }
}

/// A collection that an earlier release wrote: no event is missing or there twice.
#[tokio::test(flavor = "multi_thread")]
async fn documents_without_their_partition_are_paged_behind_the_others_of_their_moment() {
    let Some((_turn, url)) = server() else { return };
    let database = fresh(&url, "earlier").await;
    let store = open(&url, &database, StoreOptions { events: true, ..options() }).await;
    let events: Vec<_> = (0..40).map(|offset| event(offset, "c", "{}")).collect();
    store.flush(&store.counted(), &[], &events).await.unwrap();
    let collection = database.collection::<Document>("events");
    for offset in 0..20 {
        let update = doc! { "$unset": { "partition": 1, "offset": 1 } };
        collection.update_one(doc! { "_id": format!("events/0/{offset}") }, update).await.unwrap();
    }
    // And what is no event of ours.
    let foreign = doc! { "_id": "somebody's", "client_id": "c", "time": mongodb::bson::DateTime::from_millis(0) };
    collection.insert_one(foreign).await.unwrap();
    let mut query = EventsQuery { client: Some("c".to_owned()), limit: 3, ..EventsQuery::default() };
    let mut offsets = Vec::new();
    loop {
        let page = store.events(query.clone()).await.unwrap();
        query.after = page.next().cloned();
        let rows: Vec<serde_json::Value> = serde_json::from_slice(&[b"[", &*page.into_json(), b"]"].concat()).unwrap();
        offsets.extend(rows.iter().map(|row| row["offset"].as_u64().unwrap()));
        if query.after.is_none() {
            break;
        }
    }
    assert!(offsets[..20].iter().copied().eq((20..40).rev()), "{offsets:?}");
    offsets.sort_unstable();
    assert!(offsets.into_iter().eq(0..40));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_serves_a_query_in_the_order_of_its_windows() {
    let Some((_turn, url)) = server() else { return };
    let database = fresh(&url, "explain").await;
    let store = open(&url, &database, options()).await;
    let flush: Vec<_> = (0..500).map(|n| delta(0, &format!("[{n},null]"), 0, 0, 1)).collect();
    store.flush(&store.counted(), &flush, &[]).await.unwrap();
    // What the server says that it did, of what was really sent.
    database.run_command(doc! { "profile": 2 }).await.unwrap();
    let rows = super::conformance::rows(&store, 10_000).await;
    database.run_command(doc! { "profile": 0 }).await.unwrap();
    assert_eq!(super::conformance::read(rows).len(), 500);
    let profile = database.collection::<Document>("system.profile");
    let found = profile.find_one(doc! { "op": "query", "command.find": "aggregate_by_type" }).await.unwrap().unwrap();
    assert_eq!(found.get_str("planSummary").unwrap(), "IXSCAN { window_start: 1 }", "{found}");
    assert!(!found.contains_key("hasSortStage"), "it sorts: {found}");
    // A first batch has 101 of them.
    let sent = found.get_document("command").unwrap();
    let parts = ["find", "filter", "projection", "sort"].map(|name| (name.to_owned(), sent.get(name).unwrap().clone()));
    let command: Document = parts.into_iter().collect();
    let explained = doc! { "explain": command, "verbosity": "executionStats" };
    let explained = database.run_command(explained).await.unwrap();
    let stats = explained.get_document("executionStats").unwrap();
    let number = |name: &str| stats.get(name).and_then(|number| number.as_i32().map(i64::from).or(number.as_i64()));
    assert_eq!(["nReturned", "totalKeysExamined", "totalDocsExamined"].map(number), [Some(500); 3]);
    let plan = explained.to_string();
    assert!(plan.contains("IXSCAN") && !plan.contains("COLLSCAN") && !plan.contains("\"SORT\""), "{plan}");
}
