//! Answers to requests that no handler saw: actix refused them while it parsed, or their time was up.

use actix_web::http::StatusCode;

use super::{
    problem::{MEDIA_TYPE, Problem},
    request_id::{self, RequestId},
};

/// A whole response, after which the connection ends.
pub fn response(status: StatusCode, id: &RequestId) -> Vec<u8> {
    saying(status, detail(status), id)
}

fn detail(status: StatusCode) -> &'static str {
    match status {
        StatusCode::REQUEST_TIMEOUT => {
            "the head of the request did not arrive in time (http.head_timeout): send it at once, and again"
        }
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => {
            "the head of the request is too large, or has too many fields: send fewer and shorter ones"
        }
        _ => "this is not a valid HTTP/1.1 request: send it as RFC 9112 has it",
    }
}

/// The same with a sentence of its own.
pub fn saying(status: StatusCode, detail: &'static str, id: &RequestId) -> Vec<u8> {
    let retry = if status == StatusCode::SERVICE_UNAVAILABLE { "retry-after: 1\r\n" } else { "" };
    let body = Problem::new(status, detail).json();
    let (code, reason, length) = (status.as_str(), status.canonical_reason().unwrap_or_default(), body.len());
    let field = request_id::NAME;
    let answer = format!(
        "HTTP/1.1 {code} {reason}\r\ncontent-length: {length}\r\nconnection: close\r\n\
         content-type: {MEDIA_TYPE}\r\n{retry}{field}: {id}\r\n\r\n{body}"
    );
    answer.into_bytes()
}

/// Where, at the end of what actix writes between two requests, one of its own refusals begins: a response without a
/// body, with one of these statuses. Handlers give none such.
pub fn at_the_end_of(written: &[u8]) -> Option<(usize, StatusCode)> {
    const LONGEST: usize = 256;
    if !written.ends_with(b"\r\n\r\n") {
        return None;
    }
    let from = written.len().saturating_sub(LONGEST);
    let start = from + memchr::memmem::rfind(&written[from..], b"HTTP/1.")?;
    let head = std::str::from_utf8(&written[start..]).ok()?;
    let (line, fields) = head.split_once("\r\n")?;
    let status = line.split(' ').nth(1)?.parse().ok()?;
    let refused = matches!(status, 400 | 431) && fields.starts_with("content-length: 0\r\n");
    refused.then_some((start, StatusCode::from_u16(status).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_refusal_without_a_body_at_the_very_end_is_one_of_actix() {
        let refused = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\ndate: x\r\n\r\n";
        assert_eq!(at_the_end_of(refused), Some((0, StatusCode::BAD_REQUEST)));
        let ok = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n".as_slice();
        assert_eq!(at_the_end_of(&[ok, refused].concat()), Some((ok.len(), StatusCode::BAD_REQUEST)));
        let ours = response(StatusCode::BAD_REQUEST, &RequestId::new());
        for other in [ok, b"", b"\r\n\r\n", &ours, &[refused, ok].concat(), &refused[..40]] {
            assert_eq!(at_the_end_of(other), None, "{}", String::from_utf8_lossy(other));
        }
    }
}
