//! The stop, in order, within `shutdown.timeout`.
//!
//! The gate closes → the HTTP server finishes what it has (the producer still runs) → the producer flushes → the
//! forwarder of the buffer ends → the consumers stop fetching, and their sinks make durable what they hold → the
//! uploader finishes what it can → positions are committed → the actors end → the admin endpoint last. A second signal
//! (of another kind only after a second), or the deadline, ends it at once, with the names of what was stuck.

use std::{collections::BTreeSet, time::Duration};

use parking_lot::Mutex;
use tokio::time::Instant;

use super::{
    signals::{Signal, Signals},
    wiring::{ArchiveSink, Running},
};
use crate::{
    admin::AdminServer,
    archive::spool::Settled,
    consume::{Consumer, Drain, Leave, Left, Sink, StopFetching},
    health::Health,
    ingest::StopAccepting,
    log::Flush,
    names::dependency,
    supervise::Slot,
};

/// How it ended.
pub(super) enum Stopped {
    InOrder,
    /// In order, but for positions that could not be committed.
    Uncommitted,
    /// By the deadline or a second signal; threads may still hang.
    Cut,
}

/// The signal that began the stop.
#[derive(Clone, Copy)]
pub(super) struct Asked {
    pub name: &'static str,
    pub at: Instant,
}

impl Asked {
    /// A terminal's SIGINT reaches the whole group of processes, and a wrapper that receives it passes SIGTERM on.
    const SAME_WISH: Duration = Duration::from_secs(1);

    /// Whether another signal wants more than this one: the same once more, or any other a while later.
    fn is_another_wish(self, name: &str, now: Instant) -> bool {
        name == self.name || now.saturating_duration_since(self.at) > Self::SAME_WISH
    }
}

/// The share of the time that is left which uploads may take: sealed segments are safe on disk.
const UPLOADS_SHARE: f64 = 0.6;
/// What they may take of it while the store is away: for one more attempt.
const UPLOADS_TRY: Duration = Duration::from_secs(3);

/// What is under way, so that it can be named when it is stuck.
#[derive(Default)]
struct Steps(Mutex<BTreeSet<&'static str>>);

impl Steps {
    async fn run<T>(&self, name: &'static str, step: impl Future<Output = T>) -> T {
        self.0.lock().insert(name);
        let outcome = step.await;
        self.0.lock().remove(name);
        outcome
    }

    fn stuck(&self) -> String {
        let steps = self.0.lock();
        steps.iter().copied().collect::<Vec<_>>().join(", ")
    }
}

pub(super) async fn stop(
    running: Running,
    admin: AdminServer,
    health: &Health,
    timeout: Duration,
    mut signals: Signals,
    asked: Option<Asked>,
) -> Stopped {
    let started = Instant::now();
    let deadline = started + timeout;
    let steps = Steps::default();
    let second_signal = async {
        loop {
            if let Signal::Stop(name) = signals.next().await
                && asked.is_none_or(|asked| asked.is_another_wish(name, Instant::now()))
            {
                return name;
            }
        }
    };
    let why = tokio::select! {
        committed = in_order(running, admin, health, deadline, &steps) => {
            let seconds = started.elapsed().as_secs_f64();
            return match committed {
                Ok(()) => {
                    tracing::info!(seconds, "stopped: everything accepted is durable, positions are committed");
                    Stopped::InOrder
                }
                Err(reason) => {
                    tracing::error!(seconds, reason, "stopped: everything accepted is durable, but the sinks' last \
                        positions are not committed; the next start reads again from the ones before");
                    Stopped::Uncommitted
                }
            };
        }
        () = tokio::time::sleep_until(deadline) => format!("shutdown.timeout ({}) is over", humantime::format_duration(timeout)),
        name = second_signal => format!("a second signal ({name})"),
    };
    tracing::error!(stuck = steps.stuck(), why, "stopped before everything was done; it goes on at the next start");
    Stopped::Cut
}

/// The error says why positions are not committed.
async fn in_order(
    running: Running,
    admin: AdminServer,
    health: &Health,
    deadline: Instant,
    steps: &Steps,
) -> Result<(), String> {
    let Running { ingestor, producer, archive, aggregate, guarded, log, buffer, .. } = running;
    if let Some(ingestor) = ingestor.get() {
        // An error says that the actor is gone, and its server with it. The same holds below.
        let _ = steps.run("ingestor (requests in flight)", ingestor.send(StopAccepting)).await;
    }
    if let Some(producer) = producer.get() {
        let patience = deadline.saturating_duration_since(Instant::now());
        let flushed = steps.run("producer (events not acknowledged)", producer.send(Flush(patience))).await;
        if let Ok(Err(events)) = flushed {
            tracing::error!(events, "events were not acknowledged by the queue; their requests got no 2xx");
        }
    }
    if let Some(buffer) = buffer {
        // Joins threads that fsync and wait for Kafka, for seconds at most.
        let closed = tokio::task::spawn_blocking(move || buffer.close());
        let _ = steps.run("forwarder (a transaction under way)", closed).await;
    }
    let aggregate = async {
        steps.run("aggregator (flush)", stop_fetching(&aggregate)).await;
        steps.run("consumer-aggregate (commit)", leave(&aggregate, "aggregate")).await
    };
    let (archive, aggregate) = futures::join!(stop_archive(archive, health, deadline, steps), aggregate);
    for actor in guarded {
        steps.run(actor.name.as_str(), actor.stop()).await;
    }
    let mut committed = archive.and(aggregate);
    if let Some(log) = log {
        // Joins a thread that fsyncs.
        let closed = tokio::task::spawn_blocking(move || log.close());
        let closed = steps.run("embedded log", closed).await.unwrap_or_else(|error| Err(error.to_string()));
        committed = committed.and(closed);
    }
    steps.run("admin endpoint", admin.stop()).await;
    committed
}

async fn stop_archive(archive: ArchiveSink, health: &Health, deadline: Instant, steps: &Steps) -> Result<(), String> {
    steps.run("spooler (seal)", stop_fetching(&archive.consumer)).await;
    if let Some(uploader) = archive.uploader.get() {
        let share = deadline.saturating_duration_since(Instant::now()).mul_f64(UPLOADS_SHARE);
        let patience = if health.is_away(dependency::OBJECT_STORE) { share.min(UPLOADS_TRY) } else { share };
        let drained = tokio::time::timeout(patience, uploader.send(Drain));
        if steps.run("uploader", drained).await.is_err() {
            tracing::warn!("sealed segments wait on disk; they are uploaded after the next start");
        }
    }
    if let Some(spooler) = archive.spooler.get() {
        // What the uploader said last has to reach the consumer before it leaves.
        let _ = steps.run("spooler (confirm)", spooler.send(Settled)).await;
    }
    steps.run("consumer-archive (commit)", leave(&archive.consumer, "archive")).await
}

async fn stop_fetching<S: Sink>(consumer: &Slot<Consumer<S>>) {
    if let Some(consumer) = consumer.get() {
        let _ = consumer.send(StopFetching).await;
    }
}

/// The error says why the last positions are not committed. A consumer that is not there has none.
async fn leave<S: Sink>(consumer: &Slot<Consumer<S>>, sink: &str) -> Result<(), String> {
    let Some(consumer) = consumer.get() else { return Ok(()) };
    let Ok(Left { unread, committed }) = consumer.send(Leave).await else { return Ok(()) };
    if unread > 0 {
        tracing::info!(sink, records = unread, "records wait in the log for the next start");
    }
    committed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_of_two_kinds_at_once_are_one_wish() {
        let asked = Asked { name: "SIGINT", at: Instant::now() };
        let after = |millis| asked.at + Duration::from_millis(millis);
        assert!(!asked.is_another_wish("SIGTERM", after(13)));
        assert!(asked.is_another_wish("SIGTERM", after(1001)));
        assert!(asked.is_another_wish("SIGINT", after(13)), "whoever presses Ctrl-C twice wants it at once");
    }
}
