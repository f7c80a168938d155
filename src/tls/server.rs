//! TLS of the listeners: what new connections go by, its exchange at a reload, and what operators are told of certificates that end.
//!
//! A connection goes by what was in force when it began, to its end. Each exchange begins with tickets of its own, so no session of
//! before is resumed by what is in force now. Where clients show certificates, no session is resumed at all: each connection
//! is asked anew, by the CAs of now.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use rustls::{
    Error, ServerConfig,
    crypto::ring::Ticketer,
    server::{NoServerSessionStorage, WebPkiClientVerifier},
    sign::SingleCertAndKey,
};
use serde_json::{Value, json};

use super::{
    certificate::Validity,
    files::{self, Loaded},
    provider,
};
use crate::{
    config::{Config, ConfigErrors},
    metrics::{HandshakeLabel, ListenerLabel, Metrics},
    names::words,
    position::Timestamp,
};

/// What is spoken over it: the transport below both listeners is HTTP/1.1.
const PROTOCOL: &[u8] = b"http/1.1";
/// Certificates that end within it are named. Those that are renewed by themselves are so earlier: a third of their time before.
const SOON: Duration = Duration::from_secs(14 * 24 * 3600);
/// How often one is named that goes on to end soon.
const REMINDER: Duration = Duration::from_secs(24 * 3600);

words! {
    /// Why there is no connection, in the metric.
    Failure {
        /// It took longer than `http.head_timeout`.
        Timeout = "timeout",
        /// The client went away.
        Closed = "closed",
        /// It spoke HTTP without TLS.
        PlainHttp = "plain_http",
        /// No protocol version, suite or application protocol in common.
        Incompatible = "incompatible",
        /// It showed no certificate, and has to.
        NoCertificate = "no_certificate",
        /// The certificate that it showed is none of the CAs', or does not hold.
        BadCertificate = "bad_certificate",
        /// The client does not take ours.
        RefusedByClient = "refused_by_client",
        /// More bytes than a handshake has.
        TooLarge = "too_large",
        /// No TLS, or broken.
        Malformed = "malformed",
    }
}

impl From<&Error> for Failure {
    fn from(error: &Error) -> Self {
        match error {
            Error::NoCertificatesPresented => Self::NoCertificate,
            Error::InvalidCertificate(_) | Error::InvalidCertRevocationList(_) => Self::BadCertificate,
            Error::PeerIncompatible(_) | Error::NoApplicationProtocol => Self::Incompatible,
            Error::AlertReceived(_) => Self::RefusedByClient,
            _ => Self::Malformed,
        }
    }
}

/// TLS of one listener.
pub struct ServerTls {
    /// `http` or `admin`.
    section: &'static str,
    current: ArcSwap<Current>,
    metrics: Arc<Metrics>,
    done: Counter,
}

struct Current {
    server: Arc<ServerConfig>,
    loaded: Loaded,
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerTls").field("section", &self.section).finish_non_exhaustive()
    }
}

impl ServerTls {
    pub fn new(section: &'static str, loaded: Loaded, metrics: Arc<Metrics>) -> Result<Self, Error> {
        let done = metrics.tls_handshakes.get_or_create_owned(&ListenerLabel { listener: section });
        let tls = Self { section, current: ArcSwap::from_pointee(Current::new(loaded)?), metrics, done };
        tls.publish();
        Ok(tls)
    }

    /// What a connection goes by that begins now.
    pub fn server(&self) -> Arc<ServerConfig> {
        self.current.load().server.clone()
    }

    /// Counts a handshake.
    pub fn done(&self) {
        self.done.inc();
    }

    /// Counts one that came to nothing.
    pub fn failed(&self, failure: Failure) {
        let label = HandshakeLabel { listener: self.section, reason: failure.as_str() };
        self.metrics.tls_handshakes_failed.get_or_create(&label).inc();
    }

    fn publish(&self) {
        let Validity { to, .. } = self.current.load().loaded.validity;
        let end = self
            .metrics
            .tls_certificate_not_after_timestamp
            .get_or_create_owned(&ListenerLabel { listener: self.section });
        end.set(to.0.div_euclid(1000));
    }

    fn warning(&self, now: Timestamp) -> Option<String> {
        warning(self.section, &self.current.load().loaded, now)
    }

    fn status(&self, now: Timestamp) -> Value {
        let current = self.current.load();
        let Loaded { name, validity, client_ca, .. } = &current.loaded;
        json!({
            "certificate": name,
            "not_after": validity.to.to_rfc3339(),
            "days_left": (validity.to.0 - now.0).div_euclid(DAY),
            "client_certificates": client_ca.is_some(),
            "warning": warning(self.section, &current.loaded, now),
        })
    }
}

impl Current {
    fn new(loaded: Loaded) -> Result<Self, Error> {
        let builder = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
        let builder = match &loaded.client_ca {
            None => builder.with_no_client_auth(),
            Some(roots) => {
                let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider()).build();
                builder.with_client_cert_verifier(verifier.map_err(|error| Error::General(error.to_string()))?)
            }
        };
        let mut server = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(loaded.identity.clone())));
        server.alpn_protocols = vec![PROTOCOL.to_vec()];
        if loaded.client_ca.is_some() {
            server.session_storage = Arc::new(NoServerSessionStorage {});
            server.send_tls13_tickets = 0;
        } else {
            server.ticketer = Ticketer::new()?;
        }
        Ok(Self { server: Arc::new(server), loaded })
    }
}

const DAY: i64 = 24 * 3600 * 1000;

/// What an operator should know of a certificate.
fn warning(section: &str, loaded: &Loaded, now: Timestamp) -> Option<String> {
    let Loaded { name, validity: Validity { from, to }, .. } = loaded;
    let days = (to.0 - now.0).div_euclid(DAY);
    let what = if *to <= now {
        format!("ended at {}: clients refuse it; renew it now", to.to_rfc3339())
    } else if *from > now {
        format!("holds from {} on: clients refuse it until then; is this machine's clock right?", from.to_rfc3339())
    } else if to.0 - now.0 <= SOON.as_millis() as i64 {
        format!("ends at {}, in {days} days: renew it", to.to_rfc3339())
    } else {
        return None;
    };
    Some(format!("{section}.tls.cert: the certificate of {name:?}, or one of its chain, {what}"))
}

/// What should be known of certificates that were read, a sentence each.
pub fn warnings(loaded: &[Option<Loaded>; 2], now: Timestamp) -> Vec<String> {
    ["http", "admin"]
        .into_iter()
        .zip(loaded)
        .filter_map(|(section, loaded)| warning(section, loaded.as_ref()?, now))
        .collect()
}

/// TLS of both listeners, for as long as the process lives.
pub struct Tls {
    pub http: Option<Arc<ServerTls>>,
    pub admin: Option<Arc<ServerTls>>,
    /// When certificates were named last.
    reminded: Mutex<Instant>,
}

impl Tls {
    /// With what was read at the start.
    ///
    /// # Errors
    /// The system has no randomness.
    pub fn new([http, admin]: [Option<Loaded>; 2], metrics: &Arc<Metrics>) -> Result<Self, Error> {
        let listener = |section, loaded: Option<Loaded>| {
            loaded.map(|loaded| ServerTls::new(section, loaded, metrics.clone()).map(Arc::new)).transpose()
        };
        Ok(Self {
            http: listener("http", http)?,
            admin: listener("admin", admin)?,
            reminded: Mutex::new(Instant::now()),
        })
    }

    fn listeners(&self) -> impl Iterator<Item = &ServerTls> {
        [&self.http, &self.admin].into_iter().flatten().map(|listener| &**listener)
    }

    /// Reads the files anew, and has new connections go by them where something changed. Reads files: call it on a blocking thread.
    /// Returns the keys whose files have other content.
    ///
    /// # Errors
    /// What is wrong with a file, a line each; then all stays as it is.
    pub fn renew(&self, config: &Config) -> Result<Vec<String>, String> {
        let loaded = files::load(config).map_err(|errors: ConfigErrors| errors.to_string())?;
        let (mut changed, mut exchanges) = (Vec::new(), Vec::new());
        for (listener, loaded) in [&self.http, &self.admin].into_iter().zip(loaded) {
            let (Some(listener), Some(loaded)) = (listener, loaded) else { continue };
            let current = listener.current.load();
            let before = &current.loaded.contents;
            let mut keys: Vec<_> = loaded.contents.iter().filter(|content| !before.contains(content)).collect();
            keys.extend(before.iter().filter(|(key, _)| !loaded.contents.iter().any(|(other, _)| other == key)));
            if keys.is_empty() {
                continue;
            }
            changed.extend(keys.into_iter().map(|(key, _)| key.clone()));
            exchanges
                .push((listener, Current::new(loaded).map_err(|error| format!("{}.tls: {error}", listener.section))?));
        }
        for (listener, current) in exchanges {
            listener.current.store(Arc::new(current));
            listener.publish();
        }
        Ok(changed)
    }

    /// What should be known of the certificates in force, a sentence each.
    pub fn warnings(&self, now: Timestamp) -> Vec<String> {
        self.listeners().filter_map(|listener| listener.warning(now)).collect()
    }

    /// The same, once a day; between that nothing.
    pub fn reminders(&self) -> Vec<String> {
        let mut reminded = self.reminded.lock();
        if reminded.elapsed() < REMINDER {
            return Vec::new();
        }
        *reminded = Instant::now();
        self.warnings(Timestamp::now())
    }

    /// For the page of operators: by listener, `null` without TLS.
    pub fn status(&self) -> Value {
        let now = Timestamp::now();
        let of = |listener: &Option<Arc<ServerTls>>| listener.as_ref().map(|listener| listener.status(now));
        json!({ "http": of(&self.http), "admin": of(&self.admin) })
    }
}
