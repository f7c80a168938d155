use super::*;

#[test]
fn a_minimum_of_in_sync_replicas_that_does_not_fit_is_named() {
    let said = |minimum, replication, now| {
        in_sync("events", minimum, Found { partitions: 1, replication, in_sync: now }).unwrap_or_default()
    };
    assert_eq!([said(1, 1, 1), said(2, 3, 3), said(2, 3, 2)], ["", "", ""]);
    assert!(said(2, 1, 1).contains("brokers before 3.7 take no event"));
    assert!(said(1, 3, 3).contains("set it to 2"));
    assert!(said(2, 2, 1).contains("1 of its 2 replicas in sync"));
}
