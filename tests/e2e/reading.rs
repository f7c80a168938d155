//! What readers of the archive find: the recipes of docs/reading.md, and what stands there of an older release.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use chrono::{DateTime, Utc};
use rusqlite::Connection;
use serde_json::Value;

use crate::support::{
    PATIENCE,
    daemon::{Daemon, Setup},
    eventually, program, skip,
};

/// What no I-JSON allows, by the word that the refusal has.
const UNREADABLE: [(&str, &str); 4] = [
    (r#"{"type":"a","client_id":"c","n":1e400}"#, "1e400"),
    (r#"{"type":"b","client_id":"c","x":"\ud800"}"#, "surrogate"),
    (r#"{"type":"a","client_id":"c","x":{"y":1,"y":2}}"#, "stands twice"),
    ("{\"type\":\"a\",\r\n\"type\":\"b\",\"client_id\":\"c\"}", "stands twice"),
];

#[test]
fn every_light_reader_of_the_guide_reads_each_record_by_its_recipe() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/readers/run.py");
    let run =
        Command::new("python3").arg(script).args(["--binary", &program(), "light"]).output().expect("python3 runs");
    let said = String::from_utf8_lossy(&[run.stdout, run.stderr].concat()).into_owned();
    if run.status.code() == Some(77) {
        return skip("the readers' packages cannot be installed");
    }
    assert!(run.status.success() && said.contains("4 passed, 0 failed"), "{said}");
}

/// 60,000 events, or `INGESTD_PROOF_EVENTS`: what docs/aggregates.md says was measured with a million.
fn aggregates_are_duckdbs(store: &str) {
    let events = std::env::var("INGESTD_PROOF_EVENTS").unwrap_or_else(|_| "60000".to_owned());
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/readers/aggregates.py");
    let arguments = ["--binary", &program(), "--store", store, "--events", &events];
    let run = Command::new("python3").arg(script).args(arguments).output().expect("python3 runs");
    let said = String::from_utf8_lossy(&[run.stdout, run.stderr].concat()).into_owned();
    if run.status.code() == Some(77) {
        return skip("DuckDB, or MongoDB, cannot be installed");
    }
    eprintln!("{said}");
    assert!(run.status.success() && said.matches("rows are DuckDB's").count() == 9, "{said}");
}

#[test]
fn aggregates_of_all_measures_answer_what_duckdb_computes_over_the_archive_on_the_embedded_store() {
    aggregates_are_duckdbs("embedded");
}

#[test]
fn aggregates_of_all_measures_answer_what_duckdb_computes_over_the_archive_on_mongodb() {
    aggregates_are_duckdbs("mongodb");
}

fn post(daemon: &Daemon, event: &str) -> u16 {
    daemon.post(None, event.as_bytes()).status
}

fn verified(daemon: &Daemon) -> Value {
    let report = daemon.run(&["archive", "verify", "--json"]);
    assert!(report.status.success(), "{report:?}");
    serde_json::from_slice(&report.stdout).expect("it is JSON")
}

#[test]
fn what_not_every_reader_takes_is_refused_or_stands_as_raw_and_an_object_of_an_older_release_is_followed() {
    // One segment, which stays open until the stop.
    let setup = Setup::new("older").set("spool.max_age", "1h").set("event.on_unreadable", "accept");
    let mut daemon = setup.start();
    let before = Utc::now();
    for (event, _) in UNREADABLE {
        assert_eq!(post(&daemon, event), 200);
    }
    let after = Utc::now();
    daemon.wait_read(UNREADABLE.len());
    // Another writer was faster: commit da1f0d3, which let all JSON stand as events.
    let lines: String = (0..)
        .zip(UNREADABLE)
        .map(|(offset, (event, _))| {
            let event = event.replace(['\r', '\n'], " ");
            format!("{{\"offset\":{offset},\"received\":\"{}\",\"event\":{event}}}\n", rfc3339(before))
        })
        .collect();
    let archive = daemon.data().join("archive");
    let object = |hour: DateTime<Utc>| {
        let folder = archive.join(hour.format("topic=events/date=%Y-%m-%d/hour=%H").to_string());
        fs::create_dir_all(&folder).expect("a folder");
        folder.join(format!("0-{:020}.ndjson.zst", 0))
    };
    let theirs = zstd::encode_all(lines.as_bytes(), 1).expect("it compresses");
    // The hour may have ended in between: the name is that of the first record's.
    for hour in [before, after] {
        fs::write(object(hour), &theirs).expect("it can be written");
    }
    daemon.terminate();
    if object(before) != object(after) {
        return;
    }
    assert!(fs::read(object(before)).expect("it stands") == theirs, "nothing that stands is overwritten");
    let report = verified(&daemon);
    let partition = &report["partitions"][0];
    assert_eq!((&partition["records"], &partition["end"]), (&4.into(), &4.into()), "{report}");
    assert_eq!(partition["unreadable_events_in_all"], 4, "{report}");
    assert_eq!(partition["unreadable_events"][0]["offset"], 0, "{report}");

    // It goes on behind it, by its own rule; the door has changed its mind.
    daemon.restart();
    assert_eq!(post(&daemon, UNREADABLE[0].0), 200);
    daemon.wait_read(1);
    daemon.terminate();
    let report = verified(&daemon);
    assert_eq!(
        (&report["partitions"][0]["records"], &report["partitions"][0]["unreadable_events_in_all"]),
        (&5.into(), &4.into())
    );
    daemon.set("event.on_unreadable", "reject");
    daemon.restart();
    for (event, word) in UNREADABLE {
        let reply = daemon.post(None, event.as_bytes());
        assert!(reply.status == 400 && reply.body.contains("invalid_json") && reply.body.contains(word), "{reply:?}");
    }
    daemon.terminate();
}

fn rfc3339(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(chrono::SecondsFormat::Millis, true)
}

/// Counts by type, in this order, of the last hour.
fn counts(daemon: &Daemon) -> [u64; 2] {
    counts_in(daemon, "")
}

fn counts_in(daemon: &Daemon, range: &str) -> [u64; 2] {
    let reply = daemon.get(&format!("/v1/aggregates/events_by_type{range}"));
    let answer: Value = serde_json::from_str(&reply.body).expect("it is JSON");
    let rows = answer["rows"].as_array().cloned().unwrap_or_default();
    ["a", "b"].map(|wanted| {
        let of_type = rows.iter().filter(|row| row["group"]["type"] == wanted);
        of_type.filter_map(|row| row["count"].as_u64()).sum()
    })
}

#[test]
fn what_was_accepted_under_another_key_is_counted_once_over_a_change_between_a_flush_and_its_commit() {
    let setup = Setup::new("change").set("event.on_unreadable", "accept").set("archive.url", "none");
    // Nothing is trimmed from the log while the test sets its reader back.
    let mut daemon = setup.set("queue.embedded.retention", "1h").set("aggregator.flush_interval", "100ms").start();
    let all: Vec<&str> = UNREADABLE.iter().map(|(event, _)| *event).cycle().take(200).collect();
    for event in &all {
        assert_eq!(post(&daemon, event), 200);
    }
    eventually("all are counted", PATIENCE, || (counts(&daemon) == [100, 100]).then_some(()));
    let open = |name: &str| Connection::open(daemon.data().join(name)).expect("it is SQLite");
    eventually("and the position stands", PATIENCE, || {
        let position = "SELECT position FROM cursors WHERE sink = 'aggregate'";
        (open("log.db").query_row(position, [], |row| row.get(0)) == Ok(200)).then_some(())
    });
    daemon.kill();
    // As a kill in the middle of a flush leaves it on MongoDB: one bucket is written, another not, the position neither.
    let set_back = open("log.db").execute("UPDATE cursors SET position = 0 WHERE sink = 'aggregate'", []);
    let taken_back = open("store.db").execute("DELETE FROM bucket WHERE grp LIKE '%\"b\"%'", []);
    assert!(matches!((&set_back, &taken_back), (Ok(1), Ok(1..))), "{set_back:?}, {taken_back:?}");
    daemon.set("event.on_unreadable", "reject");
    daemon.restart();
    eventually("all are counted again, each once", PATIENCE, || (counts(&daemon) == [100, 100]).then_some(()));
    assert_eq!(post(&daemon, r#"{"type":"a","client_id":"c"}"#), 200);
    assert_eq!(post(&daemon, all[0]), 400);
    eventually("and what comes after", PATIENCE, || (counts(&daemon) == [101, 100]).then_some(()));
    let letters = daemon.command(&["dlq", "list", "--json"]).json(0);
    assert_eq!(letters["dead_letters"], serde_json::json!([]));
    daemon.terminate();
}

/// What a killed daemon of commit da1f0d3 left: `data` with five events in its log, all counted and not all positions
/// committed, and two sealed segments (offsets 1 to 5, of which three events are no I-JSON), and `archive` with offset 0.
fn unpack_older(folder: &Path) {
    let packed: &[u8] = include_bytes!("reading/da1f0d3.tar.zst");
    let mut tar = Command::new("tar").args(["-x", "-C"]).arg(folder).stdin(Stdio::piped()).spawn().expect("tar runs");
    zstd::stream::copy_decode(packed, tar.stdin.take().expect("it is piped")).expect("tar reads all");
    assert!(tar.wait().expect("it ends").success());
    // A segment belongs to one archive, and this one stands where the test has its folders.
    for start in [1, 3] {
        let path = folder.join(format!("data/spool/events/0/{start:020}.json"));
        let sealed = fs::read_to_string(&path).expect("it was unpacked");
        let header = sealed.split_once(r#""header":"#).and_then(|(_, rest)| rest.strip_suffix('}')).expect("a header");
        let here = header.replace("file:///srv/archive", &archive_of(folder));
        assert_ne!(here, header);
        let sealed = format!(r#"{{"crc32c":{},"header":{here}}}"#, crc32c::crc32c(here.as_bytes()));
        fs::write(&path, sealed).expect("it can be written");
    }
}

fn archive_of(folder: &Path) -> String {
    format!("file://{}/archive", folder.display())
}

#[test]
fn a_data_directory_of_an_older_release_with_sealed_segments_is_carried_on() {
    let folder = tempfile::tempdir().expect("a folder");
    unpack_older(folder.path());
    let daemon = Setup::new("upgraded")
        .data(folder.path().join("data"))
        .set("archive.url", archive_of(folder.path()))
        .set("aggregator.flush_interval", "100ms")
        .start();
    assert_eq!(post(&daemon, UNREADABLE[0].0), 400);
    assert_eq!(post(&daemon, r#"{"type":"a","client_id":"c"}"#), 200);
    eventually("six are archived", PATIENCE, || {
        let partition = &verified(&daemon)["partitions"][0];
        (partition["records"] == 6 && partition["end"] == 6).then_some(())
    });
    eventually("each is counted once", PATIENCE, || {
        (counts_in(&daemon, "?from=2026-11-28T23:00:00Z") == [4, 2]).then_some(())
    });
    // The segments were sealed by the rule of before, and stand as they are.
    assert_eq!(verified(&daemon)["partitions"][0]["unreadable_events_in_all"], 3);
    assert_eq!(daemon.readiness()["degraded"], false);
    daemon.terminate();
    assert_eq!(fs::read_dir(folder.path().join("data/spool/events/0")).expect("a folder").count(), 0);
}
