//! MongoDB as operators run it: users with few rights, indexes of their own, servers that are too old or go away.

use std::{
    io::{Read, Write},
    net::TcpListener,
    thread,
    time::Duration,
};

use mongodb::{
    Client, Database,
    bson::{Document, doc},
};

use crate::support::{
    PATIENCE,
    daemon::{Daemon, Setup},
    eventually,
    services::{self, services},
};

/// What is counted by now.
fn counted(daemon: &Daemon) -> Option<u64> {
    let answer = daemon.get("/v1/aggregates/events_by_type");
    let rows = (answer.status == 200).then(|| answer.json())?["rows"].as_array()?.clone();
    Some(rows.iter().filter_map(|row| row["count"].as_u64()).sum())
}

#[track_caller]
fn post(daemon: &Daemon, event: &str) {
    let reply = daemon.post(None, event.as_bytes());
    assert_eq!(reply.status, 200, "{reply:?}");
}

#[track_caller]
fn wait_counted(daemon: &Daemon, events: u64) {
    eventually(&format!("{events} are counted"), PATIENCE, || (counted(daemon)? == events).then_some(()));
}

#[test]
fn an_index_of_an_operator_stops_no_event_and_the_servers_text_about_one_is_short() {
    let Some(services) = services() else { return };
    let name = "operators";
    let daemon = Setup::new(name)
        .set("store.kind", "mongodb")
        .set("store.url", format!("mongodb://{}/?directConnection=true", services.mongodb.address()))
        .set("store.database", name)
        .set("store.events", true)
        .start();
    let index = |collection: &str, index: Document| {
        services.mongodb_command(name, doc! { "createIndexes": collection, "indexes": [index] });
    };
    index("events", doc! { "key": { "event.note": "text" }, "name": "text" });
    index("events", doc! { "key": { "event.tags": "hashed" }, "name": "hashed" });
    let rule = doc! { "type": "u" };
    index(
        "events",
        doc! { "key": { "client_id": 1 }, "name": "mine", "unique": true, "partialFilterExpression": rule },
    );
    let language = doc! { "key": { "group.type": "text" }, "name": "text", "language_override": "client_id" };
    index("aggregate_events_by_type", language);
    let padding = "p".repeat(50_000);
    post(&daemon, r#"{"type":"a","client_id":"c","note":"x","language":"klingon"}"#);
    post(&daemon, r#"{"type":"a","client_id":"c","tags":[1,2]}"#);
    for n in 0..2 {
        post(&daemon, &format!(r#"{{"type":"u","client_id":"{padding}","n":{n}}}"#));
    }
    wait_counted(&daemon, 3);
    let letters = daemon.get("/v1/dead-letters").json();
    let message = letters["dead_letters"][0]["message"].as_str().unwrap_or_default();
    assert!(message.contains("index: mine") && message.len() < 500, "{letters}");
    assert_eq!(daemon.readiness()["degraded"], false);
    assert!(!daemon.log().contains(&padding[..500]), "an event in the log");
    let documents = services.documents(name, "events");
    let count = |field: &str| documents.iter().filter(|document| document.contains_key(field)).count();
    assert_eq!((count("raw"), count("event")), (2, 1), "{documents:?}");
    daemon.terminate();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_user_may_not_do_is_said_and_counting_goes_on_and_a_check_tries_what_counting_needs() {
    let Some(mongodb) = tokio::task::spawn_blocking(services::mongodb_with_password).await.expect("it starts") else {
        return;
    };
    let address = mongodb.address();
    let url = |user: &str, database: &str| format!("mongodb://{user}@{address}/{database}?directConnection=true");
    create_users(&address).await;
    let root = Client::with_uri_str(url("root:root", "admin")).await.expect("a valid URL");
    let shop = root.database("shop");
    let kept = async |database: &Database, collection: &str| {
        database.collection::<Document>(collection).count_documents(doc! {}).await.expect("root may")
    };
    let app = url("app:app", "shop");
    let blocking = tokio::task::spawn_blocking(move || {
        let setup =
            Setup::new("readwrite").set("store.kind", "mongodb").set("store.url", &app).set("store.events", true);
        let mut daemon = setup.set("store.events_ttl", "1h").start();
        post(&daemon, r#"{"type":"a"}"#);
        wait_counted(&daemon, 1);
        daemon.terminate();
        daemon.set("store.events_ttl", "2h");
        daemon.restart();
        post(&daemon, r#"{"type":"a"}"#);
        wait_counted(&daemon, 2);
        let readiness = daemon.readiness();
        let remark = readiness["dependencies"]["mongodb"]["reason"].as_str().unwrap_or_default();
        assert!(remark.contains("dbAdmin") && remark.contains("expireAfterSeconds"), "{readiness}");
        assert_eq!(readiness["degraded"], false);
        daemon.terminate();
        let check = daemon.command(&["check", "--connect"]);
        assert!(check.status == Some(0) && check.out.contains("dbAdmin"), "{check:?}");
        // It may write the definitions and not the counts.
        let half = app.replace("app:app", "half:half");
        for _ in 0..5 {
            let check = daemon.command_with(&["check", "--connect"], &[("store.url", &half)]);
            assert!(check.status == Some(1) && check.out.contains("events cannot be counted"), "{check:?}");
            assert!(!check.error.contains("panicked"), "{check:?}");
        }
    });
    blocking.await.expect("as asserted");
    assert_eq!(kept(&shop, "events").await, 2, "in the database of the URL");
}

/// `app` with `readWrite`, and `half`, which may update nothing but the definitions.
async fn create_users(address: &str) {
    let create = |name: &str, roles: Document| doc! { "createUser": name, "pwd": name, "roles": [roles] };
    let local = Client::with_uri_str(format!("mongodb://{address}/?directConnection=true")).await.expect("a valid URL");
    let root = create("root", doc! { "role": "root", "db": "admin" });
    local.database("admin").run_command(root).await.expect("the first user may be made");
    let url = format!("mongodb://root:root@{address}/?directConnection=true");
    let shop = Client::with_uri_str(url).await.expect("a valid URL").database("shop");
    let actions =
        ["find", "insert", "remove", "createIndex", "createCollection", "listIndexes", "listCollections"].to_vec();
    let role = doc! {
        "createRole": "half", "roles": [],
        "privileges": [
            { "resource": { "db": "shop", "collection": "" }, "actions": actions },
            { "resource": { "db": "shop", "collection": "ingestd_aggregates" }, "actions": ["update"] },
        ],
    };
    shop.run_command(role).await.expect("root may");
    for (name, role) in [("app", "readWrite"), ("half", "half")] {
        shop.run_command(create(name, doc! { "role": role, "db": "shop" })).await.expect("root may");
    }
}

#[test]
fn a_stop_does_not_wait_for_a_store_or_an_archive_that_is_away_and_the_next_start_does_the_rest() {
    let Some(services) = services() else { return };
    let name = "gone";
    services.create_bucket(name);
    let mut daemon = services
        .setup(name)
        .set("queue.kind", "embedded")
        .without("queue.kafka.brokers")
        .without("queue.kafka.group")
        // Far beyond what a test waits for.
        .set("shutdown.timeout", "10m")
        .start();
    post(&daemon, r#"{"type":"a"}"#);
    wait_counted(&daemon, 1);
    services.mongodb.kill();
    services.s3.kill();
    post(&daemon, r#"{"type":"a"}"#);
    for dependency in ["mongodb", "object_store"] {
        let is_missed = || daemon.readiness()["dependencies"][dependency]["available"] == false;
        eventually(&format!("{dependency} is missed"), PATIENCE, || is_missed().then_some(()));
    }
    daemon.terminate();
    let log = daemon.log();
    assert!(log.contains("cannot be flushed now") && log.contains("records=1"), "{log}");
    assert!(log.contains("sealed segments wait on disk"), "{log}");
    services.mongodb.restart();
    services.s3.restart();
    services.wait_mongodb();
    services.wait_s3();
    daemon.restart();
    wait_counted(&daemon, 2);
    let archived = || daemon.metric("ingestd_events_archived_total").is_some_and(|events| events >= 1.0);
    eventually("the rest is archived", PATIENCE, || archived().then_some(()));
    daemon.terminate();
}

/// Answers each question as a server with that wire version does (8 is MongoDB 4.2). Ends with its test.
fn old_server(wire_version: i32) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("it is bound").to_string();
    let hello = doc! {
        "ismaster": true, "maxBsonObjectSize": 16 << 20, "maxMessageSizeBytes": 48_000_000, "maxWriteBatchSize": 100_000,
        "minWireVersion": 0, "maxWireVersion": wire_version, "readOnly": false, "ok": 1.0,
    };
    let hello = mongodb::bson::serialize_to_vec(&hello).expect("a document");
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, hello) = (stream.expect("a connection"), hello.clone());
            thread::spawn(move || -> std::io::Result<()> {
                loop {
                    // OP_MSG: length, request, response to, 2013; flags, kind of section, document.
                    let mut header = [0; 16];
                    stream.read_exact(&mut header)?;
                    let number =
                        |at: usize| i32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
                    let mut body = vec![0; usize::try_from(number(0)).expect("a length") - 16];
                    stream.read_exact(&mut body)?;
                    let length = i32::try_from(16 + 5 + hello.len()).expect("it is short");
                    let head: Vec<u8> =
                        [length, 1, number(4), 2013, 0].iter().flat_map(|it| it.to_le_bytes()).collect();
                    stream.write_all(&[&head, &[0][..], &hello].concat())?;
                }
            });
        }
    });
    address
}

#[test]
fn a_database_that_stays_in_force_in_spite_of_the_url_is_said_once() {
    let Some(services) = services() else { return };
    let url = |database: &str| format!("mongodb://{}/{database}?directConnection=true", services.mongodb.address());
    let mut daemon = Setup::new("in-force").set("store.kind", "mongodb").set("store.url", url("")).start();
    post(&daemon, r#"{"type":"a"}"#);
    wait_counted(&daemon, 1);
    assert!(daemon.log().contains("MongoDB, database ingestd\n"), "{}", daemon.log());
    daemon.terminate();
    daemon.set("store.url", url("ingestd_test_in_force"));
    daemon.restart();
    post(&daemon, r#"{"type":"a"}"#);
    wait_counted(&daemon, 2);
    let log = daemon.log();
    assert_eq!(log.matches("stays in use, though store.url names").count(), 1, "{log}");
    assert!(log.contains("database ingestd_test_in_force (or ingestd, if that holds aggregates from before)"), "{log}");
    daemon.terminate();

    // A neighbour's aggregates are no reason to write among them.
    let new = Setup::new("beside").set("store.kind", "mongodb").set("store.url", url("ingestd_test_in_force"));
    let new = new.set("queue.topic", "another").start();
    post(&new, r#"{"type":"a"}"#);
    wait_counted(&new, 1);
    assert!(!new.log().contains("stays in use"), "{}", new.log());
    assert_eq!(services.documents("ingestd_test_in_force", "ingestd_sources").len(), 1);
    new.terminate();
    for database in ["ingestd", "ingestd_test_in_force"] {
        services.mongodb_command(database, doc! { "dropDatabase": 1 });
    }
}

#[test]
fn a_server_that_is_too_old_is_called_so() {
    let daemon =
        Setup::new("old").set("store.kind", "mongodb").set("store.url", format!("mongodb://{}", old_server(8)));
    let daemon = daemon.start();
    let check = daemon.command_with(&["check", "--connect"], &[("data.dir", "elsewhere")]);
    assert!(check.status == Some(1) && check.out.contains("is older than MongoDB 4.4"), "{check:?}");
    eventually("readiness says so", Duration::from_secs(60), || {
        daemon.readiness().to_string().contains("is older than MongoDB 4.4").then_some(())
    });
    daemon.terminate();
}
