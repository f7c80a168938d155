//! The doors of a running daemon: replies, health, queries, reload, signals.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

use serde_json::{Value, json};

use crate::support::{
    PATIENCE,
    daemon::{Daemon, Setup},
    eventually, free_port,
    http::Client,
    raw,
};

const LINES: Option<&str> = Some("application/x-ndjson");

#[test]
fn each_reply_says_what_became_of_each_event() {
    let daemon = Setup::new("replies")
        .set("http.max_body", "64KiB")
        .set("http.max_event", "1KiB")
        .set("event.on_invalid_time", "reject")
        .start();

    let one = daemon.post(None, br#"{"type":"a"}"#);
    assert_eq!((one.status, one.json()["accepted"].as_u64(), one.json()["rejected"].as_u64()), (200, Some(1), Some(0)));
    let id = one.json()["ids"][0].as_str().expect("an id").to_owned();
    assert!(id.len() == 36 && id.as_bytes()[14] == b'7', "{id} is a UUIDv7");

    let own =
        daemon.post(Some("application/json"), br#"[{"type":"a","event_id":"mine"},{"type":"b","event_id":"too"}]"#);
    assert_eq!((own.status, own.json()), (200, json!({"accepted": 2, "rejected": 0, "ids": ["mine", "too"]})));

    let none = daemon.post(None, b"[]");
    assert_eq!((none.status, none.json()), (200, json!({"accepted": 0, "rejected": 0, "ids": []})));

    let large = format!(r#"{{"type":"a","padding":"{}"}}"#, "x".repeat(2000));
    let mixed = format!(
        r#"[{{"type":"a","event_id":"1"}},{{"no":1}},{{"type":5}},"x",{{"type":"a","timestamp":"yesterday"}},
           {{"type":"a","event_id":{{}}}},{large}]"#
    );
    let mixed = daemon.post(None, mixed.as_bytes());
    assert_eq!((mixed.status, &mixed.json()["ids"]), (207, &json!(["1"])), "{mixed:?}");
    assert_eq!((&mixed.json()["accepted"], &mixed.json()["rejected"]), (&json!(1), &json!(6)));
    let expected = ["missing_type", "invalid_type", "not_an_object", "invalid_timestamp", "invalid_id", "too_large"];
    let expected: Vec<_> = (1..).zip(expected).map(|(index, code)| (index, code.to_owned())).collect();
    assert_eq!(errors(&mixed.json()), expected, "{mixed:?}");

    let lines = daemon.post(LINES, b"{\"type\":\"a\"}\n\n{broken\n \n{\"type\":\"b\"}");
    assert_eq!((lines.status, errors(&lines.json())), (207, vec![(1, "invalid_json".to_owned())]), "{lines:?}");

    let bad = daemon.post(None, br#"[{"no":1}]"#);
    assert_eq!((bad.status, &bad.json()["accepted"]), (400, &json!(0)), "{bad:?}");
    assert_eq!(errors(&bad.json()), [(0, "missing_type".to_owned())]);

    for whole in ["", "{\"type\":\"a\"", "[{\"type\":\"a\"},", "[{\"type\":\"a\"},{broken]"] {
        assert_eq!(daemon.post(None, whole.as_bytes()).status, 400, "{whole:?}");
    }
    // What was accepted, and nothing of what was refused, is counted.
    assert_eq!(daemon.metric("ingestd_events_accepted_total"), Some(6.0));
}

fn errors(reply: &Value) -> Vec<(u64, String)> {
    let errors = reply["errors"].as_array().expect("errors");
    let error = |error: &Value| {
        assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()), "{error}");
        (error["index"].as_u64().expect("index"), error["code"].as_str().expect("code").to_owned())
    };
    errors.iter().map(error).collect()
}

#[test]
fn times_are_those_that_readers_of_the_archive_know_and_the_last_of_them_can_be_asked_for() {
    let daemon =
        Setup::new("times").set("event.on_invalid_time", "reject").set("event.max_future", "10000years").start();
    let times = ["9999-12-31T23:59:59.999Z", "2026-12-31T23:58:60Z", "2026-12-31T23:59:59\u{2212}01:00"];
    let events: Vec<_> = times.iter().map(|time| json!({"type": "a", "timestamp": time})).collect();
    let reply = daemon.post(None, Value::from(events).to_string().as_bytes());
    assert_eq!(reply.status, 207, "{reply:?}");
    assert_eq!(errors(&reply.json()), [1, 2].map(|index| (index, "invalid_timestamp".to_owned())));
    let refused = daemon.get("/v1/aggregates/events_by_type?from=9999-12-31T23:59:30Z");
    let start = refused.body.split_whitespace().find_map(|word| word.strip_suffix(';').filter(|it| it.ends_with('Z')));
    let start = start.unwrap_or_else(|| panic!("it recommends a window: {refused:?}"));
    let row = eventually("the event is counted", PATIENCE, || {
        let reply = daemon.get(&format!("/v1/aggregates/events_by_type?from={start}")).json();
        Some(reply["rows"].as_array().expect("rows").first()?.clone())
    });
    assert_eq!((&row["window_start"], &row["count"]), (&json!("9999-12-31T23:59:00Z"), &json!(1)), "{row}");
    daemon.terminate();
}

#[test]
fn what_is_not_served_is_a_problem_with_its_status() {
    let daemon = Setup::new("problems").set("http.max_body", "64KiB").set("http.max_events", "10").start();
    let client = Client::new();
    let get = |url: String| client.get(&url).expect("an answer");
    let public = |path: &str| format!("http://{}{path}", daemon.http_address());

    daemon.post(Some("text/plain"), br#"{"type":"a"}"#).assert_problem(415);
    daemon.post(None, &vec![b' '; 65 << 10]).assert_problem(413);
    let method = get(daemon.events_url());
    method.assert_problem(405);
    assert_eq!(method.allow.as_deref(), Some("POST"));
    for elsewhere in ["/", "/v1", "/metrics", "/status", "/health/ready", "/v1/aggregates/events_by_type"] {
        assert_eq!(get(public(elsewhere)).status, 404, "{elsewhere} is not for the public side");
    }
    assert_eq!(get(public("/health")).status, 200);

    assert_eq!(daemon.get("/health/live").status, 200);
    assert_eq!(daemon.get("/status").status, 200);
    assert_eq!(daemon.get("/v1/aggregates/unknown").status, 404);
    for bad in ["from=yesterday", "to=1", "limit=0", "limit=1000001", "limit=x", "since=now"] {
        let reply = daemon.get(&format!("/v1/aggregates/events_by_type?{bad}"));
        let parameter = bad.split('=').next().expect("a name");
        assert_eq!(reply.status, 400, "{bad}: {reply:?}");
        assert!(reply.body.contains(parameter), "{bad}: the reply names the parameter: {reply:?}");
    }
}

#[test]
fn a_full_disk_is_answered_with_503_until_a_reload_raises_the_threshold() {
    let full = "[disk]\nmax_used_percent = 0.2\nresume_percent = 0.1\ncheck_interval = \"100ms\"\n";
    let daemon =
        Setup::new("disk").without("disk.max_used_percent").without("disk.resume_percent").config(full).spawn();
    eventually("it listens", PATIENCE, || TcpStream::connect(daemon.http_address()).ok());
    let refused = eventually("a refusal for the disk", PATIENCE, || {
        let reply = daemon.post(None, br#"{"type":"a"}"#);
        reply.body.contains("disk").then_some(reply)
    });
    refused.assert_problem(503);
    let retry_after = refused.retry_after.as_deref().and_then(|seconds| seconds.parse::<u32>().ok());
    assert!(retry_after.is_some_and(|seconds| seconds > 0), "{refused:?}");
    let ready = daemon.get("/health/ready");
    assert_eq!((ready.status, &ready.json()["ready"]), (503, &json!(false)), "{ready:?}");
    assert!(ready.body.contains("disk"), "readiness says why: {ready:?}");

    daemon.write_config("[disk]\nmax_used_percent = 99.5\nresume_percent = 99.0\ncheck_interval = \"100ms\"\n");
    assert_eq!(daemon.reload().status, 200);
    daemon.wait_ready();
    assert_eq!(daemon.post(None, br#"{"type":"a"}"#).status, 200);
    daemon.terminate();
}

#[test]
fn a_log_at_its_quota_makes_the_process_unready_until_the_sinks_have_caught_up() {
    let daemon = Setup::new("quota")
        .set("queue.embedded.quota", "100KiB")
        .without("spool.max_age")
        .config("[spool]\nmax_age = \"1h\"\n")
        .start();
    let event = format!(r#"{{"type":"a","padding":"{}"}}"#, "x".repeat(30_000));
    let refused = eventually("a refusal for the quota", PATIENCE, || {
        let reply = daemon.post(None, event.as_bytes());
        (reply.status != 200).then_some(reply)
    });
    refused.assert_problem(503);
    assert!(refused.body.contains("queue.embedded.quota"), "{refused:?}");
    assert!(refused.body.contains("nothing of this request was stored"), "{refused:?}");
    let health = format!("http://{}/health", daemon.http_address());
    eventually("unready", PATIENCE, || (Client::new().get(&health).ok()?.status == 503).then_some(()));
    let readiness = daemon.readiness();
    let log = &readiness["dependencies"]["embedded_log"];
    assert_eq!((&readiness["degraded"], &log["available"]), (&json!(true), &json!(false)), "{readiness}");
    assert!(log["reason"].as_str().is_some_and(|why| why.contains("queue.embedded.quota")), "{readiness}");
    assert!(daemon.log().contains("queue.embedded.quota"), "the log says so, too");

    daemon.write_config("[spool]\nmax_age = \"100ms\"\n");
    assert_eq!(daemon.reload().status, 200);
    daemon.wait_ready();
    assert_eq!(daemon.post(None, event.as_bytes()).status, 200);
    daemon.terminate();
}

#[test]
fn a_reload_names_what_needs_a_restart_and_a_bad_file_changes_nothing() {
    let daemon = Setup::new("reload").config("[queue]\ntopic = \"first\"\n").start();
    let bad = [
        ("[que]\ntopic = \"first\"\n", "queue"),
        ("[queue]\ntopic = \"first\"\n[batch]\nmax_records = \"many\"\n", "batch.max_records"),
        ("[queue\n", "config.toml"),
    ];
    for (text, names) in bad {
        daemon.write_config(text);
        let reply = daemon.reload();
        reply.assert_problem(422);
        assert!(reply.body.contains(names), "{names} in {reply:?}");
    }
    daemon.write_config("[queue]\ntopic = \"second\"\n");
    let reply = daemon.reload();
    assert_eq!((reply.status, &reply.json()["needs_restart"]), (200, &json!(["queue.topic"])), "{reply:?}");
    daemon.write_config("[queue]\ntopic = \"first\"\n");
    assert_eq!(daemon.reload().json()["needs_restart"], json!([]));
    assert_eq!(daemon.post(None, br#"{"type":"a"}"#).status, 200);

    assert!(daemon.get("/status").json()["config_file"].as_str().is_some_and(|file| file.ends_with("config.toml")));
    let reloads = || daemon.log().to_lowercase().matches("reload").count();
    let before = reloads();
    daemon.signal("HUP");
    eventually("SIGHUP reloads", PATIENCE, || (reloads() > before).then_some(()));
    daemon.terminate();
}

#[test]
fn a_stop_whose_positions_cannot_be_committed_says_so_and_fails() {
    let daemon = Setup::new("uncommitted").set("spool.max_age", "1h").start();
    assert_eq!(daemon.post(None, br#"{"type":"a"}"#).status, 200);
    daemon.wait_read(1);
    // The archive's position moves with the upload at the stop, which the log cannot take while another writes.
    let other = rusqlite::Connection::open(daemon.data().join("log.db")).expect("the log");
    other.execute_batch("BEGIN IMMEDIATE").expect("a turn to write");
    daemon.signal("TERM");
    assert_eq!(daemon.wait_exit(PATIENCE), 1);
    let log = daemon.log();
    assert!(log.contains("not committed") && log.contains("database is locked"), "{log}");
    assert!(!log.contains("positions are committed"), "{log}");
}

#[test]
fn a_log_that_was_restored_from_an_older_copy_halts_the_aggregates_that_are_ahead_of_it() {
    let mut daemon = Setup::new("restored").start();
    let count_one = |daemon: &Daemon| {
        assert_eq!(daemon.post(None, br#"{"type":"a"}"#).status, 200);
        eventually("counted", PATIENCE, || (daemon.metric("ingestd_events_aggregated_total")? >= 1.0).then_some(()));
        daemon.terminate();
    };
    count_one(&daemon);
    let (log, copy) = (daemon.data().join("log.db"), daemon.data().join("copy"));
    std::fs::copy(&log, &copy).expect("a copy");
    daemon.restart();
    count_one(&daemon);
    std::fs::rename(&copy, &log).expect("the copy in its place");
    daemon.restart();
    let halted = eventually("halted", PATIENCE, || {
        let readiness = daemon.readiness();
        let mut halted = readiness["halted"].as_array()?.iter();
        halted.find(|halted| halted["sink"] == "aggregate").cloned()
    });
    assert!(halted["reason"].as_str().is_some_and(|reason| reason.contains("the log ends at 1")), "{halted}");
    daemon.terminate();
}

#[test]
fn a_file_of_a_secret_is_watched_and_not_shown_as_the_configuration_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let secret = folder.path().join("secret");
    std::fs::write(&secret, "one").expect("the folder was just made");
    let daemon = Setup::new("secret")
        .set("archive.options.secret_access_key_file", secret.display())
        .set("disk.check_interval", "50ms")
        .start();
    assert_eq!(daemon.get("/status").json()["config_file"], Value::Null);
    std::fs::write(&secret, "another").expect("it was written before");
    eventually("a reload", PATIENCE, || daemon.log().contains("archive.options.secret_access_key").then_some(()));
    daemon.terminate();
}

#[test]
fn a_second_signal_ends_a_drain_at_once_with_status_4() {
    let daemon = Setup::new("signals").set("http.request_timeout", "60s").set("shutdown.timeout", "60s").start();
    // A request that never ends keeps the drain waiting.
    let mut request = TcpStream::connect(daemon.http_address()).expect("it listens");
    request.write_all(b"POST /v1/events HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{").expect("it reads");
    eventually("the request has arrived", PATIENCE, || {
        (daemon.metric("ingestd_in_flight_bytes").unwrap_or_default() > 0.0).then_some(())
    });
    daemon.signal("TERM");
    eventually("unready", PATIENCE, || (daemon.get("/health/ready").status == 503).then_some(()));
    daemon.signal("TERM");
    assert_eq!(daemon.wait_exit(Duration::from_secs(20)), 4);
    // The client was promised nothing.
    let mut answer = String::new();
    let _ = request.read_to_string(&mut answer);
    assert!(!answer.starts_with("HTTP/1.1 2"), "{answer}");
    daemon.assert_no_panic();
}

#[test]
fn a_host_name_is_bound_at_all_its_addresses_and_a_byte_order_mark_is_no_part_of_a_secret() {
    let port = free_port();
    let secret = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(secret.path(), "\u{feff}test\n").expect("it can be written");
    let daemon = Setup::new("names")
        .set("http.listen", format!("localhost:{port}"))
        .set("archive.url", "s3://bucket/raw")
        .set("archive.options.endpoint", "http://127.0.0.1:1")
        .set("archive.options.access_key_id", "test")
        .set("archive.options.secret_access_key_file", secret.path().display())
        .start();
    let addresses: Vec<_> = std::net::ToSocketAddrs::to_socket_addrs(&("localhost", port)).expect("a name").collect();
    assert!(!addresses.is_empty());
    for address in addresses {
        let answer = Client::new().get(&format!("http://{address}/health")).expect("it is bound there, too");
        assert_eq!(answer.status, 200, "{address}");
    }
    daemon.terminate();
    std::fs::write(secret.path(), b"\xff\xfet\0e\0s\0t\0").expect("it can be written");
    let check = daemon.command(&["check"]);
    assert!(
        check.status == Some(78) && check.error.contains("UTF-16") && check.error.contains("secret_access_key_file"),
        "{check:?}"
    );
}

#[test]
fn metrics_come_as_the_scraper_asks_for_them() {
    let daemon = Setup::new("scraper").start();
    let ask = |headers: &str| {
        let address = daemon.admin_url("").trim_start_matches("http://").to_owned();
        let request = format!("GET /metrics HTTP/1.1\r\nhost: a\r\nconnection: close\r\n{headers}\r\n");
        let mut outcome = raw::exchange(&address, request.as_bytes(), 1, true, PATIENCE);
        outcome.answers.remove(0)
    };
    let (open, text) =
        (ask("accept: application/openmetrics-text;version=1.0.0\r\n"), ask("accept: text/plain;version=0.0.4\r\n"));
    assert!(
        open.head.contains("content-type: application/openmetrics-text") && open.body.ends_with(b"# EOF\n"),
        "{}",
        open.head
    );
    assert!(text.head.contains("content-type: text/plain; version=0.0.4"), "{}", text.head);
    let text = String::from_utf8(text.body).expect("text");
    assert!(text.contains("# TYPE ingestd_events_accepted_total counter") && !text.contains("# EOF"), "{text}");
    let zipped = ask("accept: text/plain;version=0.0.4\r\naccept-encoding: gzip\r\n");
    assert!(zipped.head.contains("content-encoding: gzip") && zipped.body.starts_with(b"\x1f\x8b"), "{}", zipped.head);
    daemon.terminate();
}

#[test]
fn of_pipelined_requests_each_answer_is_its_own_requests() {
    let daemon = Setup::new("pipelined").start();
    let post = |version: &str, header: &str| {
        format!("POST /v1/events HTTP/{version}\r\nhost: a\r\n{header}content-length: 12\r\n\r\n{{\"type\":\"a\"}}")
    };
    for last in [post("1.1", "connection: close\r\n"), post("1.0", "")] {
        let requests = post("1.1", "") + &last;
        let outcome = raw::exchange(daemon.http_address(), requests.as_bytes(), 2, true, PATIENCE);
        assert_eq!(outcome.summary(), "200, 200, closed");
        assert!(!outcome.answers[0].head.to_lowercase().contains("connection: close"), "{}", outcome.answers[0].head);
        assert!(outcome.answers[0].head.starts_with("HTTP/1.1 "), "{}", outcome.answers[0].head);
    }
    eventually("all four stand in the log", PATIENCE, || {
        (daemon.metric("ingestd_events_archived_total")? == 4.0).then_some(())
    });
    daemon.terminate();
}
