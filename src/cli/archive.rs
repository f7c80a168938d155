//! `ingestd archive`: list, cat, verify, skip, drain, replay.

mod replay;

use std::{
    io::{self, IsTerminal, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    str::FromStr,
};

use bytesize::ByteSize;
use chrono::{DateTime, SecondsFormat, Utc};
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use super::Options;
use crate::{
    archive::{
        tools::{
            self, ArchiveReader, CatError, Marked, Offsets, Selection,
            drain::{self, Fate, Outcome},
            verify::{self, PartitionReport, Report, UnreadableEvents},
        },
        upload::{objects::ListedObject, place},
    },
    moment,
    names::exit,
    position::{Offset, Partition},
};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List the objects, a line each, in the order of the chains
    List {
        #[command(flatten)]
        options: Options,
        #[command(flatten)]
        selected: Selected,
        /// Print JSON, an object a line
        #[arg(long)]
        json: bool,
    },
    /// Print the records' lines (NDJSON) as they stand, each partition's in the order of its chain
    Cat {
        #[command(flatten)]
        options: Options,
        #[command(flatten)]
        selected: Selected,
        /// Only these offsets, such as 100..200, 100.. or ..200; the end is not among them
        #[arg(long, value_name = "A..B", default_value = "..", hide_default_value = true)]
        offset: Offsets,
    },
    /// Read every object, and report what is missing, doubled or damaged: exit 1 when there is anything
    Verify {
        #[command(flatten)]
        options: Options,
        #[command(flatten)]
        place: Place,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Let a partition go on that is halted because retention removed records before they were archived
    Skip {
        #[command(flatten)]
        options: Options,
        /// As the archive's paths name it: TOPIC, or TOPIC@GENERATION
        #[arg(value_parser = topic)]
        topic: String,
        #[arg(value_parser = partition)]
        partition: Partition,
        /// Records below it may be missing
        #[arg(long, value_name = "OFFSET", value_parser = offset)]
        to: Offset,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Send the sealed segments that a retired machine left in its data directory: exit 1 when something stays there
    Drain {
        #[command(flatten)]
        options: Options,
        /// The data directory; no daemon may run in it
        dir: PathBuf,
        /// Print JSON, an object a line
        #[arg(long)]
        json: bool,
    },
    /// Send archived records to a Kafka topic, each with a header that says where it stood; each one once, however often this is run
    Replay(replay::Replay),
}

/// Which chains.
#[derive(Debug, Args)]
pub(super) struct Place {
    /// As the archive's paths name it: TOPIC, or TOPIC@GENERATION; without it the configured one
    #[arg(long, value_parser = topic)]
    pub(super) topic: Option<String>,
    /// Only this partition; may be repeated
    #[arg(long = "partition", value_name = "P", value_parser = partition)]
    pub(super) partitions: Vec<Partition>,
}

#[derive(Debug, Args)]
pub(super) struct Selected {
    #[command(flatten)]
    place: Place,
    /// Only what was received from this time on, such as 2026-11-23T08:00:00Z or -2h (list: by the hour of an object's first record)
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, value_parser = moment::option)]
    from: Option<DateTime<Utc>>,
    /// Only what was received before this time
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, value_parser = moment::option)]
    to: Option<DateTime<Utc>>,
}

impl Command {
    #[cfg(test)]
    pub(super) fn into_options(self) -> Options {
        match self {
            Self::List { options, .. }
            | Self::Cat { options, .. }
            | Self::Verify { options, .. }
            | Self::Skip { options, .. }
            | Self::Drain { options, .. } => options,
            Self::Replay(replay) => replay.options,
        }
    }
}

pub(super) fn archive(command: Command, before: Options) -> ExitCode {
    match command {
        Command::List { options, selected, json } => {
            let (topic, selection) = selected.selection(Offsets::default());
            on_archive(before.and_then(options), topic, |reader| list(reader, &selection, json))
        }
        Command::Cat { options, selected, offset } => {
            let (topic, selection) = selected.selection(offset);
            on_archive(before.and_then(options), topic, |reader| cat(reader, &selection))
        }
        Command::Verify { options, place: Place { topic, partitions }, json } => {
            on_archive(before.and_then(options), topic, |reader| verify(reader, &partitions, json))
        }
        Command::Skip { options, topic, partition, to, json } => {
            on_archive(before.and_then(options), Some(topic), |reader| skip(reader, partition, to, json))
        }
        Command::Drain { options, dir, json } => {
            on_archive(before.and_then(options), None, |reader| drain(reader, &dir, json))
        }
        Command::Replay(command) => replay::replay(command, before),
    }
}

/// Loads the configuration, opens the archive, and says on stderr in one sentence why something cannot be done.
pub(super) fn on_archive(
    options: Options,
    topic: Option<String>,
    act: impl FnOnce(&ArchiveReader) -> anyhow::Result<ExitCode>,
) -> ExitCode {
    let config = match super::load(&options.sources()) {
        Ok(config) => config,
        Err(exit) => return exit,
    };
    // What is written into a local archive is for its owner, as the daemon writes it.
    rustix::process::umask(rustix::fs::Mode::from_bits_truncate(0o077));
    let acted = tools::runtime().and_then(|runtime| act(&tools::open(config, topic, &runtime)?));
    acted.unwrap_or_else(|error| {
        eprintln!("ingestd: {error:#}");
        ExitCode::from(exit::FAILURE)
    })
}

fn list(reader: &ArchiveReader, selection: &Selection, json: bool) -> anyhow::Result<ExitCode> {
    let objects = tools::list(reader, selection)?;
    if objects.is_empty() {
        note_nothing(reader);
    }
    let topic = &reader.archive.topic;
    let line = |object: &ListedObject| {
        let (name, key) = (object.name, object.name.key(topic));
        let hour = name.hour_start().to_rfc3339_opts(SecondsFormat::Secs, true);
        match json {
            true => json!({"key": key.as_ref(), "partition": name.partition, "x": name.chain_offset, "size": object.size, "hour": hour})
                .to_string(),
            false => format!("{:>9}  {:>20}  {:>10}  {hour}  {key}", name.partition, name.chain_offset, size(object.size)),
        }
    };
    let mut out = io::BufWriter::new(io::stdout().lock());
    let heading = (!json && !objects.is_empty())
        .then(|| format!("{:>9}  {:>20}  {:>10}  {:<20}  key", "partition", "chain position", "size", "hour"));
    for line in heading.into_iter().chain(objects.iter().map(line)) {
        if let Err(error) = writeln!(out, "{line}") {
            return Ok(written(Err(error)));
        }
    }
    Ok(written(out.flush()))
}

fn cat(reader: &ArchiveReader, selection: &Selection) -> anyhow::Result<ExitCode> {
    let mut out = io::BufWriter::with_capacity(256 * 1024, io::stdout().lock());
    match tools::cat(reader, selection, &mut out) {
        Ok(damaged) => {
            for sentence in &damaged {
                eprintln!("ingestd: {sentence}");
            }
            Ok(if damaged.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(exit::FAILURE) })
        }
        Err(CatError::Output(error)) => {
            // What is left in the buffer goes nowhere.
            drop(out.into_parts());
            Ok(written(Err(error)))
        }
        Err(CatError::Store(error)) => Err(error),
    }
}

fn verify(reader: &ArchiveReader, partitions: &[Partition], json: bool) -> anyhow::Result<ExitCode> {
    let progress = progress();
    let report = verify::verify(reader, partitions, &progress);
    progress.finish_and_clear();
    let report = report?;
    if report.partitions.is_empty() && report.ok {
        note_nothing(reader);
    }
    let text = if json { json!(report).to_string() } else { table(&report) };
    let printed = super::print(&text);
    Ok(if report.ok { printed } else { ExitCode::from(exit::FAILURE) })
}

fn skip(reader: &ArchiveReader, partition: Partition, to: Offset, json: bool) -> anyhow::Result<ExitCode> {
    let topic = &reader.archive.topic;
    let Marked { key, end } = tools::skip(reader, partition, to)?;
    Ok(super::print(&match json {
        true => json!({"topic": topic, "partition": partition, "end": end, "to": to, "key": key}).to_string(),
        false => format!(
            "partition {partition} of {topic} may go on without offsets {end} to {to}, where the log has lost them: \
             the worker that holds it reads {key} within seconds"
        ),
    }))
}

fn drain(reader: &ArchiveReader, dir: &Path, json: bool) -> anyhow::Result<ExitCode> {
    let (mut sent, mut archived, mut left) = (0, 0, 0);
    drain::drain(reader, dir, |outcome| {
        let Outcome { file, topic, range, fate } = outcome;
        let (word, count, why) = match fate {
            Fate::Sent => ("sent", &mut sent, None),
            Fate::Archived => ("archived", &mut archived, None),
            Fate::Left(why) => ("left", &mut left, Some(why)),
        };
        *count += 1;
        let file = file.display();
        // A reader that has gone does not stop it: what was begun is better finished.
        super::print(&match (json, range) {
            (true, range) => {
                let [partition, x, end] = match range {
                    Some((partition, x, end)) => [json!(partition), json!(x), json!(end)],
                    None => [Value::Null, Value::Null, Value::Null],
                };
                json!({"topic": topic, "partition": partition, "x": x, "end": end, "outcome": word, "reason": why,
                    "file": file.to_string()})
                .to_string()
            }
            (false, range) => {
                let range = range.map(|(partition, x, end)| format!(" partition {partition}, offsets {x} to {end}"));
                let why = why.map(|why| format!(": {why}")).unwrap_or_default();
                format!("{word}: {topic}{} ({file}){why}", range.unwrap_or_default())
            }
        });
    })?;
    if !json {
        super::print(&format!("{sent} segments sent, {archived} were archived already, {left} left"));
    }
    Ok(if left == 0 { ExitCode::SUCCESS } else { ExitCode::from(exit::FAILURE) })
}

/// On a terminal only; what is piped stays clean.
pub(super) fn progress() -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:40} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left");
    ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// An archive that holds nothing of this topic is whole; but a wrong name should not go unnoticed.
pub(super) fn note_nothing(reader: &ArchiveReader) {
    eprintln!("ingestd: {} holds nothing such of topic {}", place(&reader.config), &reader.archive.topic);
}

fn table(report: &Report) -> String {
    let mut lines = vec![format!(
        "{:>9}  {:>8}  {:>12}  {:>10}  {:>14}  {:>14}  {:>6}  {:>6}",
        "partition", "objects", "records", "size", "first offset", "end", "holes", "faults"
    )];
    let known = |offset: Option<Offset>| offset.map_or("-".to_owned(), |offset| offset.to_string());
    for report in &report.partitions {
        let PartitionReport { partition, objects, records, bytes, holes_in_all, faults_in_all, .. } = report;
        lines.push(format!(
            "{partition:>9}  {objects:>8}  {records:>12}  {:>10}  {:>14}  {:>14}  {holes_in_all:>6}  {faults_in_all:>6}",
            size(*bytes),
            known(report.first_offset),
            known(report.end)
        ));
    }
    for partition in &report.partitions {
        let number = partition.partition;
        for hole in &partition.holes {
            lines.push(format!("partition {number}: hole: offsets {} to {} before {}", hole.from, hole.to, hole.key));
        }
        for UnreadableEvents { key, lines: count, offset, message } in &partition.unreadable_events {
            lines.push(format!(
                "partition {number}: {key}: not every JSON reader takes {count} of its events, the first at offset {offset}: \
                 {message}"
            ));
        }
        for fault in &partition.faults {
            lines.push(format!("partition {number}: {}", sentence(fault)));
        }
        let told = partition.faults.len() as u64;
        if partition.faults_in_all > told {
            lines.push(format!("partition {number}: {} more faults", partition.faults_in_all - told));
        }
    }
    lines.extend(report.faults.iter().map(sentence));
    let (objects, records) = (report.objects(), report.records());
    lines.push(match report.faults_in_all() {
        0 => format!("no fault in {objects} objects with {records} records"),
        faults => format!("{faults} faults in {objects} objects with {records} readable records"),
    });
    lines.join("\n")
}

fn sentence(fault: &verify::Fault) -> String {
    let place = fault.key.as_deref().map(|key| format!("{key}: ")).unwrap_or_default();
    let more = match fault.lines {
        Some(lines) if lines > 1 => format!(" (and {} more lines)", lines - 1),
        _ => String::new(),
    };
    format!("{}: {place}{}{more}", fault.kind, fault.message)
}

fn size(bytes: u64) -> String {
    ByteSize(bytes).display().iec().to_string()
}

/// A reader that has gone (`| head`) is no failure.
fn written(outcome: io::Result<()>) -> ExitCode {
    match outcome {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            eprintln!("stdout cannot be written: {error}");
            ExitCode::from(exit::FAILURE)
        }
        _ => ExitCode::SUCCESS,
    }
}

impl Selected {
    fn selection(self, offsets: Offsets) -> (Option<String>, Selection) {
        let Place { topic, partitions } = self.place;
        (topic, Selection { partitions, from: self.from, to: self.to, offsets })
    }
}

impl FromStr for Offsets {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const RULE: &str = "must be two offsets, such as 100..200, 100.. or ..200";
        let (from, to) = text.split_once("..").ok_or(RULE)?;
        let number = |text: &str| (!text.is_empty()).then(|| text.parse().map(Offset).map_err(|_| RULE)).transpose();
        Ok(Self { from: number(from)?.unwrap_or_default(), to: number(to)? })
    }
}

fn partition(text: &str) -> Result<Partition, String> {
    let number = text.parse().ok().filter(|number| *number >= 0);
    number.map(Partition).ok_or_else(|| "must be the number of a partition, from 0 on".to_owned())
}

fn offset(text: &str) -> Result<Offset, String> {
    text.parse().map(Offset).map_err(|_| "must be an offset, from 0 on".to_owned())
}

/// Kafka's rule, but for the length.
fn is_topic(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    !name.is_empty() && ![".", ".."].contains(&name) && name.chars().all(plain)
}

/// What can stand in a path of the archive.
fn topic(text: &str) -> Result<String, String> {
    let (name, generation) = text.split_once('@').unwrap_or((text, "1"));
    let named = is_topic(name);
    let numbered = generation.parse::<u32>().is_ok_and(|number| number > 0 && number.to_string() == generation);
    match named && numbered {
        true => Ok(text.to_owned()),
        false => Err("must be TOPIC or TOPIC@GENERATION, as it stands in the archive's paths".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_are_two_with_dots_between_and_each_may_be_left_out() {
        let offsets = |text: &str| text.parse().map(|Offsets { from, to }| (from.0, to.map(|to| to.0)));
        assert_eq!(offsets("1..5"), Ok((1, Some(5))));
        assert_eq!((offsets("7.."), offsets("..7"), offsets("..")), (Ok((7, None)), Ok((0, Some(7))), Ok((0, None))));
        for wrong in ["", "5", "1-5", "a..b", "1..=5", "-1.."] {
            assert!(offsets(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_topic_is_named_as_in_the_archives_paths() {
        for good in ["events", "a.b_c-d", "events@2"] {
            assert_eq!(topic(good), Ok(good.to_owned()));
        }
        for wrong in ["", "..", "a/b", "events@", "events@0", "events@02", "events@x", "@1", "a@1@2"] {
            assert!(topic(wrong).is_err(), "{wrong}");
        }
    }
}
