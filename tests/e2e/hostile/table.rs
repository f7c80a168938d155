//! Requests that are hostile by their bytes alone, by name, with what each gets. `docs/hostile.md` lists them all.

/// What one connection sends, and what comes of it.
pub struct Case {
    pub name: &'static str,
    /// As `Outcome::summary` says it.
    pub gets: &'static str,
    pub sent: Vec<u8>,
    /// The events of it that are stored.
    pub stored: Vec<Vec<u8>>,
}

/// Stands in what is sent, and must not come back.
pub const MARK: &str = "mark-of-a-hostile-client";

pub fn event(name: &str) -> Vec<u8> {
    format!(r#"{{"type":"hostile","case":"{name}","x":"{MARK}"}}"#).into_bytes()
}

fn request(line: &str, fields: &str, body: &[u8]) -> Vec<u8> {
    [format!("{line} HTTP/1.1\r\nHost: x\r\n{fields}\r\n").as_bytes(), body].concat()
}

pub fn post(fields: &str, body: &[u8]) -> Vec<u8> {
    request("POST /v1/events", fields, body)
}

/// With its right length.
pub fn sized(fields: &str, body: &[u8]) -> Vec<u8> {
    post(&format!("{fields}Content-Length: {}\r\n", body.len()), body)
}

pub fn chunk(body: &[u8]) -> Vec<u8> {
    [format!("{:x}\r\n", body.len()).as_bytes(), body, b"\r\n"].concat()
}

pub fn chunked(body: &[u8]) -> Vec<u8> {
    [&chunk(body)[..], b"0\r\n\r\n"].concat()
}

pub const NDJSON: &str = "Content-Type: application/x-ndjson\r\n";
pub const CHUNKED: &str = "Transfer-Encoding: chunked\r\n";
const REFUSED: &str = "400, closed";

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let refused = |name: &'static str, gets: &'static str, sent: Vec<u8>| Case { name, gets, sent, stored: Vec::new() };
    let taken =
        |name: &'static str, gets: &'static str, sent: Vec<u8>| Case { name, gets, sent, stored: vec![event(name)] };

    // Where a request ends: two readers that disagree on it are how requests are smuggled.
    let one = |name: &str| (event(name).len(), event(name));
    for (name, fields) in [
        ("Content-Length and Transfer-Encoding", "Content-Length: {}\r\nTransfer-Encoding: chunked\r\n"),
        ("Transfer-Encoding and Content-Length", "Transfer-Encoding: chunked\r\nContent-Length: {}\r\n"),
        ("chunked in two lines", "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"),
        ("chunked, chunked", "Transfer-Encoding: chunked, chunked\r\n"),
        ("Transfer-Encoding: xchunked", "Transfer-Encoding: xchunked\r\n"),
        ("Transfer-Encoding: identity", "Transfer-Encoding: identity\r\n"),
        ("Transfer-Encoding: gzip, chunked", "Transfer-Encoding: gzip, chunked\r\n"),
        ("a vertical tab before chunked", "Transfer-Encoding: \u{b}chunked\r\n"),
        ("folded Transfer-Encoding", "Transfer-Encoding:\r\n chunked\r\n"),
    ] {
        let (length, event) = one(name);
        cases.push(refused(name, REFUSED, post(&fields.replace("{}", &length.to_string()), &chunked(&event))));
    }
    for (name, fields) in [
        ("two Content-Length", "Content-Length: {}\r\nContent-Length: 1\r\n"),
        ("the same Content-Length twice", "Content-Length: {}\r\nContent-Length: {}\r\n"),
        ("Content-Length as a list", "Content-Length: {}, {}\r\n"),
        ("Content-Length with a sign", "Content-Length: +{}\r\n"),
        ("negative Content-Length", "Content-Length: -1\r\n"),
        ("Content-Length beyond 64 bits", "Content-Length: 99999999999999999999999\r\n"),
        ("folded header line", "X: a\r\n b\r\nContent-Length: {}\r\n"),
        ("space before the colon", "Content-Length : {}\r\n"),
        ("bare CR in a header", "X: a\rY: b\r\nContent-Length: {}\r\n"),
        ("NUL in a header", "X: a\0b\r\nContent-Length: {}\r\n"),
        ("two Host fields", "Host: y\r\nContent-Length: {}\r\n"),
    ] {
        let (length, event) = one(name);
        cases.push(refused(name, REFUSED, post(&fields.replace("{}", &length.to_string()), &event)));
    }
    let name = "Content-Length shorter than the body";
    cases.push(refused(name, "400, 400, closed", post("Content-Length: 5\r\n", &event(name))));
    let name = "a request behind a refused one";
    let hidden = [&post("Content-Length: 1\r\nContent-Length: 1\r\n", b"1")[..], &sized("", &event(name))].concat();
    cases.push(refused(name, REFUSED, hidden));
    let name = "WebSocket upgrade with a body";
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\n";
    cases.push(taken(name, "200", sized(&format!("{upgrade}{NDJSON}"), &event(name))));
    let name = "bare LF as line ends";
    let head = format!("POST /v1/events HTTP/1.1\nHost: x\nContent-Length: {}\n\n", event(name).len());
    cases.push(taken(name, "200", [head.as_bytes(), &event(name)].concat()));

    // Chunks.
    let name = "chunk size beyond 64 bits";
    cases.push(refused(name, REFUSED, post(CHUNKED, &[b"FFFFFFFFFFFFFFFFF\r\n", &event(name)[..]].concat())));
    let name = "chunk without its end";
    cases.push(refused(name, REFUSED, post(CHUNKED, &[&chunk(&event(name))[..], b"nonsense\r\n"].concat())));
    let name = "chunk extension of 1 MiB";
    let extended =
        [format!("{:x};", event(name).len()).as_bytes(), &vec![b'a'; 1 << 20], b"\r\n", &event(name), b"\r\n0\r\n\r\n"]
            .concat();
    cases.push(taken(name, "200", post(CHUNKED, &extended)));
    let name = "1,000 trailers";
    let trailers = [&chunk(&event(name))[..], b"0\r\n", &b"X: y\r\n".repeat(1_000), b"\r\n"].concat();
    cases.push(taken(name, "200", post(CHUNKED, &trailers)));

    // No HTTP/1.1.
    let plain = |text: &str| text.as_bytes().to_vec();
    cases.push(refused("no Host", REFUSED, plain("GET /health HTTP/1.1\r\n\r\n")));
    cases.push(refused("HTTP/0.9", REFUSED, plain("GET /health\r\n\r\n")));
    cases.push(refused(
        "HTTP/1.0 chunked",
        REFUSED,
        plain("POST /v1/events HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"),
    ));
    cases.push(refused("HTTP/2 preface", REFUSED, plain("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")));
    cases.push(refused(
        "random bytes",
        REFUSED,
        (0..1_024u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect(),
    ));
    let hello = [&[0x16, 3, 1, 0, 0xc8, 1, 0, 0, 0xc4, 3, 3][..], &[0x55; 190]].concat();
    cases.push(refused("TLS ClientHello", REFUSED, hello));
    let name = "HTTP/1.0";
    let head = format!("POST /v1/events HTTP/1.0\r\nContent-Length: {}\r\n\r\n", event(name).len());
    cases.push(taken(name, "200, closed", [head.as_bytes(), &event(name)].concat()));

    // Heads.
    let many: String = (0..10_000).map(|n| format!("X{n}: {MARK}\r\n")).collect();
    cases.push(refused("10,000 header fields", "431, closed", post(&many, b"")));
    let many: String = (0..97).map(|n| format!("X{n}: {MARK}\r\n")).collect();
    cases.push(refused("97 header fields", "431, closed", post(&many, b"")));
    cases.push(refused(
        "a header field of 1 MiB",
        "431, closed",
        post(&format!("X: {}\r\n", "y".repeat(1 << 20)), b""),
    ));
    let long = format!("POST /{}", "a".repeat(60_000));
    cases.push(refused("a target of 60,000 bytes", "431, closed", request(&long, "", b"")));

    // Methods and paths.
    for (name, gets, line) in [
        ("HEAD", "405", "HEAD /v1/events"),
        ("OPTIONS", "405", "OPTIONS /v1/events"),
        ("TRACE", "405", "TRACE /v1/events"),
        ("an unknown method", "405", "STEAL /v1/events"),
        ("OPTIONS *", "404", "OPTIONS *"),
        ("CONNECT", "404, closed", "CONNECT example.org:80"),
        ("/v1/events/", "404", "POST /v1/events/"),
        ("//v1/events", "404", "POST //v1/events"),
        ("/v1/../metrics", "404", "GET /v1/../metrics"),
        ("/v1/%2e%2e/metrics", "404", "GET /v1/%2e%2e/metrics"),
        ("/v1%2fevents", "404", "POST /v1%2fevents"),
        ("/v1/events%00", "404", "POST /v1/events%00"),
        ("a path with a mark", "404", "GET /mark-of-a-hostile-client"),
    ] {
        cases.push(refused(name, gets, request(line, "", b"")));
    }
    cases.push(refused("GET with a body", "405, closed", request("GET /v1/events", "Content-Length: 2\r\n", b"{}")));
    for (name, line) in
        [("/v1/eve%6Ets", "POST /v1/eve%6Ets"), ("absolute-form target", "POST http://elsewhere/v1/events")]
    {
        let (length, event) = one(name);
        cases.push(taken(name, "200", request(line, &format!("Content-Length: {length}\r\n"), &event)));
    }

    // What the body is said to be.
    for (name, coding) in [
        ("Content-Encoding: gzip", "Content-Encoding: gzip\r\n"),
        ("Content-Encoding: br", "Content-Encoding: br\r\n"),
        ("Content-Encoding: zstd", "Content-Encoding: zstd\r\n"),
        ("Content-Encoding: deflate", "Content-Encoding: deflate\r\n"),
        ("Content-Encoding: gzip, gzip", "Content-Encoding: gzip, gzip\r\n"),
        ("identity and gzip in two lines", "Content-Encoding: identity\r\nContent-Encoding: gzip\r\n"),
        ("two Content-Type", "Content-Type: application/json\r\nContent-Type: application/x-ndjson\r\n"),
        ("another charset", "Content-Type: application/json; charset=utf-16\r\n"),
    ] {
        cases.push(refused(name, "415, closed", sized(coding, &event(name))));
    }
    let bomb = zstd::encode_all(&vec![b' '; 64 << 20][..], 3).expect("it compresses");
    cases.push(refused("a decompression bomb", "415, closed", sized("Content-Encoding: zstd\r\n", &bomb)));
    cases.push(refused("Content-Length above http.max_body", "413, closed", post("Content-Length: 16777217\r\n", b"")));
    let expect = "Expect: 100-continue\r\n";
    cases.push(refused(
        "Expect, and a body too large",
        "413, closed",
        post(&format!("{expect}Content-Length: 99999999999\r\n"), b""),
    ));
    let name = "Expect: 100-continue";
    cases.push(taken(name, "100, 200", sized(expect, &event(name))));

    // What is in it.
    let typed = |name: &str, rest: &str| format!(r#"{{"type":"hostile","case":"{name}",{rest}}}"#).into_bytes();
    for (name, rest) in [
        ("1e999999", r#""x":1e999999"#.to_owned()),
        ("a number of 100,000 digits", format!(r#""x":{}"#, "9".repeat(100_000))),
        ("duplicate keys", r#""type":"other","x":1,"x":2"#.to_owned()),
        ("a lone surrogate", r#""x":"\ud800""#.to_owned()),
        ("a name of 60,000 characters", format!(r#""{}":1"#, "x".repeat(60_000))),
    ] {
        cases.push(refused(name, "400", sized("", &typed(name, &rest))));
    }
    for (name, gets, body) in [
        ("100,000 open brackets", "400", vec![b'['; 100_000]),
        (
            "an event of 100,000 levels",
            "400",
            typed("", &format!(r#""x":{}1{}"#, "[".repeat(100_000), "]".repeat(100_000))),
        ),
        ("invalid UTF-8", "400", b"{\"type\":\"a\xff\"}".to_vec()),
        ("NUL in a string", "400", b"{\"type\":\"a\0\"}".to_vec()),
        ("NUL behind the end", "400", b"{\"type\":\"a\"}\0".to_vec()),
        ("a byte order mark", "400", b"\xef\xbb\xbf{\"type\":\"a\"}".to_vec()),
        ("two objects in a row", "400", b"{\"type\":\"a\"}{\"type\":\"b\"}".to_vec()),
        ("10,001 events", "413", format!("[{}]", vec![r#"{"type":"a"}"#; 10_001].join(",")).into_bytes()),
        ("10,000 events that are none", "400", format!("[{}]", vec!["1"; 10_000].join(",")).into_bytes()),
        ("16 MiB of 1,1,1,…", "413", format!("[1{}]", ",1".repeat((8 << 20) - 2)).into_bytes()),
        ("an event of 16 MiB", "400", format!(r#"{{"type":"{}"}}"#, "a".repeat((16 << 20) - 100)).into_bytes()),
    ] {
        cases.push(refused(name, gets, sized("", &body)));
    }
    let attributes: String = (0..100_000).map(|n| format!(",\"a{n}\":\"{MARK}\"")).collect();
    let envelope = format!(r#"{{"specversion":"1.0","id":"1","source":"s","type":"hostile"{attributes}}}"#);
    let data = "A".repeat((16 << 20) - 200);
    let large = format!(r#"{{"specversion":"1.0","id":"1","source":"s","type":"hostile","data_base64":"{data}"}}"#);
    let binary = format!("ce-specversion: {MARK}\r\nce-id: 1\r\nce-source: s\r\nce-type: hostile\r\n");
    for (name, fields, body) in [
        ("an envelope with 100,000 attributes", "Content-Type: application/cloudevents+json\r\n", &envelope),
        ("16 MiB of base64 in an envelope", "Content-Type: application/cloudevents+json\r\n", &large),
        ("a CloudEvent of another version", &binary, &envelope),
    ] {
        cases.push(refused(name, "400", sized(fields, body.as_bytes())));
    }
    cases.push(refused("16 MiB of blank lines", "400", sized(NDJSON, &vec![b'\n'; 16 << 20])));

    cases.extend(super::shapes::cases());

    // Many at once.
    let name = "100 pipelined requests";
    let events: Vec<_> =
        (0..100).map(|n| format!(r#"{{"type":"hostile","event_id":"pipelined-{n}"}}"#).into_bytes()).collect();
    let sent = events.iter().flat_map(|event| sized("", event)).collect();
    cases.push(Case { name, gets: "100 × 200", sent, stored: events });
    cases
}
