//! The bare drain: one thread that polls, parses, counts in a map and compresses into a file.

use std::{
    collections::HashMap,
    fs::File,
    io::{BufWriter, Write},
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use rdkafka::{
    ClientConfig, Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, CommitMode, Consumer},
};

use super::Head;

/// Without a record for so long, there are fewer than was said.
const PATIENCE: Duration = Duration::from_secs(30);
/// The part of an RFC 3339 time that names its minute.
const MINUTE: usize = "2026-11-24T08:00".len();

pub struct Drain {
    pub brokers: String,
    pub topic: String,
    pub partitions: i32,
    pub group: String,
    pub records: u64,
    pub file: PathBuf,
}

impl Drain {
    /// Reads so many records, commits behind them, and stays until it is killed, so that its memory can be read.
    pub fn run(self) -> anyhow::Result<()> {
        let mut settings = ClientConfig::new();
        settings
            .set("bootstrap.servers", &self.brokers)
            .set("group.id", &self.group)
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false");
        let consumer: BaseConsumer = settings.create()?;
        let mut positions = TopicPartitionList::new();
        for partition in 0..self.partitions {
            positions.add_partition_offset(&self.topic, partition, Offset::Beginning)?;
        }
        consumer.assign(&positions)?;

        let mut archive = zstd::Encoder::new(BufWriter::new(File::create(&self.file)?), 1)?;
        let mut counts: HashMap<String, u64> = HashMap::new();
        let mut ends = vec![0; positions.count()];
        let mut group = String::new();
        let (mut read, mut latest) = (0, Instant::now());
        while read < self.records {
            let Some(message) = consumer.poll(Duration::from_millis(100)) else {
                ensure!(latest.elapsed() < PATIENCE, "{read} of {} records, and no more", self.records);
                continue;
            };
            let message = message?;
            let value = message.payload().unwrap_or_default();
            let head: Head<'_> = serde_json::from_slice(value).context("a record is no event")?;
            group.clear();
            group.push_str(head.timestamp.as_deref().and_then(|time| time.get(..MINUTE)).unwrap_or_default());
            group.push('\n');
            group.push_str(head.client_id.as_deref().unwrap_or_default());
            group.push('\n');
            group.push_str(&head.kind);
            match counts.get_mut(&group) {
                Some(count) => *count += 1,
                None => drop(counts.insert(group.clone(), 1)),
            }
            write!(archive, "{{\"offset\":{},\"event\":", message.offset())?;
            archive.write_all(value)?;
            archive.write_all(b"}\n")?;
            ends[message.partition() as usize] = message.offset() + 1;
            (read, latest) = (read + 1, Instant::now());
        }
        archive.finish()?.into_inner().context("the file cannot be written")?.sync_all()?;
        for (partition, end) in ends.iter().enumerate() {
            positions.set_partition_offset(&self.topic, partition as i32, Offset::Offset(*end))?;
        }
        consumer.commit(&positions, CommitMode::Sync)?;
        println!("{read} records in {} groups", counts.len());
        loop {
            thread::park();
        }
    }
}
