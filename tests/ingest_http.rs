//! The ingestor over HTTP, with a queue whose answers the tests decide.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    time::Duration,
};

use actix::{Actor, Addr};
use arc_swap::ArcSwap;
use futures::{FutureExt, future::BoxFuture};
use ingestd::internals::{
    config::{ByteSize, Config, CorsConfig, HttpConfig, LiveConfig, OnInvalid, QueueKind},
    health::{ActorState, Closed, Health},
    ingest::{Ingestor, StopAccepting, bind},
    log::{
        Appender, Full, Ingress, Producer, Publish,
        dead_letters::{DeadLetter, Quarantine},
    },
    metrics::Metrics,
    names::ActorName,
    position::{Offset, Partition, Position},
    supervise::Slot,
};
use serde_json::{Value, json};

#[path = "ingest_http/bodies.rs"]
mod bodies;
#[allow(dead_code, reason = "a part of what other tests need")]
#[path = "support/coding.rs"]
mod coding;
#[path = "ingest_http/keys.rs"]
mod keys;
#[path = "ingest_http/letters.rs"]
mod letters;
#[path = "support/openapi.rs"]
mod openapi;
#[path = "ingest_http/pages.rs"]
mod pages;
#[path = "ingest_http/preferences.rs"]
mod preferences;
#[path = "ingest_http/rates.rs"]
mod rates;
#[path = "ingest_http/request_ids.rs"]
mod request_ids;
#[path = "ingest_http/shapes.rs"]
mod shapes;
#[path = "ingest_http/signatures.rs"]
mod signatures;
#[path = "ingest_http/types.rs"]
mod types;

/// What the queue does with each request.
#[derive(Clone, Copy, PartialEq)]
enum Queue {
    Stores,
    /// Stores all but the events with these indexes among the valid ones.
    FindsTooLarge(&'static [usize]),
    /// Stores the first event of a request and cannot be reached for the others.
    GoesAway,
    /// Takes nothing.
    Refuses,
    /// Keeps requests without an answer until it is told otherwise.
    Waits,
    /// The same, but for the first event of each.
    StoresOneAndWaits,
}

/// What becomes of dead letters.
#[derive(Clone, Copy, PartialEq, Default)]
enum Letters {
    #[default]
    Kept,
    /// But for those with these indexes.
    TooLarge(&'static [usize]),
    Refused,
}

#[derive(Default)]
struct Log {
    /// Key and value of what is stored, and whether it has an assigned id.
    records: Vec<(Option<String>, String, bool)>,
    /// The headers of each beside that id, as `name=value`.
    headers: Vec<Vec<String>>,
    waiting: Vec<Publish>,
    on_letters: Letters,
    letters: Vec<DeadLetter>,
}

struct FakeLetters(Arc<Mutex<Log>>);

impl Quarantine for FakeLetters {
    fn keep(&self, letters: Vec<DeadLetter>) -> BoxFuture<'static, anyhow::Result<Vec<usize>>> {
        let mut log = self.0.lock().unwrap();
        let outcome = match log.on_letters {
            Letters::Kept => Ok(Vec::new()),
            Letters::TooLarge(indexes) => Ok(indexes.to_vec()),
            Letters::Refused => Err(anyhow::anyhow!("the disk is full")),
        };
        if let Ok(too_large) = &outcome {
            let kept = letters.into_iter().enumerate().filter(|(index, _)| !too_large.contains(index));
            log.letters.extend(kept.map(|(_, letter)| letter));
        }
        async { outcome }.boxed()
    }
}

struct FakeQueue {
    queue: Arc<Mutex<Queue>>,
    log: Arc<Mutex<Log>>,
}

fn store(log: &mut Log, publish: &Publish) {
    for record in &publish.events {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let (key, value) = (publish.key(record).map(text), text(publish.value(record)));
        log.records.push((key, value, record.assigned_id.is_some()));
        let header = |(name, value): (&str, Option<&[u8]>)| format!("{name}={}", value.map(text).unwrap_or_default());
        log.headers.push(publish.headers(record).iter().map(header).collect());
    }
}

impl Appender for FakeQueue {
    fn append(&self, publish: Publish, from: usize) -> Result<(), Full> {
        assert_eq!(from, 0);
        let (events, ticket) = (publish.events.len(), publish.ticket.clone());
        match *self.queue.lock().unwrap() {
            Queue::Stores => {
                store(&mut self.log.lock().unwrap(), &publish);
                let last = Position { partition: Partition(3), offset: Offset(events as u64) };
                ticket.durable_at(0..events, || Some(last));
            }
            Queue::FindsTooLarge(indexes) => (0..events).for_each(|index| match indexes.contains(&index) {
                true => ticket.too_large(index),
                false => ticket.durable(index..index + 1),
            }),
            Queue::GoesAway => {
                ticket.durable(0..1);
                ticket.unavailable(1..events, "no broker answers");
            }
            Queue::Refuses => ticket.refused(0..events, "the log is full"),
            Queue::Waits => self.log.lock().unwrap().waiting.push(publish),
            Queue::StoresOneAndWaits => {
                ticket.durable(0..1);
                self.log.lock().unwrap().waiting.push(publish);
            }
        }
        Ok(())
    }

    fn flush(&self, _: Duration) -> Result<(), usize> {
        Ok(())
    }
}

struct Daemon {
    address: SocketAddr,
    ingestor: Addr<Ingestor>,
    producer: Slot<Producer>,
    config: LiveConfig,
    health: Health,
    metrics: Arc<Metrics>,
    queue: Arc<Mutex<Queue>>,
    log: Arc<Mutex<Log>>,
}

impl Daemon {
    fn start(queue: Queue, http: HttpConfig) -> Self {
        let http = HttpConfig { listen: "127.0.0.1:0".to_owned(), ..http };
        let sockets = bind(&http).unwrap();
        let address = sockets[0].local_addr().unwrap();
        let config: LiveConfig = Arc::new(ArcSwap::from_pointee(Config { http, ..Config::default() }));
        let (health, metrics, producer) = (Health::default(), Arc::new(Metrics::default()), Slot::default());
        let (queue, log) = (Arc::new(Mutex::new(queue)), Arc::new(Mutex::new(Log::default())));
        let fake = FakeQueue { queue: queue.clone(), log: log.clone() };
        let ingress = Ingress::new(producer.clone());
        producer.set(Some(Producer::new(ingress.clone(), Box::new(fake), health.clone()).start()));
        let (quarantine, config_of_it) = (Arc::new(FakeLetters(log.clone())), config.clone());
        let ingestor =
            Ingestor::new(sockets, ingress, quarantine, config_of_it, health.clone(), metrics.clone()).start();
        Self { address, ingestor, producer, config, health, metrics, queue, log }
    }

    fn change_limits(&self, change: impl FnOnce(&mut HttpConfig)) {
        let mut config = Config::clone(&self.config.load());
        change(&mut config.http);
        self.config.store(Arc::new(config));
    }

    /// From now on wrong events are kept.
    fn quarantine(&self, on_letters: Letters) {
        let mut config = Config::clone(&self.config.load());
        config.event.on_invalid = OnInvalid::Quarantine;
        self.config.store(Arc::new(config));
        self.log.lock().unwrap().on_letters = on_letters;
    }

    /// Reason and bytes of each letter.
    fn letters(&self) -> Vec<(String, String)> {
        let text = |letter: &DeadLetter| String::from_utf8(letter.value.clone().unwrap().to_vec()).unwrap();
        self.log.lock().unwrap().letters.iter().map(|letter| (letter.reason.clone(), text(letter))).collect()
    }

    async fn send(&self, request: String) -> Reply {
        let address = self.address;
        tokio::task::spawn_blocking(move || exchange(address, request.as_bytes())).await.unwrap()
    }

    async fn post(&self, content_type: &str, body: &str) -> Reply {
        let length = body.len();
        self.send(format!(
            "POST /v1/events HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: {content_type}\r\nContent-Length: {length}\r\n\r\n{body}"
        ))
        .await
    }

    async fn prefer(&self, handling: &str, body: &str) -> Reply {
        let length = body.len();
        self.send(format!(
            "POST /v1/events HTTP/1.1\r\nHost: x\r\nConnection: close\r\nPrefer: handling={handling}\r\nContent-Length: {length}\r\n\r\n{body}"
        ))
        .await
    }

    /// With a content coding.
    async fn post_coded(&self, coding: &str, body: &[u8]) -> Reply {
        let (address, length) = (self.address, body.len());
        let head = format!(
            "POST /v1/events HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Encoding: {coding}\r\nContent-Length: {length}\r\n\r\n"
        );
        let request = [head.as_bytes(), body].concat();
        tokio::task::spawn_blocking(move || exchange(address, &request)).await.unwrap()
    }

    async fn post_json(&self, body: &str) -> Reply {
        self.post("application/json", body).await
    }

    async fn get(&self, line: &str) -> Reply {
        self.send(format!("{line} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")).await
    }

    fn metric(&self, line_start: &str) -> String {
        let text = self.metrics.encode();
        text.lines().find_map(|line| line.strip_prefix(line_start)).unwrap_or("absent").trim().to_owned()
    }
}

struct Reply {
    status: u16,
    head: String,
    body: String,
}

impl Reply {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {:?}", self.body))
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.head
            .lines()
            .filter_map(|line| line.split_once(": "))
            .find_map(|(found, value)| found.eq_ignore_ascii_case(name).then_some(value))
    }

    /// Index and code of each error.
    fn errors(&self) -> Vec<(u64, String)> {
        let json = self.json();
        let errors = json["errors"].as_array().map(Vec::as_slice).unwrap_or_default();
        let error = |error: &Value| (error["index"].as_u64().unwrap(), error["code"].as_str().unwrap().to_owned());
        errors.iter().map(error).collect()
    }

    fn applied(&self) -> Option<&str> {
        self.header("preference-applied")
    }

    /// An RFC 9457 problem of this status; returns its detail.
    fn problem(&self, status: u16) -> String {
        assert_eq!(
            (self.status, self.header("content-type")),
            (status, Some("application/problem+json")),
            "{}",
            self.body
        );
        let json = self.json();
        assert_eq!((&json["status"], &json["type"]), (&json!(status), &json!("about:blank")));
        assert!(json["title"].is_string());
        json["detail"].as_str().unwrap().to_owned()
    }
}

fn exchange(address: SocketAddr, request: &[u8]) -> Reply {
    let reply = exchange_on(TcpStream::connect(address).unwrap(), request);
    let line = request.split(|byte| *byte == b'\r').next().unwrap();
    openapi::check(&answered(std::str::from_utf8(line).unwrap(), &reply));
    reply
}

/// What comes until the end of the connection, whatever was sent on it.
fn exchange_on(mut stream: TcpStream, request: &[u8]) -> Reply {
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    // Who is refused early need not be read to the end.
    let _ = stream.write_all(request);
    let mut text = Vec::new();
    stream.read_to_end(&mut text).unwrap();
    let text = String::from_utf8(text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no reply: {text:?}"));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap();
    Reply { status, head: head.to_owned(), body: body.to_owned() }
}

/// The answer to a request with this line.
fn answered<'a>(line: &'a str, reply: &'a Reply) -> openapi::Answered<'a> {
    let mut words = line.split(' ');
    let (method, target) = (words.next().unwrap(), words.next().unwrap());
    let field = |line: &str| line.split_once(": ").map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()));
    let headers = reply.head.lines().filter_map(field).collect();
    openapi::Answered { method, target, status: reply.status, headers, body: reply.body.as_bytes() }
}

async fn until(mut condition: impl FnMut() -> bool) {
    for _ in 0..1000 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("did not happen within 5 s");
}

fn gzip(body: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(body).unwrap();
    encoder.finish().unwrap()
}

/// That pages of this origin may send.
fn pages_of(origin: &str) -> HttpConfig {
    let cors = CorsConfig { origins: vec![origin.to_owned()], max_age: Duration::from_secs(7200) };
    HttpConfig { cors, ..HttpConfig::default() }
}

/// A page's request.
fn of_page(line: &str, fields: &str, body: &str) -> String {
    let length = body.len();
    format!("{line} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{fields}Content-Length: {length}\r\n\r\n{body}")
}

const PREFLIGHT: &str = "Access-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: content-type,traceparent,tracestate,x-request-id\r\n";

/// Sources of each kind, and bounds that are soon met.
fn other_shapes() -> HttpConfig {
    let sources = json!([
        { "path": "/hook", "records": "/batch", "type": "/kind", "id": "/id", "time": "/time", "client": "/who" },
        { "path": "/one", "type": { "fixed": "alert" } },
        { "path": "/list", "records": "", "type": { "fixed": "log" }, "answer": "ok" },
    ]);
    let source = serde_json::from_value(sources).unwrap();
    HttpConfig { source, max_body: ByteSize(4000), max_event: ByteSize(600), max_events: 9, ..HttpConfig::default() }
}

impl Daemon {
    async fn post_at(&self, path: &str, fields: &str, body: &[u8]) -> Reply {
        let (address, length) = (self.address, body.len());
        let head =
            format!("POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{fields}Content-Length: {length}\r\n\r\n");
        let request = [head.as_bytes(), body].concat();
        tokio::task::spawn_blocking(move || exchange(address, &request)).await.unwrap()
    }
}

/// The second is wrong.
const MIXED: &str = r#"[{"type":"a","event_id":"1"},{"no":1},{"type":"b","event_id":"2"}]"#;
const WRONG: (u64, &str) = (1, "missing_type");

/// Events by index and code, as [`Reply::errors`] gives them.
fn errors(expected: &[(u64, &str)]) -> Vec<(u64, String)> {
    expected.iter().map(|(index, code)| (*index, (*code).to_owned())).collect()
}

#[actix::test]
async fn accepted_events_are_stored_as_they_came_and_their_ids_answered_in_order() {
    let daemon = Daemon::start(Queue::Stores, HttpConfig::default());
    let reply =
        daemon.post_json(r#"[{"type": "a", "client_id":"c\u0031"},{"event_id":"mine\n\u00e9","type":"b"}]"#).await;
    assert_eq!((reply.status, reply.header("content-type")), (200, Some("application/json")));
    let json = reply.json();
    assert_eq!((&json["accepted"], &json["rejected"], &json["ids"][1]), (&json!(2), &json!(0), &json!("mine\né")));
    assert!(json.get("errors").is_none());
    assert_eq!(json["ids"][0].as_str().and_then(|id| uuid::Uuid::parse_str(id).ok()).unwrap().get_version_num(), 7);
    assert_eq!(
        daemon.log.lock().unwrap().records,
        [
            (Some("c1".to_owned()), r#"{"type": "a", "client_id":"c\u0031"}"#.to_owned(), true),
            (None, r#"{"event_id":"mine\n\u00e9","type":"b"}"#.to_owned(), false),
        ]
    );
    assert_eq!(daemon.metric("ingestd_events_accepted_total"), "2");
    assert_eq!(daemon.metric("ingestd_requests_total{status=\"200\"}"), "1");
    until(|| daemon.metric("ingestd_in_flight_bytes") == "0").await;
}

#[actix::test]
async fn an_empty_array_is_answered_200_with_none_accepted() {
    let daemon = Daemon::start(Queue::Stores, HttpConfig::default());
    let reply = daemon.post_json("[]").await;
    assert_eq!((reply.status, reply.json()), (200, json!({"accepted": 0, "rejected": 0, "ids": []})));
}

#[actix::test]
async fn some_invalid_events_are_207_and_only_invalid_ones_400() {
    let daemon = Daemon::start(Queue::Stores, HttpConfig::default());
    let reply = daemon.post("application/x-ndjson", "{\"type\":\"a\",\"event_id\":\"1\"}\n\n{\"type\":\r\n7\n").await;
    let json = reply.json();
    assert_eq!((reply.status, &json["accepted"], &json["ids"]), (207, &json!(1), &json!(["1"])));
    let errors: Vec<_> = json["errors"].as_array().unwrap().iter().map(|e| (&e["index"], &e["code"])).collect();
    assert_eq!(errors, [(&json!(1), &json!("invalid_json")), (&json!(2), &json!("not_an_object"))]);

    let reply = daemon.post_json("{}").await;
    let json = reply.json();
    assert_eq!((reply.status, &json["accepted"], &json["rejected"]), (400, &json!(0), &json!(1)));
    assert_eq!((&json["ids"], &json["errors"][0]["code"]), (&json!([]), &json!("missing_type")));
    assert_eq!(daemon.log.lock().unwrap().records.len(), 1);
    assert_eq!(daemon.metric("ingestd_events_rejected_total{reason=\"missing_type\"}"), "1");
}

#[actix::test]
async fn broken_syntax_refuses_the_whole_body() {
    let daemon = Daemon::start(Queue::Stores, HttpConfig::default());
    for body in
        ["", "  ", r#"{"type":"a""#, r#"[{"type":"a"},"#, r#"[{"type":"a"}] x"#, "\0\0\u{feff}{}", "7", "\u{feff}"]
    {
        let reply = daemon.post_json(body).await;
        reply.problem(400);
        assert!(["invalid_json", "not_an_object"].contains(&reply.json()["code"].as_str().unwrap()), "{body}");
    }
    assert!(daemon.log.lock().unwrap().records.is_empty());
}

#[actix::test]
async fn a_broken_element_is_refused_alone_where_its_end_can_be_found() {
    let daemon = Daemon::start(Queue::Stores, HttpConfig::default());
    let array = r#"[{"type":"a","event_id":"1"},{"type":"a","x":NaN},{"type":"b","event_id":"2"}]"#;
    let reply = daemon.post_json(array).await;
    let json = reply.json();
    assert_eq!((reply.status, &json["ids"], &json["errors"][0]["index"]), (207, &json!(["1", "2"]), &json!(1)));
    assert!(json["errors"][0]["message"].as_str().unwrap().contains("NaN is no JSON"), "{json}");
    let reply = daemon.post_json(r#"[{"type":"a"},{"type":"b},{"type":"c"}]"#).await;
    assert!(reply.problem(400).contains("element 1 "), "{}", reply.body);
    assert_eq!(daemon.log.lock().unwrap().records.len(), 2, "nothing of it is stored");
}

#[actix::test]
async fn several_texts_are_events_like_lines() {
    let daemon = Daemon::start(Queue::Stores, HttpConfig::default());
    let reply =
        daemon.post_json("\u{feff}{\"type\":\"a\",\"event_id\":\"1\"}{\"type\":\"b\",\"event_id\":\"2\"}\n").await;
    assert_eq!((reply.status, &reply.json()["ids"]), (200, &json!(["1", "2"])));
    let reply = daemon.post_json(r#"{"type":"a","event_id":"3"} {"type":"b"]{"type":"c"}"#).await;
    let json = reply.json();
    assert_eq!((reply.status, &json["ids"], &json["rejected"]), (207, &json!(["3"]), &json!(1)));
    assert_eq!((&json["errors"][0]["index"], &json["errors"][0]["code"]), (&json!(1), &json!("invalid_json")));
    let values: Vec<_> = daemon.log.lock().unwrap().records.iter().map(|(_, value, _)| value.clone()).collect();
    assert_eq!(
        values,
        [r#"{"type":"a","event_id":"1"}"#, r#"{"type":"b","event_id":"2"}"#, r#"{"type":"a","event_id":"3"}"#]
    );
}

#[actix::test]
async fn other_media_types_paths_and_methods_are_refused() {
    let daemon = Daemon::start(Queue::Stores, HttpConfig::default());
    daemon.post("text/plain", "{}").await.problem(415);
    daemon.get("GET /metrics").await.problem(404);
    let reply = daemon.get("GET /v1/events").await;
    reply.problem(405);
    assert_eq!(reply.header("allow"), Some("POST"));
    let reply = daemon.get("DELETE /health").await;
    reply.problem(405);
    assert_eq!(reply.header("allow"), Some("GET, HEAD"));
}

#[actix::test]
async fn health_is_200_or_503() {
    let daemon = Daemon::start(Queue::Stores, HttpConfig::default());
    daemon.health.actor(ActorName::Producer, ActorState::Running, None);
    until(|| daemon.health.readiness().ready).await;
    assert_eq!(daemon.get("GET /health").await.status, 200);
    assert_eq!(daemon.get("HEAD /health").await.status, 200);
    let full = daemon.health.gate.reason(Closed::DiskFull);
    full.set("71 % used".to_owned());
    daemon.get("GET /health").await.problem(503);
}

#[actix::test]
async fn a_closed_door_is_503_with_its_reason() {
    let daemon = Daemon::start(Queue::Stores, HttpConfig::default());
    for (closed, retry_after) in [(Closed::DiskFull, "30"), (Closed::QueueUnavailable, "5"), (Closed::Draining, "5")] {
        let reason = daemon.health.gate.reason(closed);
        reason.set("because".to_owned());
        let reply = daemon.post_json(r#"{"type":"a"}"#).await;
        assert!(reply.problem(503).contains("because"));
        assert_eq!(reply.header("retry-after"), Some(retry_after), "{closed:?}");
        drop(reason);
    }
    assert_eq!(daemon.post_json(r#"{"type":"a"}"#).await.status, 200);
}

#[actix::test]
async fn a_passing_failure_is_503_for_the_whole_request() {
    let daemon = Daemon::start(Queue::GoesAway, HttpConfig::default());
    let reply = daemon.post_json(r#"[{"type":"a"},{"type":"b"}]"#).await;
    assert!(reply.problem(503).contains("no broker answers"));
    assert!(reply.header("retry-after").is_some());
    assert_eq!(daemon.metric("ingestd_events_produced_unanswered_total"), "1");
    assert_eq!(daemon.metric("ingestd_events_accepted_total"), "0");

    daemon.producer.set(None);
    // It closes the ingress when it is dropped, which is when its thread comes to it.
    let refused = async {
        loop {
            let reply = daemon.post_json(r#"{"type":"a"}"#).await;
            if reply.status != 200 {
                break reply;
            }
        }
    };
    let reply = tokio::time::timeout(Duration::from_secs(30), refused).await.expect("the producer goes");
    assert!(reply.problem(503).contains("nothing of this request was stored"));
}

#[actix::test]
async fn no_answer_in_time_is_503_and_its_bytes_stay_counted_while_the_queue_has_them() {
    let timeout = Duration::from_millis(50);
    let daemon = Daemon::start(Queue::Waits, HttpConfig { request_timeout: timeout, ..HttpConfig::default() });
    let body = r#"{"type":"a"}"#;
    let reply = daemon.post_json(body).await;
    assert!(reply.problem(503).contains("not known"));
    assert_eq!(daemon.metric("ingestd_in_flight_bytes"), body.len().to_string());

    let late = daemon.log.lock().unwrap().waiting.pop().unwrap();
    late.ticket.durable(0..1);
    assert_eq!(daemon.metric("ingestd_events_produced_unanswered_total"), "1");
    drop(late);
    until(|| daemon.metric("ingestd_in_flight_bytes") == "0").await;

    let stalled = "POST /v1/events HTTP/1.1\r\nHost: x\r\nContent-Length: 12\r\n\r\n{".to_owned();
    daemon.send(stalled).await.problem(408);
}
