//! `ingestd config`: the effective configuration.

use std::process::ExitCode;

use crate::{
    archive::upload::settings::Settings,
    config::{Config, Sources},
    names::exit,
};

pub(super) fn show(sources: &Sources, json: bool) -> ExitCode {
    let config = match super::load(sources) {
        Ok(config) => in_force(config).without_secrets(),
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
            ExitCode::from(exit::FAILURE)
        }
    }
}

/// With the archive's endpoint where the environment alone names it: there requests go.
fn in_force(mut config: Config) -> Config {
    let settings = Settings::of(&config.archive);
    if let Some((setting, given)) = settings.as_ref().and_then(Settings::endpoint_setting)
        && given.from_environment
    {
        config.archive.options.insert(setting.to_owned(), given.value.clone());
    }
    config
}
