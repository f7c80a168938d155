//! Dead letters: records that cannot be parsed, kept with their original bytes, position and reason.
//!
//! They come from the aggregates' side, and are written durably before the position moves past the record. A letter's
//! id is its position, so writing one again changes nothing that a reader sees.

use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};

use crate::position::{Offset, Partition, Timestamp};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadLetter {
    pub topic: String,
    pub generation: u32,
    pub partition: Partition,
    pub offset: Offset,
    /// The record's own timestamp.
    pub received: Timestamp,
    /// A code such as `invalid_json`: those of the ingest replies.
    pub reason: String,
    /// What is wrong, for people.
    pub message: String,
    /// When it was found.
    pub time: Timestamp,
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub headers: Vec<(String, Option<Vec<u8>>)>,
}

impl DeadLetter {
    /// `topic/partition/offset` (the topic with its generation, where that is above 0).
    pub fn id(&self) -> String {
        match self.generation {
            0 => format!("{}/{}/{}", self.topic, self.partition, self.offset),
            generation => format!("{}@{generation}/{}/{}", self.topic, self.partition, self.offset),
        }
    }
}

/// Where dead letters are written: Kafka's `<topic>.dlq`, or a table of the embedded log.
pub trait DeadLetterWriter: Send + Sync {
    /// Resolves when all letters are durable. May be called again with the same letters.
    fn write(&self, letters: Vec<DeadLetter>) -> BoxFuture<'static, anyhow::Result<()>>;
}
