//! What a request is called, and the trace that it belongs to.

use super::*;

#[actix::test]
async fn each_answer_says_what_its_request_is_called_refusals_too() {
    let limits = HttpConfig { request_timeout: Duration::from_millis(200), ..pages_of("*") };
    let daemon = Daemon::start(Queue::Stores, limits);
    let full = daemon.health.gate.reason(Closed::DiskFull);
    let json = "Content-Type: application/json\r\n";
    let preflight = format!("Origin: https://a.example\r\n{PREFLIGHT}");
    let expect = "Expect: 100-continue\r\nContent-Length: 99999999999\r\n";
    for (line, fields, body, status) in [
        ("POST /v1/events", json, r#"{"type":"a"}"#, 200),
        ("POST /v1/events", json, r#"[{"type":"a"},7]"#, 207),
        ("POST /v1/events", json, "{", 400),
        ("POST /v1/events", "Content-Type: text/html\r\n", "{}", 415),
        ("POST /v1/events", "Content-Encoding: x\r\n", "{}", 415),
        ("POST /v1/events", expect, "", 413),
        ("POST /v1/events", "Content-Length: 99999999999\r\n", "", 413),
        ("POST /v1/events", "Content-Length: 9\r\n", "", 408),
        ("POST /v1/events", "Transfer-Encoding: chunked\r\n", "x\r\n\r\n", 400),
        ("POST /v1/logs", json, r#"{"resourceLogs":[]}"#, 200),
        ("PUT /v1/events", "", "", 405),
        ("OPTIONS /v1/events", &preflight, "", 204),
        ("GET /elsewhere", "", "", 404),
        ("GET /health", "", "", 503),
        ("GET /openapi.json", "", "", 200),
        ("POST /v1/events", json, r#"{"type":"a"}"#, 503),
    ] {
        match status {
            503 => full.set("71 % used".to_owned()),
            _ => full.set(None::<String>),
        }
        let named = "X-Request-Id: a-proxy/Root=1:2+3@4\r\n";
        for (id, echoed) in [
            (named, Some("a-proxy/Root=1:2+3@4")),
            ("", None),
            ("X-Request-Id: two words\r\n", None),
            (&format!("X-Request-Id: {}\r\n", "a".repeat(129)), None),
            (&format!("{named}{named}"), None),
        ] {
            let mut request = of_page(line, &format!("{id}{fields}"), body);
            if fields.contains("Length") || fields.contains("chunked") {
                request = request.replacen(&format!("Content-Length: {}\r\n\r\n", body.len()), "\r\n", 1);
            }
            let reply = daemon.send(request).await;
            assert_eq!(reply.status, status, "{line} {fields}: {}", reply.body);
            assert_eq!(reply.head.to_lowercase().matches("x-request-id: ").count(), 1, "{}", reply.head);
            let said = reply.header("x-request-id").unwrap();
            match echoed {
                Some(id) => assert_eq!(said, id, "{line} {fields}"),
                None => assert!(uuid::Uuid::parse_str(said).is_ok(), "{line} {fields} {id}: {said}"),
            }
        }
    }
    for broken in ["POST /v1/events HTTP/1.1\r\nno field\r\n\r\n", "POST /v1/events HTTP/1.1\r\n\r\n"] {
        let reply = daemon.send(broken.to_owned()).await;
        assert_eq!(reply.status, 400, "{broken}");
        assert!(uuid::Uuid::parse_str(reply.header("x-request-id").unwrap()).is_ok(), "{}", reply.head);
    }
}

#[actix::test]
async fn the_trace_of_a_request_is_carried_by_each_of_its_records_and_letters() {
    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let sources = HttpConfig { source: other_shapes().source, ..HttpConfig::default() };
    let daemon = Daemon::start(Queue::Stores, sources);
    daemon.quarantine(Letters::Kept);
    let trace = format!("traceparent: {PARENT}\r\ntracestate: a=1\r\ntracestate: b=2\r\n");
    let [parent, state] = [("traceparent", PARENT), ("tracestate", "a=1,b=2")];
    let json = "Content-Type: application/json\r\n";
    let binary = "ce-specversion: 1.0\r\nce-id: i\r\nce-source: /s\r\nce-type: t\r\nce-traceparent: of-the-event\r\n";
    let own = [
        ("ce_id", "i"),
        ("ce_source", "/s"),
        ("ce_specversion", "1.0"),
        ("ce_traceparent", "of-the-event"),
        ("ce_type", "t"),
        ("content-type", "application/json"),
    ];
    // More than is checked on a worker.
    let long = format!("[{}]", vec![r#"{"type":"a"}"#; 9000].join(","));
    for (path, fields, body, expected) in [
        ("/v1/events", json.to_owned(), r#"[{"type":"a"},{"type":"b"}]"#, vec![vec![]; 2]),
        ("/v1/events", format!("{json}{trace}"), r#"[{"type":"a"},{"type":"b"}]"#, vec![vec![parent, state]; 2]),
        ("/v1/events", format!("{json}{trace}"), &long, vec![vec![parent, state]; 9000]),
        ("/v1/events", format!("{json}traceparent: {PARENT}\r\n"), r#"{"type":"a"}"#, vec![vec![parent]]),
        ("/v1/events", format!("{json}traceparent: {PARENT}-\r\ntracestate: a=1\r\n"), r#"{"type":"a"}"#, vec![vec![]]),
        ("/v1/events", format!("{json}{trace}traceparent: {PARENT}\r\n"), r#"{"type":"a"}"#, vec![vec![]]),
        ("/v1/events", format!("{json}{binary}"), "7", vec![own.to_vec()]),
        ("/v1/events", format!("{json}{binary}{trace}"), "7", vec![[&own[..], &[parent, state]].concat()]),
        ("/one", format!("{json}{trace}"), r#"{"id":1}"#, vec![vec![("ce_type", "alert"), parent, state]]),
    ] {
        let reply = daemon.send(of_page(&format!("POST {path}"), &fields, body)).await;
        assert_eq!(reply.status, 200, "{path} {fields}: {}", reply.body);
        let headers = std::mem::take(&mut daemon.log.lock().unwrap().headers);
        let owned = |headers: Vec<(&str, &str)>| -> Vec<String> {
            headers.into_iter().map(|(name, value)| format!("{name}={value}")).collect()
        };
        assert_eq!(headers, expected.into_iter().map(owned).collect::<Vec<_>>(), "{path} {fields}");
    }
    // One that is wrong, and a body that cannot be split.
    for body in [r#"[{"type":"a"},7]"#, "[{"] {
        let reply = daemon.send(of_page("POST /v1/events", &format!("{json}{trace}"), body)).await;
        assert_eq!(reply.status, 200, "{}", reply.body);
        let letter = daemon.log.lock().unwrap().letters.pop().unwrap();
        let expected = [parent, state].map(|(name, value)| (name.to_owned(), Some(value.as_bytes().to_vec())));
        assert_eq!(letter.headers, expected, "{body}");
    }
    until(|| daemon.metric("ingestd_in_flight_bytes") == "0").await;
}
