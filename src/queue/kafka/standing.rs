//! What speaks against a source's work at present: one outcome for operators, out of what librdkafka and the survey say.
//!
//! The brokers answering is not enough. librdkafka says once that a right is missing, and then is silent; a batch that
//! cannot be read is fetched again and again, and looks like a partition without records; a partition without a leader
//! is simply not heard of.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use rdkafka::types::RDKafkaErrorCode as Code;

use crate::position::Partition;

/// The brokers count as away after so many unanswered surveys: one alone may be a leader's election.
const SILENT_SURVEYS: u32 = 2;
/// A partition that nobody has answered for so long is shown: an election takes seconds.
const LEADERLESS: Duration = Duration::from_secs(30);
/// A batch that cannot be read is fetched again many times within this.
const UNREADABLE: Duration = Duration::from_secs(30);

/// A batch that waits for the topic's identity for so long is shown: it is asked for within milliseconds.
const UNPROVEN: Duration = Duration::from_secs(10);

/// The state of it.
#[derive(Debug, Default)]
pub(super) struct Standing {
    /// The brokers were heard of at all.
    heard: bool,
    silent_surveys: u32,
    /// The brokers do not answer, or know no such topic or user.
    unreachable: Option<String>,
    /// A right is missing; until an assignment or a record says otherwise.
    refused: Option<String>,
    /// A batch cannot be read, and when that was said last.
    unreadable: Option<(String, Instant)>,
    /// Since when the brokers are silent about a partition that is ours.
    silent: BTreeMap<Partition, Instant>,
    /// Since when a batch waits until the brokers say that its topic is still the same.
    unproven: Option<Instant>,
    /// What was told last.
    told: Option<Result<(), String>>,
}

impl Standing {
    /// The brokers answered, about these of our partitions.
    pub fn answered(&mut self, held: BTreeSet<Partition>, about: &BTreeSet<Partition>, now: Instant) {
        self.heard = true;
        self.silent_surveys = 0;
        self.unreachable = None;
        self.silent.retain(|partition, _| held.contains(partition) && !about.contains(partition));
        for partition in held.difference(about) {
            self.silent.entry(*partition).or_insert(now);
        }
    }

    /// A survey was not answered.
    pub fn unanswered(&mut self, reason: String) {
        self.silent_surveys += 1;
        if self.silent_surveys >= SILENT_SURVEYS {
            self.unreachable = Some(reason);
        }
    }

    /// librdkafka has lost all connections, or gets none.
    pub fn disconnected(&mut self, reason: String) {
        self.unreachable = Some(reason);
    }

    /// We got partitions, or a record.
    pub fn progressed(&mut self) {
        self.refused = None;
    }

    /// A batch waits for an answer of the vigil.
    pub fn waits_for_vigil(&mut self, now: Instant) {
        self.unproven.get_or_insert(now);
    }

    /// The vigil has answered, or nothing waits for it.
    pub fn vigil_unneeded(&mut self) {
        self.unproven = None;
    }

    /// Takes an error of the consumer's; whether it is one that is shown, or passing.
    pub fn heed(&mut self, code: Code, topic: &str, now: Instant) -> bool {
        match code {
            // Said by the context already, or passing: librdkafka tries again.
            Code::AllBrokersDown | Code::BrokerTransportFailure | Code::Resolve | Code::OperationTimedOut => {}
            Code::TopicAuthorizationFailed => {
                self.refused =
                    Some(format!("topic {topic}: {code}: give this user the rights Describe and Read on it"));
            }
            Code::GroupAuthorizationFailed => {
                self.refused = Some(format!("topic {topic}: {code}: give this user the right Read on the group"));
            }
            // The next answer says that this is over.
            Code::UnknownTopicOrPartition | Code::UnknownTopic => {
                self.unreachable = Some(format!("topic {topic}: {code}"));
            }
            Code::BadMessage | Code::BadCompression | Code::NotImplemented | Code::InvalidMessage => {
                let reason = format!(
                    "topic {topic}: a batch of records cannot be read ({code}): it is damaged, or of a format or \
                     compression that this release does not know; its partition stands still. Use a release that knows \
                     it, or remove the log up to the batch's end (kafka-delete-records) and set archive.on_gap = \"skip\""
                );
                self.unreadable = Some((reason, now));
            }
            _ => return false,
        }
        true
    }

    /// The outcome, where it differs from the one that was told last. Nothing before the brokers were first heard of.
    pub fn news(&mut self, now: Instant) -> Option<Result<(), String>> {
        self.unreadable.take_if(|(_, said)| now.duration_since(*said) >= UNREADABLE);
        let outcome = match self.complaint(now) {
            Some(reason) => Err(reason),
            None if !self.heard => return None,
            None => Ok(()),
        };
        if self.told.as_ref() == Some(&outcome) {
            return None;
        }
        self.told = Some(outcome.clone());
        Some(outcome)
    }

    fn complaint(&self, now: Instant) -> Option<String> {
        let silent = || {
            let long = self.silent.iter().filter(|(_, since)| now.duration_since(**since) >= LEADERLESS);
            let names: Vec<String> = long.map(|(partition, _)| partition.to_string()).collect();
            (!names.is_empty()).then(|| {
                format!(
                    "no broker answers for partition(s) {}: they have no leader, or it is away; the others go on. See \
                     to the brokers that hold them",
                    names.join(", ")
                )
            })
        };
        let unproven = || {
            self.unproven.filter(|since| now.duration_since(*since) >= UNPROVEN).map(|_| {
                "the brokers do not say the topic's id, so that records cannot be told from those of a topic that was \
                 created anew: see to it that they answer, and that this user has the right Describe on the topic"
                    .to_owned()
            })
        };
        let unreadable = self.unreadable.as_ref().map(|(reason, _)| reason);
        self.unreachable.as_ref().or(self.refused.as_ref()).or(unreadable).cloned().or_else(unproven).or_else(silent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(partitions: &[i32]) -> BTreeSet<Partition> {
        partitions.iter().copied().map(Partition).collect()
    }

    /// After a first survey that was answered for all.
    fn healthy(now: Instant) -> Standing {
        let mut standing = Standing::default();
        standing.answered(set(&[0, 1]), &set(&[0, 1]), now);
        assert_eq!(standing.news(now), Some(Ok(())));
        standing
    }

    fn reason(standing: &mut Standing, now: Instant) -> String {
        standing.news(now).expect("news").expect_err("a complaint")
    }

    #[test]
    fn a_missing_right_stays_shown_until_an_assignment_or_a_record() {
        let now = Instant::now();
        let mut standing = healthy(now);
        for code in [Code::GroupAuthorizationFailed, Code::TopicAuthorizationFailed] {
            assert!(standing.heed(code, "events", now));
            assert!(reason(&mut standing, now).contains("right"));
            standing.answered(set(&[0, 1]), &set(&[0, 1]), now);
            assert_eq!(standing.news(now), None, "an answer of the brokers says nothing about rights");
            standing.progressed();
            assert_eq!(standing.news(now), Some(Ok(())));
        }
    }

    #[test]
    fn a_batch_that_cannot_be_read_is_shown_for_as_long_as_it_is_fetched() {
        let now = Instant::now();
        let mut standing = healthy(now);
        for code in [Code::BadMessage, Code::BadCompression, Code::NotImplemented] {
            assert!(standing.heed(code, "events", now));
        }
        assert!(reason(&mut standing, now).contains("cannot be read"));
        // Another partition goes on.
        standing.progressed();
        assert_eq!(standing.news(now + UNREADABLE / 2), None);
        assert_eq!(standing.news(now + UNREADABLE), Some(Ok(())));
    }

    #[test]
    fn a_partition_that_nobody_answers_for_is_named_when_it_lasts() {
        let now = Instant::now();
        let mut standing = healthy(now);
        standing.answered(set(&[0, 1]), &set(&[0]), now);
        assert_eq!(standing.news(now + LEADERLESS / 2), None);
        standing.answered(set(&[0, 1]), &set(&[0]), now + LEADERLESS);
        assert!(reason(&mut standing, now + LEADERLESS).contains("partition(s) 1:"));
        standing.answered(set(&[0, 1]), &set(&[0, 1]), now + LEADERLESS);
        assert_eq!(standing.news(now + LEADERLESS), Some(Ok(())));
    }

    #[test]
    fn a_batch_that_waits_long_for_its_topics_identity_is_shown() {
        let now = Instant::now();
        let mut standing = healthy(now);
        standing.waits_for_vigil(now);
        standing.waits_for_vigil(now + UNPROVEN / 2);
        assert_eq!(standing.news(now + UNPROVEN / 2), None);
        assert!(reason(&mut standing, now + UNPROVEN).contains("topic's id"));
        standing.vigil_unneeded();
        assert_eq!(standing.news(now + UNPROVEN), Some(Ok(())));
    }

    #[test]
    fn one_unanswered_survey_is_no_outage_and_a_second_is() {
        let now = Instant::now();
        let mut standing = healthy(now);
        standing.unanswered("no".to_owned());
        assert_eq!(standing.news(now), None);
        standing.unanswered("no".to_owned());
        assert_eq!(reason(&mut standing, now), "no");
        standing.answered(set(&[0]), &set(&[0]), now);
        assert_eq!(standing.news(now), Some(Ok(())));
    }
}
