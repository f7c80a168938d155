//! How long it takes: a worker that is killed and started again, and one that stays dead. The times are printed and
//! never asserted: machines are shared.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use crate::{
    load,
    support::{
        PATIENCE, StopOnDrop, archive::Archive, daemon::Daemon, events::Ledger, eventually, log::Evidence,
        measured::DEFINITIONS, oracle::Oracle, services::services,
    },
};

const KILLS: usize = 5;

#[test]
fn a_killed_worker_goes_on_after_its_restart_and_the_partitions_of_a_dead_one_are_taken_over() {
    let Some(services) = services() else { return };
    let topic = "faults-recovery";
    services.create_bucket(topic);
    let setup = |roles| services.setup(topic).config(DEFINITIONS).roles(roles).set("store.events", "true");
    let ingest = setup("ingest").start();
    let (mut killed, other) = (setup("worker").start(), setup("worker").start());
    let ledger = Ledger::new();
    let mut oracle = Oracle::new(&ledger, Archive::new(services.bucket(topic)));
    let (url, stop) = (ingest.events_url(), AtomicBool::new(false));
    thread::scope(|scope| {
        let _stop = StopOnDrop(&stop);
        scope.spawn(|| load::post_until(&ledger, &url, &stop));
        works(&killed, Instant::now());
        works(&other, Instant::now());
        let (mut archiving, mut counting) = (Vec::new(), Vec::new());
        for _ in 0..KILLS {
            thread::sleep(Duration::from_millis(fastrand::u64(500..2500)));
            killed.kill();
            assert_eq!(killed.wait_exit(PATIENCE), -9);
            let since = Instant::now();
            // Counters of a new process begin at 0.
            killed.respawn();
            let (archives, counts) = works(&killed, since);
            archiving.push(archives);
            counting.push(counts);
        }
        eprintln!(
            "    after kill -9 and a restart: archiving after {}, counting after {}",
            seconds(&archiving),
            seconds(&counting)
        );
        thread::sleep(Duration::from_secs(2));
        let assigned = || other.log().matches("partition assigned").count();
        let had = assigned();
        killed.kill();
        let since = Instant::now();
        // Its two partitions, of both sinks.
        eventually("the partitions of the dead worker are taken over", PATIENCE, || {
            (assigned() >= had + 4).then_some(())
        });
        eprintln!("    its partitions are another's after {:.1} s", since.elapsed().as_secs_f64());
        stop.store(true, Ordering::Release);
    });
    let caught_up = || {
        let lag = |sink: &str| services.lag(topic, &format!("{topic}-{sink}"));
        (matches!(lag("archive"), Ok(0)) && matches!(lag("aggregate"), Ok(0))).then_some(())
    };
    eventually("both groups reach the log's end", PATIENCE, caught_up);
    for daemon in [&ingest, &other] {
        daemon.signal("TERM");
        assert_eq!(daemon.wait_exit(PATIENCE), 0);
    }
    oracle.audit(&Evidence::on_services(&services, topic)).assert_clean();
}

/// A worker that catches up with an outage of the store writes objects faster than heads: its successor finds an old head,
/// and many objects behind it.
#[test]
fn a_worker_killed_while_it_catches_up_with_the_store_is_followed_at_once() {
    let Some(services) = services() else { return };
    let topic = "faults-catching-up";
    services.create_bucket(topic);
    let setup = |roles| {
        let setup = services.setup(topic).config(DEFINITIONS).roles(roles).set("store.events", "true");
        setup.set("upload.timeout", "3s").set("upload.max_backoff", "2s").set("spool.max_age", "200ms")
    };
    let (ingest, mut killed) = (setup("ingest").start(), setup("worker").start());
    let ledger = Ledger::new();
    let mut oracle = Oracle::new(&ledger, Archive::new(services.bucket(topic)));
    let (url, stop) = (ingest.events_url(), AtomicBool::new(false));
    let archived = |worker: &Daemon| worker.try_metric("ingestd_events_archived_total", "").unwrap_or_default();
    thread::scope(|scope| {
        let _stop = StopOnDrop(&stop);
        scope.spawn(|| load::post_until(&ledger, &url, &stop));
        works(&killed, Instant::now());
        for _ in 0..3 {
            let had = {
                let s3 = services.s3.process();
                let _frozen = s3.freeze();
                thread::sleep(Duration::from_secs(8));
                archived(&killed)
            };
            eventually("it catches up", PATIENCE, || (archived(&killed) >= had + 4_000.0).then_some(()));
            killed.kill();
            assert_eq!(killed.wait_exit(PATIENCE), -9);
            let (since, before) = (Instant::now(), killed.log().len());
            killed.respawn();
            let (archives, counts) = works(&killed, since);
            let met = killed.log()[before..].matches("another writer's object").count();
            eprintln!(
                "    killed while it caught up: archiving after {}, counting after {}, {met} objects were met",
                seconds(&[archives]),
                seconds(&[counts])
            );
            // It looks ahead in each of the four partitions; a PUT may still be on its way then.
            assert!(met <= 4, "{}", killed.log());
        }
        stop.store(true, Ordering::Release);
    });
    let caught_up = || {
        let lag = |sink: &str| services.lag(topic, &format!("{topic}-{sink}"));
        (matches!(lag("archive"), Ok(0)) && matches!(lag("aggregate"), Ok(0))).then_some(())
    };
    eventually("both groups reach the log's end", PATIENCE, caught_up);
    for daemon in [&ingest, &killed] {
        daemon.signal("TERM");
        assert_eq!(daemon.wait_exit(PATIENCE), 0);
    }
    oracle.audit(&Evidence::on_services(&services, topic)).assert_clean();
}

/// Since `since`, until its first record is archived, and until one is counted.
fn works(worker: &Daemon, since: Instant) -> (Duration, Duration) {
    let (mut archives, mut counts) = (None, None);
    eventually("it archives and counts", PATIENCE, || {
        let has = |counter: &str| worker.try_metric(counter, "").is_some_and(|value| value > 0.0);
        archives = archives.or_else(|| has("ingestd_events_archived_total").then(|| since.elapsed()));
        counts = counts.or_else(|| has("ingestd_events_aggregated_total").then(|| since.elapsed()));
        Some((archives?, counts?))
    })
}

/// In ascending order.
fn seconds(times: &[Duration]) -> String {
    let mut times = times.to_vec();
    times.sort();
    let texts: Vec<_> = times.iter().map(|time| format!("{:.2}", time.as_secs_f64())).collect();
    format!("{} s", texts.join(", "))
}
