//! A consumer's place in its group: rebalances as they happen, the positions that a sink confirmed and the thread that
//! commits them, and whether anybody reads the partitions that this member does not.
//!
//! librdkafka calls back within `poll`, on the source's own thread. The callback only does what has to be done before
//! the partitions change hands (commit, pause) and leaves a note of it; the source acts on the note when `poll`
//! returns.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, select};
use parking_lot::Mutex;
use rdkafka::{
    ClientConfig, Offset as KafkaOffset, TopicPartitionList,
    config::FromClientConfigAndContext,
    consumer::{BaseConsumer, CommitMode, Consumer},
    types::{RDKafkaErrorCode as Code, RDKafkaRespErr},
};

use crate::{
    backoff::jitter,
    log::kafka::client::{Context, Role},
    position::{Offset, Partition, TopicIdentity},
};

/// What became of our share of the partitions.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// They are ours, and librdkafka does not fetch them yet.
    Assigned(Vec<Partition>),
    /// They are not ours any more; what was confirmed of them is committed, unless they were lost.
    Revoked(Vec<Partition>),
}

/// A source's consumer.
pub(super) type SourceConsumer = BaseConsumer<Context<Group>>;

/// The role of a source's consumer.
pub(super) struct Group {
    topic: String,
    /// What the sink confirmed, and what of it was sent to the group.
    pub commits: Mutex<Commits>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    changes: Vec<Change>,
    /// Goes with each position as its metadata; known before there is any.
    written_by: Option<CommitMetadata>,
    /// The positions are committed already and the partitions stay with this member.
    closing: bool,
    unreachable: Option<String>,
}

impl Group {
    pub fn new(topic: &str) -> Self {
        Self { topic: topic.to_owned(), commits: Mutex::default(), state: Mutex::default() }
    }

    /// What happened since it was asked last, in its order.
    pub fn take_changes(&self) -> Vec<Change> {
        std::mem::take(&mut self.state.lock().changes)
    }

    /// That all brokers were lost since it was asked last, and why.
    pub fn take_unreachable(&self) -> Option<String> {
        self.state.lock().unreachable.take()
    }

    /// From now on a revocation is our own leaving.
    pub fn close(&self) {
        self.state.lock().closing = true;
    }

    /// What the positions belong to that are confirmed from now on.
    pub fn belongs_to(&self, written_by: CommitMetadata) {
        self.state.lock().written_by = Some(written_by);
    }

    /// A list for librdkafka, each partition at its offset, with what it belongs to.
    fn list(&self, positions: &[(Partition, Offset)]) -> TopicPartitionList {
        let list: TopicPartitionList = positions
            .iter()
            .map(|(partition, offset)| (self.topic.clone(), partition.0, KafkaOffset::Offset(offset.as_i64())))
            .collect();
        let metadata = self.state.lock().written_by.as_ref().map(CommitMetadata::to_metadata);
        if let Some(metadata) = metadata {
            list.elements().iter_mut().for_each(|element| element.set_metadata(&metadata));
        }
        list
    }

    fn assign(&self, consumer: &SourceConsumer, partitions: &TopicPartitionList) {
        // Where to begin only the sink knows, and it says so later: until then librdkafka is not to fetch them, so they
        // are in no assignment of its. (Assigned at a logical offset and paused, it looks for that offset again and
        // again, and an answer that comes after the sink's seek carries the partition away to the log's end.)
        if let Err(error) = consumer.incremental_assign(&TopicPartitionList::new()) {
            tracing::error!(%error, "librdkafka refuses the partitions that the group assigned");
            return;
        }
        let partitions = numbers(partitions);
        let mut commits = self.commits.lock();
        for partition in &partitions {
            commits.hold(*partition);
        }
        self.state.lock().changes.push(Change::Assigned(partitions));
    }

    fn revoke(&self, consumer: &SourceConsumer, partitions: &TopicPartitionList) {
        let revoked = numbers(partitions);
        let lost = consumer.assignment_lost();
        let due = self.commits.lock().take_due(|partition| revoked.contains(&partition));
        if !due.is_empty() && !lost && !self.state.lock().closing {
            // Bounded by session.timeout.ms while there is no coordinator, and by socket.timeout.ms.
            if let Err(error) = consumer.commit(&self.list(&due), CommitMode::Sync) {
                tracing::warn!(%error, "positions of revoked partitions are not committed: their next reader repeats");
            }
        }
        // A partition that is not begun, or is being restarted, is in no assignment, and naming it would fail them all.
        let held = consumer.assignment().map(|held| numbers(&held)).unwrap_or_default();
        let mut going = TopicPartitionList::new();
        for partition in revoked.iter().filter(|partition| held.contains(partition)) {
            going.add_partition(&self.topic, partition.0);
        }
        if let Err(error) = consumer.incremental_unassign(&going) {
            tracing::error!(%error, "librdkafka refuses to let revoked partitions go");
        }
        let mut commits = self.commits.lock();
        for partition in &revoked {
            commits.release(*partition);
        }
        self.state.lock().changes.push(Change::Revoked(revoked));
    }
}

fn numbers(partitions: &TopicPartitionList) -> Vec<Partition> {
    partitions.elements().iter().map(|element| Partition(element.partition())).collect()
}

impl Role for Group {
    fn error(&self, code: Option<Code>, reason: &str, last: &mut Option<String>) {
        if code == Some(Code::AllBrokersDown) {
            self.state.lock().unreachable = Some(last.clone().unwrap_or_else(|| reason.to_owned()));
        } else {
            *last = Some(reason.to_owned());
        }
    }

    fn rebalance(&self, consumer: &SourceConsumer, what: RDKafkaRespErr, partitions: &TopicPartitionList) {
        match what {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => self.assign(consumer, partitions),
            _ => self.revoke(consumer, partitions),
        }
    }
}

/// From the first position that is due to its commit: those that come meanwhile go with it.
const COMMIT_EVERY: Duration = Duration::from_secs(1);
/// The pause before the last positions are tried again, where they could not be committed.
const LAST_TRY_EVERY: Duration = Duration::from_millis(100);

/// The positions of the partitions that are held: what was confirmed, and what of it was sent to the group.
#[derive(Default)]
pub(super) struct Commits(BTreeMap<Partition, Position>);

#[derive(Default)]
struct Position {
    confirmed: Option<Offset>,
    sent: Option<Offset>,
}

impl Commits {
    /// A new assignment: nothing is known of it.
    pub fn hold(&mut self, partition: Partition) {
        self.0.insert(partition, Position::default());
    }

    /// The group has this position already.
    pub fn stands(&mut self, partition: Partition, committed: Offset) {
        if let Some(held) = self.0.get_mut(&partition) {
            held.sent = Some(committed);
        }
    }

    pub fn release(&mut self, partition: Partition) {
        self.0.remove(&partition);
    }

    /// Everything before these positions is durable in the sink. Never backwards within an assignment, and never for
    /// partitions that are not held.
    pub fn confirm(&mut self, positions: &[(Partition, Offset)]) {
        for (partition, position) in positions {
            if let Some(held) = self.0.get_mut(partition) {
                held.confirmed = held.confirmed.max(Some(*position));
            }
        }
    }

    /// The positions that were confirmed and not sent. They count as sent now.
    pub fn take_due(&mut self, wanted: impl Fn(Partition) -> bool) -> Vec<(Partition, Offset)> {
        let mut due = Vec::new();
        for (partition, position) in self.0.iter_mut().filter(|(partition, _)| wanted(**partition)) {
            if let Some(confirmed) = position.confirmed.filter(|_| position.confirmed != position.sent) {
                position.sent = position.confirmed;
                due.push((*partition, confirmed));
            }
        }
        due
    }

    /// Whether any is due.
    pub fn has_due(&self) -> bool {
        self.0.values().any(|position| position.confirmed.is_some() && position.confirmed != position.sent)
    }

    /// They were not committed after all, and are due again.
    pub fn failed(&mut self, positions: &[(Partition, Offset)]) {
        for (partition, _) in positions {
            if let Some(position) = self.0.get_mut(partition) {
                position.sent = None;
            }
        }
    }
}

/// The thread that commits what is due, at most once a second.
///
/// It commits synchronously: with `rdkafka`'s event interface nobody hears what became of an asynchronous commit, and one
/// that failed would be forgotten.
pub(super) struct Committer {
    /// Says that something is due. One message that waits says all that several would.
    due: Sender<()>,
    /// Sends the deadline of the last commit.
    last: Sender<Instant>,
    thread: JoinHandle<()>,
}

impl Committer {
    pub fn start(consumer: Arc<SourceConsumer>) -> anyhow::Result<Self> {
        // One message, the last.
        let (last, asked) = bounded(1);
        let (due, woken) = bounded(1);
        let thread = std::thread::Builder::new()
            .name("kafka-commit".to_owned())
            .spawn(move || run(&consumer, &woken, &asked))
            .context("cannot start the thread that commits to Kafka")?;
        Ok(Self { due, last, thread })
    }

    /// To be called after positions were confirmed.
    pub fn wake(&self) {
        // Full: it is awake.
        let _ = self.due.try_send(());
    }

    /// Whether the thread has ended, which it does unasked by a panic only.
    pub fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }

    /// Commits what is due, then ends; until `deadline` a failure is tried again.
    pub fn finish(self, deadline: Instant) -> JoinHandle<()> {
        // An error says that the thread has ended.
        let _ = self.last.send(deadline);
        self.thread
    }
}

fn run(consumer: &SourceConsumer, woken: &Receiver<()>, asked: &Receiver<Instant>) {
    let Some(deadline) = keep(woken, asked, || commit(consumer)) else { return };
    while !commit(consumer) && Instant::now() < deadline {
        std::thread::sleep(LAST_TRY_EVERY);
    }
}

/// Commits what is due until the last commit is asked for, and returns that one's deadline; `None` when the source is gone.
/// `commit` says whether nothing is due any more.
fn keep(woken: &Receiver<()>, asked: &Receiver<Instant>, mut commit: impl FnMut() -> bool) -> Option<Instant> {
    loop {
        select! {
            recv(asked) -> deadline => return deadline.ok(),
            // The last commit may have been asked for before the source went, and both be ready here.
            recv(woken) -> word => if word.is_err() { return asked.recv().ok() },
        }
        loop {
            match asked.recv_timeout(COMMIT_EVERY) {
                Err(RecvTimeoutError::Timeout) if commit() => break,
                Err(RecvTimeoutError::Timeout) => {}
                Ok(deadline) => return Some(deadline),
                Err(RecvTimeoutError::Disconnected) => return None,
            }
        }
    }
}

/// Whether nothing is due any more. Blocks: without a coordinator for `session.timeout.ms`, else until it answers or
/// `socket.timeout.ms` is over.
fn commit(consumer: &SourceConsumer) -> bool {
    let group = consumer.context();
    let due = group.commits.lock().take_due(|_| true);
    if due.is_empty() {
        return true;
    }
    match consumer.commit(&group.list(&due), CommitMode::Sync) {
        Ok(()) => true,
        Err(error) => {
            // As a rule a rebalance under way.
            tracing::debug!(%error, "positions are not committed, trying again");
            group.commits.lock().failed(&due);
            false
        }
    }
}

/// The first word of our metadata; other tools write what they like.
const OURS: &str = "ingestd";

/// What a committed position belongs to: the topic, and how often the operator began anew with it. Kafka keeps a group's
/// offsets by the topic's name alone, also when the topic is deleted and created anew; so each position carries the topic's
/// identity, and our generation, as its metadata.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CommitMetadata {
    pub identity: TopicIdentity,
    pub generation: u32,
}

impl CommitMetadata {
    /// `ingestd generation=0 topic=<identity>`
    pub fn to_metadata(&self) -> String {
        format!("{OURS} generation={} topic={}", self.generation, self.identity)
    }

    /// `None` for what another tool, or an older release, wrote.
    fn from_metadata(metadata: &str) -> Option<Self> {
        let mut words = metadata.split(' ');
        if words.next() != Some(OURS) {
            return None;
        }
        let generation = words.next()?.strip_prefix("generation=")?.parse().ok()?;
        let identity = words.next()?.strip_prefix("topic=")?;
        Some(Self { identity: TopicIdentity(identity.into()), generation })
    }

    /// Whether a position that was committed with this metadata says something about this topic, whose log ends at
    /// `log_end`.
    ///
    /// One of an earlier generation does: raising the generation must not read twice what was read. But where it lies
    /// beyond the log's end, the generation was raised because of that, and it does not.
    pub fn accepts(&self, position: Offset, metadata: &str, log_end: Offset) -> bool {
        let within = position <= log_end;
        match Self::from_metadata(metadata) {
            Some(of) if of.identity.contradicts(&self.identity.0) => false,
            Some(of) => within || of.generation == self.generation,
            None => within || self.generation == 0,
        }
    }
}

/// Whether this process holds every partition of the topic in its group, which stores that are not shared depend on.
///
/// The number of partitions comes from the brokers within seconds, but the group hands new partitions out only when
/// a member's own metadata is refreshed. Until then a process that held all holds all that are given out.
#[derive(Debug)]
pub(super) struct Ownership {
    /// How long new partitions may stand without an owner.
    patience: Duration,
    /// Of the topic, by the last answer.
    partitions: Option<usize>,
    /// How many there were when we held all and there came to be more, and when that was.
    outgrown: Option<(usize, Instant)>,
    /// What was announced last.
    told: Option<bool>,
}

impl Ownership {
    pub fn new(patience: Duration) -> Self {
        Self { patience, partitions: None, outgrown: None, told: None }
    }

    /// The topic has this number of partitions, and we hold `held` of them.
    pub fn counted(&mut self, partitions: usize, held: usize, now: Instant) {
        let before = self.partitions.replace(partitions);
        if before == Some(held) && partitions > held {
            self.outgrown = Some((held, now));
        }
    }

    pub fn holds_all(&self, held: usize, now: Instant) -> bool {
        let waiting = |(all, since): (usize, Instant)| held >= all && now.duration_since(since) < self.patience;
        self.partitions == Some(held) || self.outgrown.is_some_and(waiting)
    }

    /// It was announced with an assignment.
    pub fn tell(&mut self, held: usize, now: Instant) {
        self.told = Some(self.holds_all(held, now));
    }

    /// Everything that was announced is gone.
    pub fn lost(&mut self) {
        (self.told, self.outgrown) = (None, None);
    }

    /// Whether the announcement is not true any more; it has to be made again then.
    pub fn take_changed(&mut self, held: usize, now: Instant) -> bool {
        let holds_all = self.holds_all(held, now);
        self.told.take_if(|told| *told != holds_all).is_some()
    }
}

/// So often the group is asked while this member does not have the whole topic: at first, after its share has changed, and
/// while some partitions seem to be read by nobody.
const ASK_EVERY: Duration = Duration::from_secs(8);
/// The first questions; each asks every broker.
const FIRST: u32 = 6;
/// And later. Partitions lose their reader in a rebalance, and the member that was killed in it asks when it is back.
const ASK_LATER: Duration = Duration::from_secs(60);
/// And at the longest, when members that joined for a moment changed nothing.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// A question of the member that joins for a moment.
const DEADLINE: Duration = Duration::from_secs(3);
/// How long the member for a moment waits for its place in the group, which may wait for a member that died.
const JOINING: Duration = Duration::from_secs(30);
/// How long a stop waits for it to leave.
const LEAVING: Duration = Duration::from_secs(1);

/// Partitions that no member of the group reads, though the group is at rest: what was seen of them.
///
/// In a cooperative rebalance a partition changes hands in two steps: the member that has it gives it up and joins anew,
/// and then another one is given it. A static member that dies between the two and comes back is given what it was to
/// keep, without a rebalance; nobody knows that a second step is due, and the partition stands unread until the group
/// changes for another reason. (Seen in one of fourteen kills right after a worker was added.) So a member that does not
/// have the whole topic asks from time to time who has the rest. When nobody has, another member joins for a moment: that
/// makes the group divide its partitions anew, and those that are read stay where they are.
#[derive(Debug)]
pub(super) struct Unowned {
    due: Instant,
    seen: BTreeSet<Partition>,
    /// This member's share when it was looked at last, and how often the group was asked since it changed.
    share: usize,
    asked: u32,
    /// How often one after the other a member joined for a moment and some stayed unread.
    attempts: u32,
}

impl Unowned {
    pub fn new(now: Instant) -> Self {
        Self { due: now + ASK_EVERY, seen: BTreeSet::new(), share: 0, asked: 0, attempts: 0 }
    }

    /// Whether the group is to be asked now, by a member that has the `watched` of `count` partitions.
    pub fn is_due(&mut self, now: Instant, watched: usize, count: usize) -> bool {
        if watched >= count {
            *self = Self::new(now);
            return false;
        }
        if watched != self.share {
            (self.share, self.asked) = (watched, 0);
            self.due = self.due.min(now + ASK_EVERY);
        }
        let due = now >= self.due;
        if due {
            self.asked = self.asked.saturating_add(1);
            let pause = if self.asked < FIRST { ASK_EVERY } else { ASK_LATER };
            // Members do not ask, and act, at the same time.
            self.due = now + pause.mul_f64(jitter());
        }
        due
    }

    /// Those that nobody had in two answers one after the other, for which a member is to join now. `owned` are the
    /// partitions that members have; `None` is no answer, or that of a group that is not at rest.
    pub fn found(
        &mut self,
        now: Instant,
        owned: Option<&BTreeSet<Partition>>,
        watched: &BTreeSet<Partition>,
        count: usize,
    ) -> BTreeSet<Partition> {
        // An answer that does not know of what this member has is an old one, or cannot be understood.
        let Some(owned) = owned.filter(|owned| watched.is_subset(owned)) else {
            self.seen.clear();
            return BTreeSet::new();
        };
        let all = (0..i32::try_from(count).unwrap_or(i32::MAX)).map(Partition);
        let unowned: BTreeSet<Partition> = all.filter(|partition| !owned.contains(partition)).collect();
        let lasting: BTreeSet<Partition> = self.seen.intersection(&unowned).copied().collect();
        if unowned.is_empty() {
            self.attempts = 0;
        }
        if lasting.is_empty() {
            if !unowned.is_empty() {
                self.due = self.due.min(now + ASK_EVERY);
            }
            self.seen = unowned;
        } else {
            self.seen.clear();
            self.due = now + (ASK_EVERY * 2u32.saturating_pow(self.attempts)).min(LONGEST_PAUSE).mul_f64(jitter());
            self.attempts += 1;
        }
        lasting
    }
}

/// The role of a member that reads nothing: whether the group has divided its partitions with it.
#[derive(Default)]
struct Placed(AtomicBool);

impl Role for Placed {
    fn rebalance(&self, consumer: &BaseConsumer<Context<Self>>, what: RDKafkaRespErr, _: &TopicPartitionList) {
        let answered = if what == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS {
            self.0.store(true, Ordering::Relaxed);
            // Into no assignment of its own, so that nothing of it is fetched.
            consumer.incremental_assign(&TopicPartitionList::new())
        } else {
            consumer.incremental_unassign(&TopicPartitionList::new())
        };
        if let Err(error) = answered {
            tracing::debug!(%error, "librdkafka refuses what the member for a moment answers the group");
        }
    }
}

/// A member that joins the group for a moment, on a thread of its own.
pub(super) struct Guest {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Guest {
    /// `other_topics` are such that the group does not read: the member asks for the partitions of the first that stands, and
    /// the group's own ones go to nobody but those who stay.
    pub fn start(settings: &ClientConfig, topic: &str, other_topics: &[String]) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (mut settings, stop_too) = (settings.clone(), stop.clone());
        settings.remove("group.instance.id");
        let topics: Vec<String> = other_topics.iter().cloned().chain([topic.to_owned()]).collect();
        let join = move || {
            if let Err(error) = join_and_leave(&settings, &topics, &stop_too) {
                tracing::warn!(error = format!("{error:#}"), "no member can join the group for a moment");
            }
        };
        let thread = std::thread::Builder::new().name("kafka-rejoin".to_owned()).spawn(join)?;
        Ok(Self { stop, thread })
    }

    pub fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }

    /// Has it leave now, and waits for that a moment: a member that does not leave is waited for by the group.
    pub fn leave(self) {
        self.stop.store(true, Ordering::Relaxed);
        let until = Instant::now() + LEAVING;
        while !self.thread.is_finished() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn join_and_leave(settings: &ClientConfig, topics: &[String], stop: &AtomicBool) -> anyhow::Result<()> {
    let member: BaseConsumer<Context<Placed>> = BaseConsumer::from_config_and_context(settings, Context::default())?;
    let stands = |topic: &str| -> anyhow::Result<bool> {
        let found = member.fetch_metadata(Some(topic), DEADLINE)?;
        Ok(found.topics().iter().any(|each| each.name() == topic && each.error().is_none()))
    };
    // One of which nothing is heard may stand, so that nothing is concluded: there will be another attempt.
    let mut topic = None;
    for each in topics {
        if stands(each)? {
            topic = Some(each);
            break;
        }
    }
    let topic = topic.context("none of the topics that it may ask for is there")?;
    member.subscribe(&[topic])?;
    let (until, mut last_error) = (Instant::now() + JOINING, String::new());
    while !member.context().0.load(Ordering::Relaxed) && !stop.load(Ordering::Relaxed) {
        anyhow::ensure!(Instant::now() < until, "the group gave it no place in {} s{last_error}", JOINING.as_secs());
        if let Some(Err(error)) = member.poll(Duration::from_millis(100)) {
            last_error = format!(": {error}");
        }
    }
    // Dropped, it leaves, and the group divides once more.
    Ok(())
}

#[cfg(test)]
mod tests;
