//! Login events, and the requests that carry them, prepared before anything is measured.

use std::{fmt::Write as _, io::Write as _};

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use fastrand::Rng;
use flate2::{Compression, write::GzEncoder};

/// Of one row's requests, so that a body does not come twice within what a compressor sees.
const POOL: usize = 16 << 20;
/// Groups of the aggregate: so many clients, and two types each.
const CLIENTS: u32 = 1_000;
/// From this size on an event has the fields of a login; smaller ones have only what is read of them.
const LOGIN: usize = 300;
const WORDS: [&str; 16] = [
    "session", "browser", "device", "token", "refresh", "granted", "denied", "mobile", "office", "proxy", "network",
    "policy", "region", "legacy", "second", "factor",
];

#[derive(Debug, Clone, Copy)]
pub enum Shape {
    Single,
    Array(usize),
    Ndjson(usize),
}

impl Shape {
    pub fn events(self) -> usize {
        match self {
            Self::Single => 1,
            Self::Array(events) | Self::Ndjson(events) => events,
        }
    }
}

/// Events of exactly `size` bytes, the same ones for the same `start`.
pub struct Events {
    random: Rng,
    time: DateTime<Utc>,
    size: usize,
}

impl Events {
    pub fn new(start: DateTime<Utc>, size: usize) -> Self {
        Self { random: Rng::with_seed(7), time: start, size }
    }

    /// The event, and its client.
    pub fn next(&mut self) -> (String, String) {
        let random = &mut self.random;
        self.time += TimeDelta::milliseconds(1);
        let client = format!("client-{:04}", random.u32(..CLIENTS));
        let kind = if random.u8(..10) == 0 { "login_failure" } else { "login_success" };
        let time = self.time.to_rfc3339_opts(SecondsFormat::Millis, true);
        let mut event = format!(r#"{{"type":"{kind}","client_id":"{client}","timestamp":"{time}""#);
        if self.size >= LOGIN {
            let [a, b, c] = [(); 3].map(|()| random.u8(1..));
            // Into a string it cannot fail.
            let _ = write!(
                event,
                r#","user_id":"u-{:08x}","session":"{:032x}","ip":"10.{a}.{b}.{c}","agent":"Mozilla/5.0 (X11; Linux x86_64)","mfa":{},"duration_ms":{}"#,
                random.u32(..),
                random.u128(..),
                random.bool(),
                random.u16(1..900),
            );
        }
        event.push_str(r#","note":""#);
        let end = self.size.saturating_sub(2);
        while event.len() < end {
            let (word, number) = (WORDS[random.usize(..WORDS.len())], random.u16(..));
            let _ = write!(event, "{word} {number:04x} ");
        }
        event.truncate(end.max(1));
        event.push_str("\"}");
        (event, client)
    }
}

/// HTTP/1.1 requests that differ in their events, as they are or in gzip, with these fields.
pub fn requests(shape: Shape, size: usize, gzip: bool, fields: &str) -> Vec<Vec<u8>> {
    let mut events = Events::new(Utc::now(), size);
    let requests = (POOL / (shape.events() * size + 150)).clamp(32, 20_000);
    (0..requests).map(|_| request(shape, gzip, fields, &mut events)).collect()
}

fn request(shape: Shape, gzip: bool, fields: &str, events: &mut Events) -> Vec<u8> {
    let events: Vec<String> = (0..shape.events()).map(|_| events.next().0).collect();
    let (content_type, body) = match shape {
        Shape::Single => ("application/json", events.concat()),
        Shape::Array(_) => ("application/json", format!("[{}]", events.join(","))),
        Shape::Ndjson(_) => ("application/x-ndjson", events.join("\n")),
    };
    let (coding, body) =
        if gzip { ("Content-Encoding: gzip\r\n", compressed(body.as_bytes())) } else { ("", body.into_bytes()) };
    let length = body.len();
    let head = format!(
        "POST /v1/events HTTP/1.1\r\nHost: localhost\r\nContent-Type: {content_type}\r\n{coding}{fields}Content-Length: {length}\r\n\r\n"
    );
    [head.as_bytes(), &body].concat()
}

/// At the level that clients have by default.
fn compressed(body: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    // Into a vector it cannot fail.
    let _ = encoder.write_all(body);
    encoder.finish().unwrap_or_default()
}
