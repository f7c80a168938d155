//! What each log does, behind its seam: one suite, run on every backend.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use ingestd::internals::{
    config::Config,
    log::{
        Appender, ByteBudget, Delivery, NewHeaders, NewRecord, Part, Publish, SourceCommand, SourceEvent, SourceHandle,
        Span, Ticket,
        dead_letters::{DeadLetterWriter, DeadLetters, Quarantine},
        record::write_header,
    },
    position::{Offset, Timestamp},
};
use prometheus_client::metrics::counter::Counter;
use uuid::Uuid;

use super::reader::{Reader, distinct};

pub const PATIENCE: Duration = Duration::from_secs(30);

pub use ingestd::internals::log::SourceEvents;

/// An empty log, for one test.
pub trait Backend {
    fn config(&self) -> &Config;

    fn appender(&self) -> Box<dyn Appender>;

    /// A source of the archive's group, always of the same member.
    fn source(&self, budget: &ByteBudget, tell: SourceEvents) -> SourceHandle;

    fn dead_letter_writer(&self) -> Arc<dyn DeadLetterWriter>;

    fn quarantine(&self) -> Arc<dyn Quarantine>;

    fn dead_letters(&self) -> Arc<dyn DeadLetters>;
}

/// Small batches, so that a test sees many.
pub fn config() -> Config {
    let mut config = Config::default();
    config.batch.max_records = 50;
    config.batch.max_wait = Duration::from_millis(50);
    config
}

/// Appends events with these numbers in one request, and waits for its answer. The key is a number's last digit.
pub fn append(appender: &dyn Appender, numbers: std::ops::Range<usize>) -> Delivery {
    send(appender, numbers).blocking_recv().unwrap()
}

fn send(appender: &dyn Appender, numbers: std::ops::Range<usize>) -> tokio::sync::oneshot::Receiver<Delivery> {
    let (ticket, reply) = Ticket::new(numbers.len(), Counter::default());
    let mut body = Vec::new();
    let mut events = Vec::new();
    for number in numbers {
        let start = u32::try_from(body.len()).unwrap();
        body.extend_from_slice(format!(r#"{{"type":"t","n":{number}}}"#).as_bytes());
        let value = Span { start, end: u32::try_from(body.len()).unwrap() };
        let key = Some(Part::InBody(Span { start: value.end - 2, end: value.end - 1 }));
        let (value, assigned_id) = (Part::InBody(value), Some(Uuid::now_v7()));
        events.push(NewRecord { value, key, headers: None, assigned_id });
    }
    let publish = Publish { body: body.into(), aside: Bytes::new(), events, received: Timestamp::now(), ticket };
    let (mut publish, mut from) = (Some(publish), 0);
    while let Err(full) = appender.append(publish.take().unwrap(), from) {
        (publish, from) = (Some(full.publish), full.next);
        std::thread::sleep(Duration::from_millis(2));
    }
    reply
}

/// The number of an event.
fn number(value: &str) -> usize {
    value.rsplit_once(':').and_then(|(_, rest)| rest.strip_suffix('}')?.parse().ok()).expect("an event of ours")
}

pub fn what_is_appended_is_read_once_and_in_its_order_with_its_key_id_and_time(backend: &impl Backend) {
    let (appender, before) = (backend.appender(), Timestamp::now());
    for request in 0..10 {
        assert_eq!(append(&*appender, request * 50..(request + 1) * 50).durable, 50);
    }
    let after = Timestamp::now();
    let mut reader = Reader::start(backend);
    reader.read(500);
    for assignment in &reader.assignments {
        assert!(assignment.committed.is_none() && assignment.holds_all, "{assignment:?}");
        assert_eq!((assignment.log_start, assignment.first_undone()), (Offset(0), Offset(0)), "{assignment:?}");
    }
    let seen = reader.close(Vec::new());
    assert_eq!((seen.len(), distinct(&seen)), (500, 500));
    let places: BTreeSet<_> = seen.iter().map(|record| (record.partition, record.offset)).collect();
    assert_eq!(places.len(), 500, "each has a place of its own");
    let mut last = BTreeMap::new();
    for record in &seen {
        let number = number(&record.value);
        assert_eq!(record.key.as_deref(), Some((number % 10).to_string().as_bytes()));
        assert!(record.header("id").is_some_and(|id| id.len() == 36), "{record:?}");
        assert!(before.0 <= record.received && record.received <= after.0, "{record:?}");
        // One key's events keep their order.
        assert!(last.insert(number % 10, number).is_none_or(|before| before < number), "{record:?}");
    }
}

pub fn what_an_event_has_beside_its_value_is_read_as_headers_behind_its_id(backend: &impl Backend) {
    let mut aside = b"key".to_vec();
    let mut part = |bytes: &[u8]| {
        let start = u32::try_from(aside.len()).unwrap();
        aside.extend_from_slice(bytes);
        Span { start, end: start + u32::try_from(bytes.len()).unwrap() }
    };
    let mut headers = Vec::new();
    write_header(&mut headers, "ce_type", Some(b"t"));
    write_header(&mut headers, "ce_ext", Some(b""));
    let headers = Some(NewHeaders { count: 2, bytes: part(&headers) });
    let value = Part::Aside(part(b"aside"));
    let key = Some(Part::Aside(Span { start: 0, end: 3 }));
    let nothing = Part::InBody(Span { start: 0, end: 0 });
    let events = vec![
        NewRecord { value, key, headers, assigned_id: Some(Uuid::now_v7()) },
        NewRecord { value: nothing, key: None, headers, assigned_id: None },
    ];
    let (ticket, reply) = Ticket::new(events.len(), Counter::default());
    let publish = Publish { body: Bytes::new(), aside: aside.into(), events, received: Timestamp::now(), ticket };
    let appender = backend.appender();
    assert!(appender.append(publish, 0).is_ok());
    assert_eq!(reply.blocking_recv().unwrap().durable, 2);
    let mut reader = Reader::start(backend);
    reader.read(2);
    for record in reader.close(Vec::new()) {
        let (names, key): (&[&str], _) = match record.value.as_str() {
            "aside" => (&["id", "ce_type", "ce_ext"], Some(&b"key"[..])),
            "" => (&["ce_type", "ce_ext"], None),
            other => panic!("{other}"),
        };
        assert_eq!(record.headers.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), names);
        assert_eq!((record.header("ce_type"), record.header("ce_ext")), (Some(&b"t"[..]), Some(&b""[..])));
        assert_eq!(record.key.as_deref(), key);
    }
}

pub fn a_restarted_source_goes_on_at_the_committed_positions(backend: &impl Backend) {
    let appender = backend.appender();
    assert_eq!(append(&*appender, 0..500).durable, 500);
    let mut first = Reader::start(backend);
    first.read(500);
    assert_eq!(first.seen.len(), 500);
    let positions = first.positions();
    first.close(positions);

    assert_eq!(append(&*appender, 500..700).durable, 200);
    let (mut second, restarted) = (Reader::start(backend), Instant::now());
    second.read(200);
    assert!(restarted.elapsed() < Duration::from_secs(8), "it has its partitions back at once");
    let seen = second.close(Vec::new());
    assert_eq!((seen.len(), distinct(&seen)), (200, 200));
    assert!(seen.iter().all(|record| number(&record.value) >= 500));
}

pub fn neither_pauses_nor_seeks_nor_a_spent_budget_lose_or_repeat_a_record(backend: &impl Backend) {
    let appender = backend.appender();
    for request in 0..200 {
        assert_eq!(append(&*appender, request * 30..(request + 1) * 30).durable, 30);
    }
    // One batch at a time.
    let mut reader = Reader::with_budget(backend, 1);
    let deadline = Instant::now() + PATIENCE;
    let (mut batches, mut sought) = (0, 0);
    while reader.seen.len() < 6000 + sought {
        assert!(Instant::now() < deadline, "{} records", reader.seen.len());
        let Some(batch) = reader.step(Duration::from_millis(100)) else { continue };
        batches += 1;
        match batches % 40 {
            10 => {
                reader.command(SourceCommand::Pause);
                std::thread::sleep(Duration::from_millis(100));
                reader.command(SourceCommand::Resume);
            }
            // Long enough for a source to park.
            20 => std::thread::sleep(Duration::from_millis(1200)),
            30 => {
                sought += batch.records.len();
                let (partition, at) = (batch.partition, batch.from);
                reader.begin(partition, at);
            }
            _ => {}
        }
    }
    let seen = reader.close(Vec::new());
    assert!(sought > 0);
    assert_eq!((seen.len(), distinct(&seen)), (6000 + sought, 6000));
}

pub fn what_is_assigned_again_goes_on_at_the_committed_positions(backend: &impl Backend) {
    let appender = backend.appender();
    assert_eq!(append(&*appender, 0..300).durable, 300);
    let mut reader = Reader::start(backend);
    reader.read(300);
    let (partitions, assigned) = (reader.expected.len(), reader.assignments.len());
    reader.command(SourceCommand::Commit(reader.positions()));
    // Each partition is announced again, and what was committed by then is where it stands.
    let deadline = Instant::now() + PATIENCE;
    let mut stands = 0;
    while stands < 300 {
        assert!(Instant::now() < deadline, "{:?}", reader.assignments);
        let before = reader.assignments.len();
        reader.command(SourceCommand::Reassign);
        reader.until(|reader| reader.assignments.len() >= before + partitions);
        std::thread::sleep(Duration::from_millis(50));
        let latest = &reader.assignments[before..before + partitions];
        stands = latest.iter().filter_map(|assignment| assignment.committed).map(|offset| offset.0).sum();
    }
    assert!(reader.assignments.len() > assigned);
    // From then on nothing comes of what was committed, and what comes now comes once.
    while reader.step(Duration::from_secs(1)).is_some() {}
    reader.seen.clear();
    assert_eq!(append(&*appender, 300..400).durable, 100);
    reader.read(100);
    let seen = reader.close(Vec::new());
    assert_eq!((seen.len(), distinct(&seen)), (100, 100));
    assert!(seen.iter().all(|record| number(&record.value) >= 300));
}

pub fn nothing_is_delivered_before_the_sink_says_where_to_begin_nor_while_it_is_held(backend: &impl Backend) {
    let appender = backend.appender();
    assert_eq!(append(&*appender, 0..100).durable, 100);
    let mut reader = Reader::start(backend);
    let mut assigned = Vec::new();
    let deadline = Instant::now() + PATIENCE;
    let quiet = Duration::from_secs(1);
    loop {
        match reader.events.recv_timeout(quiet) {
            Ok(SourceEvent::Assigned(assignments)) => assigned.extend(assignments),
            Ok(SourceEvent::Batch(batch)) => panic!("a batch that nobody asked for: {batch:?}"),
            Ok(_) => {}
            Err(_) if !assigned.is_empty() => break,
            Err(_) => assert!(Instant::now() < deadline, "nothing is assigned"),
        }
    }
    for assignment in &assigned {
        reader.begin(assignment.partition, assignment.first_undone());
    }
    reader.read(100);
    for assignment in &assigned {
        reader.command(SourceCommand::Hold(assignment.partition));
    }
    // What is under way comes; what is appended from now on does not.
    while reader.step(quiet).is_some() {}
    assert_eq!(append(&*appender, 100..200).durable, 100);
    let until = Instant::now() + quiet;
    while Instant::now() < until {
        assert!(reader.step(Duration::from_millis(50)).is_none(), "a batch of a partition that is held");
    }
    let positions = reader.positions();
    for (partition, at) in positions {
        reader.begin(partition, at);
    }
    reader.read(200);
    let seen = reader.close(Vec::new());
    assert_eq!((seen.len(), distinct(&seen)), (200, 200));
}

pub fn a_flush_ends_when_all_that_was_appended_is_durable(backend: &impl Backend) {
    let appender = backend.appender();
    let mut replies: Vec<_> = (0..20).map(|request| send(&*appender, request * 10..(request + 1) * 10)).collect();
    assert_eq!(appender.flush(PATIENCE), Ok(()));
    // The answers are on their way by then, or there.
    for reply in replies.drain(..) {
        assert_eq!(reply.blocking_recv().unwrap().durable, 10);
    }
}
