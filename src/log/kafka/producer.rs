//! A producer, and the thread on which it hears what became of its records.

use std::{
    ops::Deref,
    panic::{self, AssertUnwindSafe},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use anyhow::Context as _;
use rdkafka::{
    ClientConfig, ClientContext,
    config::{FromClientConfigAndContext, RDKafkaLogLevel},
    error::KafkaError,
    message::DeliveryResult,
    producer::{BaseProducer, Producer, ProducerContext, PurgeConfig},
};

/// The longest wait for an event. A poll spins through its last millisecond, because rdkafka rounds what is left of it
/// down to none: with the 100 ms of its `ThreadedProducer` an idle daemon took 0.9 % of a core for that. It is also how
/// long the end of one takes, because a poll goes on until then whatever it hears.
const POLL: Duration = Duration::from_secs(6);

/// As rdkafka's `ThreadedProducer`, for one owner. Its drop answers what is not answered, and blocks for [`POLL`] at most
/// besides.
pub(super) struct PolledProducer<C: ProducerContext + 'static> {
    producer: Arc<BaseProducer<Guarded<C>>>,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl<C: ProducerContext + 'static> PolledProducer<C> {
    /// # Errors
    /// When librdkafka refuses the settings, or there is no thread to be had.
    pub fn start(settings: &ClientConfig, context: C) -> anyhow::Result<Self> {
        let producer = BaseProducer::from_config_and_context(settings, Guarded(context))
            .context("queue.kafka: librdkafka refuses to make a producer; see queue.kafka.properties")?;
        let (producer, ended) = (Arc::new(producer), Arc::new(AtomicBool::new(false)));
        let (polled, over) = (producer.clone(), ended.clone());
        let thread = std::thread::Builder::new()
            .name("kafka-producer".to_owned())
            .spawn(move || {
                while !over.load(Ordering::Acquire) {
                    // A panic is reported by its hook. Without the thread nothing would be answered any more.
                    let _ = panic::catch_unwind(AssertUnwindSafe(|| polled.poll(POLL)));
                }
            })
            .context("cannot start the thread that polls the Kafka producer")?;
        Ok(Self { producer, ended, thread: Some(thread) })
    }

    /// For whoever asks the brokers by it; to be dropped before this.
    pub fn shared(&self) -> Arc<BaseProducer<Guarded<C>>> {
        self.producer.clone()
    }
}

impl<C: ProducerContext + 'static> Deref for PolledProducer<C> {
    type Target = BaseProducer<Guarded<C>>;

    fn deref(&self) -> &Self::Target {
        &self.producer
    }
}

impl<C: ProducerContext + 'static> Drop for PolledProducer<C> {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Release);
        // Those that wait hear it at once.
        self.producer.purge(PurgeConfig::default().queue().inflight());
        if let Some(thread) = self.thread.take() {
            // It catches panics.
            let _ = thread.join();
        }
    }
}

/// A context in which a panic over one record leaves the others their answers: rdkafka hears of many at once, and would
/// forget those after it. Of what else a context may hear, our producers use what is passed on here.
pub(super) struct Guarded<C>(C);

impl<C: ProducerContext> ClientContext for Guarded<C> {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        self.0.log(level, facility, line);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.0.error(error, reason);
    }
}

impl<C: ProducerContext> ProducerContext for Guarded<C> {
    type DeliveryOpaque = C::DeliveryOpaque;

    fn delivery(&self, delivery: &DeliveryResult<'_>, opaque: C::DeliveryOpaque) {
        // Reported by the hook. What came with the record is dropped, and says so to whoever waits.
        let _ = panic::catch_unwind(AssertUnwindSafe(|| self.0.delivery(delivery, opaque)));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crossbeam_channel::{Sender, unbounded};
    use rdkafka::{
        mocking::MockCluster,
        producer::{BaseRecord, DefaultProducerContext},
    };

    use super::*;

    struct Told(Sender<usize>);

    impl ClientContext for Told {}

    impl ProducerContext for Told {
        type DeliveryOpaque = Box<usize>;

        fn delivery(&self, _: &DeliveryResult<'_>, number: Box<usize>) {
            self.0.send(*number).unwrap();
            assert_ne!(*number, 0, "the first one, on purpose");
        }
    }

    #[test]
    fn a_panic_over_one_record_leaves_later_ones_their_answers() {
        let cluster: MockCluster<'_, DefaultProducerContext> = MockCluster::new(1).unwrap();
        cluster.create_topic("events", 1, 1).unwrap();
        let mut settings = ClientConfig::new();
        settings.set("bootstrap.servers", cluster.bootstrap_servers());
        // Both in one batch, so that both are told at once.
        settings.set("linger.ms", "500");
        let (told, answers) = unbounded();
        let producer = PolledProducer::start(&settings, Told(told)).unwrap();
        for number in 0..2 {
            let record =
                BaseRecord::<(), [u8], _>::with_opaque_to("events", Box::new(number)).payload(b"{}".as_slice());
            assert!(producer.send(record).is_ok());
        }
        for number in 0..2 {
            assert_eq!(answers.recv_timeout(Duration::from_secs(30)), Ok(number));
        }
    }
}
