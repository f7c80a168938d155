//! Builds the actors, each with what it tells and what outlives it.

use std::{
    io,
    net::TcpListener,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use anyhow::Context;

use super::Daemon;
use crate::{
    aggregate::Aggregator,
    archive::{
        spool::{DiskPressure, Spooler},
        upload::{self, Archive, Uploader},
    },
    config::Config,
    consume::{Consumer, ConsumerParts, QueueName, Replies, Sink},
    ingest::Ingestor,
    log::{
        Appender, ByteBudget, Ingress, Producer, SourceEvents, SourceHandle,
        buffer::Buffer,
        dead_letters::{DeadLetterWriter, DeadLetters},
        embedded::{EmbeddedLetters, EmbeddedLog},
        kafka::{self, KafkaAppender, KafkaDeadLetters, KafkaLetters},
    },
    names::{ActorName, SinkName, dependency},
    reload::FileWatch,
    store::Store,
    supervise::{Guarded, Slot, supervise},
    watchdog::{FileSystem, Watchdog, WatchdogHooks},
};

/// Batches of the largest size between a source and its sink: the one that is being taken, and the next. Usual ones are a
/// tenth of it, so that many are under way; in a worker whose sinks are behind, all of this is memory.
const BATCHES_IN_FLIGHT: u64 = 2;
/// The same for the embedded log, as a part of one such batch: a few of the usual ones. What is not read yet is not far away.
const LOCAL_PART: u64 = 4;
/// How old the main loop's heartbeat may be before systemd is no longer told that all is well.
const HEARTBEAT_LIMIT: Duration = Duration::from_secs(10);

/// The actors of the archive's sink.
pub(super) struct ArchiveSink {
    pub consumer: Slot<Consumer<Spooler>>,
    pub spooler: Slot<Spooler>,
    pub uploader: Slot<Uploader>,
}

/// What was started, for the stop.
#[derive(Default)]
pub(super) struct Running {
    pub ingestor: Option<Slot<Ingestor>>,
    pub producer: Option<Slot<Producer>>,
    pub archive: Option<ArchiveSink>,
    pub aggregate: Option<Slot<Consumer<Aggregator>>>,
    pub guarded: Vec<Guarded>,
    pub log: Option<EmbeddedLog>,
    pub buffer: Option<Arc<Buffer>>,
}

impl Daemon {
    pub(super) fn letters(&self, log: Option<&EmbeddedLog>) -> Arc<dyn DeadLetters> {
        match log {
            Some(log) => Arc::new(EmbeddedLetters::new(log.clone(), self.config.clone())),
            None => Arc::new(KafkaLetters::new(self.config.clone())),
        }
    }

    /// Starts the watchdog, which every process has that ingests or archives; the others are content with its reading
    /// of the disk, too.
    pub(super) fn watch(&self, spooler: Slot<Spooler>) -> Guarded {
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

    /// Builds the sinks, downstream first, so that each actor finds what it feeds.
    pub(super) fn start_sinks(
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

    pub(super) fn open_log(&self) -> anyhow::Result<EmbeddedLog> {
        let sinks = [(SinkName::Archive, self.roles.archive()), (SinkName::Aggregate, self.roles.aggregate())];
        let sinks = sinks.into_iter().filter(|(_, on)| *on).map(|(sink, _)| sink).collect();
        let (config, health, metrics) = (self.config.clone(), self.health.clone(), self.metrics.clone());
        EmbeddedLog::open(&self.data_dir.path, sinks, config, health, metrics, self.supervision.escalations.clone())
    }

    fn start_archive(&self, running: &mut Running, config: &Config, spooler: Slot<Spooler>) -> anyhow::Result<()> {
        // Checked before anything starts; each incarnation opens it anew.
        Archive::open(config)?;
        upload::sweep(config);
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
    fn consume<S: Sink>(
        &self,
        name: SinkName,
        config: &Config,
        sink: Slot<S>,
        slot: Slot<Consumer<S>>,
        log: Option<EmbeddedLog>,
    ) -> Guarded {
        let queue = QueueName(if log.is_some() { dependency::EMBEDDED_LOG_READING } else { dependency::KAFKA });
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
        let topic_watches = self.topic_watches.clone();
        let start_source = move |events: SourceEvents| -> anyhow::Result<SourceHandle> {
            let budget = |bytes| ByteBudget::new(bytes, metrics.depth(name.sink()));
            let largest = live.load().batch.max_bytes.0;
            match &log {
                Some(log) => log.source(name, live.clone(), budget(largest / LOCAL_PART), events),
                None => {
                    let budget = budget(largest.saturating_mul(BATCHES_IN_FLIGHT));
                    kafka::source::spawn(live.clone(), name, &instance, &topic_watches, budget, events)
                }
            }
        };
        supervise(name.consumer(), slot, &self.supervision, move |ctx| Consumer::new(parts.clone(), ctx, &start_source))
    }

    pub(super) fn start_ingest(&self, running: &mut Running, sockets: Vec<TcpListener>) {
        let producer: Slot<Producer> = Slot::default();
        let ingress = Ingress::new(producer.clone());
        let opened = ingress.clone();
        let (live, health, metrics) = (self.config.clone(), self.health.clone(), self.metrics.clone());
        let (log, buffer) = (running.log.clone(), running.buffer.clone());
        running.guarded.push(supervise(ActorName::Producer, producer.clone(), &self.supervision, move |_| {
            let appender: Box<dyn Appender> = match (&log, &buffer) {
                (Some(log), _) => Box::new(log.clone()),
                (None, Some(buffer)) => buffer.appender()?,
                (None, None) => Box::new(KafkaAppender::new(&live.load(), health.clone(), metrics.clone())?),
            };
            Ok(Producer::new(opened.clone(), appender, health.clone()))
        }));
        running.producer = Some(producer);

        let ingestor: Slot<Ingestor> = Slot::default();
        let (live, health, metrics) = (self.config.clone(), self.health.clone(), self.metrics.clone());
        running.guarded.push(supervise(ActorName::Ingestor, ingestor.clone(), &self.supervision, move |_| {
            let sockets = sockets.iter().map(TcpListener::try_clone).collect::<io::Result<_>>();
            let sockets = sockets.context("the listening sockets cannot be shared")?;
            Ok(Ingestor::new(sockets, ingress.clone(), live.clone(), health.clone(), metrics.clone()))
        }));
        running.ingestor = Some(ingestor);
    }
}
