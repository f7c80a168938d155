//! What the test binaries on the built program share: the daemon, the services, the events that are sent, the oracle.

use std::{
    collections::BTreeSet,
    net::TcpListener,
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

pub mod archive;
pub mod brokers;
pub mod coding;
pub mod daemon;
pub mod devtools;
pub mod events;
pub mod http;
pub mod kafka;
pub mod log;
pub mod measured;
pub mod openapi;
pub mod oracle;
pub mod preload;
pub mod process;
pub mod raw;
pub mod rebuild;
pub mod replica_set;
pub mod s3;
pub mod services;
pub mod tls;

/// For what happens within seconds on an idle machine: CI's has two cores and may do other things.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// How many events the large tests send: 20,000, or `INGESTD_TEST_EVENTS`.
pub fn events_to_send() -> u64 {
    std::env::var("INGESTD_TEST_EVENTS")
        .map_or(20_000, |events| events.parse().expect("INGESTD_TEST_EVENTS is a number"))
}

/// The program under test: the one of this build, or `INGESTD_TEST_BINARY` (such as a release build).
pub fn program() -> String {
    std::env::var("INGESTD_TEST_BINARY").unwrap_or_else(|_| env!("CARGO_BIN_EXE_ingestd").to_owned())
}

/// Whether its actors panic when a test asks for it: builds with debug assertions do.
pub fn panics_on_demand() -> bool {
    cfg!(debug_assertions) && std::env::var_os("INGESTD_TEST_BINARY").is_none()
}

/// Says loudly that a test is skipped for want of something.
///
/// # Panics
/// With `INGESTD_REQUIRE_SERVICES=1`, where a test that is skipped has failed.
#[track_caller]
pub fn skip(what: &str) {
    let required = std::env::var_os("INGESTD_REQUIRE_SERVICES").is_some_and(|value| value == "1");
    assert!(!required, "INGESTD_REQUIRE_SERVICES=1, and a test would be skipped: {what}");
    eprintln!("\n!!! SKIPPED: {what}\n");
}

/// Asks again and again until there is an answer; at the deadline it fails with what was awaited.
pub fn eventually<T>(what: &str, within: Duration, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + within;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "{what}: not within {within:?}");
        thread::sleep(Duration::from_millis(50));
    }
}

/// Sets its flag when it is dropped, so that a test that panics ends the threads that wait for it.
pub struct StopOnDrop<'a>(pub &'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Cargo's folder for the files of tests, below `target`.
pub fn scratch() -> &'static Path {
    Path::new(env!("CARGO_TARGET_TMPDIR"))
}

/// Where the services are installed and keep their state.
pub fn services_root() -> PathBuf {
    scratch().parent().expect("the scratch folder lies in target").join("services")
}

/// A port that nothing listens on, and neither on port + 10000, which SeaweedFS takes for gRPC. Both are below the
/// range from which the kernel takes the ports of outgoing connections.
pub fn free_port() -> u16 {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    let free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
    loop {
        let port = fastrand::u16(10_240..22_000);
        if free(port) && free(port + 10_000) && GIVEN.lock().unwrap_or_else(PoisonError::into_inner).insert(port) {
            return port;
        }
    }
}
