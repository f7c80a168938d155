//! What actors, sinks and dependencies are called, in readiness, metrics, logs and messages alike.

/// An enum each of whose variants has a word: in the configuration, in metrics, logs and readiness alike.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$each:meta])* $variant:ident = $word:literal),* $(,)? }) => {
        $(#[$doc])*
        #[derive(
            Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
        )]
        pub enum $name {
            $($(#[$each])* #[serde(rename = $word)] $variant),*
        }

        #[allow(dead_code, reason = "not each of these enums is listed and printed")]
        impl $name {
            pub const ALL: &[Self] = &[$(Self::$variant),*];
            pub const WORDS: &[&str] = &[$($word),*];

            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word),*
                }
            }
        }
    };
}
pub(crate) use words;

words! {
    /// The seven actors; consumers once for each sink.
    ActorName {
        Ingestor = "ingestor",
        Producer = "producer",
        ConsumerArchive = "consumer-archive",
        ConsumerAggregate = "consumer-aggregate",
        Spooler = "spooler",
        Uploader = "uploader",
        Aggregator = "aggregator",
        Watchdog = "watchdog",
    }
}

words! {
    /// Which group of the queue: each sink has its own.
    SinkName { Archive = "archive", Aggregate = "aggregate" }
}

impl SinkName {
    /// The actors that carry records there.
    pub fn actors(self) -> &'static [ActorName] {
        match self {
            Self::Archive => &[ActorName::ConsumerArchive, ActorName::Spooler, ActorName::Uploader],
            Self::Aggregate => &[ActorName::ConsumerAggregate, ActorName::Aggregator],
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
