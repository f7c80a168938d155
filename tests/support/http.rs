//! A blocking HTTP client with keep-alive that tells "nothing was sent" from "no answer".

use std::{fmt, io, time::Duration};

use serde_json::Value;
use ureq::{Agent, Error, http::Response};

use super::openapi::{self, Answered};

/// Each has connections of its own.
#[derive(Clone)]
pub struct Client(Agent);

#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub content_type: String,
    pub retry_after: Option<String>,
    pub allow: Option<String>,
    pub preference_applied: Option<String>,
    pub etag: Option<String>,
    pub link: Option<String>,
    pub body: String,
}

impl Reply {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error} in {self:?}"))
    }

    /// Asserts that it is an RFC 9457 problem with this status.
    #[track_caller]
    pub fn assert_problem(&self, status: u16) {
        assert_eq!(self.status, status, "{self:?}");
        assert!(self.content_type.starts_with("application/problem+json"), "{self:?}");
        assert_eq!(self.json()["status"], status, "{self:?}");
    }
}

pub enum NoReply {
    /// Nobody listened.
    NotSent,
    /// The connection broke or the time was up: the request may have been carried out.
    Unknown(Error),
}

impl fmt::Debug for NoReply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotSent => f.write_str("nobody listens"),
            Self::Unknown(error) => write!(f, "no answer: {error}"),
        }
    }
}

impl Client {
    pub fn new() -> Self {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .proxy(None)
            .timeout_global(Some(Duration::from_secs(60)))
            .build();
        Self(config.into())
    }

    #[track_caller]
    pub fn get(&self, url: &str) -> Result<Reply, NoReply> {
        reply("GET", url, self.0.get(url).call())
    }

    #[track_caller]
    pub fn post(&self, url: &str, content_type: Option<&str>, body: &[u8]) -> Result<Reply, NoReply> {
        let mut request = self.0.post(url);
        if let Some(content_type) = content_type {
            request = request.header("content-type", content_type);
        }
        reply("POST", url, request.send(body))
    }

    /// With these fields beside the body's length.
    #[track_caller]
    pub fn post_with(&self, url: &str, fields: &[(&str, &str)], body: &[u8]) -> Result<Reply, NoReply> {
        let request = fields.iter().fold(self.0.post(url), |request, (name, value)| request.header(*name, *value));
        reply("POST", url, request.send(body))
    }

    /// Any method, with these fields.
    #[track_caller]
    pub fn ask(&self, method: &str, url: &str, fields: &[(&str, &str)], body: &[u8]) -> Result<Reply, NoReply> {
        let request = ureq::http::Request::builder().method(method).uri(url);
        let request = fields.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        reply(method, url, self.0.run(request.body(body).expect("a request")))
    }

    #[track_caller]
    pub fn delete(&self, url: &str) -> Result<Reply, NoReply> {
        reply("DELETE", url, self.0.delete(url).call())
    }

    #[track_caller]
    pub fn put(&self, url: &str) -> Result<Reply, NoReply> {
        reply("PUT", url, self.0.put(url).send(&[][..]))
    }
}

/// Each answer is one that the daemon's own documents describe.
#[track_caller]
fn reply(method: &str, url: &str, result: Result<Response<ureq::Body>, Error>) -> Result<Reply, NoReply> {
    let mut response = result.map_err(|error| match error {
        Error::ConnectionFailed => NoReply::NotSent,
        Error::Io(error) if error.kind() == io::ErrorKind::ConnectionRefused => NoReply::NotSent,
        error => NoReply::Unknown(error),
    })?;
    let header =
        |name: &str| response.headers().get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    let (content_type, retry_after, allow) = (header("content-type"), header("retry-after"), header("allow"));
    let preference_applied = header("preference-applied");
    let (etag, link) = (header("etag"), header("link"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let headers = response.headers().iter().map(|(name, value)| (name.to_string(), text(value.as_bytes()))).collect();
    let status = response.status().as_u16();
    let body = response.body_mut().with_config().limit(256 << 20).read_to_string();
    let body = body.map_err(NoReply::Unknown)?;
    let (_, after) = url.split_once("://").unwrap_or_default();
    let target = after.find('/').map_or("/", |at| &after[at..]);
    openapi::check(&Answered { method, target, status, headers, body: body.as_bytes() });
    let content_type = content_type.unwrap_or_default();
    Ok(Reply { status, content_type, retry_after, allow, preference_applied, etag, link, body })
}
