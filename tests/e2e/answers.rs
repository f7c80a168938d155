//! Answers that a client can act on: all or nothing, each event by itself, and what is wrong kept instead of refused.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::support::{
    PATIENCE,
    archive::Archive,
    brokers::Brokers,
    daemon::{Daemon, Setup},
    eventually,
    http::Reply,
    services::services,
};

const LINES: Option<&str> = Some("application/x-ndjson");

/// Index and code of each error of a reply.
fn errors(reply: &Reply) -> Vec<(u64, String)> {
    let reply = reply.json();
    let errors = reply["errors"].as_array().map(Vec::as_slice).unwrap_or_default();
    let error = |error: &Value| {
        (error["index"].as_u64().expect("an index"), error["code"].as_str().expect("a code").to_owned())
    };
    errors.iter().map(error).collect()
}

/// How often each event stands in the archive, by its `n`.
fn archived(archive: &mut Archive) -> BTreeMap<u64, usize> {
    archive.refresh();
    let mut copies = BTreeMap::new();
    for line in archive.lines() {
        let event: Value = serde_json::from_slice(line.value.as_deref().expect("a value")).expect("an event");
        *copies.entry(event["n"].as_u64().expect("n")).or_default() += 1;
    }
    copies
}

/// Waits until exactly these stand in the archive, each once.
#[track_caller]
fn wait_archived(archive: &mut Archive, numbers: &[u64]) {
    let expected: BTreeMap<u64, usize> = numbers.iter().map(|n| (*n, 1)).collect();
    eventually("all of them are archived", PATIENCE, || {
        let copies = archived(archive);
        let foreign = copies.iter().find(|(n, copies)| expected.get(n) != Some(copies));
        assert_eq!(foreign, None, "neither twice nor one that was not accepted");
        (copies == expected).then_some(())
    });
}

fn dlq(daemon: &Daemon, arguments: &[&str], status: i32) -> Value {
    daemon.command(&[&["dlq"], arguments, &["--json"]].concat()).json(status)
}

fn letters(daemon: &Daemon, arguments: &[&str]) -> Vec<Value> {
    let listed = dlq(daemon, &[&["list"], arguments].concat(), 0);
    listed["dead_letters"].as_array().expect("dead_letters").clone()
}

#[test]
fn of_a_strict_request_with_a_wrong_event_nothing_ever_stands_in_the_archive() {
    let daemon = Setup::new("strict").start();
    let mut archive = Archive::local(&daemon.data().join("archive"));
    let wrong = br#"[{"type":"a","n":1},{"n":2},{"type":"a","n":3},{"type":7,"n":4}]"#;
    let refused = daemon.prefer("strict", wrong);
    assert_eq!((refused.status, refused.preference_applied.as_deref()), (400, Some("handling=strict")), "{refused:?}");
    let json = refused.json();
    assert_eq!((&json["accepted"], &json["rejected"], &json["ids"]), (&json!(0), &json!(2), &json!([])));
    assert_eq!(errors(&refused), [(1, "missing_type".to_owned()), (3, "invalid_type".to_owned())]);
    daemon.prefer("strict", b"[{\"type\":\"a\",\"n\":5},").assert_problem(400);
    let taken = daemon.prefer("strict", br#"[{"type":"a","n":6},{"type":"b","n":7}]"#);
    assert_eq!((taken.status, taken.preference_applied.as_deref()), (200, Some("handling=strict")), "{taken:?}");
    // A client that says nothing is answered as ever.
    let mixed = daemon.post(None, br#"[{"type":"a","n":8},{"n":9}]"#);
    assert_eq!((mixed.status, mixed.preference_applied.as_deref()), (207, None), "{mixed:?}");
    wait_archived(&mut archive, &[6, 7, 8]);
    assert_eq!(daemon.metric("ingestd_events_accepted_total"), Some(3.0));
    daemon.terminate();
    wait_archived(&mut archive, &[6, 7, 8]);
}

#[test]
fn what_is_wrong_is_durable_before_its_answer_and_is_listed_corrected_and_purged() {
    let mut daemon = Setup::new("quarantine").set("event.on_invalid", "quarantine").start();
    let mut archive = Archive::local(&daemon.data().join("archive"));
    let body = b"{\"type\":\"a\",\"n\":1}\n{\"n\":2}\n{broken\n\xff\xfe\n";
    let reply = daemon.post(LINES, body);
    // Right after the answer.
    daemon.kill();
    let json = reply.json();
    assert_eq!(reply.status, 200, "{reply:?}");
    assert_eq!((&json["accepted"], &json["rejected"], &json["quarantined"]), (&json!(1), &json!(0), &json!(3)));
    let codes = [(1, "missing_type"), (2, "invalid_json"), (3, "invalid_json")];
    assert_eq!(errors(&reply), codes.map(|(index, code)| (index, code.to_owned())));
    daemon.restart();

    let all = letters(&daemon, &[]);
    assert_eq!(all.len(), 3, "{all:?}");
    for letter in &all {
        let id = letter["id"].as_str().expect("an id");
        let uuid = id.strip_prefix("events.ingest/0/").and_then(|id| uuid::Uuid::parse_str(id).ok());
        assert_eq!(uuid.map(|uuid| uuid.get_version_num()), Some(7), "{letter}");
        assert_eq!((&letter["state"], letter.get("offset")), (&json!("open"), None), "{letter}");
        assert!(letter["time"].as_str().is_some_and(|time| time.starts_with("20")), "{letter}");
    }
    let [missing]: [Value; 1] =
        letters(&daemon, &["--reason", "missing_type", "--from", "1h"]).try_into().expect("one");
    let missing = missing["id"].as_str().expect("an id").to_owned();
    let shown = dlq(&daemon, &["show", "--id", &missing], 0);
    assert_eq!((&shown["value"], &shown["reason"]), (&json!("{\"n\":2}"), &json!("missing_type")), "{shown}");
    assert!(shown["message"].as_str().is_some_and(|message| message.contains("\"type\"")), "{shown}");
    let values: Vec<_> = letters(&daemon, &["--reason", "invalid_json"])
        .iter()
        .map(|letter| dlq(&daemon, &["show", "--id", letter["id"].as_str().expect("an id")], 0))
        .map(|shown| (shown["value"].clone(), shown["value_base64"].clone()))
        .collect();
    assert!(values.contains(&(json!("{broken"), Value::Null)), "{values:?}");
    assert!(values.contains(&(Value::Null, json!("//4="))), "{values:?}");

    // A body that cannot be split is one letter, and is replayed as one event alone.
    let whole = daemon.post(None, b"[{\"type\":\"a\",\"n\":3},");
    assert_eq!((whole.status, &whole.json()["quarantined"]), (200, &json!(1)), "{whole:?}");
    let bodies = letters(&daemon, &["--reason", "invalid_json"]);
    let body = bodies.last().expect("a letter")["id"].as_str().expect("an id").to_owned();
    let refused = dlq(&daemon, &["replay"], 1);
    assert_eq!(
        (refused["replayed"].as_array().map(Vec::len), refused["refused"].as_array().map(Vec::len)),
        (Some(0), Some(4))
    );

    let file = daemon.data().parent().expect("a folder").join("value");
    let path = file.to_str().expect("UTF-8").to_owned();
    std::fs::write(&file, "{\"type\":\"mended\",\"n\":3}\n").expect("it can be written");
    for status in ["replayed", "already"] {
        let done = dlq(&daemon, &["replay", "--id", &body, "--value", &path], 0);
        assert_eq!(done[status], json!([body]), "{done}");
    }
    wait_archived(&mut archive, &[1, 3]);
    let headers: Vec<_> = archive.lines().flat_map(|line| line.headers.clone()).collect();
    assert_eq!(headers, [("ingestd-replayed".to_owned(), Some(body.clone().into_bytes()))]);

    // What is purged is gone at once: it is never read again.
    assert_eq!(dlq(&daemon, &["purge", "--id", &missing], 0)["purged"], json!([missing]));
    assert!(letters(&daemon, &["--all", "--id", &missing]).is_empty());
    dlq(&daemon, &["purge", "--to", "0s", "--all"], 0);
    assert!(letters(&daemon, &["--all"]).is_empty());
    assert_eq!(daemon.metric("ingestd_events_quarantined_total"), Some(1.0), "of this life");
    assert_eq!(daemon.metric("ingestd_events_rejected_total"), None);
    daemon.terminate();
    wait_archived(&mut archive, &[1, 3]);
}

#[test]
fn quarantine_begins_with_a_reload_and_a_strict_request_is_not_kept() {
    let daemon = Setup::new("reloaded").config("").start();
    let wrong = br#"{"no":"type"}"#;
    assert_eq!(daemon.post(None, wrong).status, 400);
    daemon.write_config("[event]\non_invalid = \"quarantine\"\n");
    assert_eq!(daemon.reload().json()["applied"], json!(["event.on_invalid"]));
    assert_eq!(daemon.prefer("strict", wrong).status, 400);
    assert!(letters(&daemon, &[]).is_empty());
    assert_eq!(daemon.post(None, wrong).status, 200);
    assert_eq!(letters(&daemon, &[]).len(), 1);
    daemon.write_config("");
    assert_eq!(daemon.reload().status, 200);
    assert_eq!(daemon.post(None, wrong).status, 400);
    daemon.terminate();
}

#[test]
fn a_flood_of_wrong_events_fills_no_more_than_the_quota_and_right_ones_are_taken_all_the_same() {
    let daemon =
        Setup::new("flood").set("event.on_invalid", "quarantine").set("queue.embedded.quota", "300KiB").start();
    let wrong = format!(r#"[{{"no":"{}"}}]"#, "x".repeat(50_000));
    let refused = eventually("the quarantine is full", PATIENCE, || {
        let reply = daemon.post(None, wrong.as_bytes());
        (reply.status != 200).then_some(reply)
    });
    refused.assert_problem(503);
    assert!(refused.retry_after.is_some() && refused.body.contains("queue.embedded.quota"), "{refused:?}");
    assert!(refused.body.contains("none of its events was stored"), "{refused:?}");
    assert_eq!(daemon.post(None, br#"{"type":"a","n":1}"#).status, 200);
    eventually("readiness says so", PATIENCE, || {
        let log = daemon.readiness()["dependencies"]["embedded_log"].clone();
        (log["available"] == true && log["reason"].as_str()?.contains("quarantine")).then_some(())
    });
    dlq(&daemon, &["purge", "--to", "0s"], 0);
    assert_eq!(daemon.post(None, wrong.as_bytes()).status, 200);
    daemon.terminate();
}

#[test]
fn on_kafka_a_front_end_alone_quarantines_and_a_worker_knows_nothing_of_it() {
    let Some(services) = services() else { return };
    services.create_bucket("quarantined");
    let setup = || services.setup("quarantined").set("event.on_invalid", "quarantine");
    let mut front = setup().roles("ingest").start();
    let reply = front.post(None, br#"[{"type":"a","n":1},{"n":2},{"type":"a","n":3},7]"#);
    front.kill();
    assert_eq!((reply.status, &reply.json()["quarantined"]), (200, &json!(2)), "{reply:?}");
    front.restart();
    let worker = setup().roles("worker").start();
    let found = letters(&worker, &[]);
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found.iter().all(|letter| letter.get("offset").is_none()), "{found:?}");
    let of = |reason: &str| {
        let letter = found.iter().find(|letter| letter["reason"] == reason).expect("a letter");
        letter["id"].as_str().expect("an id").to_owned()
    };
    let (missing, number) = (of("missing_type"), of("not_an_object"));
    assert!(missing.starts_with("quarantined.ingest/0/"), "{missing}");

    // More than a letter may have is refused as ever.
    let large = [b"{\"no\":\"", vec![b'x'; 2 << 20].as_slice(), b"\"}"].concat();
    let large = front.post(None, &large);
    assert_eq!((large.status, errors(&large)), (400, vec![(0, "too_large".to_owned())]));
    assert!(large.body.contains("not quarantined"), "{large:?}");

    let file = front.data().parent().expect("a folder").join("value");
    std::fs::write(&file, "{\"type\":\"mended\",\"n\":2}").expect("it can be written");
    let value = file.to_str().expect("UTF-8");
    let done = dlq(&worker, &["replay", "--id", &missing, "--value", value], 0);
    assert_eq!(done["replayed"], json!([missing]), "{done}");
    assert_eq!(dlq(&worker, &["purge", "--id", &number], 0)["purged"], json!([number]));
    assert!(letters(&front, &[]).is_empty());
    let mut archive = Archive::new(services.bucket("quarantined"));
    wait_archived(&mut archive, &[1, 2, 3]);
    // With nothing open, the space of all is given back.
    eventually("it is given back", PATIENCE, || {
        dlq(&worker, &["purge", "--to", "0s", "--all"], 0);
        letters(&worker, &["--all"]).is_empty().then_some(())
    });
    front.terminate();
    worker.terminate();
}

/// What readiness says of the topic.
fn topic_reason(daemon: &Daemon) -> Option<String> {
    daemon.readiness()["dependencies"]["kafka_topic"]["reason"].as_str().map(str::to_owned)
}

#[test]
fn of_a_lenient_request_only_events_for_a_partition_without_a_leader_are_sent_again() {
    let Some(brokers) = Brokers::start(2) else { return };
    brokers.create_topic_apart("lenient");
    let daemon = brokers.setup("lenient").set("queue.kafka.partitions", "2").start();
    let mut archive = Archive::local(&daemon.data().join("archive"));
    let event = |n: &u64| json!({"type": "a", "client_id": format!("client-{n}"), "n": n});
    let body = |numbers: &[u64]| Value::from(numbers.iter().map(event).collect::<Vec<_>>()).to_string().into_bytes();
    let all: Vec<u64> = (0..20).collect();
    brokers.node(2).kill();
    // From then on it is known beforehand, and what is refused was not sent.
    eventually("the partition is named", PATIENCE, || topic_reason(&daemon)?.contains("no leader").then_some(()));

    let whole = daemon.post(None, &body(&all));
    whole.assert_problem(503);
    assert!(whole.body.contains("nothing of this request was stored"), "{whole:?}");
    let reply = daemon.prefer("lenient", &body(&all));
    assert_eq!((reply.status, reply.preference_applied.as_deref()), (207, Some("handling=lenient")), "{reply:?}");
    assert!(reply.retry_after.is_some(), "{reply:?}");
    let json = reply.json();
    let failed = json["errors"].as_array().expect("errors");
    assert!(failed.iter().all(|error| error["code"] == "unavailable" && error["retry"] == true), "{reply:?}");
    assert!(
        failed.iter().all(|error| error["message"].as_str().is_some_and(|it| it.contains("no leader"))),
        "{reply:?}"
    );
    let again: Vec<u64> = errors(&reply).into_iter().map(|(index, _)| index).collect();
    assert!((1..20).contains(&again.len()), "{again:?}");
    assert_eq!((&json["accepted"], &json["rejected"]), (&json!(20 - again.len()), &json!(0)), "{reply:?}");

    brokers.node(2).restart();
    brokers.wait_in_sync("lenient", 1);
    let is_taken = || daemon.readiness()["dependencies"]["kafka_topic"]["available"] == true;
    eventually("it has a leader again", PATIENCE, || is_taken().then_some(()));
    let sent = daemon.prefer("lenient", &body(&again));
    assert_eq!((sent.status, &sent.json()["accepted"]), (200, &json!(again.len())), "{sent:?}");
    wait_archived(&mut archive, &all);
    daemon.terminate();
}
