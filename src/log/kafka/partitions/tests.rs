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

#[test]
fn librdkafka_is_not_to_blame_for_what_it_does_not_begin_while_brokers_are_away() {
    let now = Instant::now();
    let later = now + REFUSED;
    assert_eq!(refused_since(None, true, now), Some(now));
    assert_eq!(refused_since(Some(now), true, later), Some(now));
    assert_eq!(refused_since(Some(now), false, later), None);
    assert_eq!(refused_since(None, true, later), Some(later), "it has as long again when they are back");
}
