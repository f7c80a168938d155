//! Rates (`http.rate`, and `rate` of a key): what answers say of them, where there are any.

use serde_json::{Value, json};

use crate::{
    config::Config,
    ingest::rates,
    openapi::{Operation, PROBLEM, header, problem, retry_after},
};

/// An operation whose events are counted.
pub fn limited(config: &Config, operation: Operation) -> Operation {
    limited_with(config, operation, problem)
}

/// The same of one whose refusals are such a status.
pub fn limited_with(config: &Config, operation: Operation, status: impl Fn(&str) -> Value) -> Operation {
    if !rates::are_on(&config.http) {
        return operation;
    }
    let mut refused = status(
        "The rate of the key, or of the address, is used up (http.rate, rate in http.auth.keys): nothing was stored, send all again \
         after Retry-After.",
    );
    // Where it is not known how the request is written it is a problem.
    refused["content"][PROBLEM] = problem("")["content"][PROBLEM].clone();
    let field = |description| header(description, &json!({ "type": "string" }));
    operation
        .answer(429, refused)
        .header(429, "Retry-After", &retry_after())
        .header_of_all(
            "RateLimit-Policy",
            &field("Whose rate holds: q events at once, which come back within w seconds."),
        )
        .header_of_all("RateLimit", &field("r events may come now; in t seconds all of q, or those that were refused."))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ingest::openapi::document;

    #[test]
    fn where_there_is_a_rate_what_brings_events_may_be_answered_429() {
        let mut config = Config::default();
        config.http.source = serde_json::from_value(json!([{ "path": "/hook" }])).unwrap();
        let answers = |config: &Config, path: &str| {
            let document: Value = serde_json::from_slice(&document(config)).unwrap();
            let (method, operation) = document["paths"][path].as_object().unwrap().iter().next().unwrap();
            (method == "post", operation["responses"].clone())
        };
        for path in ["/v1/events", "/v1/logs", "/hook"] {
            assert!(answers(&config, path).1.get("429").is_none());
        }
        config.http.rate = serde_json::from_value(json!("1/s")).unwrap();
        for path in ["/v1/events", "/v1/logs", "/hook", "/health", "/openapi.json"] {
            let (has_events, answers) = answers(&config, path);
            assert_eq!(answers["429"]["headers"].get("Retry-After").is_some(), has_events, "{path}");
            let says = |answer: &Value| answer["headers"].get("RateLimit").is_some();
            assert!(answers.as_object().unwrap().values().all(|answer| says(answer) == has_events), "{path}");
        }
    }
}
