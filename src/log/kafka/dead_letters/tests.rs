use super::*;

fn span(first: i64, last: i64, goes: bool) -> (Span, bool) {
    (Span { partition: 0, first, last, closed: goes, whole: true }, goes)
}

fn front(spans: &[(Span, bool)]) -> Option<i64> {
    fronts(spans).get(&0).copied()
}

#[test]
fn the_front_moves_over_closed_letters_up_to_the_first_open_one() {
    assert_eq!(front(&[span(0, 2, true), span(1, 3, true), span(5, 5, false)]), Some(5));
    assert_eq!(front(&[span(0, 2, true), span(1, 3, true)]), Some(4));
    assert_eq!(front(&[span(0, 0, false), span(1, 3, true)]), None);
    assert_eq!(front(&[]), None);
}

#[test]
fn the_front_never_stands_between_a_letter_and_its_mark() {
    // The mark of the first stands behind an open letter, and the second's behind the first.
    assert_eq!(front(&[span(1, 6, true), span(0, 2, true), span(4, 4, false)]), None);
    assert_eq!(front(&[span(0, 1, true), span(2, 6, true), span(4, 4, false)]), Some(2));
}

#[test]
fn a_letters_record_key_is_read_by_its_name_of_now_and_of_before() {
    let key = |facts: &[(&str, Option<&'static [u8]>)]| records::record_key(facts);
    assert_eq!(key(&[("ingestd-reason", Some(b"a")), ("ingestd-record-key", Some(b"k"))]), Some(&b"k"[..]));
    assert_eq!(key(&[("ingestd-reason", Some(b"a")), ("ingestd-key", Some(b"k"))]), Some(&b"k"[..]));
    assert_eq!(key(&[("ingestd-reason", Some(b"a"))]), None);
}
