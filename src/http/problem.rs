//! Answers that concern a whole request: `application/problem+json` (RFC 9457).

use std::{borrow::Cow, fmt::Display};

use actix_web::{
    HttpResponse, ResponseError,
    http::{
        StatusCode,
        header::{ACCEPT_ENCODING, ALLOW, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE},
    },
};
use serde::Serialize;
use serde_json::json;

use crate::event::{Code, shortened};

pub const MEDIA_TYPE: &str = "application/problem+json";

/// An answer that is an error: its status, and what is wrong and what to do.
#[derive(Debug, thiserror::Error)]
#[error("{detail}")]
pub struct Problem {
    pub status: StatusCode,
    pub detail: Cow<'static, str>,
    /// Why a body is refused, by the code of single events.
    pub code: Option<Code>,
    /// Seconds.
    pub retry_after: Option<u32>,
    /// The methods that the path takes.
    pub allow: Option<&'static str>,
    /// The content codings that a body may have (RFC 9110, 15.5.16).
    pub accept_encoding: Option<&'static str>,
    /// What a client has to show (RFC 9110, 15.5.2).
    pub challenge: Option<Challenge>,
    /// The connection is of no use after this answer.
    pub closing: bool,
}

/// How a client says who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Challenge {
    /// It sent no key.
    Key,
    /// The one that it sent is not taken (RFC 6750, 3.1).
    AnotherKey,
    /// It did not sign what it sent, or wrongly.
    Signature,
}

impl Challenge {
    /// A field of `WWW-Authenticate` each: there are clients that read one challenge of a field.
    pub fn fields(self) -> impl Iterator<Item = (HeaderName, HeaderValue)> {
        const BASIC: &str = r#"Basic realm="ingestd", charset="UTF-8""#;
        let fields: &[_] = match self {
            Self::Key => &[r#"Bearer realm="ingestd""#, BASIC],
            Self::AnotherKey => &[r#"Bearer realm="ingestd", error="invalid_token""#, BASIC],
            // No registered scheme: what is meant is what the sentence says.
            Self::Signature => &[r#"Signature realm="ingestd""#],
        };
        fields.iter().map(|field| (WWW_AUTHENTICATE, HeaderValue::from_static(field)))
    }
}

/// The type is `about:blank`, so the title is the status's own phrase (RFC 9457, 4.2.1).
#[derive(Serialize)]
struct Members<'a> {
    r#type: &'static str,
    title: Option<&'static str>,
    status: u16,
    detail: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<&'static str>,
}

impl Problem {
    pub fn new(status: StatusCode, detail: impl Into<Cow<'static, str>>) -> Self {
        Self {
            status,
            detail: detail.into(),
            code: None,
            retry_after: None,
            allow: None,
            accept_encoding: None,
            challenge: None,
            closing: false,
        }
    }

    /// What is wrong with what a client sent: a sentence that is bounded, since libraries may quote that.
    pub fn bad_request(detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, shortened(detail))
    }

    pub fn not_found(detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::NOT_FOUND, detail)
    }

    pub fn not_allowed(allow: &'static str, detail: String) -> Self {
        Self { allow: Some(allow), ..Self::new(StatusCode::METHOD_NOT_ALLOWED, detail) }
    }

    pub fn body_too_large(max_body: impl Display) -> Self {
        let detail = format!("the body is larger than {max_body} bytes (http.max_body): send it in smaller requests");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, detail)
    }

    /// 503, which is worth another try soon: the shortest time that the header can say. It is the answer of whoever is busy,
    /// too: 429 would blame this client, and many of those give up on it.
    pub fn unavailable(detail: impl Into<Cow<'static, str>>) -> Self {
        Self { retry_after: Some(1), ..Self::new(StatusCode::SERVICE_UNAVAILABLE, detail) }
    }

    fn members(&self) -> Members<'_> {
        Members {
            r#type: "about:blank",
            title: self.status.canonical_reason(),
            status: self.status.as_u16(),
            detail: &self.detail,
            code: self.code.map(Code::as_str),
        }
    }

    /// The members sorted by name, as the admin endpoint and the connections write them.
    pub fn json(&self) -> String {
        json!(self.members()).to_string()
    }

    /// The members in the order of the RFC, as the ingestor writes them.
    pub fn into_response(self) -> HttpResponse {
        // Strings and numbers always serialise.
        self.response(serde_json::to_string(&self.members()).unwrap_or_default())
    }

    fn response(&self, json: String) -> HttpResponse {
        let mut response = HttpResponse::build(self.status);
        response.insert_header((CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE)));
        if let Some(seconds) = self.retry_after {
            response.insert_header((RETRY_AFTER, HeaderValue::from(seconds)));
        }
        if let Some(allow) = self.allow {
            response.insert_header((ALLOW, HeaderValue::from_static(allow)));
        }
        if let Some(codings) = self.accept_encoding {
            response.insert_header((ACCEPT_ENCODING, HeaderValue::from_static(codings)));
        }
        self.challenge.into_iter().flat_map(Challenge::fields).for_each(|field| _ = response.append_header(field));
        if self.closing {
            response.force_close();
        }
        response.body(json)
    }
}

impl ResponseError for Problem {
    fn status_code(&self) -> StatusCode {
        self.status
    }

    fn error_response(&self) -> HttpResponse {
        self.response(self.json())
    }
}
