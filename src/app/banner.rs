//! What the daemon says when it is ready: where it listens, where things go, and what to try next.

use std::net::TcpListener;

use crate::{
    archive::upload,
    config::{Config, QueueKind, Roles, StoreKind},
    data_dir::DataDir,
    store::mongo::DatabaseChoice,
};

/// Where the process listens; one of the addresses is enough to try.
pub(super) fn address(sockets: &[TcpListener]) -> String {
    let address = sockets.first().and_then(|socket| socket.local_addr().ok());
    address.map_or_else(|| "?".to_owned(), |address| address.to_string())
}

/// `ingest` and `admin` are addresses.
pub(super) fn banner(ingest: Option<&str>, admin: &str, config: &Config, data_dir: &DataDir, roles: Roles) -> String {
    use std::fmt::Write;
    let [of_ingest, of_admin] = config.schemes();
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        // Writing to a String does not fail.
        let _ = writeln!(text, "  {name:<11}{value}");
    };
    let queue = match config.queue.kind {
        QueueKind::Embedded => format!("embedded log {}", data_dir.path.join("log.db").display()),
        QueueKind::Kafka => format!("Kafka {}, topic {}", config.queue.kafka.brokers, config.queue.topic),
    };
    line("queue", queue);
    if roles.archive() {
        let archive = match config.archive.url.as_str() {
            "file:" => data_dir.path.join("archive").display().to_string(),
            _ => upload::place(config),
        };
        line("archive", archive);
    }
    if roles.aggregate() {
        let store = match config.store.kind {
            StoreKind::Mongodb => format!("MongoDB, {}", DatabaseChoice::of(&config.store)),
            _ => data_dir.path.join("store.db").display().to_string(),
        };
        line("aggregates", store);
    }
    line("dashboard", format!("{of_admin}://{admin}/"));
    line("admin", format!("{of_admin}://{admin}/health/ready  /metrics  /status"));
    let mut banner = format!("ingestd {}\n", env!("CARGO_PKG_VERSION"));
    if let Some(ingest) = ingest {
        let _ = writeln!(banner, "  {:<11}{of_ingest}://{ingest}/v1/events", "events");
        banner.push_str(&text);
        let event = r#"{"type":"login_success","client_id":"client-1"}"#;
        let _ = writeln!(banner, "try:  curl -i {of_ingest}://{ingest}/v1/events --json '{event}'");
    } else {
        banner.push_str(&text);
    }
    if roles.aggregate()
        && let Some(aggregate) = config.aggregate.first()
    {
        let _ = writeln!(banner, "then: curl {of_admin}://{admin}/v1/aggregates/{}", aggregate.name);
    }
    banner
}
