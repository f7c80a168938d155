//! A blocking HTTP client with keep-alive that tells "nothing was sent" from "no answer".

use std::{fmt, io, time::Duration};

use serde_json::Value;
use ureq::{Agent, Error, http::Response};

/// Each has connections of its own.
#[derive(Clone)]
pub struct Client(Agent);

#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub content_type: String,
    pub retry_after: Option<String>,
    pub allow: Option<String>,
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

    pub fn get(&self, url: &str) -> Result<Reply, NoReply> {
        reply(self.0.get(url).call())
    }

    pub fn post(&self, url: &str, content_type: Option<&str>, body: &[u8]) -> Result<Reply, NoReply> {
        let mut request = self.0.post(url);
        if let Some(content_type) = content_type {
            request = request.header("content-type", content_type);
        }
        reply(request.send(body))
    }

    pub fn post_with(&self, url: &str, headers: &[(&str, &str)], body: &[u8]) -> Result<Reply, NoReply> {
        let request = self.0.post(url);
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        reply(request.send(body))
    }

    pub fn delete(&self, url: &str) -> Result<Reply, NoReply> {
        reply(self.0.delete(url).call())
    }

    pub fn put(&self, url: &str) -> Result<Reply, NoReply> {
        reply(self.0.put(url).send(&[][..]))
    }
}

fn reply(result: Result<Response<ureq::Body>, Error>) -> Result<Reply, NoReply> {
    let mut response = result.map_err(|error| match error {
        Error::ConnectionFailed => NoReply::NotSent,
        Error::Io(error) if error.kind() == io::ErrorKind::ConnectionRefused => NoReply::NotSent,
        error => NoReply::Unknown(error),
    })?;
    let header =
        |name: &str| response.headers().get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    let (content_type, retry_after, allow) = (header("content-type"), header("retry-after"), header("allow"));
    let status = response.status().as_u16();
    let body = response.body_mut().with_config().limit(256 << 20).read_to_string();
    let body = body.map_err(NoReply::Unknown)?;
    Ok(Reply { status, content_type: content_type.unwrap_or_default(), retry_after, allow, body })
}
