//! What Kafka alone does as the log, on a real broker. Each test makes a topic and groups of its own.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use ingestd::internals::{
    config::{Config, QueueKind},
    health::Health,
    log::{
        Appender, ByteBudget, SourceCommand, SourceEvent, SourceHandle,
        dead_letters::{DeadLetter, DeadLetterWriter, DeadLetters, Filter, Origin, Quarantine, Source},
        kafka::{
            self, KafkaAppender, KafkaDeadLetters, KafkaLetters, SharedReader, SharedReads, TopicError, TopicWatches,
        },
    },
    metrics::Metrics,
    names::SinkName,
    position::{Offset, Partition},
};
use prometheus_client::metrics::gauge::Gauge;
use rdkafka::{
    ClientConfig, Message, TopicPartitionList,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer},
    message::Headers,
    mocking::MockCluster,
    producer::{BaseProducer, BaseRecord, Producer},
    types::{RDKafkaApiKey, RDKafkaRespErr},
};

use super::{
    conformance::{self, Backend, PATIENCE, SourceEvents, append},
    dead_letters::letter,
    reader::{Reader, distinct},
};
use crate::support::{
    StopOnDrop, eventually,
    services::{Exclusive, services},
};

/// The value of a record that another program writes.
const HEADLESS: &[u8] = b"{\"type\":\"t\"}";

/// A topic of its own, and the turn on the broker.
pub struct Place {
    services: Exclusive,
    config: Config,
}

impl Place {
    /// A topic for the suites that every log passes.
    pub fn new() -> Option<Self> {
        let place = Self::named("log")?;
        place.prepare();
        Some(place)
    }

    fn named(name: &str) -> Option<Self> {
        let services = services()?;
        let mut config = conformance::config();
        config.queue.kind = QueueKind::Kafka;
        config.queue.kafka.brokers = services.kafka.address();
        config.queue.topic = format!("{name}-{}", uuid::Uuid::now_v7());
        config.queue.kafka.group = config.queue.topic.clone();
        Some(Self { services, config })
    }

    fn prepare(&self) {
        kafka::prepare(&self.config, true).unwrap();
    }
}

/// A source of this member.
fn member(config: &Config, instance: &str, budget: &ByteBudget, tell: SourceEvents) -> SourceHandle {
    let live = Arc::new(ArcSwap::from_pointee(config.clone()));
    let reader = SharedReader::new(SharedReads::default(), tell, budget.clone(), Gauge::default());
    kafka::source::spawn(live, SinkName::Archive, instance, &TopicWatches::default(), reader).unwrap()
}

fn read_as(config: &Config, instance: &str) -> Reader {
    Reader::of(|tell| member(config, instance, &ByteBudget::new(32 << 20, Gauge::default()), tell))
}

impl Backend for Place {
    fn config(&self) -> &Config {
        &self.config
    }

    fn appender(&self) -> Box<dyn Appender> {
        Box::new(appender(&self.config))
    }

    fn source(&self, budget: &ByteBudget, tell: SourceEvents) -> SourceHandle {
        member(&self.config, "one", budget, tell)
    }

    fn dead_letter_writer(&self) -> Arc<dyn DeadLetterWriter> {
        Arc::new(KafkaDeadLetters::new(&self.config))
    }

    fn quarantine(&self) -> Arc<dyn Quarantine> {
        Arc::new(KafkaDeadLetters::new(&self.config))
    }

    fn dead_letters(&self) -> Arc<dyn DeadLetters> {
        Arc::new(KafkaLetters::new(Arc::new(ArcSwap::from_pointee(self.config.clone()))))
    }
}

fn appender(config: &Config) -> KafkaAppender {
    KafkaAppender::new(config, Health::default(), Arc::new(Metrics::default())).unwrap()
}

#[test]
fn two_members_share_the_partitions_and_each_record_is_seen_once_beyond_the_committed_positions() {
    let Some(place) = Place::named("share") else { return };
    let (services, config) = (&place.services, &place.config);
    kafka::prepare(config, false).unwrap();
    let appender = appender(config);
    append(&appender, 0..400);
    let mut first = read_as(config, "one");
    first.read(400);
    first.command(SourceCommand::Commit(first.positions()));
    // What is confirmed is committed within a second, and the second member may be there before.
    let group = format!("{}-archive", config.queue.kafka.group);
    eventually("the positions are committed", PATIENCE, || {
        matches!(services.lag(&config.queue.topic, &group), Ok(0)).then_some(())
    });

    let mut second = read_as(config, "two");
    let deadline = Instant::now() + PATIENCE;
    while first.expected.len() != 2 || second.expected.len() != 2 {
        assert!(Instant::now() < deadline, "{:?} {:?}", first.expected, second.expected);
        drop(first.step(Duration::from_millis(10)));
        drop(second.step(Duration::from_millis(10)));
    }
    // The one that stays hears that it holds only a part.
    first.until(|first| first.assignments.last().is_some_and(|assignment| !assignment.holds_all));
    append(&appender, 400..1000);
    while first.seen.len() + second.seen.len() < 1000 {
        assert!(Instant::now() < deadline, "{} {}", first.seen.len(), second.seen.len());
        drop(first.step(Duration::from_millis(10)));
        drop(second.step(Duration::from_millis(10)));
    }
    let (positions_1, positions_2) = (first.positions(), second.positions());
    let mut seen = first.close(positions_1);
    let of_second = second.close(positions_2);
    assert!(!of_second.is_empty());
    seen.extend(of_second);
    assert_eq!((seen.len(), distinct(&seen)), (1000, 1000));
}

#[test]
fn one_source_reads_for_both_sinks_and_each_goes_on_alone_when_the_other_stops() {
    let Some(mut place) = Place::named("both") else { return };
    place.config.queue.kafka.partitions = 3;
    let config = &place.config;
    kafka::prepare(config, false).unwrap();
    let appender = appender(config);
    append(&appender, 0..1000);
    let (live, watches, reads) =
        (Arc::new(ArcSwap::from_pointee(config.clone())), TopicWatches::default(), SharedReads::default());
    let attached = Gauge::default();
    let mut sinks = [SinkName::Archive, SinkName::Aggregate].map(|sink| {
        Reader::of(|tell| {
            let budget = ByteBudget::new(32 << 20, Gauge::default());
            let reader = SharedReader::new(reads.clone(), tell, budget, attached.clone());
            kafka::source::spawn(live.clone(), sink, "one", &watches, reader).unwrap()
        })
    });
    let read = |sinks: &mut [Reader; 2], records: [usize; 2], shared: i64| {
        let deadline = Instant::now() + PATIENCE;
        while sinks[0].seen.len() < records[0] || sinks[1].seen.len() < records[1] || attached.get() != shared {
            let seen = sinks.each_ref().map(|sink| sink.seen.len());
            assert!(Instant::now() < deadline, "{seen:?} instead of {records:?}, {} shared", attached.get());
            sinks.iter_mut().for_each(|sink| drop(sink.step(Duration::from_millis(10))));
        }
    };
    // Both come to the end, and there one has all partitions read by the other, or each has some.
    read(&mut sinks, [1000, 1000], 3);
    append(&appender, 1000..2000);
    read(&mut sinks, [2000, 2000], 3);
    for (paused, other) in [(0, 1), (1, 0)] {
        let before = sinks[paused].seen.len();
        sinks[paused].command(SourceCommand::Pause);
        read(&mut sinks, [0, 0], 0);
        append(&appender, before..before + 1000);
        let mut wanted = [before; 2];
        wanted[other] += 1000;
        read(&mut sinks, wanted, 0);
        assert_eq!(sinks[paused].seen.len(), before);
        sinks[paused].command(SourceCommand::Resume);
        read(&mut sinks, [before + 1000; 2], 3);
    }
    // One begins anew a little before, and comes to the other's place again.
    let back = sinks[0].positions();
    for (partition, position) in back {
        sinks[0].begin(partition, Offset(position.0 - 100));
    }
    read(&mut sinks, [4300, 4000], 3);
    append(&appender, 4000..4500);
    read(&mut sinks, [4800, 4500], 3);
    for (sink, repeated) in sinks.into_iter().zip([300, 0]) {
        let positions = sink.positions();
        let seen = sink.close(positions);
        assert_eq!((seen.len(), distinct(&seen)), (4500 + repeated, 4500));
    }
    assert_eq!(attached.get(), 0);
}

#[test]
fn no_offset_is_passed_over_when_a_sink_begins_while_the_broker_hangs() {
    let Some(mut place) = Place::named("dense") else { return };
    place.config.queue.kafka.partitions = 1;
    let (services, config) = (&place.services, &place.config);
    kafka::prepare(config, false).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _done = StopOnDrop(&done);
        scope.spawn(|| {
            let producer: BaseProducer = client(config).create().unwrap();
            while !done.load(Ordering::Acquire) {
                producer.send(BaseRecord::<(), _>::to(&config.queue.topic).payload(HEADLESS)).unwrap();
                producer.poll(Duration::from_millis(5));
            }
            producer.flush(PATIENCE).unwrap();
        });
        let mut reader = read_as(config, "one");
        let assignment = loop {
            if let SourceEvent::Assigned(assignments) = reader.events.recv_timeout(PATIENCE).unwrap() {
                break assignments[0].clone();
            }
        };
        // Half a second after the assignment librdkafka asked again for a logical offset, if it was assigned at one; an
        // answer that came after the sink's beginning made it ask once more, and go there.
        std::thread::sleep(Duration::from_millis(300));
        services.kafka.freeze();
        std::thread::sleep(Duration::from_millis(400));
        reader.begin(Partition(0), assignment.log_start);
        std::thread::sleep(Duration::from_millis(100));
        services.kafka.thaw();
        let (mut records, deadline) = (0, Instant::now() + Duration::from_secs(4));
        while Instant::now() < deadline {
            if let Ok(SourceEvent::Batch(batch)) = reader.events.recv_timeout(Duration::from_millis(50)) {
                // Nobody writes transactions here: every offset has its record.
                records += batch.records.len() as u64;
                assert_eq!(records, batch.to.0, "a batch from {} to {}", batch.from, batch.to);
            }
        }
        assert!(records > 0);
        reader.close(Vec::new());
    });
}

#[test]
fn a_position_outside_the_log_is_announced_and_never_jumped() {
    let Some(mut place) = Place::named("range") else { return };
    place.config.queue.kafka.partitions = 2;
    let config = &place.config;
    kafka::prepare(config, false).unwrap();
    let appender = appender(config);
    append(&appender, 0..400);
    let mut reader = read_as(config, "one");
    reader.read(400);
    delete_records(config, &reader.positions());
    let ends: BTreeMap<_, _> = reader.positions().into_iter().collect();
    reader.assignments.clear();
    reader.begin(Partition(0), Offset(3));
    reader.until(|reader| !reader.assignments.is_empty());
    let announced = &reader.assignments[0];
    assert_eq!((announced.partition, announced.log_start), (Partition(0), ends[&Partition(0)]));
    // And goes on from where the sink begins after that.
    append(&appender, 400..500);
    reader.read(500);
    reader.close(Vec::new());
}

#[test]
fn a_partition_that_was_held_while_its_position_was_outside_the_log_goes_on_afterwards() {
    let Some(mut place) = Place::named("held") else { return };
    place.config.queue.kafka.partitions = 1;
    let config = &place.config;
    kafka::prepare(config, false).unwrap();
    let appender = appender(config);
    append(&appender, 0..100);
    let mut reader = read_as(config, "one");
    reader.read(100);
    delete_records(config, &reader.positions());
    let end = reader.expected[&Partition(0)].1;
    reader.begin(Partition(0), Offset(3));
    // librdkafka stops fetching at once; the comparison, a second later, finds the partition held.
    std::thread::sleep(Duration::from_millis(500));
    reader.command(SourceCommand::Hold(Partition(0)));
    let deadline = Instant::now() + Duration::from_secs(4);
    while Instant::now() < deadline {
        drop(reader.step(Duration::from_millis(100)));
    }
    reader.begin(Partition(0), end);
    append(&appender, 100..200);
    reader.read(200);
    reader.close(Vec::new());
}

#[test]
fn a_missing_right_on_the_group_stays_reported_while_the_brokers_answer() {
    let cluster = MockCluster::new(1).unwrap();
    let mut config = Config::default();
    config.queue.kafka.brokers = cluster.bootstrap_servers();
    cluster.create_topic(&config.queue.topic, 1, 1).unwrap();
    let denied = [RDKafkaRespErr::RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED; 1000];
    cluster.request_errors(RDKafkaApiKey::JoinGroup, &denied);
    let reader = read_as(&config, "one");
    // What was said last, after two lookups, which the brokers answer all the while.
    let mut last = None;
    let deadline = Instant::now() + Duration::from_secs(8);
    while Instant::now() < deadline {
        if let Ok(event @ (SourceEvent::Unavailable(_) | SourceEvent::Available)) =
            reader.events.recv_timeout(Duration::from_millis(100))
        {
            last = Some(event);
        }
    }
    assert!(
        matches!(&last, Some(SourceEvent::Unavailable(reason)) if reason.contains("right Read on the group")),
        "{last:?}"
    );
    reader.close(Vec::new());
}

#[test]
fn a_second_process_with_the_same_instance_fences_the_first() {
    let Some(place) = Place::named("fence") else { return };
    let config = &place.config;
    kafka::prepare(config, false).unwrap();
    let mut first = read_as(config, "one");
    first.until(|first| first.expected.len() == 4);
    let mut second = read_as(config, "one");
    second.until(|second| second.expected.len() == 4);
    let deadline = Instant::now() + PATIENCE;
    loop {
        assert!(Instant::now() < deadline, "the first was not fenced");
        match first.events.recv_timeout(PATIENCE) {
            Ok(SourceEvent::Fenced(_)) => break,
            event => drop(event.unwrap()),
        }
    }
    first.close(Vec::new());
    second.close(Vec::new());
}

#[test]
fn a_letter_that_no_broker_takes_is_kept_without_its_value_and_foreign_headers_say_nothing() {
    let Some(place) = Place::named("letters") else { return };
    let config = &place.config;
    place.prepare();
    let headers = [("ingestd-mark", "purged"), ("ingestd-reason", "mine"), ("id", "abc")];
    let headers = headers.map(|(name, value)| (name, Some(value.as_bytes())));
    let letter = letter(&place, 7, br#"{"type":"a","client_id":"c"}"#, &headers);
    // It must not stop the line.
    let value = Some(vec![b'x'; 16 << 20].into());
    let huge = DeadLetter { origin: Origin::Record(Offset(8)), value, ..letter.clone() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let writer = place.dead_letter_writer();
    runtime.block_on(async { writer.write(vec![letter.clone(), huge.clone(), letter.clone()]).await }).unwrap();
    // What was no record stands nowhere else: it is whole, or not there.
    let of_a_request = DeadLetter { origin: Origin::Request(uuid::Uuid::now_v7()), ..huge.clone() };
    let quarantine = place.quarantine();
    assert_eq!(runtime.block_on(async { quarantine.keep(vec![of_a_request]).await }).unwrap(), [0]);

    // As other programs find them: their keys send them to partitions of their own, which are read in any order.
    let topic = kafka::settings::dead_letter_topic(config);
    let consumer: BaseConsumer = client(config).create().unwrap();
    let mut partitions = TopicPartitionList::new();
    partitions.add_partition_range(&topic, 0, 3);
    partitions.set_all_offsets(rdkafka::Offset::Beginning).unwrap();
    consumer.assign(&partitions).unwrap();
    let mut found = BTreeMap::new();
    while found.len() < 2 {
        let message = consumer.poll(PATIENCE).expect("both letters are in the topic").unwrap().detach();
        found.entry(message.key().unwrap().to_vec()).or_insert(message);
    }
    let of = |letter: &DeadLetter, name: &str| {
        let headers = found[letter.id().as_bytes()].headers().unwrap().iter().filter(|header| header.key == name);
        headers.last().map(|header| header.value.unwrap().to_vec())
    };
    assert_eq!(found[letter.id().as_bytes()].payload(), letter.value.as_deref());
    assert_eq!(of(&letter, "id").as_deref(), Some(b"abc".as_slice()));
    assert_eq!(of(&letter, "ingestd-offset").as_deref(), Some(b"7".as_slice()));
    assert_eq!(of(&letter, "ingestd-record-key").as_deref(), Some(b"\xff".as_slice()));
    assert_eq!(found[huge.id().as_bytes()].payload(), None);
    assert_eq!(of(&huge, "ingestd-value-omitted").as_deref(), Some(b"16777216".as_slice()));

    let letters = place.dead_letters();
    let listed = letters.list(&Filter::default()).unwrap().dead_letters;
    let sizes: BTreeMap<_, _> = listed.iter().map(|one| (one.offset, (one.size, one.value_omitted))).collect();
    assert_eq!(sizes, BTreeMap::from([(Some(Offset(7)), (28, false)), (Some(Offset(8)), (16 << 20, true))]));
    let shown = letters.show(&letter.id()).unwrap();
    assert_eq!(&*shown.summary.reason, "missing_type");
    assert!(shown.headers.into_iter().map(|header| header.into_bytes().unwrap()).eq(letter.headers.clone()));
    let done = letters.replay(&Filter::default(), None).unwrap();
    assert_eq!((&done.replayed, &*done.refused[0].reason), (&vec![letter.id()], "value_omitted"));
    let corrected = letters.replay(&Filter::by_id(&huge.id()), Some(br#"{"type":"b"}"#)).unwrap();
    assert_eq!(corrected.replayed, [huge.id()]);

    // A position in a log without records, or beyond it, finds nothing.
    let source =
        |partition| Source { topic: config.queue.topic.clone(), generation: 0, partition: Partition(partition) };
    for (partition, from) in [(3, 0), (0, 1 << 40)] {
        let known = runtime.block_on(async { writer.known(source(partition), Offset(from)).await }).unwrap();
        assert_eq!(known, BTreeSet::new());
    }
}

#[test]
fn a_topic_that_cannot_keep_the_promises_is_refused() {
    let Some(mut place) = Place::named("refuse") else { return };
    let config = &mut place.config;
    let refusal = |config: &Config| match kafka::prepare(config, false) {
        Err(TopicError::Refused(reason)) => reason,
        other => panic!("{other:?}"),
    };
    config.queue.kafka.create_topic = false;
    assert!(refusal(config).contains("create_topic"));
    assert!(kafka::check(config, false).is_err());

    let name = config.queue.topic.clone();
    for (suffix, key, value) in [("small", "max.message.bytes", "100000"), ("compact", "cleanup.policy", "compact")] {
        config.queue.topic = format!("{name}-{suffix}");
        let topic = config.queue.topic.clone();
        create(
            config,
            &NewTopic::new(&topic, 1, TopicReplication::Fixed(1)).set(key, value).set("segment.ms", "60000"),
        );
        // A topic is known to the brokers a moment after its creation.
        let deadline = Instant::now() + PATIENCE;
        while !refusal(config).contains(key) {
            assert!(Instant::now() < deadline, "{}", refusal(config));
        }
    }

    config.queue.kafka.brokers = "127.0.0.1:1".to_owned();
    assert!(matches!(kafka::prepare(config, false), Err(TopicError::Unreachable { .. })));
}

fn client(config: &Config) -> ClientConfig {
    let mut client = ClientConfig::new();
    client.set("bootstrap.servers", &config.queue.kafka.brokers).set("group.id", "test");
    client.set("allow.auto.create.topics", "false");
    client
}

fn admin(config: &Config) -> (AdminClient<DefaultClientContext>, tokio::runtime::Runtime) {
    let mut settings = ClientConfig::new();
    settings.set("bootstrap.servers", &config.queue.kafka.brokers).set("allow.auto.create.topics", "false");
    (settings.create().unwrap(), tokio::runtime::Builder::new_current_thread().build().unwrap())
}

fn create(config: &Config, topic: &NewTopic<'_>) {
    let (admin, runtime) = admin(config);
    runtime.block_on(admin.create_topics([topic], &AdminOptions::new())).unwrap()[0].as_ref().unwrap();
}

fn delete_records(config: &Config, before: &[(Partition, Offset)]) {
    let (admin, runtime) = admin(config);
    let mut list = TopicPartitionList::new();
    for (partition, offset) in before {
        list.add_partition_offset(&config.queue.topic, partition.0, rdkafka::Offset::Offset(offset.as_i64())).unwrap();
    }
    runtime.block_on(admin.delete_records(&list, &AdminOptions::new())).unwrap();
}
