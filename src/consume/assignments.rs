//! What a consumer knows of the partitions that are its own: a state machine without I/O.
//!
//! Invariant: what is said about an earlier epoch of a partition changes nothing. Batches go to the sink only between
//! its `Begin` and the next assignment, and only what the sink confirmed is a position.

use std::collections::BTreeMap;

use crate::{
    log::{Assignment, Epoch},
    position::{Offset, Partition},
};

/// A partition that is ours.
#[derive(Debug)]
struct Held {
    epoch: Epoch,
    phase: Phase,
    log_end: Offset,
    /// The sink's durable position; at first the group's.
    position: Option<Offset>,
    log_start: Offset,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The sink finds out where it stands.
    Opening,
    Delivering,
    Halted,
}

impl Held {
    fn lag(&self) -> u64 {
        self.log_end.since(self.position.unwrap_or(self.log_start).max(self.log_start))
    }
}

/// The partitions of one sink.
#[derive(Debug, Default)]
pub struct Assignments(BTreeMap<Partition, Held>);

impl Assignments {
    /// The partition is assigned, or assigned anew: the sink has to learn the epoch that is returned.
    pub fn assigned(&mut self, assignment: &Assignment) -> Epoch {
        let epoch = Epoch::fresh();
        let held = Held {
            epoch,
            phase: Phase::Opening,
            log_end: assignment.log_end,
            position: assignment.committed,
            log_start: assignment.log_start,
        };
        self.0.insert(assignment.partition, held);
        epoch
    }

    /// All that are ours.
    pub fn partitions(&self) -> Vec<Partition> {
        self.0.keys().copied().collect()
    }

    /// The partition is no longer ours; the epoch that ended, if it was.
    pub fn revoked(&mut self, partition: Partition) -> Option<Epoch> {
        self.0.remove(&partition).map(|held| held.epoch)
    }

    fn current(&mut self, partition: Partition, epoch: Epoch) -> Option<&mut Held> {
        self.0.get_mut(&partition).filter(|held| held.epoch == epoch)
    }

    /// The sink knows where to begin. Answers whether the source has to learn it.
    pub fn begin(&mut self, partition: Partition, epoch: Epoch) -> bool {
        self.enter(partition, epoch, Phase::Delivering)
    }

    /// The sink asks for the partition to be assigned anew. Answers whether the source has to learn it.
    pub fn reassign(&mut self, partition: Partition, epoch: Epoch) -> bool {
        self.enter(partition, epoch, Phase::Opening)
    }

    /// The partition cannot go on. Answers whether the source has to learn it.
    pub fn halt(&mut self, partition: Partition, epoch: Epoch) -> bool {
        self.enter(partition, epoch, Phase::Halted)
    }

    fn enter(&mut self, partition: Partition, epoch: Epoch, phase: Phase) -> bool {
        self.current(partition, epoch).map(|held| held.phase = phase).is_some()
    }

    /// Whether a batch that ends at `to` goes to the sink.
    pub fn delivers(&mut self, partition: Partition, epoch: Epoch, to: Offset) -> bool {
        let Some(held) = self.current(partition, epoch) else { return false };
        let delivers = held.phase == Phase::Delivering;
        if delivers {
            held.log_end = held.log_end.max(to);
        }
        delivers
    }

    /// The sink has made everything before `position` durable. Answers whether it is to be committed.
    pub fn confirm(&mut self, partition: Partition, epoch: Epoch, position: Offset) -> bool {
        self.current(partition, epoch).map(|held| held.position = Some(position)).is_some()
    }

    pub fn log_end(&mut self, partition: Partition, end: Offset) {
        if let Some(held) = self.0.get_mut(&partition) {
            held.log_end = held.log_end.max(end);
        }
    }

    /// The log holds no records from `from` up to its end `to`: they are no lag.
    pub fn empty_tail(&mut self, partition: Partition, from: Offset, to: Offset) {
        if let Some(held) = self.0.get_mut(&partition).filter(|held| held.log_end == to) {
            held.log_end = from;
        }
    }

    /// Records between the durable position and the log's end.
    pub fn lag(&self, partition: Partition) -> Option<u64> {
        self.0.get(&partition).map(Held::lag)
    }

    /// Of all partitions together.
    pub fn total_lag(&self) -> u64 {
        self.0.values().map(Held::lag).sum()
    }

    /// The durable positions.
    pub fn positions(&self) -> Vec<(Partition, Offset)> {
        self.0.iter().filter_map(|(partition, held)| Some((*partition, held.position?))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::position::TopicIdentity;

    const P: Partition = Partition(0);

    fn assignment() -> Assignment {
        Assignment {
            partition: P,
            committed: Some(Offset(5)),
            log_start: Offset(0),
            log_end: Offset(9),
            identity: TopicIdentity("id".into()),
            holds_all: true,
        }
    }

    #[test]
    fn batches_go_to_the_sink_only_after_it_began() {
        let mut assignments = Assignments::default();
        let epoch = assignments.assigned(&assignment());
        assert!(!assignments.delivers(P, epoch, Offset(6)));
        assert!(assignments.begin(P, epoch));
        assert!(assignments.delivers(P, epoch, Offset(6)));
        assert!(assignments.halt(P, epoch));
        assert!(!assignments.delivers(P, epoch, Offset(7)));
    }

    #[test]
    fn what_is_said_of_an_earlier_assignment_changes_nothing() {
        let mut assignments = Assignments::default();
        let old = assignments.assigned(&assignment());
        let new = assignments.assigned(&assignment());
        assert!(!assignments.begin(P, old) && !assignments.confirm(P, old, Offset(9)) && !assignments.reassign(P, old));
        assert_eq!((assignments.positions(), assignments.lag(P)), (vec![(P, Offset(5))], Some(4)));
        assert_eq!(assignments.revoked(P), Some(new));
        assert!(!assignments.confirm(P, new, Offset(9)));
    }
}
