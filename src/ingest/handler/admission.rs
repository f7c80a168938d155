//! Who is let in, by the head of a request: a key, a signature, a rate, and whether events are taken at all.

use std::sync::Arc;

use actix_http::RequestHead;
use actix_web::{HttpRequest, HttpResponse, http::Method, web};
use bytes::Bytes;
use percent_encoding::percent_decode_str;

use super::{EVENTS, Intake, LOGS, Sender};
use crate::{
    config::{Config, HttpConfig, HttpSource},
    http::Problem,
    ingest::{
        auth,
        otlp::{self, Encoding},
        problems::refused_by_gate,
        proof::{self, Arriving},
        rates,
    },
};

/// A request that is let in so far.
pub(super) struct Admitted {
    /// By which it was, and by which it goes on.
    pub config: Arc<Config>,
    /// `None` also where the body is to say whose it is.
    pub sender: Sender,
}

impl Intake {
    /// Refuses a request before anything of it is read: of a stranger, of one who sends too much, and of anybody while the gate is
    /// closed.
    pub(super) fn admit(&self, request: &HttpRequest) -> Result<Admitted, Problem> {
        let config = self.config.load_full();
        let sender = self.sender(request, &config.http)?;
        self.open().map(|()| Admitted { config, sender })
    }

    /// Whose key the request has, and whether that one may send at present.
    pub(super) fn sender(&self, request: &HttpRequest, http: &HttpConfig) -> Result<Sender, Problem> {
        let sender = auth::check(request.headers(), &http.auth.keys, &self.metrics);
        self.limited(request, http, sender)
    }

    fn open(&self) -> Result<(), Problem> {
        self.health.gate.closed().map_or(Ok(()), |(closed, why)| Err(refused_by_gate(closed, &why)))
    }

    fn limited(
        &self,
        request: &HttpRequest,
        http: &HttpConfig,
        sender: Result<Sender, Problem>,
    ) -> Result<Sender, Problem> {
        if rates::are_on(http) { self.rates.admit(request, http, sender) } else { sender }
    }

    /// The same at the path of a source, with its body, which a signature may have asked for.
    pub(super) async fn admit_to(
        &self,
        request: &HttpRequest,
        payload: web::Payload,
        source: &HttpSource,
    ) -> Result<(Admitted, Arriving), Problem> {
        let config = self.config.load_full();
        let http = &config.http;
        if let Some(signature) = &source.signature {
            self.limited(request, http, Ok(None))?;
            self.open()?;
            let signed = proof::signed(request, payload, signature, http, &self.in_flight, &self.metrics).await?;
            return Ok((Admitted { config, sender: None }, signed));
        }
        let sender = if source.key.is_none() || http.auth.keys.is_empty() {
            self.sender(request, http)?
        } else {
            match auth::in_head(request.headers(), &http.auth.keys, &self.metrics) {
                // Whose rate holds is known when the body is.
                Ok(None) if rates::are_on(http) => self.rates.admit_unknown(request, http).map(|()| None)?,
                Ok(None) => None,
                sender => self.limited(request, http, sender)?,
            }
        };
        self.open().map(|()| (Admitted { config, sender }, Arriving::Payload(payload)))
    }

    /// The same of one whose body had its key, or did not.
    pub(super) fn limited_by_body(
        &self,
        request: &HttpRequest,
        http: &HttpConfig,
        keyed: Result<(Bytes, Sender), Problem>,
    ) -> Result<(Bytes, Sender), Problem> {
        match keyed {
            Ok((body, sender)) => Ok((body, self.limited(request, http, Ok(sender))?)),
            Err(problem) if problem.status.is_client_error() => {
                self.limited(request, http, Err(problem)).map(|sender| (Bytes::new(), sender))
            }
            Err(problem) => Err(problem),
        }
    }

    /// The answer to a client that asks first (`Expect: 100-continue`), where its request would be refused for its key, for what
    /// its head says of its signature, or for its rate. Without it its body would be on the way.
    pub fn turns_away(&self, head: &RequestHead) -> Option<HttpResponse> {
        let http = &self.config.load().http;
        let path = head.uri.path();
        let decoded = percent_decode_str(path).decode_utf8_lossy();
        let is = |ours: &str| ours == path || ours == decoded;
        let source = http.source.iter().find(|source| is(&source.path));
        let signature = source.and_then(|source| source.signature.as_ref());
        let is_open = http.auth.keys.is_empty() && !rates::are_on(http) && signature.is_none();
        if is_open || head.method != Method::POST || !(EVENTS.into_iter().any(is) || source.is_some()) {
            return None;
        }
        let sender = match (source, signature) {
            (_, Some(signature)) => proof::claimed(head.headers(), signature, &self.metrics).map(|_| None),
            (Some(source), None) if source.key.is_some() && !http.auth.keys.is_empty() => {
                auth::in_head(head.headers(), &http.auth.keys, &self.metrics)
            }
            _ => auth::check(head.headers(), &http.auth.keys, &self.metrics),
        };
        let is_unknown = signature.is_none() && !http.auth.keys.is_empty() && matches!(sender, Ok(None));
        let (problem, fields) = self.rates.turn_away(head, http, sender, is_unknown)?;
        let problem = Problem { closing: true, ..problem };
        let mut answer = match Encoding::of(head.headers()) {
            Ok(encoding) if is(LOGS) => otlp::refusal(encoding, problem),
            _ => problem.into_response(),
        };
        fields.into_iter().for_each(|(name, value)| _ = answer.headers_mut().insert(name, value));
        Some(answer)
    }
}
