//! A worker freezes with requests on the wire, and its partitions go to another one, which archives and counts the same
//! records. Then those requests arrive: a PUT under a name that is taken, and counts that are counted. What stops them
//! are the create-only PUT and the fence, nothing else: they were sent by the owner of the partitions, in good order.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use crate::{
    load,
    support::{
        PATIENCE, StopOnDrop, archive::Archive, events::Ledger, eventually, log::Evidence, measured::DEFINITIONS,
        oracle::Oracle, services::services,
    },
    wire::Wire,
};

/// How a flush of counts begins: the BSON of `update: "aggregate_events_by_type"`.
const UPDATE: &str = "\u{2}update\0\u{19}\0\0\0aggregate_events_by_type\0";

#[test]
fn requests_of_a_zombie_that_arrive_after_its_successors_overwrite_and_double_nothing() {
    let Some(services) = services() else { return };
    let topic = "faults-zombies";
    services.create_bucket(topic);
    let (bucket, database) = (Wire::to(services.s3.address()), Wire::to(services.mongodb.address()));
    let setup = |roles| services.setup(topic).config(DEFINITIONS).roles(roles).set("store.events", "true");
    let ingest = setup("ingest").start();
    // The successor cuts its segments elsewhere.
    let successor = setup("worker").set("spool.max_age", "2500ms").start();
    let zombie = setup("worker")
        .set("archive.options.endpoint", format!("http://{}", bucket.address()))
        .set("store.url", format!("mongodb://{}/?directConnection=true", database.address()))
        .start();
    let ledger = Ledger::new();
    let mut oracle = Oracle::new(&ledger, Archive::new(services.bucket(topic)));
    let (url, stop) = (ingest.events_url(), AtomicBool::new(false));
    let mut refused = false;
    let assigned = || successor.log().matches("partition assigned").count();
    thread::scope(|scope| {
        let _stop = StopOnDrop(&stop);
        scope.spawn(|| load::post_until(&ledger, &url, &stop));
        for (worker, name) in [(&zombie, "it archives"), (&successor, "the other archives")] {
            let archived = || worker.try_metric("ingestd_events_archived_total", "");
            let before = archived().unwrap_or(0.0);
            eventually(name, PATIENCE, || (archived()? > before).then_some(()));
        }
        let had = assigned();
        bucket.hold("PUT /faults-zombies/raw/topic");
        database.hold(UPDATE);
        eventually("an object and counts are on the wire", PATIENCE, || {
            (bucket.holds_any() && database.holds_any()).then_some(())
        });
        zombie.signal("STOP");
        // Whatever the zombie holds lies before.
        let ends = services.watermarks(topic);
        eventually("the other one takes over, for both sinks", PATIENCE, || (assigned() >= had + 4).then_some(()));
        for sink in ["archive", "aggregate"] {
            let passed = |(partition, _, end): &(i32, i64, i64)| {
                services
                    .committed(&format!("{topic}-{sink}"), topic, *partition)
                    .is_some_and(|(offset, _)| offset > *end)
            };
            eventually("and passes all that the zombie holds", PATIENCE, || ends.iter().all(passed).then_some(()));
        }
        bucket.release();
        database.release();
        eventually("the bucket and the database answer", PATIENCE, || {
            (bucket.answered("HTTP/1.1 ") && database.answered("nModified")).then_some(())
        });
        refused = bucket.answered("412 ") && database.answered("E11000");
        zombie.signal("CONT");
        stop.store(true, Ordering::Release);
    });
    let caught_up = || {
        let lag = |sink: &str| services.lag(topic, &format!("{topic}-{sink}"));
        (matches!(lag("archive"), Ok(0)) && matches!(lag("aggregate"), Ok(0))).then_some(())
    };
    eventually("both groups reach the log's end", PATIENCE, caught_up);
    for daemon in [&ingest, &successor, &zombie] {
        daemon.signal("TERM");
        assert_eq!(daemon.wait_exit(PATIENCE), 0);
    }
    let verdict = oracle.audit(&Evidence::on_services(&services, topic));
    eprintln!("    a zombie: {verdict}");
    verdict.assert_clean();
    assert!(refused, "the requests of the zombies came after those of their successor");
}
