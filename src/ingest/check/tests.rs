use super::*;
use crate::{
    config::{ByteSize, EventConfig},
    ingest::in_flight::InFlight,
};

fn checked(body: &str) -> Checked {
    let fields = EventFields::from(&EventConfig::default());
    let http = HttpConfig { max_event: ByteSize(64), ..HttpConfig::default() };
    let mut share = Reservation::new(&InFlight::default(), http.max_in_flight);
    let body = Bytes::copy_from_slice(body.as_bytes());
    check(body, Format::Json, None, &http, &fields, Timestamp(0).into(), &mut share).unwrap()
}

#[test]
fn values_and_keys_are_parts_of_the_body_unless_they_were_escaped() {
    let body = r#"[ {"type":"a","client_id":"plain"}, {"type":"b","client_id":"q\"\n","event_id":"é"} ]"#;
    let checked = checked(body);
    let [plain, escaped] = checked.records.as_slice() else { panic!("{checked:?}") };
    let value = plain.value.of(body.as_bytes(), &checked.aside);
    assert_eq!(value, br#"{"type":"a","client_id":"plain"}"#);
    assert!(matches!(plain.key, Some(Part::InBody(key)) if key.of(body.as_bytes()) == b"plain"));
    assert!(plain.assigned_id.is_some() && escaped.assigned_id.is_none());
    assert!(matches!(escaped.key, Some(Part::Aside(key)) if key.of(&checked.aside) == b"q\"\n"));
    assert!(matches!(checked.accepted[1].id, EventId::InBody(id) if id.of(body.as_bytes()) == "é".as_bytes()));
}

#[test]
fn an_event_above_the_limit_is_refused_alone() {
    let body = format!(r#"[{{"type":"a"}},{{"type":"{}"}},{{"type":"c"}}]"#, "x".repeat(64));
    let checked = checked(&body);
    assert_eq!(checked.records.len(), 2);
    assert_eq!((checked.errors[0].index, checked.errors[0].invalid.code), (1, Code::TooLarge));
}

#[test]
fn a_broken_element_is_refused_alone_and_says_what_it_is() {
    let checked =
        checked(r#"[{"type":"a"},{"type":"a","x":NaN},{"type":"b"},,{"type":"c","x":[-Infinity]},{"type" "d"},]"#);
    let errors: Vec<_> =
        checked.errors.iter().map(|error| (error.index, error.invalid.code, &*error.invalid.message)).collect();
    assert!(errors.iter().all(|(_, code, _)| *code == Code::InvalidJson), "{errors:?}");
    assert_eq!(errors.iter().map(|(index, ..)| *index).collect::<Vec<_>>(), [1, 3, 4, 5, 6]);
    for (error, words) in
        errors.iter().zip(["NaN is no JSON", "comma", "-Infinity is no JSON", "expected `:`", "comma"])
    {
        assert!(error.2.contains(words), "{words}: {error:?}");
    }
    assert_eq!(checked.accepted.iter().map(|accepted| accepted.index).collect::<Vec<_>>(), [0, 2]);
}

#[test]
fn several_texts_are_events_by_their_index_until_one_is_none() {
    let places = |checked: &Checked| {
        let accepted: Vec<_> = checked.accepted.iter().map(|accepted| accepted.index).collect();
        let errors: Vec<_> = checked.errors.iter().map(|error| (error.index, error.invalid.code)).collect();
        (accepted, errors)
    };
    let stream = checked(r#"{"type":"a"}{"type":"b"}  {"type":"c"}"#);
    assert_eq!(places(&stream), (vec![0, 1, 2], vec![]));
    assert_eq!(stream.records[1].value.of(&stream.body, &stream.aside), br#"{"type":"b"}"#);
    let mixed = checked(r#"{"type":"a"}[{"type":"b"}]{"no":1} {"type":"c"} {"type":} {"type":"d"}"#);
    let expected = [(1, Code::NotAnObject), (2, Code::MissingType), (4, Code::InvalidJson)];
    assert_eq!(places(&mixed), (vec![0, 3], expected.to_vec()));
    // Together they are larger than an event may be.
    let large = checked(&format!(r#"{{"type":"a"}}{}"#, r#"{"type":"b","x":"0123456789"}"#.repeat(10)));
    assert_eq!(places(&large), ((0..11).collect(), vec![]));
    let one_is = checked(&format!(r#"{{"type":"{}"}}{{"type":"b"}}"#, "x".repeat(64)));
    assert_eq!(places(&one_is), (vec![1], vec![(0, Code::TooLarge)]));
}

#[test]
fn what_the_queue_finds_too_large_becomes_that_events_error_in_order() {
    let mut checked = checked(r#"[{"type":"a"},{"type":"b"},{},{"type":"c"},7]"#);
    let records = checked.records.clone();
    checked.settle(&Delivery { too_large: vec![2, 0], durable: 1, ..Delivery::default() }, &records[..1]);
    assert_eq!(checked.accepted.iter().map(|accepted| accepted.index).collect::<Vec<_>>(), [1]);
    let errors: Vec<_> = checked.errors.iter().map(|error| (error.index, error.invalid.code)).collect();
    assert_eq!(errors, [(0, Code::TooLarge), (2, Code::MissingType), (3, Code::TooLarge), (4, Code::NotAnObject)]);
    assert_eq!(checked.errors[0].value, Some(records[0].value), "a letter may be made of it");
    assert_eq!(checked.errors[2].value, None);
}

#[test]
fn what_is_known_to_be_larger_than_the_queue_takes_is_never_one_of_its_records() {
    let mut checked =
        checked(r#"[{"type":"a","timestamp":-1},{"type":"a longer one","timestamp":-1},{},{"type":"c"}]"#);
    checked.refuse_larger(75);
    assert_eq!((checked.records.len(), checked.warnings.len()), (2, 1));
    let indexes: Vec<_> = checked.accepted.iter().map(|accepted| accepted.index).collect();
    let errors: Vec<_> = checked.errors.iter().map(|error| (error.index, error.invalid.code)).collect();
    assert_eq!((indexes, errors), (vec![0, 3], vec![(1, Code::TooLarge), (2, Code::MissingType)]));
    let value = checked.errors[0].value.unwrap().of(&checked.body, &checked.aside);
    assert_eq!(value, br#"{"type":"a longer one","timestamp":-1}"#);
}

#[test]
fn an_event_whose_time_is_not_believed_is_named_as_long_as_it_is_accepted() {
    let mut checked = checked(
        r#"[{"type":"a","timestamp":"2026"},{"type":"b"},{},{"type":"c","timestamp":-1},{"type":"d","timestamp":{}}]"#,
    );
    let warned = |checked: &Checked| checked.warnings.iter().map(|warning| warning.index).collect::<Vec<_>>();
    assert_eq!((checked.records.len(), checked.errors.len(), warned(&checked)), (4, 1, vec![0, 3, 4]));
    assert!(checked.warnings.iter().all(|warning| warning.code == Code::InvalidTimestamp));
    checked.settle(&Delivery { too_large: vec![2], ..Delivery::default() }, &[]);
    assert_eq!(warned(&checked), [0, 4]);
    let failed = Failed { events: 0..1, may_be_stored: true, reason: "away".into() };
    checked.settle(&Delivery { failed: vec![failed], ..Delivery::default() }, &[]);
    assert_eq!(warned(&checked), [4]);
}

#[test]
fn what_failed_for_a_passing_reason_is_neither_accepted_nor_an_error() {
    let mut checked = checked(r#"[{"type":"a"},{"type":"b"},{},{"type":"c"},{"type":"d"}]"#);
    let failed = |events, may_be_stored| Failed { events, may_be_stored, reason: "away".into() };
    let failed = vec![failed(2..3, true), failed(0..1, false)];
    checked.settle(&Delivery { failed, too_large: vec![3], durable: 1, ..Delivery::default() }, &[]);
    assert_eq!(checked.accepted.iter().map(|accepted| accepted.index).collect::<Vec<_>>(), [1]);
    assert_eq!(checked.errors.iter().map(|error| error.index).collect::<Vec<_>>(), [2, 4]);
    let unavailable: Vec<_> = checked.unavailable.iter().map(|event| (event.index, event.may_be_stored)).collect();
    assert_eq!(unavailable, [(0, false), (3, true)]);
}

#[test]
fn a_wrong_event_is_told_with_where_its_bytes_stand() {
    let bytes_of =
        |checked: &Checked, error: &EventError| error.value.unwrap().of(&checked.body, &checked.aside).to_vec();
    for (body, expected) in [
        (r#"[{"type":"a"}, {} ,7]"#, [b"{}".as_slice(), b"7"]),
        (r#"{"type":"a"} [] {"type": }, x "#, [b"[]", br#"{"type": }, x"#]),
    ] {
        let checked = checked(body);
        let values: Vec<_> = checked.errors.iter().map(|error| bytes_of(&checked, error)).collect();
        assert_eq!(values, expected);
    }
    let (body, invalid) = (Bytes::from_static(b"[{"), Invalid::new(Code::InvalidJson, "broken"));
    let whole = Checked::unsplittable(body, invalid, &Attributes::default());
    assert_eq!(bytes_of(&whole, &whole.errors[0]), b"[{");
}

#[test]
fn warnings_are_counted_with_their_answer() {
    let held = |time: &str| {
        let in_flight = InFlight::default();
        let body = format!("[{}]", vec![format!(r#"{{"type":"a","timestamp":{time}}}"#); 1000].join(","));
        let (http, fields) = (HttpConfig::default(), EventFields::from(&EventConfig::default()));
        let mut share = Reservation::new(&in_flight, http.max_in_flight);
        let checked = check(body.into(), Format::Json, None, &http, &fields, Timestamp(0).into(), &mut share).unwrap();
        (in_flight.all.get(), checked.warnings.len())
    };
    let ((plain, none), (named, all)) = (held("10"), held("-1"));
    assert_eq!((none, all), (0, 1000));
    let least = 1000 * (size_of::<Warning>() + checked(r#"{"type":"a","timestamp":-1}"#).warnings[0].message.len());
    assert!(named >= plain + i64::try_from(least).unwrap(), "{named} beside {plain}");
}

#[test]
fn small_events_are_counted_with_what_they_cost_and_with_their_answer() {
    let in_flight = InFlight::default();
    let mut other = Reservation::new(&in_flight, ByteSize(1));
    other.grow(1).unwrap();
    let body = format!("[{}]", vec!["1"; 10_000].join(","));
    let refused = |limit: u64| {
        let http = HttpConfig { max_in_flight: ByteSize(limit), ..HttpConfig::default() };
        let mut share = Reservation::new(&in_flight, http.max_in_flight);
        let fields = EventFields::from(&EventConfig::default());
        let body = Bytes::copy_from_slice(body.as_bytes());
        let checked = check(body, Format::Json, None, &http, &fields, Timestamp(0).into(), &mut share);
        let counted = in_flight.all.get();
        assert!(checked.is_err() || counted > 2_000_000, "10,000 errors with a sentence each: {counted}");
        checked.err().map(|problem| problem.status.as_u16())
    };
    assert_eq!(refused(2_000_000), Some(503));
    assert_eq!(refused(64 << 20), None);
    assert_eq!(in_flight.all.get(), 1);
}
