//! What befalls the topic itself: deleted and made anew, and records that retention removed before they were read.

use mongodb::bson::Document;
use serde_json::Value;

use crate::support::{
    PATIENCE,
    archive::Archive,
    daemon::Daemon,
    events::Ledger,
    eventually,
    oracle::Oracle,
    services::{Services, services},
};

/// The halted partitions of one sink, when there are any.
fn halted(daemon: &Daemon, sink: &str) -> Option<Value> {
    let readiness = daemon.try_readiness()?;
    readiness["halted"].as_array()?.iter().find(|halted| halted["sink"] == sink).cloned()
}

#[test]
fn a_topic_that_was_deleted_and_made_anew_halts_visibly_and_a_new_generation_goes_on_beside_the_old_one() {
    let Some(services) = services() else { return };
    let name = "recreated";
    services.create_bucket(name);
    let setup = services.setup(name).set("queue.kafka.partitions", "1");
    let mut daemon = setup.clone().start();
    let before = Ledger::new();
    let mut oracle = Oracle::new(&before, Archive::new(services.bucket(name)));
    before.post(&daemon.events_url(), 1_000, 2, PATIENCE);
    oracle.settle(&[&daemon], PATIENCE);
    // An event that was sent again may stand twice.
    let old = stored(&services, name);
    let counted = services.documents(name, "aggregate_events_by_type");

    // While it runs; it may see the new topic at once, or only at its next start.
    services.delete_topic(name);
    services.create_topic(name, 1);
    daemon.kill();
    daemon.restart();
    let after = Ledger::new();
    after.post(&daemon.events_url(), 1_500, 2, PATIENCE);
    let new = stored(&services, name);
    for sink in ["archive", "aggregate"] {
        let halted = eventually(&format!("the {sink} halts"), PATIENCE, || halted(&daemon, sink));
        let action = halted["do"].as_str().expect("what to do");
        assert!(action.contains("queue.generation"), "{halted}");
    }
    let readiness = daemon.readiness();
    assert_eq!((&readiness["ready"], &readiness["degraded"]), (&true.into(), &true.into()), "{readiness}");
    oracle.refresh();
    assert_eq!(oracle.archived(), old, "nothing of the new topic is mixed into the old one's chain");
    assert_eq!(services.documents(name, "aggregate_events_by_type"), counted, "nor into its buckets");
    daemon.signal("TERM");
    assert_eq!(daemon.wait_exit(PATIENCE), 0);

    // As the message says.
    let daemon = setup.set("queue.generation", "1").start();
    let goes_on = || daemon.try_metric("ingestd_events_archived_total", "");
    eventually("the new topic is archived", PATIENCE, || (goes_on()? >= new as f64).then_some(()));
    let goes_on = || daemon.try_metric("ingestd_events_aggregated_total", "");
    eventually("the new topic is counted", PATIENCE, || (goes_on()? >= new as f64).then_some(()));
    oracle.refresh();
    assert_eq!(oracle.archived(), old + new, "the old objects stand, the new ones beside them");
    daemon.terminate();
    let buckets = services.documents(name, "aggregate_events_by_type");
    let (first, second): (Vec<_>, Vec<_>) =
        buckets.iter().partition(|bucket| bucket.get_i64("generation").expect("generation") == 0);
    assert_eq!((count(first), count(second)), (old, new));
}

#[test]
fn records_that_expired_before_they_were_read_are_reported_with_their_range_and_skipped_only_when_told() {
    let Some(services) = services() else { return };
    let name = "expired";
    services.create_bucket(name);
    let ingest = services.setup(name).set("queue.kafka.partitions", "1").roles("ingest").start();
    let worker = services.setup(name).roles("worker").config("[archive]\non_gap = \"halt\"\n");
    let mut worker = worker.start();
    let ledger = Ledger::new();
    let mut oracle = Oracle::new(&ledger, Archive::new(services.bucket(name)));
    ledger.post(&ingest.events_url(), 500, 1, PATIENCE);
    oracle.settle(&[&worker], PATIENCE);
    worker.terminate();
    // An event that was sent again may stand twice.
    let read = stored(&services, name);

    ledger.post(&ingest.events_url(), 500, 1, PATIENCE);
    let expired = read + 300;
    services.delete_records(name, 0, expired as i64);
    worker.restart();
    let halted = eventually("the archive halts", PATIENCE, || halted(&worker, "archive"));
    let reason = halted["reason"].as_str().expect("a reason");
    let names = |offset: usize| reason.contains(&offset.to_string());
    assert!(names(read) && (names(expired - 1) || names(expired)), "the range: {halted}");
    assert!(halted["do"].as_str().expect("what to do").contains("on_gap"), "{halted}");
    // Counting goes on behind them, and says what is missing.
    let lost = |sink: &str| worker.try_metric("ingestd_records_lost_total", &format!("sink=\"{sink}\""));
    eventually("the aggregates' loss is told", PATIENCE, || (lost("aggregate")? == 300.0).then_some(()));
    oracle.refresh();
    assert_eq!(oracle.archived(), read, "nothing is skipped unasked");

    worker.write_config("[archive]\non_gap = \"skip\"\n");
    let reply = worker.reload();
    assert_eq!(reply.status, 200, "{reply:?}");
    oracle.expect_gap(0, read as u64, expired as u64);
    eventually("the archive goes on", PATIENCE, || {
        oracle.refresh();
        (oracle.archived() == stored(&services, name) - 300).then_some(())
    });
    assert_eq!(lost("archive"), Some(300.0));
    ledger.post(&ingest.events_url(), 500, 1, PATIENCE);
    eventually("and on", PATIENCE, || {
        oracle.refresh();
        (oracle.archived() == stored(&services, name) - 300).then_some(())
    });
    let names = |line: &&str| [read, expired].iter().all(|offset| line.contains(&offset.to_string()));
    let said = worker.log().lines().filter(|line| line.contains("removed")).filter(names).count();
    assert!(said > 0, "the log names the range");
    worker.terminate();
    ingest.terminate();
    // What is lost is what retention took, and nothing else.
    assert_eq!(count(&services.documents(name, "aggregate_events_by_type")), stored(&services, name) - 300);
    assert_eq!(oracle.last_archived() + 1, stored(&services, name) as u64);
}

/// Records that were written to the topic so far.
fn stored(services: &Services, topic: &str) -> usize {
    let written: i64 = services.watermarks(topic).into_iter().map(|(_, _, end)| end).sum();
    usize::try_from(written).expect("offsets are not negative")
}

fn count<'a>(buckets: impl IntoIterator<Item = &'a Document>) -> usize {
    let counted: i64 = buckets.into_iter().map(|bucket| bucket.get_i64("count").expect("count")).sum();
    usize::try_from(counted).expect("counts are not negative")
}
