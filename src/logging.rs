//! The daemon's log: lines on standard error, as text for people or as JSON for collectors.

use anyhow::Context;
use tracing_subscriber::{EnvFilter, Registry, fmt, layer::SubscriberExt, reload, util::SubscriberInitExt};

use crate::config::{LogFormat, LoggingConfig};

/// Changes the filter of the running log.
pub struct LogLevel(reload::Handle<EnvFilter, Registry>);

impl LogLevel {
    /// Puts another filter (`logging.level`) in force.
    ///
    /// # Errors
    /// When it cannot be parsed; the one in force stays.
    pub fn set(&self, level: &str) -> anyhow::Result<()> {
        let filter = filter(level)?;
        self.0.reload(filter).context("the log has ended")
    }
}

/// What libraries say of their own life is of no use to operators; a directive in `logging.level` brings it back.
const QUIET: &str = "actix_server=warn,actix_http=warn,rdkafka=warn,librdkafka=warn";

fn filter(level: &str) -> anyhow::Result<EnvFilter> {
    format!("{QUIET},{level}").parse().with_context(|| format!("logging.level {level:?}"))
}

/// Starts the log of this process. Call it once.
///
/// # Errors
/// When `logging.level` cannot be parsed, or there is a log already.
pub fn init(config: &LoggingConfig) -> anyhow::Result<LogLevel> {
    let (filter, handle) = reload::Layer::new(filter(&config.level)?);
    let lines = fmt::layer().with_writer(std::io::stderr).with_target(true);
    let registry = tracing_subscriber::registry().with(filter);
    match config.format {
        LogFormat::Text => registry.with(lines.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))).try_init(),
        LogFormat::Json => registry.with(lines.json().flatten_event(true)).try_init(),
    }
    .context("the log was started before")?;
    Ok(LogLevel(handle))
}
