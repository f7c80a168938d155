//! Measures ingestd beside a bare handler and a bare drain that do the same work, on real services, in turns.
//!
//! `./dev bench` prints a table of medians, spreads and ratios; docs/performance.md says how it is
//! measured and what came of it. The yardstick is this program again, as a process of its own.

mod door;
mod drain;
mod events;
mod hostile;
mod load;
mod outage;
mod plot;
mod process;
mod query;
mod rows;
mod stage;
#[allow(dead_code, unused_imports, reason = "each program uses a part of it")]
#[path = "../../tests/support/mod.rs"]
mod support;
mod table;
#[path = "../yardstick/mod.rs"]
mod yardstick;

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::Context;
use clap::{Parser, Subcommand};
use serde_json::json;

use rows::{Against, Row, System};
use stage::Stage;
use table::{Metric, Results};

/// Measures ingestd beside a bare handler and a bare drain. Progress goes to stderr, the table to stdout.
#[derive(Parser)]
#[command(name = "pipeline")]
struct Options {
    #[command(subcommand)]
    part: Option<Part>,
    /// How often each row is measured, on both systems in turns.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// How long each load is measured.
    #[arg(long, default_value_t = 4.0)]
    seconds: f64,
    /// How long it runs before.
    #[arg(long, default_value_t = 1.0)]
    warm_up: f64,
    /// How many records each drain reads: some ten seconds' work, so that start and joining weigh little, and memory has
    /// reached what it stays at.
    #[arg(long, default_value_t = 4_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    events: u64,
    /// How many seconds a dependency is silent, in the rows for that.
    #[arg(long, default_value_t = 300.0)]
    outage: f64,
    /// Rows whose name contains one of these.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// The row of this name; may be repeated.
    #[arg(long)]
    row: Vec<String>,
    /// Also the rows that are only measured on request.
    #[arg(long)]
    all: bool,
    /// Names the rows and ends.
    #[arg(long)]
    list: bool,
    /// All samples, for other programs.
    #[arg(long)]
    json: Option<PathBuf>,
    /// One short round: whether the bench works, no figures to rely on.
    #[arg(long)]
    quick: bool,
    /// Cargo says so.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Subcommand)]
enum Part {
    /// What ingestd is measured against.
    #[command(subcommand, hide = true)]
    Yardstick(yardstick::Yardstick),
}

fn main() -> anyhow::Result<()> {
    let mut options = Options::parse();
    if let Some(Part::Yardstick(yardstick)) = options.part {
        return yardstick.run();
    }
    if options.quick {
        (options.rounds, options.seconds, options.warm_up, options.events) = (1, 1.0, 0.2, 50_000);
        options.outage = 5.0;
    }
    let rows = selected(&options);
    let unknown: Vec<_> = options.row.iter().filter(|name| rows.iter().all(|row| row.name != **name)).collect();
    anyhow::ensure!(unknown.is_empty(), "no row is called {unknown:?}; --list --all names them");
    anyhow::ensure!(!rows.is_empty(), "no row's name contains any of {:?}; --list names them", options.only);
    if options.list {
        rows.iter().for_each(|row| println!("{}", row.name));
        return Ok(());
    }
    if cfg!(debug_assertions) && !options.quick {
        eprintln!("Nothing is measured: this build is not optimised. Run `./dev bench`.");
        return Ok(());
    }
    let Some(services) = support::services::services() else {
        anyhow::bail!("the services cannot be had; the reason stands above");
    };
    let machine = machine()?;
    eprintln!("{machine}");
    let length = Duration::try_from_secs_f64(options.seconds).context("--seconds")?;
    let warm_up = Duration::try_from_secs_f64(options.warm_up).context("--warm-up")?;
    let outage = Duration::try_from_secs_f64(options.outage).context("--outage")?;
    let mut stage = Stage::new(&services, length, warm_up, options.events, outage);
    if !options.quick {
        warm_kafka_up(&mut stage).context("the warm-up of Kafka")?;
    }
    let mut results = Results::default();
    let failed = measure(&options, &rows, &mut stage, &mut results);

    println!("{machine}");
    println!(
        "{} rounds of {} s after {} s, drains of {} records; 310-byte events and 4 partitions where nothing else is said\n",
        options.rounds, options.seconds, options.warm_up, options.events
    );
    print!("{}", results.table(&rows));
    if let Some(file) = &options.json {
        let all = json!({ "machine": machine, "rows": results.json(&rows) });
        fs::write(file, format!("{all:#}\n")).with_context(|| format!("{} cannot be written", file.display()))?;
    }
    let charts = support::scratch().parent().context("the scratch folder lies in target")?.join("bench");
    for chart in plot::write(&results, &charts)? {
        eprintln!("written: {chart}");
    }
    anyhow::ensure!(failed.is_empty(), "not measured: {}", failed.join(", "));
    Ok(())
}

/// In the order of the list, and those that they are compared with before them.
fn selected(options: &Options) -> Vec<Row> {
    let is_chosen = !options.only.is_empty() || !options.row.is_empty();
    let wanted = |row: &Row| match is_chosen {
        false => options.all || !row.on_request,
        true => {
            options.only.iter().any(|part| row.name.contains(part.as_str()))
                || options.row.iter().any(|name| row.name == name)
        }
    };
    let rows = rows::rows();
    let named: Vec<&'static str> = rows.iter().filter(|row| wanted(row)).map(|row| row.name).collect();
    let compared: Vec<&'static str> = rows
        .iter()
        .filter_map(|row| match row.against {
            Against::Row(name) if named.contains(&row.name) => Some(name),
            _ => None,
        })
        .collect();
    rows.into_iter().filter(|row| named.contains(&row.name) || compared.contains(&row.name)).collect()
}

/// More than that Kafka's JVM is not warmed up.
const WARM_UPS: usize = 12;

/// Kafka's JVM compiles what it has run often: without this, whoever comes first finds a slow broker. Until two
/// measurements in a row are no faster than the best before them.
fn warm_kafka_up(stage: &mut Stage<'_>) -> anyhow::Result<()> {
    let rows = rows::rows();
    let row = rows.iter().find(|row| row.name == "kafka single 512").context("there is no such row")?;
    let (mut best, mut no_faster) = (0.0, 0);
    for _ in 0..WARM_UPS {
        let sample = stage.measure(row, System::Yardstick)?;
        eprintln!("warm-up, {}, bare: {}", row.name, sample.line());
        let rate = sample.get(Metric::Rate).context("no rate was measured")?;
        no_faster = if rate > best * 1.03 { 0 } else { no_faster + 1 };
        best = rate.max(best);
        if no_faster == 2 {
            break;
        }
    }
    Ok(())
}

/// Each round each row, on both systems; which of them comes first changes with the round. What fails is told, and the
/// rest goes on.
fn measure(options: &Options, rows: &[Row], stage: &mut Stage<'_>, results: &mut Results) -> Vec<String> {
    let began = Instant::now();
    let mut failed = Vec::new();
    for round in 1..=options.rounds {
        for row in rows {
            let mut systems = match row.against {
                Against::Yardstick => vec![System::Yardstick, System::Ingestd],
                _ => vec![System::Ingestd],
            };
            if round % 2 == 0 {
                systems.reverse();
            }
            for system in systems {
                let what = format!("{}, {}", row.name, system.name());
                let at = format!("[{:>4} s] round {round} of {}, {what}", began.elapsed().as_secs(), options.rounds);
                match stage.measure(row, system) {
                    Ok(sample) => {
                        eprintln!("{at}: {}", sample.line());
                        results.add(row.name, system, sample);
                    }
                    Err(error) => {
                        eprintln!("{at}: {error:#}");
                        failed.push(what);
                    }
                }
            }
        }
    }
    failed
}

/// What the figures are of.
fn machine() -> anyhow::Result<String> {
    let cores = std::thread::available_parallelism()?;
    let cpu = fs::read_to_string("/proc/cpuinfo")?;
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ").map(|(_, name)| name));
    let load = fs::read_to_string("/proc/loadavg")?;
    let load = load.split(' ').next().context("/proc/loadavg")?;
    Ok(format!(
        "{}: ingestd {}, {cores} cores ({}) shared with Kafka, MongoDB, S3 and the load generator; load before: {load}",
        chrono::Utc::now().format("%Y-%m-%d %H:%M"),
        env!("CARGO_PKG_VERSION"),
        model.unwrap_or("unknown"),
    ))
}
