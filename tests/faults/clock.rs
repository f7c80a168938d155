//! The clock steps back and forth.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use crate::{
    load,
    support::{
        PATIENCE, StopOnDrop, archive::Archive, daemon::Setup, events::Ledger, eventually, log::Evidence,
        measured::DEFINITIONS, oracle::Oracle, preload::Clock, scratch,
    },
};

const HOUR: i64 = 3600;

#[test]
fn a_clock_that_steps_back_and_forth_loses_and_doubles_nothing() {
    let folder = tempfile::tempdir_in(scratch()).expect("target can be written to");
    let Some(clock) = Clock::new(folder.path()) else { return };
    let setup = Setup::new("clock").config(DEFINITIONS).set("queue.embedded.retention", "30d");
    let mut daemon = clock.give(setup).start();
    let ledger = Ledger::new();
    let mut oracle = Oracle::new(&ledger, Archive::local(&daemon.data().join("archive")));
    let (url, stop) = (daemon.events_url(), AtomicBool::new(false));
    thread::scope(|scope| {
        let _stop = StopOnDrop(&stop);
        scope.spawn(|| load::post_until(&ledger, &url, &stop));
        for hours in [-2, 3, -24, 0] {
            clock.step(hours * HOUR);
            let archived = || daemon.try_metric("ingestd_events_archived_total", "");
            let before = ledger.acknowledged() as f64;
            eventually("archiving goes on", PATIENCE, || (archived()? > before).then_some(()));
            assert_eq!(daemon.readiness()["ready"], true, "at {hours} h");
        }
        // And a start in the past of what the log holds.
        clock.step(-3 * HOUR);
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
