//! Replays of archived records on Kafka: the topic that they go to, and the words that say what was replayed.
//!
//! Words stand in `<topic>.replays`, which is compacted: the key `<source>/<partition>/<target>` names what is replayed where,
//! and the value is JSON, `{"version", "from", "to", "offsets", "time"}`: the identities of the topic that the chain was made
//! from and of the target, and the ranges of offsets. A word about another topic of either name says nothing. (Positions of a
//! group would not do: Kafka forgets those of a group without members after a week, and a position holds no ranges.)
//!
//! Replays to several topics write there at the same time, and a reader of committed records sees nothing behind an open
//! transaction, which may hide our own word: so a reader waits until everything is decided that stood there when it began.

use std::{
    collections::HashMap,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow, bail};
use rdkafka::{
    Message as _, Offset as KafkaOffset,
    consumer::{BaseConsumer, Consumer},
    error::KafkaError,
    producer::BaseRecord,
    types::RDKafkaErrorCode as Code,
};
use serde::{Deserialize, Serialize};

use crate::{
    config::{Config, QueueKind},
    log::{
        kafka::{
            client::{self, Context, list, owned_headers, topic_identity, topic_in},
            settings,
            topic::{Brokers, Purpose},
            transactions::{Failure, Transactions},
        },
        record::{Record, RecordBuffer},
        replays::{BATCH_BYTES, ReplayTarget, Replayed, SourcePartition},
    },
    position::{Partition, Timestamp, TopicIdentity},
};

/// One question to the brokers.
const DEADLINE: Duration = Duration::from_secs(10);
/// For one step of a transaction: brokers that are away for less are waited for.
const STEP: Duration = settings::REPLAY_TIMEOUT;
/// Until everything in the topic of the words is decided, and read: longer than a transaction may be open.
const READING: Duration = Duration::from_secs(90);
const POLL: Duration = Duration::from_millis(100);

/// Room for [`Replayed::MOST`] ranges.
const LARGEST_WORD: u64 = 1 << 20;

/// Which offsets of a partition were replayed to a topic.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Word {
    version: u32,
    /// The identity of the topic that the partition's chain was made from, where it is known.
    from: Option<TopicIdentity>,
    /// That of the topic it was replayed to.
    to: TopicIdentity,
    offsets: Replayed,
    time: String,
}

impl Word {
    const VERSION: u32 = 1;
}

/// A topic that archived records are replayed to.
pub struct KafkaReplays<'c> {
    config: &'c Config,
    /// The topic of the archive, with its generation.
    source: String,
    target: Target,
    words: HashMap<Partition, Word>,
    /// `None` where nothing is to be sent.
    transactions: Option<Transactions>,
}

/// What is known of the topic.
struct Target {
    name: String,
    identity: TopicIdentity,
    /// `max.message.bytes`, where the brokers say it.
    largest: Option<u64>,
    /// How long it keeps records by their own time.
    keeps: Option<Duration>,
}

impl<'c> KafkaReplays<'c> {
    /// Takes the right to replay to topic `to`, and learns what was replayed of `source`. With `dry_run` it takes nothing, and
    /// what is appended goes nowhere. Blocks.
    ///
    /// # Errors
    /// One sentence: why not, and what to do.
    pub fn open(config: &'c Config, source: &str, to: &str, dry_run: bool) -> anyhow::Result<Self> {
        is_none_of_ours(config, to)?;
        let brokers = Brokers::connect(config)?;
        let target = Target::look(&brokers, config, to)?;
        let words = settings::replays_topic(config);
        let transactions = if dry_run {
            None
        } else {
            brokers.prepare(&words, LARGEST_WORD, Purpose::Replays)?;
            let batch = target.largest.unwrap_or_else(|| settings::record_limit(config));
            let transactions = Transactions::new(&settings::replayer(config, to, batch));
            let transactions = transactions.context("queue.kafka: no producer can be made")?;
            transactions.init(STEP, &|| true).map_err(|failure| explain("begin", to, failure))?;
            Some(transactions)
        };
        let words = match brokers.look(&words)? {
            Some(_) => Words::open(config, &words, to)?.read(source, to)?,
            None => HashMap::new(),
        };
        Ok(Self { config, source: source.to_owned(), target, words, transactions })
    }

    fn send(
        &self,
        transactions: &Transactions,
        partition: &SourcePartition,
        records: &RecordBuffer,
        replayed: &Replayed,
    ) -> Result<(), (Option<usize>, KafkaError)> {
        let deadline = Instant::now() + STEP;
        for (index, record) in records.iter().enumerate() {
            let mut sent = BaseRecord::<[u8], [u8], usize>::with_opaque_to(&self.target.name, index)
                .headers(owned_headers(record.headers.iter()));
            (sent.key, sent.payload) = (record.key, record.value);
            // What is none to Kafka (-1), or 1970 itself, gets the present one: librdkafka sends neither.
            sent.timestamp = Some(record.received.0).filter(|time| *time > 0);
            transactions.send(sent, deadline).map_err(|error| (Some(index), error))?;
        }
        let key = format!("{}/{}/{}", self.source, partition.partition, self.target.name);
        let word = Word {
            version: Word::VERSION,
            from: partition.identity.clone(),
            to: self.target.identity.clone(),
            offsets: replayed.clone(),
            time: Timestamp::now().to_rfc3339(),
        };
        let words = settings::replays_topic(self.config);
        let word = serde_json::to_vec(&word).unwrap_or_default();
        let word = BaseRecord::<[u8], [u8], usize>::with_opaque_to(&words, records.len())
            .key(key.as_bytes())
            .payload(&word)
            .timestamp(Timestamp::now().0);
        transactions.send(word, deadline).map_err(|error| (None, error))
    }

    /// Refuses what the topic's retention removes as soon as it sees it.
    fn are_kept(&self, partition: Partition, records: &RecordBuffer) -> anyhow::Result<()> {
        let Some(keeps) = self.target.keeps else { return Ok(()) };
        let from = Timestamp::now().0.saturating_sub(i64::try_from(keeps.as_millis()).unwrap_or(i64::MAX));
        let Some(record) = records.iter().find(|record| (1..from).contains(&record.received.0)) else { return Ok(()) };
        let (source, to, offset, received) = (&self.source, &self.target.name, record.offset, record.received);
        bail!(
            "record {source}/{partition}/{offset} was received at {}, and topic {to} removes what is older than {} \
             (retention.ms): raise that (kafka-configs --alter --topic {to} --add-config retention.ms=-1), or leave such \
             records out with --from",
            received.to_rfc3339(),
            humantime::format_duration(keeps)
        )
    }

    /// Why Kafka does not take these, by the one that is most likely at fault.
    fn refused(&self, partition: Partition, records: &RecordBuffer, failed: &[(usize, Code)]) -> anyhow::Error {
        let to = &self.target.name;
        let record = |index: usize| records.iter().nth(index);
        let name = |record: &Record<'_>| format!("{}/{partition}/{}", self.source, record.offset);
        let size = |record: &Record<'_>| record.key.map_or(0, <[u8]>::len) + record.value.map_or(0, <[u8]>::len);
        let of = |wanted: Code| {
            failed.iter().filter(move |(_, code)| *code == wanted).filter_map(move |(index, _)| record(*index))
        };
        // Said of each record of a batch.
        if let Some(largest) = of(Code::MessageSizeTooLarge).max_by_key(size) {
            let most = self.target.largest.map(|most| format!(" = {most}")).unwrap_or_default();
            return anyhow!(
                "record {} has {} bytes, and topic {to} does not take it (its max.message.bytes{most}): raise that \
                 (kafka-configs --alter --topic {to} --add-config max.message.bytes=...)",
                name(&largest),
                size(&largest)
            );
        }
        if let Some(record) = of(Code::InvalidTimestamp).next() {
            return anyhow!(
                "record {} was received at {}, and topic {to} does not take that time: raise its \
                 message.timestamp.before.max.ms, or set message.timestamp.type=LogAppendTime",
                name(&record),
                record.received.to_rfc3339()
            );
        }
        if let Some(record) = of(Code::InvalidRecord).next() {
            return anyhow!(
                "topic {to} does not take record {}: {}; a compacted topic takes none without a key, and a topic with \
                 message.timestamp.before.max.ms none that is older",
                name(&record),
                Code::InvalidRecord
            );
        }
        let (index, code) = failed[0];
        let what = record(index)
            .map_or_else(|| settings::replays_topic(self.config), |record| format!("record {}", name(&record)));
        anyhow!("Kafka does not take {what}: {code}{}", self.says())
    }

    fn says(&self) -> String {
        self.transactions.as_ref().map(Transactions::says).unwrap_or_default()
    }
}

impl ReplayTarget for KafkaReplays<'_> {
    fn replayed(&self, partition: Partition, identity: Option<&TopicIdentity>) -> Replayed {
        let is_about = |word: &&Word| {
            let is_of = word.from.as_ref().zip(identity).is_none_or(|(from, identity)| !from.contradicts(&identity.0));
            is_of && !word.to.contradicts(&self.target.identity.0)
        };
        self.words.get(&partition).filter(is_about).map(|word| word.offsets.clone()).unwrap_or_default()
    }

    fn append(&self, partition: &SourcePartition, records: &RecordBuffer, replayed: &Replayed) -> anyhow::Result<()> {
        self.are_kept(partition.partition, records)?;
        let Some(transactions) = &self.transactions else { return Ok(()) };
        let explain = |what, failure| explain(what, &self.target.name, failure);
        transactions.begin().map_err(|failure| explain("begin", failure))?;
        let mut unsent = None;
        let sent = self.send(transactions, partition, records, replayed).map_err(|(index, error)| {
            if let KafkaError::MessageProduction(code) = error {
                unsent = index.map(|index| (index, code));
            }
            transactions.failure(error)
        });
        let sent = sent.and_then(|()| transactions.settle(Instant::now() + STEP, &|| true));
        let mut failed = transactions.take_failed();
        failed.extend(unsent);
        if let Some(fenced) = transactions.fenced() {
            return Err(explain("write", fenced));
        }
        if !failed.is_empty() {
            let why = self.refused(partition.partition, records, &failed);
            // What is not aborted here, the next one to take the transactional id does, or its time runs out.
            let _ = transactions.abort(STEP);
            return Err(why);
        }
        if let Err(failure) = sent {
            let why = explain("write", failure);
            let _ = transactions.abort(STEP);
            return Err(why);
        }
        transactions.commit(STEP, &|| true).map_err(|failure| {
            let requires_abort = failure.requires_abort();
            let why = explain("commit", failure);
            if requires_abort {
                let _ = transactions.abort(STEP);
            }
            why
        })
    }
}

/// Refuses the topics that a daemon of this configuration reads or writes.
fn is_none_of_ours(config: &Config, to: &str) -> anyhow::Result<()> {
    let is_kafka = config.queue.kind == QueueKind::Kafka;
    let what = if to == settings::replays_topic(config) {
        "says what was replayed"
    } else if is_kafka && to == config.queue.topic {
        "is the daemon's own, and what is replayed to it would be archived and counted again"
    } else if is_kafka && to == settings::dead_letter_topic(config) {
        "holds the daemon's dead letters"
    } else {
        return Ok(());
    };
    bail!("--to-topic {to}: that topic {what}: name another one")
}

impl Target {
    fn look(brokers: &Brokers<'_>, config: &Config, name: &str) -> anyhow::Result<Self> {
        if brokers.look(name)?.is_none() {
            bail!(
                "topic {name} does not exist at {}: create it (kafka-topics --create --topic {name} --partitions ...), \
                 with the partitions and the retention that its readers need",
                config.queue.kafka.brokers
            );
        }
        let identity = topic_identity(brokers.metadata.client(), name, DEADLINE);
        let failed = |error: KafkaError| brokers.failed("look at", name, &error);
        let identity = identity.map_err(|code| failed(KafkaError::MetadataFetch(code)))?;
        // Without the right to see its settings, what they forbid is found when it is sent.
        let described = brokers.admin.describe(name, DEADLINE).map_err(failed)?.and_then(Result::ok);
        let value = |name: &str| described.as_ref()?.get(name)?.value.as_deref();
        let number = |name: &str| value(name)?.parse::<u64>().ok();
        // Retention goes by the largest time in a segment; a topic that stamps records itself has ours nowhere.
        let by_their_time = value("message.timestamp.type") != Some("LogAppendTime")
            && value("cleanup.policy").is_some_and(|policy| policy.contains("delete"));
        let keeps = number("retention.ms").filter(|_| by_their_time).map(Duration::from_millis);
        Ok(Self { name: name.to_owned(), identity, largest: number("max.message.bytes"), keeps })
    }
}

/// Reads the words.
struct Words<'c> {
    config: &'c Config,
    consumer: BaseConsumer<Context>,
    topic: &'c str,
}

impl<'c> Words<'c> {
    fn open(config: &'c Config, topic: &'c str, to: &str) -> anyhow::Result<Self> {
        let consumer = client::open(&settings::replays_reader(config, to));
        let consumer = consumer.context("queue.kafka: no consumer can be made")?;
        Ok(Self { config, consumer, topic })
    }

    fn unavailable(&self, error: &KafkaError) -> anyhow::Error {
        let (brokers, topic, said) = (&self.config.queue.kafka.brokers, self.topic, self.consumer.context().says());
        anyhow!("Kafka at {brokers}: topic {topic} cannot be read: {error}{said}")
    }

    fn late(&self) -> anyhow::Error {
        self.unavailable(&KafkaError::MessageConsumption(Code::OperationTimedOut))
    }

    /// The latest word about each partition of `source` and this target.
    fn read(&self, source: &str, to: &str) -> anyhow::Result<HashMap<Partition, Word>> {
        let metadata = self.consumer.fetch_metadata(Some(self.topic), DEADLINE);
        let metadata = metadata.map_err(|error| self.unavailable(&error))?;
        let found =
            topic_in(&metadata, self.topic).map_err(|code| self.unavailable(&KafkaError::MetadataFetch(code)))?;
        let partitions: Vec<i32> = found.iter().flat_map(|topic| topic.partitions()).map(|one| one.id()).collect();
        let deadline = Instant::now() + READING;
        self.wait_until_decided(&partitions, deadline)?;
        let mut words = HashMap::new();
        for partition in partitions {
            self.read_partition(partition, deadline, |key, value| {
                let of_partition = || {
                    let rest = key.strip_prefix(source)?.strip_prefix('/')?;
                    rest.strip_suffix(to)?.strip_suffix('/')?.parse().ok().map(Partition)
                };
                let Some(partition) = of_partition() else { return Ok(()) };
                let Some(value) = value else {
                    words.remove(&partition);
                    return Ok(());
                };
                let word: Word = serde_json::from_slice(value)
                    .with_context(|| format!("topic {}: the word about {key} cannot be read", self.topic))?;
                if word.version != Word::VERSION || !word.offsets.is_sound() {
                    bail!("topic {}: the word about {key} was written by a newer ingestd: use that one", self.topic);
                }
                words.insert(partition, word);
                Ok(())
            })?;
        }
        Ok(words)
    }

    /// Waits for the end of the transactions that are open now.
    fn wait_until_decided(&self, partitions: &[i32], deadline: Instant) -> anyhow::Result<()> {
        let mut uncommitted = settings::client(self.config);
        uncommitted.set("isolation.level", "read_uncommitted");
        let uncommitted: BaseConsumer<Context> =
            client::open(&uncommitted).context("queue.kafka: no consumer can be made")?;
        for partition in partitions {
            let end = |consumer: &BaseConsumer<Context>| {
                let range = consumer.fetch_watermarks(self.topic, *partition, DEADLINE);
                range.map(|(_, end)| end).map_err(|error| self.unavailable(&error))
            };
            let written = end(&uncommitted)?;
            while end(&self.consumer)? < written {
                if Instant::now() >= deadline {
                    bail!(
                        "topic {}: a transaction stays open there, and may hide what was replayed: run it again when the \
                         other replay has ended",
                        self.topic
                    );
                }
                thread::sleep(POLL);
            }
        }
        Ok(())
    }

    /// Hands on key and value of each record that has a key, up to the end.
    fn read_partition(
        &self,
        partition: i32,
        deadline: Instant,
        mut take: impl FnMut(&str, Option<&[u8]>) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let assigned = list(self.topic, [(partition, KafkaOffset::Beginning)]);
        let assigned = assigned.and_then(|list| self.consumer.assign(&list));
        assigned.map_err(|error| self.unavailable(&error))?;
        let mut last_error = None;
        loop {
            match self.consumer.poll(POLL) {
                Some(Ok(message)) => {
                    if let Some(key) = message.key().and_then(|key| std::str::from_utf8(key).ok()) {
                        take(key, message.payload())?;
                    }
                }
                Some(Err(KafkaError::PartitionEOF(_))) => return Ok(()),
                Some(Err(error)) => last_error = Some(error),
                None => {}
            }
            if Instant::now() >= deadline {
                return Err(last_error.map_or_else(|| self.late(), |error| self.unavailable(&error)));
            }
        }
    }
}

fn explain(what: &str, to: &str, failure: Failure) -> anyhow::Error {
    match failure {
        Failure::Fenced(_) => anyhow!("another replay to topic {to} took over: run it again when that one has ended"),
        Failure::Failed { words, .. } => anyhow!("Kafka does not {what} the transaction: {words}"),
        Failure::Late | Failure::Stopped => {
            anyhow!("Kafka does not {what} the transaction: {}", KafkaError::Flush(Code::OperationTimedOut))
        }
    }
}

/// One transaction fits into the producer's queue, with the largest record.
const _: () = assert!(BATCH_BYTES <= 16 << 20);
