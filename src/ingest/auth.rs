//! Who sends: the key of a request (`http.auth`), which is looked for in its head, before anything of its body is read.

use std::sync::Arc;

use actix_web::http::header::HeaderMap;

use crate::{
    config::{Config, HttpKey, HttpKeys, OnInvalid, Pointer},
    http::{
        Problem,
        credentials::{self, Refusal, Users},
    },
    metrics::{Metrics, ReasonLabel},
    position::Timestamp,
};

/// The key of a request; `None` where there are none to have. A refusal is counted.
///
/// # Errors
/// 401 for no key, a wrong one and one that has expired, 400 for several.
pub fn check(headers: &HeaderMap, keys: &HttpKeys, metrics: &Metrics) -> Result<Option<Arc<HttpKey>>, Problem> {
    if keys.is_empty() {
        return Ok(None);
    }
    find(headers, keys, Users::Ignored).map(Some).map_err(|refusal| refused(refusal, metrics))
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
    match find(headers, keys, Users::AreKeys) {
        Ok(key) => Ok(Some(key)),
        Err(Refusal::Missing) => Ok(None),
        Err(refusal) => Err(refused(refusal, metrics)),
    }
}

/// What [`in_head`] has found to be the key, as text.
pub fn text_in_head(headers: &HeaderMap) -> Option<String> {
    credentials::sent(headers, Users::AreKeys).ok().and_then(|key| String::from_utf8(key).ok())
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
    let known = |hash| keys.find(hash).cloned();
    let key = sent.and_then(|sent| credentials::of_text(sent.as_bytes(), Timestamp::now(), known));
    key.map_err(|refusal| refused(refusal, metrics))
}

fn find(headers: &HeaderMap, keys: &HttpKeys, users: Users) -> Result<Arc<HttpKey>, Refusal> {
    credentials::in_head(headers, users, Timestamp::now(), |hash| keys.find(hash).cloned())
}

fn refused(refusal: Refusal, metrics: &Metrics) -> Problem {
    metrics.auth_refusals.get_or_create(&ReasonLabel { reason: refusal.reason() }).inc();
    refusal.problem("http.auth.keys")
}

/// What becomes of wrong events that come with this key.
pub fn on_invalid(key: Option<&HttpKey>, config: &Config) -> OnInvalid {
    key.and_then(|key| key.on_invalid).unwrap_or(config.event.on_invalid)
}

#[cfg(test)]
mod tests {
    use actix_web::http::{
        StatusCode,
        header::{AUTHORIZATION, HeaderValue},
    };
    use serde_json::json;

    use super::*;
    use crate::{config::KeyHash, http::Challenge};

    fn keys() -> HttpKeys {
        let key = |name: &str, key: &str| json!({ "name": name, "hash": KeyHash::of(key.as_bytes()).to_string() });
        serde_json::from_value(json!([key("shop", "ingestd_a"), key("till", "ingestd_b")])).unwrap()
    }

    #[test]
    fn a_refusal_is_counted_by_its_reason_and_without_keys_nobody_is_asked() {
        let (metrics, headers) = (Metrics::default(), HeaderMap::new());
        let keys = keys();
        assert_eq!(check(&headers, &HttpKeys::default(), &metrics).unwrap(), None);
        assert!(!metrics.encode().contains("ingestd_auth_refusals_total{"));
        let problem = check(&headers, &keys, &metrics).unwrap_err();
        assert_eq!((problem.status, problem.challenge), (StatusCode::UNAUTHORIZED, Some(Challenge::Key)));
        assert!(metrics.encode().contains("ingestd_auth_refusals_total{reason=\"missing\"} 1"));
        for (refusal, reason, status) in [
            (Refusal::Unknown, "unknown", 401),
            (Refusal::Malformed("x"), "malformed", 401),
            (Refusal::Several, "malformed", 400),
            (Refusal::Expired { name: String::new(), expires: String::new() }, "expired", 401),
        ] {
            assert_eq!(refusal.reason(), reason);
            let problem = refusal.problem("http.auth.keys");
            assert_eq!((problem.status.as_u16(), problem.challenge.is_some()), (status, status == 401));
        }
    }

    #[test]
    fn a_key_may_be_the_user_of_basic_or_stand_in_the_body_where_that_is_said() {
        let (metrics, keys) = (Metrics::default(), keys());
        let head = |field: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(AUTHORIZATION, HeaderValue::from_static(field));
            headers
        };
        let name = |found: Option<Arc<HttpKey>>| found.map(|key| key.name.clone());
        // ingestd_a: as a user, as a password, and both.
        for (field, at_source, elsewhere) in [
            ("Basic aW5nZXN0ZF9hOg==", Ok(Some("shop")), Err(401)),
            ("Basic OmluZ2VzdGRfYQ==", Ok(Some("shop")), Ok(Some("shop"))),
            ("Basic eDppbmdlc3RkX2I=", Ok(Some("till")), Ok(Some("till"))),
            ("Bearer wrong", Err(401), Err(401)),
        ] {
            for (found, expected) in
                [(in_head(&head(field), &keys, &metrics), at_source), (check(&head(field), &keys, &metrics), elsewhere)]
            {
                let found = found.map(name).map_err(|problem| problem.status.as_u16());
                assert_eq!(found, expected.map(|name| name.map(str::to_owned)), "{field}");
            }
        }
        assert_eq!(in_head(&HeaderMap::new(), &keys, &metrics).map(name).unwrap(), None, "the body may have one");
        let pointer = Pointer::try_from("/api_key".to_owned()).unwrap();
        assert_eq!(in_body(Some("ingestd_b"), &pointer, &keys, &metrics).unwrap().name, "till");
        let problem = in_body(None, &pointer, &keys, &metrics).unwrap_err();
        assert!(problem.detail.contains("there is no string at \"/api_key\" of the body"), "{problem}");
        assert_eq!(in_body(Some("ingestd_c"), &pointer, &keys, &metrics).unwrap_err().status, StatusCode::UNAUTHORIZED);
    }
}
