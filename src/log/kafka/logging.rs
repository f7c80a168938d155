//! librdkafka's log lines as `tracing` events with the target `rdkafka`, a few of each level at a time: a broker that
//! is away makes one every few milliseconds.

use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rdkafka::{ClientContext, config::RDKafkaLogLevel, error::KafkaError, types::RDKafkaErrorCode as Code};

/// Lines of one level that pass in each [`WINDOW`].
const LINES: u32 = 10;
const WINDOW: Duration = Duration::from_secs(10);

/// One level's window: when it began, the lines that passed, the lines that did not.
struct Limit(Mutex<Option<(Instant, u32, u32)>>);

impl Limit {
    const fn new() -> Self {
        Self(Mutex::new(None))
    }

    /// Whether a line may pass, and how many did not before it.
    fn admit(&self, now: Instant) -> Option<u32> {
        let mut window = self.0.lock();
        match window.as_mut() {
            Some((began, passed, dropped)) if now.duration_since(*began) < WINDOW => {
                if *passed == LINES {
                    *dropped += 1;
                    return None;
                }
                *passed += 1;
                Some(0)
            }
            _ => {
                let dropped = window.map_or(0, |(_, _, dropped)| dropped);
                *window = Some((now, 1, 0));
                Some(dropped)
            }
        }
    }
}

static ERRORS: Limit = Limit::new();
static WARNINGS: Limit = Limit::new();
static NOTICES: Limit = Limit::new();

/// Passes a line of librdkafka's log on.
pub(in crate::log) fn forward(level: RDKafkaLogLevel, facility: &str, line: &str) {
    use RDKafkaLogLevel::{Alert, Critical, Debug, Emerg, Error, Info, Notice, Warning};
    // A property that is meant for producers alone is no mistake, though librdkafka warns about it in consumers.
    let level = if facility == "CONFWARN" { Debug } else { level };
    match level {
        Emerg | Alert | Critical => {
            if let Some(suppressed) = ERRORS.admit(Instant::now()) {
                tracing::error!(target: "rdkafka", facility, suppressed, "{line}");
            }
        }
        Error | Warning => {
            if let Some(suppressed) = WARNINGS.admit(Instant::now()) {
                tracing::warn!(target: "rdkafka", facility, suppressed, "{line}");
            }
        }
        Notice | Info => {
            if let Some(suppressed) = NOTICES.admit(Instant::now()) {
                tracing::info!(target: "rdkafka", facility, suppressed, "{line}");
            }
        }
        // Only when the operator asked for it with the property `debug`.
        Debug => tracing::debug!(target: "rdkafka", facility, "{line}"),
    }
}

/// What librdkafka said of a connection, with what it leaves out.
pub(super) fn explained(said: &str) -> String {
    let hint = if said.contains("certificate verify failed") {
        ", or the broker's certificate is for another host name than the one that was connected to"
    } else if said.contains("SSL alert number") {
        ": it may want a certificate of this client (ssl.certificate.location, ssl.key.location)"
    } else if said.contains("brokers are down") {
        ": they cannot be connected to, or close connections and say nothing: see that security.protocol is that of the port"
    } else {
        ""
    };
    format!("{said}{hint}")
}

/// A client's context that logs, and remembers why the brokers could not be reached.
#[derive(Default)]
pub(in crate::log) struct Logging {
    last_error: Mutex<Option<String>>,
}

impl Logging {
    /// What librdkafka said last about its connections: `Connect to … failed: Connection refused`.
    pub(in crate::log) fn last_error(&self) -> Option<String> {
        self.last_error.lock().clone()
    }

    pub(in crate::log) fn note(&self, reason: &str) {
        *self.last_error.lock() = Some(reason.to_owned());
    }
}

impl ClientContext for Logging {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        forward(level, facility, line);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(target: "rdkafka", %error, reason, "librdkafka reports an error");
        // That all are down says nothing of why.
        if error.rdkafka_error_code() != Some(Code::AllBrokersDown) || self.last_error().is_none() {
            self.note(reason);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_lines_is_cut_and_its_size_is_said_afterwards() {
        let limit = Limit::new();
        let start = Instant::now();
        let passed = (0..100).filter(|_| limit.admit(start).is_some()).count();
        assert_eq!(passed, LINES as usize);
        assert_eq!(limit.admit(start + WINDOW), Some(100 - LINES));
    }
}
