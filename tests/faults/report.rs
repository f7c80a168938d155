//! What a run came to, as a table.

use std::{
    collections::BTreeMap,
    fmt,
    time::{Duration, Instant},
};

use crate::{schedule::Fault, support::oracle::Verdict};

pub struct Report {
    seed: u64,
    began: Instant,
    rounds: usize,
    /// Answered with 2xx.
    acknowledged: u64,
    records: usize,
    objects: usize,
    kills: usize,
    /// Times that a partition was given to a member of a group.
    assignments: usize,
    /// Of Kafka, MongoDB or the object store.
    outages: usize,
    spoiled: usize,
    lost: usize,
    doubled: usize,
    changed: usize,
    invented: usize,
    /// Until all daemons were ready and not degraded, by the kind of fault, from its end on.
    ready: BTreeMap<&'static str, Vec<Duration>>,
    /// Of workers, from the start after a `kill -9` until the first record was archived, and counted.
    archiving: Vec<Duration>,
    counting: Vec<Duration>,
}

/// How long a recovery took.
#[derive(Debug, Default, Clone, Copy)]
pub struct Recovery {
    pub ready: Duration,
    pub archiving: Option<Duration>,
    pub counting: Option<Duration>,
}

impl fmt::Display for Recovery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ready after {:.2} s", self.ready.as_secs_f64())?;
        for (what, time) in [("archiving", self.archiving), ("counting", self.counting)] {
            if let Some(time) = time {
                write!(f, ", {what} after {:.2} s", time.as_secs_f64())?;
            }
        }
        Ok(())
    }
}

impl Report {
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            began: Instant::now(),
            rounds: 0,
            acknowledged: 0,
            records: 0,
            objects: 0,
            kills: 0,
            assignments: 0,
            outages: 0,
            spoiled: 0,
            lost: 0,
            doubled: 0,
            changed: 0,
            invented: 0,
            ready: BTreeMap::new(),
            archiving: Vec::new(),
            counting: Vec::new(),
        }
    }

    pub fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    pub fn fault(&mut self, fault: Fault, kills: usize, recovery: Recovery) {
        self.began_fault(fault, kills);
        self.ready.entry(fault.kind()).or_default().push(recovery.ready);
        self.archiving.extend(recovery.archiving);
        self.counting.extend(recovery.counting);
    }

    /// A second fault, in the middle of another one: its recovery is not told apart.
    pub fn began_fault(&mut self, fault: Fault, kills: usize) {
        self.kills += kills;
        self.outages += usize::from(fault.is_outage());
    }

    pub fn round(&mut self, acknowledged: u64, assignments: usize, spoiled: usize, verdict: &Verdict) {
        self.rounds += 1;
        self.acknowledged += acknowledged;
        self.assignments += assignments;
        self.spoiled += spoiled;
        self.records += verdict.records;
        self.objects += verdict.objects;
        self.lost += verdict.lost.len();
        self.doubled += verdict.doubled.len();
        self.changed += verdict.changed.len();
        self.invented += verdict.invented.len();
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.began.elapsed().as_secs();
        writeln!(f, "seed {}: {} rounds in {}:{:02} min", self.seed, self.rounds, seconds / 60, seconds % 60)?;
        for (name, value) in [
            ("events answered with 2xx", self.acknowledged),
            ("records in the log", self.records as u64),
            ("objects in the archive", self.objects as u64),
            ("daemons killed (-9)", self.kills as u64),
            ("partitions assigned", self.assignments as u64),
            ("outages of services", self.outages as u64),
            ("requests that the proxy spoiled", self.spoiled as u64),
            ("lost", self.lost as u64),
            ("duplicated", self.doubled as u64),
            ("changed", self.changed as u64),
            ("invented", self.invented as u64),
        ] {
            writeln!(f, "| {name:<44} | {value:>8} |")?;
        }
        writeln!(
            f,
            "| {:<44} | {:>8} | {:>8} | {:>8} |",
            "seconds until, after its end", "times", "median", "longest"
        )?;
        for (kind, times) in &self.ready {
            line(f, &format!("ready: {kind}"), times)?;
        }
        line(f, "archiving: after kill -9 and a start", &self.archiving)?;
        line(f, "counting: after kill -9 and a start", &self.counting)
    }
}

fn line(f: &mut fmt::Formatter<'_>, name: &str, times: &[Duration]) -> fmt::Result {
    let mut times = times.to_vec();
    times.sort();
    let (Some(longest), Some(median)) = (times.last(), times.get(times.len() / 2)) else { return Ok(()) };
    let (median, longest) = (median.as_secs_f64(), longest.as_secs_f64());
    writeln!(f, "| {name:<44} | {:>8} | {median:>8.2} | {longest:>8.2} |", times.len())
}
