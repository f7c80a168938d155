//! Reads `<topic>.dlq`, from its beginning to its end or at single places. A reader is in no group's way: it assigns
//! partitions itself and commits nothing.

use std::time::{Duration, Instant};

use rdkafka::{
    Message as _, Offset as KafkaOffset, TopicPartitionList,
    config::FromClientConfigAndContext,
    consumer::{BaseConsumer, Consumer},
    error::{KafkaError, KafkaResult},
    message::BorrowedMessage,
    types::RDKafkaErrorCode as Code,
};

use super::{Chosen, by_partition};
use crate::{
    config::Config,
    log::{
        dead_letters::{DeadLetter, LettersError, State},
        kafka::{dead_letters::writer::fact, headers::headers, logging::Logging, settings},
    },
    position::{Offset, Partition, Timestamp},
};

/// One question to the brokers.
const DEADLINE: Duration = Duration::from_secs(10);
/// Without a record for so long, the brokers count as away.
const SILENCE: Duration = Duration::from_secs(15);
const POLL: Duration = Duration::from_millis(200);

/// Where a record stands in `<topic>.dlq`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub partition: i32,
    pub offset: i64,
}

/// What filters look at; letters and their marks both tell it.
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
    consumer: BaseConsumer<Logging>,
    topic: String,
    brokers: String,
    partitions: Vec<i32>,
}

impl Reader {
    pub fn open(config: &Config) -> Result<Self, LettersError> {
        let topic = settings::dead_letter_topic(config);
        let brokers = config.queue.kafka.brokers.clone();
        let settings = settings::dead_letter_reader(config);
        let consumer: BaseConsumer<Logging> = BaseConsumer::from_config_and_context(&settings, Logging::default())
            .map_err(|error| LettersError::Invalid(format!("queue.kafka: no consumer can be made: {error}")))?;
        let mut reader = Self { consumer, topic, brokers, partitions: Vec::new() };
        let metadata = reader.consumer.fetch_metadata(Some(&reader.topic), DEADLINE);
        let metadata = metadata.map_err(|error| reader.unavailable(&error))?;
        let found = metadata.topics().iter().find(|found| found.name() == reader.topic);
        let partitions: Vec<i32> =
            found.map(|found| found.partitions().iter().map(|one| one.id()).collect()).unwrap_or_default();
        if partitions.is_empty() {
            return Err(match found.and_then(|found| found.error()).map(Code::from) {
                None | Some(Code::UnknownTopicOrPartition | Code::UnknownTopic) => LettersError::Invalid(format!(
                    "topic {} does not exist at {}: a daemon that aggregates makes it at its start",
                    reader.topic, reader.brokers
                )),
                Some(code) => reader.unavailable(&KafkaError::MetadataFetch(code)),
            });
        }
        reader.partitions = partitions;
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

    /// Whether there is nothing to read.
    pub fn is_empty(&self) -> Result<bool, LettersError> {
        for partition in &self.partitions {
            let watermarks = self.consumer.fetch_watermarks(&self.topic, *partition, DEADLINE);
            let (start, end) = watermarks.map_err(|error| self.unavailable(&error))?;
            if start < end {
                return Ok(false);
            }
        }
        Ok(true)
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
        let mut list = TopicPartitionList::new();
        for partition in &self.partitions {
            let added = list.add_partition_offset(&self.topic, *partition, KafkaOffset::Offset(time.0.max(0)));
            added.map_err(|error| self.unavailable(&error))?;
        }
        let found = self.consumer.offsets_for_times(list, DEADLINE).map_err(|error| self.unavailable(&error))?;
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
        let mut ends = std::collections::BTreeMap::new();
        for partition in &self.partitions {
            let watermarks = self.consumer.fetch_watermarks(&self.topic, *partition, DEADLINE);
            let (start, end) = watermarks.map_err(|error| self.unavailable(&error))?;
            if start < end {
                ends.insert(*partition, end);
            }
        }
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
        for (partition, mut wanted) in by_partition(chosen) {
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
        let assign = || -> KafkaResult<()> {
            let mut list = TopicPartitionList::new();
            for (partition, offset) in from {
                list.add_partition_offset(topic, *partition, *offset)?;
            }
            self.consumer.assign(&list)
        };
        assign().map_err(|error| self.unavailable(&error))?;
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
        offset: Offset(text(fact::OFFSET)?.parse().ok()?),
        received: Timestamp(text(fact::RECEIVED)?.parse().ok()?),
        reason: text(fact::REASON)?.to_owned(),
        message: text(fact::MESSAGE)?.to_owned(),
        time: Timestamp(text(fact::TIME)?.parse().ok()?),
        key: bytes(fact::KEY).map(<[u8]>::to_vec),
        value: message.payload().map(<[u8]>::to_vec),
        headers: own.iter().map(|(name, value)| (name.to_string(), value.map(<[u8]>::to_vec))).collect(),
    };
    Some((letter, text(fact::VALUE_OMITTED).and_then(|size| size.parse().ok())))
}
