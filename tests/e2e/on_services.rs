//! Kafka, S3 and MongoDB, real ones, and the failures that they have in the field.

use std::{thread, time::Duration};

use serde_json::Value;

use crate::support::{
    PATIENCE,
    archive::Archive,
    events::Ledger,
    events_to_send, eventually,
    oracle::Oracle,
    services::{Exclusive, services},
};

const MEMORY: u64 = 200 << 20;

/// A bucket, and the oracle that reads it.
fn oracle_of<'a>(services: &Exclusive, name: &str, ledger: &'a Ledger) -> Oracle<'a> {
    services.create_bucket(name);
    Oracle::new(ledger, Archive::new(services.bucket(name)))
}

#[test]
fn one_process_carries_every_event_once_into_the_bucket_and_the_database() {
    let Some(services) = services() else { return };
    let ledger = Ledger::new();
    let mut oracle = oracle_of(&services, "whole", &ledger);
    let mut daemon = services.setup("whole").set("store.events", "true").start();
    ledger.post(&daemon.events_url(), events_to_send(), 4, PATIENCE);
    oracle.settle(&[&daemon], PATIENCE);
    daemon.check_memory(MEMORY);
    oracle.check_documents(&services.documents("whole", "aggregate_events_by_type"));
    assert_eq!(services.documents("whole", "events").len() as u64, oracle.valid());

    daemon.terminate();
    daemon.restart();
    ledger.post(&daemon.events_url(), 1_000, 2, PATIENCE);
    oracle.settle(&[&daemon], PATIENCE);
    daemon.terminate();
    oracle.settle_archive(PATIENCE);
    oracle.check_documents(&services.documents("whole", "aggregate_events_by_type"));
    assert_eq!(services.documents("whole", "events").len() as u64, oracle.valid());
}

#[test]
fn workers_share_the_partitions_and_kill_9_of_one_doubles_nothing() {
    let Some(services) = services() else { return };
    let ledger = Ledger::new();
    let mut oracle = oracle_of(&services, "shared", &ledger);
    let ingest = services.setup("shared").roles("ingest").start();
    let mut first = services.setup("shared").roles("worker").start();
    let second = services.setup("shared").roles("worker").start();
    let url = ingest.events_url();
    thread::scope(|scope| {
        let posting = scope.spawn(|| ledger.post(&url, events_to_send(), 4, PATIENCE));
        eventually("the first worker archives", PATIENCE, || {
            let archives = first.metric("ingestd_events_archived_total")? > 0.0;
            (archives || posting.is_finished()).then_some(())
        });
        first.kill();
        first.restart();
    });
    oracle.settle(&[&second, &first, &ingest], PATIENCE);
    for daemon in [&ingest, &first, &second] {
        daemon.check_memory(MEMORY);
        daemon.terminate();
    }
    oracle.settle_archive(PATIENCE);
    oracle.check_documents(&services.documents("shared", "aggregate_events_by_type"));
}

#[test]
fn a_frozen_worker_is_replaced_and_doubles_nothing_when_it_wakes_up() {
    let Some(services) = services() else { return };
    let ledger = Ledger::new();
    let mut oracle = oracle_of(&services, "zombie", &ledger);
    let ingest = services.setup("zombie").roles("ingest").start();
    let first = services.setup("zombie").roles("worker").start();
    let second = services.setup("zombie").roles("worker").start();
    ledger.post(&ingest.events_url(), 3_000, 2, PATIENCE);
    eventually("the first worker has work", PATIENCE, || {
        (first.metric("ingestd_events_consumed_total")? > 0.0).then_some(())
    });
    let frozen = first.freeze();
    ledger.post(&ingest.events_url(), 3_000, 2, PATIENCE);
    // Only after its session's timeout does the other one get its partitions.
    oracle.settle(&[&second], PATIENCE);
    drop(frozen);
    ledger.post(&ingest.events_url(), 3_000, 2, PATIENCE);
    oracle.settle(&[&second, &first], PATIENCE);
    for daemon in [&ingest, &first, &second] {
        daemon.terminate();
    }
    oracle.settle_archive(PATIENCE);
    oracle.check_documents(&services.documents("zombie", "aggregate_events_by_type"));
}

#[test]
fn a_record_that_is_no_event_is_archived_and_dead_lettered_and_the_line_goes_on() {
    let Some(services) = services() else { return };
    let ledger = Ledger::new();
    let mut oracle = oracle_of(&services, "letters", &ledger);
    let daemon = services.setup("letters").set("queue.kafka.partitions", "1").start();
    ledger.post(&daemon.events_url(), 100, 1, PATIENCE);
    // The last is JSON that is nested deeper than readers of the archive can parse.
    let deep = [b"[".repeat(300), b"]".repeat(300)].concat();
    for foreign in [&b"\xff\x00 not JSON\n"[..], b"{\"no\":\"type\"}", b"{\"type\":\"a\"} trailing", &deep] {
        services.produce("letters", foreign);
        oracle.expect_foreign(foreign);
    }
    ledger.post(&daemon.events_url(), 100, 1, PATIENCE);
    oracle.settle(&[&daemon], PATIENCE);
    assert_eq!(daemon.metric("ingestd_events_dead_lettered_total"), Some(4.0));
    let letters = services.read_topic("letters.dlq");
    let keys: Vec<_> = letters.iter().map(|letter| letter.key.as_deref().unwrap_or_default()).collect();
    assert_eq!(keys, [&b"letters/0/100"[..], b"letters/0/101", b"letters/0/102", b"letters/0/103"]);
    for (letter, reason) in letters.iter().zip(["invalid_json", "missing_type", "invalid_json", "invalid_json"]) {
        assert_eq!(letter.header("ingestd-reason"), Some(reason), "{letter:?}");
    }
    let printed = daemon.run(&["archive", "cat", "--offset", "100..104"]).stdout;
    let lines: Vec<Value> = printed
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_slice(line).expect("any reader parses it"))
        .collect();
    let is_raw: Vec<bool> = lines.iter().map(|line| line["raw"].is_string()).collect();
    assert_eq!(is_raw, [true, false, true, true], "{lines:?}");
    daemon.terminate();
}

#[test]
fn while_mongodb_hangs_the_archive_goes_on_and_afterwards_the_aggregates_catch_up() {
    let Some(services) = services() else { return };
    let ledger = Ledger::new();
    let mut oracle = oracle_of(&services, "nomongo", &ledger);
    let daemon = services.setup("nomongo").set("aggregator.timeout", "2s").start();
    ledger.post(&daemon.events_url(), 1_000, 2, PATIENCE);
    oracle.settle(&[&daemon], PATIENCE);
    {
        let mongodb = services.mongodb.process();
        let _frozen = mongodb.freeze();
        ledger.post(&daemon.events_url(), 3_000, 2, PATIENCE);
        oracle.settle_archive(PATIENCE);
        let readiness = eventually("degraded", PATIENCE, || {
            let readiness = daemon.readiness();
            (readiness["degraded"] == true).then_some(readiness)
        });
        assert_eq!(readiness["ready"], true, "ingest goes on: {readiness}");
    }
    oracle.settle(&[&daemon], PATIENCE);
    eventually("healthy", PATIENCE, || (daemon.readiness()["degraded"] == false).then_some(()));
    daemon.terminate();
    oracle.check_documents(&services.documents("nomongo", "aggregate_events_by_type"));
}

#[test]
fn while_the_object_store_hangs_the_aggregates_go_on_and_afterwards_the_archive_catches_up() {
    let Some(services) = services() else { return };
    let ledger = Ledger::new();
    let mut oracle = oracle_of(&services, "nobucket", &ledger);
    let daemon = services.setup("nobucket").set("upload.timeout", "2s").start();
    ledger.post(&daemon.events_url(), 1_000, 2, PATIENCE);
    oracle.settle(&[&daemon], PATIENCE);
    {
        let s3 = services.s3.process();
        let _frozen = s3.freeze();
        ledger.post(&daemon.events_url(), 3_000, 2, PATIENCE);
        eventually("all are counted", PATIENCE, || {
            (daemon.metric("ingestd_events_aggregated_total")? >= ledger.acknowledged() as f64).then_some(())
        });
        let readiness = eventually("degraded", PATIENCE, || {
            let readiness = daemon.readiness();
            (readiness["degraded"] == true).then_some(readiness)
        });
        assert_eq!(readiness["ready"], true, "ingest goes on: {readiness}");
    }
    oracle.settle(&[&daemon], PATIENCE);
    daemon.terminate();
}

#[test]
fn a_stop_is_bounded_also_while_mongodb_hangs() {
    let Some(services) = services() else { return };
    let ledger = Ledger::new();
    let mut oracle = oracle_of(&services, "stuck", &ledger);
    let mut daemon = services.setup("stuck").set("shutdown.timeout", "5s").start();
    {
        let mongodb = services.mongodb.process();
        let _frozen = mongodb.freeze();
        ledger.post(&daemon.events_url(), 1_000, 2, PATIENCE);
        daemon.signal("TERM");
        let exit = daemon.wait_exit(Duration::from_secs(15));
        assert!(matches!(exit, 0 | 4), "exit status {exit}");
        daemon.assert_no_panic();
    }
    daemon.restart();
    oracle.settle(&[&daemon], PATIENCE);
    daemon.terminate();
}

#[test]
fn while_the_broker_hangs_events_are_refused_with_503_and_afterwards_accepted() {
    let Some(services) = services() else { return };
    let ledger = Ledger::new();
    let mut oracle = oracle_of(&services, "nokafka", &ledger);
    let daemon = services.setup("nokafka").set("http.request_timeout", "3s").start();
    ledger.post(&daemon.events_url(), 1_000, 2, PATIENCE);
    thread::scope(|scope| {
        let kafka = services.kafka.process();
        let frozen = kafka.freeze();
        // It has no 2xx while the broker hangs; the ledger tries again until it has.
        let posting = scope.spawn(|| ledger.post(&daemon.events_url(), 1_000, 2, PATIENCE));
        let before = ledger.refused();
        eventually("refused with 503", PATIENCE, || (ledger.refused() > before).then_some(()));
        assert!(!posting.is_finished(), "nothing is accepted while the broker hangs");
        drop(frozen);
    });
    oracle.settle(&[&daemon], PATIENCE);
    daemon.terminate();
}

#[test]
fn kill_9_of_each_service_in_turn_loses_and_doubles_nothing() {
    let Some(services) = services() else { return };
    let ledger = Ledger::new();
    let mut oracle = oracle_of(&services, "storm", &ledger);
    let daemon = services.setup("storm").set("upload.timeout", "5s").set("aggregator.timeout", "5s").start();
    let url = daemon.events_url();
    for service in [&services.mongodb, &services.s3, &services.kafka] {
        thread::scope(|scope| {
            let before = ledger.acknowledged();
            scope.spawn(|| ledger.post(&url, 5_000, 4, PATIENCE));
            eventually("events come in", PATIENCE, || (ledger.acknowledged() > before + 1_000).then_some(()));
            service.kill();
            service.restart();
            services.wait();
        });
    }
    oracle.settle(&[&daemon], PATIENCE);
    daemon.terminate();
    oracle.settle_archive(PATIENCE);
    oracle.check_documents(&services.documents("storm", "aggregate_events_by_type"));
}
