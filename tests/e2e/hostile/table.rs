//! Requests that are hostile by their bytes alone, by name, with what each gets. `docs/hostile.md` lists them all.

use crate::support::coding::{brotli, compressed, gzip, zstd_streamed};

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
/// More than `http.max_body`, which some hundred bytes or kilobytes inflate to.
const BOMB: usize = 32 << 20;

pub fn bomb(coding: &str) -> Vec<u8> {
    compressed(coding, &vec![b' '; BOMB])
}

/// Says that its body has this coding.
pub fn coded(coding: &str, body: &[u8]) -> Vec<u8> {
    sized(&format!("Content-Encoding: {coding}\r\n"), body)
}

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
    let proxy_header =
        [&b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c"[..], &[198, 51, 100, 1, 10, 0, 0, 1, 0, 7, 0, 80]].concat();
    let behind = |header: &[u8]| [header, &sized("", b"{}")].concat();
    cases.push(refused("a PROXY header from a stranger", REFUSED, behind(&proxy_header)));
    cases.push(refused("a PROXY header of version 1", REFUSED, behind(b"PROXY TCP4 198.51.100.1 10.0.0.1 7 80\r\n")));
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

    let names = format!("Access-Control-Request-Headers: {}\r\n", "a,".repeat(15_000));
    let asks = format!("Origin: https://{MARK}\r\nAccess-Control-Request-Method: POST\r\n{names}");
    let preflight = request("OPTIONS /v1/events", &asks, b"");
    cases.push(refused("a preflight with 15,000 names of fields", "403", preflight));

    // What the body is said to be.
    for (name, field) in [
        ("Content-Encoding: compress", "Content-Encoding: compress\r\n"),
        ("Content-Encoding: gzip, gzip", "Content-Encoding: gzip, gzip\r\n"),
        ("two Content-Type", "Content-Type: application/json\r\nContent-Type: application/x-ndjson\r\n"),
        ("another charset", "Content-Type: application/json; charset=utf-16\r\n"),
    ] {
        cases.push(refused(name, "415, closed", sized(field, &event(name))));
    }
    // What a page can have any browser send.
    for (name, fields) in [
        ("text/plain of a page", "Origin: https://mark-of-a-hostile-client\r\nContent-Type: text/plain\r\n"),
        ("a body without a type of a page", "Origin: https://mark-of-a-hostile-client\r\n"),
        ("text/plain of a sandboxed frame", "Origin: null\r\nContent-Type: text/plain\r\n"),
    ] {
        cases.push(refused(name, "415, closed", sized(fields, &event(name))));
    }
    let name = "identity and gzip in two lines";
    let fields = "Content-Encoding: identity\r\nContent-Encoding: gzip\r\n";
    cases.push(taken(name, "200", sized(fields, &gzip(&event(name)))));

    // Codings that lie, are damaged, nested, or ask for too much.
    for (name, coding, body) in [
        ("plain JSON as gzip", "gzip", event("plain JSON as gzip")),
        ("plain JSON as zstd", "zstd", event("plain JSON as zstd")),
        ("plain JSON as deflate", "deflate", event("plain JSON as deflate")),
        ("plain JSON as br", "br", event("plain JSON as br")),
        ("gzip as br", "br", gzip(&event("gzip as br"))),
        ("br as zstd", "zstd", compressed("br", &event("br as zstd"))),
        ("zstd as deflate", "deflate", compressed("zstd", &event("zstd as deflate"))),
        ("deflate as gzip", "gzip", compressed("deflate", &event("deflate as gzip"))),
    ] {
        cases.push(refused(name, REFUSED, coded(coding, &body)));
    }
    for (name, body) in [("gzip in gzip", gzip(&event("gzip in gzip"))), ("a bomb in gzip in gzip", bomb("gzip"))] {
        cases.push(refused(name, "400", coded("gzip", &gzip(&body))));
    }
    for (name, coding) in [
        ("gzip that is cut off", "gzip"),
        ("zstd that is cut off", "zstd"),
        ("deflate that is cut off", "deflate"),
        ("br that is cut off", "br"),
    ] {
        let whole = compressed(coding, &event(name));
        cases.push(refused(name, "400", coded(coding, &whole[..whole.len() - 1])));
    }
    // The checksum's last byte but three; gzip's length stands behind it.
    for (name, coding, from_end) in [
        ("gzip with a wrong checksum", "gzip", 8),
        ("zstd with a wrong checksum", "zstd", 4),
        ("deflate with a wrong checksum", "deflate", 4),
    ] {
        let whole = event(name);
        let mut damaged = if coding == "zstd" { zstd_streamed(&whole, 20) } else { compressed(coding, &whole) };
        let at = damaged.len() - from_end;
        damaged[at] ^= 1;
        cases.push(refused(name, REFUSED, coded(coding, &damaged)));
    }
    let name = "bytes behind gzip";
    cases.push(refused(name, REFUSED, coded("gzip", &[&gzip(&event(name))[..], b"\0\0\0\0"].concat())));
    let name = "a zstd window of 16 MiB";
    cases.push(refused(name, "415, closed", coded("zstd", &zstd_streamed(&event(name), 24))));
    let name = "a large window in br";
    cases.push(refused(name, "415, closed", coded("br", &brotli(&event(name), 26))));
    let frame = |descriptor: u8, rest: &[u8]| [&[0x28, 0xb5, 0x2f, 0xfd, descriptor][..], rest].concat();
    cases.push(refused("a zstd dictionary", "415, closed", coded("zstd", &frame(0x21, &[7, 0, 1, 0, 0]))));
    let size = [&[0][..], &(1u64 << 40).to_le_bytes(), &[1, 0, 0]].concat();
    cases.push(refused("a zstd frame that claims 1 TiB", REFUSED, coded("zstd", &frame(0xc0, &size))));
    for (name, coding) in [
        ("a bomb in gzip", "gzip"),
        ("a bomb in zstd", "zstd"),
        ("a bomb in deflate", "deflate"),
        ("a bomb in br", "br"),
    ] {
        cases.push(refused(name, "413, closed", coded(coding, &bomb(coding))));
    }
    let empty = gzip(b"");
    cases.push(refused("1 MiB of empty gzip members", "400", coded("gzip", &empty.repeat((1 << 20) / empty.len()))));
    let empty = frame(0x20, &[0, 1, 0, 0]);
    cases.push(refused("1 MiB of empty zstd frames", "400", coded("zstd", &empty.repeat((1 << 20) / empty.len()))));

    // The greatest event, however it comes.
    for (name, coding) in [
        ("an event of 960 KiB", None),
        ("an event of 960 KiB in gzip", Some("gzip")),
        ("an event of 960 KiB in zstd", Some("zstd")),
        ("an event of 960 KiB in deflate", Some("deflate")),
        ("an event of 960 KiB in br", Some("br")),
    ] {
        let mut event = format!(r#"{{"type":"hostile","case":"{name}","x":""#).into_bytes();
        event.extend(
            (0..)
                .map(|n: u32| b'a' + (n.wrapping_mul(2_654_435_761) >> 27) as u8 % 26)
                .take((960 << 10) - 2 - event.len()),
        );
        event.extend_from_slice(b"\"}");
        assert_eq!(event.len(), 960 << 10);
        let sent = coding.map_or_else(|| sized("", &event), |coding| coded(coding, &compressed(coding, &event)));
        cases.push(Case { name, gets: "200", sent, stored: vec![event] });
    }
    let tiny = b"1\n".repeat(100_000);
    cases.push(refused("100,000 tiny lines", "413", sized(NDJSON, &tiny)));
    let fields = format!("{NDJSON}Content-Encoding: gzip\r\n");
    cases.push(refused("100,000 tiny lines in gzip", "413", sized(&fields, &gzip(&tiny))));

    cases.push(refused("Content-Length above http.max_body", "413, closed", post("Content-Length: 16777217\r\n", b"")));
    let expect = "Expect: 100-continue\r\n";
    cases.push(refused(
        "Expect, and a body too large",
        "413, closed",
        post(&format!("{expect}Content-Length: 99999999999\r\n"), b""),
    ));
    let name = "Expect: 100-continue";
    cases.push(taken(name, "100, 200", sized(expect, &event(name))));

    for (name, preferences) in [
        ("Prefer with 15,000 preferences", "a,".repeat(15_000)),
        ("Prefer with a quoted string that never ends", format!("a=\"{}", "\\,".repeat(15_000))),
    ] {
        cases.push(taken(name, "200", sized(&format!("Prefer: {preferences}\r\n"), &event(name))));
    }

    let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    for (name, fields) in [
        ("X-Request-Id of 15,000 characters", format!("X-Request-Id: {}\r\n", "a".repeat(15_000))),
        ("X-Request-Id with what no id has", format!("X-Request-Id: {MARK} <script>\r\n")),
        ("40 X-Request-Id", format!("X-Request-Id: {MARK}\r\n").repeat(40)),
        ("40 traceparent", format!("traceparent: {parent}\r\n").repeat(40)),
        ("tracestate with 7,000 members", format!("traceparent: {parent}\r\ntracestate: {}\r\n", "a=1,".repeat(7_000))),
    ] {
        cases.push(taken(name, "200", sized(&fields, &event(name))));
    }

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
        ("a byte order mark of UTF-16", "400", b"\xfe\xff\0{\0}".to_vec()),
        ("16 MiB of open braces in an array", "400", [&b"["[..], &vec![b'{'; (16 << 20) - 1]].concat()),
        ("16 MiB of commas in an array", "413", [&b"["[..], &vec![b','; (16 << 20) - 1]].concat()),
        ("10,001 objects in a row", "413", br#"{"type":"a"}"#.repeat(10_001)),
        ("10,001 events", "413", format!("[{}]", vec![r#"{"type":"a"}"#; 10_001].join(",")).into_bytes()),
        ("10,000 events that are none", "400", format!("[{}]", vec!["1"; 10_000].join(",")).into_bytes()),
        ("16 MiB of 1,1,1,…", "413", format!("[1{}]", ",1".repeat((8 << 20) - 2)).into_bytes()),
        ("an event of 16 MiB", "400", format!(r#"{{"type":"{}"}}"#, "a".repeat((16 << 20) - 100)).into_bytes()),
    ] {
        cases.push(refused(name, gets, sized("", &body)));
    }
    let name = "a time of 500,000 digits";
    let timed = format!(r#"{{"type":"hostile","case":"{name}","timestamp":"{}"}}"#, "7".repeat(500_000)).into_bytes();
    cases.push(Case { name, gets: "200", sent: sized("", &timed), stored: vec![timed] });
    let one = || br#"{"type":"hostile","of":"several"}"#.to_vec();
    for (name, gets, body, count) in [
        ("NUL behind the end", "207", [one(), vec![0]].concat(), 1),
        ("a byte order mark", "200", [b"\xef\xbb\xbf".to_vec(), one()].concat(), 1),
        ("two objects in a row", "200", [one(), one()].concat(), 2),
        ("an array with commas too many", "207", [b"[,".to_vec(), one(), b",,]".to_vec()].concat(), 1),
    ] {
        cases.push(Case { name, gets, sent: sized("", &body), stored: vec![one(); count] });
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
