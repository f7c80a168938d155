//! The probe: a thread beside each producer that asks the brokers how they are, while they are away or silent, while
//! records wait for longer than they should, and while partitions take no writes.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, select};
use rdkafka::{
    ClientConfig,
    producer::{BaseProducer, Producer, ProducerContext},
};

use crate::{
    backoff,
    log::kafka::{
        clock::{self, Side},
        link::{Line, Link},
        stranded::Stranded,
        writable::{Scout, Sight, Writability},
    },
    position::Timestamp,
};

/// One question by way of the producer.
const DEADLINE: Duration = Duration::from_secs(3);
/// How often it looks whether something is to be asked: a part of what a record may wait.
const TICK: Duration = Duration::from_millis(250);
/// The clocks, which takes two new clients, while they agree and records are refused all the same.
const COMPARE_EVERY: Duration = Duration::from_secs(5);

pub(super) struct Probe<C: ProducerContext + 'static> {
    producer: Arc<BaseProducer<C>>,
    plain: ClientConfig,
    topic: String,
    line: Arc<Line>,
    stranded: Stranded,
    /// While there is something to find out.
    scout: Option<Scout>,
    /// The topic's `min.insync.replicas`, as last known.
    minimum: Option<usize>,
    /// It was asked for.
    informed: bool,
    /// When the clocks were compared last after a refusal, and agreed.
    agreed: Option<Instant>,
}

impl<C: ProducerContext + 'static> Probe<C> {
    /// `plain` are the settings of a client that asks and writes nothing.
    pub fn new(producer: Arc<BaseProducer<C>>, plain: ClientConfig, topic: &str, line: Arc<Line>) -> Self {
        let stranded = Stranded::default();
        Self {
            producer,
            plain,
            topic: topic.to_owned(),
            line,
            stranded,
            scout: None,
            minimum: None,
            informed: false,
            agreed: None,
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
            let line = self.line.clone();
            let Some(link) = line.live() else { continue };
            // No callback tells of it.
            if !link.has_failed()
                && let Some((_, reason)) = self.producer.client().fatal_error()
            {
                link.failed(&reason);
            }
            // Records may be refused for other reasons, and by the thousand.
            if self.agreed.is_none_or(|at| at.elapsed() >= COMPARE_EVERY) && link.take_refused_time() {
                match clock::complaint(&self.plain, &self.topic) {
                    Some((side, reason)) => link.clock_is_wrong(side, &reason),
                    None => self.agreed = Some(Instant::now()),
                }
            }
            if now || link.is_due(asked.elapsed().mul_f64(jitter)) {
                self.ask(link);
                asked = Instant::now();
                jitter = backoff::jitter();
            }
        }
    }

    fn ask(&mut self, link: &Link) {
        if let Some(side) = link.clock() {
            self.compare_clocks(link, side);
        }
        let is_well = !link.is_away() && link.unwritable().is_none() && !link.is_suspicious();
        let mut is_heard = true;
        if is_well && self.informed {
            self.scout = None;
            let answer = self.answers();
            is_heard = answer.is_ok();
            if answer.is_ok_and(|topic| topic.is_some_and(|topic| topic.unwritable.is_empty())) {
                self.stranded.answered();
                link.answered();
                return;
            }
        }
        self.find_out(link, is_heard);
    }

    /// While our time is refused: whether it still is.
    fn compare_clocks(&self, link: &Link, side: Side) {
        let Some(taken) = clock::ask(&self.plain, &self.topic, side) else { return };
        match taken.complaint(&self.topic, Timestamp::now()) {
            Some((side, reason)) => link.clock_is_wrong(side, &reason),
            None => link.clock_is_right(),
        }
    }

    /// Asks by way of the producer: `None` where the topic is not known.
    fn answers(&self) -> Result<Option<Writability>, String> {
        let metadata = self.producer.client().fetch_metadata(Some(&self.topic), DEADLINE);
        let metadata = metadata.map_err(|error| error.to_string())?;
        Ok(Writability::of(&metadata, &self.topic, self.minimum, &BTreeSet::new()))
    }

    /// `is_heard`: as far as is known, the producer is answered.
    fn find_out(&mut self, link: &Link, is_heard: bool) {
        let began = Instant::now();
        let sight = self.look();
        match sight {
            Err(reason) => {
                // The next one begins anew with the configured brokers.
                self.scout = None;
                if link.has_acknowledged_since(began) {
                    return;
                }
                link.down(&reason);
            }
            Ok(Sight::Missing) => {
                link.down(&format!(
                    "topic {} does not exist: it was deleted, or not created yet; a start creates it where \
                     queue.kafka.create_topic is true",
                    self.topic
                ));
            }
            Ok(Sight::Topic(topic)) => {
                self.informed = true;
                let is_clear = topic.unwritable.is_empty();
                link.sees(topic);
                if !is_clear {
                    return;
                }
                if link.clock().is_none() && link.acknowledges_nothing() {
                    link.idle();
                } else if link.is_away() || !is_heard {
                    self.confirm(link);
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
        self.scout.insert(scout).look(&mut self.minimum, self.informed)
    }

    /// The brokers are well; whether the producer finds them, too.
    fn confirm(&mut self, link: &Link) {
        match self.answers() {
            Ok(_) => {
                self.stranded.answered();
                link.answered();
            }
            Err(error) => {
                link.down(&error);
                // The scout was answered a moment ago.
                if self.stranded.unanswered(Instant::now(), || true) {
                    link.failed("it finds no broker any more, while a new client is answered");
                    // The next event finds the door open, and replaces this producer.
                    link.answered();
                }
            }
        }
    }
}
