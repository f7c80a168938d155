//! Events of other shapes: sources, and logs.

use super::*;

/// The status, the code and the sentence of each answer to a body of another shape that is refused as a whole.
#[actix::test]
async fn each_refusal_at_a_source_is_a_sentence_that_says_what_where_and_what_to_do() {
    let daemon = Daemon::start(Queue::Stores, other_shapes());
    let invalid = Some("invalid_json");
    let many = format!(r#"{{"batch":[{}]}}"#, ["1"; 10].join(","));
    let bomb = gzip(&[b' '; 5000]);
    for (path, body, status, code, sentence) in [
        (
            "/hook",
            &b""[..],
            400,
            invalid,
            "the body is empty: send a JSON object, an array of objects, or one object a line as application/x-ndjson",
        ),
        (
            "/hook",
            br#"{"events":[]}"#,
            400,
            Some("not_an_object"),
            "the body has no array of events at \"/batch\", which is \"records\" of this path's [[http.source]]",
        ),
        (
            "/hook",
            br#"{"batch":[{"kind":"a"}"#,
            400,
            invalid,
            "the body is not valid JSON, nothing was accepted: EOF while parsing a list at line 1 column 22",
        ),
        (
            "/hook",
            br#"{"batch":[],"sentAt":tru}"#,
            400,
            invalid,
            "the body is not valid JSON, nothing was accepted: expected ident at line 1 column 25",
        ),
        (
            "/hook",
            many.as_bytes(),
            413,
            None,
            "more than 9 events in one request (http.max_events): send them in smaller requests",
        ),
        (
            "/one",
            b"[1",
            400,
            invalid,
            "the body is not valid JSON, nothing was accepted: EOF while parsing a list at line 1 column 2",
        ),
        ("/list", b"7", 400, Some("not_an_object"), "the body must be a JSON object, or several, or an array of them"),
        (
            "/list",
            b"data=*",
            400,
            invalid,
            "the field of this form is neither JSON nor base64, nothing was accepted: Invalid symbol 42, offset 0.",
        ),
        (
            "/one",
            b"payload=%7B%22a%22%3A%22%FF%22%7D",
            400,
            invalid,
            "the body is not valid JSON, nothing was accepted: not valid UTF-8 at byte 6",
        ),
        (
            "/list",
            &gzip(b"{}")[..15],
            400,
            None,
            "the body's gzip stream ends before its end, nothing was accepted: send all of it again",
        ),
        (
            "/list",
            &bomb,
            413,
            None,
            "the body inflates from gzip to more than 4000 bytes (http.max_body): send it in smaller requests",
        ),
        (
            "/nowhere",
            b"{}",
            404,
            None,
            "events are taken by POST /v1/events, logs by POST /v1/logs, and other bodies at the paths of [[http.source]]",
        ),
    ] {
        let reply = daemon.post_at(path, "", body).await;
        assert_eq!((reply.problem(status).as_str(), reply.json()["code"].as_str()), (sentence, code), "{path}");
    }
    for content_type in
        ["application/json; charset=utf-16", "text/plain;charset=ISO-8859-1", "x;a=b;Charset=\"latin1\""]
    {
        let reply = daemon.post_at("/one", &format!("Content-Type: {content_type}\r\n"), b"{}").await;
        let sentence = "the charset of this Content-Type is not taken: send JSON in UTF-8, whatever its media type";
        assert_eq!(reply.problem(415), sentence, "{content_type}");
    }
    assert_eq!(daemon.get("PUT /hook").await.problem(405), "this path takes POST only");
    assert!(daemon.log.lock().unwrap().records.is_empty());
}

#[actix::test]
async fn each_refusal_of_an_event_of_another_shape_says_where_something_was_looked_for() {
    let daemon = Daemon::start(Queue::Stores, other_shapes());
    let (long, large) = ("x".repeat(129), "x".repeat(600));
    let long = format!(r#"{{"kind":"{long}"}}"#);
    let large = format!(r#"{{"kind":"a","x":"{large}"}}"#);
    let rows = [
        ("{}", "missing_type", "there is no type at \"/kind\": it must be a string of 1 to 128 characters"),
        (r#"{"kind":7}"#, "invalid_type", "the type at \"/kind\" must be a string of 1 to 128 characters"),
        (&long, "invalid_type", "the type at \"/kind\" must be a string of 1 to 128 characters"),
        (
            r#"{"kind":"a","id":[]}"#,
            "invalid_id",
            "the id at \"/id\" must be a string of 1 to 256 characters or a number, or absent",
        ),
        (
            r#"{"kind":"a","id":""}"#,
            "invalid_id",
            "the id at \"/id\" must be a string of 1 to 256 characters or a number, or absent",
        ),
        (
            &large,
            "too_large",
            "627 bytes of data and attributes are more than an event may have: 600B (http.max_event)",
        ),
        (r#"{"kind":tru}"#, "invalid_json", "expected ident at line 1 column 12"),
        (
            r#"{"kind":"a","a":1,"a":2}"#,
            "invalid_json",
            "the name \"a\" stands twice in one object, which not every reader of JSON takes (event.on_unreadable)",
        ),
    ];
    let events: Vec<&str> = rows.iter().map(|row| row.0).chain([r#"{"kind":"a"}"#]).collect();
    let reply = daemon.post_at("/hook", "", format!(r#"{{"batch":[{}]}}"#, events.join(",")).as_bytes()).await;
    assert_eq!(reply.status, 207, "{}", reply.body);
    let errors = reply.json()["errors"].as_array().unwrap().clone();
    let found: Vec<_> =
        errors.iter().map(|error| (error["code"].as_str().unwrap(), error["message"].as_str().unwrap())).collect();
    assert_eq!(found, rows.map(|(_, code, sentence)| (code, sentence)));
}

#[actix::test]
async fn a_source_honours_preferences_and_answers_a_success_in_its_own_words() {
    let daemon = Daemon::start(Queue::Stores, other_shapes());
    let body = br#"{"batch":[{"kind":"a"},{}]}"#;
    let strict = daemon.post_at("/hook", "Prefer: handling=strict\r\n", body).await;
    assert_eq!(
        (strict.status, strict.applied(), strict.errors()),
        (400, Some("handling=strict"), errors(&[(1, "missing_type")]))
    );
    assert!(daemon.log.lock().unwrap().records.is_empty());
    let lenient = daemon.post_at("/hook", "Prefer: handling=lenient\r\n", body).await;
    assert_eq!((lenient.status, lenient.applied()), (207, Some("handling=lenient")));
    let own = daemon.post_at("/list", "Content-Type: application/x-ndjson\r\n", b"{}\n{}\n").await;
    assert_eq!((own.status, &*own.body, own.header("content-type")), (200, "ok", Some("text/plain; charset=utf-8")));
    let some = daemon.post_at("/list", "", br#"[{},{"a":NaN}]"#).await;
    assert_eq!((some.status, &*some.body), (207, "ok"));
    // Who prefers something reads what became of each event.
    let some = daemon.post_at("/list", "Prefer: handling=lenient\r\n", br#"[{},{"a":NaN}]"#).await;
    assert_eq!((some.status, some.errors()), (207, errors(&[(1, "invalid_json")])));
    let all =
        daemon.post_at("/list", "Prefer: handling=strict\r\nContent-Type: text/xml; charset=utf-8\r\n", b"{}").await;
    assert_eq!((all.status, &all.json()["accepted"]), (200, &json!(1)));
    // A number is a time, too.
    let body = br#"{"batch":[{"kind":"b","time":1795420800123,"who":7,"id":8}]}"#;
    let reply = daemon.post_at("/hook", "", body).await;
    assert_eq!((reply.status, &reply.json()["ids"], reply.json().get("warnings")), (200, &json!(["8"]), None));
    let records = daemon.log.lock().unwrap().records.clone();
    let (key, value, _) = records.last().unwrap();
    assert_eq!((key.as_deref(), value.as_str()), (Some("7"), r#"{"kind":"b","time":1795420800123,"who":7,"id":8}"#));
    let absurd = daemon.post_at("/hook", "", br#"{"batch":[{"kind":"b","time":{}}]}"#).await;
    assert_eq!(absurd.json()["warnings"][0]["code"], "invalid_timestamp", "{}", absurd.body);
}

/// The status and the sentence of each answer to logs that are wrong, as exporters read them.
#[actix::test]
async fn each_refusal_of_logs_is_a_status_that_says_what_where_and_what_to_do() {
    let daemon = Daemon::start(Queue::Stores, other_shapes());
    const JSON: &str = "Content-Type: application/json\r\n";
    let of = |records: &str| format!(r#"{{"resourceLogs":[{{"scopeLogs":[{{"logRecords":[{records}]}}]}}]}}"#);
    let no_request = "the body is no ExportLogsServiceRequest in OTLP/JSON, nothing was accepted: ";
    for (body, status, code, sentence) in [
        ("{".to_owned(), 400, 3, format!("{no_request}EOF while parsing an object at line 1 column 1")),
        (r#"{"resourceLogs":7}"#.to_owned(), 400, 3, format!("{no_request}invalid type: integer `7`, expected an array at line 1 column 1")),
        (
            of(&["{}"; 10].join(",")),
            413,
            3,
            "more than 9 events in one request (http.max_events): send them in smaller requests".to_owned(),
        ),
        (
            of(r#"{"timeUnixNano":"soon"},{"traceId":"x"}"#),
            400,
            3,
            "no log record was accepted: log record 0: invalid_json: its log record is no valid OTLP/JSON: an integer in its \
             range was expected, or a string with one at line 1 column 22; and 1 more"
                .to_owned(),
        ),
        (
            of(&format!(r#"{{"severityText":"{}"}}"#, "x".repeat(700))),
            400,
            3,
            "no log record was accepted: log record 0: too_large: 719 bytes of application/json are more than an event may \
             have: 600B (http.max_event); it was not decoded"
                .to_owned(),
        ),
        (
            of(&"x".repeat(4000)),
            413,
            3,
            "the body is larger than 4000 bytes (http.max_body): send it in smaller requests".to_owned(),
        ),
    ] {
        let reply = daemon.post_at("/v1/logs", JSON, body.as_bytes()).await;
        assert_eq!((reply.status, reply.header("content-type")), (status, Some("application/json")), "{}", reply.body);
        assert_eq!((reply.json()["message"].as_str(), &reply.json()["code"]), (Some(&*sentence), &json!(code)));
    }
    let media_type = "Content-Type of logs must be application/x-protobuf or application/json, in UTF-8: set \
                      OTEL_EXPORTER_OTLP_PROTOCOL to http/protobuf";
    for given in ["application/grpc", "application/json; charset=utf-16"] {
        let reply = daemon.post_at("/v1/logs", &format!("Content-Type: {given}\r\n"), b"").await;
        assert_eq!(reply.problem(415), media_type);
    }
    let coding = daemon.post_at("/v1/logs", &format!("{JSON}Content-Encoding: compress\r\n"), b"{}").await;
    assert_eq!((coding.status, coding.header("accept-encoding")), (415, Some("gzip, zstd, deflate, br")));
    assert!(daemon.log.lock().unwrap().records.is_empty());

    let full = daemon.health.gate.reason(Closed::DiskFull);
    full.set("90 %".to_owned());
    let closed = daemon.post_at("/v1/logs", JSON, of("{}").as_bytes()).await;
    assert_eq!((closed.status, closed.header("retry-after"), &closed.json()["code"]), (503, Some("30"), &json!(14)));
}

/// Logs, the second of which is wrong.
const MIXED_LOGS: &str = r#"{"resourceLogs":[{"resource":{"attributes":[{"key":"service.name","value":{"stringValue":"shop"}}]},
    "scopeLogs":[{"logRecords":[{"body":{"stringValue":"a"}},{"timeUnixNano":"soon"},{"body":{"stringValue":"c"}}]}]}]}"#;

#[actix::test]
async fn logs_honour_preferences_as_far_as_their_answers_can_say_it() {
    let daemon = Daemon::start(Queue::Stores, HttpConfig::default());
    let post = |handling: &str| {
        let fields = format!("Content-Type: application/json\r\nPrefer: handling={handling}\r\n");
        let daemon = &daemon;
        async move { daemon.post_at("/v1/logs", &fields, MIXED_LOGS.as_bytes()).await }
    };
    let partial = |reply: &Reply| {
        let partial = reply.json()["partialSuccess"].clone();
        let text = |name: &str| partial[name].as_str().unwrap_or_default().to_owned();
        (text("rejectedLogRecords"), text("errorMessage"))
    };
    let strict = post("strict").await;
    assert_eq!((strict.status, strict.applied(), &strict.json()["code"]), (400, Some("handling=strict"), &json!(3)));
    assert!(
        strict.json()["message"]
            .as_str()
            .unwrap()
            .starts_with("no log record was accepted: log record 1: invalid_json: ")
    );
    assert!(daemon.log.lock().unwrap().records.is_empty());
    daemon.quarantine(Letters::Kept);
    assert_eq!(post("strict").await.status, 400);
    assert!(daemon.letters().is_empty());
    let lenient = post("lenient").await;
    assert_eq!((lenient.status, lenient.applied(), &*partial(&lenient).0), (200, Some("handling=lenient"), "0"));
    assert_eq!(daemon.letters(), [("invalid_json".to_owned(), r#"{"timeUnixNano":"soon"}"#.to_owned())]);

    *daemon.queue.lock().unwrap() = Queue::GoesAway;
    let lenient = post("lenient").await;
    let (rejected, message) = partial(&lenient);
    assert_eq!((lenient.status, lenient.applied(), &*rejected), (200, Some("handling=lenient"), "1"));
    assert!(message.contains("log records 2 (1 in all): no broker answers; "), "{message}");
    *daemon.queue.lock().unwrap() = Queue::Refuses;
    let lenient = post("perhaps").await;
    assert_eq!((lenient.status, lenient.applied()), (503, None));
}

#[actix::test]
async fn strict_logs_of_which_the_queue_stored_a_part_are_not_said_to_be_so() {
    let daemon = Daemon::start(Queue::FindsTooLarge(&[1]), HttpConfig::default());
    let strict = "Content-Type: application/json\r\nPrefer: handling=strict\r\n";
    let body = r#"{"resourceLogs":[{"scopeLogs":[{"logRecords":[{},{}]}]}]}"#;
    let reply = daemon.post_at("/v1/logs", strict, body.as_bytes()).await;
    assert_eq!((reply.status, reply.applied()), (200, None));
    assert_eq!(reply.json()["partialSuccess"]["rejectedLogRecords"], "1");
    *daemon.queue.lock().unwrap() = Queue::FindsTooLarge(&[0, 1]);
    let reply = daemon.post_at("/v1/logs", strict, body.as_bytes()).await;
    assert_eq!((reply.status, reply.applied()), (400, Some("handling=strict")));
}
