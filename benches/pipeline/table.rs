//! What was measured: medians, spreads, ratios, and whether the goals are reached.

use std::{collections::BTreeMap, fmt::Write};

use serde_json::{Value, json};

use crate::rows::{Against, Goal, Row, System};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Metric {
    /// Events per second.
    Rate,
    /// CPU seconds per million events, of the process that is measured.
    Cpu,
    /// The same, of the load generator.
    GeneratorCpu,
    /// MiB at the peak; of several processes the largest one's.
    Memory,
    /// The same, when what was left over by an outage has been caught up with.
    MemoryAfterwards,
    /// Milliseconds.
    P50,
    P99,
    /// Percent of one core.
    Idle,
    /// Milliseconds from exec to readiness.
    Ready,
}

impl Metric {
    fn key(self) -> &'static str {
        match self {
            Self::Rate => "events_per_second",
            Self::Cpu => "cpu_seconds_per_million",
            Self::GeneratorCpu => "generator_cpu_seconds_per_million",
            Self::Memory => "peak_memory_mib",
            Self::MemoryAfterwards => "peak_memory_afterwards_mib",
            Self::P50 => "p50_ms",
            Self::P99 => "p99_ms",
            Self::Idle => "idle_cpu_percent",
            Self::Ready => "ready_ms",
        }
    }
}

/// One measurement of one row on one system.
#[derive(Debug, Default, Clone)]
pub struct Sample(BTreeMap<Metric, f64>);

impl Sample {
    pub fn set(&mut self, metric: Metric, value: f64) {
        self.0.insert(metric, value);
    }

    pub fn get(&self, metric: Metric) -> Option<f64> {
        self.0.get(&metric).copied()
    }

    /// For the line that tells of the progress.
    pub fn line(&self) -> String {
        let show = |(metric, text): (Metric, &str)| Some(format!("{} {text}", number(self.get(metric)?)));
        let shown = [
            (Metric::Rate, "events/s"),
            (Metric::Cpu, "CPU-s per million"),
            (Metric::P99, "ms p99"),
            (Metric::Memory, "MiB"),
            (Metric::MemoryAfterwards, "MiB afterwards"),
            (Metric::Idle, "% of a core"),
            (Metric::Ready, "ms"),
        ];
        shown.into_iter().filter_map(show).collect::<Vec<_>>().join(", ")
    }
}

#[derive(Default)]
pub struct Results {
    samples: BTreeMap<(&'static str, System), Vec<Sample>>,
}

impl Results {
    pub fn add(&mut self, row: &'static str, system: System, sample: Sample) {
        self.samples.entry((row, system)).or_default().push(sample);
    }

    fn values(&self, row: &'static str, system: System, metric: Metric) -> Vec<f64> {
        let samples = self.samples.get(&(row, system)).into_iter().flatten();
        let mut values: Vec<f64> = samples.filter_map(|sample| sample.get(metric)).collect();
        values.sort_by(f64::total_cmp);
        values
    }

    pub fn median(&self, row: &'static str, system: System, metric: Metric) -> Option<f64> {
        median(&self.values(row, system, metric))
    }

    /// Of what the row is compared with.
    fn reference(&self, row: &Row, metric: Metric) -> Option<Vec<f64>> {
        let values = match row.against {
            Against::Yardstick => self.values(row.name, System::Yardstick, metric),
            Against::Row(name) => self.values(name, System::Ingestd, metric),
            Against::Nothing => Vec::new(),
        };
        (!values.is_empty()).then_some(values)
    }

    fn ratio(&self, row: &Row, metric: Metric) -> Option<f64> {
        let reference = median(&self.reference(row, metric)?)?;
        Some(self.median(row.name, System::Ingestd, metric)? / reference)
    }

    /// As Markdown.
    pub fn table(&self, rows: &[Row]) -> String {
        let head = [
            "",
            "events/s: bare",
            "ingestd",
            "ratio",
            "CPU-s per million: bare",
            "ingestd",
            "ratio",
            "p50 ms: bare",
            "ingestd",
            "p99 ms: bare",
            "ingestd",
            "ratio",
            "MiB: bare",
            "ingestd",
            "goals",
        ];
        let mut lines = vec![head.map(str::to_owned).to_vec()];
        let mut others = vec![["", "% of a core", "ms to readiness", "peak MiB", "goals"].map(str::to_owned).to_vec()];
        for row in rows {
            let ingestd = |metric| cell(&self.values(row.name, System::Ingestd, metric));
            let reference = |metric| self.reference(row, metric).map_or_else(String::new, |values| cell(&values));
            let ratio = |metric| self.ratio(row, metric).map_or_else(String::new, |ratio| format!("{ratio:.2}"));
            let missed = self.missed(row);
            if self.values(row.name, System::Ingestd, Metric::Rate).is_empty() {
                if self.samples.contains_key(&(row.name, System::Ingestd)) {
                    others.push(vec![
                        row.name.to_owned(),
                        ingestd(Metric::Idle),
                        ingestd(Metric::Ready),
                        ingestd(Metric::Memory),
                        missed,
                    ]);
                }
                continue;
            }
            let name = match row.against {
                Against::Row(reference) => format!("{} (bare: ingestd, {reference})", row.name),
                _ => row.name.to_owned(),
            };
            lines.push(vec![
                name,
                reference(Metric::Rate),
                ingestd(Metric::Rate),
                ratio(Metric::Rate),
                reference(Metric::Cpu),
                ingestd(Metric::Cpu),
                ratio(Metric::Cpu),
                reference(Metric::P50),
                ingestd(Metric::P50),
                reference(Metric::P99),
                ingestd(Metric::P99),
                ratio(Metric::P99),
                reference(Metric::Memory),
                ingestd(Metric::Memory),
                missed,
            ]);
        }
        let tables = [lines, others].into_iter().filter(|lines| lines.len() > 1);
        tables.map(|lines| markdown(&lines)).collect::<Vec<_>>().join("\n")
    }

    /// "reached", or what is missed and by how much.
    fn missed(&self, row: &Row) -> String {
        let Goal { rate, cpu, p50, p99, memory, cpu_seconds, memory_mib, idle_percent, ready_ms, p50_ms } = row.goal;
        let absolute = |metric| self.median(row.name, System::Ingestd, metric);
        let checks = [
            ("rate", self.ratio(row, Metric::Rate), rate, true),
            ("CPU", self.ratio(row, Metric::Cpu), cpu, false),
            ("p50", self.ratio(row, Metric::P50), p50, false),
            ("p99", self.ratio(row, Metric::P99), p99, false),
            ("memory", self.ratio(row, Metric::Memory), memory, false),
            ("CPU-s", absolute(Metric::Cpu), cpu_seconds, false),
            ("MiB", absolute(Metric::Memory), memory_mib, false),
            ("% of a core", absolute(Metric::Idle), idle_percent, false),
            ("ms", absolute(Metric::Ready), ready_ms, false),
            ("ms p50", absolute(Metric::P50), p50_ms, false),
        ];
        let known = checks.into_iter().filter_map(|(name, value, bound, least)| Some((name, value?, bound?, least)));
        let missed = known.filter(|(_, value, bound, least)| if *least { value < bound } else { value > bound });
        let missed: Vec<String> = missed
            .map(|(name, value, bound, least)| {
                format!("{name} {} {} {}", number(value), if least { '<' } else { '>' }, number(bound))
            })
            .collect();
        if missed.is_empty() { "reached".to_owned() } else { missed.join("; ") }
    }

    /// All samples, for other programs.
    pub fn json(&self, rows: &[Row]) -> Value {
        let measured = |row: &Row, system: System| {
            let samples = self.samples.get(&(row.name, system))?;
            let samples: Vec<Value> = samples
                .iter()
                .map(|sample| sample.0.iter().map(|(metric, value)| (metric.key().to_owned(), json!(value))).collect())
                .collect();
            Some(json!({ "row": row.name, "system": system.name(), "samples": samples }))
        };
        let both = [System::Yardstick, System::Ingestd];
        rows.iter().flat_map(|row| both.into_iter().filter_map(move |system| measured(row, system))).collect()
    }
}

fn median(sorted: &[f64]) -> Option<f64> {
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        odd if odd % 2 == 1 => Some(sorted[middle]),
        _ => Some(f64::midpoint(sorted[middle - 1], sorted[middle])),
    }
}

/// The median and half of the range around it, in percent.
fn cell(sorted: &[f64]) -> String {
    let (Some(median), [first, .., last]) = (median(sorted), sorted) else {
        return median(sorted).map_or_else(String::new, number);
    };
    if median <= 0.0 {
        return number(median);
    }
    format!("{} ±{:.0} %", number(median), (last - first) / 2.0 / median * 100.0)
}

/// Three digits, and thousands apart.
pub fn number(value: f64) -> String {
    let decimals = match value.abs() {
        0.0..10.0 => 2,
        10.0..100.0 => 1,
        _ => 0,
    };
    let text = format!("{value:.decimals$}");
    let whole = text.split_once('.').map_or(text.len(), |(whole, _)| whole.len());
    let mut out = String::with_capacity(text.len() + whole / 3);
    for (index, digit) in text.char_indices() {
        if index > 0 && index < whole && (whole - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

fn markdown(lines: &[Vec<String>]) -> String {
    let columns = lines.first().map_or(0, Vec::len);
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or_default();
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut out = String::new();
    for (index, line) in lines.iter().enumerate() {
        for (column, cell) in line.iter().enumerate() {
            // Names and goals to the left, figures to the right. Into a string it cannot fail.
            let _ = if column == 0 || column + 1 == columns {
                write!(out, "| {cell:<width$} ", width = widths[column])
            } else {
                write!(out, "| {cell:>width$} ", width = widths[column])
            };
        }
        out.push_str("|\n");
        if index == 0 {
            for (column, width) in widths.iter().enumerate() {
                let figures = column > 0 && column + 1 < columns;
                let _ = write!(out, "| {}{} ", "-".repeat((width - 1).max(2)), if figures { ':' } else { '-' });
            }
            out.push_str("|\n");
        }
    }
    out
}
