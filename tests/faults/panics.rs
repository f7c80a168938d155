//! Each actor panics under load: its guardian builds it anew, and the others go on.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use crate::{
    load,
    support::{
        PATIENCE, StopOnDrop, archive::Archive, daemon::Setup, events::Ledger, eventually, log::Evidence,
        measured::DEFINITIONS, oracle::Oracle, panics_on_demand, rebuild,
    },
};

const ACTORS: [&str; 8] =
    ["ingestor", "producer", "consumer-archive", "consumer-aggregate", "spooler", "uploader", "aggregator", "watchdog"];

#[test]
fn every_actor_that_panics_under_load_is_built_again_and_nothing_is_lost_or_doubled() {
    if !panics_on_demand() {
        return eprintln!("\n!!! SKIPPED: panics of actors; only builds with debug assertions panic on demand\n");
    }
    let mut daemon = Setup::new("panics").config(DEFINITIONS).set("queue.embedded.retention", "1h").start();
    let ledger = Ledger::new();
    let mut oracle = Oracle::new(&ledger, Archive::local(&daemon.data().join("archive")));
    let (url, stop) = (daemon.events_url(), AtomicBool::new(false));
    thread::scope(|scope| {
        let _stop = StopOnDrop(&stop);
        scope.spawn(|| load::post_until(&ledger, &url, &stop));
        for (number, actor) in ACTORS.into_iter().enumerate() {
            if number == 1 {
                rebuild::begin(&[&daemon], PATIENCE);
            }
            let before = ledger.acknowledged();
            eventually("events come in", PATIENCE, || (ledger.acknowledged() > before).then_some(()));
            daemon.inject(actor);
            let label = format!("actor=\"{actor}\"");
            let restarts = || daemon.try_metric("ingestd_actor_restarts_total", &label);
            eventually(&format!("{actor} is built again"), PATIENCE, || (restarts()? == 1.0).then_some(()));
            eventually(&format!("all is well after {actor}"), PATIENCE, || {
                let readiness = daemon.try_readiness()?;
                (readiness["ready"] == true && readiness["degraded"] == false).then_some(())
            });
        }
        stop.store(true, Ordering::Release);
    });
    oracle.settle(&[&daemon], PATIENCE);
    assert_eq!(
        daemon.metric("ingestd_actor_restarts_total"),
        Some(ACTORS.len() as f64),
        "none but those that were asked"
    );
    rebuild::wait(&[&daemon], PATIENCE);
    // And once more, which a kill interrupts.
    rebuild::begin(&[&daemon], PATIENCE);
    daemon.kill();
    daemon.wait_exit(PATIENCE);
    daemon.restart();
    rebuild::wait(&[&daemon], PATIENCE);
    daemon.signal("TERM");
    assert_eq!(daemon.wait_exit(PATIENCE), 0);
    oracle.audit(&Evidence::embedded(daemon.data())).assert_clean();
}
