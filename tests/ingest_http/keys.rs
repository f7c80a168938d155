//! Keys (`http.auth`): who is let in, what each is answered, and what their records say.

use sha2::{Digest, Sha256};

use super::*;

pub const SHOP: &str = "ingestd_shop-key";
pub const LOGIN: &str = "ingestd_login-key";
pub const OLD: &str = "ingestd_old-key";
const KEEPING: &str = "ingestd_keeping-key";
pub const JSON: &str = "Content-Type: application/json\r\n";

pub fn hash(key: &str) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(key)))
}

pub fn keys() -> Value {
    json!([
        { "name": "shop", "hash": hash(SHOP) },
        { "name": "login", "hash": hash(LOGIN), "types": ["login_success", "login_failed"] },
        { "name": "old", "hash": hash(OLD), "expires": "2026-01-31T00:00:00Z" },
        { "name": "keeping", "hash": hash(KEEPING), "types": ["a"], "on_invalid": "quarantine" },
    ])
}

/// With the sources of other tests.
pub fn locked() -> HttpConfig {
    let mut http = other_shapes();
    http.auth.keys = serde_json::from_value(keys()).unwrap();
    http
}

pub fn bearer(key: &str) -> String {
    format!("Authorization: Bearer {key}\r\n")
}

pub fn basic(text: &str) -> String {
    use base64::Engine as _;
    format!("Authorization: Basic {}\r\n", base64::prelude::BASE64_STANDARD.encode(text))
}

fn logs(names: &[&str]) -> String {
    let records: Vec<_> = names.iter().map(|name| format!(r#"{{"eventName":"{name}"}}"#)).collect();
    format!(r#"{{"resourceLogs":[{{"scopeLogs":[{{"logRecords":[{}]}}]}}]}}"#, records.join(","))
}

#[actix::test]
async fn a_right_key_lets_in_wherever_it_stands_and_each_record_says_whose_it_is() {
    let daemon = Daemon::start(Queue::Stores, locked());
    let twice = format!("{}X-Api-Key: {SHOP}\r\n", bearer(SHOP));
    // What a client says of itself is no header of a record.
    let pretends = format!("X-Api-Key: {SHOP}\r\ningestd-key: root\r\nce_ingestd-key: root\r\n");
    for (fields, body) in [
        (bearer(SHOP), r#"{"type":"a"}"#),
        (bearer(SHOP).to_lowercase().replace(&SHOP.to_lowercase(), SHOP), r#"[{"type":"a"},{"type":"b"}]"#),
        (basic(&format!("anybody:{SHOP}")), "{\"type\":\"a\"}\n{\"type\":\"b\"}"),
        (format!("X-Api-Key: {SHOP}\r\n"), r#"{"type":"a"}"#),
        (twice, r#"{"type":"a"}"#),
        (pretends, r#"{"type":"a","ingestd-key":"root"}"#),
    ] {
        let reply = daemon.post_at("/v1/events", &fields, body.as_bytes()).await;
        assert_eq!(reply.status, 200, "{fields}: {}", reply.body);
    }
    let plain = std::mem::take(&mut daemon.log.lock().unwrap().headers);
    assert_eq!(plain.len(), 8);
    assert!(plain.iter().all(|headers| *headers == ["ingestd-key=shop"]), "{plain:?}");

    let envelope = r#"{"specversion":"1.0","id":"1","source":"/s","type":"t","data":1}"#;
    let batch = format!("{}Content-Type: application/cloudevents-batch+json\r\n", bearer(SHOP));
    let in_headers =
        format!("{}ce-specversion: 1.0\r\nce-id: 1\r\nce-source: /s\r\nce-type: t\r\n{JSON}", bearer(SHOP));
    for (path, fields, body) in [
        ("/v1/events", &batch, format!("[{envelope},{envelope}]")),
        ("/v1/events", &in_headers, "1".to_owned()),
        ("/hook", &bearer(SHOP), r#"{"batch":[{"kind":"t"}]}"#.to_owned()),
        ("/v1/logs", &format!("{}{JSON}", bearer(SHOP)), logs(&["t"])),
    ] {
        let reply = daemon.post_at(path, fields, body.as_bytes()).await;
        assert_eq!(reply.status, 200, "{path}: {}", reply.body);
    }
    let beside = daemon.log.lock().unwrap().headers.clone();
    assert_eq!(beside.len(), 5);
    for headers in &beside {
        assert_eq!(
            (headers.last().map(String::as_str), headers.contains(&"ce_type=t".to_owned())),
            (Some("ingestd-key=shop"), true)
        );
        assert!(headers.is_sorted(), "{headers:?}");
    }
    assert_eq!(daemon.metric("ingestd_events_accepted_by_key_total{key=\"shop\"}"), "13");
    assert_eq!(daemon.metric("ingestd_auth_refusals_total{"), "absent");
    until(|| daemon.metric("ingestd_in_flight_bytes") == "0").await;
}

#[actix::test]
async fn what_needs_no_key_is_answered_without_one_and_pages_can_read_that_they_need_one() {
    let mut http = locked();
    http.cors = CorsConfig { origins: vec!["https://app.example".to_owned()], ..CorsConfig::default() };
    let daemon = Daemon::start(Queue::Stores, http);
    daemon.health.actor(ActorName::Ingestor, ActorState::Running, None);
    for (line, status) in [
        ("GET /openapi.json", 200),
        ("HEAD /openapi.json", 200),
        ("GET /v1/events", 405),
        ("OPTIONS /v1/events", 405),
        ("GET /elsewhere", 404),
    ] {
        let reply = daemon.get(line).await;
        assert_eq!((reply.status, reply.header("www-authenticate")), (status, None), "{line}");
    }
    assert_ne!(daemon.get("GET /health").await.status, 401);
    let document = daemon.get("GET /openapi.json").await.json();
    assert!(document["components"]["securitySchemes"]["bearer"].is_object(), "{document}");

    let origin = "Origin: https://app.example\r\n";
    let asks = format!(
        "OPTIONS /v1/events HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{origin}Access-Control-Request-Method: POST\r\n\
         Access-Control-Request-Headers: authorization, x-api-key, content-type\r\n\r\n"
    );
    let preflight = daemon.send(asks).await;
    let allowed = preflight.header("access-control-allow-headers");
    assert_eq!((preflight.status, allowed), (204, Some("authorization, x-api-key, content-type")));
    let refused = daemon.post_at("/v1/events", &format!("{origin}{JSON}"), b"{}").await;
    assert_eq!((refused.status, refused.header("access-control-allow-origin")), (401, Some("https://app.example")));
    assert!(refused.header("access-control-expose-headers").unwrap().contains("WWW-Authenticate"), "{}", refused.head);
    let taken = daemon.post_at("/v1/events", &format!("{origin}{JSON}{}", bearer(SHOP)), br#"{"type":"a"}"#).await;
    assert_eq!(taken.status, 200);
}

#[actix::test]
async fn a_stranger_hears_no_more_than_that_and_nothing_of_a_body_is_read() {
    let daemon = Daemon::start(Queue::Stores, locked());
    let closed = daemon.health.gate.reason(Closed::DiskFull);
    closed.set("it is".to_owned());
    assert_eq!(daemon.post_at("/v1/events", "", b"{}").await.status, 401, "not why it would be refused, either");
    assert_eq!(daemon.post_at("/v1/events", &bearer(SHOP), b"{}").await.status, 503);
    closed.set(None);
    // Nothing of it is sent.
    for (path, fields) in [("/v1/events", ""), ("/hook", ""), ("/v1/logs", JSON)] {
        for expect in ["", "Expect: 100-continue\r\n"] {
            let head = format!("POST {path} HTTP/1.1\r\nHost: x\r\n{fields}{expect}Content-Length: 3000\r\n\r\n");
            let reply = daemon.send(head).await;
            assert_eq!(reply.status, 401, "{path}, {expect}: {}", reply.head);
            assert_eq!(reply.json().get("message").is_some(), path == "/v1/logs", "{}", reply.body);
            assert_eq!(reply.header("connection"), Some("close"), "what comes behind the head is no request");
        }
    }
    let expecting = format!("Connection: close\r\nExpect: 100-continue\r\n{}Content-Length: 12\r\n", bearer(SHOP));
    let request = format!("POST /v1/events HTTP/1.1\r\nHost: x\r\n{expecting}\r\n{{\"type\":\"a\"}}");
    let address = daemon.address;
    let exchanged = tokio::task::spawn_blocking(move || {
        let (mut stream, mut text) = (TcpStream::connect(address).unwrap(), String::new());
        stream.write_all(request.as_bytes()).unwrap();
        stream.read_to_string(&mut text).unwrap();
        text
    });
    let text = exchanged.await.unwrap();
    assert!(text.starts_with("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n"), "{text}");
    assert_eq!(daemon.metric("ingestd_auth_refusals_total{reason=\"missing\"}"), "7");
    assert_eq!(daemon.metric("ingestd_requests_total{status=\"401\"}"), "7");
}

#[actix::test]
async fn an_event_whose_type_its_key_may_not_send_is_wrong_by_itself() {
    let daemon = Daemon::start(Queue::Stores, locked());
    let login = bearer(LOGIN);
    let forbidden =
        |indexes: &[u64]| -> Vec<_> { indexes.iter().map(|index| (*index, "forbidden_type".to_owned())).collect() };
    let list = br#"[{"type":"login_success"},{"type":"purchase"},{"type":"login_failed"}]"#;
    let reply = daemon.post_at("/v1/events", &login, list).await;
    assert_eq!((reply.status, reply.errors()), (207, forbidden(&[1])));
    let sentence = "the key \"login\" may not send events of this type: send it with another key, or have the type added to the \
                    key (types in http.auth.keys), which may send login_success, login_failed";
    assert_eq!(reply.json()["errors"][0]["message"], sentence);
    assert_eq!(daemon.metric("ingestd_events_rejected_total{reason=\"forbidden_type\"}"), "1");
    daemon.log.lock().unwrap().records.clear();

    let envelope = |of: &str| format!(r#"{{"specversion":"1.0","id":"1","source":"/s","type":"{of}"}}"#);
    let (envelopes, in_headers) = (
        format!("{login}Content-Type: application/cloudevents-batch+json\r\n"),
        format!("{login}ce-specversion: 1.0\r\nce-id: 1\r\nce-source: /s\r\nce-type: purchase\r\n{JSON}"),
    );
    // None of them may come: 403. What is wrong otherwise is so first.
    for (path, fields, body, status, errors) in [
        ("/v1/events", &login, r#"{"type":"purchase"}"#.to_owned(), 403, forbidden(&[0])),
        ("/v1/events", &login, "{\"type\":\"b\"}\n{\"type\":\"c\"}".to_owned(), 403, forbidden(&[0, 1])),
        ("/v1/events", &login, r#"{"type":"Login_success"}"#.to_owned(), 403, forbidden(&[0])),
        ("/v1/events", &login, r#"{"type":7}"#.to_owned(), 400, vec![(0, "invalid_type".to_owned())]),
        (
            "/v1/events",
            &login,
            r#"[{"type":"b"},{}]"#.to_owned(),
            400,
            vec![(0, "forbidden_type".to_owned()), (1, "missing_type".to_owned())],
        ),
        ("/v1/events", &envelopes, format!("[{}]", envelope("b")), 403, forbidden(&[0])),
        ("/v1/events", &in_headers, "1".to_owned(), 403, forbidden(&[0])),
        ("/hook", &login, r#"{"batch":[{"kind":"b"},{"kind":"c"}]}"#.to_owned(), 403, forbidden(&[0, 1])),
        ("/one", &login, "{}".to_owned(), 403, forbidden(&[0])),
    ] {
        let reply = daemon.post_at(path, fields, body.as_bytes()).await;
        assert_eq!((reply.status, reply.errors()), (status, errors), "{path}: {body}: {}", reply.body);
    }
    // All or nothing.
    let reply = daemon.post_at("/v1/events", &format!("{login}Prefer: handling=strict\r\n"), list).await;
    assert_eq!((reply.status, reply.errors(), reply.applied()), (403, forbidden(&[1]), Some("handling=strict")));
    assert!(daemon.log.lock().unwrap().records.is_empty());

    let (both, none) = (logs(&["login_failed", "purchase"]), logs(&["purchase", "b"]));
    let reply = daemon.post_at("/v1/logs", &format!("{login}{JSON}"), both.as_bytes()).await;
    let partial = &reply.json()["partialSuccess"];
    assert_eq!((reply.status, &partial["rejectedLogRecords"]), (200, &json!("1")), "{}", reply.body);
    assert_eq!(partial["errorMessage"], format!("log record 1: forbidden_type: {sentence}"));
    let reply = daemon.post_at("/v1/logs", &format!("{login}{JSON}"), none.as_bytes()).await;
    assert_eq!((reply.status, &reply.json()["code"]), (403, &json!(7)), "{}", reply.body);
}

#[actix::test]
async fn what_becomes_of_wrong_events_is_the_keys_own_and_a_letter_says_whose_it_was() {
    let daemon = Daemon::start(Queue::Stores, locked());
    let keeping = bearer(KEEPING);
    let whose = || {
        let letters = std::mem::take(&mut daemon.log.lock().unwrap().letters);
        let whose = |letter: &DeadLetter| {
            let own = letter.headers.iter().filter(|(name, _)| name == "ingestd-key");
            let own: Vec<_> = own.map(|(_, value)| String::from_utf8(value.clone().unwrap()).unwrap()).collect();
            (letter.reason.clone(), own.join(","))
        };
        letters.iter().map(whose).collect::<Vec<_>>()
    };
    let letter = |reason: &str| (reason.to_owned(), "keeping".to_owned());
    let envelope = r#"{"specversion":"1.0","id":"1","source":"/s","type":"b"}"#;
    // What it may not send is nobody's to keep.
    for (path, fields, body, status, letters) in [
        ("/v1/events", keeping.clone(), r#"[{"type":"a"},{"type":"b"},{}]"#, 207, vec![letter("missing_type")]),
        ("/v1/events", keeping.clone(), "{broken", 200, vec![letter("invalid_json")]),
        ("/v1/events", format!("{keeping}Content-Type: application/cloudevents+json\r\n"), envelope, 403, vec![]),
        ("/hook", keeping.clone(), r#"{"batch":[{"kind":"b"},{"kind":7}]}"#, 207, vec![letter("invalid_type")]),
        ("/v1/logs", format!("{keeping}{JSON}"), &*logs(&["b"]), 403, vec![]),
    ] {
        let reply = daemon.post_at(path, &fields, body.as_bytes()).await;
        assert_eq!((reply.status, whose()), (status, letters), "{path}: {body}: {}", reply.body);
    }
    // The others' are rejected, and nobody's are kept where all or nothing is wished for.
    let others = daemon.post_at("/v1/events", &bearer(SHOP), br#"[{"type":"a"},{}]"#).await;
    let strict = daemon.post_at("/v1/events", &format!("{keeping}Prefer: handling=strict\r\n"), b"{}").await;
    assert_eq!((others.status, strict.status, whose()), (207, 400, vec![]));
    // And the other way round.
    daemon.quarantine(Letters::Kept);
    daemon.change_limits(|http| {
        let mut keys = keys();
        keys[0]["on_invalid"] = "reject".into();
        http.auth.keys = serde_json::from_value(keys).unwrap();
    });
    let rejected = daemon.post_at("/v1/events", &bearer(SHOP), b"{}").await;
    let kept = daemon.post_at("/v1/events", &bearer(LOGIN), b"{}").await;
    assert_eq!(
        (rejected.status, kept.status, whose()),
        (400, 200, vec![("missing_type".to_owned(), "login".to_owned())])
    );
}

#[actix::test]
async fn keys_come_and_go_with_the_configuration_in_force() {
    let daemon = Daemon::start(Queue::Stores, HttpConfig::default());
    let change = |keys: Value| daemon.change_limits(|http| http.auth.keys = serde_json::from_value(keys).unwrap());
    let status = async |fields: &str| daemon.post_at("/v1/events", fields, br#"{"type":"a"}"#).await.status;
    let (shop, login) = (bearer(SHOP), bearer(LOGIN));
    assert_eq!((status("").await, status(&shop).await), (200, 200), "without keys nobody is asked");
    assert_eq!(daemon.log.lock().unwrap().headers, [[""; 0]; 2], "and records say nothing of it");
    change(json!([{ "name": "shop", "hash": hash(SHOP) }]));
    assert_eq!((status("").await, status(&shop).await, status(&login).await), (401, 200, 401));
    change(json!([{ "name": "shop", "hash": hash(LOGIN) }]));
    assert_eq!((status(&shop).await, status(&login).await), (401, 200), "changed");
    change(json!([{ "name": "shop", "hash": hash(LOGIN), "expires": "2026-01-31T00:00:00Z" }]));
    assert_eq!(status(&login).await, 401);
    change(json!([]));
    assert_eq!(status("").await, 200, "none is left");
}
