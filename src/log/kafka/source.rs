//! The read side: one thread for each sink that owns a consumer of the sink's group, and hands batches on.
//!
//! **A partition's life here.** Assigned (not fetched yet) → looked up: where its group and its log stand → announced
//! ([`SourceEvent::Assigned`]) → begun by the sink ([`SourceCommand::Begin`]) → delivered. It goes back to being
//! looked up when its position is outside the log, when the sink asks, and, where the sink writes alone, when this process's
//! share of the topic becomes the whole or ceases to be.
//!
//! **Positions.** Where to fetch is decided here, never by librdkafka, which is never given a logical offset: each
//! (re)start is a seek of a paused partition to the end of what was taken, then a resume. A seek of one that is not
//! paused could let records of the old position through, and the offsets between would look like offsets without
//! records.
//!
//! **One topic.** A source reads the topic that it announced first, told by its identity. Batches are handed on only
//! when the topic watch has shown that they are of that topic; when another one stands under its name, the
//! source ends with [`SourceEvent::Failed`]: its successor announces the new topic, and the sinks judge it.
//!
//! **Leaving.** The last commit and the leaving have a bound each. A static member leaves without a word: started again
//! within `session.timeout.ms` it has its partitions back at once.
//!
//! **Without budget** nothing is polled for a moment, which keeps what librdkafka has prefetched; when it lasts, the
//! partitions are paused and polling goes on, because a member that does not poll is thrown out of its group.

mod leaving;

use std::{
    collections::BTreeSet,
    convert::Infallible,
    panic::{self, AssertUnwindSafe},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use crossbeam_channel::{Receiver, TryRecvError, unbounded};
use rdkafka::{
    config::FromClientConfigAndContext,
    consumer::{BaseConsumer, Consumer},
    error::KafkaError,
    message::Message as _,
    types::RDKafkaErrorCode as Code,
};

use crate::{
    config::{LiveConfig, StoreKind},
    log::{
        Assignment, SourceCommand, SourceEvent, SourceHandle,
        kafka::{
            client::Context,
            fetched::{Taken, is_out_of_range},
            group::{Change, CommitMetadata, Commits, Committer, Group, Ownership, SourceConsumer},
            offsets::{Finding, LogRange, Lookup, Membership, OffsetReader, PartitionOffsets},
            partitions::{Partitions, Starved},
            settings,
            shared::SharedReader,
            status::SourceStatus,
            tail::{Tail, Tails},
            topic::{Sighting, TopicWatch, TopicWatches},
        },
    },
    names::SinkName,
    panics::panic_message,
    position::{Offset, Partition, TopicIdentity},
};

/// The longest wait for a record; commands and findings wait as long.
const POLL: Duration = Duration::from_millis(50);
/// The same when nothing has happened for [`QUIET_AFTER`]: each wait costs an idle daemon some 70 µs.
const QUIET_POLL: Duration = Duration::from_millis(500);
const QUIET_AFTER: Duration = Duration::from_secs(2);
/// The wait while a batch is due and must not be handed on.
const HELD_BACK: Duration = Duration::from_millis(20);
/// The wait while a batch was cut and the topic watch has yet to answer.
const UNPROVEN: Duration = Duration::from_millis(5);
/// Records taken in one round, before commands are looked at again.
const ROUND: usize = 2000;
/// Rebalances and errors, the same.
const MOST_EVENTS: usize = 100;
/// The time without budget after which the partitions are paused.
const PARK_AFTER: Duration = Duration::from_secs(1);
/// After an out-of-range error the positions are compared with the log; not more often than this.
const COMPARE_EVERY: Duration = Duration::from_secs(1);

/// Starts the source of one sink.
///
/// `instance_id` is this process's static membership (KIP-345): another process with the same one fences this one.
///
/// # Errors
/// When librdkafka refuses the settings, or a thread cannot be started. Brokers that are away are no error.
pub fn spawn(
    config: LiveConfig,
    sink: SinkName,
    instance_id: &str,
    topic_watches: &TopicWatches,
    reader: SharedReader,
) -> anyhow::Result<SourceHandle> {
    let now = config.load();
    let topic = now.queue.topic.clone();
    let settings = settings::consumer(&now, sink, instance_id);
    let consumer = BaseConsumer::from_config_and_context(&settings, Context::new(Group::new(&topic)))
        .with_context(|| format!("queue.kafka: no consumer can be made for the {} group", sink.as_str()))?;
    consumer.subscribe(&[&topic]).with_context(|| format!("cannot subscribe to topic {topic}"))?;
    let consumer = Arc::new(consumer);
    let membership = Membership {
        group: settings::group(&now, sink),
        settings: settings.clone(),
        // Without aggregates there are no dead letters; where there are groups, there is the topic of their positions.
        other_topics: vec![settings::dead_letter_topic(&now), "__consumer_offsets".to_owned()],
    };
    let (plain, generation) = (settings::client(&now), now.queue.generation);
    let offsets = OffsetReader::start(consumer.clone(), plain, membership, &topic, generation)?;
    let topic_watch = topic_watches.share(&now)?;
    let committer = Committer::start(consumer.clone())?;
    let partitions =
        Partitions::new(&topic, consumer.clone(), reader).context("librdkafka makes no queue of records")?;
    let (commands, receiver) = unbounded();
    let source = Source {
        sink,
        partitions,
        topic,
        config: config.clone(),
        consumer,
        offsets,
        topic_watch,
        identity: None,
        proven: None,
        sighted: Instant::now(),
        committer,
        commands: receiver,
        round: 0,
        ownership: Ownership::new(settings::new_partitions_within(&settings)),
        paused: false,
        starved: None,
        parked: false,
        status: SourceStatus::default(),
        compare: None,
        tails: Tails::new(&now),
        active: Instant::now(),
    };
    let thread = std::thread::Builder::new()
        .name(format!("kafka-{}", sink.as_str()))
        .spawn(move || source.run())
        .context("cannot start the thread that reads from Kafka")?;
    Ok(SourceHandle { commands, thread })
}

struct Source {
    config: LiveConfig,
    sink: SinkName,
    topic: String,
    consumer: Arc<SourceConsumer>,
    offsets: OffsetReader,
    topic_watch: Arc<TopicWatch>,
    /// Of the topic that was announced; a source has one.
    identity: Option<TopicIdentity>,
    /// When it was asked for, and stood, last.
    proven: Option<Instant>,
    /// What the topic watch asked before this is known, or of the topic before ours.
    sighted: Instant,
    committer: Committer,
    commands: Receiver<SourceCommand>,
    partitions: Partitions,
    /// Numbers the lookups, so that the answer to an older one can be told apart.
    round: u64,
    ownership: Ownership,
    /// By the sink.
    paused: bool,
    /// Since when a batch has waited for budget.
    starved: Option<Instant>,
    /// By ourselves, because that lasts.
    parked: bool,
    status: SourceStatus,
    compare: Option<Compare>,
    tails: Tails,
    /// When something was last asked, decided by the group, or read.
    active: Instant,
}

/// A comparison of all positions with the log, after an out-of-range error.
struct Compare {
    since: Instant,
    asked: bool,
}

/// What ends the loop.
enum End {
    Close(Vec<(Partition, Offset)>),
    Fatal(Code, String),
    /// Another topic stands under the name.
    Replaced(TopicIdentity, TopicIdentity),
}

impl Source {
    fn run(mut self) -> Result<(), String> {
        // A panic must be reported, too: the consumer would wait for records for ever.
        let served = panic::catch_unwind(AssertUnwindSafe(|| {
            let served = self.serve();
            // What librdkafka fetches from now on nobody takes, and whoever this source reads for reads by itself.
            self.partitions.stop_all();
            served
        }));
        let Err(end) = served.unwrap_or_else(|payload| {
            self.partitions.leave();
            Err(End::Fatal(Code::Fail, format!("its thread panicked: {}", panic_message(payload.as_ref()))))
        });
        let event = match end {
            End::Close(positions) => return self.close(&positions),
            End::Fatal(Code::FencedInstanceId, reason) => SourceEvent::Fenced(format!(
                "another process has this one's membership of group {}: {reason}",
                settings::group(&self.config.load(), self.sink)
            )),
            End::Fatal(_, reason) => SourceEvent::Failed(format!("the Kafka consumer failed for good: {reason}")),
            End::Replaced(was, is) => {
                // Positions in the old topic say nothing about the new one.
                *self.consumer.context().commits.lock() = Commits::default();
                SourceEvent::Failed(format!(
                    "topic {} was deleted and created anew while it was read (identity {was}, now {is}); nothing of \
                     the new one was taken as the old one's",
                    self.topic
                ))
            }
        };
        self.partitions.tell(event);
        // The consumer is of no use any more, and its owner has yet to close it.
        let positions = loop {
            match self.commands.recv() {
                Ok(SourceCommand::Close(positions)) => break positions,
                Ok(_) => {}
                Err(_) => break Vec::new(),
            }
        };
        self.close(&positions)
    }

    fn serve(&mut self) -> Result<Infallible, End> {
        loop {
            #[cfg(debug_assertions)]
            if crate::panics::asked_for(&format!("stall-{}", self.sink.as_str())) {
                self.partitions.stall();
            }
            loop {
                match self.commands.try_recv() {
                    Ok(SourceCommand::Close(positions)) => return Err(End::Close(positions)),
                    Ok(command) => {
                        self.active = Instant::now();
                        self.handle(command);
                    }
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return Err(End::Close(Vec::new())),
                }
            }
            while let Ok(finding) = self.offsets.findings.try_recv() {
                self.learn(finding)?;
            }
            self.look_at_topic()?;
            if self.offsets.is_finished() || self.committer.is_finished() || self.topic_watch.is_finished() {
                return Err(End::Fatal(Code::Fail, "a thread of it panicked".to_owned()));
            }
            if let Some(outcome) = self.status.news(Instant::now()) {
                self.partitions.tell(outcome.map_or_else(SourceEvent::Unavailable, |()| SourceEvent::Available));
            }
            self.hand_on();
            if !self.paused && !self.parked {
                self.partitions.start_all(|partition| self.status.answers(partition));
                self.partitions.open_attached();
                if let Some(partition) = self.partitions.refused(Instant::now()) {
                    let reason = format!("librdkafka does not begin to fetch partition {partition}");
                    return Err(End::Fatal(Code::State, reason));
                }
            }
            self.ask_for_comparison();
            if let Some(since) = self.starved
                && !self.parked
            {
                if since.elapsed() < PARK_AFTER {
                    std::thread::sleep(Duration::from_millis(2));
                    continue;
                }
                self.parked = true;
                self.partitions.stop_all();
            }
            self.fetch()?;
        }
    }

    /// Takes what librdkafka has, and waits for it a little when there is nothing.
    fn fetch(&mut self) -> Result<(), End> {
        let config = self.config.load_full();
        // Messages borrow the consumer, and taking one changes `self`.
        let consumer = self.consumer.clone();
        let mut wait = match self.partitions.due_in(&config.batch) {
            None if self.active.elapsed() >= QUIET_AFTER => QUIET_POLL,
            None => POLL,
            Some(due) if self.paused || self.parked => due.clamp(HELD_BACK, POLL),
            Some(due) => due.clamp(Duration::from_millis(1), POLL),
        };
        if self.partitions.has_unproven() && !self.paused {
            wait = wait.min(UNPROVEN);
        }
        let Taken { any, errors } = self.partitions.fetch(wait, ROUND, &config.batch);
        if any {
            self.active = Instant::now();
            self.status.progressed();
        }
        for (_, code) in errors {
            self.complain(&KafkaError::MessageConsumption(code))?;
        }
        // Everything else: rebalances, which are answered within this call and not told by what it returns, and errors.
        for _ in 0..MOST_EVENTS {
            match consumer.poll(Duration::ZERO) {
                Some(Ok(message)) => self.partitions.fetch_again(Partition(message.partition())),
                Some(Err(error)) => self.complain(&error)?,
                None if self.partitions.has_events() => {}
                None => break,
            }
        }
        self.rebalance();
        if let Some(reason) = consumer.context().take_unreachable() {
            self.status.disconnected(format!("all brokers are down: {reason}"));
        }
        Ok(())
    }

    fn complain(&mut self, error: &KafkaError) -> Result<(), End> {
        if let Some((code, reason)) = self.consumer.client().fatal_error() {
            return Err(End::Fatal(code, reason));
        }
        self.on_error(error);
        Ok(())
    }

    fn on_error(&mut self, error: &KafkaError) {
        match error.rdkafka_error_code() {
            Some(code) if is_out_of_range(code) => {
                self.compare.get_or_insert(Compare { since: Instant::now(), asked: false });
            }
            // The next answer says that this is over.
            Some(code @ (Code::Authentication | Code::SaslAuthenticationFailed | Code::SSL)) => {
                let said = self.consumer.context().says();
                self.status.disconnected(format!("topic {}: {code}{said}", self.topic));
            }
            Some(code) if self.status.apply(code, &self.topic, Instant::now()) => {}
            _ => tracing::warn!(sink = self.sink.as_str(), %error, "the Kafka consumer reports an error"),
        }
    }

    /// Acts on what the group decided while `poll` ran.
    fn rebalance(&mut self) {
        let changes = self.consumer.context().take_changes();
        if changes.is_empty() {
            return;
        }
        self.active = Instant::now();
        let mut new = BTreeSet::new();
        for change in changes {
            match change {
                Change::Assigned(partitions) => {
                    partitions.iter().for_each(|partition| self.partitions.assigned(*partition));
                    new.extend(partitions);
                }
                Change::Revoked(partitions) => {
                    for partition in &partitions {
                        self.partitions.revoked(*partition);
                        new.remove(partition);
                    }
                    self.partitions.tell(SourceEvent::Revoked(partitions));
                }
            }
        }
        self.offsets.watch(self.partitions.all());
        self.look_up(new);
        if self.partitions.len() == 0 {
            self.ownership.lost();
        }
        self.compare_ownership();
    }

    /// Looks everything up again when our share became the whole topic, or ceased to be, where the sink depends on it.
    fn compare_ownership(&mut self) {
        let changed = self.ownership.take_changed(self.partitions.len(), Instant::now());
        if changed && self.writes_alone() {
            self.look_up(self.partitions.all());
        }
    }

    /// The sink writes what no other worker can write to, and has to be informed when there is one. Another sink would only
    /// read again what it has not yet made durable.
    fn writes_alone(&self) -> bool {
        let config = self.config.load();
        match self.sink {
            SinkName::Archive => config.archive.is_local(),
            SinkName::Aggregate => config.store.kind == StoreKind::Embedded,
        }
    }

    /// Stops these partitions and asks where they stand; the answer is announced.
    fn look_up(&mut self, partitions: BTreeSet<Partition>) {
        self.round += 1;
        let asked = self.partitions.await_lookup(partitions, self.round);
        if !asked.is_empty() {
            self.offsets.ask(asked, self.round);
        }
    }

    fn learn(&mut self, finding: Finding) -> Result<(), End> {
        match finding {
            Finding::Lookup(Lookup { mut ranges, partition_count, found }) => {
                // Where nothing is fetched, that end is an old one, perhaps of a log that was longer.
                for (partition, log) in &mut ranges {
                    log.high = self.partitions.high(*partition, log.high).map_or(log.end, |high| high.max(log.end));
                }
                let answered = ranges.iter().map(|(partition, _)| *partition).collect();
                self.status.answered(self.partitions.all(), &answered, Instant::now());
                self.status.ends(&ranges, Instant::now());
                self.ownership.counted(partition_count, self.partitions.len(), Instant::now());
                self.compare_ownership();
                for (partition, log) in &ranges {
                    if !self.partitions.holds(*partition) {
                        continue;
                    }
                    if self.partitions.lies_beyond(*partition, log.end) {
                        self.partitions.read_alone(*partition);
                    }
                    let delivered = self.partitions.delivered(*partition);
                    // A reader sees no records behind an open transaction, and there may be any number.
                    let is_closed = log.high == log.end;
                    let tail = self.tails.look(*partition, delivered, log.end, Instant::now());
                    let event = match delivered {
                        Some(from) if is_closed && tail == Tail::Empty => {
                            SourceEvent::EmptyTail { partition: *partition, from, to: log.end }
                        }
                        // The one that reads for this source does not, and is to blame.
                        Some(_) if tail == Tail::Stuck && self.partitions.read_alone(*partition) => {
                            SourceEvent::LogEnd(*partition, log.high)
                        }
                        Some(from) if tail == Tail::Stuck => {
                            let reason = format!(
                                "it fetches nothing of partition {partition} from offset {from} on, where another client \
                                 reads records"
                            );
                            return Err(End::Fatal(Code::State, reason));
                        }
                        _ => SourceEvent::LogEnd(*partition, log.high),
                    };
                    self.partitions.tell(event);
                }
                self.compare_positions(&ranges);
                if let Some((partitions, written_by)) = found {
                    self.compare_identity(&written_by.identity)?;
                    self.announce(partitions, &written_by);
                }
            }
            Finding::Unreachable(reason) => self.status.unanswered(reason),
            Finding::NeedsReconnect => {
                let reason = "it finds no broker any more, while a new client is answered".to_owned();
                return Err(End::Fatal(Code::AllBrokersDown, reason));
            }
        }
        Ok(())
    }

    /// The topic as the topic watch saw it after it was announced.
    fn look_at_topic(&mut self) -> Result<(), End> {
        if self.identity.is_some()
            && let Some(Sighting { asked, identity }) = self.topic_watch.sighting(self.sighted)
        {
            self.compare_identity(&identity)?;
            self.sighted = asked;
            self.proven = Some(asked);
            self.status.watch_unneeded();
        }
        Ok(())
    }

    /// Ends the source when this is not the topic that it announced.
    fn compare_identity(&self, identity: &TopicIdentity) -> Result<(), End> {
        match self.identity.as_ref().filter(|announced| announced.contradicts(&identity.0)) {
            Some(announced) => Err(End::Replaced(announced.clone(), identity.clone())),
            None => Ok(()),
        }
    }

    fn announce(&mut self, found: Vec<PartitionOffsets>, written_by: &CommitMetadata) {
        let (held, now) = (self.partitions.len(), Instant::now());
        let holds_all = self.ownership.holds_all(held, now);
        let mut assignments = Vec::new();
        for PartitionOffsets { partition, round, committed, log } in found {
            if self.partitions.found(partition, round) {
                if let Some(committed) = committed {
                    self.consumer.context().commits.lock().stands(partition, committed);
                }
                // What was archived or counted is compared with what the brokers say now.
                let (log_start, log_end, identity) = (log.start, log.end, written_by.identity.clone());
                assignments.push(Assignment { partition, committed, log_start, log_end, identity, holds_all });
            }
        }
        if !assignments.is_empty() {
            self.status.progressed();
            self.ownership.tell(held, now);
            if self.identity.is_none() {
                self.identity = Some(written_by.identity.clone());
                self.partitions.belongs_to(written_by.identity.clone());
                self.sighted = now;
                self.consumer.context().belongs_to(written_by.clone());
            }
            self.partitions.tell(SourceEvent::Assigned(assignments));
        }
    }

    fn ask_for_comparison(&mut self) {
        if let Some(compare) = &mut self.compare
            && !compare.asked
            && compare.since.elapsed() >= COMPARE_EVERY
        {
            compare.asked = true;
            self.offsets.look();
        }
    }

    /// Partitions whose position is outside the log are announced anew, so that the sink decides.
    fn compare_positions(&mut self, ranges: &[(Partition, LogRange)]) {
        if self.compare.take_if(|compare| compare.asked).is_some() {
            let outside = self.partitions.outside(ranges);
            self.look_up(outside);
        }
    }

    fn handle(&mut self, command: SourceCommand) {
        match command {
            SourceCommand::Begin { partition, epoch, at } => self.partitions.begin(partition, epoch, at),
            SourceCommand::Hold(partition) => self.partitions.hold(partition),
            SourceCommand::Pause => {
                self.paused = true;
                self.partitions.stop_all();
            }
            SourceCommand::Resume => self.paused = false,
            SourceCommand::Commit(positions) => {
                self.consumer.context().commits.lock().confirm(&positions);
                self.committer.wake();
            }
            SourceCommand::Reassign => self.look_up(self.partitions.all()),
            SourceCommand::ReassignPartition(partition) => self.look_up(BTreeSet::from([partition])),
            // Taken by the loop.
            SourceCommand::Close(_) => {}
        }
    }

    /// Cuts the batches that are due, as far as the budget goes, and hands on those that are known to be of this topic.
    fn hand_on(&mut self) {
        if self.paused {
            self.tails.held_back(Instant::now());
            self.status.watch_unneeded();
            return;
        }
        let config = self.config.load();
        let cut = self.partitions.cut_due(&config.batch);
        if let Some(proven) = self.proven {
            self.partitions.hand_on_proven(proven);
        }
        self.partitions.open_attached();
        if self.partitions.has_unproven() {
            self.topic_watch.ask();
            self.status.waits_for_watch(Instant::now());
        } else {
            self.status.watch_unneeded();
        }
        match cut {
            Ok(()) => {
                self.starved = None;
                self.parked = false;
            }
            Err(Starved) => {
                self.tails.held_back(Instant::now());
                self.starved.get_or_insert_with(Instant::now);
            }
        }
    }
}
