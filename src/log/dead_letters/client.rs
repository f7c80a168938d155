//! The letters of a running daemon, asked over its admin endpoint.

use std::{io, sync::Arc, time::Duration};

use rustls::ClientConfig;
use serde::de::DeserializeOwned;
use ureq::{
    Agent, Body, Error, RequestBuilder,
    http::Response,
    unversioned::{
        resolver::DefaultResolver,
        transport::{Connector, TcpConnector},
    },
};

use super::{DeadLetters, Filter, FullLetter, LettersError, Listed, PATIENCE, Purge, Replay};
use crate::tls::client::TlsConnector;

const CONNECT: Duration = Duration::from_secs(5);
/// The daemon's own patience, its turn before that, and its last transaction after it.
const ANSWER: Duration = PATIENCE.saturating_add(Duration::from_secs(60));
/// A letter's value is at most a record, written as JSON.
const LARGEST_ANSWER: u64 = 1 << 30;

/// A daemon's admin endpoint.
pub struct AdminClient {
    url: String,
    /// `Authorization`.
    authorization: Option<String>,
    agent: Agent,
}

impl AdminClient {
    /// `url` is `http://HOST:PORT`, or with TLS `https://HOST:PORT`; `key` one of its `admin.auth.keys`.
    ///
    /// # Errors
    /// One sentence on what it must be.
    pub fn new(url: &str, key: Option<&str>, tls: Option<Arc<ClientConfig>>) -> Result<Self, String> {
        let is_one = |url: &url::Url| ["http", "https"].contains(&url.scheme()) && url.has_host();
        if !url::Url::parse(url).is_ok_and(|url| is_one(&url)) {
            return Err(format!(
                "{url:?} is no URL of an admin endpoint, such as http://127.0.0.1:9600, or https:// where it speaks TLS"
            ));
        }
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .proxy(None)
            .timeout_connect(Some(CONNECT))
            .timeout_global(Some(ANSWER))
            .build();
        let authorization = key.map(|key| format!("Bearer {key}"));
        let tcp = ().chain(TcpConnector::default());
        let agent = match tls {
            None => Agent::with_parts(config, tcp, DefaultResolver::default()),
            Some(tls) => Agent::with_parts(config, tcp.chain(TlsConnector(tls)), DefaultResolver::default()),
        };
        Ok(Self { url: url.trim_end_matches('/').to_owned(), authorization, agent })
    }

    /// Whether anything listens there, also where it does not answer in time.
    pub fn is_listened_to(&self) -> bool {
        !matches!(self.agent.get(format!("{}/health/live", self.url)).call(), Err(error) if is_refused(&error))
    }

    /// What the daemon says of itself.
    ///
    /// # Errors
    /// It does not answer, or not to us.
    pub fn status(&self) -> Result<serde_json::Value, LettersError> {
        self.read(self.keyed(self.agent.get(format!("{}/status", self.url))).call())
    }

    /// The aggregates that it can be asked for, as JSON.
    ///
    /// # Errors
    /// It does not answer, or not to us.
    pub fn aggregates(&self) -> Result<Vec<u8>, LettersError> {
        self.body(self.keyed(self.agent.get(format!("{}/v1/aggregates", self.url))).call())
    }

    /// Its answer to a query of an aggregate, as it is.
    ///
    /// # Errors
    /// The same, or it refuses the query.
    pub fn rows(&self, aggregate: &str, parameters: &[(&str, String)]) -> Result<Vec<u8>, LettersError> {
        let mut query = url::form_urlencoded::Serializer::new(String::new());
        query.extend_pairs(parameters);
        let url = format!("{}/v1/aggregates/{}?{}", self.url, path(aggregate), query.finish());
        self.body(self.keyed(self.agent.get(url)).call())
    }

    /// How far the last rebuild of an aggregate is.
    ///
    /// # Errors
    /// It does not answer, or not to us.
    pub fn rebuild(&self, aggregate: &str) -> Result<serde_json::Value, LettersError> {
        self.read(self.keyed(self.agent.get(self.rebuild_url(aggregate))).call())
    }

    /// Begins one, or joins the one that is under way.
    ///
    /// # Errors
    /// The same, or it refuses that.
    pub fn begin_rebuild(
        &self,
        aggregate: &str,
        parameters: &[(&str, String)],
    ) -> Result<serde_json::Value, LettersError> {
        let mut query = url::form_urlencoded::Serializer::new(String::new());
        query.extend_pairs(parameters);
        let url = format!("{}?{}", self.rebuild_url(aggregate), query.finish());
        self.read(self.keyed(self.agent.post(url)).send_empty())
    }

    /// Cancels the one that is under way.
    ///
    /// # Errors
    /// The same.
    pub fn cancel_rebuild(&self, aggregate: &str) -> Result<serde_json::Value, LettersError> {
        self.read(self.keyed(self.agent.delete(self.rebuild_url(aggregate))).call())
    }

    fn rebuild_url(&self, aggregate: &str) -> String {
        format!("{}/v1/aggregates/{}/rebuild", self.url, path(aggregate))
    }

    fn url(&self, path: &str, filter: &Filter) -> String {
        format!("{}/v1/dead-letters{path}?{}", self.url, filter.to_query())
    }

    /// With the key, where there is one.
    fn keyed<B>(&self, request: RequestBuilder<B>) -> RequestBuilder<B> {
        match &self.authorization {
            Some(authorization) => request.header("authorization", authorization),
            None => request,
        }
    }

    fn read<T: DeserializeOwned>(&self, answer: Result<Response<Body>, Error>) -> Result<T, LettersError> {
        let body = self.body(answer)?;
        serde_json::from_slice(&body).map_err(|error| {
            let why = format!("its answer cannot be read ({error}): is it another release?");
            LettersError::Unavailable(format!("the daemon at {}: {why}", self.url))
        })
    }

    /// What a 2xx has.
    fn body(&self, answer: Result<Response<Body>, Error>) -> Result<Vec<u8>, LettersError> {
        let unavailable = |why: String| LettersError::Unavailable(format!("the daemon at {}: {why}", self.url));
        let mut answer = answer.map_err(|error| {
            unavailable(if is_refused(&error) {
                "nobody listens there: is it running, and is that its admin.listen?".to_owned()
            } else {
                format!("no answer ({error}){}", advice(&error))
            })
        })?;
        let status = answer.status().as_u16();
        let body = answer.body_mut().with_config().limit(LARGEST_ANSWER).read_to_vec();
        let body = body.map_err(|error| unavailable(format!("its answer broke off ({error})")))?;
        if (200..300).contains(&status) {
            return Ok(body);
        }
        let problem: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
        let detail = problem["detail"].as_str().map_or_else(|| format!("it answers {status}"), str::to_owned);
        Err(match status {
            401 => {
                LettersError::Invalid(format!("the daemon at {}: {detail} (here by --key or INGESTD_KEY)", self.url))
            }
            404 => LettersError::NotFound(detail),
            400..500 => LettersError::Invalid(detail),
            _ => unavailable(detail),
        })
    }
}

fn is_refused(error: &Error) -> bool {
    match error {
        Error::ConnectionFailed => true,
        Error::Io(error) => error.kind() == io::ErrorKind::ConnectionRefused,
        _ => false,
    }
}

/// What to do about a handshake that came to nothing.
fn advice(error: &Error) -> &'static str {
    let tls = match error {
        Error::Io(error) => error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()),
        _ => None,
    };
    match tls {
        Some(rustls::Error::InvalidCertificate(_)) => {
            ": its certificate is none of those that are believed here; see --ca"
        }
        Some(rustls::Error::AlertReceived(_)) => {
            ": it asks for a certificate, or takes another one; see --cert and --cert-key"
        }
        Some(rustls::Error::InvalidMessage(_)) => ": it does not speak TLS; is it http://?",
        _ => "",
    }
}

impl DeadLetters for AdminClient {
    fn list(&self, filter: &Filter) -> Result<Listed, LettersError> {
        self.read(self.keyed(self.agent.get(self.url("", filter))).call())
    }

    fn show(&self, id: &str) -> Result<FullLetter, LettersError> {
        let url = format!("{}/v1/dead-letters/{}", self.url, path(id));
        self.read(self.keyed(self.agent.get(url)).call())
    }

    fn replay(&self, filter: &Filter, correction: Option<&[u8]>) -> Result<Replay, LettersError> {
        let request = self.keyed(self.agent.post(self.url("/replay", filter)));
        self.read(match correction {
            Some(value) => request.header("content-type", "application/octet-stream").send(value),
            None => request.send_empty(),
        })
    }

    fn purge(&self, filter: &Filter) -> Result<Purge, LettersError> {
        self.read(self.keyed(self.agent.delete(self.url("", filter))).call())
    }
}

/// An id as a part of a path: what it may hold is safe there, but people type anything.
fn path(id: &str) -> String {
    let mut url = url::Url::parse("http://x").expect("it is a constant");
    url.set_path(id);
    url.path().trim_start_matches('/').to_owned()
}
