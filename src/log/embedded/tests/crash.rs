//! What a crash leaves of the log, at each step between one thing that becomes durable and the next.
//!
//! At each step the folder is copied as the kernel may have left it: what is not fsynced is there, is not, or is in part, page
//! by page and in whatever order. Each copy is opened, and must hold all that was answered by then, and nothing twice.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::PathBuf,
    sync::Mutex,
};

use super::{
    super::{
        read::Bounds,
        step::{Step, Steps},
    },
    *,
};
use crate::log::record::RecordBuffer;

const PAGE: usize = 512;
/// Bytes of the quota, so that a segment has 64 KiB.
const QUOTA: u64 = 1 << 20;

fn small() -> Config {
    let mut config = Config::default();
    config.queue.embedded.quota = crate::config::ByteSize(QUOTA);
    config
}

/// What clients know, and what they tried.
#[derive(Default, Clone)]
struct Known {
    /// Offset and value of what was answered with 200.
    durable: BTreeMap<u64, String>,
    tried: BTreeSet<String>,
    /// Letters that are durable, by id: their values, and whether their replay was answered.
    letters: BTreeMap<String, (String, bool)>,
    last: u64,
}

impl Known {
    fn value(&mut self, size: usize) -> String {
        self.last += 1;
        let value = format!(r#"{{"type":"a","n":{},"x":"{}"}}"#, self.last, "x".repeat(size));
        self.tried.insert(value.clone());
        value
    }
}

/// One request of these values.
fn publish(log: &EmbeddedLog, values: &[String]) -> Delivery {
    let (ticket, reply) = Ticket::new(values.len(), Counter::default());
    ticket.want_positions();
    let mut start = 0;
    let events = values.iter().map(|value| {
        let end = start + value.len() as u32;
        let span = Span { start, end };
        start = end;
        NewRecord { value: Part::InBody(span), key: None, headers: None, assigned_id: None }
    });
    let events = events.collect();
    let body = Bytes::from(values.concat());
    let publish = Publish { body, aside: Bytes::new(), events, received: Timestamp::now(), ticket };
    assert!(log.append(publish, 0).is_ok());
    reply.blocking_recv().unwrap()
}

fn append_some(log: &EmbeddedLog, known: &Mutex<Known>, events: usize, size: usize) -> Delivery {
    let values: Vec<_> = (0..events).map(|_| known.lock().unwrap().value(size)).collect();
    let mut delivery = publish(log, &values);
    if delivery.durable > 0 {
        assert_eq!(delivery.durable, events, "{delivery:?}");
        let last = delivery.take_positions().unwrap()[0].offset.0;
        let offsets = last + 1 - events as u64..;
        known.lock().unwrap().durable.extend(offsets.zip(values));
    }
    delivery
}

/// All records that the log still has, as they are read.
fn records(log: &EmbeddedLog) -> anyhow::Result<BTreeMap<u64, String>> {
    let mut reader = log.reader()?;
    let start = schema::log_start(&reader.database)?;
    let (mut at, mut all) = (start, BTreeMap::new());
    while at < log.end.get() {
        let bounds = Bounds { records: 700, bytes: 100_000 };
        let (records, to) = reader.read(at, bounds, RecordBuffer::default())?.expect("nothing is trimmed");
        for record in records.iter().filter(|record| record.offset >= at) {
            let value = String::from_utf8(record.value.unwrap().to_vec())?;
            assert_eq!(record.offset.0, start.0 + all.len() as u64, "each offset once, in order");
            all.insert(record.offset.0, value);
        }
        assert!(to > at);
        at = to;
    }
    Ok(all)
}

/// What was known when the copy was made must be in it.
fn check(folder: &Path, known: &Known, what: &str) {
    let open = || open_with(folder, small(), Health::default());
    let found = |log: &EmbeddedLog| records(log).unwrap_or_else(|error| panic!("{what}: {error:#}"));
    let log = open();
    let mut all = found(&log);
    let start = all.keys().next().copied().unwrap_or(log.end.get().0);
    for (offset, value) in known.durable.range(start..) {
        assert_eq!(all.get(offset), Some(value), "{what}: what was answered is there, at {offset}");
    }
    let values: BTreeSet<_> = all.values().collect();
    assert_eq!(values.len(), all.len(), "{what}: nothing is there twice");
    assert!(all.values().all(|value| known.tried.contains(value)), "{what}: nobody sent that");
    let letters = letters_of(&log).list(&Filter { all: true, ..Filter::default() }).unwrap().dead_letters;
    let states: BTreeMap<_, _> = letters.iter().map(|letter| (letter.id.clone(), letter.state)).collect();
    for (id, (value, is_replayed)) in &known.letters {
        let state = states[id];
        assert!(state == State::Replayed || !is_replayed, "{what}: its replay was answered");
        assert!(state == State::Replayed || !values.contains(value), "{what}: a letter is open and in the log");
        // The first offsets may be trimmed.
        assert!(start > 0 || state == State::Open || values.contains(value), "{what}: a replayed letter is in the log");
    }
    log.close().unwrap();
    let log = open();
    let again = found(&log);
    // What was read is trimmed at the stop.
    let start = again.keys().next().copied().unwrap_or(log.end.get().0);
    all.retain(|offset, _| *offset >= start);
    assert!(again == all, "{what}: the next start finds the same");
    let value = r#"{"type":"next"}"#.to_owned();
    let delivery = publish(&log, std::slice::from_ref(&value));
    assert_eq!(delivery.durable, 1, "{what}: {delivery:?}");
    let mut now = found(&log);
    assert_eq!(now.remove(&(log.end.get().0 - 1)), Some(value), "{what}: it takes the next one");
    assert!(now == all, "{what}: and all others stay");
    log.close().unwrap();
}

fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let all = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_file());
    all.map(|path| (path.file_name().unwrap().into(), std::fs::read(path).unwrap())).collect()
}

/// Makes copies of a log's folder as crashes leave it.
struct Crashes {
    folder: PathBuf,
    copies: PathBuf,
    known: Arc<Mutex<Known>>,
    /// The segments' files as they are on the disk for sure.
    durable: BTreeMap<PathBuf, Vec<u8>>,
    made: Vec<(PathBuf, Known, String)>,
    random: fastrand::Rng,
}

impl Crashes {
    fn step(&mut self, step: Step) {
        let segments = files(&self.folder.join("log.segments"));
        if step == Step::Synced {
            self.durable.clone_from(&segments);
        }
        for how in ["killed", "nothing", "zeros", "pages", "pages"] {
            // Each in turn, at each step.
            if how != "killed" && self.random.u8(..3) > 0 {
                continue;
            }
            let copy = self.copies.join(format!("{:05}", self.made.len()));
            std::fs::create_dir_all(copy.join("log.segments")).unwrap();
            for (name, bytes) in files(&self.folder) {
                std::fs::write(copy.join(name), bytes).unwrap();
            }
            for (name, bytes) in &segments {
                let durable = self.durable.get(name);
                if step == Step::Created && durable.is_none() && how != "killed" && self.random.bool() {
                    // Its name was not durable.
                    continue;
                }
                let bytes = left_of(&mut self.random, how, bytes, durable.map_or(&[], Vec::as_slice));
                std::fs::write(copy.join("log.segments").join(name), bytes).unwrap();
            }
            self.made.push((copy, self.known.lock().unwrap().clone(), format!("{step:?}, {how}, {}", self.made.len())));
        }
    }
}

fn left_of(random: &mut fastrand::Rng, how: &str, written: &[u8], durable: &[u8]) -> Vec<u8> {
    let mut bytes = durable.to_vec();
    match how {
        "killed" => return written.to_vec(),
        "nothing" => return bytes,
        _ => bytes.resize(written.len().max(durable.len()), 0),
    }
    for (at, page) in written.chunks(PAGE).enumerate() {
        if how == "pages" && random.bool() {
            bytes[at * PAGE..at * PAGE + page.len()].copy_from_slice(page);
        }
    }
    bytes
}

/// What a daemon does in its life, with some of all that a log is asked for.
fn live(log: &EmbeddedLog, known: &Mutex<Known>, random: &mut fastrand::Rng) {
    for _ in 0..14 {
        match random.u8(..8) {
            0 => {
                append_some(log, known, 1200, 20);
            }
            1 => {
                let value = known.lock().unwrap().value(30);
                let letter = DeadLetter { value: Some(value.clone().into()), ..letter(0) };
                assert_eq!(keep(log, vec![letter.clone()]).unwrap(), [0; 0]);
                known.lock().unwrap().letters.insert(letter.id(), (value, false));
                if random.bool() {
                    append_some(log, known, 1, 100);
                }
                let replayed = letters_of(log).replay(&Filter::by_id(&letter.id()), None).unwrap();
                assert_eq!(replayed.replayed, [letter.id()], "{:?}", replayed.refused);
                known.lock().unwrap().letters.get_mut(&letter.id()).unwrap().1 = true;
            }
            2 => {
                let end = log.end.get().0;
                log.settle_cursor("archive", Offset(random.u64(end / 2..=end)), PATIENCE);
            }
            3 => {
                append_some(log, known, 3, 20_000);
            }
            _ => {
                let (events, size) = (random.usize(1..5), random.usize(..900));
                append_some(log, known, events, size);
            }
        }
    }
}

#[test]
fn whenever_it_crashes_what_was_answered_is_there_and_nothing_is_there_twice() {
    for seed in 0..2 {
        let root = tempfile::tempdir().unwrap();
        let mut random = fastrand::Rng::with_seed(seed);
        let known = Arc::new(Mutex::new(Known::default()));
        let mut folder = root.path().join("first");
        std::fs::create_dir(&folder).unwrap();
        for life in 0..2 {
            let crashes = Arc::new(Mutex::new(Crashes {
                folder: folder.clone(),
                copies: root.path().join(format!("copies-{life}")),
                known: known.clone(),
                durable: if life == 0 { BTreeMap::new() } else { files(&folder.join("log.segments")) },
                made: Vec::new(),
                random: random.fork(),
            }));
            let told = crashes.clone();
            let steps = Steps::tell(folder.join("log.segments"), move |step| {
                told.lock().unwrap().step(step);
                Ok(())
            });
            let log = open_with(&folder, small(), Health::default());
            live(&log, &known, &mut random);
            drop(steps);
            log.close().unwrap();
            let made = std::mem::take(&mut crashes.lock().unwrap().made);
            assert!(made.len() > 20, "{}", made.len());
            for (copy, known, what) in &made {
                let checked = copy.with_extension("checked");
                copy_folder(copy, &checked);
                check(&checked, known, &format!("seed {seed}, life {life}, {what}"));
            }
            // The next life goes on with what one of the crashes has left.
            let (copy, left, _) = made[random.usize(..made.len())].clone();
            folder = copy;
            let last = known.lock().unwrap().last;
            *known.lock().unwrap() = Known { last, ..left };
        }
    }
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to.join("log.segments")).unwrap();
    for part in ["", "log.segments"] {
        for (name, bytes) in files(&from.join(part)) {
            std::fs::write(to.join(part).join(name), bytes).unwrap();
        }
    }
}

/// Has the log in `folder` fail at this step while `fails` says so.
fn failing(folder: &Path, at: Step, fails: Arc<std::sync::atomic::AtomicBool>) -> Steps {
    Steps::tell(folder.join("log.segments"), move |step| {
        if step == at && fails.load(Ordering::Acquire) { Err(io::Error::from_raw_os_error(28)) } else { Ok(()) }
    })
}

#[test]
fn after_an_fsync_that_failed_the_file_takes_no_more_and_nothing_of_the_commit_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let (known, health) = (Mutex::default(), Health::default());
    let fails = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let steps = failing(folder.path(), Step::Sync, fails.clone());
    let log = open_with(folder.path(), small(), health.clone());
    append_some(&log, &known, 2, 10);
    fails.store(true, Ordering::Release);
    let delivery = append_some(&log, &known, 3, 10);
    assert!(delivery.durable == 0 && delivery.refused.is_none(), "{delivery:?}");
    assert!(delivery.unavailable.is_some_and(|why| why.contains("cannot be written")), "it may be stored");
    eventually("unavailable", || why_unavailable(&health).is_some());
    assert_eq!(log.end.get(), Offset(2));
    fails.store(false, Ordering::Release);
    eventually("available", || why_unavailable(&health).is_none());
    append_some(&log, &known, 2, 10);
    let known = known.into_inner().unwrap();
    assert_eq!(known.durable.keys().copied().collect::<Vec<_>>(), [0, 1, 2, 3], "the offsets are given again");
    assert_eq!(records(&log).unwrap(), known.durable);
    drop(steps);
    log.close().unwrap();
    let log = open_with(folder.path(), small(), Health::default());
    assert_eq!(records(&log).unwrap(), known.durable, "also after a start");
    log.close().unwrap();
}

#[test]
fn a_replay_after_an_fsync_that_failed_has_its_offsets_for_itself() {
    let folder = tempfile::tempdir().unwrap();
    let known = Mutex::default();
    let fails = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let steps = failing(folder.path(), Step::Sync, fails.clone());
    let log = open_with(folder.path(), small(), Health::default());
    append_some(&log, &known, 2, 10);
    let value = r#"{"type":"replayed"}"#;
    let letter = DeadLetter { value: Some(value.into()), ..letter(0) };
    keep(&log, vec![letter.clone()]).unwrap();
    fails.store(true, Ordering::Release);
    assert!(append_some(&log, &known, 3, 10).unavailable.is_some());
    assert_eq!(letters_of(&log).replay(&Filter::by_id(&letter.id()), None).unwrap().replayed, [letter.id()]);
    // The frames of the commit that failed are whole in the file that the next start finds.
    let killed = tempfile::tempdir().unwrap();
    copy_folder(folder.path(), killed.path());
    fails.store(false, Ordering::Release);
    drop(steps);
    log.close().unwrap();
    let log = open_with(killed.path(), small(), Health::default());
    let found = records(&log).unwrap();
    assert_eq!((found.len(), found[&2].as_str()), (3, value), "{found:?}");
    log.close().unwrap();
}

#[test]
fn what_could_not_be_written_is_refused_and_there_is_nothing_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let (known, health) = (Mutex::default(), Health::default());
    let fails = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let steps = failing(folder.path(), Step::Write, fails.clone());
    let log = open_with(folder.path(), small(), health.clone());
    append_some(&log, &known, 2, 10);
    fails.store(true, Ordering::Release);
    let delivery = append_some(&log, &known, 3, 10);
    assert!(delivery.durable == 0 && delivery.unavailable.is_none(), "{delivery:?}");
    assert!(delivery.refused.is_some_and(|why| why.contains("is the disk full")));
    eventually("unavailable", || why_unavailable(&health).is_some());
    fails.store(false, Ordering::Release);
    eventually("available", || why_unavailable(&health).is_none());
    append_some(&log, &known, 2, 10);
    drop(steps);
    log.close().unwrap();
    let log = open_with(folder.path(), small(), Health::default());
    assert_eq!(records(&log).unwrap(), known.into_inner().unwrap().durable);
    log.close().unwrap();
}

/// Opens what cannot be opened.
fn why_refused(folder: &Path) -> String {
    let (escalations, _) = mpsc::unbounded_channel();
    let config: LiveConfig = Arc::new(ArcSwap::from_pointee(small()));
    let opened = EmbeddedLog::open(folder, vec![], config, Health::default(), Arc::default(), escalations);
    format!("{:#}", opened.err().expect("it is refused"))
}

#[test]
fn an_older_copy_of_the_database_beside_newer_segments_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let known = Mutex::default();
    let log = open_with(folder.path(), small(), Health::default());
    append_some(&log, &known, 2, 10);
    log.close().unwrap();
    let older = std::fs::read(folder.path().join("log.db")).unwrap();
    let log = open_with(folder.path(), small(), Health::default());
    append_some(&log, &known, 2, 10);
    log.close().unwrap();
    std::fs::write(folder.path().join("log.db"), older).unwrap();
    let why = why_refused(folder.path());
    assert!(why.contains("log.segments/00000002.segment holds records from offset 2 on"), "{why}");
    assert!(why.contains("ends at 2") && why.contains("move the folder away"), "{why}");
}

#[test]
fn a_segment_that_is_gone_is_reported_and_no_offset_is_given_again() {
    let folder = tempfile::tempdir().unwrap();
    let known = Mutex::default();
    for _ in 0..2 {
        let log = open_with(folder.path(), small(), Health::default());
        append_some(&log, &known, 2, 10);
        log.close().unwrap();
    }
    std::fs::remove_file(folder.path().join("log.segments/00000002.segment")).unwrap();
    let log = open_with(folder.path(), small(), Health::default());
    append_some(&log, &known, 2, 10);
    assert_eq!(log.end.get(), Offset(6));
    let error = records(&log).unwrap_err().to_string();
    assert!(error.contains("log.db is damaged between offsets 2 and 4"), "{error}");
    log.close().unwrap();
}

#[test]
fn records_that_are_damaged_in_the_middle_are_no_torn_end() {
    let folder = tempfile::tempdir().unwrap();
    let known = Mutex::default();
    let log = open_with(folder.path(), small(), Health::default());
    for _ in 0..3 {
        append_some(&log, &known, 2, 10);
    }
    // As a kill leaves it, with a byte changed in the second commit.
    let killed = tempfile::tempdir().unwrap();
    copy_folder(folder.path(), killed.path());
    log.close().unwrap();
    damage(killed.path(), 2);
    let log = open_with(killed.path(), small(), Health::default());
    assert_eq!(log.end.get(), Offset(6), "what stands behind it was answered");
    let error = records(&log).unwrap_err().to_string();
    assert!(error.contains("is damaged between offsets 2 and 4"), "{error}");
    log.close().unwrap();
}

/// `log.db` as version 2 had it, with chunks of these offsets.
fn version_2(folder: &Path, chunks: &[std::ops::Range<u64>]) -> BTreeMap<u64, String> {
    const TABLES: &str = "
        CREATE TABLE chunks (base INTEGER PRIMARY KEY, count INTEGER NOT NULL, received INTEGER NOT NULL, records BLOB NOT NULL);
        CREATE TABLE cursors (sink TEXT PRIMARY KEY, position INTEGER NOT NULL) WITHOUT ROWID;
        CREATE TABLE meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
        CREATE TABLE dead_letters (
            id TEXT PRIMARY KEY, topic TEXT NOT NULL, generation INTEGER NOT NULL, partition INTEGER NOT NULL,
            offset INTEGER NOT NULL, received INTEGER NOT NULL, reason TEXT NOT NULL, message TEXT NOT NULL,
            time INTEGER NOT NULL, key BLOB, value BLOB, headers TEXT NOT NULL, state TEXT NOT NULL DEFAULT 'open'
        ) WITHOUT ROWID;
        CREATE INDEX dead_letters_by_time ON dead_letters (time, id);
        CREATE INDEX dead_letters_by_record ON dead_letters (topic, generation, partition, offset);
        INSERT INTO cursors VALUES ('archive', 3);
        INSERT INTO meta VALUES ('trimmed', 2), ('identity', 'x');
        PRAGMA user_version = 2;
    ";
    let database = rusqlite::Connection::open(folder.join("log.db")).unwrap();
    database.execute_batch(TABLES).unwrap();
    let mut all = BTreeMap::new();
    for chunk in chunks {
        let mut records = RecordBuffer::default();
        for offset in chunk.clone() {
            let value = format!(r#"{{"type":"a","old":{offset}}}"#);
            records.push(Offset(offset), Timestamp(5), None, Some(value.as_bytes()), []);
            all.insert(offset, value);
        }
        let row = (chunk.start as i64, records.len() as i64, 5, records.checksummed());
        database.execute("INSERT INTO chunks VALUES (?1, ?2, ?3, ?4)", row).unwrap();
    }
    all
}

#[test]
fn a_log_of_the_release_before_is_read_where_it_lies_until_it_is_trimmed_whenever_it_crashes() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("first");
    std::fs::create_dir(&folder).unwrap();
    let old = version_2(&folder, &[2..5, 5..6, 6..10]);
    let mut known = Known { durable: old.clone(), tried: old.values().cloned().collect(), ..Known::default() };
    let untouched = root.path().join("untouched");
    copy_folder_without_segments(&folder, &untouched);
    check(&untouched, &known, "an upgrade and no more");

    known.last = 1000;
    let known = Arc::new(Mutex::new(known));
    let crashes = Arc::new(Mutex::new(Crashes {
        folder: folder.clone(),
        copies: root.path().join("copies"),
        known: known.clone(),
        durable: BTreeMap::new(),
        made: Vec::new(),
        random: fastrand::Rng::with_seed(1),
    }));
    let told = crashes.clone();
    let steps = Steps::tell(folder.join("log.segments"), move |step| {
        told.lock().unwrap().step(step);
        Ok(())
    });
    let log = open_with(&folder, small(), Health::default());
    append_some(&log, &known, 3, 10);
    assert_eq!(records(&log).unwrap(), known.lock().unwrap().durable);
    log.settle_cursor("archive", Offset(6), PATIENCE);
    assert_eq!(start_beyond(&folder, 2), Offset(6));
    append_some(&log, &known, 1, 30_000);
    log.settle_cursor("archive", Offset(14), PATIENCE);
    append_some(&log, &known, 1, 30);
    assert_eq!(records(&log).unwrap().keys().copied().collect::<Vec<_>>(), [14]);
    drop(steps);
    log.close().unwrap();
    for (copy, known, what) in &crashes.lock().unwrap().made {
        check(copy, known, what);
    }
}

fn copy_folder_without_segments(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for (name, bytes) in files(from) {
        std::fs::write(to.join(name), bytes).unwrap();
    }
}

#[test]
fn a_format_of_a_later_release_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    open(folder.path()).close().unwrap();
    rusqlite::Connection::open(folder.path().join("log.db")).unwrap().pragma_update(None, "user_version", 4).unwrap();
    let why = why_refused(folder.path());
    assert!(why.contains("it has format 4, this release reads up to 3: use the release that wrote it"), "{why}");
}

#[test]
fn files_of_the_log_are_private() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let log = open(folder.path());
    append(&log, 1, 10);
    let mode = |name: &str| std::fs::metadata(folder.path().join(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("log.segments"), mode("log.segments/00000001.segment"), mode("log.db")), (0o700, 0o600, 0o600));
    log.close().unwrap();
}
