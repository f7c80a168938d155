//! Several Kafka brokers, of which some go away: a request never waits for long, and nothing is lost or doubled.

use std::time::{Duration, Instant};

use crate::support::{
    PATIENCE,
    archive::Archive,
    brokers::Brokers,
    daemon::{Daemon, Setup},
    events::Ledger,
    eventually,
    http::Reply,
    oracle::Oracle,
};

/// What a request may take on a machine that does other things as well; 3 s are meant, and 8 s were needed.
const SOON: Duration = Duration::from_secs(6);
/// The same of one that needs nobody's answer.
const AT_ONCE: Duration = Duration::from_secs(2);

/// An event that belongs to one client; the answer, and how long it took.
fn post(daemon: &Daemon, client: &str) -> (Reply, Duration) {
    let began = Instant::now();
    let reply = daemon.post(None, format!(r#"{{"type":"probe","client_id":"{client}"}}"#).as_bytes());
    (reply, began.elapsed())
}

fn buffering(setup: Setup) -> Setup {
    setup.set("queue.on_unavailable", "buffer")
}

/// Waits until what the brokers make of the topic is named like this, or nothing is to be said.
fn wait_named(daemon: &Daemon, what: Option<&str>) {
    eventually("readiness names the topic's state", PATIENCE, || {
        let readiness = daemon.readiness();
        let topic = &readiness["dependencies"]["kafka_topic"];
        match what {
            Some(what) => topic["reason"].as_str()?.contains(what).then_some(()),
            None => (topic["available"] == true && readiness["ready"] == true).then_some(()),
        }
    });
}

#[test]
fn too_few_in_sync_replicas_are_named_and_nobody_waits_for_them() {
    let Some(brokers) = Brokers::start(2) else { return };
    for topic in ["refusing", "buffering"] {
        brokers.create_topic(topic, 2, &[("min.insync.replicas", "2")]);
    }
    let (refusing, buffered) = (Ledger::new(), Ledger::new());
    let refuses = brokers.setup("refusing").set("queue.kafka.partitions", "2").start();
    let buffers = buffering(brokers.setup("buffering")).set("queue.kafka.partitions", "2").start();
    refusing.post(&refuses.events_url(), 100, 2, PATIENCE);
    buffered.post(&buffers.events_url(), 100, 2, PATIENCE);
    let mut oracle = Oracle::new(&buffered, Archive::local(&buffers.data().join("archive")));

    brokers.node(2).kill();
    // Before the controller has noticed.
    let (reply, took) = post(&refuses, "client-1");
    assert!(reply.status == 503 && took < SOON, "{reply:?} after {took:?}");
    let began = Instant::now();
    buffered.post(&buffers.events_url(), 1, 1, PATIENCE);
    assert!(began.elapsed() < SOON * 2, "the first 2xx after {:?}", began.elapsed());
    buffered.post(&buffers.events_url(), 50, 2, PATIENCE);
    assert!(buffers.metric("ingestd_buffer_records").is_some_and(|waiting| waiting >= 51.0));

    brokers.wait_in_sync("refusing", 1);
    brokers.wait_in_sync("buffering", 1);
    let words = "1 of 2 replicas are in sync, and min.insync.replicas is 2";
    for daemon in [&refuses, &buffers] {
        wait_named(daemon, Some(words));
    }
    // It lasts: longer than a record lives in librdkafka, and nothing flaps.
    let until = Instant::now() + Duration::from_secs(12);
    while Instant::now() < until {
        let (reply, took) = post(&refuses, "client-1");
        assert!(reply.status == 503 && took < AT_ONCE && reply.body.contains(words), "{reply:?} after {took:?}");
        let began = Instant::now();
        buffered.post(&buffers.events_url(), 1, 1, PATIENCE);
        assert!(began.elapsed() < AT_ONCE, "{:?}", began.elapsed());
    }

    brokers.node(2).restart();
    brokers.wait_in_sync("refusing", 2);
    brokers.wait_in_sync("buffering", 2);
    for daemon in [&refuses, &buffers] {
        wait_named(daemon, None);
    }
    refusing.post(&refuses.events_url(), 100, 2, PATIENCE);
    buffered.post(&buffers.events_url(), 100, 2, PATIENCE);
    oracle.settle(&[&buffers], PATIENCE);
    refuses.terminate();
    buffers.terminate();
}

#[test]
fn with_one_or_two_of_three_brokers_away_events_are_buffered_within_seconds() {
    let Some(brokers) = Brokers::start(3) else { return };
    brokers.create_topic("quorum", 6, &[("min.insync.replicas", "2")]);
    let ledger = Ledger::new();
    let daemon = buffering(brokers.setup("quorum")).set("queue.kafka.partitions", "6").start();
    let mut oracle = Oracle::new(&ledger, Archive::local(&daemon.data().join("archive")));
    ledger.post(&daemon.events_url(), 200, 2, PATIENCE);
    oracle.settle(&[&daemon], PATIENCE);

    for away in [[1].as_slice(), &[2, 3]] {
        for node in away {
            brokers.node(*node).kill();
        }
        let began = Instant::now();
        // One event of each client, so that all partitions are met.
        ledger.post(&daemon.events_url(), 30, 6, PATIENCE);
        let took = began.elapsed();
        assert!(took < SOON * 2, "{took:?} until all were accepted without {away:?}");
        for node in away {
            brokers.node(*node).restart();
        }
        brokers.wait_in_sync("quorum", 3);
        wait_named(&daemon, None);
        ledger.post(&daemon.events_url(), 100, 2, PATIENCE);
        oracle.settle(&[&daemon], PATIENCE);
    }
    daemon.terminate();
}
