//! Dependencies that are away, wrong or locked: the daemon says which and why, and what can go on does.

use std::time::Duration;

use crate::support::{
    PATIENCE,
    archive::Archive,
    daemon::{Daemon, Setup},
    events::Ledger,
    eventually, free_port,
    oracle::Oracle,
    services::{self, services},
};

/// Waits for the sentence about the dependency: in readiness, or in the log of a process that gave up.
#[track_caller]
fn assert_complains(daemon: &Daemon, words: &[&str]) {
    let complaint = || {
        let text = match daemon.exit() {
            Some(exit) => {
                assert!(exit > 0, "it ended with {exit}");
                daemon.log()
            }
            // It listens before it has reached its dependencies, but not from the first moment.
            None => daemon.try_readiness().filter(|readiness| readiness["degraded"] == true)?.to_string(),
        };
        words.iter().all(|word| text.to_lowercase().contains(&word.to_lowercase())).then_some(())
    };
    eventually(&format!("a complaint with {words:?}"), PATIENCE, complaint);
    daemon.assert_no_panic();
}

/// A stop is bounded, whatever is away.
#[track_caller]
fn assert_stops(daemon: &Daemon) {
    daemon.signal("TERM");
    let exit = daemon.wait_exit(Duration::from_secs(40));
    assert!(matches!(exit, 0 | 1 | 4 | 78), "exit status {exit}");
    daemon.assert_no_panic();
}

#[test]
fn a_broker_that_is_away_is_named_and_events_are_refused_with_503() {
    let broker = format!("127.0.0.1:{}", free_port());
    let daemon = Setup::new("no-broker")
        .set("queue.kind", "kafka")
        .set("queue.kafka.brokers", &broker)
        .set("http.request_timeout", "3s")
        .set("shutdown.timeout", "5s")
        .spawn();
    assert_complains(&daemon, &[&broker]);
    if daemon.exit().is_none() {
        assert_eq!(daemon.get("/health/ready").status, 503);
        let reply = daemon.post(None, br#"{"type":"a"}"#);
        reply.assert_problem(503);
        assert!(reply.retry_after.is_some(), "{reply:?}");
    }
    assert_stops(&daemon);
}

#[test]
fn while_neither_sink_works_the_lag_tells_what_waits_and_so_does_the_stop() {
    let away = format!("127.0.0.1:{}", free_port());
    let daemon = Setup::new("no-sink")
        .set("archive.url", "s3://away")
        .set("archive.options.endpoint", format!("http://{away}"))
        .set("store.kind", "mongodb")
        .set("store.url", format!("mongodb://{away}/?serverSelectionTimeoutMS=1000"))
        .set("shutdown.timeout", "5s")
        .start();
    let ledger = Ledger::new();
    ledger.post(&daemon.events_url(), 500, 1, PATIENCE);
    for sink in ["archive", "aggregate"] {
        let name = format!("ingestd_lag_records{{sink=\"{sink}\",topic=\"events\",partition=\"0\"}}");
        eventually("the lag is what was sent", PATIENCE, || (daemon.metric(&name) == Some(500.0)).then_some(()));
    }
    assert_stops(&daemon);
    let log = daemon.log();
    assert_eq!(log.matches("records wait in the log for the next start").count(), 2, "{log}");
}

#[test]
fn without_mongodb_events_are_accepted_and_archived() {
    let address = format!("127.0.0.1:{}", free_port());
    let url = format!("mongodb://{address}/?serverSelectionTimeoutMS=1000");
    let setup = Setup::new("no-mongodb").set("store.kind", "mongodb").set("store.url", url);
    let daemon = setup.set("shutdown.timeout", "5s").set("aggregator.timeout", "2s").start();
    let ledger = Ledger::new();
    let mut oracle = Oracle::new(&ledger, Archive::local(&daemon.data().join("archive")));
    ledger.post(&daemon.events_url(), 2_000, 2, PATIENCE);
    oracle.settle_archive(PATIENCE);
    assert_complains(&daemon, &[&address]);
    let query = daemon.get("/v1/aggregates/events_by_type");
    assert_eq!(query.status, 503, "{query:?}");
    assert_stops(&daemon);
}

#[test]
fn without_the_object_store_events_are_accepted_and_counted() {
    let endpoint = format!("127.0.0.1:{}", free_port());
    let daemon = Setup::new("no-s3")
        .set("archive.url", "s3://bucket/raw")
        .set("archive.options.endpoint", format!("http://{endpoint}"))
        .set("archive.options.access_key_id", "test")
        .set("archive.options.secret_access_key", "test")
        .set("upload.timeout", "2s")
        .set("shutdown.timeout", "10m")
        .start();
    let ledger = Ledger::new();
    ledger.post(&daemon.events_url(), 2_000, 2, PATIENCE);
    eventually("all are counted", PATIENCE, || {
        (daemon.metric("ingestd_events_aggregated_total")? == 2_000.0).then_some(())
    });
    assert_complains(&daemon, &["bucket"]);
    // Far less than its time.
    daemon.terminate();
}

#[test]
fn a_bucket_that_does_not_exist_is_named() {
    let Some(services) = services() else { return };
    let daemon = Setup::new("no-bucket")
        .set("archive.url", "s3://no-such-bucket/raw")
        .set("archive.options.endpoint", format!("http://{}", services.s3.address()))
        .set("archive.options.access_key_id", "test")
        .set("archive.options.secret_access_key", "test")
        .set("shutdown.timeout", "5s")
        .spawn();
    assert_complains(&daemon, &["no-such-bucket"]);
    assert_stops(&daemon);
}

#[test]
fn a_wrong_password_for_mongodb_is_said_and_not_shown() {
    let Some(mongodb) = services::mongodb_with_password() else { return };
    let url = format!("mongodb://someone:open-sesame@{}/?directConnection=true", mongodb.address());
    let setup = Setup::new("password").set("store.kind", "mongodb").set("store.url", url);
    let daemon = setup.set("shutdown.timeout", "5s").spawn();
    assert_complains(&daemon, &["authentication"]);
    assert!(!daemon.log().contains("open-sesame"), "a secret in the log");
    assert_stops(&daemon);
}
