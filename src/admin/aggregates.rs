//! `GET /v1/aggregates/{name}?from=&to=&limit=`: the rows of an aggregate between two window starts.

use std::{convert::Infallible, time::Duration};

use actix_web::{HttpRequest, HttpResponse, body::SizedStream, http::StatusCode, http::header::ContentType, web};
use bytes::Bytes;
use chrono::{DateTime, Datelike, SecondsFormat, TimeDelta, Utc};
use futures::stream;
use tokio::sync::{AcquireError, OwnedSemaphorePermit};

use super::AdminState;
use crate::{
    config::{AggregateConfig, Config, StoreKind},
    http::Problem,
    position::Timestamp,
    store::{Query, StoreError},
    window::Windows,
};

/// That RFC 3339 can write.
const LAST_YEAR: i32 = 9999;

const DEFAULT_LIMIT: usize = 10_000;
const MAX_LIMIT: usize = 1_000_000;

/// Queries that are answered at a time. Each holds up to 32 MiB of rows until its client has them, and more at once only
/// take the store from the flushes.
pub const AT_ONCE: usize = 2;

/// Somebody waits for the answer: less patience than a flush has.
const DEADLINE: Duration = Duration::from_secs(10);

pub async fn query(
    state: web::Data<AdminState>,
    name: web::Path<String>,
    request: HttpRequest,
) -> Result<HttpResponse, Problem> {
    let config = state.config.load_full();
    let store = state.store.as_ref().ok_or_else(|| no_store(&state, &config))?;
    let aggregate = config
        .aggregate
        .iter()
        .find(|aggregate| aggregate.name == *name)
        .ok_or_else(|| unknown_aggregate(&name, &config))?
        .clone();
    let query = parse(&aggregate, request.query_string(), Utc::now()).map_err(Problem::bad_request)?;
    let deadline = config.aggregator.timeout.min(DEADLINE);
    let asked = async {
        let turn = state.queries.clone().acquire_owned().await;
        (turn, store.query(query).await)
    };
    let (turn, rows) = tokio::time::timeout(deadline, asked).await.map_err(|_| {
        let why = "the store has not answered, or other queries are being answered";
        Problem::unavailable(format!("not within {deadline:?}: {why}: ask again later, or for fewer rows (limit)"))
    })?;
    let rows = rows.map_err(|error| match error {
        StoreError::Unavailable(why) => Problem::unavailable(format!("the store is out of reach: {why}")),
        StoreError::Refused(why) => Problem::new(StatusCode::INTERNAL_SERVER_ERROR, why),
    })?;
    let window = humantime::format_duration(aggregate.window);
    // Names of aggregates and durations have nothing to escape.
    let before = format!(r#"{{"aggregate":"{}","window":"{window}","rows":["#, aggregate.name);
    let after = if rows.truncated() { r#"],"truncated":true}"# } else { "]}" };
    let rows = Bytes::from_owner(Answered { rows: rows.into_json(), _turn: turn });
    let parts = [Bytes::from(before), rows, Bytes::from_static(after.as_bytes())];
    let length = parts.iter().map(|part| part.len() as u64).sum();
    let body = SizedStream::new(length, stream::iter(parts.map(Ok::<_, Infallible>)));
    Ok(HttpResponse::Ok().insert_header(ContentType::json()).body(body))
}

/// Rows on their way to the client, whose turn ends when it has them.
struct Answered {
    rows: Vec<u8>,
    _turn: Result<OwnedSemaphorePermit, AcquireError>,
}

impl AsRef<[u8]> for Answered {
    fn as_ref(&self) -> &[u8] {
        &self.rows
    }
}

fn no_store(state: &AdminState, config: &Config) -> Problem {
    Problem::not_found(match config.store.kind {
        StoreKind::None => "store.kind is \"none\": this daemon keeps no aggregates".to_owned(),
        StoreKind::Embedded | StoreKind::Mongodb => format!(
            "this process (roles: {}) does not aggregate: ask one with the role aggregator",
            state.roles.join(", ")
        ),
    })
}

fn unknown_aggregate(name: &str, config: &Config) -> Problem {
    let known: Vec<_> = config.aggregate.iter().map(|aggregate| aggregate.name.as_str()).collect();
    Problem::not_found(format!("there is no aggregate {name:?}; there are: {}", known.join(", ")))
}

/// The query of these parameters. Without `to`: up to and with the window that `now` is in, or all from a later `from` on:
/// the last window of the year 9999 ends at a time that RFC 3339 cannot write. Without `from`: the hour before `to`.
fn parse(aggregate: &AggregateConfig, parameters: &str, now: DateTime<Utc>) -> Result<Query, String> {
    let (mut from, mut to, mut limit) = (None, None, None);
    for (name, value) in url::form_urlencoded::parse(parameters.as_bytes()) {
        let twice = match name.as_ref() {
            "from" => from.replace(window_start("from", &value, aggregate.window)?).is_some(),
            "to" => to.replace(window_start("to", &value, aggregate.window)?).is_some(),
            "limit" => limit.replace(parse_limit(&value)?).is_some(),
            other => return Err(format!("{other}: unknown parameter; there are from, to and limit")),
        };
        if twice {
            return Err(format!("{name}: given twice"));
        }
    }
    let end_of_present = floor(now, aggregate.window) + TimeDelta::milliseconds(millis(aggregate.window));
    let to = to.unwrap_or_else(|| match from {
        Some(from) if from >= end_of_present => DateTime::<Utc>::MAX_UTC,
        _ => end_of_present,
    });
    let from = from.unwrap_or_else(|| floor(to - TimeDelta::hours(1), aggregate.window));
    if from > to {
        return Err(format!("from: {} is after to, {}", from.to_rfc3339(), to.to_rfc3339()));
    }
    Ok(Query { aggregate: aggregate.name.clone(), from, to, limit: limit.unwrap_or(DEFAULT_LIMIT) })
}

fn parse_limit(value: &str) -> Result<usize, String> {
    let limit = value.parse().ok().filter(|limit| (1..=MAX_LIMIT).contains(limit));
    limit.ok_or_else(|| format!("limit: {value:?} is not a number from 1 to {MAX_LIMIT}"))
}

fn window_start(name: &str, value: &str, window: Duration) -> Result<DateTime<Utc>, String> {
    let at = DateTime::parse_from_rfc3339(value).map_err(|error| {
        let hint = if value.contains(' ') { " (in a URL, + is written %2B)" } else { "" };
        format!("{name}: {value:?} is not an RFC 3339 time such as 2026-11-23T08:00:00Z: {error}{hint}")
    })?;
    let at = at.with_timezone(&Utc);
    let start = floor(at, window);
    if at != start {
        let next = start + TimeDelta::milliseconds(millis(window));
        let (window, text) =
            (humantime::format_duration(window), |at: DateTime<Utc>| at.to_rfc3339_opts(SecondsFormat::AutoSi, true));
        let nearest = match next.year() {
            // What this says can be asked for.
            ..=LAST_YEAR => format!("the nearest are {} and {}", text(start), text(next)),
            _ => format!("the last one is {}; without to, all from there on are answered", text(start)),
        };
        return Err(format!("{name}: {value} is not on a window start (windows of {window}); {nearest}"));
    }
    Ok(at)
}

fn millis(window: Duration) -> i64 {
    i64::try_from(window.as_millis()).unwrap_or(i64::MAX).max(1)
}

/// The start of the window that a moment is in.
fn floor(at: DateTime<Utc>, window: Duration) -> DateTime<Utc> {
    Windows::new(window, None).start_of(Timestamp(at.timestamp_millis())).to_datetime()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn aggregate(window: u64) -> AggregateConfig {
        AggregateConfig::counting("logins", Duration::from_secs(window), vec![])
    }

    fn at(text: &str) -> DateTime<Utc> {
        text.parse().unwrap()
    }

    #[test]
    fn without_parameters_the_last_hour_with_the_present_window_is_asked_for() {
        let now = at("2026-11-23T08:30:15Z");
        let query = parse(&aggregate(60), "", now).unwrap();
        assert_eq!((query.from, query.to), (at("2026-11-23T07:31:00Z"), at("2026-11-23T08:31:00Z")));
        assert_eq!(query.limit, DEFAULT_LIMIT);
        let query = parse(&aggregate(86400), "", now).unwrap();
        assert_eq!((query.from, query.to), (at("2026-11-23T00:00:00Z"), at("2026-11-24T00:00:00Z")));
    }

    #[test]
    fn the_last_window_of_all_can_be_asked_for_and_no_other_text_is_recommended() {
        let now = at("2026-11-23T08:30:15Z");
        let error = parse(&aggregate(60), "to=9999-12-31T23:59:30Z", now).unwrap_err();
        assert!(error.contains("9999-12-31T23:59:00Z") && !error.contains("10000"), "{error}");
        let query = parse(&aggregate(60), "from=9999-12-31T23:59:00Z", now).unwrap();
        assert!(query.from == at("9999-12-31T23:59:00Z") && query.to > at("9999-12-31T23:59:59.999Z"));
        // What is to come, too.
        let query = parse(&aggregate(60), "from=2026-11-23T08:31:00Z", now).unwrap();
        assert!(query.to > at("9999-12-31T23:59:59.999Z"));
        let query = parse(&aggregate(60), "from=2026-11-23T08:30:00Z", now).unwrap();
        assert_eq!(query.to, at("2026-11-23T08:31:00Z"));
    }

    #[test]
    fn each_bad_parameter_is_named() {
        for (parameters, parts) in [
            ("from=yesterday", ["from", "RFC 3339"]),
            ("from=2026-11-23T09:00:00+01:00", ["from", "%2B"]),
            ("to=2026-11-23T08:00:30Z", ["to", "2026-11-23T08:01:00Z"]),
            ("to=2026-11-23T08:00:00.0001Z", ["to", "window start"]),
            ("limit=0", ["limit", "1000000"]),
            ("limit=1000001", ["limit", "1000000"]),
            ("form=2026-11-23T08:00:00Z", ["form", "unknown"]),
            ("limit=1&limit=2", ["limit", "twice"]),
            ("from=2026-11-23T08:00:00Z&to=2026-11-23T07:00:00Z", ["from", "after to"]),
        ] {
            let error = parse(&aggregate(60), parameters, at("2026-11-23T08:30:15Z")).unwrap_err();
            assert!(parts.iter().all(|part| error.contains(part)), "{parameters}: {error}");
        }
    }

    #[test]
    fn times_of_other_zones_and_the_largest_limit_are_taken() {
        let parameters = "from=2026-11-23T09:00:00%2B01:00&to=2026-11-23T09:00:00Z&limit=1000000";
        let query = parse(&aggregate(3600), parameters, at("2026-11-23T08:30:15Z")).unwrap();
        assert_eq!((query.from, query.to), (at("2026-11-23T08:00:00Z"), at("2026-11-23T09:00:00Z")));
        assert_eq!(query.limit, MAX_LIMIT);
    }
}
