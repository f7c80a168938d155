//! Builds the actors, each with what it feeds and what outlives it.

use std::{
    io,
    net::TcpListener,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use anyhow::Context;

use super::Daemon;
use crate::{
    aggregate::{Aggregator, Rebuilding, configured_archive},
    archive::{
        spool::{DiskPressure, Spooler},
        upload::{self, Archive, Uploader},
    },
    config::Config,
    consume::{Consumer, ConsumerParts, Replies, Sink},
    health::Closed,
    ingest::Ingestor,
    log::{
        Appender, ByteBudget, Ingress, Producer, SourceEvents, SourceHandle,
        buffer::{self, Buffer},
        dead_letters::{DeadLetterWriter, DeadLetters, Quarantine},
        embedded::{EmbeddedLetters, EmbeddedLog},
        kafka::{self, KafkaAppender, KafkaDeadLetters, KafkaLetters, SharedReader},
    },
    names::{ActorName, SinkName, dependency},
    reload::FileWatch,
    store::Store,
    supervise::{Env, Fences, Guarded, Slot, supervise},
    watchdog::{self, Watchdog, WatchdogHooks},
};

/// Batches of the largest size between a source and its sink: the one that is being taken, and the next. Usual ones are a
/// tenth of it, so that many are under way; in a worker whose sinks are behind, all of this is memory.
const BATCHES_IN_FLIGHT: u64 = 2;
/// The same for the embedded log, as a part of one such batch: a few of the usual ones. What is not read yet is not far away.
const LOCAL_PART: u64 = 4;
/// How old the main loop's heartbeat may be before systemd's watchdog is no longer pinged.
const HEARTBEAT_LIMIT: Duration = Duration::from_secs(10);

/// The actors of the archive's sink.
#[derive(Clone, Default)]
pub(super) struct ArchiveSink {
    pub consumer: Slot<Consumer<Spooler>>,
    pub spooler: Slot<Spooler>,
    pub uploader: Slot<Uploader>,
}

/// What was started, for the stop. The slots of actors that this process does not run stay empty.
#[derive(Default)]
pub(super) struct Running {
    pub ingestor: Slot<Ingestor>,
    pub producer: Slot<Producer>,
    pub archive: ArchiveSink,
    pub aggregate: Slot<Consumer<Aggregator>>,
    pub guarded: Vec<Guarded>,
    pub log: Option<EmbeddedLog>,
    pub buffer: Option<Arc<Buffer>>,
    /// Writes Kafka's letters, once there are some: the ingestor's and the aggregates'.
    letters: Option<Arc<KafkaDeadLetters>>,
}

impl Running {
    fn kafka_letters(&mut self, config: &Config) -> Arc<KafkaDeadLetters> {
        self.letters.get_or_insert_with(|| Arc::new(KafkaDeadLetters::new(config))).clone()
    }
}

impl Daemon {
    pub(super) fn letters(&self, log: Option<&EmbeddedLog>) -> Arc<dyn DeadLetters> {
        match log {
            Some(log) => Arc::new(EmbeddedLetters::new(log.clone(), self.env.config.clone())),
            None => Arc::new(KafkaLetters::new(self.env.config.clone())),
        }
    }

    /// Starts the watchdog, which every process has that ingests or archives; the others are content with its reading
    /// of the disk, too.
    pub(super) fn watch(&self, spooler: Slot<Spooler>) -> Guarded {
        let (started, heartbeat) = (self.started, self.heartbeat.clone());
        let (sources, dir) = (self.sources.clone(), self.data_dir.path.clone());
        let watch = FileWatch::new(move || sources.files(), self.reloader.clone());
        let hooks = WatchdogHooks {
            usage: Arc::new(move || watchdog::usage(&dir)),
            full: self.env.health.gate.reason(Closed::DiskFull),
            on_disk: Arc::new(move |full| spooler.tell(DiskPressure(full))),
            alive: Arc::new(move || {
                let beat = Duration::from_millis(heartbeat.load(Ordering::Acquire));
                started.elapsed().saturating_sub(beat) < HEARTBEAT_LIMIT
            }),
            check_file: Arc::new(move || watch.check()),
        };
        supervise(ActorName::Watchdog, Slot::default(), &self.env, move |env, _| Ok(Watchdog::new(env, hooks.clone())?))
    }

    /// Builds the sinks, downstream first, so that each actor finds what it feeds.
    pub(super) fn start_sinks(&self, running: &mut Running, store: Option<Arc<dyn Store>>) -> anyhow::Result<()> {
        let config = self.env.config.load_full();
        if self.roles.archive() {
            self.start_archive(running, &config)?;
        }
        if let Some(store) = store.filter(|_| self.roles.aggregate()) {
            self.start_aggregate(running, &config, store);
        }
        Ok(())
    }

    pub(super) fn open_log(&self) -> anyhow::Result<EmbeddedLog> {
        let Env { config, health, metrics, escalations } = self.env.clone();
        EmbeddedLog::open(&self.data_dir.path, self.roles.sinks(), config, health, metrics, escalations)
    }

    /// Opens the buffer; without one, makes sure that no earlier start left events in it.
    pub(super) fn open_buffer(&self, config: &Config) -> anyhow::Result<Option<Arc<Buffer>>> {
        if config.buffers() {
            return Buffer::open(&self.data_dir.path, self.env.clone()).map(Some);
        }
        buffer::refuse_left_over(&self.data_dir.path).map(|()| None)
    }

    fn start_archive(&self, running: &mut Running, config: &Config) -> anyhow::Result<()> {
        // Checked before anything starts; each incarnation opens it anew.
        Archive::open(config)?;
        upload::sweep(config);
        let ArchiveSink { consumer, spooler, uploader } = running.archive.clone();
        let replies = replies(&consumer);

        let (io, feeds) = (self.io.clone(), spooler.clone());
        running.guarded.push(supervise(ActorName::Uploader, uploader.clone(), &self.env, move |env, _| {
            let archive = Archive::open(&env.config.load())?;
            Ok(Uploader::new(archive, io.clone(), feeds.clone(), env.config, env.health, env.metrics))
        }));

        let (data_dir, feeds) = (self.data_dir.path.clone(), uploader);
        running.guarded.push(supervise(ActorName::Spooler, spooler.clone(), &self.env, move |env, ctx| {
            Spooler::new(&data_dir, feeds.clone(), replies.clone(), env.config, env.health, env.metrics, ctx)
        }));

        let log = running.log.clone();
        running.guarded.push(self.consume(SinkName::Archive, config, spooler, consumer, log));
        Ok(())
    }

    fn start_aggregate(&self, running: &mut Running, config: &Config, store: Arc<dyn Store>) {
        let aggregator: Slot<Aggregator> = Slot::default();
        let replies = replies(&running.aggregate);
        let dead_letters: Arc<dyn DeadLetterWriter> = match running.log.clone() {
            Some(log) => Arc::new(log),
            None => running.kafka_letters(config),
        };
        let (archived, io) = (configured_archive(self.env.config.clone(), self.io.clone()), self.io.clone());
        running.guarded.push(supervise(ActorName::Aggregator, aggregator.clone(), &self.env, move |env, _| {
            let Env { config, health, metrics, .. } = env;
            let rebuilding = Rebuilding::new(archived.clone(), io.clone());
            Ok(Aggregator::new(
                store.clone(),
                dead_letters.clone(),
                replies.clone(),
                rebuilding,
                config,
                health,
                metrics,
            ))
        }));
        let (log, consumer) = (running.log.clone(), running.aggregate.clone());
        running.guarded.push(self.consume(SinkName::Aggregate, config, aggregator, consumer, log));
    }

    /// Starts the consumer of a sink; its source is made anew with each incarnation.
    fn consume<S: Sink>(
        &self,
        name: SinkName,
        config: &Config,
        sink: Slot<S>,
        slot: Slot<Consumer<S>>,
        log: Option<EmbeddedLog>,
    ) -> Guarded {
        let parts = Arc::new(ConsumerParts {
            name,
            topic: config.queue.topic.clone(),
            queue: if log.is_some() { dependency::EMBEDDED_LOG_READING } else { dependency::KAFKA },
            sink,
            env: self.env.clone(),
            fences: Fences::default(),
        });
        let (env, instance) = (self.env.clone(), self.data_dir.instance.clone());
        let (topic_watches, shared_reads) = (self.topic_watches.clone(), self.shared_reads.clone());
        let start_source = move |events: SourceEvents| -> anyhow::Result<SourceHandle> {
            let budget = |bytes| ByteBudget::new(bytes, env.metrics.depth(name.sink()));
            let live = env.config.clone();
            let largest = live.load().batch.max_bytes.0;
            match &log {
                Some(log) => log.source(name, live, budget(largest / LOCAL_PART), events),
                None => {
                    let budget = budget(largest.saturating_mul(BATCHES_IN_FLIGHT));
                    let attached = env.metrics.attached(name);
                    let reader = SharedReader::new(shared_reads.clone(), events, budget, attached);
                    kafka::source::spawn(live, name, &instance, &topic_watches, reader)
                }
            }
        };
        supervise(name.consumer(), slot, &self.env, move |_, ctx| Consumer::new(parts.clone(), ctx, &start_source))
    }

    pub(super) fn start_ingest(&self, running: &mut Running, sockets: Vec<TcpListener>) {
        let ingress = Ingress::new(running.producer.clone());
        let opened = ingress.clone();
        let (log, buffer) = (running.log.clone(), running.buffer.clone());
        running.guarded.push(supervise(ActorName::Producer, running.producer.clone(), &self.env, move |env, _| {
            let Env { config, health, metrics, .. } = env;
            let appender: Box<dyn Appender> = match (&log, &buffer) {
                (Some(log), _) => Box::new(log.clone()),
                (None, Some(buffer)) => buffer.appender()?,
                (None, None) => Box::new(KafkaAppender::new(&config.load(), health.clone(), metrics)?),
            };
            Ok(Producer::new(opened.clone(), appender, health))
        }));

        let quarantine: Arc<dyn Quarantine> = match running.log.clone() {
            Some(log) => Arc::new(log),
            None => running.kafka_letters(&self.env.config.load()),
        };
        let tls = self.tls.http.clone();
        running.guarded.push(supervise(ActorName::Ingestor, running.ingestor.clone(), &self.env, move |env, _| {
            let sockets = sockets.iter().map(TcpListener::try_clone).collect::<io::Result<_>>();
            let sockets = sockets.context("the listening sockets cannot be shared")?;
            let Env { config, health, metrics, .. } = env;
            let ingestor = Ingestor::new(sockets, ingress.clone(), quarantine.clone(), config, health, metrics);
            Ok(ingestor.with_tls(tls.clone()))
        }));
    }
}

/// The way from a sink to its consumer's present incarnation.
fn replies<S: Sink>(consumer: &Slot<Consumer<S>>) -> Replies {
    let consumer = consumer.clone();
    Replies::new(move |message| consumer.tell(message))
}
