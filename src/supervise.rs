//! Supervision: a guardian for each actor rebuilds it after a panic or an error, with back-off and jitter, and
//! escalates when it fails too often.
//!
//! actix ends an actor whose handler panics and leaves it at that. A guardian therefore runs the actor's context as a
//! task of its own on the actor's arbiter and awaits its end: a panic is an error of that task. The address of the
//! present incarnation stands in a [`Slot`], where those look who send to the actor.

#[cfg(debug_assertions)]
mod injected;

use std::{
    collections::VecDeque,
    panic::{self, AssertUnwindSafe},
    sync::Arc,
    time::{Duration, Instant},
};

use actix::{Actor, Addr, Arbiter, AsyncContext, Context, Handler, Message, dev::ToEnvelope};
use arc_swap::{ArcSwap, ArcSwapOption};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::{
    backoff::Backoff,
    config::{Config, LONGEST_RESTART, LiveConfig},
    health::{ActorState, Health},
    metrics::Metrics,
    names::ActorName,
    panics::panic_message,
};

/// The address of an actor's present incarnation; empty while there is none.
pub struct Slot<A: Actor>(Arc<ArcSwapOption<Addr<A>>>);

impl<A: Actor> Clone for Slot<A> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<A: Actor> Default for Slot<A> {
    fn default() -> Self {
        Self(Arc::new(ArcSwapOption::empty()))
    }
}

impl<A: Actor> Slot<A> {
    pub fn get(&self) -> Option<Addr<A>> {
        self.0.load().as_deref().cloned()
    }

    pub fn set(&self, addr: Option<Addr<A>>) {
        self.0.store(addr.map(Arc::new));
    }

    /// Sends past the mailbox's capacity, for messages whose number is bounded by their own protocol. Without an
    /// incarnation the message is dropped: protocols start anew with each.
    pub fn tell<M>(&self, message: M)
    where
        M: Message + Send + 'static,
        M::Result: Send,
        A: Handler<M>,
        A::Context: ToEnvelope<A, M>,
    {
        if let Some(addr) = self.0.load().as_deref() {
            addr.do_send(message);
        }
    }
}

/// Why the process has to end.
#[derive(Debug, Clone)]
pub enum Escalation {
    /// An actor failed more often than its policy allows.
    Failed { actor: ActorName, reason: String },
    /// Another process has our membership of a consumer group.
    Fenced { reason: String },
    /// A dependency contradicts the configuration in a way that no retry mends.
    Refused { reason: String },
}

/// Distinguishes a membership that another process took from one that this process took from itself: when a coordinator
/// goes while we join, its successor may know a membership of ours that we never learned of, and answers "fenced" to the
/// one that we have. The member is rebuilt then. Another process takes it again and again, outages or not.
#[derive(Debug, Default)]
pub struct Fences(Mutex<Vec<Instant>>);

impl Fences {
    /// Longer than two members that are alive take to fence each other so often.
    const WINDOW: Duration = Duration::from_secs(60);
    /// A rolling restart of the brokers moves the coordinator once, or twice.
    const ANOTHER_PROCESS: usize = 3;

    /// Notes a fence at `now`, and says whether there were so many that it is another process.
    pub fn are_another_process(&self, now: Instant) -> bool {
        let mut times = self.0.lock();
        times.retain(|time| now.saturating_duration_since(*time) < Self::WINDOW);
        times.push(now);
        times.len() >= Self::ANOTHER_PROCESS
    }

    /// The brokers are away: fences until now explain themselves.
    pub fn brokers_away(&self) {
        self.0.lock().clear();
    }
}

/// Where guardians and actors report what ends the process.
pub type Escalations = mpsc::UnboundedSender<Escalation>;

/// What all parts of a process share; each has a clone.
#[derive(Clone)]
pub struct Env {
    pub config: LiveConfig,
    pub health: Health,
    pub metrics: Arc<Metrics>,
    pub escalations: Escalations,
}

impl Env {
    /// Together with the receiver of escalations.
    pub fn new(config: Config, health: Health) -> (Self, mpsc::UnboundedReceiver<Escalation>) {
        let config = Arc::new(ArcSwap::from_pointee(config));
        let (escalations, escalated) = mpsc::unbounded_channel();
        (Self { config, health, metrics: Arc::default(), escalations }, escalated)
    }

    /// Has the process end.
    pub fn escalate(&self, escalation: Escalation) {
        // The receiver is gone only when the process ends already.
        let _ = self.escalations.send(escalation);
    }
}

/// A guarded actor, as the composition root holds it.
pub struct Guarded {
    pub name: ActorName,
    stop: CancellationToken,
    ended: oneshot::Receiver<()>,
    arbiter: Arbiter,
}

impl Guarded {
    /// Ends the actor, dropping what is left in its mailbox (it was drained before), then its arbiter, and joins the
    /// thread. Callers bound it by their deadline.
    pub async fn stop(self) {
        self.stop.cancel();
        // An error says that the guardian is gone, which is an end as well.
        let _ = self.ended.await;
        self.arbiter.stop();
        // Joining a thread blocks.
        let joined = tokio::task::spawn_blocking(move || self.arbiter.join()).await;
        if !matches!(joined, Ok(Ok(()))) {
            tracing::error!(actor = self.name.as_str(), "the actor's thread had panicked");
        }
    }
}

/// Starts an actor on an arbiter of its own and keeps it alive.
///
/// `build` makes each incarnation, on the actor's arbiter; its errors count as failures.
pub fn supervise<A, F>(name: ActorName, slot: Slot<A>, env: &Env, build: F) -> Guarded
where
    A: Actor<Context = Context<A>>,
    F: FnMut(Env, &mut Context<A>) -> anyhow::Result<A> + Send + 'static,
{
    #[cfg(debug_assertions)]
    let build = injected::armed(name, build);
    let arbiter = Arbiter::new();
    let stop = CancellationToken::new();
    let (ended_tx, ended) = oneshot::channel();
    env.health.actor(name, ActorState::Starting, None);
    let (env, guard_stop) = (env.clone(), stop.clone());
    // The guardian's future is not `Send` (it holds the actor's context), so it is made on the arbiter.
    arbiter.spawn_fn(move || {
        actix_rt::spawn(async move {
            guard(name, slot, env, guard_stop, build).await;
            let _ = ended_tx.send(());
        });
    });
    Guarded { name, stop, ended, arbiter }
}

async fn guard<A, F>(name: ActorName, slot: Slot<A>, env: Env, stop: CancellationToken, mut build: F)
where
    A: Actor<Context = Context<A>>,
    F: FnMut(Env, &mut Context<A>) -> anyhow::Result<A> + Send + 'static,
{
    let policy = env.config.load().supervision.clone();
    let backoff = Backoff::new(policy.backoff, LONGEST_RESTART);
    let mut failures: VecDeque<Instant> = VecDeque::new();
    loop {
        let reason = match incarnate(&slot, &env, &stop, &mut build).await {
            _ if stop.is_cancelled() => break,
            Ok(()) => "stopped without being asked to".to_owned(),
            Err(reason) => reason,
        };
        let now = Instant::now();
        failures.push_back(now);
        failures.retain(|at| now.duration_since(*at) <= policy.window);
        let restarts = u32::try_from(failures.len()).unwrap_or(u32::MAX);
        if restarts > policy.max_restarts {
            tracing::error!(actor = name.as_str(), reason, restarts, "actor failed too often, stopping the process");
            env.health.actor(name, ActorState::Stopped, reason.clone());
            return env.escalate(Escalation::Failed { actor: name, reason });
        }
        let pause = backoff.pause(restarts);
        tracing::error!(
            actor = name.as_str(),
            reason,
            restarts,
            pause_ms = pause.as_millis() as u64,
            "actor failed, restarting"
        );
        env.health.actor(name, ActorState::Restarting, reason);
        env.metrics.actor_restarted(name);
        if stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
            break;
        }
    }
    env.health.actor(name, ActorState::Stopped, None);
}

/// One life of an actor, from its construction to its end.
async fn incarnate<A, F>(slot: &Slot<A>, env: &Env, stop: &CancellationToken, build: &mut F) -> Result<(), String>
where
    A: Actor<Context = Context<A>>,
    F: FnMut(Env, &mut Context<A>) -> anyhow::Result<A>,
{
    let mut context = Context::new();
    // What a panic left half-built is dropped.
    let built = panic::catch_unwind(AssertUnwindSafe(|| build(env.clone(), &mut context)));
    let built = built.map_err(|payload| format!("panicked while it was built: {}", panic_message(payload.as_ref())))?;
    let actor = built.map_err(|error| format!("{error:#}"))?;
    slot.set(Some(context.address()));
    let mut life = actix_rt::spawn(context.into_future(actor));
    let end = if let Some(end) = stop.run_until_cancelled(&mut life).await {
        end
    } else {
        life.abort();
        life.await
    };
    slot.set(None);
    end.map_err(|error| match error.try_into_panic() {
        Ok(payload) => format!("panicked: {}", panic_message(payload.as_ref())),
        Err(error) => error.to_string(),
    })
}

/// Runs the body of a thread; when it panics, `died` is called with the reason, so that nothing waits for a thread that is gone.
pub fn watched<T>(mut state: T, body: impl FnOnce(&mut T), died: impl FnOnce(&T, String)) {
    // What the panic left half-done is only handed to `died`, and dropped.
    let end = panic::catch_unwind(AssertUnwindSafe(|| body(&mut state)));
    if let Err(payload) = end {
        died(&state, format!("its thread panicked: {}", panic_message(payload.as_ref())));
    }
}

#[cfg(test)]
mod tests {
    use actix::{Handler, Message, System};

    use super::*;

    #[derive(Message)]
    #[rtype(result = "u32")]
    struct Incarnation;

    #[derive(Message)]
    #[rtype(result = "()")]
    struct Panic;

    struct Fragile(u32);

    impl Actor for Fragile {
        type Context = Context<Self>;
    }

    impl Handler<Incarnation> for Fragile {
        type Result = u32;

        fn handle(&mut self, _: Incarnation, _: &mut Self::Context) -> u32 {
            self.0
        }
    }

    impl Handler<Panic> for Fragile {
        type Result = ();

        fn handle(&mut self, _: Panic, _: &mut Self::Context) {
            panic!("as the test asks");
        }
    }

    fn env(max_restarts: u32) -> (Env, mpsc::UnboundedReceiver<Escalation>) {
        let mut config = Config::default();
        config.supervision.max_restarts = max_restarts;
        config.supervision.backoff = Duration::from_millis(1);
        Env::new(config, Health::default())
    }

    async fn incarnation(slot: &Slot<Fragile>) -> u32 {
        loop {
            if let Some(addr) = slot.get()
                && let Ok(number) = addr.send(Incarnation).await
            {
                return number;
            }
            tokio::task::yield_now().await;
        }
    }

    fn start(slot: &Slot<Fragile>, env: &Env) -> Guarded {
        let mut built = 0;
        supervise(ActorName::Producer, slot.clone(), env, move |_, _| {
            built += 1;
            Ok(Fragile(built))
        })
    }

    #[test]
    fn a_panicked_actor_is_built_again_under_the_same_slot() {
        System::new().block_on(async {
            let (env, _escalated) = env(3);
            let slot = Slot::default();
            let guarded = start(&slot, &env);
            assert_eq!(incarnation(&slot).await, 1);
            let _ = slot.get().unwrap().send(Panic).await;
            while slot.get().is_some_and(|addr| addr.connected()) && incarnation(&slot).await == 1 {}
            assert_eq!(incarnation(&slot).await, 2);
            guarded.stop().await;
            assert!(slot.get().is_none());
        });
    }

    #[test]
    fn an_actor_whose_construction_panics_is_built_again() {
        System::new().block_on(async {
            let (env, _escalated) = env(3);
            let slot = Slot::default();
            let mut built = 0;
            let guarded = supervise(ActorName::Producer, slot.clone(), &env, move |_, _| {
                built += 1;
                assert!(built > 1, "as the test asks");
                Ok(Fragile(built))
            });
            assert_eq!(incarnation(&slot).await, 2);
            guarded.stop().await;
        });
    }

    #[test]
    fn an_actor_that_fails_too_often_is_escalated() {
        System::new().block_on(async {
            let (env, mut escalated) = env(2);
            let slot = Slot::default();
            let guarded = start(&slot, &env);
            for number in 1..=3 {
                while incarnation(&slot).await < number {}
                let _ = slot.get().unwrap().send(Panic).await;
            }
            let Some(Escalation::Failed { actor, reason }) = escalated.recv().await else { panic!("no escalation") };
            assert_eq!((actor, reason.as_str()), (ActorName::Producer, "panicked: as the test asks"));
            guarded.stop().await;
        });
    }

    #[test]
    fn a_membership_that_is_lost_thrice_in_a_minute_without_an_outage_is_another_process() {
        let (fences, now) = (Fences::default(), Instant::now());
        let after = |seconds| now + Duration::from_secs(seconds);
        assert!(!fences.are_another_process(after(0)));
        assert!(!fences.are_another_process(after(30)));
        assert!(!fences.are_another_process(after(60)), "the first is forgotten");
        assert!(fences.are_another_process(after(70)));
        fences.brokers_away();
        assert!(!fences.are_another_process(after(71)), "an outage explains those before it");
    }
}
