//! What each step costs in time: `cargo bench --profile dist --bench micro`. How many instructions, which is steadier: `--bench
//! instructions`.

mod steps;

use std::sync::Arc;

use bytes::Bytes;
use divan::{Bencher, black_box, counter::ItemsCount};
use ingestd::internals::{
    archive::spool::open::OpenSegment,
    config::{Config, LiveConfig},
    health::Health,
    log::{Appender, NewRecord, Part, Publish, Span, Ticket, embedded::EmbeddedLog},
    position::Offset,
};
use prometheus_client::metrics::counter::Counter;
use steps::{BATCH, RECEIVED, STEPS, Step};

fn main() {
    divan::main();
}

#[divan::bench(args = STEPS)]
fn step(bencher: Bencher<'_, '_>, step: &Step) {
    let run = step.prepare();
    bencher.counter(ItemsCount::new(BATCH)).bench_local(run);
}

/// A batch on its way into a segment's file: encoded, compressed, checksummed, written; without the fsync at its end.
#[divan::bench(args = [310, 1024])]
fn write_a_segment(bencher: Bencher<'_, '_>, size: usize) {
    let folder = tempfile::tempdir().expect("a folder");
    let (buffer, mut encoder, mut lines) = (steps::buffer(&steps::events(size)), steps::encoder(), Vec::new());
    let mut open = OpenSegment::create(folder.path(), Offset(0), Offset(0), RECEIVED).expect("a segment");
    bencher.counter(ItemsCount::new(BATCH)).bench_local(|| {
        steps::lines(&buffer, &mut encoder, &mut lines);
        open.write(&lines).expect("the disk has room");
    });
    black_box(open.bytes());
}

/// Requests of so many events, one after the other, each until it is fsynced.
#[divan::bench(args = [1, 100, 1_000])]
fn commit_to_the_embedded_log(bencher: Bencher<'_, '_>, events: usize) {
    let folder = tempfile::tempdir().expect("a folder");
    let (escalations, _ended) = tokio::sync::mpsc::unbounded_channel();
    let config = LiveConfig::new(Arc::new(Config::default()).into());
    let log = EmbeddedLog::open(folder.path(), vec![], config, Health::default(), Arc::default(), escalations);
    let log = log.expect("a log");
    let mut body = Vec::new();
    let mut record = |(_, event): (String, String)| {
        let start = body.len() as u32;
        body.extend_from_slice(event.as_bytes());
        let value = Part::InBody(Span { start, end: body.len() as u32 });
        NewRecord { value, key: None, headers: None, assigned_id: None }
    };
    let records: Vec<NewRecord> = steps::events(310).into_iter().take(events).map(&mut record).collect();
    let body = Bytes::from(body);
    bencher.counter(ItemsCount::new(events)).bench_local(|| {
        let (ticket, durable) = Ticket::new(events, Counter::default());
        let (body, events) = (body.clone(), records.clone());
        let publish = Publish { body, aside: Bytes::new(), events, received: RECEIVED, ticket };
        assert!(log.append(publish, 0).is_ok(), "its queue is empty");
        durable.blocking_recv().expect("it answers").durable
    });
    log.close().expect("nothing is left");
}
