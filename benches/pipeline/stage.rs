//! Runs one row on one system: starts the process, does the work, reads what it cost, and ends the process.

use std::{
    collections::BTreeMap,
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use rdkafka::{
    ClientConfig,
    consumer::{BaseConsumer, Consumer},
};
use tempfile::TempDir;

use crate::{
    door,
    events::{self, Shape},
    load::{Load, Measured},
    process::{self, Running, guarded},
    rows::{Door, FULL_RATE, Ingest, LOGIN, PARTITIONS, Queue, Row, System, Work},
    support::{PATIENCE, daemon::Setup, free_port, http::Client, program, scratch, services::Services},
    table::{Metric, Sample},
};

/// Of the rows at a fixed rate: enough that a pause of the server does not run out of them.
const RATE_CONNECTIONS: usize = 512;
/// What a process does at its start is not idling.
const SETTLE: Duration = Duration::from_secs(5);

pub struct Stage<'s> {
    pub services: &'s Services,
    /// Of a closed or open loop, after the warm-up.
    pub length: Duration,
    pub warm_up: Duration,
    /// Of a drain.
    pub records: u64,
    /// How long a dependency is silent.
    pub outage: Duration,
    /// What is named after it is used once.
    measurements: usize,
    /// By partitions and records: the topic that the drains read.
    pub(crate) filled: BTreeMap<(i32, u64), String>,
    /// Events per second of [`FULL_RATE`], the last one of each system.
    full_rate: BTreeMap<System, f64>,
}

impl<'s> Stage<'s> {
    pub fn new(services: &'s Services, length: Duration, warm_up: Duration, records: u64, outage: Duration) -> Self {
        let (filled, full_rate) = (BTreeMap::new(), BTreeMap::new());
        Self { services, length, warm_up, records, outage, measurements: 0, filled, full_rate }
    }

    /// # Errors
    /// When the system breaks off, refuses, or loses what it acknowledged.
    pub fn measure(&mut self, row: &Row, system: System) -> anyhow::Result<Sample> {
        match row.work {
            Work::Ingest(ingest) => {
                let sample = self.ingest(ingest, system, None)?;
                if row.name == FULL_RATE {
                    self.full_rate.insert(system, sample.get(Metric::Rate).context("a rate")?);
                }
                Ok(sample)
            }
            Work::Rate(percent) => self.at_rate(percent, system),
            Work::Drain(drain) => self.drain(drain, system),
            Work::Outage(silent) => self.outage(silent),
            Work::BesideHostile(hostile) => self.beside_hostile(hostile),
            Work::Query(store) => self.query(store, system),
            Work::Idle(queue) => self.idle(queue),
            Work::Start => start(),
        }
    }

    /// A name for topics, groups, databases and folders that nothing else has.
    pub(crate) fn name(&mut self) -> String {
        self.measurements += 1;
        format!("bench-{}-{}", std::process::id(), self.measurements)
    }

    fn at_rate(&mut self, percent: u32, system: System) -> anyhow::Result<Sample> {
        let full = Ingest {
            queue: Queue::Kafka,
            shape: Shape::Single,
            door: Door::Open,
            connections: RATE_CONNECTIONS,
            size: LOGIN,
            partitions: PARTITIONS,
            times: 1,
        };
        for system in [System::Yardstick, System::Ingestd] {
            if !self.full_rate.contains_key(&system) {
                let rate = self.ingest(full, system, None)?.get(Metric::Rate).context("a rate")?;
                self.full_rate.insert(system, rate);
            }
        }
        let slower = self.full_rate.values().copied().fold(f64::INFINITY, f64::min);
        self.ingest(full, system, Some(slower * f64::from(percent) / 100.0))
    }

    fn ingest(&mut self, ingest: Ingest, system: System, rate: Option<f64>) -> anyhow::Result<Sample> {
        let topic = self.name();
        if ingest.queue == Queue::Kafka {
            self.services.create_topic(&topic, ingest.partitions);
        }
        let door = door::open(ingest.door);
        let gzip = matches!(ingest.door, Door::Gzip | Door::All);
        let requests = events::requests(ingest.shape, ingest.size, gzip, door.fields());
        let server = match (system, ingest.queue) {
            (System::Yardstick, _) => Server::yardstick(self.services, &topic)?,
            (System::Ingestd, Queue::Kafka) => {
                let setup = self.services.setup(&topic).roles("ingest");
                Server::ingestd(door.before(setup.set("queue.kafka.partitions", ingest.partitions)))
            }
            (System::Ingestd, Queue::Embedded) => Server::ingestd(door.before(alone(&topic))),
        };
        let load = Load {
            server: server.address.parse()?,
            pid: server.running.pid(),
            requests: &requests,
            connections: ingest.connections,
            tls: door.client(),
            warm_up: self.warm_up,
            length: self.length * ingest.times,
        };
        let measured = match rate {
            None => load.closed(),
            Some(rate) => load.open(rate / ingest.shape.events() as f64),
        };
        let measured = measured.with_context(|| server.running.log())?;
        let memory = server.running.peak_memory();
        drop(server);
        let events = ingest.shape.events() as u64;
        if ingest.queue == Queue::Kafka {
            let stored: i64 = self.services.watermarks(&topic).into_iter().map(|(_, start, end)| end - start).sum();
            let acknowledged = measured.acknowledged * events;
            ensure!(stored as u64 >= acknowledged, "{acknowledged} events were acknowledged, the topic has {stored}");
            self.forget(&topic)?;
        }
        Ok(sample(&measured, events, memory))
    }

    /// Deletes the topic, and that of its dead letters where there is one.
    pub(crate) fn forget(&self, topic: &str) -> anyhow::Result<()> {
        let consumer: BaseConsumer =
            ClientConfig::new().set("bootstrap.servers", self.services.kafka.address()).create()?;
        let metadata = consumer.fetch_metadata(None, PATIENCE)?;
        let dead_letters = format!("{topic}.dlq");
        for known in metadata.topics().iter().map(|known| known.name()) {
            if known == topic || known == dead_letters {
                self.services.delete_topic(known);
            }
        }
        Ok(())
    }

    fn idle(&mut self, queue: Queue) -> anyhow::Result<Sample> {
        let name = self.name();
        let setup = match queue {
            Queue::Embedded => alone(&name),
            Queue::Kafka => {
                self.services.create_bucket(&name);
                usual(self.services.setup(&name))
            }
        };
        let daemon = Server::ingestd(setup).running;
        thread::sleep(SETTLE);
        let (before, began) = (process::cpu(daemon.pid())?, Instant::now());
        // The kernel tells it in hundredths of a second.
        thread::sleep(self.length * 10);
        let used = process::cpu(daemon.pid())? - before;
        let mut sample = Sample::default();
        sample.set(Metric::Idle, used.as_secs_f64() / began.elapsed().as_secs_f64() * 100.0);
        sample.set(Metric::Memory, daemon.peak_memory());
        drop(daemon);
        if queue == Queue::Kafka {
            self.forget(&name)?;
        }
        Ok(sample)
    }
}

/// The bounds as users have them, where the tests' are small.
pub(crate) fn usual(setup: Setup) -> Setup {
    setup.without("spool.max_age").without("spool.max_records")
}

pub(crate) fn alone(name: &str) -> Setup {
    usual(Setup::new(name))
}

pub(crate) fn sample(measured: &Measured, events_per_request: u64, peak_memory: f64) -> Sample {
    let events = (measured.answers * events_per_request) as f64;
    let millions = events / 1e6;
    let millis = |quantile| measured.latencies.value_at_quantile(quantile) as f64 / 1000.0;
    let mut sample = Sample::default();
    sample.set(Metric::Rate, events / measured.elapsed.as_secs_f64());
    sample.set(Metric::Cpu, measured.server_cpu.as_secs_f64() / millions);
    sample.set(Metric::GeneratorCpu, measured.own_cpu.as_secs_f64() / millions);
    sample.set(Metric::Memory, peak_memory);
    sample.set(Metric::P50, millis(0.5));
    sample.set(Metric::P99, millis(0.99));
    sample
}

/// From exec to the first 200 of `/health/ready`, everything embedded.
fn start() -> anyhow::Result<Sample> {
    let folder = tempfile::Builder::new().prefix("bench-start").tempdir_in(scratch())?;
    let admin = format!("127.0.0.1:{}", free_port());
    let settings = [
        format!("data.dir={}", folder.path().join("data").display()),
        format!("http.listen=127.0.0.1:{}", free_port()),
        format!("admin.listen={admin}"),
        "disk.max_used_percent=99.5".to_owned(),
        "disk.resume_percent=99".to_owned(),
    ];
    // The shell notes the time and becomes the program.
    let script = r#"printf %s "$EPOCHREALTIME" > began; exec "$@""#;
    let mut command = vec!["bash".to_owned(), "-c".to_owned(), script.to_owned(), "bash".to_owned(), program()];
    command.extend(settings.into_iter().flat_map(|setting| ["--set".to_owned(), setting]));
    let process = guarded(folder.path(), command);
    let client = Client::new();
    let deadline = Instant::now() + PATIENCE;
    let url = format!("http://{admin}/health/ready");
    while !client.get(&url).is_ok_and(|reply| reply.status == 200) {
        ensure!(Instant::now() < deadline && process.exit().is_none(), "it does not become ready\n{}", process.log());
        thread::sleep(Duration::from_millis(1));
    }
    let ready = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    let began = std::fs::read_to_string(folder.path().join("began"))?;
    // EPOCHREALTIME has the locale's decimal separator.
    let began: f64 = began.replace(',', ".").parse()?;
    let mut sample = Sample::default();
    sample.set(Metric::Ready, (ready.as_secs_f64() - began) * 1000.0);
    Ok(sample)
}

/// A server that listens.
pub(crate) struct Server {
    pub running: Running,
    pub address: String,
    /// Where the yardstick keeps its log.
    _folder: Option<TempDir>,
}

impl Server {
    pub fn ingestd(setup: Setup) -> Self {
        let daemon = setup.start();
        let address = daemon.http_address().to_owned();
        Self { running: Running::Ingestd(Box::new(daemon)), address, _folder: None }
    }

    fn yardstick(services: &Services, topic: &str) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix(topic).tempdir_in(scratch())?;
        let address = format!("127.0.0.1:{}", free_port());
        let arguments =
            [("listen", address.clone()), ("brokers", services.kafka.address()), ("topic", topic.to_owned())];
        let running = Running::yardstick(folder.path(), "ingest", &arguments)?;
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect(&address).is_err() {
            ensure!(
                !running.has_ended() && Instant::now() < deadline,
                "the yardstick does not listen\n{}",
                running.log()
            );
            thread::sleep(Duration::from_millis(20));
        }
        Ok(Self { running, address, _folder: Some(folder) })
    }
}
