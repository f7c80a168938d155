//! What a query asks for, by its parameters.
//!
//! | | |
//! | --- | --- |
//! | `from`, `to` | RFC 3339 on a step's boundary, or `-1h` and `now`, which are rounded outwards to one. Without `to`: up to and with the present step, or all from a later `from` on; without `from`: the hour before `to` |
//! | `step` | a multiple of the window, or `all`: one row a group for the whole range. Without it, the window |
//! | `group_by` | some of the aggregate's fields, separated by commas or repeated; empty: the whole. Without it, all |
//! | `where` | `field:value`, repeatable: the groups whose field has this value, or one of those that are given for it |
//! | `order` | `window`, `count`, or a measure's name; with `-` before it the largest first |
//! | `limit`, `cursor` | so many rows, behind the page that gave the cursor |
//! | `format` | `json`, `csv` or `ndjson`; without it, by `Accept` |

use std::time::Duration;

use actix_web::HttpRequest;
use chrono::{DateTime, Datelike, TimeDelta, Utc};
use serde_json::json;
use sha2::{Digest, Sha256};

use super::{answer, cursor::Cursor};
use crate::{
    admin::positions,
    config::AggregateConfig,
    measure::Plan,
    moment::{self, Moment},
    position::{Position, Timestamp},
    store::query::{Condition, DEFAULT_LIMIT, Format, Order, Ordered, Place, Query, Step},
    window::Windows,
};

const NAMES: &str = "from, to, step, group_by, where, order, limit, cursor, format and after";
const MAX_LIMIT: usize = 1_000_000;
const LONGEST_STEP: Duration = Duration::from_secs(100 * 366 * 24 * 3600);
/// That RFC 3339 can write.
const LAST_YEAR: i32 = 9999;
/// From the year 0000 to the end of 9999, with the windows in which they begin and end.
const TIMES: std::ops::Range<i64> = -62_167_219_200_000 - A_CENTURY..253_402_300_800_000 + A_CENTURY;
const A_CENTURY: i64 = 1000 * LONGEST_STEP.as_secs() as i64;
/// The last window of the year 9999 ends at a time that RFC 3339 cannot write.
const OPEN_END: Timestamp = Timestamp(DateTime::<Utc>::MAX_UTC.timestamp_millis());

/// A query, and what its answer says of it.
#[derive(Debug)]
pub struct Asked {
    pub query: Query,
    /// As people write it.
    pub step: String,
    /// It is answered when the records there are counted.
    pub after: Vec<Position>,
    /// Of what a cursor of it goes on with.
    digest: String,
}

/// The parameters as they were given.
#[derive(Default)]
struct Given {
    from: Option<String>,
    to: Option<String>,
    step: Option<String>,
    group_by: Option<Vec<String>>,
    conditions: Vec<String>,
    order: Option<String>,
    limit: Option<usize>,
    cursor: Option<String>,
    format: Option<Format>,
    after: Vec<Position>,
}

impl Given {
    fn read(query: &str) -> Result<Self, String> {
        let mut given = Self::default();
        for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
            let value = value.into_owned();
            let twice = match name.as_ref() {
                "from" => given.from.replace(value).is_some(),
                "to" => given.to.replace(value).is_some(),
                "step" => given.step.replace(value).is_some(),
                "order" => given.order.replace(value).is_some(),
                "limit" => given.limit.replace(limit(&value)?).is_some(),
                "cursor" => given.cursor.replace(value).is_some(),
                "format" => given.format.replace(format(&value)?).is_some(),
                "group_by" => {
                    given.group_by.get_or_insert_default().push(value);
                    false
                }
                "where" => {
                    given.conditions.push(value);
                    false
                }
                "after" => {
                    positions::add(&mut given.after, &value)?;
                    false
                }
                other => return Err(format!("{other}: unknown parameter; there are {NAMES}")),
            };
            if twice {
                return Err(format!("{name}: given twice"));
            }
        }
        Ok(given)
    }
}

impl Asked {
    /// # Errors
    /// One sentence that names the parameter.
    pub fn read(aggregate: &AggregateConfig, request: &HttpRequest, now: DateTime<Utc>) -> Result<Self, String> {
        Self::parse(aggregate, request.query_string(), answer::preferred(request.headers()), now)
    }

    fn parse(aggregate: &AggregateConfig, query: &str, preferred: Format, now: DateTime<Utc>) -> Result<Self, String> {
        let given = Given::read(query)?;
        let (step, step_text) = step(aggregate, given.step.as_deref())?;
        let group_by = group_by(aggregate, given.group_by.as_deref())?;
        let conditions = conditions(aggregate, &given.conditions)?;
        let order = order(aggregate, given.order.as_deref())?;
        let digest = digest(&json!([
            aggregate.name,
            aggregate.window.as_millis().to_string(),
            aggregate.time_zone,
            aggregate.group_by,
            given.from,
            given.to,
            step_text,
            group_by,
            conditions.iter().map(|condition| json!([condition.field, condition.values])).collect::<Vec<_>>(),
            given.order.as_deref().unwrap_or("window"),
        ]));
        let windows = match &step {
            Step::Of(windows) => windows.clone(),
            Step::Whole => Windows::of(aggregate),
        };
        let cursor = given.cursor.as_deref().map(|cursor| read_cursor(cursor, &digest, &windows)).transpose()?;
        let (from, to) = match &cursor {
            Some(cursor) => (cursor.from, cursor.to),
            None => range(&windows, given.from.as_deref(), given.to.as_deref(), &step_text, now)?,
        };
        let query = Query {
            step,
            group_by,
            conditions,
            order,
            limit: given.limit.unwrap_or(DEFAULT_LIMIT),
            after: cursor.map(|cursor| cursor.place),
            format: given.format.unwrap_or(preferred),
            ..Query::of(aggregate, from, to)
        };
        Ok(Self { query, step: step_text, after: given.after, digest })
    }

    pub fn format(&self) -> Format {
        self.query.format
    }

    /// What goes on behind this row.
    pub fn cursor(&self, place: Place) -> String {
        let (from, to) = (self.query.from, self.query.to);
        Cursor { digest: self.digest.clone(), from, to, place }.encode()
    }

    /// From when to when, where RFC 3339 can write it.
    pub fn range(&self) -> (Option<String>, Option<String>) {
        (text(self.query.from), text(self.query.to))
    }
}

fn text(time: Timestamp) -> Option<String> {
    let time = time.to_datetime();
    (time.year() <= LAST_YEAR).then(|| time.to_rfc3339_opts(chrono::SecondsFormat::AutoSi, true))
}

fn limit(value: &str) -> Result<usize, String> {
    let limit = value.parse().ok().filter(|limit| (1..=MAX_LIMIT).contains(limit));
    limit.ok_or_else(|| format!("limit: {value:?} is not a number from 1 to {MAX_LIMIT}"))
}

fn format(value: &str) -> Result<Format, String> {
    match value {
        "json" => Ok(Format::Json),
        "csv" => Ok(Format::Csv),
        "ndjson" => Ok(Format::Ndjson),
        _ => Err(format!("format: {value:?} is none; there are json, csv and ndjson")),
    }
}

/// The step, and its text.
fn step(aggregate: &AggregateConfig, given: Option<&str>) -> Result<(Step, String), String> {
    let windows = Windows::of(aggregate);
    let Some(given) = given else {
        return Ok((Step::Of(windows), humantime::format_duration(aggregate.window).to_string()));
    };
    if given == "all" {
        return Ok((Step::Whole, given.to_owned()));
    }
    let window = humantime::format_duration(aggregate.window);
    let rule = || {
        let days = if aggregate.time_zone.is_some() { " (days of its time zone)" } else { "" };
        format!(
            "step: {given:?} is no multiple of the window, {window}{days}, such as {window}; or all, for the whole range"
        )
    };
    let step = humantime::parse_duration(given).map_err(|_| rule())?;
    if step > LONGEST_STEP {
        return Err(format!("step: {given:?} is above {}", humantime::format_duration(LONGEST_STEP)));
    }
    let windows = windows.steps_of(step).ok_or_else(rule)?;
    Ok((Step::Of(windows), humantime::format_duration(step).to_string()))
}

fn field(aggregate: &AggregateConfig, parameter: &str, name: &str) -> Result<usize, String> {
    aggregate.group_by.iter().position(|field| field == name).ok_or_else(|| {
        let fields = match aggregate.group_by.as_slice() {
            [] => "no field".to_owned(),
            fields => fields.join(", "),
        };
        format!("{parameter}: {name:?} is no field of {:?}, which is grouped by {fields}", aggregate.name)
    })
}

fn group_by(aggregate: &AggregateConfig, given: Option<&[String]>) -> Result<Vec<usize>, String> {
    let Some(given) = given else { return Ok((0..aggregate.group_by.len()).collect()) };
    let mut fields = Vec::new();
    for value in given.iter().filter(|value| !value.is_empty()) {
        // A JSON pointer may have a comma.
        let is_one = aggregate.group_by.contains(value);
        let names = if is_one { vec![value.as_str()] } else { value.split(',').collect() };
        for name in names {
            let field = field(aggregate, "group_by", name)?;
            if fields.contains(&field) {
                return Err(format!("group_by: {name:?} is given twice"));
            }
            fields.push(field);
        }
    }
    Ok(fields)
}

fn conditions(aggregate: &AggregateConfig, given: &[String]) -> Result<Vec<Condition>, String> {
    let mut conditions: Vec<Condition> = Vec::new();
    for condition in given {
        let (name, value) = condition
            .split_once(':')
            .ok_or_else(|| format!("where: {condition:?} is not field:value, such as type:login_failed"))?;
        let field = field(aggregate, "where", name)?;
        match conditions.iter_mut().find(|known| known.field == field) {
            Some(known) => known.values.push(value.to_owned()),
            None => conditions.push(Condition { field, values: vec![value.to_owned()] }),
        }
    }
    Ok(conditions)
}

fn order(aggregate: &AggregateConfig, given: Option<&str>) -> Result<Order, String> {
    let given = match given {
        None | Some("window") => return Ok(Order::Window),
        Some(given) => given,
    };
    let plan = Plan::new(aggregate);
    let ordered = |name: &str| match name {
        "count" => Some(Ordered::Count),
        _ => plan.outputs().iter().position(|output| output.name == name).map(Ordered::Measure),
    };
    // A name may begin with a minus.
    let rest = given.strip_prefix('-');
    let found = ordered(given).map(|number| (number, false)).or_else(|| Some((ordered(rest?)?, true)));
    let numbers = || plan.outputs().iter().filter(|output| !output.is_list()).map(|output| output.name.as_str());
    let known = || ["window", "count"].into_iter().chain(numbers()).collect::<Vec<_>>().join(", ");
    match found {
        Some((Ordered::Measure(index), _)) if plan.outputs()[index].is_list() => {
            Err(format!("order: {given:?} is a list; rows are ordered by one of {}, with - the largest first", known()))
        }
        Some((number, descending)) => Ok(Order::By { number, descending }),
        None => Err(format!("order: {given:?} is none; there are {}, with - the largest first", known())),
    }
}

fn digest(of: &serde_json::Value) -> String {
    hex::encode(&Sha256::digest(of.to_string().as_bytes())[..8])
}

fn read_cursor(text: &str, digest: &str, windows: &Windows) -> Result<Cursor, String> {
    let cursor = Cursor::decode(text)
        .ok_or("cursor: it is none that an answer gave: take `next` of the page before as it is")?;
    // A made-up one may have any number.
    let is_bound = |time: Timestamp| time == OPEN_END || TIMES.contains(&time.0) && windows.start_of(time) == time;
    if cursor.digest != digest || !is_bound(cursor.from) || !is_bound(cursor.to) {
        return Err(
            "cursor: it is another query's: but for limit and format, ask as for the page that gave it".to_owned()
        );
    }
    Ok(cursor)
}

fn range(
    windows: &Windows,
    from: Option<&str>,
    to: Option<&str>,
    step: &str,
    now: DateTime<Utc>,
) -> Result<(Timestamp, Timestamp), String> {
    let bound = |name: &str, given: Option<&str>, up: bool| {
        given.map(|given| boundary(name, given, windows, step, now, up)).transpose()
    };
    let (from, to) = (bound("from", from, false)?, bound("to", to, true)?);
    let end_of_present = windows.end_of(Timestamp(now.timestamp_millis()));
    let to = to.unwrap_or(match from {
        Some(from) if from >= end_of_present => OPEN_END,
        _ => end_of_present,
    });
    let hour = TimeDelta::hours(1).num_milliseconds();
    let from = from.unwrap_or_else(|| windows.start_of(Timestamp(to.0.saturating_sub(hour))));
    if from > to {
        return Err(format!("from: {} is after to, {}", from.to_rfc3339(), to.to_rfc3339()));
    }
    Ok((from, to))
}

/// A boundary of the steps: as it is given, or where that is relative the next one outwards.
fn boundary(
    name: &str,
    given: &str,
    windows: &Windows,
    step: &str,
    now: DateTime<Utc>,
    up: bool,
) -> Result<Timestamp, String> {
    let Moment { at, is_relative } = moment::parse(given, now).map_err(|why| format!("{name}: {given:?} {why}"))?;
    let time = Timestamp(at.timestamp_millis());
    let (start, next) = (windows.start_of(time), windows.end_of(time));
    if start.to_datetime() == at {
        return Ok(start);
    }
    if is_relative {
        return Ok(if up { next } else { start });
    }
    let steps = match step {
        "all" => "windows".to_owned(),
        step => format!("steps of {step}"),
    };
    let nearest = match (text(start), text(next)) {
        // What this says can be asked for.
        (Some(start), Some(next)) => format!("the nearest are {start} and {next}"),
        (start, _) => {
            let start = start.unwrap_or_default();
            format!("the last one is {start}; without to, all from there on are answered")
        }
    };
    Err(format!("{name}: {given} is not on a window start ({steps}); {nearest}"))
}

#[cfg(test)]
mod tests;
