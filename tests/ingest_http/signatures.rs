//! Signed sources, and keys in bodies: who is let in, what each is answered, and that no key and no secret stands anywhere.

use base64::Engine as _;
use hmac::{Hmac, KeyInit as _, Mac as _};
use ingestd::internals::position::Timestamp;
use sha2::{Digest, Sha256};

use super::*;

pub const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const KEY: &str = "ingestd_0123456789abcdefghijklmnopqrstuvwxyz0123456";
const OLD: &str = "ingestd_old-key-0123456789";

fn hmac(secret: &[u8], parts: &[&[u8]]) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).unwrap();
    parts.iter().for_each(|part| mac.update(part));
    mac.finalize().into_bytes().to_vec()
}

pub fn now() -> i64 {
    Timestamp::now().0 / 1000
}

/// Each scheme at a path of its own, and a source whose key stands in the body.
fn start(has_keys: bool) -> Daemon {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("standard"), format!("# of today\n{SECRET}\n")).unwrap();
    std::fs::write(folder.path().join("text"), "of before\nIt's a Secret to Everybody\n").unwrap();
    let mut http = HttpConfig { max_body: ByteSize(1 << 20), ..HttpConfig::default() };
    http.source = serde_json::from_value(json!([
        { "path": "/standard", "type": "/type", "signature": { "scheme": "standard-webhooks", "secret_file": "standard" } },
        { "path": "/github", "type": { "fixed": "push" }, "signature": { "scheme": "github", "secret_file": "text" } },
        { "path": "/stripe", "type": "/type", "id": "/id", "signature": { "scheme": "stripe", "secret_file": "text" } },
        { "path": "/batch", "records": "/batch", "type": "/event", "key": "/api_key" },
        { "path": "/one", "type": "/event", "key": "/api_key" },
    ]))
    .unwrap();
    let hash = |key: &str| format!("sha256:{}", hex::encode(Sha256::digest(key)));
    let keys = json!([
        { "name": "hog", "hash": hash(KEY), "types": ["a", "b"] },
        { "name": "old", "hash": hash(OLD), "expires": "2026-01-31T00:00:00Z" },
    ]);
    if has_keys {
        http.auth.keys = serde_json::from_value(keys).unwrap();
    }
    let daemon = Daemon::start(Queue::Stores, http);
    let mut config = Config::clone(&daemon.config.load());
    assert_eq!(config.read_files(folder.path()), []);
    daemon.config.store(Arc::new(config));
    daemon
}

pub fn standard(at: i64, body: &[u8]) -> String {
    let secret = base64::prelude::BASE64_STANDARD.decode(&SECRET[6..]).unwrap();
    let signature = hmac(&secret, &[format!("msg_1.{at}.").as_bytes(), body]);
    let signature = base64::prelude::BASE64_STANDARD.encode(signature);
    format!("webhook-id: msg_1\r\nwebhook-timestamp: {at}\r\nwebhook-signature: v1,{signature}\r\n")
}

pub fn github(body: &[u8]) -> String {
    format!("X-Hub-Signature-256: sha256={}\r\n", hex::encode(hmac(b"It's a Secret to Everybody", &[body])))
}

pub fn stripe(at: i64, body: &[u8]) -> String {
    let signature = hmac(b"It's a Secret to Everybody", &[format!("{at}.").as_bytes(), body]);
    format!("Stripe-Signature: t={at},v1={},v0=00\r\n", hex::encode(signature))
}

#[actix::test]
async fn who_signs_is_let_in_without_a_key_and_who_does_not_is_refused_before_anything_is_stored() {
    let body = br#"{"type":"a","id":"1","user":"caf\u00e9"}"#;
    for has_keys in [false, true] {
        let daemon = start(has_keys);
        let all = [("/standard", standard(now(), body)), ("/github", github(body)), ("/stripe", stripe(now(), body))];
        for (path, fields) in &all {
            let reply = daemon.post_at(path, fields, body).await;
            assert_eq!(reply.status, 200, "{path}: {}", reply.body);
            // A key is not asked for, and not looked at.
            let reply = daemon.post_at(path, &format!("{fields}X-Api-Key: wrong\r\n"), body).await;
            assert_eq!(reply.status, 200, "{path}: {}", reply.body);
        }
        assert_eq!(daemon.log.lock().unwrap().records.len(), 6);
        daemon.quarantine(Letters::Kept);
        // Broken JSON that is not signed is a stranger's, and one that is signed is kept.
        assert_eq!(daemon.post_at("/github", &github(b"{}"), b"{broken").await.status, 401);
        assert!(daemon.letters().is_empty());
        assert_eq!(daemon.post_at("/github", &github(b"{broken"), b"{broken").await.status, 200);
        assert_eq!(daemon.letters(), [("invalid_json".to_owned(), "{broken".to_owned())]);
        assert_eq!(daemon.log.lock().unwrap().records.len(), 6);
        assert_eq!(daemon.metric("ingestd_auth_refusals_total{"), "absent");
        // They hold their bodies.
        daemon.log.lock().unwrap().letters.clear();
        until(|| daemon.metric("ingestd_in_flight_bytes") == "0").await;
    }
}

#[actix::test]
async fn a_signature_is_that_of_the_bytes_as_they_were_sent_whatever_their_coding() {
    let daemon = start(true);
    let body = format!(r#"{{"type":"a","text":"{}"}}"#, "x".repeat(600_000));
    let packed = coding::gzip(body.as_bytes());
    let fields = format!("{}Content-Encoding: gzip\r\n", standard(now(), &packed));
    assert_eq!(daemon.post_at("/standard", &fields, &packed).await.status, 200);
    let inflated = format!("{}Content-Encoding: gzip\r\n", standard(now(), body.as_bytes()));
    assert_eq!(daemon.post_at("/standard", &inflated, &packed).await.status, 401);
    // Large ones are looked at aside, and what is too large is not looked at.
    assert_eq!(daemon.post_at("/standard", &standard(now(), body.as_bytes()), body.as_bytes()).await.status, 200);
    let large = vec![b' '; (1 << 20) + 1];
    assert_eq!(daemon.post_at("/standard", &standard(now(), &large), &large).await.status, 413);
    assert_eq!(daemon.log.lock().unwrap().records.len(), 2);
    until(|| daemon.metric("ingestd_in_flight_bytes") == "0").await;
}

/// What its head says is known before its body is sent.
#[actix::test]
async fn who_asks_first_hears_what_is_wrong_with_the_head_of_a_signature() {
    let daemon = start(true);
    daemon.change_limits(|http| http.rate = serde_json::from_value(json!("1/m burst 3")).unwrap());
    let asked = async |fields: &str| {
        let head = format!("Expect: 100-continue\r\n{fields}Content-Length: 3000\r\n\r\n");
        daemon.send(format!("POST /standard HTTP/1.1\r\nHost: x\r\n{head}")).await
    };
    let malformed = standard(now(), b"{}").replace("v1,", "v2,");
    for (at, (fields, reason, words)) in [
        (String::new(), "missing", "the header webhook-id is missing"),
        (malformed, "malformed", "the header webhook-signature is malformed"),
        (standard(now() - 400, b"{}"), "too_old", "more than 5 minutes ago"),
    ]
    .into_iter()
    .enumerate()
    {
        let reply = asked(&fields).await;
        assert!(reply.problem(401).contains(words), "{}", reply.body);
        assert_eq!(reply.header("www-authenticate"), Some("Signature realm=\"ingestd\""));
        assert!(reply.header("ratelimit").unwrap().contains(&format!("r={};", 2 - at)), "{}", reply.head);
        assert_eq!(daemon.metric(&format!("ingestd_signature_refusals_total{{reason=\"{reason}\"}}")), "1");
    }
    assert_eq!(asked("").await.status, 429);
    // Also without keys and rates.
    let open = start(false);
    let head = "POST /github HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 3000\r\n\r\n";
    assert_eq!(open.send(head.to_owned()).await.status, 401);
}

/// Nothing else is in flight: it is not to be told for ever to come later.
#[actix::test]
async fn a_body_as_large_as_all_that_may_be_in_flight_is_taken_where_it_is_alone() {
    let daemon = start(true);
    let most = 256 << 10;
    daemon.change_limits(|http| (http.max_body, http.max_in_flight) = (ByteSize(most), ByteSize(most)));
    let filled = |before: &str, behind: &str, length: u64| {
        let text = "x".repeat(length as usize - before.len() - behind.len());
        format!("{before}{text}{behind}")
    };
    let keyed = filled(&format!(r#"{{"api_key":"{KEY}","event":"a","text":""#), r#""}"#, most);
    let signed = coding::gzip(filled(r#"{"type":"a","text":""#, r#""}"#, most).as_bytes());
    let wrapped = coding::gzip(keyed.as_bytes());
    let coded = format!("{}Content-Encoding: gzip\r\n", standard(now(), &signed));
    for (path, fields, body) in
        [("/one", "", keyed.as_bytes()), ("/one", "", &wrapped), ("/standard", &*coded, &signed)]
    {
        until(|| daemon.metric("ingestd_in_flight_bytes") == "0").await;
        let reply = daemon.post_at(path, fields, body).await;
        assert_eq!(reply.status, 200, "{path}: {}", reply.body);
        daemon.log.lock().unwrap().records.clear();
    }
}

/// In there nobody would find it.
#[actix::test]
async fn a_body_that_is_wrapped_twice_is_stored_nowhere_where_it_may_have_a_key() {
    let daemon = start(true);
    daemon.quarantine(Letters::Kept);
    let body = format!(r#"{{"api_key":"{KEY}","event":"a"}}"#);
    let once = coding::gzip(body.as_bytes());
    let form = format!("data={}", base64::prelude::BASE64_URL_SAFE.encode(&body));
    for (fields, body) in [
        ("", coding::gzip(&once)),
        ("Content-Encoding: gzip\r\n", coding::gzip(&coding::gzip(&once))),
        ("", coding::gzip(form.as_bytes())),
    ] {
        for key in [String::new(), format!("X-Api-Key: {KEY}\r\n")] {
            let reply = daemon.post_at("/one", &format!("{key}{fields}"), &body).await;
            assert!(reply.problem(400).contains("wrap the JSON once"), "{}", reply.body);
        }
    }
    let log = daemon.log.lock().unwrap();
    assert!(log.records.is_empty() && log.letters.is_empty());
}

fn basic(text: &str) -> String {
    format!("Authorization: Basic {}\r\n", base64::prelude::BASE64_STANDARD.encode(text))
}

#[actix::test]
async fn a_key_in_the_body_lets_in_and_stands_in_nothing_that_is_made_of_it() {
    let daemon = start(true);
    daemon.quarantine(Letters::Kept);
    let event = |kind: &str| format!(r#"{{"event":"{kind}","properties":{{"token":"{KEY}"}}}}"#);
    let batch = |key: &str, kind: &str| format!(r#"{{"api_key":"{key}","batch":[{}]}}"#, event(kind));
    let one = format!(r#"{{"api_key":"{KEY}","event":"a"}}"#);
    let form = format!(
        "data={}",
        base64::prelude::BASE64_URL_SAFE.encode(batch(KEY, "a")).replace('-', "%2B").replace('_', "%2F")
    );
    for (path, fields, body) in [
        ("/batch", String::new(), batch(KEY, "a").into_bytes()),
        ("/one", String::new(), one.into_bytes()),
        ("/batch", String::new(), coding::gzip(batch(KEY, "b").as_bytes())),
        ("/batch", "Content-Encoding: gzip\r\n".to_owned(), coding::gzip(batch(KEY, "b").as_bytes())),
        ("/batch", String::new(), form.into_bytes()),
        // In its head, as user without a password, too.
        ("/batch", basic(&format!("{KEY}:")), batch("x", "a").into_bytes()),
        ("/batch", format!("X-Api-Key: {KEY}\r\n"), batch(KEY, "a").into_bytes()),
        // What is wrong is kept without it.
        ("/batch", String::new(), batch(KEY, "").into_bytes()),
        ("/one", String::new(), format!(r#"{{"api_key":"{KEY}","event":a}}"#).into_bytes()),
        ("/batch", String::new(), format!(r#"{{"api_key":"{KEY}","batch":[{{"event":"#).into_bytes()),
    ] {
        let reply = daemon.post_at(path, &fields, &body).await;
        let is_broken = body.ends_with(b"\"event\":");
        assert_eq!(reply.status, if is_broken { 401 } else { 200 }, "{path} {fields}: {}", reply.body);
        assert!(!reply.body.contains(KEY) && !reply.head.contains(KEY), "{}", reply.body);
    }
    {
        let mut log = daemon.log.lock().unwrap();
        assert_eq!((log.records.len(), log.letters.len()), (7, 2));
        assert!(log.headers.iter().all(|headers| headers.contains(&"ingestd-key=hog".to_owned())), "{:?}", log.headers);
        let stars = "*".repeat(KEY.len());
        assert!(log.records.iter().all(|(_, value, _)| !value.contains(KEY)));
        assert!(log.records[0].1.contains(&format!(r#""token":"{stars}""#)), "{:?}", log.records[0]);
        for letter in &log.letters {
            assert!(
                !format!("{letter:?}").contains(KEY)
                    && !String::from_utf8_lossy(letter.value.as_ref().unwrap()).contains(KEY)
            );
        }
        log.letters.clear();
    }
    until(|| daemon.metric("ingestd_in_flight_bytes") == "0").await;
}

#[actix::test]
async fn what_the_key_in_a_body_may_not_send_is_refused_and_without_keys_nobody_looks_there() {
    let daemon = start(true);
    let reply =
        daemon.post_at("/batch", "", format!(r#"{{"api_key":"{KEY}","batch":[{{"event":"c"}}]}}"#).as_bytes()).await;
    assert_eq!((reply.status, reply.errors()), (403, vec![(0, "forbidden_type".to_owned())]));
    // Elsewhere a user is no key.
    assert_eq!(daemon.post_at("/v1/events", &basic(&format!("{KEY}:")), b"{}").await.status, 401);
    assert!(daemon.log.lock().unwrap().records.is_empty());
    // Without keys nobody is asked, and nothing is taken out.
    let open = start(false);
    assert_eq!(open.post_at("/one", "", br#"{"api_key":"x","event":"a"}"#).await.status, 200);
    assert_eq!(open.log.lock().unwrap().records[0].1, r#"{"api_key":"x","event":"a"}"#);
}
