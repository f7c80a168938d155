use std::time::Duration;

use bytes::Bytes;
use crossbeam_channel::{Sender, unbounded};
use prometheus_client::metrics::counter::Counter;
use rdkafka::{
    mocking::MockCluster,
    producer::{BaseRecord, DefaultProducerContext},
    types::{RDKafkaApiKey, RDKafkaRespErr},
};

use super::*;
use crate::{
    log::{Delivery, NewRecord, Part, Span},
    position::Timestamp,
};

type Cluster = MockCluster<'static, rdkafka::producer::DefaultProducerContext>;

fn publish(sizes: &[usize]) -> (Publish, tokio::sync::oneshot::Receiver<Delivery>) {
    let (ticket, reply) = Ticket::new(sizes.len(), Counter::default());
    let mut events = Vec::new();
    let mut start = 0;
    for size in sizes {
        let value = Span { start, end: start + *size as u32 };
        start = value.end;
        let (value, assigned_id) = (Part::InBody(value), Some(uuid::Uuid::now_v7()));
        events.push(NewRecord { value, key: None, headers: None, assigned_id });
    }
    let body = Bytes::from(vec![b'x'; start as usize]);
    (Publish { body, aside: Bytes::new(), events, received: Timestamp::now(), ticket }, reply)
}

fn appender(cluster: &Cluster, request_timeout: Duration) -> KafkaAppender {
    let mut config = Config::default();
    config.queue.kafka.brokers = cluster.bootstrap_servers();
    config.http.request_timeout = request_timeout;
    KafkaAppender::new(&config, Health::default(), Arc::new(Metrics::default())).unwrap()
}

fn deliver(appender: &KafkaAppender, sizes: &[usize]) -> Delivery {
    let (publish, reply) = publish(sizes);
    assert!(appender.append(publish, 0).is_ok());
    reply.blocking_recv().unwrap()
}

#[test]
fn a_record_refused_for_its_size_here_or_by_the_broker_is_that_events_error() {
    let cluster = MockCluster::new(1).unwrap();
    cluster.create_topic("events", 1, 1).unwrap();
    let appender = appender(&cluster, Duration::from_secs(20));
    let delivery = deliver(&appender, &[10, 2 << 20, 10]);
    assert_eq!(delivery, Delivery { too_large: vec![1], durable: 2, ..Delivery::default() });
    cluster.request_errors(RDKafkaApiKey::Produce, &[RDKafkaRespErr::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE]);
    assert_eq!(deliver(&appender, &[10]).too_large, [0]);
}

#[test]
fn a_producer_that_failed_for_good_is_replaced() {
    let cluster = MockCluster::new(1).unwrap();
    cluster.create_topic("events", 1, 1).unwrap();
    let appender = appender(&cluster, Duration::from_secs(20));
    assert_eq!(deliver(&appender, &[10]).durable, 1);
    // As after an unclean election, when the new leader has not seen the producer's last batches.
    let lost = RDKafkaRespErr::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER;
    cluster.request_errors(RDKafkaApiKey::Produce, &[lost]);
    assert!(deliver(&appender, &[10]).unavailable.is_some());
    let deadline = Instant::now() + Duration::from_secs(30);
    while deliver(&appender, &[10]).durable == 0 {
        assert!(Instant::now() < deadline, "nothing is written any more");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn an_event_goes_where_its_key_belongs_or_is_refused_and_one_without_a_key_goes_elsewhere() {
    let of = |partition: usize| (partition, "no leader".to_owned());
    let belongs = partition_of_key(b"client-1", 4);
    let others: Vec<usize> = (0..4).filter(|partition| *partition != belongs).collect();
    let topic = Writability { partitions: 4, unwritable: [of(belongs)].into() };
    let refused = place(&topic, Some(b"client-1")).unwrap_err();
    assert!(refused.contains(&format!("partition {belongs}: no leader")), "{refused}");
    let topic = Writability { partitions: 4, unwritable: others.into_iter().map(of).collect() };
    assert_eq!(place(&topic, Some(b"client-1")), Ok(None));
    assert_eq!(place(&topic, None), Ok(Some(belongs as i32)));
    let topic = Writability { partitions: 4, unwritable: (0..4).map(of).collect() };
    assert!(place(&topic, None).is_err());
}

#[test]
fn where_each_event_has_its_own_answer_one_for_a_partition_that_takes_nothing_keeps_no_other_back() {
    let cluster = MockCluster::new(1).unwrap();
    cluster.create_topic("events", 4, 1).unwrap();
    let appender = appender(&cluster, Duration::from_secs(20));
    assert_eq!(deliver(&appender, &[10]).durable, 1);
    let letters = b"abcdefghijklmnopqrstuvwxyz";
    let of = |at: usize| partition_of_key(&letters[at..=at], 4);
    let other = (1..letters.len()).find(|at| of(*at) != of(0)).unwrap();
    let request = |new: fn(usize, Counter) -> (Arc<Ticket>, tokio::sync::oneshot::Receiver<Delivery>)| {
        let (ticket, reply) = new(2, Counter::default());
        let record = |at: usize| {
            let span = Span { start: at as u32, end: at as u32 + 1 };
            NewRecord { value: Part::InBody(span), key: Some(Part::InBody(span)), headers: None, assigned_id: None }
        };
        let events = vec![record(0), record(other)];
        let (body, aside) = (Bytes::from_static(letters), Bytes::new());
        // As long as the probe has not looked again.
        let unwritable = [(of(0), "no leader".to_owned())].into();
        appender.brokers.sees(Writability { partitions: 4, unwritable });
        assert!(appender.append(Publish { body, aside, events, received: Timestamp::now(), ticket }, 0).is_ok());
        reply.blocking_recv().unwrap()
    };
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        assert!(Instant::now() < deadline, "the probe is always faster");
        let (whole, each) = (request(Ticket::new), request(Ticket::of_each));
        if (whole.durable, each.durable) != (0, 1) {
            continue;
        }
        assert!(whole.refused.is_some() && whole.unavailable.is_none(), "{whole:?}");
        assert_eq!((each.failed.len(), &each.failed[0].events, each.failed[0].may_be_stored), (1, &(0..1), false));
        assert!(each.failed[0].reason.contains("no leader"), "{each:?}");
        return;
    }
}

#[test]
fn brokers_that_go_away_close_the_door_and_open_it_when_they_are_back() {
    let cluster = MockCluster::new(1).unwrap();
    cluster.create_topic("events", 1, 1).unwrap();
    let appender = appender(&cluster, Duration::from_secs(4));
    assert_eq!(deliver(&appender, &[10]).durable, 1);
    cluster.broker_down(1).unwrap();
    let delivery = deliver(&appender, &[10]);
    assert!(delivery.unavailable.is_some(), "{delivery:?}");
    assert!(appender.brokers.is_away());
    cluster.broker_up(1).unwrap();
    // Each event waits for the connection as long as a request would.
    let deadline = Instant::now() + Duration::from_secs(30);
    while deliver(&appender, &[10]).durable == 0 {
        assert!(Instant::now() < deadline, "the broker is back and takes nothing");
    }
    assert!(!appender.brokers.is_away());
}

struct Told(Sender<usize>);

impl Role for Told {}

impl Deliveries for Told {
    type Sent = Box<usize>;

    fn delivered(&self, _: &DeliveryResult<'_>, number: Box<usize>) {
        self.0.send(*number).unwrap();
        assert_ne!(*number, 0, "the first one, on purpose");
    }
}

#[test]
fn a_panic_over_one_record_leaves_later_ones_their_answers() {
    let cluster: MockCluster<'_, DefaultProducerContext> = MockCluster::new(1).unwrap();
    cluster.create_topic("events", 1, 1).unwrap();
    let mut settings = ClientConfig::new();
    settings.set("bootstrap.servers", cluster.bootstrap_servers());
    // Both in one batch, so that both are told at once.
    settings.set("linger.ms", "500");
    let (told, answers) = unbounded();
    let producer = PolledProducer::start(&settings, Told(told)).unwrap();
    for number in 0..2 {
        let record = BaseRecord::<(), [u8], _>::with_opaque_to("events", Box::new(number)).payload(b"{}".as_slice());
        assert!(producer.client.send(record).is_ok());
    }
    for number in 0..2 {
        assert_eq!(answers.recv_timeout(Duration::from_secs(30)), Ok(number));
    }
}

#[test]
fn keys_are_placed_as_kafkas_own_clients_place_them() {
    // The cases of Kafka's own UtilsTest.
    for (text, hash) in [
        ("21", -973_932_308),
        ("foobar", -790_332_482),
        ("a-little-bit-long-string", -985_981_536),
        ("a-little-bit-longer-string", -1_486_304_829),
        ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
        ("abc", 479_470_107),
    ] {
        assert_eq!(murmur2(text.as_bytes()) as i32, hash, "{text}");
    }
    assert_eq!(partition_of_key(b"abc", 7), 479_470_107 % 7);
}

#[test]
fn a_run_of_acknowledgements_is_heard_of_again_and_again() {
    let heard = Heard::default();
    let news = |piece, partition, indexes: std::ops::Range<usize>, bytes| {
        indexes.filter(|index| heard.is_news(piece, partition, *index, bytes)).collect::<Vec<_>>()
    };
    // The first of a run, and some of a long one.
    assert_eq!(news(1, 0, 5..100, 300), [5, 32, 64, 96]);
    // Of another partition, and of another request.
    assert_eq!(news(1, 1, 100..102, 300), [100]);
    assert_eq!(news(2, 1, 1..3, 300), [1]);
    // A few large ones are a batch each.
    assert_eq!(news(2, 1, 3..6, 1 << 20), [3, 4, 5]);
}
