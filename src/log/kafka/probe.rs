//! The probe: a thread beside each producer that asks the brokers how they are, while they are away or silent, while
//! records wait for longer than they should, and while partitions take no writes.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, bounded, select};
use rdkafka::{
    ClientConfig,
    producer::{BaseProducer, Producer, ProducerContext},
};

use crate::{
    backoff,
    log::kafka::{
        broker_status::{BrokerStatus, Reporter},
        clock::{self, Verdict},
        reconnect::Reconnect,
        writable::{Scout, Sight, Silent, Writability},
    },
};

/// One question by way of the producer.
const DEADLINE: Duration = Duration::from_secs(3);
/// The same while requests wait for the answer.
const QUESTION: Duration = Duration::from_millis(1500);
/// How often it looks whether something is to be asked: a part of what a record may wait.
const TICK: Duration = Duration::from_millis(250);
/// The clocks, which takes two new clients, while they agree and records are refused all the same.
const COMPARE_EVERY: Duration = Duration::from_secs(5);
/// The same while they do not.
const COMPARE_AGAIN: Duration = Duration::from_secs(1);

pub(super) struct Probe<C: ProducerContext + 'static> {
    producer: Arc<BaseProducer<C>>,
    plain: ClientConfig,
    topic: String,
    reporter: Arc<Reporter>,
    reconnect: Reconnect,
    /// While there is something to find out.
    scout: Option<Scout>,
    /// The topic's `min.insync.replicas`, as last known.
    minimum: Option<usize>,
    /// It was asked for.
    informed: bool,
    silent: Silent,
    /// When the clocks were compared last after a refusal.
    compared: Option<Instant>,
}

impl<C: ProducerContext + 'static> Probe<C> {
    /// `plain` are the settings of a client that asks and writes nothing.
    pub fn new(producer: Arc<BaseProducer<C>>, plain: ClientConfig, topic: &str, reporter: Arc<Reporter>) -> Self {
        let reconnect = Reconnect::default();
        Self {
            producer,
            plain,
            topic: topic.to_owned(),
            reporter,
            reconnect,
            scout: None,
            minimum: None,
            informed: false,
            silent: Silent::default(),
            compared: None,
        }
    }

    /// Asks at once when it is woken.
    pub fn run(mut self, woken: &Receiver<()>, stopped: &Receiver<()>) {
        let mut asked = Instant::now();
        // With ±20 %, so that daemons that lost Kafka together do not return together.
        let mut jitter = 1.0;
        loop {
            let now = select! {
                recv(stopped) -> _ => return,
                recv(woken) -> _ => true,
                default(TICK) => false,
            };
            let reporter = self.reporter.clone();
            let Some(brokers) = reporter.live() else { continue };
            // No callback tells of it.
            if !brokers.has_failed()
                && let Some((_, reason)) = self.producer.client().fatal_error()
            {
                brokers.failed(&reason);
            }
            // Records may be refused for other reasons, and by the thousand.
            if self.compared.is_none_or(|at| at.elapsed() >= COMPARE_EVERY) && brokers.take_refused_time() {
                self.compared = Some(Instant::now());
                if let Verdict::Wrong(side, reason) = clock::judge(&self.plain, &self.topic) {
                    reporter.tell(|brokers| brokers.clock_is_wrong(side, &reason));
                }
            }
            if now || brokers.is_due(asked.elapsed().mul_f64(jitter)) {
                self.ask(&reporter);
                asked = Instant::now();
                jitter = backoff::jitter();
            }
        }
    }

    /// Each question takes up to some seconds, in which another producer may take this one's place: what comes of it is
    /// told by way of the line, which knows.
    fn ask(&mut self, reporter: &Reporter) {
        let Some(brokers) = reporter.live() else { return };
        if brokers.clock().is_some() && self.compared.is_none_or(|at| at.elapsed() >= COMPARE_AGAIN) {
            self.compare_clocks(reporter);
        }
        let is_well = !brokers.is_away() && brokers.unwritable().is_none() && !brokers.is_suspicious();
        let mut is_heard = true;
        if is_well && self.informed {
            self.scout = None;
            let answer = answers(&self.producer, &self.topic, self.minimum, DEADLINE);
            is_heard = answer.is_ok();
            if answer.is_ok_and(|topic| topic.is_some_and(|topic| topic.unwritable.is_empty())) {
                self.reconnect.answered();
                reporter.tell(BrokerStatus::answered);
                return;
            }
        }
        self.find_out(reporter, is_heard);
    }

    /// While our time is refused: whether it still is.
    fn compare_clocks(&mut self, reporter: &Reporter) {
        self.compared = Some(Instant::now());
        match clock::judge(&self.plain, &self.topic) {
            Verdict::Wrong(side, reason) => reporter.tell(|brokers| brokers.clock_is_wrong(side, &reason)),
            Verdict::Right => reporter.tell(BrokerStatus::clock_is_right),
            Verdict::Unknown(_) => {}
        }
    }

    /// `is_heard`: as far as is known, the producer is answered.
    fn find_out(&mut self, reporter: &Reporter, is_heard: bool) {
        let began = Instant::now();
        let own = self.ask_by_the_producer();
        match self.look() {
            Err(reason) => {
                // The next one begins anew with the configured brokers.
                self.scout = None;
                // The producer knows all brokers, and a new client those of the configuration alone.
                let own = own.and_then(|own| own.recv_timeout(QUESTION).ok()).and_then(Result::ok);
                reporter.tell(|brokers| match own {
                    _ if brokers.has_acknowledged_since(began) => {}
                    Some(Some(topic)) if !brokers.acknowledges_nothing() => {
                        brokers.sees(topic);
                        brokers.answered();
                    }
                    _ => {
                        brokers.down(&reason);
                    }
                });
            }
            Ok(Sight::Missing) => reporter.tell(|brokers| {
                brokers.down(&format!(
                    "topic {} does not exist: it was deleted, or not created yet; a start creates it where \
                     queue.kafka.create_topic is true",
                    self.topic
                ));
            }),
            Ok(Sight::Topic(topic)) => {
                self.informed = true;
                let is_clear = topic.unwritable.is_empty();
                let mut is_to_be_confirmed = false;
                reporter.tell(|brokers| {
                    brokers.sees(topic);
                    if is_clear && brokers.clock().is_none() && brokers.acknowledges_nothing() {
                        brokers.idle();
                    } else {
                        is_to_be_confirmed = is_clear && (brokers.is_away() || !is_heard);
                    }
                });
                if is_to_be_confirmed {
                    self.confirm(reporter);
                }
            }
        }
    }

    fn look(&mut self) -> Result<Sight, String> {
        let scout = match self.scout.take() {
            Some(scout) => scout,
            None => Scout::open(&self.plain, &self.topic).map_err(|error| format!("{error:#}"))?,
        };
        // Before the first answer nothing is on its way, and a broker that is slow to answer is none that is away.
        self.scout.insert(scout).look(&mut self.minimum, &mut self.silent, self.informed)
    }

    /// The producer is asked beside the scout, on a thread that ends by the question's deadline; nobody waits for it where
    /// the scout was answered.
    fn ask_by_the_producer(&self) -> Option<Receiver<Result<Option<Writability>, String>>> {
        let (told, answer) = bounded(1);
        let (producer, topic, minimum) = (self.producer.clone(), self.topic.clone(), self.minimum);
        let ask = move || {
            let _ = told.send(answers(&producer, &topic, minimum, QUESTION));
        };
        std::thread::Builder::new().name("kafka-ask".to_owned()).spawn(ask).ok().map(|_| answer)
    }

    /// The brokers are well; whether the producer finds them, too.
    fn confirm(&mut self, reporter: &Reporter) {
        match answers(&self.producer, &self.topic, self.minimum, DEADLINE) {
            Ok(_) => {
                self.reconnect.answered();
                reporter.tell(BrokerStatus::answered);
            }
            Err(error) => {
                // The scout was answered a moment ago.
                let is_stranded = self.reconnect.unanswered(Instant::now(), || true);
                reporter.tell(|brokers| {
                    brokers.down(&error);
                    if is_stranded {
                        brokers.failed("it finds no broker any more, while a new client is answered");
                        // The next event finds the door open, and replaces this producer.
                        brokers.answered();
                    }
                });
            }
        }
    }
}

/// Asks by way of the producer: `None` where the topic is not known.
fn answers<C: ProducerContext>(
    producer: &BaseProducer<C>,
    topic: &str,
    minimum: Option<usize>,
    deadline: Duration,
) -> Result<Option<Writability>, String> {
    let metadata = producer.client().fetch_metadata(Some(topic), deadline).map_err(|error| error.to_string())?;
    Ok(Writability::of(&metadata, topic, minimum, &Silent::default()))
}
