//! What a request is called, and which trace it is a part of: from its head to the log's lines, the archive and a replay.

use serde_json::json;

use crate::support::{
    PATIENCE,
    archive::{Archive, Line},
    daemon::Setup,
    eventually,
    http::Client,
    scratch,
};

const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
const STATE: &str = "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE";

/// Of those that are of the trace, and of CloudEvents' extension.
fn traces(line: &Line) -> Vec<(&str, &str)> {
    let text =
        |value: &'_ Option<Vec<u8>>| std::str::from_utf8(value.as_deref().expect("a value")).expect("text").to_owned();
    let all = line.headers.iter().map(|(name, value)| (name.as_str(), &*text(value).leak()));
    all.filter(|(name, _)| name.contains("trace")).collect()
}

#[test]
fn a_traceparent_stands_beside_each_record_in_the_archive_also_of_one_that_was_replayed() {
    let folder = tempfile::tempdir_in(scratch()).expect("target can be written to").keep();
    let daemon = Setup::new("traces")
        .set("archive.url", format!("file://{}", folder.display()))
        .set("event.on_invalid", "quarantine")
        .start();
    let trace = [("traceparent", PARENT), ("tracestate", STATE)];
    let sent = |fields: &[(&str, &str)], body: &str| {
        let reply = daemon.post_with(fields, body.as_bytes());
        assert_eq!(reply.status, 200, "{reply:?}");
    };
    sent(&trace, r#"[{"type":"a"},{"type":"b","client_id":"c"}]"#);
    let own =
        [("ce-specversion", "1.0"), ("ce-id", "i"), ("ce-source", "/s"), ("ce-type", "t"), ("ce-traceparent", "own")];
    sent(&[&own[..], &trace[..1]].concat(), "7");
    sent(&[("traceparent", "00-malformed"), trace[1]], r#"{"type":"c"}"#);
    // A wrong one is kept with it, and has it when it is replayed, corrected.
    sent(&trace, r#"{"kind":"d"}"#);
    let letters = daemon.get("/v1/dead-letters").json();
    let id = letters["dead_letters"][0]["id"].as_str().expect("a letter").to_owned();
    let replay = format!("{}?id={id}", daemon.admin_url("/v1/dead-letters/replay"));
    let replayed =
        Client::new().post(&replay, Some("application/octet-stream"), br#"{"type":"d"}"#).expect("an answer");
    assert_eq!((replayed.status, &replayed.json()["replayed"]), (200, &json!([id])), "{replayed:?}");

    let mut archive = Archive::local(&folder);
    eventually("five records in the archive", PATIENCE, || {
        archive.refresh();
        (archive.lines().count() == 5).then_some(())
    });
    let found: Vec<_> = archive.lines().map(traces).collect();
    let expected = [&trace[..], &trace[..], &[("ce_traceparent", "own"), trace[0]], &[], &trace[..]];
    assert_eq!(found, expected);
    daemon.terminate();
}

#[test]
fn a_line_of_the_log_about_a_request_says_what_it_is_called() {
    let daemon = Setup::new("called").set("logging.level", "debug").start();
    let ask =
        |url: &str, id: &str| Client::new().post_with(url, &[("X-Request-Id", id)], b"").expect("an answer").status;
    assert_eq!(ask(&daemon.admin_url("/reload"), "an-operators/1"), 200);
    eventually("the line about the reload", PATIENCE, || {
        let log = daemon.log();
        let line = log.lines().find(|line| line.contains("configuration reloaded"))?;
        assert!(line.contains("request_id") && line.contains("an-operators/1"), "{line}");
        Some(())
    });
    assert_eq!(ask(&daemon.admin_url("/reload"), "with a space"), 200);
    eventually("the line about the other", PATIENCE, || {
        (daemon.log().matches("configuration reloaded").count() == 2).then_some(())
    });
    assert!(!daemon.log().contains("with a space"), "what is not well-formed is never said again");
    daemon.terminate();
}
