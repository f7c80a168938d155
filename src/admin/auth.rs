//! Who may look, and who may operate (`admin.auth`). Whatever is not named here needs a key, so that no way of writing a path
//! goes past it.

use std::sync::Arc;

use actix_http::RequestHead;
use actix_web::{
    HttpResponse, ResponseError as _,
    http::{
        Method, StatusCode,
        header::{HeaderMap, HeaderName, WWW_AUTHENTICATE},
    },
};

use super::{AdminState, dashboard, pages};
use crate::{
    config::{Access, AdminKey, AdminKeys, LiveConfig},
    http::{
        Problem, RequestId,
        credentials::{self, Users},
    },
    metrics::{Metrics, ReasonLabel},
    openapi,
    position::Timestamp,
};

/// For probes, which have no keys: whether the process lives, whether it is ready (without the reasons), and how to ask. The
/// dashboard has no data of its own, and is open as well: it asks its reader for the key.
const OPEN: [&str; 3] = ["/health/live", "/health/ready", openapi::PATH];

/// What the dashboard says that it is: a browser would ask its user for a password where Basic is among the challenges, over the
/// page, which asks already.
const REQUESTED_WITH: HeaderName = HeaderName::from_static("x-requested-with");

/// Whether the path is open to those without a key, where others need one. All that can be done there is to look.
pub(super) fn is_open(path: &str) -> bool {
    OPEN.contains(&path) || dashboard::is_at(path)
}

/// What decides.
pub(super) struct Door {
    config: LiveConfig,
    metrics: Arc<Metrics>,
}

impl Door {
    pub fn of(state: &AdminState) -> Self {
        Self { config: state.config.clone(), metrics: state.metrics.clone() }
    }

    /// The answer to a client that asks before it sends a body, where its request would be refused.
    pub fn turns_away(&self, head: &RequestHead) -> Option<HttpResponse> {
        let refused = self.admit(head).err()?;
        Some(Problem { closing: true, ..refused }.error_response())
    }

    /// The answer to a request that is refused. What is done by one that is not stands in the log, with whose key it came, and who
    /// its client is by its certificate.
    pub fn refuses(&self, head: &RequestHead, client: Option<&str>, id: &RequestId) -> Option<HttpResponse> {
        match self.admit(head) {
            Err(problem) => {
                let mut answer = problem.error_response();
                if head.headers.contains_key(REQUESTED_WITH) {
                    answer
                        .headers_mut()
                        .retain(|name, value| *name != WWW_AUTHENTICATE || !value.as_bytes().starts_with(b"Basic"));
                }
                Some(answer)
            }
            Ok(key) => {
                if !only_looks(&head.method) && (key.is_some() || client.is_some()) {
                    let (method, path) = (&head.method, head.uri.path());
                    let key = key.as_deref().map(|key| key.name.as_str());
                    tracing::info!(key, client, %method, path, request_id = id.as_str(), "an operator's request");
                }
                None
            }
        }
    }

    /// Whether who asks may see all that can be read.
    pub fn knows(&self, headers: &HeaderMap) -> bool {
        let config = self.config.load();
        let keys = &config.admin.auth.keys;
        keys.is_empty() || identify(keys, headers).is_ok()
    }

    /// The key that a request came with, where there are any and it needs one.
    fn admit(&self, head: &RequestHead) -> Result<Option<Arc<AdminKey>>, Problem> {
        let looks = only_looks(&head.method);
        // Once: keys that a reload takes away meanwhile must not leave none to be found.
        let config = self.config.load();
        pages::check(head, looks, &config.admin).map_err(|refusal| {
            self.count(refusal.reason());
            refusal.problem()
        })?;
        let keys = &config.admin.auth.keys;
        if keys.is_empty() || is_open(head.uri.path()) {
            return Ok(None);
        }
        let key = identify(keys, &head.headers).map_err(|refusal| {
            self.count(refusal.reason());
            refusal.problem("admin.auth.keys")
        })?;
        if looks || key.access == Access::Operate {
            return Ok(Some(key));
        }
        self.count("forbidden");
        let detail = format!(
            "the key {:?} may only look: {} {} needs one with access = \"operate\" (admin.auth.keys)",
            key.name,
            head.method,
            head.uri.path().chars().take(100).collect::<String>()
        );
        Err(Problem::new(StatusCode::FORBIDDEN, detail))
    }

    fn count(&self, reason: &'static str) {
        self.metrics.admin_auth_refusals.get_or_create(&ReasonLabel { reason }).inc();
    }
}

fn identify(keys: &AdminKeys, headers: &HeaderMap) -> Result<Arc<AdminKey>, credentials::Refusal> {
    credentials::in_head(headers, Users::Ignored, Timestamp::now(), |hash| keys.find(hash).cloned())
}

fn only_looks(method: &Method) -> bool {
    method == Method::GET || method == Method::HEAD
}
