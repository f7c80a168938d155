//! Early flushes, for those who wait until their records are counted (`after=` of a query).
//!
//! `aggregator.flush_interval` stays what it is for all others: a flush is brought forward only where a record that
//! somebody waits for is folded and not durable, and ten times a second at most.

use std::time::Duration;

use actix::{ActorFutureExt, AsyncContext, Context, WrapFuture};

use super::{Aggregator, State};

/// How often it is looked at while somebody waits.
const LOOK: Duration = Duration::from_millis(10);
/// After an early flush.
const PAUSE: Duration = Duration::from_millis(100);

impl Aggregator {
    /// Listens to those who wait; costs nothing while there are none.
    pub(super) fn listen(&mut self, ctx: &mut Context<Self>) {
        let counted = self.health.counted.clone();
        let wanted = async move { counted.wanted().await };
        ctx.spawn(wanted.into_actor(self).map(|(), actor, ctx| {
            let cursor = |partition| match &actor.partitions.get(&partition)?.state {
                State::Open(open) => Some(open.fold.cursor()),
                State::Loading(..) => None,
            };
            let is_due = actor.flush.is_none() && actor.health.counted.waits_for_flush(cursor);
            if is_due {
                actor.begin_flush(ctx);
            }
            ctx.run_later(if is_due { PAUSE } else { LOOK }, Self::listen);
        }));
    }
}
