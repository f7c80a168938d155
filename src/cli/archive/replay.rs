//! `ingestd archive replay`.

use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::{Selected, is_topic, note_nothing, on_archive, progress};
use crate::{
    archive::tools::{
        ArchiveReader, Offsets, Selection,
        replay::{self, PartitionReport, Report},
    },
    cli::{Options, print},
    log::kafka::KafkaReplays,
    names::exit,
};

#[derive(Debug, Args)]
pub(in crate::cli) struct Replay {
    #[command(flatten)]
    pub(super) options: Options,
    /// The topic, at queue.kafka.brokers; it must exist, and be none that the daemon reads or writes
    #[arg(long, value_name = "TOPIC", value_parser = target)]
    to_topic: String,
    #[command(flatten)]
    selected: Selected,
    /// Only these offsets, such as 100..200, 100.. or ..200; the end is not among them
    #[arg(long, value_name = "A..B", default_value = "..", hide_default_value = true)]
    offset: Offsets,
    /// Read everything, and say what would be sent; send nothing
    #[arg(long)]
    dry_run: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn replay(command: Replay, before: Options) -> ExitCode {
    let Replay { options, to_topic, selected, offset, dry_run, json } = command;
    let (topic, selection) = selected.selection(offset);
    on_archive(before.and_then(options), topic, |reader| run(reader, &selection, &to_topic, dry_run, json))
}

fn run(reader: &ArchiveReader, selection: &Selection, to: &str, dry_run: bool, json: bool) -> anyhow::Result<ExitCode> {
    if reader.config.queue.kafka.brokers.is_empty() {
        eprintln!("ingestd: there are no brokers to replay to: name them by --set queue.kafka.brokers=HOST:PORT");
        return Ok(ExitCode::from(exit::CONFIGURATION));
    }
    let source = &reader.archive.topic;
    let target = KafkaReplays::open(&reader.config, source, to, dry_run)?;
    let (progress, mut report) = (progress(), Report::default());
    let outcome = replay::replay(reader, selection, &target, &progress, &mut report);
    progress.finish_and_clear();
    if report.partitions.is_empty() && outcome.is_ok() {
        note_nothing(reader);
    }
    let printed = print(&match json {
        true => json!({"topic": source, "to_topic": to, "dry_run": dry_run, "ok": outcome.is_ok(), "replayed": report.replayed,
            "partitions": report.partitions})
        .to_string(),
        false => text(&report, source, to, dry_run),
    });
    match outcome {
        Ok(()) => Ok(printed),
        Err(why) if report.replayed == 0 || dry_run => Err(why),
        Err(why) => Err(why.context(format!(
            "it stopped; the {} records that were replayed stand, and are replayed by no later run",
            report.replayed
        ))),
    }
}

fn text(report: &Report, source: &str, to: &str, dry_run: bool) -> String {
    let would = if dry_run { "would be " } else { "" };
    let line = |PartitionReport { partition, replayed, from, to }: &PartitionReport| match from.zip(*to) {
        Some((from, to)) => {
            format!("partition {partition}: {replayed} records {would}replayed, of offsets {from} to {to}")
        }
        None => format!("partition {partition}: nothing to replay"),
    };
    let mut lines: Vec<String> = report.partitions.iter().map(line).collect();
    lines.push(format!("{} records of topic {source} {would}replayed to topic {to}", report.replayed));
    lines.join("\n")
}

/// A topic of Kafka's.
fn target(text: &str) -> Result<String, String> {
    match is_topic(text) && text.len() <= 249 {
        true => Ok(text.to_owned()),
        false => Err("must be the name of a topic: 1 to 249 of A-Z a-z 0-9 . _ -".to_owned()),
    }
}
