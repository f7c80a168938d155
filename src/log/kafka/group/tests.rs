use super::*;

#[test]
fn positions_never_go_backwards_and_only_held_partitions_have_one() {
    let mut commits = Commits::default();
    commits.hold(Partition(0));
    for (partition, position) in [(0, 5), (0, 3), (1, 7)] {
        commits.confirm(&[(Partition(partition), Offset(position))]);
    }
    assert_eq!(commits.take_due(|_| true), [(Partition(0), Offset(5))]);
    assert_eq!(commits.take_due(|_| true), []);
}

#[test]
fn what_the_group_has_already_is_not_due() {
    let mut commits = Commits::default();
    commits.hold(Partition(0));
    commits.stands(Partition(0), Offset(5));
    commits.confirm(&[(Partition(0), Offset(5))]);
    assert!(!commits.has_due());
    commits.confirm(&[(Partition(0), Offset(6))]);
    assert!(commits.has_due());
}

#[test]
fn a_commit_that_failed_is_due_again() {
    let mut commits = Commits::default();
    commits.hold(Partition(0));
    commits.confirm(&[(Partition(0), Offset(5))]);
    let sent = commits.take_due(|_| true);
    assert!(!commits.has_due());
    commits.failed(&sent);
    assert!(commits.has_due());
    assert_eq!(commits.take_due(|_| true), sent);
}

#[test]
fn a_commit_is_tried_until_nothing_is_due_and_then_not_again() {
    let ((due, woken), (last, asked)) = (bounded(1), bounded(1));
    due.send(()).unwrap();
    let mut tries = 0;
    let deadline = Instant::now();
    let ended = keep(&woken, &asked, || {
        tries += 1;
        if tries == 2 {
            last.send(deadline).unwrap();
        }
        tries == 2
    });
    assert_eq!((ended, tries), (Some(deadline), 2));
}

#[test]
fn the_last_commit_is_made_although_the_source_has_gone_since() {
    // Of two channels that are ready either may be looked at first.
    for _ in 0..100 {
        let ((due, woken), (last, asked)) = (bounded(1), bounded(1));
        let deadline = Instant::now();
        last.send(deadline).unwrap();
        drop((due, last));
        assert_eq!(keep(&woken, &asked, || true), Some(deadline));
    }
}

#[test]
fn nobody_waits_for_a_source_that_is_gone() {
    let ((due, woken), (last, asked)) = (bounded(1), bounded(1));
    due.send(()).unwrap();
    drop((due, last));
    assert_eq!(keep(&woken, &asked, || panic!("nothing is to be committed")), None);
}

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

const PATIENCE: Duration = Duration::from_secs(20);

/// Holds all of four partitions, and has said so.
fn sole(now: Instant) -> Ownership {
    let mut share = Ownership::new(PATIENCE);
    share.counted(4, 4, now);
    share.tell(4, now);
    assert_eq!(share.told, Some(true));
    share
}

#[test]
fn partitions_that_were_added_are_not_taken_for_another_workers() {
    let now = Instant::now();
    let mut share = sole(now);
    share.counted(6, 4, now);
    assert!(!share.take_changed(4, now));
    // The group hands them out.
    share.counted(6, 4, now + PATIENCE / 2);
    assert!(!share.take_changed(6, now + PATIENCE / 2));
    assert!(!share.take_changed(6, now + PATIENCE * 2));
}

#[test]
fn they_are_when_they_stay_away() {
    let now = Instant::now();
    let mut share = sole(now);
    share.counted(6, 4, now);
    share.counted(6, 4, now + PATIENCE);
    assert!(share.take_changed(4, now + PATIENCE) && !share.holds_all(4, now + PATIENCE));
}

#[test]
fn another_worker_is_noticed_at_once_also_while_partitions_are_added() {
    let now = Instant::now();
    let mut share = sole(now);
    assert!(share.take_changed(2, now));
    let mut share = sole(now);
    share.counted(6, 4, now);
    assert!(share.take_changed(3, now));
}

#[test]
fn one_that_held_a_part_never_holds_all_of_a_topic_that_grows() {
    let now = Instant::now();
    let mut share = Ownership::new(PATIENCE);
    share.counted(4, 2, now);
    share.counted(8, 2, now);
    assert!(!share.holds_all(4, now));
}

const COUNT: usize = 4;

fn set(partitions: &[i32]) -> BTreeSet<Partition> {
    partitions.iter().copied().map(Partition).collect()
}

/// What is found at `now` where members have `owned`, by one that has partition 3.
fn found(group: &mut Unowned, now: Instant, owned: Option<&[i32]>) -> BTreeSet<Partition> {
    group.found(now, owned.map(set).as_ref(), &set(&[3]), COUNT)
}

#[test]
fn what_nobody_has_twice_one_after_the_other_is_lasting() {
    let now = Instant::now();
    let mut group = Unowned::new(now);
    assert!(found(&mut group, now, Some(&[2, 3])).is_empty());
    assert!(found(&mut group, now, None).is_empty(), "it divides them now");
    assert!(found(&mut group, now, Some(&[2, 3])).is_empty());
    assert!(found(&mut group, now, Some(&[0, 1, 3])).is_empty(), "others");
    assert_eq!(found(&mut group, now, Some(&[0, 3])), set(&[2]));
    assert!(found(&mut group, now, Some(&[0, 1, 3])).is_empty(), "once; then it has its time again");
    assert!(found(&mut group, now, Some(&[0, 1])).is_empty(), "an answer that does not know of this member");
    assert!(found(&mut group, now, Some(&[0, 1, 3])).is_empty());
    assert!(!group.is_due(now, COUNT, COUNT), "it had the whole topic in between");
    assert!(found(&mut group, now, Some(&[0, 1, 3])).is_empty());
    assert_eq!(found(&mut group, now, Some(&[0, 1, 3])), set(&[2]));
}

#[test]
fn the_group_is_asked_less_often_when_its_share_has_not_changed_for_a_while_and_when_it_does_not_help() {
    let start = Instant::now();
    let asked = |group: &mut Unowned, share: usize, seconds: std::ops::Range<u64>| {
        seconds.filter(|second| group.is_due(start + Duration::from_secs(*second), share, COUNT)).count()
    };
    let mut group = Unowned::new(start);
    let often = asked(&mut group, 1, 0..60);
    assert!((5..=8).contains(&often), "{often}");
    let seldom = asked(&mut group, 1, 200..800);
    assert!((7..=14).contains(&seldom), "{seldom}");
    let often = asked(&mut group, 2, 1000..1060);
    assert!((5..=8).contains(&often), "{often} after its share has changed");

    let later = start + Duration::from_secs(1060);
    for _ in 0..10 {
        let _ = found(&mut group, later, Some(&[0, 1, 3]));
    }
    assert_eq!(asked(&mut group, 2, 1060..1120), 0, "five members changed nothing");
    assert!(!group.is_due(later, COUNT, COUNT), "it had the whole topic in between");
    let often = asked(&mut group, 2, 1060..1120);
    assert!((5..=8).contains(&often), "{often}");
    // One that seems to have no reader is looked at again soon.
    let _ = asked(&mut group, 2, 1120..1300);
    let _ = found(&mut group, start + Duration::from_secs(1300), Some(&[0, 1, 3]));
    let soon = asked(&mut group, 2, 1300..1310);
    assert!(soon >= 1, "{soon}");
}
