use prometheus_client::metrics::gauge::Gauge;

use super::*;
use crate::log::ByteBudget;

fn push(delivery: &mut Delivery, offset: u64) {
    delivery.push(Offset(offset), Timestamp(0), None, Some(b"{}"), []);
}

fn cut(delivery: &mut Delivery) -> (u64, u64, Vec<u64>) {
    let batch = delivery.cut(Partition(0), ByteBudget::new(1, Gauge::default()).try_take(1).unwrap());
    (batch.from.0, batch.to.0, batch.records.iter().map(|record| record.offset.0).collect())
}

#[test]
fn batches_are_contiguous_over_offsets_without_records_and_records_that_come_twice() {
    let mut delivery = Delivery::new(Epoch::fresh(), Offset(5));
    for offset in [3, 4, 7, 7, 8] {
        push(&mut delivery, offset);
    }
    assert_eq!(cut(&mut delivery), (5, 9, vec![7, 8]));
    for offset in [8, 12] {
        push(&mut delivery, offset);
    }
    assert_eq!(cut(&mut delivery), (9, 13, vec![12]));
}

#[test]
fn a_batch_is_due_when_it_is_full_or_has_waited() {
    let limits = BatchConfig { max_records: 2, ..BatchConfig::default() };
    let mut delivery = Delivery::new(Epoch::fresh(), Offset(0));
    let now = Instant::now();
    assert_eq!(delivery.due_in(&limits, now), None);
    push(&mut delivery, 0);
    assert!(delivery.due_in(&limits, now).unwrap() > Duration::ZERO);
    assert_eq!(delivery.due_in(&limits, now + limits.max_wait + Duration::from_secs(1)), Some(Duration::ZERO));
    push(&mut delivery, 1);
    assert_eq!(delivery.due_in(&limits, now), Some(Duration::ZERO));
}

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
