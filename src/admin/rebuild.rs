//! `/v1/aggregates/{name}/rebuild`: an aggregate gets its history from the archive. `POST` begins that or joins the one that is
//! under way, `GET` says how far it is, `DELETE` cancels it.

use std::time::Duration;

use actix_web::{HttpRequest, HttpResponse, http::StatusCode, web};
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::{AdminState, aggregates, blocking};
use crate::{
    aggregate::Chain,
    config::{AggregateConfig, Config},
    health::Health,
    http::Problem,
    moment,
    position::{Offset, Timestamp},
    store::{
        Store, StoreError,
        rebuild::{Kept, NewRebuild, Progress, Range, Rebuild},
    },
    window::Windows,
};

/// For the list of the archive's objects, of which there may be a million.
const LISTING: Duration = Duration::from_secs(60);
/// One at a time: it has a thread of its own, and goes on where it is given up.
static LISTING_TURN: Semaphore = Semaphore::const_new(1);

pub async fn begin(
    state: web::Data<AdminState>,
    name: web::Path<String>,
    request: HttpRequest,
) -> Result<HttpResponse, Problem> {
    let config = state.config.load_full();
    let store = aggregates::store(&state, &config)?;
    let aggregate = configured(&name, &config.aggregate)?;
    let now = Timestamp::now();
    let Asked { range: asked, drop } =
        Asked::read(aggregate, request.query_string(), now).map_err(Problem::bad_request)?;
    let Some(archived) = state.archived.clone() else {
        let why = "archive.url is \"none\": there is no archive to rebuild an aggregate from";
        return Err(Problem::new(StatusCode::CONFLICT, why));
    };
    let list = async {
        let turn = LISTING_TURN.acquire().await.map_err(|_| Problem::unavailable("the daemon is stopping"))?;
        // Kept until the listing has ended, also where nobody waits for it any more.
        blocking(move || (archived.chains(), turn).0).await
    };
    let chains = tokio::time::timeout(LISTING, list).await;
    let chains = chains
        .map_err(|_| Problem::unavailable(format!("the archive was not listed within {LISTING:?}: ask again")))??
        .map_err(|why| Problem::unavailable(format!("the archive cannot be read: {why:#}")))?;
    let range = Range { from: first_complete(&chains, &Windows::of(aggregate), asked.from), ..asked };
    if range.from.zip(range.to).is_some_and(|(from, to)| to <= from) {
        let why = "to: the archive begins later: no window would be rebuilt";
        return Err(Problem::bad_request(why));
    }
    let Kept { fits, of_others } = store.rebuilds().kept(&aggregate.name).await.map_err(problem)?;
    if !fits && !drop && (of_others || range != Range::default()) {
        return Err(Problem::new(StatusCode::CONFLICT, would_be_dropped(&aggregate.name, range)));
    }
    let partitions = chains.iter().map(|chain| chain.partition).collect();
    let wanted = NewRebuild { aggregate: aggregate.name.clone(), range, partitions, now };
    let rebuild = store.rebuilds().begin(&wanted).await.map_err(problem)?;
    // Without a range it is joined, whatever its range is.
    if rebuild.range != range && asked != Range::default() {
        let why = format!(
            "aggregate {:?} is being rebuilt since {} with another from or to: wait for its end, or cancel it (DELETE)",
            aggregate.name,
            rebuild.started.to_rfc3339(),
        );
        return Err(Problem::new(StatusCode::CONFLICT, why));
    }
    let status = if rebuild.started == now { StatusCode::ACCEPTED } else { StatusCode::OK };
    Ok(HttpResponse::build(status).json(describe(&aggregate.name, Some(&rebuild), &state.health, now)))
}

pub async fn show(
    state: web::Data<AdminState>,
    name: web::Path<String>,
    request: HttpRequest,
) -> Result<HttpResponse, Problem> {
    let config = state.config.load_full();
    let (store, aggregate) = one(&state, &config, &name, &request)?;
    let found = store.rebuilds().find(&aggregate.name).await.map_err(problem)?;
    Ok(HttpResponse::Ok().json(describe(&aggregate.name, found.as_ref(), &state.health, Timestamp::now())))
}

pub async fn cancel(
    state: web::Data<AdminState>,
    name: web::Path<String>,
    request: HttpRequest,
) -> Result<HttpResponse, Problem> {
    let config = state.config.load_full();
    let (store, aggregate) = one(&state, &config, &name, &request)?;
    match store.rebuilds().cancel(&aggregate.name, Timestamp::now()).await.map_err(problem)? {
        true => Ok(HttpResponse::Ok().json(json!({ "aggregate": aggregate.name, "state": "cancelled" }))),
        false => Err(Problem::not_found(format!("aggregate {:?} is not being rebuilt", aggregate.name))),
    }
}

fn problem(error: StoreError) -> Problem {
    match error {
        StoreError::Unavailable(why) => Problem::unavailable(format!("the store is out of reach: {why}")),
        StoreError::Refused(why) | StoreError::TooMuch(why) => Problem::new(StatusCode::CONFLICT, why),
    }
}

/// The aggregate of a request that has no parameters, and where it is kept.
fn one<'s>(
    state: &'s AdminState,
    config: &'s Config,
    name: &str,
    request: &HttpRequest,
) -> Result<(&'s dyn Store, &'s AggregateConfig), Problem> {
    let store = aggregates::store(state, config)?;
    let aggregate = configured(name, &config.aggregate)?;
    match url::form_urlencoded::parse(request.query_string().as_bytes()).next() {
        None => Ok((store, aggregate)),
        Some((name, _)) => Err(Problem::bad_request(format!("{name}: unknown parameter; there is none here"))),
    }
}

/// Also one whose definition the store refuses until it is rebuilt.
fn configured<'c>(name: &str, all: &'c [AggregateConfig]) -> Result<&'c AggregateConfig, Problem> {
    all.iter().find(|aggregate| aggregate.name == name).ok_or_else(|| {
        let known: Vec<_> = all.iter().map(|aggregate| aggregate.name.as_str()).collect();
        Problem::not_found(format!("there is no aggregate {name:?}; there are: {} (one that was added to the configuration is there from the next start on)",
            known.join(", ")))
    })
}

/// What is to be rebuilt.
#[derive(Debug, Default, PartialEq)]
struct Asked {
    range: Range,
    /// What is not rebuilt may go where it cannot be kept.
    drop: bool,
}

impl Asked {
    fn read(aggregate: &AggregateConfig, query: &str, now: Timestamp) -> Result<Self, String> {
        let (windows, mut asked, mut seen) = (Windows::of(aggregate), Self::default(), Vec::new());
        for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
            match name.as_ref() {
                "from" => asked.range.from = Some(bound(&windows, &name, &value, now)?),
                "to" => asked.range.to = Some(bound(&windows, &name, &value, now)?),
                "drop" => {
                    asked.drop = value.parse().map_err(|_| format!("drop: {value:?} is neither true nor false"))?;
                }
                other => return Err(format!("{other}: unknown parameter; there are from, to and drop")),
            }
            if seen.contains(&name) {
                return Err(format!("{name}: given twice"));
            }
            seen.push(name);
        }
        match asked.range {
            Range { from: Some(from), to: Some(to) } if to <= from => Err("to: must be after from".to_owned()),
            _ => Ok(asked),
        }
    }
}

/// A window's start. A relative time is rounded outwards.
fn bound(windows: &Windows, name: &str, value: &str, now: Timestamp) -> Result<Timestamp, String> {
    let moment = moment::parse(value, now.to_datetime()).map_err(|rule| format!("{name}: {value:?} {rule}"))?;
    let at = Timestamp(moment.at.timestamp_millis());
    let (start, end) = (windows.start_of(at), windows.end_of(at));
    match (start == at, moment.is_relative) {
        (true, _) => Ok(at),
        (false, true) if name == "to" => Ok(end),
        (false, true) => Ok(start),
        (false, false) => Err(format!(
            "{name}: {value:?} is no window's start; the nearest are {} and {}",
            start.to_rfc3339(),
            end.to_rfc3339()
        )),
    }
}

/// The first window that the archive can have all records of: it began with, or after, the latest of the partitions that
/// begin behind the log's first record.
fn first_complete(chains: &[Chain], windows: &Windows, from: Option<Timestamp>) -> Option<Timestamp> {
    let begun = chains.iter().filter_map(|chain| chain.begins_late).max();
    let complete = begun.map(|at| if windows.start_of(at) == at { at } else { windows.end_of(at) });
    from.max(complete)
}

fn would_be_dropped(name: &str, Range { from, to }: Range) -> String {
    let parts = [("before", from), ("from", to)];
    let parts = parts.iter().filter_map(|(word, at)| Some(format!("{word} {}", (*at)?.to_rfc3339())));
    let parts = parts.collect::<Vec<_>>().join(" and ");
    let what = match parts.is_empty() {
        true => "what was counted of other generations of the topic".to_owned(),
        false => format!("the windows {parts} (the archive does not reach there, or from and to leave them out)"),
    };
    format!(
        "aggregate {name:?}: {what} would not be rebuilt, and cannot be kept, since window, time_zone or group_by has changed: ask again \
         with drop=true (--drop) to lose it, or give the changed aggregate a new name"
    )
}

fn describe(aggregate: &str, rebuild: Option<&Rebuild>, health: &Health, now: Timestamp) -> Value {
    let Some(rebuild) = rebuild else { return json!({ "aggregate": aggregate, "state": "none" }) };
    let is_running = rebuild.finished.is_none();
    let (mut partitions, mut left) = (Vec::new(), Some(0));
    for (partition, reached) in &rebuild.partitions {
        let mut part = json!({ "partition": partition.0, "records": reached.records });
        if is_running {
            part["state"] = reached.progress.to_string().into();
            let end = health.counted.position(*partition);
            if let Some(end) = end {
                part["end"] = end.0.into();
            }
            if let Progress::History(at) | Progress::Catching(at) = reached.progress {
                part["cursor"] = at.0.into();
                left = left.zip(end).map(|(left, end): (u64, Offset)| left + end.0.saturating_sub(at.0));
            }
        }
        partitions.push(part);
    }
    let records = rebuild.records();
    let seconds = (rebuild.finished.unwrap_or(now).0 - rebuild.started.0).max(1) as f64 / 1000.0;
    let rate = records as f64 / seconds;
    let mut described = json!({
        "aggregate": aggregate,
        "state": if is_running { "running" } else { "done" },
        "started": rebuild.started.to_rfc3339(),
        "partitions": partitions,
        "records": records,
        "records_per_second": rate.round(),
    });
    let times = [("finished", rebuild.finished), ("from", rebuild.range.from), ("to", rebuild.range.to)];
    for (name, time) in times {
        if let Some(time) = time {
            described[name] = time.to_rfc3339().into();
        }
    }
    if is_running {
        if let Some(left) = left.filter(|_| records > 0) {
            described["remaining_seconds"] = (left as f64 / rate).ceil().into();
        }
        if let Some(why) = health.rebuilds.why(aggregate) {
            described["waiting"] = why.into();
        }
    }
    described
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::position::Partition;

    const HOUR: i64 = 3_600_000;

    fn aggregate() -> AggregateConfig {
        toml::from_str("name = \"a\"\nwindow = \"1h\"\ngroup_by = []").unwrap()
    }

    #[test]
    fn what_is_rebuilt_is_said_by_windows() {
        let now = Timestamp(1000 * HOUR + 5);
        let asked = |query: &str| Asked::read(&aggregate(), query, now);
        let range = |from: i64, to: i64| Range { from: Some(Timestamp(from * HOUR)), to: Some(Timestamp(to * HOUR)) };
        assert_eq!(asked("").unwrap(), Asked::default());
        assert_eq!(asked("from=-2h&to=now&drop=true").unwrap(), Asked { range: range(998, 1001), drop: true });
        assert_eq!(asked("from=1970-01-01T03:00:00Z&to=1970-01-01T04:00:00Z").unwrap().range, range(3, 4));
        for (query, part) in [
            ("from=1970-01-01T03:00:01Z", "the nearest are 1970-01-01T03:00:00.000Z and 1970-01-01T04:00:00.000Z"),
            ("from=-2h&from=-3h", "from: given twice"),
            ("from=-2h&to=-3h", "to: must be after from"),
            ("until=now", "there are from, to and drop"),
            ("drop=yes", "drop: \"yes\" is neither true nor false"),
            ("from=soon", "from: \"soon\" is not an RFC 3339 time"),
        ] {
            let why = asked(query).unwrap_err();
            assert!(why.contains(part), "{query}: {why}");
        }
    }

    #[test]
    fn windows_that_the_archive_has_not_from_their_start_are_not_rebuilt() {
        let chain = |partition, begins_late: Option<i64>| Chain {
            partition: Partition(partition),
            begins_late: begins_late.map(Timestamp),
        };
        let windows = Windows::of(&aggregate());
        let first = |chains: &[Chain], from: Option<i64>| {
            first_complete(chains, &windows, from.map(Timestamp)).map(|at| (at.0 / HOUR, at.0 % HOUR))
        };
        assert_eq!(first(&[chain(0, None), chain(1, None)], None), None);
        assert_eq!(first(&[chain(0, None), chain(1, Some(3 * HOUR + 1))], None), Some((4, 0)));
        assert_eq!(first(&[chain(0, Some(7 * HOUR)), chain(1, Some(3 * HOUR + 1))], Some(5 * HOUR)), Some((7, 0)));
        assert_eq!(first(&[chain(1, Some(3 * HOUR))], Some(5 * HOUR)), Some((5, 0)));
    }
}
