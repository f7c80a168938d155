//! Which way an event goes: straight to Kafka, or into the buffer; and when the forwarder may send.
//!
//! **The rule, in both directions.** Let an event be *in flight* from when it is handed to the straight producer until
//! its delivery is answered, and *waiting* from when it is handed to the buffer's writer until the transaction that
//! carries it is committed.
//!
//! 1. A request goes straight only while Kafka is up and nothing is waiting; otherwise into the buffer.
//! 2. The forwarder begins a transaction only while Kafka is up and nothing is in flight.
//!
//! From 1: while anything waits, nothing new becomes in flight. From 2 and that: whatever was in flight when the first
//! event began to wait has its answer before the forwarder sends anything, and what is sent straight later is sent after
//! everything that waited is acknowledged. So of two events of one key, the one that was accepted first stands first in
//! the log, whichever way each went. (An event in flight that timed out was answered 503: nothing was promised, and a
//! broker may still append it late, as without a buffer.)
//!
//! A request is admitted as a whole. The rest of one that the straight producer could take only in part goes straight,
//! too: later ones wait behind it in the producer's mailbox. Only one that is handled at the same moment may begin to wait
//! before that rest is sent, and between two such there is no order to be kept: neither was answered when the other came.

use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use prometheus_client::metrics::gauge::Gauge;

use crate::position::Offset;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Straight,
    Buffer,
}

/// The rule as a state machine. It does nothing itself and knows no time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    kafka_up: bool,
    /// Requests with events in flight.
    in_flight: usize,
    /// Requests that the buffer's writer has and has not answered.
    submitted: usize,
    /// What is durable in the buffer ends here …
    end: Offset,
    /// … and everything before this is committed in Kafka.
    forwarded: Offset,
}

impl Rule {
    pub fn new(end: Offset, forwarded: Offset) -> Self {
        Self { kafka_up: false, in_flight: 0, submitted: 0, end, forwarded }
    }

    /// Events that are durable in the buffer and not known to be in Kafka.
    pub fn waiting(&self) -> u64 {
        self.end.since(self.forwarded)
    }

    pub fn forwarded(&self) -> Offset {
        self.forwarded
    }

    pub fn kafka_up(&self) -> bool {
        self.kafka_up
    }

    fn way(&self) -> Way {
        if self.kafka_up && self.submitted == 0 && self.waiting() == 0 { Way::Straight } else { Way::Buffer }
    }

    /// A new request comes, and goes the way that is answered.
    pub fn admit(&mut self) -> Way {
        let way = self.way();
        match way {
            Way::Straight => self.in_flight += 1,
            Way::Buffer => self.submitted += 1,
        }
        way
    }

    /// The rest of a request that went straight in part.
    pub fn readmit(&mut self) {
        self.in_flight += 1;
    }

    /// All events in flight of a request (or of its rest) are answered.
    pub fn landed(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    /// The writer has answered so many requests, durable or refused.
    pub fn answered(&mut self, requests: usize, end: Offset) {
        self.submitted = self.submitted.saturating_sub(requests);
        self.end = self.end.max(end);
    }

    pub fn set_kafka(&mut self, up: bool) {
        self.kafka_up = up;
    }

    /// Everything before `position` is committed.
    pub fn committed(&mut self, position: Offset) {
        self.forwarded = self.forwarded.max(position);
    }

    /// Whether the forwarder may begin a transaction.
    pub fn may_forward(&self) -> bool {
        self.kafka_up && self.in_flight == 0 && self.waiting() > 0
    }
}

/// The rule as the appender, the writer, Kafka's link and the forwarder share it. Its lock is held for moments.
pub struct Switch {
    rule: Mutex<Rule>,
    changed: Condvar,
    /// Shows what is waiting.
    waiting: Gauge,
}

impl Switch {
    pub fn new(rule: Rule, waiting: Gauge) -> Self {
        let switch = Self { rule: Mutex::new(rule), changed: Condvar::new(), waiting };
        switch.update(|_| ());
        switch
    }

    pub fn rule(&self) -> MutexGuard<'_, Rule> {
        self.rule.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the rule's state and lets the forwarder look at it.
    pub fn update<T>(&self, change: impl FnOnce(&mut Rule) -> T) -> T {
        let mut rule = self.rule();
        let before = rule.may_forward();
        let answer = change(&mut rule);
        self.waiting.set(i64::try_from(rule.waiting()).unwrap_or(i64::MAX));
        if !before && rule.may_forward() {
            self.changed.notify_all();
        }
        answer
    }

    /// Kafka can be reached, or cannot.
    pub fn set_kafka(&self, up: bool) {
        self.update(|rule| rule.set_kafka(up));
    }

    /// Waits until the forwarder may send, at most `timeout`; whether it may.
    pub fn wait(&self, timeout: Duration) -> bool {
        let rule = self.changed.wait_timeout_while(self.rule(), timeout, |rule| !rule.may_forward());
        rule.unwrap_or_else(PoisonError::into_inner).0.may_forward()
    }

    /// Wakes whoever waits.
    pub fn wake(&self) {
        self.changed.notify_all();
    }
}

/// Held by each event in flight of one request; when the last one is dropped, the request has landed.
pub struct InFlight(Arc<Switch>);

impl InFlight {
    /// For a request that was admitted.
    pub fn admitted(switch: Arc<Switch>) -> Self {
        Self(switch)
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.update(Rule::landed);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn events_go_straight_only_while_kafka_is_up_and_nothing_waits() {
        let mut rule = Rule::new(Offset(0), Offset(0));
        assert_eq!(rule.admit(), Way::Buffer, "down until it has answered");
        rule.answered(1, Offset(3));
        rule.set_kafka(true);
        assert_eq!(rule.admit(), Way::Buffer, "3 wait");
        rule.committed(Offset(3));
        assert_eq!(
            rule.admit(),
            Way::Buffer,
            "the one before is with the writer, which may be about to make it durable"
        );
        rule.answered(2, Offset(5));
        rule.committed(Offset(5));
        assert_eq!(rule.admit(), Way::Straight);
    }

    #[test]
    fn the_forwarder_waits_for_what_is_in_flight() {
        let mut rule = Rule::new(Offset(0), Offset(0));
        rule.set_kafka(true);
        assert_eq!(rule.admit(), Way::Straight);
        rule.set_kafka(false);
        assert_eq!(rule.admit(), Way::Buffer);
        rule.answered(1, Offset(1));
        rule.set_kafka(true);
        assert!(!rule.may_forward(), "the first may still be delivered");
        rule.landed();
        assert!(rule.may_forward());
        assert_eq!(rule.admit(), Way::Buffer);
    }

    #[test]
    fn a_refused_write_does_not_hold_events_back_for_ever() {
        let mut rule = Rule::new(Offset(7), Offset(7));
        assert_eq!(rule.admit(), Way::Buffer);
        rule.answered(1, Offset(7));
        rule.set_kafka(true);
        assert_eq!(rule.admit(), Way::Straight);
    }

    /// What can happen, in any order that the parts can produce.
    #[derive(Debug, Clone, Copy)]
    enum Step {
        Request,
        Kafka(bool),
        /// The oldest event in flight is delivered (or times out).
        Land(bool),
        /// The writer's next commit takes so many requests; or refuses them.
        Write(usize, bool),
        /// The forwarder commits up to so many events.
        Forward(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => Just(Step::Request),
            1 => any::<bool>().prop_map(Step::Kafka),
            3 => any::<bool>().prop_map(Step::Land),
            3 => (1..4usize, prop::bool::weighted(0.9)).prop_map(|(requests, durable)| Step::Write(requests, durable)),
            3 => (1..4u64).prop_map(Step::Forward),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        /// One key: requests are numbered as they come, and those that are in the log stand there in that order.
        #[test]
        fn accepted_events_stand_in_the_log_in_their_order(steps in prop::collection::vec(step(), 1..80)) {
            let mut rule = Rule::new(Offset(0), Offset(0));
            let (mut next, mut log) = (0u32, Vec::new());
            let mut straight = std::collections::VecDeque::new();
            let mut submitted = std::collections::VecDeque::new();
            let mut buffer = Vec::new();
            let settle = [Step::Kafka(true), Step::Write(80, true)].into_iter();
            let settle = settle.chain((0..80).map(|_| Step::Land(true))).chain((0..80).map(|_| Step::Forward(3)));
            for step in steps.into_iter().chain(settle) {
                match step {
                    Step::Request => {
                        match rule.admit() {
                            Way::Straight => straight.push_back(next),
                            Way::Buffer => submitted.push_back(next),
                        }
                        next += 1;
                    }
                    Step::Kafka(up) => rule.set_kafka(up),
                    Step::Land(delivered) => if let Some(event) = straight.pop_front() {
                        if delivered {
                            log.push(event);
                        }
                        rule.landed();
                    },
                    Step::Write(requests, durable) => {
                        let taken: Vec<u32> = submitted.drain(..requests.min(submitted.len())).collect();
                        if durable {
                            buffer.extend(&taken);
                        }
                        rule.answered(taken.len(), Offset(buffer.len() as u64));
                    }
                    Step::Forward(most) => if rule.may_forward() {
                        let from = rule.forwarded().0;
                        let to = (from + most).min(buffer.len() as u64);
                        log.extend(&buffer[from as usize..to as usize]);
                        rule.committed(Offset(to));
                    },
                }
            }
            prop_assert!(log.is_sorted(), "{log:?}");
            prop_assert!(buffer.iter().all(|event| log.contains(event)));
            rule.set_kafka(true);
            prop_assert_eq!(rule.admit(), Way::Straight);
        }
    }
}
