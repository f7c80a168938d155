//! CloudEvents 1.0 over HTTP, by its protocol binding: in an envelope (`application/cloudevents+json`), in a batch of them, or
//! with the attributes in headers (`ce-…`) and the data as the body.
//!
//! However one comes, it becomes the same record, as the Kafka protocol binding has it: the data's bytes are the value, the
//! attributes headers. Which attributes it must have, and what they may be, [`event`] says for these and for the
//! log's readers.

use std::borrow::Cow;

use actix_web::http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use percent_encoding::percent_decode_str;

use super::{attributes::Attributes, format::Format};
use crate::{
    config::{ByteSize, OnUnreadable},
    event::{self, Code, Envelope, Invalid},
    http::Problem,
    log::dead_letters::WRONG_HEADER,
};

/// The attributes in a request's headers.
#[derive(Debug, Default)]
pub struct HeaderAttributes {
    /// Those that are right, and [`WRONG_HEADER`] where others are not.
    pub attributes: Attributes<'static>,
    /// What is wrong first: a fault of the request's one event.
    pub wrong: Option<Invalid>,
}

/// Few requests have them.
pub type InHeaders = Box<HeaderAttributes>;

/// Before an attribute's name in a header of HTTP. (`HeaderMap` has all names in lower case.)
const PREFIX: &str = "ce-";
/// Without this header, others of the kind make no CloudEvent.
static SPEC_VERSION: HeaderName = HeaderName::from_static("ce-specversion");

/// How a request holds its events, and the attributes of the one whose data is the body.
///
/// # Errors
/// 415, as [`Format::of`] says.
pub fn format_of(headers: &HeaderMap) -> Result<(Format, Option<InHeaders>), Problem> {
    if is_in_headers(headers) {
        return Ok((Format::Data, Some(Box::new(HeaderAttributes::of(headers)))));
    }
    Ok((Format::of(headers)?, None))
}

/// What says of a record's value that it is an event in its envelope.
pub fn beside_envelope() -> Attributes<'static> {
    let mut attributes = Attributes::default();
    attributes.set("content-type", event::ENVELOPE_TYPE);
    attributes
}

/// What says of a body that it was to be a batch of envelopes.
pub fn beside_batch() -> Attributes<'static> {
    let mut attributes = Attributes::default();
    attributes.set("content-type", event::BATCH_TYPE);
    attributes
}

/// Whether the request's headers have the attributes of an event, and its body is the data.
pub fn is_in_headers(headers: &HeaderMap) -> bool {
    headers.contains_key(&SPEC_VERSION) && !is_enveloped(headers)
}

/// Whether the content type is that of an envelope or a batch: then headers may repeat what stands there.
fn is_enveloped(headers: &HeaderMap) -> bool {
    let content_type = headers.get(CONTENT_TYPE).and_then(|it| it.to_str().ok()).unwrap_or_default();
    let media_type = content_type.split(';').next().unwrap_or_default().trim();
    [event::ENVELOPE_TYPE, event::BATCH_TYPE].iter().any(|enveloped| enveloped.eq_ignore_ascii_case(media_type))
}

impl HeaderAttributes {
    fn of(headers: &HeaderMap) -> Self {
        let mut found = Self::default();
        // There are fewer than an event may have: a head has 96 fields at most.
        for header in headers.keys() {
            let Some(name) = header.as_str().strip_prefix(PREFIX) else { continue };
            // It has a header of its own (3.1.1).
            if name == "datacontenttype" {
                continue;
            }
            if !event::is_attribute_name(name) || name == "data" {
                let why = format!(
                    "header {header} carries no attribute: after \"{PREFIX}\" stand lower-case letters and digits alone, and \
                     the data is the body"
                );
                found.is_wrong(header, why);
                continue;
            }
            let written = found.first(headers, header);
            let value = decode(written).unwrap_or_else(|why| {
                found.is_wrong(header, format!("header {header} cannot be read: {why}"));
                text_of(written).into_owned()
            });
            found.attributes.set(event::header_of(name), value);
        }
        if headers.contains_key(CONTENT_TYPE) {
            let written = found.first(headers, &CONTENT_TYPE);
            if std::str::from_utf8(written).is_err() {
                found.is_wrong(&CONTENT_TYPE, "Content-Type is not UTF-8: send it in ASCII".to_owned());
            }
            found.attributes.set("content-type", text_of(written).into_owned());
        }
        found.attributes.sort();
        found
    }

    fn is_wrong(&mut self, header: &HeaderName, why: String) {
        if self.wrong.is_none() {
            self.wrong = Some(Invalid::new(Code::InvalidCloudevent, why));
            self.attributes.set(WRONG_HEADER, header.to_string());
        }
    }

    /// The bytes of a header that is to be there once.
    fn first<'h>(&mut self, headers: &'h HeaderMap, name: &HeaderName) -> &'h [u8] {
        let mut values = headers.get_all(name);
        let first = values.next().map(HeaderValue::as_bytes).unwrap_or_default();
        if values.next().is_some() {
            self.is_wrong(name, format!("header {name} stands more than once: an event has it once"));
        }
        first
    }
}

/// The text that a header's value stands for (3.1.3.2): what is quoted is taken out of its quotes, as earlier versions wrote
/// it, then percent-encoding is undone once. A percent sign that encodes nothing stands for itself, and so do characters that
/// had to be encoded: in UTF-8, or as Node.js sends them in ISO 8859-1.
fn decode(value: &[u8]) -> Result<String, &'static str> {
    let text = text_of(value);
    let quoted = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    let unquoted = quoted.and_then(unquote);
    let decoded = percent_decode_str(unquoted.as_deref().unwrap_or(&text)).decode_utf8();
    decoded.map(Cow::into_owned).map_err(|_| "once percent-decoded it is not UTF-8")
}

fn text_of(value: &[u8]) -> Cow<'_, str> {
    std::str::from_utf8(value).map_or_else(|_| value.iter().copied().map(char::from).collect(), Cow::Borrowed)
}

/// The characters of a quoted string (RFC 9110, 5.6.4), without its quotes; `None` where it is none.
fn unquote(inner: &str) -> Option<String> {
    let mut unquoted = String::with_capacity(inner.len());
    let mut characters = inner.chars();
    while let Some(character) = characters.next() {
        match character {
            '"' => return None,
            '\\' => unquoted.push(characters.next()?),
            other => unquoted.push(other),
        }
    }
    Some(unquoted)
}

/// Opens an envelope: its attributes, and the bytes of its data.
///
/// # Errors
/// It is none, with the event's code, or so large that what is in it cannot be an event's size.
pub fn open(
    envelope: &[u8],
    max_event: ByteSize,
    on_unreadable: OnUnreadable,
) -> Result<(Attributes<'_>, Cow<'_, [u8]>), Invalid> {
    let Envelope { attributes: of_envelope, data } = Envelope::open_sent(envelope, max_event, on_unreadable)?;
    let mut attributes = Attributes::default();
    for (name, value) in of_envelope {
        attributes.set(event::header_of(&name), value);
    }
    attributes.sort();
    Ok((attributes, data))
}

#[cfg(test)]
mod tests {
    use base64::{Engine, prelude::BASE64_STANDARD};
    use bytes::Bytes;
    use percent_encoding::{AsciiSet, CONTROLS, percent_encode};
    use proptest::{collection::btree_map, option, prelude::*, sample::select};
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        config::{EventConfig, HttpConfig},
        event::EventFields,
        ingest::{
            check::{Checked, EventId, check},
            in_flight::{InFlight, Reservation},
        },
        log::record::Headers,
        position::Timestamp,
    };

    fn headers(named: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in named {
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            headers.append(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        headers
    }

    fn checked(body: &[u8], headers: &HeaderMap) -> Result<Checked, Problem> {
        let http = HttpConfig { max_event: ByteSize(1 << 20), ..HttpConfig::default() };
        let mut share = Reservation::new(&InFlight::default(), ByteSize(u64::MAX));
        let (format, in_headers) = format_of(headers)?;
        let fields = EventFields::from(&EventConfig::default());
        check(Bytes::copy_from_slice(body), format, in_headers, &http, &fields, Timestamp(0).into(), &mut share)
    }

    /// A record as the log would have it, and the id that is answered.
    #[derive(Debug, PartialEq)]
    struct Taken {
        value: Vec<u8>,
        key: Option<String>,
        headers: Vec<(String, String)>,
        id: String,
    }

    fn taken(checked: &Checked) -> Vec<Taken> {
        assert!(checked.errors.is_empty(), "{:?}", checked.errors);
        let (body, aside) = (&checked.body, &checked.aside);
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let each = checked.records.iter().zip(&checked.accepted);
        each.map(|(record, accepted)| {
            assert!(record.assigned_id.is_none());
            let headers = record.headers.unwrap();
            let headers = Headers::new(headers.count, headers.bytes.of(aside)).iter();
            Taken {
                value: record.value.of(body, aside).to_vec(),
                key: record.key.map(|key| text(key.of(body, aside))),
                headers: headers.map(|(name, value)| (name.to_owned(), text(value.unwrap()))).collect(),
                id: match &accepted.id {
                    EventId::InBody(id) => text(id.of(body)),
                    EventId::Unescaped(id) => id.clone(),
                    EventId::Assigned(id) => id.to_string(),
                },
            }
        })
        .collect()
    }

    const BINARY: [(&str, &str); 4] =
        [("Ce-SpecVersion", "1.0"), ("CE-TYPE", "shop.sold"), ("ce-id", "e-1"), ("ce-source", "/shop/7")];

    fn binary(body: &[u8], further: &[(&str, &str)]) -> Result<Checked, Problem> {
        checked(body, &headers(&[&BINARY[..], further].concat()))
    }

    #[test]
    fn data_is_the_body_whatever_its_type_where_the_attributes_are_headers() {
        for (body, content_type) in [
            (&br#" {"a":1} "#[..], Some("application/json")),
            (b"no JSON", Some("text/plain;charset=latin1")),
            // As an SDK sends a string.
            (b"no JSON", Some("application/json; charset=utf-8")),
            (b"\xff\xfe", Some("application/octet-stream")),
            (b"{} {}", Some("application/x-ndjson")),
            (b"\x08", Some("application/cloudevents+protobuf")),
            (b"", None),
            (b"x", None),
        ] {
            let content_type = content_type.map(|it| ("content-type", it));
            let checked = binary(body, &content_type.into_iter().collect::<Vec<_>>()).unwrap();
            let all = taken(&checked);
            let [taken] = all.as_slice() else { panic!("{checked:?}") };
            let attributes =
                [("ce_id", "e-1"), ("ce_source", "/shop/7"), ("ce_specversion", "1.0"), ("ce_type", "shop.sold")];
            let expected =
                attributes.into_iter().chain(content_type).map(|(name, value)| (name.to_owned(), value.to_owned()));
            assert_eq!(taken.headers, expected.collect::<Vec<_>>());
            assert_eq!((&*taken.value, taken.key.as_deref(), &*taken.id), (body, Some("/shop/7"), "e-1"));
        }
    }

    #[test]
    fn an_envelope_and_a_batch_are_told_by_their_type_whatever_the_headers_say() {
        let envelope = r#"{"specversion":"1.0","id":"i","source":"s","type":"t","data":7}"#;
        let of_type = |content_type| headers(&[&BINARY[..], &[("Content-Type", content_type)]].concat());
        for (content_type, body) in [
            ("application/cloudevents+json", envelope.to_owned()),
            ("Application/CloudEvents+JSON; charset=UTF-8", format!("\n{envelope} ")),
            ("application/cloudevents-batch+json", format!("[{envelope}]")),
        ] {
            let checked = checked(body.as_bytes(), &of_type(content_type)).unwrap();
            let all = taken(&checked);
            let [taken] = all.as_slice() else { panic!("{checked:?}") };
            assert_eq!((&*taken.value, &*taken.id, taken.key.as_deref()), (&b"7"[..], "i", Some("s")));
        }
        assert!(taken(&checked(b"[]", &of_type("application/cloudevents-batch+json")).unwrap()).is_empty());
        let refused = checked(envelope.as_bytes(), &of_type("application/cloudevents+json; charset=utf-16"));
        assert_eq!(refused.unwrap_err().status, 415);
        // Without the version no header makes a CloudEvent.
        let plain = checked(br#"{"type":"a"}"#, &headers(&[("ce-type", "b"), ("ce-id", "c")])).unwrap();
        assert!(plain.records[0].headers.is_none() && plain.records[0].assigned_id.is_some());
    }

    #[test]
    fn each_event_of_a_batch_has_its_own_result() {
        let event = |id: &str, further: &str| {
            format!(r#"{{"specversion":"1.0","id":"{id}","source":"s","type":"t"{further}}}"#)
        };
        let batch = [
            &*event("a\\u0062", r#","data":{"n":1}"#),
            r#"{"specversion":"1.0","id":"x","source":"s"}"#,
            "7",
            &event("c", r#","data_base64":"/w==""#),
            &event("d", r#","time":"yesterday","extra":[]"#),
            &event("e", r#","datacontenttype":"text/plain","data":"\"\n""#),
        ];
        let body = format!("[{}]", batch.join(","));
        let mut checked =
            checked(body.as_bytes(), &headers(&[("content-type", "application/cloudevents-batch+json")])).unwrap();
        let errors: Vec<_> = checked.errors.drain(..).map(|error| (error.index, error.invalid.code)).collect();
        assert_eq!(errors, [(1, Code::MissingType), (2, Code::NotAnObject), (4, Code::InvalidCloudevent)]);
        let taken: Vec<_> = taken(&checked).into_iter().map(|taken| (taken.id, taken.value)).collect();
        let expected = [("ab", &br#"{"n":1}"#[..]), ("c", b"\xff"), ("e", b"\"\n")];
        assert_eq!(taken, expected.map(|(id, value)| (id.to_owned(), value.to_vec())));
        assert_eq!(checked.accepted.iter().map(|accepted| accepted.index).collect::<Vec<_>>(), [0, 3, 5]);
    }

    #[test]
    fn an_envelope_that_is_larger_than_any_event_in_it_can_be_is_not_read() {
        let open = |members: &str, max_event| {
            let envelope = format!(r#"{{"specversion":"1.0",{members}}}"#);
            open(envelope.as_bytes(), ByteSize(max_event), OnUnreadable::Reject)
                .map(drop)
                .map_err(|invalid| invalid.code)
        };
        let escaped = format!(r#""datacontenttype":"text/plain","data":"{}""#, "\\u0001".repeat(100_000));
        assert_eq!(open(&escaped, 100_000), Ok(()));
        assert_eq!(open(&escaped, 80_000), Err(Code::TooLarge));
        assert_eq!(open(&format!("\"data\":{}", "[".repeat(1 << 20)), 1000), Err(Code::TooLarge));
    }

    #[test]
    fn a_wrong_request_says_what_is_wrong() {
        let structured = headers(&[("content-type", "application/cloudevents+json")]);
        let batch = headers(&[("content-type", "application/cloudevents-batch+json")]);
        for (body, headers, code, words) in [
            ("", &structured, "invalid_json", "empty"),
            ("{", &structured, "invalid_json", "not valid JSON"),
            ("[{}]", &structured, "not_an_object", "application/cloudevents-batch+json"),
            ("{}", &batch, "invalid_cloudevent", "application/cloudevents+json"),
            ("[{},", &batch, "invalid_json", "not valid JSON"),
            (
                r#"{"a":1,"a":2}"#,
                &headers(&[&BINARY[..], &[("content-type", "application/json")]].concat()),
                "invalid_json",
                "stands twice",
            ),
        ] {
            let problem = checked(body.as_bytes(), headers).unwrap_err();
            assert_eq!(
                (problem.status.as_u16(), problem.code.map(Code::as_str)),
                (400, Some(code)),
                "{body}: {problem}"
            );
            assert!(problem.detail.contains(words), "{body}: {problem}");
        }
        for (further, code, words) in [
            (("ce-my_ext", "x"), Code::InvalidCloudevent, "header ce-my_ext carries no attribute"),
            (("ce-", "x"), Code::InvalidCloudevent, "header ce- carries no attribute"),
            (("ce-data", "x"), Code::InvalidCloudevent, "header ce-data carries no attribute"),
            (("ce-id", "again"), Code::InvalidCloudevent, "header ce-id stands more than once"),
            (
                ("ce-subject", "%C0%A0"),
                Code::InvalidCloudevent,
                "header ce-subject cannot be read: once percent-decoded",
            ),
        ] {
            let checked = binary(b"", &[further]).unwrap();
            let [error] = &checked.errors[..] else { panic!("{checked:?}") };
            assert_eq!((error.index, error.invalid.code), (0, code), "{further:?}");
            assert!(error.invalid.message.contains(words), "{}", error.invalid);
            // What is right of it is kept, and that something is not.
            let beside = error.headers.unwrap();
            let beside: Vec<_> = Headers::new(beside.count, beside.bytes.of(&checked.aside)).iter().collect();
            for kept in [("ce_type", "shop.sold"), ("ce_id", "e-1"), (WRONG_HEADER, further.0)] {
                assert!(beside.contains(&(kept.0, Some(kept.1.as_bytes()))), "{further:?}: {beside:?}");
            }
        }
        let twice = [("content-type", "text/plain"), ("content-type", "text/html")];
        assert!(binary(b"", &twice).unwrap().errors[0].invalid.message.contains("content-type stands more than once"));
    }

    #[test]
    fn a_headers_value_is_unquoted_and_then_percent_decoded_once() {
        for (value, expected) in [
            ("Euro%20%E2%82%AC%20%F0%9F%98%80", Some("Euro € 😀")),
            ("%e2%82%ac%2520", Some("€%20")),
            ("plain/and;odd=(x)", Some("plain/and;odd=(x)")),
            ("€ as it is", Some("€ as it is")),
            ("100% of it, 5%2", Some("100% of it, 5%2")),
            (r#""quoted \"and\\ %41""#, Some(r#"quoted "and\ A"#)),
            (r#""""#, Some("")),
            (r#"""#, Some(r#"""#)),
            (r#""a" and "b""#, Some(r#""a" and "b""#)),
            (r#""open\""#, Some(r#""open\""#)),
            ("", Some("")),
            ("%C0%A0", None),
            ("%ff", None),
        ] {
            assert_eq!(decode(value.as_bytes()).ok().as_deref(), expected, "{value}");
        }
        assert_eq!(decode(b"caf\xe9%20").as_deref(), Ok("café "));
    }

    /// What the binding has encoded: all but what is printable ASCII, and three of those (3.1.3.2).
    const ENCODED: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'%');

    /// Data with its content type, as it stands in an envelope, and its bytes.
    fn data() -> impl Strategy<Value = (Option<&'static str>, Value, Vec<u8>)> {
        let json = prop_oneof![
            any::<String>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            Just(Value::Null),
            any::<String>().prop_map(|text| json!({"type": text, "client_id": [1, {}], "é": null})),
        ];
        prop_oneof![
            (json, select(vec!["application/json", "text/json;charset=utf-8", "application/problem+JSON"])).prop_map(
                |(json, content_type)| (Some(content_type), json!({ "data": json }), json.to_string().into_bytes())
            ),
            any::<String>().prop_map(|text| (
                Some("text/plain; charset=utf-8"),
                json!({ "data": text }),
                text.into_bytes()
            )),
            (any::<Vec<u8>>(), option::of(Just("application/octet-stream"))).prop_map(|(bytes, content_type)| {
                (content_type, json!({ "data_base64": BASE64_STANDARD.encode(&bytes) }), bytes)
            }),
            Just((None, json!({}), Vec::new())),
        ]
    }

    proptest! {
        #[test]
        fn however_an_event_comes_it_becomes_the_same_record(
            id in "\\PC{1,20}", source in "\\PC{1,20}", event_type in "\\PC{1,20}",
            further in btree_map("(ext|subject|partitionkey|[a-z][a-z0-9]{8,12})", any::<String>(), 0..4),
            (content_type, members, bytes) in data(),
        ) {
            let mut envelope = members;
            let mut named = vec![("specversion".to_owned(), "1.0".to_owned()), ("id".to_owned(), id),
                ("source".to_owned(), source), ("type".to_owned(), event_type)];
            named.extend(further);
            for (name, value) in &named {
                envelope[name] = Value::from(value.as_str());
            }
            if let Some(content_type) = content_type {
                envelope["datacontenttype"] = Value::from(content_type);
            }
            let mut headers = headers(&[]);
            for (name, value) in &named {
                let name = HeaderName::from_bytes(format!("ce-{name}").as_bytes()).unwrap();
                let value = percent_encode(value.as_bytes(), ENCODED).to_string();
                headers.append(name, HeaderValue::from_str(&value).unwrap());
            }
            if let Some(content_type) = content_type {
                headers.append(CONTENT_TYPE, HeaderValue::from_static(content_type));
            }
            let binary = taken(&checked(&bytes, &headers).unwrap());
            let of_type = |content_type| super::tests::headers(&[("content-type", content_type)]);
            let structured = taken(&checked(envelope.to_string().as_bytes(), &of_type("application/cloudevents+json")).unwrap());
            let batch = format!("[{envelope} , {envelope}]");
            let batch = taken(&checked(batch.as_bytes(), &of_type("application/cloudevents-batch+json")).unwrap());
            prop_assert_eq!(&binary, &structured);
            prop_assert_eq!(&batch[..1], &structured[..]);
            prop_assert_eq!(&batch[1..], &structured[..]);
            prop_assert_eq!(&binary[0].value, &bytes);
            for (name, value) in named {
                let header = (format!("ce_{name}"), value);
                prop_assert!(binary[0].headers.contains(&header));
            }
        }
    }
}
