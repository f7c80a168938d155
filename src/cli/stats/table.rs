//! The table of an aggregate: a row a group, with a line of its count over time.

use std::{cmp::Reverse, collections::HashMap};

use serde_json::Value;

use super::{Row, steps::Steps, word};
use crate::{
    cli::terminal::{cells, cut, one_line},
    position::Timestamp,
};

const LEVELS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
/// The shortest line that says something.
const SHORTEST: usize = 10;
/// The longest value of a group on a terminal, in cells.
const LONGEST_VALUE: usize = 40;

pub struct Table<'a> {
    pub name: &'a str,
    pub steps: &'a Steps,
    pub fields: Vec<String>,
    /// What is measured beside the count.
    pub labels: Vec<String>,
    /// There are more groups: in which order these are the first ones.
    pub cut_by: Option<&'a str>,
    /// The terminal's, if there is one.
    pub width: Option<usize>,
}

impl Table<'_> {
    /// `totals` has a row a group, `points` one a group and step.
    pub fn text(&self, totals: &[Row], points: &[Row]) -> String {
        let mut lines = vec![self.headings()];
        lines.extend(totals.iter().map(|row| self.cells(row)));
        let is_list = |label: &String| {
            let of_rows = totals.iter().filter_map(|row| row.measures.get(label));
            of_rows.into_iter().any(|raw| raw.get().starts_with('['))
        };
        let of_labels = self.labels.iter().enumerate().filter(|(_, label)| !is_list(label));
        let count = self.fields.len();
        let of_numbers: Vec<usize> =
            std::iter::once(count).chain(of_labels.map(|(index, _)| count + 1 + index)).collect();
        let table = aligned(&lines, &of_numbers);
        let longest = table.lines().map(cells).max().unwrap_or_default();
        let room = self.width.map_or(usize::MAX, |width| width.saturating_sub(longest + 2));
        let mut series = self.series(points);
        let mut text = vec![self.head(totals), String::new()];
        for (index, line) in table.lines().enumerate() {
            let over_time = match index.checked_sub(1).and_then(|index| totals.get(index)) {
                Some(row) => series.remove(&self.key(row)).map_or_else(String::new, |counts| sparkline(&counts, room)),
                None => "over time".to_owned(),
            };
            let line = match room {
                ..SHORTEST => line.to_owned(),
                _ => format!("{line}{}  {over_time}", room_for(line, longest)),
            };
            text.push(cut(line.trim_end(), self.width.unwrap_or(usize::MAX)));
        }
        if totals.is_empty() {
            text.truncate(2);
            text.push(
                "no such events were counted in this range; a new aggregate begins empty (ingestd rebuild)".to_owned(),
            );
        }
        text.join("\n")
    }

    /// Those first whose first step with events is the last one; of these the ones with the most events.
    pub fn newest_first(&self, totals: &mut [Row], points: &[Row]) {
        let series = self.series(points);
        let first =
            |row: &Row| series.get(&self.key(row)).and_then(|counts| counts.iter().position(|count| *count > 0));
        totals.sort_by_cached_key(|row| (Reverse(first(row)), Reverse(row.count)));
    }

    fn head(&self, totals: &[Row]) -> String {
        let [(_, from), (_, to)] = self.steps.range();
        let groups = match (self.cut_by, totals.len()) {
            (Some(order), shown) => format!("the first {shown} groups by {order} (--limit shows more)"),
            (None, 1) => "1 group".to_owned(),
            (None, all) => format!("{all} groups"),
        };
        let points = self.steps.starts.len();
        let head = format!("{}  {from} to {to}, {points} × {}, {groups}", self.name, self.steps.text());
        cut(&head, self.width.unwrap_or(usize::MAX))
    }

    fn headings(&self) -> Vec<String> {
        let count = std::iter::once("count".to_owned());
        self.fields.iter().cloned().chain(count).chain(self.labels.iter().cloned()).map(|it| one_line(&it)).collect()
    }

    fn cells(&self, row: &Row) -> Vec<String> {
        let value = |field: &String| {
            let text = row.group.get(field).map_or_else(|| "null".to_owned(), word);
            let longest = if self.width.is_some() { LONGEST_VALUE } else { usize::MAX };
            cut(&one_line(&text), longest)
        };
        let measure = |label: &String| row.measures.get(label).map_or_else(String::new, |raw| shown(raw.get()));
        let count = std::iter::once(row.count.to_string());
        self.fields.iter().map(value).chain(count).chain(self.labels.iter().map(measure)).collect()
    }

    fn key(&self, row: &Row) -> Vec<String> {
        self.fields.iter().map(|field| row.group.get(field).unwrap_or(&Value::Null).to_string()).collect()
    }

    /// The counts of each group, step by step.
    fn series(&self, points: &[Row]) -> HashMap<Vec<String>, Vec<u64>> {
        let mut series: HashMap<Vec<String>, Vec<u64>> = HashMap::new();
        for row in points {
            let Some(index) = self.steps.index_of(Timestamp(row.window_start.timestamp_millis())) else { continue };
            let counts = series.entry(self.key(row)).or_insert_with(|| vec![0; self.steps.starts.len()]);
            counts[index] = counts[index].saturating_add(row.count);
        }
        series
    }
}

/// A measure for people: its answer has all digits.
fn shown(json: &str) -> String {
    const PLACES: usize = 6;
    match serde_json::from_str::<Value>(json) {
        Ok(Value::Null) | Err(_) => "-".to_owned(),
        Ok(Value::Array(values)) => {
            let value = |item: &Value| format!("{} ({})", one_line(&word(&item["value"])), item["count"]);
            let first: Vec<_> = values.iter().take(3).map(value).collect();
            format!("{}{}", first.join(", "), if values.len() > 3 { ", …" } else { "" })
        }
        Ok(_) => match json.split_once('.') {
            Some((whole, places)) if places.len() > PLACES => {
                let cut = format!("{whole}.{}", &places[..PLACES]);
                cut.trim_end_matches('0').trim_end_matches('.').to_owned()
            }
            _ => json.to_owned(),
        },
    }
}

/// The spaces that fill it up.
fn room_for(text: &str, width: usize) -> String {
    " ".repeat(width.saturating_sub(cells(text)))
}

/// Columns below each other, those of numbers to the right.
pub fn aligned(lines: &[Vec<String>], of_numbers: &[usize]) -> String {
    let columns = lines.iter().map(Vec::len).max().unwrap_or_default();
    let width = |column: usize| {
        lines.iter().filter_map(|line| line.get(column)).map(|cell| cells(cell)).max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for line in lines {
        let cells = line.iter().zip(&widths).enumerate().map(|(column, (cell, width))| {
            let room = room_for(cell, *width);
            if of_numbers.contains(&column) { format!("{room}{cell}") } else { format!("{cell}{room}") }
        });
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// A line of at most so many characters; nothing stands where nothing was counted.
fn sparkline(counts: &[u64], longest: usize) -> String {
    let together = counts.len().div_ceil(longest.clamp(1, usize::MAX)).max(1);
    let sums: Vec<u64> = counts.chunks(together).map(|part| part.iter().sum()).collect();
    let most = sums.iter().copied().max().unwrap_or_default();
    let level = |count: u64| match count {
        0 => ' ',
        _ => LEVELS[((u128::from(count) * 8).div_ceil(u128::from(most)) - 1) as usize],
    };
    sums.into_iter().map(level).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::window::Windows;

    fn rows(json: Value) -> Vec<Row> {
        serde_json::from_str(&json.to_string()).unwrap()
    }

    #[test]
    fn a_line_shows_counts_by_their_share_of_the_largest() {
        assert_eq!(sparkline(&[0, 1, 2, 3, 4, 5, 6, 7, 8], 60), " ▁▂▃▄▅▆▇█");
        assert_eq!(sparkline(&[1, 1_000_000, u64::MAX], 60), "▁▁█");
        assert_eq!(sparkline(&[1, 1, 0, 0, 4, 4], 3), "▂ █");
        assert_eq!((sparkline(&[0, 0], 60).as_str(), sparkline(&[], 60).as_str()), ("  ", ""));
    }

    #[test]
    fn measures_are_cut_to_what_people_read() {
        assert_eq!(shown("12345678901234567890123.25"), "12345678901234567890123.25");
        assert_eq!(shown("0.33333333333333333"), "0.333333");
        assert_eq!(shown("2.00000000000000004"), "2");
        assert_eq!((shown("null").as_str(), shown("7").as_str()), ("-", "7"));
        assert_eq!(
            shown(
                r#"[{"value":"a\u001b","count":3},{"value":1,"count":2},{"value":2,"count":1},{"value":3,"count":1}]"#
            ),
            "a\u{fffd} (3), 1 (2), 2 (1), …"
        );
    }

    #[test]
    fn columns_stand_below_each_other_however_wide_a_character_is() {
        let lines = [["a", "1"], ["日本", "22"], ["e\u{301}e", "3"]];
        let lines: Vec<_> = lines.iter().map(|line| line.map(str::to_owned).to_vec()).collect();
        assert_eq!(aligned(&lines, &[1]), "a      1\n日本  22\ne\u{301}e     3\n");
    }

    #[test]
    fn a_table_has_a_row_a_group_and_fits_the_terminal() {
        let window = Duration::from_secs(60);
        let now = "2026-11-23T08:03:10Z".parse().unwrap();
        let steps = Steps::choose(&Windows::new(window, None), window, "-3m", "now", None, now).unwrap();
        let group = |client: &str| serde_json::json!({ "client": client });
        let totals = rows(serde_json::json!([
            { "window_start": "2026-11-23T08:00:00Z", "group": group("a"), "count": 9, "measures": { "sum(n)": 2.5 } },
            { "window_start": "2026-11-23T08:00:00Z", "group": group("b\u{7}"), "count": 1, "measures": { "sum(n)": null } },
        ]));
        let points = rows(serde_json::json!([
            { "window_start": "2026-11-23T08:00:00Z", "group": group("a"), "count": 1 },
            { "window_start": "2026-11-23T08:03:00Z", "group": group("a"), "count": 8 },
            { "window_start": "2026-11-23T08:01:00Z", "group": group("b\u{7}"), "count": 1 },
        ]));
        let mut table = Table {
            name: "logins",
            steps: &steps,
            fields: vec!["client".to_owned()],
            labels: vec!["sum(n)".to_owned()],
            cut_by: None,
            width: None,
        };
        assert_eq!(
            table.text(&totals, &points),
            "logins  2026-11-23T08:00:00Z to 2026-11-23T08:04:00Z, 4 × 1m, 2 groups\n\n\
             client  count  sum(n)  over time\n\
             a           9     2.5  ▁  █\n\
             b\u{fffd}          1       -   █"
        );
        table.width = Some(24);
        let narrow = table.text(&totals, &points);
        assert!(narrow.lines().all(|line| line.chars().count() <= 24) && !narrow.contains('█'), "{narrow}");
        assert!(table.text(&[], &[]).contains("\n\nno such events were counted"));
        let mut newest = totals;
        (table.width, table.cut_by) = (None, Some("new"));
        table.newest_first(&mut newest, &points);
        let text = table.text(&newest, &points);
        assert!(text.contains("the first 2 groups by new (--limit shows more)\n\n"), "{text}");
        let first: Vec<_> = text.lines().skip(3).filter_map(|line| line.chars().next()).collect();
        assert_eq!(first, ['b', 'a']);
    }
}
