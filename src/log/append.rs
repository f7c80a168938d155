//! The write side: the events of one request, what takes them, and what becomes of each.

mod replies;

use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use tokio::sync::oneshot;
use uuid::{Uuid, fmt::Hyphenated};

pub(super) use self::replies::Gathering;
use self::replies::{Answer, Mailbox};
use super::record::{Headers, ID_HEADER};
use crate::position::{Position, Timestamp};

/// The write side of a queue, which several threads use at the same time.
pub trait Appender: Send + Sync {
    /// Starts writing the events of `publish` from index `from` on. Its ticket is called exactly once for each of them,
    /// when it is durable or refused. Never blocks for long.
    ///
    /// # Errors
    /// [`Full`] gives the request back when the queue's own buffers are full: call again later with the index reached.
    fn append(&self, publish: Publish, from: usize) -> Result<(), Full>;

    /// Waits until everything appended is durable or refused, at most `timeout`. Blocks: call it on a blocking thread.
    ///
    /// # Errors
    /// The number of events that are still unanswered.
    fn flush(&self, timeout: Duration) -> Result<(), usize>;
}

/// The queue's own buffers are full; append again from `next` when they had time to empty.
pub struct Full {
    pub publish: Publish,
    pub next: usize,
}

/// The accepted events of one request, to be made durable. Each is answered exactly once through the ticket.
pub struct Publish {
    /// The request's body; events are parts of it.
    pub body: Bytes,
    /// What does not stand in the body as it is: keys and values that were escaped there, and all headers.
    pub aside: Bytes,
    pub events: Vec<NewRecord>,
    pub received: Timestamp,
    pub ticket: Arc<Ticket>,
}

/// One event on its way into the log.
#[derive(Debug, Clone)]
pub struct NewRecord {
    pub value: Part,
    pub key: Option<Part>,
    pub headers: Option<NewHeaders>,
    /// The id that the server assigned, when the client sent none: goes into the header `id`.
    pub assigned_id: Option<Uuid>,
}

/// Headers besides `id`, in [`Publish::aside`] as [`super::record`] writes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewHeaders {
    pub count: u32,
    pub bytes: Span,
}

/// Bytes `start..end` of a request's body, or of what was made of it. Both are below 4 GiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    pub start: u32,
    pub end: u32,
}

impl Span {
    pub fn size(self) -> usize {
        (self.end - self.start) as usize
    }

    pub fn of(self, bytes: &[u8]) -> &[u8] {
        &bytes[self.start as usize..self.end as usize]
    }
}

/// Bytes of a request: a part of its body, or of what was made of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    InBody(Span),
    Aside(Span),
}

impl Part {
    pub fn size(self) -> usize {
        let (Self::InBody(span) | Self::Aside(span)) = self;
        span.size()
    }

    /// The bytes themselves, of a request with this body and these bytes aside of it.
    pub fn of<'b>(self, body: &'b [u8], aside: &'b [u8]) -> &'b [u8] {
        match self {
            Self::InBody(span) => span.of(body),
            Self::Aside(span) => span.of(aside),
        }
    }
}

impl Publish {
    pub fn value(&self, record: &NewRecord) -> &[u8] {
        record.value.of(&self.body, &self.aside)
    }

    pub fn key(&self, record: &NewRecord) -> Option<&[u8]> {
        record.key.map(|key| key.of(&self.body, &self.aside))
    }

    /// Those besides `id`.
    pub fn headers(&self, record: &NewRecord) -> Headers<'_> {
        record.headers.map_or(Headers::NONE, |headers| Headers::new(headers.count, headers.bytes.of(&self.aside)))
    }
}

impl NewRecord {
    /// Bytes of the record that this event becomes, at most, without what the log adds to any record.
    pub fn size(&self) -> usize {
        /// Kafka's two lengths of a header, as varints, are up to ten bytes; these beside the six that stand in our bytes.
        const FRAME: usize = 4;
        let id = self.assigned_id.map_or(0, |_| ID_HEADER.len() + Hyphenated::LENGTH + FRAME);
        let headers = self.headers.map_or(0, |NewHeaders { count, bytes }| bytes.size() + count as usize * FRAME);
        self.value.size() + self.key.map_or(0, Part::size) + id + headers
    }
}

/// What became of a request's events.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// Indexes into `Publish::events` of those that the queue refuses for their size: the client's error `too_large`.
    pub too_large: Vec<usize>,
    /// The first passing reason for which an event is not known to be durable: the whole request is answered 503.
    pub unavailable: Option<String>,
    /// The first passing reason for which an event was refused before anything of it was written: 503 as well.
    pub refused: Option<String>,
    /// All of those, where each event has its own answer ([`Ticket::of_each`]).
    pub failed: Vec<Failed>,
    /// Events that are durable.
    pub durable: usize,
    /// Where those stand whose places the queue has said, by partition, where that was asked for ([`Ticket::want_positions`]).
    pub positions: Positions,
}

/// The last position of some events in each partition that they are in.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Positions {
    /// By partition.
    last: Vec<Position>,
    events: usize,
}

impl Positions {
    /// Of so many more events in this partition, whose last stands here.
    fn add(&mut self, events: usize, position: Position) {
        self.events += events;
        match self.last.binary_search_by_key(&position.partition, |known| known.partition) {
            Ok(at) => self.last[at].offset = self.last[at].offset.max(position.offset),
            Err(at) => self.last.insert(at, position),
        }
    }
}

impl Delivery {
    /// The last position in each partition, where that of each event that is durable is known.
    pub fn take_positions(&mut self) -> Option<Vec<Position>> {
        let Positions { last, events } = std::mem::take(&mut self.positions);
        (events == self.durable).then_some(last)
    }
}

/// Events that are not known to be durable, for a passing reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failed {
    /// Indexes into `Publish::events`.
    pub events: Range<usize>,
    /// They may be durable all the same, now or later.
    pub may_be_stored: bool,
    /// At most [`Failed::LONGEST_REASON`] bytes.
    pub reason: Arc<str>,
}

impl Failed {
    pub const LONGEST_REASON: usize = 240;
}

/// Counts a request's answers down; the last one wakes the request. If it is dropped before (the producer died), the
/// request's receiver errs, which means: nothing promised.
pub struct Ticket {
    events: usize,
    unanswered: AtomicUsize,
    durable: AtomicUsize,
    /// Which events are durable, one bit each. Empty unless each event has its own answer: nobody else asks.
    marks: Box<[AtomicU64]>,
    outcome: Mutex<Outcome>,
    /// Counts events that became durable when nobody waited for them any more.
    late: Counter,
    /// Of the thread that waits for the answer.
    mailbox: Option<Arc<Mailbox>>,
    /// Its events are on their way to this machine's disk, whatever Kafka does.
    is_buffered: AtomicBool,
    /// Somebody asks where its events stand.
    wants_positions: AtomicBool,
}

struct Outcome {
    delivery: Delivery,
    /// `None` when the request has its answer, or has given up.
    reply: Option<oneshot::Sender<Delivery>>,
    /// Events that the request knew to be durable when it gave up.
    known: usize,
}

impl Ticket {
    /// For `events` events, at least one. `late` counts those that became durable after the request had gone.
    pub fn new(events: usize, late: Counter) -> (Arc<Self>, oneshot::Receiver<Delivery>) {
        Self::marking(events, Box::default(), late)
    }

    /// The same, where each event has its own answer: the request hears which ones failed, and why.
    pub fn of_each(events: usize, late: Counter) -> (Arc<Self>, oneshot::Receiver<Delivery>) {
        let marks = (0..events.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        Self::marking(events, marks, late)
    }

    fn marking(events: usize, marks: Box<[AtomicU64]>, late: Counter) -> (Arc<Self>, oneshot::Receiver<Delivery>) {
        let (reply, receiver) = oneshot::channel();
        let ticket = Self {
            events,
            unanswered: AtomicUsize::new(events),
            durable: AtomicUsize::new(0),
            marks,
            outcome: Mutex::new(Outcome { delivery: Delivery::default(), reply: Some(reply), known: 0 }),
            late,
            mailbox: Mailbox::of_this_thread(),
            is_buffered: AtomicBool::new(false),
            wants_positions: AtomicBool::new(false),
        };
        (Arc::new(ticket), receiver)
    }

    /// Whether each event has its own answer, so that one that fails keeps no other from being written.
    pub fn is_of_each(&self) -> bool {
        !self.marks.is_empty()
    }

    /// Its events go to the buffer, and wait for no broker.
    pub fn buffered(&self) {
        self.is_buffered.store(true, Ordering::Relaxed);
    }

    /// Whether [`Self::buffered`] was said.
    pub fn is_buffered(&self) -> bool {
        self.is_buffered.load(Ordering::Relaxed)
    }

    /// Has the positions of its events noted. Said before it is published.
    pub fn want_positions(&self) {
        self.wants_positions.store(true, Ordering::Relaxed);
    }

    /// The events with these indexes are durable, all in one partition, the last of them at this position; `None` where the
    /// queue does not say. What waits in the buffer stands elsewhere in the end.
    pub fn durable_at(&self, events: Range<usize>, last: impl FnOnce() -> Option<Position>) {
        if self.wants_positions.load(Ordering::Relaxed)
            && !self.is_buffered()
            && let Some(position) = last()
        {
            self.outcome.lock().delivery.positions.add(events.len(), position);
        }
        self.durable(events);
    }

    /// The events with these indexes are durable.
    pub fn durable(&self, events: Range<usize>) {
        let count = events.len();
        if self.is_of_each() {
            for index in events {
                self.marks[index / 64].fetch_or(1 << (index % 64), Ordering::AcqRel);
            }
        }
        self.durable.fetch_add(count, Ordering::AcqRel);
        self.count_down(count);
    }

    /// The event at `index` is larger than the queue takes.
    pub fn too_large(&self, index: usize) {
        self.outcome.lock().delivery.too_large.push(index);
        self.count_down(1);
    }

    /// The events with these indexes are not known to be durable, for a passing reason.
    pub fn unavailable(&self, events: Range<usize>, reason: &str) {
        self.outcome.lock().delivery.unavailable.get_or_insert_with(|| reason.to_owned());
        self.failed(events, true, reason);
    }

    /// Nothing of the events with these indexes was written, for a passing reason.
    pub fn refused(&self, events: Range<usize>, reason: &str) {
        self.outcome.lock().delivery.refused.get_or_insert_with(|| reason.to_owned());
        self.failed(events, false, reason);
    }

    fn failed(&self, events: Range<usize>, may_be_stored: bool, reason: &str) {
        let count = events.len();
        if self.is_of_each() {
            let failed = &mut self.outcome.lock().delivery.failed;
            let reason = shared(failed, reason);
            failed.push(Failed { events, may_be_stored, reason });
        }
        self.count_down(count);
    }

    fn count_down(&self, events: usize) {
        if self.unanswered.fetch_sub(events, Ordering::AcqRel) != events {
            return;
        }
        let durable = self.durable.load(Ordering::Acquire);
        let mut outcome = self.outcome.lock();
        let Some(reply) = outcome.reply.take() else {
            self.late.inc_by(durable.saturating_sub(outcome.known) as u64);
            return;
        };
        let delivery = Delivery { durable, ..std::mem::take(&mut outcome.delivery) };
        drop(outcome);
        Answer { reply, delivery, late: self.late.clone() }.give(self.mailbox.as_ref());
    }

    /// The request waits no longer, for this reason: what is known of each event by now. Those without an answer may be
    /// stored. `None` where the last answer came just now; the receiver has it.
    pub fn give_up(&self, why: &str) -> Option<Delivery> {
        let mut outcome = self.outcome.lock();
        if outcome.reply.take().is_none() {
            drop(outcome);
            self.mailbox.iter().for_each(|mailbox| mailbox.hand_on());
            return None;
        }
        let mut delivery = std::mem::take(&mut outcome.delivery);
        let mut answered = vec![false; self.events];
        for failed in &delivery.failed {
            answered[failed.events.clone()].fill(true);
        }
        for index in &delivery.too_large {
            answered[*index] = true;
        }
        for (index, answered) in answered.iter_mut().enumerate() {
            let is_durable = self.marks.get(index / 64).is_some_and(|marks| {
                let bit = 1 << (index % 64);
                marks.load(Ordering::Acquire) & bit != 0
            });
            *answered |= is_durable;
            delivery.durable += usize::from(is_durable);
        }
        outcome.known = delivery.durable;
        let reason = shared(&delivery.failed, why);
        let unanswered = answered.iter().enumerate().filter(|(_, answered)| !**answered).map(|(index, _)| index);
        delivery.failed.extend(unanswered.map(|index| Failed {
            events: index..index + 1,
            may_be_stored: true,
            reason: reason.clone(),
        }));
        delivery.unavailable.get_or_insert_with(|| why.to_owned());
        Some(delivery)
    }
}

/// This reason, cut where it is long. Thousands of events fail for a few reasons: what one before has is shared, and after so
/// many that differ it is no longer looked for.
fn shared(failed: &[Failed], reason: &str) -> Arc<str> {
    const LOOKED_AT: usize = 64;
    let reason = &reason[..reason.floor_char_boundary(Failed::LONGEST_REASON)];
    let same = failed.iter().rev().take(LOOKED_AT).find(|other| *other.reason == *reason);
    same.map_or_else(|| reason.into(), |other| other.reason.clone())
}

#[cfg(test)]
mod tests {
    use super::{super::record::write_header, *};
    use crate::position::{Offset, Partition};

    #[test]
    fn the_last_answer_wakes_the_request() {
        let (ticket, mut reply) = Ticket::new(3, Counter::default());
        ticket.durable(0..1);
        ticket.too_large(2);
        assert!(reply.try_recv().is_err());
        ticket.durable(1..2);
        assert_eq!(reply.try_recv().unwrap(), Delivery { too_large: vec![2], durable: 2, ..Delivery::default() });
    }

    #[test]
    fn positions_are_told_to_who_asks_where_all_are_known() {
        let at = |partition, offset| Position { partition: Partition(partition), offset: Offset(offset) };
        let told = |prepare: fn(&Ticket), positions: [Option<Position>; 3]| {
            let (ticket, mut reply) = Ticket::new(4, Counter::default());
            prepare(&ticket);
            for (index, position) in positions.into_iter().enumerate() {
                ticket.durable_at(index..index + 1, || position);
            }
            ticket.too_large(3);
            reply.try_recv().unwrap().take_positions()
        };
        let known = [Some(at(2, 7)), Some(at(0, 20)), Some(at(2, 6))];
        assert_eq!(told(Ticket::want_positions, known), Some(vec![at(0, 20), at(2, 7)]));
        assert_eq!(told(|_| (), known), None, "nobody asked");
        assert_eq!(told(Ticket::want_positions, [known[0], None, known[2]]), None, "one is not known");
        let buffered = |ticket: &Ticket| {
            ticket.want_positions();
            ticket.buffered();
        };
        assert_eq!(told(buffered, known), None, "they wait for Kafka");
    }

    #[test]
    fn events_that_become_durable_after_the_request_has_gone_are_counted() {
        let late = Counter::default();
        let (ticket, reply) = Ticket::new(2, late.clone());
        drop(reply);
        ticket.durable(0..2);
        assert_eq!(late.get(), 2);
    }

    /// Index, whether it may be stored, and why.
    fn told(delivery: &Delivery) -> Vec<(usize, bool, &str)> {
        let failed = delivery.failed.iter();
        let each = failed
            .flat_map(|failed| failed.events.clone().map(move |index| (index, failed.may_be_stored, &*failed.reason)));
        let mut told: Vec<_> = each.collect();
        told.sort_unstable();
        told
    }

    #[test]
    fn which_events_failed_is_told_where_each_has_its_own_answer_alone() {
        for is_of_each in [true, false] {
            let new = if is_of_each { Ticket::of_each } else { Ticket::new };
            let (ticket, mut reply) = new(70, Counter::default());
            ticket.durable(0..64);
            ticket.unavailable(65..66, "away");
            ticket.refused(66..70, "full");
            ticket.durable(64..65);
            let delivery = reply.try_recv().unwrap();
            assert_eq!((delivery.durable, delivery.unavailable.as_deref()), (65, Some("away")));
            assert_eq!(delivery.refused.as_deref(), Some("full"));
            let expected = [
                (65, true, "away"),
                (66, false, "full"),
                (67, false, "full"),
                (68, false, "full"),
                (69, false, "full"),
            ];
            assert_eq!(told(&delivery), if is_of_each { &expected[..] } else { &[] });
        }
    }

    #[test]
    fn who_gives_up_knows_what_is_durable_by_then_and_only_the_others_are_late() {
        let late = Counter::default();
        let (ticket, mut reply) = Ticket::of_each(130, late.clone());
        ticket.durable(0..1);
        ticket.durable(100..129);
        ticket.refused(1..99, "full");
        ticket.too_large(99);
        let delivery = ticket.give_up("nobody answers").unwrap();
        assert_eq!((delivery.durable, delivery.too_large.as_slice()), (30, [99].as_slice()));
        let told = told(&delivery);
        assert_eq!((told.len(), told[0], told[98]), (99, (1, false, "full"), (129, true, "nobody answers")));
        assert_eq!(ticket.give_up("again"), None);
        assert!(reply.try_recv().is_err());
        ticket.durable(129..130);
        assert_eq!(late.get(), 1);
    }

    #[test]
    fn an_answer_that_came_just_now_is_not_given_up() {
        let (ticket, mut reply) = Ticket::of_each(1, Counter::default());
        ticket.durable(0..1);
        assert_eq!(ticket.give_up("late"), None);
        assert_eq!(reply.try_recv().unwrap().durable, 1);
    }

    #[test]
    fn a_record_has_its_key_its_id_and_its_headers_beside_its_value() {
        let value = Part::InBody(Span { start: 0, end: 10 });
        let record = |key, assigned_id| NewRecord { value, key, headers: None, assigned_id };
        let key = Part::Aside(Span { start: 2, end: 5 });
        assert_eq!(record(None, None).size(), 10);
        assert!(record(Some(key), Some(Uuid::nil())).size() >= 10 + 3 + 1 + 2 + 1 + 36);
        // As Kafka writes them: each length is a varint, in zigzag.
        let varint = |length: usize| (2 * length).max(1).ilog2() as usize / 7 + 1;
        for (name, length, count) in [("ce_x", 1, 100), ("ce_x", 1 << 14, 3), (&*"x".repeat(9000), 1 << 21, 2)] {
            let mut aside = Vec::new();
            (0..count).for_each(|_| write_header(&mut aside, name, Some(&vec![b'x'; length])));
            let bytes = Span { start: 0, end: aside.len() as u32 };
            let with = NewRecord { headers: Some(NewHeaders { count, bytes }), ..record(None, None) };
            let header = varint(name.len()) + name.len() + varint(length) + length;
            assert!(with.size() >= 10 + count as usize * header, "{} {length}", name.len());
        }
    }

    #[test]
    fn a_reason_is_kept_once_and_not_at_any_length() {
        let (ticket, mut reply) = Ticket::of_each(3, Counter::default());
        let long = "é".repeat(Failed::LONGEST_REASON);
        (0..3).for_each(|index| ticket.refused(index..index + 1, &long));
        let delivery = reply.try_recv().unwrap();
        assert!(delivery.failed[0].reason.len() <= Failed::LONGEST_REASON);
        assert!(Arc::ptr_eq(&delivery.failed[0].reason, &delivery.failed[2].reason));
    }

    #[test]
    fn a_dropped_ticket_promises_nothing() {
        let (ticket, mut reply) = Ticket::new(1, Counter::default());
        drop(ticket);
        assert!(matches!(reply.try_recv(), Err(oneshot::error::TryRecvError::Closed)));
    }
}
