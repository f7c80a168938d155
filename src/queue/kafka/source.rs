//! The read side: one thread for each sink that owns a consumer of the sink's group, and hands batches on.
//!
//! **A partition's life here.** Assigned (not fetched yet) → surveyed: where its group and its log stand → announced
//! ([`SourceEvent::Assigned`]) → begun by the sink ([`SourceCommand::Begin`]) → delivered. It goes back to being
//! surveyed when its position is outside the log, when the sink asks, and when this process's share of the topic
//! becomes the whole or ceases to be.
//!
//! **Positions.** Where to fetch is decided here, never by librdkafka, which is never given a logical offset: each
//! (re)start is a seek of a paused partition to the end of what was taken, then a resume. A seek of one that is not
//! paused could let records of the old position through, and the offsets between would look like offsets without
//! records.
//!
//! **Without budget** nothing is polled for a moment, which keeps what librdkafka has prefetched; when it lasts, the
//! partitions are paused and polling goes on, because a member that does not poll is thrown out of its group.

use std::{
    collections::BTreeSet,
    panic::{self, AssertUnwindSafe},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use crossbeam_channel::{Receiver, RecvTimeoutError, TryRecvError, bounded, unbounded};
use rdkafka::{
    config::FromClientConfigAndContext,
    consumer::{BaseConsumer, Consumer},
    error::KafkaError,
    message::Message as _,
    types::RDKafkaErrorCode as Code,
};

use crate::{
    config::LiveConfig,
    health::SinkName,
    position::{Offset, Partition, TopicIdentity},
    queue::{
        Assignment, ByteBudget, SourceCommand, SourceEvent, SourceEvents, SourceHandle,
        kafka::{
            commits::Committer,
            group::{Change, Group},
            partitions::{Partitions, Starved},
            settings,
            survey::{Finding, LogRange, Survey, Surveyed},
        },
    },
    supervise::panic_message,
};

/// The longest wait for a record; commands and findings wait as long.
const POLL: Duration = Duration::from_millis(50);
/// The wait while a batch is due and must not be handed on.
const HELD_BACK: Duration = Duration::from_millis(20);
/// Records taken in one round, before commands are looked at again.
const ROUND: usize = 2000;
/// Without budget for so long the partitions are paused.
const PARK_AFTER: Duration = Duration::from_secs(1);
/// How long the last commit, and then the leaving, may take.
const CLOSING: Duration = Duration::from_secs(4);
/// After an out-of-range error the positions are compared with the log; not more often than this.
const COMPARE_EVERY: Duration = Duration::from_secs(1);
/// The brokers count as away after so many unanswered surveys: one alone may be a leader's election.
const SILENT_SURVEYS: u32 = 2;

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
    budget: ByteBudget,
    events: SourceEvents,
) -> anyhow::Result<SourceHandle> {
    let now = config.load();
    let topic = now.queue.topic.clone();
    let settings = settings::consumer(&now, sink, instance_id);
    let consumer = BaseConsumer::from_config_and_context(&settings, Group::new(&topic))
        .with_context(|| format!("queue.kafka: no consumer can be made for the {} group", sink.as_str()))?;
    consumer.subscribe(&[&topic]).with_context(|| format!("cannot subscribe to topic {topic}"))?;
    let consumer = Arc::new(consumer);
    let survey = Survey::start(consumer.clone(), &topic)?;
    let committer = Committer::start(consumer.clone())?;
    let (commands, receiver) = unbounded();
    let source = Source {
        sink,
        partitions: Partitions::new(&topic, consumer.clone()),
        topic,
        config: config.clone(),
        consumer,
        survey,
        committer,
        commands: receiver,
        budget,
        events,
        round: 0,
        partition_count: None,
        told_holds_all: None,
        paused: false,
        starved: None,
        parked: false,
        silent_surveys: 0,
        available: None,
        compare: None,
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
    consumer: Arc<BaseConsumer<Group>>,
    survey: Survey,
    committer: Committer,
    commands: Receiver<SourceCommand>,
    budget: ByteBudget,
    events: SourceEvents,
    partitions: Partitions,
    /// Numbers the surveys, so that the answer to an older one can be told apart.
    round: u64,
    /// Of the topic, as last heard.
    partition_count: Option<usize>,
    /// What the last announcement said about holding every partition.
    told_holds_all: Option<bool>,
    /// By the sink.
    paused: bool,
    /// Since when a batch has waited for budget.
    starved: Option<Instant>,
    /// By ourselves, because that lasts.
    parked: bool,
    silent_surveys: u32,
    /// What was said last; nothing at first.
    available: Option<bool>,
    compare: Option<Compare>,
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
}

impl Source {
    fn run(mut self) {
        // A panic must be heard of, too: the consumer would wait for records for ever.
        let served = panic::catch_unwind(AssertUnwindSafe(|| self.serve()));
        let end = served.unwrap_or_else(|payload| {
            End::Fatal(Code::Fail, format!("its thread panicked: {}", panic_message(payload.as_ref())))
        });
        let positions = match end {
            End::Close(positions) => positions,
            End::Fatal(code, reason) => {
                (self.events)(match code {
                    Code::FencedInstanceId => SourceEvent::Fenced(format!(
                        "another process has this one's membership of group {}: {reason}",
                        settings::group(&self.config.load(), self.sink)
                    )),
                    _ => SourceEvent::Failed(format!("the Kafka consumer failed for good: {reason}")),
                });
                // The consumer is of no use any more, and its owner has yet to close it.
                loop {
                    match self.commands.recv() {
                        Ok(SourceCommand::Close(positions)) => break positions,
                        Ok(_) => {}
                        Err(_) => break Vec::new(),
                    }
                }
            }
        };
        self.close(&positions);
    }

    fn serve(&mut self) -> End {
        loop {
            loop {
                match self.commands.try_recv() {
                    Ok(SourceCommand::Close(positions)) => return End::Close(positions),
                    Ok(command) => self.obey(command),
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return End::Close(Vec::new()),
                }
            }
            while let Ok(finding) = self.survey.findings.try_recv() {
                self.learn(finding);
            }
            if self.survey.is_finished() || self.committer.is_finished() {
                return End::Fatal(Code::Fail, "a thread of it panicked".to_owned());
            }
            self.hand_on();
            if !self.paused && !self.parked {
                self.partitions.start_all();
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
            if let Some((code, reason)) = self.fetch() {
                return End::Fatal(code, reason);
            }
        }
    }

    /// Takes what librdkafka has, and waits for it a little when there is nothing. Returns the error that ends all.
    fn fetch(&mut self) -> Option<(Code, String)> {
        let config = self.config.load_full();
        // Messages borrow the consumer, and taking one changes `self`.
        let consumer = self.consumer.clone();
        let mut wait = match self.partitions.due_in(&config.batch) {
            None => POLL,
            Some(due) if self.paused || self.parked => due.clamp(HELD_BACK, POLL),
            Some(due) => due.clamp(Duration::from_millis(1), POLL),
        };
        for _ in 0..ROUND {
            let polled = consumer.poll(wait);
            let nothing = polled.is_none();
            let full = match polled {
                Some(Ok(message)) => self.partitions.take(Partition(message.partition()), &message, &config.batch),
                Some(Err(error)) => {
                    if let Some(fatal) = consumer.client().fatal_error() {
                        return Some(fatal);
                    }
                    self.heed(&error);
                    false
                }
                None => false,
            };
            self.rebalance();
            if nothing || full {
                break;
            }
            wait = Duration::ZERO;
        }
        if let Some(reason) = consumer.context().take_unreachable() {
            self.set_available(Err(format!("all brokers are down: {reason}")));
        }
        None
    }

    fn heed(&mut self, error: &KafkaError) {
        match error.rdkafka_error_code() {
            Some(Code::OffsetOutOfRange | Code::AutoOffsetReset | Code::NoOffset) => {
                self.compare.get_or_insert(Compare { since: Instant::now(), asked: false });
            }
            // Said by the context already, or passing: librdkafka tries again.
            Some(Code::AllBrokersDown | Code::BrokerTransportFailure | Code::Resolve | Code::OperationTimedOut) => {}
            Some(
                Code::UnknownTopicOrPartition
                | Code::UnknownTopic
                | Code::TopicAuthorizationFailed
                | Code::GroupAuthorizationFailed
                | Code::Authentication
                | Code::SaslAuthenticationFailed,
            ) => self.set_available(Err(format!("topic {}: {error}", self.topic))),
            _ => tracing::warn!(sink = self.sink.as_str(), %error, "the Kafka consumer reports an error"),
        }
    }

    /// Acts on what the group decided while `poll` ran.
    fn rebalance(&mut self) {
        let changes = self.consumer.context().take_changes();
        if changes.is_empty() {
            return;
        }
        let mut new = BTreeSet::new();
        for change in changes {
            match change {
                Change::Assigned(partitions) => {
                    for partition in partitions {
                        self.partitions.assigned(partition);
                        new.insert(partition);
                    }
                }
                Change::Revoked(partitions) => {
                    for partition in &partitions {
                        self.partitions.revoked(*partition);
                        new.remove(partition);
                    }
                    (self.events)(SourceEvent::Revoked(partitions));
                }
            }
        }
        self.survey.watch(self.partitions.all());
        self.survey(new);
        if self.partitions.len() == 0 {
            self.told_holds_all = None;
        }
        self.compare_share();
    }

    /// Surveys everything again when our share became the whole topic, or ceased to be: stores that are not shared
    /// depend on it.
    fn compare_share(&mut self) {
        if self.told_holds_all.is_some_and(|told| told != self.holds_all()) {
            self.told_holds_all = None;
            self.survey(self.partitions.all());
        }
    }

    fn holds_all(&self) -> bool {
        self.partition_count == Some(self.partitions.len())
    }

    /// Stops these partitions and asks where they stand; the answer is announced.
    fn survey(&mut self, partitions: BTreeSet<Partition>) {
        self.round += 1;
        let asked = self.partitions.await_survey(partitions, self.round);
        if !asked.is_empty() {
            self.survey.ask(asked, self.round);
        }
    }

    fn learn(&mut self, finding: Finding) {
        match finding {
            Finding::Surveyed { partitions, identity, partition_count } => {
                self.partition_count = Some(partition_count);
                self.announce(partitions, &identity);
            }
            Finding::Log { ranges, partition_count } => {
                self.silent_surveys = 0;
                self.set_available(Ok(()));
                self.partition_count = Some(partition_count);
                self.compare_share();
                for (partition, log) in ranges.iter().filter(|(partition, _)| self.partitions.holds(*partition)) {
                    (self.events)(SourceEvent::LogEnd(*partition, log.end));
                }
                self.compare_positions(&ranges);
            }
            Finding::Unreachable(reason) => {
                self.silent_surveys += 1;
                if self.silent_surveys >= SILENT_SURVEYS {
                    self.set_available(Err(reason));
                }
            }
        }
    }

    fn announce(&mut self, surveyed: Vec<Surveyed>, identity: &TopicIdentity) {
        let holds_all = self.holds_all();
        let mut assignments = Vec::new();
        for Surveyed { partition, round, committed, log } in surveyed {
            if self.partitions.surveyed(partition, round) {
                let (log_start, log_end, identity) = (log.start, log.end, identity.clone());
                assignments.push(Assignment { partition, committed, log_start, log_end, identity, holds_all });
            }
        }
        if !assignments.is_empty() {
            self.told_holds_all = Some(holds_all);
            (self.events)(SourceEvent::Assigned(assignments));
        }
    }

    fn ask_for_comparison(&mut self) {
        if let Some(compare) = &mut self.compare
            && !compare.asked
            && compare.since.elapsed() >= COMPARE_EVERY
        {
            compare.asked = true;
            self.survey.look();
        }
    }

    /// Partitions whose position is outside the log are announced anew, so that the sink decides.
    fn compare_positions(&mut self, ranges: &[(Partition, LogRange)]) {
        if self.compare.take_if(|compare| compare.asked).is_some() {
            let outside = self.partitions.outside(ranges);
            self.survey(outside);
        }
    }

    fn set_available(&mut self, available: Result<(), String>) {
        if self.available.replace(available.is_ok()) != Some(available.is_ok()) {
            (self.events)(match available {
                Ok(()) => SourceEvent::Available,
                Err(reason) => SourceEvent::Unavailable(reason),
            });
        }
    }

    fn obey(&mut self, command: SourceCommand) {
        match command {
            SourceCommand::Begin { partition, epoch, at } => self.partitions.begin(partition, epoch, at),
            SourceCommand::Hold(partition) => self.partitions.hold(partition),
            SourceCommand::Pause => {
                self.paused = true;
                self.partitions.stop_all();
            }
            SourceCommand::Resume => self.paused = false,
            SourceCommand::Commit(positions) => self.consumer.context().confirm(&positions),
            SourceCommand::Reassign => self.survey(self.partitions.all()),
            SourceCommand::ReassignPartition(partition) => self.survey(BTreeSet::from([partition])),
            // Taken by the loop.
            SourceCommand::Close(_) => {}
        }
    }

    /// Hands on the batches that are due, as far as the budget goes.
    fn hand_on(&mut self) {
        if self.paused {
            return;
        }
        let config = self.config.load();
        let handed_on = self.partitions.cut_due(&config.batch, &self.budget, |batch| {
            (self.events)(SourceEvent::Batch(batch));
        });
        match handed_on {
            Ok(()) => {
                self.starved = None;
                self.parked = false;
            }
            Err(Starved) => {
                self.starved.get_or_insert_with(Instant::now);
            }
        }
    }

    /// Commits, leaves and ends, each within a bound. A static member leaves without a word: started again within
    /// `session.timeout.ms` it has its partitions back at once.
    fn close(self, positions: &[(Partition, Offset)]) {
        let Self { consumer, survey, committer, sink, partitions, .. } = self;
        drop(partitions);
        let group = consumer.context();
        group.confirm(positions);
        let deadline = Instant::now() + CLOSING;
        let committer = committer.finish(deadline);
        while !committer.is_finished() && Instant::now() < deadline {
            // A rebalance under way has to end before the group takes positions. Records that come with it are read
            // again by the next reader.
            let _ = consumer.poll(Duration::from_millis(10));
        }
        if !committer.is_finished() {
            tracing::warn!(
                sink = sink.as_str(),
                "Kafka did not acknowledge the last positions: the next start reads a little again, and knows it"
            );
        }
        group.close();
        let (done, left) = bounded::<()>(1);
        // Leaving has no deadline of its own in librdkafka, and a broker that hangs must not hold the stop up.
        let leave = move || {
            // A panic was reported by the thread that it ended.
            let _ = committer.join();
            let _ = survey.stop().join();
            drop(consumer);
            drop(done);
        };
        match std::thread::Builder::new().name("kafka-leave".to_owned()).spawn(leave) {
            Ok(thread) => match left.recv_timeout(CLOSING) {
                Err(RecvTimeoutError::Timeout) => {
                    tracing::warn!(sink = sink.as_str(), "Kafka does not answer the consumer's leaving, not waiting");
                }
                _ => {
                    let _ = thread.join();
                }
            },
            Err(error) => tracing::warn!(%error, "no thread to leave the consumer group on"),
        }
    }
}
