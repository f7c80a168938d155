//! Dead letters go to the topic `<topic>.dlq`, by an idempotent producer of their own: their key is the letter's id,
//! so a letter written twice is one letter to readers, who keep the first of each key. What became of a letter later is
//! a mark of the same key (`letters`).
//!
//! Value and headers are the record's own; what is known of the failure stands in further headers:
//! `ingestd-reason`, `ingestd-message`, `ingestd-topic`, `ingestd-partition`, `ingestd-offset`, `ingestd-generation`,
//! `ingestd-received`, `ingestd-time` (both milliseconds since 1970), and `ingestd-key` where the record had a key.
//!
//! A record that is larger than the topic of the dead letters takes is kept without its value, headers and key: the
//! header `ingestd-value-omitted` tells the value's size in bytes. The archive has the record whole.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use anyhow::{Context as _, anyhow};
use futures::{
    FutureExt,
    future::{BoxFuture, try_join_all},
};
use parking_lot::Mutex;
use rdkafka::{
    ClientConfig, ClientContext,
    config::{FromClientConfigAndContext, RDKafkaLogLevel},
    error::{KafkaError, RDKafkaErrorCode as Code},
    message::{Header, OwnedHeaders},
    producer::{FutureProducer, FutureRecord, Producer},
};
use tokio::sync::Semaphore;

use crate::{
    config::Config,
    log::{
        dead_letters::{DeadLetter, DeadLetterWriter, Source},
        kafka::{clock, logging, settings},
    },
    position::{Offset, Timestamp},
};

/// The headers that hold what is known of a failure. They stand behind the record's own, the reason first.
pub(super) mod fact {
    pub const REASON: &str = "ingestd-reason";
    pub const MESSAGE: &str = "ingestd-message";
    pub const TOPIC: &str = "ingestd-topic";
    pub const PARTITION: &str = "ingestd-partition";
    pub const OFFSET: &str = "ingestd-offset";
    pub const GENERATION: &str = "ingestd-generation";
    pub const RECEIVED: &str = "ingestd-received";
    pub const TIME: &str = "ingestd-time";
    pub const KEY: &str = "ingestd-key";
    pub const VALUE_OMITTED: &str = "ingestd-value-omitted";
    /// In a mark: what became of the letter.
    pub const MARK: &str = "ingestd-mark";
}

/// For all letters of one call, above the producer's `message.timeout.ms`, so that its answer comes first.
const DEADLINE: Duration = Duration::from_secs(15);

/// How many clients read letters at once while partitions are assigned.
const READERS: usize = 4;

type Letters = FutureProducer<Quiet>;

/// Writes letters to Kafka. Its producer is made with the first letter: most daemons never see one.
pub struct KafkaDeadLetters {
    config: Arc<Config>,
    /// Each partition that is assigned is asked for, by a client of its own.
    readers: Arc<Semaphore>,
    settings: ClientConfig,
    topic: Arc<str>,
    producer: Arc<Mutex<Option<Letters>>>,
}

impl KafkaDeadLetters {
    pub fn new(config: &Config) -> Self {
        Self {
            config: Arc::new(config.clone()),
            readers: Arc::new(Semaphore::new(READERS)),
            settings: settings::dead_letter_producer(config),
            topic: settings::dead_letter_topic(config).into(),
            producer: Arc::default(),
        }
    }

    /// The producer; a new one where there is none yet, or where a fatal error ended the one before.
    fn producer(&self) -> anyhow::Result<Letters> {
        let mut producer = self.producer.lock();
        let made = match producer.take() {
            Some(working) if working.client().fatal_error().is_none() => working,
            failed => {
                if let Some(failed) = failed {
                    // Its drop joins a thread.
                    tokio::task::spawn_blocking(move || drop(failed));
                }
                Letters::from_config_and_context(&self.settings, Quiet)
                    .context("librdkafka refuses to make the producer of dead letters")?
            }
        };
        Ok(producer.insert(made).clone())
    }
}

impl DeadLetterWriter for KafkaDeadLetters {
    fn write(&self, letters: Vec<DeadLetter>) -> BoxFuture<'static, anyhow::Result<()>> {
        let topic = self.topic.clone();
        let producer = match self.producer() {
            Ok(producer) => producer,
            Err(error) => return async { Err(error) }.boxed(),
        };
        // Whoever gives up before there is an outcome drops it, too.
        let lent = Lent { slot: self.producer.clone(), producer: Some(producer) };
        async move {
            let sends = letters.iter().flat_map(|letter| Some(send(lent.producer.as_ref()?, &topic, letter)));
            let outcome = match tokio::time::timeout(DEADLINE, try_join_all(sends)).await {
                Ok(outcome) => outcome.map(drop),
                Err(_) => {
                    Err(anyhow!("Kafka did not acknowledge {} dead letter(s) within {DEADLINE:?}", letters.len()))
                }
            };
            if outcome.is_ok() {
                lent.works();
            }
            outcome.with_context(|| format!("cannot write dead letters to topic {topic}"))
        }
        .boxed()
    }

    fn known(&self, source: Source, from: Offset) -> BoxFuture<'static, anyhow::Result<BTreeSet<Offset>>> {
        let (config, turns) = (self.config.clone(), self.readers.clone());
        async move {
            let _turn = turns.acquire_owned().await?;
            // It polls.
            let known = tokio::task::spawn_blocking(move || super::known(&config, &source, from));
            Ok(known.await??)
        }
        .boxed()
    }
}

/// A producer that is being written with. Dropped before it was found to work it goes, and the next attempt makes a new
/// one: this one may have lost its way to the brokers (see `stranded`).
struct Lent {
    slot: Arc<Mutex<Option<Letters>>>,
    /// `None` when it is given back.
    producer: Option<Letters>,
}

impl Lent {
    fn works(mut self) {
        self.producer = None;
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let Some(producer) = self.producer.take() else { return };
        let failed = self.slot.lock().take();
        // The last one's drop joins a thread, and here may be an arbiter.
        let closing =
            std::thread::Builder::new().name("kafka-retire".to_owned()).spawn(move || drop((failed, producer)));
        if let Err(error) = closing {
            tracing::warn!(%error, "no thread to close the producer of dead letters on, closing it here");
        }
    }
}

async fn send(producer: &Letters, topic: &str, letter: &DeadLetter) -> anyhow::Result<()> {
    // The time of the record itself is one that its topic took, where our clock is wrong. Readers go by `ingestd-time`.
    let sent = match send_at(producer, topic, letter, letter.time).await {
        Err(KafkaError::MessageProduction(code)) if clock::is_refusal(code) => {
            send_at(producer, topic, letter, letter.received).await
        }
        sent => sent,
    };
    sent.with_context(|| format!("dead letter {}", letter.id()))
}

async fn send_at(producer: &Letters, topic: &str, letter: &DeadLetter, time: Timestamp) -> Result<(), KafkaError> {
    match send_as_it_is(producer, topic, letter, time, true).await {
        Err(KafkaError::MessageProduction(Code::MessageSizeTooLarge)) => {
            send_as_it_is(producer, topic, letter, time, false).await
        }
        sent => sent,
    }
}

async fn send_as_it_is(
    producer: &Letters,
    topic: &str,
    letter: &DeadLetter,
    time: Timestamp,
    whole: bool,
) -> Result<(), KafkaError> {
    let (id, value, headers) = record(letter, whole);
    let mut record = FutureRecord::to(topic).key(&id).headers(headers).timestamp(time.0);
    if let Some(value) = &value {
        record = record.payload(value);
    }
    producer.send(record, DEADLINE).await.map(drop).map_err(|(error, _)| error)
}

/// A letter as a record: its key, value and headers. `whole`: as it is; otherwise without what makes it large.
pub(in crate::log) fn record(letter: &DeadLetter, whole: bool) -> (String, Option<Vec<u8>>, OwnedHeaders) {
    if whole {
        return (letter.id(), letter.value.clone(), headers(letter));
    }
    let (size, facts) = without_value(letter);
    (letter.id(), None, headers(&facts).insert(Header { key: fact::VALUE_OMITTED, value: Some(&size) }))
}

/// The letter without what makes it large, and the size of its value.
fn without_value(letter: &DeadLetter) -> (String, DeadLetter) {
    let size = letter.value.as_ref().map_or(0, Vec::len).to_string();
    (size, DeadLetter { key: None, value: None, headers: Vec::new(), ..letter.clone() })
}

fn headers(letter: &DeadLetter) -> OwnedHeaders {
    let mut headers = OwnedHeaders::new_with_capacity(letter.headers.len() + 9);
    for (key, value) in &letter.headers {
        headers = headers.insert(Header { key, value: value.as_deref() });
    }
    let facts = [
        (fact::REASON, letter.reason.clone()),
        (fact::MESSAGE, letter.message.clone()),
        (fact::TOPIC, letter.topic.clone()),
        (fact::PARTITION, letter.partition.to_string()),
        (fact::OFFSET, letter.offset.to_string()),
        (fact::GENERATION, letter.generation.to_string()),
        (fact::RECEIVED, letter.received.0.to_string()),
        (fact::TIME, letter.time.0.to_string()),
    ];
    for (key, value) in &facts {
        headers = headers.insert(Header { key, value: Some(value) });
    }
    match &letter.key {
        Some(key) => headers.insert(Header { key: fact::KEY, value: Some(key) }),
        None => headers,
    }
}

/// Errors come back with each letter; the rest is log.
#[derive(Clone)]
struct Quiet;

impl ClientContext for Quiet {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        logging::forward(level, facility, line);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(target: "rdkafka", %error, reason, "the producer of dead letters reports an error");
    }
}
