use super::*;

#[test]
fn a_flood_of_lines_is_cut_and_its_size_is_said_afterwards() {
    let limit = Limit::new();
    let start = Instant::now();
    let passed = (0..100).filter(|_| limit.admit(start).is_some()).count();
    assert_eq!(passed, LINES as usize);
    assert_eq!(limit.admit(start + WINDOW), Some(100 - LINES));
}

#[test]
fn a_client_has_lost_its_way_when_new_ones_are_answered_for_longer_than_it_needs_to_find_out() {
    let start = Instant::now();
    let at = |seconds| start + Duration::from_secs(seconds);
    let mut lost = Reconnect::default();
    assert!(!lost.unanswered(at(0), || false), "the brokers are away for everybody");
    assert!(!lost.unanswered(at(1), || panic!("asked again at once")));
    assert!(!lost.unanswered(at(5), || true), "they are back; the client has its own time to find out");
    assert!(!lost.unanswered(at(7), || panic!("asked before that is over")));
    assert!(!lost.unanswered(at(10), || false), "they went again");
    assert!(!lost.unanswered(at(14), || true));
    assert!(lost.unanswered(at(18), || true));
    lost.answered();
    assert!(!lost.unanswered(at(19), || true), "an answer begins it all anew");
}

/// As consumers encode it, of these topics and their partitions.
fn assignment(topics: &[(&str, &[i32])]) -> Vec<u8> {
    let mut bytes = [&1i16.to_be_bytes()[..], &(topics.len() as i32).to_be_bytes()].concat();
    for (topic, partitions) in topics {
        bytes.extend((topic.len() as i16).to_be_bytes());
        bytes.extend(topic.as_bytes());
        bytes.extend((partitions.len() as i32).to_be_bytes());
        bytes.extend(partitions.iter().flat_map(|partition| partition.to_be_bytes()));
    }
    // What the assignor adds: none.
    bytes.extend((-1i32).to_be_bytes());
    bytes
}

#[test]
fn the_partitions_of_a_topic_are_found_in_an_assignment() {
    let bytes = assignment(&[("other", &[7]), ("events", &[2, 0]), ("events.dlq", &[])]);
    assert_eq!(assigned(&bytes, "events"), Some(vec![Partition(2), Partition(0)]));
    assert_eq!(assigned(&bytes, "none"), Some(vec![]));
    assert_eq!(assigned(&[], "events"), Some(vec![]));
    for length in 1..bytes.len() - 4 {
        assert_eq!(assigned(&bytes[..length], "events"), None, "cut off at {length}");
    }
    assert_eq!(assigned(&[0, 1, 0xFF, 0xFF, 0xFF, 0xFF], "events"), Some(vec![]), "a count below 0");
    assert_eq!(assigned(&[0, 1, 0, 0, 0, 1, 0xFF, 0xFF], "events"), None, "a length below 0");
    assert_eq!(assigned(&[0, 1, 0x7F, 0xFF, 0xFF, 0xFF], "events"), None, "more than there is");
}
