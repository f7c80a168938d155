//! A steady load on everything in one process, and a dependency that does not answer for as long as the load lasts.

use std::{
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};

use crate::{
    events::{self, Shape},
    load::Load,
    rows::{LOGIN, Silent},
    stage::{Server, Stage, sample, usual},
    support::services::Service,
    table::{Metric, Sample},
};

/// Events per second.
const RATE: f64 = 2_000.0;
const SHAPE: Shape = Shape::Ndjson(100);
const CONNECTIONS: usize = 16;
/// Of load before the dependency falls silent, so that something is under way to it.
const BEFORE: Duration = Duration::from_secs(2);
/// For catching up.
const DEADLINE: Duration = Duration::from_secs(300);
const TICK: Duration = Duration::from_millis(100);

impl Stage<'_> {
    /// The memory is the peak while it is silent. Afterwards both groups must commit the log's end, and the store count it.
    pub(crate) fn outage(&mut self, silent: Silent) -> anyhow::Result<Sample> {
        let name = self.name();
        self.services.create_bucket(&name);
        let server = Server::ingestd(usual(self.services.setup(&name)));
        let requests = events::requests(SHAPE, LOGIN, false, "");
        let load = Load {
            server: server.address.parse()?,
            pid: server.running.pid(),
            requests: &requests,
            connections: CONNECTIONS,
            tls: None,
            warm_up: BEFORE,
            length: self.outage,
        };
        let service = match silent {
            Silent::None => None,
            Silent::Mongodb => Some(&self.services.mongodb),
            Silent::Store => Some(&self.services.s3),
        };
        let measured = thread::scope(|scope| {
            let (over, until_over) = mpsc::channel::<()>();
            if let Some(service) = service {
                scope.spawn(move || freeze(service, &until_over));
            }
            let measured = load.open(RATE / SHAPE.events() as f64);
            // The load's end is the outage's.
            drop(over);
            measured
        });
        let measured = measured.with_context(|| server.running.log())?;
        let memory = server.running.peak_memory();
        self.is_whole(&name).with_context(|| server.running.log())?;
        let afterwards = server.running.peak_memory();
        drop(server);
        let stored: i64 = self.services.watermarks(&name).into_iter().map(|(_, start, end)| end - start).sum();
        let acknowledged = measured.acknowledged * SHAPE.events() as u64;
        ensure!(stored as u64 == acknowledged, "{acknowledged} events were acknowledged, the topic has {stored}");
        self.forget(&name)?;
        let mut sample = sample(&measured, SHAPE.events() as u64, memory);
        sample.set(Metric::MemoryAfterwards, afterwards);
        Ok(sample)
    }

    /// Waits until both groups have reached the log's end, and the aggregates count all of it.
    fn is_whole(&self, name: &str) -> anyhow::Result<()> {
        let deadline = Instant::now() + DEADLINE;
        let lag = |sink: &str| self.services.lag(name, &format!("{name}-{sink}"));
        while !(matches!(lag("archive"), Ok(0)) && matches!(lag("aggregate"), Ok(0))) {
            ensure!(Instant::now() < deadline, "it still has a lag after {DEADLINE:?}");
            thread::sleep(TICK);
        }
        let stored: i64 = self.services.watermarks(name).into_iter().map(|(_, start, end)| end - start).sum();
        let buckets = self.services.documents(name, "aggregate_events_by_type");
        let counted: i64 = buckets.iter().filter_map(|bucket| bucket.get_i64("count").ok()).sum();
        ensure!(counted == stored, "{stored} records are in the log, {counted} are counted");
        Ok(())
    }
}

/// From a little later on until the other end is dropped.
fn freeze(service: &Service, until_over: &mpsc::Receiver<()>) {
    if until_over.recv_timeout(BEFORE) == Err(mpsc::RecvTimeoutError::Timeout) {
        let process = service.process();
        let _frozen = process.freeze();
        let _ = until_over.recv();
    }
}
