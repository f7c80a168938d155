//! All that stands in front of the ingest listener at once: TLS, keys, rates, schemas; changed while senders send.

use std::{
    fs,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use serde_json::json;
use sha2::{Digest, Sha256};

use crate::support::{
    StopOnDrop,
    archive::Archive,
    daemon::Setup,
    tls::{Certificates, ask, shake},
};

const KEY: &str = "ingestd_a-key-that-stays";
const SENDERS: usize = 3;
/// Each changes keys, limits, the certificate and the schema.
const RELOADS: u32 = 12;

fn key(name: &str, key: &str, rate: u32) -> String {
    let hash = hex::encode(Sha256::digest(key));
    format!("[[http.auth.keys]]\nname = \"{name}\"\nhash = \"sha256:{hash}\"\nrate = \"{rate}/s\"\n")
}

/// What either configuration takes: the sender's key has its rate in both, and what it sends is right by both schemas.
fn config(round: u32) -> String {
    let (events, rate, connections) = (1_000 + round, 100_000 + round, 500 + round);
    let other = format!("ingestd_a-key-of-round-{round}");
    format!(
        "[http]\nmax_events = {events}\nmax_connections_per_address = {connections}\nrate = \"{}/s burst 50\"\n{}{}\
         [[event.types]]\nname = \"login\"\nschema = \"login.json\"\n",
        1 + round,
        key("stays", KEY, rate),
        key("comes-and-goes", &other, 1),
    )
}

fn schema(round: u32) -> String {
    let also = format!("of-{round}");
    json!({ "type": "object", "required": ["n"], "properties": { "n": { "type": "integer" }, "also": { "const": also } } })
        .to_string()
}

#[test]
fn a_reload_under_load_of_keys_limits_certificates_and_schemas_loses_and_refuses_nothing() {
    let made = Certificates::new();
    let schemas = tempfile::tempdir_in(crate::support::scratch()).expect("target can be written to");
    let schema_file = schemas.path().join("login.json");
    fs::write(&schema_file, schema(0)).expect("it can be written");
    let with_path = |round| config(round).replace("login.json", &schema_file.display().to_string());
    let daemon = Setup::new("doors")
        .set("http.tls.cert", made.text("server.pem"))
        .set("http.tls.key", made.text("server.key"))
        .config(&with_path(0))
        .start();
    let (client, is_over) = (made.client(None), AtomicBool::new(false));
    let send = |sender: usize| {
        let mut accepted = 0;
        let mut stream = shake(daemon.http_address(), &client).expect("a handshake");
        while !is_over.load(Ordering::Relaxed) {
            let event = format!(r#"{{"type":"login","n":{accepted},"client_id":"client-{sender}"}}"#);
            let length = event.len();
            let head = format!(
                "POST /v1/events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Length: {length}\r\n\r\n"
            );
            let (status, answer) = ask(&mut stream, &[head.as_bytes(), event.as_bytes()].concat()).expect("an answer");
            assert_eq!(status, 200, "{answer}");
            accepted += 1;
            // New connections go by the new certificate, and others stay.
            if accepted % 50 == 0 && sender > 0 {
                stream = shake(daemon.http_address(), &client).expect("a handshake");
            }
        }
        accepted
    };
    let accepted: usize = thread::scope(|scope| {
        let _stop = StopOnDrop(&is_over);
        let senders: Vec<_> = (0..SENDERS).map(|sender| scope.spawn(move || send(sender))).collect();
        for round in 1..=RELOADS {
            thread::sleep(Duration::from_millis(150));
            made.issue("server", 90 + round);
            fs::write(&schema_file, schema(round)).expect("it can be written");
            daemon.write_config(&with_path(round));
            let reload = daemon.reload();
            assert_eq!((reload.status, reload.json()["needs_restart"].clone()), (200, json!([])), "{reload:?}");
        }
        is_over.store(true, Ordering::Relaxed);
        senders.into_iter().map(|sender| sender.join().expect("it sends")).sum()
    });
    // The last ones are in force: the key of that round, its schema, and its certificate.
    let event = format!(r#"{{"type":"login","n":1,"also":"of-{RELOADS}"}}"#);
    let other = format!("ingestd_a-key-of-round-{RELOADS}");
    let request = |key: &str, event: &str| {
        let length = event.len();
        format!("POST /v1/events HTTP/1.1\r\nHost: x\r\nX-Api-Key: {key}\r\nContent-Length: {length}\r\n\r\n{event}")
    };
    let stream = shake(daemon.http_address(), &client).expect("a handshake");
    let shown = stream.conn.peer_certificates().expect("a certificate")[0].clone();
    assert_eq!(shown, made.der("server"));
    for (key, event, expected) in [
        (&*other, &*event, 200),
        ("ingestd_a-key-of-round-1", &*event, 401),
        (KEY, r#"{"type":"login","n":1,"also":"of-1"}"#, 400),
    ] {
        let mut stream = shake(daemon.http_address(), &client).expect("a handshake");
        let (status, answer) = ask(&mut stream, request(key, event).as_bytes()).expect("an answer");
        assert_eq!(status, expected, "{answer}");
    }
    drop(stream);
    assert!(accepted > SENDERS * RELOADS as usize, "{accepted}");
    assert_eq!(daemon.metric("ingestd_events_accepted_total"), Some((accepted + 1) as f64));
    daemon.terminate();
    let mut archive = Archive::local(&daemon.data().join("archive"));
    archive.refresh();
    assert_eq!(archive.lines().count(), accepted + 1, "each is stored, and once");
}
