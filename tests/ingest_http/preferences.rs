//! `Prefer: handling=strict` and `handling=lenient`.

use super::*;

#[actix::test]
async fn of_a_strict_request_with_a_wrong_event_nothing_is_stored() {
    let daemon = Daemon::start(Queue::Stores, HttpConfig::default());
    let reply = daemon.prefer("strict", MIXED).await;
    let json = reply.json();
    assert_eq!((reply.status, reply.applied()), (400, Some("handling=strict")));
    assert_eq!((&json["accepted"], &json["rejected"], &json["ids"]), (&json!(0), &json!(1), &json!([])));
    assert_eq!(reply.errors(), errors(&[WRONG]));
    assert!(daemon.log.lock().unwrap().records.is_empty());
    assert_eq!(daemon.metric("ingestd_events_rejected_total{reason=\"missing_type\"}"), "1");
    assert_eq!(daemon.metric("ingestd_events_accepted_total"), "0");

    let reply = daemon.prefer("strict", r#"[{"type":"a"},{"type":"b"}]"#).await;
    assert_eq!((reply.status, reply.applied()), (200, Some("handling=strict")));
    let reply = daemon.prefer("strict", "[]").await;
    assert_eq!((reply.status, reply.applied()), (200, Some("handling=strict")));
    let reply = daemon.prefer("strict", "{").await;
    reply.problem(400);
    assert_eq!(reply.applied(), Some("handling=strict"));
}

#[actix::test]
async fn a_strict_request_of_which_the_queue_stored_a_part_is_not_said_to_be_one() {
    let daemon = Daemon::start(Queue::FindsTooLarge(&[1]), HttpConfig::default());
    let reply = daemon.prefer("strict", r#"[{"type":"a","event_id":"1"},{"type":"b"}]"#).await;
    assert_eq!((reply.status, reply.applied(), &reply.json()["ids"]), (207, None, &json!(["1"])));
    assert_eq!(reply.errors(), errors(&[(1, "too_large")]));
    // Where nothing was stored it holds.
    *daemon.queue.lock().unwrap() = Queue::FindsTooLarge(&[0]);
    let reply = daemon.prefer("strict", r#"{"type":"a"}"#).await;
    assert_eq!(
        (reply.status, reply.applied(), reply.errors()),
        (400, Some("handling=strict"), errors(&[(0, "too_large")]))
    );
}

#[actix::test]
async fn each_event_of_a_lenient_request_has_its_own_result() {
    let daemon = Daemon::start(Queue::GoesAway, HttpConfig::default());
    let reply = daemon.prefer("lenient", MIXED).await;
    let json = reply.json();
    assert_eq!((reply.status, reply.applied()), (207, Some("handling=lenient")));
    assert_eq!((&json["accepted"], &json["rejected"], &json["ids"]), (&json!(1), &json!(1), &json!(["1"])));
    assert_eq!(reply.errors(), errors(&[WRONG, (2, "unavailable")]));
    assert!(json["errors"][0].get("retry").is_none());
    assert_eq!(json["errors"][1]["retry"], true);
    let message = json["errors"][1]["message"].as_str().unwrap();
    assert!(message.contains("no broker answers") && message.contains("twice"), "{message}");
    assert_eq!(reply.header("retry-after"), Some("5"));
    assert_eq!(daemon.metric("ingestd_events_accepted_total"), "1");
    assert_eq!(daemon.metric("ingestd_events_produced_unanswered_total"), "0");
    assert_eq!(daemon.metric("ingestd_events_rejected_total{reason=\"missing_type\"}"), "1");

    // Where nothing is durable it is 503 for the whole.
    *daemon.queue.lock().unwrap() = Queue::Refuses;
    let reply = daemon.prefer("lenient", MIXED).await;
    assert!(reply.problem(503).contains("nothing of this request was stored"));
    assert_eq!(reply.applied(), Some("handling=lenient"));
    *daemon.queue.lock().unwrap() = Queue::Stores;
    let reply = daemon.prefer("lenient", MIXED).await;
    assert_eq!((reply.status, reply.errors(), reply.header("retry-after")), (207, errors(&[WRONG]), None));
}

#[actix::test]
async fn what_is_durable_when_the_time_of_a_lenient_request_is_over_is_accepted() {
    let http = HttpConfig { request_timeout: Duration::from_millis(200), ..HttpConfig::default() };
    let daemon = Daemon::start(Queue::StoresOneAndWaits, http);
    let body = r#"[{"type":"a","event_id":"1"},{"type":"b"},{"type":"c"}]"#;
    let reply = daemon.prefer("lenient", body).await;
    assert_eq!((reply.status, &reply.json()["ids"]), (207, &json!(["1"])));
    assert_eq!(reply.errors(), errors(&[(1, "unavailable"), (2, "unavailable")]));
    assert!(reply.json()["errors"][0]["message"].as_str().unwrap().contains("http.request_timeout"));
    assert_eq!(daemon.metric("ingestd_events_accepted_total"), "1");
    let late = daemon.log.lock().unwrap().waiting.pop().unwrap();
    late.ticket.durable(1..2);
    late.ticket.unavailable(2..3, "given up");
    assert_eq!(daemon.metric("ingestd_events_produced_unanswered_total"), "1", "the first one was answered");

    *daemon.queue.lock().unwrap() = Queue::Waits;
    assert!(daemon.prefer("lenient", body).await.problem(503).contains("not known"));
    *daemon.queue.lock().unwrap() = Queue::StoresOneAndWaits;
    assert!(daemon.post_json(body).await.problem(503).contains("not known"), "without the preference as before");
}

#[actix::test]
async fn refusals_say_which_preference_they_were_made_by() {
    let daemon = Daemon::start(Queue::Stores, HttpConfig::default());
    let full = daemon.health.gate.reason(Closed::DiskFull);
    full.set("71 % used".to_owned());
    for (handling, applied) in [("lenient", Some("handling=lenient")), ("strict", Some("handling=strict")), ("x", None)]
    {
        let reply = daemon.prefer(handling, r#"{"type":"a"}"#).await;
        reply.problem(503);
        assert_eq!(reply.applied(), applied);
    }
    drop(full);
    assert_eq!(daemon.post_json(r#"{"type":"a"}"#).await.applied(), None);
    assert_eq!(daemon.prefer("perhaps", MIXED).await.status, 207, "an unknown value changes nothing");
}
