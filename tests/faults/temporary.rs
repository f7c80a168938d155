//! A daemon that can write nowhere but below `data.dir`, as in a container with a read-only root.

use crate::support::{PATIENCE, daemon::Setup, eventually, preload::library, scratch};

#[test]
fn without_a_folder_for_temporary_files_everything_is_counted_and_answered() {
    let folder = tempfile::tempdir_in(scratch()).expect("target can be written to");
    let data = folder.path().join("data");
    let Some(library) = library(folder.path(), "notemp") else { return };
    let daemon = Setup::new("notemp")
        .data(data.clone())
        .environment("LD_PRELOAD", &library)
        .environment("NOTEMP_BUT", &data.display().to_string())
        .start();
    let events: String = (0..9000).map(|n| format!("{{\"type\":\"a\",\"client_id\":\"c{}\"}}\n", n % 3000)).collect();
    // The second time they are added to what stands, which takes a journal for each statement.
    for round in 1..=2 {
        assert_eq!(daemon.post(Some("application/x-ndjson"), events.as_bytes()).status, 200);
        eventually("all are counted", PATIENCE, || {
            (daemon.metric("ingestd_events_aggregated_total")? == f64::from(round * 9000)).then_some(())
        });
    }
    let answer = daemon.get("/v1/aggregates/events_by_type?limit=20000");
    assert_eq!(answer.status, 200, "a sort takes one, too: {}", answer.body);
    assert!(answer.json()["rows"].as_array().is_some_and(|rows| rows.len() >= 3000));
    assert_eq!(daemon.readiness()["degraded"], false);
    daemon.terminate();
}
