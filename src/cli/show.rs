//! `ingestd config`: the effective configuration.

use std::process::ExitCode;

use crate::config::Sources;

pub(super) fn show(sources: &Sources, json: bool) -> ExitCode {
    let config = match super::load(sources) {
        Ok(config) => config.without_secrets(),
        Err((_, exit)) => return exit,
    };
    let text = if json {
        serde_json::to_string_pretty(&config).map_err(|error| error.to_string())
    } else {
        toml::to_string(&config).map_err(|error| error.to_string())
    };
    match text {
        Ok(text) => super::print(&text),
        Err(error) => {
            eprintln!("the configuration cannot be written: {error}");
            ExitCode::from(super::FAILURE)
        }
    }
}
