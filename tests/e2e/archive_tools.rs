//! `ingestd archive`: what an operator sees of an archive, running or not.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use serde_json::Value;

use crate::support::{
    PATIENCE,
    archive::Archive,
    daemon::{Daemon, Setup},
    events::Ledger,
    eventually, free_port,
    oracle::Oracle,
    program,
    services::{Exclusive, services},
};

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Its output, when it ended with this status.
#[track_caller]
fn with_status(status: i32, Output { status: exit, stdout, stderr }: Output) -> (String, String) {
    let (stdout, stderr) = (text(&stdout), text(&stderr));
    assert_eq!(exit.code(), Some(status), "{stdout}\n{stderr}");
    assert!(!stderr.contains("panicked"), "{stderr}");
    (stdout, stderr)
}

#[track_caller]
fn verified(daemon: &Daemon, status: i32) -> Value {
    let (report, _) = with_status(status, daemon.run(&["archive", "verify", "--json"]));
    serde_json::from_str(&report).expect("it is JSON")
}

fn records(report: &Value) -> u64 {
    report["partitions"].as_array().expect("a list").iter().filter_map(|each| each["records"].as_u64()).sum()
}

fn objects(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("it is there").map(|entry| entry.expect("readable").path()) {
        if entry.is_dir() {
            found.extend(objects(&entry));
        } else if entry.extension().is_some_and(|extension| extension == "zst") {
            found.push(entry);
        }
    }
    found.sort_by_key(|path| path.file_name().map(ToOwned::to_owned));
    found
}

#[test]
fn an_archive_is_listed_printed_and_verified_while_it_grows_and_each_damage_is_found() {
    let daemon = Setup::new("tools").set("spool.max_records", 300).start();
    let ledger = Ledger::new();
    let folder = daemon.data().join("archive");
    let mut oracle = Oracle::new(&ledger, Archive::local(&folder));
    std::thread::scope(|scope| {
        let posting = scope.spawn(|| ledger.post(&daemon.events_url(), 5_000, 2, PATIENCE));
        while !posting.is_finished() {
            assert_eq!(verified(&daemon, 0)["ok"], true);
        }
    });
    oracle.settle(&[&daemon], PATIENCE);
    assert_eq!(records(&verified(&daemon, 0)), 5_000);

    let (listed, _) = with_status(0, daemon.run(&["archive", "list", "--json"]));
    let keys: Vec<String> = listed
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("JSON")["key"].as_str().expect("a key").to_owned())
        .collect();
    let on_disk: Vec<String> = objects(&folder)
        .iter()
        .map(|path| path.strip_prefix(&folder).expect("below it").display().to_string())
        .collect();
    assert_eq!(keys, on_disk);
    assert!(keys.len() > 5, "{keys:?}");

    let (printed, _) = with_status(0, daemon.run(&["archive", "cat"]));
    let lines: Vec<&str> = printed.lines().collect();
    let plain: Vec<u8> = objects(&folder)
        .iter()
        .flat_map(|path| zstd::decode_all(fs::File::open(path).expect("readable")).expect("zstd"))
        .collect();
    assert!(printed.as_bytes() == plain, "the lines as they stand");
    let time = |line: &str| {
        let line: Value = serde_json::from_str(line).expect("JSON");
        line["received"].as_str().expect("a time").to_owned()
    };
    let (from, to) = (time(lines[1_000]), time(lines[4_000]));
    let (part, _) = with_status(0, daemon.run(&["archive", "cat", "--from", &from, "--to", &to]));
    let expected: Vec<&str> =
        lines.iter().copied().filter(|line| (from.as_str()..&to).contains(&&*time(line))).collect();
    assert!(part.lines().eq(expected.iter().copied()), "{} of {} lines", part.lines().count(), expected.len());
    let (part, _) = with_status(0, daemon.run(&["archive", "cat", "--offset", "700..1300", "--partition", "0"]));
    assert!(part.lines().eq(lines[700..1300].iter().copied()));

    // Whoever reads no further is no failure.
    let mut cat = Command::new(program());
    cat.args(["archive", "cat"]).args(daemon.settings()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut cat = cat.spawn().expect("it starts");
    drop(cat.stdout.take());
    with_status(0, cat.wait_with_output().expect("it ends"));
    daemon.terminate();

    let damaged = &objects(&folder)[2];
    let good = fs::read(damaged).expect("readable");
    assert_eq!(good[4] & 4, 4, "the frame carries a checksum of its content");
    for at in (6..good.len()).step_by(good.len() / 8) {
        let mut bad = good.clone();
        // All bits: a single one may be padding, which no decoder looks at.
        bad[at] ^= 0xff;
        fs::write(damaged, bad).expect("writable");
        let report = verified(&daemon, 1);
        assert_eq!(report["partitions"][0]["faults"][0]["kind"], "damaged", "byte {at}: {report}");
    }
    fs::remove_file(damaged).expect("it is there");
    let (table, _) = with_status(1, daemon.run(&["archive", "verify"]));
    assert!(table.contains("gap: ") && table.contains("1 faults"), "{table}");
}

#[test]
fn what_is_wrong_with_the_question_is_said_in_one_sentence() {
    let daemon = Setup::new("questions").start();
    let sentence = |status, arguments: &[&str]| {
        let (_, stderr) = with_status(status, daemon.run(arguments));
        stderr
    };
    for wrong in [
        ["archive", "list", "--partition", "-1"],
        ["archive", "cat", "--from", "yesterday"],
        ["archive", "cat", "--offset", "5"],
        ["archive", "list", "--topic", "../x"],
    ] {
        sentence(2, &wrong);
    }
    assert!(sentence(0, &["archive", "list", "--topic", "evnts"]).contains("nothing such of topic evnts"));
    assert!(sentence(1, &["archive", "skip", "events", "7", "--to", "5"]).contains("no partition 7"));
    let away = ["archive", "verify", "--set", "archive.url=s3://bucket/raw"];
    let endpoint = format!("archive.options.endpoint=http://127.0.0.1:{}", free_port());
    let keys = ["--set", "archive.options.access_key_id=a", "--set", "archive.options.secret_access_key=b"];
    let said = sentence(1, &[away.as_slice(), &["--set", &endpoint], &keys].concat());
    assert!(said.contains("s3://bucket/raw at http://127.0.0.1:") && said.contains("cannot be reached"), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    daemon.terminate();
}

#[test]
fn an_archive_in_a_bucket_is_verified_partition_by_partition() {
    let Some(services) = services() else { return };
    let ledger = Ledger::new();
    services.create_bucket("verify");
    let mut oracle = Oracle::new(&ledger, Archive::new(services.bucket("verify")));
    let daemon = services.setup("verify").start();
    ledger.post(&daemon.events_url(), 5_000, 2, PATIENCE);
    oracle.settle(&[&daemon], PATIENCE);
    let report = verified(&daemon, 0);
    assert_eq!((records(&report), report["partitions"].as_array().map(Vec::len)), (5_000, Some(4)), "{report}");
    let (lines, _) = with_status(0, daemon.run(&["archive", "cat", "--partition", "1", "--partition", "2"]));
    let in_two: u64 = [1, 2].iter().filter_map(|at| report["partitions"][*at]["records"].as_u64()).sum();
    assert_eq!(lines.lines().count() as u64, in_two);
    daemon.terminate();
}

/// Stands beside the daemon's readiness while its one partition is halted.
#[track_caller]
fn halted(daemon: &Daemon, words: &[&str]) -> Value {
    eventually(&format!("halted, with {words:?}"), PATIENCE, || {
        let halted = daemon.readiness()["halted"].clone();
        words.iter().all(|word| halted.to_string().contains(word)).then_some(halted)
    })
}

#[test]
fn a_partition_halted_at_a_hole_goes_on_when_the_operators_word_reaches_over_it() {
    let Some(services) = services() else { return };
    let ledger = Ledger::new();
    services.create_bucket("skip");
    let mut oracle = Oracle::new(&ledger, Archive::new(services.bucket("skip")));
    let setup = || services.setup("skip").set("queue.kafka.partitions", "1").set("store.kind", "none");
    let mut worker = setup().roles("worker").config("").start();
    let ingest = setup().roles("ingest").start();
    ledger.post(&ingest.events_url(), 300, 1, PATIENCE);
    oracle.settle_archive(PATIENCE);
    worker.terminate();

    ledger.post(&ingest.events_url(), 300, 1, PATIENCE);
    services.delete_records("skip", 0, 400);
    worker.restart();
    let hole = halted(&worker, &["offsets 300 to 400"]);
    let what_to_do = hole[0]["do"].as_str().expect("a sentence");
    assert!(what_to_do.contains("ingestd archive skip skip 0 --to 400"), "{what_to_do}");
    assert!(what_to_do.contains("archive.on_gap"), "{what_to_do}");

    let skip = |to: &'static str| worker.run(&["archive", "skip", "skip", "0", "--to", to, "--json"]);
    let (_, already) = with_status(1, skip("300"));
    assert!(already.contains("reaches offset 300 already"), "{already}");
    with_status(0, skip("399"));
    halted(&worker, &["offsets 300 to 400", "the word to skip to 399 does not reach that far"]);
    assert_eq!(records(&verified(&worker, 0)), 300);

    with_status(0, skip("400"));
    eventually("it goes on", PATIENCE, || (records(&verified(&worker, 0)) == 500).then_some(()));
    let report = verified(&worker, 0);
    let hole = &report["partitions"][0]["holes"][0];
    assert_eq!((hole["from"].as_u64(), hole["to"].as_u64()), (Some(300), Some(400)), "{report}");
    assert_eq!(worker.readiness()["halted"], serde_json::json!([]));
    // Each lost record is counted once, however often the hole was met.
    assert_eq!(worker.metric("ingestd_records_lost_total"), Some(100.0));
    worker.terminate();

    // The word is about that hole; the next one halts again, until the configuration says in advance that it may be left.
    ledger.post(&ingest.events_url(), 100, 1, PATIENCE);
    services.delete_records("skip", 0, 650);
    worker.restart();
    let hole = halted(&worker, &["offsets 600 to 650"]);
    assert!(!hole.to_string().contains("400"), "{hole}");
    worker.write_config("[archive]\non_gap = \"skip\"\n");
    assert_eq!(worker.reload().status, 200);
    eventually("it goes on", PATIENCE, || (records(&verified(&worker, 0)) == 550).then_some(()));
    worker.terminate();
    ingest.terminate();
}

/// A worker that was stopped while the store hung, with sealed segments in its data directory.
fn retired(services: &Exclusive, name: &'static str, ingest: &Daemon, ledger: &Ledger) -> Daemon {
    let setup = services.setup(name).set("store.kind", "none").roles("worker");
    let worker = setup.set("upload.timeout", "2s").set("shutdown.timeout", "4s").set("spool.max_records", 200).start();
    let mut oracle = Oracle::new(ledger, Archive::new(services.bucket(name)));
    ledger.post(&ingest.events_url(), 1_000, 1, PATIENCE);
    oracle.settle_archive(PATIENCE);
    let s3 = services.s3.process();
    let frozen = s3.freeze();
    ledger.post(&ingest.events_url(), 2_000, 1, PATIENCE);
    eventually("all are spooled", PATIENCE, || {
        (worker.metric("ingestd_events_consumed_total")? >= ledger.acknowledged() as f64).then_some(())
    });
    worker.signal("TERM");
    worker.wait_exit(PATIENCE);
    drop(frozen);
    assert!(objects(&worker.data().join("spool")).len() > 4);
    worker
}

fn drain(by: &Daemon, of: &Daemon) -> (Option<i32>, String) {
    let Output { status, stdout, stderr } = by.run(&["archive", "drain", &of.data().display().to_string()]);
    (status.code(), text(&stdout) + &text(&stderr))
}

#[test]
fn segments_of_a_retired_machine_are_drained_when_the_log_has_lost_their_records() {
    let Some(services) = services() else { return };
    let ledger = Ledger::new();
    services.create_bucket("drained");
    let ingest = services.setup("drained").set("store.kind", "none").roles("ingest").start();
    let retired = retired(&services, "drained", &ingest, &ledger);
    (0..4).for_each(|partition| services.delete_records("drained", partition, -1));
    let worker = services.setup("drained").set("store.kind", "none").roles("worker").start();
    halted(&worker, &["were removed from the log"]);

    let (status, said) = drain(&ingest, &retired);
    assert_eq!(status, Some(0), "{said}");
    assert!(said.contains("sent: drained partition ") && said.contains(" 0 left"), "{said}");
    assert!(objects(&retired.data().join("spool")).is_empty());
    assert_eq!(records(&verified(&ingest, 0)), 3_000);

    // The holes are filled, so whoever has the partitions now goes on by itself.
    eventually("none is halted", PATIENCE, || (worker.readiness()["halted"] == serde_json::json!([])).then_some(()));
    let mut oracle = Oracle::new(&ledger, Archive::new(services.bucket("drained")));
    ledger.post(&ingest.events_url(), 1_000, 1, PATIENCE);
    oracle.settle_archive(PATIENCE);
    assert_eq!(records(&verified(&ingest, 0)), 4_000);
    let (refused, said) = drain(&ingest, &worker);
    assert!(refused == Some(1) && said.contains("in use by another ingestd"), "{said}");
    worker.terminate();
    ingest.terminate();
}

#[test]
fn a_drain_beside_live_workers_of_the_same_partitions_doubles_nothing() {
    let Some(services) = services() else { return };
    let ledger = Ledger::new();
    services.create_bucket("beside");
    let ingest = services.setup("beside").set("store.kind", "none").roles("ingest").start();
    let retired = retired(&services, "beside", &ingest, &ledger);
    let mut oracle = Oracle::new(&ledger, Archive::new(services.bucket("beside")));
    // Other bounds, so that its objects are others, too.
    let setup = services.setup("beside").set("store.kind", "none").set("spool.max_records", 130);
    let worker = setup.roles("worker").start();
    std::thread::scope(|scope| {
        scope.spawn(|| ledger.post(&ingest.events_url(), 3_000, 1, PATIENCE));
        eventually("nothing is left", PATIENCE, || (drain(&ingest, &retired).0 == Some(0)).then_some(()));
    });
    oracle.settle_archive(PATIENCE);
    assert!(objects(&retired.data().join("spool")).is_empty());
    assert_eq!(records(&verified(&ingest, 0)), 6_000);
    worker.terminate();
    ingest.terminate();
}
