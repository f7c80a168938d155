//! The rules for events, as the ingestor and the log's readers have them.

use std::time::Duration;

use base64::{Engine, prelude::BASE64_STANDARD};
use proptest::{prelude::*, sample::select};

use super::*;

/// 2026-11-29T08:00:00Z
const RECEIVED: Timestamp = Timestamp(1_795_939_200_000);

fn fields() -> EventFields {
    EventFields::from(&EventConfig::default())
}

fn parse<'a>(value: &'a [u8], fields: &EventFields) -> Result<Event<'a>, Invalid> {
    super::parse(value, fields, RECEIVED)
}

fn read(json: &str) -> Result<Event<'_>, Code> {
    parse(json.as_bytes(), &fields()).map_err(|invalid| invalid.code)
}

fn codes(cases: &[(&str, Code)]) {
    for (json, code) in cases {
        assert_eq!(read(json).err(), Some(*code), "{json}");
    }
}

#[test]
fn an_ordinary_event_is_read_without_copying() {
    let json =
        r#" {"type":"login","event_id":"e1","timestamp":"2026-11-23T09:00:00.123+01:00","client_id":"c1","n":[1,{}]} "#;
    let event = read(json).unwrap();
    assert_eq!(event.time.map(Timestamp::to_rfc3339).as_deref(), Some("2026-11-23T08:00:00.123Z"));
    for (text, expected) in
        [(Some(event.event_type), "login"), (event.id, "e1"), (event.client, "c1"), (event.key, "c1")]
    {
        assert!(matches!(text, Some(Cow::Borrowed(text)) if text == expected), "{expected}");
    }
}

#[test]
fn the_type_is_a_required_string_of_1_to_128_characters() {
    let longest = format!(r#"{{"type":"{}"}}"#, "ü".repeat(128));
    assert!(read(&longest).is_ok());
    let longer = format!(r#"{{"type":"{}"}}"#, "ü".repeat(129));
    codes(&[
        ("{}", Code::MissingType),
        (r#"{"type":null}"#, Code::MissingType),
        (r#"{"type":""}"#, Code::InvalidType),
        (r#"{"type":1}"#, Code::InvalidType),
        (r#"{"type":["a"]}"#, Code::InvalidType),
        (&longer, Code::InvalidType),
    ]);
}

#[test]
fn the_id_is_an_optional_string_of_1_to_256_characters() {
    assert_eq!(read(r#"{"type":"a"}"#).unwrap().id, None);
    assert_eq!(read(r#"{"type":"a","event_id":null}"#).unwrap().id, None);
    let longer = format!(r#"{{"type":"a","event_id":"{}"}}"#, "x".repeat(257));
    codes(&[
        (r#"{"type":"a","event_id":""}"#, Code::InvalidId),
        (r#"{"type":"a","event_id":7}"#, Code::InvalidId),
        (&longer, Code::InvalidId),
    ]);
}

fn with_time(json: &str) -> String {
    format!(r#"{{"type":"a","timestamp":{json}}}"#)
}

fn rejecting() -> EventFields {
    EventFields::from(&EventConfig { on_invalid_time: OnInvalidTime::Reject, ..EventConfig::default() })
}

/// The time that an event counts by, as the ingestor and as a reader of the log find it, and what is said of it.
fn times(json: &str, fields: &EventFields, received: Timestamp) -> ([Option<Timestamp>; 2], Option<InvalidTime>) {
    let event = super::parse(json.as_bytes(), fields, received).unwrap();
    let (in_log, _) = super::read(json.as_bytes(), [], fields, received).unwrap();
    ([event.time, in_log.time], event.invalid_time)
}

#[test]
fn an_event_counts_by_its_own_time_where_that_is_believed_and_is_named_or_refused_where_it_is_not() {
    use InvalidTime::{BeforeEpoch, TooEarly, TooLate, Unreadable};
    let day = 24 * 3600 * 1000;
    for (time, expected) in [
        ("null", Ok(None)),
        (r#""2026-11-29T08:00:00.123Z""#, Ok(Some(RECEIVED.0 + 123))),
        (r#""2026-11-29\u002008:00:00+00""#, Ok(Some(RECEIVED.0))),
        ("1795939200", Ok(Some(RECEIVED.0))),
        (r#""1795939200123""#, Ok(Some(RECEIVED.0 + 123))),
        ("1480579200", Ok(Some(RECEIVED.0 - 3650 * day))),
        ("1480579199.999", Err(TooEarly)),
        ("0", Err(TooEarly)),
        (r#""1970-01-01T00:00:00Z""#, Err(TooEarly)),
        (r#""2026-11-30T08:00:00.000999Z""#, Ok(Some(RECEIVED.0 + day))),
        (r#""2026-11-30T08:00:00.001Z""#, Err(TooLate)),
        ("1796025600.001", Err(TooLate)),
        (r#""9999-12-31T23:59:59.999Z""#, Err(TooLate)),
        (r#""9999-12-31T23:59:59-01:00""#, Err(TooLate)),
        ("253402300800e9", Err(TooLate)),
        (r#""1969-12-31T23:59:59.999Z""#, Err(BeforeEpoch)),
        (r#""0001-01-01T00:00:00Z""#, Err(BeforeEpoch)),
        ("-1", Err(BeforeEpoch)),
        (r#""yesterday""#, Err(Unreadable)),
        (r#""""#, Err(Unreadable)),
        (r#""2026-11-29""#, Err(Unreadable)),
        (r#""2026-11-29T08:00:00""#, Err(Unreadable)),
        ("true", Err(Unreadable)),
        ("{}", Err(Unreadable)),
        ("[1795939200]", Err(Unreadable)),
    ] {
        let json = with_time(time);
        let counted = expected.unwrap_or_default().map(Timestamp);
        assert_eq!(times(&json, &fields(), RECEIVED), ([counted; 2], expected.err()), "{time}");
        let refused = parse(json.as_bytes(), &rejecting()).map(|event| event.time);
        match refused {
            Ok(time) => assert_eq!((time, expected.err()), (counted, None), "{json}"),
            Err(invalid) => {
                assert_eq!((invalid.code, expected.is_err()), (Code::InvalidTimestamp, true), "{json}");
                assert!(invalid.message.starts_with("field \"timestamp\" is "), "{invalid}");
            }
        }
        let rejecting = rejecting();
        let (in_log, _) = super::read(json.as_bytes(), [], &rejecting, RECEIVED).unwrap();
        assert_eq!(in_log.time, counted, "{time}: what stands in the log is counted all the same");
    }
}

#[test]
fn a_time_that_few_readers_know_is_named_or_refused_at_the_door_and_counted_as_it_is_written() {
    for (time, is_known) in [
        ("2025-12-31T23:59:60Z", true),
        ("2026-01-01T05:29:60.5+05:30", true),
        ("2025-12-31t23:59:59z", true),
        ("2025-12-31T23:58:60Z", false),
        ("2025-12-31T22:59:60Z", false),
        ("2025-12-31T23:59:60+01:00", false),
        ("2025-12-31T23:59:59\u{2212}01:00", false),
    ] {
        let json = with_time(&format!("\"{time}\""));
        let expected = chrono::DateTime::parse_from_rfc3339(time).unwrap().timestamp_millis();
        let said = (!is_known).then_some(InvalidTime::Odd);
        assert_eq!(
            times(&json, &fields(), RECEIVED),
            ([Some(Timestamp(expected)); 2], said),
            "{time}: as it always was"
        );
        let refused = parse(json.as_bytes(), &rejecting()).err().map(|invalid| invalid.code);
        assert_eq!(refused, (!is_known).then_some(Code::InvalidTimestamp), "{time}");
    }
}

#[test]
fn how_far_a_time_may_lie_is_configured_and_goes_by_the_receipt_alone() {
    let within = |max_future: u64| {
        let max_future = Duration::from_secs(max_future);
        EventFields::from(&EventConfig { max_future, ..EventConfig::default() })
    };
    let last = r#"{"type":"a","timestamp":"9999-12-31T23:59:59.999Z"}"#;
    let now = with_time("1795939200");
    let counted = |json: &str, fields: &EventFields, received: i64| times(json, fields, Timestamp(received)).0;
    let own = [Some(RECEIVED); 2];
    assert_eq!(counted(&now, &within(0), RECEIVED.0), own);
    assert_eq!(counted(&now, &within(0), RECEIVED.0 - 1), [None; 2]);
    assert_eq!(counted(&now, &within(60), RECEIVED.0 - 60_000), own);
    assert_eq!(counted(&now, &within(60), RECEIVED.0 - 60_001), [None; 2]);
    let past = Duration::from_secs(60);
    let back = EventFields::from(&EventConfig { max_past: past, ..EventConfig::default() });
    assert_eq!(counted(&now, &back, RECEIVED.0 + 60_000), own);
    assert_eq!(counted(&now, &back, RECEIVED.0 + 60_001), [None; 2], "a time that has long been");
    let longest = within(10_000 * 31_557_600);
    assert_ne!(counted(last, &longest, RECEIVED.0), [None; 2]);
    assert_eq!(times(r#"{"type":"a","timestamp":253402300800e9}"#, &longest, RECEIVED).1, Some(InvalidTime::TooLate));
    for without in [-1, 0] {
        assert_eq!(counted(&now, &within(60), without), own, "it says nothing of its receipt");
    }
}

proptest! {
    #[test]
    fn the_door_and_every_reader_of_the_log_find_the_same_time(
        time in prop_oneof![
            (-10_000_000_000_000i64..260_000_000_000_000).prop_map(|number| number.to_string()),
            (0..20i32, any::<u64>()).prop_map(|(exponent, digits)| format!("{digits}.{digits}e{exponent}")),
            "\"[0-9]{4}-[01][0-9]-[0-3][0-9][Tt ][0-2][0-9]:[0-5][0-9](:[0-6][0-9]([.,][0-9]{0,4})?)?(Z|[+-][01][0-9](:?[0-5][0-9])?)?\"",
            "\"2026-1[12]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-6][0-9](Z|\u{2212}01:00)\"",
            any::<String>().prop_map(|text| serde_json::to_string(&text).expect("a string")),
        ],
        received in prop_oneof![Just(0), Just(i64::MAX), -5..3_000_000_000_000i64],
        max_future in select(vec![0, 60, 86_400, 10_000 * 31_557_600]),
    ) {
        let config = EventConfig { max_future: Duration::from_secs(max_future), ..EventConfig::default() };
        let taking = EventFields::from(&config);
        let refusing = EventFields::from(&EventConfig { on_invalid_time: OnInvalidTime::Reject, ..config });
        let (json, received) = (with_time(&time), Timestamp(received));
        let ([own, in_log], invalid) = times(&json, &taking, received);
        prop_assert_eq!(own, in_log);
        prop_assert_eq!(own.is_none(), invalid.is_some_and(|invalid| invalid != InvalidTime::Odd));
        match super::parse(json.as_bytes(), &refusing, received) {
            Ok(event) => prop_assert_eq!((event.time, invalid), (own, None)),
            Err(refused) => prop_assert!(refused.code == Code::InvalidTimestamp && invalid.is_some()),
        }
        prop_assert_eq!(super::read(json.as_bytes(), [], &refusing, received).unwrap().0.time, own);
    }
}

#[test]
fn the_key_is_a_strings_characters_or_another_scalars_text() {
    for (value, key) in [
        (r#""a b""#, Some("a b")),
        (r#""\u0061\n""#, Some("a\n")),
        ("1.50", Some("1.50")),
        ("true", Some("true")),
        ("0", Some("0")),
        ("null", None),
        ("{}", None),
        ("[1]", None),
    ] {
        let json = format!(r#"{{"type":"a","client_id":{value}}}"#);
        let event = read(&json).unwrap();
        assert_eq!((event.key.as_deref(), event.client.as_deref()), (key, key), "{value}");
    }
}

#[test]
fn a_client_that_is_not_known_is_no_key_and_a_long_one_is_a_short_key() {
    let (nil, digits) = ("00000000-0000-0000-0000-000000000000", "0".repeat(32));
    for client in ["", " ", "\u{a0}\u{2003}", nil, &digits] {
        let json = format!(r#"{{"type":"a","client_id":"{client}"}}"#);
        let event = read(&json).unwrap();
        assert_eq!((event.client.as_deref(), event.key), (Some(client), None));
    }
    for client in
        ["00000000-0000-0000-0000-000000000001", "0", "-", &digits[1..], &"0".repeat(36), &"x".repeat(LONGEST_KEY)]
    {
        let json = format!(r#"{{"type":"a","client_id":"{client}"}}"#);
        assert_eq!(read(&json).unwrap().key.as_deref(), Some(client));
    }
    let long = "x".repeat(LONGEST_KEY + 1);
    let json = format!(r#"{{"type":"a","client_id":"{long}"}}"#);
    let event = read(&json).unwrap();
    let key = event.key.unwrap();
    assert!(key.starts_with("sha256:") && key.len() == 71, "{key}");
    assert_eq!(event.client.as_deref(), Some(&*long));
}

#[test]
fn the_key_may_be_any_field() {
    let config = EventConfig { key_field: "type".to_owned(), ..EventConfig::default() };
    let event = parse(br#"{"type":"a","client_id":"c"}"#, &EventFields::from(&config)).unwrap();
    assert_eq!((event.key.as_deref(), event.client.as_deref()), (Some("a"), Some("c")));
}

#[test]
fn of_duplicate_fields_the_last_counts_however_it_is_written() {
    let json = r#"{"type":"a","client_id":"c","t\u0079pe":"b","client_id":null,"x":7}"#;
    let fields = fields().selecting(&["x", "type", "y", "type"].map(Selected::of));
    let (event, found) = super::read(json.as_bytes(), [], &fields, RECEIVED).unwrap();
    assert_eq!((event.event_type.as_ref(), event.client), ("b", None));
    let selected: Vec<_> = (0..4).map(|index| found.selected(index)).collect();
    assert_eq!(selected, [Some("7"), Some(r#""b""#), None, Some(r#""b""#)]);
}

#[test]
fn what_not_every_reader_can_read_is_refused_at_the_door_alone_and_only_where_the_configuration_says_so() {
    let accepting = EventConfig { on_unreadable: OnUnreadable::Accept, ..EventConfig::default() };
    let accepting = EventFields::from(&accepting);
    let digits = format!(r#"{{"type":"a","n":{}}}"#, "7".repeat(4301));
    for (json, word) in [
        (r#"{"type":"a","x":[{"n":1e400}]}"#, "1e400"),
        (r#"{"type":"a","x":"\ud800"}"#, "\\ud800"),
        (r#"{"type":"a","t\u0079pe":"a"}"#, "\"type\" stands twice"),
        (r#"{"type":"a","x":{"y":1,"y":1}}"#, "\"y\" stands twice"),
        (&digits, "longer than"),
    ] {
        let fields = fields();
        let refused = parse(json.as_bytes(), &fields).unwrap_err();
        assert!(refused.code == Code::InvalidJson && refused.message.contains(word), "{refused}");
        assert!(refused.message.contains("event.on_unreadable") && refused.message.len() < 200, "{refused}");
        assert!(parse(json.as_bytes(), &accepting).is_ok(), "{json}");
        assert!(super::read(json.as_bytes(), [], &fields, RECEIVED).is_ok(), "{json}");
    }
}

#[test]
fn the_whole_value_must_be_json_in_utf_8() {
    codes(&[
        ("", Code::InvalidJson),
        (r#"{"type":"a""#, Code::InvalidJson),
        (r#"{"type":"a"} x"#, Code::InvalidJson),
        (r#"{"type":"a","x":01}"#, Code::InvalidJson),
        ("{\"type\":\"a\",\"x\":\"\u{1}\"}", Code::InvalidJson),
        (r#"{"type":"a","client_id":"\ud800"}"#, Code::InvalidJson),
        ("[1", Code::InvalidJson),
        ("[1]", Code::NotAnObject),
        ("7", Code::NotAnObject),
        ("null", Code::NotAnObject),
    ]);
    assert_eq!(parse(b"{\"type\":\"a\",\"x\":\"\xff\"}", &fields()).unwrap_err().code, Code::InvalidJson);
}

#[test]
fn nesting_is_bounded_and_brackets_in_strings_do_not_count() {
    let nested = |levels: usize| format!(r#"{{"type":"a","x":{}{}}}"#, "[".repeat(levels - 1), "]".repeat(levels - 1));
    assert!(read(&nested(MAX_DEPTH)).is_ok());
    let deeper = nested(MAX_DEPTH + 1);
    let invalid = parse(deeper.as_bytes(), &fields()).unwrap_err();
    assert!(invalid.code == Code::InvalidJson && invalid.message.contains("nested"), "{invalid}");
    assert!(read(&format!(r#"{{"type":"a","x":"\"{}"}}"#, "[".repeat(500))).is_ok());
    assert!(read(&format!(r#"{{"type":"a","x":[{}1]}}"#, "[],".repeat(500))).is_ok());
}

/// What readers have of a record: its head, and the selected fields.
fn of_record(
    rules: Rules,
    value: &[u8],
    headers: &[(&str, &str)],
) -> Result<(Event<'static>, Vec<Option<String>>), Code> {
    let fields = fields().selecting(&["x", "type", "client_id", "event_id", "timestamp"].map(Selected::of));
    let headers = headers.iter().map(|(name, text)| (*name, Some(text.as_bytes())));
    let stated = Stated::in_headers(headers).expect("attributes");
    let (event, found) = stated.read(rules, value, &fields, RECEIVED).map_err(|invalid| invalid.code)?;
    let selected = (0..5).map(|index| found.selected(index).map(str::to_owned)).collect();
    Ok((event.into_owned(), selected))
}

/// The members of an envelope that are its data, and its content type.
fn enveloped() -> impl Strategy<Value = (Option<&'static str>, String)> {
    let fields = r#"{"type":"no","x":"A","client_id":"c","event_id":"i","timestamp":1795939140}"#;
    let json = prop_oneof![
        select(vec!["null", "7", "-1.5e3", "true", r#""""#, r#""{\"x\":1}""#, "[1]", "{}", fields])
            .prop_map(str::to_owned),
        any::<String>().prop_map(|text| serde_json::json!({"x": text, "client_id": [1]}).to_string()),
    ];
    let types = select(vec![None, Some("application/json"), Some("text/plain"), Some("application/x")]);
    (types, json, 0..4).prop_map(|(content_type, json, how)| match how {
        0 => (content_type, String::new()),
        1 => (content_type, format!(r#","data_base64":"{}""#, BASE64_STANDARD.encode(&json))),
        2 => (content_type, format!(r#","data":{}"#, serde_json::Value::from(json))),
        _ => (content_type, format!(r#","data":{json}"#)),
    })
}

proptest! {
    #[test]
    fn an_envelope_is_read_as_the_record_that_the_binary_mode_has_of_it(
        (content_type, data) in enveloped(),
        event_type in select(vec!["", r#","type":null"#, r#","type":"t""#, r#","type":"\u0074\"""#]),
        time in select(vec!["", r#","time":"2026-11-29T07:59:00Z""#, r#","time":1795939140"#, r#","time":[1]"#]),
        further in select(vec!["", r#","partitionkey":7"#, r#","id":"\u0069","source":"/\"s","x":true"#]),
    ) {
        let content_type = content_type.map_or_else(String::new, |it| format!(r#","datacontenttype":"{it}""#));
        let envelope = format!(r#"{{"specversion":"1.0"{content_type}{event_type}{time}{further}{data}}}"#);
        let Envelope { attributes, data } = Envelope::open(envelope.as_bytes(), OnUnreadable::Reject).expect("one");
        let attributes: Vec<_> = attributes.iter().map(|(name, text)| (header_of(name), &**text)).collect();
        let binary: Vec<_> = attributes.iter().map(|(name, text)| (&**name, *text)).collect();
        for rules in [Rules::Log, Rules::Acceptance] {
            let structured = of_record(rules, envelope.as_bytes(), &[("content-type", ENVELOPE_TYPE)]);
            prop_assert_eq!(&structured, &of_record(rules, &data, &binary), "{}", envelope);
        }
    }
}

#[test]
fn the_fields_of_an_envelope_are_those_of_its_bytes() {
    let selected = |data: &str| {
        let envelope = format!(r#"{{"specversion":"1.0","type":"t",{data}}}"#);
        of_record(Rules::Log, envelope.as_bytes(), &[("content-type", ENVELOPE_TYPE)]).unwrap().1[0].clone()
    };
    let base64 = BASE64_STANDARD.encode(r#"{"x":"A"}"#);
    assert_eq!(selected(&format!(r#""data_base64":"{base64}""#)).as_deref(), Some(r#""A""#));
    let text = r#""datacontenttype":"text/plain","data":"{\"x\":\"B\"}""#;
    assert_eq!(selected(text).as_deref(), Some(r#""B""#));
    assert_eq!(selected(r#""data":"{\"x\":\"C\"}""#), None, "a JSON string has no fields");
}

#[test]
fn a_message_is_bounded_and_keeps_its_beginning_and_its_end() {
    let quoted = format!("invalid type: string {:?}, expected a map at line 1 column 7", "é".repeat(100_000));
    let invalid = Invalid::new(Code::InvalidJson, quoted);
    assert!(invalid.message.len() <= 500, "{}", invalid.message.len());
    assert!(invalid.message.starts_with("invalid type: string \"é") && invalid.message.ends_with("at line 1 column 7"));
    assert!(invalid.message.contains("é … é"));
    for length in [0, 1, 499, 500] {
        assert_eq!(shortened("x".repeat(length)).len(), length);
    }
}
