//! Keys as operators and senders meet them: made by the program, pasted, sent, replayed, withdrawn.

use serde_json::{Value, json};

use crate::support::{
    PATIENCE,
    archive::Archive,
    daemon::{Daemon, Setup},
    eventually,
    http::Client,
};

/// A key, and its lines for the configuration.
struct Key {
    key: String,
    lines: String,
}

fn make(daemon: &Daemon, arguments: &[&str]) -> Key {
    let output = std::process::Command::new(crate::support::program())
        .args([&["key", "new"], arguments].concat())
        .output()
        .expect("the program runs");
    let (out, error) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(output.status.success(), "{error}");
    let (key, lines) = out.split_once('\n').expect("lines");
    assert!(key.starts_with("ingestd_") && key.len() == 51 && !error.contains(key), "{out} {error}");
    assert!(error.contains("give it to its sender"), "{error}");
    assert!(lines.lines().all(|line| line.starts_with("[[http.auth.keys]]") || line.contains(" = \"")), "{lines}");
    assert!(!daemon.log().contains(key));
    Key { key: key.to_owned(), lines: lines.to_owned() }
}

fn send(daemon: &Daemon, fields: &[(&str, &str)], body: &str) -> u16 {
    daemon.post_with(fields, body.as_bytes()).status
}

#[test]
fn a_key_is_made_pasted_sent_and_withdrawn_and_stands_nowhere_but_with_its_sender() {
    // Without keys nobody is asked for one.
    const LOUD: &str = "[logging]\nlevel = \"trace\"\n";
    let daemon = Setup::new("auth").config(LOUD).start();
    assert_eq!(send(&daemon, &[], r#"{"type":"before"}"#), 200);
    let shop = make(&daemon, &["shop"]);
    let login = make(&daemon, &["login.web", "--expires", "90d"]);
    let again = make(&daemon, &["shop"]);
    assert!(shop.key != again.key && shop.lines != again.lines, "each is new");
    assert!(login.lines.contains("expires = \"2"), "{}", login.lines);
    let more = "types = [\"login\"]\non_invalid = \"quarantine\"\n";
    daemon.write_config(&format!("{LOUD}{}\n{}{more}", shop.lines, login.lines));
    let reload = daemon.reload();
    assert_eq!((reload.status, reload.json()["needs_restart"].clone()), (200, json!([])), "{reload:?}");

    assert_eq!(send(&daemon, &[], r#"{"type":"a"}"#), 401);
    assert_eq!(send(&daemon, &[("x-api-key", &again.key)], r#"{"type":"a"}"#), 401, "its lines are not pasted");
    assert_eq!(send(&daemon, &[("x-api-key", &shop.key)], r#"{"type":"a","n":1}"#), 200);
    assert_eq!(send(&daemon, &[("authorization", &format!("Bearer {}", login.key))], r#"{"type":"login"}"#), 200);
    // A type that it may not send is refused, and what is wrong becomes a letter, as this key has it.
    assert_eq!(send(&daemon, &[("authorization", &format!("Bearer {}", login.key))], r#"{"type":"purchase"}"#), 403);
    assert_eq!(send(&daemon, &[("authorization", &format!("Bearer {}", login.key))], r#"{"n":1}"#), 200);
    let health = Client::new().get(&format!("http://{}/health", daemon.http_address())).expect("an answer");
    assert_eq!(health.status, 200);

    let letters = daemon.command(&["dlq", "show", "--json"]).json(0);
    let letter = &letters[0];
    assert_eq!(
        (&letter["reason"], &letter["headers"][0]["value"]),
        (&json!("missing_type"), &json!("login.web")),
        "{letters}"
    );

    let metrics = daemon.get("/metrics").body;
    for line in [
        "ingestd_events_accepted_by_key_total{key=\"shop\"} 1",
        "ingestd_events_accepted_by_key_total{key=\"login.web\"} 1",
        "ingestd_auth_refusals_total{reason=\"missing\"} 1",
        "ingestd_auth_refusals_total{reason=\"unknown\"} 1",
        "ingestd_events_rejected_total{reason=\"forbidden_type\"} 1",
        "ingestd_events_quarantined_total{reason=\"missing_type\"} 1",
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line} is not in {metrics}");
    }

    daemon.write_config(&format!("{LOUD}{}", login.lines));
    eventually("the key is withdrawn", PATIENCE, || {
        let _ = daemon.reload();
        (send(&daemon, &[("x-api-key", &shop.key)], r#"{"type":"late","n":2}"#) == 401).then_some(())
    });
    assert_eq!(send(&daemon, &[("x-api-key", &login.key)], r#"{"type":"login"}"#), 200);

    let config = daemon.command(&["config"]);
    assert!(config.out.contains(login.lines.lines().nth(2).expect("its hash")), "{}", config.out);
    let status = daemon.get("/status").body;
    daemon.wait_read(4);
    daemon.terminate();
    let mut archive = Archive::local(&daemon.data().join("archive"));
    archive.refresh();
    let header = |headers: &[(String, Option<Vec<u8>>)], wanted: &str| {
        let found = headers.iter().find(|(name, _)| name == wanted);
        found.map(|(_, value)| String::from_utf8(value.clone().expect("a value")).expect("text"))
    };
    let mut archived: Vec<_> = archive
        .lines()
        .map(|line| {
            let event: Value = serde_json::from_slice(line.value.as_deref().expect("a value")).expect("JSON");
            let of = event["type"].as_str().expect("a type").to_owned();
            (of, header(&line.headers, "ingestd-key"))
        })
        .collect();
    archived.sort();
    let of = |of: &str, key: Option<&str>| (of.to_owned(), key.map(str::to_owned));
    let login_web = Some("login.web");
    let expected = [of("a", Some("shop")), of("before", None), of("login", login_web), of("login", login_web)];
    assert_eq!(archived, expected);
    for said in [daemon.log(), config.out, config.error, status, letters.to_string(), metrics] {
        for key in [&shop.key, &login.key, &again.key] {
            assert!(!said.contains(key.as_str()), "a key stands in: {said}");
        }
    }
}

#[test]
fn a_key_that_has_expired_is_a_warning_and_no_reason_not_to_start() {
    let hash = "0".repeat(64);
    let config =
        format!("[[http.auth.keys]]\nname = \"old\"\nhash = \"sha256:{hash}\"\nexpires = 2026-01-31T00:00:00Z\n");
    let daemon = Setup::new("expired").config(&config).start();
    let sentence = "http.auth.keys: \"old\" expired at 2026-01-31T00:00:00Z: requests with it are refused; remove it or give its sender \
                    a new one";
    assert!(
        daemon.log().contains(&sentence.replace('"', "\\\"")) || daemon.log().contains(sentence),
        "{}",
        daemon.log()
    );
    let check = daemon.command(&["check"]);
    assert_eq!((check.status, check.error.contains(&format!("warning: {sentence}"))), (Some(0), true), "{check:?}");
    assert_eq!(send(&daemon, &[], r#"{"type":"a"}"#), 401, "it is a key all the same");
    daemon.terminate();
}

#[test]
fn names_and_ends_of_keys_that_cannot_be_are_refused() {
    for (arguments, words) in [
        (&["a b"][..], "a name must be 1 to 64 of"),
        (&[""], "a name must be 1 to 64 of"),
        (&["a", "--expires", "yesterday"], "\"yesterday\" is neither an RFC 3339 time such as"),
        (&["a", "--expires", "2020-01-01T00:00:00Z"], "is not ahead"),
        (&[], "<NAME>"),
        (&["a", "b"], "unexpected argument"),
    ] {
        let output = std::process::Command::new(crate::support::program())
            .args([&["key", "new"], arguments].concat())
            .output()
            .expect("the program runs");
        let error = String::from_utf8(output.stderr).expect("text");
        assert_eq!((output.status.code(), output.stdout.is_empty()), (Some(2), true), "{error}");
        assert!(error.contains(words), "{arguments:?}: {error}");
    }
}
