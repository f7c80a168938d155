//! The gate: whether events are taken. It is closed while at least one [`Reason`] holds.
//!
//! The watchdog closes it while the disk is full, the Kafka producer while the brokers take nothing, the buffer in front
//! of Kafka while it is full, and the daemon while it starts and stops. An embedded log that has reached its quota leaves
//! it open: it refuses each request itself, because it takes events again before anybody could tell from outside.

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::Mutex;

/// Why requests are refused at present, the gravest first; several may hold at once.
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

impl Closed {
    const ALL: [Self; 4] = [Self::Draining, Self::DiskFull, Self::QueueUnavailable, Self::Starting];
}

#[derive(Clone, Default)]
pub struct Gate(Arc<Mutex<BTreeMap<Closed, Held>>>);

#[derive(Default)]
struct Held {
    handles: usize,
    why: Option<String>,
}

impl Gate {
    /// The reason of this kind, for its owner. All handles of a kind are the same one.
    pub fn reason(&self, kind: Closed) -> Reason {
        self.0.lock().entry(kind).or_default().handles += 1;
        Reason { gate: self.clone(), kind }
    }

    /// Has no reason end by being dropped any more: in a process that fails, nothing may open the gate on its way out.
    pub fn keep_reasons(&self) {
        std::mem::forget(Closed::ALL.map(|kind| self.reason(kind)));
    }

    /// Why it is closed, the gravest reason first; `None` when events are taken.
    pub fn closed(&self) -> Option<(Closed, String)> {
        self.0.lock().iter().find_map(|(kind, held)| Some((*kind, held.why.clone()?)))
    }

    pub(super) fn is_closed_for(&self, kind: Closed) -> bool {
        self.0.lock().get(&kind).is_some_and(|held| held.why.is_some())
    }
}

/// A reason that its owner sets and takes back. It ends when its last handle is dropped, so that nobody can leave the
/// gate closed; an actor has one that outlives its incarnations.
pub struct Reason {
    gate: Gate,
    kind: Closed,
}

impl Reason {
    /// Closes the gate with these words, or takes the reason back.
    pub fn set(&self, why: impl Into<Option<String>>) {
        self.gate.0.lock().entry(self.kind).or_default().why = why.into();
    }
}

impl Clone for Reason {
    fn clone(&self) -> Self {
        self.gate.reason(self.kind)
    }
}

impl Drop for Reason {
    fn drop(&mut self) {
        let mut reasons = self.gate.0.lock();
        let held = reasons.entry(self.kind).or_default();
        held.handles -= 1;
        if held.handles == 0 {
            reasons.remove(&self.kind);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gate_opens_when_the_last_reason_is_gone() {
        let gate = Gate::default();
        let (full, draining) = (gate.reason(Closed::DiskFull), gate.reason(Closed::Draining));
        assert_eq!(gate.closed(), None);
        full.set("71 % used".to_owned());
        draining.set("stopping".to_owned());
        assert_eq!(gate.closed(), Some((Closed::Draining, "stopping".to_owned())));
        draining.set(None);
        assert_eq!(gate.closed(), Some((Closed::DiskFull, "71 % used".to_owned())));
        full.set(None);
        assert_eq!(gate.closed(), None);
    }

    #[test]
    fn a_reason_that_is_kept_ends_when_it_is_taken_back_alone() {
        let gate = Gate::default();
        gate.keep_reasons();
        assert_eq!(gate.closed(), None);
        gate.reason(Closed::DiskFull).set("full".to_owned());
        assert!(gate.closed().is_some());
        gate.reason(Closed::DiskFull).set(None);
        assert_eq!(gate.closed(), None);
    }

    #[test]
    fn a_reason_ends_with_its_last_handle() {
        let gate = Gate::default();
        let first = gate.reason(Closed::QueueUnavailable);
        let second = first.clone();
        first.set("no broker".to_owned());
        drop(first);
        assert!(gate.closed().is_some());
        drop(second);
        assert_eq!(gate.closed(), None);
    }
}
