//! `queue.on_unavailable = "buffer"` with a real broker: what was accepted while Kafka was away stands in the topic, once
//! and in its order, whatever is killed in between.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use rdkafka::producer::Producer;

use crate::support::{
    PATIENCE,
    archive::Archive,
    daemon::{Daemon, Setup},
    eventually,
    http::{Client, NoReply},
    log::LogRecord,
    preload::Clock,
    scratch,
    services::{Services, services},
};

/// So many clients, each with a key of its own, each waiting for an answer before it sends its next event.
const KEYS: usize = 6;

/// What the clients know: for each key, what became of each event, by its number.
#[derive(Default)]
struct Clients {
    answers: Mutex<BTreeMap<usize, Vec<Fate>>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// 2xx.
    Accepted,
    /// 503, or no answer: it may be stored, and is not sent again.
    Uncertain,
}

impl Clients {
    fn answers(&self) -> BTreeMap<usize, Vec<Fate>> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn accepted(&self) -> usize {
        self.answers().values().flatten().filter(|fate| **fate == Fate::Accepted).count()
    }

    fn last_number(&self, key: usize) -> usize {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner).entry(key).or_default().len()
    }

    /// Sends one event of a key; its answer, unless it certainly did not arrive.
    fn send(&self, client: &Client, url: &str, key: usize) -> Option<Fate> {
        let n = self.last_number(key);
        // The server assigns every second id.
        let id = if n.is_multiple_of(2) { format!(r#","event_id":"{key}-{n}""#) } else { String::new() };
        let body = format!(r#"{{"type":"t","client_id":"client-{key}","n":{n}{id}}}"#);
        let fate = match client.post(url, None, body.as_bytes()) {
            Ok(reply) if reply.status == 200 => Fate::Accepted,
            Ok(reply) => {
                assert!(reply.status == 503 && reply.retry_after.is_some(), "{reply:?}");
                Fate::Uncertain
            }
            Err(NoReply::Unknown(_)) => Fate::Uncertain,
            Err(NoReply::NotSent) => return None,
        };
        self.answers.lock().unwrap_or_else(PoisonError::into_inner).entry(key).or_default().push(fate);
        Some(fate)
    }

    /// All clients send while `meanwhile` runs.
    fn send_while<T>(&self, url: &str, meanwhile: impl FnOnce() -> T) -> T {
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            for key in 0..KEYS {
                let done = &done;
                scope.spawn(move || {
                    let client = Client::new();
                    while !done.load(Ordering::Acquire) {
                        match self.send(&client, url, key) {
                            // A steady load that leaves the machine room for what it waits for.
                            Some(Fate::Accepted) => thread::sleep(Duration::from_millis(3)),
                            _ => thread::sleep(Duration::from_millis(50)),
                        }
                    }
                });
            }
            // Also when it panics, so that the scope ends.
            let stop = StopAtEnd(&done);
            let answer = meanwhile();
            drop(stop);
            answer
        })
    }

    /// Sends until so many more events were accepted.
    fn send_accepted(&self, url: &str, events: usize) {
        let wanted = self.accepted() + events;
        self.send_while(url, || {
            eventually("the events are accepted", PATIENCE, || (self.accepted() >= wanted).then_some(()));
        });
    }

    /// Compares with the topic, one by one: each accepted event once, each uncertain one at most once, each key in its
    /// order, and nothing that was never sent. `elsewhere`: how many of the accepted ones need not be there.
    #[track_caller]
    fn check(&self, records: &[LogRecord], elsewhere: &[String]) {
        let answers = self.answers();
        let mut found: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for record in records {
            let event: serde_json::Value = serde_json::from_slice(value(record)).expect("what was sent is JSON");
            let key = std::str::from_utf8(record.key.as_deref().expect("a key")).expect("text");
            let key: usize = key.trim_start_matches("client-").parse().expect("a key that was sent");
            found.entry(key).or_default().push(event["n"].as_u64().expect("n") as usize);
            let has_id = record.headers.iter().any(|(name, _)| name == "id");
            assert_eq!(has_id, event.get("event_id").is_none(), "{event}");
        }
        for (key, fates) in &answers {
            let found = found.remove(key).unwrap_or_default();
            let mut times = vec![0; fates.len()];
            found.iter().for_each(|n| times[*n] += 1);
            for (n, fate) in fates.iter().enumerate() {
                let is_elsewhere = elsewhere.contains(&format!("{key}/{n}"));
                let least = usize::from(*fate == Fate::Accepted && !is_elsewhere);
                let most = usize::from(!is_elsewhere);
                assert!(
                    (least..=most).contains(&times[n]),
                    "event {n} of key {key} ({fate:?}) stands {} times",
                    times[n]
                );
            }
            let accepted: Vec<_> = found.into_iter().filter(|n| fates[*n] == Fate::Accepted).collect();
            assert!(accepted.is_sorted(), "the events of key {key} are not in their order");
        }
        assert!(found.is_empty(), "keys that were never sent: {found:?}");
    }
}

struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

fn setup(services: &Services, name: &'static str) -> Setup {
    Setup::new(name)
        .set("queue.kind", "kafka")
        .set("queue.on_unavailable", "buffer")
        .set("queue.topic", name)
        .set("queue.kafka.brokers", services.kafka.address())
        .set("queue.kafka.group", name)
        .set("http.request_timeout", "4s")
        .set("shutdown.timeout", "15s")
}

/// Kafka is killed, until this is dropped: also by a test that fails, so that the next one finds it.
struct Outage<'s>(&'s Services);

impl Outage<'_> {
    fn end(self) {}
}

impl Drop for Outage<'_> {
    fn drop(&mut self) {
        self.0.kafka.restart();
        if !thread::panicking() {
            self.0.wait_kafka();
        }
    }
}

fn kill_kafka<'s>(services: &'s Services, daemon: &Daemon) -> Outage<'s> {
    services.kafka.kill();
    let outage = Outage(services);
    eventually("the outage is noticed", PATIENCE, || {
        (daemon.readiness()["dependencies"]["kafka"]["available"] == false).then_some(())
    });
    outage
}

fn waiting(daemon: &Daemon) -> f64 {
    daemon.metric("ingestd_buffer_records").expect("the metric is there")
}

fn wait_forwarded(daemon: &Daemon) {
    eventually("the buffer is forwarded", PATIENCE, || {
        let ready = daemon.try_readiness()?;
        (waiting(daemon) == 0.0 && ready["dependencies"]["kafka"]["available"] == true).then_some(())
    });
}

#[test]
fn what_is_accepted_while_kafka_is_away_stands_in_the_topic_once_and_in_its_order() {
    let Some(services) = services() else { return };
    let daemon = setup(&services, "buffer-outage").start();
    let (clients, url) = (Clients::default(), daemon.events_url());
    // The first ones may be buffered, for as long as Kafka has not answered.
    clients.send_accepted(&url, 20);
    wait_forwarded(&daemon);
    let forwarded = daemon.metric("ingestd_events_forwarded_total");
    clients.send_accepted(&url, 200);
    assert_eq!(daemon.metric("ingestd_events_forwarded_total"), forwarded, "straight, while Kafka is there");
    clients.send_while(&url, || {
        let outage = kill_kafka(&services, &daemon);
        let before = clients.accepted();
        eventually("events are accepted without Kafka", PATIENCE, || {
            (clients.accepted() >= before + 500).then_some(())
        });
        eventually("what waits is told", PATIENCE, || {
            let readiness = daemon.readiness();
            assert_eq!(readiness["ready"], true, "{readiness}");
            let remark = readiness["dependencies"]["buffer"]["reason"].as_str()?;
            assert!(remark.contains("events wait in buffer.db until Kafka is back"), "{remark}");
            (readiness["degraded"] == true).then_some(())
        });
        outage.end();
        eventually("it is forwarded under load", PATIENCE, || {
            (daemon.metric("ingestd_events_forwarded_total")? >= 500.0 && waiting(&daemon) == 0.0).then_some(())
        });
        eventually("events go straight again under load", PATIENCE, || {
            let (forwarded, accepted) = (daemon.metric("ingestd_events_forwarded_total"), clients.accepted());
            eventually("accepted", PATIENCE, || (clients.accepted() >= accepted + 100).then_some(()));
            (daemon.metric("ingestd_events_forwarded_total") == forwarded).then_some(())
        });
    });
    wait_forwarded(&daemon);
    let forwarded = daemon.metric("ingestd_events_forwarded_total");
    clients.send_accepted(&url, 300);
    assert_eq!(daemon.metric("ingestd_events_forwarded_total"), forwarded, "straight again");
    let records = services.read_topic("buffer-outage");
    clients.check(&records, &[]);
    let late: Vec<_> = records.iter().filter_map(|record| Some((record, record.header("ingestd-received")?))).collect();
    assert_eq!(late.len() as f64, forwarded.expect("a metric"));
    assert!(late.iter().all(|(record, received)| record.received.to_string() == *received), "the time of receipt");
    eventually("all of it is archived", PATIENCE, || {
        let mut archive = Archive::local(&daemon.data().join("archive"));
        archive.refresh();
        (archive.lines().count() == records.len()).then_some(())
    });
    daemon.terminate();
}

fn value(record: &LogRecord) -> &[u8] {
    record.value.as_deref().expect("a value")
}

#[test]
fn a_broker_that_hangs_and_returns_neither_loses_nor_doubles_nor_reorders() {
    let Some(services) = services() else { return };
    let daemon = setup(&services, "buffer-freeze").start();
    let (clients, url) = (Clients::default(), daemon.events_url());
    clients.send_while(&url, || {
        for _ in 0..2 {
            let before = clients.accepted();
            let enough =
                |events| eventually("accepted", PATIENCE, || (clients.accepted() >= before + events).then_some(()));
            enough(100);
            let kafka = services.kafka.process();
            let frozen = kafka.freeze();
            eventually("events are buffered", PATIENCE, || (waiting(&daemon) >= 300.0).then_some(()));
            drop(frozen);
            // Frozen again while it is forwarded, as a rule.
            eventually("forwarding begins", PATIENCE, || {
                (daemon.metric("ingestd_events_forwarded_total")? > 0.0).then_some(())
            });
        }
    });
    wait_forwarded(&daemon);
    clients.check(&services.read_topic("buffer-freeze"), &[]);
    daemon.terminate();
}

#[test]
fn a_daemon_that_is_killed_while_it_buffers_and_while_it_forwards_loses_and_doubles_nothing() {
    let Some(services) = services() else { return };
    let mut daemon = setup(&services, "buffer-kill").roles("ingest").start();
    let (clients, url) = (Clients::default(), daemon.events_url());
    clients.send_accepted(&url, 50);
    for round in 0..3 {
        clients.send_while(&url, || {
            let outage = kill_kafka(&services, &daemon);
            // While it buffers; the second time it starts without Kafka.
            for _ in 0..2 {
                let before = clients.accepted();
                eventually("accepted", PATIENCE, || (clients.accepted() >= before + 1500).then_some(()));
                daemon.kill();
                daemon.restart();
            }
            outage.end();
            // While it forwards: at moments that differ from round to round.
            for pause in [0, 20, 70, 150] {
                eventually("forwarding begins", PATIENCE, || {
                    let begun = daemon.metric("ingestd_events_forwarded_total")? > 0.0;
                    (begun || waiting(&daemon) == 0.0).then_some(())
                });
                thread::sleep(Duration::from_millis(pause + 13 * round));
                daemon.kill();
                daemon.restart();
            }
        });
        wait_forwarded(&daemon);
        let records = services.read_topic("buffer-kill");
        eprintln!("buffer-kill: {} accepted, {} in the topic", clients.accepted(), records.len());
        clients.check(&records, &[]);
    }
    daemon.terminate();
}

#[test]
fn a_daemon_starts_without_kafka_and_keeps_what_it_accepts_until_a_later_start() {
    let Some(services) = services() else { return };
    let mut daemon = setup(&services, "buffer-start").start();
    let (clients, url) = (Clients::default(), daemon.events_url());
    clients.send_accepted(&url, 20);
    wait_forwarded(&daemon);
    daemon.terminate();
    services.kafka.kill();
    let outage = Outage(&services);
    daemon.restart();
    eventually("degraded", PATIENCE, || (daemon.readiness()["degraded"] == true).then_some(()));
    let before = clients.accepted();
    clients.send_accepted(&url, 100);
    daemon.terminate();
    let waits = clients.accepted() - before;
    let said = format!("{waits} events wait in the buffer for the next start");
    assert!(daemon.log().contains(&said), "{said}");

    let rejecting = setup(&services, "buffer-start").set("queue.on_unavailable", "reject");
    let (exit, log) = rejecting.data(daemon.data().to_owned()).run_to_end();
    assert_eq!(exit, 1);
    assert!(log.contains(&format!("buffer.db holds {waits} accepted events")), "{log}");

    daemon.restart();
    assert_eq!(waiting(&daemon), waits as f64);
    outage.end();
    wait_forwarded(&daemon);
    clients.check(&services.read_topic("buffer-start"), &[]);
    daemon.terminate();
}

#[test]
fn at_the_quota_events_are_refused_until_kafka_is_back() {
    let Some(services) = services() else { return };
    let daemon = setup(&services, "buffer-quota").set("queue.embedded.quota", "64KiB").roles("ingest").start();
    let (clients, url) = (Clients::default(), daemon.events_url());
    clients.send_accepted(&url, 20);
    let outage = clients.send_while(&url, || {
        let outage = kill_kafka(&services, &daemon);
        eventually("the door is closed", PATIENCE, || (daemon.get("/health/ready").status == 503).then_some(()));
        outage
    });
    let reply = daemon.post(None, br#"{"type":"t"}"#);
    reply.assert_problem(503);
    assert!(reply.body.contains("queue.embedded.quota"), "{reply:?}");
    outage.end();
    daemon.wait_ready();
    clients.send_accepted(&url, 200);
    wait_forwarded(&daemon);
    clients.check(&services.read_topic("buffer-quota"), &[]);
    daemon.terminate();
}

#[test]
fn an_event_that_is_too_old_for_the_topic_becomes_a_dead_letter_and_holds_up_nothing() {
    let Some(services) = services() else { return };
    const TOPIC: &str = "buffer-old";
    let folder = tempfile::tempdir_in(scratch()).expect("target can be written to");
    let Some(clock) = Clock::new(folder.path()) else { return };
    let bounds = [("message.timestamp.before.max.ms", "1800000"), ("max.message.bytes", "2000000")];
    services.create_topic_with(TOPIC, &bounds);
    let daemon = clock.give(setup(&services, TOPIC)).roles("ingest").start();
    let (clients, url) = (Clients::default(), daemon.events_url());
    clients.send_accepted(&url, 20);
    let outage = kill_kafka(&services, &daemon);
    // What comes while the clock is an hour behind is too old when it is right again.
    clock.step(-3600);
    clients.send_accepted(&url, 700);
    let old = clients.answers();
    clock.step(0);
    clients.send_accepted(&url, 300);
    outage.end();
    wait_forwarded(&daemon);

    let letters = services.read_topic(&format!("{TOPIC}.dlq"));
    let mut dead = Vec::new();
    for letter in &letters {
        let event: serde_json::Value = serde_json::from_slice(value(letter)).expect("the bytes as they came");
        let key: usize =
            event["client_id"].as_str().expect("a key").trim_start_matches("client-").parse().expect("one");
        let n = event["n"].as_u64().expect("n") as usize;
        assert!(n < old[&key].len(), "a fresh event among the dead letters: {event}");
        assert_eq!(letter.header("ingestd-reason"), Some("refused_by_broker"));
        assert_eq!(letter.header("ingestd-record-key"), Some(format!("client-{key}").as_str()));
        dead.push(format!("{key}/{n}"));
    }
    assert!(letters.len() >= 700, "{} letters", letters.len());
    dead.sort();
    let letters = dead.len();
    dead.dedup();
    assert_eq!(dead.len(), letters, "each letter once");
    clients.check(&services.read_topic(TOPIC), &dead);
    assert_eq!(daemon.metric("ingestd_events_dead_lettered_total"), Some(letters as f64));
    daemon.terminate();
}

/// The transactional id and the group of a daemon's forwarder.
fn forwarder_id(daemon: &Daemon, group: &str) -> String {
    let database = rusqlite::Connection::open(daemon.data().join("buffer.db")).expect("it is there");
    let identity: String = database
        .query_row("SELECT value FROM meta WHERE name = 'identity'", [], |row| row.get(0))
        .expect("it has an identity");
    format!("{group}-buffer-{identity}")
}

#[test]
fn a_position_that_kafka_forgot_is_reported_with_its_range_and_nothing_is_lost() {
    let Some(services) = services() else { return };
    const NAME: &str = "buffer-forgotten";
    let mut daemon = setup(&services, NAME).roles("ingest").start();
    let (clients, url) = (Clients::default(), daemon.events_url());
    clients.send_accepted(&url, 20);
    wait_forwarded(&daemon);
    let outage = kill_kafka(&services, &daemon);
    clients.send_accepted(&url, 3000);
    outage.end();
    wait_forwarded(&daemon);
    // The last cursor is fsynced a second later: without it the last transaction is marked, and no more.
    daemon.kill();
    let id = forwarder_id(&daemon, NAME);
    let database = rusqlite::Connection::open(daemon.data().join("buffer.db")).expect("it is there");
    let mark: String =
        database.query_row("SELECT value FROM meta WHERE name = 'doubt'", [], |row| row.get(0)).expect("a mark");
    let (from, to) = mark.split_once(',').expect("two positions");
    let (from, to): (usize, usize) = (from.parse().expect("one"), to.parse().expect("one"));
    database
        .execute("UPDATE cursors SET position = min(position, ?1)", [from as i64])
        .expect("as it is within that second");
    drop(database);
    let before = services.read_topic(NAME).len();
    services.delete_group(&id);

    daemon.restart();
    let said = format!("from={from} to={to}");
    eventually("the doubt is reported", PATIENCE, || {
        daemon.log().lines().any(|line| line.contains("Kafka has forgotten") && line.contains(&said)).then_some(())
    });
    wait_forwarded(&daemon);
    assert_eq!(services.read_topic(NAME).len(), before + to - from, "the range was sent again, and nothing else");
    daemon.terminate();
}

#[test]
fn an_older_copy_of_the_buffer_stops_the_process() {
    let Some(services) = services() else { return };
    const NAME: &str = "buffer-copy";
    let mut daemon = setup(&services, NAME).roles("ingest").start();
    let (clients, url) = (Clients::default(), daemon.events_url());
    clients.send_accepted(&url, 20);
    let outage = kill_kafka(&services, &daemon);
    clients.send_accepted(&url, 100);
    daemon.terminate();
    let file = daemon.data().join("buffer.db");
    let copy = std::fs::read(&file).expect("it is there");
    daemon.restart();
    clients.send_accepted(&url, 100);
    outage.end();
    wait_forwarded(&daemon);
    daemon.terminate();
    clients.check(&services.read_topic(NAME), &[]);

    std::fs::write(&file, copy).expect("it can be written");
    daemon.respawn();
    assert_eq!(daemon.wait_exit(PATIENCE), 1);
    assert!(daemon.log().contains("is an older copy of itself"), "{}", daemon.log());
    clients.check(&services.read_topic(NAME), &[]);
}

#[test]
fn a_forwarder_whose_transactional_id_is_taken_again_and_again_ends_with_status_3() {
    let Some(services) = services() else { return };
    const NAME: &str = "buffer-fence";
    const FILLER: &str = r#"{"type":"filler"}"#;
    let mut daemon = setup(&services, NAME).roles("ingest").start();
    let (clients, url) = (Clients::default(), daemon.events_url());
    clients.send_accepted(&url, 20);
    wait_forwarded(&daemon);
    let id = forwarder_id(&daemon, NAME);
    // So many that the forwarder has not caught up before it was fenced often enough.
    let filler = format!("[{}]", [FILLER; 1000].join(","));
    let exit = clients.send_while(&url, || {
        let outage = kill_kafka(&services, &daemon);
        let enough = clients.accepted() + 1000;
        eventually("events are buffered", PATIENCE, || (clients.accepted() >= enough).then_some(()));
        for _ in 0..200 {
            assert_eq!(daemon.post(None, filler.as_bytes()).status, 200);
        }
        outage.end();
        eventually("the process ends", PATIENCE, || {
            if daemon.exit().is_none() {
                let producer = services.transactional_producer(&id);
                // It may be fenced in turn.
                let _ = producer.init_transactions(Duration::from_secs(5));
            }
            daemon.exit()
        })
    });
    assert_eq!(exit, 3, "{}", daemon.log());
    assert!(daemon.log().contains("another process forwards a copy"), "{}", daemon.log());
    daemon.restart();
    wait_forwarded(&daemon);
    let (filler, sent): (Vec<_>, Vec<_>) =
        services.read_topic(NAME).into_iter().partition(|record| record.value.as_deref() == Some(FILLER.as_bytes()));
    assert_eq!(filler.len(), 200_000);
    clients.check(&sent, &[]);
    daemon.terminate();
}
