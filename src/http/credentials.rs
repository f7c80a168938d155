//! Whose key a request has: where it may stand in a head, and what is wrong with one that is not taken.
//!
//! A refusal costs one hash at most, of at most [`LONGEST`] bytes. Answers say what is wrong with what was sent, and never what it was.

use actix_web::http::{
    StatusCode,
    header::{AUTHORIZATION, HeaderMap, HeaderName},
};
use base64::{
    Engine as _, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};

use super::{Challenge, Problem};
use crate::{
    config::{Credential, KeyHash},
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
pub enum Refusal {
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
    /// In metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Missing | Self::NotInBody(_) => "missing",
            Self::Expired { .. } => "expired",
            Self::Unknown => "unknown",
            Self::Malformed(_) | Self::Several => "malformed",
        }
    }

    /// The answer; `keys` is where the configuration has them.
    pub fn problem(self, keys: &str) -> Problem {
        let (status, challenge) = match self {
            // RFC 6750, 3.1: more than one method is an invalid request.
            Self::Several => (StatusCode::BAD_REQUEST, None),
            Self::Missing | Self::NotInBody(_) => (StatusCode::UNAUTHORIZED, Some(Challenge::Key)),
            _ => (StatusCode::UNAUTHORIZED, Some(Challenge::AnotherKey)),
        };
        let detail = match self {
            Self::Missing => format!("this needs a key: {HOW}"),
            Self::NotInBody(pointer) => {
                format!("this needs a key, and there is no string at {pointer:?} of the body: send it there, or {HOW}")
            }
            Self::Expired { name, expires } => {
                format!("the key {name:?} expired at {expires}: ask for a new one where you have it from")
            }
            Self::Unknown => format!(
                "the key is none of {keys}: send it whole and as it was given to you; if it was withdrawn, ask for a new one \
                 where you have it from"
            ),
            Self::Malformed(what) => format!("{what}: {HOW}"),
            Self::Several => {
                "this request has different keys in Authorization and X-Api-Key, or several in one of them: send one"
                    .to_owned()
            }
        };
        Problem { challenge, ..Problem::new(status, detail) }
    }
}

/// What the user of `Basic` is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Users {
    Ignored,
    /// Where the password is empty (Segment's libraries).
    AreKeys,
}

/// The key of a request, as it is `known` by its hash.
///
/// # Errors
/// Why none is.
pub fn in_head<K: Credential>(
    headers: &HeaderMap,
    users: Users,
    now: Timestamp,
    known: impl FnOnce(KeyHash) -> Option<K>,
) -> Result<K, Refusal> {
    of_text(&sent(headers, users)?, now, known)
}

/// The key that this is the text of.
///
/// # Errors
/// It is none, or has expired.
pub fn of_text<K: Credential>(
    sent: &[u8],
    now: Timestamp,
    known: impl FnOnce(KeyHash) -> Option<K>,
) -> Result<K, Refusal> {
    let key = if sent.len() <= LONGEST { known(KeyHash::of(sent)) } else { None };
    let key = key.ok_or(Refusal::Unknown)?;
    match key.expires().filter(|expires| expires.at <= now) {
        None => Ok(key),
        Some(expires) => Err(Refusal::Expired { name: key.name().to_owned(), expires: expires.to_string() }),
    }
}

/// The one key that a request was sent with, wherever it stands.
///
/// # Errors
/// There is none, or none that is one.
pub fn sent(headers: &HeaderMap, users: Users) -> Result<Vec<u8>, Refusal> {
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
    use crate::config::HttpKeys;

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
        let keys = keys();
        let known = |hash| keys.find(hash).cloned();
        in_head(&headers, Users::Ignored, Timestamp(1_795_420_800_000), known).map(|key| key.name.clone())
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
}
