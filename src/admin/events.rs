//! `GET /v1/events`: processed events, where they are kept (`store.events`), the newest first and page by page.

use std::{convert::Infallible, time::Duration};

use actix_web::{HttpRequest, HttpResponse, body::SizedStream, http::StatusCode, http::header::ContentType, web};
use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures::stream;
use tokio::sync::{AcquireError, OwnedSemaphorePermit};

use super::{AdminState, positions};
use crate::{
    config::{Config, StoreKind},
    http::Problem,
    moment,
    position::Position,
    store::{Cursor, EventsQuery, StoreError},
};

pub(super) const DEFAULT_LIMIT: usize = 100;
pub(super) const MAX_LIMIT: usize = 10_000;
const NAMES: &str = "id, client, type, from, to, limit, cursor and after";

/// Somebody waits for the answer.
const DEADLINE: Duration = Duration::from_secs(10);

pub async fn query(state: web::Data<AdminState>, request: HttpRequest) -> Result<HttpResponse, Problem> {
    let config = state.config.load_full();
    if !config.store.events || config.store.kind == StoreKind::None {
        return Err(not_kept(&config));
    }
    let store = state.store.as_ref().ok_or_else(|| no_store(&state))?;
    let (query, after) = parse(request.query_string(), Utc::now()).map_err(Problem::bad_request)?;
    positions::wait_for(&state, &after, positions::PATIENCE).await?;
    let deadline = config.aggregator.timeout.min(DEADLINE);
    let asked = async {
        let turn = state.queries.clone().acquire_owned().await;
        (turn, store.events(query).await)
    };
    let (turn, page) = tokio::time::timeout(deadline, asked).await.map_err(|_| {
        let why = "the store has not answered, or other queries are being answered";
        let less =
            "ask again later, or for less: a shorter time (from, to), one more of id, client and type, a smaller limit";
        Problem::unavailable(format!("not within {deadline:?}: {why}: {less}"))
    })?;
    let page = page.map_err(|error| match error {
        StoreError::Unavailable(why) => Problem::unavailable(format!("the store is out of reach: {why}")),
        StoreError::TooMuch(why) => Problem::new(StatusCode::UNPROCESSABLE_ENTITY, why),
        StoreError::Refused(why) => Problem::new(StatusCode::INTERNAL_SERVER_ERROR, why),
    })?;
    // A cursor has nothing to escape.
    let after = page.next().map_or_else(|| "]}".to_owned(), |next| format!(r#"],"next":"{}"}}"#, next.encode()));
    let events = Bytes::from_owner(Answered { json: page.into_json(), _turn: turn });
    let parts = [Bytes::from_static(br#"{"events":["#), events, Bytes::from(after)];
    let length = parts.iter().map(|part| part.len() as u64).sum();
    let body = SizedStream::new(length, stream::iter(parts.map(Ok::<_, Infallible>)));
    Ok(HttpResponse::Ok().insert_header(ContentType::json()).body(body))
}

/// Events on their way to the client, whose turn ends when it has them.
struct Answered {
    json: Vec<u8>,
    _turn: Result<OwnedSemaphorePermit, AcquireError>,
}

impl AsRef<[u8]> for Answered {
    fn as_ref(&self) -> &[u8] {
        &self.json
    }
}

fn not_kept(config: &Config) -> Problem {
    Problem::not_found(match config.store.kind {
        StoreKind::None => "store.kind is \"none\": this daemon keeps no events",
        StoreKind::Embedded | StoreKind::Mongodb => {
            "store.events is false: this daemon keeps no processed events; set it to true and restart, and those that are \
             counted from then on are kept"
        }
    })
}

fn no_store(state: &AdminState) -> Problem {
    Problem::not_found(format!(
        "this process (roles: {}) does not aggregate: ask one with the role aggregator",
        state.roles.join(", ")
    ))
}

/// The query of these parameters, and what it waits for.
fn parse(parameters: &str, now: DateTime<Utc>) -> Result<(EventsQuery, Vec<Position>), String> {
    let mut query = EventsQuery { limit: 0, ..EventsQuery::default() };
    let mut after = Vec::new();
    for (name, value) in url::form_urlencoded::parse(parameters.as_bytes()) {
        let text = || Some(value.as_ref().to_owned());
        let time = || moment::parse(&value, now).map(|it| it.at).map_err(|why| format!("{name}: {value:?} {why}"));
        let twice = match name.as_ref() {
            "id" => std::mem::replace(&mut query.id, text()).is_some(),
            "client" => std::mem::replace(&mut query.client, text()).is_some(),
            "type" => std::mem::replace(&mut query.event_type, text()).is_some(),
            "from" => query.from.replace(time()?).is_some(),
            "to" => query.to.replace(time()?).is_some(),
            "limit" => std::mem::replace(&mut query.limit, limit(&value)?) != 0,
            "cursor" => query.after.replace(cursor(&value)?).is_some(),
            "after" => {
                positions::add(&mut after, &value)?;
                false
            }
            other => return Err(format!("{other}: unknown parameter; there are {NAMES}")),
        };
        if twice {
            return Err(format!("{name}: given twice"));
        }
    }
    if let (Some(from), Some(to)) = (query.from, query.to)
        && from > to
    {
        return Err(format!("from: {} is after to, {}", from.to_rfc3339(), to.to_rfc3339()));
    }
    if query.limit == 0 {
        query.limit = DEFAULT_LIMIT;
    }
    Ok((query, after))
}

fn limit(value: &str) -> Result<usize, String> {
    let limit = value.parse().ok().filter(|limit| (1..=MAX_LIMIT).contains(limit));
    limit.ok_or_else(|| format!("limit: {value:?} is not a number from 1 to {MAX_LIMIT}"))
}

fn cursor(value: &str) -> Result<Cursor, String> {
    Cursor::decode(value).ok_or_else(|| "cursor: it is no `next` of an answer: give that back as it is".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::position::{Offset, Partition};

    fn at(text: &str) -> DateTime<Utc> {
        text.parse().unwrap()
    }

    #[test]
    fn each_parameter_selects_and_none_selects_all() {
        let now = at("2026-11-23T08:30:15Z");
        let (query, after) = parse("", now).unwrap();
        assert_eq!((query, after), (EventsQuery { limit: DEFAULT_LIMIT, ..EventsQuery::default() }, vec![]));
        let cursor = Cursor { time: 5, place: "+events/0/1".to_owned() };
        let parameters = format!(
            "id=a%2Fb&client=c&type=login&from=-1h&to=now&limit=10000&cursor={}&after=0:17&after=3:4",
            cursor.encode()
        );
        let (query, after) = parse(&parameters, now).unwrap();
        let word = |text: &str| Some(text.to_owned());
        let expected = EventsQuery {
            id: word("a/b"),
            client: word("c"),
            event_type: word("login"),
            from: Some(at("2026-11-23T07:30:15Z")),
            to: Some(now),
            limit: 10_000,
            after: Some(cursor),
        };
        assert_eq!(query, expected);
        let position = |partition, offset| Position { partition: Partition(partition), offset: Offset(offset) };
        assert_eq!(after, [position(0, 17), position(3, 4)]);
    }

    #[test]
    fn each_bad_parameter_is_named() {
        for (parameters, parts) in [
            ("from=yesterday", ["from: ", "RFC 3339"]),
            ("to=-1", ["to: ", "such as -90s, -1h"]),
            ("from=now&to=-1h", ["from: ", "is after to"]),
            ("limit=0", ["limit: ", "from 1 to 10000"]),
            ("limit=10001", ["limit: ", "from 1 to 10000"]),
            ("limit=1&limit=1", ["limit", "given twice"]),
            ("type=a&type=b", ["type", "given twice"]),
            ("cursor=abc", ["cursor: ", "`next` of an answer"]),
            ("after=17", ["after: ", "PARTITION:OFFSET"]),
            ("client_id=a", ["client_id: unknown", NAMES]),
        ] {
            let error = parse(parameters, at("2026-11-23T08:30:15Z")).unwrap_err();
            assert!(parts.iter().all(|part| error.contains(part)), "{parameters}: {error}");
        }
    }
}
