//! What the daemon knows of its own state: written by the actors, read by readiness, metrics and the operator.
//!
//! A process with an ingestor is *ready* when it can accept events; a failing sink makes it *degraded*. [`Closed`]
//! has the reasons for which requests are refused.

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::{Mutex, MutexGuard};
use serde::Serialize;

use crate::{
    names::{ActorName, SinkName, dependency},
    position::Partition,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ActorState {
    Starting,
    Running,
    /// Works, but is held back on purpose (a full disk, a quota).
    Paused,
    /// Cannot do its work at present and goes on trying.
    Failing,
    /// Ended by a panic or an error; its guardian waits before the next start.
    Restarting,
    Stopped,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ActorStatus {
    pub state: ActorState,
    pub reason: Option<String>,
}

/// How one of [`names::dependency`](crate::names::dependency) is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DependencyStatus {
    pub available: bool,
    pub reason: Option<String>,
}

/// A partition that stands still until the operator does something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Halted {
    pub sink: SinkName,
    pub topic: String,
    pub partition: Partition,
    pub reason: String,
    /// What the operator can do about it.
    #[serde(rename = "do")]
    pub action: String,
}

/// The answer of `GET /health/ready`.
#[derive(Debug, Clone, Serialize)]
pub struct Readiness {
    pub ready: bool,
    pub degraded: bool,
    pub actors: BTreeMap<&'static str, ActorStatus>,
    pub dependencies: BTreeMap<&'static str, DependencyStatus>,
    pub halted: Vec<Halted>,
}

/// Why requests are refused at present; several reasons may hold at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Closed {
    /// The daemon is stopping.
    Draining,
    /// `disk.max_used_percent` is reached.
    DiskFull,
    /// The queue cannot be reached.
    QueueUnavailable,
    /// The daemon is starting.
    Starting,
}

#[derive(Default)]
struct State {
    actors: BTreeMap<ActorName, ActorStatus>,
    /// By name and by who says so, in this order: a dependency can be used when all say that it can.
    dependencies: BTreeMap<(&'static str, &'static str), DependencyStatus>,
    /// Shown of dependencies that can be used.
    remarks: BTreeMap<&'static str, String>,
    halted: BTreeMap<(SinkName, Partition), Halted>,
    closed: BTreeMap<Closed, String>,
}

impl State {
    fn is_available(&self, dependency: &str) -> bool {
        self.dependencies.iter().all(|((name, _), status)| *name != dependency || status.available)
    }

    /// Each dependency, with the first reason for which it cannot be used, or what is to be said of it.
    fn dependencies(&self) -> BTreeMap<&'static str, DependencyStatus> {
        let mut all: BTreeMap<&'static str, DependencyStatus> = BTreeMap::new();
        for ((name, _), status) in &self.dependencies {
            let shown = all.entry(*name).or_insert_with(|| status.clone());
            if shown.available {
                *shown = status.clone();
            }
        }
        for (name, remark) in &self.remarks {
            let usable = DependencyStatus { available: true, reason: None };
            let shown = all.entry(*name).or_insert(usable);
            if shown.available {
                shown.reason = Some(remark.clone());
            }
        }
        all
    }
}

/// Shared by all actors. Its lock is held for moments and over no await.
#[derive(Clone, Default)]
pub struct Health(Arc<Mutex<State>>);

impl Health {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock()
    }

    pub fn actor(&self, actor: ActorName, state: ActorState, reason: impl Into<Option<String>>) {
        let status = ActorStatus { state, reason: reason.into() };
        self.state().actors.insert(actor, status);
    }

    /// Records whether a dependency can be used; says in the log when that changes.
    pub fn dependency(&self, dependency: &'static str, outcome: Result<(), String>) {
        self.dependency_of(dependency, "", outcome);
    }

    /// The same of a dependency that several use, each in its own way: what one can use, another may not.
    pub fn dependency_of(&self, dependency: &'static str, user: &'static str, outcome: Result<(), String>) {
        let status = DependencyStatus { available: outcome.is_ok(), reason: outcome.err() };
        let mut state = self.state();
        let was_available = state.is_available(dependency);
        state.dependencies.insert((dependency, user), status.clone());
        let is_available = state.is_available(dependency);
        drop(state);
        match (&status.reason, was_available, is_available) {
            (Some(reason), true, _) => tracing::warn!(dependency, reason, "dependency unavailable"),
            (None, false, true) => tracing::info!(dependency, "dependency available again"),
            _ => {}
        }
    }

    /// It is known that this dependency cannot be used.
    pub fn is_away(&self, dependency: &'static str) -> bool {
        !self.state().is_available(dependency)
    }

    /// Says something of a dependency, to be shown while it can be used.
    pub fn remark(&self, dependency: &'static str, remark: Option<String>) {
        let mut state = self.state();
        match remark {
            Some(remark) => state.remarks.insert(dependency, remark),
            None => state.remarks.remove(dependency),
        };
    }

    /// Why the first of these dependencies that cannot be used cannot, as far as [`Self::dependency`] was told.
    pub fn outage(&self, of: &[&'static str]) -> Option<String> {
        let state = self.state();
        of.iter()
            .find_map(|name| state.dependencies.get(&(*name, "")).filter(|status| !status.available)?.reason.clone())
    }

    pub fn halt(&self, halted: Halted) {
        tracing::error!(sink = halted.sink.as_str(), topic = halted.topic, partition = %halted.partition,
            reason = halted.reason, action = halted.action, "partition halted");
        self.state().halted.insert((halted.sink, halted.partition), halted);
    }

    pub fn release(&self, sink: SinkName, partition: Partition) {
        self.state().halted.remove(&(sink, partition));
    }

    pub fn halted(&self) -> Vec<Halted> {
        self.state().halted.values().cloned().collect()
    }

    /// Closes the door for new events, for as long as the reason holds.
    pub fn close(&self, closed: Closed, why: impl Into<String>) {
        self.state().closed.insert(closed, why.into());
    }

    pub fn open(&self, closed: Closed) {
        self.state().closed.remove(&closed);
    }

    /// Why the door is closed, the gravest reason first; `None` when events are accepted.
    pub fn closed(&self) -> Option<(Closed, String)> {
        self.state().closed.iter().next().map(|(closed, why)| (*closed, why.clone()))
    }

    /// Whether something is away, or full, for which no work is taken.
    pub fn knows_why(&self) -> bool {
        let state = self.state();
        state.closed.contains_key(&Closed::DiskFull) || state.dependencies.values().any(|status| !status.available)
    }

    /// `roles` are the actors that this process runs.
    pub fn readiness(&self) -> Readiness {
        let state = self.state();
        let works = |actor: ActorName| {
            state
                .actors
                .get(&actor)
                .is_none_or(|status| matches!(status.state, ActorState::Running | ActorState::Paused))
        };
        let runs = |actor: ActorName| state.actors.contains_key(&actor);
        let sinks: Vec<bool> = [
            (SinkName::Archive, [ActorName::ConsumerArchive, ActorName::Spooler, ActorName::Uploader].as_slice()),
            (SinkName::Aggregate, [ActorName::ConsumerAggregate, ActorName::Aggregator].as_slice()),
        ]
        .into_iter()
        .filter(|(sink, _)| runs(sink.consumer()))
        .map(|(_, actors)| actors.iter().all(|actor| works(*actor)))
        .collect();
        let open = state.closed.is_empty();
        let refuses = |dependency: &str| !state.is_available(dependency);
        let ready = if runs(ActorName::Ingestor) {
            // The door stays open: the log takes events again before anybody could tell from outside.
            open && !refuses(dependency::EMBEDDED_LOG) && works(ActorName::Ingestor) && works(ActorName::Producer)
        } else {
            open && (sinks.is_empty() || sinks.iter().any(|works| *works))
        };
        let degraded = !ready
            || sinks.iter().any(|works| !works)
            || !state.halted.is_empty()
            || state.dependencies.values().any(|dependency| !dependency.available);
        Readiness {
            ready,
            degraded,
            actors: state.actors.iter().map(|(name, status)| (name.as_str(), status.clone())).collect(),
            dependencies: state.dependencies(),
            halted: state.halted.values().cloned().collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn running(actors: &[ActorName]) -> Health {
        let health = Health::default();
        for actor in actors {
            health.actor(*actor, ActorState::Running, None);
        }
        health
    }

    #[test]
    fn a_failing_sink_degrades_an_ingesting_process_and_leaves_it_ready() {
        let health = running(&[ActorName::Ingestor, ActorName::Producer, ActorName::ConsumerAggregate]);
        health.actor(ActorName::Aggregator, ActorState::Failing, "mongodb is away".to_owned());
        let readiness = health.readiness();
        assert!(readiness.ready && readiness.degraded);
    }

    #[test]
    fn a_log_that_cannot_be_written_makes_an_ingesting_process_unready_and_leaves_the_door_open() {
        let health = running(&[ActorName::Ingestor, ActorName::Producer]);
        health.dependency(dependency::EMBEDDED_LOG, Err("it has reached its quota".to_owned()));
        assert!(!health.readiness().ready && health.closed().is_none());
        health.dependency(dependency::EMBEDDED_LOG, Ok(()));
        assert!(health.readiness().ready);
        health.dependency(dependency::EMBEDDED_LOG_READING, Err("a damaged record".to_owned()));
        let readiness = health.readiness();
        assert!(readiness.ready && readiness.degraded);
    }

    #[test]
    fn a_worker_is_unready_when_none_of_its_sinks_works() {
        let health = running(&[ActorName::ConsumerAggregate]);
        assert!(health.readiness().ready);
        health.actor(ActorName::Aggregator, ActorState::Failing, "mongodb is away".to_owned());
        assert!(!health.readiness().ready);
        health.actor(ActorName::ConsumerArchive, ActorState::Running, None);
        assert!(health.readiness().ready);
    }

    #[test]
    fn what_is_away_is_known_and_what_is_only_not_there_yet_is_not() {
        let health = running(&[ActorName::Ingestor, ActorName::Producer]);
        health.close(Closed::Starting, "starting");
        health.close(Closed::QueueUnavailable, "connecting");
        assert!(!health.knows_why());
        health.dependency("kafka", Err("no broker".to_owned()));
        assert!(health.knows_why());
        health.dependency("kafka", Ok(()));
        assert!(!health.knows_why());
        health.close(Closed::DiskFull, "full");
        assert!(health.knows_why());
    }

    #[test]
    fn a_dependency_that_one_of_its_users_cannot_use_is_shown_whatever_the_others_say() {
        let health = Health::default();
        health.remark("kafka", Some("two of its partitions".to_owned()));
        health.dependency_of("kafka", "consumer-archive", Err("no right to read".to_owned()));
        health.dependency("kafka", Ok(()));
        let shown = || health.readiness().dependencies["kafka"].clone();
        assert_eq!(shown(), DependencyStatus { available: false, reason: Some("no right to read".to_owned()) });
        assert_eq!(health.outage(&["kafka"]), None, "who writes can");
        health.dependency_of("kafka", "consumer-archive", Ok(()));
        assert_eq!(shown(), DependencyStatus { available: true, reason: Some("two of its partitions".to_owned()) });
    }

    #[test]
    fn the_door_opens_when_the_last_reason_is_gone() {
        let health = running(&[ActorName::Ingestor, ActorName::Producer]);
        health.close(Closed::DiskFull, "71 % used");
        health.close(Closed::Draining, "stopping");
        assert_eq!(health.closed().map(|(closed, _)| closed), Some(Closed::Draining));
        health.open(Closed::Draining);
        assert!(!health.readiness().ready);
        health.open(Closed::DiskFull);
        assert!(health.readiness().ready);
    }
}
