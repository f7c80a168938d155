//! Heads that are refused, and what a proxy puts in front of them.

use super::requests::{Door, Wrong, post, sent};

pub const PLAIN_HTTP: &str = "this port speaks TLS, and this is HTTP without it: use https://";

/// All of them.
pub fn rows() -> Vec<Wrong> {
    const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
    let get = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n";
    let proxied = |head: [u8; 4], rest: &[u8]| [SIGNATURE, &head[..], rest, &get[..]].concat();
    let at = |door: Door, bytes: Vec<u8>, status: u16, sentence: &str| sent(door, bytes, (status, "", sentence));
    let too_many: String = (0..200).map(|at| format!("x-{at}: y\r\n")).collect();
    let page = "Origin: https://elsewhere.example\r\n";
    let asks = "Access-Control-Request-Method: POST\r\n";
    let preflight = |fields: &str| format!("OPTIONS /v1/events HTTP/1.1\r\nHost: x\r\n{fields}\r\n").into_bytes();
    vec![
        at(
            Door::Open,
            b"no HTTP\r\n\r\n".to_vec(),
            400,
            "this is not a valid HTTP/1.1 request: send it as RFC 9112 has it",
        ),
        at(
            Door::Open,
            format!("GET /health HTTP/1.1\r\nHost: x\r\n{too_many}\r\n").into_bytes(),
            431,
            "the head of the request is too large, or has too many fields: send fewer and shorter ones",
        ),
        at(
            Door::Narrow,
            b"GET /health HTTP/1.1\r\n".to_vec(),
            408,
            "the head of the request did not arrive in time (http.head_timeout): send it at once, and again",
        ),
        at(
            Door::Narrow,
            b"POST /v1/events HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{".to_vec(),
            408,
            "the body did not arrive within 1s (http.request_timeout): send it again, in smaller requests",
        ),
        at(
            Door::Open,
            b"POST /v1/events HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n".to_vec(),
            400,
            "the body ended before all that its head announced, or its chunks are not valid: send all of it again",
        ),
        at(
            Door::Open,
            b"GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
            404,
            "events are taken by POST /v1/events, logs by POST /v1/logs, and other bodies at the paths of [[http.source]]",
        ),
        at(Door::Open, b"PUT /hook HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(), 405, "this path takes POST only"),
        at(
            Door::Open,
            preflight(&format!("{page}{asks}")),
            403,
            "pages of this origin may not send requests here: name it in http.cors.origins, as the browser sends it, if they are to",
        ),
        at(
            Door::Open,
            preflight(&format!("Origin: https://app.example\r\n{asks}Access-Control-Request-Headers: a b\r\n")),
            400,
            "Access-Control-Request-Headers must be one list of field names, of at most {} bytes in all",
        ),
        post(
            Door::Open,
            "/v1/events",
            page,
            "{}",
            (
                415,
                "",
                "pages of this origin may send no text/plain, no form and nothing without a Content-Type: name the origin in \
                 http.cors.origins, or send application/json",
            ),
        ),
        at(
            Door::Open,
            proxied([0x21, 0x11, 0, 0], b""),
            400,
            "a PROXY protocol header is taken at the very beginning of a connection from one of http.trusted_proxies alone: add the \
             proxy's address there, or have it send none",
        ),
        at(
            Door::Open,
            [b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n", &get[..]].concat(),
            400,
            "this is PROXY protocol version 1: have the proxy send version 2 (send-proxy-v2), and name it in http.trusted_proxies",
        ),
        at(
            Door::Operators,
            proxied([0x21, 0x11, 0, 0], b""),
            400,
            "this listener takes no PROXY protocol, from nobody: have the proxy send none to it",
        ),
        at(
            Door::Narrow,
            SIGNATURE[..6].to_vec(),
            408,
            "the PROXY protocol header did not arrive in time (http.head_timeout): have the proxy send it before all else",
        ),
        at(
            Door::Narrow,
            proxied([0x31, 0x11, 0, 0], b""),
            400,
            "the PROXY protocol header has another version than 2: have the proxy send version 2",
        ),
        at(
            Door::Narrow,
            proxied([0x21, 0x11, 0x20, 0], b""),
            400,
            "the PROXY protocol header is longer than 4096 bytes: have the proxy add less to it",
        ),
        at(
            Door::Narrow,
            proxied([0x21, 0x11, 0, 4], &[0; 4]),
            400,
            "the PROXY protocol header is shorter than its addresses: have the proxy send them whole",
        ),
        at(
            Door::Narrow,
            proxied([0x22, 0x11, 0, 12], &[0; 12]),
            400,
            "the PROXY protocol header has a command that is neither LOCAL nor PROXY: have the proxy send one of them",
        ),
    ]
}
