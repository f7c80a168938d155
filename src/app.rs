//! The composition root: has the actors built, downstream first, waits for the end, and stops everything in order.
//!
//! Threads: each actor has an arbiter of its own; blocking work has named threads; clients of the object store and of
//! MongoDB live on one multi-thread I/O runtime that outlives the actors.

mod banner;
mod check;
mod mapped;
mod signals;
mod stop;
mod wiring;

use std::{
    net::TcpListener,
    path::Path,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use actix::System;
use anyhow::Context;
use rustix::fs::Mode;
use tokio::{runtime::Handle, sync::mpsc};

pub use self::check::{BACKENDS, CheckLine, check};
use self::{
    banner::{address, banner},
    signals::{Signal, Signals},
    stop::{Asked, Stopped, stop},
    wiring::Running,
};
use crate::{
    admin::{self, AdminServer, AdminState, DeadLetterService},
    aggregate::configured_archive,
    backoff::Backoff,
    config::{self, Config, QueueKind, Role, Roles, Sources},
    data_dir::DataDir,
    health::{Closed, Health, Pipeline},
    ingest,
    log::kafka::{self, SharedReads, TopicError, TopicWatches},
    logging,
    names::{dependency, exit},
    position::Timestamp,
    reload::Reloader,
    store::{self, Store},
    supervise::{Env, Escalation},
    tls::{self, Tls},
};

const HEARTBEAT: Duration = Duration::from_secs(1);
/// What has been away for this long is not about to come.
const OUTAGE: Duration = Duration::from_secs(2);
/// After it is ready, what a start needs is over.
const SETTLED: Duration = Duration::from_secs(1);
/// Sinks that start together read half of the program within this.
const PACE: Duration = Duration::from_millis(4);
/// So much of the program is mapped while they start, and what they read within a pace.
const MAPPED: u64 = 12 << 20;
/// Below the time that systemd gives a start (90 s).
const LONGEST_START: Duration = Duration::from_secs(60);

/// Runs the daemon until a signal or a failure ends it.
pub fn run(config: Config, sources: Sources) -> ExitCode {
    let status = try_run(config, sources).unwrap_or_else(|error| {
        logging::say(&format!("ingestd: {error:#}"));
        exit::FAILURE
    });
    logging::finish();
    ExitCode::from(status)
}

fn try_run(config: Config, sources: Sources) -> anyhow::Result<u8> {
    let roles = config.roles();
    logging::init(&config.logging)?;
    let tls = match tls::load(&config) {
        Ok(tls) => tls,
        Err(errors) => {
            logging::say(&errors.to_string());
            return Ok(exit::CONFIGURATION);
        }
    };
    warn_of(&config);
    // Files 0600, folders 0700, also those that libraries make.
    rustix::process::umask(Mode::from_bits_truncate(0o077));
    let signals = Signals::listen().context("cannot listen to signals")?;
    let data_dir = DataDir::open(&config.data.dir)?;
    let ingest_sockets = roles.ingest().then(|| ingest::bind(&config.http)).transpose()?;
    let admin_sockets = admin::bind(&config.admin)?;
    let io = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("io")
        .enable_all()
        .build()
        .context("cannot start the I/O runtime")?;
    let daemon = Daemon::new(config, sources, (roles, tls), data_dir, io.handle().clone())?;
    daemon.env.health.gate.keep_reasons();
    // The start's peak counts, too: what has read the configuration has done so.
    mapped::unmap_clean();
    let status = System::new().block_on(daemon.live(ingest_sockets, admin_sockets, signals))?;
    // Nothing is left to run but what was cut off on purpose.
    io.shutdown_timeout(Duration::from_secs(1));
    Ok(status)
}

/// Everything that lives as long as the process.
struct Daemon {
    env: Env,
    tls: Arc<Tls>,
    reloader: Arc<Reloader>,
    sources: Sources,
    roles: Roles,
    data_dir: DataDir,
    io: Handle,
    topic_watches: TopicWatches,
    shared_reads: SharedReads,
    escalated: mpsc::UnboundedReceiver<Escalation>,
    started: Instant,
    heartbeat: Arc<AtomicU64>,
}

/// Why the daemon ends.
enum End {
    Signal(Asked),
    Escalation(Escalation),
}

impl Daemon {
    fn new(
        config: Config,
        sources: Sources,
        (roles, tls): (Roles, [Option<tls::Loaded>; 2]),
        data_dir: DataDir,
        io: Handle,
    ) -> anyhow::Result<Self> {
        let log = (config.queue.kind == QueueKind::Embedded).then_some(dependency::EMBEDDED_LOG);
        let ingest = if roles.ingest() { Pipeline::INGEST } else { &[] };
        let (env, escalated) = Env::new(config, Health::of(Pipeline { ingest, log, sinks: roles.sinks() }));
        let tls = Arc::new(Tls::new(tls, &env.metrics).context("TLS cannot be spoken")?);
        warn_of_certificates(tls.warnings(Timestamp::now()));
        Ok(Self {
            reloader: Arc::new(reloader(sources.clone(), &env, tls.clone())),
            env,
            tls,
            sources,
            roles,
            data_dir,
            io,
            topic_watches: TopicWatches::default(),
            shared_reads: SharedReads::default(),
            escalated,
            started: Instant::now(),
            heartbeat: Arc::default(),
        })
    }

    /// From the first actor to the last.
    async fn live(
        mut self,
        ingest_sockets: Option<Vec<TcpListener>>,
        admin_sockets: Vec<TcpListener>,
        mut signals: Signals,
    ) -> anyhow::Result<u8> {
        let config = self.env.config.load_full();
        let store = store::open(&config, self.io.clone()).context("the store cannot be opened")?;
        let store = store.filter(|_| self.roles.aggregate() || config.store.kind == config::StoreKind::Mongodb);
        let at_the_end = store.clone();
        let starting = self.env.health.gate.reason(Closed::Starting);
        starting.set("the daemon is starting".to_owned());
        let (ingest_address, admin_address) = (ingest_sockets.as_deref().map(address), address(&admin_sockets));
        let dead_letters = DeadLetterService::default();
        let admin = admin::serve(admin_sockets, self.admin_state(store.clone(), dead_letters.clone()))?;
        let mut running = Running::default();
        running.guarded.push(self.watch(running.archive.spooler.clone()));

        if config.queue.kind == QueueKind::Embedded {
            running.log = Some(self.open_log()?);
        }
        dead_letters.open(self.letters(running.log.as_ref()));
        running.buffer = self.open_buffer(&config)?;
        if let Some(sockets) = ingest_sockets {
            // Answers 503 with the reason until the queue is there.
            self.start_ingest(&mut running, sockets);
        }
        if running.buffer.as_ref().is_some_and(|buffer| buffer.established) {
            starting.set(None);
        }
        // And what has opened the log.
        mapped::unmap_clean();
        logging::banner(&banner(ingest_address.as_deref(), &admin_address, &config, &self.data_dir, self.roles));
        actix_rt::spawn(after_the_start(self.env.health.clone()));
        let end = match self.prepare_queue(&mut signals).await {
            Ok(()) => {
                running.buffer.as_ref().map_or(Ok(()), |buffer| buffer.prepared())?;
                // And what has connected.
                mapped::unmap_clean();
                actix_rt::spawn(while_sinks_start());
                self.start_sinks(&mut running, store)?;
                starting.set(None);
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

    fn admin_state(&self, store: Option<Arc<dyn Store>>, dead_letters: DeadLetterService) -> AdminState {
        AdminState {
            config: self.env.config.clone(),
            config_file: self.sources.file().map(Path::to_owned),
            health: self.env.health.clone(),
            metrics: self.env.metrics.clone(),
            store,
            archived: configured_archive(self.env.config.clone(), self.io.clone()),
            dead_letters,
            reloader: self.reloader.clone(),
            tls: self.tls.clone(),
            roles: self.roles.iter().map(Role::as_str).collect(),
            version: env!("CARGO_PKG_VERSION"),
            commit: env!("INGESTD_COMMIT"),
            started: self.started,
            queries: admin::queries(),
            waits: admin::waits(),
            streams: admin::Streams::default(),
        }
    }

    /// Has Kafka's topics looked at and made, for as long as the brokers cannot be reached.
    async fn prepare_queue(&mut self, signals: &mut Signals) -> Result<(), End> {
        let config = self.env.config.load_full();
        if config.queue.kind == QueueKind::Embedded {
            return Ok(());
        }
        let (health, dead_letters) = (self.env.health.clone(), config.writes_letters_to_kafka());
        let backoff = Backoff::new(config.supervision.backoff, config::LONGEST_RESTART / 3);
        let prepared = self.io.spawn(async move {
            for attempt in 1.. {
                let config = config.clone();
                // librdkafka's admin calls block, each with a deadline.
                let prepared = tokio::task::spawn_blocking(move || kafka::prepare(&config, dead_letters)).await;
                match prepared.map_err(|error| error.to_string())? {
                    Ok(topic) => {
                        for concern in &topic.concerns {
                            tracing::warn!("{concern}");
                        }
                        let concerns = topic.concerns.join("; ");
                        health.remark(dependency::KAFKA_TOPIC, (!concerns.is_empty()).then_some(concerns));
                        break;
                    }
                    Err(error @ TopicError::Unreachable { .. }) => {
                        health.dependency(dependency::KAFKA, Err(error.to_string()));
                    }
                    Err(error) => return Err(error.to_string()),
                }
                tokio::time::sleep(backoff.pause(attempt)).await;
            }
            health.dependency(dependency::KAFKA, Ok(()));
            Ok(())
        });
        let abort = prepared.abort_handle();
        tokio::select! {
            prepared = prepared => prepared
                .unwrap_or_else(|error| Err(error.to_string()))
                .map_err(|reason| End::Escalation(Escalation::Refused { reason })),
            end = self.wait(signals) => {
                abort.abort();
                Err(end)
            }
        }
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
                        let _ = tokio::task::spawn_blocking(move || reloader.reload("SIGHUP", None)).await;
                    }
                    Signal::Stop(name) => {
                        tracing::info!(signal = name, "stopping");
                        return End::Signal(Asked { name, at: tokio::time::Instant::now() });
                    }
                },
                Some(escalation) = self.escalated.recv() => return End::Escalation(escalation),
            }
        }
    }

    fn beat(&self) {
        self.heartbeat.store(self.started.elapsed().as_millis() as u64, Ordering::Release);
        self.env.metrics.look();
        warn_of_certificates(self.tls.reminders());
    }

    async fn end(self, end: End, running: Running, admin: AdminServer, signals: Signals) -> u8 {
        let (status, asked) = match end {
            End::Signal(asked) => (0, Some(asked)),
            End::Escalation(Escalation::Fenced { reason }) => {
                tracing::error!(
                    reason,
                    "another process has our membership of a consumer group: stopping, not to be restarted"
                );
                (exit::FENCED, None)
            }
            End::Escalation(Escalation::Failed { actor, reason }) => {
                tracing::error!(actor = actor.as_str(), reason, "stopping, because an actor failed too often");
                (exit::FAILURE, None)
            }
            End::Escalation(Escalation::Refused { reason }) => {
                tracing::error!(reason, "stopping, because a dependency refuses what the configuration asks for");
                (exit::FAILURE, None)
            }
        };
        // Without systemd this does nothing.
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
        let timeout = self.env.config.load().shutdown.timeout;
        let draining = self.env.health.gate.reason(Closed::Draining);
        draining.set("the daemon is stopping: send to another one, or try again".to_owned());
        let beating = async {
            loop {
                self.beat();
                tokio::time::sleep(HEARTBEAT).await;
            }
        };
        let stopped = tokio::select! {
            stopped = stop(running, admin, &self.env.health, timeout, signals, asked) => stopped,
            () = beating => Stopped::Cut,
        };
        // Why it ended says more than how the stop went: a process that was fenced must not be started again.
        let or = |of_the_stop| if status == 0 { of_the_stop } else { status };
        match stopped {
            Stopped::InOrder => status,
            Stopped::Uncommitted => or(exit::FAILURE),
            Stopped::Cut => {
                // Threads may hang: nothing more is waited for.
                logging::finish();
                std::process::exit(i32::from(or(exit::DEADLINE)))
            }
        }
    }
}

/// Each sink reads what it needs to begin, and then what its library needs to connect, at another moment.
async fn while_sinks_start() {
    let begun = Instant::now();
    while begun.elapsed() < SETTLED {
        // A panic was reported.
        if !tokio::task::spawn_blocking(|| mapped::unmap_above(MAPPED)).await.unwrap_or(false) {
            return;
        }
        tokio::time::sleep(PACE).await;
    }
}

async fn after_the_start(health: Health) {
    tell_systemd(health).await;
    // Before the first events come; and once more when connections, and what else is lazy, are there.
    for after in [Duration::ZERO, SETTLED] {
        tokio::time::sleep(after).await;
        // A panic was reported.
        let _ = tokio::task::spawn_blocking(mapped::unmap_clean).await;
    }
}

/// Tells systemd that the daemon has started: when events are taken, or when something is away for which they are not,
/// because its outage is no failed start.
async fn tell_systemd(health: Health) {
    let (asked, mut away) = (Instant::now(), None);
    while !health.readiness().ready && asked.elapsed() < LONGEST_START {
        // A topic that is being created is away for a moment.
        away = if health.knows_why() { away.or_else(|| Some(Instant::now())) } else { None };
        if away.is_some_and(|since| since.elapsed() >= OUTAGE) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // Without systemd this does nothing.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
}

/// Says what is right and all the same hardly meant.
fn warn_of(config: &Config) {
    let now = Timestamp::now();
    for warning in config.http.auth.keys.warnings(now).into_iter().chain(config.admin.auth.keys.warnings(now)) {
        tracing::warn!("{warning}");
    }
}

fn warn_of_certificates(warnings: Vec<String>) {
    for warning in warnings {
        tracing::warn!("{warning}");
    }
}

fn reloader(sources: Sources, env: &Env, tls: Arc<Tls>) -> Reloader {
    let renewing = tls.clone();
    let next = move |old: &Config| {
        let applied = sources.load().and_then(|new| config::apply(old, &new, sources.backends()));
        let (config, mut reloaded) = applied.map_err(|errors| errors.to_string())?;
        // The last thing that may fail: from here on the new configuration is in force.
        let renewed = renewing.renew(&config)?;
        reloaded.applied.extend(renewed);
        reloaded.applied.sort();
        reloaded.applied.dedup();
        Ok((config, reloaded))
    };
    let on_change = move |config: &Config| {
        warn_of_certificates(tls.warnings(Timestamp::now()));
        if let Err(error) = logging::set_level(&config.logging.level) {
            tracing::error!(%error, "logging.level not changed");
        }
        warn_of(config);
    };
    Reloader::new(env.config.clone(), next, on_change)
}
