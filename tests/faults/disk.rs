//! The disk: full, read-only, and bytes on it that are not what was written.

use std::{
    fs::{self, OpenOptions},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use rustix::process::{getegid, geteuid};

use crate::{
    load,
    proxy::{Mood, Proxy},
    support::{
        PATIENCE, StopOnDrop,
        archive::Archive,
        daemon::{Daemon, Setup},
        events::Ledger,
        eventually,
        http::Client,
        log::{Evidence, frame_at},
        measured::DEFINITIONS,
        oracle::Oracle,
        scratch,
        services::{Exclusive, services},
        skip,
    },
};

fn as_root(program: &str) -> Command {
    if geteuid().is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("sudo");
    command.args(["-n", program]);
    command
}

/// A small file system of its own, unmounted at the end.
struct Tmpfs(PathBuf);

impl Tmpfs {
    /// `None`, and a loud line, where it cannot be had: the test is skipped.
    fn mount(options: &str) -> Option<Self> {
        let dir = tempfile::tempdir_in(scratch()).expect("target can be written to").keep();
        let ours = format!("{options},uid={},gid={}", geteuid().as_raw(), getegid().as_raw());
        let mounted = as_root("mount").args(["-t", "tmpfs", "-o", &ours, "tmpfs"]).arg(&dir).status();
        if mounted.is_ok_and(|status| status.success()) {
            return Some(Self(dir));
        }
        let why = "a tmpfs cannot be mounted here (it takes root, or a sudo that asks for no password)";
        // `./dev test` wants every test, but of a user only what a user can do.
        if geteuid().is_root() {
            skip(why)
        } else {
            eprintln!("\n!!! SKIPPED: {why}\n")
        }
        // Nothing was mounted on it.
        let _ = fs::remove_dir(&dir);
        None
    }

    fn remount(&self, options: &str) -> bool {
        let remounted = as_root("mount").args(["-o", &format!("remount,{options}")]).arg(&self.0).status();
        remounted.is_ok_and(|status| status.success())
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        // What a failed test leaves mounted is small.
        let _ = as_root("umount").args(["-l"]).arg(&self.0).status();
        let _ = fs::remove_dir(&self.0);
    }
}

#[test]
fn a_full_disk_is_answered_with_503_and_when_there_is_room_again_all_goes_on() {
    let Some(disk) = Tmpfs::mount("size=32m") else { return };
    let archive = tempfile::tempdir_in(scratch()).expect("target can be written to");
    // The watchdog's threshold is out of the way (99.5 %): writes fail in earnest.
    let daemon = Setup::new("full")
        .config(DEFINITIONS)
        .data(disk.0.join("data"))
        .set("archive.url", format!("file://{}", archive.path().display()))
        .set("queue.embedded.retention", "1h")
        .start();
    let ledger = Ledger::new();
    let mut oracle = Oracle::new(&ledger, Archive::local(archive.path()));
    ledger.post(&daemon.events_url(), 1_000, 2, PATIENCE);
    let (url, stop, ballast) = (daemon.events_url(), AtomicBool::new(false), disk.0.join("ballast"));
    thread::scope(|scope| {
        let _stop = StopOnDrop(&stop);
        scope.spawn(|| load::post_until(&ledger, &url, &stop));
        for _ in 0..2 {
            let refused = ledger.refused();
            fill(&ballast);
            eventually("events are refused", PATIENCE, || (ledger.refused() > refused + 3).then_some(()));
            assert_eq!(daemon.exit(), None, "a full disk ends no daemon");
            fs::remove_file(&ballast).expect("it was just made");
            let before = ledger.acknowledged();
            eventually("events come in again", PATIENCE, || (ledger.acknowledged() > before + 100).then_some(()));
        }
        stop.store(true, Ordering::Release);
    });
    oracle.settle(&[&daemon], PATIENCE);
    daemon.terminate();
    oracle.audit(&Evidence::embedded(daemon.data())).assert_clean();
}

/// Until nothing more fits.
fn fill(path: &Path) {
    let file = fs::File::create(path).expect("a name still fits");
    let (zeros, mut at) = (vec![0; 64 << 10], 0);
    let mut size = zeros.len();
    while size > 0 {
        match file.write_at(&zeros[..size], at) {
            Ok(written) => at += written as u64,
            Err(_) => size /= 2,
        }
    }
}

#[test]
fn a_data_directory_that_cannot_be_written_to_is_refused_with_its_name() {
    let Some(disk) = Tmpfs::mount("size=32m") else { return };
    let setup = Setup::new("readonly").data(disk.0.join("data"));
    let daemon = setup.clone().start();
    let ledger = Ledger::new();
    ledger.post(&daemon.events_url(), 100, 1, PATIENCE);
    daemon.terminate();
    assert!(disk.remount("ro"), "nothing is open for writing");
    let (exit, log) = setup.clone().run_to_end();
    assert_ne!(exit, 0);
    assert!(log.contains(&disk.0.display().to_string()) && log.contains("ead-only"), "{log}");
    assert!(!log.contains("panicked"), "{log}");
    assert!(disk.remount("rw"));
    let daemon = setup.start();
    let mut oracle = Oracle::new(&ledger, Archive::local(&daemon.data().join("archive")));
    ledger.post(&daemon.events_url(), 100, 1, PATIENCE);
    oracle.settle(&[&daemon], PATIENCE);
    daemon.terminate();
}

/// A daemon with an embedded log whose archive is a bucket behind a proxy that forbids all for now.
fn away<'a>(services: &Exclusive, name: &str, ledger: &'a Ledger) -> (Proxy, Daemon, Oracle<'a>) {
    let proxy = Proxy::new(services.s3.address());
    services.create_bucket_behind(name, &proxy.endpoint());
    let daemon = services
        .setup(name)
        .config(DEFINITIONS)
        .set("queue.kind", "embedded")
        .set("queue.topic", "events")
        .without("queue.kafka.brokers")
        .without("queue.kafka.group")
        .set("store.kind", "embedded")
        .without("store.url")
        .without("store.database")
        .set("queue.embedded.retention", "1h")
        .set("archive.options.endpoint", proxy.endpoint())
        .set("upload.max_backoff", "1s")
        .set("spool.max_records", "500")
        .set("batch.max_records", "100")
        .start();
    let oracle = Oracle::new(ledger, Archive::new(services.bucket(name)));
    (proxy, daemon, oracle)
}

/// Files of the spool with this ending, by their positions.
fn segments(daemon: &Daemon, ending: &str) -> Vec<PathBuf> {
    files(&daemon.data().join("spool/events/0"), ending)
}

fn files(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut found: Vec<_> = entries.filter(|path| path.extension().is_some_and(|it| it == ending)).collect();
    found.sort();
    found
}

/// Changes a byte in the middle.
fn flip(path: &Path) {
    let file = OpenOptions::new().read(true).write(true).open(path).expect("it is there");
    let at = file.metadata().expect("it is open").len() / 2;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("it is that long");
    byte[0] ^= 0x55;
    file.write_all_at(&byte, at).expect("it can be written to");
}

fn cut(path: &Path) {
    let file = OpenOptions::new().write(true).open(path).expect("it is there");
    let length = file.metadata().expect("it is open").len();
    file.set_len(length / 2).expect("it can be cut");
}

#[test]
fn torn_and_damaged_segments_are_set_aside_and_their_records_read_from_the_log_again() {
    let Some(services) = services() else { return };
    let ledger = Ledger::new();
    let (proxy, mut daemon, mut oracle) = away(&services, "torn", &ledger);
    ledger.post(&daemon.events_url(), 500, 2, PATIENCE);
    oracle.settle(&[&daemon], PATIENCE);

    // While it runs: the first segment that waits for the store changes under its feet.
    proxy.set(Mood::Forbids);
    ledger.post(&daemon.events_url(), 3_000, 2, PATIENCE);
    eventually("segments wait", PATIENCE, || (segments(&daemon, "json").len() >= 3).then_some(()));
    flip(&segments(&daemon, "zst")[0]);
    proxy.set(Mood::Honest);
    oracle.settle(&[&daemon], PATIENCE);

    // While it is dead: one of each kind. Where the head is old, segments on disk do not chain from it and are read
    // from the log again: so it has to be written before.
    let head = format!("http://{}/torn/raw/_chain/events/0.json", services.s3.address());
    eventually("the head is written", PATIENCE, || {
        let head = Client::new().get(&head).ok()?.json();
        (head["end"] == 3_500).then_some(())
    });
    proxy.set(Mood::Forbids);
    ledger.post(&daemon.events_url(), 5_000, 2, PATIENCE);
    eventually("segments wait", PATIENCE, || (segments(&daemon, "json").len() >= 4).then_some(()));
    ledger.post(&daemon.events_url(), 300, 1, PATIENCE);
    daemon.kill();
    let sealed = segments(&daemon, "zst");
    cut(&sealed[1]);
    flip(&sealed[2]);
    fs::write(sealed[3].with_extension("json"), "{\"vers").expect("it can be written to");
    segments(&daemon, "open").iter().for_each(|open| cut(open));
    proxy.set(Mood::Honest);
    daemon.restart();
    ledger.post(&daemon.events_url(), 500, 2, PATIENCE);
    oracle.settle(&[&daemon], PATIENCE);
    daemon.terminate();
    oracle.audit(&Evidence::embedded(daemon.data())).assert_clean();
    // What follows a segment that was set aside is in the log as well, and is read from there.
    let set_aside = files(&daemon.data().join("orphaned/events/0"), "zst").len();
    assert!(set_aside >= 2, "what was damaged is kept for the operator: {set_aside} files");
    let headers = files(&daemon.data().join("orphaned/events/0"), "json");
    let torn = headers.iter().filter(|header| fs::read(header).is_ok_and(|text| text == b"{\"vers")).count();
    assert_eq!(torn, 1, "a header that cannot be read is kept, too");
    assert!(!daemon.log().contains("cannot be spooled"), "nothing of it fails the scan of the others");
}

#[test]
fn a_damaged_record_of_the_embedded_log_is_named_and_nothing_behind_it_is_skipped_to() {
    let Some(services) = services() else { return };
    let ledger = Ledger::new();
    let (proxy, mut daemon, mut oracle) = away(&services, "damaged", &ledger);
    ledger.post(&daemon.events_url(), 500, 2, PATIENCE);
    oracle.settle(&[&daemon], PATIENCE);
    proxy.set(Mood::Forbids);
    ledger.post(&daemon.events_url(), 2_000, 2, PATIENCE);
    daemon.kill();
    // Only the log has the records now, and one of them is damaged.
    fs::remove_dir_all(daemon.data().join("spool")).expect("segments were there");
    let damaged = damage_log(daemon.data(), 1_500);
    proxy.set(Mood::Honest);
    daemon.restart();
    let failing = eventually("the archive's consumer says so", PATIENCE, || {
        let readiness = daemon.try_readiness()?;
        let reason = readiness["actors"]["consumer-archive"]["reason"].as_str()?.to_owned();
        // What comes in is accepted as before.
        let ready = readiness["ready"] == true && readiness["degraded"] == true;
        (ready && reason.contains("log.db") && reason.contains("damaged")).then_some(reason)
    });
    let said = daemon.log().lines().filter(|line| line.contains("is damaged between")).count();
    assert_eq!(said, 1, "an operator reads it, and is not flooded");
    assert!(failing.contains("queue.generation"), "it says what to do: {failing}");
    ledger.post(&daemon.events_url(), 200, 1, PATIENCE);
    // All before the damage is archived, and nothing of it or behind it.
    eventually("what can be read is archived", PATIENCE, || {
        oracle.refresh();
        (oracle.last_archived() + 1 == damaged).then_some(())
    });
    // The stop seals and uploads whatever is spooled.
    daemon.signal("TERM");
    assert_eq!(daemon.wait_exit(PATIENCE), 0);
    oracle.refresh();
    assert_eq!(oracle.last_archived() + 1, damaged, "the damage begins there");
}

/// Changes a byte of a record in the frame that holds `offset`; returns the frame's first offset.
fn damage_log(data: &Path, offset: u64) -> u64 {
    let (path, records, base) = frame_at(data, offset);
    let mut bytes = fs::read(&path).expect("it was just read");
    bytes[records.start + records.len() / 2] ^= 0x55;
    fs::write(path, bytes).expect("it can be written to");
    base
}
