//! What operators do to a Kafka topic while the daemon reads it.

use std::cell::Cell;

use mongodb::bson::Bson;
use rdkafka::producer::{BaseRecord, Producer};

use crate::support::{
    PATIENCE,
    archive::Archive,
    daemon::Setup,
    events::Ledger,
    eventually,
    oracle::Oracle,
    services::{Exclusive, services},
};

#[test]
fn a_topic_that_is_created_anew_while_it_is_read_is_never_taken_for_the_old_one() {
    let Some(services) = services() else { return };
    let (of_old, of_new) = (Ledger::new(), Ledger::new());
    services.create_bucket("replaced");
    let mut old = Oracle::new(&of_old, Archive::new(services.bucket("replaced")));
    let daemon = services.setup("replaced").set("queue.kafka.partitions", "1").start();
    of_old.post(&daemon.events_url(), 5, 1, PATIENCE);
    old.settle(&[&daemon], PATIENCE);
    let groups = ["replaced-archive", "replaced-aggregate"];
    let positions = groups.map(|group| {
        let position = || services.committed(group, "replaced", 0).filter(|(position, _)| *position == 5);
        eventually("committed", PATIENCE, position)
    });

    services.recreate_topic("replaced", 1);
    of_new.post(&daemon.events_url(), 50, 1, PATIENCE);
    let halted = eventually("both sinks halt", PATIENCE, || {
        let readiness = daemon.readiness();
        (readiness["halted"].as_array()?.len() == 2).then_some(readiness)
    });
    for halted in halted["halted"].as_array().expect("a list") {
        assert!(halted["reason"].as_str().is_some_and(|reason| reason.contains("another topic")), "{halted}");
    }
    // An event of the new topic would be one that was never sent.
    old.settle_archive(PATIENCE);
    assert_eq!(old.archived(), 5);
    old.check_documents(&services.documents("replaced", "aggregate_events_by_type"));
    daemon.terminate();

    // Kafka forgets a deleted topic's positions, but takes a late commit of one for the new topic's.
    for (group, (position, metadata)) in groups.into_iter().zip(&positions) {
        services.commit(group, "replaced", 0, (*position, metadata));
    }
    // The advice: a new generation reads the new topic from its start.
    services.create_bucket("replacing");
    let mut new = Oracle::new(&of_new, Archive::new(services.bucket("replacing")));
    let raised = services
        .setup("replaced")
        .set("queue.generation", "1")
        .set("archive.url", "s3://replacing/raw")
        .data(daemon.data().to_owned())
        .start();
    new.settle_archive(PATIENCE);
    let counted = || {
        let documents = services.documents("replaced", "aggregate_events_by_type");
        let of_new: Vec<_> = documents.into_iter().filter(|it| it.get("generation") != Some(&Bson::Int64(0))).collect();
        let sum: i64 = of_new.iter().filter_map(|it| it.get_i64("count").ok()).sum();
        (sum == 50).then_some(of_new)
    };
    new.check_documents(&eventually("the new topic is counted", PATIENCE, counted));
    assert_eq!(raised.readiness()["halted"], serde_json::json!([]));
    raised.terminate();
}

/// The log in Kafka, all else local.
fn on_kafka_alone(services: &Exclusive, name: &'static str) -> Setup {
    Setup::new(name)
        .set("queue.kind", "kafka")
        .set("queue.topic", name)
        .set("queue.kafka.brokers", services.kafka.address())
        .set("queue.kafka.group", name)
}

#[test]
fn partitions_that_are_added_while_running_halt_nothing_where_the_archive_and_the_store_are_local() {
    let Some(services) = services() else { return };
    let ledger = Ledger::new();
    let daemon = on_kafka_alone(&services, "grown").set("queue.kafka.partitions", "2").start();
    let mut oracle = Oracle::new(&ledger, Archive::local(&daemon.data().join("archive")));
    ledger.post(&daemon.events_url(), 100, 1, PATIENCE);
    oracle.settle(&[&daemon], PATIENCE);

    services.grow_topic("grown", 4);
    eventually("the new partitions are read", PATIENCE, || {
        let readiness = daemon.readiness();
        assert_eq!(readiness["halted"], serde_json::json!([]), "no other worker is in the group");
        let lag = daemon.get("/status").json()["lag"].as_array()?.len();
        (lag == 2 * 4).then_some(())
    });
    ledger.post(&daemon.events_url(), 1_000, 2, PATIENCE);
    oracle.settle(&[&daemon], PATIENCE);
    daemon.terminate();
}

#[test]
fn a_stop_whose_last_positions_are_not_committed_says_so_and_ends_with_1() {
    let Some(services) = services() else { return };
    let ledger = Ledger::new();
    // Sealed at the stop alone, so that the last positions come then.
    let mut daemon = on_kafka_alone(&services, "uncommitted").set("spool.max_age", "1h").start();
    let mut oracle = Oracle::new(&ledger, Archive::local(&daemon.data().join("archive")));
    ledger.post(&daemon.events_url(), 100, 1, PATIENCE);
    daemon.wait_read(100);
    {
        let kafka = services.kafka.process();
        let _frozen = kafka.freeze();
        daemon.signal("TERM");
        assert_eq!(daemon.wait_exit(PATIENCE), 1);
        let log = daemon.log();
        assert!(log.contains("positions are not committed") && !log.contains("positions are committed"), "{log}");
    }
    daemon.restart();
    oracle.settle_archive(PATIENCE);
    ledger.post(&daemon.events_url(), 100, 1, PATIENCE);
    daemon.wait_read(100);
    daemon.terminate();
    oracle.settle_archive(PATIENCE);
}

#[test]
fn an_event_larger_than_the_topic_takes_is_refused_by_name_and_holds_nothing_up() {
    let Some(services) = services() else { return };
    let daemon = on_kafka_alone(&services, "narrowed").set("queue.kafka.partitions", "1").start();
    // Of characters that hardly compress: the limit is one of the batch as it is sent.
    let mut random = fastrand::Rng::with_seed(1);
    let padding: String = (0..500_000).map(|_| random.alphanumeric()).collect();
    let large = format!(r#"{{"type":"login","padding":"{padding}"}}"#).into_bytes();
    let small = br#"{"type":"login"}"#.to_vec();
    let accepted = Cell::new(0);
    let post = |event: &[u8]| {
        let reply = daemon.post(None, event);
        accepted.update(|accepted| accepted + usize::from(reply.status == 200));
        reply
    };
    let stored =
        || -> Vec<_> { services.read_topic("narrowed").into_iter().filter_map(|record| record.value).collect() };
    assert_eq!(post(&large).status, 200);

    services.alter_topic("narrowed", "max.message.bytes", "100000");
    let refused = eventually("the broker refuses it", PATIENCE, || {
        let reply = post(&large);
        (reply.status != 200).then_some(reply)
    });
    assert_eq!(refused.status, 400, "it never becomes smaller: {refused:?}");
    assert_eq!(refused.json()["errors"][0]["code"], "too_large", "{refused:?}");
    assert_eq!(post(&small).status, 200, "nothing else is held up by it");
    assert_eq!(stored().len(), accepted.get(), "none of it is stored");

    services.alter_topic("narrowed", "max.message.bytes", "1114112");
    eventually("the broker takes it again", PATIENCE, || (post(&large).status == 200).then_some(()));
    let stored = stored();
    assert_eq!(stored.len(), accepted.get());
    assert_eq!(stored.iter().filter(|value| **value != large).collect::<Vec<_>>(), [&small]);
    assert_eq!(daemon.metric("ingestd_events_accepted_total"), Some(accepted.get() as f64));
    assert_eq!(daemon.readiness()["halted"], serde_json::json!([]));
    daemon.terminate();
}

#[test]
fn no_client_of_the_daemon_creates_a_topic_by_asking_for_it() {
    // The tests' Kafka creates a topic for any producer that asks, as Kafka does by default.
    let Some(services) = services() else { return };
    let setup = || on_kafka_alone(&services, "unasked");
    let (exit, log) = setup().set("queue.kafka.create_topic", "false").run_to_end();
    assert!(exit == 1 && log.contains("topic unasked does not exist"), "{exit}: {log}");
    assert_eq!(services.partitions("unasked"), None);

    let mut daemon = setup().set("queue.kafka.partitions", "12").set("http.max_event", "64KiB").start();
    assert_eq!(services.partitions("unasked"), Some(12), "as configured");
    assert_eq!(services.topic_setting("unasked", "max.message.bytes").as_deref(), Some("131072"));
    let kept =
        ["retention.ms", "retention.bytes", "cleanup.policy"].map(|it| services.topic_setting("unasked.dlq", it));
    assert_eq!(kept, ["-1", "-1", "delete"].map(|value| Some(value.to_owned())));
    assert_eq!(daemon.readiness()["dependencies"]["kafka_topic"]["reason"], serde_json::Value::Null);

    // An operator deletes both while producer, consumers and the tools ask for them.
    services.delete_topic("unasked.dlq");
    services.delete_topic("unasked");
    eventually("its absence is named", PATIENCE, || {
        let reply = daemon.post(None, br#"{"type":"login","client_id":"client-1"}"#);
        reply.body.contains("topic unasked does not exist").then_some(())
    });
    let listed = daemon.command(&["dlq", "list"]);
    assert_ne!(listed.status, Some(0));
    eventually("the readers have noticed", PATIENCE, || {
        let readiness = daemon.readiness();
        let failing =
            ["consumer-archive", "consumer-aggregate"].iter().all(|it| readiness["actors"][it]["reason"].is_string());
        failing.then_some(())
    });
    assert_eq!([services.partitions("unasked"), services.partitions("unasked.dlq")], [None, None]);
    daemon.kill();
    daemon.restart();
    assert_eq!(services.partitions("unasked"), Some(12), "made again by the next start, as configured");
    daemon.terminate();
}

#[test]
fn a_topic_with_the_brokers_defaults_is_taken_and_what_it_lacks_is_named() {
    let Some(services) = services() else { return };
    let ledger = Ledger::new();
    services.create_topic_with("defaults", &[]);
    services.create_topic_with("defaults.dlq", &[("cleanup.policy", "compact,delete")]);
    // The default of `http.max_event`, beside the brokers' default of `max.message.bytes`.
    let setup =
        on_kafka_alone(&services, "defaults").set("queue.kafka.partitions", "12").set("queue.kafka.replication", "3");
    let daemon = setup.start();
    let mut oracle = Oracle::new(&ledger, Archive::local(&daemon.data().join("archive")));
    ledger.post(&daemon.events_url(), 100, 1, PATIENCE);
    let largest = format!(r#"{{"type":"login","padding":"{}"}}"#, "x".repeat((960 << 10) - 29));
    assert_eq!(largest.len(), 960 << 10);
    // It says nothing to the oracle.
    let elsewhere = on_kafka_alone(&services, "defaults-large").set("queue.kafka.properties.compression.codec", "none");
    services.create_topic_with("defaults-large", &[("min.insync.replicas", "2")]);
    let large = elsewhere.start();
    assert_eq!(large.post(None, largest.as_bytes()).status, 200);
    let readiness = large.readiness();
    let minimum = "min.insync.replicas of topic defaults-large is 2, and it has 1 replica(s)";
    assert!(readiness["dependencies"]["kafka_topic"]["reason"].to_string().contains(minimum), "{readiness}");
    assert!(large.log().contains(minimum), "{}", large.log());
    large.terminate();

    let readiness = daemon.readiness();
    let topic = &readiness["dependencies"]["kafka_topic"];
    let said = topic["reason"].as_str().unwrap_or_default().to_owned();
    let checked = daemon.command(&["check", "--connect"]);
    for lacks in [
        "topic defaults has 1 replica(s), and queue.kafka.replication is 3",
        "topic defaults has 4 partition(s), and queue.kafka.partitions, which counts when it is created, is 12",
        "dead letters in topic defaults.dlq expire (retention.ms=604800000)",
        "topic defaults.dlq is compacted",
    ] {
        assert!(said.contains(lacks), "{readiness}");
        assert!(daemon.log().contains(lacks), "{}", daemon.log());
        assert!(checked.out.contains(lacks), "{}", checked.out);
    }
    assert_eq!((&topic["available"], &readiness["degraded"]), (&true.into(), &false.into()), "{readiness}");
    oracle.settle(&[&daemon], PATIENCE);
    daemon.terminate();
}

#[test]
fn an_open_transaction_of_another_program_is_named_and_what_waits_behind_it_is_lag() {
    let Some(services) = services() else { return };
    let ledger = Ledger::new();
    let daemon = on_kafka_alone(&services, "open").set("queue.kafka.partitions", "1").start();
    let mut oracle = Oracle::new(&ledger, Archive::local(&daemon.data().join("archive")));
    ledger.post(&daemon.events_url(), 5, 1, PATIENCE);
    oracle.settle(&[&daemon], PATIENCE);

    let other = services.transactional_producer("another-program");
    other.init_transactions(PATIENCE).expect("Kafka has transactions");
    other.begin_transaction().expect("it was taken");
    let record = BaseRecord::<(), [u8]>::to("open").payload(b"never committed".as_slice());
    other.send(record).expect("the queue is empty");
    other.flush(PATIENCE).expect("Kafka takes it");
    ledger.post(&daemon.events_url(), 10, 1, PATIENCE);
    eventually("they count as lag of both sinks", PATIENCE, || {
        (daemon.metric("ingestd_lag_records")? >= 22.0).then_some(())
    });
    eventually("the transaction is named with its first offset", PATIENCE, || {
        let readiness = daemon.readiness();
        let reason = readiness["dependencies"]["kafka"]["reason"].as_str()?.to_owned();
        assert_eq!(readiness["ready"], true, "events are taken all the while");
        let is_named = reason.contains("partition 0 from offset 5 on (11 offsets wait)");
        (readiness["degraded"] == true && is_named && reason.contains("kafka-transactions")).then_some(())
    });
    assert_eq!(ledger.acknowledged(), 15);

    other.abort_transaction(PATIENCE).expect("it is open");
    oracle.settle(&[&daemon], PATIENCE);
    eventually("all is well again", PATIENCE, || {
        (daemon.readiness()["degraded"] == false && daemon.metric("ingestd_lag_records") == Some(0.0)).then_some(())
    });
    daemon.terminate();
}

#[test]
fn a_batch_that_decompresses_to_more_than_the_setting_allows_is_read_when_it_is_raised() {
    let Some(services) = services() else { return };
    let mut daemon = on_kafka_alone(&services, "inflated")
        .set("queue.kafka.partitions", "1")
        // The least that librdkafka takes beside its own bound of a fetch.
        .set("queue.kafka.properties.receive.message.max.bytes", "52429312")
        .start();
    // In one batch that is small as it is sent, and 54 MB when it is read.
    let record = format!(r#"{{"type":"login","padding":"{}"}}"#, "x".repeat(900_000));
    services.produce_batch("inflated", "zstd", &[record.as_bytes(); 60]);
    let reason = eventually("the setting is named", PATIENCE, || {
        let readiness = daemon.readiness();
        let reason = readiness["dependencies"]["kafka"]["reason"].as_str()?.to_owned();
        reason.contains("cannot be read").then_some(reason)
    });
    assert!(reason.find("receive.message.max.bytes") < reason.find("kafka-delete-records"), "{reason}");
    assert_ne!(daemon.metric("ingestd_events_archived_total"), Some(60.0));

    daemon.terminate();
    // librdkafka doubles the room for it until it fits, and gives up at the first size that is beyond the setting.
    daemon.set("queue.kafka.properties.receive.message.max.bytes", "200000000");
    daemon.restart();
    eventually("they are archived and counted", PATIENCE, || {
        let done = ["ingestd_events_archived_total", "ingestd_events_aggregated_total"].map(|it| daemon.metric(it));
        (done == [Some(60.0); 2]).then_some(())
    });
    daemon.terminate();
}
