//! `[[http.source]]`: bodies of other shapes than ours. Where their events are, and what of them is type, id, time and client,
//! the configuration says; the events stay as they came, and what was found of them travels beside them.

use std::borrow::Cow;

use actix_web::{
    HttpResponse,
    body::BoxBody,
    http::header::{CONTENT_TYPE, HeaderValue},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use serde::de::IgnoredAny;
use url::form_urlencoded;

use super::{
    attributes::Attributes,
    check::{Checked, invalid_body, no_text},
    checking::Checking,
    coding::{Coding, Inflating},
    format::{Events, Format, SeveralTexts, Unsplittable, split, texts, whole},
    in_flight::Reservation,
};
use crate::{
    config::{HttpConfig, HttpSource, Lookup, Pointer},
    event::{self, Code, EventFields, Invalid, Pointers},
    http::Problem,
    position::Timestamp,
};

/// What bodies that are wrapped begin with, whatever their head says of them: gzip, and forms with one field (PostHog's browsers,
/// GitHub).
const GZIP: &[u8] = b"\x1f\x8b";
const FORMS: [&[u8]; 2] = [b"data=", b"payload="];

/// Whether a body may be far more than its bytes.
pub fn is_compressed(body: &[u8]) -> bool {
    body.starts_with(GZIP) || is_form(body)
}

fn is_form(body: &[u8]) -> bool {
    FORMS.iter().any(|form| body.starts_with(form))
}

/// Takes a body of this source apart, and checks its events. `lines` is how a body that is the array itself is sent.
///
/// # Errors
/// What refuses the body as a whole: then nothing of it is accepted.
pub fn check(
    body: Bytes,
    source: &HttpSource,
    lines: Format,
    http: &HttpConfig,
    fields: &EventFields,
    received: Timestamp,
    share: &mut Reservation,
) -> Result<Checked, Problem> {
    let came = body.len();
    let body = unwrap(body, http, share)?;
    let found = Finder::new(source);
    let events = match split_by(source, &body, lines, http.max_events)? {
        // What is no JSON text may be several.
        Events::One(event) if is_list(source) && !found.is_json(event) => {
            texts(event, http.max_events)?.map_or(Events::One(event), Events::Texts)
        }
        events => events,
    };
    let mut checking = Checking::new(came, &body, http, fields, received, share);
    checking.expect(events.count())?;
    let mut take = |index, event| match found.attributes(event) {
        (attributes, None) => checking.take(index, event, &attributes),
        (attributes, Some(invalid)) => checking.refuse_with(index, event, &attributes, invalid),
    };
    let (is_one, events, broken) = match events {
        Events::One(event) => (true, vec![event], None),
        Events::Many(events) => (false, events, None),
        Events::Texts(SeveralTexts { whole, broken }) => (false, whole, broken),
    };
    let count = events.len();
    events.into_iter().enumerate().try_for_each(|(index, event)| take(index, event))?;
    if let Some(rest) = broken {
        checking.refuse(count, rest, no_text(rest, fields, received));
    }
    let checked = checking.finish()?;
    match checked.errors.first() {
        // Broken syntax: nothing of the body is accepted.
        Some(error) if is_one && error.invalid.code == Code::InvalidJson => Err(invalid_body(&error.invalid)),
        _ => Ok(checked),
    }
}

/// Whether a body is the list of events itself.
fn is_list(source: &HttpSource) -> bool {
    source.records.as_ref().is_some_and(|records| records.names().is_empty())
}

/// The events of a body.
fn split_by<'b>(
    source: &HttpSource,
    body: &'b [u8],
    lines: Format,
    max_events: usize,
) -> Result<Events<'b>, Unsplittable> {
    let Some(records) = &source.records else { return whole(body).map(Events::One) };
    if is_list(source) {
        return split(body, lines, max_events);
    }
    // Other events are no worse for a broken one, but what surrounds them has to be JSON.
    let text = whole(body)?;
    let place = event::locate(text, records).filter(|place| event::surrounds(text, place));
    let value = place.map(|place| &text[place]);
    match value.and_then(<[u8]>::first) {
        Some(b'[') => split(value.unwrap_or_default(), Format::Json, max_events),
        // Of some senders one is sent alone.
        Some(b'{') => Ok(Events::One(value.unwrap_or_default())),
        _ => match serde_json::from_slice::<IgnoredAny>(text) {
            Ok(_) => Err(Unsplittable::NoRecords(records.to_string())),
            Err(error) => Err(Unsplittable::Syntax(error.to_string())),
        },
    }
}

/// Finds what a source says of its events.
struct Finder<'s> {
    pointers: Pointers,
    lookups: [(&'static str, Option<&'s Lookup>); 4],
}

impl<'s> Finder<'s> {
    fn new(source: &'s HttpSource) -> Self {
        let lookups = [
            ("ce_type", source.r#type.as_ref()),
            ("ce_id", source.id.as_ref()),
            ("ce_time", source.time.as_ref()),
            ("ce_source", source.client.as_ref()),
        ];
        let mut pointers = Pointers::default();
        for (place, (_, lookup)) in lookups.iter().enumerate() {
            if let Some(Lookup::At(pointer)) = lookup {
                pointers.add(pointer, place);
            }
        }
        Self { pointers, lookups }
    }

    fn is_json(&self, event: &[u8]) -> bool {
        self.pointers.find_in(event, &mut [None; 4]).is_ok()
    }

    /// What an event brings, as the headers of its record, and the first of it that is wrong.
    fn attributes<'a>(&'a self, event: &'a [u8]) -> (Attributes<'a>, Option<Invalid>) {
        let mut found = [None; 4];
        let mut attributes = Attributes::default();
        if let Err(invalid) = self.pointers.find_in(event, &mut found) {
            return (attributes, Some(invalid));
        }
        let mut first = None;
        for ((name, lookup), json) in self.lookups.into_iter().zip(found) {
            let value = match lookup {
                None => Ok(None),
                Some(Lookup::Fixed { fixed }) => Ok(Some(Cow::Borrowed(fixed.as_str()))),
                Some(Lookup::At(pointer)) => value_of(name, json, pointer),
            };
            match value {
                Ok(value) => value.into_iter().for_each(|value| attributes.set(name, value)),
                Err(invalid) => drop(first.get_or_insert(invalid)),
            }
        }
        (attributes, first)
    }
}

/// Characters that these may have, here as in our own events.
const LONGEST_TYPE: usize = 128;
const LONGEST_ID: usize = 256;

/// What the JSON that was found for this header says. A number is taken as it is written, `null` is as good as nothing.
fn value_of<'a>(name: &str, json: Option<&'a str>, pointer: &Pointer) -> Result<Option<Cow<'a, str>>, Invalid> {
    let at = || format!("{:?}", pointer.to_string());
    let first = json.and_then(|json| json.as_bytes().first()).copied();
    let json = json.unwrap_or_default();
    let text = match first {
        None | Some(b'n') => None,
        Some(b'"') => Some(event::unescape(json).map_err(|error| {
            Invalid::new(Code::InvalidJson, format!("the string at {} cannot be read: {error}", at()))
        })?),
        Some(_) => Some(Cow::Borrowed(json)),
    };
    let has_length =
        |most: usize| text.as_deref().is_some_and(|text: &str| !text.is_empty() && text.chars().nth(most).is_none());
    let is_nested = matches!(first, Some(b'{' | b'['));
    match name {
        "ce_type" if text.is_none() => {
            let rule = format!("there is no type at {}: it must be a string of 1 to {LONGEST_TYPE} characters", at());
            Err(Invalid::new(Code::MissingType, rule))
        }
        "ce_type" if first != Some(b'"') || !has_length(LONGEST_TYPE) => {
            let rule = format!("the type at {} must be a string of 1 to {LONGEST_TYPE} characters", at());
            Err(Invalid::new(Code::InvalidType, rule))
        }
        "ce_id" if is_nested || (text.is_some() && !has_length(LONGEST_ID)) => {
            let rule =
                format!("the id at {} must be a string of 1 to {LONGEST_ID} characters or a number, or absent", at());
            Err(Invalid::new(Code::InvalidId, rule))
        }
        // As with our own events, such a client is none.
        "ce_source" if is_nested => Ok(None),
        // One that cannot be read is judged as such, at the door and by readers.
        _ => Ok(text),
    }
}

/// The body without what it is wrapped in: base64 in a form, gzip without a word of it in the head.
fn unwrap(body: Bytes, http: &HttpConfig, share: &Reservation) -> Result<Bytes, Problem> {
    let body = if is_form(&body) { from_form(&body, share)? } else { body };
    if !body.starts_with(GZIP) {
        return Ok(body);
    }
    let mut inflating = Inflating::new(Coding::Gzip, body.len(), http.max_body.as_usize(), share.another());
    inflating.push(body)?;
    inflating.finish()
}

fn from_form(body: &[u8], share: &Reservation) -> Result<Bytes, Problem> {
    let mut own = share.another();
    own.grow(2 * body.len())?;
    let data = form_urlencoded::parse(body).next().map(|(_, data)| data).unwrap_or_default();
    if data.trim_start().starts_with(['{', '[']) {
        return Ok(own.hold(data.into_owned()));
    }
    // A plus that was not escaped is a space in a form.
    match STANDARD.decode(data.replace(' ', "+")) {
        Ok(bytes) => Ok(own.hold(bytes)),
        Err(error) => Err(Problem::bad_request(format!(
            "the field of this form is neither JSON nor base64, nothing was accepted: {error}"
        ))),
    }
}

/// What the sender is answered: its own words for a success, where it wants some.
pub fn answer(summary: HttpResponse, source: &HttpSource) -> HttpResponse {
    let Some(answer) = source.answer.clone().filter(|_| summary.status().is_success()) else { return summary };
    let is_json = serde_json::from_str::<IgnoredAny>(&answer).is_ok();
    let media_type = if is_json { "application/json" } else { "text/plain; charset=utf-8" };
    let mut response = summary.set_body(BoxBody::new(answer));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    response
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use flate2::{Compression, write::GzEncoder};
    use prometheus_client::metrics::gauge::Gauge;

    use super::*;
    use crate::{
        config::{ByteSize, EventConfig},
        ingest::check::EventId,
        log::record::Headers,
    };

    const SEGMENT: &str = r#"{"path":"/v1/batch","records":"/batch","type":"/type","id":"/messageId","time":"/timestamp","client":"/userId"}"#;
    const WEBHOOK: &str = r#"{"path":"/hook","type":{"fixed":"alert"},"client":"/labels/name"}"#;

    fn source(json: &str) -> HttpSource {
        serde_json::from_str(json).expect("a source")
    }

    fn try_check(json: &str, body: &[u8], max_body: u64) -> Result<Checked, Problem> {
        let http = HttpConfig { max_body: ByteSize(max_body), max_events: 100, ..HttpConfig::default() };
        let in_flight = Gauge::default();
        let mut share = Reservation::new(&in_flight, http.max_in_flight);
        let fields = EventFields::from(&EventConfig::default());
        let body = Bytes::copy_from_slice(body);
        let checked =
            check(body, &source(json), Format::Json, &http, &fields, Timestamp(1_795_420_801_000), &mut share);
        drop(share);
        if let Ok(checked) = &checked {
            assert!(in_flight.get() <= checked.body.len() as i64 * 3 + (64 << 10), "{}", in_flight.get());
        }
        checked
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
        let body =
            br#"{"batch": [ {"type":"track", "messageId":"m-1", "userId":42, "timestamp":"2026-11-23T08:00:00Z"} ,
            {"userId":null,"type":"pa\u0067e","timestamp":null} ], "writeKey":"x"}"#;
        let checked = checked(SEGMENT, body);
        let [(first, key, headers), (second, no_key, further)] = &records(&checked)[..] else { panic!("{checked:?}") };
        assert_eq!(first, r#"{"type":"track", "messageId":"m-1", "userId":42, "timestamp":"2026-11-23T08:00:00Z"}"#);
        assert_eq!(key.as_deref(), Some("42"));
        assert_eq!(headers[..], ["ce_type=track", "ce_id=m-1", "ce_time=2026-11-23T08:00:00Z", "ce_source=42"]);
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
            (
                r#"{"t":"a","i":7,"time":[1795420800123.5],"c":true}"#,
                [Some("7"), Some("1795420800123.5"), Some("true")],
            ),
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
        let expected = ["ce_type=alert".to_owned(), "ce_source=disk".to_owned()].to_vec();
        assert_eq!(records(&whole), [(r#"{"labels":{"name":"disk"}}"#.to_owned(), Some("disk".to_owned()), expected)]);
        // An event of another kind than an object has a type, too.
        assert_eq!(records(&checked(WEBHOOK, b"[1]"))[0].0, "[1]");
        for broken in ["", "{", "{} {}", "nul"] {
            let problem = try_check(WEBHOOK, broken.as_bytes(), 100).unwrap_err();
            assert_eq!((problem.status.as_u16(), problem.code), (400, Some(Code::InvalidJson)), "{broken}");
        }
    }

    #[test]
    fn where_the_body_is_the_array_it_is_split_as_ours_are() {
        let ecs =
            r#"{"path":"/ecs","records":"","type":{"fixed":"log"},"time":"/@timestamp","client":"/service.name"}"#;
        let many = checked(ecs, br#"[{"@timestamp":"2026-11-23T08:00:00Z","service.name":"shop"},{}]"#);
        let headers: Vec<_> = records(&many).into_iter().map(|record| record.2.join(" ")).collect();
        assert_eq!(headers, ["ce_type=log ce_time=2026-11-23T08:00:00Z ce_source=shop", "ce_type=log"]);
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
            (None, &["ce_type=d".to_owned(), "ce_id=8".to_owned()][..])
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
            let problem = try_check(SEGMENT, body.as_bytes(), 1 << 20).unwrap_err();
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
        let base64 =
            |body: &[u8]| form_urlencoded::byte_serialize(STANDARD.encode(body).as_bytes()).collect::<String>();
        let escaped = form_urlencoded::byte_serialize(json.as_bytes()).collect::<String>();
        for body in [
            gzip(json.as_bytes()),
            format!("data={}", base64(json.as_bytes())).into_bytes(),
            format!("data={}&ip=1", STANDARD.encode(json)).into_bytes(),
            format!("data={}", base64(&gzip(json.as_bytes()))).into_bytes(),
            format!("payload={escaped}").into_bytes(),
        ] {
            assert!(is_compressed(&body));
            assert_eq!(records(&checked(SEGMENT, &body))[0].0, r#"{"type":"a+b c"}"#);
        }
        for (body, words) in
            [(&b"data=*"[..], "neither JSON nor base64"), (&gzip(json.as_bytes())[..20], "gzip stream ends")]
        {
            let problem = try_check(SEGMENT, body, 1 << 20).unwrap_err();
            assert!(problem.status == 400 && problem.detail.contains(words), "{problem}");
        }
    }

    #[test]
    fn a_compressed_body_ends_at_the_bound_whatever_it_would_be() {
        let spaces = gzip(&vec![b' '; 8 << 20]);
        assert!(spaces.len() < 64 << 10);
        assert_eq!(try_check(SEGMENT, &spaces, 1 << 20).unwrap_err().status, 413);
        let http = HttpConfig { max_body: ByteSize(8 << 20), ..HttpConfig::default() };
        let in_flight = Gauge::default();
        let share = Reservation::new(&in_flight, ByteSize(1 << 20));
        assert_eq!(unwrap(spaces.into(), &http, &share).unwrap_err().status, 503, "more than may be in flight");
        assert_eq!(in_flight.get(), 0);
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
}
