//! Transactions of Kafka (KIP-98) as the forwarder uses them: records, dead letters and the position behind them, all
//! or nothing.
//!
//! Every wait is cut into slices, between which the forwarder can say how it does and be told to stop.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use parking_lot::{Mutex, MutexGuard};
use rdkafka::{
    ClientConfig, ClientContext, Offset as KafkaOffset, TopicPartitionList,
    config::{FromClientConfigAndContext, RDKafkaLogLevel},
    consumer::{BaseConsumer, Consumer, ConsumerGroupMetadata},
    error::{KafkaError, KafkaResult},
    message::{DeliveryResult, Header, OwnedHeaders},
    producer::{BaseProducer, BaseRecord, Producer, ProducerContext},
    types::RDKafkaErrorCode as Code,
};

use crate::{
    config::Config,
    log::{
        dead_letters::DeadLetter,
        kafka::{
            clock::{self, Verdict},
            dead_letters::writer,
            logging::{self, Logging},
            settings,
        },
        record::Record,
    },
    position::{Offset, Timestamp},
};

/// The header with the time of receipt, in milliseconds since 1970: the topic may set the timestamp itself.
pub(super) const RECEIVED_HEADER: &str = "ingestd-received";

const SLICE: Duration = Duration::from_millis(200);
/// For deliveries: short, because a slice is waited for whole.
const SHORT: Duration = Duration::from_millis(1);
/// To end what an earlier life left open, and to find the coordinator.
const BEGINNING: Duration = Duration::from_secs(20);
/// One question, and one request of a transaction but its records.
const QUESTION: Duration = Duration::from_secs(3);
const ABORTING: Duration = Duration::from_secs(2);

/// What a transaction carries at one position of the buffer.
pub(super) enum Outgoing<'a> {
    Event(Record<'a>),
    /// In place of an event that the brokers refuse. `whole`: with its value.
    Letter {
        letter: Box<DeadLetter>,
        whole: bool,
    },
}

/// Why a transaction was not committed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// The brokers refuse these (by index) for good; the transaction is aborted, the producer goes on.
    Refused(Vec<(usize, Code)>),
    /// They refuse some, and it cannot be told which: send fewer. Aborted, too.
    Unclear,
    /// Another producer has the transactional id.
    Fenced(String),
    /// Anything else; whether it was committed has to be asked.
    Passing(String),
    Stopped,
    /// The process has to end, and knows it.
    Ended,
}

/// Says how it does; whether to go on.
pub(super) type Tick<'t> = &'t dyn Fn() -> bool;

pub(super) struct Transactions {
    producer: BaseProducer<Outcomes>,
    positions: BaseConsumer<Logging>,
    group: ConsumerGroupMetadata,
    topic: String,
    dead_letters: String,
    /// Of a client that asks.
    plain: ClientConfig,
}

impl Transactions {
    /// Takes the transactional id over; transactions that an earlier life left open are committed or aborted when this
    /// returns.
    pub(super) fn open(config: &Config, id: &str, tick: Tick<'_>) -> Result<Self, Failure> {
        let refused = |error: KafkaError| Failure::Passing(format!("librdkafka refuses the settings: {error}"));
        let producer = BaseProducer::from_config_and_context(&settings::forwarder(config, id), Outcomes::default())
            .map_err(refused)?;
        let positions = settings::forwarded_position(config, id);
        let positions = BaseConsumer::from_config_and_context(&positions, Logging::default()).map_err(refused)?;
        let group = positions.group_metadata();
        let group = group.ok_or_else(|| Failure::Passing("librdkafka gives no group to commit to".to_owned()))?;
        let (topic, dead_letters) = (config.queue.topic.clone(), settings::dead_letter_topic(config));
        let plain = settings::client(config);
        let transactions = Self { producer, positions, group, topic, dead_letters, plain };
        transactions.sliced("take its transactional id", BEGINNING, Some(tick), |slice| {
            transactions.producer.init_transactions(slice)
        })?;
        Ok(transactions)
    }

    /// The position that was committed last; `None` where Kafka has none.
    pub(super) fn committed(&self) -> Result<Option<Offset>, Failure> {
        let ask = || -> KafkaResult<Option<Offset>> {
            let answer = self.positions.committed_offsets(self.position(KafkaOffset::Invalid)?, QUESTION)?;
            let Some(element) = answer.find_partition(&self.topic, 0) else { return Ok(None) };
            element.error()?;
            Ok(match element.offset() {
                KafkaOffset::Offset(offset) => Offset::from_kafka(offset),
                _ => None,
            })
        };
        ask().map_err(|error| {
            let said = self.positions.context().last_error();
            Failure::Passing(explain("ask for its position", &error, said))
        })
    }

    fn position(&self, offset: KafkaOffset) -> KafkaResult<TopicPartitionList> {
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&self.topic, 0, offset)?;
        Ok(list)
    }

    /// Commits `outgoing` and, as the position behind it, `to`.
    pub(super) fn commit(&self, outgoing: &[Outgoing<'_>], to: Offset, tick: Tick<'_>) -> Result<(), Failure> {
        self.producer.context().forget();
        self.producer.begin_transaction().map_err(|error| self.failure("begin a transaction", &error))?;
        let sent = self.fill(outgoing, to, tick);
        if sent.is_err() {
            // When it fails, the next one to take the transactional id aborts it, or its time runs out.
            if let Err(error) = self.producer.abort_transaction(ABORTING) {
                tracing::debug!(%error, "a transaction of the forwarder could not be aborted");
                return match sent {
                    Err(Failure::Refused(_) | Failure::Unclear) => Err(self.failure("abort a transaction", &error)),
                    sent => sent,
                };
            }
            return sent;
        }
        // Not given up at a stop: a moment later it is decided.
        self.sliced("commit a transaction", settings::TRANSACTION_TIMEOUT, None, |slice| {
            tick();
            self.producer.commit_transaction(slice)
        })
    }

    fn fill(&self, outgoing: &[Outgoing<'_>], to: Offset, tick: Tick<'_>) -> Result<(), Failure> {
        let deadline = Instant::now() + settings::TRANSACTION_TIMEOUT;
        let mut refused_here = Vec::new();
        for (index, outgoing) in outgoing.iter().enumerate() {
            match self.send(index, outgoing, deadline) {
                Ok(()) => {}
                Err(error) => match error.rdkafka_error_code() {
                    Some(code) if is_final(code) => refused_here.push((index, code)),
                    _ => return Err(self.failure("send records", &error)),
                },
            }
        }
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
                return Err(Failure::Passing("Kafka does not acknowledge the records of a transaction".to_owned()));
            }
        }
        // That our clock is wrong is no fault of theirs.
        if self.producer.context().time_refused.load(Ordering::Acquire) {
            match clock::judge(&self.plain, &self.topic) {
                Verdict::Right => {}
                Verdict::Wrong(_, reason) => return Err(Failure::Passing(reason)),
                Verdict::Unknown(reason) => {
                    let reason = format!("Kafka refuses a record, and whether for its time is not known: {reason}");
                    return Err(Failure::Passing(reason));
                }
            }
        }
        let mut failed = self.producer.context().take();
        failed.append(&mut refused_here);
        judge(&failed).map_err(|failure| match failure {
            Failure::Passing(reason) => match self.producer.client().fatal_error() {
                Some((code, reason)) if is_fence(code) => Failure::Fenced(reason),
                _ => Failure::Passing(match self.producer.context().last_error() {
                    Some(said) => format!("{reason}; librdkafka says: {said}"),
                    None => reason,
                }),
            },
            failure => failure,
        })?;
        let send = |error| self.failure("add its position to a transaction", &error);
        let position = self.position(KafkaOffset::Offset(to.as_i64())).map_err(send)?;
        self.producer.send_offsets_to_transaction(&position, &self.group, QUESTION).map_err(send)
    }

    fn send(&self, index: usize, outgoing: &Outgoing<'_>, deadline: Instant) -> KafkaResult<()> {
        let (id, value, headers);
        let mut record = match outgoing {
            Outgoing::Event(event) => {
                let mut record = BaseRecord::<[u8], [u8], usize>::with_opaque_to(&self.topic, index)
                    // When our clock was ahead the brokers would refuse it; the header has it as it was.
                    .timestamp(event.received.min(Timestamp::now()).0)
                    .headers(event_headers(event));
                record.key = event.key;
                record.payload = event.value;
                record
            }
            Outgoing::Letter { letter, whole } => {
                (id, value, headers) = writer::record(letter, *whole);
                let mut record = BaseRecord::with_opaque_to(&self.dead_letters, index)
                    .timestamp(letter.time.0)
                    .headers(headers)
                    .key(id.as_bytes());
                record.payload = value.as_deref();
                record
            }
        };
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

    /// Calls `ask` again while its time is up and `patience` is not.
    fn sliced(
        &self,
        what: &str,
        patience: Duration,
        tick: Option<Tick<'_>>,
        ask: impl Fn(Duration) -> KafkaResult<()>,
    ) -> Result<(), Failure> {
        let deadline = Instant::now() + patience;
        loop {
            match ask(SLICE) {
                Ok(()) => return Ok(()),
                Err(KafkaError::Transaction(error)) if error.is_retriable() && Instant::now() < deadline => {}
                Err(error) => return Err(self.failure(what, &error)),
            }
            if tick.is_some_and(|tick| !tick()) {
                return Err(Failure::Stopped);
            }
        }
    }

    fn failure(&self, what: &str, error: &KafkaError) -> Failure {
        let fatal = self.producer.client().fatal_error();
        let code = match error {
            KafkaError::Transaction(error) => Some(error.code()),
            error => error.rdkafka_error_code(),
        };
        match (fatal, code) {
            (Some((fatal, reason)), _) if is_fence(fatal) => Failure::Fenced(reason),
            (_, Some(code)) if is_fence(code) => Failure::Fenced(error.to_string()),
            (Some((_, reason)), _) => Failure::Passing(format!("cannot {what}: {reason}")),
            _ => Failure::Passing(explain(what, error, self.producer.context().last_error())),
        }
    }
}

fn explain(what: &str, error: &KafkaError, said: Option<String>) -> String {
    match said {
        Some(said) => format!("cannot {what}: {error}; librdkafka says: {said}"),
        None => format!("cannot {what}: {error}"),
    }
}

fn is_fence(code: Code) -> bool {
    matches!(code, Code::Fenced | Code::ProducerFenced | Code::InvalidProducerEpoch)
}

/// Sending the same record again cannot help.
fn is_final(code: Code) -> bool {
    matches!(code, Code::MessageSizeTooLarge | Code::InvalidTimestamp | Code::InvalidRecord)
}

/// What the deliveries that failed say about the whole. A broker refuses batches, and newer ones (KIP-467) say for which
/// of its records: librdkafka then reports `InvalidRecord` for each of several, or the broker's code for the only one,
/// and `InvalidDifferentRecord` for the innocent. A size, or an older broker's code, is reported for all of the batch.
fn judge(failed: &[(usize, Code)]) -> Result<(), Failure> {
    let alone = |code: Code| failed.iter().filter(|(_, other)| *other == code).count() == 1;
    let refused: Vec<_> = failed
        .iter()
        .filter(|(_, code)| is_final(*code) && (*code == Code::InvalidRecord || alone(*code)))
        .copied()
        .collect();
    match failed.first() {
        None => Ok(()),
        Some(_) if !refused.is_empty() => Err(Failure::Refused(refused)),
        Some(_) if failed.iter().any(|(_, code)| is_final(*code)) => Err(Failure::Unclear),
        Some((_, code)) => Err(Failure::Passing(format!("Kafka did not take {} records: {code}", failed.len()))),
    }
}

fn event_headers(event: &Record<'_>) -> OwnedHeaders {
    let mut headers = OwnedHeaders::new_with_capacity(2);
    for (key, value) in event.headers.iter() {
        headers = headers.insert(Header { key, value });
    }
    headers.insert(Header { key: RECEIVED_HEADER, value: Some(&event.received.0.to_string()) })
}

/// The deliveries of the present transaction that failed.
#[derive(Default)]
struct Outcomes {
    failed: Mutex<Vec<(usize, Code)>>,
    /// A record was refused, perhaps for its time.
    time_refused: AtomicBool,
    said: Logging,
}

impl Outcomes {
    fn failed(&self) -> MutexGuard<'_, Vec<(usize, Code)>> {
        self.failed.lock()
    }

    fn forget(&self) {
        self.failed().clear();
        self.time_refused.store(false, Ordering::Release);
    }

    fn take(&self) -> Vec<(usize, Code)> {
        std::mem::take(&mut self.failed())
    }

    fn last_error(&self) -> Option<String> {
        self.said.last_error()
    }
}

impl ClientContext for Outcomes {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        logging::forward(level, facility, line);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.said.error(error, reason);
    }
}

impl ProducerContext for Outcomes {
    type DeliveryOpaque = usize;

    fn delivery(&self, delivery: &DeliveryResult<'_>, index: usize) {
        if let Err((error, _)) = delivery {
            let code = error.rdkafka_error_code().unwrap_or(Code::Fail);
            self.failed().push((index, code));
            self.time_refused.fetch_or(clock::is_refusal(code), Ordering::AcqRel);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_refused_only_where_it_is_told_from_the_others_of_its_batch() {
        use Code::{InvalidDifferentRecord, InvalidRecord, InvalidTimestamp, MessageSizeTooLarge, MessageTimedOut};
        let judged = |codes: &[Code]| judge(&codes.iter().copied().enumerate().collect::<Vec<_>>());
        assert_eq!(judged(&[]), Ok(()));
        let several = judged(&[InvalidRecord, InvalidDifferentRecord, InvalidRecord]);
        assert_eq!(several, Err(Failure::Refused(vec![(0, InvalidRecord), (2, InvalidRecord)])));
        let one = judged(&[InvalidDifferentRecord, InvalidTimestamp]);
        assert_eq!(one, Err(Failure::Refused(vec![(1, InvalidTimestamp)])));
        assert_eq!(judged(&[MessageSizeTooLarge; 2]), Err(Failure::Unclear));
        assert_eq!(judged(&[InvalidTimestamp; 3]), Err(Failure::Unclear));
        assert_eq!(judged(&[MessageSizeTooLarge]), Err(Failure::Refused(vec![(0, MessageSizeTooLarge)])));
        assert!(matches!(judged(&[MessageTimedOut; 2]), Err(Failure::Passing(_))));
    }
}
