use prometheus_client::metrics::gauge::Gauge;
use rdkafka::{
    ClientConfig,
    config::FromClientConfigAndContext,
    consumer::BaseConsumer,
    mocking::MockCluster,
    producer::{BaseProducer, BaseRecord, DefaultProducerContext, Producer},
    types::{RDKafkaApiKey, RDKafkaRespErr},
};

use super::*;
use crate::log::{
    ByteBudget,
    kafka::{client::Context, group::Group, shared::SharedReads},
};

fn push(delivery: &mut Delivery, offset: u64) {
    delivery.push(Offset(offset), Timestamp(0), None, Some(b"{}"), []);
}

fn cut(delivery: &mut Delivery) -> (u64, u64, Vec<u64>) {
    let batch = delivery.cut(Partition(0), ByteBudget::new(1, Gauge::default()).try_take(1).unwrap());
    (batch.from.0, batch.to.0, batch.records.iter().map(|record| record.offset.0).collect())
}

#[test]
fn batches_are_contiguous_over_offsets_without_records_and_records_that_come_twice() {
    let mut delivery = Delivery::new(Epoch::fresh(), Offset(5));
    for offset in [3, 4, 7, 7, 8] {
        push(&mut delivery, offset);
    }
    assert_eq!(cut(&mut delivery), (5, 9, vec![7, 8]));
    for offset in [8, 12] {
        push(&mut delivery, offset);
    }
    assert_eq!(cut(&mut delivery), (9, 13, vec![12]));
}

#[test]
fn a_batch_is_due_when_it_is_full_or_has_waited() {
    let limits = BatchConfig { max_records: 2, ..BatchConfig::default() };
    let mut delivery = Delivery::new(Epoch::fresh(), Offset(0));
    let now = Instant::now();
    assert_eq!(delivery.due_in(&limits, now), None);
    push(&mut delivery, 0);
    assert!(delivery.due_in(&limits, now).unwrap() > Duration::ZERO);
    assert_eq!(delivery.due_in(&limits, now + limits.max_wait + Duration::from_secs(1)), Some(Duration::ZERO));
    push(&mut delivery, 1);
    assert_eq!(delivery.due_in(&limits, now), Some(Duration::ZERO));
}

#[test]
fn librdkafka_is_not_to_blame_for_what_it_does_not_begin_while_brokers_are_away() {
    let now = Instant::now();
    let later = now + REFUSED;
    assert_eq!(refused_since(None, true, now), Some(now));
    assert_eq!(refused_since(Some(now), true, later), Some(now));
    assert_eq!(refused_since(Some(now), false, later), None);
    assert_eq!(refused_since(None, true, later), Some(later), "it has as long again when they are back");
}

/// A source's partitions on librdkafka's own mock of a broker, and who writes there.
struct Mock {
    cluster: MockCluster<'static, DefaultProducerContext>,
    producer: BaseProducer,
    partitions: Partitions,
}

const TOPIC: &str = "events";
const P: Partition = Partition(0);

impl Mock {
    fn new() -> Self {
        let cluster = MockCluster::new(1).unwrap();
        cluster.create_topic(TOPIC, 1, 1).unwrap();
        let mut settings = ClientConfig::new();
        settings.set("bootstrap.servers", cluster.bootstrap_servers());
        let producer = settings.create().unwrap();
        settings.set("group.id", "g").set("enable.auto.commit", "false").set("auto.offset.reset", "error");
        settings.set("fetch.error.backoff.ms", "20");
        let consumer = BaseConsumer::from_config_and_context(&settings, Context::new(Group::new(TOPIC))).unwrap();
        let (budget, gauge) = (ByteBudget::new(1 << 30, Gauge::default()), Gauge::default());
        let reader = SharedReader::new(SharedReads::default(), Arc::new(|_| {}), budget, gauge);
        let mut partitions = Partitions::new(TOPIC, Arc::new(consumer), reader).unwrap();
        partitions.assigned(P);
        partitions.begin(P, Epoch::fresh(), Offset(0));
        Self { cluster, producer, partitions }
    }

    fn produce(&self, records: usize) {
        for _ in 0..records {
            self.producer.send(BaseRecord::<(), _>::to(TOPIC).partition(P.0).payload("{}")).unwrap();
        }
        self.producer.flush(Duration::from_secs(30)).unwrap();
    }

    /// As the source's loop does it, until this is so of the number of errors that were told and the next offset.
    fn run_until(&mut self, done: impl Fn(usize, Offset) -> bool) {
        let (mut errors, deadline) = (0, Instant::now() + Duration::from_secs(60));
        loop {
            self.partitions.start_all(|_| true);
            let taken = self.partitions.fetch(Duration::from_millis(20), 100, &BatchConfig::default());
            errors += taken.errors.len();
            let other = self.partitions.consumer.poll(Duration::ZERO);
            assert!(other.is_none_or(|other| other.is_err()), "records come by one way alone");
            let next = self.delivery().next;
            if done(errors, next) {
                return;
            }
            assert!(Instant::now() < deadline, "{errors} errors, {next}");
        }
    }

    fn delivery(&mut self) -> &mut Delivery {
        match &mut self.partitions.held.get_mut(&P).unwrap().phase {
            Phase::Delivered(delivery) => delivery,
            _ => panic!("it was begun"),
        }
    }
}

#[test]
fn a_record_that_could_not_be_fetched_is_not_passed_over_when_librdkafka_resumes_by_itself() {
    let mut mock = Mock::new();
    mock.produce(10);
    mock.run_until(|_, next| next == Offset(10));
    mock.cluster.request_errors(RDKafkaApiKey::Fetch, &[RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN; 10_000]);
    // A fetch may be under way that still finds nothing.
    mock.run_until(|errors, _| errors >= 1);
    mock.produce(10);
    mock.run_until(|errors, _| errors >= 2);
    // As it does in a rebalance, with all partitions that stay.
    let mut all = TopicPartitionList::new();
    all.add_partition(TOPIC, P.0);
    mock.partitions.consumer.pause(&all).unwrap();
    mock.partitions.consumer.resume(&all).unwrap();
    mock.cluster.clear_request_errors(RDKafkaApiKey::Fetch);
    mock.run_until(|_, next| next == Offset(20));
    assert_eq!(cut(mock.delivery()), (0, 20, (0..20).collect()));
}
