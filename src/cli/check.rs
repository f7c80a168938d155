//! `ingestd check [--connect]`: whether the daemon would start with this configuration.

use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use crate::{
    app::{self, CheckLine},
    config::{Config, Sources},
};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Ask each dependency whether it can be used as configured; creates missing topics and indexes as a start would
    #[arg(long)]
    connect: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// The configuration has been checked already: that it exists says that it is good.
pub(super) fn run(arguments: &Arguments, config: &Config, sources: &Sources) -> ExitCode {
    let file = sources.files().first().map_or_else(|| "defaults".to_owned(), |file| file.display().to_string());
    let lines = if arguments.connect { app::check(config) } else { Vec::new() };
    let ok = lines.iter().all(|line| line.outcome.is_ok());
    if arguments.json {
        let checks: Vec<_> = lines.iter().map(as_json).collect();
        println!("{}", json!({ "ok": ok, "configuration": file, "checks": checks }));
    } else {
        println!("configuration ok: {file}");
        for CheckLine { what, outcome } in &lines {
            match outcome {
                Ok(found) => println!("{what} ok: {found}"),
                Err(wrong) => println!("{what} FAILED: {wrong}"),
            }
        }
    }
    if ok { ExitCode::SUCCESS } else { ExitCode::from(app::exit::FAILURE) }
}

fn as_json(line: &CheckLine) -> serde_json::Value {
    match &line.outcome {
        Ok(found) => json!({ "what": line.what, "ok": true, "found": found }),
        Err(wrong) => json!({ "what": line.what, "ok": false, "error": wrong }),
    }
}
