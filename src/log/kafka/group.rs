//! A consumer's place in its group: rebalances as they happen, and what has to be committed before partitions go.
//!
//! librdkafka calls back within `poll`, on the source's own thread. The callback only does what has to be done before
//! the partitions change hands (commit, pause) and leaves a note of it; the source acts on the note when `poll`
//! returns.

use std::collections::BTreeSet;

use parking_lot::{Mutex, MutexGuard};
use rdkafka::{
    ClientContext, Offset as KafkaOffset, TopicPartitionList,
    config::RDKafkaLogLevel,
    consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext},
    error::KafkaError,
    types::{RDKafkaErrorCode as Code, RDKafkaRespErr},
};

use crate::{
    log::kafka::{commit_metadata::CommitMetadata, commits::Commits, logging},
    position::{Offset, Partition},
};

/// What became of our share of the partitions.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// They are ours, and librdkafka does not fetch them yet.
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
    /// Goes with each position as its metadata; known before there is any.
    written_by: Option<CommitMetadata>,
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
        self.state.lock()
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

    /// The group has this position.
    pub(super) fn stands(&self, partition: Partition, committed: Offset) {
        self.state().commits.stands(partition, committed);
    }

    /// Everything before these positions is durable in the sink. Partitions that are not ours are left out.
    pub(super) fn confirm(&self, positions: &[(Partition, Offset)]) {
        let mut state = self.state();
        for (partition, position) in positions {
            state.commits.confirm(*partition, *position);
        }
    }

    /// The positions to commit now.
    pub(super) fn take_due(&self) -> Vec<(Partition, Offset)> {
        self.state().commits.take_due(|_| true)
    }

    /// Whether positions were confirmed that are not committed.
    pub(super) fn has_due(&self) -> bool {
        self.state().commits.has_due()
    }

    /// Those positions were not committed.
    pub(super) fn not_committed(&self, positions: &[(Partition, Offset)]) {
        self.state().commits.failed(positions);
    }

    /// Nothing more is committed of what was confirmed: it was said of a topic that is gone.
    pub(super) fn forget(&self) {
        self.state().commits = Commits::default();
    }

    /// From now on a revocation is our own leaving.
    pub(super) fn close(&self) {
        self.state().closing = true;
    }

    /// What the positions belong to that are confirmed from now on.
    pub(super) fn belongs_to(&self, written_by: CommitMetadata) {
        self.state().written_by = Some(written_by);
    }

    /// A list for librdkafka, each partition at its offset, with what it belongs to.
    pub(super) fn list(&self, positions: &[(Partition, Offset)]) -> TopicPartitionList {
        let list: TopicPartitionList = positions
            .iter()
            .map(|(partition, offset)| (self.topic.clone(), partition.0, KafkaOffset::Offset(offset.as_i64())))
            .collect();
        let metadata = self.state().written_by.as_ref().map(CommitMetadata::to_metadata);
        if let Some(metadata) = metadata {
            list.elements().iter_mut().for_each(|element| element.set_metadata(&metadata));
        }
        list
    }

    fn assign(&self, consumer: &BaseConsumer<Self>, partitions: &TopicPartitionList) {
        // Where to begin only the sink knows, and it says so later: until then librdkafka is not to fetch them, so they
        // are in no assignment of its. (Assigned at a logical offset and paused, it looks for that offset again and
        // again, and an answer that comes after the sink's seek carries the partition away to the log's end.)
        if let Err(error) = consumer.incremental_assign(&TopicPartitionList::new()) {
            tracing::error!(%error, "librdkafka refuses the partitions that the group assigned");
            return;
        }
        let partitions = numbers(partitions);
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
            if let Err(error) = consumer.commit(&self.list(&due), CommitMode::Sync) {
                tracing::warn!(%error, "positions of revoked partitions are not committed: their next reader repeats");
            }
        }
        // A partition that is not begun, or is being restarted, is in no assignment, and naming it would fail them all.
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
}
