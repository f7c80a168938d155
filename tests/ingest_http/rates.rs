//! Rates (`http.rate`, and `rate` of a key) and trusted proxies: who is limited, how, and by whose word.

use std::net::{IpAddr, Ipv4Addr};

use rustix::net::{AddressFamily, SocketType, bind as bind_to, connect, socket};
use sha2::{Digest, Sha256};

use super::*;

pub const SHOP: &str = "ingestd_shop-key";
const FREE: &str = "ingestd_free-key";
pub const PLAIN: &str = "ingestd_plain-key";
const FOR: &str = "X-Forwarded-For";

/// With sources of other tests, and this rate of addresses.
fn with(rate: &str, proxies: &[&str]) -> HttpConfig {
    let mut http = HttpConfig { max_events: 1000, ..other_shapes() };
    http.rate = serde_json::from_value(json!(rate)).unwrap();
    http.trusted_proxies = serde_json::from_value(json!(proxies)).unwrap();
    http
}

fn keys(rate: &str) -> Value {
    let hash = |key: &str| format!("sha256:{}", hex::encode(Sha256::digest(key)));
    json!([
        { "name": "shop", "hash": hash(SHOP), "rate": rate },
        { "name": "free", "hash": hash(FREE), "rate": "none" },
        { "name": "plain", "hash": hash(PLAIN) },
    ])
}

pub fn with_keys(rate: &str, of_shop: &str) -> HttpConfig {
    let mut http = with(rate, &[]);
    http.auth.keys = serde_json::from_value(keys(of_shop)).unwrap();
    http
}

pub fn key(key: &str) -> String {
    format!("X-Api-Key: {key}\r\n")
}

pub fn events(count: usize) -> Vec<u8> {
    format!("[{}]", vec![r#"{"type":"a"}"#; count].join(",")).into_bytes()
}

impl Daemon {
    async fn post_events(&self, fields: &str, count: usize) -> Reply {
        self.post_at("/v1/events", fields, &events(count)).await
    }

    /// The same from another address of this machine, with bytes before the request.
    async fn post_from(&self, from: [u8; 4], before: &[u8], fields: &str, count: usize) -> Reply {
        let (address, body) = (self.address, events(count));
        let head = format!(
            "POST /v1/events HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{fields}Content-Length: {}\r\n\r\n",
            body.len()
        );
        let request = [before, head.as_bytes(), &body].concat();
        tokio::task::spawn_blocking(move || exchange_from(from, address, &request)).await.unwrap()
    }

    fn stored(&self) -> usize {
        self.log.lock().unwrap().records.len()
    }
}

/// An answer to what is sent from this address.
fn exchange_from(from: [u8; 4], to: SocketAddr, request: &[u8]) -> Reply {
    let socket = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    bind_to(&socket, &SocketAddr::new(IpAddr::V4(Ipv4Addr::from(from)), 0)).unwrap();
    connect(&socket, &to).unwrap();
    exchange_on(TcpStream::from(socket), request)
}

/// Both fields of an answer.
fn fields(reply: &Reply) -> (Option<&str>, Option<&str>) {
    (reply.header("ratelimit-policy"), reply.header("ratelimit"))
}

// One event a minute: what a test waits for brings nothing.
#[actix::test]
async fn a_burst_is_taken_and_what_is_beyond_it_is_429_with_its_fields_and_stores_nothing() {
    let daemon = Daemon::start(Queue::Stores, with("1/m burst 20", &[]));
    let taken = daemon.post_events("", 15).await;
    assert_eq!((taken.status, fields(&taken)), (200, (Some("\"address\";q=20;w=1200"), Some("\"address\";r=5;t=900"))));
    let refused = daemon.post_events("", 8).await;
    let seconds = refused.header("retry-after").unwrap().to_owned();
    let wait: u64 = seconds.parse().unwrap();
    assert!((170..=180).contains(&wait), "{wait}");
    assert_eq!(
        refused.problem(429),
        format!(
            "the rate of your address (http.rate) is used up (1/m burst 20, 5 events may come now): nothing of this request was \
             stored, send it again in {seconds} s"
        )
    );
    assert_eq!(fields(&refused), (Some("\"address\";q=20;w=1200"), Some(&*format!("\"address\";r=5;t={seconds}"))));
    // What is refused takes nothing, and what is wrong counts.
    let rest = daemon.post_at("/v1/events", "", br#"[{"type":"a"},{},7,{"type":"a"},{"type":"a"}]"#).await;
    assert_eq!((rest.status, fields(&rest).1), (207, Some("\"address\";r=0;t=1200")));
    assert_eq!(daemon.stored(), 18);
    for (path, more) in [("/v1/events", ""), ("/hook", ""), ("/v1/logs", "Content-Type: application/json\r\n")] {
        // Nothing of it is read, nor sent where the client asks first.
        for expect in ["", "Expect: 100-continue\r\n"] {
            let head = format!("POST {path} HTTP/1.1\r\nHost: x\r\n{more}{expect}Content-Length: 3000\r\n\r\n");
            let reply = daemon.send(head).await;
            assert_eq!((reply.status, reply.header("connection")), (429, Some("close")), "{path}: {}", reply.head);
            let seconds = reply.header("retry-after").unwrap();
            assert!((1..=60).contains(&seconds.parse::<u64>().unwrap()), "{seconds}");
            let left = format!("\"address\";r=0;t={seconds}");
            assert_eq!(fields(&reply), (Some("\"address\";q=20;w=1200"), Some(&*left)), "{path}");
            let is_logs = path == "/v1/logs";
            assert_eq!(reply.json()["code"], if is_logs { json!(14) } else { json!(null) }, "{}", reply.body);
        }
    }
    assert_eq!(daemon.stored(), 18);
    assert_eq!(daemon.get("GET /openapi.json").await.status, 200, "events alone have a rate");
    assert_eq!(daemon.metric("ingestd_rate_limited_total{by=\"address\"}"), "7");
    assert_eq!(daemon.metric("ingestd_rate_limited_events_total{by=\"address\"}"), "14");
    assert_eq!(daemon.metric("ingestd_rate_tracked_addresses"), "1");
    assert_eq!(daemon.metric("ingestd_requests_total{status=\"429\"}"), "7");
    until(|| daemon.metric("ingestd_in_flight_bytes") == "0").await;
}

#[actix::test]
async fn more_events_than_a_burst_are_told_to_come_in_smaller_requests() {
    let daemon = Daemon::start(Queue::Stores, with_keys("1/m burst 20", "1/m burst 5"));
    for (by, count, burst) in [(PLAIN, 21, "20"), (SHOP, 9, "5")] {
        let reply = daemon.post_events(&key(by), count).await;
        assert_eq!((reply.status, reply.header("retry-after")), (413, None));
        assert!(fields(&reply).0.unwrap().contains(&format!("q={burst};")), "{}", reply.head);
    }
    // Such requests cost an event, so that they are bounded, too.
    assert!(fields(&daemon.post_events(&key(SHOP), 1).await).1.unwrap().starts_with("\"key\";r=3;"));
    assert_eq!(daemon.stored(), 1);
    let logs = format!("{}Content-Type: application/json\r\n", key(SHOP));
    let records = [r#"{"eventName":"a"}"#; 6].join(",");
    let body = format!(r#"{{"resourceLogs":[{{"scopeLogs":[{{"logRecords":[{records}]}}]}}]}}"#);
    let reply = daemon.post_at("/v1/logs", &logs, body.as_bytes()).await;
    assert_eq!((reply.status, &reply.json()["code"]), (413, &json!(3)), "{}", reply.body);
}

#[actix::test]
async fn a_key_with_a_rate_has_that_alone_and_others_have_that_of_their_address() {
    let daemon = Daemon::start(Queue::Stores, with_keys("1/m burst 10", "1/m burst 30"));
    // The key's own, whatever becomes of the address.
    let first = daemon.post_events(&key(SHOP), 25).await;
    assert_eq!((first.status, fields(&first)), (200, (Some("\"key\";q=30;w=1800"), Some("\"key\";r=5;t=1500"))));
    assert_eq!(daemon.post_events(&key(PLAIN), 10).await.status, 200);
    let refused = daemon.post_events(&key(PLAIN), 1).await;
    assert!(refused.problem(429).starts_with("the rate of your address (http.rate) is used up"));
    assert_eq!(daemon.post_events(&key(SHOP), 5).await.status, 200);
    let refused = daemon.post_events(&key(SHOP), 1).await;
    assert!(refused.problem(429).starts_with("the rate of the key \"shop\" (rate in http.auth.keys) is used up"));
    // "none" is no limit.
    for _ in 0..3 {
        let reply = daemon.post_events(&key(FREE), 200).await;
        assert_eq!((reply.status, fields(&reply)), (200, (None, None)));
    }
    assert_eq!(daemon.post_from([127, 0, 0, 2], b"", &key(PLAIN), 10).await.status, 200, "another address");
    assert_eq!(daemon.post_from([127, 0, 0, 2], b"", &key(SHOP), 1).await.status, 429, "the key is the same there");
    assert_eq!(daemon.metric("ingestd_rate_limited_total{by=\"key\"}"), "2");
}

#[actix::test]
async fn guesses_cost_an_event_each_and_end_at_the_rate() {
    let daemon = Daemon::start(Queue::Stores, with_keys("1/m burst 10", "1/m burst 30"));
    let mut statuses = Vec::new();
    for index in 0..15 {
        let expect = if index % 2 == 0 { "Expect: 100-continue\r\n" } else { "" };
        let wrong = format!("{}{expect}Content-Length: 2\r\n", key(&format!("ingestd_{index}")));
        let reply = daemon.send(format!("POST /v1/events HTTP/1.1\r\nHost: x\r\n{wrong}\r\n")).await;
        assert!(fields(&reply).1.unwrap().starts_with("\"address\";r="), "{}", reply.head);
        statuses.push(reply.status);
    }
    assert_eq!(statuses, [vec![401; 10], vec![429; 5]].concat());
    // Who has a key with a rate of its own is not held up by whoever guesses beside it.
    assert_eq!(daemon.post_events(&key(SHOP), 1).await.status, 200);
    // What is refused for other reasons costs as much.
    let wrong = "Content-Type: text/html\r\n";
    let reply = daemon.post_from([127, 0, 0, 3], b"", &format!("{}{wrong}", key(PLAIN)), 1).await;
    assert_eq!((reply.status, fields(&reply).1), (415, Some("\"address\";r=9;t=60")));
    // What is refused for ours costs nothing.
    let closed = daemon.health.gate.reason(Closed::DiskFull);
    closed.set("it is".to_owned());
    let reply = daemon.post_from([127, 0, 0, 4], b"", &key(PLAIN), 1).await;
    assert_eq!((reply.status, fields(&reply).1), (503, Some("\"address\";r=10;t=0")));
}

/// With `/batch`, whose key stands in the body.
fn with_key_in_body(rate: &str, keys: Value) -> HttpConfig {
    let mut http = with(rate, &[]);
    http.source =
        serde_json::from_value(json!([{ "path": "/batch", "records": "/batch", "type": "/event", "key": "/api_key" }]))
            .unwrap();
    http.auth.keys = serde_json::from_value(keys).unwrap();
    HttpConfig { max_body: ByteSize(10_000), ..http }
}

/// Whatever is wrong before the key is known, its address pays for.
#[actix::test]
async fn a_path_whose_key_stands_in_the_body_is_no_way_around_the_rate_of_an_address() {
    let mut without_rates = keys("1/m");
    without_rates.as_array_mut().unwrap().iter_mut().for_each(|key| _ = key.as_object_mut().unwrap().remove("rate"));
    let gzip = "Content-Encoding: gzip\r\n";
    let large = vec![b' '; 10_001];
    let twice = coding::gzip(&coding::gzip(b"{}"));
    let wrong: [(&str, &[u8], u16); 8] = [
        ("Content-Encoding: rot13\r\n", b"{}", 415),
        ("Content-Type: application/json; charset=latin1\r\n", b"{}", 415),
        ("", &large, 413),
        (gzip, b"no gzip", 400),
        ("", b"\x1f\x8bno gzip", 400),
        ("", b"data=no-base64*", 400),
        ("", &twice, 400),
        ("", b"{}", 401),
    ];
    let daemon = Daemon::start(Queue::Stores, with_key_in_body("1/m burst 8", without_rates));
    for (at, (fields, body, status)) in wrong.into_iter().enumerate() {
        let reply = daemon.post_at("/batch", fields, body).await;
        assert_eq!(reply.status, status, "{at}: {}", reply.body);
        let left = format!("\"address\";r={};", 7 - at);
        assert!(reply.header("ratelimit").unwrap().starts_with(&left), "{at}: {}", reply.head);
    }
    // Where nobody has a rate of its own the head says enough.
    for expect in ["", "Expect: 100-continue\r\n"] {
        let head = format!("POST /batch HTTP/1.1\r\nHost: x\r\n{expect}Content-Length: 3000\r\n\r\n");
        assert_eq!(daemon.send(head).await.status, 429, "{expect}");
    }
    assert_eq!(daemon.metric("ingestd_rate_limited_total{by=\"address\"}"), "2");
    // And where one has, its requests are taken, and no other.
    daemon.change_limits(|http| http.auth.keys = serde_json::from_value(keys("1/m burst 2")).unwrap());
    let body = |key: &str| format!(r#"{{"api_key":"{key}","batch":[{{"event":"a"}}]}}"#);
    for (key, status, left) in [
        (SHOP, 200, Some("\"key\";r=1;")),
        (FREE, 200, None),
        (PLAIN, 429, Some("\"address\";r=0;")),
        ("ingestd_wrong", 429, Some("\"address\";r=0;")),
    ] {
        let reply = daemon.post_at("/batch", "", body(key).as_bytes()).await;
        let found = fields(&reply).1.and_then(|found| found.split_inclusive("t=").next()?.strip_suffix("t="));
        assert_eq!((reply.status, found), (status, left), "{key}: {}", reply.body);
    }
    assert_eq!(daemon.stored(), 2);
    until(|| daemon.metric("ingestd_in_flight_bytes") == "0").await;
}

#[actix::test]
async fn who_comes_again_too_early_does_not_wait_for_longer() {
    let daemon = Daemon::start(Queue::Stores, with("1/m burst 5", &[]));
    assert_eq!(daemon.post_events("", 2).await.status, 200);
    for _ in 0..5 {
        let reply = daemon.post_events("", 4).await;
        assert_eq!(reply.status, 429);
        assert!(fields(&reply).1.unwrap().contains("r=3;"), "{}", reply.head);
    }
    assert_eq!(daemon.post_events("", 3).await.status, 200);
    // Where nothing is left it is said by the head.
    let head = "POST /v1/events HTTP/1.1\r\nHost: x\r\nContent-Length: 3000\r\n\r\n";
    assert_eq!(daemon.send(head.to_owned()).await.status, 429);
}

/// What the daemon cannot store is not the sender's to pay.
#[actix::test]
async fn events_of_which_nothing_is_stored_for_our_reasons_are_given_back() {
    let daemon = Daemon::start(Queue::Refuses, with("1/m burst 20", &[]));
    let left = async |fields: &str, body: &[u8]| {
        let reply = daemon.post_at("/v1/events", fields, body).await;
        (reply.status, reply.header("ratelimit").unwrap().to_owned())
    };
    let full = "\"address\";r=20;t=0".to_owned();
    assert_eq!(left("", &events(15)).await, (503, full.clone()));
    assert_eq!(left("Prefer: handling=lenient\r\n", &events(20)).await, (503, full.clone()));
    daemon.quarantine(Letters::Refused);
    assert_eq!(left("", b"[{},{}]").await, (503, full.clone()));
    // What may be stored is paid for, and so are letters that are.
    *daemon.queue.lock().unwrap() = Queue::GoesAway;
    assert_eq!(left("", &events(5)).await, (503, "\"address\";r=15;t=300".to_owned()));
    daemon.quarantine(Letters::Kept);
    *daemon.queue.lock().unwrap() = Queue::Refuses;
    assert_eq!(left("", br#"[{},{"type":"a"}]"#).await, (503, "\"address\";r=13;t=420".to_owned()));
}

#[actix::test]
async fn only_a_trusted_proxy_is_believed_whom_a_request_comes_from() {
    let daemon = Daemon::start(Queue::Stores, with("1/m burst 10", &["127.0.0.9", "10.0.0.0/8"]));
    let (stranger, proxy) = ([127, 0, 0, 1], [127, 0, 0, 9]);
    let left = |reply: &Reply| reply.header("ratelimit").unwrap().split(';').nth(1).unwrap().to_owned();
    for (from, said, expected) in [
        (stranger, format!("{FOR}: 198.51.100.1\r\n"), "r=9"),
        (stranger, format!("{FOR}: 198.51.100.2\r\nForwarded: for=198.51.100.2\r\nX-Real-IP: 198.51.100.2\r\n"), "r=8"),
        (proxy, format!("{FOR}: 198.51.100.1\r\n"), "r=9"),
        (proxy, format!("{FOR}: 1.1.1.1, 198.51.100.1, 10.1.2.3\r\n"), "r=8"),
        (proxy, "Forwarded: for=198.51.100.1;proto=https\r\n".to_owned(), "r=7"),
        (proxy, "Forwarded: for=\"[2001:db8::1]:4711\"\r\n".to_owned(), "r=9"),
        (proxy, format!("{FOR}: 2001:db8::ffff\r\n"), "r=8"),
        (proxy, format!("{FOR}: 2001:db8:0:1::1\r\n"), "r=9"),
        (proxy, String::new(), "r=9"),
        (proxy, format!("{FOR}: 198.51.100.1\r\nForwarded: for=198.51.100.9\r\n"), "r=8"),
        (proxy, format!("{FOR}: unknown\r\n"), "r=7"),
    ] {
        let reply = daemon.post_from(from, b"", &said, 1).await;
        assert_eq!((reply.status, &*left(&reply)), (200, expected), "{from:?} {said}");
    }
    // Withdrawn by a reload.
    daemon.change_limits(|http| http.trusted_proxies = serde_json::from_value(json!([])).unwrap());
    let reply = daemon.post_from(proxy, b"", &format!("{FOR}: 198.51.100.77\r\n"), 1).await;
    assert_eq!(left(&reply), "r=6");
}

const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// A PROXY header, version 2, of TCP over IPv4 with more behind its addresses.
fn proxy_header(command: u8, client: [u8; 4]) -> Vec<u8> {
    let rest = [&client[..], &[10, 0, 0, 1], &4711_u16.to_be_bytes(), &80_u16.to_be_bytes(), &[4, 0, 1, 0]].concat();
    [SIGNATURE, &[0x20 | command, 0x11], &(rest.len() as u16).to_be_bytes(), &rest].concat()
}

#[actix::test]
async fn a_proxy_header_of_a_trusted_proxy_says_whose_connection_it_is_and_any_other_is_refused() {
    const STRANGER: &str = "a PROXY protocol header is taken at the very beginning of a connection from one of http.trusted_proxies \
                            alone: add the proxy's address there, or have it send none";
    const VERSION: &str = "this is PROXY protocol version 1: have the proxy send version 2 (send-proxy-v2), and name it in \
                           http.trusted_proxies";
    let daemon = Daemon::start(Queue::Stores, with("1/m burst 10", &["127.0.0.9"]));
    let (stranger, proxy) = ([127, 0, 0, 1], [127, 0, 0, 9]);
    let client = [198, 51, 100, 1];
    for (before, fields, left) in [
        (proxy_header(1, client), "", "r=9"),
        (proxy_header(1, client), "X-Forwarded-For: 198.51.100.7\r\n", "r=8"),
        // Whom it names may be a proxy, too.
        (proxy_header(1, proxy), "X-Forwarded-For: 198.51.100.1\r\n", "r=7"),
        (proxy_header(0, client), "", "r=9"),
        (Vec::new(), "", "r=8"),
    ] {
        let reply = daemon.post_from(proxy, &before, fields, 1).await;
        assert_eq!(reply.status, 200, "{}", reply.body);
        assert!(reply.header("ratelimit").unwrap().contains(left), "{left}: {}", reply.head);
    }
    let too_long = [SIGNATURE, &[0x21, 0x11], &5000_u16.to_be_bytes(), &[0; 5000]].concat();
    let version_1 = b"PROXY TCP4 198.51.100.1 10.0.0.1 4711 80\r\n".to_vec();
    let twice = [proxy_header(1, client), proxy_header(1, client)].concat();
    let long = "the PROXY protocol header is longer than 4096 bytes: have the proxy add less to it";
    for (from, before, sentence, reason) in [
        (stranger, proxy_header(1, client), STRANGER, "stranger"),
        (stranger, version_1.clone(), VERSION, "version"),
        (proxy, version_1, VERSION, "version"),
        (proxy, twice, STRANGER, "stranger"),
        (proxy, too_long, long, "malformed"),
    ] {
        let metric = format!("ingestd_proxy_refusals_total{{reason=\"{reason}\"}}");
        let already = daemon.metric(&metric).parse().unwrap_or(0);
        let reply = daemon.post_from(from, &before, "", 1).await;
        assert_eq!(reply.problem(400), sentence);
        assert_eq!((reply.header("connection"), daemon.metric(&metric)), (Some("close"), (already + 1).to_string()));
    }
    assert_eq!(daemon.metric("ingestd_requests_total{status=\"400\"}"), "5");
    assert_eq!(daemon.stored(), 5);
}

#[actix::test]
async fn a_reload_leaves_the_buckets_of_rates_that_stay_and_begins_changed_ones_with_full_ones() {
    let daemon = Daemon::start(Queue::Stores, with_keys("1/m burst 10", "1/m burst 30"));
    let spend = async |by: &str, count| daemon.post_events(&key(by), count).await.status;
    assert_eq!((spend(PLAIN, 10).await, spend(SHOP, 30).await), (200, 200));
    // Something else is changed, keys of other names come and go.
    daemon.change_limits(|http| {
        http.max_events = 999;
        let mut more = keys("1/m burst 30");
        let another = json!({ "name": "new", "hash": format!("sha256:{}", "1".repeat(64)), "rate": "1/s" });
        more.as_array_mut().unwrap().insert(0, another);
        http.auth.keys = serde_json::from_value(more).unwrap();
    });
    assert_eq!((spend(PLAIN, 1).await, spend(SHOP, 1).await), (429, 429));
    daemon.change_limits(|http| http.auth.keys = serde_json::from_value(keys("1/m burst 40")).unwrap());
    assert_eq!((spend(PLAIN, 1).await, spend(SHOP, 40).await, spend(SHOP, 1).await), (429, 200, 429));
    daemon.change_limits(|http| http.rate = serde_json::from_value(json!("1/m burst 20")).unwrap());
    assert_eq!((spend(PLAIN, 20).await, spend(PLAIN, 1).await, spend(SHOP, 1).await), (200, 429, 429));
    daemon.change_limits(|http| http.rate = serde_json::from_value(json!("none")).unwrap());
    let reply = daemon.post_events(&key(PLAIN), 100).await;
    assert_eq!((reply.status, fields(&reply)), (200, (None, None)));
}
