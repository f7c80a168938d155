//! Events of many shapes, posted in all formats over several connections, and what was promised for each.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use chrono::{DateTime, FixedOffset, SecondsFormat, TimeDelta, Utc};
use serde_json::Value;

use super::http::{Client, NoReply, Reply};

const TYPES: [&str; 5] = ["page_view", "login_success", "login_failure", "purchase", "häkchen ✓"];
const CLIENTS: u64 = 7;
/// Between the times of two successive events: 20,000 of them span five minutes.
const STEP: TimeDelta = TimeDelta::milliseconds(15);

/// What is known of each event, by its number `n`, which it carries in its body.
pub struct Ledger {
    /// Makes the ids of this ledger its own.
    run: u64,
    start: DateTime<Utc>,
    sent: Mutex<BTreeMap<u64, Sent>>,
    acknowledged: AtomicU64,
    refused: AtomicU64,
    next: AtomicU64,
}

#[derive(Debug, Clone, Default)]
pub struct Sent {
    pub bytes: Vec<u8>,
    /// The id in the 2xx.
    pub acknowledged: Option<String>,
    /// The client sent an id of its own.
    pub own_id: bool,
    /// Requests that carried it and had no 2xx: each may have stored it.
    pub uncertain: usize,
}

#[derive(Debug, Clone, Copy)]
enum Format {
    Object,
    Array,
    Lines,
}

impl Ledger {
    pub fn new() -> Self {
        Self {
            run: fastrand::u64(..),
            start: Utc::now() - TimeDelta::minutes(10),
            sent: Mutex::default(),
            acknowledged: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            next: AtomicU64::new(0),
        }
    }

    /// As if these had been sent.
    pub fn of(sent: BTreeMap<u64, Sent>) -> Self {
        Self { sent: Mutex::new(sent), ..Self::new() }
    }

    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Acquire)
    }

    /// Requests that were answered with 503.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Acquire)
    }

    pub fn sent(&self) -> BTreeMap<u64, Sent> {
        self.sent.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn with_sent<T>(&self, change: impl FnOnce(&mut BTreeMap<u64, Sent>) -> T) -> T {
        change(&mut self.sent.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Posts `count` new events over `connections` connections, each until it has its 2xx, as a client would: again
    /// after 503 and no answer.
    pub fn post(&self, url: &str, count: u64, connections: u64, within: Duration) {
        let first = self.next.fetch_add(count, Ordering::AcqRel);
        let deadline = Instant::now() + within;
        thread::scope(|scope| {
            for connection in 0..connections {
                let share = |part: u64| first + count * part / connections;
                let numbers = share(connection)..share(connection + 1);
                scope.spawn(move || {
                    let client = Client::new();
                    let mut from = numbers.start;
                    while from < numbers.end {
                        let format =
                            fastrand::choice([Format::Object, Format::Array, Format::Lines]).expect("not empty");
                        let size = if matches!(format, Format::Object) { 1 } else { fastrand::u64(1..=300) };
                        let to = numbers.end.min(from + size);
                        self.post_batch(&client, url, from..to, format, deadline);
                        from = to;
                    }
                });
            }
        });
    }

    fn post_batch(&self, client: &Client, url: &str, numbers: std::ops::Range<u64>, format: Format, deadline: Instant) {
        let events: Vec<(u64, Vec<u8>, bool)> =
            numbers.map(|n| (n, self.event(n, !matches!(format, Format::Lines)), has_own_id(n))).collect();
        let body = body_of(&events, format);
        let content_type = match format {
            Format::Lines => Some("application/x-ndjson"),
            Format::Array => Some("application/json; charset=utf-8"),
            Format::Object => None,
        };
        // Entered before it is sent: whatever shows up in the archive was sent.
        self.with_sent(|sent| {
            for (n, bytes, own_id) in &events {
                sent.insert(*n, Sent { bytes: bytes.clone(), own_id: *own_id, ..Sent::default() });
            }
        });
        loop {
            let reply = client.post(url, content_type, &body);
            match &reply {
                Ok(reply) if reply.status == 200 => return self.acknowledge(&events, reply),
                Ok(reply) if reply.status == 503 => {
                    assert!(reply.retry_after.is_some(), "{reply:?}");
                    self.refused.fetch_add(1, Ordering::AcqRel);
                    self.doubt(&events);
                }
                Err(NoReply::Unknown(_)) => self.doubt(&events),
                Err(NoReply::NotSent) => {}
                Ok(reply) => panic!("valid events are refused: {reply:?}\n{}", String::from_utf8_lossy(&body)),
            }
            assert!(Instant::now() < deadline, "no 2xx by the deadline, but {reply:?}");
            thread::sleep(Duration::from_millis(50));
        }
    }

    fn doubt(&self, events: &[(u64, Vec<u8>, bool)]) {
        self.with_sent(|sent| events.iter().for_each(|(n, ..)| sent.entry(*n).or_default().uncertain += 1));
    }

    fn acknowledge(&self, events: &[(u64, Vec<u8>, bool)], reply: &Reply) {
        let answer = reply.json();
        let ids = answer["ids"].as_array().expect("ids");
        assert_eq!((ids.len(), &answer["accepted"]), (events.len(), &Value::from(events.len())), "{reply:?}");
        self.with_sent(|sent| {
            for ((n, _, own_id), id) in events.iter().zip(ids) {
                let id = id.as_str().expect("an id is a string");
                assert!(!own_id || id == self.id(*n), "the client's id stands");
                sent.entry(*n).or_default().acknowledged = Some(id.to_owned());
            }
        });
        self.acknowledged.fetch_add(events.len() as u64, Ordering::AcqRel);
    }

    fn id(&self, n: u64) -> String {
        format!("evt-{:016x}-{n}", self.run)
    }

    /// The bytes of event `n`, which are the same each time.
    fn event(&self, n: u64, several_lines: bool) -> Vec<u8> {
        let mut fields = Vec::new();
        let event_type = TYPES[(n % TYPES.len() as u64) as usize];
        fields.push(match n % 53 {
            0 => r#""type":"login\u005fsuccess""#.to_owned(),
            _ => format!(r#""type":"{event_type}""#),
        });
        fields.push(format!(r#""n":{n}"#));
        if !n.is_multiple_of(11) {
            fields.push(format!(r#""client_id":"client-{}""#, n % CLIENTS));
        }
        if has_own_id(n) {
            fields.push(format!(r#""event_id":"{}""#, self.id(n)));
        }
        let time = self.start + STEP * i32::try_from(n).expect("a test sends few events");
        let two_hours_east = FixedOffset::east_opt(2 * 3600).expect("an hour of the day");
        match n % 10 {
            0 => {}
            1..=4 => fields.push(format!(r#""timestamp":"{}""#, time.to_rfc3339_opts(SecondsFormat::Millis, true))),
            5..=6 => fields.push(format!(r#""timestamp":"{}""#, time.to_rfc3339_opts(SecondsFormat::Secs, true))),
            _ => fields.push(format!(r#""timestamp": "{}""#, time.with_timezone(&two_hours_east).to_rfc3339())),
        }
        // What a parser that goes through floats, maps or UTF-16 would change.
        fields.push(match n % 7 {
            0 => r#""amount":12345678901234567890123456789.10,"tiny":1e-400"#.to_owned(),
            1 => r#""text":"\u00e4 \n \" \\ \ud83d\ude00 😀 \/""#.to_owned(),
            2 => r#""twice":1,"Twice":2,"order":{"z":1,"a":[ ]}"#.to_owned(),
            3 => r#""deep":[[[[[[[[{"a":{"b":{"c":[null,true,-0.0]}}}]]]]]]]]"#.to_owned(),
            _ => format!(r#""padding":"{}""#, "x".repeat((n % 400) as usize)),
        });
        fields.push(measured(n));
        let event = match n % 9 {
            0 if several_lines => format!("{{\r\n  {}\n}}", fields.join(",\r\n  ")),
            1 => format!("{{ {} }}", fields.join(" , ")),
            _ => format!("{{{}}}", fields.join(",")),
        };
        event.into_bytes()
    }
}

/// What the aggregates of [`measured`](super::measured) look at: numbers of up to 17 places, and some that are none.
fn measured(n: u64) -> String {
    let scattered = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let cost = match n % 29 {
        0 => "null".to_owned(),
        1 => "\"free\"".to_owned(),
        2 => format!("{}.5e-3", scattered % 1000),
        3 => format!("{scattered}.123456789012345678"),
        _ => {
            let (places, sign) = ((n % 18) as usize, if n.is_multiple_of(3) { "-" } else { "" });
            let fraction = format!("{:017}", scattered % 100_000_000_000_000_000);
            let point = if places == 0 { "" } else { "." };
            format!("{sign}{}{point}{}", scattered >> 44, &fraction[..places])
        }
    };
    let country = ["\"DE\"", "\"\\u00d6 \\\"T\\\"\"", "\"CH\"", "null"][(scattered >> 60) as usize % 4];
    format!(r#""cost":{cost},"place":{{"country":{country}}}"#)
}

fn has_own_id(n: u64) -> bool {
    n % 4 != 3
}

fn body_of(events: &[(u64, Vec<u8>, bool)], format: Format) -> Vec<u8> {
    let values: Vec<&[u8]> = events.iter().map(|(_, bytes, _)| bytes.as_slice()).collect();
    match format {
        Format::Object => values.concat(),
        Format::Array => [b"[ ", values.join(&b" ,\n"[..]).as_slice(), b"]\n"].concat(),
        Format::Lines => [values.join(&b"\n"[..]).as_slice(), b"\n"].concat(),
    }
}

/// As the archive writes a value: section 3 maps each CR and LF to one space.
pub fn archived_form(value: &[u8]) -> Vec<u8> {
    value.iter().map(|byte| if matches!(byte, b'\r' | b'\n') { b' ' } else { *byte }).collect()
}
