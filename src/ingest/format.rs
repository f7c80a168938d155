//! The formats of a body: each has a file here, which splits it into its events: parts of the body, nothing copied, no tree
//! built. A new one is such a file, and a line of it in each function here.

mod brackets;
mod json;
mod ndjson;

use actix_web::http::{
    StatusCode,
    header::{CONTENT_TYPE, HeaderMap, HeaderValue},
};
use bytes::Bytes;

use super::in_flight::Reservation;
use crate::{
    event::{Code, shortened},
    http::Problem,
    vector::trim,
};

/// How a body holds its events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// One object, an array of them, or several JSON texts one behind the other.
    Json,
    /// An event a line; each non-blank line stands alone.
    Ndjson,
    /// One CloudEvent in its envelope.
    CloudEvent,
    /// An array of these.
    CloudEvents,
    /// The data of one event, whose attributes are the request's headers.
    Data,
}

impl Format {
    /// Those that `Content-Type` names, without parameters.
    pub(super) const NAMED: [(Self, &'static str); 7] = [
        (Self::Json, "application/json"),
        // None of these four is registered; each is some sender's default.
        (Self::Ndjson, "application/x-ndjson"),
        (Self::Ndjson, "application/ndjson"),
        (Self::Ndjson, "application/jsonl"),
        (Self::Ndjson, "application/x-jsonlines"),
        (Self::CloudEvent, "application/cloudevents+json"),
        (Self::CloudEvents, "application/cloudevents-batch+json"),
    ];

    /// What `Content-Type` says that the body is; without one it is JSON.
    ///
    /// # Errors
    /// 415 for another media type, another charset than UTF-8, and more than one `Content-Type`.
    pub(super) fn of(headers: &HeaderMap) -> Result<Self, Problem> {
        let unsupported = |detail: &str| {
            let named = Self::NAMED.map(|(_, media_type)| media_type).join(", ");
            let detail = format!(
                "{detail}: send one of {named}, in UTF-8 (or with the headers of a CloudEvent, any that its data has)"
            );
            Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail)
        };
        let mut given = headers.get_all(CONTENT_TYPE);
        let Some(content_type) = given.next() else { return Ok(Self::Json) };
        if given.next().is_some() {
            return Err(unsupported("more than one Content-Type"));
        }
        let unknown = || unsupported("this Content-Type is not taken");
        let mut parts = content_type.to_str().map_err(|_| unknown())?.split(';').map(str::trim);
        let media_type = parts.next().unwrap_or_default();
        let mut named = Self::NAMED.into_iter();
        let known = named.find_map(|(format, name)| name.eq_ignore_ascii_case(media_type).then_some(format));
        let format = known.ok_or_else(unknown)?;
        if parts.all(is_utf_8) { Ok(format) } else { Err(unsupported("the charset of this Content-Type is not taken")) }
    }

    /// Looks at the charset of a body that is JSON whatever it is called.
    ///
    /// # Errors
    /// 415 for another one than UTF-8.
    pub(super) fn check_charset(headers: &HeaderMap) -> Result<(), Problem> {
        let is_utf_8 = |given: &HeaderValue| String::from_utf8_lossy(given.as_bytes()).split(';').skip(1).all(is_utf_8);
        if headers.get_all(CONTENT_TYPE).all(is_utf_8) {
            return Ok(());
        }
        let detail = "the charset of this Content-Type is not taken: send JSON in UTF-8, whatever its media type";
        Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail))
    }

    /// The JSON texts that are split: the body itself, or what a format that is not JSON rewrites it to, as a part of the
    /// request's share.
    pub(super) fn into_json(self, body: Bytes, _share: &mut Reservation) -> Result<Bytes, Problem> {
        match self {
            Self::Json | Self::Ndjson | Self::CloudEvent | Self::CloudEvents | Self::Data => Ok(body),
        }
    }
}

/// Whether a parameter of `Content-Type` leaves the body in UTF-8, of which ASCII is a part.
pub(super) fn is_utf_8(parameter: &str) -> bool {
    match parameter.split_once('=') {
        Some((name, charset)) if name.trim().eq_ignore_ascii_case("charset") => {
            let charset = charset.trim().trim_matches('"');
            ["utf-8", "utf8", "us-ascii"].iter().any(|taken| charset.eq_ignore_ascii_case(taken))
        }
        _ => true,
    }
}

/// The events of a body, not yet checked.
#[derive(Debug, PartialEq, Eq)]
pub enum Events<'a> {
    /// One object, or more of them. It is not parsed yet: where it is no event, [`texts`] says which of both.
    One(&'a [u8]),
    Many(Vec<&'a [u8]>),
    /// Several JSON texts.
    Texts(SeveralTexts<'a>),
}

/// JSON texts one behind the other, with white space between them or without.
#[derive(Debug, PartialEq, Eq)]
pub struct SeveralTexts<'a> {
    pub whole: Vec<&'a [u8]>,
    /// From what is none to the end, which is not looked at.
    pub broken: Option<&'a [u8]>,
}

impl Events<'_> {
    pub(super) fn count(&self) -> usize {
        match self {
            Self::One(_) => 1,
            Self::Many(events) => events.len(),
            Self::Texts(texts) => texts.count(),
        }
    }
}

impl SeveralTexts<'_> {
    pub(super) fn count(&self) -> usize {
        self.whole.len() + usize::from(self.broken.is_some())
    }
}

/// Why nothing of a body can be accepted.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unsplittable {
    #[error("the body is empty: send a JSON object, an array of objects, or one object a line as application/x-ndjson")]
    Empty,
    #[error("the body begins with the byte order mark of UTF-16 or UTF-32: send it in UTF-8")]
    ByteOrderMark,
    #[error("the body must be a JSON object, or several, or an array of them")]
    NeitherObjectNorArray,
    #[error(
        "the body must be one CloudEvent, a JSON object: send an array of them as application/cloudevents-batch+json"
    )]
    NotOneEvent,
    #[error("the body must be an array of CloudEvents: send a single one as application/cloudevents+json")]
    NoBatch,
    #[error("the body is not valid JSON, nothing was accepted: {0}")]
    Syntax(String),
    #[error(
        "the body has no array of events at {0:?}, which is \"records\" of this path's [[http.source]]: send it there"
    )]
    NoRecords(String),
    #[error("more than {0} events in one request (http.max_events): send them in smaller requests")]
    TooMany(usize),
}

impl From<Unsplittable> for Problem {
    fn from(unsplittable: Unsplittable) -> Self {
        let (status, code) = match &unsplittable {
            Unsplittable::TooMany(_) => (StatusCode::PAYLOAD_TOO_LARGE, None),
            Unsplittable::NeitherObjectNorArray | Unsplittable::NotOneEvent | Unsplittable::NoRecords(_) => {
                (StatusCode::BAD_REQUEST, Some(Code::NotAnObject))
            }
            Unsplittable::NoBatch => (StatusCode::BAD_REQUEST, Some(Code::InvalidCloudevent)),
            Unsplittable::Empty | Unsplittable::ByteOrderMark | Unsplittable::Syntax(_) => {
                (StatusCode::BAD_REQUEST, Some(Code::InvalidJson))
            }
        };
        Self { code, ..Self::new(status, shortened(unsplittable.to_string())) }
    }
}

/// Of UTF-8, which readers may skip (RFC 8259, 8.1).
const MARK: &[u8] = b"\xef\xbb\xbf";
/// Of UTF-16 in both orders, with which one of UTF-32 begins, and of the other UTF-32.
const OTHER_MARKS: [&[u8]; 3] = [b"\xfe\xff", b"\xff\xfe", b"\0\0\xfe\xff"];

/// The one JSON text that a body is, without what surrounds it.
pub(super) fn whole(body: &[u8]) -> Result<&[u8], Unsplittable> {
    if OTHER_MARKS.iter().any(|mark| body.starts_with(mark)) {
        return Err(Unsplittable::ByteOrderMark);
    }
    let text = trim(body.strip_prefix(MARK).unwrap_or(body));
    if text.is_empty() { Err(Unsplittable::Empty) } else { Ok(text) }
}

/// At most `max_events` events; where there are none, the body was an empty array.
pub fn split(body: &[u8], format: Format, max_events: usize) -> Result<Events<'_>, Unsplittable> {
    if format != Format::Data && OTHER_MARKS.iter().any(|mark| body.starts_with(mark)) {
        return Err(Unsplittable::ByteOrderMark);
    }
    let marked = body;
    let body = body.strip_prefix(MARK).unwrap_or(body);
    match format {
        Format::Data => Ok(Events::One(marked)),
        Format::Json => json::split(body, max_events),
        Format::Ndjson => ndjson::split(body, max_events),
        Format::CloudEvent => match json::split(body, max_events)? {
            one @ Events::One(_) => Ok(one),
            Events::Many(_) | Events::Texts(_) => Err(Unsplittable::NotOneEvent),
        },
        Format::CloudEvents => match json::split(body, max_events)? {
            many @ Events::Many(_) => Ok(many),
            Events::One(_) | Events::Texts(_) => Err(Unsplittable::NoBatch),
        },
    }
}

/// What [`Events::One`] holds, where that is no event: the JSON texts of it, of which the first is whole; `None` where it is one
/// text, or begins with none.
///
/// # Errors
/// They are more than `max_events`.
pub fn texts(body: &[u8], max_events: usize) -> Result<Option<SeveralTexts<'_>>, Unsplittable> {
    json::texts(body, max_events)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NO_LIMIT: usize = usize::MAX;

    #[test]
    fn the_body_is_json_or_lines_in_utf_8() {
        for (content_types, expected) in [
            (&[][..], Ok(Format::Json)),
            (&["application/json"], Ok(Format::Json)),
            (&["Application/JSON; charset=\"UTF-8\"; profile=x"], Ok(Format::Json)),
            (&["application/json; charset=utf8"], Ok(Format::Json)),
            (&["application/json; charset=US-ASCII"], Ok(Format::Json)),
            (&["application/x-ndjson;charset=utf-8"], Ok(Format::Ndjson)),
            (&["application/ndjson"], Ok(Format::Ndjson)),
            (&["application/jsonl"], Ok(Format::Ndjson)),
            (&["Application/X-JSONLines"], Ok(Format::Ndjson)),
            (&["application/json; charset=latin1"], Err(415)),
            (&["application/jsonl; charset=utf-16"], Err(415)),
            (&["application/cloudevents+json; charset=utf-8"], Ok(Format::CloudEvent)),
            (&["Application/CloudEvents-Batch+JSON"], Ok(Format::CloudEvents)),
            (&["application/cloudevents+json; charset=utf-16"], Err(415)),
            (&["application/cloudevents"], Err(415)),
            (&["application/cloudevents+avro"], Err(415)),
            (&["text/plain"], Err(415)),
            (&[""], Err(415)),
            (&["application/json", "application/x-ndjson"], Err(415)),
        ] {
            let mut headers = HeaderMap::new();
            content_types.iter().for_each(|given| headers.append(CONTENT_TYPE, HeaderValue::from_static(given)));
            let found = Format::of(&headers).map_err(|problem| {
                let names = |(_, name): (Format, &str)| problem.detail.contains(name);
                assert!(Format::NAMED.into_iter().all(names), "it says what is taken: {problem}");
                problem.status.as_u16()
            });
            assert_eq!(found, expected, "{content_types:?}");
        }
    }

    fn many(body: &str, format: Format) -> Vec<&str> {
        match split(body.as_bytes(), format, NO_LIMIT).unwrap() {
            Events::One(event) => vec![std::str::from_utf8(event).unwrap()],
            Events::Many(events) => events.into_iter().map(|event| std::str::from_utf8(event).unwrap()).collect(),
            Events::Texts(texts) => panic!("{texts:?}"),
        }
    }

    #[test]
    fn a_body_is_an_object_or_an_array_of_anything() {
        assert_eq!(many(" {\"a\": 1}\r\n", Format::Json), ["{\"a\": 1}"]);
        assert_eq!(many("[ {\"a\": [1]} ,7,\"]\"\n]", Format::Json), ["{\"a\": [1]}", "7", "\"]\""]);
        assert!(many(" [ ] ", Format::Json).is_empty());
    }

    #[test]
    fn a_mark_of_utf_8_at_the_beginning_is_no_part_of_the_body() {
        assert_eq!(many("\u{feff}{\"a\": 1}", Format::Json), ["{\"a\": 1}"]);
        assert_eq!(many("\u{feff} [7]", Format::Json), ["7"]);
        assert_eq!(many("\u{feff}{}\n{}", Format::Ndjson), ["{}", "{}"]);
        assert_eq!(many("{}\n\u{feff}{}", Format::Ndjson), ["{}", "\u{feff}{}"], "nowhere else");
    }

    #[test]
    fn each_non_blank_line_stands_alone() {
        assert_eq!(many("{\"a\":1}\r\n\n  \t\r\nbroken\n[1]", Format::Ndjson), ["{\"a\":1}", "broken", "[1]"]);
    }

    #[test]
    fn a_body_without_a_whole_text_is_refused_as_a_whole() {
        let refused = |body: &[u8], format| split(body, format, NO_LIMIT).unwrap_err();
        assert_eq!(refused(b" \n", Format::Json), Unsplittable::Empty);
        assert_eq!(refused(b"\xef\xbb\xbf\n", Format::Json), Unsplittable::Empty);
        assert_eq!(refused(b"\r\n \n", Format::Ndjson), Unsplittable::Empty);
        assert_eq!(refused(b"17", Format::Json), Unsplittable::NeitherObjectNorArray);
        for mark in [&b"\xfe\xff\0{"[..], b"\xff\xfe{\0", b"\xff\xfe\0\0", b"\0\0\xfe\xff"] {
            assert_eq!(refused(mark, Format::Json), Unsplittable::ByteOrderMark);
            assert_eq!(refused(mark, Format::Ndjson), Unsplittable::ByteOrderMark);
        }
        for broken in ["tru", "01", "-", "1.", "\"a", "7 x", "[{}] x", "[{}],", "[{}]]", "nul {}"] {
            assert!(matches!(refused(broken.as_bytes(), Format::Json), Unsplittable::Syntax(_)), "{broken}");
        }
    }

    #[test]
    fn an_element_that_is_broken_has_its_end_where_strings_close_and_brackets_balance() {
        for (array, expected) in [
            (
                r#"[{"type":"a"},{"type":tru},{"type":"b"}]"#,
                &[r#"{"type":"a"}"#, r#"{"type":tru}"#, r#"{"type":"b"}"#][..],
            ),
            (r#"[ {"a":NaN} , -Infinity ]"#, &[r#"{"a":NaN}"#, "-Infinity"]),
            // Commas that are missing, doubled, or too many.
            (r"[{}{}]", &["{}{}"]),
            (r"[{},]", &["{}", ""]),
            (r"[,{}]", &["", "{}"]),
            (r"[1,,2]", &["1", "", "2"]),
            (r"[,]", &["", ""]),
            (r#"[{"a":}]"#, &[r#"{"a":}"#]),
            (r#"[{"a" 1},{a:[{'b'}]}]"#, &[r#"{"a" 1}"#, "{a:[{'b'}]}"]),
            // What is in a string is no bracket, broken or not.
            (r#"["]","\x]","\"]",{"}":"["}]"#, &[r#""]""#, r#""\x]""#, r#""\"]""#, r#"{"}":"["}"#]),
            ("[\"a\nb]\",1]", &["\"a\nb]\"", "1"]),
        ] {
            assert_eq!(many(array, Format::Json), expected, "{array}");
        }
        let events = split(b" [\"\xff]\" ,{}]\n", Format::Json, NO_LIMIT).unwrap();
        assert_eq!(events, Events::Many(vec![b"\"\xff]\"", b"{}"]), "UTF-8 is not needed for it");
    }

    #[test]
    fn an_array_whose_elements_have_no_end_is_refused_with_the_first_of_them() {
        for (array, index) in [
            ("[{},", 1),
            ("[", 0),
            ("[1,2", 1),
            ("[1,{]", 1),
            ("[{]}]", 0),
            ("[1,2,[3}]", 2),
            ("[1,2}", 1),
            ("[{},{\"a\":\"x},{}]", 1),
            ("[{},{\"a\":\"x\\\"}]", 1),
        ] {
            let refused = split(array.as_bytes(), Format::Json, NO_LIMIT).unwrap_err();
            let Unsplittable::Syntax(sentence) = &refused else { panic!("{array}: {refused:?}") };
            assert!(sentence.contains(&format!("element {index} ")), "{array}: {sentence}");
        }
    }

    fn several(body: &str) -> Option<(Vec<&str>, bool)> {
        let texts = match split(body.as_bytes(), Format::Json, NO_LIMIT).ok()? {
            Events::One(value) => texts(value, NO_LIMIT).unwrap()?,
            Events::Texts(texts) => texts,
            Events::Many(_) => return None,
        };
        Some((texts.whole.into_iter().map(|text| std::str::from_utf8(text).unwrap()).collect(), texts.broken.is_some()))
    }

    #[test]
    fn texts_one_behind_the_other_are_several() {
        for (body, whole, is_broken) in [
            ("{}{}", &["{}", "{}"][..], false),
            ("\r\n{\"a\":{}} \t{\"b\":[1]}\n", &["{\"a\":{}}", "{\"b\":[1]}"], false),
            ("{}[1,2]7\n\"a\"null{}", &["{}", "[1,2]", "7", "\"a\"", "null", "{}"], false),
            ("[1] {}", &["[1]", "{}"], false),
            ("[1][2]", &["[1]", "[2]"], false),
            ("7 {}", &["7", "{}"], false),
            ("1\"a\"", &["1", "\"a\""], false),
            // Then what is none, and nothing behind it.
            ("{},{}", &["{}"], true),
            ("{}\0", &["{}"], true),
            ("{} {\"a\":tru} {}", &["{}"], true),
            ("{}{}}{}", &["{}", "{}"], true),
            ("{}{", &["{}"], true),
            ("[1] {} x", &["[1]", "{}"], true),
            // A number or a word ends at white space, a bracket or a quote alone.
            ("{} 01", &["{}"], true),
            ("{} truefalse", &["{}"], true),
            ("{} 1,2", &["{}"], true),
            ("{} 1]", &["{}"], true),
        ] {
            assert_eq!(several(body), Some((whole.to_vec(), is_broken)), "{body:?}");
        }
        for one in ["{}", " {\"a\":1}\n", "{", "{\"a\":tru} {}", "[1]", "[1] x", "tru {}", "7"] {
            assert_eq!(several(one), None, "{one:?}");
        }
        let deep = format!("{{\"a\":{}{}}}", "[".repeat(1_000), "]".repeat(1_000));
        let body = format!("{{}}{deep}{{}}");
        assert_eq!(several(&body), Some((vec!["{}", &deep, "{}"], false)), "one that is nested too deeply has its end");
        let Ok(Some(texts)) = texts(b"{}{\"a\":\"\xff\"}{}", NO_LIMIT) else { panic!("the first is whole") };
        assert_eq!((texts.whole, texts.broken.is_some()), (vec![&b"{}"[..]], true), "what is no UTF-8 is no text");
    }

    #[test]
    fn an_envelope_is_an_object_and_a_batch_an_array() {
        assert_eq!(many(" {\"a\":1}\n", Format::CloudEvent), ["{\"a\":1}"]);
        assert_eq!(many(" [{}, 7]\n", Format::CloudEvents), ["{}", "7"]);
        assert!(many("[]", Format::CloudEvents).is_empty());
        assert_eq!(many(" \u{feff}any ", Format::Data), [" \u{feff}any "]);
        assert_eq!(many("", Format::Data), [""]);
        let refused = |body: &str, format| split(body.as_bytes(), format, 9).unwrap_err();
        assert_eq!(refused("[{}]", Format::CloudEvent), Unsplittable::NotOneEvent);
        assert_eq!(refused("{}", Format::CloudEvents), Unsplittable::NoBatch);
        assert_eq!(refused(" ", Format::CloudEvents), Unsplittable::Empty);
        assert_eq!(refused("7", Format::CloudEvents), Unsplittable::NeitherObjectNorArray);
        assert!(matches!(refused("[{},", Format::CloudEvents), Unsplittable::Syntax(_)));
    }

    #[test]
    fn more_events_than_the_limit_are_refused() {
        for (body, format) in [("[{},{},{}]", Format::Json), ("{}\n\n{}\n{}\n", Format::Ndjson)] {
            assert!(split(body.as_bytes(), format, 3).is_ok());
            assert_eq!(split(body.as_bytes(), format, 2).unwrap_err(), Unsplittable::TooMany(2));
        }
        assert!(split(b"[1,x,3]", Format::Json, 3).is_ok());
        for broken in ["[1,x,3]", "[1,x,3,", "[1,x,]"] {
            assert_eq!(split(broken.as_bytes(), Format::Json, 2).unwrap_err(), Unsplittable::TooMany(2));
        }
        assert!(texts(b"{}{}{}", 3).is_ok());
        for more in [&b"{}{}{}"[..], b"{}{}x"] {
            assert_eq!(texts(more, 2).unwrap_err(), Unsplittable::TooMany(2));
        }
    }

    /// JSON objects as clients may write them, white space included; line breaks only between tokens.
    fn object() -> impl Strategy<Value = String> {
        let space = "[ \t]{0,2}";
        let value = prop_oneof![
            any::<String>().prop_map(|text| serde_json::Value::from(text).to_string()),
            any::<f64>().prop_map(|number| serde_json::Value::from(number).to_string()),
            Just("{\"]\":[{},[null,true]]}".to_owned()),
        ];
        proptest::collection::vec((any::<String>(), value, space), 0..4).prop_map(|fields| {
            let fields: Vec<String> = fields
                .into_iter()
                .map(|(name, value, space)| format!("{space}{}:{space}{value}", serde_json::Value::from(name)))
                .collect();
            format!("{{{}}}", fields.join(","))
        })
    }

    proptest! {
        #[test]
        fn the_parts_are_the_exact_bytes_that_were_joined(objects in proptest::collection::vec(object(), 1..6)) {
            let array = format!("[\n{}]", objects.join(" ,\r\n"));
            prop_assert_eq!(&many(&array, Format::Json), &objects);
            let lines = objects.join("\r\n\n");
            prop_assert_eq!(&many(&lines, Format::Ndjson), &objects);
            let alone = format!("\n{} ", objects[0]);
            prop_assert_eq!(many(&alone, Format::Json), [objects[0].as_str()]);
        }

        #[test]
        fn no_bytes_make_it_panic(
            bytes in proptest::collection::vec(prop_oneof![any::<u8>(), proptest::sample::select(b"[]{},:\"\\ \n1".to_vec())], 0..64),
        ) {
            for format in [Format::Json, Format::Ndjson] {
                let fields = crate::event::EventFields::from(&crate::config::EventConfig::default());
                match split(&bytes, format, 8) {
                    Ok(Events::One(event)) => {
                        drop(crate::event::parse(event, &fields, crate::position::Timestamp(0)));
                        if let Ok(Some(texts)) = texts(event, 8) {
                            prop_assert!((1..=8).contains(&texts.count()));
                        }
                    }
                    Ok(Events::Many(events)) => {
                        prop_assert!(events.len() <= 8);
                        for event in events {
                            drop(crate::event::parse(event, &fields, crate::position::Timestamp(0)));
                        }
                    }
                    Ok(Events::Texts(texts)) => prop_assert!((1..=8).contains(&texts.count())),
                    Err(_) => {}
                }
            }
        }
    }
}
