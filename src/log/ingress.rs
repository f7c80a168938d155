//! The way into the queue. A small request is appended on the thread that handles it, beside others: a change of threads
//! costs more than all else that is done for it. Only when the queue is full or closed, and for large requests, it waits in
//! the producer's mailbox, whose bound is the backpressure on clients.

use std::sync::{
    Arc,
    atomic::{AtomicU64, AtomicUsize, Ordering},
};

use actix::{Message, dev::SendError};
use parking_lot::RwLock;

use super::{Appender, Full, Producer, Publish};
use crate::supervise::Slot;

/// A request of more events goes to the producer's thread: its worker has other connections to serve meanwhile.
const SMALL: usize = 16;

/// Outlives the producer's incarnations.
#[derive(Clone, Default)]
pub struct Ingress {
    producer: Slot<Producer>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    /// Locked shared by requests that append, and exclusively to open and close it.
    open: RwLock<Option<Open>>,
    /// Requests in the mailbox, and the one that the producer holds: a request that comes now comes behind them.
    waiting: AtomicUsize,
    incarnations: AtomicU64,
}

/// What the present incarnation appends to.
struct Open {
    incarnation: Incarnation,
    appender: Box<dyn Appender>,
}

/// Which producer opened the ingress: a late drop of another one must not close it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Incarnation(u64);

/// Why a request is not taken; nothing of it was appended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotTaken {
    /// The mailbox is full.
    Busy,
    /// The producer is being restarted.
    Restarting,
}

/// A request in the producer's mailbox.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Queued {
    pub publish: Publish,
    /// Its events before this one are appended.
    pub from: usize,
    pub place: Place,
}

/// A place among those that wait, until it is dropped.
pub struct Place(Arc<Shared>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Ingress {
    pub fn new(producer: Slot<Producer>) -> Self {
        Self { producer, shared: Arc::default() }
    }

    /// Appends the events, or has the producer do it. The ticket learns what becomes of each.
    ///
    /// # Errors
    /// When the request is not taken, and nothing of it was appended.
    pub fn publish(&self, publish: Publish) -> Result<(), NotTaken> {
        self.append(publish).or_else(|Full { publish, next }| self.queue(publish, next))
    }

    /// Without waiting, for a lock neither.
    fn append(&self, publish: Publish) -> Result<(), Full> {
        let not_here = |publish| Err(Full { publish, next: 0 });
        if publish.events.len() > SMALL || self.shared.waiting.load(Ordering::Acquire) > 0 {
            return not_here(publish);
        }
        let Some(open) = self.shared.open.try_read() else { return not_here(publish) };
        match &*open {
            Some(open) => open.appender.append(publish, 0),
            None => not_here(publish),
        }
    }

    fn queue(&self, publish: Publish, from: usize) -> Result<(), NotTaken> {
        let why = "the queue is full; too many requests wait for it";
        let Some(producer) = self.producer.get() else { return unappended(&publish, from, why, NotTaken::Restarting) };
        self.shared.waiting.fetch_add(1, Ordering::AcqRel);
        let place = Place(self.shared.clone());
        producer.try_send(Queued { publish, from, place }).or_else(|refused| match refused {
            SendError::Full(Queued { publish, from, .. }) => unappended(&publish, from, why, NotTaken::Busy),
            SendError::Closed(Queued { publish, from, .. }) => unappended(&publish, from, why, NotTaken::Restarting),
        })
    }

    /// From now on requests append to this.
    pub(super) fn open(&self, appender: Box<dyn Appender>) -> Incarnation {
        let incarnation = Incarnation(self.shared.incarnations.fetch_add(1, Ordering::Relaxed) + 1);
        self.reopen(incarnation, appender);
        incarnation
    }

    pub(super) fn reopen(&self, incarnation: Incarnation, appender: Box<dyn Appender>) {
        let before = self.shared.open.write().replace(Open { incarnation, appender });
        // Its threads end outside of the lock.
        drop(before);
    }

    /// Takes the appender away, if it is still this incarnation's.
    pub(super) fn close(&self, incarnation: Incarnation) -> Option<Box<dyn Appender>> {
        let taken = self.shared.open.write().take_if(|open| open.incarnation == incarnation)?;
        Some(taken.appender)
    }

    /// For the producer, in the order of its mailbox. A closed ingress refuses the events.
    pub(super) fn append_queued(&self, publish: Publish, from: usize) -> Result<(), Full> {
        match &*self.shared.open.read() {
            Some(open) => open.appender.append(publish, from),
            None => {
                publish.ticket.refused(from..publish.events.len(), "the producer is stopping");
                Ok(())
            }
        }
    }
}

/// A request of which something was appended already is answered by its ticket.
fn unappended(publish: &Publish, from: usize, why: &str, not_taken: NotTaken) -> Result<(), NotTaken> {
    if from == 0 {
        return Err(not_taken);
    }
    publish.ticket.refused(from..publish.events.len(), why);
    Ok(())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use prometheus_client::metrics::counter::Counter;
    use tokio::sync::oneshot::{Receiver, error::TryRecvError};

    use super::*;
    use crate::{
        log::{Delivery, NewRecord, Part, Span, Ticket},
        position::Timestamp,
    };

    /// Has room for so many events.
    struct Room(AtomicUsize);

    fn room(events: usize) -> Box<Room> {
        Box::new(Room(AtomicUsize::new(events)))
    }

    impl Appender for Room {
        fn append(&self, publish: Publish, from: usize) -> Result<(), Full> {
            let wanted = publish.events.len() - from;
            let take = |room: usize| Some(room - room.min(wanted));
            let room = self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, take).unwrap_or_else(|room| room);
            let next = from + room.min(wanted);
            publish.ticket.durable(from..next);
            if next < publish.events.len() { Err(Full { publish, next }) } else { Ok(()) }
        }

        fn flush(&self, _: std::time::Duration) -> Result<(), usize> {
            Ok(())
        }
    }

    fn publish(events: usize) -> (Publish, Receiver<Delivery>) {
        let (ticket, reply) = Ticket::new(events, Counter::default());
        let value = Part::InBody(Span { start: 0, end: 0 });
        let record = NewRecord { value, key: None, headers: None, assigned_id: None };
        let events = vec![record; events];
        let (body, aside, received) = (Bytes::new(), Bytes::new(), Timestamp(0));
        (Publish { body, aside, events, received, ticket }, reply)
    }

    #[test]
    fn a_small_request_is_appended_at_once_and_a_large_one_is_not() {
        let ingress = Ingress::default();
        ingress.open(room(100));
        let (small, mut reply) = publish(SMALL);
        assert_eq!(ingress.publish(small), Ok(()));
        assert_eq!(reply.try_recv().unwrap().durable, SMALL);
        let (large, _reply) = publish(SMALL + 1);
        assert_eq!(ingress.publish(large), Err(NotTaken::Restarting), "there is no producer");
    }

    /// Lets nobody go before there are two.
    #[derive(Default)]
    struct Two(AtomicUsize);

    impl Appender for Two {
        fn append(&self, publish: Publish, _: usize) -> Result<(), Full> {
            self.0.fetch_add(1, Ordering::AcqRel);
            let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
            while self.0.load(Ordering::Acquire) < 2 {
                assert!(std::time::Instant::now() < deadline, "the other one is not let in");
                std::thread::yield_now();
            }
            publish.ticket.durable(0..publish.events.len());
            Ok(())
        }

        fn flush(&self, _: std::time::Duration) -> Result<(), usize> {
            Ok(())
        }
    }

    #[test]
    fn small_requests_are_appended_beside_each_other() {
        let ingress = Ingress::default();
        ingress.open(Box::new(Two::default()));
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| assert_eq!(ingress.publish(publish(1).0), Ok(())));
            }
        });
    }

    #[test]
    fn nobody_passes_those_that_wait() {
        let ingress = Ingress::default();
        ingress.open(room(100));
        ingress.shared.waiting.fetch_add(1, Ordering::AcqRel);
        let place = Place(ingress.shared.clone());
        assert_eq!(ingress.publish(publish(1).0), Err(NotTaken::Restarting));
        drop(place);
        assert_eq!(ingress.publish(publish(1).0), Ok(()));
    }

    #[test]
    fn what_was_appended_in_part_is_answered_by_its_ticket() {
        let ingress = Ingress::default();
        ingress.open(room(2));
        let (three, mut reply) = publish(3);
        assert_eq!(ingress.publish(three), Ok(()));
        let delivery = reply.try_recv().unwrap();
        assert_eq!((delivery.durable, delivery.refused.is_some()), (2, true));
        let (one, mut reply) = publish(1);
        assert_eq!(ingress.publish(one), Err(NotTaken::Restarting), "nothing of it");
        assert_eq!(reply.try_recv(), Err(TryRecvError::Closed));
    }

    #[test]
    fn an_incarnation_that_ends_late_closes_nothing_of_the_next_one() {
        let ingress = Ingress::default();
        let first = ingress.open(room(1));
        let second = ingress.open(room(1));
        assert!(ingress.close(first).is_none());
        assert_eq!(ingress.publish(publish(1).0), Ok(()));
        assert!(ingress.close(second).is_some());
        assert_eq!(ingress.publish(publish(1).0), Err(NotTaken::Restarting));
    }
}
