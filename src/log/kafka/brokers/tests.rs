use super::*;

fn unwritable(partitions: &[usize]) -> Writability {
    let unwritable = partitions.iter().map(|partition| (*partition, "no leader".to_owned())).collect();
    Writability { partitions: 2, unwritable }
}

#[test]
fn one_partition_without_a_leader_closes_the_door_for_nobody_and_all_of_them_do() {
    let health = Health::default();
    let brokers = BrokerStatus::new("kafka:9092", health.clone(), None);
    assert!(health.gate.closed().is_some(), "closed until the brokers answer");
    brokers.sees(unwritable(&[1]));
    assert!(health.gate.closed().is_none() && health.outage(&[dependency::KAFKA_TOPIC]).is_some());
    brokers.acknowledged();
    assert!(brokers.unwritable().is_some(), "the other partition's acknowledgement");
    brokers.sees(unwritable(&[0, 1]));
    assert!(health.gate.closed().is_some_and(|(_, why)| why.contains("partition(s) 0, 1: no leader")));
    brokers.sees(unwritable(&[]));
    assert!(health.gate.closed().is_none() && health.outage(&[dependency::KAFKA_TOPIC]).is_none());
}

#[test]
fn a_buffer_takes_over_as_soon_as_one_partition_takes_nothing() {
    use crate::{log::buffer::switch::Rule, position::Offset};
    let switch =
        Arc::new(Switch::new(Rule::new(Offset(0), Offset(0)), prometheus_client::metrics::gauge::Gauge::default()));
    let brokers = BrokerStatus::new("kafka:9092", Health::default(), Some(switch.clone()));
    brokers.answered();
    assert!(switch.rule().kafka_up());
    brokers.sees(unwritable(&[1]));
    brokers.acknowledged();
    assert!(!switch.rule().kafka_up());
    brokers.sees(unwritable(&[]));
    assert!(switch.rule().kafka_up());
}

#[test]
fn while_our_time_is_refused_no_answer_of_the_brokers_opens_the_door() {
    let health = Health::default();
    let brokers = BrokerStatus::new("kafka:9092", health.clone(), None);
    brokers.answered();
    brokers.note("Connection refused");
    brokers.clock_is_wrong(Side::Ahead, "an hour ahead");
    brokers.acknowledged();
    brokers.answered();
    let (_, reason) = health.gate.closed().expect("it is closed");
    assert!(reason.contains("an hour ahead") && !reason.contains("Connection refused"), "{reason}");
    brokers.clock_is_right();
    brokers.answered();
    assert!(health.gate.closed().is_none());
}

#[test]
fn the_oldest_record_counts_until_it_is_answered() {
    let unanswered = Unanswered::new();
    let at = |millis| unanswered.epoch + Duration::from_millis(millis);
    assert_eq!(unanswered.oldest(at(50)), Duration::ZERO);
    let first = unanswered.hand(at(0));
    let second = unanswered.hand(at(1000));
    assert_eq!(unanswered.oldest(at(2000)), Duration::from_secs(2));
    drop(first);
    assert_eq!(unanswered.oldest(at(2000)), Duration::from_secs(1));
    drop(second);
    assert_eq!(unanswered.oldest(at(2000)), Duration::ZERO);
}

fn refuses(leader: i32, replicas: usize, in_sync: &[i32], minimum: usize, unreachable: &[i32]) -> Option<String> {
    let mut silent = Silent::default();
    silent.are_now(&unreachable.iter().copied().collect());
    Seen { leader, replicas, in_sync }.refuses(Some(minimum), &silent)
}

#[test]
fn a_follower_that_stays_in_sync_answers_its_leader_if_not_us() {
    let mut silent = Silent::default();
    silent.are_now(&[2].into());
    let follows = Seen { leader: 1, replicas: 2, in_sync: &[1, 2] };
    let leads = Seen { leader: 2, replicas: 2, in_sync: &[1, 2] };
    assert!(follows.refuses(Some(2), &silent).is_some());
    let before = Instant::now().checked_sub(Silent::DROPPED_BY_THEN).expect("the machine runs for longer");
    silent.brokers.insert(2, before);
    silent.are_now(&[2].into());
    assert_eq!(follows.refuses(Some(2), &silent), None);
    assert!(leads.refuses(Some(2), &silent).is_some(), "its own partitions take nothing from us");
    silent.are_now(&BTreeSet::new());
    silent.are_now(&[2].into());
    assert!(follows.refuses(Some(2), &silent).is_some(), "it was back in between");
}

#[test]
fn a_partition_takes_a_write_that_all_its_in_sync_replicas_can_acknowledge() {
    assert_eq!(refuses(1, 3, &[1, 2, 3], 2, &[]), None);
    assert_eq!(refuses(1, 3, &[1, 2], 2, &[3]), None, "one that is not in sync is not waited for");
    assert_eq!(refuses(1, 1, &[1], 2, &[]), None, "there are no more replicas");
    for (leader, in_sync, minimum, unreachable, why) in [
        (-1, [1, 2].as_slice(), 2, [].as_slice(), "no leader"),
        (1, &[1, 2], 2, &[1], "the leader, broker 1,"),
        (1, &[1], 2, &[], "1 of 3 replicas are in sync, and min.insync.replicas is 2"),
        (1, &[1, 2, 3], 2, &[3], "broker 3, one of the in-sync replicas,"),
    ] {
        let reason = refuses(leader, 3, in_sync, minimum, unreachable).expect(why);
        assert!(reason.starts_with(why), "{reason}");
    }
}

#[test]
fn reasons_are_named_with_their_partitions_and_another_partition_is_found() {
    let why = |partition: usize| (partition, if partition == 1 { "x" } else { "no leader" }.to_owned());
    let some = Writability { partitions: 4, unwritable: [0, 1, 3].map(why).into() };
    assert_eq!(some.words(), "partition(s) 0, 3: no leader; partition(s) 1: x");
    assert_eq!(some.any_writable(), Some(2));
    assert_eq!(Writability { partitions: 3, ..some }.any_writable(), None);
}
