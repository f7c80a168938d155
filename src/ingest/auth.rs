//! Who sends: the key of a request (`http.auth`), which is looked for in its head, before anything of its body is read.

use std::sync::Arc;

use actix_web::http::header::HeaderMap;

use crate::{
    config::{Config, HttpKey, HttpKeys, OnInvalid},
    http::{Problem, credentials},
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
    let known = |hash| keys.find(hash).cloned();
    credentials::identify(headers, Timestamp::now(), known).map(Some).map_err(|refusal| {
        metrics.auth_refusals.get_or_create(&ReasonLabel { reason: refusal.reason() }).inc();
        refusal.problem("http.auth.keys")
    })
}

/// What becomes of wrong events that come with this key.
pub fn on_invalid(key: Option<&HttpKey>, config: &Config) -> OnInvalid {
    key.and_then(|key| key.on_invalid).unwrap_or(config.event.on_invalid)
}

#[cfg(test)]
mod tests {
    use actix_web::http::StatusCode;
    use serde_json::json;

    use super::*;
    use crate::{
        config::KeyHash,
        http::{Challenge, credentials::Refusal},
    };

    #[test]
    fn a_refusal_is_counted_by_its_reason_and_without_keys_nobody_is_asked() {
        let (metrics, headers) = (Metrics::default(), HeaderMap::new());
        let keys = json!([{ "name": "shop", "hash": KeyHash::of(b"a").to_string() }]);
        let keys: HttpKeys = serde_json::from_value(keys).unwrap();
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
}
