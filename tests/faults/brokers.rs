//! Several Kafka brokers, of which some go away: a request never waits for long, and nothing is lost or doubled.

use std::{
    fs::File,
    io::Write,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crate::{
    load,
    support::{
        PATIENCE,
        archive::Archive,
        brokers::Brokers,
        daemon::{Daemon, Setup},
        events::Ledger,
        eventually,
        http::Reply,
        oracle::Oracle,
    },
};

/// What a request may take on a machine that does other things as well; 3 s are meant, and 8 s were needed.
const SOON: Duration = Duration::from_secs(6);
/// The same of one that needs nobody's answer, beside what the machine itself stood still for.
const AT_ONCE: Duration = Duration::from_secs(2);

/// How long the machine stands still: what a write to the disk takes that is made again and again beside what is measured.
struct Stillness {
    over: Arc<AtomicBool>,
    writing: JoinHandle<Duration>,
}

impl Stillness {
    fn begin(folder: &Path) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let (until, path) = (over.clone(), folder.join("stillness"));
        let writing = thread::spawn(move || {
            let mut longest = Duration::ZERO;
            while !until.load(Ordering::Relaxed) {
                let began = Instant::now();
                let file = File::create(&path).expect("the folder can be written to");
                (&file).write_all(b"still").and_then(|()| file.sync_all()).expect("the disk can be written to");
                thread::sleep(Duration::from_millis(1));
                longest = longest.max(began.elapsed());
            }
            longest
        });
        Self { over, writing }
    }

    fn longest(self) -> Duration {
        self.over.store(true, Ordering::Relaxed);
        self.writing.join().expect("it does not panic")
    }
}

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
    let deadline = Instant::now() + PATIENCE;
    loop {
        let readiness = daemon.readiness();
        let topic = &readiness["dependencies"]["kafka_topic"];
        let is_named = match what {
            Some(what) => topic["reason"].as_str().is_some_and(|reason| reason.contains(what)),
            None => topic["available"] == true && readiness["ready"] == true,
        };
        if is_named {
            return;
        }
        assert!(Instant::now() < deadline, "readiness does not say {what:?} within {PATIENCE:?}: {readiness}");
        thread::sleep(Duration::from_millis(50));
    }
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
    let mut oracle = Oracle::new(&buffered, Archive::local(&buffers.data().join("archive")));
    // The follower is not told at once that these are committed: it tells no end of a log that it comes to lead now, until
    // enough replicas are in sync again.
    buffered.post(&buffers.events_url(), 100, 2, PATIENCE);
    refusing.post(&refuses.events_url(), 100, 2, PATIENCE);
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
    // Of both: as long as one of them is thought to take events, a request may wait for it.
    let words = "partition(s) 0, 1: 1 of 2 replicas are in sync, and min.insync.replicas is 2";
    for daemon in [&refuses, &buffers] {
        wait_named(daemon, Some(words));
    }
    // It lasts: longer than a record lives in librdkafka, and nothing flaps.
    let until = Instant::now() + Duration::from_secs(12);
    while Instant::now() < until {
        let still = Stillness::begin(buffers.data());
        let (reply, refused) = post(&refuses, "client-1");
        assert!(reply.status == 503 && reply.body.contains(words), "{reply:?} after {refused:?}");
        let began = Instant::now();
        buffered.post(&buffers.events_url(), 1, 1, PATIENCE);
        let (taken, still) = (began.elapsed(), still.longest());
        assert!(
            refused.max(taken) < AT_ONCE + still,
            "{refused:?}, {taken:?}, and the machine stood still for {still:?}"
        );
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
    // It makes its topics itself, as configured, though these brokers make any that is asked for.
    let setup = buffering(brokers.setup("quorum")).set("queue.kafka.partitions", "6");
    let daemon = setup.set("queue.kafka.replication", "3").start();
    for topic in ["quorum", "quorum.dlq"] {
        // Not every broker knows of it at once.
        eventually("six partitions on three brokers", PATIENCE, || {
            let partitions = brokers.partitions(topic);
            (partitions.iter().filter(|partition| partition.in_sync == 3).count() == 6).then_some(())
        });
    }
    let ledger = Ledger::new();
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

/// With `INGESTD_FAULTS_CLUSTER` all kinds befall it, else a minute's worth.
#[test]
fn whatever_befalls_a_cluster_of_three_nothing_is_lost_or_doubled() {
    let Some(brokers) = Brokers::start(3) else { return };
    let topic = "cluster";
    brokers.create_topic(topic, 4, &[("min.insync.replicas", "2")]);
    let setup = brokers.setup(topic).set("queue.kafka.partitions", "4").set("queue.kafka.replication", "3");
    let daemon = setup.start();
    let ledger = Ledger::new();
    let mut oracle = Oracle::new(&ledger, Archive::local(&daemon.data().join("archive")));
    let recover = |fault: &str, since: Instant| load::recover(&daemon, &ledger, fault, since);
    let whole = || brokers.wait_in_sync(topic, 3);

    load::during(&ledger, &daemon.events_url(), || {
        recover("the start", Instant::now());
        let controller = brokers.controller();
        let (killed, stopped) = (controller % 3 + 1, (controller + 1) % 3 + 1);
        let since = Instant::now();
        brokers.node(controller).kill();
        recover("kill -9 of the controller", since);
        brokers.node(controller).restart();
        whole();
        if std::env::var_os("INGESTD_FAULTS_CLUSTER").is_some() {
            let since = Instant::now();
            brokers.node(killed).kill();
            recover("kill -9 of another broker", since);
            brokers.node(killed).restart();
            whole();

            let since = Instant::now();
            brokers.node(stopped).process().signal("TERM");
            assert!(brokers.node(stopped).process().wait(PATIENCE).is_some(), "a broker stops");
            recover("the stop of a broker", since);
            brokers.node(stopped).restart();
            whole();

            let since = Instant::now();
            brokers.node(killed).freeze();
            recover("a frozen broker, while it is frozen,", since);
            let since = Instant::now();
            brokers.node(killed).thaw();
            whole();
            recover("its return", since);
        }

        // Each partition leaves a broker that has it, and comes back.
        let since = Instant::now();
        brokers.move_to(topic, &[killed, stopped]);
        recover("all partitions moved to two brokers", since);
        let since = Instant::now();
        brokers.move_to(topic, &[controller, killed, stopped]);
        recover("all partitions moved to three brokers", since);

        for node in [controller, stopped] {
            brokers.node(node).kill();
        }
        eventually("that no quorum is left shows", PATIENCE, || (daemon.readiness()["ready"] == false).then_some(()));
        let since = Instant::now();
        for node in [controller, stopped] {
            brokers.node(node).restart();
        }
        recover("a quorum that was lost", since);
        whole();
    });
    oracle.settle(&[&daemon], PATIENCE);
    daemon.terminate();
}

#[test]
fn a_log_that_an_unclean_election_shortened_is_named_and_nothing_stands_under_an_offset_twice() {
    let Some(brokers) = Brokers::start(3) else { return };
    let topic = "unclean";
    let settings = [("unclean.leader.election.enable", "true"), ("min.insync.replicas", "1")];
    brokers.create_topic_on(topic, &[2, 3], &settings);
    let setup = brokers.setup(topic).set("queue.kafka.partitions", "1").set("queue.kafka.replication", "3");
    let daemon = setup.start();
    let ledger = Ledger::new();
    let mut oracle = Oracle::new(&ledger, Archive::local(&daemon.data().join("archive")));
    ledger.post(&daemon.events_url(), 100, 2, PATIENCE);
    oracle.settle(&[&daemon], PATIENCE);

    // Of the next ones the third broker has no copy, and is the only one that comes back.
    brokers.node(3).kill();
    brokers.wait_in_sync(topic, 1);
    ledger.post(&daemon.events_url(), 100, 2, PATIENCE);
    oracle.settle(&[&daemon], PATIENCE);
    let archived = oracle.archived();
    brokers.node(2).kill();
    brokers.node(3).restart();
    eventually("the third broker leads", PATIENCE, || (brokers.partitions(topic)[0].leader == 3).then_some(()));

    for sink in ["archive", "aggregate"] {
        let halted = eventually(&format!("the {sink} halts"), PATIENCE, || {
            let readiness = daemon.readiness();
            readiness["halted"].as_array()?.iter().find(|halted| halted["sink"] == sink).cloned()
        });
        let said = halted.to_string();
        let end = ["the log ends at 100", "the log's end 100"].iter().any(|end| said.contains(end));
        assert!(end && said.contains("queue.generation"), "{said}");
    }
    // More than the log has lost: its offsets are those of other events now.
    Ledger::new().post(&daemon.events_url(), 300, 2, PATIENCE);
    let mut check = || {
        assert_eq!(daemon.readiness()["halted"].as_array().map(Vec::len), Some(2));
        oracle.refresh();
        assert_eq!(oracle.archived(), archived, "nothing of the other events stands in their place");
    };
    check();
    brokers.node(2).restart();
    brokers.wait_in_sync(topic, 2);
    check();
    daemon.terminate();
}
