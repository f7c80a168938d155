//! What a committed position belongs to. Kafka keeps a group's offsets by the topic's name alone, also when the topic is
//! deleted and created anew; so each position carries the topic's identity, and our generation, as its metadata.

use crate::position::{Offset, TopicIdentity};

/// The first word of our metadata; other tools write what they like.
const OURS: &str = "ingestd";

/// The topic, and how often the operator began anew with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CommitMetadata {
    pub identity: TopicIdentity,
    pub generation: u32,
}

impl CommitMetadata {
    /// `ingestd generation=0 topic=<identity>`
    pub fn to_metadata(&self) -> String {
        format!("{OURS} generation={} topic={}", self.generation, self.identity)
    }

    /// `None` for what another tool, or an older release, wrote.
    fn from_metadata(metadata: &str) -> Option<Self> {
        let mut words = metadata.split(' ');
        if words.next() != Some(OURS) {
            return None;
        }
        let generation = words.next()?.strip_prefix("generation=")?.parse().ok()?;
        let identity = words.next()?.strip_prefix("topic=")?;
        Some(Self { identity: TopicIdentity(identity.into()), generation })
    }

    /// Whether a position that was committed with this metadata says something about this topic, whose log ends at
    /// `log_end`.
    ///
    /// One of an earlier generation does: raising the generation must not read twice what was read. But where it lies
    /// beyond the log's end, the generation was raised because of that, and it does not.
    pub fn accepts(&self, position: Offset, metadata: &str, log_end: Offset) -> bool {
        let within = position <= log_end;
        match Self::from_metadata(metadata) {
            Some(of) if of.identity.contradicts(&self.identity.0) => false,
            Some(of) => within || of.generation == self.generation,
            None => within || self.generation == 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written_by(identity: &str, generation: u32) -> CommitMetadata {
        CommitMetadata { identity: TopicIdentity(identity.into()), generation }
    }

    #[test]
    fn a_position_of_a_topic_that_is_gone_says_nothing_about_its_successor() {
        let metadata = written_by("old", 0).to_metadata();
        for generation in [0, 1] {
            assert!(!written_by("new", generation).accepts(Offset(5), &metadata, Offset(50)));
            assert!(written_by("old", generation).accepts(Offset(5), &metadata, Offset(50)));
        }
        // Brokers that give no ids.
        assert!(written_by(TopicIdentity::UNAVAILABLE, 0).accepts(Offset(5), &metadata, Offset(50)));
    }

    #[test]
    fn a_position_beyond_the_log_counts_until_the_generation_is_raised() {
        let metadata = written_by("a", 3).to_metadata();
        assert!(written_by("a", 3).accepts(Offset(9), &metadata, Offset(5)));
        assert!(!written_by("a", 4).accepts(Offset(9), &metadata, Offset(5)));
        assert!(written_by("a", 0).accepts(Offset(9), "", Offset(5)));
        assert!(!written_by("a", 1).accepts(Offset(9), "", Offset(5)));
    }

    #[test]
    fn positions_that_other_tools_committed_are_taken() {
        for metadata in ["", "reset by kcat", "ingestd", "ingestd generation=x topic=y", "ingestd generation=1"] {
            assert!(written_by("a", 2).accepts(Offset(5), metadata, Offset(5)), "{metadata}");
        }
    }
}
