//! Logs go to stderr as events with fields, as text or JSON; the level can change while the daemon runs. One
//! thread alone waits for their reader.

mod lines;

use std::{
    backtrace::{Backtrace, BacktraceStatus},
    io::{self, IsTerminal, Write},
    panic::{self, PanicHookInfo},
    sync::{LazyLock, OnceLock},
    thread,
    time::Duration,
};

use anyhow::Context;
use prometheus_client::metrics::counter::Counter;
use tracing_subscriber::{
    EnvFilter, Registry,
    filter::LevelFilter,
    layer::{Layer, SubscriberExt},
    reload,
    util::SubscriberInitExt,
};

use self::lines::Lines;
use crate::{
    config::{LogFormat, LoggingConfig},
    panics::panic_message,
};

/// Libraries that say too much below this; a filter that names one of them decides itself.
const QUIET: &str = "rdkafka=warn,librdkafka=warn,object_store=warn,mongodb=warn,hyper=warn,hyper_util=warn,h2=warn,\
                     reqwest=warn,actix_server=warn,mio=warn";

/// The one calls each broken request an error, the other warns of what a client does in its handshake, so that clients would write
/// the log. They are counted by status, and by reason. What befalls our own clients comes back as their errors.
const SILENT: &str = "actix_http=off,rustls=off";

/// The process's log: what changes its level, and where its lines go.
static INSTALLED: OnceLock<(reload::Handle<EnvFilter, Registry>, Lines)> = OnceLock::new();

/// How long the end of the process waits for what was said last.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Counts the lines that were dropped, because the log's reader stood still.
pub fn dropped() -> Counter {
    static DROPPED: LazyLock<Counter> = LazyLock::new(Counter::default);
    DROPPED.clone()
}

/// Prints to stdout; once the log has begun, without waiting for the reader.
pub fn banner(text: &str) {
    match INSTALLED.get() {
        Some((_, lines)) => lines.banner(text.as_bytes().to_vec()),
        // It need not be read.
        None => _ = io::stdout().write_all(text.as_bytes()),
    }
}

/// Prints to stderr, past the level of the log.
pub fn say(text: &str) {
    match INSTALLED.get() {
        Some((_, lines)) => lines.log(format!("{text}\n").into_bytes()),
        None => eprintln!("{text}"),
    }
}

/// The last thing before the process ends: has what was said written, for moments at most.
pub fn finish() {
    if let Some((_, lines)) = INSTALLED.get() {
        lines.flush(LAST_WORDS);
    }
}

/// Starts logging. A process has one log: a later call only sets the level.
///
/// # Errors
/// When the level is no filter, or something else has taken the place of the global subscriber.
pub fn init(config: &LoggingConfig) -> anyhow::Result<()> {
    if INSTALLED.get().is_none() {
        let lines = Lines::start(dropped()).context("the log's thread cannot be started")?;
        // Libraries that log through `log` are bounded once and for all by the level at this point, so it is the
        // highest; the filter that decides is set below.
        let (changeable, handle) = reload::Layer::new(EnvFilter::new("trace"));
        let output = tracing_subscriber::fmt::layer().with_writer(lines.clone());
        let output = match config.format {
            LogFormat::Text => output.with_ansi(io::stderr().is_terminal()).boxed(),
            LogFormat::Json => output.json().flatten_event(true).with_span_list(false).boxed(),
        };
        tracing_subscriber::registry().with(changeable).with(output).try_init().context("logging cannot be started")?;
        INSTALLED.get_or_init(|| (handle, lines));
        panic::set_hook(Box::new(|panic| say(&panicked(panic))));
    }
    set_level(&config.level)
}

/// Changes what is logged, by a `logging.level`.
///
/// # Errors
/// When it is no filter; what was logged before goes on.
pub fn set_level(level: &str) -> anyhow::Result<()> {
    let filter = filter(level).with_context(|| format!("logging.level = {level:?}"))?;
    let Some((handle, _)) = INSTALLED.get() else { return Ok(()) };
    handle.reload(filter).context("the log's filter cannot be changed")
}

/// As std's own hook writes it, which would wait for the log's reader.
fn panicked(panic: &PanicHookInfo<'_>) -> String {
    let thread = thread::current();
    let at = panic.location().map_or_else(String::new, |location| format!(" at {location}"));
    let mut text =
        format!("thread '{}' panicked{at}:\n{}", thread.name().unwrap_or("?"), panic_message(panic.payload()));
    let trace = Backtrace::capture();
    if trace.status() == BacktraceStatus::Captured {
        text += &format!("\n{trace}");
    }
    text
}

fn filter(level: &str) -> anyhow::Result<EnvFilter> {
    let general = level.split(',').filter_map(|part| part.trim().parse::<LevelFilter>().ok()).next_back();
    // At warn and below they are as quiet as the rest, and must not be louder. A later directive replaces one for the
    // same target, so the operator's come last.
    match general {
        Some(general) if general > LevelFilter::WARN => Ok(EnvFilter::try_new(format!("{SILENT},{QUIET},{level}"))?),
        _ => Ok(EnvFilter::try_new(format!("{SILENT},{level}"))?),
    }
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;
    use std::sync::Arc;

    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What a log at that level holds of one event each of ours and of a library.
    fn logged(level: &str) -> String {
        let written = Written::default();
        let writer = written.clone();
        let output = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(move || writer.clone());
        let subscriber = tracing_subscriber::registry().with(filter(level).unwrap()).with(output);
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(target: "ingestd::archive::upload", "ours");
            tracing::info!(target: "rdkafka::client", "chatter");
            tracing::warn!(target: "rdkafka::client", "warning");
            tracing::error!(target: "actix_http::h1::dispatcher", "a client's fault");
            tracing::warn!(target: "rustls::msgs::handshake", "a client's fault");
        });
        String::from_utf8(written.0.lock().clone()).unwrap()
    }

    #[test]
    fn libraries_are_quiet_until_they_are_asked_for() {
        let heard = |level: &str| {
            let log = logged(level);
            assert!(!log.contains("fault"), "clients do not write the log: {log}");
            (log.contains("ours"), log.contains("chatter"), log.contains("warning"))
        };
        assert_eq!(heard("info"), (true, false, true));
        assert_eq!(heard("info,rdkafka=info"), (true, true, true));
        assert_eq!(heard("error"), (false, false, false));
        assert_eq!(heard("ingestd=info"), (true, false, false));
    }
}
