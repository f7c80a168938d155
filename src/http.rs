//! The HTTP/1.1 server under both listeners: actix's, on connections that cannot be held for ever.
//!
//! actix has a deadline for a connection's first head and for idle connections. What it leaves open to a hostile client
//! is closed here, on the transport (see [`Connection`]). The transport also hands on one request at a time, so that each
//! answer is its own request's. Its socket is plain, or speaks TLS (`accept`). Refusals that are not any handler's are problems (RFC 9457), too. Each answer says
//! what its request is called (see [`RequestId`]).

mod accept;
mod addresses;
mod bind;
mod client;
mod connection;
pub mod cors;
pub mod credentials;
mod framing;
mod problem;
mod proxy_protocol;
mod refusal;
pub mod request_id;
mod socket;

use std::{
    io,
    net::TcpListener,
    num::NonZero,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use actix_http::{HttpService, Request, RequestHead, body::BoxBody};
use actix_service::{ServiceFactoryExt, fn_service, map_config};
use actix_web::{
    App, HttpMessage as _, HttpRequest, HttpResponse, ResponseError as _,
    body::MessageBody,
    dev::{AppConfig, Payload, Server, Service as _, ServiceResponse},
    http::StatusCode,
    rt::net::TcpStream,
    web::ServiceConfig,
};
use bytes::Bytes;
use futures::{FutureExt, future::Either};
use tokio::sync::Semaphore;

use self::connection::Transport;
pub use self::{
    addresses::Addresses,
    bind::bind,
    client::client,
    connection::Connection,
    problem::{Challenge, Problem},
    proxy_protocol::Proxies,
    request_id::RequestId,
};
use crate::{config::LiveConfig, tls::ServerTls};

type TurnsAway = dyn Fn(&RequestHead) -> Option<HttpResponse> + Send + Sync;

/// What differs between the listeners.
pub struct Listener {
    pub name: &'static str,
    pub workers: usize,
    /// Connections at the same time, over all workers; further ones wait in the kernel's backlog.
    pub max_connections: usize,
    /// What the largest request body is at present. A client that asks first (`Expect: 100-continue`) is answered at once.
    pub max_body: Box<dyn Fn() -> u64 + Send + Sync>,
    /// The answer to a client that asks first and is not to send its body at all.
    pub turns_away: Box<TurnsAway>,
    /// Who may ask at all, where that is for the listener to say: the answer to a request that no handler is to have.
    pub refuses: Option<Box<Refuses>>,
    /// Whose `http.cors` says what pages of other origins may do; without it, nothing.
    pub cors: Option<LiveConfig>,
    /// Whether TLS is spoken, and by which certificate.
    pub tls: Option<Arc<ServerTls>>,
    /// How long clients are waited for at present.
    pub timeouts: Box<dyn Fn() -> Timeouts + Send + Sync>,
    pub addresses: Addresses,
    /// How many connections of one address there may be at present; 0 is any number.
    pub most_of_an_address: Box<dyn Fn() -> usize + Send + Sync>,
    /// Called for each connection that there were too many of.
    pub on_too_many: Box<dyn Fn() + Send + Sync>,
    /// Whose PROXY protocol headers are taken; without it, nobody's.
    pub proxies: Option<Proxies>,
    /// Called for each request that was refused before a handler had it, and for each preflight.
    pub on_refusal: Box<OnRefusal>,
}

/// Is given the name in the certificate that the client showed, too.
type Refuses = dyn Fn(&RequestHead, Option<&str>, &RequestId) -> Option<HttpResponse> + Send + Sync;

/// Hears of an answer, and what its request is called.
type OnRefusal = dyn Fn(StatusCode, &RequestId) + Send + Sync;

/// How long clients are waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// For a request's head, which is at most a few packets, and for a TLS handshake.
    pub head: Duration,
    /// How long a connection may be idle between two requests.
    pub idle: Duration,
}

impl Default for Timeouts {
    /// Idle for longer than common load balancers let a connection be (60 s), so that they close it before we do, and than the usual
    /// intervals of scrapers.
    fn default() -> Self {
        Self { head: Duration::from_secs(5), idle: Duration::from_secs(75) }
    }
}

/// Above whatever the transport allows.
const NEVER: Duration = Duration::from_secs(30 * 24 * 3600);

/// How long idle connections hold up the server's end, in seconds, after all requests were answered.
const STOP_SECONDS: u64 = 1;

/// How long what is left of a refused body is read and thrown away, so that its client can read why, and how long the
/// end of a connection may take.
const LINGER: Duration = Duration::from_secs(1);

/// Threads of each worker for what blocks, such as checking long bodies: enough for its core, and a bound on how many
/// bodies are taken apart at the same time.
const BLOCKING_THREADS: usize = 4;

/// Files that the rest of the process needs: the log, the spool, the store, connections to brokers and databases.
const RESERVED_FILES: u64 = 512;

/// Raises the soft limit of open files to the hard one, and returns how many connections it leaves room for.
pub fn affordable_connections() -> usize {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    // Where this is not allowed the soft limit stays, and is read below.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    let files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    // At least half, however few there are: a door with no connections would be none.
    let left = files.saturating_sub(RESERVED_FILES).max(files / 2);
    usize::try_from(left).unwrap_or(usize::MAX)
}

/// Serves these routes on all the sockets. Call it within an actix system, and keep the server polled.
///
/// # Errors
/// A socket cannot be used.
pub fn serve(
    sockets: Vec<TcpListener>,
    mut listener: Listener,
    routes: impl Fn(&mut ServiceConfig) + Clone + Send + 'static,
) -> io::Result<Server> {
    let address = sockets.first().ok_or(io::ErrorKind::AddrNotAvailable)?.local_addr()?;
    let workers = NonZero::new(listener.workers).map_or(1, NonZero::get);
    let share = listener.max_connections.div_ceil(workers);
    // As many as the workers' shares allow in all.
    listener.max_connections = share * workers;
    let builder = Server::build()
        .workers(workers)
        .max_concurrent_connections(share)
        .worker_max_blocking_threads(BLOCKING_THREADS)
        .shutdown_timeout(STOP_SECONDS)
        .disable_signals();
    let stopping = builder.graceful_shutdown_signal();
    let slots = Arc::new(Semaphore::new(listener.max_connections));
    let (name, listener) = (listener.name, Arc::new(listener));
    let service = move || {
        let (stopping, routes, slots) = (stopping.clone(), routes.clone(), slots.clone());
        let (listener, expecting, asked) = (listener.clone(), listener.clone(), listener.clone());
        let app = move || {
            let asked = asked.clone();
            App::new().configure(&routes).wrap_fn(move |mut request, service| {
                let connection = request.conn_data::<Rc<Connection>>().cloned();
                let has_body = !matches!(request.parts_mut().1, Payload::None);
                let client = connection.as_ref().and_then(|connection| connection.client().cloned());
                let exchange = connection.map(|connection| connection.begin(has_body));
                let id = RequestId::take_over(request.headers_mut());
                let (preflight, verdict) = cors::look(asked.cors.as_ref(), request.head());
                let refused =
                    || asked.refuses.as_ref().and_then(|refuses| refuses(request.head(), client.as_deref(), &id));
                let answer = match preflight.or_else(refused) {
                    Some(answer) => {
                        (asked.on_refusal)(answer.status(), &id);
                        Either::Left(std::future::ready(Ok(request.into_response(answer))))
                    }
                    None => Either::Right(service.call(request)),
                };
                answer.map(move |response: Result<ServiceResponse, _>| {
                    let mut response = response?.map_into_boxed_body();
                    id.write(response.headers_mut());
                    verdict.write(response.headers_mut());
                    if exchange.as_ref().is_some_and(|exchange| exchange.leaves_body()) {
                        response.response_mut().head_mut().set_connection_type(actix_http::ConnectionType::Close);
                    }
                    Ok(response.map_body(|_, body| Answer { body, rest: Bytes::new(), _exchange: exchange }))
                })
            })
        };
        let http = HttpService::build()
            .graceful_shutdown_signal(move || {
                let stopping = stopping.clone();
                async move { stopping.notified().await }
            })
            // The transport's: a head that is not whole is no byte to the dispatcher.
            .keep_alive(NEVER)
            // The transport's, which holds for each head, not only for a connection's first.
            .client_request_timeout(Duration::ZERO)
            .client_disconnect_timeout(LINGER)
            .local_addr(address)
            .expect(fn_service(move |mut request: Request| {
                let declared =
                    request.headers().get("content-length").and_then(|length| length.to_str().ok()?.parse().ok());
                let max_body = (expecting.max_body)();
                let too_large = || {
                    let problem = Problem { closing: true, ..Problem::body_too_large(max_body) };
                    declared.is_some_and(|length: u64| length > max_body).then(|| problem.error_response())
                };
                let refused = (expecting.turns_away)(request.head()).or_else(too_large);
                let expected = match refused {
                    None => Ok(request),
                    Some(mut answer) => {
                        let id = RequestId::take_over(request.headers_mut());
                        (expecting.on_refusal)(answer.status(), &id);
                        id.write(answer.headers_mut());
                        cors::look(expecting.cors.as_ref(), request.head()).1.write(answer.headers_mut());
                        Err(answer)
                    }
                };
                std::future::ready(expected)
            }))
            .on_connect_ext(|transport: &Transport, data| {
                data.insert(transport.connection());
            })
            // What it would hold is for URLs of our own, which no route makes.
            .h1(map_config(app(), |()| AppConfig::default()));
        fn_service(move |stream: TcpStream| accept::accept(stream, slots.clone(), listener.clone())).and_then(http)
    };
    let builder =
        sockets.into_iter().try_fold(builder, |builder, socket| builder.listen(name, socket, service.clone()))?;
    Ok(builder.run())
}

/// The name in the certificate that the client of this request showed; `None` where none is asked for.
pub fn certified(request: &HttpRequest) -> Option<Arc<str>> {
    request.conn_data::<Rc<Connection>>()?.client().cloned()
}

/// The answer to this request is a stream.
pub fn streams(request: &HttpRequest) {
    if let Some(connection) = request.conn_data::<Rc<Connection>>() {
        connection.stream();
    }
}

/// What the dispatcher is given of an answer at once: it copies each piece before it writes.
const PIECE: usize = 32 * 1024;

/// A response's body, with whose end the exchange is over.
struct Answer {
    body: BoxBody,
    /// Of what the body gave at once, what is still to be handed on.
    rest: Bytes,
    _exchange: Option<connection::Exchange>,
}

impl MessageBody for Answer {
    type Error = Box<dyn std::error::Error>;

    fn size(&self) -> actix_web::body::BodySize {
        self.body.size()
    }

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Self::Error>>> {
        if self.rest.is_empty() {
            match ready!(Pin::new(&mut self.body).poll_next(cx)) {
                Some(Ok(bytes)) => self.rest = bytes,
                end => return Poll::Ready(end),
            }
        }
        let piece = self.rest.len().min(PIECE);
        Poll::Ready(Some(Ok(self.rest.split_to(piece))))
    }
}

#[cfg(test)]
mod tests;
