//! Wrong events that are kept as dead letters.

use super::*;

#[actix::test]
async fn what_is_wrong_is_kept_and_the_answer_is_200() {
    let daemon = Daemon::start(Queue::Stores, HttpConfig::default());
    daemon.quarantine(Letters::Kept);
    let reply = daemon.post_json(MIXED).await;
    let json = reply.json();
    assert_eq!((reply.status, reply.errors(), &json["ids"]), (200, errors(&[WRONG]), &json!(["1", "2"])));
    let counts = (&json["accepted"], &json["rejected"], &json["quarantined"]);
    assert_eq!(counts, (&json!(2), &json!(0), &json!(1)));
    assert!(json["errors"][0]["message"].as_str().unwrap().contains("missing"));
    let kept = |reason: &str, value: &str| (reason.to_owned(), value.to_owned());
    assert_eq!(daemon.letters(), [kept("missing_type", r#"{"no":1}"#)]);
    assert_eq!(daemon.log.lock().unwrap().records.len(), 2);
    assert_eq!(daemon.metric("ingestd_events_quarantined_total{reason=\"missing_type\"}"), "1");
    assert_eq!(daemon.metric("ingestd_events_rejected_total{reason=\"missing_type\"}"), "absent");

    // All of them, and bodies that cannot be split.
    for (body, code) in
        [("[7]", "not_an_object"), ("{\"type\":", "invalid_json"), ("17", "not_an_object"), (" ", "invalid_json")]
    {
        let reply = daemon.post_json(body).await;
        let json = reply.json();
        assert_eq!(
            (reply.status, reply.errors(), &json["quarantined"]),
            (200, errors(&[(0, code)]), &json!(1)),
            "{body}"
        );
        let value = if body == "[7]" { "7" } else { body };
        assert_eq!(daemon.letters().last(), Some(&kept(code, value)));
    }
    let letters = daemon.letters().len();
    // What does not concern the content is as ever.
    daemon.post("text/plain", "x").await.problem(415);
    daemon.change_limits(|http| http.max_events = 1);
    daemon.post_json(MIXED).await.problem(413);
    assert_eq!(daemon.post_json(r#"{"type":"a"}"#).await.json().get("quarantined"), None);
    assert_eq!(daemon.letters().len(), letters);
    daemon.log.lock().unwrap().letters.clear();
    until(|| daemon.metric("ingestd_in_flight_bytes") == "0").await;
}

#[actix::test]
async fn a_letter_of_a_source_has_what_is_fixed_and_what_could_be_found_beside_it() {
    let daemon = Daemon::start(Queue::Stores, HttpConfig::default());
    daemon.quarantine(Letters::Kept);
    daemon.change_limits(|http| {
        let source = json!([{ "path": "/hook", "type": { "fixed": "alert" }, "client": "/who", "answer": "ok" }]);
        http.source = serde_json::from_value(source).unwrap();
    });
    for (body, value, headers) in [
        (r#"{"who":"w","a":1,"a":2}"#, r#"{"who":"w","a":1,"a":2}"#, &["ce_source=w", "ce_type=alert"][..]),
        (r#" {"who":"w","a":NaN}"#, r#"{"who":"w","a":NaN}"#, &["ce_source=w", "ce_type=alert"]),
        ("data=*", "data=*", &["ce_type=alert"]),
    ] {
        let reply = daemon.post_at("/hook", "", body.as_bytes()).await;
        assert_eq!((reply.status, &*reply.body), (200, "ok"), "{body}");
        assert_eq!(daemon.letters().last().unwrap(), &("invalid_json".to_owned(), value.to_owned()));
        let log = daemon.log.lock().unwrap();
        let letter = log.letters.last().unwrap();
        let found = letter
            .headers
            .iter()
            .map(|(name, value)| format!("{name}={}", String::from_utf8_lossy(value.as_deref().unwrap_or_default())));
        assert_eq!(found.collect::<Vec<_>>(), headers, "{body}");
    }
    let strict = daemon.post_at("/hook", "Prefer: handling=strict\r\n", br#"{"who":NaN}"#).await;
    strict.problem(400);
    assert_eq!(daemon.letters().len(), 3);
}

#[actix::test]
async fn a_letter_that_is_not_kept_is_503_and_none_of_the_events_is_stored() {
    let daemon = Daemon::start(Queue::Stores, HttpConfig::default());
    daemon.quarantine(Letters::Refused);
    let reply = daemon.post_json(MIXED).await;
    let detail = reply.problem(503);
    assert!(detail.contains("the disk is full") && detail.contains("event.on_invalid"), "{detail}");
    assert!(reply.header("retry-after").is_some());
    assert!(daemon.log.lock().unwrap().records.is_empty());
    assert_eq!(daemon.post_json(r#"{"type":"a"}"#).await.status, 200, "without a wrong event nothing is to be kept");
}

#[actix::test]
async fn letters_stand_when_the_events_beside_them_fail_and_the_answer_says_so() {
    let daemon = Daemon::start(Queue::Refuses, HttpConfig::default());
    daemon.quarantine(Letters::Kept);
    let detail = daemon.post_json(MIXED).await.problem(503);
    assert!(detail.contains("the log is full") && detail.contains("1 dead letter(s) are kept already"), "{detail}");
    assert_eq!(daemon.letters().len(), 1);
    // Each by itself: only the events are to be sent again.
    let reply = daemon.prefer("lenient", MIXED).await;
    let json = reply.json();
    assert_eq!(
        (reply.status, &json["accepted"], &json["rejected"], &json["quarantined"]),
        (207, &json!(0), &json!(0), &json!(1))
    );
    assert_eq!(reply.errors(), errors(&[(0, "unavailable"), WRONG, (2, "unavailable")]));
    assert!(json["errors"][0]["message"].as_str().unwrap().contains("it was not stored"));
}

#[actix::test]
async fn a_strict_request_is_stored_nowhere_not_in_quarantine_either() {
    let daemon = Daemon::start(Queue::Stores, HttpConfig::default());
    daemon.quarantine(Letters::Kept);
    let reply = daemon.prefer("strict", MIXED).await;
    assert_eq!((reply.status, reply.json()["rejected"].clone()), (400, json!(1)));
    daemon.prefer("strict", "{broken").await.problem(400);
    assert!(daemon.letters().is_empty() && daemon.log.lock().unwrap().records.is_empty());
}

#[actix::test]
async fn what_is_larger_than_a_letter_may_be_is_rejected_and_says_so() {
    let daemon = Daemon::start(Queue::Stores, HttpConfig::default());
    daemon.quarantine(Letters::TooLarge(&[1]));
    let reply = daemon.post_json(r#"[{"no":1},{"no":2}]"#).await;
    let json = reply.json();
    assert_eq!((reply.status, &json["rejected"], &json["quarantined"]), (207, &json!(1), &json!(1)));
    let message = |index: usize| json["errors"][index]["message"].as_str().unwrap();
    assert!(!message(0).contains("not quarantined") && message(1).contains("not quarantined"), "{json}");
    assert_eq!(daemon.metric("ingestd_events_rejected_total{reason=\"missing_type\"}"), "1");
    daemon.quarantine(Letters::TooLarge(&[0]));
    let reply = daemon.post_json("{broken").await;
    assert_eq!((reply.status, reply.json()["rejected"].clone()), (400, json!(1)));
}

impl Daemon {
    /// The headers of the last letter.
    fn beside_letter(&self) -> Vec<(String, String)> {
        let log = self.log.lock().unwrap();
        let headers = log.letters.last().unwrap().headers.iter();
        headers.map(|(name, value)| (name.clone(), String::from_utf8(value.clone().unwrap()).unwrap())).collect()
    }

    /// From now on it may be a broker that finds events too large.
    fn on_kafka(&self) {
        let mut config = Config::clone(&self.config.load());
        config.queue.kind = QueueKind::Kafka;
        self.config.store(Arc::new(config));
    }
}

#[actix::test]
async fn what_stands_beside_a_wrong_event_is_kept_with_it() {
    const BINARY: &str = "ce-specversion: 1.0\r\nce-type: t\r\nce-id: 1\r\nce-source: /s\r\n";
    const JSON: &str = "Content-Type: application/json\r\n";
    let attributes = [("ce_id", "1"), ("ce_source", "/s"), ("ce_specversion", "1.0"), ("ce_type", "t")];
    let json = ("content-type", "application/json");
    let structured = ("content-type", "application/cloudevents+json");
    let batch = ("content-type", "application/cloudevents-batch+json");
    let daemon = Daemon::start(Queue::Stores, HttpConfig::default());
    daemon.quarantine(Letters::Kept);
    for (fields, body, code, beside) in [
        (format!("{BINARY}{JSON}"), r#"{"a":1,"a":2}"#, "invalid_json", [&attributes[..], &[json]].concat()),
        (
            format!("{BINARY}ce-my_ext: x\r\n"),
            "{}",
            "invalid_cloudevent",
            [&attributes[..], &[("ingestd-wrong", "ce-my_ext")]].concat(),
        ),
        (
            "Content-Type: application/cloudevents+json; charset=utf-8\r\n".to_owned(),
            r#"{"specversion":"1.0","data":NaN}"#,
            "invalid_json",
            vec![structured],
        ),
        ("Content-Type: application/cloudevents-batch+json\r\n".to_owned(), "[{", "invalid_json", vec![batch]),
        (JSON.to_owned(), "{", "invalid_json", vec![]),
    ] {
        let reply = daemon.post_at("/v1/events", &fields, body.as_bytes()).await;
        assert_eq!((reply.status, reply.errors()), (200, errors(&[(0, code)])), "{body}");
        assert_eq!(daemon.letters().last(), Some(&(code.to_owned(), body.to_owned())));
        let beside: Vec<_> = beside.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        assert_eq!(daemon.beside_letter(), beside, "{body}");
    }
}

#[actix::test]
async fn an_id_of_another_shape_that_is_wrong_is_named_beside_its_letter() {
    let daemon = Daemon::start(Queue::Stores, other_shapes());
    daemon.quarantine(Letters::Kept);
    let reply = daemon.post_at("/hook", "", br#"{"batch":[{"kind":"a","id":"","who":7}]}"#).await;
    assert_eq!((reply.status, reply.errors()), (200, errors(&[(0, "invalid_id")])));
    let beside = daemon.beside_letter();
    assert!(beside.contains(&("ingestd-wrong".to_owned(), "ce_id".to_owned())), "{beside:?}");
    assert!(beside.contains(&("ce_type".to_owned(), "a".to_owned())), "{beside:?}");
}

#[actix::test]
async fn what_a_broker_finds_too_large_is_a_letter_too_or_says_why_it_is_none() {
    let daemon = Daemon::start(Queue::FindsTooLarge(&[1]), HttpConfig::default());
    daemon.on_kafka();
    let body = r#"[{"type":"a","event_id":"1"},{"no":1},{"type":"b","timestamp":-1},{"type":"c","event_id":"3"}]"#;
    let kept = |reason: &str, value: &str| (reason.to_owned(), value.to_owned());
    daemon.quarantine(Letters::Kept);
    let reply = daemon.post_json(body).await;
    let json = reply.json();
    assert_eq!((reply.status, &json["rejected"], &json["quarantined"]), (200, &json!(0), &json!(2)), "{json}");
    assert_eq!((&json["ids"], reply.errors()), (&json!(["1", "3"]), errors(&[(1, "missing_type"), (2, "too_large")])));
    let letters = [kept("missing_type", r#"{"no":1}"#), kept("too_large", r#"{"type":"b","timestamp":-1}"#)];
    assert_eq!(daemon.letters(), letters);
    // It is not stored, so nothing is said of its time.
    assert_eq!(json.get("warnings"), None);
    assert_eq!(daemon.metric("ingestd_events_warned_total{reason=\"invalid_timestamp\"}"), "absent");
    for code in ["missing_type", "too_large"] {
        assert_eq!(daemon.metric(&format!("ingestd_events_quarantined_total{{reason=\"{code}\"}}")), "1");
    }

    for (letters, words) in [(Letters::TooLarge(&[0]), "than a dead letter may be"), (Letters::Refused, "be written")] {
        daemon.quarantine(letters);
        let reply = daemon.post_json(r#"[{"type":"a","event_id":"1"},{"type":"b"}]"#).await;
        let json = reply.json();
        assert_eq!((reply.status, &json["ids"], &json["rejected"]), (207, &json!(["1"]), &json!(1)), "{json}");
        assert!(json["errors"][0]["message"].as_str().unwrap().contains(words), "{json}");
    }
    assert_eq!(daemon.letters().len(), 2);
    daemon.log.lock().unwrap().letters.clear();
    until(|| daemon.metric("ingestd_in_flight_bytes") == "0").await;
}

#[actix::test]
async fn letters_of_a_request_that_is_alone_may_exceed_what_all_may_hold() {
    let limit = ByteSize(1 << 20);
    let http = HttpConfig { max_body: limit, max_in_flight: limit, ..HttpConfig::default() };
    let daemon = Daemon::start(Queue::Stores, http);
    daemon.quarantine(Letters::Kept);
    let wrong = format!("{{\"no\":\"{}\"}}", "x".repeat(700));
    let body = format!("[{}]", vec![wrong; 1000].join(","));
    let reply = daemon.post_json(&body).await;
    assert_eq!((reply.status, &reply.json()["quarantined"]), (200, &json!(1000)));
    daemon.log.lock().unwrap().letters.clear();
    until(|| daemon.metric("ingestd_in_flight_bytes") == "0").await;
}

#[actix::test]
async fn stopping_finishes_what_is_in_flight_and_takes_no_more() {
    let daemon = Arc::new(Daemon::start(Queue::Waits, HttpConfig::default()));
    let in_flight = actix_rt::spawn({
        let daemon = daemon.clone();
        async move { daemon.post_json(r#"{"type":"a"}"#).await }
    });
    until(|| !daemon.log.lock().unwrap().waiting.is_empty()).await;
    let draining = daemon.health.gate.reason(Closed::Draining);
    draining.set("stopping".to_owned());
    let stopped = actix_rt::spawn(daemon.ingestor.send(StopAccepting));
    let publish = daemon.log.lock().unwrap().waiting.pop().unwrap();
    *daemon.queue.lock().unwrap() = Queue::Stores;
    publish.ticket.durable(0..1);
    drop(publish);
    assert_eq!(in_flight.await.unwrap().status, 200);
    stopped.await.unwrap().unwrap();
    assert!(TcpStream::connect(daemon.address).is_err());
}

#[test]
fn a_taken_port_is_one_sentence_that_names_the_key() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = taken.local_addr().unwrap().to_string();
    let error = bind(&HttpConfig { listen: listen.clone(), ..HttpConfig::default() }).unwrap_err();
    let message = format!("{error:#}");
    assert!(message.contains("http.listen") && message.contains(&listen) && !message.contains('\n'), "{message}");
}
