//! The command line.
//!
//! Exit statuses: 0 done; 1 failure; 2 usage; 3 fenced; 4 deadline or second signal; 78 configuration.

mod check;
mod show;

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand};
use rdkafka::util::get_rdkafka_version;

use crate::{
    app,
    config::{Config, ConfigErrors, Sources},
    logging,
};

/// Takes events over HTTP, answers when they are durable, and carries each exactly once into an archive of raw files
/// and into aggregates.
#[derive(Debug, Parser)]
#[command(name = "ingestd", version = version(), max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    configuration: Configuration,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Args)]
struct Configuration {
    /// The configuration file [default: ./config.toml where there is one]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The actors of this process: all, ingest, archive, aggregate, worker, or names of actors, separated by commas
    #[arg(long, global = true, value_name = "LIST")]
    roles: Option<String>,
    /// Sets a key, past the file and the environment: --set queue.kafka.brokers=127.0.0.1:9092
    #[arg(long, global = true, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the daemon (also without a subcommand)
    Run,
    /// Checks the configuration and, with --connect, each dependency that it names
    Check(check::Arguments),
    /// Prints the configuration in force, with secrets hidden
    Config(show::Arguments),
}

fn version() -> &'static str {
    let (_, librdkafka) = get_rdkafka_version();
    let text = format!("{} (commit {}, librdkafka {librdkafka})", env!("CARGO_PKG_VERSION"), env!("INGESTD_COMMIT"));
    // Once in the life of the process.
    text.leak()
}

/// Parses the arguments and does what they say. Usage errors end the process with status 2.
pub fn main() -> ExitCode {
    let Cli { configuration, command } = Cli::parse();
    let (config, sources) = match load(configuration) {
        Ok(loaded) => loaded,
        Err(errors) => {
            for line in errors.to_string().lines() {
                eprintln!("ingestd: {line}");
            }
            return ExitCode::from(app::exit::CONFIGURATION);
        }
    };
    match command {
        None | Some(Command::Run) => match logging::init(&config.logging) {
            Ok(log_level) => app::run(config, sources, log_level),
            Err(error) => {
                eprintln!("ingestd: {error:#}");
                ExitCode::from(app::exit::CONFIGURATION)
            }
        },
        Some(Command::Check(arguments)) => check::run(&arguments, &config, &sources),
        Some(Command::Config(arguments)) => show::run(&arguments, &config),
    }
}

fn load(Configuration { config, roles, set }: Configuration) -> Result<(Config, Sources), ConfigErrors> {
    let sources = Sources::new(config, roles, set)?;
    Ok((sources.load()?, sources))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn options_stand_before_and_after_the_subcommand() {
        let cli = Cli::parse_from(["ingestd", "--set", "a=1", "check", "--set", "b=2", "--roles", "worker"]);
        assert_eq!(cli.configuration.roles.as_deref(), Some("worker"));
        assert!(matches!(cli.command, Some(Command::Check(_))));
    }
}
