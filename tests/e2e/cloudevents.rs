//! CloudEvents: in each mode, from SDKs that are not ours, and in Kafka beside other programs that speak them.

use std::{
    collections::BTreeMap,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use rusqlite::Connection;
use serde_json::{Value, json};

use crate::support::{
    PATIENCE,
    archive::{Archive, Line},
    daemon::{Daemon, Setup},
    eventually, scratch,
    services::{sdk, services},
};

/// A daemon that counts and archives within moments, and the folder of its archive.
fn daemon(name: &str) -> (Daemon, PathBuf) {
    let folder = tempfile::tempdir_in(scratch()).expect("target can be written to").keep();
    let setup = Setup::new(name)
        .set("archive.url", format!("file://{}", folder.display()))
        .set("store.events", true)
        .set("aggregator.flush_interval", "100ms");
    (setup.start(), folder)
}

/// What was archived, by the event's id.
fn archived(folder: &Path) -> BTreeMap<String, Line> {
    let mut archive = Archive::local(folder);
    archive.refresh();
    archive.lines().map(|line| (header(line, "ce_id").unwrap_or_default(), line.clone())).collect()
}

fn header(line: &Line, name: &str) -> Option<String> {
    let (_, value) = line.headers.iter().find(|(known, _)| known == name)?;
    value.as_deref().map(|value| String::from_utf8(value.to_vec()).expect("attributes are text"))
}

/// Counts of the last hour by client and type.
fn counts(daemon: &Daemon) -> BTreeMap<(String, String), u64> {
    let answer = daemon.get("/v1/aggregates/events_by_type").json();
    let rows = answer["rows"].as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut counts = BTreeMap::new();
    for row in rows {
        let group = &row["group"];
        *counts.entry((text(&group["client_id"]), text(&group["type"]))).or_default() +=
            row["count"].as_u64().expect("a count");
    }
    counts
}

const BINARY: [(&str, &str); 5] = [
    ("ce-specversion", "1.0"),
    ("ce-id", "b%20%E2%82%AC"),
    ("ce-source", "/shop"),
    ("ce-type", "sold"),
    ("ce-partitionkey", "till-7"),
];

#[test]
fn cloudevents_of_each_mode_are_archived_counted_and_kept_with_all_that_they_bring() {
    let (daemon, archive) = daemon("modes");
    let structured = r#"{"specversion":"1.0","id":"s","source":"/shop","type":"sold","time":"2026-11-23T08:00:00.5Z",
        "extra":true,"data": {"type":"a field","client_id":"/shop","n":1} }"#;
    let reply = daemon.post(Some("application/cloudevents+json; charset=utf-8"), structured.as_bytes());
    assert_eq!((reply.status, reply.json()), (200, json!({"accepted": 1, "rejected": 0, "ids": ["s"]})));
    for (name, content_type, data) in
        [("", Some("image/png"), &b"\x89PNG\xff"[..]), ("2", Some("text/plain"), b"a,b\n"), ("3", None, b"")]
    {
        let id = format!("{}{name}", BINARY[1].1);
        let mut headers = BINARY.to_vec();
        headers[1].1 = &id;
        headers.extend(content_type.map(|content_type| ("content-type", content_type)));
        let reply = daemon.post_with(&headers, data);
        assert_eq!((reply.status, &reply.json()["ids"]), (200, &json!([format!("b €{name}")])), "{reply:?}");
    }
    let batch = r#"[{"specversion":"1.0","id":"t","source":"/other","type":"returned","data_base64":"/w=="},
        {"specversion":"0.3","id":"u","source":"/other","type":"returned"},
        {"specversion":"1.0","id":"v","source":"/other","type":"returned","data":null}]"#;
    let reply = daemon.post(Some("application/cloudevents-batch+json"), batch.as_bytes());
    let answer = reply.json();
    assert_eq!((reply.status, &answer["ids"]), (207, &json!(["t", "v"])), "{reply:?}");
    assert_eq!(
        (&answer["errors"][0]["index"], &answer["errors"][0]["code"]),
        (&json!(1), &json!("invalid_cloudevent"))
    );
    let plain = daemon.post(None, br#"{"type":"sold","client_id":"/shop"}"#);
    assert_eq!(plain.status, 200);

    let count = |client: &str, of_type: &str| counts(&daemon).remove(&(client.to_owned(), of_type.to_owned()));
    eventually("all of today are counted by source and type", PATIENCE, || {
        (count("/shop", "sold") == Some(4) && count("/other", "returned") == Some(2)).then_some(())
    });
    daemon.wait_read(7);
    daemon.terminate();

    let lines = archived(&archive);
    assert_eq!(lines.len(), 7, "the plain one has no such header");
    let value = |id: &str| (lines[id].raw, String::from_utf8_lossy(lines[id].value.as_deref().expect("a value")));
    assert_eq!(value("s"), (false, r#"{"type":"a field","client_id":"/shop","n":1}"#.into()));
    assert_eq!((lines["s"].key.as_deref(), lines["s"].id.as_deref()), (None, None), "the event holds its key");
    let extra = ["ce_extra", "ce_time", "content-type", "ce_specversion"].map(|name| header(&lines["s"], name));
    assert_eq!(extra.map(Option::unwrap), ["true", "2026-11-23T08:00:00.5Z", "application/json", "1.0"]);
    assert_eq!(lines["b €"].value.as_deref(), Some(&b"\x89PNG\xff"[..]));
    assert_eq!((value("b €2"), value("b €3")), ((true, "a,b\n".into()), (true, "".into())));
    assert_eq!(lines["b €3"].key.as_deref(), Some(&b"till-7"[..]));
    assert_eq!(
        (header(&lines["b €2"], "content-type"), header(&lines["b €3"], "content-type")),
        (Some("text/plain".to_owned()), None)
    );
    assert_eq!((lines["t"].value.as_deref(), lines["t"].key.as_deref()), (Some(&b"\xff"[..]), Some(&b"/other"[..])));
    assert_eq!(value("v"), (false, "null".into()));

    let kept = Connection::open(daemon.data().join("store.db")).expect("it is SQLite");
    let mut kept =
        kept.prepare("SELECT event_id, client_id, type, time, event, attributes FROM event").expect("a table");
    let rows = kept.query_map([], |row| {
        let attributes: Option<String> = row.get(5)?;
        let attributes = attributes.map_or(Value::Null, |json| serde_json::from_str(&json).expect("it is JSON"));
        let event: rusqlite::types::Value = row.get(4)?;
        Ok((
            row.get::<_, String>(0)?,
            row.get::<_, String>(1)?,
            row.get::<_, String>(2)?,
            row.get::<_, i64>(3)?,
            event,
            attributes,
        ))
    });
    let rows: Vec<_> = rows.expect("rows").map(Result::unwrap).collect();
    assert_eq!(rows.len(), 7);
    let (_, client, of_type, time, event, attributes) = rows.iter().find(|row| row.0 == "s").expect("it is kept");
    assert_eq!((client.as_str(), of_type.as_str(), *time), ("/shop", "sold", 1_795_420_800_500));
    assert!(matches!(event, rusqlite::types::Value::Text(text) if text.ends_with(r#""n":1}"#)), "{event:?}");
    assert_eq!((&attributes["extra"], &attributes["datacontenttype"]), (&json!("true"), &json!("application/json")));
    let bytes = rusqlite::types::Value::Blob(b"\x89PNG\xff".to_vec());
    assert!(rows.iter().any(|row| row.0 == "b €" && row.4 == bytes));
    assert!(rows.iter().any(|row| row.5 == Value::Null && row.2 == "sold"), "the plain one");
    let _ = std::fs::remove_dir_all(archive);
}

#[test]
fn a_replayed_cloudevent_keeps_its_attributes() {
    let (mut daemon, archive) = daemon("attributes");
    assert_eq!(daemon.post(None, br#"{"type":"a"}"#).status, 200);
    daemon.wait_read(1);
    daemon.terminate();
    // As the letter of a record that another program wrote, or that a store did not take.
    let attributes = [
        ("ce_specversion", "1.0"),
        ("ce_id", "e"),
        ("ce_source", "/s"),
        ("ce_type", "t"),
        ("content-type", "text/plain"),
    ];
    let headers: Vec<_> = attributes.iter().map(|(name, value)| json!({ "name": name, "value": value })).collect();
    let letter = "INSERT INTO dead_letters VALUES ('events/0/0', 'events', 0, 0, 0, 0, 'refused_by_store', '', 0, NULL, ?1, ?2, 'open')";
    let log = Connection::open(daemon.data().join("log.db")).expect("it is SQLite");
    log.execute(letter, (&b"no JSON"[..], Value::from(headers).to_string())).expect("it is written");
    drop(log);
    let replayed = daemon.command(&["dlq", "replay", "--json"]).json(0);
    assert_eq!(replayed["replayed"], json!(["events/0/0"]), "{replayed}");
    daemon.restart();
    eventually("it is counted", PATIENCE, || {
        counts(&daemon).contains_key(&("/s".to_owned(), "t".to_owned())).then_some(())
    });
    daemon.wait_read(1);
    daemon.terminate();
    let line = &archived(&archive)["e"];
    for (name, value) in attributes {
        assert_eq!(header(line, name).as_deref(), Some(value));
    }
    assert_eq!(header(line, "ingestd-replayed").as_deref(), Some("events/0/0"));
    assert_eq!((line.value.as_deref(), line.key.as_deref()), (Some(&b"no JSON"[..]), Some(&b"/s"[..])));
    let _ = std::fs::remove_dir_all(archive);
}

/// Runs a program of an SDK, and gives back the lines of JSON that it prints.
fn run(command: &mut Command, input: &str) -> Vec<Value> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut program = command.spawn().expect("it starts");
    let mut stdin = program.stdin.take().expect("it is piped");
    let input = input.to_owned();
    let writing = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
    let output = program.wait_with_output().expect("it ends");
    writing.join().expect("no panic").expect("it reads all");
    let text = String::from_utf8(output.stdout).expect("it prints UTF-8");
    assert!(output.status.success(), "{command:?} ended with {}: {text}", output.status);
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/e2e/cloudevents");

fn python(packages: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new("timeout");
    command.arg(PATIENCE.as_secs().to_string()).args(["python3", "-B"]).arg(Path::new(SOURCE).join("sdk.py"));
    command.args(arguments).env("PYTHONPATH", packages).env("PYTHONIOENCODING", "utf-8");
    command
}

fn attributes(event: &Value) -> BTreeMap<String, String> {
    let attributes = event["attributes"].as_object().expect("attributes").iter();
    attributes.map(|(name, value)| (name.clone(), value.as_str().expect("text").to_owned())).collect()
}

/// The attributes that stand in these headers.
fn attributes_of(headers: &[(String, Option<Vec<u8>>)]) -> BTreeMap<String, String> {
    let attribute = |(name, value): &(String, Option<Vec<u8>>)| {
        let name = match name.strip_prefix("ce_") {
            Some(name) => name,
            None if name == "content-type" => "datacontenttype",
            None => return None,
        };
        Some((name.to_owned(), String::from_utf8(value.clone()?).expect("text")))
    };
    headers.iter().filter_map(attribute).collect()
}

fn bytes(base64: &Value) -> Vec<u8> {
    BASE64_STANDARD.decode(base64.as_str().expect("text")).expect("base64")
}

/// All that an SDK says it has sent stands in the archive as it says, and is counted.
fn sends_what_arrives(name: &str, send: impl FnOnce(&str) -> Command, least: usize) {
    let (daemon, archive) = daemon(name);
    let sent = run(&mut send(&daemon.events_url()), "");
    assert!(sent.len() >= least, "{sent:?}");
    daemon.wait_read(sent.len());
    daemon.terminate();
    assert_eq!(daemon.command(&["dlq", "list", "--json"]).json(0)["dead_letters"], json!([]));
    let lines = archived(&archive);
    assert_eq!(lines.len(), sent.len());
    for event in &sent {
        let expected = attributes(event);
        let line = &lines[&expected["id"]];
        // An envelope says by itself that its data is JSON, and the record says it in a header.
        let mut found = attributes_of(&line.headers);
        if !expected.contains_key("datacontenttype") && line.value.as_deref() != Some(b"") {
            found.remove("datacontenttype");
        }
        assert_eq!(found, expected);
        assert_eq!(line.value.as_deref(), Some(&*bytes(&event["data"])), "{event}");
        let key = expected.get("partitionkey").unwrap_or(&expected["source"]);
        assert_eq!(line.key.as_deref(), Some(key.as_bytes()), "{event}");
    }
    let _ = std::fs::remove_dir_all(archive);
}

#[test]
fn what_the_python_sdk_sends_is_what_is_archived() {
    let Some(packages) = sdk("cloudevents-python") else { return };
    sends_what_arrives("python", |url| python(&packages, &["send", url]), 15);
}

#[test]
fn what_the_javascript_sdk_sends_is_what_is_archived() {
    let has =
        |program: &str| Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success());
    if !has("node") || !has("npm") {
        // Not among what the tests need.
        eprintln!("\n!!! SKIPPED: there is no node and npm to run the JavaScript SDK with\n");
        return;
    }
    let Some(packages) = sdk("cloudevents-javascript") else { return };
    let send = |url: &str| {
        let mut command = Command::new("timeout");
        command.arg(PATIENCE.as_secs().to_string()).arg("node").arg(Path::new(SOURCE).join("sdk.cjs")).arg(url);
        command.env("NODE_PATH", packages.join("node_modules"));
        command
    };
    sends_what_arrives("javascript", send, 12);
}

#[test]
fn other_consumers_read_the_topics_cloudevents_and_those_of_other_producers_are_counted() {
    let Some(packages) = sdk("cloudevents-python") else { return };
    let Some(services) = services() else { return };
    services.create_bucket("cloudevents");
    let daemon = services.setup("cloudevents").set("store.events", true).start();
    let sent = run(&mut python(&packages, &["send", &daemon.events_url()]), "");
    let ids = sent.iter().map(|event| event["attributes"]["id"].as_str().expect("an id").to_owned());
    let by_id: BTreeMap<String, &Value> = ids.zip(&sent).collect();

    // Another consumer.
    let records = services.read_topic("cloudevents");
    assert_eq!(records.len(), sent.len());
    let lines = records.iter().map(|record| {
        let encode = |bytes: Option<&[u8]>| BASE64_STANDARD.encode(bytes.expect("never null"));
        let headers = record.headers.iter().map(|(name, value)| (name.clone(), encode(value.as_deref()).into()));
        let headers: serde_json::Map<String, Value> = headers.collect();
        json!({ "value": encode(record.value.as_deref()), "headers": headers }).to_string() + "\n"
    });
    let read = run(&mut python(&packages, &["from-kafka"]), &lines.collect::<String>());
    for event in &read {
        let mut found = attributes(event);
        let sent = by_id[&found["id"]];
        let mut expected = attributes(sent);
        found.insert("time".to_owned(), found["time"].replace("+00:00", "Z"));
        if !expected.contains_key("datacontenttype") {
            found.remove("datacontenttype");
        }
        assert_eq!(found, expected, "{event}");
        // What is JSON has been read and written anew.
        let is_json = expected.remove("datacontenttype").is_some_and(|it| it.ends_with("json"));
        let (data, as_sent) = (bytes(&event["data"]), bytes(&sent["data"]));
        match (is_json, serde_json::from_slice::<Value>(&as_sent)) {
            (true, Ok(json @ Value::Object(_))) => assert_eq!(serde_json::from_slice::<Value>(&data).ok(), Some(json)),
            (true, Ok(Value::String(text))) => assert_eq!(data, text.into_bytes()),
            _ => assert_eq!(data, as_sent, "{event}"),
        }
    }

    // Another producer.
    let theirs = run(&mut python(&packages, &["to-kafka"]), "");
    assert_eq!(theirs.len(), 10);
    for record in &theirs {
        let headers = record["headers"].as_object().expect("headers").iter();
        let headers: Vec<_> = headers.map(|(name, value)| (name.as_str(), bytes(value))).collect();
        services.produce_record("cloudevents", &bytes(&record["key"]), &bytes(&record["value"]), &headers);
    }
    // As Java's SDK writes an event without data.
    let tombstone = BINARY.map(|(name, value)| (name.replace('-', "_"), value.as_bytes().to_vec()));
    let tombstone: Vec<_> = tombstone.iter().map(|(name, value)| (name.as_str(), value.clone())).collect();
    services.produce_null("cloudevents", &tombstone);
    let documents = eventually("all are kept", PATIENCE, || {
        let documents = services.documents("cloudevents", "events");
        (documents.len() == sent.len() + theirs.len() + 1).then_some(documents)
    });
    assert_eq!(daemon.metric("ingestd_events_dead_lettered_total").unwrap_or_default(), 0.0);
    for document in &documents {
        let of_type = document.get_str("type").expect("a type");
        let client = document.get_str("client_id").expect("a client");
        assert!(
            matches!(
                (client, of_type),
                ("/python", "python.binary" | "python.structured" | "python.batched") | ("/shop", "sold")
            ),
            "{document}"
        );
        let attributes = document.get_document("attributes").expect("attributes");
        assert_eq!(attributes.get_str("id").ok(), document.get_str("event_id").ok());
        let name = document.get_str("event_id").expect("an id").split('-').nth(1).unwrap_or("none");
        match name {
            "json" => assert!(
                document.get_document("event").is_ok_and(|event| event.get_i64("n").ok() == Some(1)),
                "{document}"
            ),
            "bytes" => assert!(document.get_binary_generic("raw").is_ok_and(|raw| raw == b"\xff\x00"), "{document}"),
            "text" => assert_eq!(document.get_str("raw").ok(), Some("Grüße\n"), "{document}"),
            "string" => {
                let text = document.get_str("raw").or_else(|_| document.get_str("event"));
                assert_eq!(text.ok(), Some("no JSON"), "{document}");
            }
            _ => assert_eq!(document.get_str("raw").ok(), Some(""), "{document}"),
        }
    }
    daemon.terminate();
}
