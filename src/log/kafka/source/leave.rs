//! The end of a source: the last commit, and the leaving, each within a bound.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use crossbeam_channel::{RecvTimeoutError, bounded};
use rdkafka::consumer::{BaseConsumer, Consumer};

use crate::{
    log::kafka::{
        commits::Committer, empty_ends::EmptyEnds, group::Group, offsets::OffsetReader, settings,
        topic_watch::TopicWatch,
    },
    names::SinkName,
    position::{Offset, Partition},
};

/// How long the last commit, and then the leaving, may take.
const CLOSING: Duration = Duration::from_secs(4);
/// A last commit that takes longer waits for something: a rebalance, or brokers that are away.
const COMMIT_EXPECTED: Duration = Duration::from_millis(500);

/// What a source leaves behind.
pub(super) struct Leaving {
    pub consumer: Arc<BaseConsumer<Group>>,
    pub offsets: OffsetReader,
    pub topic_watch: Arc<TopicWatch>,
    pub committer: Committer,
    pub empty_ends: EmptyEnds,
    pub sink: SinkName,
    pub topic: String,
}

impl Leaving {
    /// Commits, leaves and ends, each within a bound; the error says that the last commit failed. A static member leaves
    /// without a word: started again within `session.timeout.ms` it has its partitions back at once.
    pub fn leave(self, positions: &[(Partition, Offset)]) -> Result<(), String> {
        let Self { consumer, offsets, topic_watch, committer, empty_ends, sink, topic } = self;
        let group = consumer.context();
        group.confirm(positions);
        let began = Instant::now();
        let longest = began + settings::SESSION_TIMEOUT + CLOSING;
        let committer = committer.finish(longest);
        let (mut deadline, mut asked) = (began + CLOSING, false);
        while !committer.is_finished() && Instant::now() < deadline {
            // A rebalance under way has to end before the group takes positions: to a member that waits to join, the
            // coordinator answers nothing else, and another one that stopped in the middle of it holds it up for its
            // session's timeout. That is an ordinary stop of several workers; brokers that are silent are not waited for.
            if !asked && began.elapsed() >= COMMIT_EXPECTED {
                asked = true;
                if consumer.fetch_metadata(Some(&topic), CLOSING - COMMIT_EXPECTED).is_ok() {
                    deadline = longest;
                }
            }
            // Records that come with the rebalance are read again by the next reader.
            let _ = consumer.poll(Duration::from_millis(10));
        }
        let committed = if committer.is_finished() && !group.has_due() {
            Ok(())
        } else {
            let last_error = group.last_error().map(|said| format!("; librdkafka says: {said}")).unwrap_or_default();
            Err(format!("Kafka did not acknowledge the last positions of the {} group{last_error}", sink.as_str()))
        };
        group.close();
        let (done, left) = bounded::<()>(1);
        // Leaving has no deadline of its own in librdkafka, and a broker that hangs must not hold the stop up.
        let leave = move || {
            // A panic was reported by the thread that it ended.
            let _ = committer.join();
            let _ = offsets.stop().join();
            drop(topic_watch);
            empty_ends.finish();
            drop(consumer);
            drop(done);
        };
        match std::thread::Builder::new().name("kafka-leave".to_owned()).spawn(leave) {
            Ok(thread) => match left.recv_timeout(CLOSING) {
                Err(RecvTimeoutError::Timeout) => {
                    tracing::warn!(sink = sink.as_str(), "Kafka does not answer the consumer's leaving, not waiting");
                }
                _ => {
                    let _ = thread.join();
                }
            },
            Err(error) => tracing::warn!(%error, "no thread to leave the consumer group on"),
        }
        committed
    }
}
