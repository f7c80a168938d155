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
fn a_client_is_stranded_when_new_ones_are_answered_for_longer_than_it_needs_to_find_out() {
    let start = Instant::now();
    let at = |seconds| start + Duration::from_secs(seconds);
    let mut stranded = Reconnect::default();
    assert!(!stranded.unanswered(at(0), || false), "the brokers are away for everybody");
    assert!(!stranded.unanswered(at(1), || panic!("asked again at once")));
    assert!(!stranded.unanswered(at(5), || true), "they are back; the client has its own time to find out");
    assert!(!stranded.unanswered(at(7), || panic!("asked before that is over")));
    assert!(!stranded.unanswered(at(10), || false), "they went again");
    assert!(!stranded.unanswered(at(14), || true));
    assert!(stranded.unanswered(at(18), || true));
    stranded.answered();
    assert!(!stranded.unanswered(at(19), || true), "an answer begins it all anew");
}
