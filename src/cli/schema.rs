//! `ingestd check --schema FILE --against archive`: what a schema would have refused of what is archived.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use chrono::{DateTime, Utc};
use clap::{Args, ValueEnum};
use serde_json::json;

use super::{
    Options,
    archive::{Place, note_nothing, on_archive, progress},
};
use crate::{
    archive::tools::{
        ArchiveReader, Offsets, Selection,
        conform::{self, Refused, Report},
    },
    config::Config,
    moment,
    names::exit,
    schema::Schema,
};

/// What events are taken from.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Against {
    Archive,
}

#[derive(Debug, Args)]
pub(super) struct OfSchema {
    /// Say what this JSON Schema (2020-12) would have refused: exit 1 when there is anything
    #[arg(long, value_name = "FILE", requires = "against", conflicts_with = "connect")]
    pub schema: Option<PathBuf>,
    /// With --schema: of what
    #[arg(long, requires = "schema")]
    against: Option<Against>,
    /// With --schema: the type whose events are looked at; may be repeated. Without it that of [[event.types]] with this file
    #[arg(long = "type", value_name = "NAME", requires = "schema")]
    types: Vec<String>,
    #[command(flatten)]
    place: Place,
    /// With --schema: only what was received from this time on, such as 2026-11-23T08:00:00Z or -7d
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, value_parser = moment::option, requires = "schema")]
    from: Option<DateTime<Utc>>,
    /// With --schema: only what was received before this time
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, value_parser = moment::option, requires = "schema")]
    to: Option<DateTime<Utc>>,
}

/// Reads the archive. What is wrong with the file, or with what was asked for, is said on stderr.
pub(super) fn against_archive(file: &Path, of: OfSchema, options: Options, json: bool) -> ExitCode {
    let OfSchema { types, place: Place { topic, partitions }, from, to, .. } = of;
    let schema = match Schema::compile(file) {
        Ok(schema) => schema,
        Err(unusable) => {
            eprintln!("ingestd: {unusable}");
            return ExitCode::from(exit::CONFIGURATION);
        }
    };
    let folder = options.folder();
    let selection = Selection { partitions, from, to, offsets: Offsets::default() };
    on_archive(options, topic, |reader| {
        let types = if types.is_empty() { types_of(file, &reader.config, &folder) } else { types };
        if types.is_empty() {
            eprintln!(
                "ingestd: {} is the schema of no type in [[event.types]]: name the type whose events it is for, such as \
                 --type login_success",
                file.display()
            );
            return Ok(ExitCode::from(exit::CONFIGURATION));
        }
        report(reader, &selection, &types, file, &schema, json)
    })
}

/// The types that have this file for their schema.
fn types_of(file: &Path, config: &Config, folder: &Path) -> Vec<String> {
    let real = |path: &Path| fs::canonicalize(path).ok();
    let meant = real(file);
    let is_meant = |path: &PathBuf| meant.is_some() && real(&folder.join(path)) == meant;
    let types = config.event.types.iter().filter(|of| of.schema.as_ref().is_some_and(is_meant));
    types.map(|of| of.name.clone()).collect()
}

fn report(
    reader: &ArchiveReader,
    selection: &Selection,
    types: &[String],
    file: &Path,
    schema: &Schema,
    json: bool,
) -> anyhow::Result<ExitCode> {
    let progress = progress();
    let report = conform::conform(reader, selection, types, schema, &progress);
    progress.finish_and_clear();
    let report = report?;
    report.damaged.iter().for_each(|sentence| eprintln!("ingestd: {sentence}"));
    if report.records == 0 {
        note_nothing(reader);
    }
    let printed = super::print(&if json {
        let mut all = json!(report);
        (all["schema"], all["types"]) = (json!(file.display().to_string()), json!(types));
        all.to_string()
    } else {
        as_text(&report, types)
    });
    Ok(if report.ok { printed } else { ExitCode::from(exit::FAILURE) })
}

fn as_text(report: &Report, types: &[String]) -> String {
    let line = |refused: &Refused| {
        let Refused { pointer, schema_pointer, rule, events, first, .. } = refused;
        let places = first.iter().map(|place| format!("{}/{}", place.partition, place.offset));
        let places = places.collect::<Vec<_>>().join(", ");
        let word = if *events as usize > first.len() { "first at" } else { "at" };
        format!(
            "{events:>10}  at {pointer:?}: {rule} ({schema_pointer} of the schema); {word} partition/offset {places}"
        )
    };
    let mut lines: Vec<String> = report.refusals.iter().map(line).collect();
    if report.other > 0 {
        lines.push(format!("{:>10}  in further ways", report.other));
    }
    let Report { records, events, refused, .. } = report;
    let names = types.iter().map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", ");
    lines.push(match refused {
        0 => format!("none of {events} events of type {names} would have been refused, of {records} records"),
        _ => format!("{refused} of {events} events of type {names} would have been refused, of {records} records"),
    });
    lines.join("\n")
}
