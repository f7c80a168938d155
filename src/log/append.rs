//! The write side: the events of one request, what takes them, and what becomes of each.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use tokio::sync::oneshot;
use uuid::Uuid;

use super::record::Headers;
use crate::position::Timestamp;

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

/// What became of a request's events.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// Indexes into `Publish::events` of those that the queue refuses for their size: the client's error `too_large`.
    pub too_large: Vec<usize>,
    /// The first passing reason for which an event is not known to be durable: the whole request is answered 503.
    pub unavailable: Option<String>,
    /// The first passing reason for which an event was refused before anything of it was written: 503 as well.
    pub refused: Option<String>,
    /// Events that are durable.
    pub durable: usize,
}

/// Counts a request's answers down; the last one wakes the request. If it is dropped before (the producer died), the
/// request's receiver errs, which means: nothing promised.
pub struct Ticket {
    unanswered: AtomicUsize,
    durable: AtomicUsize,
    outcome: Mutex<Outcome>,
    /// Counts events that became durable when nobody waited for them any more.
    late: Counter,
    /// Its events are on their way to this machine's disk, whatever Kafka does.
    is_buffered: AtomicBool,
}

struct Outcome {
    delivery: Delivery,
    reply: Option<oneshot::Sender<Delivery>>,
}

impl Ticket {
    /// For `events` events, at least one. `late` counts those that became durable after the request had gone.
    pub fn new(events: usize, late: Counter) -> (Arc<Self>, oneshot::Receiver<Delivery>) {
        let (reply, receiver) = oneshot::channel();
        let ticket = Self {
            unanswered: AtomicUsize::new(events),
            durable: AtomicUsize::new(0),
            outcome: Mutex::new(Outcome { delivery: Delivery::default(), reply: Some(reply) }),
            late,
            is_buffered: AtomicBool::new(false),
        };
        (Arc::new(ticket), receiver)
    }

    /// Its events go to the buffer, and wait for no broker.
    pub fn buffered(&self) {
        self.is_buffered.store(true, Ordering::Relaxed);
    }

    /// Whether [`Self::buffered`] was said.
    pub fn is_buffered(&self) -> bool {
        self.is_buffered.load(Ordering::Relaxed)
    }

    /// `events` events are durable.
    pub fn durable(&self, events: usize) {
        self.durable.fetch_add(events, Ordering::AcqRel);
        self.count_down(events);
    }

    /// The event at `index` is larger than the queue takes.
    pub fn too_large(&self, index: usize) {
        self.outcome.lock().delivery.too_large.push(index);
        self.count_down(1);
    }

    /// `events` events are not known to be durable, for a passing reason.
    pub fn unavailable(&self, events: usize, reason: &str) {
        self.outcome.lock().delivery.unavailable.get_or_insert_with(|| reason.to_owned());
        self.count_down(events);
    }

    /// Nothing of `events` events was written, for a passing reason.
    pub fn refused(&self, events: usize, reason: &str) {
        self.outcome.lock().delivery.refused.get_or_insert_with(|| reason.to_owned());
        self.count_down(events);
    }

    fn count_down(&self, events: usize) {
        if self.unanswered.fetch_sub(events, Ordering::AcqRel) != events {
            return;
        }
        let mut outcome = self.outcome.lock();
        let mut delivery = std::mem::take(&mut outcome.delivery);
        delivery.durable = self.durable.load(Ordering::Acquire);
        let Some(reply) = outcome.reply.take() else {
            return;
        };
        if let Err(delivery) = reply.send(delivery) {
            self.late.inc_by(delivery.durable as u64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_answer_wakes_the_request() {
        let (ticket, mut reply) = Ticket::new(3, Counter::default());
        ticket.durable(1);
        ticket.too_large(2);
        assert!(reply.try_recv().is_err());
        ticket.durable(1);
        assert_eq!(reply.try_recv().unwrap(), Delivery { too_large: vec![2], durable: 2, ..Delivery::default() });
    }

    #[test]
    fn events_that_become_durable_after_the_request_has_gone_are_counted() {
        let late = Counter::default();
        let (ticket, reply) = Ticket::new(2, late.clone());
        drop(reply);
        ticket.durable(2);
        assert_eq!(late.get(), 2);
    }

    #[test]
    fn a_dropped_ticket_promises_nothing() {
        let (ticket, mut reply) = Ticket::new(1, Counter::default());
        drop(ticket);
        assert!(matches!(reply.try_recv(), Err(oneshot::error::TryRecvError::Closed)));
    }
}
