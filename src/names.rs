//! What actors, sinks and dependencies are called, in readiness, metrics, logs and messages alike.

use serde::Serialize;

/// The seven actors; consumers once for each sink.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ActorName {
    Ingestor,
    Producer,
    ConsumerArchive,
    ConsumerAggregate,
    Spooler,
    Uploader,
    Aggregator,
    Watchdog,
}

impl ActorName {
    /// As metrics, logs and readiness write it: `consumer-archive`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ingestor => "ingestor",
            Self::Producer => "producer",
            Self::ConsumerArchive => "consumer-archive",
            Self::ConsumerAggregate => "consumer-aggregate",
            Self::Spooler => "spooler",
            Self::Uploader => "uploader",
            Self::Aggregator => "aggregator",
            Self::Watchdog => "watchdog",
        }
    }
}

/// Which group of the queue: each sink has its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SinkName {
    Archive,
    Aggregate,
}

impl SinkName {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Archive => "archive",
            Self::Aggregate => "aggregate",
        }
    }

    /// The actor that takes the batches.
    pub fn sink(self) -> ActorName {
        match self {
            Self::Archive => ActorName::Spooler,
            Self::Aggregate => ActorName::Aggregator,
        }
    }

    pub fn consumer(self) -> ActorName {
        match self {
            Self::Archive => ActorName::ConsumerArchive,
            Self::Aggregate => ActorName::ConsumerAggregate,
        }
    }
}

/// What the process depends on outside of itself, as readiness calls it.
pub mod dependency {
    pub const KAFKA: &str = "kafka";
    /// What the brokers make of the topic.
    pub const KAFKA_TOPIC: &str = "kafka_topic";
    /// Writing to it.
    pub const EMBEDDED_LOG: &str = "embedded_log";
    /// Reading from it: what cannot be read may be written all the same.
    pub const EMBEDDED_LOG_READING: &str = "embedded_log_reading";
    /// What is on disk while Kafka is away.
    pub const BUFFER: &str = "buffer";
    /// The way from there to Kafka.
    pub const FORWARDER: &str = "forwarder";
    pub const OBJECT_STORE: &str = "object_store";
    pub const MONGODB: &str = "mongodb";
    pub const EMBEDDED_STORE: &str = "embedded_store";
    pub const DISK: &str = "disk";
}

/// What a process ends with, as the documentation names it.
pub mod exit {
    /// Something went wrong that the log names.
    pub const FAILURE: u8 = 1;
    /// Another process has this one's place.
    pub const FENCED: u8 = 3;
    /// The stop's deadline was over before all was done.
    pub const DEADLINE: u8 = 4;
    /// `EX_CONFIG` of sysexits.h: the configuration is at fault, and a restart mends nothing.
    pub const CONFIGURATION: u8 = 78;
}
