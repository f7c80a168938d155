//! Dead letters go to the topic `<topic>.dlq`, by an idempotent producer of their own: their key is the letter's id,
//! so a letter written twice is one letter to readers, who keep the first of each key.
//!
//! Value and headers are the record's own; what is known of the failure stands in further headers:
//! `ingestd-reason`, `ingestd-message`, `ingestd-topic`, `ingestd-partition`, `ingestd-offset`, `ingestd-generation`,
//! `ingestd-received`, `ingestd-time` (both milliseconds since 1970), and `ingestd-key` where the record had a key.
//!
//! A record that is larger than the topic of the dead letters takes is kept without its value, headers and key: the
//! header `ingestd-value-omitted` tells the value's size in bytes. The archive has the record whole.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, anyhow};
use futures::{
    FutureExt,
    future::{BoxFuture, try_join_all},
};
use rdkafka::{
    ClientConfig, ClientContext,
    config::{FromClientConfigAndContext, RDKafkaLogLevel},
    error::{KafkaError, RDKafkaErrorCode as Code},
    message::{Header, OwnedHeaders},
    producer::{FutureProducer, FutureRecord, Producer},
};

use crate::{
    config::Config,
    dlq::{DeadLetter, DeadLetterWriter},
    queue::kafka::{logging, settings},
};

/// For all letters of one call, above the producer's `message.timeout.ms`, so that its answer comes first.
const DEADLINE: Duration = Duration::from_secs(15);

/// The header that tells the size of a value that was too large to be kept.
const OMITTED: &str = "ingestd-value-omitted";

type Letters = FutureProducer<Quiet>;

/// Writes letters to Kafka. Its producer is made with the first letter: most daemons never see one.
pub struct KafkaDeadLetters {
    settings: ClientConfig,
    topic: Arc<str>,
    producer: Mutex<Option<Letters>>,
}

impl KafkaDeadLetters {
    pub fn new(config: &Config) -> Self {
        Self {
            settings: settings::dead_letter_producer(config),
            topic: settings::dead_letter_topic(config).into(),
            producer: Mutex::new(None),
        }
    }

    /// The producer; a new one where there is none yet, or where a fatal error ended the one before.
    fn producer(&self) -> anyhow::Result<Letters> {
        let mut producer = self.producer.lock().unwrap_or_else(PoisonError::into_inner);
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
        async move {
            let sends = letters.iter().map(|letter| send(&producer, &topic, letter));
            match tokio::time::timeout(DEADLINE, try_join_all(sends)).await {
                Ok(outcome) => outcome.map(drop),
                Err(_) => {
                    Err(anyhow!("Kafka did not acknowledge {} dead letter(s) within {DEADLINE:?}", letters.len()))
                }
            }
            .with_context(|| format!("cannot write dead letters to topic {topic}"))
        }
        .boxed()
    }
}

async fn send(producer: &Letters, topic: &str, letter: &DeadLetter) -> anyhow::Result<()> {
    let sent = match send_as_it_is(producer, topic, letter, true).await {
        Err(KafkaError::MessageProduction(Code::MessageSizeTooLarge)) => {
            send_as_it_is(producer, topic, letter, false).await
        }
        sent => sent,
    };
    sent.with_context(|| format!("dead letter {}", letter.id()))
}

async fn send_as_it_is(producer: &Letters, topic: &str, letter: &DeadLetter, whole: bool) -> Result<(), KafkaError> {
    let (id, value, headers) = record(letter, whole);
    let mut record = FutureRecord::to(topic).key(&id).headers(headers).timestamp(letter.time.0);
    if let Some(value) = &value {
        record = record.payload(value);
    }
    producer.send(record, DEADLINE).await.map(drop).map_err(|(error, _)| error)
}

/// A letter as a record: its key, value and headers. `whole`: as it is; otherwise without what makes it large.
pub(in crate::queue) fn record(letter: &DeadLetter, whole: bool) -> (String, Option<Vec<u8>>, OwnedHeaders) {
    if whole {
        return (letter.id(), letter.value.clone(), headers(letter));
    }
    let (size, facts) = without_value(letter);
    (letter.id(), None, headers(&facts).insert(Header { key: OMITTED, value: Some(&size) }))
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
        ("ingestd-reason", letter.reason.clone()),
        ("ingestd-message", letter.message.clone()),
        ("ingestd-topic", letter.topic.clone()),
        ("ingestd-partition", letter.partition.to_string()),
        ("ingestd-offset", letter.offset.to_string()),
        ("ingestd-generation", letter.generation.to_string()),
        ("ingestd-received", letter.received.0.to_string()),
        ("ingestd-time", letter.time.0.to_string()),
    ];
    for (key, value) in &facts {
        headers = headers.insert(Header { key, value: Some(value) });
    }
    match &letter.key {
        Some(key) => headers.insert(Header { key: "ingestd-key", value: Some(key) }),
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
