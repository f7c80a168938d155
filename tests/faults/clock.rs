//! The clock steps back and forth, by libfaketime (Debian: `libfaketime`).

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use crate::{
    load,
    support::{
        PATIENCE, StopOnDrop, archive::Archive, daemon::Setup, events::Ledger, eventually, log::Evidence,
        oracle::Oracle, scratch, skip,
    },
};

/// Debian has it in a folder a architecture.
fn library() -> Option<String> {
    let folders = std::fs::read_dir("/usr/lib").into_iter().flatten().flatten();
    let libraries = folders.map(|folder| folder.path().join("faketime/libfaketimeMT.so.1"));
    libraries.filter(|library| library.exists()).find_map(|library| library.to_str().map(str::to_owned))
}

#[test]
fn a_clock_that_steps_back_and_forth_loses_and_doubles_nothing() {
    let Some(library) = library() else { return skip("libfaketime is missing: apt-get install libfaketime") };
    let folder = tempfile::tempdir_in(scratch()).expect("target can be written to");
    let clock = folder.path().join("clock");
    let step = |offset: &str| std::fs::write(&clock, offset).expect("target can be written to");
    step("+0");
    let mut daemon = Setup::new("clock")
        .set("queue.embedded.retention", "30d")
        .environment("LD_PRELOAD", &library)
        .environment("FAKETIME_TIMESTAMP_FILE", &clock.display().to_string())
        .environment("FAKETIME_NO_CACHE", "1")
        // As with an operator's `date -s` or a leap of NTP: monotonic clocks go on.
        .environment("FAKETIME_DONT_FAKE_MONOTONIC", "1")
        .start();
    let ledger = Ledger::new();
    let mut oracle = Oracle::new(&ledger, Archive::local(&daemon.data().join("archive")));
    let (url, stop) = (daemon.events_url(), AtomicBool::new(false));
    let mut received = Vec::new();
    thread::scope(|scope| {
        let _stop = StopOnDrop(&stop);
        scope.spawn(|| load::post_until(&ledger, &url, &stop));
        for offset in ["-2h", "+3h", "-1d", "+0"] {
            step(offset);
            let archived = || daemon.try_metric("ingestd_events_archived_total", "");
            let before = ledger.acknowledged() as f64;
            eventually("archiving goes on", PATIENCE, || (archived()? > before).then_some(()));
            assert_eq!(daemon.readiness()["ready"], true, "at {offset}");
        }
        // And a start in the past of what the log holds.
        step("-3h");
        daemon.kill();
        daemon.restart();
        let before = ledger.acknowledged();
        eventually("events come in", PATIENCE, || (ledger.acknowledged() > before + 100).then_some(()));
        stop.store(true, Ordering::Release);
    });
    oracle.settle(&[&daemon], PATIENCE);
    daemon.terminate();
    let evidence = Evidence::embedded(daemon.data());
    received.extend(evidence.log.iter().map(|record| record.received));
    assert!(!received.is_sorted(), "the clock did step back");
    oracle.audit(&evidence).assert_clean();
}
