//! `GET /status`: what an operator wants to know first, on one page.

use std::time::Duration;

use serde_json::{Value, json};

use super::AdminState;

pub fn status(state: &AdminState) -> Value {
    let config = state.config.load();
    let metrics = &state.metrics;
    let readiness = state.health.readiness();
    // Whole seconds: what is below them says nothing.
    let uptime = Duration::from_secs(state.started.elapsed().as_secs());
    json!({
        "version": state.version,
        "commit": state.commit,
        "pid": std::process::id(),
        "roles": state.roles,
        "uptime": humantime::format_duration(uptime).to_string(),
        "uptime_seconds": uptime.as_secs(),
        "config_file": state.config_file,
        "data_dir": config.data.dir,
        "queue": { "kind": config.queue.kind, "topic": config.queue.name().to_string() },
        "archive": config.archive.url,
        "store": config.store.kind,
        "ready": readiness.ready,
        "degraded": readiness.degraded,
        "refusing_events": state.health.gate.closed().map(|(_, why)| why),
        "events": {
            "accepted": metrics.events_accepted.get(),
            "produced": metrics.events_produced.get(),
            "archived": metrics.events_archived.get(),
            "aggregated": metrics.events_aggregated.get(),
            "dead_lettered": metrics.events_dead_lettered.get(),
        },
        "lag": metrics.lags(),
        "disk": {
            "used_percent": (metrics.disk_used_ratio.get() * 1000.0).round() / 10.0,
            "max_used_percent": config.disk.max_used_percent,
            "resume_percent": config.disk.resume_percent,
        },
        "resident_memory_bytes": metrics.resident_memory(),
        "spool_bytes": metrics.spool_bytes.get(),
        "actors": readiness.actors,
        "dependencies": readiness.dependencies,
        "halted": readiness.halted,
    })
}
