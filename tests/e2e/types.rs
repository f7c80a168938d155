//! Types as operators meet them: schemas in files beside the configuration, changed under load, tried against the archive; and
//! signed sources with a secret that is changed.

use std::{
    fs,
    path::PathBuf,
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use serde_json::{Value, json};

use crate::support::{
    PATIENCE,
    archive::Archive,
    daemon::{Daemon, Setup},
    eventually,
    http::Client,
};

/// Schemas, in a folder of their own.
struct Schemas(tempfile::TempDir);

impl Schemas {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.path().join(name);
        // As editors and mounts do it: at once.
        let new = self.0.path().join("new");
        fs::write(&new, text).and_then(|()| fs::rename(&new, &path)).expect("it can be written");
        path
    }

    fn config(&self) -> String {
        let path = self.0.path().join("login.json");
        format!("[[event.types]]\nname = \"login\"\nschema = {path:?}\n")
    }
}

fn send(daemon: &Daemon, body: &str) -> u16 {
    daemon.post_with(&[], body.as_bytes()).status
}

const STRING: &str = r#"{"properties": {"user": {"$ref": "common.json#/$defs/user"}}, "required": ["user"]}"#;
const USERS: &str = r#"{"$defs": {"user": {"type": "string"}}}"#;
const NUMBERS: &str = r#"{"$defs": {"user": {"type": ["string", "integer"]}}}"#;

#[test]
fn a_schema_is_changed_by_a_reload_under_load_that_loses_and_refuses_nothing_that_either_would_take() {
    let schemas = Schemas::new();
    schemas.write("login.json", STRING);
    schemas.write("common.json", USERS);
    let daemon = Setup::new("types").config(&schemas.config()).start();
    assert_eq!(send(&daemon, r#"{"type":"login","user":7}"#), 400);
    let over = AtomicBool::new(false);
    let sent: usize = std::thread::scope(|scope| {
        let senders: Vec<_> = (0..4)
            .map(|sender| {
                let (over, daemon) = (&over, &daemon);
                scope.spawn(move || {
                    let client = Client::new();
                    let mut sent = 0;
                    while !over.load(Ordering::Relaxed) {
                        let body =
                            format!(r#"[{{"type":"login","user":"{sender}-{sent}"}},{{"type":"other","n":{sent}}}]"#);
                        let reply = client
                            .post(&daemon.events_url(), Some("application/json"), body.as_bytes())
                            .expect("an answer");
                        assert_eq!(reply.status, 200, "{}", reply.body);
                        sent += 2;
                    }
                    sent
                })
            })
            .collect();
        // What is referred to counts as the file itself: by an explicit reload, and by itself.
        for turn in 0..10 {
            schemas.write("common.json", if turn % 2 == 0 { NUMBERS } else { USERS });
            let reload = daemon.reload();
            assert_eq!((reload.status, reload.json()["applied"].clone()), (200, json!(["event.types"])), "{reload:?}");
        }
        // One that is wrong changes nothing.
        schemas.write("common.json", r#"{"$defs": {}}"#);
        let refused = daemon.reload();
        assert!(
            refused.status >= 400
                && refused.body.contains("event.types: \\\"login\\\": ")
                && refused.body.contains("a reference cannot be resolved"),
            "{refused:?}"
        );
        schemas.write("common.json", r#"{"$ref": "../x.json"}"#);
        assert!(daemon.reload().body.contains("only files in the schema's own folder are read"));
        schemas.write("common.json", NUMBERS);
        eventually("the changed file is taken by itself", PATIENCE, || {
            (send(&daemon, r#"{"type":"login","user":7}"#) == 200).then_some(())
        });
        over.store(true, Ordering::Relaxed);
        senders.into_iter().map(|sender| sender.join().expect("a sender")).sum()
    });
    let reply = daemon.post_with(&[], br#"{"type":"login","user":{}}"#);
    assert!(
        reply.status == 400 && reply.body.contains(r#"at \"/user\": must be of type integer or string"#),
        "{}",
        reply.body
    );
    daemon.wait_read(sent + 1);
    daemon.terminate();
    let mut archive = Archive::local(&daemon.data().join("archive"));
    archive.refresh();
    assert_eq!(archive.lines().count(), sent + 1);
}

#[test]
fn a_letter_is_replayed_when_the_schema_in_force_takes_it() {
    let schemas = Schemas::new();
    schemas.write("login.json", STRING);
    schemas.write("common.json", USERS);
    let config = format!("[event]\non_invalid = \"quarantine\"\nunknown_type = \"reject\"\n{}", schemas.config());
    let daemon = Setup::new("types-dlq").config(&config).start();
    assert_eq!(send(&daemon, r#"[{"type":"login","user":7},{"type":"logout"},{"type":"login","user":"u"}]"#), 200);
    let refused = daemon.command(&["dlq", "replay", "--json"]).json(1);
    let reasons =
        refused["refused"].as_array().expect("refusals").iter().map(|of| of["reason"].as_str().expect("a reason"));
    let mut reasons: Vec<_> = reasons.collect();
    reasons.sort_unstable();
    assert_eq!(reasons, ["schema", "unknown_type"], "{refused}");
    schemas.write("common.json", NUMBERS);
    daemon.write_config(&format!("{config}[[event.types]]\nname = \"logout\"\n"));
    eventually("both are in force", PATIENCE, || {
        let _ = daemon.reload();
        (send(&daemon, r#"[{"type":"login","user":8},{"type":"logout"}]"#) == 200
            && daemon.metric("ingestd_events_accepted_total")? >= 3.0)
            .then_some(())
    });
    let replayed = daemon.command(&["dlq", "replay", "--json"]).json(0);
    assert!(replayed["replayed"].as_array().expect("a list").len() >= 2, "{replayed}");
    daemon.terminate();
}

#[test]
fn a_schema_is_tried_against_the_archive_and_says_what_it_would_have_refused_and_no_value() {
    let schemas = Schemas::new();
    let path = schemas.write("login.json", "{}");
    let daemon = Setup::new("types-check").config("").start();
    let events = r#"[{"type":"login","user":"a"},{"type":"login","user":"hunter2","tags":["x",7]},{"type":"login","tags":[8]},{"type":"other"}]"#;
    assert_eq!(send(&daemon, events), 200);
    let in_headers = [
        ("ce-specversion", "1.0"),
        ("ce-id", "1"),
        ("ce-source", "/s"),
        ("ce-type", "login"),
        ("content-type", "text/plain"),
    ];
    assert_eq!(daemon.post_with(&in_headers, b"no JSON").status, 200);
    daemon.wait_read(5);
    daemon.terminate();
    daemon.write_config(&schemas.config());

    let against =
        ["check", "--schema", path.to_str().expect("text"), "--against", "archive", "--from", "2020-01-01T00:00:00Z"];
    let none = daemon.command(&against);
    // What is no JSON is refused by any schema.
    assert_eq!(none.status, Some(1), "{none:?}");
    schemas.write(
        "login.json",
        r#"{"properties": {"user": {"type": "string"}, "tags": {"items": {"type": "string"}}}, "required": ["user"]}"#,
    );
    let text = daemon.command(&against);
    assert!(text.status == Some(1) && !text.out.contains("hunter2"), "{text:?}");
    assert!(text.out.contains("3 of 4 events of type \"login\" would have been refused, of 5 records"), "{}", text.out);
    assert!(
        text.out.contains("at \"/tags/*\": must be of type string (\"/properties/tags/items/type\" of the schema); at partition/offset 0/1"),
        "{}",
        text.out
    );
    let report = daemon.command(&[&against[..], &["--json"]].concat()).json(1);
    let refusals = report["refusals"].as_array().expect("refusals");
    let of = |pointer: &str| {
        refusals.iter().find(|of| of["pointer"] == pointer).unwrap_or_else(|| panic!("{pointer}: {report}"))
    };
    assert_eq!(
        (of("/user")["keyword"].clone(), of("/user")["first"].clone()),
        (json!("required"), json!([{ "partition": 0, "offset": 2 }]))
    );
    assert_eq!(
        (&report["events"], &report["refused"], &report["records"], &report["ok"]),
        (&json!(4), &json!(3), &json!(5), &json!(false))
    );

    // Two rules of one place and keyword are two.
    schemas.write("login.json", r#"{"anyOf": [{"not": {"required": ["user"]}}, {"required": ["id"]}], "allOf": [{"anyOf": [{"required": ["user"]}, {"required": ["id"]}]}]}"#);
    let report = daemon.command(&[&against[..], &["--json"]].concat()).json(1);
    let mut rules: Vec<_> = report["refusals"].as_array().expect("refusals").iter().collect();
    rules.retain(|of| of["keyword"] == "anyOf");
    rules.sort_by_key(|of| of["schema_pointer"].to_string().len());
    let rules: Vec<_> = rules.iter().map(|of| (of["schema_pointer"].as_str(), of["events"].as_u64())).collect();
    assert_eq!(rules, [(Some("\"/anyOf\""), Some(2)), (Some("\"/allOf/0/anyOf\""), Some(1))], "{report}");

    let other = [&against[..5], &["--type", "other"]].concat();
    schemas.write("login.json", r#"{"properties": {"type": {"const": "other"}}}"#);
    let right = daemon.command(&other);
    assert!(right.status == Some(0) && right.out.starts_with("none of 1 events of type \"other\""), "{right:?}");
    let late = daemon.command(&[&other[..], &["--from", "2100-01-01T00:00:00Z"]].concat());
    assert!(late.status == Some(0) && late.out.contains("none of 0 events"), "{late:?}");
    let unnamed = schemas.write("unnamed.json", "{}");
    let unnamed = daemon.command(&["check", "--schema", unnamed.to_str().expect("text"), "--against", "archive"]);
    assert!(
        unnamed.status == Some(78)
            && unnamed.error.contains("is the schema of no type in [[event.types]]: name the type"),
        "{unnamed:?}"
    );
    schemas.write("login.json", r#"{"type": 7}"#);
    let wrong = daemon.command(&other);
    assert!(wrong.status == Some(78) && wrong.error.contains("it is no JSON Schema of 2020-12"), "{wrong:?}");
    let alone = daemon.command(&["check", "--schema", "x.json"]);
    assert!(alone.status == Some(2) && alone.error.contains("--against"), "{alone:?}");
}

#[test]
fn paths_of_schemas_are_those_from_the_configuration_file_on() {
    let config = "[[event.types]]\nname = \"a\"\nschema = \"schemas/a.json\"\n";
    let folder = tempfile::tempdir().expect("a folder");
    fs::create_dir(folder.path().join("schemas")).expect("a folder");
    fs::write(folder.path().join("schemas/a.json"), "{}").expect("it can be written");
    fs::write(folder.path().join("config.toml"), config).expect("it can be written");
    let file = folder.path().join("config.toml");
    let output = Command::new(crate::support::program())
        .arg("check")
        .arg("--config")
        .arg(file)
        .current_dir("/")
        .output()
        .expect("it runs");
    assert!(output.status.success(), "{output:?}");
}

/// With the program that anybody has: `openssl`.
#[test]
fn a_secret_is_changed_by_its_file_and_is_shown_nowhere() {
    let schemas = Schemas::new();
    let secret = schemas.write("secret", "hunter2-of-before\n");
    let config = format!(
        "[logging]\nlevel = \"trace\"\n[[http.source]]\npath = \"/hook\"\ntype = {{ fixed = \"push\" }}\nsignature = {{ scheme = \"github\", secret_file = {secret:?} }}\n"
    );
    let daemon = Setup::new("signed").config(&config).start();
    let body = br#"{"a":1}"#;
    let file = schemas.write("body", std::str::from_utf8(body).expect("text"));
    let post = |secret: &str| {
        let output = Command::new("openssl")
            .args(["dgst", "-sha256", "-hmac", secret, "-r"])
            .arg(&file)
            .output()
            .expect("openssl runs");
        let hex = String::from_utf8(output.stdout).expect("text");
        let signature = format!("sha256={}", hex.split(' ').next().expect("a digest"));
        let url = format!("http://{}/hook", daemon.http_address());
        let reply = Client::new().post_with(&url, &[("x-hub-signature-256", &signature)], body);
        reply.expect("an answer").status
    };
    assert_eq!((post("hunter2-of-before"), post("hunter2-of-after")), (200, 401));
    schemas.write("secret", "hunter2-of-after\nhunter2-of-before\n");
    eventually("the changed file is taken by itself", Duration::from_secs(30), || {
        (post("hunter2-of-after") == 200).then_some(())
    });
    assert_eq!(post("hunter2-of-before"), 200, "both are taken meanwhile");
    schemas.write("secret", "# none\n");
    let refused = daemon.reload();
    assert!(refused.status >= 400 && refused.body.contains("holds no secret"), "{refused:?}");
    assert_eq!(post("hunter2-of-after"), 200, "those in force stay");
    let config = daemon.command(&["config", "--set", "http.source=[]"]);
    let metrics = daemon.get("/metrics").body;
    assert!(metrics.contains("ingestd_signature_refusals_total{reason=\"mismatch\"}"));
    for said in [daemon.log(), config.out, config.error, daemon.get("/status").body, metrics, refused.body] {
        assert!(!said.contains("hunter2"), "{said}");
    }
    let _: Value = daemon.get("/status").json();
    daemon.terminate();
}
