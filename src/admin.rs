//! The admin endpoint, in every process whatever its roles: health, metrics, status, reload, queries, and the dashboard, which
//! shows them. `openapi` describes it.
//!
//! It stands on the loopback by default, and asks nobody who they are unless it is told to (`admin.auth`). It is the last to go at a stop, so that the drain
//! can be watched.

use std::{
    net::TcpListener,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use actix_web::{
    HttpRequest, HttpResponse,
    dev::ServerHandle,
    guard,
    http::{StatusCode, header},
    web,
};
use anyhow::Context as _;
use serde_json::{Value, json};
use tokio::{sync::Semaphore, task::JoinHandle};

use crate::{
    aggregate::Archived,
    config::{AdminConfig, LiveConfig},
    health::Health,
    http::{self, Problem},
    metrics::Metrics,
    openapi::Document,
    reload::Reloader,
    store::Store,
    tls::Tls,
};

mod aggregates;
mod auth;
mod dashboard;
mod dead_letters;
mod events;
mod exposition;
mod live;
pub mod openapi;
mod pages;
mod positions;
mod rebuild;

pub use dead_letters::DeadLetterService;
pub use live::Streams;

/// Operators, scrapers and health checks; whatever opens more is broken. One that holds them all idle has them for seconds.
const MAX_CONNECTIONS: usize = 256;

/// What the endpoint shows and calls.
#[derive(Clone)]
pub struct AdminState {
    pub config: LiveConfig,
    pub config_file: Option<PathBuf>,
    pub health: Health,
    pub metrics: Arc<Metrics>,
    /// Present where this process aggregates.
    pub store: Option<Arc<dyn Store>>,
    /// The archive, where there is one.
    pub archived: Option<Arc<dyn Archived>>,
    pub dead_letters: DeadLetterService,
    pub reloader: Arc<Reloader>,
    pub tls: Arc<Tls>,
    /// The actors that run here, by name.
    pub roles: Vec<&'static str>,
    pub version: &'static str,
    pub commit: &'static str,
    pub started: Instant,
    /// The turns of queries.
    pub queries: Arc<Semaphore>,
    /// The places of queries that wait until records are counted (`after`).
    pub waits: Arc<Semaphore>,
    pub streams: Streams,
}

/// For [`AdminState::queries`].
pub fn queries() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(aggregates::AT_ONCE))
}

/// For [`AdminState::waits`].
pub fn waits() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(positions::AT_ONCE))
}

/// Binds the address before anything else starts, so that one that is taken is noticed at once.
///
/// # Errors
/// Names the address, the key, and what to do.
pub fn bind(config: &AdminConfig) -> anyhow::Result<Vec<TcpListener>> {
    let sockets = http::bind(&config.listen).with_context(|| {
        format!(
            "admin.listen: cannot listen on {}: stop what uses the address (another ingestd?) or set admin.listen",
            config.listen
        )
    })?;
    for socket in &sockets {
        let address = socket.local_addr().with_context(|| format!("admin.listen: {} has no address", config.listen))?;
        if !address.ip().is_loopback() && config.auth.keys.is_empty() && config.tls.client_ca.is_empty() {
            tracing::warn!(%address, "admin.listen is beyond this machine and asks nobody who they are: keep it firewalled, or let it \
                           ask for keys (admin.auth.keys) or certificates (admin.tls.client_ca); without keys and TLS browsers are \
                           answered only where they ask for an address, a name without a dot, or the one in admin.listen");
        }
    }
    Ok(sockets)
}

/// The running endpoint.
pub struct AdminServer {
    handle: ServerHandle,
    running: JoinHandle<std::io::Result<()>>,
    streams: Streams,
}

impl AdminServer {
    /// Answers what is being asked, then ends. The last step of the stop order.
    pub async fn stop(self) {
        self.streams.end();
        self.handle.stop(true).await;
        match self.running.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the admin endpoint ended with an error"),
            Err(error) => tracing::warn!(%error, "the admin endpoint panicked"),
        }
    }
}

/// Starts the endpoint. Call it within an actix system.
///
/// # Errors
/// A socket cannot be used.
pub fn serve(sockets: Vec<TcpListener>, state: AdminState) -> anyhow::Result<AdminServer> {
    let (asking, asked) = (auth::Door::of(&state), auth::Door::of(&state));
    let streams = state.streams.clone();
    let state = web::Data::new(state);
    let door = http::Listener {
        name: "admin",
        workers: 1,
        max_connections: MAX_CONNECTIONS,
        // Bodies are not read here.
        max_body: Box::new(|| u64::MAX),
        turns_away: Box::new(move |head| asking.turns_away(head)),
        refuses: Some(Box::new(move |head, client, id| asked.refuses(head, client, id))),
        // No page of another origin is an operator.
        cors: None,
        tls: state.tls.admin.clone(),
        timeouts: Box::new(http::Timeouts::default),
        addresses: http::Addresses::default(),
        most_of_an_address: Box::new(|| 0),
        on_too_many: Box::new(|| ()),
        // Who asks is nobody's business here.
        proxies: None,
        on_refusal: Box::new(|status, id| {
            tracing::debug!(%status, request_id = id.as_str(), "refused a request to the admin endpoint");
        }),
    };
    let server = http::serve(sockets, door, move |app| routes(app, state.clone()))
        .context("admin.listen: the listener cannot be used")?;
    Ok(AdminServer { handle: server.handle(), running: actix_rt::spawn(server), streams })
}

fn routes(app: &mut web::ServiceConfig, state: web::Data<AdminState>) {
    let get = || web::route().guard(guard::Any(guard::Get()).or(guard::Head()));
    let only = |path: &str, methods: &'static str, route: actix_web::Route| {
        web::resource(path.to_owned()).route(route).default_service(web::to(move || method_not_allowed(methods)))
    };
    app.app_data(state)
        .app_data(web::Data::new(Document::new(openapi::document)))
        .service(only("/", "GET, HEAD", get().to(dashboard::page)))
        .service(only("/assets/{name}", "GET, HEAD", get().to(dashboard::asset)))
        .service(only("/health/live", "GET, HEAD", get().to(lives)))
        .service(only("/health/ready", "GET, HEAD", get().to(ready)))
        .service(only("/metrics", "GET, HEAD", get().to(metrics)))
        .service(only("/status", "GET, HEAD", get().to(status)))
        .service(only("/reload", "POST", web::post().to(reload)))
        .service(only("/v1/aggregates", "GET, HEAD", get().to(aggregates::list)))
        .service(only("/v1/aggregates/{name}", "GET, HEAD", get().to(aggregates::query)))
        .service(
            web::resource("/v1/aggregates/{name}/rebuild")
                .route(get().to(rebuild::show))
                .route(web::post().to(rebuild::begin))
                .route(web::delete().to(rebuild::cancel))
                .default_service(web::to(|| method_not_allowed("GET, HEAD, POST, DELETE"))),
        )
        .service(only("/v1/events", "GET, HEAD", get().to(events::query)))
        .service(
            web::resource("/v1/dead-letters")
                .route(get().to(dead_letters::list))
                .route(web::delete().to(dead_letters::purge))
                .default_service(web::to(|| method_not_allowed("GET, HEAD, DELETE"))),
        )
        .service(only("/v1/dead-letters/replay", "POST", web::post().to(dead_letters::replay)))
        .service(only("/v1/dead-letters/{id:.+}", "GET, HEAD", get().to(dead_letters::show)))
        .service(only("/v1/live", "GET", web::get().to(live::live)))
        .service(only("/openapi.json", "GET, HEAD", get().to(document)))
        .default_service(web::to(not_found));
}

async fn lives() -> HttpResponse {
    HttpResponse::Ok().json(json!({ "live": true }))
}

async fn ready(request: HttpRequest, state: web::Data<AdminState>) -> HttpResponse {
    let readiness = state.health.readiness();
    let status = if readiness.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let mut response = HttpResponse::build(status);
    if auth::Door::of(&state).knows(request.headers()) {
        response.json(readiness)
    } else {
        // The reasons name brokers, hosts and folders.
        response.json(json!({ "ready": readiness.ready, "degraded": readiness.degraded }))
    }
}

async fn metrics(request: HttpRequest, state: web::Data<AdminState>) -> HttpResponse {
    let format = exposition::Format::of(request.headers());
    let body = format.write(state.metrics.encode());
    let mut response = HttpResponse::Ok();
    response.content_type(format.content_type()).insert_header((header::VARY, "accept, accept-encoding"));
    match exposition::gzip(request.headers(), &body) {
        Some(gzipped) => response.insert_header((header::CONTENT_ENCODING, "gzip")).body(gzipped),
        None => response.body(body),
    }
}

async fn document(state: web::Data<AdminState>, document: web::Data<Document>) -> HttpResponse {
    HttpResponse::Ok().insert_header(header::ContentType::json()).body(document.of(&state.config.load()))
}

async fn status(state: web::Data<AdminState>) -> HttpResponse {
    HttpResponse::Ok().json(page(&state))
}

/// What an operator wants to know first, on one page.
fn page(state: &AdminState) -> Value {
    let config = state.config.load();
    let metrics = &state.metrics;
    let readiness = state.health.readiness();
    // Whole seconds: what is below them says nothing.
    let uptime = Duration::from_secs(state.started.elapsed().as_secs());
    json!({
        "version": state.version,
        "commit": state.commit,
        "pid": std::process::id(),
        "roles": state.roles,
        "uptime": humantime::format_duration(uptime).to_string(),
        "uptime_seconds": uptime.as_secs(),
        "config_file": state.config_file,
        "data_dir": config.data.dir,
        "queue": { "kind": config.queue.kind, "topic": config.queue.name().to_string() },
        "archive": config.archive.url,
        "store": config.store.kind,
        "ready": readiness.ready,
        "degraded": readiness.degraded,
        "refusing_events": state.health.gate.closed().map(|(_, why)| why),
        "events": {
            "accepted": metrics.events_accepted.get(),
            "produced": metrics.events_produced.get(),
            "archived": metrics.events_archived.get(),
            "aggregated": metrics.events_aggregated.get(),
            "dead_lettered": metrics.events_dead_lettered.get(),
        },
        "rates": metrics.rates(),
        "lag": metrics.lags(),
        "tls": state.tls.status(),
        "disk": {
            "used_percent": (metrics.disk_used_ratio.get() * 1000.0).round() / 10.0,
            "max_used_percent": config.disk.max_used_percent,
            "resume_percent": config.disk.resume_percent,
        },
        "resident_memory_bytes": metrics.resident_memory(),
        "spool_bytes": metrics.spool_bytes.get(),
        "actors": readiness.actors,
        "dependencies": readiness.dependencies,
        "halted": readiness.halted,
    })
}

async fn reload(request: HttpRequest, state: web::Data<AdminState>) -> Result<HttpResponse, Problem> {
    let reloader = state.reloader.clone();
    let id = http::request_id::of(request.headers()).map(str::to_owned);
    // It reads files.
    let outcome = blocking(move || reloader.reload("POST /reload", id.as_deref())).await?;
    let reloaded = outcome.map_err(|error| {
        Problem::new(StatusCode::UNPROCESSABLE_ENTITY, format!("nothing changed: the configuration is bad: {error}"))
    })?;
    Ok(HttpResponse::Ok().json(reloaded))
}

/// Runs what blocks on a thread for it.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Problem> {
    web::block(work).await.map_err(|error| Problem::unavailable(format!("the daemon is stopping: {error}")))
}

async fn not_found(request: HttpRequest) -> Result<HttpResponse, Problem> {
    Err(Problem::not_found(format!("{} is nothing that the admin endpoint serves", request.path())))
}

async fn method_not_allowed(methods: &'static str) -> Result<HttpResponse, Problem> {
    Err(Problem::not_allowed(methods, format!("use {methods}")))
}

#[cfg(test)]
mod tests;
