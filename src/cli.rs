//! The command line: which command, and where the configuration comes from.

use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
    sync::LazyLock,
};

use clap::{Args, Parser, Subcommand};
use serde_json::{Value, json};

use crate::{
    app::{self, BACKENDS, CheckLine},
    archive::upload::{Race, settings::Settings},
    config::{Config, ConfigErrors, Setting, Sources},
    names::exit,
    position::Timestamp,
    tls,
};

mod archive;
mod dlq;
mod endpoint;
mod key;
mod rebuild;
mod schema;
mod stats;
mod status;
mod terminal;
mod watch;

/// Takes events over HTTP and carries each exactly once into an archive and into aggregates.
#[derive(Debug, Parser)]
#[command(name = "ingestd", version = version(), subcommand_help_heading = "Commands")]
struct Cli {
    #[command(flatten)]
    options: Options,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon (this is what happens without a command)
    Run(Options),
    /// Check the configuration, with --connect whether everything that it names answers, or with --schema what is archived
    Check {
        #[command(flatten)]
        options: Options,
        /// Ask the queue, the archive and the store, too
        #[arg(long)]
        connect: bool,
        /// With --connect: ask the archive's store harder whether of many PUTs of one object one wins
        #[arg(long, requires = "connect")]
        thorough: bool,
        #[command(flatten)]
        of_schema: Box<schema::OfSchema>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show what a running daemon says of itself, on one page
    Status(status::Status),
    /// Show what a running daemon counted: a table with a line over time for each group, or without a name the aggregates
    Stats(stats::Stats),
    /// Have a running daemon count an aggregate anew from the archive, by its present definition
    Rebuild(rebuild::Rebuild),
    /// List, show, replay and purge dead letters: of the running daemon, or of its queue while none runs
    #[command(subcommand)]
    Dlq(dlq::Command),
    /// Print the effective configuration as TOML, secrets hidden
    Config {
        #[command(flatten)]
        options: Options,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Make keys for those who send events
    #[command(subcommand)]
    Key(key::Command),
    /// Look into the archive, check it, replay it, mend what only an operator can
    #[command(subcommand)]
    Archive(archive::Command),
}

/// Each command takes them behind its name; before it they mean the same.
#[derive(Debug, Clone, Default, Args)]
struct Options {
    /// Configuration file; without it ./config.toml, if there is one
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// What this process runs, such as "ingest" or "archive,aggregate"
    #[arg(long, value_name = "LIST")]
    roles: Option<String>,
    /// Set a key, such as http.listen=0.0.0.0:8080; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    settings: Vec<Setting>,
}

impl Options {
    /// Those behind the command's name come later, so they win.
    fn and_then(mut self, later: Self) -> Self {
        self.settings.extend(later.settings);
        Self { config: later.config.or(self.config), roles: later.roles.or(self.roles), settings: self.settings }
    }

    /// What paths in the configuration are relative to.
    fn folder(&self) -> PathBuf {
        let folder = self.config.as_deref().and_then(std::path::Path::parent);
        folder.map(std::path::Path::to_owned).unwrap_or_default()
    }

    fn sources(self) -> Sources {
        let mut settings = self.settings;
        if let Some(value) = self.roles {
            settings.push(Setting { flag: "--roles", key: "roles".to_owned(), value });
        }
        Sources::new(self.config, settings, BACKENDS)
    }
}

/// Reads the command line and does what it says.
pub fn main() -> ExitCode {
    let Cli { options, command } = Cli::parse();
    match command.unwrap_or(Command::Run(Options::default())) {
        Command::Run(later) => run(options.and_then(later).sources()),
        Command::Check { options: later, of_schema, json, .. } if of_schema.schema.is_some() => {
            let file = of_schema.schema.clone().unwrap_or_default();
            schema::against_archive(&file, *of_schema, options.and_then(later), json)
        }
        Command::Check { options: later, connect, thorough, json, .. } => {
            check(&options.and_then(later).sources(), connect, thorough, json)
        }
        Command::Status(command) => status::status(options, &command),
        Command::Stats(command) => stats::stats(options, &command),
        Command::Rebuild(command) => rebuild::rebuild(options, &command),
        Command::Dlq(command) => dlq::dlq(options, &command),
        Command::Config { options: later, json } => show(&options.and_then(later).sources(), json),
        Command::Key(command) => key::key(command),
        Command::Archive(command) => archive::archive(command, options),
    }
}

fn run(sources: Sources) -> ExitCode {
    match load(&sources) {
        Ok(config) => app::run(config, sources),
        Err(exit) => exit,
    }
}

/// `0.1.0 (commit 0123456789ab, librdkafka 2.12.1)`
pub fn version() -> &'static str {
    static VERSION: LazyLock<String> = LazyLock::new(|| {
        let (_, librdkafka) = rdkafka::util::get_rdkafka_version();
        let (version, commit) = (env!("CARGO_PKG_VERSION"), env!("INGESTD_COMMIT"));
        format!("{version} (commit {commit}, librdkafka {librdkafka})")
    });
    &VERSION
}

/// Loads it, or says on stderr what is wrong, a line each.
fn load(sources: &Sources) -> Result<Config, ExitCode> {
    sources.load().map_err(|errors| {
        eprintln!("{errors}");
        ExitCode::from(exit::CONFIGURATION)
    })
}

/// Prints a result. A reader that has gone (`| head`) is no failure.
fn print(text: &str) -> ExitCode {
    let mut out = io::stdout().lock();
    match writeln!(out, "{}", text.trim_end()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            eprintln!("stdout cannot be written: {error}");
            ExitCode::from(exit::FAILURE)
        }
        _ => ExitCode::SUCCESS,
    }
}

/// Says what is wrong with the configuration, on stderr a line each.
fn refused(errors: &ConfigErrors, json: bool) -> ExitCode {
    eprintln!("{errors}");
    if json {
        print(&json!({ "ok": false, "errors": errors }).to_string());
    }
    ExitCode::from(exit::CONFIGURATION)
}

/// Is the configuration right, and does everything that it names answer?
fn check(sources: &Sources, connect: bool, thorough: bool, json: bool) -> ExitCode {
    let config = match sources.load() {
        Ok(config) => config,
        Err(errors) => return refused(&errors, json),
    };
    let now = Timestamp::now();
    let mut config_warnings = [config.http.auth.keys.warnings(now), config.admin.auth.keys.warnings(now)].concat();
    match tls::load(&config) {
        Ok(loaded) => config_warnings.extend(tls::warnings(&loaded, now)),
        Err(errors) => return refused(&errors, json),
    }
    let dependencies =
        if connect { app::check(config, if thorough { Race::THOROUGH } else { Race::USUAL }) } else { Vec::new() };
    config_warnings.iter().for_each(|warning| eprintln!("warning: {warning}"));
    let ok = dependencies.iter().all(|line| line.outcome.is_ok());
    let report = if json { as_json(ok, sources, &dependencies) } else { as_text(sources, &dependencies) };
    let printed = print(&report);
    if ok { printed } else { ExitCode::from(exit::FAILURE) }
}

fn as_text(sources: &Sources, dependencies: &[CheckLine]) -> String {
    let mut lines = vec![format!("configuration ok: {sources}")];
    lines.extend(dependencies.iter().map(|CheckLine { what, outcome }| match outcome {
        Ok(found) => format!("{what} ok: {found}"),
        Err(reason) => format!("{what} failed: {reason}"),
    }));
    lines.join("\n")
}

fn as_json(ok: bool, sources: &Sources, dependencies: &[CheckLine]) -> String {
    let dependencies: Vec<Value> = dependencies
        .iter()
        .map(|CheckLine { what, outcome }| {
            let message = outcome.as_ref().unwrap_or_else(|reason| reason);
            json!({ "what": what, "ok": outcome.is_ok(), "message": message })
        })
        .collect();
    json!({ "ok": ok, "configuration": sources.to_string(), "dependencies": dependencies }).to_string()
}

/// Prints the effective configuration.
fn show(sources: &Sources, json: bool) -> ExitCode {
    let config = match load(sources) {
        Ok(config) => in_force(config).without_secrets(),
        Err(exit) => return exit,
    };
    let text = if json {
        serde_json::to_string_pretty(&config).map_err(|error| error.to_string())
    } else {
        toml::to_string(&config).map_err(|error| error.to_string())
    };
    match text {
        Ok(text) => print(&text),
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

#[cfg(test)]
mod tests {
    use super::*;

    fn options(arguments: &[&str]) -> Options {
        let cli = Cli::try_parse_from(["ingestd"].iter().chain(arguments)).unwrap();
        match cli.command {
            None => cli.options,
            Some(Command::Dlq(_) | Command::Status(_) | Command::Stats(_) | Command::Rebuild(_)) => {
                unreachable!("its options stand with its own")
            }
            Some(Command::Key(_)) => unreachable!("it reads no configuration"),
            Some(Command::Run(options) | Command::Check { options, .. } | Command::Config { options, .. }) => {
                cli.options.and_then(options)
            }
            Some(Command::Archive(command)) => cli.options.and_then(command.into_options()),
        }
    }

    #[test]
    fn the_command_line_is_well_formed() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn options_stand_before_and_behind_the_command() {
        let both = options(&["--set", "a=1", "--config", "x", "check", "--set", "b=2=3", "--roles", "ingest"]);
        let settings: Vec<_> = both.settings.iter().map(|setting| (&*setting.key, &*setting.value)).collect();
        assert_eq!(settings, [("a", "1"), ("b", "2=3")]);
        let archive = options(&["--set", "a=1", "archive", "verify", "--set", "b=2"]).settings;
        assert_eq!(archive.iter().map(|setting| &*setting.value).collect::<Vec<_>>(), ["1", "2"]);
        assert_eq!((both.config, both.roles), (Some(PathBuf::from("x")), Some("ingest".to_owned())));
    }

    #[test]
    fn what_is_not_built_is_not_understood() {
        for arguments in [["send", "url"], ["dlq", "drop"], ["run", "--buffer"], ["--set", "no-value"]] {
            let error = Cli::try_parse_from(["ingestd"].iter().chain(&arguments)).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{arguments:?}");
        }
    }
}
