//! Events without a pause, for as long as the faults go on.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use crate::support::{PATIENCE, StopOnDrop, daemon::Daemon, events::Ledger};

/// A few hundred events a second: enough that every fault hits requests, batches and segments on their way.
const AT_ONCE: u64 = 60;
const PAUSE: Duration = Duration::from_millis(100);
/// No outage of a drawn run lasts so long.
const WITHIN: Duration = Duration::from_secs(240);

/// Posts until `stop`; what was begun is posted until it has its 2xx.
pub fn post_until(ledger: &Ledger, url: &str, stop: &AtomicBool) {
    while !stop.load(Ordering::Acquire) {
        ledger.post(url, AT_ONCE, 2, WITHIN);
        thread::sleep(PAUSE);
    }
}

/// The same, for as long as `faults` takes.
pub fn during(ledger: &Ledger, url: &str, faults: impl FnOnce()) {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let _stop = StopOnDrop(&stop);
        scope.spawn(|| post_until(ledger, url, &stop));
        faults();
    });
}

/// Waits until more than was acknowledged by now is counted and the daemon is well; prints how long that took.
pub fn recover(daemon: &Daemon, ledger: &Ledger, fault: &str, since: Instant) {
    let acknowledged = ledger.acknowledged() as f64;
    loop {
        let counted = daemon.metric("ingestd_events_aggregated_total").is_some_and(|counted| counted > acknowledged);
        let readiness = daemon.readiness();
        let halted = readiness["halted"].as_array().is_none_or(|halted| !halted.is_empty());
        if counted && readiness["ready"] == true && readiness["degraded"] == false && !halted {
            break;
        }
        assert!(since.elapsed() < PATIENCE, "{PATIENCE:?} after {fault}: {readiness}");
        thread::sleep(Duration::from_millis(50));
    }
    eprintln!("{fault}: counting again after {:.1} s", since.elapsed().as_secs_f64());
}
