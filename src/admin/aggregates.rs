//! `GET /v1/aggregates` lists the aggregates, `GET /v1/aggregates/{name}` asks one (`parameters` says by which parameters).

mod answer;
mod cursor;
mod list;
mod parameters;

use std::time::Duration;

use actix_web::{HttpRequest, HttpResponse, http::StatusCode, web};
use chrono::Utc;

use super::{AdminState, positions};
use crate::{
    config::{AggregateConfig, Config, StoreKind},
    http::Problem,
    store::{Counted, Store, StoreError},
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
    let counted = store.counted();
    let aggregate = find(&name, &counted)?;
    let asked = Asked::read(aggregate, &request, Utc::now()).map_err(Problem::bad_request)?;
    positions::wait_for(&state, &asked.after, positions::PATIENCE).await?;
    let deadline = config.aggregator.timeout.min(DEADLINE);
    let rows = async {
        let turn = state.queries.clone().acquire_owned().await;
        (turn, store.query(asked.query.clone()).await)
    };
    let (turn, rows) = tokio::time::timeout(deadline, rows).await.map_err(|_| {
        let why = "the store has not answered, or other queries are being answered";
        Problem::unavailable(format!(
            "not within {deadline:?}: {why}: ask again later, or for a shorter range (from, to) or fewer rows (limit)"
        ))
    })?;
    let rows = rows.map_err(|error| match error {
        StoreError::Unavailable(why) => Problem::unavailable(format!("the store is out of reach: {why}")),
        StoreError::Refused(why) => Problem::new(StatusCode::INTERNAL_SERVER_ERROR, why),
        StoreError::TooMuch(why) => Problem::new(StatusCode::UNPROCESSABLE_ENTITY, why),
    })?;
    Ok(answer::of_rows(&request, aggregate, &asked, rows, turn))
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
