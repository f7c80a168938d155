//! The partitions that the group gave to a source: what each waits for, whether librdkafka fetches it, its records on their
//! way into a batch, and what speaks against the source's work at present.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use rdkafka::{
    Offset as KafkaOffset, TopicPartitionList,
    consumer::Consumer,
    error::KafkaResult,
    message::{BorrowedMessage, Message as _},
    types::RDKafkaErrorCode as Code,
};

use crate::{
    config::BatchConfig,
    log::{
        Batch, ByteBudget, Epoch, Permit,
        kafka::{
            client::{headers, list},
            group::SourceConsumer,
            offsets::LogRange,
        },
        record::RecordBuffer,
    },
    position::{Offset, Partition, Timestamp},
};

/// A seek is answered by librdkafka itself, not by a broker.
const SEEK: Duration = Duration::from_secs(1);
/// It takes one within a second of the assignment.
const REFUSED: Duration = Duration::from_secs(30);

/// The budget has no room for the next batch.
pub(super) struct Starved;

pub(super) struct Partitions {
    topic: String,
    consumer: Arc<SourceConsumer>,
    held: BTreeMap<Partition, Held>,
    /// Cut, each at its moment, and not yet known to be of the topic that was announced. Bounded by the budget, whose
    /// permits they hold.
    unproven: VecDeque<(Instant, Batch)>,
}

struct Held {
    phase: Phase,
    fetcher: Fetcher,
    /// Since when librdkafka has not begun to fetch it, though it was told to.
    refused: Option<Instant>,
}

enum Phase {
    /// The answer of this lookup is awaited.
    PartitionOffsets {
        round: u64,
    },
    /// The sink knows, and has not begun (or holds).
    Waiting,
    Delivered(Delivery),
}

/// librdkafka's side of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fetcher {
    Paused,
    Running,
    /// Ended by an out-of-range error, or suspected to be: it takes no seek, it has to be assigned anew.
    Ended,
    /// In no assignment of librdkafka's, to be put into it at the position where it begins.
    Absent,
}

impl Partitions {
    pub fn new(topic: &str, consumer: Arc<SourceConsumer>) -> Self {
        Self { topic: topic.to_owned(), consumer, held: BTreeMap::new(), unproven: VecDeque::new() }
    }

    pub fn len(&self) -> usize {
        self.held.len()
    }

    pub fn all(&self) -> BTreeSet<Partition> {
        self.held.keys().copied().collect()
    }

    pub fn holds(&self, partition: Partition) -> bool {
        self.held.contains_key(&partition)
    }

    /// The group gave it to us; librdkafka does not fetch it yet.
    pub fn assigned(&mut self, partition: Partition) {
        self.held.insert(partition, Held { phase: Phase::Waiting, fetcher: Fetcher::Absent, refused: None });
    }

    /// It is not ours any more; what is buffered of it is dropped.
    pub fn revoked(&mut self, partition: Partition) {
        self.drop_unproven(partition);
        self.held.remove(&partition);
    }

    /// Stops these partitions until this lookup has an answer. Returns those that we hold.
    pub fn await_lookup(&mut self, partitions: BTreeSet<Partition>, round: u64) -> BTreeSet<Partition> {
        let held: BTreeSet<_> = partitions.into_iter().filter(|partition| self.holds(*partition)).collect();
        for partition in &held {
            self.set(*partition, Phase::PartitionOffsets { round });
        }
        held
    }

    /// Whether this is the answer that the partition waits for; from now on it waits for the sink.
    pub fn found(&mut self, partition: Partition, round: u64) -> bool {
        let awaited = matches!(
            self.held.get(&partition).map(|held| &held.phase),
            Some(Phase::PartitionOffsets { round: awaited }) if *awaited == round
        );
        if awaited {
            self.set(partition, Phase::Waiting);
        }
        awaited
    }

    /// Delivers from `at` on; also a seek. Ignored while a lookup is awaited (the sink has not seen the announcement
    /// that will follow), and from an older epoch.
    pub fn begin(&mut self, partition: Partition, epoch: Epoch, at: Offset) {
        match self.held.get(&partition).map(|held| &held.phase) {
            None | Some(Phase::PartitionOffsets { .. }) => {}
            Some(Phase::Delivered(delivery)) if epoch < delivery.epoch => {}
            Some(_) => self.set(partition, Phase::Delivered(Delivery::new(epoch, at))),
        }
    }

    /// Delivers nothing more until the next `begin`.
    pub fn hold(&mut self, partition: Partition) {
        if matches!(self.held.get(&partition).map(|held| &held.phase), Some(Phase::Delivered(_))) {
            self.set(partition, Phase::Waiting);
        }
    }

    fn set(&mut self, partition: Partition, phase: Phase) {
        self.stop(&[partition]);
        self.drop_unproven(partition);
        if let Some(held) = self.held.get_mut(&partition) {
            held.phase = phase;
        }
    }

    fn drop_unproven(&mut self, partition: Partition) {
        self.unproven.retain(|(_, batch)| batch.partition != partition);
    }

    /// Takes a record over; says whether its partition has a full batch now. Records of partitions that are not
    /// delivered are dropped: they are fetched again when they are.
    pub fn take(&mut self, partition: Partition, message: &BorrowedMessage<'_>, limits: &BatchConfig) -> bool {
        match self.held.get_mut(&partition) {
            Some(Held { phase: Phase::Delivered(delivery), fetcher: Fetcher::Running, .. }) => {
                delivery.take(message);
                delivery.is_full(limits)
            }
            _ => false,
        }
    }

    fn deliveries(&self) -> impl Iterator<Item = (Partition, &Delivery)> {
        self.held.iter().filter_map(|(partition, held)| match &held.phase {
            Phase::Delivered(delivery) => Some((*partition, delivery)),
            _ => None,
        })
    }

    /// The time until a batch is due; `None` while nothing is buffered.
    pub fn due_in(&self, limits: &BatchConfig) -> Option<Duration> {
        let now = Instant::now();
        self.deliveries().filter_map(|(_, delivery)| delivery.due_in(limits, now)).min()
    }

    /// Cuts the batches that are due, the longest waiting first, as far as the budget goes. They wait for
    /// [`Self::take_proven`].
    pub fn cut_due(&mut self, limits: &BatchConfig, budget: &ByteBudget) -> Result<(), Starved> {
        let now = Instant::now();
        let buffered: usize = self.deliveries().map(|(_, delivery)| delivery.size()).sum();
        // Many partitions with a little each go early, so that what waits here is bounded by two batches.
        let early = buffered >= 2 * limits.max_bytes.as_usize();
        let mut due: Vec<_> = self
            .deliveries()
            .filter(|(_, delivery)| delivery.due_in(limits, now).is_some_and(|due| early || due.is_zero()))
            .map(|(partition, delivery)| (delivery.since, partition))
            .collect();
        due.sort_unstable();
        for (_, partition) in due {
            if let Some(Held { phase: Phase::Delivered(delivery), .. }) = self.held.get_mut(&partition) {
                let permit = budget.try_take(delivery.size()).ok_or(Starved)?;
                self.unproven.push_back((now, delivery.cut(partition, permit)));
            }
        }
        Ok(())
    }

    /// Whether batches wait for an answer of the topic watch.
    pub fn has_unproven(&self) -> bool {
        !self.unproven.is_empty()
    }

    /// The next batch that was cut before `asked`, when the topic was still the one that was announced.
    pub fn take_proven(&mut self, asked: Instant) -> Option<Batch> {
        let (cut, _) = self.unproven.front()?;
        if *cut < asked { self.unproven.pop_front().map(|(_, batch)| batch) } else { None }
    }

    /// Where a partition is delivered and nothing waits here: all records below are handed on.
    pub fn delivered(&self, partition: Partition) -> Option<Offset> {
        match self.held.get(&partition) {
            Some(Held { phase: Phase::Delivered(delivery), fetcher: Fetcher::Running, .. })
                if delivery.since.is_none() =>
            {
                Some(delivery.next)
            }
            _ => None,
        }
    }

    /// After an out-of-range error, which does not say for which partition: the delivered ones whose position is
    /// outside the log. **Every** partition is assigned anew before it is fetched again, whatever it waits for and
    /// whether its range is known: one that librdkafka stopped looks like one that has nothing to fetch, and takes no
    /// seek. Where nothing was wrong it goes on where it was.
    pub fn outside(&mut self, ranges: &[(Partition, LogRange)]) -> BTreeSet<Partition> {
        self.stop_all();
        for held in self.held.values_mut().filter(|held| held.fetcher != Fetcher::Absent) {
            held.fetcher = Fetcher::Ended;
        }
        let mut outside = BTreeSet::new();
        for (partition, log) in ranges {
            let Some(Held { phase: Phase::Delivered(delivery), .. }) = self.held.get(partition) else { continue };
            if delivery.next < log.start || delivery.next > log.end {
                tracing::warn!(
                    topic = self.topic, %partition, position = %delivery.next, log_start = %log.start,
                    log_end = %log.end, "the position is outside the log"
                );
                outside.insert(*partition);
            }
        }
        outside
    }

    /// Makes librdkafka fetch what is delivered and not fetched.
    pub fn start_all(&mut self) {
        for (partition, held) in &mut self.held {
            held.refused = match &held.phase {
                Phase::Delivered(delivery) if held.fetcher != Fetcher::Running => {
                    start(&self.consumer, &self.topic, *partition, &mut held.fetcher, delivery.next).err().map(
                        |error| {
                            // A partition that was assigned a moment ago takes no seek yet.
                            tracing::debug!(topic = self.topic, %partition, %error, "not started yet, trying again");
                            held.refused.unwrap_or_else(Instant::now)
                        },
                    )
                }
                _ => None,
            };
        }
    }

    /// A partition that librdkafka does not begin to fetch, for longer than any reason to.
    pub fn refused(&self, now: Instant) -> Option<Partition> {
        let mut held = self.held.iter();
        let long = |held: &Held| held.refused.is_some_and(|since| now.duration_since(since) >= REFUSED);
        held.find(|(_, held)| long(held)).map(|(partition, _)| *partition)
    }

    /// Makes librdkafka fetch nothing; what is buffered stays.
    pub fn stop_all(&mut self) {
        let all: Vec<_> = self.held.keys().copied().collect();
        self.stop(&all);
    }

    /// Has librdkafka fetch nothing, as where it has lost its way: nothing here knows of it.
    #[cfg(debug_assertions)]
    pub fn stall(&self) {
        let mut all = TopicPartitionList::new();
        self.held.keys().for_each(|partition| _ = all.add_partition(&self.topic, partition.0));
        self.consumer.pause(&all).expect("librdkafka pauses what it has");
    }

    fn stop(&mut self, partitions: &[Partition]) {
        let mut running = TopicPartitionList::new();
        for partition in partitions {
            if let Some(held) = self.held.get_mut(partition)
                && held.fetcher == Fetcher::Running
            {
                held.fetcher = Fetcher::Paused;
                running.add_partition(&self.topic, partition.0);
            }
        }
        if running.count() > 0
            && let Err(error) = self.consumer.pause(&running)
        {
            tracing::warn!(topic = self.topic, %error, "librdkafka refuses to pause");
        }
    }
}

/// Makes librdkafka fetch a partition that is not fetched, from `at` on.
fn start(
    consumer: &SourceConsumer,
    topic: &str,
    partition: Partition,
    fetcher: &mut Fetcher,
    at: Offset,
) -> KafkaResult<()> {
    let at = KafkaOffset::Offset(at.as_i64());
    let one = list(topic, [(partition.0, at)])?;
    if *fetcher == Fetcher::Ended {
        consumer.pause(&one)?;
        consumer.incremental_unassign(&one)?;
        *fetcher = Fetcher::Absent;
    }
    if *fetcher == Fetcher::Absent {
        consumer.incremental_assign(&one)?;
        consumer.pause(&one)?;
        *fetcher = Fetcher::Paused;
    }
    consumer.seek(topic, partition.0, at, SEEK)?;
    consumer.resume(&one)?;
    *fetcher = Fetcher::Running;
    Ok(())
}

/// What is delivered of one partition since the latest `Begin`.
///
/// Invariant: everything in `[Begin's at, from)` was handed on, `[from, next)` is in `buffer`, and `next` is where
/// librdkafka is (re)started. librdkafka's own position is never asked for.
pub(super) struct Delivery {
    pub epoch: Epoch,
    from: Offset,
    /// The next offset to be fetched.
    pub next: Offset,
    buffer: RecordBuffer,
    /// What the batch before took.
    expected: usize,
    /// When the oldest record of the buffer arrived.
    pub since: Option<Instant>,
}

impl Delivery {
    pub fn new(epoch: Epoch, at: Offset) -> Self {
        Self { epoch, from: at, next: at, buffer: RecordBuffer::default(), expected: 0, since: None }
    }

    pub fn size(&self) -> usize {
        self.buffer.size()
    }

    /// Takes a message over. Those below `next` were taken before; offsets skipped have no record (a transaction's
    /// markers, aborted records).
    pub fn take(&mut self, message: &BorrowedMessage<'_>) {
        let Some(offset) = Offset::from_kafka(message.offset()) else { return };
        let received = Timestamp(message.timestamp().to_millis().unwrap_or_default());
        let headers = headers(message);
        let headers = headers.iter().map(|(name, value)| (name.as_ref(), *value));
        self.push(offset, received, message.key(), message.payload(), headers);
    }

    fn push<'h>(
        &mut self,
        offset: Offset,
        received: Timestamp,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: impl IntoIterator<Item = (&'h str, Option<&'h [u8]>), IntoIter: Clone>,
    ) {
        if offset < self.next {
            return;
        }
        if self.buffer.is_empty() {
            // A batch's worth at once: untouched it costs nothing, and growing by doubling would copy it twice.
            self.buffer.reserve(self.expected);
        }
        self.buffer.push(offset, received, key, value, headers);
        self.next = offset.next();
        // Once a batch: the clock's answer costs as much as what is done for a record.
        self.since.get_or_insert_with(Instant::now);
    }

    /// The buffer holds a whole batch.
    pub fn is_full(&self, limits: &BatchConfig) -> bool {
        self.buffer.len() >= limits.max_records || self.buffer.size() >= limits.max_bytes.as_usize()
    }

    /// How long its oldest record may wait yet; `None` when there is none.
    pub fn due_in(&self, limits: &BatchConfig, now: Instant) -> Option<Duration> {
        let waited = now.duration_since(self.since?);
        Some(if self.is_full(limits) { Duration::ZERO } else { limits.max_wait.saturating_sub(waited) })
    }

    /// Everything that is buffered, as a batch.
    pub fn cut(&mut self, partition: Partition, permit: Permit) -> Batch {
        let records = std::mem::take(&mut self.buffer);
        self.expected = records.size() + records.size() / 8;
        let from = std::mem::replace(&mut self.from, self.next);
        self.since = None;
        Batch { partition, epoch: self.epoch, from, to: self.next, records, permit }
    }
}

/// The number of unanswered lookups after which the brokers count as away: one alone may be a leader's election.
const SILENT_LOOKUPS: u32 = 2;
/// A partition without an answer for this long is shown: an election takes seconds.
const LEADERLESS: Duration = Duration::from_secs(30);
/// A batch that cannot be read is fetched again many times within this.
const UNREADABLE: Duration = Duration::from_secs(30);

/// librdkafka reports such a batch as it does a damaged one.
const TOO_LARGE: &str = "It may be larger, once decompressed, than the setting receive.message.max.bytes (100000000 \
                         unless set): raise that first, in queue.kafka.properties, to several times the largest batch (up \
                         to 1000000000; so much memory more may be needed), and restart. Otherwise";

/// A batch that waits for the topic's identity for this long is shown: it is asked for within milliseconds.
const UNPROVEN: Duration = Duration::from_secs(10);

/// A transaction that is open for this long is shown: those of this daemon are given up before.
const OPEN: Duration = Duration::from_secs(15);

/// What speaks against a source's work at present: one outcome for operators, out of what librdkafka and the offset reader
/// say.
///
/// The brokers answering is not enough. librdkafka says once that a right is missing, and then is silent; a batch that
/// cannot be read is fetched again and again, and looks like a partition without records; a partition without a leader
/// is simply not mentioned.
#[derive(Debug, Default)]
pub(super) struct SourceStatus {
    /// The brokers have answered at all.
    heard: bool,
    silent_lookups: u32,
    /// The brokers do not answer, or know no such topic or user.
    unreachable: Option<String>,
    /// A right is missing; until an assignment or a record says otherwise.
    refused: Option<String>,
    /// A batch cannot be read, and when that was said last.
    unreadable: Option<(String, Instant)>,
    /// Since when the brokers are silent about a partition that is ours.
    silent: BTreeMap<Partition, Instant>,
    /// Since when a batch waits until the brokers say that its topic is still the same.
    unproven: Option<Instant>,
    /// Where the first open transaction of a partition begins, how many offsets stand from there on, and since when that is
    /// so.
    open: BTreeMap<Partition, (Offset, u64, Instant)>,
    /// What was told last.
    told: Option<Result<(), String>>,
}

impl SourceStatus {
    /// The brokers answered, about these of our partitions.
    pub fn answered(&mut self, held: BTreeSet<Partition>, about: &BTreeSet<Partition>, now: Instant) {
        self.heard = true;
        self.silent_lookups = 0;
        self.unreachable = None;
        self.silent.retain(|partition, _| held.contains(partition) && !about.contains(partition));
        for partition in held.difference(about) {
            self.silent.entry(*partition).or_insert(now);
        }
    }

    /// The logs' ends, at each lookup.
    pub fn ends(&mut self, ranges: &[(Partition, LogRange)], now: Instant) {
        for (partition, log) in ranges {
            let since = self.open.remove(partition).filter(|(begins, ..)| *begins == log.end);
            if log.high > log.end {
                let since = since.map_or(now, |(_, _, since)| since);
                self.open.insert(*partition, (log.end, log.high.since(log.end), since));
            }
        }
        self.open.retain(|partition, _| ranges.iter().any(|(answered, _)| answered == partition));
    }

    /// A lookup was not answered.
    pub fn unanswered(&mut self, reason: String) {
        self.silent_lookups += 1;
        if self.silent_lookups >= SILENT_LOOKUPS {
            self.unreachable = Some(reason);
        }
    }

    /// librdkafka has lost all connections, or gets none.
    pub fn disconnected(&mut self, reason: String) {
        self.unreachable = Some(reason);
    }

    /// We got partitions, or a record.
    pub fn progressed(&mut self) {
        self.refused = None;
    }

    /// A batch waits for an answer of the topic watch.
    pub fn waits_for_watch(&mut self, now: Instant) {
        self.unproven.get_or_insert(now);
    }

    /// The topic watch has answered, or nothing waits for it.
    pub fn watch_unneeded(&mut self) {
        self.unproven = None;
    }

    /// Takes an error of the consumer's; whether it is one that is shown, or passing.
    pub fn apply(&mut self, code: Code, topic: &str, now: Instant) -> bool {
        match code {
            // Said by the context already, or passing: librdkafka tries again.
            Code::AllBrokersDown | Code::BrokerTransportFailure | Code::Resolve | Code::OperationTimedOut => {}
            Code::TopicAuthorizationFailed => {
                self.refused =
                    Some(format!("topic {topic}: {code}: give this user the rights Describe and Read on it"));
            }
            Code::GroupAuthorizationFailed => {
                self.refused = Some(format!("topic {topic}: {code}: give this user the right Read on the group"));
            }
            // The next answer says that this is over.
            Code::UnknownTopicOrPartition | Code::UnknownTopic => {
                self.unreachable = Some(format!("topic {topic}: {code}"));
            }
            Code::BadMessage | Code::BadCompression | Code::NotImplemented | Code::InvalidMessage => {
                let reason = format!(
                    "topic {topic}: a batch of records cannot be read ({code}); its partition stands still. {} it is \
                     damaged, or of a format or compression that this release does not know: use a release that knows \
                     it; if there is none, remove the log up to the batch's end (kafka-delete-records), which loses all \
                     records before it that were not archived, and set archive.on_gap = \"skip\"",
                    if code == Code::BadCompression { TOO_LARGE } else { "As a rule" }
                );
                self.unreadable = Some((reason, now));
            }
            _ => return false,
        }
        true
    }

    /// The outcome, where it differs from the one that was told last. Nothing before the brokers' first answer.
    pub fn news(&mut self, now: Instant) -> Option<Result<(), String>> {
        self.unreadable.take_if(|(_, said)| now.duration_since(*said) >= UNREADABLE);
        let outcome = match self.complaint(now) {
            Some(reason) => Err(reason),
            None if !self.heard => return None,
            None => Ok(()),
        };
        if self.told.as_ref() == Some(&outcome) {
            return None;
        }
        self.told = Some(outcome.clone());
        Some(outcome)
    }

    fn complaint(&self, now: Instant) -> Option<String> {
        let silent = || {
            let long = self.silent.iter().filter(|(_, since)| now.duration_since(**since) >= LEADERLESS);
            let names: Vec<String> = long.map(|(partition, _)| partition.to_string()).collect();
            (!names.is_empty()).then(|| {
                format!(
                    "no broker tells the end of the log for partition(s) {}: they have no leader, it is away, or too few \
                     replicas are in sync; the others go on. See to the brokers that hold them",
                    names.join(", ")
                )
            })
        };
        let unproven = || {
            self.unproven.filter(|since| now.duration_since(*since) >= UNPROVEN).map(|_| {
                "the brokers do not say the topic's id, so that records cannot be told from those of a topic that was \
                 created anew: see to it that they answer, and that this user has the right Describe on the topic"
                    .to_owned()
            })
        };
        let open = || {
            let long = self.open.iter().filter(|(_, (_, _, since))| now.duration_since(*since) >= OPEN);
            let names: Vec<String> = long
                .map(|(partition, (begins, offsets, _))| {
                    format!("partition {partition} from offset {begins} on ({offsets} offsets wait)")
                })
                .collect();
            (!names.is_empty()).then(|| {
                format!(
                    "a transaction of another program is open, and no record behind its beginning can be read: {}. It \
                     ends with that program, or at its transaction.timeout.ms; to end it now: kafka-transactions abort \
                     --topic TOPIC --partition PARTITION --start-offset OFFSET",
                    names.join(", ")
                )
            })
        };
        let unreadable = self.unreadable.as_ref().map(|(reason, _)| reason);
        self.unreachable
            .as_ref()
            .or(self.refused.as_ref())
            .or(unreadable)
            .cloned()
            .or_else(unproven)
            .or_else(silent)
            .or_else(open)
    }
}

#[cfg(test)]
mod tests;
