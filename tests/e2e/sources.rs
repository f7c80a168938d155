//! Bodies of other shapes than ours: `[[http.source]]`, those of packaging/sources, and OpenTelemetry's logs.

use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
};

use flate2::{Compression, write::GzEncoder};
use serde_json::{Value, json};

use crate::support::{
    PATIENCE,
    daemon::{Daemon, Setup},
    eventually,
    http::{Client, Reply},
    program, skip,
};

fn ready_sources() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/sources");
    let mut files: Vec<_> = fs::read_dir(folder).expect("packaging/sources").map(|file| file.unwrap().path()).collect();
    files.sort();
    files
}

fn ready(names: &[&str]) -> String {
    let text = |file: &PathBuf| fs::read_to_string(file).expect("it can be read");
    let is_meant =
        |file: &&PathBuf| names.contains(&file.file_stem().and_then(|name| name.to_str()).unwrap_or_default());
    ready_sources().iter().filter(is_meant).map(text).collect()
}

fn post(daemon: &Daemon, path: &str, content_type: Option<&str>, body: &[u8]) -> Reply {
    let url = format!("http://{}{path}", daemon.http_address());
    Client::new().post(&url, content_type, body).unwrap_or_else(|error| panic!("POST {path}: {error:?}"))
}

fn gzip(body: &[u8]) -> Vec<u8> {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
    gzip.write_all(body).expect("a Vec takes all");
    gzip.finish().expect("a Vec takes all")
}

/// Counts by client and type, once there are so many events.
fn counts(daemon: &Daemon, events: u64) -> BTreeMap<(String, String), u64> {
    let ask = || {
        let rows = daemon.get("/v1/aggregates/events_by_type?from=1970-01-01T00:00:00Z&to=2100-01-01T00:00:00Z").json();
        let mut counts = BTreeMap::new();
        for row in rows["rows"].as_array().expect("rows") {
            let field = |name: &str| row["group"][name].as_str().unwrap_or("none").to_owned();
            *counts.entry((field("client_id"), field("type"))).or_default() += row["count"].as_u64().expect("a count");
        }
        (counts.values().sum::<u64>() == events).then_some(counts)
    };
    eventually("the events are counted", PATIENCE, ask)
}

/// The archive's lines by the events' values, once there are so many.
fn archived(daemon: &Daemon, events: usize) -> Vec<Value> {
    let ask = || {
        let cat = daemon.command(&["archive", "cat"]);
        let lines: Vec<Value> = cat.out.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        (lines.len() == events).then_some(lines)
    };
    eventually("the events stand in the archive", PATIENCE, ask)
}

fn header<'l>(line: &'l Value, name: &str) -> Option<&'l str> {
    let headers = line["headers"].as_array()?;
    headers.iter().find(|header| header["name"] == name)?["value"].as_str()
}

#[test]
fn each_ready_source_is_a_configuration_that_is_taken() {
    let files = ready_sources();
    assert!(files.len() >= 10, "{files:?}");
    for file in files {
        let checked = Command::new(program()).arg("check").arg("--config").arg(&file).output().expect("it runs");
        assert!(checked.status.success(), "{}: {}", file.display(), String::from_utf8_lossy(&checked.stderr));
        let shown = Command::new(program()).arg("config").arg("--config").arg(&file).output().expect("it runs");
        assert!(String::from_utf8_lossy(&shown.stdout).contains("[[http.source]]"), "{}", file.display());
    }
}

#[test]
fn a_wrong_source_on_the_command_line_is_refused_by_its_flag() {
    let setting = Setup::new("source").set("http.source", "[{ path = \"/a\", records = 7 }]");
    let (exit, log) = setting.run_to_end();
    assert!(
        exit == 78 && log.contains("--set: http.source") && log.contains("records must be a JSON pointer"),
        "{log}"
    );
}

/// Bodies as these senders were seen to send them, cut short.
#[test]
fn what_senders_send_is_counted_by_its_type_and_client_and_stands_in_the_archive_as_it_came() {
    let sources =
        ready(&["segment", "posthog", "amplitude", "snowplow", "alertmanager", "telegraf", "ecs", "github", "stripe"]);
    let daemon = Setup::new("shapes").config(&sources).start();
    let ok = |path: &str, content_type: &str, body: &[u8]| {
        let reply = post(&daemon, path, Some(content_type), body);
        assert_eq!(reply.status, 200, "{path}: {reply:?}");
        reply
    };
    const JSON: &str = "application/json";
    let segment = br#"{"batch":[{"type":"track","messageId":"node-1","timestamp":"2026-11-23T08:00:00.123Z","userId":"u-1","event":"Sold"},
        {"type":"identify","messageId":"node-2","timestamp":"2026-11-23T08:00:00.124Z","userId":"u-1"}],"writeKey":"x"}"#;
    let reply = ok("/v1/batch", JSON, segment);
    assert_eq!(reply.json(), json!({"accepted": 2, "rejected": 0, "ids": ["node-1", "node-2"]}));
    // As Rudder labels it.
    ok(
        "/v1/batch",
        "application/x-www-form-urlencoded",
        &gzip(br#"{"batch":[{"type":"track","messageId":"r-1","userId":"u-2"}]}"#),
    );
    ok("/v1/track", JSON, br#"{"userId":"u-2","event":"Sold","messageId":"x"}"#);
    let posthog = br#"{"api_key":"x","batch":[{"event":"$pageview","distinct_id":"p-1","timestamp":"2026-11-23T08:00:00Z","uuid":"01a20bd8-8e34-76c3-849d-87ba36a63445"}]}"#;
    ok("/batch/", JSON, posthog);
    // As a browser's: gzip that only the query tells of, and a form.
    let browser = br#"[{"uuid":"b","event":"$autocapture","properties":{"distinct_id":"p-2"},"timestamp":"2026-11-23T08:00:00Z"}]"#;
    ok("/i/v0/e/?compression=gzip-js&ver=1", "text/plain", &gzip(browser));
    ok(
        "/e/?compression=base64",
        "application/x-www-form-urlencoded",
        b"data=eyJldmVudCI6IiRwYWdldmlldyIsInByb3BlcnRpZXMiOnsiZGlzdGluY3RfaWQiOiJwLTIifX0%3D",
    );
    let amplitude = ok(
        "/2/httpapi",
        JSON,
        br#"{"api_key":"x","events":[{"event_type":"Sold","user_id":"a-1","insert_id":"i-1"}]}"#,
    );
    assert_eq!((amplitude.json(), &*amplitude.content_type), (json!({"code": 200}), JSON));
    let some = post(
        &daemon,
        "/2/httpapi",
        Some(JSON),
        br#"{"events":[{"event_type":"Sold","user_id":"a-1"},{"user_id":"a-1"}]}"#,
    );
    assert_eq!((some.status, some.json()), (207, json!({"code": 200})), "{some:?}");
    let snowplow = br#"{"schema":"iglu:com.snowplowanalytics.snowplow/payload_data/jsonschema/1-0-4","data":[{"e":"pv","eid":"e-1","uid":"s-1","url":"http://x"}]}"#;
    ok("/com.snowplowanalytics.snowplow/tp2", "application/json; charset=UTF-8", snowplow);
    let alerts = br#"{"version":"4","status":"firing","alerts":[{"status":"firing","labels":{"alertname":"DiskFull"},"startsAt":"2026-11-23T08:00:00Z"},
        {"status":"resolved","labels":{"alertname":"DiskFull"}}]}"#;
    ok("/alertmanager", JSON, alerts);
    ok(
        "/telegraf",
        "text/plain; charset=utf-8",
        br#"{"metrics":[{"name":"cpu","tags":{"host":"h-1"},"fields":{"idle":1.5},"timestamp":1795420800}]}"#,
    );
    ok(
        "/ecs",
        JSON,
        br#"{"@timestamp":"2026-11-23T08:00:00.000Z","log.level":"info","message":"m","service.name":"shop"}"#,
    );
    ok("/github/push", JSON, br#"{"ref":"refs/heads/main","head_commit":{"timestamp":"2026-11-23T08:00:00+01:00"},"repository":{"full_name":"o/r"}}"#);
    ok(
        "/stripe",
        JSON,
        br#"{"id":"evt_1","object":"event","type":"charge.succeeded","data":{"object":{"customer":"cus_1"}}}"#,
    );

    let expected = [
        ("DiskFull", "alert", 2),
        ("a-1", "Sold", 2),
        ("cus_1", "charge.succeeded", 1),
        ("h-1", "cpu", 1),
        ("o/r", "push", 1),
        ("p-1", "$pageview", 1),
        ("p-2", "$autocapture", 1),
        ("p-2", "$pageview", 1),
        ("s-1", "pv", 1),
        ("shop", "log", 1),
        ("u-1", "identify", 1),
        ("u-1", "track", 1),
        ("u-2", "track", 2),
    ];
    let expected: BTreeMap<_, _> =
        expected.iter().map(|(client, name, count)| (((*client).to_owned(), (*name).to_owned()), *count)).collect();
    let events = expected.values().sum();
    assert_eq!(counts(&daemon, events), expected);

    let lines = archived(&daemon, events as usize);
    let pageview = lines.iter().find(|line| line["event"]["distinct_id"] == "p-1").expect("it is there");
    let sent: Value = serde_json::from_slice(posthog).expect("JSON");
    assert_eq!(pageview["event"], sent["batch"][0]);
    assert_eq!(header(pageview, "ce_type"), Some("$pageview"));
    assert_eq!(header(pageview, "ce_id"), Some("01a20bd8-8e34-76c3-849d-87ba36a63445"));
    assert_eq!(header(pageview, "ce_time"), Some("2026-11-23T08:00:00Z"));
    assert_eq!(header(pageview, "ce_source"), Some("p-1"));
    assert_eq!((header(pageview, "ce_specversion"), pageview["id"].as_str()), (None, None));
    daemon.terminate();
}

#[test]
fn a_wrong_event_is_named_and_a_broken_one_is_no_others_fault() {
    let daemon = Setup::new("wrong").config(&ready(&["segment"])).start();
    // Of a broken one the end can be found.
    let reply = post(
        &daemon,
        "/v1/batch",
        None,
        br#"{"batch":[{"type":"a"},{"type":"b","x":NaN},{"type" "c"},{"type":"d"}],"sentAt":"x"}"#,
    );
    assert_eq!((reply.status, &reply.json()["accepted"]), (207, &json!(2)), "{reply:?}");
    assert_eq!(reply.json()["errors"].as_array().map(Vec::len), Some(2), "{reply:?}");
    let reply = post(&daemon, "/v1/batch", None, br#"{"batch":[{"type":"a"},{"event":"b"},{"type":"c"}]}"#);
    assert_eq!((reply.status, &reply.json()["accepted"]), (207, &json!(2)), "{reply:?}");
    let errors = reply.json()["errors"].clone();
    assert_eq!((&errors[0]["index"], &errors[0]["code"]), (&json!(1), &json!("missing_type")));
    assert!(errors[0]["message"].as_str().is_some_and(|message| message.contains("\"/type\"")), "{errors}");
    for (path, body, status, words) in [
        ("/v1/batch", &b"{\"events\":[]}"[..], 400, "no array of events at \"/batch\""),
        ("/v1/batch", b"", 400, "empty"),
        ("/v1/batch/", b"{}", 404, "[[http.source]]"),
    ] {
        let reply = post(&daemon, path, None, body);
        reply.assert_problem(status);
        assert!(reply.json()["detail"].as_str().is_some_and(|detail| detail.contains(words)), "{reply:?}");
    }
    let reply = Client::new().get(&format!("http://{}/v1/batch", daemon.http_address())).expect("an answer");
    reply.assert_problem(405);
    assert_eq!(reply.allow.as_deref(), Some("POST"));
    daemon.terminate();
}

#[test]
fn what_is_wrong_of_another_shape_is_kept_where_the_configuration_says_so() {
    let setup = Setup::new("kept").config(&ready(&["segment", "amplitude"])).set("event.on_invalid", "quarantine");
    let daemon = setup.set("http.max_event", "2KiB").start();
    let reply = post(&daemon, "/v1/batch", None, br#"{"batch":[{"type":"a","messageId":"1"},{"messageId":"2"}]}"#);
    assert_eq!((reply.status, &reply.json()["quarantined"]), (200, &json!(1)), "{reply:?}");
    let reply = post(&daemon, "/2/httpapi", None, br#"{"events":[{"user_id":"u"}]}"#);
    assert_eq!((reply.status, reply.json()), (200, json!({"code": 200})), "{reply:?}");
    let large = LOGS.replace("\"stringValue\":\"a\"", &format!("\"stringValue\":\"{}\"", "x".repeat(3000)));
    let reply = post(&daemon, "/v1/logs", Some("application/json"), large.as_bytes());
    assert_eq!((reply.status, &reply.json()["partialSuccess"]["rejectedLogRecords"]), (200, &json!("0")), "{reply:?}");
    let letters = daemon.get("/v1/dead-letters").json();
    let reasons: Vec<_> =
        letters["dead_letters"].as_array().expect("letters").iter().map(|letter| &letter["reason"]).collect();
    assert_eq!(reasons, ["missing_type", "missing_type", "too_large"], "{letters}");
    daemon.terminate();
}

#[test]
fn sources_come_and_go_with_a_reload() {
    let daemon = Setup::new("live").config("").start();
    post(&daemon, "/hook", None, b"{}").assert_problem(404);
    daemon.write_config("[[http.source]]\npath = \"/hook\"\ntype = { fixed = \"alert\" }\nanswer = \"ok\"\n");
    let reload = daemon.reload();
    assert_eq!(reload.status, 200, "{reload:?}");
    let reply = post(&daemon, "/hook", None, b"{}");
    assert_eq!((reply.status, &*reply.body, &*reply.content_type), (200, "ok", "text/plain; charset=utf-8"));
    daemon.write_config("[[http.source]]\npath = \"/hook\"\ntype = \"/kind\"\n");
    daemon.reload();
    assert_eq!(post(&daemon, "/hook", None, b"{}").status, 400);
    daemon.write_config("");
    daemon.reload();
    post(&daemon, "/hook", None, b"{}").assert_problem(404);
    assert_eq!(counts(&daemon, 1), [(("none".to_owned(), "alert".to_owned()), 1)].into());
    daemon.terminate();
}

/// The specification's example.
const LOGS: &str = r#"{"resourceLogs":[{"resource":{"attributes":[{"key":"service.name","value":{"stringValue":"shop"}}]},
    "scopeLogs":[{"scope":{"name":"lib"},"logRecords":[
        {"timeUnixNano":"1795420800300000001","severityNumber":10,"severityText":"Information","body":{"stringValue":"a"},
         "attributes":[{"key":"n","value":{"intValue":"9007199254740993"}}]},
        {"timeUnixNano":"1795420800300000002","eventName":"sold","body":{"stringValue":"b"}}]}]}]}"#;

#[test]
fn opentelemetrys_logs_are_events_of_their_service() {
    let daemon = Setup::new("otlp").set("http.max_event", "2KiB").start();
    const JSON: Option<&str> = Some("application/json");
    let reply = post(&daemon, "/v1/logs", JSON, LOGS.as_bytes());
    assert_eq!((reply.status, &*reply.content_type, &*reply.body), (200, "application/json", "{}"), "{reply:?}");
    // An empty request in protobuf is no bytes, and so is the answer to it.
    let reply = post(&daemon, "/v1/logs", Some("application/x-protobuf"), b"");
    assert_eq!((reply.status, &*reply.content_type, &*reply.body), (200, "application/x-protobuf", ""), "{reply:?}");

    let large = LOGS.replace("\"stringValue\":\"a\"", &format!("\"stringValue\":\"{}\"", "x".repeat(3000)));
    let reply = post(&daemon, "/v1/logs", JSON, large.as_bytes());
    assert_eq!((reply.status, &reply.json()["partialSuccess"]["rejectedLogRecords"]), (200, &json!("1")), "{reply:?}");
    let message = reply.json()["partialSuccess"]["errorMessage"].as_str().expect("a message").to_owned();
    assert!(message.starts_with("log record 0: too_large: ") && message.contains("http.max_event"), "{message}");

    let expected = [(("shop".to_owned(), "log".to_owned()), 1), (("shop".to_owned(), "sold".to_owned()), 2)];
    assert_eq!(counts(&daemon, 3), expected.into());
    let lines = archived(&daemon, 3);
    let first = lines.iter().find(|line| line["event"]["body"] == "a").expect("it is there");
    let event = json!({
        "timestamp": "2026-11-23T08:00:00.300000001Z",
        "severity_number": 10,
        "severity_text": "Information",
        "body": "a",
        "attributes": {"n": 9_007_199_254_740_993_u64},
        "resource_attributes": {"service.name": "shop"},
        "scope_name": "lib",
    });
    assert_eq!(first["event"], event);
    assert_eq!(header(first, "ce_time"), Some("2026-11-23T08:00:00.300000001Z"));

    for (content_type, body, status) in
        [(JSON, &b"{"[..], 400), (Some("application/x-protobuf"), b"{}", 400), (JSON, br#"{"resourceLogs":7}"#, 400)]
    {
        let reply = post(&daemon, "/v1/logs", content_type, body);
        assert_eq!((reply.status, Some(&*reply.content_type)), (status, content_type), "{reply:?}");
    }
    assert_eq!(post(&daemon, "/v1/logs", JSON, b"{").json()["code"], 3);
    post(&daemon, "/v1/logs", Some("text/plain"), b"{}").assert_problem(415);
    daemon.terminate();
}

#[test]
fn the_exporter_of_opentelemetry_for_python_is_answered_as_it_expects() {
    let packages = crate::support::scratch().join("otlp-python");
    let wheels = ["opentelemetry-exporter-otlp-proto-http==1.45.2", "opentelemetry-sdk==1.45.2"];
    let ready = packages.join("opentelemetry/exporter/otlp").exists()
        || Command::new("python3")
            .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target"])
            .arg(&packages)
            .args(wheels)
            .status()
            .is_ok_and(|status| status.success());
    if !ready {
        return skip("the exporter of OpenTelemetry for Python cannot be had (pip)");
    }
    let daemon = Setup::new("python").set("http.max_event", "2KiB").start();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/e2e/sources/exporter.py");
    let output = Command::new("timeout")
        .args([
            &PATIENCE.as_secs().to_string(),
            "python3",
            script,
            &format!("http://{}/v1/logs", daemon.http_address()),
        ])
        .env("PYTHONPATH", &packages)
        .output()
        .expect("coreutils are installed");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "exported: SUCCESS, SUCCESS, FAILURE");
    let expected = [(("shop".to_owned(), "log".to_owned()), 101)];
    assert_eq!(counts(&daemon, 101), expected.into());
    let lines = archived(&daemon, 101);
    let text = |line: &Value| line["event"]["body"].as_str().map(str::to_owned);
    let mut bodies: Vec<_> = lines.iter().map(text).collect();
    bodies.sort();
    bodies.dedup();
    assert_eq!(bodies.len(), 101);
    assert_eq!(lines[0]["event"]["severity_text"], "WARN");
    assert_eq!(lines[0]["event"]["resource_attributes"]["service.name"], "shop");
    daemon.terminate();
}
