//! The power goes: whatever was not synced is gone, and every 2xx stands all the same. `power.c` plays it, for one
//! process, and says what it cannot play.

use std::{
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use fastrand::Rng;

use crate::{
    load,
    support::{
        PATIENCE, StopOnDrop, archive::Archive, daemon::Setup, events::Ledger, eventually, log::Evidence,
        measured::DEFINITIONS, oracle::Oracle, preload::library, scratch,
    },
};

/// Fewer say little, as a cut hits the moment between a write and its sync by chance.
const CUTS: usize = 8;

#[test]
fn what_was_answered_with_2xx_survives_a_cut_of_power() {
    survives_cuts("data/archive", true);
}

/// Its objects are put, those below the data directory are linked.
#[test]
fn and_an_archive_beside_the_data_directory_does() {
    survives_cuts("archive", true);
}

/// As the log is by default: trimmed behind the sinks, so that it cannot help out when an object is gone.
#[test]
fn and_so_it_does_without_the_log() {
    survives_cuts("data/archive", false);
}

fn survives_cuts(archive: &str, keep_log: bool) {
    let folder = tempfile::tempdir_in(scratch()).expect("target can be written to");
    let Some(library) = library(folder.path(), "power") else { return };
    // The files that it keeps lie beside those that it watches.
    let [watched, cut, keep] = ["watched", "cut", "keep"].map(|name| folder.path().join(name));
    let archive = watched.join(archive);
    std::fs::create_dir(&watched).expect("target can be written to");
    std::fs::create_dir(&keep).expect("target can be written to");
    let path = |path: &Path| path.to_str().expect("target's path is UTF-8").to_owned();
    let mut daemon = Setup::new("power")
        .config(DEFINITIONS)
        .data(watched.join("data"))
        .set("archive.url", format!("file://{}", path(&archive)))
        .set("queue.embedded.retention", if keep_log { "1h" } else { "0s" })
        .set("spool.max_age", "300ms")
        .environment("LD_PRELOAD", &library)
        .environment("INGESTD_POWER_ROOT", &path(&watched))
        .environment("INGESTD_POWER_CUT", &path(&cut))
        .environment("INGESTD_POWER_KEEP", &path(&keep))
        .start();
    let ledger = Ledger::new();
    let mut oracle = Oracle::new(&ledger, Archive::local(&archive));
    let (url, stop) = (daemon.events_url(), AtomicBool::new(false));
    let seed = fastrand::u64(..);
    eprintln!("    cuts of power at times of seed {seed}");
    let mut random = Rng::with_seed(seed);
    thread::scope(|scope| {
        let _stop = StopOnDrop(&stop);
        for _ in 0..3 {
            scope.spawn(|| load::post_until(&ledger, &url, &stop));
        }
        for _ in 0..CUTS {
            let before = ledger.acknowledged();
            eventually("events come in", PATIENCE, || (ledger.acknowledged() > before).then_some(()));
            // The log is trimmed each second.
            let longer = if keep_log { 0 } else { 1500 };
            thread::sleep(Duration::from_millis(longer + random.u64(200..1500)));
            std::fs::write(&cut, "").expect("target can be written to");
            assert_eq!(daemon.wait_exit(PATIENCE), -9, "the library kills the process");
            std::fs::remove_file(&cut).expect("it was just written");
            daemon.restart();
        }
        stop.store(true, Ordering::Release);
    });
    oracle.settle(&[&daemon], PATIENCE);
    daemon.terminate();
    eprintln!("    {CUTS} cuts, {} events with a 2xx", ledger.acknowledged());
    if !keep_log {
        return;
    }
    let verdict = oracle.audit(&Evidence::embedded(daemon.data()));
    eprintln!("    {verdict}");
    verdict.assert_clean();
}
