//! MongoDB as a replica set: its primary gives way, dies, takes writes that are rolled back, and freezes.

use std::{
    thread,
    time::{Duration, Instant},
};

use crate::{
    load,
    support::{
        PATIENCE, archive::Archive, daemon::Setup, events::Ledger, eventually, log::Evidence, measured::DEFINITIONS,
        oracle::Oracle, replica_set::ReplicaSet, services::Service,
    },
};

const DATABASE: &str = "ingestd";
/// A primary takes writes for two seconds more when all others are gone.
const ALONE: Duration = Duration::from_secs(3);

#[test]
fn elections_and_rolled_back_writes_of_a_replica_set_lose_and_double_nothing() {
    let Some(set) = ReplicaSet::start() else { return };
    let daemon = Setup::new("replica-set")
        .config(DEFINITIONS)
        .set("store.kind", "mongodb")
        .set("store.url", set.url())
        .set("store.database", DATABASE)
        .set("store.events", "true")
        .set("aggregator.timeout", "3s")
        .set("aggregator.flush_interval", "200ms")
        .set("queue.embedded.retention", "1h")
        .start();
    let ledger = Ledger::new();
    let mut oracle = Oracle::new(&ledger, Archive::local(&daemon.data().join("archive")));
    let recover = |fault: &str, since: Instant| load::recover(&daemon, &ledger, fault, since);

    load::during(&ledger, &daemon.events_url(), || {
        recover("the start", Instant::now());
        for _ in 0..2 {
            let since = Instant::now();
            set.step_down();
            recover("a step-down", since);
            set.wait_whole();
        }
        let (primary, since) = (set.primary(), Instant::now());
        set.member(primary).kill();
        recover("kill -9 of the primary", since);
        set.member(primary).restart();
        set.wait_whole();
    });

    let settle = || oracle.settle(&[&daemon], PATIENCE);
    let primary = leave_alone(&set, settle, || ledger.post(&daemon.events_url(), 100, 1, PATIENCE));
    let since = Instant::now();
    set.member(primary).kill();
    set.others(primary).for_each(Service::restart);
    load::during(&ledger, &daemon.events_url(), || {
        recover("kill -9 of a primary that was alone", since);
        set.member(primary).restart();
        let log = || set.member(primary).process().log();
        eventually("the one that returns undoes what no other has", PATIENCE, || {
            log().contains("Rollback complete").then_some(())
        });
        set.wait_whole();

        let (primary, since) = (set.primary(), Instant::now());
        set.member(primary).freeze();
        recover("a frozen primary, while it is frozen,", since);
        let since = Instant::now();
        set.member(primary).thaw();
        recover("its return", since);
    });
    set.wait_whole();
    oracle.settle(&[&daemon], PATIENCE);
    daemon.terminate();
    let evidence = Evidence::embedded_log(daemon.data(), |collection| set.documents(DATABASE, collection));
    let verdict = oracle.audit(&evidence);
    eprintln!("{verdict}");
    verdict.assert_clean();
}

/// Kills all but the primary, and has it take writes of the daemon that no other has ever seen. (Frozen ones would see
/// them: what is sent to them waits in their sockets.) `settle` sees to it that nothing is on its way before.
fn leave_alone(set: &ReplicaSet, mut settle: impl FnMut(), post: impl Fn()) -> usize {
    let deadline = Instant::now() + PATIENCE;
    loop {
        settle();
        let primary = set.primary();
        let before = set.count_on(primary, DATABASE, "events").expect("the primary answers");
        set.others(primary).for_each(Service::kill);
        let alone = Instant::now();
        post();
        while alone.elapsed() < ALONE {
            if set.count_on(primary, DATABASE, "events").is_some_and(|now| now > before) {
                return primary;
            }
            thread::sleep(Duration::from_millis(20));
        }
        // On a slow machine it may have given way before the daemon's next flush.
        assert!(Instant::now() < deadline, "the primary takes no writes alone");
        set.others(primary).for_each(Service::restart);
        set.wait_whole();
    }
}
