//! The yardstick: the least program that does the same work, as a careful engineer would write it in an hour.
//!
//! It is what people would otherwise write: it answers after Kafka's acknowledgement, and it counts and archives what it
//! reads. What it leaves out is what ingestd is for: ids, limits, metrics, exactly once, and going on after a failure.

use std::{borrow::Cow, path::PathBuf};

use clap::Subcommand;
use serde::Deserialize;

mod drain;
mod ingest;

/// Run as a process of its own, so that its CPU time and memory are read as those of ingestd are.
#[derive(Subcommand)]
pub enum Yardstick {
    /// `POST /v1/events` into a topic.
    Ingest {
        #[arg(long)]
        listen: String,
        #[arg(long)]
        brokers: String,
        #[arg(long)]
        topic: String,
    },
    /// A topic into a compressed file and a map of counts.
    Drain {
        #[arg(long)]
        brokers: String,
        #[arg(long)]
        topic: String,
        #[arg(long)]
        partitions: i32,
        #[arg(long)]
        group: String,
        #[arg(long)]
        records: u64,
        #[arg(long)]
        file: PathBuf,
    },
}

impl Yardstick {
    pub fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Ingest { listen, brokers, topic } => ingest::serve(&listen, &brokers, topic),
            Self::Drain { brokers, topic, partitions, group, records, file } => {
                drain::Drain { brokers, topic, partitions, group, records, file }.run()
            }
        }
    }
}

/// What is read of an event; everything else is skipped.
#[derive(Deserialize)]
struct Head<'e> {
    #[serde(borrow, rename = "type")]
    kind: Cow<'e, str>,
    #[serde(borrow, default)]
    client_id: Option<Cow<'e, str>>,
    #[serde(borrow, default)]
    timestamp: Option<Cow<'e, str>>,
}
