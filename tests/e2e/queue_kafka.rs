//! The Kafka queue against a real broker, behind its seam. Each test makes a topic and groups of its own.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use crossbeam_channel::{Receiver, unbounded};
use ingestd::internals::{
    config::Config,
    health::Health,
    log::{
        Appender, Assignment, Batch, ByteBudget, Delivery, Epoch, Key, NewRecord, Publish, SourceCommand, SourceEvent,
        SourceHandle, Span, Ticket,
        dead_letters::{DeadLetter, DeadLetterWriter, DeadLetters, Filter, Source},
        kafka::{self, KafkaAppender, KafkaDeadLetters, KafkaLetters, TopicError, TopicWatches},
    },
    metrics::Metrics,
    names::SinkName,
    position::{Offset, Partition, Timestamp, TopicIdentity},
};
use prometheus_client::metrics::{counter::Counter, gauge::Gauge};
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

use crate::support::{
    StopOnDrop, eventually,
    services::{Exclusive, services},
};

const PATIENCE: Duration = Duration::from_secs(30);

/// The value of a record that another program writes.
const HEADLESS: &[u8] = b"{\"type\":\"t\"}";

/// A configuration with a topic of its own, and the turn on the broker.
fn config(name: &str) -> Option<(Exclusive, Config)> {
    let services = services()?;
    let mut config = Config::default();
    config.queue.kafka.brokers = services.kafka.address();
    config.queue.topic = format!("{name}-{}", uuid::Uuid::now_v7());
    config.queue.kafka.group = config.queue.topic.clone();
    config.batch.max_records = 50;
    config.batch.max_wait = Duration::from_millis(50);
    Some((services, config))
}

fn append(appender: &KafkaAppender, range: std::ops::Range<usize>) -> Delivery {
    let (ticket, reply) = Ticket::new(range.len(), Counter::default());
    let mut body = Vec::new();
    let mut events = Vec::new();
    for number in range {
        let start = body.len() as u32;
        body.extend_from_slice(format!("{{\"type\":\"t\",\"n\":{number}}}").as_bytes());
        let value = Span { start, end: body.len() as u32 };
        let key = Key::InBody(Span { start: value.end - 2, end: value.end - 1 });
        events.push(NewRecord { value, key: Some(key), assigned_id: Some(uuid::Uuid::now_v7()) });
    }
    let publish = Publish { body: body.into(), unescaped: Bytes::new(), events, received: Timestamp::now(), ticket };
    let (mut publish, mut from) = (Some(publish), 0);
    while let Err(full) = appender.append(publish.take().unwrap(), from) {
        (publish, from) = (Some(full.publish), full.next);
        std::thread::sleep(Duration::from_millis(2));
    }
    reply.blocking_recv().unwrap()
}

fn appender(config: &Config) -> KafkaAppender {
    KafkaAppender::new(config, Health::default(), Arc::new(Metrics::default())).unwrap()
}

/// A sink that begins where the group stands and takes what comes, checking the queue's invariant.
struct Reader {
    source: SourceHandle,
    events: Receiver<SourceEvent>,
    expected: BTreeMap<Partition, (Epoch, Offset)>,
    assignments: Vec<Assignment>,
    seen: Vec<(Partition, Offset, String)>,
}

impl Reader {
    fn start(config: &Config, instance: &str, budget: &ByteBudget) -> Self {
        let (sender, events) = unbounded();
        let live = Arc::new(ArcSwap::from_pointee(config.clone()));
        let tell = Box::new(move |event| drop(sender.send(event)));
        let source =
            kafka::source::spawn(live, SinkName::Archive, instance, &TopicWatches::default(), budget.clone(), tell)
                .unwrap();
        Self { source, events, expected: BTreeMap::new(), assignments: Vec::new(), seen: Vec::new() }
    }

    fn command(&self, command: SourceCommand) {
        self.source.commands.send(command).unwrap();
    }

    fn begin(&mut self, partition: Partition, at: Offset) {
        let epoch = Epoch::fresh();
        self.expected.insert(partition, (epoch, at));
        self.command(SourceCommand::Begin { partition, epoch, at });
    }

    /// Handles one event; returns the batch, when it was one of the current epoch.
    fn step(&mut self, wait: Duration) -> Option<Batch> {
        match self.events.recv_timeout(wait).ok()? {
            SourceEvent::Assigned(assignments) => {
                for assignment in assignments {
                    self.begin(assignment.partition, assignment.committed.unwrap_or(assignment.log_start));
                    self.assignments.push(assignment);
                }
            }
            SourceEvent::Revoked(partitions) => {
                for partition in partitions {
                    self.expected.remove(&partition);
                }
            }
            SourceEvent::Batch(batch) => {
                let (epoch, from) = self.expected.get_mut(&batch.partition)?;
                if *epoch != batch.epoch {
                    return None;
                }
                assert_eq!(*from, batch.from, "batches of {} are contiguous", batch.partition);
                *from = batch.to;
                for record in batch.records.iter() {
                    assert!(batch.from <= record.offset && record.offset < batch.to);
                    assert!(record.headers.id().is_some());
                    let value = String::from_utf8(record.value.unwrap().to_vec()).unwrap();
                    self.seen.push((batch.partition, record.offset, value));
                }
                return Some(batch);
            }
            SourceEvent::LogEnd(..) | SourceEvent::EmptyTail { .. } | SourceEvent::Available => {}
            SourceEvent::Unavailable(reason) => eprintln!("unavailable: {reason}"),
            SourceEvent::Fenced(reason) | SourceEvent::Failed(reason) => panic!("{reason}"),
        }
        None
    }

    /// Steps until so many records were seen.
    fn read(&mut self, records: usize) {
        self.until(|reader| reader.seen.len() >= records);
    }

    fn until(&mut self, done: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !done(self) {
            assert!(Instant::now() < deadline, "{} records, expected {:?}", self.seen.len(), self.expected);
            drop(self.step(Duration::from_millis(100)));
        }
    }

    fn positions(&self) -> Vec<(Partition, Offset)> {
        self.expected.iter().map(|(partition, (_, position))| (*partition, *position)).collect()
    }

    fn close(self, positions: Vec<(Partition, Offset)>) -> Vec<(Partition, Offset, String)> {
        self.command(SourceCommand::Close(positions));
        let _ = self.source.thread.join().unwrap();
        self.seen
    }
}

fn distinct(seen: &[(Partition, Offset, String)]) -> usize {
    seen.iter().map(|(_, _, value)| value).collect::<BTreeSet<_>>().len()
}

#[test]
fn a_restarted_source_goes_on_at_the_committed_positions() {
    let Some((_turn, config)) = config("restart") else { return };
    let ready = kafka::prepare(&config, true).unwrap();
    assert!(ready.created && ready.partitions == 4, "{ready:?}");
    assert_ne!(&*ready.identity.0, TopicIdentity::UNAVAILABLE);
    assert!(!kafka::prepare(&config, true).unwrap().created);
    let appender = appender(&config);
    let budget = ByteBudget::new(32 << 20, Gauge::default());

    assert_eq!(append(&appender, 0..500).durable, 500);
    let mut first = Reader::start(&config, "one", &budget);
    first.read(500);
    assert_eq!(first.seen.len(), 500);
    assert!(first.assignments.iter().all(|assignment| assignment.committed.is_none() && assignment.holds_all));
    assert!(first.assignments.iter().all(|assignment| assignment.identity == ready.identity));
    let positions = first.positions();
    first.close(positions);

    assert_eq!(append(&appender, 500..700).durable, 200);
    let mut second = Reader::start(&config, "one", &budget);
    let restarted = Instant::now();
    second.read(200);
    assert!(restarted.elapsed() < Duration::from_secs(8), "a static member has its partitions back at once");
    let seen = second.close(Vec::new());
    assert_eq!((seen.len(), distinct(&seen)), (200, 200));
    assert!(appender.flush(Duration::from_secs(5)).is_ok());
}

#[test]
fn neither_pauses_nor_seeks_nor_a_spent_budget_lose_or_repeat_a_record() {
    let Some((_turn, config)) = config("pauses") else { return };
    kafka::prepare(&config, false).unwrap();
    let appender = appender(&config);
    assert_eq!(append(&appender, 0..6000).durable, 6000);
    // One batch at a time.
    let budget = ByteBudget::new(1, Gauge::default());
    let mut reader = Reader::start(&config, "one", &budget);
    let deadline = Instant::now() + PATIENCE;
    let (mut batches, mut sought) = (0, 0);
    while reader.seen.len() < 6000 + sought {
        assert!(Instant::now() < deadline, "{} records", reader.seen.len());
        let Some(batch) = reader.step(Duration::from_millis(100)) else { continue };
        batches += 1;
        match batches % 40 {
            10 => {
                reader.command(SourceCommand::Pause);
                std::thread::sleep(Duration::from_millis(100));
                reader.command(SourceCommand::Resume);
            }
            // Long enough for the source to park.
            20 => std::thread::sleep(Duration::from_millis(1200)),
            30 => {
                sought += batch.records.len();
                let (partition, at) = (batch.partition, batch.from);
                reader.begin(partition, at);
            }
            _ => {}
        }
    }
    let seen = reader.close(Vec::new());
    assert!(sought > 0);
    assert_eq!((seen.len(), distinct(&seen)), (6000 + sought, 6000));
}

#[test]
fn two_members_share_the_partitions_and_each_record_is_seen_once_beyond_the_committed_positions() {
    let Some((services, config)) = config("share") else { return };
    kafka::prepare(&config, false).unwrap();
    let appender = appender(&config);
    append(&appender, 0..400);
    let budget = ByteBudget::new(32 << 20, Gauge::default());
    let mut first = Reader::start(&config, "one", &budget);
    first.read(400);
    first.command(SourceCommand::Commit(first.positions()));
    // What is confirmed is committed within a second, and the second member may be there before.
    let group = format!("{}-archive", config.queue.kafka.group);
    eventually("the positions are committed", PATIENCE, || {
        matches!(services.lag(&config.queue.topic, &group), Ok(0)).then_some(())
    });

    let mut second = Reader::start(&config, "two", &budget);
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
fn no_offset_is_passed_over_when_a_sink_begins_while_the_broker_hangs() {
    let Some((services, mut config)) = config("dense") else { return };
    config.queue.kafka.partitions = 1;
    kafka::prepare(&config, false).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _done = StopOnDrop(&done);
        scope.spawn(|| {
            let producer: BaseProducer = client(&config).create().unwrap();
            while !done.load(Ordering::Acquire) {
                producer.send(BaseRecord::<(), _>::to(&config.queue.topic).payload(HEADLESS)).unwrap();
                producer.poll(Duration::from_millis(5));
            }
            producer.flush(PATIENCE).unwrap();
        });
        let mut reader = Reader::start(&config, "one", &ByteBudget::new(32 << 20, Gauge::default()));
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
    let Some((_turn, mut config)) = config("range") else { return };
    config.queue.kafka.partitions = 2;
    kafka::prepare(&config, false).unwrap();
    let appender = appender(&config);
    append(&appender, 0..400);
    let mut reader = Reader::start(&config, "one", &ByteBudget::new(32 << 20, Gauge::default()));
    reader.read(400);
    delete_records(&config, &reader.positions());
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
    let Some((_turn, mut config)) = config("held") else { return };
    config.queue.kafka.partitions = 1;
    kafka::prepare(&config, false).unwrap();
    let appender = appender(&config);
    append(&appender, 0..100);
    let mut reader = Reader::start(&config, "one", &ByteBudget::new(32 << 20, Gauge::default()));
    reader.read(100);
    delete_records(&config, &reader.positions());
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
    let reader = Reader::start(&config, "one", &ByteBudget::new(1 << 20, Gauge::default()));
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
    let Some((_turn, config)) = config("fence") else { return };
    kafka::prepare(&config, false).unwrap();
    let budget = ByteBudget::new(1 << 20, Gauge::default());
    let mut first = Reader::start(&config, "one", &budget);
    first.until(|first| first.expected.len() == 4);
    let mut second = Reader::start(&config, "one", &budget);
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
fn a_dead_letter_keeps_the_record_and_says_why() {
    let Some((_turn, config)) = config("dead") else { return };
    kafka::prepare(&config, true).unwrap();
    let letter = DeadLetter {
        topic: config.queue.topic.clone(),
        generation: 0,
        partition: Partition(1),
        offset: Offset(7),
        received: Timestamp(1000),
        reason: "invalid_json".to_owned(),
        message: "expected value at line 1".to_owned(),
        time: Timestamp::now(),
        key: Some(b"key".to_vec()),
        value: Some(b"not json".to_vec()),
        headers: vec![("id".to_owned(), Some(b"abc".to_vec()))],
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let writer = KafkaDeadLetters::new(&config);
    // One that no broker takes must not stop the line: it is kept without its value.
    let huge = DeadLetter { offset: Offset(8), value: Some(vec![b'x'; 16 << 20]), ..letter.clone() };
    runtime.block_on(async { writer.write(vec![letter.clone(), letter.clone(), huge.clone()]).await }).unwrap();

    let topic = kafka::settings::dead_letter_topic(&config);
    let consumer: BaseConsumer = client(&config).create().unwrap();
    let mut partitions = TopicPartitionList::new();
    partitions.add_partition_range(&topic, 0, 3);
    partitions.set_all_offsets(rdkafka::Offset::Beginning).unwrap();
    consumer.assign(&partitions).unwrap();
    // Their keys send them to partitions of their own, which are read in any order.
    let mut found = BTreeMap::new();
    while found.len() < 2 {
        let message = consumer.poll(PATIENCE).expect("both letters are in the topic").unwrap().detach();
        found.entry(message.key().unwrap().to_vec()).or_insert(message);
    }
    let message = &found[letter.id().as_bytes()];
    assert_eq!(message.payload(), letter.value.as_deref());
    let headers: BTreeMap<_, _> =
        message.headers().unwrap().iter().map(|header| (header.key, header.value.unwrap())).collect();
    assert_eq!(headers["id"], b"abc");
    assert_eq!(headers["ingestd-reason"], b"invalid_json");
    assert_eq!(headers["ingestd-offset"], b"7");
    assert_eq!(headers["ingestd-key"], b"key");
    let omitted = &found[huge.id().as_bytes()];
    assert_eq!(omitted.payload(), None);
    let size = omitted.headers().unwrap().iter().find(|header| header.key == "ingestd-value-omitted").unwrap();
    assert_eq!(size.value, Some(b"16777216".as_slice()));
}

#[test]
fn a_letter_on_kafka_is_listed_replayed_and_known_whatever_its_own_headers_say() {
    let Some((_turn, config)) = config("letters") else { return };
    kafka::prepare(&config, true).unwrap();
    let headers = [("ingestd-mark", "purged"), ("ingestd-reason", "mine"), ("id", "abc")];
    let headers = headers.map(|(name, value)| (name.to_owned(), Some(value.as_bytes().to_vec())));
    let letter = DeadLetter {
        topic: config.queue.topic.clone(),
        generation: 0,
        partition: Partition(1),
        offset: Offset(7),
        received: Timestamp::now(),
        reason: "missing_type".to_owned(),
        message: "no type".to_owned(),
        time: Timestamp::now(),
        key: Some(b"\xff".to_vec()),
        value: Some(br#"{"type":"a","client_id":"c"}"#.to_vec()),
        headers: headers.to_vec(),
    };
    let huge = DeadLetter { offset: Offset(8), value: Some(vec![b'x'; 16 << 20]), ..letter.clone() };
    let writer = KafkaDeadLetters::new(&config);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    // Written twice, it is one letter.
    let all = vec![letter.clone(), huge.clone(), letter.clone()];
    runtime.block_on(async { writer.write(all).await }).unwrap();

    let letters = KafkaLetters::new(Arc::new(ArcSwap::from_pointee(config.clone())));
    let listed = letters.list(&Filter::default()).unwrap().dead_letters;
    let sizes: BTreeMap<_, _> = listed.iter().map(|one| (one.offset, (one.size, one.value_omitted))).collect();
    assert_eq!(sizes, BTreeMap::from([(Offset(7), (28, false)), (Offset(8), (16 << 20, true))]));
    let shown = letters.show(&letter.id()).unwrap();
    assert_eq!((&*shown.summary.reason, shown.key_base64.as_deref()), ("missing_type", Some("/w==")));
    let own = shown.headers.into_iter().map(|header| header.into_bytes().unwrap());
    assert!(own.eq(headers), "the record's own headers");

    let done = letters.replay(&Filter::default(), None).unwrap();
    assert_eq!((&done.replayed, &*done.refused[0].reason), (&vec![letter.id()], "value_omitted"));
    let corrected = letters.replay(&Filter::by_id(&huge.id()), Some(br#"{"type":"b"}"#)).unwrap();
    assert_eq!(corrected.replayed, [huge.id()]);
    // Written again after a crash, it stays what it is.
    runtime.block_on(async { writer.write(vec![letter.clone()]).await }).unwrap();
    let again = letters.replay(&Filter { all: true, ..Filter::by_id(&letter.id()) }, None).unwrap();
    assert_eq!((again.replayed.len(), &again.already), (0, &vec![letter.id()]));
    assert_eq!(letters.list(&Filter::default()).unwrap().dead_letters, []);

    let mut reader = Reader::start(&config, "one", &ByteBudget::new(32 << 20, Gauge::default()));
    reader.read(2);
    let mut values: Vec<_> = reader.close(Vec::new()).into_iter().map(|(_, _, value)| value).collect();
    values.sort();
    assert_eq!(values, [r#"{"type":"a","client_id":"c"}"#, r#"{"type":"b"}"#]);

    // What stands beside them in the log is asked for, and a position in a log without records finds nothing.
    let source = |partition| Source { topic: config.queue.topic.clone(), generation: 0, partition };
    let known =
        |partition, from| runtime.block_on(async { writer.known(source(partition), Offset(from)).await }).unwrap();
    for partition in 0..4 {
        append_until_in(&config, Partition(partition));
    }
    assert_eq!(known(Partition(1), 0), BTreeSet::from([Offset(7), Offset(8)]));
    assert_eq!(known(Partition(2), 0), BTreeSet::new());
    assert_eq!(known(Partition(1), 1 << 40), BTreeSet::new());
}

/// Appends until the partition has a record.
fn append_until_in(config: &Config, partition: Partition) {
    let consumer: BaseConsumer = client(config).create().unwrap();
    let appender = appender(config);
    let deadline = Instant::now() + PATIENCE;
    let mut number = 100;
    while consumer.fetch_watermarks(&config.queue.topic, partition.0, PATIENCE).unwrap().1 == 0 {
        assert!(Instant::now() < deadline, "partition {partition} stays empty");
        assert_eq!(append(&appender, number..number + 10).durable, 10);
        number += 10;
    }
}

#[test]
fn a_topic_that_cannot_keep_the_promises_is_refused() {
    let Some((_turn, mut config)) = config("refuse") else { return };
    let refusal = |config: &Config| match kafka::prepare(config, false) {
        Err(TopicError::Refused(reason)) => reason,
        other => panic!("{other:?}"),
    };
    config.queue.kafka.create_topic = false;
    assert!(refusal(&config).contains("create_topic"));
    assert!(kafka::check(&config, false).is_err());

    let name = config.queue.topic.clone();
    for (suffix, key, value) in [("small", "max.message.bytes", "100000"), ("compact", "cleanup.policy", "compact")] {
        config.queue.topic = format!("{name}-{suffix}");
        let topic = config.queue.topic.clone();
        create(
            &config,
            &NewTopic::new(&topic, 1, TopicReplication::Fixed(1)).set(key, value).set("segment.ms", "60000"),
        );
        // A topic is known to the brokers a moment after its creation.
        let deadline = Instant::now() + PATIENCE;
        while !refusal(&config).contains(key) {
            assert!(Instant::now() < deadline, "{}", refusal(&config));
        }
    }

    config.queue.kafka.brokers = "127.0.0.1:1".to_owned();
    assert!(matches!(kafka::prepare(&config, false), Err(TopicError::Unreachable { .. })));
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
