//! The transactions that close letters.

use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use rdkafka::{
    ClientContext,
    config::{FromClientConfigAndContext, RDKafkaLogLevel},
    error::KafkaError,
    message::{DeliveryResult, Header, OwnedHeaders},
    producer::{BaseRecord, Producer, ProducerContext, ThreadedProducer},
    types::RDKafkaErrorCode as Code,
};

use crate::{
    config::Config,
    log::{
        dead_letters::{DeadLetter, LettersError, State, replay::Admitted},
        kafka::{dead_letters::writer::fact, logging, settings},
    },
    position::Timestamp,
};

/// For one step of a transaction; the broker ends one that is open for longer than `transaction.timeout.ms`.
const DEADLINE: Duration = Duration::from_secs(20);
const FULL_PAUSE: Duration = Duration::from_millis(5);

/// The right to close letters, until somebody else takes it.
pub(super) struct Transactions {
    producer: ThreadedProducer<Deliveries>,
    events: String,
    letters: String,
}

/// A letter to close, and the record that goes to the log with it.
#[derive(Clone, Copy)]
pub(super) struct Closing<'c> {
    pub letter: &'c DeadLetter,
    pub record: Option<&'c Admitted>,
}

pub(super) enum Outcome {
    Done,
    /// Kafka does not take what belongs to this letter; nothing of the transaction took effect.
    Refused {
        index: usize,
        code: Code,
    },
}

impl Transactions {
    /// Fences everybody who had the right before; their transactions have ended when this returns.
    pub fn begin(config: &Config) -> Result<Self, LettersError> {
        let settings = settings::dead_letter_transactions(config);
        let producer = ThreadedProducer::from_config_and_context(&settings, Deliveries::default())
            .map_err(|error| LettersError::Invalid(format!("queue.kafka: no producer can be made: {error}")))?;
        let events = config.queue.topic.clone();
        let transactions = Self { producer, events, letters: settings::dead_letter_topic(config) };
        transactions.retried("begin", || transactions.producer.init_transactions(DEADLINE))?;
        Ok(transactions)
    }

    /// Closes all of them, and appends their records, or does nothing.
    pub fn close(&self, closings: &[Closing<'_>], state: State) -> Result<Outcome, LettersError> {
        self.context().failed().take();
        self.producer.begin_transaction().map_err(|error| self.explain("begin", &error))?;
        let sent = closings.iter().enumerate().try_for_each(|(index, closing)| {
            if let Some(record) = closing.record {
                self.send(&self.events, record.key.as_deref(), &record.value, &record.headers, record.received, index)?;
            }
            self.send_mark(closing.letter, state, index)
        });
        let sent = sent.and_then(|()| self.producer.flush(DEADLINE));
        let refused = self.context().failed().take();
        if let Some((index, code)) = refused {
            self.abort()?;
            return Ok(Outcome::Refused { index, code });
        }
        if let Err(error) = sent {
            let explained = self.explain("write", &error);
            self.abort()?;
            return Err(explained);
        }
        self.retried("commit", || self.producer.commit_transaction(DEADLINE))?;
        Ok(Outcome::Done)
    }

    fn send_mark(&self, letter: &DeadLetter, state: State, index: usize) -> Result<(), KafkaError> {
        let text = |value: String| Some(value.into_bytes());
        // The reason first: readers look for our facts from there.
        let headers = [
            (fact::REASON, text(letter.reason.clone())),
            (fact::MARK, text(state.as_str().to_owned())),
            (fact::PARTITION, text(letter.partition.to_string())),
            (fact::TIME, text(letter.time.0.to_string())),
        ];
        let headers = headers.map(|(name, value)| (name.to_owned(), value));
        let (id, now) = (letter.id(), Timestamp::now());
        // With a value, so that a compacted topic keeps it: it is no tombstone.
        self.send(&self.letters, Some(id.as_bytes()), state.as_str().as_bytes(), &headers, now, index)
    }

    fn send(
        &self,
        topic: &str,
        key: Option<&[u8]>,
        value: &[u8],
        headers: &[(String, Option<Vec<u8>>)],
        time: Timestamp,
        index: usize,
    ) -> Result<(), KafkaError> {
        let deadline = Instant::now() + DEADLINE;
        let own = headers.iter().fold(OwnedHeaders::new_with_capacity(headers.len()), |own, (key, value)| {
            own.insert(Header { key, value: value.as_deref() })
        });
        let mut record =
            BaseRecord::<[u8], [u8], usize>::with_opaque_to(topic, index).payload(value).timestamp(time.0).headers(own);
        if let Some(key) = key {
            record = record.key(key);
        }
        loop {
            match self.producer.send(record) {
                Ok(()) => return Ok(()),
                Err((KafkaError::MessageProduction(Code::QueueFull), full)) if Instant::now() < deadline => {
                    record = full;
                    std::thread::sleep(FULL_PAUSE);
                }
                Err((error, _)) => {
                    if let KafkaError::MessageProduction(code) = error {
                        self.context().failed().get_or_insert((index, code));
                    }
                    return Err(error);
                }
            }
        }
    }

    fn context(&self) -> &Deliveries {
        self.producer.context()
    }

    fn abort(&self) -> Result<(), LettersError> {
        self.retried("abort", || self.producer.abort_transaction(DEADLINE))
    }

    /// A step that says of itself that it may be tried again, is.
    fn retried(&self, what: &str, step: impl Fn() -> Result<(), KafkaError>) -> Result<(), LettersError> {
        let deadline = Instant::now() + DEADLINE;
        loop {
            match step() {
                Ok(()) => return Ok(()),
                Err(KafkaError::Transaction(error)) if error.is_retriable() && Instant::now() < deadline => {}
                Err(KafkaError::Transaction(error)) if error.txn_requires_abort() && what != "abort" => {
                    let explained = self.explain(what, &KafkaError::Transaction(error));
                    self.abort()?;
                    return Err(explained);
                }
                Err(error) => return Err(self.explain(what, &error)),
            }
        }
    }

    fn explain(&self, what: &str, error: &KafkaError) -> LettersError {
        let fenced = [Code::Fenced, Code::ProducerFenced, Code::InvalidProducerEpoch];
        let fatal = self.producer.client().fatal_error().map(|(code, _)| code);
        let code = error.rdkafka_error_code();
        if fenced.iter().any(|fenced| Some(*fenced) == code || Some(*fenced) == fatal) {
            return LettersError::Unavailable(
                "another operation on the dead letters of this topic took over: run it again, what was done is not \
                 done twice"
                    .to_owned(),
            );
        }
        LettersError::Unavailable(format!("Kafka does not {what} the transaction: {error}; run it again"))
    }
}

/// What was not delivered first: its letter's index in the transaction, and why.
#[derive(Default)]
struct Deliveries(Mutex<Option<(usize, Code)>>);

impl Deliveries {
    fn failed(&self) -> MutexGuard<'_, Option<(usize, Code)>> {
        self.0.lock()
    }
}

impl ClientContext for Deliveries {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        logging::forward(level, facility, line);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(target: "rdkafka", %error, reason, "the producer that replays dead letters reports an error");
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = usize;

    fn delivery(&self, delivery: &DeliveryResult<'_>, index: usize) {
        if let Err((KafkaError::MessageProduction(code), _)) = delivery {
            self.failed().get_or_insert((index, *code));
        }
    }
}
