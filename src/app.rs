//! The composition root: builds the actors, downstream first, waits for the end, and stops everything in order.
//!
//! Threads: each actor has an arbiter of its own; blocking work has named threads; clients of the object store and of
//! MongoDB live on one multi-thread I/O runtime that outlives the actors.

mod banner;
mod buffer;
mod check;
mod signals;
mod stop;

use std::{
    io::{self, Write},
    net::TcpListener,
    path::Path,
    process::ExitCode,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use actix::System;
use anyhow::Context;
use arc_swap::ArcSwap;
use rustix::fs::Mode;
use tokio::{runtime::Handle, sync::mpsc};

pub use self::check::{CheckLine, check};
use self::{
    banner::Addresses,
    signals::{Signal, Signals},
    stop::{Stopped, stop},
};
use crate::{
    admin::{self, AdminServer, AdminState, Desk},
    aggregate::Aggregator,
    config::{self, Config, LiveConfig, QueueKind, Role, Roles, Sources},
    consume::{Consumer, ConsumerParts, QueueName, Replies},
    data_dir::DataDir,
    dlq::{DeadLetterWriter, DeadLetters},
    health::{ActorName, Closed, Health, SinkName},
    ingest::{self, Ingestor},
    logging::{self, LogLevel},
    metrics::Metrics,
    produce::{Entrance, Producer},
    queue::{
        Appender, ByteBudget, SourceEvents, SourceHandle,
        buffer::Buffer,
        embedded::{self, EmbeddedLetters, EmbeddedLog},
        kafka::{self, KafkaAppender, KafkaDeadLetters, KafkaLetters, TopicError, Vigils},
    },
    reload::{FileWatch, Reloaded, Reloader},
    spool::{DiskPressure, Spooler},
    store::{self, Store},
    supervise::{Escalation, Guarded, RestartPolicy, Slot, Supervision, supervise},
    upload::{self, Archive, Uploader},
    watchdog::{FileSystem, Watchdog, WatchdogHooks},
};

/// Exit statuses, as the documentation names them.
pub mod exit {
    pub const FAILURE: u8 = 1;
    pub const FENCED: u8 = 3;
    pub const DEADLINE: u8 = 4;
    pub const CONFIGURATION: u8 = 78;
}

/// Batches of the largest size between a source and its sink: the one that is being taken, and the next. Usual ones are a
/// tenth of it, so that many are under way; in a worker whose sinks are behind, all of this is memory.
const BATCHES_IN_FLIGHT: u64 = 2;
/// How old the main loop's heartbeat may be before systemd is no longer told that all is well.
const HEARTBEAT_LIMIT: Duration = Duration::from_secs(10);
const HEARTBEAT: Duration = Duration::from_secs(1);

/// Runs the daemon until a signal or a failure ends it.
pub fn run(config: Config, sources: Sources) -> ExitCode {
    match try_run(config, sources) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("ingestd: {error:#}");
            ExitCode::from(exit::FAILURE)
        }
    }
}

fn try_run(config: Config, sources: Sources) -> anyhow::Result<u8> {
    let roles = config.roles();
    let log_level = logging::init(&config.logging)?;
    // Files 0600, folders 0700, also those that libraries make.
    rustix::process::umask(Mode::from_bits_truncate(0o077));
    let signals = Signals::listen().context("cannot listen to signals")?;
    let data_dir = DataDir::open(&config.data.dir)?;
    let ingest_listener = roles.ingest().then(|| ingest::bind(&config.http)).transpose()?;
    let admin_listener = admin::bind(&config.admin)?;
    let io = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("io")
        .enable_all()
        .build()
        .context("cannot start the I/O runtime")?;
    let daemon = Daemon::new(config, sources, log_level, roles, data_dir, io.handle().clone());
    let status = System::new().block_on(daemon.live(ingest_listener, admin_listener, signals))?;
    // Nothing is left to run but what was cut off on purpose.
    io.shutdown_timeout(Duration::from_secs(1));
    Ok(status)
}

/// Everything that lives as long as the process.
struct Daemon {
    config: LiveConfig,
    reloader: Arc<Reloader>,
    sources: Sources,
    roles: Roles,
    data_dir: DataDir,
    io: Handle,
    health: Health,
    metrics: Arc<Metrics>,
    supervision: Supervision,
    vigils: Vigils,
    escalated: mpsc::UnboundedReceiver<Escalation>,
    started: Instant,
    heartbeat: Arc<AtomicU64>,
}

/// The actors of the archive's sink.
struct ArchiveSink {
    consumer: Slot<Consumer<Spooler>>,
    spooler: Slot<Spooler>,
    uploader: Slot<Uploader>,
}

/// What was started, for the stop.
#[derive(Default)]
struct Running {
    ingestor: Option<Slot<Ingestor>>,
    producer: Option<Slot<Producer>>,
    archive: Option<ArchiveSink>,
    aggregate: Option<Slot<Consumer<Aggregator>>>,
    guarded: Vec<Guarded>,
    log: Option<EmbeddedLog>,
    buffer: Option<Arc<Buffer>>,
}

/// Why the daemon ends.
enum End {
    Signal,
    Escalation(Escalation),
}

impl Daemon {
    fn new(config: Config, sources: Sources, log_level: LogLevel, roles: Roles, data_dir: DataDir, io: Handle) -> Self {
        let policy = RestartPolicy {
            max_restarts: config.supervision.max_restarts,
            window: config.supervision.window,
            backoff: config.supervision.backoff,
        };
        let config: LiveConfig = Arc::new(ArcSwap::from_pointee(config));
        let (health, metrics) = (Health::default(), Arc::new(Metrics::default()));
        let (escalations, escalated) = mpsc::unbounded_channel();
        let supervision = Supervision { policy, health: health.clone(), metrics: metrics.clone(), escalations };
        let reloader = Arc::new(reloader(sources.clone(), config.clone(), log_level));
        Self {
            config,
            reloader,
            sources,
            roles,
            data_dir,
            io,
            health,
            metrics,
            supervision,
            vigils: Vigils::default(),
            escalated,
            started: Instant::now(),
            heartbeat: Arc::default(),
        }
    }

    /// From the first actor to the last.
    async fn live(
        mut self,
        ingest_listener: Option<TcpListener>,
        admin_listener: TcpListener,
        mut signals: Signals,
    ) -> anyhow::Result<u8> {
        let config = self.config.load_full();
        let store = store::open(&config, self.io.clone()).context("the store cannot be opened")?;
        let store = store.filter(|_| self.roles.aggregate() || config.store.kind == config::StoreKind::Mongodb);
        let at_the_end = store.clone();
        self.health.close(Closed::Starting, "the daemon is starting");
        let addresses = Addresses::of(&ingest_listener, &admin_listener);
        let desk = Desk::default();
        let admin = admin::serve(admin_listener, self.admin_state(store.clone(), desk.clone()))?;
        let mut running = Running::default();
        let spooler = Slot::default();
        running.guarded.push(self.watch(spooler.clone()));

        if config.queue.kind == QueueKind::Embedded {
            running.log = Some(self.open_log()?);
        }
        desk.open(self.letters(running.log.as_ref()));
        running.buffer = self.open_buffer(&config)?;
        if let Some(listener) = ingest_listener {
            // Answers 503 with the reason until the queue is there.
            self.start_ingest(&mut running, listener);
        }
        if running.buffer.as_ref().is_some_and(|buffer| buffer.is_established()) {
            self.health.open(Closed::Starting);
        }
        self.announce(&addresses);
        let end = match self.prepare_queue(&mut signals).await {
            Ok(()) => {
                running.buffer.as_ref().map_or(Ok(()), |buffer| buffer.prepared())?;
                self.start_sinks(&mut running, store, spooler)?;
                self.health.open(Closed::Starting);
                tracing::info!(version = env!("CARGO_PKG_VERSION"), roles = %self.roles, "started");
                self.wait(&mut signals).await
            }
            Err(end) => end,
        };
        let status = self.end(end, running, admin, signals).await;
        if let Some(store) = at_the_end {
            store.close().await;
        }
        Ok(status)
    }

    fn letters(&self, log: Option<&EmbeddedLog>) -> Arc<dyn DeadLetters> {
        match log {
            Some(log) => Arc::new(EmbeddedLetters::new(log.clone(), self.config.clone())),
            None => Arc::new(KafkaLetters::new(self.config.clone())),
        }
    }

    fn admin_state(&self, store: Option<Arc<dyn Store>>, dead_letters: Desk) -> AdminState {
        AdminState {
            config: self.config.clone(),
            config_file: self.sources.file().map(Path::to_owned),
            health: self.health.clone(),
            metrics: self.metrics.clone(),
            store,
            dead_letters,
            reloader: self.reloader.clone(),
            roles: self.roles.iter().map(Role::as_str).collect(),
            version: env!("CARGO_PKG_VERSION"),
            commit: env!("INGESTD_COMMIT"),
            started: self.started,
            queries: admin::queries(),
        }
    }

    /// Starts the watchdog, which every process has that ingests or archives; the others are content with its reading
    /// of the disk, too.
    fn watch(&self, spooler: Slot<Spooler>) -> Guarded {
        let (config, health, metrics) = (self.config.clone(), self.health.clone(), self.metrics.clone());
        let (started, heartbeat) = (self.started, self.heartbeat.clone());
        let sources = self.sources.clone();
        let watch = FileWatch::new(move || sources.files(), self.reloader.clone());
        let hooks = WatchdogHooks {
            on_disk: Arc::new(move |full| spooler.tell(DiskPressure(full))),
            alive: Arc::new(move || {
                let beat = Duration::from_millis(heartbeat.load(Ordering::Acquire));
                started.elapsed().saturating_sub(beat) < HEARTBEAT_LIMIT
            }),
            check_file: Some(Arc::new(move || watch.check())),
        };
        let probe = Arc::new(FileSystem { dir: self.data_dir.path.clone() });
        supervise(ActorName::Watchdog, Slot::default(), &self.supervision, move |_| {
            Ok(Watchdog::new(probe.clone(), config.clone(), health.clone(), metrics.clone(), hooks.clone())?)
        })
    }

    /// Has Kafka's topics looked at and made, for as long as the brokers cannot be reached.
    async fn prepare_queue(&mut self, signals: &mut Signals) -> Result<(), End> {
        let config = self.config.load_full();
        if config.queue.kind == QueueKind::Embedded {
            return Ok(());
        }
        let (health, dead_letters) = (self.health.clone(), self.roles.aggregate() || self.buffers(&config));
        let backoff = config.supervision.backoff;
        let prepared = self.io.spawn(async move {
            for attempt in 0.. {
                let config = config.clone();
                // librdkafka's admin calls block, each with a deadline.
                let prepared = tokio::task::spawn_blocking(move || kafka::prepare(&config, dead_letters)).await;
                match prepared {
                    Ok(Ok(_)) => break,
                    Ok(Err(error @ TopicError::Unreachable { .. })) => {
                        health.dependency(kafka::DEPENDENCY, Err(error.to_string()))
                    }
                    Ok(Err(error)) => return Err(error.to_string()),
                    Err(error) => return Err(error.to_string()),
                }
                let pause = backoff.saturating_mul(1 << attempt.min(8)).min(RestartPolicy::LONGEST / 3);
                tokio::time::sleep(pause.mul_f64(0.8 + 0.4 * fastrand::f64())).await;
            }
            health.dependency(kafka::DEPENDENCY, Ok(()));
            Ok(())
        });
        let abort = prepared.abort_handle();
        tokio::select! {
            prepared = prepared => match prepared {
                Ok(Ok(())) => Ok(()),
                Ok(Err(reason)) => Err(End::Escalation(Escalation::Refused { reason })),
                Err(error) => Err(End::Escalation(Escalation::Refused { reason: error.to_string() })),
            },
            end = self.wait(signals) => {
                abort.abort();
                Err(end)
            }
        }
    }

    /// Builds the sinks, downstream first, so that each actor finds what it feeds.
    fn start_sinks(
        &self,
        running: &mut Running,
        store: Option<Arc<dyn Store>>,
        spooler: Slot<Spooler>,
    ) -> anyhow::Result<()> {
        let config = self.config.load_full();
        if self.roles.archive() {
            self.start_archive(running, &config, spooler)?;
        }
        if let Some(store) = store.filter(|_| self.roles.aggregate()) {
            self.start_aggregate(running, &config, store);
        }
        Ok(())
    }

    fn open_log(&self) -> anyhow::Result<EmbeddedLog> {
        let sinks = [(SinkName::Archive, self.roles.archive()), (SinkName::Aggregate, self.roles.aggregate())];
        let sinks = sinks.into_iter().filter(|(_, on)| *on).map(|(sink, _)| sink).collect();
        let (config, health, metrics) = (self.config.clone(), self.health.clone(), self.metrics.clone());
        EmbeddedLog::open(&self.data_dir.path, sinks, config, health, metrics, self.supervision.escalations.clone())
    }

    fn start_archive(&self, running: &mut Running, config: &Config, spooler: Slot<Spooler>) -> anyhow::Result<()> {
        // Checked before anything starts; each incarnation opens it anew.
        Archive::open(config)?;
        upload::sweep(config)?;
        let uploader: Slot<Uploader> = Slot::default();
        let consumer: Slot<Consumer<Spooler>> = Slot::default();
        let replies: Replies = Arc::new(consumer.clone());

        let (live, health, metrics) = (self.config.clone(), self.health.clone(), self.metrics.clone());
        let (io, feeds) = (self.io.clone(), spooler.clone());
        running.guarded.push(supervise(ActorName::Uploader, uploader.clone(), &self.supervision, move |_| {
            let archive = Archive::open(&live.load())?;
            Ok(Uploader::new(archive, io.clone(), feeds.clone(), live.clone(), health.clone(), metrics.clone()))
        }));

        let (live, health, metrics) = (self.config.clone(), self.health.clone(), self.metrics.clone());
        let (data_dir, feeds) = (self.data_dir.path.clone(), uploader.clone());
        running.guarded.push(supervise(ActorName::Spooler, spooler.clone(), &self.supervision, move |ctx| {
            Spooler::new(&data_dir, feeds.clone(), replies.clone(), live.clone(), health.clone(), metrics.clone(), ctx)
        }));

        let log = running.log.clone();
        running.guarded.push(self.consume(SinkName::Archive, config, spooler.clone(), consumer.clone(), log));
        running.archive = Some(ArchiveSink { consumer, spooler, uploader });
        Ok(())
    }

    fn start_aggregate(&self, running: &mut Running, config: &Config, store: Arc<dyn Store>) {
        let aggregator: Slot<Aggregator> = Slot::default();
        let consumer: Slot<Consumer<Aggregator>> = Slot::default();
        let replies: Replies = Arc::new(consumer.clone());
        let dead_letters: Arc<dyn DeadLetterWriter> = match &running.log {
            Some(log) => Arc::new(log.clone()),
            None => Arc::new(KafkaDeadLetters::new(config)),
        };
        let (live, health, metrics) = (self.config.clone(), self.health.clone(), self.metrics.clone());
        running.guarded.push(supervise(ActorName::Aggregator, aggregator.clone(), &self.supervision, move |_| {
            let (store, dead_letters) = (store.clone(), dead_letters.clone());
            Ok(Aggregator::new(store, dead_letters, replies.clone(), live.clone(), health.clone(), metrics.clone()))
        }));
        running.guarded.push(self.consume(
            SinkName::Aggregate,
            config,
            aggregator,
            consumer.clone(),
            running.log.clone(),
        ));
        running.aggregate = Some(consumer);
    }

    /// Starts the consumer of a sink; its source is made anew with each incarnation.
    fn consume<S: crate::consume::Sink>(
        &self,
        name: SinkName,
        config: &Config,
        sink: Slot<S>,
        slot: Slot<Consumer<S>>,
        log: Option<EmbeddedLog>,
    ) -> Guarded {
        let queue = QueueName(if log.is_some() { embedded::READING } else { kafka::DEPENDENCY });
        let parts = ConsumerParts {
            name,
            topic: config.queue.topic.clone(),
            queue,
            sink,
            health: self.health.clone(),
            metrics: self.metrics.clone(),
            escalations: self.supervision.escalations.clone(),
            fences: Arc::default(),
        };
        let (live, instance, metrics) = (self.config.clone(), self.data_dir.instance.clone(), self.metrics.clone());
        let vigils = self.vigils.clone();
        let start_source = move |events: SourceEvents| -> anyhow::Result<SourceHandle> {
            let bytes = live.load().batch.max_bytes.0.saturating_mul(BATCHES_IN_FLIGHT);
            let budget = ByteBudget::new(bytes, metrics.depth(name.sink()));
            match &log {
                Some(log) => log.source(name, live.clone(), budget, events),
                None => kafka::source::spawn(live.clone(), name, &instance, &vigils, budget, events),
            }
        };
        supervise(name.consumer(), slot, &self.supervision, move |ctx| Consumer::new(parts.clone(), ctx, &start_source))
    }

    fn start_ingest(&self, running: &mut Running, listener: TcpListener) {
        let producer: Slot<Producer> = Slot::default();
        let entrance = Entrance::new(producer.clone());
        let opened = entrance.clone();
        let (live, health, metrics) = (self.config.clone(), self.health.clone(), self.metrics.clone());
        let (log, buffer) = (running.log.clone(), running.buffer.clone());
        running.guarded.push(supervise(ActorName::Producer, producer.clone(), &self.supervision, move |_| {
            let appender: Box<dyn Appender> = match (&log, &buffer) {
                (Some(log), _) => Box::new(log.appender()),
                (None, Some(buffer)) => buffer.appender()?,
                (None, None) => Box::new(KafkaAppender::new(&live.load(), health.clone(), metrics.clone())?),
            };
            Ok(Producer::new(opened.clone(), appender, health.clone()))
        }));
        running.producer = Some(producer);

        let ingestor: Slot<Ingestor> = Slot::default();
        let (live, health, metrics) = (self.config.clone(), self.health.clone(), self.metrics.clone());
        running.guarded.push(supervise(ActorName::Ingestor, ingestor.clone(), &self.supervision, move |_| {
            let listener = listener.try_clone().context("the listening socket cannot be shared")?;
            Ok(Ingestor::new(listener, entrance.clone(), live.clone(), health.clone(), metrics.clone()))
        }));
        running.ingestor = Some(ingestor);
    }

    /// Says where everything is and what to try next, and tells systemd: from here on requests are answered, with 503
    /// while a dependency is away. Its outage is no failed start.
    fn announce(&self, addresses: &Addresses) {
        let config = self.config.load();
        // Whoever started it need not read it.
        let _ = io::stdout().write_all(addresses.banner(&config, &self.data_dir, &self.roles).as_bytes());
        // Without systemd there is nobody to tell.
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    }

    /// Beats, reloads on SIGHUP, and returns when something ends the daemon.
    async fn wait(&mut self, signals: &mut Signals) -> End {
        let mut beat = tokio::time::interval(HEARTBEAT);
        loop {
            tokio::select! {
                _ = beat.tick() => self.beat(),
                signal = signals.next() => match signal {
                    Signal::Reload => {
                        let reloader = self.reloader.clone();
                        // Reads files. What is wrong was logged; nobody waits for an answer.
                        let _ = tokio::task::spawn_blocking(move || reloader.reload("SIGHUP")).await;
                    }
                    Signal::Stop(name) => {
                        tracing::info!(signal = name, "stopping");
                        return End::Signal;
                    }
                },
                Some(escalation) = self.escalated.recv() => return End::Escalation(escalation),
            }
        }
    }

    fn beat(&self) {
        self.heartbeat.store(self.started.elapsed().as_millis() as u64, Ordering::Release);
    }

    async fn end(self, end: End, running: Running, admin: AdminServer, signals: Signals) -> u8 {
        let status = match &end {
            End::Signal => 0,
            End::Escalation(Escalation::Fenced { reason }) => {
                tracing::error!(
                    reason,
                    "another process has our membership of a consumer group: stopping, not to be restarted"
                );
                exit::FENCED
            }
            End::Escalation(Escalation::Failed { actor, reason }) => {
                tracing::error!(actor = actor.as_str(), reason, "stopping, because an actor failed too often");
                exit::FAILURE
            }
            End::Escalation(Escalation::Refused { reason }) => {
                tracing::error!(reason, "stopping, because a dependency refuses what the configuration asks for");
                exit::FAILURE
            }
        };
        // Without systemd there is nobody to tell.
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
        let timeout = self.config.load().shutdown.timeout;
        let beating = async {
            loop {
                self.beat();
                tokio::time::sleep(HEARTBEAT).await;
            }
        };
        let stopped = tokio::select! {
            stopped = stop(running, admin, &self.health, timeout, signals) => stopped,
            () = beating => Stopped::Cut,
        };
        match stopped {
            Stopped::InOrder => status,
            Stopped::Uncommitted => {
                if status == 0 {
                    exit::FAILURE
                } else {
                    status
                }
            }
            // Threads may hang: nothing more is waited for. Why it ended says more than that it was late: a process that
            // was fenced must not be started again.
            Stopped::Cut => std::process::exit(i32::from(if status == 0 { exit::DEADLINE } else { status })),
        }
    }
}

fn reloader(sources: Sources, config: LiveConfig, log_level: LogLevel) -> Reloader {
    let load = Box::new(move || sources.load().map_err(|errors| errors.to_string()));
    let apply = Box::new(|old: &Config, new: Config| {
        let (config, diff) = config::apply(old, &new).map_err(|errors| errors.to_string())?;
        Ok((config, Reloaded { applied: diff.live, needs_restart: diff.needs_restart }))
    });
    let log_level = Mutex::new(log_level);
    let on_change = Box::new(move |config: &Config| {
        let level = log_level.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = level.set(&config.logging.level) {
            tracing::error!(%error, "logging.level not changed");
        }
    });
    Reloader::new(load, apply, config, vec![on_change])
}
