//! Logs of OpenTelemetry, whose codes are those of google.rpc, as exporters read them.

use serde_json::json;

use super::requests::{
    Door::{self, Narrow, Open},
    JSON, Wrong, post,
};

pub fn rows() -> Vec<Wrong> {
    const MEDIA_TYPE: &str = "Content-Type of logs must be application/x-protobuf or application/json, in UTF-8: set \
                              OTEL_EXPORTER_OTLP_PROTOCOL to http/protobuf";
    let json = |door: Door, body: &str, status: u16, sentence: &str| {
        post(door, "/v1/logs", JSON, body, (status, "3", sentence))
    };
    let of = |records: &str| format!(r#"{{"resourceLogs":[{{"scopeLogs":[{{"logRecords":[{records}]}}]}}]}}"#);
    let no_request =
        |rule: &str| format!("the body is no ExportLogsServiceRequest in OTLP/JSON, nothing was accepted: {rule}");
    let record = |record: &str, rule: &str| {
        let sentence = format!(
            "no log record was accepted: log record 0: invalid_json: its log record is no valid OTLP/JSON: {rule} at line 1 column {{}}"
        );
        json(Open, &of(record), 400, &sentence)
    };
    let body_of = |value: &str| format!(r#"{{"body":{{{value}}}}}"#);
    let too_large = |door: Door, body: &str, rule: &str| {
        json(door, body, 400, &format!("no log record was accepted: log record 0: too_large: {rule}"))
    };
    let of_resource = |bytes: usize, records: &str| {
        let resource = json!({ "attributes": [{ "key": "x", "value": { "stringValue": "x".repeat(bytes) } }] });
        format!(r#"{{"resourceLogs":[{{"resource":{resource},"scopeLogs":[{{"logRecords":[{records}]}}]}}]}}"#)
    };
    let protobuf = |body: &[u8], sentence: &str| {
        post(Open, "/v1/logs", "Content-Type: application/x-protobuf\r\n", body, (400, "3", sentence))
    };
    let text = |bytes: usize| format!(r#"{{"severityText":"{}"}}"#, "x".repeat(bytes));
    vec![
        json(Open, "{", 400, &no_request("EOF while parsing an object at line 1 column 1")),
        json(
            Open,
            r#"{"resourceLogs":7}"#,
            400,
            &no_request("invalid type: integer `7`, expected an array at line 1 column 1"),
        ),
        json(
            Open,
            r#"{"resourceLogs":"x"}"#,
            400,
            &no_request("an array was expected, and this is a string at line 1 column {}"),
        ),
        json(
            Open,
            &of(&["{}"; 10].join(",")),
            413,
            "more than 9 events in one request (http.max_events): send them in smaller requests",
        ),
        json(
            Open,
            &of(r#"{"timeUnixNano":"soon"},{"traceId":"x"}"#),
            400,
            "no log record was accepted: log record 0: invalid_json: its log record is no valid OTLP/JSON: an integer in its range \
             was expected, or a string with one at line 1 column 22; and 1 more",
        ),
        record(
            r#"{"timeUnixNano":[]}"#,
            "invalid type: sequence, expected an integer in its range, or a string with one",
        ),
        record(r#"{"traceId":"x"}"#, "an id in hexadecimal was expected"),
        record(r#""x""#, "an object was expected, and this is a string"),
        record(r#"{"attributes":"x"}"#, "an array was expected, and this is a string"),
        record(&body_of(r#""boolValue":"x""#), "a boolean was expected, and this is a string"),
        record(&body_of(r#""doubleValue":"x""#), "a number was expected, \"NaN\", \"Infinity\" or \"-Infinity\""),
        record(
            &body_of(r#""doubleValue":[]"#),
            "invalid type: sequence, expected a number, \"NaN\", \"Infinity\" or \"-Infinity\"",
        ),
        record(&body_of(r#""bytesValue":"*""#), "bytes in base64 were expected"),
        too_large(
            Open,
            &of(&text(65_536)),
            "{} bytes of application/json are more than an event may have: 64KiB (http.max_event); it was not decoded",
        ),
        too_large(
            Open,
            &of_resource(40_000, &text(40_000)),
            "{} bytes with its resource and scope are more than an event may have: 64KiB (http.max_event)",
        ),
        too_large(
            Narrow,
            &of(&format!(r#"{{"attributes":[{}]}}"#, vec!["{}"; 1000].join(","))),
            "it takes {} bytes to decode, which is more than half of http.max_in_flight: send less in one",
        ),
        json(
            Narrow,
            &of_resource(3_000, &["{}"; 60].join(",")),
            413,
            "what the events of this request become, each with what it shares with others, is more than http.max_in_flight: send them \
             in smaller requests",
        ),
        json(
            Open,
            &of(&"x".repeat(131_072)),
            413,
            "the body is larger than 131072 bytes (http.max_body): send it in smaller requests",
        ),
        protobuf(b"\x0a\xff", "the body is no ExportLogsServiceRequest in protobuf, nothing was accepted: {}"),
        // A record of one byte, in its scope, in its resource.
        protobuf(
            &[0x0a, 5, 0x12, 3, 0x12, 1, 0x08],
            "no log record was accepted: log record 0: invalid_protobuf: its log record is no valid protobuf: {}",
        ),
        post(Open, "/v1/logs", "Content-Type: application/grpc\r\n", "", (415, "", MEDIA_TYPE)),
        post(Open, "/v1/logs", "Content-Type: application/json; charset=utf-16\r\n", "", (415, "", MEDIA_TYPE)),
        post(
            Open,
            "/v1/logs",
            &format!("{JSON}Content-Encoding: compress\r\n"),
            "{}",
            (415, "3", "this Content-Encoding is not taken: send the body with gzip, zstd, deflate, br, or as it is"),
        ),
    ]
}
