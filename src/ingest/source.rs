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
    format::{Events, Format, SeveralTexts, Unsplittable, split, whole},
    in_flight::Reservation,
};
use crate::{
    config::{HttpConfig, HttpSource, Lookup},
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
    let body = unwrap(body, http, share)?;
    let events = split_by(source, &body, lines, http.max_events)?;
    let found = Finder::new(source);
    let mut checking = Checking::new(&body, http, fields, received, share);
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

/// The events of a body.
fn split_by<'b>(
    source: &HttpSource,
    body: &'b [u8],
    lines: Format,
    max_events: usize,
) -> Result<Events<'b>, Unsplittable> {
    let Some(records) = &source.records else { return whole(body).map(Events::One) };
    if records.names().is_empty() {
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
                Some(Lookup::At(pointer)) => value_of(name, json, &pointer.to_string()),
            };
            match value {
                Ok(value) => value.into_iter().for_each(|value| attributes.set(name, value)),
                Err(invalid) => drop(first.get_or_insert(invalid)),
            }
        }
        (attributes, first)
    }
}

/// What the JSON that was found for this header says. A number is taken as it is written, `null` is as good as nothing.
fn value_of<'a>(name: &str, json: Option<&'a str>, pointer: &str) -> Result<Option<Cow<'a, str>>, Invalid> {
    let first = json.and_then(|json| json.as_bytes().first()).copied();
    let json = json.unwrap_or_default();
    let text = match first {
        None | Some(b'n') => None,
        Some(b'"') => Some(event::unescape(json).map_err(|error| {
            Invalid::new(Code::InvalidJson, format!("the string at {pointer:?} cannot be read: {error}"))
        })?),
        Some(_) => Some(Cow::Borrowed(json)),
    };
    let is_nested = matches!(first, Some(b'{' | b'['));
    match name {
        "ce_type" if text.is_none() => {
            let rule = format!("there is no type at {pointer:?}: it must be a string of 1 to 128 characters");
            Err(Invalid::new(Code::MissingType, rule))
        }
        "ce_type" if first != Some(b'"') => {
            let rule = format!("the type at {pointer:?} must be a string of 1 to 128 characters");
            Err(Invalid::new(Code::InvalidType, rule))
        }
        "ce_id" if is_nested => {
            let rule = format!("the id at {pointer:?} must be a string of 1 to 256 characters or a number, or absent");
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
    let mut inflating = Inflating::new(Coding::Gzip, None, http.max_body.as_usize(), share.another());
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
        Err(error) => {
            Err(Problem::bad_request(format!("the field of this form is neither JSON nor base64, nothing was accepted: {error}")))
        }
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
