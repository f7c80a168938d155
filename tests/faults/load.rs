//! Events without a pause, for as long as the faults go on.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use crate::support::{StopOnDrop, events::Ledger};

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
