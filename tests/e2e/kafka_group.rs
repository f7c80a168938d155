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

use crate::support::{PATIENCE, archive::Archive, events::Ledger, eventually, oracle::Oracle, services::services};

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
    let ledger = Ledger::new();
    services.create_bucket("halfway");
    let mut oracle = Oracle::new(&ledger, Archive::new(services.bucket("halfway")));
    let ingest = services.setup("halfway").roles("ingest").start();
    let mut first = services.setup("halfway").roles("worker").start();
    let instance = std::fs::read(first.data().join("instance")).expect("a worker has one");
    let instance: serde_json::Value = serde_json::from_slice(&instance).expect("JSON");
    first.kill();

    // In its place, as the group's member of this name.
    let ((said, hears), (release, released)) = (channel(), channel());
    let settings: ClientConfig = [
        ("bootstrap.servers", services.kafka.address().as_str()),
        ("group.id", "halfway-archive"),
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
    member.subscribe(&["halfway"]).expect("a topic");
    let partitions = services.partitions("halfway").expect("it stands");
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
    let second = services.setup("halfway").roles("worker").start();
    assert_eq!(hear("it is to give some up"), 0);
    first.restart();

    ledger.post(&ingest.events_url(), 2_000, 2, PATIENCE);
    oracle.settle(&[&first, &second, &ingest], PATIENCE);
    let said = || [&first, &second].iter().any(|it| it.log().contains("nobody in the group reads these partitions"));
    eventually("one of them says what it did", PATIENCE, || said().then_some(()));
    oracle.check_documents(&services.documents("halfway", "aggregate_events_by_type"));
    release.send(()).expect("it waits");
    polling.join().expect("it does not panic");
}
