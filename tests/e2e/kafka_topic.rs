//! What operators do to a Kafka topic while the daemon reads it.

use crate::support::{PATIENCE, archive::Archive, events::Ledger, eventually, oracle::Oracle, services::services};

#[test]
fn a_topic_that_is_created_anew_while_it_is_read_is_never_taken_for_the_old_one() {
    let Some(services) = services() else { return };
    let (of_old, of_new) = (Ledger::new(), Ledger::new());
    services.create_bucket("replaced");
    let mut old = Oracle::new(&of_old, Archive::new(services.bucket("replaced")));
    let daemon = services.setup("replaced").set("queue.kafka.partitions", "1").start();
    of_old.post(&daemon.events_url(), 5, 1, PATIENCE);
    old.settle(&[&daemon], PATIENCE);

    services.recreate_topic("replaced", 1);
    of_new.post(&daemon.events_url(), 50, 1, PATIENCE);
    let halted = eventually("both sinks halt", PATIENCE, || {
        let readiness = daemon.readiness();
        (readiness["halted"].as_array()?.len() == 2).then_some(readiness)
    });
    for halted in halted["halted"].as_array().expect("a list") {
        assert!(halted["reason"].as_str().is_some_and(|reason| reason.contains("another topic")), "{halted}");
    }
    // An event of the new topic would be one that was never sent.
    old.settle_archive(PATIENCE);
    assert_eq!(old.archived(), 5);
    old.check_documents(&services.documents("replaced", "aggregate_events_by_type"));
    daemon.terminate();
}
