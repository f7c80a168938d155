//! The file system below a running daemon becomes read-only, as after an error of the disk, and is made whole again.

use std::{fs, thread, time::Duration};

use crate::{
    load,
    support::{
        PATIENCE, archive::Archive, daemon::Setup, events::Ledger, eventually, log::Evidence, measured::DEFINITIONS,
        oracle::Oracle, preload::library, scratch,
    },
};

/// Longer than the back-offs of the actors and several rounds of their attempts.
const READ_ONLY: Duration = Duration::from_secs(3);

#[test]
fn a_file_system_that_becomes_read_only_is_answered_with_503_and_when_it_can_be_written_all_goes_on() {
    let folder = tempfile::tempdir_in(scratch()).expect("target can be written to");
    let (data, switch) = (folder.path().join("data"), folder.path().join("read-only"));
    let Some(library) = library(folder.path(), "readonly") else { return };
    let daemon = Setup::new("remounted")
        .config(DEFINITIONS)
        .data(data.clone())
        .set("queue.embedded.retention", "1h")
        .environment("LD_PRELOAD", &library)
        .environment("READONLY_FOLDER", &data.display().to_string())
        .environment("READONLY_WHILE", &switch.display().to_string())
        .start();
    let ledger = Ledger::new();
    let mut oracle = Oracle::new(&ledger, Archive::local(&data.join("archive")));
    load::during(&ledger, &daemon.events_url(), || {
        for _ in 0..2 {
            let before = ledger.acknowledged();
            eventually("events come in", PATIENCE, || (ledger.acknowledged() > before + 100).then_some(()));
            let refused = ledger.refused();
            fs::write(&switch, "").expect("it stands beside the data");
            eventually("events are refused", PATIENCE, || (ledger.refused() > refused + 3).then_some(()));
            let acknowledged = ledger.acknowledged();
            let readiness = eventually("readiness says so", PATIENCE, || {
                daemon.try_readiness().filter(|readiness| readiness["ready"] == false)
            });
            let reason = readiness["dependencies"]["embedded_log"]["reason"].as_str().unwrap_or_default();
            assert!(reason.contains("the embedded log cannot be written"), "{readiness}");
            thread::sleep(READ_ONLY);
            assert_eq!(daemon.exit(), None, "it ends no daemon");
            assert_eq!(ledger.acknowledged(), acknowledged, "no 2xx for what cannot be written");
            fs::remove_file(&switch).expect("it was just made");
            eventually("ready and not degraded by itself", PATIENCE, || {
                let readiness = daemon.try_readiness()?;
                (readiness["ready"] == true && readiness["degraded"] == false).then_some(())
            });
        }
    });
    oracle.settle(&[&daemon], PATIENCE);
    let restarts = daemon.metric("ingestd_actor_restarts_total").unwrap_or_default();
    assert!(restarts == 0.0, "what cannot be written is tried again where it is, no actor is built anew for it");
    let said = daemon.log().lines().filter(|line| line.contains("spool failed")).count();
    assert!(said <= 2, "an operator reads it once a time, and is not flooded: {said}");
    daemon.terminate();
    oracle.audit(&Evidence::embedded(&data)).assert_clean();
}
