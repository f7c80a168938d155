//! The end of a source: its last commit, and that it leaves the group.

use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, bounded};
use rdkafka::consumer::Consumer;

use super::Source;
use crate::{
    log::kafka::settings,
    position::{Offset, Partition},
};

/// How long the last commit, and then the leaving, may take.
const CLOSING: Duration = Duration::from_secs(4);
/// A last commit that takes longer waits for something: a rebalance, or brokers that are away.
const COMMIT_EXPECTED: Duration = Duration::from_millis(500);

impl Source {
    /// Commits, leaves and ends; the error says that the last commit failed.
    pub(super) fn close(self, positions: &[(Partition, Offset)]) -> Result<(), String> {
        let Self { consumer, offsets, topic_watch, committer, sink, partitions, tails, topic, .. } = self;
        // They share the consumer, whose last owner closes it.
        drop(partitions);
        let group = consumer.context();
        group.commits.lock().confirm(positions);
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
        let committed = if committer.is_finished() && !group.commits.lock().has_due() {
            Ok(())
        } else {
            let said = group.says();
            Err(format!("Kafka did not acknowledge the last positions of the {} group{said}", sink.as_str()))
        };
        group.close();
        let (done, left) = bounded::<()>(1);
        // Leaving has no deadline of its own in librdkafka, and a broker that hangs must not hold the stop up.
        let leave = move || {
            // A panic was reported by the thread that it ended.
            let _ = committer.join();
            let _ = offsets.stop().join();
            drop(topic_watch);
            tails.finish();
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
