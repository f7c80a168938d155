//! Readiness: whether this process does what it is there for. A process with an ingestor is *ready* when it can accept
//! events; a failing sink makes it *degraded*.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{ActorStatus, Closed, DependencyStatus, Halted, Health};
use crate::names::{ActorName, SinkName, dependency};

/// The parts of the pipeline that a process runs, by its roles.
#[derive(Debug, Clone)]
pub struct Pipeline {
    /// The actors that accept events; none in a worker.
    pub ingest: &'static [ActorName],
    /// The dependency without which the log takes no events, though the gate is open.
    pub log: Option<&'static str>,
    pub sinks: Vec<SinkName>,
}

impl Pipeline {
    pub const INGEST: &[ActorName] = &[ActorName::Ingestor, ActorName::Producer];
}

impl Default for Pipeline {
    /// All of it, on the embedded log.
    fn default() -> Self {
        let sinks = vec![SinkName::Archive, SinkName::Aggregate];
        Self { ingest: Self::INGEST, log: Some(dependency::EMBEDDED_LOG), sinks }
    }
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

impl Health {
    pub fn readiness(&self) -> Readiness {
        let open = self.gate.closed().is_none();
        let Pipeline { ingest, log, sinks } = &*self.pipeline;
        let registry = self.registry.lock();
        let work = |actors: &[ActorName]| actors.iter().all(|actor| registry.works(*actor));
        let sinks: Vec<bool> = sinks.iter().map(|sink| work(sink.actors())).collect();
        let does_its_work = if ingest.is_empty() {
            sinks.is_empty() || sinks.contains(&true)
        } else {
            log.is_none_or(|log| registry.is_available(log)) && work(ingest)
        };
        let ready = open && does_its_work;
        let degraded = !ready
            || sinks.contains(&false)
            || !registry.halted.is_empty()
            || registry.dependencies.values().any(|dependency| !dependency.available);
        Readiness {
            ready,
            degraded,
            actors: registry.actors.iter().map(|(name, status)| (name.as_str(), status.clone())).collect(),
            dependencies: registry.shown(),
            halted: registry.halted.values().cloned().collect(),
        }
    }

    /// Whether something is away, or full, for which no work is taken.
    pub fn knows_why(&self) -> bool {
        let is_away = |status: &DependencyStatus| !status.available;
        self.gate.is_closed_for(Closed::DiskFull) || self.registry.lock().dependencies.values().any(is_away)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::ActorState;

    fn ingesting() -> Health {
        let health = Health::default();
        for actor in Pipeline::INGEST {
            health.actor(*actor, ActorState::Running, None);
        }
        health
    }

    #[test]
    fn a_failing_sink_degrades_an_ingesting_process_and_leaves_it_ready() {
        let health = ingesting();
        health.actor(ActorName::Aggregator, ActorState::Failing, "mongodb is away".to_owned());
        let readiness = health.readiness();
        assert!(readiness.ready && readiness.degraded);
    }

    #[test]
    fn a_log_that_cannot_be_written_makes_an_ingesting_process_unready_and_leaves_the_gate_open() {
        let health = ingesting();
        health.dependency(dependency::EMBEDDED_LOG, Err("it has reached its quota".to_owned()));
        assert!(!health.readiness().ready && health.gate.closed().is_none());
        health.dependency(dependency::EMBEDDED_LOG, Ok(()));
        assert!(health.readiness().ready);
        health.dependency(dependency::EMBEDDED_LOG_READING, Err("a damaged record".to_owned()));
        let readiness = health.readiness();
        assert!(readiness.ready && readiness.degraded);
    }

    #[test]
    fn a_closed_gate_makes_a_process_unready() {
        let health = ingesting();
        let full = health.gate.reason(Closed::DiskFull);
        full.set("71 % used".to_owned());
        assert!(!health.readiness().ready);
        drop(full);
        assert!(health.readiness().ready);
    }

    #[test]
    fn a_worker_is_unready_when_none_of_its_sinks_works() {
        let worker = |sinks| Health::of(Pipeline { ingest: &[], log: None, sinks });
        let health = worker(vec![SinkName::Aggregate]);
        assert!(health.readiness().ready);
        health.actor(ActorName::Aggregator, ActorState::Failing, "mongodb is away".to_owned());
        assert!(!health.readiness().ready);
        let health = worker(vec![SinkName::Archive, SinkName::Aggregate]);
        health.actor(ActorName::Aggregator, ActorState::Failing, "mongodb is away".to_owned());
        let readiness = health.readiness();
        assert!(readiness.ready && readiness.degraded);
    }

    #[test]
    fn what_is_away_is_known_and_what_is_only_not_there_yet_is_not() {
        let health = ingesting();
        let (starting, full) = (health.gate.reason(Closed::Starting), health.gate.reason(Closed::DiskFull));
        starting.set("starting".to_owned());
        assert!(!health.knows_why());
        health.dependency("kafka", Err("no broker".to_owned()));
        assert!(health.knows_why());
        health.dependency("kafka", Ok(()));
        assert!(!health.knows_why());
        full.set("full".to_owned());
        assert!(health.knows_why());
    }
}
