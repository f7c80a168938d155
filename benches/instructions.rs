//! How many instructions each step takes an event, beside what is on record: `cargo bench --profile dist --bench
//! instructions`.
//!
//! They are counted by callgrind, so they hardly depend on what else the machine does, and a step that became dearer is
//! noticed before any clock shows it. The record is of one compiler and one architecture; `--update` writes it anew.

mod steps;

use std::{
    collections::BTreeMap,
    env, fs,
    path::Path,
    process::{Command, ExitCode},
};

use anyhow::{Context, bail, ensure};
use clap::Parser;

use steps::{BATCH, STEPS, Step};

const RECORD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/instructions.json");
/// A step may take so much more than is on record.
const TOLERANCE: f64 = 0.05;

/// Counts the instructions of each step under callgrind and compares them with the record.
#[derive(Parser)]
struct Options {
    /// Steps whose name contains this.
    #[arg(long, default_value = "")]
    only: String,
    /// Makes what is counted now the record.
    #[arg(long)]
    update: bool,
    /// Does one step; this is what callgrind watches.
    #[arg(long, hide = true)]
    step: Option<usize>,
    /// Cargo says so.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> anyhow::Result<ExitCode> {
    let options = Options::parse();
    if let Some(index) = options.step {
        let mut run = STEPS.get(index).context("there is no such step")?.prepare();
        // What is allocated once, and what is found out about the processor, is no cost of an event.
        run();
        measured(&mut *run);
        return Ok(ExitCode::SUCCESS);
    }
    if cfg!(debug_assertions) {
        eprintln!(
            "Nothing is counted: this build is not optimised. Run `cargo bench --profile dist --bench instructions`."
        );
        return Ok(ExitCode::SUCCESS);
    }
    let mut record: BTreeMap<String, u64> = match fs::read(RECORD) {
        Ok(json) => serde_json::from_slice(&json).context("benches/instructions.json is no record")?,
        Err(_) if options.update => BTreeMap::new(),
        Err(error) => bail!("benches/instructions.json cannot be read: {error}; --update writes it"),
    };
    println!("{:<28} {:>8} {:>8} {:>8}", "instructions an event", "record", "now", "change");
    let mut dearer = Vec::new();
    for (index, step) in STEPS.iter().enumerate().filter(|(_, step)| step.to_string().contains(&options.only)) {
        let name = step.to_string();
        let now = count(index, step)?;
        match record.get(&name) {
            None => println!("{name:<28} {:>8} {now:>8}", "none"),
            Some(before) => {
                let change = now as f64 / *before as f64 - 1.0;
                println!("{name:<28} {before:>8} {now:>8} {:>+7.1}%", 100.0 * change);
                if change > TOLERANCE {
                    dearer.push(name.clone());
                }
            }
        }
        if options.update || !record.contains_key(&name) {
            record.insert(name, now);
        }
    }
    if options.update {
        fs::write(RECORD, format!("{}\n", serde_json::to_string_pretty(&record)?)).context(RECORD)?;
        return Ok(ExitCode::SUCCESS);
    }
    if dearer.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!(
        "More than {:.0} % above the record: {}. Mend it, or run again with --update and say why in the commit.",
        100.0 * TOLERANCE,
        dearer.join("; ")
    );
    Ok(ExitCode::FAILURE)
}

/// What callgrind collects.
#[inline(never)]
fn measured(run: &mut dyn FnMut()) {
    run();
}

/// Instructions an event, of one run after another.
fn count(index: usize, step: &Step) -> anyhow::Result<u64> {
    let out = env::temp_dir().join(format!("ingestd-instructions-{}-{index}", std::process::id()));
    let counted = count_into(&out, index).with_context(|| format!("{step} is not counted"));
    // It may not have been written.
    let _ = fs::remove_file(&out);
    Ok(counted? / BATCH as u64)
}

fn count_into(out: &Path, index: usize) -> anyhow::Result<u64> {
    let valgrind = Command::new("valgrind")
        .args(["--tool=callgrind", "--collect-atstart=no", "--toggle-collect=instructions::measured*"])
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(env::current_exe()?)
        .args(["--step", &index.to_string()])
        .output()
        .context("valgrind cannot be started: install it (apt-get install valgrind)")?;
    ensure!(valgrind.status.success(), "{}", String::from_utf8_lossy(&valgrind.stderr));
    let report = fs::read_to_string(out)?;
    let total = report.lines().find_map(|line| line.strip_prefix("totals: ")?.trim().parse().ok());
    match total {
        Some(total @ 1..) => Ok(total),
        _ => bail!("callgrind saw nothing of it: is the function `measured` in the binary?"),
    }
}
