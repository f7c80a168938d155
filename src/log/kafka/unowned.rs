//! Partitions that no member of the group reads, though the group is at rest.
//!
//! In a cooperative rebalance a partition changes hands in two steps: the member that has it gives it up and joins anew,
//! and then another one is given it. A static member that dies between the two and comes back is given what it was to
//! keep, without a rebalance; nobody knows that a second step is due, and the partition stands unread until the group
//! changes for another reason. (Seen in one of fourteen kills right after a worker was added.) So whoever does not have
//! the whole topic asks from time to time who has the rest. When nobody has, another member joins for a moment: that makes
//! the group divide its partitions anew, and those that are read stay where they are.

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use rdkafka::{
    ClientConfig, ClientContext, TopicPartitionList,
    config::{FromClientConfigAndContext, RDKafkaLogLevel},
    consumer::{BaseConsumer, Consumer, ConsumerContext},
    error::KafkaResult,
    groups::GroupList,
    types::RDKafkaRespErr,
};

use crate::{
    backoff::jitter,
    log::kafka::{group::Group, logging},
    position::Partition,
};

/// So often the group is asked, while this member does not have the whole topic.
const EVERY: Duration = Duration::from_secs(8);
/// One question to the group's coordinator.
const DEADLINE: Duration = Duration::from_secs(3);
/// How long the member for a moment waits for its place in the group, which may wait for a member that died.
const JOINING: Duration = Duration::from_secs(30);

/// What was seen of the group.
#[derive(Debug)]
pub(super) struct Unowned {
    due: Instant,
    seen: BTreeSet<Partition>,
}

impl Unowned {
    pub fn new(now: Instant) -> Self {
        Self { due: now + EVERY, seen: BTreeSet::new() }
    }

    /// Whether the group is to be asked now.
    pub fn is_due(&mut self, now: Instant) -> bool {
        let due = now >= self.due;
        if due {
            // Members do not ask, and act, at the same time.
            self.due = now + EVERY.mul_f64(jitter());
        }
        due
    }

    /// Those that nobody had in two answers one after the other, which are then looked for anew. `None` is an answer of a
    /// group that is not at rest.
    pub fn found(&mut self, unowned: Option<BTreeSet<Partition>>) -> BTreeSet<Partition> {
        let unowned = unowned.unwrap_or_default();
        let lasting: BTreeSet<Partition> = self.seen.intersection(&unowned).copied().collect();
        self.seen = if lasting.is_empty() { unowned } else { BTreeSet::new() };
        lasting
    }
}

/// Asks the group which of the topic's partitions no member has; `None` while it divides them, or cannot be understood.
pub(super) fn ask(
    consumer: &BaseConsumer<Group>,
    group: &str,
    topic: &str,
    partition_count: usize,
) -> KafkaResult<Option<BTreeSet<Partition>>> {
    let groups = consumer.fetch_group_list(Some(group), DEADLINE)?;
    Ok(unowned(&groups, group, topic, partition_count))
}

fn unowned(groups: &GroupList, group: &str, topic: &str, partition_count: usize) -> Option<BTreeSet<Partition>> {
    let group = groups.groups().iter().find(|each| each.name() == group && each.state() == "Stable")?;
    let mut unowned: BTreeSet<Partition> = (0..i32::try_from(partition_count).ok()?).map(Partition).collect();
    for member in group.members() {
        for partition in owned(member.assignment()?, topic)? {
            unowned.remove(&partition);
        }
    }
    Some(unowned)
}

/// The partitions of `topic` in a member's assignment, as consumers encode it: a version, the topics, each with its
/// partitions, and what the assignor adds; `None` when it is none.
fn owned(assignment: &[u8], topic: &str) -> Option<Vec<Partition>> {
    // A member that was given nothing.
    if assignment.is_empty() {
        return Some(Vec::new());
    }
    let mut rest = assignment.get(2..)?;
    let mut owned = Vec::new();
    for _ in 0..int(&mut rest)? {
        let (length, after) = rest.split_first_chunk()?;
        let (name, after) = after.split_at_checked(usize::try_from(i16::from_be_bytes(*length)).ok()?)?;
        rest = after;
        for _ in 0..int(&mut rest)? {
            let partition = Partition(int(&mut rest)?);
            if name == topic.as_bytes() {
                owned.push(partition);
            }
        }
    }
    Some(owned)
}

fn int(rest: &mut &[u8]) -> Option<i32> {
    let (int, after) = rest.split_first_chunk()?;
    *rest = after;
    Some(i32::from_be_bytes(*int))
}

/// A member that reads nothing, and whether the group has divided its partitions with it.
#[derive(Default)]
struct Guest(AtomicBool);

impl ClientContext for Guest {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        logging::forward(level, facility, line);
    }
}

impl ConsumerContext for Guest {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, what: RDKafkaRespErr, _: &mut TopicPartitionList) {
        let answered = if what == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS {
            self.0.store(true, Ordering::Relaxed);
            // Into no assignment of its own, so that nothing of it is fetched.
            consumer.incremental_assign(&TopicPartitionList::new())
        } else {
            consumer.incremental_unassign(&TopicPartitionList::new())
        };
        if let Err(error) = answered {
            tracing::debug!(%error, "librdkafka refuses what the member for a moment answers the group");
        }
    }
}

/// Has a member join the group for a moment. `other_topic` is one that the group does not read: where it is there, the
/// member asks for that one's partitions, and the group's own ones go to nobody but those who stay.
pub(super) fn rejoin(settings: &ClientConfig, topic: &str, other_topic: &str) {
    let mut settings = settings.clone();
    settings.remove("group.instance.id");
    if let Err(error) = join_and_leave(&settings, topic, other_topic) {
        tracing::warn!(%error, "no member can join the group for a moment");
    }
}

fn join_and_leave(settings: &ClientConfig, topic: &str, other_topic: &str) -> KafkaResult<()> {
    let guest: BaseConsumer<Guest> = BaseConsumer::from_config_and_context(settings, Guest::default())?;
    let metadata = guest.fetch_metadata(Some(other_topic), DEADLINE)?;
    let stands = metadata.topics().iter().any(|each| each.name() == other_topic && each.error().is_none());
    guest.subscribe(&[if stands { other_topic } else { topic }])?;
    let until = Instant::now() + JOINING;
    while Instant::now() < until && !guest.context().0.load(Ordering::Relaxed) {
        if let Some(Err(error)) = guest.poll(Duration::from_millis(100)) {
            tracing::debug!(%error, "the member for a moment");
        }
    }
    // Dropped, it leaves, and the group divides once more.
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As consumers encode it, of these topics and their partitions.
    fn assignment(topics: &[(&str, &[i32])]) -> Vec<u8> {
        let mut bytes = [&1i16.to_be_bytes()[..], &(topics.len() as i32).to_be_bytes()].concat();
        for (topic, partitions) in topics {
            bytes.extend((topic.len() as i16).to_be_bytes());
            bytes.extend(topic.as_bytes());
            bytes.extend((partitions.len() as i32).to_be_bytes());
            bytes.extend(partitions.iter().flat_map(|partition| partition.to_be_bytes()));
        }
        // What the assignor adds: none.
        bytes.extend((-1i32).to_be_bytes());
        bytes
    }

    #[test]
    fn the_partitions_of_a_topic_are_found_in_an_assignment() {
        let bytes = assignment(&[("other", &[7]), ("events", &[2, 0]), ("events.dlq", &[])]);
        assert_eq!(owned(&bytes, "events"), Some(vec![Partition(2), Partition(0)]));
        assert_eq!(owned(&bytes, "none"), Some(vec![]));
        assert_eq!(owned(&[], "events"), Some(vec![]));
        for length in 1..bytes.len() - 4 {
            assert_eq!(owned(&bytes[..length], "events"), None, "cut off at {length}");
        }
        assert_eq!(owned(&[0, 1, 0xFF, 0xFF, 0xFF, 0xFF], "events"), Some(vec![]), "a count below 0");
        assert_eq!(owned(&[0, 1, 0, 0, 0, 1, 0xFF, 0xFF], "events"), None, "a length below 0");
        assert_eq!(owned(&[0, 1, 0x7F, 0xFF, 0xFF, 0xFF], "events"), None, "more than there is");
    }

    #[test]
    fn what_nobody_has_twice_one_after_the_other_is_lasting() {
        let set = |partitions: &[i32]| partitions.iter().copied().map(Partition).collect::<BTreeSet<_>>();
        let mut group = Unowned::new(Instant::now());
        assert!(group.found(Some(set(&[0, 1]))).is_empty());
        assert!(group.found(None).is_empty(), "it divides them now");
        assert!(group.found(Some(set(&[0, 1]))).is_empty());
        assert!(group.found(Some(set(&[2]))).is_empty(), "others");
        assert_eq!(group.found(Some(set(&[1, 2]))), set(&[2]));
        assert!(group.found(Some(set(&[2]))).is_empty(), "once; then it has its time again");
        assert_eq!(group.found(Some(set(&[2]))), set(&[2]));
    }

    #[test]
    fn the_group_is_asked_once_in_a_while() {
        let start = Instant::now();
        let mut group = Unowned::new(start);
        let asked = (0..60).filter(|second| group.is_due(start + Duration::from_secs(*second))).count();
        assert!((5..=8).contains(&asked), "{asked}");
    }
}
