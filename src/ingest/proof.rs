//! Whose a request is where its head alone does not say so: by a signature over its body, or by a key in it.

use std::{borrow::Cow, ops::Range, sync::Arc};

use actix_web::{
    HttpRequest,
    http::{StatusCode, header::HeaderMap},
    web,
};
use bytes::Bytes;

use super::{
    aside::{Turn, aside},
    auth, body,
    coding::Coding,
    in_flight::{InFlight, Reservation},
    shape::is_large,
    signature::{Claim, Refusal},
    source,
};
use crate::{
    config::{Config, HttpConfig, HttpKey, KEY_PREFIX, Pointer, Signature},
    event,
    http::{Problem, request_id},
    metrics::{Metrics, ReasonLabel},
    position::Timestamp,
};

/// A body on its way.
pub enum Arriving {
    Payload(web::Payload),
    /// As it came, whole, for its signature, with the request's share.
    Whole(Bytes, Reservation),
}

impl Arriving {
    /// Reads the body, and inflates it.
    ///
    /// # Errors
    /// As [`body::read`].
    pub async fn body(
        self,
        request: &HttpRequest,
        coding: Option<Coding>,
        http: &HttpConfig,
        in_flight: &InFlight,
    ) -> Result<(Bytes, Reservation), Problem> {
        match self {
            Self::Payload(payload) => {
                let share = Reservation::new(in_flight, http.max_in_flight);
                body::read(request, payload, coding, http, share.another()).await.map(|body| (body, share))
            }
            Self::Whole(body, share) => {
                // `http.max_body` bounds it.
                body::inflate(request, body, coding, http, share.beside()).await.map(|body| (body, share))
            }
        }
    }
}

/// What a head says of the body's signature. A refusal is counted.
///
/// # Errors
/// 401 where it says none, or one that is not of now.
pub fn claimed(headers: &HeaderMap, signature: &Signature, metrics: &Metrics) -> Result<Claim, Problem> {
    Claim::of(headers, signature.scheme, Timestamp::now()).map_err(|refusal| refused(refusal, metrics))
}

fn refused(refusal: Refusal, metrics: &Metrics) -> Problem {
    metrics.signature_refusals.get_or_create(&ReasonLabel { reason: refusal.reason() }).inc();
    Problem::from(refusal)
}

/// Reads a body, and lets it in where it is signed as its head says. A refusal is counted; what is refused for its head has cost
/// nothing of the body.
///
/// # Errors
/// 401 for what is not signed, or wrongly, or not now; as [`body::read`].
pub async fn signed(
    request: &HttpRequest,
    payload: web::Payload,
    signature: &Signature,
    config: &HttpConfig,
    in_flight: &InFlight,
    metrics: &Metrics,
) -> Result<Arriving, Problem> {
    let claim = claimed(request.headers(), signature, metrics)?;
    let share = Reservation::new(in_flight, config.max_in_flight);
    let body = body::read(request, payload, None, config, share.another()).await?;
    let (whole, secrets) = (body.clone(), signature.secrets.clone());
    let is_long = is_large(&body);
    let check = move || claim.check(&whole, &secrets);
    let checked = if is_long { on_the_side(request, config, true, check).await? } else { check() };
    checked.map_err(|refusal| refused(refusal, metrics))?;
    Ok(Arriving::Whole(body, share))
}

/// Takes the key out of a body, wherever it stands in it: nothing that is made of the body has it any more.
///
/// # Errors
/// 401 for no key and a wrong one, where the head has none; as a source's body that cannot be unwrapped; 400 for one that is
/// wrapped again in there, where a key would be found by nobody but readers.
pub async fn keyed(
    request: &HttpRequest,
    body: Bytes,
    pointer: &Pointer,
    config: &Arc<Config>,
    share: &Reservation,
    metrics: &Metrics,
    sender: Option<Arc<HttpKey>>,
) -> Result<(Bytes, Option<Arc<HttpKey>>), Problem> {
    let is_large = is_large(&body);
    let is_long = is_large || source::is_wrapped(&body);
    // What is in a body is bounded by `http.max_body`, and so is the copy without the key.
    let (pointer_of_work, live, own) = (pointer.clone(), config.clone(), share.beside());
    let in_head = sender.as_ref().and_then(|_| auth::text_in_head(request.headers()));
    let take = move || {
        let body = source::unwrap(&body, &live.http, &own)?.unwrap_or(body);
        if source::is_wrapped(&body) {
            return Err(source::wrapped_twice());
        }
        without_key(body, &pointer_of_work, in_head.as_deref(), &own)
    };
    let (body, found) = if is_long { on_the_side(request, &config.http, is_large, take).await?? } else { take()? };
    let sender = match sender {
        Some(sender) => sender,
        None => auth::in_body(found.as_deref(), pointer, &config.http.auth.keys, metrics)?,
    };
    Ok((body, Some(sender)))
}

/// The shortest key that is looked for everywhere: what is shorter may be a word.
const SHORTEST: usize = 16;

/// What a key that is made here has behind its prefix: 256 bits in URL-safe base64.
const RANDOM: usize = 43;

/// Where something stands that is made as keys are: it may be another's.
fn keys_made_here(body: &[u8]) -> impl Iterator<Item = Range<usize>> {
    memchr::memmem::find_iter(body, KEY_PREFIX).filter_map(|at| {
        let random = body.get(at + KEY_PREFIX.len()..at + KEY_PREFIX.len() + RANDOM)?;
        let is_keys = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_".contains(byte);
        random.iter().all(is_keys).then_some(at..at + KEY_PREFIX.len() + RANDOM)
    })
}

/// The body with asterisks where the key was, where that of the head is, and where any is that was made here; and the key.
fn without_key(
    body: Bytes,
    pointer: &Pointer,
    in_head: Option<&str>,
    share: &Reservation,
) -> Result<(Bytes, Option<String>), Problem> {
    let text = |place: &Range<usize>| {
        let json =
            std::str::from_utf8(&body[place.clone()]).ok().filter(|json| json.len() > 2 && json.starts_with('"'))?;
        event::unescape(json).ok().map(Cow::into_owned)
    };
    let found = event::locate(&body, pointer).and_then(|place| Some((text(&place)?, place)));
    if found.is_none() && in_head.is_none() {
        return Ok((body, None));
    }
    let mut own = share.another();
    own.grow(body.len())?;
    let mut without = body.to_vec();
    if let Some((_, place)) = &found {
        without[place.start + 1..place.end - 1].fill(b'*');
    }
    let key = found.map(|(key, _)| key);
    for key in key.as_deref().into_iter().chain(in_head).filter(|key| key.len() >= SHORTEST) {
        for at in memchr::memmem::find_iter(&body, key.as_bytes()) {
            without[at..at + key.len()].fill(b'*');
        }
    }
    keys_made_here(&body).for_each(|place| without[place].fill(b'*'));
    Ok((own.hold(without), key))
}

/// Does work that keeps a core busy where nobody waits for it.
async fn on_the_side<T: Send + 'static>(
    request: &HttpRequest,
    config: &HttpConfig,
    is_large: bool,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Problem> {
    let Ok(turn) = tokio::time::timeout(config.request_timeout, Turn::of(is_large)).await else {
        let timeout = humantime::format_duration(config.request_timeout);
        let detail = format!(
            "whose the body is was not looked at within {timeout} (http.request_timeout), beside others: try again"
        );
        return Err(Problem::unavailable(detail));
    };
    aside(turn, work).await.map_err(|error| {
        let request_id = request_id::of(request.headers());
        tracing::error!(request_id, %error, "looking whose a body is failed");
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "whose the body is could not be looked at")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ByteSize;

    fn without(body: &str, pointer: &str) -> (String, Option<String>) {
        let pointer = Pointer::try_from(pointer.to_owned()).unwrap();
        let share = Reservation::new(&InFlight::default(), ByteSize(1 << 20));
        let (body, key) = without_key(Bytes::copy_from_slice(body.as_bytes()), &pointer, None, &share).unwrap();
        (String::from_utf8(body.to_vec()).unwrap(), key)
    }

    #[test]
    fn a_key_is_gone_from_the_body_wherever_it_stood_and_the_body_is_as_long() {
        let key = "ingestd_0123456789";
        let stars = "*".repeat(key.len());
        let body = |key: &str| {
            format!(r#"{{"api_key": "{key}","batch":[{{"event":"a","properties":{{"token":"{key}","x":"y{key}"}}}}]}}"#)
        };
        assert_eq!(without(&body(key), "/api_key"), (body(&stars), Some(key.to_owned())));
        // Where it was escaped it is gone, too.
        let escaped = body("").replacen("\"\"", r#""\u0069ngestd_0123456789""#, 1);
        let (gone, found) = without(&escaped, "/api_key");
        assert!(found.as_deref() == Some(key) && gone.len() == escaped.len() && !gone.contains("0123456789"), "{gone}");
        // So is another's, if it was made here.
        let (first, second) = (format!("ingestd_{}", "a".repeat(43)), format!("ingestd_{}", "-b_".repeat(15)));
        let both = format!(r#"{{"api_key":"{first}","api_key":"{second}","x":"ingestd_short"}}"#);
        let (gone, found) = without(&both, "/api_key");
        assert!(found.is_some() && gone.len() == both.len() && gone.contains("ingestd_short"), "{gone}");
        assert!(!gone.contains("aaa") && !gone.contains("-b_-b_"), "{gone}");
        // A broken body may have one.
        let (gone, found) = without(r#"{"api_key":"short","batch":[{"event":short}]}"#, "/api_key");
        assert_eq!((&*gone, found.as_deref()), (r#"{"api_key":"*****","batch":[{"event":short}]}"#, Some("short")));
        for none in [r#"{"api_key":7}"#, r#"{"api_key":""}"#, r#"{"api_key":null}"#, r#"{"apikey":"x"}"#, "x", "", "[1"]
        {
            assert_eq!(without(none, "/api_key"), (none.to_owned(), None));
        }
    }
}
