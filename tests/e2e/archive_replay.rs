//! `ingestd archive replay`: archived records come to a topic once each, whatever is killed and however often it is run.

use std::{
    collections::{BTreeMap, HashMap},
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use serde_json::{Value, json};

use crate::support::{
    PATIENCE,
    daemon::{Daemon, Ran, Setup},
    eventually, free_port,
    log::LogRecord,
    program,
    services::{Exclusive, services},
};

const EVENTS: usize = 60_000;
const REPLAYED_FROM: &str = "ingestd-replayed-from";

/// The log in Kafka, of three partitions; all else local.
fn on_kafka(services: &Exclusive, name: &'static str) -> Setup {
    Setup::new(name)
        .set("queue.kind", "kafka")
        .set("queue.topic", name)
        .set("queue.kafka.brokers", services.kafka.address())
        .set("queue.kafka.group", name)
        .set("queue.kafka.partitions", "3")
        .set("spool.max_records", "4000")
        .set("spool.max_age", "500ms")
}

/// Sends so many events of 40 clients, in requests of up to 5,000.
fn post(daemon: &Daemon, events: usize) {
    let lines: Vec<String> =
        (0..events).map(|n| format!("{{\"type\":\"a\",  \"client_id\":\"c{}\",\"n\":{n}}}", n % 40)).collect();
    for lines in lines.chunks(5_000) {
        let reply = daemon.post(Some("application/x-ndjson"), lines.join("\n").as_bytes());
        assert_eq!(reply.status, 200, "{reply:?}");
    }
}

fn wait_archived(daemon: &Daemon, records: usize) {
    eventually("all are archived", PATIENCE, || {
        (daemon.metric("ingestd_events_archived_total")? >= records as f64).then_some(())
    });
}

/// Again while Kafka does not answer: a broker on a busy machine may pause for longer than a question waits.
fn replay(daemon: &Daemon, arguments: &[&str]) -> Ran {
    eventually("Kafka answers", PATIENCE, || {
        let ran = daemon.command(&[&["archive", "replay", "--json"], arguments].concat());
        let away = ran.status == Some(1) && (ran.error.contains("Kafka at") || ran.error.contains("Kafka does not"));
        (!away).then_some(ran)
    })
}

fn replayed(daemon: &Daemon, arguments: &[&str]) -> u64 {
    let report = replay(daemon, arguments).json(0);
    report["replayed"].as_u64().expect("a number")
}

/// What it was in the log of `topic`, by the header; each of them once.
fn by_origin(records: Vec<LogRecord>) -> BTreeMap<String, LogRecord> {
    let count = records.len();
    let origin = |record: &LogRecord| record.header(REPLAYED_FROM).expect("it says where it stood").to_owned();
    let found: BTreeMap<_, _> = records.into_iter().map(|record| (origin(&record), record)).collect();
    assert_eq!(found.len(), count, "each once");
    found
}

/// Holds the log's records, all of them, against what stands in the other topic; those of one key in their order.
fn compare(topic: &str, log: &[LogRecord], replayed: Vec<LogRecord>) {
    let found = compare_in_any_order(topic, log, replayed);
    let mut last: HashMap<(&[u8], i32), (i32, u64)> = HashMap::new();
    for record in log {
        let again = &found[&format!("{topic}/{}/{}", record.partition, record.offset)];
        if let Some(key) = &record.key {
            let at = last.insert((key, record.partition), (again.partition, again.offset));
            assert!(at.is_none_or(|(partition, offset)| partition == again.partition && offset < again.offset));
        }
    }
}

fn compare_in_any_order(topic: &str, log: &[LogRecord], replayed: Vec<LogRecord>) -> BTreeMap<String, LogRecord> {
    let found = by_origin(replayed);
    assert_eq!(found.len(), log.len());
    for record in log {
        let LogRecord { partition, offset, .. } = record;
        let again = &found[&format!("{topic}/{partition}/{offset}")];
        assert_eq!((again.received, &again.key), (record.received, &record.key), "{record:?}");
        assert_eq!(again.value, record.value, "{record:?}");
        let (replay, headers) = again.headers.split_last().expect("there is one");
        assert_eq!((replay.0.as_str(), headers), (REPLAYED_FROM, &record.headers[..]));
    }
    found
}

/// What other programs write into the topic: no JSON, no value, keys and headers that are no text.
fn others(services: &Exclusive, topic: &str) -> usize {
    services.produce_record(topic, b"\xff\x00", b"no { JSON \xfe", &[("h", b"\xff".to_vec()), ("id", b"x".to_vec())]);
    services.produce_record(topic, b"k", br#"{"type":"a","client_id":"other than its key"}"#, &[("h", b"v".to_vec())]);
    services.produce_record(topic, b"twice", br#"{"type":"a","type":"b"}"#, &[(REPLAYED_FROM, b"older/0/7".to_vec())]);
    services.produce_null(topic, &[("why", b"gone".to_vec())]);
    4
}

#[test]
fn each_record_comes_once_and_as_it_was_although_a_replay_is_killed() {
    let Some(services) = services() else { return };
    let daemon = on_kafka(&services, "replaying").start();
    post(&daemon, EVENTS);
    let all = EVENTS + others(&services, "replaying");
    let headers = [
        ("ce-specversion", "1.0"),
        ("ce-id", "7"),
        ("ce-source", "/s"),
        ("ce-type", "t"),
        ("content-type", "text/plain"),
    ];
    assert_eq!(daemon.post_with(&headers, b"no JSON").status, 200);
    let all = all + 1;
    wait_archived(&daemon, all);
    let mut log = services.read_topic("replaying");
    assert_eq!(log.len(), all);
    for record in &mut log {
        // A replay of a replay says where it stood last.
        record.headers.retain(|(name, _)| name != REPLAYED_FROM);
        record.headers.sort_by_key(|(name, _)| name != "id");
    }

    services.create_topic("again", 5);
    let to = ["--to-topic", "again"];
    assert_eq!(replayed(&daemon, &["--to-topic", "again", "--dry-run"]), all as u64);
    assert_eq!(services.read_topic("again").len(), 0);
    assert_eq!(services.partitions("replaying.replays"), None, "it has changed nothing");

    let sent = eventually("one is killed on its way", PATIENCE, || {
        let mut killed = Command::new(program());
        killed.args(["archive", "replay", "--to-topic", "again"]).args(daemon.settings());
        let mut killed = killed.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts");
        eventually("a transaction is committed", PATIENCE, || {
            services.watermarks("again").iter().any(|(_, start, end)| start < end).then_some(())
        });
        killed.kill().expect("it is our child");
        killed.wait().expect("it is our child");
        let sent = by_origin(services.read_topic("again")).len();
        if sent == all {
            // It was faster.
            services.recreate_topic("again", 5);
        }
        (sent < all).then_some(sent)
    });

    let rest = replay(&daemon, &to).json(0);
    assert_eq!(rest["replayed"].as_u64(), Some((all - sent) as u64), "{rest}");
    assert_eq!((&rest["topic"], &rest["to_topic"], &rest["ok"]), (&json!("replaying"), &json!("again"), &json!(true)));
    compare("replaying", &log, services.read_topic("again"));
    assert_eq!(replayed(&daemon, &to), 0);

    // What comes later is sent by the next one.
    post(&daemon, 10);
    wait_archived(&daemon, all + 10);
    assert_eq!(replayed(&daemon, &to), 10);
    assert_eq!(by_origin(services.read_topic("again")).len(), all + 10);

    // Another topic of that name has nothing yet.
    services.recreate_topic("again", 2);
    assert_eq!(replayed(&daemon, &to), (all + 10) as u64);
    daemon.terminate();

    // Whoever reads it as a queue takes them for what they are.
    let reader = on_kafka(&services, "again").start();
    wait_archived(&reader, all + 10);
    let counted = ["ingestd_events_aggregated_total", "ingestd_events_dead_lettered_total"];
    let [counted, letters] = eventually("all are counted", PATIENCE, || {
        let [counted, letters] = counted.map(|name| reader.metric(name).unwrap_or_default());
        ((counted + letters) as usize == all + 10).then_some([counted, letters])
    });
    assert_eq!((counted as usize, letters as usize), (all + 8, 2), "no JSON, and no value");
    let cat = reader.command(&["archive", "cat", "--offset", "0..1"]).out;
    let line: Value = serde_json::from_str(cat.lines().next().expect("a line")).expect("JSON");
    let headers = line["headers"].as_array().expect("headers");
    assert!(headers.iter().any(|header| header["name"] == REPLAYED_FROM), "{line}");
    reader.terminate();
}

#[test]
fn replays_at_the_same_time_and_in_parts_send_each_record_once() {
    let Some(services) = services() else { return };
    let daemon = on_kafka(&services, "parts").start();
    post(&daemon, 20_000);
    wait_archived(&daemon, 20_000);
    let log = services.read_topic("parts");
    services.create_topic("parts-whole", 3);
    services.create_topic("parts-beside", 3);

    let of = |partition, from: u64, to: u64| {
        let is_asked = |record: &&LogRecord| record.partition == partition && (from..to).contains(&record.offset);
        log.iter().filter(is_asked).count() as u64
    };
    let part = replayed(&daemon, &["--to-topic", "parts-whole", "--partition", "1", "--offset", "100..300"]);
    assert_eq!(part, of(1, 100, 300));
    let part = replayed(&daemon, &["--to-topic", "parts-whole", "--partition", "1", "--offset", "50..150"]);
    assert_eq!(part, of(1, 50, 100));
    let times: Vec<i64> = log.iter().map(|record| record.received).collect();
    let middle =
        chrono::DateTime::from_timestamp_millis(times.iter().sum::<i64>() / times.len() as i64).expect("a time");
    let middle = middle.to_rfc3339();
    let report = replay(&daemon, &["--to-topic", "parts-whole", "--partition", "2", "--to", &middle]).json(0);
    assert!(report["replayed"].as_u64().is_some_and(|early| early <= of(2, 0, u64::MAX)), "{report}");

    // Several at once: to one topic they fence each other, to two they do not mind.
    thread::scope(|scope| {
        for to in ["parts-whole", "parts-whole", "parts-beside", "parts-whole"] {
            let daemon = &daemon;
            scope.spawn(move || {
                let ran = daemon.command(&["archive", "replay", "--to-topic", to]);
                let fenced = ran.error.contains(&format!("another replay to topic {to} took over"));
                assert!(ran.status == Some(0) || (ran.status == Some(1) && fenced), "{ran:?}");
                assert!(ran.error.lines().count() <= 1, "{ran:?}");
            });
        }
    });
    replayed(&daemon, &["--to-topic", "parts-whole"]);
    // Its parts came in the order in which they were asked for.
    compare_in_any_order("parts", &log, services.read_topic("parts-whole"));
    replayed(&daemon, &["--to-topic", "parts-beside"]);
    compare("parts", &log, services.read_topic("parts-beside"));
    let said = daemon.command(&["archive", "replay", "--to-topic", "parts-whole"]);
    assert_eq!(said.status, Some(0), "{said:?}");
    assert!(said.out.ends_with("0 records of topic parts replayed to topic parts-whole\n"), "{said:?}");
    assert!(said.out.starts_with("partition 0: nothing to replay\n"), "{said:?}");
    daemon.terminate();
}

#[test]
fn the_archive_of_an_embedded_log_is_replayed_to_brokers_that_are_named() {
    let Some(services) = services() else { return };
    let daemon = Setup::new("to-kafka").set("spool.max_age", "200ms").start();
    post(&daemon, 100);
    wait_archived(&daemon, 100);
    services.create_topic("events", 2);
    let brokers = format!("queue.kafka.brokers={}", services.kafka.address());
    let arguments = ["--to-topic", "events", "--set", &brokers];
    assert_eq!(replayed(&daemon, &arguments), 100);
    assert_eq!(replayed(&daemon, &arguments), 0);
    let found = by_origin(services.read_topic("events"));
    assert!(
        found
            .keys()
            .eq((0..100).map(|offset| format!("events/0/{offset}")).collect::<std::collections::BTreeSet<_>>().iter())
    );
    daemon.terminate();
}

#[test]
fn what_cannot_be_replayed_is_said_in_one_sentence() {
    let Some(services) = services() else { return };
    let daemon = on_kafka(&services, "refusing").start();
    post(&daemon, 30);
    let large = format!("{{\"type\":\"large\",\"x\":\"{}\"}}", "é".repeat(30_000));
    assert_eq!(daemon.post(None, large.as_bytes()).status, 200);
    wait_archived(&daemon, 31);
    thread::sleep(Duration::from_millis(1100));
    services.create_topic_with("forgets", &[("retention.ms", "1000")]);
    services.create_topic_with("stamps", &[("retention.ms", "1000"), ("message.timestamp.type", "LogAppendTime")]);
    services.create_topic_with("narrow", &[("max.message.bytes", "200")]);
    services.create_topic_with("strict", &[("message.timestamp.before.max.ms", "1000")]);
    services.create_topic("free", 1);
    let nowhere = format!("127.0.0.1:{}", free_port());
    let none: &[(&str, &str)] = &[];
    for (to, settings, status, words) in [
        ("a/b", none, 2, "must be the name of a topic"),
        (
            "refusing",
            none,
            1,
            "that topic is the daemon's own, and what is replayed to it would be archived and counted again: name another \
             one",
        ),
        ("refusing.dlq", none, 1, "that topic holds the daemon's dead letters: name another one"),
        ("refusing.replays", none, 1, "that topic says what was replayed: name another one"),
        ("missing", none, 1, "topic missing does not exist at 127.0.0.1:"),
        ("free", &[("archive.url", "none")], 1, "there is no archive: archive.url is \"none\""),
        (
            "free",
            &[("queue.kind", "embedded"), ("queue.kafka.brokers", "")],
            78,
            "name them by --set queue.kafka.brokers=HOST:PORT",
        ),
        ("free", &[("queue.kafka.brokers", &nowhere)], 1, "cannot be reached"),
        ("free", &[("queue.kafka.create_topic", "false")], 1, "topic refusing.replays does not exist at 127.0.0.1:"),
        ("forgets", none, 1, "and topic forgets removes what is older than 1s (retention.ms): raise that"),
        ("narrow", none, 1, "and topic narrow does not take it (its max.message.bytes = 200): raise that"),
        ("strict", none, 1, "message.timestamp.before.max.ms"),
    ] {
        let ran = daemon.command_with(&["archive", "replay", "--to-topic", to], settings);
        assert_eq!(ran.status, Some(status), "{to} {settings:?}: {ran:?}");
        assert!(ran.error.contains(words), "{to} {settings:?}: {ran:?}");
        assert!(status == 2 || ran.error.lines().count() == 1, "{to} {settings:?}: {ran:?}");
        assert!(!ran.error.contains("panicked"), "{ran:?}");
    }
    let nameless = daemon.command(&["archive", "replay"]);
    assert!(nameless.status == Some(2) && nameless.error.contains("--to-topic <TOPIC>"), "{nameless:?}");
    assert_eq!(replayed(&daemon, &["--to-topic", "stamps"]), 31);
    assert_eq!(replayed(&daemon, &["--to-topic", "free"]), 31);

    // A word of a newer release, and a topic that would forget words.
    services.produce_record(
        "refusing.replays",
        b"refusing/0/free",
        br#"{"version":2,"from":null,"to":"x","offsets":[],"time":""}"#,
        &[],
    );
    let newer = daemon.command(&["archive", "replay", "--to-topic", "free"]);
    assert!(newer.error.contains("the word about refusing/0/free was written by a newer ingestd"), "{newer:?}");
    services.alter_topic("refusing.replays", "cleanup.policy", "delete");
    let forgetful = daemon.command(&["archive", "replay", "--to-topic", "free"]);
    assert!(forgetful.error.contains("topic refusing.replays is not compacted"), "{forgetful:?}");
    daemon.terminate();
}

#[test]
fn a_broker_that_hangs_for_a_moment_is_waited_for() {
    let Some(services) = services() else { return };
    let daemon = on_kafka(&services, "hanging").start();
    post(&daemon, EVENTS);
    wait_archived(&daemon, EVENTS);
    let log = services.read_topic("hanging");
    services.create_topic("thawed", 3);
    thread::scope(|scope| {
        let replaying = scope.spawn(|| daemon.command(&["archive", "replay", "--to-topic", "thawed", "--json"]));
        eventually("a transaction is committed", PATIENCE, || {
            services.watermarks("thawed").iter().any(|(_, start, end)| start < end).then_some(())
        });
        services.kafka.freeze();
        thread::sleep(Duration::from_secs(5));
        services.kafka.thaw();
        let report = replaying.join().expect("no panic").json(0);
        assert_eq!(report["replayed"].as_u64(), Some(EVENTS as u64), "{report}");
    });
    compare("hanging", &log, services.read_topic("thawed"));
    daemon.terminate();
}
