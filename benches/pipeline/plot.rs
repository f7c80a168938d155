//! How the cost grows, as bar charts (SVG): the yardstick beside ingestd, medians.

use std::{fmt::Write, fs, path::Path};

use anyhow::Context;

use crate::{
    rows::System,
    table::{Metric, Results, number},
};

struct Chart {
    file: &'static str,
    title: &'static str,
    metric: Metric,
    /// The name below each pair of bars, and its row.
    rows: &'static [(&'static str, &'static str)],
}

const CHARTS: [Chart; 4] = [
    Chart {
        file: "connections",
        title: "CPU seconds per million events, by connections",
        metric: Metric::Cpu,
        rows: &[
            ("single, 64", "kafka single 64"),
            ("single, 512", "kafka single 512"),
            ("array, 16", "kafka array 16"),
            ("array, 64", "kafka array 64"),
        ],
    },
    Chart {
        file: "partitions",
        title: "CPU seconds per million events, by partitions",
        metric: Metric::Cpu,
        rows: &[
            ("in: 1", "array 16, 1 partition"),
            ("in: 4", "kafka array 16"),
            ("in: 16", "array 16, 16 partitions"),
            ("out: 1", "drain 1 partition"),
            ("out: 4", "drain 1 worker"),
            ("out: 16", "drain 16 partitions"),
        ],
    },
    Chart {
        file: "sizes",
        title: "CPU seconds per million events, by size",
        metric: Metric::Cpu,
        rows: &[
            ("100 B", "array 16, 100 B"),
            ("310 B", "kafka array 16"),
            ("1 KiB", "array 16, 1 KiB"),
            ("10 KiB", "array 16, 10 KiB"),
        ],
    },
    Chart {
        file: "rates",
        title: "p99 in milliseconds at a fixed rate",
        metric: Metric::P99,
        rows: &[("25 %", "single at 25 %"), ("50 %", "single at 50 %"), ("75 %", "single at 75 %")],
    },
];

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 320.0;
/// Around the bars: title above, names below.
const MARGIN: f64 = 48.0;
/// Grey, and blue: told apart in print, too.
const COLOURS: [(System, &str); 2] = [(System::Yardstick, "#9aa0a6"), (System::Ingestd, "#1a5fb4")];

/// Writes the charts that have all their rows; the names of the files.
pub fn write(results: &Results, folder: &Path) -> anyhow::Result<Vec<String>> {
    let mut written = Vec::new();
    for chart in &CHARTS {
        let Some(svg) = draw(chart, results) else { continue };
        let file = folder.join(format!("{}.svg", chart.file));
        fs::create_dir_all(folder)
            .and_then(|()| fs::write(&file, svg))
            .with_context(|| format!("{} cannot be written", file.display()))?;
        written.push(file.display().to_string());
    }
    Ok(written)
}

fn draw(chart: &Chart, results: &Results) -> Option<String> {
    let value = |row, (system, _): (System, &str)| results.median(row, system, chart.metric);
    let pairs: Option<Vec<[f64; 2]>> =
        chart.rows.iter().map(|(_, row)| Some([value(row, COLOURS[0])?, value(row, COLOURS[1])?])).collect();
    let pairs = pairs?;
    let highest = pairs.iter().flatten().copied().fold(f64::MIN_POSITIVE, f64::max);
    let step = (WIDTH - 2.0 * MARGIN) / pairs.len() as f64;
    let bar = step * 0.35;
    let base = HEIGHT - MARGIN;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
         font-size=\"12\" text-anchor=\"middle\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"{}\" y=\"20\" font-size=\"15\">{}</text>\n",
        WIDTH / 2.0,
        chart.title
    );
    // Into a string it cannot fail.
    for (index, (system, colour)) in COLOURS.into_iter().enumerate() {
        let x = WIDTH - 170.0 + 80.0 * index as f64;
        let _ = writeln!(svg, "<rect x=\"{x}\" y=\"28\" width=\"10\" height=\"10\" fill=\"{colour}\"/>");
        let _ = writeln!(svg, "<text x=\"{}\" y=\"37\" text-anchor=\"start\">{}</text>", x + 14.0, system.name());
    }
    for (index, ((name, _), pair)) in chart.rows.iter().zip(&pairs).enumerate() {
        let middle = MARGIN + step * (index as f64 + 0.5);
        for (side, (value, (_, colour))) in [-1.0, 0.0].into_iter().zip(pair.iter().zip(COLOURS)) {
            let height = value / highest * (base - 1.5 * MARGIN);
            let (x, y) = (middle + side * bar, base - height);
            let _ = writeln!(
                svg,
                "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{bar:.1}\" height=\"{height:.1}\" fill=\"{colour}\"/>\n\
                 <text x=\"{:.1}\" y=\"{:.1}\" font-size=\"11\">{}</text>",
                x + bar / 2.0,
                y - 4.0,
                number(*value)
            );
        }
        let _ = writeln!(svg, "<text x=\"{middle:.1}\" y=\"{}\">{name}</text>", base + 18.0);
    }
    let _ =
        writeln!(svg, "<line x1=\"{MARGIN}\" x2=\"{}\" y1=\"{base}\" y2=\"{base}\" stroke=\"black\"/>", WIDTH - MARGIN);
    svg.push_str("</svg>\n");
    Some(svg)
}
