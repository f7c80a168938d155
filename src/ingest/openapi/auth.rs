//! Keys (`http.auth`): how a request says whose it is, where there are any.

use serde_json::{Map, Value};

use crate::{
    config::Config,
    openapi::{JSON, KEY_SCHEMES, Operation, PROBLEM, answer, challenge, key_schemes, problem, reference},
};

fn is_on(config: &Config) -> bool {
    !config.http.auth.keys.is_empty()
}

/// Where a key may stand; nothing without keys.
pub fn schemes(config: &Config) -> Map<String, Value> {
    if is_on(config) { key_schemes() } else { Map::new() }
}

/// An operation that needs a key, where there are any.
pub fn secured(config: &Config, operation: Operation) -> Operation {
    let forbidden = answer("The key may send none of these events.", JSON, &reference("Summary"));
    with(config, operation, problem(""), forbidden)
}

/// The same of one whose refusals are such a status.
pub fn secured_with(config: &Config, operation: Operation, status: impl Fn(&str) -> Value) -> Operation {
    // Where it is not known how the request is written it is a problem.
    let mut refused = status("");
    refused["content"][PROBLEM] = problem("")["content"][PROBLEM].clone();
    with(config, operation, refused, status("The key may send none of these log records."))
}

fn with(config: &Config, operation: Operation, mut refused: Value, forbidden: Value) -> Operation {
    if !is_on(config) {
        return operation;
    }
    refused["description"] = "There is no key, or it is wrong, or has expired: nothing of the body was read.".into();
    operation.secured(&KEY_SCHEMES).answer(401, refused).answer(403, forbidden).header(
        401,
        "WWW-Authenticate",
        &challenge(),
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{config::KeyHash, ingest::openapi::document};

    #[test]
    fn what_needs_a_key_says_so_where_there_are_keys() {
        let mut config = Config::default();
        config.http.source = serde_json::from_value(json!([{ "path": "/hook" }])).unwrap();
        let parsed = |config: &Config| serde_json::from_slice::<Value>(&document(config)).unwrap();
        let open = parsed(&config);
        assert!(open["components"].get("securitySchemes").is_none());
        let keys = json!([{ "name": "a", "hash": KeyHash::of(b"a").to_string() }]);
        config.http.auth.keys = serde_json::from_value(keys).unwrap();
        let secured = parsed(&config);
        let schemes = secured["components"]["securitySchemes"].as_object().unwrap();
        assert_eq!(schemes.keys().collect::<Vec<_>>(), ["apiKey", "basic", "bearer"]);
        for path in ["/v1/events", "/v1/logs", "/hook", "/health", "/openapi.json"] {
            for (document, keys) in [(&open, false), (&secured, true)] {
                let method = if path.starts_with("/health") || path.starts_with("/open") { "get" } else { "post" };
                let needs = keys && method == "post";
                let operation = &document["paths"][path][method];
                assert_eq!(operation.get("security").is_some(), needs, "{path}");
                let names = operation["security"].as_array().into_iter().flatten();
                assert!(names.flat_map(|of| of.as_object().unwrap().keys()).all(|name| schemes.contains_key(name)));
                for status in ["401", "403"] {
                    assert_eq!(operation["responses"].get(status).is_some(), needs, "{path} {status}");
                }
            }
        }
        let logs = &secured["paths"]["/v1/logs"]["post"]["responses"]["401"];
        assert_eq!(logs["content"].as_object().unwrap().len(), 3);
        assert!(logs["headers"].get("WWW-Authenticate").is_some());
    }
}
