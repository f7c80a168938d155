//! Whether the brokers take what the producer sends: the door for new events, and the dependencies `kafka` and
//! `kafka_topic`.
//!
//! Two things may be wrong. Kafka is *away*: no broker answers, or none acknowledges anything. Or it answers, and
//! partitions are *unwritable*; then events for the others go on. A buffer takes over in both cases, because its order is
//! one for all partitions.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{SocketAddr, TcpStream, ToSocketAddrs},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwapOption;
use crossbeam_channel::bounded;
use parking_lot::Mutex;
use rdkafka::{
    error::KafkaError,
    metadata::{Metadata, MetadataPartition},
};

use crate::{
    health::{Closed, Health, Reason},
    log::{
        buffer::switch::Switch,
        kafka::{client::topic_in, probe::Side},
    },
    names::dependency,
};

/// A connection that is used says by itself that it works; one that is silent for this long is asked.
const SILENCE: Duration = Duration::from_secs(5);
/// After this time without an answer for a record, the brokers are asked why.
const SUSPICIOUS: Duration = Duration::from_secs(1);
/// Where no record at all was acknowledged for this long, though one waits, the brokers are away, whatever they say. Longer
/// than a busy broker's pauses, and than it takes to find out by asking.
const UNACKNOWLEDGED: Duration = Duration::from_secs(4);
/// How long a request waits when it is known by then that the brokers take nothing.
pub const UNANSWERED_REQUEST: Duration = Duration::from_millis(2700);
const FIRST_PROBE: Duration = Duration::from_millis(500);
const LONGEST_PROBE: Duration = Duration::from_secs(5);
/// The pause between two looks at partitions that are unwritable.
const LOOK: Duration = Duration::from_millis(750);

/// Shared by the producers' callbacks, their probes and the appender.
pub(super) struct BrokerStatus {
    brokers: String,
    health: Health,
    /// Closes the gate while the brokers take nothing.
    refusal: Reason,
    /// Takes the events while the brokers are away; then the gate is its business.
    buffer: Option<Arc<Switch>>,
    epoch: Instant,
    /// Milliseconds from `epoch` to the last answer of a broker.
    last_answer: AtomicU64,
    /// Milliseconds from `epoch` to the last record that was acknowledged.
    last_acknowledged: AtomicU64,
    unanswered: Arc<Unanswered>,
    /// Whether `State::away` holds a reason, for the path of each acknowledgement.
    is_away: AtomicBool,
    failed: AtomicBool,
    /// A record was refused, perhaps for its time: the clocks are to be compared.
    time_refused: AtomicBool,
    /// `None` while all partitions take writes.
    unwritable: ArcSwapOption<Writability>,
    state: Mutex<State>,
}

struct State {
    away: Option<String>,
    /// Doubles with each failed probe, and while brokers that answer probes acknowledge nothing.
    pause: Duration,
    last_error: Option<String>,
    /// The brokers refuse this machine's time, on this side of theirs: their answers do not open the door.
    clock: Option<Side>,
}

impl BrokerStatus {
    /// Away until the first answer.
    pub(super) fn new(brokers: &str, health: Health, buffer: Option<Arc<Switch>>) -> Self {
        let connecting = format!("connecting to Kafka at {brokers}");
        let refusal = health.gate.reason(Closed::QueueUnavailable);
        match &buffer {
            Some(buffer) => buffer.set_kafka(false),
            None => refusal.set(connecting.clone()),
        }
        Self {
            brokers: brokers.to_owned(),
            health,
            refusal,
            buffer,
            epoch: Instant::now(),
            last_answer: AtomicU64::new(0),
            last_acknowledged: AtomicU64::new(0),
            unanswered: Unanswered::new(),
            is_away: AtomicBool::new(true),
            failed: AtomicBool::new(false),
            time_refused: AtomicBool::new(false),
            unwritable: ArcSwapOption::empty(),
            state: Mutex::new(State { away: Some(connecting), pause: FIRST_PROBE, last_error: None, clock: None }),
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn since(&self, then: &AtomicU64) -> Duration {
        Duration::from_millis(self.now().saturating_sub(then.load(Ordering::Relaxed)))
    }

    pub(super) fn is_away(&self) -> bool {
        self.is_away.load(Ordering::Acquire)
    }

    /// What partitions take no writes; `None` when all do.
    pub(super) fn unwritable(&self) -> Option<Arc<Writability>> {
        self.unwritable.load_full()
    }

    /// A record is handed to librdkafka.
    pub(super) fn hand(&self, now: Instant) -> Handed {
        self.unanswered.hand(now)
    }

    /// A record is durable.
    pub(super) fn acknowledged(&self) {
        let now = self.now();
        self.last_answer.store(now, Ordering::Relaxed);
        self.last_acknowledged.store(now, Ordering::Relaxed);
        if self.is_away.load(Ordering::Relaxed) {
            let mut state = self.state.lock();
            state.pause = FIRST_PROBE;
            self.present(&mut state);
        }
    }

    /// A probe was answered, by way of the producer.
    pub(super) fn answered(&self) {
        self.last_answer.store(self.now(), Ordering::Relaxed);
        let mut state = self.state.lock();
        self.present(&mut state);
    }

    fn present(&self, state: &mut State) {
        if state.clock.is_some() {
            return;
        }
        state.away = None;
        if self.unwritable.load().is_none() {
            state.last_error = None;
        }
        self.tell(state);
    }

    /// What the brokers say of the topic.
    pub(super) fn sees(&self, topic: Writability) {
        let mut state = self.state.lock();
        if topic.unwritable.is_empty() {
            self.unwritable.store(None);
        } else {
            if state.clock.is_none() {
                // Brokers that say so are there.
                state.away = None;
                state.pause = FIRST_PROBE;
            }
            self.unwritable.store(Some(Arc::new(topic)));
        }
        self.tell(&mut state);
    }

    /// The brokers cannot be used. Returns whether that is news.
    pub(super) fn down(&self, reason: &str) -> bool {
        let mut state = self.state.lock();
        let news = state.away.is_none();
        if !news {
            state.pause = (state.pause * 2).min(LONGEST_PROBE);
        }
        state.away = Some(reason.to_owned());
        self.tell(&mut state);
        news
    }

    /// A broker refused a record, perhaps for its time.
    pub(super) fn refused_time(&self) {
        self.time_refused.store(true, Ordering::Release);
    }

    /// Whether one did since this was asked last.
    pub(super) fn take_refused_time(&self) -> bool {
        self.time_refused.swap(false, Ordering::AcqRel)
    }

    /// The brokers refuse our time, for this reason. One line in the log for as long as that lasts.
    pub(super) fn clock_is_wrong(&self, side: Side, reason: &str) {
        if self.state.lock().clock.replace(side).is_none() {
            tracing::error!(reason, "Kafka refuses events for their time: none are sent until the clocks agree");
        }
        self.down(reason);
    }

    /// On which side our time was refused, and is until the brokers say otherwise.
    pub(super) fn clock(&self) -> Option<Side> {
        self.state.lock().clock
    }

    /// The brokers take our time again.
    pub(super) fn clock_is_right(&self) {
        if self.state.lock().clock.take().is_some() {
            tracing::info!("Kafka takes this machine's time again");
        }
    }

    /// Nothing is acknowledged, though brokers answer.
    pub(super) fn idle(&self) {
        let mut state = self.state.lock();
        if state.away.is_none() {
            state.pause = (state.pause * 2).min(LONGEST_PROBE);
        }
        state.away = Some("the brokers answer, and acknowledge no event".to_owned());
        self.tell(&mut state);
    }

    /// Passes on how it is: to the door, the buffer and readiness.
    fn tell(&self, state: &mut State) {
        self.is_away.store(state.away.is_some(), Ordering::Release);
        let unwritable = self.unwritable.load_full();
        let away = state.away.as_ref().map(|reason| self.words(state, reason));
        let topic =
            unwritable.as_ref().map(|topic| format!("Kafka at {} takes no events for {}", self.brokers, topic.words()));
        let all = unwritable.as_ref().filter(|topic| topic.unwritable.len() >= topic.partitions).and(topic.clone());
        match &self.buffer {
            Some(buffer) => buffer.set_kafka(away.is_none() && topic.is_none()),
            None => self.refusal.set(away.clone().or(all)),
        }
        self.health.dependency(dependency::KAFKA, away.map_or(Ok(()), Err));
        self.health.dependency(dependency::KAFKA_TOPIC, topic.map_or(Ok(()), Err));
    }

    /// The producer cannot be used any more and has to be replaced.
    pub(super) fn failed(&self, reason: &str) {
        self.failed.store(true, Ordering::Release);
        tracing::error!(reason, "the Kafka producer failed for good");
    }

    pub(super) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    pub(super) fn mended(&self) {
        self.failed.store(false, Ordering::Release);
    }

    /// What librdkafka said about a connection, for the reason that operators see.
    pub(super) fn note(&self, reason: &str) {
        self.state.lock().last_error = Some(reason.to_owned());
    }

    /// Whether the next probe is due, so long after the last one.
    pub(super) fn is_due(&self, since: Duration) -> bool {
        if self.is_away() {
            return since >= self.state.lock().pause;
        }
        if self.unwritable.load().is_some() {
            return since >= LOOK;
        }
        if self.is_suspicious() {
            return since >= FIRST_PROBE;
        }
        since >= SILENCE && self.since(&self.last_answer) >= SILENCE / 2
    }

    /// Whether a record was acknowledged after that.
    pub(super) fn has_acknowledged_since(&self, then: Instant) -> bool {
        self.since(&self.last_acknowledged) < then.elapsed()
    }

    /// Whether a record has waited for long.
    pub(super) fn is_suspicious(&self) -> bool {
        self.unanswered.oldest(Instant::now()) >= SUSPICIOUS
    }

    /// Whether a record waits, and no other was acknowledged either, for [`UNACKNOWLEDGED`].
    pub(super) fn acknowledges_nothing(&self) -> bool {
        self.unanswered.oldest(Instant::now()) >= UNACKNOWLEDGED
            && self.since(&self.last_acknowledged) >= UNACKNOWLEDGED
    }

    pub(super) fn explain(&self, error: &KafkaError) -> String {
        let words = self.words(&self.state.lock(), &error.to_string());
        match self.unwritable() {
            Some(topic) => format!("{words}: it takes no events for {}", topic.words()),
            None => words,
        }
    }

    fn words(&self, state: &State, reason: &str) -> String {
        match state.last_error.as_ref().filter(|_| state.clock.is_none()) {
            Some(said) => format!("Kafka at {}: {reason} ({})", self.brokers, explained(said)),
            None => format!("Kafka at {}: {reason}", self.brokers),
        }
    }
}

/// What one producer says to the [`BrokerStatus`], until another has its place: its end takes seconds, in which its connections
/// may go and its probe may fail.
pub(super) struct Reporter {
    brokers: Arc<BrokerStatus>,
    retired: AtomicBool,
}

impl Reporter {
    pub fn new(brokers: Arc<BrokerStatus>) -> Self {
        Self { brokers, retired: AtomicBool::new(false) }
    }

    /// For what concerns the brokers.
    pub fn live(&self) -> Option<&BrokerStatus> {
        (!self.retired.load(Ordering::Acquire)).then_some(&self.brokers)
    }

    /// Says something of the brokers, unless another producer says it by now.
    pub fn tell(&self, what: impl FnOnce(&BrokerStatus)) {
        if let Some(brokers) = self.live() {
            what(brokers);
        }
    }

    pub fn explain(&self, error: &KafkaError) -> String {
        self.brokers.explain(error)
    }

    pub fn retire(&self) {
        self.retired.store(true, Ordering::Release);
    }
}

/// The precision of the time at which a record was handed over.
const SLOT: Duration = Duration::from_millis(125);
/// The slots go round: records live for less than 16 s as a rule, and older ones are taken for younger ones.
const SLOTS: usize = 128;

/// How old the oldest record is that librdkafka has and no broker has answered for: the records, by when they were handed
/// over. Shared by those that append and the callbacks.
pub(super) struct Unanswered {
    epoch: Instant,
    slots: [AtomicUsize; SLOTS],
}

/// One record; answered when it is dropped.
pub(super) struct Handed {
    to: Arc<Unanswered>,
    slot: usize,
}

impl Unanswered {
    pub fn new() -> Arc<Self> {
        Arc::new(Self { epoch: Instant::now(), slots: [const { AtomicUsize::new(0) }; SLOTS] })
    }

    /// A record is handed over now.
    pub fn hand(self: &Arc<Self>, now: Instant) -> Handed {
        let slot = self.slot(now) % SLOTS;
        self.slots[slot].fetch_add(1, Ordering::Relaxed);
        Handed { to: self.clone(), slot }
    }

    fn slot(&self, now: Instant) -> usize {
        let slot = now.saturating_duration_since(self.epoch).as_millis() / SLOT.as_millis();
        usize::try_from(slot).unwrap_or(usize::MAX)
    }

    /// The age of the oldest; zero where all are answered.
    pub fn oldest(&self, now: Instant) -> Duration {
        let present = self.slot(now);
        let oldest = (0..SLOTS).rev().find(|age| {
            present.checked_sub(*age).is_some_and(|slot| self.slots[slot % SLOTS].load(Ordering::Relaxed) > 0)
        });
        SLOT.saturating_mul(oldest.and_then(|age| u32::try_from(age).ok()).unwrap_or(0))
    }
}

impl Drop for Handed {
    fn drop(&mut self) {
        self.to.slots[self.slot].fetch_sub(1, Ordering::Relaxed);
    }
}

/// What the topic takes: which partitions take a write at present, by what the brokers say and whether they answer.
///
/// A write is acknowledged when every in-sync replica has it (`acks=all`), so a partition takes none where its leader is
/// away, where fewer replicas are in sync than `min.insync.replicas` says, and, until the controller has noticed, where an
/// in-sync replica is away. librdkafka keeps all of this to itself: it tries again until the record's time is over.
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
        let topic = topic_in(metadata, topic).ok()??;
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

    pub fn are_now(&mut self, silent: &BTreeSet<i32>) {
        self.brokers.retain(|broker, _| silent.contains(broker));
        for broker in silent {
            self.brokers.entry(*broker).or_insert_with(Instant::now);
        }
    }
}

/// What librdkafka said of a connection, with what it leaves out.
pub(super) fn explained(said: &str) -> String {
    let hint = if said.contains("certificate verify failed") {
        ", or the broker's certificate is for another host name than the one that was connected to"
    } else if said.contains("SSL alert number") {
        ": it may want a certificate of this client (ssl.certificate.location, ssl.key.location)"
    } else if said.contains("SSL connection closed by peer") && said.contains("SSL_HANDSHAKE") {
        // So it says on a busy machine; otherwise it asks that question itself.
        ": connecting to a PLAINTEXT broker listener? See that security.protocol is that of the port"
    } else if said.contains("brokers are down") {
        ": they cannot be connected to, or close connections and say nothing: see that security.protocol is that of the port"
    } else {
        ""
    };
    format!("{said}{hint}")
}

/// Threads that wait for the resolver at the same time, which may hang; beyond them nothing is known of a name.
const RESOLVERS: usize = 16;
static RESOLVING: AtomicUsize = AtomicUsize::new(0);

/// Whether somebody listens there; also where the name does not resolve in time, which says nothing about the broker.
pub(super) fn takes_a_connection((host, port): (&str, u16), timeout: Duration) -> bool {
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
        // The one who asked may have given up.
        let _ = resolved.send(found);
    });
    if resolver.is_err() {
        RESOLVING.fetch_sub(1, Ordering::AcqRel);
    }
    let addresses = resolver.ok().and_then(|_| addresses.recv_timeout(timeout).ok()).unwrap_or_default();
    addresses.is_empty() || addresses.iter().take(2).any(|it| TcpStream::connect_timeout(it, timeout).is_ok())
}

#[cfg(test)]
mod tests;
