//! `ingestd check --connect`: asks each dependency once whether it can be used as configured.

use crate::{
    archive::upload::{self, Archive, ProbeError, Race, explain_probe, place},
    config::{Config, QueueKind, Rules},
    log::{self, kafka},
    store::{self, Prepared, Store},
};

/// Who knows rules beyond those of the configuration itself: each backend of its own section.
pub const BACKENDS: &[Rules] = &[log::validate::validate, upload::validate::validate, store::validate::validate];

/// One thing that was checked.
#[derive(Debug, Clone)]
pub struct CheckLine {
    pub what: String,
    /// What was found, or one sentence that says what is wrong.
    pub outcome: Result<String, String>,
}

/// Asks each dependency. Blocks until all have answered or their deadlines are over. `race` is how hard the archive's store
/// is asked whether it lets one of many win.
pub fn check(config: Config, race: Race) -> Vec<CheckLine> {
    let config = &config;
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return vec![CheckLine { what: "runtime".to_owned(), outcome: Err(error.to_string()) }],
    };
    let roles = config.roles();
    let mut lines = Vec::new();
    if config.queue.kind == QueueKind::Kafka {
        let what = format!("Kafka {}", config.queue.kafka.brokers);
        lines.push(CheckLine { what, outcome: kafka::check(config, config.writes_letters_to_kafka()) });
    }
    if roles.archive() {
        let what = format!("archive {}", place(config));
        lines.push(CheckLine { what, outcome: runtime.block_on(check_archive(config, race)) });
    }
    if roles.aggregate() {
        let outcome = check_store(config, &runtime);
        lines.push(CheckLine { what: format!("store {}", config.store.kind.as_str()), outcome });
    }
    lines
}

async fn check_archive(config: &Config, race: Race) -> Result<String, String> {
    let archive = Archive::open(config).map_err(|error| format!("{error:#}"))?;
    let explained = |error: ProbeError| explain_probe(&error, config);
    archive.probe().await.map_err(explained)?;
    if config.archive.is_local() {
        return Ok("writable, and create-only PUTs are honoured".to_owned());
    }
    archive.race(race).await.map_err(explained)?;
    let Race { puts, rounds } = race;
    Ok(format!(
        "readable and writable, and of {puts} create-only PUTs at the same time one wins, in each of {rounds} rounds"
    ))
}

fn check_store(config: &Config, runtime: &tokio::runtime::Runtime) -> Result<String, String> {
    let store = store::open(config, runtime.handle().clone()).map_err(|error| format!("{error:#}"))?;
    let Some(store) = store else { return Ok("off".to_owned()) };
    runtime.block_on(async {
        let checked = try_store(&*store).await;
        // Its client must not be dropped while its runtime ends.
        store.close().await;
        checked
    })
}

async fn try_store(store: &dyn Store) -> Result<String, String> {
    let Prepared { remarks, .. } = store.prepare().await.map_err(|error| error.to_string())?;
    store.rehearse().await.map_err(|error| format!("events cannot be counted: {error}"))?;
    let found = ["writable, and counts as it should".to_owned()];
    Ok(found.into_iter().chain(remarks).collect::<Vec<_>>().join("; but: "))
}
