//! What clients are answered: a summary of a request's events.

use std::io::Write;

use actix_web::{
    HttpResponse,
    http::{
        StatusCode,
        header::{CONTENT_TYPE, HeaderValue},
    },
};

use super::{
    check::{Checked, EventId},
    in_flight::Reservation,
};
use crate::event::Code;

/// 200 where all events are accepted (also none of none, and whatever is said of them), 207 where some are, 400 where none
/// is.
///
/// The answer counts as the request's `share` until the client has it: a client may take its time with that.
pub fn summary(checked: &Checked, share: Reservation) -> HttpResponse {
    let status = match (checked.accepted.is_empty(), checked.errors.is_empty()) {
        (_, true) => StatusCode::OK,
        (false, false) => StatusCode::MULTI_STATUS,
        (true, false) => StatusCode::BAD_REQUEST,
    };
    let mut builder = HttpResponse::build(status);
    builder.insert_header((CONTENT_TYPE, HeaderValue::from_static("application/json")));
    builder.body(share.hold(summary_json(checked)))
}

/// Frames of the entries of an answer, with their separators, numbers and codes.
const ID: usize = 40;
const ERROR: usize = 80;

/// The most bytes that an answer to these events has. (An event that the queue finds too large gets a sentence instead of
/// its id, but then its own bytes are counted, which are far more.)
pub fn longest_answer(checked: &Checked) -> usize {
    let id = |id: &EventId| match id {
        EventId::Assigned(_) => ID,
        EventId::InBody(id) => ID + (id.end - id.start) as usize,
        // A character may be escaped with six.
        EventId::Unescaped(id) => ID + 6 * id.len(),
    };
    let ids: usize = checked.accepted.iter().map(|accepted| id(&accepted.id)).sum();
    let errors: usize = checked.errors.iter().map(|error| ERROR + 2 * error.invalid.message.len()).sum();
    let warnings: usize = checked.warnings.iter().map(|warning| ERROR + 2 * warning.message.len()).sum();
    80 + ids + errors + warnings
}

/// `{"accepted":1,"rejected":1,"ids":["…"],"errors":[{"index":1,"code":"missing_type","message":"…"}],"warnings":[…]}`,
/// `errors` and `warnings` only where there are some. Written as it goes: a tree of it would cost several allocations an
/// event.
pub(super) fn summary_json(checked: &Checked) -> Vec<u8> {
    let mut json = Vec::with_capacity(longest_answer(checked));
    // Writing to a Vec does not fail, here and below.
    let _ = write!(json, r#"{{"accepted":{},"rejected":{},"ids":["#, checked.accepted.len(), checked.errors.len());
    for (at, accepted) in checked.accepted.iter().enumerate() {
        if at > 0 {
            json.push(b',');
        }
        match &accepted.id {
            EventId::Assigned(id) => {
                let mut text = uuid::Uuid::encode_buffer();
                quote(&mut json, id.hyphenated().encode_lower(&mut text).as_bytes());
            }
            // It was part of a JSON string without escapes, so it is one again.
            EventId::InBody(id) => quote(&mut json, id.of(&checked.body)),
            EventId::Unescaped(id) => string(&mut json, id),
        }
    }
    json.push(b']');
    let errors = checked.errors.iter();
    remarks(&mut json, "errors", errors.map(|error| (error.index, error.invalid.code, error.invalid.message.as_str())));
    let warnings = checked.warnings.iter();
    remarks(&mut json, "warnings", warnings.map(|warning| (warning.index, warning.code, warning.message)));
    json.push(b'}');
    json
}

/// What is said of single events, under a name of its own, where there is anything.
fn remarks<'a>(json: &mut Vec<u8>, name: &str, remarks: impl ExactSizeIterator<Item = (usize, Code, &'a str)>) {
    if remarks.len() == 0 {
        return;
    }
    let _ = write!(json, r#","{name}":["#);
    for (at, (index, code, message)) in remarks.enumerate() {
        if at > 0 {
            json.push(b',');
        }
        let _ = write!(json, r#"{{"index":{index},"code":"{}","message":"#, code.as_str());
        string(json, message);
        json.push(b'}');
    }
    json.push(b']');
}

fn quote(json: &mut Vec<u8>, text: &[u8]) {
    json.push(b'"');
    json.extend_from_slice(text);
    json.push(b'"');
}

fn string(json: &mut Vec<u8>, text: &str) {
    // A string always serialises.
    let _ = serde_json::to_writer(json, text);
}
