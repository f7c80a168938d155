//! `GET /v1/events`, and reading what one has just written: `Prefer: return=positions` at the door, `after=` of a query.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::support::{
    PATIENCE,
    daemon::{Daemon, Setup},
    eventually,
    http::Reply,
    services::services,
};

/// Sends events, and gives back their positions as a query takes them.
#[track_caller]
fn send(daemon: &Daemon, events: &Value) -> String {
    let reply = daemon.post_with(&[("prefer", "return=positions")], events.to_string().as_bytes());
    assert_eq!((reply.status, reply.preference_applied.as_deref()), (200, Some("return=positions")), "{reply:?}");
    let json = reply.json();
    let positions = json["positions"].as_array().expect("positions");
    positions.iter().map(|it| format!("&after={}", it.as_str().expect("text"))).collect()
}

#[track_caller]
fn page(daemon: &Daemon, parameters: &str) -> Value {
    let reply = daemon.get(&format!("/v1/events?{parameters}"));
    assert_eq!(reply.status, 200, "{parameters}: {reply:?}");
    reply.json()
}

#[track_caller]
fn events(daemon: &Daemon, parameters: &str) -> Vec<Value> {
    page(daemon, parameters)["events"].as_array().expect("events").clone()
}

fn numbers(events: &[Value]) -> Vec<u64> {
    events.iter().map(|event| event["event"]["n"].as_u64().expect("n")).collect()
}

fn detail(reply: &Reply) -> String {
    reply.json()["detail"].as_str().expect("a detail").to_owned()
}

/// What holds on every queue and store. The flush interval is an hour: nothing is there but for those who wait.
fn whoever_writes_reads_its_own_at_once(daemon: &Daemon) {
    let began = Instant::now();
    let login = |n: u64, client: &str, time: &str| json!({ "type": "login", "event_id": format!("id-{n}"), "client_id": client, "timestamp": time, "n": n });
    let positions = send(
        daemon,
        &json!([
            login(0, "a", "2026-11-28T08:00:00Z"),
            login(1, "b", "2026-11-28T08:00:01Z"),
            login(2, "a", "2026-11-28T08:00:02.5Z"),
            { "type": "logout", "client_id": "a", "timestamp": "2026-11-28T08:00:03Z", "n": 3, "f": 2.50 },
        ]),
    );
    assert_eq!(numbers(&events(daemon, &format!("from=2026-11-28T08:00:00Z{positions}"))), [3, 2, 1, 0]);
    let taken = began.elapsed();
    assert!(taken < Duration::from_secs(30), "{taken:?}");
    for (parameters, expected) in [
        ("id=id-1", &[1][..]),
        ("id=id-1&client=a", &[]),
        ("client=a", &[3, 2, 0]),
        ("type=login", &[2, 1, 0]),
        ("type=login&client=a", &[2, 0]),
        ("type=log", &[]),
        ("from=2026-11-28T08:00:01Z&to=2026-11-28T08:00:02.5Z", &[1]),
        ("from=2026-11-28T08:00:01Z&to=2026-11-28T08:00:02.501Z", &[2, 1]),
        ("to=2026-11-28T08:00:01Z&type=login", &[0]),
        ("from=2026-11-28T09:00:00%2B01:00&client=b", &[1]),
        ("from=now", &[]),
    ] {
        assert_eq!(numbers(&events(daemon, parameters)), expected, "{parameters}");
    }
    let row = events(daemon, "id=id-2").remove(0);
    let expected = json!({ "type": "login", "client": "a", "time": "2026-11-28T08:00:02.500Z", "generation": 0 });
    for (name, value) in expected.as_object().expect("an object") {
        assert_eq!(&row[name], value, "{row}");
    }
    assert_eq!(row["event"], login(2, "a", "2026-11-28T08:00:02.5Z"));
    let received: chrono::DateTime<chrono::Utc> = row["received"].as_str().expect("text").parse().expect("a time");
    assert!(chrono::Utc::now() - received < chrono::TimeDelta::minutes(5), "{row}");

    // Page by page, while others come: those of one moment, too.
    let many: Vec<Value> = (100..350)
        .map(|n| json!({ "type": "many", "client_id": "one", "timestamp": "2026-11-28T10:00:00Z", "n": n }))
        .collect();
    let positions = send(daemon, &json!(many));
    let all = numbers(&events(daemon, &format!("type=many&limit=1000{positions}")));
    assert_eq!(all, (100..350).rev().collect::<Vec<_>>(), "one client is in one partition");
    let (mut seen, mut cursor, mut pages) = (Vec::new(), String::new(), 0);
    loop {
        let page = page(daemon, &format!("type=many&limit=100{cursor}"));
        seen.extend(numbers(page["events"].as_array().expect("events")));
        pages += 1;
        let Some(next) = page["next"].as_str() else { break };
        assert!(next.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)), "{next}");
        cursor = format!("&cursor={next}");
        // Newer than all, and as new as they are.
        let more = json!([
            { "type": "many", "client_id": "one", "n": 1000 + pages },
            { "type": "many", "client_id": "one", "timestamp": "2026-11-28T10:00:00Z", "n": 2000 + pages },
        ]);
        events(daemon, &format!("limit=1{}", send(daemon, &more)));
    }
    assert_eq!((seen.as_slice(), pages), (all.as_slice(), 3));
    // One that ends with the last has no other.
    let last = page(daemon, "type=login&limit=3");
    assert_eq!((last["events"].as_array().map(Vec::len), last.get("next")), (Some(3), None));
    assert!(page(daemon, "type=login&limit=2")["next"].is_string());

    // What is no JSON object.
    let reply = daemon.post_with(
        &[
            ("ce-specversion", "1.0"),
            ("ce-type", "shop.sold"),
            ("ce-id", "ce-1"),
            ("ce-source", "/shop"),
            ("prefer", "return=positions"),
        ],
        b"no JSON",
    );
    let position = reply.json()["positions"][0].as_str().expect("a position").to_owned();
    let sold = events(daemon, &format!("type=shop.sold&after={position}")).remove(0);
    assert_eq!((&sold["raw"], &sold["id"], sold.get("event")), (&json!("no JSON"), &json!("ce-1"), None), "{sold}");
    assert_eq!(sold["attributes"]["source"], "/shop", "{sold}");
}

#[test]
fn on_the_embedded_log_and_store_events_are_found_as_soon_as_they_are_counted() {
    let daemon = Setup::new("events").set("store.events", true).set("aggregator.flush_interval", "1h").start();
    whoever_writes_reads_its_own_at_once(&daemon);

    // Positions are where the records stand; none of them is none's.
    let reply = daemon.post_with(&[("prefer", "return=positions")], b"[]");
    assert_eq!((reply.status, &reply.json()["positions"]), (200, &json!([])), "{reply:?}");
    let one = || daemon.post_with(&[("prefer", "handling=lenient, return=positions")], br#"[{"type":"x"},{"n":1}]"#);
    let (reply, another) = (one(), one());
    assert_eq!((reply.status, reply.preference_applied.as_deref()), (207, Some("handling=lenient, return=positions")));
    let offset = |reply: &Reply| {
        let json = reply.json();
        let position = json["positions"][0].as_str().expect("a position");
        position.strip_prefix("0:").expect("of partition 0").parse::<u64>().expect("an offset")
    };
    assert_eq!(offset(&another), offset(&reply) + 1);
    let wrong = daemon.post_with(&[("prefer", "return=positions")], br#"{"n":1}"#);
    assert_eq!((wrong.status, wrong.preference_applied.as_deref()), (400, None), "{wrong:?}");
    assert_eq!(daemon.post(None, br#"{"type":"x"}"#).json().get("positions"), None, "nobody asked");

    // What cannot be waited for.
    let began = Instant::now();
    let late = daemon.get("/v1/events?after=0:99999999");
    let taken = began.elapsed();
    late.assert_problem(503);
    assert!(
        late.retry_after.is_some() && detail(&late).contains("offset 99999999 was not counted within 10s"),
        "{late:?}"
    );
    assert!((9..30).contains(&taken.as_secs()), "{taken:?}");
    let elsewhere = daemon.get("/v1/events?after=7:0");
    elsewhere.assert_problem(409);
    assert!(detail(&elsewhere).contains("does not count partition 7"), "{elsewhere:?}");
    for (parameters, sentence) in [
        ("after=17", "PARTITION:OFFSET"),
        ("cursor=x", "cursor: "),
        ("from=yesterday", "from: "),
        ("limit=10001", "limit: "),
        ("skip=1", "unknown parameter"),
    ] {
        let refused = daemon.get(&format!("/v1/events?{parameters}"));
        refused.assert_problem(400);
        assert!(detail(&refused).contains(sentence), "{refused:?}");
    }
    daemon.terminate();
}

#[test]
fn events_of_before_have_their_index_after_an_upgrade_and_none_are_kept_without_the_key() {
    let mut daemon = Setup::new("not-kept").set("store.events", true).start();
    let position = send(&daemon, &json!([{ "type": "a", "event_id": "one", "n": 1 }]));
    assert_eq!(events(&daemon, &format!("id=one{position}")).len(), 1);
    daemon.terminate();
    // As a release before wrote it.
    let store = rusqlite::Connection::open(daemon.data().join("store.db")).expect("it is there");
    store
        .execute_batch("DROP INDEX event_id; DROP TABLE rebuild; DROP TABLE rebuild_partition; PRAGMA user_version = 3")
        .expect("it can be changed");
    drop(store);
    daemon.restart();
    assert_eq!(numbers(&events(&daemon, "id=one")), [1]);
    daemon.terminate();
    daemon.set("store.events", false);
    daemon.restart();
    let none = daemon.get("/v1/events?id=one");
    none.assert_problem(404);
    assert!(detail(&none).starts_with("store.events is false: "), "{none:?}");
    daemon.terminate();
}

#[test]
fn on_kafka_and_mongodb_events_are_found_as_soon_as_they_are_counted() {
    let Some(services) = services() else { return };
    services.create_bucket("events-query");
    let setup = || {
        let setup = services.setup("events-query").set("store.events", true);
        setup.set("aggregator.flush_interval", "1h").set("queue.kafka.partitions", 3)
    };
    let daemon = setup().start();
    whoever_writes_reads_its_own_at_once(&daemon);
    // One request in several partitions: the last offset of each, by partition.
    let spread: Vec<Value> =
        (0..64).map(|n| json!({ "type": "spread", "client_id": format!("c-{n}"), "n": n })).collect();
    let reply = daemon.post_with(&[("prefer", "return=positions")], json!(spread).to_string().as_bytes());
    let json = reply.json();
    let positions: Vec<&str> =
        json["positions"].as_array().expect("positions").iter().filter_map(Value::as_str).collect();
    let partitions: Vec<&str> = positions.iter().filter_map(|it| it.split(':').next()).collect();
    assert_eq!(partitions, ["0", "1", "2"], "{positions:?}");
    let after: String = positions.iter().map(|position| format!("&after={position}")).collect();
    let found = numbers(&events(&daemon, &format!("type=spread&limit=64{after}")));
    assert_eq!(found.iter().copied().collect::<BTreeSet<_>>(), (0..64).collect());

    // A process that does not count answers from the same database, and does not wait.
    let front = setup().roles("ingest").start();
    assert_eq!(events(&front, "type=spread&limit=64").len(), 64);
    let elsewhere = front.get(&format!("/v1/events?{}", after.trim_start_matches('&')));
    elsewhere.assert_problem(409);
    assert!(detail(&elsewhere).contains("ask one with the role aggregator"), "{elsewhere:?}");
    front.terminate();
    daemon.terminate();
}

#[test]
fn what_waits_in_the_buffer_has_no_position_and_that_is_said() {
    let Some(services) = services() else { return };
    services.create_bucket("events-buffer");
    let setup = || services.setup("events-buffer").set("queue.on_unavailable", "buffer").set("store.events", true);
    let mut daemon = setup().start();
    // Straight through.
    eventually("events go straight to Kafka", PATIENCE, || {
        let reply = daemon.post_with(&[("prefer", "return=positions")], br#"{"type":"a","n":1}"#);
        (reply.json()["positions"].as_array()?.len() == 1).then_some(())
    });
    daemon.terminate();
    daemon.set("queue.kafka.brokers", "127.0.0.1:1");
    daemon.respawn();
    let buffered = eventually("the buffer takes events", PATIENCE, || {
        let reply = crate::support::http::Client::new().post_with(
            &daemon.events_url(),
            &[("prefer", "handling=strict, return=positions")],
            br#"{"type":"a","n":2}"#,
        );
        reply.ok().filter(|reply| reply.status == 200)
    });
    assert_eq!(buffered.preference_applied.as_deref(), Some("handling=strict"), "{buffered:?}");
    assert_eq!(buffered.json().get("positions"), None, "{buffered:?}");
    daemon.kill();
}
