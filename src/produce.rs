//! The producer: takes the accepted events of one request, appends them to the queue, and lets the request know when
//! each is durable.
//!
//! Requests come by the [`Ingress`]. Those that wait for the queue are in the mailbox, which is bounded: a full one is
//! answered with 429, so load that the queue cannot take is heard by the client instead of growing memory.

mod ingress;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use actix::{Actor, ActorFutureExt, AsyncContext, Context, Handler, Message, ResponseActFuture, WrapFuture};
use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};
use prometheus_client::metrics::counter::Counter;
use tokio::sync::oneshot;
use uuid::Uuid;

use self::ingress::{Incarnation, Queued};
pub use self::ingress::{Ingress, NotTaken};
use crate::{
    health::{ActorState, Health},
    names::ActorName,
    position::Timestamp,
    queue::{Appender, Full},
};

/// The accepted events of one request, to be made durable. Each is answered exactly once through the ticket.
pub struct Publish {
    /// The request's body as it came (after decompression); events are parts of it.
    pub body: Bytes,
    /// Keys that do not stand in the body as they are, because they were escaped.
    pub unescaped: Bytes,
    pub events: Vec<NewRecord>,
    pub received: Timestamp,
    pub ticket: Arc<Ticket>,
}

/// One event on its way into the log.
#[derive(Debug, Clone)]
pub struct NewRecord {
    pub value: Span,
    pub key: Option<Key>,
    /// The id that the server assigned, when the client sent none: goes into the header `id`.
    pub assigned_id: Option<Uuid>,
}

/// Bytes `start..end` of a request's body (or of its unescaped keys). Bodies are far below 4 GiB.
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

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key {
    InBody(Span),
    Unescaped(Span),
}

impl Publish {
    pub fn value(&self, record: &NewRecord) -> &[u8] {
        record.value.of(&self.body)
    }

    pub fn key(&self, record: &NewRecord) -> Option<&[u8]> {
        record.key.map(|key| match key {
            Key::InBody(span) => span.of(&self.body),
            Key::Unescaped(span) => span.of(&self.unescaped),
        })
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
        };
        (Arc::new(ticket), receiver)
    }

    /// `events` events are durable.
    pub fn durable(&self, events: usize) {
        self.durable.fetch_add(events, Ordering::AcqRel);
        self.count_down(events);
    }

    /// The event at `index` is larger than the queue takes.
    pub fn too_large(&self, index: usize) {
        self.outcome().delivery.too_large.push(index);
        self.count_down(1);
    }

    /// `events` events are not known to be durable, for a passing reason.
    pub fn unavailable(&self, events: usize, reason: &str) {
        self.outcome().delivery.unavailable.get_or_insert_with(|| reason.to_owned());
        self.count_down(events);
    }

    /// Nothing of `events` events was written, for a passing reason.
    pub fn refused(&self, events: usize, reason: &str) {
        self.outcome().delivery.refused.get_or_insert_with(|| reason.to_owned());
        self.count_down(events);
    }

    fn outcome(&self) -> MutexGuard<'_, Outcome> {
        self.outcome.lock()
    }

    fn count_down(&self, events: usize) {
        if self.unanswered.fetch_sub(events, Ordering::AcqRel) != events {
            return;
        }
        let mut outcome = self.outcome();
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

/// Waits until everything that was published is answered, at most this long. The reply says how many events were not.
#[derive(Message)]
#[rtype(result = "Result<(), usize>")]
pub struct Flush(pub Duration);

/// The producer actor: it owns what is appended to, and takes the requests that wait for it.
pub struct Producer {
    ingress: Ingress,
    incarnation: Incarnation,
    health: Health,
}

impl Producer {
    /// Requests waiting to be appended. Appending takes microseconds, so this is a burst of requests within one
    /// scheduling delay; their bytes are bounded by `http.max_in_flight`. Much less refuses bursts that the queue would
    /// take; more only lengthens the wait before a client hears that the queue is stuck.
    const MAILBOX: usize = 4096;
    /// How long to wait when the queue's buffers are full, before the rest of a request is appended.
    const FULL_PAUSE: Duration = Duration::from_millis(2);

    /// Opens the ingress.
    pub fn new(ingress: Ingress, appender: Box<dyn Appender>, health: Health) -> Self {
        let incarnation = ingress.open(appender);
        Self { ingress, incarnation, health }
    }

    /// Appends, and holds the mailbox while the queue is full: order is kept and the backpressure is heard.
    fn append(&mut self, Queued { publish, from, place }: Queued, ctx: &mut Context<Self>) {
        if let Err(Full { publish, next }) = self.ingress.append_queued(publish, from) {
            let pause = tokio::time::sleep(Self::FULL_PAUSE).into_actor(self);
            ctx.wait(pause.map(move |(), actor, ctx| actor.append(Queued { publish, from: next, place }, ctx)));
        }
    }
}

impl Actor for Producer {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(Self::MAILBOX);
        self.health.actor(ActorName::Producer, ActorState::Running, None);
    }
}

impl Drop for Producer {
    /// After a panic too: requests hear that it is being restarted, and what was not answered is.
    fn drop(&mut self) {
        drop(self.ingress.close(self.incarnation));
    }
}

impl Handler<Queued> for Producer {
    type Result = ();

    fn handle(&mut self, queued: Queued, ctx: &mut Self::Context) {
        self.append(queued, ctx);
    }
}

impl Handler<Flush> for Producer {
    type Result = ResponseActFuture<Self, Result<(), usize>>;

    fn handle(&mut self, Flush(timeout): Flush, _: &mut Self::Context) -> Self::Result {
        let Some(appender) = self.ingress.close(self.incarnation) else {
            return Box::pin(async { Ok(()) }.into_actor(self));
        };
        // librdkafka's flush blocks.
        let flush = tokio::task::spawn_blocking(move || {
            let flushed = appender.flush(timeout);
            (appender, flushed)
        });
        Box::pin(flush.into_actor(self).map(|flushed, actor, _| match flushed {
            Ok((appender, flushed)) => {
                actor.ingress.reopen(actor.incarnation, appender);
                flushed
            }
            // The flush itself panicked: nothing is known of what was unanswered.
            Err(_) => Err(usize::MAX),
        }))
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
