//! Takes a request's body in: its media type, its size, its deadline, and its share of the bytes in flight.

use std::rc::Rc;

use actix_web::{
    HttpRequest,
    http::{
        StatusCode,
        header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue},
    },
    web,
};
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use prometheus_client::metrics::gauge::Gauge;

use super::{format::Format, in_flight::Reservation, replies::Problem};
use crate::{config::HttpConfig, http::Connection};

/// What the headers say that the body is.
pub fn format(headers: &HeaderMap) -> Result<Format, Problem> {
    // Each of them: what one says another may take back.
    let is_identity = |coding: &HeaderValue| coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"identity");
    if !headers.get_all(CONTENT_ENCODING).all(is_identity) {
        let detail = "bodies with a Content-Encoding are not accepted: send the body as it is";
        return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail));
    }
    if headers.get_all(CONTENT_TYPE).count() > 1 {
        return Err(unsupported());
    }
    let Some(content_type) = text(headers, CONTENT_TYPE)? else {
        return Ok(Format::Json);
    };
    let mut parts = content_type.split(';').map(str::trim);
    let media_type = parts.next().unwrap_or_default();
    let known = Format::ALL.into_iter().find(|format| format.media_type().eq_ignore_ascii_case(media_type));
    let format = known.ok_or_else(unsupported)?;
    let is_utf_8 = |parameter: &str| match parameter.split_once('=') {
        Some((name, charset)) if name.trim().eq_ignore_ascii_case("charset") => {
            let charset = charset.trim().trim_matches('"');
            charset.eq_ignore_ascii_case("utf-8") || charset.eq_ignore_ascii_case("utf8")
        }
        _ => true,
    };
    if parts.all(is_utf_8) { Ok(format) } else { Err(unsupported()) }
}

fn unsupported() -> Problem {
    let media_types = Format::ALL.map(Format::media_type).join(" or ");
    let detail = format!("Content-Type must be {media_types}, in UTF-8");
    Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail)
}

fn text(headers: &HeaderMap, name: HeaderName) -> Result<Option<&str>, Problem> {
    headers.get(name).map(|value| value.to_str().map_err(|_| unsupported())).transpose()
}

/// Reads the whole body. The bytes stay counted in `in_flight` until the last clone of what is returned is gone, so
/// that the budget holds as well for requests that the queue still works on when their client has given up.
///
/// # Errors
/// 413 above `http.max_body`, 429 when `http.max_in_flight` is spent, 408 after `http.request_timeout`.
pub async fn read(
    request: &HttpRequest,
    payload: web::Payload,
    http: &HttpConfig,
    in_flight: &Gauge,
) -> Result<Bytes, Problem> {
    let mut incoming = Incoming {
        payload,
        // Parts of the body are named by 32-bit positions.
        max_body: http.max_body.as_usize().min(u32::MAX as usize),
        length: 0,
        share: Reservation::new(in_flight, http.max_in_flight),
    };
    let declared = text(request.headers(), CONTENT_LENGTH)?.and_then(|length| length.parse::<usize>().ok());
    if declared.is_some_and(|length| length > incoming.max_body) {
        return Err(incoming.too_large());
    }
    let bytes = match tokio::time::timeout(http.request_timeout, incoming.read(declared)).await {
        Ok(read) => read?,
        Err(_) => {
            let timeout = humantime::format_duration(http.request_timeout);
            let detail = format!("the body did not arrive within {timeout} (http.request_timeout)");
            return Err(Problem::new(StatusCode::REQUEST_TIMEOUT, detail).closing());
        }
    };
    if let Some(connection) = request.conn_data::<Rc<Connection>>() {
        connection.body_complete();
    }
    Ok(incoming.share.hold(bytes))
}

/// A piece is a part of its connection's read buffer, and keeps all of that alive. For a small one a copy is cheaper: the
/// connection goes on with its buffer, and what is held is what is counted.
const COPIED: usize = 16 * 1024;

/// A body on its way in.
struct Incoming {
    payload: web::Payload,
    max_body: usize,
    length: usize,
    share: Reservation,
}

impl Incoming {
    async fn read(&mut self, declared: Option<usize>) -> Result<Bytes, Problem> {
        let Some(first) = self.next().await? else {
            return Ok(Bytes::new());
        };
        // Most bodies come in one piece.
        let Some(second) = self.next().await? else {
            return Ok(if first.len() <= COPIED { Bytes::copy_from_slice(&first) } else { first });
        };
        let mut whole = BytesMut::with_capacity(declared.unwrap_or(2 * self.length));
        whole.extend_from_slice(&first);
        whole.extend_from_slice(&second);
        drop((first, second));
        while let Some(chunk) = self.next().await? {
            whole.extend_from_slice(&chunk);
        }
        Ok(whole.freeze())
    }

    async fn next(&mut self) -> Result<Option<Bytes>, Problem> {
        let Some(chunk) = self.payload.next().await else {
            return Ok(None);
        };
        let chunk = chunk.map_err(|_| {
            let detail = "the body ended before all that its head announced, or its chunks are not valid";
            Problem::new(StatusCode::BAD_REQUEST, detail).closing()
        })?;
        self.length += chunk.len();
        if self.length > self.max_body {
            return Err(self.too_large());
        }
        self.share.grow(chunk.len())?;
        Ok(Some(chunk))
    }

    fn too_large(&self) -> Problem {
        let detail =
            format!("the body is larger than {} bytes (http.max_body): send it in smaller requests", self.max_body);
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, detail)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_body_is_json_or_ndjson_in_utf_8_as_it_is() {
        let format = |headers: &[(HeaderName, &'static str)]| {
            let mut map = HeaderMap::new();
            for (name, value) in headers {
                map.append(name.clone(), HeaderValue::from_static(value));
            }
            let headers = map;
            super::format(&headers).map_err(|problem| problem.status().as_u16())
        };
        for (content_type, expected) in [
            ("application/json", Ok(Format::Json)),
            ("Application/JSON; charset=\"UTF-8\"; profile=x", Ok(Format::Json)),
            ("application/x-ndjson;charset=utf-8", Ok(Format::Ndjson)),
            ("application/json; charset=latin1", Err(415)),
            ("text/plain", Err(415)),
            ("", Err(415)),
        ] {
            assert_eq!(format(&[(CONTENT_TYPE, content_type)]), expected, "{content_type}");
        }
        assert_eq!(format(&[]), Ok(Format::Json));
        assert_eq!(format(&[(CONTENT_ENCODING, "identity")]), Ok(Format::Json));
        for codings in [&["gzip"][..], &["identity", "gzip"], &["gzip, gzip"], &[""]] {
            let headers: Vec<_> = codings.iter().map(|coding| (CONTENT_ENCODING, *coding)).collect();
            assert_eq!(format(&headers), Err(415), "{codings:?}");
        }
        let twice = [(CONTENT_TYPE, "application/json"), (CONTENT_TYPE, "application/x-ndjson")];
        assert_eq!(format(&twice), Err(415));
    }
}
