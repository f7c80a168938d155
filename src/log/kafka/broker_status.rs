//! Whether the brokers take what the producer sends: the door for new events, and the dependencies `kafka` and
//! `kafka_topic`.
//!
//! Two things may be wrong. Kafka is *away*: no broker answers, or none acknowledges anything. Or it answers, and
//! partitions are *unwritable*; then events for the others go on. A buffer takes over in both cases, because its order is
//! one for all partitions.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwapOption;
use parking_lot::{Mutex, MutexGuard};
use rdkafka::error::KafkaError;

use crate::{
    health::{Closed, Health, Reason},
    log::{
        buffer::switch::Switch,
        kafka::{
            clock::Side,
            logging,
            unanswered::{Handed, Unanswered},
            writable::Writability,
        },
    },
    names::dependency,
};

/// A connection that is used says by itself that it works; one that is silent for so long is asked.
const SILENCE: Duration = Duration::from_secs(5);
/// A record without an answer for so long has the brokers asked why.
const SUSPICIOUS: Duration = Duration::from_secs(1);
/// Where no record at all was acknowledged for so long, though one waits, the brokers are away, whatever they say. Longer
/// than a busy broker's pauses, and than it takes to find out by asking.
const UNACKNOWLEDGED: Duration = Duration::from_secs(4);
/// So long a request waits when it is known by then that the brokers take nothing.
pub const UNANSWERED_REQUEST: Duration = Duration::from_millis(2700);
const FIRST_PROBE: Duration = Duration::from_millis(500);
const LONGEST_PROBE: Duration = Duration::from_secs(5);
/// While partitions are unwritable they are looked at so often.
const LOOK: Duration = Duration::from_millis(750);

/// Shared by the producers' callbacks, their probes and the appender.
pub(super) struct BrokerStatus {
    brokers: String,
    health: Health,
    /// Closes the gate while the brokers take nothing.
    refusal: Reason,
    /// Takes the events while the brokers are away; then the gate is its business.
    buffer: Option<Arc<Switch>>,
    epoch: Instant,
    /// Milliseconds from `epoch` to the last answer of a broker.
    last_answer: AtomicU64,
    /// Milliseconds from `epoch` to the last record that was acknowledged.
    last_acknowledged: AtomicU64,
    unanswered: Arc<Unanswered>,
    /// Whether `State::away` holds a reason, for the path of each acknowledgement.
    is_away: AtomicBool,
    failed: AtomicBool,
    /// A record was refused, perhaps for its time: the clocks are to be compared.
    time_refused: AtomicBool,
    /// `None` while all partitions take writes.
    unwritable: ArcSwapOption<Writability>,
    state: Mutex<State>,
}

struct State {
    away: Option<String>,
    /// Doubles with each failed probe, and while brokers that answer probes acknowledge nothing.
    pause: Duration,
    last_error: Option<String>,
    /// The brokers refuse this machine's time, on this side of theirs: their answers do not open the door.
    clock: Option<Side>,
}

impl BrokerStatus {
    /// Away until the first answer.
    pub(super) fn new(brokers: &str, health: Health, buffer: Option<Arc<Switch>>) -> Self {
        let connecting = format!("connecting to Kafka at {brokers}");
        let refusal = health.gate.reason(Closed::QueueUnavailable);
        match &buffer {
            Some(buffer) => buffer.set_kafka(false),
            None => refusal.set(connecting.clone()),
        }
        Self {
            brokers: brokers.to_owned(),
            health,
            refusal,
            buffer,
            epoch: Instant::now(),
            last_answer: AtomicU64::new(0),
            last_acknowledged: AtomicU64::new(0),
            unanswered: Unanswered::new(),
            is_away: AtomicBool::new(true),
            failed: AtomicBool::new(false),
            time_refused: AtomicBool::new(false),
            unwritable: ArcSwapOption::empty(),
            state: Mutex::new(State { away: Some(connecting), pause: FIRST_PROBE, last_error: None, clock: None }),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    fn now(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn since(&self, then: &AtomicU64) -> Duration {
        Duration::from_millis(self.now().saturating_sub(then.load(Ordering::Relaxed)))
    }

    pub(super) fn is_away(&self) -> bool {
        self.is_away.load(Ordering::Acquire)
    }

    /// What partitions take no writes; `None` when all do.
    pub(super) fn unwritable(&self) -> Option<Arc<Writability>> {
        self.unwritable.load_full()
    }

    /// A record is handed to librdkafka.
    pub(super) fn hand(&self, now: Instant) -> Handed {
        self.unanswered.hand(now)
    }

    /// A record is durable.
    pub(super) fn acknowledged(&self) {
        let now = self.now();
        self.last_answer.store(now, Ordering::Relaxed);
        self.last_acknowledged.store(now, Ordering::Relaxed);
        if self.is_away.load(Ordering::Relaxed) {
            let mut state = self.state();
            state.pause = FIRST_PROBE;
            self.present(&mut state);
        }
    }

    /// A probe was answered, by way of the producer.
    pub(super) fn answered(&self) {
        self.last_answer.store(self.now(), Ordering::Relaxed);
        let mut state = self.state();
        self.present(&mut state);
    }

    fn present(&self, state: &mut State) {
        if state.clock.is_some() {
            return;
        }
        state.away = None;
        if self.unwritable.load().is_none() {
            state.last_error = None;
        }
        self.tell(state);
    }

    /// What the brokers say of the topic.
    pub(super) fn sees(&self, topic: Writability) {
        let mut state = self.state();
        if topic.unwritable.is_empty() {
            self.unwritable.store(None);
        } else {
            if state.clock.is_none() {
                // Brokers that say so are there.
                state.away = None;
                state.pause = FIRST_PROBE;
            }
            self.unwritable.store(Some(Arc::new(topic)));
        }
        self.tell(&mut state);
    }

    /// The brokers cannot be used. Returns whether that is news.
    pub(super) fn down(&self, reason: &str) -> bool {
        let mut state = self.state();
        let news = state.away.is_none();
        if !news {
            state.pause = (state.pause * 2).min(LONGEST_PROBE);
        }
        state.away = Some(reason.to_owned());
        self.tell(&mut state);
        news
    }

    /// A broker refused a record, perhaps for its time.
    pub(super) fn refused_time(&self) {
        self.time_refused.store(true, Ordering::Release);
    }

    /// Whether one did since this was asked last.
    pub(super) fn take_refused_time(&self) -> bool {
        self.time_refused.swap(false, Ordering::AcqRel)
    }

    /// The brokers refuse our time, for this reason. One line in the log for as long as that lasts.
    pub(super) fn clock_is_wrong(&self, side: Side, reason: &str) {
        if self.state().clock.replace(side).is_none() {
            tracing::error!(reason, "Kafka refuses events for their time: none are sent until the clocks agree");
        }
        self.down(reason);
    }

    /// On which side our time was refused, and is until the brokers say otherwise.
    pub(super) fn clock(&self) -> Option<Side> {
        self.state().clock
    }

    /// The brokers take our time again.
    pub(super) fn clock_is_right(&self) {
        if self.state().clock.take().is_some() {
            tracing::info!("Kafka takes this machine's time again");
        }
    }

    /// Nothing is acknowledged, though brokers answer.
    pub(super) fn idle(&self) {
        let mut state = self.state();
        if state.away.is_none() {
            state.pause = (state.pause * 2).min(LONGEST_PROBE);
        }
        state.away = Some("the brokers answer, and acknowledge no event".to_owned());
        self.tell(&mut state);
    }

    /// Says how it is to whoever asks the door, the buffer, or readiness.
    fn tell(&self, state: &mut State) {
        self.is_away.store(state.away.is_some(), Ordering::Release);
        let unwritable = self.unwritable.load_full();
        let away = state.away.as_ref().map(|reason| self.words(state, reason));
        let topic =
            unwritable.as_ref().map(|topic| format!("Kafka at {} takes no events for {}", self.brokers, topic.words()));
        let all = unwritable.as_ref().filter(|topic| topic.unwritable.len() >= topic.partitions).and(topic.clone());
        match &self.buffer {
            Some(buffer) => buffer.set_kafka(away.is_none() && topic.is_none()),
            None => self.refusal.set(away.clone().or(all)),
        }
        self.health.dependency(dependency::KAFKA, away.map_or(Ok(()), Err));
        self.health.dependency(dependency::KAFKA_TOPIC, topic.map_or(Ok(()), Err));
    }

    /// The producer cannot be used any more and has to be replaced.
    pub(super) fn failed(&self, reason: &str) {
        self.failed.store(true, Ordering::Release);
        tracing::error!(reason, "the Kafka producer failed for good");
    }

    pub(super) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    pub(super) fn mended(&self) {
        self.failed.store(false, Ordering::Release);
    }

    /// What librdkafka said about a connection, for the reason that operators see.
    pub(super) fn note(&self, reason: &str) {
        self.state().last_error = Some(reason.to_owned());
    }

    /// Whether the next probe is due, so long after the last one.
    pub(super) fn is_due(&self, since: Duration) -> bool {
        if self.is_away() {
            return since >= self.state().pause;
        }
        if self.unwritable.load().is_some() {
            return since >= LOOK;
        }
        if self.is_suspicious() {
            return since >= FIRST_PROBE;
        }
        since >= SILENCE && self.since(&self.last_answer) >= SILENCE / 2
    }

    /// Whether a record was acknowledged after that.
    pub(super) fn has_acknowledged_since(&self, then: Instant) -> bool {
        self.since(&self.last_acknowledged) < then.elapsed()
    }

    /// Whether a record has waited for long.
    pub(super) fn is_suspicious(&self) -> bool {
        self.unanswered.oldest(Instant::now()) >= SUSPICIOUS
    }

    /// Whether a record has waited for so long without any other being acknowledged that nothing is.
    pub(super) fn acknowledges_nothing(&self) -> bool {
        self.unanswered.oldest(Instant::now()) >= UNACKNOWLEDGED
            && self.since(&self.last_acknowledged) >= UNACKNOWLEDGED
    }

    pub(super) fn explain(&self, error: &KafkaError) -> String {
        let words = self.words(&self.state(), &error.to_string());
        match self.unwritable() {
            Some(topic) => format!("{words}: it takes no events for {}", topic.words()),
            None => words,
        }
    }

    fn words(&self, state: &State, reason: &str) -> String {
        match state.last_error.as_ref().filter(|_| state.clock.is_none()) {
            Some(said) => format!("Kafka at {}: {reason} ({})", self.brokers, logging::explained(said)),
            None => format!("Kafka at {}: {reason}", self.brokers),
        }
    }
}

/// What one producer says to the [`BrokerStatus`], until another has its place: its end takes seconds, in which its connections
/// may go and its probe may fail.
pub(super) struct Reporter {
    brokers: Arc<BrokerStatus>,
    retired: AtomicBool,
}

impl Reporter {
    pub fn new(brokers: Arc<BrokerStatus>) -> Self {
        Self { brokers, retired: AtomicBool::new(false) }
    }

    /// For what concerns the brokers.
    pub fn live(&self) -> Option<&BrokerStatus> {
        (!self.retired.load(Ordering::Acquire)).then_some(&self.brokers)
    }

    /// Says something of the brokers, unless another producer says it by now.
    pub fn tell(&self, what: impl FnOnce(&BrokerStatus)) {
        if let Some(brokers) = self.live() {
            what(brokers);
        }
    }

    pub fn explain(&self, error: &KafkaError) -> String {
        self.brokers.explain(error)
    }

    pub fn retire(&self) {
        self.retired.store(true, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unwritable(partitions: &[usize]) -> Writability {
        let unwritable = partitions.iter().map(|partition| (*partition, "no leader".to_owned())).collect();
        Writability { partitions: 2, unwritable }
    }

    #[test]
    fn one_partition_without_a_leader_closes_the_door_for_nobody_and_all_of_them_do() {
        let health = Health::default();
        let brokers = BrokerStatus::new("kafka:9092", health.clone(), None);
        assert!(health.gate.closed().is_some(), "closed until the brokers answer");
        brokers.sees(unwritable(&[1]));
        assert!(health.gate.closed().is_none() && health.outage(&[dependency::KAFKA_TOPIC]).is_some());
        brokers.acknowledged();
        assert!(brokers.unwritable().is_some(), "the other partition's acknowledgement");
        brokers.sees(unwritable(&[0, 1]));
        assert!(health.gate.closed().is_some_and(|(_, why)| why.contains("partition(s) 0, 1: no leader")));
        brokers.sees(unwritable(&[]));
        assert!(health.gate.closed().is_none() && health.outage(&[dependency::KAFKA_TOPIC]).is_none());
    }

    #[test]
    fn a_buffer_takes_over_as_soon_as_one_partition_takes_nothing() {
        use crate::{log::buffer::switch::Rule, position::Offset};
        let switch =
            Arc::new(Switch::new(Rule::new(Offset(0), Offset(0)), prometheus_client::metrics::gauge::Gauge::default()));
        let brokers = BrokerStatus::new("kafka:9092", Health::default(), Some(switch.clone()));
        brokers.answered();
        assert!(switch.rule().kafka_up());
        brokers.sees(unwritable(&[1]));
        brokers.acknowledged();
        assert!(!switch.rule().kafka_up());
        brokers.sees(unwritable(&[]));
        assert!(switch.rule().kafka_up());
    }

    #[test]
    fn while_our_time_is_refused_no_answer_of_the_brokers_opens_the_door() {
        let health = Health::default();
        let brokers = BrokerStatus::new("kafka:9092", health.clone(), None);
        brokers.answered();
        brokers.note("Connection refused");
        brokers.clock_is_wrong(Side::Ahead, "an hour ahead");
        brokers.acknowledged();
        brokers.answered();
        let (_, reason) = health.gate.closed().expect("it is closed");
        assert!(reason.contains("an hour ahead") && !reason.contains("Connection refused"), "{reason}");
        brokers.clock_is_right();
        brokers.answered();
        assert!(health.gate.closed().is_none());
    }
}
