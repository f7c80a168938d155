//! `ingestd dlq` on a running daemon, on one that was killed, and on the queue itself.

use std::{collections::BTreeMap, thread, time::Duration};

use chrono::{TimeDelta, Utc};
use serde_json::{Value, json};

use crate::support::{
    PATIENCE,
    archive::Archive,
    daemon::{Daemon, Ran, Setup},
    eventually,
    oracle::query,
    services::services,
};

/// Its definition stays the same whatever `event.type_field` is.
const CONFIG: &str = r#"
[[aggregate]]
name = "events_by_type"
window = "1m"
group_by = ["client_id", "type"]
"#;
const LETTERS: usize = 300;

/// Again while Kafka does not answer: a broker on a busy machine may pause for longer than an operation waits.
fn dlq(daemon: &Daemon, arguments: &[&str]) -> Ran {
    eventually("Kafka answers", PATIENCE, || {
        let ran = daemon.command(&[&["dlq"], arguments, &["--json"]].concat());
        let away = ran.status == Some(1) && ran.error.contains("Kafka at");
        (!away).then_some(ran)
    })
}

fn list(daemon: &Daemon, arguments: &[&str]) -> Vec<Value> {
    let listed = dlq(daemon, &[&["list"], arguments].concat()).json(0);
    listed["dead_letters"].as_array().expect("dead_letters").clone()
}

fn ids(letters: &[Value]) -> Vec<String> {
    letters.iter().map(|letter| letter["id"].as_str().expect("an id").to_owned()).collect()
}

fn length(value: &Value) -> usize {
    value.as_array().map_or(0, Vec::len)
}

/// A daemon with `letters` letters, which are valid events for whoever reads the field `type`.
fn with_letters(setup: Setup, store: &str, letters: usize) -> Daemon {
    // Accepted as events while nobody reads them …
    let mut daemon = setup.config(CONFIG).set("store.kind", "none").start();
    let lines: Vec<_> = (0..letters).map(|n| format!(r#"{{"type":"a", "client_id":"c{}","n":{n}}}"#, n % 5)).collect();
    let reply = daemon.post(Some("application/x-ndjson"), lines.join("\n").as_bytes());
    assert_eq!(reply.status, 200, "{reply:?}");
    daemon.kill();
    // … and read by a configuration for which they are none.
    daemon.set("store.kind", store);
    daemon.set("event.type_field", "kind");
    daemon.restart();
    eventually("the letters are there", PATIENCE, || {
        let found = list(&daemon, &["--limit", "100000"]).len();
        assert!(found <= letters, "{found} letters");
        (found == letters).then_some(())
    });
    daemon
}

/// How often each event stands in the archive.
fn copies(archive: &mut Archive) -> BTreeMap<u64, usize> {
    archive.refresh();
    let mut copies = BTreeMap::new();
    for line in archive.lines() {
        let event: Value = serde_json::from_slice(line.value.as_deref().expect("a value")).expect("an event");
        *copies.entry(event["n"].as_u64().expect("n")).or_default() += 1;
    }
    copies
}

fn counted(daemon: &Daemon) -> u64 {
    query(daemon, Utc::now() - TimeDelta::hours(1), Utc::now() + TimeDelta::hours(1)).values().sum()
}

/// Everything that an operator does, with kills in between; in the end each event was counted once, and stands in the
/// archive twice: as the record that became a letter, and as its replay.
fn an_operators_day(setup: Setup, store: &str, mut archive: Archive) {
    let mut daemon = with_letters(setup, store, LETTERS);
    let all = list(&daemon, &["--limit", "100000"]);
    assert!(all.is_sorted_by_key(|letter| letter["time"].as_str().expect("a time").to_owned()));

    // Filters.
    let first = all[0]["id"].as_str().expect("an id");
    let partition = all[0]["partition"].to_string();
    assert_eq!(list(&daemon, &["--reason", "invalid_json"]).len(), 0);
    assert_eq!(list(&daemon, &["--reason", "missing_type"]).len(), 100, "the default limit");
    assert_eq!(list(&daemon, &["--to", "1h"]).len(), 0);
    assert_eq!(list(&daemon, &["--from", "1h", "--limit", "7"]).len(), 7);
    assert_eq!(list(&daemon, &["--partition", "77"]).len(), 0);
    let of_partition = all.iter().filter(|letter| letter["partition"] == all[0]["partition"]).count();
    assert_eq!(list(&daemon, &["--partition", &partition, "--limit", "1000"]).len(), of_partition);
    assert_eq!(ids(&list(&daemon, &["--id", first])), [first]);
    assert_eq!(list(&daemon, &["--id", "nothing/0/0"]).len(), 0);
    assert_eq!(dlq(&daemon, &["list", "--limit", "3"]).json(0)["truncated"], true);

    let shown = dlq(&daemon, &["show", "--id", first]).json(0);
    let value: Value = serde_json::from_str(shown["value"].as_str().expect("text")).expect("what was sent");
    assert_eq!(
        (&value["type"], &shown["reason"], &shown["state"]),
        (&json!("a"), &json!("missing_type"), &json!("open"))
    );
    assert_eq!(shown["headers"][0]["name"], "id");

    // What is still no event stays a letter.
    let refused = dlq(&daemon, &["replay", "--limit", "2"]).json(1);
    assert_eq!((length(&refused["replayed"]), length(&refused["refused"])), (0, 2), "{refused}");
    assert_eq!(refused["refused"][0]["reason"], "missing_type");

    // A configuration that makes them valid; first without a daemon.
    daemon.kill();
    daemon.set("event.type_field", "type");
    let replayed = dlq(&daemon, &["replay", "--id", first]).json(0);
    assert_eq!(replayed["replayed"], json!([first]), "{replayed}");
    let again = dlq(&daemon, &["replay", "--id", first]).json(0);
    assert_eq!((&again["replayed"], &again["already"]), (&json!([]), &json!([first])));
    // Several processes at once, and one that is killed on its way: they lock or fence each other.
    thread::scope(|scope| {
        scope.spawn(|| {
            let after = Duration::from_millis(fastrand::u64(100..1500));
            daemon.command_that_is_killed(&["dlq", "replay", "--limit", "60"], after);
        });
        for _ in 0..2 {
            scope.spawn(|| daemon.command(&["dlq", "replay", "--limit", "60"]));
        }
    });
    daemon.restart();

    // Several at once, and a kill in the middle.
    thread::scope(|scope| {
        let running: Vec<_> = (0..3).map(|_| scope.spawn(|| dlq(&daemon, &["replay"]))).collect();
        thread::sleep(Duration::from_millis(fastrand::u64(50..400)));
        daemon.kill();
        // Whatever they say: what counts is what stands in the log.
        running.into_iter().for_each(|ran| drop(ran.join()));
    });
    daemon.restart();
    eventually("a replay gets through", PATIENCE, || (dlq(&daemon, &["replay"]).status == Some(0)).then_some(()));
    daemon.kill();
    daemon.restart();
    assert_eq!(length(&dlq(&daemon, &["replay"]).json(0)["replayed"]), 0);
    let already = dlq(&daemon, &["replay", "--id", first]).json(0);
    assert_eq!(already["already"], json!([first]));
    assert_eq!(list(&daemon, &[]).len(), 0);
    assert_eq!(list(&daemon, &["--all", "--limit", "1000"]).len(), LETTERS);

    eventually("each replay is counted", PATIENCE, || {
        let counted = counted(&daemon);
        assert!(counted <= LETTERS as u64, "{counted} counted");
        (counted == LETTERS as u64).then_some(())
    });
    eventually("each replay is archived", PATIENCE, || {
        let copies = copies(&mut archive);
        assert!(copies.values().all(|copies| *copies <= 2), "{copies:?}");
        (copies.len() == LETTERS && copies.values().all(|copies| *copies == 2)).then_some(())
    });

    // Neither do the markers of Kafka's transactions look like records that wait.
    eventually("no lag", PATIENCE, || (daemon.metric("ingestd_lag_records") == Some(0.0)).then_some(()));

    // Purge.
    assert_eq!(daemon.command(&["dlq", "purge"]).status, Some(2), "it must be said which");
    let unknown = dlq(&daemon, &["purge", "--id", "nothing/0/0"]);
    assert!(unknown.status == Some(1) && unknown.error.contains("nothing/0/0"), "{unknown:?}");
    dlq(&daemon, &["purge", "--to", "0s", "--all"]).json(0);
    eventually("nothing is left", PATIENCE, || {
        dlq(&daemon, &["purge", "--to", "0s", "--all"]).json(0);
        list(&daemon, &["--all"]).is_empty().then_some(())
    });
    daemon.terminate();
}

#[test]
fn replayed_letters_of_the_embedded_log_are_counted_and_archived_once_whatever_is_killed() {
    let folder = tempfile::tempdir_in(crate::support::scratch()).expect("target can be written to");
    let archive = folder.path().join("archive");
    let setup = Setup::new("operator").set("archive.url", format!("file://{}", archive.display()));
    an_operators_day(setup, "embedded", Archive::local(&archive));
}

#[test]
fn replayed_letters_on_kafka_are_counted_and_archived_once_whatever_is_killed() {
    let Some(services) = services() else { return };
    services.create_bucket("operator");
    an_operators_day(services.setup("operator"), "mongodb", Archive::new(services.bucket("operator")));
    // What was purged is freed, but for the markers of the last transactions.
    let logs = services.watermarks("operator.dlq");
    assert!(logs.iter().any(|(_, _, end)| *end > 0), "{logs:?}");
    assert!(logs.iter().all(|(_, start, end)| end - start <= 10), "{logs:?}");
}

#[test]
fn a_letter_is_replayed_with_corrected_bytes_and_what_is_purged_stays_away() {
    let daemon = with_letters(Setup::new("corrected"), "embedded", 3);
    let file = daemon.data().parent().expect("a folder").join("value");
    let path = file.to_str().expect("UTF-8").to_owned();
    std::fs::write(&file, "{\"kind\":\"mended\",\"type\":\"b\",\"client_id\":\"x\"}\n").expect("it can be written");
    let two = dlq(&daemon, &["replay", "--id", "events/0/0", "--id", "events/0/1", "--value", &path]);
    assert!(two.status == Some(1) && two.error.contains("one letter"), "{two:?}");
    let mended = dlq(&daemon, &["replay", "--id", "events/0/0", "--value", &path]).json(0);
    assert_eq!(mended["replayed"], json!(["events/0/0"]));
    eventually("it is counted", PATIENCE, || (counted(&daemon) == 1).then_some(()));
    std::fs::write(&file, "{\"no\":\"kind\"}").expect("it can be written");
    let refused = dlq(&daemon, &["replay", "--id", "events/0/1", "--value", &path]).json(1);
    assert_eq!(refused["refused"][0]["reason"], "missing_type");

    assert_eq!(dlq(&daemon, &["purge", "--id", "events/0/1"]).json(0)["purged"], json!(["events/0/1"]));
    assert_eq!(ids(&list(&daemon, &[])), ["events/0/2"]);
    daemon.terminate();
}

#[test]
fn who_cannot_be_asked_is_named() {
    let daemon = with_letters(Setup::new("asked"), "embedded", 1);
    let nobody = dlq(&daemon, &["list", "--admin", "http://127.0.0.1:1"]);
    assert!(nobody.status == Some(1) && nobody.error.contains("nobody listens"), "{nobody:?}");
    let no_url = dlq(&daemon, &["list", "--admin", "ftp://x"]);
    assert!(no_url.status == Some(2) && no_url.error.contains("--admin"), "{no_url:?}");
    // Its folder is locked, so nobody works on it behind its back.
    let elsewhere = daemon.command_with(&["dlq", "list"], &[("admin.listen", "127.0.0.1:1")]);
    assert!(elsewhere.status == Some(1) && elsewhere.error.contains("another ingestd"), "{elsewhere:?}");
    let nowhere = [("admin.listen", "127.0.0.1:1"), ("data.dir", "nowhere")];
    let nowhere = daemon.command_with(&["dlq", "list"], &nowhere);
    assert!(nowhere.status == Some(1) && nowhere.error.contains("no embedded log in nowhere"), "{nowhere:?}");
    let bad_time = dlq(&daemon, &["list", "--to", "yesterday"]);
    assert!(bad_time.status == Some(2) && bad_time.error.contains("RFC 3339"), "{bad_time:?}");
    let unknown = dlq(&daemon, &["show", "--id", "events/0/7"]);
    assert!(unknown.status == Some(1) && unknown.error.contains("no dead letter events/0/7"), "{unknown:?}");

    for (method, path, status) in [
        ("GET", "/v1/dead-letters?limit=x", 400),
        ("GET", "/v1/dead-letters/events/0/7", 404),
        ("DELETE", "/v1/dead-letters", 400),
        ("DELETE", "/v1/dead-letters/events/0/0", 405),
        ("GET", "/v1/dead-letters/replay", 405),
        ("POST", "/v1/dead-letters/replay?id=events/0/7", 404),
    ] {
        daemon.ask(method, path).assert_problem(status);
    }
    assert_eq!(list(&daemon, &[]).len(), 1);
    daemon.terminate();
}

#[test]
fn an_event_that_mongodb_refuses_for_good_becomes_a_letter_and_the_line_goes_on() {
    let Some(services) = services() else { return };
    let daemon = Setup::new("refused")
        .set("store.kind", "mongodb")
        .set("store.url", format!("mongodb://{}/?directConnection=true", services.mongodb.address()))
        .set("store.database", "refused")
        .set("store.events", true)
        .set("http.max_event", "16MiB")
        .set("http.max_body", "17MiB")
        .start();
    let large = |field: &str, bytes: usize| {
        let event = |filling: &str| format!(r#"{{"type":"large","{field}":"{filling}"}}"#);
        event(&"x".repeat(bytes - event("").len()))
    };
    // Beyond what a document may have with its type and times; as an event it is within all limits.
    let (most, refused) = (16 << 20, "client_id");
    let events = [r#"{"type":"a","client_id":"c"}"#.to_owned(), large(refused, most), large("other", most)];
    for event in &events {
        let reply = daemon.post(None, event.as_bytes());
        assert_eq!(reply.status, 200, "{reply:?}");
    }
    let letters = eventually("the line goes on", PATIENCE, || {
        let letters = list(&daemon, &[]);
        (letters.len() == 1 && counted(&daemon) == 2).then_some(letters)
    });
    assert_eq!((&letters[0]["reason"], &letters[0]["offset"]), (&json!("refused_by_store"), &json!(1)), "{letters:?}");
    assert!(letters[0]["message"].as_str().is_some_and(|why| why.contains("more than a document may have")));
    assert_eq!(letters[0]["size"], most);
    let documents = services.documents("refused", "events");
    assert_eq!(documents.len(), 2, "the others are kept, the large one without its bytes");
    daemon.terminate();
}
