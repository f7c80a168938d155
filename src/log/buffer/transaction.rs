//! The forwarder's transactions: records, dead letters and the position behind them, all or nothing.

use std::time::{Duration, Instant};

use rdkafka::{
    ClientConfig, Offset as KafkaOffset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer, ConsumerGroupMetadata},
    error::{KafkaError, KafkaResult},
    message::OwnedHeaders,
    producer::BaseRecord,
    types::RDKafkaErrorCode as Code,
};

use crate::{
    config::Config,
    log::{
        dead_letters::DeadLetter,
        kafka::{
            client::{self, Context, list, no_failed, offsets, owned_headers},
            dead_letters::records,
            probe::{Verdict, clock_verdict, is_refusal},
            settings,
            transactions::{self, Tick, Transactions},
        },
        record::Record,
    },
    position::{Offset, Partition, Timestamp},
};

/// The header with the time of receipt, in milliseconds since 1970: the topic may set the timestamp itself.
const RECEIVED_HEADER: &str = "ingestd-received";

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

impl Failure {
    fn of(what: &str, failure: transactions::Failure) -> Self {
        match failure {
            transactions::Failure::Fenced(reason) => Self::Fenced(reason),
            transactions::Failure::Stopped => Self::Stopped,
            transactions::Failure::Late => {
                Self::Passing("Kafka does not acknowledge the records of a transaction".to_owned())
            }
            transactions::Failure::Failed { words, .. } => Self::Passing(format!("cannot {what}: {words}")),
        }
    }
}

/// Where the forwarder sends, and where its position there is kept.
pub(super) struct Target {
    transactions: Transactions,
    positions: BaseConsumer<Context>,
    group: ConsumerGroupMetadata,
    topic: String,
    dead_letters: String,
    /// Of a client that asks.
    plain: ClientConfig,
}

impl Target {
    /// Takes the transactional id over; transactions that an earlier life left open are committed or aborted when this
    /// returns.
    pub(super) fn open(config: &Config, id: &str, tick: Tick<'_>) -> Result<Self, Failure> {
        let refused = |error: KafkaError| Failure::Passing(format!("librdkafka refuses the settings: {error}"));
        let transactions = Transactions::new(&settings::forwarder(config, id)).map_err(refused)?;
        let positions: BaseConsumer<Context> =
            client::open(&settings::forwarded_position(config, id)).map_err(refused)?;
        let group = positions.group_metadata();
        let group = group.ok_or_else(|| Failure::Passing("librdkafka gives no group to commit to".to_owned()))?;
        let (topic, dead_letters) = (config.queue.topic.clone(), settings::dead_letter_topic(config));
        let init = transactions.init(BEGINNING, tick);
        init.map_err(|failure| Failure::of("take its transactional id", failure))?;
        Ok(Self { transactions, positions, group, topic, dead_letters, plain: settings::client(config) })
    }

    /// The position that was committed last; `None` where Kafka has none.
    pub(super) fn committed(&self) -> Result<Option<Offset>, Failure> {
        let ask = || -> KafkaResult<Option<Offset>> {
            let answer = self.positions.committed_offsets(self.position(KafkaOffset::Invalid)?, QUESTION)?;
            no_failed(&answer)?;
            Ok(offsets(&answer).remove(&Partition(0)))
        };
        ask().map_err(|error| {
            Failure::Passing(format!("cannot ask for its position: {error}{}", self.positions.context().says()))
        })
    }

    fn position(&self, offset: KafkaOffset) -> KafkaResult<TopicPartitionList> {
        list(&self.topic, [(0, offset)])
    }

    /// Commits `outgoing` and, as the position behind it, `to`.
    pub(super) fn commit(&self, outgoing: &[Outgoing<'_>], to: Offset, tick: Tick<'_>) -> Result<(), Failure> {
        self.transactions.begin().map_err(|failure| Failure::of("begin a transaction", failure))?;
        if let Err(failure) = self.fill(outgoing, to, tick) {
            // Where it is not aborted, the next one to take the transactional id does it, or its time runs out.
            if let Err(unaborted) = self.transactions.abort(ABORTING) {
                tracing::debug!(?unaborted, "a transaction of the forwarder could not be aborted");
                if matches!(failure, Failure::Refused(_) | Failure::Unclear) {
                    return Err(Failure::of("abort a transaction", unaborted));
                }
            }
            return Err(failure);
        }
        // Not given up at a stop: a moment later it is decided.
        let on = || {
            tick();
            true
        };
        let committed = self.transactions.commit(settings::TRANSACTION_TIMEOUT, &on);
        committed.map_err(|failure| Failure::of("commit a transaction", failure))
    }

    fn fill(&self, outgoing: &[Outgoing<'_>], to: Offset, tick: Tick<'_>) -> Result<(), Failure> {
        let deadline = Instant::now() + settings::TRANSACTION_TIMEOUT;
        let mut refused_here = Vec::new();
        for (index, outgoing) in outgoing.iter().enumerate() {
            match self.send(index, outgoing, deadline) {
                Ok(()) => {}
                Err(error) => match error.rdkafka_error_code() {
                    Some(code) if is_final(code) => refused_here.push((index, code)),
                    _ => return Err(Failure::of("send records", self.transactions.failure(error))),
                },
            }
        }
        let settled = self.transactions.settle(deadline, tick);
        settled.map_err(|failure| Failure::of("send records", failure))?;
        let mut failed = self.transactions.take_failed();
        // That our clock is wrong is no fault of theirs.
        if failed.iter().any(|(_, code)| is_refusal(*code)) {
            match clock_verdict(&self.plain, &self.topic) {
                Verdict::Right => {}
                Verdict::Wrong(_, reason) => return Err(Failure::Passing(reason)),
                Verdict::Unknown(reason) => {
                    let reason = format!("Kafka refuses a record, and whether for its time is not known: {reason}");
                    return Err(Failure::Passing(reason));
                }
            }
        }
        failed.append(&mut refused_here);
        judge(&failed).map_err(|failure| match failure {
            Failure::Passing(reason) => match self.transactions.fenced() {
                Some(fenced) => Failure::of("send records", fenced),
                None => Failure::Passing(format!("{reason}{}", self.transactions.says())),
            },
            failure => failure,
        })?;
        let of_position = |failure| Failure::of("add its position to a transaction", failure);
        let position = self.position(KafkaOffset::Offset(to.as_i64()));
        let position = position.map_err(|error| of_position(self.transactions.failure(error)))?;
        self.transactions.send_offsets(&position, &self.group, QUESTION).map_err(of_position)
    }

    fn send(&self, index: usize, outgoing: &Outgoing<'_>, deadline: Instant) -> KafkaResult<()> {
        let (id, value, headers);
        let record = match outgoing {
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
                (id, value, headers) = records::record(letter, *whole);
                let mut record = BaseRecord::with_opaque_to(&self.dead_letters, index)
                    .timestamp(letter.time.0)
                    .headers(headers)
                    .key(id.as_bytes());
                record.payload = value.as_deref();
                record
            }
        };
        self.transactions.send(record, deadline)
    }
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
    let received = event.received.0.to_string();
    owned_headers(event.headers.iter().chain([(RECEIVED_HEADER, Some(received.as_bytes()))]))
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
