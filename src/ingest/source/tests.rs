use std::io::Write as _;

use base64::engine::general_purpose::STANDARD;
use flate2::{Compression, write::GzEncoder};
use url::form_urlencoded;

use super::*;
use crate::{
    config::{ByteSize, EventConfig},
    ingest::{
        check::{EventError, EventId},
        in_flight::InFlight,
    },
    log::record::Headers,
    position::Timestamp,
};

const SEGMENT: &str = r#"{"path":"/v1/batch","records":"/batch","type":"/type","id":"/messageId","time":"/timestamp","client":"/userId"}"#;
const WEBHOOK: &str = r#"{"path":"/hook","type":{"fixed":"alert"},"client":"/labels/name"}"#;

fn source(json: &str) -> HttpSource {
    serde_json::from_str(json).expect("a source")
}

fn try_check(json: &str, body: &[u8], max_body: u64) -> Result<Checked, Problem> {
    let http = HttpConfig { max_body: ByteSize(max_body), max_events: 100, ..HttpConfig::default() };
    let in_flight = InFlight::default();
    let mut share = Reservation::new(&in_flight, http.max_in_flight);
    let fields = EventFields::from(&EventConfig::default());
    let body = Bytes::copy_from_slice(body);
    let checked =
        check(body, &source(json), Format::Json, &http, &fields, Timestamp(1_795_420_801_000).into(), &mut share)?;
    drop(share);
    assert!(in_flight.all.get() <= checked.body.len() as i64 * 3 + (64 << 10), "{}", in_flight.all.get());
    Ok(checked)
}

/// How a body is refused as a whole.
fn refused(json: &str, body: &[u8], max_body: u64) -> Problem {
    try_check(json, body, max_body).map_or_else(|problem| problem, |checked| checked.refusal.expect("refused"))
}

/// What is wrong: its bytes, its code, and what stands beside it.
fn wrong(checked: &Checked) -> Vec<(String, Code, String)> {
    let error = |error: &EventError| {
        let value = error.value.unwrap();
        let headers = error.headers.map_or(Headers::NONE, |it| Headers::new(it.count, it.bytes.of(&checked.aside)));
        let header =
            |(name, value): (&str, Option<&[u8]>)| format!("{name}={}", String::from_utf8_lossy(value.unwrap()));
        let headers: Vec<_> = headers.iter().map(header).collect();
        let value = String::from_utf8_lossy(value.of(&checked.body, &checked.aside)).into_owned();
        (value, error.invalid.code, headers.join(" "))
    };
    checked.errors.iter().map(error).collect()
}

fn checked(json: &str, body: &[u8]) -> Checked {
    try_check(json, body, 1 << 20).unwrap()
}

/// Each record: its value, key and headers, in words.
fn records(checked: &Checked) -> Vec<(String, Option<String>, Vec<String>)> {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let record = |record: &crate::log::NewRecord| {
        let headers = record.headers.expect("headers");
        let headers = Headers::new(headers.count, headers.bytes.of(&checked.aside));
        (
            text(record.value.of(&checked.body, &checked.aside)),
            record.key.map(|key| text(key.of(&checked.body, &checked.aside))),
            headers.iter().map(|(name, value)| format!("{name}={}", text(value.unwrap()))).collect(),
        )
    };
    checked.records.iter().map(record).collect()
}

fn codes(checked: &Checked) -> Vec<(usize, Code)> {
    checked.errors.iter().map(|error| (error.index, error.invalid.code)).collect()
}

#[test]
fn an_event_stays_as_it_came_and_what_was_found_travels_beside_it() {
    let body = br#"{"batch": [ {"type":"track", "messageId":"m-1", "userId":42, "timestamp":"2026-11-23T08:00:00Z"} ,
        {"userId":null,"type":"pa\u0067e","timestamp":null} ], "writeKey":"x"}"#;
    let checked = checked(SEGMENT, body);
    let [(first, key, headers), (second, no_key, further)] = &records(&checked)[..] else { panic!("{checked:?}") };
    assert_eq!(first, r#"{"type":"track", "messageId":"m-1", "userId":42, "timestamp":"2026-11-23T08:00:00Z"}"#);
    assert_eq!(key.as_deref(), Some("42"));
    assert_eq!(headers[..], ["ce_id=m-1", "ce_source=42", "ce_time=2026-11-23T08:00:00Z", "ce_type=track"]);
    assert_eq!((second.len(), no_key), (r#"{"userId":null,"type":"pa\u0067e","timestamp":null}"#.len(), &None));
    assert_eq!(further[..], ["ce_type=page"]);
    assert!(matches!(checked.accepted[0].id, EventId::InBody(id) if id.of(&checked.body) == b"m-1"));
    assert!(checked.records[1].assigned_id.is_some());
}

#[test]
fn what_is_found_is_a_strings_characters_or_a_scalars_text() {
    let source = source(r#"{"path":"/a","type":"/t","id":"/i","time":"/time/0","client":"/c"}"#);
    let finder = Finder::new(&source);
    for (event, expected) in [
        (r#"{"t":"a","i":7,"time":[1795420800123.5],"c":true}"#, [Some("7"), Some("1795420800123.5"), Some("true")]),
        (r#"{"t":"a","i":"\u0031","time":["x"],"c":""}"#, [Some("1"), Some("x"), Some("")]),
        (r#"{"t":"a","i":null,"time":[{"s":1}],"c":{}}"#, [None, Some("{\"s\":1}"), None]),
        (r#"{"t":"a"}"#, [None; 3]),
    ] {
        let (attributes, None) = finder.attributes(event.as_bytes()) else { panic!("{event}") };
        let get = |name: &str| {
            let mut headers = attributes.headers();
            headers
                .find(|(known, _)| *known == name)
                .map(|(_, value)| String::from_utf8(value.unwrap().to_vec()).unwrap())
        };
        let found = ["ce_id", "ce_time", "ce_source"].map(get);
        assert_eq!(found.each_ref().map(Option::as_deref), expected, "{event}");
        assert_eq!(get("ce_type").as_deref(), Some("a"));
    }
}

#[test]
fn without_records_the_body_is_one_event_and_what_is_fixed_is_the_same_for_all() {
    let whole = checked(WEBHOOK, b" {\"labels\":{\"name\":\"disk\"}}\n");
    let expected = ["ce_source=disk".to_owned(), "ce_type=alert".to_owned()].to_vec();
    assert_eq!(records(&whole), [(r#"{"labels":{"name":"disk"}}"#.to_owned(), Some("disk".to_owned()), expected)]);
    // An event of another kind than an object has a type, too.
    assert_eq!(records(&checked(WEBHOOK, b"[1]"))[0].0, "[1]");
    for broken in ["", "{", "{} {}", "nul"] {
        let problem = refused(WEBHOOK, broken.as_bytes(), 100);
        assert_eq!((problem.status.as_u16(), problem.code), (400, Some(Code::InvalidJson)), "{broken}");
    }
}

#[test]
fn where_the_body_is_the_array_it_is_split_as_ours_are() {
    let ecs = r#"{"path":"/ecs","records":"","type":{"fixed":"log"},"time":"/@timestamp","client":"/service.name"}"#;
    let many = checked(ecs, br#"[{"@timestamp":"2026-11-23T08:00:00Z","service.name":"shop"},{}]"#);
    let headers: Vec<_> = records(&many).into_iter().map(|record| record.2.join(" ")).collect();
    assert_eq!(headers, ["ce_source=shop ce_time=2026-11-23T08:00:00Z ce_type=log", "ce_type=log"]);
    assert_eq!(records(&checked(ecs, b"{}")).len(), 1);
    assert_eq!(records(&checked(ecs, b"{} {}\n{}")).len(), 3);
    assert_eq!(codes(&checked(ecs, b"{}\n{")), [(1, Code::InvalidJson)]);
    assert_eq!(codes(&checked(ecs, b"[{},{\"a\":NaN},{}]")), [(1, Code::InvalidJson)]);
    assert!(records(&checked(ecs, b"[]")).is_empty());
}

#[test]
fn a_wrong_event_is_named_with_the_place_where_something_was_looked_for_and_the_others_are_taken() {
    let body = br#"{"batch":[{"type":"a"},{"event":"b"},{"type":7},{"type":"c","messageId":{}},{"type":""},7,
        {"type":"d","messageId":8,"userId":[]},{"type":"e","messageId":""}]}"#;
    let checked = checked(SEGMENT, body);
    let expected = [
        (1, Code::MissingType),
        (2, Code::InvalidType),
        (3, Code::InvalidId),
        (4, Code::InvalidType),
        (5, Code::MissingType),
        (7, Code::InvalidId),
    ];
    assert_eq!(codes(&checked), expected);
    for index in [0, 1, 4] {
        assert!(checked.errors[index].invalid.message.contains("\"/type\""), "{:?}", checked.errors[index]);
    }
    assert!(checked.errors[2].invalid.message.contains("\"/messageId\""), "{:?}", checked.errors[2]);
    let records = records(&checked);
    assert_eq!(records.len(), 2);
    assert_eq!(
        (records[1].1.as_deref(), &records[1].2[..]),
        (None, &["ce_id=8".to_owned(), "ce_type=d".to_owned()][..])
    );
}

#[test]
fn a_body_without_its_array_is_refused_as_a_whole_and_says_where_it_was_looked_for() {
    for (body, words) in [
        (r#"{"events":[]}"#, "no array of events at \"/batch\""),
        (r#"{"batch":7}"#, "no array of events at \"/batch\""),
        ("[]", "no array of events at \"/batch\""),
        (r#"{"batch":[{"type":"a"}],"sentAt":}"#, "not valid JSON"),
        (r#"{"batch":[{"type":"a"}"#, "not valid JSON"),
        ("", "empty"),
    ] {
        let problem = refused(SEGMENT, body.as_bytes(), 1 << 20);
        assert!(problem.status == 400 && problem.detail.contains(words), "{body}: {problem}");
    }
    let many = format!(r#"{{"batch":[{}]}}"#, vec!["7"; 101].join(","));
    assert_eq!(try_check(SEGMENT, many.as_bytes(), 1 << 20).unwrap_err().status, 413);
    assert_eq!(records(&checked(SEGMENT, br#"{"batch":{"type":"alone"}}"#)).len(), 1);
}

fn gzip(body: &[u8]) -> Vec<u8> {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(body).unwrap();
    gzip.finish().unwrap()
}

#[test]
fn a_body_is_unwrapped_by_what_it_begins_with() {
    let json = r#"{"batch":[{"type":"a+b c"}]}"#;
    let base64 = |body: &[u8]| form_urlencoded::byte_serialize(STANDARD.encode(body).as_bytes()).collect::<String>();
    let escaped = form_urlencoded::byte_serialize(json.as_bytes()).collect::<String>();
    for body in [
        gzip(json.as_bytes()),
        format!("data={}", base64(json.as_bytes())).into_bytes(),
        format!("data={}&ip=1", STANDARD.encode(json)).into_bytes(),
        format!("data={}", base64(&gzip(json.as_bytes()))).into_bytes(),
        format!("payload={escaped}").into_bytes(),
    ] {
        assert!(is_wrapped(&body));
        assert_eq!(records(&checked(SEGMENT, &body))[0].0, r#"{"type":"a+b c"}"#);
    }
    for (body, words, code) in [
        (&b"data=*"[..], "neither JSON nor base64", Some(Code::InvalidJson)),
        (&gzip(json.as_bytes())[..20], "gzip stream ends", None),
    ] {
        let problem = refused(SEGMENT, body, 1 << 20);
        assert!(problem.status == 400 && problem.detail.contains(words), "{problem}");
        assert_eq!(problem.code, code);
    }
}

#[test]
fn a_form_is_taken_with_its_data_anywhere_and_no_json_is_one() {
    for body in [
        "data=eyJhIjoxMX0",
        "data=eyJhIjoxMX0%3D",
        "compression=base64&data=eyJhIjoxMX0=",
        "ip=1&ver=1.2&x=%C3%A9+y&payload=%7B%22a%22%3A11%7D&data=x",
        "data={\"a\":11}",
    ] {
        assert!(is_wrapped(body.as_bytes()), "{body}");
        assert_eq!(records(&checked(WEBHOOK, body.as_bytes()))[0].0, "{\"a\":11}", "{body}");
    }
    for body in ["{\"a\":\"&data=x\"}", "7 {\"a\":\"&data=x\"}", "\"&data=x\"", "true", "x&", "x&y", "nodata=x", ""] {
        assert!(!is_wrapped(body.as_bytes()), "{body}");
    }
}

#[test]
fn bytes_that_are_no_text_are_not_changed_into_some() {
    let form = b"payload=%7B%22a%22%3A%22%FF%22%7D";
    assert_eq!(refused(WEBHOOK, form, 100).code, Some(Code::InvalidJson));
    let checked = checked(WEBHOOK, form);
    let error = &checked.errors[0];
    assert_eq!(error.value.unwrap().of(&checked.body, &checked.aside), b"{\"a\":\"\xff\"}");
}

#[test]
fn beside_what_is_wrong_stands_what_is_fixed_and_what_could_be_found() {
    let expected = |value: &str, headers: &str| (value.to_owned(), Code::InvalidJson, headers.to_owned());
    let named = "ce_source=w ce_type=alert";
    for (body, value, headers) in [
        (r#" {"labels":{"name":"w"},"a":1,"a":2}"#, r#"{"labels":{"name":"w"},"a":1,"a":2}"#, named),
        (r#"{"labels":{"name":"w"},"a":NaN}"#, r#"{"labels":{"name":"w"},"a":NaN}"#, named),
        (
            r#"{"a":1,"labels":{"name":"\ud800"}}"#,
            r#"{"a":1,"labels":{"name":"\ud800"}}"#,
            "ce_type=alert ingestd-wrong=ce_source",
        ),
        (r#"{"labels":{"name":w},"a":1}"#, r#"{"labels":{"name":w},"a":1}"#, "ce_type=alert"),
        (r#"{"labels":{"name":"w"},"a":"#, r#"{"labels":{"name":"w"},"a":"#, "ce_type=alert"),
        ("data=%7B%22a%22", r#"{"a""#, "ce_type=alert"),
    ] {
        let checked = checked(WEBHOOK, body.as_bytes());
        assert_eq!(wrong(&checked), [expected(value, headers)]);
        assert!(checked.refusal.is_some() && checked.records.is_empty(), "{body}");
    }
    let broken =
        checked(SEGMENT, br#"{"batch":[{"type":"a","userId":7,"timestamp":5,"x":NaN},{"type":"b"},{"type" 1}]}"#);
    let expected = [
        expected(r#"{"type":"a","userId":7,"timestamp":5,"x":NaN}"#, "ce_source=7 ce_time=5e0 ce_type=a"),
        expected(r#"{"type" 1}"#, ""),
    ];
    assert!(broken.refusal.is_none());
    assert_eq!(wrong(&broken), expected);
    let list = r#"{"path":"/ecs","records":"","type":{"fixed":"log"}}"#;
    let several = checked(list, b"{}\n{\"a\":tru}");
    assert_eq!(wrong(&several), [("{\"a\":tru}".to_owned(), Code::InvalidJson, "ce_type=log".to_owned())]);
    let fixed = |json: &str| {
        let attributes = super::beside(&source(json));
        attributes.headers().map(|(name, _)| name.to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(fixed(WEBHOOK), ["ce_type"]);
    assert!(fixed(list).is_empty(), "there may be many");
}

#[test]
fn a_time_is_read_as_it_is_in_our_own_events() {
    let source = r#"{"path":"/a","type":{"fixed":"a"},"time":"/timestamp"}"#;
    let fields = EventFields::from(&EventConfig::default());
    for time in [
        "1.7643168e9",
        "1795420800123",
        "0",
        "5",
        "86400",
        "20261128",
        "86400.5",
        "-1",
        "-86400.5e0",
        "1e2",
        "true",
        "{}",
        "[7]",
        "null",
        "\"20261128\"",
        "\"86400\"",
        "\"1.7643168e9\"",
        "\"-5\"",
        "\"2026-11-23T08:00:00Z\"",
        "\"\"",
    ] {
        let event = format!(r#"{{"type":"a","timestamp":{time}}}"#);
        let received = Timestamp(1_795_420_801_000);
        let own = event::parse(event.as_bytes(), &fields, received).unwrap();
        let finder_source = self::source(source);
        let finder = Finder::new(&finder_source);
        let (attributes, None) = finder.attributes(event.as_bytes()) else { panic!("{event}") };
        let (read, _) = event::read(event.as_bytes(), attributes.headers(), &fields, received).unwrap();
        assert_eq!((read.time, read.invalid_time), (own.time, own.invalid_time), "{time}");
        assert_eq!(checked(source, event.as_bytes()).warnings.len(), usize::from(own.invalid_time.is_some()), "{time}");
    }
}

#[test]
fn whatever_may_be_a_body_gets_in_where_nothing_else_is_in_flight() {
    const MOST: u64 = 1 << 20;
    let noise: String = (0..48_000u64).map(|at| format!("{:016x}", at.wrapping_mul(0x9e37_79b9_7f4a_7c15))).collect();
    let json = format!(r#"{{"batch":[{{"type":"a","x":"{noise}"}},{{"type":"b"}}]}}"#);
    let compressed = gzip(json.as_bytes());
    let form = |bytes: &[u8]| format!("data={}", STANDARD.encode(bytes)).into_bytes();
    assert!(json.len() + compressed.len() > MOST as usize, "{} and {}", json.len(), compressed.len());
    for body in [json.clone().into_bytes(), form(json.as_bytes()), form(&compressed), compressed] {
        let http = HttpConfig { max_body: ByteSize(MOST), max_event: ByteSize(MOST), ..HttpConfig::default() };
        let fields = EventFields::from(&EventConfig::default());
        let in_flight = InFlight::default();
        let taken = |others: i64| {
            in_flight.all.inc_by(others);
            let mut own = Reservation::new(&in_flight, ByteSize(MOST));
            own.grow(body.len()).unwrap();
            let mut share = own.beside();
            let body = own.hold(body.clone());
            let checked = check(body, &source(SEGMENT), Format::Json, &http, &fields, Timestamp(0).into(), &mut share);
            let taken = checked.map(|checked| checked.records.len()).map_err(|problem| problem.status.as_u16());
            drop(share);
            in_flight.all.dec_by(others);
            taken
        };
        assert_eq!(taken(0), Ok(2), "{} bytes", body.len());
        if is_wrapped(&body) {
            assert_eq!(taken(1), Err(503), "{} bytes", body.len());
        }
        assert_eq!(in_flight.all.get(), 0);
    }
}

#[test]
fn a_compressed_body_ends_at_the_bound_whatever_it_would_be() {
    let spaces = gzip(&vec![b' '; 8 << 20]);
    assert!(spaces.len() < 256 << 10);
    assert_eq!(try_check(SEGMENT, &spaces, 1 << 20).unwrap_err().status, 413);
    let http = HttpConfig { max_body: ByteSize(8 << 20), ..HttpConfig::default() };
    let in_flight = InFlight::default();
    let share = Reservation::new(&in_flight, ByteSize(1 << 20));
    let mut other = Reservation::new(&in_flight, ByteSize(1 << 20));
    other.grow(1).unwrap();
    let unwrapped = unwrap(&spaces.into(), &http, &share);
    assert_eq!(unwrapped.unwrap_err().status, 503, "more than may be in flight");
    drop(other);
    assert_eq!(in_flight.all.get(), 0);
}

#[test]
fn a_success_is_answered_in_the_senders_own_words_and_nothing_else_is() {
    let answered = |answer: &str, status: u16| {
        let mut source = source(WEBHOOK);
        source.answer = Some(answer.to_owned());
        let summary = HttpResponse::build(actix_web::http::StatusCode::from_u16(status).unwrap()).body("summary");
        let response = super::answer(summary, &source);
        assert_eq!(response.status(), status);
        let content_type = response.headers().get(CONTENT_TYPE).map(|value| value.to_str().unwrap().to_owned());
        let body = actix_web::body::MessageBody::try_into_bytes(response.into_body()).unwrap_or_default();
        (String::from_utf8(body.to_vec()).unwrap(), content_type.unwrap_or_default())
    };
    let json = "application/json".to_owned();
    assert_eq!(answered(r#"{"code":200}"#, 200), (r#"{"code":200}"#.to_owned(), json.clone()));
    assert_eq!(answered(r#"{"code":200}"#, 207).1, json);
    assert_eq!(answered("ok", 200), ("ok".to_owned(), "text/plain; charset=utf-8".to_owned()));
    assert_eq!(answered("ok", 400).0, "summary");
}
