//! The stage of a drawn run: four daemons on Kafka, MongoDB and an object store behind a proxy; what each fault does,
//! and how it is undone.

use std::{
    thread,
    time::{Duration, Instant},
};

use crate::{
    proxy::{Mood, Proxy},
    report::Recovery,
    schedule::{Fault, MEMBERS, name},
    support::{
        daemon::{Daemon, Setup},
        measured::DEFINITIONS,
        oracle::Oracle,
        rebuild, scratch,
        services::Services,
    },
};

/// For a daemon to be ready again by itself, on a machine that may do other things.
const BOUND: Duration = Duration::from_secs(120);
/// Within it a worker is to archive and count again after a `kill -9` and a start; a slower one's log is shown.
const AT_ONCE: Duration = Duration::from_secs(3);
/// A topic is not grown beyond this.
const MOST_PARTITIONS: usize = 12;
/// What another program writes: no JSON, no event, more than one value, and one near the largest that the topic takes.
const FOREIGN: [&[u8]; 4] = [b"\xff\x00 not JSON\n", b"{\"no\":\"type\"}", b"{\"type\":\"a\"} {}", b"[1]"];
const LARGE: usize = 1_000_000;

pub struct World<'s> {
    services: &'s Services,
    topic: String,
    pub proxy: Proxy,
    members: Vec<Daemon>,
    partitions: usize,
    written: usize,
    /// Of the actor that is panicked.
    restarts_before: f64,
    /// Bytes in the log of the worker that is watched, when it was killed.
    logged_before: usize,
    /// Some were begun.
    rebuilds: bool,
}

impl<'s> World<'s> {
    /// Starts the daemons on a topic, a bucket and a database of their own.
    pub fn new(services: &'s Services, topic: &str) -> Self {
        let proxy = Proxy::new(services.s3.address());
        services.create_bucket_behind(topic, &proxy.endpoint());
        let setup = |roles: &str| -> Setup {
            services
                .setup(topic)
                .config(DEFINITIONS)
                .roles(roles)
                .set("archive.options.endpoint", proxy.endpoint())
                .set("store.events", "true")
                .set("queue.kafka.properties.topic.metadata.refresh.interval.ms", "2000")
                // Short, so that a run sees many outages; what is proven does not depend on them.
                .set("http.request_timeout", "5s")
                .set("upload.timeout", "3s")
                .set("upload.max_backoff", "2s")
                .set("aggregator.timeout", "3s")
                .set("shutdown.timeout", "15s")
                .set("logging.level", "info,ingestd::aggregate=debug,ingestd::store=debug")
        };
        let members = (0..MEMBERS).map(|member| setup(if member == 0 { "ingest" } else { "worker" }).start());
        let members = members.collect();
        Self {
            services,
            topic: topic.to_owned(),
            proxy,
            members,
            partitions: 4,
            written: 0,
            restarts_before: 0.0,
            logged_before: 0,
            rebuilds: false,
        }
    }

    pub fn events_url(&self) -> String {
        self.members[0].events_url()
    }

    /// Daemons that this fault kills.
    pub fn kills(fault: Fault) -> usize {
        match fault {
            Fault::Kill(_) => 1,
            Fault::KillAll => MEMBERS,
            _ => 0,
        }
    }

    /// The worker whose return is timed.
    fn watched(fault: Fault) -> Option<usize> {
        match fault {
            Fault::Kill(member) if member > 0 => Some(member),
            Fault::KillAll => Some(1),
            _ => None,
        }
    }

    pub fn begin(&mut self, fault: Fault, oracle: &mut Oracle<'_>) {
        let services = self.services;
        match fault {
            Fault::Kill(member) => self.members[member].kill(),
            Fault::KillAll => self.members.iter().for_each(Daemon::kill),
            Fault::Stop(member) => self.members[member].signal("TERM"),
            Fault::Leave(member) => self.stop(member),
            Fault::Freeze(member) | Fault::Zombie(member) => self.members[member].signal("STOP"),
            Fault::Panic(member, actor) => {
                self.restarts_before = self.restarts(member, actor);
                self.members[member].inject(actor);
            }
            Fault::KafkaKilled => services.kafka.kill(),
            Fault::KafkaStopped => {
                services.kafka.process().signal("TERM");
                assert!(services.kafka.process().wait(BOUND).is_some(), "Kafka stops when it is asked to");
            }
            Fault::KafkaFrozen => services.kafka.freeze(),
            Fault::MongodbKilled => services.mongodb.kill(),
            Fault::MongodbFrozen => services.mongodb.freeze(),
            Fault::StoreKilled => services.s3.kill(),
            Fault::StoreFrozen => services.s3.freeze(),
            Fault::StoreForbids => self.proxy.set(Mood::Forbids),
            Fault::StoreSlowsDown => self.proxy.set(Mood::SlowsDown),
            Fault::StoreDropsReplies => self.proxy.set(Mood::DropsReplies),
            Fault::StoreAnswersLate => self.proxy.set(Mood::AnswersLate),
            Fault::PartitionAdded => self.add_partition(oracle),
            Fault::ForeignRecords => self.write_foreign_records(oracle),
        }
    }

    /// Undoes it, and waits until a service that was started answers; the daemons do the rest.
    pub fn end(&mut self, fault: Fault) {
        let services = self.services;
        if let Some(member) = Self::watched(fault) {
            self.logged_before = self.members[member].log().len();
        }
        match fault {
            Fault::Kill(member) | Fault::Leave(member) => self.members[member].respawn(),
            Fault::KillAll => self.members.iter_mut().for_each(Daemon::respawn),
            Fault::Stop(member) => {
                self.await_stop(member);
                self.members[member].respawn();
            }
            Fault::Freeze(member) | Fault::Zombie(member) => self.members[member].signal("CONT"),
            Fault::Panic(member, actor) => {
                let deadline = Instant::now() + BOUND;
                while self.restarts(member, actor) <= self.restarts_before {
                    assert!(Instant::now() < deadline, "{actor} of {} is not built again", name(member));
                    thread::sleep(Duration::from_millis(20));
                }
            }
            Fault::KafkaKilled | Fault::KafkaStopped => {
                services.kafka.restart();
                services.wait_kafka();
            }
            Fault::KafkaFrozen => services.kafka.thaw(),
            Fault::MongodbKilled => {
                services.mongodb.restart();
                services.wait_mongodb();
            }
            Fault::MongodbFrozen => services.mongodb.thaw(),
            Fault::StoreKilled => {
                services.s3.restart();
                services.wait_s3();
            }
            Fault::StoreFrozen => services.s3.thaw(),
            Fault::StoreForbids | Fault::StoreSlowsDown | Fault::StoreDropsReplies | Fault::StoreAnswersLate => {
                self.proxy.set(Mood::Honest);
            }
            Fault::PartitionAdded | Fault::ForeignRecords => {}
        }
    }

    /// Waits until all daemons are ready and not degraded; after a `kill -9` of a worker, also until it archives and
    /// counts again. `since` is the fault's end.
    pub fn recover(&self, fault: Fault, since: Instant) -> Recovery {
        let watched = Self::watched(fault).map(|member| &self.members[member]);
        let mut recovery = Recovery::default();
        let mut ready = false;
        loop {
            if let Some(worker) = watched {
                // The counters of a process begin at 0.
                let has = |counter: &str| worker.try_metric(counter, "").is_some_and(|value| value > 0.0);
                if recovery.archiving.is_none() && has("ingestd_events_archived_total") {
                    recovery.archiving = Some(since.elapsed());
                }
                if recovery.counting.is_none() && has("ingestd_events_aggregated_total") {
                    recovery.counting = Some(since.elapsed());
                }
            }
            let unready = self.unready();
            if unready.is_none() && !ready {
                ready = true;
                recovery.ready = since.elapsed();
            }
            if ready && (watched.is_none() || (recovery.archiving.is_some() && recovery.counting.is_some())) {
                let slow = [recovery.archiving, recovery.counting].into_iter().flatten().any(|time| time > AT_ONCE);
                if let Some(worker) = watched.filter(|_| slow) {
                    eprintln!("    slow; what it has logged since:\n{}", &worker.log()[self.logged_before..]);
                }
                return recovery;
            }
            assert!(since.elapsed() < BOUND, "{BOUND:?} after {fault}: {unready:?}, {recovery:?}");
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Why not all daemons are well.
    fn unready(&self) -> Option<String> {
        self.members.iter().enumerate().find_map(|(member, daemon)| {
            if let Some(exit) = daemon.exit() {
                panic!("{} ended by itself, with status {exit}", name(member));
            }
            let Some(readiness) = daemon.try_readiness() else { return Some(format!("{} is silent", name(member))) };
            let well = readiness["ready"] == true
                && readiness["degraded"] == false
                && readiness["halted"].as_array().is_some_and(Vec::is_empty);
            (!well).then(|| format!("{}: {readiness}", name(member)))
        })
    }

    /// Has the aggregates that measure counted anew, by whoever counts.
    pub fn begin_rebuilds(&mut self) {
        rebuild::begin(&self.workers(), BOUND);
        self.rebuilds = true;
    }

    fn workers(&self) -> Vec<&Daemon> {
        self.members.iter().skip(1).collect()
    }

    /// Waits until both groups have committed the log's end, and ends the daemons in order. Returns how often a
    /// partition was assigned.
    pub fn finish(&mut self) -> usize {
        if self.rebuilds {
            rebuild::wait(&self.workers(), BOUND);
        }
        let deadline = Instant::now() + BOUND;
        loop {
            let lag = |sink: &str| self.services.lag(&self.topic, &format!("{}-{sink}", self.topic));
            let lags = (lag("archive"), lag("aggregate"));
            if matches!(lags, (Ok(0), Ok(0))) {
                break;
            }
            assert!(Instant::now() < deadline, "the groups do not reach the log's end: {lags:?}, {:?}", self.unready());
            thread::sleep(Duration::from_millis(200));
        }
        for member in 0..MEMBERS {
            self.members[member].signal("TERM");
        }
        for daemon in &self.members {
            assert_eq!(daemon.wait_exit(BOUND), 0, "exit status after SIGTERM, while all is well");
        }
        self.check_logs();
        let assigned =
            |daemon: &Daemon| daemon.log().lines().filter(|line| line.contains("partition assigned")).count();
        self.members.iter().map(assigned).sum()
    }

    /// Keeps what the daemons logged and what the audit says, for whoever looks for the cause.
    pub fn keep_logs(&self, verdict: &str) {
        let folder = scratch().join(format!("{}-logs", self.topic));
        let keep = |name: &str, text: &str| {
            let kept = std::fs::create_dir_all(&folder).and_then(|()| std::fs::write(folder.join(name), text));
            if let Err(error) = kept {
                eprintln!("    {name} cannot be kept in {}: {error}", folder.display());
            }
        };
        for (member, daemon) in self.members.iter().enumerate() {
            keep(&name(member), &daemon.log());
        }
        keep("verdict", verdict);
        eprintln!("    the daemons' logs and the whole verdict: {}", folder.display());
    }

    /// No actor and no thread panicked but those that were asked to.
    fn check_logs(&self) {
        for (member, daemon) in self.members.iter().enumerate() {
            let log = daemon.log();
            let mut lines = log.lines();
            while let Some(line) = lines.next() {
                if line.contains("panicked at") {
                    let message = lines.next().unwrap_or_default();
                    assert!(message.contains("asked for it"), "{} panicked: {line}\n{message}", name(member));
                }
            }
        }
    }

    fn stop(&mut self, member: usize) {
        self.members[member].signal("TERM");
        self.await_stop(member);
    }

    /// With a service away it may reach its deadline (status 4), or be unable to commit what it confirmed (1).
    fn await_stop(&self, member: usize) {
        let exit = self.members[member].wait_exit(BOUND);
        let log = self.members[member].log();
        let uncommitted = log.lines().rev().take(5).any(|line| line.contains("positions are not committed"));
        let explained = matches!(exit, 0 | 4) || (exit == 1 && uncommitted);
        assert!(explained, "{} ended with status {exit} after SIGTERM\n{log}", name(member));
    }

    fn restarts(&self, member: usize, actor: &str) -> f64 {
        let label = format!("actor=\"{actor}\"");
        self.members[member].try_metric("ingestd_actor_restarts_total", &label).unwrap_or(0.0)
    }

    fn add_partition(&mut self, oracle: &mut Oracle<'_>) {
        if self.partitions < MOST_PARTITIONS {
            self.partitions += 1;
            self.services.grow_topic(&self.topic, self.partitions);
        }
        let newest = i32::try_from(self.partitions - 1).expect("few");
        let value = format!("the first of partition {newest}, {}", self.written);
        self.write(Some(newest), value.as_bytes(), oracle);
    }

    fn write_foreign_records(&mut self, oracle: &mut Oracle<'_>) {
        for foreign in FOREIGN {
            self.write(None, foreign, oracle);
        }
        let large = "x".repeat(LARGE) + &self.written.to_string();
        self.write(None, large.as_bytes(), oracle);
    }

    fn write(&mut self, partition: Option<i32>, value: &[u8], oracle: &mut Oracle<'_>) {
        self.services.produce_to(&self.topic, partition, value);
        oracle.expect_foreign(value);
        self.written += 1;
    }
}

impl Drop for World<'_> {
    /// A run that failed leaves no service dead or frozen for the tests after it.
    fn drop(&mut self) {
        if thread::panicking() {
            self.keep_logs("the test failed before the audit");
            self.proxy.set(Mood::Honest);
            self.members.iter().for_each(|daemon| daemon.signal("CONT"));
            self.services.heal();
        }
    }
}
