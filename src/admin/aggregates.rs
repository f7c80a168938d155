//! `GET /v1/aggregates` lists the aggregates, `GET /v1/aggregates/{name}` asks one (`parameters` says by which parameters).

mod answer;
mod cursor;
mod list;
mod parameters;

use std::{sync::Arc, time::Duration};

use actix_web::{HttpRequest, HttpResponse, http::StatusCode, web};
use chrono::Utc;
use tokio::sync::OwnedSemaphorePermit;

use super::{AdminState, positions};
use crate::{
    config::{AggregateConfig, Config, StoreKind},
    http::Problem,
    store::{Counted, Rows, Store, StoreError},
};
use parameters::Asked;

/// Queries that are answered at a time. Each holds up to 32 MiB of rows until its client has them, and more at once only
/// take the store from the flushes.
pub const AT_ONCE: usize = 2;

/// Somebody waits for the answer: less patience than a flush has.
const DEADLINE: Duration = Duration::from_secs(10);

/// What can be asked.
pub async fn list(state: web::Data<AdminState>, request: HttpRequest) -> Result<HttpResponse, Problem> {
    let config = state.config.load_full();
    let store = store(&state, &config)?;
    if let Some((name, _)) = url::form_urlencoded::parse(request.query_string().as_bytes()).next() {
        return Err(Problem::bad_request(format!("{name}: unknown parameter; there is none here")));
    }
    Ok(answer::of_list(&request, list::list(&store.counted()).to_string()))
}

pub async fn query(
    state: web::Data<AdminState>,
    name: web::Path<String>,
    request: HttpRequest,
) -> Result<HttpResponse, Problem> {
    let config = state.config.load_full();
    let store = store(&state, &config)?;
    let read = |counted: &[Counted]| {
        let aggregate = find(&name, counted)?.clone();
        let asked = Asked::read(&aggregate, &request, Utc::now()).map_err(Problem::bad_request)?;
        Ok::<_, Problem>((aggregate, asked))
    };
    let (_, asked) = read(&store.counted())?;
    positions::wait_for(&state, &asked.after, positions::PATIENCE).await?;
    let counted = store.counted();
    let (aggregate, asked) = read(&counted)?;
    let first = rows(&state, &config, store, &asked).await;
    // The aggregate was rebuilt by another definition in this moment, or the store was asked for the first time what it has.
    let (aggregate, asked, (turn, rows)) = match first {
        Err(problem)
            if problem.status == StatusCode::SERVICE_UNAVAILABLE && !Arc::ptr_eq(&counted, &store.counted()) =>
        {
            let (aggregate, asked) = read(&store.counted())?;
            let again = rows(&state, &config, store, &asked).await?;
            (aggregate, asked, again)
        }
        first => (aggregate, asked, first?),
    };
    Ok(answer::of_rows(&request, &aggregate, &asked, rows, turn))
}

/// The answer of the store, and the turn that lasts as long as somebody has it.
async fn rows(
    state: &AdminState,
    config: &Config,
    store: &dyn Store,
    asked: &Asked,
) -> Result<(OwnedSemaphorePermit, Rows), Problem> {
    let deadline = config.aggregator.timeout.min(DEADLINE);
    let rows = async {
        let turn = state.queries.clone().acquire_owned().await;
        (turn, store.query(asked.query.clone()).await)
    };
    let (turn, answer) = tokio::time::timeout(deadline, rows).await.map_err(|_| {
        let why = "the store has not answered, or other queries are being answered";
        Problem::unavailable(format!(
            "not within {deadline:?}: {why}: ask again later, or for a shorter range (from, to) or fewer rows (limit)"
        ))
    })?;
    let answer = answer.map_err(|error| match error {
        StoreError::Unavailable(why) => Problem::unavailable(format!("the store is out of reach: {why}")),
        StoreError::Refused(why) => Problem::new(StatusCode::INTERNAL_SERVER_ERROR, why),
        StoreError::TooMuch(why) => Problem::new(StatusCode::UNPROCESSABLE_ENTITY, why),
    })?;
    let turn = turn.map_err(|_| Problem::unavailable("the daemon is stopping"))?;
    Ok((turn, answer))
}

pub(super) fn store<'s>(state: &'s AdminState, config: &Config) -> Result<&'s dyn Store, Problem> {
    state.store.as_deref().ok_or_else(|| {
        Problem::not_found(match config.store.kind {
            StoreKind::None => "store.kind is \"none\": this daemon keeps no aggregates".to_owned(),
            StoreKind::Embedded | StoreKind::Mongodb => format!(
                "this process (roles: {}) does not aggregate: ask one with the role aggregator",
                state.roles.join(", ")
            ),
        })
    })
}

fn find<'c>(name: &str, counted: &'c [Counted]) -> Result<&'c AggregateConfig, Problem> {
    let mut active = counted.iter().filter(|counted| counted.is_active()).map(|counted| &counted.aggregate);
    active.clone().find(|aggregate| aggregate.name == name).ok_or_else(|| {
        let known: Vec<_> = active.by_ref().map(|aggregate| aggregate.name.as_str()).collect();
        Problem::not_found(format!("there is no aggregate {name:?}; there are: {}", known.join(", ")))
    })
}
