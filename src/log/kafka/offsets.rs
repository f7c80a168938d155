//! The offset reader: a thread beside the source's that asks the brokers where the group and the log stand. Its questions
//! block, for seconds when a broker hangs; the source has to go on polling meanwhile, or it loses its membership.
//!
//! It uses the source's own client, which is thread-safe, so it costs no further connection.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use crossbeam_channel::{Receiver, Sender, bounded};
use parking_lot::{Condvar, Mutex, MutexGuard};
use rdkafka::{
    ClientConfig, Offset as KafkaOffset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    error::{KafkaError, KafkaResult},
    types::RDKafkaErrorCode as Code,
};

use crate::{
    backoff::Backoff,
    config::Config,
    log::kafka::{
        client::{
            self, Context, Reconnect, a_new_client_is_answered, commit_metadata, high_watermark, partitions_of_members,
            topic_identity,
        },
        group::{CommitMetadata, Guest, SourceConsumer, Unowned},
        settings,
    },
    position::{Offset, Partition, TopicIdentity},
};

/// One question to the brokers.
const DEADLINE: Duration = Duration::from_secs(3);
/// For one partition, when asking for all failed.
const ONE_DEADLINE: Duration = Duration::from_secs(2);
/// The log's ends are looked at so often, for the lag; it also shows whether the brokers still answer.
const TICK: Duration = Duration::from_secs(3);
/// After a failed question.
const BACKOFF: Backoff = Backoff::new(Duration::from_millis(250), TICK);

/// The first offset that the log holds, and the one behind the last record that can be read: behind it stand at most those
/// of transactions that are open, and of others since the first of them began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LogRange {
    pub start: Offset,
    pub end: Offset,
    /// The one that the next record gets, as the last fetch told: beyond `end` while a transaction is open, and old where
    /// nothing is fetched. It counts as lag, and decides nothing.
    pub high: Offset,
}

/// What is known of a partition that was asked for.
#[derive(Debug)]
pub(super) struct PartitionOffsets {
    pub partition: Partition,
    /// The number under which it was asked for.
    pub round: u64,
    pub committed: Option<Offset>,
    pub log: LogRange,
}

#[derive(Debug)]
pub(super) enum Finding {
    PartitionOffsets {
        partitions: Vec<PartitionOffsets>,
        written_by: CommitMetadata,
        partition_count: usize,
    },
    /// The log of each watched partition, at every tick.
    Log {
        ranges: Vec<(Partition, LogRange)>,
        partition_count: usize,
    },
    /// The brokers did not answer; they are asked again.
    Unreachable(String),
    /// This client finds none of them any more, while a new one does.
    NeedsReconnect,
}

/// The source's end of the offset reader.
pub(super) struct OffsetReader {
    wanted: Arc<Wanted>,
    /// Bounded: the source empties it several times a second, and the reader can wait.
    pub findings: Receiver<Finding>,
    thread: JoinHandle<()>,
}

#[derive(Default)]
struct Wanted {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Partitions to be found, each with its round.
    asked: BTreeMap<Partition, u64>,
    /// Partitions whose log is looked at with every tick.
    watched: BTreeSet<Partition>,
    /// Look at the logs now.
    now: bool,
    stop: bool,
}

impl Wanted {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}

impl OffsetReader {
    pub(super) fn start(
        consumer: Arc<SourceConsumer>,
        plain: ClientConfig,
        membership: Membership,
        topic: &str,
        generation: u32,
    ) -> anyhow::Result<Self> {
        let wanted = Arc::new(Wanted::default());
        let (sender, findings) = bounded(16);
        let wanted_too = wanted.clone();
        let reader = Reader {
            consumer,
            plain,
            membership,
            topic: topic.to_owned(),
            generation,
            wanted: wanted_too,
            findings: sender,
        };
        let thread = std::thread::Builder::new()
            .name("kafka-offsets".to_owned())
            .spawn(move || reader.run())
            .context("cannot start the thread that asks Kafka for positions")?;
        Ok(Self { wanted, findings, thread })
    }

    /// Asks for these partitions. The answer comes as [`Finding::PartitionOffsets`] when the brokers give it.
    pub(super) fn ask(&self, partitions: impl IntoIterator<Item = Partition>, round: u64) {
        let mut state = self.wanted.state();
        state.asked.extend(partitions.into_iter().map(|partition| (partition, round)));
        self.wanted.changed.notify_one();
    }

    /// Asks for the logs' ranges now.
    pub(super) fn look(&self) {
        self.wanted.state().now = true;
        self.wanted.changed.notify_one();
    }

    /// Sets the partitions whose logs are looked at; others are not asked for any more.
    pub(super) fn watch(&self, partitions: BTreeSet<Partition>) {
        let mut state = self.wanted.state();
        state.asked.retain(|partition, _| partitions.contains(partition));
        state.watched = partitions;
    }

    /// Whether the thread has ended, which it does unasked by a panic only.
    pub(super) fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }

    /// Ends the thread; the question that it asks may take until its deadline, so whoever cannot wait joins elsewhere.
    pub(super) fn stop(self) -> JoinHandle<()> {
        self.wanted.state().stop = true;
        self.wanted.changed.notify_one();
        self.thread
    }
}

/// How a member joins the group.
pub(super) struct Membership {
    pub group: String,
    pub settings: ClientConfig,
    /// Such that the group does not read, the best first.
    pub other_topics: Vec<String>,
}

struct Reader {
    consumer: Arc<SourceConsumer>,
    /// Of a client without a group.
    plain: ClientConfig,
    membership: Membership,
    topic: String,
    generation: u32,
    wanted: Arc<Wanted>,
    findings: Sender<Finding>,
}

impl Reader {
    fn run(&self) {
        let mut pause = TICK;
        let mut failures = 0;
        let mut reconnect = Reconnect::default();
        let (mut unowned, mut guest) = (Unowned::new(Instant::now()), None);
        while let Some((asked, watched)) = self.next(pause) {
            match self.look_up(&asked, &watched) {
                Ok(findings) => {
                    reconnect.answered();
                    if self.answered(&asked, &findings) {
                        pause = TICK;
                        failures = 0;
                    } else {
                        failures += 1;
                        pause = BACKOFF.pause(failures);
                    }
                    let count = findings.iter().find_map(|finding| match finding {
                        Finding::Log { partition_count, .. } => Some(*partition_count),
                        _ => None,
                    });
                    // An error says that the source has gone.
                    if findings.into_iter().any(|finding| self.findings.send(finding).is_err()) {
                        break;
                    }
                    // Behind what the source waits for.
                    if let Some(count) = count.filter(|_| asked.is_empty() && self.go_on().is_ok()) {
                        self.look_at_group(&mut unowned, &mut guest, &watched, count);
                    }
                }
                Err(error) => {
                    failures += 1;
                    pause = BACKOFF.pause(failures);
                    let reason = format!("{error}{}", self.consumer.context().says());
                    if self.findings.send(Finding::Unreachable(reason)).is_err() {
                        break;
                    }
                    if reconnect.unanswered(Instant::now(), || self.is_alone_without_answer())
                        && self.findings.send(Finding::NeedsReconnect).is_err()
                    {
                        break;
                    }
                }
            }
        }
        if let Some(guest) = guest {
            guest.leave();
        }
    }

    /// Has the group divide its partitions anew where nobody reads one.
    fn look_at_group(
        &self,
        unowned: &mut Unowned,
        guest: &mut Option<Guest>,
        watched: &BTreeSet<Partition>,
        count: usize,
    ) {
        if !unowned.is_due(Instant::now(), watched.len(), count) || guest.as_ref().is_some_and(|one| !one.is_finished())
        {
            return;
        }
        let Membership { group, settings, other_topics } = &self.membership;
        let owned = partitions_of_members(self.consumer.client(), group, &self.topic, DEADLINE);
        if let Err(error) = &owned {
            // Brokers that are away are reported by the lookups.
            tracing::debug!(group, %error, "the group cannot be asked who reads what");
        }
        let lasting = unowned.found(Instant::now(), owned.ok().flatten().as_ref(), watched, count);
        if lasting.is_empty() {
            return;
        }
        let partitions: Vec<i32> = lasting.iter().map(|partition| partition.0).collect();
        tracing::warn!(
            group,
            topic = self.topic,
            ?partitions,
            "nobody in the group reads these partitions, as after a worker that died while they changed hands; a member joins for a moment, so that the group divides them anew"
        );
        match Guest::start(settings, &self.topic, other_topics) {
            Ok(started) => *guest = Some(started),
            Err(error) => tracing::warn!(%error, "no thread to join the group on"),
        }
    }

    /// A lookup may fail at one broker, or for want of a right; this is about finding any broker at all.
    fn is_alone_without_answer(&self) -> bool {
        topic_identity(self.consumer.client(), &self.topic, DEADLINE).is_err()
            && a_new_client_is_answered(&self.plain, &self.topic)
    }

    /// Waits for something to ask, at most `pause`. After a failure the pause holds for what is asked, too.
    fn next(&self, pause: Duration) -> Option<(BTreeMap<Partition, u64>, BTreeSet<Partition>)> {
        let until = Instant::now() + pause;
        let mut state = self.wanted.state();
        loop {
            if state.stop {
                return None;
            }
            let left = until.saturating_duration_since(Instant::now());
            let urgent = pause == TICK && (state.now || !state.asked.is_empty());
            if left.is_zero() || urgent {
                state.now = false;
                return Some((state.asked.clone(), state.watched.clone()));
            }
            let _ = self.wanted.changed.wait_for(&mut state, left);
        }
    }

    /// Forgets what was answered, unless it was asked again meanwhile; whether that was all of `asked`. A partition
    /// without a leader is asked for again.
    fn answered(&self, asked: &BTreeMap<Partition, u64>, findings: &[Finding]) -> bool {
        let found = findings.iter().flat_map(|finding| match finding {
            Finding::PartitionOffsets { partitions, .. } => partitions.as_slice(),
            _ => &[],
        });
        let mut state = self.wanted.state();
        let mut answers = 0;
        for PartitionOffsets { partition, round, .. } in found {
            answers += 1;
            if state.asked.get(partition) == Some(round) {
                state.asked.remove(partition);
            }
        }
        answers == asked.len()
    }

    /// Between two questions, each of which may wait behind a fetch that finds nothing.
    fn go_on(&self) -> KafkaResult<()> {
        if self.wanted.state().stop { Err(KafkaError::Canceled) } else { Ok(()) }
    }

    fn look_up(&self, asked: &BTreeMap<Partition, u64>, watched: &BTreeSet<Partition>) -> KafkaResult<Vec<Finding>> {
        // Asked before and after: what is found between is of one topic.
        let identity = if asked.is_empty() { None } else { Some(self.identity()?) };
        self.go_on()?;
        let partition_count = self.partition_count()?;
        let all: BTreeSet<Partition> = asked.keys().chain(watched).copied().collect();
        if all.is_empty() {
            return Ok(vec![Finding::Log { ranges: Vec::new(), partition_count }]);
        }
        self.go_on()?;
        let starts = self.ask_log(&all, KafkaOffset::Beginning)?;
        self.go_on()?;
        let ends = self.ask_log(&all, KafkaOffset::End)?;
        let range = |partition: &Partition| {
            let (start, end) = (*starts.get(partition)?, *ends.get(partition)?);
            let high = high_watermark(self.consumer.client(), &self.topic, *partition);
            Some(LogRange { start, end, high: high.map_or(end, |high| high.max(end)) })
        };
        let ranges = all.iter().filter_map(|partition| Some((*partition, range(partition)?))).collect();
        let mut findings = vec![Finding::Log { ranges, partition_count }];
        if let Some(identity) = identity {
            self.go_on()?;
            let committed = self.ask_committed(asked.keys().filter(|partition| range(partition).is_some()))?;
            let written_by = CommitMetadata { identity, generation: self.generation };
            let found = |(partition, round): (&Partition, &u64)| {
                let log = range(partition)?;
                let committed = committed.get(partition).and_then(|(position, metadata)| {
                    let accepted = written_by.accepts(*position, metadata, log.end);
                    if !accepted {
                        tracing::warn!(topic = self.topic, %partition, %position, metadata, log_end = %log.end,
                            "the group's position is of another topic of this name, and is not used");
                    }
                    accepted.then_some(*position)
                });
                Some(PartitionOffsets { partition: *partition, round: *round, committed, log })
            };
            let partitions: Vec<PartitionOffsets> = asked.iter().filter_map(found).collect();
            self.go_on()?;
            if written_by.identity != self.identity()? {
                return Err(KafkaError::MetadataFetch(Code::UnknownTopicId));
            }
            if !partitions.is_empty() {
                findings.push(Finding::PartitionOffsets { partitions, written_by, partition_count });
            }
        }
        Ok(findings)
    }

    fn identity(&self) -> KafkaResult<TopicIdentity> {
        topic_identity(self.consumer.client(), &self.topic, DEADLINE).map_err(KafkaError::MetadataFetch)
    }

    fn partition_count(&self) -> KafkaResult<usize> {
        let metadata = self.consumer.fetch_metadata(Some(&self.topic), DEADLINE)?;
        let topic = metadata.topics().iter().find(|topic| topic.name() == self.topic);
        match topic {
            Some(topic) if !topic.partitions().is_empty() => Ok(topic.partitions().len()),
            Some(topic) if let Some(error) = topic.error() => Err(KafkaError::MetadataFetch(error.into())),
            _ => Err(KafkaError::MetadataFetch(Code::UnknownTopicOrPartition)),
        }
    }

    /// One end of the log of each partition, in one request a broker: `ListOffsets` takes the logical offsets as
    /// timestamps (-1 latest, -2 earliest).
    fn ask_log(&self, partitions: &BTreeSet<Partition>, end: KafkaOffset) -> KafkaResult<BTreeMap<Partition, Offset>> {
        let ask = |partitions: &BTreeSet<Partition>, deadline| {
            let answer = self.consumer.offsets_for_times(self.list(partitions, end)?, deadline)?;
            Ok(offsets(&answer).0)
        };
        match ask(partitions, DEADLINE) {
            Err(error) if partitions.len() > 1 => {
                // One broker that is away fails the question for all: the others' partitions can be asked for alone.
                let each = partitions.iter().filter_map(|one| ask(&BTreeSet::from([*one]), ONE_DEADLINE).ok());
                let known: BTreeMap<_, _> = each.flatten().collect();
                if known.is_empty() { Err(error) } else { Ok(known) }
            }
            answer => answer,
        }
    }

    fn ask_committed<'p>(
        &self,
        partitions: impl IntoIterator<Item = &'p Partition>,
    ) -> KafkaResult<BTreeMap<Partition, (Offset, String)>> {
        let answer = self.consumer.committed_offsets(self.list(partitions, KafkaOffset::Invalid)?, DEADLINE)?;
        // A position that cannot be told is not one that does not exist.
        let (offsets, failed) = offsets(&answer);
        if let Some(error) = failed {
            return Err(error);
        }
        let mut metadata = commit_metadata(&answer);
        let with_metadata = |(partition, offset)| {
            let metadata = metadata.remove(&partition).unwrap_or_default();
            (partition, (offset, metadata))
        };
        Ok(offsets.into_iter().map(with_metadata).collect())
    }

    fn list<'p>(
        &self,
        partitions: impl IntoIterator<Item = &'p Partition>,
        offset: KafkaOffset,
    ) -> KafkaResult<TopicPartitionList> {
        let mut list = TopicPartitionList::new();
        for partition in partitions {
            list.add_partition_offset(&self.topic, partition.0, offset)?;
        }
        Ok(list)
    }
}

/// The offsets in an answer, and the first error; partitions with an error or without an offset are left out.
fn offsets(answer: &TopicPartitionList) -> (BTreeMap<Partition, Offset>, Option<KafkaError>) {
    let (mut offsets, mut failed) = (BTreeMap::new(), None);
    for element in answer.elements() {
        if let Err(error) = element.error() {
            failed.get_or_insert(error);
            continue;
        }
        if let KafkaOffset::Offset(offset) = element.offset()
            && let Some(offset) = Offset::from_kafka(offset)
        {
            offsets.insert(Partition(element.partition()), offset);
        }
    }
    (offsets, failed)
}

//
// The end of a partition's log may hold no records: the markers of transactions (a replay of dead letters is one) take
// offsets as well. Nobody delivers them, so a sink that has everything would seem to lag behind for as long as nothing
// is appended.
//
// When a partition has stood still below its log's end from one look to the next, a client of its own reads from
// there. The end was known before, so when that client is at the end without a record, there is none below it.

/// A client that has heard nothing by then leaves the question open.
const EMPTY_DEADLINE: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(100);

/// What is known of the ends of the logs that are read.
pub(super) struct EmptyEnds {
    settings: ClientConfig,
    topic: String,
    /// Where each stood, and its log's end, when it was looked at last.
    looked: BTreeMap<Partition, EmptyEnd>,
    empty: BTreeMap<Partition, EmptyEnd>,
    /// The one question that is being asked.
    asking: Option<(Partition, EmptyEnd, JoinHandle<bool>)>,
}

/// `[from, to)`, up to the log's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct EmptyEnd {
    from: Offset,
    to: Offset,
}

impl EmptyEnds {
    pub fn new(config: &Config) -> Self {
        Self {
            settings: settings::dead_letter_reader(config),
            topic: config.queue.topic.clone(),
            looked: BTreeMap::new(),
            empty: BTreeMap::new(),
            asking: None,
        }
    }

    /// Called with each look at the logs: whether nothing but markers stands between what was delivered, where all of
    /// that is handed on, and the log's end.
    pub fn is_empty(&mut self, partition: Partition, delivered: Option<Offset>, end: Offset) -> bool {
        if let Some((asked, stretch, thread)) = self.asking.take_if(|(_, _, thread)| thread.is_finished())
            && thread.join().unwrap_or(false)
        {
            self.empty.insert(asked, stretch);
        }
        let Some(from) = delivered.filter(|from| *from < end) else {
            self.looked.remove(&partition);
            return false;
        };
        let stretch = EmptyEnd { from, to: end };
        if self.empty.get(&partition) == Some(&stretch) {
            return true;
        }
        if self.looked.insert(partition, stretch) == Some(stretch) && self.asking.is_none() {
            self.ask(partition, stretch);
        }
        false
    }

    fn ask(&mut self, partition: Partition, stretch: EmptyEnd) {
        let (settings, topic) = (self.settings.clone(), self.topic.clone());
        let ask = move || {
            holds_nothing(&settings, &topic, partition, stretch.from).unwrap_or_else(|error| {
                tracing::debug!(%error, %partition, "the end of a log could not be looked at, trying again");
                false
            })
        };
        match std::thread::Builder::new().name("kafka-empty-end".to_owned()).spawn(ask) {
            Ok(thread) => self.asking = Some((partition, stretch, thread)),
            Err(error) => tracing::debug!(%error, "no thread to look at the end of a log with, trying again"),
        }
    }

    /// Waits for the question that is being asked, at most its deadline.
    pub fn finish(self) {
        if let Some((_, _, thread)) = self.asking {
            // A panic was reported by the thread that it ended.
            let _ = thread.join();
        }
    }
}

/// Reads from `from` until there is a record or the end.
fn holds_nothing(settings: &ClientConfig, topic: &str, partition: Partition, from: Offset) -> KafkaResult<bool> {
    let consumer: BaseConsumer<Context> = client::open(settings)?;
    let mut at = TopicPartitionList::new();
    at.add_partition_offset(topic, partition.0, KafkaOffset::Offset(from.as_i64()))?;
    consumer.assign(&at)?;
    let deadline = Instant::now() + EMPTY_DEADLINE;
    while Instant::now() < deadline {
        match consumer.poll(POLL) {
            Some(Ok(_)) => return Ok(false),
            Some(Err(KafkaError::PartitionEOF(_))) => return Ok(true),
            Some(Err(error)) => tracing::debug!(%error, "while looking at the end of a log"),
            None => {}
        }
    }
    Ok(false)
}
