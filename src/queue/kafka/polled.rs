//! A producer, and the thread on which it hears what became of its records.

use std::{
    ops::Deref,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use anyhow::Context as _;
use rdkafka::{
    ClientConfig,
    config::FromClientConfigAndContext,
    producer::{BaseProducer, Producer, ProducerContext, PurgeConfig},
};

/// The longest wait for an event. A poll spins through its last millisecond, because rdkafka rounds what is left of it
/// down to none: with the 100 ms of its `ThreadedProducer` an idle daemon took 0.9 % of a core for that. It is also how
/// long the end of one takes.
const POLL: Duration = Duration::from_secs(4);

/// As rdkafka's `ThreadedProducer`, for one owner. Its drop answers what is not answered, and blocks for [`POLL`] at most
/// besides.
pub(super) struct PolledProducer<C: ProducerContext + 'static> {
    producer: Arc<BaseProducer<C>>,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl<C: ProducerContext + 'static> PolledProducer<C> {
    /// # Errors
    /// When librdkafka refuses the settings, or there is no thread to be had.
    pub fn start(settings: &ClientConfig, context: C) -> anyhow::Result<Self> {
        let producer = BaseProducer::from_config_and_context(settings, context)
            .context("queue.kafka: librdkafka refuses to make a producer; see queue.kafka.properties")?;
        let (producer, ended) = (Arc::new(producer), Arc::new(AtomicBool::new(false)));
        let (polled, over) = (producer.clone(), ended.clone());
        let thread = std::thread::Builder::new()
            .name("kafka-producer".to_owned())
            .spawn(move || {
                while !over.load(Ordering::Acquire) {
                    polled.poll(POLL);
                }
            })
            .context("cannot start the thread that polls the Kafka producer")?;
        Ok(Self { producer, ended, thread: Some(thread) })
    }

    /// For whoever asks the brokers by it; to be dropped before this.
    pub fn shared(&self) -> Arc<BaseProducer<C>> {
        self.producer.clone()
    }
}

impl<C: ProducerContext + 'static> Deref for PolledProducer<C> {
    type Target = BaseProducer<C>;

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
            // A panic was reported by its thread.
            let _ = thread.join();
        }
    }
}
