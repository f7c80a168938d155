//! What becomes of the sealed segments on disk when a partition is assigned: a pure decision.
//!
//! Invariant: a segment is removed only when the archive has its records or the log still does; every other one that
//! cannot go into the chain is set aside in `orphaned/`, with the reason.

use super::segment::SealedSegment;
use crate::{log::Assignment, position::Offset};

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// To be uploaded, in this order: they chain from the archive's end.
    pub keep: Vec<SealedSegment>,
    /// The archive or the log has their records.
    pub remove: Vec<SealedSegment>,
    /// Some of these only the log has: it must have been asked just now.
    pub trusts_log: bool,
    pub orphan: Vec<(SealedSegment, String)>,
    /// The chain offset of the next segment: the end of the archive and of what is kept.
    pub chain_offset: Offset,
    pub fetch: Fetch,
}

/// Where reading begins.
#[derive(Debug, Default, PartialEq, Eq)]
pub enum Fetch {
    /// At the chain offset.
    #[default]
    FromChain,
    /// The log begins only here: records between the chain offset and it are gone.
    Gap { log_start: Offset },
    /// The chain offset lies beyond the log's end: this is another log than the archived one.
    BeyondLog,
}

/// `segments` in the order of their positions, where the chain of `archive` (its URL) is known to reach `chain_end`.
pub fn plan(segments: Vec<SealedSegment>, chain_end: Offset, assignment: &Assignment, archive: &str) -> Plan {
    let Assignment { log_start, log_end, identity, .. } = assignment;
    let mut plan = Plan { chain_offset: chain_end, ..Plan::default() };
    for segment in segments {
        let header = &segment.header;
        if header.identity.contradicts(&identity.0) {
            let why = format!("it is of another topic of the same name (identity {})", header.identity);
            plan.orphan.push((segment, why));
        } else if header.archive != archive {
            let why = format!("it was made for the archive {}", header.archive);
            plan.orphan.push((segment, why));
        } else if header.chain_offset == plan.chain_offset {
            plan.chain_offset = header.end;
            plan.keep.push(segment);
        } else if header.end <= chain_end {
            plan.remove.push(segment);
        } else if header.chain_offset >= *log_start && header.end <= *log_end {
            plan.trusts_log = true;
            plan.remove.push(segment);
        } else {
            let why = format!(
                "it holds offsets {} to {}, which neither follow the archive's end {} nor stand in the log any more",
                header.chain_offset, header.end, chain_end
            );
            plan.orphan.push((segment, why));
        }
    }
    plan.fetch = if plan.chain_offset < *log_start {
        Fetch::Gap { log_start: *log_start }
    } else if plan.chain_offset > *log_end {
        Fetch::BeyondLog
    } else {
        Fetch::FromChain
    };
    plan
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        archive::spool::segment::sealed_for_tests as segment,
        position::{Partition, TopicIdentity},
    };

    fn plan_for(segments: Vec<SealedSegment>, chain_end: u64, log_start: u64) -> Plan {
        let assignment = Assignment {
            partition: Partition(0),
            committed: None,
            log_start: Offset(log_start),
            log_end: Offset(100),
            identity: TopicIdentity("id".into()),
            holds_all: true,
        };
        plan(segments, Offset(chain_end), &assignment, "file:")
    }

    #[test]
    fn segments_that_chain_from_the_archives_end_are_kept_and_reading_begins_behind_them() {
        let plan = plan_for(vec![segment(0, 10), segment(10, 20), segment(20, 30)], 10, 0);
        assert_eq!(plan.keep, [segment(10, 20), segment(20, 30)]);
        assert_eq!(plan.remove, [segment(0, 10)]);
        assert_eq!((plan.chain_offset, plan.fetch), (Offset(30), Fetch::FromChain));
    }

    #[test]
    fn a_segment_behind_a_break_is_removed_while_the_log_has_its_records_and_set_aside_otherwise() {
        let plan = plan_for(vec![segment(20, 30)], 10, 0);
        assert_eq!((plan.remove, plan.trusts_log), (vec![segment(20, 30)], true));
        assert!(!plan_for(vec![segment(0, 10)], 10, 0).trusts_log);
        let plan = plan_for(vec![segment(20, 30)], 10, 25);
        assert_eq!(plan.orphan[0].0, segment(20, 30));
        assert_eq!(plan.fetch, Fetch::Gap { log_start: Offset(25) });
    }

    #[test]
    fn a_segment_that_reaches_beyond_the_logs_end_is_not_in_the_log() {
        assert_eq!(plan_for(vec![segment(95, 110)], 10, 0).orphan[0].0, segment(95, 110));
    }

    #[test]
    fn what_the_disk_still_holds_shortens_the_gap() {
        let plan = plan_for(vec![segment(10, 20)], 10, 25);
        assert_eq!(plan.keep, [segment(10, 20)]);
        assert_eq!((plan.chain_offset, plan.fetch), (Offset(20), Fetch::Gap { log_start: Offset(25) }));
    }

    #[test]
    fn segments_of_another_topic_or_archive_are_set_aside() {
        let mut other_topic = segment(10, 20);
        other_topic.header.identity = TopicIdentity("other".into());
        let mut other_archive = segment(10, 20);
        other_archive.header.archive = "s3://b".into();
        let plan = plan_for(vec![other_topic, other_archive], 10, 0);
        assert_eq!((plan.orphan.len(), plan.keep.len(), plan.chain_offset), (2, 0, Offset(10)));
    }

    #[test]
    fn a_chain_beyond_the_logs_end_is_another_log() {
        assert_eq!(plan_for(vec![], 101, 0).fetch, Fetch::BeyondLog);
        assert_eq!(plan_for(vec![], 100, 0).fetch, Fetch::FromChain);
    }
}
