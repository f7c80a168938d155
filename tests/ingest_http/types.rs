//! Types (`[[event.types]]`): what is refused, in which words, at each kind of path.

use std::path::Path;

use super::*;

pub const LOGIN: &str = r#"{"properties":{"user":{"properties":{"id":{"type":"string"},"password":{"maxLength":3}}},"tags":{"items":{"type":"string"},"uniqueItems":true}},"required":["user"]}"#;

/// A daemon with these files as schemas, and this said of `[event]`.
pub fn typed(http: HttpConfig, files: &[(&str, &str)], event: Value) -> (Daemon, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    files.iter().for_each(|(name, text)| std::fs::write(folder.path().join(name), text).unwrap());
    let daemon = Daemon::start(Queue::Stores, http);
    retype(&daemon, folder.path(), event);
    (daemon, folder)
}

pub fn retype(daemon: &Daemon, folder: &Path, event: Value) {
    let mut config = Config::clone(&daemon.config.load());
    config.event = serde_json::from_value(event).unwrap();
    assert_eq!(config.read_files(folder), []);
    daemon.config.store(Arc::new(config));
}

fn login(unknown: &str) -> Value {
    json!({ "types": [{ "name": "login", "schema": "login.json" }, { "name": "any" }], "unknown_type": unknown })
}

fn message(reply: &Reply) -> String {
    reply.json()["errors"][0]["message"].as_str().unwrap().to_owned()
}

#[actix::test]
async fn an_event_that_does_not_match_the_schema_of_its_type_is_refused_alone_with_the_pointer() {
    let (daemon, _folder) = typed(HttpConfig::default(), &[("login.json", LOGIN)], login("accept"));
    let reply = daemon
        .post_json(r#"[{"type":"login","user":{"id":"u"}},{"type":"login","user":{"id":7}},{"type":"other","user":7},{"type":"any"}]"#)
        .await;
    assert_eq!((reply.status, reply.errors()), (207, vec![(1, "schema".to_owned())]), "{}", reply.body);
    assert_eq!(
        message(&reply),
        r#"at "/user/id": must be of type string ("/properties/user/properties/id/type" of the schema)"#
    );
    for (event, code, words) in [
        (r#"{"type":"login"}"#, "schema", "at \"/user\": is missing"),
        (
            r#"{"type":"login","user":{"password":"hunter2"}}"#,
            "schema",
            "at \"/user/password\": must have at most 3 characters",
        ),
        (r#"{"type":"login","user":{},"tags":["a",7]}"#, "schema", "at \"/tags/1\": must be of type string"),
        (r#"{"type":"login","user":{},"tags":["a","a"]}"#, "schema", "at \"/tags\": must have no two elements alike"),
        // What is wrong without a schema is said first.
        (r#"{"type":"login","event_id":""}"#, "invalid_id", "event_id"),
        (r#"[{"type":"login","user":{"id":"a","id":7}}]"#, "invalid_json", "stands twice"),
    ] {
        let reply = daemon.post_json(event).await;
        assert_eq!((reply.status, reply.errors()), (400, vec![(0, code.to_owned())]), "{}", reply.body);
        assert!(message(&reply).contains(words) && !reply.body.contains("hunter2"), "{}", reply.body);
    }
    assert_eq!(daemon.metric("ingestd_events_rejected_total{reason=\"schema\"}"), "5");
    // All or nothing.
    let reply = daemon.prefer("strict", r#"[{"type":"any"},{"type":"login"}]"#).await;
    assert_eq!((reply.status, reply.json()["accepted"].clone()), (400, json!(0)));
    until(|| daemon.metric("ingestd_in_flight_bytes") == "0").await;
}

#[actix::test]
async fn a_type_that_is_unknown_is_taken_or_refused_as_the_configuration_says() {
    let (daemon, folder) = typed(HttpConfig::default(), &[("login.json", LOGIN)], login("reject"));
    let reply = daemon.post_json(r#"[{"type":"any"},{"type":"Login"},{"type":"login","user":{}}]"#).await;
    assert_eq!((reply.status, reply.errors()), (207, vec![(1, "unknown_type".to_owned())]));
    retype(&daemon, folder.path(), login("accept"));
    assert_eq!(daemon.post_json(r#"{"type":"Login"}"#).await.status, 200);
}

#[actix::test]
async fn of_a_cloudevent_its_data_has_to_match_and_of_a_log_and_a_source_the_event_that_is_stored() {
    let source = json!([{ "path": "/hook", "records": "/batch", "type": "/kind" }]);
    let http = HttpConfig { source: serde_json::from_value(source).unwrap(), ..HttpConfig::default() };
    let types =
        json!({ "types": [{ "name": "login", "schema": "login.json" }, { "name": "log", "schema": "log.json" }] });
    let log = r#"{"properties":{"body":{"type":"string"}},"required":["body"]}"#;
    let (daemon, _folder) = typed(http, &[("login.json", LOGIN), ("log.json", log)], types);
    let envelope = |data: &str| format!(r#"{{"specversion":"1.0","id":"1","source":"/s","type":"login"{data}}}"#);
    let structured = "Content-Type: application/cloudevents+json\r\n";
    let binary = "ce-specversion: 1.0\r\nce-id: 1\r\nce-source: /s\r\nce-type: login\r\nContent-Type: ";
    let logs = |body: &str| {
        format!(r#"{{"resourceLogs":[{{"scopeLogs":[{{"logRecords":[{{"eventName":"log","body":{body}}}]}}]}}]}}"#)
    };
    for (path, fields, body, status, words) in [
        ("/v1/events", structured, envelope(r#","data":{"user":{}}"#), 200, ""),
        ("/v1/events", structured, envelope(r#","data":{"user":{"id":7}}"#), 400, "/user/id"),
        ("/v1/events", structured, envelope(""), 400, "there is no data, and a schema is about JSON"),
        ("/v1/events", &format!("{binary}application/json\r\n"), r#"{"user":{}}"#.to_owned(), 200, ""),
        ("/v1/events", &format!("{binary}application/json\r\n"), r#"{"user":{"id":7}}"#.to_owned(), 400, "/user/id"),
        ("/v1/events", &format!("{binary}text/plain\r\n"), "hello".to_owned(), 400, "it must be JSON"),
        ("/hook", "", r#"{"batch":[{"kind":"login","user":{}}]}"#.to_owned(), 200, ""),
        ("/hook", "", r#"{"batch":[{"kind":"login","user":{"id":7}}]}"#.to_owned(), 400, "/user/id"),
        ("/v1/logs", "Content-Type: application/json\r\n", logs(r#"{"stringValue":"x"}"#), 200, ""),
        ("/v1/logs", "Content-Type: application/json\r\n", logs(r#"{"intValue":"7"}"#), 400, "/body"),
    ] {
        let reply = daemon.post_at(path, fields, body.as_bytes()).await;
        assert!(
            reply.status == status && reply.body.contains(words),
            "{path} {fields} {body}: {} {}",
            reply.status,
            reply.body
        );
    }
    assert_eq!(daemon.log.lock().unwrap().records.len(), 4);
}

#[actix::test]
async fn what_does_not_match_is_kept_where_wrong_events_are() {
    let (daemon, folder) = typed(HttpConfig::default(), &[("login.json", LOGIN)], login("reject"));
    let mut event = login("reject");
    event["on_invalid"] = "quarantine".into();
    retype(&daemon, folder.path(), event);
    let reply = daemon.post_json(r#"[{"type":"login"},{"type":"none"},{"type":"any"}]"#).await;
    assert_eq!((reply.status, reply.json()["quarantined"].clone()), (200, json!(2)), "{}", reply.body);
    let expected = [("schema", r#"{"type":"login"}"#), ("unknown_type", r#"{"type":"none"}"#)];
    assert_eq!(daemon.letters(), expected.map(|(reason, value)| (reason.to_owned(), value.to_owned())));
}

/// As trees, events take many times their bytes: that is counted, and given back.
#[actix::test]
async fn large_events_are_looked_at_within_the_budget_of_all_requests() {
    let http = HttpConfig { max_in_flight: ByteSize(48 << 20), ..HttpConfig::default() };
    let (daemon, _folder) = typed(http, &[("login.json", LOGIN)], login("accept"));
    let tags = (0..60_000).map(|at| format!("\"{at}\"")).collect::<Vec<_>>().join(",");
    let large = format!(r#"{{"type":"login","user":{{}},"tags":[{tags}]}}"#);
    assert_eq!(daemon.post_json(&large).await.status, 200);
    let objects = format!(r#"{{"type":"login","user":{{}},"x":[{}]}}"#, vec!["{}"; 250_000].join(","));
    let reply = daemon.post_json(&objects).await;
    assert_eq!(reply.errors(), [(0, "too_large".to_owned())], "{}", reply.body);
    assert!(message(&reply).contains("to look whether it matches the schema of its type"));
    until(|| daemon.metric("ingestd_in_flight_bytes") == "0").await;
}

/// The schemas that ship, with the events of the README.
#[actix::test]
async fn the_schemas_that_ship_take_the_events_of_the_readme() {
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging");
    let types: toml::Table = std::fs::read_to_string(shipped.join("schemas/types.toml")).unwrap().parse().unwrap();
    let types = serde_json::to_value(&types["event"]).unwrap();
    let named: std::collections::BTreeSet<_> =
        types["types"].as_array().unwrap().iter().map(|of| of["schema"].as_str().unwrap().to_owned()).collect();
    let files = std::fs::read_dir(shipped.join("schemas"))
        .unwrap()
        .map(|file| file.unwrap().file_name().into_string().unwrap());
    let files: std::collections::BTreeSet<_> = files
        .filter(|name| name.ends_with(".json") && name != "common.json")
        .map(|name| format!("schemas/{name}"))
        .collect();
    assert_eq!(named, files, "each is in types.toml");
    let daemon = Daemon::start(Queue::Stores, HttpConfig::default());
    retype(&daemon, &shipped, types);
    let readme = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    let events = readme.lines().filter_map(|line| {
        let at = line.find(r#"{"type":"login_"#)?;
        let mut texts = serde_json::Deserializer::from_str(&line[at..]).into_iter::<Value>();
        texts.next()?.ok()
    });
    let events: Vec<_> = events.collect();
    assert!(events.len() >= 5, "{events:?}");
    for event in events {
        assert_eq!(daemon.post_json(&event.to_string()).await.status, 200, "{event}");
    }
    for (event, words) in [
        (r#"{"type":"login_success"}"#, "at \"/user_id\": is missing"),
        (r#"{"type":"login_success","user_id":"u","ip":"not one"}"#, "at \"/ip\": must match the pattern"),
        (r#"{"type":"login_failure","password":"hunter2"}"#, "at \"/password\": is what must not be"),
        (r#"{"type":"password_reset","step":"begun"}"#, "at \"/step\": must be one of"),
        (r#"{"type":"logout","user_id":{}}"#, "at \"/user_id\": must be of type"),
    ] {
        let reply = daemon.post_json(event).await;
        assert!(
            reply.status == 400 && message(&reply).contains(words) && !reply.body.contains("hunter2"),
            "{event}: {}",
            reply.body
        );
    }
    for event in [
        r#"{"type":"login_success","user_id":7,"ip":"2001:db8::1","mfa":"totp","x":{"y":[1]}}"#,
        r#"{"type":"login_failure","user_name":"root","ip":"192.0.2.1","reason":"bad_password","attempt":3}"#,
        r#"{"type":"mfa_challenge","user_id":"u","outcome":"passed"}"#,
        r#"{"type":"account_locked","user_id":"u","reason":"too many attempts","until":"2026-11-24T04:37:51Z"}"#,
        r#"{"type":"anything","password":"not looked at"}"#,
    ] {
        let reply = daemon.post_json(event).await;
        assert_eq!(reply.status, 200, "{event}: {}", reply.body);
    }
}
