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
//! **The handover.** Under a steady load something always waits, and all of it would go by the buffer for ever. So the
//! forwarder may have new requests *held* while it sends what fits in one transaction: they are neither in flight nor
//! waiting, and stay in the producer's mailbox in their order. The hold is over when nothing waits (they go straight), when
//! its time is, or when Kafka is away (they go into the buffer). The rule above is as before: a held request has not come
//! yet.
//!
//! A request is admitted as a whole. The rest of one that the straight producer could take only in part goes straight,
//! too: later ones wait behind it in the producer's mailbox. Only one that is handled at the same moment may begin to wait
//! before that rest is sent, and between two such there is no order to be kept: neither was answered when the other came.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex, MutexGuard};
use prometheus_client::metrics::gauge::Gauge;

use crate::position::Offset;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Straight,
    Buffer,
    /// Neither yet: it is to come again in a moment.
    Held,
}

/// The rule as a state machine. It does nothing itself, and takes the time from its caller.
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
    /// New requests are held, until then at the latest.
    held_until: Option<Instant>,
}

impl Rule {
    pub fn new(end: Offset, forwarded: Offset) -> Self {
        Self { kafka_up: false, in_flight: 0, submitted: 0, end, forwarded, held_until: None }
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

    /// Neither durable in the buffer without being in Kafka, nor about to be.
    fn is_through(&self) -> bool {
        self.submitted == 0 && self.waiting() == 0
    }

    fn way(&self, now: Instant) -> Way {
        match self.kafka_up {
            true if self.is_through() => Way::Straight,
            true if self.held_until.is_some_and(|until| now < until) => Way::Held,
            _ => Way::Buffer,
        }
    }

    /// A new request comes, and goes the way that is answered.
    pub fn admit(&mut self, now: Instant) -> Way {
        let way = self.way(now);
        match way {
            Way::Straight => self.in_flight += 1,
            Way::Buffer => self.submitted += 1,
            Way::Held => {}
        }
        way
    }

    /// The forwarder is about to send what waits.
    pub fn hold(&mut self, until: Instant) {
        self.held_until = Some(until);
    }

    /// It does not, or has.
    pub fn release(&mut self) {
        self.held_until = None;
    }

    /// Nothing more becomes durable in the buffer before the hold is over.
    fn is_written(&self) -> bool {
        self.held_until.is_some() && self.submitted == 0
    }

    /// The rest of a request that went straight in part.
    pub fn readmit(&mut self) {
        self.in_flight += 1;
    }

    /// All events in flight of a request (or of its rest) are answered.
    pub fn landed(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    /// The writer has answered this number of requests, durable or refused.
    pub fn answered(&mut self, requests: usize, end: Offset) {
        self.submitted = self.submitted.saturating_sub(requests);
        self.end = self.end.max(end);
    }

    pub fn set_kafka(&mut self, up: bool) {
        self.kafka_up = up;
        if !up {
            self.release();
        }
    }

    /// Everything before `position` is committed.
    pub fn committed(&mut self, position: Offset) {
        self.forwarded = self.forwarded.max(position);
        if self.is_through() {
            self.release();
        }
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
        self.rule.lock()
    }

    /// Changes the rule's state and lets the forwarder look at it.
    pub fn update<T>(&self, change: impl FnOnce(&mut Rule) -> T) -> T {
        let mut rule = self.rule();
        let before = (rule.may_forward(), rule.is_written());
        let answer = change(&mut rule);
        self.waiting.set(i64::try_from(rule.waiting()).unwrap_or(i64::MAX));
        if !before.0 && rule.may_forward() || !before.1 && rule.is_written() {
            self.changed.notify_all();
        }
        answer
    }

    /// Holds new requests for this time at most, and waits until all before them are written: then the next transaction
    /// may carry all that waits.
    pub fn hold(&self, longest: Duration) {
        self.update(|rule| rule.hold(Instant::now() + longest));
        let _ = self.changed.wait_while_for(&mut self.rule(), |rule| !rule.is_written(), longest);
    }

    /// Kafka can be reached, or cannot.
    pub fn set_kafka(&self, up: bool) {
        self.update(|rule| rule.set_kafka(up));
    }

    /// Waits until the forwarder may send, at most `timeout`; whether it may.
    pub fn wait(&self, timeout: Duration) -> bool {
        let mut rule = self.rule();
        let _ = self.changed.wait_while_for(&mut rule, |rule| !rule.may_forward(), timeout);
        rule.may_forward()
    }

    /// Wakes those that wait.
    pub fn wake(&self) {
        self.changed.notify_all();
    }
}

/// Held as long as an event of one request is in flight: when it is dropped, the request has landed.
pub struct InFlight(pub(super) Arc<Switch>);

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
        assert_eq!(rule.admit(Instant::now()), Way::Buffer, "down until it has answered");
        rule.answered(1, Offset(3));
        rule.set_kafka(true);
        assert_eq!(rule.admit(Instant::now()), Way::Buffer, "3 wait");
        rule.committed(Offset(3));
        assert_eq!(
            rule.admit(Instant::now()),
            Way::Buffer,
            "the one before is with the writer, which may be about to make it durable"
        );
        rule.answered(2, Offset(5));
        rule.committed(Offset(5));
        assert_eq!(rule.admit(Instant::now()), Way::Straight);
    }

    #[test]
    fn the_forwarder_waits_for_what_is_in_flight() {
        let mut rule = Rule::new(Offset(0), Offset(0));
        rule.set_kafka(true);
        assert_eq!(rule.admit(Instant::now()), Way::Straight);
        rule.set_kafka(false);
        assert_eq!(rule.admit(Instant::now()), Way::Buffer);
        rule.answered(1, Offset(1));
        rule.set_kafka(true);
        assert!(!rule.may_forward(), "the first may still be delivered");
        rule.landed();
        assert!(rule.may_forward());
        assert_eq!(rule.admit(Instant::now()), Way::Buffer);
    }

    #[test]
    fn held_requests_go_straight_once_nothing_waits_and_into_the_buffer_when_it_takes_too_long() {
        let (now, second) = (Instant::now(), Duration::from_secs(1));
        let waiting = || {
            let mut rule = Rule::new(Offset(5), Offset(0));
            rule.set_kafka(true);
            assert_eq!(rule.admit(now), Way::Buffer);
            rule.hold(now + second);
            assert_eq!(rule.admit(now), Way::Held);
            assert!(!rule.is_written(), "one is with the writer");
            rule.answered(1, Offset(6));
            assert!(rule.is_written() && rule.may_forward());
            rule
        };
        let mut rule = waiting();
        rule.committed(Offset(4));
        assert_eq!(rule.admit(now), Way::Held, "2 wait");
        rule.committed(Offset(6));
        assert_eq!(rule.admit(now), Way::Straight);
        rule.landed();
        assert_eq!(rule, Rule { kafka_up: true, ..Rule::new(Offset(6), Offset(6)) }, "no hold is left over");

        assert_eq!(waiting().admit(now + second), Way::Buffer);
        let mut rule = waiting();
        rule.set_kafka(false);
        rule.set_kafka(true);
        assert_eq!(rule.admit(now), Way::Buffer, "the hold ended with Kafka");
    }

    #[test]
    fn a_refused_write_does_not_hold_events_back_for_ever() {
        let mut rule = Rule::new(Offset(7), Offset(7));
        assert_eq!(rule.admit(Instant::now()), Way::Buffer);
        rule.answered(1, Offset(7));
        rule.set_kafka(true);
        assert_eq!(rule.admit(Instant::now()), Way::Straight);
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
        /// It has new requests held; or their time is over.
        Hold(bool),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => Just(Step::Request),
            1 => any::<bool>().prop_map(Step::Kafka),
            3 => any::<bool>().prop_map(Step::Land),
            3 => (1..4usize, prop::bool::weighted(0.9)).prop_map(|(requests, durable)| Step::Write(requests, durable)),
            3 => (1..4u64).prop_map(Step::Forward),
            1 => any::<bool>().prop_map(Step::Hold),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        /// One key: requests are numbered as they come, and those that are in the log stand there in that order.
        #[test]
        fn accepted_events_stand_in_the_log_in_their_order(steps in prop::collection::vec(step(), 1..80)) {
            let mut rule = Rule::new(Offset(0), Offset(0));
            let (mut next, mut log) = (0u32, Vec::new());
            let (mut now, mut held) = (Instant::now(), std::collections::VecDeque::new());
            let mut straight = std::collections::VecDeque::new();
            let mut submitted = std::collections::VecDeque::new();
            let mut buffer = Vec::new();
            let settle = [Step::Kafka(true), Step::Hold(false), Step::Write(80, true)].into_iter();
            let settle = settle.chain((0..80).map(|_| Step::Land(true))).chain((0..80).map(|_| Step::Forward(3)));
            for step in steps.into_iter().chain(settle) {
                match step {
                    Step::Request => {
                        held.push_back(next);
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
                    Step::Hold(true) => rule.hold(now + Duration::from_secs(1)),
                    Step::Hold(false) => now += Duration::from_secs(1),
                }
                // As the producer does: the first one is asked for again, and others only behind it.
                while let Some(first) = held.front().copied() {
                    match rule.admit(now) {
                        Way::Straight => straight.push_back(first),
                        Way::Buffer => submitted.push_back(first),
                        Way::Held => break,
                    }
                    held.pop_front();
                }
            }
            prop_assert!(held.is_empty(), "held for ever");
            prop_assert!(log.is_sorted(), "{log:?}");
            prop_assert!(buffer.iter().all(|event| log.contains(event)));
            rule.set_kafka(true);
            prop_assert_eq!(rule.admit(Instant::now()), Way::Straight);
        }
    }
}
