//! The ingestor: the HTTP server that takes events and answers when they are safe.
//!
//! A request's way: `handler` refuses it without a right key (`auth`) and while the door is closed → `body` reads it within its limits, and inflates it by
//! its `coding` → `format` finds its events (`cloudevents` those that come in envelopes or in headers) and `check` checks
//! each → `quarantine` has wrong ones kept, where that is wished for → the producer makes the valid ones durable →
//! `replies` says what became of them. Bodies that are not of our shape are taken apart by `source` (`[[http.source]]`) and
//! `otlp` (logs), whose events `checking` checks. `trace` has each record carry the trace that its request is a part of. `preferences` is what the client would like of all that; what a web page
//! may send is `pages`'s; `openapi` describes all of it to clients.
//!
//! Requests run on the server's own workers, not on this actor, whose part is the server's life: it starts with the
//! actor, and ends with it or, gracefully, by [`StopAccepting`].

mod arrival;
mod aside;
mod attributes;
mod auth;
mod body;
mod check;
mod checking;
mod cloudevents;
mod coding;
mod conforming;
pub mod format;
mod handler;
mod ids;
mod in_flight;
pub mod openapi;
mod otlp;
mod pages;
mod preferences;
mod problems;
mod proof;
mod quarantine;
mod rates;
mod replies;
mod shape;
mod signature;
mod source;
#[cfg(test)]
mod tests;
mod trace;

use std::{io::ErrorKind, net::TcpListener, sync::Arc, thread};

use actix::{
    Actor, ActorContext, ActorFutureExt, AsyncContext, Context, Handler, Message, ResponseActFuture, WrapFuture,
};
use actix_web::{
    dev::{Server, ServerHandle},
    web,
};
use anyhow::Context as _;

use self::handler::{Intake, routes};
use crate::{
    config::{HttpConfig, LiveConfig},
    health::{ActorState, Health},
    http,
    log::{Ingress, dead_letters::Quarantine},
    metrics::{Metrics, ReasonLabel},
    names::ActorName,
    tls::ServerTls,
};

/// Stops the server: no new connections, requests in flight are finished. The reply comes when they are, or after
/// half of `shutdown.timeout`. Before it, close the door with `Closed::Draining`, so that clients on open connections
/// are answered why.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "()")]
pub struct StopAccepting;

/// Binds `http.listen`. Done once, before anything is started: a taken port is the commonest reason why a daemon cannot
/// start. Each incarnation of the ingestor gets clones of the sockets, so a restart refuses no connection.
pub fn bind(config: &HttpConfig) -> anyhow::Result<Vec<TcpListener>> {
    let listen = &config.listen;
    let sockets = http::bind(listen).map_err(|error| {
        let advice = match error.kind() {
            ErrorKind::AddrInUse => "another process listens there; end it or set http.listen to a free port",
            ErrorKind::PermissionDenied => "set http.listen to a port from 1024 on, or grant CAP_NET_BIND_SERVICE",
            ErrorKind::AddrNotAvailable => "set http.listen to an address of this machine",
            _ => "set http.listen to HOST:PORT of this machine, such as 127.0.0.1:8080",
        };
        anyhow::anyhow!("http.listen = {listen:?} cannot be bound: {error}: {advice}")
    })?;
    for socket in &sockets {
        rustix::net::listen(socket, BACKLOG).with_context(|| format!("cannot listen on http.listen = {listen:?}"))?;
    }
    Ok(sockets)
}

/// Connections that wait to be accepted. With std's 128, a few hundred clients that connect at once lose packets and wait
/// for a retransmission; the kernel's own limit (`net.core.somaxconn`) still holds.
const BACKLOG: i32 = 4096;

/// The ingestor actor.
pub struct Ingestor {
    /// Taken by the server when it starts.
    sockets: Vec<TcpListener>,
    intake: web::Data<Intake>,
    config: LiveConfig,
    health: Health,
    metrics: Arc<Metrics>,
    tls: Option<Arc<ServerTls>>,
    /// The running server; `None` before its start and from its stop on.
    server: Option<ServerHandle>,
}

impl Ingestor {
    /// A request costs a core for its parsing and little else; past four workers the queue behind them is the limit.
    const MAX_WORKERS: usize = 4;
    /// An idle connection holds some 20 KiB; further ones wait in the kernel's backlog.
    const MAX_CONNECTIONS: usize = 8192;

    /// `sockets` are clones of what [`bind`] returned.
    pub fn new(
        sockets: Vec<TcpListener>,
        ingress: Ingress,
        quarantine: Arc<dyn Quarantine>,
        config: LiveConfig,
        health: Health,
        metrics: Arc<Metrics>,
    ) -> Self {
        let intake = Intake::new(ingress, quarantine, config.clone(), health.clone(), metrics.clone());
        Self { sockets, intake: web::Data::new(intake), config, health, metrics, tls: None, server: None }
    }

    /// Has it speak TLS.
    pub fn with_tls(self, tls: Option<Arc<ServerTls>>) -> Self {
        Self { tls, ..self }
    }

    fn serve(&mut self) -> anyhow::Result<Server> {
        let sockets = std::mem::take(&mut self.sockets);
        let workers = thread::available_parallelism().map_or(1, usize::from).min(Self::MAX_WORKERS);
        let (intake, config, cors) = (self.intake.clone(), self.config.clone(), self.config.clone());
        let (counting, turning_away) = (intake.clone(), intake.clone());
        let (waiting, crowded) = (self.config.clone(), self.config.clone());
        let too_many = self.metrics.connections_refused.get_or_create_owned(&ReasonLabel { reason: "address" });
        let refusing = intake.clone();
        let proxies = http::Proxies {
            config: self.config.clone(),
            on_refusal: Box::new(move |reason| refusing.refused_proxy(reason)),
        };
        let door = http::Listener {
            name: "ingest",
            workers,
            max_connections: Self::MAX_CONNECTIONS.min(http::affordable_connections()),
            max_body: Box::new(move || config.load().http.max_body.0),
            turns_away: Box::new(move |head| turning_away.turns_away(head)),
            refuses: None,
            cors: Some(cors),
            tls: self.tls.clone(),
            timeouts: Box::new(move || {
                let http = &waiting.load().http;
                http::Timeouts { head: http.head_timeout, idle: http.idle_timeout }
            }),
            addresses: http::Addresses::default(),
            most_of_an_address: Box::new(move || crowded.load().http.max_connections_per_address),
            on_too_many: Box::new(move || _ = too_many.inc()),
            proxies: Some(proxies),
            on_refusal: Box::new(move |status, _| counting.answered(status)),
        };
        http::serve(sockets, door, move |app| routes(app, intake.clone()))
            .context("the HTTP server cannot use its listening socket")
    }

    /// Ends this incarnation; the guardian starts the next one.
    fn fail(&self, reason: String, ctx: &mut Context<Self>) {
        tracing::error!(reason, "HTTP server failed");
        self.health.actor(ActorName::Ingestor, ActorState::Failing, reason);
        ctx.stop();
    }
}

impl Actor for Ingestor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        let server = match self.serve() {
            Ok(server) => server,
            Err(error) => return self.fail(format!("{error:#}"), ctx),
        };
        self.server = Some(server.handle());
        // Dropped with the actor, which ends the server's threads.
        ctx.spawn(server.into_actor(self).map(|ended, ingestor, ctx| {
            if ingestor.server.is_some() {
                let reason = ended.err().map_or_else(|| "ended by itself".to_owned(), |error| error.to_string());
                ingestor.fail(reason, ctx);
            }
        }));
        self.health.actor(ActorName::Ingestor, ActorState::Running, None);
    }
}

impl Handler<StopAccepting> for Ingestor {
    type Result = ResponseActFuture<Self, ()>;

    fn handle(&mut self, _: StopAccepting, _: &mut Self::Context) -> Self::Result {
        let server = self.server.take();
        let intake = self.intake.clone();
        // The other half is for what comes after the server in the stop order.
        let patience = self.config.load().shutdown.timeout / 2;
        let stopped = async move {
            // actix waits for idle connections as for busy ones, so the requests are waited for here.
            let _ = tokio::time::timeout(patience, intake.idle()).await;
            if let Some(server) = server {
                server.stop(true).await;
            }
        };
        Box::pin(stopped.into_actor(self))
    }
}
