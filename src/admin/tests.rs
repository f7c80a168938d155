//! The endpoint through its handlers, with a store and a configuration that the tests set.

use actix_web::{
    App,
    test::{TestRequest, call_service, init_service, read_body_json},
};
use arc_swap::ArcSwap;
use chrono::{DateTime, Utc};
use futures::future::BoxFuture;
use serde_json::{Value, json};

use super::*;
use crate::{
    config::{Config, Reloaded},
    event::TimeBounds,
    health::ActorState,
    measure::Plan,
    names::{ActorName, SinkName},
    position::{Offset, Partition, TopicIdentity},
    store::{
        BucketDelta, Counted, CountedList, EventsPage, EventsQuery, Fence, Flushed, GroupsFound, GroupsOf, History,
        Prepared, ProcessedEvent, Rebuilds, Removal, StoreError,
        query::{Bucket, Merger, Query, Rows},
    },
};

#[derive(Clone, Copy)]
enum FakeStore {
    Rows,
    Away,
    Silent,
}

impl Store for FakeStore {
    fn prepare(&self) -> BoxFuture<'_, Result<Prepared, StoreError>> {
        unreachable!("the endpoint only asks")
    }

    fn counted(&self) -> CountedList {
        Config::default().aggregate.iter().map(Counted::configured).collect()
    }

    fn history(&self, _: Partition, _: Offset, _: TimeBounds) -> BoxFuture<'_, Result<History, StoreError>> {
        unreachable!("the endpoint only asks")
    }

    fn remove<'a>(&'a self, _: &'a Removal) -> BoxFuture<'a, Result<bool, StoreError>> {
        unreachable!("the endpoint only asks")
    }

    fn groups<'a>(
        &'a self,
        _: &'a CountedList,
        _: &'a [GroupsOf],
    ) -> BoxFuture<'a, Result<Vec<GroupsFound>, StoreError>> {
        unreachable!("the endpoint only asks")
    }

    fn fences<'a>(
        &'a self,
        _: Partition,
        _: Offset,
        _: &'a TopicIdentity,
    ) -> BoxFuture<'a, Result<Vec<Fence>, StoreError>> {
        unreachable!("the endpoint only asks")
    }

    fn fences_of<'a>(
        &'a self,
        _: &'a CountedList,
        _: usize,
        _: Partition,
        _: Offset,
        _: &'a TopicIdentity,
    ) -> BoxFuture<'a, Result<Vec<Fence>, StoreError>> {
        unreachable!("the endpoint only asks")
    }

    fn flush<'a>(
        &'a self,
        _: &'a CountedList,
        _: &'a [BucketDelta],
        _: &'a [ProcessedEvent],
    ) -> BoxFuture<'a, Result<Flushed, StoreError>> {
        unreachable!("the endpoint only asks")
    }

    fn rebuilds(&self) -> &dyn Rebuilds {
        unreachable!("the endpoint only asks")
    }

    fn query(&self, query: Query) -> BoxFuture<'_, Result<Rows, StoreError>> {
        Box::pin(async move {
            match self {
                Self::Rows => {
                    let mut merger = Merger::new(query, &Config::default().aggregate[0], &Plan::default());
                    for group in [r#"["client-1",null]"#, r#"["client-2","a,b"]"#] {
                        let (window_start, count) = (merger.range().0, 42);
                        merger.take(Bucket { window_start, group, count, state: None })?;
                    }
                    merger.finish()
                }
                Self::Away => Err(StoreError::Unavailable("connection refused".to_owned())),
                Self::Silent => std::future::pending().await,
            }
        })
    }

    fn events(&self, _: EventsQuery) -> BoxFuture<'_, Result<EventsPage, StoreError>> {
        Box::pin(async move {
            match self {
                Self::Rows => Ok(EventsPage::default()),
                Self::Away => Err(StoreError::Unavailable("connection refused".to_owned())),
                Self::Silent => std::future::pending().await,
            }
        })
    }
}

pub(super) fn state() -> AdminState {
    let mut config = Config::default();
    config.aggregator.timeout = std::time::Duration::from_millis(1);
    let live: LiveConfig = Arc::new(ArcSwap::from_pointee(config));
    let next = |_: &Config| {
        let reloaded = Reloaded { applied: vec!["logging.level".into()], needs_restart: vec!["http.listen".into()] };
        Ok((Config::default(), reloaded))
    };
    AdminState {
        reloader: Arc::new(Reloader::new(live.clone(), next, |_| ())),
        config: live,
        config_file: None,
        health: Health::default(),
        metrics: Arc::default(),
        store: Some(Arc::new(FakeStore::Rows)),
        archived: None,
        dead_letters: DeadLetterService::default(),
        tls: Arc::new(Tls::new([None, None], &Arc::default()).unwrap()),
        roles: vec!["ingestor", "producer"],
        version: "0.1.0",
        commit: "abc",
        started: Instant::now(),
        queries: queries(),
        waits: waits(),
        streams: Streams::default(),
    }
}

async fn ask(state: AdminState, request: TestRequest) -> (StatusCode, String, Value) {
    let app = init_service(App::new().configure(|app| routes(app, web::Data::new(state)))).await;
    let response = call_service(&app, request.to_request()).await;
    let content_type = response.headers().get(header::CONTENT_TYPE).unwrap().to_str().unwrap().to_owned();
    (response.status(), content_type, read_body_json(response).await)
}

async fn get(state: AdminState, uri: &str) -> (StatusCode, Value) {
    let (status, content_type, body) = ask(state, TestRequest::get().uri(uri)).await;
    let expected = if status.is_success() { "application/json" } else { "application/problem+json" };
    assert_eq!(content_type, expected, "{uri}");
    (status, body)
}

/// The head of the server's answer.
fn head_of(address: std::net::SocketAddr, request: &str) -> String {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text.split("\r\n\r\n").next().unwrap_or_default().to_lowercase()
}

#[actix_rt::test]
async fn each_answer_says_what_its_request_is_called() {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let server = serve(vec![socket], state()).unwrap();
    let asking = move || {
        for (line, status) in [
            ("GET /status", 200),
            ("HEAD /metrics", 200),
            ("POST /reload", 200),
            ("GET /v1/aggregates/none", 404),
            ("GET /elsewhere", 404),
            ("DELETE /status", 405),
        ] {
            let ask = |field: &str| {
                head_of(address, &format!("{line} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{field}\r\n"))
            };
            let named = ask("X-Request-Id: from-a-proxy/1\r\n");
            assert!(named.starts_with(&format!("http/1.1 {status} ")), "{line}: {named}");
            assert!(named.contains("\r\nx-request-id: from-a-proxy/1"), "{line}: {named}");
            for field in ["", "X-Request-Id: two words\r\n", "X-Request-Id: a\r\nX-Request-Id: a\r\n"] {
                let head = ask(field);
                let ids: Vec<_> = head.lines().filter_map(|line| line.strip_prefix("x-request-id: ")).collect();
                assert!(ids.len() == 1 && uuid::Uuid::parse_str(ids[0]).is_ok(), "{line} {field}: {head}");
            }
        }
        let broken = head_of(address, "GET / HTTP/1.1\r\nno field\r\n\r\n");
        assert!(broken.starts_with("http/1.1 400 ") && broken.contains("\r\nx-request-id: "), "{broken}");
    };
    web::block(asking).await.unwrap();
    server.stop().await;
}

const HOUR: &str = "/v1/aggregates/events_by_type?from=2026-11-23T08:00:00Z&to=2026-11-23T09:00:00Z";

fn row(group: Value) -> Value {
    json!({ "window_start": "2026-11-23T08:00:00Z", "group": group, "count": 42 })
}

#[actix_rt::test]
async fn a_query_answers_rows_and_says_when_there_were_more() {
    let rows =
        [row(json!({ "client_id": "client-1", "type": null })), row(json!({ "client_id": "client-2", "type": "a,b" }))];
    let mut expected = json!({
        "aggregate": "events_by_type", "window": "1m", "step": "1m",
        "from": "2026-11-23T08:00:00Z", "to": "2026-11-23T09:00:00Z", "rows": rows,
    });
    assert_eq!(get(state(), HOUR).await, (StatusCode::OK, expected.clone()));
    let (status, first) = get(state(), &format!("{HOUR}&limit=1")).await;
    let next = first["next"].as_str().unwrap().to_owned();
    (expected["rows"], expected["truncated"], expected["next"]) = (json!([rows[0]]), true.into(), next.clone().into());
    assert_eq!((status, first), (StatusCode::OK, expected));
    let (_, last) = get(state(), &format!("{HOUR}&limit=1&cursor={next}")).await;
    assert_eq!((&last["rows"], last.get("next"), last.get("truncated")), (&json!([rows[1]]), None, None));
    // It is of this query alone.
    let (status, body) = get(state(), &format!("{HOUR}&order=count&cursor={next}")).await;
    assert!(
        status == StatusCode::BAD_REQUEST && body["detail"].as_str().unwrap().contains("another query's"),
        "{body}"
    );
    let (_, listed) = get(state(), "/v1/aggregates").await;
    assert_eq!(listed["aggregates"][0]["name"], "events_by_type");
}

#[actix_rt::test]
async fn an_answer_has_the_format_that_is_asked_for_and_is_not_sent_twice() {
    let app = init_service(App::new().configure(|app| routes(app, web::Data::new(state())))).await;
    let ask = async |uri: &str, fields: &[(&'static str, &str)]| {
        let mut request = TestRequest::get().uri(uri);
        for field in fields {
            request = request.insert_header(*field);
        }
        let response = call_service(&app, request.to_request()).await;
        let field = |name: &str| {
            response.headers().get(name).map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default()
        };
        let fields = ["content-type", "etag", "cache-control", "link"].map(field);
        let status = response.status().as_u16();
        (status, fields, String::from_utf8(actix_web::test::read_body(response).await.to_vec()).unwrap())
    };
    let csv = "window_start,client_id,type,count\r\n2026-11-23T08:00:00Z,client-1,,42\r\n\
               2026-11-23T08:00:00Z,client-2,\"a,b\",42\r\n";
    let (status, [media_type, etag, cache, link], body) = ask(HOUR, &[("accept", "text/csv")]).await;
    assert_eq!((status, &*body, &*cache, &*link), (200, csv, "no-cache", ""));
    assert!(media_type.starts_with("text/csv") && etag.starts_with('"') && etag.len() == 34, "{media_type} {etag}");
    let (status, [_, same, ..], body) = ask(HOUR, &[("accept", "text/csv"), ("if-none-match", &etag)]).await;
    assert_eq!((status, same, &*body), (304, etag.clone(), ""));
    // The parameter goes before the header, and each format has a tag of its own.
    let (status, [media_type, other, _, link], body) =
        ask(&format!("{HOUR}&format=ndjson&limit=1"), &[("accept", "text/csv"), ("if-none-match", &etag)]).await;
    assert_eq!((status, &*media_type), (200, "application/x-ndjson"));
    assert_ne!(other, etag);
    let line = json!({ "window_start": "2026-11-23T08:00:00Z", "group": { "client_id": "client-1", "type": null }, "count": 42 });
    assert!(body.ends_with("}\n") && serde_json::from_str::<Value>(&body).unwrap() == line, "{body}");
    let next = link.strip_prefix('<').and_then(|link| link.strip_suffix(">; rel=\"next\"")).unwrap();
    let (_, [_, _, _, link], body) = ask(next, &[]).await;
    assert!(body.contains("client-2") && body.lines().count() == 1 && link.is_empty(), "{body} {link}");
}

#[actix_rt::test]
async fn a_query_without_parameters_is_about_the_last_hour() {
    let (_, body) = get(state(), "/v1/aggregates/events_by_type").await;
    let from: DateTime<Utc> = body["rows"][0]["window_start"].as_str().unwrap().parse().unwrap();
    assert!((58..=60).contains(&(Utc::now() - from).num_minutes()), "{from}");
}

#[actix_rt::test]
async fn a_bad_query_is_told_what_is_wrong() {
    let (status, body) = get(state(), "/v1/aggregates/events_by_type?from=2026-11-23T08:00:01Z").await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert_eq!((&body["status"], &body["title"]), (&json!(400), &json!("Bad Request")));
    assert!(body["detail"].as_str().unwrap().starts_with("from:"), "{body}");
    let (status, body) = get(state(), "/v1/aggregates/events_by_typo").await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    assert!(body["detail"].as_str().unwrap().contains("events_by_type"), "{body}");
}

#[actix_rt::test]
async fn a_store_that_is_away_or_silent_is_503_and_none_is_404() {
    for store in [FakeStore::Away, FakeStore::Silent] {
        let state = AdminState { store: Some(Arc::new(store)), ..state() };
        assert_eq!(get(state, "/v1/aggregates/events_by_type").await.0, StatusCode::SERVICE_UNAVAILABLE);
    }
    let without = AdminState { store: None, ..state() };
    let (status, body) = get(without, "/v1/aggregates/events_by_type").await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    assert!(body["detail"].as_str().unwrap().contains("ask one with the role aggregator"), "{body}");
}

#[actix_rt::test]
async fn events_are_answered_where_they_are_kept_and_elsewhere_it_is_said_which_key() {
    let (status, body) = get(state(), "/v1/events").await;
    let detail = body["detail"].as_str().unwrap();
    assert!(status == StatusCode::NOT_FOUND && detail.starts_with("store.events is false: "), "{body}");
    let keeping = || {
        let state = state();
        let mut config = Config::clone(&state.config.load());
        config.store.events = true;
        state.config.store(Arc::new(config));
        state
    };
    assert_eq!(get(keeping(), "/v1/events?type=t").await, (StatusCode::OK, json!({ "events": [] })));
    let (status, body) = get(keeping(), "/v1/events?form=now").await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "{body}");
    for store in [FakeStore::Away, FakeStore::Silent] {
        let state = AdminState { store: Some(Arc::new(store)), ..keeping() };
        assert_eq!(get(state, "/v1/events").await.0, StatusCode::SERVICE_UNAVAILABLE);
    }
    let (status, body) = get(AdminState { store: None, ..keeping() }, "/v1/events").await;
    assert!(status == StatusCode::NOT_FOUND && body["detail"].as_str().unwrap().contains("role aggregator"), "{body}");
    // A turn is one of all queries'.
    let state = keeping();
    let turns = state.queries.clone().acquire_many_owned(2).await.unwrap();
    assert_eq!(get(state.clone(), "/v1/events").await.0, StatusCode::SERVICE_UNAVAILABLE);
    drop(turns);
    assert_eq!(get(state, "/v1/events").await.0, StatusCode::OK);
}

#[actix_rt::test]
async fn two_queries_have_a_turn_at_a_time_until_their_clients_have_the_rows() {
    let state = state();
    let app = init_service(App::new().configure(|app| routes(app, web::Data::new(state.clone())))).await;
    let ask = || call_service(&app, TestRequest::get().uri("/v1/aggregates/events_by_type").to_request());
    let (unread, another) = (ask().await, ask().await);
    assert_eq!((unread.status(), another.status()), (StatusCode::OK, StatusCode::OK));
    assert_eq!(ask().await.status(), StatusCode::SERVICE_UNAVAILABLE);
    drop(unread);
    assert_eq!(ask().await.status(), StatusCode::OK);
    drop(another);
    assert_eq!(state.queries.available_permits(), 2);
}

#[actix_rt::test]
async fn readiness_is_200_or_503_with_the_same_body() {
    let state = state();
    state.health.actor(ActorName::Ingestor, ActorState::Running, None);
    let (status, _, body) = ask(state.clone(), TestRequest::get().uri("/health/ready")).await;
    assert_eq!((status, &body["ready"], &body["degraded"]), (StatusCode::OK, &json!(true), &json!(false)));
    state.health.actor(ActorName::Producer, ActorState::Restarting, "panicked".to_owned());
    let (status, _, body) = ask(state, TestRequest::get().uri("/health/ready")).await;
    assert_eq!((status, &body["ready"]), (StatusCode::SERVICE_UNAVAILABLE, &json!(false)));
    assert_eq!(body["actors"]["producer"], json!({ "state": "restarting", "reason": "panicked" }));
}

#[actix_rt::test]
async fn a_reload_names_what_was_applied_and_a_bad_file_is_422() {
    let (status, _, body) = ask(state(), TestRequest::post().uri("/reload")).await;
    assert_eq!(
        (status, body),
        (StatusCode::OK, json!({ "applied": ["logging.level"], "needs_restart": ["http.listen"] }))
    );
    let mut bad = state();
    let next = |_: &Config| Err("config.toml: disk.max_used_percent: 200 is above 100".to_owned());
    bad.reloader = Arc::new(Reloader::new(bad.config.clone(), next, |_| ()));
    let (status, content_type, body) = ask(bad, TestRequest::post().uri("/reload")).await;
    assert_eq!((status, content_type.as_str()), (StatusCode::UNPROCESSABLE_ENTITY, "application/problem+json"));
    assert!(body["detail"].as_str().unwrap().contains("disk.max_used_percent"), "{body}");
}

#[actix_rt::test]
async fn what_is_not_served_is_a_problem_and_wrong_methods_name_the_right_ones() {
    assert_eq!(get(state(), "/v1/nothing").await.0, StatusCode::NOT_FOUND);
    let app = init_service(App::new().configure(|app| routes(app, web::Data::new(state())))).await;
    let response = call_service(&app, TestRequest::get().uri("/reload").to_request()).await;
    assert_eq!(response.status(), StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(response.headers().get(header::ALLOW).unwrap(), "POST");
}

#[actix_rt::test]
async fn a_running_endpoint_serves_metrics_and_status_until_it_is_stopped() {
    let sockets = bind(&AdminConfig { listen: "127.0.0.1:0".to_owned(), ..AdminConfig::default() }).unwrap();
    let address = sockets[0].local_addr().unwrap();
    let taken = bind(&AdminConfig { listen: address.to_string(), ..AdminConfig::default() }).unwrap_err();
    assert!(format!("{taken:#}").contains(&address.to_string()), "{taken:#}");
    let state = state();
    state.metrics.set_lag(SinkName::Archive, "events", Partition(3), 12);
    let server = serve(sockets, state).unwrap();

    let metrics = fetch(address, "/metrics").await;
    assert!(metrics.contains("content-type: application/openmetrics-text; version=1.0.0"), "{metrics}");
    assert!(metrics.contains("ingestd_lag_records{") && metrics.ends_with("# EOF\n"), "{metrics}");
    let asked = "/metrics HTTP/1.1\r\nAccept: text/plain; version=0.0.4\r\nX:";
    let text = fetch(address, asked).await;
    assert!(text.contains("content-type: text/plain; version=0.0.4; charset=utf-8"), "{text}");
    assert!(text.contains("vary: accept, accept-encoding") && !text.contains("# EOF"), "{text}");
    let status = fetch(address, "/status").await;
    let status: Value = serde_json::from_str(status.split_once("\r\n\r\n").unwrap().1).unwrap();
    assert_eq!(status["lag"], json!([{ "sink": "archive", "topic": "events", "partition": 3, "records": 12 }]));
    assert_eq!(status["pid"], std::process::id());

    server.stop().await;
    assert!(tokio::net::TcpStream::connect(address).await.is_err());
}

/// One answer, head and body, over a connection of its own.
async fn fetch(address: std::net::SocketAddr, path: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    web::block(move || {
        use std::io::{Read as _, Write as _};
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    })
    .await
    .unwrap()
}

#[actix_rt::test]
async fn a_correction_may_be_as_large_as_what_the_door_takes() {
    let replay = async |size: usize| {
        let state = state();
        let mut config = Config::default();
        config.http.max_event = crate::config::ByteSize(1000);
        state.config.store(Arc::new(config));
        let request = TestRequest::post().uri("/v1/dead-letters/replay?id=events.ingest/0/x");
        let request = request.insert_header((header::CONTENT_TYPE, "application/octet-stream"));
        ask(state, request.set_payload(vec![b'x'; size])).await.0.as_u16()
    };
    let longest = crate::event::longest_envelope(crate::config::ByteSize(1000));
    assert!(longest > 6000);
    // There are no letters yet: the body was taken.
    assert_eq!((replay(longest).await, replay(longest + 1).await), (503, 413));
}
