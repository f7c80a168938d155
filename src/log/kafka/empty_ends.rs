//! The end of a partition's log may hold no records: the markers of transactions (a replay of dead letters is one) take
//! offsets as well. Nobody delivers them, so a sink that has everything would seem to lag behind for as long as nothing
//! is appended.
//!
//! When a partition has stood still below its log's end from one look to the next, a client of its own reads from
//! there. The end was known before, so when that client is at the end without a record, there is none below it.

use std::{
    collections::BTreeMap,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use rdkafka::{
    ClientConfig, Offset as KafkaOffset, TopicPartitionList,
    config::FromClientConfigAndContext,
    consumer::{BaseConsumer, Consumer},
    error::{KafkaError, KafkaResult},
};

use crate::{
    config::Config,
    log::kafka::{logging::Logging, settings},
    position::{Offset, Partition},
};

/// A client that has heard nothing by then leaves the question open.
const DEADLINE: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(100);

/// What is known of the ends of the logs that are read.
pub(super) struct EmptyEnds {
    settings: ClientConfig,
    topic: String,
    /// Where each stood, and its log's end, when it was looked at last.
    looked: BTreeMap<Partition, EmptyEnd>,
    empty: BTreeMap<Partition, EmptyEnd>,
    /// The one question that is being asked.
    asking: Option<(Partition, EmptyEnd, JoinHandle<bool>)>,
}

/// `[from, to)`, up to the log's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct EmptyEnd {
    from: Offset,
    to: Offset,
}

impl EmptyEnds {
    pub fn new(config: &Config) -> Self {
        Self {
            settings: settings::dead_letter_reader(config),
            topic: config.queue.topic.clone(),
            looked: BTreeMap::new(),
            empty: BTreeMap::new(),
            asking: None,
        }
    }

    /// Called with each look at the logs: whether nothing but markers stands between what was delivered, where all of
    /// that is handed on, and the log's end.
    pub fn is_empty(&mut self, partition: Partition, delivered: Option<Offset>, end: Offset) -> bool {
        if let Some((asked, stretch, thread)) = self.asking.take_if(|(_, _, thread)| thread.is_finished())
            && thread.join().unwrap_or(false)
        {
            self.empty.insert(asked, stretch);
        }
        let Some(from) = delivered.filter(|from| *from < end) else {
            self.looked.remove(&partition);
            return false;
        };
        let stretch = EmptyEnd { from, to: end };
        if self.empty.get(&partition) == Some(&stretch) {
            return true;
        }
        if self.looked.insert(partition, stretch) == Some(stretch) && self.asking.is_none() {
            self.ask(partition, stretch);
        }
        false
    }

    fn ask(&mut self, partition: Partition, stretch: EmptyEnd) {
        let (settings, topic) = (self.settings.clone(), self.topic.clone());
        let ask = move || {
            holds_nothing(&settings, &topic, partition, stretch.from).unwrap_or_else(|error| {
                tracing::debug!(%error, %partition, "the end of a log could not be looked at, trying again");
                false
            })
        };
        match std::thread::Builder::new().name("kafka-empty-end".to_owned()).spawn(ask) {
            Ok(thread) => self.asking = Some((partition, stretch, thread)),
            Err(error) => tracing::debug!(%error, "no thread to look at the end of a log with, trying again"),
        }
    }

    /// Waits for the question that is being asked, at most its deadline.
    pub fn finish(self) {
        if let Some((_, _, thread)) = self.asking {
            // A panic was reported by the thread that it ended.
            let _ = thread.join();
        }
    }
}

/// Reads from `from` until there is a record or the end.
fn holds_nothing(settings: &ClientConfig, topic: &str, partition: Partition, from: Offset) -> KafkaResult<bool> {
    let consumer: BaseConsumer<Logging> = BaseConsumer::from_config_and_context(settings, Logging::default())?;
    let mut at = TopicPartitionList::new();
    at.add_partition_offset(topic, partition.0, KafkaOffset::Offset(from.as_i64()))?;
    consumer.assign(&at)?;
    let deadline = Instant::now() + DEADLINE;
    while Instant::now() < deadline {
        match consumer.poll(POLL) {
            Some(Ok(_)) => return Ok(false),
            Some(Err(KafkaError::PartitionEOF(_))) => return Ok(true),
            Some(Err(error)) => tracing::debug!(%error, "while looking at the end of a log"),
            None => {}
        }
    }
    Ok(false)
}
