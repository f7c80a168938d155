//! The records of `<topic>.dlq`, where dead letters stand: how they are written, and how they are read.
//!
//! A letter is written by an idempotent producer of its own. Its key is the letter's id, so a letter written twice is one
//! letter to readers, who keep the first of each key. What became of a letter later is a mark of the same key. That is all
//! that the ingestor does for what it quarantines: no transaction, no group, nothing is read.
//!
//! Value and headers are the record's own; what is known of the failure stands in further headers:
//! `ingestd-reason`, `ingestd-message`, `ingestd-topic`, `ingestd-partition`, `ingestd-offset`, `ingestd-generation`,
//! `ingestd-received`, `ingestd-time` (both milliseconds since 1970), and `ingestd-record-key` where the record had a key (`ingestd-key` in letters of
//! before, which of a record is the name of its sender's key). What was no record has a negative offset there; readers that know of none such keep it, and leave it alone.
//!
//! A record that is larger than the topic of the dead letters takes is kept without its value, headers and key: the
//! header `ingestd-value-omitted` tells the value's size in bytes. The archive has the record whole. What was no record stands
//! nowhere else, and is kept whole or not at all.
//!
//! A reader is in no group's way: it assigns partitions itself and commits nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow};
use bytes::Bytes;
use futures::{
    FutureExt,
    future::{BoxFuture, try_join_all},
};
use parking_lot::Mutex;
use rdkafka::{
    ClientConfig, Message as _, Offset as KafkaOffset,
    consumer::{BaseConsumer, Consumer},
    error::{KafkaError, KafkaResult},
    message::{BorrowedMessage, OwnedHeaders},
    producer::{FutureProducer, FutureRecord, Producer},
    types::RDKafkaErrorCode as Code,
};
use tokio::sync::Semaphore;

use super::Chosen;
use crate::{
    config::Config,
    log::{
        dead_letters::{DeadLetter, DeadLetterWriter, LettersError, Origin, Quarantine, Source, State},
        kafka::{
            client::{self, Context, list, owned_headers, topic_in},
            fetched::headers,
            probe::is_refusal,
            settings,
        },
    },
    position::{Offset, Partition, Timestamp},
};

/// The headers that hold what is known of a failure. They stand behind the record's own, the reason first.
mod fact {
    pub const REASON: &str = "ingestd-reason";
    pub const MESSAGE: &str = "ingestd-message";
    pub const TOPIC: &str = "ingestd-topic";
    pub const PARTITION: &str = "ingestd-partition";
    pub const OFFSET: &str = "ingestd-offset";
    pub const GENERATION: &str = "ingestd-generation";
    pub const RECEIVED: &str = "ingestd-received";
    pub const TIME: &str = "ingestd-time";
    pub const RECORD_KEY: &str = "ingestd-record-key";
    /// The same in letters of before.
    pub const KEY: &str = "ingestd-key";
    pub const VALUE_OMITTED: &str = "ingestd-value-omitted";
    /// In a mark: what became of the letter.
    pub const MARK: &str = "ingestd-mark";
}

/// For all letters of one call, above the producer's `message.timeout.ms`, so that its answer comes first.
const WRITING: Duration = Duration::from_secs(15);

/// Letters of one call that are on their way at once: what they take besides their bytes is bounded.
const AT_ONCE: usize = 500;

/// How many clients read letters at once while partitions are assigned.
const READERS: usize = 4;

type Letters = FutureProducer<Context>;

/// Writes letters to Kafka. Its producer is made with the first letter: most daemons never see one.
pub struct KafkaDeadLetters {
    config: Arc<Config>,
    /// Each partition that is assigned is asked for, by a client of its own.
    readers: Arc<Semaphore>,
    settings: ClientConfig,
    topic: Arc<str>,
    /// Bytes of the largest letter.
    largest: usize,
    producer: Arc<Mutex<Option<Arc<Letters>>>>,
}

impl KafkaDeadLetters {
    pub fn new(config: &Config) -> Self {
        Self {
            config: Arc::new(config.clone()),
            readers: Arc::new(Semaphore::new(READERS)),
            settings: settings::dead_letter_producer(config),
            topic: settings::dead_letter_topic(config).into(),
            largest: usize::try_from(settings::dead_letter_limit(config)).unwrap_or(usize::MAX),
            producer: Arc::default(),
        }
    }

    /// The producer; a new one where there is none yet, or where a fatal error ended the one before.
    fn producer(&self) -> anyhow::Result<Arc<Letters>> {
        let mut producer = self.producer.lock();
        let made = match producer.take() {
            Some(working) if working.client().fatal_error().is_none() => working,
            failed => {
                if let Some(failed) = failed {
                    close(failed);
                }
                let made = client::open::<Letters>(&self.settings)
                    .context("librdkafka refuses to make the producer of dead letters")?;
                Arc::new(made)
            }
        };
        Ok(producer.insert(made).clone())
    }

    /// Sends them all, and says which ones are not kept.
    fn send(&self, letters: Vec<DeadLetter>) -> BoxFuture<'static, anyhow::Result<Vec<usize>>> {
        let (topic, largest) = (self.topic.clone(), self.largest);
        let producer = match self.producer() {
            Ok(producer) => producer,
            Err(error) => return async { Err(error) }.boxed(),
        };
        // A caller that gives up before there is an outcome drops it, too.
        let lent = Lent { slot: self.producer.clone(), producer: Some(producer), works: false };
        async move {
            let sending = async {
                let Some(producer) = &lent.producer else { return Ok(Vec::new()) };
                Target { producer, topic: &topic, largest }.take(&letters).await
            };
            let outcome = match tokio::time::timeout(WRITING, sending).await {
                Ok(outcome) => outcome,
                Err(_) => Err(anyhow!("Kafka did not acknowledge {} dead letter(s) within {WRITING:?}", letters.len())),
            };
            lent.give_back(outcome.is_ok());
            outcome.with_context(|| format!("cannot write dead letters to topic {topic}"))
        }
        .boxed()
    }
}

impl Quarantine for KafkaDeadLetters {
    fn keep(&self, letters: Vec<DeadLetter>) -> BoxFuture<'static, anyhow::Result<Vec<usize>>> {
        self.send(letters)
    }
}

impl DeadLetterWriter for KafkaDeadLetters {
    /// Those of records are all kept, one way or the other.
    fn write(&self, letters: Vec<DeadLetter>) -> BoxFuture<'static, anyhow::Result<()>> {
        self.send(letters).map(|sent| sent.map(drop)).boxed()
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

/// A producer that is being written with, by several at a time. Dropped before it was found to work it goes, and the next
/// attempt makes a new one: this one may have lost its way to the brokers (see [`client::Reconnect`]).
struct Lent {
    slot: Arc<Mutex<Option<Arc<Letters>>>>,
    /// `None` once it is dropped.
    producer: Option<Arc<Letters>>,
    works: bool,
}

impl Lent {
    fn give_back(mut self, works: bool) {
        self.works = works;
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let Some(producer) = self.producer.take() else { return };
        if !self.works {
            // Another one's, which was made since, stays.
            drop(self.slot.lock().take_if(|held| Arc::ptr_eq(held, &producer)));
        }
        close(producer);
    }
}

/// Lets a producer go. The last one's drop joins a thread, and here may be an arbiter.
fn close(producer: Arc<Letters>) {
    let Some(last) = Arc::into_inner(producer) else { return };
    let closing = std::thread::Builder::new().name("kafka-retire".to_owned()).spawn(move || drop(last));
    if let Err(error) = closing {
        tracing::warn!(%error, "no thread to close the producer of dead letters on, closing it here");
    }
}

/// Where letters go.
struct Target<'t> {
    producer: &'t Letters,
    topic: &'t str,
    /// Bytes of the largest letter.
    largest: usize,
}

impl Target<'_> {
    /// Returns the indexes of those that are not kept.
    async fn take(&self, letters: &[DeadLetter]) -> anyhow::Result<Vec<usize>> {
        let mut left = Vec::new();
        let mut first = 0;
        for part in letters.chunks(AT_ONCE) {
            let kept = try_join_all(part.iter().map(|letter| self.send(letter))).await?;
            left.extend((first..).zip(kept).filter(|(_, kept)| !kept).map(|(index, _)| index));
            first += part.len();
        }
        // A broker may have meant the batch that a letter was in. Alone it has one of its own.
        let mut too_large = Vec::new();
        for index in left {
            if !self.send(&letters[index]).await? {
                too_large.push(index);
            }
        }
        Ok(too_large)
    }

    /// Whether it is kept: what was no record stands there whole, or is too large.
    async fn send(&self, letter: &DeadLetter) -> anyhow::Result<bool> {
        let is_record = letter.origin.offset().is_some();
        let (mut time, mut whole) = (letter.time, true);
        if !is_record && letter.value.as_ref().is_some_and(|value| value.len() > self.largest) {
            return Ok(false);
        }
        loop {
            let (id, value, headers) = record(letter, whole);
            let mut record = FutureRecord::<String, [u8]>::to(self.topic).key(&id).headers(headers).timestamp(time.0);
            record.payload = value.as_deref();
            match self.producer.send(record, WRITING).await.map_err(|(error, _)| error) {
                Err(KafkaError::MessageProduction(Code::MessageSizeTooLarge)) if whole => {
                    if !is_record {
                        return Ok(false);
                    }
                    whole = false;
                }
                // The time of the record itself is one that its topic took, where our clock is wrong. Readers go by
                // `ingestd-time`.
                Err(KafkaError::MessageProduction(code)) if is_refusal(code) && time != letter.received => {
                    (time, whole) = (letter.received, true);
                }
                sent => return sent.map(|_| true).with_context(|| format!("dead letter {}", letter.id())),
            }
        }
    }
}

/// A letter as a record: its key, value and headers. `whole`: as it is; otherwise without what makes it large.
pub(in crate::log) fn record(letter: &DeadLetter, whole: bool) -> (String, Option<Bytes>, OwnedHeaders) {
    let own = letter.headers.iter().map(|(name, value)| (name.as_str(), value.as_deref())).filter(|_| whole);
    let facts = [
        (fact::REASON, letter.reason.clone()),
        (fact::MESSAGE, letter.message.clone()),
        (fact::TOPIC, letter.topic.clone()),
        (fact::PARTITION, letter.partition.to_string()),
        (fact::OFFSET, letter.origin.stored().to_string()),
        (fact::GENERATION, letter.generation.to_string()),
        (fact::RECEIVED, letter.received.0.to_string()),
        (fact::TIME, letter.time.0.to_string()),
    ];
    let facts = facts.iter().map(|(name, value)| (*name, Some(value.as_bytes())));
    let key = letter.key.as_deref().filter(|_| whole).map(|key| (fact::RECORD_KEY, Some(key)));
    let size = letter.value.as_ref().map_or(0, Bytes::len).to_string();
    let omitted = (!whole).then_some((fact::VALUE_OMITTED, Some(size.as_bytes())));
    let headers = owned_headers(own.chain(facts).chain(key).chain(omitted));
    (letter.id(), letter.value.clone().filter(|_| whole), headers)
}

/// The headers of a letter's mark: what became of it, and what filters look at.
pub(super) fn mark_headers(letter: &DeadLetter, state: State) -> OwnedHeaders {
    let facts = [
        // First: readers look for our facts from there.
        (fact::REASON, letter.reason.clone()),
        (fact::MARK, state.as_str().to_owned()),
        (fact::PARTITION, letter.partition.to_string()),
        (fact::TIME, letter.time.0.to_string()),
    ];
    owned_headers(facts.iter().map(|(name, value)| (*name, Some(value.as_bytes()))))
}

/// One question to the brokers.
const DEADLINE: Duration = Duration::from_secs(10);
/// The time without a record after which the brokers count as away.
const SILENCE: Duration = Duration::from_secs(15);
const POLL: Duration = Duration::from_millis(200);

/// Where a record stands in `<topic>.dlq`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub partition: i32,
    pub offset: i64,
}

/// What filters look at; letters and their marks both have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Facts {
    pub time: Timestamp,
    pub reason: String,
    pub partition: Partition,
}

/// A record of the topic that is a letter, or a letter's mark.
#[derive(Debug)]
pub(super) struct Seen {
    pub id: String,
    pub place: Place,
    pub facts: Facts,
    pub mark: Option<State>,
}

pub(super) struct Reader {
    consumer: BaseConsumer<Context>,
    topic: String,
    brokers: String,
    partitions: Vec<i32>,
}

impl Reader {
    pub fn open(config: &Config) -> Result<Self, LettersError> {
        let topic = settings::dead_letter_topic(config);
        let brokers = config.queue.kafka.brokers.clone();
        let settings = settings::dead_letter_reader(config);
        let consumer: BaseConsumer<Context> = client::open(&settings)
            .map_err(|error| LettersError::Invalid(format!("queue.kafka: no consumer can be made: {error}")))?;
        let mut reader = Self { consumer, topic, brokers, partitions: Vec::new() };
        let metadata = reader.consumer.fetch_metadata(Some(&reader.topic), DEADLINE);
        let metadata = metadata.map_err(|error| reader.unavailable(&error))?;
        let found = topic_in(&metadata, &reader.topic);
        let found = found.map_err(|code| reader.unavailable(&KafkaError::MetadataFetch(code)))?;
        let Some(found) = found else {
            return Err(LettersError::Invalid(format!(
                "topic {} does not exist at {}: a daemon that aggregates makes it at its start",
                reader.topic, reader.brokers
            )));
        };
        reader.partitions = found.partitions().iter().map(|partition| partition.id()).collect();
        Ok(reader)
    }

    fn unavailable(&self, error: &KafkaError) -> LettersError {
        let said = self.consumer.context().last_error().map(|said| format!(" ({said})")).unwrap_or_default();
        LettersError::Unavailable(format!("Kafka at {}: topic {}: {error}{said}", self.brokers, self.topic))
    }

    fn late(&self) -> LettersError {
        LettersError::Unavailable(format!(
            "Kafka at {}: reading topic {} took too long: narrow it, or try again",
            self.brokers, self.topic
        ))
    }

    /// Whether there is nothing to read. The first partition that holds anything is enough: a later one may have no leader.
    pub fn is_empty(&self) -> Result<bool, LettersError> {
        for partition in &self.partitions {
            if self.end(*partition)?.is_some() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Where each partition ends that holds anything.
    fn ends(&self) -> Result<BTreeMap<i32, i64>, LettersError> {
        let end = |partition: &i32| Ok(self.end(*partition)?.map(|end| (*partition, end)));
        self.partitions.iter().filter_map(|partition| end(partition).transpose()).collect()
    }

    fn end(&self, partition: i32) -> Result<Option<i64>, LettersError> {
        let watermarks = self.consumer.fetch_watermarks(&self.topic, partition, DEADLINE);
        let (start, end) = watermarks.map_err(|error| self.unavailable(&error))?;
        Ok((start < end).then_some(end))
    }

    /// The timestamp of the first record of another topic at or beyond an offset; `None` where there is none yet.
    pub fn received(
        &self,
        topic: &str,
        partition: Partition,
        from: Offset,
        deadline: Instant,
    ) -> Result<Option<Timestamp>, LettersError> {
        let mut found = None;
        self.read(topic, &[(partition.0, KafkaOffset::Offset(from.as_i64()))], deadline, |event| {
            if let Event::Record(message) = &event {
                found = Some(Timestamp(message.timestamp().to_millis().unwrap_or_default()));
            }
            Ok(matches!(event, Event::Nothing))
        })?;
        Ok(found)
    }

    /// Where each partition has the first record of this time or a later one.
    fn at(&self, time: Timestamp) -> Result<Vec<(i32, KafkaOffset)>, LettersError> {
        let times = self.partitions.iter().map(|partition| (*partition, KafkaOffset::Offset(time.0.max(0))));
        let found = list(&self.topic, times).and_then(|times| self.consumer.offsets_for_times(times, DEADLINE));
        let found = found.map_err(|error| self.unavailable(&error))?;
        let elements = found.elements();
        let places = elements.iter().map(|element| {
            element.error()?;
            Ok((element.partition(), element.offset()))
        });
        places.collect::<KafkaResult<_>>().map_err(|error| self.unavailable(&error))
    }

    /// Hands on each letter and mark, of each partition in its order, up to where the topic ended when it began; those
    /// before `since` are passed over.
    pub fn scan(
        &self,
        since: Option<Timestamp>,
        deadline: Instant,
        mut take: impl FnMut(&Seen) -> Result<(), LettersError>,
    ) -> Result<(), LettersError> {
        let starts = match since {
            Some(time) => self.at(time)?,
            None => self.partitions.iter().map(|partition| (*partition, KafkaOffset::Beginning)).collect(),
        };
        let mut ends = self.ends()?;
        self.read(&self.topic, &starts, deadline, |event| {
            match event {
                // All that was there when the fetch was answered is read; the last offsets may hold no record.
                Event::End(partition) => {
                    ends.remove(&partition);
                }
                Event::Record(message) => {
                    if let Some(seen) = seen(message) {
                        take(&seen)?;
                    }
                    if ends.get(&message.partition()).is_some_and(|end| message.offset() + 1 >= *end) {
                        ends.remove(&message.partition());
                    }
                }
                Event::Nothing => {}
            }
            Ok(!ends.is_empty())
        })
    }

    /// Reads the letters at these places; one that is gone is passed over.
    pub fn visit(
        &self,
        chosen: Vec<Chosen>,
        deadline: Instant,
        mut take: impl FnMut(&Chosen, DeadLetter, Option<u64>) -> Result<(), LettersError>,
    ) -> Result<(), LettersError> {
        // One partition after the other, so that what a caller collects is about as large as it asked for.
        let mut places: BTreeMap<i32, BTreeMap<i64, Chosen>> = BTreeMap::new();
        for letter in chosen {
            places.entry(letter.place.partition).or_default().insert(letter.place.offset, letter);
        }
        for (partition, mut wanted) in places {
            let Some(first) = wanted.keys().next().copied() else { continue };
            self.read(&self.topic, &[(partition, KafkaOffset::Offset(first))], deadline, |event| {
                match event {
                    Event::End(_) => wanted.clear(),
                    Event::Record(message) => {
                        if let Some(chosen) = wanted.remove(&message.offset())
                            && let Some((letter, omitted)) = letter(message)
                        {
                            take(&chosen, letter, omitted)?;
                        }
                        while wanted.first_key_value().is_some_and(|(offset, _)| *offset <= message.offset()) {
                            wanted.pop_first();
                        }
                    }
                    Event::Nothing => {}
                }
                Ok(!wanted.is_empty())
            })?;
        }
        Ok(())
    }

    /// Reads from these offsets for as long as `take` says so.
    fn read(
        &self,
        topic: &str,
        from: &[(i32, KafkaOffset)],
        deadline: Instant,
        mut take: impl FnMut(Event<'_, '_>) -> Result<bool, LettersError>,
    ) -> Result<(), LettersError> {
        let assigned = list(topic, from.iter().copied()).and_then(|list| self.consumer.assign(&list));
        assigned.map_err(|error| self.unavailable(&error))?;
        let mut heard = Instant::now();
        let mut last_error = None;
        let mut more = take(Event::Nothing)?;
        while more {
            more = match self.consumer.poll(POLL) {
                Some(Ok(message)) => {
                    heard = Instant::now();
                    take(Event::Record(&message))?
                }
                Some(Err(KafkaError::PartitionEOF(partition))) => {
                    heard = Instant::now();
                    take(Event::End(partition))?
                }
                Some(Err(error)) => {
                    last_error = Some(error);
                    true
                }
                None => true,
            };
            if more && heard.elapsed() >= SILENCE {
                return Err(last_error.map_or_else(|| self.late(), |error| self.unavailable(&error)));
            }
            if more && Instant::now() >= deadline {
                return Err(self.late());
            }
        }
        self.consumer.unassign().map_err(|error| self.unavailable(&error))
    }
}

enum Event<'e, 'm> {
    Record(&'e BorrowedMessage<'m>),
    End(i32),
    Nothing,
}

/// Where our facts begin behind the record's own headers, which may be called anything.
fn facts_at<N: AsRef<str>, V>(headers: &[(N, V)]) -> Option<usize> {
    headers.iter().rposition(|(name, _)| name.as_ref() == fact::REASON)
}

/// The record's key, of a letter's facts.
pub(super) fn record_key<'h, N: AsRef<str>>(facts: &[(N, Option<&'h [u8]>)]) -> Option<&'h [u8]> {
    let named = |wanted: &str| facts.iter().find(|(name, _)| name.as_ref() == wanted).and_then(|(_, value)| *value);
    named(fact::RECORD_KEY).or_else(|| named(fact::KEY))
}

/// `None` for a record that is neither a letter nor a mark.
fn seen(message: &BorrowedMessage<'_>) -> Option<Seen> {
    let headers = headers(message);
    let facts = &headers[facts_at(&headers)?..];
    let text = |wanted: &str| {
        let found = facts.iter().find(|(name, _)| name == wanted);
        found.and_then(|(_, value)| std::str::from_utf8((*value)?).ok())
    };
    let mark = match text(fact::MARK) {
        Some("purged") => Some(State::Purged),
        Some("replayed") => Some(State::Replayed),
        _ => {
            text(fact::OFFSET)?;
            None
        }
    };
    Some(Seen {
        id: std::str::from_utf8(message.key()?).ok()?.to_owned(),
        place: Place { partition: message.partition(), offset: message.offset() },
        facts: Facts {
            time: Timestamp(text(fact::TIME)?.parse().ok()?),
            reason: text(fact::REASON)?.to_owned(),
            partition: Partition(text(fact::PARTITION)?.parse().ok()?),
        },
        mark,
    })
}

/// The letter, and the size of its value where that was not kept.
fn letter(message: &BorrowedMessage<'_>) -> Option<(DeadLetter, Option<u64>)> {
    let headers = headers(message);
    let (own, facts) = headers.split_at(facts_at(&headers)?);
    let bytes = |wanted: &str| facts.iter().find(|(name, _)| name == wanted).and_then(|(_, value)| *value);
    let text = |wanted: &str| std::str::from_utf8(bytes(wanted)?).ok();
    let letter = DeadLetter {
        topic: text(fact::TOPIC)?.to_owned(),
        generation: text(fact::GENERATION)?.parse().ok()?,
        partition: Partition(text(fact::PARTITION)?.parse().ok()?),
        origin: Origin::of(text(fact::OFFSET)?.parse().ok()?, std::str::from_utf8(message.key()?).ok()?)?,
        received: Timestamp(text(fact::RECEIVED)?.parse().ok()?),
        reason: text(fact::REASON)?.to_owned(),
        message: text(fact::MESSAGE)?.to_owned(),
        time: Timestamp(text(fact::TIME)?.parse().ok()?),
        key: record_key(facts).map(<[u8]>::to_vec),
        value: message.payload().map(Bytes::copy_from_slice),
        headers: own.iter().map(|(name, value)| (name.to_string(), value.map(<[u8]>::to_vec))).collect(),
    };
    Some((letter, text(fact::VALUE_OMITTED).and_then(|size| size.parse().ok())))
}
