//! The write side: events become records, each answered when all in-sync replicas have it (`acks=all`, idempotent).
//!
//! A thread that polls the producer calls `Deliveries::delivery`; each record carries its request's ticket
//! and its index. When the brokers are away the door is closed for new events, so that they are refused at once
//! instead of waiting for their timeout, and a probe on a thread of its own opens it again. While single partitions take
//! nothing, events whose key belongs there are refused here at once, and those without a key go to the others.

use std::{
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use crossbeam_channel::{Sender, bounded};
use parking_lot::{RwLock, RwLockReadGuard};
use rdkafka::{
    ClientConfig, ClientContext,
    config::RDKafkaLogLevel,
    error::KafkaError,
    message::{DeliveryResult, Header, OwnedHeaders},
    producer::{BaseRecord, Producer, ProducerContext},
    types::RDKafkaErrorCode as Code,
};

use crate::{
    config::Config,
    health::Health,
    log::{
        Appender, Full, Publish, Ticket,
        buffer::switch::{InFlight, Switch},
        kafka::{
            broker_status::{BrokerStatus, Reporter},
            clock, logging, placement,
            probe::Probe,
            producer::PolledProducer,
            settings,
            unanswered::Handed,
            writable::Writability,
        },
        record::ID_HEADER,
    },
    metrics::Metrics,
};

/// A producer that failed for good (librdkafka calls it fatal) is replaced at most so often.
const REPLACE_EVERY: Duration = Duration::from_secs(5);

/// Writes to one topic.
pub struct KafkaAppender {
    settings: ClientConfig,
    /// Of a client that asks and writes nothing.
    plain: ClientConfig,
    topic: String,
    brokers: Arc<BrokerStatus>,
    metrics: Arc<Metrics>,
    /// Shared by those that append; alone for whoever replaces it. `None` only while it is dropped.
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
        let writer = Writer::start(&settings, &plain, &topic, &brokers, &metrics)?;
        Ok(Self { settings, plain, topic, brokers, metrics, writer: RwLock::new(Some(writer)) })
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
        match Writer::start(&self.settings, &self.plain, &self.topic, &self.brokers, &self.metrics) {
            Ok(new) => {
                tracing::warn!("the Kafka producer failed for good and was replaced");
                self.brokers.mended();
                retire(writer.replace(new));
            }
            Err(error) => tracing::error!(error = format!("{error:#}"), "the Kafka producer cannot be replaced"),
        }
    }

    fn writer(&self) -> RwLockReadGuard<'_, Option<Writer>> {
        self.writer.read()
    }

    /// Appends; `in_flight` is dropped when the last event that was taken now is answered.
    ///
    /// # Errors
    /// As [`Appender::append`].
    pub fn append_straight(&self, publish: Publish, from: usize, in_flight: Option<InFlight>) -> Result<(), Full> {
        self.replace_failed();
        let request = in_flight.map(Arc::new);
        let writer = self.writer();
        let Some(writer) = &*writer else {
            publish.ticket.unavailable(publish.events.len() - from, "the Kafka producer is stopping");
            return Ok(());
        };
        let (unwritable, now) = (self.brokers.unwritable(), Instant::now());
        // A request of which one event is refused is answered 503 as a whole, and comes again: then nothing of it is sent.
        let refused = unwritable.as_deref().filter(|_| from == 0);
        let refused =
            refused.and_then(|it| publish.events.iter().find_map(|event| place(it, publish.key(event)).err()));
        if let Some(why) = refused {
            publish.ticket.refused(publish.events.len(), &why);
            return Ok(());
        }
        for (index, event) in publish.events.iter().enumerate().skip(from) {
            let key = publish.key(event);
            let partition = match unwritable.as_deref().map(|topic| place(topic, key)) {
                None => None,
                Some(Ok(partition)) => partition,
                Some(Err(why)) => {
                    publish.ticket.refused(1, &why);
                    continue;
                }
            };
            let sent = Box::new(Sent {
                ticket: publish.ticket.clone(),
                index,
                _request: request.clone(),
                _handed: self.brokers.hand(now),
            });
            let mut record = BaseRecord::<[u8], [u8], _>::with_opaque_to(&self.topic, sent)
                .payload(publish.value(event))
                .timestamp(publish.received.0);
            record.key = key;
            record.partition = partition;
            if let Some(id) = &event.assigned_id {
                let mut text = uuid::Uuid::encode_buffer();
                let value: &str = id.hyphenated().encode_lower(&mut text);
                let headers = OwnedHeaders::new_with_capacity(1);
                record = record.headers(headers.insert(Header { key: ID_HEADER, value: Some(value) }));
            }
            match writer.producer.send(record).map_err(|(error, _)| error) {
                Ok(()) => {}
                Err(KafkaError::MessageProduction(Code::QueueFull)) => return Err(Full { publish, next: index }),
                Err(error) => refuse(&writer.reporter, &publish.ticket, index, &error),
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
        let Some(producer) = self.writer().as_ref().map(|writer| writer.producer.shared()) else { return Ok(()) };
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

/// One record on its way.
struct Sent {
    ticket: Arc<Ticket>,
    index: usize,
    /// Told by its drop.
    _request: Option<Arc<InFlight>>,
    /// The same.
    _handed: Handed,
}

/// Where an event goes while partitions take nothing: where its key belongs (`None`: librdkafka knows), or without a key
/// to one that takes it.
fn place(topic: &Writability, key: Option<&[u8]>) -> Result<Option<i32>, String> {
    let why = |partition: usize, why: &str| format!("Kafka takes no events for partition {partition}: {why}");
    match key {
        Some(key) => {
            let partition = placement::of_key(key, topic.partitions);
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
        _ => ticket.unavailable(1, &reporter.explain(error)),
    }
}

/// Where librdkafka reports what became of each record, and of the brokers.
struct Deliveries {
    topic: String,
    reporter: Arc<Reporter>,
    metrics: Arc<Metrics>,
    /// Asks for a probe now.
    wake: Sender<()>,
}

impl ClientContext for Deliveries {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, reporter: &str) {
        logging::forward(level, facility, reporter);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(target: "rdkafka", %error, reason, "the producer reports an error");
        let Some(brokers) = self.reporter.live() else { return };
        match error.rdkafka_error_code() {
            Some(Code::AllBrokersDown) if brokers.down("all brokers are down") => {
                // Full means that one is asked for already.
                let _ = self.wake.try_send(());
            }
            Some(Code::AllBrokersDown) => {}
            _ => brokers.note(reason),
        }
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = Box<Sent>;

    fn delivery(&self, delivery: &DeliveryResult<'_>, sent: Box<Sent>) {
        match delivery {
            Ok(_) => {
                self.metrics.events_produced.inc();
                if let Some(brokers) = self.reporter.live() {
                    brokers.acknowledged();
                }
                sent.ticket.durable(1);
            }
            Err((error, _)) => match error.rdkafka_error_code() {
                Some(code) if clock::is_refusal(code) => self.refused(&sent, code, error),
                _ => refuse(&self.reporter, &sent.ticket, sent.index, error),
            },
        }
    }
}

impl Deliveries {
    /// A broker refused the batch with this event: nothing of it is written.
    fn refused(&self, sent: &Sent, code: Code, error: &KafkaError) {
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
        sent.ticket.refused(1, &reason);
    }
}

/// A producer and its probe.
struct Writer {
    producer: PolledProducer<Deliveries>,
    reporter: Arc<Reporter>,
    /// When it was made, or its replacement was last tried.
    tried: Instant,
    /// Dropped to stop the probe.
    stop: Option<Sender<()>>,
    probe: Option<JoinHandle<()>>,
}

impl Writer {
    fn start(
        settings: &ClientConfig,
        plain: &ClientConfig,
        topic: &str,
        brokers: &Arc<BrokerStatus>,
        metrics: &Arc<Metrics>,
    ) -> anyhow::Result<Self> {
        // One request for a probe waits at most: more would ask the same.
        let (wake, woken) = bounded(1);
        let (stop, stopped) = bounded(0);
        let _ = wake.try_send(());
        let reporter = Arc::new(Reporter::new(brokers.clone()));
        let context =
            Deliveries { topic: topic.to_owned(), reporter: reporter.clone(), metrics: metrics.clone(), wake };
        let producer = PolledProducer::start(settings, context)?;
        let probe = Probe::new(producer.shared(), plain.clone(), topic, reporter.clone());
        let probe = std::thread::Builder::new()
            .name("kafka-probe".to_owned())
            .spawn(move || probe.run(&woken, &stopped))
            .context("cannot start the thread that probes Kafka")?;
        Ok(Self { producer, reporter, tried: Instant::now(), stop: Some(stop), probe: Some(probe) })
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

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use prometheus_client::metrics::counter::Counter;
    use rdkafka::{
        mocking::MockCluster,
        types::{RDKafkaApiKey, RDKafkaRespErr},
    };

    use super::*;
    use crate::{
        log::{Delivery, NewRecord, Span},
        position::Timestamp,
    };

    type Cluster = MockCluster<'static, rdkafka::producer::DefaultProducerContext>;

    fn publish(sizes: &[usize]) -> (Publish, tokio::sync::oneshot::Receiver<Delivery>) {
        let (ticket, reply) = Ticket::new(sizes.len(), Counter::default());
        let mut events = Vec::new();
        let mut start = 0;
        for size in sizes {
            let value = Span { start, end: start + *size as u32 };
            events.push(NewRecord { value, key: None, assigned_id: Some(uuid::Uuid::now_v7()) });
            start = value.end;
        }
        let body = Bytes::from(vec![b'x'; start as usize]);
        (Publish { body, unescaped: Bytes::new(), events, received: Timestamp::now(), ticket }, reply)
    }

    fn appender(cluster: &Cluster, request_timeout: Duration) -> KafkaAppender {
        let mut config = Config::default();
        config.queue.kafka.brokers = cluster.bootstrap_servers();
        config.http.request_timeout = request_timeout;
        KafkaAppender::new(&config, Health::default(), Arc::new(Metrics::default())).unwrap()
    }

    fn deliver(appender: &KafkaAppender, sizes: &[usize]) -> Delivery {
        let (publish, reply) = publish(sizes);
        assert!(appender.append(publish, 0).is_ok());
        reply.blocking_recv().unwrap()
    }

    #[test]
    fn a_record_refused_for_its_size_here_or_by_the_broker_is_that_events_error() {
        let cluster = MockCluster::new(1).unwrap();
        cluster.create_topic("events", 1, 1).unwrap();
        let appender = appender(&cluster, Duration::from_secs(20));
        let delivery = deliver(&appender, &[10, 2 << 20, 10]);
        assert_eq!(delivery, Delivery { too_large: vec![1], durable: 2, ..Delivery::default() });
        cluster.request_errors(RDKafkaApiKey::Produce, &[RDKafkaRespErr::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE]);
        assert_eq!(deliver(&appender, &[10]).too_large, [0]);
    }

    #[test]
    fn a_producer_that_failed_for_good_is_replaced() {
        let cluster = MockCluster::new(1).unwrap();
        cluster.create_topic("events", 1, 1).unwrap();
        let appender = appender(&cluster, Duration::from_secs(20));
        assert_eq!(deliver(&appender, &[10]).durable, 1);
        // As after an unclean election, when the new leader has not seen the producer's last batches.
        let lost = RDKafkaRespErr::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER;
        cluster.request_errors(RDKafkaApiKey::Produce, &[lost]);
        assert!(deliver(&appender, &[10]).unavailable.is_some());
        let deadline = Instant::now() + Duration::from_secs(30);
        while deliver(&appender, &[10]).durable == 0 {
            assert!(Instant::now() < deadline, "nothing is written any more");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    #[test]
    fn an_event_goes_where_its_key_belongs_or_is_refused_and_one_without_a_key_goes_elsewhere() {
        let of = |partition: usize| (partition, "no leader".to_owned());
        let belongs = placement::of_key(b"client-1", 4);
        let others: Vec<usize> = (0..4).filter(|partition| *partition != belongs).collect();
        let topic = Writability { partitions: 4, unwritable: [of(belongs)].into() };
        let refused = place(&topic, Some(b"client-1")).unwrap_err();
        assert!(refused.contains(&format!("partition {belongs}: no leader")), "{refused}");
        let topic = Writability { partitions: 4, unwritable: others.into_iter().map(of).collect() };
        assert_eq!(place(&topic, Some(b"client-1")), Ok(None));
        assert_eq!(place(&topic, None), Ok(Some(belongs as i32)));
        let topic = Writability { partitions: 4, unwritable: (0..4).map(of).collect() };
        assert!(place(&topic, None).is_err());
    }

    #[test]
    fn brokers_that_go_away_close_the_door_and_open_it_when_they_are_back() {
        let cluster = MockCluster::new(1).unwrap();
        cluster.create_topic("events", 1, 1).unwrap();
        let appender = appender(&cluster, Duration::from_secs(4));
        assert_eq!(deliver(&appender, &[10]).durable, 1);
        cluster.broker_down(1).unwrap();
        let delivery = deliver(&appender, &[10]);
        assert!(delivery.unavailable.is_some(), "{delivery:?}");
        assert!(appender.brokers.is_away());
        cluster.broker_up(1).unwrap();
        // Each event waits for the connection as long as a request would.
        let deadline = Instant::now() + Duration::from_secs(30);
        while deliver(&appender, &[10]).durable == 0 {
            assert!(Instant::now() < deadline, "the broker is back and takes nothing");
        }
        assert!(!appender.brokers.is_away());
    }
}
