//! The configuration. `sections` declares every key, `load` reads and checks it, `reload` compares two.
//!
//! A [`Config`] that exists has been validated: actors read it without checking again. Live keys are read through
//! [`LiveConfig`] at each use; all others are read once, when their actor is built.

use std::sync::Arc;

use arc_swap::ArcSwap;

mod admin_key;
mod aggregate;
mod cors;
mod error;
mod event_type;
mod http_key;
mod http_source;
mod keys;
mod load;
mod measure;
mod rate;
mod read;
mod reload;
mod roles;
mod secrets;
// Their comments are those of `config.toml`, which are no Markdown.
#[allow(rustdoc::invalid_html_tags, rustdoc::broken_intra_doc_links, rustdoc::bare_urls)]
mod sections;
mod signature;
mod size;
mod sources;
mod tables;
mod time_zone;
mod tls;
mod trusted_proxies;
mod validate;
mod value;

use crate::position::TopicName;
use aggregate::default_aggregates;

pub use admin_key::{Access, AdminKey, AdminKeys};
pub use aggregate::{AggregateConfig, Bounds, Condition, Field, Filter, Retention, Scalar};
pub use cors::{ANY_ORIGIN, OPAQUE_ORIGIN};
pub use error::{ConfigError, ConfigErrors};
pub use event_type::{EventTypes, Known, UnknownType};
pub use http_key::{Credential, Expiry, HttpKey, HttpKeys, KEY_PREFIX, KeyHash, check_name};
pub use http_source::{HttpSource, Lookup, Pointer};
pub use keys::LONGEST_RESTART;
pub(crate) use keys::{ARCHIVE_OPTIONS, KAFKA_PROPERTIES, nearest};
pub use measure::{Function, Measure};
pub use rate::{Rate, RateLimit};
pub use reload::{Reloaded, apply};
pub use roles::{Role, Roles};
pub(crate) use secrets::shown;
pub use sections::{
    AdminConfig, ArchiveConfig, BatchConfig, Config, CorsConfig, DiskConfig, EventConfig, HttpConfig, LogFormat,
    LoggingConfig, OnGap, OnInvalid, OnInvalidTime, OnUnavailable, OnUnreadable, QueueConfig, QueueKind, StoreConfig,
    StoreKind,
};
#[cfg(test)]
pub use sections::{AdminTlsConfig, HttpTlsConfig};
pub use signature::{Scheme, Secrets, Signature};
pub use size::ByteSize;
pub use sources::{Setting, Sources};
pub(crate) use sources::{is_archive_option, is_kafka_property};
pub use time_zone::TimeZone;
pub use tls::TlsFiles;
pub use trusted_proxies::TrustedProxies;
#[cfg(test)]
pub(crate) use validate::tests::errors_by;
pub use validate::{Check, Rules, is_address};

/// The configuration in force. Reload swaps it; only live keys ever differ from the start's.
pub type LiveConfig = Arc<ArcSwap<Config>>;

impl ArchiveConfig {
    pub fn is_on(&self) -> bool {
        self.url != "none"
    }

    /// A folder of this machine: not shared with other workers.
    pub fn is_local(&self) -> bool {
        self.url.starts_with("file:")
    }
}

impl EventConfig {
    /// The field whose value is the record's key.
    pub fn key_field(&self) -> &str {
        if self.key_field.is_empty() { &self.client_field } else { &self.key_field }
    }
}

impl QueueConfig {
    /// Part of archive paths and bucket ids.
    pub fn name(&self) -> TopicName<'_> {
        TopicName { topic: &self.topic, generation: self.generation }
    }
}

/// Durations in human form: `200ms`, `1m`, `30d`.
mod duration {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&humantime::format_duration(*duration))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        let text = String::deserialize(deserializer)?;
        humantime::parse_duration(&text).map_err(D::Error::custom)
    }
}
