//! librdkafka's settings: ours by default, the operator's `queue.kafka.properties` over them, and over both those that
//! this daemon's promises rest on.
//!
//! No client of ours lets a broker create a topic (`allow.auto.create.topics`), which librdkafka's producers and admin
//! clients do by default with each question about a name: a topic that appears by itself has the broker's number of
//! replicas, not the one that a 2xx stands on.
//!
//! librdkafka's defaults buffer up to 1 GiB in a producer and 64 MiB in each consumer. The bounds here keep a process
//! with a producer and both consumers below 40 MiB when it idles and below 200 MiB under load. A batch of another program
//! is decompressed whole: with zstd up to `receive.message.max.bytes` (100 MB) for each consumer besides, and with other
//! compressions to whatever it holds.

use std::time::Duration;

use rdkafka::{
    ClientConfig, config::RDKafkaLogLevel, consumer::BaseConsumer, error::KafkaError, producer::BaseProducer,
};

use crate::{config::Config, names::SinkName};

/// What a record may be larger than `http.max_event`: its key, its headers and the protocol's framing.
const HEADROOM: u64 = 64 * 1024;

/// The largest record that we write: `message.max.bytes` here, `max.message.bytes` of the topic.
pub fn record_limit(config: &Config) -> u64 {
    config.http.max_event.0 + HEADROOM
}

/// The largest dead letter: a record, and the headers that say why it is one.
pub fn dead_letter_limit(config: &Config) -> u64 {
    record_limit(config) + HEADROOM
}

/// How long a silent member keeps its partitions, unless `queue.kafka.properties` says otherwise: with a heartbeat before
/// it and another member's after it they are another's within ten seconds of its death.
pub const SESSION_TIMEOUT: Duration = Duration::from_secs(8);

const LEVEL: &str = "compression.level";
/// Of zstd. Small events get no smaller at librdkafka's default, 3, which takes half as many instructions again.
const FAST: &str = "1";
const AUTO_CREATE: &str = "allow.auto.create.topics";
const REFRESH: &str = "topic.metadata.refresh.interval.ms";

/// How long it takes until the group hands new partitions out: the refresh of a member's metadata, and a rebalance.
pub fn new_partitions_within(consumer: &ClientConfig) -> Duration {
    let refresh = consumer.get(REFRESH).and_then(|value| value.parse().ok());
    // -1 turns it off: then they are found when the connection is made anew, and nothing can be promised.
    Duration::from_millis(refresh.unwrap_or(10_000)) + Duration::from_secs(10)
}

/// The topic of the dead letters.
pub fn dead_letter_topic(config: &Config) -> String {
    format!("{}.dlq", config.queue.topic)
}

/// The topic that says what was replayed from the archive, and where to.
pub fn replays_topic(config: &Config) -> String {
    format!("{}.replays", config.queue.topic)
}

/// Each sink is a consumer group of its own.
pub fn group(config: &Config, sink: SinkName) -> String {
    format!("{}-{}", config.queue.kafka.group, sink.as_str())
}

/// Says what is wrong with `queue.kafka.properties`, before any client is made.
///
/// # Errors
/// One sentence that names the property.
pub fn validate(config: &Config) -> Result<(), String> {
    let all = [producer(config), consumer(config, SinkName::Archive, "check"), forwarder(config, "check")];
    for settings in all {
        settings.create_native_config().map_err(|error| match error {
            KafkaError::ClientConfig(_, description, key, value) => {
                format!(
                    "queue.kafka.properties: librdkafka refuses {key} = {value:?} ({description}); \
                     see its CONFIGURATION.md for the names and values"
                )
            }
            error => format!("queue.kafka.properties: {error}"),
        })?;
    }
    Ok(())
}

/// Makes each kind of client once and lets it go: librdkafka looks at files, SASL and what settings mean together only
/// then. They know no broker, and connect to none. It takes some milliseconds.
///
/// # Errors
/// librdkafka's sentence.
pub fn try_out(config: &Config) -> Result<(), String> {
    fn made<T>(client: Result<T, KafkaError>) -> Result<(), String> {
        client.map(drop).map_err(|error| match error {
            KafkaError::ClientCreation(reason) => reason,
            error => error.to_string(),
        })
    }
    let alone = |mut settings: ClientConfig| {
        settings.remove("bootstrap.servers");
        settings
    };
    made(alone(producer(config)).create::<BaseProducer>())?;
    made(alone(forwarder(config, "check")).create::<BaseProducer>())?;
    made(alone(consumer(config, SinkName::Archive, "check")).create::<BaseConsumer>())
}

/// For metadata and administration: connections, no queues.
pub fn client(config: &Config) -> ClientConfig {
    finish(base(), config, &[])
}

/// For the events.
pub fn producer(config: &Config) -> ClientConfig {
    let mut settings = base();
    // Requests wait for their acknowledgement, so the answer must come before the client gives up: a "503, yet
    // produced later" stays rare.
    let timeout = config.http.request_timeout.as_millis() * 8 / 10;
    settings
        // Bounds memory. At 32 MiB in flight and 10 ms a round trip that is 3 GiB/s; beyond it the client hears 503.
        .set("queue.buffering.max.kbytes", (32 * 1024).to_string())
        // The overhead of a message (some 400 bytes with its header) is not counted in kbytes.
        .set("queue.buffering.max.messages", "65536")
        // Long enough that a burst becomes one batch (compression, one request), short beside a round trip to the disk. A
        // client that waits for each answer is as fast as this allows: 2 ms cost a quarter of its rate.
        .set("linger.ms", "1")
        // The broker checks a whole batch against max.message.bytes, so that no batch may be larger than a record.
        .set("batch.size", config.http.max_event.0.clamp(1024, 1_000_000).to_string())
        .set("compression.codec", "zstd")
        .set(LEVEL, FAST)
        // As Java's producers place keys.
        .set("partitioner", "murmur2_random")
        // Without keys: spread over the partitions at the pace of the batches, not record by record.
        .set("sticky.partitioning.linger.ms", "10")
        .set("message.max.bytes", record_limit(config).to_string())
        .set("message.timeout.ms", timeout.max(100).to_string());
    finish(settings, config, &[("acks", "all"), ("enable.idempotence", "true")])
}

/// For the dead letters: rare, so its queue is small.
pub fn dead_letter_producer(config: &Config) -> ClientConfig {
    let mut settings = base();
    let limit = dead_letter_limit(config);
    settings
        .set("queue.buffering.max.kbytes", (limit.div_ceil(1024) + 4 * 1024).to_string())
        .set("queue.buffering.max.messages", "4096")
        .set("linger.ms", "5")
        .set("batch.size", limit.clamp(1024, 256 * 1024).to_string())
        .set("compression.codec", "zstd")
        .set("partitioner", "murmur2_random")
        .set("message.max.bytes", limit.to_string())
        .set("message.timeout.ms", "10000");
    finish(settings, config, &[("acks", "all"), ("enable.idempotence", "true")])
}

/// For replays and purges, one at a time: the one who takes the transactional id fences the one who had it.
pub fn dead_letter_transactions(config: &Config) -> ClientConfig {
    let id = dead_letter_group(config);
    let promises = [
        ("acks", "all"),
        ("enable.idempotence", "true"),
        ("transactional.id", id.as_str()),
        // An operation that died holds the readers up for this long at most.
        ("transaction.timeout.ms", "30000"),
        // Which librdkafka wants to be below it.
        ("message.timeout.ms", "10000"),
    ];
    finish(dead_letter_producer(config), config, &promises)
}

/// For reading the dead letters, and for looking at the end of a log. It joins no group and commits nothing.
pub fn dead_letter_reader(config: &Config) -> ClientConfig {
    reader(config, &dead_letter_group(config))
}

/// The same, for reading what was replayed from the archive to a topic.
pub fn replays_reader(config: &Config, to: &str) -> ClientConfig {
    reader(config, &replay_group(config, to))
}

fn reader(config: &Config, group: &str) -> ClientConfig {
    let mut settings = base();
    let limit = dead_letter_limit(config);
    settings
        .set("queued.max.messages.kbytes", (limit.div_ceil(1024) + 4 * 1024).to_string())
        .set("fetch.queue.backoff.ms", "10")
        .set("fetch.message.max.bytes", (1024 * 1024).to_string())
        .set("fetch.wait.max.ms", "100")
        .set("message.max.bytes", limit.to_string());
    let promises = [
        // librdkafka needs one to assign partitions.
        ("group.id", group),
        ("enable.auto.commit", "false"),
        ("enable.auto.offset.store", "false"),
        // Retention may take the front away while it is read.
        ("auto.offset.reset", "earliest"),
        ("isolation.level", "read_committed"),
        ("enable.partition.eof", "true"),
    ];
    finish(settings, config, &promises)
}

/// The largest record that is replayed from the archive: what the topic takes, its brokers say.
const REPLAYED: u64 = 100_000_000;
/// How long a transaction of a replay may be open: readers of the topic see nothing beyond one whose replay was killed.
pub const REPLAY_TIMEOUT: Duration = Duration::from_secs(60);

/// For replaying archived records to a topic that takes batches of `batch` bytes; one at a time: who takes the
/// transactional id fences the one who had it.
pub fn replayer(config: &Config, to: &str, batch: u64) -> ClientConfig {
    let mut settings = base();
    settings
        .set("queue.buffering.max.kbytes", (REPLAYED.div_ceil(1024) + 16 * 1024).to_string())
        .set("queue.buffering.max.messages", "16384")
        .set("linger.ms", "2")
        .set("batch.size", batch.clamp(1024, 1_000_000).to_string())
        .set("compression.codec", "zstd")
        .set(LEVEL, FAST)
        .set("partitioner", "murmur2_random")
        .set("message.max.bytes", REPLAYED.to_string());
    let id = replay_group(config, to);
    let transaction = REPLAY_TIMEOUT.as_millis();
    let (message, transaction) = ((transaction * 6 / 10).to_string(), transaction.to_string());
    let promises = [
        ("acks", "all"),
        ("enable.idempotence", "true"),
        ("transactional.id", id.as_str()),
        ("transaction.timeout.ms", &transaction),
        ("message.timeout.ms", &message),
    ];
    finish(settings, config, &promises)
}

/// The transactional id of replays from the archive to this topic, and the name under which is read what was replayed.
fn replay_group(config: &Config, to: &str) -> String {
    format!("{}-archive-replay-{to}", config.queue.kafka.group)
}

/// How long the forwarder of the buffer may keep a transaction open: readers see nothing beyond one that is.
pub const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(10);

/// For the forwarder of the buffer; `id` is its transactional id (KIP-98).
pub fn forwarder(config: &Config, id: &str) -> ClientConfig {
    let mut settings = base();
    let limit = dead_letter_limit(config);
    settings
        // Room for one transaction, however large its last record is.
        .set("queue.buffering.max.kbytes", (limit.div_ceil(1024) + 8 * 1024).to_string())
        .set("queue.buffering.max.messages", "16384")
        .set("linger.ms", "2")
        .set("batch.size", config.http.max_event.0.clamp(1024, 1_000_000).to_string())
        .set("compression.codec", "zstd")
        .set(LEVEL, FAST)
        .set("partitioner", "murmur2_random")
        .set("message.max.bytes", limit.to_string());
    let transaction = TRANSACTION_TIMEOUT.as_millis();
    // Each record has its answer before the transaction's time is over, whatever the operator's properties say.
    let (message, transaction) = ((transaction * 6 / 10).to_string(), transaction.to_string());
    let promises = [
        ("acks", "all"),
        ("enable.idempotence", "true"),
        ("transactional.id", id),
        ("transaction.timeout.ms", &transaction),
        ("message.timeout.ms", &message),
    ];
    finish(settings, config, &promises)
}

/// The transactional id of what is done with dead letters, and the name under which they are read.
fn dead_letter_group(config: &Config) -> String {
    format!("{}-dlq", config.queue.kafka.group)
}

/// For asking how far the forwarder of this id came: its group has no members, only a position.
pub fn forwarded_position(config: &Config, id: &str) -> ClientConfig {
    let promises = [
        ("group.id", id),
        ("group.protocol", "classic"),
        ("enable.auto.commit", "false"),
        ("enable.auto.offset.store", "false"),
        // A position of a transaction that is not decided yet is waited for (KIP-447).
        ("isolation.level", "read_committed"),
    ];
    finish(base(), config, &promises)
}

/// For the consumer of one sink, a static member of its group (KIP-345).
pub fn consumer(config: &Config, sink: SinkName, instance_id: &str) -> ClientConfig {
    let mut settings = base();
    settings
        .set("session.timeout.ms", SESSION_TIMEOUT.as_millis().to_string())
        // The others hear of a member that died, or came, with their next one, and one that comes has its partitions after
        // two of theirs. librdkafka looks whether one is due about once a second; its default is 3 s.
        .set("heartbeat.interval.ms", "500")
        // A coordinator that hangs is given up before the session is.
        .set("socket.timeout.ms", "7000")
        // Bounds memory: prefetched records, over all partitions. Some tenths of a second at full speed.
        .set("queued.max.messages.kbytes", (4 * 1024).to_string())
        // Checked again so soon after the queue was full; the default of a second would starve a queue this small.
        .set("fetch.queue.backoff.ms", "10")
        // One response holds at most so much (a larger first batch passes all the same, KIP-74) …
        .set("fetch.max.bytes", (4 * 1024 * 1024).max(record_limit(config)).to_string())
        // … and of one partition so much, so that several share it. As it is compressed: in memory it may be ten times that,
        // for each of 16 partitions, before the queue's bound is looked at again.
        .set("fetch.message.max.bytes", (48 * 1024).to_string())
        // Each lookup of offsets, and a partition that begins, may wait behind a fetch that finds nothing; each of those
        // costs an idle daemon and its broker some 100 µs.
        .set("fetch.wait.max.ms", "500")
        .set("message.max.bytes", record_limit(config).to_string());
    let group = group(config, sink);
    let promises = [
        ("group.id", group.as_str()),
        ("group.instance.id", instance_id),
        ("group.protocol", "classic"),
        // The rebalance callback is incremental.
        ("partition.assignment.strategy", "cooperative-sticky"),
        // Only what a sink confirmed is committed, and only by us.
        ("enable.auto.commit", "false"),
        ("enable.auto.offset.store", "false"),
        // A position outside the log is an event to handle, never a silent jump.
        ("auto.offset.reset", "error"),
        ("isolation.level", "read_committed"),
        ("enable.partition.eof", "false"),
    ];
    finish(settings, config, &promises)
}

fn base() -> ClientConfig {
    let mut settings = ClientConfig::new();
    settings
        .set("client.id", "ingestd")
        // A broker that hangs is noticed within these, not after a minute.
        .set("socket.timeout.ms", "10000")
        .set("socket.connection.setup.timeout.ms", "10000")
        .set("socket.keepalive.enable", "true")
        .set("reconnect.backoff.ms", "100")
        .set("reconnect.backoff.max.ms", "2000")
        // New partitions are found within it; a question that costs little.
        .set(REFRESH, "10000")
        // Brokers close idle connections; that is no news.
        .set("log.connection.close", "false");
    settings
}

/// Lays the operator's properties over our defaults, and the promises over both.
fn finish(mut settings: ClientConfig, config: &Config, promises: &[(&str, &str)]) -> ClientConfig {
    let properties = || config.queue.kafka.properties.iter().map(|(key, value)| (canonical(key), value));
    if properties().any(|(key, _)| key == "compression.codec") {
        // It means something else to each codec.
        settings.remove(LEVEL);
    }
    for (key, value) in properties() {
        settings.set(key, value);
    }
    for (key, value) in promises {
        settings.set(*key, *value);
    }
    settings.set(AUTO_CREATE, "false");
    settings.set("bootstrap.servers", &config.queue.kafka.brokers);
    let debug = config.queue.kafka.properties.contains_key("debug");
    settings.set_log_level(if debug { RDKafkaLogLevel::Debug } else { RDKafkaLogLevel::Notice });
    settings
}

/// The name that we use where librdkafka has two: of two names of one setting, the one applied last would win, and
/// their order is not defined.
fn canonical(key: &str) -> &str {
    match key {
        "request.required.acks" => "acks",
        "metadata.broker.list" => "bootstrap.servers",
        "queue.buffering.max.ms" => "linger.ms",
        "compression.type" => "compression.codec",
        "delivery.timeout.ms" => "message.timeout.ms",
        "max.partition.fetch.bytes" => "fetch.message.max.bytes",
        key => key,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(properties: &[(&str, &str)]) -> Config {
        let mut config = Config::default();
        config.queue.kafka.brokers = "127.0.0.1:9092".to_owned();
        config.queue.kafka.properties =
            properties.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        config
    }

    #[test]
    fn an_operators_property_wins_but_over_no_promise_not_even_by_its_other_name() {
        let config = with(&[("compression.type", "lz4"), ("request.required.acks", "0"), ("linger.ms", "7")]);
        let settings = producer(&config);
        assert_eq!(settings.get("compression.codec"), Some("lz4"));
        assert_eq!(settings.get("linger.ms"), Some("7"));
        assert_eq!(settings.get(LEVEL), None, "ours is one of zstd");
        assert_eq!((settings.get("acks"), settings.get("request.required.acks")), (Some("all"), None));
    }

    #[test]
    fn no_client_lets_a_broker_create_a_topic() {
        let config = with(&[(AUTO_CREATE, "true")]);
        let all = [
            client(&config),
            producer(&config),
            dead_letter_producer(&config),
            dead_letter_transactions(&config),
            dead_letter_reader(&config),
            replays_reader(&config, "to"),
            replayer(&config, "to", 1000),
            forwarder(&config, "id"),
            forwarded_position(&config, "id"),
            consumer(&config, SinkName::Archive, "id"),
        ];
        assert!(all.iter().all(|settings| settings.get(AUTO_CREATE) == Some("false")));
    }

    #[test]
    fn a_level_of_compression_can_be_set() {
        assert_eq!(producer(&with(&[])).get(LEVEL), Some(FAST));
        assert_eq!(producer(&with(&[(LEVEL, "9")])).get(LEVEL), Some("9"));
    }

    #[test]
    fn the_defaults_are_settings_that_librdkafka_knows() {
        assert_eq!(validate(&with(&[])), Ok(()));
    }

    #[test]
    fn an_unknown_property_is_named() {
        let error = validate(&with(&[("compresion.codec", "zstd")])).unwrap_err();
        assert!(error.contains("compresion.codec"), "{error}");
    }
}
