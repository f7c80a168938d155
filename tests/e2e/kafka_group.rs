//! What becomes of a group's partitions when a member dies at the worst moment.

use std::{
    sync::mpsc::{Receiver, Sender, channel},
    thread,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use rdkafka::{
    ClientConfig, ClientContext, TopicPartitionList,
    config::FromClientConfigAndContext,
    consumer::{BaseConsumer, Consumer, ConsumerContext},
    types::RDKafkaRespErr,
};

use crate::support::{
    PATIENCE,
    archive::Archive,
    events::Ledger,
    eventually,
    oracle::Oracle,
    panics_on_demand,
    services::{Exclusive, services},
};

/// A member that stands still as soon as it is to give partitions up, as one that is killed then: it says nothing more to the
/// group but that it lives, which is refused as soon as another one has its name.
struct Halting {
    /// Says how many it was given, or 0 when it is to give some up.
    said: Sender<usize>,
    released: Mutex<Receiver<()>>,
}

impl ClientContext for Halting {}

impl ConsumerContext for Halting {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, what: RDKafkaRespErr, given: &mut TopicPartitionList) {
        if what == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS {
            consumer.incremental_assign(given).expect("it was given");
            self.said.send(given.count()).expect("it is heard");
        } else {
            self.said.send(0).expect("it is heard");
            let _ = self.released.lock().recv();
            let _ = consumer.incremental_unassign(given);
        }
    }
}

#[test]
fn partitions_that_a_worker_was_to_give_up_when_it_was_killed_are_read_again() {
    let Some(services) = services() else { return };
    killed_halfway(&services, "halfway", "mongodb");
}

/// Then there is no topic of dead letters that a member could join for.
#[test]
fn so_are_those_of_an_archive_without_aggregates_and_what_is_read_stays_where_it_is() {
    let Some(services) = services() else { return };
    killed_halfway(&services, "halfwaynone", "none");
}

/// One of two workers is killed while partitions change hands.
fn killed_halfway(services: &Exclusive, name: &'static str, store: &str) {
    let ledger = Ledger::new();
    services.create_bucket(name);
    let mut oracle = Oracle::new(&ledger, Archive::new(services.bucket(name)));
    let setup = || services.setup(name).set("store.kind", store);
    let ingest = setup().roles("ingest").start();
    let mut first = setup().roles("worker").start();
    let instance = std::fs::read(first.data().join("instance")).expect("a worker has one");
    let instance: serde_json::Value = serde_json::from_slice(&instance).expect("JSON");
    first.kill();

    // In its place, as the group's member of this name.
    let group = format!("{name}-archive");
    let ((said, hears), (release, released)) = (channel(), channel());
    let settings: ClientConfig = [
        ("bootstrap.servers", services.kafka.address().as_str()),
        ("group.id", group.as_str()),
        ("group.instance.id", instance["id"].as_str().expect("a name")),
        ("partition.assignment.strategy", "cooperative-sticky"),
        ("enable.auto.commit", "false"),
        ("heartbeat.interval.ms", "500"),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .collect();
    let context = Halting { said, released: Mutex::new(released) };
    let member: BaseConsumer<Halting> = BaseConsumer::from_config_and_context(&settings, context).expect("settings");
    member.subscribe(&[name]).expect("a topic");
    let partitions = services.partitions(name).expect("it stands");
    let polling = thread::spawn(move || {
        // The end is that another one has its name.
        let deadline = Instant::now() + PATIENCE;
        while member.client().fatal_error().is_none() {
            assert!(Instant::now() < deadline, "it was not replaced");
            let _ = member.poll(Duration::from_millis(50));
        }
    });
    let hear = |what: &str| hears.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("{what}"));
    assert_eq!(hear("it is given all partitions"), partitions);
    let second = setup().roles("worker").start();
    assert_eq!(hear("it is to give some up"), 0);
    first.restart();

    ledger.post(&ingest.events_url(), 2_000, 2, PATIENCE);
    if store == "none" {
        oracle.settle_archive(PATIENCE);
    } else {
        oracle.settle(&[&first, &second, &ingest], PATIENCE);
        oracle.check_documents(&services.documents(name, "aggregate_events_by_type"));
    }
    let said = "nobody in the group reads these partitions";
    let after = eventually("one of them says what it did", PATIENCE, || {
        [&first, &second].iter().find_map(|it| it.log().split_once(said).map(|(_, after)| after.to_owned()))
    });
    assert!(!after.contains("partition revoked"), "what is read stays where it is: {after}");
    release.send(()).expect("it waits");
    polling.join().expect("it does not panic");
}

/// As after librdkafka lost a partition's leader, or a question of its own: it answers, and its group has it.
#[test]
fn a_client_that_fetches_nothing_while_others_read_records_is_replaced() {
    if !panics_on_demand() {
        return eprintln!("\n!!! SKIPPED: a stall; only builds with debug assertions stall on demand\n");
    }
    let Some(services) = services() else { return };
    let (name, ledger) = ("stalled", Ledger::new());
    services.create_bucket(name);
    let mut oracle = Oracle::new(&ledger, Archive::new(services.bucket(name)));
    let daemon = services.setup(name).start();
    ledger.post(&daemon.events_url(), 200, 2, PATIENCE);
    oracle.settle(&[&daemon], PATIENCE);
    daemon.inject("stall-archive");
    eventually("it is stalled", PATIENCE, || daemon.is_injected("stall-archive").then_some(()));
    ledger.post(&daemon.events_url(), 200, 2, PATIENCE);
    oracle.settle(&[&daemon], PATIENCE);
    let restarts = daemon.try_metric("ingestd_actor_restarts_total", "actor=\"consumer-archive\"");
    assert_eq!((restarts, daemon.metric("ingestd_actor_restarts_total")), (Some(1.0), Some(1.0)));
    let (said, log) = ("where another client reads records", daemon.log());
    assert!(log.contains(said), "{log}");
}
