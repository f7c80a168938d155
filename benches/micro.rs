//! The steps that each event passes, one thread, nothing around them: `cargo bench --bench micro`.
//!
//! On the way in it is parsed; on the way out it is buffered, parsed again, encoded as a line, and counted.

use divan::{Bencher, black_box, counter::ItemsCount};
use ingestd::{
    aggregate::PartitionFold,
    config::EventConfig,
    event::{self, EventFields},
    position::{Offset, Partition, Timestamp},
    queue::record::{ID_HEADER, RecordBuffer},
    spool::line::LineEncoder,
};

/// Of one batch, as `batch.max_records`.
const BATCH: usize = 1_000;
const CLIENTS: usize = 1_000;
const ID: &[u8] = b"01a20bd8-8e34-76c3-849d-87ba36a63445";
const RECEIVED: Timestamp = Timestamp(1_795_500_000_000);

fn main() {
    divan::main();
}

/// Login events with their clients.
fn events(size: usize) -> Vec<(String, String)> {
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

fn fields() -> EventFields {
    EventFields::from(&EventConfig::default())
}

fn buffer(events: &[(String, String)]) -> RecordBuffer {
    let size: usize = events.iter().map(|(_, event)| event.len() + 128).sum();
    let mut buffer = RecordBuffer::with_capacity(size);
    for (offset, (client, event)) in events.iter().enumerate() {
        let (key, value) = (Some(client.as_bytes()), Some(event.as_bytes()));
        buffer.push(Offset(offset as u64), RECEIVED, key, value, [(ID_HEADER, Some(ID))]);
    }
    buffer
}

#[divan::bench(args = [100, 310, 1024, 10240])]
fn parse_an_event(bencher: Bencher<'_, '_>, size: usize) {
    let (events, fields) = (events(size), fields());
    bencher.counter(ItemsCount::new(BATCH)).bench_local(|| {
        for (_, event) in &events {
            black_box(event::parse(event.as_bytes(), &fields)).expect("it is an event");
        }
    });
}

#[divan::bench(args = [310, 1024])]
fn buffer_a_record(bencher: Bencher<'_, '_>, size: usize) {
    let events = events(size);
    bencher.counter(ItemsCount::new(BATCH)).bench_local(|| buffer(&events));
}

#[divan::bench(args = [310, 1024])]
fn encode_a_line(bencher: Bencher<'_, '_>, size: usize) {
    let buffer = buffer(&events(size));
    let mut encoder = LineEncoder::new(fields().key_field);
    let mut lines = Vec::new();
    bencher.counter(ItemsCount::new(BATCH)).bench_local(|| {
        lines.clear();
        for record in buffer.iter() {
            encoder.encode(&record, &mut lines);
        }
        lines.len()
    });
}

/// The lines of a batch, at the levels that a segment could have.
#[divan::bench(args = [1, 3, 6])]
fn compress_a_line(bencher: Bencher<'_, '_>, level: i32) {
    let buffer = buffer(&events(310));
    let mut encoder = LineEncoder::new(fields().key_field);
    let mut lines = Vec::new();
    for record in buffer.iter() {
        encoder.encode(&record, &mut lines);
    }
    bencher.counter(ItemsCount::new(BATCH)).bench_local(|| zstd::bulk::compress(&lines, level));
}

/// Hits: the groups are there after the first batch.
#[divan::bench]
fn count_in_a_bucket(bencher: Bencher<'_, '_>) {
    let groups: Vec<String> = (0..BATCH).map(|index| format!("client-{:04}login_success", index % CLIENTS)).collect();
    let mut fold = PartitionFold::assign(Partition(0), Offset(0), 1, Vec::new());
    let mut next = Offset(0);
    bencher.counter(ItemsCount::new(BATCH)).bench_local(|| {
        for group in &groups {
            black_box(fold.count(0, next, RECEIVED, group));
            next = next.next();
        }
        fold.advance(next);
    });
}
