//! `ingestd rebuild`: has a running daemon count an aggregate anew from the archive, and shows how far it is.

use std::{
    io::{self, IsTerminal as _},
    process::ExitCode,
    thread,
    time::Duration,
};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Deserialize;
use serde_json::Value;

use super::{
    Options,
    endpoint::{Endpoint, failed},
    terminal::{harmless_json, one_line},
    watch,
};
use crate::{
    log::dead_letters::{LettersError, client::AdminClient},
    names::exit,
};

#[derive(Debug, Args)]
pub(super) struct Rebuild {
    #[command(flatten)]
    options: Options,
    #[command(flatten)]
    endpoint: Endpoint,
    /// The aggregate
    name: String,
    /// The first window's start: an RFC 3339 time, or so long ago; without it, the archive's first
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    from: Option<String>,
    /// The first window's that is not rebuilt; windows that are not keep their counts
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    to: Option<String>,
    /// Lose what was counted of windows that are not rebuilt, where it cannot be kept
    #[arg(long)]
    drop: bool,
    /// Begin it, and do not wait for its end
    #[arg(long, conflicts_with_all = ["cancel", "status"])]
    detach: bool,
    /// Cancel the one that is under way: the counts of before stay
    #[arg(long, conflicts_with_all = ["from", "to", "drop", "status"])]
    cancel: bool,
    /// Show how far it is, and begin none
    #[arg(long, conflicts_with_all = ["from", "to", "drop"])]
    status: bool,
    /// Print the daemon's answers as JSON, one a line
    #[arg(long)]
    json: bool,
}

const COMMAND: &str = "rebuild";
/// Between two looks.
const LOOK: Duration = Duration::from_millis(500);
/// Of the bar.
const PARTS: u64 = 1000;
/// A daemon that restarts goes on with the rebuild; so long it may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Ends with 0 where the aggregate is rebuilt, or what else was asked for is done, and with 1 where it is not.
pub(super) fn rebuild(options: Options, command: &Rebuild) -> ExitCode {
    let client = match command.endpoint.asked_by(COMMAND, options.and_then(command.options.clone())) {
        Ok(client) => client,
        Err(exit) => return exit,
    };
    match command.run(&client) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(COMMAND, exit::FAILURE, &error),
    }
}

/// What the daemon says of a rebuild.
#[derive(Debug, Deserialize)]
struct Progress {
    state: String,
    #[serde(default)]
    partitions: Vec<Part>,
    #[serde(default)]
    records: u64,
    #[serde(default)]
    records_per_second: f64,
    remaining_seconds: Option<f64>,
    waiting: Option<String>,
    from: Option<String>,
    to: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Part {
    #[serde(default)]
    state: String,
    cursor: Option<u64>,
    end: Option<u64>,
}

impl Rebuild {
    fn run(&self, client: &AdminClient) -> Result<(), LettersError> {
        if self.cancel {
            let answer = client.cancel_rebuild(&self.name)?;
            return self.tell(&answer, || format!("the rebuild of {} is cancelled", self.name));
        }
        if self.status {
            let (answer, progress) = parse(client.rebuild(&self.name)?)?;
            return self.tell(&answer, || progress.line(&self.name));
        }
        let mut parameters = Vec::new();
        let given = [("from", self.from.clone()), ("to", self.to.clone())];
        parameters.extend(given.into_iter().filter_map(|(name, value)| Some((name, value?))));
        if self.drop {
            parameters.push(("drop", "true".to_owned()));
        }
        let (answer, progress) = parse(client.begin_rebuild(&self.name, &parameters)?)?;
        if self.detach {
            return self.tell(&answer, || progress.line(&self.name));
        }
        self.follow(client, (answer, progress))
    }

    /// Until it is over. Where this is ended before, the daemon goes on.
    fn follow(&self, client: &AdminClient, first: (Value, Progress)) -> Result<(), LettersError> {
        let bar = (io::stderr().is_terminal() && !self.json).then(progress_bar);
        let (mut answer, mut progress) = first;
        let mut waiting = None;
        if bar.is_some() {
            eprintln!("The daemon does the work: Ctrl-C leaves it at it, --cancel ends it.");
        }
        loop {
            if self.json {
                if !watch::print_line(&format!("{}\n", harmless_json(&answer.to_string()))) {
                    return Ok(());
                }
            } else if let Some(bar) = &bar {
                let part = if progress.state == "done" { Some(1.0) } else { progress.part() };
                bar.set_position((part.unwrap_or(0.0) * PARTS as f64) as u64);
                bar.set_message(one_line(&progress.line(&self.name)));
            } else if progress.waiting != waiting {
                waiting.clone_from(&progress.waiting);
                eprintln!("{}", one_line(&progress.line(&self.name)));
            }
            match progress.state.as_str() {
                "running" => {}
                "done" => {
                    if let Some(bar) = &bar {
                        bar.finish_and_clear();
                    }
                    return if self.json { Ok(()) } else { say(&progress.line(&self.name)) };
                }
                _ => {
                    let why = format!("the rebuild of {} was cancelled: the counts of before stay", self.name);
                    return Err(LettersError::Unavailable(why));
                }
            }
            thread::sleep(LOOK);
            (answer, progress) = parse(patiently(|| client.rebuild(&self.name))?)?;
        }
    }

    fn tell(&self, answer: &Value, text: impl FnOnce() -> String) -> Result<(), LettersError> {
        say(&if self.json { harmless_json(&answer.to_string()) } else { one_line(&text()) })
    }
}

/// Asks again where nobody answers.
fn patiently<T>(ask: impl Fn() -> Result<T, LettersError>) -> Result<T, LettersError> {
    let began = std::time::Instant::now();
    loop {
        match ask() {
            Err(LettersError::Unavailable(_)) if began.elapsed() < PATIENCE => thread::sleep(LOOK),
            answer => return answer,
        }
    }
}

/// What the answers are shown by while it is under way.
fn progress_bar() -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:20} {percent:>3} %  {wide_msg}");
    ProgressBar::new(PARTS).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

fn say(line: &str) -> Result<(), LettersError> {
    watch::print_line(&format!("{line}\n"));
    Ok(())
}

fn parse(answer: Value) -> Result<(Value, Progress), LettersError> {
    let progress = Progress::deserialize(&answer).map_err(|error| {
        LettersError::Unavailable(format!("the daemon's answer cannot be read ({error}): is it another release?"))
    })?;
    Ok((answer, progress))
}

impl Progress {
    /// Which part of what there was is in the new buckets; `None` where that is not known.
    fn part(&self) -> Option<f64> {
        let (mut all, mut done) = (0, 0);
        for part in &self.partitions {
            let end = part.end?;
            all += end;
            done += if part.state == "live" { end } else { part.cursor?.min(end) };
        }
        (all > 0).then(|| done as f64 / all as f64)
    }

    fn line(&self, name: &str) -> String {
        let read = format!("{} records read from the archive", grouped(self.records));
        let range = match (&self.from, &self.to) {
            (None, None) => String::new(),
            (Some(from), None) => format!(" (windows from {from} on)"),
            (None, Some(to)) => format!(" (windows before {to})"),
            (Some(from), Some(to)) => format!(" (windows from {from} to {to})"),
        };
        match self.state.as_str() {
            "none" => format!("{name} was never rebuilt, or its rebuild was cancelled"),
            "done" => format!("{name} is rebuilt{range}: {read}"),
            _ => {
                let rate = format!("{} a second", grouped(self.records_per_second as u64));
                let left = self.remaining_seconds.map_or_else(String::new, |left| {
                    let left = Duration::from_secs(left.clamp(0.0, 1e9) as u64);
                    format!(", {} left", humantime::format_duration(left))
                });
                let waiting = self.waiting.as_ref().map_or_else(String::new, |why| format!("; waiting: {why}"));
                format!("{name}{range}: {read}, {rate}{left}{waiting}")
            }
        }
    }
}

/// With commas between thousands.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_line_says_how_far_it_is() {
        let line = |progress: Value| parse(progress).unwrap().1.line("logins");
        let running = json!({
            "state": "running", "records": 1_234_567, "records_per_second": 61_000.4, "remaining_seconds": 81.2,
            "partitions": [
                { "partition": 0, "state": "history", "cursor": 500, "end": 1000 },
                { "partition": 1, "state": "live", "end": 1000 },
            ],
        });
        assert_eq!(parse(running.clone()).unwrap().1.part(), Some(0.75));
        assert_eq!(line(running), "logins: 1,234,567 records read from the archive, 61,000 a second, 1m 21s left");
        let elsewhere = json!({
            "state": "running", "partitions": [{ "partition": 0, "state": "history", "cursor": 5 }],
            "waiting": "partition 0: the archive is away", "from": "2026-11-23T08:00:00.000Z",
        });
        assert_eq!(
            line(elsewhere),
            "logins (windows from 2026-11-23T08:00:00.000Z on): 0 records read from the archive, 0 a second; \
             waiting: partition 0: the archive is away"
        );
        let done = json!({ "state": "done", "records": 999 });
        assert_eq!(line(done), "logins is rebuilt: 999 records read from the archive");
    }
}
