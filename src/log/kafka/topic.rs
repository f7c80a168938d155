//! The topic: looked at before the start, made when it is missing, refused when it could not keep our promises; and
//! watched from then on, whether it is still the same one.

mod watch;

use std::time::{Duration, Instant};

use rdkafka::{
    admin::{AdminOptions, NewTopic, TopicReplication},
    consumer::{BaseConsumer, Consumer},
    error::KafkaError,
    types::RDKafkaErrorCode as Code,
};
use thiserror::Error;

use crate::{
    config::Config,
    log::kafka::{
        brokers,
        client::{self, Admin, Context, topic_identity},
        probe::{self, Bounds},
        settings,
    },
    position::{Timestamp, TopicIdentity},
};

pub use watch::TopicWatches;
pub(super) use watch::{Sighting, TopicWatch};

/// One question to the brokers.
const DEADLINE: Duration = Duration::from_secs(5);
/// Clocks that differ by this number of milliseconds are not kept by NTP.
const NOTABLE: i64 = 10_000;
/// What librdkafka has to say is there by then: a question has failed.
const HEARING: Duration = Duration::from_millis(50);
/// How long a new topic may take until its partitions have leaders.
const CREATION: Duration = Duration::from_secs(15);
/// Dead letters wait for somebody who looks at them, however long that takes.
const KEPT: [(&str, &str); 2] = [("retention.ms", "-1"), ("retention.bytes", "-1")];

/// A topic that can hold what we accept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicReady {
    pub partitions: usize,
    pub replication: usize,
    pub identity: TopicIdentity,
    /// We made it just now.
    pub created: bool,
    /// What does not stand in the way of a start, and is not as the operator would have it: sentences.
    pub concerns: Vec<String>,
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
    let mut ready = brokers.prepare(&config.queue.topic, settings::record_limit(config), Purpose::Events)?;
    if dead_letters {
        let letters = brokers.prepare(
            &settings::dead_letter_topic(config),
            settings::dead_letter_limit(config),
            Purpose::DeadLetters,
        )?;
        ready.concerns.extend(letters.concerns);
    }
    Ok(ready)
}

/// Says in one sentence whether Kafka can be reached and what its topic is like, and in others what is not as it should
/// be; creates nothing. `dead_letters` as for [`prepare`]. Blocks.
///
/// # Errors
/// The sentence, when the daemon could not work like this.
pub fn check(config: &Config, dead_letters: bool) -> Result<String, String> {
    let address = &config.queue.kafka.brokers;
    let topic = &config.queue.topic;
    let look = || -> Result<String, TopicError> {
        let brokers = Brokers::connect(config)?;
        match brokers.look(topic)? {
            Some(found) => {
                let mut concerns = brokers.inspect(topic, settings::record_limit(config), Purpose::Events, found)?;
                let letters = settings::dead_letter_topic(config);
                if dead_letters && let Some(found) = brokers.look(&letters)? {
                    let limit = settings::dead_letter_limit(config);
                    concerns.extend(brokers.inspect(&letters, limit, Purpose::DeadLetters, found)?);
                }
                let mut said = format!(
                    "Kafka at {address} is reachable; topic {topic} has {} partition(s), replication {}",
                    found.partitions, found.replication
                );
                for concern in concerns {
                    said.push_str("; ");
                    said.push_str(&concern);
                }
                if config.roles().ingest() {
                    said.push_str(&brokers.compare_clocks(topic)?);
                }
                Ok(said)
            }
            None if config.queue.kafka.create_topic => Ok(format!(
                "Kafka at {address} is reachable; topic {topic} does not exist yet and will be created with {} \
                 partition(s), replication {}",
                config.queue.kafka.partitions, config.queue.kafka.replication
            )),
            None => Err(brokers.missing(topic, &brokers.room())),
        }
    };
    look().map_err(|error| error.to_string())
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    Events,
    DeadLetters,
    /// What was replayed from the archive.
    Replays,
}

/// A topic as the brokers' metadata shows it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Found {
    partitions: usize,
    /// Of the partition that has the fewest.
    replication: usize,
    /// The same of those that are in sync.
    in_sync: usize,
}

pub(super) struct Brokers<'a> {
    config: &'a Config,
    pub metadata: BaseConsumer<Context>,
    pub admin: Admin,
}

impl<'a> Brokers<'a> {
    pub fn connect(config: &'a Config) -> Result<Self, TopicError> {
        settings::validate(config).map_err(TopicError::Refused)?;
        let settings = settings::client(config);
        let open = || anyhow::Ok((client::open(&settings)?, Admin::open(&settings)?));
        let (metadata, admin) =
            open().map_err(|error| TopicError::Refused(format!("queue.kafka: no client can be made: {error:#}")))?;
        Ok(Self { config, metadata, admin })
    }

    pub fn prepare(&self, topic: &str, limit: u64, purpose: Purpose) -> Result<TopicReady, TopicError> {
        let found = self.look(topic)?;
        let created = found.is_none();
        let found = match found {
            Some(found) => found,
            None if self.config.queue.kafka.create_topic => self.create(topic, limit, purpose)?,
            None if purpose == Purpose::Replays => return Err(self.missing(topic, "cleanup.policy=compact")),
            None => return Err(self.missing(topic, &self.room())),
        };
        let concerns = self.inspect(topic, limit, purpose, found)?;
        let identity = topic_identity(self.metadata.client(), topic, DEADLINE)
            .map_err(|code| self.failed("ask for the id of", topic, &KafkaError::MetadataFetch(code)))?;
        let Found { partitions, replication, .. } = found;
        Ok(TopicReady { partitions, replication, identity, created, concerns })
    }

    /// `None` when there is no such topic.
    pub fn look(&self, topic: &str) -> Result<Option<Found>, TopicError> {
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
        let replication = found.partitions().iter().map(|partition| partition.replicas().len()).min();
        let in_sync = found.partitions().iter().map(|partition| partition.isr().len()).min();
        let partitions = found.partitions().len();
        Ok(replication.zip(in_sync).map(|(replication, in_sync)| Found { partitions, replication, in_sync }))
    }

    fn create(&self, topic: &str, limit: u64, purpose: Purpose) -> Result<Found, TopicError> {
        let kafka = &self.config.queue.kafka;
        let limit = limit.to_string();
        let (partitions, policy) = match purpose {
            Purpose::Events | Purpose::DeadLetters => (kafka.partitions, "delete"),
            Purpose::Replays => (1, "compact"),
        };
        let mut new = NewTopic::new(topic, partitions, TopicReplication::Fixed(kafka.replication))
            .set("max.message.bytes", &limit)
            .set("cleanup.policy", policy);
        if purpose == Purpose::DeadLetters {
            for (name, value) in KEPT {
                new = new.set(name, value);
            }
        }
        if kafka.replication >= 3 {
            // With one replica less than two, acks=all would promise no more than acks=1.
            new = new.set("min.insync.replicas", "2");
        }
        let options = AdminOptions::new().request_timeout(Some(CREATION)).operation_timeout(Some(DEADLINE));
        let outcome = self.admin.wait(self.admin.client.create_topics([&new], &options));
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
        let Ok(Some(Ok(found))) = self.admin.describe(topic, DEADLINE) else { return Ok(String::new()) };
        let bounds = Bounds::of(&found);
        let taken = bounds.side().and_then(|side| probe::times_taken(&settings::client(self.config), topic, side));
        let Some(taken) = taken else { return Ok(String::new()) };
        let now = Timestamp::now();
        let difference = taken.difference(bounds, now).filter(|millis| millis.abs() >= NOTABLE);
        let difference = difference.map(|millis| {
            let side = if millis > 0 { "ahead of" } else { "behind" };
            format!("; this machine's clock is {} {side} the brokers'", probe::seconds(millis))
        });
        let difference = difference.unwrap_or_default();
        match taken.complaint(topic, now) {
            Some((_, complaint)) => Err(TopicError::Refused(format!("{complaint}{difference}"))),
            None => Ok(difference),
        }
    }

    /// Refuses a topic whose settings break a promise; otherwise says what is not as it should be.
    fn inspect(&self, topic: &str, limit: u64, purpose: Purpose, found: Found) -> Result<Vec<String>, TopicError> {
        let described = self.admin.describe(topic, DEADLINE);
        let described = described.map_err(|error| self.failed("read the settings of", topic, &error))?;
        let mut concerns = self.compare(topic, purpose, found);
        let described = match described {
            Some(Ok(described)) => described,
            Some(Err(Code::TopicAuthorizationFailed | Code::ClusterAuthorizationFailed)) => {
                concerns.push(format!(
                    "the settings of topic {topic} cannot be checked: the right DescribeConfigs is missing; see to it \
                     that max.message.bytes is at least {limit} and that it is not compacted"
                ));
                return Ok(concerns);
            }
            Some(Err(code)) => {
                return Err(self.failed("read the settings of", topic, &KafkaError::MetadataFetch(code)));
            }
            None => return Ok(concerns),
        };
        let value = |name: &str| described.get(name).and_then(|entry| entry.value.as_deref());
        let is_compacted = value("cleanup.policy").is_some_and(|policy| policy.contains("compact"));
        let most = value("max.message.bytes").and_then(|value| value.parse::<u64>().ok()).filter(|most| *most < limit);
        match purpose {
            Purpose::Events if is_compacted => {
                return Err(TopicError::Refused(format!(
                    "topic {topic} is compacted (cleanup.policy): Kafka removes records from it that the archive has \
                     not seen; use a topic with cleanup.policy = delete"
                )));
            }
            Purpose::Events => {
                if let Some(most) = most {
                    return Err(TopicError::Refused(format!(
                        "topic {topic} takes records of at most max.message.bytes = {most}, and http.max_event = {} \
                         needs {limit}: raise the topic's setting (kafka-configs --alter --topic {topic} --add-config \
                         max.message.bytes={limit}), or lower http.max_event",
                        self.config.http.max_event
                    )));
                }
            }
            Purpose::DeadLetters => concerns.extend(losses(topic, is_compacted, most, value)),
            Purpose::Replays if !is_compacted => {
                return Err(TopicError::Refused(format!(
                    "topic {topic} is not compacted: Kafka forgets in time what was replayed, and it would be replayed \
                     again; set cleanup.policy=compact (kafka-configs --alter --topic {topic} \
                     --add-config cleanup.policy=compact)"
                )));
            }
            Purpose::Replays => {}
        }
        let minimum = value("min.insync.replicas").and_then(|value| value.parse::<usize>().ok());
        concerns.extend(minimum.and_then(|minimum| in_sync(topic, minimum, found)));
        Ok(concerns)
    }

    /// The topic beside what the configuration would have made.
    fn compare(&self, topic: &str, purpose: Purpose, found: Found) -> Vec<String> {
        let kafka = &self.config.queue.kafka;
        let mut concerns = Vec::new();
        let wanted = usize::try_from(kafka.replication).unwrap_or(0);
        if found.replication < wanted {
            concerns.push(format!(
                "topic {topic} has {} replica(s), and queue.kafka.replication is {wanted}: what is acknowledged stands \
                 on {} broker(s); add replicas (kafka-reassign-partitions), or lower queue.kafka.replication",
                found.replication, found.replication
            ));
        }
        let wanted = usize::try_from(kafka.partitions).unwrap_or(0);
        if purpose == Purpose::Events && found.partitions != wanted {
            concerns.push(format!(
                "topic {topic} has {} partition(s), and queue.kafka.partitions, which counts when it is created, is \
                 {wanted}: set it to {}, or add partitions (kafka-topics --alter)",
                found.partitions, found.partitions
            ));
        }
        concerns
    }

    /// Lets the client that asked say what became of its connections: it does so only when it is polled.
    fn hear(&self) {
        let deadline = Instant::now() + HEARING;
        while Instant::now() < deadline {
            // It has no records to give, and errors are for its context.
            let _ = self.metadata.poll(HEARING / 5);
        }
    }

    fn missing(&self, topic: &str, setting: &str) -> TopicError {
        TopicError::Refused(format!(
            "topic {topic} does not exist at {}, and queue.kafka.create_topic is false: create it (kafka-topics \
             --create --topic {topic} --config {setting}), or set queue.kafka.create_topic = true",
            self.config.queue.kafka.brokers,
        ))
    }

    fn room(&self) -> String {
        format!("max.message.bytes={}", settings::dead_letter_limit(self.config))
    }

    pub fn failed(&self, what: &str, topic: &str, error: &KafkaError) -> TopicError {
        self.hear();
        let said = self.metadata.context().last_error().or_else(|| self.admin.client.inner().context().last_error());
        let said = said.map(|said| format!("; librdkafka says: {}", brokers::explained(&said))).unwrap_or_default();
        let reason = format!("cannot {what} topic {topic}: {error}{said}");
        if is_passing(error) {
            TopicError::Unreachable { brokers: self.config.queue.kafka.brokers.clone(), reason }
        } else {
            TopicError::Refused(format!("Kafka at {}: {reason}", self.config.queue.kafka.brokers))
        }
    }
}

/// How a topic of dead letters loses letters that nobody has looked at.
fn losses<'v>(
    topic: &str,
    is_compacted: bool,
    most: Option<u64>,
    value: impl Fn(&str) -> Option<&'v str>,
) -> Vec<String> {
    let mut concerns = Vec::new();
    if is_compacted {
        concerns.push(format!(
            "topic {topic} is compacted (cleanup.policy): it loses the dead letters of records without a value; set \
             cleanup.policy=delete"
        ));
    }
    let expire: Vec<String> = ["retention.ms", "retention.bytes"]
        .into_iter()
        .filter_map(|name| Some(format!("{name}={}", value(name).filter(|value| *value != "-1")?)))
        .collect();
    if !expire.is_empty() {
        concerns.push(format!(
            "dead letters in topic {topic} expire ({}): set retention.ms=-1 and retention.bytes=-1 (kafka-configs \
             --alter --topic {topic} --add-config retention.ms=-1,retention.bytes=-1)",
            expire.join(", ")
        ));
    }
    if let Some(most) = most {
        concerns.push(format!(
            "topic {topic} takes at most max.message.bytes = {most}: letters of larger records are kept without their \
             value"
        ));
    }
    concerns
}

/// What the least number of in-sync replicas means for a topic with these replicas.
fn in_sync(topic: &str, minimum: usize, Found { replication, in_sync, .. }: Found) -> Option<String> {
    if in_sync < minimum.min(replication) {
        return Some(format!(
            "a partition of topic {topic} has {in_sync} of its {replication} replicas in sync, and min.insync.replicas \
             is {minimum}: it takes no events; see to the brokers that are away"
        ));
    }
    if minimum > replication {
        return Some(format!(
            "min.insync.replicas of topic {topic} is {minimum}, and it has {replication} replica(s): brokers before 3.7 \
             take no event at all, later ones take them with {replication}; add replicas, or lower the setting"
        ));
    }
    (minimum == 1 && replication > 1).then(|| {
        format!(
            "min.insync.replicas of topic {topic} is 1, and it has {replication} replicas: an event that one broker \
             alone holds counts as durable; set it to 2"
        )
    })
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

#[cfg(test)]
mod tests;
