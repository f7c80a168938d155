//! What speaks against a source's work at present.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use rdkafka::types::RDKafkaErrorCode as Code;

use crate::{
    log::kafka::offsets::LogRange,
    position::{Offset, Partition},
};

/// The number of unanswered lookups after which the brokers count as away: one alone may be a leader's election.
const SILENT_LOOKUPS: u32 = 2;
/// A partition without an answer for this long is shown: an election takes seconds.
const LEADERLESS: Duration = Duration::from_secs(30);
/// A batch that cannot be read is fetched again many times within this.
const UNREADABLE: Duration = Duration::from_secs(30);

/// librdkafka reports such a batch as it does a damaged one.
const TOO_LARGE: &str = "It may be larger, once decompressed, than the setting receive.message.max.bytes (100000000 \
                         unless set): raise that first, in queue.kafka.properties, to several times the largest batch (up \
                         to 1000000000; so much memory more may be needed), and restart. Otherwise";

/// A batch that waits for the topic's identity for this long is shown: it is asked for within milliseconds.
const UNPROVEN: Duration = Duration::from_secs(10);

/// A transaction that is open for this long is shown: those of this daemon are given up before.
const OPEN: Duration = Duration::from_secs(15);

/// What speaks against a source's work at present: one outcome for operators, out of what librdkafka and the offset reader
/// say.
///
/// The brokers answering is not enough. librdkafka says once that a right is missing, and then is silent; a batch that
/// cannot be read is fetched again and again, and looks like a partition without records; a partition without a leader
/// is simply not mentioned.
#[derive(Debug, Default)]
pub(super) struct SourceStatus {
    /// The brokers have answered at all.
    heard: bool,
    silent_lookups: u32,
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
    /// Where the first open transaction of a partition begins, how many offsets stand from there on, and since when that is
    /// so.
    open: BTreeMap<Partition, (Offset, u64, Instant)>,
    /// What was told last.
    told: Option<Result<(), String>>,
}

impl SourceStatus {
    /// The brokers answered, about these of our partitions.
    pub fn answered(&mut self, held: BTreeSet<Partition>, about: &BTreeSet<Partition>, now: Instant) {
        self.heard = true;
        self.silent_lookups = 0;
        self.unreachable = None;
        self.silent.retain(|partition, _| held.contains(partition) && !about.contains(partition));
        for partition in held.difference(about) {
            self.silent.entry(*partition).or_insert(now);
        }
    }

    /// Whether the brokers answer, and about this partition, as far as is known.
    pub fn answers(&self, partition: Partition) -> bool {
        let all = self.heard && self.unreachable.is_none() && self.silent_lookups == 0;
        all && !self.silent.contains_key(&partition)
    }

    /// The logs' ends, at each lookup.
    pub fn ends(&mut self, ranges: &[(Partition, LogRange)], now: Instant) {
        for (partition, log) in ranges {
            let since = self.open.remove(partition).filter(|(begins, ..)| *begins == log.end);
            if log.high > log.end {
                let since = since.map_or(now, |(_, _, since)| since);
                self.open.insert(*partition, (log.end, log.high.since(log.end), since));
            }
        }
        self.open.retain(|partition, _| ranges.iter().any(|(answered, _)| answered == partition));
    }

    /// A lookup was not answered.
    pub fn unanswered(&mut self, reason: String) {
        self.silent_lookups += 1;
        if self.silent_lookups >= SILENT_LOOKUPS {
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

    /// A batch waits for an answer of the topic watch.
    pub fn waits_for_watch(&mut self, now: Instant) {
        self.unproven.get_or_insert(now);
    }

    /// The topic watch has answered, or nothing waits for it.
    pub fn watch_unneeded(&mut self) {
        self.unproven = None;
    }

    /// Takes an error of the consumer's; whether it is one that is shown, or passing.
    pub fn apply(&mut self, code: Code, topic: &str, now: Instant) -> bool {
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
                    "topic {topic}: a batch of records cannot be read ({code}); its partition stands still. {} it is \
                     damaged, or of a format or compression that this release does not know: use a release that knows \
                     it; if there is none, remove the log up to the batch's end (kafka-delete-records), which loses all \
                     records before it that were not archived, and set archive.on_gap = \"skip\"",
                    if code == Code::BadCompression { TOO_LARGE } else { "As a rule" }
                );
                self.unreadable = Some((reason, now));
            }
            _ => return false,
        }
        true
    }

    /// The outcome, where it differs from the one that was told last. Nothing before the brokers' first answer.
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
                    "no broker tells the end of the log for partition(s) {}: they have no leader, it is away, or too few \
                     replicas are in sync; the others go on. See to the brokers that hold them",
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
        let open = || {
            let long = self.open.iter().filter(|(_, (_, _, since))| now.duration_since(*since) >= OPEN);
            let names: Vec<String> = long
                .map(|(partition, (begins, offsets, _))| {
                    format!("partition {partition} from offset {begins} on ({offsets} offsets wait)")
                })
                .collect();
            (!names.is_empty()).then(|| {
                format!(
                    "a transaction of another program is open, and no record behind its beginning can be read: {}. It \
                     ends with that program, or at its transaction.timeout.ms; to end it now: kafka-transactions abort \
                     --topic TOPIC --partition PARTITION --start-offset OFFSET",
                    names.join(", ")
                )
            })
        };
        let unreadable = self.unreadable.as_ref().map(|(reason, _)| reason);
        self.unreachable
            .as_ref()
            .or(self.refused.as_ref())
            .or(unreadable)
            .cloned()
            .or_else(unproven)
            .or_else(silent)
            .or_else(open)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(partitions: &[i32]) -> BTreeSet<Partition> {
        partitions.iter().copied().map(Partition).collect()
    }

    /// After a first lookup that was answered for all.
    fn healthy(now: Instant) -> SourceStatus {
        let mut status = SourceStatus::default();
        status.answered(set(&[0, 1]), &set(&[0, 1]), now);
        assert_eq!(status.news(now), Some(Ok(())));
        status
    }

    fn reason(status: &mut SourceStatus, now: Instant) -> String {
        status.news(now).expect("news").expect_err("a complaint")
    }

    #[test]
    fn a_missing_right_stays_shown_until_an_assignment_or_a_record() {
        let now = Instant::now();
        let mut status = healthy(now);
        for code in [Code::GroupAuthorizationFailed, Code::TopicAuthorizationFailed] {
            assert!(status.apply(code, "events", now));
            assert!(reason(&mut status, now).contains("right"));
            status.answered(set(&[0, 1]), &set(&[0, 1]), now);
            assert_eq!(status.news(now), None, "an answer of the brokers says nothing about rights");
            status.progressed();
            assert_eq!(status.news(now), Some(Ok(())));
        }
    }

    #[test]
    fn a_batch_that_cannot_be_read_is_shown_for_as_long_as_it_is_fetched() {
        let now = Instant::now();
        let mut status = healthy(now);
        for code in [Code::BadMessage, Code::BadCompression, Code::NotImplemented] {
            assert!(status.apply(code, "events", now));
        }
        assert!(reason(&mut status, now).contains("cannot be read"));
        // Another partition goes on.
        status.progressed();
        assert_eq!(status.news(now + UNREADABLE / 2), None);
        assert_eq!(status.news(now + UNREADABLE), Some(Ok(())));
    }

    #[test]
    fn a_partition_that_nobody_answers_for_is_named_when_it_lasts() {
        let now = Instant::now();
        let mut status = healthy(now);
        status.answered(set(&[0, 1]), &set(&[0]), now);
        assert_eq!(status.news(now + LEADERLESS / 2), None);
        status.answered(set(&[0, 1]), &set(&[0]), now + LEADERLESS);
        assert!(reason(&mut status, now + LEADERLESS).contains("partition(s) 1:"));
        status.answered(set(&[0, 1]), &set(&[0, 1]), now + LEADERLESS);
        assert_eq!(status.news(now + LEADERLESS), Some(Ok(())));
    }

    #[test]
    fn a_transaction_that_stays_open_is_named_with_its_first_offset() {
        let now = Instant::now();
        let mut status = healthy(now);
        let ends = |end, high| [(Partition(1), LogRange { start: Offset(0), end: Offset(end), high: Offset(high) })];
        status.ends(&ends(5, 9), now);
        status.ends(&ends(7, 9), now + OPEN / 2);
        assert_eq!(status.news(now + OPEN), None, "another one each time");
        status.ends(&ends(7, 207), now + OPEN);
        let reason = reason(&mut status, now + OPEN * 2);
        assert!(reason.contains("partition 1 from offset 7 on (200 offsets wait)"), "{reason}");
        status.ends(&ends(208, 208), now + OPEN * 2);
        assert_eq!(status.news(now + OPEN * 2), Some(Ok(())));
    }

    #[test]
    fn a_batch_that_decompresses_to_too_much_is_told_with_the_setting_first() {
        let now = Instant::now();
        let mut status = healthy(now);
        assert!(status.apply(Code::BadCompression, "events", now));
        let reason = reason(&mut status, now);
        assert!(reason.find("receive.message.max.bytes") < reason.find("kafka-delete-records"), "{reason}");
    }

    #[test]
    fn a_batch_that_waits_long_for_its_topics_identity_is_shown() {
        let now = Instant::now();
        let mut status = healthy(now);
        status.waits_for_watch(now);
        status.waits_for_watch(now + UNPROVEN / 2);
        assert_eq!(status.news(now + UNPROVEN / 2), None);
        assert!(reason(&mut status, now + UNPROVEN).contains("topic's id"));
        status.watch_unneeded();
        assert_eq!(status.news(now + UNPROVEN), Some(Ok(())));
    }

    #[test]
    fn one_unanswered_lookup_is_no_outage_and_a_second_is() {
        let now = Instant::now();
        let mut status = healthy(now);
        status.unanswered("no".to_owned());
        assert_eq!(status.news(now), None);
        status.unanswered("no".to_owned());
        assert_eq!(reason(&mut status, now), "no");
        status.answered(set(&[0]), &set(&[0]), now);
        assert_eq!(status.news(now), Some(Ok(())));
    }

    #[test]
    fn brokers_answer_until_a_lookup_goes_unanswered_or_passes_over_a_partition() {
        let now = Instant::now();
        assert!(!SourceStatus::default().answers(Partition(0)));
        let mut status = healthy(now);
        assert!(status.answers(Partition(0)));
        status.unanswered("no".to_owned());
        assert!(!status.answers(Partition(0)));
        status.answered(set(&[0, 1]), &set(&[0]), now);
        assert!(status.answers(Partition(0)) && !status.answers(Partition(1)));
        status.disconnected("no".to_owned());
        assert!(!status.answers(Partition(0)));
    }
}
