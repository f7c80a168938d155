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
use parking_lot::{Condvar, Mutex};
use rdkafka::{
    ClientConfig, Offset as KafkaOffset,
    consumer::Consumer,
    error::{KafkaError, KafkaResult},
    types::RDKafkaErrorCode as Code,
};

use crate::{
    backoff::Backoff,
    log::kafka::{
        client::{
            Reconnect, a_new_client_is_answered, commit_metadata, high_watermark, list, no_failed, offsets,
            partitions_of_members, topic_identity, topic_in,
        },
        group::{CommitMetadata, Guest, SourceConsumer, Unowned},
    },
    position::{Offset, Partition, TopicIdentity},
};

/// One question to the brokers.
const DEADLINE: Duration = Duration::from_secs(3);
/// One question to the group's coordinator: a stop may have to wait for it, and for a member that leaves.
const GROUP_DEADLINE: Duration = Duration::from_millis(1500);
/// For one partition, when asking for all failed.
const ONE_DEADLINE: Duration = Duration::from_secs(2);
/// The pause between two looks at the logs' ends, for the lag; they also show whether the brokers still answer.
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
    /// The brokers answered, at every tick, or because partitions were asked for.
    Lookup(Lookup),
    /// The brokers did not answer; they are asked again.
    Unreachable(String),
    /// This client finds none of them any more, while a new one does.
    NeedsReconnect,
}

#[derive(Debug)]
pub(super) struct Lookup {
    /// The log of each partition that is watched, or was asked for.
    pub ranges: Vec<(Partition, LogRange)>,
    pub partition_count: usize,
    /// The partitions that were asked for, and what their positions belong to; `None` where none was found.
    pub found: Option<(Vec<PartitionOffsets>, CommitMetadata)>,
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
        let (topic, wanted_too) = (topic.to_owned(), wanted.clone());
        let reader = Reader { consumer, plain, membership, topic, generation, wanted: wanted_too, findings: sender };
        let thread = std::thread::Builder::new()
            .name("kafka-offsets".to_owned())
            .spawn(move || reader.run())
            .context("cannot start the thread that asks Kafka for positions")?;
        Ok(Self { wanted, findings, thread })
    }

    /// Asks for these partitions. The answer comes as [`Lookup::found`] when the brokers give it.
    pub(super) fn ask(&self, partitions: impl IntoIterator<Item = Partition>, round: u64) {
        let mut state = self.wanted.state.lock();
        state.asked.extend(partitions.into_iter().map(|partition| (partition, round)));
        self.wanted.changed.notify_one();
    }

    /// Asks for the logs' ranges now.
    pub(super) fn look(&self) {
        self.wanted.state.lock().now = true;
        self.wanted.changed.notify_one();
    }

    /// Sets the partitions whose logs are looked at; others are not asked for any more.
    pub(super) fn watch(&self, partitions: BTreeSet<Partition>) {
        let mut state = self.wanted.state.lock();
        state.asked.retain(|partition, _| partitions.contains(partition));
        state.watched = partitions;
    }

    /// Whether the thread has ended, which it does unasked by a panic only.
    pub(super) fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }

    /// Ends the thread; the question that it asks may take until its deadline, so one who cannot wait joins elsewhere.
    pub(super) fn stop(self) -> JoinHandle<()> {
        self.wanted.state.lock().stop = true;
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
                Ok(lookup) => {
                    reconnect.answered();
                    failures = if self.answered(&asked, lookup.found.as_ref()) { 0 } else { failures + 1 };
                    let count = lookup.partition_count;
                    // An error says that the source has gone.
                    if self.findings.send(Finding::Lookup(lookup)).is_err() {
                        break;
                    }
                    // Behind what the source waits for.
                    if self.go_on().is_ok() {
                        self.look_at_group(&mut unowned, &mut guest, &watched, count);
                    }
                }
                Err(error) => {
                    failures += 1;
                    let reason = format!("{error}{}", self.consumer.context().says());
                    if self.findings.send(Finding::Unreachable(reason)).is_err()
                        || reconnect.unanswered(Instant::now(), || self.is_alone_without_answer())
                            && self.findings.send(Finding::NeedsReconnect).is_err()
                    {
                        break;
                    }
                }
            }
            pause = if failures == 0 { TICK } else { BACKOFF.pause(failures) };
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
        let owned = partitions_of_members(self.consumer.client(), group, &self.topic, GROUP_DEADLINE);
        if let Err(error) = &owned {
            // Brokers that are away are reported by the lookups.
            tracing::debug!(group, %error, "the group cannot be asked who reads what");
        }
        let lasting = unowned.found(Instant::now(), owned.ok().flatten().as_ref(), watched, count);
        if lasting.is_empty() || self.go_on().is_err() {
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
        self.partition_count().and_then(|_| self.identity()).is_err()
            && a_new_client_is_answered(&self.plain, &self.topic)
    }

    /// Waits for something to ask, at most `pause`. After a failure the pause holds for what is asked, too.
    fn next(&self, pause: Duration) -> Option<(BTreeMap<Partition, u64>, BTreeSet<Partition>)> {
        let until = Instant::now() + pause;
        let mut state = self.wanted.state.lock();
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
    fn answered(
        &self,
        asked: &BTreeMap<Partition, u64>,
        found: Option<&(Vec<PartitionOffsets>, CommitMetadata)>,
    ) -> bool {
        let found = found.map_or(&[][..], |(partitions, _)| partitions);
        let mut state = self.wanted.state.lock();
        for PartitionOffsets { partition, round, .. } in found {
            if state.asked.get(partition) == Some(round) {
                state.asked.remove(partition);
            }
        }
        found.len() == asked.len()
    }

    /// Between two questions, each of which may wait behind a fetch that finds nothing.
    fn go_on(&self) -> KafkaResult<()> {
        if self.wanted.state.lock().stop { Err(KafkaError::Canceled) } else { Ok(()) }
    }

    fn look_up(&self, asked: &BTreeMap<Partition, u64>, watched: &BTreeSet<Partition>) -> KafkaResult<Lookup> {
        let partition_count = self.partition_count()?;
        self.go_on()?;
        // Asked before and after: what is found between is of one topic.
        let identity = if asked.is_empty() { None } else { Some(self.identity()?) };
        // Of the topic of that identity.
        let partition_count = if asked.is_empty() { partition_count } else { self.partition_count()? };
        let all: BTreeSet<Partition> = asked.keys().chain(watched).copied().collect();
        if all.is_empty() {
            return Ok(Lookup { ranges: Vec::new(), partition_count, found: None });
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
        let mut lookup = Lookup { ranges, partition_count, found: None };
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
                lookup.found = Some((partitions, written_by));
            }
        }
        Ok(lookup)
    }

    /// Only behind another answer, as [`topic_identity`] says.
    fn identity(&self) -> KafkaResult<TopicIdentity> {
        topic_identity(self.consumer.client(), &self.topic, DEADLINE).map_err(KafkaError::MetadataFetch)
    }

    fn partition_count(&self) -> KafkaResult<usize> {
        let metadata = self.consumer.fetch_metadata(Some(&self.topic), DEADLINE)?;
        let topic = topic_in(&metadata, &self.topic).map_err(KafkaError::MetadataFetch)?;
        let unknown = KafkaError::MetadataFetch(Code::UnknownTopicOrPartition);
        topic.map(|topic| topic.partitions().len()).ok_or(unknown)
    }

    /// One end of the log of each partition, in one request a broker: `ListOffsets` takes the logical offsets as
    /// timestamps (-1 latest, -2 earliest).
    fn ask_log(&self, partitions: &BTreeSet<Partition>, end: KafkaOffset) -> KafkaResult<BTreeMap<Partition, Offset>> {
        let ask = |partitions: &BTreeSet<Partition>, deadline| {
            let answer = self
                .consumer
                .offsets_for_times(list(&self.topic, partitions.iter().map(|one| (one.0, end)))?, deadline)?;
            Ok(offsets(&answer))
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
        let asked = list(&self.topic, partitions.into_iter().map(|one| (one.0, KafkaOffset::Invalid)))?;
        let answer = self.consumer.committed_offsets(asked, DEADLINE)?;
        // A position that is not answered is not one that does not exist.
        no_failed(&answer)?;
        let mut metadata = commit_metadata(&answer);
        let with_metadata =
            |(partition, offset)| (partition, (offset, metadata.remove(&partition).unwrap_or_default()));
        Ok(offsets(&answer).into_iter().map(with_metadata).collect())
    }
}
