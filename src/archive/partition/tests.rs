//! What the model tests do not tell by name.

use std::time::Duration;

use super::*;
use crate::archive::spool::segment::sealed_for_tests as segment;

struct Machine {
    partitions: Partitions,
    assignment: Assignment,
    epoch: Epoch,
    at: Instant,
}

const KEY: &str = "key";

impl Machine {
    /// Of one partition that is assigned, with a log of `[log_start, 100)`.
    fn assigned(log_start: u64) -> Self {
        let rules = Rules { topic_folder: "events".to_owned(), archive: "file:".to_owned(), sole_member_of: None };
        let assignment = Assignment {
            partition: Partition(0),
            committed: None,
            log_start: Offset(log_start),
            log_end: Offset(100),
            identity: TopicIdentity("id".into()),
            holds_all: true,
        };
        let partitions = Partitions::new(rules);
        let mut machine =
            Self { partitions, assignment: assignment.clone(), epoch: Epoch::fresh(), at: Instant::now() };
        machine.on(Input::Assigned { epoch: machine.epoch, assignment });
        machine
    }

    /// And whose chain ends at `end`.
    fn open_at(end: u64) -> Self {
        let mut machine = Self::assigned(0);
        machine.about(News::Scanned(Vec::new()));
        machine.opened(end);
        machine
    }

    fn about(&mut self, news: News) -> Vec<Effect> {
        self.on(Input::About { partition: Partition(0), epoch: self.epoch, news })
    }

    fn on(&mut self, input: Input) -> Vec<Effect> {
        self.partitions.on(input, Moment { at: self.at, on_gap: OnGap::Halt })
    }

    fn opened(&mut self, end: u64) -> Vec<Effect> {
        self.about(News::Opened(Ok(Offset(end))))
    }

    /// What is put next after these were sealed.
    fn sealed(&mut self, segments: &[(u64, u64)]) -> Vec<(u64, u64)> {
        let sealed = segments.iter().map(|(x, end)| News::Sealed(segment(*x, *end)));
        let effects: Vec<Effect> = sealed.flat_map(|news| self.about(news)).collect();
        puts(&effects)
    }

    fn answered(&mut self, answer: PutAnswer) -> Vec<Effect> {
        self.about(News::Put { key: KEY.to_owned(), answer })
    }
}

fn puts(effects: &[Effect]) -> Vec<(u64, u64)> {
    let put = |effect: &Effect| match effect {
        Effect::Transfer(Transfer::Put { segment, .. }) => Some((segment.chain_offset().0, segment.end().0)),
        _ => None,
    };
    effects.iter().filter_map(put).collect()
}

fn confirmed(effects: &[Effect]) -> Option<Offset> {
    effects.iter().find_map(|effect| match effect {
        Effect::Confirm(Confirm { position, .. }) => Some(*position),
        _ => None,
    })
}

fn removed(effects: &[Effect]) -> usize {
    effects.iter().filter(|effect| matches!(effect, Effect::Segments(SegmentCommand::Remove(_)))).count()
}

fn exists(end: u64) -> PutAnswer {
    PutAnswer::Exists { end: Offset(end) }
}

#[test]
fn nothing_is_put_before_the_chains_end_is_known() {
    let mut machine = Machine::assigned(0);
    assert!(machine.sealed(&[(0, 10)]).is_empty());
    assert!(machine.partitions.is_idle());
}

#[test]
fn segments_are_put_strictly_in_order_one_at_a_time() {
    let mut machine = Machine::open_at(0);
    assert_eq!(machine.sealed(&[(0, 10), (10, 20), (25, 30)]), [(0, 10)]);
    let effects = machine.answered(PutAnswer::Created);
    assert_eq!((puts(&effects), confirmed(&effects), removed(&effects)), (vec![(10, 20)], Some(Offset(10)), 1));
    assert!(puts(&machine.answered(PutAnswer::Created)).is_empty(), "the next one does not chain");
    assert!(machine.answered(PutAnswer::Created).is_empty(), "no PUT is under way");
}

#[test]
fn a_lost_reply_is_recognised_by_the_objects_end() {
    let mut machine = Machine::open_at(0);
    machine.sealed(&[(0, 10), (10, 20)]);
    let effects = machine.answered(exists(10));
    assert_eq!((puts(&effects), confirmed(&effects), removed(&effects)), (vec![(10, 20)], Some(Offset(10)), 1));
}

#[test]
fn another_writer_is_followed_and_what_does_not_chain_from_there_waits_for_the_next_assignment() {
    let mut machine = Machine::open_at(0);
    machine.sealed(&[(0, 10), (10, 20)]);
    let effects = machine.answered(exists(7));
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Reassign(_))));
    assert_eq!((puts(&effects), confirmed(&effects), removed(&effects)), (vec![], Some(Offset(7)), 0));
    assert!(machine.sealed(&[(20, 30)]).is_empty());
    let mut machine = Machine::open_at(0);
    machine.sealed(&[(0, 10), (10, 20), (20, 30)]);
    let effects = machine.answered(exists(20));
    assert_eq!((puts(&effects), confirmed(&effects), removed(&effects)), (vec![(20, 30)], Some(Offset(20)), 2));
    assert!(!effects.iter().any(|effect| matches!(effect, Effect::Reassign(_))));
}

#[test]
fn a_conflict_halts_the_chain() {
    let mut machine = Machine::open_at(0);
    machine.sealed(&[(0, 10)]);
    let effects = machine.answered(PutAnswer::Conflict { reason: "differ".into() });
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Halt(_))));
    assert!(machine.sealed(&[(0, 10)]).is_empty());
    assert_eq!(machine.partitions.sealed_segments(), 0, "what it keeps holds no other partition up");
}

#[test]
fn sealed_segments_of_a_revoked_partition_go_on_until_its_chain_stops() {
    for answer in [PutAnswer::Created, exists(7), PutAnswer::Damaged { why: "gone".into() }] {
        let mut machine = Machine::open_at(0);
        machine.sealed(&[(0, 10), (10, 20)]);
        machine.about(News::Unassigned);
        assert_eq!(machine.partitions.sealed_segments(), 2);
        let effects = machine.answered(answer.clone());
        assert_eq!(confirmed(&effects), None);
        let goes_on = answer == PutAnswer::Created;
        assert_eq!(puts(&effects), if goes_on { vec![(10, 20)] } else { vec![] });
        assert_eq!(machine.partitions.sealed_segments(), usize::from(goes_on));
    }
    // One whose chain is not open has nothing to wait for.
    let mut machine = Machine::assigned(0);
    machine.sealed(&[(0, 10)]);
    machine.about(News::Unassigned);
    assert_eq!(machine.partitions.sealed_segments(), 0);
}

#[test]
fn what_a_revoked_partitions_chain_does_not_go_on_with_holds_nothing_up() {
    for answer in [exists(7), PutAnswer::Damaged { why: "gone".into() }] {
        let mut machine = Machine::open_at(0);
        machine.sealed(&[(0, 10), (10, 20)]);
        machine.answered(answer);
        assert!(machine.partitions.sealed_segments() > 0, "they wait for the next assignment");
        machine.about(News::Unassigned);
        assert_eq!(machine.partitions.sealed_segments(), 0, "which is another machine's");
    }
    // Nor when a later segment is missing.
    let mut machine = Machine::open_at(0);
    machine.sealed(&[(0, 10), (15, 20)]);
    machine.about(News::Unassigned);
    machine.answered(PutAnswer::Created);
    assert_eq!(machine.partitions.sealed_segments(), 0);
}

#[test]
fn the_log_is_asked_once_more_in_each_assignment_that_trusts_it() {
    // The log holds [30, 100), and the chain ends at 5: [40, 50) on disk stands behind a break, and in the log.
    let assigned = |machine: &mut Machine| {
        machine.epoch = Epoch::fresh();
        let assignment = machine.assignment.clone();
        machine.on(Input::Assigned { epoch: machine.epoch, assignment });
        let segments = vec![segment(40, 50)];
        machine.about(News::Scanned(segments));
        let effects = machine.opened(5);
        (effects.iter().any(|effect| matches!(effect, Effect::Reassign(_))), removed(&effects))
    };
    let mut machine = Machine::assigned(30);
    assert_eq!(assigned(&mut machine), (true, 0), "it is asked again");
    assert_eq!(assigned(&mut machine), (false, 1), "and believed");
    machine.about(News::Unassigned);
    assert_eq!(assigned(&mut machine), (true, 0), "much later its old answer is worth nothing");
    machine.about(News::Unassigned);
    assert_eq!(assigned(&mut machine), (true, 0), "nor a question that was never answered");
}

#[test]
fn the_head_is_rewritten_once_in_a_while_by_a_tick_and_at_the_stop() {
    let head = |effects: &[Effect]| {
        effects.iter().find_map(|effect| match effect {
            Effect::Transfer(Transfer::WriteHead { head, .. }) => Some((head.end, head.key.clone())),
            _ => None,
        })
    };
    let mut machine = Machine::open_at(0);
    machine.sealed(&[(0, 10), (10, 20), (20, 30)]);
    assert_eq!(head(&machine.answered(PutAnswer::Created)), None, "too soon");
    machine.at += Duration::from_secs(5);
    assert_eq!(head(&machine.answered(PutAnswer::Created)), Some((Offset(20), Some(KEY.to_owned()))));
    machine.answered(PutAnswer::Created);
    assert_eq!(head(&machine.on(Input::Tick)), None);
    let mut heads = machine.partitions.last_heads(machine.at);
    assert_eq!(heads.pop().map(|(_, head)| head.end), Some(Offset(30)));
    assert!(machine.partitions.last_heads(machine.at).is_empty(), "it says so already");
    machine.sealed(&[(30, 40)]);
    machine.answered(PutAnswer::Created);
    machine.at += Duration::from_secs(5);
    assert_eq!(head(&machine.on(Input::Tick)), Some((Offset(40), Some(KEY.to_owned()))));
}

#[test]
fn an_uploader_that_was_started_anew_puts_nothing_before_the_next_assignment() {
    let mut machine = Machine::open_at(0);
    machine.sealed(&[(0, 10)]);
    machine.on(Input::UploaderStarted);
    assert!(machine.answered(PutAnswer::Created).is_empty());
    assert!(machine.opened(0).is_empty());
    assert!(machine.sealed(&[(10, 20)]).is_empty());
    assert!(machine.partitions.is_idle());
}
