//! Who sends: the key of a request (`http.auth`), which is looked for in its head, before anything of its body is read.
//!
//! A refusal costs one hash at most, of at most [`LONGEST`] bytes. Answers say what is wrong with what was sent, and never what it was.

use std::sync::Arc;

use actix_web::http::{
    StatusCode,
    header::{AUTHORIZATION, HeaderMap, HeaderName},
};
use base64::{
    Engine as _, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};

use crate::{
    config::{Config, HttpKey, HttpKeys, KeyHash, OnInvalid, Pointer},
    http::{Challenge, Problem},
    metrics::{Metrics, ReasonLabel},
    position::Timestamp,
};

const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// Of a key: those that are made here have 51 bytes. What is longer is none, and is not hashed.
const LONGEST: usize = 1024;

/// As clients write it; some leave out what fills it up.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

const HOW: &str = "send it as Authorization: Bearer KEY, as the password of Authorization: Basic, or as X-Api-Key: KEY";

/// Why a request is not let in.
#[derive(Debug, PartialEq, Eq)]
enum Refusal {
    Missing,
    /// It says so to who has the right key alone.
    Expired {
        name: String,
        expires: String,
    },
    Unknown,
    /// What was sent is no key at all, for this reason.
    Malformed(&'static str),
    /// Which of them is meant, nobody knows.
    Several,
    /// The head has none, and neither has the body, at this place.
    NotInBody(String),
}

impl Refusal {
    /// In the metric.
    fn reason(&self) -> &'static str {
        match self {
            Self::Missing | Self::NotInBody(_) => "missing",
            Self::Expired { .. } => "expired",
            Self::Unknown => "unknown",
            Self::Malformed(_) | Self::Several => "malformed",
        }
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        let (status, challenge) = match refusal {
            // RFC 6750, 3.1: more than one method is an invalid request.
            Refusal::Several => (StatusCode::BAD_REQUEST, None),
            Refusal::Missing | Refusal::NotInBody(_) => (StatusCode::UNAUTHORIZED, Some(Challenge::Key)),
            _ => (StatusCode::UNAUTHORIZED, Some(Challenge::AnotherKey)),
        };
        let detail = match refusal {
            Refusal::Missing => format!("this needs a key: {HOW}"),
            Refusal::NotInBody(pointer) => {
                format!("this needs a key, and there is no string at {pointer:?} of the body: send it there, or {HOW}")
            }
            Refusal::Expired { name, expires } => {
                format!("the key {name:?} expired at {expires}: ask for a new one where you have it from")
            }
            Refusal::Unknown => {
                "the key is none of http.auth.keys: send it whole and as it was given to you; if it was \
                                 withdrawn, ask for a new one where you have it from"
                    .to_owned()
            }
            Refusal::Malformed(what) => format!("{what}: {HOW}"),
            Refusal::Several => {
                "this request has different keys in Authorization and X-Api-Key, or several in one of them: send one"
                    .to_owned()
            }
        };
        Self { challenge, ..Self::new(status, detail) }
    }
}

/// The key of a request; `None` where there are none to have. A refusal is counted.
///
/// # Errors
/// 401 for no key, a wrong one and one that has expired, 400 for several.
pub fn check(headers: &HeaderMap, keys: &HttpKeys, metrics: &Metrics) -> Result<Option<Arc<HttpKey>>, Problem> {
    if keys.is_empty() {
        return Ok(None);
    }
    find(headers, keys, Timestamp::now(), Users::Ignored).map(Some).map_err(|refusal| refused(refusal, metrics))
}

/// The same of a request whose body may have its key: without one in its head that is for [`in_body`] to say. A user without a
/// password is a key there (Segment's libraries).
///
/// # Errors
/// 401 for a wrong one and one that has expired, 400 for several.
pub fn in_head(headers: &HeaderMap, keys: &HttpKeys, metrics: &Metrics) -> Result<Option<Arc<HttpKey>>, Problem> {
    if keys.is_empty() {
        return Ok(None);
    }
    match find(headers, keys, Timestamp::now(), Users::AreKeys) {
        Ok(key) => Ok(Some(key)),
        Err(Refusal::Missing) => Ok(None),
        Err(refusal) => Err(refused(refusal, metrics)),
    }
}

/// What [`in_head`] has found to be the key, as text.
pub fn text_in_head(headers: &HeaderMap) -> Option<String> {
    sent(headers, Users::AreKeys).ok().and_then(|key| String::from_utf8(key).ok())
}

/// The key of a request whose head has none, and whose body has this one at that place.
///
/// # Errors
/// 401 for no key, a wrong one and one that has expired.
pub fn in_body(
    sent: Option<&str>,
    pointer: &Pointer,
    keys: &HttpKeys,
    metrics: &Metrics,
) -> Result<Arc<HttpKey>, Problem> {
    let sent = sent.ok_or_else(|| Refusal::NotInBody(pointer.to_string()));
    sent.and_then(|sent| known(sent.as_bytes(), keys, Timestamp::now())).map_err(|refusal| refused(refusal, metrics))
}

fn refused(refusal: Refusal, metrics: &Metrics) -> Problem {
    metrics.auth_refusals.get_or_create(&ReasonLabel { reason: refusal.reason() }).inc();
    refusal.into()
}

/// What the user of `Basic` is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Users {
    Ignored,
    /// Where the password is empty.
    AreKeys,
}

/// What becomes of wrong events that come with this key.
pub fn on_invalid(key: Option<&HttpKey>, config: &Config) -> OnInvalid {
    key.and_then(|key| key.on_invalid).unwrap_or(config.event.on_invalid)
}

fn find(headers: &HeaderMap, keys: &HttpKeys, now: Timestamp, users: Users) -> Result<Arc<HttpKey>, Refusal> {
    known(&sent(headers, users)?, keys, now)
}

fn known(sent: &[u8], keys: &HttpKeys, now: Timestamp) -> Result<Arc<HttpKey>, Refusal> {
    let known = (sent.len() <= LONGEST).then(|| keys.find(KeyHash::of(sent))).flatten();
    let key = known.ok_or(Refusal::Unknown)?;
    match key.expired(now) {
        None => Ok(key.clone()),
        Some(expires) => Err(Refusal::Expired { name: key.name.clone(), expires: expires.to_string() }),
    }
}

/// The one key that a request was sent with, wherever it stands.
fn sent(headers: &HeaderMap, users: Users) -> Result<Vec<u8>, Refusal> {
    let authorization = headers.get_all(AUTHORIZATION).map(|given| of_authorization(given.as_bytes(), users));
    let named = headers.get_all(X_API_KEY).map(|given| Ok(given.as_bytes().trim_ascii().to_vec()));
    let mut keys = authorization.chain(named);
    let key = keys.next().ok_or(Refusal::Missing)??;
    // Who sends one key in two places means it.
    for other in keys {
        if other? != key {
            return Err(Refusal::Several);
        }
    }
    if key.is_empty() { Err(Refusal::Malformed("the key is empty")) } else { Ok(key) }
}

fn of_authorization(given: &[u8], users: Users) -> Result<Vec<u8>, Refusal> {
    let given = given.trim_ascii();
    let (scheme, rest) = given.split_at(given.iter().position(|byte| *byte == b' ').unwrap_or(given.len()));
    let rest = rest.trim_ascii();
    if scheme.eq_ignore_ascii_case(b"bearer") {
        return Ok(rest.to_vec());
    }
    if !scheme.eq_ignore_ascii_case(b"basic") {
        return Err(Refusal::Malformed("Authorization has neither the scheme Bearer nor Basic"));
    }
    let decoded = BASE64.decode(rest).map_err(|_| Refusal::Malformed("what follows Basic is no base64"))?;
    let colon = decoded.iter().position(|byte| *byte == b':');
    let colon = colon.ok_or(Refusal::Malformed("what follows Basic is no USER:PASSWORD in base64"))?;
    let (user, password) = (&decoded[..colon], &decoded[colon + 1..]);
    Ok(if password.is_empty() && users == Users::AreKeys { user } else { password }.to_vec())
}

#[cfg(test)]
mod tests {
    use actix_web::http::header::HeaderValue;

    use super::*;

    const KEY: &str = "ingestd_correct-horse";

    fn keys() -> HttpKeys {
        let hash = |key: &str| KeyHash::of(key.as_bytes()).to_string();
        let old = serde_json::json!({ "name": "old", "hash": hash("ingestd_old"), "expires": "2026-01-01T00:00:00Z" });
        serde_json::from_value(serde_json::json!([{ "name": "shop", "hash": hash(KEY) }, old])).unwrap()
    }

    fn found(fields: &[(&str, &[u8])]) -> Result<String, Refusal> {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(HeaderName::try_from(*name).unwrap(), HeaderValue::from_bytes(value).unwrap());
        }
        find(&headers, &keys(), Timestamp(1_795_420_800_000), Users::Ignored).map(|key| key.name.clone())
    }

    fn basic(text: &str) -> Vec<u8> {
        format!("Basic {}", BASE64.encode(text)).into_bytes()
    }

    #[test]
    fn a_key_is_found_in_each_of_its_three_places() {
        let bearer = format!("Bearer {KEY}");
        for fields in [
            &[("authorization", bearer.as_bytes())][..],
            &[("authorization", format!("bEARER   {KEY} ").as_bytes())],
            &[("authorization", &basic(&format!("anybody:{KEY}")))],
            &[("authorization", &basic(&format!(":{KEY}")))],
            &[(
                "authorization",
                String::from_utf8(basic(&format!("ab:{KEY}"))).unwrap().trim_end_matches('=').as_bytes(),
            )],
            &[("x-api-key", KEY.as_bytes())],
            &[("x-api-key", KEY.as_bytes()), ("authorization", bearer.as_bytes())],
            &[("authorization", bearer.as_bytes()), ("authorization", bearer.as_bytes())],
        ] {
            assert_eq!(found(fields), Ok("shop".to_owned()), "{fields:?}");
        }
    }

    #[test]
    fn what_is_no_key_is_told_apart() {
        let malformed = |what| Err(Refusal::Malformed(what));
        let (empty, no_base64) = ("the key is empty", "what follows Basic is no base64");
        let scheme = "Authorization has neither the scheme Bearer nor Basic";
        let long = "x".repeat(LONGEST + 1);
        let bearer = format!("Bearer {KEY}");
        for (fields, expected) in [
            (&[][..], Err(Refusal::Missing)),
            (&[("x-api-key", &b"ingestd_correct-horsf"[..])], Err(Refusal::Unknown)),
            (&[("x-api-key", &KEY.as_bytes()[..20])], Err(Refusal::Unknown)),
            (&[("x-api-key", b"\xff\xfe")], Err(Refusal::Unknown)),
            (&[("x-api-key", long.as_bytes())], Err(Refusal::Unknown)),
            (&[("authorization", format!("Bearer {}", KeyHash::of(KEY.as_bytes())).as_bytes())], Err(Refusal::Unknown)),
            (&[("authorization", &basic(&format!("{KEY}:wrong")))], Err(Refusal::Unknown)),
            (&[("x-api-key", b"")], malformed(empty)),
            (&[("authorization", b"Bearer")], malformed(empty)),
            (&[("authorization", b"Bearer  ")], malformed(empty)),
            (&[("authorization", &basic(&format!("{KEY}:")))], malformed(empty)),
            (&[("authorization", b"")], malformed(scheme)),
            (&[("authorization", KEY.as_bytes())], malformed(scheme)),
            (&[("authorization", format!("Token {KEY}").as_bytes())], malformed(scheme)),
            (&[("authorization", b"Basic ***")], malformed(no_base64)),
            (&[("authorization", &basic(KEY))], malformed("what follows Basic is no USER:PASSWORD in base64")),
            (&[("x-api-key", KEY.as_bytes()), ("x-api-key", b"other")], Err(Refusal::Several)),
            (&[("authorization", bearer.as_bytes()), ("x-api-key", b"other")], Err(Refusal::Several)),
            (
                &[("x-api-key", b"ingestd_old")],
                Err(Refusal::Expired { name: "old".to_owned(), expires: "2026-01-01T00:00:00Z".to_owned() }),
            ),
        ] {
            assert_eq!(found(fields), expected, "{fields:?}");
        }
    }

    #[test]
    fn a_refusal_is_counted_by_its_reason_and_without_keys_nobody_is_asked() {
        let (metrics, headers) = (Metrics::default(), HeaderMap::new());
        assert_eq!(check(&headers, &HttpKeys::default(), &metrics).unwrap(), None);
        assert!(!metrics.encode().contains("ingestd_auth_refusals_total{"));
        let problem = check(&headers, &keys(), &metrics).unwrap_err();
        assert_eq!((problem.status, problem.challenge), (StatusCode::UNAUTHORIZED, Some(Challenge::Key)));
        assert!(metrics.encode().contains("ingestd_auth_refusals_total{reason=\"missing\"} 1"));
        for (refusal, reason, status) in [
            (Refusal::Unknown, "unknown", 401),
            (Refusal::Malformed("x"), "malformed", 401),
            (Refusal::Several, "malformed", 400),
            (Refusal::Expired { name: String::new(), expires: String::new() }, "expired", 401),
        ] {
            assert_eq!(refusal.reason(), reason);
            let problem = Problem::from(refusal);
            assert_eq!((problem.status.as_u16(), problem.challenge.is_some()), (status, status == 401));
        }
    }
}
