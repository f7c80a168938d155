//! Whether the brokers take what the producer sends: the door for new events, and the dependency `kafka`.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use rdkafka::error::KafkaError;

use crate::{
    health::{Closed, Health},
    queue::{
        buffer::switch::Switch,
        kafka::{clock::Side, logging},
    },
};

/// A connection that is used says by itself that it works; one that is silent for so long is asked.
const SILENCE: Duration = Duration::from_secs(5);
/// A record that timed out says that the brokers are away only when nothing else was acknowledged for so long:
/// otherwise it is one partition that has no leader.
const UNANSWERED: Duration = Duration::from_secs(2);
const FIRST_PROBE: Duration = Duration::from_millis(500);
const LONGEST_PROBE: Duration = Duration::from_secs(5);

/// Shared by the producers' callbacks, their probes and the appender.
pub(super) struct Link {
    brokers: String,
    health: Health,
    /// Takes the events while the brokers are away; then the door is its business.
    buffer: Option<Arc<Switch>>,
    epoch: Instant,
    /// Milliseconds from `epoch` to the last answer of a broker.
    last_answer: AtomicU64,
    /// A copy of `State::down` for the path of each acknowledgement.
    is_down: AtomicBool,
    failed: AtomicBool,
    state: Mutex<State>,
}

struct State {
    down: bool,
    /// Doubles with each failed probe, and while brokers that answer probes acknowledge nothing.
    pause: Duration,
    last_error: Option<String>,
    /// The brokers refuse this machine's time, on this side of theirs: their answers do not open the door.
    clock: Option<Side>,
}

impl Link {
    /// Down until the first answer.
    pub(super) fn new(brokers: &str, health: Health, buffer: Option<Arc<Switch>>) -> Self {
        match &buffer {
            Some(buffer) => buffer.set_kafka(false),
            None => health.close(Closed::QueueUnavailable, format!("connecting to Kafka at {brokers}")),
        }
        Self {
            brokers: brokers.to_owned(),
            health,
            buffer,
            epoch: Instant::now(),
            last_answer: AtomicU64::new(0),
            is_down: AtomicBool::new(true),
            failed: AtomicBool::new(false),
            state: Mutex::new(State { down: true, pause: FIRST_PROBE, last_error: None, clock: None }),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn silent_for(&self) -> Duration {
        Duration::from_millis(self.now().saturating_sub(self.last_answer.load(Ordering::Relaxed)))
    }

    #[cfg(test)]
    pub(super) fn is_down(&self) -> bool {
        self.is_down.load(Ordering::Acquire)
    }

    /// A record is durable.
    pub(super) fn acknowledged(&self) {
        self.last_answer.store(self.now(), Ordering::Relaxed);
        if self.is_down.load(Ordering::Relaxed) {
            self.up();
            self.state().pause = FIRST_PROBE;
        }
    }

    /// A probe was answered.
    pub(super) fn answered(&self) {
        self.last_answer.store(self.now(), Ordering::Relaxed);
        self.up();
    }

    fn up(&self) {
        let mut state = self.state();
        if state.clock.is_some() {
            return;
        }
        state.down = false;
        state.last_error = None;
        self.is_down.store(false, Ordering::Release);
        self.health.dependency(super::DEPENDENCY, Ok(()));
        match &self.buffer {
            Some(buffer) => buffer.set_kafka(true),
            None => self.health.open(Closed::QueueUnavailable),
        }
    }

    /// The brokers cannot be used. Returns whether that is news.
    pub(super) fn down(&self, reason: &str) -> bool {
        let mut state = self.state();
        let news = !state.down;
        if !news {
            state.pause = (state.pause * 2).min(LONGEST_PROBE);
        }
        state.down = true;
        self.is_down.store(true, Ordering::Release);
        let reason = self.words(&state, reason);
        match &self.buffer {
            Some(buffer) => buffer.set_kafka(false),
            None => self.health.close(Closed::QueueUnavailable, reason.clone()),
        }
        self.health.dependency(super::DEPENDENCY, Err(reason));
        news
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

    /// A record was not acknowledged in time.
    pub(super) fn timed_out(&self) {
        if self.silent_for() >= UNANSWERED && !self.is_down.load(Ordering::Relaxed) {
            self.down("events were not acknowledged within their time");
            let mut state = self.state();
            state.pause = (state.pause * 2).min(LONGEST_PROBE);
        }
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

    /// How long to wait before the next probe, with ±20 % jitter so that daemons that lost Kafka together do not
    /// return together.
    pub(super) fn next_probe(&self) -> Duration {
        let state = self.state();
        let pause = if state.down { state.pause } else { SILENCE };
        pause.mul_f64(0.8 + 0.4 * fastrand::f64())
    }

    pub(super) fn needs_probe(&self) -> bool {
        self.is_down.load(Ordering::Acquire) || self.silent_for() >= SILENCE / 2
    }

    pub(super) fn explain(&self, error: &KafkaError) -> String {
        self.words(&self.state(), &error.to_string())
    }

    fn words(&self, state: &State, reason: &str) -> String {
        match state.last_error.as_ref().filter(|_| state.clock.is_none()) {
            Some(said) => format!("Kafka at {}: {reason} ({})", self.brokers, logging::explained(said)),
            None => format!("Kafka at {}: {reason}", self.brokers),
        }
    }
}

/// What one producer says to the [`Link`], until another has its place: its end takes seconds, in which its connections
/// may go and its probe may fail.
pub(super) struct Line {
    link: Arc<Link>,
    retired: AtomicBool,
}

impl Line {
    pub fn new(link: Arc<Link>) -> Self {
        Self { link, retired: AtomicBool::new(false) }
    }

    /// For what concerns the brokers.
    pub fn live(&self) -> Option<&Link> {
        (!self.retired.load(Ordering::Acquire)).then_some(&self.link)
    }

    pub fn explain(&self, error: &KafkaError) -> String {
        self.link.explain(error)
    }

    pub fn retire(&self) {
        self.retired.store(true, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_partition_without_a_leader_closes_the_door_for_nobody() {
        let health = Health::default();
        let link = Link::new("kafka:9092", health.clone(), None);
        assert!(health.closed().is_some(), "closed until the brokers answer");
        link.acknowledged();
        link.timed_out();
        assert!(health.closed().is_none());
    }

    #[test]
    fn while_our_time_is_refused_no_answer_of_the_brokers_opens_the_door() {
        let health = Health::default();
        let link = Link::new("kafka:9092", health.clone(), None);
        link.answered();
        link.note("Connection refused");
        link.clock_is_wrong(Side::Ahead, "an hour ahead");
        link.acknowledged();
        link.answered();
        let (_, reason) = health.closed().expect("it is closed");
        assert!(reason.contains("an hour ahead") && !reason.contains("Connection refused"), "{reason}");
        link.clock_is_right();
        link.answered();
        assert!(health.closed().is_none());
    }
}
