//! The vigil: a thread that asks the brokers again and again whether the topic is still the one that was announced.
//!
//! A topic that is deleted and created anew within moments goes unnoticed by librdkafka, which fetches on at the old
//! offset. Yet a topic that was deleted never comes back: when the brokers still name the announced identity, then
//! everything that was fetched **before they were asked** is of that topic. So no batch is handed on before an answer
//! to a question that was asked after it was cut, and records of two topics can never stand in one chain.
//!
//! It has a client of its own, because a question on the source's connection would wait behind a fetch that waits for
//! records, and a lone record's batch with it.

use std::{
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use rdkafka::{
    config::FromClientConfigAndContext,
    consumer::{BaseConsumer, Consumer},
    types::RDKafkaErrorCode as Code,
};

use crate::{
    config::Config,
    position::TopicIdentity,
    queue::kafka::{
        identity::topic_identity,
        logging::Logging,
        settings,
        stranded::{Stranded, a_new_client_is_answered},
    },
};

/// One question to the brokers.
const DEADLINE: Duration = Duration::from_secs(3);
/// Asked so often when nobody waits for an answer.
const TICK: Duration = Duration::from_secs(3);
/// Not asked more often than this, so that a busy worker is no load for the brokers. What waits for an answer is bounded,
/// so this bounds the rate too, most where batches are small.
const PACE: Duration = Duration::from_millis(20);
/// The same, after a question that had no answer.
const PACE_OF_FAILURES: Duration = Duration::from_millis(500);

/// An answer: when the question was asked, and what the topic was then.
#[derive(Debug)]
pub(super) struct Sighting {
    pub asked: Instant,
    pub identity: TopicIdentity,
}

/// The source's end of the vigil.
pub(super) struct Vigil {
    ask: Sender<()>,
    /// Bounded: the source empties it several times a second, and the vigil can wait.
    pub sightings: Receiver<Sighting>,
    thread: JoinHandle<()>,
}

impl Vigil {
    pub fn start(config: &Config) -> anyhow::Result<Self> {
        // Without a group: its questions never make the broker create a topic.
        let settings = settings::client(config);
        let mut client = BaseConsumer::from_config_and_context(&settings, Logging::default())
            .context("queue.kafka: no client can be made that watches the topic")?;
        let topic = config.queue.topic.clone();
        // One question that waits says all that several would.
        let (ask, asked) = bounded(1);
        let (sender, sightings) = bounded(4);
        let thread = std::thread::Builder::new()
            .name("kafka-vigil".to_owned())
            .spawn(move || {
                let mut stranded = Stranded::default();
                keep(&asked, &sender, |deadline| {
                    let seen = topic_identity(client.client(), &topic, deadline);
                    if seen.is_ok() {
                        stranded.answered();
                    } else if stranded.unanswered(Instant::now(), || a_new_client_is_answered(&settings, &topic)) {
                        tracing::warn!("the client that watches the topic finds no broker any more, making a new one");
                        match BaseConsumer::from_config_and_context(&settings, Logging::default()) {
                            Ok(new) => client = new,
                            Err(error) => tracing::error!(%error, "librdkafka refuses to make it"),
                        }
                    }
                    seen
                });
            })
            .context("cannot start the thread that watches the topic")?;
        Ok(Self { ask, sightings, thread })
    }

    /// Asks for an answer to a question that is asked from now on.
    pub fn ask(&self) {
        // Full: one waits already, and is asked later than now.
        let _ = self.ask.try_send(());
    }

    /// Whether the thread has ended, which it does unasked by a panic only.
    pub fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }

    /// Ends the thread; its last question may take until its deadline, so whoever cannot wait joins elsewhere.
    pub fn stop(self) -> JoinHandle<()> {
        self.thread
    }
}

/// Asks until the source has gone.
fn keep(
    asked: &Receiver<()>,
    sightings: &Sender<Sighting>,
    mut look: impl FnMut(Duration) -> Result<TopicIdentity, Code>,
) {
    loop {
        if asked.recv_timeout(TICK) == Err(RecvTimeoutError::Disconnected) {
            return;
        }
        let now = Instant::now();
        let pace = match look(DEADLINE) {
            Ok(identity) => {
                // An error says that the source has gone.
                if sightings.send(Sighting { asked: now, identity }).is_err() {
                    return;
                }
                PACE
            }
            // The survey reports that the brokers do not answer.
            Err(error) => {
                tracing::debug!(%error, "the topic's identity is not known, asking again");
                PACE_OF_FAILURES
            }
        };
        std::thread::sleep(pace.saturating_sub(now.elapsed()));
    }
}
