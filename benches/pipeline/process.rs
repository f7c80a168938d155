//! The processes that are measured, and what the kernel says that they used (proc(5)).

use std::{fs, path::Path, time::Duration};

use anyhow::Context;

use crate::support::{daemon::Daemon, process::Process};

/// One of either system; it ends when it is dropped.
pub enum Running {
    Ingestd(Box<Daemon>),
    Yardstick(Process),
}

impl Running {
    /// This program again, as the yardstick.
    pub fn yardstick(folder: &Path, work: &str, arguments: &[(&str, String)]) -> anyhow::Result<Self> {
        let this = std::env::current_exe()?.to_str().context("the path of this program is no UTF-8")?.to_owned();
        let mut command = vec![this, "yardstick".to_owned(), work.to_owned()];
        command.extend(arguments.iter().flat_map(|(name, value)| [format!("--{name}"), value.clone()]));
        Ok(Self::Yardstick(guarded(folder, command)))
    }

    pub fn pid(&self) -> u32 {
        match self {
            Self::Ingestd(daemon) => daemon.pid(),
            Self::Yardstick(process) => process.pid(),
        }
    }

    /// In MiB.
    pub fn peak_memory(&self) -> f64 {
        let bytes = match self {
            Self::Ingestd(daemon) => daemon.peak_memory(),
            Self::Yardstick(process) => process.peak_memory(),
        };
        bytes as f64 / f64::from(1 << 20)
    }

    pub fn has_ended(&self) -> bool {
        match self {
            Self::Ingestd(daemon) => daemon.exit().is_some(),
            Self::Yardstick(process) => process.exit().is_some(),
        }
    }

    pub fn log(&self) -> String {
        match self {
            Self::Ingestd(daemon) => daemon.log(),
            Self::Yardstick(process) => process.log(),
        }
    }
}

/// Runs a command so that it cannot outlive the bench.
pub fn guarded(folder: &Path, command: Vec<String>) -> Process {
    let log = folder.join("log");
    let mut arguments = vec!["guard".to_owned(), "--log".to_owned(), log.display().to_string()];
    arguments.extend(["--remove".to_owned(), folder.display().to_string(), "--".to_owned()]);
    arguments.extend(command);
    Process::start(arguments, folder, &log)
}

/// USER_HZ: 100 on every architecture that Linux has in use, whatever the kernel's own HZ.
const TICKS_PER_SECOND: f64 = 100.0;

/// User and system time of all its threads, those that ended included.
pub fn cpu(pid: u32) -> anyhow::Result<Duration> {
    of_stat(&format!("/proc/{pid}/stat"))
}

/// Of the calling thread alone.
pub fn own_thread_cpu() -> anyhow::Result<Duration> {
    of_stat("/proc/thread-self/stat")
}

/// How long ago it was started.
pub fn age(pid: u32) -> anyhow::Result<Duration> {
    let uptime = fs::read_to_string("/proc/uptime").context("/proc/uptime")?;
    let uptime: f64 = uptime.split(' ').next().context("/proc/uptime")?.parse()?;
    let started = ticks(&stat(&format!("/proc/{pid}/stat"))?, 22)?;
    Ok(Duration::from_secs_f64((uptime - started).max(0.0)))
}

fn of_stat(path: &str) -> anyhow::Result<Duration> {
    let stat = stat(path)?;
    Ok(Duration::from_secs_f64(ticks(&stat, 14)? + ticks(&stat, 15)?))
}

fn stat(path: &str) -> anyhow::Result<String> {
    fs::read_to_string(path).with_context(|| format!("{path}: the process has ended"))
}

/// A field by its number in proc(5), in seconds.
fn ticks(stat: &str, number: usize) -> anyhow::Result<f64> {
    // The second one is the name, which may hold anything.
    let (_, after_name) = stat.rsplit_once(") ").context("proc(5)")?;
    let field = after_name.split(' ').nth(number - 3).context("proc(5)")?;
    Ok(field.parse::<f64>()? / TICKS_PER_SECOND)
}
