//! The formats of a body: each has a file here, which splits it into its events: parts of the body, nothing copied, no tree
//! built. A new one is such a file, and a line of it in each function here.

mod json;
mod ndjson;

use actix_web::http::{
    StatusCode,
    header::{CONTENT_TYPE, HeaderMap},
};
use bytes::Bytes;

use super::in_flight::Reservation;
use crate::{event::Code, http::Problem};

/// How a body holds its events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// One object, or an array of them.
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
    const NAMED: [(Self, &'static str); 4] = [
        (Self::Json, "application/json"),
        (Self::Ndjson, "application/x-ndjson"),
        (Self::CloudEvent, "application/cloudevents+json"),
        (Self::CloudEvents, "application/cloudevents-batch+json"),
    ];

    /// What `Content-Type` says that the body is.
    ///
    /// # Errors
    /// 415 for another media type, another charset than UTF-8, and more than one `Content-Type`.
    pub(super) fn of(headers: &HeaderMap) -> Result<Self, Problem> {
        let unsupported = || {
            let named = Self::NAMED.map(|(_, media_type)| media_type).join(", ");
            let detail = format!(
                "Content-Type must be one of {named}, in UTF-8 (or with the headers of a CloudEvent, any that its data has)"
            );
            Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail)
        };
        let mut given = headers.get_all(CONTENT_TYPE);
        let Some(content_type) = given.next() else { return Ok(Self::Json) };
        if given.next().is_some() {
            return Err(unsupported());
        }
        let mut parts = content_type.to_str().map_err(|_| unsupported())?.split(';').map(str::trim);
        let media_type = parts.next().unwrap_or_default();
        let is_utf_8 = |parameter: &str| match parameter.split_once('=') {
            Some((name, charset)) if name.trim().eq_ignore_ascii_case("charset") => {
                let charset = charset.trim().trim_matches('"');
                charset.eq_ignore_ascii_case("utf-8") || charset.eq_ignore_ascii_case("utf8")
            }
            _ => true,
        };
        let mut named = Self::NAMED.into_iter();
        let known = named.find_map(|(format, name)| name.eq_ignore_ascii_case(media_type).then_some(format));
        known.filter(|_| parts.all(is_utf_8)).ok_or_else(unsupported)
    }

    /// The JSON texts that are split: the body itself, or what a format that is not JSON rewrites it to, as a part of the
    /// request's share.
    pub(super) fn into_json(self, body: Bytes, _share: &mut Reservation) -> Result<Bytes, Problem> {
        match self {
            Self::Json | Self::Ndjson | Self::CloudEvent | Self::CloudEvents | Self::Data => Ok(body),
        }
    }
}

/// The events of a body, not yet checked.
#[derive(Debug, PartialEq, Eq)]
pub enum Events<'a> {
    /// One object. It is not parsed yet: broken syntax in it refuses the whole body.
    One(&'a [u8]),
    Many(Vec<&'a [u8]>),
}

impl Events<'_> {
    pub(super) fn count(&self) -> usize {
        match self {
            Self::One(_) => 1,
            Self::Many(events) => events.len(),
        }
    }
}

/// Why nothing of a body can be accepted.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unsplittable {
    #[error("the body is empty: send a JSON object, an array of objects, or one object a line as application/x-ndjson")]
    Empty,
    #[error("the body begins with a byte order mark: send UTF-8 without one")]
    ByteOrderMark,
    #[error("the body must be a JSON object or an array of objects; for one object a line send application/x-ndjson")]
    NeitherObjectNorArray,
    #[error(
        "the body must be one CloudEvent, a JSON object: send an array of them as application/cloudevents-batch+json"
    )]
    NotOneEvent,
    #[error("the body must be an array of CloudEvents: send a single one as application/cloudevents+json")]
    NoBatch,
    #[error("the body is not valid JSON, nothing was accepted: {0}")]
    Syntax(String),
    #[error("more than {0} events in one request (http.max_events): send them in smaller requests")]
    TooMany(usize),
}

impl From<Unsplittable> for Problem {
    fn from(unsplittable: Unsplittable) -> Self {
        let (status, code) = match &unsplittable {
            Unsplittable::TooMany(_) => (StatusCode::PAYLOAD_TOO_LARGE, None),
            Unsplittable::NeitherObjectNorArray | Unsplittable::NotOneEvent => {
                (StatusCode::BAD_REQUEST, Some(Code::NotAnObject))
            }
            Unsplittable::NoBatch => (StatusCode::BAD_REQUEST, Some(Code::InvalidCloudevent)),
            Unsplittable::Empty | Unsplittable::ByteOrderMark | Unsplittable::Syntax(_) => {
                (StatusCode::BAD_REQUEST, Some(Code::InvalidJson))
            }
        };
        Self { code: code.map(Code::as_str), ..Self::new(status, unsplittable.to_string()) }
    }
}

const WHITE_SPACE: &[u8] = b" \t\r\n";
const BYTE_ORDER_MARKS: [&[u8]; 3] = [b"\xef\xbb\xbf", b"\xfe\xff", b"\xff\xfe"];

/// At most `max_events` events; where there are none, the body was an empty array.
pub fn split(body: &[u8], format: Format, max_events: usize) -> Result<Events<'_>, Unsplittable> {
    match format {
        Format::Data => Ok(Events::One(body)),
        _ if BYTE_ORDER_MARKS.iter().any(|mark| body.starts_with(mark)) => Err(Unsplittable::ByteOrderMark),
        Format::Json => json::split(body, max_events),
        Format::Ndjson => ndjson::split(body, max_events),
        Format::CloudEvent => match json::split(body, max_events)? {
            one @ Events::One(_) => Ok(one),
            Events::Many(_) => Err(Unsplittable::NotOneEvent),
        },
        Format::CloudEvents => match json::split(body, max_events)? {
            many @ Events::Many(_) => Ok(many),
            Events::One(_) => Err(Unsplittable::NoBatch),
        },
    }
}

fn trim(mut bytes: &[u8]) -> &[u8] {
    while let [first, rest @ ..] = bytes
        && WHITE_SPACE.contains(first)
    {
        bytes = rest;
    }
    while let [rest @ .., last] = bytes
        && WHITE_SPACE.contains(last)
    {
        bytes = rest;
    }
    bytes
}

#[cfg(test)]
mod tests {
    use actix_web::http::header::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    const NO_LIMIT: usize = usize::MAX;

    #[test]
    fn the_body_is_json_or_ndjson_in_utf_8() {
        for (content_types, expected) in [
            (&[][..], Ok(Format::Json)),
            (&["application/json"], Ok(Format::Json)),
            (&["Application/JSON; charset=\"UTF-8\"; profile=x"], Ok(Format::Json)),
            (&["application/x-ndjson;charset=utf-8"], Ok(Format::Ndjson)),
            (&["application/json; charset=latin1"], Err(415)),
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
            assert_eq!(Format::of(&headers).map_err(|problem| problem.status.as_u16()), expected, "{content_types:?}");
        }
    }

    fn many(body: &str, format: Format) -> Vec<&str> {
        match split(body.as_bytes(), format, NO_LIMIT).unwrap() {
            Events::One(event) => vec![std::str::from_utf8(event).unwrap()],
            Events::Many(events) => events.into_iter().map(|event| std::str::from_utf8(event).unwrap()).collect(),
        }
    }

    #[test]
    fn a_body_is_an_object_or_an_array_of_anything() {
        assert_eq!(many(" {\"a\": 1}\r\n", Format::Json), ["{\"a\": 1}"]);
        assert_eq!(many("[ {\"a\": [1]} ,7,\"]\"\n]", Format::Json), ["{\"a\": [1]}", "7", "\"]\""]);
        assert!(many(" [ ] ", Format::Json).is_empty());
    }

    #[test]
    fn each_non_blank_line_stands_alone() {
        assert_eq!(many("{\"a\":1}\r\n\n  \t\r\nbroken\n[1]", Format::Ndjson), ["{\"a\":1}", "broken", "[1]"]);
    }

    #[test]
    fn what_is_no_object_and_no_array_is_refused_as_a_whole() {
        let refused = |body: &[u8], format| split(body, format, NO_LIMIT).unwrap_err();
        assert_eq!(refused(b" \n", Format::Json), Unsplittable::Empty);
        assert_eq!(refused(b"\r\n \n", Format::Ndjson), Unsplittable::Empty);
        assert_eq!(refused(b"17", Format::Json), Unsplittable::NeitherObjectNorArray);
        assert_eq!(refused(b"\xef\xbb\xbf{}", Format::Json), Unsplittable::ByteOrderMark);
        assert_eq!(refused(b"\xef\xbb\xbf{}", Format::Ndjson), Unsplittable::ByteOrderMark);
        for broken in ["[{},", "[{}] x", "[{}{}]", "tru", "[{\"a\":}]", "[1,]"] {
            assert!(matches!(refused(broken.as_bytes(), Format::Json), Unsplittable::Syntax(_)), "{broken}");
        }
        assert!(matches!(refused(b"[\"\xff\"]", Format::Json), Unsplittable::Syntax(_)));
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
                    Ok(Events::One(event)) => drop(crate::event::parse(event, &fields)),
                    Ok(Events::Many(events)) => {
                        prop_assert!(events.len() <= 8);
                        for event in events {
                            drop(crate::event::parse(event, &fields));
                        }
                    }
                    Err(_) => {}
                }
            }
        }
    }
}
