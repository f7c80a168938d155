//! The HTTP client below the object stores. It is object_store's own, but for requests whose body is held back: they stop
//! before their last byte until all of a race have come as far, so that the store has to decide between them at once.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::{Stream, StreamExt as _, future::BoxFuture, stream};
use object_store::{
    ClientConfigKey, ClientOptions,
    client::{
        HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpResponseBody, HttpService,
        ReqwestConnector,
    },
};
use reqwest::{Body, Client, NoProxy, Proxy, Request};
use tokio::sync::watch;

/// How long a race waits for all of its requests to come before their last byte.
const GATHER: Duration = Duration::from_secs(5);
/// What has been written takes a while to arrive.
const TRAVEL: Duration = Duration::from_millis(100);

/// What the requests of one race wait at.
#[derive(Debug)]
pub(super) struct Gate {
    requests: usize,
    arrived: AtomicUsize,
    open: watch::Sender<bool>,
}

impl Gate {
    pub(super) fn new(requests: usize) -> Arc<Self> {
        Arc::new(Self { requests, arrived: AtomicUsize::new(0), open: watch::Sender::new(false) })
    }

    /// Waits until all requests of the race are here, but not for ever: one that failed on its way never comes.
    async fn pass(&self) {
        if self.arrived.fetch_add(1, Ordering::AcqRel) + 1 == self.requests {
            tokio::time::sleep(TRAVEL).await;
            self.open.send_replace(true);
        }
        let mut open = self.open.subscribe();
        // An error of the first says that the gate is gone, of the second that one of them has not come.
        drop(tokio::time::timeout(GATHER, open.wait_for(|open| *open)).await);
        self.open.send_replace(true);
    }
}

/// In a request's extensions: its body, which is sent up to the last byte, and the rest when the gate opens.
#[derive(Debug, Clone)]
pub(super) struct HeldBack {
    pub(super) body: Bytes,
    pub(super) gate: Arc<Gate>,
}

impl HeldBack {
    fn chunks(self) -> impl Stream<Item = Result<Bytes, HttpError>> + Send + 'static {
        let Self { mut body, gate } = self;
        let last = body.split_off(body.len().saturating_sub(1));
        let last = stream::once(async move {
            gate.pass().await;
            Ok(last)
        });
        stream::once(async { Ok(body) }).chain(last)
    }
}

/// Connects the stores.
#[derive(Debug, Default)]
pub(super) struct Connector(ReqwestConnector);

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let client = self.0.connect(options)?;
        Ok(HttpClient::new(Service { client, options: options.clone(), racing: OnceLock::new() }))
    }
}

#[derive(Debug)]
struct Service {
    client: HttpClient,
    options: ClientOptions,
    /// Made with the first race.
    racing: OnceLock<Client>,
}

impl HttpService for Service {
    fn call<'life, 'future>(&'life self, request: HttpRequest) -> BoxFuture<'future, Result<HttpResponse, HttpError>>
    where
        'life: 'future,
        Self: 'future,
    {
        match request.extensions().get::<HeldBack>().cloned() {
            Some(held) => Box::pin(self.hold_back(request, held)),
            None => Box::pin(self.client.execute(request)),
        }
    }
}

impl Service {
    async fn hold_back(&self, request: HttpRequest, held: HeldBack) -> Result<HttpResponse, HttpError> {
        if !can_be_mirrored(&self.options) {
            return self.client.execute(request).await;
        }
        let client = match self.racing.get() {
            Some(client) => client,
            None => {
                let client = racing_client(&self.options)?;
                self.racing.get_or_init(|| client)
            }
        };
        let (parts, _) = request.into_parts();
        let url = parts.uri.to_string().parse().map_err(|error| HttpError::new(HttpErrorKind::Request, error))?;
        let mut request = Request::new(parts.method, url);
        *request.headers_mut() = parts.headers;
        *request.body_mut() = Some(Body::wrap_stream(held.chunks()));
        let answer = client.execute(request).await.map_err(failed)?;
        let (status, headers) = (answer.status(), answer.headers().clone());
        let mut response = HttpResponse::new(HttpResponseBody::from(answer.bytes().await.map_err(failed)?));
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        Ok(response)
    }
}

fn failed(error: reqwest::Error) -> HttpError {
    let kind = if error.is_timeout() { HttpErrorKind::Timeout } else { HttpErrorKind::Request };
    HttpError::new(kind, error.without_url())
}

/// Whether all that says how the store is reached can be given to a client of our own. Where not, the PUTs of a race are not
/// held back.
fn can_be_mirrored(options: &ClientOptions) -> bool {
    use ClientConfigKey as Key;
    let unset = |key| options.get_config_value(&key).is_none_or(|value| value.is_empty() || value == "false");
    [Key::ProxyCaCertificate, Key::NoSystemCertificates].into_iter().all(unset)
}

/// A client that reaches what object_store's own does; a connection for each request.
fn racing_client(options: &ClientOptions) -> Result<Client, HttpError> {
    let value = |key| options.get_config_value(&key).filter(|value: &String| !value.is_empty());
    let is = |key| value(key).is_some_and(|value| ["1", "true", "on", "yes", "y"].contains(&&*value.to_lowercase()));
    let mut client = Client::builder().http1_only().pool_max_idle_per_host(0);
    client = client.danger_accept_invalid_certs(is(ClientConfigKey::AllowInvalidCertificates));
    if let Some(agent) = value(ClientConfigKey::UserAgent) {
        client = client.user_agent(agent);
    }
    if let Some(url) = value(ClientConfigKey::ProxyUrl) {
        let excludes = value(ClientConfigKey::ProxyExcludes).and_then(|excludes| NoProxy::from_string(&excludes));
        client = client.proxy(Proxy::all(url).map_err(failed)?.no_proxy(excludes));
    }
    client.build().map_err(failed)
}

#[cfg(test)]
mod tests {
    use futures::future;

    use super::*;

    #[tokio::test]
    async fn the_last_byte_leaves_when_all_have_come_so_far() {
        let chunks = |gate: &Arc<Gate>| {
            let gate = gate.clone();
            HeldBack { body: Bytes::from_static(b"abc"), gate }.chunks().map(Result::unwrap).collect::<Vec<Bytes>>()
        };
        let gate = Gate::new(2);
        let (mut first, second) = (Box::pin(chunks(&gate)), chunks(&gate));
        assert!(futures::poll!(&mut first).is_pending(), "alone it waits");
        assert_eq!(future::join(first, second).await, (vec!["ab".into(), "c".into()], vec!["ab".into(), "c".into()]));
    }
}
