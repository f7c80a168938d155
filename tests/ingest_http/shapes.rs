//! Events of other shapes: sources, and logs.

use super::*;

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

#[actix::test]
async fn logs_are_refused_in_their_own_words_where_the_disk_is_full() {
    let daemon = Daemon::start(Queue::Stores, other_shapes());
    let full = daemon.health.gate.reason(Closed::DiskFull);
    full.set("90 %".to_owned());
    let closed = daemon.post_at("/v1/logs", "Content-Type: application/json\r\n", b"{}").await;
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
