//! Which actors a process runs, and which combinations cannot work.

use std::fmt;

use super::{Config, OnInvalid, OnUnavailable, QueueKind, StoreKind, keys::nearest};
use crate::names::{SinkName, words};

words! {
    /// A kind of actor that `roles` can name.
    Role {
        Ingestor = "ingestor",
        Producer = "producer",
        Consumer = "consumer",
        Spooler = "spooler",
        Uploader = "uploader",
        Aggregator = "aggregator",
        Watchdog = "watchdog",
    }
}

const INGEST: &[Role] = &[Role::Ingestor, Role::Producer, Role::Watchdog];
const ARCHIVE: &[Role] = &[Role::Consumer, Role::Spooler, Role::Uploader, Role::Watchdog];
const AGGREGATE: &[Role] = &[Role::Consumer, Role::Aggregator, Role::Watchdog];
const GROUPS: [&str; 5] = ["all", "ingest", "archive", "aggregate", "worker"];

/// The roles in force: groups resolved, sinks that are off left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Roles(u8);

impl Roles {
    pub fn has(self, role: Role) -> bool {
        self.0 & (1 << role as u8) != 0
    }

    /// Accepts events.
    pub fn ingest(self) -> bool {
        self.has(Role::Ingestor)
    }

    /// Carries records into the archive; its consumer is one of the group `…-archive`.
    pub fn archive(self) -> bool {
        self.has(Role::Consumer) && self.has(Role::Spooler)
    }

    /// Carries records into the aggregates; its consumer is one of the group `…-aggregate`.
    pub fn aggregate(self) -> bool {
        self.has(Role::Consumer) && self.has(Role::Aggregator)
    }

    pub fn iter(self) -> impl Iterator<Item = Role> {
        Role::ALL.iter().copied().filter(move |role| self.has(*role))
    }

    pub fn sinks(self) -> Vec<SinkName> {
        let sinks = [(SinkName::Archive, self.archive()), (SinkName::Aggregate, self.aggregate())];
        sinks.into_iter().filter_map(|(sink, on)| on.then_some(sink)).collect()
    }

    fn add(&mut self, roles: &[Role]) {
        roles.iter().for_each(|role| self.0 |= 1 << *role as u8);
    }

    /// `all` and `worker` mean the sinks that are on; a role by its own name, or its sink's, insists on it.
    fn resolve(config: &Config) -> Result<Self, String> {
        let (archive_on, aggregate_on) = sinks(config);
        let mut roles = Self::default();
        for name in &config.roles {
            match name.as_str() {
                "ingest" => roles.add(INGEST),
                "archive" => roles.add(ARCHIVE),
                "aggregate" => roles.add(AGGREGATE),
                "worker" if !archive_on && !aggregate_on => {
                    return Err("worker has nothing to do: archive.url and store.kind are both none".to_owned());
                }
                "all" | "worker" => {
                    let parts = [(name == "all", INGEST), (archive_on, ARCHIVE), (aggregate_on, AGGREGATE)];
                    parts.iter().filter(|(on, _)| *on).for_each(|(_, part)| roles.add(part));
                }
                name => match Role::ALL.iter().find(|role| role.as_str() == name) {
                    Some(role) => roles.add(&[*role]),
                    None => return Err(unknown(name)),
                },
            }
        }
        Ok(roles)
    }
}

impl fmt::Display for Roles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.iter().map(Role::as_str).collect();
        f.write_str(&names.join(","))
    }
}

/// Whether the archive and the aggregates are on, in whatever process.
fn sinks(config: &Config) -> (bool, bool) {
    (config.archive.is_on(), config.store.kind != StoreKind::None)
}

fn unknown(name: &str) -> String {
    let near = nearest(name, Role::WORDS.iter().copied().chain(GROUPS));
    let hint = near.map(|near| format!("did you mean {near}? ")).unwrap_or_default();
    format!("{name:?} is no role; {hint}Roles: {}; groups: {}", Role::WORDS.join(", "), GROUPS.join(", "))
}

impl Config {
    /// The roles in force. A configuration that was loaded has some that can work together.
    pub fn roles(&self) -> Roles {
        Roles::resolve(self).unwrap_or_default()
    }

    /// Whether this process buffers events while Kafka is away. Workers share the front ends' configuration and have
    /// nothing to buffer.
    pub fn buffers(&self) -> bool {
        let wanted = self.queue.on_unavailable == OnUnavailable::Buffer;
        wanted && self.queue.kind == QueueKind::Kafka && self.roles().ingest()
    }

    /// Whether this process keeps wrong events as dead letters.
    pub fn quarantines(&self) -> bool {
        let mut by_key = self.http.auth.keys.iter().filter_map(|key| key.on_invalid);
        let is_wished = self.event.on_invalid == OnInvalid::Quarantine || by_key.any(|it| it == OnInvalid::Quarantine);
        is_wished && self.roles().ingest()
    }

    /// Whether it writes dead letters to Kafka: the aggregates' records that cannot be counted, the buffer's events that the
    /// brokers refuse, or wrong events.
    pub fn writes_letters_to_kafka(&self) -> bool {
        let writes = self.roles().aggregate() || self.buffers() || self.quarantines();
        self.queue.kind == QueueKind::Kafka && writes
    }
}

/// The rules that the configured roles break.
pub(super) fn broken_rules(config: &Config) -> Vec<String> {
    use Role::{Aggregator, Consumer, Ingestor, Producer, Spooler, Uploader};
    let roles = match Roles::resolve(config) {
        Ok(roles) => roles,
        Err(rule) => return vec![rule],
    };
    let (archive_on, aggregate_on) = sinks(config);
    let mut broken = Vec::new();
    if roles == Roles::default() {
        broken.push("at least one role is needed; all is the default".to_owned());
    } else if roles.iter().all(|role| role == Role::Watchdog) {
        broken.push("a watchdog alone has nothing to watch".to_owned());
    }
    // Each needs at least one of the others.
    let needs: [(Role, &[Role], &str); 7] = [
        (Ingestor, &[Producer], "an ingestor needs a producer, which writes its events to the queue"),
        (Producer, &[Ingestor], "a producer needs an ingestor, which gives it events"),
        (Spooler, &[Consumer], "a spooler needs a consumer, which gives it records"),
        (Spooler, &[Uploader], "a spooler needs its uploader: nothing else sends the segments that it seals"),
        (Uploader, &[Spooler], "an uploader needs its spooler, which seals the segments that it sends"),
        (Aggregator, &[Consumer], "an aggregator needs a consumer, which gives it records"),
        (Consumer, &[Spooler, Aggregator], "a consumer needs a spooler or an aggregator to read for"),
    ];
    let lacks = |others: &[Role]| !others.iter().any(|other| roles.has(*other));
    broken.extend(
        needs.iter().filter(|(role, others, _)| roles.has(*role) && lacks(others)).map(|(.., rule)| (*rule).to_owned()),
    );
    if (roles.has(Spooler) || roles.has(Uploader)) && !archive_on {
        broken.push("a spooler and an uploader need an archive, and archive.url is none".to_owned());
    }
    if roles.has(Aggregator) && !aggregate_on {
        broken.push("an aggregator needs a store, and store.kind is none".to_owned());
    }
    if broken.is_empty() && config.queue.kind == QueueKind::Embedded {
        let mut missing = Vec::new();
        if !roles.ingest() {
            missing.push("ingestor and producer");
        }
        if archive_on && !roles.archive() {
            missing.push("consumer, spooler and uploader (or archive.url = \"none\")");
        }
        if aggregate_on && !roles.aggregate() {
            missing.push("consumer and aggregator (or store.kind = \"none\")");
        }
        if !missing.is_empty() {
            broken.push(format!(
                "the embedded queue cannot be split over processes: add {}, or use queue.kind = \"kafka\"",
                missing.join("; ")
            ));
        }
    }
    broken
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(kind: QueueKind, roles: &str) -> Config {
        let mut config = Config { roles: roles.split(',').map(str::to_owned).collect(), ..Config::default() };
        config.queue.kind = kind;
        config
    }

    #[test]
    fn all_means_the_sinks_that_are_on() {
        let mut config = Config::default();
        assert_eq!(config.roles().iter().count(), Role::ALL.len());
        config.archive.url = "none".to_owned();
        assert_eq!(config.roles().to_string(), "ingestor,producer,consumer,aggregator,watchdog");
        config.store.kind = StoreKind::None;
        assert_eq!(config.roles().to_string(), "ingestor,producer,watchdog");
        assert!(broken_rules(&config).is_empty());
    }

    #[test]
    fn groups_work_alone_on_kafka() {
        for group in GROUPS {
            assert_eq!(broken_rules(&config(QueueKind::Kafka, group)), [""; 0], "{group}");
        }
        let archive = config(QueueKind::Kafka, "archive").roles();
        assert!(archive.archive() && !archive.aggregate() && !archive.ingest());
    }

    #[test]
    fn combinations_that_cannot_work_name_the_rule_that_they_break() {
        for (roles, rule) in [
            ("ingestor", "an ingestor needs a producer"),
            ("producer", "a producer needs an ingestor"),
            ("ingest,spooler,uploader", "a spooler needs a consumer"),
            ("ingest,aggregator", "an aggregator needs a consumer"),
            ("consumer", "a consumer needs a spooler or an aggregator"),
            ("consumer,spooler", "a spooler needs its uploader"),
            ("consumer,uploader", "an uploader needs its spooler"),
            ("watchdog", "a watchdog alone"),
            ("ingester", "did you mean ingestor?"),
        ] {
            let broken = broken_rules(&config(QueueKind::Kafka, roles));
            assert!(broken.iter().any(|text| text.contains(rule)), "{roles}: {broken:?}");
        }
        let mut off = config(QueueKind::Kafka, "archive");
        off.archive.url = "none".to_owned();
        assert!(broken_rules(&off)[0].contains("archive.url is none"));
    }

    #[test]
    fn who_quarantines_writes_dead_letters_and_a_worker_quarantines_nothing() {
        for (kind, roles, writes) in [
            (QueueKind::Kafka, "ingest", true),
            (QueueKind::Kafka, "archive", false),
            (QueueKind::Embedded, "all", false),
        ] {
            let mut config = config(kind, roles);
            assert!(!config.writes_letters_to_kafka() && !config.quarantines(), "{roles}");
            config.event.on_invalid = OnInvalid::Quarantine;
            assert_eq!(config.writes_letters_to_kafka(), writes, "{roles}");
            assert_eq!(config.quarantines(), roles != "archive", "{roles}");
        }
    }

    #[test]
    fn the_embedded_queue_stays_in_one_process() {
        for roles in ["ingest", "worker", "ingest,archive"] {
            assert!(broken_rules(&config(QueueKind::Embedded, roles))[0].contains("cannot be split"), "{roles}");
        }
        let mut without_aggregates = config(QueueKind::Embedded, "ingest,archive");
        without_aggregates.store.kind = StoreKind::None;
        assert!(broken_rules(&without_aggregates).is_empty());
    }
}
