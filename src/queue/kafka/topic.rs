//! The topic, looked at before the start: made when it is missing, refused when it could not keep our promises.

use std::time::{Duration, Instant};

use rdkafka::{
    admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication},
    config::FromClientConfigAndContext,
    consumer::{BaseConsumer, Consumer, ConsumerContext},
    error::KafkaError,
    types::RDKafkaErrorCode as Code,
};
use thiserror::Error;

use crate::{
    config::Config,
    position::{Timestamp, TopicIdentity},
    queue::kafka::{
        clock::{self, Bounds},
        identity::topic_identity,
        logging::{self, Logging},
        settings,
    },
};

/// One question to the brokers.
const DEADLINE: Duration = Duration::from_secs(5);
/// Clocks that differ by so many milliseconds are not kept by NTP.
const NOTABLE: i64 = 10_000;
/// What librdkafka has to say is there by then: a question has failed.
const HEARING: Duration = Duration::from_millis(50);
/// How long a new topic may take until its partitions have leaders.
const CREATION: Duration = Duration::from_secs(15);

/// A topic that can hold what we accept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicReady {
    pub partitions: usize,
    pub replication: usize,
    pub identity: TopicIdentity,
    /// We made it just now.
    pub created: bool,
}

/// Why there is no such topic (yet).
#[derive(Debug, Error)]
pub enum TopicError {
    /// Passing: ask again later.
    #[error("Kafka at {brokers} cannot be reached: {reason}")]
    Unreachable { brokers: String, reason: String },
    /// Final: the operator has to change something.
    #[error("{0}")]
    Refused(String),
}

/// Makes sure that the topic, and with `dead_letters` also that of the dead letters, is there and can hold what we
/// accept. Blocks for up to half a minute: call it on a thread.
///
/// # Errors
/// See [`TopicError`].
pub fn prepare(config: &Config, dead_letters: bool) -> Result<TopicReady, TopicError> {
    let brokers = Brokers::connect(config)?;
    let ready = brokers.prepare(&config.queue.topic, settings::record_limit(config), Purpose::Events)?;
    if dead_letters {
        brokers.prepare(
            &settings::dead_letter_topic(config),
            settings::dead_letter_limit(config),
            Purpose::DeadLetters,
        )?;
    }
    Ok(ready)
}

/// Says in one sentence whether Kafka can be reached and what its topic is like; creates nothing. Blocks.
///
/// # Errors
/// The sentence, when the daemon could not work like this.
pub fn check(config: &Config) -> Result<String, String> {
    let address = &config.queue.kafka.brokers;
    let topic = &config.queue.topic;
    let look = || -> Result<String, TopicError> {
        let brokers = Brokers::connect(config)?;
        match brokers.look(topic)? {
            Some((partitions, replication)) => {
                brokers.inspect(topic, settings::record_limit(config), Purpose::Events, replication)?;
                let clocks = if config.roles().ingest() { brokers.compare_clocks(topic)? } else { String::new() };
                Ok(format!(
                    "Kafka at {address} is reachable; topic {topic} has {partitions} partition(s), replication \
                     {replication}{clocks}"
                ))
            }
            None if config.queue.kafka.create_topic => Ok(format!(
                "Kafka at {address} is reachable; topic {topic} does not exist yet and will be created with {} \
                 partition(s), replication {}",
                config.queue.kafka.partitions, config.queue.kafka.replication
            )),
            None => Err(brokers.missing(topic)),
        }
    };
    look().map_err(|error| error.to_string())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Events,
    /// May be compacted: readers keep the first letter of each key anyway.
    DeadLetters,
}

struct Brokers<'a> {
    config: &'a Config,
    /// A consumer without a group: unlike a producer's, its questions never make the broker create a topic.
    metadata: BaseConsumer<Logging>,
    admin: AdminClient<Logging>,
    /// Drives the admin client's futures, which end by their own deadlines.
    runtime: tokio::runtime::Runtime,
}

impl ConsumerContext for Logging {}

impl<'a> Brokers<'a> {
    fn connect(config: &'a Config) -> Result<Self, TopicError> {
        settings::validate(config).map_err(TopicError::Refused)?;
        let refused = |error: KafkaError| TopicError::Refused(format!("queue.kafka: no client can be made: {error}"));
        let settings = settings::client(config);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .map_err(|error| TopicError::Refused(format!("cannot make a runtime to ask Kafka with: {error}")))?;
        Ok(Self {
            config,
            metadata: BaseConsumer::from_config_and_context(&settings, Logging::default()).map_err(refused)?,
            admin: AdminClient::from_config_and_context(&settings, Logging::default()).map_err(refused)?,
            runtime,
        })
    }

    fn prepare(&self, topic: &str, limit: u64, purpose: Purpose) -> Result<TopicReady, TopicError> {
        let found = self.look(topic)?;
        let created = found.is_none();
        let (partitions, replication) = match found {
            Some(found) => found,
            None if self.config.queue.kafka.create_topic => self.create(topic, limit)?,
            None => return Err(self.missing(topic)),
        };
        self.inspect(topic, limit, purpose, replication)?;
        let identity = topic_identity(self.metadata.client(), topic, DEADLINE)
            .map_err(|code| self.failed("ask for the id of", topic, &KafkaError::MetadataFetch(code)))?;
        Ok(TopicReady { partitions, replication, identity, created })
    }

    /// The numbers of partitions and replicas; `None` when there is no such topic.
    fn look(&self, topic: &str) -> Result<Option<(usize, usize)>, TopicError> {
        let metadata = self
            .metadata
            .fetch_metadata(Some(topic), DEADLINE)
            .map_err(|error| self.failed("look at", topic, &error))?;
        let Some(found) = metadata.topics().iter().find(|found| found.name() == topic) else {
            return Ok(None);
        };
        match found.error().map(Code::from) {
            None => {}
            Some(Code::UnknownTopicOrPartition | Code::UnknownTopic) => return Ok(None),
            // Just created: there are partitions, and no leaders yet.
            Some(Code::LeaderNotAvailable) if !found.partitions().is_empty() => {}
            Some(code) => return Err(self.failed("look at", topic, &KafkaError::MetadataFetch(code))),
        }
        let replication = found.partitions().iter().map(|partition| partition.replicas().len()).min().unwrap_or(0);
        Ok((!found.partitions().is_empty()).then_some((found.partitions().len(), replication)))
    }

    fn create(&self, topic: &str, limit: u64) -> Result<(usize, usize), TopicError> {
        let kafka = &self.config.queue.kafka;
        let limit = limit.to_string();
        let mut new = NewTopic::new(topic, kafka.partitions, TopicReplication::Fixed(kafka.replication))
            .set("max.message.bytes", &limit)
            .set("cleanup.policy", "delete");
        if kafka.replication >= 3 {
            // With one replica less than two, acks=all would promise no more than acks=1.
            new = new.set("min.insync.replicas", "2");
        }
        let options = AdminOptions::new().request_timeout(Some(CREATION)).operation_timeout(Some(DEADLINE));
        let outcome = self.runtime.block_on(self.admin.create_topics([&new], &options));
        let outcome = outcome.map_err(|error| self.failed("create", topic, &error))?;
        match outcome.into_iter().next() {
            Some(Ok(_)) => {
                tracing::info!(topic, partitions = kafka.partitions, replication = kafka.replication, "topic created")
            }
            // Another worker was faster.
            Some(Err((_, Code::TopicAlreadyExists))) => {}
            Some(Err((_, Code::InvalidReplicationFactor))) => {
                return Err(TopicError::Refused(format!(
                    "topic {topic} cannot be created with queue.kafka.replication = {}: there are fewer brokers; \
                     lower it, or create the topic yourself",
                    kafka.replication
                )));
            }
            Some(Err((_, code))) => return Err(self.failed("create", topic, &KafkaError::MetadataFetch(code))),
            None => {}
        }
        let deadline = Instant::now() + CREATION;
        loop {
            if let Some(found) = self.look(topic)? {
                return Ok(found);
            }
            if Instant::now() >= deadline {
                let reason = format!("topic {topic} was created and is still not known to the brokers");
                return Err(TopicError::Unreachable { brokers: kafka.brokers.clone(), reason });
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Says what our clock is beside the brokers', as far as the topic minds.
    fn compare_clocks(&self, topic: &str) -> Result<String, TopicError> {
        let options = AdminOptions::new().request_timeout(Some(DEADLINE));
        let resource = [ResourceSpecifier::Topic(topic)];
        let described = self.runtime.block_on(self.admin.describe_configs(&resource, &options));
        let Some(Ok(found)) = described.ok().and_then(|described| described.into_iter().next()) else {
            return Ok(String::new());
        };
        let bounds = Bounds::of(|name| found.get(name).and_then(|entry| entry.value.as_deref()));
        let taken = bounds.side().and_then(|side| clock::ask(&settings::client(self.config), topic, side));
        let Some(taken) = taken else { return Ok(String::new()) };
        let now = Timestamp::now();
        let difference = taken.difference(bounds, now).filter(|millis| millis.abs() >= NOTABLE);
        let difference = difference.map(|millis| {
            let side = if millis > 0 { "ahead of" } else { "behind" };
            format!("; this machine's clock is {} {side} the brokers'", clock::seconds(millis))
        });
        let difference = difference.unwrap_or_default();
        match taken.complaint(topic, now) {
            Some((_, complaint)) => Err(TopicError::Refused(format!("{complaint}{difference}"))),
            None => Ok(difference),
        }
    }

    /// Refuses a topic whose settings break a promise.
    fn inspect(&self, topic: &str, limit: u64, purpose: Purpose, replication: usize) -> Result<(), TopicError> {
        let options = AdminOptions::new().request_timeout(Some(DEADLINE));
        let resource = [ResourceSpecifier::Topic(topic)];
        let described = self.runtime.block_on(self.admin.describe_configs(&resource, &options));
        let described = described.map_err(|error| self.failed("read the settings of", topic, &error))?;
        let found = match described.into_iter().next() {
            Some(Ok(found)) => found,
            Some(Err(Code::TopicAuthorizationFailed | Code::ClusterAuthorizationFailed)) => {
                tracing::warn!(
                    topic,
                    "the topic's settings cannot be checked: the right DescribeConfigs is missing; see to it that \
                     max.message.bytes is at least {limit} and that it is not compacted"
                );
                return Ok(());
            }
            Some(Err(code)) => {
                return Err(self.failed("read the settings of", topic, &KafkaError::MetadataFetch(code)));
            }
            None => return Ok(()),
        };
        let value = |name: &str| found.get(name).and_then(|entry| entry.value.as_deref());
        if purpose == Purpose::Events && value("cleanup.policy").is_some_and(|policy| policy.contains("compact")) {
            return Err(TopicError::Refused(format!(
                "topic {topic} is compacted (cleanup.policy): Kafka removes records from it that the archive has not \
                 seen; use a topic with cleanup.policy = delete"
            )));
        }
        if let Some(most) = value("max.message.bytes").and_then(|value| value.parse::<u64>().ok())
            && most < limit
        {
            return Err(TopicError::Refused(format!(
                "topic {topic} takes records of at most max.message.bytes = {most}, and http.max_event = {} needs \
                 {limit}: raise the topic's setting (kafka-configs --alter --topic {topic} --add-config \
                 max.message.bytes={limit}), or lower http.max_event",
                self.config.http.max_event
            )));
        }
        if replication > 1 && value("min.insync.replicas") == Some("1") {
            tracing::warn!(
                topic,
                replication,
                "min.insync.replicas is 1: an event that one broker alone holds counts as durable; set it to 2"
            );
        }
        Ok(())
    }

    /// Lets the client that asked say what became of its connections: it does so only when it is polled.
    fn hear(&self) {
        let deadline = Instant::now() + HEARING;
        while Instant::now() < deadline {
            // It has no records to give, and errors are for its context.
            let _ = self.metadata.poll(HEARING / 5);
        }
    }

    fn missing(&self, topic: &str) -> TopicError {
        TopicError::Refused(format!(
            "topic {topic} does not exist at {}, and queue.kafka.create_topic is false: create it (kafka-topics \
             --create --topic {topic} --config max.message.bytes={}), or set queue.kafka.create_topic = true",
            self.config.queue.kafka.brokers,
            settings::dead_letter_limit(self.config),
        ))
    }

    fn failed(&self, what: &str, topic: &str, error: &KafkaError) -> TopicError {
        self.hear();
        let reason = match self.metadata.context().last_error().or_else(|| self.admin.inner().context().last_error()) {
            Some(said) => {
                let said = logging::explained(&said);
                format!("cannot {what} topic {topic}: {error}; librdkafka says: {said}")
            }
            None => format!("cannot {what} topic {topic}: {error}"),
        };
        if is_passing(error) {
            TopicError::Unreachable { brokers: self.config.queue.kafka.brokers.clone(), reason }
        } else {
            TopicError::Refused(format!("Kafka at {}: {reason}", self.config.queue.kafka.brokers))
        }
    }
}

/// Whether asking again later may help.
fn is_passing(error: &KafkaError) -> bool {
    let code = match error {
        KafkaError::AdminOp(code) => Some(*code),
        error => error.rdkafka_error_code(),
    };
    !matches!(
        code,
        Some(
            Code::TopicAuthorizationFailed
                | Code::ClusterAuthorizationFailed
                | Code::InvalidTopic
                | Code::InvalidPartitions
                | Code::InvalidReplicationFactor
                | Code::InvalidConfig
                | Code::InvalidRequest
                | Code::InvalidArgument
                | Code::PolicyViolation
                | Code::UnsupportedVersion
                | Code::UnsupportedFeature
        )
    )
}
