//! Takes a request's body in: its encoding, its size, its deadline, and its share of the bytes in flight.

use std::rc::Rc;

use actix_web::{
    HttpRequest,
    http::{
        StatusCode,
        header::{CONTENT_ENCODING, CONTENT_LENGTH, HeaderMap, HeaderValue},
    },
    web,
};
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use prometheus_client::metrics::gauge::Gauge;

use super::in_flight::Reservation;
use crate::{
    config::HttpConfig,
    http::{Connection, Problem},
};

/// Refuses a body that is not sent as it is.
///
/// # Errors
/// 415 with any `Content-Encoding`, of however many: what one says another may take back.
pub fn check_encoding(headers: &HeaderMap) -> Result<(), Problem> {
    let is_identity = |coding: &HeaderValue| coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"identity");
    if headers.get_all(CONTENT_ENCODING).all(is_identity) {
        return Ok(());
    }
    let detail = "bodies with a Content-Encoding are not accepted: send the body as it is";
    Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail))
}

/// Reads the whole body. The bytes stay counted in `in_flight` until the last clone of what is returned is gone, so
/// that the budget holds as well for requests that the queue still works on when their client has given up.
///
/// # Errors
/// 413 above `http.max_body`, 503 when `http.max_in_flight` is spent, 408 after `http.request_timeout`.
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
    let declared = request.headers().get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
    if declared.is_some_and(|length| length > incoming.max_body) {
        return Err(Problem::body_too_large(incoming.max_body));
    }
    let bytes = match tokio::time::timeout(http.request_timeout, incoming.read(declared)).await {
        Ok(read) => read?,
        Err(_) => {
            let timeout = humantime::format_duration(http.request_timeout);
            let detail = format!("the body did not arrive within {timeout} (http.request_timeout)");
            return Err(Problem { closing: true, ..Problem::new(StatusCode::REQUEST_TIMEOUT, detail) });
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
            Problem { closing: true, ..Problem::bad_request(detail) }
        })?;
        self.length += chunk.len();
        if self.length > self.max_body {
            return Err(Problem::body_too_large(self.max_body));
        }
        self.share.grow(chunk.len())?;
        Ok(Some(chunk))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_taken_as_it_is_alone() {
        for (codings, expected) in [
            (&[][..], Ok(())),
            (&["identity"], Ok(())),
            (&["gzip"], Err(415)),
            (&["identity", "gzip"], Err(415)),
            (&["gzip, gzip"], Err(415)),
            (&[""], Err(415)),
        ] {
            let mut headers = HeaderMap::new();
            codings.iter().for_each(|coding| headers.append(CONTENT_ENCODING, HeaderValue::from_static(coding)));
            assert_eq!(check_encoding(&headers).map_err(|problem| problem.status.as_u16()), expected, "{codings:?}");
        }
    }
}
