//! Which partitions of the topic take a write at present, by what the brokers say and whether they answer.
//!
//! A write is acknowledged when every in-sync replica has it (`acks=all`), so a partition takes none where its leader is
//! away, where fewer replicas are in sync than `min.insync.replicas` says, and, until the controller has noticed, where an
//! in-sync replica is away. librdkafka keeps all of this to itself: it tries again until the record's time is over.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{SocketAddr, TcpStream, ToSocketAddrs},
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use crossbeam_channel::bounded;
use rdkafka::{
    ClientConfig,
    admin::{AdminClient, AdminOptions, ConfigResource, ResourceSpecifier},
    config::FromClientConfigAndContext,
    metadata::{Metadata, MetadataPartition},
    types::RDKafkaErrorCode as Code,
};

use crate::log::kafka::{clock::Bounds, identity::leader_answers, logging::Logging};

/// The brokers' account of the topic, and of its settings.
const QUESTION: Duration = Duration::from_millis(1500);
/// Whether one broker answers: asked while requests wait.
const PING: Duration = Duration::from_millis(1200);

/// Threads that wait for the resolver at the same time, which may hang; beyond them nothing is known of a name.
const RESOLVERS: usize = 16;
static RESOLVING: AtomicUsize = AtomicUsize::new(0);

/// What the topic takes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Writability {
    pub partitions: usize,
    /// Those that take nothing, each with the reason.
    pub unwritable: BTreeMap<usize, String>,
}

/// A partition as metadata shows it.
struct Seen<'m> {
    leader: i32,
    replicas: usize,
    in_sync: &'m [i32],
}

impl<'m> From<&'m MetadataPartition> for Seen<'m> {
    fn from(partition: &'m MetadataPartition) -> Self {
        Self { leader: partition.leader(), replicas: partition.replicas().len(), in_sync: partition.isr() }
    }
}

impl Seen<'_> {
    /// Why it takes no write. No more in-sync replicas are asked for than it has replicas at all: brokers from 3.7 on take
    /// the write then.
    fn refuses(&self, minimum: Option<usize>, silent: &Silent) -> Option<String> {
        if self.leader < 0 {
            return Some("no leader".to_owned());
        }
        if silent.brokers.contains_key(&self.leader) {
            return Some(format!("the leader, broker {}, does not answer", self.leader));
        }
        let wanted = minimum.unwrap_or(1).min(self.replicas);
        if self.in_sync.len() < wanted {
            return Some(format!(
                "{} of {} replicas are in sync, and min.insync.replicas is {wanted}",
                self.in_sync.len(),
                self.replicas
            ));
        }
        let away = self.in_sync.iter().find(|broker| silent.is_away(**broker))?;
        Some(format!("broker {away}, one of the in-sync replicas, does not answer"))
    }
}

impl Writability {
    /// What metadata says of the topic; `None` where it knows no such topic.
    pub fn of(metadata: &Metadata, topic: &str, minimum: Option<usize>, silent: &Silent) -> Option<Self> {
        let topic = metadata.topics().iter().find(|found| found.name() == topic)?;
        if topic.partitions().is_empty() {
            return None;
        }
        let refuses = |partition: &MetadataPartition| {
            let why = Seen::from(partition).refuses(minimum, silent)?;
            Some((usize::try_from(partition.id()).ok()?, why))
        };
        let unwritable = topic.partitions().iter().filter_map(refuses).collect();
        Some(Self { partitions: topic.partitions().len(), unwritable })
    }

    /// `partition(s) 0, 2: no leader; partition(s) 1: …`
    pub fn words(&self) -> String {
        let mut reasons: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for (partition, why) in &self.unwritable {
            reasons.entry(why).or_default().push(partition.to_string());
        }
        let words = reasons.into_iter().map(|(why, names)| format!("partition(s) {}: {why}", names.join(", ")));
        words.collect::<Vec<_>>().join("; ")
    }

    /// Some partition that takes writes, when there is one.
    pub fn any_writable(&self) -> Option<usize> {
        let writable = self.partitions.saturating_sub(self.unwritable.len());
        if writable == 0 {
            return None;
        }
        let wanted = fastrand::usize(..writable);
        (0..self.partitions).filter(|partition| !self.unwritable.contains_key(partition)).nth(wanted)
    }
}

/// The brokers that do not answer this process, each with when that was first seen.
#[derive(Debug, Default)]
pub(super) struct Silent {
    brokers: BTreeMap<i32, Instant>,
}

impl Silent {
    /// A leader drops a follower that has not fetched for `replica.lag.time.max.ms`, 30 s by default, and the controller
    /// one that is dead before that. What is in sync for longer answers its leader, if not us.
    const DROPPED_BY_THEN: Duration = Duration::from_secs(35);

    fn is_away(&self, follower: i32) -> bool {
        self.brokers.get(&follower).is_some_and(|since| since.elapsed() < Self::DROPPED_BY_THEN)
    }

    fn are_now(&mut self, silent: &BTreeSet<i32>) {
        self.brokers.retain(|broker, _| silent.contains(broker));
        for broker in silent {
            self.brokers.entry(*broker).or_insert_with(Instant::now);
        }
    }
}

/// What the brokers answered.
pub(super) enum Sight {
    /// They know no such topic.
    Missing,
    Topic(Writability),
}

/// A client of its own that asks: a producer's questions wait behind the records that are not acknowledged.
pub(super) struct Scout {
    admin: AdminClient<Logging>,
    /// Drives the admin client's futures, which end by their own deadlines.
    runtime: tokio::runtime::Runtime,
    topic: String,
}

impl Scout {
    /// # Errors
    /// When librdkafka refuses the settings, or there is no runtime to be had.
    pub fn open(settings: &ClientConfig, topic: &str) -> anyhow::Result<Self> {
        let admin = AdminClient::from_config_and_context(settings, Logging::default())?;
        let runtime = tokio::runtime::Builder::new_current_thread().build()?;
        Ok(Self { admin, runtime, topic: topic.to_owned() })
    }

    /// Asks the brokers, and, where records may be waiting for it, whether each answers; `minimum` is the topic's
    /// `min.insync.replicas` as last known, `silent` who did not answer before. Blocks for some seconds at most.
    ///
    /// # Errors
    /// A sentence, when no broker answers.
    pub fn look(&self, minimum: &mut Option<usize>, silent: &mut Silent, of_each: bool) -> Result<Sight, String> {
        let metadata = self.admin.inner().fetch_metadata(Some(&self.topic), QUESTION).map_err(|error| {
            let said = self.admin.inner().context().last_error().map(|said| format!(" ({said})")).unwrap_or_default();
            format!("{error}{said}")
        })?;
        let is_missing = |code: Code| matches!(code, Code::UnknownTopicOrPartition | Code::UnknownTopic);
        let topic = metadata.topics().iter().find(|found| found.name() == self.topic);
        match topic.map(|topic| (topic.error().map(Code::from), topic.partitions().is_empty())) {
            Some((Some(code), true)) if !is_missing(code) => return Err(format!("topic {}: {code}", self.topic)),
            None | Some((_, true)) => return Ok(Sight::Missing),
            Some(_) => {}
        }
        if let Some(found) = self.minimum() {
            *minimum = Some(found);
        }
        silent.are_now(&if of_each { self.unreachable(&metadata) } else { BTreeSet::new() });
        let sight = Writability::of(&metadata, &self.topic, *minimum, silent);
        Ok(sight.map_or(Sight::Missing, Sight::Topic))
    }

    fn minimum(&self) -> Option<usize> {
        self.settings().ok()?.get("min.insync.replicas")?.value.as_deref()?.parse().ok()
    }

    /// What the topic lets a clock differ by.
    ///
    /// # Errors
    /// Why its settings are not told.
    pub fn clock_bounds(&self) -> Result<Bounds, String> {
        let settings = self.settings()?;
        Ok(Bounds::of(|name| settings.get(name).and_then(|entry| entry.value.as_deref())))
    }

    /// The topic's.
    ///
    /// # Errors
    /// Why they are not told: there is no right to ask for instance.
    fn settings(&self) -> Result<ConfigResource, String> {
        let options = AdminOptions::new().request_timeout(Some(QUESTION));
        let resource = [ResourceSpecifier::Topic(&self.topic)];
        let answer = self.runtime.block_on(self.admin.describe_configs(&resource, &options));
        let answer = answer.map_err(|error| error.to_string())?.into_iter().next();
        answer.ok_or("an empty answer")?.map_err(|code| code.to_string())
    }

    /// The brokers of in-sync replicas that do not answer. Those that lead are asked for the start of a log, which also
    /// one that hangs fails; of the others it is only tried whether they take a connection.
    fn unreachable(&self, metadata: &Metadata) -> BTreeSet<i32> {
        let mut leaders = BTreeMap::new();
        let mut others = BTreeSet::new();
        for partition in metadata.topics().iter().flat_map(|topic| topic.partitions()) {
            if partition.leader() >= 0 {
                leaders.entry(partition.leader()).or_insert(partition.id());
            }
            others.extend(partition.isr());
        }
        others.retain(|broker| !leaders.contains_key(broker));
        let address = |broker: &i32| {
            let found = metadata.brokers().iter().find(|found| found.id() == *broker)?;
            Some((found.host(), u16::try_from(found.port()).ok()?))
        };
        std::thread::scope(|scope| {
            let leads = leaders.iter().map(|(broker, partition)| {
                scope.spawn(move || {
                    let answers = leader_answers(self.admin.inner(), &self.topic, *partition, PING);
                    (!answers).then_some(*broker)
                })
            });
            let follows = others.iter().map(|broker| {
                let address = address(broker);
                scope.spawn(move || (!address.is_some_and(takes_a_connection)).then_some(*broker))
            });
            let asked: Vec<_> = leads.collect::<Vec<_>>().into_iter().chain(follows.collect::<Vec<_>>()).collect();
            // A panic was reported by its thread, and says nothing about a broker.
            asked.into_iter().filter_map(|asked| asked.join().ok().flatten()).collect()
        })
    }
}

/// Whether somebody listens there; also where the name does not resolve in time, which says nothing about the broker.
fn takes_a_connection((host, port): (&str, u16)) -> bool {
    if RESOLVING.fetch_add(1, Ordering::AcqRel) >= RESOLVERS {
        RESOLVING.fetch_sub(1, Ordering::AcqRel);
        return true;
    }
    let (resolved, addresses) = bounded::<Vec<SocketAddr>>(1);
    let name = host.to_owned();
    // The resolver has deadlines of its own, which add up to much more: nobody waits for this thread.
    let resolver = std::thread::Builder::new().name("kafka-resolve".to_owned()).spawn(move || {
        let found = (name.as_str(), port).to_socket_addrs().map(Iterator::collect).unwrap_or_default();
        RESOLVING.fetch_sub(1, Ordering::AcqRel);
        // Whoever asked may have given up.
        let _ = resolved.send(found);
    });
    if resolver.is_err() {
        RESOLVING.fetch_sub(1, Ordering::AcqRel);
    }
    let addresses = resolver.ok().and_then(|_| addresses.recv_timeout(PING).ok()).unwrap_or_default();
    addresses.is_empty() || addresses.iter().take(2).any(|it| TcpStream::connect_timeout(it, PING).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refuses(leader: i32, replicas: usize, in_sync: &[i32], minimum: usize, unreachable: &[i32]) -> Option<String> {
        let mut silent = Silent::default();
        silent.are_now(&unreachable.iter().copied().collect());
        Seen { leader, replicas, in_sync }.refuses(Some(minimum), &silent)
    }

    #[test]
    fn a_follower_that_stays_in_sync_answers_its_leader_if_not_us() {
        let mut silent = Silent::default();
        silent.are_now(&[2].into());
        let follows = Seen { leader: 1, replicas: 2, in_sync: &[1, 2] };
        let leads = Seen { leader: 2, replicas: 2, in_sync: &[1, 2] };
        assert!(follows.refuses(Some(2), &silent).is_some());
        let before = Instant::now().checked_sub(Silent::DROPPED_BY_THEN).expect("the machine runs for longer");
        silent.brokers.insert(2, before);
        silent.are_now(&[2].into());
        assert_eq!(follows.refuses(Some(2), &silent), None);
        assert!(leads.refuses(Some(2), &silent).is_some(), "its own partitions take nothing from us");
        silent.are_now(&BTreeSet::new());
        silent.are_now(&[2].into());
        assert!(follows.refuses(Some(2), &silent).is_some(), "it was back in between");
    }

    #[test]
    fn a_partition_takes_a_write_that_all_its_in_sync_replicas_can_acknowledge() {
        assert_eq!(refuses(1, 3, &[1, 2, 3], 2, &[]), None);
        assert_eq!(refuses(1, 3, &[1, 2], 2, &[3]), None, "one that is not in sync is not waited for");
        assert_eq!(refuses(1, 1, &[1], 2, &[]), None, "there are no more replicas");
        for (leader, in_sync, minimum, unreachable, why) in [
            (-1, [1, 2].as_slice(), 2, [].as_slice(), "no leader"),
            (1, &[1, 2], 2, &[1], "the leader, broker 1,"),
            (1, &[1], 2, &[], "1 of 3 replicas are in sync, and min.insync.replicas is 2"),
            (1, &[1, 2, 3], 2, &[3], "broker 3, one of the in-sync replicas,"),
        ] {
            let reason = refuses(leader, 3, in_sync, minimum, unreachable).expect(why);
            assert!(reason.starts_with(why), "{reason}");
        }
    }

    #[test]
    fn reasons_are_named_with_their_partitions_and_another_partition_is_found() {
        let why = |partition: usize| (partition, if partition == 1 { "x" } else { "no leader" }.to_owned());
        let some = Writability { partitions: 4, unwritable: [0, 1, 3].map(why).into() };
        assert_eq!(some.words(), "partition(s) 0, 3: no leader; partition(s) 1: x");
        assert_eq!(some.any_writable(), Some(2));
        assert_eq!(Writability { partitions: 3, ..some }.any_writable(), None);
    }
}
