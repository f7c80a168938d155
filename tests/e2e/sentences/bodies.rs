//! Bodies that are refused as a whole, and events that are refused alone: ours, CloudEvents, and those of sources.

use super::requests::{
    Door::{self, Narrow, Open},
    JSON, Wrong, post, sent,
};
use crate::support::coding::gzip;

/// Sources of the open door, and of the narrow one.
pub const SOURCES: &str = r#"
[[http.source]]
path = "/hook"
records = "/batch"
type = "/kind"
id = "/id"
time = "/time"
client = "/who"
[[http.source]]
path = "/one"
type = { fixed = "alert" }
[[http.source]]
path = "/list"
records = ""
type = { fixed = "log" }
"#;

/// What events of the type `typed` have to be.
pub const SCHEMA: &str = r#"{"properties": {
    "user": {"type": "string"}, "either": {"type": ["string", "null"]}, "const": {"const": 1}, "enum": {"enum": ["a", "b"]},
    "pattern": {"pattern": "^a"}, "min": {"minimum": 2}, "max": {"maximum": 2}, "above": {"exclusiveMinimum": 2},
    "below": {"exclusiveMaximum": 2}, "even": {"multipleOf": 2}, "long": {"minLength": 2}, "short": {"maxLength": 1},
    "many": {"minItems": 2}, "few": {"maxItems": 1}, "large": {"minProperties": 1}, "small": {"maxProperties": 1},
    "contains": {"contains": {"const": 1}}, "unique": {"uniqueItems": true}, "closed": {"properties": {"z": true}, "additionalProperties": false}, "open": {"unevaluatedProperties": false},
    "rest": {"prefixItems": [true], "unevaluatedItems": false}, "names": {"propertyNames": {"pattern": "^a"}}, "never": false,
    "not": {"not": {"type": "null"}}, "any": {"anyOf": [{"type": "string"}, {"type": "null"}]},
    "one": {"oneOf": [{"type": "string"}, {"type": "null"}]}, "both": {"oneOf": [true, true]}, "inner": {"required": ["a"]},
    "big": {"anyOf": [{"items": {"type": "string"}}, {"items": {"type": "null"}}]}
}}"#;

const INVALID: &str = "invalid_json";
const EMPTY: &str =
    "the body is empty: send a JSON object, an array of objects, or one object a line as application/x-ndjson";
const NEITHER: &str = "the body must be a JSON object, or several, or an array of them";

/// A body of JSON that is no JSON.
fn broken(rule: &str) -> String {
    format!("the body is not valid JSON, nothing was accepted: {rule}")
}

/// The codings of bodies, and their types.
fn codings() -> Vec<Wrong> {
    const TAKEN: &str = "send one of application/json, application/x-ndjson, application/ndjson, application/jsonl, \
                         application/x-jsonlines, application/cloudevents+json, application/cloudevents-batch+json, in UTF-8 (or with \
                         the headers of a CloudEvent, any that its data has)";
    const DICTIONARY: &str = "needs a dictionary, which is not taken: compress it without one";
    let event = br#"{"type":"a"}"#.as_slice();
    let mut wrong = gzip(event);
    let at = wrong.len() - 8;
    wrong[at] ^= 1;
    let row = |fields: &str, body: &[u8], status: u16, sentence: &str| {
        post(Open, "/v1/events", &format!("{fields}\r\n"), body, (status, "", sentence))
    };
    let coded = |coding: &str, body: &[u8], status: u16, sentence: &str| {
        row(&format!("Content-Encoding: {coding}"), body, status, sentence)
    };
    let damaged = |coding: &str, why: &str| format!("the body is damaged or no {coding}, nothing was accepted: {why}");
    vec![
        row("Content-Type: text/plain", event, 415, &format!("this Content-Type is not taken: {TAKEN}")),
        row(
            "Content-Type: application/json\r\nContent-Type: application/json",
            event,
            415,
            &format!("more than one Content-Type: {TAKEN}"),
        ),
        row(
            "Content-Type: application/json; charset=latin1",
            event,
            415,
            &format!("the charset of this Content-Type is not taken: {TAKEN}"),
        ),
        coded(
            "compress",
            event,
            415,
            "this Content-Encoding is not taken: send the body with gzip, zstd, deflate, br, or as it is",
        ),
        coded(
            "gzip, br",
            event,
            415,
            "more than one Content-Encoding: send the body with one of gzip, zstd, deflate, br, or as it is",
        ),
        coded(
            "zstd",
            &[0x28, 0xb5, 0x2f, 0xfd, 0, 14 << 3, 1, 0, 0],
            415,
            "the body's zstd stream needs a window above 8 MiB (RFC 9659): compress it with a smaller one",
        ),
        coded(
            "zstd",
            &[0x28, 0xb5, 0x2f, 0xfd, 0x21, 7, 0, 1, 0, 0],
            415,
            &format!("the body's zstd stream {DICTIONARY}"),
        ),
        coded("deflate", &[0x78, 0x20, 1, 2, 3, 4, 5, 6], 415, &format!("the body's deflate stream {DICTIONARY}")),
        coded(
            "br",
            &[0x11, 0x1a, 0, 0],
            415,
            "the body's brotli stream has a large window, which is not taken: compress it with a window of at most 24 bits",
        ),
        coded("gzip", event, 400, &damaged("gzip", "incorrect header check")),
        coded("gzip", &wrong, 400, &damaged("gzip", "incorrect data check")),
        coded("zstd", event, 400, &damaged("zstd", "it does not begin with a frame")),
        coded("deflate", event, 400, &damaged("deflate", "invalid distance too far back")),
        coded(
            "deflate",
            br#"{"type":"login_success","client_id":"client-1"}"#,
            400,
            &damaged("deflate", "invalid stream"),
        ),
        coded("br", event, 400, &damaged("brotli", "FORMAT_PADDING_2")),
        coded(
            "gzip",
            &gzip(event)[..20],
            400,
            "the body's gzip stream ends before its end, nothing was accepted: send all of it again",
        ),
        coded(
            "gzip",
            &[&gzip(event)[..], b"\0\0"].concat(),
            400,
            "behind the end of the body's gzip stream stand bytes that are none, nothing was accepted: send the stream alone",
        ),
        coded(
            "gzip",
            &gzip(&[b' '; 131_073]),
            413,
            "the body inflates from gzip to more than 131072 bytes (http.max_body): send it in smaller requests",
        ),
        row(
            "X: y",
            &[b' '; 131_073],
            413,
            "the body is larger than 131072 bytes (http.max_body): send it in smaller requests",
        ),
    ]
}

/// Bodies of events that are refused as a whole.
fn wholes() -> Vec<Wrong> {
    const TOO_MANY: &str = "more than 9 events in one request (http.max_events): send them in smaller requests";
    let row = |body: &[u8], status: u16, code: &'static str, sentence: &str| {
        post(Open, "/v1/events", "", body, (status, code, sentence))
    };
    let syntax = |body: &[u8], rule: &str| row(body, 400, INVALID, &broken(rule));
    let of_type = |media_type: &str, body: &str, code: &'static str, sentence: &str| {
        let fields = format!("Content-Type: application/{media_type}+json\r\n");
        post(Open, "/v1/events", &fields, body, (400, code, sentence))
    };
    vec![
        row(b"[1,2,3,4,5,6,7,8,9,0]", 413, "", TOO_MANY),
        row("{}".repeat(10).as_bytes(), 413, "", TOO_MANY),
        row(b"\xef\xbb\xbf\n", 400, INVALID, EMPTY),
        row(
            b"\xff\xfe{\0}\0",
            400,
            INVALID,
            "the body begins with the byte order mark of UTF-16 or UTF-32: send it in UTF-8",
        ),
        row(b"7", 400, "not_an_object", NEITHER),
        of_type(
            "cloudevents",
            "[]",
            "not_an_object",
            "the body must be one CloudEvent, a JSON object: send an array of them as application/cloudevents-batch+json",
        ),
        of_type(
            "cloudevents-batch",
            "{}",
            "invalid_cloudevent",
            "the body must be an array of CloudEvents: send a single one as application/cloudevents+json",
        ),
        syntax(b"tru", "EOF while parsing a value at line 1 column 3"),
        syntax(br#"{"x":NaN}"#, "NaN is no JSON, send null or a string: expected value at line 1 column 6"),
        syntax(b"{\"type\":\"\xff\"}", "not valid UTF-8 at byte 9"),
        syntax(format!("{}{}", r#"{"x":"#.repeat(130), "}".repeat(130)).as_bytes(), "nested deeper than {} levels"),
        syntax(
            br#"[{},{"x":"}]"#,
            "the array has no end: a string or a bracket stays open in element 1 (from the array's byte 4 on)",
        ),
        syntax(br#"[{},{"x":[}]"#, "brackets do not match in element 1 of the array (from the array's byte 4 on)"),
        syntax(b"[{}] x", "something stands behind the end of the array, from its byte 4 on"),
    ]
}

/// Wrong events beside one that is right, which is stored.
fn events() -> Vec<Wrong> {
    let beside = |event: &str, code: &'static str, sentence: &str| {
        post(Open, "/v1/events", "", format!(r#"[{{"type":"a"}},{event}]"#), (207, code, sentence))
            .counted("ingestd_events_rejected_total", code)
    };
    let unreadable = |event: String, what: &str| {
        beside(&event, INVALID, &format!("{what}, which not every reader of JSON takes (event.on_unreadable)"))
    };
    let with = |member: &str, value: &str| format!(r#"{{"type":"a","{member}":{value}}}"#);
    let timed = |time: &str, rule: &str| {
        beside(&with("timestamp", time), "invalid_timestamp", &format!("field \"timestamp\" {rule}"))
    };
    let alone = |door: Door, body: &str, code: &'static str, sentence: &str| {
        post(door, "/v1/events", "", body, (400, code, sentence))
    };
    // It is stored all the same.
    let late = |time: &str, warning: &str| {
        post(Narrow, "/v1/events", "", with("timestamp", time), (200, "invalid_timestamp", warning))
    };
    let objects = format!(r#"{{"type":"typed","x":[{}]}}"#, vec!["{}"; 300].join(","));
    vec![
        beside("{}", "missing_type", "field \"type\" is missing: it must be a string of 1 to 128 characters"),
        beside(r#"{"type":7}"#, "invalid_type", "field \"type\" must be a string of 1 to 128 characters"),
        beside(
            &with("event_id", "[]"),
            "invalid_id",
            "field \"event_id\" must be a string of 1 to 256 characters, or absent",
        ),
        timed(
            "\"soon\"",
            "is no time that can be read: write RFC 3339 with its offset, such as \"2026-11-23T08:00:00.123Z\", or a number of \
             seconds since 1970, or leave it out",
        ),
        timed("\"1969-12-31T00:00:00Z\"", "is a time before 1970, which no event has: correct it, or leave it out"),
        timed(
            "\"1999-01-01T00:00:00Z\"",
            "is a time further back from its receipt than an event may be (event.max_past): correct the clock that it is from, or \
             leave it out",
        ),
        timed(
            "\"9000-01-01T00:00:00Z\"",
            "is a time further ahead of its receipt than an event may be (event.max_future), or beyond 9999: correct the clock that \
             it is from, or leave it out",
        ),
        timed(
            "\"2026-11-23T08:00:60Z\"",
            "is a time that few readers know: a second 60 is at 23:59:60 UTC alone, and an offset's minus is a hyphen",
        ),
        beside("7", "not_an_object", "an event must be a JSON object"),
        beside(",{}", INVALID, "nothing stands here: there is a comma too many"),
        beside(
            &with("x", &format!("\"{}\"", "x".repeat(65_536))),
            "too_large",
            "65555 bytes are more than an event may have: 64KiB (http.max_event)",
        ),
        post(
            Open,
            "/v1/events",
            "",
            r#"{"type":"a"} x"#,
            (
                207,
                INVALID,
                "here is no JSON text, and nothing behind it was looked at: expected value at line 1 column 1",
            ),
        ),
        unreadable(r#"{"type":"a","b":1,"b":2}"#.to_owned(), "the name \"b\" stands twice in one object"),
        unreadable(with("x", "\"\\ud800\""), "a string holds half of a surrogate pair: {}"),
        unreadable(with("x", "1e999"), "the number 1e999 is beyond the range of a double"),
        unreadable(with("x", &"1".repeat(1001)), "a number is longer than 1000 characters: {}"),
        unreadable(with(&"x".repeat(50_001), "1"), "a name is longer than 50000 bytes: {}"),
        alone(Narrow, r#"{"type":"\ud800"}"#, INVALID, &broken("the string in field \"type\" cannot be read: {}")),
        late(
            "\"soon\"",
            "counted by the time of receipt, as its own cannot be read: write RFC 3339 with its offset, such as \
             2026-11-23T08:00:00.123Z, or a number of seconds since 1970",
        ),
        late("-1", "counted by the time of receipt, as its own lies before 1970"),
        late(
            "\"1999-01-01T00:00:00Z\"",
            "counted by the time of receipt, as its own lies further back than an event may be (event.max_past): correct the clock \
             that it is from",
        ),
        late(
            "\"9000-01-01T00:00:00Z\"",
            "counted by the time of receipt, as its own lies further ahead than an event may be (event.max_future), or beyond 9999: \
             correct the clock that it is from",
        ),
        late(
            "\"2026-11-23T08:00:60Z\"",
            "counted by its own time, which few other readers know: a second 60 is at 23:59:60 UTC alone, and an offset's minus is a \
             hyphen",
        ),
        alone(
            Narrow,
            &objects,
            "too_large",
            "it takes {} bytes to look whether it matches the schema of its type, which is more than half of http.max_in_flight: send \
             less in one",
        ),
    ]
}

/// Events that do not match the schema of their type, for each of its rules.
fn mismatches() -> Vec<Wrong> {
    let row = |member: &str, value: &str, at: &str, rule: &str, keyword: &str| {
        let sentence = format!("at {at:?}: {rule} (\"/properties/{member}{keyword}\" of the schema)");
        let body = format!(r#"{{"type":"typed","{member}":{value}}}"#);
        post(Open, "/v1/events", "", body, (400, "schema", &sentence))
    };
    let of = |member: &str, value: &str, rule: &str, keyword: &str| {
        row(member, value, &format!("/{member}"), rule, &format!("/{keyword}"))
    };
    let big = format!(r#"{{"type":"typed","big":[{}]}}"#, vec!["1"; 20_000].join(","));
    let without_data = "ce-specversion: 1.0\r\nce-id: 1\r\nce-source: /s\r\nce-type: typed\r\n";
    let text = format!("{without_data}Content-Type: text/plain\r\n");
    let no_json = |fields: &str, body: &str, rule: &str| {
        let sentence = format!("at \"\": {rule} (\"\" of the schema)");
        post(Open, "/v1/events", fields, body, (400, "schema", &sentence))
    };
    vec![
        of("user", "7", "must be of type string", "type"),
        of("either", "7", "must be of type {}", "type"),
        of("const", "7", "must be 1", "const"),
        of("enum", "7", "must be one of [\"a\",\"b\"]", "enum"),
        of("pattern", "\"b\"", "must match the pattern ^a", "pattern"),
        of("min", "1", "must be at least 2", "minimum"),
        of("max", "3", "must be at most 2", "maximum"),
        of("above", "2", "must be above 2", "exclusiveMinimum"),
        of("below", "2", "must be below 2", "exclusiveMaximum"),
        of("even", "3", "must be a multiple of 2", "multipleOf"),
        of("long", "\"a\"", "must have at least 2 characters", "minLength"),
        of("short", "\"aa\"", "must have at most 1 character", "maxLength"),
        of("many", "[1]", "must have at least 2 elements", "minItems"),
        of("few", "[1,2]", "must have at most 1 element", "maxItems"),
        of("large", "{}", "must have at least 1 member", "minProperties"),
        of("small", r#"{"a":1,"b":2}"#, "must have at most 1 member", "maxProperties"),
        of("contains", "[2]", "must have such elements as contains asks for", "contains"),
        of("unique", "[1,1.0]", "must have no two elements alike", "uniqueItems"),
        row("closed", r#"{"a":1}"#, "/closed/a", "must not be there", "/additionalProperties"),
        row("open", r#"{"a":1,"b":2,"c":3}"#, "/open/a", "must not be there, nor 2 more", "/unevaluatedProperties"),
        of("rest", "[1,2]", "has elements that no keyword allows", "unevaluatedItems"),
        row(
            "names",
            r#"{"b":1}"#,
            "/names/b",
            "its name is none that may be there: it must match the pattern ^a",
            "/propertyNames{}",
        ),
        row("never", "1", "/never", "must not be there", "{}"),
        of("not", "null", "is what must not be", "not"),
        of("any", "1", "matches none of the schemas in anyOf", "anyOf"),
        of("one", "1", "matches none of the schemas in oneOf", "oneOf"),
        of("both", "1", "matches more than one of the schemas in oneOf", "oneOf"),
        row("inner", "{}", "/inner/a", "is missing", "/required"),
        no_json(
            "",
            &big,
            "it does not match, and it would take too long to say where (anyOf, oneOf and recursion are explained of less)",
        ),
        no_json(without_data, "", "there is no data, and a schema is about JSON"),
        no_json(&text, "neither", "it must be JSON that can be read as a whole: expected ident at line 1 column 2"),
    ]
}

/// CloudEvents, in headers and in envelopes.
fn cloudevents() -> Vec<Wrong> {
    const CODE: &str = "invalid_cloudevent";
    let envelope = |door: Door, members: &str, code: &'static str, sentence: &str| {
        let fields = "Content-Type: application/cloudevents+json\r\n";
        post(door, "/v1/events", fields, format!("{{{members}}}"), (400, code, sentence))
    };
    let known = r#""specversion":"1.0","id":"1","source":"/s","type":"a""#;
    let with = |members: &str, sentence: &str| envelope(Open, &format!("{known},{members}"), CODE, sentence);
    let headers = |fields: &str, code: &'static str, sentence: &str| {
        post(Open, "/v1/events", &format!("ce-specversion: 1.0\r\n{fields}{JSON}"), "1", (400, code, sentence))
    };
    let all = "ce-id: 1\r\nce-source: /s\r\nce-type: a\r\n";
    let many: Vec<String> = (0..130).map(|at| format!(r#""a{at}":1"#)).collect();
    let version = |version: &str| {
        post(
            Open,
            "/v1/events",
            &format!("ce-specversion: {version}\r\n{all}{JSON}"),
            "1",
            (
                400,
                CODE,
                match version {
                    "0.3" => "attribute \"specversion\" is \"0.3\": CloudEvents are taken in version \"1.0\" alone",
                    _ => "attribute \"specversion\" must be \"1.0\": CloudEvents of other versions are not taken",
                },
            ),
        )
    };
    vec![
        version("0.3"),
        version("2.0"),
        envelope(
            Open,
            "",
            CODE,
            "attribute \"specversion\" is missing: a CloudEvent must have it, with the value \"1.0\"",
        ),
        headers(
            "ce-id: 1\r\nce-source: /s\r\n",
            "missing_type",
            "attribute \"type\" is missing: a CloudEvent must have one, a string of 1 to 128 characters",
        ),
        headers(
            "ce-type: a\r\nce-source: /s\r\n",
            "invalid_id",
            "attribute \"id\" is missing: a CloudEvent must have one, a string of 1 to 256 characters",
        ),
        headers(
            "ce-type: a\r\nce-id: 1\r\n",
            CODE,
            "attribute \"source\" must be a string that is not empty: a CloudEvent says where it is from",
        ),
        headers(
            &format!("{all}ce-data: x\r\n"),
            CODE,
            "header ce-data carries no attribute: after \"ce-\" stand lower-case letters and digits alone, and the data is the body",
        ),
        headers(
            &format!("{all}ce-subject: %ff\r\n"),
            CODE,
            "header ce-subject cannot be read: once percent-decoded it is not UTF-8",
        ),
        headers(&format!("{all}ce-type: b\r\n"), CODE, "header ce-type stands more than once: an event has it once"),
        sent(
            Open,
            [
                &b"POST /v1/events HTTP/1.1\r\nHost: x\r\nce-specversion: 1.0\r\nContent-Type: text/\xff\r\n"[..],
                all.as_bytes(),
                b"Content-Length: 1\r\n\r\n1",
            ]
            .concat(),
            (400, CODE, "Content-Type is not UTF-8: send it in ASCII"),
        ),
        with(
            r#""Up":1"#,
            "\"Up\" cannot be the name of an attribute: those have lower-case letters and digits alone; what is no attribute belongs \
             into \"data\"",
        ),
        with(&many.join(","), "an event may have 128 attributes, and this one has more: put them into its data"),
        with(
            r#""datacontenttype":"application/cloudevents+json","data":{}"#,
            "attribute \"datacontenttype\" says that the data is a CloudEvent, which cannot be told from the event itself: send the \
             inner one, or give its data another type",
        ),
        with(
            r#""data":1,"data_base64":"MQ==""#,
            "both \"data\" and \"data_base64\" stand in it: an event has one of them, or none",
        ),
        with(r#""data_base64":"*""#, "\"data_base64\" is no base64: {}"),
        with(r#""data_base64":7"#, "\"data_base64\" is no base64: it is no string"),
        with(r#""subject":7"#, "attribute \"subject\" must be a string"),
        with(r#""ext":1.5"#, "attribute \"ext\" must be a string, an integer or a boolean"),
        envelope(
            Narrow,
            &format!(r#"{known},"ext":"\ud800""#),
            INVALID,
            &broken("the string in \"ext\" cannot be read: {}"),
        ),
    ]
}

/// Bodies at sources, and events in them.
fn sources() -> Vec<Wrong> {
    let row = |path: &str, body: &[u8], status: u16, code: &'static str, sentence: &str| {
        post(Open, path, "", body, (status, code, sentence))
    };
    let beside = |event: &str, code: &'static str, sentence: &str| {
        row("/hook", format!(r#"{{"batch":[{{"kind":"a"}},{event}]}}"#).as_bytes(), 207, code, sentence)
    };
    let charset = |content_type: &str| {
        let sentence = "the charset of this Content-Type is not taken: send JSON in UTF-8, whatever its media type";
        post(Open, "/one", &format!("Content-Type: {content_type}\r\n"), "{}", (415, "", sentence))
    };
    let id = "the id at \"/id\" must be a string of 1 to 256 characters or a number, or absent";
    let of_type = "the type at \"/kind\" must be a string of 1 to 128 characters";
    vec![
        row("/hook", b"", 400, INVALID, EMPTY),
        row(
            "/hook",
            br#"{"events":[]}"#,
            400,
            "not_an_object",
            "the body has no array of events at \"/batch\", which is \"records\" of this path's [[http.source]]: send it there",
        ),
        row(
            "/hook",
            br#"{"batch":[{"kind":"a"}"#,
            400,
            INVALID,
            &broken("EOF while parsing a list at line 1 column 22"),
        ),
        row("/hook", br#"{"batch":[],"sentAt":tru}"#, 400, INVALID, &broken("expected ident at line 1 column 25")),
        row(
            "/hook",
            format!(r#"{{"batch":[{}]}}"#, ["1"; 10].join(",")).as_bytes(),
            413,
            "",
            "more than 9 events in one request (http.max_events): send them in smaller requests",
        ),
        row("/one", b"[1", 400, INVALID, &broken("EOF while parsing a list at line 1 column 2")),
        row("/list", b"7", 400, "not_an_object", NEITHER),
        row(
            "/list",
            b"data=*",
            400,
            INVALID,
            "the field of this form is neither JSON nor base64, nothing was accepted: Invalid symbol 42, offset 0.",
        ),
        row("/one", b"payload=%7B%22a%22%3A%22%FF%22%7D", 400, INVALID, &broken("not valid UTF-8 at byte 6")),
        row(
            "/list",
            &gzip(b"{}")[..15],
            400,
            "",
            "the body's gzip stream ends before its end, nothing was accepted: send all of it again",
        ),
        row(
            "/list",
            &gzip(&[b' '; 131_073]),
            413,
            "",
            "the body inflates from gzip to more than 131072 bytes (http.max_body): send it in smaller requests",
        ),
        charset("application/json; charset=utf-16"),
        charset("text/plain;charset=ISO-8859-1"),
        charset("x;a=b;Charset=\"latin1\""),
        beside("{}", "missing_type", "there is no type at \"/kind\": it must be a string of 1 to 128 characters"),
        beside(r#"{"kind":7}"#, "invalid_type", of_type),
        beside(&format!(r#"{{"kind":"{}"}}"#, "x".repeat(129)), "invalid_type", of_type),
        beside(r#"{"kind":"a","id":[]}"#, "invalid_id", id),
        beside(r#"{"kind":"a","id":""}"#, "invalid_id", id),
        beside(
            &format!(r#"{{"kind":"a","x":"{}"}}"#, "x".repeat(65_536)),
            "too_large",
            "{} bytes of data and attributes are more than an event may have: 64KiB (http.max_event)",
        ),
        beside(r#"{"kind":tru}"#, INVALID, "expected ident at line 1 column 12"),
        beside(
            r#"{"kind":"a","a":1,"a":2}"#,
            INVALID,
            "the name \"a\" stands twice in one object, which not every reader of JSON takes (event.on_unreadable)",
        ),
        post(
            Narrow,
            "/hook",
            "",
            r#"{"batch":[{"kind":"\ud800"}]}"#,
            (400, INVALID, "the string at \"/kind\" cannot be read: {}"),
        ),
    ]
}

pub fn rows() -> Vec<Wrong> {
    let rows = [codings(), wholes(), events(), mismatches(), cloudevents(), sources()];
    rows.into_iter().flatten().collect()
}
