//! The buffer (`queue.on_unavailable = "buffer"`): while Kafka is away, events are made durable in `buffer.db`, a log
//! like the embedded one, and a forwarder carries them into Kafka when it is back.
//!
//! **Invariants.**
//! - A 2xx is sent after the fsync that holds the event, or after Kafka's acknowledgement; never in between.
//! - Of two events of one key, the one that was accepted first stands first in the topic: [`switch`] has the rule.
//! - Each event of the buffer stands in the topic exactly once: the transaction that carries records commits the
//!   position behind them with them, to the consumer group `<group>-buffer-<identity>` (partition 0 of the topic; the
//!   offset is one of the buffer's). Each life first ends what an earlier one left open (`init_transactions`),
//!   then asks that group, and goes on there.
//! - The transactional id and the group are named after the buffer's identity, which is made with the file. So a buffer
//!   that was begun anew has no position of the old one, and two processes with copies of one buffer fence each
//!   other, on whatever machines they run.
//! - Kafka forgets positions of groups that are idle (`offsets.retention.minutes`, 7 days), and with a topic that is
//!   deleted. Therefore a mark with the range of each transaction is fsynced here before its commit, and is over when
//!   the cursor here has passed it. A mark that is not over, where Kafka has no position, is doubt: it is reported with
//!   its range, and the range is sent again, because nothing that was accepted may be lost.
//! - A position in Kafka beyond every mark says that the file is an older copy of itself, and stops the process: records
//!   appended after the copy was made would be taken for forwarded ones.
//! - A buffer belongs to one topic and group: under other names, it is refused until it is empty.
//!
//! `queue.embedded.quota` bounds the buffer; forwarded records are trimmed at once.

mod appender;
mod forwarder;
mod position;
pub mod switch;
mod transaction;

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{Context, bail};
use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;

use self::{
    forwarder::Forwarder,
    position::Position,
    switch::{Rule, Switch},
};
use crate::{
    config::Config,
    health::{Closed, Reason},
    log::{
        Appender,
        embedded::{self, EmbeddedLog, Purpose, schema},
        kafka::KafkaAppender,
    },
    names::{ActorName, dependency},
    position::Offset,
    supervise::{self, Env, Escalation},
};

const FILE: &str = "buffer.db";
/// The buffer's only reader.
const READER: &str = "forwarder";
/// Rows of `meta`.
const DESTINATION: &str = "destination";
const DOUBT: &str = "doubt";
/// For the last cursor at the stop.
const SETTLING: Duration = Duration::from_secs(2);

/// An open buffer.
pub struct Buffer {
    log: EmbeddedLog,
    switch: Arc<Switch>,
    env: Env,
    /// Closes the gate while there is no room for more.
    full: Reason,
    /// Events can be taken before Kafka was asked for the topic: an earlier life found it right.
    pub established: bool,
    /// The topics were found to be right in this life, so that the forwarder may send.
    prepared: AtomicBool,
    stopping: AtomicBool,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Buffer {
    /// Opens or creates `buffer.db` in `data_dir`, and starts its threads. Nothing is forwarded before
    /// [`Self::prepared`].
    ///
    /// # Errors
    /// When the file cannot be used, or holds events for another topic or group.
    pub fn open(data_dir: &Path, env: Env) -> anyhow::Result<Arc<Self>> {
        let switch = Arc::new(Switch::new(Rule::new(Offset(0), Offset(0)), env.metrics.buffer_records.clone()));
        let answered = switch.clone();
        let purpose = Purpose {
            file: FILE,
            dependency: dependency::BUFFER,
            readers: vec![READER],
            // They count as produced when Kafka has them.
            counts: Counter::default(),
            retains: false,
            full: "Kafka is away, and the buffer",
            room_when: "when Kafka takes its events",
            on_answered: Some(Box::new(move |requests, end| answered.update(|rule| rule.answered(requests, end)))),
        };
        let Env { config, health, escalations, .. } = env.clone();
        let log = EmbeddedLog::open_for(purpose, data_dir, config, health, escalations)?;
        let records = log.reader()?;
        let position = Position::read(&records.database)?;
        switch.update(|rule| *rule = Rule::new(log.end.get(), position.at));
        let (destination, known) = (destination(&env.config.load()), schema::meta(&records.database, DESTINATION)?);
        let waiting = switch.rule().waiting();
        if let Some(known) = known.as_ref().filter(|known| **known != destination && waiting > 0) {
            // Nothing was written that is not known to be durable.
            let _ = log.close();
            bail!(
                "{} holds {waiting} events for {known}, and this is {destination}: start once with those names until \
                 ingestd_buffer_records is 0, or move the file away with its folder buffer.segments/",
                log.path.display()
            );
        }
        let buffer = Arc::new(Self {
            log,
            switch,
            full: env.health.gate.reason(Closed::QueueUnavailable),
            env,
            established: known == Some(destination),
            prepared: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            thread: Mutex::new(None),
        });
        if waiting > 0 {
            tracing::info!(events = waiting, "events of an earlier start wait in the buffer");
        }
        let forwarder = Forwarder::new(buffer.clone(), records, position);
        let thread = std::thread::Builder::new()
            .name("forwarder".to_owned())
            .spawn(move || {
                let died = |forwarder: &Forwarder, reason| {
                    forwarder.buffer.env.escalate(Escalation::Failed { actor: ActorName::Producer, reason });
                };
                supervise::watched(forwarder, Forwarder::run, died);
            })
            .context("cannot start the forwarder's thread")?;
        *buffer.thread.lock() = Some(thread);
        Ok(buffer)
    }

    /// The topics are there and right: from now on the forwarder sends.
    ///
    /// # Errors
    /// When that cannot be written down.
    pub fn prepared(&self) -> anyhow::Result<()> {
        self.log.write_meta(DESTINATION, destination(&self.env.config.load()))?;
        self.prepared.store(true, Ordering::Release);
        self.switch.wake();
        Ok(())
    }

    /// The write side: in front of Kafka's.
    ///
    /// # Errors
    /// When librdkafka refuses the settings.
    pub fn appender(&self) -> anyhow::Result<Box<dyn Appender>> {
        let Env { config, health, metrics, .. } = self.env.clone();
        let kafka = KafkaAppender::behind(Some(self.switch.clone()), &config.load(), health, metrics)?;
        let (switch, buffer) = (self.switch.clone(), self.log.clone());
        Ok(Box::new(appender::BufferingAppender { switch, kafka, buffer }))
    }

    /// Ends the threads; a transaction under way is committed or given up within seconds. Blocks.
    pub fn close(&self) {
        self.stopping.store(true, Ordering::Release);
        self.switch.wake();
        let thread = self.thread.lock().take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!("the forwarder's thread had panicked");
        }
        let (forwarded, waiting) = {
            let rule = self.switch.rule();
            (rule.forwarded(), rule.waiting())
        };
        self.log.settle_cursor(READER, forwarded, SETTLING);
        if let Err(error) = self.log.close() {
            tracing::warn!(error, "how far the buffer was forwarded is not noted here; Kafka knows it, too");
        }
        if waiting > 0 {
            tracing::info!("{waiting} events wait in the buffer for the next start");
        }
    }

    /// The transactional id of the forwarder, and the group that holds its position.
    fn id(&self) -> String {
        format!("{}-buffer-{}", self.env.config.load().queue.kafka.group, self.log.identity)
    }

    /// Shows in readiness what waits, and closes the gate while there is no room for more.
    fn report(&self) {
        let (waiting, kafka_up) = {
            let rule = self.switch.rule();
            (rule.waiting(), rule.kafka_up())
        };
        let words = || {
            let why = if kafka_up { "are being forwarded to Kafka" } else { "wait in buffer.db until Kafka is back" };
            format!("{waiting} events {why}; new ones are put behind them")
        };
        self.env.health.remark(dependency::BUFFER, (waiting > 0).then(words));
        let quota = self.env.config.load().queue.embedded.quota;
        let is_full = self.log.end.stored() >= quota.0 && (waiting > 0 || !kafka_up);
        self.full.set(
            is_full.then(|| {
                format!("{waiting} events wait in the buffer, which has reached queue.embedded.quota ({quota})")
            }),
        );
    }
}

/// Where a buffer's events go.
fn destination(config: &Config) -> String {
    format!("queue.topic = {:?}, queue.kafka.group = {:?}", config.queue.topic, config.queue.kafka.group)
}

/// Refuses to leave events behind: without `queue.on_unavailable = "buffer"` nobody forwards them.
///
/// # Errors
/// When `buffer.db` holds some, or cannot be read.
pub fn refuse_left_over(data_dir: &Path) -> anyhow::Result<()> {
    let path = data_dir.join(FILE);
    if !path.exists() {
        return Ok(());
    }
    let look = || -> anyhow::Result<u64> {
        let database = schema::open_reader(&path)?;
        Ok(embedded::end_at_rest(&database, &path)?.since(Position::read(&database)?.at))
    };
    let waiting = look().with_context(|| format!("cannot read {}", path.display()))?;
    if waiting > 0 {
        bail!(
            "{} holds {waiting} accepted events that Kafka may not have: start an ingesting process on this data.dir \
             with queue.kind = \"kafka\" and queue.on_unavailable = \"buffer\" until ingestd_buffer_records is 0, or \
             move the file away with its folder buffer.segments/",
            path.display()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests;
