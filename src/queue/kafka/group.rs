//! A consumer's place in its group: rebalances as they happen, and the positions to commit.
//!
//! librdkafka calls back within `poll`, on the source's own thread. The callback only does what has to be done before
//! the partitions change hands (commit, pause) and leaves a note of it; the source acts on the note when `poll`
//! returns.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard, PoisonError},
};

use rdkafka::{
    ClientContext, Offset as KafkaOffset, TopicPartitionList,
    config::RDKafkaLogLevel,
    consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext},
    error::{KafkaError, KafkaResult},
    types::{RDKafkaErrorCode as Code, RDKafkaRespErr},
};

use crate::{
    position::{Offset, Partition},
    queue::kafka::logging,
};

/// What became of our share of the partitions.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// They are ours, paused.
    Assigned(Vec<Partition>),
    /// They are not ours any more; what was confirmed of them is committed, unless they were lost.
    Revoked(Vec<Partition>),
}

/// The context of a source's consumer.
pub(super) struct Group {
    topic: String,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    changes: Vec<Change>,
    commits: Commits,
    /// The positions are committed already and the partitions stay with this member.
    closing: bool,
    unreachable: Option<String>,
    last_error: Option<String>,
}

impl Group {
    pub(super) fn new(topic: &str) -> Self {
        Self { topic: topic.to_owned(), state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What happened since it was asked last, in its order.
    pub(super) fn take_changes(&self) -> Vec<Change> {
        std::mem::take(&mut self.state().changes)
    }

    /// That all brokers were lost since it was asked last, and why.
    pub(super) fn take_unreachable(&self) -> Option<String> {
        self.state().unreachable.take()
    }

    /// What librdkafka said last about its connections.
    pub(super) fn last_error(&self) -> Option<String> {
        self.state().last_error.clone()
    }

    /// Everything before these positions is durable in the sink. Partitions that are not ours are left out.
    pub(super) fn confirm(&self, positions: &[(Partition, Offset)]) {
        let mut state = self.state();
        for (partition, position) in positions {
            state.commits.confirm(*partition, *position);
        }
    }

    /// Sends what is due, without waiting for the answer.
    pub(super) fn commit_due(&self, consumer: &BaseConsumer<Self>) {
        let Some(positions) = self.due() else { return };
        self.state().commits.unanswered += 1;
        if let Err(error) = consumer.commit(&positions, CommitMode::Async) {
            tracing::debug!(%error, "positions cannot be committed now, trying again");
            self.state().commits.answered(&positions, false);
        }
    }

    fn due(&self) -> Option<TopicPartitionList> {
        let due = self.state().commits.take_due(|_| true);
        (!due.is_empty()).then(|| self.list(due))
    }

    /// Whether a commit was sent and not answered yet.
    pub(super) fn is_committing(&self) -> bool {
        self.state().commits.unanswered > 0
    }

    /// From now on a revocation is our own leaving.
    pub(super) fn close(&self) {
        self.state().closing = true;
    }

    /// A list for librdkafka, each partition at its offset.
    fn list(&self, positions: Vec<(Partition, Offset)>) -> TopicPartitionList {
        positions
            .into_iter()
            .map(|(partition, offset)| (self.topic.clone(), partition.0, KafkaOffset::Offset(offset.as_i64())))
            .collect()
    }

    fn assign(&self, consumer: &BaseConsumer<Self>, partitions: &TopicPartitionList) {
        let partitions = partitions.clone();
        // The sink says later where to begin. Until then the position must be one that asks for nothing: without a
        // committed offset librdkafka would report an error, and with one it would fetch what nobody wants.
        let at_end = partitions.clone();
        let assigned = at_end
            .elements()
            .iter_mut()
            .try_for_each(|element| element.set_offset(KafkaOffset::End))
            .and_then(|()| consumer.incremental_assign(&at_end))
            .and_then(|()| consumer.pause(&at_end));
        if let Err(error) = assigned {
            tracing::error!(%error, "librdkafka refuses the partitions that the group assigned");
            return;
        }
        let partitions = numbers(&partitions);
        let mut state = self.state();
        for partition in &partitions {
            state.commits.hold(*partition);
        }
        state.changes.push(Change::Assigned(partitions));
    }

    fn revoke(&self, consumer: &BaseConsumer<Self>, partitions: &TopicPartitionList) {
        let revoked = numbers(partitions);
        let lost = consumer.assignment_lost();
        let due = {
            let mut state = self.state();
            let due = state.commits.take_due(|partition| revoked.contains(&partition));
            if lost || state.closing { Vec::new() } else { due }
        };
        if !due.is_empty() {
            // Bounded by session.timeout.ms while there is no coordinator, and by socket.timeout.ms.
            let positions = self.list(due);
            if let Err(error) = consumer.commit(&positions, CommitMode::Sync) {
                tracing::warn!(%error, "positions of revoked partitions are not committed: their next reader repeats");
            }
        }
        // A partition that is being restarted is in no assignment for a moment, and naming it would fail them all.
        let held: BTreeSet<i32> = consumer
            .assignment()
            .map(|held| held.elements().iter().map(|element| element.partition()).collect())
            .unwrap_or_default();
        let mut going = TopicPartitionList::new();
        for partition in revoked.iter().filter(|partition| held.contains(&partition.0)) {
            going.add_partition(&self.topic, partition.0);
        }
        if let Err(error) = consumer.incremental_unassign(&going) {
            tracing::error!(%error, "librdkafka refuses to let revoked partitions go");
        }
        let mut state = self.state();
        for partition in &revoked {
            state.commits.release(*partition);
        }
        state.changes.push(Change::Revoked(revoked));
    }
}

fn numbers(partitions: &TopicPartitionList) -> Vec<Partition> {
    partitions.elements().iter().map(|element| Partition(element.partition())).collect()
}

impl ClientContext for Group {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        logging::forward(level, facility, line);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(target: "rdkafka", %error, reason, "the consumer reports an error");
        let mut state = self.state();
        if error.rdkafka_error_code() == Some(Code::AllBrokersDown) {
            state.unreachable = Some(state.last_error.clone().unwrap_or_else(|| reason.to_owned()));
        } else {
            state.last_error = Some(reason.to_owned());
        }
    }
}

impl ConsumerContext for Group {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, what: RDKafkaRespErr, partitions: &mut TopicPartitionList) {
        match what {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => self.assign(consumer, partitions),
            _ => self.revoke(consumer, partitions),
        }
    }

    fn commit_callback(&self, result: KafkaResult<()>, positions: &TopicPartitionList) {
        if let Err(error) = &result {
            tracing::debug!(%error, "positions are not committed, trying again");
        }
        self.state().commits.answered(positions, result.is_ok());
    }
}

/// The positions of the partitions that we hold: what the sink confirmed, and what was sent to be committed.
#[derive(Default)]
struct Commits {
    positions: BTreeMap<Partition, Position>,
    /// Commits on their way.
    unanswered: usize,
}

#[derive(Default)]
struct Position {
    confirmed: Option<Offset>,
    sent: Option<Offset>,
}

impl Commits {
    /// A new assignment: nothing is known of it.
    fn hold(&mut self, partition: Partition) {
        self.positions.insert(partition, Position::default());
    }

    fn release(&mut self, partition: Partition) {
        self.positions.remove(&partition);
    }

    /// Never backwards within an assignment, and never for partitions that are not held.
    fn confirm(&mut self, partition: Partition, position: Offset) {
        if let Some(held) = self.positions.get_mut(&partition) {
            held.confirmed = held.confirmed.max(Some(position));
        }
    }

    /// The positions that were confirmed and not sent, which count as sent now.
    fn take_due(&mut self, wanted: impl Fn(Partition) -> bool) -> Vec<(Partition, Offset)> {
        let mut due = Vec::new();
        for (partition, position) in self.positions.iter_mut().filter(|(partition, _)| wanted(**partition)) {
            if let Some(confirmed) = position.confirmed.filter(|_| position.confirmed != position.sent) {
                position.sent = position.confirmed;
                due.push((*partition, confirmed));
            }
        }
        due
    }

    /// What was not committed is due again.
    fn answered(&mut self, positions: &TopicPartitionList, committed: bool) {
        self.unanswered = self.unanswered.saturating_sub(1);
        for element in positions.elements() {
            if (!committed || element.error().is_err())
                && let Some(position) = self.positions.get_mut(&Partition(element.partition()))
            {
                position.sent = None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_never_go_backwards_and_only_held_partitions_have_one() {
        let mut commits = Commits::default();
        commits.hold(Partition(0));
        for (partition, position) in [(0, 5), (0, 3), (1, 7)] {
            commits.confirm(Partition(partition), Offset(position));
        }
        assert_eq!(commits.take_due(|_| true), [(Partition(0), Offset(5))]);
        assert_eq!(commits.take_due(|_| true), []);
    }

    #[test]
    fn a_commit_that_failed_is_due_again() {
        let group = Group::new("events");
        group.state().commits.hold(Partition(0));
        group.confirm(&[(Partition(0), Offset(5))]);
        let sent = group.due().unwrap();
        assert!(group.due().is_none());
        group.commit_callback(Err(KafkaError::ConsumerCommit(Code::IllegalGeneration)), &sent);
        assert_eq!(group.due(), Some(sent));
    }
}
