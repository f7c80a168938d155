//! The clock steps back and forth.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use crate::{
    load,
    preload::library,
    support::{
        PATIENCE, StopOnDrop, archive::Archive, daemon::Setup, events::Ledger, eventually, log::Evidence,
        oracle::Oracle, scratch,
    },
};

const HOUR: i64 = 3600;

#[test]
fn a_clock_that_steps_back_and_forth_loses_and_doubles_nothing() {
    let folder = tempfile::tempdir_in(scratch()).expect("target can be written to");
    let clock = folder.path().join("clock");
    let Some(library) = library(folder.path(), "clock") else { return };
    let step = |hours: i64| {
        // In one step, so that nobody reads half of it.
        let next = clock.with_extension("next");
        std::fs::write(&next, (hours * HOUR).to_string()).expect("target can be written to");
        std::fs::rename(&next, &clock).expect("target can be written to");
    };
    step(0);
    let mut daemon = Setup::new("clock")
        .set("queue.embedded.retention", "30d")
        .environment("LD_PRELOAD", &library)
        .environment("CLOCK_OFFSET_FILE", &clock.display().to_string())
        .start();
    let ledger = Ledger::new();
    let mut oracle = Oracle::new(&ledger, Archive::local(&daemon.data().join("archive")));
    let (url, stop) = (daemon.events_url(), AtomicBool::new(false));
    thread::scope(|scope| {
        let _stop = StopOnDrop(&stop);
        scope.spawn(|| load::post_until(&ledger, &url, &stop));
        for hours in [-2, 3, -24, 0] {
            step(hours);
            let archived = || daemon.try_metric("ingestd_events_archived_total", "");
            let before = ledger.acknowledged() as f64;
            eventually("archiving goes on", PATIENCE, || (archived()? > before).then_some(()));
            assert_eq!(daemon.readiness()["ready"], true, "at {hours} h");
        }
        // And a start in the past of what the log holds.
        step(-3);
        daemon.kill();
        daemon.restart();
        let before = ledger.acknowledged();
        eventually("events come in", PATIENCE, || (ledger.acknowledged() > before + 100).then_some(()));
        stop.store(true, Ordering::Release);
    });
    oracle.settle(&[&daemon], PATIENCE);
    daemon.terminate();
    let evidence = Evidence::embedded(daemon.data());
    let received: Vec<i64> = evidence.log.iter().map(|record| record.received).collect();
    // Requests beside each other differ by milliseconds.
    let steps_back = received.windows(2).filter(|two| two[1] < two[0] - HOUR * 1000).count();
    assert!(steps_back > 0, "the clock did not step back: {} records", received.len());
    oracle.audit(&evidence).assert_clean();
}
