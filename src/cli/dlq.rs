//! `ingestd dlq`: the dead letters of the running daemon, or, while none listens, of its queue.

use std::{io::Read, path::PathBuf, process::ExitCode, sync::Arc};

use arc_swap::ArcSwap;
use clap::{Args, Subcommand};
use serde::Serialize;
use tokio::sync::mpsc;

use super::{
    Options,
    endpoint::{Endpoint, failed},
    load, print,
    terminal::{harmless_json, one_line},
};
use crate::{
    config::{Config, LiveConfig, QueueKind},
    data_dir::DataDir,
    health::Health,
    log::{
        dead_letters::{DeadLetters, Filter, FullLetter, HeaderText, LettersError, Listed, Purge, Replay, State},
        embedded::{EmbeddedLetters, EmbeddedLog},
        kafka::KafkaLetters,
    },
    names::exit,
};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List letters, the oldest first
    List(Shared),
    /// Show letters with their bytes, headers and reasons
    Show(Shared),
    /// Send letters through the door again; each one once, however often this is run
    Replay {
        #[command(flatten)]
        shared: Shared,
        /// Replay these bytes in the place of the one letter's value ("-" reads them from stdin)
        #[arg(long, value_name = "FILE", requires = "ids")]
        value: Option<PathBuf>,
    },
    /// Remove letters for good
    Purge(Shared),
}

#[derive(Debug, Args)]
pub(super) struct Shared {
    #[command(flatten)]
    options: Options,
    #[command(flatten)]
    endpoint: Endpoint,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    filter: Filter,
}

const COMMAND: &str = "dlq";

pub(super) fn dlq(options: Options, command: &Command) -> ExitCode {
    let (Command::List(shared) | Command::Show(shared) | Command::Replay { shared, .. } | Command::Purge(shared)) =
        command;
    let config = match load(&options.and_then(shared.options.clone()).sources()) {
        Ok(config) => config,
        Err(exit) => return exit,
    };
    if matches!(command, Command::Purge(_)) && shared.filter.selects_everything() {
        eprintln!("ingestd dlq purge: say which: --id, --reason, --partition, --from or --to (--to now is all)");
        return ExitCode::from(2);
    }
    let (letters, local) = match open(config, shared) {
        Ok(opened) => opened,
        Err((exit, why)) => return failed(COMMAND, exit, &why),
    };
    let done = work(&*letters, command, &shared.filter, shared.json);
    if let Some((log, _lock)) = local {
        // Each operation has said for itself whether it is durable; no sink was read here.
        let _ = log.close();
    }
    done.unwrap_or_else(|error| failed(COMMAND, exit::FAILURE, &error))
}

/// The letters, and where no daemon listens the embedded log that they are in, with its lock.
type Opened = (Box<dyn DeadLetters>, Option<(EmbeddedLog, DataDir)>);

/// The daemon where one listens, else what it would work on. An error is the exit status and why.
fn open(config: Config, shared: &Shared) -> Result<Opened, (u8, String)> {
    let refuse = |why: String| (exit::FAILURE, why);
    if let Some(client) = shared.endpoint.client(&config)?
        && (shared.endpoint.is_named() || client.is_listened_to())
    {
        return Ok((Box::new(client), None));
    }
    let config: LiveConfig = Arc::new(ArcSwap::from_pointee(config));
    let at_start = config.load_full();
    if at_start.queue.kind == QueueKind::Kafka {
        return Ok((Box::new(KafkaLetters::new(config)), None));
    }
    let dir = &at_start.data.dir;
    if !dir.join("log.db").is_file() {
        return Err(refuse(format!(
            "nobody listens at {}, and there is no embedded log in {}: see --admin, --config and data.dir",
            at_start.admin.listen,
            dir.display()
        )));
    }
    let in_use = |error| refuse(format!("nobody listens at {}; {error:#}; see --admin", at_start.admin.listen));
    let lock = DataDir::open(dir).map_err(in_use)?;
    let (escalations, _) = mpsc::unbounded_channel();
    // Without sinks nothing is trimmed.
    let log = EmbeddedLog::open(dir, Vec::new(), config.clone(), Health::default(), Arc::default(), escalations);
    let log = log.map_err(|error| refuse(format!("{error:#}")))?;
    Ok((Box::new(EmbeddedLetters::new(log.clone(), config)), Some((log, lock))))
}

fn work(letters: &dyn DeadLetters, command: &Command, filter: &Filter, json: bool) -> Result<ExitCode, LettersError> {
    match command {
        Command::List(_) => Ok(show(json, &letters.list(filter)?, list_text)),
        Command::Show(_) => {
            let ids = match filter.ids.as_slice() {
                [] => letters.list(filter)?.dead_letters.into_iter().map(|letter| letter.id).collect(),
                ids => ids.to_vec(),
            };
            let full = ids.iter().map(|id| letters.show(id)).collect::<Result<Vec<_>, _>>()?;
            Ok(match full.as_slice() {
                // One that was named is an object, which is easy to take apart.
                [one] if !filter.ids.is_empty() => show(json, one, full_text),
                full => show(json, full, |full| full.iter().map(full_text).collect::<Vec<_>>().join("\n")),
            })
        }
        Command::Replay { value, .. } => {
            let correction = value.as_ref().map(read_value).transpose()?;
            let done = letters.replay(filter, correction.as_deref())?;
            let printed = show(json, &done, replay_text);
            Ok(if done.refused.is_empty() { printed } else { ExitCode::from(exit::FAILURE) })
        }
        Command::Purge(_) => Ok(show(json, &letters.purge(filter)?, purge_text)),
    }
}

fn read_value(path: &PathBuf) -> Result<Vec<u8>, LettersError> {
    let read = if path.as_os_str() == "-" {
        let mut bytes = Vec::new();
        std::io::stdin().lock().read_to_end(&mut bytes).map(|_| bytes)
    } else {
        std::fs::read(path)
    };
    let bytes =
        read.map_err(|error| LettersError::Invalid(format!("--value {} cannot be read: {error}", path.display())))?;
    // An editor ends a file with a line's end.
    let end = bytes.iter().rposition(|byte| !matches!(byte, b'\n' | b'\r')).map_or(0, |last| last + 1);
    if end == 0 {
        return Err(LettersError::Invalid(format!("--value {}: it is empty", path.display())));
    }
    Ok(bytes[..end].to_vec())
}

fn show<T: Serialize + ?Sized>(json: bool, result: &T, text: impl Fn(&T) -> String) -> ExitCode {
    if !json {
        return print(&text(result));
    }
    match serde_json::to_string(result) {
        Ok(json) => print(&harmless_json(&json)),
        Err(error) => failed(COMMAND, exit::FAILURE, &format!("the result cannot be written as JSON: {error}")),
    }
}

fn list_text(listed: &Listed) -> String {
    let mut lines: Vec<_> = listed
        .dead_letters
        .iter()
        .map(|letter| {
            let state = match letter.state {
                State::Open => String::new(),
                state => format!(" ({})", state.as_str()),
            };
            let (time, size) = (letter.time.to_rfc3339(), letter.size);
            format!("{time}  {}{state}  {} bytes  {}: {}", letter.id, size, letter.reason, one_line(&letter.message))
        })
        .collect();
    if lines.is_empty() {
        lines.push("no dead letters".to_owned());
    }
    if listed.truncated {
        lines.push("there are more: raise --limit, or narrow with --from, --to, --reason, --partition".to_owned());
    }
    lines.join("\n")
}

fn full_text(letter: &FullLetter) -> String {
    let FullLetter { summary, key, key_base64, value, value_base64, headers } = letter;
    let mut lines = vec![
        format!("id        {}", summary.id),
        format!("state     {}", summary.state.as_str()),
        format!("reason    {}", summary.reason),
        format!("message   {}", one_line(&summary.message)),
        format!("found     {}", summary.time.to_rfc3339()),
        format!("received  {}", summary.received.to_rfc3339()),
    ];
    let key = key.as_deref().map(one_line).or(key_base64.as_ref().map(|key| format!("(base64) {key}")));
    lines.extend(key.map(|key| format!("key       {key}")));
    lines.extend(headers.iter().map(|header| match header {
        HeaderText::Text { name, value: Some(value) } => {
            format!("header    {}: {}", one_line(name), one_line(value))
        }
        HeaderText::Text { name, value: None } => format!("header    {} (null)", one_line(name)),
        HeaderText::Base64 { name, base64 } => format!("header    {}: (base64) {base64}", one_line(name)),
    }));
    let visible = |value: &String| value.replace(|c: char| c.is_control() && c != '\n' && c != '\t', "\u{fffd}");
    let value = match (value, value_base64) {
        (Some(value), _) => visible(value),
        (None, Some(base64)) => format!("(base64) {base64}"),
        (None, None) if summary.value_omitted => {
            "(was too large to be kept here: the archive has it; replay it with --value FILE)".to_owned()
        }
        (None, None) => "(null)".to_owned(),
    };
    lines.extend([format!("value     {} bytes", summary.size), value, String::new()]);
    lines.join("\n")
}

fn replay_text(done: &Replay) -> String {
    let mut lines: Vec<_> = done
        .refused
        .iter()
        .map(|refused| format!("not replayed: {}  {}: {}", refused.id, refused.reason, one_line(&refused.message)))
        .collect();
    let (replayed, already, refused) = (done.replayed.len(), done.already.len(), done.refused.len());
    lines.push(format!("{replayed} replayed, {already} were closed before, {refused} are still no valid events"));
    if done.truncated {
        lines
            .push("there are more: run it again, with --from or --reason where refused ones are in the way".to_owned());
    }
    lines.join("\n")
}

fn purge_text(done: &Purge) -> String {
    let more = if done.truncated { "; there are more: run it again" } else { "" };
    format!("{} purged{more}", done.purged.len())
}
