//! The write side: events become records, each answered when all in-sync replicas have it (`acks=all`, idempotent).
//!
//! A thread that polls the producer calls `Acknowledgements::delivered`; each record carries its request's ticket and its
//! index. When the brokers are away the door is closed for new events, so that they are refused at once
//! instead of waiting for their timeout, and a probe on a thread of its own opens it again. While single partitions take
//! nothing, events whose key belongs there are refused here at once, and those without a key go to the others. The rest of a
//! request with such an event is sent only where each event has its own answer.

use std::{
    panic::{self, AssertUnwindSafe},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use crossbeam_channel::{Sender, bounded};
use parking_lot::RwLock;
use rdkafka::{
    ClientConfig,
    config::FromClientConfigAndContext,
    error::{KafkaError, KafkaResult},
    message::{DeliveryResult, Message},
    producer::{BaseProducer, Producer, PurgeConfig},
    types::RDKafkaErrorCode as Code,
};

use crate::{
    config::Config,
    health::Health,
    log::{
        Appender, Full, Publish, Ticket,
        buffer::switch::{InFlight, Switch},
        kafka::{
            brokers::{BrokerStatus, Handed, Reporter, Writability},
            client::{Context, Deliveries, Role},
            outgoing::{Batch, Headers, Record, Sent, Topic},
            probe::{Probe, is_refusal},
            settings,
        },
        record::ID_HEADER,
    },
    metrics::Metrics,
    position::{Offset, Partition, Position},
};

/// A producer that failed for good (librdkafka calls it fatal) is replaced once in this time at most.
const REPLACE_EVERY: Duration = Duration::from_secs(5);

/// Records of a request that share what they have in common: where the queue has room for a few, only so many more are looked at.
const PIECE: usize = 1024;

/// Writes to one topic.
pub struct KafkaAppender {
    settings: ClientConfig,
    /// Of a client that asks and writes nothing.
    plain: ClientConfig,
    topic: String,
    brokers: Arc<BrokerStatus>,
    metrics: Arc<Metrics>,
    /// Pieces of requests that were begun.
    begun: AtomicU64,
    /// Shared by those that append; alone for the one who replaces it. `None` only while it is dropped.
    writer: RwLock<Option<Writer>>,
}

impl KafkaAppender {
    /// The door for events stays closed until the brokers have answered for the first time.
    ///
    /// # Errors
    /// When librdkafka refuses the settings.
    pub fn new(config: &Config, health: Health, metrics: Arc<Metrics>) -> anyhow::Result<Self> {
        Self::behind(None, config, health, metrics)
    }

    /// Behind a buffer, which takes the events while the brokers are away: the door stays open.
    ///
    /// # Errors
    /// When librdkafka refuses the settings.
    pub fn behind(
        buffer: Option<Arc<Switch>>,
        config: &Config,
        health: Health,
        metrics: Arc<Metrics>,
    ) -> anyhow::Result<Self> {
        let settings = settings::producer(config);
        let plain = settings::client(config);
        let topic = config.queue.topic.clone();
        let brokers = Arc::new(BrokerStatus::new(&config.queue.kafka.brokers, health, buffer));
        let mut appender =
            Self { settings, plain, topic, brokers, metrics, begun: AtomicU64::new(0), writer: RwLock::new(None) };
        *appender.writer.get_mut() = Some(appender.start()?);
        Ok(appender)
    }

    fn start(&self) -> anyhow::Result<Writer> {
        // One request for a probe waits at most: more would ask the same.
        let (wake, woken) = bounded(1);
        let (stop, stopped) = bounded(0);
        let _ = wake.try_send(());
        let reporter = Arc::new(Reporter::new(self.brokers.clone()));
        let (topic, metrics) = (self.topic.clone(), self.metrics.clone());
        let role = Acknowledgements { topic, reporter: reporter.clone(), metrics, wake, heard: Heard::default() };
        let producer = PolledProducer::start(&self.settings, role)?;
        let probe = Probe::new(producer.client.clone(), self.plain.clone(), &self.topic, reporter.clone());
        let probe = std::thread::Builder::new()
            .name("kafka-probe".to_owned())
            .spawn(move || probe.run(&woken, &stopped))
            .context("cannot start the thread that probes Kafka")?;
        Ok(Writer { producer, reporter, tried: Instant::now(), stop: Some(stop), probe: Some(probe) })
    }

    /// After a fatal error a producer refuses everything; a new one goes on. What the old one held is answered with
    /// the error.
    fn replace_failed(&self) {
        if !self.brokers.has_failed() {
            return;
        }
        let mut writer = self.writer.write();
        // Others that saw the failure waited here while the first one replaced it.
        let Some(failed) =
            writer.as_mut().filter(|writer| self.brokers.has_failed() && writer.tried.elapsed() >= REPLACE_EVERY)
        else {
            return;
        };
        failed.tried = Instant::now();
        match self.start() {
            Ok(new) => {
                tracing::warn!("the Kafka producer failed for good and was replaced");
                self.brokers.mended();
                retire(writer.replace(new));
            }
            Err(error) => tracing::error!(error = format!("{error:#}"), "the Kafka producer cannot be replaced"),
        }
    }

    /// Appends; `in_flight` is dropped when the last event that was taken now is answered.
    ///
    /// # Errors
    /// As [`Appender::append`].
    pub fn append_straight(&self, publish: Publish, from: usize, in_flight: Option<InFlight>) -> Result<(), Full> {
        self.replace_failed();
        let writer = self.writer.read();
        let Some(writer) = &*writer else {
            publish.ticket.unavailable(from..publish.events.len(), "the Kafka producer is stopping");
            return Ok(());
        };
        let (unwritable, now) = (self.brokers.unwritable(), Instant::now());
        // A request of which one event is refused is answered 503 as a whole, and comes again: then nothing of it is sent.
        let refused = unwritable.as_deref().filter(|_| from == 0 && !publish.ticket.is_of_each());
        let refused =
            refused.and_then(|it| publish.events.iter().find_map(|event| place(it, publish.key(event)).err()));
        if let Some(why) = refused {
            publish.ticket.refused(0..publish.events.len(), &why);
            return Ok(());
        }
        let topic = match writer.producer.topic(&self.topic) {
            Ok(topic) => topic,
            Err(error) => {
                publish.ticket.refused(from..publish.events.len(), &writer.reporter.explain(&error));
                return Ok(());
            }
        };
        let (in_flight, events) = (in_flight.map(Arc::new), publish.events.len());
        for first in (from..events).step_by(PIECE) {
            let number = self.begun.fetch_add(1, Ordering::Relaxed) + 1;
            let (ticket, handed) = (publish.ticket.clone(), self.brokers.hand(now));
            let piece = Piece { number, ticket, _in_flight: in_flight.clone(), _handed: handed };
            let batch = Batch::new(piece, first, PIECE.min(events - first));
            if let Err(next) = writer.send(topic, &publish, &batch, unwritable.as_deref()) {
                return Err(Full { publish, next });
            }
        }
        Ok(())
    }
}

impl Appender for KafkaAppender {
    fn append(&self, publish: Publish, from: usize) -> Result<(), Full> {
        self.append_straight(publish, from, None)
    }

    fn flush(&self, timeout: Duration) -> Result<(), usize> {
        let Some(producer) = self.writer.read().as_ref().map(|writer| writer.producer.client.clone()) else {
            return Ok(());
        };
        producer.flush(timeout).map_err(|_| usize::try_from(producer.in_flight_count()).unwrap_or(usize::MAX))
    }
}

impl Drop for KafkaAppender {
    fn drop(&mut self) {
        retire(self.writer.get_mut().take());
    }
}

/// Drops a writer on a thread of its own: it joins threads for up to a few seconds, and its owner lives on an arbiter.
/// Nobody waits for this one: what the writer still held gets its answer there.
fn retire(writer: Option<Writer>) {
    let Some(writer) = writer else { return };
    writer.reporter.retire();
    if let Err(error) = std::thread::Builder::new().name("kafka-retire".to_owned()).spawn(move || drop(writer)) {
        tracing::warn!(%error, "no thread to close the Kafka producer on, closing it here");
    }
}

/// What records of a request share.
struct Piece {
    /// Above zero; no other piece's.
    number: u64,
    ticket: Arc<Ticket>,
    /// Its drop says that the request's last event is answered.
    _in_flight: Option<Arc<InFlight>>,
    /// Its drop says that these records are answered.
    _handed: Handed,
}

/// Where an event goes while partitions take nothing: where its key belongs (`None`: librdkafka knows), or without a key
/// to one that takes it.
fn place(topic: &Writability, key: Option<&[u8]>) -> Result<Option<i32>, String> {
    let why = |partition: usize, why: &str| format!("Kafka takes no events for partition {partition}: {why}");
    match key {
        Some(key) => {
            let partition = partition_of_key(key, topic.partitions);
            topic.unwritable.get(&partition).map_or(Ok(None), |reason| Err(why(partition, reason)))
        }
        None => match topic.any_writable() {
            Some(partition) => Ok(i32::try_from(partition).ok()),
            None => Err(format!("Kafka takes no events for {}", topic.words())),
        },
    }
}

/// An event is not written, for this reason.
fn refuse(reporter: &Reporter, ticket: &Ticket, index: usize, error: &KafkaError) {
    match error.rdkafka_error_code() {
        Some(Code::MessageSizeTooLarge) => ticket.too_large(index),
        _ => ticket.unavailable(index..index + 1, &reporter.explain(error)),
    }
}

/// The role of the producer of events: answers each, and knows how the brokers are.
struct Acknowledgements {
    topic: String,
    reporter: Arc<Reporter>,
    metrics: Arc<Metrics>,
    /// Asks for a probe now.
    wake: Sender<()>,
    heard: Heard,
}

impl Role for Acknowledgements {
    fn error(&self, code: Option<Code>, reason: &str, _: &mut Option<String>) {
        let Some(brokers) = self.reporter.live() else { return };
        match code {
            Some(Code::AllBrokersDown) if brokers.down("all brokers are down") => {
                // Full means that one is asked for already.
                let _ = self.wake.try_send(());
            }
            Some(Code::AllBrokersDown) => {}
            _ => brokers.note(reason),
        }
    }
}

/// The records that were last heard of: their piece's number and their partition.
#[derive(Default)]
struct Heard(AtomicU64);

impl Heard {
    /// Whether the clock is looked at for a record of so many bytes. Not for records of a request that come one after the other from
    /// one partition, which were one batch, or a few: as long as they are few, and small.
    fn is_news(&self, piece: u64, partition: i32, index: usize, bytes: usize) -> bool {
        const FEW: usize = 32;
        const SMALL: usize = 16 << 10;
        let run = piece << 16 | u64::from(partition as u16);
        let is_same = self.0.swap(run, Ordering::Relaxed) == run;
        !is_same || index.is_multiple_of(FEW) || bytes > SMALL
    }
}

impl Deliveries for Acknowledgements {
    type Sent = Sent<Piece>;

    fn delivered(&self, outcome: &DeliveryResult<'_>, sent: Sent<Piece>) {
        match outcome {
            Ok(message) => {
                self.metrics.events_produced.inc();
                let piece = sent.shared();
                let bytes = message.payload().map_or(0, <[u8]>::len);
                let is_news = self.heard.is_news(piece.number, message.partition(), sent.index, bytes);
                if let Some(brokers) = self.reporter.live()
                    && (is_news || brokers.is_away())
                {
                    brokers.acknowledged();
                }
                // A broker that has it from an earlier attempt does not say where.
                piece.ticket.durable_at(sent.index..sent.index + 1, || {
                    let offset = Offset::from_kafka(message.offset())?;
                    Some(Position { partition: Partition(message.partition()), offset })
                });
            }
            Err((error, _)) => match error.rdkafka_error_code() {
                Some(code) if is_refusal(code) => self.refused(&sent, code, error),
                _ => refuse(&self.reporter, &sent.shared().ticket, sent.index, error),
            },
        }
    }
}

impl Acknowledgements {
    /// A broker refused the batch with this event: nothing of it is written.
    fn refused(&self, sent: &Sent<Piece>, code: Code, error: &KafkaError) {
        if let Some(brokers) = self.reporter.live() {
            brokers.refused_time();
            // Full means that one is asked for already.
            let _ = self.wake.try_send(());
        }
        let said = self.reporter.explain(error);
        let reason = match code {
            Code::InvalidTimestamp => format!(
                "{said}; its time, which is this machine's, is further from the brokers' clock than topic {} allows \
                 (message.timestamp.after.max.ms, message.timestamp.before.max.ms)",
                self.topic
            ),
            _ => said,
        };
        sent.shared().ticket.refused(sent.index..sent.index + 1, &reason);
    }
}

/// A producer and its probe.
struct Writer {
    producer: PolledProducer<Acknowledgements>,
    reporter: Arc<Reporter>,
    /// When it was made, or its replacement was last tried.
    tried: Instant,
    /// Dropped to stop the probe.
    stop: Option<Sender<()>>,
    probe: Option<JoinHandle<()>>,
}

impl Writer {
    /// Sends the records of a piece.
    ///
    /// # Errors
    /// The index of the first one for which librdkafka has no room.
    fn send(
        &self,
        topic: &Topic<Context<Acknowledgements>>,
        publish: &Publish,
        batch: &Arc<Batch<Piece>>,
        unwritable: Option<&Writability>,
    ) -> Result<(), usize> {
        for index in batch.indexes() {
            let event = &publish.events[index];
            let key = publish.key(event);
            let partition = match unwritable.map(|topic| place(topic, key)) {
                None => None,
                Some(Ok(partition)) => partition,
                Some(Err(why)) => {
                    publish.ticket.refused(index..index + 1, &why);
                    continue;
                }
            };
            let headers = (event.assigned_id.is_some() || event.headers.is_some()).then(|| {
                let count = event.headers.map_or(0, |headers| headers.count as usize);
                let mut headers = Headers::new(usize::from(event.assigned_id.is_some()) + count);
                if let Some(id) = event.assigned_id {
                    let mut text = uuid::Uuid::encode_buffer();
                    headers.add(ID_HEADER, Some(id.hyphenated().encode_lower(&mut text).as_bytes()));
                }
                publish.headers(event).iter().for_each(|(name, value)| headers.add(name, value));
                headers
            });
            let (value, timestamp) = (publish.value(event), publish.received.0);
            let record = Record { partition, value, key, timestamp, headers };
            match topic.send(record, batch.sent(index)) {
                Ok(()) => {}
                Err(KafkaError::MessageProduction(Code::QueueFull)) => return Err(index),
                Err(error) => refuse(&self.reporter, &publish.ticket, index, &error),
            }
        }
        Ok(())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(probe) = self.probe.take() {
            // A panic of the probe was reported by its thread.
            let _ = probe.join();
        }
    }
}

/// The longest wait for an event. A poll spins through its last millisecond, because rdkafka rounds what is left of it
/// down to none: with the 100 ms of its `ThreadedProducer` an idle daemon took 0.9 % of a core for that. It is also how
/// long the end of one takes, because a poll goes on until then whatever it hears.
const POLL: Duration = Duration::from_secs(6);

/// As rdkafka's `ThreadedProducer`, for one owner. Its drop answers what is not answered, and blocks for [`POLL`] at most
/// besides.
struct PolledProducer<R: Deliveries> {
    /// Known since the first record.
    topic: OnceLock<Topic<Context<R>>>,
    /// Shared for questions to the brokers; these are to be dropped before this.
    client: Arc<BaseProducer<Context<R>>>,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl<R: Deliveries> PolledProducer<R> {
    /// # Errors
    /// When librdkafka refuses the settings, or there is no thread to be had.
    fn start(settings: &ClientConfig, role: R) -> anyhow::Result<Self> {
        let producer = BaseProducer::from_config_and_context(settings, Context::new(role))
            .context("queue.kafka: librdkafka refuses to make a producer; see queue.kafka.properties")?;
        let (client, ended) = (Arc::new(producer), Arc::new(AtomicBool::new(false)));
        let (polled, over) = (client.clone(), ended.clone());
        let thread = std::thread::Builder::new()
            .name("kafka-producer".to_owned())
            .spawn(move || {
                while !over.load(Ordering::Acquire) {
                    // A panic is reported by its hook. Without the thread nothing would be answered any more.
                    let _ = panic::catch_unwind(AssertUnwindSafe(|| polled.poll(POLL)));
                }
            })
            .context("cannot start the thread that polls the Kafka producer")?;
        Ok(Self { topic: OnceLock::new(), client, ended, thread: Some(thread) })
    }

    /// The topic that it writes to; it is always the same one.
    ///
    /// # Errors
    /// When librdkafka takes no such name.
    fn topic(&self, name: &str) -> KafkaResult<&Topic<Context<R>>> {
        if let Some(topic) = self.topic.get() {
            return Ok(topic);
        }
        let topic = Topic::new(self.client.clone(), name)?;
        Ok(self.topic.get_or_init(|| topic))
    }
}

impl<R: Deliveries> Drop for PolledProducer<R> {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Release);
        // Those that wait are answered at once.
        self.client.purge(PurgeConfig::default().queue().inflight());
        if let Some(thread) = self.thread.take() {
            // It catches panics.
            let _ = thread.join();
        }
    }
}

/// The partition of a key, where Kafka's producers put it: librdkafka's partitioner `murmur2_random`, which is
/// Java's. librdkafka places the records; this is for knowing it beforehand.
fn partition_of_key(key: &[u8], partitions: usize) -> usize {
    (murmur2(key) & 0x7fff_ffff) as usize % partitions.max(1)
}

/// MurmurHash2 with the seed of Java's `Utils.murmur2`.
fn murmur2(bytes: &[u8]) -> u32 {
    const SEED: u32 = 0x9747_b28c;
    const M: u32 = 0x5bd1_e995;
    const R: u32 = 24;
    let mut hash = SEED ^ bytes.len() as u32;
    let (words, rest) = bytes.as_chunks::<4>();
    for word in words {
        let mut k = u32::from_le_bytes(*word).wrapping_mul(M);
        k ^= k >> R;
        hash = hash.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    if !rest.is_empty() {
        for (place, byte) in rest.iter().enumerate() {
            hash ^= u32::from(*byte) << (8 * place);
        }
        hash = hash.wrapping_mul(M);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(M);
    hash ^ (hash >> 15)
}

#[cfg(test)]
mod tests;
