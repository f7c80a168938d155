//! Takes a request's body in: its coding, its size, its deadline, and its share of the bytes in flight.

use std::{cell::Cell, rc::Rc};

use actix_web::{
    HttpRequest,
    http::{StatusCode, header::CONTENT_LENGTH},
    web,
};
use bytes::Bytes;
use futures::StreamExt;

use super::{
    aside::{Turn, aside},
    coding::{Coding, Inflating},
    in_flight::Reservation,
};
use crate::{
    config::HttpConfig,
    http::{Connection, Problem, request_id},
};

/// Reads the whole body, and inflates it where it has a coding. The bytes stay counted in `share` until the last clone of
/// what is returned is gone, so that the budget holds as well for requests that the queue still works on when their
/// client has given up.
///
/// # Errors
/// 413 above `http.max_body`, compressed or inflated, 503 when `http.max_in_flight` is spent, 408 after
/// `http.request_timeout` (503 where it is we who were not done), 400 and 415 for what cannot be inflated.
pub async fn read(
    request: &HttpRequest,
    payload: web::Payload,
    coding: Option<Coding>,
    http: &HttpConfig,
    share: Reservation,
) -> Result<Bytes, Problem> {
    // Parts of the body are named by 32-bit positions.
    let max_body = http.max_body.as_usize().min(u32::MAX as usize);
    let connection = request.conn_data::<Rc<Connection>>().cloned();
    let incoming = Incoming { payload, connection, max_body, length: 0 };
    let declared = request.headers().get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
    if declared.is_some_and(|length| length > max_body) {
        return Err(Problem::body_too_large(max_body));
    }
    let is_inflated = Cell::new(false);
    let reading = async {
        match coding {
            None => incoming.read(declared, share).await,
            Some(coding) => incoming.inflate(request, coding, share, &is_inflated).await,
        }
    };
    tokio::time::timeout(http.request_timeout, reading).await.unwrap_or_else(|_| {
        if is_inflated.get() {
            return Err(not_inflated(http));
        }
        let timeout = humantime::format_duration(http.request_timeout);
        let detail = format!(
            "the body did not arrive within {timeout} (http.request_timeout): send it again, in smaller requests"
        );
        Err(Problem { closing: true, ..Problem::new(StatusCode::REQUEST_TIMEOUT, detail) })
    })
}

/// Inflates a whole body, where it has a coding.
///
/// # Errors
/// As [`read`].
pub async fn inflate(
    request: &HttpRequest,
    mut body: Bytes,
    coding: Option<Coding>,
    http: &HttpConfig,
    share: Reservation,
) -> Result<Bytes, Problem> {
    let Some(coding) = coding else { return Ok(body) };
    let max_body = http.max_body.as_usize().min(u32::MAX as usize);
    let mut inflating = Inflating::new(coding, body.len(), max_body, share);
    if !body.is_empty() && !inflating.push_short(&mut body)? {
        let inflated = tokio::time::timeout(http.request_timeout, inflate_aside(request, inflating, body)).await;
        inflating = inflated.unwrap_or_else(|_| Err(not_inflated(http)))?;
    }
    inflating.finish()
}

fn not_inflated(http: &HttpConfig) -> Problem {
    let timeout = humantime::format_duration(http.request_timeout);
    let detail = format!("the body was not inflated within {timeout} (http.request_timeout), beside others: try again");
    Problem { closing: true, ..Problem::unavailable(detail) }
}

/// A piece is a part of its connection's read buffer, and keeps all of that alive. For a small one a copy is cheaper: the
/// connection goes on with its buffer, and what is held is what is counted.
const COPIED: usize = 16 * 1024;

/// A body on its way in.
struct Incoming {
    payload: web::Payload,
    connection: Option<Rc<Connection>>,
    max_body: usize,
    length: usize,
}

impl Incoming {
    async fn read(mut self, declared: Option<usize>, mut share: Reservation) -> Result<Bytes, Problem> {
        let Some(first) = self.next().await? else {
            return Ok(Bytes::new());
        };
        share.grow(first.len())?;
        // Most bodies come in one piece.
        let Some(second) = self.next().await? else {
            return Ok(share.hold(if first.len() <= COPIED { Bytes::copy_from_slice(&first) } else { first }));
        };
        let most = declared.unwrap_or(self.max_body);
        let mut whole = Vec::new();
        make_room(&mut whole, self.length, most, &mut share)?;
        whole.extend_from_slice(&first);
        whole.extend_from_slice(&second);
        drop((first, second));
        while let Some(chunk) = self.next().await? {
            make_room(&mut whole, chunk.len(), most, &mut share)?;
            whole.extend_from_slice(&chunk);
        }
        share.resize(whole.capacity())?;
        Ok(share.hold(whole))
    }

    /// Inflates each piece as it comes, aside where that takes long: then it is this that is waited for.
    async fn inflate(
        mut self,
        request: &HttpRequest,
        coding: Coding,
        share: Reservation,
        is_inflated: &Cell<bool>,
    ) -> Result<Bytes, Problem> {
        // Nothing is held before there is something to inflate.
        let mut next = self.next().await?;
        let mut inflating = Inflating::new(coding, next.as_ref().map_or(0, Bytes::len), self.max_body, share);
        while let Some(mut piece) = next {
            if !inflating.push_short(&mut piece)? {
                is_inflated.set(true);
                inflating = inflate_aside(request, inflating, piece).await?;
                is_inflated.set(false);
            }
            next = self.next().await?;
        }
        inflating.finish()
    }

    async fn next(&mut self) -> Result<Option<Bytes>, Problem> {
        let Some(chunk) = self.payload.next().await else {
            if let Some(connection) = &self.connection {
                connection.body_complete();
            }
            return Ok(None);
        };
        let chunk = chunk.map_err(|_| {
            let detail =
                "the body ended before all that its head announced, or its chunks are not valid: send all of it again";
            Problem { closing: true, ..Problem::bad_request(detail) }
        })?;
        self.length += chunk.len();
        if self.length > self.max_body {
            return Err(Problem::body_too_large(self.max_body));
        }
        Ok(Some(chunk))
    }
}

/// Room for more of a body, which is counted before it is there: twice of what there is, but never more than all of it. What a
/// head says of its body is no reason to take more room than that.
fn make_room(whole: &mut Vec<u8>, more: usize, most: usize, share: &mut Reservation) -> Result<(), Problem> {
    let needed = whole.len() + more;
    if needed > whole.capacity() {
        let room = (2 * needed).min(most).max(needed);
        share.resize(room)?;
        whole.reserve_exact(room - whole.len());
    }
    Ok(())
}

async fn inflate_aside(request: &HttpRequest, mut inflating: Inflating, piece: Bytes) -> Result<Inflating, Problem> {
    let work = move || inflating.push(piece).map(|()| inflating);
    aside(Turn::of(true).await, work).await.unwrap_or_else(|error| {
        let request_id = request_id::of(request.headers());
        tracing::error!(request_id, %error, "inflating a body failed");
        Err(Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "the body could not be inflated"))
    })
}
