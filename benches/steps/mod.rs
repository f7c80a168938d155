//! The steps that each event passes, one thread, nothing around them. On the way in a body is split and each event
//! parsed; on the way out a record is buffered, encoded as a line, compressed, and counted.

use std::{
    fmt::{self, Write as _},
    hint::black_box,
};

use ingestd::internals::{
    aggregate::PartitionFold,
    archive::spool::line::LineEncoder,
    config::EventConfig,
    event::{self, EventFields},
    ingest::format::{Format, split},
    log::record::{ID_HEADER, RecordBuffer},
    measure::Plan,
    position::{Offset, Partition, Timestamp},
};

/// Of one batch, as `batch.max_records`.
pub const BATCH: usize = 1_000;
pub const RECEIVED: Timestamp = Timestamp(1_795_500_000_000);
const CLIENTS: usize = 1_000;
const ID: &[u8] = b"01a20bd8-8e34-76c3-849d-87ba36a63445";

/// One step, over a [`BATCH`] of events of this size.
#[derive(Clone, Copy)]
pub struct Step {
    pub name: &'static str,
    pub size: usize,
    make: fn(usize) -> Run,
}

/// Does the step once.
pub type Run = Box<dyn FnMut()>;

impl Step {
    /// With all that it needs.
    pub fn prepare(&self) -> Run {
        (self.make)(self.size)
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {} B", self.name, self.size)
    }
}

pub const STEPS: [Step; 15] = [
    Step { name: "split an array", size: 310, make: split_an_array },
    Step { name: "split lines", size: 310, make: split_lines },
    Step { name: "parse", size: 100, make: parse },
    Step { name: "parse", size: 310, make: parse },
    Step { name: "parse", size: 1024, make: parse },
    Step { name: "parse", size: 10240, make: parse },
    Step { name: "buffer a record", size: 310, make: buffer_records },
    Step { name: "buffer a record", size: 1024, make: buffer_records },
    Step { name: "checksum a buffer", size: 310, make: checksum_a_buffer },
    Step { name: "check a buffer", size: 310, make: check_a_buffer },
    Step { name: "encode a line", size: 310, make: encode_lines },
    Step { name: "encode a line", size: 1024, make: encode_lines },
    Step { name: "compress, level 1", size: 310, make: compress::<1> },
    Step { name: "compress, level 3", size: 310, make: compress::<3> },
    Step { name: "count in a bucket", size: 310, make: count },
];

/// Login events with their clients.
pub fn events(size: usize) -> Vec<(String, String)> {
    let event = |index: usize| {
        let client = format!("client-{:04}", index * 7919 % CLIENTS);
        let note = "session granted by the mobile device ".repeat(size / 30 + 1);
        let head = format!(
            r#"{{"type":"login_success","client_id":"{client}","timestamp":"2026-11-24T08:00:{:02}.125Z","attempt":{index},"note":""#,
            index % 60
        );
        let room = size.saturating_sub(head.len() + 2);
        (client, format!("{head}{}\"}}", &note[..room]))
    };
    (0..BATCH).map(event).collect()
}

pub fn buffer(events: &[(String, String)]) -> RecordBuffer {
    let size: usize = events.iter().map(|(_, event)| event.len() + 128).sum();
    let mut buffer = RecordBuffer::with_capacity(size);
    for (offset, (client, event)) in events.iter().enumerate() {
        let (key, value) = (Some(client.as_bytes()), Some(event.as_bytes()));
        buffer.push(Offset(offset as u64), RECEIVED, key, value, [(ID_HEADER, Some(ID))]);
    }
    buffer
}

/// The lines of these records, as segments have them.
pub fn lines(buffer: &RecordBuffer, encoder: &mut LineEncoder, lines: &mut Vec<u8>) {
    lines.clear();
    for record in buffer.iter() {
        encoder.encode(&record, lines);
    }
}

pub fn encoder() -> LineEncoder {
    LineEncoder::new(EventConfig::default().key_field().to_owned())
}

fn fields() -> EventFields {
    EventFields::from(&EventConfig::default())
}

fn joined(size: usize, separator: &str) -> String {
    events(size).into_iter().map(|(_, event)| event).collect::<Vec<_>>().join(separator)
}

fn split_an_array(size: usize) -> Run {
    let body = format!("[{}]", joined(size, ","));
    Box::new(move || drop(black_box(split(body.as_bytes(), Format::Json, BATCH).expect("it is an array"))))
}

fn split_lines(size: usize) -> Run {
    let body = joined(size, "\n");
    Box::new(move || drop(black_box(split(body.as_bytes(), Format::Ndjson, BATCH).expect("they are lines"))))
}

fn parse(size: usize) -> Run {
    let (events, fields) = (events(size), fields());
    Box::new(move || {
        for (_, event) in &events {
            black_box(event::parse(event.as_bytes(), &fields, RECEIVED)).expect("it is an event");
        }
    })
}

fn buffer_records(size: usize) -> Run {
    let events = events(size);
    Box::new(move || drop(black_box(buffer(&events))))
}

fn checksum_a_buffer(size: usize) -> Run {
    let mut buffer = buffer(&events(size));
    Box::new(move || {
        black_box(buffer.checksummed());
    })
}

/// The copy of its bytes is a part of it.
fn check_a_buffer(size: usize) -> Run {
    let bytes = buffer(&events(size)).checksummed().to_vec();
    Box::new(move || drop(black_box(RecordBuffer::from_bytes(bytes.clone()).expect("it is whole"))))
}

fn encode_lines(size: usize) -> Run {
    let (buffer, mut encoder, mut out) = (buffer(&events(size)), encoder(), Vec::new());
    Box::new(move || {
        lines(&buffer, &mut encoder, &mut out);
        black_box(&out);
    })
}

/// At the levels that a segment could have.
fn compress<const LEVEL: i32>(size: usize) -> Run {
    let mut out = Vec::new();
    lines(&buffer(&events(size)), &mut encoder(), &mut out);
    Box::new(move || drop(black_box(zstd::bulk::compress(&out, LEVEL).expect("it fits into memory"))))
}

/// Hits: the groups are there after the first batch.
fn count(_: usize) -> Run {
    let mut groups = vec![String::new(); BATCH];
    for (index, group) in groups.iter_mut().enumerate() {
        // Writing to a string does not fail.
        let _ = write!(group, "client-{:04}login_success", index % CLIENTS);
    }
    let mut fold = PartitionFold::assign(Partition(0), Offset(0), &["[]".into()], Vec::new());
    let (mut next, plan) = (Offset(0), Plan::default());
    let nothing = |_: usize| None;
    Box::new(move || {
        for group in &groups {
            black_box(fold.add(0, next, RECEIVED, group, |measures| measures.add_values(&plan, &nothing)));
            next = next.next();
        }
        fold.advance(next);
    })
}
