//! The configuration: what every key means and its default. `load` reads and checks it, `reload` compares two.
//!
//! A [`Config`] that exists has been validated: actors read it without checking again. Live keys are read through
//! [`LiveConfig`] at each use; all others are read once, when their actor is built.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use serde::{Deserialize, Serialize};

mod error;
mod keys;
mod load;
mod read;
mod reload;
mod roles;
mod secrets;
mod size;
mod sources;
mod validate;

use crate::position::TopicName;

pub use error::{ConfigError, ConfigErrors};
pub use keys::LONGEST_RESTART;
pub(crate) use keys::{ARCHIVE_OPTIONS, KAFKA_PROPERTIES, nearest};
pub use reload::apply;
pub use roles::{Role, Roles};
pub(crate) use secrets::shown;
pub use size::ByteSize;
pub use sources::{Setting, Sources};
pub(crate) use sources::{is_archive_option, is_kafka_property};
#[cfg(test)]
pub(crate) use validate::tests::errors_by;
pub use validate::{Check, Rules, is_address};

/// The configuration in force. Reload swaps it; only live keys ever differ from the start's.
pub type LiveConfig = Arc<ArcSwap<Config>>;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub roles: Vec<String>,
    pub data: DataConfig,
    pub http: HttpConfig,
    pub admin: AdminConfig,
    pub event: EventConfig,
    pub queue: QueueConfig,
    pub batch: BatchConfig,
    pub spool: SpoolConfig,
    pub upload: UploadConfig,
    pub archive: ArchiveConfig,
    pub store: StoreConfig,
    pub aggregator: AggregatorConfig,
    pub aggregate: Vec<AggregateConfig>,
    pub disk: DiskConfig,
    pub supervision: SupervisionConfig,
    pub shutdown: ShutdownConfig,
    pub logging: LoggingConfig,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            roles: vec!["all".to_owned()],
            data: DataConfig::default(),
            http: HttpConfig::default(),
            admin: AdminConfig::default(),
            event: EventConfig::default(),
            queue: QueueConfig::default(),
            batch: BatchConfig::default(),
            spool: SpoolConfig::default(),
            upload: UploadConfig::default(),
            archive: ArchiveConfig::default(),
            store: StoreConfig::default(),
            aggregator: AggregatorConfig::default(),
            aggregate: default_aggregates(&EventConfig::default()),
            disk: DiskConfig::default(),
            supervision: SupervisionConfig::default(),
            shutdown: ShutdownConfig::default(),
            logging: LoggingConfig::default(),
        }
    }
}

/// Without `[[aggregate]]`: events per minute by client and type, whatever these fields are called.
fn default_aggregates(event: &EventConfig) -> Vec<AggregateConfig> {
    vec![AggregateConfig {
        name: "events_by_type".to_owned(),
        window: Duration::from_secs(60),
        group_by: vec![event.client_field.clone(), event.type_field.clone()],
    }]
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DataConfig {
    /// The spool, the embedded log and store, and the local archive live below it.
    pub dir: PathBuf,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HttpConfig {
    pub listen: String,
    pub max_body: ByteSize,
    pub max_event: ByteSize,
    pub max_events: usize,
    #[serde(with = "duration")]
    pub request_timeout: Duration,
    pub max_in_flight: ByteSize,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdminConfig {
    pub listen: String,
}

/// The names of the fields that the daemon reads in an event.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EventConfig {
    pub type_field: String,
    pub id_field: String,
    pub time_field: String,
    pub client_field: String,
    /// Its value is the log record's key. Empty: `client_field`.
    pub key_field: String,
    pub on_unreadable: OnUnreadable,
}

/// What the ingestor does with an event that not every reader of JSON can read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnUnreadable {
    /// It is taken and counted as any other, and stands as `"raw"` in the archive.
    Accept,
    /// It is refused as `invalid_json`.
    Reject,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum QueueKind {
    Embedded,
    Kafka,
}

/// What happens to events while Kafka is away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnUnavailable {
    /// They are refused with 503.
    Reject,
    /// They are made durable in `data.dir`, and forwarded when Kafka is back.
    Buffer,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct QueueConfig {
    pub kind: QueueKind,
    pub on_unavailable: OnUnavailable,
    pub topic: String,
    pub generation: u32,
    pub embedded: EmbeddedQueueConfig,
    pub kafka: KafkaConfig,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EmbeddedQueueConfig {
    /// At this size of the log's records, events are refused with 503.
    pub quota: ByteSize,
    /// How long records behind all cursors stay.
    #[serde(with = "duration")]
    pub retention: Duration,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KafkaConfig {
    /// `host:port`, several separated by commas.
    pub brokers: String,
    /// The groups are `<group>-archive` and `<group>-aggregate`.
    pub group: String,
    pub create_topic: bool,
    pub partitions: i32,
    pub replication: i32,
    /// Any librdkafka setting, but for those that would break a promise.
    pub properties: BTreeMap<String, String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BatchConfig {
    pub max_records: usize,
    pub max_bytes: ByteSize,
    #[serde(with = "duration")]
    pub max_wait: Duration,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SpoolConfig {
    /// Compressed.
    pub max_bytes: ByteSize,
    pub max_records: u64,
    #[serde(with = "duration")]
    pub max_age: Duration,
    pub quota: ByteSize,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct UploadConfig {
    pub max_parallel: usize,
    pub max_in_flight: ByteSize,
    /// One attempt; a store that does not answer by then is tried again.
    #[serde(with = "duration")]
    pub timeout: Duration,
    /// The first pause after a failed attempt; doubled each time, with jitter.
    #[serde(with = "duration")]
    pub backoff: Duration,
    /// The longest, without its jitter of ±20 %.
    #[serde(with = "duration")]
    pub max_backoff: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnGap {
    Halt,
    Skip,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ArchiveConfig {
    /// `file:` (below `data.dir`), `file:///path`, `none`, `s3://bucket/prefix`, `gs://…`, `az://…`.
    pub url: String,
    /// As `object_store` names them: `endpoint`, `access_key_id`, `region` …
    pub options: BTreeMap<String, String>,
    pub on_gap: OnGap,
}

impl ArchiveConfig {
    pub fn is_on(&self) -> bool {
        self.url != "none"
    }

    /// A folder of this machine: not shared with other workers.
    pub fn is_local(&self) -> bool {
        self.url.starts_with("file:")
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StoreKind {
    Embedded,
    Mongodb,
    None,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StoreConfig {
    pub kind: StoreKind,
    /// For MongoDB: `mongodb://…`.
    pub url: String,
    /// Empty: that of the URL, or `ingestd`.
    pub database: String,
    /// Keep each parsed event as a document, too.
    pub events: bool,
    #[serde(with = "duration")]
    pub events_ttl: Duration,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AggregatorConfig {
    #[serde(with = "duration")]
    pub flush_interval: Duration,
    /// Flush when so many buckets were touched.
    pub flush_buckets: usize,
    /// One attempt to flush; a store that does not answer by then is tried again.
    #[serde(with = "duration")]
    pub timeout: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AggregateConfig {
    pub name: String,
    #[serde(with = "duration")]
    pub window: Duration,
    pub group_by: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DiskConfig {
    pub max_used_percent: f64,
    pub resume_percent: f64,
    #[serde(with = "duration")]
    pub check_interval: Duration,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SupervisionConfig {
    pub max_restarts: u32,
    #[serde(with = "duration")]
    pub window: Duration,
    #[serde(with = "duration")]
    pub backoff: Duration,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ShutdownConfig {
    #[serde(with = "duration")]
    pub timeout: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoggingConfig {
    /// A `tracing` filter: `info`, or `info,ingestd::archive=debug`.
    pub level: String,
    pub format: LogFormat,
}

macro_rules! defaults {
    ($($section:ident { $($key:ident: $value:expr),* $(,)? })*) => {
        $(impl Default for $section {
            fn default() -> Self {
                Self { $($key: $value),* }
            }
        })*
    };
}

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
const GIB: u64 = 1024 * MIB;

defaults! {
    DataConfig { dir: PathBuf::from("data") }
    HttpConfig {
        listen: "127.0.0.1:8080".to_owned(),
        max_body: ByteSize(16 * MIB),
        max_event: ByteSize(960 * KIB),
        max_events: 10_000,
        request_timeout: Duration::from_secs(10),
        max_in_flight: ByteSize(64 * MIB),
    }
    AdminConfig { listen: "127.0.0.1:9600".to_owned() }
    EventConfig {
        type_field: "type".to_owned(),
        id_field: "event_id".to_owned(),
        time_field: "timestamp".to_owned(),
        client_field: "client_id".to_owned(),
        key_field: String::new(),
        on_unreadable: OnUnreadable::Reject,
    }
    QueueConfig {
        kind: QueueKind::Embedded,
        on_unavailable: OnUnavailable::Reject,
        topic: "events".to_owned(),
        generation: 0,
        embedded: EmbeddedQueueConfig::default(),
        kafka: KafkaConfig::default(),
    }
    EmbeddedQueueConfig { quota: ByteSize(8 * GIB), retention: Duration::ZERO }
    KafkaConfig {
        brokers: String::new(),
        group: "ingestd".to_owned(),
        create_topic: true,
        partitions: 4,
        replication: 1,
        properties: BTreeMap::new(),
    }
    BatchConfig { max_records: 1000, max_bytes: ByteSize(4 * MIB), max_wait: Duration::from_millis(200) }
    SpoolConfig {
        max_bytes: ByteSize(16 * MIB),
        max_records: 1_000_000,
        max_age: Duration::from_secs(60),
        quota: ByteSize(8 * GIB),
    }
    UploadConfig {
        max_parallel: 4,
        max_in_flight: ByteSize(32 * MIB),
        timeout: Duration::from_secs(60),
        backoff: Duration::from_millis(200),
        max_backoff: Duration::from_secs(15),
    }
    ArchiveConfig { url: "file:".to_owned(), options: BTreeMap::new(), on_gap: OnGap::Halt }
    StoreConfig {
        kind: StoreKind::Embedded,
        url: String::new(),
        database: String::new(),
        events: false,
        events_ttl: Duration::from_secs(30 * 24 * 3600),
    }
    AggregatorConfig {
        flush_interval: Duration::from_secs(1),
        flush_buckets: 10_000,
        timeout: Duration::from_secs(30),
    }
    DiskConfig { max_used_percent: 70.0, resume_percent: 65.0, check_interval: Duration::from_secs(1) }
    SupervisionConfig { max_restarts: 5, window: Duration::from_secs(60), backoff: Duration::from_millis(200) }
    ShutdownConfig { timeout: Duration::from_secs(30) }
    LoggingConfig { level: "info".to_owned(), format: LogFormat::Text }
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
        humantime::parse_duration(&text).map_err(|error| {
            D::Error::custom(format!("{text:?} is not a duration such as \"200ms\", \"1m\" or \"30d\": {error}"))
        })
    }
}
