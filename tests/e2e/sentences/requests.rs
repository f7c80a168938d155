//! Requests that are refused for who sends them, or how many: their keys, signatures, types and rates.

use std::{collections::BTreeSet, fs, path::Path};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use hmac::{Hmac, KeyInit as _, Mac as _};
use prost::Message;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::{Differences, Row, bodies, heads, logs};
use crate::support::{
    PATIENCE,
    coding::gzip,
    daemon::{Daemon, Setup},
    http::Client,
    raw::{Answer, exchange},
};

/// Which daemon, by what it is configured with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Door {
    /// Takes anything of right shape, from everybody.
    Open,
    /// Asks for keys and signatures, and knows its types.
    Locked,
    /// Lets few events come at once.
    Rated,
    /// Has little memory and little patience, and stands behind a proxy.
    Narrow,
    /// The side of operators of the open one.
    Operators,
}

const DOORS: [Door; 4] = [Door::Open, Door::Locked, Door::Rated, Door::Narrow];

/// Bytes at a door.
#[derive(Clone)]
pub struct Request {
    door: Door,
    bytes: Vec<u8>,
    /// Each `WWW-Authenticate` of the answer.
    challenges: &'static [&'static str],
    /// The metric that counts it, and its label.
    counted: Option<(&'static str, String)>,
}

pub type Wrong = Row<Request>;

/// A POST that is answered like this.
pub fn post(
    door: Door,
    path: &str,
    fields: &str,
    body: impl AsRef<[u8]>,
    (status, code, sentence): (u16, &'static str, &str),
) -> Wrong {
    let (body, length) = (body.as_ref(), body.as_ref().len());
    let head =
        format!("POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{fields}Content-Length: {length}\r\n\r\n");
    sent(door, [head.as_bytes(), body].concat(), (status, code, sentence))
}

/// Bytes that are answered like this.
pub fn sent(door: Door, bytes: impl Into<Vec<u8>>, (status, code, sentence): (u16, &'static str, &str)) -> Wrong {
    let wrong = Request { door, bytes: bytes.into(), challenges: &[], counted: None };
    Row { wrong, status, code, sentence: sentence.to_owned() }
}

impl Wrong {
    fn challenged(mut self, challenges: &'static [&'static str]) -> Self {
        self.wrong.challenges = challenges;
        self
    }

    pub fn counted(mut self, metric: &'static str, reason: &str) -> Self {
        self.wrong.counted = Some((metric, format!("reason={reason:?}")));
        self
    }
}

const SHOP: &str = "ingestd_shop-key";
const LOGIN: &str = "ingestd_login-key";
const OLD: &str = "ingestd_old-key";
pub const JSON: &str = "Content-Type: application/json\r\n";
/// As in the documentation of the schemes.
const STANDARD: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const TEXT: &str = "It's a Secret to Everybody";
/// Keys and secrets have these words, and so has what is wrong. No answer repeats them.
const SECRETS: [&str; 3] = ["ingestd_", "whsec_", "hunter2"];

fn hash(key: &str) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(key)))
}

/// The configuration of a door, whose files are in this folder.
fn config(door: Door, folder: &Path) -> String {
    let key = |name: &str, key: &str, more: &str| {
        format!("[[http.auth.keys]]\nname = {name:?}\nhash = {:?}\n{more}\n", hash(key))
    };
    let signed = |scheme: &str, path: &str, file: &str| {
        let file = folder.join(file);
        format!(
            "[[http.source]]\npath = \"/{path}\"\ntype = \"/type\"\nsignature = {{ scheme = {scheme:?}, secret_file = {file:?} }}\n"
        )
    };
    let typed = format!("[[event.types]]\nname = \"typed\"\nschema = {:?}\n", folder.join("typed.json"));
    match door {
        Door::Open | Door::Operators => {
            "[http]\nmax_body = 131072\nmax_event = 65536\nmax_events = 9\n[event]\non_invalid_time = \"reject\"\n\
             [http.cors]\norigins = [\"https://app.example\"]\n"
                .to_owned()
                + bodies::SOURCES
                + &typed
        }
        Door::Locked => [
            "[event]\nunknown_type = \"reject\"\n".to_owned(),
            key("shop", SHOP, ""),
            key("login", LOGIN, "types = [\"login_success\", \"login_failed\"]"),
            key("old", OLD, "expires = \"2026-01-31T00:00:00Z\""),
            "[[http.source]]\npath = \"/hook\"\ntype = \"/type\"\n".to_owned(),
            "[[http.source]]\npath = \"/batch\"\nrecords = \"/batch\"\ntype = \"/event\"\nkey = \"/api_key\"\n"
                .to_owned(),
            signed("standard-webhooks", "standard", "standard"),
            signed("github", "github", "text"),
            signed("stripe", "stripe", "text"),
            typed,
            "[[event.types]]\nname = \"login_success\"\n".to_owned(),
        ]
        .concat(),
        Door::Rated => {
            "[http]\nrate = \"1/m burst 20\"\n".to_owned()
                + &key("shop", SHOP, "rate = \"1/m burst 5\"")
                + &key("plain", LOGIN, "")
        }
        Door::Narrow => {
            "[http]\nmax_body = 65536\nmax_event = 4096\nmax_in_flight = 131072\nhead_timeout = \"1s\"\n\
             request_timeout = \"1s\"\ntrusted_proxies = [\"127.0.0.1\"]\n[event]\non_unreadable = \"accept\"\n"
                .to_owned()
                + bodies::SOURCES
                + &typed
        }
    }
}

/// The challenges of a 401.
const NO_KEY: [&str; 2] = ["Bearer realm=\"ingestd\"", "Basic realm=\"ingestd\", charset=\"UTF-8\""];
const WRONG_KEY: [&str; 2] = ["Bearer realm=\"ingestd\", error=\"invalid_token\"", NO_KEY[1]];

const HOW: &str = "send it as Authorization: Bearer KEY, as the password of Authorization: Basic, or as X-Api-Key: KEY";
const UNKNOWN: &str = "the key is none of http.auth.keys: send it whole and as it was given to you; if it was withdrawn, ask for a \
                       new one where you have it from";
const SEVERAL: &str =
    "this request has different keys in Authorization and X-Api-Key, or several in one of them: send one";
const EXPIRED: &str = "the key \"old\" expired at 2026-01-31T00:00:00Z: ask for a new one where you have it from";
const REFUSALS: &str = "ingestd_auth_refusals_total";

fn bearer(key: &str) -> String {
    format!("Authorization: Bearer {key}\r\n")
}

fn basic(text: &str) -> String {
    format!("Authorization: Basic {}\r\n", BASE64_STANDARD.encode(text))
}

/// Wrong keys, at each kind of path. Those of logs have codes of google.rpc.
fn keys() -> Vec<Wrong> {
    let malformed = |fields: String, what: &str| (fields, 401, &WRONG_KEY[..], "malformed", format!("{what}: {HOW}"));
    let unknown = |fields: String| (fields, 401, &WRONG_KEY[..], "unknown", UNKNOWN.to_owned());
    let several = |fields: String| (fields, 400, &[][..], "malformed", SEVERAL.to_owned());
    let wrong = [
        (String::new(), 401, &NO_KEY[..], "missing", format!("this needs a key: {HOW}")),
        unknown(bearer("ingestd_wrong")),
        unknown(basic("shop:ingestd_wrong")),
        unknown(basic(&format!("{SHOP}:wrong"))),
        unknown(format!("X-Api-Key: {SHOP}x\r\n")),
        unknown(format!("X-Api-Key: {}\r\n", hash(SHOP))),
        unknown(format!("X-Api-Key: {}\r\n", "x".repeat(20_000))),
        (bearer(OLD), 401, &WRONG_KEY[..], "expired", EXPIRED.to_owned()),
        malformed(bearer(""), "the key is empty"),
        malformed(basic(&format!("{SHOP}:")), "the key is empty"),
        malformed(format!("Authorization: Token {SHOP}\r\n"), "Authorization has neither the scheme Bearer nor Basic"),
        malformed("Authorization: Basic ***\r\n".to_owned(), "what follows Basic is no base64"),
        malformed(basic(SHOP), "what follows Basic is no USER:PASSWORD in base64"),
        several(format!("{}X-Api-Key: {LOGIN}\r\n", bearer(SHOP))),
        several(format!("{}{}", bearer(SHOP), bearer(OLD))),
    ];
    // Without a content type logs are protobuf, and so are their refusals.
    let paths = [("/v1/events", JSON), ("/hook", ""), ("/v1/logs", JSON)];
    let at_each =
        |(fields, status, challenges, reason, sentence): (String, u16, &'static [&'static str], &str, String)| {
            paths.map(|(path, more)| {
                let code = match (path, status) {
                    ("/v1/logs", 401) => "16",
                    ("/v1/logs", _) => "3",
                    _ => "",
                };
                post(Door::Locked, path, &format!("{fields}{more}"), r#"{"type":"a"}"#, (status, code, &sentence))
                    .challenged(challenges)
                    .counted(REFUSALS, reason)
            })
        };
    wrong.into_iter().flat_map(at_each).collect()
}

/// Wrong keys in bodies. Those in the head count first.
fn keys_in_bodies() -> Vec<Wrong> {
    let none = format!("this needs a key, and there is no string at \"/api_key\" of the body: send it there, or {HOW}");
    let with = |key: &str| format!(r#"{{"api_key":"{key}","batch":[]}}"#);
    let row = |fields: &str, body: &str, challenges, reason, sentence| {
        post(Door::Locked, "/batch", fields, body, (401, "", sentence)).challenged(challenges).counted(REFUSALS, reason)
    };
    let missing = |body: &str| row("", body, &NO_KEY, "missing", &none);
    let unknown = |fields: &str, body: &str| row(fields, body, &WRONG_KEY, "unknown", UNKNOWN);
    vec![
        missing(r#"{"batch":[]}"#),
        missing(r#"{"api_key":7,"batch":[]}"#),
        missing("{"),
        missing(""),
        unknown("", &with("ingestd_hunter2")),
        unknown("X-Api-Key: wrong\r\n", &with(SHOP)),
        unknown(&basic(&format!("{SHOP}:wrong")), ""),
        row("", &with(OLD), &WRONG_KEY, "expired", EXPIRED),
        // In there nobody would find one.
        post(
            Door::Locked,
            "/batch",
            &bearer(SHOP),
            gzip(&gzip(with(SHOP).as_bytes())),
            (
                400,
                "invalid_json",
                "what is in this gzip stream or form is one again, nothing was accepted: wrap the JSON once",
            ),
        ),
    ]
}

fn hmac(secret: &[u8], parts: &[&[u8]]) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).expect("it takes keys of any length");
    parts.iter().for_each(|part| mac.update(part));
    mac.finalize().into_bytes().to_vec()
}

fn standard(at: i64, body: &[u8]) -> String {
    let secret = BASE64_STANDARD.decode(&STANDARD[6..]).expect("base64");
    let signature = BASE64_STANDARD.encode(hmac(&secret, &[format!("msg_1.{at}.").as_bytes(), body]));
    format!("webhook-id: msg_1\r\nwebhook-timestamp: {at}\r\nwebhook-signature: v1,{signature}\r\n")
}

fn github(body: &[u8]) -> String {
    format!("X-Hub-Signature-256: sha256={}\r\n", hex::encode(hmac(TEXT.as_bytes(), &[body])))
}

fn stripe(at: i64, body: &[u8]) -> String {
    let signature = hmac(TEXT.as_bytes(), &[format!("{at}.").as_bytes(), body]);
    format!("Stripe-Signature: t={at},v1={},v0=00\r\n", hex::encode(signature))
}

fn signatures() -> Vec<Wrong> {
    const BODY: &[u8] = br#"{"type":"a"}"#;
    const OLD: &str = "more than 5 minutes ago: sign it anew when it is sent again, and set the clocks";
    const MISMATCH: &str = "is that of this body: sign the bytes as they are sent, with the secret of this source";
    let now = chrono::Utc::now().timestamp();
    let missing = |header: &str| {
        format!(
            "this needs a signature, and the header {header} is missing: have the sender sign what it sends, with the secret of \
             this source"
        )
    };
    let malformed = |header: &str, rule: &str| format!("the header {header} is malformed: it must {rule}");
    let of_stripe = malformed(
        "stripe-signature",
        "have t=, a time in seconds, and v1= with 64 hexadecimal digits, with commas between",
    );
    let rows = [
        ("/standard", String::new(), "missing", missing("webhook-id")),
        ("/github", bearer(SHOP), "missing", missing("x-hub-signature-256")),
        ("/stripe", String::new(), "missing", missing("stripe-signature")),
        (
            "/standard",
            standard(now, BODY).replace("v1,", "v2,"),
            "malformed",
            malformed("webhook-signature", "have v1, and base64"),
        ),
        (
            "/standard",
            standard(now, BODY).replace(&format!("timestamp: {now}"), "timestamp: soon"),
            "malformed",
            malformed("webhook-timestamp", "have the time as a number of seconds since 1970"),
        ),
        (
            "/github",
            "X-Hub-Signature-256: sha256=xyz\r\n".to_owned(),
            "malformed",
            malformed("x-hub-signature-256", "be sha256= and 64 hexadecimal digits"),
        ),
        ("/github", github(BODY) + &github(BODY), "malformed", malformed("x-hub-signature-256", "stand there once")),
        (
            "/github",
            "X-Hub-Signature-256: sha256=\u{e9}\r\n".to_owned(),
            "malformed",
            malformed("x-hub-signature-256", "be ASCII"),
        ),
        ("/stripe", "Stripe-Signature: v1=00\r\n".to_owned(), "malformed", of_stripe),
        (
            "/standard",
            standard(now - 400, BODY),
            "too_old",
            format!("the time in the header webhook-timestamp is {OLD}"),
        ),
        (
            "/stripe",
            stripe(now + 400, BODY),
            "too_new",
            "the time in the header stripe-signature is more than 5 minutes ahead: set the clocks".to_owned(),
        ),
        (
            "/github",
            github(b"hunter2"),
            "mismatch",
            format!("no signature in the header x-hub-signature-256 {MISMATCH}"),
        ),
    ];
    rows.into_iter()
        .map(|(path, fields, reason, sentence)| {
            post(Door::Locked, path, &fields, BODY, (401, "", &sentence))
                .challenged(&["Signature realm=\"ingestd\""])
                .counted("ingestd_signature_refusals_total", reason)
        })
        .collect()
}

/// Which types may be sent, and by whom.
fn types() -> Vec<Wrong> {
    let row = |by: &str, body: &str, status, code, sentence| {
        post(Door::Locked, "/v1/events", &bearer(by), body, (status, code, sentence))
            .counted("ingestd_events_rejected_total", code)
    };
    vec![
        row(
            LOGIN,
            r#"{"type":"typed"}"#,
            403,
            "forbidden_type",
            "the key \"login\" may not send events of this type: send it with another key, or have the type added to the key \
             (types in http.auth.keys), which may send login_success, login_failed",
        ),
        row(
            SHOP,
            r#"{"type":"hunter2"}"#,
            400,
            "unknown_type",
            "the type is none that is known here: send one of [[event.types]], or have it added there (event.unknown_type)",
        ),
        row(
            SHOP,
            r#"{"type":"typed","user":["hunter2"]}"#,
            400,
            "schema",
            r#"at "/user": must be of type string ("/properties/user/type" of the schema)"#,
        ),
    ]
}

/// In this order: the first of each leaves a bucket with one event less.
fn rates() -> Vec<Wrong> {
    let address = "the rate of your address (http.rate)";
    let of_key = "the rate of the key \"shop\" (rate in http.auth.keys)";
    let rows = |key: &str, whose: &str, burst: usize| {
        let (more, left) = (burst + 1, burst - 1);
        let post = |count: usize, status: u16, sentence: &str| {
            let events = format!("[{}]", vec![r#"{"type":"a"}"#; count].join(","));
            post(Door::Rated, "/v1/events", &bearer(key), events, (status, "", sentence))
        };
        let many = format!(
            "this request has {more} events, and {whose} lets {burst} come at once (1/m burst {burst}): send them in smaller requests"
        );
        let used_up = format!(
            "{whose} is used up (1/m burst {burst}, {left} events may come now): nothing of this request was stored, send it again \
             in {{}} s"
        );
        [post(more, 413, &many), post(burst, 429, &used_up)]
    };
    [rows(LOGIN, address, 20), rows(SHOP, of_key, 5)].into_iter().flatten().collect()
}

/// All of them, [`heads`], [`bodies`] and [`logs`] among them.
pub fn rows() -> Vec<Wrong> {
    let rows = [heads::rows(), keys(), keys_in_bodies(), signatures(), types(), rates(), bodies::rows(), logs::rows()];
    rows.into_iter().flatten().collect()
}

/// `google.rpc.Status`, with which logs in protobuf are refused.
#[derive(Clone, PartialEq, Message)]
struct Status {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
}

/// The code and the sentence of an answer, in the words of its path.
fn said(answer: &Answer) -> (String, String) {
    if answer.head.contains("content-type: application/x-protobuf\r\n") {
        let Status { code, message } = Status::decode(&answer.body[..]).expect("a status");
        return (code.to_string(), message);
    }
    let json: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    let text = |of: &Value| of.as_str().unwrap_or_default().to_owned();
    // What is stored all the same is warned of.
    match (json["errors"].get(0).unwrap_or(&json["warnings"][0]), &json["message"]) {
        (Value::Object(error), _) => (text(&error["code"]), text(&error["message"])),
        // Logs in JSON: the same.
        (_, Value::String(message)) => (json["code"].to_string(), message.clone()),
        _ => (text(&json["code"]), text(&json["detail"])),
    }
}

fn compare(daemon: &Daemon, row: &Wrong, differences: &mut Differences) {
    let count = || {
        let (metric, label) = row.wrong.counted.as_ref()?;
        Some(daemon.try_metric(metric, label).unwrap_or_default())
    };
    let (shown, before) = (String::from_utf8_lossy(&row.wrong.bytes), count());
    let shown: String = format!("{:?}: {shown}", row.wrong.door).chars().take(400).collect();
    let address = if row.wrong.door == Door::Operators { daemon.admin_address() } else { daemon.http_address() };
    let outcome = exchange(address, &row.wrong.bytes, 1, false, PATIENCE);
    let Some(answer) = outcome.answers.first() else { return differences.add(format!("{shown}\n  no answer")) };
    let (code, sentence) = said(answer);
    differences.compare(row, &shown, (answer.status, &code, &sentence));
    let fields = answer.head.lines().filter_map(|line| line.split_once(": "));
    let challenges: Vec<_> = fields.filter(|(name, _)| *name == "www-authenticate").map(|(_, value)| value).collect();
    if challenges != row.wrong.challenges {
        differences.add(format!("{shown}\n  challenges {challenges:?}"));
    }
    if count() != before.map(|before| before + 1.0) {
        differences.add(format!("{shown}\n  is not counted by {:?}", row.wrong.counted));
    }
    let body = String::from_utf8_lossy(&answer.body);
    if SECRETS.iter().any(|secret| body.contains(secret)) {
        differences.add(format!("{shown}\n  a secret stands in {body}"));
    }
}

/// What the daemon's own document says that can be answered, but for what is its own state.
fn check_described(daemon: &Daemon, rows: &[Wrong], differences: &mut Differences) {
    let document =
        Client::new().get(&format!("http://{}/openapi.json", daemon.http_address())).expect("an answer").json();
    let codes = &document["components"]["schemas"]["Summary"]["properties"]["errors"]["items"]["properties"]["code"];
    let codes = codes["enum"].as_array().expect("codes").iter().filter_map(Value::as_str);
    // Logs have it in the sentence.
    let has_row = |code: &str| rows.iter().any(|row| row.code == code || row.sentence.contains(code));
    for code in codes.filter(|code| *code != "unavailable" && !has_row(code)) {
        differences.add(format!("the code {code:?} has no row"));
    }
    let paths = document["paths"].as_object().expect("paths").values().filter_map(Value::as_object);
    let answers = paths.flat_map(|path| path.values()).filter_map(|operation| operation["responses"].as_object());
    let statuses: BTreeSet<u16> = answers.flat_map(|of| of.keys()).filter_map(|status| status.parse().ok()).collect();
    for status in statuses.range(400..500).filter(|status| !rows.iter().any(|row| row.status == **status)) {
        differences.add(format!("the status {status} has no row"));
    }
}

#[test]
fn each_wrong_request_is_answered_with_one_sentence_and_no_secret() {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, content) in [("standard", STANDARD), ("text", TEXT), ("typed.json", bodies::SCHEMA)] {
        fs::write(folder.path().join(name), content).expect("it can be written");
    }
    let (rows, mut differences) = (rows(), Differences::default());
    for door in DOORS {
        let daemon = Setup::new("sentences").config(&config(door, folder.path())).start();
        let is_here = |row: &&Wrong| row.wrong.door == door || (row.wrong.door, door) == (Door::Operators, Door::Open);
        for row in rows.iter().filter(is_here) {
            compare(&daemon, row, &mut differences);
        }
        check_described(&daemon, &rows, &mut differences);
        if daemon.metric("ingestd_in_flight_bytes") != Some(0.0) {
            differences.add(format!("{door:?}: something is in flight"));
        }
        daemon.terminate();
    }
    differences.assert_none();
}
