//! Bodies of other shapes than ours that are hostile: at a source, and as OpenTelemetry's logs.

use std::io::Write as _;

use super::table::{Case, MARK};

/// What the daemon under test has as a source.
pub const SOURCE: &str = r#"[{ path = "/hook", records = "/batch", type = "/type" }]"#;
const MIB: usize = 1 << 20;

fn post(path: &str, content_type: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

/// A field of protobuf that holds a message, or bytes.
fn field(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut field = vec![tag << 3 | 2];
    let mut length = content.len();
    while length >= 0x80 {
        field.push(length as u8 | 0x80);
        length >>= 7;
    }
    field.push(length as u8);
    field.extend_from_slice(content);
    field
}

/// A request of one resource and one scope, with these fields of both.
fn logs(resource: &[u8], records: &[u8]) -> Vec<u8> {
    field(1, &[field(1, resource), field(2, records)].concat())
}

/// An attribute, of a resource or a record.
fn attribute(value: &[u8]) -> Vec<u8> {
    [field(1, MARK.as_bytes()), field(2, &field(1, value))].concat()
}

fn nested(levels: usize) -> Vec<u8> {
    (0..levels).fold(field(1, b"x"), |value, _| field(5, &field(1, &value)))
}

fn gzip(body: &[u8]) -> Vec<u8> {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(body).expect("a Vec takes all");
    gzip.finish().expect("a Vec takes all")
}

pub fn cases() -> Vec<Case> {
    let case = |name, gets, sent| Case { name, gets, sent, stored: Vec::new() };
    let protobuf = |body: &[u8]| post("/v1/logs", "application/x-protobuf", body);
    let json = |body: &str| post("/v1/logs", "application/json", body.as_bytes());
    let (open, close) = (r#"{"arrayValue":{"values":["#.repeat(10_000), "]}}".repeat(10_000));
    let deep = format!(r#"{{"resourceLogs":[{{"scopeLogs":[{{"logRecords":[{{"body":{open}{{}}{close}}}]}}]}}]}}"#);
    let empty = format!(r#"{{"attributes":[{}]}}"#, vec!["{}"; 60_000].join(","));
    let nulls = format!(r#"{{"":[{}]}}"#, vec!["null"; 60_000].join(","));
    vec![
        case("16 MiB of empty log records", "413", protobuf(&logs(b"", &b"\x12\x00".repeat(8 * MIB - 100)))),
        case("16 MiB of empty resources", "200", protobuf(&b"\x0a\x00".repeat(8 * MIB - 100))),
        case(
            "a log record of 400,000 empty attributes",
            "400",
            protobuf(&logs(b"", &field(2, &b"\x32\x00".repeat(400_000)))),
        ),
        case("a log record of 10,000 levels", "400", protobuf(&logs(b"", &field(2, &field(5, &nested(10_000)))))),
        case("a log record of 10,000 levels in JSON", "400", json(&deep)),
        case(
            "10,000 log records beside a resource of 512 KiB",
            "413",
            protobuf(&logs(&field(1, &attribute(&vec![b'x'; MIB / 2])), &b"\x12\x00".repeat(10_000))),
        ),
        case(
            "1,000 log records beside a resource of 8 MiB",
            "400",
            protobuf(&logs(&field(1, &attribute(&vec![b'x'; 8 * MIB])), &b"\x12\x00".repeat(1_000))),
        ),
        case(
            "1,500 log records beside attributes that are a string of 200 KB",
            "400",
            json(&format!(
                r#"{{"resourceLogs":[{{"resource":{{"attributes":"{}"}},"scopeLogs":[{{"logRecords":[{}]}}]}}]}}"#,
                MARK.repeat(200_000 / MARK.len()),
                vec!["{}"; 1_500].join(",")
            )),
        ),
        case(
            "a string of 15 MiB in the place of all logs",
            "400",
            json(&format!(r#"{{"resourceLogs":"{}"}}"#, MARK.repeat(15 * MIB / MARK.len()))),
        ),
        case(
            "a log record at 400,000 times",
            "400",
            json(&format!(
                r#"{{"resourceLogs":[{{"scopeLogs":[{{"logRecords":[{{"timeUnixNano":[{}1]}}]}}]}}]}}"#,
                "1,".repeat(400_000)
            )),
        ),
        Case {
            name: "60,000 empty attributes each in a resource, its scope and its log record",
            gets: "200",
            sent: json(&format!(
                r#"{{"resourceLogs":[{{"resource":{empty},"scopeLogs":[{{"scope":{empty},"logRecords":[{empty}]}}]}}]}}"#
            )),
            stored: vec![
                format!(r#"{{"attributes":{nulls},"resource_attributes":{nulls},"scope_attributes":{nulls}}}"#)
                    .into_bytes(),
            ],
        },
        case("log records that end in the middle", "400", protobuf(&logs(b"", &b"\x12\x00".repeat(100))[..100])),
        case("100,000 open brackets at a source", "400", post("/hook", "text/plain", &vec![b'['; 100_000])),
        case(
            "a batch of 10,001 events at a source",
            "413",
            post("/hook", "text/plain", format!(r#"{{"batch":[{}]}}"#, vec!["1"; 10_001].join(",")).as_bytes()),
        ),
        case(
            "a bomb in gzip without a word of it at a source",
            "413",
            post("/hook", "text/plain", &gzip(&vec![b' '; 64 * MIB])),
        ),
        case(
            "a form of 16 MiB that is no base64 at a source",
            "400",
            post("/hook", "text/plain", &[b"data=", &b"%2A".repeat(5 * MIB)[..]].concat()),
        ),
    ]
}
