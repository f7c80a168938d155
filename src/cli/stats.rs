//! `ingestd stats`: what a running daemon counted, as a table with a line over time for each group.

mod steps;
mod table;

use std::{
    collections::{BTreeSet, HashMap},
    io::IsTerminal as _,
    process::ExitCode,
    time::Duration,
};

use chrono::Utc;
use clap::Args;
use serde::Deserialize;
use serde_json::{Value, value::RawValue};

use super::{
    Options,
    endpoint::{Endpoint, failed},
    print,
    terminal::{self, for_stdout, harmless, harmless_json},
    watch::{self, Screen},
};
use crate::{
    config::TimeZone,
    log::dead_letters::{LettersError, client::AdminClient},
    names::{dependency, exit},
    window::Windows,
};
use steps::Steps;
use table::Table;

#[derive(Debug, Args)]
pub(super) struct Stats {
    #[command(flatten)]
    options: Options,
    #[command(flatten)]
    endpoint: Endpoint,
    /// The aggregate; without it the aggregates are listed
    name: Option<String>,
    /// From when on: an RFC 3339 time, or so long ago
    #[arg(long, value_name = "TIME", default_value = "-1h", allow_hyphen_values = true, requires = "name")]
    from: String,
    /// Until when
    #[arg(long, value_name = "TIME", default_value = "now", allow_hyphen_values = true, requires = "name")]
    to: String,
    /// How long a point of the lines is, or of JSON and CSV a row: a multiple of the window; without it so that some 60 points
    /// are shown, and of JSON and CSV the window
    #[arg(long, value_name = "DURATION", requires = "name")]
    step: Option<String>,
    /// Group by these of its fields alone, with commas between them; "" is the whole
    #[arg(long, value_name = "FIELDS", requires = "name")]
    by: Option<String>,
    /// Only groups with this value; may be repeated: for one field any of the values, for several fields all of them
    #[arg(long = "where", value_name = "FIELD:VALUE", requires = "name")]
    conditions: Vec<String>,
    /// By what rows are ordered: count, or a measure's label, with - before it the largest first; of the table also new, those first whose first
    /// event came last; JSON and CSV also by window
    #[arg(long, value_name = "ORDER", allow_hyphen_values = true, requires = "name")]
    order: Option<String>,
    /// At most so many rows; without it 20, and of JSON and CSV 10,000
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..=1_000_000), requires = "name")]
    limit: Option<u32>,
    /// Draw it anew every two seconds
    #[arg(long, conflicts_with_all = ["json", "csv"], requires = "name")]
    watch: bool,
    /// Print the daemon's answer as JSON
    #[arg(long, conflicts_with = "csv")]
    json: bool,
    /// The same as CSV
    #[arg(long, requires = "name")]
    csv: bool,
}

/// Rows of a table, where nothing else is said.
const ROWS: u32 = 20;
/// Those first whose first event came last.
const NEW: &str = "new";
/// Groups that are looked through for new ones.
const LOOKED_THROUGH: u32 = 10_000;
const WATCH: Duration = Duration::from_secs(2);

const COMMAND: &str = "stats";

/// Ends with 0 where the daemon has answered, with 1 where it has not.
pub(super) fn stats(options: Options, command: &Stats) -> ExitCode {
    let client = match command.endpoint.asked_by(COMMAND, options.and_then(command.options.clone())) {
        Ok(client) => client,
        Err(exit) => return exit,
    };
    if command.watch {
        return watch(&client, command);
    }
    match command.text(&client) {
        Ok(text) => {
            if let Some(why) = command.name.as_ref().and_then(|_| why_nothing_is_counted(&client)) {
                eprintln!("{}", harmless(&format!("ingestd stats: nothing is counted at present: {why}")));
            }
            print(&text)
        }
        Err(error) => failed(COMMAND, exit::FAILURE, &error),
    }
}

/// Where the store takes nothing, what the daemon says of it.
fn why_nothing_is_counted(client: &AdminClient) -> Option<String> {
    let status = client.status().ok()?;
    let stores = [dependency::EMBEDDED_STORE, dependency::MONGODB].map(|name| &status["dependencies"][name]);
    let away = stores.into_iter().find(|store| store["available"] == false)?;
    Some(away["reason"].as_str().unwrap_or("the store is away").to_owned())
}

/// Looks until a signal ends the process, or nobody reads any more.
fn watch(client: &AdminClient, command: &Stats) -> ExitCode {
    let screen = match Screen::open() {
        Ok(screen) => screen,
        Err(error) => return failed(COMMAND, exit::FAILURE, &format!("signals cannot be listened to: {error}")),
    };
    loop {
        let text = command.text(client).unwrap_or_else(|error| harmless(&format!("ingestd stats: {error}")));
        if screen.is_terminal() {
            screen.show(&text);
        } else if !watch::print_line(&format!("{}\n", text.trim_end())) {
            return ExitCode::SUCCESS;
        }
        std::thread::sleep(WATCH);
    }
}

/// An aggregate, as the daemon lists it.
#[derive(Debug, Deserialize)]
struct Aggregate {
    name: String,
    #[serde(with = "humantime_text")]
    window: Duration,
    time_zone: Option<TimeZone>,
    group_by: Vec<String>,
    measures: Vec<String>,
    filter: Option<Value>,
}

#[derive(Debug, Deserialize)]
struct Listed {
    aggregates: Vec<Aggregate>,
}

/// A row of an answer. Numbers stay as they are written, with all digits.
#[derive(Debug, Deserialize)]
struct Row {
    window_start: chrono::DateTime<Utc>,
    group: HashMap<String, Value>,
    count: u64,
    #[serde(default)]
    measures: HashMap<String, Box<RawValue>>,
}

#[derive(Debug, Deserialize)]
struct Answer {
    rows: Vec<Row>,
    next: Option<String>,
}

mod humantime_text {
    use std::time::Duration;

    use serde::{Deserialize as _, Deserializer, de::Error as _};

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        humantime::parse_duration(&String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

fn parse<T: serde::de::DeserializeOwned>(json: &[u8]) -> Result<T, LettersError> {
    let unreadable = |error| format!("the daemon's answer cannot be read ({error}): is it another release?");
    serde_json::from_slice(json).map_err(|error| LettersError::Unavailable(unreadable(error)))
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

impl Stats {
    /// What is to be printed.
    fn text(&self, client: &AdminClient) -> Result<String, LettersError> {
        let Some(name) = &self.name else {
            let listed = client.aggregates()?;
            return if self.json {
                Ok(harmless_json(&text(listed)))
            } else {
                Ok(for_stdout(list(&parse::<Listed>(&listed)?.aggregates)))
            };
        };
        if self.json || self.csv {
            let mut parameters = self.selected();
            parameters.extend([("from", self.from.clone()), ("to", self.to.clone())]);
            let format = if self.csv { "csv" } else { "json" };
            parameters.push(("format", format.to_owned()));
            let given = [("step", self.step.clone()), ("order", self.order.clone())];
            parameters.extend(given.into_iter().filter_map(|(name, value)| Some((name, value?))));
            parameters.extend(self.limit.map(|limit| ("limit", limit.to_string())));
            let rows = text(client.rows(name, &parameters)?);
            return Ok(if self.json { harmless_json(&rows) } else { for_stdout(rows) });
        }
        self.table(client, name).map(for_stdout)
    }

    /// Which groups are meant.
    fn selected(&self) -> Vec<(&'static str, String)> {
        let conditions = self.conditions.iter().map(|condition| ("where", condition.clone()));
        self.by.iter().map(|by| ("group_by", by.clone())).chain(conditions).collect()
    }

    fn table(&self, client: &AdminClient, name: &str) -> Result<String, LettersError> {
        let listed: Listed = parse(&client.aggregates()?)?;
        let known: Vec<_> = listed.aggregates.iter().map(|aggregate| aggregate.name.clone()).collect();
        let aggregate = listed.aggregates.into_iter().find(|aggregate| aggregate.name == *name).ok_or_else(|| {
            LettersError::NotFound(format!("there is no aggregate {name:?}; there are: {}", known.join(", ")))
        })?;
        let windows = Windows::new(aggregate.window, aggregate.time_zone.clone());
        let steps = Steps::choose(&windows, aggregate.window, &self.from, &self.to, self.step.as_deref(), Utc::now())
            .map_err(LettersError::Invalid)?;
        // Of the whole range, since what is measured of parts cannot be added by whoever reads it.
        let mut parameters = self.selected();
        parameters.extend(steps.range());
        let mut of_all = parameters.clone();
        let is_by_novelty = self.order.as_deref() == Some(NEW);
        let order = self.order.clone().filter(|_| !is_by_novelty).unwrap_or_else(|| "-count".to_owned());
        let shown = self.limit.unwrap_or(ROWS);
        let limit = if is_by_novelty { LOOKED_THROUGH } else { shown }.to_string();
        of_all.extend([("step", "all".to_owned()), ("order", order.clone()), ("limit", limit)]);
        let mut totals: Answer = parse(&client.rows(name, &of_all)?)?;
        if is_by_novelty && totals.next.is_some() {
            return Err(LettersError::Invalid(format!(
                "--order new: there are more than {LOOKED_THROUGH} groups: ask for fewer by --where or --by"
            )));
        }
        let fields: Vec<String> = match &self.by {
            None => aggregate.group_by,
            Some(by) if by.is_empty() => Vec::new(),
            Some(by) if aggregate.group_by.contains(by) => vec![by.clone()],
            Some(by) => by.split(',').map(str::to_owned).collect(),
        };
        parameters.extend(self.conditions_for(&totals.rows, &fields));
        parameters.extend([("step", steps.text()), ("limit", "1000000".to_owned())]);
        let points = points(client, name, parameters)?;
        let labels = aggregate.measures.into_iter().filter(|label| label != "count").collect();
        let width = std::io::stdout().is_terminal().then(terminal_width);
        let order = if is_by_novelty { NEW } else { &order };
        let mut table = Table { name, steps: &steps, fields, labels, cut_by: totals.next.map(|_| order), width };
        if is_by_novelty {
            table.newest_first(&mut totals.rows, &points);
            if totals.rows.len() > shown as usize {
                totals.rows.truncate(shown as usize);
                table.cut_by = Some(NEW);
            }
        }
        Ok(table.text(&totals.rows, &points))
    }

    /// That only points of the rows that are shown are asked for, as far as a URL takes that. (What else meets them is left out.)
    fn conditions_for(&self, rows: &[Row], fields: &[String]) -> Vec<(&'static str, String)> {
        const LONGEST: usize = 8 << 10;
        let mut conditions = Vec::new();
        for field in fields {
            let is_given = |condition: &String| condition.split_once(':').is_some_and(|(name, _)| name == field);
            if self.conditions.iter().any(is_given) {
                continue;
            }
            let values: BTreeSet<_> = rows.iter().filter_map(|row| row.group.get(field)).map(word).collect();
            let of_field: Vec<_> = values.iter().map(|value| ("where", format!("{field}:{value}"))).collect();
            if of_field.iter().map(|(_, condition)| 3 * condition.len() + 8).sum::<usize>() < LONGEST / fields.len() {
                conditions.extend(of_field);
            }
        }
        conditions
    }
}

/// A value as a condition has it.
fn word(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// All pages.
fn points(
    client: &AdminClient,
    name: &str,
    mut parameters: Vec<(&'static str, String)>,
) -> Result<Vec<Row>, LettersError> {
    const PAGES: usize = 20;
    let mut points = Vec::new();
    for _ in 0..PAGES {
        let Answer { rows, next } = parse(&client.rows(name, &parameters)?)?;
        points.extend(rows);
        let Some(next) = next else { return Ok(points) };
        parameters.retain(|(name, _)| *name != "cursor");
        parameters.push(("cursor", next));
    }
    Err(LettersError::Invalid(
        "there are too many groups for lines: ask for fewer by --where or --by, or for a longer --step".to_owned(),
    ))
}

fn terminal_width() -> usize {
    terminal::size().map_or(0, |(_, columns)| columns).clamp(40, 400)
}

/// The aggregates, a line each.
fn list(aggregates: &[Aggregate]) -> String {
    let mut lines = vec![["name", "window", "by", "measures", "of"].map(str::to_owned)];
    for aggregate in aggregates {
        let mut window = humantime::format_duration(aggregate.window).to_string();
        if let Some(zone) = &aggregate.time_zone {
            window.push_str(&format!(" in {zone}"));
        }
        let by = if aggregate.group_by.is_empty() { "-".to_owned() } else { aggregate.group_by.join(", ") };
        let of = aggregate.filter.as_ref().map_or_else(|| "all events".to_owned(), Value::to_string);
        lines.push([aggregate.name.clone(), window, by, aggregate.measures.join(", "), of]);
    }
    table::aligned(&lines.into_iter().map(Vec::from).collect::<Vec<_>>(), &[])
}
