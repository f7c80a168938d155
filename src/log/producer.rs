//! The producer: takes the accepted events of one request, appends them to the log, and lets the request know when
//! each is durable.
//!
//! Requests come by the [`Ingress`]. Those that wait for the log are in the mailbox, which is bounded: a full one is
//! answered with 503, so load that the log cannot take is answered to the client instead of growing memory.

use std::time::Duration;

use actix::{Actor, ActorFutureExt, AsyncContext, Context, Handler, Message, ResponseActFuture, WrapFuture};

use super::{
    append::{Appender, Full},
    ingress::{Incarnation, Ingress, Queued},
};
use crate::{
    health::{ActorState, Health},
    names::ActorName,
};

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
    /// take; more only lengthens the wait before a client learns that the queue is stuck.
    const MAILBOX: usize = 4096;
    /// How long to wait when the queue's buffers are full, before the rest of a request is appended.
    const FULL_PAUSE: Duration = Duration::from_millis(2);

    /// Opens the ingress.
    pub fn new(ingress: Ingress, appender: Box<dyn Appender>, health: Health) -> Self {
        let incarnation = ingress.open(appender);
        Self { ingress, incarnation, health }
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
    /// After a panic too: requests that come are refused while it is being restarted, and those that wait are answered.
    fn drop(&mut self) {
        drop(self.ingress.close(self.incarnation));
    }
}

impl Handler<Queued> for Producer {
    type Result = ();

    /// Appends, and holds the mailbox while the queue is full: order is kept and clients notice the backpressure.
    fn handle(&mut self, Queued { publish, from, place }: Queued, ctx: &mut Self::Context) {
        if let Err(Full { publish, next }) = self.ingress.append_queued(publish, from) {
            let pause = tokio::time::sleep(Self::FULL_PAUSE).into_actor(self);
            ctx.wait(pause.map(move |(), actor, ctx| actor.handle(Queued { publish, from: next, place }, ctx)));
        }
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
