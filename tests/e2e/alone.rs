//! One process with everything embedded: nothing else is needed.

use std::thread;

use crate::support::{
    PATIENCE,
    archive::Archive,
    daemon::{Daemon, Setup},
    events::Ledger,
    events_to_send, eventually,
    oracle::Oracle,
};

const MEMORY: u64 = 200 << 20;

fn archive_of(daemon: &Daemon) -> Archive {
    Archive::local(&daemon.data().join("archive"))
}

#[test]
fn every_event_of_a_mixture_arrives_once_also_over_a_stop_and_a_start() {
    let mut daemon = Setup::new("alone").start();
    let ledger = Ledger::new();
    let mut oracle = Oracle::new(&ledger, archive_of(&daemon));
    ledger.post(&daemon.events_url(), events_to_send(), 4, PATIENCE);
    oracle.settle(&[&daemon], PATIENCE);
    daemon.check_memory(MEMORY);
    for counter in ["accepted", "produced", "archived", "aggregated"] {
        let value = daemon.metric(&format!("ingestd_events_{counter}_total"));
        assert_eq!(value, Some(events_to_send() as f64), "ingestd_events_{counter}_total");
    }
    // A segment that is open at the stop is sealed and archived, or read again afterwards.
    ledger.post(&daemon.events_url(), 500, 2, PATIENCE);
    daemon.terminate();
    daemon.restart();
    ledger.post(&daemon.events_url(), 500, 2, PATIENCE);
    oracle.settle(&[&daemon], PATIENCE);
    daemon.terminate();
    oracle.settle_archive(PATIENCE);
    assert_eq!(oracle.archived() as u64, ledger.acknowledged());
}

#[test]
fn kill_9_while_events_come_in_loses_and_doubles_nothing() {
    let mut daemon = Setup::new("killed").start();
    let ledger = Ledger::new();
    let mut oracle = Oracle::new(&ledger, archive_of(&daemon));
    let url = daemon.events_url();
    thread::scope(|scope| {
        let posting = scope.spawn(|| ledger.post(&url, events_to_send(), 4, PATIENCE * 2));
        for part in [events_to_send() / 4, events_to_send() / 2] {
            eventually("events come in", PATIENCE, || {
                (ledger.acknowledged() >= part || posting.is_finished()).then_some(())
            });
            daemon.kill();
            daemon.restart();
        }
    });
    oracle.settle(&[&daemon], PATIENCE);
    daemon.terminate();
    oracle.settle_archive(PATIENCE);
}
