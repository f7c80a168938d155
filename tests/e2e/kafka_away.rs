//! What a worker does while Kafka is away for long.

use std::time::{Duration, Instant};

use crate::support::{PATIENCE, daemon::Setup, eventually, preload::library, scratch, services::services};

/// How long its connections are counted.
const STRETCH: Duration = Duration::from_secs(10);
/// A client that has a question connects every 50 ms at most (half of `reconnect.backoff.ms`). There are three, and each has
/// another one beside it for some seconds, which is told whether the brokers answer.
const MOST: u64 = 2 * 6 * 20 * STRETCH.as_secs();

#[test]
fn while_kafka_is_away_a_worker_connects_at_a_pace() {
    let Some(services) = services() else { return };
    let folder = tempfile::tempdir_in(scratch()).expect("target can be written to");
    let Some(library) = library(folder.path(), "connects") else { return };
    let connects = folder.path().join("connects");
    let address = services.kafka.address();
    let (_, port) = address.rsplit_once(':').expect("host and port");
    let daemon = Setup::new("kafka-away")
        .set("queue.kind", "kafka")
        .set("queue.topic", "kafka-away")
        .set("queue.kafka.brokers", &address)
        .set("queue.kafka.group", "kafka-away")
        .roles("worker")
        .environment("LD_PRELOAD", &library)
        .environment("CONNECTS_FILE", connects.to_str().expect("target's path is UTF-8"))
        .environment("CONNECTS_PORT", port)
        .start();
    let count = || std::fs::metadata(&connects).map_or(0, |file| file.len());
    let is_there = |there: bool| {
        eventually("readiness knows of Kafka", PATIENCE, || {
            (daemon.readiness()["dependencies"]["kafka"]["available"] == there).then_some(())
        });
    };
    is_there(true);
    services.produce("kafka-away", br#"{"type":"a"}"#);
    daemon.wait_read(1);
    assert!(count() > 0, "nothing is counted");

    services.kafka.kill();
    is_there(false);
    let (before, began) = (count(), Instant::now());
    eventually("the stretch is over", PATIENCE, || (began.elapsed() >= STRETCH).then_some(()));
    let seen = count() - before;
    services.kafka.restart();
    services.wait_kafka();
    assert!(seen <= MOST, "{seen} connections in {STRETCH:?}");
    assert!(seen > 0, "it tries again");
    is_there(true);
    services.produce("kafka-away", br#"{"type":"a"}"#);
    daemon.wait_read(2);
    daemon.terminate();
}
