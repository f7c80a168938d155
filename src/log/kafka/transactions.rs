//! A transactional producer (KIP-98): what it sends between `begin` and `commit` takes effect as a whole or not at all. The
//! forwarder of the buffer has one, each replay and purge of dead letters, and each replay from the archive.
//!
//! Every wait is cut into slices, between which the caller can say how it does and be told to stop.

use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rdkafka::{
    ClientConfig, TopicPartitionList,
    config::FromClientConfigAndContext,
    consumer::ConsumerGroupMetadata,
    error::{KafkaError, KafkaResult},
    message::DeliveryResult,
    producer::{BaseProducer, BaseRecord, Producer},
    types::RDKafkaErrorCode as Code,
};

use crate::log::kafka::client::{Context, Deliveries, Role};

const SLICE: Duration = Duration::from_millis(200);
/// For deliveries: short, because a slice is waited for whole.
const SHORT: Duration = Duration::from_millis(1);

/// Says how the caller does; whether to go on.
pub(in crate::log) type Tick<'t> = &'t dyn Fn() -> bool;

/// Why a step was not done.
#[derive(Debug)]
pub(in crate::log) enum Failure {
    /// Another producer has the transactional id.
    Fenced(String),
    /// The records of the transaction have no answer yet.
    Late,
    /// The caller's tick said so.
    Stopped,
    /// Anything else, and how librdkafka explains it. Whether a commit took effect has to be asked.
    Failed { error: KafkaError, words: String },
}

impl Failure {
    /// Whether the transaction has to be aborted before the producer can go on.
    pub fn requires_abort(&self) -> bool {
        matches!(self, Self::Failed { error: KafkaError::Transaction(error), .. } if error.txn_requires_abort())
    }
}

/// One transaction after another, under one transactional id. A record is sent with a number that tells it from others.
pub(in crate::log) struct Transactions {
    producer: BaseProducer<Context<Failed>>,
}

impl Transactions {
    pub fn new(settings: &ClientConfig) -> KafkaResult<Self> {
        Ok(Self { producer: BaseProducer::from_config_and_context(settings, Context::default())? })
    }

    /// Takes the transactional id over from the producers that had it, which are fenced. The transactions that they left
    /// open are committed or aborted when this returns.
    pub fn init(&self, patience: Duration, tick: Tick<'_>) -> Result<(), Failure> {
        self.sliced(patience, tick, |slice| self.producer.init_transactions(slice))
    }

    pub fn begin(&self) -> Result<(), Failure> {
        self.producer.context().0.lock().clear();
        self.producer.begin_transaction().map_err(|error| self.failure(error))
    }

    /// Hands a record to librdkafka, where there is room for it before the deadline.
    pub fn send(&self, mut record: BaseRecord<'_, [u8], [u8], usize>, deadline: Instant) -> KafkaResult<()> {
        loop {
            match self.producer.send(record) {
                Err((KafkaError::MessageProduction(Code::QueueFull), back)) if Instant::now() < deadline => {
                    self.producer.poll(SHORT);
                    record = back;
                }
                sent => return sent.map_err(|(error, _)| error),
            }
        }
    }

    /// Waits until each record has its answer.
    pub fn settle(&self, deadline: Instant, tick: Tick<'_>) -> Result<(), Failure> {
        let mut ticked = Instant::now();
        while self.producer.in_flight_count() > 0 {
            self.producer.poll(SHORT);
            if ticked.elapsed() >= SLICE {
                ticked = Instant::now();
                if !tick() {
                    return Err(Failure::Stopped);
                }
            }
            if Instant::now() >= deadline {
                return Err(Failure::Late);
            }
        }
        Ok(())
    }

    /// The records of this transaction that the brokers did not take, in the order in which that was known.
    pub fn take_failed(&self) -> Vec<(usize, Code)> {
        std::mem::take(&mut self.producer.context().0.lock())
    }

    /// Has the transaction commit these positions of `group`, too.
    pub fn send_offsets(
        &self,
        positions: &TopicPartitionList,
        group: &ConsumerGroupMetadata,
        timeout: Duration,
    ) -> Result<(), Failure> {
        let sent = self.producer.send_offsets_to_transaction(positions, group, timeout);
        sent.map_err(|error| self.failure(error))
    }

    pub fn commit(&self, patience: Duration, tick: Tick<'_>) -> Result<(), Failure> {
        self.sliced(patience, tick, |slice| self.producer.commit_transaction(slice))
    }

    pub fn abort(&self, patience: Duration) -> Result<(), Failure> {
        self.sliced(patience, &|| true, |slice| self.producer.abort_transaction(slice))
    }

    /// Calls `ask` again while it says of itself that it may be, and `patience` is not over.
    fn sliced(
        &self,
        patience: Duration,
        tick: Tick<'_>,
        ask: impl Fn(Duration) -> KafkaResult<()>,
    ) -> Result<(), Failure> {
        let deadline = Instant::now() + patience;
        loop {
            match ask(SLICE) {
                Ok(()) => return Ok(()),
                Err(KafkaError::Transaction(error)) if error.is_retriable() && Instant::now() < deadline => {}
                Err(error) => return Err(self.failure(error)),
            }
            if !tick() {
                return Err(Failure::Stopped);
            }
            // An abort waits until the outcome of each record was taken, which happens here.
            self.producer.poll(SHORT);
        }
    }

    /// That another producer has the transactional id, where librdkafka has found it out.
    pub fn fenced(&self) -> Option<Failure> {
        let (code, reason) = self.producer.client().fatal_error()?;
        is_fence(code).then_some(Failure::Fenced(reason))
    }

    pub fn failure(&self, error: KafkaError) -> Failure {
        if let Some(fenced) = self.fenced() {
            return fenced;
        }
        if error.rdkafka_error_code().is_some_and(is_fence) {
            return Failure::Fenced(error.to_string());
        }
        let words = match self.producer.client().fatal_error() {
            Some((_, reason)) => reason,
            None => format!("{error}{}", self.says()),
        };
        Failure::Failed { error, words }
    }

    /// What librdkafka says of its connections, as the end of a sentence.
    pub fn says(&self) -> String {
        self.producer.context().says()
    }
}

fn is_fence(code: Code) -> bool {
    matches!(code, Code::Fenced | Code::ProducerFenced | Code::InvalidProducerEpoch)
}

/// The role of a transactional producer: the records of the present transaction that the brokers did not take.
#[derive(Default)]
struct Failed(Mutex<Vec<(usize, Code)>>);

impl Role for Failed {}

impl Deliveries for Failed {
    type Sent = usize;

    fn delivered(&self, outcome: &DeliveryResult<'_>, index: usize) {
        if let Err((error, _)) = outcome {
            self.0.lock().push((index, error.rdkafka_error_code().unwrap_or(Code::Fail)));
        }
    }
}
