//! Keys (`http.auth`): how a request says whose it is, where there are any.

use serde_json::{Map, Value, json};

use crate::{
    config::{Config, HttpSource},
    ingest::signature,
    openapi::{
        JSON, KEY_SCHEMES, Operation, PROBLEM, answer, challenge, header, key_schemes, parameter, problem, reference,
        text,
    },
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
    with(config, operation, problem(""), forbidden(), UNREAD)
}

fn forbidden() -> Value {
    answer("The key may send none of these events.", JSON, &reference("Summary"))
}

const UNREAD: &str = "There is no key, or it is wrong, or has expired: nothing of the body was read.";
const READ: &str = "There is no key, neither in the head nor in the body, or it is wrong, or has expired: nothing of the request is stored.";

/// The same of a source's path: who signs needs no key, and a key may stand in the body.
pub fn of_source(config: &Config, source: &HttpSource, operation: Operation) -> Operation {
    if let Some(signature) = &source.signature {
        let mut refused = problem("");
        refused["description"] =
            "There is no signature of this body, or it is malformed, or not of now: nothing of the request is stored."
                .into();
        let challenge = header("That requests here are signed.", &text("A challenge."));
        let operation = operation.answer(401, refused).header(401, "WWW-Authenticate", &challenge);
        let what = format!("Signs the body ({}).", signature.scheme.as_str());
        return signature::headers(signature.scheme).iter().fold(operation, |operation, name| {
            operation.parameter(parameter("header", name, &what, &json!({ "type": "string" })))
        });
    }
    if source.key.is_none() || !is_on(config) {
        return secured(config, operation);
    }
    with(config, operation, problem(""), forbidden(), READ).secured_perhaps()
}

/// The same of one whose refusals are such a status.
pub fn secured_with(config: &Config, operation: Operation, status: impl Fn(&str) -> Value) -> Operation {
    // Where it is not known how the request is written it is a problem.
    let mut refused = status("");
    refused["content"][PROBLEM] = problem("")["content"][PROBLEM].clone();
    with(config, operation, refused, status("The key may send none of these log records."), UNREAD)
}

fn with(config: &Config, operation: Operation, mut refused: Value, forbidden: Value, why: &str) -> Operation {
    if !is_on(config) {
        return operation;
    }
    refused["description"] = why.into();
    operation.secured(&KEY_SCHEMES).answer(401, refused).answer(403, forbidden).header(
        401,
        "WWW-Authenticate",
        &challenge(),
    )
}

#[cfg(test)]
mod tests {
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
        let sources = json!([
            { "path": "/signed", "signature": { "scheme": "standard-webhooks", "secret_file": "s" } },
            { "path": "/keyed", "key": "/api_key" },
        ]);
        config.http.source = serde_json::from_value(sources).unwrap();
        let document = parsed(&config);
        let [signed, keyed] = ["/signed", "/keyed"].map(|path| document["paths"][path]["post"].clone());
        assert!(signed.get("security").is_none() && signed["responses"].get("403").is_none());
        let names: Vec<_> =
            signed["parameters"].as_array().unwrap().iter().filter_map(|it| it["name"].as_str()).collect();
        assert!(
            ["webhook-id", "webhook-timestamp", "webhook-signature"].iter().all(|name| names.contains(name)),
            "{names:?}"
        );
        assert!(signed["responses"]["401"]["headers"].get("WWW-Authenticate").is_some());
        assert_eq!(keyed["security"].as_array().unwrap().last(), Some(&json!({})), "it may be in the body");
        let why = |path: &Value| path["responses"]["401"]["description"].as_str().unwrap().to_owned();
        assert_eq!((why(&keyed), why(&secured["paths"]["/hook"]["post"])), (READ.to_owned(), UNREAD.to_owned()));
        let logs = &secured["paths"]["/v1/logs"]["post"]["responses"]["401"];
        assert_eq!(logs["content"].as_object().unwrap().len(), 3);
        assert!(logs["headers"].get("WWW-Authenticate").is_some());
    }
}
