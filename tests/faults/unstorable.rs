//! What MongoDB refuses however often it is sent: documents that are too large for it, and keys that are taken.

use mongodb::bson::{Document, doc};

use crate::{
    load,
    support::{
        PATIENCE,
        archive::Archive,
        daemon::{Daemon, Setup},
        events::Ledger,
        eventually,
        log::Evidence,
        measured::DEFINITIONS,
        oracle::Oracle,
        services::{Exclusive, services},
    },
};

const BUCKETS: &str = "aggregate_events_by_type";
const MIB: usize = 1 << 20;
/// Of a document of MongoDB.
const LARGEST: usize = 16 * MIB;

/// A daemon with an embedded log whose store is MongoDB, and that takes large events.
fn setup(services: &Exclusive, name: &str) -> Setup {
    services
        .setup(name)
        .config(DEFINITIONS)
        .without("archive.url")
        .without("archive.options.endpoint")
        .without("archive.options.access_key_id")
        .without("archive.options.secret_access_key")
        .without("archive.options.region")
        .set("queue.kind", "embedded")
        .set("queue.topic", "events")
        .without("queue.kafka.brokers")
        .without("queue.kafka.group")
        .set("queue.embedded.retention", "1h")
        .set("store.events", "true")
        .set("http.max_event", "40MiB")
        .set("http.max_body", "48MiB")
        .set("http.max_in_flight", "256MiB")
        .set("http.request_timeout", "60s")
}

fn audit(services: &Exclusive, name: &str, daemon: &Daemon, oracle: &mut Oracle<'_>) {
    let evidence = Evidence::embedded_log(daemon.data(), |collection| services.documents(name, collection));
    oracle.audit(&evidence).assert_clean();
}

fn event(client: usize, padding: usize) -> Vec<u8> {
    let [client, padding] = [client, padding].map(|length| "x".repeat(length));
    format!(r#"{{"type":"large","client_id":"{client}","padding":"{padding}"}}"#).into_bytes()
}

#[test]
fn an_event_that_is_too_large_for_a_document_is_counted_without_it_or_a_dead_letter_and_all_else_goes_on() {
    let Some(services) = services() else { return };
    let name = "toolarge";
    let daemon = setup(&services, name).start();
    let ledger = Ledger::new();
    let mut oracle = Oracle::new(&ledger, Archive::local(&daemon.data().join("archive")));
    // Whether the document holds the event.
    let kept = [
        (event(10, 14 * MIB), true),
        // The event fits, and the document that also has its client does not.
        (event(8 * MIB, 10), false),
        (event(10, 17 * MIB), false),
    ];
    // Not even the fields beside the event fit.
    let refused = event(LARGEST, 10);
    load::during(&ledger, &daemon.events_url(), || {
        for (event, _) in &kept {
            assert_eq!(daemon.post(None, event).status, 200);
            oracle.expect_foreign(event);
        }
        assert_eq!(daemon.post(None, &refused).status, 200);
        oracle.expect_refused(&refused);
        let letters = || daemon.try_metric("ingestd_events_dead_lettered_total", "");
        eventually("a dead letter", PATIENCE, || (letters()? >= 1.0).then_some(()));
    });
    oracle.settle(&[&daemon], PATIENCE);
    assert_eq!(daemon.readiness()["degraded"], false);
    let letters = daemon.get("/v1/dead-letters").json();
    let letters = letters["dead_letters"].as_array().expect("letters");
    assert_eq!((letters.len(), &letters[0]["reason"]), (1, &"refused_by_store".into()), "{letters:?}");
    assert!(letters[0]["message"].as_str().is_some_and(|it| it.contains(&LARGEST.to_string())), "{letters:?}");
    daemon.terminate();
    let mut large: Vec<Document> = services.documents(name, "events");
    large.retain(|event| event.get_str("type").is_ok_and(|it| it == "large"));
    let offset = |id: &str| id.rsplit_once('/').and_then(|(_, offset)| offset.parse::<u64>().ok());
    large.sort_by_key(|event| offset(event.get_str("_id").expect("an id is text")));
    let held: Vec<_> = large.iter().map(|it| (it.contains_key("event"), it.contains_key("omitted"))).collect();
    assert_eq!(held, kept.map(|(_, kept)| (kept, !kept)));
    audit(&services, name, &daemon, &mut oracle);
}

#[test]
fn a_bucket_whose_key_is_taken_halts_its_partition_visibly_and_counting_goes_on_where_it_stopped() {
    let Some(services) = services() else { return };
    let name = "takenkeys";
    let mut daemon = setup(&services, name).start();
    let ledger = Ledger::new();
    let mut oracle = Oracle::new(&ledger, Archive::local(&daemon.data().join("archive")));
    ledger.post(&daemon.events_url(), 500, 2, PATIENCE);
    oracle.settle(&[&daemon], PATIENCE);

    // A unique index of an operator: an event that it refuses is a dead letter.
    let unique = doc! { "key": { "event_id": 1 }, "name": "mine", "unique": true };
    services.mongodb_command(name, doc! { "createIndexes": "events", "indexes": [unique] });
    let [first, second] = ["1", "2"].map(|n| format!(r#"{{"type":"unique","event_id":"same","m":{n}}}"#).into_bytes());
    for event in [&first, &second] {
        assert_eq!(daemon.post(None, event).status, 200);
    }
    oracle.expect_foreign(&first);
    oracle.expect_refused(&second);
    oracle.settle(&[&daemon], PATIENCE);
    assert_eq!(daemon.metric("ingestd_events_dead_lettered_total"), Some(1.0));

    // Another program's document has the id of a bucket.
    let id = r#"events/0/1795420800000/["taken","t"]"#;
    services.mongodb_command(name, doc! { "insert": BUCKETS, "documents": [{ "_id": id, "mine": true }] });
    let event = br#"{"type":"t","client_id":"taken","timestamp":"2026-11-23T08:00:00Z"}"#;
    assert_eq!(daemon.post(None, event).status, 200);
    oracle.expect_foreign(event);
    let halted = eventually("the aggregates halt", PATIENCE, || {
        let halted = daemon.try_readiness()?["halted"].as_array()?.first()?.clone();
        (halted["sink"] == "aggregate").then_some(halted)
    });
    assert!(halted["reason"].as_str().is_some_and(|it| it.contains(id) && it.contains(BUCKETS)), "{halted}");
    assert!(halted["do"].as_str().is_some_and(|it| it.contains("remove")), "{halted}");
    ledger.post(&daemon.events_url(), 500, 2, PATIENCE);
    oracle.settle_archive(PATIENCE);
    let readiness = daemon.readiness();
    assert_eq!((&readiness["ready"], &readiness["degraded"]), (&true.into(), &true.into()), "{readiness}");
    daemon.terminate();

    // As the message says.
    services.mongodb_command(name, doc! { "delete": BUCKETS, "deletes": [{ "q": { "_id": id }, "limit": 1 }] });
    daemon.restart();
    ledger.post(&daemon.events_url(), 500, 2, PATIENCE);
    oracle.settle(&[&daemon], PATIENCE);
    assert_eq!(daemon.readiness()["degraded"], false);
    daemon.terminate();
    audit(&services, name, &daemon, &mut oracle);
}
