//! The forwarder: a thread that carries the buffer's records into Kafka, in their order, one transaction after another.

use std::{
    cell::Cell,
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use rdkafka::types::RDKafkaErrorCode as Code;

use super::{
    Buffer, DOUBT, READER,
    position::{Position, Resume},
    transaction::{Failure, Outgoing, Target},
};
use crate::{
    backoff::Backoff,
    config::Config,
    log::{
        buffer::switch::Rule,
        dead_letters::{DeadLetter, Origin},
        embedded::{Bounds, LogReader},
        kafka::settings::TRANSACTION_TIMEOUT,
        record::{Record, RecordBuffer},
    },
    names::dependency,
    position::{Offset, Partition, Timestamp},
    supervise::{Escalation, Fences},
};

/// How often it says how it does, and looks whether it has to stop.
const TICK: Duration = Duration::from_millis(200);
/// What one transaction carries: some hundredths of a second's work, so that readers, who see nothing of an open
/// transaction and nothing behind it, are not held up.
const MAX_RECORDS: usize = 2000;
const MAX_BYTES: usize = 2 * 1024 * 1024;
/// How long new requests are held for the transaction behind which nothing waits, and how long they are not after that:
/// they wait in the producer's mailbox, and are answered within a second.
const HOLD: Duration = Duration::from_millis(500);
const BETWEEN_HOLDS: Duration = Duration::from_secs(2);
/// After a failure.
const BACKOFF: Backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(10));

pub(super) struct Forwarder {
    pub(super) buffer: Arc<Buffer>,
    /// The keys that it reads need a restart.
    config: Arc<Config>,
    records: LogReader,
    position: Position,
    /// Only while there is something to forward: a connection to each broker is not kept for days of nothing.
    target: Option<Target>,
    /// Events that the brokers refuse, and why; their dead letters go in their place.
    refused: BTreeMap<Offset, Refusal>,
    /// Records of the next transaction, at most: fewer while it has to be found out which one is refused.
    limit: usize,
    /// Not before then are new requests held again.
    next_hold: Instant,
    fences: Fences,
    reported: Cell<Option<Instant>>,
}

#[derive(Debug, Clone, Copy)]
struct Refusal {
    code: Code,
    /// The topic of the dead letters takes it as it is.
    whole: bool,
}

impl Forwarder {
    pub(super) fn new(buffer: Arc<Buffer>, records: LogReader, position: Position) -> Self {
        Self {
            config: buffer.env.config.load_full(),
            buffer,
            records,
            position,
            target: None,
            refused: BTreeMap::new(),
            limit: MAX_RECORDS,
            next_hold: Instant::now(),
            fences: Fences::default(),
            reported: Cell::new(None),
        }
    }

    pub(super) fn run(&mut self) {
        self.forward();
        // It may not go on while the process is on its way to stop: readiness stays true to the end.
        while self.tick() {
            thread::sleep(TICK);
        }
    }

    /// Returns when it is stopped, or after an escalation.
    fn forward(&mut self) {
        let mut failures = 0;
        while self.tick() {
            if !self.buffer.prepared.load(Ordering::Acquire) {
                thread::sleep(TICK);
                continue;
            }
            if !self.buffer.switch.wait(TICK) {
                self.target = None;
                continue;
            }
            let began = Instant::now();
            let reason = match self.step() {
                Ok(()) => {
                    failures = 0;
                    self.buffer.env.health.dependency(dependency::FORWARDER, Ok(()));
                    continue;
                }
                Err(Failure::Stopped) => return,
                Err(Failure::Fenced(reason)) => {
                    // A transaction whose time was over is fenced by its coordinator, not by another process.
                    let by_time = began.elapsed() >= TRANSACTION_TIMEOUT / 2;
                    if !by_time && self.fences.are_another_process(Instant::now()) {
                        let reason =
                            format!("another process forwards a copy of {}: {reason}", self.buffer.log.path.display());
                        self.buffer.env.escalate(Escalation::Fenced { reason });
                        return;
                    }
                    format!("its transactional id was taken: {reason}")
                }
                Err(Failure::Ended) => return,
                Err(Failure::Passing(reason)) => reason,
                // The step has adapted what it sends next.
                Err(Failure::Refused(_) | Failure::Unclear) => continue,
            };
            self.target = None;
            self.buffer.switch.update(Rule::release);
            tracing::debug!(reason, "forwarding failed, trying again");
            let reason = format!("cannot forward the buffer to Kafka: {reason}");
            self.buffer.env.health.dependency(dependency::FORWARDER, Err(reason));
            failures += 1;
            let until = Instant::now() + BACKOFF.pause(failures);
            while Instant::now() < until && self.tick() {
                thread::sleep(TICK.min(until.saturating_duration_since(Instant::now())));
            }
        }
    }

    /// Reports when it is time to; whether to go on.
    fn tick(&self) -> bool {
        if self.reported.get().is_none_or(|at| at.elapsed() >= TICK) {
            self.reported.set(Some(Instant::now()));
            self.buffer.report();
        }
        !self.buffer.stopping.load(Ordering::Acquire)
    }

    /// One transaction.
    fn step(&mut self) -> Result<(), Failure> {
        let target = match self.target.take() {
            Some(target) => target,
            None => self.begin()?,
        };
        self.hold();
        let Some((records, to)) = self.read()? else {
            self.target = Some(target);
            return Ok(());
        };
        let from = self.position.at;
        let batch: Vec<Record<'_>> =
            records.iter().filter(|record| from <= record.offset && record.offset < to).collect();
        let outgoing: Vec<Outgoing<'_>> = batch.iter().map(|record| self.outgoing(*record)).collect();
        let mark = Position::mark(from, to);
        self.buffer.log.write_meta(DOUBT, mark).map_err(|error| Failure::Passing(format!("{error:#}")))?;
        self.position.doubt = Some(to);
        match target.commit(&outgoing, to, &|| self.tick()) {
            Ok(()) => {
                let letters = outgoing.iter().filter(|outgoing| matches!(outgoing, Outgoing::Letter { .. })).count();
                self.committed(to, batch.len() - letters, letters);
                self.limit = (self.limit * 2).min(MAX_RECORDS);
            }
            Err(Failure::Refused(refused)) => {
                self.position.doubt = None;
                for (index, code) in refused {
                    self.refuse(&batch[index], code)?;
                }
            }
            Err(Failure::Unclear) => {
                self.position.doubt = None;
                self.limit = (batch.len() / 2).max(1);
            }
            Err(failure) => return Err(failure),
        }
        self.target = Some(target);
        Ok(())
    }

    /// Has new requests held where the next transaction may be the last.
    fn hold(&mut self) {
        let fits = self.buffer.switch.rule().waiting() <= self.limit as u64;
        if fits && Instant::now() >= self.next_hold {
            self.buffer.switch.hold(HOLD);
            self.next_hold = Instant::now() + HOLD + BETWEEN_HOLDS;
        }
    }

    /// Takes the transactional id, and finds out where to go on.
    fn begin(&mut self) -> Result<Target, Failure> {
        let id = self.buffer.id();
        let target = Target::open(&self.config, &id, &|| self.tick())?;
        let (at, path) = (self.position.at, self.buffer.log.path.display());
        let refused = match self.position.compare(target.committed()?) {
            Resume::GoesOn(position) => {
                self.move_to(position);
                return Ok(target);
            }
            Resume::Forgotten { to } => {
                tracing::error!(
                    from = %at, %to, group = id,
                    "Kafka has forgotten how far the buffer was forwarded (offsets.retention.minutes, or the topic was \
                     deleted): its events in this range may be in the topic already, and are sent again"
                );
                return Ok(target);
            }
            Resume::New => {
                // From here on a position that is missing is one that was forgotten.
                target.commit(&[], at, &|| self.tick())?;
                return Ok(target);
            }
            Resume::OlderCopy { position, known } => format!(
                "{path} is an older copy of itself: Kafka has its events up to {position} (group {id}), and the file \
                 knows of none beyond {known}; move it away with its folder buffer.segments/ (its events before {position} are in Kafka, those that \
                 were accepted since the copy was put here are not)"
            ),
            Resume::OtherCopy { position, to } => format!(
                "another process forwards a copy of {path}: Kafka has events up to {position} (group {id}), while this \
                 file was forwarded up to {at} or {to}; end one of the two, and give it a data.dir of its own (the \
                 events of this file from {at} on that only it accepted are not in Kafka)"
            ),
        };
        self.buffer.env.escalate(Escalation::Refused { reason: refused });
        Err(Failure::Ended)
    }

    /// The records of the next transaction, among others, and the position behind it.
    fn read(&mut self) -> Result<Option<(RecordBuffer, Offset)>, Failure> {
        let from = self.position.at;
        if from >= self.buffer.log.end.get() {
            return Ok(None);
        }
        let path = &self.buffer.log.path;
        let bounds = Bounds { records: self.limit, bytes: MAX_BYTES };
        let read = self
            .records
            .read(from, bounds, RecordBuffer::default())
            .map_err(|error| Failure::Passing(format!("{error:#}")))?;
        let Some((records, end)) = read else {
            return Err(Failure::Passing(format!("{} does not hold its events from {from} on", path.display())));
        };
        // Chunks are whole, and the first may begin before and be longer.
        let to = Offset(from.0 + self.limit as u64).min(end);
        Ok(Some((records, to)))
    }

    fn outgoing<'r>(&self, record: Record<'r>) -> Outgoing<'r> {
        let Some(refusal) = self.refused.get(&record.offset) else { return Outgoing::Event(record) };
        let (reason, why) = match refusal.code {
            Code::MessageSizeTooLarge => ("too_large", "the topic's max.message.bytes"),
            _ => ("refused_by_broker", "such as the topic's message.timestamp.before.max.ms"),
        };
        let owned = |bytes: &[u8]| bytes.to_vec();
        let letter = DeadLetter {
            // It has no position in the topic, and must not be taken for the record that has it.
            topic: format!("{}.buffer-{}", self.config.queue.topic, self.buffer.log.identity),
            generation: self.config.queue.generation,
            partition: Partition(0),
            origin: Origin::Record(record.offset),
            received: record.received,
            reason: reason.to_owned(),
            message: format!(
                "received at {} and forwarded from the buffer, it is refused by the broker: {} ({why})",
                record.received.to_rfc3339(),
                refusal.code
            ),
            time: Timestamp::now(),
            key: record.key.map(owned),
            value: record.value.map(Bytes::copy_from_slice),
            headers: record.headers.iter().map(|(name, value)| (name.to_owned(), value.map(owned))).collect(),
        };
        Outgoing::Letter { letter: Box::new(letter), whole: refusal.whole }
    }

    /// Notes that the brokers do not take a record for this reason; its letter, when that is what they refused.
    fn refuse(&mut self, record: &Record<'_>, code: Code) -> Result<(), Failure> {
        match self.refused.get_mut(&record.offset) {
            None => {
                self.refused.insert(record.offset, Refusal { code, whole: true });
            }
            Some(refusal) if refusal.whole && code == Code::MessageSizeTooLarge => refusal.whole = false,
            Some(_) => {
                return Err(Failure::Passing(format!(
                    "the topic of the dead letters refuses the one of the buffer's event {}: {code}",
                    record.offset
                )));
            }
        }
        Ok(())
    }

    fn committed(&mut self, to: Offset, events: usize, letters: usize) {
        let metrics = &self.buffer.env.metrics;
        metrics.events_forwarded.inc_by(events as u64);
        metrics.events_produced.inc_by(events as u64);
        if letters > 0 {
            metrics.events_dead_lettered.inc_by(letters as u64);
            tracing::warn!(letters, "events of the buffer that Kafka refuses were written as dead letters");
        }
        self.move_to(to);
    }

    fn move_to(&mut self, at: Offset) {
        self.position = Position { at, doubt: None };
        self.refused = self.refused.split_off(&at);
        self.buffer.log.move_cursor(READER, at);
        self.buffer.switch.update(|rule: &mut Rule| rule.committed(at));
    }
}
