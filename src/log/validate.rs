//! The queue: names by Kafka's rule, and librdkafka settings that would break a promise.

use rdkafka::{config::ClientConfig, error::KafkaError};

use super::kafka::settings;
use crate::config::{Check, KAFKA_PROPERTIES, OnUnavailable, is_address, is_kafka_property, shown};

/// Kafka's limit of topic names; groups have none of their own.
const LONGEST_NAME: usize = 249;

/// Settings that are not the operator's, and why.
const REFUSED: &[(&str, &str)] = &[
    ("enable.auto.commit", COMMITS),
    ("auto.commit.enable", COMMITS),
    ("enable.auto.offset.store", COMMITS),
    ("auto.offset.reset", "a position outside the log would become a silent jump"),
    ("isolation.level", "records of aborted transactions would be counted"),
    ("group.id", "the groups are <queue.kafka.group>-archive and -aggregate"),
    ("group.instance.id", "it is kept in data.dir, so that a restart finds its partitions"),
    ("group.protocol", "static membership and the rebalance callback need the classic protocol"),
    ("group.remote.assignor", "static membership and the rebalance callback need the classic protocol"),
    ("partition.assignment.strategy", "the rebalance callback assigns incrementally (cooperative-sticky)"),
    ("check.crcs", "a batch with a wrong checksum would be skipped, as if there were no records"),
    ("enable.partition.eof", "the consumer reads the log's end from its positions"),
    ("acks", "a 2xx means that all in-sync replicas have the event"),
    ("request.required.acks", "a 2xx means that all in-sync replicas have the event"),
    ("enable.idempotence", "a resend would store an event twice or out of order"),
    ("transactional.id", "the producer writes without transactions, and the buffer's forwarder has its own"),
    ("transaction.timeout.ms", "the buffer's forwarder keeps its transactions short, so that readers are not held up"),
    ("partitioner", "keys go to partitions as Java's producers send them (murmur2_random)"),
    ("message.max.bytes", "it follows from http.max_event"),
    (AUTO_CREATE, "a missing topic would be created by the brokers, with as many replicas as they like"),
    ("bootstrap.servers", "it is queue.kafka.brokers"),
    ("metadata.broker.list", "it is queue.kafka.brokers"),
];

/// librdkafka's two names of it.
const MECHANISM: [&str; 2] = ["sasl.mechanism", "sasl.mechanisms"];
const MECHANISMS: &str = "PLAIN, SCRAM-SHA-256 and SCRAM-SHA-512, beside mutual TLS";

/// Off for all our clients; a configuration may say so as well.
const AUTO_CREATE: &str = "allow.auto.create.topics";
const COMMITS: &str = "only what a sink has confirmed as durable may be committed";

/// The rules of `[queue]`.
pub fn validate(check: &mut Check<'_>) {
    let queue = &check.config.queue;
    if queue.on_unavailable == OnUnavailable::Buffer && !check.is_kafka() {
        let rule = "\"buffer\" is for queue.kind = \"kafka\": the embedded log is on this machine's disk already";
        check.fault("queue.on_unavailable", rule);
    }
    // Its dead letters have a topic of their own.
    if let Err(rule) = name(&queue.topic, ".dlq") {
        check.fault("queue.topic", rule);
    }
    if let Err(rule) = name(&queue.kafka.group, "-aggregate") {
        check.fault("queue.kafka.group", rule);
    }
    let brokers: Vec<&str> = queue.kafka.brokers.split(',').map(str::trim).collect();
    if queue.kafka.brokers.is_empty() {
        if check.is_kafka() {
            check.fault("queue.kafka.brokers", "is needed for queue.kind = \"kafka\": HOST:PORT, several by commas");
        }
    } else if !brokers.iter().all(|broker| is_broker(broker)) {
        check.fault("queue.kafka.brokers", "must be HOST:PORT, several separated by commas");
    }
    let faults = check.errors.len();
    for (property, value) in &queue.kafka.properties {
        let key = format!("{KAFKA_PROPERTIES}.{property}");
        if property == AUTO_CREATE && value == "false" {
            continue;
        }
        if let Some((_, why)) = REFUSED.iter().find(|(refused, _)| refused == property) {
            check.fault(&key, format!("must not be set: {why}"));
        } else if let Err(description) = try_property(property, value) {
            if !is_kafka_property(property) {
                check.unknown(&key, format!("librdkafka refuses it: {description} (see its CONFIGURATION.md)"));
                continue;
            }
            // librdkafka quotes values.
            let hidden = shown(&key, value) != *value;
            let description = if hidden { "the value is not one that it takes" } else { description.as_str() };
            check.fault(&key, format!("librdkafka refuses it: {description} (see its CONFIGURATION.md)"));
        } else {
            check.delivery_timeout(&key, property, value);
            check.mechanism(&key, property, value);
        }
    }
    if check.is_kafka() && check.errors.len() == faults {
        check.clients();
    }
}

impl Check<'_> {
    /// Without tokens its clients would wait for ever, and say nothing.
    fn mechanism(&mut self, key: &str, property: &str, value: &str) {
        if MECHANISM.contains(&property) && value.eq_ignore_ascii_case("OAUTHBEARER") {
            self.fault(key, format!("nothing in this build fetches tokens (OIDC): it has {MECHANISMS}"));
        }
    }

    /// What librdkafka says only when a client is made.
    fn clients(&mut self) {
        let Err(reason) = settings::try_out(self.config) else { return };
        let properties = &self.config.queue.kafka.properties;
        let (property, rule) = if reason.starts_with("No provider for SASL mechanism") {
            let given = MECHANISM.into_iter().find(|name| properties.contains_key(*name));
            let default = given.map_or("; it is GSSAPI (Kerberos) where none is set", |_| "");
            (
                Some(given.unwrap_or(MECHANISM[0])),
                format!("this mechanism is not in this build, which has {MECHANISMS}{default}"),
            )
        } else {
            // It names what is missing, or what is wrong.
            let words = || reason.split([' ', ',', '`', '\'', '"', ':']).filter(|word| is_kafka_property(word));
            let missing = words().find(|word| word.contains('.') && !properties.contains_key(*word));
            let given = words().find(|word| properties.contains_key(*word));
            let property = if reason.contains("must be set") { missing.or(given) } else { given.or(missing) };
            // Its own words leave the system's out.
            let file = property.filter(|property| property.ends_with(".location")).and_then(|it| properties.get(it));
            let unread = file.and_then(|file| std::fs::File::open(file).err());
            let unread = unread.map(|error| format!("; it cannot be read: {error}")).unwrap_or_default();
            (property, format!("librdkafka makes no client: {reason}{unread}"))
        };
        let key = property.map_or_else(|| KAFKA_PROPERTIES.to_owned(), |name| format!("{KAFKA_PROPERTIES}.{name}"));
        self.fault(&key, rule);
    }

    /// A client must not get its 503 while librdkafka goes on trying.
    fn delivery_timeout(&mut self, key: &str, property: &str, value: &str) {
        if !["message.timeout.ms", "delivery.timeout.ms"].contains(&property) {
            return;
        }
        let limit = self.config.http.request_timeout.as_millis();
        if !value.parse::<u128>().is_ok_and(|timeout| timeout > 0 && timeout < limit) {
            self.fault(key, format!("must be above 0 and below http.request_timeout ({limit} ms)"));
        }
    }
}

/// A name by Kafka's rule for topics, which also keeps it safe in paths; `suffix` is what we append to it.
fn name(name: &str, suffix: &str) -> Result<(), String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let longest = LONGEST_NAME - suffix.len();
    if name.is_empty() || name.len() > longest || !name.chars().all(plain) {
        return Err(format!(
            "must be 1 to {longest} of a-z, A-Z, 0-9, '.', '_' and '-' (Kafka's rule, and room for {suffix})"
        ));
    }
    if [".", ".."].contains(&name) {
        return Err("must not be . or .. (Kafka's rule)".to_owned());
    }
    Ok(())
}

/// librdkafka's default port is 9092, and it takes the security protocol in front.
fn is_broker(broker: &str) -> bool {
    let address = broker.split_once("://").map_or(broker, |(_, address)| address);
    is_address(address) || is_address(&format!("{address}:9092"))
}

fn try_property(property: &str, value: &str) -> Result<(), String> {
    match ClientConfig::new().set(property, value).create_native_config() {
        Ok(_) => Ok(()),
        Err(KafkaError::ClientConfig(_, description, ..)) => Err(description),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, QueueKind, errors_by};

    fn errors(change: impl FnOnce(&mut Config)) -> Vec<String> {
        errors_by(&[validate], change)
    }

    fn property_errors(property: &str, value: &str) -> Vec<String> {
        errors(|config| {
            config.queue.kafka.properties.insert(property.to_owned(), value.to_owned());
        })
    }

    #[test]
    fn properties_that_would_break_a_promise_are_refused_by_name() {
        for (property, _) in REFUSED {
            let errors = property_errors(property, "1");
            assert!(
                errors.len() == 1 && errors[0].contains(&format!("{property} = \"1\": must not be set")),
                "{errors:?}"
            );
        }
        assert_eq!(property_errors("session.timeout.ms", "20000"), [""; 0]);
        assert_eq!(property_errors(AUTO_CREATE, "false"), [""; 0]);
        assert_eq!(property_errors("message.timeout.ms", "3000"), [""; 0]);
        assert!(property_errors("delivery.timeout.ms", "300000")[0].contains("below http.request_timeout"));
    }

    #[test]
    fn properties_are_those_of_librdkafka_and_secrets_are_not_quoted() {
        assert!(property_errors("no.such.setting", "1")[0].contains("No such configuration property"));
        assert!(property_errors("sasl.mechanismz", "PLAIN")[0].contains("sasl.mechanismz"));
        for name in ["no.such.password", "sasl.passwrd"] {
            let errors = property_errors(name, "hunter2");
            assert!(!errors[0].contains("hunter2"), "{errors:?}");
        }
    }

    #[test]
    fn what_librdkafka_says_only_to_whoever_makes_a_client_is_said_here_with_its_key() {
        for (properties, words) in [
            (
                &[("security.protocol", "ssl"), ("ssl.ca.location", "/nowhere/ca.pem")][..],
                &["properties.ssl.ca.location = \"/nowhere/ca.pem\"", "No such file"][..],
            ),
            (
                &[("security.protocol", "ssl"), ("ssl.certificate.location", "/nowhere/client.pem")],
                &["properties.ssl.certificate.location = \"/nowhere/client.pem\""],
            ),
            (&[("security.protocol", "SASL_PLAINTEXT")], &["properties.sasl.mechanism: ", "GSSAPI", "SCRAM-SHA-512"]),
            (
                &[("security.protocol", "SASL_SSL"), ("sasl.mechanisms", "GSSAPI")],
                &["properties.sasl.mechanisms = \"GSSAPI\"", "not in this build"],
            ),
            (
                &[("security.protocol", "SASL_SSL"), ("sasl.mechanism", "SCRAM-SHA-512"), ("sasl.password", "hunter2")],
                &["properties.sasl.username: ", "must be set"],
            ),
            (&[("sasl.mechanism", "OAUTHBEARER")], &["properties.sasl.mechanism = ", "OIDC"]),
            (&[("max.poll.interval.ms", "1000")], &["properties.max.poll.interval.ms"]),
        ] {
            let errors = errors(|config| {
                config.queue.kind = QueueKind::Kafka;
                config.queue.kafka.brokers = "kafka:9092".to_owned();
                let properties = properties.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
                config.queue.kafka.properties.extend(properties);
            });
            assert!(errors.len() == 1 && words.iter().all(|word| errors[0].contains(word)), "{words:?}: {errors:?}");
            assert!(!errors[0].contains("hunter2"), "{errors:?}");
        }
    }

    #[test]
    fn names_follow_the_rule_of_kafka_and_leave_room_for_what_is_appended() {
        assert_eq!(name("Events.v2_a-b", ".dlq"), Ok(()));
        assert_eq!(name(&"x".repeat(245), ".dlq"), Ok(()));
        for bad in ["", ".", "..", "a/b", "a b", "ä", &"x".repeat(246)] {
            assert!(name(bad, ".dlq").is_err(), "{bad}");
        }
    }

    #[test]
    fn a_buffer_in_front_of_the_embedded_queue_is_refused_by_name() {
        let errors = errors(|config| config.queue.on_unavailable = OnUnavailable::Buffer);
        assert!(errors.len() == 1 && errors[0].contains("queue.on_unavailable = \"buffer\""), "{errors:?}");
    }

    #[test]
    fn kafka_needs_brokers() {
        assert!(errors(|config| config.queue.kind = QueueKind::Kafka)[0].contains("queue.kafka.brokers"));
        for good in ["a:9092,b:9092", "127.0.0.1:1, [::1]:2", "kafka", "SASL_SSL://a.example.com:9093"] {
            assert_eq!(errors(|config| config.queue.kafka.brokers = good.to_owned()), [""; 0], "{good}");
        }
        assert_eq!(errors(|config| config.queue.kafka.brokers = "a:1,,b:2".to_owned()).len(), 1);
    }
}
