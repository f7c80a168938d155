//! A local archive on a file system without hard links, by which create-only PUTs are made elsewhere.

use crate::support::{
    PATIENCE, archive::Archive, daemon::Setup, events::Ledger, log::Evidence, measured::DEFINITIONS, oracle::Oracle,
    preload::library, scratch,
};

#[test]
fn without_hard_links_a_local_archive_is_written_all_the_same() {
    let folder = tempfile::tempdir_in(scratch()).expect("target can be written to");
    let data = folder.path().join("data");
    let Some(library) = library(folder.path(), "nolinks") else { return };
    let daemon = Setup::new("no-links")
        .config(DEFINITIONS)
        .data(data.clone())
        .set("queue.embedded.retention", "1h")
        .environment("LD_PRELOAD", &library)
        .start();
    let ledger = Ledger::new();
    let mut oracle = Oracle::new(&ledger, Archive::local(&data.join("archive")));
    ledger.post(&daemon.events_url(), 10_000, 2, PATIENCE);
    oracle.settle(&[&daemon], PATIENCE);
    assert_eq!(daemon.readiness()["degraded"], false);
    daemon.terminate();
    oracle.audit(&Evidence::embedded(&data)).assert_clean();
}
