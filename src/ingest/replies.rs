//! What clients are answered: a summary of a request's events, or a problem (RFC 9457).

use std::{borrow::Cow, io::Write};

use actix_web::{
    HttpResponse,
    http::{
        StatusCode,
        header::{ALLOW, CONTENT_TYPE, HeaderValue, RETRY_AFTER},
    },
};
use serde::Serialize;

use super::{
    check::{Checked, EventId},
    format::Unsplittable,
    in_flight::Reservation,
};
use crate::{
    event::{Code, Invalid},
    health::Closed,
};

/// 200 where all events are accepted (also none of none), 207 where some are, 400 where none is.
///
/// The answer counts as the request's `share` until the client has it: a client may take its time with that.
pub fn summary(body: &[u8], checked: &Checked, share: Reservation) -> HttpResponse {
    let status = match (checked.accepted.is_empty(), checked.errors.is_empty()) {
        (_, true) => StatusCode::OK,
        (false, false) => StatusCode::MULTI_STATUS,
        (true, false) => StatusCode::BAD_REQUEST,
    };
    let mut builder = HttpResponse::build(status);
    builder.insert_header((CONTENT_TYPE, HeaderValue::from_static("application/json")));
    builder.body(share.hold(summary_json(body, checked)))
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
    64 + ids + errors
}

/// `{"accepted":1,"rejected":1,"ids":["…"],"errors":[{"index":1,"code":"missing_type","message":"…"}]}`, `errors` only
/// where there are some. Written as it goes: a tree of it would cost several allocations an event.
pub(super) fn summary_json(body: &[u8], checked: &Checked) -> Vec<u8> {
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
            EventId::InBody(id) => quote(&mut json, id.of(body)),
            EventId::Unescaped(id) => string(&mut json, id),
        }
    }
    json.push(b']');
    if !checked.errors.is_empty() {
        json.extend_from_slice(br#","errors":["#);
        for (at, error) in checked.errors.iter().enumerate() {
            if at > 0 {
                json.push(b',');
            }
            let code = error.invalid.code.as_str();
            let _ = write!(json, r#"{{"index":{},"code":"{code}","message":"#, error.index);
            string(&mut json, &error.invalid.message);
            json.push(b'}');
        }
        json.push(b']');
    }
    json.push(b'}');
    json
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

/// An answer that concerns the whole request: `application/problem+json`.
#[derive(Debug)]
pub struct Problem {
    status: StatusCode,
    detail: Cow<'static, str>,
    /// Why the body is refused, in the words of single events.
    code: Option<Code>,
    retry_after: Option<u32>,
    allow: Option<&'static str>,
    closing: bool,
}

#[derive(Serialize)]
struct ProblemJson<'a> {
    r#type: &'static str,
    title: &'static str,
    status: u16,
    detail: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<&'static str>,
}

impl Problem {
    pub fn new(status: StatusCode, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { status, detail: detail.into(), code: None, retry_after: None, allow: None, closing: false }
    }

    /// Broken syntax: nothing of the body is accepted.
    pub fn invalid_body(invalid: &Invalid) -> Self {
        Self {
            code: Some(invalid.code),
            ..Self::new(
                StatusCode::BAD_REQUEST,
                format!("the body is not valid JSON, nothing was accepted: {}", invalid.message),
            )
        }
    }

    pub fn not_allowed(allow: &'static str) -> Self {
        let detail = format!("this path takes {allow} only");
        Self { allow: Some(allow), ..Self::new(StatusCode::METHOD_NOT_ALLOWED, detail) }
    }

    /// 429: budgets are given back within milliseconds, so the shortest time that the header can say.
    pub fn too_busy(detail: &'static str) -> Self {
        Self { retry_after: Some(1), ..Self::new(StatusCode::TOO_MANY_REQUESTS, detail) }
    }

    pub fn unavailable(retry_after: u32, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { retry_after: Some(retry_after), ..Self::new(StatusCode::SERVICE_UNAVAILABLE, detail) }
    }

    /// New events are refused at present.
    pub fn closed(closed: Closed, why: &str) -> Self {
        let (seconds, what) = match closed {
            // Another daemon, or this one restarted, is there as soon as a load balancer or systemd has noticed.
            Closed::Draining => (5, "stopping"),
            // Uploads and trimming, or an operator, have to free the disk first.
            Closed::DiskFull => (30, "the disk is too full"),
            // A broker's election or restart takes seconds.
            Closed::QueueUnavailable => (5, "the queue cannot be reached"),
            Closed::Starting => (1, "starting"),
        };
        let problem = Self::unavailable(seconds, format!("no events are accepted at present: {what} ({why})"));
        Self { closing: closed == Closed::Draining, ..problem }
    }

    /// The connection is of no use after this answer.
    pub fn closing(self) -> Self {
        Self { closing: true, ..self }
    }

    pub fn status(&self) -> StatusCode {
        self.status
    }

    pub fn code(&self) -> Option<Code> {
        self.code
    }

    pub fn into_response(self) -> HttpResponse {
        let json = ProblemJson {
            r#type: "about:blank",
            title: self.status.canonical_reason().unwrap_or_default(),
            status: self.status.as_u16(),
            detail: &self.detail,
            code: self.code.map(Code::as_str),
        };
        let mut response = HttpResponse::build(self.status);
        response.insert_header((CONTENT_TYPE, HeaderValue::from_static("application/problem+json")));
        if let Some(seconds) = self.retry_after {
            response.insert_header((RETRY_AFTER, HeaderValue::from(seconds)));
        }
        if let Some(allow) = self.allow {
            response.insert_header((ALLOW, HeaderValue::from_static(allow)));
        }
        if self.closing {
            response.force_close();
        }
        // Strings and numbers always serialise.
        response.body(serde_json::to_vec(&json).unwrap_or_default())
    }
}

impl From<Unsplittable> for Problem {
    fn from(unsplittable: Unsplittable) -> Self {
        let (status, code) = match &unsplittable {
            Unsplittable::TooMany(_) => (StatusCode::PAYLOAD_TOO_LARGE, None),
            Unsplittable::NeitherObjectNorArray => (StatusCode::BAD_REQUEST, Some(Code::NotAnObject)),
            Unsplittable::Empty | Unsplittable::ByteOrderMark | Unsplittable::Syntax(_) => {
                (StatusCode::BAD_REQUEST, Some(Code::InvalidJson))
            }
        };
        Self { code, ..Self::new(status, unsplittable.to_string()) }
    }
}
