//! Kafka as other programs and operators use it: producers, tools that read, and administration.

use std::time::Duration;

use rdkafka::{
    ClientConfig, Message, Offset, TopicPartitionList,
    admin::{AdminClient, AdminOptions, AlterConfig, NewPartitions, NewTopic, ResourceSpecifier, TopicReplication},
    client::DefaultClientContext,
    consumer::{BaseConsumer, CommitMode, Consumer},
    error::{KafkaError, KafkaResult},
    message::{Header, Headers, OwnedHeaders},
    producer::{BaseProducer, BaseRecord, Producer},
};

use super::{PATIENCE, eventually, log::LogRecord, services::Services};

/// One attempt; the brokers may have been restarted a moment ago.
const ATTEMPT: Duration = Duration::from_secs(5);

impl Services {
    pub(super) fn kafka_config(&self) -> ClientConfig {
        self.kafka_client("tests")
    }

    fn kafka_client(&self, group: &str) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", self.kafka.address()).set("group.id", group);
        config.set("message.max.bytes", "8388608");
        // As the daemon's clients: the tests' Kafka creates a topic for whoever asks by a producer.
        config.set("allow.auto.create.topics", "false");
        config
    }

    /// Appends a record as another program would.
    pub fn produce(&self, topic: &str, value: &[u8]) {
        self.produce_to(topic, None, value);
    }

    /// To this partition, or to any.
    pub fn produce_to(&self, topic: &str, partition: Option<i32>, value: &[u8]) {
        let producer: BaseProducer = self.kafka_config().create().expect("a producer");
        let mut record = BaseRecord::<(), [u8]>::to(topic).payload(value);
        record.partition = partition;
        producer.send(record).expect("the queue is empty");
        producer.flush(PATIENCE).expect("Kafka takes it");
    }

    /// Appends a record with a key and headers as another program would.
    pub fn produce_record(&self, topic: &str, key: &[u8], value: &[u8], headers: &[(&str, Vec<u8>)]) {
        self.produce_with(BaseRecord::<[u8], [u8]>::to(topic).key(key).payload(value), headers);
    }

    /// Appends a record without a value.
    pub fn produce_null(&self, topic: &str, headers: &[(&str, Vec<u8>)]) {
        self.produce_with(BaseRecord::<[u8], [u8]>::to(topic), headers);
    }

    fn produce_with(&self, record: BaseRecord<'_, [u8], [u8]>, headers: &[(&str, Vec<u8>)]) {
        let all = headers
            .iter()
            .fold(OwnedHeaders::new(), |all, (key, value)| all.insert(Header { key, value: Some(value) }));
        let producer: BaseProducer = self.kafka_config().create().expect("a producer");
        producer.send(record.headers(all)).map_err(|(error, _)| error).expect("the queue is empty");
        producer.flush(PATIENCE).expect("Kafka takes it");
    }

    /// Appends records as another program would, in one batch with this compression.
    pub fn produce_batch(&self, topic: &str, compression: &str, values: &[&[u8]]) {
        let mut config = self.kafka_config();
        config.set("compression.codec", compression).set("linger.ms", "5000").set("batch.size", "100000000");
        let producer: BaseProducer = config.set("message.max.bytes", "100000000").create().expect("a producer");
        for value in values {
            producer.send(BaseRecord::<(), [u8]>::to(topic).partition(0).payload(*value)).expect("there is room");
        }
        producer.flush(PATIENCE).expect("Kafka takes them");
    }

    /// The number of partitions; `None` where there is no such topic.
    pub fn partitions(&self, topic: &str) -> Option<usize> {
        let consumer: BaseConsumer = self.kafka_config().create().expect("a consumer");
        let all = eventually("metadata", PATIENCE, || consumer.fetch_metadata(None, ATTEMPT).ok());
        all.topics().iter().find(|found| found.name() == topic).map(|found| found.partitions().len())
    }

    pub fn topic_setting(&self, topic: &str, name: &str) -> Option<String> {
        let asked = [ResourceSpecifier::Topic(topic)];
        let answer = self.io.block_on(self.admin().describe_configs(&asked, &AdminOptions::new())).expect("an answer");
        answer.into_iter().next()?.ok()?.get(name)?.value.clone()
    }

    /// All records of a topic, from the first to the last that there is now: those that committed transactions wrote,
    /// which is librdkafka's default.
    pub fn read_topic(&self, topic: &str) -> Vec<LogRecord> {
        let mut config = self.kafka_config();
        // Behind the last record may stand a transaction's marker, which no consumer is given.
        config.set("enable.partition.eof", "true");
        let consumer: BaseConsumer = config.create().expect("a consumer");
        let partitions = partitions(&consumer, topic).expect("metadata");
        let mut records = Vec::new();
        for partition in partitions {
            let mut assignment = TopicPartitionList::new();
            assignment.add_partition_offset(topic, partition, Offset::Beginning).expect("a valid offset");
            consumer.assign(&assignment).expect("a valid assignment");
            loop {
                // Between records it also returns for events of its own.
                let message = match eventually("a record, or the end", PATIENCE, || consumer.poll(ATTEMPT)) {
                    Err(KafkaError::PartitionEOF(_)) => break,
                    message => message.expect("no error"),
                };
                let headers = message.headers().into_iter().flat_map(|headers| headers.iter());
                records.push(LogRecord {
                    partition,
                    offset: u64::try_from(message.offset()).expect("an offset is not negative"),
                    received: message.timestamp().to_millis().expect("a record has a timestamp"),
                    key: message.key().map(<[u8]>::to_vec),
                    value: message.payload().map(<[u8]>::to_vec),
                    headers: headers.map(|it| (it.key.to_owned(), it.value.map(<[u8]>::to_vec))).collect(),
                });
            }
        }
        records
    }

    /// The offsets of each partition's first record and of the next one.
    pub fn watermarks(&self, topic: &str) -> Vec<(i32, i64, i64)> {
        let consumer: BaseConsumer = self.kafka_config().create().expect("a consumer");
        eventually("the topic's offsets", PATIENCE, || {
            let of = |partition| {
                let (start, end) = consumer.fetch_watermarks(topic, partition, ATTEMPT).ok()?;
                Some((partition, start, end))
            };
            partitions(&consumer, topic).ok()?.into_iter().map(of).collect()
        })
    }

    /// Records of the topic that this group has not committed; partitions that it does not know count whole.
    pub fn lag(&self, topic: &str, group: &str) -> KafkaResult<i64> {
        let consumer: BaseConsumer = self.kafka_client(group).create()?;
        let mut asked = TopicPartitionList::new();
        let mut ends = Vec::new();
        for partition in partitions(&consumer, topic)? {
            asked.add_partition(topic, partition);
            ends.push((partition, consumer.fetch_watermarks(topic, partition, ATTEMPT)?));
        }
        let committed = consumer.committed_offsets(asked, ATTEMPT)?;
        let lag = ends.into_iter().map(|(partition, (start, end))| {
            match committed.find_partition(topic, partition).map(|found| found.offset()) {
                Some(Offset::Offset(committed)) => end - committed,
                _ => end - start,
            }
        });
        Ok(lag.sum())
    }

    fn admin(&self) -> AdminClient<DefaultClientContext> {
        self.kafka_config().create().expect("an administrator")
    }

    /// Gives the topic so many partitions.
    pub fn grow_topic(&self, topic: &str, partitions: usize) {
        let admin = self.admin();
        let grown = NewPartitions::new(topic, partitions);
        let options = AdminOptions::new();
        let answer = self.io.block_on(admin.create_partitions([&grown], &options)).expect("an answer");
        answer[0].as_ref().expect("the topic can grow");
        eventually("the new partition has a leader", PATIENCE, || {
            let marks = self.watermarks(topic);
            (marks.len() == partitions).then_some(())
        });
    }

    /// Waits until the name is free, and there are leaders.
    pub fn create_topic(&self, topic: &str, partitions: i32) {
        let admin = self.admin();
        let new = NewTopic::new(topic, partitions, TopicReplication::Fixed(1)).set("max.message.bytes", "1114112");
        eventually("the topic is there", PATIENCE, || {
            let answer = self.io.block_on(admin.create_topics([&new], &AdminOptions::new())).ok()?;
            answer[0].is_ok().then_some(())
        });
        self.watermarks(topic);
    }

    /// A group's position, with its metadata.
    pub fn committed(&self, group: &str, topic: &str, partition: i32) -> Option<(i64, String)> {
        let consumer: BaseConsumer = self.kafka_client(group).create().expect("a consumer");
        let mut list = TopicPartitionList::new();
        list.add_partition(topic, partition);
        let answer = consumer.committed_offsets(list, PATIENCE).ok()?;
        let found = answer.find_partition(topic, partition)?;
        let offset = found.offset().to_raw().filter(|offset| *offset >= 0)?;
        Some((offset, found.metadata().to_owned()))
    }

    /// Commits a position as a member would. Waits until the group's own members have gone.
    pub fn commit(&self, group: &str, topic: &str, partition: i32, (offset, metadata): (i64, &str)) {
        let consumer: BaseConsumer = self.kafka_client(group).create().expect("a consumer");
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(topic, partition, Offset::Offset(offset)).expect("a valid offset");
        list.elements().iter_mut().for_each(|element| element.set_metadata(metadata));
        eventually("committed", PATIENCE, || consumer.commit(&list, CommitMode::Sync).ok());
    }

    /// Deletes the topic and makes an empty one of the same name, as fast as the broker does.
    pub fn recreate_topic(&self, topic: &str, partitions: i32) {
        self.delete_topic(topic);
        self.create_topic(topic, partitions);
    }

    /// Makes a topic of four partitions with these settings.
    pub fn create_topic_with(&self, topic: &str, settings: &[(&str, &str)]) {
        let mut new = NewTopic::new(topic, 4, TopicReplication::Fixed(1));
        for (name, value) in settings {
            new = new.set(name, value);
        }
        let made = self.io.block_on(self.admin().create_topics([&new], &AdminOptions::new())).expect("an answer");
        made[0].as_ref().expect("it is made");
    }

    /// Makes Kafka forget a group's positions, as it does when they expire.
    pub fn delete_group(&self, group: &str) {
        let gone = self.io.block_on(self.admin().delete_groups(&[group], &AdminOptions::new())).expect("an answer");
        assert!(gone[0].is_ok(), "{gone:?}");
    }

    /// A producer that can take a transactional id over.
    pub fn transactional_producer(&self, id: &str) -> BaseProducer {
        self.kafka_config()
            .set("transactional.id", id)
            .set("transaction.timeout.ms", "300000")
            .create()
            .expect("a producer")
    }

    /// Gives a topic that is there this setting; all others become the broker's defaults.
    pub fn alter_topic(&self, topic: &str, name: &str, value: &str) {
        let change = AlterConfig::new(ResourceSpecifier::Topic(topic)).set(name, value);
        let answer = self.io.block_on(self.admin().alter_configs([&change], &AdminOptions::new())).expect("an answer");
        assert!(answer[0].is_ok(), "{answer:?}");
    }

    pub fn delete_topic(&self, topic: &str) {
        let admin = self.admin();
        let options = AdminOptions::new();
        let answer = self.io.block_on(admin.delete_topics(&[topic], &options)).expect("an answer");
        answer[0].as_ref().expect("the topic can be deleted");
    }

    /// As retention does: the partition begins at `before` from now on, or with -1 behind its last record.
    pub fn delete_records(&self, topic: &str, partition: i32, before: i64) {
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(topic, partition, Offset::from_raw(before)).expect("a valid offset");
        self.io.block_on(self.admin().delete_records(&list, &AdminOptions::new())).expect("the records can be deleted");
    }
}

fn partitions(consumer: &BaseConsumer, topic: &str) -> KafkaResult<Vec<i32>> {
    let metadata = consumer.fetch_metadata(Some(topic), ATTEMPT)?;
    Ok(metadata.topics().iter().flat_map(|topic| topic.partitions()).map(|partition| partition.id()).collect())
}
