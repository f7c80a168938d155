//! The topic watch: whether the topic is still the one that was announced.

use std::{
    sync::{Arc, Weak},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use parking_lot::Mutex;
use rdkafka::{
    ClientConfig,
    consumer::{BaseConsumer, Consumer},
    error::KafkaResult,
    types::RDKafkaErrorCode as Code,
};

use crate::{
    config::Config,
    log::kafka::{
        client::{self, Context, Reconnect, a_new_client_is_answered, topic_identity},
        settings,
    },
    position::TopicIdentity,
};

/// One question of the topic watch.
const WATCH_DEADLINE: Duration = Duration::from_secs(3);
/// The pause between two of them when nobody waits for an answer.
const WATCH_EVERY: Duration = Duration::from_secs(3);
/// Not asked more often than this, so that a busy worker is no load for the brokers. What waits for an answer is bounded,
/// so this bounds the rate too, most where batches are small.
const PACE: Duration = Duration::from_millis(20);
/// The same, after a question that had no answer.
const PACE_OF_FAILURES: Duration = Duration::from_millis(500);

/// So long after an answer a broker is taken to be there still: about the pace of the batches that wait for answers.
const FRESH: Duration = Duration::from_millis(500);

/// An answer: when the question was asked, and what the topic was then.
#[derive(Debug, Clone)]
pub(in crate::log::kafka) struct Sighting {
    pub asked: Instant,
    pub identity: TopicIdentity,
}

/// Where the sources of a process find the topic watch that they share.
#[derive(Clone, Default)]
pub struct TopicWatches(Arc<Mutex<Weak<TopicWatch>>>);

impl TopicWatches {
    /// The present one, or a new one: the first source's, or where the last one's thread has ended.
    pub(in crate::log::kafka) fn share(&self, config: &Config) -> anyhow::Result<Arc<TopicWatch>> {
        let mut present = self.0.lock();
        if let Some(topic_watch) = present.upgrade().filter(|topic_watch| !topic_watch.is_finished()) {
            return Ok(topic_watch);
        }
        let topic_watch = Arc::new(TopicWatch::start(config)?);
        *present = Arc::downgrade(&topic_watch);
        Ok(topic_watch)
    }
}

/// The sources' end of the topic watch: a thread that asks the brokers again and again whether the topic is still the one
/// that was announced.
///
/// A topic that is deleted and created anew within moments goes unnoticed by librdkafka, which fetches on at the old
/// offset. Yet a topic that was deleted never comes back: when the brokers still name the announced identity, then
/// everything that was fetched **before they were asked** is of that topic. So no batch is handed on before an answer
/// to a question that was asked after it was cut, and records of two topics can never stand in one chain.
///
/// It has a client of its own, because a question on the source's connection would wait behind a fetch that waits for
/// records, and a lone record's batch with it. The sources of a process share it. The last one's drop ends it, and blocks until its last question is answered or given up, so
/// one who cannot wait drops it elsewhere.
pub(in crate::log::kafka) struct TopicWatch {
    /// `None` only while it is dropped.
    ask: Option<Sender<()>>,
    latest: Arc<Latest>,
    thread: Option<JoinHandle<()>>,
}

/// The latest answer. A topic that was deleted never comes back, so it says all that those before it said.
type Latest = Mutex<Option<Sighting>>;

impl TopicWatch {
    fn start(config: &Config) -> anyhow::Result<Self> {
        // Without a group: its questions never make the broker create a topic.
        let settings = settings::client(config);
        let mut questions = Questions::open(settings, &config.queue.topic)
            .context("queue.kafka: no client can be made that watches the topic")?;
        // One question that waits says all that several would.
        let (ask, asked) = bounded(1);
        let latest = Arc::new(Latest::default());
        let seen = latest.clone();
        let thread = std::thread::Builder::new()
            .name("kafka-watch".to_owned())
            .spawn(move || keep(&asked, &seen, |deadline| questions.ask(deadline)))
            .context("cannot start the thread that watches the topic")?;
        Ok(Self { ask: Some(ask), latest, thread: Some(thread) })
    }

    /// Asks for an answer to a question that is asked from now on.
    pub fn ask(&self) {
        if let Some(ask) = &self.ask {
            // Full: one waits already, and is asked later than now.
            let _ = ask.try_send(());
        }
    }

    /// The latest answer, when its question was asked after `before`.
    pub fn sighting(&self, before: Instant) -> Option<Sighting> {
        let latest = self.latest.lock();
        latest.as_ref().filter(|sighting| sighting.asked > before).cloned()
    }

    /// Whether the thread has ended, which it does unasked by a panic only.
    pub fn is_finished(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

impl Drop for TopicWatch {
    fn drop(&mut self) {
        self.ask = None;
        if let Some(thread) = self.thread.take() {
            // A panic was reported by the thread.
            let _ = thread.join();
        }
    }
}

/// The watch's client, and what it is asked.
struct Questions {
    client: BaseConsumer<Context>,
    settings: ClientConfig,
    topic: String,
    reconnect: Reconnect,
    /// When the last answer came, unless there was none since.
    answered: Option<Instant>,
}

impl Questions {
    fn open(settings: ClientConfig, topic: &str) -> KafkaResult<Self> {
        let client = client::open(&settings)?;
        Ok(Self { client, settings, topic: topic.to_owned(), reconnect: Reconnect::default(), answered: None })
    }

    /// Which topic it is. Blocks, at most `deadline`, and where a new client is asked as well for some seconds more.
    fn ask(&mut self, deadline: Duration) -> Result<TopicIdentity, Code> {
        let until = Instant::now() + deadline;
        // See [`topic_identity`]. A batch that waits for an answer need not wait for two.
        let is_there = self.answered.is_some_and(|answered| answered.elapsed() < FRESH);
        let found = if is_there { Ok(()) } else { self.find_a_broker(deadline) };
        let left = until.saturating_duration_since(Instant::now());
        let seen = found.and_then(|()| topic_identity(self.client.client(), &self.topic, left));
        self.answered = seen.is_ok().then(Instant::now);
        if self.answered.is_some() {
            self.reconnect.answered();
        } else if self.reconnect.unanswered(Instant::now(), || a_new_client_is_answered(&self.settings, &self.topic)) {
            tracing::warn!("the client that watches the topic finds no broker any more, making a new one");
            match client::open(&self.settings) {
                Ok(new) => self.client = new,
                Err(error) => tracing::error!(%error, "librdkafka refuses to make it"),
            }
        }
        seen
    }

    fn find_a_broker(&self, deadline: Duration) -> Result<(), Code> {
        let answer = self.client.fetch_metadata(Some(&self.topic), deadline);
        answer.map(drop).map_err(|error| error.rdkafka_error_code().unwrap_or(Code::Fail))
    }
}

/// Asks until the sources have gone.
fn keep(asked: &Receiver<()>, latest: &Latest, mut look: impl FnMut(Duration) -> Result<TopicIdentity, Code>) {
    loop {
        if asked.recv_timeout(WATCH_EVERY) == Err(RecvTimeoutError::Disconnected) {
            return;
        }
        let now = Instant::now();
        let pace = match look(WATCH_DEADLINE) {
            Ok(identity) => {
                let sighting = Sighting { asked: now, identity };
                *latest.lock() = Some(sighting);
                PACE
            }
            // The offset reader reports that the brokers do not answer.
            Err(error) => {
                tracing::debug!(%error, "the topic's identity is not known, asking again");
                PACE_OF_FAILURES
            }
        };
        std::thread::sleep(pace.saturating_sub(now.elapsed()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nobody answers there, and nothing hangs.
    fn config() -> Config {
        let mut config = Config::default();
        config.queue.kafka.brokers = "127.0.0.1:1".to_owned();
        config
    }

    #[test]
    fn sources_that_run_at_the_same_time_share_one_and_the_last_one_ends_it() {
        let (topic_watches, config) = (TopicWatches::default(), config());
        let one = topic_watches.share(&config).unwrap();
        let other = topic_watches.share(&config).unwrap();
        assert!(Arc::ptr_eq(&one, &other));
        drop(one);
        let again = topic_watches.share(&config).unwrap();
        assert!(Arc::ptr_eq(&other, &again), "it has not ended");
        let latest = Arc::downgrade(&other.latest);
        drop((other, again));
        assert!(latest.upgrade().is_none(), "its thread has ended");
        assert!(!topic_watches.share(&config).unwrap().is_finished());
    }

    #[test]
    fn an_answer_is_news_once_and_to_those_alone_who_came_before_its_question() {
        let (ask, asked) = bounded(1);
        let latest = Arc::new(Latest::default());
        let began = Instant::now();
        ask.send(()).unwrap();
        drop(ask);
        keep(&asked, &latest, |_| Ok(TopicIdentity("one".into())));
        let topic_watch = TopicWatch { ask: None, latest, thread: None };
        let sighting = topic_watch.sighting(began).unwrap();
        assert_eq!(sighting.identity, TopicIdentity("one".into()));
        assert!(topic_watch.sighting(sighting.asked).is_none());
        assert!(topic_watch.sighting(Instant::now()).is_none());
    }
}
