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
    supervise::Slot,
};
use serde_json::{Value, json};

#[allow(dead_code, reason = "a part of what other tests need")]
#[path = "support/coding.rs"]
mod coding;
#[path = "ingest_http/keys.rs"]
mod keys;
#[path = "support/openapi.rs"]
mod openapi;
#[path = "ingest_http/rates.rs"]
mod rates;
#[path = "ingest_http/sentences.rs"]
mod sentences;
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
                ticket.durable(0..events);
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
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    // Who is refused early need not be read to the end.
    let _ = stream.write_all(request);
    let mut text = Vec::new();
    stream.read_to_end(&mut text).unwrap();
    let text = String::from_utf8(text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no reply: {text:?}"));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap();
    let reply = Reply { status, head: head.to_owned(), body: body.to_owned() };
    let line = request.split(|byte| *byte == b'\r').next().unwrap();
    openapi::check(&answered(std::str::from_utf8(line).unwrap(), &reply));
    reply
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

/// The status, the code and the sentence of each answer to a body that is refused as a whole.
#[actix::test]
async fn each_refusal_of_a_body_is_a_sentence_that_says_what_where_and_what_to_do() {
    const TAKEN: &str = "send one of application/json, application/x-ndjson, application/ndjson, application/jsonl, \
                         application/x-jsonlines, application/cloudevents+json, application/cloudevents-batch+json, in UTF-8 (or with the \
                         headers of a CloudEvent, any that its data has)";
    let daemon =
        Daemon::start(Queue::Stores, HttpConfig { max_body: ByteSize(200), max_events: 2, ..HttpConfig::default() });
    let event = br#"{"type":"a"}"#.as_slice();
    let mut wrong = gzip(event);
    let at = wrong.len() - 8;
    wrong[at] ^= 1;
    let cut = &gzip(event)[..20];
    let zstd_window = [0x28, 0xb5, 0x2f, 0xfd, 0, 14 << 3, 1, 0, 0];
    let zstd_dictionary = [0x28, 0xb5, 0x2f, 0xfd, 0x21, 7, 0, 1, 0, 0];
    let invalid = Some("invalid_json");
    let row = |fields: &'static str, body: &[u8], status: u16, code: Option<&'static str>, sentence: &str| {
        (fields, body.to_vec(), status, code, sentence.to_owned())
    };
    for (fields, body, status, code, sentence) in [
        row("Content-Type: text/plain", event, 415, None, &format!("this Content-Type is not taken: {TAKEN}")),
        row(
            "Content-Type: application/json\r\nContent-Type: application/json",
            event,
            415,
            None,
            &format!("more than one Content-Type: {TAKEN}"),
        ),
        row(
            "Content-Type: application/json; charset=latin1",
            event,
            415,
            None,
            &format!("the charset of this Content-Type is not taken: {TAKEN}"),
        ),
        row(
            "Content-Encoding: compress",
            event,
            415,
            None,
            "this Content-Encoding is not taken: send the body with gzip, zstd, deflate, br, or as it is",
        ),
        row(
            "Content-Encoding: gzip, br",
            event,
            415,
            None,
            "more than one Content-Encoding: send the body with one of gzip, zstd, deflate, br, or as it is",
        ),
        row(
            "Content-Encoding: zstd",
            &zstd_window,
            415,
            None,
            "the body's zstd stream needs a window above 8 MiB (RFC 9659): compress it with a smaller one",
        ),
        row(
            "Content-Encoding: zstd",
            &zstd_dictionary,
            415,
            None,
            "the body's zstd stream needs a dictionary, which is not taken: compress it without one",
        ),
        row(
            "Content-Encoding: deflate",
            &[0x78, 0x20, 1, 2, 3, 4, 5, 6],
            415,
            None,
            "the body's deflate stream needs a dictionary, which is not taken: compress it without one",
        ),
        row(
            "Content-Encoding: br",
            &[0x11, 0x1a, 0, 0],
            415,
            None,
            "the body's brotli stream has a large window, which is not taken: compress it with a window of at most 24 bits",
        ),
        row(
            "Content-Encoding: gzip",
            event,
            400,
            None,
            "the body is damaged or no gzip, nothing was accepted: incorrect header check",
        ),
        row(
            "Content-Encoding: gzip",
            &wrong,
            400,
            None,
            "the body is damaged or no gzip, nothing was accepted: incorrect data check",
        ),
        row(
            "Content-Encoding: gzip",
            cut,
            400,
            None,
            "the body's gzip stream ends before its end, nothing was accepted: send all of it again",
        ),
        row(
            "Content-Encoding: gzip",
            &[&gzip(event)[..], b"\0\0"].concat(),
            400,
            None,
            "behind the end of the body's gzip stream stand bytes that are none, nothing was accepted",
        ),
        row(
            "Content-Encoding: zstd",
            event,
            400,
            None,
            "the body is damaged or no zstd, nothing was accepted: it does not begin with a frame",
        ),
        row(
            "Content-Encoding: deflate",
            event,
            400,
            None,
            "the body is damaged or no deflate, nothing was accepted: invalid distance too far back",
        ),
        row(
            "Content-Encoding: br",
            event,
            400,
            None,
            "the body is damaged or no brotli, nothing was accepted: FORMAT_PADDING_2",
        ),
        row(
            "Content-Encoding: gzip",
            &gzip(&[b' '; 201]),
            413,
            None,
            "the body inflates from gzip to more than 200 bytes (http.max_body): send it in smaller requests",
        ),
        row(
            "X: y",
            &[b' '; 201],
            413,
            None,
            "the body is larger than 200 bytes (http.max_body): send it in smaller requests",
        ),
        row(
            "X: y",
            b"[1,2,3]",
            413,
            None,
            "more than 2 events in one request (http.max_events): send them in smaller requests",
        ),
        row(
            "X: y",
            b"{}{}{}",
            413,
            None,
            "more than 2 events in one request (http.max_events): send them in smaller requests",
        ),
        row(
            "X: y",
            b"\xef\xbb\xbf\n",
            400,
            invalid,
            "the body is empty: send a JSON object, an array of objects, or one object a line as application/x-ndjson",
        ),
        row(
            "Content-Encoding: br",
            b"",
            400,
            invalid,
            "the body is empty: send a JSON object, an array of objects, or one object a line as application/x-ndjson",
        ),
        row(
            "X: y",
            b"\xff\xfe{\0}\0",
            400,
            invalid,
            "the body begins with the byte order mark of UTF-16 or UTF-32: send it in UTF-8",
        ),
        row(
            "X: y",
            b"7",
            400,
            Some("not_an_object"),
            "the body must be a JSON object, or several, or an array of them",
        ),
        row(
            "X: y",
            b"tru",
            400,
            invalid,
            "the body is not valid JSON, nothing was accepted: EOF while parsing a value at line 1 column 3",
        ),
        row(
            "X: y",
            br#"{"x":NaN}"#,
            400,
            invalid,
            "the body is not valid JSON, nothing was accepted: NaN is no JSON, send null or a string: expected value at line 1 column 6",
        ),
        row(
            "X: y",
            br#"[{},{"x":"}]"#,
            400,
            invalid,
            "the body is not valid JSON, nothing was accepted: the array has no end: a string or a bracket stays open in element 1 (from the array's byte 4 on)",
        ),
        row(
            "X: y",
            br#"[{},{"x":[}]"#,
            400,
            invalid,
            "the body is not valid JSON, nothing was accepted: brackets do not match in element 1 of the array (from the array's byte 4 on)",
        ),
        row(
            "X: y",
            b"[{}] x",
            400,
            invalid,
            "the body is not valid JSON, nothing was accepted: something stands behind the end of the array, from its byte 4 on",
        ),
    ] {
        let head = format!("POST /v1/events HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{fields}\r\n");
        let (address, length) = (daemon.address, format!("Content-Length: {}\r\n\r\n", body.len()));
        let request = [head.as_bytes(), length.as_bytes(), &body].concat();
        let reply = tokio::task::spawn_blocking(move || exchange(address, &request)).await.unwrap();
        assert_eq!((reply.problem(status), reply.json()["code"].as_str()), (sentence, code), "{fields}");
    }
    assert!(daemon.log.lock().unwrap().records.is_empty());
}

fn gzip(body: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(body).unwrap();
    encoder.finish().unwrap()
}

#[actix::test]
async fn compressed_bodies_are_taken_as_what_they_inflate_to() {
    let daemon = Daemon::start(Queue::Stores, HttpConfig::default());
    let events: Vec<String> =
        (0..4000).map(|n| format!(r#"{{"type":"a","event_id":"{n}","x":"{}"}}"#, "x".repeat(n % 300))).collect();
    for (coding, count) in [("gzip", 10), ("x-gzip", 4000), ("zstd", 10), ("zstd", 4000), ("br", 10), ("br", 4000)] {
        let body = format!("[{}]", events[..count].join(","));
        let compressed = match coding {
            "zstd" => zstd::encode_all(body.as_bytes(), 3).unwrap(),
            "br" => {
                let mut compressed = Vec::new();
                brotli::BrotliCompress(&mut body.as_bytes(), &mut compressed, &Default::default()).unwrap();
                compressed
            }
            _ => gzip(body.as_bytes()),
        };
        let reply = daemon.post_coded(coding, &compressed).await;
        assert_eq!((reply.status, &reply.json()["accepted"]), (200, &json!(count)), "{coding}");
        let records = std::mem::take(&mut daemon.log.lock().unwrap().records);
        assert!(records.iter().map(|(_, value, _)| value).eq(&events[..count]), "{coding}");
    }
    until(|| daemon.metric("ingestd_in_flight_bytes") == "0").await;
}

#[actix::test]
async fn what_a_head_claims_of_a_compressed_body_takes_no_room() {
    const CONNECTIONS: u64 = 20;
    let daemon = Daemon::start(Queue::Stores, HttpConfig::default());
    let open = |_| {
        let mut stream = TcpStream::connect(daemon.address).unwrap();
        let head = "POST /v1/events HTTP/1.1\r\nHost: x\r\nContent-Encoding: gzip\r\nContent-Length: 50000\r\n\r\n\x1f";
        stream.write_all(head.as_bytes()).unwrap();
        stream
    };
    let streams: Vec<_> = (0..CONNECTIONS).map(open).collect();
    let held = || daemon.metric("ingestd_in_flight_bytes").parse::<u64>().unwrap();
    // zlib's own memory of each.
    until(|| held() >= CONNECTIONS * (40 << 10)).await;
    assert!(held() <= CONNECTIONS * (48 << 10), "{} bytes", held());
    drop(streams);
    until(|| held() == 0).await;
}

#[actix::test]
async fn what_a_head_claims_of_a_plain_body_takes_no_room() {
    const CONNECTIONS: u64 = 20;
    let daemon = Daemon::start(Queue::Stores, HttpConfig::default());
    let open = |_| {
        let mut stream = TcpStream::connect(daemon.address).unwrap();
        let length = HttpConfig::default().max_body.0;
        let head = format!("POST /v1/events HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        stream
    };
    let mut streams: Vec<_> = (0..CONNECTIONS).map(open).collect();
    let held = || daemon.metric("ingestd_in_flight_bytes").parse::<u64>().unwrap();
    for pieces in 1..=4 {
        streams.iter_mut().for_each(|stream| stream.write_all(&[b' '; 1024]).unwrap());
        until(|| held() >= CONNECTIONS * pieces * 1024).await;
        assert!(held() <= CONNECTIONS * pieces * 2048, "{} bytes for {pieces} KiB on each", held());
    }
    drop(streams);
    until(|| held() == 0).await;
}

#[actix::test]
async fn limits_hold_for_what_comes_in_and_for_what_comes_out() {
    let limits =
        |bytes| HttpConfig { max_body: ByteSize(bytes), max_in_flight: ByteSize(bytes), ..HttpConfig::default() };
    let body = format!("[{}]", vec![r#"{"type":"a"}"#; 1_000].join(","));
    let length = body.len() as u64;
    let daemon = Daemon::start(Queue::Stores, limits(length));
    // All that may be in flight is its body; it is alone.
    assert_eq!(daemon.post_coded("gzip", &gzip(body.as_bytes())).await.status, 200);
    until(|| daemon.metric("ingestd_in_flight_bytes") == "0").await;
    assert_eq!(daemon.post_json(&body).await.status, 200);
    until(|| daemon.metric("ingestd_in_flight_bytes") == "0").await;
    daemon.change_limits(|http| http.max_body = ByteSize(length - 1));
    assert!(daemon.post_coded("gzip", &gzip(body.as_bytes())).await.problem(413).contains("http.max_body"));
    daemon.change_limits(|http| http.max_body = ByteSize(10));
    daemon.post_coded("gzip", &gzip(body.as_bytes())).await.problem(413);
    until(|| daemon.metric("ingestd_in_flight_bytes") == "0").await;
}

#[actix::test]
async fn a_coding_that_is_not_taken_is_415_and_says_which_are() {
    let daemon = Daemon::start(Queue::Stores, HttpConfig::default());
    for coding in ["compress", "gzip, br"] {
        let reply = daemon.post_coded(coding, b"{\"type\":\"a\"}").await;
        assert!(reply.problem(415).contains("gzip, zstd, deflate, br"));
        assert_eq!(reply.header("accept-encoding"), Some("gzip, zstd, deflate, br"));
    }
    let reply = daemon.post_coded("gzip", b"{\"type\":\"a\"}").await;
    assert!(reply.problem(400).contains("gzip"));
    assert_eq!((reply.header("accept-encoding"), reply.json().get("code")), (None, None));
    let reply = daemon.post("application/x-www-form-urlencoded", "{}").await;
    assert!(reply.problem(415).contains("application/json, application/x-ndjson"));
    assert_eq!(reply.header("accept-encoding"), None);
    assert!(daemon.log.lock().unwrap().records.is_empty());
}

#[actix::test]
async fn what_the_queue_finds_too_large_is_that_events_error() {
    let daemon = Daemon::start(Queue::FindsTooLarge(&[1]), HttpConfig::default());
    let reply = daemon
        .post_json(r#"[{"type":"a","event_id":"1"},{},{"type":"b","event_id":"2"},{"type":"c","event_id":"3"}]"#)
        .await;
    let json = reply.json();
    assert_eq!((reply.status, &json["accepted"], &json["ids"]), (207, &json!(2), &json!(["1", "3"])));
    assert_eq!((&json["errors"][1]["index"], &json["errors"][1]["code"]), (&json!(2), &json!("too_large")));
}

#[actix::test]
async fn limits_hold_and_change_at_the_next_request() {
    let daemon = Daemon::start(Queue::Stores, HttpConfig { max_body: ByteSize(64), ..HttpConfig::default() });
    let body = format!(r#"[{{"type":"a"}},{{"type":"{}"}}]"#, "x".repeat(64));
    daemon.post_json(&body).await.problem(413);
    daemon
        .send(format!(
            "POST /v1/events HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n",
            body.len()
        ))
        .await
        .problem(413);
    daemon.change_limits(|http| (http.max_body, http.max_event) = (ByteSize(1 << 20), ByteSize(32)));
    let reply = daemon.post_json(&body).await;
    assert_eq!((reply.status, &reply.json()["errors"][0]["code"]), (207, &json!("too_large")));
    daemon.change_limits(|http| http.max_events = 1);
    daemon.post_json(&body).await.problem(413);
    daemon.change_limits(|http| http.max_in_flight = ByteSize(10));
    let reply = daemon.post_json(&body).await;
    reply.problem(503);
    assert_eq!(reply.header("retry-after"), Some("1"));
}

#[actix::test]
async fn long_bodies_come_through_whole() {
    let daemon = Daemon::start(Queue::Stores, HttpConfig::default());
    let events: Vec<String> =
        (0..4000).map(|n| format!(r#"{{"type":"a","event_id":"{n}","x":"{}"}}"#, "x".repeat(200))).collect();
    let reply = daemon.post_json(&format!("[{}]", events.join(","))).await;
    assert_eq!(
        (reply.status, &reply.json()["accepted"], &reply.json()["ids"][3999]),
        (200, &json!(4000), &json!("3999"))
    );
    assert!(daemon.log.lock().unwrap().records.iter().map(|(_, value, _)| value).eq(&events));
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
async fn each_answer_says_what_its_request_is_called_refusals_too() {
    let limits = HttpConfig { request_timeout: Duration::from_millis(200), ..pages_of("*") };
    let daemon = Daemon::start(Queue::Stores, limits);
    let full = daemon.health.gate.reason(Closed::DiskFull);
    let json = "Content-Type: application/json\r\n";
    let preflight = format!("Origin: https://a.example\r\n{PREFLIGHT}");
    let expect = "Expect: 100-continue\r\nContent-Length: 99999999999\r\n";
    for (line, fields, body, status) in [
        ("POST /v1/events", json, r#"{"type":"a"}"#, 200),
        ("POST /v1/events", json, r#"[{"type":"a"},7]"#, 207),
        ("POST /v1/events", json, "{", 400),
        ("POST /v1/events", "Content-Type: text/html\r\n", "{}", 415),
        ("POST /v1/events", "Content-Encoding: x\r\n", "{}", 415),
        ("POST /v1/events", expect, "", 413),
        ("POST /v1/events", "Content-Length: 99999999999\r\n", "", 413),
        ("POST /v1/events", "Content-Length: 9\r\n", "", 408),
        ("POST /v1/events", "Transfer-Encoding: chunked\r\n", "x\r\n\r\n", 400),
        ("POST /v1/logs", json, r#"{"resourceLogs":[]}"#, 200),
        ("PUT /v1/events", "", "", 405),
        ("OPTIONS /v1/events", &preflight, "", 204),
        ("GET /elsewhere", "", "", 404),
        ("GET /health", "", "", 503),
        ("GET /openapi.json", "", "", 200),
        ("POST /v1/events", json, r#"{"type":"a"}"#, 503),
    ] {
        match status {
            503 => full.set("71 % used".to_owned()),
            _ => full.set(None::<String>),
        }
        let named = "X-Request-Id: a-proxy/Root=1:2+3@4\r\n";
        for (id, echoed) in [
            (named, Some("a-proxy/Root=1:2+3@4")),
            ("", None),
            ("X-Request-Id: two words\r\n", None),
            (&format!("X-Request-Id: {}\r\n", "a".repeat(129)), None),
            (&format!("{named}{named}"), None),
        ] {
            let mut request = of_page(line, &format!("{id}{fields}"), body);
            if fields.contains("Length") || fields.contains("chunked") {
                request = request.replacen(&format!("Content-Length: {}\r\n\r\n", body.len()), "\r\n", 1);
            }
            let reply = daemon.send(request).await;
            assert_eq!(reply.status, status, "{line} {fields}: {}", reply.body);
            assert_eq!(reply.head.to_lowercase().matches("x-request-id: ").count(), 1, "{}", reply.head);
            let said = reply.header("x-request-id").unwrap();
            match echoed {
                Some(id) => assert_eq!(said, id, "{line} {fields}"),
                None => assert!(uuid::Uuid::parse_str(said).is_ok(), "{line} {fields} {id}: {said}"),
            }
        }
    }
    for broken in ["POST /v1/events HTTP/1.1\r\nno field\r\n\r\n", "POST /v1/events HTTP/1.1\r\n\r\n"] {
        let reply = daemon.send(broken.to_owned()).await;
        assert_eq!(reply.status, 400, "{broken}");
        assert!(uuid::Uuid::parse_str(reply.header("x-request-id").unwrap()).is_ok(), "{}", reply.head);
    }
}

#[actix::test]
async fn the_trace_of_a_request_is_carried_by_each_of_its_records_and_letters() {
    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let sources = HttpConfig { source: other_shapes().source, ..HttpConfig::default() };
    let daemon = Daemon::start(Queue::Stores, sources);
    daemon.quarantine(Letters::Kept);
    let trace = format!("traceparent: {PARENT}\r\ntracestate: a=1\r\ntracestate: b=2\r\n");
    let [parent, state] = [("traceparent", PARENT), ("tracestate", "a=1,b=2")];
    let json = "Content-Type: application/json\r\n";
    let binary = "ce-specversion: 1.0\r\nce-id: i\r\nce-source: /s\r\nce-type: t\r\nce-traceparent: of-the-event\r\n";
    let own = [
        ("ce_id", "i"),
        ("ce_source", "/s"),
        ("ce_specversion", "1.0"),
        ("ce_traceparent", "of-the-event"),
        ("ce_type", "t"),
        ("content-type", "application/json"),
    ];
    // More than is checked on a worker.
    let long = format!("[{}]", vec![r#"{"type":"a"}"#; 9000].join(","));
    for (path, fields, body, expected) in [
        ("/v1/events", json.to_owned(), r#"[{"type":"a"},{"type":"b"}]"#, vec![vec![]; 2]),
        ("/v1/events", format!("{json}{trace}"), r#"[{"type":"a"},{"type":"b"}]"#, vec![vec![parent, state]; 2]),
        ("/v1/events", format!("{json}{trace}"), &long, vec![vec![parent, state]; 9000]),
        ("/v1/events", format!("{json}traceparent: {PARENT}\r\n"), r#"{"type":"a"}"#, vec![vec![parent]]),
        ("/v1/events", format!("{json}traceparent: {PARENT}-\r\ntracestate: a=1\r\n"), r#"{"type":"a"}"#, vec![vec![]]),
        ("/v1/events", format!("{json}{trace}traceparent: {PARENT}\r\n"), r#"{"type":"a"}"#, vec![vec![]]),
        ("/v1/events", format!("{json}{binary}"), "7", vec![own.to_vec()]),
        ("/v1/events", format!("{json}{binary}{trace}"), "7", vec![[&own[..], &[parent, state]].concat()]),
        ("/one", format!("{json}{trace}"), r#"{"id":1}"#, vec![vec![("ce_type", "alert"), parent, state]]),
    ] {
        let reply = daemon.send(of_page(&format!("POST {path}"), &fields, body)).await;
        assert_eq!(reply.status, 200, "{path} {fields}: {}", reply.body);
        let headers = std::mem::take(&mut daemon.log.lock().unwrap().headers);
        let owned = |headers: Vec<(&str, &str)>| -> Vec<String> {
            headers.into_iter().map(|(name, value)| format!("{name}={value}")).collect()
        };
        assert_eq!(headers, expected.into_iter().map(owned).collect::<Vec<_>>(), "{path} {fields}");
    }
    // One that is wrong, and a body that cannot be split.
    for body in [r#"[{"type":"a"},7]"#, "[{"] {
        let reply = daemon.send(of_page("POST /v1/events", &format!("{json}{trace}"), body)).await;
        assert_eq!(reply.status, 200, "{}", reply.body);
        let letter = daemon.log.lock().unwrap().letters.pop().unwrap();
        let expected = [parent, state].map(|(name, value)| (name.to_owned(), Some(value.as_bytes().to_vec())));
        assert_eq!(letter.headers, expected, "{body}");
    }
    until(|| daemon.metric("ingestd_in_flight_bytes") == "0").await;
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

#[actix::test]
async fn pages_of_an_allowed_origin_may_read_each_answer_and_others_none() {
    let daemon = Daemon::start(Queue::Stores, pages_of("https://a.example"));
    let full = daemon.health.gate.reason(Closed::DiskFull);
    for (line, fields, body, status) in [
        ("POST /v1/events", "", r#"{"type":"a"}"#, 415),
        ("POST /v1/events", "Content-Type: application/json\r\n", r#"{"type":"a"}"#, 200),
        ("POST /v1/events", "Content-Type: application/json\r\n", r#"[{"type":"a"},7]"#, 207),
        ("POST /v1/events", "Content-Type: application/json\r\n", "{}", 400),
        ("POST /v1/events", "Content-Type: application/json\r\n", "", 400),
        ("POST /v1/events", "Content-Type: text/html\r\n", "{}", 415),
        ("POST /v1/events", "Expect: 100-continue\r\nContent-Length: 99999999999\r\n", "", 413),
        ("PUT /v1/events", "", "", 405),
        ("OPTIONS /v1/events", "", "", 405),
        ("GET /elsewhere", "", "", 404),
        ("GET /openapi.json", "", "", 200),
        ("GET /health", "", "", 503),
        ("POST /v1/events", "Content-Type: application/json\r\n", r#"{"type":"a"}"#, 503),
    ] {
        if status == 503 {
            full.set("71 % used".to_owned());
        }
        for (origin, allowed) in [("https://a.example", true), ("https://b.example", false)] {
            // What any page can send without asking is for allowed ones alone.
            let status = if allowed && fields.is_empty() && status == 415 { 200 } else { status };
            let request = of_page(line, &format!("Origin: {origin}\r\n{fields}"), body);
            let request = request.replacen("Content-Length: 0\r\n", "", usize::from(status == 413));
            let reply = daemon.send(request).await;
            assert_eq!(reply.status, status, "{line} {fields} of {origin}: {}", reply.body);
            let said = reply.header("access-control-allow-origin");
            assert_eq!(said, allowed.then_some(origin), "{line} {fields}: {}", reply.head);
            assert_eq!(reply.header("vary"), Some("Origin"), "{line} {fields}: {}", reply.head);
            let exposed = reply.header("access-control-expose-headers");
            for name in ["Retry-After", "X-Request-Id"] {
                assert_eq!(exposed.is_some_and(|names| names.contains(name)), allowed, "{}", reply.head);
            }
        }
    }
}

#[actix::test]
async fn a_browser_that_asks_is_answered_by_the_configuration_of_now_and_while_the_door_is_closed() {
    let daemon = Daemon::start(Queue::Stores, HttpConfig::default());
    let ask = |path: &str, origin: &str| {
        daemon.send(of_page(&format!("OPTIONS {path}"), &format!("Origin: {origin}\r\n{PREFLIGHT}"), ""))
    };
    let reply = ask("/v1/events", "https://a.example").await;
    assert!(reply.problem(403).contains("http.cors.origins"), "{}", reply.body);
    assert!(!reply.head.to_lowercase().contains("access-control") && reply.header("vary").is_none(), "{}", reply.head);
    let reply = daemon.post_json(r#"{"type":"a"}"#).await;
    assert!(!reply.head.to_lowercase().contains("access-control") && reply.header("vary").is_none(), "{}", reply.head);

    daemon.change_limits(|http| *http = HttpConfig { listen: http.listen.clone(), ..pages_of("https://a.example") });
    let full = daemon.health.gate.reason(Closed::DiskFull);
    full.set("71 % used".to_owned());
    let reply = ask("/v1/events", "https://a.example").await;
    assert_eq!((reply.status, reply.body.as_str()), (204, ""));
    for (name, value) in [
        ("access-control-allow-origin", "https://a.example"),
        ("access-control-allow-credentials", "true"),
        ("access-control-allow-headers", "content-type,traceparent,tracestate,x-request-id"),
        ("access-control-max-age", "7200"),
        ("vary", "Origin, Access-Control-Request-Method, Access-Control-Request-Headers"),
    ] {
        assert_eq!(reply.header(name), Some(value), "{name}");
    }
    assert!(reply.header("access-control-allow-methods").is_some_and(|methods| methods.contains("POST")));
    ask("/v1/events", "https://b.example").await.problem(403);
    assert_eq!(daemon.metric("ingestd_requests_total{status=\"204\"}"), "1");
    assert_eq!(daemon.metric("ingestd_requests_total{status=\"403\"}"), "2");
}

#[actix::test]
async fn what_any_page_can_send_without_asking_is_taken_of_an_allowed_origin_alone() {
    let daemon = Daemon::start(Queue::Stores, pages_of("https://a.example"));
    for (content_type, origin, status) in [
        ("Content-Type: text/plain;charset=UTF-8\r\n", "Origin: https://a.example\r\n", 200),
        ("Content-Type: text/plain;charset=UTF-8\r\n", "Origin: https://b.example\r\n", 415),
        ("Content-Type: text/plain;charset=UTF-8\r\n", "Origin: null\r\n", 415),
        ("Content-Type: text/plain;charset=UTF-8\r\n", "", 415),
        ("", "Origin: https://a.example\r\n", 200),
        ("", "Origin: https://b.example\r\n", 415),
        ("", "", 200),
        // Its browser has asked, or it is no browser's.
        ("Content-Type: application/json\r\n", "Origin: https://b.example\r\n", 200),
    ] {
        let request = of_page("POST /v1/events", &format!("{origin}{content_type}"), r#"{"type":"a"}"#);
        let reply = daemon.send(request).await;
        assert_eq!(reply.status, status, "{content_type}{origin}: {}", reply.body);
        let names_the_key = status == 415 && !origin.is_empty();
        assert_eq!(reply.body.contains("http.cors.origins"), names_the_key, "{}", reply.body);
    }
    assert_eq!(daemon.log.lock().unwrap().records.len(), 4);
}

#[actix::test]
async fn a_type_that_is_no_text_gets_no_page_around_being_asked_on_any_path_that_takes_bodies() {
    let mut http = pages_of("https://a.example");
    http.source = other_shapes().source;
    let daemon = Daemon::start(Queue::Stores, http);
    for path in ["/v1/events", "/v1/logs", "/hook", "/one", "/list"] {
        for content_type in
            [&b"text/plain;a=\xe9"[..], b"text/plain\xe9", b"application/x-www-form-urlencoded;\xff", b"\xe9"]
        {
            let length = "{}".len();
            let head = format!(
                "POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nOrigin: https://b.example\r\n\
                 Content-Length: {length}\r\nContent-Type: "
            );
            let request = [head.as_bytes(), content_type, b"\r\n\r\n{}"].concat();
            let address = daemon.address;
            let reply = tokio::task::spawn_blocking(move || exchange(address, &request)).await.unwrap();
            assert_eq!(reply.status, 415, "{path} {content_type:?}: {}", reply.body);
        }
    }
    assert!(daemon.log.lock().unwrap().records.is_empty());
}

#[actix::test]
async fn the_document_is_the_listeners_own_and_what_it_does_not_describe_is_405() {
    let rate = serde_json::from_value(json!("1/s")).unwrap();
    let daemon = Daemon::start(Queue::Stores, HttpConfig { auth: keys::locked().auth, rate, ..pages_of("*") });
    let reply = daemon.get("GET /openapi.json").await;
    assert_eq!((reply.status, reply.header("content-type")), (200, Some("application/json")));
    let document = reply.json();
    assert_eq!(document["openapi"], "3.1.0");
    assert_eq!(document["paths"], openapi::DOCUMENTS[0]["paths"], "of the same configuration");
    for path in document["paths"].as_object().unwrap().keys() {
        let described = openapi::operations(&document, path).unwrap();
        for method in ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PURGE"] {
            let reply = daemon.get(&format!("{method} {path}")).await;
            let is_described = method != "OPTIONS" && described.contains_key(&method.to_ascii_lowercase());
            assert_eq!(reply.status == 405, !is_described, "{method} {path}: {}", reply.status);
        }
    }
    until(|| daemon.metric("ingestd_in_flight_bytes") == "0").await;
    daemon.change_limits(|http| http.max_in_flight = ByteSize(1000));
    let reply = daemon.get("GET /openapi.json").await;
    assert_eq!(reply.header("retry-after"), Some("1"), "{}", reply.head);
}

#[actix::test]
async fn each_media_type_coding_and_preference_that_is_described_is_taken() {
    let daemon = Daemon::start(Queue::Stores, pages_of("*"));
    let document = daemon.get("GET /openapi.json").await.json();
    let post = &document["paths"]["/v1/events"]["post"];
    let cloud_event = r#"{"specversion":"1.0","type":"a","source":"s","id":"1","data":{}}"#;
    let media_types = post["requestBody"]["content"].as_object().unwrap();
    assert!(media_types.len() >= 8, "{media_types:?}");
    for media_type in media_types.keys() {
        let body = match media_type.as_str() {
            "application/cloudevents+json" => cloud_event.to_owned(),
            "application/cloudevents-batch+json" => format!("[{cloud_event}]"),
            _ => r#"{"type":"a"}"#.to_owned(),
        };
        let fields = format!("Origin: https://a.example\r\nContent-Type: {media_type}\r\n");
        let reply = daemon.send(of_page("POST /v1/events", &fields, &body)).await;
        assert_eq!((reply.status, &reply.json()["accepted"]), (200, &json!(1)), "{media_type}: {}", reply.body);
    }
    let parameter = |name: &str| post["parameters"].as_array().unwrap().iter().find(|it| it["name"] == name).unwrap();
    let words = |value: &Value| {
        value.as_array().unwrap().iter().map(|word| word.as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let codings = words(&parameter("Content-Encoding")["schema"]["examples"]);
    assert_eq!(codings[..4], coding::CODINGS);
    for name in &codings {
        let body = br#"{"type":"a"}"#;
        let body = if name == "identity" { body.to_vec() } else { coding::compressed(name, body) };
        let reply = daemon.post_coded(name, &body).await;
        assert_eq!((reply.status, &reply.json()["accepted"]), (200, &json!(1)), "{name}: {}", reply.body);
    }
    for preference in words(&parameter("Prefer")["schema"]["examples"]) {
        let reply = daemon.prefer(preference.split_once('=').unwrap().1, r#"{"type":"a"}"#).await;
        assert_eq!((reply.status, reply.applied()), (200, Some(preference.as_str())), "{}", reply.body);
    }
    let attributes = ["ce-specversion: 1.0", "ce-type: a", "ce-source: s", "ce-id: 1", "ce-time: 2026-11-23T08:00:00Z"];
    for attribute in attributes {
        parameter(attribute.split(':').next().unwrap());
    }
    let fields = format!("{}\r\n", attributes.join("\r\n"));
    let reply = daemon.send(of_page("POST /v1/events", &fields, "")).await;
    assert_eq!((reply.status, &reply.json()["ids"]), (200, &json!(["1"])), "{}", reply.body);
}

#[actix::test]
async fn the_paths_of_sources_and_logs_are_described_as_they_are_answered_and_pages_may_use_them() {
    let daemon = Daemon::start(Queue::Stores, pages_of("https://a.example"));
    daemon.change_limits(|http| {
        let sources = json!([
            { "path": "/v1/batch", "records": "/batch", "type": "/type" },
            { "path": "/2/httpapi", "records": "/events", "type": "/event_type", "answer": "{\"code\":200}" },
            { "path": "/hook", "type": { "fixed": "alert" }, "answer": "ok" },
        ]);
        http.source = serde_json::from_value(sources).unwrap();
    });
    let document = daemon.get("GET /openapi.json").await.json();
    let (allowed, other) = ("Origin: https://a.example\r\n", "Origin: https://b.example\r\n");
    let asks = format!("{allowed}{PREFLIGHT}");
    let text = format!("{allowed}Content-Type: text/plain\r\n");
    let text_of_another = format!("{other}Content-Type: text/plain\r\n");
    let json = "Content-Type: application/json\r\n";
    let json_of_another = format!("{other}{json}");
    let lenient = format!("{json}Prefer: handling=lenient\r\n");
    let strict = format!("{json}Prefer: handling=strict\r\n");
    for (path, right, some, wrong) in [
        ("/v1/batch", r#"{"batch":[{"type":"a"}]}"#, Some(r#"{"batch":[{"type":"a"},7]}"#), r#"{"batch":[7]}"#),
        ("/2/httpapi", r#"{"events":[{"event_type":"a"}]}"#, Some(r#"{"events":[{"event_type":"a"},7]}"#), "[]"),
        ("/hook", r#"{"labels":{}}"#, None, "{"),
        ("/v1/logs", r#"{"resourceLogs":[]}"#, None, "7"),
    ] {
        let is_logs = path == "/v1/logs";
        let post = format!("POST {path}");
        for (line, fields, body, status) in [
            (&post, json, right, 200),
            (&post, &json_of_another, right, 200),
            (&post, &lenient, right, 200),
            (&post, &strict, some.unwrap_or(right), if some.is_some() { 400 } else { 200 }),
            (&post, json, some.unwrap_or(right), if some.is_some() { 207 } else { 200 }),
            (&post, json, wrong, 400),
            (&post, &text, right, if is_logs { 415 } else { 200 }),
            (&post, &text_of_another, right, 415),
            (&post, &format!("{json}Content-Encoding: compress\r\n"), right, 415),
            (&format!("GET {path}"), "", "", 405),
            (&format!("OPTIONS {path}"), &asks, "", 204),
        ] {
            let reply = daemon.send(of_page(line, fields, body)).await;
            assert_eq!(reply.status, status, "{line} {fields}{body}: {}", reply.body);
            openapi::check_by(std::slice::from_ref(&document), &answered(line, &reply));
            let said = reply.header("access-control-allow-origin");
            assert_eq!(said.is_some(), fields.starts_with(allowed), "{line} {fields}: {}", reply.head);
            let applied = reply.applied().is_some();
            assert_eq!(applied, fields.contains("Prefer"), "{line} {fields}: {}", reply.head);
        }
    }
}

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

/// The status, the code and the sentence of each answer to a body of another shape that is refused as a whole.
#[actix::test]
async fn each_refusal_at_a_source_is_a_sentence_that_says_what_where_and_what_to_do() {
    let daemon = Daemon::start(Queue::Stores, other_shapes());
    let invalid = Some("invalid_json");
    let many = format!(r#"{{"batch":[{}]}}"#, ["1"; 10].join(","));
    let bomb = gzip(&[b' '; 5000]);
    for (path, body, status, code, sentence) in [
        (
            "/hook",
            &b""[..],
            400,
            invalid,
            "the body is empty: send a JSON object, an array of objects, or one object a line as application/x-ndjson",
        ),
        (
            "/hook",
            br#"{"events":[]}"#,
            400,
            Some("not_an_object"),
            "the body has no array of events at \"/batch\", which is \"records\" of this path's [[http.source]]",
        ),
        (
            "/hook",
            br#"{"batch":[{"kind":"a"}"#,
            400,
            invalid,
            "the body is not valid JSON, nothing was accepted: EOF while parsing a list at line 1 column 22",
        ),
        (
            "/hook",
            br#"{"batch":[],"sentAt":tru}"#,
            400,
            invalid,
            "the body is not valid JSON, nothing was accepted: expected ident at line 1 column 25",
        ),
        (
            "/hook",
            many.as_bytes(),
            413,
            None,
            "more than 9 events in one request (http.max_events): send them in smaller requests",
        ),
        (
            "/one",
            b"[1",
            400,
            invalid,
            "the body is not valid JSON, nothing was accepted: EOF while parsing a list at line 1 column 2",
        ),
        ("/list", b"7", 400, Some("not_an_object"), "the body must be a JSON object, or several, or an array of them"),
        (
            "/list",
            b"data=*",
            400,
            invalid,
            "the field of this form is neither JSON nor base64, nothing was accepted: Invalid symbol 42, offset 0.",
        ),
        (
            "/one",
            b"payload=%7B%22a%22%3A%22%FF%22%7D",
            400,
            invalid,
            "the body is not valid JSON, nothing was accepted: not valid UTF-8 at byte 6",
        ),
        (
            "/list",
            &gzip(b"{}")[..15],
            400,
            None,
            "the body's gzip stream ends before its end, nothing was accepted: send all of it again",
        ),
        (
            "/list",
            &bomb,
            413,
            None,
            "the body inflates from gzip to more than 4000 bytes (http.max_body): send it in smaller requests",
        ),
        (
            "/nowhere",
            b"{}",
            404,
            None,
            "events are taken by POST /v1/events, logs by POST /v1/logs, and other bodies at the paths of [[http.source]]",
        ),
    ] {
        let reply = daemon.post_at(path, "", body).await;
        assert_eq!((reply.problem(status).as_str(), reply.json()["code"].as_str()), (sentence, code), "{path}");
    }
    for content_type in
        ["application/json; charset=utf-16", "text/plain;charset=ISO-8859-1", "x;a=b;Charset=\"latin1\""]
    {
        let reply = daemon.post_at("/one", &format!("Content-Type: {content_type}\r\n"), b"{}").await;
        let sentence = "the charset of this Content-Type is not taken: send JSON in UTF-8, whatever its media type";
        assert_eq!(reply.problem(415), sentence, "{content_type}");
    }
    assert_eq!(daemon.get("PUT /hook").await.problem(405), "this path takes POST only");
    assert!(daemon.log.lock().unwrap().records.is_empty());
}

#[actix::test]
async fn each_refusal_of_an_event_of_another_shape_says_where_something_was_looked_for() {
    let daemon = Daemon::start(Queue::Stores, other_shapes());
    let (long, large) = ("x".repeat(129), "x".repeat(600));
    let long = format!(r#"{{"kind":"{long}"}}"#);
    let large = format!(r#"{{"kind":"a","x":"{large}"}}"#);
    let rows = [
        ("{}", "missing_type", "there is no type at \"/kind\": it must be a string of 1 to 128 characters"),
        (r#"{"kind":7}"#, "invalid_type", "the type at \"/kind\" must be a string of 1 to 128 characters"),
        (&long, "invalid_type", "the type at \"/kind\" must be a string of 1 to 128 characters"),
        (
            r#"{"kind":"a","id":[]}"#,
            "invalid_id",
            "the id at \"/id\" must be a string of 1 to 256 characters or a number, or absent",
        ),
        (
            r#"{"kind":"a","id":""}"#,
            "invalid_id",
            "the id at \"/id\" must be a string of 1 to 256 characters or a number, or absent",
        ),
        (
            &large,
            "too_large",
            "627 bytes of data and attributes are more than an event may have: 600B (http.max_event)",
        ),
        (r#"{"kind":tru}"#, "invalid_json", "expected ident at line 1 column 12"),
        (
            r#"{"kind":"a","a":1,"a":2}"#,
            "invalid_json",
            "the name \"a\" stands twice in one object, which not every reader of JSON takes (event.on_unreadable)",
        ),
    ];
    let events: Vec<&str> = rows.iter().map(|row| row.0).chain([r#"{"kind":"a"}"#]).collect();
    let reply = daemon.post_at("/hook", "", format!(r#"{{"batch":[{}]}}"#, events.join(",")).as_bytes()).await;
    assert_eq!(reply.status, 207, "{}", reply.body);
    let errors = reply.json()["errors"].as_array().unwrap().clone();
    let found: Vec<_> =
        errors.iter().map(|error| (error["code"].as_str().unwrap(), error["message"].as_str().unwrap())).collect();
    assert_eq!(found, rows.map(|(_, code, sentence)| (code, sentence)));
}

#[actix::test]
async fn a_source_honours_preferences_and_answers_a_success_in_its_own_words() {
    let daemon = Daemon::start(Queue::Stores, other_shapes());
    let body = br#"{"batch":[{"kind":"a"},{}]}"#;
    let strict = daemon.post_at("/hook", "Prefer: handling=strict\r\n", body).await;
    assert_eq!(
        (strict.status, strict.applied(), strict.errors()),
        (400, Some("handling=strict"), errors(&[(1, "missing_type")]))
    );
    assert!(daemon.log.lock().unwrap().records.is_empty());
    let lenient = daemon.post_at("/hook", "Prefer: handling=lenient\r\n", body).await;
    assert_eq!((lenient.status, lenient.applied()), (207, Some("handling=lenient")));
    let own = daemon.post_at("/list", "Content-Type: application/x-ndjson\r\n", b"{}\n{}\n").await;
    assert_eq!((own.status, &*own.body, own.header("content-type")), (200, "ok", Some("text/plain; charset=utf-8")));
    let some = daemon.post_at("/list", "", br#"[{},{"a":NaN}]"#).await;
    assert_eq!((some.status, &*some.body), (207, "ok"));
    // Who prefers something reads what became of each event.
    let some = daemon.post_at("/list", "Prefer: handling=lenient\r\n", br#"[{},{"a":NaN}]"#).await;
    assert_eq!((some.status, some.errors()), (207, errors(&[(1, "invalid_json")])));
    let all =
        daemon.post_at("/list", "Prefer: handling=strict\r\nContent-Type: text/xml; charset=utf-8\r\n", b"{}").await;
    assert_eq!((all.status, &all.json()["accepted"]), (200, &json!(1)));
    // A number is a time, too.
    let body = br#"{"batch":[{"kind":"b","time":1795420800123,"who":7,"id":8}]}"#;
    let reply = daemon.post_at("/hook", "", body).await;
    assert_eq!((reply.status, &reply.json()["ids"], reply.json().get("warnings")), (200, &json!(["8"]), None));
    let records = daemon.log.lock().unwrap().records.clone();
    let (key, value, _) = records.last().unwrap();
    assert_eq!((key.as_deref(), value.as_str()), (Some("7"), r#"{"kind":"b","time":1795420800123,"who":7,"id":8}"#));
    let absurd = daemon.post_at("/hook", "", br#"{"batch":[{"kind":"b","time":{}}]}"#).await;
    assert_eq!(absurd.json()["warnings"][0]["code"], "invalid_timestamp", "{}", absurd.body);
}

/// The status and the sentence of each answer to logs that are wrong, as exporters read them.
#[actix::test]
async fn each_refusal_of_logs_is_a_status_that_says_what_where_and_what_to_do() {
    let daemon = Daemon::start(Queue::Stores, other_shapes());
    const JSON: &str = "Content-Type: application/json\r\n";
    let of = |records: &str| format!(r#"{{"resourceLogs":[{{"scopeLogs":[{{"logRecords":[{records}]}}]}}]}}"#);
    let no_request = "the body is no ExportLogsServiceRequest in OTLP/JSON, nothing was accepted: ";
    for (body, status, code, sentence) in [
        ("{".to_owned(), 400, 3, format!("{no_request}EOF while parsing an object at line 1 column 1")),
        (r#"{"resourceLogs":7}"#.to_owned(), 400, 3, format!("{no_request}invalid type: integer `7`, expected an array at line 1 column 1")),
        (
            of(&["{}"; 10].join(",")),
            413,
            3,
            "more than 9 events in one request (http.max_events): send them in smaller requests".to_owned(),
        ),
        (
            of(r#"{"timeUnixNano":"soon"},{"traceId":"x"}"#),
            400,
            3,
            "no log record was accepted: log record 0: invalid_json: its log record is no valid OTLP/JSON: an integer in its \
             range was expected, or a string with one at line 1 column 22; and 1 more"
                .to_owned(),
        ),
        (
            of(&format!(r#"{{"severityText":"{}"}}"#, "x".repeat(700))),
            400,
            3,
            "no log record was accepted: log record 0: too_large: 719 bytes of application/json are more than an event may \
             have: 600B (http.max_event); it was not decoded"
                .to_owned(),
        ),
        (
            of(&"x".repeat(4000)),
            413,
            3,
            "the body is larger than 4000 bytes (http.max_body): send it in smaller requests".to_owned(),
        ),
    ] {
        let reply = daemon.post_at("/v1/logs", JSON, body.as_bytes()).await;
        assert_eq!((reply.status, reply.header("content-type")), (status, Some("application/json")), "{}", reply.body);
        assert_eq!((reply.json()["message"].as_str(), &reply.json()["code"]), (Some(&*sentence), &json!(code)));
    }
    let media_type = "Content-Type of logs must be application/x-protobuf or application/json, in UTF-8: set \
                      OTEL_EXPORTER_OTLP_PROTOCOL to http/protobuf";
    for given in ["application/grpc", "application/json; charset=utf-16"] {
        let reply = daemon.post_at("/v1/logs", &format!("Content-Type: {given}\r\n"), b"").await;
        assert_eq!(reply.problem(415), media_type);
    }
    let coding = daemon.post_at("/v1/logs", &format!("{JSON}Content-Encoding: compress\r\n"), b"{}").await;
    assert_eq!((coding.status, coding.header("accept-encoding")), (415, Some("gzip, zstd, deflate, br")));
    assert!(daemon.log.lock().unwrap().records.is_empty());

    let full = daemon.health.gate.reason(Closed::DiskFull);
    full.set("90 %".to_owned());
    let closed = daemon.post_at("/v1/logs", JSON, of("{}").as_bytes()).await;
    assert_eq!((closed.status, closed.header("retry-after"), &closed.json()["code"]), (503, Some("30"), &json!(14)));
}

/// Logs, the second of which is wrong.
const MIXED_LOGS: &str = r#"{"resourceLogs":[{"resource":{"attributes":[{"key":"service.name","value":{"stringValue":"shop"}}]},
    "scopeLogs":[{"logRecords":[{"body":{"stringValue":"a"}},{"timeUnixNano":"soon"},{"body":{"stringValue":"c"}}]}]}]}"#;

#[actix::test]
async fn logs_honour_preferences_as_far_as_their_answers_can_say_it() {
    let daemon = Daemon::start(Queue::Stores, HttpConfig::default());
    let post = |handling: &str| {
        let fields = format!("Content-Type: application/json\r\nPrefer: handling={handling}\r\n");
        let daemon = &daemon;
        async move { daemon.post_at("/v1/logs", &fields, MIXED_LOGS.as_bytes()).await }
    };
    let partial = |reply: &Reply| {
        let partial = reply.json()["partialSuccess"].clone();
        let text = |name: &str| partial[name].as_str().unwrap_or_default().to_owned();
        (text("rejectedLogRecords"), text("errorMessage"))
    };
    let strict = post("strict").await;
    assert_eq!((strict.status, strict.applied(), &strict.json()["code"]), (400, Some("handling=strict"), &json!(3)));
    assert!(
        strict.json()["message"]
            .as_str()
            .unwrap()
            .starts_with("no log record was accepted: log record 1: invalid_json: ")
    );
    assert!(daemon.log.lock().unwrap().records.is_empty());
    daemon.quarantine(Letters::Kept);
    assert_eq!(post("strict").await.status, 400);
    assert!(daemon.letters().is_empty());
    let lenient = post("lenient").await;
    assert_eq!((lenient.status, lenient.applied(), &*partial(&lenient).0), (200, Some("handling=lenient"), "0"));
    assert_eq!(daemon.letters(), [("invalid_json".to_owned(), r#"{"timeUnixNano":"soon"}"#.to_owned())]);

    *daemon.queue.lock().unwrap() = Queue::GoesAway;
    let lenient = post("lenient").await;
    let (rejected, message) = partial(&lenient);
    assert_eq!((lenient.status, lenient.applied(), &*rejected), (200, Some("handling=lenient"), "1"));
    assert!(message.contains("log records 2 (1 in all): no broker answers; "), "{message}");
    *daemon.queue.lock().unwrap() = Queue::Refuses;
    let lenient = post("perhaps").await;
    assert_eq!((lenient.status, lenient.applied()), (503, None));
}

#[actix::test]
async fn strict_logs_of_which_the_queue_stored_a_part_are_not_said_to_be_so() {
    let daemon = Daemon::start(Queue::FindsTooLarge(&[1]), HttpConfig::default());
    let strict = "Content-Type: application/json\r\nPrefer: handling=strict\r\n";
    let body = r#"{"resourceLogs":[{"scopeLogs":[{"logRecords":[{},{}]}]}]}"#;
    let reply = daemon.post_at("/v1/logs", strict, body.as_bytes()).await;
    assert_eq!((reply.status, reply.applied()), (200, None));
    assert_eq!(reply.json()["partialSuccess"]["rejectedLogRecords"], "1");
    *daemon.queue.lock().unwrap() = Queue::FindsTooLarge(&[0, 1]);
    let reply = daemon.post_at("/v1/logs", strict, body.as_bytes()).await;
    assert_eq!((reply.status, reply.applied()), (400, Some("handling=strict")));
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

/// The second is wrong.
const MIXED: &str = r#"[{"type":"a","event_id":"1"},{"no":1},{"type":"b","event_id":"2"}]"#;
const WRONG: (u64, &str) = (1, "missing_type");

/// Events by index and code, as [`Reply::errors`] gives them.
fn errors(expected: &[(u64, &str)]) -> Vec<(u64, String)> {
    expected.iter().map(|(index, code)| (*index, (*code).to_owned())).collect()
}

#[actix::test]
async fn of_a_strict_request_with_a_wrong_event_nothing_is_stored() {
    let daemon = Daemon::start(Queue::Stores, HttpConfig::default());
    let reply = daemon.prefer("strict", MIXED).await;
    let json = reply.json();
    assert_eq!((reply.status, reply.applied()), (400, Some("handling=strict")));
    assert_eq!((&json["accepted"], &json["rejected"], &json["ids"]), (&json!(0), &json!(1), &json!([])));
    assert_eq!(reply.errors(), errors(&[WRONG]));
    assert!(daemon.log.lock().unwrap().records.is_empty());
    assert_eq!(daemon.metric("ingestd_events_rejected_total{reason=\"missing_type\"}"), "1");
    assert_eq!(daemon.metric("ingestd_events_accepted_total"), "0");

    let reply = daemon.prefer("strict", r#"[{"type":"a"},{"type":"b"}]"#).await;
    assert_eq!((reply.status, reply.applied()), (200, Some("handling=strict")));
    let reply = daemon.prefer("strict", "[]").await;
    assert_eq!((reply.status, reply.applied()), (200, Some("handling=strict")));
    let reply = daemon.prefer("strict", "{").await;
    reply.problem(400);
    assert_eq!(reply.applied(), Some("handling=strict"));
}

#[actix::test]
async fn a_strict_request_of_which_the_queue_stored_a_part_is_not_said_to_be_one() {
    let daemon = Daemon::start(Queue::FindsTooLarge(&[1]), HttpConfig::default());
    let reply = daemon.prefer("strict", r#"[{"type":"a","event_id":"1"},{"type":"b"}]"#).await;
    assert_eq!((reply.status, reply.applied(), &reply.json()["ids"]), (207, None, &json!(["1"])));
    assert_eq!(reply.errors(), errors(&[(1, "too_large")]));
    // Where nothing was stored it holds.
    *daemon.queue.lock().unwrap() = Queue::FindsTooLarge(&[0]);
    let reply = daemon.prefer("strict", r#"{"type":"a"}"#).await;
    assert_eq!(
        (reply.status, reply.applied(), reply.errors()),
        (400, Some("handling=strict"), errors(&[(0, "too_large")]))
    );
}

#[actix::test]
async fn each_event_of_a_lenient_request_has_its_own_result() {
    let daemon = Daemon::start(Queue::GoesAway, HttpConfig::default());
    let reply = daemon.prefer("lenient", MIXED).await;
    let json = reply.json();
    assert_eq!((reply.status, reply.applied()), (207, Some("handling=lenient")));
    assert_eq!((&json["accepted"], &json["rejected"], &json["ids"]), (&json!(1), &json!(1), &json!(["1"])));
    assert_eq!(reply.errors(), errors(&[WRONG, (2, "unavailable")]));
    assert!(json["errors"][0].get("retry").is_none());
    assert_eq!(json["errors"][1]["retry"], true);
    let message = json["errors"][1]["message"].as_str().unwrap();
    assert!(message.contains("no broker answers") && message.contains("twice"), "{message}");
    assert_eq!(reply.header("retry-after"), Some("5"));
    assert_eq!(daemon.metric("ingestd_events_accepted_total"), "1");
    assert_eq!(daemon.metric("ingestd_events_produced_unanswered_total"), "0");
    assert_eq!(daemon.metric("ingestd_events_rejected_total{reason=\"missing_type\"}"), "1");

    // Where nothing is durable it is 503 for the whole.
    *daemon.queue.lock().unwrap() = Queue::Refuses;
    let reply = daemon.prefer("lenient", MIXED).await;
    assert!(reply.problem(503).contains("nothing of this request was stored"));
    assert_eq!(reply.applied(), Some("handling=lenient"));
    *daemon.queue.lock().unwrap() = Queue::Stores;
    let reply = daemon.prefer("lenient", MIXED).await;
    assert_eq!((reply.status, reply.errors(), reply.header("retry-after")), (207, errors(&[WRONG]), None));
}

#[actix::test]
async fn what_is_durable_when_the_time_of_a_lenient_request_is_over_is_accepted() {
    let http = HttpConfig { request_timeout: Duration::from_millis(200), ..HttpConfig::default() };
    let daemon = Daemon::start(Queue::StoresOneAndWaits, http);
    let body = r#"[{"type":"a","event_id":"1"},{"type":"b"},{"type":"c"}]"#;
    let reply = daemon.prefer("lenient", body).await;
    assert_eq!((reply.status, &reply.json()["ids"]), (207, &json!(["1"])));
    assert_eq!(reply.errors(), errors(&[(1, "unavailable"), (2, "unavailable")]));
    assert!(reply.json()["errors"][0]["message"].as_str().unwrap().contains("http.request_timeout"));
    assert_eq!(daemon.metric("ingestd_events_accepted_total"), "1");
    let late = daemon.log.lock().unwrap().waiting.pop().unwrap();
    late.ticket.durable(1..2);
    late.ticket.unavailable(2..3, "given up");
    assert_eq!(daemon.metric("ingestd_events_produced_unanswered_total"), "1", "the first one was answered");

    *daemon.queue.lock().unwrap() = Queue::Waits;
    assert!(daemon.prefer("lenient", body).await.problem(503).contains("not known"));
    *daemon.queue.lock().unwrap() = Queue::StoresOneAndWaits;
    assert!(daemon.post_json(body).await.problem(503).contains("not known"), "without the preference as before");
}

#[actix::test]
async fn refusals_say_which_preference_they_were_made_by() {
    let daemon = Daemon::start(Queue::Stores, HttpConfig::default());
    let full = daemon.health.gate.reason(Closed::DiskFull);
    full.set("71 % used".to_owned());
    for (handling, applied) in [("lenient", Some("handling=lenient")), ("strict", Some("handling=strict")), ("x", None)]
    {
        let reply = daemon.prefer(handling, r#"{"type":"a"}"#).await;
        reply.problem(503);
        assert_eq!(reply.applied(), applied);
    }
    drop(full);
    assert_eq!(daemon.post_json(r#"{"type":"a"}"#).await.applied(), None);
    assert_eq!(daemon.prefer("perhaps", MIXED).await.status, 207, "an unknown value changes nothing");
}

#[actix::test]
async fn what_is_wrong_is_kept_and_the_answer_is_200() {
    let daemon = Daemon::start(Queue::Stores, HttpConfig::default());
    daemon.quarantine(Letters::Kept);
    let reply = daemon.post_json(MIXED).await;
    let json = reply.json();
    assert_eq!((reply.status, reply.errors(), &json["ids"]), (200, errors(&[WRONG]), &json!(["1", "2"])));
    let counts = (&json["accepted"], &json["rejected"], &json["quarantined"]);
    assert_eq!(counts, (&json!(2), &json!(0), &json!(1)));
    assert!(json["errors"][0]["message"].as_str().unwrap().contains("missing"));
    let kept = |reason: &str, value: &str| (reason.to_owned(), value.to_owned());
    assert_eq!(daemon.letters(), [kept("missing_type", r#"{"no":1}"#)]);
    assert_eq!(daemon.log.lock().unwrap().records.len(), 2);
    assert_eq!(daemon.metric("ingestd_events_quarantined_total{reason=\"missing_type\"}"), "1");
    assert_eq!(daemon.metric("ingestd_events_rejected_total{reason=\"missing_type\"}"), "absent");

    // All of them, and bodies that cannot be split.
    for (body, code) in
        [("[7]", "not_an_object"), ("{\"type\":", "invalid_json"), ("17", "not_an_object"), (" ", "invalid_json")]
    {
        let reply = daemon.post_json(body).await;
        let json = reply.json();
        assert_eq!(
            (reply.status, reply.errors(), &json["quarantined"]),
            (200, errors(&[(0, code)]), &json!(1)),
            "{body}"
        );
        let value = if body == "[7]" { "7" } else { body };
        assert_eq!(daemon.letters().last(), Some(&kept(code, value)));
    }
    let letters = daemon.letters().len();
    // What does not concern the content is as ever.
    daemon.post("text/plain", "x").await.problem(415);
    daemon.change_limits(|http| http.max_events = 1);
    daemon.post_json(MIXED).await.problem(413);
    assert_eq!(daemon.post_json(r#"{"type":"a"}"#).await.json().get("quarantined"), None);
    assert_eq!(daemon.letters().len(), letters);
    daemon.log.lock().unwrap().letters.clear();
    until(|| daemon.metric("ingestd_in_flight_bytes") == "0").await;
}

#[actix::test]
async fn a_letter_of_a_source_has_what_is_fixed_and_what_could_be_found_beside_it() {
    let daemon = Daemon::start(Queue::Stores, HttpConfig::default());
    daemon.quarantine(Letters::Kept);
    daemon.change_limits(|http| {
        let source = json!([{ "path": "/hook", "type": { "fixed": "alert" }, "client": "/who", "answer": "ok" }]);
        http.source = serde_json::from_value(source).unwrap();
    });
    for (body, value, headers) in [
        (r#"{"who":"w","a":1,"a":2}"#, r#"{"who":"w","a":1,"a":2}"#, &["ce_source=w", "ce_type=alert"][..]),
        (r#" {"who":"w","a":NaN}"#, r#"{"who":"w","a":NaN}"#, &["ce_source=w", "ce_type=alert"]),
        ("data=*", "data=*", &["ce_type=alert"]),
    ] {
        let reply = daemon.post_at("/hook", "", body.as_bytes()).await;
        assert_eq!((reply.status, &*reply.body), (200, "ok"), "{body}");
        assert_eq!(daemon.letters().last().unwrap(), &("invalid_json".to_owned(), value.to_owned()));
        let log = daemon.log.lock().unwrap();
        let letter = log.letters.last().unwrap();
        let found = letter
            .headers
            .iter()
            .map(|(name, value)| format!("{name}={}", String::from_utf8_lossy(value.as_deref().unwrap_or_default())));
        assert_eq!(found.collect::<Vec<_>>(), headers, "{body}");
    }
    let strict = daemon.post_at("/hook", "Prefer: handling=strict\r\n", br#"{"who":NaN}"#).await;
    strict.problem(400);
    assert_eq!(daemon.letters().len(), 3);
}

#[actix::test]
async fn a_letter_that_is_not_kept_is_503_and_none_of_the_events_is_stored() {
    let daemon = Daemon::start(Queue::Stores, HttpConfig::default());
    daemon.quarantine(Letters::Refused);
    let reply = daemon.post_json(MIXED).await;
    let detail = reply.problem(503);
    assert!(detail.contains("the disk is full") && detail.contains("event.on_invalid"), "{detail}");
    assert!(reply.header("retry-after").is_some());
    assert!(daemon.log.lock().unwrap().records.is_empty());
    assert_eq!(daemon.post_json(r#"{"type":"a"}"#).await.status, 200, "without a wrong event nothing is to be kept");
}

#[actix::test]
async fn letters_stand_when_the_events_beside_them_fail_and_the_answer_says_so() {
    let daemon = Daemon::start(Queue::Refuses, HttpConfig::default());
    daemon.quarantine(Letters::Kept);
    let detail = daemon.post_json(MIXED).await.problem(503);
    assert!(detail.contains("the log is full") && detail.contains("1 dead letter(s) are kept already"), "{detail}");
    assert_eq!(daemon.letters().len(), 1);
    // Each by itself: only the events are to be sent again.
    let reply = daemon.prefer("lenient", MIXED).await;
    let json = reply.json();
    assert_eq!(
        (reply.status, &json["accepted"], &json["rejected"], &json["quarantined"]),
        (207, &json!(0), &json!(0), &json!(1))
    );
    assert_eq!(reply.errors(), errors(&[(0, "unavailable"), WRONG, (2, "unavailable")]));
    assert!(json["errors"][0]["message"].as_str().unwrap().contains("it was not stored"));
}

#[actix::test]
async fn a_strict_request_is_stored_nowhere_not_in_quarantine_either() {
    let daemon = Daemon::start(Queue::Stores, HttpConfig::default());
    daemon.quarantine(Letters::Kept);
    let reply = daemon.prefer("strict", MIXED).await;
    assert_eq!((reply.status, reply.json()["rejected"].clone()), (400, json!(1)));
    daemon.prefer("strict", "{broken").await.problem(400);
    assert!(daemon.letters().is_empty() && daemon.log.lock().unwrap().records.is_empty());
}

#[actix::test]
async fn what_is_larger_than_a_letter_may_be_is_rejected_and_says_so() {
    let daemon = Daemon::start(Queue::Stores, HttpConfig::default());
    daemon.quarantine(Letters::TooLarge(&[1]));
    let reply = daemon.post_json(r#"[{"no":1},{"no":2}]"#).await;
    let json = reply.json();
    assert_eq!((reply.status, &json["rejected"], &json["quarantined"]), (207, &json!(1), &json!(1)));
    let message = |index: usize| json["errors"][index]["message"].as_str().unwrap();
    assert!(!message(0).contains("not quarantined") && message(1).contains("not quarantined"), "{json}");
    assert_eq!(daemon.metric("ingestd_events_rejected_total{reason=\"missing_type\"}"), "1");
    daemon.quarantine(Letters::TooLarge(&[0]));
    let reply = daemon.post_json("{broken").await;
    assert_eq!((reply.status, reply.json()["rejected"].clone()), (400, json!(1)));
}

impl Daemon {
    /// The headers of the last letter.
    fn beside_letter(&self) -> Vec<(String, String)> {
        let log = self.log.lock().unwrap();
        let headers = log.letters.last().unwrap().headers.iter();
        headers.map(|(name, value)| (name.clone(), String::from_utf8(value.clone().unwrap()).unwrap())).collect()
    }

    /// From now on it may be a broker that finds events too large.
    fn on_kafka(&self) {
        let mut config = Config::clone(&self.config.load());
        config.queue.kind = QueueKind::Kafka;
        self.config.store(Arc::new(config));
    }
}

#[actix::test]
async fn what_stands_beside_a_wrong_event_is_kept_with_it() {
    const BINARY: &str = "ce-specversion: 1.0\r\nce-type: t\r\nce-id: 1\r\nce-source: /s\r\n";
    const JSON: &str = "Content-Type: application/json\r\n";
    let attributes = [("ce_id", "1"), ("ce_source", "/s"), ("ce_specversion", "1.0"), ("ce_type", "t")];
    let json = ("content-type", "application/json");
    let structured = ("content-type", "application/cloudevents+json");
    let batch = ("content-type", "application/cloudevents-batch+json");
    let daemon = Daemon::start(Queue::Stores, HttpConfig::default());
    daemon.quarantine(Letters::Kept);
    for (fields, body, code, beside) in [
        (format!("{BINARY}{JSON}"), r#"{"a":1,"a":2}"#, "invalid_json", [&attributes[..], &[json]].concat()),
        (
            format!("{BINARY}ce-my_ext: x\r\n"),
            "{}",
            "invalid_cloudevent",
            [&attributes[..], &[("ingestd-wrong", "ce-my_ext")]].concat(),
        ),
        (
            "Content-Type: application/cloudevents+json; charset=utf-8\r\n".to_owned(),
            r#"{"specversion":"1.0","data":NaN}"#,
            "invalid_json",
            vec![structured],
        ),
        ("Content-Type: application/cloudevents-batch+json\r\n".to_owned(), "[{", "invalid_json", vec![batch]),
        (JSON.to_owned(), "{", "invalid_json", vec![]),
    ] {
        let reply = daemon.post_at("/v1/events", &fields, body.as_bytes()).await;
        assert_eq!((reply.status, reply.errors()), (200, errors(&[(0, code)])), "{body}");
        assert_eq!(daemon.letters().last(), Some(&(code.to_owned(), body.to_owned())));
        let beside: Vec<_> = beside.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        assert_eq!(daemon.beside_letter(), beside, "{body}");
    }
}

#[actix::test]
async fn an_id_of_another_shape_that_is_wrong_is_named_beside_its_letter() {
    let daemon = Daemon::start(Queue::Stores, other_shapes());
    daemon.quarantine(Letters::Kept);
    let reply = daemon.post_at("/hook", "", br#"{"batch":[{"kind":"a","id":"","who":7}]}"#).await;
    assert_eq!((reply.status, reply.errors()), (200, errors(&[(0, "invalid_id")])));
    let beside = daemon.beside_letter();
    assert!(beside.contains(&("ingestd-wrong".to_owned(), "ce_id".to_owned())), "{beside:?}");
    assert!(beside.contains(&("ce_type".to_owned(), "a".to_owned())), "{beside:?}");
}

#[actix::test]
async fn what_a_broker_finds_too_large_is_a_letter_too_or_says_why_it_is_none() {
    let daemon = Daemon::start(Queue::FindsTooLarge(&[1]), HttpConfig::default());
    daemon.on_kafka();
    let body = r#"[{"type":"a","event_id":"1"},{"no":1},{"type":"b","timestamp":-1},{"type":"c","event_id":"3"}]"#;
    let kept = |reason: &str, value: &str| (reason.to_owned(), value.to_owned());
    daemon.quarantine(Letters::Kept);
    let reply = daemon.post_json(body).await;
    let json = reply.json();
    assert_eq!((reply.status, &json["rejected"], &json["quarantined"]), (200, &json!(0), &json!(2)), "{json}");
    assert_eq!((&json["ids"], reply.errors()), (&json!(["1", "3"]), errors(&[(1, "missing_type"), (2, "too_large")])));
    let letters = [kept("missing_type", r#"{"no":1}"#), kept("too_large", r#"{"type":"b","timestamp":-1}"#)];
    assert_eq!(daemon.letters(), letters);
    // It is not stored, so nothing is said of its time.
    assert_eq!(json.get("warnings"), None);
    assert_eq!(daemon.metric("ingestd_events_warned_total{reason=\"invalid_timestamp\"}"), "absent");
    for code in ["missing_type", "too_large"] {
        assert_eq!(daemon.metric(&format!("ingestd_events_quarantined_total{{reason=\"{code}\"}}")), "1");
    }

    for (letters, words) in [(Letters::TooLarge(&[0]), "than a dead letter may be"), (Letters::Refused, "be written")] {
        daemon.quarantine(letters);
        let reply = daemon.post_json(r#"[{"type":"a","event_id":"1"},{"type":"b"}]"#).await;
        let json = reply.json();
        assert_eq!((reply.status, &json["ids"], &json["rejected"]), (207, &json!(["1"]), &json!(1)), "{json}");
        assert!(json["errors"][0]["message"].as_str().unwrap().contains(words), "{json}");
    }
    assert_eq!(daemon.letters().len(), 2);
    daemon.log.lock().unwrap().letters.clear();
    until(|| daemon.metric("ingestd_in_flight_bytes") == "0").await;
}

#[actix::test]
async fn letters_of_a_request_that_is_alone_may_exceed_what_all_may_hold() {
    let limit = ByteSize(1 << 20);
    let http = HttpConfig { max_body: limit, max_in_flight: limit, ..HttpConfig::default() };
    let daemon = Daemon::start(Queue::Stores, http);
    daemon.quarantine(Letters::Kept);
    let wrong = format!("{{\"no\":\"{}\"}}", "x".repeat(700));
    let body = format!("[{}]", vec![wrong; 1000].join(","));
    let reply = daemon.post_json(&body).await;
    assert_eq!((reply.status, &reply.json()["quarantined"]), (200, &json!(1000)));
    daemon.log.lock().unwrap().letters.clear();
    until(|| daemon.metric("ingestd_in_flight_bytes") == "0").await;
}

#[actix::test]
async fn stopping_finishes_what_is_in_flight_and_takes_no_more() {
    let daemon = Arc::new(Daemon::start(Queue::Waits, HttpConfig::default()));
    let in_flight = actix_rt::spawn({
        let daemon = daemon.clone();
        async move { daemon.post_json(r#"{"type":"a"}"#).await }
    });
    until(|| !daemon.log.lock().unwrap().waiting.is_empty()).await;
    let draining = daemon.health.gate.reason(Closed::Draining);
    draining.set("stopping".to_owned());
    let stopped = actix_rt::spawn(daemon.ingestor.send(StopAccepting));
    let publish = daemon.log.lock().unwrap().waiting.pop().unwrap();
    *daemon.queue.lock().unwrap() = Queue::Stores;
    publish.ticket.durable(0..1);
    drop(publish);
    assert_eq!(in_flight.await.unwrap().status, 200);
    stopped.await.unwrap().unwrap();
    assert!(TcpStream::connect(daemon.address).is_err());
}

#[test]
fn a_taken_port_is_one_sentence_that_names_the_key() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = taken.local_addr().unwrap().to_string();
    let error = bind(&HttpConfig { listen: listen.clone(), ..HttpConfig::default() }).unwrap_err();
    let message = format!("{error:#}");
    assert!(message.contains("http.listen") && message.contains(&listen) && !message.contains('\n'), "{message}");
}
