//! What the daemon knows of its own state: written by the actors, read by readiness, metrics and the operator.
//!
//! - [`registry`]: what actors and dependencies say of themselves, and which partitions are halted.
//! - [`gate`]: whether events are taken at present, and for which reasons they are not.
//! - [`counted`]: how far records are counted, for those who wait for theirs.
//! - [`rebuilds`]: what keeps rebuilds of aggregates from going on.
//! - [`readiness`]: what follows from both for the parts that this process runs.

mod counted;
mod gate;
mod readiness;
mod rebuilds;
mod registry;

use std::sync::Arc;

use parking_lot::Mutex;

use self::registry::Registry;
pub use self::{
    counted::Counted,
    gate::{Closed, Gate, Reason},
    readiness::{Pipeline, Readiness},
    rebuilds::RebuildsWaiting,
    registry::{ActorState, ActorStatus, DependencyStatus, Halted},
};

/// Shared by all actors. Its locks are held for moments and over no await.
#[derive(Clone, Default)]
pub struct Health {
    pub gate: Gate,
    pub counted: Counted,
    pub rebuilds: RebuildsWaiting,
    registry: Arc<Mutex<Registry>>,
    pipeline: Arc<Pipeline>,
}

impl Health {
    /// Of a process that runs these parts.
    pub fn of(pipeline: Pipeline) -> Self {
        Self { pipeline: Arc::new(pipeline), ..Self::default() }
    }
}
