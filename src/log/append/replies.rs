//! How answers come to the threads that wait for them. A thread that gives many at once, those of a commit, would wake another
//! one with each: that one, awake at once, takes the one, sleeps, and is woken for the next. So those of a commit are gathered in a
//! mailbox for each of actix's threads, which is woken once and hands them to its requests itself.

use std::{
    cell::RefCell,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures::task::AtomicWaker;
use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use tokio::sync::oneshot;

use super::Delivery;

thread_local! {
    /// Of this thread, where it is one of actix's.
    static MINE: RefCell<Option<Arc<Mailbox>>> = const { RefCell::new(None) };
    /// Those that have answers of this thread, while it gathers them.
    static GATHERED: RefCell<Option<Vec<Arc<Mailbox>>>> = const { RefCell::new(None) };
}

/// A request's answer, and who counts events whose request has gone.
pub(super) struct Answer {
    pub reply: oneshot::Sender<Delivery>,
    pub delivery: Delivery,
    pub late: Counter,
}

impl Answer {
    /// By the mailbox where answers are gathered, else at once.
    pub fn give(self, mailbox: Option<&Arc<Mailbox>>) {
        let Some(mailbox) = mailbox else { return self.send() };
        let ungathered = GATHERED.with_borrow_mut(|gathered| {
            let Some(gathered) = gathered else { return Some(self) };
            let refused = mailbox.put(self);
            if refused.is_none() && !gathered.iter().any(|other| Arc::ptr_eq(other, mailbox)) {
                gathered.push(mailbox.clone());
            }
            refused
        });
        if let Some(answer) = ungathered {
            answer.send();
        }
    }

    fn send(self) {
        if let Err(delivery) = self.reply.send(self.delivery) {
            self.late.inc_by(delivery.durable as u64);
        }
    }
}

/// Until it is dropped, answers that this thread gives are gathered; then those that wait for them are woken.
pub struct Gathering(());

impl Gathering {
    pub fn begin() -> Self {
        GATHERED.set(Some(Vec::new()));
        Self(())
    }
}

impl Drop for Gathering {
    fn drop(&mut self) {
        for mailbox in GATHERED.take().into_iter().flatten() {
            mailbox.carrier.wake();
        }
    }
}

/// The answers to the requests of one thread. As many as it has requests at most.
pub(super) struct Mailbox {
    waiting: Mutex<Waiting>,
    carrier: AtomicWaker,
}

struct Waiting {
    answers: Vec<Answer>,
    /// Somebody hands them on.
    is_open: bool,
}

impl Mailbox {
    /// `None` where this is none of actix's threads: its answers are handed on by a task there.
    pub fn of_this_thread() -> Option<Arc<Self>> {
        actix_rt::Arbiter::try_current()?;
        MINE.with_borrow_mut(|mine| {
            // The thread may have had another runtime before.
            let open = mine.take().filter(|mailbox| mailbox.waiting.lock().is_open);
            let open = open.unwrap_or_else(|| {
                let waiting = Mutex::new(Waiting { answers: Vec::new(), is_open: true });
                let mailbox = Arc::new(Self { waiting, carrier: AtomicWaker::new() });
                // It ends with the thread's runtime, and closes the mailbox.
                actix_rt::spawn(Carrier { mailbox: mailbox.clone(), taken: Vec::new() });
                mailbox
            });
            Some(mine.insert(open).clone())
        })
    }

    /// Gives the answers that are there to those that wait. On the thread that they wait on.
    pub fn hand_on(&self) {
        let answers = std::mem::take(&mut self.waiting.lock().answers);
        answers.into_iter().for_each(Answer::send);
    }

    /// Gives it back where nobody would hand it on.
    fn put(&self, answer: Answer) -> Option<Answer> {
        let mut waiting = self.waiting.lock();
        if !waiting.is_open {
            return Some(answer);
        }
        waiting.answers.push(answer);
        None
    }
}

/// Hands the answers of its thread on.
struct Carrier {
    mailbox: Arc<Mailbox>,
    /// Its memory is kept.
    taken: Vec<Answer>,
}

impl Future for Carrier {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let Self { mailbox, taken } = &mut *self;
        mailbox.carrier.register(context.waker());
        std::mem::swap(&mut mailbox.waiting.lock().answers, taken);
        taken.drain(..).for_each(Answer::send);
        Poll::Pending
    }
}

impl Drop for Carrier {
    fn drop(&mut self) {
        let answers = {
            let mut waiting = self.mailbox.waiting.lock();
            waiting.is_open = false;
            std::mem::take(&mut waiting.answers)
        };
        answers.into_iter().for_each(Answer::send);
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, thread, time::Duration};

    use super::*;
    use crate::log::Ticket;

    #[test]
    fn gathered_answers_come_together_when_all_are_given() {
        let (tickets_to_answer, tickets) = mpsc::channel::<Vec<Arc<Ticket>>>();
        let (given, are_given) = oneshot::channel::<()>();
        let (look, looked) = mpsc::channel::<()>();
        let writer = thread::spawn(move || {
            let gathering = Gathering::begin();
            for ticket in tickets.recv().unwrap() {
                ticket.durable(0..1);
            }
            given.send(()).unwrap();
            looked.recv().unwrap();
            drop(gathering);
        });
        actix_rt::System::new().block_on(async {
            let (made, mut replies): (Vec<_>, Vec<_>) = (0..100).map(|_| Ticket::new(1, Counter::default())).unzip();
            tickets_to_answer.send(made).unwrap();
            are_given.await.unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
            assert!(replies.iter_mut().all(|reply| reply.try_recv().is_err()), "they are gathered");
            look.send(()).unwrap();
            for reply in replies {
                assert_eq!(reply.await.unwrap().durable, 1);
            }
        });
        writer.join().unwrap();
    }

    #[test]
    fn an_answer_for_a_runtime_that_has_ended_is_late_and_the_next_runtime_has_a_mailbox_of_its_own() {
        let late = Counter::default();
        for round in 1..=2 {
            let ticket = actix_rt::System::new().block_on(async {
                let (ticket, reply) = Ticket::new(1, late.clone());
                drop(reply);
                ticket
            });
            let gathering = Gathering::begin();
            ticket.durable(0..1);
            assert_eq!(late.get(), round);
            drop(gathering);
        }
    }

    #[test]
    fn what_was_gathered_when_a_runtime_ends_is_counted_all_the_same() {
        let late = Counter::default();
        let gathering = Gathering::begin();
        actix_rt::System::new().block_on(async {
            let (ticket, reply) = Ticket::new(1, late.clone());
            drop(reply);
            ticket.durable(0..1);
            assert_eq!(late.get(), 0);
        });
        assert_eq!(late.get(), 1);
        drop(gathering);
    }
}
