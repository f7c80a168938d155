//! `/v1/dead-letters`: list, show, replay and purge.
//!
//! | | |
//! | --- | --- |
//! | `GET /v1/dead-letters?…` | the letters that the parameters select |
//! | `GET /v1/dead-letters/{topic}/{partition}/{offset}` (or a UUID) | one with its bytes |
//! | `POST /v1/dead-letters/replay?…` | a body is the corrected value of the one letter that `id` names |
//! | `DELETE /v1/dead-letters?…` | purge; some parameter must say which |

use std::sync::{Arc, OnceLock};

use actix_web::{HttpRequest, HttpResponse, http::StatusCode, http::header, web};
use serde::Serialize;
use tokio::sync::Mutex;

use super::{AdminState, blocking};
use crate::{
    event,
    http::Problem,
    log::dead_letters::{DeadLetters, Filter, LettersError, PATIENCE},
};

/// The letters of this process, which are there once its queue is.
#[derive(Clone, Default)]
pub struct DeadLetterService {
    letters: Arc<OnceLock<Arc<dyn DeadLetters>>>,
    /// One operation at a time: each reads a whole topic or holds a transaction.
    turn: Arc<Mutex<()>>,
}

impl DeadLetterService {
    /// Opens it, once.
    pub fn open(&self, letters: Arc<dyn DeadLetters>) {
        // The first stands.
        let _ = self.letters.set(letters);
    }

    async fn work<T: Serialize + Send + 'static>(
        &self,
        operation: impl FnOnce(&dyn DeadLetters) -> Result<T, LettersError> + Send + 'static,
    ) -> Result<HttpResponse, Problem> {
        let letters = self.letters.get().cloned();
        let letters = letters.ok_or_else(|| Problem::unavailable("the daemon is starting: ask again"))?;
        let turn = tokio::time::timeout(PATIENCE / 4, self.turn.clone().lock_owned()).await;
        let turn = turn.map_err(|_| Problem::unavailable("another operation on dead letters is running: ask again"))?;
        // It reads and writes with blocking clients, each with a deadline.
        let outcome = blocking(move || {
            let _turn = turn;
            operation(&*letters)
        });
        Ok(HttpResponse::Ok().json(outcome.await??))
    }
}

impl From<LettersError> for Problem {
    fn from(error: LettersError) -> Self {
        match error {
            LettersError::NotFound(why) => Self::not_found(why),
            LettersError::Invalid(why) => Self::bad_request(why),
            LettersError::Unavailable(why) => Self::unavailable(why),
        }
    }
}

fn filter(request: &HttpRequest) -> Result<Filter, Problem> {
    Filter::from_query(request.query_string()).map_err(Problem::bad_request)
}

pub async fn list(state: web::Data<AdminState>, request: HttpRequest) -> Result<HttpResponse, Problem> {
    let filter = filter(&request)?;
    state.dead_letters.work(move |letters| letters.list(&filter)).await
}

pub async fn show(state: web::Data<AdminState>, id: web::Path<String>) -> Result<HttpResponse, Problem> {
    state.dead_letters.work(move |letters| letters.show(&id)).await
}

pub async fn replay(
    state: web::Data<AdminState>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, Problem> {
    let filter = filter(&request)?;
    let max_event = state.config.load().http.max_event;
    // What the door takes: the letter may be an envelope.
    let limit = event::longest_envelope(max_event);
    let body = payload.to_bytes_limited(limit).await.map_err(|_| {
        let why = format!(
            "the corrected value is larger than {limit} bytes, which the envelope of an event may have ({max_event}, \
             http.max_event)"
        );
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, why)
    })?;
    let body = body.map_err(|error| Problem::bad_request(format!("the corrected value did not arrive: {error}")))?;
    let is_octets = request
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|given| given.as_bytes().starts_with(b"application/octet-stream"));
    if !body.is_empty() && !is_octets {
        // A web page can send a form to this address; it cannot send this.
        let why = "send the corrected value as application/octet-stream";
        return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, why));
    }
    let correction = (!body.is_empty()).then_some(body);
    state.dead_letters.work(move |letters| letters.replay(&filter, correction.as_deref())).await
}

pub async fn purge(state: web::Data<AdminState>, request: HttpRequest) -> Result<HttpResponse, Problem> {
    let filter = filter(&request)?;
    if filter.selects_everything() {
        let why = "say which letters: by id, reason, partition, from or to (to=0s for all until now)";
        return Err(Problem::bad_request(why));
    }
    state.dead_letters.work(move |letters| letters.purge(&filter)).await
}
