//! `[[http.source]]`: bodies of other shapes than ours. Where their events are, and what of them is type, id, time and client,
//! the configuration says; the events stay as they came, and what was found of them travels beside them.

use std::borrow::Cow;

use actix_web::{
    HttpResponse,
    body::BoxBody,
    http::header::{CONTENT_TYPE, HeaderValue},
};
use base64::Engine as _;
use bytes::Bytes;
use percent_encoding::percent_decode;
use serde::de::IgnoredAny;

use super::{
    arrival::Arrival,
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
    log::dead_letters::WRONG_HEADER,
};

/// Bodies that are wrapped are told by their bytes, whatever their head says of them: gzip, and forms with such a field
/// (PostHog's browsers, GitHub).
const GZIP: &[u8] = b"\x1f\x8b";
const FIELDS: [&[u8]; 2] = [b"data=", b"payload="];

/// Whether a body may be far more than its bytes.
pub fn is_wrapped(body: &[u8]) -> bool {
    body.starts_with(GZIP) || field_of(body).is_some()
}

/// The field of a form that has the data, as it stands there. What stands before it is the characters of a form alone: no
/// JSON is one.
fn field_of(mut form: &[u8]) -> Option<&[u8]> {
    let is_forms = |byte: &u8| byte.is_ascii_alphanumeric() || b"*-._~+%=".contains(byte);
    loop {
        if let Some(data) = FIELDS.iter().find_map(|name| form.strip_prefix(*name)) {
            return data.split(|byte| *byte == b'&').next();
        }
        let end = form.iter().position(|byte| !is_forms(byte))?;
        form = form[end..].strip_prefix(b"&")?;
    }
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
    arrival: Arrival<'_>,
    share: &mut Reservation,
) -> Result<Checked, Problem> {
    let finder = Finder::new(source);
    let body = unwrap(&body, http, share)?.unwrap_or(body);
    let events = match split_by(source, &body, lines, http.max_events)? {
        // What is no JSON text may be several.
        Events::One(event) if is_list(source) && !finder.is_json(event) => {
            texts(event, http.max_events)?.map_or(Events::One(event), Events::Texts)
        }
        events => events,
    };
    let mut checking = Checking::new(&body, http, fields, arrival, share);
    checking.expect(events.count())?;
    let mut take = |index, event| match finder.attributes(event) {
        (attributes, None) => checking.take(index, event, &attributes),
        (attributes, Some(invalid)) => checking.refuse(index, event, &attributes, invalid),
    };
    let (is_one, events, broken) = match events {
        Events::One(event) => (true, vec![event], None),
        Events::Many(events) => (false, events, None),
        Events::Texts(SeveralTexts { whole, broken }) => (false, whole, broken),
    };
    let count = events.len();
    events.into_iter().enumerate().try_for_each(|(index, event)| take(index, event))?;
    if let Some(rest) = broken {
        checking.refuse(count, rest, &finder.attributes(rest).0, no_text(rest, fields, arrival.received))?;
    }
    let mut checked = checking.finish()?;
    // Broken syntax: nothing of the body is accepted.
    let broken = checked.errors.first().filter(|error| is_one && error.invalid.code == Code::InvalidJson);
    checked.refusal = broken.map(|error| invalid_body(&error.invalid));
    Ok(checked)
}

/// What is known of an event of which nothing could be read, where a body is one event: what is fixed.
pub fn beside(source: &HttpSource) -> Attributes<'static> {
    let mut attributes = Attributes::default();
    for (name, lookup) in lookups(source).into_iter().filter(|_| source.records.is_none()) {
        if let Some(Lookup::Fixed { fixed }) = lookup {
            attributes.set(name, fixed.clone());
        }
    }
    attributes.sort();
    attributes
}

/// Each header with where its value comes from.
fn lookups(source: &HttpSource) -> [(&'static str, Option<&Lookup>); 4] {
    [
        ("ce_type", source.r#type.as_ref()),
        ("ce_id", source.id.as_ref()),
        ("ce_time", source.time.as_ref()),
        ("ce_source", source.client.as_ref()),
    ]
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
        let lookups = lookups(source);
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

    /// What an event brings, as the headers of its record, and the first of it that is wrong. Of one that is no JSON it is what
    /// can be found all the same.
    fn attributes<'a>(&'a self, event: &'a [u8]) -> (Attributes<'a>, Option<Invalid>) {
        let mut found = [None; 4];
        let mut attributes = Attributes::default();
        let mut first = self.pointers.find_in(event, &mut found).err();
        let is_broken = first.is_some();
        for ((name, lookup), json) in self.lookups.into_iter().zip(found) {
            let value = match lookup {
                None => Ok(None),
                Some(Lookup::Fixed { fixed }) => Ok(Some(Cow::Borrowed(fixed.as_str()))),
                Some(Lookup::At(pointer)) if is_broken => Ok(value_in_broken(name, event, pointer)),
                Some(Lookup::At(pointer)) => value_of(name, json, pointer),
            };
            match value {
                Ok(value) => value.into_iter().for_each(|value| attributes.set(name, value)),
                Err(invalid) => {
                    // Without it a replay would find another one in the event, or give it one.
                    if invalid.code != Code::MissingType {
                        attributes.set(WRONG_HEADER, name);
                    }
                    first.get_or_insert(invalid);
                }
            }
        }
        attributes.sort();
        (attributes, first)
    }
}

/// What can be found of an event that is broken elsewhere, by strings and brackets alone.
fn value_in_broken<'a>(name: &str, event: &'a [u8], pointer: &Pointer) -> Option<Cow<'a, str>> {
    let json = std::str::from_utf8(&event[event::locate(event, pointer)?]).ok()?;
    serde_json::from_str::<IgnoredAny>(json).ok()?;
    value_of(name, Some(json), pointer).ok().flatten()
}

/// Characters that these may have, here as in our own events.
const LONGEST_TYPE: usize = 128;
const LONGEST_ID: usize = 256;

/// What the JSON that was found for this header says. A number is taken as it is written (in the place of a time so that it is
/// read as one), `null` is as good as nothing.
fn value_of<'a>(name: &str, json: Option<&'a str>, pointer: &Pointer) -> Result<Option<Cow<'a, str>>, Invalid> {
    let at = || format!("{:?}", pointer.to_string());
    let first = json.and_then(|json| json.as_bytes().first()).copied();
    let json = json.unwrap_or_default();
    let text = match first {
        None | Some(b'n') => None,
        Some(b'"') => Some(event::unescape(json).map_err(|error| {
            Invalid::new(Code::InvalidJson, format!("the string at {} cannot be read: {error}", at()))
        })?),
        Some(_) if name == "ce_time" => Some(event::text_of_time(json)),
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

/// What a body is wrapped around: base64 in a form, gzip without a word of it in the head. `None` where it is not.
pub fn unwrap(body: &Bytes, http: &HttpConfig, share: &Reservation) -> Result<Option<Bytes>, Problem> {
    let of_form = field_of(body).map(|field| decode(field, share)).transpose()?;
    let inner = of_form.as_ref().unwrap_or(body);
    if !inner.starts_with(GZIP) {
        return Ok(of_form);
    }
    let mut inflating = Inflating::new(Coding::Gzip, inner.len(), http.max_body.as_usize(), share.another());
    inflating.push(inner.clone())?;
    inflating.finish().map(Some)
}

/// What was wrapped is wrapped in there again.
pub fn wrapped_twice() -> Problem {
    let detail = "what is in this gzip stream or form is one again, nothing was accepted: wrap the JSON once";
    Problem { code: Some(Code::InvalidJson), ..Problem::bad_request(detail) }
}

/// The bytes of a form's field: JSON as it was escaped, or else base64.
fn decode(field: &[u8], share: &Reservation) -> Result<Bytes, Problem> {
    let mut own = share.another();
    // Without its escapes, and what base64 makes of that.
    own.grow(2 * field.len())?;
    let mut bytes = Vec::with_capacity(field.len());
    for (index, part) in field.split(|byte| *byte == b'+').enumerate() {
        bytes.extend((index > 0).then_some(b' '));
        bytes.extend(percent_decode(part));
    }
    if !matches!(bytes.trim_ascii_start().first(), Some(b'{' | b'[')) {
        // A plus that was not escaped is a space in a form.
        bytes.iter_mut().filter(|byte| **byte == b' ').for_each(|byte| *byte = b'+');
        bytes = event::BASE64.decode(&bytes).map_err(|error| {
            let detail = format!("the field of this form is neither JSON nor base64, nothing was accepted: {error}");
            Problem { code: Some(Code::InvalidJson), ..Problem::bad_request(detail) }
        })?;
    }
    bytes.shrink_to_fit();
    own.resize(bytes.len())?;
    Ok(own.hold(bytes))
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
mod tests;
