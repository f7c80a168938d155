mod crash;

use std::time::Instant;

use arc_swap::ArcSwap;
use bytes::Bytes;
use crossbeam_channel::{Receiver, unbounded};
use prometheus_client::metrics::{counter::Counter, gauge::Gauge};
use tokio::sync::mpsc;

use super::*;
use crate::{
    config::Config,
    log::{
        Batch, ByteBudget, Delivery, Epoch, NewRecord, Part, SourceCommand, SourceEvent, SourceHandle, Span, Ticket,
        dead_letters::{DeadLetters, Filter, Origin, QUARANTINE, State},
    },
    position::{Partition, Timestamp},
};

const PATIENCE: Duration = Duration::from_secs(30);

fn open(folder: &Path) -> EmbeddedLog {
    open_with(folder, Config::default(), Health::default())
}

fn open_with(folder: &Path, config: Config, health: Health) -> EmbeddedLog {
    let config: LiveConfig = Arc::new(ArcSwap::from_pointee(config));
    let (escalations, _) = mpsc::unbounded_channel();
    EmbeddedLog::open(folder, vec![SinkName::Archive], config, health, Arc::default(), escalations).unwrap()
}

/// What health says of the log.
fn why_unavailable(health: &Health) -> Option<String> {
    health.readiness().dependencies[dependency::EMBEDDED_LOG].reason.clone()
}

fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}: not in time");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Appends one request of `events` events of `size` bytes and waits until it is durable.
fn append(log: &EmbeddedLog, events: usize, size: usize) {
    let delivery = try_append(log, events, size);
    assert_eq!(delivery.durable, events, "{delivery:?}");
}

fn try_append(log: &EmbeddedLog, events: usize, size: usize) -> Delivery {
    let (ticket, reply) = Ticket::new(events, Counter::default());
    let body = Bytes::from(vec![b'x'; size]);
    let value = Part::InBody(Span { start: 0, end: size as u32 });
    let events: Vec<_> =
        (0..events).map(|_| NewRecord { value, key: None, headers: None, assigned_id: None }).collect();
    let received = Timestamp::now();
    let publish = Publish { body, aside: Bytes::new(), events, received, ticket };
    assert!(log.append(publish, 0).is_ok());
    reply.blocking_recv().unwrap()
}

struct Reader {
    source: SourceHandle,
    events: Receiver<SourceEvent>,
}

impl Reader {
    fn start(log: &EmbeddedLog) -> Self {
        Self::with_budget(log, 64 << 20)
    }

    fn with_budget(log: &EmbeddedLog, bytes: u64) -> Self {
        let (sender, events) = unbounded();
        let tell = Arc::new(move |event| drop(sender.send(event)));
        let config: LiveConfig = Arc::new(ArcSwap::from_pointee(Config::default()));
        let budget = ByteBudget::new(bytes, Gauge::default());
        Self { source: log.source(SinkName::Archive, config, budget, tell).unwrap(), events }
    }

    fn until<T>(&self, mut wanted: impl FnMut(SourceEvent) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let event = self.events.recv_deadline(deadline).expect("an event in time");
            if let Some(found) = wanted(event) {
                return found;
            }
        }
    }

    fn begin(&self, at: u64) {
        let (partition, epoch, at) = (Partition(0), Epoch::fresh(), Offset(at));
        self.source.commands.send(SourceCommand::Begin { partition, epoch, at }).unwrap();
    }

    fn batch(&self) -> Batch {
        self.until(|event| match event {
            SourceEvent::Batch(batch) => Some(batch),
            _ => None,
        })
    }

    fn close(self, position: u64) {
        self.source.commands.send(SourceCommand::Close(vec![(Partition(0), Offset(position))])).unwrap();
        self.source.thread.join().unwrap().unwrap();
    }
}

#[test]
fn batches_are_contiguous_and_begin_where_they_were_asked_to() {
    let folder = tempfile::tempdir().unwrap();
    let log = open(folder.path());
    append(&log, 2500, 10);
    let reader = Reader::start(&log);
    reader.begin(1500);
    let (mut next, mut offsets) = (Offset(1500), Vec::new());
    while next < Offset(2500) {
        let batch = reader.batch();
        assert_eq!(batch.from, next);
        offsets.extend(batch.records.iter().map(|record| record.offset.0).filter(|offset| *offset >= 1500));
        next = batch.to;
    }
    assert!(offsets.iter().copied().eq(1500..2500));
    reader.close(2500);
    log.close().unwrap();
}

#[test]
fn without_a_budget_two_batches_are_under_way() {
    let folder = tempfile::tempdir().unwrap();
    let log = open(folder.path());
    append(&log, 4500, 10);
    let reader = Reader::with_budget(&log, 0);
    reader.begin(0);
    let mut taken = reader.batch();
    while taken.to < Offset(4500) {
        let next = reader.batch();
        let soon = Instant::now() + Duration::from_millis(50);
        while let Ok(event) = reader.events.recv_deadline(soon) {
            assert!(!matches!(event, SourceEvent::Batch(_)), "a third one");
        }
        taken = next;
    }
    reader.close(4500);
    log.close().unwrap();
}

#[test]
fn offsets_do_not_repeat_after_everything_was_trimmed() {
    let folder = tempfile::tempdir().unwrap();
    let log = open(folder.path());
    append(&log, 10, 10);
    Reader::start(&log).close(10);
    log.close().unwrap();
    let log = open(folder.path());
    append(&log, 1, 10);
    let reader = Reader::start(&log);
    let assignment = reader.until(|event| match event {
        SourceEvent::Assigned(mut assignments) => assignments.pop(),
        _ => None,
    });
    assert_eq!((assignment.committed, assignment.log_start), (Some(Offset(10)), Offset(10)));
    assert_eq!(assignment.log_end, Offset(11));
    reader.close(11);
    log.close().unwrap();
}

/// Bytes of all files of the log.
fn size_on_disk(folder: &Path) -> u64 {
    let of = |path: &Path| {
        std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum::<u64>()
    };
    of(folder) + of(&folder.join("log.segments"))
}

#[test]
fn what_is_trimmed_goes_back_to_the_file_system_also_when_nothing_is_appended_any_more() {
    let folder = tempfile::tempdir().unwrap();
    let log = open(folder.path());
    for _ in 0..150 {
        append(&log, 1, 1_000_000);
    }
    assert!(size_on_disk(folder.path()) > 150_000_000);
    Reader::start(&log).close(150);
    // More than one housekeeping gives back.
    eventually("what is left is small", || size_on_disk(folder.path()) < 1 << 20);
    assert_eq!(log.end.stored(), 0);
    log.close().unwrap();
}

#[test]
fn a_log_at_its_quota_is_unavailable_and_writes_nothing_until_there_is_room() {
    let folder = tempfile::tempdir().unwrap();
    let (mut config, health) = (Config::default(), Health::default());
    config.queue.embedded.quota = crate::config::ByteSize(100_000);
    let log = open_with(folder.path(), config, health.clone());
    append(&log, 1, 100_000);
    eventually("full", || why_unavailable(&health).is_some_and(|why| why.contains("queue.embedded.quota")));
    let delivery = try_append(&log, 2, 10);
    assert!(delivery.durable == 0 && delivery.unavailable.is_none(), "{delivery:?}");
    assert!(delivery.refused.is_some_and(|why| why.contains("queue.embedded.quota")));
    Reader::start(&log).close(1);
    eventually("room", || why_unavailable(&health).is_none());
    append(&log, 1, 10);
    assert_eq!(log.end.get(), Offset(2), "what was refused is not in the log");
    log.close().unwrap();
}

#[test]
fn a_stop_says_when_the_last_positions_are_not_committed() {
    let folder = tempfile::tempdir().unwrap();
    let log = open(folder.path());
    append(&log, 3, 10);
    let other = rusqlite::Connection::open(folder.path().join("log.db")).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    Reader::start(&log).close(3);
    let failed = log.close().unwrap_err();
    assert!(failed.contains("cannot be written"), "{failed}");
}

#[test]
fn a_log_that_cannot_be_written_is_unavailable_until_it_can_also_when_nobody_tries() {
    let folder = tempfile::tempdir().unwrap();
    let health = Health::default();
    let log = open_with(folder.path(), Config::default(), health.clone());
    let other = rusqlite::Connection::open(folder.path().join("log.db")).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let delivery = try_append(&log, 1, 10);
    assert!(delivery.durable == 0 && delivery.unavailable.is_none(), "{delivery:?}");
    assert!(delivery.refused.is_some_and(|why| why.contains("cannot be written")));
    eventually("unavailable", || why_unavailable(&health).is_some_and(|why| why.contains("cannot be written")));
    other.execute_batch("ROLLBACK").unwrap();
    eventually("available", || why_unavailable(&health).is_none());
    append(&log, 1, 10);
    log.close().unwrap();
}

/// What a reader finds as the log's start, once that has moved beyond `from`.
fn start_beyond(folder: &Path, from: u64) -> Offset {
    let database = schema::open_reader(&folder.join("log.db")).unwrap();
    eventually("trimmed", || schema::log_start(&database).unwrap() > Offset(from));
    schema::log_start(&database).unwrap()
}

/// Four segments of a record each: a life writes its own.
fn four_segments(folder: &Path, config: &Config) {
    for _ in 0..4 {
        let log = open_with(folder, config.clone(), Health::default());
        append(&log, 1, 10);
        log.close().unwrap();
    }
}

#[test]
fn retention_keeps_what_was_received_too_late_also_when_the_clock_was_set_back_since() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = Config::default();
    config.queue.embedded.retention = Duration::from_secs(3600);
    four_segments(folder.path(), &config);
    let long_ago = Timestamp::now().0 - 2 * 3600 * 1000;
    let database = rusqlite::Connection::open(folder.path().join("log.db")).unwrap();
    assert_eq!(database.execute("UPDATE segments SET received = ?1 WHERE base <> 2", [long_ago]), Ok(3));
    let log = open_with(folder.path(), config, Health::default());
    Reader::start(&log).close(4);
    assert_eq!(start_beyond(folder.path(), 0), Offset(2), "the records behind it are old enough, but not before it");
    log.close().unwrap();
}

#[test]
fn without_retention_the_clock_keeps_nothing() {
    let folder = tempfile::tempdir().unwrap();
    four_segments(folder.path(), &Config::default());
    let tomorrow = Timestamp::now().0 + 24 * 3600 * 1000;
    let database = rusqlite::Connection::open(folder.path().join("log.db")).unwrap();
    assert_eq!(database.execute("UPDATE segments SET received = ?1", [tomorrow]), Ok(4));
    let log = open(folder.path());
    Reader::start(&log).close(3);
    assert_eq!(start_beyond(folder.path(), 0), Offset(3));
    log.close().unwrap();
}

/// Changes the last byte of the frame `frame` in the log's first segment, whose frames are all as long.
fn damage(folder: &Path, frame: usize) {
    let path = folder.join("log.segments/00000001.segment");
    let mut bytes = std::fs::read(&path).unwrap();
    let records = u32::from_le_bytes(bytes[36..40].try_into().unwrap()) as usize;
    bytes[frame * (44 + records) - 1] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn a_damaged_record_is_reported_and_not_delivered() {
    let folder = tempfile::tempdir().unwrap();
    let log = open(folder.path());
    // A frame each, and all as long.
    (0..4).for_each(|_| append(&log, 3, 10));
    damage(folder.path(), 3);
    let reader = Reader::start(&log);
    reader.begin(0);
    let mut delivered = Offset(0);
    let reason = reader.until(|event| match event {
        SourceEvent::Unavailable(reason) => Some(reason),
        SourceEvent::Batch(batch) => {
            delivered = batch.to;
            None
        }
        _ => None,
    });
    assert_eq!(delivered, Offset(6), "what is whole before it is");
    assert!(reason.contains("log.db is damaged between offsets 6 and 9"), "{reason}");
    reader.close(0);
    log.close().unwrap();
}

/// A letter of a request, with a value of so many bytes.
fn letter(bytes: usize) -> DeadLetter {
    DeadLetter {
        topic: format!("events{QUARANTINE}"),
        generation: 0,
        partition: Partition(0),
        origin: Origin::Request(uuid::Uuid::now_v7()),
        received: Timestamp::now(),
        reason: "invalid_json".to_owned(),
        message: "m".to_owned(),
        time: Timestamp::now(),
        key: None,
        value: Some(vec![b'x'; bytes].into()),
        headers: Vec::new(),
    }
}

fn keep(log: &EmbeddedLog, letters: Vec<DeadLetter>) -> anyhow::Result<Vec<usize>> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(log.keep(letters))
}

#[test]
fn what_is_in_quarantine_is_bounded_by_the_quota_and_takes_nothing_from_the_records() {
    let folder = tempfile::tempdir().unwrap();
    let (mut config, health) = (Config::default(), Health::default());
    config.queue.embedded.quota = crate::config::ByteSize(100_000);
    let log = open_with(folder.path(), config.clone(), health.clone());
    append(&log, 1, 40_000);
    let kept = letter(70_000);
    assert_eq!(keep(&log, vec![kept.clone()]).unwrap(), [0; 0]);
    let refused = keep(&log, vec![letter(10)]).unwrap_err().to_string();
    assert!(refused.contains("queue.embedded.quota") && refused.contains("dlq"), "{refused}");
    eventually("it is said", || why_unavailable(&health).is_some_and(|why| why.contains("quarantine")));
    assert!(health.readiness().dependencies[dependency::EMBEDDED_LOG].available);
    append(&log, 1, 40_000);
    log.close().unwrap();

    // So it is after a restart, until there is room.
    let log = open_with(folder.path(), config, health.clone());
    assert!(keep(&log, vec![letter(10)]).is_err());
    let letters = letters_of(&log);
    assert_eq!(letters.replay(&Filter::by_id(&kept.id()), Some(br#"{"type":"a"}"#)).unwrap().replayed, [kept.id()]);
    assert!(keep(&log, vec![letter(10)]).is_err(), "it is kept until it is purged");
    assert_eq!(letters.purge(&Filter::by_id(&kept.id())).unwrap().purged, [kept.id()]);
    assert!(keep(&log, vec![letter(10)]).is_ok());
    eventually("it is said no more", || why_unavailable(&health).is_none());
    log.close().unwrap();
}

#[test]
fn a_letter_counts_with_all_that_is_stored_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let log = open(folder.path());
    let header = |name: &str, bytes: &[u8]| (name.to_owned(), Some(bytes.to_vec()));
    let letter = DeadLetter {
        message: "é".repeat(1000),
        key: Some(vec![0xff; 100]),
        headers: vec![header("ce_source", "é".repeat(5000).as_bytes()), header("x", b"\xff")],
        ..letter(10)
    };
    assert_eq!(keep(&log, vec![letter.clone()]).unwrap(), [0; 0]);
    let size = super::dead_letters::size(&letter);
    assert!(size > 10 + 100 + 2000 + 10_000, "{size}");
    let stored = || super::dead_letters::quarantined(&super::schema::open_reader(&log.path).unwrap()).unwrap();
    assert_eq!(stored(), size);
    assert_eq!(letters_of(&log).purge(&Filter::by_id(&letter.id())).unwrap().purged, [letter.id()]);
    assert_eq!(stored(), 0);
    log.close().unwrap();
}

#[test]
fn a_body_that_sqlite_does_not_take_is_not_kept_and_the_others_are() {
    let folder = tempfile::tempdir().unwrap();
    let log = open(folder.path());
    // Nobody reads it, so it costs no memory.
    let large = DeadLetter { value: Some(vec![0; LARGEST_LETTER + 1].into()), ..letter(0) };
    let (first, last) = (letter(1), letter(2));
    assert_eq!(keep(&log, vec![first.clone(), large.clone(), last.clone()]).unwrap(), [1]);
    assert_eq!(keep(&log, vec![large]).unwrap(), [0]);
    let listed = letters_of(&log).list(&Filter::default()).unwrap().dead_letters;
    let ids: BTreeSet<_> = listed.into_iter().map(|letter| letter.id).collect();
    assert_eq!(ids, BTreeSet::from([first.id(), last.id()]));
    log.close().unwrap();
}

/// `log.db` as version 1 had it.
const VERSION_1: &str = "
    CREATE TABLE chunks (base INTEGER PRIMARY KEY, count INTEGER NOT NULL, received INTEGER NOT NULL, records BLOB NOT NULL);
    CREATE TABLE cursors (sink TEXT PRIMARY KEY, position INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TABLE meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
    CREATE TABLE dead_letters (
        id TEXT PRIMARY KEY, topic TEXT NOT NULL, generation INTEGER NOT NULL, partition INTEGER NOT NULL,
        offset INTEGER NOT NULL, received INTEGER NOT NULL, reason TEXT NOT NULL, message TEXT NOT NULL,
        time INTEGER NOT NULL, key BLOB, value BLOB, headers TEXT NOT NULL
    ) WITHOUT ROWID;
    INSERT INTO meta VALUES ('trimmed', 7), ('identity', 'x');
    INSERT INTO dead_letters VALUES
        ('events/0/3', 'events', 0, 0, 3, 1, 'invalid_json', 'm', 2, NULL, x'78', '[[\"id\",\"u\"],[\"none\",null]]'),
        ('events/0/4', 'events', 0, 0, 4, 1, 'invalid_json', 'm', 2, NULL, x'ff', '[]');
    PRAGMA user_version = 1;
";

fn letters_of(log: &EmbeddedLog) -> EmbeddedLetters {
    EmbeddedLetters::new(log.clone(), Arc::new(ArcSwap::from_pointee(Config::default())))
}

#[test]
fn letters_of_the_version_before_are_kept_with_their_headers() {
    let folder = tempfile::tempdir().unwrap();
    rusqlite::Connection::open(folder.path().join("log.db")).unwrap().execute_batch(VERSION_1).unwrap();
    for _ in 0..2 {
        let log = open(folder.path());
        let letters = letters_of(&log);
        let shown = serde_json::to_value(letters.show("events/0/3").unwrap()).unwrap();
        let headers = serde_json::json!([{ "name": "id", "value": "u" }, { "name": "none", "value": null }]);
        assert_eq!((&shown["headers"], &shown["value"], &shown["state"]), (&headers, &"x".into(), &"open".into()));
        let shown = serde_json::to_value(letters.show("events/0/4").unwrap()).unwrap();
        assert_eq!((&shown["headers"], &shown["value_base64"]), (&serde_json::json!([]), &"/w==".into()));
        log.close().unwrap();
    }
}
