use opentelemetry_proto::tonic::{
    collector::logs::v1::ExportLogsServiceRequest,
    common::v1::{AnyValue, KeyValue, KeyValueList, any_value},
    logs::v1::{ResourceLogs, ScopeLogs},
    resource::v1::Resource,
};
use serde_json::Value as Json;

use super::*;
use crate::{
    config::{ByteSize, Config, EventConfig, OnInvalidTime, QueueConfig},
    ingest::{check::Unavailable, in_flight::InFlight, quarantine},
    log::{
        dead_letters::{DeadLetter, replay::ReplayCheck},
        record::Headers,
    },
    position::Timestamp,
};

const RECEIVED: Timestamp = Timestamp(1_795_420_801_000);

fn text(text: &str) -> Option<AnyValue> {
    Some(AnyValue { value: Some(any_value::Value::StringValue(text.to_owned())) })
}

fn attribute(key: &str, value: &str) -> KeyValue {
    KeyValue { key: key.to_owned(), value: text(value), ..KeyValue::default() }
}

fn record(body: &str) -> LogRecord {
    LogRecord { time_unix_nano: 1_795_420_800_123_456_789, body: text(body), ..LogRecord::default() }
}

fn logs_of(resource: Resource, records: Vec<LogRecord>) -> ResourceLogs {
    let scope_logs = vec![ScopeLogs { log_records: records, ..ScopeLogs::default() }];
    ResourceLogs { resource: Some(resource), scope_logs, ..ResourceLogs::default() }
}

fn logs(service: &str, records: Vec<LogRecord>) -> ResourceLogs {
    let attributes = vec![attribute("service.name", service)];
    logs_of(Resource { attributes, ..Resource::default() }, records)
}

fn request(resource_logs: Vec<ResourceLogs>) -> Vec<u8> {
    ExportLogsServiceRequest { resource_logs }.encode_to_vec()
}

fn small() -> HttpConfig {
    HttpConfig { max_events: 100, max_event: ByteSize(4 << 10), ..HttpConfig::default() }
}

fn try_check(encoding: Encoding, body: &[u8], http: &HttpConfig) -> Result<Checked, Problem> {
    try_beside(0, encoding, body, false, http)
}

/// What is checked while other requests hold so many bytes.
fn try_beside(
    others: usize,
    encoding: Encoding,
    body: &[u8],
    keeps_wrong: bool,
    http: &HttpConfig,
) -> Result<Checked, Problem> {
    let in_flight = InFlight::default();
    let new = || Reservation::new(&in_flight, http.max_in_flight);
    let (mut of_others, mut of_body) = (new(), new());
    of_others.grow(others).unwrap();
    of_body.grow(body.len()).unwrap();
    let fields = EventFields::from(&EventConfig::default());
    let mut share = of_body.beside();
    let checked = check(body, encoding, keeps_wrong, http, &fields, RECEIVED.into(), &mut share);
    if let Ok(checked) = &checked {
        let messages: usize = checked.errors.iter().map(|error| error.invalid.message.len()).sum();
        let held = others + body.len() + checked.aside.capacity() + messages;
        assert!(in_flight.all.get() >= held as i64, "{} of {held} bytes are counted", in_flight.all.get());
    }
    drop((share, of_body, of_others));
    assert_eq!(in_flight.all.get(), 0);
    checked
}

fn checked(encoding: Encoding, body: &[u8]) -> Checked {
    try_check(encoding, body, &small()).unwrap()
}

/// Each record: its value, key and headers.
fn records(checked: &Checked) -> Vec<(Json, Option<String>, Vec<String>)> {
    let words = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let record = |record: &crate::log::NewRecord| {
        let headers = record.headers.expect("headers");
        let headers = Headers::new(headers.count, headers.bytes.of(&checked.aside));
        (
            serde_json::from_slice(record.value.of(b"", &checked.aside)).expect("JSON"),
            record.key.map(|key| words(key.of(b"", &checked.aside))),
            headers.iter().map(|(name, value)| format!("{name}={}", words(value.unwrap()))).collect(),
        )
    };
    checked.records.iter().map(record).collect()
}

fn codes(checked: &Checked) -> Vec<(usize, Code)> {
    checked.errors.iter().map(|error| (error.index, error.invalid.code)).collect()
}

#[test]
fn a_log_record_becomes_an_event_of_its_service_at_its_time() {
    let named = LogRecord { event_name: "click".to_owned(), observed_time_unix_nano: 1, ..LogRecord::default() };
    let long = LogRecord { event_name: "x".repeat(129), ..LogRecord::default() };
    let nobody = ResourceLogs { resource: None, ..logs("", vec![long]) };
    let checked = checked(Encoding::Protobuf, &request(vec![logs("shop", vec![record("a"), named]), nobody]));
    let [first, second, third] = &records(&checked)[..] else { panic!("{checked:?}") };
    assert_eq!(
        first.0,
        json!({
            "timestamp": "2026-11-23T08:00:00.123456789Z",
            "body": "a",
            "resource_attributes": {"service.name": "shop"},
        })
    );
    assert_eq!(first.1.as_deref(), Some("shop"));
    assert_eq!(first.2[..], ["ce_type=log", "ce_time=2026-11-23T08:00:00.123456789Z", "ce_source=shop"]);
    assert_eq!(second.2[..2], ["ce_type=click", "ce_time=1970-01-01T00:00:00.000000001Z"]);
    assert_eq!((&third.1, &third.2[..]), (&None, &["ce_type=log".to_owned()][..]));
    assert_eq!(third.0["event_name"].as_str().map(str::len), Some(129));
    assert!(checked.records.iter().all(|record| record.assigned_id.is_some()));
}

/// The example of the specification, with a record that is sent by the Collector's JSON.
const OTLP_JSON: &str = r#"{"resourceLogs":[{
    "scopeLogs":[{"scope":{"name":"my.library","version":"1.0.0","attributes":[{"key":"a","value":{"stringValue":"b"}}]},
        "logRecords":[{"timeUnixNano":"1544712660300000000","observedTimeUnixNano":"1544712660300000000","severityNumber":10,
            "severityText":"Information","traceId":"5B8EFFF798038103D269B633813FC60C","spanId":"EEE19B7EC3C1B174",
            "body":{"stringValue":"Example log record"},
            "attributes":[{"key":"int","value":{"intValue":"9007199254740993"}},{"key":"list","value":{"arrayValue":{}}}]}]}],
    "resource":{"attributes":[{"key":"service.name","value":{"stringValue":"my.service"}}]}}]}"#;

#[test]
fn both_encodings_make_the_same_event() {
    let by_json = records(&checked(Encoding::Json, OTLP_JSON.as_bytes()));
    let scope = opentelemetry_proto::tonic::common::v1::InstrumentationScope {
        name: "my.library".to_owned(),
        version: "1.0.0".to_owned(),
        attributes: vec![attribute("a", "b")],
        ..Default::default()
    };
    let value = |value| Some(AnyValue { value: Some(value) });
    let int = value(any_value::Value::IntValue(9_007_199_254_740_993));
    let list = value(any_value::Value::ArrayValue(Default::default()));
    let record = LogRecord {
        time_unix_nano: 1_544_712_660_300_000_000,
        observed_time_unix_nano: 1_544_712_660_300_000_000,
        severity_number: 10,
        severity_text: "Information".to_owned(),
        trace_id: hex::decode("5b8efff798038103d269b633813fc60c").unwrap(),
        span_id: hex::decode("eee19b7ec3c1b174").unwrap(),
        body: text("Example log record"),
        attributes: vec![
            KeyValue { key: "int".to_owned(), value: int, ..KeyValue::default() },
            KeyValue { key: "list".to_owned(), value: list, ..KeyValue::default() },
        ],
        ..LogRecord::default()
    };
    let mut logs = logs("my.service", vec![record]);
    logs.scope_logs[0].scope = Some(scope);
    let by_protobuf = records(&checked(Encoding::Protobuf, &request(vec![logs])));
    assert_eq!(by_json, by_protobuf);
    assert_eq!(by_json[0].0["attributes"]["int"].as_i64(), Some(9_007_199_254_740_993));
    assert_eq!(by_json[0].0["trace_id"], "5b8efff798038103d269b633813fc60c");
    assert_eq!(by_json[0].0["scope_attributes"], json!({"a": "b"}));
}

/// A record whose body is nested so deep in lists of pairs.
fn nested(levels: usize) -> LogRecord {
    let mut value = text("end");
    for _ in 0..levels {
        let values = vec![KeyValue { key: "k".to_owned(), value, ..KeyValue::default() }];
        value = Some(AnyValue { value: Some(any_value::Value::KvlistValue(KeyValueList { values })) });
    }
    LogRecord { body: value, ..LogRecord::default() }
}

#[test]
fn a_wrong_record_is_its_own_fault_and_the_others_are_taken() {
    let large = record(&"x".repeat(5000));
    let mut body = request(vec![logs("shop", vec![record("a"), record("broken"), large, nested(34), record("b")])]);
    // No UTF-8.
    let at = body.windows(6).position(|bytes| bytes == b"broken").unwrap();
    body[at] = 0xff;
    let checked = checked(Encoding::Protobuf, &body);
    assert_eq!(codes(&checked), [(1, Code::InvalidProtobuf), (2, Code::TooLarge), (3, Code::InvalidProtobuf)]);
    assert_eq!(checked.accepted.iter().map(|accepted| accepted.index).collect::<Vec<_>>(), [0, 4]);
    assert!(checked.errors[2].invalid.message.contains("recursion"), "{:?}", checked.errors[2]);
    assert!(codes(&self::checked(Encoding::Protobuf, &request(vec![logs("a", vec![nested(33)])]))).is_empty());

    let value = |levels: usize| {
        let (open, close) = (r#"{"kvlistValue":{"values":[{"value":"#.repeat(levels), "}]}}".repeat(levels));
        format!(r#"{{"body":{open}{{"intValue":1}}{close}}}"#)
    };
    let records = [value(31), r#"{"timeUnixNano":"soon"}"#.to_owned(), value(32), "7".to_owned()].join(",");
    let body = format!(r#"{{"resourceLogs":[{{"scopeLogs":[{{"logRecords":[{records}]}}]}}]}}"#);
    let checked = self::checked(Encoding::Json, body.as_bytes());
    assert_eq!(codes(&checked), [(1, Code::InvalidJson), (2, Code::InvalidJson), (3, Code::InvalidJson)]);
    assert!(checked.errors[1].invalid.message.contains("recursion limit"), "{:?}", checked.errors[1]);
}

#[test]
fn a_resource_that_cannot_be_read_is_the_fault_of_its_records_alone() {
    let mut body = request(vec![logs("broken", vec![record("a"), record("b")]), logs("good", vec![record("c")])]);
    let at = body.windows(6).position(|bytes| bytes == b"broken").unwrap();
    body[at] = 0xff;
    let checked = checked(Encoding::Protobuf, &body);
    assert_eq!(codes(&checked), [(0, Code::InvalidProtobuf), (1, Code::InvalidProtobuf)]);
    assert!(checked.errors[0].invalid.message.contains("resource"), "{:?}", checked.errors[0]);
    assert_eq!(records(&checked)[0].1.as_deref(), Some("good"));
}

#[test]
fn what_is_no_request_is_refused_as_a_whole() {
    for (encoding, body) in [
        (Encoding::Protobuf, &b"{}"[..]),
        (Encoding::Protobuf, b"\x0a\x05\x12"),
        (Encoding::Json, b""),
        (Encoding::Json, b"[7]"),
        (Encoding::Json, br#"{"resourceLogs":{}}"#),
        (Encoding::Json, br#"{"resourceLogs":[{"scopeLogs":[{"logRecords":7}]}]}"#),
        (Encoding::Json, b"\x0a\x05\x12"),
    ] {
        let problem = try_check(encoding, body, &small()).unwrap_err();
        assert_eq!(problem.status, 400, "{body:?}");
    }
    for (encoding, body) in [
        (Encoding::Protobuf, &b""[..]),
        (Encoding::Json, b"{}"),
        (Encoding::Json, br#"{"resourceLogs":null,"new":[{}]}"#),
        (Encoding::Json, br#"{"resourceLogs":[{"resource":null,"scopeLogs":[{}]},{}]}"#),
    ] {
        assert!(checked(encoding, body).records.is_empty(), "{body:?}");
    }
    let many = request(vec![logs("a", vec![LogRecord::default(); 60]), logs("b", vec![LogRecord::default(); 60])]);
    assert_eq!(try_check(Encoding::Protobuf, &many, &small()).unwrap_err().status, 413);
    let list = format!(r#"{{"scopeLogs":[{{"logRecords":[{}]}}]}}"#, vec!["{}"; 60].join(","));
    let many = format!(r#"{{"resourceLogs":[{list},{list}]}}"#);
    assert_eq!(try_check(Encoding::Json, many.as_bytes(), &small()).unwrap_err().status, 413);
}

#[test]
fn a_request_that_becomes_far_more_than_it_is_ends_at_its_bounds() {
    let http = HttpConfig { max_in_flight: ByteSize(16 << 20), ..HttpConfig::default() };
    // 10,000 records that share half a MiB would be 5 GiB.
    let attributes = vec![attribute("service.name", "shop"), attribute("large", &"x".repeat(512 << 10))];
    let large = Resource { attributes, ..Resource::default() };
    let body = request(vec![logs_of(large, vec![LogRecord::default(); 10_000])]);
    assert_eq!(try_check(Encoding::Protobuf, &body, &http).unwrap_err().status, 413);
    // More than an event may be in common is not even written once.
    let attributes = vec![attribute("large", &"x".repeat(2 << 20))];
    let body = request(vec![logs_of(Resource { attributes, ..Resource::default() }, vec![LogRecord::default(); 1000])]);
    let checked = try_check(Encoding::Protobuf, &body, &http).unwrap();
    assert_eq!((checked.errors.len(), checked.errors[0].invalid.code), (1000, Code::TooLarge));
    // Two bytes on the wire, hundreds in memory.
    let record = LogRecord { attributes: vec![KeyValue::default(); 400_000], ..LogRecord::default() };
    let checked = try_check(Encoding::Protobuf, &request(vec![logs("a", vec![record])]), &http).unwrap();
    assert_eq!(codes(&checked), [(0, Code::TooLarge)]);
    assert!(checked.errors[0].invalid.message.contains("max_in_flight"), "{:?}", checked.errors[0]);
    let record = format!(r#"{{"attributes":[{}]}}"#, vec!["{}"; 200_000].join(","));
    let body = format!(r#"{{"resourceLogs":[{{"scopeLogs":[{{"logRecords":[{record}]}}]}}]}}"#);
    let checked = try_check(Encoding::Json, body.as_bytes(), &http).unwrap();
    assert_eq!(codes(&checked), [(0, Code::TooLarge)]);
}

fn in_json(resource: &str, records: &[String]) -> String {
    let records = records.join(",");
    format!(r#"{{"resourceLogs":[{{"resource":{resource},"scopeLogs":[{{"logRecords":[{records}]}}]}}]}}"#)
}

#[test]
fn what_is_wrong_is_not_quoted_and_is_counted_for_each_record() {
    let long = "a".repeat(200_000);
    let body = in_json(&format!(r#"{{"attributes":"{long}"}}"#), &vec!["{}".to_owned(); 1500]);
    let checked = try_check(Encoding::Json, body.as_bytes(), &HttpConfig::default()).unwrap();
    assert_eq!(checked.errors.len(), 1500);
    assert!(checked.errors.iter().all(|error| error.invalid.message.len() < 200), "{:?}", checked.errors[0]);
    assert!(checked.aside.is_empty());
    for body in [format!(r#"{{"resourceLogs":"{long}"}}"#), format!("\"{long}\"")] {
        let problem = try_check(Encoding::Json, body.as_bytes(), &HttpConfig::default()).unwrap_err();
        assert!(problem.status == 400 && problem.detail.len() < 300, "{problem}");
    }
}

#[test]
fn what_can_pass_alone_gets_in_when_nothing_else_is_in_flight() {
    // Each is below half of what may be in flight, together they are more than all of it.
    let attributes = format!(r#"{{"attributes":[{}]}}"#, vec!["{}"; 60_000].join(","));
    let heavy = format!(
        r#"{{"resourceLogs":[{{"resource":{attributes},"scopeLogs":[{{"scope":{attributes},"logRecords":[{attributes}]}}]}}]}}"#
    );
    assert!(3 * json::weight(&attributes) > HttpConfig::default().max_in_flight.as_usize());
    let checked = try_check(Encoding::Json, heavy.as_bytes(), &HttpConfig::default()).unwrap();
    assert_eq!((checked.accepted.len(), codes(&checked)), (1, Vec::new()));

    let small = ByteSize(16 << 20);
    let http = HttpConfig { max_in_flight: small, max_body: small, ..HttpConfig::default() };
    let record = |length| format!(r#"{{"body":{{"stringValue":"{}"}}}}"#, "x".repeat(length));
    let ordinary = in_json("null", &vec![record(900_000); 13]);
    let checked = try_check(Encoding::Json, ordinary.as_bytes(), &http).unwrap();
    assert_eq!(checked.accepted.len(), 13);
    let beside = try_beside(1000, Encoding::Json, ordinary.as_bytes(), false, &http);
    assert_eq!(beside.unwrap_err().status, 503, "not beside others");
    // Wrong ones take nothing but their sentence where nobody keeps them.
    let one = in_json("null", &[record(15_000_000), record(1)]);
    let checked = try_check(Encoding::Json, one.as_bytes(), &http).unwrap();
    assert_eq!((checked.accepted.len(), codes(&checked)), (1, vec![(0, Code::TooLarge)]));
    let wrong = vec![format!(r#"{{"timeUnixNano":"x","severityText":"{}"}}"#, "x".repeat(900_000)); 16];
    let checked = try_check(Encoding::Json, in_json("null", &wrong).as_bytes(), &http).unwrap();
    assert_eq!((checked.errors.len(), checked.aside.len()), (16, 0));
    // What cannot pass alone is not to be tried again.
    let shared = format!(r#"{{"attributes":[{{"key":"k","value":{{"stringValue":"{}"}}}}]}}"#, "x".repeat(500_000));
    let many = in_json(&shared, &vec!["{}".to_owned(); 40]);
    assert_eq!(try_check(Encoding::Json, many.as_bytes(), &http).unwrap_err().status, 413);
}

/// The letters of what is wrong, by the configuration of a door.
fn letters(encoding: Encoding, body: &[u8], http: &HttpConfig, event: &EventConfig) -> Vec<DeadLetter> {
    let mut share = Reservation::new(&InFlight::default(), http.max_in_flight);
    let checked = check(body, encoding, true, http, &EventFields::from(event), RECEIVED.into(), &mut share).unwrap();
    quarantine::letters(&checked, &checked.aside, &QueueConfig::default(), RECEIVED)
}

fn headers_of(letter: &DeadLetter) -> Vec<String> {
    let text = |value: &Option<Vec<u8>>| String::from_utf8(value.clone().unwrap_or_default()).unwrap();
    letter.headers.iter().map(|(name, value)| format!("{name}={}", text(value))).collect()
}

#[test]
fn the_letter_of_a_wrong_record_is_the_event_that_it_would_have_been() {
    // In the year 2500.
    let late = LogRecord { time_unix_nano: 16_725_225_600_000_000_000, ..record("late") };
    let strict = EventConfig { on_invalid_time: OnInvalidTime::Reject, ..EventConfig::default() };
    let all = letters(Encoding::Protobuf, &request(vec![logs("shop", vec![late, record("a")])]), &small(), &strict);
    let [letter] = &all[..] else { panic!("{all:?}") };
    assert_eq!(letter.reason, "invalid_timestamp");
    assert_eq!(headers_of(letter), ["ce_type=log", "ce_time=2500-01-01T00:00:00.000000000Z", "ce_source=shop"]);
    let admitted = ReplayCheck::of(&Config::default()).admit(letter, None, None).expect("its time is taken now");
    assert_eq!(admitted.key.as_deref(), Some(&b"shop"[..]));
    let event: Json = serde_json::from_slice(&admitted.value).unwrap();
    let resource = json!({"service.name": "shop"});
    assert_eq!((&event["body"], &event["resource_attributes"]), (&json!("late"), &resource));

    // Larger with its resource than an event may be, and no larger without.
    let long = "x".repeat(3000);
    let attributes = vec![attribute("service.name", "shop"), attribute("long", &long)];
    let resource = Resource { attributes, ..Resource::default() };
    let body = request(vec![logs_of(resource, vec![record(&long)])]);
    let all = letters(Encoding::Protobuf, &body, &small(), &EventConfig::default());
    let [letter] = &all[..] else { panic!("{all:?}") };
    assert_eq!((letter.reason.as_str(), headers_of(letter).last().unwrap().as_str()), ("too_large", "ce_source=shop"));
    let admitted = ReplayCheck::of(&Config::default()).admit(letter, None, None).expect("it may be larger now");
    let event: Json = serde_json::from_slice(&admitted.value).unwrap();
    assert_eq!((&event["body"], &event["resource_attributes"]["long"]), (&json!(long), &json!(long)));
}

#[test]
fn the_letter_of_a_record_that_cannot_be_decoded_is_its_bytes_and_replays_corrected_alone() {
    let wrong = record("broken");
    let mut bytes = wrong.encode_to_vec();
    let mut body = request(vec![logs("shop", vec![wrong])]);
    for bytes in [&mut bytes, &mut body] {
        let at = bytes.windows(6).position(|bytes| bytes == b"broken").unwrap();
        bytes[at] = 0xff;
    }
    let all = letters(Encoding::Protobuf, &body, &small(), &EventConfig::default());
    let [letter] = &all[..] else { panic!("{all:?}") };
    assert_eq!((letter.reason.as_str(), letter.value.as_deref()), ("invalid_protobuf", Some(&bytes[..])));
    assert_eq!(headers_of(letter), ["ce_type=log", "ce_source=shop"]);
    let check = ReplayCheck::of(&Config::default());
    assert_eq!(check.admit(letter, None, None).unwrap_err().reason, "invalid_json");
    let admitted = check.admit(letter, None, Some(br#"{"body":"mended"}"#)).unwrap();
    assert_eq!(admitted.key.as_deref(), Some(&b"shop"[..]));
}

fn body_of(response: HttpResponse) -> Vec<u8> {
    actix_web::body::MessageBody::try_into_bytes(response.into_body()).unwrap_or_default().to_vec()
}

fn answered(encoding: Encoding, checked: &Checked) -> HttpResponse {
    answer(encoding, checked, Reservation::new(&InFlight::default(), ByteSize(1 << 20)))
}

#[test]
fn the_answer_says_in_the_encoding_of_the_request_how_many_records_were_wrong() {
    let broken = LogRecord { attributes: vec![attribute("a", &"x".repeat(5000))], ..LogRecord::default() };
    let [all, some, none] = [vec![record("a")], vec![record("a"), broken.clone(), broken.clone()], vec![broken]]
        .map(|records| checked(Encoding::Protobuf, &request(vec![logs("shop", records)])));

    let response = answered(Encoding::Protobuf, &all);
    assert_eq!(response.status(), StatusCode::OK);
    let content_type = response.headers().get(CONTENT_TYPE).map(HeaderValue::as_bytes);
    assert_eq!(content_type, Some(&b"application/x-protobuf"[..]));
    assert_eq!(body_of(response), b"");
    assert_eq!(body_of(answered(Encoding::Json, &all)), b"{}");

    let response = body_of(answered(Encoding::Protobuf, &some));
    let partial = ExportLogsServiceResponse::decode(&response[..]).unwrap().partial_success.unwrap();
    assert_eq!(partial.rejected_log_records, 2);
    assert!(partial.error_message.starts_with("log record 1: too_large: "), "{}", partial.error_message);
    assert!(partial.error_message.ends_with("; and 1 more"), "{}", partial.error_message);
    let response: Json = serde_json::from_slice(&body_of(answered(Encoding::Json, &some))).unwrap();
    assert_eq!(response["partialSuccess"]["rejectedLogRecords"], "2");
    assert_eq!(response["partialSuccess"]["errorMessage"], partial.error_message);

    // In the year 2500, which is stored, and counted by its time of receipt.
    let late = LogRecord { time_unix_nano: 16_725_225_600_000_000_000, ..record("a") };
    let late = checked(Encoding::Protobuf, &request(vec![logs("shop", vec![late])]));
    let response: Json = serde_json::from_slice(&body_of(answered(Encoding::Json, &late))).unwrap();
    assert_eq!((late.accepted.len(), &response["partialSuccess"]["rejectedLogRecords"]), (1, &json!("0")));
    let message = response["partialSuccess"]["errorMessage"].as_str().unwrap();
    assert!(message.starts_with("log record 0: invalid_timestamp: "), "{message}");

    // Where each has its own result, those that failed are named.
    let mut failed = checked(Encoding::Protobuf, &request(vec![logs("shop", vec![record("a"); 9])]));
    let away = |index| Unavailable { index, may_be_stored: index == 7, reason: "no broker".into() };
    failed.unavailable = [1, 2, 3, 7].map(away).into();
    failed.accepted.retain(|accepted| ![1, 2, 3, 7].contains(&accepted.index));
    let response = answered(Encoding::Json, &failed);
    assert_eq!(response.status(), StatusCode::OK);
    let response: Json = serde_json::from_slice(&body_of(response)).unwrap();
    assert_eq!(response["partialSuccess"]["rejectedLogRecords"], "4");
    let message = response["partialSuccess"]["errorMessage"].as_str().unwrap();
    assert!(message.starts_with("log records 1-3, 7 (4 in all): no broker; "), "{message}");

    let response = answered(Encoding::Protobuf, &none);
    assert_eq!(response.status(), StatusCode::BAD_REQUEST);
    let status = Status::decode(&body_of(response)[..]).unwrap();
    assert!(status.code == INVALID_ARGUMENT && status.message.contains("log record 0"), "{status:?}");
}

#[test]
fn an_error_is_a_status_in_the_encoding_of_the_request_and_says_whether_to_try_again() {
    let refused = |problem| refusal(Encoding::Json, problem);
    let read = |response: HttpResponse| {
        let retry_after = response.headers().get(RETRY_AFTER).map(|value| value.to_str().unwrap().to_owned());
        let (status, json) = (response.status().as_u16(), serde_json::from_slice::<Json>(&body_of(response)).unwrap());
        (status, retry_after, json["code"].as_i64().unwrap())
    };
    assert_eq!(read(refused(Problem::unavailable("x"))), (503, Some("1".to_owned()), 14));
    // A 408 would be the end of the batch.
    let late = Problem { closing: true, ..Problem::new(StatusCode::REQUEST_TIMEOUT, "late") };
    assert_eq!(read(refused(late)), (503, Some("1".to_owned()), 14));
    assert_eq!(read(refused(Problem::body_too_large(7))), (413, None, 3));
    assert_eq!(read(refused(Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "x"))), (500, None, 13));
    let coding = Problem { accept_encoding: Some("gzip"), ..Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "x") };
    assert_eq!(refused(coding).headers().get(ACCEPT_ENCODING).unwrap(), "gzip");
    let status = Status::decode(&body_of(refusal(Encoding::Protobuf, Problem::bad_request("why")))[..]).unwrap();
    assert_eq!(status, Status { code: 3, message: "why".to_owned() });
}

#[test]
fn the_encoding_is_what_the_content_type_says() {
    for (given, expected) in [
        (&["application/x-protobuf"][..], Some(Encoding::Protobuf)),
        (&["Application/JSON; charset=utf-8"], Some(Encoding::Json)),
        (&["application/json; charset=utf-16"], None),
        (&["application/x-protobuf; a=b"], Some(Encoding::Protobuf)),
        (&[], None),
        (&["application/grpc"], None),
        (&["application/json", "application/x-protobuf"], None),
    ] {
        let mut headers = HeaderMap::new();
        given.iter().for_each(|given| headers.append(CONTENT_TYPE, HeaderValue::from_static(given)));
        let found = Encoding::of(&headers).map_err(|problem| problem.status.as_u16());
        assert_eq!(found, expected.ok_or(415), "{given:?}");
    }
}
