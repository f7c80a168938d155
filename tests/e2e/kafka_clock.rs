//! A clock that Kafka does not take: since 4.0 brokers refuse records from more than an hour ahead of their own.

use std::{process::Command, time::Duration};

use serde_json::Value;

use crate::support::{
    PATIENCE,
    daemon::{Daemon, Setup},
    eventually,
    preload::Clock,
    program, scratch,
    services::{Exclusive, services},
};

const HOUR: i64 = 3600;
const BOUND: &str = "message.timestamp.after.max.ms";

/// The log in Kafka with the bound that is the default of newer brokers, all else local.
fn setup(services: &Exclusive, name: &'static str) -> Setup {
    for topic in [name.to_owned(), format!("{name}.dlq")] {
        services.create_topic_with(&topic, &[("max.message.bytes", "2097152"), (BOUND, "3600000")]);
    }
    Setup::new(name)
        .set("queue.kind", "kafka")
        .set("queue.topic", name)
        .set("queue.kafka.brokers", services.kafka.address())
        .set("queue.kafka.group", name)
}

fn post(daemon: &Daemon) -> (u16, String) {
    let reply = daemon.post(None, br#"{"type":"a","client_id":"c"}"#);
    (reply.status, reply.body)
}

fn check(clock: &Clock, services: &Exclusive, topic: &str) -> (Option<i32>, String) {
    let mut command = Command::new(program());
    command.args(["check", "--connect", "--json", "--roles", "ingest", "--set", "queue.kind=kafka"]);
    command.args(["--set", &format!("queue.topic={topic}")]);
    command.args(["--set", &format!("queue.kafka.brokers={}", services.kafka.address())]);
    let output = command.envs(clock.variables()).output().expect("the program runs");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    (output.status.code(), report["dependencies"][0]["message"].to_string())
}

#[test]
fn a_clock_that_the_brokers_do_not_take_is_named_and_no_event_is_lost_or_refused_for_longer() {
    let Some(services) = services() else { return };
    let folder = tempfile::tempdir_in(scratch()).expect("target can be written to");
    let Some(clock) = Clock::new(folder.path()) else { return };
    let plain = clock.give(setup(&services, "clock")).start();
    let buffering = clock.give(setup(&services, "clockbuffer").set("queue.on_unavailable", "buffer")).start();
    assert_eq!([post(&plain).0, post(&buffering).0], [200; 2]);
    assert_eq!(check(&clock, &services, "clock").0, Some(0));
    let before = services.read_topic("clock").len();

    clock.step(2 * HOUR);
    let (status, body) = post(&plain);
    assert_eq!(status, 503, "{body}");
    assert!(body.contains("nothing of this request was stored") && body.contains(BOUND), "{body}");
    let reason = eventually("it is unready", PATIENCE, || {
        let readiness = plain.readiness();
        let reason = readiness["dependencies"]["kafka"]["reason"].as_str()?.to_owned();
        (readiness["ready"] == false).then_some(reason)
    });
    assert!(reason.contains(BOUND) && reason.contains(" later than topic clock takes"), "{reason}");
    // The brokers answer, and that opens no door; each refusal is one at once.
    for _ in 0..20 {
        assert_eq!(post(&plain).0, 503);
    }
    let (status, said) = check(&clock, &services, "clock");
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains(BOUND) && said.contains("ahead of the brokers'"), "{said}");

    // A dead letter is taken all the same, and what comes after its record is counted.
    services.produce_to("clock", Some(0), b"this is no event");
    services.produce_to("clock", Some(0), br#"{"type":"foreign"}"#);
    let counted = || (plain.metric("ingestd_events_aggregated_total")? >= before as f64 + 1.0).then_some(());
    eventually("the record behind a bad one is counted", PATIENCE, counted);
    assert_eq!(plain.metric("ingestd_events_dead_lettered_total"), Some(1.0));

    // A request that finds it out is refused; from then on they are buffered.
    let mut accepted = 1;
    eventually("the buffer takes over", PATIENCE, || (post(&buffering).0 == 200).then_some(()));
    accepted += 1;
    for _ in 0..10 {
        assert_eq!(post(&buffering).0, 200);
        accepted += 1;
    }
    assert_eq!(services.read_topic("clockbuffer").len(), 1, "none is sent that would be refused");

    clock.step(0);
    eventually("it takes events again", PATIENCE, || (post(&plain).0 == 200).then_some(()));
    assert_eq!(check(&clock, &services, "clock").0, Some(0));
    eventually("all is forwarded", PATIENCE, || (services.read_topic("clockbuffer").len() == accepted).then_some(()));
    assert_eq!(services.read_topic("clockbuffer.dlq").len(), 0);
    for daemon in [&plain, &buffering] {
        let log = daemon.log();
        assert_eq!(log.matches("Kafka refuses events for their time").count(), 1, "one line: {log}");
        daemon.terminate();
    }
}

#[test]
fn a_bound_that_is_taken_off_the_topic_opens_the_door_and_records_from_a_far_time_are_not_sent_to_it() {
    let Some(services) = services() else { return };
    let folder = tempfile::tempdir_in(scratch()).expect("target can be written to");
    let Some(clock) = Clock::new(folder.path()) else { return };
    let daemon = clock.give(setup(&services, "clockbound")).start();
    assert_eq!(post(&daemon).0, 200);
    clock.step(2 * HOUR);
    eventually("it is unready", PATIENCE, || {
        (post(&daemon).0 == 503 && daemon.readiness()["ready"] == false).then_some(())
    });
    services.alter_topic("clockbound", BOUND, &i64::MAX.to_string());
    eventually("it takes events again", PATIENCE, || (post(&daemon).0 == 200).then_some(()));
    assert_eq!(check(&clock, &services, "clockbound").0, Some(0));
    // As many comparisons as there would have been are over.
    std::thread::sleep(Duration::from_secs(6));
    assert_eq!(post(&daemon).0, 200);
    let records = services.read_topic("clockbound");
    let latest = chrono::Utc::now().timestamp_millis() + 3 * HOUR * 1000;
    let (far, near): (Vec<_>, Vec<_>) = records.iter().partition(|record| record.received > latest);
    // The bound may go between the question for it and the record.
    assert!(near.len() == 3 && far.len() <= 1, "{records:?}");
    daemon.terminate();
}
