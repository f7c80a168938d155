//! What actors and dependencies say of themselves, and the partitions that are halted.

use std::collections::BTreeMap;

use serde::Serialize;

use super::Health;
use crate::{
    names::{ActorName, SinkName},
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

#[derive(Default)]
pub(super) struct Registry {
    pub actors: BTreeMap<ActorName, ActorStatus>,
    /// By name and by who says so, in this order: a dependency can be used when all say that it can.
    pub dependencies: BTreeMap<(&'static str, &'static str), DependencyStatus>,
    /// Shown of dependencies that can be used.
    remarks: BTreeMap<&'static str, String>,
    pub halted: BTreeMap<(SinkName, Partition), Halted>,
}

impl Registry {
    /// Whether the actor does its work, as far as it has said anything.
    pub fn works(&self, actor: ActorName) -> bool {
        let works = |status: &ActorStatus| matches!(status.state, ActorState::Running | ActorState::Paused);
        self.actors.get(&actor).is_none_or(works)
    }

    pub fn is_available(&self, dependency: &str) -> bool {
        self.dependencies.iter().all(|((name, _), status)| *name != dependency || status.available)
    }

    /// Each dependency, with the first reason for which it cannot be used, or its remark.
    pub fn shown(&self) -> BTreeMap<&'static str, DependencyStatus> {
        let mut all: BTreeMap<&'static str, DependencyStatus> = BTreeMap::new();
        for ((name, _), status) in &self.dependencies {
            let shown = all.entry(*name).or_insert_with(|| status.clone());
            if shown.available {
                *shown = status.clone();
            }
        }
        for (name, remark) in &self.remarks {
            let shown = all.entry(*name).or_insert(DependencyStatus { available: true, reason: None });
            if shown.available {
                shown.reason = Some(remark.clone());
            }
        }
        all
    }
}

impl Health {
    pub fn actor(&self, actor: ActorName, state: ActorState, reason: impl Into<Option<String>>) {
        let status = ActorStatus { state, reason: reason.into() };
        self.registry.lock().actors.insert(actor, status);
    }

    /// Records whether a dependency can be used; says in the log when that changes.
    pub fn dependency(&self, dependency: &'static str, outcome: Result<(), String>) {
        self.dependency_of(dependency, "", outcome);
    }

    /// The same of a dependency that several use, each in its own way: what one can use, another may not.
    pub fn dependency_of(&self, dependency: &'static str, user: &'static str, outcome: Result<(), String>) {
        let status = DependencyStatus { available: outcome.is_ok(), reason: outcome.err() };
        let mut registry = self.registry.lock();
        let was_available = registry.is_available(dependency);
        registry.dependencies.insert((dependency, user), status.clone());
        let is_available = registry.is_available(dependency);
        drop(registry);
        match (&status.reason, was_available, is_available) {
            (Some(reason), true, _) => tracing::warn!(dependency, reason, "dependency unavailable"),
            (None, false, true) => tracing::info!(dependency, "dependency available again"),
            _ => {}
        }
    }

    /// Whether it is known that this dependency cannot be used.
    pub fn is_away(&self, dependency: &'static str) -> bool {
        !self.registry.lock().is_available(dependency)
    }

    /// Says something of a dependency, to be shown while it can be used.
    pub fn remark(&self, dependency: &'static str, remark: Option<String>) {
        let mut registry = self.registry.lock();
        match remark {
            Some(remark) => registry.remarks.insert(dependency, remark),
            None => registry.remarks.remove(dependency),
        };
    }

    /// Why the first of these dependencies that cannot be used cannot, by what [`Self::dependency`] recorded.
    pub fn outage(&self, of: &[&'static str]) -> Option<String> {
        let registry = self.registry.lock();
        of.iter()
            .find_map(|name| registry.dependencies.get(&(*name, "")).filter(|status| !status.available)?.reason.clone())
    }

    pub fn halt(&self, halted: Halted) {
        tracing::error!(sink = halted.sink.as_str(), topic = halted.topic, partition = %halted.partition,
            reason = halted.reason, action = halted.action, "partition halted");
        self.registry.lock().halted.insert((halted.sink, halted.partition), halted);
    }

    pub fn release(&self, sink: SinkName, partition: Partition) {
        self.registry.lock().halted.remove(&(sink, partition));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
