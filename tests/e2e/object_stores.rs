//! Object stores as they are met: not atomic, locked, not to be listed, behind variables of the environment.

use std::time::{Duration, Instant};

use crate::support::{
    PATIENCE,
    daemon::{Ran, Setup},
    events::Ledger,
    eventually, program,
    s3::{Behaviour, S3},
    services::services,
};

fn on(s3: &S3) -> Setup {
    Setup::new("s3")
        .set("archive.url", "s3://bucket/raw")
        .set("archive.options.endpoint", s3.url())
        .set("archive.options.access_key_id", "test")
        .set("archive.options.secret_access_key", "test")
        .set("store.kind", "none")
}

/// `ingestd check`, with variables of the environment.
fn check(arguments: &[&str], settings: &[(&str, &str)], environment: &[(&str, &str)]) -> Ran {
    let mut command = std::process::Command::new(program());
    command
        .args(["check", "--json", "--set", "store.kind=none"])
        .args(arguments)
        .current_dir(crate::support::scratch());
    for (key, value) in settings {
        command.args(["--set", &format!("{key}={value}")]);
    }
    let output = command.envs(environment.iter().copied()).output().expect("the program runs");
    let text = |bytes| String::from_utf8(bytes).expect("it prints UTF-8");
    Ran { status: output.status.code(), out: text(output.stdout), error: text(output.stderr) }
}

fn settings(url: &str) -> [(&str, &str); 4] {
    [
        ("archive.url", "s3://bucket/raw"),
        ("archive.options.endpoint", url),
        ("archive.options.access_key_id", "test"),
        ("archive.options.secret_access_key", "test"),
    ]
}

/// What `check --connect` says of the archive.
#[track_caller]
fn archive_line(ran: &Ran, status: i32) -> String {
    let report = ran.json(status);
    let lines = report["dependencies"].as_array().expect("a list").clone();
    let line = lines.iter().find(|line| line["what"].as_str().is_some_and(|what| what.starts_with("archive")));
    line.expect("the archive is asked").to_string()
}

#[test]
fn a_store_that_looks_before_it_writes_is_refused_and_one_that_decides_is_raced_once() {
    let looks_first = S3::start(Behaviour { looks_first: true, ..Behaviour::default() });
    let refused = archive_line(&check(&["--connect"], &settings(&looks_first.url()), &[]), 1);
    assert!(refused.contains("16 were answered with success") && refused.contains("docs/stores.md"), "{refused}");
    let daemon = on(&looks_first).start();
    eventually("its partition is halted", PATIENCE, || {
        let halted = daemon.readiness()["halted"].to_string();
        (halted.contains("16 were answered with success") && halted.contains("archive.url")).then_some(())
    });
    daemon.terminate();
    assert!(!looks_first.keys().iter().any(|key| key.ends_with("race.json")), "nothing says that it passed");

    let atomic = S3::start(Behaviour::default());
    let daemon = on(&atomic).start();
    let races = || atomic.keys().iter().filter(|key| key.contains("_chain/race-")).count();
    eventually("it passed", PATIENCE, || atomic.keys().iter().any(|key| key == "raw/_chain/race.json").then_some(()));
    assert_eq!(races(), 4);
    Ledger::new().post(&daemon.events_url(), 100, 1, PATIENCE);
    eventually("they are archived", PATIENCE, || {
        (daemon.metric("ingestd_events_archived_total")? == 100.0).then_some(())
    });
    let mut daemon = daemon;
    daemon.terminate();
    daemon.restart();
    Ledger::new().post(&daemon.events_url(), 100, 1, PATIENCE);
    eventually("more are archived", PATIENCE, || {
        (daemon.metric("ingestd_events_archived_total")? == 100.0).then_some(())
    });
    assert_eq!(races(), 4, "a start goes on with the cheap question");
    assert_eq!(daemon.command(&["archive", "verify", "--json"]).json(0)["ok"], true);
    daemon.terminate();
    let passed = archive_line(&check(&["--connect", "--thorough"], &settings(&atomic.url()), &[]), 0);
    assert!(passed.contains("of 64") && passed.contains("32 rounds"), "{passed}");
    assert_eq!(races(), 36);
}

#[test]
fn seaweedfs_lets_one_of_many_win() {
    let Some(services) = services() else { return };
    services.create_new_bucket("race");
    let url = format!("http://{}", services.s3.address());
    let mut settings = settings(&url);
    settings[0].1 = "s3://race/raw";
    let passed = archive_line(&check(&["--connect"], &settings, &[]), 0);
    assert!(passed.contains("one wins"), "{passed}");
}

#[test]
fn an_object_that_another_writer_has_overwritten_halts_its_partition_and_verify_finds_what_is_gone() {
    overwritten(Behaviour::default());
    // Its own PUT is found by the next attempt, and watched as well.
    overwritten(Behaviour { loses_answers: true, ..Behaviour::default() });
}

fn overwritten(behaviour: Behaviour) {
    let s3 = S3::start(behaviour);
    let daemon = on(&s3).set("spool.max_records", 50).set("spool.max_age", "5s").start();
    let ledger = Ledger::new();
    let archived = |records: f64| {
        eventually("they are archived", PATIENCE, || {
            (daemon.metric("ingestd_events_archived_total")? == records).then_some(())
        });
    };
    ledger.post(&daemon.events_url(), 100, 1, PATIENCE);
    archived(100.0);
    let key = s3.keys().into_iter().find(|key| key.ends_with("0-00000000000000000000.ndjson.zst")).expect("the first");
    // A late PUT of the same position, cut elsewhere.
    s3.overwrite(&key, |object| {
        let lines = zstd::decode_all(object).expect("zstd");
        let end = lines.iter().enumerate().find(|(_, byte)| **byte == b'\n').expect("a line").0;
        let mut encoder = zstd::Encoder::new(Vec::new(), 1).expect("it is made");
        encoder.include_checksum(true).expect("it can");
        std::io::Write::write_all(&mut encoder, &lines[..=end]).expect("into memory");
        encoder.finish().expect("into memory")
    });
    eventually("its partition is halted", PATIENCE, || {
        let halted = daemon.readiness()["halted"].to_string();
        (halted.contains(key.trim_start_matches("raw/")) && halted.contains("archive verify")).then_some(())
    });
    let report = daemon.command(&["archive", "verify", "--json"]).json(1);
    assert_eq!(report["partitions"][0]["faults"][0]["kind"], "gap", "{report}");
    daemon.terminate();
}

#[test]
fn what_the_configuration_says_wins_over_the_clouds_variables_whole() {
    let (mine, theirs) = (S3::start(Behaviour::default()), S3::start(Behaviour::default()));
    let (url, their_url) = (mine.url(), theirs.url());
    let around = [
        ("AWS_ENDPOINT_URL_S3", their_url.as_str()),
        ("AWS_ENDPOINT_URL", &their_url),
        ("AWS_SESSION_TOKEN", "somebody-elses"),
        ("AWS_REGION", ""),
        ("AWS_CONDITIONAL_PUT", "disabled"),
    ];
    let line = archive_line(&check(&["--connect"], &settings(&url), &around), 0);
    assert!(line.contains(&format!("s3://bucket/raw at {url}")), "{line}");
    assert_eq!(theirs.requests(), [""; 0]);
    let sent = mine.requests();
    assert!(!sent.is_empty() && sent.iter().all(|head| !head.contains("somebody-elses")), "{sent:?}");
    assert!(sent.iter().all(|head| head.starts_with("GET") || head.contains("/us-east-1/s3/aws4_request")), "{sent:?}");

    // From the environment alone, over http as well, and said so.
    let keys = [("AWS_ACCESS_KEY_ID", "test"), ("AWS_SECRET_ACCESS_KEY", "test")];
    let from_environment = [("archive.url", "s3://bucket/raw"), ("archive.options.region", "")];
    let line = archive_line(&check(&["--connect"], &from_environment, &[&around[..1], &keys].concat()), 0);
    assert!(line.contains(&format!("{their_url} (AWS_ENDPOINT_URL_S3)")), "{line}");
    assert!(!theirs.keys().is_empty());
    let mut shown = std::process::Command::new(program());
    shown.args(["config", "--set", "archive.url=s3://bucket/raw"]).envs(around).envs(keys);
    let shown = shown.current_dir(crate::support::scratch()).output().expect("the program runs");
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.contains(&format!("aws_endpoint_url_s3 = \"{their_url}\"")), "{shown}");

    let setup = on(&mine).environment("AWS_ENDPOINT_URL_S3", &their_url);
    let daemon = setup.start();
    eventually("the banner", PATIENCE, || daemon.log().contains(&format!("s3://bucket/raw at {url}\n")).then_some(()));
    let remark = || daemon.readiness()["dependencies"]["object_store"]["reason"].to_string();
    eventually("readiness", PATIENCE, || remark().contains(&url).then_some(()));
    daemon.terminate();
}

#[test]
fn what_the_stores_client_stumbles_over_is_refused_by_check_and_run_alike() {
    let options = |name: &'static str, value: &'static str| vec![("archive.url", "s3://b"), (name, value)];
    let cases = [
        (options("archive.options.endpoint", "127.0.0.1:8333"), "archive.options.endpoint"),
        (options("archive.options.endpoint", "s3.example.com"), "archive.options.endpoint"),
        (options("archive.options.session_token", "a\nb"), "archive.options.session_token"),
        (options("archive.options.checksum_algorithm", "md5"), "archive.options.checksum_algorithm"),
        (options("archive.options.skip_signature", "perhaps"), "archive.options.skip_signature"),
        (options("archive.options.access_key_id", "half"), "archive.options.access_key_id"),
        (options("archive.options.timeout", "soon"), "archive.options.timeout"),
        (vec![("archive.url", "s3://b/a//b")], "archive.url"),
        (vec![("archive.url", "s3://b:9000/a")], "archive.url"),
        (
            vec![("archive.url", "gs://b"), ("archive.options.service_account", "/no/such/file")],
            "archive.options.service_account",
        ),
        (vec![("archive.url", "gs://b"), ("archive.options.endpoint", "http://127.0.0.1:1")], "base_url"),
        (
            vec![("archive.url", "az://c"), ("archive.options.account_name", "a"), ("archive.options.endpoint", "x")],
            "archive.options.endpoint",
        ),
    ];
    for (settings, named) in cases {
        let checked = check(&[], &settings, &[]);
        assert!(checked.out.contains(named) && !checked.error.contains("panicked"), "{settings:?}: {checked:?}");
        checked.json(78);
        let mut setup = Setup::new("refused");
        for (key, value) in &settings {
            setup = setup.set(key, value);
        }
        let (exit, log) = setup.run_to_end();
        assert!(exit == 78 && log.contains(named) && !log.contains("panicked"), "{settings:?}: {exit}, {log}");
    }
    let variable = check(&[], &[("archive.url", "s3://b")], &[("AWS_ENDPOINT_URL", "localhost:8333")]);
    assert!(variable.json(78).to_string().contains("AWS_ENDPOINT_URL"), "{variable:?}");
    // A front end has no archive to open.
    let front_end = [
        ("archive.url", "gs://b"),
        ("archive.options.service_account", "/no/such/file"),
        ("roles", "ingest"),
        ("queue.kind", "kafka"),
        ("queue.kafka.brokers", "127.0.0.1:1"),
    ];
    check(&[], &front_end, &[]).json(0);
}

#[test]
fn a_bucket_with_object_lock_takes_the_archive_and_a_store_without_checksums_is_told_which_option() {
    let locked = S3::start(Behaviour { locked: true, ..Behaviour::default() });
    archive_line(&check(&["--connect"], &settings(&locked.url()), &[]), 0);
    let url = locked.url();
    let without = [settings(&url).as_slice(), &[("archive.options.checksum_algorithm", "none")]].concat();
    let refused = archive_line(&check(&["--connect"], &without, &[]), 1);
    assert!(refused.contains("answers 400") && refused.contains("archive.options.checksum_algorithm"), "{refused}");

    let other = S3::start(Behaviour { refuses_checksums: true, ..Behaviour::default() });
    let refused = archive_line(&check(&["--connect"], &settings(&other.url()), &[]), 1);
    assert!(refused.contains("answers 400") && refused.contains("archive.options.checksum_algorithm"), "{refused}");
    let url = other.url();
    let without = [settings(&url).as_slice(), &[("archive.options.checksum_algorithm", "none")]].concat();
    archive_line(&check(&["--connect"], &without, &[]), 0);
}

#[test]
fn without_the_right_to_list_check_and_daemon_name_it() {
    let s3 = S3::start(Behaviour { lists_not: true, ..Behaviour::default() });
    let refused = archive_line(&check(&["--connect"], &settings(&s3.url()), &[]), 1);
    assert!(refused.contains("s3:ListBucket"), "{refused}");
    let daemon = on(&s3).start();
    eventually("it is degraded", PATIENCE, || {
        daemon.readiness()["dependencies"]["object_store"]["reason"].as_str()?.contains("s3:ListBucket").then_some(())
    });
    daemon.terminate();
}

#[test]
fn keys_begin_with_the_prefix_as_it_was_typed_and_an_archive_that_is_encoded_goes_on() {
    let folder = tempfile::tempdir_in(crate::support::scratch()).expect("target can be written to");
    let typed = |s3: &S3, data: &str| {
        let daemon = on(s3).data(folder.path().join(data)).set("archive.url", "s3://bucket/my café").start();
        Ledger::new().post(&daemon.events_url(), 10, 1, PATIENCE);
        eventually("they are archived", PATIENCE, || {
            (daemon.metric("ingestd_events_archived_total")? == 10.0).then_some(())
        });
        let verified = daemon.command(&["archive", "verify", "--json"]).json(0);
        daemon.terminate();
        (s3.keys(), verified)
    };
    let (keys, _) = typed(&S3::start(Behaviour::default()), "new");
    assert!(keys.iter().all(|key| key.starts_with("my café/")), "{keys:?}");

    let old = S3::start(Behaviour::default());
    // As releases before this one named the prefix.
    let encoded = on(&old).data(folder.path().join("old")).set("archive.url", "s3://bucket/my%20caf%C3%A9").start();
    eventually("its archive is begun", PATIENCE, || {
        old.keys().iter().any(|key| key.ends_with("/0.json")).then_some(())
    });
    encoded.terminate();
    let (keys, verified) = typed(&old, "old");
    assert!(keys.iter().all(|key| key.starts_with("my%20caf%C3%A9/")), "{keys:?}");
    assert_eq!(verified["partitions"][0]["records"], 10, "{verified}");
}

#[test]
fn a_gcs_endpoint_is_called_base_url_over_http_and_without_a_signature_nobody_is_asked_for_one() {
    let gcs = S3::start(Behaviour::default());
    let url = gcs.url();
    let settings = [
        ("archive.url", "gs://bucket/raw"),
        ("archive.options.base_url", url.as_str()),
        ("archive.options.skip_signature", "true"),
    ];
    let line = archive_line(&check(&["--connect"], &settings, &[]), 0);
    assert!(line.contains(&format!("gs://bucket/raw at {url}")), "{line}");
    assert!(gcs.keys().contains(&"raw/_chain/probe.json".to_owned()), "{:?}", gcs.keys());
}

#[test]
fn an_archive_that_takes_one_partitions_objects_and_not_anothers_is_unavailable_for_as_long_and_said_so_once() {
    let Some(services) = services() else { return };
    let s3 = S3::start(Behaviour { refuses: Some("1-"), ..Behaviour::default() });
    let daemon = on(&s3)
        .set("queue.kind", "kafka")
        .set("queue.topic", "half")
        .set("queue.kafka.brokers", services.kafka.address())
        .set("queue.kafka.group", "half")
        .set("queue.kafka.partitions", "2")
        .set("spool.max_age", "100ms")
        .set("upload.backoff", "50ms")
        .set("upload.max_backoff", "200ms")
        .start();
    let store = || daemon.readiness()["dependencies"]["object_store"].clone();
    let mut clients = (0..).map(|n| format!("client-{n}"));
    let mut post = || {
        let client = clients.next().expect("endless");
        assert_eq!(daemon.post(None, format!(r#"{{"type":"a","client_id":"{client}"}}"#).as_bytes()).status, 200);
    };
    eventually("one partition's objects are refused", PATIENCE, || {
        post();
        (store()["available"] == false).then_some(())
    });
    let archived = || daemon.metric("ingestd_events_archived_total").unwrap_or_default();
    // The other partition's are put, again and again, all the while.
    let (began, before) = (Instant::now(), archived());
    while began.elapsed() < Duration::from_secs(4) || archived() < before + 10.0 {
        assert!(began.elapsed() < PATIENCE, "nothing is archived");
        post();
        let now = store();
        assert!(now["available"] == false && now["reason"].to_string().contains("SlowDown"), "{now}");
    }
    let lines = daemon
        .log()
        .lines()
        .filter(|line| line.contains("dependency unavailable") && line.contains("object_store"))
        .count();
    assert_eq!(lines, 1, "{}", daemon.log());
    daemon.kill();
}
