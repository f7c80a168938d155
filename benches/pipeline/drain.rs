//! The way out: N records that stand in a topic, into S3 and MongoDB.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use chrono::Utc;
use rdkafka::{
    ClientConfig, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    error::KafkaError,
    producer::{BaseProducer, BaseRecord, Producer},
    types::RDKafkaErrorCode as Code,
};

use crate::{
    events::Events,
    process::{self, Running},
    rows::{Aggregates, Drain, LOGIN, Store, System},
    stage::{Stage, usual},
    support::{PATIENCE, scratch},
    table::{Metric, Sample},
};

/// For one drain.
const DEADLINE: Duration = Duration::from_secs(300);
/// Between two questions for the groups' positions.
const TICK: Duration = Duration::from_millis(20);
/// The archive has no lag when its last segment is an object: within so long after the last record.
const MAX_AGE: &str = "1s";
/// Events that differ, before they come again.
const DIFFERENT: u64 = 50_000;
const BUCKET: &str = "bench";
/// By client and type, by type, of failures, of days, of all; each with all measures. Users and addresses are as many as events.
const FIVE_AGGREGATES: &str = r#"
[[aggregate]]
name = "by_client"
window = "1m"
group_by = ["client_id", "type"]
MEASURES

[[aggregate]]
name = "by_type"
window = "1h"
group_by = ["type"]
MEASURES

[[aggregate]]
name = "failures"
window = "5m"
group_by = ["client_id"]
filter = { type = "login_failure" }
MEASURES

[[aggregate]]
name = "by_day"
window = "1d"
time_zone = "Europe/Berlin"
group_by = ["/mfa"]
MEASURES

[[aggregate]]
name = "of_all"
window = "1m"
group_by = []
MEASURES
"#;
const MEASURES: &str = r#"measures = [
    "count", { sum = "duration_ms" }, { min = "duration_ms" }, { max = "duration_ms" }, { avg = "duration_ms" },
    { unique = "user_id" }, { top = "ip", k = 5 },
]"#;

impl Stage<'_> {
    pub(crate) fn drain(&mut self, drain: Drain, system: System) -> anyhow::Result<Sample> {
        let Drain { workers, partitions, times, aggregates } = drain;
        let records = self.records * u64::from(times);
        let topic = self.filled(partitions, records)?;
        let name = self.name();
        let folder = tempfile::Builder::new().prefix(&name).tempdir_in(scratch())?;
        let brokers = self.services.kafka.address();
        let groups = match system {
            System::Yardstick => vec![name.clone()],
            System::Ingestd => vec![format!("{name}-archive"), format!("{name}-aggregate")],
        };
        let lags: anyhow::Result<Vec<Lag>> =
            groups.iter().map(|group| Lag::new(&brokers, group, &topic, partitions, records)).collect();
        let lags = lags?;
        let drainers: Vec<Running> = match system {
            System::Yardstick => {
                let arguments = [
                    ("brokers", brokers),
                    ("topic", topic),
                    ("partitions", partitions.to_string()),
                    ("group", name),
                    ("records", records.to_string()),
                    ("file", folder.path().join("archive.zst").display().to_string()),
                ];
                vec![Running::yardstick(folder.path(), "drain", &arguments)?]
            }
            System::Ingestd => {
                self.services.create_bucket(BUCKET);
                self.services.pass_race(BUCKET, &name, &format!("http://{}", self.services.s3.address()));
                let setup = usual(self.services.setup(&name));
                let five = FIVE_AGGREGATES.replace("MEASURES", MEASURES);
                let setup = match aggregates {
                    Aggregates::Default => setup,
                    Aggregates::Five(Store::Mongodb) => setup.config(&five),
                    Aggregates::Five(Store::Embedded) => {
                        setup.without("store.url").without("store.database").set("store.kind", "embedded").config(&five)
                    }
                };
                let setup = setup
                    .roles("worker")
                    .set("queue.topic", &topic)
                    .set("archive.url", format!("s3://{BUCKET}/{name}"))
                    .set("spool.max_age", MAX_AGE);
                (0..workers).map(|_| Running::Ingestd(Box::new(setup.clone().spawn()))).collect()
            }
        };
        let first = drainers.first().context("at least one worker")?.pid();
        let deadline = Instant::now() + DEADLINE;
        while !lags.iter().all(Lag::is_over) {
            if let Some(ended) = drainers.iter().find(|drainer| drainer.has_ended()) {
                bail!("it ended before it was through\n{}", ended.log());
            }
            ensure!(Instant::now() < deadline, "it still has a lag after {DEADLINE:?}");
            thread::sleep(TICK);
        }
        let took = process::age(first)?;
        let cpu: anyhow::Result<Vec<Duration>> = drainers.iter().map(|drainer| process::cpu(drainer.pid())).collect();
        let millions = records as f64 / 1e6;
        let largest = drainers.iter().map(Running::peak_memory).fold(0.0, f64::max);
        let mut sample = Sample::default();
        sample.set(Metric::Rate, records as f64 / took.as_secs_f64());
        sample.set(Metric::Cpu, cpu?.iter().sum::<Duration>().as_secs_f64() / millions);
        sample.set(Metric::Memory, largest);
        Ok(sample)
    }

    /// A topic of so many partitions with so many records; filled once, read by all.
    fn filled(&mut self, partitions: i32, records: u64) -> anyhow::Result<String> {
        if let Some(topic) = self.filled.get(&(partitions, records)) {
            return Ok(topic.clone());
        }
        let topic = self.name();
        self.services.create_topic(&topic, partitions);
        let mut settings = ClientConfig::new();
        settings
            .set("bootstrap.servers", self.services.kafka.address())
            .set("compression.codec", "zstd")
            .set("partitioner", "murmur2_random")
            .set("enable.idempotence", "true")
            .set("linger.ms", "5");
        let producer: BaseProducer = settings.create()?;
        let mut events = Events::new(Utc::now(), LOGIN);
        let different: Vec<_> = (0..records.min(DIFFERENT)).map(|_| events.next()).collect();
        for index in 0..records {
            let (event, client) = &different[(index % DIFFERENT) as usize];
            let mut record = BaseRecord::to(&topic).payload(event.as_bytes()).key(client.as_bytes());
            while let Err((error, refused)) = producer.send(record) {
                ensure!(matches!(error, KafkaError::MessageProduction(Code::QueueFull)), "filling {topic}: {error}");
                producer.poll(Duration::from_millis(10));
                record = refused;
            }
        }
        producer.flush(PATIENCE)?;
        let stored: i64 = self.services.watermarks(&topic).into_iter().map(|(_, start, end)| end - start).sum();
        ensure!(stored as u64 == records, "{topic} has {stored} records instead of {}", records);
        self.filled.insert((partitions, records), topic.clone());
        Ok(topic)
    }
}

/// How far one group is.
struct Lag {
    consumer: BaseConsumer,
    asked: TopicPartitionList,
    records: u64,
}

impl Lag {
    fn new(brokers: &str, group: &str, topic: &str, partitions: i32, records: u64) -> anyhow::Result<Self> {
        let consumer = ClientConfig::new().set("bootstrap.servers", brokers).set("group.id", group).create()?;
        let mut asked = TopicPartitionList::new();
        for partition in 0..partitions {
            asked.add_partition(topic, partition);
        }
        Ok(Self { consumer, asked, records })
    }

    /// False also while the brokers do not answer.
    fn is_over(&self) -> bool {
        let Ok(committed) = self.consumer.committed_offsets(self.asked.clone(), Duration::from_secs(5)) else {
            return false;
        };
        let committed = committed.elements().into_iter().filter_map(|element| match element.offset() {
            Offset::Offset(offset) => u64::try_from(offset).ok(),
            _ => None,
        });
        committed.sum::<u64>() == self.records
    }
}
