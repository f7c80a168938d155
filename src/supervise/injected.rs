//! Panics on demand, so that the tests can have a real daemon's actors fail under load: an actor panics when it is asked for
//! by its name (`consumer-archive`, as metrics write it; see [`asked_for`]).

use std::time::Duration;

use actix::{Actor, AsyncContext, Context};

use super::Env;
use crate::{names::ActorName, panics::asked_for};

const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Builds actors that look whether they are asked to, between any two of their messages.
pub(super) fn armed<A, F>(name: ActorName, mut build: F) -> impl FnMut(Env, &mut Context<A>) -> anyhow::Result<A>
where
    A: Actor<Context = Context<A>>,
    F: FnMut(Env, &mut Context<A>) -> anyhow::Result<A>,
{
    move |env, context| {
        context.run_interval(LOOK_EVERY, move |_, _| assert!(!asked_for(name.as_str()), "a test asked for it"));
        build(env, context)
    }
}
