//! OpenTelemetry's logs: what `POST /v1/logs` takes and answers, in both encodings of OTLP/HTTP.

use serde_json::{Map, Value, json};

use super::{auth, content_encoding, preferences, rates, with_trace};
use crate::{
    config::Config,
    ingest::otlp::Encoding,
    openapi::{Operation, PROBLEM, array, header, object, problem, reference, retry_after, text},
};

const REQUEST: &str = "ExportLogsServiceRequest";
const RESPONSE: &str = "ExportLogsServiceResponse";
/// Of google.rpc.
const STATUS: &str = "Status";

pub fn post(config: &Config) -> Operation {
    let http = &config.http;
    let too_large = format!(
        "The body is larger than {} bytes (http.max_body), as it came or inflated, has more than {} log records \
         (http.max_events), or these become too much (http.max_in_flight).",
        http.max_body.0, http.max_events
    );
    let status = |description: &str| json!({ "description": description, "content": of_both(&reference(STATUS)) });
    let success = json!({
        "description": "All log records are durable, or `partialSuccess` says how many are not.",
        "content": of_both(&reference(RESPONSE)),
    });
    let mut unsupported = status("A coding that is not taken, or none of the two media types: then it is a problem.");
    unsupported["content"][PROBLEM] = problem("")["content"][PROBLEM].clone();
    // The transport below the routes has words of its own for a body that ends before its time.
    let mut refused = status("No log record is valid, or the body is no request.");
    refused["content"][PROBLEM] = problem("")["content"][PROBLEM].clone();
    let codings = header("The codings that are taken (RFC 9110, 15.5.16).", &text("A list of codings."));
    let operation =
        Operation::new("postLogs", "Stores the logs of OpenTelemetry (OTLP/HTTP): each log record is an event", "")
            .body(true, "An ExportLogsServiceRequest.", of_both(&reference(REQUEST)))
            .parameter(content_encoding())
            .answer(200, success)
            .answer(400, refused)
            .answer(413, status(&too_large))
            .answer(415, unsupported)
            .answer(500, status("A fault of this daemon."))
            .answer(503, status("Nothing was stored, for a reason that passes: send all again, later."))
            .header(503, "Retry-After", &retry_after())
            .header(415, "Accept-Encoding", &codings);
    let secured = auth::secured_with(config, with_trace(operation), status);
    rates::limited_with(config, preferences(secured), status)
}

/// The same in protobuf, whose schema is OpenTelemetry's, and in its JSON.
fn of_both(schema: &Value) -> Map<String, Value> {
    let mut both = Map::new();
    both.insert(Encoding::Protobuf.media_type().to_owned(), json!({ "schema": {} }));
    both.insert(Encoding::Json.media_type().to_owned(), json!({ "schema": schema }));
    both
}

pub fn schemas() -> [(&'static str, Value); 3] {
    let anything = json!({ "type": "object", "additionalProperties": true });
    let mut logs = array(anything);
    // In protobuf's JSON it is as good as absent.
    logs["type"] = json!(["array", "null"]);
    let mut request = object(&[], &[("resourceLogs", logs)]);
    request["description"] = "OTLP/JSON, as OpenTelemetry specifies it.".into();
    request["additionalProperties"] = true.into();
    let partial = object(
        &[],
        &[
            ("rejectedLogRecords", text("How many are not stored: a number, written as a string.")),
            (
                "errorMessage",
                text("Which was the first that is wrong, and why; with handling=lenient, which to send again."),
            ),
        ],
    );
    let code = json!({ "type": "integer", "description": "Of google.rpc.Code." });
    let status = object(&[("code", code), ("message", text("What is wrong, and what to do."))], &[]);
    [(REQUEST, request), (RESPONSE, object(&[], &[("partialSuccess", partial)])), (STATUS, status)]
}
