//! What systemd is told: that the daemon lives, and one line about how it does. Without systemd all of it is a no-op.

use std::time::Duration;

use sd_notify::NotifyState;

use crate::health::Readiness;

/// How often to ping: half of what the unit's `WatchdogSec` allows, as sd_watchdog_enabled(3) recommends.
pub fn ping_interval() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|timeout| timeout / 2)
}

/// One datagram to a local socket that systemd keeps empty: it does not block.
pub fn notify(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::debug!(%error, "systemd could not be told");
    }
}

/// The line that `systemctl status` shows.
pub fn status_line(readiness: &Readiness, closed: Option<&str>) -> String {
    let mut parts = Vec::new();
    match closed {
        Some(why) => parts.push(format!("refusing events: {why}")),
        None if readiness.ready && readiness.degraded => parts.push("ready, degraded".to_owned()),
        None if readiness.ready => parts.push("ready".to_owned()),
        None => parts.push("not ready".to_owned()),
    }
    let away = readiness.dependencies.iter().filter(|(_, status)| !status.available);
    parts.extend(away.map(|(dependency, _)| format!("{dependency} unavailable")));
    if !readiness.halted.is_empty() {
        parts.push(format!("{} partitions halted", readiness.halted.len()));
    }
    // The protocol is made of lines.
    parts.join("; ").replace(['\n', '\r'], " ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        health::{ActorState, Closed, Health},
        names::ActorName,
    };

    #[test]
    fn the_status_line_says_why_and_stays_one_line() {
        let health = Health::default();
        health.actor(ActorName::Ingestor, ActorState::Running, None);
        assert_eq!(status_line(&health.readiness(), None), "ready");
        health.dependency("mongodb", Err("away".to_owned()));
        assert_eq!(status_line(&health.readiness(), None), "ready, degraded; mongodb unavailable");
        let full = health.gate.reason(Closed::DiskFull);
        full.set("disk\nfull".to_owned());
        let closed = health.gate.closed().map(|(_, why)| why);
        assert!(
            status_line(&health.readiness(), closed.as_deref()).starts_with("refusing events: disk full; mongodb un")
        );
    }
}
