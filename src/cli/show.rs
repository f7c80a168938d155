//! `ingestd config`: the configuration in force, with secrets hidden.

use std::process::ExitCode;

use clap::Args;

use crate::{
    app,
    config::{Config, secrets},
};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Print JSON instead of TOML
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Arguments, config: &Config) -> ExitCode {
    let shown = secrets::redacted(config);
    let text = if arguments.json {
        serde_json::to_string_pretty(&shown).map_err(anyhow::Error::from)
    } else {
        toml::to_string_pretty(&shown).map_err(anyhow::Error::from)
    };
    match text {
        Ok(text) => {
            println!("{}", text.trim_end());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("ingestd: the configuration cannot be printed: {error}");
            ExitCode::from(app::exit::FAILURE)
        }
    }
}
